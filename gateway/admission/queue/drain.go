package queue

import (
	"maps"
	"math"
	"net/netip"
	"time"
)

// drain measures how fast requests of one kind and priority leave a pool served, while any wait: what others take meanwhile is in it.
// It forgets by the time that somebody waits: what was seen of yesterday's rush is better than nothing today, and gives way soon.
type drain struct {
	served float64       // requests
	busy   float64       // seconds in which they were
	at     time.Time     // up to then
	last   time.Time     // when somebody was last seen to wait
	soon   time.Duration // until the first is, as was said last; 0 where nobody knows
}

const (
	leastMemory = 15.0  // seconds of waiting after which a measurement counts for 1/e
	fewRequests = 30.0  // the same in requests served: of fewer the mean says little
	mostMemory  = 600.0 // seconds, all the same
	drainStale  = time.Minute
	drainKeep   = 2.0 // seconds' worth of what is stale
	drainForget = 10 * time.Minute
	drainProbe  = 5 * time.Second // after which one waits, whatever was measured, where hosts tell nothing
)

// pass lets time pass; somebody has waited in it, or nobody.
func (d *drain) pass(now time.Time, waited bool) {
	dt := now.Sub(d.at)
	d.at = now
	switch {
	case waited:
		d.last = now
		memory := leastMemory
		if d.served > 0 {
			memory = min(max(memory, fewRequests*d.busy/d.served), mostMemory)
		}
		keep := math.Exp(-dt.Seconds() / memory)
		d.served *= keep
		d.busy = d.busy*keep + memory*(1-keep)
	case now.Sub(d.last) > drainForget:
		d.served, d.busy = 0, 0
	case now.Sub(d.last) > drainStale && d.busy > drainKeep: // whoever was turned away meanwhile has measured nothing
		d.served *= drainKeep / d.busy
		d.busy = drainKeep
	}
}

// each is the time from one to the next; ok is false where nothing is known.
func (d *drain) each() (t time.Duration, ok bool) {
	n, busy := d.served, d.busy
	if d.soon > 0 { // counts for one that was seen
		n, busy = n+1, busy+d.soon.Seconds()
	}
	if n < 0.5 {
		return 0, false
	}
	return time.Duration(busy / n * float64(time.Second)), true
}

// doubt is by how much the time may be less, as a factor: what hosts expect of an answer's length, before any was seen, is a guess.
func (d *drain) doubt() time.Duration {
	if d.served < fewServed {
		return 3
	}
	return 1
}

// caller is who is told when to come again: a key, or an address where callers have none.
type caller struct {
	key  string
	from netip.Addr
}

func (a *Ask) caller() caller {
	if a.Key != "" {
		return caller{key: a.Key}
	}
	return caller{from: a.From}
}

// appointed is when the last of each caller's who was turned away was told to come again. It holds callers of whom one is still to come, and others
// for forgetTold at most.
type appointed struct {
	callers map[caller]time.Time
	swept   time.Time
}

// appoint is when somebody who is turned away is told to come again, who would have his turn after d: one after the other, as fast as they can be
// served, since those who are all told the same come back as one crowd. Each caller has a row of its own, in which all get their turns as often: that one
// is turned away again and again moves nobody else's. Beyond a while it begins anew: who knows how many of them come. Callers are one when they are too many.
func (l *line) appoint(by caller, now time.Time, d time.Duration) time.Duration {
	each, ok := l.drain.each()
	if !ok || d <= 0 {
		return d
	}
	told := &l.told
	if now.Sub(told.swept) > forgetTold {
		told.swept = now
		maps.DeleteFunc(told.callers, func(_ caller, at time.Time) bool { return at.Before(now) })
	}
	if told.callers == nil {
		told.callers = map[caller]time.Time{}
	}
	last, mine := told.callers[by]
	if !mine && len(told.callers) >= mostTold {
		by = caller{}
		last, mine = told.callers[by]
	}
	others := len(told.callers)
	if mine {
		others--
	}
	ahead := max(d, appointAhead)
	first := now.Add(d)
	at := last.Add(each * time.Duration(others+1))
	if !at.After(first) || at.Sub(first) >= ahead {
		at = first.Add(each * time.Duration(others) % ahead)
	}
	told.callers[by] = at
	return at.Sub(now)
}

const (
	forgetTold = time.Second
	mostTold   = 1 << 12 // callers: whoever has many addresses is not to take our memory with them
)

const appointAhead = 30 * time.Second

const fewServed = 10.0 // answers that begin together end together: the first few say little of the rest
