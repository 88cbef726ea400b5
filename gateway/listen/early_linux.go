package listen

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"headrace/gateway/rawio"
)

// early holds what a one-byte read found beyond its byte.
type early struct {
	c    *Conn
	raw  syscall.RawConn
	step func(uintptr) bool
	buf  *[]byte // nil while nothing is held
	r, w int
	err  error
}

func (e *early) init(c *Conn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return // closed already: Read falls back to the connection, which says so
	}
	e.c, e.raw, e.step = c, raw, e.tryRead
}

func (e *early) read(c *Conn, p []byte) (int, error) {
	if e.buf != nil {
		n := copy(p, (*e.buf)[e.r:e.w])
		if e.r += n; e.r == e.w {
			e.drop()
		}
		return n, nil
	}
	if len(p) != 1 || e.raw == nil {
		return c.readTCP(p)
	}
	err := e.raw.Read(e.step)
	for c.tooEarly(err) {
		err = e.raw.Read(e.step)
	}
	if err != nil {
		e.drop()
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
			return 0, err
		}
		return 0, &net.OpError{Op: "read", Net: "tcp", Addr: c.RemoteAddr(), Err: err}
	}
	if e.err != nil {
		err := e.err
		e.err = nil
		e.drop()
		return 0, err
	}
	p[0] = (*e.buf)[0]
	if e.r = 1; e.r == e.w {
		e.drop()
	}
	return 1, nil
}

// tryRead is one attempt at a read; false parks the goroutine until the socket is readable, with no buffer held.
func (e *early) tryRead(fd uintptr) bool {
	buf := bufs.Get().(*[]byte)
	n, errno := rawio.Read(fd, *buf)
	switch {
	case errno == syscall.EAGAIN:
		bufs.Put(buf)
		e.c.armRead() // now it waits
		return false
	case errno != 0:
		e.err = &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", errno)}
	case n == 0:
		e.err = io.EOF
	default:
		e.buf, e.r, e.w = buf, 0, n
		return true
	}
	bufs.Put(buf)
	return true
}

func (e *early) drop() {
	if e.buf != nil {
		bufs.Put(e.buf)
		e.buf = nil
	}
}
