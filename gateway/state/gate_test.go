package state

import (
	"context"
	"errors"
	"math"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
)

func ping(ctx context.Context, c redis.UniversalClient) error { return c.Ping(ctx).Err() }

// TestCall has requests wait for a Redis that hangs once, and for a short while, not one after another; they use it again when it is back.
func TestCall(t *testing.T) {
	s := startRedis(t)
	r := s.run()
	for range 5 {
		if err := r.Call(t.Context(), patience, ping); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Call(t.Context(), patience, func(ctx context.Context, c redis.UniversalClient) error { return c.Get(ctx, "none").Err() }); !errors.Is(err, redis.Nil) {
		t.Errorf("what is not there: %v", err)
	}
	wrong := r.Call(t.Context(), patience, func(ctx context.Context, c redis.UniversalClient) error { return c.Do(ctx, "NOSUCH").Err() })
	if wrong == nil || errors.Is(wrong, ErrAway) {
		t.Errorf("a command that there is not: %v", wrong)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Call(gone, patience, ping); !errors.Is(err, context.Canceled) || errors.Is(err, ErrAway) {
		t.Errorf("of a caller who has left: %v", err)
	}
	if n := r.Stats().Missed; n != 0 || !r.gate.open() {
		t.Errorf("%d missed, open %t", n, r.gate.open())
	}

	s.Signal(syscall.SIGSTOP)
	defer s.Signal(syscall.SIGCONT)
	began := time.Now()
	if err := r.Call(t.Context(), Within, ping); !errors.Is(err, ErrAway) {
		t.Errorf("while it hangs: %v", err)
	}
	first := time.Since(began)
	const calls = 10000
	began = time.Now()
	waited := 0
	for range calls { // longer than the gate is shut by one of them
		if err := r.Call(t.Context(), Within, ping); !errors.Is(err, ErrAway) {
			t.Fatalf("while it hangs: %v", err)
		} else if err != ErrAway { //nolint:errorlint // it waited
			waited++
		}
	}
	took := time.Since(began)
	t.Logf("the first call waited %s, of %d others %d did; all together %s", first, calls, waited, took)
	// It is shut for 100 ms, then for 200, 400 and so on.
	if most := 2 + int(math.Log2(1+took.Seconds()/0.1)); waited > most {
		t.Errorf("%d of %d calls waited for a Redis that hangs, want %d at most in %s", waited, calls, most, took)
	}
	if n := r.Stats().Missed; n != calls+1 {
		t.Errorf("%d missed, want %d", n, calls+1)
	}
	s.Signal(syscall.SIGCONT)
	await(t, "its use", func() bool { return r.Call(t.Context(), time.Second, ping) == nil })
	if n := testing.AllocsPerRun(100, func() {
		r.gate.slow()
		if err := r.Call(t.Context(), Within, ping); err != ErrAway { //nolint:errorlint // itself
			t.Errorf("a shut gate: %v", err)
		}
	}); n > 1 { // t.Context
		t.Errorf("a call that is not made allocates %g times", n)
	}
}

// TestGate shuts for longer each time that it was opened in vain, and for as little as before after a while of peace.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate{began: time.Now()}
		shut := func() time.Duration {
			from := time.Now()
			for !g.open() {
				<-time.After(time.Millisecond)
			}
			return time.Since(from)
		}
		for _, want := range []time.Duration{100, 200, 400, 800, 1600, 3200, 5000, 5000} {
			g.slow()
			g.slow() // another that was under way
			if got := shut(); got != want*time.Millisecond {
				t.Errorf("shut for %s, want %s", got, want*time.Millisecond)
			}
		}
		<-time.After(awayAgain)
		g.slow()
		g.stay(500 * time.Millisecond)
		if got := shut(); got != 500*time.Millisecond {
			t.Errorf("shut for %s", got)
		}
		g.stay(time.Minute)
		if !g.open() {
			t.Error("stayed shut, which it was not")
		}
	})
}
