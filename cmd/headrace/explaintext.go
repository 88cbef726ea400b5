package main

import (
	"cmp"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"headrace/router"
)

const unknownText = "–"

// requestText tells of a request that was: each attempt's decision, what came of it, and what the whole request was.
func requestText(ds []router.Explanation, rec *settledRequest, now time.Time) string {
	var b strings.Builder
	for i := range ds {
		x := &ds[i]
		if i > 0 {
			b.WriteByte('\n')
		}
		what := x.Request
		if x.Attempt > 1 {
			what = fmt.Sprintf("Attempt %d of %s", x.Attempt, x.Request)
		}
		switch {
		case x.Winner == "":
			fmt.Fprintf(&b, "%s went to no host: %s.\n", what, x.Why)
		default:
			fmt.Fprintf(&b, "%s went to %s: %s%s.\n", what, x.Winner, whyText(x), expected(x))
		}
		fmt.Fprintf(&b, "That was %s ago. %s\n%s\n", brief(max(0, now.Sub(x.At))), demanded(x), candidates(x))
		b.WriteString(came(x))
	}
	b.WriteString(whole(rec))
	return b.String()
}

// hypotheticalText tells of a request that could be.
func hypotheticalText(x *router.Explanation) string {
	head := fmt.Sprintf("It would go to %s: %s%s.", x.Winner, whyText(x), expected(x))
	if x.Winner == "" {
		head = "It would be refused: " + x.Why + "."
	}
	return fmt.Sprintf("%s\n%s\n%s\n", head, demanded(x), candidates(x))
}

// whyText is the winner's reason as part of a sentence.
func whyText(x *router.Explanation) string { return strings.Replace(x.Why, ": ", ", so ", 1) }

// expected tells in brackets what was expected of the winner.
func expected(x *router.Explanation) string {
	if len(x.Candidate) == 0 || x.Candidate[0].Endpoint != x.Winner {
		return ""
	}
	c := &x.Candidate[0]
	var parts []string
	if c.TTFT != nil {
		parts = append(parts, "first token in "+spread(secondsText(*c.TTFT), c.TTFTSigma))
	}
	if c.TPS != nil {
		parts = append(parts, spread(fmt.Sprintf("%.3g", *c.TPS), c.TPSSigma)+" tokens/s")
	}
	s := strings.Join(parts, ", ")
	if s != "" {
		s += "; "
	}
	if c.MarginalUSD == nil {
		s += "its price is unknown"
	} else {
		s += usdText(*c.MarginalUSD) + " for this answer, beyond what is paid anyway"
	}
	return " (" + s + ")"
}

// demanded tells what the request asked for, and what else explains the choice.
func demanded(x *router.Explanation) string {
	s := fmt.Sprintf("Model %s, policy %s, a prompt of %s, an answer of about %.0f. SLO: first token within %s and %.3g tokens/s, each for %.3g %% of requests.",
		x.Model, x.Policy, count(int64(math.Round(x.Prompt)), "token"), x.Output, secondsText(x.SLO.TTFT), x.SLO.TPS, x.SLO.Confidence*100)
	if c := cheaper(x); c != nil {
		s += fmt.Sprintf("\n%s would cost a little less, %s: so small a difference yields to room to spare and to a prompt that is held already.",
			c.Endpoint, usdText(*c.MarginalUSD))
	}
	return s
}

// cheaper is the cheapest candidate that served and was not chosen though cost was what counted, nil when there is none.
func cheaper(x *router.Explanation) (c *router.CandidateView) {
	if x.Policy != router.PolicyCost.String() || len(x.Candidate) < 2 || x.Candidate[0].Endpoint != x.Winner || x.Candidate[0].MarginalUSD == nil {
		return nil
	}
	won, second := &x.Candidate[0], &x.Candidate[1] // the cheapest of the others
	if won.Verdict == servesWord && second.Verdict == servesWord && second.MarginalUSD != nil && *second.MarginalUSD < *won.MarginalUSD {
		return second
	}
	return nil
}

const servesWord = "serves" // the router's verdict

// candidates renders the table. Columns in which nobody has anything are left out.
func candidates(x *router.Explanation) string {
	if len(x.Candidate) == 0 {
		return "No host serves this model now."
	}
	type column struct {
		name  string
		right bool
		cell  func(c *router.CandidateView) string
	}
	cols := []column{
		{"endpoint", false, func(c *router.CandidateView) string { return string(c.Endpoint) }},
		{"verdict", false, func(c *router.CandidateView) string { return verdictText(x, c) }},
		{"adds µ$", true, func(c *router.CandidateView) string { return scaled(c.MarginalUSD, 1e6, microText) }},
		{"full $/Mtok", true, func(c *router.CandidateView) string { return figure(c.FullUSDMTok, "%.2f") }},
		{"first token", true, func(c *router.CandidateView) string {
			return scaled(c.TTFT, 1, func(v float64) string { return spread(secondsText(v), c.TTFTSigma) })
		}},
		{"tokens/s", true, func(c *router.CandidateView) string {
			return scaled(c.TPS, 1, func(v float64) string { return spread(fmt.Sprintf("%.1f", v), c.TPSSigma) })
		}},
		{"P(in time)", true, func(c *router.CandidateView) string { return scaled(c.PTTFT, 100, percentText) }},
		{"P(fast enough)", true, func(c *router.CandidateView) string { return scaled(c.PTPS, 100, percentText) }},
		{"in flight/safe", true, func(c *router.CandidateView) string {
			return scaled(c.InFlight, 1, func(v float64) string { return fmt.Sprintf("%.0f/%s", v, figure(c.Safe, "%.0f")) })
		}},
		{"held tokens", true, func(c *router.CandidateView) string {
			return someOf(c.Cached, func(v float64) string { return fmt.Sprintf("%.0f", v) })
		}},
		{"cold start", true, func(c *router.CandidateView) string { return someOf(c.ColdSeconds, secondsText) }},
	}
	t := table.NewWriter()
	style := table.StyleLight
	style.Format.Header = text.FormatDefault
	t.SetStyle(style)
	var head table.Row
	var configs []table.ColumnConfig
	rows := make([]table.Row, len(x.Candidate))
	for _, col := range cols {
		cells, filled := make([]string, len(rows)), false
		for i := range x.Candidate {
			cells[i] = col.cell(&x.Candidate[i])
			filled = filled || cells[i] != unknownText
		}
		if !filled {
			continue
		}
		head = append(head, col.name)
		if col.right {
			configs = append(configs, table.ColumnConfig{Number: len(head), Align: text.AlignRight, AlignHeader: text.AlignRight})
		}
		for i, cell := range cells {
			rows[i] = append(rows[i], cell)
		}
	}
	t.AppendHeader(head)
	t.SetColumnConfigs(configs)
	t.AppendRows(rows)
	s := t.Render()
	if x.Others > 0 {
		s += fmt.Sprintf("\nand %s not shown", count(int64(x.Others), "more candidate"))
	}
	return s
}

// verdictText is what became of a candidate, in words.
func verdictText(x *router.Explanation, c *router.CandidateView) string {
	words := c.Verdict
	switch {
	case c.Endpoint == x.Winner && c.Verdict == servesWord:
		words = "chosen"
	case c.Endpoint == x.Winner:
		words = "chosen though " + c.Verdict
	case c.Verdict == servesWord:
		words = "keeps the SLO"
	}
	var more []string
	if c.State != "ready" && c.State != "unknown" {
		more = append(more, strings.ReplaceAll(c.State, "_", " "))
	}
	if c.Reason != "" {
		more = append(more, c.Reason)
	}
	if len(more) > 0 {
		words += " (" + strings.Join(more, ": ") + ")"
	}
	return words
}

// came tells what became of a decision.
func came(x *router.Explanation) string {
	switch {
	case x.Winner == "":
		return ""
	case x.Realised == nil:
		return "It still runs.\n"
	}
	var was router.CandidateView
	if len(x.Candidate) > 0 {
		was = x.Candidate[0]
	}
	s := "It ended with " + strings.ReplaceAll(x.Realised.Class, "_", " ")
	if r := x.Realised.TTFT; r != nil {
		s += "; first token in " + secondsText(*r) + beside(was.TTFT, secondsText)
	}
	if r := x.Realised.TPS; r != nil {
		s += fmt.Sprintf("; %.3g tokens/s", *r) + beside(was.TPS, func(v float64) string { return fmt.Sprintf("%.3g", v) })
	}
	return s + ".\n"
}

func beside(v *float64, show func(float64) string) string {
	if v == nil {
		return ""
	}
	return " (expected: " + show(*v) + ")"
}

// whole tells what the request was in all, as its caller had it.
func whole(r *settledRequest) string {
	if r == nil {
		return ""
	}
	s := fmt.Sprintf("Its caller got status %d after %s", r.Status, secondsText(r.Duration/1e3))
	if r.TTFT != nil {
		s = fmt.Sprintf("Its caller got the first token after %s and the end after %s, status %d", secondsText(*r.TTFT/1e3), secondsText(r.Duration/1e3), r.Status)
	}
	if r.Output != nil {
		s += fmt.Sprintf("; %s", count(*r.Output, "token"))
		if r.Prompt != nil {
			s += fmt.Sprintf(" for a prompt of %d", *r.Prompt)
			if r.Cached != nil && *r.Cached > 0 {
				s += fmt.Sprintf(", %d of them held", *r.Cached)
			}
		}
	}
	if r.USD != nil {
		s += fmt.Sprintf("; %s is its share of the bill", usdText(*r.USD))
	}
	return s + ".\n"
}

// decisionsText lists decisions, the newest first.
func decisionsText(ds []router.Explanation, now time.Time) string {
	if len(ds) == 0 {
		return "No decision yet: no request has come since the gateway started.\n"
	}
	t := table.NewWriter()
	style := table.StyleLight
	style.Format.Header = text.FormatDefault
	t.SetStyle(style)
	t.AppendHeader(table.Row{"ago", "request", "model", "went to", "why", "adds µ$", "first token", "tokens/s", "ended with"})
	right := func(n int) table.ColumnConfig {
		return table.ColumnConfig{Number: n, Align: text.AlignRight, AlignHeader: text.AlignRight}
	}
	t.SetColumnConfigs([]table.ColumnConfig{right(1), {Number: 5, WidthMax: 32, WidthMaxEnforcer: text.WrapSoft}, right(6), right(7), right(8)})
	for i := range ds {
		x := &ds[i]
		var c router.CandidateView
		to, ended := "nobody", unknownText
		if x.Winner != "" {
			to, ended = string(x.Winner), "still runs"
			if len(x.Candidate) > 0 {
				c = x.Candidate[0]
			}
		}
		if x.Attempt > 1 {
			to += fmt.Sprintf(" (attempt %d)", x.Attempt)
		}
		var ttft, tps *float64
		if r := x.Realised; r != nil {
			ended, ttft, tps = strings.ReplaceAll(r.Class, "_", " "), r.TTFT, r.TPS
		}
		t.AppendRow(table.Row{
			brief(max(0, now.Sub(x.At))), cmp.Or(x.Request, unknownText), x.Model, to, strings.TrimSuffix(x.Why, " among those that keep the SLO"), scaled(c.MarginalUSD, 1e6, microText),
			both(c.TTFT, ttft, secondsText), both(c.TPS, tps, func(v float64) string { return fmt.Sprintf("%.1f", v) }), ended,
		})
	}
	return t.Render() + "\nThe first token and the tokens/s are those expected → those that came. More of one request: headrace explain REQUEST-ID\n"
}

// both shows what was expected and what came.
func both(expected, came *float64, show func(float64) string) string {
	if expected == nil && came == nil {
		return unknownText
	}
	return scaled(expected, 1, show) + " → " + scaled(came, 1, show)
}

func scaled(v *float64, by float64, show func(float64) string) string {
	if v == nil {
		return unknownText
	}
	return show(*v * by)
}

// someOf is scaled where 0 is nothing to show.
func someOf(v *float64, show func(float64) string) string {
	if v == nil || *v < 0.5 {
		return unknownText
	}
	return show(*v)
}

// spread adds a standard deviation, given as a share of the figure.
func spread(figure string, sigma *float64) string {
	if sigma == nil {
		return figure
	}
	return fmt.Sprintf("%s ±%.0f%%", figure, *sigma*100)
}

func secondsText(s float64) string { return brief(time.Duration(s * float64(time.Second))) }

func percentText(p float64) string {
	switch {
	case p >= 99.95:
		return ">99.9 %"
	case p < 0.05:
		return "<0.1 %"
	case p >= 99 || p < 1:
		return fmt.Sprintf("%.1f %%", p)
	}
	return fmt.Sprintf("%.0f %%", p)
}

func microText(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v < 0.1:
		return "<0.1"
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// usdText shows dollars with two significant figures, never as a power of ten.
func usdText(v float64) string {
	if v <= 0 {
		return "$0"
	}
	digits := min(9, max(2, 1-int(math.Floor(math.Log10(v)))))
	return "$" + fmt.Sprintf("%.*f", digits, v)
}
