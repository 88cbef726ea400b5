package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/big"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"headrace/gateway/admission"
	"headrace/gateway/forward"
	"headrace/gateway/ledger"
	"headrace/gateway/listen"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/health"
)

// patience bounds every wait for an event; a test that needs it has failed.
const patience = time.Minute

// upstream is a host on a raw TCP socket. Its handler writes what it likes.
type upstream struct {
	ln     net.Listener
	serve  func(c *upConn, r *upRequest) (again bool)
	wg     sync.WaitGroup
	mu     sync.Mutex // guards all below
	conns  map[net.Conn]struct{}
	closed bool

	accepted, requests, ended int
}

// upRequest is a request as the host got it.
type upRequest struct {
	*http.Request
	body []byte // nil when the upstream streams it
	nth  int    // on its connection, from 0
}

// upConn is one connection at the host.
type upConn struct {
	net.Conn
	br *bufio.Reader
	up *upstream
}

func (c *upConn) send(s string) { _, _ = io.WriteString(c.Conn, s) }

// sendChunk sends s as one HTTP chunk.
func (c *upConn) sendChunk(s string) { c.send(fmt.Sprintf("%x\r\n%s\r\n", len(s), s)) }

// gone returns when the gateway has closed the connection, with the time.
func (c *upConn) gone() time.Time {
	_, _ = c.br.ReadByte() // nothing else can come: a request is under way
	return time.Now()
}

// reset closes with RST.
func (c *upConn) reset() {
	_ = c.Conn.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
}

// newUpstream starts a host whose handler is called for each request with its whole body.
func newUpstream(t testing.TB, serve func(c *upConn, r *upRequest) bool) *upstream {
	t.Helper()
	return newRawUpstream(t, func(c *upConn, r *upRequest) bool {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return false
		}
		r.body = b
		return serve(c, r)
	})
}

// newRawUpstream starts a host whose handler reads the body by itself.
func newRawUpstream(t testing.TB, serve func(c *upConn, r *upRequest) bool) *upstream {
	t.Helper()
	return serveUpstream(t, listenLoopback(t), serve)
}

func serveUpstream(t testing.TB, ln net.Listener, serve func(c *upConn, r *upRequest) bool) *upstream {
	t.Helper()
	u := &upstream{ln: ln, serve: serve, conns: map[net.Conn]struct{}{}}
	u.wg.Go(u.accept)
	t.Cleanup(u.close)
	return u
}

func (u *upstream) accept() {
	for {
		c, err := u.ln.Accept()
		if err != nil {
			return
		}
		u.mu.Lock()
		if u.closed {
			u.mu.Unlock()
			_ = c.Close()
			return
		}
		u.accepted++
		u.conns[c] = struct{}{}
		u.mu.Unlock()
		u.wg.Go(func() {
			defer u.forget(c)
			br := bufio.NewReader(c)
			for n := 0; ; n++ {
				r, err := http.ReadRequest(br)
				if err != nil {
					return
				}
				u.mu.Lock()
				u.requests++
				u.mu.Unlock()
				if !u.serve(&upConn{c, br, u}, &upRequest{Request: r, nth: n}) {
					return
				}
			}
		})
	}
}

func (u *upstream) forget(c net.Conn) {
	_ = c.Close()
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.conns, c)
	u.ended++
}

// open returns how many connections the host has.
func (u *upstream) open() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.conns)
}

func (u *upstream) counts() (accepted, requests int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.accepted, u.requests
}

func (u *upstream) close() {
	_ = u.ln.Close()
	u.mu.Lock()
	u.closed = true
	for c := range u.conns {
		_ = c.Close()
	}
	u.mu.Unlock()
	u.wg.Wait()
}

func (u *upstream) url() string { return "http://" + u.ln.Addr().String() + "/v1" }

// refusing is a base URL at which nobody listens, nor ever does.
const refusing = "http://127.0.0.1:1/v1"

// rig is a gateway on loopback.
type rig struct {
	t      testing.TB
	srv    *Server
	router *router.Router
	fwd    *forward.Client
	addr   string
	tls    string // address of the TLS listener
	roots  *x509.CertPool
	stop   context.CancelFunc
	done   chan struct{}
	logs   *logBuffer

	mu      sync.Mutex // guards all below
	records []ledger.Record
	settled map[string]int
	signal  chan struct{} // closed and replaced at each record
}

// rigOptions are what tests change.
type rigOptions struct {
	set      Settings
	breaker  health.Options
	retry    router.BudgetOptions
	hedge    router.BudgetOptions
	forward  forward.Options
	rules    []router.ModelRule
	portable bool
	noTLS    bool
	settled  func(*ledger.Record)
	keys     *admission.Gate
	tempDir  string
	maxHead  int
	edit     func([]endpoint.Endpoint)
	before   func(*Server) // called before it serves
}

func defaults() rigOptions {
	return rigOptions{
		set: Settings{
			MaxBody: 8 << 20, MaxUpload: 64 << 20, MaxInFlight: 1000,
			Read: patience, FirstEvent: patience, Gap: patience, Total: 2 * patience,
			ClientWrite: patience, Drain: 5 * time.Second, MaxRetries: 2, MaxGathered: 16 << 20,
		},
		forward: forward.Options{UpstreamIdle: 500 * time.Millisecond, Connect: 2 * time.Second},
		maxHead: 16 << 10,
	}
}

const model = "m1"

// newRig starts a gateway in front of base URLs, the first of them the cheapest.
func newRig(t testing.TB, urls []string, change ...func(*rigOptions)) *rig {
	t.Helper()
	o := defaults()
	for _, f := range change {
		f(&o)
	}
	g := &rig{t: t, settled: map[string]int{}, signal: make(chan struct{}), done: make(chan struct{}), logs: &logBuffer{}}
	g.router = router.New(router.Options{Now: time.Now, Breaker: o.breaker, Retry: o.retry, Hedge: o.hedge})
	g.fwd = forward.New(o.forward)
	eps := make([]endpoint.Endpoint, 0, len(urls))
	for i, u := range urls {
		eps = append(eps, endpoint.Endpoint{
			ID: endpoint.ID(fmt.Sprintf("static:h%d", i)), Provider: "static", BaseURL: u, State: endpoint.Ready, APIKey: "upstream-key",
			Served: []endpoint.Served{{Name: model}}, MaxNumSeqs: 1000,
			Price: endpoint.Price{Basis: endpoint.PerHour, USDPerHour: math.Pow(100, float64(i))},
		})
	}
	if o.edit != nil {
		o.edit(eps)
	}
	if err := g.fwd.Update(eps); err != nil {
		t.Fatal(err)
	}
	g.router.Update(eps, o.rules)
	hook := o.settled
	g.srv = New(Options{
		Router: g.router, Forward: g.fwd, Log: slog.New(slog.NewTextHandler(g.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
		MaxHead: o.maxHead, Idle: time.Minute, TempDir: o.tempDir, Keys: o.keys,
		Settled: func(r *ledger.Record) {
			g.record(r)
			if hook != nil {
				hook(r)
			}
		},
	}, o.set)
	if o.before != nil {
		o.before(g.srv)
	}
	g.start(o)
	t.Cleanup(g.close)
	return g
}

func (g *rig) start(o rigOptions) {
	g.t.Helper()
	plain := listenLoopback(g.t)
	g.addr = plain.Addr().String()
	lns := []Listener{{Listener: plain}}
	if !o.noTLS {
		cert, roots := selfSigned(g.t)
		g.roots = roots
		secure := listenLoopback(g.t)
		g.tls = secure.Addr().String()
		lns = append(lns, Listener{Listener: secure, TLS: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}})
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.stop = cancel
	if o.portable {
		g.servePortably(ctx, lns)
		return
	}
	go func() {
		defer close(g.done)
		if err := g.srv.Serve(ctx, lns...); err != nil {
			g.t.Errorf("Serve: %v", err)
		}
	}()
}

// servePortably is Serve with the watcher of other systems.
func (g *rig) servePortably(ctx context.Context, lns []Listener) {
	var watched []*listen.Listener
	var wg sync.WaitGroup
	for _, ln := range lns {
		wl := listen.WatchPortably(ln.Listener)
		watched = append(watched, wl)
		var l net.Listener = wl
		if ln.TLS != nil {
			l = tls.NewListener(wl, ln.TLS)
		}
		wg.Go(func() { _ = g.srv.http.Serve(l) })
	}
	go func() {
		defer close(g.done)
		<-ctx.Done()
		g.srv.drain(watched)
		wg.Wait()
	}()
}

func listenLoopback(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func (g *rig) close() {
	g.stop()
	wait(g.t, g.done, "Serve to return")
	g.fwd.CloseIdle()
	if n := g.srv.InFlight(); n != 0 {
		g.t.Errorf("%d requests in flight after the server stopped", n)
	}
	for _, h := range g.router.Hosts() {
		if h.InFlight != 0 {
			g.t.Errorf("%s: %d leases were never given back", h.ID, h.InFlight)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for id, n := range g.settled {
		if n != 1 {
			g.t.Errorf("request %s was settled %d times", id, n)
		}
	}
}

func (g *rig) record(r *ledger.Record) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.records = append(g.records, ledger.Record{})
	r.CopyTo(&g.records[len(g.records)-1])
	g.settled[r.ID]++
	close(g.signal)
	g.signal = make(chan struct{})
}

// recordN waits for the n-th record, from 0.
func (g *rig) recordN(n int) ledger.Record {
	g.t.Helper()
	late := time.After(patience)
	for {
		g.mu.Lock()
		if len(g.records) > n {
			defer g.mu.Unlock()
			return g.records[n]
		}
		more := g.signal
		g.mu.Unlock()
		select {
		case <-more:
		case <-late:
			g.t.Fatalf("record %d did not come", n)
		}
	}
}

func (g *rig) host(i int) router.HostView { return g.router.Hosts()[i] }

// client is a caller on a raw socket.
type client struct {
	t testing.TB
	net.Conn
	tcp *net.TCPConn
	br  *bufio.Reader

	text int // bytes of it that await has read
}

func (g *rig) dial() *client {
	g.t.Helper()
	nc, err := net.Dial("tcp", g.addr)
	if err != nil {
		g.t.Fatal(err)
	}
	return g.client(nc, nc)
}

func (g *rig) dialTLS() *client {
	g.t.Helper()
	nc, err := net.Dial("tcp", g.tls)
	if err != nil {
		g.t.Fatal(err)
	}
	tc := tls.Client(nc, &tls.Config{RootCAs: g.roots, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12})
	if err := tc.Handshake(); err != nil {
		g.t.Fatal(err)
	}
	return g.client(tc, nc)
}

func (g *rig) client(c, raw net.Conn) *client {
	_ = c.SetDeadline(time.Now().Add(patience))
	g.t.Cleanup(func() { _ = raw.Close() })
	return &client{t: g.t, Conn: c, tcp: raw.(*net.TCPConn), br: bufio.NewReader(c)}
}

func (c *client) send(s string) *client {
	c.t.Helper()
	if _, err := io.WriteString(c.Conn, s); err != nil {
		c.t.Fatalf("send: %v", err)
	}
	return c
}

// response reads a response head; its body may break off.
func (c *client) response() *http.Response {
	c.t.Helper()
	r, err := http.ReadResponse(c.br, nil)
	if err != nil {
		c.t.Fatalf("read the response: %v", err)
	}
	return r
}

// whole reads a response and its body, which may break off.
func (c *client) whole() (*http.Response, string, error) {
	c.t.Helper()
	r := c.response()
	b, err := io.ReadAll(r.Body)
	_ = r.Body.Close()
	return r, string(b), err
}

// reset closes with RST.
func (c *client) reset() {
	_ = c.tcp.SetLinger(0)
	_ = c.tcp.Close()
}

// post renders a chat completion request.
func post(path, body string, headers ...string) string {
	var h strings.Builder
	for _, l := range headers {
		h.WriteString(l + "\r\n")
	}
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: gw\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s", path, h.String(), len(body), body)
}

const chatPath = "/v1/chat/completions"

func chat(stream bool, headers ...string) string {
	return post(chatPath, fmt.Sprintf(`{"model":%q,"stream":%t,"messages":[{"role":"user","content":"hi"}]}`, model, stream), headers...)
}

// do sends one request over a connection of its own.
func (g *rig) do(req string) (*http.Response, string, error) {
	g.t.Helper()
	c := g.dial()
	defer func() { _ = c.Close() }()
	return c.send(req).whole()
}

// What hosts send.
const (
	sseHead   = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
	roleEvent = "data: {\"id\":\"c1\",\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n"
	stopEvent = "data: {\"id\":\"c1\",\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n"
	useEvent  = "data: {\"id\":\"c1\",\"object\":\"chat.completion.chunk\",\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3,\"total_tokens\":10}}\n\n"
	doneEvent = "data: [DONE]\n\n"
	lastChunk = "0\r\n\r\n"
	plainBody = `{"id":"c1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}`
)

func tokenEvent(s string) string {
	return fmt.Sprintf("data: {\"id\":\"c1\",\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":{\"content\":%q},\"finish_reason\":null}]}\n\n", s)
}

func jsonAnswer(status int, body string, headers ...string) string {
	var h strings.Builder
	for _, l := range headers {
		h.WriteString(l + "\r\n")
	}
	return fmt.Sprintf("HTTP/1.1 %d %s\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s", status, http.StatusText(status), h.String(), len(body), body)
}

// sendStream sends events as a whole stream, an event a chunk.
func (c *upConn) sendStream(events ...string) {
	c.send(sseHead)
	for _, e := range events {
		c.sendChunk(e)
	}
	c.send(lastChunk)
}

// answering is a host that answers well, in the way asked for.
func answering(c *upConn, r *upRequest) bool {
	if !bytes.Contains(r.body, []byte(`"stream":true`)) {
		c.send(jsonAnswer(200, plainBody))
		return true
	}
	events := []string{roleEvent, tokenEvent("hel"), tokenEvent("lo"), stopEvent}
	if bytes.Contains(r.body, []byte(`"include_usage":true`)) {
		events = append(events, useEvent)
	}
	c.sendStream(append(events, doneEvent)...)
	return true
}

// wait waits for a channel to close or yield.
func wait[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s\n%s", what, stacks())
		panic("unreachable")
	}
}

// eventually waits until ok, looking often: for what has no event to wait for.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func stacks() string {
	buf := make([]byte, 1<<20)
	return string(buf[:runtime.Stack(buf, true)])
}

// ours returns the stacks of goroutines that run code of this module or of fasthttp, but for those
// that fasthttp keeps for the whole process.
func ours() []string {
	var out []string
	for g := range strings.SplitSeq(stacks(), "\n\n") {
		switch {
		case !strings.Contains(g, "headrace/") && !strings.Contains(g, "fasthttp"):
		case strings.Contains(g, "updateServerDate"), strings.Contains(g, "testing.(*T).Run("), strings.Contains(g, "testing.tRunner("):
		default:
			out = append(out, g)
		}
	}
	return out
}

// logBuffer keeps what was logged.
type logBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// selfSigned returns a certificate for 127.0.0.1 and the roots that trust it.
func selfSigned(t testing.TB) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, roots
}

// cutShort tells whether a body ended without its last chunk.
func cutShort(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }
