// Package runpod finds the serverless endpoints, and on demand the pods, of an account at RunPod: where each is reached and how
// it is spoken to, which models it serves, whether a worker is up, what a worker costs this minute. It asks RunPod's REST v2 and
// the endpoints' /health, and never what would wake a worker: GET /openai/v1/models is a job like any other.
package runpod

import (
	"cmp"
	"context"
	"hash/maphash"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"headrace/providers/api"
	"headrace/router/endpoint"
)

const provider = "runpod"

// Where RunPod is reached unless Options say otherwise (docs.runpod.io).
const (
	DefaultManagementURL = "https://api.runpod.io/v2"
	DefaultQueueURL      = "https://api.runpod.ai/v2"
	DefaultBalancerURL   = "https://{id}.api.runpod.ai"
	DefaultPodURL        = "https://{id}-{port}.proxy.runpod.net"
)

// Options set up a Provider; zero values mean the defaults named here. Patterns are ids or names, exact or with "*" at the end.
type Options struct {
	Key endpoint.Secret // of the account

	ManagementURL string // REST v2
	QueueURL      string // queue endpoints, and the /health of all
	BalancerURL   string // load-balancing endpoints; {id} stands for theirs
	PodURL        string // pods behind RunPod's proxy; {id} and {port} stand for theirs

	Endpoints []string            // patterns; none for all that have GPUs
	Models    map[string][]string // ids that an endpoint serves, by pattern; in place of what its settings say
	Native    map[string]bool     // endpoints whose handler has no OpenAI route, by pattern
	Pods      []PodOptions        // the first that fits a pod counts
	AllPods   bool                // use pods that no PodOptions fit too, at port 8000

	// Prices are USD for a second of one GPU, by GPU type ("NVIDIA L4" or "L4") or by pool ("AMPERE_24"). They win over the catalogue.
	Prices map[string]float64

	Poll            time.Duration // between two looks at the account; default 60 s, more where RunPod's rate limit asks for it
	HealthPoll      time.Duration // between two looks at an endpoint's /health; default 5 s, up to six times that while it sleeps
	CatalogPoll     time.Duration // between two looks at the price list, and at the workers of an endpoint that stay the same; default 10 min
	HealthPerSecond int           // looks at /health, all endpoints together; default 100
	// Settle is how long a worker that has come up may still be loading its model; default 30 s. One that was seen to work is not
	// doubted.
	Settle         time.Duration
	RequestTimeout time.Duration // of one call; default 15 s
	// Pace multiplies what is assumed of cold starts, and the steps in which they are told; default 1. Below 1 is for fakes.
	Pace float64

	Log       *slog.Logger
	Now       func() time.Time
	Transport http.RoundTripper
}

// PodOptions say how pods are used.
type PodOptions struct {
	Match  string
	Port   int             // inside the pod; default 8000
	TCP    bool            // by the pod's public TCP port, without TLS, instead of RunPod's proxy
	Spot   bool            // it may be taken away: REST v2 does not tell
	Key    endpoint.Secret // that the server in the pod asks for
	Models []string        // ids it serves; nil to ask its /v1/models
}

// Provider is the discoverer of an account at RunPod. Nudge, Learned, Report and Status may be called from any goroutine.
type Provider struct {
	opt    Options
	began  time.Time
	manage *api.Client // REST v2
	health *api.Client // /health: the next look is the second try
	inside *api.Client // servers in pods, which must not see the account's key

	// Run's own, as long as it runs.
	services map[string]*service
	order    []*service          // by id
	bySum    map[uint64]*service // by their entry's hash
	heritage map[string]*service // what an earlier Provider knew, until the first list
	seed     maphash.Seed
	pods     map[string]*pod
	catalog  catalog
	budget   *budget
	audit    *api.Audit
	set      []endpoint.Endpoint // what is to be sent, nil when it is to be put together anew
	news     bool
	sentAt   time.Time
	firstBy  time.Time // by then the first set goes out, whatever is still unknown of it; zero before the first good poll

	listing, reading, pricing bool // calls under way
	listAt, podsAt, priceAt   time.Time
	listedAt, podsReadAt      time.Time // begin of the last calls
	priced                    bool      // the price list was asked for, with whatever success
	emptied                   bool      // the last list was empty, which the next one has to confirm
	podsKnown, podsEmptied    bool
	listFails, podFails       int
	priceFails                int
	looks                     int // under way
	lookTokens                float64
	lookFilled                time.Time
	asks                      int
	done                      chan func()
	wg                        sync.WaitGroup

	wake chan struct{}

	mu      sync.Mutex // guards all below
	nudged  map[endpoint.ID]struct{}
	learned map[endpoint.ID]string
	waits   map[endpoint.ID]wait
	work    map[endpoint.ID]*work
	status  api.Status
}

// New returns a Provider that asks nothing yet.
func New(o Options) *Provider {
	o.ManagementURL = strings.TrimRight(cmp.Or(o.ManagementURL, DefaultManagementURL), "/")
	o.QueueURL = strings.TrimRight(cmp.Or(o.QueueURL, DefaultQueueURL), "/")
	o.BalancerURL = strings.TrimRight(cmp.Or(o.BalancerURL, DefaultBalancerURL), "/")
	o.PodURL = strings.TrimRight(cmp.Or(o.PodURL, DefaultPodURL), "/")
	for d, otherwise := range map[*time.Duration]time.Duration{
		&o.Poll: time.Minute, &o.HealthPoll: 5 * time.Second, &o.CatalogPoll: 10 * time.Minute,
		&o.Settle: 30 * time.Second, &o.RequestTimeout: 15 * time.Second,
	} {
		if *d <= 0 {
			*d = otherwise
		}
	}
	if o.HealthPerSecond <= 0 {
		o.HealthPerSecond = 100
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Pods = slices.Clone(o.Pods)
	for i := range o.Pods {
		o.Pods[i].Port = cmp.Or(o.Pods[i].Port, defaultPodPort)
	}
	if o.AllPods {
		o.Pods = append(o.Pods, PodOptions{Match: "*", Port: defaultPodPort})
	}
	client := func(key endpoint.Secret) *api.Client {
		return api.New(api.Options{Provider: provider, Key: key, Timeout: o.RequestTimeout, Tries: 1, Transport: o.Transport, Now: o.Now})
	}
	now := o.Now()
	return &Provider{
		opt: o, began: now, manage: client(o.Key), health: client(o.Key), inside: client(""),
		services: map[string]*service{}, bySum: map[uint64]*service{}, seed: maphash.MakeSeed(), pods: map[string]*pod{}, budget: newBudget(now), audit: &api.Audit{},
		done: make(chan func()), wake: make(chan struct{}, 1),
		nudged: map[endpoint.ID]struct{}{}, learned: map[endpoint.ID]string{}, waits: map[endpoint.ID]wait{}, work: map[endpoint.ID]*work{},
		status: api.Status{Provider: provider, Oddities: map[string]int64{}},
	}
}

func serviceID(id string) endpoint.ID { return endpoint.ID(provider + ":" + id) }

const podPrefix = "pod-"

func podID(id string) endpoint.ID { return endpoint.ID(provider + ":" + podPrefix + id) }

// Nudge tells that a request to an endpoint has failed, so that it is looked at now. It never blocks, and many calls make one
// look.
func (p *Provider) Nudge(id endpoint.ID) {
	p.mu.Lock()
	p.nudged[id] = struct{}{}
	p.mu.Unlock()
	p.signal()
}

// Learned tells the model id under which an endpoint has answered that was known without one.
func (p *Provider) Learned(id endpoint.ID, model string) {
	if model == "" || len(model) > 512 {
		return
	}
	p.mu.Lock()
	p.learned[id] = model
	p.mu.Unlock()
	p.signal()
}

// Report tells what RunPod said of a job: how long it waited teaches what a cold start takes, and when it ran what is billed.
func (p *Provider) Report(id endpoint.ID, r endpoint.WorkerReport) {
	p.mu.Lock()
	p.jobDone(id, &r)
	if r.Delayed > 0 {
		p.waits[id] = wait{begun: p.opt.Now().Add(-r.Executed - r.Delayed), took: r.Delayed}
	}
	p.mu.Unlock()
	if r.Delayed > 0 { // the rest can wait for the next look
		p.signal()
	}
}

// wait is a job's wait for its worker.
type wait struct {
	begun time.Time
	took  time.Duration
}

// Inherit takes over what old has learned of endpoints: names of models, and how long cold starts take. It does nothing if old asks
// another account, or asks it elsewhere. old's Run must have ended, and p's not begun.
func (p *Provider) Inherit(old *Provider) {
	if old.opt.Key != p.opt.Key || old.opt.ManagementURL != p.opt.ManagementURL {
		return
	}
	p.audit, p.audit.Busy = old.audit, false
	p.heritage = maps.Clone(old.heritage)
	if p.heritage == nil {
		p.heritage = map[string]*service{}
	}
	maps.Copy(p.heritage, old.services)
	old.mu.Lock()
	learned, waits := maps.Clone(old.learned), maps.Clone(old.waits) // told too late for old
	bill := old.status.Bill
	old.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.Copy(learned, p.learned)
	maps.Copy(waits, p.waits)
	p.learned, p.waits, p.status.Bill = learned, waits, bill
}

// Native tells whether an endpoint's handler has no OpenAI route, as Options say.
func (p *Provider) Native(ep *endpoint.Endpoint) bool {
	native, _ := lookup(p.opt.Native, strings.TrimPrefix(string(ep.ID), provider+":"), ep.Labels["name"])
	return native
}

func (p *Provider) signal() {
	select {
	case p.wake <- struct{}{}:
	default: // Run has been woken and not yet looked
	}
}

// Status tells how the provider fares.
func (p *Provider) Status() api.Status {
	p.mu.Lock()
	s := p.status
	s.Skipped = slices.Clone(s.Skipped)
	s.Oddities = make(map[string]int64, len(p.status.Oddities))
	maps.Copy(s.Oddities, p.status.Oddities)
	p.mu.Unlock()
	s.Bill = s.Bill.Aged(p.opt.Now())
	s.Calls = slices.Concat(p.manage.Stats(), p.health.Stats(), p.inside.Stats())
	return s
}

const maxKinds = 100 // of oddities; what comes beyond is counted as "other"

// odd counts something that was not understood, and logs the first of its kind.
func (p *Provider) odd(what string) {
	p.mu.Lock()
	if _, ok := p.status.Oddities[what]; !ok && len(p.status.Oddities) >= maxKinds {
		what = "other"
	}
	p.status.Oddities[what]++
	first := p.status.Oddities[what] == 1
	p.mu.Unlock()
	if first {
		p.opt.Log.Warn("RunPod answers in an unexpected way", "what", what)
	}
}

// update changes the status.
func (p *Provider) update(f func(s *api.Status)) {
	p.mu.Lock()
	f(&p.status)
	p.mu.Unlock()
}

// Run sends the account's endpoints once they are known, then again after every change, until ctx is done. A failed poll sends
// nothing. It may be called once.
func (p *Provider) Run(ctx context.Context, out chan<- []endpoint.Endpoint) error {
	defer func() {
		p.wg.Wait()
		p.manage.CloseIdle()
		p.health.CloseIdle()
		p.inside.CloseIdle()
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		now := p.opt.Now()
		p.attend(now)
		next := p.schedule(ctx, now)
		var send chan<- []endpoint.Endpoint
		if at, ok := p.sendable(now); ok && !at.After(now) {
			send = out
			if p.set == nil {
				p.set = p.fleet()
			}
		} else if ok {
			next = earlier(next, at)
		}
		timer.Reset(max(0, next.Sub(now)))
		select {
		case send <- p.set:
			p.set, p.news, p.sentAt = nil, false, now
		case f := <-p.done:
			f()
		case <-p.wake:
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
