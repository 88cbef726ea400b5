package admission

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"headrace/gateway/state"
)

// line is a Redis that answers after a while, or not at all.
type line struct {
	after atomic.Int64 // nanoseconds; below 0 it is gone
	calls atomic.Int64
}

func (l *line) Replicas() int { return 2 }

func (l *line) Limits(ctx context.Context, _ time.Duration, us []*state.Usage) error {
	l.calls.Add(1)
	d := time.Duration(l.after.Load())
	if d < 0 {
		return errors.New("gone")
	}
	select {
	case <-time.After(d):
	case <-ctx.Done():
		return ctx.Err()
	}
	for _, u := range us {
		u.Answer = state.Answer{Sum: u.Spent}
		for i := range u.Claims {
			u.Claims[i].Verdict = state.LetIn
		}
	}
	return nil
}

// bubble runs a gate that asks l, in a synctest bubble.
func bubble(t *testing.T, l *line, o Options, keys ...Key) *Gate {
	t.Helper()
	o.Shared = l
	g := New(o)
	g.Configure(keys, true)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return g
}

// TestRedisIsTriedUntilItIsInTime: one that was gone, and is slow when it comes back, is asked on, though nobody has anything to tell: requests that
// are refused meanwhile would never hear that it is back.
func TestRedisIsTriedUntilItIsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l line
		g := bubble(t, &l, Options{Strict: true}, Key{Name: "k", Hash: HashOf(goodKey), Budget: Budget{USDTotal: 1000}})
		if e := trySpend(t, g, goodKey, 0.01, time.Now()); e != nil {
			t.Fatal(e)
		}
		l.after.Store(-1)
		_ = trySpend(t, g, goodKey, 0.01, time.Now())
		<-time.After(2 * time.Second)
		if e := trySpend(t, g, goodKey, 0.01, time.Now()); e == nil || e.Code != "budget_unknown" {
			t.Fatalf("Redis is gone for 2 s: %v", e)
		}
		l.after.Store(int64(10 * state.Within))
		slow := l.calls.Load()
		<-time.After(time.Minute)
		if n := l.calls.Load() - slow; n < 10 || n > int64(time.Minute/awayAgain)+1 {
			t.Errorf("it was asked %d times in a minute in which it was slow: no less than %s is between two", n, awayAgain)
		}
		l.after.Store(0)
		<-time.After(time.Second)
		if e := trySpend(t, g, goodKey, 0.01, time.Now()); e != nil {
			t.Errorf("Redis answers at once again for 1 s: %v", e)
		}
		had := l.calls.Load()
		<-time.After(time.Minute)
		if n := l.calls.Load() - had; n > 100 {
			t.Errorf("it was asked %d times in a minute in which nobody came", n)
		}
	})
}

// TestGateEndsWhileRedisIsSlow tells what is left to be told once, and not until Redis is in time.
func TestGateEndsWhileRedisIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l line
		g := New(Options{Shared: &l})
		g.Configure([]Key{{Name: "k", Hash: HashOf(goodKey), Budget: Budget{USDTotal: 1000}}}, true)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = g.Run(ctx) }()
		l.after.Store(-1)
		_ = trySpend(t, g, goodKey, 0.01, time.Now())
		l.after.Store(int64(10 * state.Within))
		<-time.After(time.Second)
		_ = trySpend(t, g, goodKey, 0.01, time.Now())
		cancel()
		at, had := time.Now(), l.calls.Load()
		<-done
		if d, n := time.Since(at), l.calls.Load()-had; d > 40*state.Within || n > 3 {
			t.Errorf("it has ended after %s and %d calls of 50 ms", d, n)
		}
	})
}

// TestWhoWentIsNotAskedFor: a request that waited in vain, and was decided here, is told of as taken where it was let in. Asked for as well it would run
// twice for Redis, which would refuse another for it.
func TestWhoWentIsNotAskedFor(t *testing.T) {
	g := New(Options{Shared: &line{}})
	g.Configure([]Key{{Name: "k", Hash: HashOf(goodKey), Concurrency: 4, TPM: 1000}}, true)
	gr := enter(t, g, goodKey, time.Now())
	a := gr.acct
	a.mu.Lock()
	defer a.mu.Unlock()
	waits := &claim{tokens: 1}
	a.share.grant, a.running = gr, 1
	a.share.claims = []*claim{{tokens: 100, left: true, in: true}, {tokens: 10, left: true}, waits}
	got := a.begin(time.Now(), 2)
	if u := &a.share.usage; len(got) != 1 || got[0] != waits || len(u.Claims) != 1 || u.Claims[0].Tokens != 1 || u.Running != 1 || u.Requests != 1 || u.Tokens != 100 {
		t.Errorf("asked for %d, %+v, beside %d that run and %d of %d tokens that were taken", len(got), u.Claims, u.Running, u.Requests, u.Tokens)
	}
}
