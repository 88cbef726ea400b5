package sim

import "math"

// room is where a gateway's requests wait for whom nobody has room, by the rule of gateway/admission/queue for one caller who asks for everything alike
// and watches: first come, first served; each at most a share of what is left of the promised time to its first token; who would have his turn later
// than that, by how fast the room was seen to empty or by what hosts expect, is refused when he comes.
type room struct {
	g       *replica
	share   float64
	list    []*request
	stirred bool // it is tried again at this moment
	looking bool
	// served requests in busy seconds in which somebody waited, up to at; both fade.
	served, busy, at, last float64
	soon                   float64 // until the first has room, as hosts said last; 0 where they do not know
}

// roomy is a picker that says when there may be room again.
type roomy interface {
	onFreed(do func())
}

const (
	roomLook   = 0.1  // seconds after which the first tries though nothing is known to have changed
	roomMemory = 15.0 // seconds of waiting, or roomFew requests if that is longer, after which what was measured counts for 1/e
	roomFew    = 30.0
	roomMost   = 600.0
	roomStale  = 60.0 // seconds in which nobody has waited, after which only so many seconds' worth of it count
	roomKeep   = 2.0
	roomProbe  = 5.0  // the same, after which hosts are believed alone
	roomGuess  = 10.0 // requests, before which what was measured may be three times too long
)

// pass lets time pass.
func (q *room) pass() {
	now := q.g.w.now
	dt := now - q.at
	q.at = now
	switch {
	case len(q.list) > 0:
		q.last = now
		memory := roomMemory
		if q.served > 0 {
			memory = min(max(memory, roomFew*q.busy/q.served), roomMost)
		}
		keep := math.Exp(-dt / memory)
		q.served *= keep
		q.busy = q.busy*keep + memory*(1-keep)
	case now-q.last > roomStale && q.busy > roomKeep:
		q.served *= roomKeep / q.busy
		q.busy = roomKeep
	}
}

// expect is when one that comes now has its turn, in seconds; 0 where nobody knows.
func (q *room) expect(soon float64) float64 {
	if soon > 0 || len(q.list) == 0 {
		q.soon = soon
	}
	n, busy := q.served, q.busy
	if q.soon > 0 { // counts for one that was seen
		n, busy = n+1, busy+q.soon
	}
	if n < 0.5 {
		return 0
	}
	wait := float64(len(q.list)+1) * busy / n
	if len(q.list) == 0 {
		switch {
		case soon > 0:
			wait = min(wait, soon)
		case q.g.w.now-q.last > roomProbe:
			wait = 0
		}
	}
	return wait
}

// enter has a request wait; false when it cannot be served in time. soon is when hosts expect to have room for the first, 0 where they do not know.
func (q *room) enter(r *request, soon float64) bool {
	w := q.g.w
	q.pass()
	r.by = w.now + q.share*(r.at+w.sc.SLO.TTFT-w.now)
	wait := q.expect(soon)
	if q.served < roomGuess {
		wait /= 3
	}
	if w.now+wait >= r.by {
		return false
	}
	q.list = append(q.list, r)
	r.waited = true
	w.at(r.by, func() {
		for i, o := range q.list {
			if o == r {
				q.pass()
				q.list = append(q.list[:i], q.list[i+1:]...)
				w.ledger.shed(r)
				return
			}
		}
	})
	q.look()
	return true
}

// look has the first try again in a while.
func (q *room) look() {
	if q.looking || len(q.list) == 0 {
		return
	}
	q.looking = true
	q.g.w.in(q.g.w.life(roomLook), func() {
		q.looking = false
		q.turn()
		q.look()
	})
}

// freed has the first try again, once all that happens at this moment has.
func (q *room) freed() {
	if len(q.list) == 0 || q.stirred {
		return
	}
	q.stirred = true
	q.g.w.in(0, func() {
		q.stirred = false
		q.turn()
	})
}

// turn lets one after the other try, until one finds no room.
func (q *room) turn() {
	for len(q.list) > 0 && q.g.up {
		r := q.list[0]
		a := q.g.attempt(r)
		i := q.g.policy.pick(r, a)
		if i < 0 {
			if a.soon > 0 {
				q.soon = a.soon
			}
			return
		}
		q.pass()
		q.list = q.list[1:]
		q.served++
		q.g.send(a, i)
	}
}

// clear fails all who wait.
func (q *room) clear() {
	list := q.list
	q.list = nil
	for _, r := range list {
		q.g.w.ledger.failed(r)
	}
}
