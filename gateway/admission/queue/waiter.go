package queue

import (
	"sync/atomic"
	"time"
)

// Who waits: a request from Enter until it is called, turned away or gone.

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
		w.retry = cl.lines[w.line].appoint(w.ask.caller(), now, cl.expect(w))
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

// Cancel says that w's caller has left. It may be called by any goroutine and at any time, and does not block.
func (w *Waiter) Cancel() {
	w.gone.Store(true)
	w.signal()
}

func (w *Waiter) signal() {
	select {
	case w.wake <- struct{}{}:
	default: // it has yet to look
	}
}

// Refusal is why w waits no more, after Refused, and when it would be worth while to come again, 0 where nobody knows.
func (w *Waiter) Refusal() (why Why, retry time.Duration) { return w.why, w.retry }

// Due tells, after Turn, that w was called though others wait whose work does not wait so long: it is due its share.
func (w *Waiter) Due() bool { return w.due }

// Came is since when it has waited.
func (w *Waiter) Came() time.Time { return w.came }
