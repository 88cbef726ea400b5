//go:build unix

package rawio

import (
	"io"
	"net"
	"os"
	"syscall"
)

// Writer writes to one TCP connection. One goroutine uses it at a time.
type Writer struct {
	raw  syscall.RawConn // nil when the connection has none
	step func(uintptr) bool
	p    []byte
	n    int
	err  error
}

// Init makes w write to c.
func (w *Writer) Init(c *net.TCPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	w.raw, w.step = raw, w.try
}

// Usable tells whether Init found a socket.
func (w *Writer) Usable() bool { return w.raw != nil }

// Write writes all of p under the connection's write deadline.
func (w *Writer) Write(p []byte) (int, error) {
	w.p, w.n, w.err = p, 0, nil
	err := w.raw.Write(w.step)
	w.p = nil
	if err == nil {
		err = w.err
	}
	if err == nil {
		return w.n, nil
	}
	return w.n, &net.OpError{Op: "write", Net: "tcp", Err: err}
}

// try writes what it can; false parks the goroutine until the socket takes more.
func (w *Writer) try(fd uintptr) bool {
	for w.n < len(w.p) {
		n, errno := Write(fd, w.p[w.n:])
		switch {
		case errno == syscall.EAGAIN:
			return false
		case errno != 0:
			w.err = os.NewSyscallError("write", errno)
			return true
		case n == 0:
			w.err = io.ErrUnexpectedEOF
			return true
		}
		w.n += n
	}
	return true
}
