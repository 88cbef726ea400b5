package stat_test

import (
	"math"
	"slices"
	"testing"

	"headrace/cmd/loadgen/internal/stat"
)

func TestMedian(t *testing.T) {
	for name, tc := range map[string]struct {
		v    []float64
		want float64
	}{
		"none":           {nil, math.NaN()},
		"one":            {[]float64{3}, 3},
		"odd, unsorted":  {[]float64{9, 1, 5}, 5},
		"even":           {[]float64{4, 1, 3, 2}, 2.5},
		"negative":       {[]float64{-1, -3, 2}, -1},
		"an outlier":     {[]float64{1, 1, 1e9}, 1},
		"one is missing": {[]float64{1, math.NaN(), 3}, math.NaN()},
	} {
		t.Run(name, func(t *testing.T) {
			before := slices.Clone(tc.v)
			got := stat.Median(tc.v)
			if got != tc.want && !(math.IsNaN(got) && math.IsNaN(tc.want)) {
				t.Errorf("median of %v = %v, want %v", tc.v, got, tc.want)
			}
			for i := range before {
				if tc.v[i] != before[i] && !math.IsNaN(before[i]) {
					t.Errorf("the argument was changed to %v", tc.v)
				}
			}
		})
	}
}

// TestRatios shows why ratios are taken within rounds: a machine half as fast in one round
// changes no ratio.
func TestRatios(t *testing.T) {
	proxy, nginx := []float64{20, 40, 21}, []float64{10, 20, 10}
	if got := stat.Median(stat.Ratios(proxy, nginx)); got != 2 {
		t.Errorf("median of ratios = %v, want 2", got)
	}
	if got := stat.Differences(proxy, nginx); !slices.Equal(got, []float64{10, 20, 11}) {
		t.Errorf("differences %v", got)
	}
	if got := stat.Ratios([]float64{1, 2, 3}, []float64{1}); len(got) != 1 {
		t.Errorf("unpaired rounds gave %v", got)
	}
	if got := stat.Ratios([]float64{1}, []float64{0}); !math.IsNaN(got[0]) {
		t.Errorf("1/0 = %v, want NaN", got[0])
	}
}
