package sim

import "headrace/router"

// Policy is a way to choose hosts, with the rules of the gateway that does.
type Policy struct {
	Name  string
	Title string
	rules rules
	make  func(g *replica) picker
}

// The two policies that others are measured by.
const (
	Brain  = "headrace"
	Oracle = "oracle"
)

// Policies returns all, Headrace's first.
func Policies() []Policy {
	brain := func(p router.Policy) func(*replica) picker {
		return func(g *replica) picker { return newBrain(g, p, g.w.sc.SLO) }
	}
	sure := func(confidence float64) func(*replica) picker {
		return func(g *replica) picker {
			slo := g.w.sc.SLO
			slo.Confidence = confidence
			return newBrain(g, router.PolicyCost, slo)
		}
	}
	plainly := func(f func(*replica) *simple) func(*replica) picker {
		return func(g *replica) picker { return f(g) }
	}
	idle := ours()
	idle.advice = false
	scraping := ours()
	scraping.scrape = 5
	passive := scraping
	passive.advice = false
	knowing := ours()
	knowing.knowing = true
	return []Policy{
		{Brain, "Headrace: least marginal cost under the SLO", ours(), brain(router.PolicyCost)},
		{"headrace-unadvised", "Headrace without capacity actions", idle, brain(router.PolicyCost)},
		{"headrace-metrics", "Headrace that reads vLLM's metrics every 5 s", scraping, brain(router.PolicyCost)},
		{"headrace-passive", "the same without capacity actions, as a gateway that may not take any", passive, brain(router.PolicyCost)},
		{"headrace-p97", "Headrace asked for 97 % confidence", ours(), sure(0.97)},
		{"headrace-p99", "Headrace asked for 99 % confidence", ours(), sure(0.99)},
		{"headrace-latency", "Headrace's policy latency", ours(), brain(router.PolicyLatency)},
		{"headrace-balanced", "Headrace's policy balanced", ours(), brain(router.PolicyBalanced)},
		{"headrace-weighted", "Headrace's policy weighted", ours(), brain(router.PolicyWeighted)},
		{Oracle, "greedy with perfect information", knowing, func(g *replica) picker { return newOracle(g) }},
		{"random", "any host at random", plain(), plainly(random)},
		{"round-robin", "one after the other", plain(), plainly(roundRobin)},
		{"least-connections", "the fewest requests in flight", plain(), plainly(leastConnections(nil))},
		{"peak-ewma", "the better of two by peak-EWMA latency times load", plain(), plainly(peakEWMA)},
		{"prequal", "Prequal's hot-cold rule", plain(), plainly(prequal)},
		{"all-runpod", "metered hosts only", plain(), plainly(leastConnections(isRunPod))},
		{"all-vast", "hourly hosts only", plain(), plainly(leastConnections(isHourly))},
		{"cheapest", "the cheapest by the price list", plain(), plainly(cheapestListed(false))},
		{"cheapest-capped", "the cheapest by the price list with room", plain(), plainly(cheapestListed(true))},
		{"inverse-square", "drawn by the inverse square of the listed price", plain(), plainly(inverseSquare)},
		{"lowest-latency", "LiteLLM's lowest latency", plain(), plainly(lowestLatency)},
		{"average-cost", "the least measured $/token: a trap", plain(), plainly(averageCost)},
		{"spill-0.7", "hourly hosts up to 70 % of the catalogue's safe load, then metered ones", plain(), plainly(spill(0.7))},
		{"spill-0.5", "the same up to 50 %", plain(), plainly(spill(0.5))},
		{"spill-0.35", "the same up to 35 %", plain(), plainly(spill(0.35))},
		{"spill-0.5+", "the same up to 50 %, with Headrace's retries and continuation", ours(), plainly(spill(0.5))},
	}
}

// PolicyNamed returns the policy of that name; ok is false when there is none.
func PolicyNamed(name string) (p Policy, ok bool) {
	for _, p := range Policies() {
		if p.Name == name {
			return p, true
		}
	}
	return Policy{}, false
}
