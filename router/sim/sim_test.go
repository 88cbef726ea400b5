package sim

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"slices"
	"testing"
)

func scenario(t testing.TB, name string) Scenario {
	t.Helper()
	s, ok := ScenarioNamed(name)
	if !ok {
		t.Fatalf("no scenario %q", name)
	}
	return s
}

func policy(t testing.TB, name string) Policy {
	t.Helper()
	p, ok := PolicyNamed(name)
	if !ok {
		t.Fatalf("no policy %q", name)
	}
	return p
}

// run simulates or ends the test.
func run(t testing.TB, s Scenario, name string, seed uint64) Result {
	t.Helper()
	r, err := RunContext(t.Context(), s, policy(t, name), seed)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// around cuts a scenario to some hours of the day.
func around(s Scenario, from, hours float64) Scenario {
	s.Hours, s.Load.From = hours, from
	s.Events = slices.Clone(s.Events)
	for i := range s.Events {
		s.Events[i].At = max(0, s.Events[i].At-from*3600)
	}
	return s
}

// slow leaves out what the race detector makes too slow: a run is one goroutine's.
func slow(t *testing.T) {
	t.Helper()
	if underRace {
		t.Skip("too slow under the race detector, and nothing in it is shared")
	}
}

func table(t *testing.T, rep *Report) {
	t.Helper()
	last := ""
	for i := range rep.Cells {
		c := &rep.Cells[i]
		if c.Scenario != last {
			last = c.Scenario
			t.Logf("%s: %s", c.Scenario, c.Title)
			t.Logf("  %-18s %7s %7s %7s %8s %6s %6s %6s %6s %6s %6s %5s %5s %6s %6s %7s", "policy", "$", "meter$", "$/Mtok", "in SLO", "SLO%", "fail%", "shed%", "TT50", "TT95", "TT99", "tps50", "tps05", "metr%", "fluid", "regret%")
		}
		m := &c.Mean
		t.Logf("  %-18s %7.1f %7.1f %7.3f %8.3f %6.2f %6.3f %6.2f %6.2f %6.2f %6.2f %5.1f %5.1f %6.1f %6.2f %7.1f", c.Policy, m.USD.Mean, m.MeterUSD.Mean, m.USDPerMTok.Mean, m.USDPerMTokSLO.Mean,
			100*m.SLO.Mean, 100*m.Failed.Mean, 100*m.Shed.Mean, m.TTFTp50.Mean, m.TTFTp95.Mean, m.TTFTp99.Mean, m.TPSp50.Mean, m.TPSp05.Mean, 100*m.Metered.Mean, m.FluidShare.Mean, 100*m.Regret.Mean)
		if c.Policy == Brain && testing.Verbose() {
			r := &c.Runs[0]
			for _, h := range r.Hosts {
				t.Logf("    %-10s %7d tries $%6.2f busy %.2f in flight %4.1f away %d, sure of TTFT %.3f came %.3f, of TPS %.3f came %.3f, bias %+.2f %+.2f, kv %d 429 %d", h.Name, h.Attempts, h.USD, h.Busy, h.InFlight, h.Preemptions,
					h.TTFT.Sure.Expected, h.TTFT.Sure.Realised, h.TPS.Sure.Expected, h.TPS.Sure.Realised, h.TTFTBias, h.TPSBias, h.KVLosses, h.Throttled)
			}
			t.Log("   ", r.Classes)
		}
	}
}

// TestS1 holds the router to what the simulator is for: nearly the price of perfect information, within the SLO, and far
// below what simpler policies cost.
func TestS1(t *testing.T) {
	slow(t)
	rep, err := Suite(t.Context(), SuiteOptions{
		Scenarios: []Scenario{around(scenario(t, "S1"), 9, 1.5)},
		Policies:  []Policy{policy(t, Brain), policy(t, Oracle), policy(t, "least-connections"), policy(t, "spill-0.35")},
		Seeds:     []uint64{1, 2},
	})
	if err != nil {
		t.Fatal(err)
	}
	table(t, &rep)
	of := func(name string) *Means { return &rep.Cell("S1", name).Mean }
	brain, oracle, least, spilled := of(Brain), of(Oracle), of("least-connections"), of("spill-0.35")
	if a, b := brain.USDPerMTokSLO.Mean, oracle.USDPerMTokSLO.Mean; a > 1.15*b {
		t.Errorf("$%.3f a million tokens within the SLO, perfect information pays %.3f", a, b)
	}
	if a, b := brain.USDPerMTok.Mean, least.USDPerMTok.Mean; a > 0.8*b {
		t.Errorf("$%.3f a million tokens, least connections pays %.3f", a, b)
	}
	if a, b := brain.USDPerMTok.Mean, spilled.USDPerMTok.Mean; a >= b {
		t.Errorf("$%.3f a million tokens, a static spill pays %.3f", a, b)
	}
	if brain.SLO.Mean < 0.85 || brain.SLO.Mean < least.SLO.Mean {
		t.Errorf("%.1f %% of requests kept the SLO, with least connections %.1f %%", 100*brain.SLO.Mean, 100*least.SLO.Mean)
	}
	if brain.Failed.Mean > 0.002 {
		t.Errorf("%.3f %% of requests failed", 100*brain.Failed.Mean)
	}
}

// TestTruths holds the router to its promise on engines that are not of its learner's family.
func TestTruths(t *testing.T) {
	slow(t)
	for _, tc := range []struct {
		scenario string
		oracle   Figure // $/Mtok within the SLO, at most that many times the oracle's
		spill    Figure // likewise, the static spill's
		lost     Figure // share of requests that keep the SLO less than with the oracle, at most
		seed     uint64
	}{
		{"kinked", 1.20, 0.90, 0.05, 1},
		{"noisy", 1.15, 0.80, 0.06, 1},
		// Prompts' stalls look like noise to the learner, which keeps too far from the edge; with the first seed it doubts every
		// worker at once, and the fleet ends the hour overloaded.
		{"chunked", 1.35, 0.85, 0.09, 2},
		{"kv", 1.15, 0.85, 0.05, 1},
		{"throttled", 1.20, 0.75, 0.08, 1}, // 2 points over whole days, but this is the busiest hour of one
		{"returns", 1.20, 0.85, 0.07, 1},
	} {
		rep, err := Suite(t.Context(), SuiteOptions{
			Scenarios: []Scenario{around(scenario(t, tc.scenario), 11, 1.2)}, Policies: []Policy{policy(t, Brain), policy(t, Oracle), policy(t, "spill-0.35")},
			Seeds: []uint64{tc.seed},
		})
		if err != nil {
			t.Fatal(err)
		}
		table(t, &rep)
		of := func(name string) *Means { return &rep.Cell(tc.scenario, name).Mean }
		brain, oracle, spilled := of(Brain), of(Oracle), of("spill-0.35")
		if got := brain.USDPerMTokSLO.Mean / oracle.USDPerMTokSLO.Mean; got > tc.oracle {
			t.Errorf("%s: a million tokens within the SLO cost %.2f times the oracle's, want at most %.2f", tc.scenario, got, tc.oracle)
		}
		if got := brain.USDPerMTokSLO.Mean / spilled.USDPerMTokSLO.Mean; got > tc.spill {
			t.Errorf("%s: a million tokens within the SLO cost %.2f times the spill's, want at most %.2f", tc.scenario, got, tc.spill)
		}
		if got := oracle.SLO.Mean - brain.SLO.Mean; got > tc.lost {
			t.Errorf("%s: %.1f points fewer keep the SLO than with the oracle, want at most %.1f", tc.scenario, 100*got, 100*tc.lost)
		}
	}
}

func TestSameSeedSameResult(t *testing.T) {
	for _, name := range []string{"S2", "S8", "kv", "noisy", "throttled"} {
		if underRace && name != "S8" {
			continue
		}
		hours := 0.08
		if underRace {
			hours = 0.03
		}
		s := around(scenario(t, name), 11, hours)
		o := SuiteOptions{
			Scenarios: []Scenario{s}, Policies: []Policy{policy(t, Brain), policy(t, Oracle), policy(t, "prequal")}, Seeds: []uint64{7, 8}, Parallel: 1,
		}
		one, err := Suite(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		o.Parallel = 4
		two, err := Suite(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		a, b := mustJSON(t, one), mustJSON(t, two)
		if a != b {
			t.Errorf("%s: two suites of the same seeds differ", name)
		}
		if c := &one.Cells[0]; c.Runs[0].USD == c.Runs[1].USD || c.Runs[0].Requests == 0 {
			t.Errorf("%s: seeds 7 and 8 give the same bill of $%g", name, c.Runs[0].USD)
		}
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestReportSurvivesJSON keeps what a page is drawn from: figures that are unknown come back as NaN.
func TestReportSurvivesJSON(t *testing.T) {
	r := run(t, around(scenario(t, "S3"), 12, 0.1), Brain, 1)
	var back Result
	if err := json.Unmarshal([]byte(mustJSON(t, r)), &back); err != nil {
		t.Fatal(err)
	}
	if back.USD != r.USD || back.Requests != r.Requests || len(back.Hosts) != len(r.Hosts) || len(back.TTFT.Bins) != len(binEdges) {
		t.Errorf("read back %+v", back)
	}
	f := Figure(math.NaN())
	if got := mustJSON(t, f); got != "null" {
		t.Errorf("NaN is written as %s", got)
	}
	if err := json.Unmarshal([]byte("null"), &f); err != nil || !math.IsNaN(float64(f)) {
		t.Errorf("null is read as %v, %v", f, err)
	}
}

func TestMeanOf(t *testing.T) {
	nan := Figure(math.NaN())
	for name, tc := range map[string]struct {
		xs   []Figure
		want Mean
	}{
		"none":                  {nil, Mean{nan, nan, nan}},
		"one has no interval":   {[]Figure{3}, Mean{3, nan, nan}},
		"two":                   {[]Figure{1, 3}, Mean{2, 2 - 12.706, 2 + 12.706}},
		"unknown ones left out": {[]Figure{1, nan, 3}, Mean{2, 2 - 12.706, 2 + 12.706}},
	} {
		if got := MeanOf(tc.xs); mustJSON(t, got) != mustJSON(t, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := RunContext(ctx, scenario(t, "S1"), policy(t, Brain), 1); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestScenariosAreValid(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range Scenarios() {
		if err := s.Validate(); err != nil {
			t.Error(err)
		}
		if seen[s.Name] {
			t.Errorf("two scenarios %s", s.Name)
		}
		seen[s.Name] = true
		var back Scenario
		if err := json.Unmarshal([]byte(mustJSON(t, s)), &back); err != nil || !reflect.DeepEqual(s, back) {
			t.Errorf("%s does not survive JSON: %v", s.Name, err)
		}
	}
}

func BenchmarkDay(b *testing.B) {
	s := scenario(b, "S1")
	if testing.Short() {
		s = around(s, 11, 0.5)
	}
	for _, name := range []string{Brain, Oracle, "least-connections"} {
		b.Run(name, func(b *testing.B) {
			seed := uint64(0)
			for b.Loop() {
				seed++
				run(b, s, name, seed)
			}
		})
	}
}
