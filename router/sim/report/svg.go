package report

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// picture is SVG, with its text escaped.
type picture string

// drawing is an SVG picture as it grows. Lengths are in its own units, which are CSS pixels where there is room. Colours
// come from the page, by class.
type drawing struct {
	b             strings.Builder
	width, height float64
	title         string
}

func newDrawing(title string, width, height float64) *drawing {
	return &drawing{width: width, height: height, title: title}
}

// done closes the picture.
func (d *drawing) done() picture {
	s := fmt.Sprintf(`<svg viewBox="0 0 %s %s" style="max-width:%spx" role="img" aria-label="%s">%s</svg>`,
		length(d.width), length(d.height), length(d.width), escaped(d.title), d.b.String())
	return picture(s)
}

func escaped(s string) string { return html.EscapeString(s) }

// length is a coordinate with a tenth of a pixel, which is the same wherever it was computed.
func length(v float64) string {
	s := fmt.Sprintf("%.1f", v)
	if s = strings.TrimSuffix(s, ".0"); s == "-0" {
		return "0"
	}
	return s
}

func (d *drawing) line(class string, x1, y1, x2, y2 float64) {
	fmt.Fprintf(&d.b, `<line class="%s" x1="%s" y1="%s" x2="%s" y2="%s"/>`, class, length(x1), length(y1), length(x2), length(y2))
}

func (d *drawing) rect(class string, x, y, w, h float64, tip string) {
	fmt.Fprintf(&d.b, `<rect class="%s" x="%s" y="%s" width="%s" height="%s">%s</rect>`, class, length(x), length(y), length(max(0, w)), length(h), tipOf(tip))
}

func (d *drawing) circle(class string, x, y, r float64, tip string) {
	fmt.Fprintf(&d.b, `<circle class="%s" cx="%s" cy="%s" r="%s">%s</circle>`, class, length(x), length(y), length(r), tipOf(tip))
}

func (d *drawing) polyline(class string, points [][2]float64) {
	if len(points) < 2 {
		return
	}
	var b strings.Builder
	for i, p := range points {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(length(p[0]) + "," + length(p[1]))
	}
	fmt.Fprintf(&d.b, `<polyline class="%s" points="%s"/>`, class, b.String())
}

// text writes s; anchor is start, middle or end.
func (d *drawing) text(class, anchor string, x, y float64, s string) {
	fmt.Fprintf(&d.b, `<text class="%s" text-anchor="%s" x="%s" y="%s">%s</text>`, class, anchor, length(x), length(y), escaped(s))
}

// upright writes s from below to above.
func (d *drawing) upright(class string, x, y float64, s string) {
	fmt.Fprintf(&d.b, `<text class="%s" text-anchor="middle" transform="translate(%s,%s) rotate(-90)">%s</text>`, class, length(x), length(y), escaped(s))
}

// tipOf is what a pointer shows.
func tipOf(s string) string {
	if s == "" {
		return ""
	}
	return "<title>" + escaped(s) + "</title>"
}

// axis maps figures to coordinates.
type axis struct {
	low, high float64 // figures
	from, to  float64 // their coordinates
	step      float64 // between ticks
}

// newAxis takes about ticks ticks, and makes both ends one.
func newAxis(low, high float64, ticks int, from, to float64) axis {
	if !(high > low) { //nolint:staticcheck // NaN
		low, high = low-0.5*max(1e-9, math.Abs(low)), high+0.5*max(1e-9, math.Abs(high))
	}
	step := nice((high - low) / float64(ticks))
	return axis{low: math.Floor(low/step+1e-9) * step, high: math.Ceil(high/step-1e-9) * step, from: from, to: to, step: step}
}

// nice is the next of 1, 2, 2.5, 5 and 10 times a power of ten.
func nice(v float64) float64 {
	p := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 2.5, 5, 10} {
		if v <= m*p*(1+1e-9) {
			return m * p
		}
	}
	return 10 * p
}

func (a axis) at(v float64) float64 { return a.from + (v-a.low)/(a.high-a.low)*(a.to-a.from) }

// clamped is at, kept within the axis.
func (a axis) clamped(v float64) float64 { return a.at(min(a.high, max(a.low, v))) }

func (a axis) ticks() (vs []float64) {
	for i := 0; ; i++ {
		v := a.low + float64(i)*a.step
		if v > a.high+a.step/2 {
			return vs
		}
		vs = append(vs, v)
	}
}

// label is a tick's figure, with as many digits as the step needs.
func (a axis) label(v float64) string {
	digits := max(0, int(math.Ceil(-math.Log10(a.step)-1e-9)))
	if s := a.step * math.Pow(10, float64(digits)); math.Abs(s-math.Round(s)) > 1e-6 { // 2.5
		digits++
	}
	return fmt.Sprintf("%.*f", digits, v)
}

// box is where a label stands.
type box struct{ x1, y1, x2, y2 float64 }

func (b box) meets(c box) bool { return b.x1 < c.x2 && c.x1 < b.x2 && b.y1 < c.y2 && c.y1 < b.y2 }

const (
	charWidth  = 6.7 // of the page's small type, on average
	lineHeight = 13.0
)
