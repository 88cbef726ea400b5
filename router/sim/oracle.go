package sim

import (
	"cmp"
	"math"
	"slices"

	"headrace/router"
	"headrace/router/cost"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// oracle is the greedy policy with perfect information: it knows every engine, every queue and how long each answer will
// be, and takes the least marginal cost among the hosts that will keep the SLO. It does not know the future.
type oracle struct {
	g      *replica
	budget *router.Budget
	z      float64 // of the confidence
	views  []truth
	acted  float64 // when capacity was last asked for

	rate, rateAt            float64         // USD a second that the metered tier's requests would cost at the API, a mean over 90 s
	apiUSD, output, compute float64         // means of a request
	committed               map[int]bool    // by host, serverless: workers that are paid for anyway
	merit                   []meritEndpoint // scratch
}

type truth struct {
	ok, cold             bool
	n, limit             float64
	itl, ttft, safe      float64
	sigmaITL, sigmaFirst float64
	full, usd            float64
	compute, hit         float64 // tokens of the prompt
	prefill              float64
	idle                 float64
	tight                bool // too little KV cache
}

type meritEndpoint struct {
	i         int
	usd, does float64 // per request at full load; API dollars a second that a worker replaces
}

const (
	oracleSigmaITL   = 0.06
	oracleSigmaFirst = 0.15
	wakeAbove        = 0.9 // of the sunk hosts' safe concurrency
	wakeEvery        = 20.0
	commitEvery      = 5.0
	tierSeconds      = 90.0
	anyMetered       = 5e-6 // USD per token, where nothing is metered
	packs            = 0.5
	meanWeight       = 0.002
)

func newOracle(g *replica) *oracle {
	return &oracle{
		g: g, budget: router.NewBudget(router.BudgetOptions{}), z: math.Sqrt2 * math.Erfinv(2*g.w.sc.SLO.Confidence-1), views: make([]truth, len(g.w.hosts)),
		output: 250, compute: 400, committed: map[int]bool{},
	}
}

func (p *oracle) update([]endpoint.Endpoint)               {}
func (p *oracle) first(*attempt)                           {}
func (p *oracle) progress(*attempt, int64, float64)        {}
func (p *oracle) settled(*attempt, outcome.Class, float64) {}
func (p *oracle) share(_, _ []int)                         {}
func (p *oracle) prompts(int) int                          { return 0 }
func (p *oracle) mayRetry() bool                           { return p.budget.Spend() }

// see looks at one host with the eyes of the world.
func (p *oracle) see(b *backend, a *attempt) truth {
	t := truth{sigmaITL: oracleSigmaITL, sigmaFirst: oracleSigmaFirst, ok: b.up && !b.failing && !b.full()}
	e := b.engines[0]
	waits := 0
	if b.class.Kind == Serverless {
		up, starting := b.warm()
		t.limit = float64(b.class.Concurrency)
		if f := b.fullest(); f != nil {
			e = f
			if b.held(e) == 0 {
				t.idle = b.w.now - e.idleSince
			}
		} else {
			t.cold = true
			t.ok = starting > 0 || up+starting < len(b.engines)
			waits = 1
			if starting > 0 {
				waits = 2
			}
		}
	}
	nature := &e.nature
	e.advance()
	if !t.cold {
		t.n = float64(b.held(e))
	}
	slow := e.slow * e.wander
	if b.class.Kind != Serverless {
		t.limit = float64(nature.seqs)
	}
	t.hit = float64(min(e.cache.peek(a.seq.session), a.seq.shared))
	t.compute = float64(a.seq.prompt) - t.hit
	t.prefill = nature.prefill / slow
	backlog := 0.0
	for _, s := range e.prompts {
		backlog += max(0, s.left)
	}
	t.ttft = nature.first*math.Sqrt(slow)*(1+0.01*t.n) + (t.compute+backlog)/t.prefill
	switch waits {
	case 1:
		t.ttft += b.class.ColdStart
	case 2:
		t.ttft += b.class.ColdStart / 2
	}
	stall := 1 / max(0.4, 1-e.stallShare()-nature.stall*t.compute/t.prefill/20)
	t.itl = nature.curve.itl(t.n+1) * slow * stall
	t.sigmaITL = math.Hypot(t.sigmaITL, nature.noise)
	slo := p.g.w.sc.SLO
	t.safe = max(1, min(t.limit, nature.curve.safe(math.Exp(-p.zSafe()*t.sigmaITL)/slo.TPS/slow/stall)))
	t.tight = t.n > 0 && e.kv+float64(a.seq.prompt+a.seq.output)+0.5*float64(len(e.run))*p.output > nature.kv
	price := p.price(b)
	t.full = cost.FullLoad(&price, nature.curve.itl(t.safe)*slow*stall/t.safe)
	return t
}

func (p *oracle) zSafe() float64 {
	if p.g.w.sc.SLO.Confidence > 0.95 {
		return 2
	}
	return 1.28
}

func (p *oracle) price(b *backend) endpoint.Price {
	return b.listed(&told{price: b.price})
}

func (p *oracle) pick(r *request, a *attempt) int {
	if len(r.tried) == 0 {
		p.budget.Earn()
	}
	i := p.choose(r, a, r.tried)
	if i < 0 && len(r.tried) > 0 {
		i = p.choose(r, a, nil)
	}
	return i
}

func (p *oracle) choose(r *request, a *attempt, tried []*backend) int {
	w, slo := p.g.w, p.g.w.sc.SLO
	metered, api := math.Inf(1), math.Inf(1)
	used, room := 0.0, 0.0
	output := float64(a.seq.output)
	p.output += meanWeight * (output - p.output)
	p.compute += meanWeight * (float64(r.prompt-r.shared) - p.compute)
	for i, b := range w.hosts {
		p.views[i] = p.see(b, a)
		t := &p.views[i]
		if b.class.Kind == Hourly && t.ok {
			used += t.n
			room += t.safe
		}
		if slices.Contains(tried, b) {
			t.ok = false
		}
		if b.class.Kind != Hourly {
			metered = min(metered, t.full)
		}
		price := p.price(b)
		l := cost.Load{
			OutputTokens: output, PromptTokens: t.compute, CachedTokens: t.hit, Concurrency: t.n + 1, ITLSeconds: t.itl, PrefillPerSec: t.prefill,
			Cold: t.cold, ColdSeconds: b.class.ColdStart, IdleSeconds: t.idle, FullLoadUSDPerToken: t.full,
		}
		if b.class.Interruptible {
			l.LossPerSecond = float64(1+len(b.downs)) / (6*3600 + w.now)
		}
		t.usd, _ = cost.Marginal(&price, &l)
		if b.class.Kind == API && t.ok {
			api = min(api, t.usd)
		}
	}
	if math.IsInf(metered, 1) {
		metered = anyMetered
	}
	p.act(api, used, room)
	left := slo.TTFT - (w.now - r.at)
	resumed := r.firstAt > 0
	least := math.Inf(1)
	for i := range p.views {
		t := &p.views[i]
		late := math.Log(max(0.01, left))-math.Log(t.ttft) < p.z*t.sigmaFirst
		if resumed {
			late = t.cold
		}
		if !t.ok || late || t.tight || t.n+1 > t.limit || -math.Log(slo.TPS)-math.Log(t.itl) < p.z*t.sigmaITL {
			continue
		}
		if p.committed[i] && !t.cold {
			t.usd = cost.Paid(output, metered, (t.n+1)/t.safe)
		}
		least = min(least, t.usd)
	}
	best, score := -1, math.Inf(1)
	for i := range p.views {
		t, b := &p.views[i], w.hosts[i]
		late := math.Log(max(0.01, left))-math.Log(t.ttft) < p.z*t.sigmaFirst
		if resumed {
			late = t.cold
		}
		if !t.ok || late || t.tight || t.n+1 > t.limit || -math.Log(slo.TPS)-math.Log(t.itl) < p.z*t.sigmaITL || t.usd > least*1.1+0.02*metered*output {
			continue
		}
		x := (t.n + 1) / t.safe
		if b.class.Kind == Serverless {
			x = packs - t.n/1000
		}
		if t.hit > 0 {
			x -= 0.15
		}
		if x < score {
			best, score = i, x
		}
	}
	if best >= 0 {
		if w.hosts[best].class.Kind != Hourly && !math.IsInf(api, 1) {
			p.rate = p.tier() + api/tierSeconds
			p.rateAt = w.now
		}
		return best
	}
	return p.degrade(left, resumed)
}

// degrade is what is left when nobody keeps the SLO.
func (p *oracle) degrade(left float64, resumed bool) int {
	slo := p.g.w.sc.SLO
	pick := func(score func(i int, t *truth) float64) int {
		best, least := -1, math.Inf(1)
		for i := range p.views {
			if t := &p.views[i]; t.ok {
				if x := score(i, t); x < least {
					best, least = i, x
				}
			}
		}
		return best
	}
	if best := pick(func(_ int, t *truth) float64 {
		if t.cold || t.n+1 > 1.5*t.safe+1 || t.n+1 > 1.2*t.limit {
			return math.Inf(1)
		}
		return max(t.itl*slo.TPS, t.ttft/max(0.01, left))
	}); best >= 0 {
		return best
	}
	if best := pick(func(i int, t *truth) float64 {
		c := p.g.w.hosts[i].class
		if !t.cold || p.g.inFlight[i] >= 2*c.Concurrency*c.Workers {
			return math.Inf(1)
		}
		return t.ttft
	}); best >= 0 || !resumed {
		return best
	}
	return pick(func(_ int, t *truth) float64 { return t.itl })
}

// tier is the API dollars a second that go to metered hosts.
func (p *oracle) tier() float64 { return p.rate * math.Exp(-(p.g.w.now-p.rateAt)/tierSeconds) }

// act starts workers ahead of need: one when the sunk hosts fill up and nothing instant is there to spill to; or, where
// there is an API, as many as are cheaper than it for the demand that it would get.
func (p *oracle) act(api, used, room float64) {
	w := p.g.w
	if math.IsInf(api, 1) {
		if w.now-p.acted < wakeEvery || room > 0 && used/room <= wakeAbove {
			return
		}
		best, least := -1, math.Inf(1)
		for i, b := range w.hosts {
			if b.class.Kind != Serverless {
				continue
			}
			if up, starting := b.warm(); up+starting > 0 {
				return
			}
			if p.views[i].full < least {
				best, least = i, p.views[i].full
			}
		}
		if best >= 0 {
			p.acted = w.now
			w.hosts[best].wake(1)
		}
		return
	}
	p.apiUSD += meanWeight * (api - p.apiUSD)
	if w.now-p.acted < commitEvery {
		return
	}
	p.acted = w.now
	p.merit = p.merit[:0]
	for i, b := range w.hosts {
		if b.class.Kind == Serverless {
			t := &p.views[i]
			usd := t.full*p.output + b.price*0.5*p.compute/t.prefill
			p.merit = append(p.merit, meritEndpoint{i, usd, b.price / usd * p.apiUSD})
		}
	}
	slices.SortStableFunc(p.merit, func(a, b meritEndpoint) int { return cmp.Compare(a.usd, b.usd) })
	demand := p.tier()
	for _, m := range p.merit {
		k := 0
		if m.usd/0.7 < p.apiUSD {
			extra := 0.25
			if p.committed[m.i] {
				extra = 0.5
			}
			k = min(len(w.hosts[m.i].engines), int(demand/m.does+extra))
		}
		demand = max(0, demand-float64(k)*m.does)
		p.committed[m.i] = k > 0
		w.hosts[m.i].wake(k)
	}
}
