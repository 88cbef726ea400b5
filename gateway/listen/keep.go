package listen

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// bufs are for what has come early, and for what waits to go out.
var bufs = sync.Pool{New: func() any { b := make([]byte, bufBytes); return &b }}

const bufBytes = 16 << 10 // a whole request head, and most bodies

// keep is what was written and has yet to go out. The server puts an answer together piece by piece in a buffer of its own, which it holds
// as long as it answers: a stream all its life. So that one may be small, and the pieces still leave together, they are put together here,
// in memory that is held until they go out.
type keep struct {
	through atomic.Bool // nothing is kept; set by the owner only

	mu      sync.Mutex // guards what follows, and the write deadline of a connection that is not through: Close is anybody's
	buf     *[]byte    // nil while nothing is kept
	n       int        // bytes of it
	endless bool       // writes have no deadline once it is sent
}

// Write writes to the client, at the next Flush, Read, Through or Close at the latest; at once after Through. An error may be that of an
// earlier Write.
func (c *Conn) Write(p []byte) (int, error) {
	if c.kept.through.Load() {
		return c.send(p)
	}
	k := &c.kept
	if !k.mu.TryLock() { // the owner writes what was kept, or another closes the connection: nobody waits for either
		return 0, net.ErrClosed
	}
	defer k.mu.Unlock()
	if k.buf == nil {
		if len(p) >= bufBytes {
			return c.send(p)
		}
		k.buf = bufs.Get().(*[]byte)
	}
	before, n := k.n, copy((*k.buf)[k.n:], p)
	k.n += n
	if n == len(p) {
		return n, nil
	}
	if sent, err := c.sendKept(); err != nil {
		return max(0, sent-before), err
	}
	more, err := c.send(p[n:])
	return n + more, err
}

// Together has Write keep again what it is given, after Through.
func (c *Conn) Together() {
	if c.kept.through.Load() {
		c.kept.through.Store(false)
	}
}

// Through sends what is kept, and lets every Write go straight to the client until Together or the next Read.
func (c *Conn) Through() error {
	if c.kept.through.Swap(true) {
		return nil
	}
	c.armWrite() // here, as long as the stack is not deep
	return c.Flush()
}

// Flush sends what is kept. Whoever begins to work on a request that came together with the one before calls it, for no Read does.
func (c *Conn) Flush() error {
	c.kept.mu.Lock()
	defer c.kept.mu.Unlock()
	_, err := c.sendKept()
	return err
}

// sendKept sends what is kept, of which nothing is kept then in any case. The lock is held.
func (c *Conn) sendKept() (n int, err error) {
	k := &c.kept
	if k.buf == nil {
		return 0, nil
	}
	n, err = c.send((*k.buf)[:k.n])
	k.drop()
	if k.endless {
		k.endless, c.dl.write = false, time.Time{}
	}
	return n, err
}

// drop forgets what is kept. The lock is held.
func (k *keep) drop() {
	bufs.Put(k.buf)
	k.buf, k.n = nil, 0
}

// Read reads from the client, who is sent first what was kept for him.
func (c *Conn) Read(p []byte) (int, error) {
	c.Together()
	if err := c.Flush(); err != nil {
		return 0, err
	}
	return c.read(p)
}

// ReadFrom writes all of r. It is there so that nobody takes the socket's own, which passes by what is kept.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) { return io.Copy(writeOnly{c}, r) }

type writeOnly struct{ io.Writer }

// lastWords is how long a client may take to make room for what is kept for it when its connection is closed.
const lastWords = 5 * time.Second

// Close sends what is kept, closes the connection and forgets it. It may take some time where Linger was called.
func (c *Conn) Close() error {
	if k := &c.kept; k.mu.TryLock() { // else the owner is writing, and learns of it
		if k.buf != nil { // past the owner's deadlines and writer, which are the owner's alone
			_ = c.TCPConn.SetWriteDeadline(time.Now().Add(lastWords))
			_, _ = c.TCPConn.Write((*k.buf)[:k.n]) // fails where the client has left, who misses nothing
			k.drop()
		}
		k.mu.Unlock()
	}
	if c.lingers.Load() {
		c.linger()
	}
	return c.cut()
}

// How long Close goes on reading from a client that was answered in the middle of what it sends: at most, and in silence.
const (
	lingerFor   = 30 * time.Second
	lingerQuiet = 2 * time.Second
)

// Linger says whether the client may be in the middle of sending what nobody will read. Closing its connection then would make its system
// throw away the answer, or its next write fail before it looks for one (RFC 9112, section 9.6): so Close ends our side only, and
// reads on, until the client closes too.
func (c *Conn) Linger(on bool) { c.lingers.Store(on) }

// linger reads what the client still sends, to no purpose.
func (c *Conn) linger() {
	if c.CloseWrite() != nil {
		return
	}
	buf := bufs.Get().(*[]byte)
	defer bufs.Put(buf)
	for end := time.Now().Add(lingerFor); ; {
		by := time.Now().Add(lingerQuiet)
		if by.After(end) {
			by = end
		}
		_ = c.TCPConn.SetReadDeadline(by) // before the look at closed: Listener.Close does it the other way round
		select {
		case <-c.l.closed:
			return
		default:
		}
		if _, err := c.TCPConn.Read(*buf); err != nil {
			return
		}
	}
}

// cut closes the connection and forgets it.
func (c *Conn) cut() error {
	c.l.conns.Delete(c.id)
	return c.TCPConn.Close() // the kernel drops the descriptor from the epoll set
}
