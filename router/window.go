package router

import (
	"sync"
	"time"
)

// window counts requests that began within the last stretch of time, in parts of it: the oldest part counts whole until
// it is over, so a limit is kept within any stretch, at the price of a twentieth less at most.
type window struct {
	mu    sync.Mutex // guards all below
	parts [windowParts]int32
	first int64 // number of the newest part since the epoch
	sum   int32
}

const windowParts = 20

// take counts a request if there is room; else it returns how long until there may be.
func (w *window) take(now time.Time, limit int, per time.Duration) (ok bool, wait time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	part := per / (windowParts - 1)
	w.turn(now, part)
	if int(w.sum) < limit {
		w.parts[w.first%windowParts]++
		w.sum++
		return true, 0
	}
	return false, w.until(now, part)
}

// full returns how long until there may be room, 0 when there is.
func (w *window) full(now time.Time, limit int, per time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	part := per / (windowParts - 1)
	w.turn(now, part)
	if int(w.sum) < limit {
		return 0
	}
	return w.until(now, part)
}

// turn forgets the parts that have gone by.
func (w *window) turn(now time.Time, part time.Duration) {
	n := now.UnixNano() / int64(part)
	for ; w.first < n; w.first++ {
		if n-w.first > windowParts {
			w.first = n - windowParts
		}
		next := &w.parts[(w.first+1)%windowParts]
		w.sum -= *next
		*next = 0
	}
}

// until is the time to the end of the oldest part that holds anything.
func (w *window) until(now time.Time, part time.Duration) time.Duration {
	for i := w.first - windowParts + 1; i <= w.first; i++ {
		if i >= 0 && w.parts[i%windowParts] > 0 {
			return time.Duration((i+windowParts)*int64(part) - now.UnixNano())
		}
	}
	return part
}
