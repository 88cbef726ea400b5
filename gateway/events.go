package gateway

import (
	"errors"
	"io"
	"os"
	"time"

	"headrace/gateway/forward"
	"headrace/gateway/openai"
	"headrace/gateway/sse"
	"headrace/router/outcome"
)

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
	was := x.look()
	x.scanAll(now)
	x.looked(was)
}

// scanAll is scanEvents with x.chunk in place.
func (x *exchange) scanAll(now time.Time) {
	for {
		ev, ok := x.events.Next(x.attempt.Unread()[x.held:])
		if !ok {
			break
		}
		x.take(&ev, now)
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
	defer x.looked(x.look())
	if rest := x.attempt.Unread()[x.held:]; len(rest) > 0 {
		if ev, ok := x.events.Last(rest); ok {
			ev.Size = len(rest)
			if x.chunk.Parse(ev.Name, ev.Data); !x.chunk.Malformed { // else it was cut off, and says nothing
				x.take(&ev, now)
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

// look readies x.chunk for what has come. It returns what is there already, where one look leads to another.
func (x *exchange) look() (was *openai.Chunk) {
	was, x.chunk = x.chunk, chunks.Get().(*openai.Chunk)
	return was
}

// looked gives it back: a stream that waits for its next token has no use for it.
func (x *exchange) looked(was *openai.Chunk) {
	chunks.Put(x.chunk)
	x.chunk = was
}

func (x *exchange) take(ev *sse.Event, now time.Time) {
	if !ev.HasData { // comments and the like mean nothing to us
		if x.gathers() || x.resumed() {
			x.attempt.Cut(x.held, ev.Size)
			return
		}
		x.held += ev.Size
		return
	}
	c := x.chunk
	c.Parse(ev.Name, ev.Data)
	if x.phase == awaitingContent && c.Error {
		x.errorEvent(ev, c)
		return
	}
	if x.phase == awaitingContent && x.tale != nil && c.Aborted() { // its words, if it has any, are those of an answer that nobody has begun to read
		x.attemptFailed(x.upstreamFault(errAborted))
		return
	}
	if x.route.proto == protoChat && x.leased && x.of.another(c, !x.chats() || x.exact) && x.phase != awaitingContent {
		x.errand = errAnew // and what came is nobody's
		x.attempt.Cut(x.held, ev.Size)
		return
	}
	if x.numbered {
		x.number(ev)
	}
	if x.tale != nil && (c.Malformed || c.Aborted()) && x.phase != awaitingContent {
		c.Content, c.Outputs = false, 0 // the caller does not get it, or cannot read it: it is no token of his
	}
	outputs := x.m.outputs
	x.m.see(c, now)
	if x.phase == awaitingContent && x.leased && x.lease.Unnamed {
		x.learn(ev.Data)
	}
	begins := x.phase == awaitingContent && (c.Content || c.Finish || c.Done || (x.route.proto == protoOpaque))
	taken := x.tale != nil && x.tell(c, ev, now)
	if x.rec.Said != nil && x.errand == nil {
		keep(x.rec.Said, c, ev.Data)
	}
	if taken || x.dropUsage && c.UsageOnly {
		x.attempt.Cut(x.held, ev.Size)
	} else {
		x.held += ev.Size
	}
	switch err := x.errand; {
	case err == nil:
	case x.phase == awaitingContent:
		x.errand = nil
		x.attemptFailed(x.upstreamFault(err))
		return
	default:
		x.m.outputs = outputs // likewise
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

// sees takes the id of an answer in one piece.
func (a *answerID) sees(c *openai.Chunk) { a.n = uint8(copy(a.id[:], c.ID)) }

// whole is the id, "" where there is none, or it may be longer than what is kept of it.
func (a *answerID) whole() string {
	if int(a.n) == len(a.id) {
		return ""
	}
	return string(a.id[:a.n])
}

// chats tells whether answers are messages, which somebody says.
func (x *exchange) chats() bool { return x.route.path == chatRoute }
