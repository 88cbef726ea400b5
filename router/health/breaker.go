// Package health says whether an endpoint may be used: a breaker that opens on failures in a row,
// and cool-downs that an endpoint asked for. Preempted, starting and draining hosts will get states
// of their own here; what network and control plane report meets in this package.
package health

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
)

// Options set up breakers; zero values mean the defaults named here.
type Options struct {
	Failures int           // failures in a row that open it; default 5
	OpenFor  time.Duration // how long it stays open before one request may try; default 10 s. Twice that the next time, up to a minute
}

const (
	goneFor = 2 * time.Second // like OpenFor, where nobody answered at all: a host that restarts is back soon
	maxOpen = time.Minute
)

// Breaker guards one endpoint. gobreaker counts; failures are judged in a row with no interval,
// since it drops results that come later than one, and a stream may last longer than any.
type Breaker struct {
	cb      *gobreaker.TwoStepCircuitBreaker[struct{}]
	now     func() time.Time
	openFor time.Duration
	gone    atomic.Bool  // nobody answered: it opens for a shorter time
	again   atomic.Int32 // times it opened since an answer was completed
	shut    atomic.Bool  // not closed, as of the last change of state
	row     atomic.Int32 // failures since the last success that gobreaker was told of
	late    atomic.Int32 // streams that began well and broke off, since one was completed
	most    int32        // failures in a row that open it
	until   atomic.Int64 // Unix nanoseconds when a trial may begin
	opens   atomic.Int64
	cool    atomic.Int64 // Unix nanoseconds until which the endpoint wants no requests
	coolWhy atomic.Pointer[string]
}

// errExcluded frees a slot without judging.
var errExcluded = errors.New("says nothing about the endpoint")

var errFailed = errors.New("attempt failed")

// NewBreaker returns a closed breaker that goes by the clock now. gobreaker has no clock but the wall's: it would try again
// at once, and how long it stays open is kept here.
func NewBreaker(name string, o Options, now func() time.Time) *Breaker {
	if o.Failures <= 0 {
		o.Failures = 5
	}
	if o.OpenFor <= 0 {
		o.OpenFor = 10 * time.Second
	}
	b := &Breaker{now: now, openFor: o.OpenFor, most: int32(o.Failures)} //nolint:gosec // a handful
	b.cb = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Name:        name,
		MaxRequests: 1,
		Timeout:     time.Nanosecond,
		ReadyToTrip: func(c gobreaker.Counts) bool { return int(c.ConsecutiveFailures) >= o.Failures },
		IsExcluded:  func(err error) bool { return errors.Is(err, errExcluded) },
		OnStateChange: func(_ string, _, to gobreaker.State) { // runs under gobreaker's lock: atomics only
			b.shut.Store(to != gobreaker.StateClosed)
			if to == gobreaker.StateOpen {
				b.late.Store(0)
				b.until.Store(b.now().Add(b.pause()).UnixNano())
				b.opens.Add(1)
			}
		},
	})
	return b
}

// Ticket is the right to one attempt. Settle it on every path, or a half-open breaker stays shut for good.
type Ticket struct {
	b       *Breaker
	done    func(error) // nil while the breaker is closed: gobreaker is told afterwards, if at all
	settled bool
}

// Allow takes a ticket; ok is false while the breaker is open or its one trial is under way.
//
// While it is closed and nothing has failed, which is nearly always, gobreaker hears of nothing:
// only failures in a row matter, and a success tells it something only after a failure.
func (b *Breaker) Allow() (t Ticket, ok bool) {
	if !b.shut.Load() {
		return Ticket{b: b}, true
	}
	if b.now().UnixNano() < b.until.Load() {
		return Ticket{}, false
	}
	done, err := b.cb.Allow()
	if err != nil {
		return Ticket{}, false
	}
	return Ticket{b: b, done: done}, true
}

// pause is how long it stays open this time.
func (b *Breaker) pause() time.Duration {
	d := b.openFor
	if b.gone.Swap(false) {
		d = min(d, goneFor)
	}
	k := min(b.again.Add(1)-1, 5)
	return max(d, min(d<<k, maxOpen))
}

// Succeeded counts a success: call it at the first content, not at the end of a long stream.
func (t *Ticket) Succeeded() { t.settle(nil) }

// Failed counts a failure; after Succeeded it is one that came later, in the middle of the stream.
func (t *Ticket) Failed() {
	if t.settled && t.b != nil {
		t.b.brokeOff()
		return
	}
	t.settle(errFailed)
}

// Gone counts as many failures as open it: nobody was there.
func (t *Ticket) Gone() {
	if t.b == nil {
		return
	}
	t.b.gone.Store(true)
	t.Failed()
	for range t.b.most {
		t.b.tell(errFailed)
	}
}

// Completed tells that the answer came to its end, some time after Succeeded.
func (t *Ticket) Completed() {
	if t.b == nil {
		return
	}
	if t.b.late.Load() > 0 {
		t.b.late.Store(0)
	}
	if t.b.again.Load() > 0 {
		t.b.again.Store(0)
	}
}

// brokeOff counts a failure in the middle of a stream. The stream's good begin has broken the row
// that gobreaker counts, so that a host which dies at every second token would be used for ever:
// such streams have a row of their own, which only a completed one breaks.
func (b *Breaker) brokeOff() {
	b.tell(errFailed)
	if b.late.Add(1) < b.most {
		return
	}
	for range b.most {
		b.tell(errFailed) // opens it in the end, and then does nothing
	}
}

// Release gives the ticket back without judging.
func (t *Ticket) Release() { t.settle(errExcluded) }

func (t *Ticket) settle(err error) {
	if t.settled || t.b == nil {
		return
	}
	t.settled = true
	if t.done != nil {
		t.done(err)
		return
	}
	if errors.Is(err, errFailed) || err == nil && t.b.row.Load() > 0 {
		t.b.tell(err)
	}
}

// tell counts one result of an attempt that gobreaker was not asked about.
func (b *Breaker) tell(err error) {
	if b.shut.Load() {
		return // its trial decides; results from before it opened change nothing
	}
	done, openErr := b.cb.Allow()
	if openErr != nil {
		return // it opened this moment
	}
	if err == nil {
		b.row.Store(0)
	} else {
		b.row.Add(1)
	}
	done(err)
}

// CoolDown keeps requests away until the given time, because the endpoint asked for it. It does not end an earlier one sooner.
func (b *Breaker) CoolDown(until time.Time, why string) {
	for t := until.UnixNano(); ; {
		old := b.cool.Load()
		if old >= t {
			return
		}
		b.coolWhy.Store(&why) // first, for Wait reads it once it sees the time
		if b.cool.CompareAndSwap(old, t) {
			return
		}
	}
}

// Returned tells that the endpoint has been started anew: a trial may begin at once.
func (b *Breaker) Returned() {
	b.again.Store(0)
	b.late.Store(0)
	b.until.Store(0)
	b.cool.Store(0)
}

// Wait returns how long nothing may be sent from now on, and why; 0 when something may.
func (b *Breaker) Wait(now time.Time) (time.Duration, string) {
	if d := time.Duration(b.cool.Load() - now.UnixNano()); d > 0 {
		return d, *b.coolWhy.Load()
	}
	if b.shut.Load() {
		if d := time.Duration(b.until.Load() - now.UnixNano()); d > 0 {
			return d, "breaker open"
		}
	}
	return 0, ""
}

// State returns "closed", "open", "half_open" or "cooling".
func (b *Breaker) State(now time.Time) string {
	if b.cool.Load() > now.UnixNano() {
		return "cooling"
	}
	switch {
	case !b.shut.Load():
		return "closed"
	case now.UnixNano() < b.until.Load():
		return "open"
	default:
		return "half_open"
	}
}

// Opens counts how often it opened.
func (b *Breaker) Opens() int64 { return b.opens.Load() }
