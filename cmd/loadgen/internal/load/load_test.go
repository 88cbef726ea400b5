package load_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"headrace/cmd/loadgen/internal/load"
	"headrace/cmd/loadgen/internal/mock"
)

// startMock runs a mock until the test ends and returns its base URL.
func startMock(t *testing.T) string {
	t.Helper()
	m, err := mock.New(mock.Defaults())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return "http://" + l.Addr().String()
}

func target(t *testing.T, url string, pid int, usage bool) *load.Target {
	t.Helper()
	tg, err := load.NewTarget("it", url, pid, load.Request{Model: "mock-model", Usage: usage})
	if err != nil {
		t.Fatal(err)
	}
	return tg
}

// few is a plan that ends with its requests, not with its time.
func few(requests int) load.Plan {
	return load.Plan{Mock: mock.Defaults(), Conns: 4, Duration: time.Minute, Requests: requests}
}

func TestRun(t *testing.T) {
	base := startMock(t)
	for name, tc := range map[string]struct {
		set    func(*load.Plan)
		usage  bool
		tokens uint64
	}{
		"plain":              {func(*load.Plan) {}, false, 0},
		"streams":            {func(p *load.Plan) { p.Stream = true }, false, 200 * 64},
		"streams with usage": {func(p *load.Plan) { p.Stream = true }, true, 200 * 64},
		"batched":            {func(p *load.Plan) { p.Stream, p.Mock.Batch = true, 16 }, true, 200 * 64},
		"open loop":          {func(p *load.Plan) { p.Rate = 5000 }, false, 0},
		"one each, many":     {func(p *load.Plan) { p.Stream, p.PerWorker, p.Conns = true, 1, 200 }, false, 200 * 64},
		"large answer":       {func(p *load.Plan) { p.Mock.Body = 100_000 }, false, 0},
		"ramp, paced, spaced": {func(p *load.Plan) {
			p.Stream, p.Mock.Gap, p.Ramp, p.Mock.Tokens = true, 100*time.Microsecond, time.Millisecond, 2
		}, false, 200 * 2},
	} {
		t.Run(name, func(t *testing.T) {
			p := few(200)
			tc.set(&p)
			w, err := load.Run(t.Context(), target(t, base+"/v1/chat/completions", os.Getpid(), tc.usage), p, base)
			if err != nil {
				t.Fatal(err)
			}
			if w.Requests != 200 || w.Errors != 0 || w.Tokens != tc.tokens {
				t.Fatalf("%+v", w)
			}
			if w.P50 <= 0 || w.P999 < w.P50 || w.RPS <= 0 || w.CPURequest <= 0 || w.IdleRSS <= 0 || w.PeakRSS < w.IdleRSS {
				t.Errorf("%+v", w)
			}
			if p.Stream && (w.Transit50 <= 0 || w.TTFT50 <= 0 || w.CPUToken <= 0) {
				t.Errorf("%+v", w)
			}
		})
	}
}

// TestRunSeesWrongAnswers has a server that makes one mistake each.
func TestRunSeesWrongAnswers(t *testing.T) {
	base := startMock(t)
	now := time.Now()
	stamped := func(at time.Time) string {
		return fmt.Sprintf(`data: {"choices":[{"delta":{"content":"@%d"}}]}`+"\n\n", at.UnixNano())
	}
	token := func(n int) string { return stamped(now.Add(time.Hour + time.Duration(n))) } // not stale, however slow the test
	const usage = `data: {"choices":[],"usage":{"completion_tokens":3}}` + "\n\n"
	const done = "data: [DONE]\n\n"
	right := token(1) + token(2) + token(3)
	for name, tc := range map[string]struct {
		body   string
		stream bool
		want   string // in the error, "" for none
		silent bool   // usage is not asked for
	}{
		"right stream":         {right + usage + done, true, "", false},
		"comment lines pass":   {": ping\n\n" + right + ": ping\n\n" + usage + done, true, "", false},
		"CRLF lines pass":      {strings.ReplaceAll(right+usage+done, "\n", "\r\n"), true, "", false},
		"a token is lost":      {token(1) + token(3) + usage + done, true, "2 of 3 tokens", false},
		"a token too many":     {right + token(4) + usage + done, true, "4 of 3 tokens", false},
		"tokens out of order":  {token(2) + token(1) + token(3) + usage + done, true, "out of order", false},
		"a damaged token":      {strings.Replace(right, "@", "@x", 1) + usage + done, true, "damaged", false},
		"from a cache":         {strings.Repeat(stamped(now.Add(-time.Second)), 3) + usage + done, true, "older than its request", false},
		"no [DONE]":            {right + usage, true, "[DONE]: false", false},
		"more after [DONE]":    {right + usage + done + token(4), true, "after [DONE]", false},
		"usage is missing":     {right + done, true, "usage chunk", false},
		"usage without asking": {right + usage + done, true, "usage chunk: got true", true},
		"an error event":       {token(1) + `data: {"error":{"message":"broken"}}` + "\n\n" + done, true, "1 of 3 tokens", false},
		"right plain answer":   {`{"object":"chat.completion","content":"` + mock.Content(256) + `"}`, false, "", false},
		"text is shortened":    {`{"object":"chat.completion","content":"` + mock.Content(255) + `"}`, false, "not the mock's answer", false},
		"something else":       {`{"status":"ok"}`, false, "not the mock's answer", false},
		"a stream, not wanted": {right + done, false, "not the mock's answer", false},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				for i := 0; i < len(tc.body); i += 50 { // pieces that cut lines
					_, _ = w.Write([]byte(tc.body[i:min(i+50, len(tc.body))]))
					_ = http.NewResponseController(w).Flush()
				}
			}))
			defer s.Close()
			p := few(1)
			p.Conns, p.Stream, p.Mock.Tokens = 1, tc.stream, 3
			w, err := load.Run(t.Context(), target(t, s.URL+"/", 0, !tc.silent), p, base)
			if err != nil {
				t.Fatal(err)
			}
			if tc.want == "" && (w.Errors != 0 || w.Requests != 1) || tc.want != "" && (w.Errors != 1 || w.Requests != 0 || !strings.Contains(w.LastError, tc.want)) {
				t.Errorf("%d right, %d wrong: %q; want %q", w.Requests, w.Errors, w.LastError, tc.want)
			}
		})
	}
}

func TestRunSeesFailures(t *testing.T) {
	base := startMock(t)
	for name, tc := range map[string]struct {
		serve http.HandlerFunc
		want  string
	}{
		"status": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "busy", http.StatusTooManyRequests) }, "status 429: busy"},
		"cut off": {func(w http.ResponseWriter, _ *http.Request) {
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}, "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(tc.serve)
			defer s.Close()
			p := few(1)
			p.Conns, p.Stream = 1, true
			w, err := load.Run(t.Context(), target(t, s.URL+"/", 0, false), p, base)
			if err != nil || w.Errors != 1 || !strings.Contains(w.LastError, tc.want) {
				t.Errorf("%d errors, last %q, %v; want %q", w.Errors, w.LastError, err, tc.want)
			}
		})
	}
}

// TestRunEndsWithItsContext cuts a run short whose streams would last for minutes.
func TestRunEndsWithItsContext(t *testing.T) {
	base := startMock(t)
	p := load.Plan{Mock: mock.Defaults(), Stream: true, Conns: 8, Duration: time.Minute, Requests: 100}
	p.Mock.Gap, p.Mock.Tokens = 50*time.Millisecond, 2000
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := load.Run(ctx, target(t, base+"/v1/chat/completions", 0, true), p, base)
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > time.Minute {
		t.Errorf("ended after %v with %v", time.Since(start), err)
	}
}

func TestPlanBounds(t *testing.T) {
	if err := few(1).Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*load.Plan){
		"no connections":       func(p *load.Plan) { p.Conns = 0 },
		"too many connections": func(p *load.Plan) { p.Conns = load.MaxConnections + 1 },
		"no time":              func(p *load.Plan) { p.Duration = 0 },
		"too long":             func(p *load.Plan) { p.Duration = load.MaxDuration + 1 },
		"no requests":          func(p *load.Plan) { p.Requests = 0 },
		"too many requests":    func(p *load.Plan) { p.Requests = load.MaxRequests + 1 },
		"negative rate":        func(p *load.Plan) { p.Rate = -1 },
		"endless stream":       func(p *load.Plan) { p.Stream, p.Mock.Gap, p.Mock.Tokens = true, time.Second, 1000 },
		"mock out of bounds":   func(p *load.Plan) { p.Mock.Tokens = 0 },
	} {
		p := few(1)
		spoil(&p)
		if _, err := load.Run(t.Context(), &load.Target{}, p, ""); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestParseTarget(t *testing.T) {
	dir := t.TempDir()
	pidFile := filepath.Join(dir, "it.pid")
	if err := os.WriteFile(pidFile, fmt.Appendf(nil, "%d\n", os.Getpid()), 0o600); err != nil {
		t.Fatal(err)
	}
	req := load.Request{Model: "m"}
	for text, pid := range map[string]int{
		"a=http://127.0.0.1:1/x":                                0,
		"a=http://[::1]:3/x?a=b":                                0,
		fmt.Sprintf("a=http://127.0.0.1:1/x,%d", os.Getpid()):   os.Getpid(),
		fmt.Sprintf("a=http://127.0.0.1:1/v1/chat,%s", pidFile): os.Getpid(),
	} {
		got, err := load.ParseTarget(text, req)
		if err != nil || got.Name != "a" || got.PID != pid {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for name, bad := range map[string]string{
		"no name":         "=http://127.0.0.1:1/x",
		"no URL":          "a=",
		"no =":            "http://127.0.0.1:1/x",
		"a name":          "a=http://localhost:1/x",
		"another machine": "a=http://10.0.0.1:1/x",
		"any address":     "a=http://0.0.0.0:1/x",
		"https":           "a=https://127.0.0.1:1/x",
		"pid is a word":   "a=http://127.0.0.1:1/x,abc",
		"pid of nobody":   "a=http://127.0.0.1:1/x,999999999",
		"pid 0":           "a=http://127.0.0.1:1/x,0",
		"no pid file":     "a=http://127.0.0.1:1/x," + filepath.Join(dir, "none.pid"),
	} {
		if got, err := load.ParseTarget(bad, req); err == nil {
			t.Errorf("%s: %s gave %+v", name, bad, got)
		}
	}
}

func TestParseHeader(t *testing.T) {
	if n, v, err := load.ParseHeader("authorization:  Bearer a:b "); n != "Authorization" || v != "Bearer a:b" || err != nil {
		t.Errorf("%q %q %v", n, v, err)
	}
	for _, bad := range []string{"", "x", ": y"} {
		if n, v, err := load.ParseHeader(bad); err == nil {
			t.Errorf("%q gave %q %q", bad, n, v)
		}
	}
}

// TestRequest has net/http read what targets are sent.
func TestRequest(t *testing.T) {
	base := startMock(t)
	type seen struct{ auth, kind, body, extra string }
	got := make(chan seen, 1)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got <- seen{r.Header.Get("Authorization"), r.Header.Get("Content-Type"), string(b), r.Header.Get("X-Extra")}
		w.WriteHeader(http.StatusTeapot)
	}))
	defer s.Close()
	header := http.Header{"Authorization": {"Bearer mine"}, "X-Extra": {"one\r\ntwo: three"}}
	tg, err := load.NewTarget("it", s.URL+"/v1", 0, load.Request{Model: `m"1`, Usage: true, Header: header})
	if err != nil {
		t.Fatal(err)
	}
	p := few(1)
	p.Conns, p.Stream = 1, true
	if _, err := load.Run(t.Context(), tg, p, base); err != nil {
		t.Fatal(err)
	}
	r := <-got
	if r.auth != "Bearer mine" || r.kind != "application/json" || strings.ContainsAny(r.extra, "\r\n") ||
		!strings.Contains(r.body, `"model":"m\"1"`) || !strings.Contains(r.body, `"include_usage":true`) {
		t.Errorf("%+v", r)
	}
}

func TestMemoryPerConnection(t *testing.T) {
	w := load.Row{Conns: 10, IdleRSS: 1 << 20, PeakRSS: 2 << 20, IdleAnon: 1 << 20, PeakAnon: 1<<20 + 10<<10}
	if w.RSSPerConn() != 102.4 || w.AnonPerConn() != 1 {
		t.Errorf("%v, %v KiB", w.RSSPerConn(), w.AnonPerConn())
	}
}
