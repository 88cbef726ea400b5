package jobs

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"headrace/router/endpoint"
)

const testKey = "rpa_very-secret-key"

// step is how the scripted RunPod answers one call.
type step struct {
	code  int // default 200
	head  map[string]string
	body  string
	cut   bool            // the connection breaks instead of an answer
	hold  <-chan struct{} // the answer waits for this, or for the client's end
	yield []string        // JSON of the yields, with status in place of body
	state string
	more  string // further members of the body
}

func (s step) text() string {
	if s.body != "" || s.state == "" {
		return s.body
	}
	items := make([]string, len(s.yield))
	for i, y := range s.yield {
		items[i] = `{"output":` + y + `}`
	}
	return fmt.Sprintf(`{"status":%q,"stream":[%s]%s}`, s.state, strings.Join(items, ","), s.more)
}

// script is a RunPod whose every answer is written down. It shows what the fake cloud cannot: answers outside of what is known.
type script struct {
	t   *testing.T
	srv *httptest.Server

	mu      sync.Mutex // guards all below
	run     []step     // answers of /run; the last one for ever
	stream  []step
	status  []step
	cancel  []step
	got     map[string]int // calls by operation
	bodies  []string       // of /run
	at      map[string]time.Time
	changed chan struct{} // closed and renewed at each call
}

func newScript(t *testing.T) *script {
	t.Helper()
	s := &script{
		t: t, got: map[string]int{}, at: map[string]time.Time{}, changed: make(chan struct{}),
		run:    []step{{body: `{"id":"job-1-u1","status":"IN_QUEUE"}`}},
		status: []step{{body: `{"id":"job-1-u1","status":"COMPLETED","delayTime":1200,"executionTime":3400,"workerId":"w1"}`}},
		cancel: []step{{body: `{"id":"job-1-u1","status":"CANCELLED"}`}},
	}
	s.srv = httptest.NewUnstartedServer(s)
	s.srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.srv.Start()
	t.Cleanup(s.srv.Close)
	return s
}

func (s *script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	op, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/ep1/"), "/")
	s.mu.Lock()
	steps := map[string]*[]step{"run": &s.run, "stream": &s.stream, "status": &s.status, "cancel": &s.cancel}[op]
	if steps == nil || len(*steps) == 0 || r.Header.Get("Authorization") != "Bearer "+testKey {
		s.mu.Unlock()
		s.t.Errorf("unexpected call %s %s, authorization %q", r.Method, r.URL, r.Header.Get("Authorization"))
		return
	}
	one := (*steps)[0]
	if len(*steps) > 1 {
		*steps = (*steps)[1:]
	}
	if op == "run" {
		s.bodies = append(s.bodies, string(body))
	}
	s.note(op)
	s.mu.Unlock()
	if one.hold != nil {
		select {
		case <-one.hold:
		case <-r.Context().Done():
			return
		}
	}
	if one.cut {
		panic(http.ErrAbortHandler)
	}
	for k, v := range one.head {
		w.Header().Set(k, v)
	}
	w.WriteHeader(cmp.Or(one.code, 200))
	_, _ = io.WriteString(w, one.text())
}

func (s *script) note(op string) {
	s.got[op]++
	s.at[op] = time.Now()
	close(s.changed)
	s.changed = make(chan struct{})
}

// wait returns when op was called n times, and when the last of them came.
func (s *script) wait(op string, n int) time.Time {
	s.t.Helper()
	limit := time.After(time.Minute)
	for {
		s.mu.Lock()
		have, at, changed := s.got[op], s.at[op], s.changed
		s.mu.Unlock()
		if have >= n {
			return at
		}
		select {
		case <-changed:
		case <-limit:
			s.t.Fatalf("%s was called %d times, want %d", op, have, n)
		}
	}
}

func (s *script) calls(op string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got[op]
}

func (s *script) set(steps *[]step, with ...step) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*steps = with
}

// front is a translator with an HTTP server before it.
type front struct {
	*Translator
	t   *testing.T
	srv *httptest.Server
	log *syncBuffer

	busy    sync.WaitGroup // handlers
	mu      sync.Mutex     // guards all below
	reports []endpoint.WorkerReport
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newFront(t *testing.T, queueURL string, o Options) *front {
	t.Helper()
	f := &front{t: t, log: &syncBuffer{}}
	o.Log = slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if o.Transport == nil {
		tr := &http.Transport{MaxIdleConnsPerHost: 64}
		t.Cleanup(tr.CloseIdleConnections)
		o.Transport = tr
	}
	f.Translator = New(o)
	h := f.Handler(endpoint.Endpoint{ID: "runpod:ep1", BaseURL: queueURL + "/ep1/openai/v1", APIKey: testKey})
	f.srv = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.busy.Add(1)
		rep := &endpoint.Report{}
		defer func() {
			defer f.busy.Done()
			if got, ok := rep.Take(); ok {
				f.mu.Lock()
				f.reports = append(f.reports, got)
				f.mu.Unlock()
			}
		}()
		h.ServeHTTP(w, r.WithContext(endpoint.WithReport(r.Context(), rep)))
	}))
	f.srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	f.srv.Start()
	t.Cleanup(func() {
		f.srv.Close()
		ctx, done := context.WithTimeout(context.Background(), time.Minute) //nolint:usetesting // t's is done by now
		defer done()
		if err := f.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
		if strings.Contains(f.log.String(), "very-secret") {
			t.Errorf("the log shows the key: %s", f.log)
		}
	})
	return f
}

// report is what the gateway was told of the last request.
func (f *front) report() endpoint.WorkerReport {
	f.t.Helper()
	f.busy.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.reports) == 0 {
		return endpoint.WorkerReport{}
	}
	return f.reports[len(f.reports)-1]
}

const (
	chatBody   = `{"model":"m","messages":[{"role":"user","content":"hi"}]}`
	streamBody = `{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}`
)

// post sends a request and returns the response, of which nothing but the head is read.
func (f *front) post(ctx context.Context, body string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.srv.URL+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Request-Id", "req-1")
	return f.srv.Client().Do(req)
}

// answer is a whole response.
type answer struct {
	status  int
	header  http.Header
	body    string
	broken  bool // the body broke off
	code    string
	message string
}

func (f *front) ask(body string) answer {
	f.t.Helper()
	res, err := f.post(f.t.Context(), body)
	if err != nil {
		f.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	a := answer{status: res.StatusCode, header: res.Header, body: string(b), broken: err != nil}
	var e struct {
		Error struct{ Message, Code string }
	}
	if json.Unmarshal(b, &e) == nil {
		a.code, a.message = e.Error.Code, e.Error.Message
	}
	if strings.Contains(a.body, "very-secret") {
		f.t.Errorf("the answer shows the key: %s", a.body)
	}
	return a
}

// sent are the bodies of /run so far.
func (s *script) sent() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.bodies)
}
