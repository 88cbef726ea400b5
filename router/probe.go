package router

import (
	"slices"
	"time"

	"headrace/router/affinity"
	"headrace/router/cost"
	"headrace/router/endpoint"
	"headrace/router/health"
	"headrace/router/outcome"
)

// Probe is a synthetic request that is due: it decides whether a host is used again, so that no caller's has to.
type Probe struct {
	Endpoint *endpoint.Endpoint
	Served   string // the model's id to ask for, as the endpoint knows it
	// SelfTest is set for a host in use of which nobody knows whether it can go on with an unfinished answer: see Tested.
	SelfTest bool
	// Start is the start of the host's engine that was the last one known when the probe was handed out. No two starts share a number, of
	// one host or of several.
	Start uint32
}

// wantedFor is how long after a request a metered host of its model is worth the price of a probe.
const wantedFor = time.Minute

// Probes adds to dst the synthetic requests that are due, and returns it. Each is handed out once, until Probed is told how it
// ended or a quarter of a minute has passed. It is to be called every quarter of a second or so, where Options.Probes is set.
//
// Endpoints that are paid by what they do are asked only while somebody asks for their models, and one whose workers are all
// asleep is not asked at all, since a probe would buy a worker: there a caller's request is let in instead.
func (r *Router) Probes(now time.Time, dst []Probe) []Probe {
	now = r.steady(now)
	at := r.seconds(now)
	for _, c := range r.snap.Load().list {
		if !c.usable() || len(c.ep.Served) == 0 || cost.Metered(&c.ep.Price) && (c.asleep() || !c.wanted(at)) {
			continue
		}
		if c.host.breaker.Probe(now) {
			dst = append(dst, Probe{Endpoint: c.ep, Served: c.ep.Served[0].Name, Start: c.host.cache.Load()})
			continue
		}
		if c.ep.Tenure == endpoint.Serverless && c.ep.Workers == 0 { // a test would start one
			continue
		}
		start := c.host.cache.Load() // before it is seen to be in use: what is found of an engine that has ended then is not kept
		if sv := c.untested(); sv != "" && c.host.breaker.Test(now) {
			dst = append(dst, Probe{Endpoint: c.ep, Served: sv, SelfTest: true, Start: start})
		}
	}
	return dst
}

// wanted tells whether one of its models was asked for of late.
func (c *candidate) wanted(at float64) bool {
	for _, st := range c.offers {
		if t := st.wantedAt.get(); t > 0 && at-t < wantedFor.Seconds() {
			return true
		}
	}
	return false
}

// untested returns a model that the endpoint serves in chat and of which no self-test is known, "" when there is none.
func (c *candidate) untested() string {
	if !c.chats() {
		return ""
	}
	for i := range c.ep.Served {
		if sv := &c.ep.Served[i]; !sv.Unnamed && !c.host.prefill(sv.Name).Known {
			return sv.Name
		}
	}
	return ""
}

// chats tells whether the endpoint answers chat requests, as far as is known.
func (c *candidate) chats() bool {
	return c.ep.Routes == nil || slices.Contains(c.ep.Routes, "/chat/completions")
}

// Wants tells whether a self-test that was handed out is still worth making: it may have waited.
func (r *Router) Wants(p *Probe) bool {
	c := r.snap.Load().byID[p.Endpoint.ID]
	return c != nil && c.usable() && c.ep.BaseURL == p.Endpoint.BaseURL && c.host.cache.Load() == p.Start && c.host.breaker.State(r.now()) == health.StateClosed &&
		c.serves(p.Served) && !c.host.prefill(p.Served).Known
}

// Probed tells how a probe or self-test of an endpoint ended; what a self-test found beyond that is told by Tested first.
func (r *Router) Probed(id endpoint.ID, class outcome.Class) {
	c := r.snap.Load().byID[id]
	if c == nil {
		return
	}
	now := r.now()
	r.changed(c, c.host.breaker.Probed(class), now)
	switch class {
	case outcome.Throttled:
		c.host.breaker.CoolDown(now.Add(time.Second), whyThrottled)
	case outcome.UpstreamDenied:
		c.host.breaker.CoolDown(now.Add(deniedCoolDown), whyDenied)
	case outcome.Success, outcome.DialFailed, outcome.UpstreamFault, outcome.FirstByteTimeout, outcome.CallerFault, outcome.Truncated,
		outcome.ClientGone, outcome.Unserved, outcome.NotReady, outcome.Opaque, outcome.Stalled, outcome.Severed, outcome.Moved, outcome.Outrun:
	}
}

// changed does what follows for the host and those near it when its breaker changed.
func (r *Router) changed(c *candidate, what health.Change, now time.Time) {
	switch what {
	case health.Unchanged, health.Opened:
	case health.Cleared:
		r.freed(c.ep.ID)
	case health.Recovered:
		c.host.comesBack()
		r.freed(c.ep.ID)
	case health.Revived:
		c.host.comesBack()
		r.startedAnew(c)
		r.freed(c.ep.ID)
	case health.Lost, health.Preempted:
		r.snap.Load().mourn(c, what == health.Preempted, now)
	}
	r.tell(c, what, false, now)
}

// judged does likewise for a lease's host.
func (r *Router) judged(l *Lease, what health.Change) {
	if what == health.Unchanged {
		return
	}
	c := r.snap.Load().byID[l.Endpoint.ID]
	if c == nil { // it was dropped meanwhile, and those near it are told all the same
		c = &candidate{ep: l.Endpoint, host: l.host}
	}
	r.changed(c, what, r.now())
}

// startedAnew forgets what is true of one start of a host's engine only, for nobody has been there: a process that was started again is
// seen by the network alone where no control plane tells of it. Of an endpoint with many engines it was one.
func (r *Router) startedAnew(c *candidate) {
	if !rented(c.ep) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	h, s := c.host, r.snap.Load()
	h.forgetTests()
	was := affinity.Host(h.cache.Load())
	r.caches++
	s.everyPool(func(m *Model) { m.renamed(h, was, affinity.Host(r.caches)) })
	h.cache.Store(r.caches)
	s.everyPool((*Model).countPrefills)
}

// kindOf is what a breaker has to know of its endpoint.
func (r *Router) kindOf(ep *endpoint.Endpoint) health.Kind {
	c := candidate{ep: ep}
	return health.Kind{Many: !rented(ep), Told: rented(ep) && ep.Provider != "static", Free: rented(ep), Trials: cost.Metered(&ep.Price) && c.asleep()}
}

// rented tells whether the endpoint is one host, and not a fleet behind one address.
func rented(ep *endpoint.Endpoint) bool {
	return ep.Tenure != endpoint.Serverless && ep.Tenure != endpoint.TenurePerToken
}
