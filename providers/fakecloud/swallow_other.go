//go:build !linux

package fakecloud

import "net"

// swallow makes connections to addr wait for an answer that never comes. Elsewhere than on Linux they are made, and
// nobody reads what they carry.
func swallow(addr string) (end func(), err error) {
	l, err := net.Listen("tcp4", addr) //nolint:noctx // a loopback address resolves at once
	if err != nil {
		return nil, err
	}
	return func() { _ = l.Close() }, nil
}
