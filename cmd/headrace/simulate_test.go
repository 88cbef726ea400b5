package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"headrace/gateway/config"
	"headrace/router/sim"
	"headrace/router/sim/report"
)

// simulate runs the command in this process.
func simulate(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	c := root()
	var out, errs bytes.Buffer
	c.SetOut(&out)
	c.SetErr(&errs)
	c.SetArgs(append([]string{"simulate"}, args...))
	err := c.ExecuteContext(t.Context())
	if err != nil {
		code = 1
		if ee, ok := errors.AsType[*exitError](err); ok {
			code = ee.code
		}
		fmt.Fprint(&errs, err)
	}
	return out.String(), errs.String(), code
}

// readReport reads what -o json wrote.
func readReport(t *testing.T, out string) (rep sim.Report) {
	t.Helper()
	if err := json.Unmarshal([]byte(out), &rep); err != nil {
		t.Fatalf("%v in %.200s", err, out)
	}
	return rep
}

func TestSimulateSameSeedSameResult(t *testing.T) {
	t.Parallel()
	args := []string{"S2", "--hours", "0.1", "--policy", "headrace,oracle,random", "--seeds", "2", "-o", "json"}
	one, errs, code := simulate(t, append(args, "--jobs", "1")...)
	if code != 0 || errs != "" {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	if two, _, _ := simulate(t, append(args, "--jobs", "4")...); one != two {
		t.Error("the same command printed something else")
	}
	rep := readReport(t, one)
	if len(rep.Cells) != 3 || len(rep.Seeds) != 2 || rep.Cell("S2", sim.Brain).Runs[0].Requests == 0 || len(rep.Cells[0].Runs[0].Hosts) == 0 {
		t.Errorf("%d cells, seeds %v", len(rep.Cells), rep.Seeds)
	}
	other, _, _ := simulate(t, append(args, "--seed", "7")...)
	if got := readReport(t, other); got.Seeds[0] != 7 || got.Seeds[1] != 8 || got.Cells[0].Runs[0].USD == rep.Cells[0].Runs[0].USD {
		t.Errorf("seeds %v give the bill of seeds %v", got.Seeds, rep.Seeds)
	}
}

func TestSimulateTableAndPage(t *testing.T) {
	page := filepath.Join(t.TempDir(), "page.html")
	out, errs, code := simulate(t, "S1", "S3", "--hours", "0.05", "--policy", "headrace,least-connections", "--seeds", "1", "--report", page)
	if code != 0 || errs != "" { // nothing is a terminal here: no progress
		t.Fatalf("exit code %d: %s", code, errs)
	}
	for _, want := range []string{"S1: the seed fleet", "S3: quiet", "│ headrace ", "│ least-connections ", "1 seed;"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	html, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<svg", "headrace simulate S1 S3 --policy headrace,least-connections --seeds 1 --hours 0.05", "S3: quiet"} {
		if !strings.Contains(string(html), want) {
			t.Errorf("no %q in the page", want)
		}
	}
}

// TestSimulateWrongCommands are refused before anything is simulated.
func TestSimulateWrongCommands(t *testing.T) {
	dir := filepath.Join("testdata", "simulate")
	bad := filepath.Join(t.TempDir(), "bad.csv")
	if err := os.WriteFile(bad, []byte("timestamp,prompt,output\n1,2,3\n2,x,3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		`no scenario "S99"`:                   {"S99"},
		"scenario S1 is given twice":          {"S1", "S1"},
		`no policy "best"`:                    {"--policy", "best"},
		"random is given twice":               {"--policy", "random,random"},
		`--suite "long"`:                      {"--suite", "long"},
		"names its scenarios and policies":    {"S1", "--suite", "short"},
		`--output "yaml"`:                     {"-o", "yaml"},
		"--seeds 0: want 1":                   {"--seeds", "0"},
		"--hours 0: want":                     {"--hours", "0"},
		"--hours NaN":                         {"--hours", "NaN"},
		"--rate -1":                           {"--rate", "-1"},
		"--jobs -1":                           {"--jobs", "-1"},
		"nowhere.yaml: cannot be read":        {"--fleet", "nowhere.yaml"},
		"not both":                            {"S1", "--fleet", filepath.Join(dir, "slow.yaml")},
		"nowhere.csv: no such file":           {"--trace", "nowhere.csv"},
		`bad.csv:3: prompt tokens are "x"`:    {"--trace", bad},
		"calls.csv:1:":                        {"--deaths", filepath.Join(dir, "calls.csv")},
		"there is no such folder":             {"--report", filepath.Join("nowhere", "page.html")},
		"mistakes.yaml:2:13: slo.ttft: \"2\"": {"--fleet", filepath.Join(dir, "mistakes.yaml")},
	} {
		out, errs, code := simulate(t, args...)
		if code != 2 || out != "" || !strings.Contains(errs, want) {
			t.Errorf("%v: exit code %d, %q, want 2 and %q", args, code, errs, want)
		}
	}
}

// TestSimulateList names all scenarios and policies.
func TestSimulateList(t *testing.T) {
	out, _, code := simulate(t, "--list")
	for _, s := range sim.Scenarios() {
		if !strings.Contains(out, s.Name+" ") || !strings.Contains(out, s.Title) {
			t.Errorf("scenario %s is not listed", s.Name)
		}
	}
	for _, p := range sim.Policies() {
		if !strings.Contains(out, p.Name+" ") {
			t.Errorf("policy %s is not listed", p.Name)
		}
	}
	asJSON, _, jsonCode := simulate(t, "--list", "-o", "json")
	var list struct {
		Scenarios []sim.Scenario `json:"scenarios"`
	}
	if err := json.Unmarshal([]byte(asJSON), &list); err != nil || len(list.Scenarios) != len(sim.Scenarios()) || code != 0 || jsonCode != 0 {
		t.Errorf("%d scenarios in JSON, error %v, exit codes %d and %d", len(list.Scenarios), err, code, jsonCode)
	}
}

// TestFleetMistakes are told all at once, with their places.
func TestFleetMistakes(t *testing.T) {
	_, err := readFleet(filepath.Join("testdata", "simulate", "mistakes.yaml"), os.LookupEnv)
	if err == nil {
		t.Fatal("no mistake is found")
	}
	golden(t, filepath.Join("testdata", "simulate", "mistakes.golden"), filepath.ToSlash(err.Error())+"\n")
	if ps, ok := errors.AsType[*config.Problems](err); !ok || len(ps.List) < 10 {
		t.Errorf("the error is %T", err)
	}
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s (-update rewrites it): got\n%s, want\n%s", file, got, want)
	}
}

// TestFleetExample reads the example, which shows every key, and simulates a little of it.
func TestFleetExample(t *testing.T) {
	t.Parallel()
	const path = "../../deploy/fleet.example.yaml"
	s, err := readFleet(path, os.LookupEnv)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, h := range s.Hosts {
		names = append(names, h.Name)
	}
	if got, want := strings.Join(names, " "), "a100-1 a100-2 rtx4090-1 rtx4090-2 workers api"; got != want {
		t.Errorf("hosts %s, want %s", got, want)
	}
	if a := s.Hosts[0]; a.Kind != sim.Hourly || !a.Interruptible || a.USDPerHour != (sim.Range{Low: 0.7, High: 1.2}) || a.TTFT != (sim.Range{Low: 0.25, High: 0.4}) || a.Seqs != 48 {
		t.Errorf("host %+v", a)
	}
	if w := s.Hosts[4]; w.Kind != sim.Serverless || w.Workers != 4 || w.ColdStart != 25 || w.IdleTimeout != 15 {
		t.Errorf("host %+v", w)
	}
	if a := s.Hosts[5]; a.Kind != sim.API || a.USDPerMTokOut != 0.9 || a.PerMinute != 600 {
		t.Errorf("host %+v", a)
	}
	src, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, sec := range fleetSections(reflect.TypeFor[fleetFile](), "") {
		for f := range sec.t.Fields() {
			if key := f.Tag.Get("yaml"); !regexp.MustCompile(`(?m)\b` + key + `:`).Match(src) {
				t.Errorf("%s lacks %q of section %q", path, key, sec.path)
			}
		}
	}
	out, errs, code := simulate(t, "--fleet", path, "--hours", "0.1", "--policy", "headrace,oracle", "--seeds", "1", "-o", "json")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	if rep := readReport(t, out); rep.Cell("example", sim.Brain).Runs[0].Requests < 100 || len(rep.Cells[0].Runs[0].Hosts) != 6 {
		t.Errorf("%d requests", rep.Cells[0].Runs[0].Requests)
	}
}

// TestSimulateTraces replays requests and deaths of files, named on the command line or in a fleet.
func TestSimulateTraces(t *testing.T) {
	dir, err := filepath.Abs(filepath.Join("testdata", "simulate"))
	if err != nil {
		t.Fatal(err)
	}
	calls, spot := filepath.Join(dir, "calls.csv"), filepath.Join(dir, "spot.json")
	out, errs, code := simulate(t, "--trace", calls, "--deaths", spot, "--policy", "headrace", "--seeds", "1", "-o", "json")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	r := &readReport(t, out).Cells[0].Runs[0]
	if r.Requests < 49 || r.Requests > 50 { // the trace once; the last call may be at the very end
		t.Errorf("%d requests, the trace has 50", r.Requests)
	}
	out, errs, code = simulate(t, "--trace", calls, "--deaths", spot, "--policy", "headrace", "--seeds", "1", "--hours", "0.15", "-o", "json")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	again := &readReport(t, out).Cells[0].Runs[0]
	if again.Requests < 3*r.Requests {
		t.Errorf("%d requests in nine minutes, want the trace of a minute several times", again.Requests)
	}
	if h := again.Hosts[0]; h.Preemptions != 2 || again.Hosts[5].Preemptions != 0 {
		t.Errorf("%s was taken away %d times, want 2 as in the trace", h.Name, h.Preemptions)
	}
	fleet := filepath.Join(t.TempDir(), "fleet.yaml")
	src := fmt.Sprintf("hosts: [{name: a, price: {usd_per_hour: 1}, tps: 30, ttft: 1s, prefill: 1000, max_num_seqs: 16, tenure: interruptible}]\n"+
		"load: {trace: %q, per_second: 2}\nfaults: {deaths: %q}\n", calls, spot)
	if err := os.WriteFile(fleet, []byte(src), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := readFleet(fleet, os.LookupEnv)
	if err != nil || len(s.Load.Trace) != 50 || len(s.Faults.Spot) != 1 || s.Load.PerSecond != 2 {
		t.Errorf("%v: %d calls, %d spots", err, len(s.Load.Trace), len(s.Faults.Spot))
	}
}

// TestSuiteMisses runs the short suite, cut shorter still, on a fleet that can keep no promise.
func TestSuiteMisses(t *testing.T) {
	if underRace {
		t.Skip("a minute of reckoning; TestSimulateSameSeedSameResult runs the same code side by side")
	}
	t.Parallel()
	args := []string{"--suite", "short", "--fleet", filepath.Join("testdata", "simulate", "slow.yaml"), "--hours", "0.05", "--seeds", "1"}
	out, errs, code := simulate(t, args...)
	if code != 1 || !strings.Contains(errs, "targets missed: ") || !strings.Contains(errs, "slo-S1") {
		t.Errorf("exit code %d: %s", code, errs)
	}
	for _, want := range []string{"│ slo-S1 ", "≥ 92 %", "0.00 %", "missed", "│ canary ", "of 67 experiments whose arms are alike", "0 not tested", "Suite short, 1 seed", "│ kinked "} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	out, _, code = simulate(t, append(args, "-o", "json")...)
	var got struct {
		Claims []report.Claim `json:"claims"`
		Cells  []sim.Cell     `json:"cells"`
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 1 {
		t.Fatalf("exit code %d, %v", code, err)
	}
	verdicts := map[report.Verdict]int{}
	for _, c := range got.Claims {
		verdicts[c.Verdict]++
	}
	if verdicts[report.Missed] == 0 || verdicts[report.NotTested] != 0 || len(got.Cells) == 0 || got.Cells[0].Runs[0].Hosts != nil {
		t.Errorf("%v in JSON", verdicts)
	}
}

// TestSimulateInterrupted tells what was finished.
func TestSimulateInterrupted(t *testing.T) {
	c := simulateCommand()
	var out, errs bytes.Buffer
	c.SetOut(&out)
	c.SetErr(&errs)
	o := simulateOptions{output: "table", policies: []string{"random", "round-robin"}, seeds: 2, seed: 1, jobs: 1, hours: 2}
	s, err := o.simulation(c, []string{"S3", "S1"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s.told = func(done, _ int) {
		if done == 3 {
			cancel()
		}
	}
	err = s.run(ctx)
	ee, ok := errors.AsType[*exitError](err)
	if !ok || ee.code != 130 || !strings.Contains(err.Error(), "of 8 runs; finished: S3 under random") {
		t.Errorf("error %v", err)
	}
	if !strings.Contains(out.String(), "S3: quiet") || strings.Contains(out.String(), "S1:") {
		t.Errorf("printed\n%s", out.String())
	}
}

// TestSimulateInterruptedExperiments ends a suite among its experiments, when all hosts are simulated: nothing is judged.
func TestSimulateInterruptedExperiments(t *testing.T) {
	t.Parallel()
	c := simulateCommand()
	var out bytes.Buffer
	c.SetOut(&out)
	o := simulateOptions{output: "table", suite: "short", fleet: filepath.Join("testdata", "simulate", "slow.yaml"), seeds: 2, seed: 1, hours: 0.01}
	s, err := o.simulation(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	all := 0
	s.told = func(done, total int) {
		if all = total; done == total-1 { // those of the first seed
			cancel()
		}
	}
	err = s.run(ctx)
	ee, ok := errors.AsType[*exitError](err)
	if want := fmt.Sprintf("interrupted after %d of %d runs; finished: S1 under", all-1, all); !ok || ee.code != 130 || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %q", err, want)
	}
	if !strings.Contains(out.String(), "│ headrace ") || strings.Contains(out.String(), "Suite short") {
		t.Errorf("printed\n%s", out.String())
	}
}

type fleetSection struct {
	path string
	t    reflect.Type
}

// fleetSections lists t and the sections below it, by their paths in the documentation.
func fleetSections(t reflect.Type, path string) []fleetSection {
	all := []fleetSection{{path, t}}
	for f := range t.Fields() {
		at, ft := strings.TrimPrefix(path+"."+f.Tag.Get("yaml"), "."), f.Type
		for ; ft.Kind() == reflect.Slice || ft.Kind() == reflect.Pointer; ft = ft.Elem() {
			if ft.Kind() == reflect.Slice {
				at += "[]"
			}
		}
		if ft.Kind() == reflect.Struct {
			all = append(all, fleetSections(ft, at)...)
		}
	}
	return all
}

// TestFleetDocs keeps the tables of docs/simulator.md as the tags have them.
func TestFleetDocs(t *testing.T) {
	const path = "../../docs/simulator.md"
	src, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	tables := map[string]string{}
	for _, s := range fleetSections(reflect.TypeFor[fleetFile](), "") {
		var b strings.Builder
		b.WriteString("| key | default | meaning |\n|---|---|---|\n")
		for f := range s.t.Fields() {
			tag := f.Tag
			def := tag.Get("otherwise")
			switch {
			case tag.Get("default") != "":
				def = "`" + tag.Get("default") + "`"
			case tag.Get("required") == "true":
				def = "**required**"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", tag.Get("yaml"), def, tag.Get("doc"))
		}
		tables[s.path] = b.String()
	}
	block := regexp.MustCompile(`(?s)<!-- keys: (\S+) -->\n.*?<!-- end -->`)
	got := block.ReplaceAllStringFunc(string(src), func(b string) string {
		at := strings.Trim(block.FindStringSubmatch(b)[1], ".")
		content, ok := tables[at]
		if !ok {
			t.Errorf("%s has a table for %q, which is no section", path, at)
		}
		delete(tables, at)
		return fmt.Sprintf("<!-- keys: %s -->\n%s<!-- end -->", block.FindStringSubmatch(b)[1], content)
	})
	for at := range tables {
		t.Errorf("%s has no table for section %q", path, at)
	}
	golden(t, path, got)
}
