package report

import (
	_ "embed" // the style sheet
	"fmt"
	"html"
	"io"
	"slices"
	"strings"

	"headrace/router/experiment/stats"
	"headrace/router/page"
)

//go:embed page.css
var style string

type markup struct{ page.Markup }

// WriteHTML writes the report as a page that needs nothing else, the same for the same Report. The error is w's.
func WriteHTML(w io.Writer, r *Report) error {
	var b markup
	b.Put("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>Experiment %s</title>\n", r.Name)
	b.Raw("<style>\n" + style + "</style>\n</head>\n<body>\n<main>\n")
	b.Put("<h1>Experiment %s</h1>\n<p class=\"soft\">On %s, assigned by %s: %s", r.Name, r.Model, r.AssignBy, r.State)
	if s := r.age(); s != "" {
		b.Put(", %s", s)
	}
	b.Put(". As of %s, %s observations", r.At.UTC().Format("2006-01-02 15:04:05 UTC"), count(int64(r.Verdict.Seq))) //nolint:gosec // a count
	if r.Verdict.Sample < 1 {
		b.Put(", of which those of every %.0fth unit are compared", 1/r.Verdict.Sample)
	}
	b.Raw(".</p>\n")
	b.verdicts(r)

	b.Raw("<h2>Arms</h2>\n")
	head, rows := r.arms()
	b.table("Requests as they were assigned, whoever served them. The last column is the evidence that units do not fall on the arm as its share says; 1,000 stops everything.", head, rows, 2)
	if len(r.History) > 1 {
		b.Raw("<div class=\"charts\">\n")
		b.figure("Share of units", sharesChart(r), r.keys())
		b.figure("Units seen", unitsChart(r), r.keys())
		b.Raw("</div>\n")
	}

	b.Raw("<h2>Differences</h2>\n<p>Estimates of each arm against " + html.EscapeString(r.control()) + ", with intervals that hold at every look together: whoever looks all the time may believe them whenever he stops.</p>\n")
	if len(r.History) > 1 {
		b.Raw("<div class=\"charts\">\n")
		b.figure("Evidence of harm", evidenceChart(r), r.keys()+"<br>The most that any guardrail has; at the dashed line the arm is stopped.")
		for m := stats.TTFT; m <= stats.Score; m++ {
			if pic := metricChart(r, m); pic != "" {
				b.figure(capital(m.Title()), pic, r.metricCaption(m))
			}
		}
		b.Raw("</div>\n")
	}
	head, rows = r.estimates()
	b.table("E is the evidence of harm beyond what is tolerated. The interval is of the arm on the hosts it runs on; the model's part has in it what hosts of one kind differ by anyway.", head, rows, 2)
	if head, rows = r.steps(); len(rows) > 0 {
		b.Raw("<h3>Step by step</h3>\n")
		b.table("The differences above are of all steps together. Each step is compared by itself, for times change, and an arm has more of the later ones: what both arms met in a step is in neither's disfavour.", head, rows, 2)
	}

	b.hosts(r)

	b.Raw("<h2>Money</h2>\n")
	head, rows = r.money()
	b.table("Spent is the sum over requests whose price is known, metered what of it was spent because of them, the rest being for hosts that are paid anyway; typical is the geometric mean of requests, which is what is compared.", head, rows, 1)
	if pic := moneyChart(r); pic != "" {
		b.Raw("<div class=\"charts\">\n")
		b.figure("Dollars spent", pic, r.keys())
		b.Raw("</div>\n")
	}

	if head, rows = r.copies(); len(rows) > 0 {
		b.Raw("<h3>Copies that nobody waited for</h3>\n")
		b.table("Requests of the control that the arm was asked once more, at the gateway that tells. They are in no figure above; on hosts that are paid anyway nothing more is billed for them.", head, rows, 1)
	}

	b.Raw("<h2>Set aside</h2>\n")
	head, rows = r.aside()
	b.table("Requests that are counted, with their failures and SLO misses, and whose speed and price are not compared.", head, rows, 1)

	b.Raw("<h2>Decisions</h2>\n")
	if head, rows = r.decisions(); len(rows) > 0 {
		b.table("", head, rows, len(head))
	} else {
		b.Raw("<p>None yet.</p>\n")
	}
	b.Raw("<h2>How to read this</h2>\n<p>Every unit counts once, as the mean of its requests. Speed and price are compared with what the control's requests on the same kind of host, with a prompt of " +
		"about that length, under about that load are like. An arm stops when evidence of harm beyond what is tolerated reaches what its guardrail needs (of failures, SLO misses and broken answers that is of how many units went bad, which tells sooner than the interval of their shares does), or when its first 20 units fail as the control's would by no accident; it advances while nothing speaks against it, and is promoted when every " +
		"interval is within its margin. docs/experiments.md tells the rest.</p>\n<p class=\"soft\">")
	if r.Command != "" {
		b.Put("Made by <code>%s</code>", r.Command)
	}
	if r.Version != "" {
		b.Put(" Headrace %s.", r.Version)
	}
	b.Raw("</p>\n</main>\n</body>\n</html>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// verdicts are what a reader in a hurry reads.
func (b *markup) verdicts(r *Report) {
	for i := range r.Verdict.Arms {
		a := &r.Verdict.Arms[i]
		if a.Control {
			continue
		}
		b.Put(`<section class="card %s"><p><span class="badge">%s</span> <strong>%s</strong> at %s of units. %s</p>`, a.Action.String(), a.Action.String(), a.Name, percent(a.Weight), sentence(a.Reason))
		if a.Model != "" && a.Model != a.Reason {
			b.Put(`<p class="soft">Of its model: %s</p>`, sentence(a.Model))
		}
		b.Raw("</section>\n")
	}
	if r.Advice != "" {
		b.Put("<p>%s</p>\n", sentence(r.Advice))
	}
}

// table writes rows; the first words columns are words, the others figures.
func (b *markup) table(caption string, head []string, rows [][]string, words int) {
	b.Raw(`<div class="wide" tabindex="0"><table>`)
	if caption != "" {
		b.Put("<caption>%s</caption>", caption)
	}
	b.Raw("\n<thead><tr>")
	for i, h := range head {
		class := ""
		if i >= words {
			class = ` class="fig"`
		}
		b.Raw(`<th scope="col"` + class + ">")
		b.Put("%s</th>", h)
	}
	b.Raw("</tr></thead>\n<tbody>\n")
	for _, row := range rows {
		b.Raw("<tr>")
		for i, c := range row {
			switch {
			case i >= words:
				b.Put(`<td class="%s">%s</td>`, strings.TrimSpace("fig "+classOfFinding(c)), c)
			case len(c) > 80:
				b.Put(`<td class="long">%s</td>`, c)
			default:
				b.Put("<td>%s</td>", c)
			}
		}
		b.Raw("</tr>\n")
	}
	b.Raw("</tbody>\n</table></div>\n")
}

// classOfFinding is the colour of a finding's words.
func classOfFinding(words string) string {
	switch words {
	case findingWords(stats.Harm):
		return "worse"
	case findingWords(stats.Hosts), findingWords(stats.Suspicion):
		return "unsure"
	case findingWords(stats.Within):
		return "fine"
	}
	return ""
}

// figure writes a picture with its title and caption, which is HTML.
func (b *markup) figure(title string, pic page.Picture, caption string) {
	if pic == "" {
		return
	}
	b.Put("<figure><h3>%s</h3>", title)
	b.Raw(string(pic))
	b.Raw("<figcaption>" + caption + "</figcaption></figure>\n")
}

// class is an arm's colour.
func (r *Report) class(arm int) string {
	if r.Verdict.Arms[arm].Control {
		return "arm0"
	}
	n := 0
	for i := range arm {
		if !r.Verdict.Arms[i].Control {
			n++
		}
	}
	return fmt.Sprintf("arm%d", 1+n%4)
}

// keys is the legend of arms.
func (r *Report) keys() string {
	var b strings.Builder
	for i := range r.Verdict.Arms {
		b.WriteString(`<span class="key ` + r.class(i) + `"></span>` + html.EscapeString(r.Verdict.Arms[i].Name))
	}
	return b.String()
}

// metricCaption says what a metric's chart shows now.
func (r *Report) metricCaption(m stats.Metric) string {
	var b strings.Builder
	for i := range r.Verdict.Arms {
		if e := r.estimate(i, m); e != nil {
			fmt.Fprintf(&b, `<span class="key %s"></span>%s: %s. `, r.class(i), html.EscapeString(r.Verdict.Arms[i].Name), html.EscapeString(strings.TrimSuffix(e.Reason, ".")))
		}
	}
	b.WriteString("The band is the always-valid interval, the dashed line the margin.")
	return b.String()
}

// hosts writes the hosts of each arm.
func (b *markup) hosts(r *Report) {
	b.Raw("<h2>Hosts</h2>\n<p>What each host's answers took, against what the control's requests of the same kind of host, prompt length and load are like. Lines are one standard error to both sides; they are for the eye, and prove nothing.</p>\n")
	head, rows := r.hosts()
	if len(rows) == 0 {
		b.Raw("<p>No host has been told yet.</p>\n")
		return
	}
	b.Raw("<div class=\"charts\">\n")
	for m := stats.TTFT; m <= stats.USD; m++ {
		b.figure(capital(m.Title())+" by host", hostsChart(r, m), r.keys()+r.hostsCaption(m))
	}
	b.Raw("</div>\n")
	b.table("", head, rows, 3)
}

// hostsCaption says whether hosts and model can be told apart.
func (r *Report) hostsCaption(m stats.Metric) string {
	var out []string
	for i := range r.Verdict.Arms {
		e := r.estimate(i, m)
		if e == nil || e.Hosts == nil || e.Units[1] == 0 {
			continue
		}
		can := "can be told apart"
		if !e.Hosts.Identifiable {
			can = "cannot be told apart"
		}
		out = append(out, fmt.Sprintf("%s: %.3g hosts, control %.3g, %.0f %% of work on the same ones; hosts differ by %.0f %%; model and hosts %s.",
			r.Verdict.Arms[i].Name, float64(e.Hosts.Arm), float64(e.Hosts.Control), 100*float64(e.Hosts.Shared), 100*float64(e.Hosts.SD), can))
	}
	if len(out) == 0 {
		return ""
	}
	return "<br>" + html.EscapeString(strings.Join(out, " "))
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// decided are the times at which shares changed.
func (r *Report) decided() []Decision {
	var out []Decision
	for i := range r.Decisions {
		if i == 0 || !slices.Equal(r.Decisions[i].Weights, r.Decisions[i-1].Weights) {
			out = append(out, r.Decisions[i])
		}
	}
	return out
}
