package stats_test

import (
	"math"
	"testing"

	"headrace/router/experiment/stats"
)

// slow leaves out what the race detector makes too slow.
func slow(t *testing.T) {
	t.Helper()
	if underRace {
		t.Skip("too slow under the race detector, and nothing in it is shared")
	}
}

func near(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if math.Abs(got-want) > tolerance*math.Abs(want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// TestMSPRT has the vector TV9: 9,000 units against 1,000 with a variance of 0.3025.
func TestMSPRT(t *testing.T) {
	v := 0.3025/9000 + 0.3025/1000
	near(t, "variance", v, 3.36111e-4, 1e-5)
	near(t, "half-width", stats.HalfWidth(v, 0.10, 0.05), 0.057199, 1e-5)
	near(t, "Λ of 0.05", math.Exp(stats.MSPRT(0.05, v, 0.10)), 6.587, 1e-4)
	near(t, "Λ of 0.07", math.Exp(stats.MSPRT(0.07, v, 0.10)), 208.36, 1e-4)
	h := stats.HalfWidth(v, 0.10, 0.05)
	near(t, "Λ at the interval's end", math.Exp(stats.MSPRT(h, v, 0.10)), 20, 1e-9)
}

// TestWorse: it is the mean of likelihood ratios over the upper half of a normal distribution, here added up by small steps.
func TestWorse(t *testing.T) {
	const tau, steps = 0.10, 200_000
	v := 0.3025/9000 + 0.3025/1000
	for _, d := range []float64{-0.05, 0, 0.05, 0.07} {
		sum := 0.0
		for i := range steps {
			theta := 6 * tau * (float64(i) + 0.5) / steps
			density := 2 * math.Exp(-theta*theta/(2*tau*tau)) / (tau * math.Sqrt(2*math.Pi))
			sum += density * math.Exp(theta*d/v-theta*theta/(2*v)) * 6 * tau / steps
		}
		near(t, "mean of likelihood ratios", math.Exp(stats.Worse(d, v, tau)), sum, 1e-4)
	}
}

// TestBadUnits has the vector TV10: bad units of the canary and of the control, of whom a tenth should be the canary's.
func TestBadUnits(t *testing.T) {
	for _, tc := range []struct {
		canary, control int
		want            float64
	}{{2, 0, 8.923}, {3, 0, 36.285}, {3, 2, 13.969}, {4, 36, 0.3396}, {10, 40, 3.905}} {
		near(t, "E", stats.BadUnits(0.1, tc.canary, tc.control), tc.want, 1e-3)
	}
}
