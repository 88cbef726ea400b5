package sim

import (
	"math"
	"slices"
	"strings"
	"testing"

	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// scripted is a policy for tests: it goes where choose says, and notes what it is told.
type scripted struct {
	*simple
	updates []told // of host 0
	at      []float64
	heard   [][]int
	heardAt []float64
	classes []outcome.Class
}

func (p *scripted) update(eps []endpoint.Endpoint) {
	p.simple.update(eps)
	p.updates = append(p.updates, p.g.view[0])
	p.at = append(p.at, p.g.w.now)
}

func (p *scripted) prompts(int) int { return 0 }

func (p *scripted) share(others, _ []int) {
	p.heard = append(p.heard, slices.Clone(others))
	p.heardAt = append(p.heardAt, p.g.w.now)
}

func (p *scripted) settled(a *attempt, class outcome.Class, retryAfter float64) {
	p.classes = append(p.classes, class)
	p.simple.settled(a, class, retryAfter)
}

// script makes a Policy that prefers the host listed first among those that it may use, and the pickers that it makes.
func script(r rules, prepare func(g *replica)) (Policy, *[]*scripted) {
	var made []*scripted
	return Policy{Name: "scripted", rules: r, make: func(g *replica) picker {
		p := &scripted{simple: newSimple(g)}
		p.choose = func([]*backend) int { return 0 }
		if prepare != nil {
			prepare(g)
		}
		made = append(made, p)
		return p
	}}, &made
}

// plainHost is an hourly host without a spread: about 50 tokens a second alone, a first token in half a second.
func plainHost(name string) Host {
	return Host{
		Name: name, Provider: "vast", Kind: Hourly, Interruptible: true, TPS: Range{50, 50}, TTFT: Range{0.5, 0.5}, Slope: 0.04, Prefill: 1000, Seqs: 32,
		USDPerHour: Range{1, 1},
	}
}

func small(hosts ...Host) Scenario {
	return Scenario{Name: "small", Hours: 1, SLO: SLO{TTFT: 2, TPS: 15, Confidence: 0.9}, Hosts: hosts, Load: Load{PerSecond: 0.5}}
}

func simulate(t *testing.T, s Scenario, p Policy, seed uint64) Result {
	t.Helper()
	r, err := RunContext(t.Context(), s, p, seed)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestBills(t *testing.T) {
	worker := Host{
		Name: "w", Provider: "runpod", Kind: Serverless, TPS: Range{50, 50}, TTFT: Range{0.5, 0.5}, Slope: 0.04, Prefill: 1000, Seqs: 32,
		USDPerSecond: 0.001, Workers: 2, Concurrency: 8, ColdStart: 25, IdleTimeout: 15,
	}
	once := []Call{{Prompt: 100, Output: 101}, {At: 1e9, Prompt: 1, Output: 1}} // and never again
	s := small(worker)
	s.Load = Load{Trace: once}
	p, _ := script(ours(), nil)
	r := simulate(t, s, p, 1)
	end := float64(r.TTFTp50) + 100/float64(r.TPSp50)
	if want := math.Ceil(end+15) * 0.001; math.Abs(r.USD-want) > 1e-9 || r.MeterUSD != r.USD || end < 8 {
		t.Errorf("a worker that ended at %.3f s and idled for 15 costs $%g, want %g", end, r.USD, want)
	}

	api := tokenAPI(1)
	s = small(api)
	s.Load = Load{Trace: []Call{{Prompt: 1000, Output: 500, Session: "a"}, {At: 60, Prompt: 2000, Output: 100, Session: "a"}, {At: 1e9, Prompt: 1, Output: 1}}}
	r = simulate(t, s, p, 1)
	if want := (1000*0.60 + 500*0.90 + 500*0.60 + 1500*0.06 + 100*0.90) / 1e6; math.Abs(r.USD-want) > 1e-12 {
		t.Errorf("two turns at the API cost $%g, want %g", r.USD, want)
	}

	s = small(plainHost("a"))
	s.Hours = 4
	s.Events = []Event{{At: 3600, What: PriceTimes, Factor: 3}}
	r = simulate(t, s, p, 1)
	if want := 1.0 + 3*3; math.Abs(r.USD-want) > 1e-9 || r.SunkUSD != r.USD {
		t.Errorf("an hour at $1 and three at $3 cost $%g, want %g", r.USD, want)
	}
	if len(r.Moments) != 1 || r.Moments[0] != (Moment{3600, "a", "price"}) {
		t.Errorf("moments %v", r.Moments)
	}
}

func TestServerlessFillsTheFullestAndScales(t *testing.T) {
	worker := runpod("w", "H100 80GB", 0.001, Range{50, 50}, Range{0.2, 0.2}, 0.03, 3000, 3)
	worker.Concurrency = 2
	s := small(worker)
	s.Load = Load{}
	for i := range 5 { // at once: two workers for four, and a third for the last
		s.Load.Trace = append(s.Load.Trace, Call{At: float64(i) * 0.01, Prompt: 100, Output: 2000})
	}
	s.Load.Trace = append(s.Load.Trace, Call{At: 1e9, Prompt: 1, Output: 1})
	var g *replica
	p, _ := script(ours(), func(r *replica) { g = r })
	r := simulate(t, s, p, 2)
	if r.Requests != 5 || r.Failed != 0 {
		t.Fatalf("%d requests, %.2f failed", r.Requests, r.Failed)
	}
	var busy []float64
	for _, e := range g.w.hosts[0].engines {
		busy = append(busy, e.inFlight)
		if e.up || e.starting {
			t.Error("a worker is up long after the last request")
		}
	}
	slices.Sort(busy)
	if busy[0] == 0 || busy[2] < 1.5*busy[0] {
		t.Errorf("workers did %v request seconds, want one of them to have one request and two to have two", busy)
	}
}

func TestRetriesAndTimeouts(t *testing.T) {
	a, b, c := plainHost("a"), plainHost("b"), plainHost("c")
	for name, tc := range map[string]struct {
		rules   rules
		prepare func(g *replica)
		classes []outcome.Class
		ttft    float64 // at least
		failed  float64
	}{
		"refused connections are tried elsewhere": {
			ours(), func(g *replica) { g.w.in(0, func() { g.w.hosts[0].port++ }) }, // before that is told
			[]outcome.Class{outcome.DialFailed, outcome.Success}, 0.05, 0,
		},
		"hanging ones after 2 s": {
			ours(), func(g *replica) { g.w.in(0, func() { g.w.hosts[0].up, g.w.hosts[0].vanish = false, true }) },
			[]outcome.Class{outcome.DialFailed, outcome.Success},
			2, 0,
		},
		"500s twice": {
			ours(), func(g *replica) { g.w.hosts[0].failing, g.w.hosts[1].failing = true, true },
			[]outcome.Class{outcome.UpstreamFault, outcome.UpstreamFault, outcome.Success},
			0.06, 0,
		},
		"and no more": {
			ours(), func(g *replica) {
				for _, b := range g.w.hosts {
					b.failing = true
				}
			},
			[]outcome.Class{outcome.UpstreamFault, outcome.UpstreamFault, outcome.UpstreamFault},
			0, 1,
		},
		"a first token that does not come after 12 s": {
			ours(), func(g *replica) { g.w.hosts[0].engines[0].slow = 1000 },
			[]outcome.Class{outcome.FirstByteTimeout, outcome.Success},
			12, 0,
		},
		"or 60 with a plain proxy": {
			plain(), func(g *replica) { g.w.hosts[0].engines[0].slow = 1000 },
			[]outcome.Class{outcome.FirstByteTimeout, outcome.Success},
			60, 0,
		},
	} {
		s := small(a, b, c)
		s.Load = Load{Trace: []Call{{At: 0, Prompt: 100, Output: 50}, {At: 1e9, Prompt: 1, Output: 1}}}
		p, made := script(tc.rules, tc.prepare)
		r := simulate(t, s, p, 1)
		if got := (*made)[0].classes; !slices.Equal(got, tc.classes) || float64(r.Failed) != tc.failed || r.Requests != 1 {
			t.Errorf("%s: %v, %.1f of %d failed", name, got, r.Failed, r.Requests)
		}
		if got := float64(r.TTFTp50); tc.failed == 0 && (got < tc.ttft || got > tc.ttft+1) {
			t.Errorf("%s: first token after %.2f s, want %.2f and a bit", name, got, tc.ttft)
		}
	}
}

func TestBrokenStreamsGoOn(t *testing.T) {
	s := small(plainHost("a"), plainHost("b"))
	s.Load = Load{}
	const calls = 40
	for i := range calls {
		s.Load.Trace = append(s.Load.Trace, Call{At: float64(i) * 0.1, Prompt: 10, Output: 1000})
	}
	s.Load.Trace = append(s.Load.Trace, Call{At: 1e9, Prompt: 1, Output: 1})
	s.Hosts[1].Interruptible = false
	s.Faults = Faults{Spot: []Spot{{Gap: 15, Held: []int{1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}}}}
	p, _ := script(ours(), nil)
	r := simulate(t, s, p, 1)
	resumed, failed := float64(r.Resumed)*calls, float64(r.Failed)*calls
	if r.Requests != calls || r.Shed != 0 || failed < 1 || failed > 16 {
		t.Errorf("%g of %d requests failed, want those that must not be continued", failed, r.Requests)
	}
	if r.OutTokens != int64(calls-failed)*1000 {
		t.Errorf("%d tokens were delivered by %g answers of 1000", r.OutTokens, calls-failed)
	}
	if resumed < 20 || r.Classes["truncated"] != int(resumed) {
		t.Errorf("%g were broken, %d streams", resumed, r.Classes["truncated"])
	}
	p, _ = script(plain(), nil)
	if r := simulate(t, s, p, 1); float64(r.Failed)*calls != resumed {
		t.Errorf("%g failed at a proxy that continues nothing, want all %g", float64(r.Failed)*calls, resumed)
	}
}

func TestControlPlanesAreLateAndSometimesDown(t *testing.T) {
	s := small(plainHost("a"), plainHost("b"))
	s.Faults = Faults{Spot: []Spot{{Gap: 600, Held: []int{1, 0, 1, 0, 1, 1}}}}
	s.Hosts[1].Interruptible = false
	s.Events = []Event{{At: 1700, For: 900, What: ControlDown}}
	p, made := script(ours(), nil)
	r := simulate(t, s, p, 1)
	m := (*made)[0]
	var states []bool
	var ports []int
	for _, u := range m.updates {
		states, ports = append(states, u.up), append(ports, u.port)
	}
	// the fourth change, at 1800 s, is told after the outage; so is the fifth, which comes before that in one of the orders
	if !slices.Equal(states[:3], []bool{true, false, true}) || !states[len(states)-1] || len(states) > 5 {
		t.Fatalf("told %v at %v", states, m.at)
	}
	for i, happened := range []float64{600, 1200} {
		if lag := m.at[i+1] - happened; lag < 2 || lag > 15 {
			t.Errorf("change %d is told %g s late", i, lag)
		}
	}
	for _, at := range m.at[3:] {
		if at < 2600 {
			t.Errorf("told at %g s, while the control plane is down", at)
		}
	}
	if ports[0] != firstPort || ports[2] != firstPort+1 || ports[len(ports)-1] != firstPort+2 {
		t.Errorf("ports %v: a host comes back at another one", ports)
	}
	if r.Classes["dial_failed"] == 0 {
		t.Error("nobody called a host that was gone before that was known")
	}
	if r.Hosts[0].Preemptions != 2 || math.Abs(r.Hosts[0].Down-1200) > 1 {
		t.Errorf("host a was away %d times, %g s", r.Hosts[0].Preemptions, r.Hosts[0].Down)
	}
}

func TestWrongClocks(t *testing.T) {
	s := small(plainHost("a"))
	s.Hours, s.WrongTime = 4, 7200
	for i := range 20 {
		s.Events = append(s.Events, Event{At: float64(i+1) * 600, What: PriceTimes, Factor: 1.01})
	}
	early, late, most := 0, 0, 0.0
	p, _ := script(ours(), nil)
	inner := p.make
	p.make = func(g *replica) picker { return &datesSeen{inner(g).(*scripted), &early, &late, &most} }
	simulate(t, s, p, 1)
	if early < 3 || late < 3 || most > 7200+16 || most < 600 {
		t.Errorf("prices are dated %d times in the past and %d times in the future, by up to %g s", early, late, most)
	}
}

type datesSeen struct {
	*scripted
	early, late *int
	most        *float64
}

func (p *datesSeen) update(eps []endpoint.Endpoint) {
	p.scripted.update(eps)
	off := eps[0].Price.AsOf.Sub(p.g.w.clock()).Seconds()
	if off > 0 {
		*p.late++
	} else {
		*p.early++
	}
	*p.most = max(*p.most, math.Abs(off))
}

func TestReplicasShare(t *testing.T) {
	s := small(plainHost("a"))
	s.Replicas, s.Share = 2, 1
	s.Load.PerSecond = 1
	s.Events = []Event{{At: 600, For: 300, What: SharingCut}, {At: 1200, For: 60, What: ReplicaKilled}}
	p, made := script(ours(), nil)
	r := simulate(t, s, p, 1)
	if len(*made) != 3 {
		t.Fatalf("%d pickers, want two and one after the restart", len(*made))
	}
	m := (*made)[1]
	some := 0
	for i, at := range m.heardAt {
		if at > 600 && at < 900 {
			t.Fatalf("heard of others at %g s, while that is cut", at)
		}
		if m.heard[i][0] > 0 {
			some++
		}
		if at > 1201 && at < 1259 && m.heard[i][0] != 0 {
			t.Errorf("a gateway that is gone has %d in flight at %g s", m.heard[i][0], at)
		}
	}
	if some < 100 {
		t.Errorf("of %d times %d times something was in flight elsewhere", len(m.heardAt), some)
	}
	if failed := float64(r.Failed) * float64(r.Requests); failed < 1 || failed > 20 {
		t.Errorf("%g requests failed, want those that were in flight at the one that died", failed)
	}
	if len((*made)[2].classes) < 500 {
		t.Errorf("after its restart it served %d", len((*made)[2].classes))
	}
}

func TestThrottled(t *testing.T) {
	api := tokenAPI(1)
	api.PerMinute = 10
	s := small(api)
	p, made := script(ours(), nil)
	r := simulate(t, s, p, 1)
	if n := r.Hosts[0].Throttled; n == 0 || n != r.Classes["throttled"] || !slices.Contains((*made)[0].classes, outcome.Throttled) {
		t.Errorf("%d were throttled, by class %v", n, r.Classes)
	}
	if got := r.Classes["success"]; got > 60*10 {
		t.Errorf("%d answers in an hour at 10 a minute", got)
	}
}

func TestFaultsOfS2(t *testing.T) {
	slow(t)
	s := around(scenario(t, "S2"), 0, 6)
	p, _ := script(ours(), nil)
	p.make = func(g *replica) picker { return leastConnections(nil)(g) }
	r := simulate(t, s, p, 5)
	slow, errs, gone := 0, 0, map[string][]float64{}
	for _, m := range r.Moments {
		switch m.What {
		case "slow neighbour":
			slow++
		case "answers 500":
			errs++
		case "preempted":
			gone[m.Host] = append(gone[m.Host], m.At)
		}
	}
	together := 0
	for _, at := range gone["a100-1"] {
		if slices.Contains(gone["a100-2"], at) {
			together++
		}
	}
	if n := len(gone["h100"]); n < 2 || n > 14 {
		t.Errorf("a host that lives an hour went %d times in six", n)
	}
	if together == 0 {
		t.Error("hosts of one machine never went together")
	}
	if slow+errs == 0 {
		t.Error("flaky hosts were never ill")
	}
}

// TestWorldIsTheSameUnderEveryPolicy keeps comparisons fair: what befalls hosts, and who calls, is no policy's doing.
func TestWorldIsTheSameUnderEveryPolicy(t *testing.T) {
	slow(t)
	s := around(scenario(t, "S2"), 11, 0.7)
	var first *Result
	for _, name := range []string{Brain, "headrace-latency", Oracle, "random", "all-vast", "spill-0.5+"} {
		p := policy(t, name)
		r := simulate(t, s, p, 3)
		if first == nil {
			first = &r
			continue
		}
		if r.Requests != first.Requests || !slices.Equal(r.Moments, first.Moments) || r.SunkUSD != first.SunkUSD {
			t.Errorf("%s: %d requests and %d moments, %s has %d and %d", p.Name, r.Requests, len(r.Moments), first.Policy, first.Requests, len(first.Moments))
		}
	}
	if len(first.Moments) < 3 {
		t.Errorf("only %d moments", len(first.Moments))
	}
}

func TestValidate(t *testing.T) {
	good := func() Scenario { return scenario(t, "S4") }
	for name, tc := range map[string]struct {
		change func(s *Scenario)
		says   string
	}{
		"no time":                {func(s *Scenario) { s.Hours = 0 }, "hours is 0"},
		"NaN":                    {func(s *Scenario) { s.Hours = math.NaN() }, "hours is NaN"},
		"for ever":               {func(s *Scenario) { s.Hours = math.Inf(1) }, "hours is +Inf"},
		"certainty":              {func(s *Scenario) { s.SLO.Confidence = 1 }, "slo.confidence is 1"},
		"no hosts":               {func(s *Scenario) { s.Hosts = nil }, "no hosts"},
		"a name twice":           {func(s *Scenario) { s.Hosts[1].Name = s.Hosts[0].Name }, `host 1 needs a name of its own, has "a100-1"`},
		"a range the wrong way":  {func(s *Scenario) { s.Hosts[0].TPS = Range{40, 30} }, "host a100-1: tps ends at 30"},
		"no speed":               {func(s *Scenario) { s.Hosts[0].Prefill = 0 }, "host a100-1: prefill is 0"},
		"no sequences":           {func(s *Scenario) { s.Hosts[0].Seqs = 0 }, "host a100-1: seqs is 0"},
		"no workers":             {func(s *Scenario) { s.Hosts[5].Workers = 0 }, "host sls-a100: needs workers"},
		"an unknown kind":        {func(s *Scenario) { s.Hosts[0].Kind = "lease" }, `host a100-1: unknown kind "lease"`},
		"an unknown truth":       {func(s *Scenario) { s.Truth = "flat" }, `unknown truth "flat"`},
		"an unknown event":       {func(s *Scenario) { s.Events = []Event{{What: "flood"}} }, `event 1: unknown "flood"`},
		"nobody's event":         {func(s *Scenario) { s.Events = []Event{{What: PriceTimes, Factor: 2, Host: "x"}} }, `event 1: unknown host "x"`},
		"a price for nothing":    {func(s *Scenario) { s.Events = []Event{{What: PriceTimes}} }, "event 1: factor is 0"},
		"more than always":       {func(s *Scenario) { s.Faults.Correlated = 1.5 }, "faults.correlated is 1.5"},
		"a sine below 0":         {func(s *Scenario) { s.Load.Diurnal = 1 }, "load.diurnal is 1"},
		"nobody calls":           {func(s *Scenario) { s.Load.PerSecond = 0 }, "load.per_second is 0"},
		"two things are two":     {func(s *Scenario) { s.Hours, s.SLO.TPS = -1, 0 }, "hours is -1, want more than 0\nscenario S4: slo.tps is 0"},
		"too many gateways":      {func(s *Scenario) { s.Replicas = 65 }, "65 replicas"},
		"a price less than none": {func(s *Scenario) { s.Hosts[7].USDPerMTokIn = -1 }, "host api: usd_per_mtok_in is -1"},
	} {
		s := good()
		tc.change(&s)
		err := s.Validate()
		if err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want %q", name, err, tc.says)
		}
		if _, err := RunContext(t.Context(), s, policy(t, Brain), 1); err == nil {
			t.Errorf("%s: is run", name)
		}
	}
}
