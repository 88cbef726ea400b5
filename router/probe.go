package router

import (
	"slices"
	"time"

	"headrace/router/cost"
	"headrace/router/endpoint"
	"headrace/router/health"
	"headrace/router/outcome"
)

// Probe is a synthetic request that is due: it decides whether a host is used again, so that no caller's has to.
type Probe struct {
	Endpoint *endpoint.Endpoint
	Served   string // the model's id to ask for, as the endpoint knows it
	// SelfTest is set for a host in use of which nobody knows whether it can go on with an unfinished answer: see SetPrefill.
	SelfTest bool
}

// wantedFor is how long after a request a metered host of its model is worth the price of a probe.
const wantedFor = time.Minute

// Probes adds to dst the synthetic requests that are due, and returns it. Each is handed out once, until Probed is told how it
// ended or a quarter of a minute has passed. It is to be called every quarter of a second or so, where Options.Probes is set.
//
// Endpoints that are paid by what they do are asked only while somebody asks for their models, and one whose workers are all
// asleep is not asked at all, since a probe would buy a worker: there a caller's request is let in instead.
func (r *Router) Probes(now time.Time, dst []Probe) []Probe {
	at := r.seconds(now)
	for _, c := range r.snap.Load().list {
		if !c.usable() || len(c.ep.Served) == 0 || cost.Metered(&c.ep.Price) && (c.asleep() || !c.wanted(at)) {
			continue
		}
		if c.host.breaker.Probe(now) {
			dst = append(dst, Probe{Endpoint: c.ep, Served: c.ep.Served[0].Name})
			continue
		}
		if c.ep.Tenure == endpoint.Serverless && c.ep.Workers == 0 { // a test would start one
			continue
		}
		if sv := c.untested(); sv != "" && c.host.breaker.Test(now) {
			dst = append(dst, Probe{Endpoint: c.ep, Served: sv, SelfTest: true})
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
	if c.ep.Routes != nil && !slices.Contains(c.ep.Routes, "/chat/completions") {
		return ""
	}
	for i := range c.ep.Served {
		if sv := &c.ep.Served[i]; !sv.Unnamed && !c.host.prefill(sv.Name).Known {
			return sv.Name
		}
	}
	return ""
}

// Probed tells how a probe or self-test of an endpoint ended; what a self-test found beyond that is told by SetPrefill first.
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
	case health.Unchanged, health.Cleared, health.Opened:
	case health.Recovered:
		c.host.comesBack()
	case health.Lost, health.Preempted:
		r.snap.Load().mourn(c, what == health.Preempted, now)
	}
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

// kindOf is what a breaker has to know of its endpoint.
func (r *Router) kindOf(ep *endpoint.Endpoint) health.Kind {
	c := candidate{ep: ep}
	return health.Kind{Many: !rented(ep), Told: rented(ep) && ep.Provider != "static", Free: rented(ep), Trials: cost.Metered(&ep.Price) && c.asleep()}
}

// rented tells whether the endpoint is one host, and not a fleet behind one address.
func rented(ep *endpoint.Endpoint) bool {
	return ep.Tenure != endpoint.Serverless && ep.Tenure != endpoint.TenurePerToken
}
