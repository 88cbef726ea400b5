package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"headrace/gateway/forward"
	"headrace/gateway/state/redistest"
	"headrace/providers/fakecloud"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/health"
	"headrace/router/outcome"
)

// replica is a router with its Prober, in front of one host.
type replica struct {
	router *router.Router
	prober *Prober
	fwd    *forward.Client
}

func newReplica(t *testing.T, ep endpoint.Endpoint, openFor time.Duration, change ...func(*Options)) *replica {
	t.Helper()
	r := &replica{fwd: forward.New(forward.Options{Connect: 2 * time.Second})}
	o := Options{Forward: r.fwd, Every: 10 * time.Millisecond, Spread: -1, Now: time.Now}
	for _, f := range change {
		f(&o)
	}
	r.router = router.New(router.Options{Now: o.Now, Probes: true, Breaker: health.Options{OpenFor: openFor}})
	o.Router = r.router
	r.prober = New(o, Settings{})
	if err := r.fwd.Update([]endpoint.Endpoint{ep}); err != nil {
		t.Fatal(err)
	}
	r.router.Update([]endpoint.Endpoint{ep}, nil)
	r.prober.Update([]endpoint.Endpoint{ep})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	running.Go(func() { _ = r.prober.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait(); r.fwd.Close() })
	return r
}

// call sends what a caller would. sent is false when the router knows nobody to send it to.
func (r *replica) call(t *testing.T) (class outcome.Class, sent bool) {
	t.Helper()
	var l router.Lease
	if r.router.Pick(&router.Request{Model: "m1"}, &l) != nil {
		return outcome.Unserved, false
	}
	body := []byte(`{"model":"m1","max_tokens":2,"messages":[{"role":"user","content":"hello"}]}`)
	var (
		guard forward.Guard
		a     forward.Attempt
	)
	defer a.Finish()
	req := forward.Request{Method: http.MethodPost, Path: chatPath, Header: []byte("Content-Type: application/json\r\n"), Body: [][]byte{body}, Size: len(body)}
	err := a.Start(r.fwd.Host(l.Endpoint.ID), &guard, &req, time.Now())
	if err == nil {
		err = a.AwaitHead(time.Now().Add(patience))
	}
	for err == nil {
		err = a.More(time.Now().Add(patience), 0)
	}
	switch oe, failed := errors.AsType[*outcome.Error](err); {
	case failed:
		class = oe.Class
	case errors.Is(err, io.EOF):
		class = outcome.OfStatus(a.Status)
	default:
		class = outcome.Truncated
	}
	l.Done(router.Result{Class: class, Cached: -1})
	return class, true
}

func (r *replica) breaker() string { return r.router.Hosts()[0].Breaker }

// eventually waits for what has no event of its own.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, patience)
		}
		<-time.After(2 * time.Millisecond)
	}
}

// TestRecovery kills a host under load and brings it back: no caller's request meets it dead after the first, none is the first to
// meet it alive, and it is in use again within seconds.
func TestRecovery(t *testing.T) {
	t.Parallel()
	h := start(t, fakecloud.HostConfig{Name: "h", Models: []string{"m1"}, Keep: 100_000})
	r := newReplica(t, h.Endpoint(), 0) // as users have it
	if c, _ := r.call(t); c != outcome.Success {
		t.Fatalf("class %s", c)
	}
	h.Kill()
	if c, sent := r.call(t); !sent || c != outcome.DialFailed {
		t.Fatalf("class %s, sent %v", c, sent)
	}
	if _, sent := r.call(t); sent {
		t.Error("sent to a host after the first evidence that nobody is there")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for ctx.Err() == nil {
				if c, sent := r.call(t); sent && c != outcome.Success {
					t.Errorf("a caller met %s", c)
				}
				<-time.After(time.Millisecond)
			}
		})
	}
	eventually(t, "a probe of the dead host", func() bool { return r.prober.Status("static:h").Failed > 0 })
	if err := h.Revive(); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	eventually(t, "in use", func() bool { return r.breaker() == "closed" })
	took := time.Since(back)
	served := h.Stats().Requests
	wait, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	if err := h.Wait(wait, func(s fakecloud.Stats) bool { return s.Requests > served+2 }); err != nil {
		t.Error(err)
	}
	cancel()
	callers.Wait()
	t.Logf("in use %s after it came back; probes: %+v", took.Round(time.Millisecond), r.prober.Status("static:h"))
	if took > 10*time.Second {
		t.Errorf("in use %s after it came back", took)
	}
	for _, q := range h.Requests() {
		if q.At.Before(back) {
			continue
		}
		if q.Header.Get("X-Headrace-Probe") == "" {
			t.Error("the first to meet it alive was a caller")
		}
		break
	}
}

// TestRestartUnseen has a host die and come back, with nobody but the network to tell: what it does with unfinished answers is found out
// anew, and at once.
func TestRestartUnseen(t *testing.T) {
	t.Parallel()
	h := start(t, fakecloud.HostConfig{Name: "h", Models: []string{"m1"}})
	r := newReplica(t, h.Endpoint(), 0)
	r.prober.Configure(Settings{SelfTest: true})
	tested := func(after time.Time) func() bool {
		return func() bool {
			s := r.prober.Status("static:h").Prefills
			return len(s) == 1 && s[0].Continues == "yes" && s[0].TestedAt.After(after)
		}
	}
	eventually(t, "the first self-test", tested(time.Time{}))
	h.Kill()
	if c, _ := r.call(t); c != outcome.DialFailed {
		t.Fatalf("class %s", c)
	}
	if err := h.Revive(); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	before := h.Stats().Requests
	eventually(t, "a self-test after it came back", tested(back))
	if n := h.Stats().Requests - before; n != 5 {
		t.Errorf("%d requests, want a probe and a self-test of four", n)
	}
}

// TestToldNoMore has the operator leave it to a test what a host does, and take it back.
func TestToldNoMore(t *testing.T) {
	for _, said := range []endpoint.Continues{endpoint.ContinuesAlways, endpoint.ContinuesNever} {
		h := start(t, fakecloud.HostConfig{Name: "h", Models: []string{"m1"}})
		ep := h.Endpoint()
		ep.Continues = said
		r := newReplica(t, ep, 0)
		r.prober.Configure(Settings{SelfTest: true})
		reload := func(c endpoint.Continues) {
			ep.Continues = c
			r.router.Update([]endpoint.Endpoint{ep}, nil)
			r.prober.Update([]endpoint.Endpoint{ep})
		}
		why := func() string { return r.prober.Status("static:h").Prefills[0].Why }
		if got := why(); got != "configured" {
			t.Errorf("%d: %q", said, got)
		}
		reload(endpoint.ContinuesAuto)
		eventually(t, "a self-test", func() bool { return why() == whyTested })
		if n := h.Stats().Requests; n != 4 {
			t.Errorf("%d: %d requests, want 4", said, n)
		}
		reload(said)
		if got := why(); got != "configured" {
			t.Errorf("%d once more: %q", said, got)
		}
		ep.Served = []endpoint.Served{{Name: "m2"}}
		reload(said)
		if s := r.prober.Status("static:h").Prefills; len(s) != 1 || s[0].Model != "m2" {
			t.Errorf("%d: it serves m2 only: %+v", said, s)
		}
	}
}

// TestWaitDoubles has each failing probe make the next one wait twice as long, a fifth more or less.
func TestWaitDoubles(t *testing.T) {
	t.Parallel()
	const openFor = 50 * time.Millisecond
	h := start(t, fakecloud.HostConfig{Name: "h", Models: []string{"m1"}})
	r := newReplica(t, h.Endpoint(), openFor)
	if err := h.SetFaults(fakecloud.Fault{Kind: fakecloud.Error500}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if c, sent := r.call(t); !sent || c != outcome.UpstreamFault {
			t.Fatalf("class %s, sent %v", c, sent)
		}
	}
	const probes = 5
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := h.Wait(ctx, func(s fakecloud.Stats) bool { return s.Requests == 2+probes }); err != nil {
		t.Fatal(err)
	}
	at := h.Requests()[1].At
	var gaps []string
	for i, q := range h.Requests()[2:] {
		gap, want := q.At.Sub(at), openFor<<i
		if least := want * 8 / 10; gap < least {
			t.Errorf("probe %d came %s after what was before, want %s at least", i, gap, least)
		}
		gaps = append(gaps, gap.Round(time.Millisecond).String())
		at = q.At
	}
	t.Logf("waits %v", gaps)
	if err := h.SetFaults(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "in use", func() bool { return r.breaker() == "closed" })
	if s := r.prober.Status("static:h"); s.Failed < probes || s.Sent != s.Failed+1 {
		t.Errorf("status %+v", s)
	}
}

// TestReplicasRecover has two replicas that share a Redis find a host well again by one probe.
func TestReplicasRecover(t *testing.T) {
	t.Parallel()
	url := redistest.Start(t).URL()
	h := start(t, fakecloud.HostConfig{Name: "h", Models: []string{"m1"}})
	var rs []*replica
	for range 2 {
		shared := openRedis(t, url, nil)
		rs = append(rs, newReplica(t, h.Endpoint(), 0, func(o *Options) { o.Share = shared }))
	}
	h.Kill()
	for i, r := range rs {
		if c, _ := r.call(t); c != outcome.DialFailed {
			t.Fatalf("replica %d: class %s", i, c)
		}
	}
	if err := h.Revive(); err != nil {
		t.Fatal(err)
	}
	for i, r := range rs {
		eventually(t, fmt.Sprintf("in use at replica %d", i), func() bool { return r.breaker() == "closed" })
	}
	if n := len(h.Requests()); n != 1 {
		t.Errorf("%d probes", n)
	}
}
