package serverless_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"headrace/providers/vast/serverless"
	"headrace/router/endpoint"
)

// This fake is the console, the engine and the workers as far as one endpoint's requests see them, with a script for
// every answer: what each test is about stands in the test.

const (
	accountKey  = "acct-key-0123456789"
	endpointKey = "ep-key-9876543210"
	patience    = time.Minute
)

type routeCall struct {
	Endpoint, APIKey, Bearer string
	Cost                     float64
	Index                    int64
	Replay                   float64
}

type fake struct {
	t       *testing.T
	console *httptest.Server
	engine  *httptest.Server

	mu        sync.Mutex // guards all below
	jobs      []map[string]any
	workers   map[int64]any            // by endpoint id: what the list says; a func(key string) (int, string) answers itself
	instances map[int64]map[string]any // by id
	fail      map[string]func(w http.ResponseWriter) bool
	calls     map[string]int
	queries   []url.Values

	routes   []routeCall
	notReady int // routes that are to find nobody
	fleet    []*worker
	next     int
	reqnum   int64
	route    func(w http.ResponseWriter, n int) bool // answers the n-th call to /route/ itself
}

func newFake(t *testing.T) *fake {
	t.Helper()
	f := &fake{t: t, workers: map[int64]any{}, instances: map[int64]map[string]any{}, fail: map[string]func(http.ResponseWriter) bool{}, calls: map[string]int{}}
	f.console = httptest.NewServer(http.HandlerFunc(f.serveConsole))
	f.engine = httptest.NewServer(http.HandlerFunc(f.serveEngine))
	t.Cleanup(f.console.Close)
	t.Cleanup(f.engine.Close)
	return f
}

// set changes the fake under its lock.
func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fake) count(call string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[call]
}

func (f *fake) add(id int64, name string, more map[string]any) {
	j := map[string]any{
		"id": id, "endpoint_name": name, "api_key": endpointKey, "user_id": 7, "created_at": 1787722703.5, "endpoint_state": "active",
		"min_load": 0, "max_workers": 3, "max_queue_time": 30, "target_util": 0.9,
	}
	maps.Copy(j, more)
	f.set(func() { f.jobs = append(f.jobs, j) })
}

func (f *fake) serveConsole(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[r.URL.Path]++
	if fail := f.fail[r.URL.Path]; fail != nil && fail(w) {
		return
	}
	switch {
	case r.URL.Path == "/static/jvastai_root.cer":
		_, _ = w.Write(authority().cert.Raw)
	case r.Header.Get("Authorization") != "Bearer "+accountKey:
		w.WriteHeader(404)
		fmt.Fprint(w, `{"success":false,"error":"auth_error","msg":"Invalid user key"}`)
	case r.URL.Path == "/api/v0/endptjobs/":
		reply(w, 200, map[string]any{"success": true, "results": f.jobs})
	case r.URL.Path == "/api/v1/instances/":
		f.queries = append(f.queries, r.URL.Query())
		var filter struct {
			ID struct {
				In []int64 `json:"in"`
			} `json:"id"`
		}
		if err := json.Unmarshal([]byte(r.URL.Query().Get("select_filters")), &filter); err != nil || len(filter.ID.In) > 25 {
			f.t.Errorf("filter %q: %v", r.URL.Query().Get("select_filters"), err)
		}
		list := []any{}
		for _, id := range filter.ID.In {
			if row := f.instances[id]; row != nil {
				list = append(list, row)
			}
		}
		reply(w, 200, map[string]any{"success": true, "instances": list, "next_token": nil, "total_instances": 400})
	default:
		w.WriteHeader(404)
	}
}

func (f *fake) serveEngine(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[r.URL.Path]++
	if fail := f.fail[r.URL.Path]; fail != nil && fail(w) {
		return
	}
	var q struct {
		ID       int64   `json:"id"`
		Endpoint string  `json:"endpoint"`
		APIKey   string  `json:"api_key"`
		Cost     float64 `json:"cost"`
		Index    int64   `json:"request_idx"`
		Replay   float64 `json:"replay_timeout"`
	}
	if err := json.Unmarshal(b, &q); err != nil {
		f.t.Errorf("%s: %v in %s", r.URL.Path, err, b)
	}
	switch r.URL.Path {
	case "/get_endpoint_workers/":
		switch list := f.workers[q.ID].(type) {
		case nil:
			reply(w, 200, map[string]any{"error_msg": "endpoint " + fmt.Sprint(q.ID) + " is not ready for " + q.APIKey})
		case func(key string) (int, string):
			status, body := list(q.APIKey)
			w.WriteHeader(status)
			fmt.Fprint(w, body)
		default:
			reply(w, 200, list)
		}
	case "/route/":
		f.routes = append(f.routes, routeCall{q.Endpoint, q.APIKey, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), q.Cost, q.Index, q.Replay})
		f.serveRoute(w, q.Endpoint, q.Index, q.Cost)
	default:
		w.WriteHeader(404)
	}
}

func (f *fake) serveRoute(w http.ResponseWriter, name string, idx int64, cost float64) {
	n := len(f.routes)
	if idx == 0 {
		idx = int64(1000 + n)
	}
	if f.route != nil && f.route(w, n) {
		return
	}
	if f.notReady > 0 || len(f.fleet) == 0 {
		f.notReady--
		reply(w, 200, map[string]any{"endpoint": name, "status": "loading: 1, stopped: 2", "request_idx": idx, "__request_id": "u"})
		return
	}
	to := f.fleet[f.next%len(f.fleet)]
	f.next++
	f.reqnum++
	auth := map[string]any{"endpoint": name, "url": to.url, "cost": cost, "reqnum": f.reqnum, "request_idx": idx}
	h := sha256.Sum256(signed(auth, to.old))
	sum, err := rsa.SignPKCS1v15(rand.Reader, signer(), crypto.SHA256, h[:])
	if err != nil {
		f.t.Error(err)
	}
	auth["signature"], auth["__request_id"] = base64.StdEncoding.EncodeToString(sum), "u"
	reply(w, 200, auth)
}

// signed is the text of a signature: what SDK workers look at, or old ones.
func signed(auth map[string]any, old bool) []byte {
	m := map[string]any{"url": auth["url"]}
	if old {
		m = map[string]any{}
		for _, k := range []string{"cost", "endpoint", "reqnum", "request_idx", "url"} {
			m[k] = auth[k]
		}
	}
	b, _ := json.MarshalIndent(m, "", "    ")
	return b
}

// journal gathers log lines, down to the last detail.
type journal struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

// options point at the fake, with time running a thousand times as fast, and check at the end that no key was logged.
func (f *fake) options() serverless.Options {
	j := &journal{}
	f.t.Cleanup(func() {
		if f.t.Failed() {
			f.t.Logf("log:\n%s", j)
		}
		if s := j.String(); strings.Contains(s, accountKey) || strings.Contains(s, endpointKey) {
			f.t.Errorf("a key was logged:\n%s", s)
		}
	})
	return serverless.Options{
		Key: accountKey, ConsoleURL: f.console.URL + "/", RunURL: f.engine.URL + "/", OpenAIURL: "https://openai.example/",
		Poll: time.Hour, Wait: time.Millisecond, Pace: 0.001, Log: slog.New(slog.NewTextHandler(j, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

// routed is the endpoint that a look at the fake would give for way Route.
func (f *fake) routed() endpoint.Endpoint {
	pem := pemOf(authority().cert.Raw)
	return endpoint.Endpoint{
		ID: "vast:serverless-qwen", Provider: "vast", Dialect: endpoint.VastRoute, BaseURL: f.engine.URL, APIKey: endpointKey, Tenure: endpoint.Serverless,
		Labels: map[string]string{"vast_endpoint": "qwen"}, TLS: endpoint.TLS{Roots: pem, AnyName: true},
	}
}

// until waits for ok, looking every millisecond.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick, late := time.NewTicker(time.Millisecond), time.After(patience)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}
