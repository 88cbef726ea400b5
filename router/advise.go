package router

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"headrace/router/endpoint"
)

// Advice is what would make the fleet cheaper, or keep its promises. Nobody acts on it here.
type Advice struct {
	Model    string      `json:"model"`
	Action   Action      `json:"action"`
	Endpoint endpoint.ID `json:"endpoint"`
	Workers  int         `json:"workers,omitempty"` // with Wake and Hold: that should be up
	// USDPerDay is what it would save, nil when that cannot be told.
	USDPerDay *float64 `json:"saves_usd_per_day"`
	Why       string   `json:"why"`
}

// Action is what is advised.
type Action string

// Actions.
const (
	Wake    Action = "wake"    // start a worker before the hosts that are paid anyway are full
	Hold    Action = "hold"    // keep that many workers up: cheaper than what the API would take for the same
	Release Action = "release" // give the host back
	Rent    Action = "rent"    // rent another one like it
)

const (
	fullAt      = 0.9              // share of the paid hosts' safe concurrency above which a worker is woken
	wakeEvery   = 20 * time.Second // between two such actions of one model
	holdEvery   = 5 * time.Second
	spareShare  = 0.7  // occupancy at which a worker must still be cheaper than the API
	tierSeconds = 90.0 // time constant of what the metered tier is asked
	askedBefore = 5.0  // seconds since the last request, after which nobody needs a worker
	seldom      = 0.1  // mean use below which a host could go
	useSeconds  = 6 * 3600.0
	peakSeconds = 24 * 3600.0
	tellAfter   = 3600.0 // seconds a host was watched before it is advised to go
	worthIt     = 1.1    // times the rent that is spent on metered hosts, before another one is advised
	mostWorkers = 16     // of an endpoint that names no limit
)

// demand is what a model's requests have asked for, for Advise.
type demand struct {
	askedAt number   // when the last request was picked for
	api     longMean // USD of a request at the cheapest API
	prompt  longMean // tokens to compute of a request

	mu       sync.Mutex // guards all below
	tier     float64    // USD/s that the requests which went to metered endpoints would cost at the cheapest API, as a decaying mean
	tierAt   float64
	metered  float64 // USD/s of marginal cost at metered endpoints, as a decaying mean over an hour
	wokenAt  float64
	heldAt   float64
	held     map[endpoint.ID]int // workers that hold would have up, those that are up included
	peak     float64             // most requests at once, decaying
	crowd    float64             // mean requests at once on metered endpoints
	lookedAt float64
}

const meteredSeconds = 3600.0

func (d *demand) decay(at float64) {
	if dt := at - d.tierAt; dt > 0 {
		d.tier *= math.Exp(-dt / tierSeconds)
		d.metered *= math.Exp(-dt / meteredSeconds)
		d.tierAt = at
	}
}

// asked notes a pick.
func (d *demand) asked(s *scratch, v *view) {
	d.askedAt.set(s.at)
	d.prompt.add(v.prompt)
	if !math.IsInf(s.api, 1) {
		d.api.add(s.api)
	}
	if v.basis() == endpoint.PerHour || v.basis() == endpoint.BasisUnknown {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.decay(s.at)
	if !math.IsInf(s.api, 1) {
		d.tier += s.api / tierSeconds
	}
	if !math.IsNaN(v.usd) {
		d.metered += v.usd / meteredSeconds
	}
}

func (v *view) basis() endpoint.Basis { return v.c.ep.Price.Basis }

// Advise looks at what was asked and what there is. It is to be called every second or so; what it says of committed workers
// changes where requests go: one that pays for itself counts as paid.
func (r *Router) Advise(now time.Time) []Advice {
	snap := r.snap.Load()
	now = r.steady(now)
	for _, c := range snap.list {
		c.host.refresh(r.seconds(now))
	}
	s := &scratch{}
	var out []Advice
	spare := map[endpoint.ID]*Advice{} // hosts that each of their models could do without
	needed := map[endpoint.ID]bool{}
	for _, name := range snap.names {
		m := snap.models[name]
		d := &m.stats.demand
		d.mu.Lock()
		s.prepare(r, m, &Request{Model: name, Now: now, PromptTokens: int(d.prompt.get(0))})
		s.survey()
		d.decay(s.at)
		out = s.wake(d, out)
		out = s.hold(d, out)
		out = s.rent(d, out)
		s.release(d, spare, needed)
		d.mu.Unlock()
	}
	held := r.Held()
	for _, c := range snap.list {
		c.host.paid.Store(held[c.ep.ID] > 0) // for any of the models that share it
	}
	for _, c := range snap.list {
		if a := spare[c.ep.ID]; a != nil && !needed[c.ep.ID] {
			out = append(out, *a)
			break // one at a time: the next one's use changes with it
		}
	}
	return out
}

// Held tells how many workers Advise would have up for good at each endpoint, as of its last look: with those that are up already,
// of which its advice is silent. What is not in it need not be held any longer. Models that share an endpoint share its workers.
func (r *Router) Held() map[endpoint.ID]int {
	snap := r.snap.Load()
	held := map[endpoint.ID]int{}
	for _, name := range snap.names {
		d := &snap.models[name].stats.demand
		d.mu.Lock()
		for id, k := range d.held {
			held[id] = max(held[id], k)
		}
		d.mu.Unlock()
	}
	return held
}

// up tells how many workers of a serverless candidate are there or on their way.
func (v *view) up() int {
	if v.c.ep.State == endpoint.Starting {
		return max(1, v.c.ep.Workers)
	}
	if v.c.ep.State == endpoint.Cold {
		return 0
	}
	return v.c.ep.Workers
}

func (v *view) serverless() bool { return v.basis() == endpoint.PerWorkerSecond && v.verdict < limited }

// wake starts a worker before there is no room: where no API takes what overflows at once.
func (s *scratch) wake(d *demand, out []Advice) []Advice {
	if !math.IsInf(s.api, 1) || s.at-d.askedAt.get() > askedBefore || d.wokenAt > 0 && s.at-d.wokenAt < wakeEvery.Seconds() {
		return out
	}
	var n, safe float64
	var best *view
	for i := range s.views {
		switch v := &s.views[i]; {
		case v.verdict >= limited:
		case v.basis() == endpoint.PerHour:
			n += v.inFlight
			safe += v.safe
		case v.serverless():
			if v.up() > 0 {
				return out
			}
			if best == nil || v.full < best.full {
				best = v
			}
		}
	}
	if best == nil || safe == 0 || n <= fullAt*safe {
		return out
	}
	d.wokenAt = s.at
	return append(out, Advice{
		Model: s.m.Name, Action: Wake, Endpoint: best.c.ep.ID, Workers: 1,
		Why: fmt.Sprintf("the hosts that are paid anyway run %.0f of the %.0f requests at once that keep the slo, and a worker takes %.0f s to start", n, safe, best.cold()),
	})
}

func (v *view) cold() float64 {
	if s := v.c.ep.Price.ColdStart.Seconds(); s > 0 {
		return s
	}
	return coldStart
}

// hold commits as many workers as are cheaper than the API for what the metered tier is asked (ski rental): the cheapest at
// full load first, each for the share of the demand that it can carry.
func (s *scratch) hold(d *demand, out []Advice) []Advice {
	if math.IsInf(s.api, 1) {
		d.held = nil // nothing to compare with
		return out
	}
	if s.at-d.heldAt < holdEvery.Seconds() && d.heldAt > 0 {
		return out
	}
	d.heldAt = s.at
	before := d.held
	d.held = map[endpoint.ID]int{}
	type worker struct {
		v   *view
		usd float64 // of a request at full load
	}
	var ws []worker
	for i := range s.views {
		if v := &s.views[i]; v.serverless() && v.full > 0 {
			prefill := v.c.ep.Price.USDPerWorkerSecond * 0.5 * v.prompt / v.c.host.pub.prefill.get()
			ws = append(ws, worker{v, v.full*s.output + prefill})
		}
	}
	slices.SortFunc(ws, func(a, b worker) int { return cmp.Compare(a.usd, b.usd) })
	api, left := d.api.get(s.api), d.tier
	for _, w := range ws {
		ep := w.v.c.ep
		carries := ep.Price.USDPerWorkerSecond / w.usd * api // USD/s at the API that one full worker replaces
		k := 0
		if w.usd/spareShare < api {
			slack := 0.25
			if before[ep.ID] > 0 {
				slack = 0.5
			}
			k = min(int(left/carries+slack), w.v.most())
		}
		takes := min(left, float64(k)*carries)
		left -= takes
		if k > 0 {
			d.held[ep.ID] = k
		}
		if k > w.v.up() {
			out = append(out, Advice{
				Model: s.m.Name, Action: Hold, Endpoint: ep.ID, Workers: k,
				USDPerDay: known((takes - float64(k)*ep.Price.USDPerWorkerSecond) * 86400),
				Why:       fmt.Sprintf("what overflows would cost $%.2f an hour at the API; a full worker does it for $%.6f a request instead of $%.6f", d.tier*3600, w.usd, api),
			})
		}
	}
	return out
}

// most is how many workers the endpoint may have.
func (v *view) most() int {
	if w := v.c.ep.MaxWorkers; w > 0 {
		return w
	}
	if c := v.c.ep.Limits.Concurrent; c > 0 && v.limit >= 1 {
		return max(1, int(float64(c)/v.limit))
	}
	return mostWorkers
}

// rent advises another host like the cheapest one that is there, where what is spent on metered ones would pay for it.
func (s *scratch) rent(d *demand, out []Advice) []Advice {
	var best *view
	crowd := 0.0
	for i := range s.views {
		v := &s.views[i]
		if v.verdict >= limited {
			continue
		}
		if v.basis() == endpoint.PerHour {
			if v.full > 0 && (best == nil || v.full < best.full) {
				best = v
			}
		} else {
			crowd += float64(v.c.host.inflight.Load())
		}
	}
	d.crowd = toward(d.crowd, crowd, s.at-d.lookedAt, meteredSeconds)
	if best == nil || d.crowd == 0 || s.at < meteredSeconds {
		return out
	}
	usdPerHour := best.c.ep.Price.USDPerHour
	spends := d.metered * 3600
	takes := min(1, best.safe/max(1, d.crowd))
	if spends*takes < worthIt*usdPerHour {
		return out
	}
	gpu := cmp.Or(best.c.ep.Hardware.GPU, "host")
	return append(out, Advice{
		Model: s.m.Name, Action: Rent, Endpoint: best.c.ep.ID, USDPerDay: known((spends*takes - usdPerHour) * 24),
		Why: fmt.Sprintf("metered endpoints cost $%.2f an hour, and another %s %s like it, at $%.2f an hour, would take %.0f %% of that", spends, best.c.ep.Tenure, gpu, usdPerHour, takes*100),
	})
}

// toward moves a decaying mean.
func toward(mean, v, dt, seconds float64) float64 {
	if !(dt > 0) { //nolint:staticcheck // NaN
		return mean
	}
	return mean + (v-mean)*-math.Expm1(-dt/seconds)
}

// release finds hosts that are seldom used and could be done without: the others carry the most that was asked at once.
func (s *scratch) release(d *demand, spare map[endpoint.ID]*Advice, needed map[endpoint.ID]bool) {
	dt := s.at - d.lookedAt
	d.lookedAt = s.at
	var n, safe float64
	for i := range s.views {
		if v := &s.views[i]; v.basis() == endpoint.PerHour && v.verdict < limited {
			n += v.inFlight
			safe += v.safe
		}
	}
	d.peak = max(n, d.peak*math.Exp(-max(0, dt)/peakSeconds))
	var worst *view
	for i := range s.views {
		v := &s.views[i]
		if v.basis() != endpoint.PerHour || v.verdict >= limited {
			continue
		}
		h := v.c.host
		h.mu.Lock()
		if h.watched == 0 && h.watchedAt == 0 {
			h.use = v.inFlight / v.safe
		}
		if since := s.at - h.watchedAt; since > 0 { // once for all the models that share it
			if h.watchedAt > 0 {
				h.use = toward(h.use, v.inFlight/v.safe, since, useSeconds)
				h.watched += min(since, 60)
			}
			h.watchedAt = s.at
		}
		use, watched := h.use, h.watched
		h.mu.Unlock()
		if v.c.ep.Price.USDPerHour > 0 && use < seldom && watched >= tellAfter && fullAt*(safe-v.safe) >= max(1, d.peak) && (worst == nil || v.full > worst.full) {
			worst = v
		}
	}
	for i := range s.views {
		v := &s.views[i]
		if v.basis() != endpoint.PerHour || v.verdict >= limited {
			continue
		}
		if v != worst {
			needed[v.c.ep.ID] = true
			continue
		}
		usd := v.c.ep.Price.USDPerHour * 24
		v.c.host.mu.Lock()
		use := v.c.host.use
		v.c.host.mu.Unlock()
		spare[v.c.ep.ID] = &Advice{
			Model: s.m.Name, Action: Release, Endpoint: v.c.ep.ID, USDPerDay: known(usd),
			Why: fmt.Sprintf("%.0f %% used, costs $%.2f a day; the others can run %.0f requests at once within the slo, and %.0f were the most", use*100, usd, safe-v.safe, d.peak),
		}
	}
}
