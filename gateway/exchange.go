package gateway

import (
	"bytes"
	"errors"
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

	*sending                  // nil once no attempt will be made any more
	ask        router.Request // what the router is asked
	sought     sought
	model      string
	wantStream bool
	numbered   bool        // the numbers of tokens were asked for by us: the caller does not get to see them
	exact      bool        // the attempt goes on with the answer by these
	dropUsage  bool        // the usage event was asked for by us: the caller does not get to see it
	noInject   endpoint.ID // refused our stream_options, as it seems: this request goes there without
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
	chunk     *openai.Chunk // the event that is looked at; nil between two looks
	held      int           // bytes at the front of Unread that are whole events, ready to go out
	opaque    bool          // too long an event: bytes pass unread from here on
	committed bool          // the response head is out or on its way
	beating   bool          // committed before anything came
	wrote     bool          // a byte of the body went out
	bodyEnd   bool          // the upstream's body ended in good order
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

// sending is what attempts are made of. An exchange has it until no other can follow, which for most is when content has gone out: a
// stream that is held open then does without.
type sending struct {
	scan  openai.Request
	req   forward.Request
	parts [9][]byte
	tried [maxTried]endpoint.ID
}

// sought is what was asked for that matters to an answer's end.
type sought struct {
	n    int64 // openai.Request's N
	most int64 // and MaxTokens
	stop bool  // and Stop
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

// resumed tells whether the answer was gone on with.
func (x *exchange) resumed() bool { return x.tale != nil && x.tale.breaks > 0 }

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
