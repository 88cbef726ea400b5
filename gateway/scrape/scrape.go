// Package scrape asks the engines of hosts how busy they are, at their /metrics: what runs, what waits, how full the KV
// cache is. That covers all who send there, also what other gateways do.
//
// Only hosts that are up and paid by the hour are asked. A sleeping worker would be woken and billed, a queue in front of
// workers answers for itself only, and an API has no such page.
package scrape

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"headrace/router/capacity"
	"headrace/router/endpoint"
)

// Options set up a Poller; zero values mean the defaults named here.
type Options struct {
	Every      time.Duration // between two questions to a host; default 5 s
	Timeout    time.Duration // of one question; default 1 s
	Concurrent int           // questions at once; default 32
	Log        *slog.Logger
	// Deliver gets what an engine said, from many goroutines; an answer that was under way while Update took its host out may
	// still come. Required.
	Deliver func(endpoint.ID, capacity.Engine)
}

const (
	maxPage = 1 << 20 // bytes of a page that are looked at
	// A host without metrics is asked again after 6, then 12 intervals, then no more until its address or state changes.
	noneWait  = 6
	noneTries = 3
	// A host that does not answer is asked ever more seldom, down to once in 12 intervals.
	failWait = 12
)

// Poller asks a changing set of hosts.
type Poller struct {
	opt   Options
	slots chan struct{}
	news  chan struct{}

	mu    sync.Mutex // guards sites
	sites map[endpoint.ID]site
}

// site is where and how a host is asked.
type site struct {
	url string
	key endpoint.Secret
	tls endpoint.TLS
}

// New returns a Poller without hosts.
func New(o Options) *Poller {
	if o.Deliver == nil {
		panic("BUG: scrape.New without Deliver")
	}
	if o.Every <= 0 {
		o.Every = 5 * time.Second
	}
	if o.Timeout <= 0 {
		o.Timeout = time.Second
	}
	if o.Concurrent <= 0 {
		o.Concurrent = 32
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Poller{opt: o, slots: make(chan struct{}, o.Concurrent), news: make(chan struct{}, 1)}
}

// Update makes eps the hosts that are asked, as far as they may be.
func (p *Poller) Update(eps []endpoint.Endpoint) {
	sites := make(map[endpoint.ID]site)
	for i := range eps {
		if ep := &eps[i]; asked(ep) {
			sites[ep.ID] = site{page(ep.BaseURL), ep.APIKey, ep.TLS}
		}
	}
	p.mu.Lock()
	p.sites = sites
	p.mu.Unlock()
	select {
	case p.news <- struct{}{}:
	default:
	}
}

// asked tells whether a host may be asked: it is up, it speaks for itself, and asking it costs nothing.
func asked(ep *endpoint.Endpoint) bool {
	if ep.Dialect != endpoint.OpenAI {
		return false
	}
	switch ep.Tenure {
	case endpoint.Serverless, endpoint.TenurePerToken:
		return false
	case endpoint.TenureUnknown, endpoint.Interruptible, endpoint.OnDemand:
	}
	switch ep.Price.Basis {
	case endpoint.PerWorkerSecond, endpoint.PerToken:
		return false
	case endpoint.BasisUnknown, endpoint.PerHour:
	}
	switch ep.State {
	case endpoint.Cold, endpoint.Starting, endpoint.Preempted, endpoint.Draining, endpoint.Gone, endpoint.NoCapacity:
		return false
	case endpoint.StateUnknown, endpoint.Ready, endpoint.Saturated:
	}
	return true
}

// page is where engines show their metrics: beside /v1, not below it.
func page(baseURL string) string {
	return strings.TrimSuffix(strings.TrimRight(baseURL, "/"), "/v1") + "/metrics"
}

// Run asks until ctx is done, and returns its error.
func (p *Poller) Run(ctx context.Context) error {
	type loop struct {
		site site
		stop context.CancelFunc
	}
	loops := make(map[endpoint.ID]loop)
	var running sync.WaitGroup
	defer running.Wait()
	for {
		p.mu.Lock()
		sites := p.sites // never altered
		p.mu.Unlock()
		for id, l := range loops {
			if s, ok := sites[id]; !ok || s != l.site {
				l.stop()
				delete(loops, id)
			}
		}
		for id, s := range sites {
			if _, ok := loops[id]; ok {
				continue
			}
			askCtx, stop := context.WithCancel(ctx) //nolint:gosec // stopped when the host goes, or with ctx
			loops[id] = loop{s, stop}
			running.Go(func() { defer stop(); p.ask(askCtx, id, s) })
		}
		select {
		case <-p.news:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// ask asks one host until ctx is done or the host plainly has no metrics.
func (p *Poller) ask(ctx context.Context, id endpoint.ID, s site) {
	client, err := p.client(&s)
	if err != nil {
		p.opt.Log.Warn("host is not asked for its load", "endpoint", id, "error", err)
		return
	}
	var (
		room    []byte
		history cache
		misses  int
		failing bool
	)
	every := p.opt.Every
	backOff := every
	wait := rand.N(every) //nolint:gosec // spreads questions, guards nothing
	for p.rest(ctx, wait) {
		var got sample
		room, err = p.fetch(ctx, client, &s, room[:0], &got)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			p.opt.Deliver(id, history.engine(&got, time.Now()))
			misses, failing, backOff, wait = 0, false, every, every
		case errors.Is(err, errNone):
			if misses++; misses == noneTries {
				p.opt.Log.Info("host has no metrics of its load and is not asked again before its address or state changes", "endpoint", id, "error", err)
				return
			}
			wait = noneWait * time.Duration(misses) * every
		default:
			if !failing {
				p.opt.Log.Debug("host does not tell its load", "endpoint", id, "error", err)
			}
			failing = true
			backOff = min(2*backOff, failWait*every)
			wait = backOff
		}
		wait += rand.N(wait/8 + 1) //nolint:gosec // likewise
	}
}

// rest waits; false when ctx is done.
func (p *Poller) rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// errNone says that the host has no page, or one without an engine's load.
var errNone = errors.New("no metrics of an engine")

// fetch reads the page into room, which it returns for the next time, and what it says into s.
func (p *Poller) fetch(ctx context.Context, client *http.Client, at *site, room []byte, s *sample) ([]byte, error) {
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return room, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, p.opt.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.url, nil)
	if err != nil {
		return room, err
	}
	req.Header.Set("User-Agent", "headrace")
	req.Header.Set("Accept", "text/plain;version=0.0.4")
	if at.key != "" {
		req.Header.Set("Authorization", "Bearer "+at.key.Reveal())
	}
	res, err := client.Do(req)
	if err != nil {
		return room, err
	}
	defer func() { _ = res.Body.Close() }()
	switch c := res.StatusCode; {
	case c >= 300 && c < 400, c == http.StatusUnauthorized, c == http.StatusForbidden, c == http.StatusNotFound, c == http.StatusMethodNotAllowed,
		c == http.StatusGone, c == http.StatusNotImplemented:
		return room, fmt.Errorf("%w: status %d", errNone, c)
	case c != http.StatusOK:
		return room, fmt.Errorf("status %d", c)
	}
	room, err = readAtMost(res.Body, room, maxPage)
	if err != nil {
		return room, err
	}
	if !scan(room, s) {
		return room, errNone
	}
	return room, nil
}

// readAtMost appends to b what r holds, up to a limit; a line that the limit cuts is left out.
func readAtMost(r io.Reader, b []byte, limit int) ([]byte, error) {
	for len(b) < limit {
		if len(b) == cap(b) {
			b = append(b, make([]byte, max(16<<10, len(b)))...)[:len(b)]
		}
		n, err := r.Read(b[len(b):min(cap(b), limit)])
		b = b[:len(b)+n]
		if errors.Is(err, io.EOF) {
			return b, nil
		}
		if err != nil {
			return b, err
		}
	}
	for len(b) > 0 && b[len(b)-1] != '\n' {
		b = b[:len(b)-1]
	}
	return b, nil
}

// client speaks to one host. Engines close idle connections about as often as they are asked, so none is kept.
func (p *Poller) client(s *site) (*http.Client, error) {
	u, err := url.Parse(s.url)
	if err != nil {
		return nil, errors.New("base URL cannot be parsed")
	}
	cfg, err := s.tls.Config(u.Hostname())
	if err != nil {
		return nil, err
	}
	return &http.Client{
		Transport:     &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // the key goes nowhere else
	}, nil
}

// cache follows the counters of a prefix cache, to tell the hit rate of late.
type cache struct {
	hits, queries float64
	rate          float64
	known         bool
}

// engine turns a page into what is delivered.
func (c *cache) engine(s *sample, at time.Time) capacity.Engine {
	e := capacity.Engine{Running: s.running, Waiting: s.waiting, KVUse: math.NaN(), CacheHitRate: math.NaN(), At: at}
	if s.kvs > 0 {
		e.KVUse = min(1, s.kv/float64(s.kvs))
	}
	if s.queries < c.queries || s.hits < c.hits { // the engine was started anew
		c.hits, c.queries = 0, 0
	}
	switch d := s.queries - c.queries; {
	case d > 0: // of the first page: since the engine started
		c.rate, c.known = max(0, min(1, (s.hits-c.hits)/d)), true
	case s.rates > 0:
		c.rate, c.known = s.rate/float64(s.rates), true
	}
	c.hits, c.queries = s.hits, s.queries
	if c.known {
		e.CacheHitRate = c.rate
	}
	return e
}
