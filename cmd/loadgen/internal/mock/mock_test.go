package mock_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"headrace/cmd/loadgen/internal/mock"
)

// start runs a mock on a free port until the test ends and returns its base URL.
func start(t *testing.T, s mock.Settings) string {
	t.Helper()
	m, err := mock.New(s)
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
		http.DefaultClient.CloseIdleConnections()
	})
	return "http://" + l.Addr().String()
}

func post(t *testing.T, url string, body io.Reader) *http.Response {
	t.Helper()
	res, err := http.Post(url, "application/json", body)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = res.Body.Close() })
	return res
}

// chunk is what a client reads of one SSE event.
type chunk struct {
	Object  string
	Model   string
	Choices []struct {
		Delta struct {
			Role    string
			Content *string
		}
		Finish *string `json:"finish_reason"`
	}
	Usage *struct {
		Completion int `json:"completion_tokens"`
	}
}

// TestStream has net/http and encoding/json judge what the mock writes by hand.
func TestStream(t *testing.T) {
	for name, tc := range map[string]struct {
		set   func(*mock.Settings)
		body  string
		usage bool
	}{
		"plain":                 {func(*mock.Settings) {}, `{"stream":true}`, false},
		"usage asked for":       {func(*mock.Settings) {}, `{"stream": true, "stream_options": {"include_usage": true}}`, true},
		"usage not wanted":      {func(*mock.Settings) {}, `{"stream":true,"stream_options":{"include_usage":false}}`, false},
		"usage always":          {func(s *mock.Settings) { s.Usage = true }, `{"stream":true}`, true},
		"batches with a rest":   {func(s *mock.Settings) { s.Batch = 7 }, `{"stream":true}`, false},
		"gap":                   {func(s *mock.Settings) { s.Gap, s.Tokens = time.Millisecond, 3 }, `{"stream":true}`, false},
		"odd name of a model":   {func(s *mock.Settings) { s.Model = "a\"b\\c/d" }, `{"stream":true}`, false},
		"one token after delay": {func(s *mock.Settings) { s.Delay, s.Tokens = time.Millisecond, 1 }, `{"stream":true}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := mock.Defaults()
			tc.set(&s)
			url := start(t, s) + "/v1/chat/completions"
			for range 2 { // the second time over the same connection
				began := time.Now()
				res := post(t, url, strings.NewReader(tc.body))
				if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != "text/event-stream" {
					t.Fatalf("status %s, %v", res.Status, res.Header)
				}
				readStream(t, res.Body, s, tc.usage, began)
			}
		})
	}
}

func readStream(t *testing.T, r io.Reader, s mock.Settings, wantUsage bool, began time.Time) {
	t.Helper()
	tokens, finished, usage, done := 0, false, false, false
	last := began.UnixNano()
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if lines.Text() == "" {
			continue
		}
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok || done {
			t.Fatalf("line %q, after [DONE]: %v", lines.Text(), done)
		}
		if data == "[DONE]" {
			done = true
			continue
		}
		var c chunk
		if err := json.Unmarshal([]byte(data), &c); err != nil || c.Object != "chat.completion.chunk" || c.Model != s.Model {
			t.Fatalf("event %s: %v", data, err)
		}
		if c.Usage != nil {
			usage = true
			if c.Usage.Completion != s.Tokens || len(c.Choices) != 0 {
				t.Errorf("usage %+v", c)
			}
			continue
		}
		delta := c.Choices[0].Delta
		finished = finished || c.Choices[0].Finish != nil
		if delta.Content == nil || *delta.Content == "" {
			continue
		}
		digits, ok := strings.CutPrefix(*delta.Content, string(mock.StampMark))
		stamp, err := strconv.ParseInt(digits, 10, 64)
		if !ok || err != nil || len(digits) != mock.StampLen || stamp < last || stamp > time.Now().UnixNano() {
			t.Fatalf("stamp %q after %d: %v", *delta.Content, last, err)
		}
		last = stamp
		tokens++
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	if tokens != s.Tokens || !finished || !done || usage != wantUsage {
		t.Errorf("%d of %d tokens, finish %v, [DONE] %v, usage %v (want %v)", tokens, s.Tokens, finished, done, usage, wantUsage)
	}
	if s.Gap > 0 && time.Duration(last-began.UnixNano()) < time.Duration(s.Tokens-1)*s.Gap {
		t.Errorf("the last of %d tokens came after %v", s.Tokens, time.Duration(last-began.UnixNano()))
	}
}

func TestPlainAnswer(t *testing.T) {
	s := mock.Defaults()
	s.Body = 1000
	base := start(t, s)
	for name, body := range map[string]io.Reader{
		"length":             strings.NewReader(`{"model":"m","messages":[{"role":"user","content":"say \"stream\":true"}]}`),
		"chunked":            io.MultiReader(strings.NewReader(`{"stream":`), strings.NewReader(`false}`)),
		"larger than buffer": strings.NewReader(`{"messages":"` + strings.Repeat("x", 100_000) + `"}`),
	} {
		t.Run(name, func(t *testing.T) {
			res := post(t, base+"/v1/chat/completions", body)
			var got struct {
				Object  string
				Choices []struct {
					Message struct{ Content string }
				}
				Usage struct {
					Prompt int `json:"prompt_tokens"`
				}
			}
			if err := json.NewDecoder(res.Body).Decode(&got); err != nil {
				t.Fatal(err)
			}
			if got.Object != "chat.completion" || got.Choices[0].Message.Content != mock.Content(1000) || got.Usage.Prompt == 0 {
				t.Errorf("answer %+v", got)
			}
		})
	}
}

func TestOtherPaths(t *testing.T) {
	base := start(t, mock.Defaults())
	for path, want := range map[string]int{"/v1/models": 200, "/health": 200, "/nowhere": 404, "/v1/chat/completions": 405} {
		res, err := http.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		var body map[string]any
		err = json.NewDecoder(res.Body).Decode(&body)
		_ = res.Body.Close()
		if res.StatusCode != want || err != nil {
			t.Errorf("GET %s: %s, %v, %v", path, res.Status, body, err)
		}
	}
}

func TestControl(t *testing.T) {
	base := start(t, mock.Defaults())
	s := mock.Settings{Tokens: 5, Body: 10, Batch: 2, Usage: true}
	res := post(t, base+"/control?"+s.Query(), nil)
	if b, err := io.ReadAll(res.Body); err != nil || string(b) != fmt.Sprint(os.Getpid()) {
		t.Fatalf("control answered %q, %v", b, err)
	}
	s.Model = mock.Defaults().Model
	stream := post(t, base+"/v1/chat/completions", strings.NewReader(`{"stream":true}`))
	readStream(t, stream.Body, s, true, time.Unix(0, 1e18))

	for _, bad := range []string{"tokens=0", "tokens=x", "gap=-1s", "gap=1h", "body=2000000", "batch=0", "nonsense=1", "%zz"} {
		if res := post(t, base+"/control?"+bad, nil); res.StatusCode != http.StatusBadRequest {
			t.Errorf("control took %q: %s", bad, res.Status)
		}
	}
	stream = post(t, base+"/v1/chat/completions", strings.NewReader(`{"stream":true}`))
	readStream(t, stream.Body, s, true, time.Unix(0, 1e18)) // as before: a refused setting changes nothing
}

func TestBadRequests(t *testing.T) {
	addr := strings.TrimPrefix(start(t, mock.Defaults()), "http://")
	for name, tc := range map[string]struct{ raw, want string }{
		"no request line": {"hello\r\n\r\n", "400"},
		"negative length": {"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n", "400"},
		"huge length":     {"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", "413"},
		"bad chunk":       {"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "400"},
		"huge chunk":      {"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n7fffffff\r\n", "413"},
		"endless head":    {"GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 200_000), ""}, // reset: the answer may be lost
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			if _, err := io.WriteString(c, tc.raw); err != nil && tc.want != "" {
				t.Fatal(err)
			}
			if tc.want == "" {
				_, _ = io.Copy(io.Discard, c) // returns: the mock has closed the connection
				return
			}
			status, err := bufio.NewReader(c).ReadString('\n')
			if err != nil || !strings.HasPrefix(status, "HTTP/1.1 "+tc.want) {
				t.Errorf("answer %q, %v; want %s", status, err, tc.want)
			}
		})
	}
}

func TestServeRefusesOtherAddresses(t *testing.T) {
	m, err := mock.New(mock.Defaults())
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Serve(t.Context(), elsewhere{}); err == nil {
		t.Error("the mock serves on an address that is not loopback")
	}
	if _, err := mock.New(mock.Settings{}); err == nil {
		t.Error("empty settings were taken")
	}
}

// elsewhere is a listener on a public address.
type elsewhere struct{ net.Listener }

func (elsewhere) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 80} }
func (elsewhere) Close() error   { return nil }
