package queue

import (
	"math"
	"slices"
	"time"
)

// The order within a pool is start-time fair queueing (Goyal, Vin and Cheng 1996) at two levels: between the priorities, and within
// each between its keys. Every flow has a finish tag, which grows by tokens/weight with what it is served; the flow whose next
// request would begin first is served first, and begins where it ended last or, where it has not waited all the while, where the
// others are now. So none saves up a claim while it sends nothing, and who comes anew is not behind the thousand of another.

// pool is what waits for one model, or at the door.
type pool struct {
	name    string
	gate    func() bool // takes the slot for who is first, nil where that one tries by himself
	classes [NumPriorities]class
	virtual float64 // start tag of the last that was served, of classes
	n       int     // that wait
	turn    *Waiter // who was called and has not said how it went; nil for nobody
	stirred uint64  // times that something was given back
	blocked uint64  // a bit for each line of each class of which enough tried in vain since
	lines   lines
	probes  probes
	timer   *time.Timer
	armed   bool // timer
}

// class is those of one priority.
type class struct {
	flows   map[string]*flow
	list    []*flow // those with anybody, and those whose finish tag is ahead
	virtual float64 // start tag of the last that was served, of flows
	finish  float64 // tag at the pool's level
	n       int
	apart   int // of n: see probe.go
	lines   [Lines]line
	swept   time.Time // see Room.sweep
}

// line is those of a class who are of a kind, but for those apart.
type line struct {
	n     int // that wait
	there int // of n: that could be called
	drain drain
	told  appointed
}

// pass lets time pass for what is measured.
func (l *line) pass(now time.Time) { l.drain.pass(now, l.n > 0) }

// flow is a key's requests of one priority in one pool.
type flow struct {
	key         string
	weight      float64
	finish      float64
	n           int
	apart       int        // of n
	lines       [Lines]int // of n, but for those apart
	probed      uint64     // pool.stirred when one was called out of turn last
	tries       int        // in vain, of those apart, in round
	round       uint64     // pool.stirred
	bytes       int64
	first, last *Waiter
}

func (w *Waiter) bit() uint64 { return 1 << (uint(w.ask.Priority)*Lines + uint(w.line)) }

// lines are the kinds that wait in a pool, or did. The last one is for all for whom there was none.
type lines struct {
	kind  [Lines]uint64
	known [Lines]bool
	users [Lines]int
	next  int // to be given away
}

// find returns the line of the kind; ok is false where it has none, and would get one.
func (l *lines) find(kind uint64) (line uint8, ok bool) {
	full := true
	for i := range uint8(Lines - 1) {
		if l.known[i] && l.kind[i] == kind {
			return i, true
		}
		full = full && l.users[i] > 0
	}
	return Lines - 1, full
}

// line returns the kind's, for which that of another may be forgotten of whom nobody waits.
func (p *pool) line(kind uint64) uint8 {
	l := &p.lines
	line, ok := l.find(kind)
	if ok {
		return line
	}
	for l.users[l.next] > 0 {
		l.next = (l.next + 1) % (Lines - 1)
	}
	line = uint8(l.next) //nolint:gosec // below Lines
	l.next = (l.next + 1) % (Lines - 1)
	l.kind[line], l.known[line] = kind, true
	for i := range p.classes {
		p.classes[i].lines[line].drain, p.classes[i].lines[line].told = drain{}, appointed{}
	}
	return line
}

// add puts w at the end of its key's.
func (p *pool) add(w *Waiter) {
	c := &p.classes[w.ask.Priority]
	if p.n == 0 {
		p.blocked = 0 // nobody heard what was given back
		p.probes.begin(false)
	}
	f := c.flow(w.ask.Key)
	f.weight = w.ask.Weight
	if w.prev = f.last; w.prev != nil {
		w.prev.next = w
	} else {
		f.first = w
	}
	f.last = w
	w.flow = f
	p.n++
	c.n++
	f.n++
	f.bytes += w.ask.Bytes
	f.lines[w.line]++
	c.lines[w.line].n++
	c.lines[w.line].there++
	p.lines.users[w.line]++
}

// flow returns the key's.
func (c *class) flow(key string) *flow {
	f := c.flows[key]
	if f == nil {
		if c.flows == nil {
			c.flows = map[string]*flow{}
		}
		f = &flow{key: key, finish: c.virtual}
		c.flows[key] = f
		c.list = append(c.list, f)
	}
	return f
}

// remove takes w out.
func (p *pool) remove(w *Waiter) {
	c, f := &p.classes[w.ask.Priority], w.flow
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		f.first = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		f.last = w.prev
	}
	w.prev, w.next, w.flow = nil, nil, nil
	if w.apart {
		c.apart--
		f.apart--
	} else {
		f.lines[w.line]--
		c.lines[w.line].n--
		if !w.away {
			c.lines[w.line].there--
		}
	}
	p.lines.users[w.line]--
	p.n--
	c.n--
	f.n--
	f.bytes -= w.ask.Bytes
	if p.n == 0 { // nobody is left to be fair to
		p.virtual = 0
		for i := range p.classes {
			p.classes[i].finish = 0
		}
	}
	if c.n == 0 {
		c.flows, c.list, c.virtual = nil, nil, 0
		return
	}
	if f.n == 0 {
		c.sweep()
	}
}

// sweep forgets flows that have no claim and no debt.
func (c *class) sweep() {
	c.list = slices.DeleteFunc(c.list, func(f *flow) bool {
		over := f.n == 0 && f.finish <= c.virtual
		if over {
			delete(c.flows, f.key)
		}
		return over
	})
}

// charge books what w was served.
func (p *pool) charge(w *Waiter, lim *Limits) {
	c, f := &p.classes[w.ask.Priority], w.flow
	c.virtual = max(c.virtual, f.finish)
	f.finish = c.virtual + w.ask.Tokens/f.weight
	p.virtual = max(p.virtual, c.finish)
	c.finish = p.virtual + w.ask.Tokens/lim.share(w.ask.Priority)
}

func (l *Limits) share(p Priority) float64 {
	if p == Batch {
		return l.BatchShare
	}
	return 1 - l.BatchShare
}

// best is who is to be called next, nil for nobody.
func (p *pool) best() *Waiter {
	var best *Waiter
	least := math.Inf(1)
	for i := range p.classes {
		c := &p.classes[i]
		start := max(c.finish, p.virtual)
		if c.n == 0 || start >= least {
			continue
		}
		if w := c.best(p.stirred, uint32((p.blocked|p.probes.lines)>>(uint(i)*Lines))); w != nil { //nolint:gosec // the class's bits
			best, least = w, start
		}
	}
	if best == nil {
		best = p.probe()
	}
	return best
}

// before tells whether somebody of a lower priority number than w could be called.
func (p *pool) before(w *Waiter) bool {
	for i := range p.classes[:w.ask.Priority] {
		if c := &p.classes[i]; c.open(uint32(p.blocked >> (uint(i) * Lines))) { //nolint:gosec // the class's bits
			return true
		}
	}
	return false
}

// open tells whether somebody could be called, of lines that are not blocked.
func (c *class) open(blocked uint32) bool {
	for i := range c.lines {
		if c.lines[i].there > 0 && blocked&(1<<uint(i)) == 0 {
			return true
		}
	}
	return false
}

// best is the first of the flow that is furthest behind, of lines that are not blocked.
func (c *class) best(round uint64, blocked uint32) *Waiter {
	if c.apart == 0 && !c.open(blocked) {
		return nil
	}
	var best *Waiter
	least := math.Inf(1)
	for _, f := range c.list {
		start := max(f.finish, c.virtual)
		if f.n == 0 || start > least {
			continue
		}
		for w := f.first; w != nil; w = w.next {
			if w.away || w.again > round || !w.apart && blocked&(1<<uint(w.line)) != 0 || w.apart && f.spent(round) {
				continue
			}
			if start < least || w.came.Before(best.came) {
				best, least = w, start
			}
			break
		}
	}
	return best
}

// ahead is about how many of its priority and line are served before one of the flow before whom mine of its own are; f is nil where
// the key has none.
func (c *class) ahead(line uint8, f *flow, weight float64, mine int) int {
	n := mine
	for _, o := range c.list {
		if o != f && o.lines[line] > 0 {
			n += min(o.lines[line], int(math.Ceil(float64(mine+1)*o.weight/weight)))
		}
	}
	return n
}

// place is how many of its own key's and line stand before w.
func (w *Waiter) place() int {
	n := 0
	for o := w.prev; o != nil; o = o.prev {
		if o.line == w.line && !o.apart {
			n++
		}
	}
	return n
}

// takes is what the flow has of the room, by requests or by bytes.
func (f *flow) takes(bytes bool) float64 {
	if bytes {
		return float64(f.bytes)
	}
	return float64(f.n)
}

// longest is the flow that has the most of the room for its weight, and has anybody who was not called; nil for none.
func (c *class) longest(bytes bool) *flow {
	var longest *flow
	for _, f := range c.list {
		if f.n > 0 && f.spare() != nil && f.longer(longest, bytes) {
			longest = f
		}
	}
	return longest
}

func (f *flow) longer(than *flow, bytes bool) bool {
	return than == nil || f.takes(bytes)*than.weight > than.takes(bytes)*f.weight
}

// spare is the newest of the flow who was not called; nil for nobody.
func (f *flow) spare() *Waiter {
	for w := f.last; w != nil; w = w.prev {
		if w.state == standing {
			return w
		}
	}
	return nil
}
