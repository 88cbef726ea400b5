package queue

import (
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

// TestSlowHourIsForgotten: what was measured of a slow time is not held against those who come in a better one, though all of them come
// before it is stale, and those who are turned away measure nothing.
func TestSlowHourIsForgotten(t *testing.T) {
	for name, tc := range map[string]struct {
		soon time.Duration
		most int // refused
	}{
		"hosts tell":   {100 * time.Millisecond, 10},
		"nobody tells": {0, 500}, // one in five seconds shows it
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				soon := tc.soon
				s := newShop(t, 1, 1000)
				for range 20 { // one slot, ten seconds each
					a := Ask{Key: "A", By: later(time.Hour)}
					if soon > 0 {
						a.Soon = 10 * time.Second
					}
					s.send(a, 10*time.Second)
				}
				s.wg.Wait()
				s.served = nil
				for range 7200 {
					for range 2 {
						s.send(Ask{Key: "B", By: later(3 * time.Second), Soon: soon}, 100*time.Millisecond)
					}
					<-time.After(500 * time.Millisecond)
				}
				s.wg.Wait()
				t.Logf("%d served, %d refused, all of whom would have waited 100 ms of their 3 s", len(s.served), len(s.turned))
				if len(s.turned) > tc.most {
					t.Errorf("%d of %d refused for what was an hour ago", len(s.turned), len(s.turned)+len(s.served))
				}
			})
		})
	}
}

// TestAppoint tells those who are turned away to come again one after the other, as fast as they would be served, and not all at once.
func TestAppoint(t *testing.T) {
	now := time.Unix(1e9, 0)
	l := line{n: 1, drain: drain{served: 100, busy: 10, at: now, last: now}} // ten a second
	seen := map[time.Duration]int{}
	for i := range 300 {
		got := l.appoint("A", now, 2*time.Second)
		if want := 2*time.Second + time.Duration(i)*100*time.Millisecond; got != want {
			t.Fatalf("the %d. is told %v, want %v", i, got, want)
		}
		seen[got.Truncate(time.Second)]++
	}
	for at, n := range seen {
		if n > 10 {
			t.Errorf("%d of 300 are told to come after %v, who are served at ten a second", n, at)
		}
	}
	if got := l.appoint("A", now, 2*time.Second); got != 2*time.Second {
		t.Errorf("beyond half a minute it begins anew: %v", got)
	}
	if got := l.appoint("A", now.Add(time.Minute), 3*time.Second); got != 3*time.Second {
		t.Errorf("when all of them have come: %v", got)
	}
	if got := l.appoint("A", now.Add(time.Minute), 0); got != 0 {
		t.Errorf("where nobody knows: %v", got)
	}
	l = line{}
	if got := l.appoint("A", now, time.Second); got != time.Second {
		t.Errorf("where nothing was measured: %v", got)
	}
}

// TestAppointByKey has one key turned away two hundred times, since it does not wait: what others are told is what it was before. That of many keys
// one each is turned away brings them back one after the other nevertheless.
func TestAppointByKey(t *testing.T) {
	now := time.Unix(1e9, 0)
	const each, d = 100 * time.Millisecond, 2 * time.Second
	l := line{n: 1, drain: drain{served: 100, busy: 10, at: now, last: now}} // ten a second
	if got := l.appoint("B", now, d); got != d {
		t.Errorf("who is turned away alone is told %v", got)
	}
	for range 200 {
		l.appoint("A", now, d)
	}
	if got := l.appoint("B", now, d); got != d+2*each { // by turns with A's
		t.Errorf("B is told %v after 200 refusals of A", got)
	}
	if got := l.appoint("C", now, d); got != d+2*each {
		t.Errorf("C is told %v after 200 refusals of A", got)
	}
	if l.appoint("D", now.Add(time.Minute), d); len(l.told.keys) != 1 {
		t.Errorf("%d keys are remembered of which nobody is to come", len(l.told.keys))
	}

	l.told = appointed{}
	seen := map[time.Duration]int{}
	for i := range 300 {
		seen[l.appoint(strconv.Itoa(i), now, d).Truncate(time.Second)]++
	}
	for at, n := range seen {
		if n > 10 {
			t.Errorf("%d of 300 keys are told to come after %v, who are served at ten a second", n, at)
		}
	}
}
