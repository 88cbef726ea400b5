package compare

import (
	"math"
	"slices"
	"time"

	"headrace/cmd/loadgen/internal/load"
	"headrace/cmd/loadgen/internal/mock"
)

// Names of the scenarios, in the order in which they run. The two that start fresh processes come
// first, while nothing else runs.
const (
	Cold  = "cold"  // start to first answer
	Hold  = "hold"  // many slow streams
	Plain = "plain" // small requests, 16 connections
	Alone = "alone" // small requests, one connection
	Burst = "burst" // streams as fast as they go
	Paced = "paced" // streams at a model's pace
)

// scenario is one kind of run that all subjects take turns at.
type scenario struct {
	name   string
	plan   load.Plan
	rounds int
	fresh  bool // each round starts the program anew
	direct bool // the mock itself takes part, without a proxy
}

// scenarios returns the runs of a full comparison (about five minutes for four columns), or of a quick
// one, which shows that everything works and hardly more.
func scenarios(quick bool) []scenario {
	plan := func(stream bool, conns int, full, short time.Duration) load.Plan {
		p := load.Plan{Mock: mock.Defaults(), Stream: stream, Conns: conns, Duration: full, Requests: load.MaxRequests}
		if quick {
			p.Duration = short
		}
		return p
	}
	either := func(full, short int) int {
		if quick {
			return short
		}
		return full
	}
	all := []scenario{
		{name: Cold, rounds: either(11, 5), fresh: true, plan: plan(false, 1, time.Second, time.Second)},
		{name: Hold, rounds: either(3, 1), fresh: true, plan: plan(true, either(1000, 500), 3*time.Second, time.Second)},
		{name: Plain, rounds: either(7, 3), direct: true, plan: plan(false, 16, 2500*time.Millisecond, 400*time.Millisecond)},
		{name: Alone, rounds: either(7, 3), direct: true, plan: plan(false, 1, 2*time.Second, 300*time.Millisecond)},
		{name: Burst, rounds: either(7, 3), plan: plan(true, 64, 2500*time.Millisecond, 400*time.Millisecond)},
		{name: Paced, rounds: either(5, 2), plan: plan(true, 200, 3*time.Second, 400*time.Millisecond)},
	}
	hold := &all[1].plan
	hold.PerWorker, hold.Mock.Gap, hold.Mock.Tokens, hold.Ramp = 1, 250*time.Millisecond, 24, 2*time.Second
	paced := &all[5].plan
	paced.Mock.Gap, paced.Mock.Tokens, paced.Ramp = 20*time.Millisecond, 100, time.Second
	if quick {
		hold.Mock.Gap, hold.Mock.Tokens, hold.Ramp = 100*time.Millisecond, 12, 300*time.Millisecond
		paced.Mock.Tokens, paced.Ramp = 20, 200*time.Millisecond
	}
	return all
}

// sample is what one subject's turn in one round gave.
type sample struct {
	row   load.Row
	start time.Duration // from the start of its process to its first answer, 0 when it was running before
}

// measure is one line of the table.
type measure struct {
	id, title, unit string
	scenario        string
	// must and stretch are ratios to nginx, 0 for none: at most that, or at least that for a figure
	// of which more is better.
	must, stretch  float64
	higherIsBetter bool
	// added takes the direct run of the same round off first. Such differences are small and noisy, so
	// their medians are divided, where other figures are divided round by round.
	added bool
	value func(sample) float64
}

// measures is the acceptance list.
func measures() []measure {
	return []measure{
		{
			id: "cpu_request", scenario: Plain, title: "CPU per plain request, 16 connections", unit: "µs", must: 1.6, stretch: 1.3,
			value: func(s sample) float64 { return figureOf(s.row.CPURequest) },
		},
		{
			id: "requests_per_second", scenario: Plain, title: "requests/s, closed loop, 16 connections", unit: "1/s", must: 0.9, stretch: 1.1, higherIsBetter: true,
			value: func(s sample) float64 { return figureOf(s.row.RPS) },
		},
		{
			id: "added_p50", scenario: Alone, title: "added p50, one connection", unit: "µs", must: 1.75, stretch: 1.3, added: true,
			value: func(s sample) float64 { return figureOf(s.row.P50) },
		},
		{
			id: "added_p99", scenario: Alone, title: "added p99, one connection", unit: "µs", added: true,
			value: func(s sample) float64 { return figureOf(s.row.P99) },
		},
		{
			id: "cpu_event_burst", scenario: Burst, title: "CPU per event, 64 streams of 64 tokens back to back", unit: "µs", must: 2.0, stretch: 1.6,
			value: func(s sample) float64 { return figureOf(s.row.CPUToken) },
		},
		{
			id: "cpu_event_paced", scenario: Paced, title: "CPU per event, 200 streams at 50 events/s", unit: "µs", must: 2.0, stretch: 1.5,
			value: func(s sample) float64 { return figureOf(s.row.CPUToken) },
		},
		{
			id: "memory_stream", scenario: Hold, title: "memory per held stream (RSS growth)", unit: "KiB", must: 1.4, stretch: 0.75,
			value: func(s sample) float64 { return figureOf(s.row.RSSPerConn()) },
		},
		{
			id: "start", scenario: Cold, title: "process start to first answer", unit: "ms", must: 1.5,
			value: func(s sample) float64 { return figureOf(float64(s.start) / float64(time.Millisecond)) },
		},
	}
}

// figureOf turns "was not read", a zero, into NaN: no real figure of this table is zero.
func figureOf(v float64) float64 {
	if v == 0 {
		return math.NaN()
	}
	return v
}

// Scenarios lists the names that a comparison can be narrowed to.
func Scenarios() []string { return []string{Cold, Hold, Plain, Alone, Burst, Paced} }

// only keeps the scenarios named, all when none is.
func only(all []scenario, names []string) []scenario {
	if len(names) == 0 {
		return all
	}
	return slices.DeleteFunc(all, func(s scenario) bool { return !slices.Contains(names, s.name) })
}
