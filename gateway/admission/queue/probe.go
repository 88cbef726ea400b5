package queue

// Where the first of a line finds no room, the others would not either, as a rule: so it alone tries for all, and they wait behind it.
// Somebody who asks for more than the others of his line, or for what nobody can give, must not hold them up for that. So from time to
// time, when the first has tried in vain, a few others of the line do as well, those first who did so longest ago. If one of them finds
// room, those of the line who found none stand apart from then on: they keep their turn, and block nobody.

// probes is what is known of the lines since the pool was stirred.
type probes struct {
	on     bool
	lines  uint64 // a bit for each of which the first tried in vain, and others may
	misses [NumPriorities][Lines]uint8
	n      uint64 // probes, ever
}

const (
	mostProbes = 4 // of a line, with its first
	apartTries = 4 // of a key's that stand apart, each time that the pool is stirred
)

func (s *probes) begin(on bool) { *s = probes{on: on, n: s.n} }

// missed says that w has tried in vain.
func (p *pool) missed(w *Waiter) {
	w.again = p.stirred + 1
	if w.apart {
		f := w.flow
		w.again = p.stirred + uint64((f.apart+apartTries-1)/apartTries) //nolint:gosec // above 0: they take turns
		if f.round != p.stirred {
			f.round, f.tries = p.stirred, 0
		}
		f.tries++
		return
	}
	n := &p.probes.misses[w.ask.Priority][w.line]
	if *n++; p.probes.on && *n < mostProbes {
		p.probes.lines |= w.bit()
		return
	}
	p.probes.lines &^= w.bit()
	p.blocked |= w.bit()
}

// spent tells whether enough of the key's who stand apart have tried.
func (f *flow) spent(round uint64) bool { return f.round == round && f.tries >= apartTries }

// probe is who is to try next out of turn, nil for nobody.
func (p *pool) probe() *Waiter {
	if p.probes.lines == 0 {
		return nil
	}
	p.probes.n++
	newest := p.probes.n%2 == 0 // else a thousand who stand there already would all be asked first
	var best *Waiter
	for i := range p.classes {
		c := &p.classes[i]
		mask := uint32(p.probes.lines >> (uint(i) * Lines)) //nolint:gosec // the class's bits
		if mask == 0 {
			continue
		}
		for _, f := range c.list {
			for w := f.first; w != nil; w = w.next {
				if !w.away && !w.apart && w.again <= p.stirred && mask&(1<<uint(w.line)) != 0 && w.probedBefore(best, newest) {
					best = w
				}
			}
		}
		if best != nil {
			break
		}
	}
	if best != nil {
		best.probe, best.probed, best.flow.probed = true, p.stirred, p.stirred
	}
	return best
}

// probedBefore tells whether it is w's turn to try before o's: whose key did so longest ago, then who did himself, then the oldest or the newest.
func (w *Waiter) probedBefore(o *Waiter, newest bool) bool {
	switch {
	case o == nil:
		return true
	case w.flow.probed != o.flow.probed:
		return w.flow.probed < o.flow.probed
	case w.probed != o.probed:
		return w.probed < o.probed
	case newest:
		return w.came.After(o.came)
	default:
		return w.came.Before(o.came)
	}
}

// found says that w, who was called out of turn, has found room: those of its line who tried in vain just before ask for more.
func (p *pool) found(w *Waiter) {
	c := &p.classes[w.ask.Priority]
	c.setApart(func(o *Waiter) bool { return o != w && o.line == w.line && o.again == p.stirred+1 })
	w.probe, w.flow.probed = false, 0 // the key's next is asked first
	p.probes.lines &^= w.bit()        // whoever is next in turn tries
	p.probes.misses[w.ask.Priority][w.line] = 0
}

// setApart has those stand apart who do not yet. How long they wait says nothing of the others.
func (c *class) setApart(who func(*Waiter) bool) {
	for _, f := range c.list {
		for w := f.first; w != nil; w = w.next {
			if w.apart || !who(w) {
				continue
			}
			l := &c.lines[w.line]
			if !w.away {
				l.there--
			}
			w.apart = true
			l.n--
			c.apart++
			f.apart++
			f.lines[w.line]--
		}
	}
}
