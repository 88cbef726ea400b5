// Package probe tests hosts with requests of its own, so that no caller pays for it: whether one that failed is well again,
// and whether one that is well goes on with an unfinished answer.
//
// The router says who is to be tested and judges what is found. Probes go out through gateway/forward as all requests do, and
// carry "x-headrace-probe: 1" and an id that begins with "req_probe_". They are in no ledger.
package probe

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"headrace/gateway/forward"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// Router says whom to test, and is told what was found. *router.Router is one.
type Router interface {
	Probes(now time.Time, dst []router.Probe) []router.Probe
	Probed(id endpoint.ID, class outcome.Class)
	SetPrefill(id endpoint.ID, served string, p router.Prefill)
	Tested(p *router.Probe, found router.Prefill) (kept bool)
	Wants(p *router.Probe) bool
}

// Sharer lets one of several replicas do what they all want at about the same time. *state.Redis is one.
type Sharer interface {
	Once(ctx context.Context, key string, within time.Duration, do func(context.Context) ([]byte, error)) ([]byte, error)
}

// Options set up a Prober; zero values mean the defaults named here.
type Options struct {
	Router  Router          // required
	Forward *forward.Client // required
	Log     *slog.Logger
	// Classify asks the endpoint's provider what an answer means; known is false where it means what its status says.
	Classify func(ep *endpoint.Endpoint, status int, contentType string, body []byte) (c outcome.Class, known bool)
	// Busy tells whether an endpoint has more to do than a self-test should add to; nil is never.
	Busy func(endpoint.ID) bool
	// Answered is told of each answer: the host has worked for it. w is what its provider says of that; nil where nobody cares.
	Answered func(ep *endpoint.Endpoint, w endpoint.WorkerReport)
	Share    Sharer // nil when there is one replica
	// Fresh is how long what one replica has found is good for the others: less than a breaker stays open, so that it was found
	// after whatever opened theirs. Default 1 s.
	Fresh time.Duration

	Every      time.Duration // between two looks at who is due; default 250 ms
	Concurrent int           // tests at once, a quarter of them self-tests at most; default 16
	Within     time.Duration // a host that is up answers so soon; default 12 s
	Spread     time.Duration // self-tests begin that much later at most; default 250 ms, below 0 none
	Now        func() time.Time
}

// Settings are what a reload changes.
type Settings struct {
	SelfTest  bool          // hosts are asked whether they go on with an unfinished answer
	TokenIDs  bool          // and whether they do so by the numbers of its tokens
	ColdStart time.Duration // most that a worker's start may take; 0 is 10 min
}

// Prober tests hosts.
type Prober struct {
	opt   Options
	set   atomic.Pointer[Settings]
	wake  chan struct{}
	slots chan struct{}
	tests chan struct{} // likewise, of self-tests, which are less urgent

	mu    sync.Mutex // guards hosts and all in it
	hosts map[endpoint.ID]*host
}

// host is what was found of one.
type host struct {
	running  *running // the test under way, nil for none
	sent     int64
	failed   int64
	last     outcome.Class
	lastAt   time.Time // zero before the first
	prefills []prefill // by model
}

// running is a test under way.
type running struct {
	selfTest  bool
	stop      context.CancelFunc
	overtaken bool // what it finds is of no use any more; guarded by Prober.mu
}

// prefill is what is known of one of a host's models.
type prefill struct {
	served string
	start  uint32 // of the host, that it is true of: see router.Probe
	verdict
	at      time.Time // zero when there was no test
	misses  int       // tests in a row that came to no verdict
	notTill time.Time // no test before
}

// New returns a Prober that knows nobody.
func New(o Options, s Settings) *Prober {
	if o.Router == nil || o.Forward == nil {
		panic("BUG: probe.New without Router or Forward")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Every <= 0 {
		o.Every = 250 * time.Millisecond
	}
	if o.Concurrent <= 0 {
		o.Concurrent = 16
	}
	if o.Fresh <= 0 {
		o.Fresh = time.Second
	}
	if o.Within <= 0 {
		o.Within = 12 * time.Second
	}
	if o.Spread == 0 {
		o.Spread = 250 * time.Millisecond // no more: until then no answer can be given to the host
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	p := &Prober{opt: o, wake: make(chan struct{}, 1), slots: make(chan struct{}, o.Concurrent), tests: make(chan struct{}, max(1, o.Concurrent/4)), hosts: map[endpoint.ID]*host{}}
	p.Configure(s)
	return p
}

// Configure changes the settings. Token numbers that are wanted from now on are asked of hosts that start from now on: to forget what is
// known of the others would leave nobody to go on with an answer until they are tested again.
func (p *Prober) Configure(s Settings) {
	if s.ColdStart <= 0 {
		s.ColdStart = 10 * time.Minute
	}
	p.set.Store(&s)
}

// Wake has the Prober look at once for hosts that are due.
func (p *Prober) Wake() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Update tells of the fleet, after the router was told: what the operator says of hosts needs no test, and those that are gone
// are forgotten.
func (p *Prober) Update(eps []endpoint.Endpoint) {
	known := make(map[endpoint.ID]bool, len(eps))
	for i := range eps {
		ep := &eps[i]
		known[ep.ID] = true
		v, told := told(ep)
		for j := range ep.Served {
			if told {
				p.tell(ep.ID, ep.Served[j].Name, v)
			} else {
				p.untell(ep.ID, ep.Served[j].Name)
			}
		}
		p.keep(ep)
	}
	p.mu.Lock()
	for id, h := range p.hosts {
		if !known[id] && h.running == nil {
			delete(p.hosts, id)
		}
	}
	p.mu.Unlock()
	p.Wake()
}

// told is what is known of a host without a test.
func told(ep *endpoint.Endpoint) (v verdict, ok bool) {
	switch ep.Continues {
	case endpoint.ContinuesAlways: // whether its template trims is not said: to take it so costs a doubled line end at worst
		return verdict{Prefill: router.Prefill{Known: true, OK: true, Trims: true, Told: true}, why: "configured"}, true
	case endpoint.ContinuesNever:
		return verdict{Prefill: router.Prefill{Known: true, Told: true}, why: "configured"}, true
	case endpoint.ContinuesAuto:
	}
	if ep.Routes != nil && !slices.Contains(ep.Routes, chatPath) && slices.Contains(ep.Routes, completionsPath) {
		return verdict{Prefill: router.Prefill{Known: true, OK: true, Told: true}, why: "a prompt of its completions is never closed"}, true
	}
	return verdict{}, false
}

// Run tests until ctx is done, and returns its error when all that it began has ended.
func (p *Prober) Run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	t := time.NewTicker(p.opt.Every)
	defer t.Stop()
	var due []router.Probe
	for {
		due = p.opt.Router.Probes(p.opt.Now(), due[:0])
		for _, d := range due {
			test, stop := context.WithCancel(ctx)
			switch p.begin(&d, stop) {
			case underWay:
				stop()
				continue // it will report
			case declined:
				stop()
				p.opt.Router.Probed(d.Endpoint.ID, outcome.Unserved)
				continue
			case begun:
			}
			all.Go(func() {
				defer stop()
				class := p.run(test, &d)
				if p.end(d.Endpoint.ID) { // before it is reported: it may be due again this moment
					class = outcome.Unserved
				}
				if ctx.Err() == nil {
					p.opt.Router.Probed(d.Endpoint.ID, class)
				}
				if class == outcome.Success && !d.SelfTest { // streams may wait for the self-test that is due now
					p.Wake()
				}
			})
		}
		select {
		case <-t.C:
		case <-p.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// beginning is what becomes of a test that is due.
type beginning uint8

const (
	begun beginning = iota
	declined
	underWay // another one of the host
)

// begin says whether the test may begin, which stop ends: no host has two at once. It may put another of the host's models in d.
func (p *Prober) begin(d *router.Probe, stop context.CancelFunc) beginning {
	p.mu.Lock()
	h := p.host(d.Endpoint.ID)
	if r := h.running; r != nil {
		if r.selfTest && !d.SelfTest { // the host has failed since: whether it is there is asked, and not how it was before
			r.overtaken = true
			r.stop()
		}
		p.mu.Unlock()
		return underWay
	}
	h.running = &running{selfTest: d.SelfTest, stop: stop}
	wanted := !d.SelfTest || p.set.Load().SelfTest && testable(d.Endpoint) && h.next(d, p.opt.Now())
	p.mu.Unlock()
	if wanted && d.SelfTest && p.opt.Busy != nil {
		wanted = !p.opt.Busy(d.Endpoint.ID)
	}
	if !wanted {
		p.end(d.Endpoint.ID)
		return declined
	}
	return begun
}

// testable tells whether the host may be given a self-test: there is something to be found, its tokens are not for sale one by one, and
// no worker has to start.
func testable(ep *endpoint.Endpoint) bool {
	if _, told := told(ep); told {
		return false
	}
	if ep.Price.Basis == endpoint.PerToken || ep.Tenure == endpoint.TenurePerToken {
		return false
	}
	return ep.Tenure != endpoint.Serverless && ep.Price.Basis != endpoint.PerWorkerSecond || ep.Workers > 0
}

// next puts the model in d that is to be tested; false when none is due. The caller holds Prober.mu.
func (h *host) next(d *router.Probe, now time.Time) bool {
	for i := range h.prefills {
		if f := &h.prefills[i]; f.start != d.Start && !f.Told { // it was started anew
			*f = prefill{served: f.served, start: d.Start}
		}
	}
	f := h.prefill(d.Served)
	if f.Known { // the router has forgotten it, if only because the model was away
		*f = prefill{served: f.served, start: d.Start}
	}
	if !now.Before(f.notTill) {
		return true
	}
	for i := range d.Endpoint.Served { // one that tells nothing keeps none of the others waiting
		sv := &d.Endpoint.Served[i]
		if f := h.prefill(sv.Name); !sv.Unnamed && !f.Known && !now.Before(f.notTill) {
			d.Served = sv.Name
			return true
		}
	}
	return false
}

// end ends a host's test, and tells whether it was overtaken.
func (p *Prober) end(id endpoint.ID) (overtaken bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h := p.hosts[id]; h != nil && h.running != nil {
		overtaken = h.running.overtaken
		h.running = nil
	}
	return overtaken
}

// host returns what is known of a host. The caller holds mu.
func (p *Prober) host(id endpoint.ID) *host {
	h := p.hosts[id]
	if h == nil {
		h = &host{}
		p.hosts[id] = h
	}
	return h
}

// prefill returns what is known of a model. The caller holds Prober.mu, and the result is good as long.
func (h *host) prefill(served string) *prefill {
	for i := range h.prefills {
		if h.prefills[i].served == served {
			return &h.prefills[i]
		}
	}
	h.prefills = append(h.prefills, prefill{served: served})
	return &h.prefills[len(h.prefills)-1]
}

// run makes a test, when there is a slot for it. The class is Unserved when it has come to nothing.
func (p *Prober) run(ctx context.Context, d *router.Probe) outcome.Class {
	if d.SelfTest && p.opt.Spread > 0 && !pause(ctx, rand.N(p.opt.Spread)) { //nolint:gosec // spreads tests, guards nothing
		return outcome.Unserved
	}
	if d.SelfTest {
		if !take(ctx, p.tests) {
			return outcome.Unserved
		}
		defer func() { <-p.tests }()
	}
	if !take(ctx, p.slots) {
		return outcome.Unserved
	}
	defer func() { <-p.slots }()
	if d.SelfTest {
		if !p.wants(d) {
			return outcome.Unserved
		}
		return p.selfTest(ctx, d)
	}
	class := p.shared(ctx, d.Endpoint, d.Served)
	if class == outcome.Success {
		p.opt.Log.Info("host answers again", "endpoint", d.Endpoint.ID)
	}
	return class
}

// take waits for a slot; false when ctx is done first.
func take(ctx context.Context, slots chan<- struct{}) bool {
	select {
	case slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// wants tells whether a self-test that has waited is still to be made.
func (p *Prober) wants(d *router.Probe) bool {
	return p.set.Load().SelfTest && p.opt.Router.Wants(d) && (p.opt.Busy == nil || !p.opt.Busy(d.Endpoint.ID))
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// shared probes a host, or learns what another replica has found this moment.
func (p *Prober) shared(ctx context.Context, ep *endpoint.Endpoint, served string) outcome.Class {
	if p.opt.Share == nil {
		return p.probe(ctx, ep, served)
	}
	b, err := p.opt.Share.Once(ctx, "probe:"+string(ep.ID), p.opt.Fresh, func(ctx context.Context) ([]byte, error) {
		class := p.probe(ctx, ep, served)
		return []byte(class.String()), ctx.Err() // when it was us who ended it, it says nothing of the host
	})
	if err != nil {
		return outcome.Unserved
	}
	class, _ := outcome.Named(string(b)) // another version may know more words
	return class
}

// probe asks the host for one token.
func (p *Prober) probe(ctx context.Context, ep *endpoint.Endpoint, served string) outcome.Class {
	a := p.smallest(ctx, ep, served)
	if ctx.Err() != nil {
		return a.class
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.host(ep.ID)
	h.sent++
	if a.class != outcome.Success {
		h.failed++
	}
	h.last, h.lastAt = a.class, p.opt.Now()
	return a.class
}

// tell notes what is known without a test, and tells it the router.
func (p *Prober) tell(id endpoint.ID, served string, v verdict) {
	p.mu.Lock()
	f := p.host(id).prefill(served)
	news := f.verdict != v
	*f = prefill{served: served, verdict: v}
	p.mu.Unlock()
	p.opt.Router.SetPrefill(id, served, v.Prefill)
	if news {
		p.say(id, served, v)
	}
}

// untell forgets what was told: a test is to find it.
func (p *Prober) untell(id endpoint.ID, served string) {
	p.mu.Lock()
	told := false
	if h := p.hosts[id]; h != nil {
		for i := range h.prefills {
			if f := &h.prefills[i]; f.served == served && f.Told {
				*f, told = prefill{served: served}, true
			}
		}
	}
	p.mu.Unlock()
	if told {
		p.opt.Router.SetPrefill(id, served, router.Prefill{})
	}
}

// keep forgets models that the endpoint serves no more; one that lists none may be starting.
func (p *Prober) keep(ep *endpoint.Endpoint) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h := p.hosts[ep.ID]; h != nil && len(ep.Served) > 0 {
		h.prefills = slices.DeleteFunc(h.prefills, func(f prefill) bool {
			return !slices.ContainsFunc(ep.Served, func(sv endpoint.Served) bool { return sv.Name == f.served })
		})
	}
}

// learn notes what a test has found and tells it the router, which may know that it is true no more.
func (p *Prober) learn(d *router.Probe, v verdict) {
	if v.Known && !p.opt.Router.Tested(d, v.Prefill) {
		return
	}
	p.mu.Lock()
	f := p.host(d.Endpoint.ID).prefill(d.Served)
	if f.Told { // meanwhile
		p.mu.Unlock()
		return
	}
	news := f.verdict != v && v.Known
	f.verdict, f.at, f.start = v, p.opt.Now(), d.Start
	if v.Known {
		f.misses, f.notTill = 0, time.Time{}
	} else {
		f.notTill = p.opt.Now().Add(min(retest<<min(f.misses, 8), retestMost))
		f.misses++
	}
	p.mu.Unlock()
	if news {
		p.say(d.Endpoint.ID, d.Served, v)
	}
}

func (p *Prober) say(id endpoint.ID, served string, v verdict) {
	if v.OK {
		p.opt.Log.Info("host goes on with unfinished answers", "endpoint", id, "model", served, "trims", v.Trims, "token_ids", v.Tokens, "why", v.why)
		return
	}
	p.opt.Log.Info("host does not go on with unfinished answers", "endpoint", id, "model", served, "token_ids", v.Tokens, "why", v.why)
}

// A self-test that came to no verdict is made again after that long, then ever more seldom.
const (
	retest     = 15 * time.Second
	retestMost = 15 * time.Minute
)
