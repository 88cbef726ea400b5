package forward

import (
	"crypto/tls"
	"net"

	"golang.org/x/sys/unix"
)

// stale tells whether the upstream closed an idle connection, or sent something nobody asked for.
// Under TLS pending bytes may be a session ticket and say nothing.
func stale(c *conn) bool {
	tc, ok := c.Conn.(*tls.Conn)
	if !ok {
		return c.touched()
	}
	inner, ok := tc.NetConn().(*net.TCPConn)
	if !ok {
		return false
	}
	raw, err := inner.SyscallConn()
	if err != nil {
		return true
	}
	hit := false
	err = raw.Control(func(fd uintptr) {
		p := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}} //nolint:gosec // a descriptor fits
		n, err := unix.Poll(p[:], 0)
		hit = err == nil && n > 0
	})
	return hit || err != nil
}
