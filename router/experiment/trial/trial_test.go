package trial_test

import (
	"flag"
	"math"
	"os"
	"runtime"
	"strings"
	"testing"

	"headrace/router/experiment/stats"
	"headrace/router/experiment/trial"
)

var (
	runs = flag.Int("trial.runs", 200, "trials without a difference; 2000 take some ten seconds")
	seed = flag.Uint64("trial.seed", 1, "of the first trial")

	update = flag.Bool("update", false, "write the power table of docs/experiments.md anew, which takes some minutes")
)

// many runs trials from the seed on.
func many(t *testing.T, tc *trial.Trial, runs int, promote bool) []trial.Result {
	t.Helper()
	results, err := trial.Many(t.Context(), tc, runs, *seed, promote, 0)
	if err != nil {
		t.Fatal(err)
	}
	return results
}

// ramp is a canary's way up while requests go on.
func ramp(requests int) []trial.Step {
	return []trial.Step{{0, 0.05}, {requests / 4, 0.25}, {requests / 2, 0.5}}
}

func stopped(results []trial.Result) (n int, first string) {
	for i := range results {
		if results[i].Action == stats.Stop {
			if n++; n == 1 {
				first = results[i].Last.Arms[1].Reason
			}
		}
	}
	return n, first
}

// TestNoDifference looks all the time at experiments in which both arms are alike: users of very different activity who come
// again, whose moods and luck stay theirs, days with high and low load, incidents that hit both arms, hosts that differ, and weights
// that rise on the way while everything gets better or worse. Not more than alpha of them may be stopped.
func TestNoDifference(t *testing.T) {
	for name, tc := range map[string]trial.Trial{
		"users":       trial.NoDifference(),
		"heavy users": {Requests: 3000, Users: 300, Activity: 1.05, Steps: []trial.Step{{0, 0.1}}, Hosts: [2]int{6, 0}, HostSD: 0.12},
		"careful":     {Requests: 3000, Users: 700, Steps: ramp(3000), Careful: true, Hosts: [2]int{6, 0}, HostSD: 0.12},
		"replicas":    {Requests: 3000, Users: 700, Steps: ramp(3000), Replicas: 3, Every: 100, Hosts: [2]int{6, 0}, HostSD: 0.12},
		"idle hosts":  {Requests: 3000, Users: 700, Steps: ramp(3000), Idle: 0.15, Hosts: [2]int{6, 0}, HostSD: 0.12},
		"idle":        {Requests: 3000, Steps: []trial.Step{{0, 0.2}}, Idle: 0.15, Hosts: [2]int{6, 0}, HostSD: 0.12},
		"halves":      {Requests: 3000, Steps: []trial.Step{{0, 0.5}}, Hosts: [2]int{6, 0}, HostSD: 0.12},
		"own hosts":   {Requests: 3000, Users: 700, Steps: ramp(3000), Hosts: [2]int{5, 4}, HostSD: 0.12},
		"every time":  {Requests: 600, Users: 200, Steps: []trial.Step{{0, 0.2}}, Every: 1, Hosts: [2]int{6, 0}, HostSD: 0.12},
		"requests":    {Requests: 3000, Steps: ramp(3000), Hosts: [2]int{6, 0}, HostSD: 0.12},
		"all metrics": {Requests: 3000, Steps: ramp(3000), Hosts: [2]int{6, 0}, HostSD: 0.12, Drift: true, Design: stats.Design{
			Guardrails: append(stats.Guardrails(), stats.Guardrail{Metric: stats.Truncated, Margin: 0.01}, stats.Guardrail{Metric: stats.Score, Margin: 0.1}),
		}},
		"few remember": {Requests: 3000, Users: 1500, Steps: ramp(3000), Hosts: [2]int{6, 0}, Design: stats.Design{Capacity: 256}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := max(1, *runs/5) // in all as many as were asked for, and some
			if name == "users" {
				n = *runs
			}
			alarms, first := stopped(many(t, &tc, n, false))
			t.Logf("%d of %d stopped (%.2f %%), seed %d", alarms, n, 100*float64(alarms)/float64(n), *seed)
			most := 0.05 * float64(n)
			if n < 500 {
				most += 2 * math.Sqrt(0.95*most) // so few say little
			}
			if float64(alarms) > most {
				t.Errorf("%d of %d experiments without a difference were stopped: want at most %.0f; seed %d; one of them: %s", alarms, n, most, *seed, first)
			}
		})
	}
}

// TestFirstUnits holds the test of the first 20 units to about what the docs' table says of it.
func TestFirstUnits(t *testing.T) {
	const n = 120
	rows, err := trial.FirstUnits(t.Context(), []float64{0.1, 0.5}, []float64{0.005}, 0.2, n, *seed)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []float64{0.87, 0.34} {
		r := &rows[i]
		if r.Weight != []float64{0.1, 0.5}[i] || r.Alarms.Runs != n || r.Found.Runs != n {
			t.Fatalf("row %d: %+v", i, r)
		}
		if sd := math.Sqrt(want * (1 - want) / n); math.Abs(float64(r.Found.Stopped)/n-want) > 4*sd {
			t.Errorf("%v of units: %d of %d stopped, want about %.0f %%; seed %d", r.Weight, r.Found.Stopped, n, 100*want, *seed)
		}
		if most := 0.025*n + 3*math.Sqrt(0.025*n); float64(r.Alarms.Stopped) > most {
			t.Errorf("%v of units: %d of %d without harm stopped, want at most %.0f; seed %d", r.Weight, r.Alarms.Stopped, n, most, *seed)
		}
	}
	if text := trial.FirstMarkdown(rows); !strings.Contains(text, "| the control fails | 10 % of units | 50 % of units |\n|--:|--:|--:|\n| 0.5 % |") {
		t.Errorf("table:\n%s", text)
	}
}

// TestUsersOfSeeds: who is in which arm is drawn anew with each seed. With one draw for all, what is counted over seeds says nothing.
func TestUsersOfSeeds(t *testing.T) {
	seen := map[int]int{}
	for s := range uint64(20) {
		tc := trial.Trial{Requests: 1200, Users: 40, Activity: 50, Steps: []trial.Step{{Weight: 0.5}}, Every: 1200, Base: -1}
		r := trial.Run(&tc, *seed+s, false)
		if n := r.Units[0] + r.Units[1]; n != 40 {
			t.Fatalf("seed %d: %d users came, want all 40, or this shows nothing", *seed+s, n)
		}
		seen[r.Units[1]]++
	}
	if len(seen) < 4 {
		t.Errorf("so many of 40 users are the canary's: %v of 20 seeds, want it to vary as tosses do", seen)
	}
}

// TestWhatIsAllowed: an arm that is worse, but by less than an operator allowed, is stopped with a probability of at most alpha.
func TestWhatIsAllowed(t *testing.T) {
	const n = 60
	for name, tc := range map[string]trial.Trial{
		"TTFT +15 % of 20 %":        {TTFT: 1.15},
		"TPS -13 % of 15 %":         {TPS: 0.87},
		"failures +2 points of 3":   {Failures: 0.02},
		"failures +20 points of 25": {Failures: 0.2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tc.Requests, tc.Steps, tc.Hosts, tc.HostSD, tc.Every = 4000, []trial.Step{{Weight: 0.3}}, [2]int{6, 0}, 0.12, 64
			tc.Design.Guardrails = []stats.Guardrail{
				{Metric: stats.TTFT, Margin: 0.2, Tolerate: 0.2}, {Metric: stats.TPS, Margin: 0.15, Tolerate: 0.15}, {Metric: stats.Failed, Margin: 0.03, Tolerate: 0.03},
			}
			if tc.Failures > 0.1 {
				tc.Design.Guardrails[2].Margin, tc.Design.Guardrails[2].Tolerate = 0.25, 0.25
			}
			stops, first := stopped(many(t, &tc, n, false))
			if most := 0.05*n + 2*math.Sqrt(0.05*0.95*n); float64(stops) > most {
				t.Errorf("%d of %d were stopped: want at most %.0f; seed %d; one of them: %s", stops, n, most, *seed, first)
			}
			t.Logf("%d of %d stopped", stops, n)
		})
	}
}

// TestPower holds the statistics to finding what there is, about as soon as docs/experiments.md says.
func TestPower(t *testing.T) {
	for name, tc := range map[string]struct {
		t       trial.Trial
		runs    int
		atLeast float64 // share that is stopped
		by      stats.Metric
	}{
		"TTFT +10 %":      {trial.Trial{Requests: 16000, TTFT: 1.1, Steps: []trial.Step{{0, 0.5}}}, 40, 0.9, stats.TTFT},
		"TPS -10 %":       {trial.Trial{Requests: 6000, TPS: 0.9, Steps: []trial.Step{{0, 0.5}}}, 40, 0.95, stats.TPS},
		"failures +1 pt":  {trial.Trial{Requests: 30000, Failures: 0.01, Steps: []trial.Step{{0, 0.5}}, Every: 64}, 30, 0.8, stats.Failed},
		"failures +20 pt": {trial.Trial{Requests: 3000, Users: 1000, Failures: 0.2, Steps: []trial.Step{{0, 0.05}}, Every: 1}, 60, 0.95, stats.Failed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tc.t.Hosts = [2]int{6, 0}
			found, early := 0, 0
			for _, r := range many(t, &tc.t, tc.runs, false) {
				if r.Action == stats.Stop {
					if r.By == int(tc.by) {
						found++
					}
					if r.Units[1] <= 20 {
						early++
					}
				}
			}
			t.Logf("%d of %d stopped for it, %d within the canary's first 20 units", found, tc.runs, early)
			if share := float64(found) / float64(tc.runs); share < tc.atLeast {
				t.Errorf("%d of %d stopped by %s: want %.0f %%; seed %d", found, tc.runs, tc.by, 100*tc.atLeast, *seed)
			}
			if tc.t.Failures > 0.1 && float64(early) < 0.6*float64(tc.runs) {
				t.Errorf("%d of %d stopped within the canary's first 20 units: want 60 %%; seed %d", early, tc.runs, *seed)
			}
		})
	}
}

// TestSlowHosts puts the slowest hosts of one kind into the canary, whose model makes no difference at all. Callers may be protected
// from them, but the model must not be blamed.
func TestSlowHosts(t *testing.T) {
	const n = 60
	for name, hosts := range map[string][2]int{"two": {6, 2}, "four": {6, 4}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tc := trial.Trial{Requests: 12000, Users: 3000, Steps: ramp(12000), Hosts: hosts, HostSD: 0.15, Slowest: true, Every: 32}
			// SLO misses and failures are counted whoever is to blame; here is what is compared.
			tc.Design.Guardrails = []stats.Guardrail{{Metric: stats.TTFT, Margin: 0.1}, {Metric: stats.TPS, Margin: 0.05}, {Metric: stats.USD, Margin: 0.02}}
			verdicts, blamed := 0, 0
			example := ""
			for _, r := range many(t, &tc, n, true) {
				a := &r.Last.Arms[1]
				switch {
				case r.Action == stats.Stop:
					verdicts++
					t.Logf("verdict: %s", a.Reason)
				case r.Action == stats.Hold && strings.HasPrefix(a.Reason, "hosts differ: no verdict on the model") && a.Model == a.Reason:
					blamed++
					example = a.Reason
				}
			}
			t.Logf("%d of %d blame hosts, %d the model; as in: %s", blamed, n, verdicts, example)
			if verdicts > n/20 {
				t.Errorf("%d of %d blame the model: want at most 5 %%; seed %d", verdicts, n, *seed)
			}
			if blamed < n*3/4 {
				t.Errorf("%d of %d blame hosts at the end: want three of four; seed %d", blamed, n, *seed)
			}
		})
	}
}

// The table of the docs: its sizes, weights and runs, and where it stands.
const (
	docs      = "../../../docs/experiments.md"
	tableRuns = 150
	firstRuns = 2000
)

// section is what stands between two marks of the docs.
func section(t *testing.T, text, name string) (before, table, after string) {
	t.Helper()
	from, to := "<!-- "+name+" -->\n", "<!-- /"+name+" -->\n"
	before, rest, ok := strings.Cut(text, from)
	table, after, ok2 := strings.Cut(rest, to)
	if !ok || !ok2 {
		t.Fatalf("%s: no %q and %q", docs, from, to)
	}
	return before + from, table, to + after
}

var (
	tableSizes   = []int{1000, 2000, 5000, 10000, 20000}
	tableWeights = []float64{0.1, 0.5}
)

// TestDocs holds rows of the docs' table that are quick to run to what comes out now. With -update it writes the table.
func TestDocs(t *testing.T) {
	b, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		power := func(effects []trial.Effect, units []bool) string {
			rows, err := trial.Power(t.Context(), effects, units, tableWeights, tableSizes, tableRuns, *seed)
			if err != nil {
				t.Fatal(err)
			}
			return trial.Markdown(rows)
		}
		first, err := trial.FirstUnits(t.Context(), []float64{0.05, 0.1, 0.25, 0.5}, []float64{0, 0.001, 0.005, 0.01, 0.02, 0.05}, 0.2, firstRuns, *seed)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []struct{ name, table string }{
			{"first", trial.FirstMarkdown(first)}, {"tolerated", power(trial.Tolerated(), []bool{false})}, {"power", power(trial.Effects(), []bool{false, true})},
		} {
			if b, err = os.ReadFile(docs); err != nil { // as it is now: this takes minutes
				t.Fatal(err)
			}
			before, _, after := section(t, string(b), s.name)
			if err := os.WriteFile(docs, []byte(before+s.table+after), 0o644); err != nil { //nolint:gosec // documentation
				t.Fatal(err)
			}
		}
		return
	}
	_, table, _ := section(t, string(b), "power")
	if runtime.GOARCH != "amd64" {
		t.Skip("the table is of amd64: another processor rounds otherwise, and some runs stop a look sooner")
	}
	rows, err := trial.Power(t.Context(), trial.Effects()[5:], []bool{false, true}, tableWeights, tableSizes, tableRuns, *seed)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.SplitAfter(trial.Markdown(rows), "\n") {
		if !strings.Contains(table, line) {
			t.Errorf("%s lacks this row; go test ./router/experiment/trial -run TestDocs -update writes them anew:\n%s", docs, line)
		}
	}
}
