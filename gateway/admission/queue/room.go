package queue

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Room is where requests wait. It has no goroutine of its own: those who wait block in Wait.
type Room struct {
	opt     Options
	waiting atomic.Int64 // how many; written under mu. All that a request reads while nobody waits

	mu     sync.Mutex // guards all below, and pools and waiters
	limits Limits
	bytes  int64 // that those who wait hold
	pools  map[string]*pool
	closed bool
}

// Waiter is one request that waits. Its goroutine owns it, but for Cancel.
type Waiter struct {
	ask  Ask
	came time.Time
	wake chan struct{} // of one
	gone atomic.Bool

	// Guarded by Room.mu.
	state      state
	away       bool   // not in Wait
	line       uint8  // in pool.lines
	probe      bool   // it was called out of turn: see probe.go
	apart      bool   // likewise
	again      uint64 // pool.stirred from which on it may be called again
	probed     uint64 // pool.stirred when it was called out of turn last
	called     uint64 // pool.stirred when it was called
	atOnce     bool   // it was called when it came
	due        bool   // it was called before others whose work does not wait so long
	why        Why
	retry      time.Duration
	pool       *pool
	flow       *flow
	prev, next *Waiter // in flow
}

// state is where a waiter is.
type state uint8

const (
	standing state = iota
	called         // it has the turn
	let            // its gate has let it in: it waits no more
	out
)

// New returns a room in which nobody can wait before Configure.
func New(o Options) *Room {
	if o.Now == nil {
		panic("BUG: queue.New without a clock")
	}
	return &Room{opt: o, pools: map[string]*pool{}}
}

// Configure sets the limits. Who waits already is not turned away by a smaller size.
func (r *Room) Configure(l Limits) {
	if !(l.BatchShare > 0 && l.BatchShare < 1) { //nolint:staticcheck // NaN as well
		l.BatchShare = defaultBatchShare
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.limits = l
}

const defaultBatchShare = 0.1

// Gate has the pool's first let in by take, which takes a slot if there is one: such a waiter's Turn is its slot already. take
// must not block, or call the room. Call it before anybody waits there.
func (r *Room) Gate(name string, take func() bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pool(name).gate = take
}

// Waiting is how many wait.
func (r *Room) Waiting() int { return int(r.waiting.Load()) }

// Behind tells whether a request has to queue because others of its kind wait already, who came first.
func (r *Room) Behind(name string, kind uint64, pr Priority) bool {
	return r.waiting.Load() > 0 && r.behind(name, kind, pr)
}

func (r *Room) behind(name string, kind uint64, pr Priority) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pools[name]
	if p == nil || p.n == 0 {
		return false
	}
	line, ok := p.lines.find(kind)
	if !ok {
		return false
	}
	for i := range pr + 1 {
		if p.classes[i].lines[line].there > 0 {
			return true
		}
	}
	return false
}

// pool returns the one of that name. The caller holds mu.
func (r *Room) pool(name string) *pool {
	p := r.pools[name]
	if p == nil {
		if len(r.pools) >= manyPools {
			for n, o := range r.pools {
				if o.n == 0 && o.gate == nil {
					delete(r.pools, n)
				}
			}
		}
		p = &pool{name: name}
		r.pools[name] = p
	}
	return p
}

const manyPools = 1000 // of which those that are empty need not be remembered

// Enter has a request wait, who is to call Wait next. why is Waits then; else w is nil, and retry says when it would be worth
// while to come again, 0 where nobody knows.
func (r *Room) Enter(a *Ask) (w *Waiter, why Why, retry time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return nil, Drained, 0
	case r.limits.Size <= 0:
		return nil, Off, 0
	}
	now := r.opt.Now()
	w = &Waiter{ask: *a, came: now, wake: make(chan struct{}, 1)}
	if !(w.ask.Weight > 0) { //nolint:staticcheck // NaN as well
		w.ask.Weight = 1
	}
	if !(w.ask.Tokens > 1) { //nolint:staticcheck // likewise
		w.ask.Tokens = 1
	}
	p := r.pool(a.Pool)
	c := &p.classes[a.Priority]
	w.line = p.line(a.Kind)
	l := &c.lines[w.line]
	l.pass(now)
	if a.Soon > 0 || l.n == 0 {
		l.drain.soon = a.Soon
	}
	retry = c.expect(w)
	if l.n == 0 { // it would be the first: hosts know of now, and what was measured is of before
		switch {
		case a.Soon > 0:
			retry = min(retry, a.Soon)
		case now.Sub(l.drain.last) > drainProbe:
			retry = 0 // nobody knows any more, and nobody will if none waits
		}
	}
	switch {
	case !now.Add(retry / l.drain.doubt()).Before(a.By):
		return nil, Late, retry
	case !r.fits(w, p):
		return nil, Full, retry
	}
	w.pool = p
	r.bytes += w.ask.Bytes
	p.add(w)
	r.waiting.Add(1) // before it tries: what is given back from now on is seen
	w.atOnce = true
	if r.call(p); w.state == standing {
		w.atOnce = false
	}
	return w, Waits, 0
}

// expect is when w is served, about, where it stands, or behind all of its key's where it does not yet; 0 where nobody knows.
func (c *class) expect(w *Waiter) time.Duration {
	each, ok := c.lines[w.line].drain.each()
	if !ok {
		return 0
	}
	f, mine := w.flow, 0
	if f != nil {
		mine = w.place()
	} else if f = c.flows[w.ask.Key]; f != nil {
		mine = f.lines[w.line]
	}
	return time.Duration(c.ahead(w.line, f, w.ask.Weight, mine)+1) * each
}

// fits tells whether there is room for w, if need be after others were turned away for it. The caller holds mu.
func (r *Room) fits(w *Waiter, in *pool) bool {
	l := &r.limits
	if l.Bytes > 0 && w.ask.Bytes > l.Bytes {
		return false
	}
	for {
		bytes := l.Bytes > 0 && r.bytes+w.ask.Bytes > l.Bytes
		switch {
		case !bytes && r.waiting.Load() < int64(l.Size):
			return true
		case !r.makeRoom(w, in, bytes):
			return false
		}
	}
}

// makeRoom turns somebody away for w: the newest of whoever has most of the room for his weight, of those whose work waits longest.
// false where that is w's own key. The caller holds mu.
func (r *Room) makeRoom(w *Waiter, in *pool, bytes bool) bool {
	for pr := NumPriorities; pr > w.ask.Priority; {
		pr--
		var from *pool
		var longest *flow
		for _, p := range r.pools {
			if f := p.classes[pr].longest(bytes); f != nil && f.longer(longest, bytes) {
				from, longest = p, f
			}
		}
		if longest == nil || longest.takes(bytes) == 0 {
			continue
		}
		if pr == w.ask.Priority {
			own := 1.0
			if bytes {
				own = float64(w.ask.Bytes)
			}
			if f := in.classes[pr].flows[w.ask.Key]; f != nil {
				own += f.takes(bytes)
			}
			if own*longest.weight >= longest.takes(bytes)*w.ask.Weight {
				return false
			}
		}
		v := longest.spare()
		v.retry = from.classes[pr].expect(v)
		r.dismiss(v, Full)
		v.signal()
		return true
	}
	return false
}

// Wait blocks until w is called, or need not wait any more, or the given time has come, which is Pause. Somebody who is not in
// Wait is not called.
func (r *Room) Wait(w *Waiter, until time.Time) Call {
	var timer *time.Timer
	for {
		c, next := r.look(w, until)
		if next.IsZero() {
			if timer != nil {
				timer.Stop()
			}
			return c
		}
		d := next.Sub(r.opt.Now())
		if timer == nil {
			timer = time.NewTimer(d)
		} else {
			timer.Reset(d)
		}
		select {
		case <-w.wake:
		case <-timer.C:
		}
	}
}

// look tells what Wait has to come back with, or when to look again if nothing happens until then.
func (r *Room) look(w *Waiter, until time.Time) (c Call, next time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.opt.Now()
	switch {
	case w.state == let:
		return Turn, time.Time{}
	case w.state == out:
		return Refused, time.Time{}
	case w.gone.Load():
		r.dismiss(w, Gone)
		return Refused, time.Time{}
	case w.state == called:
		return Turn, time.Time{}
	case !now.Before(w.ask.By):
		cl := &w.pool.classes[w.ask.Priority]
		cl.lines[w.line].pass(now)
		w.retry = cl.expect(w)
		r.dismiss(w, Expired)
		return Refused, time.Time{}
	case !now.Before(until):
		w.step(true)
		return Pause, time.Time{}
	}
	if w.away {
		w.step(false)
		if r.call(w.pool); w.state == called || w.state == let {
			return Turn, time.Time{}
		}
	}
	if next = w.ask.By; until.Before(next) {
		next = until
	}
	return 0, next
}

// step says whether w is in Wait. The caller holds Room.mu.
func (w *Waiter) step(away bool) {
	if w.away == away {
		return
	}
	w.away = away
	if w.apart {
		return
	}
	if there := &w.pool.classes[w.ask.Priority].lines[w.line].there; away {
		*there--
	} else {
		*there++
	}
}

// dismiss ends w's waiting. The caller holds mu.
func (r *Room) dismiss(w *Waiter, why Why) {
	p := w.pool
	c := &p.classes[w.ask.Priority]
	c.lines[w.line].pass(r.opt.Now())
	p.remove(w)
	r.bytes -= w.ask.Bytes
	w.state, w.why = out, why
	r.waiting.Add(-1)
	if p.turn == w {
		p.turn = nil
		r.call(p)
	}
	r.quiet(p)
}

// quiet stops the timer of a pool that is empty. The caller holds mu.
func (r *Room) quiet(p *pool) {
	if p.n == 0 && p.armed {
		p.timer.Stop()
		p.armed = false
	}
}

// call calls whoever is next, if nobody is called and somebody may find room. The caller holds mu.
func (r *Room) call(p *pool) {
	for p.turn == nil {
		w := p.best()
		if w == nil {
			return
		}
		if p.gate == nil {
			p.turn = w
			w.state, w.called, w.due = called, p.stirred, p.before(w)
			w.signal()
			return
		}
		if !p.gate() {
			p.blocked = ^uint64(0)
			return
		}
		r.serve(w)
		w.state = let
		w.signal()
	}
}

func (w *Waiter) signal() {
	select {
	case w.wake <- struct{}{}:
	default: // it has yet to look
	}
}

// serve takes w out as one that was served. The caller holds mu.
func (r *Room) serve(w *Waiter) {
	p := w.pool
	c := &p.classes[w.ask.Priority]
	c.lines[w.line].pass(r.opt.Now())
	if w.probe {
		p.found(w)
	}
	if !w.atOnce && !w.apart { // else there was room when it came, which says nothing of how fast there will be
		c.lines[w.line].drain.served++
	}
	p.charge(w, &r.limits)
	p.remove(w)
	r.bytes -= w.ask.Bytes
	r.waiting.Add(-1)
	r.sweep(c)
	r.quiet(p)
}

// sweep turns those away who stand last of their keys' and would have their turn too late, by what is known now. The caller holds mu.
func (r *Room) sweep(c *class) {
	now := r.opt.Now()
	if now.Sub(c.swept) < sweepEvery {
		return
	}
	c.swept = now
	for _, f := range slices.Clone(c.list) {
		for w := f.spare(); w != nil; w = f.spare() {
			late := c.expect(w)
			if c.lines[w.line].drain.doubt() > 1 || !now.Add(late/hopeless).After(w.ask.By) {
				break
			}
			w.retry = late
			r.dismiss(w, Late)
			w.signal()
		}
	}
}

const (
	sweepEvery = 250 * time.Millisecond
	hopeless   = 2 // times the time that is left is what somebody has to be expected to wait who is told that it is in vain
)

// Served says that w, who had been called, has found room, and calls the next one. tokens are as in Ask, by what is known now: others may
// have been answered meanwhile; 0 leaves them. After a Gate's Turn it does nothing.
func (r *Room) Served(w *Waiter, tokens float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w.state != called {
		return
	}
	if tokens > 0 {
		w.ask.Tokens = max(1, tokens)
	}
	p := w.pool
	r.serve(w)
	w.state, p.turn = out, nil
	r.call(p)
}

// Stay says that w, who had been called, has found no room and waits on in its place; call Wait next. soon is as in Ask.
func (r *Room) Stay(w *Waiter, soon time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w.state != called {
		return
	}
	p := w.pool
	w.state, p.turn, w.atOnce, w.probe = standing, nil, false, false
	if soon > 0 && !w.apart {
		p.classes[w.ask.Priority].lines[w.line].drain.soon = soon
	}
	if w.called == p.stirred { // else something was given back meanwhile: once more
		p.missed(w)
	}
	r.call(p)
	r.arm(p)
}

// arm has the pool looked at again in a while. The caller holds mu.
func (r *Room) arm(p *pool) {
	if r.opt.Look <= 0 || p.armed || p.n == 0 {
		return
	}
	p.armed = true
	if p.timer == nil {
		p.timer = time.AfterFunc(r.opt.Look, func() { r.tick(p) })
		return
	}
	p.timer.Reset(r.opt.Look)
}

// tick stirs a pool for no reason but that time has passed.
func (r *Room) tick(p *pool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.armed = false; p.n > 0 {
		r.stir(p, true)
		r.arm(p)
	}
}

// stir has the pool's lines try again, and probes them. The caller holds mu.
func (r *Room) stir(p *pool, probes bool) {
	p.stirred++
	p.blocked = 0
	p.probes.begin(probes)
	r.call(p)
}

// Freed says that something was given back that the pools can use; without a name all of them.
func (r *Room) Freed(names ...string) {
	if r.waiting.Load() == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(names) == 0 {
		for _, p := range r.pools {
			if p.n > 0 {
				r.stir(p, false)
			}
		}
		return
	}
	for _, name := range names {
		if p := r.pools[name]; p != nil && p.n > 0 {
			r.stir(p, false)
		}
	}
}

// Leave ends w's waiting for why, unless it has ended: yes tells whether it had been let in by a gate, so that a slot is to be given
// back. It may be called at any time by w's goroutine.
func (r *Room) Leave(w *Waiter, why Why) (yes bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch w.state {
	case standing, called:
		r.dismiss(w, why)
	case let:
		return true
	case out:
	}
	return false
}

// Cancel says that w's caller has left. It may be called by any goroutine and at any time, and does not block.
func (w *Waiter) Cancel() {
	w.gone.Store(true)
	w.signal()
}

// Refusal is why w waits no more, after Refused, and when it would be worth while to come again, 0 where nobody knows.
func (w *Waiter) Refusal() (why Why, retry time.Duration) { return w.why, w.retry }

// Due tells, after Turn, that w was called though others wait whose work does not wait so long: it is due its share.
func (w *Waiter) Due() bool { return w.due }

// Came is since when it has waited.
func (w *Waiter) Came() time.Time { return w.came }

// Drain ends all waiting: the gateway shuts down.
func (r *Room) Drain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for _, p := range r.pools {
		p.turn = nil // whoever was called says so to nobody
		for i := range p.classes {
			for _, f := range append([]*flow(nil), p.classes[i].list...) {
				for w := f.first; w != nil; w = f.first {
					r.dismiss(w, Drained)
					w.signal()
				}
			}
		}
	}
}

// Lengths is who waits now, by pool and priority; those with nobody are left out.
func (r *Room) Lengths() []Length {
	if r.waiting.Load() == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.opt.Now()
	var out []Length
	for _, p := range r.pools {
		for i := range p.classes {
			c := &p.classes[i]
			if c.n == 0 {
				continue
			}
			l := Length{Pool: p.name, Priority: Priority(i), Waiting: c.n} //nolint:gosec // two of them
			for _, f := range c.list {
				if f.first != nil {
					l.Oldest = max(l.Oldest, now.Sub(f.first.came))
				}
			}
			out = append(out, l)
		}
	}
	return out
}
