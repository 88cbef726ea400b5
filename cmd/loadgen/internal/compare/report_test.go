package compare

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"headrace/cmd/loadgen/internal/load"
)

// rows makes samples of one figure by round.
func rows(set func(*load.Row, float64), v ...float64) []sample {
	out := make([]sample, len(v))
	for i, x := range v {
		out[i].row = load.Row{Target: "it", Requests: 1}
		set(&out[i].row, x)
	}
	return out
}

func setCPU(w *load.Row, x float64) { w.CPURequest = x }
func setRPS(w *load.Row, x float64) { w.RPS = x }
func setP50(w *load.Row, x float64) { w.P50 = x }

func find(t *testing.T, id string) measure {
	t.Helper()
	for _, m := range measures() {
		if m.id == id {
			return m
		}
	}
	t.Fatalf("no measure %s", id)
	return measure{}
}

func TestLine(t *testing.T) {
	for name, tc := range map[string]struct {
		measure string
		by      map[string][]sample
		value   float64
		ratio   float64
		verdict Verdict
	}{
		"ratios are taken within rounds": {
			"cpu_request", map[string][]sample{"nginx": rows(setCPU, 10, 40, 10), "gw": rows(setCPU, 15, 60, 13)}, 15, 1.5, Must,
		},
		"stretch is kept": {
			"cpu_request", map[string][]sample{"nginx": rows(setCPU, 10), "gw": rows(setCPU, 13)}, 13, 1.3, Stretch,
		},
		"just over the bound": {
			"cpu_request", map[string][]sample{"nginx": rows(setCPU, 10), "gw": rows(setCPU, 16.1)}, 16.1, 1.61, Missed,
		},
		"more is better, too little": {
			"requests_per_second", map[string][]sample{"nginx": rows(setRPS, 100), "gw": rows(setRPS, 89)}, 89, 0.89, Missed,
		},
		"more is better, enough": {
			"requests_per_second", map[string][]sample{"nginx": rows(setRPS, 100), "gw": rows(setRPS, 90)}, 90, 0.9, Must,
		},
		"more is better, plenty": {
			"requests_per_second", map[string][]sample{"nginx": rows(setRPS, 100), "gw": rows(setRPS, 300)}, 300, 3, Stretch,
		},
		"added: direct comes off, medians are divided": {
			"added_p50",
			map[string][]sample{
				"direct": rows(setP50, 50, 80, 50), "nginx": rows(setP50, 90, 120, 100), "gw": rows(setP50, 110, 140, 110),
			},
			60, 1.5, Must,
		},
		"nothing was read": {
			"cpu_request", map[string][]sample{"nginx": rows(setCPU, 10), "gw": rows(setCPU, 0)}, math.NaN(), math.NaN(), Unjudged,
		},
		"no nginx": {
			"cpu_request", map[string][]sample{"gw": rows(setCPU, 10)}, 10, math.NaN(), Unjudged,
		},
		"wrong answers": {
			"cpu_request", map[string][]sample{"nginx": rows(setCPU, 10), "gw": rows(func(w *load.Row, x float64) { w.CPURequest, w.Errors = x, 1 }, 10)}, 10, 1, Invalid,
		},
		"wrong answers of nginx": {
			"cpu_request", map[string][]sample{"nginx": rows(func(w *load.Row, x float64) { w.CPURequest, w.Errors = x, 1 }, 10), "gw": rows(setCPU, 10)}, 10, 1, Invalid,
		},
		"no answers": {
			"cpu_request", map[string][]sample{"nginx": rows(setCPU, 10), "gw": {{row: load.Row{Target: "gw"}}}}, math.NaN(), math.NaN(), Invalid,
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := line(find(t, tc.measure), tc.by, []string{"gw"})
			c := l.Cells[0]
			same := func(a Figure, b float64) bool {
				return math.Abs(float64(a)-b) < 1e-9 || math.IsNaN(float64(a)) && math.IsNaN(b)
			}
			if !same(c.Value, tc.value) || !same(c.Ratio, tc.ratio) || c.Verdict != tc.verdict {
				t.Errorf("%+v; want %v, %v, %q", c, tc.value, tc.ratio, tc.verdict)
			}
		})
	}
}

func TestMeasuresHaveScenarios(t *testing.T) {
	for _, quick := range []bool{false, true} {
		all := scenarios(quick)
		var names []string
		for _, sc := range all {
			names = append(names, sc.name)
			if err := sc.plan.Validate(); err != nil || sc.rounds < 1 {
				t.Errorf("%s: %d rounds, %v", sc.name, sc.rounds, err)
			}
			if err := sc.plan.Warm().Validate(); err != nil {
				t.Errorf("%s, warm: %v", sc.name, err)
			}
		}
		if !slices.Equal(names, Scenarios()) {
			t.Errorf("scenarios %v, listed %v", names, Scenarios())
		}
		ids := map[string]bool{}
		for _, m := range measures() {
			i := slices.Index(names, m.scenario)
			if i < 0 || ids[m.id] {
				t.Errorf("%s: scenario %s, or twice", m.id, m.scenario)
				continue
			}
			ids[m.id] = true
			if m.added && !all[i].direct {
				t.Errorf("%s: no direct run to compare with", m.id)
			}
			if stretched := m.stretch != 0 && m.higherIsBetter != (m.stretch > m.must); stretched {
				t.Errorf("%s: stretch %v is easier than must %v", m.id, m.stretch, m.must)
			}
		}
		// All held streams are open at once: the last starts before the first ends.
		hold := all[1].plan
		if length := hold.Mock.Gap * time.Duration(hold.Mock.Tokens-1); hold.Ramp >= length || hold.Ramp >= hold.Duration {
			t.Errorf("quick %v: streams of %v start over %v, for %v", quick, length, hold.Ramp, hold.Duration)
		}
	}
	if got := only(scenarios(true), []string{Burst}); len(got) != 1 || got[0].name != Burst {
		t.Errorf("only: %v", got)
	}
}

// report builds a finished report without running anything.
func exampleReport() *Report {
	s := &comparison{
		subjects: []*subject{{name: "nginx"}, {name: "gw"}},
		samples: map[string]map[string][]sample{
			Plain: {"direct": rows(setRPS, 200), "nginx": rows(setCPU, 10, 10), "gw": rows(setCPU, 20, 10)},
		},
	}
	return s.report(Environment{CPU: "x", Time: time.Unix(0, 0).UTC()}, scenarios(true))
}

func TestReport(t *testing.T) {
	rep := exampleReport()
	md := rep.Markdown()
	for _, want := range []string{
		"| measure | must | stretch | nginx | gw | × nginx (rounds) |",
		"| CPU per plain request, 16 connections, µs | ≤ 1.60× | ≤ 1.30× | 10.0 | 15.0 | 1.50 (1.00–2.00) must |",
		"≥ 0.90×", "– |", "200 requests/s",
	} {
		if !strings.Contains(md, want) {
			t.Errorf("%q is missing in\n%s", want, md)
		}
	}
	for row := range strings.Lines(md) {
		if strings.HasPrefix(row, "|") && strings.Count(row, "|") != 7 {
			t.Errorf("row of another width: %s", row)
		}
	}
	if strings.Contains(md, "busy") {
		t.Errorf("busy, with nothing else running:\n%s", md)
	}
	rep.Environment.Cores, rep.Environment.Others = 2, 0.5
	if md := rep.Markdown(); !strings.Contains(md, "busy") {
		t.Errorf("a quarter of the machine was not ours, and no word of it:\n%s", md)
	}
	b, err := json.Marshal(rep)
	if err != nil {
		t.Fatal(err)
	}
	var back struct {
		Measures []struct {
			ID    string
			Cells []struct {
				Value, Ratio *float64
				Verdict      string
			}
		}
		Rows []load.Row
	}
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	cpu, rps := back.Measures[0].Cells[1], back.Measures[1].Cells[1]
	if *cpu.Value != 15 || *cpu.Ratio != 1.5 || cpu.Verdict != "must" || rps.Value != nil || rps.Ratio != nil || len(back.Rows) != 5 {
		t.Errorf("%s", b)
	}
}

func TestShortfalls(t *testing.T) {
	rep := exampleReport()
	if got := rep.Shortfalls("gw"); len(got) != 1 || !strings.Contains(got[0], "requests/s") || !strings.Contains(got[0], "could not be judged") {
		t.Errorf("%q", got)
	}
	rep.Measures[0].Cells[1].Verdict = Missed
	if got := rep.Shortfalls("gw"); len(got) != 2 || !strings.Contains(got[0], "1.50× nginx, must be ≤ 1.60×: MISSED") {
		t.Errorf("%q", got)
	}
	if got := rep.Shortfalls("nobody"); len(got) != 1 {
		t.Errorf("%q", got)
	}
}

func TestSplice(t *testing.T) {
	const doc = "# Title\n<!-- loadgen compare gw: begin -->\nold\n<!-- loadgen compare gw: end -->\nrest\n" +
		"<!-- loadgen compare gw+log: begin --><!-- loadgen compare gw+log: end -->\n"
	got, err := Splice([]byte(doc), "gw", "\nnew | text\n\n")
	want := strings.Replace(doc, "old", "new | text", 1)
	if err != nil || string(got) != want {
		t.Fatalf("got %q, %v", got, err)
	}
	if again, err := Splice(got, "gw", "new | text"); err != nil || string(again) != want {
		t.Errorf("once more: %q, %v", again, err)
	}
	for name, bad := range map[string]string{
		"no markers":  "text",
		"no end":      "<!-- loadgen compare gw: begin -->",
		"two places":  doc + doc,
		"wrong order": "<!-- loadgen compare gw: end --><!-- loadgen compare gw: begin -->",
	} {
		if _, err := Splice([]byte(bad), "gw", ""); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	file := filepath.Join(t.TempDir(), "doc.md")
	if err := os.WriteFile(file, []byte(doc), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := UpdateDocs(file, "gw", "new | text"); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	info, serr := os.Stat(file)
	if err != nil || serr != nil || string(b) != want || info.Mode().Perm() != 0o640 {
		t.Errorf("%q, %v, %v", b, err, serr)
	}
	if err := CheckDocs(file, "other"); err == nil {
		t.Error("a document without the column's markers was taken")
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(file), ".docs-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestBusy(t *testing.T) {
	got, err := busy("cpu  100 50 200 9999 7 7 7 25 30 0\ncpu0 1 2 3\n")
	if err != nil || got != 3.75 {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "cpu 1 2", "intr 1 2 3 4 5 6 7 8 9", "cpu x 2 3 4 5 6 7 8 9 10"} {
		if got, err := busy(bad); err == nil {
			t.Errorf("%q gave %v", bad, got)
		}
	}
}

func TestValidate(t *testing.T) {
	gw := Proxy{}
	gw.Name = "gw"
	peer := &load.Target{Name: "peer"}
	if err := (Options{Proxies: []Proxy{gw}, Targets: []*load.Target{peer}, MockListen: "127.0.0.1:1"}).validate(); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]Options{
		"two of one name":     {Proxies: []Proxy{gw, gw}},
		"named like nginx":    {Targets: []*load.Target{{Name: "nginx"}}, MockListen: "127.0.0.1:1"},
		"too many rounds":     {Rounds: maxRounds + 1},
		"unknown scenario":    {Only: []string{"nonsense"}},
		"peer, but free port": {Targets: []*load.Target{peer}},
	} {
		if err := o.validate(); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}
