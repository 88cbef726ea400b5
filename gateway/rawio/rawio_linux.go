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
)

// Read is read(2) on a non-blocking descriptor.
func Read(fd uintptr, p []byte) (int, syscall.Errno) { return call(syscall.SYS_READ, fd, p) }

// Write is write(2) on a non-blocking descriptor.
func Write(fd uintptr, p []byte) (int, syscall.Errno) { return call(syscall.SYS_WRITE, fd, p) }

func call(trap, fd uintptr, p []byte) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall(trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p))) //nolint:gosec // the pointer lives for the call
		if errno == syscall.EINTR {
			continue
		}
		if errno != 0 {
			return 0, errno
		}
		return int(n), 0 //nolint:gosec // at most len(p)
	}
}
