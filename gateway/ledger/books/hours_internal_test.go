package books

import (
	"math"
	"testing"
	"time"
	"unsafe"

	"headrace/gateway/ledger"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// hired is a host at a dollar a second.
func hired(s endpoint.State) []endpoint.Endpoint {
	return []endpoint.Endpoint{{ID: "vast:1", Provider: "vast", State: s, Price: endpoint.Price{Basis: endpoint.PerHour, USDPerHour: 3600}}}
}

// set is t of a wall's clock that was set by d since t's process began, or whose machine slept for d.
func set(t time.Time, d time.Duration) time.Time {
	type readings struct { // as time.Time has them
		wall uint64
		ext  int64
		loc  *time.Location
	}
	u := t.Add(d)
	(*readings)(unsafe.Pointer(&u)).ext = (*readings)(unsafe.Pointer(&t)).ext //nolint:gosec // there is no other way to have two clocks
	return u
}

// A machine that slept, or a clock that was set, has hosts booked for the time that the process has seen.
func TestWallClockSteps(t *testing.T) {
	for _, step := range []time.Duration{8 * time.Hour, time.Minute, time.Second, -time.Second, -time.Minute, -8 * time.Hour} {
		now := time.Now() // with both readings, which clocks of tests have not
		began := now
		var a accountant
		a.init(func() time.Time { return now })
		a.follow(hired(endpoint.Ready))
		now = began.Add(10 * time.Second)
		hs := a.take(now)
		now = set(began.Add(20*time.Second), step)
		if d, wall := now.Sub(began), now.Round(0).Sub(began.Round(0)); d != 20*time.Second || wall != d+step {
			t.Fatalf("the test's own clocks: %v and %v", d, wall)
		}
		hs = append(hs, a.take(now)...)
		now = set(began.Add(30*time.Second), step)
		hs = append(hs, a.take(now)...)
		if usd, _, _ := booked(hs); math.Abs(usd-30) > 1e-6 {
			t.Errorf("30 s across a step of %v: $%v, want $30", step, usd)
		}
		usd, known := a.between("vast:1", began, now)
		if long := step.Abs() > stepped; known == long && step > 0 || known && math.Abs(usd-30) > 1e-6 {
			t.Errorf("a bill across a step of %v: $%v, %v", step, usd, known)
		}
	}
}

func booked(hs []HostHour) (usd, up float64, starts int64) {
	for _, h := range hs {
		usd += h.USD
		up += h.Up
		starts += h.Starts
	}
	return usd, up, starts
}

// What is given back for a lost host is given back by the hours in which it was booked, also when the host is gone from the list, or another
// provider's hosts have changed meanwhile.
func TestRefunds(t *testing.T) {
	for _, tc := range []struct {
		name string
		tell func(b *Books)
	}{
		{"stopped", func(b *Books) { b.Follow(hired(endpoint.Preempted)) }},
		{"gone", func(b *Books) { b.Follow(nil) }},
	} {
		now := time.Date(2026, 11, 28, 10, 59, 0, 0, time.UTC)
		b := New(Options{Flush: time.Second, Now: func() time.Time { return now }})
		b.Follow(hired(endpoint.Ready))
		now = now.Add(50 * time.Second)
		b.Lost("vast:1")
		now = now.Add(5 * time.Second)
		b.Follow(hired(endpoint.Ready)) // its own provider was not asked
		now = now.Add(2 * time.Minute)
		tc.tell(b)
		hs := b.hours.take(now)
		for _, h := range hs {
			if h.USD < -1e-9 || h.Up < -1e-9 {
				t.Errorf("%s: the hour of %v has $%v and %v s", tc.name, time.Unix(h.Hour, 0).UTC(), h.USD, h.Up)
			}
		}
		if usd, up, _ := booked(hs); math.Abs(usd-50) > 1e-9 || math.Abs(up-50) > 1e-9 {
			t.Errorf("%s: $%v for %v s, want $50 for 50 s", tc.name, usd, up)
		}
	}
}

// TestAnswersAfterALoss has a host answer after attempts found nobody there: what is given back when it is gone is what came after the last answer.
func TestAnswersAfterALoss(t *testing.T) {
	for name, at := range map[string]struct {
		ended time.Duration
		class outcome.Class
		want  float64 // seconds that are paid for
	}{
		"an answer":              {80 * time.Second, outcome.Success, 80},
		"one of before":          {40 * time.Second, outcome.Success, 50},
		"one that broke off":     {80 * time.Second, outcome.Truncated, 50},
		"one at the last moment": {100 * time.Second, outcome.Success, 100},
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Date(2026, 11, 28, 10, 59, 0, 0, time.UTC)
			now := began
			b := New(Options{Flush: time.Second, Now: func() time.Time { return now }})
			b.Follow(hired(endpoint.Ready))
			now = began.Add(50 * time.Second)
			b.Lost("vast:1")
			now = began.Add(100 * time.Second)
			b.Record(&ledger.Record{ID: "a", At: began, Duration: at.ended, Class: at.class, Attempts: []ledger.Attempt{
				{Endpoint: "vast:1", Provider: "vast", Class: at.class, After: 10 * time.Second, Duration: at.ended - 10*time.Second},
			}})
			now = began.Add(110 * time.Second)
			b.Follow(hired(endpoint.Preempted))
			for _, until := range []time.Duration{30, 50, 80, 100, 110} {
				until *= time.Second
				if usd, known := b.Between("vast:1", began, began.Add(until)); !known || math.Abs(usd-min(at.want, until.Seconds())) > 1e-6 {
					t.Errorf("$%v within %v, %t, want $%v", usd, until, known, min(at.want, until.Seconds()))
				}
			}
			if usd, up, _ := booked(b.hours.take(now)); math.Abs(usd-at.want) > 1e-6 || math.Abs(up-at.want) > 1e-6 {
				t.Errorf("$%v for %v s, want %v", usd, up, at.want)
			}
		})
	}
}

// A poll that does not list an endpoint books no starts of the workers that it had.
func TestFlapsStartNothing(t *testing.T) {
	now := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
	var a accountant
	a.init(func() time.Time { return now })
	ep := endpoint.Endpoint{ID: "r:1", Provider: "runpod", State: endpoint.Ready, Workers: 3}
	ep.Price = endpoint.Price{Basis: endpoint.PerWorkerSecond, USDPerWorkerSecond: 0.001, ColdStart: time.Minute, IdleTimeout: 5 * time.Second}
	for range 10 {
		a.follow([]endpoint.Endpoint{ep})
		now = now.Add(10 * time.Second)
		a.follow(nil)
		now = now.Add(10 * time.Second)
	}
	if usd, _, starts := booked(a.take(now)); starts != 0 || math.Abs(usd-0.3) > 1e-9 {
		t.Errorf("%d starts, $%v, want none and $0.30 of the time that it was there", starts, usd)
	}
	now = now.Add(time.Hour)
	a.follow([]endpoint.Endpoint{ep})
	if _, _, starts := booked(a.take(now)); starts != 3 {
		t.Errorf("%d starts after an hour away, want 3", starts)
	}
}
