package queue

import (
	"net/netip"
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
		got := l.appoint(caller{key: "A"}, now, 2*time.Second)
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
	if got := l.appoint(caller{key: "A"}, now, 2*time.Second); got != 2*time.Second {
		t.Errorf("beyond half a minute it begins anew: %v", got)
	}
	if got := l.appoint(caller{key: "A"}, now.Add(time.Minute), 3*time.Second); got != 3*time.Second {
		t.Errorf("when all of them have come: %v", got)
	}
	if got := l.appoint(caller{key: "A"}, now.Add(time.Minute), 0); got != 0 {
		t.Errorf("where nobody knows: %v", got)
	}
	l = line{}
	if got := l.appoint(caller{key: "A"}, now, time.Second); got != time.Second {
		t.Errorf("where nothing was measured: %v", got)
	}
}

// TestAppointByKey has one key turned away two hundred times, since it does not wait: what others are told is what it was before. That of many keys
// one each is turned away brings them back one after the other nevertheless.
func TestAppointByKey(t *testing.T) {
	now := time.Unix(1e9, 0)
	const each, d = 100 * time.Millisecond, 2 * time.Second
	l := line{n: 1, drain: drain{served: 100, busy: 10, at: now, last: now}} // ten a second
	if got := l.appoint(caller{key: "B"}, now, d); got != d {
		t.Errorf("who is turned away alone is told %v", got)
	}
	for range 200 {
		l.appoint(caller{key: "A"}, now, d)
	}
	if got := l.appoint(caller{key: "B"}, now, d); got != d+2*each { // by turns with A's
		t.Errorf("B is told %v after 200 refusals of A", got)
	}
	if got := l.appoint(caller{key: "C"}, now, d); got != d+2*each {
		t.Errorf("C is told %v after 200 refusals of A", got)
	}
	if l.appoint(caller{key: "D"}, now.Add(time.Minute), d); len(l.told.callers) != 1 {
		t.Errorf("%d keys are remembered of which nobody is to come", len(l.told.callers))
	}

	l.told = appointed{}
	seen := map[time.Duration]int{}
	for i := range 300 {
		seen[l.appoint(caller{key: strconv.Itoa(i)}, now, d).Truncate(time.Second)]++
	}
	for at, n := range seen {
		if n > 10 {
			t.Errorf("%d of 300 keys are told to come after %v, who are served at ten a second", n, at)
		}
	}
}

// TestAppointByAddress: who has no key goes by his address, and so many addresses that they would take too much memory are one caller.
func TestAppointByAddress(t *testing.T) {
	now := time.Unix(1e9, 0)
	const each, d = 100 * time.Millisecond, 2 * time.Second
	from := func(n uint32) caller {
		return (&Ask{From: netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})}).caller()
	}
	l := line{n: 1, drain: drain{served: 100, busy: 10, at: now, last: now}} // ten a second
	for range 200 {
		l.appoint(from(1), now, d)
	}
	if got := l.appoint(from(2), now, d); got != d+each {
		t.Errorf("another address is told %v after 200 refusals of the first", got)
	}
	if a, b := (&Ask{Key: "A", From: netip.IPv6Loopback()}).caller(), (&Ask{Key: "A"}).caller(); a != b {
		t.Errorf("a key at two addresses is two callers: %v and %v", a, b)
	}
	for i := range uint32(2 * mostTold) {
		l.appoint(from(100+i), now, d)
	}
	if n := len(l.told.callers); n > mostTold+1 {
		t.Errorf("%d callers are remembered", n)
	}
}
