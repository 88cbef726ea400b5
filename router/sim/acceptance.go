package sim

import (
	"fmt"
	"math"
	"slices"
)

// Check is one target that the router is held to, and whether it was met.
type Check struct {
	Name     string `json:"name"`
	Scenario string `json:"scenario"`
	Bound    string `json:"bound"` // "at most" or "at least"
	Target   Figure `json:"target"`
	Got      Mean   `json:"got"`  // over seeds; its mean decides
	Unit     string `json:"unit"` // "times", "%" or "points"
	OK       bool   `json:"ok"`
	Note     string `json:"note,omitempty"`
}

// String is the check in a line.
func (c *Check) String() string {
	word := "ok"
	if !c.OK {
		word = "MISSED"
	}
	return fmt.Sprintf("%-6s %s, %s: %.3g %s, %s %.3g", word, c.Scenario, c.Name, c.Got.Mean, c.Unit, c.Bound, c.Target)
}

const (
	atMost  = "at most"
	atLeast = "at least"
)

// StandardScenarios are the names of those that Accept looks at.
func StandardScenarios() []string { return []string{"S1", "S2", "S3", "S4", "S5", "S6", "S8", "S9"} }

// StandardPolicies are the names of the policies that Accept compares.
func StandardPolicies() []string {
	names := []string{Brain, surer, Oracle}
	for _, p := range Policies() {
		if !p.rules.control {
			names = append(names, p.Name)
		}
	}
	return names
}

const surer = "headrace-p97"

// Accept holds a Report to the targets, those that its scenarios and policies allow to be looked at. Ratios are taken
// seed by seed.
func Accept(rep *Report) []Check {
	var out []Check
	add := func(c Check) { //nolint:gocritic // a few at the end
		m := float64(c.Got.Mean)
		c.OK = c.Bound == atMost && m <= float64(c.Target) || c.Bound == atLeast && m >= float64(c.Target)
		out = append(out, c)
	}
	ratioTo := func(a, b *Cell) Mean {
		return paired(a, b, func(x, y *Result) Figure { return x.USDPerMTok / y.USDPerMTok })
	}
	percent := func(c *Cell, f func(r *Result) Figure) Mean {
		return paired(c, c, func(x, _ *Result) Figure { return 100 * f(x) })
	}
	slo := func(r *Result) Figure { return r.SLO }
	for _, name := range rep.scenarios() {
		brain := rep.Cell(name, Brain)
		if brain == nil {
			continue
		}
		seed := name == "S1" || name == "S2"
		if o := rep.Cell(name, Oracle); o != nil && seed {
			add(Check{Name: "$/Mtok to perfect information's", Scenario: name, Bound: atMost, Target: 1.10, Got: ratioTo(brain, o), Unit: "times"})
		}
		if s := rep.best(name, func(c *Cell) (Figure, bool) { return -c.Mean.SLO.Mean, isSpill(c.Policy) }); s != nil && seed {
			add(Check{Name: "$/Mtok to " + s.Policy + "'s", Scenario: name, Bound: atMost, Target: 0.80, Got: ratioTo(brain, s), Unit: "times"})
			add(Check{
				Name: "SLO attainment above " + s.Policy + "'s", Scenario: name, Bound: atLeast, Unit: "points",
				Got: paired(brain, s, func(x, y *Result) Figure { return 100 * (x.SLO - y.SLO) }),
			})
		}
		for _, other := range []string{"lowest-latency", "least-connections"} {
			if o := rep.Cell(name, other); o != nil && seed {
				add(Check{Name: "$/Mtok to " + other + "'s", Scenario: name, Bound: atMost, Target: 0.60, Got: ratioTo(brain, o), Unit: "times"})
			}
		}
		switch name {
		case "S1":
			add(Check{Name: "visible failures", Scenario: name, Bound: atMost, Target: 0.02, Got: percent(brain, func(r *Result) Figure { return r.Failed }), Unit: "%"})
		case "S2":
			add(Check{Name: "visible failures", Scenario: name, Bound: atMost, Target: 0.1, Got: percent(brain, func(r *Result) Figure { return r.Failed }), Unit: "%"})
		case "S6":
			if s1 := rep.Cell("S1", Brain); s1 != nil {
				add(Check{
					Name: "SLO attainment lost to one slow host", Scenario: name, Bound: atMost, Target: 2, Unit: "points",
					Got: paired(s1, brain, func(x, y *Result) Figure { return 100 * (x.SLO - y.SLO) }),
				})
			}
		case "S8", "S9":
			add(Check{Name: "SLO attainment of four gateways", Scenario: name, Bound: atLeast, Target: 93, Got: percent(brain, slo), Unit: "%"})
		}
		if seed {
			add(Check{Name: "SLO attainment at 90 % confidence", Scenario: name, Bound: atLeast, Target: 92, Got: percent(brain, slo), Unit: "%"})
			if p97 := rep.Cell(name, surer); p97 != nil {
				add(Check{Name: "SLO attainment at 97 % confidence", Scenario: name, Bound: atLeast, Target: 94, Got: percent(p97, slo), Unit: "%"})
			}
		}
		trivial := rep.best(name, func(c *Cell) (Figure, bool) {
			return c.Mean.USDPerMTok.Mean, isTrivial(c.Policy) && c.Mean.SLO.Mean >= brain.Mean.SLO.Mean
		})
		c := Check{Name: "$/Mtok to the cheapest trivial policy of no worse SLO", Scenario: name, Bound: atMost, Target: 1.03, Unit: "times", Note: "none keeps it as well"}
		if trivial != nil {
			c.Got, c.Note = ratioTo(brain, trivial), trivial.Policy
			add(c)
		} else if rep.best(name, func(c *Cell) (Figure, bool) { return 0, isTrivial(c.Policy) }) != nil {
			c.Got = Mean{0, 0, 0}
			add(c)
		}
	}
	return out
}

func isTrivial(policy string) bool {
	p, ok := PolicyNamed(policy)
	return ok && !p.rules.control
}

func isSpill(policy string) bool {
	return slices.Contains([]string{"spill-0.7", "spill-0.5", "spill-0.35"}, policy)
}

// scenarios are the names of those of a report, in order.
func (r *Report) scenarios() []string {
	var names []string
	for i := range r.Cells {
		if n := r.Cells[i].Scenario; !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}

// best returns the cell of a scenario with the least score, of those that count; nil when none does.
func (r *Report) best(scenario string, score func(c *Cell) (Figure, bool)) (best *Cell) {
	least := Figure(math.Inf(1))
	for i := range r.Cells {
		c := &r.Cells[i]
		if c.Scenario != scenario {
			continue
		}
		if x, counts := score(c); counts && x < least {
			best, least = c, x
		}
	}
	return best
}

// paired compares two cells seed by seed.
func paired(a, b *Cell, f func(x, y *Result) Figure) Mean {
	var xs []Figure
	for i := range min(len(a.Runs), len(b.Runs)) {
		xs = append(xs, f(&a.Runs[i], &b.Runs[i]))
	}
	return MeanOf(xs)
}
