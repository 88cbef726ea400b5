package gateway

import (
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"headrace/router/outcome"
)

// random returns a source of chance whose seed is printed.
func random(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// randomStream builds a stream in which all that the standard allows occurs. usage is where the
// usage event stands in it.
func randomStream(r *rand.Rand) (before, usage, after string) {
	var b strings.Builder
	nl := []string{"\n", "\r\n", "\r"}[r.IntN(3)]
	event := func(lines ...string) string { return strings.Join(lines, nl) + nl + nl }
	if r.IntN(3) == 0 {
		b.WriteString("\xEF\xBB\xBF")
	}
	words := []string{"a", "é", "中文", "\\n", "🙂", " ", "data: ", "\\\"", strings.Repeat("long ", 4000)}
	for range 1 + r.IntN(12) {
		switch r.IntN(8) {
		case 0:
			b.WriteString(event(": keep-alive 中"))
		case 1:
			b.WriteString(nl)
		case 2:
			b.WriteString(event("id: 7", "retry: 3000"))
		case 3:
			b.WriteString(event(`data: {"choices":[{"index":0,`, `data: "delta":{"content":"two lines"}}]}`))
		case 4:
			b.WriteString(event("event: ping", "id: 中", `data: {"type":"ping"}`))
		case 5:
			b.WriteString(event("data:" + `{"choices":[{"index":0,"delta":{"content":"no space"}}]}`))
		default:
			w := words[r.IntN(len(words))]
			b.WriteString(event(fmt.Sprintf(`data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}`, w)))
		}
	}
	b.WriteString(event(`data: {"choices":[{"index":0,"delta":{"content":"last"},"finish_reason":null}]}`))
	b.WriteString(event(`data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}`))
	usage = event(`data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}`)
	return b.String(), usage, event("data: [DONE]")
}

// framings are the ways in which hosts delimit a stream.
var framings = []string{"chunked", "content-length", "close"}

// wire frames a body and returns head and bytes to send.
func wire(r *rand.Rand, framing, body string) string {
	const head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Vendor: kept\r\n"
	switch framing {
	case "content-length":
		return fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", head, len(body), body)
	case "close":
		return head + "Connection: close\r\n\r\n" + body
	}
	var b strings.Builder
	b.WriteString(head + "Transfer-Encoding: chunked\r\n\r\n")
	for len(body) > 0 {
		n := 1 + r.IntN(len(body))
		if r.IntN(2) == 0 {
			n = min(n, 1+r.IntN(40))
		}
		fmt.Fprintf(&b, []string{"%x\r\n", "%X\r\n", "000%x\r\n", "%x;ext=\"a\"\r\n"}[r.IntN(4)], n)
		b.WriteString(body[:n] + "\r\n")
		body = body[n:]
	}
	b.WriteString([]string{"0\r\n\r\n", "0\r\nTrailer-Field: x\r\n\r\n", "000;last\r\n\r\n"}[r.IntN(3)])
	return b.String()
}

// sendInPieces sends s cut at random places, also inside characters and chunk heads.
func (c *upConn) sendInPieces(r *rand.Rand, s string) {
	for len(s) > 0 {
		n := 1 + r.IntN(min(len(s), 1+r.IntN(4000)))
		c.send(s[:n])
		s = s[n:]
		for range r.IntN(20) {
			runtime.Gosched() // lets the gateway read a piece of its own
		}
	}
}

// TestStreamFidelity compares what callers get with what hosts sent, byte for byte.
func TestStreamFidelity(t *testing.T) {
	r := random(t)
	type script struct {
		wire string
		keep bool
		seed uint64
	}
	scripts := make(chan script, 1)
	up := newUpstream(t, func(c *upConn, _ *upRequest) bool {
		s := <-scripts
		c.sendInPieces(rand.New(rand.NewPCG(s.seed, 1)), s.wire)
		return s.keep
	})
	g := newRig(t, []string{up.url()})
	rounds := 300
	if testing.Short() {
		rounds = 50
	}
	plain, secure := g.dial(), g.dialTLS()
	for i := range rounds {
		before, usage, after := randomStream(r)
		framing := framings[r.IntN(len(framings))]
		asked := r.IntN(2) == 0
		scripts <- script{wire(r, framing, before+usage+after), framing != "close", r.Uint64()}
		request, want := chat(true), before+after
		if asked {
			request = post(chatPath, `{"model":"m1","stream":true,"stream_options":{"include_usage":true},"messages":[]}`)
			want = before + usage + after
		}
		c := plain
		if i%2 == 1 {
			c = secure
		}
		res, got, err := c.send(request).whole()
		if err != nil || res.StatusCode != 200 {
			t.Fatalf("round %d (%s): status %d, %v", i, framing, res.StatusCode, err)
		}
		if got != want {
			t.Fatalf("round %d (%s, usage asked %t): got\n%q\nwant\n%q", i, framing, asked, got, want)
		}
		if res.Header.Get("X-Vendor") != "kept" || res.Header.Get("Content-Type") != "text/event-stream" {
			t.Fatalf("headers %v", res.Header)
		}
		rec := g.recordN(i)
		if rec.Class != outcome.Success || rec.Prompt != 7 || rec.Output != 3 || rec.Finish != "length" || rec.BytesOut != int64(len(want)) {
			t.Fatalf("round %d: recorded %v, prompt %d, output %d, finish %q, %d bytes; want %d bytes", i, rec.Class, rec.Prompt, rec.Output, rec.Finish, rec.BytesOut, len(want))
		}
	}
}

// TestLongEvents passes events that fit no buffer, in front of, between and behind others.
func TestLongEvents(t *testing.T) {
	long := tokenEvent(strings.Repeat("x", 3<<20))
	for name, events := range map[string][]string{
		"first":   {long, stopEvent, doneEvent},
		"between": {tokenEvent("a"), long, tokenEvent("b"), long, stopEvent, doneEvent},
		"fits":    {tokenEvent("a"), tokenEvent(strings.Repeat("y", 700<<10)), stopEvent, doneEvent},
	} {
		t.Run(name, func(t *testing.T) {
			up := newUpstream(t, func(c *upConn, _ *upRequest) bool { c.sendStream(events...); return true })
			g := newRig(t, []string{up.url()})
			_, got, err := g.do(chat(true))
			if want := strings.Join(events, ""); err != nil || got != want {
				t.Errorf("%d bytes, want %d, %v", len(got), len(want), err)
			}
		})
	}
	t.Run("plain", func(t *testing.T) {
		body := `{"data":[{"embedding":[` + strings.Repeat("0.123,", 1<<20) + `0]}]}`
		up := newUpstream(t, func(c *upConn, _ *upRequest) bool { c.send(jsonAnswer(200, body)); return true })
		g := newRig(t, []string{up.url()})
		_, got, err := g.do(post("/v1/embeddings", `{"model":"m1","input":"x"}`))
		if err != nil || got != body {
			t.Errorf("%d bytes, want %d, %v", len(got), len(body), err)
		}
	})
}

// ending is how a stream that has begun ends, and what the caller sees of it.
type ending struct {
	path, request string
	send          func(c *upConn) (again bool)
	got           string // what the caller gets of the host's bytes
	err           string // code in the error event behind it, "" for a good end
	class         outcome.Class
}

// TestStreamEnds makes sure that a stream that was cut can never be taken for a whole one.
func TestStreamEnds(t *testing.T) {
	tok := tokenEvent("x")
	chunks := func(events ...string) func(*upConn) bool {
		return func(c *upConn) bool {
			c.send(sseHead)
			for _, e := range events {
				c.sendChunk(e)
			}
			return false
		}
	}
	ended := func(events ...string) func(*upConn) bool {
		return func(c *upConn) bool { c.sendStream(events...); return true }
	}
	toClose := func(body string) func(*upConn) bool {
		return func(c *upConn) bool {
			c.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + body)
			return false
		}
	}
	sized := func(n int, body string) func(*upConn) bool {
		return func(c *upConn) bool {
			c.send(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%s", n, body))
			return false
		}
	}
	two := post(chatPath, `{"model":"m1","stream":true,"n":2,"messages":[]}`)
	messages := `{"model":"m1","stream":true,"max_tokens":9,"messages":[]}`
	anthropic := "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"x\"}}\n\n"
	anthropicStop := "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"
	responses := "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"x\"}\n\n"
	responsesEnd := "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":1,\"output_tokens\":1}}}\n\n"
	upstreamError := "data: {\"error\":{\"message\":\"engine died\",\"code\":500}}\n\n"
	const lost, good = outcome.Truncated, outcome.Success
	for name, tc := range map[string]ending{
		"done":                              {send: ended(tok, stopEvent, doneEvent), got: tok + stopEvent + doneEvent, class: good},
		"finish without done":               {send: ended(tok, stopEvent), got: tok + stopEvent, class: good},
		"done, then no last chunk":          {send: chunks(tok, stopEvent, doneEvent), got: tok + stopEvent + doneEvent, class: good},
		"to close, done":                    {send: toClose(tok + stopEvent + doneEvent), got: tok + stopEvent + doneEvent, class: good},
		"to close, finish":                  {send: toClose(tok + stopEvent), got: tok + stopEvent, class: good},
		"done without its blank line":       {send: toClose(tok + stopEvent + "data: [DONE]"), got: tok + stopEvent + "data: [DONE]", class: good},
		"error event of the host":           {send: ended(tok, upstreamError), got: tok + upstreamError, class: outcome.UpstreamFault},
		"clean end without finish":          {send: ended(tok), got: tok, err: "upstream_lost", class: lost},
		"no last chunk":                     {send: chunks(tok), got: tok, err: "upstream_lost", class: lost},
		"finish, then no last chunk":        {send: chunks(tok, stopEvent), got: tok + stopEvent, err: "upstream_lost", class: lost},
		"reset":                             {send: func(c *upConn) bool { chunks(tok)(c); return c.gotFirst() }, got: tok, err: "upstream_lost", class: lost},
		"cut inside an event, to close":     {send: toClose(tok + tok[:30]), got: tok, err: "upstream_lost", class: lost},
		"cut behind a finish, to close":     {send: toClose(tok + strings.TrimSuffix(stopEvent, "}]}\n\n")), got: tok, err: "upstream_lost", class: lost},
		"cut inside an event, chunked":      {send: chunks(tok, tok[:30]), got: tok, err: "upstream_lost", class: lost},
		"cut inside an event, ended":        {send: ended(tok, tok[:30]), got: tok, err: "upstream_lost", class: lost},
		"content-length not reached":        {send: sized(9999, tok), got: tok, err: "upstream_lost", class: lost},
		"one of two choices finished":       {request: two, send: ended(tok, stopEvent), got: tok + stopEvent, err: "upstream_lost", class: lost},
		"two of two choices finished":       {request: two, send: ended(tok, stopEvent, stopEvent), got: tok + stopEvent + stopEvent, class: good},
		"anthropic, whole":                  {path: "/v1/messages", request: messages, send: ended(anthropic, anthropicStop), got: anthropic + anthropicStop, class: good},
		"anthropic, lost":                   {path: "/v1/messages", request: messages, send: chunks(anthropic), got: anthropic, err: "api_error", class: lost},
		"responses, whole":                  {path: "/v1/responses", request: `{"model":"m1","stream":true,"input":"x"}`, send: ended(responses, responsesEnd), got: responses + responsesEnd, class: good},
		"responses, lost":                   {path: "/v1/responses", request: `{"model":"m1","stream":true,"input":"x"}`, send: ended(responses), got: responses, err: "upstream_lost", class: lost},
		"silent for longer than gap":        {send: func(c *upConn) bool { chunks(tok)(c); c.gone(); return false }, got: tok, err: "upstream_lost", class: outcome.Stalled},
		"silent inside an event":            {send: func(c *upConn) bool { chunks(tok, tok[:20])(c); c.gone(); return false }, got: tok, err: "upstream_lost", class: outcome.Stalled},
		"silent behind done, no last chunk": {send: func(c *upConn) bool { chunks(tok, stopEvent, doneEvent)(c); c.gone(); return false }, got: tok + stopEvent + doneEvent, class: good},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := newUpstream(t, func(c *upConn, _ *upRequest) bool { return tc.send(c) })
			g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.set.Gap = 100 * time.Millisecond; o.noTLS = true })
			request := tc.request
			switch {
			case tc.path != "":
				request = post(tc.path, request)
			case request == "":
				request = chat(true)
			}
			res, got, err := g.do(request)
			if res.StatusCode != 200 || !strings.HasPrefix(got, tc.got) {
				t.Fatalf("status %d, got\n%q, want\n%q", res.StatusCode, got, tc.got)
			}
			rest := got[len(tc.got):]
			if tc.err == "" {
				if err != nil || rest != "" {
					t.Errorf("a good end shows as %v, with %q behind it", err, rest)
				}
			} else {
				checkErrorEvent(t, tc.path, rest, tc.err)
				if !cutShort(err) {
					t.Errorf("a lost stream ended in good order (%v)", err)
				}
			}
			if rec := g.recordN(0); rec.Class != tc.class || rec.Tries != 1 {
				t.Errorf("recorded as %v after %d tries, want %v", rec.Class, rec.Tries, tc.class)
			}
			if tc.err != "" {
				eventually(t, "the host's connection is closed", func() bool { return up.open() == 0 })
			}
		})
	}
}

// gotFirst resets the connection as soon as what was sent is on its way.
func (c *upConn) gotFirst() bool {
	eventuallyQuiet(c)
	c.reset()
	return false
}

// eventuallyQuiet waits until the gateway's kernel has acknowledged everything: a reset would discard it.
func eventuallyQuiet(c *upConn) {
	for range 1000 {
		if unsent(c.Conn) == 0 {
			return
		}
		runtime.Gosched()
	}
}

// checkErrorEvent makes sure that s is one error event in the shape of its protocol.
func checkErrorEvent(t *testing.T, path, s, code string) {
	t.Helper()
	data, ok := strings.CutPrefix(s, "data: ")
	if path != "" {
		data, ok = strings.CutPrefix(s, "event: error\ndata: ")
	}
	data, whole := strings.CutSuffix(data, "\n\n")
	if !ok || !whole || strings.Contains(data, "\n") {
		t.Fatalf("not one error event: %q", s)
	}
	var want string
	switch path {
	case "/v1/messages":
		want = `{"type":"error","error":{"type":"` + code + `","message":"`
	case "/v1/responses":
		want = `{"type":"error","code":"` + code + `","message":"`
	default:
		if e := parseError(t, data); e.Code != code || e.Type != "server_error" {
			t.Errorf("error event %s, want code %s", data, code)
		}
		return
	}
	if !strings.HasPrefix(data, want) {
		t.Errorf("error event %s, want %s…", data, want)
	}
}

// TestHTTP10 serves a caller that knows no chunks.
func TestHTTP10(t *testing.T) {
	up := newUpstream(t, answering)
	g := newRig(t, []string{up.url()})
	want := roleEvent + tokenEvent("hel") + tokenEvent("lo") + stopEvent + doneEvent
	for _, tc := range []struct {
		stream bool
		want   string
	}{{true, want}, {false, plainBody}} {
		c := g.dial().send(strings.Replace(chat(tc.stream), "HTTP/1.1", "HTTP/1.0", 1))
		all, err := io.ReadAll(c.br)
		if err != nil {
			t.Fatal(err)
		}
		head, body, ok := strings.Cut(string(all), "\r\n\r\n")
		if !ok || body != tc.want || strings.Contains(strings.ToLower(head), "chunked") {
			t.Errorf("stream=%t: head %q, body %q, want %q", tc.stream, head, body, tc.want)
		}
	}
}

// TestPipelinedAnswersGoAtOnce sends two requests together: the answer to the first is there while the host still works on the second.
func TestPipelinedAnswersGoAtOnce(t *testing.T) {
	t.Parallel()
	second := make(chan struct{})
	var n atomic.Int64
	up := newUpstream(t, func(c *upConn, r *upRequest) bool {
		if n.Add(1) == 2 {
			<-second
		}
		return answering(c, r)
	})
	g := newRig(t, []string{up.url()})
	for _, dial := range []func() *client{g.dial, g.dialTLS} {
		n.Store(0)
		c := dial().send(chat(false) + chat(false))
		if r, body, err := c.whole(); err != nil || r.StatusCode != 200 || body == "" {
			t.Errorf("the first: %v, %v: %s", err, r, body)
		}
		second <- struct{}{}
		if r, body, err := c.whole(); err != nil || r.StatusCode != 200 || body == "" {
			t.Errorf("the second: %v, %v: %s", err, r, body)
		}
	}
}

// TestSlowReader lets a client read late, and one never.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	big := tokenEvent(strings.Repeat("x", 32<<10))
	t.Run("stuck", func(t *testing.T) {
		closed := make(chan time.Time, 1)
		up := newUpstream(t, func(c *upConn, _ *upRequest) bool {
			c.send(sseHead)
			for {
				if _, err := fmt.Fprintf(c.Conn, "%x\r\n%s\r\n", len(big), big); err != nil {
					closed <- time.Now()
					return false
				}
			}
		})
		const limit = 200 * time.Millisecond
		g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.set.ClientWrite = limit })
		for i, dial := range []func() *client{g.dial, g.dialTLS} {
			from := time.Now()
			c := dial().send(chat(true))
			at := wait(t, closed, "the host to be freed")
			if took := at.Sub(from); took < limit*3/4 || took > patience/2 {
				t.Errorf("the host was freed after %v, with a limit of %v for writes to the client", took, limit)
			}
			if rec := g.recordN(i); rec.Class != outcome.ClientGone {
				t.Errorf("recorded as %v", rec.Class)
			}
			_ = c.tcp.Close()
		}
	})
	t.Run("steady", func(t *testing.T) {
		const events = 40
		up := newUpstream(t, func(c *upConn, _ *upRequest) bool {
			tick := time.NewTicker(30 * time.Millisecond)
			defer tick.Stop()
			c.send(sseHead)
			for range events {
				c.sendChunk(tokenEvent("x"))
				<-tick.C
			}
			c.sendChunk(stopEvent)
			c.send(lastChunk)
			return true
		})
		const limit = events / 2 * 30 * time.Millisecond
		awake(t, limit/8, func(t *try) {
			g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.set.ClientWrite = limit })
			for _, dial := range []func() *client{g.dial, g.dialTLS} {
				_, got, err := dial().send(chat(true)).whole()
				if want := strings.Repeat(tokenEvent("x"), events) + stopEvent; err != nil || got != want {
					t.Errorf("a client that reads all the time lost its stream after %d of %d bytes: %v", len(got), len(want), err)
				}
			}
		})
	})
}
