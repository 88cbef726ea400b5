package trial

import (
	"context"
	"math"

	"headrace/router/experiment/stats"
)

// Alarms counts experiments without a difference, and those of them that were stopped all the same.
type Alarms struct {
	Runs    int
	Stopped int
}

// NoDifference is an experiment whose arms are alike: users of very different activity come again, with moods and luck of their own, on days
// of high and low load, on hosts that differ and through incidents that hit both arms, while everything drifts and the canary's weight rises.
func NoDifference() Trial {
	const requests = 3000
	return Trial{Requests: requests, Users: 700, Steps: []Step{{0, 0.05}, {requests / 4, 0.25}, {requests / 2, 0.5}}, Hosts: [2]int{6, 0}, HostSD: 0.12, Drift: true}
}

// FalseAlarms runs NoDifference so many times, jobs at once (0: one for each processor), looking all the time. With other seeds
// it runs others, none of them twice, so that what was counted with different seeds may be added up. The error is ctx's.
func FalseAlarms(ctx context.Context, runs int, seed uint64, jobs int) (Alarms, error) {
	t := NoDifference()
	results, err := Many(ctx, &t, runs, (seed-1)*uint64(runs)+1, false, jobs) //nolint:gosec // not negative; seed 0 wraps, and is as good as another
	if err != nil {
		return Alarms{}, err
	}
	a := Alarms{Runs: runs}
	for i := range results {
		if results[i].Action == stats.Stop {
			a.Stopped++
		}
	}
	return a, nil
}

// Share is the share of the experiments that were stopped, in [0,1], with its 95 % confidence interval by Wilson, which says something
// of a share that is next to nothing as well. All are NaN when there was no experiment.
func (a Alarms) Share() (share, low, high float64) {
	const z = 1.959964 // the normal's 97.5 % point
	n := float64(a.Runs)
	share = float64(a.Stopped) / n
	shrink := 1 + z*z/n
	mid := (share + z*z/(2*n)) / shrink
	half := z / shrink * math.Sqrt(share*(1-share)/n+z*z/(4*n*n))
	// Rounding must not lead out of the interval's own bounds.
	return share, max(0, min(share, mid-half)), min(1, max(share, mid+half))
}
