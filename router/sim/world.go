package sim

import (
	"math"
	"math/rand/v2"
	"slices"

	"headrace/router/capacity"
	"headrace/router/endpoint"
)

// world is one run: a fleet, its traffic, the gateways in front of it, and what becomes of every request.
type world struct {
	agenda
	sc       *Scenario
	seed     uint64
	end      float64
	hosts    []*backend
	replicas []*replica
	traffic  arrivals
	ledger   ledger

	controlDownUntil float64
	sharingCutUntil  float64
	timeline         []Moment
}

// life is how long something takes in the run that takes d seconds in life.
func (w *world) life(d float64) float64 { return d / w.sc.speed() }

// Moment is something that happened to a host.
type Moment struct {
	At   float64 `json:"at"` // seconds since the start
	Host string  `json:"host"`
	What string  `json:"what"`
}

const maxMoments = 10_000

func (w *world) note(b *backend, what string) {
	if len(w.timeline) < maxMoments && w.now < w.end {
		w.timeline = append(w.timeline, Moment{w.now, b.class.Name, what})
	}
}

// Constants of the fleet, from the same sources as the scenarios' host classes.
const (
	toldSlope     = 0.045 // b/a that policies are told, whatever the class
	ttftPrompt    = 250.0 // tokens of the prompt that a class's TTFT is for
	leastFirst    = 0.03  // seconds
	cacheSessions = 400
	chunkTokens   = 512 // vLLM: --max-num-batched-tokens of small set-ups
	pollSeconds   = 5.0 // between two polls of a serverless endpoint's workers
)

// build draws the fleet.
func build(sc *Scenario, seed uint64) *world {
	w := &world{sc: sc, seed: seed, end: sc.Hours * 3600}
	for i := range sc.Hosts {
		w.hosts = append(w.hosts, w.draw(i))
	}
	return w
}

func (w *world) draw(i int) *backend {
	c := &w.sc.Hosts[i]
	r := dice(w.seed, "truth", i)
	b := &backend{
		w: w, i: i, class: c, id: endpoint.ID(c.Provider + ":" + c.Name), up: true, port: firstPort, price: 1,
		fate: dice(w.seed, "fate", i), colds: dice(w.seed, "cold", i),
	}
	first := func(ttft float64) float64 { return max(w.life(leastFirst), ttft-ttftPrompt/c.Prefill) }
	b.prior = capacity.Prior{
		ITLSeconds: 1 / c.TPS.mid(), Slope: toldSlope, TTFTSeconds: first(c.TTFT.mid()), PrefillTokensPerSecond: c.Prefill,
		MaxNumSeqs: c.Seqs, Source: "simulated catalogue",
	}
	n := nature{prefill: c.Prefill, seqs: c.Seqs, kv: math.Inf(1), stall: 0.5, cache: cacheSessions}
	slope, slower := c.Slope, c.Slower
	if slower == 0 {
		slower = 1
	}
	tps := c.TPS.at(r.Float64())
	ttft := c.TTFT.at(r.Float64())
	n.first = first(ttft)
	price := r.Float64()
	if c.Kind == Hourly { // others' figures are the provider's own
		slope *= 0.8 + 0.45*r.Float64()
		n.prefill *= 0.85 + 0.25*r.Float64()
		n.seqs = max(1, int(float64(n.seqs)*(0.8+0.25*r.Float64())))
		b.price = c.USDPerHour.at(price)
	}
	if c.Kind == Serverless {
		b.price = c.USDPerSecond
	}
	n.curve = curve{base: slower / tps / (1 + slope), knee: math.Inf(1)}
	n.curve.slope = n.curve.base * slope
	if c.Kind != API {
		w.twist(&n, r)
	}
	workers := 1
	if c.Kind == Serverless {
		workers = c.Workers
	}
	for k := range workers {
		b.engines = append(b.engines, &engine{
			w: w, b: b, nature: n, rand: dice(w.seed, "engine", i*1000+k), up: c.Kind != Serverless, slow: 1, wander: 1, cache: prefixes{most: n.cache},
		})
	}
	return b
}

// twist makes the engine one of the scenario's family.
func (w *world) twist(n *nature, r *rand.Rand) {
	u, v := r.Float64(), r.Float64() // drawn whatever the family, so that families share the rest
	switch c := &n.curve; w.sc.Truth {
	case Linear, "":
	case Kinked: // memory bound up to the knee, compute bound beyond; as fast as the line alone
		one := c.itl(1)
		ratio := c.slope / c.base
		c.base = one / (1 + 0.3*ratio)
		c.slope = 0.3 * ratio * c.base
		c.knee = max(2, (0.3+0.3*u)*float64(n.seqs))
		c.steep = (2 + v) * ratio * c.base
	case Noisy:
		n.noise, n.drift = 0.15+0.1*u, 0.1+0.1*v
	case Chunked:
		n.chunk, n.stall = chunkTokens, 1
	case KV:
		n.kv = float64(n.seqs) * (450 + 200*u)
	}
}

// begin enters what befalls the fleet.
func (w *world) begin() {
	for _, b := range w.hosts {
		if b.class.Kind == Hourly {
			w.arm(b)
		}
		for _, e := range b.engines {
			if e.nature.drift > 0 {
				w.wander(e)
			}
		}
	}
	for i := range w.sc.Events {
		e := &w.sc.Events[i]
		w.at(e.At, func() { w.happen(e) })
	}
	if w.anyServerless() {
		w.poll()
	}
	if w.sc.Share > 0 && len(w.replicas) > 1 {
		w.share()
	}
	for _, g := range w.replicas {
		if g.rules.advice {
			w.advise(g)
		}
		if g.rules.scrape > 0 {
			w.scrape(g)
		}
		w.probe(g)
	}
	w.arrive()
}

// advise lets a gateway's policy start workers. Of several gateways one acts, the first that is up, as a lock decides
// outside of simulations; all think about it, for what they think changes where they send requests.
func (w *world) advise(g *replica) {
	if a, ok := g.policy.(adviser); ok && g.up {
		leader := w.entry(0) == g
		a.advise(func(host, workers int) {
			if leader && w.now >= w.controlDownUntil {
				w.hosts[host].wake(workers)
			}
		})
	}
	if w.now < w.end {
		w.in(1, func() { w.advise(g) })
	}
}

const probeEvery = 0.25 // seconds

// probe lets a gateway's policy test hosts.
func (w *world) probe(g *replica) {
	p, ok := g.policy.(prober)
	if !ok {
		return
	}
	if g.up {
		p.probe(g.test)
	}
	if w.now < w.end+w.life(drainSeconds) {
		w.in(w.life(probeEvery), func() { w.probe(g) })
	}
}

// scrape lets a gateway's policy read the metrics of the hosts that are up.
func (w *world) scrape(g *replica) {
	if o, ok := g.policy.(observer); ok && g.up {
		for _, b := range w.hosts {
			if b.class.Kind == Hourly && b.up {
				b.engines[0].advance()
				o.observe(b, b.engines[0])
			}
		}
	}
	if w.now < w.end {
		w.in(g.rules.scrape, func() { w.scrape(g) })
	}
}

func (w *world) anyServerless() bool {
	for _, b := range w.hosts {
		if b.class.Kind == Serverless {
			return true
		}
	}
	return false
}

// arm enters a host's preemptions and episodes.
func (w *world) arm(b *backend) {
	f := &w.sc.Faults
	switch {
	case !b.class.Interruptible:
	case len(f.Spot) > 0:
		b.follow(&f.Spot[b.i%len(f.Spot)], b.i/len(f.Spot))
	case f.Uptime > 0:
		w.again(b.fate, f.Uptime, func() {
			if !b.up {
				return
			}
			w.takeAway(b)
			if m := b.class.Machine; m != "" && f.Correlated > 0 {
				for _, o := range w.hosts {
					if o != b && o.class.Machine == m && o.up && b.fate.Float64() < f.Correlated {
						w.takeAway(o)
					}
				}
			}
		})
	}
	if b.class.Flaky {
		w.again(b.fate, w.life(2.5*3600), b.sicken)
	}
}

func (w *world) takeAway(b *backend) {
	b.die()
	w.in(w.sc.Faults.Downtime*(0.7+0.6*b.fate.Float64()), b.comeBack)
}

// again does something at exponential times.
func (w *world) again(r *rand.Rand, mean float64, do func()) {
	w.in(r.ExpFloat64()*mean, func() {
		if w.now > w.end {
			return
		}
		do()
		w.again(r, mean, do)
	})
}

// follow lets a host live and die by a trace, as the instance of that number of those held, modulo the most ever held.
func (b *backend) follow(s *Spot, instance int) {
	w := b.w
	if most := slices.Max(s.Held); most > 0 {
		instance %= most
	}
	span := s.Gap * float64(len(s.Held))
	for from := 0.0; from < w.end; from += span {
		up := from == 0 || s.Held[len(s.Held)-1] > instance
		for i, n := range s.Held {
			if (n > instance) == up {
				continue
			}
			if up = n > instance; up {
				w.at(from+float64(i)*s.Gap, b.comeBack)
			} else {
				w.at(from+float64(i)*s.Gap, b.die)
			}
		}
	}
}

const wanderEvery = 30.0 // seconds

// wander moves an engine's speed about its mean, half of it forgotten in five minutes.
func (w *world) wander(e *engine) {
	x := e.nature.drift * e.rand.NormFloat64()
	keep := math.Exp2(-wanderEvery / 300)
	var step func()
	step = func() {
		e.advance()
		x = keep*x + math.Sqrt(1-keep*keep)*e.nature.drift*e.rand.NormFloat64()
		e.wander = math.Exp(x)
		e.settle()
		if w.now < w.end {
			w.in(w.life(wanderEvery), step)
		}
	}
	step()
}

func (w *world) happen(e *Event) {
	switch e.What {
	case PriceTimes:
		for _, b := range w.hosts {
			if e.Host == "" || e.Host == b.class.Name {
				b.billHours(w.now)
				b.price *= e.Factor
				w.note(b, "price")
				w.changed(b)
			}
		}
	case ControlDown:
		w.controlDownUntil = w.now + e.For
	case SharingCut:
		w.sharingCutUntil = w.now + e.For
	case ReplicaKilled:
		w.replicas[0].die(e.For)
	}
}

// changed tells every gateway of a host, each when its next poll or webhook comes.
func (w *world) changed(b *backend) {
	b.version++
	t := b.now()
	for _, g := range w.replicas {
		w.tell(g, b, t, w.life(g.lags.Float64()*13+2))
	}
}

func (w *world) tell(g *replica, b *backend, t told, lag float64) {
	w.in(lag, func() {
		if d := w.controlDownUntil - w.now; d > 0 {
			w.tell(g, b, t, d+w.life(g.lags.Float64()*13+2))
			return
		}
		g.hear(b, t)
	})
}

// poll tells the gateways which workers are up.
func (w *world) poll() {
	if w.now >= w.controlDownUntil {
		for _, b := range w.hosts {
			if b.class.Kind != Serverless {
				continue
			}
			t := b.now()
			for _, g := range w.replicas {
				g.hear(b, t)
			}
		}
		for _, g := range w.replicas {
			g.refresh()
		}
	}
	if w.now < w.end+w.life(drainSeconds) {
		w.in(w.life(pollSeconds), w.poll)
	}
}

// share tells every gateway what the others have in flight.
func (w *world) share() {
	if w.now >= w.sharingCutUntil {
		for _, g := range w.replicas {
			for i := range g.others {
				g.others[i], g.prompts[i] = 0, 0
				for _, o := range w.replicas {
					if o != g {
						g.others[i] += o.inFlight[i]
						g.prompts[i] += o.policy.prompts(i)
					}
				}
			}
			g.policy.share(g.others, g.prompts)
		}
	}
	if w.now < w.end {
		w.in(w.sc.Share, w.share)
	}
}

// arrive lets the next request come.
func (w *world) arrive() {
	c, ok := w.traffic.next()
	if !ok || c.at >= w.end {
		return
	}
	w.at(c.at, func() {
		w.entry(c.door).accept(&c)
		w.arrive()
	})
}

// entry is the gateway that a load balancer gives a request to.
func (w *world) entry(u float64) *replica {
	k := int(u * float64(len(w.replicas)))
	for i := range w.replicas {
		if g := w.replicas[(k+i)%len(w.replicas)]; g.up {
			return g
		}
	}
	return w.replicas[k]
}
