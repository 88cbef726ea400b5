package procstat

import (
	"time"

	"golang.org/x/sys/unix"
)

// cpuClock reads the CPU-time clock of another process in nanoseconds, threads that ended included.
// The clock's id is the complement of the pid shifted left by three, plus 2 for scheduler time (the
// layout behind clock_getcpuclockid(3)).
func cpuClock(pid int) (time.Duration, bool) {
	const sched = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|sched), &ts); err != nil {
		return 0, false
	}
	return time.Duration(ts.Nano()), true
}
