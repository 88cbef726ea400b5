package page

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// Picture is SVG, with its text escaped.
type Picture string

// Drawing is an SVG picture as it grows. Lengths are in its own units, which are CSS pixels where there is room. Colours
// come from the page, by class.
type Drawing struct {
	b             strings.Builder
	width, height float64
	title         string
}

// NewDrawing begins a picture of a width and height; title is what it is called to who cannot see it.
func NewDrawing(title string, width, height float64) *Drawing {
	return &Drawing{width: width, height: height, title: title}
}

// Done closes the picture.
func (d *Drawing) Done() Picture {
	s := fmt.Sprintf(`<svg viewBox="0 0 %s %s" style="max-width:%spx" role="img" aria-label="%s">%s</svg>`,
		length(d.width), length(d.height), length(d.width), escaped(d.title), d.b.String())
	return Picture(s)
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

// Line draws a line.
func (d *Drawing) Line(class string, x1, y1, x2, y2 float64) {
	fmt.Fprintf(&d.b, `<line class="%s" x1="%s" y1="%s" x2="%s" y2="%s"/>`, class, length(x1), length(y1), length(x2), length(y2))
}

// Rect draws a rectangle from its upper left corner; tip is what a pointer shows.
func (d *Drawing) Rect(class string, x, y, w, h float64, tip string) {
	fmt.Fprintf(&d.b, `<rect class="%s" x="%s" y="%s" width="%s" height="%s">%s</rect>`, class, length(x), length(y), length(max(0, w)), length(h), tipOf(tip))
}

// Circle draws a circle; tip is what a pointer shows.
func (d *Drawing) Circle(class string, x, y, r float64, tip string) {
	fmt.Fprintf(&d.b, `<circle class="%s" cx="%s" cy="%s" r="%s">%s</circle>`, class, length(x), length(y), length(r), tipOf(tip))
}

// Polyline draws a line through two points or more.
func (d *Drawing) Polyline(class string, points [][2]float64) {
	if len(points) < 2 {
		return
	}
	fmt.Fprintf(&d.b, `<polyline class="%s" points="%s"/>`, class, joined(points))
}

// Polygon fills what is within the points.
func (d *Drawing) Polygon(class string, points [][2]float64) {
	if len(points) < 3 {
		return
	}
	fmt.Fprintf(&d.b, `<polygon class="%s" points="%s"/>`, class, joined(points))
}

func joined(points [][2]float64) string {
	var b strings.Builder
	for i, p := range points {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(length(p[0]) + "," + length(p[1]))
	}
	return b.String()
}

// Text writes s; anchor is start, middle or end.
func (d *Drawing) Text(class, anchor string, x, y float64, s string) {
	fmt.Fprintf(&d.b, `<text class="%s" text-anchor="%s" x="%s" y="%s">%s</text>`, class, anchor, length(x), length(y), escaped(s))
}

// Upright writes s from below to above.
func (d *Drawing) Upright(class string, x, y float64, s string) {
	fmt.Fprintf(&d.b, `<text class="%s" text-anchor="middle" transform="translate(%s,%s) rotate(-90)">%s</text>`, class, length(x), length(y), escaped(s))
}

// Grid draws both axes, with what they are of.
func (d *Drawing) Grid(ax, ay Axis, x, y string) {
	for _, v := range ax.Ticks() {
		d.Line("grid", ax.At(v), ay.From, ax.At(v), ay.To)
		d.Text("small", "middle", ax.At(v), ay.From+17, ax.Label(v))
	}
	for _, v := range ay.Ticks() {
		d.Line("grid", ax.From, ay.At(v), ax.To, ay.At(v))
		d.Text("small", "end", ax.From-7, ay.At(v)+4, ay.Label(v))
	}
	d.Text("small", "middle", (ax.From+ax.To)/2, ay.From+36, x)
	d.Upright("small", 14, (ay.From+ay.To)/2, y)
}

// tipOf is what a pointer shows.
func tipOf(s string) string {
	if s == "" {
		return ""
	}
	return "<title>" + escaped(s) + "</title>"
}

// Axis maps figures to coordinates.
type Axis struct {
	Low, High float64 // figures
	From, To  float64 // their coordinates
	Step      float64 // between ticks
}

// NewAxis takes about ticks ticks, and makes both ends one.
func NewAxis(low, high float64, ticks int, from, to float64) Axis {
	if !(high > low) { //nolint:staticcheck // NaN
		low, high = low-0.5*max(1e-9, math.Abs(low)), high+0.5*max(1e-9, math.Abs(high))
	}
	step := nice((high - low) / float64(ticks))
	return Axis{Low: math.Floor(low/step+1e-9) * step, High: math.Ceil(high/step-1e-9) * step, From: from, To: to, Step: step}
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

// At is the coordinate of a figure.
func (a Axis) At(v float64) float64 { return a.From + (v-a.Low)/(a.High-a.Low)*(a.To-a.From) }

// Clamped is At, kept within the Axis.
func (a Axis) Clamped(v float64) float64 { return a.At(min(a.High, max(a.Low, v))) }

// Ticks are the figures that have a line of their own.
func (a Axis) Ticks() (vs []float64) {
	for i := 0; ; i++ {
		v := a.Low + float64(i)*a.Step
		if v > a.High+a.Step/2 {
			return vs
		}
		vs = append(vs, v)
	}
}

// Label is a tick's figure, with as many digits as the step needs.
func (a Axis) Label(v float64) string {
	digits := max(0, int(math.Ceil(-math.Log10(a.Step)-1e-9)))
	if s := a.Step * math.Pow(10, float64(digits)); math.Abs(s-math.Round(s)) > 1e-6 { // 2.5
		digits++
	}
	return fmt.Sprintf("%.*f", digits, v)
}

// Box is where a label stands.
type Box struct{ X1, Y1, X2, Y2 float64 }

// Meets tells whether two of them overlap.
func (b Box) Meets(c Box) bool { return b.X1 < c.X2 && c.X1 < b.X2 && b.Y1 < c.Y2 && c.Y1 < b.Y2 }

// Sizes of the page's small type, on average.
const (
	CharWidth  = 6.7
	LineHeight = 13.0
)
