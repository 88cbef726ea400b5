package trial

import (
	"testing"

	"headrace/router/experiment/stats"
)

// TestEveryoneLooks has five replicas look, of which any may end the experiment, with a store that they reach all the time and half of
// it: who decides at what all have seen, the others at their own, by their parts of alpha. Together they stop few experiments that try
// nothing.
func TestEveryoneLooks(t *testing.T) {
	const experiments = 60
	for name, silent := range map[string]float64{"always": 0, "half the time": 0.5} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stopped, first := 0, ""
			for i := range experiments {
				tr := Trial{Requests: 3000, Steps: []Step{{0, .1}, {1500, .5}}, Hosts: [2]int{6, 0}, HostSD: .12, Replicas: 5, Everyone: true, Silent: silent, Every: 30, Drift: true}
				if res := Run(&tr, uint64(i+1), false); res.Action == stats.Stop { //nolint:gosec // small
					stopped++
					first = res.Last.Arms[1].Reason
				}
			}
			t.Logf("%d of %d", stopped, experiments)
			if stopped > experiments/10 { // alpha is 5 %, and twice as many of so few are rarely by chance
				t.Errorf("%d of %d experiments were stopped; one of them: %s", stopped, experiments, first)
			}
		})
	}
}
