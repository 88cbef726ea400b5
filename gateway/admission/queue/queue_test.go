package queue

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// shop is somebody with a number of slots, and requests that come to it through a room. It lives in a synctest bubble.
type shop struct {
	t    *testing.T
	room *Room
	pool string

	mu     sync.Mutex // guards all below
	free   int
	served []visit
	turned []visit
	tries  int // in vain
	wg     sync.WaitGroup
}

// visit is a request that is over, as far as the room goes.
type visit struct {
	ask   Ask
	came  time.Time
	at    time.Time // when it found a slot, or was turned away
	why   Why
	retry time.Duration
}

func newShop(t *testing.T, slots, size int) *shop {
	t.Helper()
	s := &shop{t: t, room: New(Options{Now: time.Now}), pool: "m", free: slots}
	s.room.Configure(Limits{Size: size, BatchShare: 0.1})
	return s
}

// try takes a slot.
func (s *shop) try() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.free == 0 {
		s.tries++
		return false
	}
	s.free--
	return true
}

func (s *shop) give() {
	s.mu.Lock()
	s.free++
	s.mu.Unlock()
	s.room.Freed(s.pool)
}

// send has a request come that keeps a slot for work.
func (s *shop) send(a Ask, work time.Duration) {
	s.wg.Go(func() {
		v := s.visit(a)
		s.mu.Lock()
		if v.why == Waits {
			s.served = append(s.served, v)
		} else {
			s.turned = append(s.turned, v)
		}
		s.mu.Unlock()
		if v.why == Waits {
			<-time.After(work)
			s.give()
		}
	})
}

func (s *shop) visit(a Ask) (v visit) {
	a.Pool = s.pool
	v = visit{ask: a, came: time.Now()}
	defer func() { v.at = time.Now() }()
	if !s.room.Behind(s.pool, a.Kind, a.Priority) && s.try() {
		return v
	}
	w, why, retry := s.room.Enter(&a)
	if w == nil {
		v.why, v.retry = why, retry
		return v
	}
	for {
		switch s.room.Wait(w, time.Now().Add(time.Hour)) {
		case Turn:
			if s.try() {
				s.room.Served(w, 0)
				return v
			}
			s.room.Stay(w, a.Soon)
		case Refused:
			v.why, v.retry = w.Refusal()
			return v
		case Pause:
		}
	}
}

func later(d time.Duration) time.Time { return time.Now().Add(d) }

// TestFairToKeys has a key flood the room with a thousand requests and another one come behind it with ten.
func TestFairToKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, 4, 2000)
		for range 1000 {
			s.send(Ask{Key: "A", By: later(time.Hour)}, 100*time.Millisecond)
		}
		<-time.After(time.Second)
		from := time.Now()
		for range 10 {
			s.send(Ask{Key: "B", By: later(time.Hour)}, 100*time.Millisecond)
		}
		s.wg.Wait()
		var last time.Time
		a, b := 0, 0
		for _, v := range s.served {
			if v.ask.Key == "B" {
				b++
				last = v.at
			}
		}
		for _, v := range s.served {
			if v.ask.Key == "A" && !v.at.Before(from) && !v.at.After(last) {
				a++
			}
		}
		t.Logf("B's ten had slots within %v, while A got %d; in order of arrival they would have waited %v", last.Sub(from), a, 25*time.Second-time.Second)
		if b != 10 || last.Sub(from) > 600*time.Millisecond || a > 14 {
			t.Errorf("%d of B's requests were served, within %v, and %d of A's meanwhile: half and half was due", b, last.Sub(from), a)
		}
	})
}

// TestFairByTokensAndWeight holds the shares of tokens of keys that always have somebody waiting to their weights, whatever their requests'
// size is.
func TestFairByTokensAndWeight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, 1, 5000)
		keys := map[string]Ask{
			"small": {Weight: 1, Tokens: 100}, "large": {Weight: 1, Tokens: 1000}, "heavy": {Weight: 3, Tokens: 100},
		}
		for key, a := range keys {
			a.Key, a.By = key, later(24*time.Hour)
			for range 1500 {
				s.send(a, time.Second)
			}
		}
		got, all := map[string]float64{}, 0.0
		<-time.After(1000 * time.Second)
		s.mu.Lock()
		for _, v := range s.served {
			got[v.ask.Key] += v.ask.Tokens
			all += v.ask.Tokens
		}
		s.mu.Unlock()
		for key, want := range map[string]float64{"small": 0.2, "large": 0.2, "heavy": 0.6} {
			if share := got[key] / all; share < want-0.02 || share > want+0.02 {
				t.Errorf("%s has %.3f of the tokens, want %.1f", key, share, want)
			}
		}
		s.room.Drain()
		s.wg.Wait()
	})
}

// TestPriorities has people and machines wait for the same slots: the machines get their share, and no more, and are never starved.
func TestPriorities(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, 1, 5000)
		for range 200 {
			s.send(Ask{Key: "job", Priority: Batch, By: later(24 * time.Hour)}, time.Second)
		}
		for range 900 {
			s.send(Ask{Key: "people", By: later(24 * time.Hour)}, time.Second)
		}
		<-time.After(500 * time.Second)
		s.mu.Lock()
		n := map[Priority]int{}
		longest, was := 0, 0
		for i, v := range s.served {
			if n[v.ask.Priority]++; v.ask.Priority == Batch {
				longest, was = max(longest, i-was), i
			}
		}
		s.mu.Unlock()
		t.Logf("%d interactive, %d batch; at most %d between two of them", n[Interactive], n[Batch], longest)
		if n[Batch] < 45 || n[Batch] > 55 || longest > 11 {
			t.Errorf("batch got %d of %d, at most %d apart: want a tenth, evenly", n[Batch], len(s.served), longest)
		}
		s.room.Drain()
		s.wg.Wait()
	})
}

// TestLateAreToldAtOnce: who could not be served in time does not wait to find that out.
func TestLateAreToldAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, 2, 1000)
		for range 200 { // ten a second
			s.send(Ask{Key: "A", By: later(time.Hour), Soon: 100 * time.Millisecond}, 200*time.Millisecond)
		}
		<-time.After(5 * time.Second) // 150 are left, or 15 seconds' worth
		for _, c := range []struct {
			within time.Duration
			late   bool
		}{{5 * time.Second, true}, {10 * time.Second, true}, {25 * time.Second, false}} {
			a := Ask{Pool: s.pool, Key: "A", By: later(c.within)}
			w, why, retry := s.room.Enter(&a)
			if c.late != (why == Late) {
				t.Errorf("within %v: %v", c.within, why)
			}
			if why == Late && (retry < 10*time.Second || retry > 20*time.Second) {
				t.Errorf("within %v: come again in %v, want about 15s", c.within, retry)
			}
			if w != nil {
				s.room.Leave(w, Gone)
			}
		}
		// Of another key it is the turn soon.
		w, why, retry := s.room.Enter(&Ask{Pool: s.pool, Key: "B", By: later(time.Second)})
		if w == nil {
			t.Fatalf("a key of which nobody waits is told %v, %v", why, retry)
		}
		s.room.Leave(w, Gone)
		s.room.Drain()
		s.wg.Wait()
	})
}

// TestHopelessAreToldEarly: who came when nothing was known is told as soon as it is that he waits in vain, and not at the end.
func TestHopelessAreToldEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, 1, 1000)
		for range 301 { // one a second
			s.send(Ask{Key: "A", By: later(50 * time.Second)}, time.Second)
		}
		<-time.After(15 * time.Second)
		s.mu.Lock()
		early, served := len(s.turned), len(s.served)
		s.mu.Unlock()
		if early < 180 || early > 240 { // some 70 may hope to be served within twice the time that is left
			t.Errorf("%d of 300 were told within 15s", early)
		}
		s.wg.Wait()
		late := map[Why]int{}
		for _, v := range s.turned {
			late[v.why]++
		}
		t.Logf("%d served, %d within 15s; turned away: %v", len(s.served), served, late)
		if len(s.served) < 49 {
			t.Errorf("%d were served within 50s", len(s.served))
		}
	})
}

// TestDue tells whether batch work is called because of its share, or because nobody else can be.
func TestDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Options{Now: time.Now})
		r.Configure(Limits{Size: 10, BatchShare: 0.5})
		enter := func(p Priority) *Waiter {
			w, _, _ := r.Enter(&Ask{Pool: "m", Priority: p, By: later(time.Hour)})
			return w
		}
		people, jobs := [3]*Waiter{}, [3]*Waiter{}
		for i := range people {
			people[i], jobs[i] = enter(Interactive), enter(Batch)
		}
		turn := func(w *Waiter, due bool) {
			t.Helper()
			if c := r.Wait(w, later(time.Millisecond)); c != Turn || w.Due() != due {
				t.Fatalf("call %d, due %v, want a turn, due %v", c, w.Due(), due)
			}
		}
		turn(people[0], false)
		r.Served(people[0], 0)
		turn(jobs[0], true)
		r.Served(jobs[0], 0)
		turn(people[1], false)
		r.Stay(people[1], 0)
		turn(jobs[1], false) // people have found nothing
		r.Stay(jobs[1], 0)
		r.Freed("m")
		turn(people[1], false)
	})
}

// TestRetryAfterIsHonest compares what those who are turned away are told with when those are served who stood last when they came.
func TestRetryAfterIsHonest(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test's
		for _, slots := range []int{1, 4, 20} {
			for _, depth := range []int{5, 100, 400} {
				s := newShop(t, slots, depth)
				// Answers of all lengths, about 2 s each: it empties at slots/2 a second.
				work := func() time.Duration { return time.Duration(rng.ExpFloat64() * float64(2*time.Second)) }
				soon := 2 * time.Second / time.Duration(slots)
				var told time.Duration
				for range 8 { // they come as fast as they are served, and some are turned away
					<-time.After(time.Duration(depth) * soon / 4)
					for s.room.Waiting() < depth {
						s.send(Ask{Key: "A", By: later(24 * time.Hour), Soon: soon}, work())
						synctest.Wait()
					}
					_, why, retry := s.room.Enter(&Ask{Pool: s.pool, Key: "A", By: later(24 * time.Hour), Soon: soon})
					if why != Full {
						t.Fatalf("%d slots, %d waiting: %v", slots, depth, why)
					}
					told = retry
				}
				from := time.Now()
				s.wg.Wait()
				really := slices.MaxFunc(s.served, func(a, b visit) int { return a.at.Compare(b.at) }).at.Sub(from)
				t.Logf("%2d slots, %3d waiting: told %v, and the last had a slot after %v", slots, depth, told.Round(time.Millisecond), really.Round(time.Millisecond))
				if depth < 100 { // too few for the mean to be what happens
					continue
				}
				if told > 2*really || really > 2*told {
					t.Errorf("%d slots, %d waiting: told %v, and the last had a slot after %v", slots, depth, told, really)
				}
			}
		}
	})
}

// TestRoomIsShared: a full room turns away the newest of whoever fills it, and not those of others.
func TestRoomIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, 0, 10)
		enter := func(key string, pr Priority) (*Waiter, Why) {
			w, why, _ := s.room.Enter(&Ask{Pool: s.pool, Key: key, Priority: pr, By: later(time.Hour)})
			return w, why
		}
		var jobs, as []*Waiter
		for range 4 {
			w, _ := enter("job", Batch)
			jobs = append(jobs, w)
		}
		s.room.Stay(jobs[0], 0) // it was called, for there might have been a slot
		for range 6 {
			w, _ := enter("A", Interactive)
			as = append(as, w)
		}
		if w, why := enter("job", Batch); w != nil || why != Full {
			t.Errorf("an eleventh: %v", why)
		}
		turnedAway := func(w *Waiter, what string) {
			t.Helper()
			if c := s.room.Wait(w, later(time.Second)); c != Refused {
				t.Fatalf("%s still waits", what)
			}
			if why, _ := w.Refusal(); why != Full {
				t.Errorf("%s: %v", what, why)
			}
		}
		for i := range 4 { // somebody watches: the jobs give way, the newest first
			if _, why := enter("B", Interactive); why != Waits {
				t.Fatalf("B's %d: %v", i, why)
			}
			turnedAway(jobs[3-i], fmt.Sprintf("job %d", 3-i))
		}
		if _, why := enter("B", Interactive); why != Waits { // four of ten are B's
			t.Errorf("B's fifth: %v", why)
		}
		turnedAway(as[5], "A's newest")
		if _, why := enter("B", Interactive); why != Full {
			t.Errorf("B's sixth: %v, as many are A's", why)
		}
		if n := s.room.Waiting(); n != 10 {
			t.Errorf("%d wait", n)
		}
		if l := s.room.Lengths(); len(l) != 1 || l[0].Waiting != 10 || l[0].Priority != Interactive {
			t.Errorf("lengths: %+v", l)
		}
	})
}

// TestRoomIsBoundedInBytes has large requests give way to small ones, as far as that makes room.
func TestRoomIsBoundedInBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Options{Now: time.Now})
		r.Configure(Limits{Size: 100, Bytes: 1000})
		enter := func(key string, bytes int64) Why {
			_, why, _ := r.Enter(&Ask{Pool: "m", Key: key, Bytes: bytes, By: later(time.Hour)})
			return why
		}
		for range 10 {
			if why := enter("A", 100); why != Waits {
				t.Fatal(why)
			}
		}
		for _, c := range []struct {
			key   string
			bytes int64
			why   Why
			n     int // that wait then
		}{
			{"A", 1, Full, 10},    // its own are there
			{"B", 1001, Full, 10}, // nobody gives way in vain
			{"B", 250, Waits, 8},
			{"B", 150, Waits, 8}, // 50 are left of what was freed
			{"C", 0, Waits, 9},
		} {
			if why := enter(c.key, c.bytes); why != c.why || r.Waiting() != c.n {
				t.Errorf("%s with %d bytes: %v, and %d wait, want %v and %d", c.key, c.bytes, why, r.Waiting(), c.why, c.n)
			}
		}
		r.Drain()
		if r.bytes != 0 {
			t.Errorf("%d bytes are left", r.bytes)
		}
	})
}

// TestOneIsWoken counts how often somebody tries in vain: once, not once for each who waits.
func TestOneIsWoken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, 3, 1000)
		for i := range 500 {
			s.send(Ask{Key: fmt.Sprint(i % 7), By: later(time.Hour)}, time.Duration(1+i%3)*time.Second)
		}
		s.wg.Wait()
		t.Logf("500 requests, %d tries in vain", s.tries)
		if s.tries > 2*500+10 { // one before it waits, and one for each slot that was given back
			t.Errorf("%d tries in vain for 500 requests", s.tries)
		}
	})
}

// TestLinesDoNotBlockEachOther: where the first of the line finds nothing that suits it, another one may.
func TestLinesDoNotBlockEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Options{Now: time.Now})
		r.Configure(Limits{Size: 10})
		enter := func(line uint64) *Waiter {
			w, _, _ := r.Enter(&Ask{Pool: "m", Kind: line, By: later(time.Hour)})
			return w
		}
		first, second, other := enter(1), enter(1), enter(2)
		at := func(w *Waiter, want Call) {
			t.Helper()
			if c := r.Wait(w, later(time.Millisecond)); c != want {
				t.Fatalf("call %d, want %d", c, want)
			}
		}
		at(first, Turn)
		at(second, Pause)
		at(other, Pause)
		r.Stay(first, 0)
		at(other, Turn)
		r.Stay(other, 0)
		at(second, Pause)
		at(first, Pause)
		// Whoever is not there is not called, and is when it comes back.
		r.Freed("m")
		at(other, Turn)
		r.Stay(other, 0)
		at(other, Pause)
		at(first, Turn)
		r.Served(first, 0)
		at(second, Turn)
		r.Freed("m") // meanwhile
		r.Stay(second, 0)
		at(second, Turn)
		second.Cancel()
		at(second, Refused)
		if why, _ := second.Refusal(); why != Gone {
			t.Errorf("refused for %v", why)
		}
		at(other, Turn)
		r.Stay(other, 0)
		r.Leave(other, Gone)
		r.Freed("m") // which nobody hears
		other = enter(2)
		at(other, Turn)
		r.Drain()
		r.Stay(other, 0)
		at(other, Refused)
		if _, why, _ := r.Enter(&Ask{Pool: "m", By: later(time.Hour)}); why != Drained {
			t.Errorf("enters a closed room: %v", why)
		}
	})
}

// TestGate has the door count: nobody passes beyond its number, and nobody waits while there is room.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Options{Now: time.Now})
		r.Configure(Limits{Size: 100})
		inside := 0 // under the room's lock, but for the end
		r.Gate(Door, func() bool {
			if inside == 3 {
				return false
			}
			inside++
			return true
		})
		var wg sync.WaitGroup
		passed := 0
		var mu sync.Mutex
		for range 50 {
			wg.Go(func() {
				w, why, _ := r.Enter(&Ask{Pool: Door, By: later(time.Hour)})
				if why != Waits {
					t.Errorf("turned away: %v", why)
					return
				}
				if c := r.Wait(w, later(time.Hour)); c != Turn {
					t.Errorf("call %d", c)
				}
				<-time.After(time.Second)
				mu.Lock()
				passed++
				mu.Unlock()
				if !r.Leave(w, Gone) {
					t.Error("had no slot")
				}
				r.mu.Lock()
				inside--
				r.mu.Unlock()
				r.Freed(Door)
			})
		}
		begin := time.Now()
		wg.Wait()
		if took := time.Since(begin); passed != 50 || took != 17*time.Second {
			t.Errorf("%d passed within %v, want 50 within 17s", passed, took)
		}
	})
}

// TestNoLostWakeUp holds random histories to the rule: when all is quiet, nobody waits who could be served.
func TestNoLostWakeUp(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for i := range uint64(100) {
		synctest.Test(t, func(t *testing.T) { randomHistory(t, rand.New(rand.NewPCG(seed, i))) }) //nolint:gosec // a test's
		if t.Failed() {
			t.Fatalf("in history %d", i)
		}
	}
}

// hosts are what a random history's requests look for: each kind of host takes some lines.
type hosts struct {
	mu   sync.Mutex // guards all below
	free []int
	down []bool
}

// suits tells whether host h takes requests of the line.
func (*hosts) suits(h int, line uint64) bool { return (h+int(line))%3 != 0 }

func (hs *hosts) take(line uint64) int {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	for h := range hs.free {
		if hs.suits(h, line) && !hs.down[h] && hs.free[h] > 0 {
			hs.free[h]--
			return h
		}
	}
	return -1
}

func (hs *hosts) room(line uint64) bool {
	h := hs.take(line)
	if h >= 0 {
		hs.give(h)
	}
	return h >= 0
}

func (hs *hosts) give(h int) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	hs.free[h]++
}

func (hs *hosts) toggle(h int) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	hs.down[h] = !hs.down[h]
}

// tries tells whether somebody has been called and has not said how it went.
func (r *Room) tries(pool string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pools[pool].turn != nil
}

func randomHistory(t *testing.T, rng *rand.Rand) {
	r := New(Options{Now: time.Now})
	r.Configure(Limits{Size: 30 + rng.IntN(100), BatchShare: 0.2})
	hs := &hosts{free: []int{rng.IntN(3), rng.IntN(3), rng.IntN(3)}, down: make([]bool, 3)}
	var mu sync.Mutex // guards all below
	var wg sync.WaitGroup
	away, ended := map[*Waiter]bool{}, map[Why]int{}
	waiting := map[*Waiter]uint64{}
	request := func(a Ask, work, pause, leaves, dawdle time.Duration) { // dawdle is between two steps, when anything may happen
		defer wg.Done()
		end := func(why Why) {
			mu.Lock()
			ended[why]++
			mu.Unlock()
		}
		serve := func(h int) {
			end(Waits)
			<-time.After(work)
			hs.give(h)
			r.Freed(a.Pool)
		}
		if !r.Behind(a.Pool, a.Kind, a.Priority) {
			if h := hs.take(a.Kind); h >= 0 {
				serve(h)
				return
			}
			<-time.After(dawdle)
		}
		w, why, _ := r.Enter(&a)
		if w == nil {
			end(why)
			return
		}
		mu.Lock()
		waiting[w] = a.Kind
		mu.Unlock()
		if leaves > 0 {
			timer := time.AfterFunc(leaves, w.Cancel)
			defer timer.Stop()
		}
		over := func() {
			mu.Lock()
			delete(waiting, w)
			mu.Unlock()
		}
		for {
			switch r.Wait(w, time.Now().Add(pause)) {
			case Turn:
				h := hs.take(a.Kind)
				<-time.After(dawdle)
				if h < 0 {
					r.Stay(w, 0)
					continue
				}
				r.Served(w, 0)
				over()
				serve(h)
				return
			case Pause: // writes a comment, which takes a while
				mu.Lock()
				away[w] = true
				mu.Unlock()
				<-time.After(pause / 3)
				mu.Lock()
				delete(away, w)
				mu.Unlock()
			case Refused:
				why, _ := w.Refusal()
				end(why)
				over()
				return
			}
		}
	}
	check := func() {
		t.Helper()
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		for w, line := range waiting {
			if !away[w] && hs.room(line) && !r.tries("m") {
				t.Errorf("a request of line %d waits, and there is room for it", line)
			}
		}
	}
	n, gap := 300, int64(20*time.Millisecond)<<rng.IntN(5) // from a rush to hardly anybody
	for range n {
		<-time.After(time.Duration(rng.Int64N(gap)))
		check()
		if rng.IntN(20) == 0 { // a host is lost, or comes back
			hs.toggle(rng.IntN(3))
			r.Freed()
		}
		a := Ask{
			Pool: "m", Kind: uint64(rng.IntN(3)), Priority: Priority(rng.IntN(2)), Key: fmt.Sprint(rng.IntN(5)), Tokens: float64(1 + rng.IntN(1000)),
			By: time.Now().Add(time.Duration(rng.Int64N(int64(time.Second) << rng.IntN(5)))), Soon: time.Duration(rng.Int64N(int64(50 * time.Millisecond))),
		}
		leaves := time.Duration(0)
		if rng.IntN(3) == 0 {
			leaves = time.Duration(1 + rng.Int64N(int64(5*time.Second)))
		}
		wg.Add(1)
		dawdle := time.Duration(rng.IntN(2)) * time.Duration(rng.Int64N(int64(30*time.Millisecond)))
		go request(a, time.Duration(1+rng.Int64N(int64(200*time.Millisecond))), time.Duration(1+rng.Int64N(int64(3*time.Second))), leaves, dawdle)
		check()
	}
	hs.mu.Lock()
	hs.free, hs.down = []int{1, 1, 1}, make([]bool, 3) // so that all can end
	hs.mu.Unlock()
	r.Freed()
	wg.Wait()
	all := 0
	for _, k := range ended {
		all += k
	}
	if all != n || r.Waiting() != 0 {
		t.Errorf("%d requests ended %v, and %d wait", all, ended, r.Waiting())
	}
}

// TestNobodyWaitsCostsNothing guards what every request pays.
func TestNobodyWaitsCostsNothing(t *testing.T) {
	r := New(Options{Now: time.Now})
	r.Configure(Limits{Size: 100})
	names := []string{"m"}
	if n := testing.AllocsPerRun(100, func() {
		if r.Behind("m", 3, Batch) {
			t.Fatal("behind nobody")
		}
		r.Freed(names...)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if !raceEnabled {
		if ns := testing.Benchmark(BenchmarkNobodyWaits).NsPerOp(); ns > 100 {
			t.Errorf("%d ns", ns)
		}
	}
}

func BenchmarkNobodyWaits(b *testing.B) {
	r := New(Options{Now: time.Now})
	r.Configure(Limits{Size: 100})
	names := []string{"m"}
	b.ReportAllocs()
	for b.Loop() {
		if r.Behind("m", 3, Interactive) {
			b.Fatal("behind nobody")
		}
		r.Freed(names...)
	}
}

// BenchmarkThousandWait is what it takes to serve one of a thousand of a hundred keys, with another one in its place.
func BenchmarkThousandWait(b *testing.B) {
	r := New(Options{Now: time.Now})
	r.Configure(Limits{Size: 2000})
	keys := make([]string, 100)
	for i := range keys {
		keys[i] = fmt.Sprint("key ", i)
	}
	at := 0
	enter := func() {
		if _, why, _ := r.Enter(&Ask{Pool: "m", Key: keys[at%100], Tokens: float64(100 + at%7), By: later(time.Hour)}); why != Waits {
			b.Fatal(why)
		}
		at++
	}
	for range 1000 {
		enter()
	}
	b.ReportAllocs()
	for b.Loop() {
		r.Freed("m")
		r.Served(r.pools["m"].turn, 0)
		enter()
	}
}
