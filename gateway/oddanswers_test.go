package gateway

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"headrace/gateway/ledger"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// oddAnswer is something odd that a host answers, and what the caller gets for it.
type oddAnswer struct {
	name    string
	send    string
	forever string // repeated behind it until the gateway closes
	stays   bool   // the host leaves the connection open
	stream  bool   // the request asks for a stream
	status  int
	code    string // of the error; "-" for one without a code, "" for a good answer
	says    string // part of the error's message
	body    string // what a good answer's body must be; "*" for whatever was sent
	lost    bool   // the answer ends with an error event and without its last chunk
	class   outcome.Class
	quiet   bool // the host gets no requests for a while
	also    func(t *testing.T, r *http.Response)
}

// does answers a request.
func (a *oddAnswer) does(c *upConn) (again bool) {
	c.send(a.send)
	for a.forever != "" {
		if _, err := io.WriteString(c.Conn, a.forever); err != nil {
			return false
		}
	}
	return a.stays
}

// run asks the row's host, and then once more for something good.
func (a *oddAnswer) run(t *testing.T, g *rig, i int) {
	ask := func(extra string, stream bool) string {
		return post(chatPath, fmt.Sprintf(`{"model":"row%d",%s"stream":%t,"messages":[]}`, i, extra, stream), "Authorization: Bearer "+callerSecret)
	}
	c := g.badCaller(t)
	c.send(ask("", a.stream))
	r, body, err := c.next("POST")
	if r == nil || r.StatusCode != a.status {
		t.Fatalf("got %q, want status %d", c.raw.String(), a.status)
	}
	if a.code != "" {
		a.checkError(t, r, body)
	}
	if a.lost {
		at := strings.LastIndex(strings.TrimSuffix(body, "\n\n"), "\n\n") + 2
		checkErrorEvent(t, "", body[at:], "upstream_lost")
		body = body[:at]
	}
	if a.lost != cutShort(err) || err != nil && !a.lost {
		t.Errorf("the body ended with %v, want it cut short: %t", err, a.lost)
	}
	if a.code == "" && a.body != "*" && body != a.body {
		t.Errorf("body %.300q, want %.300q", body, a.body)
	}
	if id := r.Header.Values("X-Request-Id"); len(id) != 1 || !strings.HasPrefix(id[0], "req_") {
		t.Errorf("X-Request-Id %q", id)
	}
	if a.also != nil {
		a.also(t, r)
	}
	checkPrivate(t, "the answer", c.raw.String(), hostSecret, upstreamKey, callerSecret)
	for _, name := range []string{"Set-Cookie", "Www-Authenticate", "Proxy-Authenticate", "Keep-Alive", "Upgrade", "Trailer", "Server", "Alt-Svc"} {
		if v := r.Header.Values(name); len(v) > 0 {
			t.Errorf("the caller got %s: %q", name, v)
		}
	}
	if rec := g.recordOf(r.Header.Get("X-Request-Id")); rec.Class != a.class || rec.Tries != 1 {
		t.Errorf("recorded as %v after %d tries, want %v", rec.Class, rec.Tries, a.class)
	}
	// On the same connection where it lives, of the same host where it is asked: what was left
	// over from the odd answer would show here.
	if a.lost {
		c.checkEnd()
		c = g.badCaller(t)
	}
	good := ask(`"user":"good",`, false)
	if a.quiet {
		good = chat(false)
	}
	c.send(good)
	if r, body, err := c.next("POST"); r == nil || r.StatusCode != 200 || body != plainBody || err != nil {
		t.Errorf("a good request gets %q, %v", body, err)
	}
}

// recordOf waits for the record of a request.
func (g *rig) recordOf(id string) ledger.Record {
	g.t.Helper()
	for n := 0; ; n++ {
		if rec := g.recordN(n); rec.ID == id {
			return rec
		}
	}
}

// checkError holds the error against what is wanted.
func (a *oddAnswer) checkError(t *testing.T, r *http.Response, body string) {
	t.Helper()
	if a.class != outcome.CallerFault { // in the gateway's own words
		checkWire(t, r, body, a.code, "", a.says)
		return
	}
	e := parseError(t, body)
	if want := strings.TrimPrefix(a.code, "-"); e.Code != want || !strings.Contains(e.Message, a.says) {
		t.Errorf("code %q, message %.300q; want %q and %q in the message", e.Code, e.Message, want, a.says)
	}
	if len(body) > 4<<10 {
		t.Errorf("an error of %d bytes", len(body))
	}
}

// runOddAnswers has each row answered by a host of its own.
func runOddAnswers(t *testing.T, rows []oddAnswer, change ...func(*rigOptions)) {
	h := newUpstream(t, func(c *upConn, r *upRequest) bool {
		if strings.Contains(string(r.body), `"good"`) || strings.Contains(string(r.body), `"m1"`) {
			return answering(c, r)
		}
		_, rest, _ := strings.Cut(string(r.body), `"model":"row`)
		digits, _, _ := strings.Cut(rest, `"`)
		i, err := strconv.Atoi(digits)
		if err != nil {
			t.Errorf("a request for no row: %q", r.body)
			return false
		}
		return rows[i].does(c)
	})
	urls := make([]string, len(rows)+1)
	for i := range urls {
		urls[i] = h.url()
	}
	change = append([]func(*rigOptions){func(o *rigOptions) {
		o.noTLS, o.set.MaxRetries = true, 0
		o.breaker.OpenFor = time.Nanosecond // a host that broke a stream is tried again at once
		o.edit = func(eps []endpoint.Endpoint) {
			for i := range rows {
				eps[i].Served = []endpoint.Served{{Name: fmt.Sprintf("row%d", i)}}
			}
		}
	}}, change...)
	g := newRig(t, urls, change...)
	names := map[string]bool{}
	for i := range rows {
		if names[rows[i].name] {
			t.Fatalf("two rows are called %q", rows[i].name)
		}
		names[rows[i].name] = true
		t.Run(rows[i].name, func(t *testing.T) { rows[i].run(t, g, i) })
	}
	checkPrivate(t, "the log", g.logs.String(), callerSecret, upstreamKey)
	checkNoPanic(t, g)
}

// framed is a head without a body's framing, with one more line in it.
func framed(status, line, body string) string {
	return "HTTP/1.1 " + status + "\r\n" + line + "\r\n\r\n" + body
}

// events is a whole stream in one chunk.
func events(s string) string { return fmt.Sprintf("%s%x\r\n%s\r\n%s", sseHead, len(s), s, lastChunk) }

// TestBadInputAnswers has hosts answer what they should not, as HTTP and in what they say.
func TestBadInputAnswers(t *testing.T) {
	const (
		typed  = "Content-Type: application/json"
		failed = "host_failed"
		fault  = outcome.UpstreamFault
	)
	sized := func(line, body string) string { // a good head with an odd line in it
		return framed("200 OK", fmt.Sprintf("%s\r\n%s\r\nContent-Length: %d", typed, line, len(body)), body)
	}
	chunked := func(body string) string { return framed("200 OK", typed+"\r\nTransfer-Encoding: chunked", body) }
	broken := func(name, send string) oddAnswer {
		return oddAnswer{name: name, send: send, status: 502, code: failed, class: fault}
	}
	good := func(name, send string) oddAnswer {
		return oddAnswer{name: name, send: send, stays: true, status: 200, body: plainBody}
	}
	whole := fmt.Sprintf("%x\r\n%s\r\n", len(plainBody), plainBody)
	var bytes strings.Builder
	for i := range len(plainBody) {
		fmt.Fprintf(&bytes, "1\r\n%c\r\n", plainBody[i])
	}
	rows := []oddAnswer{
		// Status lines and heads.
		broken("version 2", strings.Replace(jsonAnswer(200, plainBody), "HTTP/1.1", "HTTP/2", 1)),
		broken("no blank behind the version", strings.Replace(jsonAnswer(200, plainBody), "HTTP/1.1 ", "HTTP/1.1", 1)),
		broken("status 99", strings.Replace(jsonAnswer(200, plainBody), "200", "99", 1)),
		broken("status of four digits", strings.Replace(jsonAnswer(200, plainBody), "200", "2000", 1)),
		broken("negative status", strings.Replace(jsonAnswer(200, plainBody), "200", "-200", 1)),
		broken("status 600", strings.Replace(jsonAnswer(200, hostSecret), "200", "600", 1)),
		broken("status 204 with a body", strings.Replace(jsonAnswer(200, plainBody), "200", "204", 1)),
		broken("status 304", framed("304 Not Modified", "ETag: x", "")),
		broken("status 101 with bytes behind it", framed("101 Switching Protocols", "Upgrade: h2c", hostSecret)),
		broken("redirect 301", framed("301 Moved", "Location: http://"+hostSecret+"/\r\nContent-Length: 0", "")),
		broken("redirect 307", framed("307 Temporary Redirect", "Location: /v1\r\nContent-Length: 0", "")),
		broken("redirect 308 with a page", framed("308 Permanent Redirect", "Location: /v1\r\nContent-Length: 18", hostSecret)),
		broken("lines end in LF", strings.ReplaceAll(jsonAnswer(200, plainBody), "\r\n", "\n")),
		broken("line without a colon", sized("nonsense", plainBody)),
		broken("NUL in a value", sized("X-A: a\x00b", plainBody)),
		broken("CR in a value", sized("X-A: a\rSet-Cookie: "+hostSecret, plainBody)),
		good("blank before the colon", sized("X-A : b", plainBody)),
		broken("negative length", framed("200 OK", typed+"\r\nContent-Length: -5", plainBody)),
		broken("length in words", framed("200 OK", typed+"\r\nContent-Length: many", plainBody)),
		broken("length beyond 64 bits", framed("200 OK", typed+"\r\nContent-Length: 99999999999999999999", plainBody)),
		broken("length of exabytes", framed("200 OK", typed+"\r\nContent-Length: 9223372036854775807", plainBody)),
		broken("unknown transfer coding", framed("200 OK", typed+"\r\nTransfer-Encoding: gzip", plainBody)),
		broken("endless head", "HTTP/1.1 200 OK\r\n"+strings.Repeat("X-A: b\r\n", 8<<10)),
		{name: "endless interim answers", send: "", forever: "HTTP/1.1 102 Processing\r\n\r\n", status: 502, code: failed, class: fault},
		good("a few interim answers", strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 9)+jsonAnswer(200, plainBody)),
		{name: "length and chunked", send: framed("200 OK", typed+"\r\nContent-Length: 3\r\nTransfer-Encoding: chunked", whole+lastChunk), stays: true, status: 200, body: plainBody},
		good("folded line", sized("X-A: a\r\n Set-Cookie: b", plainBody)),
		good("no reason phrase", strings.Replace(jsonAnswer(200, plainBody), " OK", "", 1)),
		{name: "HTTP 1.0 to the connection's end", send: "HTTP/1.0 200 OK\r\n" + typed + "\r\n\r\n" + plainBody, status: 200, body: plainBody},
		{name: "no framing", send: framed("200 OK", typed, plainBody), status: 200, body: plainBody},
		good("no type", framed("200 OK", fmt.Sprintf("Content-Length: %d", len(plainBody)), plainBody)),
		good("plain text that is JSON", strings.Replace(jsonAnswer(200, plainBody), "application/json", "text/plain", 1)),
		good("bytes behind the length", jsonAnswer(200, plainBody)+hostSecret),

		// Header fields that must stay here.
		good("private fields", sized("Set-Cookie: "+hostSecret+"\r\nServer: "+hostSecret+"\r\nWWW-Authenticate: "+hostSecret+"\r\nProxy-Authenticate: x\r\nAlt-Svc: h3\r\nUpgrade: h2c\r\nKeep-Alive: timeout=1\r\nTrailer: X-T", plainBody)),
		good("forged fields", sized("X-Request-Id: "+hostSecret+"\r\nX-Headrace-Endpoint: "+hostSecret+"\r\nx-headrace-a-name-longer-than-most-of-them: "+hostSecret+"\r\nServer-Timing: "+hostSecret, plainBody)),
		good("fields named by Connection", sized("Connection: keep-alive, X-Hop\r\nX-Hop: "+hostSecret, plainBody)),

		// Chunks.
		good("chunks of a byte", chunked(bytes.String()+lastChunk)),
		good("chunk extensions", chunked(strings.Replace(whole, "\r\n", ";a=\"b\"\r\n", 1)+lastChunk)),
		good("trailer", chunked(whole+"0\r\nX-Sum: "+hostSecret+"\r\n\r\n")),
		broken("negative chunk size", chunked("-5\r\n"+plainBody)),
		broken("chunk size of 2^63", chunked("8000000000000000\r\n"+plainBody)),
		broken("chunk size in LF lines", chunked(strings.ReplaceAll(whole+lastChunk, "\r\n", "\n"))),
		broken("chunk longer than its size", chunked("5\r\n"+plainBody+"\r\n"+lastChunk)),
		broken("chunk bomb", chunked("ffffffff\r\n"+plainBody)),
		broken("no last chunk", chunked(whole)),
		{name: "endless trailer", send: chunked(whole + "0\r\n"), forever: "X-A: b\r\n", status: 502, code: failed, class: fault},
		{name: "endless chunk extension", send: chunked("5;"), forever: "aaaaaaaaaaaaaaaa", status: 502, code: failed, class: fault},

		// Bodies of plain answers.
		broken("a string", jsonAnswer(200, `"`+hostSecret+`"`)),
		broken("null", jsonAnswer(200, "null")),
		broken("NUL bytes", jsonAnswer(200, strings.Repeat("\x00", 100))),
		broken("two objects", jsonAnswer(200, plainBody+plainBody)),
		broken("a compressed body", framed("200 OK", typed+"\r\nContent-Encoding: gzip\r\nContent-Length: 4", "\x1f\x8b\x08\x00")),
		broken("capitals in HTML", framed("200 OK", "Content-Type: TEXT/HTML\r\nContent-Length: 18", hostSecret)),
		{name: "a long answer", send: jsonAnswer(200, `{"choices":[],"x":"`+strings.Repeat("x", 3<<20)+`"}`), stays: true, status: 200, body: `{"choices":[],"x":"` + strings.Repeat("x", 3<<20) + `"}`},
		{name: "NaN", send: jsonAnswer(200, `{"choices":[{"logprobs":NaN}]}`), stays: true, status: 200, body: `{"choices":[{"logprobs":NaN}]}`},
		broken("error as a text under 200", jsonAnswer(200, `{"error":"`+hostSecret+`"}`)),
		broken("error with an odd code under 200", jsonAnswer(200, `{"error":{"message":"`+hostSecret+`","code":200}}`)),
		{name: "error null", send: jsonAnswer(200, strings.Replace(plainBody, "{", `{"error":null,`, 1)), stays: true, status: 200, body: strings.Replace(plainBody, "{", `{"error":null,`, 1)},
		{name: "flat error with a quoted code under 200", send: jsonAnswer(200, `{"object":"error","message":"too long","code":"404"}`), stays: true, status: 404, code: "-", says: "too long", class: outcome.CallerFault},

		// The host's verdict on the request.
		{name: "400 without a body", send: jsonAnswer(400, ""), stays: true, status: 400, code: "-", says: "without a body", class: outcome.CallerFault},
		{name: "400 with HTML", send: framed("400 Bad Request", "Content-Type: text/html\r\nContent-Length: 24", "<html>"+hostSecret), stays: true, status: 400, code: "-", says: "HTML", class: outcome.CallerFault},
		{name: "400 with a list", send: jsonAnswer(400, `["a","b"]`), stays: true, status: 400, code: "-", class: outcome.CallerFault},
		{name: "400 with binary data", send: jsonAnswer(400, "\x00\xff\x00"), stays: true, status: 400, code: "-", says: "unknown form", class: outcome.CallerFault},
		{name: "400 in text", send: framed("400 Bad Request", "Content-Type: text/plain\r\nContent-Length: 8", "too long"), stays: true, status: 400, code: "-", says: "too long", class: outcome.CallerFault},
		{name: "400 of 1 MB", send: jsonAnswer(400, `{"error":{"message":"`+strings.Repeat("x", 1<<20)+`","type":"t","param":null,"code":null}}`), status: 400, code: "-", says: "x", class: outcome.CallerFault},
		{name: "400 cut short", send: framed("400 Bad Request", typed+"\r\nContent-Length: 500", `{"error":{"message":"too long","type":"t","param":null,"code":"c"}}`), status: 400, code: "c", says: "too long", class: outcome.CallerFault},
		{name: "422 of FastAPI", send: jsonAnswer(422, `{"detail":[{"loc":["body","n"],"msg":"too many","type":"x"}]}`), stays: true, status: 422, code: "-", says: "body.n: too many", class: outcome.CallerFault},
		{name: "404 of FastAPI", send: jsonAnswer(404, `{"detail":"Not Found"}`), stays: true, status: 404, code: "-", says: "Not Found", class: outcome.CallerFault},
		{name: "410", send: jsonAnswer(410, `{"error":{"message":"gone","type":"t","param":null,"code":"c"}}`, "Set-Cookie: "+hostSecret), stays: true, status: 410, code: "c", says: "gone", class: outcome.CallerFault},

		// The host's own trouble.
		broken("408", jsonAnswer(408, `{"error":"`+hostSecret+`"}`)),
		broken("500 without a body", jsonAnswer(500, "")),
		broken("500 with a traceback", jsonAnswer(500, `{"detail":"Traceback: `+hostSecret+`"}`)),
		broken("502 with a page", framed("502 Bad Gateway", "Content-Type: text/html\r\nContent-Length: 24", "<html>"+hostSecret)),
		broken("500 of 1 MB", jsonAnswer(500, strings.Repeat(hostSecret, 1<<16))),
		broken("599", framed("599 "+hostSecret, "Content-Length: 0", "")),
		{name: "endless 500", send: framed("500 Internal Server Error", typed, ""), forever: strings.Repeat(hostSecret, 100), status: 502, code: failed, says: "status 500", class: fault},
		{name: "401", send: jsonAnswer(401, `{"error":"`+hostSecret+`"}`, "WWW-Authenticate: "+hostSecret), stays: true, status: 502, code: "host_denied", class: outcome.UpstreamDenied, quiet: true},
		{name: "403 with a page", send: framed("403 Forbidden", "Content-Type: text/html\r\nContent-Length: 24", "<html>"+hostSecret), stays: true, status: 502, code: "host_denied", class: outcome.UpstreamDenied, quiet: true},
	}
	in := time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)
	for i, w := range []struct {
		wait      string
		low, high int
	}{{"7", 7, 7}, {"0", 1, 1}, {in, 3500, 3600}, {"Mon, 02 Jan 2006 15:04:05 GMT", 1, 1}, {"soon", 1, 1}, {"-5", 1, 1}, {"1.5", 1, 2}, {"99999999999999999999", 1, 600}, {"7, 9", 1, 9}} {
		rows = append(rows, oddAnswer{
			name: fmt.Sprintf("429 with Retry-After %d", i), send: jsonAnswer(429, `{"error":"`+hostSecret+`"}`, "Retry-After: "+w.wait), stays: true,
			status: 429, code: "rate_limit_exceeded", class: outcome.Throttled, quiet: true,
			also: func(t *testing.T, r *http.Response) {
				if n, err := strconv.Atoi(r.Header.Get("Retry-After")); err != nil || n < w.low || n > w.high {
					t.Errorf("Retry-After %q, want %d to %d", r.Header.Get("Retry-After"), w.low, w.high)
				}
			},
		})
	}
	runOddAnswers(t, rows)
}

// TestBadInputStreams has hosts stream what they should not.
func TestBadInputStreams(t *testing.T) {
	const fault = outcome.UpstreamFault
	tail := tokenEvent("a") + stopEvent + doneEvent
	good := func(name, s string) oddAnswer {
		return oddAnswer{name: name, send: events(s), stays: true, stream: true, status: 200, body: s}
	}
	failed := func(name, s string) oddAnswer {
		return oddAnswer{name: name, send: events(s), stays: true, stream: true, status: 502, code: "host_failed", class: fault}
	}
	judged := func(name, s string, status int, code, says string) oddAnswer {
		return oddAnswer{name: name, send: events(s), stays: true, stream: true, status: status, code: code, says: says, class: outcome.CallerFault}
	}
	long := "data: {\"x\":\"" + strings.Repeat("x", 3<<20) + "\"}\n\n"
	runOddAnswers(t, []oddAnswer{
		good("lines that end in CR", strings.ReplaceAll(tail, "\n", "\r")),
		good("lines that end in CRLF", strings.ReplaceAll(tail, "\n", "\r\n")),
		good("byte order mark", "\xef\xbb\xbf"+tail),
		good("no blank behind the colon", strings.ReplaceAll(tail, "data: ", "data:")),
		good("nothing but the end", doneEvent),
		good("garbage between events", "@@@\n\n\x00\xff\n\ndata\n\ndata: {nope\n\ndata: []\n\nid: 1\nretry: 5\n\n"+tail),
		good("comments", strings.Repeat(": ping\n\n", 100)+tail),
		good("comments of 100 KB", strings.Repeat(": ping\n\n", 13<<10)+tail),
		good("an event of 3 MB", long+tail),
		good("an event of 3 MB behind the first", tokenEvent("a")+long+stopEvent+doneEvent),
		good("deep nesting", "data: {\"x\":"+strings.Repeat("[", 10000)+strings.Repeat("]", 10000)+"}\n\n"+tail),
		good("events behind the end", tail+tokenEvent("b")),
		{name: "type in capitals", send: strings.Replace(events(tail), "text/event-stream", "Text/Event-Stream", 1), stays: true, stream: true, status: 200, body: tail},
		{name: "to the connection's end", send: framed("200 OK", "Content-Type: text/event-stream", tail), stream: true, status: 200, body: tail},
		{name: "for a plain request", send: events(tail), stays: true, status: 200, body: tail},
		{name: "plain for a stream", send: jsonAnswer(200, plainBody), stays: true, stream: true, status: 200, body: plainBody},
		{name: "HTML for a stream", send: framed("200 OK", "Content-Type: text/html\r\nContent-Length: 18", hostSecret), stays: true, stream: true, status: 502, code: "host_failed", class: fault},

		failed("nothing", ""),
		failed("garbage only", "@@@ "+hostSecret+"\n\ndata: "+hostSecret+"\n\n"),
		failed("comments only", ": "+hostSecret+"\n\n"),
		failed("half an event", "data: {\"choices\":[{\"delta\":{\"content\":\""+hostSecret),
		failed("error as a text", "data: {\"error\":\""+hostSecret+"\"}\n\n"),
		failed("error with code 500", "data: {\"error\":{\"message\":\""+hostSecret+"\",\"code\":500}}\n\n"),
		failed("error with a code in words", "data: {\"error\":{\"message\":\""+hostSecret+"\",\"code\":\"engine_dead\"}}\n\n"),
		failed("named error that is no JSON", "event: error\ndata: "+hostSecret+"\n\n"),
		failed("flat error of vLLM", "data: {\"object\":\"error\",\"message\":\""+hostSecret+"\",\"code\":503}\n\n"),
		failed("error behind the role", roleEvent+"data: {\"error\":{\"message\":\""+hostSecret+"\"}}\n\n"),
		failed("error of Anthropic's shape", "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\""+hostSecret+"\"}}\n\n"),
		judged("error with code 400", "data: {\"error\":{\"message\":\"too long\",\"type\":\"t\",\"code\":400}}\n\n", 400, "-", "too long"),
		judged("error with a quoted code", "data: {\"error\":{\"message\":\"too long\",\"code\":\"422\"}}\n\n", 422, "-", "too long"),
		judged("flat error with code 404", "data: {\"object\":\"error\",\"message\":\"no such adapter\",\"code\":404}\n\n", 404, "-", "no such adapter"),
		{name: "error with code 429", send: events("data: {\"error\":{\"message\":\"" + hostSecret + "\",\"code\":429}}\n\n"), stays: true, stream: true, status: 429, code: "rate_limit_exceeded", class: outcome.Throttled, quiet: true},
		{name: "error with code 401", send: events("data: {\"error\":{\"message\":\"" + hostSecret + "\",\"code\":401}}\n\n"), stays: true, stream: true, status: 502, code: "host_denied", class: outcome.UpstreamDenied, quiet: true},

		{name: "bad chunk size along with the first event", send: strings.TrimSuffix(events(tokenEvent("a")), lastChunk) + "zz\r\n", stream: true, status: 502, code: "host_failed", class: fault},
		{name: "chunk bomb behind the first event", send: strings.TrimSuffix(events(tokenEvent("a")), lastChunk) + "ffffffffff\r\n", stream: true, status: 200, body: tokenEvent("a"), lost: true, class: outcome.Truncated},
	})
}

// TestBadInputEndless has hosts that never come to an end.
func TestBadInputEndless(t *testing.T) {
	const limit, total = time.Second, 3 * time.Second
	silent := func(name, send string) oddAnswer {
		return oddAnswer{name: name, send: send, stays: true, stream: true, status: 504, code: "first_event_timeout", class: outcome.FirstByteTimeout}
	}
	for _, row := range []oddAnswer{
		silent("no byte", ""),
		silent("half a head", "HTTP/1.1 200 OK\r\nContent-"),
		silent("head without its last line", "HTTP/1.1 200 OK\nContent-Type: text/event-stream\n\n"),
		silent("interim answer only", "HTTP/1.1 100 Continue\r\n\r\n"),
		silent("head only", sseHead),
		silent("half an event", sseHead+"5\r\ndata:\r\n"),
		silent("role only", strings.TrimSuffix(events(roleEvent), lastChunk)),
		silent("half a chunk size", sseHead+"1"),
		silent("half a JSON body", framed("200 OK", "Content-Type: application/json\r\nContent-Length: 99", "{")),
		{name: "comments without end", send: framed("200 OK", "Content-Type: text/event-stream", ""), forever: strings.Repeat(": ping\n\n", 100), stream: true, status: 200, body: "*", lost: true, class: outcome.Stalled},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			runOddAnswers(t, []oddAnswer{row}, func(o *rigOptions) {
				o.set.FirstEvent, o.set.Gap, o.set.Total = limit, limit, total
				if row.forever != "" { // it has so much to send before anything goes out
					o.set.FirstEvent = total
				}
				o.forward.UpstreamIdle = time.Minute
			})
		})
	}
}
