package gateway

import (
	"time"

	"headrace/gateway/forward"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// An attempt is called away when its host leaves: see forward.Client.Interrupt. It goes where a place was taken for it before it
// is given up, and stays where it is when there is none: a host that is about to go answers better than nobody.

// calledAway begins anew at another host, the caller having nothing of the answer yet.
func (x *exchange) calledAway() {
	if x.outrun() { // which is why
		x.adopt()
		return
	}
	if x.second != nil { // asked already
		x.attemptFailed(x.lostAs(forward.ErrInterrupted))
		return
	}
	if !x.worthMoving() || !x.reserveAnew() {
		x.attempt.CarryOn()
		return
	}
	oe := x.lostAs(forward.ErrInterrupted)
	x.began = time.Now()
	x.endAttempt(*oe, x.began)
	x.last = oe
	x.again()
}

// worthMoving tells whether what was done for the answer is little, as far as can be told, or lost in any case.
func (x *exchange) worthMoving() bool {
	return x.leased && (x.seesFirst() || x.s.router.Snapshot().TakenAway(x.lease.Endpoint.ID))
}

// reserveAnew takes a place and a retry for the whole request.
func (x *exchange) reserveAnew() bool {
	if x.ahead != nil || x.form != nil && !x.form.replayable() || !x.mayRestart(outcome.Moved) || !x.mayRetry() {
		return false
	}
	ask := x.ask
	if !x.takeAhead(&ask) {
		x.s.router.Budget.Refund()
		x.retries--
		return false
	}
	return true
}

// takeAhead takes a place for ask at another host than the one that is asked now.
func (x *exchange) takeAhead(ask *router.Request) bool {
	tried := make([]endpoint.ID, 0, maxTried+1)
	tried = append(append(tried, x.tried[:min(x.rec.Tries, len(x.tried))]...), x.lease.Endpoint.ID)
	ask.Now, ask.Tried = time.Now(), tried
	x.ahead = new(router.Lease)
	var err error
	if x.outside, err = x.choose(ask, x.ahead); err != nil {
		x.ahead = nil
		return false
	}
	if x.ahead.Endpoint.ID == x.lease.Endpoint.ID { // there is nobody else
		x.giveBack()
		return false
	}
	return true
}

// giveBack gives the place back that was taken and not used, if there is one.
func (x *exchange) giveBack() {
	if x.ahead != nil {
		x.ahead.Done(router.Result{Class: outcome.ClientGone, Cached: -1}) // says nothing of the host
		x.ahead = nil
	}
}
