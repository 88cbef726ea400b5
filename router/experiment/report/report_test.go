package report_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"headrace/router/experiment/report"
	"headrace/router/experiment/stats"
	"headrace/router/experiment/trial"
)

var (
	update = flag.Bool("update", false, "write golden files")
	out    = flag.String("report.out", "", "folder to write the pages into, to look at them")
)

var began = time.Date(2026, 3, 2, 8, 0, 0, 0, time.UTC)

// told is the report of a made-up experiment, a request every five seconds.
func told(t *testing.T, tc trial.Trial, seed uint64) *report.Report {
	t.Helper()
	h := report.NewHistory(time.Minute)
	r := &report.Report{
		Name: "awq-canary", Model: "llama-70b", AssignBy: "user", State: "running", Started: began,
		Arms:  []report.Arm{{Name: "control", What: `served "meta-llama/*"`}, {Name: "canary", What: `served "*-awq" <4 bit>`}},
		Kinds: map[uint32]string{1: "A100 80GB"}, Hosts: map[uint32]string{},
		Command: "headrace experiment report awq-canary --html report.html", Version: "v0.3.0",
	}
	for i := uint32(1); i < 12; i++ {
		r.Hosts[i] = fmt.Sprintf("vast:4873892%d", i)
	}
	last := -1.0
	tc.Watch = func(n int, e *stats.Experiment) {
		r.At = began.Add(time.Duration(n) * 5 * time.Second)
		v := e.Verdict()
		if w := v.Arms[1].Weight; w != last {
			what, why := "advanced", "10 minutes and 200 units have passed, and nothing speaks against the next step"
			if last < 0 {
				what, why = "started", "it is in the config, and its time has come"
			}
			last = w
			r.Decisions = append(r.Decisions, report.Decision{
				At: r.At, By: "steps", What: what, Arm: "canary", Weights: []float64{1 - w, w},
				Figure: stats.Figure(math.NaN()), Bound: stats.Figure(math.NaN()), Why: why,
			})
		}
		h.Add(r.At, &v, false)
		r.Verdict = v
	}
	res := trial.Run(&tc, seed, true)
	a := r.Verdict.Arms[1]
	r.Ended = r.At
	h.Add(r.At, &r.Verdict, true)
	r.History = h.Points
	switch res.Action {
	case stats.Stop:
		r.State = "rolled_back"
		r.Decisions = append(r.Decisions, report.Decision{At: r.At, By: "guardrail", What: "rolled back", Arm: "canary", Weights: []float64{1, 0}, Metric: "error_rate", Why: a.Reason})
	case stats.Promote:
		r.State = "promoted"
		r.Decisions = append(r.Decisions, report.Decision{At: r.At, By: "guardrail", What: "promoted", Arm: "canary", Weights: []float64{0, 1}, Why: a.Reason})
		r.Advice = "to make it last, move the hosts of canary into models.llama-70b.serves"
	case stats.Hold, stats.Advance:
		r.State = "inconclusive"
	}
	return r
}

func ramp(n int) []trial.Step {
	return []trial.Step{{After: 0, Weight: 0.05}, {After: n / 6, Weight: 0.25}, {After: n / 3, Weight: 0.5}}
}

// stories are an arm that is fine, one that fails, and one that was given the slowest hosts.
func stories(t *testing.T) map[string]*report.Report {
	t.Helper()
	wide := []stats.Guardrail{{Metric: stats.Failed, Margin: 0.01, Tolerate: 0.01, Share: 3}, {Metric: stats.Missed, Margin: 0.03}, {Metric: stats.TTFT, Margin: 0.2}, {Metric: stats.TPS, Margin: 0.15}, {Metric: stats.USD, Margin: 0.1}}
	return map[string]*report.Report{
		"good":  told(t, trial.Trial{Requests: 24000, Users: 5000, Steps: ramp(24000), Hosts: [2]int{6, 0}, HostSD: 0.1, TTFT: 0.95, Every: 64, Design: stats.Design{Guardrails: wide}}, 6),
		"bad":   told(t, trial.Trial{Requests: 24000, Users: 5000, Steps: ramp(24000), Hosts: [2]int{6, 3}, HostSD: 0.1, Failures: 0.06, Every: 16}, 4),
		"hosts": told(t, trial.Trial{Requests: 12000, Users: 3000, Steps: ramp(12000), Hosts: [2]int{6, 2}, HostSD: 0.15, Slowest: true, Every: 64, Design: stats.Design{Guardrails: wide[2:]}}, 3),
	}
}

func TestPages(t *testing.T) {
	for name, r := range stories(t) {
		t.Run(name, func(t *testing.T) {
			var html, text bytes.Buffer
			if err := report.WriteHTML(&html, r); err != nil {
				t.Fatal(err)
			}
			if err := report.WriteText(&text, r); err != nil {
				t.Fatal(err)
			}
			if *out != "" {
				for ext, b := range map[string][]byte{".html": html.Bytes(), ".txt": text.Bytes()} {
					if err := os.WriteFile(filepath.Join(*out, name+ext), b, 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			wellFormed(t, html.String())
			for _, what := range []string{html.String(), text.String()} {
				for _, odd := range []string{"NaN", "Inf", "%!", "map[", "<nil>"} {
					if strings.Contains(what, odd) {
						t.Errorf("%q is in it: %.200s", odd, what[strings.Index(what, odd)-min(100, strings.Index(what, odd)):])
					}
				}
			}
			if s := html.String(); strings.Contains(s, "<4 bit>") || !strings.Contains(s, "&lt;4 bit&gt;") {
				t.Error("what an operator wrote is not escaped")
			}
			if m := regexp.MustCompile(`(?i)(src|href)\s*=|@import|url\(|https?://`).FindString(html.String()); m != "" {
				t.Errorf("the page needs something else: %s", m)
			}
			if n := strings.Count(html.String(), "<svg"); n < 9 {
				t.Errorf("%d pictures: want shares, units, five metrics, hosts and money", n)
			}
			want := map[string]string{"good": "promoted", "bad": "error_rate", "hosts": "hosts differ: no verdict on the model"}[name]
			for what, s := range map[string]string{"page": html.String(), "text": text.String()} {
				if !strings.Contains(strings.ToLower(s), want) {
					t.Errorf("the %s does not say %q", what, want)
				}
			}
			if name != "bad" || runtime.GOARCH != "amd64" {
				return // one golden page is enough, and another processor rounds otherwise
			}
			for file, got := range map[string][]byte{"bad.golden.html": html.Bytes(), "bad.golden.txt": text.Bytes()} {
				file = filepath.Join("testdata", file)
				if *update {
					if err := os.WriteFile(file, got, 0o644); err != nil { //nolint:gosec // a golden file
						t.Fatal(err)
					}
				}
				golden, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(golden, got) {
					t.Errorf("%s differs; -update writes it anew", file)
				}
			}
		})
	}
}

// wellFormed reads a page as XML, which it is but for its doctype and empty elements.
func wellFormed(t *testing.T, s string) {
	t.Helper()
	s = strings.TrimPrefix(s, "<!doctype html>\n")
	s = regexp.MustCompile(`<(meta|br)\b[^>]*>`).ReplaceAllString(s, "")
	d := xml.NewDecoder(strings.NewReader(s))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatalf("not well-formed: %v", err)
		}
	}
}

// TestEmpty: a report of an experiment that has not begun is a report.
func TestEmpty(t *testing.T) {
	e, err := stats.New(stats.Design{Arms: []string{"a", "b", "c"}, Weights: []float64{1, 0, 0}})
	if err != nil {
		t.Fatal(err)
	}
	r := &report.Report{Name: "x", Model: "m", AssignBy: "request", State: "scheduled", At: began, Verdict: e.Verdict()}
	for _, write := range []func(io.Writer, *report.Report) error{report.WriteHTML, report.WriteText} {
		var b bytes.Buffer
		if err := write(&b, r); err != nil {
			t.Fatal(err)
		}
		if s := b.String(); strings.Contains(s, "NaN") || strings.Contains(s, "%!") || !strings.Contains(s, "too few") {
			t.Errorf("%s", s)
		}
	}
}

func TestReportJSON(t *testing.T) {
	r := told(t, trial.Trial{Requests: 1000, Steps: ramp(1000), Hosts: [2]int{2, 0}}, 1)
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var again report.Report
	if err := json.Unmarshal(b, &again); err != nil {
		t.Fatal(err)
	}
	var one, two bytes.Buffer
	if err := errors.Join(report.WriteHTML(&one, r), report.WriteHTML(&two, &again)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("the page of a report that was written as JSON and read is another one")
	}
}

// TestHistory keeps few points of many, evenly over the time, the first and the latest among them.
func TestHistory(t *testing.T) {
	e, err := stats.New(stats.Design{Arms: []string{"a", "b"}, Weights: []float64{0.5, 0.5}})
	if err != nil {
		t.Fatal(err)
	}
	v := e.Verdict()
	h := report.NewHistory(time.Second)
	const n = 100000
	for i := range n {
		h.Add(began.Add(time.Duration(i)*time.Second), &v, false)
		if len(h.Points) > 160 {
			t.Fatalf("%d points after %d seconds", len(h.Points), i)
		}
	}
	if len(h.Points) < 80 || !h.Points[0].At.Equal(began) {
		t.Errorf("%d points from %v: want 80 to 160 from the beginning", len(h.Points), h.Points[0].At)
	}
	end := began.Add(n * time.Second)
	h.Add(end, &v, true)
	if last := h.Points[len(h.Points)-1]; !last.At.Equal(end) {
		t.Errorf("the last point is of %v: want what was forced", last.At)
	}
	for i := 1; i < len(h.Points)-1; i++ {
		if d := h.Points[i].At.Sub(h.Points[i-1].At); d < h.Every/2 || d > 2*h.Every {
			t.Errorf("points %d and %d are %v apart, want about %v", i-1, i, d, h.Every)
		}
	}
}

// TestHistorySize: the past of as many arms as there may be fits into a document of the store.
func TestHistorySize(t *testing.T) {
	d := stats.Design{}
	for i := range stats.MaxArms {
		d.Arms, d.Weights = append(d.Arms, fmt.Sprintf("arm %d", i)), append(d.Weights, 1.0/stats.MaxArms)
	}
	e, err := stats.New(d)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 1))
	for range 20000 {
		o := stats.Unknown(0, r.IntN(stats.MaxArms))
		o.TTFT, o.TPS, o.USDPerMtok, o.Score = math.Exp(r.NormFloat64()), math.Exp(r.NormFloat64()), math.Exp(r.NormFloat64()), r.NormFloat64()
		o.Failed, o.Missed = r.IntN(10) == 0, r.IntN(5) == 0
		e.Record(&o)
	}
	v := e.Verdict()
	h := report.NewHistory(time.Second)
	for i := range 1000 {
		h.Add(began.Add(time.Duration(i)*time.Second), &v, false)
	}
	b, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 500_000 || len(h.Points) < 16 {
		t.Errorf("%d points in %d bytes: want 16 or more in half a megabyte", len(h.Points), len(b))
	}
}

// TestGap: where nobody looked for long, nothing is drawn.
func TestGap(t *testing.T) {
	r := told(t, trial.Trial{Requests: 2000, Steps: ramp(2000), Hosts: [2]int{2, 0}}, 1)
	count := func() (curves int) {
		var b bytes.Buffer
		if err := report.WriteHTML(&b, r); err != nil {
			t.Fatal(err)
		}
		return strings.Count(b.String(), `<polyline class="curve arm1"`)
	}
	whole := count()
	for i := len(r.History) / 2; i < len(r.History); i++ {
		r.History[i].At = r.History[i].At.Add(3 * time.Hour)
	}
	if parted := count(); whole == 0 || parted <= whole {
		t.Errorf("%d curves, %d with a gap: want each in two", whole, parted)
	}
}
