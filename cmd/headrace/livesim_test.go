package main

import (
	"flag"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"headrace/router/sim"
)

// Of TestLiveMatchesSimulator. The defaults are for any machine that is not too busy; docs/simulator.md tells how it is measured.
var (
	liveFor   = flag.Duration("live", 8*time.Second, "TestLiveMatchesSimulator: how long requests come, by the wall clock")
	liveSpeed = flag.Float64("live.speed", 25, "how many times faster than life")
	liveRuns  = flag.Int("live.runs", 1, "runs of each scenario, each with a seed of its own")
	liveSeed  = flag.Uint64("live.seed", 4, "the first of them")
	liveOnly  = flag.String("live.only", "serverless", "this scenario alone; all for all")
)

// liveRented is a host of two RTX 4090 for a 70B model, after the simulator's own class.
func liveRented(name string) sim.Host {
	return sim.Host{
		Name: name, Provider: "vast", Kind: sim.Hourly, GPU: "RTX 4090", GPUCount: 2, Interruptible: true, USDPerHour: sim.Range{Low: 0.30, High: 0.60},
		TPS: sim.Range{Low: 18, High: 35}, TTFT: sim.Range{Low: 0.40, High: 0.60}, Slope: 0.060, Prefill: 900, Seqs: 12,
	}
}

// liveScenarios are small enough for a fake cloud at fifty times life's speed on two processors: a token there is an event
// that three programs handle within a millisecond or so.
func liveScenarios() []sim.Scenario {
	big := sim.Host{
		Name: "a100", Provider: "vast", Kind: sim.Hourly, GPU: "A100 80GB", GPUCount: 1, Interruptible: true, USDPerHour: sim.Range{Low: 0.70, High: 1.20},
		TPS: sim.Range{Low: 25, High: 45}, TTFT: sim.Range{Low: 0.25, High: 0.40}, Slope: 0.040, Prefill: 1200, Seqs: 48,
	}
	api := sim.Host{
		Name: "api", Provider: "static", Kind: sim.API, USDPerMTokIn: 1.80, USDPerMTokCached: 0.18, USDPerMTokOut: 2.70,
		TPS: sim.Range{Low: 45, High: 45}, TTFT: sim.Range{Low: 0.48, High: 0.48}, Slope: 1e-6, Prefill: 8000, Seqs: 400,
	}
	// One worker at most: which of several gets a request is RunPod's affair, and the simulator's guess is not the fake's. What
	// the gateway takes for a cold start, before it has seen one, is 45 s.
	worker := sim.Host{
		Name: "workers", Provider: "runpod", Kind: sim.Serverless, GPU: "A100 80GB", GPUCount: 1, USDPerSecond: 0.00076,
		TPS: sim.Range{Low: 30, High: 40}, TTFT: sim.Range{Low: 0.20, High: 0.30}, Slope: 0.040, Prefill: 1200,
		Seqs: 64, Workers: 1, Concurrency: 30, ColdStart: 45, SureCold: true, IdleTimeout: 15,
	}
	slo := sim.SLO{TTFT: 2, TPS: 15, Confidence: 0.9}
	faults := sim.Faults{Uptime: 900, Downtime: 200} // seconds
	return []sim.Scenario{
		{
			Name: "spill", Title: "four rented hosts that live 15 minutes, and an API to spill to", SLO: slo, Faults: faults,
			Hosts: []sim.Host{liveRented("4090-1"), liveRented("4090-2"), liveRented("4090-3"), big, api},
			Load:  sim.Load{PerSecond: 1.3, Bursts: 1.8, From: 6},
		},
		{
			Name: "crowded", Title: "three rented hosts, at times too few", SLO: slo, Faults: faults,
			Hosts: []sim.Host{liveRented("4090-1"), liveRented("4090-2"), big},
			Load:  sim.Load{PerSecond: 1.3, Bursts: 1.8, From: 6},
		},
		{
			Name: "serverless", Title: "two rented hosts, and workers that come and go", SLO: slo, Faults: faults,
			Hosts: []sim.Host{liveRented("4090-1"), liveRented("4090-2"), worker},
			Load:  sim.Load{PerSecond: 1.3, Bursts: 1.8, From: 6},
		},
	}
}

// liveOutcome is what both sides are compared by.
type liveOutcome struct {
	requests, good, failed, shed int
	tokens                       int64 // of answers that came whole
	usd, metered                 float64
	ttft, tps                    []float64
	classes, attempts            string    // of attempts: by outcome, by host
	late                         []float64 // seconds by which the machine was late, sorted
}

func (o *liveOutcome) usdPerMTok() float64 { return o.usd * 1e6 / float64(o.tokens) }
func (o *liveOutcome) slo() float64        { return float64(o.good) / float64(o.requests) }

// liveTolerance is what both sides may differ by, as shares: what they were built to keep, or more for a single short run,
// where a preemption that comes a little sooner changes the fate of everyone behind it.
func liveTolerance() (usd, slo float64) {
	if *liveRuns < 3 {
		return 0.20, 0.10
	}
	return 0.10, 0.03
}

// liveLate is how late the machine may be at most in 99 of 100 cases, as a share of the time promised for a first token. Beyond
// it is the machine that is measured.
const liveLate = 0.05

// TestLiveMatchesSimulator plays what the simulator simulates on real sockets: the same hosts, requests and preemptions, in
// front of them the gateway as it is, which is told what the simulated router is told. Dollars per million tokens and the
// share of requests that kept the SLO must be the same.
func TestLiveMatchesSimulator(t *testing.T) {
	if testing.Short() || underRace {
		t.Skip("plays in real time, and its milliseconds count")
	}
	policy, ok := sim.PolicyNamed("headrace-passive")
	if !ok {
		t.Fatal("no such policy")
	}
	own := ownTime(t)
	t.Logf("client, gateway and sockets alone take %.2f ms (p50), %.2f ms (p95) to a first token", 1e3*quantile(own, 0.5), 1e3*quantile(own, 0.95))
	for _, sc := range liveScenarios() {
		if *liveOnly != "all" && *liveOnly != sc.Name {
			continue
		}
		t.Run(sc.Name, func(t *testing.T) {
			var usd, slo, late []sim.Figure
			usdOff, sloOff := liveTolerance()
			off := func() bool {
				return math.Abs(float64(sim.MeanOf(usd).Mean)) > usdOff || math.Abs(float64(sim.MeanOf(slo).Mean)) > sloOff
			}
			for i := 0; i < *liveRuns || off() && i < *liveRuns+3; i++ { // more where these are off: it may be the machine
				seed := *liveSeed + uint64(i) //nolint:gosec // not negative
				fast, plan := livePlan(t, sc, seed)
				want := sim.Run(fast, policy, seed)
				got := playLive(t, &fast, &plan, seed)
				usd = append(usd, sim.Figure(got.usdPerMTok()/float64(want.USDPerMTok)-1))
				slo = append(slo, sim.Figure(got.slo())-want.SLO)
				late = append(late, sim.Figure(quantile(got.late, 0.99)/fast.SLO.TTFT))
				t.Logf("seed %d, %d requests, %d preemptions\n%s", seed, got.requests, len(plan.Outages), liveTable(&want, got))
			}
			d, s := sim.MeanOf(usd), sim.MeanOf(slo)
			t.Logf("live against simulated: $/Mtok %+.1f %% (%+.1f to %+.1f), SLO %+.1f points (%+.1f to %+.1f); 95 %% over %d runs",
				100*d.Mean, 100*d.Low, 100*d.High, 100*s.Mean, 100*s.Low, 100*s.High, len(usd))
			if worst := slices.Max(late); worst > liveLate {
				t.Skipf("the machine is too busy: late by %.0f %% of the time promised for a first token", 100*worst)
			}
			if math.Abs(float64(d.Mean)) > usdOff {
				t.Errorf("$/Mtok differ by %.1f %%, at most %.0f %% are allowed", 100*d.Mean, 100*usdOff)
			}
			if math.Abs(float64(s.Mean)) > sloOff {
				t.Errorf("SLO attainment differs by %.1f points, at most %.0f are allowed", 100*s.Mean, 100*sloOff)
			}
		})
	}
}

// livePlan is a scenario as it is played, and what it is made of.
func livePlan(t *testing.T, sc sim.Scenario, seed uint64) (sim.Scenario, sim.Plan) { //nolint:gocritic // changed here
	t.Helper()
	sc.Hours = liveFor.Hours() * *liveSpeed
	sc.Load.Exact, sc.Load.NoResume = true, true
	sc = sc.Faster(*liveSpeed)
	plan, err := sim.PlanOf(sc, seed)
	if err != nil {
		t.Fatal(err)
	}
	return sc, plan
}

func liveTable(want *sim.Result, got *liveOutcome) string {
	row := func(name string, sim, live float64) string {
		return fmt.Sprintf("  %-22s %10.4f %10.4f\n", name, sim, live)
	}
	n := float64(got.requests)
	var attempts []int
	for i := range want.Hosts {
		attempts = append(attempts, want.Hosts[i].Attempts)
	}
	slices.Sort(attempts)
	return fmt.Sprintf("  %-22s %10s %10s\n", "", "simulated", "live") +
		row("$/Mtok", float64(want.USDPerMTok), got.usdPerMTok()) +
		row("SLO %", 100*float64(want.SLO), 100*got.slo()) +
		row("failed %", 100*float64(want.Failed), 100*float64(got.failed)/n) +
		row("shed %", 100*float64(want.Shed), 100*float64(got.shed)/n) +
		row("metered $", want.MeterUSD, got.metered) +
		row("tokens, thousands", float64(want.OutTokens)/1e3, float64(got.tokens)/1e3) +
		row("first token p50, ms", 1e3*float64(want.TTFTp50), 1e3*quantile(got.ttft, 0.5)) +
		row("first token p95, ms", 1e3*float64(want.TTFTp95), 1e3*quantile(got.ttft, 0.95)) +
		row("tokens/s p50", float64(want.TPSp50), quantile(got.tps, 0.5)) +
		row("tokens/s p5", float64(want.TPSp05), quantile(got.tps, 0.05)) +
		fmt.Sprintf("  attempts, simulated: %v %v\n            and live: %s %s\n", want.Classes, attempts, got.classes, got.attempts) +
		fmt.Sprintf("  the machine was late by %.2f ms (p50), %.2f ms (p95), %.2f ms (p99)", 1e3*quantile(got.late, 0.5), 1e3*quantile(got.late, 0.95), 1e3*quantile(got.late, 0.99))
}

func quantile(sorted []float64, p float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	return sorted[min(len(sorted)-1, int(p*float64(len(sorted))))]
}
