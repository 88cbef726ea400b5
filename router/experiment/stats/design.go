package stats

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"
)

// Metric is a figure that arms are compared by.
type Metric uint8

// Metrics. Of the first three logarithms are compared, so that margins are ratios; the others are shares of requests, but Score.
const (
	TTFT      Metric = iota // seconds to the first token; less is better
	TPS                     // output tokens per second of a stream; more is better
	USD                     // dollars per million output tokens; less is better
	Truncated               // share of answers that broke off
	Failed                  // share of requests that failed
	Missed                  // share of requests that missed their SLO
	Score                   // what callers say of answers, from 0 to 1; more is better
	metrics
)

// logMetrics are the first ones, which are compared like with like.
const logMetrics = 3

// String is the name that reports and JSON use.
func (m Metric) String() string {
	if m >= metrics {
		return fmt.Sprintf("metric %d", uint8(m))
	}
	return [metrics]string{"ttft", "tps", "usd_per_mtok", "truncated", "error_rate", "slo_missed", "score"}[m]
}

// MarshalText writes String.
func (m Metric) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads what String writes.
func (m *Metric) UnmarshalText(b []byte) error {
	for i := range metrics {
		if i.String() == string(b) {
			*m = i
			return nil
		}
	}
	return fmt.Errorf("metric %q: unknown", b)
}

// Relative says that differences are ratios: 0.1 is a tenth more. Of others they are absolute: 0.01 of a share is a point.
func (m Metric) Relative() bool { return m < logMetrics }

// more says that more of it is better.
func (m Metric) more() bool { return m == TPS || m == Score }

// tau is the standard deviation of the differences that the mixture expects, on the scale of comparison. It is not learned from what is
// seen, for then no mixture would be a martingale.
func (m Metric) tau() float64 {
	switch {
	case m.Relative():
		return 0.10
	case m == Score:
		return 0.05
	}
	return 0.02
}

// Guardrail is what an arm must not do worse than the control.
type Guardrail struct {
	Metric Metric `json:"metric"`
	// Margin is how much worse the arm may be in the end: it is promoted when the whole interval is within. A ratio or an
	// absolute share (Metric.Relative), never negative: 0.1 allows TTFT 10 % longer or TPS 10 % lower, 0.01 a point more failures.
	Margin float64 `json:"margin"`
	// Tolerate is how much worse the best estimate may be for proven harm not to stop the arm: 0 stops it as soon as any harm is
	// proven, Margin when it is beyond what was allowed. A margin that an operator wrote is meant to be tolerated.
	Tolerate float64 `json:"tolerate,omitempty"`
	// Goal turns it round: the arm has to be proven better, by more than Margin, to be promoted. Harm stops it all the same.
	Goal bool `json:"goal,omitempty"`
	// Optional is a guardrail that nobody asked for: it holds nothing up while neither the arm nor the control has such a figure, as hosts
	// without a price have none. Others keep an arm from being promoted until they are measured.
	Optional bool `json:"optional,omitempty"`
	// Share is how much of alpha it gets, in relation to the others; 0 means 1.
	Share float64 `json:"share,omitempty"`
}

// ShareOf is the usual share of alpha of a guardrail on m. Failures get more, for they are to be found first.
func ShareOf(m Metric) float64 {
	if m == Failed {
		return 3
	}
	return 1
}

// Guardrails are those of an experiment that names none.
func Guardrails() []Guardrail {
	return []Guardrail{
		{Metric: Failed, Margin: 0.002, Share: ShareOf(Failed)},
		{Metric: Missed, Margin: 0.01},
		{Metric: TTFT, Margin: 0.10, Optional: true},
		{Metric: TPS, Margin: 0.05, Optional: true},
		{Metric: USD, Margin: 0.02, Optional: true},
	}
}

// MaxArms is how many arms an experiment may have.
const MaxArms = 16

// maxEpochs is how many weights may be in force one after the other.
const maxEpochs = 32

// Design is what does not change while an experiment runs.
type Design struct {
	Arms    []string  `json:"arms"`
	Control int       `json:"control"` // index of the arm that others are compared with
	Weights []float64 `json:"weights"` // share of units of each arm at the start, in [0,1]; together at most 1

	// Sticky says that units come again, as users do; their requests are one observation together then. Without, every
	// request is a unit of its own, and nothing is remembered of it.
	Sticky bool `json:"sticky"`
	// Alpha is the probability of stopping any arm although none does harm; 0 means 0.05. It is split over guardrails,
	// by their shares, and arms.
	Alpha      float64     `json:"alpha"`
	Guardrails []Guardrail `json:"guardrails"` // nil means Guardrails()
	// MinUnits is how many units of an arm, and of the control, a comparison of means needs before it can decide; 0 means 40.
	MinUnits int `json:"min_units"`
	// Settle is how long requests may take until they are recorded, but for a few; 0 means 10 minutes.
	Settle time.Duration `json:"settle"`
	// Capacity is how many units of sticky experiments are remembered, some 100 bytes each, as far as they fit into a
	// snapshot (MaxSnapshot); 0 means 32,768, others are rounded up to a power of two. When there are more, half of them are forgotten, chosen by hash, and so is whoever else belongs to that half.
	Capacity int `json:"capacity"`
}

// withDefaults fills in what is zero, and returns every mistake.
func (d Design) withDefaults() (Design, error) {
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	if len(d.Arms) < 2 || len(d.Arms) > MaxArms {
		bad("%d arms: want 2 to %d", len(d.Arms), MaxArms)
	}
	if d.Control < 0 || d.Control >= len(d.Arms) {
		bad("control is arm %d of %d", d.Control, len(d.Arms))
	}
	if err := checkWeights(d.Weights, len(d.Arms)); err != nil {
		errs = append(errs, err)
	}
	if d.Alpha == 0 {
		d.Alpha = 0.05
	}
	if !(d.Alpha > 0 && d.Alpha < 1) { //nolint:staticcheck // NaN
		bad("alpha %v: want more than 0 and less than 1", d.Alpha)
	}
	if d.Guardrails == nil {
		d.Guardrails = Guardrails()
	}
	var seen [metrics]bool
	for _, g := range d.Guardrails {
		switch {
		case g.Metric >= metrics:
			bad("guardrail on %s: unknown", g.Metric)
			continue
		case seen[g.Metric]:
			bad("guardrail on %s: named twice", g.Metric)
		case !(g.Margin >= 0) || math.IsInf(g.Margin, 0) || !(g.Tolerate >= 0) || math.IsInf(g.Tolerate, 0): //nolint:staticcheck // NaN
			bad("guardrail on %s: margin %v, tolerate %v: want 0 or more", g.Metric, g.Margin, g.Tolerate)
		case g.Metric == TPS && (g.Margin >= 1 || g.Tolerate >= 1):
			bad("guardrail on %s: margin %v, tolerate %v: want less than 1, for nothing is more than 100 %% slower", g.Metric, g.Margin, g.Tolerate)
		}
		if !(g.Share >= 0) || math.IsInf(g.Share, 0) { //nolint:staticcheck // NaN
			bad("guardrail on %s: share %v: want 0 or more", g.Metric, g.Share)
		}
		seen[g.Metric] = true
	}
	if d.MinUnits == 0 {
		d.MinUnits = 40
	}
	if d.MinUnits < 2 {
		bad("min_units %d: want 2 or more", d.MinUnits)
	}
	if d.Settle == 0 {
		d.Settle = 10 * time.Minute
	}
	if d.Settle < 0 {
		bad("settle %v: want 0 or more", d.Settle)
	}
	if d.Capacity == 0 {
		d.Capacity = 1 << 15
	}
	if d.Capacity < 64 || d.Capacity > 1<<22 {
		bad("capacity %d: want 64 to %d", d.Capacity, 1<<22)
	} else {
		c := 64
		for c < d.Capacity {
			c *= 2
		}
		d.Capacity = c
	}
	return d, errors.Join(errs...)
}

func checkWeights(w []float64, arms int) error {
	if len(w) != arms {
		return fmt.Errorf("%d weights for %d arms", len(w), arms)
	}
	sum := 0.0
	for _, v := range w {
		if !(v >= 0 && v <= 1) { //nolint:staticcheck // NaN
			return fmt.Errorf("weight %v: want 0 to 1", v)
		}
		sum += v
	}
	if sum > 1+1e-9 {
		return fmt.Errorf("weights are %v together: want at most 1", sum)
	}
	return nil
}

// Figure is a number that JSON shows as null when it is unknown (NaN) or has no bound.
type Figure float64

// MarshalJSON writes null for NaN and infinities.
func (f Figure) MarshalJSON() ([]byte, error) {
	if math.IsNaN(float64(f)) || math.IsInf(float64(f), 0) {
		return []byte("null"), nil
	}
	return json.Marshal(float64(f))
}

// UnmarshalJSON reads null as NaN.
func (f *Figure) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		*f = Figure(math.NaN())
		return nil
	}
	return json.Unmarshal(b, (*float64)(f))
}
