package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"

	"headrace/gateway/forward"
	"headrace/gateway/openai"
	"headrace/gateway/sse"
	"headrace/router/outcome"
)

// errorBodyTime is how long the body of an error may take.
const errorBodyTime = 5 * time.Second

const maxErrorBody = 64 << 10

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
		x.notGoneOn(*oe, a.Unread())
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
	c := chunks.Get().(*openai.Chunk)
	defer chunks.Put(c)
	c.ParseBody(body)
	return c.Error && !c.Malformed
}

// classify asks the provider's adapter what an answer means that says class by itself.
func (x *exchange) classify(class outcome.Class, status int, body []byte) outcome.Class {
	if !x.leased {
		return class
	}
	return x.s.classify(x.lease.Endpoint, class, status, x.attempt.Head.ContentType(), body)
}

// errorEvent treats an error that comes as the first event as if it had come as a status.
func (x *exchange) errorEvent(ev *sse.Event, c *openai.Chunk) {
	class, status := outcome.UpstreamFault, 502
	if c.ErrorStatus >= 400 {
		class, status = outcome.OfStatus(c.ErrorStatus), c.ErrorStatus
	}
	class = x.classify(class, status, ev.Data)
	ne, _ := openai.NormalizeError(status, jsonType, ev.Data)
	oe := &outcome.Error{Class: class, Endpoint: x.endpointID(), Status: status, Err: errEvent}
	if class == outcome.CallerFault && x.resumed() {
		x.notGoneOn(*oe, ev.Data)
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
	if a.Ended() { // it came with its head
		x.bodyEnd = true
		x.judgeBody()
		return
	}
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
	defer x.looked(x.look())
	c := x.chunk
	c.ParseBody(x.attempt.Unread())
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
			x.notGoneOn(outcome.Error{Class: class, Endpoint: x.endpointID(), Status: status, Err: errErrorBody}, x.attempt.Unread())
			return
		}
		ne, _ := openai.NormalizeError(status, jsonType, x.attempt.Unread())
		refusal := x.refusal(ne, x.attempt.Unread())
		x.endAttempt(outcome.Error{Class: class, Endpoint: x.endpointID(), Status: status, Err: errErrorBody}, time.Now())
		x.fail(&refusal)
		return
	}
	x.m.see(c, now)
	x.of.sees(c)
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
