package gateway

import (
	"bufio"
	"io"
	"strings"
	"testing"
	"time"

	"headrace/router/outcome"
)

// pings reads n comments of a waiting stream.
func pings(t testing.TB, r *bufio.Reader, n int) {
	t.Helper()
	for range n {
		b := make([]byte, len(ping))
		if _, err := io.ReadFull(r, b); err != nil || string(b) != string(ping) {
			t.Fatalf("read %q, %v; want a ping", b, err)
		}
	}
}

func beating(o *rigOptions) { o.set.Heartbeat = 30 * time.Millisecond }

// afterPings drops the comments at the front of a body.
func afterPings(s string) string {
	for {
		rest, ok := strings.CutPrefix(s, string(ping))
		if !ok {
			return s
		}
		s = rest
	}
}

// TestHeartbeat keeps a waiting stream alive, and then sends the answer as if nothing had been.
func TestHeartbeat(t *testing.T) {
	goOn := make(chan struct{})
	up := newUpstream(t, func(c *upConn, r *upRequest) bool { <-goOn; return answering(c, r) })
	g := newRig(t, []string{up.url()}, beating)
	for i, dial := range []func() *client{g.dial, g.dialTLS} {
		c := dial().send(chat(true))
		res := c.response()
		body := bufio.NewReader(res.Body)
		pings(t, body, 3)
		goOn <- struct{}{}
		rest, err := io.ReadAll(body)
		want := roleEvent + tokenEvent("hel") + tokenEvent("lo") + stopEvent + doneEvent
		if got := afterPings(string(rest)); err != nil || got != want {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
		if ct := res.Header.Get("Content-Type"); ct != "text/event-stream" || res.Header.Get("X-Request-Id") == "" {
			t.Errorf("headers %v", res.Header)
		}
		if rec := g.recordN(i); rec.Class != outcome.Success || rec.Status != 200 || rec.Output != 3 || rec.TTFT < 60*time.Millisecond {
			t.Errorf("record: %v, status %d, output %d, TTFT %v", rec.Class, rec.Status, rec.Output, rec.TTFT)
		}
		// the connection serves on
		go func() { goOn <- struct{}{} }()
		if r, b, err := c.send(chat(false)).whole(); err != nil || r.StatusCode != 200 || b != plainBody {
			t.Errorf("next request: %d %q %v", r.StatusCode, b, err)
		}
		g.recordN(i)
		g.mu.Lock()
		g.records = g.records[:i+1]
		g.mu.Unlock()
	}
}

// TestHeartbeatNotForPlain waits silently: a plain answer has no room for comments.
func TestHeartbeatNotForPlain(t *testing.T) {
	up := newUpstream(t, func(c *upConn, r *upRequest) bool {
		<-time.After(100 * time.Millisecond)
		return answering(c, r)
	})
	g := newRig(t, []string{up.url()}, beating)
	if r, body, err := g.do(chat(false)); err != nil || r.StatusCode != 200 || body != plainBody {
		t.Errorf("%d %q %v", r.StatusCode, body, err)
	}
}

// TestFailureAfterPings can no longer change the status: it is an error event, in each protocol's shape.
func TestFailureAfterPings(t *testing.T) {
	const refused = `{"error":{"message":"no such lora","type":"invalid_request_error","param":null,"code":"upstream_lost"}}`
	for name, tc := range map[string]struct {
		path, body, answer, code string
		class                    outcome.Class
	}{
		"chat":             {chatPath, `{"model":"m1","stream":true,"messages":[]}`, jsonAnswer(500, "{}"), "host_failed", outcome.UpstreamFault},
		"anthropic":        {"/v1/messages", `{"model":"m1","stream":true,"messages":[]}`, jsonAnswer(500, "{}"), "api_error", outcome.UpstreamFault},
		"responses":        {"/v1/responses", `{"model":"m1","stream":true,"input":"x"}`, jsonAnswer(500, "{}"), "host_failed", outcome.UpstreamFault},
		"anthropic, 429":   {"/v1/messages", `{"model":"m1","stream":true,"messages":[]}`, jsonAnswer(429, "{}"), "rate_limit_error", outcome.Throttled},
		"responses, fault": {"/v1/responses", `{"model":"m1","stream":true,"input":"x"}`, jsonAnswer(400, refused), "upstream_lost", outcome.CallerFault},
		"closed":           {chatPath, `{"model":"m1","stream":true,"messages":[]}`, "", "host_failed", outcome.Severed},
	} {
		t.Run(name, func(t *testing.T) {
			goOn := make(chan struct{})
			up := newUpstream(t, func(c *upConn, _ *upRequest) bool { <-goOn; c.send(tc.answer); return false })
			g := newRig(t, []string{up.url()}, beating, func(o *rigOptions) { o.set.MaxRetries = 0 })
			res := g.dial().send(post(tc.path, tc.body)).response()
			body := bufio.NewReader(res.Body)
			pings(t, body, 2)
			close(goOn)
			rest, err := io.ReadAll(body)
			path := tc.path
			if path == chatPath {
				path = ""
			}
			checkErrorEvent(t, path, afterPings(string(rest)), tc.code)
			if !cutShort(err) || res.StatusCode != 200 {
				t.Errorf("status %d, the body ended with %v", res.StatusCode, err)
			}
			if rec := g.recordN(0); rec.Class != tc.class || rec.Status != 200 || rec.Code == "" {
				t.Errorf("record: %v, status %d, code %q", rec.Class, rec.Status, rec.Code)
			}
		})
	}
}

// TestRetryAfterPings goes to the next host while only comments have gone out.
func TestRetryAfterPings(t *testing.T) {
	for _, version := range []string{"HTTP/1.1", "HTTP/1.0"} {
		goOn := make(chan struct{})
		bad := newUpstream(t, func(c *upConn, _ *upRequest) bool { <-goOn; c.reset(); return false })
		var seen string
		good := newUpstream(t, func(c *upConn, r *upRequest) bool { <-goOn; seen = string(r.body); return answering(c, r) })
		g := newRig(t, []string{bad.url(), good.url()}, beating)
		c := g.dial().send(strings.Replace(chat(true), "HTTP/1.1", version, 1))
		var body *bufio.Reader
		res := c.response()
		body = bufio.NewReader(res.Body)
		pings(t, body, 2)
		goOn <- struct{}{}
		pings(t, body, 2)
		goOn <- struct{}{}
		rest, err := io.ReadAll(body)
		want := roleEvent + tokenEvent("hel") + tokenEvent("lo") + stopEvent + doneEvent
		if got := afterPings(string(rest)); err != nil || got != want {
			t.Errorf("%s: got %q, %v", version, got, err)
		}
		if !strings.Contains(seen, `"content":"hi"`) || !strings.Contains(seen, `"model":"m1"`) {
			t.Errorf("%s: the second host got the body %q", version, seen)
		}
		if rec := g.recordN(0); rec.Tries != 2 || rec.Class != outcome.Success {
			t.Errorf("%s: record: %d tries, %v", version, rec.Tries, rec.Class)
		}
	}
}

// TestClientGoneWhilePinging frees the host.
func TestClientGoneWhilePinging(t *testing.T) {
	closed := make(chan time.Time, 1)
	up := newUpstream(t, func(c *upConn, _ *upRequest) bool { closed <- c.gone(); return false })
	g := newRig(t, []string{up.url()}, beating)
	var worst time.Duration
	n := 0
	for _, dial := range []func() *client{g.dial, g.dialTLS} {
		inTime(t, &worst, func() time.Duration {
			c := dial().send(chat(true))
			pings(t, bufio.NewReader(c.response().Body), 2)
			from := time.Now()
			_ = c.Close()
			took := wait(t, closed, "the host to be freed").Sub(from)
			if rec := g.recordN(n); rec.Class != outcome.ClientGone {
				t.Errorf("recorded as %v", rec.Class)
			}
			n++
			return took
		})
	}
	t.Logf("slowest %v", worst)
}
