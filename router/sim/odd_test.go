package sim

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// oddScenario draws a scenario that is valid, and often silly.
func oddScenario(r *rand.Rand) Scenario {
	pick := func(v ...float64) float64 { return v[r.IntN(len(v))] }
	s := Scenario{
		Name: "odd", Hours: 0.1, SLO: SLO{TTFT: pick(0.01, 2, 100), TPS: pick(0.1, 15, 1000), Confidence: pick(0.01, 0.9, 0.999)},
		Truth:    []Truth{Linear, Kinked, Noisy, Chunked, KV}[r.IntN(5)],
		Load:     Load{PerSecond: pick(0.01, 1, 8), Diurnal: pick(0, 0.9), Bursts: pick(0, 1, 3)},
		Faults:   Faults{Uptime: pick(0, 10, 200), Downtime: pick(0, 30), Correlated: pick(0, 1)},
		Replicas: int(pick(0, 1, 3)), Share: pick(0, 1), WrongTime: pick(0, 1e6),
	}
	for i := range 1 + r.IntN(5) {
		h := Host{
			Name: string(rune('a' + i)), Provider: "p", Kind: []Kind{Hourly, Serverless, API}[r.IntN(3)], Machine: []string{"", "m"}[r.IntN(2)],
			TPS: Range{pick(0.5, 30), 0}, TTFT: Range{pick(0.001, 0.3), 0}, Slope: pick(1e-6, 0.04, 2), Prefill: pick(10, 1000, 1e6), Seqs: int(pick(1, 2, 50)),
			Interruptible: r.IntN(2) == 0, USDPerHour: Range{pick(0, 1), 0}, USDPerSecond: pick(0, 0.001), Workers: int(pick(1, 3)), Concurrency: int(pick(1, 30)),
			ColdStart: pick(0, 25), IdleTimeout: pick(0, 15), USDPerMTokIn: pick(0, 1), USDPerMTokOut: pick(0, 1), PerMinute: int(pick(0, 1, 20)),
			Flaky: r.IntN(3) == 0, Slower: pick(0, 5), Returns: pick(0, 2),
		}
		h.TPS.High, h.TTFT.High, h.USDPerHour.High = h.TPS.Low*pick(1, 2), h.TTFT.Low*pick(1, 2), h.USDPerHour.Low*pick(1, 2)
		s.Hosts = append(s.Hosts, h)
	}
	for range r.IntN(4) {
		s.Events = append(s.Events, Event{
			At: 360 * r.Float64(), For: pick(0, 60), What: []What{PriceTimes, ControlDown, SharingCut, ReplicaKilled}[r.IntN(4)], Factor: pick(0.5, 3),
		})
	}
	return s
}

// TestOddFleets runs fleets that nobody has: every request is accounted for once, and every figure is one.
func TestOddFleets(t *testing.T) {
	seeds := uint64(60)
	if underRace {
		seeds = 6
	}
	for seed := range seeds {
		s := oddScenario(dice(seed, "odd", 0))
		if err := s.Validate(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		calls := 0
		for g := newGenerator(s.Load, s.speed(), seed); ; calls++ {
			if c, _ := g.next(); c.at >= s.Hours*3600 {
				break
			}
		}
		for _, name := range []string{Brain, Oracle, "spill-0.5"} {
			var gateways []*replica
			p := policy(t, name)
			inner := p.make
			p.make = func(g *replica) picker { gateways = append(gateways, g); return inner(g) }
			r := simulate(t, s, p, seed)
			running := 0
			for i, g := range gateways {
				if !slices.Contains(gateways[:i], g) { // else it is the same after its restart
					running += len(g.live)
				}
			}
			if r.Requests+running != calls {
				t.Errorf("seed %d, %s: %d requests are accounted for and %d run, of %d", seed, name, r.Requests, running, calls)
			}
			kept, lost := float64(r.SLO), float64(r.Failed+r.Shed)
			if r.Requests > 0 && !(kept >= 0 && kept+lost <= 1+1e-9) { //nolint:staticcheck // NaN
				t.Errorf("seed %d, %s: %g kept the SLO and %g were lost", seed, name, kept, lost)
			}
			if math.IsNaN(r.USD) || r.USD < 0 || math.Abs(r.USD-r.SunkUSD-r.MeterUSD) > 1e-9 {
				t.Errorf("seed %d, %s: costs $%g, of it %g by the hour and %g metered", seed, name, r.USD, r.SunkUSD, r.MeterUSD)
			}
			for _, h := range r.Hosts {
				if b := float64(h.Busy); !(b >= 0 && b <= 1+drainSeconds/(s.Hours*3600)) { //nolint:staticcheck // NaN
					t.Errorf("seed %d, %s: host %s was busy %g of the time", seed, name, h.Name, b)
				}
			}
		}
	}
}
