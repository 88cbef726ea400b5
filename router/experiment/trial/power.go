package trial

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"
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

// Tolerated are those of the table of what an operator allows: TTFT may be 20 % longer.
func Tolerated() []Effect {
	var out []Effect
	for _, by := range []float64{0.15, 0.20, 0.25, 0.30} {
		out = append(out, Effect{fmt.Sprintf("TTFT %+.0f %%, %+.0f %% allowed", 100*by, 20.0), func(t *Trial) {
			t.TTFT = 1 + by
			t.Design.Guardrails = stats.Guardrails()
			for i := range t.Design.Guardrails {
				g := &t.Design.Guardrails[i]
				if g.Metric == stats.TTFT {
					g.Margin, g.Tolerate = 0.20, 0.20
				}
				if g.Metric == stats.Missed { // what is slower misses more of them
					g.Margin, g.Tolerate = 0.05, 0.05
				}
			}
		}})
	}
	return out
}

// NewEffect is an effect of one's own: factors of TTFT, TPS and dollars, and what share of requests fails in addition.
func NewEffect(ttft, tps, usd, failures float64) Effect {
	var words []string
	for _, f := range []struct {
		what string
		by   float64
	}{{"TTFT", ttft}, {"TPS", tps}, {"$/Mtok", usd}} {
		if f.by != 1 {
			words = append(words, fmt.Sprintf("%s %+.3g %%", f.what, 100*(f.by-1)))
		}
	}
	if failures > 0 {
		words = append(words, fmt.Sprintf("failures %+.3g pt", 100*failures))
	}
	if len(words) == 0 {
		words = []string{"no difference"}
	}
	return Effect{strings.Join(words, ", "), func(t *Trial) { t.TTFT, t.TPS, t.USD, t.Failures = ttft, tps, usd, failures }}
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

// Power runs trials of every effect, by requests or by users who come again, at every weight, and says how many were stopped within each number of
// requests and how soon. Runs of one seed meet the same users and hosts. It uses all processors. The error is ctx's.
func Power(ctx context.Context, effects []Effect, byUsers []bool, weights []float64, sizes []int, runs int, seed uint64) ([]Row, error) {
	var rows []Row
	for _, sticky := range byUsers {
		for _, w := range weights {
			for _, f := range effects {
				t := Trial{Requests: slices.Max(sizes), Steps: []Step{{0, w}}, Hosts: [2]int{6, 0}, HostSD: 0.12}
				if sticky {
					t.Users = t.Requests / 8
				}
				f.apply(&t)
				results, err := Many(ctx, &t, runs, seed, false, 0)
				if err != nil {
					return nil, err
				}
				rows = append(rows, t.row(f.Name, w, sizes, results))
			}
		}
	}
	return rows, nil
}

// Many runs a trial with the seeds from seed on, jobs at once; 0 means one for each processor. The error is ctx's.
func Many(ctx context.Context, t *Trial, runs int, seed uint64, promote bool, jobs int) ([]Result, error) {
	if jobs <= 0 {
		jobs = runtime.GOMAXPROCS(0)
	}
	out := make([]Result, runs)
	var wg sync.WaitGroup
	next := make(chan int)
	for range jobs {
		wg.Go(func() {
			for i := range next {
				if ctx.Err() != nil {
					continue
				}
				out[i] = Run(t, seed+uint64(i), promote) //nolint:gosec // not negative
			}
		})
	}
	for i := range runs {
		next <- i
	}
	close(next)
	wg.Wait()
	return out, ctx.Err()
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

// Markdown is the table of rows, all of the same sizes.
func Markdown(rows []Row) string {
	var b strings.Builder
	if len(rows) == 0 {
		return ""
	}
	b.WriteString("| units | canary's share | canary |")
	for _, s := range rows[0].Stopped {
		fmt.Fprintf(&b, " %s |", thousands(s.Requests))
	}
	b.WriteString(" median requests | median canary units | within 20 units |\n|---|--:|---|" + strings.Repeat("--:|", len(rows[0].Stopped)+3) + "\n")
	for i := range rows {
		r := &rows[i]
		units := "requests"
		if r.Sticky {
			units = "users"
		}
		fmt.Fprintf(&b, "| %s | %.3g %% | %s |", units, 100*r.Weight, r.Effect)
		for _, s := range r.Stopped {
			fmt.Fprintf(&b, " %.3g %% |", 100*s.Share)
		}
		if math.IsNaN(float64(r.Requests)) {
			b.WriteString(" – | – |")
		} else {
			fmt.Fprintf(&b, " %s | %s |", thousands(int(r.Requests)), thousands(int(r.Units)))
		}
		fmt.Fprintf(&b, " %.3g %% |\n", 100*float64(r.First20))
	}
	return b.String()
}

// FirstRow is how often a canary was stopped within its first 20 units.
type FirstRow struct {
	Weight float64 // the canary's share of units
	Rate   float64 // of failures, of both arms
	Runs   int
	Alarms Alarms // where nothing else fails
	Found  Alarms // where a share of the canary's requests fails in addition
}

// FirstUnits runs trials that end with the canary's 20th unit, at every weight and rate of failures, without harm and with as much, each looked at
// after every request. The error is ctx's.
func FirstUnits(ctx context.Context, weights, rates []float64, harm float64, runs int, seed uint64) ([]FirstRow, error) {
	var rows []FirstRow
	for _, rate := range rates {
		for _, w := range weights {
			row := FirstRow{Weight: w, Rate: rate, Runs: runs}
			for by, out := range map[float64]*Alarms{0: &row.Alarms, harm: &row.Found} {
				t := Trial{Requests: int(200 / w), Units: firstLooks, Steps: []Step{{0, w}}, Hosts: [2]int{6, 0}, HostSD: 0.12, Base: rate, Failures: by, Every: 1}
				if rate == 0 {
					t.Base = -1
				}
				results, err := Many(ctx, &t, runs, seed, false, 0)
				if err != nil {
					return nil, err
				}
				out.Runs = runs
				for i := range results {
					if results[i].Action == stats.Stop {
						out.Stopped++
					}
				}
			}
			rows = append(rows, row)
		}
	}
	return rows, nil
}

// FirstMarkdown is the table of rows, as FirstUnits gives them.
func FirstMarkdown(rows []FirstRow) string {
	var b strings.Builder
	weights := len(rows)
	if i := slices.IndexFunc(rows, func(r FirstRow) bool { return r.Rate != rows[0].Rate }); i >= 0 {
		weights = i
	}
	b.WriteString("| the control fails |")
	for i := range weights {
		fmt.Fprintf(&b, " %.3g %% of units |", 100*rows[i].Weight)
	}
	b.WriteString("\n|--:|" + strings.Repeat("--:|", weights) + "\n")
	for i := range rows {
		r := &rows[i]
		if i%weights == 0 {
			fmt.Fprintf(&b, "| %.3g %% |", 100*r.Rate)
		}
		found, _, _ := r.Found.Share()
		alarms, _, _ := r.Alarms.Share()
		fmt.Fprintf(&b, " %.3g %% (%.2g %%) |", 100*found, 100*alarms)
		if i%weights == weights-1 {
			b.WriteString("\n")
		}
	}
	return b.String()
}

func thousands(n int) string {
	if n < 1000 {
		return strconv.Itoa(n)
	}
	return fmt.Sprintf("%d,%03d", n/1000, n%1000)
}
