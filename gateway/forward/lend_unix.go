//go:build unix

package forward

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
)

// lend lets fill wait without holding a buffer, where the connection is plain TCP.
func (c *conn) lend() {
	if tc, ok := c.Conn.(*net.TCPConn); ok {
		if raw, err := tc.SyscallConn(); err == nil {
			c.raw, c.step = raw, c.tryRead
		}
	}
}

// tryRead is one attempt to read; false parks the goroutine until the socket is readable.
func (c *conn) tryRead(fd uintptr) bool {
	if c.readErr = c.room(); c.readErr != nil {
		return true
	}
	for {
		n, err := syscall.Read(int(fd), (*c.buf)[c.to:len(*c.buf)-roomAfter])
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if n > 0 {
			c.to += n
			c.got = n
			return true
		}
		if c.from == c.to {
			c.release()
		}
		switch {
		case errors.Is(err, syscall.EAGAIN):
			return false
		case err != nil:
			c.readErr = os.NewSyscallError("read", err)
		default:
			c.readErr = io.EOF
		}
		return true
	}
}
