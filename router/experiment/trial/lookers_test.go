package trial

import (
	"testing"

	"headrace/router/experiment/stats"
)

// TestLookers has eight replicas look at figures of their own, each by its part of alpha, as
// stats.Experiment.VerdictOf does: together they stop few experiments that try nothing.
func TestLookers(t *testing.T) {
	const experiments, replicas = 150, 8
	stopped := 0
	for i := range experiments {
		for k := range replicas {
			tr := Trial{Requests: 2000, Steps: []Step{{0, .5}}, Hosts: [2]int{6, 0}, HostSD: .12, Part: 1.0 / replicas}
			if Run(&tr, uint64(i*replicas+k+1), false).Action == stats.Stop { //nolint:gosec // small
				stopped++
				break
			}
		}
	}
	if stopped > experiments/20 {
		t.Errorf("%d of %d experiments were stopped, and alpha is 5 %%", stopped, experiments)
	}
	t.Logf("%d of %d", stopped, experiments)
}
