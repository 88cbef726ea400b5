package gateway

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"headrace/router/outcome"
)

// callerSecret goes along with requests as a credential, hostSecret stands in what hosts send where
// nobody may see it, and upstreamKey is what the gateway shows to hosts.
const (
	callerSecret = "sk-of-the-caller"
	hostSecret   = "SECRET-OF-THE-HOST"
	upstreamKey  = "upstream-key"
)

// badInput is something odd that a caller sends, and what must come of it.
type badInput struct {
	name   string
	send   string
	status int    // 0 when the connection just ends
	code   string // of the error; "" for a good answer
	param  string // of the error
	says   string // part of the error's message, or of a good answer's body
	then   after
	seen   string // method and target of the one request that a host gets because of it, "" for none
	also   func(t *testing.T, r *http.Response)
}

// after is how a connection must be found behind an answer.
type after uint8

const (
	usable after = iota // it takes another request
	closed
	departs // the caller ends its sending side behind what it sends; then it is closed
)

// badCaller keeps every byte it gets.
type badCaller struct {
	*client
	raw bytes.Buffer
}

func (g *rig) badCaller(t *testing.T) *badCaller {
	t.Helper()
	c := &badCaller{client: g.dial()}
	c.t = t
	c.br = bufio.NewReader(io.TeeReader(c.Conn, &c.raw))
	return c
}

// next reads a final response with its body. It returns nil at the connection's end.
func (c *badCaller) next(method string) (*http.Response, string, error) {
	c.t.Helper()
	if _, err := c.br.Peek(1); ended(err) {
		return nil, "", nil
	}
	for {
		r, err := http.ReadResponse(c.br, &http.Request{Method: method})
		if err != nil {
			c.t.Fatalf("read the response: %v, after %q", err, c.raw.String())
		}
		if r.StatusCode >= 200 {
			b, err := io.ReadAll(r.Body)
			return r, string(b), err
		}
	}
}

// again sends a good request, the last on the connection, and reads the response.
func (c *badCaller) again() (*http.Response, string, error) {
	c.t.Helper()
	c.send(chat(false, "Connection: close"))
	return c.next("POST")
}

// ended tells whether err is what a reader gets from a closed connection, in order or not.
func ended(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) }

// checkEnd makes sure that nothing more comes.
func (c *badCaller) checkEnd() {
	c.t.Helper()
	switch rest, err := io.ReadAll(c.br); {
	case len(rest) > 0:
		c.t.Errorf("behind the answer came %q", rest)
	case err != nil && !ended(err):
		c.t.Errorf("the connection was not closed: %v", err)
	}
}

// checkWire makes sure that body is an error object of OpenAI's shape with all its members.
func checkWire(t *testing.T, r *http.Response, body, code, param, says string) {
	t.Helper()
	var b struct{ Error map[string]json.RawMessage }
	if err := json.Unmarshal([]byte(body), &b); err != nil {
		t.Fatalf("status %d, not an error of OpenAI's shape: %q (%v)", r.StatusCode, body, err)
	}
	for _, name := range []string{"message", "type", "param", "code"} {
		if _, ok := b.Error[name]; !ok || len(b.Error) != 4 {
			t.Errorf("%d members, %s among them: %t: %s", len(b.Error), name, ok, body)
		}
	}
	e := parseError(t, body)
	gotParam := ""
	if e.Param != nil {
		gotParam = *e.Param
	}
	if e.Code != code || gotParam != param || !strings.Contains(e.Message, says) {
		t.Errorf("code %q, param %q, message %q; want %q, %q and %q in the message", e.Code, gotParam, e.Message, code, param, says)
	}
	if ct := r.Header.Get("Content-Type"); ct != "application/json" {
		t.Errorf("Content-Type %q", ct)
	}
	want := map[bool]string{true: "server_error", false: "invalid_request_error"}[r.StatusCode >= 500]
	if r.StatusCode == 429 {
		want = "rate_limit_error"
	}
	if e.Type != want {
		t.Errorf("type %q, want %q", e.Type, want)
	}
	checkDocumented(t, r.StatusCode, code)
}

// documented is what users are told of errors.
var documented = sync.OnceValues(func() (string, error) {
	b, err := os.ReadFile("../docs/errors.md")
	return string(b), err
})

// checkDocumented makes sure that the list of errors has a line with both status and code.
func checkDocumented(t *testing.T, status int, code string) {
	t.Helper()
	doc, err := documented()
	if err != nil {
		t.Fatal(err)
	}
	switch code {
	case "duplicate_key", "invalid_type", "json_too_deep":
		code = "invalid_json" // the line that speaks for them
	}
	for line := range strings.Lines(doc) {
		if strings.HasPrefix(line, fmt.Sprintf("| %d |", status)) && strings.Contains(line, "`"+code+"`") {
			return
		}
	}
	t.Errorf("docs/errors.md has no line for %d %s", status, code)
}

// TestClassesAreDocumented makes sure that users are told of every class, and what their callers get.
func TestClassesAreDocumented(t *testing.T) {
	doc, err := documented()
	if err != nil {
		t.Fatal(err)
	}
	for class := outcome.Success; class <= outcome.Outrun; class++ {
		_, row, ok := strings.Cut(doc, "\n| `"+class.String()+"` |")
		row, _, _ = strings.Cut(row, "\n")
		switch e := errAttempt(&outcome.Error{Class: class}); {
		case !ok:
			t.Errorf("docs/errors.md has no line for the class %s", class)
		case e.Status == 499, class == outcome.CallerFault, class == outcome.Moved: // no error of ours
		case !strings.Contains(row, fmt.Sprintf("| %d `%s`", e.Status, e.Code)):
			t.Errorf("docs/errors.md does not say that callers get %d %s of %s: %s", e.Status, e.Code, class, row)
		}
	}
}

// checkPrivate makes sure that raw holds nothing that a caller or a log must not see.
func checkPrivate(t *testing.T, what, raw string, secrets ...string) {
	t.Helper()
	for _, s := range secrets {
		if i := strings.Index(raw, s); i >= 0 {
			t.Errorf("%s holds %q: …%q", what, s, raw[max(0, i-80):min(len(raw), i+80)])
		}
	}
}

// badHost is a good host that notes what it gets.
type badHost struct {
	*upstream
	mu   sync.Mutex // guards seen
	seen []string
}

func newBadHost(t *testing.T) *badHost {
	h := &badHost{}
	h.upstream = newUpstream(t, func(c *upConn, r *upRequest) bool {
		var head bytes.Buffer
		_ = r.Header.Write(&head)
		checkPrivate(t, "a request to the host", head.String()+r.RequestURI, callerSecret)
		if !strings.Contains(head.String(), "Authorization: Bearer "+upstreamKey) {
			t.Errorf("a request without the gateway's key: %s", head.String())
		}
		h.mu.Lock()
		h.seen = append(h.seen, r.Method+" "+r.RequestURI)
		h.mu.Unlock()
		return answering(c, r)
	})
	return h
}

// take returns what was seen since the last call.
func (h *badHost) take() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := strings.Join(h.seen, ", ")
	h.seen = nil
	return s
}

// run sends one row and makes sure that the gateway is none the worse for it.
func (in *badInput) run(t *testing.T, g *rig, h *badHost) {
	h.take()
	c := g.badCaller(t)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = io.WriteString(c.Conn, in.send) // fails when the answer came before the end
		if in.then == departs {
			_ = c.tcp.CloseWrite()
		}
	}()
	method, _, _ := strings.Cut(strings.TrimLeft(in.send, "\r\n"), " ")
	r, body, err := c.next(method)
	switch {
	case r == nil && in.status != 0:
		t.Fatalf("no answer, want %d %s", in.status, in.code)
	case r == nil:
	case r.StatusCode != in.status || err != nil:
		t.Fatalf("status %d, want %d; error %v, body %q", r.StatusCode, in.status, err, body)
	case in.code != "":
		checkWire(t, r, body, in.code, in.param, in.says)
	case !strings.Contains(body, in.says):
		t.Errorf("body %q, want in it %q", body, in.says)
	}
	if r != nil && !strings.HasPrefix(r.Header.Get("X-Request-Id"), "req_") {
		t.Errorf("X-Request-Id %q", r.Header.Get("X-Request-Id"))
	}
	if in.also != nil && r != nil {
		in.also(t, r)
	}
	if got := h.take(); got != in.seen {
		t.Errorf("the host got %q, want %q", got, in.seen)
	}
	if in.then == usable {
		wait(t, sent, "everything to be sent")
		if r, body, err := c.again(); r == nil || r.StatusCode != 200 || body != plainBody || err != nil {
			t.Errorf("the connection takes no other request: %v, %q, %v", r, body, err)
		}
	}
	c.checkEnd()
	wait(t, sent, "everything to be sent")
	checkPrivate(t, "the answer", c.raw.String(), callerSecret, upstreamKey)
	if r, body, err := g.do(chat(false)); r.StatusCode != 200 || body != plainBody || err != nil {
		t.Errorf("a good request gets %d %q %v", r.StatusCode, body, err)
	}
}

// runBadInputs sends all rows to one gateway.
func runBadInputs(t *testing.T, rows []badInput, change ...func(*rigOptions)) {
	h := newBadHost(t)
	change = append([]func(*rigOptions){func(o *rigOptions) {
		o.noTLS = true
		o.tempDir = t.TempDir()
		o.set.MaxBody, o.set.MaxUpload = 64<<10, 32<<10
	}}, change...)
	g := newRig(t, []string{h.url()}, change...)
	names := map[string]bool{}
	for i := range rows {
		if names[rows[i].name] {
			t.Fatalf("two rows are called %q", rows[i].name)
		}
		names[rows[i].name] = true
		t.Run(rows[i].name, func(t *testing.T) { rows[i].run(t, g, h) })
	}
	checkPrivate(t, "the log", g.logs.String(), callerSecret, upstreamKey)
	checkNoPanic(t, g)
}

func checkNoPanic(t *testing.T, g *rig) {
	t.Helper()
	if log := g.logs.String(); strings.Contains(log, "panic") {
		t.Errorf("something panicked: %s", log)
	}
}

// Pieces of requests.
const (
	goodBody  = `{"model":"m1","messages":[]}`
	getModels = "GET /v1/models HTTP/1.1\r\n"
	postChat  = "POST " + chatPath + " HTTP/1.1\r\nHost: gw\r\nContent-Type: application/json\r\nAuthorization: Bearer " + callerSecret + "\r\n"
	seenChat  = "POST " + chatPath
)

// sizedMessage frames body with a Content-Length, chunkedMessage as one chunk.
func sizedMessage(body string) string {
	return fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body)
}

func chunkedMessage(body string) string {
	return fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(body), body)
}
