//go:build unix

package listen

import (
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
)

// scarce fails the first accepts as a process without descriptors does.
type scarce struct {
	net.Listener
	left int
}

func (s *scarce) Accept() (net.Conn, error) {
	if s.left != 0 {
		s.left--
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return s.Listener.Accept()
}

func TestShortageEndsNothing(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := WatchPortably(&scarce{ln, 3})
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	got, err := l.Accept()
	if err != nil {
		t.Fatalf("after a shortage: %v", err)
	}
	_ = got.Close()
	if l.Shortages() != 3 {
		t.Errorf("%d shortages counted, want 3", l.Shortages())
	}
	l.Listener.(*scarce).left = -1 // from here on for ever
	done := make(chan error)
	go func() { _, err := l.Accept(); done <- err }()
	_ = l.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed in a shortage: %v", err)
	}
}
