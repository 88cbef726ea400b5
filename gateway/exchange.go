package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
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
	pinned  endpoint.ID   // passthrough: the one endpoint, without a lease
	attempt *forward.Attempt
	worker  endpoint.WorkerReport // of the attempt that just ended
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

// errorBodyTime is how long the body of an error may take.
const errorBodyTime = 5 * time.Second

const maxErrorBody = 64 << 10

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
			if x.pick(until); x.phase == picking && !time.Now().Before(until) {
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

// pick leases an endpoint and starts an attempt there. Where it has to wait for one it does so until the given time: then it may be
// called again.
func (x *exchange) pick(until time.Time) {
	if x.queues() && !x.turn(until) {
		return
	}
	now := time.Now()
	if x.pinned == "" {
		x.ask.Now, x.ask.Tried = now, x.tried[:min(x.rec.Tries, len(x.tried))]
		x.leavesFree(now)
		err := x.place()
		switch {
		case err == nil:
			x.found()
		case err != nil && x.resumed() && x.startOver():
		case err != nil && x.resumed() && x.hold(now):
			return
		case err != nil && x.resumed():
			x.failAttempt(x.last)
			return
		case x.standsBy(err):
			return
		case err != nil && x.last != nil: // nobody is left to retry with: how the last one failed tells more
			x.s.router.Budget.Refund()
			x.retries--
			x.failAttempt(x.last)
			return
		case err != nil:
			x.fail(x.pickError(err))
			return
		}
		x.leased = true
	}
	x.beginAt = now
	id := x.endpointID()
	if x.offset = -1; x.resumed() {
		x.offset = x.tale.lost
	}
	x.follows(x.s.router.Snapshot().Endpoint(id))
	host := x.s.forward.Host(id)
	if host == nil { // discovery dropped it between the snapshot and now
		x.attemptFailed(&outcome.Error{Class: outcome.DialFailed, Endpoint: id, Err: net.ErrClosed})
		return
	}
	if x.leased && !x.compose() {
		x.notGoneOn(outcome.Error{Class: outcome.ClientGone, Endpoint: id, Err: errNotComposed})
		return
	}
	x.own += now.Sub(x.began)
	x.due(now)
	if x.attempt == nil {
		x.attempt = attempts.Get().(*forward.Attempt)
	}
	if err := x.attempt.Start(host, &x.watch.Guard, &x.req, now); err != nil {
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

// place leases an endpoint, unless one was taken already.
func (x *exchange) place() error {
	if x.ahead != nil {
		x.lease, x.ahead = *x.ahead, nil
		return nil
	}
	return x.choose(&x.ask, &x.lease)
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
	x.worker, x.hedgeAt = endpoint.WorkerReport{}, time.Time{}
	if x.attempt != nil {
		var told bool
		if x.worker, told = x.attempt.Report(); told && x.s.opt.Worked != nil {
			x.s.opt.Worked(oe.Endpoint, x.worker)
		}
	}
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
	*a = ledger.Attempt{
		Endpoint: oe.Endpoint, Class: oe.Class, Status: oe.Status, Duration: now.Sub(x.beginAt), Worker: reported(x.worker),
		After: x.beginAt.Sub(x.rec.At), Span: x.span, Resumed: x.offset >= 0, Offset: max(0, x.offset), Exact: x.exact, Hedge: x.hedged,
	}
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

// judgeHead looks at status and type of the answer.
func (x *exchange) judgeHead() {
	a := x.attempt
	class := outcome.OfStatus(a.Status)
	x.retryWait = retryAfter(a.Head.Peek(fasthttp.HeaderRetryAfter))
	if x.pinned != "" {
		x.phase, x.began = ready, time.Now() // whatever it is, the caller gets it
		if x.isStream = isType(a.Head.ContentType(), eventStream); x.isStream {
			x.scanEvents(x.began) // what came with the head
		}
		return
	}
	if class != outcome.Success {
		x.judgeError(class)
		return
	}
	if x.resumed() && !isType(a.Head.ContentType(), eventStream) {
		x.attemptFailed(&outcome.Error{Class: outcome.UpstreamFault, Endpoint: x.endpointID(), Status: a.Status, Err: errNoStream})
		return
	}
	if x.noInject != "" && x.noInject == x.endpointID() { // it was our stream_options indeed
		x.s.noUsage.Store(x.noInject, true)
		x.noInject = ""
	}
	ct := a.Head.ContentType()
	switch {
	case isType(ct, eventStream):
		x.isStream = true
		x.phase = awaitingContent
		x.scanEvents(time.Now())
	case isType(ct, htmlType):
		x.attemptFailed(&outcome.Error{Class: x.classify(outcome.UpstreamFault, a.Status, nil), Endpoint: x.endpointID(), Status: a.Status, Err: errHTML})
	case isType(ct, jsonType) || x.route.proto != protoOpaque:
		x.phase = awaitingBody
	default:
		x.phase, x.began = ready, time.Now() // audio, images: passed on as they come
	}
}

var (
	errHTML      = errors.New("answered with an HTML page")
	errGarbage   = errors.New("answered with something that is no JSON object")
	errErrorBody = errors.New("answered with an error under status 200")
	errEvent     = errors.New("sent an error event")
	errNoEvents  = errors.New("ended before the first token")
	errAnew      = errors.New("began anew in the middle of its answer")
	errNoJSON    = errors.New("sent an event that is no JSON")
	errNotOn     = errors.New("did not go on with the answer")
	errAborted   = errors.New("aborted the answer before its first token")
	errNoStream  = errors.New("answered in one piece what was to be a stream")
)

// judgeError reads the body of a non-2xx answer and decides.
func (x *exchange) judgeError(class outcome.Class) {
	defer func() { x.began = time.Now() }() // what came before was the host's time
	a := x.attempt
	by := earlier(time.Now().Add(errorBodyTime), x.totalBy)
	var err error
	for err == nil && len(a.Unread()) < maxErrorBody {
		if err = a.More(by, 0); errors.Is(err, forward.ErrInterrupted) && !x.outrun() { // the little that is missing is worth more than another attempt
			a.CarryOn()
			err = nil
		}
	}
	class = x.classify(class, a.Status, a.Unread())
	ne, asIs := openai.NormalizeError(a.Status, a.Head.ContentType(), a.Unread())
	if class == outcome.CallerFault && x.dropUsage && bytes.Contains(a.Unread(), []byte("stream_options")) {
		// The host knows no stream_options, and the caller did not send them: once more without.
		x.noInject = x.endpointID()
		x.endAttempt(outcome.Error{Class: outcome.CallerFault, Endpoint: x.endpointID(), Status: a.Status, Err: errEvent}, time.Now())
		x.rec.Tries--
		x.rec.Attempts = x.rec.Attempts[:min(x.rec.Tries, len(x.rec.Attempts))]
		if x.second != nil {
			x.cutSecond() // which may be the host that is asked next
		}
		x.again()
		return
	}
	oe := &outcome.Error{Class: class, Endpoint: x.endpointID(), Status: a.Status, RetryAfter: x.retryWait, Err: &ne}
	if class != outcome.CallerFault {
		x.attemptFailed(oe)
		return
	}
	if x.resumed() { // against what we made of the request
		x.notGoneOn(*oe)
		return
	}
	if asIs && a.Ended() && outcome.OfStatus(a.Status) == outcome.CallerFault {
		x.verbatim = true
		x.rec.Code = ne.Code
		x.phase, x.began = ready, time.Now()
		x.rec.Class = outcome.CallerFault
		return
	}
	refusal := x.refusal(ne, a.Unread())
	x.endAttempt(*oe, time.Now())
	x.fail(&refusal)
}

// refusal is what the caller gets for a fault of his. The host's status stays where it says so; where the provider put another
// in its place, the engine's own words are looked for in body.
func (x *exchange) refusal(e openai.Error, body []byte) openai.Error {
	if outcome.OfStatus(e.Status) == outcome.CallerFault {
		return e
	}
	e.Status, e.Type, e.Code = fasthttp.StatusBadRequest, openai.TypeInvalidRequest, ""
	if x.s.opt.Refusal == nil || !x.leased {
		return e
	}
	if r, ok := x.s.opt.Refusal(x.lease.Endpoint, body); ok {
		e.Status, e.Message, e.Param, e.Code = r.Status, r.Message, r.Param, r.Code
	}
	return e
}

// plainError tells whether what came as an event stream is one JSON error instead: RunPod relays so what SGLang's worker yields.
func (x *exchange) plainError() bool {
	body := bytes.TrimSpace(x.attempt.Unread())
	if len(body) == 0 || body[0] != '{' {
		return false
	}
	x.chunk.ParseBody(body)
	return x.chunk.Error && !x.chunk.Malformed
}

// awaitContent reads events until the first that carries content. false means that until has come.
func (x *exchange) awaitContent(until time.Time) bool {
	a := x.attempt
	if x.phase != awaitingContent {
		return true
	}
	err := a.More(x.wakeBy(until), x.set.FirstEvent/8)
	switch {
	case err == nil:
		x.scanEvents(time.Now())
	case errors.Is(err, os.ErrDeadlineExceeded) && !x.watch.Aborted():
		return x.overdue() || time.Now().Before(until)
	case errors.Is(err, forward.ErrInterrupted):
		x.calledAway()
	case a.Full(err) && (x.gathers() || x.resumed()): // has to be read
		x.attemptFailed(x.upstreamFault(err))
	case a.Full(err):
		x.opaque = true
		x.phase, x.began = ready, time.Now()
	case errors.Is(err, io.EOF) && len(a.Unread()) == 0:
		x.attemptFailed(x.upstreamFault(errNoEvents))
	case errors.Is(err, io.EOF) && x.plainError():
		x.judgeBody()
	case errors.Is(err, io.EOF):
		x.takeLast(time.Now())
		if x.phase == awaitingContent {
			x.phase, x.began = ready, time.Now()
		}
		if x.phase == ready && x.route.proto != protoOpaque && !x.m.done && x.m.finishes == 0 && x.m.outputs == 0 {
			x.phase = awaitingContent
			x.attemptFailed(x.upstreamFault(errNoEvents))
		}
	default:
		x.attemptFailed(x.upstreamFault(err))
	}
	return true
}

func (x *exchange) upstreamFault(err error) *outcome.Error {
	class := faultOf(err, x.isStream)
	if x.watch.Aborted() {
		class = outcome.ClientGone
	}
	return &outcome.Error{Class: class, Endpoint: x.endpointID(), Status: x.attempt.Status, Err: err}
}

// heldLimit is how much may come before the first content token before it goes out anyway.
const heldLimit = 64 << 10

// scanEvents looks at the whole events that have come, takes out those the caller must not see and
// counts the rest into held. While no content has come it also decides whether it is time to commit.
func (x *exchange) scanEvents(now time.Time) {
	for {
		ev, ok := x.events.Next(x.attempt.Unread()[x.held:])
		if !ok {
			break
		}
		x.take(ev, now)
		if x.phase == failed || x.phase == picking || x.phase == awaitingSecond || x.errand != nil {
			return
		}
	}
	if x.phase == awaitingContent && x.held > heldLimit {
		x.phase, x.began = ready, now
	}
}

// takeLast takes what stands behind the last blank line when the body has ended; yes says that it is a whole event but for that line.
func (x *exchange) takeLast(now time.Time) (yes bool) {
	if rest := x.attempt.Unread()[x.held:]; len(rest) > 0 {
		if ev, ok := x.events.Last(rest); ok {
			ev.Size = len(rest)
			if x.chunk.Parse(ev.Name, ev.Data); !x.chunk.Malformed { // else it was cut off, and says nothing
				x.take(ev, now)
				x.unended = true
				return true
			}
		}
		if x.gathers() || x.resumed() {
			x.attempt.Cut(x.held, len(rest))
			return false
		}
		x.held += len(rest)
	}
	return false
}

func (x *exchange) take(ev sse.Event, now time.Time) {
	if !ev.HasData { // comments and the like mean nothing to us
		if x.gathers() || x.resumed() {
			x.attempt.Cut(x.held, ev.Size)
			return
		}
		x.held += ev.Size
		return
	}
	c := &x.chunk
	c.Parse(ev.Name, ev.Data)
	if x.phase == awaitingContent && c.Error {
		x.errorEvent(ev, c)
		return
	}
	if x.phase == awaitingContent && x.tale != nil && c.Aborted() && !c.Content {
		x.attemptFailed(x.upstreamFault(errAborted))
		return
	}
	if x.route.proto == protoChat && x.leased && x.of.another(c, !x.chats() || x.exact) && x.phase != awaitingContent {
		x.errand = errAnew // and what came is nobody's
		x.attempt.Cut(x.held, ev.Size)
		return
	}
	if x.numbered {
		x.number(&ev)
	}
	x.m.see(c, now)
	if x.phase == awaitingContent && x.leased && x.lease.Unnamed {
		x.learn(ev.Data)
	}
	begins := x.phase == awaitingContent && (c.Content || c.Finish || c.Done || (x.route.proto == protoOpaque))
	switch {
	case x.tale != nil && x.tell(c, &ev, now), x.dropUsage && c.UsageOnly:
		x.attempt.Cut(x.held, ev.Size)
	default:
		x.held += ev.Size
	}
	if x.errand != nil && x.phase == awaitingContent {
		err := x.errand
		x.errand = nil
		x.attemptFailed(x.upstreamFault(err))
		return
	}
	if begins {
		x.phase, x.began = ready, now
		if x.gathers() {
			x.phase = gathering
		}
		if x.resumed() {
			x.asked()
		}
	}
}

// answerID notices that a host, or what stands in front of it, begins anew in the middle of a stream: RunPod gives the work of a worker
// that is lost to another. The caller would get the answer, or its beginning, twice.
type answerID struct {
	id   [44]byte // the front of it
	n    uint8
	same uint8 // chunks in a row that had it, as far as matters
}

// another tells whether the chunk belongs to another answer than those before: it has another id than several that shared one, and says
// who speaks, as only first chunks do, where any do. Hosts that give every chunk an id of its own are left alone.
func (a *answerID) another(c *openai.Chunk, roleless bool) bool {
	if len(c.ID) == 0 {
		return false
	}
	n := min(len(c.ID), len(a.id))
	if n == int(a.n) && string(c.ID[:n]) == string(a.id[:n]) {
		a.same |= a.same + 1 // 0, 1, 3 and so on, and never back to 0
		return false
	}
	was := a.same
	a.n, a.same = uint8(copy(a.id[:], c.ID)), 1
	return was > 1 && (c.Role || roleless)
}

// chats tells whether answers are messages, which somebody says.
func (x *exchange) chats() bool { return x.route.path == chatRoute }

// reported is w where it says something.
func reported(w endpoint.WorkerReport) *endpoint.WorkerReport {
	if w == (endpoint.WorkerReport{}) {
		return nil
	}
	return &w
}

// classify asks the provider's adapter what an answer means that says class by itself.
func (x *exchange) classify(class outcome.Class, status int, body []byte) outcome.Class {
	if !x.leased {
		return class
	}
	return x.s.classify(x.lease.Endpoint, class, status, x.attempt.Head.ContentType(), body)
}

// errorEvent treats an error that comes as the first event as if it had come as a status.
func (x *exchange) errorEvent(ev sse.Event, c *openai.Chunk) {
	class, status := outcome.UpstreamFault, 502
	if c.ErrorStatus >= 400 {
		class, status = outcome.OfStatus(c.ErrorStatus), c.ErrorStatus
	}
	class = x.classify(class, status, ev.Data)
	ne, _ := openai.NormalizeError(status, jsonType, ev.Data)
	oe := &outcome.Error{Class: class, Endpoint: x.endpointID(), Status: status, Err: errEvent}
	if class == outcome.CallerFault && x.resumed() {
		x.notGoneOn(*oe)
		return
	}
	if class == outcome.CallerFault {
		refusal := x.refusal(ne, ev.Data)
		x.endAttempt(*oe, time.Now())
		x.fail(&refusal)
		return
	}
	x.attemptFailed(oe)
}

// awaitBody reads a plain answer whole, up to the buffer's limit; a longer one is passed on as it comes.
func (x *exchange) awaitBody() {
	a := x.attempt
	for {
		err := a.More(x.firstBy, x.set.FirstEvent/8)
		switch {
		case err == nil:
			continue
		case errors.Is(err, forward.ErrInterrupted):
			if x.calledAway(); x.phase == awaitingBody {
				continue
			}
		case errors.Is(err, io.EOF):
			x.bodyEnd = true
			x.judgeBody()
		case a.Full(err):
			x.phase, x.began = ready, time.Now()
		case errors.Is(err, os.ErrDeadlineExceeded) && !x.watch.Aborted():
			x.attemptFailed(&outcome.Error{Class: outcome.FirstByteTimeout, Endpoint: x.endpointID(), Status: a.Status, Err: err})
		default:
			x.attemptFailed(x.upstreamFault(err))
		}
		return
	}
}

// judgeBody looks into a whole plain answer.
func (x *exchange) judgeBody() {
	now := time.Now()
	x.chunk.ParseBody(x.attempt.Unread())
	c := &x.chunk
	switch {
	case c.Malformed && (len(x.attempt.Unread()) > 0 || x.route.proto != protoOpaque):
		x.attemptFailed(x.upstreamFault(errGarbage))
		return
	case c.Error:
		status := c.ErrorStatus
		class := outcome.UpstreamFault
		if status >= 400 {
			class = outcome.OfStatus(status)
		}
		class = x.classify(class, status, x.attempt.Unread())
		if class != outcome.CallerFault {
			x.attemptFailed(&outcome.Error{Class: class, Endpoint: x.endpointID(), Status: status, Err: errErrorBody})
			return
		}
		if x.resumed() {
			x.notGoneOn(outcome.Error{Class: class, Endpoint: x.endpointID(), Status: status, Err: errErrorBody})
			return
		}
		ne, _ := openai.NormalizeError(status, jsonType, x.attempt.Unread())
		refusal := x.refusal(ne, x.attempt.Unread())
		x.endAttempt(outcome.Error{Class: class, Endpoint: x.endpointID(), Status: status, Err: errErrorBody}, time.Now())
		x.fail(&refusal)
		return
	}
	x.m.see(c, now)
	if x.leased && x.lease.Unnamed {
		x.learn(x.attempt.Unread())
	}
	x.phase, x.began = ready, now
}

// learn tells under which id a host has answered of which nobody knew it.
func (x *exchange) learn(answer []byte) {
	var a struct {
		Model string `json:"model"`
	}
	if x.s.opt.Learned != nil && json.Unmarshal(answer, &a) == nil && a.Model != "" {
		x.s.opt.Learned(x.lease.Endpoint.ID, a.Model)
	}
}

func retryAfter(v []byte) time.Duration {
	if len(v) == 0 {
		return 0
	}
	if s, err := strconv.Atoi(string(v)); err == nil && s >= 0 && s < 1<<20 {
		return time.Duration(s) * time.Second
	}
	if t, err := fasthttp.ParseHTTPDate(v); err == nil {
		return max(0, time.Until(t))
	}
	return 0
}
