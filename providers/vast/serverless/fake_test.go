package serverless_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"math/big"
	"net"
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
	patience    = 10 * time.Second
)

var signer = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

type rootCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// authority is Vast.ai's root: it lacks the keyCertSign usage, so crypto/x509 alone refuses it.
var authority = sync.OnceValue(func() (a rootCA) {
	a.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Vast.ai Jupyter Root"}, NotBefore: time.Unix(0, 0), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, MaxPathLen: 1, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, a.key.Public(), a.key)
	if err != nil {
		panic(err)
	}
	a.cert, _ = x509.ParseCertificate(der)
	return a
})

// workerCert is a worker's certificate for 0.0.0.0, below the root or, with self, its own.
func workerCert(t *testing.T, self bool) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "pyworker.vast.ai"}, NotBefore: time.Unix(0, 0), NotAfter: time.Now().AddDate(1, 0, 0),
		IPAddresses: []net.IP{net.IPv4zero}, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	parent, by := authority().cert, authority().key
	if self {
		parent, by = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

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

// worker is a pyworker: it checks the route, unwraps the payload and hands it to its model.
type worker struct {
	f     *fake
	srv   *httptest.Server
	url   string
	old   bool // signs more, and takes a route once only
	bare  bool // hands on the payload as it is, as SDK workers do; else "input" is wanted
	model http.HandlerFunc

	mu    sync.Mutex // guards all below
	fault func(w http.ResponseWriter, r *http.Request, n int) bool
	got   [][]byte // whole bodies
	seen  map[int64]bool
	busy  int
}

func (f *fake) addWorker(secure bool, model http.HandlerFunc) *worker {
	f.t.Helper()
	if !secure {
		return f.addWorkerWith(nil, model)
	}
	cert := workerCert(f.t, false)
	return f.addWorkerWith(&cert, model)
}

func (f *fake) addWorkerWith(cert *tls.Certificate, model http.HandlerFunc) *worker {
	f.t.Helper()
	k := &worker{f: f, model: model, seen: map[int64]bool{}}
	k.srv = httptest.NewUnstartedServer(http.HandlerFunc(k.serve))
	k.srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	if cert != nil {
		k.srv.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}}
		k.srv.StartTLS()
	} else {
		k.srv.Start()
	}
	k.url = k.srv.URL
	f.t.Cleanup(k.srv.Close)
	f.set(func() { f.fleet = append(f.fleet, k) })
	return k
}

func (k *worker) set(change func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change()
}

func (k *worker) calls() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.got)
}

func (k *worker) serve(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if dump := fmt.Sprint(r.Header, r.URL, string(b)); strings.Contains(dump, endpointKey) || strings.Contains(dump, accountKey) {
		k.f.t.Errorf("a worker, who is a stranger, was told a key: %s", dump)
	}
	if e := r.Header.Get("Accept-Encoding"); e != "identity" {
		k.f.t.Errorf("accept-encoding %q", e)
	}
	k.mu.Lock()
	k.got = append(k.got, b)
	n, fault := len(k.got), k.fault
	k.busy++
	k.mu.Unlock()
	defer k.set(func() { k.busy-- })
	if fault != nil && fault(w, r, n) {
		return
	}
	var q struct {
		Auth    map[string]any  `json:"auth_data"`
		Session *string         `json:"session_id"`
		Payload json.RawMessage `json:"payload"`
	}
	if err := json.Unmarshal(b, &q); err != nil || !bytes.Contains(b, []byte(`"session_id":null`)) {
		k.f.t.Errorf("%v in %s", err, b)
	}
	for _, key := range []string{"cost", "endpoint", "reqnum", "request_idx", "signature", "url"} {
		if q.Auth[key] == nil {
			reply(w, 422, map[string]any{"auth_data": map[string]any{key: "missing parameter"}})
			return
		}
	}
	sig, _ := base64.StdEncoding.DecodeString(q.Auth["signature"].(string))
	h := sha256.Sum256(signed(q.Auth, k.old))
	num := int64(q.Auth["reqnum"].(float64))
	k.mu.Lock()
	again := k.seen[num]
	k.seen[num] = true
	k.mu.Unlock()
	if rsa.VerifyPKCS1v15(&signer().PublicKey, crypto.SHA256, h[:], sig) != nil || k.old && again {
		w.WriteHeader(401)
		return
	}
	payload := []byte(q.Payload)
	if !k.bare {
		var in struct {
			Input json.RawMessage `json:"input"`
		}
		if json.Unmarshal(payload, &in) != nil || in.Input == nil {
			reply(w, 422, map[string]any{"payload": map[string]any{"input": "missing parameter"}})
			return
		}
		payload = in.Input
	}
	r2 := r.Clone(r.Context())
	r2.Body = io.NopCloser(bytes.NewReader(payload))
	k.model(w, r2)
}

// chat is a model server: it wants messages and streams, or answers at once.
func chat(w http.ResponseWriter, r *http.Request) {
	var q struct {
		Messages []any `json:"messages"`
		Stream   bool  `json:"stream"`
	}
	b, _ := io.ReadAll(r.Body)
	if err := json.Unmarshal(b, &q); err != nil || q.Messages == nil {
		reply(w, 400, map[string]any{"error": map[string]any{"message": "[{'type': 'missing', 'loc': ('body', 'messages'), 'msg': 'Field required'}]", "type": "BadRequestError", "code": 400}})
		return
	}
	if !q.Stream {
		reply(w, 200, map[string]any{"id": "c1", "object": "chat.completion", "choices": []any{map[string]any{"index": 0, "message": map[string]any{"content": "hello"}, "finish_reason": "stop"}}})
		return
	}
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	for _, p := range strings.SplitAfter(answer, "\n\n") {
		fmt.Fprint(w, p)
		_ = http.NewResponseController(w).Flush()
	}
}

const answer = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"hel\"},\"finish_reason\":null}]}\n\n" +
	"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"lo 🦊\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n"

const (
	streaming = `{"messages":[{"role":"user","content":"hi"}],"stream":true,"max_tokens":64}`
	plain     = `{"messages":[{"role":"user","content":"hi"}]}`
)

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
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

// front serves a translator as the gateway's forwarder does; reports are where its requests leave theirs.
type front struct {
	*httptest.Server
	reports chan *endpoint.Report
}

func (f *fake) front(o serverless.Options, ep endpoint.Endpoint) (*front, *serverless.Provider) {
	f.t.Helper()
	p := serverless.New(o)
	h := p.Handler(ep)
	fr := &front{reports: make(chan *endpoint.Report, 1000)}
	fr.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rep := &endpoint.Report{}
		fr.reports <- rep
		h.ServeHTTP(w, r.WithContext(endpoint.WithReport(r.Context(), rep)))
	}))
	fr.Config.ErrorLog = log.New(io.Discard, "", 0)
	fr.Start()
	f.t.Cleanup(fr.Close)
	return fr, p
}

type result struct {
	status int
	header http.Header
	body   string
	err    error
	report endpoint.WorkerReport
	told   bool // a report was there
}

func (fr *front) post(t *testing.T, ctx context.Context, body string) (r result) { //nolint:revive // as all helpers: t first
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, fr.URL+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res, err := fr.Client().Do(req)
	if err != nil {
		return result{err: err}
	}
	b, err := io.ReadAll(res.Body)
	_ = res.Body.Close()
	r = result{status: res.StatusCode, header: res.Header, body: string(b), err: err}
	r.report, r.told = (<-fr.reports).Take()
	if s := fmt.Sprint(r.header, r.body); strings.Contains(s, accountKey) || strings.Contains(s, endpointKey) {
		t.Errorf("the answer shows a key: %s", s)
	}
	return r
}

func (r result) code() string {
	var m struct {
		Error struct{ Message, Type, Code string }
	}
	if json.Unmarshal([]byte(r.body), &m) != nil || m.Error.Message == "" || m.Error.Type == "" {
		return "no error of OpenAI's shape: " + r.body
	}
	return m.Error.Code
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
