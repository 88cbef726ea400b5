package report

import (
	_ "embed" // the style sheet
	"fmt"
	"html"
	"io"
	"math"
	"slices"

	"headrace/router/page"
	"headrace/router/sim"
)

//go:embed page.css
var style string

// Page is what a page is made of.
type Page struct {
	Report    *sim.Report
	Scenarios []sim.Scenario
	Claims    []Claim // of a suite
	Command   string  // that makes the page again
	Version   string
}

// Write writes the page: HTML that needs nothing else, the same for the same Page. The error is w's.
func Write(w io.Writer, p *Page) error {
	var b markup
	b.Raw("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n" +
		"<title>Headrace: simulated fleet</title>\n<style>\n" + style + "</style>\n</head>\n<body>\n<h1>Headrace: simulated fleet</h1>\n")
	seeds := "1 seed: it draws"
	if n := len(p.Report.Seeds); n != 1 {
		seeds = fmt.Sprintf("%d seeds: each draws", n)
	}
	b.Put(`<p class="soft">Made by <code>%s</code>, Headrace %s. %s the hosts' true speeds and prices, the traffic and the faults anew, and all policies meet the same. `+
		`Figures are means over seeds, ± half their 95 %% confidence interval (Student's t). The router that is simulated is the one that runs in the gateway; `+
		"docs/simulator.md tells what else is simulated and what is not.</p>\n", p.Command, p.Version, seeds)
	groups := byScenario(p.Report.Cells)
	if len(groups) > 1 {
		b.Raw("<nav>")
		for _, cells := range groups {
			b.Put(`<a href="#%s">%s</a>`, cells[0].Scenario, cells[0].Scenario)
		}
		b.Raw("</nav>\n")
	}
	b.claims(p.Claims)
	for _, cells := range groups {
		b.section(p, cells)
	}
	b.Raw("</body>\n</html>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// byScenario parts cells, which stand by scenario.
func byScenario(cells []sim.Cell) (groups [][]sim.Cell) {
	for i := 0; i < len(cells); {
		j := i
		for j < len(cells) && cells[j].Scenario == cells[i].Scenario {
			j++
		}
		groups = append(groups, cells[i:j])
		i = j
	}
	return groups
}

type markup struct{ page.Markup }

func (b *markup) claims(claims []Claim) {
	if len(claims) == 0 {
		return
	}
	met, missed, untested := 0, 0, 0
	for i := range claims {
		switch claims[i].Verdict {
		case Met, Barely:
			met++
		case Missed:
			missed++
		case NotTested:
			untested++
		}
	}
	b.Put("<h2>Acceptance</h2>\n<p>%d targets met, %d missed, %d not tested. The mean decides; “not surely” says that the confidence interval reaches over the target. "+
		"Ratios and differences are taken seed by seed; the canary's interval is Wilson's, over the experiments of all seeds. “Prototype” is what the design's prototype measured.</p>\n", met, missed, untested)
	b.Raw(`<div class="wide"><table><tr><th>claim</th><th class="words">what</th><th>target</th><th>prototype</th><th>measured</th><th class="words">verdict</th><th class="words">note</th></tr>` + "\n")
	for i := range claims {
		c := &claims[i]
		value, target := c.Figures()
		prototype := c.Prototype
		if prototype == "" {
			prototype = "–"
		}
		b.Put(`<tr class="%s"><td>%s</td><td class="words">%s</td><td>%s</td><td>%s</td><td>%s</td><td class="words verdict">%s</td><td class="words note soft">%s</td></tr>`+"\n",
			map[Verdict]string{Missed: "missed", NotTested: "untested"}[c.Verdict], c.ID, c.What, target, prototype, value, string(c.Verdict), c.Note)
	}
	b.Raw("</table></div>\n")
}

// section writes what there is to tell of a scenario.
func (b *markup) section(p *Page, cells []sim.Cell) {
	c := &cells[0]
	requests := 0.0
	for k := range c.Runs {
		requests += float64(c.Runs[k].Requests) / float64(len(c.Runs))
	}
	b.Put("<h2 id=\"%s\">%s: %s</h2>\n", c.Scenario, c.Scenario, c.Title)
	b.Put("<p class=\"soft\">%.0f requests a seed. SLO: first token within %.3g s and %.3g tokens/s, each for %.3g %% of requests.</p>\n",
		requests, c.SLO.TTFT, c.SLO.TPS, 100*c.SLO.Confidence)
	var brain, oracle *sim.Cell
	for i := range cells {
		switch cells[i].Policy {
		case sim.Brain:
			brain = &cells[i]
		case sim.Oracle:
			oracle = &cells[i]
		}
	}
	if brain != nil {
		if s := standing(p.Report, c.Scenario); s != "" {
			b.Put("<p>%s</p>\n", s)
		}
	}
	b.scatter(cells)
	b.policies(cells, oracle != nil)
	shown := brain // of whom the rest tells
	if shown == nil {
		shown = c
	}
	b.hosts(shown, oracle)
	var scenario *sim.Scenario
	if i := slices.IndexFunc(p.Scenarios, func(x sim.Scenario) bool { return x.Name == c.Scenario }); i >= 0 {
		scenario = &p.Scenarios[i]
	}
	if pic := timeline(&shown.Runs[0], scenario); pic != "" {
		b.Put("<h3>Preemptions and faults</h3>\n<figure>%s", pic)
		b.Put(`<figcaption>Of seed %d under %s.`+key("down", "taken away")+key("fault", "a slow neighbour, errors or a price begin"), shown.Runs[0].Seed, shown.Policy)
		if scenario != nil && slices.ContainsFunc(scenario.Events, func(e sim.Event) bool { return e.What != sim.PriceTimes }) {
			b.Raw(key("event", "concerns all"))
		}
		b.Raw("</figcaption></figure>\n")
	}
	if brain != nil {
		b.Put("<h3>Calibration</h3>\n<figure>%s<figcaption>Headrace's predictions of all seeds, for the host each request went to.</figcaption></figure>\n", calibration(brain))
	}
}

// key is an entry of a legend.
func key(class, words string) string {
	return ` <span class="key ` + class + `"></span>` + html.EscapeString(words)
}

func (b *markup) scatter(cells []sim.Cell) {
	if len(cells) < 2 {
		return
	}
	pic, leftOut := scatter(cells)
	if pic == "" {
		return
	}
	b.Put("<h3>Price against promise</h3>\n<figure>%s<figcaption>Up and to the left is better.", pic)
	for _, k := range [][2]string{{"brain", "Headrace"}, {"own", "Headrace, or part of it, otherwise"}, {"oracle", "perfect information"}, {"simple", "simple policies"}} {
		if slices.ContainsFunc(cells, func(c sim.Cell) bool { return classOf(c.Policy) == k[0] }) {
			b.Raw(key(k[0], k[1]))
		}
	}
	b.Raw(". Thin crosses are confidence intervals.")
	if leftOut != "" {
		b.Put(" Not drawn, for they keep the SLO for less than half: %s.", leftOut)
	}
	b.Raw("</figcaption></figure>\n")
}

func (b *markup) policies(cells []sim.Cell, oracle bool) {
	b.Raw("<h3>Policies</h3>\n" + `<div class="wide"><table><tr><th>policy</th><th>$/Mtok</th><th>$/Mtok<br>in SLO</th>`)
	if oracle {
		b.Raw("<th>over<br>oracle %</th>")
	}
	b.Raw("<th>SLO<br>kept %</th><th>failed<br>%</th><th>shed<br>%</th><th>resumed<br>%</th><th>TTFT s<br>p50</th><th><br>p95</th><th><br>p99</th><th>TPS<br>p50</th><th><br>p05</th>" +
		"<th>$<br>in all</th><th>metered<br>%</th></tr>\n")
	for i := range cells {
		m := &cells[i].Mean
		row := []string{cells[i].Policy, plusMinus(m.USDPerMTok, 1, 3), figure(m.USDPerMTokSLO.Mean, 1, 3)}
		if oracle {
			over := "–"
			if known(m.Regret.Mean) {
				over = fmt.Sprintf("%+.1f", 100*float64(m.Regret.Mean))
			}
			row = append(row, over)
		}
		b.Row(classOf(cells[i].Policy), append(row,
			plusMinus(m.SLO, 100, 1), figure(m.Failed.Mean, 100, 3), figure(m.Shed.Mean, 100, 2), figure(m.Resumed.Mean, 100, 3), figure(m.TTFTp50.Mean, 1, 2),
			figure(m.TTFTp95.Mean, 1, 2), figure(m.TTFTp99.Mean, 1, 2), figure(m.TPSp50.Mean, 1, 1), figure(m.TPSp05.Mean, 1, 1), figure(m.USD.Mean, 1, 2),
			figure(m.MeterUSD.Mean/m.USD.Mean, 100, 0))...)
	}
	b.Raw("</table></div>\n")
}

func (b *markup) hosts(shown, oracle *sim.Cell) {
	if len(shown.Runs[0].Hosts) == 0 {
		return
	}
	b.Put("<h3>Hosts</h3>\n<figure>%s<figcaption>Under %s", utilisation(shown, oracle), shown.Policy)
	if oracle != nil {
		b.Raw("; the marks are with perfect information")
	}
	b.Raw(". Serverless endpoints count the time of all their workers.</figcaption></figure>\n")
}

// standing says how Headrace does against the cheapest simple policy that keeps the SLO as well.
func standing(rep *sim.Report, scenario string) string {
	if !slices.ContainsFunc(rep.Cells, func(c sim.Cell) bool { return c.Scenario == scenario && Simple(c.Policy) }) {
		return ""
	}
	rival := Rival(rep, scenario)
	if rival == nil {
		return "No simple policy keeps the SLO for as many requests."
	}
	m := compared(rep.Cell(scenario, sim.Brain), rival, func(r *sim.Result) sim.Figure { return r.USDPerMTok }, over)
	switch by := 100 * (float64(m.Mean) - 1); {
	case math.IsNaN(by):
		return ""
	case by > 0.05:
		return fmt.Sprintf("%s keeps the SLO for no fewer requests and costs less: Headrace is %.1f %% dearer here.", rival.Policy, by)
	default:
		return fmt.Sprintf("The cheapest simple policy that keeps the SLO for no fewer requests is %s; Headrace costs %.1f %% less.", rival.Policy, math.Abs(by))
	}
}
