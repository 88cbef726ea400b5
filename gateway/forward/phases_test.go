package forward

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// TestEarlyAnswer takes the answer of a host that refuses a body before it has read it all.
func TestEarlyAnswer(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		br := bufio.NewReader(c)
		_, _ = http.ReadRequest(br)
		_, _ = io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.CopyN(io.Discard, br, 1<<20)
		_ = c.Close() // with most of the body unread: a reset
	}()
	h := hostAt(t, "http://"+ln.Addr().String(), Options{})
	r := do(h, body(strings.Repeat("x", 64<<20)))
	if r.err != nil || r.status != 413 {
		t.Skipf("the kernel threw the answer away with the reset: %d %v", r.status, r.err)
	}
	if r.body != "big" {
		t.Errorf("body %q", r.body)
	}
}

// TestDeadlines returns from every phase in time, and goes on where it was when called again.
func TestDeadlines(t *testing.T) {
	goOn := make(chan struct{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		for _, s := range []string{"HTTP/1.1 200 OK\r\nContent-", "Length: 6\r\n\r\nabc", "def"} {
			<-goOn
			_, _ = io.WriteString(c, s)
		}
	}()
	h := hostAt(t, "http://"+ln.Addr().String(), Options{})
	var a Attempt
	var g Guard
	if err := a.Start(h, &g, body("{}"), time.Now()); err != nil {
		t.Fatal(err)
	}
	defer a.Finish()
	soon := func() time.Time { return time.Now().Add(30 * time.Millisecond) }
	late := time.Now().Add(patience)
	for range 2 {
		from := time.Now()
		if err := a.AwaitHead(soon()); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("nothing came: %v", err)
		}
		if took := time.Since(from); took < 25*time.Millisecond || took > patience/2 {
			t.Errorf("returned after %v", took)
		}
		goOn <- struct{}{}
	}
	if err := a.AwaitHead(late); err != nil {
		t.Fatal(err)
	}
	for string(a.Unread()) != "abc" {
		if err := a.More(late, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.More(soon(), 0); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("nothing came: %v", err)
	}
	// a deadline that ends earlier than asked, within the slack, is no reason to return
	if err := a.More(time.Now().Add(80*time.Millisecond), time.Minute); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("nothing came: %v", err)
	}
	goOn <- struct{}{}
	if err := a.More(late, time.Second); err != nil || string(a.Unread()) != "abcdef" || !a.Ended() {
		t.Errorf("%q, ended %t, %v", a.Unread(), a.Ended(), err)
	}
}

// TestDialFails names the class of what could not be reached.
func TestDialFails(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	silent := make(chan net.Conn, 1)
	go func() { // accepts, and never shakes hands
		c, err := ln.Accept()
		if err == nil {
			silent <- c
		}
	}()
	from := time.Now()
	r := do(hostAt(t, "https://"+addr, Options{Connect: 100 * time.Millisecond}), body("{}"))
	if oe, ok := errors.AsType[*outcome.Error](r.err); !ok || oe.Class != outcome.DialFailed || time.Since(from) > patience/2 {
		t.Errorf("a silent TLS host: %v after %v", r.err, time.Since(from))
	}
	_, _ = (<-silent).Close(), ln.Close()
	r = do(hostAt(t, "http://127.0.0.1:1", Options{}), body("{}"))
	if oe, ok := errors.AsType[*outcome.Error](r.err); !ok || oe.Class != outcome.DialFailed {
		t.Errorf("a host that is not there: %v", r.err)
	}
}

// TestAnswerBeforeRequest has a host speak as soon as it is spoken to, and then wait.
func TestAnswerBeforeRequest(t *testing.T) {
	for name, tc := range map[string]struct {
		wire   string
		status int
	}{
		"an answer": {"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy", 503},
		"a banner":  {"220 ready\r\n\r\n", 0},
	} {
		t.Run(name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = ln.Close() }()
			h := hostAt(t, "http://"+ln.Addr().String(), Options{})
			var a Attempt
			var g Guard
			if err := a.Start(h, &g, body("{}"), time.Now()); err != nil {
				t.Fatal(err)
			}
			defer a.Finish()
			c, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			if _, err := io.WriteString(c, tc.wire); err != nil {
				t.Fatal(err)
			}
			<-time.After(20 * time.Millisecond) // it has come, and nobody was told
			err = a.AwaitHead(time.Now().Add(5 * time.Second))
			if tc.status == 0 {
				if oe, ok := errors.AsType[*outcome.Error](err); !ok || oe.Class != outcome.UpstreamFault {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil || a.Status != tc.status {
				t.Errorf("%d %v", a.Status, err)
			}
		})
	}
}

// TestGuard forbids what comes after an abort, whatever that meets.
func TestGuard(t *testing.T) {
	h := serve(t, func(int, *http.Request, []byte) string { return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" })
	var a Attempt
	var g Guard
	g.Abort()
	g.Abort()
	err := a.Start(h, &g, body("{}"), time.Now())
	if oe, ok := errors.AsType[*outcome.Error](err); !ok || oe.Class != outcome.ClientGone {
		t.Errorf("start behind an abort: %v", err)
	}
	a.Finish()

	var g2 Guard
	if err := a.Start(h, &g2, body("{}"), time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := a.AwaitHead(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	g2.Abort()
	a.Finish() // read to the end, but closed by then: not to be used again
	if r := do(h, body("{}")); r.err != nil || r.reused {
		t.Errorf("behind an aborted attempt: %+v", r)
	}
}

// TestUpdate keeps what has not changed, and changes nothing on an error.
func TestUpdate(t *testing.T) {
	c := New(Options{})
	ep := endpoint.Endpoint{ID: "a:b", BaseURL: "http://127.0.0.1:1/v1", APIKey: "k"}
	if err := c.Update([]endpoint.Endpoint{ep}); err != nil {
		t.Fatal(err)
	}
	first := c.Host(ep.ID)
	ep.Price.USDPerHour = 7
	if err := c.Update([]endpoint.Endpoint{ep}); err != nil || c.Host(ep.ID) != first {
		t.Errorf("a new price made a new host (%v)", err)
	}
	for _, bad := range []string{"127.0.0.1:1", "ftp://h", "http://", "http://u:p@h", "http://h?x=1", "http://h/%zz"} {
		other := ep
		other.BaseURL = bad
		if err := c.Update([]endpoint.Endpoint{other}); err == nil || c.Host(ep.ID) != first {
			t.Errorf("%q: error %v, host kept %t", bad, err, c.Host(ep.ID) == first)
		}
	}
	other := ep
	other.APIKey = "a\r\nX: y"
	if err := c.Update([]endpoint.Endpoint{other}); err == nil || strings.Contains(fmt.Sprint(err), "X: y") {
		t.Errorf("a key with a line break: %v", err)
	}
	ep.APIKey = "k2"
	if err := c.Update([]endpoint.Endpoint{ep}); err != nil || c.Host(ep.ID) == first {
		t.Errorf("a new key kept the host (%v)", err)
	}
	if err := c.Update(nil); err != nil || c.Host(ep.ID) != nil {
		t.Errorf("a host that fell out is still there (%v)", err)
	}
}

// TestWriteChunk frames pieces where they lie, without touching what stands around them.
func TestWriteChunk(t *testing.T) {
	buf := make([]byte, bufBytes)
	c := &conn{buf: &buf, from: roomBefore, to: roomBefore}
	var want bytes.Buffer
	for i := range 6000 {
		want.WriteByte(byte(i))
	}
	c.to += copy(buf[c.to:], want.Bytes())
	var wire bytes.Buffer
	for _, n := range []int{1, 9, 15, 16, 255, 256, 4095, 6000 - 4647} {
		if err := c.writeChunk(&wire, n); err != nil {
			t.Fatal(err)
		}
	}
	if c.buf != nil {
		t.Error("an empty connection holds its buffer")
	}
	wire.WriteString("0\r\n\r\n")
	f := framing{kind: chunked}
	got, _, err := decodeAll(&f, wire.Bytes(), atOnce)
	if err != nil || !f.end || !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestInterrupt calls attempts away in every phase, and lets one of them go on all the same.
func TestInterrupt(t *testing.T) {
	asked := make(chan net.Conn, 8)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					asked <- c
				}
			}()
		}
	}()
	c := New(Options{})
	eps := []endpoint.Endpoint{{ID: "static:a", BaseURL: "http://" + ln.Addr().String()}}
	if err := c.Update(eps); err != nil {
		t.Fatal(err)
	}
	late := time.Now().Add(patience)
	interrupt := func(want int) {
		t.Helper()
		if n := c.Interrupt("static:a"); n != want {
			t.Errorf("%d attempts were called away, want %d", n, want)
		}
	}
	interrupt(0)
	var a, b Attempt
	var ga, gb Guard
	for _, s := range []struct {
		a *Attempt
		g *Guard
	}{{&a, &ga}, {&b, &gb}} {
		if err := s.a.Start(c.Host("static:a"), s.g, body("{}"), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 1)
	go func() { done <- b.AwaitHead(late) }()
	<-asked
	interrupt(2) // a has not begun to wait
	if err := <-done; !errors.Is(err, ErrInterrupted) {
		t.Errorf("while waiting for a head: %v", err)
	}
	b.Finish()
	if err := a.AwaitHead(late); !errors.Is(err, ErrInterrupted) {
		t.Errorf("before waiting for a head: %v", err)
	}
	a.CarryOn() // sends the request now
	defer a.Finish()
	go func() { done <- a.AwaitHead(late) }()
	host := <-asked
	interrupt(1)
	if err := <-done; !errors.Is(err, ErrInterrupted) {
		t.Errorf("while waiting for a head, after going on: %v", err)
	}
	a.CarryOn()
	go func() { done <- a.AwaitHead(late) }()
	_, _ = io.WriteString(host, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if len(a.Unread()) == 0 {
		if err := a.More(late, 0); err != nil {
			t.Fatal(err)
		}
	}
	go func() { done <- a.More(late, time.Minute) }()
	interrupt(1)
	if err := <-done; !errors.Is(err, ErrInterrupted) {
		t.Errorf("inside a body: %v", err)
	}
	a.CarryOn()
	_, _ = io.WriteString(host, "def")
	if err := a.More(late, time.Minute); err != nil || string(a.Unread()) != "abcdef" {
		t.Errorf("after going on: %q, %v", a.Unread(), err)
	}
	eps[0].APIKey = "another" // it is another host now, whose endpoint has the attempt still
	if err := c.Update(eps); err != nil {
		t.Fatal(err)
	}
	interrupt(1)
	last := c.Host("static:a")
	if err := c.Update(nil); err != nil {
		t.Fatal(err)
	}
	interrupt(0)
	if n := last.Interrupt(); n != 1 {
		t.Errorf("%d attempts at a host that is gone were called away, want 1", n)
	}
	a.Finish()
	if n := last.Interrupt(); n != 0 {
		t.Errorf("%d attempts are left", n)
	}
}

// TestCallAndPassTo ends one attempt from another goroutine, and puts a second one in its place that was begun under a guard of its own.
func TestCallAndPassTo(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	goOn := make(chan struct{})
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				for br := bufio.NewReader(c); ; {
					r, err := http.ReadRequest(br)
					if err != nil {
						return
					}
					_, _ = io.Copy(io.Discard, r.Body)
					if r.URL.Path == "/slow" {
						_, _ = br.ReadByte()
						return
					}
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
					<-goOn
					_, _ = io.WriteString(c, "def")
				}
			}()
		}
	}()
	h := hostAt(t, "http://"+ln.Addr().String(), Options{})
	slow, fast := body("{}"), body("{}")
	slow.Path, fast.Path = "/slow", "/fast"
	late := time.Now().Add(patience)
	var first, second Attempt
	var main, other Guard
	defer first.Finish()
	defer second.Finish()
	if err := first.Start(h, &main, slow, time.Now()); err != nil {
		t.Fatal(err)
	}
	won := make(chan error, 1)
	go func() {
		err := second.Start(h, &other, fast, time.Now())
		if err == nil {
			err = second.AwaitHead(late)
		}
		for err == nil && len(second.Unread()) < 3 {
			err = second.More(late, 0)
		}
		main.Call()
		won <- err
	}()
	if err := first.AwaitHead(late); !errors.Is(err, ErrInterrupted) {
		t.Fatalf("called away: %v", err)
	}
	first.Finish()
	if err := <-won; err != nil {
		t.Fatal(err)
	}
	if err := first.Start(h, &main, slow, time.Now()); err != nil { // between two connections when it was called
		t.Fatal(err)
	}
	if err := first.AwaitHead(late); !errors.Is(err, ErrInterrupted) {
		t.Fatalf("called away before it began: %v", err)
	}
	first.Finish()
	if !second.PassTo(&main) {
		t.Fatal("the guard was never aborted")
	}
	if n := h.serving.call(); n != 1 {
		t.Errorf("%d attempts in the host's list", n)
	}
	second.CarryOn()
	close(goOn)
	for !second.Ended() {
		if err := second.More(late, 0); err != nil {
			t.Fatal(err)
		}
	}
	if string(second.Unread()) != "abcdef" {
		t.Errorf("body %q", second.Unread())
	}
	other.Abort() // of no concern to it any more
	second.Finish()
	if r := do(h, fast); r.err != nil || r.body != "abcdef" || !r.reused {
		t.Errorf("the connection does not serve on: %+v", r)
	}

	if err := second.Start(h, &other, fast, time.Now()); err == nil {
		t.Error("an aborted guard lets attempts begin")
	}
	var third Guard
	if err := second.Start(h, &third, fast, time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := second.AwaitHead(late); err != nil {
		t.Fatal(err)
	}
	main.Abort()
	if second.PassTo(&main) {
		t.Error("an attempt was put under a guard that was aborted")
	}
}
