package report

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"headrace/router/experiment/trial"
	"headrace/router/sim"
)

var update = flag.Bool("update", false, "rewrite golden files")

// tiny is a report of a small run, as simulate -o json wrote it.
func tiny(t *testing.T) *sim.Report {
	t.Helper()
	src, err := os.ReadFile("testdata/tiny.json")
	if err != nil {
		t.Fatal(err)
	}
	var rep sim.Report
	if err := json.Unmarshal(src, &rep); err != nil {
		t.Fatal(err)
	}
	return &rep
}

func scenario(t *testing.T, name string) sim.Scenario {
	t.Helper()
	s, ok := sim.ScenarioNamed(name)
	if !ok {
		t.Fatalf("no scenario %s", name)
	}
	return s
}

func written(t *testing.T, p *Page) string {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, p); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestPageGolden holds the page to testdata/page.golden.html; -update rewrites it.
func TestPageGolden(t *testing.T) {
	s := scenario(t, "S2").Busiest(1.5)
	s.Events = []sim.Event{{At: 1800, For: 600, What: sim.ControlDown}}
	p := &Page{Report: tiny(t), Scenarios: []sim.Scenario{s}, Command: "headrace simulate S2", Version: "v0.0.0", Claims: []Claim{
		{ID: "slo-S2", What: "SLO attainment", Unit: Share, Target: 0.92, Value: sim.Mean{Mean: 0.95, Low: 0.91, High: 0.99}, Prototype: "92.3", Verdict: Barely},
		{ID: "spill-S2", What: "$/Mtok over a spill's", Unit: Ratio, AtMost: true, Target: 0.8, Value: sim.Mean{Mean: 0.85, Low: 0.84, High: 0.86}, Verdict: Missed, Note: "it is spill-0.35"},
		{ID: "canary", What: "alarms", Unit: Share, AtMost: true, Target: 0.05, Value: sim.Mean{Mean: 0.01, Low: 0.003, High: 0.036}, Verdict: Met},
		{ID: "decision", What: "time", Unit: Micros, AtMost: true, Target: 50, Value: nothing(), Verdict: NotTested},
	}}
	got := written(t, p)
	if written(t, p) != got {
		t.Error("the same page is not the same twice")
	}
	const file = "testdata/page.golden.html"
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		i := 0
		for i < min(len(got), len(want)) && got[i] == want[i] {
			i++
		}
		t.Errorf("%s (-update rewrites it) differs at byte %d: got %.80q, want %.80q", file, i, got[i:], want[i:])
	}
}

var pictures = regexp.MustCompile(`(?s)<svg.*?</svg>`)

// TestPageStandsAlone: nothing is fetched, every picture is well formed, and names are text and never markup.
func TestPageStandsAlone(t *testing.T) {
	rep := tiny(t)
	const name = `<script>"a"&'b'</script>`
	for i := range rep.Cells {
		rep.Cells[i].Title = name
		for k := range rep.Cells[i].Runs {
			r := &rep.Cells[i].Runs[k]
			for h := range r.Hosts {
				if r.Hosts[h].Name == "a100-1" {
					r.Hosts[h].Name = name
				}
			}
			for m := range r.Moments {
				if r.Moments[m].Host == "a100-1" {
					r.Moments[m].Host = name
				}
			}
		}
	}
	page := written(t, &Page{Report: rep, Command: name, Version: name, Claims: []Claim{{ID: name, What: name, Note: name, Value: nothing()}}})
	for _, bad := range []string{"<script", "http:", "https:", "src=", "@import", "url("} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	found := pictures.FindAllString(page, -1)
	if len(found) != 4 {
		t.Errorf("%d pictures, want price against promise, hosts, timeline and calibration", len(found))
	}
	for _, p := range found {
		d := xml.NewDecoder(strings.NewReader(p))
		for {
			_, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%v in %.300s", err, p)
			}
		}
		if strings.Contains(p, "NaN") || strings.Contains(p, "Inf") {
			t.Errorf("a picture has a figure that is none: %.200s", p)
		}
	}
}

// TestPageOfLittle draws what there is: one policy, no host with work, unknown figures, a run without requests.
func TestPageOfLittle(t *testing.T) {
	nan := sim.Figure(math.NaN())
	empty := sim.Result{Policy: "random", SLO: nan, USDPerMTok: nan, Hosts: []sim.HostResult{{Name: "a", Busy: nan, InFlight: nan}}}
	m := sim.Means{}
	m.SLO, m.USDPerMTok, m.USD, m.MeterUSD = nothing(), nothing(), nothing(), nothing()
	cell := func(policy string) sim.Cell {
		return sim.Cell{Scenario: "own", Policy: policy, Runs: []sim.Result{empty}, Mean: m}
	}
	for name, cells := range map[string][]sim.Cell{
		"none": nil, "one": {cell("random")}, "two": {cell("random"), cell(sim.Brain)}, "oracle": {cell(sim.Brain), cell(sim.Oracle)},
	} {
		page := written(t, &Page{Report: &sim.Report{Seeds: []uint64{1}, Cells: cells}})
		if strings.Contains(page, "NaN") || strings.Contains(page, "Inf") || strings.Contains(page, "%!") {
			t.Errorf("%s: the page shows a figure that is none", name)
		}
	}
}

// figures are what one policy made of a scenario: $/Mtok, SLO attainment, failures, by seed alike.
type figures struct{ usd, slo, failed sim.Figure }

// made is a report with two seeds, in which every policy of a scenario does as told.
func made(cells map[string]map[string]figures) *sim.Report {
	rep := &sim.Report{Seeds: []uint64{1, 2}}
	for _, s := range sim.Scenarios() {
		for _, p := range sim.Policies() {
			f, ok := cells[s.Name][p.Name]
			if !ok {
				continue
			}
			c := sim.Cell{Scenario: s.Name, Policy: p.Name, SLO: s.SLO}
			var usd, slo []sim.Figure
			for range rep.Seeds {
				r := sim.Result{Policy: p.Name, USDPerMTok: f.usd, SLO: f.slo, Failed: f.failed}
				r.TTFT.Sure = sim.Bin{N: 100, Expected: 0.97, Realised: 0.95}
				r.TPS.Sure = sim.Bin{N: 100, Expected: 0.97, Realised: 0.96}
				c.Runs = append(c.Runs, r)
				usd, slo = append(usd, f.usd), append(slo, f.slo)
			}
			c.Mean.USDPerMTok, c.Mean.SLO = sim.MeanOf(usd), sim.MeanOf(slo)
			rep.Cells = append(rep.Cells, c)
		}
	}
	return rep
}

// good is figures that meet every target.
func good() map[string]map[string]figures {
	fleet := func(failed sim.Figure) map[string]figures {
		return map[string]figures{
			sim.Brain: {1.6, 0.95, failed}, surer: {1.7, 0.96, failed}, sim.Oracle: {1.5, 0.96, 0}, "spill-0.35": {2.4, 0.90, 0}, "spill-0.7": {1.5, 0.80, 0},
			"least-connections": {3.2, 0.86, 0}, "lowest-latency": {3.3, 0.83, 0}, "spill-0.5+": {1.4, 0.99, 0},
		}
	}
	return map[string]map[string]figures{
		seedFleet: fleet(0.0001), harsh: fleet(0.0005), "S3": {sim.Brain: {20, 0.99, 0}, "random": {21, 0.995, 0}, "average-cost": {5, 0.2, 0}},
		slowHost: {sim.Brain: {1.8, 0.94, 0}}, sharing: {sim.Brain: {1.7, 0.95, 0}}, noSharing: {sim.Brain: {1.7, 0.94, 0}},
	}
}

func missed(claims []Claim) (ids []string) {
	for i := range claims {
		if claims[i].Verdict == Missed {
			ids = append(ids, claims[i].ID)
		}
	}
	return ids
}

// TestJudge changes one figure at a time, and expects the claims about it to be missed.
func TestJudge(t *testing.T) {
	plan := Standard(nil)
	fine := Measured{20 * time.Microsecond, trial.Alarms{Runs: 2000, Stopped: 8}}
	claims := plan.Judge(made(good()), fine)
	if ids := missed(claims); ids != nil {
		t.Errorf("good figures miss %v", ids)
	}
	if len(claims) != 26 {
		t.Errorf("%d claims, want 26", len(claims))
	}
	for name, tc := range map[string]struct {
		scenario, policy string
		to               figures
		missed           []string
	}{
		"dearer than perfect information":   {seedFleet, sim.Oracle, figures{1.4, 0.96, 0}, []string{"oracle-S1"}},
		"in the harsh fleet":                {harsh, sim.Oracle, figures{1.4, 0.96, 0}, []string{"oracle-S2"}},
		"a spill that is nearly as cheap":   {seedFleet, "spill-0.35", figures{1.9, 0.90, 0}, []string{"spill-S1"}},
		"a spill that keeps the SLO better": {seedFleet, "spill-0.35", figures{2.4, 0.951, 0}, []string{"spill-slo-S1", "best-slo-S1"}},
		"a simple one that does both":       {seedFleet, "least-connections", figures{1.5, 0.96, 0}, []string{"best-slo-S1", "least-connections", "trivial"}},
		"cheap in a quiet scenario":         {"S3", "random", figures{19, 0.995, 0}, []string{"trivial"}},
		"latency for less":                  {seedFleet, "lowest-latency", figures{2.5, 0.8, 0}, []string{"latency"}},
		"too few keep the SLO":              {harsh, sim.Brain, figures{1.6, 0.919, 0}, []string{"slo-S2"}},
		"or when asked for more":            {harsh, surer, figures{1.7, 0.93, 0}, []string{"slo-p97-S2"}},
		"failures":                          {seedFleet, sim.Brain, figures{1.6, 0.95, 0.0003}, []string{"failed-S1"}},
		"harsh failures":                    {harsh, sim.Brain, figures{1.6, 0.95, 0.0011}, []string{"failed-S2"}},
		"a slow host costs the SLO":         {slowHost, sim.Brain, figures{1.6, 0.92, 0}, []string{"slow-host"}},
		"replicas that share":               {sharing, sim.Brain, figures{1.6, 0.92, 0}, []string{"replicas-sharing"}},
		"replicas that do not":              {noSharing, sim.Brain, figures{1.6, 0.92, 0}, []string{"replicas-alone"}},
		"an unknown price is no success":    {seedFleet, "lowest-latency", figures{sim.Figure(math.NaN()), 0.8, 0}, []string{"latency"}},
	} {
		cells := good()
		cells[tc.scenario][tc.policy] = tc.to
		if ids := missed(plan.Judge(made(cells), fine)); !slices.Equal(ids, tc.missed) {
			t.Errorf("%s: missed %v, want %v", name, ids, tc.missed)
		}
	}
	if ids := missed(plan.Judge(made(good()), Measured{51 * time.Microsecond, fine.Alarms})); !slices.Equal(ids, []string{"decision"}) {
		t.Errorf("a slow decision: missed %v", ids)
	}
	for want, a := range map[Verdict]trial.Alarms{Met: fine.Alarms, Barely: {Runs: 200, Stopped: 9}, Missed: {Runs: 200, Stopped: 11}} {
		claims := plan.Judge(made(good()), Measured{fine.Decision, a})
		c := claims[slices.IndexFunc(claims, func(c Claim) bool { return c.ID == "canary" })]
		if c.Verdict != want || !strings.Contains(c.Note, fmt.Sprintf("%d of %d experiments", a.Stopped, a.Runs)) {
			t.Errorf("%d of %d experiments stopped: %s, %q, want %s", a.Stopped, a.Runs, c.Verdict, c.Note, want)
		}
	}
	if ids := missed(plan.Judge(made(good()), Measured{Decision: fine.Decision})); !slices.Equal(ids, []string{"canary"}) {
		t.Errorf("no experiment was run: missed %v", ids)
	}
	rep := made(good())
	for k := range rep.Cells[0].Runs {
		rep.Cells[0].Runs[k].TPS.Sure.Realised = 0.86
	}
	if ids := missed(plan.Judge(rep, Measured{Alarms: fine.Alarms})); rep.Cells[0].Policy != sim.Brain || !slices.Equal(ids, []string{"calibration-tps-S1"}) {
		t.Errorf("promises that are not kept: missed %v", ids)
	}
	if ids := missed(plan.Judge(&sim.Report{}, Measured{})); len(ids) == 0 {
		t.Error("a report without runs misses nothing")
	}
}

func TestVerdict(t *testing.T) {
	nan := sim.Figure(math.NaN())
	for name, tc := range map[string]struct {
		atMost bool
		value  sim.Mean
		want   Verdict
	}{
		"below":           {true, sim.Mean{Mean: 0.8, Low: 0.7, High: 0.9}, Met},
		"at it":           {true, sim.Mean{Mean: 1, Low: nan, High: nan}, Met},
		"interval above":  {true, sim.Mean{Mean: 0.9, Low: 0.7, High: 1.1}, Barely},
		"above":           {true, sim.Mean{Mean: 1.1, Low: 0.9, High: 1.3}, Missed},
		"least: above":    {false, sim.Mean{Mean: 1.2, Low: 1.1, High: 1.3}, Met},
		"least: interval": {false, sim.Mean{Mean: 1.2, Low: 0.9, High: 1.5}, Barely},
		"least: below":    {false, sim.Mean{Mean: 0.9, Low: 0.5, High: 1.5}, Missed},
		"unknown":         {true, nothing(), Missed},
	} {
		if got := verdict(&Claim{AtMost: tc.atMost, Target: 1, Value: tc.value}); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}

// TestPlans: every run of a plan can be run, and shows every claim.
func TestPlans(t *testing.T) {
	own := scenario(t, "S4")
	own.Name, own.Title = "mine", "my fleet"
	for name, p := range map[string]Plan{"standard": Standard(nil), "short": Short(nil), "own": Standard(&own), "own, short": Short(&own)} {
		rep := &sim.Report{}
		runs := 0
		for i := range p.Scenarios {
			s := &p.Scenarios[i]
			if err := s.Validate(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			for _, pol := range p.Policies {
				if p.Only(s.Name, pol.Name) {
					runs += p.Seeds
					r := sim.Result{Policy: pol.Name, USDPerMTok: 1, SLO: 0.95, Seed: 1}
					r.TTFT.Sure, r.TPS.Sure = sim.Bin{N: 1, Realised: 1}, sim.Bin{N: 1, Realised: 1}
					m := sim.MeanOf([]sim.Figure{1})
					rep.Cells = append(rep.Cells, sim.Cell{Scenario: s.Name, Policy: pol.Name, SLO: s.SLO, Runs: []sim.Result{r}, Mean: sim.Means{SLO: m, USDPerMTok: m}})
				}
			}
		}
		for _, c := range p.Judge(rep, Measured{time.Microsecond, trial.Alarms{Runs: 1}}) {
			if math.IsNaN(float64(c.Value.Mean)) {
				t.Errorf("%s: no run shows %s", name, c.ID)
			}
		}
		short := strings.Contains(name, "short")
		if n := p.Seeds * p.Trials; short && (n < 200 || n > 250) || !short && n != 2000 {
			t.Errorf("%s: %d experiments", name, n)
		}
		if short && runs > 150 || !short && p.Seeds < 5 {
			t.Errorf("%s: %d runs, %d seeds", name, runs, p.Seeds)
		}
	}
	if o := (&Plan{}).Options(4, 3); !slices.Equal(o.Seeds, []uint64{4, 5, 6}) {
		t.Errorf("seeds %v", o.Seeds)
	}
}

// TestAlarms: experiments of different seeds are added up, and an end in between is told.
func TestAlarms(t *testing.T) {
	p := Plan{Trials: 5}
	seeds := 0
	got, err := p.Alarms(t.Context(), []uint64{1, 2, 3}, 2, func() { seeds++ })
	want, wantErr := trial.FalseAlarms(t.Context(), 15, 1, 1) // seed by seed they are the same experiments
	if got != want || got.Runs != 15 || seeds != 3 || err != nil || wantErr != nil {
		t.Errorf("%+v after %d seeds, errors %v and %v, want %+v", got, seeds, err, wantErr, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := p.Alarms(ctx, []uint64{1, 2}, 1, cancel); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled after a seed: error %v", err)
	}
}

// TestFigures shows an interval by half its width, or by its ends where it is not centred.
func TestFigures(t *testing.T) {
	nan := sim.Figure(math.NaN())
	for want, c := range map[string]Claim{
		"0.25 (0.11–0.58) %": {Unit: Share, Target: 0.05, Value: sim.Mean{Mean: 0.0025, Low: 0.00107, High: 0.00584}},
		"95.00 ±4.00 %":      {Unit: Share, Target: 0.92, Value: sim.Mean{Mean: 0.95, Low: 0.91, High: 0.99}},
		"+1.00 ±0.50 pt":     {Unit: Points, Value: sim.Mean{Mean: 0.01, Low: 0.005, High: 0.015}},
		"0.850":              {Unit: Ratio, Value: sim.Mean{Mean: 0.85, Low: nan, High: nan}},
		"–":                  {Unit: Ratio, Value: nothing()},
	} {
		if got, _ := c.Figures(); got != want {
			t.Errorf("%+v: %q, want %q", c.Value, got, want)
		}
	}
}

// TestVariants keep the fleet that they are made from as it is.
func TestVariants(t *testing.T) {
	own := scenario(t, "S4")
	all := Variants(&own)
	if fresh := scenario(t, "S4"); own.Hosts[0] != fresh.Hosts[0] || len(own.Events) != 0 {
		t.Error("the base is changed")
	}
	named := func(name string) *sim.Scenario {
		i := slices.IndexFunc(all, func(s sim.Scenario) bool { return s.Name == name })
		if i < 0 {
			t.Fatalf("no variant %s", name)
		}
		return &all[i]
	}
	if s := named(slowHost); s.Hosts[0].Slower != 1.8 || s.Hosts[1].Slower != 0 {
		t.Errorf("slow host: %+v", s.Hosts[0])
	}
	if s := named(harsh); s.Faults.Uptime != 3600 || !s.Hosts[0].Flaky {
		t.Errorf("harsh: %+v", s.Faults)
	}
	if s := named(sharing); s.Replicas != 4 || s.Share != 1 {
		t.Errorf("sharing: %d replicas, %g s", s.Replicas, s.Share)
	}
	if s := named("price"); len(s.Events) != 5 {
		t.Errorf("%d price changes, want one for each rented host", len(s.Events))
	}
	own.Hosts = own.Hosts[5:] // metered ones only
	if n := len(Variants(&own)); n != 8 {
		t.Errorf("%d variants of a fleet without rented hosts, want 8", n)
	}
}
