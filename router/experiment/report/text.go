package report

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"headrace/router/experiment/stats"
)

// WriteText writes the report as tables of plain text. The error is w's.
func WriteText(w io.Writer, r *Report) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Experiment %s on %s, by %s: %s", r.Name, r.Model, r.AssignBy, r.State)
	if s := r.age(); s != "" {
		fmt.Fprintf(&b, ", %s", s)
	}
	b.WriteString("\n")
	for i := range r.Verdict.Arms {
		if a := &r.Verdict.Arms[i]; !a.Control {
			fmt.Fprintf(&b, "  %s: %s. %s\n", a.Name, a.Action, sentence(a.Reason))
			if a.Model != "" && a.Model != a.Reason {
				fmt.Fprintf(&b, "  Of its model: %s\n", sentence(a.Model))
			}
		}
	}
	if r.Advice != "" {
		fmt.Fprintf(&b, "  %s\n", sentence(r.Advice))
	}
	table := func(title string, head []string, rows [][]string) {
		if len(rows) == 0 {
			return
		}
		fmt.Fprintf(&b, "\n%s\n", title)
		t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		fmt.Fprintf(t, "  %s\n", strings.Join(head, "\t"))
		for _, row := range rows {
			fmt.Fprintf(t, "  %s\n", strings.Join(row, "\t"))
		}
		t.Flush() //nolint:errcheck // a strings.Builder takes everything
	}
	head, rows := r.arms()
	table("Arms", head, rows)
	head, rows = r.estimates()
	alpha := fmt.Sprintf("alpha %.3g in all", max(r.Alpha, r.Verdict.Alpha))
	if r.Alpha > r.Verdict.Alpha {
		alpha += fmt.Sprintf(", of which the replica that decides has %.3g", r.Verdict.Alpha)
	}
	table(fmt.Sprintf("Against %s (always valid, %s)", r.control(), alpha), head, rows)
	head, rows = r.steps()
	table("Step by step (the difference is of all steps together, each compared by itself)", head, rows)
	head, rows = r.money()
	table("Money", head, rows)
	head, rows = r.copies()
	table("Copies that nobody waited for, of this gateway", head, rows)
	head, rows = r.aside()
	table("Set aside, in requests", head, rows)
	head, rows = r.hosts()
	table("Hosts, against what the control's requests of the same kind of host, prompt length and load are like", head, rows)
	head, rows = r.decisions()
	table("Decisions", head, rows)
	_, err := io.WriteString(w, b.String())
	return err
}

// age says how long it ran.
func (r *Report) age() string {
	switch {
	case r.Started.IsZero():
		return ""
	case r.Ended.IsZero():
		return "for " + duration(r.At.Sub(r.Started))
	}
	return "ended after " + duration(r.Ended.Sub(r.Started))
}

func duration(d time.Duration) string {
	switch {
	case d < time.Minute:
		return d.Round(time.Second).String()
	case d < 48*time.Hour:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	}
	return fmt.Sprintf("%.1f days", d.Hours()/24)
}

// sentence begins with a capital, unless it begins with a metric's name, and ends with a stop.
func sentence(s string) string {
	if s == "" {
		return s
	}
	first, _, _ := strings.Cut(s, ":")
	if !strings.Contains(first, "_") && first != "ttft" && first != "tps" && first != "score" && s[0] >= 'a' && s[0] <= 'z' {
		s = string(s[0]-'a'+'A') + s[1:]
	}
	if strings.HasSuffix(s, ".") {
		return s
	}
	return s + "."
}

// control is the control's name.
func (r *Report) control() string {
	for i := range r.Verdict.Arms {
		if r.Verdict.Arms[i].Control {
			return r.Verdict.Arms[i].Name
		}
	}
	return "the control"
}

func (r *Report) what(arm int) string {
	if arm < len(r.Arms) {
		return r.Arms[arm].What
	}
	return ""
}

func (r *Report) arms() (head []string, rows [][]string) {
	head = []string{"arm", "runs on", "share", "units", "requests", "failed", "missed SLO", "broke off", "out of arm", "units as due"}
	for i := range r.Verdict.Arms {
		a := &r.Verdict.Arms[i]
		name := a.Name
		srm := "E = " + stats.Evidence(float64(a.SRM))
		if a.Control {
			name += " (control)"
			srm = ""
		} else if a.Broken() {
			srm += ": no"
		}
		n := a.Requests - a.Forced
		rows = append(rows, []string{
			name, r.what(i), percent(a.Weight), count(int64(a.Units)), count(a.Requests), of(a.Failed, n), of(a.Missed, n), of(a.Truncated, n), of(a.OutOfArm, n), srm,
		})
	}
	return head, rows
}

func (r *Report) money() (head []string, rows [][]string) {
	head = []string{"arm", "spent", "of it metered", "output tokens", "$/Mtok spent", "$/Mtok typical", "requests without a price"}
	for i := range r.Verdict.Arms {
		a := &r.Verdict.Arms[i]
		perMtok, typical := "–", "–"
		if a.PricedTokens > 0 {
			perMtok = fmt.Sprintf("$%.3g", a.SpentUSD/float64(a.PricedTokens)*1e6)
		}
		if e := r.estimate(i, stats.USD); e != nil {
			typical = e.Metric.Value(float64(e.Arm))
		} else if a.Control {
			if e := r.estimate(r.firstArm(), stats.USD); e != nil {
				typical = e.Metric.Value(float64(e.Control))
			}
		}
		rows = append(rows, []string{a.Name, fmt.Sprintf("$%.4g", a.SpentUSD), fmt.Sprintf("$%.4g", a.MeteredUSD), count(a.OutputTokens), perMtok, typical, count(a.Unpriced)})
	}
	return head, rows
}

// copies are what came of those that nobody waited for; no rows where none were made.
func (r *Report) copies() (head []string, rows [][]string) {
	head = []string{"arm", "made", "failed", "not made", "output tokens", "spent", "TTFT", "TPS", "same end", "same words", "JSON as asked"}
	s := r.Shadow
	if s == nil {
		return head, nil
	}
	ttft, tps := "–", "–"
	if s.TTFT > 0 {
		ttft = stats.TTFT.Value(s.TTFT)
	}
	if s.TPS > 0 {
		tps = stats.TPS.Value(s.TPS)
	}
	return head, [][]string{{
		s.Arm, count(s.Copied), count(s.Failed), count(s.NoRoom), count(s.Output), fmt.Sprintf("$%.4g", s.USD), ttft, tps,
		of(s.SameFinish, s.Finished), of(s.SameText, s.Compared), of(s.ValidJSON, s.JSON),
	}}
}

func (r *Report) firstArm() int {
	for i := range r.Verdict.Arms {
		if !r.Verdict.Arms[i].Control {
			return i
		}
	}
	return 0
}

func (r *Report) estimate(arm int, m stats.Metric) *stats.Estimate {
	if arm < len(r.Verdict.Arms) {
		for k := range r.Verdict.Arms[arm].Estimates {
			if e := &r.Verdict.Arms[arm].Estimates[k]; e.Metric == m {
				return e
			}
		}
	}
	return nil
}

func (r *Report) aside() (head []string, rows [][]string) {
	head = []string{"arm", "cold start", "host taken away", "resumed", "nothing alike", "arm asked for", "unit not remembered"}
	for i := range r.Verdict.Arms {
		a := &r.Verdict.Arms[i]
		rows = append(rows, []string{a.Name, count(a.Cold), count(a.Preempted), count(a.Resumes), count(a.Unmatched), count(a.Forced), count(a.Unsampled)})
	}
	return head, rows
}

// findings in words.
func findingWords(f stats.Finding) string {
	switch f {
	case stats.Harm:
		return "worse: proven"
	case stats.Hosts:
		return "hosts differ"
	case stats.Suspicion:
		return "signs of harm"
	case stats.Open:
		return "not shown yet"
	case stats.Few:
		return "too few units"
	case stats.Unmeasured:
		return "not measured"
	case stats.Within:
		return "within margin"
	}
	return string(f)
}

func (r *Report) estimates() (head []string, rows [][]string) {
	head = []string{"arm", "metric", "control", "arm's", "difference", "interval", "model's part", "margin", "tolerated", "E", "stops at", "finding"}
	for i := range r.Verdict.Arms {
		a := &r.Verdict.Arms[i]
		for k := range a.Estimates {
			e := &a.Estimates[k]
			m := e.Metric
			model, margin, tolerated, stops, finding := "", "", "", "", "shown only"
			if h := e.Hosts; h != nil {
				model = span(m, h.Low, h.High)
			}
			if e.Guard {
				margin, tolerated, stops, finding = m.Amount(float64(e.Margin)), "none", stats.Evidence(float64(e.Needs)), findingWords(e.Finding)
				if e.Tolerate > 0 {
					tolerated = m.Amount(float64(e.Tolerate))
				}
				if e.Goal {
					margin = "goal: " + margin + " better"
				}
			}
			rows = append(rows, []string{
				a.Name, m.String(), m.Value(float64(e.Control)), m.Value(float64(e.Arm)), m.Signed(float64(e.Diff)), span(m, e.Low, e.High), model, margin, tolerated,
				stats.Evidence(float64(e.LogE)), stops, finding,
			})
		}
	}
	return head, rows
}

// steps are what each share of units has shown, where there were several.
func (r *Report) steps() (head []string, rows [][]string) {
	head = []string{"arm", "metric", "arm's share", "control's units", "arm's units", "control", "arm's", "difference", "of the whole"}
	for i := range r.Verdict.Arms {
		a := &r.Verdict.Arms[i]
		for k := range a.Estimates {
			e := &a.Estimates[k]
			if !e.Guard {
				continue
			}
			for _, s := range e.Steps {
				m := e.Metric
				rows = append(rows, []string{
					a.Name, m.String(), percent(s.Weight), count(int64(s.Units[0])), count(int64(s.Units[1])), m.Value(float64(s.Control)), m.Value(float64(s.Arm)), m.Signed(float64(s.Diff)), percent(s.Share),
				})
			}
		}
	}
	return head, rows
}

func span(m stats.Metric, low, high stats.Figure) string {
	if m.Signed(float64(low)) == "–" {
		return "–"
	}
	return m.Signed(float64(low)) + " to " + m.Signed(float64(high))
}

func (r *Report) hostName(id uint32) string {
	if n, ok := r.Hosts[id]; ok {
		return n
	}
	return fmt.Sprintf("host %d", id)
}

func (r *Report) kindName(id uint32) string {
	if n, ok := r.Kinds[id]; ok {
		return n
	}
	return fmt.Sprintf("kind %d", id)
}

func (r *Report) hosts() (head []string, rows [][]string) {
	head = []string{"arm", "host", "kind", "requests", "TTFT", "TPS", "$/Mtok"}
	for i := range r.Verdict.Arms {
		a := &r.Verdict.Arms[i]
		for k := range a.Hosts {
			h := &a.Hosts[k]
			row := []string{a.Name, r.hostName(h.Host), r.kindName(h.Kind), count(h.Requests)}
			for m, g := range h.Against {
				row = append(row, stats.Metric(m).Signed(float64(g.Mean))) //nolint:gosec // small
			}
			rows = append(rows, row)
		}
	}
	return head, rows
}

func (r *Report) decisions() (head []string, rows [][]string) {
	head = []string{"at", "by", "what", "shares", "why"}
	for i := range r.Decisions {
		d := &r.Decisions[i]
		what := d.What
		if d.Arm != "" {
			what += " " + d.Arm
		}
		var shares []string
		for _, w := range d.Weights {
			shares = append(shares, percent(w))
		}
		rows = append(rows, []string{d.At.UTC().Format(time.RFC3339), d.By, what, strings.Join(shares, " / "), d.Why})
	}
	return head, rows
}

func percent(v float64) string { return fmt.Sprintf("%.3g %%", 100*v) }

// of is a share of n with its count.
func of(k, n int64) string {
	if n <= 0 {
		return "–"
	}
	return fmt.Sprintf("%s (%s)", percent(float64(k)/float64(n)), count(k))
}

// count has a comma before every three digits.
func count(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
