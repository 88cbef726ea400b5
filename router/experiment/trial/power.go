package trial

import (
	"math"
	"runtime"
	"slices"
	"sync"

	"headrace/router/experiment/stats"
)

// Effect is a canary's harm, by name.
type Effect struct {
	Name  string
	apply func(*Trial)
}

// Effects are those of the power table; the first is none.
func Effects() []Effect {
	return []Effect{
		{"no difference", func(*Trial) {}},
		{"TTFT +10 %", func(t *Trial) { t.TTFT = 1.1 }},
		{"TPS -10 %", func(t *Trial) { t.TPS = 0.9 }},
		{"$/Mtok +10 %", func(t *Trial) { t.USD = 1.1 }},
		{"failures +1 pt", func(t *Trial) { t.Failures = 0.01 }},
		{"failures +20 pt", func(t *Trial) { t.Failures = 0.2 }},
	}
}

// Row is what became of many trials of one kind.
type Row struct {
	Effect   string         `json:"effect"`
	Sticky   bool           `json:"sticky"` // users who come again rather than requests
	Weight   float64        `json:"weight"` // the canary's
	Runs     int            `json:"runs"`
	Stopped  []Share        `json:"stopped"`         // within so many requests
	Requests stats.Figure   `json:"median_requests"` // until the stop, of those that were stopped
	Units    stats.Figure   `json:"median_units"`    // of the canary until then
	First20  stats.Figure   `json:"within_20_units"` // share of runs stopped before the canary had more than 20 units
	By       map[string]int `json:"by"`              // what stopped how many
}

// Share is the share of runs that were stopped within a number of requests.
type Share struct {
	Requests int     `json:"requests"`
	Share    float64 `json:"share"`
}

// Power runs trials of every effect, by requests and by users, at every weight, and says how many were stopped within each number of
// requests and how soon. Runs of one seed meet the same users and hosts. It uses all processors.
func Power(effects []Effect, weights []float64, sizes []int, runs int, seed uint64) []Row {
	var rows []Row
	for _, sticky := range []bool{false, true} {
		for _, w := range weights {
			for _, f := range effects {
				t := Trial{Requests: slices.Max(sizes), Steps: []Step{{0, w}}, Hosts: [2]int{6, 0}, HostSD: 0.12}
				if sticky {
					t.Users = t.Requests / 8
				}
				f.apply(&t)
				rows = append(rows, t.row(f.Name, w, sizes, Many(&t, runs, seed, false)))
			}
		}
	}
	return rows
}

// Many runs a trial with the seeds from seed on.
func Many(t *Trial, runs int, seed uint64, promote bool) []Result {
	out := make([]Result, runs)
	var wg sync.WaitGroup
	next := make(chan int)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := range next {
				out[i] = Run(t, seed+uint64(i), promote) //nolint:gosec // not negative
			}
		})
	}
	for i := range runs {
		next <- i
	}
	close(next)
	wg.Wait()
	return out
}

func (t *Trial) row(effect string, w float64, sizes []int, results []Result) Row {
	r := Row{Effect: effect, Sticky: t.Users > 0, Weight: w, Runs: len(results), By: map[string]int{}}
	var requests, units []int
	first := 0
	for i := range results {
		if results[i].Action != stats.Stop {
			continue
		}
		requests = append(requests, results[i].Requests)
		units = append(units, results[i].Units[1])
		if results[i].Units[1] <= 20 {
			first++
		}
		by := "srm"
		if results[i].By >= 0 {
			by = stats.Metric(results[i].By).String() //nolint:gosec // a metric
		}
		r.By[by]++
	}
	r.First20 = stats.Figure(float64(first) / float64(len(results)))
	for _, n := range sizes {
		stopped := 0
		for _, at := range requests {
			if at <= n {
				stopped++
			}
		}
		r.Stopped = append(r.Stopped, Share{n, float64(stopped) / float64(len(results))})
	}
	r.Requests, r.Units = median(requests), median(units)
	return r
}

func median(v []int) stats.Figure {
	if len(v) == 0 {
		return stats.Figure(math.NaN())
	}
	slices.Sort(v)
	return stats.Figure(v[len(v)/2])
}
