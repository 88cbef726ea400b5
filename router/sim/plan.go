package sim

import (
	"cmp"
	"fmt"
	"slices"

	"headrace/router/capacity"
	"headrace/router/endpoint"
)

// Faster returns the scenario k times as fast: all durations are divided by k and all rates multiplied, prices per hour and
// second among them, so that a token costs what it did. Two things stay: what the simulator itself takes for granted follows
// by Speed, but the router's own time constants are those of life, as they are for a real gateway in front of a fake cloud
// that runs faster.
func (s Scenario) Faster(k float64) Scenario { //nolint:gocritic // a value, so that the caller's stays as it is
	rate := func(r *Range) { r.Low, r.High = r.Low*k, r.High*k }
	s.Speed = s.speed() * k
	s.Hours /= k
	s.SLO.TTFT /= k
	s.SLO.TPS *= k
	s.Share /= k
	s.WrongTime /= k
	s.Hosts = slices.Clone(s.Hosts)
	for i := range s.Hosts {
		h := &s.Hosts[i]
		rate(&h.TPS)
		rate(&h.USDPerHour)
		h.TTFT = Range{h.TTFT.Low / k, h.TTFT.High / k}
		h.Prefill *= k
		h.USDPerSecond *= k
		h.ColdStart /= k
		h.IdleTimeout /= k
	}
	s.Load.PerSecond *= k
	s.Load.Trace = slices.Clone(s.Load.Trace)
	for i := range s.Load.Trace {
		s.Load.Trace[i].At /= k
	}
	s.Faults.Uptime /= k
	s.Faults.Downtime /= k
	s.Faults.Spot = slices.Clone(s.Faults.Spot)
	for i := range s.Faults.Spot {
		s.Faults.Spot[i].Gap /= k
	}
	s.Events = slices.Clone(s.Events)
	for i := range s.Events {
		s.Events[i].At /= k
		s.Events[i].For /= k
	}
	return s
}

func (s *Scenario) speed() float64 {
	if s.Speed > 0 {
		return s.Speed
	}
	return 1
}

// Plan is what a run is made of whatever its policy, for those who would play the same elsewhere, such as on real sockets.
// Times are seconds since the start.
type Plan struct {
	Hosts   []Drawn
	Calls   []Arrival
	Outages []Outage
}

// Drawn is a host as it truly is: n streams at once get a token each every Base+Slope·n seconds.
type Drawn struct {
	ID          endpoint.ID // as the router is told
	Base, Slope float64     // seconds
	First       float64     // seconds to the first token after the prompt's computation, in the middle
	Prefill     float64     // prompt tokens per second
	Seqs        int         // sequences at once
	USDPerHour  float64     // of an hourly host
	Prior       capacity.Prior
}

// Arrival is a request.
type Arrival struct {
	At             float64
	Prompt, Output int // tokens
	Session        int
	Shared         int // tokens of the prompt that the session's turn before had, its answer included
}

// Outage is a preemption: from From on the host resets all connections and refuses new ones, or is Silent; at To it is
// back at another port, with nothing in its caches. The last one may end after the run.
type Outage struct {
	Host     int // in Plan.Hosts
	From, To float64
	Silent   bool
}

// PlanOf returns what Run makes a scenario of with that seed. Noisy, kinked and other engines than linear ones have more to
// them than a Plan tells, and so have flaky hosts and Events: an error says so.
func PlanOf(sc Scenario, seed uint64) (Plan, error) { //nolint:gocritic // likewise
	if err := sc.Validate(); err != nil {
		return Plan{}, err
	}
	flaky := func(h Host) bool { return h.Flaky || h.Returns > 0 } //nolint:gocritic // a few
	if sc.Truth != Linear && sc.Truth != "" || len(sc.Events) > 0 || slices.ContainsFunc(sc.Hosts, flaky) {
		return Plan{}, fmt.Errorf("scenario %s: a plan tells of straight lines and preemptions only", sc.Name)
	}
	w := build(&sc, seed)
	var p Plan
	for _, b := range w.hosts {
		n := &b.engines[0].nature
		p.Hosts = append(p.Hosts, Drawn{
			ID: b.id, Base: n.curve.base, Slope: n.curve.slope, First: n.first, Prefill: n.prefill, Seqs: n.seqs, USDPerHour: b.price, Prior: b.prior,
		})
		if b.class.Kind == Hourly {
			w.arm(b)
		}
	}
	w.run(w.end)
	for i, b := range w.hosts {
		for k, d := range b.downs {
			p.Outages = append(p.Outages, Outage{Host: i, From: d[0], To: d[1], Silent: b.silent[k]})
		}
	}
	slices.SortStableFunc(p.Outages, func(a, b Outage) int { return cmp.Compare(a.From, b.From) })
	traffic := newTraffic(&sc, seed)
	for c, ok := traffic.next(); ok && c.at < w.end; c, ok = traffic.next() {
		p.Calls = append(p.Calls, Arrival{At: c.at, Prompt: c.prompt, Output: c.output, Session: c.session, Shared: c.shared})
	}
	return p, nil
}

func newTraffic(sc *Scenario, seed uint64) arrivals {
	if len(sc.Load.Trace) > 0 {
		return newReplay(&sc.Load, seed)
	}
	return newGenerator(sc.Load, sc.speed(), seed)
}
