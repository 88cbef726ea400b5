package compare

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"

	"headrace/cmd/loadgen/internal/load"
	"headrace/cmd/loadgen/internal/stat"
)

const nginxColumn = "nginx"

// busyShare is the share of the machine that other programs may take before a report warns of it.
const busyShare = 0.05

// Figure is a number that JSON shows as null when there is none (NaN).
type Figure float64

// MarshalJSON writes null for NaN and infinities, which JSON has no words for.
func (f Figure) MarshalJSON() ([]byte, error) {
	if v := float64(f); !math.IsNaN(v) && !math.IsInf(v, 0) {
		return json.Marshal(v)
	}
	return []byte("null"), nil
}

// Verdict is how a ratio stands to its bounds.
type Verdict string

// Verdicts. Unjudged is for figures without bounds and for runs without nginx, Invalid for figures
// from runs with wrong or missing answers.
const (
	Unjudged Verdict = ""
	Stretch  Verdict = "stretch"
	Must     Verdict = "must"
	Missed   Verdict = "MISSED"
	Invalid  Verdict = "INVALID"
)

// Report is the outcome of a comparison.
type Report struct {
	Environment Environment `json:"environment"`
	Quick       bool        `json:"quick"`
	Columns     []string    `json:"columns"` // without direct; nginx first, when there is one
	Measures    []Line      `json:"measures"`
	Direct      Direct      `json:"direct"`
	Problems    []string    `json:"problems,omitempty"`
	Rows        []load.Row  `json:"rows"` // every run
}

// Direct is what the mock gives without a proxy.
type Direct struct {
	RPS Figure `json:"rps"`     // 16 connections
	P50 Figure `json:"p50_us"`  // one connection, microseconds
	CPU Figure `json:"mock_us"` // the mock's own CPU per plain request, microseconds
}

// Line is one measure.
type Line struct {
	ID             string `json:"id"`
	Title          string `json:"title"`
	Unit           string `json:"unit"`
	Must           Figure `json:"must,omitempty"`    // ratio to nginx, 0 for none
	Stretch        Figure `json:"stretch,omitempty"` // likewise
	HigherIsBetter bool   `json:"higher_is_better"`
	Cells          []Cell `json:"cells"` // one for each of Report.Columns
}

// Cell is one measure of one column.
type Cell struct {
	Column  string   `json:"column"`
	Value   Figure   `json:"value"` // median over rounds
	Ratio   Figure   `json:"ratio"` // to nginx
	Low     Figure   `json:"ratio_low"`
	High    Figure   `json:"ratio_high"` // of the rounds
	Verdict Verdict  `json:"verdict,omitempty"`
	Rounds  []Figure `json:"rounds"`
}

// report does the arithmetic.
func (s *comparison) report(env Environment, plans []scenario) *Report {
	rep := &Report{Environment: env, Quick: s.Quick, Problems: s.problems}
	for _, b := range s.subjects {
		rep.Columns = append(rep.Columns, b.name)
	}
	for _, m := range measures() {
		if by, ok := s.samples[m.scenario]; ok {
			rep.Measures = append(rep.Measures, line(m, by, rep.Columns))
		}
	}
	direct := func(scenario string, value func(load.Row) float64) Figure {
		return Figure(stat.Median(values(s.samples[scenario]["direct"], func(one sample) float64 { return value(one.row) })))
	}
	rep.Direct = Direct{
		RPS: direct(Plain, func(w load.Row) float64 { return w.RPS }),
		P50: direct(Alone, func(w load.Row) float64 { return w.P50 }),
		CPU: direct(Plain, func(w load.Row) float64 { return w.MockRequest }),
	}
	for _, sc := range plans {
		for _, name := range append([]string{"direct"}, rep.Columns...) {
			for _, one := range s.samples[sc.name][name] {
				if one.row.Target != "" {
					rep.Rows = append(rep.Rows, one.row)
				}
			}
		}
	}
	return rep
}

func values(all []sample, f func(sample) float64) []float64 {
	out := make([]float64, len(all))
	for i, one := range all {
		out[i] = f(one)
	}
	return out
}

// line works out one measure for all columns.
func line(m measure, by map[string][]sample, columns []string) Line {
	l := Line{
		ID: m.id, Title: m.title, Unit: m.unit, HigherIsBetter: m.higherIsBetter,
		Must: Figure(m.must), Stretch: Figure(m.stretch),
	}
	rounds := func(column string) []float64 {
		v := values(by[column], m.value)
		if m.added {
			v = stat.Differences(v, values(by["direct"], m.value))
		}
		return v
	}
	base := rounds(nginxColumn)
	for _, column := range columns {
		v := rounds(column)
		c := Cell{Column: column, Value: Figure(stat.Median(v)), Ratio: Figure(math.NaN()), Low: Figure(math.NaN()), High: Figure(math.NaN())}
		for _, x := range v {
			c.Rounds = append(c.Rounds, Figure(x))
		}
		if column != nginxColumn && len(base) > 0 && len(v) > 0 {
			ratios := stat.Ratios(v, base)
			c.Ratio = Figure(stat.Median(ratios))
			if m.added {
				c.Ratio = Figure(stat.Median(v) / stat.Median(base))
			}
			c.Low, c.High = Figure(slices.Min(ratios)), Figure(slices.Max(ratios))
			c.Verdict = m.judge(float64(c.Ratio))
		}
		if faulty(by[column]) || m.added && faulty(by["direct"]) || column != nginxColumn && faulty(by[nginxColumn]) {
			c.Verdict = Invalid
		}
		l.Cells = append(l.Cells, c)
	}
	return l
}

// faulty says whether a run had wrong answers, or none where there should have been some.
func faulty(all []sample) bool {
	return slices.ContainsFunc(all, func(one sample) bool {
		return one.row.Errors > 0 || one.row.Target != "" && one.row.Requests == 0
	})
}

// judge compares a ratio with the bounds. A ratio that could not be had is no pass.
func (m measure) judge(ratio float64) Verdict {
	keeps := func(bound float64) bool {
		if m.higherIsBetter {
			return ratio >= bound
		}
		return ratio <= bound
	}
	switch {
	case m.must == 0 || math.IsNaN(ratio):
		return Unjudged
	case m.stretch != 0 && keeps(m.stretch):
		return Stretch
	case keeps(m.must):
		return Must
	}
	return Missed
}

// Shortfalls lists what keeps a column from being accepted: a bound that is missed, figures that are
// not valid, and bounds that could not be judged.
func (r *Report) Shortfalls(column string) []string {
	if !slices.Contains(r.Columns, column) {
		return []string{fmt.Sprintf("%s was not measured", column)}
	}
	var out []string
	for _, l := range r.Measures {
		if l.Must == 0 {
			continue
		}
		for _, c := range l.Cells {
			if c.Column != column {
				continue
			}
			switch c.Verdict {
			case Stretch, Must:
			case Missed, Invalid:
				out = append(out, fmt.Sprintf("%s: %s: %.2f× nginx, must be %s: %s", column, l.Title, float64(c.Ratio), l.bound(l.Must), c.Verdict))
			case Unjudged:
				out = append(out, fmt.Sprintf("%s: %s: could not be judged", column, l.Title))
			}
		}
	}
	return out
}

// bound renders a bound, such as "≤ 1.60×".
func (l Line) bound(f Figure) string {
	sign := "≤"
	if l.HigherIsBetter {
		sign = "≥"
	}
	if f == 0 {
		return "–"
	}
	return fmt.Sprintf("%s %.2f×", sign, float64(f))
}

// Markdown renders the report as one table with the conditions above it.
func (r *Report) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", r.Environment)
	if r.Quick {
		b.WriteString("**Quick run: shows that everything works; too short for its figures to mean much.**\n\n")
	}
	if others := float64(r.Environment.Others); others > busyShare*float64(r.Environment.Cores) {
		b.WriteString("**The machine was busy with other programs: run it again when it is quiet.**\n\n")
	}
	b.WriteString("| measure | must | stretch |")
	figures := 2
	for _, c := range r.Columns {
		if c == nginxColumn {
			b.WriteString(" nginx |")
			figures++
		} else {
			fmt.Fprintf(&b, " %s | × nginx (rounds) |", cell(c))
			figures += 2
		}
	}
	b.WriteString("\n|---|" + strings.Repeat("--:|", figures) + "\n")
	for _, l := range r.Measures {
		fmt.Fprintf(&b, "| %s, %s | %s | %s |", l.Title, l.Unit, l.bound(l.Must), l.bound(l.Stretch))
		for _, c := range l.Cells {
			fmt.Fprintf(&b, " %s |", number(c.Value))
			if c.Column != nginxColumn {
				fmt.Fprintf(&b, " %s |", c.ratio())
			}
		}
		b.WriteString("\n")
	}
	if !math.IsNaN(float64(r.Direct.RPS)) || !math.IsNaN(float64(r.Direct.P50)) {
		fmt.Fprintf(&b, "\nWithout a proxy: %s requests/s at 16 connections (%s µs of CPU each in the mock), p50 %s µs at one.\n",
			number(r.Direct.RPS), number(r.Direct.CPU), number(r.Direct.P50))
	}
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "\n- PROBLEM: %s\n", cell(p))
	}
	return b.String()
}

// ratio renders "1.07 (1.05–1.10) stretch".
func (c Cell) ratio() string {
	if math.IsNaN(float64(c.Ratio)) {
		return strings.TrimSpace("– " + string(c.Verdict))
	}
	s := fmt.Sprintf("%.2f (%.2f–%.2f)", float64(c.Ratio), float64(c.Low), float64(c.High))
	return strings.TrimSpace(s + " " + string(c.Verdict))
}

// number keeps about three digits.
func number(f Figure) string {
	v := float64(f)
	switch {
	case math.IsNaN(v):
		return "–"
	case math.Abs(v) >= 100:
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// cell keeps text from breaking out of a table.
func cell(s string) string {
	return strings.NewReplacer("|", "\\|", "\n", " ", "\r", " ").Replace(s)
}
