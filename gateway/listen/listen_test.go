package listen_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"headrace/gateway/listen"
)

const patience = time.Minute

// pair is a client's and the server's end of a watched connection.
type pair struct {
	l      *listen.Listener
	client *net.TCPConn
	server *listen.Conn
}

func watchers(t *testing.T, f func(t *testing.T, watch func(t *testing.T) *listen.Listener)) {
	t.Helper()
	for _, portable := range []bool{false, true} {
		t.Run(fmt.Sprintf("portable=%t", portable), func(t *testing.T) {
			f(t, func(t *testing.T) *listen.Listener {
				t.Helper()
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				l := listen.WatchPortably(ln)
				if !portable {
					if l, err = listen.Watch(ln); err != nil {
						t.Fatal(err)
					}
				}
				t.Cleanup(func() { _ = l.Close(); l.CloseAll(); l.StopWatching() })
				return l
			})
		})
	}
}

func connect(t *testing.T, l *listen.Listener) *pair {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = s.SetReadDeadline(time.Now().Add(patience))
	return &pair{l, c.(*net.TCPConn), s.(*listen.Conn)}
}

// told is a handler that says what it was told.
type told chan listen.Why

func (c told) ClientGone(why listen.Why) { c <- why }

func arm(c *listen.Conn) told {
	ch := make(told, 4)
	var h listen.Handler = ch
	c.Arm(&h)
	return ch
}

func (c told) expect(t *testing.T, want listen.Why) {
	t.Helper()
	select {
	case got := <-c:
		if got != want {
			t.Errorf("told %d, want %d", got, want)
		}
	case <-time.After(patience):
		t.Fatal("told nothing")
	}
}

// TestArm tells an armed handler once, and a disarmed one never.
func TestArm(t *testing.T) {
	watchers(t, func(t *testing.T, watch func(*testing.T) *listen.Listener) {
		l := watch(t)
		for name, leave := range map[string]func(c *net.TCPConn){
			"FIN":        func(c *net.TCPConn) { _ = c.Close() },
			"half-close": func(c *net.TCPConn) { _ = c.CloseWrite() },
			"RST":        func(c *net.TCPConn) { _ = c.SetLinger(0); _ = c.Close() },
		} {
			p := connect(t, l)
			ch := arm(p.server)
			leave(p.client)
			ch.expect(t, listen.Left)
			if !p.server.Gone() {
				t.Errorf("%s: the connection does not count as gone", name)
			}
			p.server.Disarm()
			arm(p.server).expect(t, listen.Left) // at once: it is gone already
			p.l.AbortAll()
			select {
			case why := <-ch:
				t.Errorf("%s: told again: %d", name, why)
			default:
			}
			_ = p.server.Close()
		}
		p := connect(t, l)
		ch := arm(p.server)
		p.server.Disarm()
		_ = p.client.Close()
		if _, err := p.server.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("read: %v", err)
		}
		select {
		case why := <-ch:
			t.Errorf("told %d after Disarm", why)
		default:
		}
	})
}

// TestAbortAll reaches what is armed, and what is armed later.
func TestAbortAll(t *testing.T) {
	watchers(t, func(t *testing.T, watch func(*testing.T) *listen.Listener) {
		l := watch(t)
		a, b := connect(t, l), connect(t, l)
		ch := arm(a.server)
		if l.Len() != 2 {
			t.Errorf("%d connections, want 2", l.Len())
		}
		l.AbortAll()
		ch.expect(t, listen.Drained)
		arm(b.server).expect(t, listen.Drained)
		if a.server.Gone() || b.server.Gone() {
			t.Error("clients that are there count as gone")
		}
		late := make(told, 1)
		var h listen.Handler = late
		b.server.Disarm()
		b.server.ArmReading(&h)
		late.expect(t, listen.Drained)
		a.server.Disarm()
		b.server.Disarm()
		l.CloseAll()
		if l.Len() != 0 {
			t.Errorf("%d connections after CloseAll", l.Len())
		}
	})
}

// TestBytesInOrder reads with every size of buffer, arming and disarming in between: no byte is lost,
// doubled or moved.
func TestBytesInOrder(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	watchers(t, func(t *testing.T, watch func(*testing.T) *listen.Listener) {
		r := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // a test's
		l := watch(t)
		for range 20 {
			p := connect(t, l)
			want := make([]byte, 1+r.IntN(100_000))
			for i := range want {
				want[i] = byte(r.Uint32())
			}
			pieces := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test's
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				for b := want; len(b) > 0; {
					n := 1 + pieces.IntN(min(len(b), 5000))
					_, _ = p.client.Write(b[:n])
					b = b[n:]
				}
				_ = p.client.CloseWrite()
			}()
			var got bytes.Buffer
			for {
				b := make([]byte, []int{1, 1, 2, 100, 4096, 40_000}[r.IntN(6)])
				n, err := p.server.Read(b)
				got.Write(b[:n])
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if r.IntN(3) == 0 {
					arm(p.server)
					p.server.Disarm()
					_ = p.server.SetReadDeadline(time.Now().Add(patience))
				}
			}
			<-sent
			if !bytes.Equal(got.Bytes(), want) {
				t.Fatalf("%d bytes came of %d, or in another order", got.Len(), len(want))
			}
		}
	})
}

// TestDeadlines obeys what was asked for last, whatever the poller was told before.
func TestDeadlines(t *testing.T) {
	watchers(t, func(t *testing.T, watch func(*testing.T) *listen.Listener) {
		p := connect(t, watch(t))
		for _, size := range []int{1, 100} {
			b := make([]byte, size)
			for _, step := range []struct{ asked time.Duration }{
				{60 * time.Millisecond}, // told
				{20 * time.Millisecond}, // earlier than what was told
				{90 * time.Millisecond}, // later, within the slack: told only when it is due
				{-time.Second},          // past
				{30 * time.Millisecond},
			} {
				from := time.Now()
				_ = p.server.SetReadDeadline(from.Add(step.asked))
				n, err := p.server.Read(b)
				took := time.Since(from)
				if n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) || took < step.asked || took > step.asked+patience/2 {
					t.Errorf("%v, %d bytes at a time: %d, %v after %v", step.asked, size, n, err, took)
				}
			}
		}
		// Put off while in force, and lifted: the read waits.
		_ = p.server.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
		if _, err := p.server.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		_ = p.server.SetDeadline(time.Time{})
		go func() { _, _ = p.client.Write([]byte("x")) }()
		if n, err := p.server.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Errorf("without a deadline: %d, %v", n, err)
		}
		// A write that finds no room, after deadlines that were put off again and again.
		for range 5 {
			_ = p.server.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
			if _, err := p.server.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			<-time.After(30 * time.Millisecond)
		}
		big := make([]byte, 64<<20)
		from := time.Now()
		_ = p.server.SetWriteDeadline(from.Add(80 * time.Millisecond))
		n, err := p.server.Write(big)
		if took := time.Since(from); !errors.Is(err, os.ErrDeadlineExceeded) || took < 80*time.Millisecond || took > patience/2 {
			t.Errorf("a write without room: %d, %v after %v", n, err, took)
		}
		var op *net.OpError
		if !errors.As(err, &op) || op.Op != "write" {
			t.Errorf("%T %v does not say that a write failed", err, err)
		}
		_ = p.server.Close()
		_ = p.client.SetReadDeadline(time.Now().Add(patience))
		if came, err := io.Copy(io.Discard, p.client); came != int64(5+n) || err != nil {
			t.Errorf("%d bytes came of 5 and %d, %v", came, n, err)
		}
	})
}

// TestSlowWrite goes on after the poller's deadline when the one asked for is later, without losing
// or doubling a byte.
func TestSlowWrite(t *testing.T) {
	watchers(t, func(t *testing.T, watch func(*testing.T) *listen.Listener) {
		want := make([]byte, 16<<20)
		for i := range want {
			want[i] = byte(i * 7)
		}
		const soon, later = 100 * time.Millisecond, 4 * time.Second // within the slack: not told
		slow := func() (timely bool) {
			p := connect(t, watch(t))
			_ = p.server.SetWriteDeadline(time.Now().Add(soon))
			if _, err := p.server.Write([]byte("x")); err != nil { // tells the poller
				t.Fatal(err)
			}
			by := time.Now().Add(later)
			_ = p.server.SetWriteDeadline(by)
			late := time.After(3 * soon)
			got := make(chan []byte, 1)
			go func() {
				<-late
				b, _ := io.ReadAll(p.client)
				got <- b
			}()
			n, err := p.server.Write(want)
			over := time.Now()
			_ = p.server.Close()
			b := <-got
			if err != nil && !over.Before(by) { // so busy a machine
				return false
			}
			if err != nil || n != len(want) || len(b) != len(want)+1 || !bytes.Equal(b[1:], want) {
				t.Errorf("wrote %d, %v; %d bytes came, want %d", n, err, len(b), len(want)+1)
			}
			return true
		}
		for tries := 1; !slow(); tries++ {
			if tries == 10 {
				t.Fatalf("%d bytes took more than %v, ten times", len(want), later)
			}
		}
	})
}

// TestOf finds the watched connection below TLS and other wrappings.
func TestOf(t *testing.T) {
	watchers(t, func(t *testing.T, watch func(*testing.T) *listen.Listener) {
		p := connect(t, watch(t))
		for name, c := range map[string]net.Conn{
			"itself":   p.server,
			"TLS":      tls.Server(p.server, &tls.Config{MinVersion: tls.VersionTLS12}),
			"hijacked": hijacked{p.server},
			"both":     hijacked{tls.Server(p.server, &tls.Config{MinVersion: tls.VersionTLS12})},
		} {
			if listen.Of(c) != p.server {
				t.Errorf("%s: not found", name)
			}
		}
		if listen.Of(p.client) != nil {
			t.Error("found what is not watched")
		}
	})
}

type hijacked struct{ net.Conn }

func (h hijacked) UnsafeConn() net.Conn { return h.Conn }

// TestStopWatching ends the watcher, and may be called twice.
func TestStopWatching(t *testing.T) {
	watchers(t, func(t *testing.T, watch func(*testing.T) *listen.Listener) {
		l := watch(t)
		p := connect(t, l)
		l.StopWatching()
		l.StopWatching()
		if _, err := p.client.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if n, err := p.server.Read(make([]byte, 1)); n != 1 || err != nil { // connections outlive it
			t.Errorf("%d, %v", n, err)
		}
	})
}
