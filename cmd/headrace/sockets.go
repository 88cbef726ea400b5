package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
)

// sockets are listeners that whoever started the process has opened for it; those that nobody took are left over.
type sockets []net.Listener

// firstSocket is the descriptor at which systemd's sockets begin (sd_listen_fds(3)).
const firstSocket = 3

// inherited returns the sockets that systemd opened for the process pid, none where env says that there are none. They begin at the
// descriptor first.
func inherited(env func(string) (string, bool), pid, first int) (s sockets, err error) {
	if owner, ok := env("LISTEN_PID"); !ok || owner != strconv.Itoa(pid) {
		return nil, nil // not for us: a parent's variables
	}
	text, _ := env("LISTEN_FDS")
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > 64 {
		return nil, fmt.Errorf("LISTEN_FDS=%q is no number of sockets", text)
	}
	for fd := first; fd < first+n; fd++ {
		f := os.NewFile(uintptr(fd), "socket")
		ln, err := net.FileListener(f)
		_ = f.Close() // ln has a descriptor of its own
		if _, tcp := ln.(*net.TCPListener); err == nil && !tcp {
			_ = ln.Close()
			err = errors.New("is not TCP")
		}
		if err != nil {
			s.close()
			return nil, fmt.Errorf("socket %d of systemd: %w", fd-first, err)
		}
		s = append(s, ln)
	}
	return s, nil
}

// listen takes the socket that listens on address already, and else opens one.
func (s *sockets) listen(address string) (net.Listener, error) {
	want, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, err
	}
	for i, ln := range *s {
		has, ok := ln.Addr().(*net.TCPAddr)
		if ok && want.Port != 0 && has.Port == want.Port && (has.IP.Equal(want.IP) || has.IP.IsUnspecified() && (want.IP == nil || want.IP.IsUnspecified())) {
			*s = append((*s)[:i:i], (*s)[i+1:]...)
			return ln, nil
		}
	}
	return net.Listen("tcp", address)
}

// left returns an error where a socket is left over: callers would connect to it and never be answered.
func (s sockets) left() error {
	if len(s) == 0 {
		return nil
	}
	return fmt.Errorf("systemd listens on %v for us, and the config does not: name the address under listen or admin", s[0].Addr())
}

func (s sockets) close() {
	for _, ln := range s {
		_ = ln.Close()
	}
}
