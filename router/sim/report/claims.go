package report

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"headrace/router/experiment/trial"
	"headrace/router/sim"
)

// Verdict is what a suite says of a claim.
type Verdict string

// Verdicts.
const (
	Met       Verdict = "met"
	Barely    Verdict = "met, not surely" // by the mean; the confidence interval reaches over the target
	Missed    Verdict = "missed"
	NotTested Verdict = "not tested" // nothing here measures it
)

// Unit is what a claim's figures are.
type Unit string

// Units.
const (
	Ratio  Unit = "ratio"
	Share  Unit = "share"  // of all requests, or of all experiments, in [0,1]
	Points Unit = "points" // difference of two shares, in [-1,1]
	Micros Unit = "microseconds"
)

// Claim is one line of the acceptance table.
type Claim struct {
	ID        string   `json:"id"`
	What      string   `json:"what"`
	Unit      Unit     `json:"unit"`
	AtMost    bool     `json:"at_most"` // else at least
	Target    float64  `json:"target"`
	Prototype string   `json:"prototype,omitempty"` // what the design's prototype measured
	Value     sim.Mean `json:"value"`               // of the seeds' figures, each against the same seed's of the other policy; of experiments over all seeds
	Verdict   Verdict  `json:"verdict"`
	Note      string   `json:"note,omitempty"`
}

// Measured is what a suite measures besides its runs.
type Measured struct {
	Decision time.Duration // median of one among 64 hosts; 0 where it was not measured
	Alarms   trial.Alarms  // of Plan.Alarms
}

// Judge says of every claim of the plan what the report of its runs shows, and what was measured besides.
func (p *Plan) Judge(rep *sim.Report, besides Measured) []Claim {
	j := judge{rep: rep, plan: p}
	t := &p.targets
	most := func(id, what, prototype string, unit Unit, target float64, value sim.Mean, note string) {
		j.add(Claim{ID: id, What: what, Prototype: prototype, Unit: unit, AtMost: true, Target: target, Value: value, Note: note})
	}
	least := func(id, what, prototype string, unit Unit, target float64, value sim.Mean, note string) {
		j.add(Claim{ID: id, What: what, Prototype: prototype, Unit: unit, Target: target, Value: value, Note: note})
	}
	dollars := func(r *sim.Result) sim.Figure { return r.USDPerMTok }
	kept := func(r *sim.Result) sim.Figure { return r.SLO }
	failed := func(r *sim.Result) sim.Figure { return r.Failed }

	for _, s := range []struct{ scenario, title, ratio, spill, gain, slo, surer, failed string }{
		{seedFleet, "seed fleet", "1.03", "0.73", "+6.3", "94.9", "96.3", "0.011"},
		{harsh, "harsh fleet", "1.06", "0.76", "+9.3", "92.3", "94.5", "0.068"},
	} {
		base := j.rep.Cell(s.scenario, sim.Brain)
		if base == nil {
			continue
		}
		most("oracle-"+s.scenario, "$/Mtok over a greedy router with perfect information, "+s.title, s.ratio, Ratio, t.oracle,
			j.against(s.scenario, sim.Oracle, dollars, over), "")
		spill := j.best(s.scenario, isSpill)
		most("spill-"+s.scenario, "$/Mtok over the static spill that keeps the SLO best, "+s.title, s.spill, Ratio, t.spill,
			j.against(s.scenario, spill, dollars, over), "it is "+spill)
		least("spill-slo-"+s.scenario, "SLO attainment above that spill's, "+s.title, s.gain, Points, t.spillSLO,
			j.against(s.scenario, spill, kept, less), "")
		best := j.best(s.scenario, Simple)
		least("best-slo-"+s.scenario, "SLO attainment above any simple policy's, "+s.title, "", Points, t.bestSLO,
			j.against(s.scenario, best, kept, less), "the best is "+best)
		least("slo-"+s.scenario, "SLO attainment, "+s.title, s.slo, Share, t.slo, j.mean(s.scenario, sim.Brain, kept), "")
		least("slo-p97-"+s.scenario, "SLO attainment when asked for 97 % confidence, "+s.title, s.surer, Share, t.surerSLO,
			j.mean(s.scenario, surer, kept), "")
		limit := t.failed
		if s.scenario == harsh {
			limit = t.failedHarsh
		}
		most("failed-"+s.scenario, "requests that callers saw fail, "+s.title, s.failed, Share, limit, j.mean(s.scenario, sim.Brain, failed), "")
		asked := base.SLO.Confidence
		least("calibration-ttft-"+s.scenario, "first tokens thought sure that came in time, less the confidence asked for, "+s.title, "", Points, t.calibrated,
			j.mean(s.scenario, sim.Brain, func(r *sim.Result) sim.Figure { return surplus(&r.TTFT, asked) }), "")
		least("calibration-tps-"+s.scenario, "streams thought sure that were fast enough, less the confidence asked for, "+s.title, "", Points, t.calibrated,
			j.mean(s.scenario, sim.Brain, func(r *sim.Result) sim.Figure { return surplus(&r.TPS, asked) }), "")
	}
	most("latency", "$/Mtok over lowest-latency routing, seed fleet", "0.52", Ratio, t.plain, j.against(seedFleet, "lowest-latency", dollars, over), "")
	most("least-connections", "$/Mtok over least connections, seed fleet", "0.54", Ratio, t.plain, j.against(seedFleet, "least-connections", dollars, over), "")
	j.trivial(t.trivial)
	if j.rep.Cell(slowHost, sim.Brain) != nil {
		most("slow-host", "SLO attainment lost to one host 1.8 times slower than its catalogue", "1.0", Points, t.slowHost, j.across(seedFleet, slowHost, kept), "")
	}
	least("replicas-sharing", "SLO attainment of four gateways that share what is in flight every second", "96.7", Share, t.replicas,
		j.mean(sharing, sim.Brain, kept), "")
	least("replicas-alone", "SLO attainment of four gateways that share nothing", "94.9", Share, t.replicas, j.mean(noSharing, sim.Brain, kept), "")

	c := Claim{ID: "decision", What: "time of a decision among 64 hosts", Prototype: "17", Unit: Micros, AtMost: true, Target: 50, Value: nothing()}
	if besides.Decision > 0 {
		c.Value.Mean = sim.Figure(float64(besides.Decision) / float64(time.Microsecond))
		c.Note = "median, on this machine; the one figure that differs between runs"
		j.add(c)
	} else {
		j.list = append(j.list, untested(c, "was not measured"))
	}
	share, low, high := besides.Alarms.Share()
	most("canary", "A/A canary with continuous peeking: false alarms", "0.7–2", Share, 0.05, sim.Mean{Mean: sim.Figure(share), Low: sim.Figure(low), High: sim.Figure(high)},
		fmt.Sprintf("%d of %d experiments whose arms are alike were stopped", besides.Alarms.Stopped, besides.Alarms.Runs))
	return j.list
}

// Figures are what was measured and the target, in the claim's unit.
func (c *Claim) Figures() (value, target string) {
	times, digits, unit, sign := 1.0, 3, "", ""
	switch c.Unit {
	case Share:
		times, digits, unit = 100, 2, " %"
		if c.Target < 0.01 {
			digits = 3
		}
	case Points:
		times, digits, unit, sign = 100, 2, " pt", "+"
	case Micros:
		digits, unit = 1, " µs"
	case Ratio:
	}
	value = "–"
	if v := float64(c.Value.Mean) * times; !math.IsNaN(v) {
		value = fmt.Sprintf("%"+sign+".*f", digits, v)
		low, high := float64(c.Value.Low)*times, float64(c.Value.High)*times
		switch {
		case math.IsNaN(high):
		case math.Abs((high-v)-(v-low)) > 1e-9*max(1, math.Abs(v)): // Wilson's, around another figure
			value += fmt.Sprintf(" (%.*f–%.*f)", digits, low, digits, high)
		default:
			value += fmt.Sprintf(" ±%.*f", digits, high-v)
		}
		value += unit
	}
	bound := "≥"
	if c.AtMost {
		bound = "≤"
	}
	if c.Unit == Ratio {
		return value, fmt.Sprintf("%s %.2f", bound, c.Target)
	}
	return value, fmt.Sprintf("%s %.4g%s", bound, c.Target*times, unit)
}

type judge struct {
	rep  *sim.Report
	plan *Plan
	list []Claim
}

func nothing() sim.Mean {
	nan := sim.Figure(math.NaN())
	return sim.Mean{Mean: nan, Low: nan, High: nan}
}

func untested(c Claim, why string) Claim {
	c.Verdict, c.Note = NotTested, why
	return c
}

// add appends a claim with its verdict. A figure that is not known is a miss: a suite that shows nothing shows no success.
func (j *judge) add(c Claim) {
	c.Verdict = verdict(&c)
	if math.IsNaN(float64(c.Value.Mean)) {
		c.Note = strings.TrimPrefix(c.Note+"; no run shows it", "; ")
	}
	j.list = append(j.list, c)
}

func verdict(c *Claim) Verdict {
	mean, end := float64(c.Value.Mean), float64(c.Value.Low)
	if c.AtMost {
		end = float64(c.Value.High)
	}
	ok := func(v float64) bool { return v <= c.Target && c.AtMost || v >= c.Target && !c.AtMost }
	switch {
	case !ok(mean):
		return Missed
	case math.IsNaN(end) || ok(end):
		return Met
	}
	return Barely
}

func over(a, b sim.Figure) sim.Figure { return a / b }
func less(a, b sim.Figure) sim.Figure { return a - b }

// mean is of a policy's figures over seeds.
func (j *judge) mean(scenario, policy string, f func(*sim.Result) sim.Figure) sim.Mean {
	c := j.rep.Cell(scenario, policy)
	if c == nil {
		return nothing()
	}
	xs := make([]sim.Figure, len(c.Runs))
	for i := range c.Runs {
		xs[i] = f(&c.Runs[i])
	}
	return sim.MeanOf(xs)
}

// against compares Headrace with another policy seed by seed: the same fleet, traffic and faults.
func (j *judge) against(scenario, other string, f func(*sim.Result) sim.Figure, how func(a, b sim.Figure) sim.Figure) sim.Mean {
	return compared(j.rep.Cell(scenario, sim.Brain), j.rep.Cell(scenario, other), f, how)
}

// across compares Headrace in two scenarios seed by seed: what the second loses.
func (j *judge) across(before, after string, f func(*sim.Result) sim.Figure) sim.Mean {
	return compared(j.rep.Cell(before, sim.Brain), j.rep.Cell(after, sim.Brain), f, less)
}

func compared(a, b *sim.Cell, f func(*sim.Result) sim.Figure, how func(a, b sim.Figure) sim.Figure) sim.Mean {
	if a == nil || b == nil {
		return nothing()
	}
	xs := make([]sim.Figure, len(a.Runs))
	for i := range a.Runs {
		xs[i] = how(f(&a.Runs[i]), f(&b.Runs[i]))
	}
	return sim.MeanOf(xs)
}

// best is the policy of those that keeps the SLO for most requests, "" when none was run.
func (j *judge) best(scenario string, of func(policy string) bool) string {
	if c := BestSLO(j.rep, scenario, of); c != nil {
		return c.Policy
	}
	return ""
}

// BestSLO is the cell of a scenario that keeps the SLO for most requests, of those policies that count; nil when none was run.
func BestSLO(rep *sim.Report, scenario string, counts func(policy string) bool) (best *sim.Cell) {
	for i := range rep.Cells {
		c := &rep.Cells[i]
		if c.Scenario == scenario && counts(c.Policy) && known(c.Mean.SLO.Mean) && (best == nil || c.Mean.SLO.Mean > best.Mean.SLO.Mean) {
			best = c
		}
	}
	return best
}

// Rival is the cheapest simple policy of a scenario that keeps the SLO for no fewer requests than Headrace; nil when there
// is none.
func Rival(rep *sim.Report, scenario string) *sim.Cell {
	brain := rep.Cell(scenario, sim.Brain)
	if brain == nil {
		return nil
	}
	var rival *sim.Cell
	for i := range rep.Cells {
		c := &rep.Cells[i]
		if c.Scenario == scenario && Simple(c.Policy) && c.Mean.SLO.Mean >= brain.Mean.SLO.Mean && (rival == nil || c.Mean.USDPerMTok.Mean < rival.Mean.USDPerMTok.Mean) {
			rival = c
		}
	}
	return rival
}

// trivial is the claim about every scenario: nothing simple is cheaper and keeps the SLO as well.
func (j *judge) trivial(target float64) {
	worst := nothing()
	var notes, none []string
	names := j.scenarios()
	for _, name := range names {
		rival := Rival(j.rep, name)
		if rival == nil {
			none = append(none, name)
			continue
		}
		m := compared(j.rep.Cell(name, sim.Brain), rival, func(r *sim.Result) sim.Figure { return r.USDPerMTok }, over)
		if math.IsNaN(float64(worst.Mean)) || m.Mean > worst.Mean {
			worst = m
		}
		notes = append(notes, fmt.Sprintf("%s %.3f of %s", name, m.Mean, rival.Policy))
	}
	c := Claim{
		ID: "trivial", What: fmt.Sprintf("$/Mtok over the cheapest simple policy of no worse SLO, worst of %d scenarios", len(names)), Prototype: "1.00",
		Unit: Ratio, AtMost: true, Target: target, Value: worst, Note: strings.Join(notes, ", "),
	}
	if len(none) > 0 {
		c.Note = strings.TrimPrefix(c.Note+"; no simple policy keeps it as well in "+strings.Join(none, ", "), "; ")
	}
	if len(names) > 0 && len(notes) == 0 {
		c.Verdict = Met
		j.list = append(j.list, c)
		return
	}
	j.add(c)
}

// scenarios lists those in which Headrace and some simple policy ran.
func (j *judge) scenarios() (names []string) {
	for i := range j.rep.Cells {
		if c := &j.rep.Cells[i]; Simple(c.Policy) && j.rep.Cell(c.Scenario, sim.Brain) != nil && !slices.Contains(names, c.Scenario) {
			names = append(names, c.Scenario)
		}
	}
	return names
}

// surplus is by how much more often a promise was kept than asked, of those that were thought to be kept at least as often.
func surplus(c *sim.Calibration, asked float64) sim.Figure {
	if c.Sure.N == 0 {
		return sim.Figure(math.NaN())
	}
	return c.Sure.Realised - sim.Figure(asked)
}
