package gateway

import (
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"headrace/gateway/ledger"
	"headrace/gateway/openai"
	"headrace/router/outcome"
)

// TestDrain lets running requests finish, refuses new ones and returns.
func TestDrain(t *testing.T) {
	began, goOn := make(chan struct{}, 4), make(chan struct{})
	up := newUpstream(t, func(c *upConn, r *upRequest) bool {
		began <- struct{}{}
		c.send(sseHead)
		c.sendChunk(tokenEvent("x"))
		<-goOn
		c.sendChunk(stopEvent)
		c.sendChunk(doneEvent)
		c.send(lastChunk)
		return true
	})
	var active atomic.Int64
	g := newRig(t, []string{up.url()}, func(o *rigOptions) {
		o.set.Drain = patience
		o.before = func(s *Server) {
			s.http.ConnState = func(_ net.Conn, state fasthttp.ConnState) {
				if state == fasthttp.StateActive {
					active.Add(1)
				}
			}
		}
	})
	running := []*client{g.dial().send(chat(true)), g.dialTLS().send(chat(true))}
	for range running {
		wait(t, began, "the stream at the host")
	}
	// A request whose head is half here when the drain begins is a new one.
	late := g.dial()
	request := chat(true)
	late.send(request[:20])
	eventually(t, "the server reads the late request", func() bool { return active.Load() == 3 })
	g.stop()
	eventually(t, "the server drains", g.srv.Draining)
	late.send(request[20:])
	r, body, err := late.whole()
	if e := parseError(t, body); err != nil || r.StatusCode != 503 || e.Code != "gateway_shutdown" || r.Header.Get("Retry-After") == "" || !r.Close {
		t.Errorf("late request: %d %q, close %t, %v", r.StatusCode, body, r.Close, err)
	}
	select {
	case <-g.done:
		t.Fatal("Serve returned while streams were running")
	default:
	}
	close(goOn)
	want := tokenEvent("x") + stopEvent + doneEvent
	for _, c := range running {
		if _, got, err := c.whole(); err != nil || got != want {
			t.Errorf("a running stream ended as %q, %v", got, err)
		}
	}
	wait(t, g.done, "Serve to return")
	if _, err := io.ReadAll(running[0].br); err != nil {
		t.Errorf("the connection was not closed: %v", err)
	}
}

// TestDrainLimit ends what does not finish in time: streams with an error event, others with a status.
func TestDrainLimit(t *testing.T) {
	began := make(chan struct{}, 3)
	up := newUpstream(t, func(c *upConn, r *upRequest) bool {
		if strings.Contains(string(r.body), `"stream":true`) {
			c.send(sseHead)
			c.sendChunk(tokenEvent("x"))
		}
		began <- struct{}{}
		c.gone()
		return false
	})
	g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.set.Drain = 100 * time.Millisecond })
	streams := []*client{g.dial().send(chat(true)), g.dialTLS().send(chat(true))}
	plain := g.dial().send(chat(false))
	for range 3 {
		wait(t, began, "the request at the host")
	}
	for _, c := range streams { // the token is with the client before the end comes
		if b, err := c.br.Peek(1); err != nil || b[0] != 'H' {
			t.Fatal(err)
		}
	}
	g.stop()
	for _, c := range streams {
		_, got, err := c.whole()
		rest, ok := strings.CutPrefix(got, tokenEvent("x"))
		if !ok || !cutShort(err) {
			t.Fatalf("stream %q, %v", got, err)
		}
		checkErrorEvent(t, "", rest, "gateway_shutdown")
		if !strings.Contains(rest, `"partial":true,"retry_after":1}}`) {
			t.Errorf("the event does not say that a part was sent, or when to try again: %s", rest)
		}
	}
	r, body, err := plain.whole()
	if e := parseError(t, body); err != nil || r.StatusCode != 503 || e.Code != "gateway_shutdown" {
		t.Errorf("plain request: %d %q %v", r.StatusCode, body, err)
	}
	wait(t, g.done, "Serve to return")
	if h := g.host(0); h.Failures != 0 || h.InFlight != 0 {
		t.Errorf("ending requests counted against the host: %d failures, %d in flight", h.Failures, h.InFlight)
	}
	for i := range 3 {
		if rec := g.recordN(i); rec.Class == outcome.ClientGone || rec.Code != "gateway_shutdown" {
			t.Errorf("recorded as %v, code %q", rec.Class, rec.Code)
		}
	}
	eventually(t, "the host is freed", func() bool { return up.open() == 0 })
}

// TestDrainCutsByItsLimitOnly drains with one stream that ends within the limit and one that does not (langwatch#6941: a limit that
// nobody had set cut streams): the first is whole, and with a limit that is long enough the second would be.
func TestDrainCutsByItsLimitOnly(t *testing.T) {
	for name, tc := range map[string]struct {
		limit time.Duration
		whole bool
	}{"a limit of an hour": {time.Hour, true}, "a short limit": {400 * time.Millisecond, false}} {
		t.Run(name, func(t *testing.T) {
			began, short, long := make(chan struct{}, 2), make(chan struct{}), make(chan struct{})
			up := newUpstream(t, func(c *upConn, r *upRequest) bool {
				c.send(sseHead)
				c.sendChunk(tokenEvent("x"))
				began <- struct{}{}
				if strings.Contains(string(r.body), "short") {
					<-short
				} else {
					<-long
				}
				c.sendChunk(tokenEvent("y"))
				c.sendChunk(stopEvent)
				c.sendChunk(doneEvent)
				c.send(lastChunk)
				return true
			})
			g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.set.Drain = tc.limit })
			a := g.dial().send(post(chatPath, `{"model":"`+model+`","stream":true,"messages":[{"role":"user","content":"short"}]}`))
			b := g.dial().send(chat(true))
			for range 2 {
				wait(t, began, "the stream at the host")
			}
			g.stop()
			eventually(t, "the server drains", g.srv.Draining)
			close(short)
			want := tokenEvent("x") + tokenEvent("y") + stopEvent + doneEvent
			if _, got, err := a.whole(); err != nil || got != want {
				t.Errorf("the shorter stream ended as %q, %v", got, err)
			}
			if tc.whole {
				close(long)
			} else {
				defer close(long)
			}
			_, got, err := b.whole()
			switch {
			case tc.whole && (err != nil || got != want):
				t.Errorf("the longer stream ended as %q, %v", got, err)
			case !tc.whole && (!cutShort(err) || strings.Contains(got, "[DONE]") || !strings.HasPrefix(got, tokenEvent("x")) || strings.Contains(got, tokenEvent("y"))):
				t.Errorf("the longer stream ended as %q, %v", got, err)
			case !tc.whole:
				checkErrorEvent(t, "", strings.TrimPrefix(got, tokenEvent("x")), "gateway_shutdown")
			}
			wait(t, g.done, "Serve to return")
		})
	}
}

// TestServeFails returns the error of a listener that fails, after draining the others.
func TestServeFails(t *testing.T) {
	g := newRig(t, []string{refusing})
	srv := New(g.srv.opt, *g.srv.set.Load())
	good, bad := listenLoopback(t), listenLoopback(t)
	_ = bad.Close()
	done := make(chan error, 1)
	go func() { done <- srv.Serve(t.Context(), Listener{Listener: good}, Listener{Listener: bad}) }()
	if err := wait(t, done, "Serve to return"); err == nil {
		t.Error("no error")
	}
	if _, err := good.Accept(); err == nil {
		t.Error("the other listener is still open")
	}
}

// TestInFlightLimit refuses what is too much, and takes it again afterwards.
func TestInFlightLimit(t *testing.T) {
	began, goOn := make(chan struct{}, 2), make(chan struct{})
	up := newUpstream(t, func(c *upConn, r *upRequest) bool { began <- struct{}{}; <-goOn; return answering(c, r) })
	g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.set.MaxInFlight = 2 })
	a, b := g.dial().send(chat(true)), g.dial().send(chat(false))
	wait(t, began, "the first request")
	wait(t, began, "the second request")
	for range 3 {
		r, body, err := g.do(chat(false))
		if e := parseError(t, body); err != nil || r.StatusCode != 503 || e.Code != "gateway_overloaded" || r.Header.Get("Retry-After") != "1" {
			t.Errorf("%d %q, Retry-After %q, %v", r.StatusCode, body, r.Header.Get("Retry-After"), err)
		}
	}
	close(goOn)
	for _, c := range []*client{a, b} {
		if r, _, err := c.whole(); err != nil || r.StatusCode != 200 {
			t.Errorf("%v %v", r.StatusCode, err)
		}
	}
	eventually(t, "nothing is in flight", func() bool { return g.srv.InFlight() == 0 })
	if r, _, err := g.do(chat(false)); err != nil || r.StatusCode != 200 {
		t.Errorf("afterwards: %v %v", r.StatusCode, err)
	}
}

// TestPanic has code of ours panic, in a plain request and in the middle of settling a stream.
func TestPanic(t *testing.T) {
	var armed atomic.Bool
	up := newUpstream(t, answering)
	g := newRig(t, []string{up.url()}, func(o *rigOptions) {
		o.settled = func(*ledger.Record) {
			if armed.Swap(false) {
				panic("boom: SECRET")
			}
		}
	})
	for i, version := range []string{"HTTP/1.1", "HTTP/1.0"} {
		armed.Store(true)
		r, body, err := g.do(strings.Replace(chat(false), "HTTP/1.1", version, 1))
		if e := parseError(t, body); err != nil || r.StatusCode != 500 || e.Code != "internal_error" || strings.Contains(body, "SECRET") {
			t.Errorf("%d %q %v", r.StatusCode, body, err)
		}
		if id := r.Header.Get("X-Request-Id"); id == "" || !strings.Contains(g.logs.String(), id) || !strings.Contains(body, id) {
			t.Errorf("the id %q leads nowhere", id)
		}
		armed.Store(true)
		c := g.dial().send(strings.Replace(chat(true), "HTTP/1.1", version, 1))
		_, got, err := c.whole()
		if !strings.HasSuffix(got, doneEvent) || err != nil {
			t.Errorf("%s: stream %q ended with %v: all of it was delivered", version, got, err)
		}
		eventually(t, "nothing is in flight", func() bool { return g.srv.InFlight() == 0 && g.host(0).InFlight == 0 })
		if r, _, err := g.do(chat(true)); err != nil || r.StatusCode != 200 {
			t.Errorf("afterwards: %v %v", r.StatusCode, err)
		}
		if n := strings.Count(g.logs.String(), "boom"); n != 2*(1+i) {
			t.Errorf("%d of the panics are in the log", n)
		}
	}
}

// TestPanicBetweenLeaseAndAttempt gives the lease back.
func TestPanicBetweenLeaseAndAttempt(t *testing.T) {
	up := newUpstream(t, answering)
	g := newRig(t, []string{up.url()}, func(o *rigOptions) {
		o.noTLS = true
		o.before = func(s *Server) {
			s.http.Handler = s.guarded(func(ctx *fasthttp.RequestCtx) {
				s.serve(s.begin(ctx, routes[chatPath], nil, time.Now()), func(x *exchange) *openai.Error {
					if e := x.admit(); e != nil {
						return e
					}
					x.scan.OpenAt = 1 << 20 // compose cuts the body there
					return nil
				})
			})
		}
	})
	r, body, err := g.do(chat(true))
	if err != nil || r.StatusCode != 500 {
		t.Errorf("%d %q %v", r.StatusCode, body, err)
	}
	if h := g.host(0); h.InFlight != 0 || g.srv.InFlight() != 0 {
		t.Errorf("%d in flight at the host, %d in all", h.InFlight, g.srv.InFlight())
	}
}

// TestPanicIsNoFaultOfTheHost: an answer that code of ours breaks off says nothing of who gave it, or one odd request would close the whole fleet.
func TestPanicIsNoFaultOfTheHost(t *testing.T) {
	up := newUpstream(t, answering)
	g := newRig(t, []string{up.url()}, func(o *rigOptions) {
		o.noTLS = true
		o.before = func(s *Server) {
			s.http.Handler = s.guarded(func(ctx *fasthttp.RequestCtx) {
				x := s.begin(ctx, routes[chatPath], nil, time.Now())
				s.serve(x, (*exchange).admit)
				x.held = 1 << 30 // the relay reads behind what is there
			})
		}
	})
	for range 3 {
		b, _ := io.ReadAll(g.dial().send(chat(true)).br) // it may break off
		if strings.Contains(string(b), doneEvent) {
			t.Errorf("got %q, which is whole", b)
		}
		eventually(t, "nothing is in flight", func() bool { return g.srv.InFlight() == 0 && g.host(0).InFlight == 0 })
		if h := g.host(0); h.Breaker != "closed" || h.Failures != 0 {
			t.Errorf("the host's breaker is %s after %d failures", h.Breaker, h.Failures)
		}
	}
	if n := strings.Count(g.logs.String(), "panic in a request"); n != 3 {
		t.Errorf("%d of 3 panics are in the log", n)
	}
}
