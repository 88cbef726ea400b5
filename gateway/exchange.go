package gateway

import (
	"bytes"
	"errors"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"headrace/gateway/admission"
	"headrace/gateway/admission/queue"
	"headrace/gateway/forward"
	"headrace/gateway/ledger"
	"headrace/gateway/listen"
	"headrace/gateway/openai"
	"headrace/gateway/resume"
	"headrace/gateway/sse"
	"headrace/gateway/trace"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// watch is what other goroutines may touch of an exchange. It is not pooled: a late ClientGone must
// find it, and not a successor.
type watch struct {
	forward.Guard
	second  atomic.Pointer[forward.Guard] // of its hedge, nil for none
	waiter  atomic.Pointer[queue.Waiter]  // where it waits, nil for nowhere
	held    atomic.Pointer[holding]       // likewise, in the middle of an answer
	drained atomic.Bool
	self    listen.Handler
}

// ClientGone ends the exchange's upstream side.
func (w *watch) ClientGone(why listen.Why) {
	if why == listen.Drained {
		w.drained.Store(true)
	}
	w.Abort()
	if g := w.second.Load(); g != nil {
		g.Abort()
	}
	if q := w.waiter.Load(); q != nil {
		q.Cancel()
	}
	if h := w.held.Load(); h != nil {
		h.nudge()
	}
}

// exchange is one request from its acceptance to its settlement. The connection's goroutine owns it;
// others reach its watch only.
type exchange struct {
	s     *Server
	set   *Settings
	ctx   *fasthttp.RequestCtx
	route *route
	conn  *listen.Conn // nil when the connection is not watched

	grant *admission.Grant // what the caller's key allows; nil where nobody needs one
	pass  *admission.Pass  // what it has taken of it; nil for nothing

	watch *watch

	scan       openai.Request
	ask        router.Request // what the router is asked
	model      string
	wantStream bool
	numbered   bool        // the numbers of tokens were asked for by us: the caller does not get to see them
	exact      bool        // the attempt goes on with the answer by these
	dropUsage  bool        // the usage event was asked for by us: the caller does not get to see it
	noInject   endpoint.ID // refused our stream_options, as it seems: this request goes there without
	req        forward.Request
	parts      [9][]byte
	head       []byte
	headLen    int          // of head, without what an attempt adds
	span       trace.SpanID // of the attempt
	offset     int64        // tokens of the answer that the attempt goes on with; -1 where it begins anew
	form       *form        // a multipart body, or nil

	standing

	tale   *tale // nil where nobody else may go on with the answer
	onLoss Preemption
	why    resume.Reason // for which nobody else may

	leased  bool
	hedged  bool // the attempt was the second
	phase   phase
	lease   router.Lease
	ahead   *router.Lease // taken before the running attempt was given up; nil for none
	outside bool          // ahead is none of the arm's hosts
	pinned  endpoint.ID   // passthrough: the one endpoint, without a lease
	attempt *forward.Attempt
	worker  *endpoint.WorkerReport // of the attempt that just ended; nil for none, and the record's
	tried   [maxTried]endpoint.ID
	retries int
	last    *outcome.Error // of the attempt that is being retried

	second     *hedge        // runs beside the attempt, or instead of it in phase awaitingSecond; nil for none
	hedgeAt    time.Time     // a hedge is due; zero for never
	hedgeBy    time.Time     // it is too late for one
	hedgeEvery time.Duration // between two looks for a host

	beginAt   time.Time // the attempt began
	firstBy   time.Time // its first event is due
	fullBy    time.Time // the same, where nobody else can be asked
	totalBy   time.Time
	failure   *openai.Error // phase failed
	retryWait time.Duration // what the host asked for
	verbatim  bool          // phase failed: hand the host's own answer on
	isStream  bool          // the answer is an event stream

	events    sse.Scanner
	chunk     openai.Chunk
	held      int  // bytes at the front of Unread that are whole events, ready to go out
	opaque    bool // too long an event: bytes pass unread from here on
	committed bool // the response head is out or on its way
	beating   bool // committed before anything came
	wrote     bool // a byte of the body went out
	bodyEnd   bool // the upstream's body ended in good order
	writeArm  time.Time
	writeAt   time.Time     // the newest write to the caller began
	blocked   time.Duration // spent in such writes
	broken    error         // why the stream ended early

	m          meter
	of         answerID
	unended    bool  // the last event lacks its blank line
	progressed bool  // the router was told of the stream's speed under way
	errand     error // why what comes is not the rest of the answer: an error event, an abort, or another answer
	rec        ledger.Record
	own        time.Duration // our own time so far
	began      time.Time     // an own stretch began
	settled    bool
}

// maxTried bounds the hosts that a request is kept from because they failed it.
const maxTried = ledger.MaxAttempts

// phase is where an exchange stands. advance moves it on; ready and failed are final.
type phase uint8

const (
	picking phase = iota
	awaitingHead
	awaitingContent // the head said event stream
	awaitingBody    // a plain answer, read whole before it goes out
	awaitingSecond  // the first attempt has failed, its hedge may answer yet
	gathering       // a stream that is put together for a caller who wants it in one piece
	ready
	failed
)

var (
	eventStream = []byte("text/event-stream")
	jsonType    = []byte("application/json")
	htmlType    = []byte("text/html")
)

// isType tells whether a Content-Type begins with want.
func isType(ct, want []byte) bool {
	return len(ct) >= len(want) && bytes.EqualFold(ct[:len(want)], want)
}

// advance drives the attempts until the answer is ready to be sent, or has failed for good, or
// until the given time: then it returns false and may be called again.
func (x *exchange) advance(until time.Time) bool {
	for {
		switch {
		case x.second != nil:
			x.race()
		case !x.hedgeAt.IsZero():
			x.tryHedge()
		}
		switch x.phase {
		case picking:
			if x.pick(until) { // which calls nothing below by itself: dialling lies deep, and the stack stays as large as it once was
				if host := x.bring(); host != nil {
					x.start(host)
				}
			}
			if x.phase == picking && !time.Now().Before(until) {
				return false
			}
		case awaitingHead:
			err := x.attempt.AwaitHead(x.wakeBy(until))
			switch _, over := errors.AsType[*outcome.Error](err); {
			case over: // first: what ended the attempt may have been a deadline too
				x.attemptFailed(err)
			case err == nil:
				x.judgeHead()
			case errors.Is(err, forward.ErrInterrupted):
				x.calledAway()
			case !x.overdue() && !time.Now().Before(until):
				return false
			}
		case awaitingContent:
			if !x.awaitContent(until) {
				return false
			}
		case awaitingBody:
			x.awaitBody()
		case awaitingSecond:
			if !x.awaitSecond(until) {
				return false
			}
		case gathering:
			x.gather()
		case ready, failed:
			return true
		}
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// overdue fails the attempt if its first event is due; false means that there is time left. Where no other attempt can be made
// there is all of it: too many requests are no reason to serve none.
func (x *exchange) overdue() bool {
	now := time.Now()
	if now.Before(x.firstBy) {
		return false
	}
	if now.Before(x.fullBy) && (x.retries >= x.set.MaxRetries || !x.s.router.Budget.Left()) {
		x.firstBy = x.fullBy
		return false
	}
	x.attemptFailed(&outcome.Error{Class: outcome.FirstByteTimeout, Endpoint: x.endpointID(), Err: os.ErrDeadlineExceeded})
	return true
}

func (x *exchange) endpointID() endpoint.ID {
	if x.leased {
		return x.lease.Endpoint.ID
	}
	return x.pinned
}

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
		case err != nil && x.resumed() && x.startOver():
		case err != nil && x.resumed() && x.hold(err, now, until):
			return false
		case err != nil && x.resumed():
			x.failAttempt(x.last)
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
	x.own += now.Sub(x.began)
	x.due(now)
	if x.attempt == nil {
		x.attempt = attempts.Get().(*forward.Attempt)
	}
	return host
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

func (x *exchange) dropped(id endpoint.ID) {
	x.attemptFailed(&outcome.Error{Class: outcome.DialFailed, Endpoint: id, Err: net.ErrClosed})
}

func (x *exchange) notComposed(id endpoint.ID) {
	x.notGoneOn(outcome.Error{Class: outcome.ClientGone, Endpoint: id, Err: errNotComposed})
}

// due sets when the first event of an attempt is due that has begun now.
func (x *exchange) due(now time.Time) {
	soon, full := x.firstWithin(&x.lease)
	x.firstBy, x.fullBy = earlier(now.Add(soon), x.totalBy), earlier(now.Add(full), x.totalBy)
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

// resumed tells whether the answer was gone on with.
func (x *exchange) resumed() bool { return x.tale != nil && x.tale.breaks > 0 }

var errNotComposed = errors.New("the request that goes on with the answer cannot be written")

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

func (x *exchange) pickError(err error) *openai.Error {
	if ue, ok := errors.AsType[*router.UnavailableError](err); ok {
		return errUnavailable(ue)
	}
	return errModelUnknown(x.model, x.s.router.Snapshot().Models())
}

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

// again goes back to picking. Nothing of the attempt that ended may show in the next one's answer.
func (x *exchange) again() {
	x.isStream, x.bodyEnd, x.m, x.progressed, x.blocked, x.hedged = false, false, meter{}, false, 0, false
	x.phase, x.began = picking, time.Now()
	x.of, x.errand, x.unended = answerID{}, nil, false
	if x.tale != nil && !x.resumed() {
		x.beginTale()
	}
}

// mayRetry takes a retry out of the request's and the fleet's budgets.
func (x *exchange) mayRetry() bool {
	if x.retries >= x.set.MaxRetries || x.watch.Aborted() || !time.Now().Before(x.totalBy) || !x.s.router.Budget.Spend() {
		return false
	}
	x.retries++
	return true
}

// endAttempt settles the attempt's lease and connection and notes it in the record.
func (x *exchange) endAttempt(oe outcome.Error, now time.Time) {
	x.worker, x.hedgeAt = nil, time.Time{}
	if x.attempt != nil {
		if w, told := x.attempt.Report(); told {
			x.worker = reported(w)
			if x.s.opt.Worked != nil {
				x.s.opt.Worked(oe.Endpoint, w)
			}
		}
	}
	x.believe()
	if x.watch.drained.Load() && oe.Class == outcome.ClientGone {
		oe.Class = outcome.Truncated // ended by us: neither the caller left nor the host failed; see errDraining
	}
	if x.rec.Tries < maxTried {
		x.tried[x.rec.Tries] = oe.Endpoint
	}
	noted := x.rec.Note()
	x.note(noted, &oe, now)
	x.rec.Tries++
	x.rec.Class, x.rec.Endpoint = oe.Class, oe.Endpoint
	if x.leased {
		x.rec.Provider, x.rec.Served = x.lease.Endpoint.Provider, x.lease.Served
		verdict := oe.Class
		if x.watch.drained.Load() {
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

// note writes down what there is to tell of an attempt that ended as oe says, but for its cost.
func (x *exchange) note(a *ledger.Attempt, oe *outcome.Error, now time.Time) {
	*a = ledger.Attempt{} // and not as one literal, which would go through the stack
	a.Endpoint, a.Class, a.Status, a.Duration, a.After = oe.Endpoint, oe.Class, oe.Status, now.Sub(x.beginAt), x.beginAt.Sub(x.rec.At)
	a.Worker, a.Span = x.worker, x.span
	a.Resumed, a.Offset, a.Exact, a.Hedge = x.offset >= 0, max(0, x.offset), x.exact, x.hedged
	if !x.m.firstAt.IsZero() {
		a.First = x.m.firstAt.Sub(x.beginAt)
	}
	if x.leased {
		a.Provider, a.Served, a.Decision = x.lease.Endpoint.Provider, x.lease.Served, x.lease.Decision
		x.rec.SLO = x.lease.SLO()
	}
}

// result is what the router learns of the attempt.
func (x *exchange) result(class outcome.Class, retryAfter time.Duration) router.Result {
	r := router.Result{Class: class, RetryAfter: retryAfter, Cached: -1, Streamed: x.streamed(), Choices: x.scan.N}
	if x.isStream && !x.scan.Stop { // a stop string costs tokens of which nothing is shown
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

func (x *exchange) fail(e *openai.Error) {
	switch {
	case x.watch.drained.Load():
		e = errDraining()
		e.Partial = x.committed && x.all().outputs > 0
	case x.committed && x.resumed():
		e = errLost()
		x.rec.Lost = x.lostWhy(true)
	}
	x.failure, x.phase = e, failed
	x.rec.Code = e.Code
	if x.rec.Tries == 0 {
		if x.rec.Class = outcome.Unserved; e.Status < 500 {
			x.rec.Class = outcome.CallerFault
		}
	}
	if x.began.IsZero() {
		x.began = time.Now()
	}
}

// reported is w where it says something.
func reported(w endpoint.WorkerReport) *endpoint.WorkerReport {
	if w == (endpoint.WorkerReport{}) {
		return nil
	}
	kept := w // or w itself would be on the heap, for all those who have none
	return &kept
}
