package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"headrace/gateway/admin"
	"headrace/gateway/config"
	"headrace/gateway/ledger"
	"headrace/providers/fakecloud"
	"headrace/providers/fakecloud/fakevast"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// TestLeaver calls hosts at the right times by a clock of its own.
func TestLeaver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		type called struct {
			id string
			at time.Duration
		}
		var mu sync.Mutex // guards got
		var got []called
		l := newLeaver(func(id endpoint.ID) int {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, called{string(id), time.Since(start)})
			return 1
		}, 20*time.Second, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		pass := func(d time.Duration, want ...called) {
			t.Helper()
			<-time.After(d) // by the bubble's clock
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(got, want) {
				t.Errorf("called %v, want %v", got, want)
			}
			got = nil
		}
		s := time.Second
		ends := func(id string, state endpoint.State, in time.Duration) endpoint.Endpoint {
			ep := endpoint.Endpoint{ID: endpoint.ID(id), State: state}
			if in > 0 {
				ep.Until = start.Add(in)
			}
			return ep
		}
		l.Update([]endpoint.Endpoint{
			ends("ready", endpoint.Ready, 30*s), ends("a", endpoint.Draining, 30*s), ends("b", endpoint.Draining, 0), ends("c", endpoint.Draining, 40*s),
		})
		pass(9 * s)
		pass(2*s, called{"a", 10 * s})                                                                     // 11 s
		pass(2*s, called{"a", 12 * s})                                                                     // 13 s
		l.Update([]endpoint.Endpoint{ends("a", endpoint.Draining, 60*s), ends("c", endpoint.Ready, 40*s)}) // put off
		pass(26*s + s/2)                                                                                   // 39.5 s
		pass(s, called{"a", 40 * s})                                                                       // 40.5 s
		l.Update(nil)
		pass(9 * s) // 49.5 s
		l.Update([]endpoint.Endpoint{ends("d", endpoint.Draining, 55*s), ends("e", endpoint.Ready, 0)})
		pass(s, called{"d", 49*s + s/2}) // 50.5 s: its end was near already
		l.Configure(0)
		pass(9 * s) // 59.5 s
		l.Want("e", true)
		pass(3*s, called{"e", 59*s + s/2}, called{"e", 61*s + s/2}) // 62.5 s
		l.Want("e", false)
		pass(10 * s)
		l.Want("e", true)
		pass(s, called{"e", 72*s + s/2})
		l.Update(nil) // a host that is gone
		pass(10 * s)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
}

// startHurried is startRented for a cloud whose time goes faster, with webhooks. Tests say by themselves which host goes on with answers.
func startHurried(t *testing.T, cloud *fakevast.Cloud, poll string) *rented {
	t.Helper()
	m := &market{scale: 60, env: vastEnv(cloud)}
	m.env["VAST_POLL"] = poll
	cfg, err := config.Parse("test.yaml", []byte("continuation: {self_test: false}\n"), config.Overrides{Listen: "127.0.0.1:0", Admin: "127.0.0.1:0"}, func(name string) (string, bool) {
		v, ok := m.env[name]
		return v, ok
	})
	if err == nil {
		err = cfg.Validate()
	}
	if err != nil {
		t.Fatal(err)
	}
	r := &rented{t: t, log: newLogBuffer()}
	if r.app, err = newApp(cfg, r.log); err != nil {
		t.Fatal(err)
	}
	r.base = "http://" + r.app.listeners[0].Addr().String()
	if cfg.Providers.Vast.WebhookSecret, err = subscribe(t.Context(), cloud.ConsoleURL(), m.env["VAST_API_KEY"], r.base); err != nil {
		t.Fatal(err)
	}
	m.hurry(r.app, cfg)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- r.app.run(ctx, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		if t.Failed() {
			t.Logf("log:\n%s", r.log)
		}
	})
	return r
}

// streaming is an answer that is being read.
type streaming struct {
	t        *testing.T
	body     io.ReadCloser
	sc       *bufio.Scanner
	text     string
	ids      map[string]bool
	resumed  int
	done     bool
	code     string
	endpoint string
	id       string
}

func (r *rented) stream(model, prompt string, tokens int) *streaming {
	r.t.Helper()
	body := fmt.Sprintf(`{"model":%q,"stream":true,"max_tokens":%d,"messages":[{"role":"user","content":%q}]}`, model, tokens, prompt)
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodPost, r.base+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req) //nolint:bodyclose // at the test's end
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = res.Body.Close() })
	if res.StatusCode != http.StatusOK {
		r.t.Fatalf("status %d", res.StatusCode)
	}
	return &streaming{
		t: r.t, body: res.Body, sc: bufio.NewScanner(res.Body), ids: map[string]bool{},
		endpoint: res.Header.Get("X-Headrace-Endpoint"), id: res.Header.Get("X-Request-Id"),
	}
}

// read reads until n further pieces of text have come, or to the end if n is 0.
func (s *streaming) read(n int) error {
	s.t.Helper()
	for seen := 0; n == 0 || seen < n; {
		if !s.sc.Scan() {
			return s.sc.Err()
		}
		line := s.sc.Text()
		data, ok := strings.CutPrefix(line, "data: ")
		switch {
		case line == ": resumed":
			s.resumed++
		case !ok:
		case data == "[DONE]":
			s.done = true
		default:
			var e struct {
				ID      string
				Choices []struct{ Delta struct{ Content string } }
				Error   *struct{ Code string }
			}
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				s.t.Fatalf("%v: %s", err, data)
			}
			if e.Error != nil {
				s.code = e.Error.Code
				continue
			}
			s.ids[e.ID] = true
			for _, c := range e.Choices {
				if c.Delta.Content != "" {
					s.text += c.Delta.Content
					seen++
				}
			}
		}
	}
	return nil
}

// record is the request's, once it is settled.
func (r *rented) record(id string) ledger.Record {
	r.t.Helper()
	var rec ledger.Record
	r.until("the request is settled", func([]router.HostView) bool {
		recs := r.app.ring.Newest(1, func(rec *ledger.Record) bool { return rec.ID == id })
		if len(recs) == 1 {
			rec = recs[0]
		}
		return len(recs) == 1
	})
	return rec
}

// post sends a request to the admin API.
func (r *rented) post(method, path, body string, headers ...string) (status int, answer string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, "http://"+r.app.admin.Addr().String()+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return res.StatusCode, string(bytes.TrimSpace(b))
}

// TestLeavingHost has a fake Vast.ai announce in all the ways there are that an instance goes, while an answer runs on it and its
// connections still stand: another instance goes on with the answer at once, and the caller gets each token once.
func TestLeavingHost(t *testing.T) {
	const tokens = 150
	for name, tc := range map[string]struct {
		poll   string
		leaves func(r *rented, i *fakevast.Instance)
		state  string
		stays  bool
		refuse bool // the other one does not go on with answers
	}{
		"outbid, by poll":                       {leaves: func(_ *rented, i *fakevast.Instance) { i.Outbid(0) }, state: "preempted"},
		"outbid, by webhook":                    {leaves: func(_ *rented, i *fakevast.Instance) { i.Outbid(0) }, state: "preempted", poll: "1h"},
		"outbid, and nobody else can go on":     {leaves: func(_ *rented, i *fakevast.Instance) { i.Outbid(0) }, state: "preempted", refuse: true, stays: true},
		"stopped by its owner":                  {leaves: func(_ *rented, i *fakevast.Instance) { i.Stop() }, state: "draining"},
		"its contract ends within 20 s":         {leaves: contractEnds(19 * time.Second), state: "draining"},
		"its contract ends within 10 min":       {leaves: contractEnds(5 * time.Minute), state: "draining", stays: true},
		"its operator drains it, and wants out": {leaves: drains(`{"move":true}`), state: "ready"},
		"its operator drains it":                {leaves: drains(``), state: "ready", stays: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.poll == "" {
				tc.poll = "100ms"
			}
			cloud := startVast(t, fakevast.Config{TimeScale: 1000, EngineScale: 1, Seed: 1, OutbidGrace: 10 * time.Hour, StopTakes: 10 * time.Hour})
			ic := fakevast.InstanceConfig{TPS: 100, TTFT: 20 * time.Millisecond, IsBid: true, DPHBase: 0.2}
			cheap := cloud.AddInstance(ic)
			ic.IsBid, ic.DPHBase = false, 9
			dear := cloud.AddInstance(ic)
			r := startHurried(t, cloud, tc.poll)
			cheapID, dearID := fmt.Sprint("vast:", cheap.ID()), fmt.Sprint("vast:", dear.ID())
			r.until("both found", ready(cheapID, dearID))
			model := r.app.router.Hosts()[0].Models[0]
			for _, id := range []string{cheapID, dearID} {
				r.app.router.SetPrefill(endpoint.ID(id), model, router.Prefill{Known: true, OK: id == cheapID || !tc.refuse})
			}
			s := r.stream(model, "what does the river say?", tokens)
			if s.endpoint != cheapID {
				t.Fatalf("it began at %s", s.endpoint)
			}
			if err := s.read(10); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			tc.leaves(r, cheap)
			r.until("it leaves", func(hosts []router.HostView) bool {
				return stateOf(hosts, cheapID) == tc.state && (tc.state != "ready" || hosts[0].Drained || hosts[1].Drained)
			})
			if c := r.chat(model, "hello", 4, false); c.endpoint != dearID {
				t.Errorf("a new request went to %s: %s", c.endpoint, c.body)
			}
			if err := s.read(0); err != nil {
				t.Errorf("it broke off: %v", err)
			}
			if s.text != fakecloud.Answer(model, "what does the river say?", tokens) || len(s.ids) != 1 || !s.done || s.code != "" {
				t.Errorf("ids %v, done %t, error %q, text %q", s.ids, s.done, s.code, s.text)
			}
			rec := r.record(s.id)
			want, tries := dearID, 2
			if tc.stays {
				want, tries = cheapID, 1
			}
			if string(rec.Endpoint) != want || rec.Tries != tries || rec.Class != outcome.Success || s.resumed != tries-1 || rec.Resumes != tries-1 {
				t.Errorf("it ended at %s after %d tries and %d seams, %s", rec.Endpoint, rec.Tries, s.resumed, rec.Class)
			}
			if tries == 2 && rec.Attempts[0].Class != outcome.Moved {
				t.Errorf("it was not moved but %s", rec.Attempts[0].Class)
			}
			for _, h := range r.app.router.Hosts() {
				if h.Failures != 0 {
					t.Errorf("%s: %d failures", h.ID, h.Failures)
				}
			}
			t.Logf("seam gap %v, whole answer %v after the news", rec.SeamGap, time.Since(began))
		})
	}
}

func contractEnds(in time.Duration) func(*rented, *fakevast.Instance) {
	return func(_ *rented, i *fakevast.Instance) {
		i.Update(func(c *fakevast.InstanceConfig) { c.EndDate = time.Now().Add(in) })
	}
}

func drains(body string) func(*rented, *fakevast.Instance) {
	return func(r *rented, i *fakevast.Instance) {
		if status, answer := r.post(http.MethodPost, fmt.Sprintf("/admin/v1/hosts/vast:%d/drain", i.ID()), body); status != 200 || !strings.Contains(answer, `"drained":true`) {
			r.t.Errorf("%d %s", status, answer)
		}
	}
}

// held is an answer of which some bytes come at once, the others when the gate is opened.
type held struct {
	io.ReadCloser
	free int // bytes
	gate <-chan struct{}
}

func (h *held) Read(p []byte) (int, error) {
	if h.free <= 0 {
		<-h.gate
		return h.ReadCloser.Read(p)
	}
	n, err := h.ReadCloser.Read(p[:min(len(p), h.free)])
	h.free -= n
	return n, err
}

// TestStops has the gateway told to stop while an answer runs: it is not ready from then on, and the answer comes whole, whatever
// the time it takes within timeouts.drain, which may be longer than a minute.
func TestStops(t *testing.T) {
	const tokens = 100 // some 20 KB
	h := startHost(t, fakecloud.HostConfig{Name: "a", Models: []string{"m"}})
	to, err := url.Parse(h.URL())
	if err != nil {
		t.Fatal(err)
	}
	gate := make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	front := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(to) },
		FlushInterval: -1,
		ModifyResponse: func(r *http.Response) error {
			r.Body = &held{ReadCloser: r.Body, free: 4 << 10, gate: gate}
			return nil
		},
	})
	t.Cleanup(front.Close)
	t.Cleanup(open)
	app := startApp(t, t.TempDir(), fmt.Sprintf(appYAML, front.URL+"/v1")+"timeouts: {drain: 15m}\n", nil)
	if d := settings(app.app.cfg).Drain; d != 15*time.Minute {
		t.Errorf("a drain of 15m is one of %v", d)
	}
	r := &rented{t: t, app: app.app, base: app.base}
	s := r.stream("m", "hello", tokens)
	if err := s.read(5); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- app.stop() }()
	r.until("it is not ready any more", func([]router.HostView) bool {
		status, answer := r.post(http.MethodGet, "/readyz", "")
		return status == http.StatusServiceUnavailable && strings.Contains(answer, "draining")
	})
	open()
	if err := s.read(0); err != nil || !s.done || s.text != fakecloud.Answer("m", "hello", tokens) {
		t.Errorf("the answer: %v, done %t, %q", err, s.done, s.text)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// TestAdminDrain drains a host and lets it in again by the admin API.
func TestAdminDrain(t *testing.T) {
	h := startHost(t, fakecloud.HostConfig{Name: "a", Models: []string{"m"}})
	app := startApp(t, t.TempDir(), fmt.Sprintf(appYAML, h.URL()+"/v1"), nil)
	r := &rented{t: t, app: app.app, base: app.base}
	for _, step := range []struct {
		method, path, body string
		headers            []string
		status             int
		answer             string
		served             bool
	}{
		{"POST", "/admin/v1/hosts/static:b/drain", "", nil, 404, `"code":"host_not_found"`, true},
		{"DELETE", "/admin/v1/hosts/static:b/drain", "", nil, 404, `"code":"host_not_found"`, true},
		{"POST", "/admin/v1/hosts/static:a/drain", `{"moves":true}`, nil, 400, `"code":"invalid_body"`, true},
		{"POST", "/admin/v1/hosts/static:a/drain", `{"move":1}`, nil, 400, `"code":"invalid_body"`, true},
		{"POST", "/admin/v1/hosts/static:a/drain", `{} {}`, nil, 400, `"code":"invalid_body"`, true},
		{"POST", "/admin/v1/hosts/static:a/drain", "", []string{"Sec-Fetch-Site", "cross-site"}, 403, "", true},
		{"POST", "/admin/v1/hosts/static:a/drain", "", nil, 200, `{"drained":true,"id":"static:a","in_flight":0,"move":false}`, false},
		{"POST", "/admin/v1/hosts/static%3Aa/drain", `{"move":true}`, nil, 200, `{"drained":true,"id":"static:a","in_flight":0,"move":true}`, false},
		{"GET", "/admin/v1/hosts", "", nil, 200, `"drained":true`, false},
		{"GET", "/admin/v1/explain?model=m", "", nil, 200, `"reason":"drained by its operator"`, false},
		{"DELETE", "/admin/v1/hosts/static:a/drain", "", nil, 200, `{"drained":false,"id":"static:a","in_flight":0,"move":false}`, true},
		{"GET", "/admin/v1/hosts", "", nil, 200, `"drained":false`, true},
	} {
		if status, answer := r.post(step.method, step.path, step.body, step.headers...); status != step.status || !strings.Contains(answer, step.answer) {
			t.Errorf("%s %s %s: %d %s, want %d %s", step.method, step.path, step.body, status, answer, step.status, step.answer)
		}
		if status, text := ask(t, http.DefaultClient, app.base, "m", "hello", 5); (status == 200) != step.served {
			t.Errorf("after %s %s a request gets %d %s", step.method, step.path, status, text)
		}
	}
	for _, step := range []struct {
		args, says string
		code       int
		served     bool
	}{
		{"drain static:a", "static:a takes no new requests, and none run there.", 0, false},
		{"", "static:a m      ready, drained         0", 0, false},
		{"-o json", `"drained": true`, 0, false},
		{"undrain static:a", "static:a takes requests again", 0, true},
		{"", "static:a m      ready         0", 0, true},
		{"drain static:a --move -o json", `"move": true`, 0, false},
		{"undrain static:a -o json", `"drained": false`, 0, true},
		{"drain static:nosuch", `There is no host "static:nosuch"`, 1, true},
		{"drain", "accepts 1 arg", 1, true},
		{"drain static:a -o yaml", "want table or json", 2, true},
	} {
		c, b := hostsCommand(), new(strings.Builder)
		c.SetArgs(append(strings.Fields(step.args), "--admin", app.app.admin.Addr().String()))
		c.SetOut(b)
		c.SetErr(io.Discard)
		c.SilenceUsage = true
		err := c.ExecuteContext(t.Context())
		code := 0
		if ee, ok := errors.AsType[*exitError](err); ok {
			code = ee.code
		} else if err != nil {
			code = 1
		}
		if said := b.String() + fmt.Sprint(err); code != step.code || !strings.Contains(said, step.says) {
			t.Errorf("hosts %s: code %d, %s", step.args, code, said)
		}
		if status, _ := ask(t, http.DefaultClient, app.base, "m", "hello", 5); (status == 200) != step.served {
			t.Errorf("after hosts %s a request gets %d", step.args, status)
		}
	}
	bare := admin.Handler(admin.Options{Host: "example.com", Router: router.New(router.Options{Now: time.Now})})
	w := httptest.NewRecorder()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "/admin/v1/hosts/static:a/drain", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if bare.ServeHTTP(w, req); w.Code != 404 {
		t.Errorf("where it cannot be done: %d", w.Code)
	}
}
