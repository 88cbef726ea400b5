//go:build !linux

package load

import "time"

func sleepUntil(due time.Time) {
	time.Sleep(time.Until(due)) //nolint:forbidigo // one arrival of a schedule, microseconds to milliseconds away
}
