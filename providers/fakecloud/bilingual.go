package fakecloud

import (
	"crypto/tls"
	"net"
	"sync"
)

// bilingual speaks TLS and plain text at one port: it hands out a *tls.Conn to those whose first byte begins a
// handshake and the bare connection to all others.
type bilingual struct {
	net.Listener
	ready chan net.Conn
	done  chan struct{} // closed when nobody accepts any more
	once  sync.Once
	err   error // of the inner Accept; read once done is closed
}

func newBilingual(l net.Listener, cfg *tls.Config, wg *sync.WaitGroup) *bilingual {
	b := &bilingual{Listener: l, ready: make(chan net.Conn), done: make(chan struct{})}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				b.once.Do(func() {
					b.err = err
					close(b.done)
				})
				return
			}
			wg.Go(func() { b.listen(c, cfg) })
		}
	})
	return b
}

// listen hears how c begins. It ends with c at the latest.
func (b *bilingual) listen(c net.Conn, cfg *tls.Config) {
	known, ok := c.(*conn)
	if !ok {
		panic("BUG: a listener hands out other connections than its own")
	}
	first := make([]byte, 1)
	if _, err := known.Read(first); err != nil {
		_ = c.Close()
		return
	}
	known.head = first
	if first[0] == 0x16 { // TLS record of a handshake
		c = tls.Server(known, cfg)
	}
	select {
	case b.ready <- c:
	case <-b.done:
		_ = c.Close()
	}
}

// Accept returns the next connection that has said what it speaks.
func (b *bilingual) Accept() (net.Conn, error) {
	select {
	case c := <-b.ready:
		return c, nil
	case <-b.done:
		return nil, b.err
	}
}
