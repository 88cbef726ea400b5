// Package hist is a concurrent log-linear histogram of durations.
package hist

import (
	"math"
	"math/bits"
	"sync/atomic"
	"time"
)

const (
	subBits = 7 // 128 linear steps per power of two: a bucket is under 0.8 % wide
	sub     = 1 << subBits
	buckets = (64 - subBits) * sub
)

// H counts durations in nanoseconds. The zero value is empty and ready; Record may be called from
// many goroutines at once, the other methods give exact answers once recording has ended.
type H struct {
	n     [buckets]atomic.Uint32
	total atomic.Uint64
}

func index(v uint64) int {
	if v < sub {
		return int(v)
	}
	shift := bits.Len64(v) - subBits - 1
	return (shift+1)<<subBits + int(v>>shift) - sub
}

// bounds returns the smallest value of bucket i and the bucket's width.
func bounds(i int) (low, width uint64) {
	if i < sub {
		return uint64(i), 1
	}
	shift := i>>subBits - 1
	return (uint64(i&(sub-1)) + sub) << shift, 1 << shift
}

// Record adds one duration; a negative one counts as zero.
func (h *H) Record(d time.Duration) {
	h.n[index(uint64(max(d, 0)))].Add(1)
	h.total.Add(1)
}

// Count is the number of recorded durations.
func (h *H) Count() uint64 { return h.total.Load() }

// Quantile returns the q-quantile, 0 <= q <= 1 (nearest rank, evenly spread within a bucket), or 0
// when nothing was recorded.
func (h *H) Quantile(q float64) time.Duration {
	total := h.total.Load()
	if total == 0 {
		return 0
	}
	rank := uint64(max(1, math.Ceil(q*float64(total)))) // 1 is the smallest
	rank = min(rank, total)
	var below uint64
	for i := range h.n {
		n := uint64(h.n[i].Load())
		if below+n >= rank {
			low, width := bounds(i)
			within := (float64(rank-below) - 0.5) / float64(n)
			return time.Duration(low + uint64(within*float64(width)))
		}
		below += n
	}
	return 0
}
