package stats_test

import (
	"math"
	"math/rand/v2"
	"testing"

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
	b.ReportAllocs()
	for b.Loop() {
		e.Verdict()
	}
}
