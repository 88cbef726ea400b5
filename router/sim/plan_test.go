package sim

import (
	"math"
	"testing"
)

// halfHour is a fleet of rented hosts and an API, for runs of minutes.
func halfHour() Scenario {
	s := Scenario{
		Name: "small", Hours: 0.5, SLO: SLO{TTFT: 2, TPS: 15, Confidence: 0.9}, Load: Load{PerSecond: 1.5, Bursts: 1.8, From: 6},
		Faults: Faults{Uptime: 900, Downtime: 200, Correlated: 0.5}, Hosts: append(rented70B()[1:], tokenAPI(2)),
	}
	s.Hosts[2].Machine = s.Hosts[0].Machine
	return s
}

// TestPlan shows that a plan tells what a run is made of.
func TestPlan(t *testing.T) {
	slow(t)
	sc := halfHour()
	plan, err := PlanOf(sc, 3)
	if err != nil {
		t.Fatal(err)
	}
	got := run(t, sc, Brain, 3)
	if len(plan.Calls) != got.Requests || len(plan.Hosts) != len(sc.Hosts) || got.Requests < 1000 {
		t.Errorf("%d calls to %d hosts, the run had %d to %d", len(plan.Calls), len(plan.Hosts), got.Requests, len(sc.Hosts))
	}
	ends := 0
	for _, o := range plan.Outages {
		name := sc.Hosts[o.Host].Name
		found := 0
		for _, m := range got.Moments {
			if m.Host == name && (m.What == "preempted" && m.At == o.From || m.What == "back" && m.At == o.To) {
				found++
			}
		}
		if o.To < sc.Hours*3600 {
			ends++
		}
		if want := 1 + btoi(o.To < sc.Hours*3600); found != want {
			t.Errorf("%s away from %g to %g: %d of %d moments are in the run", name, o.From, o.To, found, want)
		}
	}
	if n := len(plan.Outages) + ends; n != len(got.Moments) || n < 6 {
		t.Errorf("%d moments planned, %d came: %+v", n, len(got.Moments), got.Moments)
	}
	for i, h := range plan.Hosts {
		c := &sc.Hosts[i]
		if tps := 1 / (h.Base + h.Slope); tps < c.TPS.Low-1e-9 || tps > c.TPS.High+1e-9 || h.Seqs < 1 || c.Kind == Hourly && (h.USDPerHour < c.USDPerHour.Low || h.USDPerHour > c.USDPerHour.High) {
			t.Errorf("%s is drawn as %+v", c.Name, h)
		}
	}
	for name, change := range map[string]func(*Scenario){
		"kinked": func(s *Scenario) { s.Truth = Kinked },
		"flaky":  func(s *Scenario) { s.Hosts[0].Flaky = true },
		"events": func(s *Scenario) { s.Events = []Event{{What: ControlDown, For: 1}} },
	} {
		s := halfHour()
		change(&s)
		if _, err := PlanOf(s, 1); err == nil {
			t.Errorf("%s: a plan leaves it out without a word", name)
		}
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestFaster shows that a run in fast motion is the same run: exactly under a policy that knows no time, and nearly under the
// router, whose own time constants stay those of life.
func TestFaster(t *testing.T) {
	slow(t)
	for name, tc := range map[string]struct {
		change   func(*Scenario)
		policy   string
		usd, slo float64
	}{
		"knows no time": {func(s *Scenario) { s.Faults = Faults{} }, "least-connections", 1e-3, 1e-3}, // without faults there is no cooling down
		"workers":       {func(s *Scenario) { s.Faults, s.Hosts = Faults{}, append(s.Hosts, workers70B()...) }, "least-connections", 1e-3, 1e-3},
		"the router":    {func(*Scenario) {}, "headrace-unadvised", 0.05, 0.02},
	} {
		t.Run(name, func(t *testing.T) {
			sc := halfHour()
			tc.change(&sc)
			for seed := range uint64(3) {
				a, b := run(t, sc, tc.policy, seed), run(t, sc.Faster(50), tc.policy, seed)
				usd, slo := float64(b.USDPerMTok/a.USDPerMTok-1), float64(b.SLO-a.SLO)
				if math.Abs(usd) > tc.usd || math.Abs(slo) > tc.slo || a.Requests != b.Requests || math.Abs(float64(b.TTFTp50/a.TTFTp50*50-1)) > 0.1 {
					t.Errorf("seed %d: $/Mtok %+.2f %%, SLO %+.2f points, %d requests and %d, first token %g s and %g s", seed, 100*usd, 100*slo, a.Requests, b.Requests, a.TTFTp50, b.TTFTp50)
				}
			}
		})
	}
	twice := halfHour().Faster(5)
	if twice = twice.Faster(10); twice.Speed != 50 || math.Abs(twice.Hours*50-halfHour().Hours) > 1e-9 || halfHour().Hosts[0].TPS == twice.Hosts[0].TPS {
		t.Errorf("five times ten times faster: %+v", twice)
	}
}

// TestSureCold shows that such workers take what policies are told to start, and that a request has waited for it.
func TestSureCold(t *testing.T) {
	sc := halfHour()
	sc.Hosts = workers70B()[:1]
	sc.Hosts[0].SureCold, sc.Hosts[0].ColdStart = true, 33
	sc.Load = Load{Trace: []Call{{Prompt: 120, Output: 50}}}
	for _, k := range []float64{1, 50} {
		fast := sc.Faster(k)
		fast.Hours = 0.01 / k
		got := run(t, fast, "headrace-passive", 1)
		if first := k * float64(got.TTFTp50); got.Requests != 1 || first < 33.1 || first > 34 {
			t.Errorf("%g times faster: %d requests, first token after %g s of life, want a cold start of 33 s and little more", k, got.Requests, first)
		}
	}
}
