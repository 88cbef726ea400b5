package books

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// However time is divided, no more is shared out than was paid, and the same in all.
func TestIdleIsTheSameByHour(t *testing.T) {
	const seed = 7
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, seed)) //nolint:gosec // a test's
	begin := time.Date(2026, 11, 27, 20, 0, 0, 0, time.UTC).Unix()
	period := func(rents, used []float64) (p Period) {
		for i := range rents {
			at := begin + int64(i)*3600
			if rents[i] > 0 {
				p.Hours = append(p.Hours, HostHour{Hour: at, Provider: "vast", Host: "v", USD: rents[i]})
			}
			if used[i] > 0 {
				r := Rollup{Cell: Cell{Hour: at, Key: "a", Model: "m", Provider: "vast", Host: "v"}}
				r.F[UsedPerHour] = used[i]
				p.Rollups = append(p.Rollups, r)
			}
		}
		return p
	}
	check := func(rents, used []float64) {
		t.Helper()
		p := period(rents, used)
		rent, use := 0.0, 0.0
		for i := range rents {
			rent += rents[i]
			use += used[i]
		}
		want := max(rent, use)
		if rent == 0 {
			want = use
		}
		for _, by := range [][]Dim{nil, {ByKey}, {ByKey, ByDay}, {ByHour}, {ByKey, ByHour}} {
			r := p.Report(by, nil)
			if got := r.Total.Allocated(); math.Abs(got-want) > 1e-9 {
				t.Errorf("rents %v, used %v, by %v: $%v are shared out of $%v paid, $%v used", rents, used, by, got, rent, use)
			}
			for _, l := range r.Lines {
				if l.IdleUSD < -1e-9 {
					t.Errorf("by %v: %+v", by, l)
				}
			}
		}
	}
	check([]float64{1, 1}, []float64{0, 1.5})         // an answer that took an hour and a half
	check([]float64{1, 1, 1}, []float64{0.2, 0, 2.1}) // two hours
	check([]float64{1, 1}, []float64{1.5, 0})         // it began before the report
	check([]float64{1, 0, 1}, []float64{0.5, 0.5, 0}) // an hour that nobody watched
	check([]float64{1, 1}, []float64{2, 2})           // more used than paid
	for range 300 {
		n := 1 + rnd.IntN(12)
		rents, used := make([]float64, n), make([]float64, n)
		for i := range rents {
			rents[i], used[i] = float64(rnd.IntN(3)), 2*rnd.Float64()*float64(rnd.IntN(3)/2+rnd.IntN(2))
		}
		check(rents, used)
	}
	// What a long answer used of the hours before is idle time of the nearest.
	p := period([]float64{1, 1, 1}, []float64{0, 0, 1.5})
	for _, l := range p.Report([]Dim{ByHour}, nil).Lines {
		if want := map[string]float64{"2026-11-27 20:00": 1, "2026-11-27 21:00": 0.5, "2026-11-27 22:00": 0}[l.Group[0]]; math.Abs(l.IdleUSD-want) > 1e-9 {
			t.Errorf("%s: $%v idle, want $%v", l.Group[0], l.IdleUSD, want)
		}
	}
}
