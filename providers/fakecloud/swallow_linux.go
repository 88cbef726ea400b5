package fakecloud

import (
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
)

// swallow makes connections to addr wait for an answer that never comes: its listener's queue is full, so that the
// kernel drops each SYN. Nobody else may listen at addr.
func swallow(addr string) (end func(), err error) {
	a, err := net.ResolveTCPAddr("tcp4", addr)
	if err != nil {
		return nil, err
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	sa := &syscall.SockaddrInet4{Port: a.Port}
	copy(sa.Addr[:], a.IP.To4())
	err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	if err == nil {
		err = syscall.Bind(fd, sa)
	}
	if err == nil {
		err = syscall.Listen(fd, 0) // a queue of one
	}
	var filler net.Conn
	if err == nil {
		filler, err = (&net.Dialer{Timeout: time.Second}).Dial("tcp4", addr) //nolint:noctx // a loopback address answers at once
	}
	if err != nil {
		_ = syscall.Close(fd)
		return nil, fmt.Errorf("swallow connections at %s: %w", addr, err)
	}
	return func() {
		_ = filler.Close()
		_ = syscall.Close(fd)
	}, nil
}
