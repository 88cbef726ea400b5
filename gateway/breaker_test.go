package gateway

import (
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"headrace/router/health"
)

// TestBreaker opens on five failures in a row, refuses at once while open, and heals.
func TestBreaker(t *testing.T) {
	var sick atomic.Bool
	var seen atomic.Int64
	sick.Store(true)
	up := newUpstream(t, func(c *upConn, r *upRequest) bool {
		seen.Add(1)
		if sick.Load() {
			c.send(jsonAnswer(500, `{}`))
			return true
		}
		return answering(c, r)
	})
	good := newUpstream(t, answering)
	g := newRig(t, []string{up.url(), good.url()}, func(o *rigOptions) {
		o.set.MaxRetries = 0
		o.breaker = health.Options{OpenFor: 600 * time.Millisecond}
	})
	for failed := 0; failed < 2; {
		if r, _, _ := g.do(chat(true)); r.StatusCode == 502 {
			failed++
		} else if r.StatusCode != 200 {
			t.Fatalf("status %d", r.StatusCode)
		}
	}
	if h := g.host(0); h.Breaker != "open" {
		t.Fatalf("breaker %s after two failures in a row", h.Breaker)
	}
	for range 5 {
		if r, body, _ := g.do(chat(true)); r.StatusCode != 200 {
			t.Errorf("while one of two is open: %d %q", r.StatusCode, body)
		}
	}
	asked, h := seen.Load(), g.host(0)
	opens := h.Opens // more than one on a machine so busy that a trial was due, and failed
	if h.Breaker == "open" && opens == 1 && asked != 2 {
		t.Errorf("the host got %d requests, want 2: an open breaker lets none through", asked)
	}
	sick.Store(false)
	eventually(t, "the breaker lets a trial in", func() bool { return g.host(0).Breaker == "probing" })
	eventually(t, "the trial went well", func() bool {
		if r, body, err := g.do(chat(true)); err != nil || r.StatusCode != 200 {
			t.Fatalf("%d %q %v", r.StatusCode, body, err)
		}
		return g.host(0).Breaker == "closed"
	})
	if h := g.host(0); h.Opens > opens+1 { // a trial may have been under way
		t.Errorf("opened %d times, of which %d while it was sick", h.Opens, opens)
	}
}

// TestBadHostIsBetterThanNone asks a host that fails when there is no other, and finds at once that it is well again.
func TestBadHostIsBetterThanNone(t *testing.T) {
	var sick atomic.Bool
	sick.Store(true)
	up := newUpstream(t, func(c *upConn, r *upRequest) bool {
		if sick.Load() {
			c.send(jsonAnswer(500, `{}`))
			return true
		}
		return answering(c, r)
	})
	g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.set.MaxRetries = 0; o.breaker = health.Options{OpenFor: time.Hour} })
	for range 5 {
		if r, _, _ := g.do(chat(true)); r.StatusCode != 502 {
			t.Fatalf("status %d", r.StatusCode)
		}
	}
	if h := g.host(0); h.Breaker != "open" || h.Requests != 5 {
		t.Errorf("breaker %s after %d failures", h.Breaker, h.Requests)
	}
	sick.Store(false)
	if r, body, err := g.do(chat(true)); err != nil || r.StatusCode != 200 || g.host(0).Breaker != "closed" {
		t.Errorf("%d %q %v, breaker %s", r.StatusCode, body, err, g.host(0).Breaker)
	}
}

// TestBreakerOpensOnBrokenStreams takes a host out of use whose streams begin well and break off.
func TestBreakerOpensOnBrokenStreams(t *testing.T) {
	up := newUpstream(t, func(c *upConn, _ *upRequest) bool {
		c.send(sseHead)
		c.sendChunk(tokenEvent("x"))
		return false
	})
	g := newRig(t, []string{up.url()})
	if r, _, err := g.do(chat(true)); r.StatusCode != 200 || !cutShort(err) {
		t.Fatalf("%d %v", r.StatusCode, err)
	}
	r, body, _ := g.do(chat(true))
	if e := parseError(t, body); r.StatusCode != 503 || e.Code != "no_host_available" || r.Header.Get("Retry-After") == "" {
		t.Errorf("%d %q, Retry-After %q, from a host that broke a stream", r.StatusCode, e.Code, r.Header.Get("Retry-After"))
	}
}

// TestHalfOpenCrowd sends many requests while one trial is under way: the others are refused at once.
func TestHalfOpenCrowd(t *testing.T) {
	var sick atomic.Bool
	sick.Store(true)
	arrived, finish := make(chan struct{}), make(chan struct{})
	up := newUpstream(t, func(c *upConn, r *upRequest) bool {
		if sick.Load() {
			c.send(sseHead)
			c.sendChunk(tokenEvent("x"))
			return false
		}
		arrived <- struct{}{}
		<-finish
		return answering(c, r)
	})
	g := newRig(t, []string{up.url()}, func(o *rigOptions) {
		o.set.MaxRetries = 0
		o.breaker = health.Options{OpenFor: 20 * time.Millisecond}
	})
	_, _, _ = g.do(chat(true))
	sick.Store(false)
	eventually(t, "the breaker lets a trial in", func() bool { return g.host(0).Breaker == "probing" })
	trial := g.dial().send(chat(false))
	wait(t, arrived, "the trial at the host")
	for range 5 {
		r, body, err := g.do(chat(false))
		if err != nil || r.StatusCode != 503 {
			t.Errorf("beside the trial: %d %q %v", r.StatusCode, body, err)
		}
	}
	close(finish)
	if r, _, err := trial.whole(); err != nil || r.StatusCode != 200 {
		t.Errorf("trial: %v %v", r.StatusCode, err)
	}
	if h := g.host(0); h.Breaker != "closed" {
		t.Errorf("breaker %s after the trial", h.Breaker)
	}
}

// TestThrottledCoolsDown keeps requests away from a host for as long as it asked.
func TestThrottledCoolsDown(t *testing.T) {
	var first, second atomic.Int64
	throttled := newUpstream(t, func(c *upConn, _ *upRequest) bool {
		first.Add(1)
		c.send(jsonAnswer(429, `{"error":{"message":"slow down"}}`, "Retry-After: 60"))
		return true
	})
	good := newUpstream(t, func(c *upConn, r *upRequest) bool { second.Add(1); return answering(c, r) })
	g := newRig(t, []string{throttled.url(), good.url()})
	for range 5 {
		if r, _, err := g.do(chat(false)); err != nil || r.StatusCode != 200 {
			t.Fatalf("%v %v", r.StatusCode, err)
		}
	}
	if first.Load() != 1 || second.Load() != 5 {
		t.Errorf("the throttled host got %d requests, the other %d; want 1 and 5", first.Load(), second.Load())
	}
	if h := g.host(0); h.Breaker != "cooling" || h.Failures != 0 {
		t.Errorf("breaker %s, %d failures", h.Breaker, h.Failures)
	}
}

// TestRepairFails has a pooled connection turn out dead when its host is no longer there either.
func TestRepairFails(t *testing.T) {
	var up *upstream
	up = newUpstream(t, func(c *upConn, r *upRequest) bool {
		if r.nth == 0 {
			return answering(c, r)
		}
		_ = up.ln.Close() // from here on dialling is refused
		return false
	})
	g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.set.MaxRetries = 0 })
	c := g.dial()
	if r, _, err := c.send(chat(false)).whole(); err != nil || r.StatusCode != 200 {
		t.Fatalf("%v %v", r.StatusCode, err)
	}
	r, body, err := c.send(chat(false)).whole()
	if e := parseError(t, body); err != nil || r.StatusCode != 503 || e.Code != "host_unreachable" {
		t.Errorf("%d %q %v", r.StatusCode, body, err)
	}
}

// TestRepairTimesOut has the fresh connection take no more than a part of the request.
func TestRepairTimesOut(t *testing.T) {
	stuck := make(chan struct{})
	up := newRawUpstream(t, func(c *upConn, r *upRequest) bool {
		if accepted, _ := c.up.counts(); accepted > 1 {
			<-stuck
			return false
		}
		_, _ = io.Copy(io.Discard, r.Body)
		if r.nth == 0 {
			c.send(jsonAnswer(200, plainBody))
		}
		return r.nth == 0
	})
	defer close(stuck)
	g := newRig(t, []string{up.url()}, func(o *rigOptions) {
		o.set.MaxRetries, o.set.MaxBody, o.forward.Send = 0, 64<<20, 50*time.Millisecond
	})
	big := post(chatPath, `{"model":"m1","messages":[{"role":"user","content":"`+strings.Repeat("x", 32<<20)+`"}]}`)
	if r, _, err := g.do(chat(false)); err != nil || r.StatusCode != 200 {
		t.Fatalf("%v %v", r.StatusCode, err)
	}
	r, body, err := g.do(big)
	if e := parseError(t, body); err != nil || r.StatusCode != 502 || e.Code != "host_failed" {
		t.Errorf("%d %q %v", r.StatusCode, body, err)
	}
}
