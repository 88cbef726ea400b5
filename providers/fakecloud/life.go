package fakecloud

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// life is a host from its start, or revival, to its end.
type life struct {
	ctx    context.Context // done when the host is dead
	cancel context.CancelFunc
	quit   chan struct{} // closed when it stops: what hangs lets go
	srv    *http.Server
	ln     net.Listener // nil while nobody listens; guarded by Host.mu
	wg     sync.WaitGroup
	books  *books
	ice    ice         // holds what its connections carry while the host is cut off
	dying  atomic.Bool // the host is being taken away

	mu     sync.Mutex // guards all below
	ended  bool
	active int           // handlers
	idle   chan struct{} // closed when ended and the last handler has returned
	conns  map[*conn]struct{}
}

func (l *life) listen(h *Host) error {
	if l.ln != nil || h.dark != nil {
		return nil
	}
	at := h.at.Load()
	ln, err := (&net.ListenConfig{}).Listen(l.ctx, "tcp4", at.bound)
	if err != nil {
		return err
	}
	l.ln = &listener{ln, l}
	switch {
	case at.tls != nil && h.cfg.RedirectPlain:
		l.ln = newBilingual(l.ln, at.tls, &l.wg)
	case at.tls != nil:
		l.ln = tls.NewListener(l.ln, at.tls)
	}
	l.srv.SetKeepAlivesEnabled(true)
	serving := l.ln
	l.wg.Go(func() { _ = l.srv.Serve(serving) }) // ends when serving is closed
	return nil
}

// deaf stops listening; what is connected goes on, until it is idle.
func (l *life) deaf() {
	if l.ln == nil {
		return
	}
	_ = l.ln.Close()
	l.ln = nil
	l.srv.SetKeepAlivesEnabled(false)
}

// end ends the life: after grace, with a FIN on what is still connected if gently, else with RST.
func (l *life) end(grace time.Duration, gently bool) {
	close(l.quit)
	if grace > 0 {
		l.dropFresh()
		ctx, cancel := context.WithTimeout(context.Background(), grace)
		_ = l.srv.Shutdown(ctx) // does not know of connections that a fault took over
		l.finish()
		select {
		case <-l.idle:
		case <-ctx.Done():
		}
		cancel()
	}
	l.ice.thaw()
	l.dying.Store(true) // first, so that nobody takes the resets for clients that left
	if l.ln != nil {
		_ = l.ln.Close()
		l.ln = nil
	}
	l.finish()
	l.drop(gently)
	l.cancel() // after that: no handler may still end its answer as if all were well
	_ = l.srv.Close()
	<-l.idle
	l.wg.Wait()
}

// finish lets no further handler begin.
func (l *life) finish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return
	}
	l.ended = true
	if l.active == 0 {
		close(l.idle)
	}
}

func (l *life) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ended {
		l.active++
	}
	return !l.ended
}

func (l *life) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.active--; l.active == 0 && l.ended {
		close(l.idle)
	}
}

// used notes that a request came on c.
func (l *life) used(c net.Conn, s http.ConnState) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if known, ok := c.(*conn); ok && s == http.StateActive {
		known.fresh.Store(false)
	}
}

// dropFresh closes the connections on which no request ever came; Shutdown would wait for one.
func (l *life) dropFresh() {
	l.mu.Lock()
	var fresh []*conn
	for c := range l.conns {
		if c.fresh.Load() {
			fresh = append(fresh, c)
		}
	}
	l.mu.Unlock()
	for _, c := range fresh {
		_ = c.Close()
	}
}

// drop closes all connections, by FIN if gently, else by RST.
func (l *life) drop(gently bool) {
	l.mu.Lock()
	conns := l.conns
	l.conns = map[*conn]struct{}{}
	l.mu.Unlock()
	for c := range conns {
		if !gently {
			_ = c.SetLinger(0)
		}
		_ = c.Close()
	}
}

// listener hands out connections that its life knows.
type listener struct {
	net.Listener
	life *life
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("accepted a %T", c), c.Close())
	}
	known := &conn{TCPConn: tcp, life: l.life, closed: make(chan struct{})}
	known.fresh.Store(true)
	l.life.books.update(func(s *Stats) { s.Connections++; s.Accepted++ })
	l.life.mu.Lock()
	ended := l.life.ended
	if !ended {
		l.life.conns[known] = struct{}{}
	}
	l.life.mu.Unlock()
	if ended { // it came between the last look at the connections and the end of listening
		_ = known.SetLinger(0)
		return nil, errors.Join(net.ErrClosed, known.Close())
	}
	return known, nil
}

// conn is a connection that leaves its life's list when it is closed.
type conn struct {
	*net.TCPConn
	life   *life
	fresh  atomic.Bool // no request came on it yet
	once   sync.Once
	closed chan struct{}
	head   []byte // read already, and to be read again
}

// Close closes the connection; only the first call counts. The other end learns of it when the host is not cut off.
func (c *conn) Close() error {
	var err error
	c.once.Do(func() {
		close(c.closed)
		c.life.ice.pass(func() { err = c.TCPConn.Close() })
		c.life.mu.Lock()
		delete(c.life.conns, c)
		c.life.mu.Unlock()
		c.life.books.update(func(s *Stats) { s.Connections-- })
	})
	return err
}
