package main

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/term"

	"headrace/router"
)

const unknownText = "–"

// requestText tells of a request that was: each attempt's decision, what came of it, and what the whole request was.
func requestText(ds []router.Explanation, rec *settledRequest, now time.Time, width int) string {
	var b strings.Builder
	tell := func(format string, args ...any) { b.WriteString(wrapped(fmt.Sprintf(format, args...), width)) }
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
			tell("%s went to no host: %s.\n", what, x.Why)
		default:
			tell("%s went to %s: %s%s.\n", what, x.Winner, whyText(x), expected(x))
		}
		tell("That was %s ago. %s\n", brief(max(0, now.Sub(x.At))), demanded(x))
		b.WriteString(candidates(x, width) + "\n")
		tell("%s", came(x))
	}
	tell("%s", whole(rec))
	return b.String()
}

// hypotheticalText tells of a request that could be.
func hypotheticalText(x *router.Explanation, width int) string {
	head := fmt.Sprintf("It would go to %s: %s%s.", x.Winner, whyText(x), expected(x))
	if x.Winner == "" {
		head = "It would be refused: " + x.Why + "."
	}
	return wrapped(head+"\n"+demanded(x)+"\n", width) + candidates(x, width) + "\n"
}

// wrapped breaks lines of prose between words where the screen ends.
func wrapped(s string, width int) string {
	if width <= 0 {
		return s
	}
	var b strings.Builder
	for line := range strings.Lines(s) { // WrapSoft would join them
		for part := range strings.SplitSeq(text.WrapSoft(strings.TrimSuffix(line, "\n"), width), "\n") {
			b.WriteString(strings.TrimRight(part, " ") + "\n")
		}
	}
	return b.String()
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

// pooled is the model, with the arm of an experiment to whose hosts the request was kept.
func pooled(x *router.Explanation) string {
	if x.Pool == "" {
		return x.Model
	}
	return x.Model + " (hosts of " + x.Pool + ")"
}

// demanded tells what the request asked for, and what else explains the choice.
func demanded(x *router.Explanation) string {
	s := fmt.Sprintf("Model %s, policy %s, a prompt of %s, an answer of about %.0f. SLO: first token within %s and %.3g tokens/s, each for %.3g %% of requests.",
		pooled(x), x.Policy, count(int64(math.Round(x.Prompt)), "token"), x.Output, secondsText(x.SLO.TTFT), x.SLO.TPS, x.SLO.Confidence*100)
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

// The router's verdicts.
const (
	servesWord = "serves"
	barredWord = "breaker open or cooling down"
)

// candidates renders the table, within width if it is above 0. Columns in which nobody has anything are left out.
func candidates(x *router.Explanation, width int) string {
	if len(x.Candidate) == 0 {
		return "No host serves this model now."
	}
	cols := []textColumn{
		{name: "endpoint"},
		{name: "verdict"},
		{name: "adds µ$", right: true},
		{name: "full $/Mtok", right: true, spare: 6},
		{name: "first token", right: true},
		{name: "tokens/s", right: true},
		{name: "P(in time)", right: true, spare: 4},
		{name: "P(fast enough)", right: true, spare: 5},
		{name: "in flight/safe", right: true, spare: 1},
		{name: "held tokens", right: true, spare: 3},
		{name: "cold start", right: true, spare: 2},
	}
	for i := range x.Candidate {
		c := &x.Candidate[i]
		for j, cell := range []string{
			string(c.Endpoint), verdictText(x, c), scaled(c.MarginalUSD, 1e6, microText), figure(c.FullUSDMTok, "%.2f"),
			scaled(c.TTFT, 1, func(v float64) string { return spread(secondsText(v), c.TTFTSigma) }),
			scaled(c.TPS, 1, func(v float64) string { return spread(fmt.Sprintf("%.1f", v), c.TPSSigma) }),
			scaled(c.PTTFT, 100, percentText), scaled(c.PTPS, 100, percentText),
			scaled(c.InFlight, 1, func(v float64) string { return fmt.Sprintf("%.0f/%s", v, figure(c.Safe, "%.0f")) }),
			someOf(c.Cached, func(v float64) string { return fmt.Sprintf("%.0f", v) }), someOf(c.ColdSeconds, secondsText),
		} {
			cols[j].cells = append(cols[j].cells, cell)
		}
	}
	cols = slices.DeleteFunc(cols, func(c textColumn) bool {
		return !slices.ContainsFunc(c.cells, func(s string) bool { return s != unknownText })
	})
	s := textTable(cols, width)
	if x.Others > 0 {
		s += fmt.Sprintf("\nand %s not shown", count(int64(x.Others), "more candidate"))
	}
	return s
}

// textColumn is one of a table.
type textColumn struct {
	name  string
	right bool
	spare int // where there is no room, the highest goes first; 0 stays
	most  int // width, 0 for any
	cells []string
}

// textTable renders columns, within width if it is above 0, as far as sparing some achieves that.
func textTable(cols []textColumn, width int) string {
	var left []string // out
	for {
		t := table.NewWriter()
		style := table.StyleLight
		style.Format.Header = text.FormatDefault
		t.SetStyle(style)
		head, rows, configs := make(table.Row, len(cols)), make([]table.Row, len(cols[0].cells)), make([]table.ColumnConfig, len(cols))
		for i, c := range cols {
			head[i], configs[i] = c.name, table.ColumnConfig{Number: i + 1, WidthMax: c.most, WidthMaxEnforcer: text.WrapSoft}
			if c.right {
				configs[i].Align, configs[i].AlignHeader = text.AlignRight, text.AlignRight
			}
			for j, cell := range c.cells {
				rows[j] = append(rows[j], cell)
			}
		}
		t.AppendHeader(head)
		t.SetColumnConfigs(configs)
		t.AppendRows(rows)
		s := t.Render()
		spare := 0
		for i := range cols {
			if cols[i].spare > cols[spare].spare {
				spare = i
			}
		}
		if width <= 0 || cols[spare].spare == 0 || text.LongestLineLen(s) <= width {
			if len(left) > 0 {
				s += "\n(left out, as the screen is narrow: " + strings.Join(left, ", ") + ")"
			}
			return s
		}
		left = append(left, cols[spare].name)
		cols = slices.Delete(cols, spare, spare+1)
	}
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
	case c.Reason != "" && (c.State == "ready" || c.State == "unknown"):
		return c.Reason
	}
	var states []string
	if c.State != "ready" && c.State != "unknown" {
		states = append(states, strings.ReplaceAll(c.State, "_", " "))
	}
	if c.Breaker != "" && c.Breaker != "closed" && c.Breaker != c.State && c.Verdict != barredWord { // which says so
		states = append(states, "breaker "+c.Breaker)
	}
	more := strings.Join(states, ", ")
	switch {
	case more != "" && c.Reason != "":
		more += ": " + c.Reason
	case c.Reason != "":
		more = c.Reason
	case more == "":
		return words
	}
	return words + " (" + more + ")"
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
	return s + ".\n" + armText(r)
}

// armText tells of which experiment's arm it was.
func armText(r *settledRequest) string {
	if r.Arm == "" {
		return ""
	}
	s := "It was of the arm " + r.Arm
	if r.Forced {
		s += ", which it had asked for"
	}
	if r.OutOfArm {
		s += ", and served by a host that is none of the arm's: those had no room, or failed"
	}
	return s + ".\n"
}

// decisionsText lists decisions, the newest first.
func decisionsText(ds []router.Explanation, now time.Time, width int) string {
	if len(ds) == 0 {
		return "No decision yet: no request has come since the gateway started.\n"
	}
	cols := []textColumn{
		{name: "ago", right: true},
		{name: "request"},
		{name: "model", spare: 5},
		{name: "went to"},
		{name: "why", most: 32, spare: 1},
		{name: "adds µ$", right: true, spare: 2},
		{name: "first token", right: true, spare: 4},
		{name: "tokens/s", right: true, spare: 5},
		{name: "ended with"},
	}
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
		for j, cell := range []string{
			brief(max(0, now.Sub(x.At))), cmp.Or(x.Request, unknownText), pooled(x), to, strings.TrimSuffix(x.Why, " among those that keep the SLO"),
			scaled(c.MarginalUSD, 1e6, microText), both(c.TTFT, ttft, secondsText), both(c.TPS, tps, func(v float64) string { return fmt.Sprintf("%.1f", v) }), ended,
		} {
			cols[j].cells = append(cols[j].cells, cell)
		}
	}
	return textTable(cols, width) + "\n" + wrapped("Where two figures stand, the first was expected and the second came. More of one request: headrace explain REQUEST-ID\n", width)
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

// screenWidth is that of the terminal that out is, 0 when it is none or does not tell.
func screenWidth(out io.Writer) int {
	if f, ok := out.(*os.File); ok && isTerminal(out) {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil { //nolint:gosec // a handful
			return w
		}
	}
	return 0
}
