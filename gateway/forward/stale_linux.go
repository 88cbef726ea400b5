package forward

import (
	"crypto/tls"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// stale tells whether the upstream closed an idle connection, or sent something nobody asked for.
// Under TLS pending bytes may be a session ticket and say nothing.
func stale(c *conn) bool {
	raw, events := c.raw, int16(unix.POLLIN|unix.POLLRDHUP)
	if tc, ok := c.Conn.(*tls.Conn); ok {
		inner, ok := tc.NetConn().(*net.TCPConn)
		if !ok {
			return false
		}
		var err error
		if raw, err = inner.SyscallConn(); err != nil {
			return true
		}
		events = unix.POLLRDHUP
	}
	return raw != nil && pending(raw, events)
}

func pending(raw syscall.RawConn, events int16) bool {
	hit := false
	err := raw.Control(func(fd uintptr) {
		p := [1]unix.PollFd{{Fd: int32(fd), Events: events}} //nolint:gosec // a descriptor fits
		n, err := unix.Poll(p[:], 0)
		hit = err == nil && n > 0
	})
	return hit || err != nil
}
