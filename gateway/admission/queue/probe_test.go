package queue

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// counter is a place where those of some keys never find room and all others do, while it has slots.
type counter struct {
	t    *testing.T
	room *Room
	odd  func(*Ask) bool // asks for what nobody can give

	mu    sync.Mutex // guards tries, and is held while somebody is told
	tries int        // of the odd
}

func newCounter(t *testing.T, look time.Duration, odd func(*Ask) bool) *counter {
	t.Helper()
	c := &counter{t: t, room: New(Options{Now: time.Now, Look: look}), odd: odd}
	c.room.Configure(Limits{Size: 1000, BatchShare: 0.1})
	return c
}

// stand has a request wait until it is served, or its time is over; then what is called.
func (c *counter) stand(a Ask, slot func() bool, then func(why Why)) {
	w, why, _ := c.room.Enter(&a)
	tell := func(why Why) {
		c.mu.Lock()
		defer c.mu.Unlock()
		then(why)
	}
	if w == nil {
		tell(why)
		return
	}
	go func() {
		for {
			switch c.room.Wait(w, time.Now().Add(time.Hour)) {
			case Turn:
				if c.odd(&a) {
					c.mu.Lock()
					c.tries++
					c.mu.Unlock()
				} else if slot() {
					c.room.Served(w, 0)
					tell(Waits)
					return
				}
				c.room.Stay(w, a.Soon)
			case Refused:
				why, _ := w.Refusal()
				tell(why)
				return
			case Pause:
			}
		}
	}()
}

// TestOneWhoCannotBePleased has requests wait, of one kind, for what nobody can give; others come behind them for whom there is room.
func TestOneWhoCannotBePleased(t *testing.T) {
	for name, tc := range map[string]struct {
		odd  int
		key  func(i int) string
		most time.Duration // that the first of the others waits
	}{
		"one":                     {1, func(int) string { return "odd" }, 100 * time.Millisecond},
		"one of the same key":     {1, func(int) string { return "key" }, 100 * time.Millisecond},
		"sixty of one key":        {60, func(int) string { return "odd" }, 200 * time.Millisecond},
		"sixty of sixty keys":     {60, func(i int) string { return fmt.Sprint("odd ", i) }, 200 * time.Millisecond},
		"sixty of the same key":   {60, func(int) string { return "key" }, 200 * time.Millisecond},
		"hundreds, known by then": {500, func(int) string { return "odd" }, 200 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCounter(t, 100*time.Millisecond, func(a *Ask) bool { return a.Tokens == 99 })
				for i := range tc.odd {
					c.stand(Ask{Pool: "m", Kind: 1, Key: tc.key(i), Tokens: 99, By: later(50 * time.Second)}, nil, func(Why) {})
				}
				<-time.After(time.Second)
				came := time.Now()
				var first, last time.Duration
				n := 0
				for range 40 {
					c.stand(Ask{Pool: "m", Kind: 1, Key: "key", By: later(40 * time.Second)}, func() bool { return true }, func(why Why) {
						if last = time.Since(came); n == 0 {
							first = last
						}
						if n++; why != Waits {
							t.Errorf("one of the others was refused: %v", why)
						}
					})
				}
				synctest.Wait()
				<-time.After(20 * time.Second)
				c.mu.Lock()
				t.Logf("%d of 40 others were served, after %v to %v; %d tries of %d who cannot be pleased in %v", n, first, last, c.tries, tc.odd, time.Since(came))
				if n < 40 || first > tc.most {
					t.Errorf("%d of 40 others were served, the first after %v", n, first)
				}
				if tc.odd == 1 && c.room.Behind("m", 1, Interactive) {
					t.Error("who comes stands behind one who cannot be pleased")
				}
				if most := 300 * max(5, 5*tc.odd); c.tries > most { // ten looks a second for 21 seconds, and one for each that is served
					t.Errorf("%d tries in vain", c.tries)
				}
				c.mu.Unlock()
				c.room.Drain()
				synctest.Wait()
			})
		})
	}
}

// TestFullIsStillOneTry: where there is room for nobody, looking has few try, and none stands apart for it.
func TestFullIsStillOneTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCounter(t, 100*time.Millisecond, func(a *Ask) bool { return true })
		for i := range 100 {
			c.stand(Ask{Pool: "m", Kind: 1, Key: fmt.Sprint(i % 7), By: later(time.Hour)}, nil, func(Why) {})
		}
		<-time.After(10*time.Second + time.Millisecond)
		c.mu.Lock()
		if c.tries > 100*mostProbes+1 || c.tries < 100 {
			t.Errorf("%d tries in a hundred looks", c.tries)
		}
		c.mu.Unlock()
		if p := c.room.pools["m"]; p.classes[Interactive].apart != 0 {
			t.Errorf("%d stand apart", p.classes[Interactive].apart)
		}
		c.room.Drain()
		synctest.Wait()
	})
}

// TestKindsAreExact: kinds share no line while there are lines left, and those who share one do not hold each other up for long.
func TestKindsAreExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCounter(t, 100*time.Millisecond, func(a *Ask) bool { return a.Kind < 1000 })
		for i := range uint64(200) {
			if c.room.Behind("m", i, Interactive) && i < Lines-1 {
				t.Errorf("kind %d is behind others", i)
			}
			c.stand(Ask{Pool: "m", Kind: i, Key: "odd", By: later(time.Minute)}, nil, func(Why) {})
		}
		<-time.After(time.Second)
		came, served := time.Now(), time.Duration(-1)
		c.stand(Ask{Pool: "m", Kind: 1000, Key: "key", By: later(time.Minute)}, func() bool { return true }, func(Why) { served = time.Since(came) })
		<-time.After(10 * time.Second)
		c.mu.Lock()
		t.Logf("served after %v, behind 200 of 200 kinds", served)
		if served < 0 || served > 200*time.Millisecond {
			t.Errorf("served after %v", served)
		}
		c.mu.Unlock()
		c.room.Drain()
		synctest.Wait()
		if p := c.room.pools["m"]; p.lines.users != [Lines]int{} {
			t.Errorf("lines of nobody: %v", p.lines.users)
		}
	})
}

// TestOthersAreMeasuredApart has one wait for minutes for what nobody can give, of a kind of its own, while others come in bursts that
// are served at once: how long it waits must not count as how slow they are.
func TestOthersAreMeasuredApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, 2, 1000)
		for range 10 { // ten minutes
			w, why, _ := s.room.Enter(&Ask{Pool: s.pool, Kind: 7, Key: "odd", By: later(time.Minute)})
			if why != Waits {
				t.Fatal(why)
			}
			go func() {
				for {
					switch s.room.Wait(w, later(time.Hour)) {
					case Turn:
						s.room.Stay(w, 0)
					case Refused:
						return
					case Pause:
					}
				}
			}()
			for range 6 {
				for range 20 { // a second's worth
					s.send(Ask{Key: "key", By: later(3 * time.Second), Soon: 100 * time.Millisecond}, 100*time.Millisecond)
				}
				<-time.After(9999 * time.Millisecond)
			}
			<-time.After(time.Second)
		}
		s.wg.Wait()
		t.Logf("%d served, %d refused, all of whom would have waited a second of their three", len(s.served), len(s.turned))
		if len(s.turned) > 60 { // before it is seen that the odd one waits for something else
			t.Errorf("%d of 1200 refused for how long another one waits", len(s.turned))
		}
	})
}

// recount compares what a room counts with who stands in it.
func (r *Room) recount(t *testing.T) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.pools {
		users := [Lines]int{}
		for i := range p.classes {
			c := &p.classes[i]
			apart := 0
			var n, there [Lines]int
			for _, f := range c.list {
				fApart, lines := 0, [Lines]int{}
				for w := f.first; w != nil; w = w.next {
					users[w.line]++
					if w.apart {
						fApart++
						continue
					}
					n[w.line]++
					lines[w.line]++
					if !w.away {
						there[w.line]++
					}
				}
				if f.apart != fApart || f.lines != lines {
					t.Fatalf("key %s: %d apart and %v by line, of %d and %v", f.key, f.apart, f.lines, fApart, lines)
				}
				apart += fApart
			}
			if c.apart != apart {
				t.Fatalf("%d apart, of %d", c.apart, apart)
			}
			for l := range c.lines {
				if c.lines[l].n != n[l] || c.lines[l].there != there[l] {
					t.Fatalf("line %d: %d wait and %d are there, of %d and %d", l, c.lines[l].n, c.lines[l].there, n[l], there[l])
				}
			}
		}
		if p.lines.users != users {
			t.Fatalf("lines of %v, of %v", p.lines.users, users)
		}
	}
}

// TestRandomlyOdd mixes requests that cannot be pleased with others, of the same kinds and keys, who come and leave at random: the
// others are all served, and what is counted is right at every step.
func TestRandomlyOdd(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 7))
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			c := newCounter(t, 100*time.Millisecond, func(a *Ask) bool { return a.Tokens == 99 })
			free := 1 + rng.IntN(4) // under c.mu
			kinds := uint64(1 + rng.IntN(50))
			ended := map[Why]int{} // of the others
			others := 0
			for range 200 {
				a := Ask{Pool: "m", Kind: rng.Uint64N(kinds), Key: fmt.Sprint(rng.IntN(4)), Priority: Priority(rng.IntN(2)), Tokens: float64(1 + rng.IntN(90)), By: later(time.Hour)}
				work := time.Duration(1 + rng.Int64N(int64(50*time.Millisecond)))
				if odd := rng.IntN(4) == 0; odd {
					a.Tokens, a.By = 99, later(time.Duration(rng.Int64N(int64(5*time.Second))))
					c.stand(a, nil, func(Why) {})
				} else {
					others++
					c.stand(a, func() bool {
						c.mu.Lock()
						defer c.mu.Unlock()
						if free == 0 {
							return false
						}
						free--
						return true
					}, func(why Why) {
						if ended[why]++; why == Waits {
							time.AfterFunc(work, func() {
								c.mu.Lock()
								free++
								c.mu.Unlock()
								c.room.Freed("m")
							})
						}
					})
				}
				synctest.Wait()
				c.room.recount(t)
				<-time.After(time.Duration(rng.Int64N(int64(30 * time.Millisecond))))
			}
			<-time.After(time.Minute)
			synctest.Wait()
			c.room.recount(t)
			if ended[Waits] != others || c.room.Waiting() != 0 {
				t.Errorf("of %d others %v, and %d wait", others, ended, c.room.Waiting())
			}
		})
	}
}
