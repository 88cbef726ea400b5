package stats

import (
	"bytes"
	"math"
	"math/rand/v2"
	"testing"
	"time"
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
		before := s.clone()
		logs := func() (out []float64) {
			out = append(out, s.logE(s.seen, mismatched, 0, 1))
			for b := range s.bad {
				out = append(out, s.logE(s.bad[b], harmful, 0, 1))
			}
			return out
		}
		was := logs()
		s.rebuild(0)
		for k := range s.arms {
			if before.arms[k].with != s.arms[k].with {
				t.Errorf("level %d, arm %d: %v units, made anew %v", s.units.level, k, before.arms[k].with, s.arms[k].with)
			}
			for e := range s.arms[k].strata {
				for m := range metrics {
					a, b := before.arms[k].strata[e].sum[m], s.arms[k].strata[e].sum[m]
					if a.n != b.n || math.Abs(a.sum-b.sum) > 1e-6*(1+math.Abs(b.sum)) || math.Abs(a.sq-b.sq) > 1e-6*(1+b.sq) {
						t.Errorf("level %d, arm %d, epoch %d, %s: %+v, made anew %+v", s.units.level, k, e, m, a, b)
					}
				}
			}
		}
		for i, l := range logs() {
			if math.Abs(l-was[i]) > 1e-9 {
				t.Errorf("level %d: log e-value %d is %v, made anew %v", s.units.level, i, was[i], l)
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
		if late := e.Epoch() - 1; late > 0 && r.IntN(30) == 0 { // it was under way when the weight rose
			if o.Epoch = late; float64(mix(unit))/math.MaxUint64 >= w-0.08 {
				o.Arm = 0
			}
		}
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

// TestFailures adds up what is drawn: with one of a beta distribution of whole parameters, the failures of n more units are as likely as those
// of a draw from an urn to which each is put back twice (Pólya).
func TestFailures(t *testing.T) {
	for _, tc := range []struct{ bad, good, n int }{{1, 1, 5}, {1, 20, 20}, {3, 50, 20}, {7, 7, 40}} {
		chances := []float64{1} // of so many failures
		for i := range tc.n {
			next := make([]float64, i+2)
			for k, p := range chances {
				bad := float64(tc.bad+k) / float64(tc.bad+tc.good+i)
				next[k] += p * (1 - bad)
				next[k+1] += p * bad
			}
			chances = next
		}
		for k := range tc.n + 1 {
			want := 0.0
			for _, p := range chances[k:] {
				want += p
			}
			if got := failures(k, tc.n, float64(tc.bad), float64(tc.good)); math.Abs(got-want) > 1e-9*want+1e-15 {
				t.Errorf("%+v: %d or more: %v, want %v", tc, k, got, want)
			}
		}
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

// TestShift: what was recorded by a clock that was off is as if it had been right.
func TestShift(t *testing.T) {
	began := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, off := range []time.Duration{3 * time.Hour, -3 * time.Hour, 0} {
		for _, sticky := range []bool{false, true} {
			var right, wrong *Experiment
			for e, by := range map[**Experiment]time.Duration{&right: 0, &wrong: off} {
				var err error
				if *e, err = New(Design{Arms: []string{"control", "canary"}, Weights: []float64{0.5, 0.5}, Sticky: sticky}); err != nil {
					t.Fatal(err)
				}
				for i := range 1000 {
					o := Unknown(uint64(i%300), i%2) //nolint:gosec // small
					o.At = began.Add(time.Duration(i)*time.Second + by)
					(*e).Record(&o)
				}
			}
			wrong.Shift(-off)
			if !bytes.Equal(right.Snapshot(), wrong.Snapshot()) {
				t.Errorf("off by %s, sticky %t: it is not what the right clock had recorded", off, sticky)
			}
		}
	}
}
