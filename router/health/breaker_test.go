package health_test

import (
	"testing"
	"testing/synctest"
	"time"

	"headrace/router/health"
)

func fail(t *testing.T, b *health.Breaker, times int) {
	t.Helper()
	for range times {
		tk, ok := b.Allow()
		if !ok {
			t.Fatal("shut before its time")
		}
		tk.Failed()
	}
}

func TestBreaker(t *testing.T) {
	for name, tc := range map[string]func(*testing.T, *health.Breaker){
		"opens on failures in a row": func(t *testing.T, b *health.Breaker) {
			fail(t, b, 3)
			if _, ok := b.Allow(); ok || b.State(time.Now()) != "open" || b.Opens() != 1 {
				t.Errorf("state %s after three failures", b.State(time.Now()))
			}
		},
		"a success between begins anew": func(t *testing.T, b *health.Breaker) {
			for range 5 {
				fail(t, b, 2)
				tk, _ := b.Allow()
				tk.Succeeded()
			}
			if b.State(time.Now()) != "closed" {
				t.Errorf("state %s", b.State(time.Now()))
			}
		},
		"what says nothing counts nothing": func(t *testing.T, b *health.Breaker) {
			fail(t, b, 2)
			tk, _ := b.Allow()
			tk.Release()
			fail(t, b, 1)
			if b.State(time.Now()) != "open" {
				t.Errorf("state %s: the release broke the row", b.State(time.Now()))
			}
		},
		"streams that begin well and break off open it": func(t *testing.T, b *health.Breaker) {
			var tks []health.Ticket
			for range 3 {
				tk, _ := b.Allow()
				tk.Succeeded()
				tks = append(tks, tk)
			}
			for i := range tks {
				tks[i].Failed()
			}
			if b.State(time.Now()) != "open" {
				t.Errorf("state %s", b.State(time.Now()))
			}
		},
		"streams that break off one after another open it": func(t *testing.T, b *health.Breaker) {
			for range 3 {
				tk, _ := b.Allow()
				tk.Succeeded()
				tk.Failed()
			}
			if b.State(time.Now()) != "open" || b.Opens() != 1 {
				t.Errorf("state %s, opened %d times", b.State(time.Now()), b.Opens())
			}
		},
		"a completed one between begins anew": func(t *testing.T, b *health.Breaker) {
			for range 5 {
				for range 2 {
					tk, _ := b.Allow()
					tk.Succeeded()
					tk.Failed()
				}
				tk, _ := b.Allow()
				tk.Succeeded()
				tk.Completed()
			}
			if b.State(time.Now()) != "closed" {
				t.Errorf("state %s", b.State(time.Now()))
			}
		},
		"heals by one trial": func(t *testing.T, b *health.Breaker) {
			fail(t, b, 3)
			d, why := b.Wait(time.Now())
			if d <= 0 || d > 10*time.Second || why == "" {
				t.Errorf("wait %v, %q", d, why)
			}
			<-time.After(10*time.Second + 1) // by the bubble's clock
			trial, ok := b.Allow()
			if !ok {
				t.Fatal("no trial after its time")
			}
			if _, second := b.Allow(); second {
				t.Error("a second trial beside the first")
			}
			trial.Succeeded()
			if b.State(time.Now()) != "closed" {
				t.Errorf("state %s", b.State(time.Now()))
			}
			fail(t, b, 2)
			if b.State(time.Now()) != "closed" {
				t.Error("failures from before it opened still count")
			}
		},
		"a failed trial opens it again": func(t *testing.T, b *health.Breaker) {
			fail(t, b, 3)
			<-time.After(10*time.Second + 1) // by the bubble's clock
			trial, _ := b.Allow()
			trial.Failed()
			if _, ok := b.Allow(); ok || b.Opens() != 2 {
				t.Errorf("state %s, opened %d times", b.State(time.Now()), b.Opens())
			}
		},
		"a released trial leaves room for another": func(t *testing.T, b *health.Breaker) {
			fail(t, b, 3)
			<-time.After(10*time.Second + 1) // by the bubble's clock
			trial, _ := b.Allow()
			trial.Release()
			if _, ok := b.Allow(); !ok {
				t.Error("shut for good by a trial that said nothing")
			}
		},
		"late results do not disturb a trial": func(t *testing.T, b *health.Breaker) {
			early, _ := b.Allow()
			lateFail, _ := b.Allow()
			fail(t, b, 3)
			<-time.After(10*time.Second + 1) // by the bubble's clock
			trial, ok := b.Allow()
			if !ok {
				t.Fatal("no trial")
			}
			early.Succeeded()
			lateFail.Failed()
			trial.Succeeded()
			if b.State(time.Now()) != "closed" {
				t.Errorf("state %s", b.State(time.Now()))
			}
		},
		"opens at once when nobody is there, for longer each time": func(t *testing.T, b *health.Breaker) {
			for i, want := range []time.Duration{2, 4, 8, 16, 32, 60, 60} {
				tk, ok := b.Allow()
				if !ok {
					t.Fatalf("trial %d was not let in", i)
				}
				tk.Gone()
				if d, _ := b.Wait(time.Now()); d != want*time.Second {
					t.Errorf("after %d times it stays open for %v, want %v s", i+1, d, int(want))
				}
				<-time.After(want*time.Second + 1) // by the bubble's clock
			}
			tk, _ := b.Allow()
			tk.Succeeded()
			tk.Completed()
			tk, _ = b.Allow()
			tk.Gone()
			if d, _ := b.Wait(time.Now()); d != 2*time.Second {
				t.Errorf("after a good answer it stays open for %v", d)
			}
		},
		"goes by its own clock": func(t *testing.T, _ *health.Breaker) {
			now := time.Unix(1e9, 0)
			b := health.NewBreaker("x", health.Options{Failures: 1, OpenFor: time.Hour}, func() time.Time { return now })
			fail(t, b, 1)
			<-time.After(2 * time.Hour) // by the bubble's clock, which is not its own
			if _, ok := b.Allow(); ok || b.State(now) != "open" {
				t.Error("another clock's hour has closed it")
			}
			now = now.Add(time.Hour)
			if _, ok := b.Allow(); !ok {
				t.Error("its own clock's hour has not")
			}
		},
		"cools down for as long as asked": func(t *testing.T, b *health.Breaker) {
			b.CoolDown(time.Now().Add(5*time.Second), "rate limited")
			if d, why := b.Wait(time.Now()); d != 5*time.Second || why != "rate limited" || b.State(time.Now()) != "cooling" {
				t.Errorf("wait %v, %q, %s", d, why, b.State(time.Now()))
			}
			<-time.After(5 * time.Second) // by the bubble's clock
			if d, _ := b.Wait(time.Now()); d != 0 {
				t.Errorf("still %v after its time", d)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tc(t, health.NewBreaker("x", health.Options{Failures: 3, OpenFor: 10 * time.Second}, time.Now))
			})
		})
	}
}

func TestHealthyPathAllocatesNothing(t *testing.T) {
	b := health.NewBreaker("x", health.Options{}, time.Now)
	if n := testing.AllocsPerRun(100, func() {
		tk, _ := b.Allow()
		tk.Succeeded()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A shorter cool-down that comes later, of a request that was under way, does not end a longer one.
func TestCoolDownsDoNotShorten(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	b := health.NewBreaker("a", health.Options{}, func() time.Time { return now })
	b.CoolDown(now.Add(time.Minute), "credentials refused")
	b.CoolDown(now.Add(time.Second), "rate limited")
	if d, why := b.Wait(now); d != time.Minute || why != "credentials refused" {
		t.Errorf("%v, %s", d, why)
	}
	b.CoolDown(now.Add(time.Hour), "rate limited")
	if d, why := b.Wait(now); d != time.Hour || why != "rate limited" {
		t.Errorf("%v, %s", d, why)
	}
}
