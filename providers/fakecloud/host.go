package fakecloud

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"headrace/router/endpoint"
)

// HostConfig sets a host up. The zero value is an A100 that answers without any waiting on a free loopback port.
type HostConfig struct {
	Name   string   // default "host"
	Addr   string   // IPv4 address and port; default "127.0.0.1:0"
	Models []string // ids it serves; default the class's. One that contains "reason" thinks before it answers

	Class      Class         // default Classes[0]
	Provider   string        // whose offer of the class it is: "vast", or "runpod" by default
	TPS        float64       // tokens per second of one stream; default drawn from the offer by Seed
	TTFT       time.Duration // of a short prompt on the idle host; default drawn from the offer by Seed
	USDPerHour float64       // default drawn from the offer by Seed
	MaxNumSeqs int           // default the class's
	TimeScale  float64       // every duration of the engine is divided by it; 0 means no waiting at all
	Seed       uint64        // of all that is drawn

	APIKey      string        // bearer it asks for under /v1; "" asks for none
	MaxModelLen int           // tokens of prompt and answer together; default 131072
	KeepAlive   time.Duration // until an idle connection is closed; default 5 s, as uvicorn does
	Legacy      bool          // answer as old vLLM versions did: flat errors, vllm:gpu_cache_usage_perc
	Prefill     Prefill       // what becomes of continue_final_message
	NoTokenIDs  bool          // knows no return_token_ids, and takes the numbers of a prompt for text

	TLS           bool             // serve https with a certificate by a CA of its own
	CAFile        string           // with TLS: the CA's certificate is written here
	Certificate   *tls.Certificate // with TLS: shown instead of one by a CA of its own
	RedirectPlain bool             // with TLS: plain http at the same port is sent to https, as Caddy does

	// Wrap goes around what answers: what a provider's image puts in front of the model. It lives and dies with the
	// host; what it answers itself is in no books.
	Wrap func(http.Handler) http.Handler

	Chunking          Chunking
	AllowHeaderFaults bool // let requests ask for faults: x-fake-fault: KIND[,after=N…][; KIND…]
	Keep              int  // requests that Requests returns; default 64
}

// Prefill is what a host makes of an unfinished assistant message that a chat request wants continued. The zero value
// goes on where it ends.
type Prefill uint8

// Kinds of hosts.
const (
	PrefillContinues Prefill = iota
	PrefillTrims             // goes on, but its template drops white space at the end of the message
	PrefillIgnored           // knows no continue_final_message: closes the message and answers anew
	PrefillRefused           // 400, as engines do that take no field they do not know
)

// Chunking is how a host cuts its streams into writes. The zero value writes each event by itself.
type Chunking struct {
	Batched    bool // as the fault Batched
	Ragged     bool // as the fault Ragged
	SplitChars bool // as the fault SplitChars
}

func (c Chunking) apply(p *plan) {
	for k, on := range map[Kind]bool{Batched: c.Batched, Ragged: c.Ragged, SplitChars: c.SplitChars} {
		if on {
			p.add(Fault{Kind: k})
		}
	}
}

func (c *HostConfig) fill() {
	if c.Class.Name == "" {
		c.Class = Classes[0]
	}
	offer := c.Class.Offer(c.Provider)
	rng := rand.New(rand.NewPCG(c.Seed, hash(c.Name))) //nolint:gosec // hosts are to be repeatable
	tps, ttft, usd := offer.TPS.draw(rng), offer.TTFT.draw(rng), offer.USDPerHour.draw(rng)
	c.Name = cmp.Or(c.Name, "host")
	c.Addr = cmp.Or(c.Addr, "127.0.0.1:0")
	c.Provider = cmp.Or(c.Provider, "runpod")
	c.TPS = cmp.Or(c.TPS, tps)
	c.TTFT = cmp.Or(c.TTFT, time.Duration(ttft*float64(time.Millisecond)))
	c.USDPerHour = cmp.Or(c.USDPerHour, usd)
	c.MaxNumSeqs = cmp.Or(c.MaxNumSeqs, c.Class.MaxNumSeqs)
	c.MaxModelLen = cmp.Or(c.MaxModelLen, 131072)
	c.KeepAlive = cmp.Or(c.KeepAlive, 5*time.Second)
	c.Keep = cmp.Or(c.Keep, 64)
	if len(c.Models) == 0 {
		c.Models = []string{c.Class.Model}
	}
	c.Models = slices.Clone(c.Models)
}

// Host is one fake GPU host. Its methods may be called from any goroutine.
type Host struct {
	cfg     HostConfig
	at      atomic.Pointer[place]
	created int64 // Unix seconds of its first start
	engine  *engine
	books   books
	ring    ring
	script  script

	mu      sync.Mutex // guards all below
	life    *life      // nil while the host is down
	dark    func()     // lets connections through again; nil while the host is not cut off
	release func()     // gives the port back; nil once the host is stopped for good
	forget  func() bool
}

// place is where a host is.
type place struct {
	bound string // address and port
	url   string
	tls   *tls.Config // nil for plain http
	caPEM []byte
}

// StartHost starts a host. It runs until Stop, or until ctx is done, which ends it as Kill does and for good.
func StartHost(ctx context.Context, cfg HostConfig) (*Host, error) {
	cfg.fill()
	release, bound, err := hold(cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("start host %s: %w", cfg.Name, err)
	}
	h := &Host{
		cfg: cfg, created: time.Now().Unix(), release: release,
		engine: newEngine(newSpeed(cfg.TPS, cfg.TTFT, cfg.Class), cfg.TimeScale, cfg.Class, cfg.MaxNumSeqs),
	}
	h.ring.max = cfg.Keep
	h.script.seed = cfg.Seed
	if err := h.start(bound); err != nil {
		release()
		return nil, fmt.Errorf("start host %s: %w", cfg.Name, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.forget = context.AfterFunc(ctx, func() { h.end(true, 0, false) })
	return h, nil
}

func (h *Host) start(bound string) error {
	if err := h.settle(bound); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.up()
}

// settle makes bound the place of the host.
func (h *Host) settle(bound string) error {
	host, port, err := net.SplitHostPort(bound)
	if err != nil {
		return err
	}
	ip := net.ParseIP(host)
	if ip == nil || ip.IsUnspecified() {
		ip = net.IPv4(127, 0, 0, 1)
	}
	p := &place{bound: bound, url: "http://" + net.JoinHostPort(ip.String(), port)}
	if h.cfg.TLS {
		p.url = "https://" + net.JoinHostPort(ip.String(), port)
		if h.cfg.Certificate != nil {
			p.tls = serverTLS(*h.cfg.Certificate)
		} else if p.tls, p.caPEM, err = certify(h.cfg.Name, ip); err != nil {
			return err
		}
		if h.cfg.CAFile != "" {
			if err := os.WriteFile(h.cfg.CAFile, p.caPEM, 0o600); err != nil {
				return err
			}
		}
	}
	h.at.Store(p)
	return nil
}

// Name returns the host's name.
func (h *Host) Name() string { return h.cfg.Name }

// URL returns where the host is, without a path. It stays the same until Move.
func (h *Host) URL() string { return h.at.Load().url }

// Config returns the host's settings with all that was left out filled in.
func (h *Host) Config() HostConfig { return h.cfg }

// CAPEM returns the certificate of the CA behind a host with TLS, nil for any other.
func (h *Host) CAPEM() []byte { return h.at.Load().caPEM }

// Stats returns the host's books.
func (h *Host) Stats() Stats {
	s, _ := h.books.view(false)
	return s
}

// Wait returns when the books satisfy done, or with ctx's error when it is done first.
func (h *Host) Wait(ctx context.Context, done func(Stats) bool) error {
	if err := h.books.await(ctx, done); err != nil {
		return fmt.Errorf("wait for host %s (%+v): %w", h.cfg.Name, h.Stats(), err)
	}
	return nil
}

// Requests returns the last requests the host got, oldest first.
func (h *Host) Requests() []Received { return h.ring.all() }

// Endpoint describes the host as a router sees it, with the id "static:NAME".
func (h *Host) Endpoint() endpoint.Endpoint {
	c := h.cfg
	e := endpoint.Endpoint{
		ID:       endpoint.ID("static:" + c.Name),
		Provider: "static",
		BaseURL:  h.URL() + "/v1",
		APIKey:   endpoint.Secret(c.APIKey),
		Hardware: endpoint.Hardware{GPU: c.Class.GPU, GPUCount: c.Class.GPUCount},
		Price: endpoint.Price{
			Basis: endpoint.PerHour, USDPerHour: c.USDPerHour, AsOf: time.Unix(h.created, 0), Source: "fake cloud",
		},
		MaxNumSeqs: c.MaxNumSeqs,
		Tenure:     tenure(c.Provider),
		State:      endpoint.Ready,
		TLS:        endpoint.TLS{Roots: string(h.CAPEM())},
	}
	for _, m := range c.Models {
		e.Served = append(e.Served, endpoint.Served{Name: m, MaxContext: c.MaxModelLen})
	}
	return e
}

func tenure(provider string) endpoint.Tenure {
	if provider == "vast" {
		return endpoint.Interruptible
	}
	return endpoint.OnDemand
}

// SetFaults replaces the faults of the host; without any it is well again, but requests that hang stay so. The error
// is of a host that could not listen again after Refuse.
func (h *Host) SetFaults(faults ...Fault) error {
	h.script.set(faults)
	refuse := slices.ContainsFunc(faults, func(f Fault) bool { return f.Kind == Refuse })
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.life == nil:
		return nil
	case refuse:
		h.life.deaf()
		return nil
	default:
		return h.life.listen(h)
	}
}

// Kill takes the host away as a preemption does: all connections are reset, new ones refused. It returns when
// nothing of the host runs any more.
func (h *Host) Kill() { h.end(false, 0, false) }

// Exit is the end of the server's process, as by an orderly shutdown of the machine: like Kill, but connections end by FIN, in
// the middle of whatever they carry.
func (h *Host) Exit() { h.end(false, 0, true) }

// stopLimit is how long Stop waits for running requests.
const stopLimit = 5 * time.Second

// Stop ends the host for good: nothing new is taken, running requests have five seconds to finish and those that
// hang by a fault none. It returns when nothing of the host runs any more.
func (h *Host) Stop() { h.end(true, stopLimit, false) }

// Revive brings a killed host back at the same address, with an empty prefix cache and the books it had.
func (h *Host) Revive() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.release == nil:
		return fmt.Errorf("revive host %s: stopped for good", h.cfg.Name)
	case h.life != nil:
		return nil
	}
	h.engine.forget()
	return h.up()
}

func (h *Host) end(forGood bool, grace time.Duration, gently bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.life != nil {
		h.life.end(grace, gently)
		h.life = nil
	}
	if forGood && h.release != nil {
		h.lighten()
		h.release()
		h.release = nil
		if h.forget != nil {
			h.forget()
		}
	}
}

// up begins a life. The caller holds mu.
func (h *Host) up() error {
	l := &life{quit: make(chan struct{}), idle: make(chan struct{}), conns: map[*conn]struct{}{}, books: &h.books}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	if h.dark != nil {
		l.ice.freeze()
	}
	var handler http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.serve(l, w, r) })
	if h.cfg.Wrap != nil {
		handler = h.cfg.Wrap(handler)
	}
	l.srv = &http.Server{
		Handler:           handler,
		BaseContext:       func(net.Listener) context.Context { return l.ctx },
		IdleTimeout:       h.cfg.KeepAlive,
		ReadHeaderTimeout: time.Minute,
		MaxHeaderBytes:    64 << 10, // uvicorn's limit
		ConnState:         l.used,
		TLSNextProto:      map[string]func(*http.Server, *tls.Conn, http.Handler){},
		ErrorLog:          log.New(discard{}, "", 0), // handshakes and resets are what tests do here
	}
	if err := l.listen(h); err != nil {
		l.cancel()
		return err
	}
	h.life = l
	return nil
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
