package sim

import (
	"maps"
	"strings"
	"testing"
)

// made is a report of S1 with one seed: $/Mtok and SLO attainment by policy.
func made(cells map[string][2]Figure) *Report {
	rep := &Report{Seeds: []uint64{1}}
	for _, p := range Policies() {
		if v, ok := cells[p.Name]; ok {
			c := Cell{Scenario: "S1", Policy: p.Name, Runs: []Result{{USDPerMTok: v[0], SLO: v[1], Failed: 0.0001}}}
			c.sum(nil)
			rep.Cells = append(rep.Cells, c)
		}
	}
	return rep
}

func TestAccept(t *testing.T) {
	good := map[string][2]Figure{
		Brain: {1.6, 0.95}, surer: {1.7, 0.96}, Oracle: {1.5, 0.96}, "spill-0.35": {2.4, 0.90}, "spill-0.7": {1.5, 0.80}, "least-connections": {3.2, 0.86},
		"lowest-latency": {3.3, 0.83},
	}
	count := 0
	for _, c := range Accept(made(good)) {
		count++
		if !c.OK {
			t.Errorf("good figures: %s", c.String())
		}
	}
	if count != 9 {
		t.Errorf("%d checks of S1, want 9", count)
	}
	for name, tc := range map[string]struct {
		policy string
		to     [2]Figure
		missed string
	}{
		"dearer than perfect information": {Oracle, [2]Figure{1.4, 0.96}, "perfect information"},
		"a spill that is nearly as cheap": {"spill-0.35", [2]Figure{1.9, 0.90}, "$/Mtok to spill-0.35"},
		"a spill that keeps the SLO":      {"spill-0.35", [2]Figure{2.4, 0.951}, "above spill-0.35"},
		"a simple one that does both":     {"least-connections", [2]Figure{1.5, 0.96}, "cheapest trivial policy"},
		"latency for less":                {"lowest-latency", [2]Figure{2.5, 0.8}, "to lowest-latency"},
		"too few keep the SLO":            {Brain, [2]Figure{1.6, 0.919}, "at 90 % confidence"},
		"or when asked for more":          {surer, [2]Figure{1.6, 0.939}, "at 97 % confidence"},
	} {
		cells := maps.Clone(good)
		cells[tc.policy] = tc.to
		found := false
		for _, c := range Accept(made(cells)) {
			if strings.Contains(c.Name, tc.missed) {
				found = true
				if c.OK || !strings.HasPrefix(c.String(), "MISSED S1, ") {
					t.Errorf("%s: %s", name, c.String())
				}
			}
		}
		if !found {
			t.Errorf("%s: nothing checks %q", name, tc.missed)
		}
	}
	rep := made(good)
	rep.Cells[0].Runs[0].Failed = 0.0003
	failed := 0
	for _, c := range Accept(rep) {
		if !c.OK {
			failed++
		}
	}
	if failed != 1 {
		t.Errorf("0.03 %% of failures miss %d targets, want 1", failed)
	}
	rep.Cells[0].Runs[0].USDPerMTok = nothing()
	for _, c := range Accept(rep) {
		if strings.Contains(c.Name, "$/Mtok") && c.Note == "" && c.OK {
			t.Errorf("an unknown price is accepted: %s", c.String())
		}
	}
	for _, names := range [][]string{StandardScenarios(), StandardPolicies()} {
		for _, n := range names {
			if _, ok := ScenarioNamed(n); !ok {
				policy(t, n)
			}
		}
	}
}

func nothing() Figure { return ratio(0, 0) }
