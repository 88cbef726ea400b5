package e2e_test

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"headrace/providers/fakecloud"
)

// Models of the fleet, each served by the one host that behaves so.
const (
	plainModel  = "lab/plain"    // well
	chatServed  = "lab/chat-70b" // well; callers say "chat"
	raggedModel = "lab/ragged"   // cuts its stream anywhere, in characters too
	slowModel   = "lab/slow"     // 50 tokens a second
	lateModel   = "lab/late"     // half a minute before the first token
	smallModel  = "lab/small"    // knows 512 tokens of context
	lockedModel = "lab/locked-"  // and the language of the SDK: asks for another key than the gateway has
	busyModel   = "lab/busy"     // always at its rate limit
	brokenModel = "lab/broken"   // always answers 500
	downModel   = "lab/down"     // nobody listens
	cutModel    = "lab/cut-"     // and the language of the SDK: resets its streams after some tokens
	mortalModel = "lab/mortal-"  // and the language of the SDK: its cheaper host does the same, the other one goes on with its answers
	retryAfter  = 7              // seconds that the busy host asks for
	cutAfter    = 9              // tokens
	maxLatency  = 50 * time.Millisecond
	settleLimit = time.Minute // for what ought to take milliseconds
)

// fleet is the hosts behind the gateway.
type fleet struct {
	hosts      []*fakecloud.Host
	slow, late *fakecloud.Host
	heirs      map[string]*fakecloud.Host // by language
}

func startFleet(t *testing.T) *fleet {
	t.Helper()
	f := new(fleet)
	start := func(name string, c fakecloud.HostConfig, faults ...fakecloud.Fault) *fakecloud.Host {
		c.Name, c.Seed, c.Keep = name, 1, 512
		if c.APIKey == "" {
			c.APIKey = hostKey
		}
		c.USDPerHour = cmp.Or(c.USDPerHour, 1)
		h, err := fakecloud.StartHost(context.Background(), c) // stopped by the cleanup, after the gateway
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(h.Stop)
		if err := h.SetFaults(faults...); err != nil {
			t.Fatal(err)
		}
		f.hosts = append(f.hosts, h)
		return h
	}
	serving := func(models ...string) fakecloud.HostConfig { return fakecloud.HostConfig{Models: models} }

	well := serving(plainModel, chatServed)
	well.MaxModelLen = 4 << 20 // the big prompt fits
	start("well", well)
	ragged := serving(raggedModel)
	ragged.Chunking = fakecloud.Chunking{Ragged: true, SplitChars: true}
	start("ragged", ragged)
	small := serving(smallModel)
	small.MaxModelLen = 512
	start("small", small)
	for _, language := range languages() { // the gateway takes such a host out of use at once
		locked := serving(lockedModel + language)
		locked.APIKey = "another key"
		start("locked-"+language, locked)
	}
	f.heirs = map[string]*fakecloud.Host{}
	for _, language := range languages() { // the gateway sends nothing more to a host that broke off
		mortal, heir := serving(mortalModel+language), serving(mortalModel+language)
		mortal.USDPerHour, heir.USDPerHour = 1, 50
		start("mortal-"+language, mortal, fakecloud.Fault{Kind: fakecloud.ResetStream, After: cutAfter})
		f.heirs[language] = start("heir-"+language, heir)
		start("cut-"+language, serving(cutModel+language), fakecloud.Fault{Kind: fakecloud.ResetStream, After: cutAfter})
	}
	start("busy", serving(busyModel), fakecloud.Fault{Kind: fakecloud.Throttle, Delay: retryAfter * time.Second})
	start("broken", serving(brokenModel), fakecloud.Fault{Kind: fakecloud.Error500})
	start("down", serving(downModel)).Kill()
	slow := serving(slowModel)
	slow.TimeScale, slow.TPS, slow.TTFT = 1, 50, 50*time.Millisecond
	f.slow = start("slow", slow)
	late := serving(lateModel)
	late.TimeScale, late.TTFT = 1, 30*time.Second
	f.late = start("late", late)
	return f
}

// config renders what the gateway is started with.
func (f *fleet) config(listen, admin string) string {
	var b strings.Builder
	continues := map[bool]string{true: "always", false: "never"}
	fmt.Fprintf(&b, "listen: %q\nadmin: %q\nproviders:\n  static:\n", listen, admin)
	for _, h := range f.hosts {
		fmt.Fprintf(&b, "    - {name: %s, base_url: %q, api_key: %q, models: [%s], price: {usd_per_hour: %g}, continues: %s}\n",
			h.Name(), h.URL()+"/v1", hostKey, strings.Join(h.Config().Models, ", "), h.Config().USDPerHour, continues[strings.HasPrefix(h.Name(), "heir-")])
	}
	fmt.Fprintf(&b, "models: {chat: {serves: [%s]}", chatServed)
	named := map[string]bool{chatServed: true}
	for _, h := range f.hosts {
		for _, m := range h.Config().Models {
			if !named[m] {
				named[m] = true
				fmt.Fprintf(&b, ", %s: {serves: [%s]}", m, m)
			}
		}
	}
	b.WriteString("}\ncontinuation: {self_test: false}\nbreaker: {failures: 10000}\n") // what hosts do is counted; every SDK is to be told of the same failure, not of its repetition
	return b.String()
}

// waitIdle returns when no host works for anybody: all that was left behind has been given up.
func (f *fleet) waitIdle(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), settleLimit)
	defer cancel()
	for _, h := range f.hosts {
		if err := h.Wait(ctx, func(s fakecloud.Stats) bool { return s.Running == 0 && s.Waiting == 0 }); err != nil {
			t.Errorf("a request that nobody waits for still runs: %v", err)
		}
	}
}
