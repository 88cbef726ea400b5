package stats_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"headrace/router/experiment/stats"
)

// step is a part of an experiment: the canary's weight, requests, and what both arms meet.
type step struct {
	weight   float64
	requests int
	bad      [2]float64 // share of the control's and the canary's requests that go bad, in whichever way
	level    [2]float64 // log of what is compared, or the score
}

// walk sends the requests of steps through an experiment. Users of a sticky one come again in all of them.
func walk(t *testing.T, e *stats.Experiment, r *rand.Rand, sticky bool, m stats.Metric, steps []step) {
	t.Helper()
	for i, s := range steps {
		if i > 0 {
			if err := e.Reweigh([]float64{1 - s.weight, s.weight}); err != nil {
				t.Fatal(err)
			}
		}
		for range s.requests {
			unit := r.Uint64()
			if sticky {
				unit = uint64(r.IntN(2000)) * 0x9e3779b97f4a7c15
			}
			o := stats.Unknown(unit, 0)
			if place := float64(unit*0xd6e8feb86659fd93>>11) / (1 << 53); place < s.weight {
				o.Arm = 1
			}
			o.Block = stats.BlockOf(1, 100, 0.1)
			bad, level := r.Float64() < s.bad[o.Arm], s.level[o.Arm]
			switch m {
			case stats.Failed:
				o.Failed = bad
			case stats.Missed:
				o.Missed = bad
			case stats.Truncated:
				o.Truncated = bad
			case stats.Score:
				o.Score = level + 0.2*r.NormFloat64()
			case stats.TTFT:
				o.TTFT = math.Exp(level + 0.3*r.NormFloat64())
			case stats.TPS:
				o.TPS = 30 * math.Exp(-level+0.3*r.NormFloat64())
			case stats.USD:
				o.USDPerMtok = math.Exp(level + 0.3*r.NormFloat64())
			}
			e.Record(&o)
		}
	}
}

// TestSteps: what changes with time is nobody's doing, though an arm has more of the later requests. It neither makes a good arm look
// bad nor hides what a bad one does, in whatever metric.
func TestSteps(t *testing.T) {
	type pair = [2]float64
	alike := func(v float64) pair { return pair{v, v} }
	shares := map[string][]step{
		"more goes bad, with both":                              {{0.05, 8000, alike(0.002), pair{}}, {0.5, 4000, alike(0.06), pair{}}},
		"less goes bad, and five times as much with the canary": {{0.05, 6000, alike(0.1), pair{}}, {0.5, 6000, pair{0.01, 0.05}, pair{}}},
	}
	levels := map[string][]step{
		"slower, with both":                  {{0.05, 3000, pair{}, alike(0)}, {0.5, 1500, pair{}, alike(0.7)}},
		"faster, and less so the canary":     {{0.05, 3000, pair{}, alike(0.7)}, {0.5, 3000, pair{}, pair{0, 0.25}}},
		"liked less, with both":              {{0.05, 3000, pair{}, alike(0.9)}, {0.5, 1500, pair{}, alike(0.3)}},
		"liked more, and less so the canary": {{0.05, 3000, pair{}, alike(0.3)}, {0.5, 3000, pair{}, pair{0.9, 0.75}}},
	}
	for _, tc := range []struct {
		m      stats.Metric
		margin float64
		of     map[string][]step
		accuse string // where nothing differs
		hide   string // where the canary does harm
	}{
		{stats.Failed, 0.005, shares, "more goes bad, with both", "less goes bad, and five times as much with the canary"},
		{stats.Missed, 0.005, shares, "more goes bad, with both", "less goes bad, and five times as much with the canary"},
		{stats.Truncated, 0.005, shares, "more goes bad, with both", "less goes bad, and five times as much with the canary"},
		{stats.TTFT, 0.1, levels, "slower, with both", "faster, and less so the canary"},
		{stats.TPS, 0.1, levels, "slower, with both", "faster, and less so the canary"},
		{stats.USD, 0.1, levels, "slower, with both", "faster, and less so the canary"},
		{stats.Score, 0.05, levels, "liked less, with both", "liked more, and less so the canary"},
	} {
		for _, sticky := range []bool{false, true} {
			for _, tolerate := range []float64{0, tc.margin} {
				for name, harm := range map[string]bool{tc.accuse: false, tc.hide: true} {
					t.Run(fmt.Sprintf("%s sticky %t tolerate %v %s", tc.m, sticky, tolerate, name), func(t *testing.T) {
						t.Parallel()
						steps := tc.of[name]
						e := design(t, stats.Design{
							Sticky: sticky, Arms: []string{"control", "canary"}, Weights: []float64{1 - steps[0].weight, steps[0].weight},
							Guardrails: []stats.Guardrail{{Metric: tc.m, Margin: tc.margin, Tolerate: tolerate}},
						})
						walk(t, e, rand.New(rand.NewPCG(31, 32)), sticky, tc.m, steps)
						v := canary(e)
						got := estimate(t, v, tc.m)
						if (v.Action == stats.Stop) != harm || harm && got.Finding != stats.Harm {
							t.Errorf("%s: %s: %+v: want it stopped %t", v.Action, v.Reason, got, harm)
						}
						if len(got.Steps) != 2 || got.Steps[0].Weight != steps[0].weight || math.Abs(got.Steps[0].Share+got.Steps[1].Share-1) > 1e-9 {
							t.Errorf("steps %+v: want both, with all of the difference between them", got.Steps)
						}
						if !harm && (got.Low > 0 || got.High < 0) {
							t.Errorf("interval %v to %v: want no difference in it", got.Low, got.High)
						}
					})
				}
			}
		}
	}
}

// TestContradiction: one user of the control's who fails all the time outweighs many of the canary's who fail once. More of its users went bad
// for sure, and fewer requests did: that is no proof of harm, and nothing to be promoted by.
func TestContradiction(t *testing.T) {
	for _, tolerate := range []float64{0, 0.05} {
		e := design(t, stats.Design{Sticky: true, Guardrails: []stats.Guardrail{{Metric: stats.Failed, Margin: 0.05, Tolerate: tolerate}}})
		for i := range uint64(4000) {
			arm := int(i & 1)
			for k := range 20 {
				o := stats.Unknown(i*0x9e3779b97f4a7c15, arm)
				o.Failed = arm == 1 && i%40 == 1 && k == 7 || arm == 0 && i%200 == 0
				e.Record(&o)
			}
		}
		v := canary(e)
		got := estimate(t, v, stats.Failed)
		if got.Bad != [2]int{20, 100} || got.Diff >= 0 {
			t.Fatalf("%+v: want more votes of the canary's and fewer failures, or this shows nothing", got)
		}
		if v.Action != stats.Hold || got.Finding != stats.Suspicion {
			t.Errorf("tolerate %v: %s: %s, %s: want it held", tolerate, v.Action, v.Reason, got.Finding)
		}
	}
}

// TestThoseWhoStay: users who fail always, in each of three steps, are not three times as many.
func TestThoseWhoStay(t *testing.T) {
	width := func(steps int) float64 {
		e := design(t, stats.Design{Sticky: true, Guardrails: []stats.Guardrail{{Metric: stats.Failed, Margin: 0.01}}})
		for k := range steps {
			if k > 0 {
				w := 0.5 + 0.001*float64(k)
				if err := e.Reweigh([]float64{1 - w, w}); err != nil {
					t.Fatal(err)
				}
			}
			for i := range uint64(2000) {
				o := stats.Unknown(i*0x9e3779b97f4a7c15, int(i&1))
				o.Failed = i%50 < 2 // one in 25 of either arm
				e.Record(&o)
			}
		}
		got := estimate(t, canary(e), stats.Failed)
		if got.Units != [2]int{1000, 1000} {
			t.Errorf("%d steps: %v units, want a thousand of each", steps, got.Units)
		}
		return float64(got.High - got.Low)
	}
	if one, three := width(1), width(3); math.Abs(three/one-1) > 0.03 {
		t.Errorf("the interval is %v wide after three steps, %v after one: the same users tell no more", three, one)
	}
}

// TestTolerated: harm that is within what is tolerated is not proven to be beyond it, by whatever metric.
func TestTolerated(t *testing.T) {
	for _, tc := range []struct {
		m        stats.Metric
		tolerate float64
		s        step
		want     stats.Action
	}{
		{stats.Failed, 0.02, step{0.5, 20000, [2]float64{0.01, 0.02}, [2]float64{}}, stats.Promote},
		{stats.Failed, 0.02, step{0.5, 20000, [2]float64{0.01, 0.05}, [2]float64{}}, stats.Stop},
		{stats.Missed, 0.05, step{0.5, 20000, [2]float64{0.1, 0.12}, [2]float64{}}, stats.Promote},
		{stats.Missed, 0.05, step{0.5, 20000, [2]float64{0.1, 0.18}, [2]float64{}}, stats.Stop},
		{stats.USD, 0.2, step{0.5, 20000, [2]float64{}, [2]float64{0, math.Log(1.15)}}, stats.Promote},
		{stats.USD, 0.2, step{0.5, 20000, [2]float64{}, [2]float64{0, math.Log(1.3)}}, stats.Stop},
		{stats.TPS, 0.15, step{0.5, 20000, [2]float64{}, [2]float64{0, -math.Log(0.88)}}, stats.Promote},
		{stats.TPS, 0.15, step{0.5, 20000, [2]float64{}, [2]float64{0, -math.Log(0.8)}}, stats.Stop},
		{stats.Score, 0.1, step{0.5, 20000, [2]float64{}, [2]float64{0.8, 0.73}}, stats.Promote},
		{stats.Score, 0.1, step{0.5, 20000, [2]float64{}, [2]float64{0.8, 0.65}}, stats.Stop},
	} {
		t.Run(fmt.Sprintf("%s %v", tc.m, tc.want), func(t *testing.T) {
			t.Parallel()
			e := design(t, stats.Design{Guardrails: []stats.Guardrail{{Metric: tc.m, Margin: tc.tolerate, Tolerate: tc.tolerate}}})
			walk(t, e, rand.New(rand.NewPCG(33, 34)), false, tc.m, []step{tc.s})
			if v := canary(e); v.Action != tc.want {
				t.Errorf("%s: %s: want %s", v.Action, v.Reason, tc.want)
			}
		})
	}
}

// TestUnitsFrom counts who came in an epoch or later, each once, however often and wherever; a score alone is no request.
func TestUnitsFrom(t *testing.T) {
	for _, sticky := range []bool{false, true} {
		e, other := design(t, stats.Design{Sticky: sticky}), design(t, stats.Design{Sticky: sticky})
		ask := func(e *stats.Experiment, units ...uint64) {
			for _, u := range units {
				o := stats.Unknown(u, 1)
				o.Epoch = e.Epoch()
				e.Record(&o)
			}
		}
		step := func(canary float64) {
			for _, e := range []*stats.Experiment{e, other} {
				if err := e.Reweigh([]float64{1 - canary, canary}); err != nil {
					t.Fatal(err)
				}
			}
		}
		ask(e, 1, 2, 3, 3)
		ask(other, 3, 4)
		step(0.6)
		ask(e, 1, 1, 5)
		ask(other, 5)
		step(0.7)
		step(0.8)
		ask(other, 6, 1)
		e.Feedback(2, 1, 0, 1)
		if err := e.Merge("other", other.Snapshot()); err != nil {
			t.Fatal(err)
		}
		want := []int{12, 6, 2, 2}
		if sticky {
			want = []int{6, 3, 2, 2} // 1, 5 and 6 from the second on
		}
		if got := canary(e).UnitsFrom; !slices.Equal(got, want) {
			t.Errorf("sticky %t: units %v, want %v", sticky, got, want)
		}
	}
}
