package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"

	"headrace/router/sim"
	"headrace/router/sim/report"
)

// listSimulations names all that can be simulated.
func listSimulations(w io.Writer, output string) error {
	type named struct {
		Name  string `json:"name"`
		Title string `json:"title"`
	}
	var list struct {
		Scenarios []sim.Scenario `json:"scenarios"`
		Policies  []named        `json:"policies"`
		Suites    []named        `json:"suites"`
	}
	list.Scenarios = sim.Scenarios()
	for _, p := range sim.Policies() {
		list.Policies = append(list.Policies, named{p.Name, p.Title})
	}
	list.Suites = []named{
		{"standard", "every claim of the acceptance table: all scenarios, whole days, 5 seeds"},
		{"short", "the same claims in less than a minute, with looser targets"},
	}
	switch output {
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(list)
	case "table":
	default:
		return &exitError{2, fmt.Errorf("--output %q: want table or json", output)}
	}
	var b strings.Builder
	section := func(title string, rows []named) {
		fmt.Fprintf(&b, "%s\n", title)
		for _, r := range rows {
			fmt.Fprintf(&b, "  %-20s %s\n", r.Name, r.Title)
		}
	}
	var scenarios []named
	for i := range list.Scenarios {
		scenarios = append(scenarios, named{list.Scenarios[i].Name, list.Scenarios[i].Title})
	}
	section("Scenarios", scenarios)
	section("\nPolicies (--policy)", list.Policies)
	section("\nSuites (--suite)", list.Suites)
	_, err := io.WriteString(w, b.String())
	return err
}

// cellsText is a table for each scenario.
func cellsText(rep *sim.Report, width int) string {
	var b strings.Builder
	for i := 0; i < len(rep.Cells); {
		j := i
		for j < len(rep.Cells) && rep.Cells[j].Scenario == rep.Cells[i].Scenario {
			j++
		}
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(scenarioText(rep.Cells[i:j], width))
		i = j
	}
	return b.String()
}

// scenarioText is the table of one scenario's cells.
func scenarioText(cells []sim.Cell, width int) string {
	c := &cells[0]
	mean := 0.0
	for k := range c.Runs {
		mean += float64(c.Runs[k].Requests) / float64(len(c.Runs))
	}
	s := wrapped(fmt.Sprintf("%s: %s. %.0f requests, %s; SLO: first token within %s and %.3g tokens/s, each for %.3g %% of requests.\n",
		c.Scenario, c.Title, mean, count(int64(len(c.Runs)), "seed"), secondsText(c.SLO.TTFT), c.SLO.TPS, 100*c.SLO.Confidence), width)
	cols := []textColumn{
		{name: "policy"},
		{name: "$/Mtok", right: true},
		{name: "in SLO", right: true, spare: 1},
		{name: "over oracle", right: true, spare: 2},
		{name: "SLO kept %", right: true},
		{name: "failed %", right: true},
		{name: "shed %", right: true, spare: 3},
		{name: "TTFT p50", right: true, spare: 6},
		{name: "p95", right: true, spare: 4},
		{name: "p99", right: true, spare: 5},
		{name: "TPS p50", right: true, spare: 7},
		{name: "p05", right: true, spare: 8},
		{name: "metered $ %", right: true, spare: 9},
	}
	for i := range cells {
		m := &cells[i].Mean
		meteredShare := m.MeterUSD.Mean / m.USD.Mean
		for j, cell := range []string{
			cells[i].Policy, within(m.USDPerMTok, 1, 3), number(m.USDPerMTokSLO.Mean, 1, 3), signedPercent(m.Regret.Mean), within(m.SLO, 100, 1), number(m.Failed.Mean, 100, 3),
			number(m.Shed.Mean, 100, 2), number(m.TTFTp50.Mean, 1, 2), number(m.TTFTp95.Mean, 1, 2), number(m.TTFTp99.Mean, 1, 2),
			number(m.TPSp50.Mean, 1, 1), number(m.TPSp05.Mean, 1, 1), number(meteredShare, 100, 0),
		} {
			cols[j].cells = append(cols[j].cells, cell)
		}
	}
	return s + textTable(cols, width) + "\n"
}

// within shows a mean and half its confidence interval.
func within(m sim.Mean, times float64, digits int) string {
	s := number(m.Mean, times, digits)
	if half := float64(m.High-m.Mean) * times; !math.IsNaN(half) {
		s += fmt.Sprintf(" ±%.*f", digits, half)
	}
	return s
}

func number(f sim.Figure, times float64, digits int) string {
	if v := float64(f) * times; !math.IsNaN(v) && !math.IsInf(v, 0) {
		return fmt.Sprintf("%.*f", digits, v)
	}
	return unknownText
}

func signedPercent(f sim.Figure) string {
	if math.IsNaN(float64(f)) {
		return unknownText
	}
	return fmt.Sprintf("%+.1f %%", 100*float64(f))
}

// claimsText is the acceptance table.
func claimsText(claims []report.Claim, suite string, seeds, width int) string {
	cols := []textColumn{
		{name: "claim", spare: 2},
		{name: "what", most: 62},
		{name: "target", right: true},
		{name: "prototype", right: true, spare: 1},
		{name: "measured", right: true},
		{name: "verdict"},
	}
	tally := map[report.Verdict]int{}
	var notes strings.Builder
	for i := range claims {
		c := &claims[i]
		tally[c.Verdict]++
		value, target := c.Figures()
		prototype := c.Prototype
		if prototype == "" {
			prototype = unknownText
		}
		for j, cell := range []string{c.ID, c.What, target, prototype, value, string(c.Verdict)} {
			cols[j].cells = append(cols[j].cells, cell)
		}
		if c.Note != "" {
			fmt.Fprintf(&notes, "%s: %s.\n", c.ID, c.Note)
		}
	}
	s := textTable(cols, width) + "\n" + wrapped(notes.String(), width)
	if width == 0 {
		width = proseWidth
	}
	met := tally[report.Met] + tally[report.Barely]
	return s + wrapped(fmt.Sprintf("\nSuite %s, %s: %d of %d targets met, %d of them not surely; %d missed; %d not tested. Measured is the mean over seeds ± half its 95 %% "+
		"confidence interval (Student's t over the seeds; ratios and differences are taken seed by seed, where both policies meet the same fleet, traffic and faults; "+
		"of the canary, the share of the experiments of all seeds with Wilson's interval). "+
		"The mean decides; \"not surely\" says that the interval reaches over the target.\n",
		suite, count(int64(seeds), "seed"), met, met+tally[report.Missed], tally[report.Barely], tally[report.Missed], tally[report.NotTested]), width)
}

// scenariosText tells how Headrace does in each scenario of a suite beside perfect information and the best simple policies.
func scenariosText(rep *sim.Report, width int) string {
	cols := []textColumn{
		{name: "scenario"},
		{name: "", most: 48, spare: 1},
		{name: "$/Mtok", right: true},
		{name: "over oracle", right: true},
		{name: "SLO kept %", right: true},
		{name: "oracle's", right: true, spare: 3},
		{name: "best simple policy's", right: true, spare: 2},
	}
	for i := range rep.Cells {
		c := &rep.Cells[i]
		if c.Policy != sim.Brain {
			continue
		}
		oracle := unknownText
		if o := rep.Cell(c.Scenario, sim.Oracle); o != nil {
			oracle = number(o.Mean.SLO.Mean, 100, 1)
		}
		simple := unknownText
		if b := report.BestSLO(rep, c.Scenario, report.Simple); b != nil {
			simple = fmt.Sprintf("%s (%s)", number(b.Mean.SLO.Mean, 100, 1), b.Policy)
		}
		for j, cell := range []string{
			c.Scenario, c.Title, within(c.Mean.USDPerMTok, 1, 3), signedPercent(c.Mean.Regret.Mean), within(c.Mean.SLO, 100, 1), oracle, simple,
		} {
			cols[j].cells = append(cols[j].cells, cell)
		}
	}
	return textTable(cols, width) + "\n"
}
