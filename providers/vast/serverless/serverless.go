// Package serverless offers the serverless endpoints of an account at Vast.ai as hosts: it finds them, knows what
// their workers cost and do, and translates for those whose workers are called directly.
package serverless

import (
	"context"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"headrace/providers/api"
	"headrace/router/endpoint"
)

// Way is how requests get to an endpoint's workers.
type Way uint8

// Ways.
const (
	Proxy Way = iota // Vast.ai's OpenAI proxy: plain OpenAI HTTP
	Route            // a worker is asked for, then called itself
)

// PayloadForm is how a worker wants the caller's body. It differs by the worker's version, which nothing tells.
type PayloadForm uint8

// Payload forms.
const (
	Auto    PayloadForm = iota // Wrapped first, the other when a worker does not understand it; what worked is remembered
	Wrapped                    // {"input": body}: Vast.ai's own templates
	Bare                       // the body itself: workers built on the current SDK
)

// Options set up a Provider; zero values mean the defaults named here.
type Options struct {
	Key        endpoint.Secret // of the account
	ConsoleURL string          // default https://console.vast.ai
	RunURL     string          // default https://run.vast.ai
	OpenAIURL  string          // default https://openai.vast.ai

	// Endpoints are the names to use, exact or with "*" at the end; nil means all. Way, Payload and Models are by such
	// patterns too: the exact one counts before the longest one.
	Endpoints []string
	Way       map[string]Way
	Payload   map[string]PayloadForm
	Models    map[string][]string

	// TLS is how workers prove who they are; zero means with a certificate below Vast.ai's root, which is read from
	// ConsoleURL. InsecureSkipVerify lets workers speak plain HTTP as well.
	TLS endpoint.TLS

	Poll    time.Duration // between two looks; default 15 s
	Prices  time.Duration // age at which workers' prices are read again; default 1 min
	MaxWait time.Duration // that a request waits for a worker; default 20 min, since big models take a quarter of an hour to start
	Wait    time.Duration // the unit of waits between questions for a worker; default 1 s, as Vast.ai's own client
	// Pace multiplies the least times between calls that Vast.ai's rate limit asks for; default 1. Below 1 is for fakes.
	Pace float64

	Log   *slog.Logger
	Now   func() time.Time // default time.Now
	Share Share            // nil: this replica polls alone
	// Client asks the console, so that its limits are kept together with the account's other users, who count its calls;
	// default one of its own.
	Client *api.Client
	// Transport carries calls to the console and to the serverless engine, not those to workers.
	Transport http.RoundTripper
}

// Provider is the discoverer of an account's serverless endpoints, and the translator for them.
type Provider struct {
	opt     Options
	console *api.Client
	engine  *api.Client // run.vast.ai
	nudged  chan struct{}

	known map[string]*job // by name; Run's goroutine alone reads and writes it, and Inherit while there is none
	rates map[int64]rate  // of workers, by instance id; Run's as well
	root  string          // Vast.ai's root certificate as PEM; Run's as well
	// within is how old another replica's answer may be for the look under way; Run's as well.
	within time.Duration

	mu     sync.Mutex // guards all below
	status api.Status
	forms  map[string]PayloadForm // by endpoint name: what its workers understood
	ways   map[endpoint.TLS]*http.Transport
}

// New returns a Provider.
func New(o Options) *Provider {
	text := func(s *string, def string) {
		if *s = strings.TrimRight(*s, "/"); *s == "" {
			*s = def
		}
	}
	span := func(d *time.Duration, def time.Duration) {
		if *d <= 0 {
			*d = def
		}
	}
	text(&o.ConsoleURL, "https://console.vast.ai")
	text(&o.RunURL, "https://run.vast.ai")
	text(&o.OpenAIURL, "https://openai.vast.ai")
	span(&o.Poll, 15*time.Second)
	span(&o.Prices, time.Minute)
	span(&o.MaxWait, 20*time.Minute)
	span(&o.Wait, time.Second)
	if o.Pace <= 0 {
		o.Pace = 1
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Transport == nil {
		o.Transport = &http.Transport{
			Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 64, IdleConnTimeout: 30 * time.Second, // each request asks for a route
			TLSHandshakeTimeout: 10 * time.Second, ForceAttemptHTTP2: true,
		}
	}
	client := func() *api.Client {
		return api.New(api.Options{Provider: "vast", Key: o.Key, Transport: o.Transport, Now: o.Now, Backoff: o.Wait / 2})
	}
	console := o.Client
	if console == nil {
		console = client()
	}
	return &Provider{
		opt: o, console: console, engine: client(), nudged: make(chan struct{}, 1),
		known: map[string]*job{}, rates: map[int64]rate{}, root: o.TLS.Roots,
		status: api.Status{Provider: "vast serverless", Oddities: map[string]int64{}},
		forms:  map[string]PayloadForm{}, ways: map[endpoint.TLS]*http.Transport{},
	}
}

// Inherit takes over what old has learned: models and prices of endpoints, and which payload their workers understand. It does nothing
// if old asks another account, or asks it elsewhere. old's Run must have ended, and p's not begun.
func (p *Provider) Inherit(old *Provider) {
	if old.opt.Key != p.opt.Key || old.opt.ConsoleURL != p.opt.ConsoleURL || old.opt.RunURL != p.opt.RunURL {
		return
	}
	maps.Copy(p.known, old.known)
	maps.Copy(p.rates, old.rates)
	if old.opt.TLS == p.opt.TLS {
		p.root = old.root
	}
	old.mu.Lock()
	forms := maps.Clone(old.forms)
	old.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.Copy(forms, p.forms)
	p.forms = forms
}

// Run sends the endpoints, then again after every change, until ctx is done. A look that fails sends nothing.
func (p *Provider) Run(ctx context.Context, out chan<- []endpoint.Endpoint) error {
	defer p.closeIdle()
	var last []endpoint.Endpoint
	p.within = p.opt.Poll * 9 / 10
	for sent := false; ; {
		eps, err := p.look(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		p.note(last, eps, err)
		if err == nil && (!sent || !reflect.DeepEqual(eps, last)) {
			select {
			case out <- slices.Clone(eps):
				last, sent = eps, true
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		t := time.NewTimer(p.opt.Poll + time.Duration(rand.Int64N(int64(p.opt.Poll/8)+1))) //nolint:gosec // spreads questions, guards nothing
		select {
		case <-t.C:
			p.within = p.opt.Poll * 9 / 10
		case <-p.nudged: // what was answered before that is of no use
			p.within = min(p.paced(jobsEvery), p.opt.Poll*9/10)
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// Nudge says that traffic failed at an endpoint: its workers are looked at soon. Other providers' IDs are ignored. It never blocks.
func (p *Provider) Nudge(id endpoint.ID) {
	if !strings.HasPrefix(string(id), idPrefix) {
		return
	}
	select {
	case p.nudged <- struct{}{}:
	default: // a look is due already
	}
}

// Status tells how the provider fares.
func (p *Provider) Status() api.Status {
	p.mu.Lock()
	s := p.status
	s.Skipped, s.Oddities = slices.Clone(s.Skipped), maps.Clone(s.Oddities)
	p.mu.Unlock()
	s.Calls = p.engine.Stats()
	if p.opt.Client == nil {
		s.Calls = append(p.console.Stats(), s.Calls...)
	}
	return s
}

// note keeps how a look went and logs what changed.
func (p *Provider) note(last, eps []endpoint.Endpoint, err error) {
	p.mu.Lock()
	failing := p.status.Failing
	p.status.Polls++
	if err != nil {
		p.status.Failing++
		p.status.LastError = err.Error()
	} else {
		p.status.Failing, p.status.LastError = 0, ""
		p.status.LastGood, p.status.Endpoints = p.opt.Now(), len(eps)
	}
	p.mu.Unlock()
	switch {
	case err != nil && failing == 0:
		p.opt.Log.Warn("Vast.ai's serverless endpoints cannot be read; the last good fleet stays in use", "error", err)
	case err != nil:
	case failing > 0:
		p.opt.Log.Info("Vast.ai's serverless endpoints can be read again", "failed_polls", failing)
	}
	if err != nil {
		return
	}
	was := map[endpoint.ID]endpoint.State{}
	for i := range last {
		was[last[i].ID] = last[i].State
	}
	for i := range eps {
		ep := &eps[i]
		if s, there := was[ep.ID]; !there || s != ep.State {
			p.opt.Log.Info("serverless endpoint", "endpoint", ep.ID, "state", ep.State, "why", ep.StateReason, "workers", ep.Workers)
		}
		delete(was, ep.ID)
	}
	for id := range was {
		p.opt.Log.Info("serverless endpoint is gone", "endpoint", id)
	}
}

const maxOddities = 100 // words of a provider gone mad must not fill the memory

// odd counts what was not understood.
func (p *Provider) odd(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, there := p.status.Oddities[what]; there || len(p.status.Oddities) < maxOddities {
		p.status.Oddities[what]++
	}
}

func (p *Provider) closeIdle() {
	p.console.CloseIdle()
	p.engine.CloseIdle()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.ways {
		t.CloseIdleConnections()
	}
}

// matches tells whether pattern, exact or with "*" at its end, means name.
func matches(pattern, name string) bool {
	if head, open := strings.CutSuffix(pattern, "*"); open {
		return strings.HasPrefix(name, head)
	}
	return pattern == name
}

// of returns what m says of name: the exact entry, else that of the longest pattern, else the zero value.
func of[V any](m map[string]V, name string) (v V) {
	if v, ok := m[name]; ok {
		return v
	}
	best := ""
	for pattern := range m {
		if len(pattern) > len(best) && matches(pattern, name) {
			best = pattern
		}
	}
	return m[best]
}
