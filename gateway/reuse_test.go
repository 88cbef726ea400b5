package gateway

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// TestReuse sends requests one after another over one connection to the host.
func TestReuse(t *testing.T) {
	up := newUpstream(t, answering)
	g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.forward.UpstreamIdle = time.Minute })
	c := g.dial()
	for i := range 30 {
		if r, _, err := c.send(chat(i%2 == 0)).whole(); err != nil || r.StatusCode != 200 {
			t.Fatalf("request %d: %v %v", i, r.StatusCode, err)
		}
		g.recordN(i) // settled: the connection is back in the pool
	}
	if accepted, requests := up.counts(); accepted != 1 || requests != 30 {
		t.Errorf("%d connections for %d requests, want 1 for 30", accepted, requests)
	}
}

// TestUpstreamClosesIdle has the host close connections while they are idle, and at the very moment
// a request goes out; no caller may notice.
func TestUpstreamClosesIdle(t *testing.T) {
	const requests = 200
	for name, serve := range map[string]func(c *upConn, r *upRequest) bool{
		"right behind each answer": func(c *upConn, r *upRequest) bool { answering(c, r); return false },
		"when the next request is there": func(c *upConn, r *upRequest) bool {
			return r.nth%2 == 0 && answering(c, r)
		},
		"with RST when the next request is there": func(c *upConn, r *upRequest) bool {
			if r.nth%2 == 1 {
				c.reset()
				return false
			}
			return answering(c, r)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := newUpstream(t, serve)
			g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.noTLS = true; o.set.MaxRetries = 0; o.forward.UpstreamIdle = time.Minute })
			c := g.dial()
			for i := range requests {
				r, body, err := c.send(chat(i%2 == 0)).whole()
				if err != nil || r.StatusCode != 200 {
					t.Fatalf("request %d: %d %q %v", i, r.StatusCode, body, err)
				}
			}
			if h := g.host(0); h.Failures != 0 {
				t.Errorf("%d failures", h.Failures)
			}
		})
	}
}

// TestUnsolicitedBytes has the host send a second answer that nobody asked for, at once or later. It
// must not be taken for the answer to the next request, which may be another caller's.
func TestUnsolicitedBytes(t *testing.T) {
	const secret = `{"id":"of-another-caller","choices":[]}`
	for _, late := range []bool{false, true} {
		for _, stream := range []bool{false, true} {
			t.Run(fmt.Sprintf("late=%t/stream=%t", late, stream), func(t *testing.T) {
				settled, sent := make(chan struct{}), make(chan struct{})
				up := newUpstream(t, func(c *upConn, r *upRequest) bool {
					if r.nth > 0 {
						return answering(c, r)
					}
					if !late {
						c.send(jsonAnswer(200, plainBody) + jsonAnswer(200, secret))
						return true
					}
					answering(c, r)
					<-settled
					c.send(jsonAnswer(200, secret))
					eventuallyQuiet(c)
					sent <- struct{}{}
					return true
				})
				g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.forward.UpstreamIdle = time.Minute })
				c := g.dial()
				for i := range 20 {
					r, body, err := c.send(chat(stream && late)).whole()
					if err != nil || r.StatusCode != 200 || body == secret {
						t.Fatalf("request %d: %d %q %v", i, r.StatusCode, body, err)
					}
					g.recordN(i)
					if late {
						settled <- struct{}{}
						wait(t, sent, "the unasked answer to be sent")
					}
				}
			})
		}
	}
}

// TestAbortedIsNotReused closes the connection of a stream that was cut, and takes a fresh one.
func TestAbortedIsNotReused(t *testing.T) {
	var n atomic.Int64
	closed := make(chan time.Time, 1)
	up := newUpstream(t, func(c *upConn, r *upRequest) bool {
		if n.Add(1) == 1 {
			c.send(sseHead)
			c.sendChunk(tokenEvent("x"))
			closed <- c.gone()
			return false
		}
		return answering(c, r)
	})
	g := newRig(t, []string{up.url()})
	c := g.dial().send(chat(true))
	_ = c.response()
	_ = c.Close()
	wait(t, closed, "the cut stream's connection to close")
	g.recordN(0)
	if r, body, err := g.do(chat(false)); err != nil || r.StatusCode != 200 || body != plainBody {
		t.Errorf("next request: %d %q %v", r.StatusCode, body, err)
	}
	if accepted, _ := up.counts(); accepted != 2 {
		t.Errorf("%d connections, want 2", accepted)
	}
}

// TestCloseIsObeyed takes no connection again whose host said that it closes it.
func TestCloseIsObeyed(t *testing.T) {
	up := newUpstream(t, func(c *upConn, r *upRequest) bool {
		if r.nth > 0 {
			t.Error("a request came over a connection that was announced to close")
		}
		c.send(jsonAnswer(200, plainBody, "Connection: close"))
		return true // but leaves it open
	})
	g := newRig(t, []string{up.url()})
	c := g.dial()
	for range 3 {
		if r, _, err := c.send(chat(false)).whole(); err != nil || r.StatusCode != 200 {
			t.Fatalf("%v %v", r.StatusCode, err)
		}
	}
}

// TestHostsMove changes the fleet under running requests.
func TestHostsMove(t *testing.T) {
	goOn := make(chan struct{})
	old := newUpstream(t, func(c *upConn, r *upRequest) bool { <-goOn; return answering(c, r) })
	fresh := newUpstream(t, answering)
	g := newRig(t, []string{old.url()})
	c := g.dial().send(chat(true))
	eventually(t, "the request is at the old address", func() bool { _, n := old.counts(); return n == 1 })
	ep := *g.router.Snapshot().Endpoint("static:h0")
	ep.BaseURL = fresh.url()
	if err := g.fwd.Update([]endpoint.Endpoint{ep}); err != nil {
		t.Fatal(err)
	}
	g.router.Update([]endpoint.Endpoint{ep}, nil)
	if r, _, err := g.do(chat(false)); err != nil || r.StatusCode != 200 {
		t.Errorf("at the new address: %v %v", r.StatusCode, err)
	}
	if h := g.host(0); h.InFlight != 1 {
		t.Errorf("%d in flight: the request at the old address is still the host's", h.InFlight)
	}
	close(goOn)
	if _, body, err := c.whole(); err != nil || body == "" {
		t.Errorf("at the old address: %q %v", body, err)
	}
	if rec := g.recordN(1); rec.Class != outcome.Success {
		t.Errorf("recorded as %v", rec.Class)
	}
}
