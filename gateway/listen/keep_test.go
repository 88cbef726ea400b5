package listen_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"headrace/gateway/listen"
)

// TestWriteKeeps has what is written go out with the next Read, Through or Close, and not before; and after Through at once, until the
// next Read.
func TestWriteKeeps(t *testing.T) {
	watchers(t, func(t *testing.T, watch func(*testing.T) *listen.Listener) {
		l := watch(t)
		write := func(c *listen.Conn, s string) {
			if n, err := c.Write([]byte(s)); n != len(s) || err != nil {
				t.Fatalf("%d bytes written, %v", n, err)
			}
		}
		for name, release := range map[string]func(c *listen.Conn){
			"Read":    func(c *listen.Conn) { _, _ = c.Read(make([]byte, 1)) },
			"Through": func(c *listen.Conn) { _ = c.Through() },
			"Close":   func(c *listen.Conn) { _ = c.Close() },
		} {
			p := connect(t, l)
			_ = p.client.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			write(p.server, "one ")
			write(p.server, "two")
			if n, err := p.client.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: %d bytes came before it, %v", name, n, err)
			}
			done := make(chan struct{})
			go func() { defer close(done); release(p.server) }()
			_ = p.client.SetReadDeadline(time.Now().Add(patience))
			b := make([]byte, 16)
			if n, err := p.client.Read(b); string(b[:n]) != "one two" {
				t.Errorf("%s: %q came at once, %v", name, b[:n], err)
			}
			if name == "Through" {
				<-done
				write(p.server, "three")
				if n, err := io.ReadFull(p.client, b[:5]); string(b[:n]) != "three" {
					t.Errorf("behind Through %q came, %v", b[:n], err)
				}
			}
			_ = p.client.Close()
			<-done
		}
	})
}

// TestWriteKeepsOrder has pieces of all sizes arrive whole and in order.
func TestWriteKeepsOrder(t *testing.T) {
	watchers(t, func(t *testing.T, watch func(*testing.T) *listen.Listener) {
		p := connect(t, watch(t))
		seed := rand.Uint64()
		rnd := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // reproducible
		var sent []byte
		got := make(chan []byte)
		go func() {
			_ = p.client.SetReadDeadline(time.Now().Add(patience))
			b, _ := io.ReadAll(p.client)
			got <- b
		}()
		for range 200 {
			piece := make([]byte, []int{1, 10, 300, 5000, 16 << 10, 40000}[rnd.IntN(6)])
			for i := range piece {
				piece[i] = byte(rnd.Uint32())
			}
			switch rnd.IntN(8) {
			case 0:
				if err := p.server.Through(); err != nil {
					t.Fatal(err)
				}
			case 1:
				p.server.Together()
			}
			var n int64
			var err error
			if rnd.IntN(4) == 0 {
				n, err = p.server.ReadFrom(bytes.NewReader(piece))
			} else {
				var k int
				k, err = p.server.Write(piece)
				n = int64(k)
			}
			if n != int64(len(piece)) || err != nil {
				t.Fatalf("seed %d: %d bytes of %d written, %v", seed, n, len(piece), err)
			}
			sent = append(sent, piece...)
		}
		_ = p.server.Close()
		if b := <-got; !bytes.Equal(b, sent) {
			t.Errorf("seed %d: of %d bytes %d came, and not the same", seed, len(sent), len(b))
		}
	})
}
