//go:build unix

package rawio_test

import (
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"headrace/gateway/rawio"
)

// pair returns the two ends of a TCP connection over loopback.
func pair(t *testing.T) (one, other *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

// read has rawio.Read tried until it does not say EAGAIN, as its callers do.
func read(t *testing.T, c *net.TCPConn, p []byte) (n int, errno syscall.Errno) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Read(func(fd uintptr) bool {
		n, errno = rawio.Read(fd, p)
		return errno != syscall.EAGAIN
	}); err != nil {
		t.Fatal(err)
	}
	return n, errno
}

func write(t *testing.T, c *net.TCPConn, p []byte) (n int, errno syscall.Errno) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { n, errno = rawio.Write(fd, p) }); err != nil {
		t.Fatal(err)
	}
	return n, errno
}

func TestReadsAndWrites(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	p := make([]byte, 64)
	raw, err := a.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		if n, errno := rawio.Read(fd, p); n != 0 || errno != syscall.EAGAIN {
			t.Errorf("nothing there: %d, %v", n, errno)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if n, errno := write(t, b, []byte("hello")); n != 5 || errno != 0 {
		t.Errorf("wrote %d, %v", n, errno)
	}
	if n, errno := read(t, a, p); string(p[:n]) != "hello" || errno != 0 {
		t.Errorf("read %q, %v", p[:n], errno)
	}
	if err := b.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, errno := read(t, a, p); n != 0 || errno != 0 {
		t.Errorf("at the end: %d, %v", n, errno)
	}
}

// TestFull writes until the socket takes no more: what it took arrives, and not a byte beyond.
func TestFull(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	sent := int64(0)
	for p := make([]byte, 1<<20); ; {
		n, errno := write(t, a, p)
		if sent += int64(n); errno == syscall.EAGAIN {
			break
		}
		if n <= 0 || errno != 0 || sent > 1<<30 {
			t.Fatalf("%d, %v after %d bytes", n, errno, sent)
		}
	}
	if err := a.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.Copy(io.Discard, b); got != sent || err != nil {
		t.Errorf("%d bytes arrived of %d, %v", got, sent, err)
	}
}

// TestBroken writes to where nobody reads any more, which is an error, and no signal.
func TestBroken(t *testing.T) {
	t.Parallel()
	a, _ := pair(t)
	if err := a.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, errno := write(t, a, []byte("late")); n != 0 || errno != syscall.EPIPE {
		t.Errorf("%d, %v", n, errno)
	}
}
