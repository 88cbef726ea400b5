package page_test

import (
	"strings"
	"testing"

	"headrace/router/page"
)

func TestAxis(t *testing.T) {
	for name, tc := range map[string]struct {
		low, high float64
		ticks     int
		want      string
	}{
		"ones":      {0.2, 5.5, 6, "0 1 2 3 4 5 6"},
		"halves":    {1.3, 3.9, 6, "1.0 1.5 2.0 2.5 3.0 3.5 4.0"},
		"quarters":  {0, 1, 4, "0.00 0.25 0.50 0.75 1.00"},
		"one point": {2, 2, 2, "1 2 3"},
		"hundreds":  {0, 100, 5, "0 20 40 60 80 100"},
	} {
		a := page.NewAxis(tc.low, tc.high, tc.ticks, 0, 100)
		var got []string
		for _, v := range a.Ticks() {
			got = append(got, a.Label(v))
		}
		if s := strings.Join(got, " "); s != tc.want {
			t.Errorf("%s: ticks %s, want %s", name, s, tc.want)
		}
		if a.At(a.Low) != 0 || a.At(a.High) != 100 || a.Clamped(a.High+1) != 100 {
			t.Errorf("%s: ends at %g and %g", name, a.At(a.Low), a.At(a.High))
		}
	}
}

// TestDrawing: what was put in is escaped, and coordinates are the same wherever they were computed.
func TestDrawing(t *testing.T) {
	d := page.NewDrawing(`a "name" & <more>`, 100, 50)
	d.Line("grid", 0, -0.01, 99.96, 1)
	d.Rect("bar", 1, 2, -3, 4, "a < b")
	d.Text("small", "end", 5, 6, "<script>")
	d.Polyline("curve", [][2]float64{{1, 1}})
	d.Polyline("curve", [][2]float64{{1, 1}, {2.25, 3}})
	got := string(d.Done())
	want := `<svg viewBox="0 0 100 50" style="max-width:100px" role="img" aria-label="a &#34;name&#34; &amp; &lt;more&gt;">` +
		`<line class="grid" x1="0" y1="0" x2="100" y2="1"/><rect class="bar" x="1" y="2" width="0" height="4"><title>a &lt; b</title></rect>` +
		`<text class="small" text-anchor="end" x="5" y="6">&lt;script&gt;</text><polyline class="curve" points="1,1 2.2,3"/></svg>`
	if got != want {
		t.Errorf("drew\n%s\nwant\n%s", got, want)
	}
}
