//go:build !linux

package procstat

import "time"

// cpuClock is Linux only, as is all of /proc that this package reads.
func cpuClock(int) (time.Duration, bool) { return 0, false }
