package stats

import (
	"math"
	"slices"
)

// contrast is an arm against the control by one metric. The two are compared epoch by epoch, while weights were what they were, and the
// differences are weighed together (Cochran, Mantel and Haenszel): over several epochs at once whatever changes with time would pass
// for the arm's doing, which has more of the later ones.
type contrast struct {
	diff, variance float64 // on the scale of comparison; NaN when no epoch has both
	units          [2]int  // the control's and the arm's, in epochs that have both
	epochs         int     // that have both
	share          [maxEpochs]float64
	steps          []Step
	control, arm   Figure // typical figures of requests, weighed like the differences
}

// Step is what one of the weights that were in force one after the other has shown.
type Step struct {
	Epoch   int     `json:"epoch"`  // from 1 on, as Experiment.Epoch
	Weight  float64 `json:"weight"` // the arm's then
	Units   [2]int  `json:"units"`  // the control's, the arm's; who came in several counts in each
	Control Figure  `json:"control"`
	Arm     Figure  `json:"arm"`
	Diff    Figure  `json:"diff"`
	Share   float64 `json:"share"` // of the step in the difference of all, in [0,1]
}

// steadying is how many units that went bad the rate of an epoch is thought to be known by beforehand, when epochs are weighed.
const steadying = 5

// contrasts compares arm k with the control by every metric, or, for who does not want to hear of them, by those that decide.
func (s *state) contrasts(d *Design, k int, words bool) (cs [metrics]contrast) {
	several := false
	for m := range metrics {
		if !words && !slices.ContainsFunc(d.Guardrails, func(g Guardrail) bool { return g.Metric == m }) {
			continue
		}
		cs[m] = s.contrast(d.Control, k, m, words)
		several = several || cs[m].epochs > 1
	}
	if several && d.Sticky {
		s.covary(&cs, d.Control)
		s.covary(&cs, k)
	}
	return cs
}

func (s *state) contrast(control, k int, m Metric, words bool) (out contrast) {
	c, a := &s.arms[control], &s.arms[k]
	n := min(len(c.strata), len(a.strata))
	_, votes := m.ballot()
	bad, all := 0.0, 0.0
	for e := range n {
		x, y := &c.strata[e].sum[m], &a.strata[e].sum[m]
		if x.n > 0 && y.n > 0 {
			out.epochs++
			bad, all = bad+x.sum+y.sum, all+x.n+y.n
		}
	}
	total := 0.0
	for e := range n {
		x, y := &c.strata[e].sum[m], &a.strata[e].sum[m]
		if x.n == 0 || y.n == 0 {
			continue
		}
		w := x.n * y.n / (x.n + y.n)
		if votes { // when much goes bad, it is by chance more often that more goes bad in one arm
			w *= (bad/all*(x.n+y.n) + steadying) / (x.sum + y.sum + steadying)
		}
		out.share[e] = w
		total += w
	}
	nan := math.NaN()
	if total == 0 {
		out.diff, out.variance = nan, nan
		out.control, out.arm = c.typical(m), a.typical(m)
		return out
	}
	var cv, av, ct, at float64
	cp, ap := c.pooled(m, out.share[:n]), a.pooled(m, out.share[:n])
	for e := range n {
		if out.share[e] == 0 {
			continue
		}
		out.share[e] /= total
		q, x, y := out.share[e], &c.strata[e], &a.strata[e]
		xm, ym := x.sum[m].mean(), y.sum[m].mean()
		out.diff += q * (ym - xm)
		cv += q * q * m.spread(&x.sum[m], &cp, q) / x.sum[m].n
		av += q * q * m.spread(&y.sum[m], &ap, q) / y.sum[m].n
		out.units[0] += int(x.sum[m].n)
		out.units[1] += int(y.sum[m].n)
		xt, yt := x.typical(m), y.typical(m)
		ct, at = ct+q*xt, at+q*yt
		if words {
			out.steps = append(out.steps, Step{
				Epoch: e + 1, Weight: s.epochs[e][k], Units: [2]int{int(x.sum[m].n), int(y.sum[m].n)},
				Control: m.told(xt), Arm: m.told(yt), Diff: m.natural(ym - xm), Share: q,
			})
		}
	}
	out.variance = cv + av
	out.units[0], out.units[1] = min(out.units[0], c.with[m]), min(out.units[1], a.with[m])
	out.control, out.arm = m.told(ct), m.told(at)
	return out
}

// covary adds to the variances what comes of units of an arm that were there in several epochs: who fails often does so in each.
func (s *state) covary(cs *[metrics]contrast, arm int) {
	var mean, by [metrics][maxEpochs]float64
	a := &s.arms[arm]
	for m := range metrics {
		for e, q := range &cs[m].share {
			if q > 0 {
				t := &a.strata[e].sum[m]
				mean[m][e], by[m][e] = t.mean(), q/t.n
			}
		}
	}
	var extra [metrics]float64
	for i := range s.units.recs {
		r := &s.units.recs[i]
		if int(r.arm) != arm || r.stays == 0 || s.units.stays[r.stays-1].next == 0 {
			continue
		}
		var sum, squares [metrics]float64
		for j := r.stays; j > 0; j = s.units.stays[j-1].next {
			t := &s.units.stays[j-1]
			for m := range metrics {
				if g := by[m][t.epoch]; g > 0 && t.count(m) > 0 {
					y := g * (float64(t.mean[m]) - mean[m][t.epoch])
					sum[m] += y
					squares[m] += y * y
				}
			}
		}
		for m := range metrics {
			extra[m] += sum[m]*sum[m] - squares[m]
		}
	}
	for m := range metrics {
		// What would make them more certain is left out: those who moved to the arm are the same ones in both, which would do so too.
		if extra[m] > 0 {
			cs[m].variance += extra[m]
		}
	}
}

// pool is the spread of units within epochs, all that are compared.
type pool struct{ squares, df float64 }

func (a *arm) pooled(m Metric, share []float64) (p pool) {
	for e, q := range share {
		if t := &a.strata[e].sum[m]; q > 0 {
			p.squares, p.df = p.squares+t.squares(), p.df+t.n-1
		}
	}
	return p
}

// priorUnits with a standard deviation of priorSD are thought to have been seen before the first one, of log metrics; so that few
// units that happen to be alike do not look sure. Of several epochs, the others tell each how far units are apart.
const (
	priorUnits = 10
	priorSD    = 0.3
)

// spread is the variance of units in an epoch, whose share in the difference is q.
func (m Metric) spread(t *sums, all *pool, q float64) float64 {
	squares := t.squares()
	others := pool{max(0, all.squares-squares), all.df - t.n + 1}
	switch {
	case m.Relative():
		prior := (priorUnits*priorSD*priorSD + others.squares) / (priorUnits + others.df)
		return (priorUnits*prior + squares) / (priorUnits + t.n - 1)
	}
	// Two units that were bad and two that were not are added (Agresti and Coull), to all epochs together, for none that was bad is no proof
	// that none is; likewise two answers that were the worst and two that were the best, for all may have been praised.
	p := (t.sum + 2*q) / (t.n + 4*q)
	v := max(1e-12, (t.sq+2*q)/(t.n+4*q)-p*p)
	switch {
	case m == Score && others.df > 0:
		return max(v, (priorUnits*others.squares/others.df+squares)/(priorUnits+t.n-1))
	case m == Score:
		return max(v, squares/max(1, t.n-1))
	}
	return v
}

// typical is what requests of the epoch are like, whatever they may be compared with, on the scale of comparison; of shares what units are.
func (t *stratum) typical(m Metric) float64 {
	if _, votes := m.ballot(); votes {
		return t.sum[m].mean()
	}
	return t.raw[m].mean()
}

// told turns a typical figure on the scale of comparison into one that is told.
func (m Metric) told(y float64) Figure {
	if m.Relative() {
		return Figure(math.Exp(y))
	}
	return Figure(y)
}

// typical is what requests of the arm are like, of all epochs, for when there is nothing to compare them with.
func (a *arm) typical(m Metric) Figure {
	n := float64(a.counts.Requests - a.counts.Forced)
	var all sums
	for i := range a.strata {
		all.merge(&a.strata[i].raw[m])
	}
	switch m {
	case Failed:
		return Figure(float64(a.counts.Failed) / n)
	case Missed:
		return Figure(float64(a.counts.Missed) / n)
	case Truncated:
		return Figure(float64(a.counts.Truncated) / n)
	case TTFT, TPS, USD, Score, metrics:
	}
	return m.told(all.mean())
}

// scaled is a worsening on the scale of comparison, never negative.
func (m Metric) scaled(by float64) float64 {
	switch {
	case m == TPS:
		return -math.Log1p(-by)
	case m.Relative():
		return math.Log1p(by)
	}
	return by
}
