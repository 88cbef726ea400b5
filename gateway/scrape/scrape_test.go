package scrape_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"headrace/gateway/scrape"
	"headrace/providers/fakecloud"
	"headrace/router/capacity"
	"headrace/router/endpoint"
)

const (
	patience = time.Minute
	quick    = 2 * time.Millisecond
)

type told struct {
	id endpoint.ID
	capacity.Engine
}

// rig is a Poller at work.
type rig struct {
	*scrape.Poller
	heard chan told
	log   chan string
	stop  func() error
}

func start(t *testing.T, o scrape.Options, eps ...endpoint.Endpoint) *rig {
	t.Helper()
	r := &rig{heard: make(chan told, 1), log: make(chan string, 64)}
	if o.Every == 0 {
		o.Every = quick
	}
	if o.Timeout == 0 {
		o.Timeout = patience
	}
	o.Log = slog.New(slog.NewTextHandler(lines(r.log), &slog.HandlerOptions{Level: slog.LevelDebug}))
	ctx, cancel := context.WithCancel(t.Context())
	o.Deliver = func(id endpoint.ID, e capacity.Engine) {
		select {
		case r.heard <- told{id, e}:
		case <-ctx.Done():
		}
	}
	r.Poller = scrape.New(o)
	r.Update(eps)
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() {
		if err := r.stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
	return r
}

// lines sends what is written to it, and drops what nobody has room for.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	select {
	case l <- string(p):
	default:
	}
	return len(p), nil
}

// await waits until something is heard that want accepts.
func (r *rig) await(t *testing.T, what string, want func(told) bool) told {
	t.Helper()
	deadline := time.After(patience)
	var last told
	for {
		select {
		case last = <-r.heard:
			if want(last) {
				return last
			}
		case <-deadline:
			t.Fatalf("nothing heard of %s; last %+v", what, last)
		}
	}
}

func (r *rig) awaitLog(t *testing.T, text string) {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case l := <-r.log:
			if strings.Contains(l, text) {
				return
			}
		case <-deadline:
			t.Fatalf("the log does not say %q", text)
		}
	}
}

func fake(t *testing.T, cfg fakecloud.HostConfig) *fakecloud.Host {
	t.Helper()
	h, err := fakecloud.StartHost(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Stop)
	return h
}

// TestEngines watches engines while they work and when they are done: of a new and of an old version, and under TLS.
func TestEngines(t *testing.T) {
	for name, cfg := range map[string]fakecloud.HostConfig{
		"new":           {},
		"old":           {Legacy: true},
		"behind a key":  {APIKey: "secret"},
		"TLS":           {TLS: true},
		"old after TLS": {Legacy: true, TLS: true, APIKey: "secret"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.MaxNumSeqs, cfg.TPS, cfg.TimeScale, cfg.Models = 1, 10, 1, []string{"m"}
			h := fake(t, cfg)
			ep := h.Endpoint()
			r := start(t, scrape.Options{}, ep)
			idle := r.await(t, "the idle engine", func(told) bool { return true })
			if idle.id != ep.ID || idle.Running != 0 || idle.Waiting != 0 || idle.KVUse != 0 || time.Since(idle.At) > patience || time.Since(idle.At) < 0 {
				t.Errorf("idle: %+v", idle)
			}
			ctx, cancel := context.WithCancel(t.Context())
			var load sync.WaitGroup
			for range 3 { // one runs, two wait
				load.Go(func() { send(ctx, t, h, cfg.APIKey) })
			}
			busy := r.await(t, "one request that runs and two that wait", func(e told) bool { return e.Running == 1 && e.Waiting == 2 && e.KVUse > 0 })
			if busy.KVUse > 1 {
				t.Errorf("busy: %+v", busy)
			}
			cancel()
			load.Wait()
			end := r.await(t, "the end of it", func(e told) bool { return e.Running == 0 && e.Waiting == 0 && e.KVUse == 0 })
			if !(end.CacheHitRate >= 0 && end.CacheHitRate <= 1) {
				t.Errorf("hit rate %g after requests", end.CacheHitRate)
			}
		})
	}
}

// send runs a stream until ctx is done.
func send(ctx context.Context, t *testing.T, h *fakecloud.Host, key string) {
	body := `{"model":"m","stream":true,"max_tokens":1000,"messages":[{"role":"user","content":"` + strings.Repeat("some words ", 100) + `"}]}`
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL()+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		t.Error(err)
		return
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+key)
	ep := h.Endpoint()
	cfg, err := ep.TLS.Config("127.0.0.1")
	if err != nil {
		t.Error(err)
		return
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		if ctx.Err() == nil {
			t.Error(err)
		}
		return
	}
	defer func() { _ = res.Body.Close() }()
	_, _ = io.Copy(io.Discard, res.Body)
}

const onePage = "vllm:num_requests_running 1\n"

// site is a host that shows a page, with the number of times that it was asked.
type site struct {
	ep    endpoint.Endpoint
	asked atomic.Int64
}

func serve(t *testing.T, id endpoint.ID, h http.HandlerFunc) *site {
	t.Helper()
	s := &site{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		h(w, r)
	}))
	t.Cleanup(srv.Close)
	s.ep = endpoint.Endpoint{ID: id, BaseURL: srv.URL + "/v1", Tenure: endpoint.OnDemand, State: endpoint.Ready}
	return s
}

func show(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }
}

// TestOnlyWhereItIsFree asks no host that would be woken or billed, is down, or does not speak for itself.
func TestOnlyWhereItIsFree(t *testing.T) {
	var never []*site
	eps := make([]endpoint.Endpoint, 0, 20)
	add := func(name string, change func(*endpoint.Endpoint)) {
		s := serve(t, endpoint.ID("x:"+name), show(onePage))
		change(&s.ep)
		eps = append(eps, s.ep)
		never = append(never, s)
	}
	add("jobs", func(ep *endpoint.Endpoint) { ep.Dialect = endpoint.RunPodJobs })
	add("route", func(ep *endpoint.Endpoint) { ep.Dialect = endpoint.VastRoute })
	add("serverless", func(ep *endpoint.Endpoint) { ep.Tenure = endpoint.Serverless })
	add("api", func(ep *endpoint.Endpoint) { ep.Tenure = endpoint.TenurePerToken })
	add("by-worker-second", func(ep *endpoint.Endpoint) {
		ep.Price.Basis, ep.Tenure = endpoint.PerWorkerSecond, endpoint.TenureUnknown
	})
	add("by-token", func(ep *endpoint.Endpoint) { ep.Price.Basis, ep.Tenure = endpoint.PerToken, endpoint.TenureUnknown })
	for _, s := range []endpoint.State{endpoint.Cold, endpoint.Starting, endpoint.Preempted, endpoint.Draining, endpoint.Gone, endpoint.NoCapacity} {
		add(s.String(), func(ep *endpoint.Endpoint) { ep.State = s })
	}
	var want []endpoint.ID
	for _, s := range []endpoint.State{endpoint.StateUnknown, endpoint.Ready, endpoint.Saturated} {
		ok := serve(t, endpoint.ID("ok:"+s.String()), show(onePage))
		ok.ep.State, ok.ep.Price.Basis, ok.ep.Tenure = s, endpoint.PerHour, endpoint.Interruptible
		eps = append(eps, ok.ep)
		want = append(want, ok.ep.ID)
	}
	r := start(t, scrape.Options{}, eps...)
	var heard []endpoint.ID
	r.await(t, "each host that may be asked, ten times", func(e told) bool {
		heard = append(heard, e.id)
		return !slices.ContainsFunc(want, func(id endpoint.ID) bool {
			n := 0
			for _, h := range heard {
				if h == id {
					n++
				}
			}
			return n < 10
		})
	})
	for _, s := range never {
		if s.asked.Load() > 0 {
			t.Errorf("%s was asked", s.ep.ID)
		}
	}
}

// TestNone leaves hosts without metrics in peace after three questions, until they change.
func TestNone(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"404":       http.NotFound,
		"401":       func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) },
		"405":       func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusMethodNotAllowed) },
		"redirect":  func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		"HTML":      show("<!doctype html><title>Open WebUI</title>"),
		"no engine": show("go_goroutines 12\n"),
		"nothing":   show(""),
	} {
		t.Run(name, func(t *testing.T) {
			var there atomic.Bool
			s := serve(t, "x:y", func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/metrics" {
					t.Errorf("%s was asked for", r.URL.Path)
				}
				if there.Load() {
					_, _ = io.WriteString(w, onePage)
					return
				}
				h(w, r)
			})
			r := start(t, scrape.Options{}, s.ep)
			r.awaitLog(t, "is not asked again")
			if n := s.asked.Load(); n != 3 {
				t.Errorf("asked %d times", n)
			}
			r.Update([]endpoint.Endpoint{s.ep}) // nothing new
			there.Store(true)
			s.ep.State = endpoint.Preempted
			r.Update([]endpoint.Endpoint{s.ep})
			other := serve(t, "x:other", show(onePage))
			r.Update([]endpoint.Endpoint{s.ep, other.ep})
			r.await(t, "another host", func(e told) bool { return e.id == "x:other" }) // what came before was taken in
			if n := s.asked.Load(); n != 3 {
				t.Errorf("asked %d times while nothing had changed for the better", n)
			}
			s.ep.State = endpoint.Ready
			r.Update([]endpoint.Endpoint{s.ep})
			r.await(t, "the host that came back", func(e told) bool { return e.id == "x:y" && e.Running == 1 })
		})
	}
}

// TestFailing goes on asking hosts that fail for now.
func TestFailing(t *testing.T) {
	var n atomic.Int64
	s := serve(t, "x:y", func(w http.ResponseWriter, _ *http.Request) {
		switch n.Add(1) {
		case 1, 2, 3, 4:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 5:
			panic(http.ErrAbortHandler)
		default:
			_, _ = io.WriteString(w, onePage)
		}
	})
	r := start(t, scrape.Options{}, s.ep)
	r.await(t, "the host after five failures", func(e told) bool { return e.Running == 1 })
	if n.Load() < 6 {
		t.Errorf("heard after %d questions", n.Load())
	}
}

// TestSilentHosts do not keep others from being heard.
func TestSilentHosts(t *testing.T) {
	var eps []endpoint.Endpoint
	for i := range 12 {
		eps = append(eps, serve(t, endpoint.ID(fmt.Sprint("x:silent", i)), func(_ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done() // the poller gives up
		}).ep)
	}
	good := serve(t, "x:good", show(onePage))
	r := start(t, scrape.Options{Concurrent: 3, Timeout: 50 * time.Millisecond}, append(eps, good.ep)...)
	for range 5 {
		r.await(t, "the host that answers", func(e told) bool { return e.id == "x:good" })
	}
}

// TestAtOnce asks no more hosts at once than it may.
func TestAtOnce(t *testing.T) {
	const most, hosts = 3, 12
	var now atomic.Int64
	full, gate := make(chan struct{}, hosts), make(chan struct{})
	var eps []endpoint.Endpoint
	for i := range hosts {
		eps = append(eps, serve(t, endpoint.ID(fmt.Sprint("x:", i)), func(w http.ResponseWriter, _ *http.Request) {
			switch n := now.Add(1); {
			case n > most:
				t.Errorf("%d questions at once", n)
			case n == most:
				select {
				case full <- struct{}{}:
				default:
				}
			}
			<-gate
			now.Add(-1) // before the poller can know that it has its answer
			_, _ = io.WriteString(w, onePage)
		}).ep)
	}
	r := start(t, scrape.Options{Concurrent: most}, eps...)
	for range 2 {
		select {
		case <-full:
		case <-time.After(patience):
			t.Fatalf("only %d questions at once", now.Load())
		}
		for range most {
			gate <- struct{}{}
			r.await(t, "an answer", func(told) bool { return true })
		}
	}
	close(gate)
	heard := map[endpoint.ID]bool{}
	r.await(t, "each host", func(e told) bool { heard[e.id] = true; return len(heard) == hosts })
}

// TestLargePages are read to the cap and no further.
func TestLargePages(t *testing.T) {
	filler := strings.Repeat("vllm:something_bucket{le=\"1\"} 1\n", 1000)
	endless := serve(t, "x:endless", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, onePage)
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, filler); err != nil {
				return
			}
		}
	})
	r := start(t, scrape.Options{}, endless.ep)
	if e := r.await(t, "a page without end", func(told) bool { return true }); e.Running != 1 || !math.IsNaN(e.KVUse) || !math.IsNaN(e.CacheHitRate) {
		t.Errorf("%+v", e)
	}
}

// TestKey goes to the host and nowhere else.
func TestKey(t *testing.T) {
	thief := serve(t, "x:thief", show(onePage))
	var got atomic.Value
	honest := serve(t, "x:y", func(w http.ResponseWriter, r *http.Request) {
		got.Store(r.Header.Get("Authorization"))
		http.Redirect(w, r, strings.TrimSuffix(thief.ep.BaseURL, "/v1")+"/metrics", http.StatusTemporaryRedirect)
	})
	honest.ep.APIKey = "secret"
	r := start(t, scrape.Options{}, honest.ep)
	r.awaitLog(t, "is not asked again")
	if got.Load() != "Bearer secret" {
		t.Errorf("the host got %q", got.Load())
	}
	if thief.asked.Load() > 0 {
		t.Error("a redirect was followed")
	}
}

// TestAddresses finds the page beside /v1, whatever the base URL is.
func TestAddresses(t *testing.T) {
	for base, want := range map[string]string{"": "/metrics", "/": "/metrics", "/v1": "/metrics", "/v1/": "/metrics", "/llm/v1": "/llm/metrics", "/llm": "/llm/metrics", "/api/v12": "/api/v12/metrics"} {
		path := make(chan string, 1)
		s := serve(t, "x:y", func(w http.ResponseWriter, r *http.Request) {
			select {
			case path <- r.URL.Path:
			default:
			}
			_, _ = io.WriteString(w, onePage)
		})
		s.ep.BaseURL = strings.TrimSuffix(s.ep.BaseURL, "/v1") + base
		r := start(t, scrape.Options{}, s.ep)
		r.await(t, base, func(told) bool { return true })
		if got := <-path; got != want {
			t.Errorf("base %q: asked for %s, not %s", base, got, want)
		}
		_ = r.stop()
	}
}

// TestLeaving hosts are not asked any more, and a host at another address is asked there.
func TestLeaving(t *testing.T) {
	gone, moved, other := serve(t, "x:gone", show(onePage)), serve(t, "x:y", show(onePage)), serve(t, "x:y", show("vllm:num_requests_running 2\n"))
	r := start(t, scrape.Options{}, gone.ep, moved.ep)
	r.await(t, "the first host", func(e told) bool { return e.id == "x:gone" })
	r.await(t, "the second host", func(e told) bool { return e.id == "x:y" && e.Running == 1 })
	r.Update([]endpoint.Endpoint{other.ep})
	r.await(t, "the host at its new address", func(e told) bool { return e.id == "x:y" && e.Running == 2 })
	was := gone.asked.Load() + moved.asked.Load()
	for range 20 {
		if e := r.await(t, "the host at its new address", func(told) bool { return true }); e.Running != 2 {
			t.Errorf("heard %+v", e)
		}
	}
	if n := gone.asked.Load() + moved.asked.Load(); n != was {
		t.Errorf("asked %d times after they had left", n-was)
	}
}

// TestManyHosts come and go without a goroutine left behind: Run waits for all that it started.
func TestManyHosts(t *testing.T) {
	s := serve(t, "x:y", show(onePage))
	r := start(t, scrape.Options{})
	for round := range 20 {
		eps := make([]endpoint.Endpoint, 500)
		for i := range eps {
			eps[i] = s.ep
			eps[i].ID = endpoint.ID(fmt.Sprintf("x:%d-%d", round%3, i))
		}
		r.Update(eps)
		r.await(t, "one of the hosts", func(e told) bool { return strings.HasPrefix(string(e.id), fmt.Sprintf("x:%d-", round%3)) })
	}
	if err := r.stop(); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	was := s.asked.Load()
	select {
	case e := <-r.heard:
		if s.asked.Load() != was {
			t.Errorf("heard %+v after the end", e)
		}
	default:
	}
}
