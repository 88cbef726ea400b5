package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"headrace/gateway/ledger"
	"headrace/providers/fakecloud/script"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// output takes what the demo prints and tells of each write.
type output struct {
	mu    sync.Mutex // guards buf
	buf   bytes.Buffer
	wrote chan struct{}
}

func newOutput() *output { return &output{wrote: make(chan struct{}, 1)} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	select {
	case o.wrote <- struct{}{}:
	default:
	}
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// await waits until the output matches all patterns.
func (o *output) await(t *testing.T, ended <-chan error, patterns ...string) {
	t.Helper()
	deadline := time.After(patience)
	for _, p := range patterns {
		re := regexp.MustCompile(p)
		for !re.MatchString(o.String()) {
			select {
			case <-o.wrote:
			case err := <-ended:
				t.Fatalf("it ended with %v before it printed %q:\n%s", err, p, o)
			case <-deadline:
				t.Fatalf("no %q in\n%s", p, o)
			}
		}
	}
}

func quickDemo() *demoOptions {
	return &demoOptions{listen: "127.0.0.1:0", admin: "127.0.0.1:0", seed: 7, rate: 6, hour: time.Second}
}

// TestDemo runs the demo in faster motion until each thing it is to show was shown, and stops it.
func TestDemo(t *testing.T) {
	before := ours()
	out := newOutput()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- demo(ctx, quickDemo(), out) }()
	out.await(t, ended,
		`1 h of market = 1 s`, `Seed 7`, `built-in tables`,
		`found all of them`, `vast:\d+ answered: first token after \d+ ms`,
		`curl -N http://127\.0\.0\.1:\d+/v1/chat/completions`, `curl http://127\.0\.0\.1:\d+/admin/v1/requests`,
		`runpod:coder +runpod +.*serverless +coder-32b +cold`, `runpod:pod-mixtral +runpod .*ready`, `vast:20000001 +vast +2x RTX 4090 +interruptible +llama-70b +ready`,
		`vast:\d+ is outbid: somebody pays \$[\d.]+/h for its GPU, we \$[\d.]+; left rotation after \d+ ms \(`,
		`vast:\d+ is back at another port after [\d.]+ m?s, with its history`,
		`an answer moved from vast:\d+ to (vast|runpod):\S+ in mid-sentence, after \d+ tokens? and with a pause of [\d.]+ m?s; its caller saw one stream`,
		`a request waited [\d.]+ m?s for a worker of runpod:coder`,
	)
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("it ended with %v", err)
	}
	s := out.String()
	tail := s[strings.LastIndex(s, "Stopped after"):]
	tail = strings.ReplaceAll(tail, "\n", " ")
	for _, want := range []string{"Instances were outbid", "out of rotation after", "moved to another host in mid-sentence, with a pause of", "each token came once"} {
		if !strings.Contains(tail, want) {
			t.Errorf("the summary lacks %q:\n%s", want, tail)
		}
	}
	n := regexp.MustCompile(`(\d+) requests: (\d+) answered, \d+ of them .*?, (\d+) cut`).FindStringSubmatch(tail)
	if n == nil {
		t.Fatalf("no totals in\n%s", tail)
	}
	all, _ := strconv.Atoi(n[1])
	answered, _ := strconv.Atoi(n[2])
	cut, _ := strconv.Atoi(n[3])
	if answered == 0 || answered+cut > all {
		t.Errorf("%d requests, %d answered, %d cut", all, answered, cut)
	}
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for len(ours()) > len(before) {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("goroutines are left:\n%s", strings.Join(ours(), "\n\n"))
		}
	}
}

// ours returns the stacks of other goroutines that run code of this module, this test's own aside.
func ours() (stacks []string) {
	buf := make([]byte, 4<<20)
	buf = buf[:runtime.Stack(buf, true)]
	for s := range strings.SplitSeq(string(buf), "\n\n") {
		if strings.Contains(s, "headrace/") && !strings.Contains(s, "testing.tRunner") {
			stacks = append(stacks, s)
		}
	}
	return stacks
}

func TestDemoCalm(t *testing.T) {
	o := quickDemo()
	o.calm, o.admin, o.rate = true, "off", 0
	out := newOutput()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- demo(ctx, o, out) }()
	out.await(t, ended, "nobody bids against you", "market time")
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("it ended with %v", err)
	}
	if s := out.String(); strings.Contains(s, "outbid") || strings.Contains(s, "/admin/v1") {
		t.Errorf("there was a bid war, or an admin API:\n%s", s)
	}
}

func TestDemoStopsAtOnce(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	out := newOutput()
	if err := demo(ctx, quickDemo(), out); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
}

// TestDemoOpen: other addresses than loopback, where they are meant.
func TestDemoOpen(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	o := quickDemo()
	o.listen, o.admin, o.open = "0.0.0.0:0", "0.0.0.0:0", true
	if err := demo(ctx, o, newOutput()); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
}

func TestDemoWrongFlags(t *testing.T) {
	for _, args := range [][]string{
		{"--hour", "0"}, {"--hour", "2h"}, {"--rate", "-1"}, {"--rate", "NaN"}, {"--for", "-1s"}, {"--listen", "0.0.0.0:0"}, {"--listen", "nowhere"}, {"extra"},
	} {
		c := demoCommand()
		c.SetArgs(args)
		c.SetOut(io.Discard)
		c.SetErr(io.Discard)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if err := c.ExecuteContext(ctx); err == nil {
			t.Errorf("%q is taken", args)
		}
		cancel()
	}
}

// TestDemoFleetFollowsSeed: the same seed rents the same fleet, another one another.
func TestDemoFleetFollowsSeed(t *testing.T) {
	bids := func(seed uint64) (b []float64) {
		o := quickDemo()
		o.seed = seed
		for _, i := range demoScript(o).Vast.Instances {
			b = append(b, i.Bid)
		}
		return b
	}
	a, again, other := bids(3), bids(3), bids(4)
	same := true
	for i := range a {
		if a[i] != again[i] {
			t.Errorf("bid %d of seed 3 is %v, then %v", i, a[i], again[i])
		}
		same = same && a[i] == other[i]
	}
	if same {
		t.Error("another seed rents at the same prices")
	}
}

func testView() (*view, *output) {
	out := newOutput()
	v := newView(&app{router: router.New(router.Options{Now: time.Now})}, &market{scale: 720}, out)
	return v, out
}

// TestDemoCountsRequests: each request counts once, by how it ended.
func TestDemoCountsRequests(t *testing.T) {
	v, out := testView()
	var resumes int
	rec := func(c outcome.Class, ep endpoint.ID, tries ...endpoint.ID) {
		r := &ledger.Record{Class: c, Endpoint: ep, Tries: len(tries), Output: 10, USD: 0.5, Code: "some_code", TTFT: 3 * time.Second, Resumes: resumes, SeamGap: 40 * time.Millisecond}
		for i, id := range tries {
			r.Attempts = append(r.Attempts, ledger.Attempt{Endpoint: id, Class: outcome.DialFailed})
			if resumes > 0 {
				r.Attempts[i].Output = []int64{83, 0, 20}[i]
			}
		}
		if n := len(tries); n > 0 {
			r.Attempts[n-1].Class = c
		}
		v.settled(r)
	}
	rec(outcome.Success, "vast:1", "vast:1")
	rec(outcome.Success, "vast:2", "vast:1", "vast:2")
	rec(outcome.Success, "vast:1", "vast:1", "vast:1") // tried again, not moved
	rec(outcome.Truncated, "vast:1", "vast:1")
	rec(outcome.Truncated, "vast:1", "vast:1")
	rec(outcome.UpstreamFault, "vast:1", "vast:1")
	rec(outcome.Unserved, "")
	rec(outcome.CallerFault, "vast:1", "vast:1")
	rec(outcome.ClientGone, "vast:1", "vast:1")
	resumes = 1
	rec(outcome.Success, "vast:2", "vast:1", "vast:3", "vast:2")
	v.mu.Lock()
	totals := v.totals()
	if v.spent["vast:1"] != 3.5 || v.spent["vast:2"] != 1 {
		t.Errorf("spent %v", v.spent)
	}
	v.mu.Unlock()
	want := "10 requests: 4 answered, 1 of them after a move before the first token, 1 after one in mid-sentence, 2 cut in mid-sentence, 2 failed, 1 refused, 1 left by their callers\n100 tokens for $5.00000"
	if !strings.HasPrefix(totals, want) {
		t.Errorf("got  %s\nwant %s", totals, want)
	}
	s := out.String()
	for _, want := range []string{
		"an answer moved from vast:1 to vast:2 in mid-sentence, after 83 tokens and with a pause of 40 ms; its caller saw one stream",
		"moved from vast:1 to vast:2 before its first token (nobody listened there)", "a request failed on vast:1", "a request found no host: some_code", "a request was refused: some_code",
	} {
		if strings.Count(s, want) != 1 {
			t.Errorf("%q is not there once:\n%s", want, s)
		}
	}
	if got := v.noticed(time.Now().Add(cutsWithin), nil); len(got) != 1 || !strings.HasPrefix(got[0], "2 answers were cut in mid-sentence on vast:1") {
		t.Errorf("of the cut ones it tells %q", got)
	}
	if got := v.noticed(time.Now().Add(cutsWithin), nil); len(got) != 0 {
		t.Errorf("it tells again %q", got)
	}
}

// TestDemoTellsOfStrikes follows one instance out of rotation and back.
func TestDemoTellsOfStrikes(t *testing.T) {
	v, out := testView()
	host := func(state, breaker, url string) []router.HostView {
		return []router.HostView{{ID: "vast:1", State: state, Breaker: breaker, URL: url, Requests: 17}}
	}
	v.heard(script.News{ID: "vast:1", What: "outbid", Text: "is outbid: somebody pays $2; its connections are reset"})
	v.struck["vast:1"].url = "http://h:1"
	t0 := v.struck["vast:1"].at
	step := func(after time.Duration, hosts []router.HostView, want string) {
		t.Helper()
		got := strings.Join(v.noticed(t0.Add(after), hosts), "\n")
		if got != want {
			t.Errorf("after %v: got  %q\nwant %q", after, got, want)
		}
	}
	step(time.Millisecond, host("ready", "closed", "http://h:1"), "")
	if s := v.state(&host("ready", "closed", "http://h:1")[0]); s != "outbid" {
		t.Errorf("before it is noticed its state is %q", s)
	}
	step(12*time.Millisecond, host("ready", "open", "http://h:1"), "vast:1 is outbid: somebody pays $2; left rotation after 12 ms (its answers failed)")
	step(20*time.Millisecond, host("preempted", "open", "http://h:1"), "")
	step(30*time.Millisecond, host("ready", "closed", "http://h:1"), "") // nobody has given it its GPU back
	v.heard(script.News{ID: "vast:1", What: "outbid", Undo: true, Text: "gets its GPU again"})
	step(900*time.Millisecond, host("starting", "open", "http://h:2"), "")
	step(1100*time.Millisecond, host("ready", "open", "http://h:2"), "")
	step(1200*time.Millisecond, host("ready", "probing", "http://h:2"), "")
	step(1300*time.Millisecond, host("ready", "closed", "http://h:2"), "vast:1 is back at another port after 1.3 s, with its history (17 requests)")
	v.heard(script.News{ID: "vast:1", What: "price", Text: "costs less"})
	v.heard(script.News{ID: "vast:1", What: "outbid", Text: "is outbid: a"})
	v.heard(script.News{ID: "vast:1", What: "outbid", Text: "is outbid: b"})
	if s := out.String(); !strings.Contains(s, "vast:1 is outbid: b, before it served again") || strings.Contains(s, "costs less") {
		t.Errorf("told:\n%s", s)
	}
	if v.strikes != 3 || len(v.leaving) != 1 || v.leaving[0] != 12*time.Millisecond || len(v.returning) != 1 {
		t.Errorf("strikes %d, leaving %v, returning %v", v.strikes, v.leaving, v.returning)
	}
}

// TestDemoTableFits: columns go where the screen is narrow, never those that the demo is about.
func TestDemoTableFits(t *testing.T) {
	v, _ := testView()
	price := 0.43
	hosts := []router.HostView{{
		ID: "runpod:pod-mixtral", Provider: "runpod", Models: []string{"mixtral-8x7b"}, State: "preempted", Breaker: "closed",
		GPU: "A100 80GB PCIe", GPUCount: 2, Tenure: "interruptible", USDPerHour: &price,
	}}
	for width, want := range map[int][]string{
		0:   {"provider", "GPU", "tenure", "model", "$/Mtok"},
		200: {"provider", "GPU", "tenure", "model", "$/Mtok"},
		110: {"GPU", "model"},
		95:  {"model"},
		80:  {},
		20:  {},
	} {
		s := v.table(hosts, width)
		head, _, _ := strings.Cut(s, "\n")
		for _, c := range append(want, "endpoint", "state", "$/h", "TTFT ms", "TPS", "in flight", "requests", "cost") {
			if !strings.Contains(head, c) {
				t.Errorf("width %d: no column %s in %s", width, c, head)
			}
		}
		if n := len([]rune(head)); width >= 80 && n > width {
			t.Errorf("width %d: the table takes %d", width, n)
		}
	}
	for _, l := range folded("  12.3s  "+strings.Repeat("word ", 40), 60) {
		if len(l) > 60 {
			t.Errorf("news of %d characters on a screen of 60: %s", len(l), l)
		}
	}
}

// waitReady waits until every host has told what it serves.
func (a *app) waitReady(ctx context.Context) error {
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for {
		hosts := a.router.Hosts()
		ready := len(hosts) > 0
		for _, h := range hosts {
			ready = ready && len(h.Models) > 0
		}
		if ready {
			return nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// TestPlainly has the demo say of each failed attempt what its class says, and no more.
func TestPlainly(t *testing.T) {
	said := map[string]outcome.Class{}
	for _, c := range []outcome.Class{
		outcome.DialFailed, outcome.Throttled, outcome.UpstreamFault, outcome.FirstByteTimeout, outcome.UpstreamDenied, outcome.NotReady, outcome.Opaque,
	} {
		text := plainly(c)
		if other, ok := said[text]; ok || text == c.String() {
			t.Errorf("%s: %q, as of %s", c, text, other)
		}
		if strings.Contains(text, "reset") {
			t.Errorf("%s: %q, which no class tells", c, text)
		}
		said[text] = c
	}
}
