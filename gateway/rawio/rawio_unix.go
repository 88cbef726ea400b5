//go:build unix && !linux

// Package rawio reads and writes non-blocking sockets; on Linux it does so without telling Go's scheduler.
package rawio

import (
	"errors"
	"syscall"
)

// Read is read(2) on a non-blocking descriptor.
func Read(fd uintptr, p []byte) (int, syscall.Errno) { return call(syscall.Read, fd, p) }

// Write is write(2) on a non-blocking descriptor.
func Write(fd uintptr, p []byte) (int, syscall.Errno) { return call(syscall.Write, fd, p) }

func call(f func(int, []byte) (int, error), fd uintptr, p []byte) (int, syscall.Errno) {
	for {
		n, err := f(int(fd), p)
		errno, ok := errors.AsType[syscall.Errno](err)
		switch {
		case err == nil:
			return n, 0
		case ok && errno != syscall.EINTR:
			return 0, errno
		case !ok:
			return 0, syscall.EIO
		}
	}
}
