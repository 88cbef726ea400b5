package forward

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"

	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// Request is what an attempt sends. It is not changed by attempts, so that a later one can send it again.
type Request struct {
	Method string
	Path   string // with its query, relative to the host's base URL: "/chat/completions"
	Header []byte // whole lines, "Name: value\r\n" each; without Host, Authorization and framing
	Body   [][]byte
	Size   int // bytes of Body together

	// Upload, when not nil, is sent instead of Body: UploadSize bytes, or chunked when that is
	// negative. It can be sent once.
	Upload     io.Reader
	UploadSize int
}

// Attempt is one try at one host. Use it in this order: Start, AwaitHead until it has succeeded,
// More and Consume for the body, Finish always. The zero value is ready.
type Attempt struct {
	Status int
	Head   fasthttp.ResponseHeader // valid from AwaitHead to the next Start
	// Reused says that the request went over a connection that had served others before.
	Reused bool

	host     *Host
	conn     *conn
	guard    *Guard
	req      *Request
	repaired bool
	interims int // heads with status 1xx so far
}

// Host returns whom the attempt was made at, nil before Start.
func (a *Attempt) Host() *Host { return a.host }

// Start connects and sends req. The error is an *outcome.Error; its class is ClientGone after g.Abort.
func (a *Attempt) Start(h *Host, g *Guard, req *Request, now time.Time) error {
	a.host, a.guard, a.req, a.repaired, a.Status = h, g, req, false, 0
	a.interims = 0
	return a.send(now, false)
}

// send connects and writes; fresh forbids a pooled connection. One that is pooled is always looked
// at first: bytes that came unasked would be taken for the answer, which may be another caller's.
func (a *Attempt) send(now time.Time, fresh bool) error {
	for {
		c, err := a.host.pool.get()
		if err != nil {
			return a.fail(outcome.DialFailed, err)
		}
		if c.reused && (fresh || stale(c)) {
			a.host.pool.close(c)
			continue
		}
		c.reset()
		c.limit = a.host.opt.MaxEvent
		a.conn, a.Reused = c, c.reused
		break
	}
	if !a.guard.attach(a.conn, a.host.serving) {
		a.drop()
		return a.fail(outcome.ClientGone, net.ErrClosed)
	}
	if err := a.write(now); err != nil {
		return a.unsent(err)
	}
	return nil
}

// unsent decides what becomes of a request that could not be written: nil means that an answer has
// come all the same.
func (a *Attempt) unsent(err error) error {
	a.conn.tainted = true
	// The upstream may have answered and closed before it read everything: 413 does that.
	_, callers := errors.AsType[*ErrUpload](err)
	if !callers && a.conn.fillUntil(time.Now().Add(time.Second), 0) == nil {
		return nil
	}
	if a.repairable(err) {
		return a.repair()
	}
	a.drop()
	return a.fail(broken(err), err)
}

// broken is the class of an attempt whose connection failed before anything of an answer came.
func broken(err error) outcome.Class {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe) {
		return outcome.Severed
	}
	return outcome.UpstreamFault
}

var heads = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

const joinBelow = 64 << 10 // bodies up to here are copied behind the head: one system call, one TLS record run

func putHead(buf *[]byte) {
	if cap(*buf) <= 2*joinBelow {
		heads.Put(buf)
	}
}

func (a *Attempt) write(now time.Time) error {
	buf := heads.Get().(*[]byte)
	r, h := a.req, a.host
	b := append((*buf)[:0], r.Method...)
	b = append(b, ' ')
	b = append(b, h.prefix...)
	b = append(b, r.Path...)
	b = append(b, " HTTP/1.1\r\n"...)
	b = append(b, h.head...)
	b = append(b, r.Header...)
	switch {
	case r.Upload != nil && r.UploadSize < 0:
		b = append(b, "Transfer-Encoding: chunked\r\n\r\n"...)
	case r.Upload != nil:
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, int64(r.UploadSize), 10)
		b = append(b, "\r\n\r\n"...)
	case r.Size == 0 && (r.Method == "GET" || r.Method == "HEAD"):
		b = append(b, "\r\n"...)
	default:
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, int64(r.Size), 10)
		b = append(b, "\r\n\r\n"...)
	}
	join := r.Upload == nil && r.Size <= joinBelow
	if join {
		for _, p := range r.Body {
			b = append(b, p...)
		}
	}
	*buf = b
	a.conn.armWrite(now, h.opt.Send)
	if join && a.conn.raw != nil {
		a.conn.first = buf
		return nil
	}
	_, err := a.conn.Write(b)
	putHead(buf)
	if err != nil || join {
		return err
	}
	if r.Upload != nil {
		return a.upload()
	}
	for _, p := range r.Body {
		for len(p) > 0 { // in pieces, each with the whole time: a big prompt over a slow line makes progress
			n := min(len(p), 1<<20)
			a.conn.armWrite(time.Now(), h.opt.Send)
			if _, err := a.conn.Write(p[:n]); err != nil {
				return err
			}
			p = p[n:]
		}
	}
	return nil
}

// ErrUpload wraps an error of the caller's side of an upload.
type ErrUpload struct{ Err error }

// Error says that the caller's body could not be read.
func (e *ErrUpload) Error() string { return "read the request body: " + e.Err.Error() }

// Unwrap returns why.
func (e *ErrUpload) Unwrap() error { return e.Err }

var errTooMuch = errors.New("longer than announced")

// upload hands the caller's body on as it comes.
func (a *Attempt) upload() error {
	buf := bufs.Get().(*[]byte)
	defer bufs.Put(buf)
	b := *buf
	var sent int
	for {
		n, err := a.req.Upload.Read(b[roomBefore : len(b)-roomAfter])
		if n > 0 {
			if sent += n; a.req.UploadSize >= 0 && sent > a.req.UploadSize {
				return &ErrUpload{errTooMuch} // the host would take the rest for another request
			}
			p := b[roomBefore : roomBefore+n]
			if a.req.UploadSize < 0 {
				head := strconv.AppendInt(b[:0], int64(n), 16)
				copy(b[roomBefore-2-len(head):], head)
				copy(b[roomBefore-2:], "\r\n")
				copy(b[roomBefore+n:], "\r\n")
				p = b[roomBefore-2-len(head) : roomBefore+n+roomAfter]
			}
			a.conn.armWrite(time.Now(), a.host.opt.Send)
			if _, err := a.conn.Write(p); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF) && a.req.UploadSize >= 0 && sent != a.req.UploadSize:
			return &ErrUpload{io.ErrUnexpectedEOF}
		case errors.Is(err, io.EOF) && a.req.UploadSize < 0:
			_, err := a.conn.Write([]byte("0\r\n\r\n"))
			return err
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return &ErrUpload{err}
		}
	}
}

// headSlack is how old a deadline may be that a connection brings from its last request.
const headSlack = time.Second

var headEnd = []byte("\r\n\r\n")

type headReader struct {
	src bytes.Reader
	br  *bufio.Reader
}

var headReaders = sync.Pool{New: func() any {
	r := &headReader{}
	r.br = bufio.NewReaderSize(&r.src, maxHead)
	return r
}}

const maxHead = bufBytes

// maxInterims bounds what a host can make us parse; one that sends a sign of life each second has a quarter of an hour.
const maxInterims = 1000

// AwaitHead waits for the status line and header fields until the given time. It returns
// os.ErrDeadlineExceeded when the time has come, and ErrInterrupted when Client.Interrupt wants the
// attempt elsewhere, which CarryOn declines; it may be called again then. Every other error is an
// *outcome.Error that ended the attempt.
func (a *Attempt) AwaitHead(until time.Time) error {
	c := a.conn
	for scanned := 0; ; {
		p := c.unread()
		if i := bytes.Index(p[scanned:], headEnd); i >= 0 {
			n := scanned + i + len(headEnd)
			interim, err := false, a.readHead(n)
			if err == nil {
				interim, err = a.frame(n)
			}
			if err != nil {
				a.drop()
				return a.fail(outcome.UpstreamFault, err)
			}
			if !interim {
				return nil
			}
			if a.interims++; a.interims > maxInterims {
				a.drop()
				return a.fail(outcome.UpstreamFault, errors.New("nothing but interim answers"))
			}
			scanned = 0
			continue
		}
		if scanned = max(0, len(p)-len(headEnd)+1); len(p) > maxHead {
			a.drop()
			return a.fail(outcome.UpstreamFault, errors.New("response head: "+errTooLong.Error()))
		}
		if err := c.fillUntil(until, headSlack); err != nil {
			if errors.Is(err, ErrInterrupted) {
				return ErrInterrupted
			}
			if c.first != nil && !errors.Is(err, os.ErrDeadlineExceeded) { // the request is not out, or not all of it
				if err = c.sendRest(err); err == nil {
					continue
				}
				if err := a.unsent(err); err != nil {
					return err
				}
				c = a.conn
				continue
			}
			if errors.Is(err, os.ErrDeadlineExceeded) && !a.guard.Aborted() {
				return os.ErrDeadlineExceeded
			}
			if len(p) == 0 && a.repairable(err) {
				if err := a.repair(); err != nil {
					return err
				}
				c = a.conn
				continue
			}
			class := broken(err)
			if len(p) > 0 && !errors.Is(err, syscall.ECONNRESET) {
				class = outcome.UpstreamFault // it has said something, if nothing of use
			}
			a.drop()
			return a.fail(class, err)
		}
	}
}

// readHead parses the first n bytes of the buffer.
func (a *Attempt) readHead(n int) error {
	r := a.headReader(n)
	err := a.Head.Read(r.br)
	headReaders.Put(r)
	if err != nil {
		return errHead
	}
	return nil
}

// headReader readies a reader of the first n bytes of the buffer.
func (a *Attempt) headReader(n int) *headReader {
	r := headReaders.Get().(*headReader)
	r.src.Reset(a.conn.unread()[:n])
	r.br.Reset(&r.src)
	a.Head.Reset()
	a.Head.SetNoDefaultContentType(true) // a host that names none has named none
	return r
}

var errHead = errors.New("malformed response head")

// frame learns from the head, of n bytes, how the body is framed, and takes the head off what was read. interim says that another head
// follows.
func (a *Attempt) frame(n int) (interim bool, err error) {
	c := a.conn
	a.Status = a.Head.StatusCode()
	if a.Status < 200 && a.Status != 101 {
		c.consume(n)
		return true, nil
	}
	if a.Status == 101 {
		return false, errors.New("the upstream switched protocols unasked")
	}
	switch size := a.Head.ContentLength(); {
	case a.req.Method == "HEAD" || a.Status == 204 || a.Status == 304:
		c.body = framing{kind: noBody, end: true}
	case size >= 0:
		c.body = framing{kind: sized, left: int64(size), end: size == 0}
	case size == -1:
		c.body = framing{kind: chunked}
	default:
		c.body = framing{kind: untilClose}
		c.tainted = true
	}
	if a.Head.ConnectionClose() {
		c.tainted = true
	}
	rest := len(c.unread()) - n
	c.consume(n)
	if rest > 0 {
		if c.body.end {
			c.tainted = true
			c.release()
			return false, nil
		}
		if err := c.unframe(rest); err != nil {
			return false, err
		}
	}
	return false, nil
}

// More waits for bytes of the body, which Unread then returns, until the given time, give or take
// slack. It returns io.EOF at the body's end, os.ErrDeadlineExceeded when the time has come,
// ErrInterrupted when Client.Interrupt wants it elsewhere, which CarryOn declines, and
// io.ErrUnexpectedEOF or another error when the body broke off.
func (a *Attempt) More(until time.Time, slack time.Duration) error {
	return a.conn.more(until, slack)
}

// CarryOn goes on with an attempt that was interrupted.
func (a *Attempt) CarryOn() { a.conn.carryOn() }

// PassTo puts an attempt whose answer has begun under g, which guards no other now, instead of the guard that it was started with. It
// returns false when g was aborted: then the connection is closed, and only Finish is left to do.
func (a *Attempt) PassTo(g *Guard) bool {
	a.guard.detach()
	a.guard = g
	g.uncall()
	if g.attach(a.conn, a.host.serving) {
		return true
	}
	a.drop()
	return false
}

// Unread returns the bytes of the body that have come and were not consumed, until the next call of
// another method.
func (a *Attempt) Unread() []byte { return a.conn.unread() }

// Cut takes n bytes out of Unread, from bytes in.
func (a *Attempt) Cut(from, n int) { a.conn.cut(from, n) }

// Consume drops n bytes from the front of Unread.
func (a *Attempt) Consume(n int) { a.conn.consume(n) }

// WriteChunk sends the first n bytes of Unread to w as one HTTP chunk, with one Write and without
// copying, and consumes them.
func (a *Attempt) WriteChunk(w io.Writer, n int) error { return a.conn.writeChunk(w, n) }

// Ended says that the whole body was read.
func (a *Attempt) Ended() bool { return a.conn.body.end }

// Report returns what a translator told of the work beyond the answer, once; ok is false when there is none, or none yet.
func (a *Attempt) Report() (w endpoint.WorkerReport, ok bool) {
	if a.conn == nil {
		return w, false
	}
	if r, translated := a.conn.Conn.(*reporting); translated {
		return r.report.Take()
	}
	return w, false
}

// Full says that the buffer may not grow: the bytes in Unread must be consumed before more can come.
func (a *Attempt) Full(err error) bool { return errors.Is(err, errTooLong) }

// Finish ends the attempt, however far it came: the connection serves again when its body was read
// to the end, and is closed otherwise, which frees the host's GPU. More than one call does no harm.
func (a *Attempt) Finish() {
	if a.conn == nil {
		return
	}
	c := a.conn
	if !c.body.end || c.tainted || a.Status == 0 {
		a.drop()
		return
	}
	a.guard.detach()
	a.conn = nil
	if a.guard.Aborted() {
		c.release()
		a.host.pool.close(c)
		return
	}
	c.release()
	a.host.pool.put(c)
}

// drop closes the connection.
func (a *Attempt) drop() {
	c := a.conn
	a.guard.detach()
	a.conn = nil
	c.release()
	c.forgetFirst()
	a.host.pool.close(c)
}

// fail makes err an *outcome.Error; the client's leaving explains whatever else went wrong.
func (a *Attempt) fail(class outcome.Class, err error) error {
	if _, ok := errors.AsType[*ErrUpload](err); ok {
		class = outcome.CallerFault
	}
	if a.guard.Aborted() {
		class = outcome.ClientGone
	}
	return &outcome.Error{Class: class, Endpoint: a.host.id, Status: a.Status, Err: err}
}

// repairable says that err is what a pooled connection shows whose upstream closed it at the very
// moment we wrote: nothing was answered, so the request goes out again over a fresh one, once.
func (a *Attempt) repairable(err error) bool {
	var up *ErrUpload
	return a.conn.reused && !a.repaired && a.req.Upload == nil && !a.guard.Aborted() && !errors.As(err, &up) &&
		(errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe))
}

func (a *Attempt) repair() error {
	a.repaired = true
	a.drop()
	return a.send(time.Now(), true)
}
