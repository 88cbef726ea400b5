package report

import (
	"context"
	"slices"
	"strings"

	"headrace/router/experiment/trial"
	"headrace/router/sim"
)

// Plan is a suite: the runs that show the claims, and how well they must be kept.
type Plan struct {
	Name      string
	Scenarios []sim.Scenario
	Policies  []sim.Policy
	Only      func(scenario, policy string) bool
	Seeds     int
	Trials    int // made-up experiments without a difference, for each seed
	targets   targets
}

// Roles of scenarios that claims are about: the names of the built-in ones.
const (
	seedFleet = "S1"
	harsh     = "S2"
	slowHost  = "S6"
	sharing   = "S8"
	noSharing = "S9"
	surer     = "headrace-p97"
)

// targets are the bounds of the claims. Shares are in [0,1].
type targets struct {
	oracle, spill, plain, trivial float64 // most, as ratios of $/Mtok
	spillSLO, bestSLO             float64 // least, share of requests more than the other
	slo, surerSLO, replicas       float64 // least
	failed, failedHarsh           float64 // most
	slowHost                      float64 // most, share of requests
	calibrated                    float64 // least, realised less promised
}

// Standard is the suite that the acceptance table is about: whole days, every scenario, five seeds; every simple policy in
// the first three scenarios and where an API takes any load, elsewhere those that are not hopeless. With a base every scenario is made from it
// instead: see Variants.
func Standard(base *sim.Scenario) Plan {
	p := Plan{
		Name: "standard", Scenarios: sim.Scenarios(), Policies: sim.Policies(), Seeds: 5, Trials: 400,
		targets: targets{
			oracle: 1.10, spill: 0.80, plain: 0.60, trivial: 1.03, spillSLO: 0, bestSLO: 0, slo: 0.92, surerSLO: 0.94, replicas: 0.93,
			failed: 0.0002, failedHarsh: 0.001, slowHost: 0.02, calibrated: -0.03,
		},
	}
	if base != nil {
		p.Scenarios = Variants(base)
	}
	open := map[string]bool{seedFleet: true, harsh: true, "S3": true} // to any policy
	for i := range p.Scenarios {
		s := &p.Scenarios[i]
		open[s.Name] = open[s.Name] || slices.ContainsFunc(s.Hosts, func(h sim.Host) bool { return h.Kind == sim.API })
	}
	p.Only = func(scenario, policy string) bool {
		switch {
		case policy == sim.Brain, policy == sim.Oracle:
			return true
		case Simple(policy):
			return open[scenario] || !slices.Contains(beaten, policy)
		case policy == surer:
			return scenario == seedFleet || scenario == harsh
		}
		return scenario == seedFleet // the other ways to ask Headrace
	}
	return p
}

// beaten are the simple policies that keep the SLO for less than two thirds of the requests in the seed fleet. Where only
// rented hosts and workers serve as much traffic they do no better.
var beaten = []string{"random", "round-robin", "all-vast", "cheapest", "inverse-square", "average-cost"}

// The short suite simulates these hours of the day, in which load climbs from the mean to nearly its top.
const shortFrom, shortHours = 6.0, 2.5

// Short shows the same claims in less than a minute: two and a half hours of the morning, fewer seeds, policies and scenarios. Its
// targets are looser, for a router that has just started and a few hours are more at the mercy of chance than a day.
func Short(base *sim.Scenario) Plan {
	p := Standard(base)
	p.Name, p.Seeds, p.Trials = "short", 3, 67
	p.targets = targets{
		oracle: 1.12, spill: 0.85, plain: 0.65, trivial: 1.05, spillSLO: 0, bestSLO: 0, slo: 0.92, surerSLO: 0.94, replicas: 0.92,
		failed: 0.0005, failedHarsh: 0.0015, slowHost: 0.03, calibrated: -0.03,
	}
	for i, s := range p.Scenarios {
		hours := min(shortHours, s.Hours)
		p.Scenarios[i] = s.Window(max(0, min(shortFrom-s.Load.From, s.Hours-hours)), hours)
	}
	others := []string{"S3", "S4", "SD", "kinked", "noisy"}
	contenders := []string{"least-connections", "lowest-latency", "cheapest-capped", "spill-0.35"}
	p.Only = func(scenario, policy string) bool {
		switch scenario {
		case seedFleet, harsh:
			return policy == sim.Brain || policy == sim.Oracle || policy == surer || policy == "spill-0.5" || slices.Contains(contenders, policy)
		case slowHost, sharing, noSharing:
			return policy == sim.Brain
		}
		return slices.Contains(others, scenario) && (policy == sim.Brain || slices.Contains(contenders, policy))
	}
	return p
}

// Options are the runs of the plan, with seeds from first on.
func (p *Plan) Options(first uint64, seeds int) sim.SuiteOptions {
	o := sim.SuiteOptions{Scenarios: p.Scenarios, Policies: p.Policies, Only: p.Only}
	for k := range seeds {
		o.Seeds = append(o.Seeds, first+uint64(k)) //nolint:gosec // not negative
	}
	return o
}

// Alarms runs the experiments without a difference of every seed, jobs at once (0: one for each processor), and counts those that were stopped. done, if
// not nil, is called after each seed. The error is ctx's.
func (p *Plan) Alarms(ctx context.Context, seeds []uint64, jobs int, done func()) (all trial.Alarms, err error) {
	for _, seed := range seeds {
		a, err := trial.FalseAlarms(ctx, p.Trials, seed, jobs)
		if err != nil {
			return trial.Alarms{}, err
		}
		all.Runs += a.Runs
		all.Stopped += a.Stopped
		if done != nil {
			done()
		}
	}
	return all, nil
}

// Simple tells whether a policy is one that Headrace is compared with: neither its own, nor one that knows everything, nor
// one that is lent Headrace's retries and continuation.
func Simple(policy string) bool {
	return policy != sim.Oracle && policy != "spill-0.5+" && policy != sim.Brain && !strings.HasPrefix(policy, sim.Brain+"-")
}

func isSpill(policy string) bool { return Simple(policy) && strings.HasPrefix(policy, "spill-") }

// Variants are a fleet of one's own in the roles of the built-in scenarios: as it is (S1), with hosts that live an hour and
// die together (S2), with a host that is 1.8 times slower than told (S6), behind four gateways (S8, S9), with rented hosts'
// prices doubled half way, and with engines of other families than the learner's.
func Variants(base *sim.Scenario) []sim.Scenario {
	first := slices.IndexFunc(base.Hosts, func(h sim.Host) bool { return h.Kind == sim.Hourly })
	var all []sim.Scenario
	add := func(name, how string, change func(*sim.Scenario)) {
		s := *base
		s.Hosts, s.Events = slices.Clone(base.Hosts), slices.Clone(base.Events)
		s.Name = name
		if how != "" {
			s.Title += ": " + how
		}
		change(&s)
		all = append(all, s)
	}
	truth := func(t sim.Truth) func(*sim.Scenario) { return func(s *sim.Scenario) { s.Truth = t } }
	add(seedFleet, "", func(*sim.Scenario) {})
	add(harsh, "interruptible hosts live 1 h and die together, one is flaky", func(s *sim.Scenario) {
		s.Faults.Uptime, s.Faults.Correlated, s.Faults.Spot = 3600, 0.6, nil
		if s.Faults.Downtime == 0 {
			s.Faults.Downtime = 600
		}
		if first >= 0 {
			s.Hosts[first].Flaky = true
		}
	})
	if first >= 0 {
		add(slowHost, base.Hosts[first].Name+" is 1.8 times slower than told", func(s *sim.Scenario) {
			s.Hosts[first].Slower = 1.8 * max(1, s.Hosts[first].Slower)
		})
	}
	add(sharing, "four gateways that hear of each other every second", func(s *sim.Scenario) { s.Replicas, s.Share = 4, 1 })
	add(noSharing, "four gateways that share nothing", func(s *sim.Scenario) { s.Replicas, s.Share = 4, 0 })
	if first >= 0 {
		add("price", "rented hosts' prices double half way", func(s *sim.Scenario) {
			for i := range s.Hosts {
				if s.Hosts[i].Kind == sim.Hourly {
					s.Events = append(s.Events, sim.Event{At: s.Hours * 1800, What: sim.PriceTimes, Host: s.Hosts[i].Name, Factor: 2})
				}
			}
		})
	}
	add("kinked", "truth: flat up to a knee, then steep", truth(sim.Kinked))
	add("noisy", "truth: every stream another speed, and engines that wander", truth(sim.Noisy))
	add("chunked", "truth: prompts are computed in chunks along with decoding", truth(sim.Chunked))
	add("kv", "truth: KV caches too small for all sequences", truth(sim.KV))
	return all
}
