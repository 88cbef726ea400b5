//go:build unix

package forward

import (
	"io"
	"net"
	"os"
	"syscall"

	"headrace/gateway/rawio"
)

// lend lets fill wait without holding a buffer, where the connection is plain TCP.
func (c *conn) lend() {
	if tc, ok := c.Conn.(*net.TCPConn); ok {
		if raw, err := tc.SyscallConn(); err == nil {
			c.raw, c.step, c.probe = raw, c.tryRead, c.tryProbe
		}
		c.out.Init(tc)
	}
}

// touched tells whether an idle connection has something to read: its end, or bytes that nobody
// asked for. It may take one of them: such a connection must not be used.
func (c *conn) touched() bool {
	if c.raw == nil {
		return false
	}
	err := c.raw.Control(c.probe)
	return err != nil || c.pending
}

func (c *conn) tryProbe(fd uintptr) {
	_, errno := rawio.Read(fd, c.probed[:])
	c.pending = errno != syscall.EAGAIN
}

// tryFirst sends the request; false parks the goroutine until an answer comes.
func (c *conn) tryFirst(fd uintptr) bool {
	n, errno := rawio.Write(fd, (*c.first)[c.sent:])
	c.sent += n
	switch {
	case errno == syscall.EAGAIN:
		c.readErr = errUnsent
	case errno != 0:
		c.readErr = os.NewSyscallError("write", errno)
	case c.sent < len(*c.first):
		c.readErr = errUnsent
	case !c.reused: // something may have come before we waited, which wakes nobody; a reused one was probed
		c.forgetFirst()
		return c.tryRead(fd)
	default:
		c.forgetFirst()
		return false
	}
	return true
}

// tryRead is one attempt to read; false parks the goroutine until the socket is readable.
func (c *conn) tryRead(fd uintptr) bool {
	if c.first != nil {
		return c.tryFirst(fd)
	}
	if c.readErr = c.room(); c.readErr != nil {
		return true
	}
	n, errno := rawio.Read(fd, (*c.buf)[c.to:len(*c.buf)-roomAfter])
	if n > 0 {
		c.to += n
		c.got = n
		return true
	}
	if c.from == c.to {
		c.release()
	}
	switch {
	case errno == syscall.EAGAIN:
		return false
	case errno != 0:
		c.readErr = os.NewSyscallError("read", errno)
	default:
		c.readErr = io.EOF
	}
	return true
}
