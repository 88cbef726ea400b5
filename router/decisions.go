package router

import (
	"cmp"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"headrace/router/endpoint"
	"headrace/router/health"
	"headrace/router/outcome"
)

// CandidateView is what one endpoint would have been for a request. Figures that are not known are nil.
type CandidateView struct {
	Endpoint    endpoint.ID `json:"endpoint"`
	Verdict     string      `json:"verdict"`                // "serves", or what kept it from the request
	Reason      string      `json:"reason,omitempty"`       // more of the verdict, where something is known
	State       string      `json:"state"`                  // as its provider reports it
	Breaker     string      `json:"breaker"`                // as at /admin/v1/hosts
	MarginalUSD *float64    `json:"marginal_usd"`           // what the request would cost in addition to what is paid anyway
	FullUSDMTok *float64    `json:"usd_per_mtok_full_load"` // per million output tokens
	TTFT        *float64    `json:"ttft_seconds"`           // expected
	TTFTSigma   *float64    `json:"ttft_log_sigma"`         // standard deviation of its logarithm
	TPS         *float64    `json:"tokens_per_second"`      // expected, of the stream
	TPSSigma    *float64    `json:"tps_relative_sigma"`
	PTTFT       *float64    `json:"p_ttft"` // probability to keep each promise
	PTPS        *float64    `json:"p_tps"`
	InFlight    *float64    `json:"in_flight"` // on the engine that the request would join
	Safe        *float64    `json:"safe_concurrency"`
	Cached      *float64    `json:"cached_tokens"`
	ColdSeconds *float64    `json:"cold_start_seconds"`
}

// Explanation is a decision with its numbers.
type Explanation struct {
	Request   string          `json:"request_id,omitempty"`
	At        time.Time       `json:"at"`
	Model     string          `json:"model"`
	Pool      string          `json:"pool,omitempty"` // of the model's hosts, to which it was kept
	Policy    string          `json:"policy"`
	SLO       SLOView         `json:"slo"`
	Prompt    float64         `json:"prompt_tokens"` // as far as could be told
	Output    float64         `json:"output_tokens"` // expected
	Attempt   int             `json:"attempt"`       // from 1
	Winner    endpoint.ID     `json:"winner,omitempty"`
	Why       string          `json:"why"`
	Others    int             `json:"candidates_not_shown,omitempty"`
	Candidate []CandidateView `json:"candidates"` // the winner first, then those that serve, the cheapest first
	// What became of it, nil while it runs or when it was not measured.
	Realised *Realised `json:"realised,omitempty"`
}

// SLOView is an SLO in seconds.
type SLOView struct {
	TTFT       float64 `json:"ttft_seconds"`
	TPS        float64 `json:"tokens_per_second"`
	Confidence float64 `json:"confidence"`
}

// Realised is what became of a decision.
type Realised struct {
	Class string   `json:"class"`
	TTFT  *float64 `json:"ttft_seconds"` // of the attempt
	TPS   *float64 `json:"tokens_per_second"`
}

// decisions remembers the newest decisions in memory that is taken once.
type decisions struct {
	slots []slot
	_     cacheLines
	next  atomic.Uint64
}

const (
	decisionsKept = 1024
	candsKept     = 8
)

type slot struct {
	mu  sync.Mutex // guards all below
	seq uint64     // 0 while empty
	plan
	request string
	model   string
	pool    string
	attempt int
	why     string
	won     bool
	n       int // of cands; the winner first
	total   int
	cands   [candsKept]keptView

	ended bool
	class outcome.Class
	ttft  float64
	tps   float64
}

// keptView is a view without its candidate, which would keep the whole fleet of its time in memory.
type keptView struct {
	view
	id      endpoint.ID
	state   endpoint.State
	breaker health.State
	reason  string
}

// keep takes in v, a candidate of p's model.
func (k *keptView) keep(p *plan, v *view) {
	ep := v.c.ep
	k.view, k.id, k.state, k.breaker, k.reason = *v, ep.ID, ep.State, v.c.host.breaker.State(p.now), ""
	k.c = nil
	switch {
	case v.verdict == away && v.c.host.drained.Load():
		k.reason = whyDrained
	case v.verdict == away:
		k.reason = ep.StateReason
	case v.verdict == barred:
		_, k.reason = v.c.host.breaker.Wait(p.now)
	case v.verdict == misfit && v.cramped:
		k.reason = "its context is too short for prompt and answer"
	case v.verdict == misfit:
		k.reason = v.c.fitness(p.q).String()
	}
}

var unfitWords = [...]string{
	unfitRoute: "does not answer this path", unfitMedia: "takes no images, audio or files", unfitSize: "takes no body of this size",
	unfitPlain:  "takes a prompt and sampling parameters only",
	unfitDemand: "below the demanded trust, encryption or region",
}

// String says of one endpoint what an UnavailableError says of all.
func (u unfit) String() string { return unfitWords[u] }

// note keeps the decision; v is nil when nobody was picked.
func (d *decisions) note(s *scratch, v *view, why string) (seq uint64) {
	seq = d.next.Add(1)
	e := &d.slots[seq%uint64(len(d.slots))]
	e.mu.Lock()
	defer e.mu.Unlock()
	e.plan = s.plan // by itself: together with others it would be copied twice, once through the stack
	e.seq, e.request, e.model, e.pool, e.why, e.won, e.ended = seq, s.q.ID, s.m.Name, s.m.pool, why, v != nil, false
	e.attempt = s.attempt
	e.q, e.m = nil, nil // they die with the request and the snapshot
	e.ttft, e.tps = math.NaN(), math.NaN()
	e.n, e.total = 0, len(s.m.cands)
	if v != nil {
		e.cands[0].keep(&s.plan, v)
		e.n = 1
	}
	for _, serving := range [...]bool{true, false} {
		for i := range s.views {
			if e.n == len(e.cands) {
				break
			}
			if w := &s.views[i]; w != v && (w.verdict == serves) == serving {
				e.cands[e.n].keep(&s.plan, w)
				e.n++
			}
		}
	}
	return seq
}

// ended notes what became of decision seq.
func (d *decisions) ended(seq uint64, class outcome.Class, ttft, tps float64) {
	e := &d.slots[seq%uint64(len(d.slots))]
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.seq == seq {
		e.ended, e.class, e.ttft, e.tps = true, class, ttft, tps
	}
}

// Decisions returns up to n of the newest decisions, the newest first; of one request, if an ID is given.
func (r *Router) Decisions(n int, request string) []Explanation {
	var out []Explanation
	d := &r.decisions
	newest := d.next.Load()
	for i := uint64(0); i < uint64(len(d.slots)) && i < newest && len(out) < n; i++ {
		e := &d.slots[(newest-i)%uint64(len(d.slots))]
		e.mu.Lock()
		if e.seq == newest-i && (request == "" || e.request == request) {
			out = append(out, e.explain(r))
		}
		e.mu.Unlock()
	}
	return out
}

// Decision returns a decision with its numbers; ok is false when it is too long ago.
func (r *Router) Decision(seq uint64) (x Explanation, ok bool) {
	if seq == 0 {
		return x, false
	}
	e := &r.decisions.slots[seq%uint64(len(r.decisions.slots))]
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.seq != seq {
		return x, false
	}
	return e.explain(r), true
}

// explain tells what is in the slot. The caller holds mu.
func (e *slot) explain(r *Router) Explanation {
	x := r.explanation(&e.plan, e.model, e.pool, e.why)
	x.Request, x.Attempt, x.Others = e.request, e.attempt, e.total-e.n
	for i := range e.cands[:e.n] {
		x.Candidate = append(x.Candidate, e.cands[i].show(&e.plan))
	}
	if e.won {
		x.Winner = e.cands[0].id
	}
	x.sort()
	if e.ended {
		x.Realised = &Realised{Class: e.class.String(), TTFT: known(e.ttft), TPS: known(e.tps)}
	}
	return x
}

func (r *Router) explanation(p *plan, model, pool, why string) Explanation {
	return Explanation{
		At: r.shown(p.now), Model: model, Pool: pool, Policy: p.policy.String(), Prompt: p.prompt, Output: p.output, Why: why, Attempt: 1, Candidate: []CandidateView{},
		SLO: SLOView{TTFT: p.slo.TTFT.Seconds(), TPS: p.slo.TPS, Confidence: p.slo.Confidence},
	}
}

func (k *keptView) show(p *plan) CandidateView {
	c := CandidateView{Endpoint: k.id, Verdict: k.verdict.String(), Reason: k.reason, State: k.state.String(), Breaker: k.breaker.String()}
	if k.verdict >= limited {
		return c
	}
	c.MarginalUSD, c.FullUSDMTok = known(k.usd), known(k.full*1e6)
	c.TTFT, c.TTFTSigma, c.TPS, c.TPSSigma = known(k.ttft), known(k.ttftSigma), known(1/k.itl), known(k.itlSigma)
	c.PTTFT, c.PTPS = known(k.pTTFT(p)), known(k.pTPS(p))
	c.InFlight, c.Safe, c.Cached, c.ColdSeconds = known(k.inFlight), known(k.safe), known(k.cached), known(k.coldSeconds)
	return c
}

func (v *view) pTTFT(p *plan) float64 { return normal(math.Log(p.left/v.ttft) / v.ttftSigma) }
func (v *view) pTPS(p *plan) float64  { return normal(math.Log(p.gap/v.itl) / v.itlSigma) }

// Explain tells where q would go now, and why, without going there. The error is ErrUnknownModel.
func (r *Router) Explain(q *Request) (Explanation, error) {
	m := r.snap.Load().pool(q.Model)
	if m == nil {
		return Explanation{}, ErrUnknownModel
	}
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	s.prepare(r, m, q)
	s.survey()
	v, why := s.choose()
	for v == nil && s.forgive() {
		v, why = s.choose()
	}
	if v == nil {
		why = r.unavailable(s).Error()
	}
	x := r.explanation(&s.plan, m.Name, m.pool, why)
	var k keptView
	for i := range s.views {
		k.keep(&s.plan, &s.views[i])
		x.Candidate = append(x.Candidate, k.show(&s.plan))
	}
	if v != nil {
		x.Winner = v.c.ep.ID
	}
	x.sort()
	return x, nil
}

// sort puts the winner first, then those that serve from the cheapest to the dearest, then the others.
func (x *Explanation) sort() {
	rank := func(c *CandidateView) int {
		switch {
		case c.Endpoint == x.Winner:
			return 0
		case c.Verdict == serves.String():
			return 1
		}
		return 2
	}
	usd := func(c *CandidateView) float64 {
		if c.MarginalUSD == nil {
			return math.Inf(1)
		}
		return *c.MarginalUSD
	}
	slices.SortFunc(x.Candidate, func(a, b CandidateView) int {
		return cmp.Or(cmp.Compare(rank(&a), rank(&b)), cmp.Compare(usd(&a), usd(&b)), cmp.Compare(a.Endpoint, b.Endpoint))
	})
}
