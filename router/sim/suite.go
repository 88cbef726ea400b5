package sim

import (
	"context"
	"math"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"
)

// SuiteOptions are the runs of a Suite: every scenario under every policy with every seed.
type SuiteOptions struct {
	Scenarios []Scenario
	Policies  []Policy
	Seeds     []uint64
	Only      func(scenario, policy string) bool // leaves out the others; nil for all
	Parallel  int                                // runs at once; 0 means one for each processor
	Progress  func(done, total int)              // called before the first run and after each, never by two at once; nil for none
}

// Report is what became of a Suite.
type Report struct {
	Seeds []uint64 `json:"seeds"`
	Cells []Cell   `json:"cells"` // by scenario, then by policy
}

// Cell is one scenario under one policy.
type Cell struct {
	Scenario string   `json:"scenario"`
	Title    string   `json:"title"`
	Policy   string   `json:"policy"`
	SLO      SLO      `json:"slo"`
	Runs     []Result `json:"runs"` // by seed
	Mean     Means    `json:"mean"`
}

// Means are figures over the seeds of a Cell.
type Means struct {
	USD           Mean `json:"usd"`
	MeterUSD      Mean `json:"metered_usd"`
	USDPerMTok    Mean `json:"usd_per_mtok"`
	USDPerMTokSLO Mean `json:"usd_per_mtok_slo"`
	SLO           Mean `json:"slo"`
	Failed        Mean `json:"failed"`
	Shed          Mean `json:"shed"`
	Resumed       Mean `json:"resumed"`
	Metered       Mean `json:"metered"`
	Wasted        Mean `json:"wasted"`
	TTFTp50       Mean `json:"ttft_p50"`
	TTFTp95       Mean `json:"ttft_p95"`
	TTFTp99       Mean `json:"ttft_p99"`
	TPSp50        Mean `json:"tps_p50"`
	TPSp05        Mean `json:"tps_p05"`
	FluidShare    Mean `json:"usd_over_fluid"` // dollars over those of the bound
	Regret        Mean `json:"regret"`         // $/Mtok over the oracle's of the same seed, less 1; unknown where the oracle did not run
}

// Mean is a mean with its 95 % confidence interval over seeds, by Student's t; the interval is unknown with one seed.
type Mean struct {
	Mean Figure `json:"mean"`
	Low  Figure `json:"low"`
	High Figure `json:"high"`
}

// student holds the 97.5 % points of Student's t for 1, 2, ... degrees of freedom; beyond them the normal's will do.
var student = []float64{ //nolint:gochecknoglobals // a table
	12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
	2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
}

// MeanOf returns the mean of known figures with its interval.
func MeanOf(xs []Figure) Mean {
	nan := Figure(math.NaN())
	sum, n := 0.0, 0.0
	for _, x := range xs {
		if !math.IsNaN(float64(x)) {
			sum += float64(x)
			n++
		}
	}
	if n == 0 {
		return Mean{nan, nan, nan}
	}
	m := sum / n
	if n == 1 {
		return Mean{Figure(m), nan, nan}
	}
	squares := 0.0
	for _, x := range xs {
		if d := float64(x) - m; !math.IsNaN(d) {
			squares += d * d
		}
	}
	t := 1.96
	if i := int(n) - 2; i < len(student) {
		t = student[i]
	}
	half := t * math.Sqrt(squares/(n-1)/n)
	return Mean{Figure(m), Figure(m - half), Figure(m + half)}
}

// Suite runs every scenario under every policy with every seed, some at once. The Report does not depend on how many. The
// error is ctx's, with the cells that were finished by then, or says what is wrong with a scenario.
func Suite(ctx context.Context, o SuiteOptions) (Report, error) {
	for i := range o.Scenarios {
		if err := o.Scenarios[i].Validate(); err != nil {
			return Report{}, err
		}
	}
	rep := Report{Seeds: o.Seeds}
	type pair struct{ scenario, policy int }
	var pairs []pair // by cell
	for i := range o.Scenarios {
		for j := range o.Policies {
			s, p := &o.Scenarios[i], o.Policies[j].Name
			if o.Only == nil || o.Only(s.Name, p) {
				pairs = append(pairs, pair{i, j})
				rep.Cells = append(rep.Cells, Cell{Scenario: s.Name, Title: s.Title, SLO: s.SLO, Policy: p, Runs: make([]Result, len(o.Seeds))})
			}
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	if o.Parallel <= 0 {
		o.Parallel = runtime.GOMAXPROCS(0)
	}
	g.SetLimit(o.Parallel)
	done, total := make(chan struct{}), len(rep.Cells)*len(o.Seeds)
	if o.Progress != nil {
		o.Progress(0, total)
	}
	told := make(chan struct{})
	go func() {
		defer close(told)
		n := 0
		for range done {
			if n++; o.Progress != nil {
				o.Progress(n, total)
			}
		}
	}()
	for c := range rep.Cells {
		for k, seed := range o.Seeds {
			g.Go(func() (err error) {
				rep.Cells[c].Runs[k], err = RunContext(ctx, o.Scenarios[pairs[c].scenario], o.Policies[pairs[c].policy], seed)
				if err == nil {
					done <- struct{}{}
				}
				return err
			})
		}
	}
	err := g.Wait()
	close(done)
	<-told
	if err != nil {
		rep.Cells = slices.DeleteFunc(rep.Cells, func(c Cell) bool {
			return slices.ContainsFunc(c.Runs, func(r Result) bool { return r.Policy == "" })
		})
	}
	for c := range rep.Cells {
		rep.Cells[c].sum(rep.Cell(rep.Cells[c].Scenario, Oracle))
	}
	return rep, err
}

// Cell returns the one of a scenario and a policy, nil when there is none.
func (r *Report) Cell(scenario, policy string) *Cell {
	for i := range r.Cells {
		if c := &r.Cells[i]; c.Scenario == scenario && c.Policy == policy {
			return c
		}
	}
	return nil
}

// sum takes the means over seeds.
func (c *Cell) sum(oracle *Cell) {
	over := func(f func(i int, r *Result) Figure) Mean {
		xs := make([]Figure, len(c.Runs))
		for i := range c.Runs {
			xs[i] = f(i, &c.Runs[i])
		}
		return MeanOf(xs)
	}
	m := &c.Mean
	m.USD = over(func(_ int, r *Result) Figure { return Figure(r.USD) })
	m.MeterUSD = over(func(_ int, r *Result) Figure { return Figure(r.MeterUSD) })
	m.USDPerMTok = over(func(_ int, r *Result) Figure { return r.USDPerMTok })
	m.USDPerMTokSLO = over(func(_ int, r *Result) Figure { return r.USDPerMTokSLO })
	m.SLO = over(func(_ int, r *Result) Figure { return r.SLO })
	m.Failed = over(func(_ int, r *Result) Figure { return r.Failed })
	m.Shed = over(func(_ int, r *Result) Figure { return r.Shed })
	m.Resumed = over(func(_ int, r *Result) Figure { return r.Resumed })
	m.Metered = over(func(_ int, r *Result) Figure { return r.Metered })
	m.Wasted = over(func(_ int, r *Result) Figure { return r.Wasted })
	m.TTFTp50 = over(func(_ int, r *Result) Figure { return r.TTFTp50 })
	m.TTFTp95 = over(func(_ int, r *Result) Figure { return r.TTFTp95 })
	m.TTFTp99 = over(func(_ int, r *Result) Figure { return r.TTFTp99 })
	m.TPSp50 = over(func(_ int, r *Result) Figure { return r.TPSp50 })
	m.TPSp05 = over(func(_ int, r *Result) Figure { return r.TPSp05 })
	m.FluidShare = over(func(_ int, r *Result) Figure { return Figure(r.USD) / r.FluidUSD })
	m.Regret = over(func(i int, r *Result) Figure {
		if oracle == nil {
			return Figure(math.NaN())
		}
		return r.USDPerMTok/oracle.Runs[i].USDPerMTok - 1
	})
}
