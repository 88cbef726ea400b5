package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"headrace/gateway/forward"
	"headrace/gateway/state"
	"headrace/gateway/state/redistest"
	"headrace/providers/fakecloud"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// patience bounds every wait for an event; a test that needs it has failed.
const patience = time.Minute

// desk hands out what it was told to, once, and keeps what it is told.
type desk struct {
	mu       sync.Mutex // guards all below
	due      []router.Probe
	prefills map[string]router.Prefill

	sated  atomic.Bool // it wants no self-test that it has handed out
	found  chan outcome.Class
	handed chan struct{}
}

func newDesk() *desk {
	return &desk{prefills: map[string]router.Prefill{}, found: make(chan outcome.Class, 100), handed: make(chan struct{}, 100)}
}

func (d *desk) hand(p ...router.Probe) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.due = append(d.due, p...)
}

func (d *desk) Probes(_ time.Time, dst []router.Probe) []router.Probe {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.due) > 0 {
		d.handed <- struct{}{}
	}
	dst = append(dst, d.due...)
	d.due = nil
	return dst
}

func (d *desk) Probed(_ endpoint.ID, c outcome.Class) { d.found <- c }

func (d *desk) SetPrefill(id endpoint.ID, served string, p router.Prefill) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.prefills[string(id)+" "+served] = p
}

func (d *desk) Tested(p *router.Probe, found router.Prefill) bool {
	d.SetPrefill(p.Endpoint.ID, p.Served, found)
	return true
}

func (d *desk) Wants(*router.Probe) bool { return !d.sated.Load() }

func (d *desk) prefill(id endpoint.ID, served string) router.Prefill {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.prefills[string(id)+" "+served]
}

func (d *desk) await(t *testing.T) outcome.Class {
	t.Helper()
	select {
	case c := <-d.found:
		return c
	case <-time.After(patience):
		t.Fatal("nothing was found")
		return 0
	}
}

// logBuffer is a log that goroutines write to.
type logBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// rig is a Prober that runs, in front of fake hosts.
type rig struct {
	*Prober
	desk *desk
	fwd  *forward.Client
	log  *logBuffer
	eps  []endpoint.Endpoint
	stop func()
}

func start(t *testing.T, cfg fakecloud.HostConfig) *fakecloud.Host {
	t.Helper()
	h, err := fakecloud.StartHost(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Stop)
	return h
}

func newRig(t *testing.T, eps []endpoint.Endpoint, change ...func(*Options)) *rig {
	t.Helper()
	r := &rig{desk: newDesk(), log: &logBuffer{}, eps: eps}
	r.fwd = forward.New(forward.Options{Connect: 2 * time.Second})
	if err := r.fwd.Update(eps); err != nil {
		t.Fatal(err)
	}
	o := Options{
		Router: r.desk, Forward: r.fwd, Every: time.Hour, Spread: -1, Within: 5 * time.Second,
		Log: slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&o)
	}
	r.Prober = New(o, Settings{SelfTest: true})
	r.Update(eps)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
		r.fwd.Close()
	})
	t.Cleanup(r.stop)
	return r
}

// test has a host tested, and returns what was found.
func (r *rig) test(t *testing.T, i int, selfTest bool) outcome.Class {
	t.Helper()
	ep := &r.eps[i]
	served := ""
	if len(ep.Served) > 0 {
		served = ep.Served[0].Name
	}
	r.desk.hand(router.Probe{Endpoint: ep, Served: served, SelfTest: selfTest})
	r.Wake()
	return r.desk.await(t)
}

// TestSelfTest finds out about each kind of host.
func TestSelfTest(t *testing.T) {
	const model = "m1"
	for name, tc := range map[string]struct {
		cfg  fakecloud.HostConfig
		want router.Prefill
		why  string
	}{
		"goes on":      {fakecloud.HostConfig{}, router.Prefill{Known: true, OK: true}, whyTested},
		"trims":        {fakecloud.HostConfig{Prefill: fakecloud.PrefillTrims}, router.Prefill{Known: true, OK: true, Trims: true}, whyTested},
		"begins anew":  {fakecloud.HostConfig{Prefill: fakecloud.PrefillIgnored}, router.Prefill{Known: true}, whyOther},
		"refuses":      {fakecloud.HostConfig{Prefill: fakecloud.PrefillRefused}, router.Prefill{Known: true}, whyRefuses},
		"thinks":       {fakecloud.HostConfig{Models: []string{"reasoner"}}, router.Prefill{Known: true}, whyThinks},
		"no such name": {fakecloud.HostConfig{Models: []string{"another"}}, router.Prefill{Known: true}, whyNoChat},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := tc.cfg
			if cfg.Name = "h"; cfg.Models == nil {
				cfg.Models = []string{model}
			}
			h := start(t, cfg)
			ep := h.Endpoint()
			if tc.why == whyNoChat {
				ep.Served[0].Name = model
			}
			r := newRig(t, []endpoint.Endpoint{ep})
			if c := r.test(t, 0, true); c != outcome.Success {
				t.Errorf("class %s\n%s", c, r.log)
			}
			if got := r.desk.prefill(ep.ID, ep.Served[0].Name); got != tc.want {
				t.Errorf("found %+v, want %+v\n%s", got, tc.want, r.log)
			}
			s := r.Status(ep.ID)
			if len(s.Prefills) != 1 || s.Prefills[0].Why != tc.why || s.Prefills[0].TestedAt == nil {
				t.Errorf("status %+v, want the reason %q", s, tc.why)
			}
			if b := h.Stats(); b.BadSeams != 0 || b.OutputTokens > 63 {
				t.Errorf("the host made %d tokens and met %d seams that nobody's answer has", b.OutputTokens, b.BadSeams)
			}
			if !strings.Contains(r.log.String(), "unfinished answers") {
				t.Errorf("the log does not tell:\n%s", r.log)
			}
		})
	}
}

// TestSelfTestOfManyModels tells kinds of hosts apart whatever their answers are like.
func TestSelfTestOfManyModels(t *testing.T) {
	const n = 40
	for _, prefill := range []fakecloud.Prefill{fakecloud.PrefillContinues, fakecloud.PrefillTrims, fakecloud.PrefillIgnored} {
		cfg := fakecloud.HostConfig{Name: "h", Prefill: prefill}
		for i := range n {
			cfg.Models = append(cfg.Models, fmt.Sprintf("model-%d", i))
		}
		h := start(t, cfg)
		ep := h.Endpoint()
		r := newRig(t, []endpoint.Endpoint{ep})
		known := 0
		for _, sv := range ep.Served {
			r.desk.hand(router.Probe{Endpoint: &ep, Served: sv.Name, SelfTest: true})
			r.Wake()
			r.desk.await(t)
			got := r.desk.prefill(ep.ID, sv.Name)
			if !got.Known {
				continue
			}
			known++
			if ok := prefill != fakecloud.PrefillIgnored; got.OK != ok {
				t.Errorf("kind %d, %s: %+v", prefill, sv.Name, got)
			}
			if trims := prefill == fakecloud.PrefillTrims; got.OK && got.Trims != trims {
				t.Errorf("kind %d, %s: %+v", prefill, sv.Name, got)
			}
		}
		if known < n*3/4 {
			t.Errorf("kind %d: a result for %d of %d models", prefill, known, n)
		}
		if b := h.Stats(); b.BadSeams != 0 {
			t.Errorf("kind %d: %d bad seams", prefill, b.BadSeams)
		}
	}
}

// TestProbe tells from one token how a host is.
func TestProbe(t *testing.T) {
	const key = "sk-upstream-secret"
	for name, tc := range map[string]struct {
		fault *fakecloud.Fault
		edit  func(h *fakecloud.Host, ep *endpoint.Endpoint)
		want  outcome.Class
		paths string // asked, one after another
	}{
		"well":            {nil, nil, outcome.Success, chatPath},
		"dead":            {nil, func(h *fakecloud.Host, _ *endpoint.Endpoint) { h.Kill() }, outcome.DialFailed, ""},
		"error 500":       {&fakecloud.Fault{Kind: fakecloud.Error500}, nil, outcome.UpstreamFault, chatPath},
		"unavailable":     {&fakecloud.Fault{Kind: fakecloud.Unavailable}, nil, outcome.UpstreamFault, chatPath},
		"throttled":       {&fakecloud.Fault{Kind: fakecloud.Throttle}, nil, outcome.Throttled, chatPath},
		"a page":          {&fakecloud.Fault{Kind: fakecloud.HTML200}, nil, outcome.UpstreamFault, chatPath},
		"an error in 200": {&fakecloud.Fault{Kind: fakecloud.FlatError}, nil, outcome.UpstreamFault, chatPath},
		"cut off":         {&fakecloud.Fault{Kind: fakecloud.LongLength}, nil, outcome.Truncated, chatPath},
		"silent":          {&fakecloud.Fault{Kind: fakecloud.Hang}, nil, outcome.FirstByteTimeout, chatPath},
		"another's key":   {nil, func(_ *fakecloud.Host, ep *endpoint.Endpoint) { ep.APIKey = key + "-old" }, outcome.UpstreamDenied, chatPath},
		"another machine at its address": {
			nil, func(_ *fakecloud.Host, ep *endpoint.Endpoint) { ep.Served[0].Name = "not-there" }, outcome.UpstreamFault, chatPath + " " + modelsPath,
		},
		"a model whose id nobody knows": {nil, func(_ *fakecloud.Host, ep *endpoint.Endpoint) { ep.Served[0].Name, ep.Served[0].Unnamed = "e1", true }, outcome.Success, chatPath},
		"completions only":              {nil, func(_ *fakecloud.Host, ep *endpoint.Endpoint) { ep.Routes = []string{completionsPath} }, outcome.Success, completionsPath},
		"embeddings only":               {nil, func(_ *fakecloud.Host, ep *endpoint.Endpoint) { ep.Routes = []string{embeddingsPath} }, outcome.Success, embeddingsPath},
		"neither":                       {nil, func(_ *fakecloud.Host, ep *endpoint.Endpoint) { ep.Routes = []string{"/rerank"} }, outcome.Success, modelsPath},
	} {
		t.Run(name, func(t *testing.T) {
			h := start(t, fakecloud.HostConfig{Name: "h", Models: []string{"m1"}, APIKey: key})
			if tc.fault != nil {
				if err := h.SetFaults(*tc.fault); err != nil {
					t.Fatal(err)
				}
			}
			ep := h.Endpoint()
			if tc.edit != nil {
				tc.edit(h, &ep)
			}
			r := newRig(t, []endpoint.Endpoint{ep}, func(o *Options) { o.Within = 300 * time.Millisecond })
			if tc.want == outcome.Success {
				r.opt.Within = patience // a machine under load is not silent
			}
			if c := r.test(t, 0, false); c != tc.want {
				t.Errorf("class %s, want %s\n%s", c, tc.want, r.log)
			}
			var paths []string
			for _, q := range h.Requests() {
				paths = append(paths, strings.TrimPrefix(q.Path, "/v1"))
				if q.Header.Get("X-Headrace-Probe") != "1" || !strings.HasPrefix(q.Header.Get("X-Request-Id"), "req_probe_") {
					t.Errorf("header %v", q.Header)
				}
			}
			if got := strings.Join(paths, " "); got != tc.paths {
				t.Errorf("asked %q, want %q", got, tc.paths)
			}
			s := r.Status(ep.ID)
			if failed := tc.want != outcome.Success; s.Sent != 1 || s.Failed == 1 != failed || s.Last == nil || *s.Last != tc.want || s.LastAt == nil {
				t.Errorf("status %+v", s)
			}
			if b := h.Stats(); b.OutputTokens > 1 {
				t.Errorf("it made %d tokens", b.OutputTokens)
			}
			r.stop()
			if all := r.log.String(); strings.Contains(all, "secret") || !strings.Contains(all, "class="+tc.want.String()) && tc.paths != chatPath+" "+modelsPath {
				t.Errorf("log:\n%s", all)
			}
		})
	}
}

// TestStrangers tells a host that refuses what it is asked from a server that has got its address.
func TestStrangers(t *testing.T) {
	const (
		refusal = `{"error":{"message":"max_tokens is not known here","type":"invalid_request_error"}}`
		list    = `{"object":"list","data":[{"id":"m1"}]}`
	)
	type said struct {
		status int
		body   string
	}
	rerank := []string{"/rerank"}
	for name, tc := range map[string]struct {
		routes []string
		says   map[string]said // by path; 404 to all else
		want   outcome.Class
	}{
		"404 to everything":                 {nil, nil, outcome.UpstreamFault},
		"405 to everything":                 {nil, map[string]said{chatPath: {405, refusal}, modelsPath: {405, refusal}}, outcome.UpstreamFault},
		"a login page":                      {nil, map[string]said{chatPath: {400, "<html>who are you?</html>"}}, outcome.UpstreamFault},
		"JSON of its own":                   {nil, map[string]said{chatPath: {400, `{"ok":false}`}}, outcome.UpstreamFault},
		"no chat, but the list":             {nil, map[string]said{modelsPath: {200, list}}, outcome.Success},
		"refuses, and lists it":             {nil, map[string]said{chatPath: {400, refusal}, modelsPath: {200, list}}, outcome.Success},
		"refuses, and has no list":          {nil, map[string]said{chatPath: {400, refusal}}, outcome.Success},
		"refuses, and lists another":        {nil, map[string]said{chatPath: {400, refusal}, modelsPath: {200, `{"data":[{"id":"m2"}]}`}}, outcome.UpstreamFault},
		"ranks, and lists it":               {rerank, map[string]said{modelsPath: {200, list}}, outcome.Success},
		"ranks, and has no list":            {rerank, map[string]said{"/rerank": {422, refusal}}, outcome.Success},
		"ranks no more, and has no list":    {rerank, nil, outcome.UpstreamFault},
		"fails to rank, and has no list":    {rerank, map[string]said{"/rerank": {500, refusal}}, outcome.UpstreamFault},
		"answers nothing that can be asked": {[]string{}, nil, outcome.UpstreamFault},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				a, ok := tc.says[strings.TrimPrefix(r.URL.Path, "/v1")]
				if !ok {
					http.NotFound(w, r)
					return
				}
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(a.status)
				_, _ = io.WriteString(w, a.body)
			}))
			t.Cleanup(srv.Close)
			ep := rentedAt(srv.URL)
			ep.Routes = tc.routes
			r := newRig(t, []endpoint.Endpoint{ep}, func(o *Options) { o.Within = patience })
			if c := r.test(t, 0, false); c != tc.want {
				t.Errorf("class %s, want %s\n%s", c, tc.want, r.log)
			}
		})
	}
}

// TestDeclines leaves alone whom a self-test would cost more than it is worth, and says so to the router.
func TestDeclines(t *testing.T) {
	for name, edit := range map[string]func(*endpoint.Endpoint, *Options, *Settings){
		"switched off":       func(_ *endpoint.Endpoint, _ *Options, s *Settings) { s.SelfTest = false },
		"busy":               func(_ *endpoint.Endpoint, o *Options, _ *Settings) { o.Busy = func(endpoint.ID) bool { return true } },
		"paid by the token":  func(ep *endpoint.Endpoint, _ *Options, _ *Settings) { ep.Price.Basis = endpoint.PerToken },
		"no worker is up":    func(ep *endpoint.Endpoint, _ *Options, _ *Settings) { ep.Tenure = endpoint.Serverless },
		"somebody else's":    func(ep *endpoint.Endpoint, _ *Options, _ *Settings) { ep.Tenure = endpoint.TenurePerToken },
		"gone in the middle": func(ep *endpoint.Endpoint, _ *Options, _ *Settings) { ep.ID = "static:other" },
	} {
		t.Run(name, func(t *testing.T) {
			h := start(t, fakecloud.HostConfig{Name: "h", Models: []string{"m1"}})
			ep, set, o := h.Endpoint(), Settings{SelfTest: true}, Options{}
			edit(&ep, &o, &set)
			r := newRig(t, []endpoint.Endpoint{h.Endpoint()}, func(all *Options) { all.Busy = o.Busy })
			r.Configure(set)
			r.eps[0] = ep
			if c := r.test(t, 0, true); c != outcome.Unserved {
				t.Errorf("class %s", c)
			}
			if n := h.Stats().Requests; n != 0 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// TestTold knows without a test what the operator says, and what needs none.
func TestTold(t *testing.T) {
	for name, tc := range map[string]struct {
		ep   endpoint.Endpoint
		want router.Prefill
	}{
		"always":           {endpoint.Endpoint{Continues: endpoint.ContinuesAlways}, router.Prefill{Known: true, OK: true, Trims: true, Told: true}},
		"never":            {endpoint.Endpoint{Continues: endpoint.ContinuesNever}, router.Prefill{Known: true, Told: true}},
		"completions only": {endpoint.Endpoint{Routes: []string{completionsPath}}, router.Prefill{Known: true, OK: true, Told: true}},
		"chat as well":     {endpoint.Endpoint{Routes: []string{chatPath, completionsPath}}, router.Prefill{}},
		"anything":         {endpoint.Endpoint{}, router.Prefill{}},
	} {
		ep := tc.ep
		ep.ID, ep.BaseURL, ep.Served = "static:h", "http://127.0.0.1:1/v1", []endpoint.Served{{Name: "m1"}}
		r := newRig(t, []endpoint.Endpoint{ep})
		if got := r.desk.prefill(ep.ID, "m1"); got != tc.want {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
		if s := r.Status(ep.ID); tc.want.Known && (len(s.Prefills) != 1 || s.Prefills[0].TestedAt != nil || s.Prefills[0].Why == "") {
			t.Errorf("%s: status %+v", name, s)
		}
		r.Update(nil)
		if s := r.Status(ep.ID); len(s.Prefills) != 0 {
			t.Errorf("%s: remembered: %+v", name, s)
		}
	}
}

// TestNoVerdict makes a self-test that came to nothing again later, and another model's meanwhile. A host that was started anew is
// tested at once.
func TestNoVerdict(t *testing.T) {
	h := start(t, fakecloud.HostConfig{Name: "h", Models: []string{"m1", "m2"}})
	var mu sync.Mutex
	clock := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	r := newRig(t, []endpoint.Endpoint{h.Endpoint()}, func(o *Options) {
		o.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return clock }
	})
	pass := func(d time.Duration) { mu.Lock(); defer mu.Unlock(); clock = clock.Add(d) }
	asked := func(what string, want outcome.Class, requests int) {
		t.Helper()
		before := h.Stats().Requests
		if c := r.test(t, 0, true); c != want {
			t.Errorf("%s: class %s, want %s", what, c, want)
		}
		if n := h.Stats().Requests - before; n != requests {
			t.Errorf("%s: %d requests, want %d", what, n, requests)
		}
	}
	faults := func(fs ...fakecloud.Fault) {
		t.Helper()
		if err := h.SetFaults(fs...); err != nil {
			t.Fatal(err)
		}
	}
	id := r.eps[0].ID
	faults(fakecloud.Fault{Kind: fakecloud.Throttle})
	asked("the first", outcome.Throttled, 1)
	asked("the other model", outcome.Throttled, 1)
	asked("too soon", outcome.Unserved, 0)
	if s := r.Status(id); len(s.Prefills) != 2 || s.Prefills[0].Continues != "unknown" || s.Prefills[0].Why != whyNoAnswer {
		t.Errorf("status %+v", s)
	}
	pass(retest)
	faults()
	asked("after a while", outcome.Success, 4)
	if p := r.desk.prefill(id, "m1"); !p.OK {
		t.Errorf("found %+v", p)
	}
	asked("the host was started anew", outcome.Success, 4) // else the router would not ask again
}

// TestOneAtATime sends a host no second test while one is under way, and ends it when the Prober stops.
func TestOneAtATime(t *testing.T) {
	h := start(t, fakecloud.HostConfig{Name: "h", Models: []string{"m1"}})
	if err := h.SetFaults(fakecloud.Fault{Kind: fakecloud.Hang}); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, []endpoint.Endpoint{h.Endpoint()}, func(o *Options) { o.Within, o.Every = time.Hour, time.Millisecond })
	due := router.Probe{Endpoint: &r.eps[0], Served: "m1"}
	r.desk.hand(due, due, due)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := h.Wait(ctx, func(s fakecloud.Stats) bool { return s.Requests == 1 }); err != nil {
		t.Fatal(err)
	}
	r.desk.hand(due)
	for range 2 { // the second time it was declined
		select {
		case <-r.desk.handed:
		case <-time.After(patience):
			t.Fatal("nobody looks who is due")
		}
	}
	r.stop()
	if n := h.Stats().Requests; n != 1 {
		t.Errorf("%d requests", n)
	}
	if err := h.Wait(ctx, func(s fakecloud.Stats) bool { return s.Connections == 0 }); err != nil {
		t.Error(err)
	}
	if len(r.desk.found) != 0 {
		t.Error("what ended it was no fault of the host's")
	}
}

// TestSelfTestsWait leaves most slots to probes, which are more urgent than self-tests. One that has waited is made only if it is still
// wanted.
func TestSelfTestsWait(t *testing.T) {
	const hosts, slots = 12, 8
	var eps []endpoint.Endpoint
	var all []*fakecloud.Host
	for i := range hosts {
		h := start(t, fakecloud.HostConfig{Name: fmt.Sprintf("h%d", i), Models: []string{"m1"}})
		if err := h.SetFaults(fakecloud.Fault{Kind: fakecloud.Hang}); err != nil {
			t.Fatal(err)
		}
		all, eps = append(all, h), append(eps, h.Endpoint())
	}
	asked := func(hs []*fakecloud.Host) (n int) {
		for _, h := range hs {
			n += h.Stats().Requests
		}
		return n
	}
	r := newRig(t, eps, func(o *Options) { o.Concurrent, o.Within = slots, time.Hour })
	for i := range eps[:slots] {
		r.desk.hand(router.Probe{Endpoint: &eps[i], Served: "m1", SelfTest: true})
	}
	r.Wake()
	eventually(t, "two self-tests", func() bool { return asked(all) == slots/4 })
	for i := range eps[slots:] {
		r.desk.hand(router.Probe{Endpoint: &eps[slots+i], Served: "m1"})
	}
	r.Wake()
	eventually(t, "four probes beside them", func() bool { return asked(all[slots:]) == hosts-slots })
	if n := asked(all[:slots]); n != slots/4 {
		t.Errorf("%d self-tests at once of %d slots", n, slots)
	}
	r.desk.sated.Store(true)
	for i, h := range all[:slots] {
		if h.Stats().Requests > 0 {
			r.fwd.Interrupt(eps[i].ID)
		}
	}
	classes := map[outcome.Class]int{}
	for range slots {
		classes[r.desk.await(t)]++
	}
	if classes[outcome.Moved] != slots/4 || classes[outcome.Unserved] != slots-slots/4 {
		t.Errorf("ended %v", classes)
	}
	if n := asked(all[:slots]); n != slots/4 {
		t.Errorf("%d self-tests, though nobody wants them any more", n)
	}
}

func openRedis(t *testing.T, url string, now func() time.Time) *state.Redis {
	t.Helper()
	r, err := state.Open(state.Options{URL: url, Timeout: 2 * time.Second, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// TestReplicas has two replicas find out about a host at the same time: one asks it, both know. Without Redis each asks.
func TestReplicas(t *testing.T) {
	server := redistest.Start(t)
	url, stop := server.URL(), server.Stop
	h := start(t, fakecloud.HostConfig{Name: "h", Models: []string{"m1"}})
	ep := h.Endpoint()
	var rigs []*rig
	now := time.Now() // however slow the machine, what the one has found is this moment's for the other
	for range 2 {
		shared := openRedis(t, url, func() time.Time { return now })
		rigs = append(rigs, newRig(t, []endpoint.Endpoint{ep}, func(o *Options) { o.Share = shared }))
	}
	both := func(what string, due router.Probe, want outcome.Class, requests int) {
		t.Helper()
		before := h.Stats().Requests
		for _, r := range rigs {
			r.desk.hand(due)
			r.Wake()
		}
		for i, r := range rigs {
			if c := r.desk.await(t); c != want {
				t.Errorf("%s: replica %d found %s, want %s", what, i, c, want)
			}
		}
		if n := h.Stats().Requests - before; n != requests {
			t.Errorf("%s: %d requests, want %d", what, n, requests)
		}
	}
	both("well", router.Probe{Endpoint: &ep, Served: "m1"}, outcome.Success, 1)
	both("self-test", router.Probe{Endpoint: &ep, Served: "m1", SelfTest: true}, outcome.Success, 4)
	for i, r := range rigs {
		if p := r.desk.prefill(ep.ID, "m1"); p != (router.Prefill{Known: true, OK: true}) {
			t.Errorf("replica %d: %+v", i, p)
		}
	}
	stop()
	both("without Redis", router.Probe{Endpoint: &ep, Served: "m1"}, outcome.Success, 2)
	if err := h.SetFaults(fakecloud.Fault{Kind: fakecloud.Error500}); err != nil {
		t.Fatal(err)
	}
	both("failing", router.Probe{Endpoint: &ep, Served: "m1"}, outcome.UpstreamFault, 2)
}
