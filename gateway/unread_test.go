package gateway

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// unread is more than sockets take in that nobody reads from: who sends it before he reads needs somebody who does.
const unread = 12 << 20

// TestRefusedAmidBody has callers hear why they are refused who send all of a body before they look for an answer, though the answer comes
// before its end.
func TestRefusedAmidBody(t *testing.T) {
	t.Parallel()
	up := newUpstream(t, answering)
	g := newRig(t, []string{up.url()}, aliased, func(o *rigOptions) {
		o.set.MaxBody, o.set.MaxUpload, o.keys = 1<<20, unread, gateOf(nil)
	})
	mine := bearer(teamKey)
	filler := strings.Repeat("x", unread)
	file := func(model string) string {
		return part("model", "", model) + part("file", "a.wav", filler[:unread/2]) + formEnd
	}
	for name, tc := range map[string]struct {
		send, code string
		status     int
	}{
		"large body":                 {post(chatPath, filler, mine), "request_too_large", 413},
		"large chunked body":         {"POST " + chatPath + " HTTP/1.1\r\nHost: gw\r\nTransfer-Encoding: chunked\r\n" + mine + "\r\n\r\n" + chunkedBody(filler, 1<<20), "request_too_large", 413},
		"large chunked body, no key": {"POST " + chatPath + " HTTP/1.1\r\nHost: gw\r\nTransfer-Encoding: chunked\r\n\r\n" + chunkedBody(filler, 1<<20), "Without a valid API key", 413},
		"large head":                 {"GET / HTTP/1.1\r\nHost: gw\r\nX-A: " + filler + "\r\n\r\n", "request_head_too_large", 431},
		"large body, no key":         {post(chatPath, filler), "invalid_api_key", 401},
		"large upload":               {upload(filler+filler[:100], mine), "request_too_large", 413},
		"large chunked upload":       {uploadHead(-1, mine) + chunkedBody(part("model", "", "whisper")+part("file", "a.wav", filler)+formEnd, 1<<20), "request_too_large", 413},
		"upload without a key":       {upload(file("whisper")), "invalid_api_key", 401},
		"upload to no model":         {upload(file("none"), mine), "model_not_found", 404},
		"upload not understood":      {upload("no form"+filler[:unread/2], mine), "invalid_multipart", 400},
		"malformed":                  {"GET / HTTP/1.1\r\nHost : gw\r\n\r\n" + filler, "malformed_request", 400},
	} {
		t.Run(name, func(t *testing.T) {
			for _, secure := range []bool{false, true} {
				if secure && !strings.HasSuffix(name, "body") {
					continue // it takes its time, and is the same to all
				}
				dial := g.dial
				if secure {
					dial = g.dialTLS
				}
				c := dial()
				c.t = t
				r, body, err := c.send(tc.send).whole()
				if r.StatusCode != tc.status || err != nil || !strings.Contains(body, tc.code) || !r.Close {
					t.Errorf("TLS %t: %d %s, %v, to be closed: %t; want %d %s", secure, r.StatusCode, body, err, r.Close, tc.status, tc.code)
				}
				if n, err := io.Copy(io.Discard, c.br); n > 0 || err != nil {
					t.Errorf("TLS %t: then came %d bytes, %v", secure, n, err)
				}
				_ = c.Close()
			}
		})
	}
}

// TestExpect answers callers who ask before they send: with one leave to do so, or at once with what speaks against it.
func TestExpect(t *testing.T) {
	t.Parallel()
	up := newUpstream(t, answering)
	g := newRig(t, []string{up.url()}, aliased, func(o *rigOptions) {
		o.set.MaxBody, o.set.MaxUpload, o.keys, o.noTLS = 1000, 10_000, gateOf(nil), true
	})
	const expect = "Expect: 100-continue"
	mine := bearer(teamKey)
	form := part("model", "", "whisper") + part("file", "a.wav", "sound") + formEnd
	ask := func(size int, headers ...string) string {
		return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: gw\r\n%s\r\nContent-Length: %d\r\n\r\n", chatPath, strings.Join(headers, "\r\n"), size)
	}
	const good = `{"model":"whisper","messages":[]}`
	for name, tc := range map[string]struct {
		head, body string // of a request; "" for the latter where there is no leave to send it
		status     int
		says       string
	}{
		"JSON":                        {ask(len(good), expect, mine), good, 200, "hello"},
		"in capitals":                 {ask(len(good), "EXPECT: 100-Continue", mine), good, 200, "hello"},
		"upload":                      {uploadHead(len(form), expect, mine), form, 200, "hello"},
		"chunked upload":              {uploadHead(-1, expect, mine), chunkedBody(form, 10), 200, "hello"},
		"unknown model":               {ask(len(`{"model":"none"}`), expect, mine), `{"model":"none"}`, 404, "model_not_found"},
		"JSON, too large":             {ask(1001, expect, mine), "", 413, "limits.max_body"},
		"upload, too large":           {uploadHead(10_001, expect, mine), "", 413, "limits.max_upload"},
		"no key":                      {ask(10, expect), "", 401, "invalid_api_key"},
		"another's key":               {ask(10, expect, bearer(strayText)), "", 401, "invalid_api_key"},
		"upload without a key":        {uploadHead(len(form), expect), "", 401, "invalid_api_key"},
		"too large, Anthropic's form": {strings.Replace(ask(1001, expect, mine), chatPath, "/v1/messages", 1), "", 413, `{"type":"error","error":{"type":"request_too_large"`},
		"wrong method":                {strings.Replace(ask(2, expect, mine), "POST", "PUT", 1), "{}", 405, "method_not_allowed"},
		"unknown path":                {strings.Replace(ask(2, expect, mine), chatPath, "/v2", 1), "{}", 404, "unknown_url"},
	} {
		t.Run(name, func(t *testing.T) {
			c := g.dial().send(tc.head)
			c.t = t
			r, err := http.ReadResponse(c.br, nil)
			if err != nil {
				t.Fatal(err)
			}
			if leave := r.StatusCode == http.StatusContinue; leave != (tc.body != "") {
				t.Fatalf("status %d before the body was sent", r.StatusCode)
			} else if leave {
				r = c.send(tc.body).response()
			}
			body, err := io.ReadAll(r.Body)
			if r.StatusCode != tc.status || err != nil || !strings.Contains(string(body), tc.says) {
				t.Errorf("%d %s, %v; want %d and %s", r.StatusCode, body, err, tc.status, tc.says)
			}
			if tc.body == "" && !r.Close {
				t.Error("the connection stays open, though the body may come")
			}
		})
	}
}
