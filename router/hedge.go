package router

import (
	"errors"
	"math"
	"time"

	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// Hedging: a request whose first token is not going to come in time runs at a second host as well, and whoever begins its answer
// first gives it. Only hosts that are paid anyway and have nothing to do are asked: the second attempt costs time that nobody
// uses, and slows nobody else's stream.

// hedgeDefaults are one hedge for every fifty requests, and ten saved up.
const (
	hedgePerRequest = 0.02
	hedgeCap        = 10
)

func (o BudgetOptions) orHedges() BudgetOptions {
	if o.PerRequest <= 0 {
		o.PerRequest = hedgePerRequest
	}
	if o.Cap <= 0 {
		o.Cap = hedgeCap
	}
	return o
}

// ErrNoSpare says that no idle host would keep the SLO.
var ErrNoSpare = errors.New("no idle host that is paid anyway would keep the slo")

const whyHedge = "idle and paid anyway: asked as well, because the first host seems to miss the SLO"

// Hedge leases into l, for a request that runs elsewhere, the idle host that is expected to begin the answer the soonest and to
// keep the SLO; q.Tried names the hosts where it runs or failed. q.Affinity is to stay as it is until l is done. The error is
// ErrUnknownModel or ErrNoSpare: it is no refusal, and is not among the decisions.
func (r *Router) Hedge(q *Request, l *Lease) error {
	m := r.snap.Load().pool(q.Model)
	if m == nil {
		return ErrUnknownModel
	}
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	s.prepare(r, m, q)
	for s.survey(); ; {
		s.spare()
		v := s.soonest()
		if v == nil {
			return ErrNoSpare
		}
		if s.lease(r, v, whyHedge, l) {
			return nil
		}
		v.verdict = tried // another request was faster
	}
}

// spare leaves only those to whom a second attempt adds no cost.
func (s *scratch) spare() {
	for i := range s.views {
		v := &s.views[i]
		if v.verdict == serves && (v.metered || v.inFlight > 0 || v.coldSeconds > 0 || v.c.ep.Price.Basis == endpoint.BasisUnknown) {
			v.verdict = notSpare
		}
	}
}

const (
	overdueSigmas = 1.645 // one first token of twenty comes later than that many standard deviations after the expected time
	hedgeShare    = 0.5   // of the promise that is to be over before a host that was expected to keep it is doubted
)

// HedgeWindow returns when another host may be asked beside this one, as times since the pick: from when its first token is late,
// until when another one could still keep the promise. Where from is not before until there is no such time.
//
// From the beginning, where the host was not expected to keep the promise. Else when its first token comes later than 19 of 20
// would, and half of the promise is over. The first alone would hedge each twentieth request, most of which keep the promise
// well; the other half is for the second host.
func (l *Lease) HedgeWindow() (from, until time.Duration) {
	promise := l.slo.TTFT.Seconds()
	d := &l.Decision
	if d.PTTFT >= l.slo.Confidence {
		from = seconds(max(min(d.TTFT*math.Exp(overdueSigmas*l.ttftSigma), maxOverdue), hedgeShare*promise-l.late))
	}
	return from, seconds(promise - l.late)
}

const maxOverdue = 1e6 // seconds, which a time.Duration holds

// outrun learns from a first token that another host's overtook: this one took at least as long. at is in the learners' seconds.
func (l *Lease) outrun(at float64) {
	took := at - l.pickedAt
	if !math.IsNaN(l.firstAt) || l.whole || l.Decision.Cold || !(took > l.Decision.TTFT) { //nolint:staticcheck // NaN
		return
	}
	h := l.host
	h.mu.Lock()
	defer h.mu.Unlock()
	h.integrate(at)
	h.learner.ObserveTTFT(at, took, l.expected, l.perEngine(h.running(at)+1), l.target) // it has left already
	h.publish()
}

// missed tells whether the promise was over when the lease ended without a first token, as far as that says something of the host.
func (l *Lease) missed(class outcome.Class, at float64) bool {
	return !l.whole && (class == outcome.FirstByteTimeout || class == outcome.Outrun && l.late+at-l.pickedAt > l.slo.TTFT.Seconds())
}
