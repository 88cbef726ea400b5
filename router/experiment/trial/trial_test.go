package trial_test

import (
	"flag"
	"fmt"
	"testing"

	"headrace/router/experiment/stats"
	"headrace/router/experiment/trial"
)

var runs = flag.Int("trial.runs", 500, "experiments without a difference")

func TestDebug(t *testing.T) {
	for name, tc := range map[string]trial.Trial{
		"users ramp":    {Requests: 6000, Users: 1500, Steps: []trial.Step{{0, 0.05}, {1500, 0.25}, {3500, 0.5}}, Hosts: [2]int{6, 0}, HostSD: 0.12},
		"users fixed":   {Requests: 6000, Users: 1500, Steps: []trial.Step{{0, 0.1}}, Hosts: [2]int{6, 0}, HostSD: 0.12},
		"requests ramp": {Requests: 6000, Steps: []trial.Step{{0, 0.05}, {1500, 0.25}, {3500, 0.5}}, Hosts: [2]int{6, 0}, HostSD: 0.12},
		"nested":        {Requests: 6000, Users: 1500, Steps: []trial.Step{{0, 0.1}}, Hosts: [2]int{6, 4}, HostSD: 0.12},
	} {
		stops := map[string]int{}
		for i := range *runs {
			res := trial.Run(&tc, uint64(i), false)
			if res.Action == stats.Stop {
				k := "srm/early"
				if res.By >= 0 {
					k = stats.Metric(res.By).String()
				}
				stops[k]++
				if stops[k] < 3 {
					fmt.Println(name, res.Last.Arms[1].Reason)
				}
			}
			if res.Hosts {
				stops["hosts"]++
			}
		}
		fmt.Println(name, stops)
	}
}
