package fakecloud_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"syscall"
	"testing"
	"time"

	"headrace/providers/fakecloud"
)

// silence is how long a test listens to a host that should say nothing.
const silence = 60 * time.Millisecond

// raw sends a chat request over a bare connection and reads until the host ends it or, once enough says so, until it
// falls silent; a nil enough waits for the end.
func raw(t *testing.T, h *fakecloud.Host, body string, enough func([]byte) bool) (answer []byte, silent bool, err error) {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(h.URL(), "http://"))
	if err != nil {
		return nil, false, err
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, "POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64<<10)
	for {
		patience := time.Minute
		if enough != nil && enough(answer) {
			patience = silence
		}
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(buf)
		answer = append(answer, buf[:n]...)
		switch ne := net.Error(nil); {
		case errors.Is(err, io.EOF):
			return answer, false, nil
		case errors.As(err, &ne) && ne.Timeout():
			return answer, true, nil
		case err != nil:
			return answer, false, err
		}
	}
}

// contains is enough once n events have come.
func contains(n int) func([]byte) bool {
	return func(answer []byte) bool { return bytes.Count(answer, []byte("data: ")) >= n }
}

// split parses as much of an answer as came; err is of a body that broke off.
func split(t *testing.T, answer []byte) (head *http.Response, body []byte, err error) {
	t.Helper()
	r := bufio.NewReader(bytes.NewReader(answer))
	head, err = http.ReadResponse(r, nil)
	for err == nil && head.StatusCode < 200 {
		head, err = http.ReadResponse(r, nil)
	}
	if err != nil {
		t.Fatalf("%v in %.300q", err, answer)
	}
	defer head.Body.Close()
	body, err = io.ReadAll(head.Body)
	return head, body, err
}

const prompt = "break, please"

// said joins the content of all whole events in a body.
func said(body []byte) (text string) {
	for line := range strings.SplitSeq(string(body), "\n") {
		var c chunk
		data, ok := strings.CutPrefix(line, "data: ")
		if ok && json.Unmarshal([]byte(data), &c) == nil && len(c.Choices) > 0 && c.Choices[0].Delta.Content != nil {
			text += *c.Choices[0].Delta.Content
		}
	}
	return text
}

// TestEveryFault observes each kind over a bare connection.
func TestEveryFault(t *testing.T) {
	type seen struct {
		raw     []byte
		err     error
		timeout bool
		head    *http.Response
		body    []byte
		bodyErr error
	}
	status := func(code int, contentType, part string) func(*testing.T, seen) {
		return func(t *testing.T, s seen) {
			t.Helper()
			if s.head.StatusCode != code || s.head.Header.Get("Content-Type") != contentType || !bytes.Contains(s.body, []byte(part)) || s.bodyErr != nil {
				t.Errorf("%d %v %q %v", s.head.StatusCode, s.head.Header, s.body, s.bodyErr)
			}
		}
	}
	whole := func(t *testing.T, s seen) {
		t.Helper()
		if got := said(s.body); got != fakecloud.Answer(model, prompt, 20) || s.bodyErr != nil || !bytes.HasSuffix(s.body, []byte("data: [DONE]\n\n")) {
			t.Errorf("%q, %v", got, s.bodyErr)
		}
	}
	// after checks that five tokens came and how it went on.
	after := func(reset, timeout, clean bool) func(*testing.T, seen) {
		return func(t *testing.T, s seen) {
			t.Helper()
			if got := said(s.body); got != fakecloud.Answer(model, prompt, 5) {
				t.Errorf("text %q", got)
			}
			if bytes.Contains(s.body, []byte("[DONE]")) || bytes.Contains(s.body, []byte(`"finish_reason":"`)) {
				t.Error("it came to an end")
			}
			if errors.Is(s.err, syscall.ECONNRESET) != reset || s.timeout != timeout || (s.bodyErr == nil) != clean {
				t.Errorf("error %v, timeout %v, body %v", s.err, s.timeout, s.bodyErr)
			}
		}
	}
	cases := map[fakecloud.Kind]struct {
		noHead bool // there is nothing to parse
		check  func(*testing.T, seen)
		enough func([]byte) bool // of the kinds that fall silent
	}{
		fakecloud.Refuse: {noHead: true, check: func(t *testing.T, s seen) {
			if !errors.Is(s.err, syscall.ECONNREFUSED) {
				t.Errorf("error %v", s.err)
			}
		}},
		fakecloud.Hang: {noHead: true, check: func(t *testing.T, s seen) {
			if len(s.raw) > 0 || !s.timeout {
				t.Errorf("%q, %v", s.raw, s.err)
			}
		}, enough: func([]byte) bool { return true }},
		fakecloud.Reset: {noHead: true, check: func(t *testing.T, s seen) {
			if len(s.raw) > 0 || !errors.Is(s.err, syscall.ECONNRESET) {
				t.Errorf("%q, %v", s.raw, s.err)
			}
		}},
		fakecloud.ResetHead: {check: func(t *testing.T, s seen) {
			if s.head.StatusCode != 200 || len(s.body) > 0 || !errors.Is(s.err, syscall.ECONNRESET) {
				t.Errorf("%q, %v", s.raw, s.err)
			}
		}},
		fakecloud.Garbage: {noHead: true, check: func(t *testing.T, s seen) {
			if len(s.raw) == 0 || bytes.HasPrefix(s.raw, []byte("HTTP/")) {
				t.Errorf("%q", s.raw)
			}
		}},
		fakecloud.Throttle: {check: func(t *testing.T, s seen) {
			status(429, "application/json", `"code":429`)(t, s)
			if s.head.Header.Get("Retry-After") != "7" {
				t.Errorf("Retry-After %q", s.head.Header.Get("Retry-After"))
			}
		}},
		fakecloud.Error500:    {check: status(500, "application/json", `{"error":{`)},
		fakecloud.Unavailable: {check: status(503, "application/json", `{"error":{`)},
		fakecloud.HTML502:     {check: status(502, "text/html", "<h1>502")},
		fakecloud.HTML200:     {check: status(200, "text/html", "<!DOCTYPE html>")},
		fakecloud.FlatError:   {check: status(200, "application/json", `{"object":"error"`)},
		fakecloud.SlowHead:    {check: whole},
		fakecloud.HalfOpen:    {check: after(false, true, false), enough: contains(6)},
		fakecloud.ResetStream: {check: after(true, false, false)},
		fakecloud.EOFStream:   {check: after(false, false, false)},
		fakecloud.CutClean:    {check: after(false, false, true)},
		fakecloud.CutEvent: {check: func(t *testing.T, s seen) {
			after(false, false, false)(t, s)
			if bytes.HasSuffix(s.body, []byte("\n\n")) {
				t.Errorf("it ends with a whole event: %q", s.body)
			}
		}},
		fakecloud.Stall: {check: after(false, true, false), enough: contains(6)},
		fakecloud.RoleOnly: {check: func(t *testing.T, s seen) {
			if !s.timeout || strings.Count(string(s.body), "data: ") != 1 || !bytes.Contains(s.body, []byte(`"role":"assistant"`)) {
				t.Errorf("%q", s.body)
			}
		}, enough: contains(1)},
		fakecloud.GarbageEvent: {check: func(t *testing.T, s seen) {
			after(false, false, false)(t, s)
			if !bytes.Contains(s.body, []byte("\x00\xff\xfe")) {
				t.Errorf("no garbage: %q", s.body)
			}
		}},
		fakecloud.ErrorEvent: {check: func(t *testing.T, s seen) {
			if got := said(s.body); got != fakecloud.Answer(model, prompt, 5) || !bytes.Contains(s.body, []byte(`data: {"error":{"message":`)) || !bytes.HasSuffix(s.body, []byte("data: [DONE]\n\n")) {
				t.Errorf("%q", s.body)
			}
		}},
		fakecloud.NoDone: {check: func(t *testing.T, s seen) {
			if said(s.body) != fakecloud.Answer(model, prompt, 20) || bytes.Contains(s.body, []byte("[DONE]")) || !bytes.Contains(s.body, []byte(`"finish_reason":"length"`)) || s.bodyErr != nil {
				t.Errorf("%q", s.body)
			}
		}},
		fakecloud.UsageInLast: {check: func(t *testing.T, s seen) {
			whole(t, s)
			cs := chunks(t, s.body)
			if last := cs[len(cs)-1]; len(last.Choices) != 1 || last.Usage == nil || last.Usage.Completion != 20 {
				t.Errorf("last chunk %+v", last)
			}
		}},
		fakecloud.PlainJSON: {check: status(200, "application/json", `"object":"chat.completion"`)},
		fakecloud.ShortLength: {check: func(t *testing.T, s seen) {
			if s.head.ContentLength != 100 || len(s.raw) < 1000 {
				t.Errorf("Content-Length %d, %d bytes", s.head.ContentLength, len(s.raw))
			}
		}},
		fakecloud.LongLength: {check: func(t *testing.T, s seen) {
			if s.head.ContentLength != 1<<20 || !errors.Is(s.bodyErr, io.ErrUnexpectedEOF) || s.timeout {
				t.Errorf("Content-Length %d, %v", s.head.ContentLength, s.bodyErr)
			}
		}},
		fakecloud.Interim: {check: func(t *testing.T, s seen) {
			whole(t, s)
			if !bytes.HasPrefix(s.raw, []byte("HTTP/1.1 102 ")) || !bytes.Contains(s.raw, []byte("\r\n\r\nHTTP/1.1 103 ")) {
				t.Errorf("%.200q", s.raw)
			}
		}},
		fakecloud.HugeHeader: {check: func(t *testing.T, s seen) {
			whole(t, s)
			if n := bytes.Index(s.raw, []byte("\r\n\r\n")); n < 64<<10 {
				t.Errorf("the head has %d bytes", n)
			}
		}},
		fakecloud.CRLF: {check: func(t *testing.T, s seen) {
			if bytes.Count(s.body, []byte("\n")) != bytes.Count(s.body, []byte("\r\n")) || !bytes.HasSuffix(s.body, []byte("data: [DONE]\r\n\r\n")) {
				t.Errorf("%q", s.body)
			}
		}},
		fakecloud.MultiLine: {check: func(t *testing.T, s seen) {
			first, _, _ := strings.Cut(string(s.body), "\n\n")
			lines := strings.Split(first, "\n")
			if len(lines) != 2 || !json.Valid([]byte(strings.ReplaceAll(first, "data: ", ""))) {
				t.Errorf("first event %q", first)
			}
		}},
		fakecloud.NoSpace: {check: func(t *testing.T, s seen) {
			if bytes.Contains(s.body, []byte("\ndata: ")) || !bytes.HasPrefix(s.body, []byte(`data:{"id"`)) {
				t.Errorf("%q", s.body)
			}
		}},
		fakecloud.Comments: {check: func(t *testing.T, s seen) {
			whole(t, s)
			if n := bytes.Count(s.body, []byte(": still here\n\n")); n != bytes.Count(s.body, []byte("data: ")) && n < 20 {
				t.Errorf("%d comments", n)
			}
		}},
		fakecloud.BOM: {check: func(t *testing.T, s seen) {
			if !bytes.HasPrefix(s.body, []byte("\xef\xbb\xbfdata: ")) || bytes.Count(s.body, []byte("\xef\xbb\xbf")) != 1 {
				t.Errorf("%.60q", s.body)
			}
		}},
		fakecloud.Ragged: {check: func(t *testing.T, s seen) {
			whole(t, s)
			cut := 0
			for _, w := range writes(t, s.raw) {
				if !bytes.HasSuffix(w, []byte("\n\n")) {
					cut++
				}
			}
			if cut < 5 {
				t.Errorf("%d writes end inside an event", cut)
			}
		}},
		fakecloud.Batched: {check: func(t *testing.T, s seen) {
			whole(t, s)
			for i, w := range writes(t, s.raw) {
				if n := bytes.Count(w, []byte("data: ")); n != 8 && i < 2 {
					t.Errorf("%d events in write %d", n, i)
				}
			}
		}},
		fakecloud.SplitChars: {check: func(t *testing.T, s seen) {
			whole(t, s)
			cut := 0
			for _, w := range writes(t, s.raw) {
				if w[0]&0xc0 == 0x80 {
					cut++
				}
			}
			if cut == 0 {
				t.Error("no character is cut")
			}
		}},
		fakecloud.Drip: {check: func(t *testing.T, s seen) {
			whole(t, s)
			for _, w := range writes(t, s.raw) {
				if len(w) != 1 {
					t.Fatalf("a write of %d bytes", len(w))
				}
			}
		}},
	}
	for _, k := range fakecloud.Kinds() {
		t.Run(k.String(), func(t *testing.T) {
			t.Parallel()
			tc, ok := cases[k]
			if !ok {
				t.Fatal("nobody looks at this kind")
			}
			noise := fakecloud.Fault{Kind: k, After: 5}
			switch k {
			case fakecloud.Throttle:
				noise.Delay = 7 * time.Second
			case fakecloud.SlowHead:
				noise.Delay = silence / 2
			case fakecloud.Drip:
				noise.Delay = time.Microsecond
			default:
			}
			parsed, err := fakecloud.ParseFault(noise.String())
			if err != nil || parsed != noise {
				t.Errorf("%q is read as %+v, %v", noise.String(), parsed, err)
			}
			h := start(t, fakecloud.HostConfig{})
			if err := h.SetFaults(noise); err != nil {
				t.Fatal(err)
			}
			var s seen
			began := time.Now()
			s.raw, s.timeout, s.err = raw(t, h, chatBody(prompt, `,"max_tokens":20,"stream":true,"stream_options":{"include_usage":true}`), tc.enough)
			if k == fakecloud.SlowHead && time.Since(began) < noise.Delay {
				t.Error("the head was not late")
			}
			if !tc.noHead {
				s.head, s.body, s.bodyErr = split(t, s.raw)
			}
			tc.check(t, s)
			if k != fakecloud.Refuse {
				wait(t, h, func(s fakecloud.Stats) bool { return s.Faults == 1 })
			}

			// Well again, at once.
			if err := h.SetFaults(); err != nil {
				t.Fatal(err)
			}
			status, body, _ := do(t, h, http.MethodPost, "/v1/chat/completions", chatBody(prompt, `,"max_tokens":20,"stream":true`))
			if status != 200 || said(body) != fakecloud.Answer(model, prompt, 20) {
				t.Errorf("afterwards: %d %q", status, body)
			}
			balanced(t, wait(t, h, func(s fakecloud.Stats) bool { return s.Running == 0 }))
		})
	}
}

// writes takes a chunked body apart: each write of the host is one chunk.
func writes(t *testing.T, answer []byte) (all [][]byte) {
	t.Helper()
	_, body, _ := bytes.Cut(answer, []byte("\r\n\r\n"))
	if b, err := io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(body))); err != nil || len(b) == 0 {
		t.Fatalf("no chunked body: %v", err)
	}
	for len(body) > 0 {
		var n int
		if _, err := fmt.Sscanf(string(body[:min(len(body), 10)]), "%x\r\n", &n); err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return all
		}
		_, body, _ = bytes.Cut(body, []byte("\r\n"))
		all = append(all, body[:n])
		body = body[n+2:]
	}
	return all
}

// TestFaultsOfPlainAnswers looks at the kinds that cut a body, where it is no stream.
func TestFaultsOfPlainAnswers(t *testing.T) {
	for k, want := range map[fakecloud.Kind]struct {
		err     error
		timeout bool
		short   bool // the body is shorter than its Content-Length
	}{
		fakecloud.ResetStream: {syscall.ECONNRESET, false, true},
		fakecloud.EOFStream:   {nil, false, true},
		fakecloud.CutClean:    {nil, false, false},
		fakecloud.Stall:       {nil, true, true},
		fakecloud.HalfOpen:    {nil, true, true},
		fakecloud.LongLength:  {nil, false, true},
	} {
		t.Run(k.String(), func(t *testing.T) {
			h := start(t, fakecloud.HostConfig{})
			if err := h.SetFaults(fakecloud.Fault{Kind: k, After: 2}); err != nil {
				t.Fatal(err)
			}
			var enough func([]byte) bool
			if want.timeout {
				enough = func(answer []byte) bool { return bytes.Contains(answer, []byte(`"message":`)) }
			}
			answer, timeout, err := raw(t, h, chatBody(prompt, `,"max_tokens":20`), enough)
			head, body, bodyErr := split(t, answer)
			if !errors.Is(err, want.err) || timeout != want.timeout || (bodyErr != nil) != want.short || head.StatusCode != 200 || json.Valid(body) && k != fakecloud.LongLength {
				t.Errorf("%q, %v, timeout %v, body %v", body, err, timeout, bodyErr)
			}
		})
	}
}
