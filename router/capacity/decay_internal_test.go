package capacity

import (
	"math"
	"testing"
)

func TestDecay(t *testing.T) {
	decay := func(x float64) float64 {
		num, den := decay(x)
		return num / den
	}
	for x := -1.0; x < 6; x += 0.001 {
		if got, want := decay(x), math.Exp(-max(0, x)); math.Abs(got/want-1) > 1e-4 {
			t.Fatalf("decay(%v) = %v, want %v", x, got, want)
		}
	}
	if decay(math.NaN()) != 1 || decay(math.Inf(1)) != 0 || decay(math.Inf(-1)) != 1 {
		t.Error("odd numbers")
	}
}
