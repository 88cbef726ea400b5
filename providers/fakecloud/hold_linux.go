package fakecloud

import (
	"net"
	"os"
	"syscall"
)

// hold binds addr without listening and returns the address it got. While it is held nobody is given the port by
// chance, connections to it are refused, and it can still be listened on: so a host that went away finds its port
// free when it comes back.
func hold(addr string) (release func(), bound string, err error) {
	a, err := net.ResolveTCPAddr("tcp4", addr)
	if err != nil {
		return nil, "", err
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, "", os.NewSyscallError("socket", err)
	}
	release = func() { _ = syscall.Close(fd) }
	sa := &syscall.SockaddrInet4{Port: a.Port}
	copy(sa.Addr[:], a.IP.To4())
	err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	if err == nil {
		err = syscall.Bind(fd, sa)
	}
	var got syscall.Sockaddr
	if err == nil {
		got, err = syscall.Getsockname(fd)
	}
	if err != nil {
		release()
		return nil, "", os.NewSyscallError("bind "+addr, err)
	}
	if in4, ok := got.(*syscall.SockaddrInet4); ok {
		a.Port = in4.Port
	}
	return release, a.String(), nil
}
