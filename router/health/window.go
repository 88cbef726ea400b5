package health

import (
	"sync/atomic"
	"time"
)

// window counts events of the last 25 to 30 seconds, in buckets of five. It needs no lock: at the border of two buckets a
// race may lose an event.
type window struct{ buckets [buckets]atomic.Uint64 }

const (
	buckets   = 6
	bucket    = int64(5 * time.Second)
	countBits = 24
)

func (w *window) add(now time.Time) {
	k := now.UnixNano() / bucket
	b := &w.buckets[k%buckets]
	for {
		old := b.Load()
		next := uint64(k)<<countBits | 1 //nolint:gosec // after 1970
		if old>>countBits == uint64(k) { //nolint:gosec // likewise
			next = old
			if old&(1<<countBits-1) < 1<<countBits-1 {
				next = old + 1
			}
		}
		if b.CompareAndSwap(old, next) {
			return
		}
	}
}

func (w *window) sum(now time.Time) (n int) {
	k := now.UnixNano() / bucket
	for i := range w.buckets {
		if v := w.buckets[i].Load(); k-int64(v>>countBits) < buckets { //nolint:gosec // 40 bits
			n += int(v & (1<<countBits - 1)) //nolint:gosec // 24 bits
		}
	}
	return n
}

func (w *window) reset() {
	for i := range w.buckets {
		w.buckets[i].Store(0)
	}
}
