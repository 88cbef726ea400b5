package queue

import "time"

// Who comes: whether he has to wait behind others, whether he may, and who gives way to him.

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
		return nil, Late, l.appoint(a.caller(), now, retry)
	case !r.fits(w, p):
		return nil, Full, l.appoint(a.caller(), now, retry)
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
		late := from.classes[pr].expect(v)
		v.retry = from.classes[pr].lines[v.line].appoint(v.ask.caller(), r.opt.Now(), late)
		r.dismiss(v, Full)
		v.signal()
		return true
	}
	return false
}
