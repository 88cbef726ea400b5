package gateway

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"

	"headrace/gateway/forward"
	"headrace/gateway/ledger"
	"headrace/gateway/openai"
	"headrace/gateway/sse"
	"headrace/gateway/trace"
	"headrace/router"
	"headrace/router/cost"
	"headrace/router/outcome"
)

// A hedge is a request's second attempt while its first one still waits for its first token. It runs in a goroutine of its own, up
// to the first event with content, which it leaves where it is. Whoever has such an event first wins by setting state, and the other
// is cut: the exchange takes a hedge that has won for its attempt, lease and all, and reads its answer from the beginning.
//
// The goroutine holds nothing of the exchange, which may be over, and another request's, before it notices that it has lost: the
// request is a copy. Whoever takes state away from racing settles the lease; the connection stays the goroutine's unless it wins.
type hedge struct {
	s    *Server
	id   string         // of the request
	main *forward.Guard // of the first attempt
	done chan struct{}  // closed when the goroutine touches nothing any more

	state atomic.Uint32

	ask     router.Request // the lease refers to it
	lease   router.Lease
	guard   forward.Guard
	attempt *forward.Attempt
	host    *forward.Host
	req     forward.Request
	span    trace.SpanID
	inject  bool // the usage event is asked for by us
	number  bool // likewise the numbers of tokens

	at       time.Time // it began
	by, full time.Time // its first content is due; where nobody else can be asked

	seen   int // bytes of events that were looked at
	events sse.Scanner
	chunk  openai.Chunk

	failure outcome.Error // why it has failed, with state failed
	usd     float64       // its cost then
	paid    bool          // usd is known
}

// States of a hedge. Only racing is left, and once.
const (
	hedgeRacing uint32 = iota
	hedgeWon           // it has content, and is the exchange's
	hedgeLost          // the first attempt has
	hedgeFailed
)

// Words of the ledger for what became of a hedge.
const (
	wordWon    = "won"
	wordLost   = "lost"
	wordFailed = "failed"
)

const (
	hedgeLooks = 8                     // for an idle host, while one could still keep the promise
	hedgeEvery = 20 * time.Millisecond // at least, between two
)

var errOutrun = errors.New("another host was faster")

// armHedge sets when another host is to be asked beside the one that was asked now.
func (x *exchange) armHedge() {
	x.hedgeAt = time.Time{}
	if !x.leased || x.second != nil || x.rec.Hedge != "" || x.resumed() || !x.seesFirst() {
		return
	}
	from, until := x.lease.HedgeWindow()
	if from >= until {
		return
	}
	x.hedgeEvery, x.hedgeBy = max(hedgeEvery, (until-from)/hedgeLooks), x.beginAt.Add(until)
	if from == 0 {
		from = x.hedgeEvery // this moment there is nobody, or he would have been picked
	}
	x.hedgeAt = x.beginAt.Add(from)
}

// wakeBy is when a wait for the first event ends that may last until the given time.
func (x *exchange) wakeBy(until time.Time) time.Time {
	by := earlier(until, x.firstBy)
	if !x.hedgeAt.IsZero() {
		by = earlier(by, x.hedgeAt)
	}
	return by
}

// tryHedge asks an idle host as well, if it is time, and there is one, and the budget allows it.
func (x *exchange) tryHedge() {
	now := time.Now()
	switch {
	case now.Before(x.hedgeAt):
		return
	case x.phase != awaitingHead && x.phase != awaitingContent, x.watch.Aborted(), !now.Before(x.hedgeBy):
		x.hedgeAt = time.Time{}
		return
	}
	x.hedgeAt = now.Add(x.hedgeEvery)
	r := x.s.router
	if !r.Budget.Left() || !r.Hedges.Spend() { // a fleet that fails as it is gets nothing more to do
		return
	}
	if !x.startHedge(now) {
		r.Hedges.Refund()
		return
	}
	x.hedgeAt = time.Time{}
}

func (x *exchange) startHedge(now time.Time) bool {
	h := &hedge{s: x.s, id: x.rec.ID, main: &x.watch.Guard, done: make(chan struct{}), ask: x.ask, at: now}
	tried := x.tried
	n := min(x.rec.Tries, len(tried)-1)
	tried[n] = x.lease.Endpoint.ID
	h.ask.Now, h.ask.Tried = now, tried[:n+1]
	if x.s.router.Hedge(&h.ask, &h.lease) != nil {
		return false
	}
	ep := h.lease.Endpoint
	gather := x.tale != nil && x.tale.gather
	h.inject, h.host = x.injects(ep), x.s.forward.Host(ep.ID)
	if h.host == nil || gather && !h.inject {
		h.lease.Done(router.Result{Class: outcome.ClientGone, Cached: -1})
		return false
	}
	body := x.ctx.Request.Body()
	parts := [][]byte{body}
	if h.lease.ServedJSON != nil || h.inject {
		parts, _ = x.scan.Parts(parts[:0], body, h.lease.ServedJSON, h.inject, h.inject && gather)
	}
	if h.number = x.wantsNumbers(&h.lease); h.number {
		parts, _ = openai.AskTokenIDs(parts, 0)
	}
	head, copied := bytes.Clone(x.head[:x.headLen]), bytes.Join(parts, nil)
	if x.rec.Trace.On() {
		h.span = x.set.Tracing.NewSpan()
		head = x.parent(head, ep, h.span)
	}
	h.req = forward.Request{Method: x.req.Method, Path: x.req.Path, Header: head, Body: [][]byte{copied}, Size: len(copied)}
	soon, full := x.firstWithin(&h.lease)
	h.by, h.full = earlier(now.Add(soon), x.totalBy), earlier(now.Add(full), x.totalBy)
	h.attempt = attempts.Get().(*forward.Attempt)
	x.second = h
	x.watch.second.Store(&h.guard)
	if x.watch.Aborted() { // the caller left before he could be seen to leave two hosts
		h.guard.Abort()
	}
	x.s.hedges.Add(1)
	go h.run()
	return true
}

// run is the hedge's goroutine. It ends with the hedge's first content, its failure, or soon after guard was aborted.
func (h *hedge) run() {
	defer h.s.hedges.Add(-1) // last: a drain waits for it
	defer close(h.done)
	defer func() {
		if r := recover(); r != nil {
			h.s.panicked(h.id, r)
			h.end(h.fault(outcome.UpstreamFault, errOutrun))
		}
	}()
	oe := h.begin()
	if oe == nil && h.state.CompareAndSwap(hedgeRacing, hedgeWon) {
		h.main.Call()
		return
	}
	h.end(oe)
}

// end gives back what the goroutine holds. oe is nil where the other attempt was a moment faster.
func (h *hedge) end(oe *outcome.Error) {
	a := h.attempt
	w, told := a.Report()
	if told && h.s.opt.Worked != nil {
		h.s.opt.Worked(h.lease.Endpoint.ID, w)
	}
	if oe != nil {
		h.failure = *oe
		h.usd, h.paid = h.cost(time.Now(), w.Executed)
		if h.state.CompareAndSwap(hedgeRacing, hedgeFailed) {
			h.lease.Done(router.Result{Class: oe.Class, RetryAfter: oe.RetryAfter, Cached: -1, USD: h.usd})
			h.s.attemptFailed(h.id, oe.Class, oe.Endpoint, oe.Status, oe.Err)
		}
	}
	a.Finish()
	attempts.Put(a)
}

// cost is what the hedge has cost by now, if it gives no answer.
func (h *hedge) cost(now time.Time, executed time.Duration) (usd float64, known bool) {
	return cost.USD(&h.lease.Endpoint.Price, cost.Used{
		Busy: now.Sub(h.at), InFlight: h.lease.MeanInFlight(now), Executed: executed, Prompt: -1, Cached: -1, Output: -1, BytesIn: int64(h.req.Size),
	})
}

// usage is what the hedge took, if it gives no answer.
func (h *hedge) usage(class outcome.Class, status int, now time.Time, usd float64) ledger.Usage {
	u := ledger.Usage{Basis: h.lease.Endpoint.Price.Basis, Share: time.Duration(float64(now.Sub(h.at)) / max(1, h.lease.MeanInFlight(now))), PromptUSD: usd}
	if worked(class, status) {
		u.Prompt = h.lease.PromptTokens(int64(h.ask.PromptTokens))
	}
	return u
}

func (h *hedge) fault(class outcome.Class, err error) *outcome.Error {
	if h.guard.Aborted() {
		class = outcome.ClientGone
	}
	return &outcome.Error{Class: class, Endpoint: h.lease.Endpoint.ID, Status: h.attempt.Status, Err: err}
}

// begin carries the attempt to its first content; nil means that it is there.
func (h *hedge) begin() *outcome.Error {
	a := h.attempt
	err := a.Start(h.host, &h.guard, &h.req, h.at)
	if err == nil {
		err = a.AwaitHead(h.by)
	}
	if err != nil {
		if oe, ok := errors.AsType[*outcome.Error](err); ok {
			return oe
		}
		if errors.Is(err, forward.ErrInterrupted) {
			return h.fault(outcome.Moved, err)
		}
		return h.fault(outcome.FirstByteTimeout, err)
	}
	ct := a.Head.ContentType()
	switch class := outcome.OfStatus(a.Status); {
	case class != outcome.Success:
		return h.refused(class)
	case isType(ct, htmlType):
		return h.fault(h.s.classify(h.lease.Endpoint, outcome.UpstreamFault, a.Status, ct, nil), errHTML)
	case !isType(ct, eventStream): // its first token cannot be seen
		return h.fault(outcome.Outrun, errNoStream)
	}
	for {
		if found, oe := h.look(); found {
			return oe
		}
		switch err := a.More(h.by, 0); {
		case err == nil:
		case errors.Is(err, io.EOF):
			return h.ended()
		case a.Full(err):
			return h.fault(outcome.Outrun, err)
		case errors.Is(err, os.ErrDeadlineExceeded):
			return h.fault(outcome.FirstByteTimeout, err)
		default:
			return h.fault(faultOf(err, true), err)
		}
	}
}

// look reads the events that have come, up to the first with content or an error.
func (h *hedge) look() (found bool, _ *outcome.Error) {
	for {
		ev, ok := h.events.Next(h.attempt.Unread()[h.seen:])
		if !ok {
			return false, nil
		}
		h.seen += ev.Size
		if !ev.HasData {
			continue
		}
		switch h.chunk.Parse(ev.Name, ev.Data); {
		case h.chunk.Error:
			return true, h.said(ev.Data)
		case h.chunk.Aborted():
			return true, h.fault(outcome.UpstreamFault, errAborted)
		case h.chunk.Content || h.chunk.Finish:
			return true, nil
		}
	}
}

// said is the error that the host has put into its answer.
func (h *hedge) said(data []byte) *outcome.Error {
	class, status := outcome.UpstreamFault, 502
	if h.chunk.ErrorStatus >= 400 {
		class, status = outcome.OfStatus(h.chunk.ErrorStatus), h.chunk.ErrorStatus
	}
	return h.fault(h.s.classify(h.lease.Endpoint, class, status, jsonType, data), errEvent)
}

// ended is an answer that was over before its first content.
func (h *hedge) ended() *outcome.Error {
	if rest := bytes.TrimSpace(h.attempt.Unread()); len(rest) > 0 && rest[0] == '{' {
		if h.chunk.ParseBody(rest); h.chunk.Error && !h.chunk.Malformed {
			return h.said(rest)
		}
	}
	return h.fault(outcome.UpstreamFault, errNoEvents)
}

// refused is an answer that is no 2xx.
func (h *hedge) refused(class outcome.Class) *outcome.Error {
	a := h.attempt
	by := earlier(time.Now().Add(errorBodyTime), h.by)
	var err error
	for err == nil && len(a.Unread()) < maxErrorBody {
		err = a.More(by, 0)
	}
	ne, _ := openai.NormalizeError(a.Status, a.Head.ContentType(), a.Unread())
	oe := h.fault(h.s.classify(h.lease.Endpoint, class, a.Status, a.Head.ContentType(), a.Unread()), &ne)
	oe.RetryAfter = retryAfter(a.Head.Peek(fasthttp.HeaderRetryAfter))
	return oe
}

// faultOf is the class of an attempt that broke off before its first content; isStream says that it had begun.
func faultOf(err error, isStream bool) outcome.Class {
	switch {
	case errors.Is(err, forward.ErrInterrupted):
		return outcome.Moved
	case errors.Is(err, syscall.ECONNRESET), isStream && (errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.ErrClosedPipe)):
		return outcome.Severed
	}
	return outcome.UpstreamFault
}

// outrun tells whether the hedge has won.
func (x *exchange) outrun() bool { return x.second != nil && x.second.state.Load() == hedgeWon }

// race looks which of the two attempts is ahead, and ends the other.
func (x *exchange) race() {
	for x.second != nil {
		h := x.second
		switch h.state.Load() {
		case hedgeWon:
			x.adopt()
			return
		case hedgeFailed:
			x.forgetSecond()
			x.noteSecond(h, wordFailed, h.failure, time.Now(), h.usd, h.paid)
			if x.phase == awaitingSecond {
				x.began = time.Now()
				x.elsewhere(x.last)
			}
			return
		}
		switch x.phase {
		case picking, awaitingHead, awaitingContent, awaitingBody, awaitingSecond:
			return
		case gathering, ready, failed:
		}
		x.cutSecond()
	}
}

// awaitSecond waits for the hedge after the first attempt has failed. false means that until has come.
func (x *exchange) awaitSecond(until time.Time) bool {
	late := time.NewTimer(time.Until(until))
	defer late.Stop()
	select {
	case <-x.second.done:
		return true
	case <-late.C:
		return false
	}
}

// adopt makes a hedge that has won the exchange's attempt.
func (x *exchange) adopt() {
	h := x.second
	<-h.done // else its Call may come afterwards
	if x.leased {
		before := x.rec.USD
		x.endAttempt(outcome.Error{Class: outcome.Outrun, Endpoint: x.endpointID(), Status: x.attempt.Status, Err: errOutrun}, time.Now())
		x.rec.HedgeUSD += x.rec.USD - before
	}
	attempts.Put(x.attempt)
	x.attempt, x.lease, x.leased = h.attempt, h.lease, true
	h.req.Header, h.req.Body = nil, nil // the lease refers to h for as long as the answer takes
	x.again()
	x.opaque, x.verbatim, x.failure, x.retryWait, x.rec.Code = false, false, nil, 0, ""
	x.beginAt, x.firstBy, x.fullBy, x.span = h.at, h.by, h.full, h.span
	x.numbered, x.exact = h.number, false
	if x.dropUsage = h.inject; x.tale != nil && x.tale.gather {
		x.tale.opened = h.inject
	}
	x.rec.Hedge, x.hedged = wordWon, true
	x.isStream, x.phase = true, awaitingContent
	guarded := x.attempt.PassTo(&x.watch.Guard)
	x.forgetSecond()
	if !guarded {
		x.attemptFailed(&outcome.Error{Class: outcome.ClientGone, Endpoint: h.lease.Endpoint.ID, Status: x.attempt.Status, Err: os.ErrClosed})
		return
	}
	x.scanEvents(time.Now())
}

func (x *exchange) forgetSecond() {
	x.second = nil
	x.watch.second.Store(nil)
}

// cutSecond ends a hedge that has lost; it does nothing if that has won or failed meanwhile.
func (x *exchange) cutSecond() {
	h := x.second
	if !h.state.CompareAndSwap(hedgeRacing, hedgeLost) {
		return
	}
	gone := x.watch.Aborted()
	h.guard.Abort()
	x.forgetSecond()
	class := outcome.Outrun
	if gone {
		class = outcome.ClientGone
	}
	now := time.Now()
	usd, known := h.cost(now, 0)
	h.lease.Done(router.Result{Class: class, At: now, Cached: -1, USD: usd})
	x.noteSecond(h, wordLost, outcome.Error{Class: class, Endpoint: h.lease.Endpoint.ID}, now, usd, known)
}

// dropSecond ends a hedge whatever became of it: its request is over.
func (x *exchange) dropSecond() {
	if x.second == nil {
		return
	}
	if x.cutSecond(); x.second == nil {
		return
	}
	h := x.second
	<-h.done
	x.forgetSecond()
	now := time.Now()
	if h.state.Load() == hedgeFailed {
		x.noteSecond(h, wordFailed, h.failure, now, h.usd, h.paid)
		return
	}
	usd, known := h.cost(now, 0)
	h.lease.Done(router.Result{Class: outcome.ClientGone, At: now, Cached: -1, USD: usd})
	h.attempt.Finish()
	attempts.Put(h.attempt)
	x.noteSecond(h, wordLost, outcome.Error{Class: outcome.ClientGone, Endpoint: h.lease.Endpoint.ID}, now, usd, known)
}

// noteSecond writes into the record what became of a hedge that gave no answer.
func (x *exchange) noteSecond(h *hedge, word string, oe outcome.Error, now time.Time, usd float64, known bool) {
	r := &x.rec
	x.hasTried(oe.Endpoint)
	*r.Note() = ledger.Attempt{
		Endpoint: oe.Endpoint, Class: oe.Class, Status: oe.Status, After: h.at.Sub(r.At), Duration: now.Sub(h.at), USD: usd, USDKnown: known,
		Span: h.span, Provider: h.lease.Endpoint.Provider, Served: h.lease.Served, Decision: h.lease.Decision, Hedge: true,
		Usage: h.usage(oe.Class, oe.Status, now, usd),
	}
	r.Tries++
	r.Hedge = word
	if known {
		r.USD += usd
		r.HedgeUSD += usd
		r.USDKnown = true
	}
}
