package stats_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"headrace/router/experiment/stats"
)

func design(t testing.TB, d stats.Design) *stats.Experiment {
	t.Helper()
	if d.Arms == nil {
		d.Arms, d.Weights = []string{"control", "canary"}, []float64{0.5, 0.5}
	}
	e, err := stats.New(d)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// answer is a request without anything odd on one of hosts of an arm, with the given factor on its TTFT.
func answer(r *rand.Rand, unit uint64, arm int, slower float64) stats.Observation {
	o := stats.Unknown(unit, arm)
	o.Block = stats.BlockOf(1, int64(50+r.IntN(2000)), r.Float64())
	o.Host = uint32(1 + r.IntN(6))
	o.TTFT = 0.3 * slower * math.Exp(0.5*r.NormFloat64())
	o.TPS = 30 * math.Exp(0.2*r.NormFloat64())
	o.USDPerMtok = 1.5 * math.Exp(0.1*r.NormFloat64())
	o.SpentUSD, o.OutputTokens = 0.0003, 200
	return o
}

func BenchmarkRecord(b *testing.B) {
	for name, sticky := range map[string]bool{"requests": false, "users": true} {
		b.Run(name, func(b *testing.B) {
			e := design(b, stats.Design{Sticky: sticky})
			r := rand.New(rand.NewPCG(1, 2))
			os := make([]stats.Observation, 4096)
			for i := range os {
				unit := r.Uint64() >> 52
				os[i] = answer(r, unit, int(unit&1), 1)
				os[i].Failed, os[i].Missed = r.IntN(50) == 0, r.IntN(20) == 0
				e.Record(&os[i])
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				e.Record(&os[i&4095])
				i++
			}
		})
	}
}

func BenchmarkVerdict(b *testing.B) {
	e := design(b, stats.Design{Sticky: true})
	r := rand.New(rand.NewPCG(1, 2))
	for range 200000 {
		unit := r.Uint64() >> 49
		o := answer(r, unit, int(unit&1), 1)
		e.Record(&o)
	}
	for name, look := range map[string]func() stats.Verdict{"words": e.Verdict, "peek": e.Peek} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				look()
			}
		})
	}
}

// canary is the verdict on the second arm.
func canary(e *stats.Experiment) stats.ArmVerdict { return e.Verdict().Arms[1] }

func estimate(t *testing.T, v stats.ArmVerdict, m stats.Metric) stats.Estimate {
	t.Helper()
	for _, e := range v.Estimates {
		if e.Metric == m {
			return e
		}
	}
	t.Fatalf("no estimate of %s in %+v", m, v)
	return stats.Estimate{}
}

// TestVotesAreFair lets one unit fail in every step of a rising weight, wherever its hash puts it. The e-value is fair: its mean
// over all places is one, at every step, whether the unit moves to the canary, stays or was there from the start.
func TestVotesAreFair(t *testing.T) {
	weights := []float64{0.1, 0.3, 0.4, 0.8}
	const places = 1000
	mean := make([]float64, len(weights))
	for i := range places {
		place := (float64(i) + 0.5) / places
		e := design(t, stats.Design{Sticky: true, Arms: []string{"control", "canary"}, Weights: []float64{1 - weights[0], weights[0]}})
		for k, w := range weights {
			if err := e.Reweigh([]float64{1 - w, w}); err != nil {
				t.Fatal(err)
			}
			o := stats.Unknown(7, 0)
			if place < w {
				o.Arm = 1
			}
			o.Failed = true
			e.Record(&o)
			e.Record(&o) // votes once a step
			mean[k] += math.Exp(float64(estimate(t, canary(e), stats.Failed).LogE)) / places
		}
	}
	for k, m := range mean {
		near(t, "mean e-value", m, 1, 1e-9)
		t.Logf("after the step to %v: mean e-value %.12f", weights[k], m)
	}
}

// TestVotesOfThreeArms is the same with two canaries that grow together, each against the control.
func TestVotesOfThreeArms(t *testing.T) {
	steps := [][]float64{{0.8, 0.1, 0.1}, {0.5, 0.3, 0.2}, {0.3, 0.3, 0.4}}
	const places = 1000
	var mean [2]float64
	for i := range places {
		place := (float64(i) + 0.5) / places
		e := design(t, stats.Design{Sticky: true, Arms: []string{"control", "a", "b"}, Weights: steps[0]})
		for _, w := range steps {
			if err := e.Reweigh(w); err != nil {
				t.Fatal(err)
			}
			o := stats.Unknown(7, 0)
			switch { // a grows from below, b from above
			case place < w[1]:
				o.Arm = 1
			case place >= 1-w[2]:
				o.Arm = 2
			}
			o.Failed = true
			e.Record(&o)
		}
		for k, a := range e.Verdict().Arms[1:] {
			mean[k] += math.Exp(float64(estimate(t, a, stats.Failed).LogE)) / places
		}
	}
	for _, m := range mean {
		near(t, "mean e-value", m, 1, 1e-9)
	}
}

// TestWeightsThatFall: of a unit that voted, nothing more is learned once an arm lost weight.
func TestWeightsThatFall(t *testing.T) {
	e := design(t, stats.Design{Sticky: true, Weights: []float64{0.7, 0.3}, Arms: []string{"control", "canary"}})
	o := stats.Unknown(1, 0)
	o.Failed = true
	e.Record(&o)
	before := estimate(t, canary(e), stats.Failed).LogE
	for _, w := range []float64{0.1, 0.5} {
		if err := e.Reweigh([]float64{1 - w, w}); err != nil {
			t.Fatal(err)
		}
	}
	o.Arm = 1
	e.Record(&o)
	if after := estimate(t, canary(e), stats.Failed).LogE; after != before {
		t.Errorf("log e-value went from %v to %v: want no vote of a unit whose place nobody knows", before, after)
	}
	o.Unit = 2
	e.Record(&o)
	if after := estimate(t, canary(e), stats.Failed).LogE; after <= before {
		t.Errorf("log e-value went from %v to %v: want the vote of a new unit", before, after)
	}
}

// TestLateVotesAreFair lets a unit fail in requests that were under way while the weight rose, and come in in whatever order: the mean
// of the e-value over all places stays one after each of them, for each counts by the weights that its arm was drawn by.
func TestLateVotesAreFair(t *testing.T) {
	weights := []float64{0.1, 0.4, 0.8}
	const places = 250
	for _, order := range [][]int{{0, 1, 2}, {1, 0, 2}, {2, 1, 0}, {0, 2, 1}, {2, 0, 1}} {
		for _, sticky := range []bool{false, true} {
			mean := make([]float64, len(order))
			for i := range places {
				place := (float64(i) + 0.5) / places
				e := design(t, stats.Design{Sticky: sticky, Arms: []string{"control", "canary"}, Weights: []float64{1 - weights[0], weights[0]}})
				epochs := []int{e.Epoch()}
				for _, w := range weights[1:] {
					if err := e.Reweigh([]float64{1 - w, w}); err != nil {
						t.Fatal(err)
					}
					epochs = append(epochs, e.Epoch())
				}
				for n, k := range order {
					o := stats.Unknown(7, 0)
					o.Failed, o.Epoch = true, epochs[k]
					if !sticky { // another unit each time, whose place has to do with nothing else
						place = math.Mod(place*7919+0.5/places, 1)
					}
					if place < weights[k] {
						o.Arm = 1
					}
					e.Record(&o)
					mean[n] += math.Exp(float64(estimate(t, canary(e), stats.Failed).LogE)) / places
				}
			}
			for n, m := range mean {
				tolerance := 1e-9
				if !sticky {
					tolerance = 0.05 // the places of several units are not all pairs of them
				}
				near(t, fmt.Sprintf("sticky %t, order %v: mean e-value after %d of them", sticky, order, n+1), m, 1, tolerance)
			}
		}
	}
}

// TestReweighRefuses says what is no set of weights, and when there were too many.
func TestReweighRefuses(t *testing.T) {
	e := design(t, stats.Design{})
	for _, w := range [][]float64{{1}, {0.5, 0.6}, {-0.1, 0.5}, {math.NaN(), 0.5}} {
		if e.Reweigh(w) == nil {
			t.Errorf("weights %v: want an error", w)
		}
	}
	var err error
	n := 0
	for ; err == nil && n < 100; n++ {
		w := 0.2 + 0.001*float64(n)
		err = e.Reweigh([]float64{1 - w, w})
		if again := e.Reweigh([]float64{1 - w, w}); err == nil && again != nil {
			t.Errorf("the same weights again: %v", again)
		}
	}
	if !errors.Is(err, stats.ErrEpochs) || n != 32 {
		t.Errorf("change %d: %v, want the 32nd to be refused", n, err)
	}
}

// TestNewRefuses has every mistake of a design in the error at once.
func TestNewRefuses(t *testing.T) {
	_, err := stats.New(stats.Design{
		Arms: []string{"one"}, Control: 3, Weights: []float64{0.5, 0.5}, Alpha: 2, MinUnits: 1, Capacity: 5,
		Guardrails: []stats.Guardrail{{Metric: stats.TTFT, Margin: -1}, {Metric: stats.TTFT}, {Metric: 99}, {Metric: stats.TPS, Margin: 1}, {Metric: stats.USD, Share: math.Inf(1)}},
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"1 arms", "arm 3 of 1", "2 weights for 1", "alpha 2", "min_units 1", "capacity 5", "ttft: margin -1", "ttft: named twice", "metric 99", "tps: margin 1", "usd_per_mtok: share"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
}

// TestSampleRatio loses canary units on the way, as a client does that gives up, and finds it; a fair draw passes, whatever the weights.
func TestSampleRatio(t *testing.T) {
	for name, tc := range map[string]struct {
		lost float64
		want bool
	}{"fair": {0, false}, "a tenth of the canary's lost": {0.1, true}} {
		t.Run(name, func(t *testing.T) {
			e := design(t, stats.Design{Sticky: true, Arms: []string{"control", "canary"}, Weights: []float64{0.8, 0.2}})
			r := rand.New(rand.NewPCG(3, 4))
			w := 0.2
			for i := range 20000 {
				if i == 8000 {
					w = 0.5
					if err := e.Reweigh([]float64{1 - w, w}); err != nil {
						t.Fatal(err)
					}
				}
				o := stats.Unknown(r.Uint64(), 0)
				if r.Float64() < w {
					if o.Arm = 1; r.Float64() < tc.lost {
						continue
					}
				}
				e.Record(&o)
			}
			v := e.Verdict()
			if got := v.Broken != ""; got != tc.want || (v.Arms[1].Action == stats.Stop) != tc.want {
				t.Errorf("log e-value %v, action %s, broken %q: want broken %t", v.Arms[1].SRM, v.Arms[1].Action, v.Broken, tc.want)
			}
			if tc.want && !strings.HasPrefix(v.Arms[1].Reason, "assignment broken") {
				t.Errorf("reason %q", v.Arms[1].Reason)
			}
		})
	}
}

// TestFirstUnits: five of the canary's first 20 that fail stop it, fewer where more is known of the control, and none where that fails like it.
func TestFirstUnits(t *testing.T) {
	for name, tc := range map[string]struct {
		canary, control int // of the canary's 20 and the control's that fail
		each            int // of the control's for one of the canary's
		alpha, tolerate float64
		want            bool
	}{
		"five":                                {5, 0, 1, 0.05, 0, true},
		"four":                                {4, 0, 1, 0.05, 0, false},
		"four, control as well":               {4, 3, 1, 0.05, 0, false},
		"everything fails":                    {20, 20, 1, 0.05, 0, false},
		"three of a tenth":                    {3, 0, 9, 0.05, 0, true},
		"two of a tenth":                      {2, 0, 9, 0.05, 0, true},
		"one of a tenth":                      {1, 0, 9, 0.05, 0, false},
		"two, with less alpha":                {2, 0, 9, 0.01, 0, false},
		"two, some are tolerated":             {2, 0, 9, 0.05, 0.02, false},
		"five, some are tolerated":            {5, 0, 9, 0.05, 0.02, true},
		"two of a twentieth, control as well": {2, 9, 19, 0.05, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			g := []stats.Guardrail{{Metric: stats.TTFT}} // no e-process is asked
			if tc.tolerate > 0 {
				g = append(g, stats.Guardrail{Metric: stats.Failed, Margin: tc.tolerate, Tolerate: tc.tolerate})
			}
			w := 1 / float64(tc.each+1)
			e := design(t, stats.Design{Arms: []string{"control", "canary"}, Weights: []float64{1 - w, w}, Sticky: true, Alpha: tc.alpha, Guardrails: g})
			for i := range 20 * tc.each {
				o := stats.Unknown(uint64(i), 0)
				o.Failed = i < tc.control
				e.Record(&o)
			}
			for i := range 20 {
				o := stats.Unknown(uint64(1000+i), 1)
				o.Failed = i < tc.canary
				e.Record(&o)
			}
			v := canary(e)
			if got := v.Action == stats.Stop; got != tc.want || got && !strings.Contains(v.Reason, fmt.Sprintf("%d of the first 20 units failed", tc.canary)) {
				t.Errorf("%s: %s, want stopped %t", v.Action, v.Reason, tc.want)
			}
		})
	}
	e := design(t, stats.Design{Sticky: true, Guardrails: []stats.Guardrail{{Metric: stats.TTFT}}})
	for i := range 8 {
		o := stats.Unknown(uint64(1000+i), 0)
		e.Record(&o)
	}
	for i := range 40 { // a unit's later failures are no news of the arm's beginning
		o := stats.Unknown(uint64(i%8), 1)
		o.Failed = i >= 8
		e.Record(&o)
	}
	if v := canary(e); v.Action == stats.Stop {
		t.Errorf("stopped for later requests: %s", v.Reason)
	}
}

// fill records n requests of users for both arms, the canary's slower by a factor.
func fill(e *stats.Experiment, r *rand.Rand, n int, slower float64) {
	for range n {
		unit := r.Uint64() >> 52
		o := answer(r, unit, int(unit&1), 1)
		if o.Arm == 1 {
			o.TTFT *= slower
		}
		o.Failed, o.Missed = r.IntN(200) == 0, r.IntN(50) == 0
		e.Record(&o)
	}
}

// TestPromote brings an arm home that is no worse, and not one that is not shown to be.
func TestPromote(t *testing.T) {
	margins := []stats.Guardrail{{Metric: stats.Failed, Margin: 0.01}, {Metric: stats.TTFT, Margin: 0.1}, {Metric: stats.TPS, Margin: 0.05}, {Metric: stats.USD, Margin: 0.02}}
	e := design(t, stats.Design{Sticky: true, Guardrails: margins})
	r := rand.New(rand.NewPCG(5, 6))
	fill(e, r, 60, 1)
	if v := canary(e); v.Action != stats.Hold || !strings.Contains(v.Reason, "too few") {
		t.Errorf("after 60 requests: %s, %s: want to hold", v.Action, v.Reason)
	}
	fill(e, r, 900, 1)
	if v := canary(e); v.Action != stats.Advance {
		t.Errorf("after 1,000 requests: %s, %s: want to advance", v.Action, v.Reason)
	}
	fill(e, r, 60000, 1)
	v := canary(e)
	if v.Action != stats.Promote {
		t.Errorf("after 60,000 requests: %s, %s: want to promote", v.Action, v.Reason)
	}
	for _, m := range []stats.Metric{stats.TTFT, stats.TPS, stats.USD, stats.Failed} {
		if got := estimate(t, v, m); got.Low > 0 || got.High < 0 || got.Finding != stats.Within {
			t.Errorf("%s: %+v: want within its margin, with no difference in the interval", m, got)
		}
	}
}

// TestTolerate: harm that an operator allowed for does not stop an arm; more than that does.
func TestTolerate(t *testing.T) {
	slow(t)
	for name, tc := range map[string]struct {
		slower, tolerate float64
		want             stats.Action
	}{
		"none allowed":   {1.15, 0, stats.Stop},
		"a fifth is":     {1.15, 0.2, stats.Promote},
		"half is more":   {1.5, 0.2, stats.Stop},
		"it is a little": {1.01, 0.2, stats.Promote},
	} {
		t.Run(name, func(t *testing.T) {
			e := design(t, stats.Design{Sticky: true, Guardrails: []stats.Guardrail{{Metric: stats.TTFT, Margin: 0.2, Tolerate: tc.tolerate}}})
			fill(e, rand.New(rand.NewPCG(7, 8)), 80000, tc.slower)
			if v := canary(e); v.Action != tc.want {
				t.Errorf("%s: %s: want %s", v.Action, v.Reason, tc.want)
			}
		})
	}
}

// TestGoal: an arm that has to be cheaper is promoted when it is, and not for being as dear.
func TestGoal(t *testing.T) {
	for name, tc := range map[string]struct {
		price float64
		want  stats.Action
	}{"a fifth cheaper": {0.8, stats.Promote}, "the same": {1, stats.Advance}, "dearer": {1.1, stats.Stop}} {
		t.Run(name, func(t *testing.T) {
			e := design(t, stats.Design{Guardrails: []stats.Guardrail{{Metric: stats.USD, Margin: 0.1, Goal: true}}})
			r := rand.New(rand.NewPCG(9, 10))
			for i := range 20000 {
				o := answer(r, 0, i&1, 1)
				if o.Arm == 1 {
					o.USDPerMtok *= tc.price
				}
				e.Record(&o)
			}
			if v := canary(e); v.Action != tc.want {
				t.Errorf("%s: %s: want %s", v.Action, v.Reason, tc.want)
			}
		})
	}
}

// TestScore: feedback joins as a guardrail, for units that come again and for those that do not.
func TestScore(t *testing.T) {
	for _, sticky := range []bool{false, true} {
		e := design(t, stats.Design{Sticky: sticky, Guardrails: []stats.Guardrail{{Metric: stats.Score, Margin: 0.1}}})
		r := rand.New(rand.NewPCG(11, 12))
		for i := range 4000 {
			unit := uint64(i / 2)
			arm := int(unit & 1)
			o := stats.Unknown(unit, arm)
			e.Record(&o)
			e.Feedback(unit, arm, 0, 0.8-0.1*float64(arm)+0.2*r.NormFloat64())
			e.Feedback(unit, arm, 0, math.NaN())
		}
		v := canary(e)
		if got := estimate(t, v, stats.Score); v.Action != stats.Stop || math.Abs(float64(got.Diff)+0.1) > 0.03 || got.Finding != stats.Harm {
			t.Errorf("sticky %t: %s: %s, %+v: want it stopped for a tenth less", sticky, v.Action, v.Reason, got)
		}
		if v.Requests != 2000 || v.SRM > 1 {
			t.Errorf("sticky %t: %d requests, log e-value of units %v: want 2,000, and feedback to be no unit", sticky, v.Requests, v.SRM)
		}
	}
}

// TestSetAside: what is counted and not compared.
func TestSetAside(t *testing.T) {
	e := design(t, stats.Design{})
	r := rand.New(rand.NewPCG(13, 14))
	base := func(arm int) stats.Observation {
		o := answer(r, 1, arm, 1)
		o.Block = stats.BlockOf(1, 100, 0.1)
		return o
	}
	for range 10 {
		o := base(0)
		e.Record(&o)
	}
	odd := []func(*stats.Observation){
		func(*stats.Observation) {},
		func(o *stats.Observation) { o.Cold = true },
		func(o *stats.Observation) { o.Preempted, o.Truncated = true, true },
		func(o *stats.Observation) { o.OutOfArm, o.Metered = true, true },
		func(o *stats.Observation) { o.Forced = true },
		func(o *stats.Observation) { o.Block = stats.BlockOf(2, 100, 0.1) },                                   // other hosts
		func(o *stats.Observation) { o.Block = stats.BlockOf(1, 5000, 0.1) },                                  // another prompt
		func(o *stats.Observation) { o.SpentUSD, o.Resumes, o.Failed, o.Metered = math.NaN(), 2, true, true }, // no price
		func(o *stats.Observation) { o.TTFT, o.TPS, o.USDPerMtok = 0, math.Inf(1), math.NaN() },               // no figures at all
	}
	for _, f := range odd {
		o := base(1)
		f(&o)
		e.Record(&o)
	}
	v := canary(e)
	want := stats.Counts{Requests: 9, Forced: 1, Failed: 1, Truncated: 1, OutOfArm: 1, Cold: 1, Preempted: 1, Unmatched: 2, Resumes: 2, Unpriced: 1, OutputTokens: 1800, PricedTokens: 1600, SpentUSD: v.SpentUSD, MeteredUSD: 0.0003}
	if v.Counts != want {
		t.Errorf("counts %+v, want %+v", v.Counts, want)
	}
	near(t, "dollars", v.SpentUSD, 8*0.0003, 1e-9)
	if got := estimate(t, v, stats.TTFT).Units; got != [2]int{7, 1} {
		t.Errorf("compared %v: want 7 of the control, whose first three are what others are compared with, and 1", got)
	}
}

// TestUnmeasured: hosts without a price hold nobody up where nobody asked for one, and the reason says so; an arm without one is not
// promoted where the control has one, or where somebody did ask.
func TestUnmeasured(t *testing.T) {
	for name, tc := range map[string]struct {
		priced   [2]bool
		optional bool
		want     stats.Action
		why      string
	}{
		"neither":                  {[2]bool{false, false}, true, stats.Promote, "of neither arm there was any usd_per_mtok"},
		"the control":              {[2]bool{true, false}, true, stats.Advance, "usd_per_mtok: not known"},
		"both":                     {[2]bool{true, true}, true, stats.Promote, "every guardrail's interval is within its margin"},
		"neither, and it is asked": {[2]bool{false, false}, false, stats.Advance, "usd_per_mtok: not known"},
	} {
		t.Run(name, func(t *testing.T) {
			e := design(t, stats.Design{Guardrails: []stats.Guardrail{{Metric: stats.USD, Margin: 0.2, Optional: tc.optional}, {Metric: stats.TTFT, Margin: 0.2}}})
			r := rand.New(rand.NewPCG(15, 16))
			for i := range 20000 {
				o := answer(r, 0, i&1, 1)
				if !tc.priced[o.Arm] {
					o.USDPerMtok = math.NaN()
				}
				e.Record(&o)
			}
			if v := canary(e); v.Action != tc.want || !strings.Contains(v.Reason, tc.why) {
				t.Errorf("%s: %s: want %s: %s", v.Action, v.Reason, tc.want, tc.why)
			}
		})
	}
}

// TestPricesInDoubt has an arm on hosts of its own whose prices at full load are expected, not billed. What is not known of their speed stops
// nobody and holds nobody up, however many requests have the same wrong figure; what is beyond it does, and so does a price that is known.
// On the same hosts there is nothing to doubt, for both arms have the same.
func TestPricesInDoubt(t *testing.T) {
	for _, tc := range []struct {
		dearer, unsure float64
		shared         bool
		want           stats.Finding
		action         stats.Action
	}{
		{1.6, 0, false, stats.Harm, stats.Stop},
		{1.6, 0.02, false, stats.Harm, stats.Stop},
		{1.6, 0.35, false, stats.Open, stats.Advance},
		{1.6, math.NaN(), false, stats.Harm, stats.Stop},
		{8, 0.35, false, stats.Harm, stats.Stop},
		{1.6, 0.35, true, stats.Harm, stats.Stop},
	} {
		e := design(t, stats.Design{Guardrails: []stats.Guardrail{{Metric: stats.USD, Margin: 0.1, Tolerate: 0.1}}})
		r := rand.New(rand.NewPCG(13, 14))
		for i := range uint64(3000) {
			o := answer(r, i, int(i&1), 1)
			o.USDUnsure = 0.02
			if o.Arm == 1 {
				o.USDPerMtok *= tc.dearer
				o.USDUnsure = tc.unsure
				if !tc.shared {
					o.Host += 10
				}
			}
			e.Record(&o)
		}
		for what, v := range map[string]stats.ArmVerdict{"recorded": canary(e), "restored": canary(restored(t, e)), "merged": canary(merged(t, e))} {
			if got := estimate(t, v, stats.USD); got.Finding != tc.want || v.Action != tc.action {
				t.Errorf("%s, %v times as dear, unsure by %v, on the same hosts %v: %s, %s: %s; want %s, %s", what, tc.dearer, tc.unsure, tc.shared, got.Finding, v.Action, v.Reason, tc.want, tc.action)
			}
		}
	}
}

// restored is an experiment that has read what e has written.
func restored(t *testing.T, e *stats.Experiment) *stats.Experiment {
	t.Helper()
	again := design(t, e.Design())
	if err := again.Restore(e.Snapshot()); err != nil {
		t.Fatal(err)
	}
	return again
}

// merged is an experiment of a replica that has seen nothing but what e tells.
func merged(t *testing.T, e *stats.Experiment) *stats.Experiment {
	t.Helper()
	other := design(t, e.Design())
	if err := other.Merge("other", e.Snapshot()); err != nil {
		t.Fatal(err)
	}
	return other
}

// TestScoreAllAlike: forty answers that were all praised are no proof that the next would be; some thousands are. One kind of answer from
// all callers says nothing of an arm that gets the other.
func TestScoreAllAlike(t *testing.T) {
	for _, tc := range []struct {
		units        int
		control, arm float64
		want         stats.Finding
	}{
		{50, 1, 1, stats.Open},
		{50, 0, 0, stats.Open},
		{5000, 1, 1, stats.Within},
		{5000, 0.5, 0.5, stats.Within},
		{200, 1, 0, stats.Harm},
	} {
		for _, sticky := range []bool{true, false} {
			e := design(t, stats.Design{Sticky: sticky, Guardrails: []stats.Guardrail{{Metric: stats.Score, Margin: 0.05}}})
			for i := range uint64(tc.units) {
				for arm, score := range []float64{tc.control, tc.arm} {
					o := stats.Unknown(2*i+uint64(arm), arm)
					o.Score = score
					e.Record(&o)
				}
			}
			if got := estimate(t, canary(e), stats.Score); got.Finding != tc.want {
				t.Errorf("%d units of each arm, control %v, arm %v, sticky %v: %s (%v to %v), want %s", tc.units, tc.control, tc.arm, sticky, got.Finding, got.Low, got.High, tc.want)
			}
		}
	}
}

// TestScoreNeverSaid: a score that is a guardrail and that nobody gives keeps the arm from being promoted.
func TestScoreNeverSaid(t *testing.T) {
	e := design(t, stats.Design{Guardrails: []stats.Guardrail{{Metric: stats.TTFT, Margin: 0.2}, {Metric: stats.Score, Margin: 0.05, Tolerate: 0.05}}})
	r := rand.New(rand.NewPCG(15, 16))
	for i := range 20000 {
		o := answer(r, 0, i&1, 1)
		e.Record(&o)
	}
	if v := canary(e); v.Action != stats.Advance || !strings.HasPrefix(v.Reason, "score: not known") {
		t.Errorf("%s: %s: want advance, for want of a score", v.Action, v.Reason)
	}
}

// TestNoAnswers: an arm none of whose answers has a time goes no further while the control's have one.
func TestNoAnswers(t *testing.T) {
	e := design(t, stats.Design{Guardrails: []stats.Guardrail{{Metric: stats.TTFT, Margin: 0.2}}})
	r := rand.New(rand.NewPCG(19, 20))
	for i := range 2000 {
		o := answer(r, 0, i&1, 1)
		if o.Arm == 1 {
			o.TTFT, o.TPS = math.NaN(), math.NaN()
		}
		e.Record(&o)
	}
	if v := canary(e); v.Action != stats.Hold {
		t.Errorf("%s: %s: want hold", v.Action, v.Reason)
	}
}

// TestLikeWithLike gives the canary the long prompts and the busy hours. Its answers are slower for that, and nothing else.
func TestLikeWithLike(t *testing.T) {
	e := design(t, stats.Design{Guardrails: []stats.Guardrail{{Metric: stats.TTFT, Margin: 0.1}}})
	r := rand.New(rand.NewPCG(17, 18))
	for range 60000 {
		long, busy := r.IntN(2), r.IntN(2)
		arm := 0
		if r.Float64() < 0.1+0.4*float64(long)+0.3*float64(busy) {
			arm = 1
		}
		o := answer(r, 0, arm, 1)
		o.Block = stats.BlockOf(1, int64(100+3000*long), 0.1+0.8*float64(busy))
		o.TTFT *= 1 + 2*float64(long) + float64(busy)
		e.Record(&o)
	}
	got := estimate(t, canary(e), stats.TTFT)
	if got.Finding != stats.Within || math.Abs(float64(got.Diff)) > 0.03 {
		t.Errorf("TTFT %+v: want no difference", got)
	}
	if raw := float64(got.Arm/got.Control) - 1; raw < 0.3 {
		t.Errorf("typical TTFT is %.0f %% longer: want the raw figures to mislead, or this shows nothing", 100*raw)
	}
}

// TestSharedHosts: arms on the same hosts are compared without regard to how hosts differ.
func TestSharedHosts(t *testing.T) {
	e := design(t, stats.Design{Guardrails: []stats.Guardrail{{Metric: stats.TTFT, Margin: 0.1}}})
	r := rand.New(rand.NewPCG(19, 20))
	for i := range 20000 {
		o := answer(r, 0, i&1, 1)
		o.Host = uint32(1 + r.IntN(2))
		o.TTFT *= math.Exp(0.5 * float64(o.Host)) // one is much slower
		if o.Arm == 1 {
			o.TTFT *= 1.12
		}
		e.Record(&o)
	}
	v := canary(e)
	got := estimate(t, v, stats.TTFT)
	if v.Action != stats.Stop || !got.Hosts.Identifiable || got.Hosts.Shared < 0.9 {
		t.Errorf("%s: %s, hosts %+v: want it stopped, for both run on the same two", v.Action, v.Reason, got.Hosts)
	}
	if len(v.Hosts) != 2 || v.Hosts[0].Requests+v.Hosts[1].Requests != 10000 {
		t.Errorf("hosts %+v: want both, with 10,000 requests", v.Hosts)
	}
}

// TestTwiceAsSlow: what no two hosts of a kind differ by is the arm's own, even on one host.
func TestTwiceAsSlow(t *testing.T) {
	e := design(t, stats.Design{Guardrails: []stats.Guardrail{{Metric: stats.TTFT, Margin: 0.1}}})
	r := rand.New(rand.NewPCG(21, 22))
	for i := range 6000 {
		o := answer(r, 0, i&1, 1)
		if o.Arm == 1 {
			o.Host, o.TTFT = 99, 5*o.TTFT
		}
		e.Record(&o)
	}
	if v := canary(e); v.Action != stats.Stop || !strings.Contains(v.Model, "look at them before blaming the model") {
		t.Errorf("%s: %s; model: %s: want it stopped, and the model not blamed outright", v.Action, v.Reason, v.Model)
	}
}

// TestVerdictJSON: a verdict without any figures is still JSON, and reads back.
func TestVerdictJSON(t *testing.T) {
	e := design(t, stats.Design{})
	for range 2 {
		b, err := json.Marshal(e.Verdict())
		if err != nil {
			t.Fatal(err)
		}
		var v stats.Verdict
		if err := json.Unmarshal(b, &v); err != nil {
			t.Fatal(err)
		}
		if again, err := json.Marshal(v); err != nil || !bytes.Equal(b, again) {
			t.Errorf("read back and written: %s, %v; first %s", again, err, b)
		}
		fill(e, rand.New(rand.NewPCG(23, 24)), 2000, 1.3)
	}
}

// TestRecordAllocatesNothing once units, hosts and blocks are known.
func TestRecordAllocatesNothing(t *testing.T) {
	for _, sticky := range []bool{false, true} {
		e := design(t, stats.Design{Sticky: sticky})
		r := rand.New(rand.NewPCG(25, 26))
		os := make([]stats.Observation, 512)
		for i := range os {
			unit := uint64(i & 127)
			os[i] = answer(r, unit, int(unit&1), 1)
			os[i].Failed, os[i].Missed = i%9 == 0, i%7 == 0
			e.Record(&os[i])
		}
		i := 0
		if n := testing.AllocsPerRun(2000, func() { e.Record(&os[i&511]); i++ }); n != 0 {
			t.Errorf("sticky %t: %v allocations a request", sticky, n)
		}
	}
}

// TestSlowArm: the requests of an arm that takes longer come in later. That is no sign of a broken assignment; units that never come in are.
func TestSlowArm(t *testing.T) {
	slow(t)
	for _, sticky := range []bool{false, true} {
		for name, tc := range map[string]struct {
			takes time.Duration // of the canary's requests; the control's take 10 s
			lost  float64       // of the canary's
			want  bool
		}{"slow": {4 * time.Minute, 0, false}, "fast": {time.Second, 0, false}, "lost": {time.Minute, 0.15, true}} {
			t.Run(fmt.Sprintf("%s sticky %t", name, sticky), func(t *testing.T) {
				one := design(t, stats.Design{Sticky: sticky, Arms: []string{"control", "canary"}, Weights: []float64{0.8, 0.2}})
				two := design(t, stats.Design{Sticky: sticky, Arms: []string{"control", "canary"}, Weights: []float64{0.8, 0.2}})
				r := rand.New(rand.NewPCG(27, 28))
				type settled struct {
					at time.Time
					o  stats.Observation
				}
				var due []settled
				for i := range 10 * 3600 { // ten a second, for an hour
					o := stats.Unknown(r.Uint64(), 0)
					o.At = time.Date(2026, 3, 2, 8, 0, 0, 0, time.UTC).Add(time.Duration(i) * 100 * time.Millisecond)
					takes := 10 * time.Second
					if r.Float64() < 0.2 {
						if o.Arm, takes = 1, tc.takes; r.Float64() < tc.lost {
							continue
						}
					}
					due = append(due, settled{o.At.Add(takes), o})
				}
				slices.SortFunc(due, func(a, b settled) int { return a.at.Compare(b.at) })
				broken := false
				for i, d := range due {
					[]*stats.Experiment{one, two}[i%2].Record(&d.o)
					if i%1500 == 0 {
						if err := one.Merge("two", two.Snapshot()); err != nil {
							t.Fatal(err)
						}
						broken = broken || one.Peek().Broken != ""
					}
				}
				if broken != tc.want {
					t.Errorf("broken %t, log e-value %v: want %t", broken, one.Peek().Arms[1].SRM, tc.want)
				}
			})
		}
	}
}

// TestIdleArm: an arm of few requests on hosts of its own has them nearly to itself. Its streams are faster for that, and for nothing else.
func TestIdleArm(t *testing.T) {
	for name, tc := range map[string]struct {
		faster float64
		want   stats.Finding
	}{"no difference": {1, stats.Within}, "a tenth slower": {0.9, stats.Harm}} {
		t.Run(name, func(t *testing.T) {
			e := design(t, stats.Design{Guardrails: []stats.Guardrail{{Metric: stats.TPS, Margin: 0.05}}})
			r := rand.New(rand.NewPCG(29, 30))
			for i := range 30000 {
				o := answer(r, 0, i%10/9, 1)
				use := 0.1 + 0.14*r.Float64()
				if o.Arm == 1 {
					use = 0.12 * r.Float64()
					o.TPS *= tc.faster
				}
				o.Block, o.Load = stats.BlockOf(1, 100, use), use
				o.TPS *= math.Exp(-2 * use)
				e.Record(&o)
			}
			got := estimate(t, canary(e), stats.TPS)
			if got.Finding != tc.want || math.Abs(float64(got.Diff)-(tc.faster-1)) > 0.03 {
				t.Errorf("TPS %+v: want %s, and a difference of %.2f", got, tc.want, tc.faster-1)
			}
			if raw := float64(got.Arm / got.Control); raw < 1.15*tc.faster {
				t.Errorf("typical streams are %.2f times as fast: want the raw figures to mislead, or this shows nothing", raw)
			}
		})
	}
}
