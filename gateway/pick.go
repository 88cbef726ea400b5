package gateway

import (
	"errors"
	"net"
	"time"

	"headrace/gateway/forward"
	"headrace/gateway/openai"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// pick leases an endpoint, at which an attempt is then to be started, or returns false. Where it has to wait for one it does so until
// the given time: then it may be called again.
func (x *exchange) pick(until time.Time) bool {
	if x.queues() && !x.turn(until) {
		return false
	}
	now := time.Now()
	if x.rec.Queued > 0 && !x.grant.Live(now) { // it was revoked while it waited
		x.fail(x.s.opt.Keys.Gone())
		return false
	}
	if x.pinned == "" {
		x.ask.Now, x.ask.Tried = now, x.tried[:min(x.rec.Tries, len(x.tried))]
		x.leavesFree(now)
		err := x.place()
		switch {
		case err == nil:
			x.found()
			x.unhold(true)
			if x.tale != nil {
				x.tale.paid = false
			}
		case err != nil && x.resumed() && x.startOver():
		case err != nil && x.resumed() && x.hold(err, now, until):
			return false
		case err != nil && x.resumed():
			x.noneGoesOn()
			return false
		case x.standsBy(err):
			return false
		case err != nil && x.last != nil: // nobody is left to retry with: how the last one failed tells more
			x.s.router.Budget.Refund()
			x.retries--
			x.failAttempt(x.last)
			return false
		case err != nil:
			x.fail(x.pickError(err))
			return false
		}
		x.leased = true
	}
	x.beginAt = now
	return true
}

// place leases an endpoint, unless one was taken already.
func (x *exchange) place() error {
	if x.ahead != nil {
		x.lease, x.ahead = *x.ahead, nil
		x.rec.OutOfArm = x.rec.OutOfArm || x.outside
		return nil
	}
	out, err := x.choose(&x.ask, &x.lease)
	x.rec.OutOfArm = x.rec.OutOfArm || out
	return err
}

func (x *exchange) pickError(err error) *openai.Error {
	if ue, ok := errors.AsType[*router.UnavailableError](err); ok {
		return errUnavailable(ue)
	}
	return errModelUnknown(x.model, x.s.router.Snapshot().Models())
}

// bring readies what an attempt sends to the endpoint that was picked; nil where it cannot be made.
func (x *exchange) bring() *forward.Host {
	now, id := x.beginAt, x.endpointID()
	if x.offset = -1; x.resumed() {
		x.offset = x.tale.lost
	} else if x.rec.Said != nil {
		x.rec.Said.Anew()
	}
	x.follows(x.s.router.Snapshot().Endpoint(id))
	host := x.s.forward.Host(id)
	if host == nil { // discovery dropped it between the snapshot and now
		x.dropped(id)
		return nil
	}
	if x.leased && !x.compose() {
		x.notComposed(id)
		return nil
	}
	x.decided(now)
	x.due(now)
	if x.attempt == nil {
		x.attempt = attempts.Get().(*forward.Attempt)
	}
	return host
}

// decided counts what a host was chosen in, which began at the given time, and what came before.
func (x *exchange) decided(at time.Time) {
	before, took := at.Sub(x.began), time.Since(at)
	x.own += before + took
	if x.rec.Tries > 0 { // a failure was seen to
		took += before
	} else {
		x.rec.Reading += before
	}
	x.rec.Deciding += took
}

// start begins the attempt.
func (x *exchange) start(host *forward.Host) {
	if err := x.attempt.Start(host, &x.watch.Guard, &x.req, x.beginAt); err != nil {
		x.began = time.Now()
		x.attemptFailed(err)
		return
	}
	if x.form != nil || x.req.Upload != nil { // sent at the caller's pace, which is no fault of the host's
		x.due(time.Now())
	}
	x.phase = awaitingHead
	if x.hedges() {
		x.armHedge()
	}
}

// due sets when the first event of an attempt is due that has begun now.
func (x *exchange) due(now time.Time) {
	soon, full := x.firstWithin(&x.lease)
	x.firstBy, x.fullBy = earlier(now.Add(soon), x.totalBy), earlier(now.Add(full), x.totalBy)
}

// firstWithin is how long the attempt may take to its first content: where another one can be made, and at all.
func (x *exchange) firstWithin(l *router.Lease) (soon, full time.Duration) {
	full = x.set.FirstEvent
	if x.leased {
		if s := l.Endpoint.State; s == endpoint.Cold || s == endpoint.Starting || l.Decision.Cold { // workers that are up may be full
			full = max(x.set.ColdStart, full)
			return full, full
		}
		if d := &l.Decision; x.set.Stuck > 0 && d.Candidates > 1 && x.seesFirst() { // else it may show nothing before its end
			return min(max(x.set.Stuck, time.Duration(stuckTimes*d.TTFT*float64(time.Second))), full), full
		}
	}
	return full, full
}

// seesFirst tells whether the first token of the answer will be seen before its last.
func (x *exchange) seesFirst() bool {
	return !x.ask.Tokenless && x.form == nil && (x.wantStream || x.tale != nil && x.tale.opened)
}

// stuckTimes is how many times its expected time a first token may take, where another host can be asked.
const stuckTimes = 4

// compose builds the body for the leased endpoint, aliasing the caller's; false when it cannot be.
func (x *exchange) compose() bool {
	if x.form != nil {
		x.req.Upload, x.req.UploadSize = x.form.reader(x.lease.Served)
		return true
	}
	if x.resumed() {
		return x.composeOn()
	}
	gather := x.tale != nil && x.tale.gather
	inject := x.injects(x.lease.Endpoint)
	x.dropUsage = inject
	if gather {
		x.tale.opened = inject // without its usage it is not put together
	}
	body := x.ctx.Request.Body()
	if x.lease.ServedJSON == nil && !inject {
		x.parts[0] = body
		x.req.Body, x.req.Size = x.parts[:1], len(body)
	} else {
		x.req.Body, x.req.Size = x.scan.Parts(x.parts[:0], body, x.lease.ServedJSON, inject, inject && gather)
	}
	x.exact = false
	if x.numbered = x.wantsNumbers(&x.lease); x.numbered {
		x.req.Body, x.req.Size = openai.AskTokenIDs(x.req.Body, x.req.Size)
	}
	return true
}

// injects tells whether ep is asked for the usage event on our own account.
func (x *exchange) injects(ep *endpoint.Endpoint) bool {
	return (x.wantStream || x.tale != nil && x.tale.gather) && x.route.usage && !ep.NoUsageInjection && !x.scan.IncludeUsage &&
		x.noInject != ep.ID && !x.s.refusedUsage(ep.ID)
}

func (x *exchange) dropped(id endpoint.ID) {
	x.attemptFailed(&outcome.Error{Class: outcome.DialFailed, Endpoint: id, Err: net.ErrClosed})
}

func (x *exchange) notComposed(id endpoint.ID) {
	x.notGoneOn(outcome.Error{Class: outcome.ClientGone, Endpoint: id, Err: errNotComposed}, nil)
}

var errNotComposed = errors.New("the request that goes on with the answer cannot be written")
