//go:build !linux

package fakecloud

import "net"

// hold finds a free port; elsewhere than on Linux nothing keeps it while no one listens.
func hold(addr string) (release func(), bound string, err error) {
	l, err := net.Listen("tcp4", addr) //nolint:noctx // a loopback address resolves at once
	if err != nil {
		return nil, "", err
	}
	defer l.Close()
	return func() {}, l.Addr().String(), nil
}
