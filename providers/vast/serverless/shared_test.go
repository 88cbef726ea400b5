package serverless_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"headrace/providers/api"
	"headrace/providers/fakecloud/fakevast"
	"headrace/providers/vast"
	"headrace/providers/vast/serverless"
	"headrace/router/endpoint"
)

// TestOneClientPerAccount lets instances and serverless endpoints of one account ask together: neither comes too soon after the other.
func TestOneClientPerAccount(t *testing.T) {
	const scale = 20
	c, err := fakevast.Start(t.Context(), fakevast.Config{APIKey: "k", Seed: 1, RateLimits: true, RateScale: scale})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	for range 30 {
		c.AddInstance(fakevast.InstanceConfig{})
	}
	c.AddServerless(fakevast.ServerlessConfig{Name: "a", Ready: 2})
	console := api.New(api.Options{Provider: "vast", Key: "k"})
	const poll = 100 * time.Millisecond
	instances := vast.New(vast.Options{Key: "k", ConsoleURL: c.ConsoleURL(), Poll: poll, Pace: 1.0 / scale, Client: console})
	endpoints := serverless.New(serverless.Options{
		Key: "k", ConsoleURL: c.ConsoleURL(), RunURL: c.RunURL(), OpenAIURL: c.OpenAIURL(), Poll: poll, Prices: time.Millisecond, Pace: 1.0 / scale, Client: console,
	})
	ctx, cancel := context.WithCancel(t.Context())
	out, done := make(chan []endpoint.Endpoint), make(chan error, 2)
	go func() { done <- instances.Run(ctx, out) }()
	go func() { done <- endpoints.Run(ctx, out) }()
	late := time.NewTimer(time.Minute)
	defer late.Stop()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for instances.Status().Polls < 4 || endpoints.Status().Polls < 4 {
		select {
		case <-out:
		case <-again.C:
		case <-late.C:
			t.Fatalf("instances %+v, endpoints %+v", instances.Status(), endpoints.Status())
		}
	}
	cancel()
	<-done
	<-done
	s := c.Stats()
	if s.TooSoon > 0 {
		t.Errorf("%d calls came too soon: %v", s.TooSoon, s.Calls)
	}
	// Each call is counted once: by the instances' provider those to the console, by the other those to the engine.
	counted := map[string]int64{}
	for _, st := range []api.Status{instances.Status(), endpoints.Status()} {
		for _, call := range st.Calls {
			counted[call.Name] += call.Calls
		}
	}
	for _, name := range []string{"GET /api/v1/instances/", "GET /api/v0/endptjobs/"} {
		if n := int64(s.Calls[name]); n == 0 || counted[name] < n || counted[name] > n+1 { // one may have been broken off by cancel
			t.Errorf("%s: %d calls are counted, the fake saw %d", name, counted[name], n)
		}
	}
}

// memory is a Share within one process.
type memory struct {
	mu   sync.Mutex // held during fetch: guards all below
	kept map[string]kept
}

type kept struct {
	at time.Time
	b  []byte
}

// Poll is serverless.Share's.
func (m *memory) Poll(ctx context.Context, key string, every time.Duration, fetch func(context.Context) ([]byte, error)) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if k, ok := m.kept[key]; ok && time.Since(k.at) < every {
		return k.b, nil
	}
	at := time.Now()
	b, err := fetch(ctx)
	if err == nil {
		m.kept[key] = kept{at, b}
	}
	return b, err
}

// TestReplicasShareOnePoller has three replicas ask as one would, and learn the same.
func TestReplicasShareOnePoller(t *testing.T) {
	c, o := cloud(t, fakevast.Config{TimeScale: 1000})
	s := c.AddServerless(fakevast.ServerlessConfig{Name: "q", Ready: 2, Worker: fakevast.InstanceConfig{DPHBase: 0.72, Env: map[string]string{"MODEL_NAME": "m"}}})
	m := &memory{kept: map[string]kept{}}
	o.Share, o.Poll, o.Prices = m, 40*time.Millisecond, 200*time.Millisecond
	replicas := []*running{run(t, o), run(t, o), run(t, o)}
	for _, r := range replicas {
		if eps := r.fleet(); len(eps) != 1 || eps[0].State != endpoint.Ready || eps[0].Workers != 2 || eps[0].Served[0].Name != "m" || eps[0].Price.USDPerWorkerSecond == 0 {
			t.Errorf("%+v", eps)
		}
	}
	polls := func() (n int64) {
		for _, r := range replicas {
			n += r.Status().Polls
		}
		return n
	}
	late := time.NewTimer(time.Minute)
	defer late.Stop()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for polls() < 40 {
		select {
		case <-replicas[0].out:
		case <-replicas[1].out:
		case <-replicas[2].out:
		case <-again.C:
		case <-late.C:
			t.Fatalf("%d polls", polls())
		}
	}
	m.mu.Lock()
	calls, looks := c.Stats().Calls, polls()
	for name, k := range m.kept {
		if text := name + string(k.b); strings.Contains(text, accountKey) || strings.Contains(text, "results") || strings.Contains(text, `"q"`) {
			t.Errorf("what is shared can be read: %q", text)
		}
	}
	m.mu.Unlock()
	for _, call := range []string{"GET /api/v0/endptjobs/", "POST run/get_endpoint_workers/"} {
		if n := int64(calls[call]); n == 0 || n > looks*6/10 {
			t.Errorf("%s: %d calls for %d looks of three replicas: %v", call, n, looks, calls)
		}
	}
	for _, w := range s.Workers() {
		w.Sleep()
	}
	for i, r := range replicas {
		for eps := r.fleet(); eps[0].Workers != 0; eps = r.fleet() {
			t.Logf("replica %d: %d workers", i, eps[0].Workers)
		}
	}
	stranger := serverless.Options{Key: "another", ConsoleURL: o.ConsoleURL, RunURL: o.RunURL, Poll: o.Poll, Pace: o.Pace, Share: m}
	x := runs(t, serverless.New(stranger))
	for x.Status().Failing == 0 {
		select {
		case eps := <-x.out:
			t.Fatalf("another key was given %+v", eps)
		case <-again.C:
		case <-late.C:
			t.Fatal("another key was given an answer")
		}
	}
}
