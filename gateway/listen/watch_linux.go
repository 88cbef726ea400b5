package listen

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// watcher is one epoll set over all connections of a listener.
type watcher struct {
	portable bool
	epoll    int
	wake     int // an eventfd that ends the loop
	done     chan struct{}
}

const wakeID = ^uint64(0)

func (w *watcher) start(l *Listener) error {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("watch client connections: epoll_create1: %w", err)
	}
	ev, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = unix.Close(ep)
		return fmt.Errorf("watch client connections: eventfd: %w", err)
	}
	w.epoll, w.wake, w.done = ep, ev, make(chan struct{})
	if err := w.ctl(ev, wakeID, unix.EPOLLIN); err != nil {
		_ = unix.Close(ep)
		_ = unix.Close(ev)
		return fmt.Errorf("watch client connections: epoll_ctl: %w", err)
	}
	go w.loop(l)
	return nil
}

func (w *watcher) ctl(fd int, id uint64, events uint32) error {
	return unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{
		Events: events, Fd: int32(uint32(id)), Pad: int32(uint32(id >> 32)), //nolint:gosec // the two halves of an opaque id
	})
}

// loop sits in one operating system thread for all connections.
func (w *watcher) loop(l *Listener) {
	defer close(w.done)
	evs := make([]unix.EpollEvent, 256)
	for {
		n, err := unix.EpollWait(w.epoll, evs, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		for i := range max(n, 0) {
			id := uint64(uint32(evs[i].Fd)) | uint64(uint32(evs[i].Pad))<<32 //nolint:gosec // joins what ctl split
			if id == wakeID {
				return
			}
			if v, ok := l.conns.Load(id); ok { // ids never repeat: a reused descriptor cannot hit another request
				v.(*Conn).left()
			}
		}
	}
}

func (w *watcher) add(c *Conn) {
	if w.portable {
		return
	}
	rc, err := c.SyscallConn()
	if err != nil {
		return // closed already: its first Read says so
	}
	_ = rc.Control(func(fd uintptr) {
		_ = w.ctl(int(fd), c.id, unix.EPOLLRDHUP|unix.EPOLLET)
	})
}

func (w *watcher) stop() {
	if w.portable || w.done == nil {
		return
	}
	select {
	case <-w.done:
		return
	default:
	}
	_, _ = unix.Write(w.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	<-w.done
	_ = unix.Close(w.epoll)
	_ = unix.Close(w.wake)
}

// read reads from the client.
//
// fasthttp, told to save memory, waits for a request's first byte with a one-byte read, so as to
// hold no buffer meanwhile. That costs a system call a request; here such a read takes all that has
// arrived into a pooled buffer, and the next Read gets the rest of it.
func (c *Conn) read(p []byte) (int, error) {
	if c.l.watch.portable {
		if n := c.ahead.take(p); n > 0 {
			return n, nil
		}
		return c.readTCP(p)
	}
	return c.early.read(c, p)
}

var _ syscall.Conn = (*Conn)(nil)
