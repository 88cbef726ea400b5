package forward

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"headrace/router/endpoint"
	"headrace/router/outcome"
)

const patience = time.Minute

// serve starts a host that answers each request with what answer returns; "" closes the connection.
func serve(t testing.TB, answer func(nth int, r *http.Request, body []byte) string) *Host {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				br := bufio.NewReader(c)
				for n := 0; ; n++ {
					r, err := http.ReadRequest(br)
					if err != nil {
						return
					}
					body, err := io.ReadAll(r.Body)
					if err != nil {
						return
					}
					s := answer(n, r, body)
					if s == "" {
						return
					}
					_, _ = io.WriteString(c, s)
				}
			}()
		}
	}()
	return hostAt(t, "http://"+ln.Addr().String()+"/base/", Options{})
}

func hostAt(t testing.TB, url string, o Options) *Host {
	t.Helper()
	c := New(o)
	if err := c.Update([]endpoint.Endpoint{{ID: "x:y", BaseURL: url, APIKey: "k"}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdle)
	return c.Host("x:y")
}

// result is a whole answer.
type result struct {
	status int
	body   string
	err    error
	reused bool
}

func do(h *Host, req *Request) (r result) {
	var a Attempt
	var g Guard
	defer a.Finish()
	if r.err = a.Start(h, &g, req, time.Now()); r.err != nil {
		return r
	}
	by := time.Now().Add(patience)
	if r.err = a.AwaitHead(by); r.err != nil {
		return r
	}
	r.status, r.reused = a.Status, a.Reused
	for {
		err := a.More(by, time.Second)
		r.body += string(a.Unread())
		a.Consume(len(a.Unread()))
		if err != nil {
			if r.err = err; errors.Is(err, io.EOF) {
				r.err = nil
			}
			return r
		}
	}
}

func body(s ...string) *Request {
	r := &Request{Method: "POST", Path: "/p?q=1", Header: []byte("X-A: b\r\n")}
	for _, p := range s {
		r.Body = append(r.Body, []byte(p))
		r.Size += len(p)
	}
	return r
}

// TestAnswers reads every kind of answer that HTTP/1 knows.
func TestAnswers(t *testing.T) {
	long := strings.Repeat("h", 12_000)
	for name, tc := range map[string]struct {
		method, wire string
		status       int
		body         string
		again        bool // the connection serves the next request
		err          error
	}{
		"sized":                  {"POST", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, "hello", true, nil},
		"empty":                  {"POST", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, "", true, nil},
		"chunked":                {"POST", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 200, "hello", true, nil},
		"no content":             {"POST", "HTTP/1.1 204 No Content\r\n\r\n", 204, "", true, nil},
		"not modified":           {"GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", 304, "", true, nil},
		"HEAD":                   {"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", 200, "", true, nil},
		"interim answers first":  {"POST", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, "ok", true, nil},
		"to close":               {"POST", "HTTP/1.1 200 OK\r\n\r\nhello", 200, "hello", false, nil},
		"HTTP/1.0":               {"POST", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, "hello", false, nil},
		"will close":             {"POST", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello", 200, "hello", false, nil},
		"a long head":            {"POST", "HTTP/1.1 200 OK\r\nX-Long: " + long + "\r\nContent-Length: 2\r\n\r\nok", 200, "ok", true, nil},
		"too long a head":        {"POST", "HTTP/1.1 200 OK\r\nX-Long: " + strings.Repeat("h", 40_000) + "\r\nContent-Length: 2\r\n\r\nok", 0, "", false, &outcome.Error{}},
		"switching protocols":    {"POST", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", 101, "", false, &outcome.Error{}},
		"no status line":         {"POST", "hello\r\n\r\n", 0, "", false, &outcome.Error{}},
		"cut in the head":        {"POST", "HTTP/1.1 200 OK\r\nCont", 0, "", false, &outcome.Error{}},
		"cut in the body":        {"POST", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", 200, "hello", false, io.ErrUnexpectedEOF},
		"cut in a chunk":         {"POST", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello", 200, "hello", false, io.ErrUnexpectedEOF},
		"no last chunk":          {"POST", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", 200, "hello", false, io.ErrUnexpectedEOF},
		"more than its length":   {"POST", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloMORE", 200, "hello", false, nil},
		"more behind its chunks": {"POST", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n", 200, "hello", false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			closes := !tc.again || tc.err != nil
			h := serve(t, func(nth int, _ *http.Request, _ []byte) string {
				if nth > 0 {
					return "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nnew"
				}
				return tc.wire
			})
			if closes {
				h = serveOnce(t, tc.wire)
			}
			req := body("{}")
			if req.Method = tc.method; tc.method != "POST" {
				req.Body, req.Size = nil, 0
			}
			got := do(h, req)
			if tc.err == nil && got.err != nil || tc.err != nil && got.err == nil {
				t.Fatalf("error %v, want %v", got.err, tc.err)
			}
			if _, ok := errors.AsType[*outcome.Error](tc.err); ok {
				if oe, ok := errors.AsType[*outcome.Error](got.err); !ok || oe.Class != outcome.UpstreamFault || oe.Endpoint != "x:y" {
					t.Errorf("error %v", got.err)
				}
				return
			}
			if got.status != tc.status || got.body != tc.body || tc.err != nil && !errors.Is(got.err, tc.err) {
				t.Errorf("%d %q %v, want %d %q %v", got.status, got.body, got.err, tc.status, tc.body, tc.err)
			}
			if tc.again {
				if next := do(h, body("{}")); next.body != "new" || !next.reused {
					t.Errorf("the next request: %+v, over the same connection", next)
				}
			}
		})
	}
}

// serveOnce starts a host that answers each connection's first request and closes it.
func serveOnce(t testing.TB, wire string) *Host {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				_, _ = io.Copy(io.Discard, r.Body)
				_, _ = io.WriteString(c, wire)
			}
			_ = c.Close()
		}
	}()
	return hostAt(t, "http://"+ln.Addr().String(), Options{})
}

// TestRequestOnTheWire looks at what a host gets, short bodies and long ones, known lengths and none.
func TestRequestOnTheWire(t *testing.T) {
	type seen struct {
		r    *http.Request
		body []byte
	}
	got := make(chan seen, 1)
	h := serve(t, func(_ int, r *http.Request, b []byte) string {
		got <- seen{r, b}
		return "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
	})
	big := strings.Repeat("x", 3<<20)
	for name, tc := range map[string]struct {
		req  *Request
		want string
		size int64
	}{
		"in pieces":       {body("a", "", "bc"), "abc", 3},
		"long, in pieces": {body("a", big, "c"), "a" + big + "c", int64(len(big) + 2)},
		"empty POST":      {body(), "", 0},
		"GET":             {&Request{Method: "GET", Path: "/p?q=1", Header: []byte("X-A: b\r\n")}, "", 0},
		"upload":          {&Request{Method: "POST", Path: "/p?q=1", Header: []byte("X-A: b\r\n"), Upload: strings.NewReader(big), UploadSize: len(big)}, big, int64(len(big))},
		"chunked upload":  {&Request{Method: "POST", Path: "/p?q=1", Header: []byte("X-A: b\r\n"), Upload: strings.NewReader(big), UploadSize: -1}, big, -1},
		"empty upload":    {&Request{Method: "POST", Path: "/p?q=1", Header: []byte("X-A: b\r\n"), Upload: strings.NewReader(""), UploadSize: -1}, "", -1},
	} {
		t.Run(name, func(t *testing.T) {
			if r := do(h, tc.req); r.err != nil || r.status != 200 {
				t.Fatalf("%d %v", r.status, r.err)
			}
			s := <-got
			if string(s.body) != tc.want || s.r.ContentLength != tc.size {
				t.Errorf("%d bytes, announced as %d, want %d, %d", len(s.body), s.r.ContentLength, len(tc.want), tc.size)
			}
			for k, v := range map[string]string{"Authorization": "Bearer k", "User-Agent": "headrace", "X-A": "b"} {
				if len(s.r.Header[k]) != 1 || s.r.Header.Get(k) != v {
					t.Errorf("%s: %q, want %q once", k, s.r.Header[k], v)
				}
			}
			if s.r.RequestURI != "/base/p?q=1" {
				t.Errorf("request target %q", s.r.RequestURI)
			}
		})
	}
}

// TestUploadFails tells the caller's failing from the host's.
func TestUploadFails(t *testing.T) {
	h := serve(t, func(int, *http.Request, []byte) string { return "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" })
	broken := errors.New("broken")
	for name, req := range map[string]*Request{
		"reader fails":         {Method: "POST", Path: "/", Upload: io.MultiReader(strings.NewReader("abc"), failing{broken}), UploadSize: -1},
		"less than announced":  {Method: "POST", Path: "/", Upload: strings.NewReader("abc"), UploadSize: 5},
		"more than announced":  {Method: "POST", Path: "/", Upload: strings.NewReader("abcdef"), UploadSize: 5},
		"nothing of something": {Method: "POST", Path: "/", Upload: strings.NewReader(""), UploadSize: 5},
	} {
		t.Run(name, func(t *testing.T) {
			r := do(h, req)
			oe, ok := errors.AsType[*outcome.Error](r.err)
			if !ok || oe.Class != outcome.CallerFault {
				t.Fatalf("%d %q %v", r.status, r.body, r.err)
			}
			if _, ok := errors.AsType[*ErrUpload](r.err); !ok {
				t.Errorf("%v does not say that the upload failed", r.err)
			}
		})
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
