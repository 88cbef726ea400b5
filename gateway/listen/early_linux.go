package listen

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
)

const earlyBytes = 16 << 10 // a whole request head, and most bodies

// early holds what a one-byte read found beyond its byte.
type early struct {
	raw  syscall.RawConn
	step func(uintptr) bool
	buf  *[]byte // nil while nothing is held
	r, w int
	err  error
}

var earlyBufs = sync.Pool{New: func() any { b := make([]byte, earlyBytes); return &b }}

func (e *early) init(c *Conn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return // closed already: Read falls back to the connection, which says so
	}
	e.raw, e.step = raw, e.tryRead
}

func (e *early) read(c *net.TCPConn, p []byte) (int, error) {
	if e.buf != nil {
		n := copy(p, (*e.buf)[e.r:e.w])
		if e.r += n; e.r == e.w {
			e.drop()
		}
		return n, nil
	}
	if len(p) != 1 || e.raw == nil {
		return c.Read(p)
	}
	if err := e.raw.Read(e.step); err != nil {
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
	buf := earlyBufs.Get().(*[]byte)
	for {
		n, err := syscall.Read(int(fd), *buf)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EAGAIN):
			earlyBufs.Put(buf)
			return false
		case err != nil:
			e.err = &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", err)}
		case n == 0:
			e.err = io.EOF
		default:
			e.buf, e.r, e.w = buf, 0, n
			return true
		}
		earlyBufs.Put(buf)
		return true
	}
}

func (e *early) drop() {
	if e.buf != nil {
		earlyBufs.Put(e.buf)
		e.buf = nil
	}
}
