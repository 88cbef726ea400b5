package sim

import (
	"errors"
	"math"

	"headrace/router"
	"headrace/router/capacity"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// brain is the real router as a policy.
type brain struct {
	g     *replica
	r     *router.Router
	rules []router.ModelRule
	index map[endpoint.ID]int
	tried []endpoint.ID
	due   []router.Probe
}

func newBrain(g *replica, policy router.Policy, slo SLO) *brain {
	p := &brain{g: g, index: map[endpoint.ID]int{}}
	priors := map[endpoint.ID]capacity.Prior{}
	for i, b := range g.w.hosts {
		p.index[b.id] = i
		priors[b.id] = b.prior
	}
	p.r = router.New(router.Options{
		Now: g.w.clock, Seed: g.rand.Uint64(), Probes: true, Prior: func(ep *endpoint.Endpoint) capacity.Prior { return priors[ep.ID] },
	})
	p.rules = []router.ModelRule{{Name: model, Serves: []string{model}, SLO: slo.router(), Policy: policy}}
	return p
}

func (p *brain) onFreed(do func()) { p.r.OnFreed(func(endpoint.ID) { do() }) }

func (p *brain) update(eps []endpoint.Endpoint) { p.r.Update(eps, p.rules) }

func (p *brain) pick(r *request, a *attempt) int {
	if len(r.tried) == 0 {
		p.r.Budget.Earn()
	}
	p.tried = p.tried[:0]
	for _, b := range r.tried {
		p.tried = append(p.tried, b.id)
	}
	q := &a.ask
	q.Model, q.Now, q.Came, q.Tried = model, p.g.w.clock(), epoch().Add(duration(r.at)), p.tried
	q.PromptTokens, q.MaxTokens, q.Resumed = a.seq.prompt, 0, r.firstAt > 0
	if r.most > 0 {
		q.MaxTokens = r.most - r.got
	}
	if q.Resumed {
		a.more = router.Continuation{From: p.tried[len(p.tried)-1], Served: model}
		q.Continue = &a.more
	}
	r.key(&q.Affinity)
	q.Waited = r.waited
	if err := p.r.Pick(q, &a.lease); err != nil {
		if ue, ok := errors.AsType[*router.UnavailableError](err); ok && ue.Soon > 0 { // else nobody is expected
			a.full, a.soon = ue.Cause == router.Throttled || ue.Cause == router.Failing || ue.Cause == router.NoCapacity, ue.Soon.Seconds()
		}
		return -1
	}
	d := &a.lease.Decision
	a.forecast = forecast{made: !q.Resumed, pTTFT: d.PTTFT, pTPS: d.PTPS, ttft: d.TTFT, tps: d.TPS, usd: d.MarginalUSD}
	return p.index[a.lease.Endpoint.ID]
}

func (p *brain) first(a *attempt) { a.lease.FirstContent(duration(a.firstAt - a.begun)) }

func (p *brain) progress(a *attempt, tokens int64, since float64) {
	a.lease.Progress(tokens, duration(since))
}

func (p *brain) settled(a *attempt, class outcome.Class, retryAfter float64) {
	res := router.Result{Class: class, RetryAfter: duration(retryAfter), Cached: -1}
	if a.firstAt > 0 {
		res.OutputTokens, res.Streamed = int64(a.seq.made), duration(a.streamed())
	}
	if class == outcome.Success {
		res.Cached = int64(a.seq.hit)
	}
	a.lease.Done(res)
}

func (p *brain) share(others, prompts []int) {
	for i, n := range others {
		p.r.Share(p.g.w.hosts[i].id, int64(n), int64(prompts[i]))
	}
}

func (p *brain) prompts(host int) int {
	_, tokens := p.r.Load(p.g.w.hosts[host].id)
	return int(tokens)
}

// observe tells what an engine's metrics say.
func (p *brain) observe(b *backend, e *engine) {
	kv := math.NaN()
	if !math.IsInf(e.nature.kv, 1) {
		kv = e.kv / e.nature.kv
	}
	p.r.Observe(b.id, capacity.Engine{
		Running: float64(e.load()), Waiting: float64(len(e.queue)), KVUse: kv, CacheHitRate: math.NaN(), At: p.g.w.clock(),
	})
}

// advise asks the router what workers it would have up.
func (p *brain) advise(act func(host, workers int)) {
	for _, a := range p.r.Advise(p.g.w.clock()) {
		if a.Action == router.Wake || a.Action == router.Hold {
			act(p.index[a.Endpoint], a.Workers)
		}
	}
}

// probe has hosts tested that are due. Every one that answers goes on with unfinished answers.
func (p *brain) probe(send func(host int, done func(outcome.Class))) {
	p.due = p.r.Probes(p.g.w.clock(), p.due[:0])
	for _, d := range p.due {
		send(p.index[d.Endpoint.ID], func(class outcome.Class) {
			if d.SelfTest && class == outcome.Success {
				p.r.Tested(&d, router.Prefill{Known: true, OK: true})
			}
			p.r.Probed(d.Endpoint.ID, class)
		})
	}
}

func (p *brain) mayRetry() bool { return p.r.Budget.Spend() }
