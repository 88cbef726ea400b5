package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"headrace/router/experiment/stats"
	"headrace/router/page"
)

// Charts stand two in a row.
const (
	width, height            = 520.0, 240.0
	left, right, top, bottom = 58.0, 14.0, 10.0, 44.0
)

// clock is a time axis: elapsed time in a unit that gives few digits.
type clock struct {
	from time.Time
	unit time.Duration
	axis page.Axis
	name string
}

func (r *Report) clock() clock {
	from, to := r.History[0].At, r.History[len(r.History)-1].At
	if !r.Started.IsZero() && r.Started.Before(from) {
		from = r.Started
	}
	c := clock{from: from, unit: time.Second, name: "seconds"}
	switch d := to.Sub(from); {
	case d > 72*time.Hour:
		c.unit, c.name = 24*time.Hour, "days"
	case d > 3*time.Hour:
		c.unit, c.name = time.Hour, "hours"
	case d > 3*time.Minute:
		c.unit, c.name = time.Minute, "minutes"
	}
	c.name += " since it began"
	end := max(1e-3, to.Sub(from).Seconds()/c.unit.Seconds())
	c.axis = page.NewAxis(0, end, 6, left, width-right)
	if c.axis.High-end > c.axis.Step/2 { // no empty end
		c.axis.High = end
	}
	return c
}

func (c *clock) at(t time.Time) float64 {
	return c.axis.Clamped(t.Sub(c.from).Seconds() / c.unit.Seconds())
}

// grid draws both axes and the times at which shares changed.
func (r *Report) grid(d *page.Drawing, c *clock, ay page.Axis, name string) {
	d.Grid(c.axis, ay, c.name, name)
	for _, e := range r.decided() {
		if x := c.at(e.At); x > left+1 && x < width-right-1 {
			d.Line("decided", x, ay.From, x, ay.To)
		}
	}
}

// runs are the stretches of the history between which nobody looked for long, as while the gateway was stopped: from, to.
func (r *Report) runs() [][2]int {
	var gaps []time.Duration
	for i := 1; i < len(r.History); i++ {
		gaps = append(gaps, r.History[i].At.Sub(r.History[i-1].At))
	}
	slices.Sort(gaps)
	var out [][2]int
	from := 0
	for i := 1; i < len(r.History); i++ {
		if r.History[i].At.Sub(r.History[i-1].At) > 8*gaps[len(gaps)/2] {
			out = append(out, [2]int{from, i})
			from = i
		}
	}
	return append(out, [2]int{from, len(r.History)})
}

// lines draws one stepped or plain line per arm.
func lines(r *Report, title, name string, ay page.Axis, stepped bool, of func(*Point, int) float64, marks ...float64) page.Picture {
	c := r.clock()
	d := page.NewDrawing(title, width, height)
	r.grid(d, &c, ay, name)
	for _, v := range marks {
		d.Line("margin", left, ay.At(v), width-right, ay.At(v))
	}
	for arm := range r.Verdict.Arms {
		if len(marks) > 0 && r.Verdict.Arms[arm].Control {
			continue // which is held against nothing
		}
		for _, run := range r.runs() {
			var at [][2]float64
			for i := run[0]; i < run[1]; i++ {
				p := &r.History[i]
				x, y := c.at(p.At), ay.Clamped(of(p, arm))
				if n := len(at); stepped && n > 0 {
					at = append(at, [2]float64{x, at[n-1][1]})
				}
				at = append(at, [2]float64{x, y})
			}
			d.Polyline("curve "+r.class(arm), at)
		}
	}
	return d.Done()
}

func value[T int | float64](vs []T, i int) float64 {
	if i < len(vs) {
		return float64(vs[i])
	}
	return 0
}

func sharesChart(r *Report) page.Picture {
	return lines(r, "share of units of each arm over time", "%", page.NewAxis(0, 100, 5, height-bottom, top), true, func(p *Point, arm int) float64 { return 100 * value(p.Weights, arm) })
}

func unitsChart(r *Report) page.Picture {
	most := 1.0
	for i := range r.History {
		for arm := range r.Verdict.Arms {
			most = max(most, value(r.History[i].Units, arm))
		}
	}
	return lines(r, "units seen of each arm over time", "units", page.NewAxis(0, most, 5, height-bottom, top), false, func(p *Point, arm int) float64 { return value(p.Units, arm) })
}

func moneyChart(r *Report) page.Picture {
	most := 0.0
	for i := range r.History {
		for arm := range r.Verdict.Arms {
			most = max(most, value(r.History[i].USD, arm))
		}
	}
	if most == 0 || len(r.History) < 2 {
		return ""
	}
	return lines(r, "dollars spent by each arm over time", "$", page.NewAxis(0, most, 5, height-bottom, top), false, func(p *Point, arm int) float64 { return value(p.USD, arm) })
}

// evidenceChart draws how much of the evidence that would stop an arm there is, by the guardrail that has most.
func evidenceChart(r *Report) page.Picture {
	most := 100.0
	of := func(p *Point, arm int) float64 {
		top := 0.0
		for m := stats.TTFT; m <= stats.Score; m++ {
			t, ok := p.trace(arm, m)
			e := r.estimate(arm, m)
			if !ok || e == nil || !e.Guard || !known(t.LogE) || !known(t.Diff) {
				continue
			}
			if worse := (t.Diff > 0) != (m == stats.TPS || m == stats.Score); worse && e.Needs > 0 {
				top = max(top, 100*float64(t.LogE/e.Needs))
			}
		}
		return top
	}
	for i := range r.History {
		for arm := range r.Verdict.Arms {
			most = max(most, min(300, of(&r.History[i], arm)))
		}
	}
	ay := page.NewAxis(0, most, 5, height-bottom, top)
	return lines(r, "evidence of harm over time, as a share of what stops the arm", "% of what stops (log)", ay, false, of, 100)
}

// metricChart draws an arm's differences over time with their intervals, "" where there are none. Intervals that were too wide to
// be of use at first reach over the edge.
func metricChart(r *Report, m stats.Metric) page.Picture {
	scale := 1.0
	name := "difference"
	if m != stats.Score {
		scale, name = 100, "%"
		if !m.Relative() {
			name = "points"
		}
	}
	var ends, margins []float64
	told := false
	for arm := range r.Verdict.Arms {
		e := r.estimate(arm, m)
		if e == nil {
			continue
		}
		told = told || e.Guard || e.Control != 0 || e.Arm != 0
		if e.Guard {
			g := float64(e.Margin)
			if e.Goal {
				g = -g
			}
			if m == stats.TPS || m == stats.Score {
				g = -g
			}
			if !slices.Contains(margins, g*scale) {
				margins = append(margins, g*scale)
			}
		}
		for i := range r.History {
			if t, ok := r.History[i].trace(arm, m); ok && known(t.Low) && known(t.High) {
				ends = append(ends, scale*float64(t.Low), scale*float64(t.High))
			}
		}
	}
	if len(ends) == 0 || !told {
		return ""
	}
	// The later three quarters are what has to be seen.
	slices.Sort(ends)
	low, high := min(0, ends[len(ends)/8]), max(0, ends[len(ends)-1-len(ends)/8])
	for _, g := range margins {
		low, high = min(low, g), max(high, g)
	}
	pad := 0.06 * (high - low)
	ay := page.NewAxis(low-pad, high+pad, 5, height-bottom, top)
	c := r.clock()
	d := page.NewDrawing(m.Title()+": difference from the control over time, with its always-valid interval", width, height)
	r.grid(d, &c, ay, name)
	d.Line("zero", left, ay.At(0), width-right, ay.At(0))
	for _, g := range margins {
		d.Line("margin", left, ay.Clamped(g), width-right, ay.Clamped(g))
	}
	for arm := range r.Verdict.Arms {
		for _, run := range r.runs() {
			var upper, lower, mid [][2]float64
			for i := run[0]; i < run[1]; i++ {
				t, ok := r.History[i].trace(arm, m)
				if !ok || !known(t.Low) || !known(t.High) || !known(t.Diff) {
					continue
				}
				x := c.at(r.History[i].At)
				upper = append(upper, [2]float64{x, ay.Clamped(scale * float64(t.High))})
				lower = append(lower, [2]float64{x, ay.Clamped(scale * float64(t.Low))})
				mid = append(mid, [2]float64{x, ay.Clamped(scale * float64(t.Diff))})
			}
			slices.Reverse(lower)
			d.Polygon("band "+r.class(arm), append(upper, lower...))
			d.Polyline("curve "+r.class(arm), mid)
		}
	}
	return d.Done()
}

func known(f stats.Figure) bool { return !math.IsNaN(float64(f)) && !math.IsInf(float64(f), 0) }

// mostHosts of an arm are drawn; the table has all.
const mostHosts = 16

// hostsChart draws each host's difference, arm by arm.
func hostsChart(r *Report, m stats.Metric) page.Picture {
	const row, names = 17.0, 170.0
	type dot struct {
		arm  int
		name string
		stats.Range
	}
	var dots []dot
	low, high := -0.01, 0.01
	for arm := range r.Verdict.Arms {
		hosts := slices.Clone(r.Verdict.Arms[arm].Hosts)
		hosts = hosts[:min(len(hosts), mostHosts)] // the busiest
		slices.SortFunc(hosts, func(a, b stats.HostBlock) int { return cmp.Compare(r.hostName(a.Host), r.hostName(b.Host)) })
		for _, h := range hosts {
			g := h.Against[m]
			if !known(g.Mean) {
				continue
			}
			dots = append(dots, dot{arm, r.hostName(h.Host), g})
			low, high = min(low, float64(g.Low)), max(high, float64(g.High))
		}
	}
	if len(dots) == 0 {
		return ""
	}
	tall := top + row*float64(len(dots)) + bottom
	d := page.NewDrawing(m.Title()+" of each host against the control's like requests", width, tall)
	ax := page.NewAxis(100*low, 100*high, 5, names, width-right)
	for _, v := range ax.Ticks() {
		d.Line("grid", ax.At(v), tall-bottom, ax.At(v), top)
		d.Text("small", "middle", ax.At(v), tall-bottom+17, ax.Label(v))
	}
	d.Text("small", "middle", (names+width-right)/2, tall-bottom+36, "% against like requests of the control")
	d.Line("zero", ax.At(0), tall-bottom, ax.At(0), top)
	for i, p := range dots {
		y := top + row*(float64(i)+0.5)
		name := p.name
		if rs := []rune(name); len(rs) > 24 { // the end tells more than the middle
			name = string(rs[:8]) + "…" + string(rs[len(rs)-15:])
		}
		d.Text("small", "end", names-8, y+4, name)
		d.Line("mark "+r.class(p.arm), ax.Clamped(100*float64(p.Low)), y, ax.Clamped(100*float64(p.High)), y)
		d.Circle("dot "+r.class(p.arm), ax.At(100*float64(p.Mean)), y, 5,
			fmt.Sprintf("%s, %s: %s (%s to %s)", p.name, r.Verdict.Arms[p.arm].Name, m.Signed(float64(p.Mean)), m.Signed(float64(p.Low)), m.Signed(float64(p.High))))
	}
	return d.Done()
}
