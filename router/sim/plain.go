package sim

import (
	"math"
	"slices"

	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// simple is what the simpler policies have in common: what is in flight, a short cool-down after failures, and a budget
// of retries. choose gets the hosts that are not cooling down; when all are, it gets all.
type simple struct {
	g      *replica
	budget *router.Budget
	choose func(c []*backend) int // index in c, -1 for none
	only   func(b *backend) bool  // hosts that it ever uses; nil for all
	note   func(a *attempt, what event)

	away   []bool // control planes say that it is
	until  []float64
	streak []int
	cands  []*backend
	others []int
}

// event is what a policy may learn from.
type event uint8

const (
	cameFirst event = iota
	ended
	broke
	timedOut
)

const coolSeconds = 5.0

func newSimple(g *replica) *simple {
	n := len(g.w.hosts)
	return &simple{
		g: g, budget: router.NewBudget(router.BudgetOptions{}), away: make([]bool, n), until: make([]float64, n), streak: make([]int, n), others: make([]int, n),
		note: func(*attempt, event) {},
	}
}

func (p *simple) update(eps []endpoint.Endpoint) {
	for i := range eps {
		p.away[i] = p.g.rules.control && !router.Usable(&eps[i])
	}
}

func (p *simple) pick(r *request, _ *attempt) int {
	if len(r.tried) == 0 {
		p.budget.Earn()
	}
	for pass := range 3 {
		p.cands = p.cands[:0]
		for i, b := range p.g.w.hosts {
			switch {
			case p.only != nil && !p.only(b), p.away[i]:
			case pass < 2 && p.g.w.now < p.until[i]:
			case pass < 1 && slices.Contains(r.tried, b):
			default:
				p.cands = append(p.cands, b)
			}
		}
		if len(p.cands) > 0 {
			if k := p.choose(p.cands); k >= 0 {
				return p.cands[k].i
			}
			return -1
		}
	}
	return -1
}

func (p *simple) first(a *attempt) { p.note(a, cameFirst) }

func (p *simple) progress(*attempt, int64, float64) {}

func (p *simple) settled(a *attempt, class outcome.Class, _ float64) {
	i := a.host.i
	switch class {
	case outcome.Success:
		p.streak[i] = 0
		p.note(a, ended)
		return
	case outcome.FirstByteTimeout:
		p.note(a, timedOut)
		if p.streak[i]++; p.streak[i] < 3 || p.g.rules.control && a.host.class.Kind == Serverless {
			return
		}
	default:
		p.note(a, broke)
	}
	p.until[i] = p.g.w.now + coolSeconds
	p.streak[i] = 0
}

func (p *simple) share(others, _ []int) { copy(p.others, others) }
func (p *simple) prompts(int) int       { return 0 }

func (p *simple) mayRetry() bool { return p.budget.Spend() }

// least returns the index of the least score; ties fall to the first from a random one on.
func (p *simple) least(c []*backend, score func(b *backend) float64) int {
	best, least := -1, math.Inf(1)
	off := p.g.rand.IntN(len(c))
	for k := range c {
		i := (k + off) % len(c)
		if x := score(c[i]); x < least {
			best, least = i, x
		}
	}
	return best
}

func (p *simple) inFlight(b *backend) float64 { return float64(p.g.inFlight[b.i]) }

// listed is the price of a million output tokens of one stream alone by the price list, USD.
func (p *simple) listed(b *backend) float64 {
	price := p.g.view[b.i].price
	switch b.class.Kind {
	case Hourly:
		return price / 3600 * b.prior.ITLSeconds * 1e6
	case Serverless:
		return price * b.prior.ITLSeconds * 1e6
	case API:
	}
	return price * (b.class.USDPerMTokOut + 2*b.class.USDPerMTokIn)
}

func isHourly(b *backend) bool { return b.class.Kind == Hourly }
func isRunPod(b *backend) bool { return b.class.Kind != Hourly }

func random(g *replica) *simple {
	p := newSimple(g)
	p.choose = func(c []*backend) int { return g.rand.IntN(len(c)) }
	return p
}

func roundRobin(g *replica) *simple {
	p, k := newSimple(g), 0
	p.choose = func(c []*backend) int { k++; return k % len(c) }
	return p
}

// leastConnections sends to whoever has the fewest requests in flight.
func leastConnections(only func(*backend) bool) func(g *replica) *simple {
	return func(g *replica) *simple {
		p := newSimple(g)
		p.only = only
		p.choose = func(c []*backend) int { return p.least(c, p.inFlight) }
		return p
	}
}

// cheapestListed goes by the price list alone, as LiteLLM's lowest-cost does, or up to max_num_seqs of each host.
func cheapestListed(capped bool) func(g *replica) *simple {
	return func(g *replica) *simple {
		p := newSimple(g)
		p.choose = func(c []*backend) int {
			best := p.least(c, func(b *backend) float64 {
				room := b.class.Seqs
				if b.class.Kind == Serverless {
					room = b.class.Concurrency * b.class.Workers
				}
				if capped && g.inFlight[b.i] >= room {
					return math.Inf(1)
				}
				return p.listed(b)
			})
			if best < 0 {
				return g.rand.IntN(len(c))
			}
			return best
		}
		return p
	}
}

// inverseSquare draws by 1/price², as OpenRouter does by default.
func inverseSquare(g *replica) *simple {
	p := newSimple(g)
	weight := func(b *backend) float64 { n := max(p.listed(b), 1e-9); return 1 / (n * n) }
	p.choose = func(c []*backend) int {
		sum := 0.0
		for _, b := range c {
			sum += weight(b)
		}
		u := g.rand.Float64() * sum
		for i, b := range c {
			if u -= weight(b); u <= 0 {
				return i
			}
		}
		return len(c) - 1
	}
	return p
}

// lowestLatency is LiteLLM's: the mean seconds per token of the last 10 answers, unseen hosts first.
func lowestLatency(g *replica) *simple {
	const kept, forTimeout = 10, 1000.0
	p, seen := newSimple(g), make([][]float64, len(g.w.hosts))
	add := func(b *backend, v float64) {
		s := append(seen[b.i], v)
		seen[b.i] = s[max(0, len(s)-kept):]
	}
	p.note = func(a *attempt, what event) {
		switch what {
		case ended:
			add(a.host, (g.w.now-a.begun)/max(1, float64(a.seq.output)))
		case timedOut:
			add(a.host, forTimeout)
		case cameFirst, broke:
		}
	}
	p.choose = func(c []*backend) int {
		return p.least(c, func(b *backend) float64 {
			sum := 0.0
			for _, v := range seen[b.i] {
				sum += v
			}
			return sum / max(1, float64(len(seen[b.i])))
		})
	}
	return p
}

// peakEWMA is Finagle's: of two at random, the one with less (peak-sensitive mean latency) x (in flight + 1).
func peakEWMA(g *replica) *simple {
	const decay, failed = 10.0, 10.0 // seconds
	n := len(g.w.hosts)
	p, mean, at := newSimple(g), make([]float64, n), make([]float64, n)
	p.note = func(a *attempt, what event) {
		i, rtt := a.host.i, g.w.now-a.begun
		switch what {
		case cameFirst:
			return
		case broke, timedOut:
			rtt = max(failed, rtt)
		case ended:
		}
		if w := math.Exp(-(g.w.now - at[i]) / decay); rtt > mean[i] {
			mean[i] = rtt
		} else {
			mean[i] = mean[i]*w + rtt*(1-w)
		}
		at[i] = g.w.now
	}
	load := func(b *backend) float64 {
		i := b.i
		if at[i] == 0 {
			if g.inFlight[i] > 0 {
				return 1e6 + p.inFlight(b)
			}
			return 0
		}
		return max(0.001, mean[i]*math.Exp(-(g.w.now-at[i])/decay)) * (p.inFlight(b) + 1)
	}
	p.choose = func(c []*backend) int {
		i, j := g.rand.IntN(len(c)), g.rand.IntN(len(c))
		if load(c[j]) < load(c[i]) {
			return j
		}
		return i
	}
	return p
}

// prequal is the hot-cold lexicographic rule: of those that are not among the fifth with most in flight the one with the
// least recent time to the first token, else the one with the least in flight.
func prequal(g *replica) *simple {
	const hottest, failed = 0.8, 10.0
	p, ttft := newSimple(g), make([]float64, len(g.w.hosts))
	var flights []float64
	p.note = func(a *attempt, what event) {
		l := &ttft[a.host.i]
		switch what {
		case cameFirst:
			*l += 0.2 * (g.w.now - a.begun - *l)
		case broke, timedOut:
			*l += 0.5 * (failed - *l)
		case ended:
		}
	}
	p.choose = func(c []*backend) int {
		flights = flights[:0]
		for _, b := range c {
			flights = append(flights, p.inFlight(b))
		}
		slices.Sort(flights)
		hot := flights[int(hottest*float64(len(c)-1))]
		best := p.least(c, func(b *backend) float64 {
			if p.inFlight(b) >= hot {
				return math.Inf(1)
			}
			return ttft[b.i]
		})
		if best >= 0 {
			return best
		}
		return p.least(c, p.inFlight)
	}
	return p
}

// averageCost is the trap: dollars per token as measured over five minutes, with one request in 20 at random.
func averageCost(g *replica) *simple {
	const window, explore, few, spent = 300.0, 0.05, 500.0, 0.01
	n := len(g.w.hosts)
	p, tokens, usd, at := newSimple(g), make([]float64, n), make([]float64, n), make([]float64, n)
	decay := func() {
		for i, b := range g.w.hosts {
			dt := g.w.now - at[i]
			if dt < 1 {
				continue
			}
			w, rate := math.Exp(-dt/window), g.view[i].price/3600
			switch b.class.Kind {
			case Serverless:
				rate = g.view[i].price * float64(g.view[i].workers+g.view[i].coming)
			case API:
				rate = 0
			case Hourly:
			}
			tokens[i] *= w
			usd[i] = usd[i]*w + rate*dt
			at[i] = g.w.now
		}
	}
	p.note = func(a *attempt, what event) {
		if what == ended {
			decay()
			tokens[a.host.i] += float64(a.seq.output)
		}
	}
	p.choose = func(c []*backend) int {
		decay()
		if g.rand.Float64() < explore {
			return g.rand.IntN(len(c))
		}
		return p.least(c, func(b *backend) float64 {
			switch i := b.i; {
			case b.class.Kind == API:
			case tokens[i] > few:
				return usd[i] / tokens[i]
			case usd[i] > spent:
				return usd[i] / few
			}
			return p.listed(b) / 1e6
		})
	}
	return p
}

// spill is a careful operator's configuration: hosts that are paid anyway by their relative load up to a share of what the
// catalogue says keeps the SLO, then the metered ones.
func spill(share float64) func(g *replica) *simple {
	return func(g *replica) *simple {
		p, slo := newSimple(g), g.w.sc.SLO
		p.choose = func(c []*backend) int {
			best := p.least(c, func(b *backend) float64 {
				if b.class.Kind != Hourly {
					return math.Inf(1)
				}
				a := b.prior.ITLSeconds / (1 + b.prior.Slope)
				room := min(float64(b.class.Seqs), (1/slo.TPS-a)/(a*b.prior.Slope)*share)
				if use := (p.inFlight(b) + float64(p.others[b.i]) + 1) / room; room > 0 && use <= 1 {
					return use
				}
				return math.Inf(1)
			})
			if best >= 0 {
				return best
			}
			best = p.least(c, func(b *backend) float64 {
				if b.class.Kind == Hourly {
					return math.Inf(1)
				}
				return p.inFlight(b) + p.listed(b)/1e3
			})
			if best >= 0 {
				return best
			}
			return g.rand.IntN(len(c))
		}
		return p
	}
}
