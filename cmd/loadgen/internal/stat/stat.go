// Package stat is the little arithmetic behind the tables: medians, and ratios within rounds.
package stat

import (
	"math"
	"slices"
)

// Median is the middle value, the mean of the two middle ones for an even number, NaN for none or
// when one of them is NaN.
func Median(v []float64) float64 {
	if len(v) == 0 || slices.ContainsFunc(v, math.IsNaN) {
		return math.NaN()
	}
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// Ratios divides a by b round by round. Noise from outside falls on both sides of one round alike, so
// the median of these is steadier than the ratio of two medians. A division by zero gives NaN.
func Ratios(a, b []float64) []float64 { return pairs(a, b, ratio) }

// Differences subtracts b from a round by round.
func Differences(a, b []float64) []float64 {
	return pairs(a, b, func(x, y float64) float64 { return x - y })
}

func ratio(x, y float64) float64 {
	if y == 0 {
		return math.NaN()
	}
	return x / y
}

// pairs combines as many rounds as both have.
func pairs(a, b []float64, f func(x, y float64) float64) []float64 {
	out := make([]float64, min(len(a), len(b)))
	for i := range out {
		out[i] = f(a[i], b[i])
	}
	return out
}
