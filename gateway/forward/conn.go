package forward

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"headrace/gateway/rawio"
)

// A buffer keeps room around the bytes in it, so that a piece of a body can be framed as an HTTP
// chunk where it lies.
const (
	roomBefore = 16 // hexadecimal size, CRLF
	roomAfter  = 2  // CRLF
	bufBytes   = 16 << 10
)

// errTooLong says that a head or an event does not fit the buffer's limit.
var errTooLong = errors.New("longer than the buffer's limit")

var bufs = sync.Pool{New: func() any { b := make([]byte, bufBytes); return &b }}

// conn is a connection to a host. While it waits for a silent upstream over plain TCP it holds no
// buffer: one is lent to it when there is something to read, and goes back when all was handed on.
// One goroutine reads and writes it.
type conn struct {
	net.Conn
	handle any // fasthttp's own name for it in the host's pool

	raw  syscall.RawConn       // nil under TLS
	step func(fd uintptr) bool // tryRead, bound once

	out rawio.Writer // unusable under TLS

	buf      *[]byte // lent; nil while silent
	from, to int     // bytes read and not consumed: (*buf)[from:to]
	got      int     // bytes that the last fill added
	limit    int     // largest buffer
	readErr  error
	armed    time.Time // read deadline in force
	wArmed   time.Time // write deadline in force

	probe   func(fd uintptr) // tryProbe, bound once
	probed  [1]byte
	pending bool // what tryProbe found

	// first is the request, which the first fill sends. Sending it inside the wait for the answer
	// spares a read that would find nothing: whatever comes after the write wakes the wait.
	first *[]byte
	sent  int // bytes of first that are out

	body    framing
	reused  bool        // it served another request before this one
	tainted bool        // it must not serve another
	called  atomic.Bool // away: see Client.Interrupt
}

func newConn(nc net.Conn) *conn {
	c := &conn{Conn: nc}
	c.lend()
	return c
}

// reset readies the connection for its next request.
func (c *conn) reset() {
	c.release()
	c.forgetFirst()
	c.limit, c.body, c.tainted = bufBytes, framing{}, false
	if c.called.Load() {
		c.carryOn()
	}
}

// ErrInterrupted says that Client.Interrupt called the attempt away from its host.
var ErrInterrupted = errors.New("called away from the host")

// call wakes whoever waits for the upstream, from any goroutine.
func (c *conn) call() {
	c.called.Store(true)                   // first: a waiter sets its deadline, and then looks
	_ = c.SetReadDeadline(time.Unix(1, 0)) // fails on a closed connection only, which wakes as well
}

// carryOn makes the connection usable again after call.
func (c *conn) carryOn() {
	c.called.Store(false)
	c.armed = time.Time{}
}

// Write writes all of p.
func (c *conn) Write(p []byte) (int, error) {
	if c.out.Usable() {
		return c.out.Write(p)
	}
	return c.Conn.Write(p)
}

// errUnsent says that the socket did not take the whole request at once.
var errUnsent = errors.New("request not sent in one piece")

// sendRest writes what is left of the request after fill failed with err, if that is all that is wrong.
func (c *conn) sendRest(err error) error {
	if errors.Is(err, errUnsent) {
		_, err = c.Write((*c.first)[c.sent:])
	}
	c.forgetFirst()
	return err
}

func (c *conn) forgetFirst() {
	if c.first != nil {
		putHead(c.first)
	}
	c.first, c.sent = nil, 0
}

// unread returns what was read and not consumed, until the next call of any other method.
func (c *conn) unread() []byte {
	if c.buf == nil {
		return nil
	}
	return (*c.buf)[c.from:c.to]
}

// consume drops n bytes from the front of unread.
func (c *conn) consume(n int) {
	if c.from += n; c.from == c.to {
		c.release()
	}
}

// release gives the buffer back with all that is in it.
func (c *conn) release() {
	if c.buf != nil && len(*c.buf) == bufBytes {
		bufs.Put(c.buf)
	}
	c.buf, c.from, c.to = nil, 0, 0
}

// room makes space to read into.
func (c *conn) room() error {
	if c.buf == nil {
		c.buf = bufs.Get().(*[]byte)
		c.from, c.to = roomBefore, roomBefore
		return nil
	}
	const enough = bufBytes / 4
	if len(*c.buf)-roomAfter-c.to >= enough {
		return nil
	}
	if c.from > roomBefore {
		n := copy((*c.buf)[roomBefore:], (*c.buf)[c.from:c.to])
		c.from, c.to = roomBefore, roomBefore+n
		if len(*c.buf)-roomAfter-c.to >= enough {
			return nil
		}
	}
	size := 2 * len(*c.buf)
	if size > max(c.limit, bufBytes) {
		if c.to < len(*c.buf)-roomAfter {
			return nil // a little is left
		}
		return errTooLong
	}
	grown := make([]byte, size)
	copy(grown, (*c.buf)[:c.to])
	if len(*c.buf) == bufBytes {
		bufs.Put(c.buf)
	}
	c.buf = &grown
	return nil
}

// fillUntil is fill with a deadline. It leaves a deadline alone that is in force already and ends
// at most slack earlier: setting one costs 300 ns, which a stream would otherwise pay for every token.
func (c *conn) fillUntil(until time.Time, slack time.Duration) error {
	for {
		if d := until.Sub(c.armed); d < 0 || d > slack {
			c.armed = until
			_ = c.SetReadDeadline(until) // fails on a closed connection only, as the read will
		}
		if c.called.Load() {
			return ErrInterrupted
		}
		err := c.fill()
		if err != nil && c.called.Load() {
			return ErrInterrupted
		}
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) || slack == 0 || !time.Now().Before(until) {
			return err
		}
		slack = 0 // too early
	}
}

// armWrite gives a write that begins now about that long.
func (c *conn) armWrite(now time.Time, limit time.Duration) {
	until := now.Add(limit)
	if until.Sub(c.wArmed) <= limit/8 {
		return
	}
	c.wArmed = until
	_ = c.SetWriteDeadline(until) // fails on a closed connection only, as the write will
}

// fill waits for bytes and adds them to unread. It returns io.EOF when the upstream closed,
// os.ErrDeadlineExceeded past the deadline and errTooLong when the buffer may not grow.
func (c *conn) fill() error {
	c.got = 0
	if c.raw != nil {
		if err := c.raw.Read(c.step); err != nil {
			return err
		}
		err := c.readErr
		c.readErr = nil
		return err
	}
	if err := c.room(); err != nil {
		return err
	}
	n, err := c.Read((*c.buf)[c.to : len(*c.buf)-roomAfter])
	c.to += n
	if c.got = n; n > 0 {
		return nil
	}
	if c.from == c.to {
		c.release()
	}
	return err
}

// more reads once and takes the framing out of what came. It returns io.EOF when the body has
// ended, and io.ErrUnexpectedEOF when the upstream closed before that.
func (c *conn) more(until time.Time, slack time.Duration) error {
	if c.body.end {
		return io.EOF
	}
	err := c.fillUntil(until, slack)
	if errors.Is(err, io.EOF) {
		if c.body.kind != untilClose {
			return io.ErrUnexpectedEOF
		}
		c.body.end = true
		return io.EOF
	}
	if err != nil {
		return err
	}
	return c.unframe(c.got)
}

// unframe decodes the newest n bytes of the buffer.
func (c *conn) unframe(n int) error {
	if n == 0 {
		return nil
	}
	start := c.to - n
	out, read, err := c.body.decode((*c.buf)[start:c.to])
	if read < n {
		c.tainted = true // bytes behind the body are nothing we asked for
	}
	if c.to = start + out; c.from == c.to {
		c.release()
	}
	return err
}

// writeChunk sends the first n bytes of unread to w as one HTTP chunk with one Write, framed where
// they lie, and consumes them.
func (c *conn) writeChunk(w io.Writer, n int) error {
	b := *c.buf
	end := c.from + n
	saved := [roomAfter]byte(b[end : end+roomAfter])
	b[end], b[end+1] = '\r', '\n'
	i := c.from - 1
	b[i] = '\n'
	i--
	b[i] = '\r'
	for v := n; ; v >>= 4 {
		i--
		b[i] = "0123456789abcdef"[v&15]
		if v < 16 {
			break
		}
	}
	_, err := w.Write(b[i : end+roomAfter])
	b[end], b[end+1] = saved[0], saved[1]
	c.consume(n)
	return err
}

// Guard is how other goroutines end an exchange: it knows the upstream connection in use. The zero
// value is ready for one exchange.
type Guard struct {
	mu     sync.Mutex // guards conn, wanted and writing of gone
	conn   *conn
	gone   atomic.Bool
	wanted bool // call what attaches next, too

	at         *crowd // whose list it is in, nil for none; its owner's
	next, prev *Guard // in that list, guarded by its mu
}

// crowd is the exchanges that one host serves now.
type crowd struct {
	mu    sync.Mutex // guards first and the links of all that are in the list
	first *Guard
}

func (l *crowd) enter(g *Guard) {
	l.mu.Lock()
	if g.next = l.first; g.next != nil {
		g.next.prev = g
	}
	l.first = g
	l.mu.Unlock()
	g.at = l
}

func (l *crowd) leave(g *Guard) {
	l.mu.Lock()
	if g.prev != nil {
		g.prev.next = g.next
	} else {
		l.first = g.next
	}
	if g.next != nil {
		g.next.prev = g.prev
	}
	g.next, g.prev = nil, nil
	l.mu.Unlock()
	g.at = nil
}

// call interrupts all, and returns how many there were.
func (l *crowd) call() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for g := l.first; g != nil; g = g.next {
		g.mu.Lock()
		if g.conn != nil {
			g.conn.call()
			n++
		}
		g.mu.Unlock()
	}
	return n
}

// attach makes c, a connection to the host of l, the one that Abort closes. It returns false when Abort was called already:
// then c is not to be used.
func (g *Guard) attach(c *conn, l *crowd) bool {
	g.mu.Lock()
	if g.gone.Load() {
		g.mu.Unlock()
		return false
	}
	g.conn = c
	if g.wanted {
		c.call()
	}
	g.mu.Unlock()
	l.enter(g)
	return true
}

// Call makes the attempt in progress return ErrInterrupted, from any goroutine and without waiting, and every later one under g, until
// PassTo puts another attempt there: it may be between two connections now.
func (g *Guard) Call() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wanted = true
	if g.conn != nil {
		g.conn.call()
	}
}

// uncall takes Call back for what attaches from now on.
func (g *Guard) uncall() {
	g.mu.Lock()
	g.wanted = false
	g.mu.Unlock()
}

// detach takes the connection out of Abort's and call's reach, before it gets its next user.
func (g *Guard) detach() {
	if g.at != nil {
		g.at.leave(g)
	}
	g.mu.Lock()
	g.conn = nil
	g.mu.Unlock()
}

// Abort closes the connection in use, if any, and forbids further ones. It does not block.
func (g *Guard) Abort() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.gone.Store(true)
	if g.conn != nil {
		c := g.conn.Conn
		if tc, ok := c.(*tls.Conn); ok {
			c = tc.NetConn() // tls.Conn.Close may wait 5 s for room to say goodbye
		}
		_ = c.Close()
	}
}

// Aborted tells whether Abort was called.
func (g *Guard) Aborted() bool { return g.gone.Load() }

// cut takes n bytes out of unread, at bytes in.
func (c *conn) cut(at, n int) {
	if at == 0 {
		c.consume(n)
		return
	}
	b := *c.buf
	copy(b[c.from+at:], b[c.from+at+n:c.to])
	if c.to -= n; c.from == c.to {
		c.release()
	}
}
