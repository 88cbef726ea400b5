package experiments

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"headrace/gateway/ledger"
	"headrace/gateway/state"
	"headrace/router/experiment"
	"headrace/router/experiment/stats"
)

// TestUnderWay counts requests that are under way at a step by the shares that they found their arm by: a canary whose answers take ten times
// as long loses none of them, and the assignment is not broken for it.
func TestUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := trialOf(func(s *experiment.Spec) {
			s.Steps, s.MinTime, s.MinUnits = []float64{0.05, 0.25, 0.5, 0.9}, 10*time.Minute, 50
			s.Units = []experiment.Unit{{Kind: experiment.ByRequest}}
		})
		tr.Guardrails = []stats.Guardrail{{Metric: stats.Failed, Margin: 0.02, Tolerate: 0.02}}
		a := startWith(t, Options{Store: state.NewMemory(), Look: 5 * time.Second, Tell: 5 * time.Second}, tr)
		w := newWorld(t)
		const n = 45 * 60 * 5
		for i := range n {
			as := a.Table().Of("m")[0]
			arm, key := as.Assign([]byte(fmt.Sprint("req_", w.rng.Uint64())))
			rec := &ledger.Record{ID: fmt.Sprint("req_", i), At: time.Now(), Arm: arm.Label(), Unit: key, Lot: as.Lot, Status: 200, Tries: 1, Attempts: []ledger.Attempt{{Endpoint: "static:1"}}}
			takes := 10 * time.Second
			if arm.Name == "canary" {
				takes = 100 * time.Second
			}
			time.AfterFunc(takes, func() { a.Observe(rec) })
			pass(200 * time.Millisecond)
		}
		pass(2 * time.Minute)
		v, err := a.Show(t.Context(), "e")
		if err != nil || v.State != experiment.Running || v.Step < 3 {
			t.Fatalf("it is %s at step %d: %+v, %v", v.State, v.Step, v.Decisions, err)
		}
		if v.Verdict.Broken != "" || v.Uncounted.Late != 0 || v.Verdict.Seq != n {
			t.Errorf("%d of %d requests counted, %d late; %q", v.Verdict.Seq, n, v.Uncounted.Late, v.Verdict.Broken)
		}
		a.stop()
	})
}

// TestLateRun leaves out the requests of an earlier run.
func TestLateRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startReplica(t, state.NewMemory(), trialOf())
		as := a.Table().Of("m")[0]
		for _, c := range []experiment.Command{experiment.Abort, experiment.Start} {
			if _, err := a.Apply(t.Context(), "e", c, ""); err != nil {
				t.Fatal(err)
			}
		}
		for i, lot := range []experiment.Lot{as.Lot, a.Table().Of("m")[0].Lot} {
			a.Observe(&ledger.Record{ID: fmt.Sprint("req_", i), At: time.Now(), Arm: "e/canary", Unit: 1, Lot: lot, Status: 200, Tries: 1})
		}
		pass(time.Second)
		if v, _ := a.Show(t.Context(), "e"); v.Run != 2 || v.Verdict.Seq != 1 || v.Uncounted.Late != 1 {
			t.Errorf("run %d has %d requests and left out %d, want one and one", v.Run, v.Verdict.Seq, v.Uncounted.Late)
		}
		a.stop()
	})
}

// TestTooManyShares takes no step beyond the shares that statistics can tell apart, and says so; what comes in is recorded as ever, and harm ends it.
func TestTooManyShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startReplica(t, state.NewMemory(), failuresOnly(func(s *experiment.Spec) { s.MinTime, s.MinUnits = time.Second, 1 }))
		w := newWorld(t)
		for k := range 40 { // a config that is rolled out again and again, with more each time
			steps := []float64{0.1 + 0.02*float64(k), 0.11 + 0.02*float64(k), 1}
			a.Configure([]Trial{failuresOnly(func(s *experiment.Spec) { s.Steps, s.MinTime, s.MinUnits = steps, time.Second, 1 })})
			for range 20 {
				w.request(a)
				pass(200 * time.Millisecond)
			}
		}
		before, _ := a.Show(t.Context(), "e")
		if before.Problem != "" || !strings.Contains(before.Waits, "shares have changed 31 times") || len(before.Weights) != 32 || before.State != experiment.Running {
			t.Fatalf("%d weights, problem %q, waits for %q, it is %s", len(before.Weights), before.Problem, before.Waits, before.State)
		}
		for range 200 {
			w.request(a)
			pass(100 * time.Millisecond)
		}
		after, _ := a.Show(t.Context(), "e")
		if after.Verdict.Seq != before.Verdict.Seq+200 || !slices.Equal(a.Table().Of("m")[0].Spec.Steps, []float64{0.88, 0.89, 1}) || after.Arms[1].Share != before.Arms[1].Share || after.State != experiment.Running {
			t.Errorf("then %d of %d requests, %v of the units, %s", after.Verdict.Seq, before.Verdict.Seq, after.Arms[1].Share, after.State)
		}
		w.bad = 0.9
		w.run(t, experiment.RolledBack, 2000, a)
		a.stop()
	})
}
