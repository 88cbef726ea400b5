package listen_test

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"headrace/gateway/listen"
)

// TestLinger closes connections whose clients are in the middle of sending: each sends all of it, and then finds its answer, in order.
func TestLinger(t *testing.T) {
	t.Parallel()
	watchers(t, func(t *testing.T, watch func(*testing.T) *listen.Listener) {
		p := connect(t, watch(t))
		if _, err := p.server.Write([]byte("too large")); err != nil {
			t.Fatal(err)
		}
		p.server.Linger(true)
		closed := make(chan error, 1)
		go func() { closed <- p.server.Close() }()
		_ = p.client.SetDeadline(time.Now().Add(patience))
		if n, err := p.client.Write(make([]byte, 24<<20)); err != nil {
			t.Fatalf("the client's sending failed after %d bytes: %v", n, err)
		}
		if b, err := io.ReadAll(p.client); string(b) != "too large" || err != nil {
			t.Errorf("the client read %q, %v", b, err)
		}
		_ = p.client.Close()
		if err := <-closed; err != nil {
			t.Error(err)
		}
		if n := p.l.Len(); n > 0 {
			t.Errorf("%d connections are left", n)
		}
	})
}

// TestLingerEnds waits no longer for a client than it may: not for a silent one, none once the listener is closed or all connections are,
// and not where it was called off.
func TestLingerEnds(t *testing.T) {
	watchers(t, func(t *testing.T, watch func(*testing.T) *listen.Listener) {
		t.Parallel()
		for name, end := range map[string]func(p *pair){
			"silence":                func(*pair) {},
			"listener closed":        func(p *pair) { _ = p.l.Close() },
			"connections closed":     func(p *pair) { p.l.CloseAll() },
			"listener was closed":    nil,
			"client has read it all": nil,
		} {
			t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
				t.Parallel()
				p := connect(t, watch(t))
				p.server.Linger(true)
				switch name {
				case "listener was closed":
					_ = p.l.Close()
				case "client has read it all":
					p.server.Linger(false)
				}
				closed := make(chan error, 1)
				go func() { closed <- p.server.Close() }()
				_ = p.client.SetDeadline(time.Now().Add(patience))
				if _, err := p.client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) { // our side is closed: it lingers, or has
					t.Fatal(err)
				}
				if end != nil {
					end(p)
				}
				select {
				case err := <-closed:
					if err != nil && !errors.Is(err, net.ErrClosed) {
						t.Error(err)
					}
				case <-time.After(patience):
					t.Fatal("it lingers on")
				}
			})
		}
	})
}
