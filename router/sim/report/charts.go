package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"headrace/router/page"
	"headrace/router/sim"
)

// classOf is a policy's colour on the page.
func classOf(policy string) string {
	switch {
	case policy == sim.Brain:
		return "brain"
	case policy == sim.Oracle:
		return "oracle"
	case !Simple(policy):
		return "own"
	}
	return "simple"
}

func known(f sim.Figure) bool { return !math.IsNaN(float64(f)) && !math.IsInf(float64(f), 0) }

// hopeless is the share of kept SLOs below which a policy is named below the chart rather than drawn.
const hopeless = 0.5

// scatter draws what each policy costs against how often it keeps the SLO. The second return names those left out.
func scatter(cells []sim.Cell) (pic page.Picture, leftOut string) {
	const width, height, left, right, top, bottom = 760.0, 440.0, 62.0, 22.0, 14.0, 46.0
	var shown []*sim.Cell
	var out []string
	lowX, highX, lowY := math.Inf(1), math.Inf(-1), 1.0
	for i := range cells {
		c := &cells[i]
		x, y := c.Mean.USDPerMTok.Mean, c.Mean.SLO.Mean
		if !known(x) || !known(y) || float64(y) < hopeless {
			out = append(out, fmt.Sprintf("%s (%s %% at $%s)", c.Policy, figure(y, 100, 0), figure(x, 1, 2)))
			continue
		}
		shown = append(shown, c)
		lowX, highX, lowY = min(lowX, float64(x)), max(highX, float64(x)), min(lowY, float64(y))
	}
	leftOut = strings.Join(out, ", ")
	if len(shown) == 0 {
		return "", leftOut
	}
	margin := max(0.03*highX, 0.06*(highX-lowX))
	ax := page.NewAxis(max(0, lowX-margin), highX+margin, 7, left, width-right)
	ay := page.NewAxis(100*max(0, lowY-0.02), 100, 6, height-bottom, top)
	d := page.NewDrawing("dollars per million tokens against SLO attainment, by policy", width, height)
	d.Grid(ax, ay, "$ per million output tokens delivered (less is better)", "requests that kept the SLO, %")
	var taken []page.Box // by dots and words
	if asked := 100 * cells[0].SLO.Confidence; asked > ay.Low && asked < ay.High {
		words := fmt.Sprintf("each promise is asked for with %.3g %%", asked)
		d.Line("asked", left, ay.At(asked), width-right, ay.At(asked))
		d.Text("small", "end", width-right-4, ay.At(asked)-5, words)
		taken = append(taken, page.Box{X1: width - right - 4 - page.CharWidth*float64(len(words)), Y1: ay.At(asked) - 16, X2: width - right, Y2: ay.At(asked)})
	}
	// Headrace and the oracle come last, on top, but their labels are placed first.
	slices.SortStableFunc(shown, func(a, b *sim.Cell) int { return cmp.Compare(rank(a.Policy), rank(b.Policy)) })
	for _, c := range shown {
		x, y := ax.At(float64(c.Mean.USDPerMTok.Mean)), ay.At(100*float64(c.Mean.SLO.Mean))
		taken = append(taken, page.Box{X1: x - 5, Y1: y - 5, X2: x + 5, Y2: y + 5})
	}
	type label struct {
		class, anchor string
		x, y          float64
		s             string
	}
	var labels []label
	for _, c := range slices.Backward(shown) {
		x, y := ax.At(float64(c.Mean.USDPerMTok.Mean)), ay.At(100*float64(c.Mean.SLO.Mean))
		w := page.CharWidth * float64(len(c.Policy))
		for _, at := range []struct {
			anchor string
			dx, dy float64
		}{{"start", 9, 4}, {"end", -9, 4}, {"middle", 0, -9}, {"middle", 0, 17}, {"start", 8, -7}, {"start", 8, 15}, {"end", -8, -7}, {"end", -8, 15}} {
			b := page.Box{X1: x + at.dx, Y1: y + at.dy - 10, X2: x + at.dx + w, Y2: y + at.dy + 3}
			switch at.anchor {
			case "end":
				b.X1, b.X2 = b.X1-w, b.X2-w
			case "middle":
				b.X1, b.X2 = b.X1-w/2, b.X2-w/2
			}
			if b.X1 < left || b.X2 > width-2 || b.Y1 < 0 || b.Y2 > height-bottom || slices.ContainsFunc(taken, b.Meets) {
				continue
			}
			taken = append(taken, b)
			labels = append(labels, label{"small label " + classOf(c.Policy), at.anchor, x + at.dx, y + at.dy, c.Policy})
			break
		}
	}
	for _, c := range shown {
		m := &c.Mean
		x, y := ax.At(float64(m.USDPerMTok.Mean)), ay.At(100*float64(m.SLO.Mean))
		if known(m.USDPerMTok.Low) {
			d.Line("spread "+classOf(c.Policy), ax.Clamped(float64(m.USDPerMTok.Low)), y, ax.Clamped(float64(m.USDPerMTok.High)), y)
		}
		if known(m.SLO.Low) {
			d.Line("spread "+classOf(c.Policy), x, ay.Clamped(100*float64(m.SLO.Low)), x, ay.Clamped(100*float64(m.SLO.High)))
		}
	}
	for _, c := range shown {
		m := &c.Mean
		d.Circle("dot "+classOf(c.Policy), ax.At(float64(m.USDPerMTok.Mean)), ay.At(100*float64(m.SLO.Mean)), 5.5,
			fmt.Sprintf("%s: $%s per million tokens, %s %% kept the SLO, %s %% failed", c.Policy, plusMinus(m.USDPerMTok, 1, 3), plusMinus(m.SLO, 100, 1), figure(m.Failed.Mean, 100, 3)))
	}
	for _, l := range labels {
		d.Text(l.class, l.anchor, l.x, l.y, l.s)
	}
	return d.Done(), leftOut
}

func rank(policy string) int {
	return map[string]int{"simple": 0, "own": 1, "oracle": 2, "brain": 3}[classOf(policy)]
}

// load is what a host did under a policy, as means over seeds.
type load struct{ busy, inFlight, usd, perMTok float64 }

func loadOf(c *sim.Cell, host int) load {
	var l load
	var n, held, tokens float64
	for k := range c.Runs {
		h := &c.Runs[k].Hosts[host]
		l.usd += h.USD
		tokens += h.Tokens
		if known(h.Busy) {
			l.busy += float64(h.Busy)
		}
		if known(h.InFlight) {
			l.inFlight += float64(h.InFlight)
			held++
		}
		n++
	}
	l.usd, l.busy, l.inFlight, l.perMTok = l.usd/n, l.busy/n, l.inFlight/max(1, held), 1e6*l.usd*n/tokens
	return l
}

// utilisation draws how busy each host is, under Headrace and with perfect information.
func utilisation(brain, oracle *sim.Cell) page.Picture {
	const width, left, barWidth, row, top = 760.0, 132.0, 310.0, 26.0, 18.0
	hosts := brain.Runs[0].Hosts
	height := top + row*float64(len(hosts)) + 34
	d := page.NewDrawing("how busy each host is", width, height)
	ax := page.NewAxis(0, 100, 4, left, left+barWidth)
	for _, v := range ax.Ticks() {
		d.Line("grid", ax.At(v), top-4, ax.At(v), height-34)
		d.Text("small", "middle", ax.At(v), height-18, ax.Label(v))
	}
	d.Text("small", "middle", left+barWidth/2, height-3, "% of the time with any work")
	d.Text("small", "start", left+barWidth+14, top-6, "in flight while busy · $ · $ per million tokens")
	for i := range hosts {
		l := loadOf(brain, i)
		y := top + row*float64(i)
		d.Text("small", "end", left-8, y+row/2+4, hosts[i].Name)
		d.Rect("bar brain", left, y+5, ax.At(100*l.busy)-left, row-10, fmt.Sprintf("%s under %s: busy %.0f %% of the time", hosts[i].Name, brain.Policy, 100*l.busy))
		if oracle != nil {
			x := ax.At(100 * loadOf(oracle, i).busy)
			d.Line("mark oracle", x, y+2, x, y+row-2)
		}
		words := fmt.Sprintf("%.1f · $%.2f · $%.2f", l.inFlight, l.usd, l.perMTok)
		if math.IsInf(l.perMTok, 0) || math.IsNaN(l.perMTok) {
			words = fmt.Sprintf("$%.2f, nothing made", l.usd)
		}
		d.Text("small", "start", left+barWidth+14, y+row/2+4, words)
	}
	return d.Done()
}

// timeline draws what befell the hosts of one run.
func timeline(r *sim.Result, s *sim.Scenario) page.Picture {
	if len(r.Moments) == 0 && (s == nil || len(s.Events) == 0) {
		return ""
	}
	const width, left, right, row, top = 760.0, 132.0, 14.0, 20.0, 22.0
	hours := 0.0
	for _, m := range r.Moments {
		hours = max(hours, m.At/3600)
	}
	if s != nil {
		hours = s.Hours
	}
	names := []string{}
	for _, m := range r.Moments {
		if !slices.Contains(names, m.Host) {
			names = append(names, m.Host)
		}
	}
	order := func(name string) int {
		return slices.IndexFunc(r.Hosts, func(h sim.HostResult) bool { return h.Name == name })
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(order(a), order(b)) })
	height := top + row*float64(len(names)) + 34
	d := page.NewDrawing("preemptions and other faults over time", width, height)
	ax := page.NewAxis(0, hours, 8, left, width-right)
	ax.High = hours // the axis ends with the run, whatever the ticks
	for _, v := range ax.Ticks() {
		if v <= hours*1.0001 {
			d.Line("grid", ax.At(v), top-4, ax.At(v), height-34)
			d.Text("small", "middle", ax.At(v), height-18, ax.Label(v))
		}
	}
	d.Text("small", "middle", (left+width-right)/2, height-3, "hours since the start")
	for i, name := range names {
		y := top + row*float64(i)
		d.Text("small", "end", left-8, y+row/2+4, name)
		d.Rect("up", left, y+row/2-2, ax.At(hours)-left, 4, "")
		gone := math.NaN()
		down := func(to float64, open bool) {
			words := fmt.Sprintf("%s was taken away at %s for %s", name, clock(gone), span(to-gone))
			if open {
				words = fmt.Sprintf("%s was taken away at %s", name, clock(gone))
			}
			d.Rect("down", ax.At(gone/3600), y+3, max(1.5, ax.At(to/3600)-ax.At(gone/3600)), row-6, words)
		}
		for _, m := range r.Moments {
			if m.Host != name {
				continue
			}
			switch m.What {
			case "preempted":
				gone = m.At
			case "back":
				if !math.IsNaN(gone) {
					down(m.At, false)
				}
				gone = math.NaN()
			default:
				d.Rect("fault", ax.At(m.At/3600)-1.5, y+3, 3, row-6, fmt.Sprintf("%s: %s at %s", name, m.What, clock(m.At)))
			}
		}
		if !math.IsNaN(gone) {
			down(hours*3600, true)
		}
	}
	if s != nil {
		for _, e := range s.Events {
			if e.What == sim.PriceTimes {
				continue // is told of each host
			}
			x := ax.At(e.At / 3600)
			d.Rect("event", x, top-4, max(2, ax.At(min(hours, (e.At+e.For)/3600))-x), height-30-top, fmt.Sprintf("%s from %s for %s", eventWords(e.What), clock(e.At), span(e.For)))
			anchor := "start"
			if x > width*0.7 {
				anchor = "end"
			}
			d.Text("small", anchor, x, top-8, eventWords(e.What))
		}
	}
	return d.Done()
}

func eventWords(w sim.What) string {
	switch w {
	case sim.ControlDown:
		return "control planes are down"
	case sim.SharingCut:
		return "gateways hear nothing of each other"
	case sim.ReplicaKilled:
		return "a gateway is killed"
	case sim.PriceTimes:
		return "prices change"
	}
	return string(w)
}

// clock is a time since the start, span how long something lasted; both in seconds.
func clock(s float64) string { return fmt.Sprintf("%d:%02d h", int(s)/3600, int(s)/60%60) }

func span(s float64) string {
	if s < 60 {
		return fmt.Sprintf("%.0f s", s)
	}
	return fmt.Sprintf("%.0f min", s/60)
}

// calibration draws how often promises were kept against how often they were expected to be.
func calibration(c *sim.Cell) page.Picture {
	const side, left, top, bottom = 330.0, 62.0, 12.0, 46.0
	const width, height = left + side + 230, top + side + bottom
	ax := page.NewAxis(0, 100, 5, left, left+side)
	ay := page.NewAxis(0, 100, 5, top+side, top)
	d := page.NewDrawing("promises kept against promises expected to be kept", width, height)
	d.Grid(ax, ay, "expected to be kept, %", "kept, %")
	d.Line("ideal", ax.At(0), ay.At(0), ax.At(100), ay.At(100))
	for i, series := range []struct {
		class, words string
		of           func(r *sim.Result) *sim.Calibration
	}{
		{"ttft", "first token in time", func(r *sim.Result) *sim.Calibration { return &r.TTFT }},
		{"tps", "stream fast enough", func(r *sim.Result) *sim.Calibration { return &r.TPS }},
	} {
		var points [][2]float64
		all := 0
		bins := pooled(c, series.of)
		for _, b := range bins {
			all += b.N
		}
		for _, b := range bins {
			if b.N < fewestInBin {
				continue
			}
			x, y := ax.At(100*float64(b.Expected)), ay.At(100*float64(b.Realised))
			points = append(points, [2]float64{x, y})
			d.Circle("dot "+series.class, x, y, 3+7*math.Sqrt(float64(b.N)/float64(max(1, all))),
				fmt.Sprintf("%s: expected %.1f %%, came %.1f %% (%d predictions)", series.words, 100*float64(b.Expected), 100*float64(b.Realised), b.N))
		}
		d.Polyline("curve "+series.class, points)
		y := top + 14 + 20*float64(i)
		d.Circle("dot "+series.class, left+side+22, y-4, 5, "")
		d.Text("small", "start", left+side+34, y, series.words)
	}
	for i, s := range []string{"On the dashed line what was", "expected came true; above it", "more did. Larger dots are more", "predictions."} {
		d.Text("small", "start", left+side+16, top+68+page.LineHeight*1.2*float64(i), s)
	}
	return d.Done()
}

// fewestInBin is how many predictions a dot needs.
const fewestInBin = 30

// pooled sums a calibration's bins over seeds.
func pooled(c *sim.Cell, of func(r *sim.Result) *sim.Calibration) []sim.Bin {
	var bins []sim.Bin
	for k := range c.Runs {
		for i, b := range of(&c.Runs[k]).Bins {
			if i == len(bins) {
				bins = append(bins, sim.Bin{From: b.From})
			}
			if b.N > 0 {
				p := &bins[i]
				n, m := float64(p.N), float64(b.N)
				p.Expected = sim.Figure((n*float64(p.Expected) + m*float64(b.Expected)) / (n + m))
				p.Realised = sim.Figure((n*float64(p.Realised) + m*float64(b.Realised)) / (n + m))
				p.N += b.N
			}
		}
	}
	return bins
}

// figure shows a number, or a dash where it is unknown.
func figure(f sim.Figure, times float64, digits int) string {
	if !known(f) {
		return "–"
	}
	return fmt.Sprintf("%.*f", digits, float64(f)*times)
}

// plusMinus shows a mean with half its confidence interval.
func plusMinus(m sim.Mean, times float64, digits int) string {
	s := figure(m.Mean, times, digits)
	if known(m.High) && known(m.Mean) {
		s += fmt.Sprintf(" ±%.*f", digits, float64(m.High-m.Mean)*times)
	}
	return s
}
