//go:build !linux

package listen

// watcher is the portable way on systems without epoll.
type watcher struct{ portable bool }

func (w *watcher) start(*Listener) error { w.portable = true; return nil }
func (w *watcher) add(*Conn)             {}
func (w *watcher) stop()                 {}

// read reads from the client, beginning with a byte that was read ahead.
func (c *Conn) read(p []byte) (int, error) {
	if n := c.ahead.take(p); n > 0 {
		return n, nil
	}
	return c.readTCP(p)
}

// early is the pooled first read of a request, a matter of Linux only.
type early struct{}

func (early) init(*Conn) {}
