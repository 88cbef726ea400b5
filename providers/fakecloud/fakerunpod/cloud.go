package fakerunpod

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"headrace/providers/fakecloud"
)

// Cloud is a fake RunPod account. Its methods may be called from any goroutine.
type Cloud struct {
	cfg    Config
	url    string
	began  time.Time
	srv    *http.Server
	client *http.Client // to workers and pods
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	ended  chan struct{} // closed when Stop is done
	once   sync.Once
	quota  quota
	rays   atomic.Uint64 // requests, for cf-ray

	mu        sync.Mutex  // guards all below; an Endpoint's or a Pod's mu is taken before it, never behind it
	closing   bool        // nothing new may begin
	forget    func() bool // lets go of the context given to Start
	rng       *rand.Rand
	gpus      []gpuType
	endpoints []*Endpoint
	pods      []*Pod
	trouble   [numPlanes]Trouble
	odd       bool
	calls     map[string]int // of the management API
	refusals  int            // changes of endpoints that are still to be answered 403
	lost      int            // changes of endpoints that are still to be made without an answer
	bills     []bill
	billing   float64 // what is billed of that
}

type connKey struct{}

// Start starts a fake RunPod on one loopback port. It runs until Stop, or until ctx is done.
func Start(ctx context.Context, cfg Config) (*Cloud, error) {
	cfg.fill()
	c := &Cloud{
		cfg: cfg, billing: 1, began: time.Now(), gpus: slices.Clone(catalog[:]), calls: map[string]int{}, ended: make(chan struct{}),
		rng: rand.New(rand.NewPCG(cfg.Seed, 0x72756e706f64)), //nolint:gosec // clouds are to be repeatable
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp4", cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("start fake RunPod: %w", err)
	}
	c.url = "http://" + ln.Addr().String()
	c.ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	c.client = &http.Client{
		Transport: &http.Transport{
			MaxIdleConnsPerHost: 64, DisableCompression: true,
			IdleConnTimeout: time.Second, // hosts close theirs after five
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	c.srv = &http.Server{
		Handler:     http.HandlerFunc(c.serve),
		BaseContext: func(net.Listener) context.Context { return c.ctx },
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, conn)
		},
		ReadHeaderTimeout: time.Minute,
		ErrorLog:          log.New(discard{}, "", 0),
	}
	c.wg.Go(func() { _ = c.srv.Serve(ln) }) // ends in Stop
	c.mu.Lock()
	c.forget = context.AfterFunc(ctx, c.Stop)
	c.mu.Unlock()
	return c, nil
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// Stop ends the cloud with all its workers and pods, and returns when nothing of it runs any more.
func (c *Cloud) Stop() {
	c.once.Do(func() {
		c.mu.Lock()
		c.closing = true
		forget := c.forget
		c.mu.Unlock()
		if forget != nil {
			forget()
		}
		c.cancel()
		_ = c.srv.Close()
		for _, p := range c.podList() {
			p.end()
		}
		for _, e := range c.endpointList() {
			e.end()
		}
		c.wg.Wait()
		c.client.CloseIdleConnections()
		close(c.ended)
	})
	<-c.ended
}

// ManagementURL stands for https://api.runpod.io/v2.
func (c *Cloud) ManagementURL() string { return c.url + "/io/v2" }

// QueueURL stands for https://api.runpod.ai/v2.
func (c *Cloud) QueueURL() string { return c.url + "/ai/v2" }

// BalancerURL stands for https://{id}.api.runpod.ai.
func (c *Cloud) BalancerURL() string { return c.url + "/lb/{id}" }

// PodURL stands for https://{id}-{port}.proxy.runpod.net.
func (c *Cloud) PodURL() string { return c.url + "/pod/{id}-{port}" }

// Config returns the settings with all that was left out filled in.
func (c *Cloud) Config() Config { return c.cfg }

// Key returns the account's key.
func (c *Cloud) Key() string { return c.cfg.APIKey }

// delay turns a delay of the platform into one of the wall clock.
func (c *Cloud) delay(d time.Duration) time.Duration {
	if c.cfg.TimeScale <= 0 {
		return 0
	}
	return c.limit(d)
}

// limit turns a limit of the platform into one of the wall clock.
func (c *Cloud) limit(d time.Duration) time.Duration {
	if c.cfg.TimeScale <= 0 {
		return d
	}
	return max(time.Duration(float64(d)/c.cfg.TimeScale), time.Microsecond)
}

// enter says that something of the cloud begins, whose end is told to wg; false when the cloud ends.
func (c *Cloud) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return false
	}
	c.wg.Add(1)
	return true
}

// spawn runs f, which ends with c.ctx, unless the cloud ends.
func (c *Cloud) spawn(f func()) {
	if c.enter() {
		go func() {
			defer c.wg.Done()
			f()
		}()
	}
}

// after calls f later, unless the cloud ends before. The result stops it.
func (c *Cloud) after(d time.Duration, f func()) *time.Timer {
	return time.AfterFunc(d, func() {
		if c.enter() {
			defer c.wg.Done()
			f()
		}
	})
}

func (c *Cloud) endpointList() []*Endpoint {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.endpoints)
}

func (c *Cloud) podList() []*Pod {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.pods)
}

// Endpoint finds an endpoint by id or name, nil when there is none.
func (c *Cloud) Endpoint(id string) *Endpoint {
	for _, e := range c.endpointList() {
		if e.cfg.ID == id || e.cfg.Name == id {
			return e
		}
	}
	return nil
}

func (c *Cloud) endpointByID(id string) *Endpoint {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.endpoints {
		if e.cfg.ID == id {
			return e
		}
	}
	return nil
}

// Plane is one of the faces of the cloud.
type Plane uint8

// Planes.
const (
	ManagementPlane Plane = iota
	QueuePlane
	BalancerPlane
	PodPlane
	numPlanes
)

// Trouble is what ails a plane as a whole.
type Trouble struct {
	Status    int           // all is answered with this status and an HTML page, as by an edge in front
	Reset     bool          // connections are reset
	Delay     time.Duration // before each answer; of the wall clock
	Malformed bool          // JSON answers end in the middle
}

// SetTrouble replaces what ails p.
func (c *Cloud) SetTrouble(p Plane, t Trouble) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trouble[p] = t
}

// Outage makes p answer 502 with an HTML page, or ends all its trouble.
func (c *Cloud) Outage(p Plane, on bool) {
	var t Trouble
	if on {
		t.Status = http.StatusBadGateway
	}
	c.SetTrouble(p, t)
}

// SlowReplies delays all answers of p.
func (c *Cloud) SlowReplies(p Plane, d time.Duration) { c.SetTrouble(p, Trouble{Delay: d}) }

// MalformedJSON makes p's JSON answers end in the middle.
func (c *Cloud) MalformedJSON(p Plane, on bool) { c.SetTrouble(p, Trouble{Malformed: on}) }

// OddShapes makes the management API answer numbers as strings, states nobody has heard of, and without some members.
func (c *Cloud) OddShapes(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.odd = on
}

func (c *Cloud) serve(w http.ResponseWriter, r *http.Request) {
	if !c.enter() {
		panic(http.ErrAbortHandler)
	}
	defer c.wg.Done()
	w.Header().Set("Server", "cloudflare")
	w.Header().Set("Cf-Ray", fmt.Sprintf("%016x-FRA", c.rays.Add(1)))
	w.Header().Set("Date", time.Now().Add(c.cfg.ClockSkew).UTC().Format(http.TimeFormat))
	path := r.URL.Path
	switch {
	case strings.HasPrefix(path, "/io/v2/"):
		c.through(ManagementPlane, w, r, strings.TrimPrefix(path, "/io/v2"), c.serveManagement)
	case strings.HasPrefix(path, "/ai/v2/"):
		c.through(QueuePlane, w, r, strings.TrimPrefix(path, "/ai/v2"), c.serveQueue)
	case strings.HasPrefix(path, "/lb/"):
		c.through(BalancerPlane, w, r, strings.TrimPrefix(path, "/lb"), c.serveBalancer)
	case strings.HasPrefix(path, "/pod/"):
		c.through(PodPlane, w, r, strings.TrimPrefix(path, "/pod"), c.servePod)
	default:
		html(w, http.StatusNotFound, "404 Not Found")
	}
}

// through carries out the plane's trouble.
func (c *Cloud) through(p Plane, w http.ResponseWriter, r *http.Request, path string, next func(http.ResponseWriter, *http.Request, string)) {
	c.mu.Lock()
	t := c.trouble[p]
	c.mu.Unlock()
	if t.Delay > 0 && fakecloud.Pause(r.Context(), t.Delay) != nil {
		panic(http.ErrAbortHandler)
	}
	switch {
	case t.Reset:
		reset(r)
	case t.Status != 0:
		html(w, t.Status, fmt.Sprintf("%d %s", t.Status, http.StatusText(t.Status)))
		return
	case t.Malformed:
		w = &halver{ResponseWriter: w}
	}
	next(w, r, path)
}

// halver sends half of each write of JSON.
type halver struct{ http.ResponseWriter }

func (h *halver) Write(p []byte) (int, error) {
	if !strings.Contains(h.Header().Get("Content-Type"), "json") {
		return h.ResponseWriter.Write(p)
	}
	h.Header().Del("Content-Length")
	_, err := h.ResponseWriter.Write(p[:len(p)/2])
	return len(p), err
}

// Unwrap is for http.ResponseController.
func (h *halver) Unwrap() http.ResponseWriter { return h.ResponseWriter }

// reset ends the connection of r with RST.
func reset(r *http.Request) {
	if tcp, ok := r.Context().Value(connKey{}).(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	panic(http.ErrAbortHandler)
}

// errKey says what is wrong with a request's key.
var (
	errNoKey  = errors.New("no token provided")
	errBadKey = errors.New("invalid api key")
)

// authorize checks the key: "Bearer KEY", or on the data plane the bare key.
func (c *Cloud) authorize(r *http.Request, bare bool) error {
	got := r.Header.Get("Authorization")
	if scheme, rest, ok := strings.Cut(got, " "); ok && strings.EqualFold(scheme, "bearer") {
		got = strings.TrimSpace(rest)
	} else if !bare {
		got = ""
	}
	switch {
	case got == "":
		return errNoKey
	case subtle.ConstantTimeCompare([]byte(got), []byte(c.cfg.APIKey)) != 1:
		return errBadKey
	}
	return nil
}
