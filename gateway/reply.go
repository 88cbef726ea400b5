package gateway

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"

	"headrace/gateway/forward"
	"headrace/gateway/openai"
	"headrace/router"
)

// answer makes the outcome of advance the response. It returns false when the body is still to be
// relayed, by WriteTo, after the handler.
func (x *exchange) answer() (complete bool) {
	if x.phase == failed {
		x.setHeaders(x.began)
		if x.failure.RetryAfter == 0 {
			x.failure.RetryAfter = x.retryWait
		}
		writeError(x.ctx, x.failure, x.route.proto)
		x.rec.Status = x.failure.Status
		return true
	}
	a := x.attempt
	x.ctx.SetStatusCode(a.Status)
	copyHead(&x.ctx.Response.Header, &a.Head)
	x.rec.Status = a.Status
	if x.gathers() && x.bodyEnd {
		h := &x.ctx.Response.Header
		h.SetContentTypeBytes(jsonType)
		h.DelBytes(cacheControl)             // the stream's
		x.ctx.Response.SetBody(*x.tale.body) // a copy: the buffer goes back with the tale
		x.rec.BytesOut = int64(len(*x.tale.body))
		x.setHeaders(x.began)
		return true
	}
	if x.verbatim || x.bodyEnd || a.Ended() && !x.isStream {
		x.bodyEnd = true
		x.ctx.Response.SetBody(a.Unread()) // a copy: the buffer goes back with the attempt
		x.rec.BytesOut = int64(len(a.Unread()))
		if x.rec.Said != nil && a.Status < 300 {
			x.rec.Said.Answer(a.Unread())
		}
		if x.ctx.IsHead() { // the length that GET would have, not the length of nothing
			x.ctx.Response.SkipBody = true
			x.ctx.Response.Header.SetContentLength(max(0, a.Head.ContentLength()))
		}
		x.setHeaders(x.began)
		return true
	}
	x.setHeaders(x.began)
	x.stream()
	return false
}

var cacheControl = []byte("Cache-Control")

// stream hands the rest of the answer to WriteTo.
func (x *exchange) stream() {
	x.committed = true
	if x.rec.Said != nil && (x.opaque || !x.isStream) { // it is passed on unread
		x.rec.Said.Cut = true
	}
	_ = x.ctx.SetWriteDeadline(time.Now().Add(x.set.ClientWrite)) // makes it ours to renew, and the server's to clear
	if !x.ctx.Request.Header.IsHTTP11() {
		x.streamToClose()
		return
	}
	x.ctx.Response.ImmediateHeaderFlush = x.bare()
	x.ctx.Response.SetBodyStream(x, -1)
}

// bare tells whether the head is all there is of the answer yet.
func (x *exchange) bare() bool { return x.phase == ready && !x.wrote && len(x.attempt.Unread()) == 0 }

// streamToClose is stream for an HTTP/1.0 caller, who knows no chunks: the connection's end is the
// body's. fasthttp writes chunks to every caller, so the connection is taken from it.
func (x *exchange) streamToClose() {
	h := &x.ctx.Response.Header
	h.SetContentLength(-2)
	head := append([]byte(nil), h.Header()...)
	x.ctx.HijackSetNoResponse(true)
	rc, moved := x.ctx.Conn().(*replayConn)
	if moved {
		rc.users.Add(1)
	}
	x.ctx.Hijack(func(c net.Conn) { // closed behind it
		if moved {
			defer rc.users.Done()
		}
		defer func() {
			if r := recover(); r != nil {
				x.broken = fmt.Errorf("%w: %v", errPanicked, r)
				x.s.panicked(x.rec.ID, r)
			}
			_ = x.CloseWithError(nil)
		}()
		x.armWrite()
		if _, x.broken = c.Write(head); x.broken == nil {
			x.broken = x.relay(&down{w: c})
		}
	})
}

// Names of the header fields an answer carries, in the form they go out.
var (
	nameRequestID = []byte("X-Request-Id")
	nameEndpoint  = []byte("X-Headrace-Endpoint")
	nameProvider  = []byte("X-Headrace-Provider")
	nameAttempts  = []byte("X-Headrace-Attempts")
	nameTTFT      = []byte("X-Headrace-Ttft-Ms")
	nameCost      = []byte("X-Headrace-Cost-Usd")
	nameTiming    = []byte("Server-Timing")
	nameArm       = []byte("X-Headrace-Arm")
)

// setHeaders adds what Headrace tells of itself. now is when the answer was ready.
func (x *exchange) setHeaders(now time.Time) {
	var buf [64]byte
	h := &x.ctx.Response.Header
	h.SetCanonical(nameRequestID, append(buf[:0], x.rec.ID...))
	if x.pass != nil {
		x.setLimits(x.pass.Left())
	}
	if x.rec.Arm != "" {
		h.SetCanonical(nameArm, append(buf[:0], x.rec.Arm...))
	}
	id, provider, tries := x.rec.Endpoint, x.rec.Provider, x.rec.Tries
	if x.leased {
		id, provider, tries = x.lease.Endpoint.ID, x.lease.Endpoint.Provider, tries+1
	} else if x.pinned != "" {
		id = x.pinned
	}
	if x.rec.Queued > 0 {
		h.SetCanonical(nameTiming, appendMillis(append(buf[:0], "queue;dur="...), x.rec.Queued))
	}
	if id == "" {
		return
	}
	h.SetCanonical(nameEndpoint, append(buf[:0], id...))
	if provider != "" {
		h.SetCanonical(nameProvider, append(buf[:0], provider...))
	}
	h.SetCanonical(nameAttempts, strconv.AppendInt(buf[:0], int64(max(1, tries)), 10))
	if x.phase != ready {
		return
	}
	first := x.m.firstAt
	if first.IsZero() {
		first = now
	}
	h.SetCanonical(nameTTFT, appendMillis(buf[:0], first.Sub(x.rec.At)))
	timing := append(buf[:0], "upstream;dur="...)
	if x.rec.Queued > 0 {
		timing = append(appendMillis(append(buf[:0], "queue;dur="...), x.rec.Queued), ", upstream;dur="...)
	}
	h.SetCanonical(nameTiming, appendMillis(timing, first.Sub(x.beginAt)))
	if x.bodyEnd && x.leased {
		if usd, ok := x.usd(now); ok {
			h.SetCanonical(nameCost, appendUSD(buf[:0], usd))
		}
	}
}

// appendMillis writes d in milliseconds with one decimal.
func appendMillis(dst []byte, d time.Duration) []byte {
	tenths := max(0, (d.Microseconds()+50)/100)
	dst = strconv.AppendInt(dst, tenths/10, 10)
	return append(dst, '.', byte('0'+tenths%10))
}

// appendUSD writes usd with nine decimals.
func appendUSD(dst []byte, usd float64) []byte {
	if !(usd >= 0 && usd < 1e6) { //nolint:staticcheck // NaN as well
		return strconv.AppendFloat(dst, usd, 'f', 9, 64)
	}
	nano := int64(math.Round(usd * 1e9)) // a third of AppendFloat's time
	dst = strconv.AppendInt(dst, nano/1e9, 10)
	dst = append(dst, '.')
	n := len(dst)
	dst = strconv.AppendInt(dst, 1e9+nano%1e9, 10)
	dst = append(dst[:n], dst[n+1:]...) // without the one that keeps the zeros in front
	return dst
}

// Read is never called: fasthttp uses WriteTo. It is there to satisfy io.Reader.
func (x *exchange) Read([]byte) (int, error) { return 0, io.ErrNoProgress }

// SupportsBodyWriteTo tells fasthttp to run WriteTo in the connection's own goroutine.
func (x *exchange) SupportsBodyWriteTo() bool { return true }

// down is where body bytes go. The first piece goes through fasthttp's writer, behind the response
// head and in one packet with it; each further one straight to the connection, framed in the buffer
// it was read into. An HTTP/1.0 caller's w is the connection itself.
type down struct {
	w    io.Writer
	conn net.Conn // nil for HTTP/1.0
}

// WriteTo relays the body. fasthttp calls it after the handler, with a writer that flushes each Write.
func (x *exchange) WriteTo(w io.Writer) (int64, error) {
	d := down{w: w, conn: x.ctx.Conn()}
	defer func() {
		if r := recover(); r != nil {
			x.broken = fmt.Errorf("%w: %v", errPanicked, r)
			x.s.panicked(x.rec.ID, r)
			panic(r) // fasthttp turns it into an error and closes the connection
		}
	}()
	if err := x.relay(&d); err != nil {
		x.broken = err
		return x.rec.BytesOut, io.ErrUnexpectedEOF // no last chunk goes out, and fasthttp does not log this one
	}
	return x.rec.BytesOut, nil
}

var ping = []byte(": ping\n\n")

// relay sends the answer; nil means that it is complete and the response may end in good order.
func (x *exchange) relay(d *down) error {
	if !x.ready() {
		if err := x.write(d, ping); err != nil { // due: heartbeat's time has passed in silence
			return err
		}
		if err := x.wait(d); err != nil {
			return err
		}
	}
	if x.phase == failed {
		return x.abandon(d, x.failure)
	}
	a := x.attempt
	if x.beating && !x.isStream {
		return x.belie(d)
	}
	if !x.isStream || x.opaque {
		x.held = len(a.Unread())
	}
	if x.conn != nil && x.bare() {
		x.armWrite()
		if err := x.conn.Through(); err != nil {
			return err
		}
	}
	for {
		writes := x.held > 0
		if err := x.deliver(d); err != nil {
			return err
		}
		if x.errand != nil {
			if on, err := x.broke(d, x.errand); !on {
				return err
			}
			continue
		}
		if a.Ended() && len(a.Unread()) == 0 {
			if x.bodyEnd = true; !x.whole() {
				if on, err := x.broke(d, io.ErrUnexpectedEOF); !on {
					return err
				}
				continue
			}
			return x.finish(d)
		}
		now := time.Now()
		if writes {
			blocked := now.Sub(x.writeAt)
			x.blocked += blocked
			if t := x.tale; t != nil { // what comes meanwhile waits for the caller
				t.heardAt, t.asked = t.heardAt.Add(blocked), t.asked.Add(blocked)
			}
		}
		by, slack := x.quietBy(now)
		if x.m.done {
			by, slack = now.Add(time.Second), 0 // all was said: only the framing's end is missing
		}
		err := a.More(by, slack)
		now = time.Now()
		switch {
		case err == nil && (!x.isStream || x.opaque):
			x.held = len(a.Unread())
		case err == nil:
			x.scanEvents(now)
		case a.Full(err) && !x.resumed(): // else it has to be read
			x.opaque, x.held = true, len(a.Unread())
		case errors.Is(err, io.EOF):
			if x.isStream && !x.opaque {
				if x.takeLast(now) && x.tale != nil && x.held > 0 && !x.whole() {
					x.tale.out = append(x.tale.out, a.Unread()[:x.held]...) // broke ends it
				}
			} else {
				x.held = len(a.Unread())
			}
			if x.errand != nil || !x.whole() {
				why := x.errand
				if why == nil {
					why = io.ErrUnexpectedEOF
				}
				if on, err := x.broke(d, why); !on { // without the piece of an event that may be there
					return err
				}
				continue
			}
			x.bodyEnd = true
			if err := x.deliver(d); err != nil {
				return err
			}
			return x.finish(d)
		case x.m.done:
			return nil // [DONE] was passed on; whatever went wrong behind it concerns nobody
		case errors.Is(err, forward.ErrInterrupted) && !x.reserve():
			a.CarryOn() // to the end, if it comes to one
		case errors.Is(err, os.ErrDeadlineExceeded) && x.patient(now):
		default:
			if on, err := x.broke(d, err); !on {
				return err
			}
		}
	}
}

// belie ends an answer that is no event stream after all, though its head has promised one.
func (x *exchange) belie(d *down) error {
	a := x.attempt
	status := a.Status
	if !x.verbatim {
		status = max(status, fasthttp.StatusBadGateway)
	}
	e, _ := openai.NormalizeError(status, a.Head.ContentType(), a.Unread())
	return x.abandon(d, &e)
}

// finish adds what a host left out that went on with an answer: its end mark.
func (x *exchange) finish(d *down) error {
	if t := x.tale; t == nil || !t.seam || x.m.done {
		return nil
	}
	x.tale.out = x.tale.story.End(x.tale.out, x.scan.IncludeUsage, openai.NoUsage())
	return x.deliver(d)
}

func (x *exchange) ready() bool { return x.phase == ready || x.phase == failed }

// wait drives the attempts until there is something to be sent. While it lasts the caller gets a comment now and then.
func (x *exchange) wait(d *down) error {
	for !x.ready() {
		until := x.totalBy.Add(time.Hour)
		if x.set.Heartbeat > 0 {
			until = time.Now().Add(x.set.Heartbeat)
		}
		if !x.advance(until) {
			if err := x.write(d, ping); err != nil {
				return err
			}
		}
	}
	return nil
}

// broke decides what becomes of a stream that broke off with err: on says that another host goes on with it. Else the response is
// over, and the error is the relay's; nil when the caller lacks nothing.
func (x *exchange) broke(d *down, err error) (on bool, _ error) {
	t := x.tale
	if t == nil || x.watch.Aborted() {
		return false, x.lost(d, err)
	}
	oe := x.lostAs(err)
	x.held = 0
	if x.unended && !t.seam { // what is retold is whole
		t.out = append(t.out, "\n\n"...)
	}
	if err := x.deliver(d); err != nil { // now: another host may be long in coming, or never come
		return false, err
	}
	switch {
	case x.goOn(oe):
		if err := x.wait(d); err != nil {
			return false, err
		}
		if x.phase == failed {
			return false, x.abandon(d, x.failure)
		}
		return true, nil
	case x.spent():
		x.complete(oe)
		return false, x.deliver(d)
	}
	return false, x.lost(d, err)
}

// deliver sends the held bytes.
func (x *exchange) deliver(d *down) error {
	n := x.held
	x.held = 0
	var err error
	switch t := x.tale; {
	case t != nil && len(t.out) > 0:
		err = x.write(d, t.out)
		t.out = t.out[:0]
	case n == 0:
		return nil
	case !x.wrote || d.conn == nil:
		err = x.write(d, x.attempt.Unread()[:n])
		x.attempt.Consume(n)
	default:
		x.rec.BytesOut += int64(n)
		x.armWrite()
		err = x.attempt.WriteChunk(d.conn, n)
	}
	if err != nil {
		return err
	}
	if x.m.outputs > 0 && x.m.handedAt.IsZero() {
		x.m.handedAt = time.Now()
		x.own += x.m.handedAt.Sub(x.began)
		x.forget()
		if x.leased {
			x.lease.FirstContent(x.m.firstAt.Sub(x.beginAt))
		}
	}
	x.progress()
	return nil
}

// progress tells the router of the stream's speed under way.
func (x *exchange) progress() {
	if since := x.m.lastAt.Sub(x.m.firstAt); since >= router.ProgressAfter && !x.progressed && x.leased {
		x.progressed = true
		x.lease.Progress(x.m.outputs/max(1, x.sought.n), x.streamed())
	}
}

// forget gives the request's body back: content is out, so no other attempt will send it, and a
// prompt of megabytes need not wait for its answer's end.
func (x *exchange) forget() {
	if x.form == nil && x.pinned == "" && x.tale == nil {
		x.unsend()
		x.ctx.Request.ResetBody()
	}
}

// unsend gives back what further attempts would be made of.
func (x *exchange) unsend() {
	if x.sending != nil {
		*x.sending = sending{}
		sendings.Put(x.sending)
		x.sending = nil
	}
}

// write sends p through fasthttp's writer.
func (x *exchange) write(d *down, p []byte) error {
	x.armWrite()
	if x.conn != nil { // one packet, however many pieces fasthttp makes of it
		x.conn.Together()
	}
	n, err := d.w.Write(p)
	if err == nil && x.conn != nil {
		err = x.conn.Through()
	}
	x.wrote = true
	x.rec.BytesOut += int64(n)
	return err
}

// armWrite renews the deadline that catches a client which reads no more. A deadline costs 300 ns,
// so it is left to run down by an eighth first.
func (x *exchange) armWrite() {
	now := time.Now()
	x.writeAt = now
	if limit := x.set.ClientWrite; now.Sub(x.writeArm) > limit/8 {
		x.writeArm = now
		_ = x.ctx.Conn().SetWriteDeadline(now.Add(limit)) // fails on a closed connection only, as the write will
	}
}

// whole judges an answer whose body ended in good order.
func (x *exchange) whole() bool {
	return !x.isStream || x.opaque || x.route.proto == protoOpaque || x.m.done || x.m.failed || x.pinned != "" ||
		x.m.finishes > 0 && x.m.finishes >= x.sought.n // some hosts send no [DONE]
}

// lost ends a stream that broke off: an error event, and no clean end.
func (x *exchange) lost(d *down, err error) error {
	x.broken = err
	if x.watch.Aborted() && !x.watch.drained.Load() {
		return err // nobody is there to be told
	}
	e := errLost()
	switch {
	case x.watch.drained.Load(): // which is why
		e = errDraining()
		e.Partial = x.all().outputs > 0
	case x.isStream:
		x.rec.Lost = x.lostWhy(false)
	}
	if !x.isStream {
		return err // a plain body has no room for an error: its broken framing says it
	}
	return x.abandon(d, e)
}

// abandon writes e as the last event. The response then ends without its last chunk, so that no
// client can take it for complete.
func (x *exchange) abandon(d *down, e *openai.Error) error {
	x.rec.Code = e.Code
	if x.broken == nil {
		x.broken = e
	}
	event := errorEvent(e, x.route.proto)
	if x.opaque { // half of another one may be out
		event = append([]byte("\n\n"), event...)
	}
	if err := x.write(d, event); err != nil {
		return err
	}
	return x.broken
}

var _ fasthttp.BodyWriterTo = (*exchange)(nil)
