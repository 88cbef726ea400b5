package queue

import (
	"slices"
	"time"
)

// Whose turn it is: one is called for what was given back, and says how it went before another one is. See order.go for who is next.

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
			w.retry = c.lines[w.line].appoint(w.ask.caller(), now, late)
			r.dismiss(w, Late)
			w.signal()
		}
	}
}

const (
	sweepEvery = 250 * time.Millisecond
	hopeless   = 2 // times the time that is left is what somebody has to be expected to wait who is told that it is in vain
)

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

// stir has the pool's lines try again, and probes them. The caller holds mu.
func (r *Room) stir(p *pool, probes bool) {
	p.stirred++
	p.blocked = 0
	p.probes.begin(probes)
	r.call(p)
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
