// Package rawio reads and writes non-blocking sockets without telling Go's scheduler.
//
// An ordinary system call announces itself, so that the scheduler can give the processor away if it
// blocks. When the process was idle a moment before, as it is between two tokens, the announcement
// also wakes the runtime's monitor thread: two futex calls, a nanosleep and two context switches for
// a read that takes a microsecond. A socket in non-blocking mode never blocks, so nothing is lost.
package rawio

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Read reads from a non-blocking socket, as read(2) does. It calls recvfrom(2), as Write calls sendto(2): what lies between a descriptor
// and its socket takes 30 to 45 ns less, of the 400 that finding nothing takes.
func Read(fd uintptr, p []byte) (int, syscall.Errno) { return call(unix.SYS_RECVFROM, fd, p, 0) }

// Write writes to a non-blocking socket, as write(2) does, and raises no signal where the other side has left.
func Write(fd uintptr, p []byte) (int, syscall.Errno) {
	return call(unix.SYS_SENDTO, fd, p, unix.MSG_NOSIGNAL)
}

func call(trap, fd uintptr, p []byte, flags uintptr) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), flags, 0, 0) //nolint:gosec // the pointer lives for the call
		if errno == syscall.EINTR {
			continue
		}
		if errno != 0 {
			return 0, errno
		}
		return int(n), 0 //nolint:gosec // at most len(p)
	}
}
