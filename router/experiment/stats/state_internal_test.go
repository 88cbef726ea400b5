package stats

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestSumsAreThoseOfTheRecords: what is kept up with every request is what would be made anew of the records, before and after
// half of the units were forgotten.
func TestSumsAreThoseOfTheRecords(t *testing.T) {
	e, err := New(Design{Arms: []string{"control", "canary"}, Weights: []float64{0.9, 0.1}, Sticky: true, Capacity: 256})
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	w := 0.1
	check := func() {
		t.Helper()
		s := e.own
		before := append([]arm(nil), s.arms...)
		logs := []float64{s.logE(s.seen, mismatched, 0, 1), s.logE(s.failed, harmful, 0, 1), s.logE(s.missed, harmful, 0, 1)}
		s.rebuild(0)
		for k := range s.arms {
			for m := range metrics {
				a, b := before[k].sum[m], s.arms[k].sum[m]
				if a.n != b.n || math.Abs(a.sum-b.sum) > 1e-6*(1+math.Abs(b.sum)) || math.Abs(a.sq-b.sq) > 1e-6*(1+b.sq) {
					t.Errorf("level %d, arm %d, %s: %+v, made anew %+v", s.units.level, k, m, a, b)
				}
			}
		}
		for i, l := range []float64{s.logE(s.seen, mismatched, 0, 1), s.logE(s.failed, harmful, 0, 1), s.logE(s.missed, harmful, 0, 1)} {
			if math.Abs(l-logs[i]) > 1e-9 {
				t.Errorf("level %d: log e-value %d is %v, made anew %v", s.units.level, i, logs[i], l)
			}
		}
	}
	for i := range 40000 {
		if i%5000 == 4999 {
			check()
			w += 0.08
			if err := e.Reweigh([]float64{1 - w, w}); err != nil {
				t.Fatal(err)
			}
		}
		unit := uint64(r.IntN(1 + i/10))
		o := Unknown(unit, 0)
		if float64(mix(unit))/math.MaxUint64 < w {
			o.Arm = 1
		}
		o.Block, o.Host = BlockOf(1, int64(r.IntN(1000)), r.Float64()), 1+uint32(r.IntN(4))
		o.TTFT, o.TPS, o.USDPerMtok, o.Score = math.Exp(r.NormFloat64()), math.Exp(r.NormFloat64()), math.Exp(r.NormFloat64()), r.NormFloat64()
		o.Failed, o.Missed, o.Truncated = r.IntN(50) == 0, r.IntN(20) == 0, r.IntN(90) == 0
		e.Record(&o)
	}
	check()
	if l, n := e.own.units.level, len(e.own.units.recs); l < 3 || n > 256 {
		t.Errorf("level %d with %d records: want most of 4,000 units forgotten", l, n)
	}
}

func TestBlockOf(t *testing.T) {
	seen := map[uint64]bool{}
	for _, prompt := range []int64{0, 1, 65, 257, 1025, 4097, 16385, 65537, 262145, 1 << 40} {
		for _, use := range []float64{math.NaN(), 0, 0.25, 0.5, 0.75, 1, 3} {
			seen[BlockOf(7, prompt, use)] = true
			if k := kindOf(BlockOf(7, prompt, use)); k != 7 {
				t.Errorf("kind of BlockOf(7, %d, %v): %d", prompt, use, k)
			}
		}
	}
	if len(seen) != 10*6 {
		t.Errorf("%d blocks: want 10 lengths by 6 loads", len(seen))
	}
	if BlockOf(1, 64, 0.1) != BlockOf(1, 20, 0.2) || BlockOf(1, 1<<40, math.Inf(1)) != BlockOf(1, 1<<50, 4) {
		t.Error("alike ones are in different blocks")
	}
}

func TestSigned(t *testing.T) {
	for want, got := range map[string]string{
		"+3.12 %": TTFT.Signed(0.0312), "-12 %": TPS.Signed(-0.12), "×12": USD.Signed(11), "more than ×100": USD.Signed(1e6), "less than -99 %": USD.Signed(-0.999),
		"-0.2 points": Failed.Signed(-0.002), "+0.25": Score.Signed(0.25), "–": TTFT.Signed(math.NaN()),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
