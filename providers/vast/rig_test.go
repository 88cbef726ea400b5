package vast_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"headrace/providers/fakecloud/fakevast"
	"headrace/providers/vast"
	"headrace/router/endpoint"
)

// rig is a fake Vast.ai, a Provider that runs against it, and what the Provider has sent.
type rig struct {
	t     *testing.T
	cloud *fakevast.Cloud
	p     *vast.Provider
	log   *logs
	stop  func() // ends Run; may be called again

	mu      sync.Mutex // guards all below
	sets    int
	last    []endpoint.Endpoint
	changed chan struct{} // closed at the next set
}

type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

const patience = time.Minute // of a test that waits for what should come in milliseconds

// start starts a fake cloud with instances and a Provider that polls it every 30 ms.
func start(t *testing.T, cfg fakevast.Config, change func(*vast.Options), instances ...fakevast.InstanceConfig) *rig {
	t.Helper()
	c, err := fakevast.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	for _, i := range instances {
		c.AddInstance(i)
	}
	return attach(t, c, change)
}

// attach starts one more Provider on a cloud.
func attach(t *testing.T, c *fakevast.Cloud, change func(*vast.Options)) *rig {
	t.Helper()
	return attachAfter(t, nil, c, change)
}

// attachAfter does so with the heir of another Provider, which may be nil.
func attachAfter(t *testing.T, old *vast.Provider, c *fakevast.Cloud, change func(*vast.Options)) *rig {
	t.Helper()
	r := &rig{t: t, cloud: c, log: &logs{}, changed: make(chan struct{})}
	o := vast.Options{
		Key: "vast-key", ConsoleURL: c.ConsoleURL(), Poll: 30 * time.Millisecond, ProbeTimeout: 2 * time.Second, Pace: 0.001,
		Log: slog.New(slog.NewJSONHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&o)
	}
	r.p = vast.New(o)
	if old != nil {
		r.p.Inherit(old)
	}
	ctx, cancel := context.WithCancel(context.Background())
	out := make(chan []endpoint.Endpoint)
	var wg sync.WaitGroup
	wg.Go(func() { _ = r.p.Run(ctx, out) })
	wg.Go(func() {
		for {
			select {
			case eps := <-out:
				r.mu.Lock()
				r.sets++
				r.last = eps
				close(r.changed)
				r.changed = make(chan struct{})
				r.mu.Unlock()
			case <-ctx.Done():
				return
			}
		}
	})
	r.stop = func() {
		cancel()
		wg.Wait()
	}
	t.Cleanup(func() {
		r.stop()
		if t.Failed() {
			t.Logf("log:\n%s", r.log)
		}
	})
	return r
}

func (r *rig) fleet() (sets int, eps []endpoint.Endpoint, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sets, r.last, r.changed
}

// until waits for a set after which ok holds.
func (r *rig) until(what string, ok func(eps []endpoint.Endpoint) bool) []endpoint.Endpoint {
	r.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		sets, eps, changed := r.fleet()
		if sets > 0 && ok(eps) {
			return eps
		}
		select {
		case <-changed:
		case <-deadline.C:
			r.t.Fatalf("waited %s in vain for %s; after %d sets the fleet is %s", patience, what, sets, show(eps))
		}
	}
}

// state waits until an instance has a state, with a reason that contains why, and returns it.
func (r *rig) state(i *fakevast.Instance, s endpoint.State, why string) endpoint.Endpoint {
	r.t.Helper()
	var got endpoint.Endpoint
	r.until(fmt.Sprintf("%s to be %s because %q", id(i), s, why), func(eps []endpoint.Endpoint) bool {
		for _, ep := range eps {
			if ep.ID == id(i) && ep.State == s && strings.Contains(ep.StateReason, why) {
				got = ep
				return true
			}
		}
		return false
	})
	return got
}

// never fails the test if an instance gets a state within some polls.
func (r *rig) never(i *fakevast.Instance, s endpoint.State, polls int) {
	r.t.Helper()
	from := r.p.Status().Polls
	deadline := time.Now().Add(patience)
	for {
		_, eps, _ := r.fleet()
		for _, ep := range eps {
			if ep.ID == id(i) && ep.State == s {
				r.t.Fatalf("%s is %s (%s)", ep.ID, s, ep.StateReason)
			}
		}
		seen := r.cloud.Stats().Calls["GET /api/v1/instances/"]
		if r.p.Status().Polls-from >= int64(polls) {
			return
		}
		ctx, cancel := context.WithDeadline(r.t.Context(), deadline)
		err := r.cloud.Wait(ctx, func(s fakevast.Stats) bool { return s.Calls["GET /api/v1/instances/"] > seen })
		cancel()
		if err != nil {
			r.t.Fatal(err)
		}
	}
}

func id(i *fakevast.Instance) endpoint.ID { return endpoint.ID(fmt.Sprintf("vast:%d", i.ID())) }

func show(eps []endpoint.Endpoint) string {
	var b strings.Builder
	for _, ep := range eps {
		fmt.Fprintf(&b, "\n  %s %s %s (%s) %d models", ep.ID, ep.BaseURL, ep.State, ep.StateReason, len(ep.Served))
	}
	return b.String()
}

// secrets fails the test if a text shows any of what is to stay hidden.
func noSecrets(t *testing.T, where, text string, secrets ...string) {
	t.Helper()
	for _, s := range secrets {
		if s != "" && strings.Contains(text, s) {
			t.Errorf("%s shows the secret %q:\n%s", where, s, text)
		}
	}
}

func toJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
