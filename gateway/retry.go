package gateway

import (
	"errors"
	"time"

	"headrace/gateway/ledger"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// attemptFailed ends the attempt and decides between another one and the caller's error.
func (x *exchange) attemptFailed(err error) {
	if x.outrun() {
		x.adopt()
		return
	}
	x.began = time.Now() // what came before was the host's time
	oe, ok := errors.AsType[*outcome.Error](err)
	if !ok {
		oe = &outcome.Error{Class: outcome.UpstreamFault, Endpoint: x.endpointID(), Err: err}
	}
	x.endAttempt(*oe, time.Now())
	if x.second != nil && oe.Class.Policy().Elsewhere {
		x.last = oe
		x.again()
		x.phase = awaitingSecond
		return
	}
	x.elsewhere(oe)
}

// elsewhere makes another attempt after one that ended as oe says, or tells the caller.
func (x *exchange) elsewhere(oe *outcome.Error) {
	if oe.Class.Policy().Elsewhere && x.pinned == "" && x.mayRestart(oe.Class) && (x.form == nil || x.form.replayable()) {
		if x.mayRetry() {
			x.last = oe
			x.again()
			return
		}
		if x.tale != nil {
			x.tale.poor = true
		}
	}
	x.failAttempt(oe)
}

// mayRestart tells whether the model's policy lets another attempt begin anew where one has failed so. What broke off before the
// host had begun, or was refused, is no preemption.
func (x *exchange) mayRestart(class outcome.Class) bool {
	return x.onLoss != Fail || class != outcome.Severed && class != outcome.Moved || x.attempt == nil || x.attempt.Status == 0
}

// mayRetry takes a retry out of the request's and the fleet's budgets.
func (x *exchange) mayRetry() bool {
	if x.retries >= x.set.MaxRetries || x.watch.Aborted() || !time.Now().Before(x.totalBy) || !x.s.router.Budget.Spend() {
		return false
	}
	x.retries++
	return true
}

// again goes back to picking. Nothing of the attempt that ended may show in the next one's answer.
func (x *exchange) again() {
	x.isStream, x.bodyEnd, x.m, x.progressed, x.blocked, x.hedged = false, false, meter{}, false, 0, false
	x.phase, x.began = picking, time.Now()
	x.of, x.errand, x.unended = answerID{}, nil, false
	if x.tale != nil && !x.resumed() {
		x.beginTale()
	}
}

// failAttempt tells the caller how the last attempt failed.
func (x *exchange) failAttempt(oe *outcome.Error) {
	x.retryWait = oe.RetryAfter
	if fe, ok := errors.AsType[*formError](oe); ok {
		x.fail(x.errForm(fe))
		return
	}
	if errors.Is(oe, errUploadTooLarge) {
		x.fail(errTooLarge(x.set.MaxUpload, "limits.max_upload"))
		return
	}
	x.fail(errAttempt(oe))
}

// endAttempt settles the attempt's lease and connection and notes it in the record.
func (x *exchange) endAttempt(oe outcome.Error, now time.Time) {
	x.worker, x.hedgeAt = nil, time.Time{}
	if x.attempt != nil {
		x.hears(oe.Endpoint)
	}
	x.believe()
	if x.watch.drained.Load() && oe.Class == outcome.ClientGone {
		oe.Class = outcome.Truncated // ended by us: neither the caller left nor the host failed; see errDraining
	}
	x.hasTried(oe.Endpoint)
	noted := x.rec.Note()
	x.note(noted, &oe, now)
	x.rec.Tries++
	x.rec.Class, x.rec.Endpoint = oe.Class, oe.Endpoint
	if x.leased {
		x.rec.Provider, x.rec.Served = x.lease.Endpoint.Provider, x.lease.Served
		verdict := oe.Class
		if x.watch.drained.Load() || errors.Is(x.broken, errPanicked) {
			verdict = outcome.ClientGone // says nothing about the host
		}
		res := x.result(verdict, oe.RetryAfter)
		res.At = now
		if noted.Output = res.OutputTokens; res.Estimated {
			noted.Output = x.lease.Tokens(res.OutputTokens)
		}
		if usd, ok := x.account(noted, oe.Class, now); ok {
			x.rec.USD += usd
			x.rec.USDKnown = true
			res.USD = usd
			noted.USD, noted.USDKnown = usd, true
		}
		x.lease.Done(res)
		x.leased = false
	}
	if oe.Class != outcome.Success {
		x.s.attemptFailed(x.rec.ID, oe.Class, oe.Endpoint, oe.Status, oe.Err)
	}
	if x.attempt != nil {
		x.attempt.Finish()
	}
	x.held = 0
	x.events.Reset()
}

// hears takes in what the provider has said of the attempt's work. It is a function of its own for the stack of those who say nothing: below
// endAttempt it is at its deepest.
func (x *exchange) hears(id endpoint.ID) {
	if w, told := x.attempt.Report(); told {
		x.worker = reported(w)
		if x.s.opt.Worked != nil {
			x.s.opt.Worked(id, w)
		}
	}
}

// hasTried keeps later attempts from the endpoint.
func (x *exchange) hasTried(id endpoint.ID) {
	if x.sending != nil && x.rec.Tries < maxTried {
		x.tried[x.rec.Tries] = id
	}
}

// note writes down what there is to tell of an attempt that ended as oe says, but for its cost.
func (x *exchange) note(a *ledger.Attempt, oe *outcome.Error, now time.Time) {
	*a = ledger.Attempt{} // and not as one literal, which would go through the stack
	a.Endpoint, a.Class, a.Status, a.Duration, a.After = oe.Endpoint, oe.Class, oe.Status, now.Sub(x.beginAt), x.beginAt.Sub(x.rec.At)
	a.Worker, a.Span = x.worker, x.span
	a.Resumed, a.Offset, a.Exact, a.Hedge = x.offset >= 0, max(0, x.offset), x.exact, x.hedged
	if !x.m.firstAt.IsZero() {
		a.First = x.m.firstAt.Sub(x.beginAt)
	}
	if x.rec.Trace.On() && (x.rec.Trace.Sampled || oe.Class != outcome.Success) { // else nobody sees it, and it takes memory
		a.AnswerID = x.of.whole()
	}
	if x.leased {
		a.Provider, a.Served, a.Decision = x.lease.Endpoint.Provider, x.lease.Served, x.lease.Decision
		x.rec.SLO = x.lease.SLO()
	}
}

// result is what the router learns of the attempt.
func (x *exchange) result(class outcome.Class, retryAfter time.Duration) router.Result {
	r := router.Result{Class: class, RetryAfter: retryAfter, Cached: -1, Streamed: x.streamed(), Choices: x.sought.n}
	if x.isStream && !x.sought.stop { // a stop string costs tokens of which nothing is shown
		r.Events = x.m.outputs
	}
	if x.isStream || x.m.hasUsage { // else an answer in one piece, which shows no tokens to count
		r.OutputTokens, r.Estimated = x.m.output()
	}
	if x.m.hasUsage {
		r.Cached = x.m.usage.Cached
	}
	return r
}

// streamed is the time from the first to the last output token, 0 where it is the caller's doing rather than the host's: one who
// reads too slowly holds up what comes from there.
func (x *exchange) streamed() time.Duration {
	d := x.m.lastAt.Sub(x.m.firstAt)
	if x.blocked > d/8 {
		return 0
	}
	return d
}

// reported is w where it says something.
func reported(w endpoint.WorkerReport) *endpoint.WorkerReport {
	if w == (endpoint.WorkerReport{}) {
		return nil
	}
	kept := w // or w itself would be on the heap, for all those who have none
	return &kept
}
