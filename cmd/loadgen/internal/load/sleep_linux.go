package load

import (
	"time"

	"golang.org/x/sys/unix"
)

// sleepUntil is precise to some 50 µs, where the runtime's own timers, which wait in whole
// milliseconds when idle, would add up to 1 ms to each arrival.
func sleepUntil(due time.Time) {
	for {
		d := time.Until(due)
		if d <= 0 {
			return
		}
		ts := unix.NsecToTimespec(int64(d))
		_ = unix.Nanosleep(&ts, nil) // interrupted by a signal: once more
	}
}
