package sim

import (
	"fmt"
	"math/rand/v2"

	"headrace/router"
	"headrace/router/affinity"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// rules is how a gateway treats requests, beside where it sends them.
type rules struct {
	first     float64 // seconds to wait for a first token from a host that is rented
	colds     float64 // and in cold starts, as told, from a serverless one; 0 treats both alike
	gap       float64 // seconds of silence in a stream after which it is broken
	resume    bool    // broken streams are continued elsewhere
	control   bool    // believes what control planes say of hosts' state
	maxResume int
	advice    bool    // workers are started as the policy advises
	scrape    float64 // seconds between two looks at the metrics of hourly hosts' engines; 0 for none
	knowing   bool    // sees the fleet as it is, not as control planes tell it
	wait      float64 // share of what is left of the promised time to the first token that requests wait for room; 0 refuses them at once
}

const (
	maxRetries   = 2
	drainSeconds = 900.0 // that a run goes on after the last request came
	callersMax   = 1024  // max_tokens of generated requests
)

// ours are Headrace's own rules, plain those of a proxy that knows nothing of GPUs.
func ours() rules {
	return rules{first: 12, colds: 4, gap: 5, resume: true, control: true, maxResume: 2, advice: true, wait: 0.5}
}
func plain() rules { return rules{first: 60, gap: 60} }

// replica is one gateway process.
type replica struct {
	w      *world
	i      int
	rules  rules
	make   func(*replica) picker
	policy picker
	rand   *rand.Rand // the policy's
	lags   *rand.Rand
	up     bool

	view     []told // by host
	stale    bool   // view has changed since the policy was told
	inFlight []int  // by host
	others   []int  // likewise, of the other gateways, as last heard
	prompts  []int  // their prompt tokens without a first token yet, likewise
	live     []*attempt
	room     *room // nil where nobody waits
}

// picker decides where one gateway's requests go.
type picker interface {
	// update tells what control planes say.
	update(eps []endpoint.Endpoint)
	// pick returns the host for a request, or -1; what it needs to know until settled it may keep in a.
	pick(r *request, a *attempt) int
	first(a *attempt)
	progress(a *attempt, tokens int64, since float64)
	// settled is called once for each attempt that was picked.
	settled(a *attempt, class outcome.Class, retryAfter float64)
	// share tells what other gateways have in flight, and prompt tokens without a first token yet, by host.
	share(others, prompts []int)
	// prompts are its own of those, at one host.
	prompts(host int) int
	// mayRetry takes a retry out of the gateway's budget.
	mayRetry() bool
}

// adviser is a picker that also says how many workers should be up.
type adviser interface {
	advise(act func(host, workers int))
}

// prober is a picker that has hosts tested by synthetic requests.
type prober interface {
	probe(send func(host int, done func(outcome.Class)))
}

// observer is a picker that reads engines' metrics.
type observer interface {
	observe(b *backend, e *engine)
}

// request is one caller's.
type request struct {
	call
	replica *replica
	firstAt float64 // when the caller got its first token; 0 for not yet
	got     int     // tokens that the caller has
	retries int
	breaks  int
	tried   []*backend
	by      float64       // it waits no longer
	waited  bool          // it has
	last    outcome.Class // how its last attempt failed, with retries
}

// attempt is one try at one host. Its seq is what the host's engine sees.
type attempt struct {
	seq      seq
	request  *request
	replica  *replica
	host     *backend
	engine   *engine // that took it
	begun    float64
	firstAt  float64 // 0 for not yet
	cold     bool    // no worker was up for it
	slot     int     // in replica.live
	done     bool
	lastAt   float64 // of the newest token, once it has ended
	forecast forecast
	full     bool           // there was no room for it, and may be,
	soon     float64        // in so many seconds; 0 where nobody knows
	lease    router.Lease   // of the router's policy
	ask      router.Request // what it was asked, which outlives the lease
	more     router.Continuation
	probe    func(outcome.Class) // told how it ended: it is a synthetic request, and request is nil
}

// forecast is what a policy expected of an attempt.
type forecast struct {
	made        bool
	pTTFT, pTPS float64 // that each promise is kept
	ttft, tps   float64
	usd         float64 // marginal
}

func newReplica(w *world, i int, p *Policy) *replica {
	g := &replica{
		w: w, i: i, rules: p.rules, make: p.make, up: true, rand: dice(w.seed, "policy", i), lags: dice(w.seed, "lag", i),
		view: make([]told, len(w.hosts)), inFlight: make([]int, len(w.hosts)), others: make([]int, len(w.hosts)), prompts: make([]int, len(w.hosts)),
	}
	g.boot()
	return g
}

// boot begins with an empty memory and what control planes say now.
func (g *replica) boot() {
	g.policy = g.make(g)
	if p, ok := g.policy.(roomy); ok && g.rules.wait > 0 {
		g.room = &room{g: g, share: g.rules.wait}
		p.onFreed(g.room.freed)
	}
	for i, b := range g.w.hosts {
		g.view[i] = b.now()
	}
	g.stale = true
	g.refresh()
}

// hear takes in what a control plane says.
func (g *replica) hear(b *backend, t told) {
	v := &g.view[b.i]
	if t.version < v.version || *v == t {
		return
	}
	same := *v
	same.asOf = t.asOf
	g.stale = g.stale || same != t
	*v = t
	if b.class.Kind != Serverless {
		g.refresh()
	}
}

// refresh tells the policy what has changed.
func (g *replica) refresh() {
	if !g.stale || !g.up {
		return
	}
	g.stale = false
	eps := make([]endpoint.Endpoint, len(g.view))
	for i := range g.view {
		eps[i] = g.describe(g.w.hosts[i], &g.view[i])
	}
	g.policy.update(eps)
}

// Model is the one that all hosts serve.
const model = "llama-70b"

func (g *replica) describe(b *backend, t *told) endpoint.Endpoint {
	c := b.class
	ep := endpoint.Endpoint{
		ID: b.id, Provider: c.Provider, BaseURL: fmt.Sprintf("http://%s:%d/v1", c.Name, t.port), Served: []endpoint.Served{{Name: model}},
		Hardware: endpoint.Hardware{GPU: c.GPU, GPUCount: c.GPUCount, Machine: c.Machine}, State: endpoint.Ready,
	}
	if !t.up {
		ep.State = endpoint.Preempted
	}
	asOf := epoch().Add(duration(t.asOf))
	if off := g.w.sc.WrongTime; off > 0 { // a provider's clock that is wrong, and not always by as much
		asOf = asOf.Add(duration(off * (2*dice(g.w.seed, "clock", int(t.asOf)+b.i).Float64() - 1)))
	}
	ep.Price = b.listed(t)
	ep.Price.AsOf, ep.Price.Source = asOf, "simulated"
	switch c.Kind {
	case Hourly:
		ep.Tenure = endpoint.OnDemand
		if c.Interruptible {
			ep.Tenure = endpoint.Interruptible
		}
	case Serverless:
		ep.Tenure, ep.Workers, ep.MaxWorkers, ep.MaxNumSeqs = endpoint.Serverless, t.workers, c.Workers, c.Concurrency
		if t.workers == 0 {
			ep.State = endpoint.Cold
			if t.coming > 0 {
				ep.State = endpoint.Starting
			}
		}
	case API:
		ep.Tenure = endpoint.TenurePerToken
	}
	return ep
}

// listed is a host's price as it was told.
func (b *backend) listed(t *told) endpoint.Price {
	switch c := b.class; c.Kind {
	case Hourly:
		return endpoint.Price{Basis: endpoint.PerHour, USDPerHour: t.price}
	case Serverless:
		return endpoint.Price{
			Basis: endpoint.PerWorkerSecond, USDPerWorkerSecond: t.price, ColdStart: duration(c.ColdStart), IdleTimeout: duration(c.IdleTimeout),
		}
	default:
		return endpoint.Price{
			Basis: endpoint.PerToken, USDPerMTokIn: t.price * c.USDPerMTokIn, USDPerMTokCached: t.price * c.USDPerMTokCached, USDPerMTokOut: t.price * c.USDPerMTokOut,
		}
	}
}

// accept takes a caller's request in.
func (g *replica) accept(c *call) {
	r := &request{call: *c, replica: g}
	if g.w.sc.Load.Exact {
		r.most = r.output
	}
	if !g.up {
		g.w.ledger.failed(r)
		return
	}
	g.route(r)
}

// route makes one attempt, waits for room, or gives up.
func (g *replica) route(r *request) {
	a := g.attempt(r)
	behind := g.room != nil && len(g.room.list) > 0 && r.got == 0 && r.retries == 0
	i := -1
	if !behind {
		i = g.policy.pick(r, a)
	}
	switch {
	case i >= 0:
		g.send(a, i)
	case r.got > 0:
		g.w.ledger.failed(r)
	case g.room != nil && (behind || a.full && (r.retries == 0 || r.last == outcome.Throttled)) && g.room.enter(r, a.soon):
	default:
		g.w.ledger.shed(r)
	}
}

// attempt is one at a host that is still to be found.
func (g *replica) attempt(r *request) *attempt {
	a := &attempt{request: r, replica: g, begun: g.w.now}
	a.seq = seq{attempt: a, prompt: r.prompt + r.got, output: r.output - r.got, session: r.session, shared: r.shared} // what was made on a lost host is in no other's cache
	return a
}

// send sends the attempt to a host.
func (g *replica) send(a *attempt, i int) {
	a.host = g.w.hosts[i]
	a.slot = len(g.live)
	g.live = append(g.live, a)
	g.inFlight[i]++
	wait := g.w.life(g.rules.first)
	if a.host.class.Kind == Serverless {
		a.cold = a.host.fullest() == nil
		if g.rules.colds > 0 {
			wait = max(wait, g.rules.colds*a.host.class.ColdStart)
		}
	}
	g.w.in(wait, func() {
		if !a.done && a.firstAt == 0 {
			a.host.cancel(&a.seq)
			a.failed(outcome.FirstByteTimeout, 0)
		}
	})
	port := g.view[i].port
	if g.rules.knowing {
		port = a.host.port
	}
	a.host.submit(&a.seq, port)
}

const (
	probePrompt  = 20  // tokens of a synthetic request, whose answer is one
	probeSeconds = 5.0 // until one is given up
)

// test sends a host a synthetic request.
func (g *replica) test(host int, done func(outcome.Class)) {
	a := &attempt{replica: g, host: g.w.hosts[host], begun: g.w.now, probe: done}
	a.seq = seq{attempt: a, prompt: probePrompt, output: 1, session: -1}
	g.w.in(g.w.life(probeSeconds), func() {
		if !a.done {
			a.host.cancel(&a.seq)
			a.end(outcome.FirstByteTimeout, 0)
		}
	})
	a.host.submit(&a.seq, g.view[host].port)
}

// end takes the attempt off the gateway's list; false when it had ended before.
func (a *attempt) end(class outcome.Class, retryAfter float64) bool {
	if a.done {
		return false
	}
	a.done = true
	if a.probe != nil {
		a.host.charge(&a.seq, a.seq.made)
		a.probe(class)
		return false
	}
	g := a.replica
	g.inFlight[a.host.i]--
	last := len(g.live) - 1
	g.live[a.slot] = g.live[last]
	g.live[a.slot].slot = a.slot
	g.live[last] = nil
	g.live = g.live[:last]
	a.host.charge(&a.seq, a.seq.made)
	g.w.ledger.attempt(a, class)
	g.policy.settled(a, class, retryAfter)
	return true
}

// first is called by the engine when the first token comes.
func (a *attempt) first() {
	if a.done || a.probe != nil {
		return
	}
	w := a.replica.w
	a.firstAt = w.now
	if a.request.firstAt == 0 {
		a.request.firstAt = w.now
	}
	a.replica.policy.first(a)
	w.in(progressAfter, func() {
		if a.done || a.seq.phase != decoding {
			return
		}
		a.engine.advance()
		made := a.engine.produced(&a.seq)
		whole := int64(made)
		decode, _ := a.engine.rates()
		since := progressAfter - (made-float64(whole))*a.seq.pace/decode
		a.replica.policy.progress(a, whole, since)
	})
}

// streamed is the seconds from the first token to the last, once it has ended.
func (a *attempt) streamed() float64 { return a.lastAt - a.firstAt }

// finished is called by the engine with the last token.
func (a *attempt) finished() {
	if !a.end(outcome.Success, 0) {
		return
	}
	r := a.request
	r.got += a.seq.output
	a.replica.w.ledger.served(r)
}

// lost is called when a stream breaks off after its first token.
func (a *attempt) lost(class outcome.Class) {
	made := int(a.seq.made)
	if !a.end(class, 0) {
		return
	}
	g, r := a.replica, a.request
	r.got += made
	r.breaks++
	r.tried = append(r.tried, a.host)
	switch {
	case r.got >= r.output: // all had come but the end
		g.w.ledger.served(r)
	case g.rules.resume && r.resumable && !g.w.sc.Load.NoResume && r.breaks <= g.rules.maxResume:
		g.route(r)
	default:
		g.w.ledger.failed(r)
	}
}

// failed is called when an attempt ends before its first token.
func (a *attempt) failed(class outcome.Class, retryAfter float64) {
	if !a.end(class, retryAfter) {
		return
	}
	g, r := a.replica, a.request
	a.seq.phase = over
	r.tried = append(r.tried, a.host)
	if r.retries < maxRetries && g.policy.mayRetry() {
		r.retries++
		r.last = class
		g.route(r)
		return
	}
	g.w.ledger.failed(r)
}

// die ends the process; its callers see their streams break.
func (g *replica) die(back float64) {
	live := g.live
	g.live, g.up = nil, false
	if g.room != nil {
		g.room.clear()
	}
	clear(g.inFlight)
	for _, a := range live {
		a.done = true
		a.host.cancel(&a.seq)
		a.host.charge(&a.seq, a.seq.made)
		a.request.got += int(a.seq.made)
		g.w.ledger.failed(a.request)
	}
	g.w.in(back, func() {
		g.up = true
		g.boot()
	})
}

// key recognises a conversation by the ends of its earlier prompts, as the gateway does by hashing them.
func (c *call) key(k *affinity.Key) {
	k.Session = uint64(c.session) //nolint:gosec // not negative
	k.N = 0
	for i, n := range c.ends {
		k.Add(affinity.Mark{Hash: mix(uint64(c.session)<<20 | uint64(i)), Tokens: int32(n)}) //nolint:gosec // a prompt's tokens
	}
}

// mix spreads the bits of a number (splitmix64's last steps).
func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

const progressAfter = 4.0 // seconds; router.ProgressAfter
