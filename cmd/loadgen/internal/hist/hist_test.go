package hist

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	var h H
	for i := 1; i <= 1000; i++ {
		h.Record(time.Duration(i) * time.Microsecond)
	}
	for q, want := range map[float64]time.Duration{
		0: time.Microsecond, 0.5: 500 * time.Microsecond, 0.99: 990 * time.Microsecond, 1: 1000 * time.Microsecond,
	} {
		if got := h.Quantile(q); !near(got, want) {
			t.Errorf("quantile %v = %v, want about %v", q, got, want)
		}
	}
}

// near allows for the width of a bucket.
func near(got, want time.Duration) bool {
	return (got - want).Abs() <= max(1, want/100)
}

func TestQuantileOfFew(t *testing.T) {
	var h H
	if got := h.Quantile(0.5); got != 0 {
		t.Errorf("median of nothing = %v", got)
	}
	h.Record(-time.Second)
	if got := h.Quantile(1); got != 0 || h.Count() != 1 {
		t.Errorf("a negative duration gave %v, count %d", got, h.Count())
	}
	h.Record(10)
	if low, high := h.Quantile(0.5), h.Quantile(0.51); low != 0 || high != 10 {
		t.Errorf("median of 0 and 10: %d, just above: %d", low, high)
	}
}

// TestQuantileAgainstSort compares with the sorted list over six orders of magnitude.
func TestQuantileAgainstSort(t *testing.T) {
	const seed = 42
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, seed))
	var h H
	all := make([]time.Duration, 20_001)
	for i := range all {
		all[i] = time.Duration(1e3 * (1 + rng.ExpFloat64()*1e3*rng.ExpFloat64()))
		h.Record(all[i])
	}
	slices.Sort(all)
	for _, q := range []float64{0.001, 0.25, 0.5, 0.9, 0.99, 0.999, 1} {
		want := all[max(0, int(q*float64(len(all))+0.999999)-1)]
		if got := h.Quantile(q); !near(got, want) {
			t.Errorf("quantile %v = %v, sorted list has %v", q, got, want)
		}
	}
}

func TestBuckets(t *testing.T) {
	for _, v := range []uint64{0, 1, sub - 1, sub, sub + 1, 2*sub - 1, 2 * sub, 1 << 20, 1<<40 + 12345, 1<<63 - 1, 1<<64 - 1} {
		i := index(v)
		if low, width := bounds(i); v < low || v-low >= width {
			t.Errorf("%d is in bucket %d, which holds %d wide from %d", v, i, width, low)
		}
	}
	for i := range buckets - 1 {
		low, width := bounds(i)
		if next, _ := bounds(i + 1); low+width != next {
			t.Fatalf("bucket %d ends at %d, the next starts at %d", i, low+width, next)
		}
	}
}

func TestRecordTogether(t *testing.T) {
	var h H
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				h.Record(time.Millisecond)
			}
		})
	}
	wg.Wait()
	if h.Count() != 8000 || !near(h.Quantile(1), time.Millisecond) || !near(h.Quantile(0), time.Millisecond) {
		t.Errorf("count %d, min %v, max %v", h.Count(), h.Quantile(0), h.Quantile(1))
	}
}
