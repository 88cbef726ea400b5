package fakecloud

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
)

// Isolate cuts the host off, as a dead uplink does: what is connected falls silent both ways, without FIN or RST,
// and new connections are neither taken nor refused. Off lets what was held go on as if nothing had been.
func (h *Host) Isolate(on bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.release == nil:
		return fmt.Errorf("isolate host %s: stopped for good", h.cfg.Name)
	case on == (h.dark != nil):
		return nil
	case !on:
		h.lighten()
		if h.life == nil {
			return nil
		}
		return h.life.listen(h)
	}
	if l := h.life; l != nil {
		l.ice.freeze()
		if l.ln != nil {
			_ = l.ln.Close()
			l.ln = nil
		}
	}
	dark, err := swallow(h.at.Load().bound)
	if err != nil {
		h.lighten()
		return fmt.Errorf("isolate host %s: %w", h.cfg.Name, err)
	}
	h.dark = dark
	return nil
}

// lighten ends the isolation. The caller holds mu.
func (h *Host) lighten() {
	if h.dark != nil {
		h.dark()
		h.dark = nil
	}
	if h.life != nil {
		h.life.ice.thaw()
	}
}

// Move takes the host to another address, as a provider does that restarts it: all connections are reset, the old
// port is free for others, and the prefix cache is empty. Name, books and faults stay. A host that is down stays
// down. The certificate of a CA of its own is made anew, and so is that CA.
func (h *Host) Move(addr string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.release == nil {
		return fmt.Errorf("move host %s: stopped for good", h.cfg.Name)
	}
	release, bound, err := hold(addr)
	if err != nil {
		return fmt.Errorf("move host %s: %w", h.cfg.Name, err)
	}
	alive := h.life != nil
	if alive {
		h.life.end(0, false)
		h.life = nil
		h.engine.forget()
	}
	h.lighten()
	h.release()
	h.release = release
	if err := h.settle(bound); err != nil {
		return fmt.Errorf("move host %s: %w", h.cfg.Name, err)
	}
	if alive {
		return h.up()
	}
	return nil
}

// ice holds what connections carry while it is frozen. The zero value is not.
type ice struct {
	on atomic.Bool

	mu     sync.Mutex    // guards all below
	thawed chan struct{} // closed at the thaw
	later  []func()
}

func (i *ice) freeze() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.on.Swap(true) {
		i.thawed = make(chan struct{})
	}
}

func (i *ice) thaw() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.on.Swap(false) {
		return
	}
	close(i.thawed)
	for _, f := range i.later {
		f()
	}
	i.later = nil
}

// pass runs f now, or at the thaw.
func (i *ice) pass(f func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.on.Load() {
		i.later = append(i.later, f)
		return
	}
	f()
}

// wait returns when nothing is frozen, or with an error once closed is.
func (i *ice) wait(closed <-chan struct{}) error {
	if !i.on.Load() {
		return nil
	}
	i.mu.Lock()
	thawed := i.thawed
	i.mu.Unlock()
	select {
	case <-thawed:
		return nil
	case <-closed:
		return net.ErrClosed
	}
}

// Read reads what arrived; while the host is cut off nothing does.
func (c *conn) Read(p []byte) (int, error) {
	if len(c.head) > 0 {
		n := copy(p, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	n, err := c.TCPConn.Read(p)
	if stopped := c.life.ice.wait(c.closed); stopped != nil {
		return 0, stopped
	}
	return n, err
}

// Write sends p; while the host is cut off it waits.
func (c *conn) Write(p []byte) (int, error) {
	if err := c.life.ice.wait(c.closed); err != nil {
		return 0, err
	}
	return c.TCPConn.Write(p)
}
