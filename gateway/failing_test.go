package gateway

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// fault is a way in which a host fails before its first content byte.
type fault struct {
	name  string
	do    func(c *upConn)
	class outcome.Class
	plain bool // shows with plain requests too
	// what the caller gets when there is no other host
	status int
	code   string
}

func faults() []fault {
	status := func(code int, headers ...string) func(*upConn) {
		return func(c *upConn) {
			c.send(jsonAnswer(code, `{"error":{"message":"SECRET-UPSTREAM-TEXT","type":"x","param":null,"code":null}}`, headers...))
		}
	}
	stream := func(events ...string) func(*upConn) {
		return func(c *upConn) {
			c.send(sseHead)
			for _, e := range events {
				c.sendChunk(e)
			}
		}
	}
	then := func(a, b func(*upConn)) func(*upConn) { return func(c *upConn) { a(c); b(c) } }
	return []fault{
		{"reset before the head", (*upConn).reset, outcome.Severed, true, 502, "host_failed"},
		{"closed before the head", func(*upConn) {}, outcome.Severed, true, 502, "host_failed"},
		{"reset inside the head", func(c *upConn) { c.send("HTTP/1.1 200 OK\r\nContent-"); c.reset() }, outcome.Severed, true, 502, "host_failed"},
		{"reset after the head", then(func(c *upConn) { c.send(sseHead) }, (*upConn).reset), outcome.Severed, true, 502, "host_failed"},
		{"500", status(500), outcome.UpstreamFault, true, 502, "host_failed"},
		{"503", status(503), outcome.UpstreamFault, true, 502, "host_failed"},
		{"429", status(429, "Retry-After: 7"), outcome.Throttled, true, 429, "rate_limit_exceeded"},
		{"401", status(401), outcome.UpstreamDenied, true, 502, "host_denied"},
		{"403", status(403), outcome.UpstreamDenied, true, 502, "host_denied"},
		{"HTML page under 502", func(c *upConn) {
			c.send("HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 26\r\n\r\n<html>SECRET-UPSTREAM-TEXT")
		}, outcome.UpstreamFault, true, 502, "host_failed"},
		{"HTML page under 200", func(c *upConn) {
			c.send("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 26\r\n\r\n<html>SECRET-UPSTREAM-TEXT")
		}, outcome.UpstreamFault, true, 502, "host_failed"},
		{"garbage JSON", func(c *upConn) { c.send(jsonAnswer(200, `{"id":"SECRET-UPSTREAM-TEXT`)) }, outcome.UpstreamFault, true, 502, "host_failed"},
		{"garbage instead of HTTP", func(c *upConn) { c.send("SSH-2.0-OpenSSH_9.6 SECRET-UPSTREAM-TEXT\r\n") }, outcome.UpstreamFault, true, 502, "host_failed"},
		{"garbage with a blank line", func(c *upConn) { c.send("220 SECRET-UPSTREAM-TEXT\r\n\r\n") }, outcome.UpstreamFault, true, 502, "host_failed"},
		{"flat vLLM error under 200", func(c *upConn) {
			c.send(jsonAnswer(200, `{"object":"error","message":"SECRET-UPSTREAM-TEXT","type":"InternalServerError","param":null,"code":500}`))
		}, outcome.UpstreamFault, true, 502, "host_failed"},
		{"role event, then reset", then(stream(roleEvent), (*upConn).reset), outcome.Severed, false, 502, "host_failed"},
		{"role event, then a clean end", stream(roleEvent, ""), outcome.UpstreamFault, false, 502, "host_failed"},
		{"error event first", stream("data: {\"error\":{\"message\":\"SECRET-UPSTREAM-TEXT\",\"code\":500}}\n\n"), outcome.UpstreamFault, false, 502, "host_failed"},
		{"named error event first", stream("event: error\ndata: {\"message\":\"SECRET-UPSTREAM-TEXT\"}\n\n"), outcome.UpstreamFault, false, 502, "host_failed"},
		{"throttled by event", stream("data: {\"error\":{\"message\":\"SECRET-UPSTREAM-TEXT\",\"code\":429}}\n\n"), outcome.Throttled, false, 429, "rate_limit_exceeded"},
		{"malformed chunk", func(c *upConn) { c.send(sseHead + "zz\r\n") }, outcome.UpstreamFault, true, 502, "host_failed"},
		{"an empty stream", func(c *upConn) { c.send(sseHead + lastChunk) }, outcome.UpstreamFault, false, 502, "host_failed"},
	}
}

// openAIError is the error object in a body of OpenAI's shape.
type openAIError struct {
	Message, Type, Code string
	Param               *string
}

func parseError(t testing.TB, body string) openAIError {
	t.Helper()
	var b struct{ Error *openAIError }
	if err := json.Unmarshal([]byte(body), &b); err != nil || b.Error == nil || b.Error.Message == "" || b.Error.Type == "" {
		t.Fatalf("not an error of OpenAI's shape: %q (%v)", body, err)
	}
	return *b.Error
}

// TestRetry has the cheaper of two hosts fail; the other must answer, and the caller notice nothing.
func TestRetry(t *testing.T) {
	for _, f := range append(faults(), fault{name: "dial refused", class: outcome.DialFailed, plain: true}) {
		for _, stream := range []bool{true, false} {
			if !stream && !f.plain {
				continue
			}
			t.Run(fmt.Sprintf("%s/stream=%t", f.name, stream), func(t *testing.T) {
				t.Parallel()
				bad := refusing
				if f.do != nil {
					bad = newUpstream(t, func(c *upConn, _ *upRequest) bool { f.do(c); return false }).url()
				}
				goOn := make(chan struct{})
				good := newUpstream(t, func(c *upConn, r *upRequest) bool {
					if !stream {
						return answering(c, r)
					}
					c.send(sseHead)
					c.sendChunk(roleEvent + tokenEvent("hel"))
					<-goOn // the rest comes when the beginning was seen
					for _, e := range []string{tokenEvent("lo"), stopEvent, useEvent, doneEvent} {
						c.sendChunk(e)
					}
					c.send(lastChunk)
					return true
				})
				g := newRig(t, []string{bad, good.url()}, func(o *rigOptions) { o.noTLS = true })
				c := g.dial().send(chat(stream))
				r := c.response()
				var body, want string
				if stream {
					want = roleEvent + tokenEvent("hel") + tokenEvent("lo") + stopEvent + doneEvent
					b := make([]byte, len(roleEvent))
					_, err := io.ReadFull(r.Body, b)
					close(goOn)
					if body = string(b); err != nil {
						t.Fatalf("status %d, error %v, body %q", r.StatusCode, err, b)
					}
				} else {
					want = plainBody
				}
				rest, err := io.ReadAll(r.Body)
				if body += string(rest); err != nil || r.StatusCode != 200 {
					t.Fatalf("status %d, error %v, body %q", r.StatusCode, err, body)
				}
				if body != want {
					t.Errorf("body\n%q, want\n%q", body, want)
				}
				for k, v := range map[string]string{"X-Headrace-Endpoint": "static:h1", "X-Headrace-Provider": "static", "X-Headrace-Attempts": "2"} {
					if got := r.Header.Get(k); got != v {
						t.Errorf("%s: %q, want %q", k, got, v)
					}
				}
				rec := g.recordN(0)
				if rec.Tries != 2 || rec.Attempts[0].Class != f.class || rec.Attempts[0].Endpoint != "static:h0" || rec.Attempts[1].Class != outcome.Success {
					t.Errorf("record: %d tries, %+v", rec.Tries, rec.Attempts)
				}
				if rec.Output != 3 || rec.Prompt != 7 || rec.Finish != "stop" || rec.Stream != stream {
					t.Errorf("record: prompt %d, output %d, finish %q, stream %t", rec.Prompt, rec.Output, rec.Finish, rec.Stream)
				}
				wantFailures := int64(1)
				if f.class == outcome.Throttled {
					wantFailures = 0 // load is no sickness
				}
				if h := g.host(0); h.Failures != wantFailures {
					t.Errorf("%d failures counted against the host, want %d", h.Failures, wantFailures)
				}
			})
		}
	}
}

// TestFailsWell has the only host fail: the caller gets the right status and an error of OpenAI's
// shape, and nothing of the host's own text.
func TestFailsWell(t *testing.T) {
	for _, f := range append(faults(), fault{name: "dial refused", class: outcome.DialFailed, plain: true, status: 503, code: "host_unreachable"}) {
		for _, stream := range []bool{true, false} {
			if !stream && !f.plain {
				continue
			}
			t.Run(fmt.Sprintf("%s/stream=%t", f.name, stream), func(t *testing.T) {
				t.Parallel()
				base := refusing
				if f.do != nil {
					base = newUpstream(t, func(c *upConn, _ *upRequest) bool { f.do(c); return false }).url()
				}
				g := newRig(t, []string{base}, func(o *rigOptions) { o.noTLS = true })
				r, body, err := g.do(chat(stream))
				if err != nil {
					t.Fatalf("body broke off: %v", err)
				}
				e := parseError(t, body)
				if r.StatusCode != f.status || e.Code != f.code {
					t.Errorf("status %d, code %q, want %d, %q", r.StatusCode, e.Code, f.status, f.code)
				}
				if strings.Contains(body, "SECRET") {
					t.Errorf("the host's text reached the caller: %s", body)
				}
				if r.Header.Get("Content-Type") != "application/json" || !strings.HasPrefix(r.Header.Get("X-Request-Id"), "req_") {
					t.Errorf("headers: %v", r.Header)
				}
				if got := r.Header.Get("Retry-After"); f.name == "429" && got != "7" {
					t.Errorf("Retry-After %q, want 7", got)
				}
				rec := g.recordN(0)
				if rec.Status != f.status || rec.Class != f.class || rec.Code != f.code || rec.ID != r.Header.Get("X-Request-Id") {
					t.Errorf("record: status %d, class %v, code %q, id %q\n%s", rec.Status, rec.Class, rec.Code, rec.ID, g.logs)
				}
			})
		}
	}
}

// TestCallerFault hands the host's judgement of the request on, byte for byte, and does not retry it.
func TestCallerFault(t *testing.T) {
	const body = `{"error": {"message":"max_tokens is too large: 9","type":"invalid_request_error","param":"max_tokens","code":"too_large"}, "extra":1}`
	for _, status := range []int{400, 404, 409, 413, 422} {
		for _, stream := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d/stream=%t", status, stream), func(t *testing.T) {
				up := newUpstream(t, func(c *upConn, _ *upRequest) bool {
					c.send(jsonAnswer(status, body, "X-Vendor: kept"))
					return true
				})
				other := newUpstream(t, answering)
				g := newRig(t, []string{up.url(), other.url()}, func(o *rigOptions) { o.noTLS = true })
				for range 7 { // more than the breaker bears
					r, got, err := g.do(chat(stream))
					if err != nil || r.StatusCode != status || got != body || r.Header.Get("X-Vendor") != "kept" {
						t.Fatalf("%d %q %v %v", r.StatusCode, got, r.Header, err)
					}
				}
				if _, n := other.counts(); n != 0 {
					t.Errorf("a caller's fault was tried elsewhere %d times", n)
				}
				if h := g.host(0); h.Failures != 0 || h.Breaker != "closed" {
					t.Errorf("%d failures, breaker %s", h.Failures, h.Breaker)
				}
				if rec := g.recordN(0); rec.Class != outcome.CallerFault || rec.Tries != 1 || rec.Code != "too_large" {
					t.Errorf("record: %v, %d tries, code %q", rec.Class, rec.Tries, rec.Code)
				}
			})
		}
	}
}

// TestRefusedStreamOptions asks once more without what the gateway added itself, and then never adds it again.
func TestRefusedStreamOptions(t *testing.T) {
	var with, without atomic.Int64
	up := newUpstream(t, func(c *upConn, r *upRequest) bool {
		if strings.Contains(string(r.body), "stream_options") {
			with.Add(1)
			c.send(jsonAnswer(400, `{"error":{"message":"unknown member stream_options","type":"x","param":null,"code":null}}`))
			return true
		}
		without.Add(1)
		return answering(c, r)
	})
	g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.set.MaxRetries = 0 })
	for i := range 3 {
		r, body, err := g.do(chat(true))
		if err != nil || r.StatusCode != 200 || !strings.HasSuffix(body, doneEvent) {
			t.Fatalf("%d %q %v", r.StatusCode, body, err)
		}
		if rec := g.recordN(i); rec.Tries != 1 || rec.Class != outcome.Success || !rec.Estimated || rec.Output != 2 {
			t.Errorf("record %d: %d tries, %v, output %d, estimated %t", i, rec.Tries, rec.Class, rec.Output, rec.Estimated)
		}
	}
	if with.Load() != 1 || without.Load() != 3 {
		t.Errorf("%d requests with stream_options, %d without; want 1 and 3", with.Load(), without.Load())
	}
}

// TestRetryLimits counts what a failing fleet gets to see.
func TestRetryLimits(t *testing.T) {
	var seen atomic.Int64
	failing := func(c *upConn, _ *upRequest) bool {
		seen.Add(1)
		c.send(jsonAnswer(500, `{}`))
		return true
	}
	for name, tc := range map[string]struct {
		change   func(*rigOptions)
		requests int
		want     int64
	}{
		"max retries 0":  {func(o *rigOptions) { o.set.MaxRetries = 0 }, 1, 1},
		"max retries 3":  {func(o *rigOptions) { o.set.MaxRetries = 3 }, 1, 4},
		"budget is all":  {func(o *rigOptions) { o.set.MaxRetries = 3; o.retry = router.BudgetOptions{Cap: 2, PerRequest: 0.001} }, 3, 5},
		"budget refills": {func(o *rigOptions) { o.set.MaxRetries = 3; o.retry = router.BudgetOptions{Cap: 1, PerRequest: 0.5} }, 5, 8},
	} {
		t.Run(name, func(t *testing.T) {
			seen.Store(0)
			var urls []string
			for range 4 {
				urls = append(urls, newUpstream(t, failing).url())
			}
			g := newRig(t, urls, tc.change, func(o *rigOptions) { o.breaker.Failures = 1000; o.noTLS = true })
			for i := range tc.requests {
				if r, _, err := g.do(chat(false)); err != nil || r.StatusCode != 502 {
					t.Fatalf("request %d: %v, %v", i, r.StatusCode, err)
				}
			}
			if got := seen.Load(); got != tc.want {
				t.Errorf("%d attempts for %d requests, want %d", got, tc.requests, tc.want)
			}
			ids := map[endpoint.ID]bool{}
			rec := g.recordN(0)
			for _, a := range rec.Attempts[:rec.Tries] {
				if ids[a.Endpoint] {
					t.Errorf("%s was tried twice while others were not: %+v", a.Endpoint, rec.Attempts)
				}
				ids[a.Endpoint] = true
			}
		})
	}
}

// TestFirstEventTimeout has the host accept and stay silent.
func TestFirstEventTimeout(t *testing.T) {
	for _, head := range []string{"", sseHead} {
		up := newUpstream(t, func(c *upConn, _ *upRequest) bool {
			c.send(head)
			c.gone()
			return false
		})
		g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.set.FirstEvent = 50 * time.Millisecond; o.set.MaxRetries = 0 })
		r, body, err := g.do(chat(true))
		if e := parseError(t, body); err != nil || r.StatusCode != http.StatusGatewayTimeout || e.Code != "first_event_timeout" {
			t.Errorf("head %q: %d %q %v", head, r.StatusCode, body, err)
		}
		if rec := g.recordN(0); rec.Class != outcome.FirstByteTimeout {
			t.Errorf("recorded as %v", rec.Class)
		}
	}
}
