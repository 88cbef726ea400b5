// Package listen accepts client connections and tells at once when a client has left, also while
// nobody reads from or writes to its connection.
//
// On Linux one epoll set watches every connection (EPOLLRDHUP, edge triggered) at the cost of one
// thread and 24 bytes a connection. Elsewhere a waiting request has its connection read ahead in the
// background, which is blind behind 16 KiB of pipelined requests.
// A half-close counts as leaving: HTTP/1.1 gives a gateway no use for a client that only listens.
package listen

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"headrace/gateway/rawio"
)

// Why says what happened to a client.
type Why uint8

// Reasons for which a Handler is called.
const (
	Left    Why = iota // the client closed, half-closed or reset its connection
	Drained            // Listener.AbortAll: the server wants the request ended
)

// Handler is told that an armed connection's request has become pointless.
type Handler interface {
	// ClientGone is called at most once for each Arm, from another goroutine. It must be quick, must
	// not block, and must do no harm on a finished request, since Disarm does not wait for it.
	ClientGone(why Why)
}

// Listener wraps a TCP listener so that its connections can be watched. Put tls.NewListener outside it.
type Listener struct {
	net.Listener
	watch watcher
	next  atomic.Uint64
	conns sync.Map // uint64 id -> *Conn

	shortages atomic.Int64
	closeOnce sync.Once
	closed    chan struct{}
}

// Conn is a watched client connection.
type Conn struct {
	*net.TCPConn
	l       *Listener
	id      uint64
	gone    atomic.Bool
	drained atomic.Bool
	onGone  atomic.Pointer[Handler]
	ahead   readAhead
	early   early
	dl      deadlines
	out     rawio.Writer
	kept    keep
	lingers atomic.Bool // see Linger
}

// Watch wraps ln, which must accept TCP connections. Close ends the watching too.
func Watch(ln net.Listener) (*Listener, error) {
	l := &Listener{Listener: ln, closed: make(chan struct{})}
	if err := l.watch.start(l); err != nil {
		return nil, err
	}
	return l, nil
}

// WatchPortably is Watch without help from the operating system; it is what other systems than
// Linux get, and exported so that tests cover it everywhere.
func WatchPortably(ln net.Listener) *Listener {
	l := &Listener{Listener: ln, closed: make(chan struct{})}
	l.watch.portable = true
	return l
}

// Accept waits for the next client.
func (l *Listener) Accept() (net.Conn, error) {
	nc, err := l.accept()
	if err != nil {
		return nil, err
	}
	tc, ok := nc.(*net.TCPConn)
	if !ok {
		return nil, errors.New("BUG: listen: the inner listener is not TCP")
	}
	c := &Conn{TCPConn: tc, l: l, id: l.next.Add(1)}
	c.ahead.init(c)
	c.early.init(c)
	c.out.Init(tc)
	l.conns.Store(c.id, c)
	l.watch.add(c)
	return c, nil
}

// accept rides out a lack of descriptors or memory, which ends as other connections do: servers take
// any error of Accept for the listener's end.
func (l *Listener) accept() (net.Conn, error) {
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		nc, err := l.Listener.Accept()
		if err == nil || !isShortage(err) {
			return nc, err
		}
		l.shortages.Add(1)
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-l.closed:
			t.Stop()
			return nil, net.ErrClosed
		}
	}
}

// Shortages counts how often a connection could not be accepted for lack of descriptors or memory.
func (l *Listener) Shortages() int64 { return l.shortages.Load() }

// Close stops accepting. Connections stay open and watched until each closes, but nobody lingers on them; StopWatching ends that.
func (l *Listener) Close() error {
	l.closeOnce.Do(func() {
		close(l.closed)
		for _, v := range l.conns.Range {
			if c := v.(*Conn); c.lingers.Load() {
				_ = c.TCPConn.SetReadDeadline(aLongTimeAgo)
			}
		}
	})
	return l.Listener.Close()
}

// StopWatching ends the watcher's goroutine. Call it when no request is running any more.
func (l *Listener) StopWatching() { l.watch.stop() }

// AbortAll tells the handler of every armed connection Drained, and of every one that is armed
// later at once.
func (l *Listener) AbortAll() {
	for _, v := range l.conns.Range {
		c := v.(*Conn)
		c.drained.Store(true)
		c.fire(Drained)
	}
}

// CloseAll closes every connection, and waits for no client to take what is kept for it.
func (l *Listener) CloseAll() {
	for _, v := range l.conns.Range {
		_ = v.(*Conn).cut()
	}
}

// Len returns how many connections are open.
func (l *Listener) Len() int {
	n := 0
	for range l.conns.Range {
		n++
	}
	return n
}

// Arm has h told when the client leaves or AbortAll is called; at once when that has happened already.
func (c *Conn) Arm(h *Handler) {
	c.onGone.Store(h)
	switch {
	case c.gone.Load():
		c.fire(Left)
	case c.drained.Load():
		c.fire(Drained)
	case c.l.watch.portable:
		c.ahead.begin()
	}
}

// ArmReading is Arm for a request whose body is still being read from the connection. The portable
// watcher must not read beside that reader, who learns of a leaving client by himself; call Arm when
// he has come to the body's end.
func (c *Conn) ArmReading(h *Handler) {
	if !c.l.watch.portable {
		c.Arm(h)
		return
	}
	c.onGone.Store(h)
	if c.drained.Load() {
		c.fire(Drained)
	}
}

// Disarm ends what Arm began. Call it before the connection's next request is read.
func (c *Conn) Disarm() {
	c.onGone.Store(nil)
	if c.l.watch.portable {
		c.ahead.end()
	}
}

// Gone tells whether the client has left, as far as the watcher knows.
func (c *Conn) Gone() bool { return c.gone.Load() }

func (c *Conn) fire(why Why) {
	if h := c.onGone.Swap(nil); h != nil {
		(*h).ClientGone(why)
	}
}

func (c *Conn) left() {
	c.gone.Store(true)
	c.fire(Left)
}

// Of returns the watched connection below c, looking through TLS, or nil.
func Of(c net.Conn) *Conn {
	for {
		switch v := c.(type) {
		case *Conn:
			return v
		case interface{ NetConn() net.Conn }:
			c = v.NetConn()
		case interface{ UnsafeConn() net.Conn }: // a hijacked connection of fasthttp
			c = v.UnsafeConn()
		default:
			return nil
		}
	}
}

// readAhead reads in the background while a request waits, and gives what it got to the next Reads.
// It goes on reading until its buffer is full, for what comes before a FIN says nothing of it: a
// pipelined request, or the alert that ends TLS. Only the portable watcher uses it.
type readAhead struct {
	c    *Conn
	mu   sync.Mutex // guards all below
	done chan struct{}
	busy bool
	buf  []byte // read and not taken yet
}

const aheadBytes = 16 << 10

func (r *readAhead) init(c *Conn) { r.c = c }

var aLongTimeAgo = time.Unix(1, 0)

func (r *readAhead) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.busy || len(r.buf) >= aheadBytes {
		return
	}
	r.set(time.Time{}) // the server's read timeout is still armed
	r.busy, r.done = true, make(chan struct{})
	go r.run()
}

func (r *readAhead) run() {
	var b [512]byte
	for {
		n, err := r.c.TCPConn.Read(b[:])
		r.mu.Lock()
		r.buf = append(r.buf, b[:n]...)
		if err == nil && len(r.buf) < aheadBytes {
			r.mu.Unlock()
			continue
		}
		r.busy = false
		close(r.done)
		r.mu.Unlock()
		var ne net.Error
		if err != nil && (!errors.As(err, &ne) || !ne.Timeout()) {
			r.c.left()
		}
		return
	}
}

func (r *readAhead) end() {
	r.mu.Lock()
	busy, done := r.busy, r.done
	r.mu.Unlock()
	if !busy {
		return
	}
	r.set(aLongTimeAgo)
	<-done
	r.set(time.Time{})
}

// set tells the poller at once: it has to reach a read that waits already.
func (r *readAhead) set(t time.Time) {
	r.c.dl.readSet = t
	_ = r.c.TCPConn.SetReadDeadline(t) // fails on a closed connection only, which has no read that waits
}

func (r *readAhead) take(p []byte) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := copy(p, r.buf)
	if r.buf = r.buf[n:]; len(r.buf) == 0 {
		r.buf = nil
	}
	return n
}
