package gateway

import (
	"net"

	"golang.org/x/sys/unix"
)

// unsent returns how many bytes the peer's kernel has not acknowledged.
func unsent(c net.Conn) int {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return 0
	}
	var n int
	_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	return n
}
