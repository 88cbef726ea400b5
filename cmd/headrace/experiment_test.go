package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"headrace/gateway/config"
	"headrace/gateway/experiments"
	"headrace/gateway/state/redistest"
	"headrace/providers/fakecloud"
	"headrace/router/experiment"
	"headrace/router/experiment/stats"
)

// crowd are users who ask gateways, and what became of them.
type crowd struct {
	t     *testing.T
	users int

	route sync.RWMutex // guards bases; a request holds it until it has ended
	bases []string

	mu     sync.Mutex        // guards all below
	arm    map[string]string // by gateway and user, that of the newest answer
	moved  []string          // who left the canary
	failed []string
	n      map[string]int // requests by arm
}

// run has users ask, some at a time, until stop is closed.
func (c *crowd) run(workers int, stop <-chan struct{}) *sync.WaitGroup {
	var wg sync.WaitGroup
	for w := range workers {
		rng := rand.New(rand.NewPCG(uint64(w), 5)) //nolint:gosec // users need not be secret
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c.request(fmt.Sprint("user-", rng.IntN(c.users)), rng.Uint64())
			}
		})
	}
	return &wg
}

// request is one of a user's, at one of the gateways.
func (c *crowd) request(user string, dice uint64) {
	c.route.RLock()
	defer c.route.RUnlock()
	base := c.bases[dice%uint64(len(c.bases))]
	req, err := http.NewRequest(http.MethodPost, base+"/v1/chat/completions", strings.NewReader(`{"model":"m","stream":true,"max_tokens":8,"messages":[{"role":"user","content":"hello"}]}`))
	if err != nil {
		c.t.Error(err)
		return
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-User-Id", user)
	// Gateways hear of a step one after the other, and an answer may come late: what was answered before at the same gateway counts.
	at := base + " " + user
	c.mu.Lock()
	was := c.arm[at]
	c.mu.Unlock()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		c.fail(fmt.Sprint(user, ": ", err))
		return
	}
	defer func() { _ = res.Body.Close() }()
	var last string
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		if lines.Text() != "" {
			last = lines.Text()
		}
	}
	if res.StatusCode != http.StatusOK || last != "data: [DONE]" {
		c.fail(fmt.Sprint(user, ": ", res.Status, ", ended with ", last))
		return
	}
	arm := res.Header.Get("X-Headrace-Arm")
	c.mu.Lock()
	defer c.mu.Unlock()
	if strings.HasSuffix(was, "/canary") && !strings.HasSuffix(arm, "/canary") {
		c.moved = append(c.moved, at)
	}
	c.arm[at] = arm
	c.n[arm]++
}

func (c *crowd) fail(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed = append(c.failed, what)
}

// ask has users ask these gateways from now on, and others no more when it returns.
func (c *crowd) ask(bases ...string) {
	c.route.Lock()
	defer c.route.Unlock()
	c.bases = bases
}

// stay tells of users that were answered by the canary, at whichever gateway, and are not in it at this one, which knows all that was decided.
func (c *crowd) stay(r *running) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	in := 0
	for at, arm := range c.arm {
		_, user, _ := strings.Cut(at, " ")
		if !strings.HasSuffix(arm, "/canary") {
			continue
		}
		in++
		if is, _ := r.app.trying.Table().Of("m")[0].Assign([]byte(user)); is.Name != "canary" {
			c.t.Errorf("%s was in the canary, and is in %s after the restart", user, is.Name)
		}
	}
	if in == 0 {
		c.t.Error("nobody was in the canary")
	}
}

// standing is how an experiment stands, as a gateway's admin API tells.
func standing(t *testing.T, r *running, name string) experiments.View {
	t.Helper()
	status, body := get(t, "http://"+r.app.admin.Addr().String()+"/admin/v1/experiments/"+name)
	var answer struct {
		Experiment experiments.View `json:"experiment"`
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || status != http.StatusOK {
		t.Fatalf("%d %s: %v", status, body, err)
	}
	return answer.Experiment
}

// runs has the program run, and returns what it prints.
func runs(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	c := root()
	c.SetArgs(args)
	c.SetOut(&out)
	c.SetErr(io.Discard)
	err := c.ExecuteContext(t.Context())
	return out.String(), err
}

const experimentYAML = `
listen: "127.0.0.1:0"
admin: "127.0.0.1:0"
state: {redis: "%s", timeout: 10s} # a busy machine has nobody fall apart
ledger: {path: "off"}
providers:
  static:
    - {name: base, base_url: "%s/v1", models: [m-base], price: {usd_per_hour: 2}}
    - {name: awq, base_url: "%s/v1", models: [m-awq], price: {usd_per_hour: 1}}
models: {m: {serves: [m-base, m-awq]}}
log: {level: info}
experiments:
`

const eightLines = `  - name: %s
    model: m
    assign_by: header:x-user-id
    arms: {control: {hosts: {served: m-base}}, canary: {hosts: {served: m-awq}}}
    steps: [10%%, 50%%, 100%%]
    min_time: 1s
    min_units: 50
    guardrails: {error_rate: +5%%, ttft: +100%%}
`

// TestExperimentLive has eight lines take a good canary to everything and a bad one out of the way, across two gateways that share a Redis
// and a restart of one of them, with nobody's help. No caller gets an error, and no user leaves the canary while it grows.
func TestExperimentLive(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a quarter of a minute")
	}
	t.Parallel()
	redis := redistest.Start(t).URL()
	base := startHost(t, fakecloud.HostConfig{Name: "base", Models: []string{"m-base"}, TPS: 40, TTFT: 200 * time.Millisecond, TimeScale: 10, MaxNumSeqs: 256})
	awq := startHost(t, fakecloud.HostConfig{Name: "awq", Models: []string{"m-awq"}, TPS: 40, TTFT: 200 * time.Millisecond, TimeScale: 10, MaxNumSeqs: 256})
	head := fmt.Sprintf(experimentYAML, redis, base.URL(), awq.URL())
	good := head + fmt.Sprintf(eightLines, "good")
	dirA, dirB := t.TempDir(), t.TempDir()
	a, b := startApp(t, dirA, good, nil), startApp(t, dirB, good, nil)
	eventually(t, "the canary's hosts are known to both", func() bool {
		return standing(t, a, "good").Problem == "" && standing(t, b, "good").Problem == ""
	})
	c := &crowd{t: t, users: 1500, arm: map[string]string{}, n: map[string]int{}}
	c.ask(a.base, b.base)
	stop := make(chan struct{})
	load := c.run(12, stop)
	defer func() { load.Wait() }()
	halt := sync.OnceFunc(func() { close(stop) })
	defer halt()

	eventually(t, "the second step", func() bool { return standing(t, a, "good").Step == 2 })
	c.ask(a.base)
	if err := b.stop(); err != nil { // it lets its requests end
		t.Fatal(err)
	}
	b = startApp(t, dirB, good, nil)
	if v := standing(t, b, "good"); v.Step < 2 || v.State != experiment.Running && v.State != experiment.Promoted || v.Verdict == nil || v.Verdict.Seq == 0 {
		t.Errorf("after its restart a gateway has it %s at step %d: %+v", v.State, v.Step, v.Verdict)
	}
	c.stay(b)
	c.ask(a.base, b.base)
	eventually(t, "the canary has everything at both", func() bool {
		return standing(t, a, "good").State == experiment.Promoted && standing(t, b, "good").State == experiment.Promoted
	})
	c.mu.Lock()
	if len(c.moved) > 0 || len(c.failed) > 0 {
		t.Errorf("%d users left the canary (%v), %d requests failed (%v)", len(c.moved), c.moved[:min(len(c.moved), 5)], len(c.failed), c.failed[:min(len(c.failed), 5)])
	}
	t.Logf("good: requests by arm %v", c.n)
	c.arm, c.n = map[string]string{}, map[string]int{}
	c.mu.Unlock()
	admin := a.app.admin.Addr().String()
	out, err := runs(t, "experiment", "show", "good", "--admin", admin)
	if err != nil || !strings.Contains(out, "promoted (canary) by steps") || !strings.Contains(out, "models.m.serves name what its hosts serve (m-awq)") {
		t.Errorf("experiment show: %v\n%s", err, out)
	}
	t.Log("\n" + out)
	page := filepath.Join(t.TempDir(), "good.html")
	if out, err = runs(t, "experiment", "report", "good", "--admin", admin, "--html", page); err != nil {
		t.Errorf("experiment report --html: %v\n%s", err, out)
	}
	if html, err := os.ReadFile(page); err != nil || !bytes.Contains(html, []byte("<svg")) || !bytes.Contains(html, []byte("static:awq")) {
		t.Errorf("the page has %d bytes and no picture, or no host: %v", len(html), err)
	}

	// The next one fails with two of ten requests, which the gateway answers by other hosts. With more of them it mostly is in the breaker's hands.
	if err := awq.SetFaults(fakecloud.Fault{Kind: fakecloud.Error500, P: 0.2}); err != nil {
		t.Fatal(err)
	}
	bad := head + fmt.Sprintf(strings.Replace(eightLines, "error_rate: +5%%", "error_rate: +0%%", 1), "bad")
	a.write(t, bad)
	b.write(t, bad)
	eventually(t, "the canary is tried", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.n["bad/canary"] > 0
	})
	began := time.Now()
	eventually(t, "one has ended it", func() bool {
		return standing(t, a, "bad").State == experiment.RolledBack || standing(t, b, "bad").State == experiment.RolledBack
	})
	eventually(t, "both have", func() bool {
		return standing(t, a, "bad").State == experiment.RolledBack && standing(t, b, "bad").State == experiment.RolledBack
	})
	c.mu.Lock()
	t.Logf("bad: ended after %s, requests by arm %v", time.Since(began).Round(time.Millisecond), c.n)
	c.mu.Unlock()
	halt()
	load.Wait()
	c.mu.Lock()
	before := c.n["bad/canary"]
	c.mu.Unlock()
	for i := range 100 {
		c.request(fmt.Sprint("user-", i), uint64(i)) //nolint:gosec // small
	}
	if c.n["bad/canary"] != before {
		t.Errorf("%d requests went to the canary after it was ended", c.n["bad/canary"]-before)
	}
	if len(c.failed) > 0 {
		t.Errorf("%d requests failed: %v", len(c.failed), c.failed[:min(len(c.failed), 5)])
	}
	v := standing(t, b, "bad")
	if last := v.Decisions[len(v.Decisions)-1]; last.By != "guardrail" || last.Metric != "error_rate" {
		t.Errorf("the last decision is %+v", last)
	}
	if out, err = runs(t, "experiment", "--admin", admin); err != nil || !strings.Contains(out, "rolled back") {
		t.Errorf("experiment: %v\n%s", err, out)
	}
	t.Log("\n" + out)
	withinASecond(t, "the other gateway has aborted it", func() bool {
		if out, err = runs(t, "experiment", "start", "bad", "--admin", admin); err != nil || !strings.Contains(out, "started by operator") {
			t.Fatalf("experiment start: %v\n%s", err, out)
		}
		eventually(t, "the other gateway knows that it was started", func() bool { return standing(t, b, "bad").State == experiment.Running })
		if _, err = runs(t, "experiment", "abort", "bad", "--admin", admin); err != nil {
			t.Fatalf("experiment abort: %v", err)
		}
		eventually(t, "the other gateway knows that it was aborted", func() bool { return standing(t, b, "bad").State == experiment.Aborted })
		return true
	})
	if _, err = runs(t, "experiment", "pause", "bad", "--admin", admin); err == nil || !strings.Contains(err.Error(), "only a running one can") {
		t.Errorf("pause of an aborted one: %v", err)
	}
}

// TestExperimentWithoutRedis keeps shares as they are while the Redis is gone, has a gateway end by itself what harms its own callers, and the
// other follow when the Redis is back, without what it knew. No caller gets an error.
func TestExperimentWithoutRedis(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a quarter of a minute")
	}
	t.Parallel()
	redis := redistest.Start(t)
	base := startHost(t, fakecloud.HostConfig{Name: "base", Models: []string{"m-base"}, TPS: 40, TTFT: 200 * time.Millisecond, TimeScale: 10, MaxNumSeqs: 256})
	awq := startHost(t, fakecloud.HostConfig{Name: "awq", Models: []string{"m-awq"}, TPS: 40, TTFT: 200 * time.Millisecond, TimeScale: 10, MaxNumSeqs: 256})
	yaml := fmt.Sprintf(experimentYAML, redis.URL(), base.URL(), awq.URL()) + fmt.Sprintf(strings.NewReplacer("[10%%, 50%%, 100%%]", "[30%%, 50%%, 100%%]", "error_rate: +5%%", "error_rate: +0%%").Replace(eightLines), "e")
	a, b := startApp(t, t.TempDir(), yaml, nil), startApp(t, t.TempDir(), yaml, nil)
	c := &crowd{t: t, users: 1500, arm: map[string]string{}, n: map[string]int{}}
	c.ask(a.base, b.base)
	stop := make(chan struct{})
	load := c.run(8, stop)
	halt := sync.OnceFunc(func() { close(stop); load.Wait() })
	defer halt()
	seen := func(arm string) int {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.n[arm]
	}
	eventually(t, "the canary is tried", func() bool { return seen("e/canary") > 20 })
	redis.Stop()
	shares := map[*running]float64{a: standing(t, a, "e").Arms[1].Share, b: standing(t, b, "e").Arms[1].Share} // one may not have heard of the other's last step
	had := seen("e/control")
	eventually(t, "many more requests, which would do for a step", func() bool { return seen("e/control") > had+600 })
	for r, share := range shares {
		if v := standing(t, r, "e"); v.State != experiment.Running || v.Arms[1].Share != share {
			t.Errorf("without the Redis it is %s with a share of %v, before it was %v", v.State, v.Arms[1].Share, share)
		}
	}
	c.ask(a.base) // the other sees no harm
	if err := awq.SetFaults(fakecloud.Fault{Kind: fakecloud.Error500, P: 0.2}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "harm ends it where it is found", func() bool { return standing(t, a, "e").State == experiment.RolledBack })
	if v := standing(t, b, "e"); v.State != experiment.Running {
		t.Errorf("the other gateway, which cannot know, has it %s", v.State)
	}
	redis.Start()
	eventually(t, "the other follows", func() bool { return standing(t, b, "e").State == experiment.RolledBack })
	halt()
	if len(c.failed) > 0 {
		t.Errorf("%d requests failed: %v", len(c.failed), c.failed[:min(len(c.failed), 5)])
	}
}

// TestExperimentCommandLine says how a command is written that makes no sense, by exit code 2.
func TestExperimentCommandLine(t *testing.T) {
	for _, tc := range []struct{ line, holds string }{
		{"experiment show", "write headrace experiment show NAME"},
		{"experiment abort a b", "write headrace experiment abort NAME"},
		{"experiment list a", "write headrace experiment list"},
		{"experiment feedback", `unknown command "feedback"`},
		{"experiment power 5%", "write headrace experiment power"},
		{"experiment list -o xml", "want table or json"},
	} {
		_, err := runs(t, strings.Fields(tc.line)...)
		var ee *exitError
		if !errors.As(err, &ee) || ee.code != 2 || !strings.Contains(err.Error(), tc.holds) {
			t.Errorf("%s: %v, want exit code 2 and %q", tc.line, err, tc.holds)
		}
	}
}

// TestDifferenceText tells ratios in percent and differences of shares in points, as the report does.
func TestDifferenceText(t *testing.T) {
	for want, e := range map[string]stats.Estimate{
		"+0.2 points (-1 points to +1.4 points)": {Metric: stats.Failed, Diff: 0.002, Low: -0.01, High: 0.014},
		"+20 % (+1 % to +40 %)":                  {Metric: stats.TTFT, Diff: 0.2, Low: 0.01, High: 0.4},
		"-0.05":                                  {Metric: stats.Score, Diff: -0.05, Low: stats.Figure(math.NaN()), High: stats.Figure(math.NaN())},
		unknownText:                              {Metric: stats.TPS, Diff: stats.Figure(math.NaN())},
	} {
		if got := differenceText(&e); got != want {
			t.Errorf("%s: %q, want %q", e.Metric, got, want)
		}
	}
}

// TestUnpricedGuardrail warns of dollars that are to be held down and that nobody can know, and of nothing else.
func TestUnpricedGuardrail(t *testing.T) {
	const yaml = `
providers:
  static:
    - {name: base, base_url: "http://127.0.0.1:1/v1", models: [m-base], price: {usd_per_hour: 2}}
    - {name: awq, base_url: "http://127.0.0.1:2/v1", models: [m-awq]%s}
    - {name: elsewhere, base_url: "http://127.0.0.1:3/v1", models: [other]}
models: {m: {serves: [m-base, m-awq]}, other: {serves: [other]}}
experiments:
  - name: e
    model: m
    arms: {control: {hosts: {served: m-base}}, canary: {hosts: {served: m-awq}}}
    steps: [10%%, 100%%]
    %s
`
	for name, tc := range map[string]struct{ price, asks, want string }{
		"a guardrail":        {"", "guardrails: {error_rate: +1%, usd_per_mtok: +0%}", "experiments[0].guardrails.usd_per_mtok: no host of canary that the config names has a price (static:awq)"},
		"the goal":           {"", "goal: usd_per_mtok", "experiments[0].goal: no host of canary that the config names has a price (static:awq)"},
		"the usual ones":     {"", "min_units: 50", ""},
		"other guardrails":   {"", "guardrails: {error_rate: +1%}", ""},
		"with a price":       {", price: {usd_per_hour: 1}", "guardrails: {usd_per_mtok: +0%}", ""},
		"which costs nobody": {", price: {usd_per_hour: 0}", "guardrails: {usd_per_mtok: +0%}", "experiments[0].guardrails.usd_per_mtok: "},
	} {
		file := filepath.Join(t.TempDir(), "headrace.yaml")
		if err := os.WriteFile(file, fmt.Appendf(nil, yaml, tc.price, tc.asks), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := runs(t, "check", "-c", file)
		if err != nil || strings.Contains(out, "Warning") != (tc.want != "") || !strings.Contains(out, tc.want) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

// TestGuardrailShares: failures get as much of alpha where guardrails are written down as where they are the usual ones.
func TestGuardrailShares(t *testing.T) {
	one, fifth := 0.01, 0.2
	usual := guardrails(&config.Experiment{})
	written := guardrails(&config.Experiment{Guardrails: &config.Guardrails{ErrorRate: &one, SLOMissed: &one, TTFT: &fifth, TPS: &fifth, USDPerMTok: &one}})
	if len(written) != len(usual) {
		t.Fatalf("%d and %d guardrails", len(written), len(usual))
	}
	for i, g := range written {
		if w := usual[i]; g.Metric != w.Metric || g.Share != max(w.Share, 1) {
			t.Errorf("%s has %v parts, of the usual ones %s has %v", g.Metric, g.Share, w.Metric, w.Share)
		}
	}
}
