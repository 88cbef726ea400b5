package queue

import (
	"sync"
	"sync/atomic"
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

// quiet stops the timer of a pool that is empty. The caller holds mu.
func (r *Room) quiet(p *pool) {
	if p.n == 0 && p.armed {
		p.timer.Stop()
		p.armed = false
	}
}

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
