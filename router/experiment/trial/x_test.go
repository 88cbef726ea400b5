package trial_test

import (
	"fmt"
	"slices"
	"testing"

	"headrace/router/experiment/stats"
	"headrace/router/experiment/trial"
)

func TestX(t *testing.T) {
	half := []trial.Step{{0, 0.05}, {1500, 0.25}, {3500, 0.5}}
	for _, tc := range []struct {
		name string
		t    trial.Trial
	}{
		{"confounded 6/2", trial.Trial{Requests: 20000, Users: 5000, Steps: half, Hosts: [2]int{6, 2}, HostSD: 0.15, Slowest: true}},
		{"confounded 6/4", trial.Trial{Requests: 20000, Users: 5000, Steps: half, Hosts: [2]int{6, 4}, HostSD: 0.15, Slowest: true}},
		{"fails20 w.05", trial.Trial{Requests: 6000, Users: 3000, Steps: []trial.Step{{0, 0.05}}, Hosts: [2]int{6, 0}, Failures: 0.2}},
		{"fails20 req w.05", trial.Trial{Requests: 6000, Steps: []trial.Step{{0, 0.05}}, Hosts: [2]int{6, 0}, Failures: 0.2}},
		{"fails20 req w.01", trial.Trial{Requests: 6000, Steps: []trial.Step{{0, 0.01}}, Hosts: [2]int{6, 0}, Failures: 0.2}},
		{"fails1pt", trial.Trial{Requests: 40000, Steps: half, Hosts: [2]int{6, 0}, Failures: 0.01}},
		{"ttft10", trial.Trial{Requests: 20000, Users: 5000, Steps: half, Hosts: [2]int{6, 0}, TTFT: 1.1}},
		{"tps10", trial.Trial{Requests: 20000, Users: 5000, Steps: half, Hosts: [2]int{6, 0}, TPS: .9}},
		{"good", trial.Trial{Requests: 40000, Users: 10000, Steps: half, Hosts: [2]int{6, 0}}},
	} {
		stops := map[string]int{}
		var at, units []int
		within20 := 0
		shown := 0
		const runs = 60
		for i := range runs {
			every := tc.t
			if every.Failures == .2 {
				every.Every = 1
			}
			res := trial.Run(&every, uint64(i), true)
			k := res.Action.String() + " "
			if res.By >= 0 {
				k += stats.Metric(res.By).String()
			}
			stops[k]++
			if res.Action >= stats.Promote {
				at = append(at, res.Requests)
				units = append(units, res.Units[1])
				if res.Units[1] <= 20 {
					within20++
				}
			}
			if res.Hosts {
				stops["hosts"]++
			}
			if shown < 2 {
				shown++
				fmt.Println("   ", res.Last.Arms[1].Reason)
			}
		}
		slices.Sort(at)
		slices.Sort(units)
		fmt.Print(tc.name, " ", stops, " within20 ", within20)
		if len(at) > 0 {
			fmt.Print(" median ", at[len(at)/2], " units ", units[len(at)/2])
		}
		fmt.Println()
	}
}
