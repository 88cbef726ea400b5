package sim

// Host classes of the article's table (read its TPS as one stream) with what it leaves out: b/a, prefill, sequences.
// Prices per hour and second are RunPod's and Vast.ai's as the article gives them.

func vast(name, machine, gpu string, count int, usd, tps, ttft Range, slope, prefill float64, seqs int) Host {
	return Host{
		Name: name, Provider: "vast", Kind: Hourly, GPU: gpu, GPUCount: count, Machine: machine, Interruptible: true,
		USDPerHour: usd, TPS: tps, TTFT: ttft, Slope: slope, Prefill: prefill, Seqs: seqs,
	}
}

func runpod(name, gpu string, usdPerSecond float64, tps, ttft Range, slope, prefill float64, workers int) Host {
	return Host{
		Name: name, Provider: "runpod", Kind: Serverless, GPU: gpu, GPUCount: 1, USDPerSecond: usdPerSecond, TPS: tps, TTFT: ttft, Slope: slope, Prefill: prefill,
		Seqs: 64, Workers: workers, Concurrency: 30, ColdStart: 25, IdleTimeout: 15,
	}
}

func rented70B() []Host {
	return []Host{
		vast("a100-1", "m1", "A100 80GB", 1, Range{0.70, 1.20}, Range{25, 45}, Range{0.25, 0.40}, 0.040, 1200, 48),
		vast("a100-2", "m1", "A100 80GB", 1, Range{0.70, 1.20}, Range{25, 45}, Range{0.25, 0.40}, 0.040, 1200, 48),
		vast("h100", "m2", "H100 80GB", 1, Range{1.50, 2.50}, Range{40, 65}, Range{0.18, 0.30}, 0.030, 3000, 64),
		vast("2x4090-1", "m3", "RTX 4090", 2, Range{0.30, 0.60}, Range{18, 35}, Range{0.40, 0.60}, 0.060, 900, 12),
		vast("2x4090-2", "m4", "RTX 4090", 2, Range{0.30, 0.60}, Range{18, 35}, Range{0.40, 0.60}, 0.060, 900, 12),
	}
}

func workers70B() []Host {
	return []Host{
		runpod("sls-a100", "A100 80GB", 0.00076, Range{30, 40}, Range{0.20, 0.30}, 0.040, 1200, 4),
		runpod("sls-h100", "H100 80GB", 0.00116, Range{45, 60}, Range{0.15, 0.25}, 0.030, 3000, 3),
	}
}

func tokenAPI(times float64) Host {
	return Host{
		Name: "api", Provider: "static", Kind: API, USDPerMTokIn: 0.60 * times, USDPerMTokCached: 0.06 * times, USDPerMTokOut: 0.90 * times,
		TPS: Range{45, 45}, TTFT: Range{0.45 + 250.0/8000, 0.45 + 250.0/8000}, Slope: 1e-6, Prefill: 8000, Seqs: 400,
	}
}

const day = 24.0 // hours

// seedFleet is five rented hosts and two serverless endpoints for a 70B model.
func seedFleet(name, title string) Scenario {
	return Scenario{
		Name: name, Title: title, Hours: day, SLO: SLO{TTFT: 2, TPS: 15, Confidence: 0.9}, Truth: Linear, Hosts: append(rented70B(), workers70B()...),
		Load: Load{PerSecond: 4.2, Diurnal: 0.65, Bursts: 1.4}, Faults: Faults{Uptime: 6 * 3600, Downtime: 600},
	}
}

// Scenarios returns all that are built in.
func Scenarios() []Scenario {
	with := func(s Scenario, change func(*Scenario)) Scenario { //nolint:gocritic // a few at start
		change(&s)
		return s
	}
	noon := 12 * 3600.0
	return []Scenario{
		seedFleet("S1", "the seed fleet: hosts live 6 h"),
		with(seedFleet("S2", "harsh: hosts live 1 h, die together, two are flaky"), func(s *Scenario) {
			s.Faults = Faults{Uptime: 3600, Downtime: 600, Correlated: 0.6}
			s.Hosts[1].Flaky, s.Hosts[4].Flaky = true, true
		}),
		with(seedFleet("S3", "quiet: a request every 4 s"), func(s *Scenario) { s.Load.PerSecond = 0.25 }),
		with(seedFleet("S4", "a per-token API to spill to"), func(s *Scenario) { s.Hosts = append(s.Hosts, tokenAPI(1)) }),
		with(seedFleet("S5", "overload: more than the fleet can serve"), func(s *Scenario) {
			s.Hours, s.Load = 4, Load{PerSecond: 11, Bursts: 1.4}
		}),
		with(seedFleet("S6", "one host is 1.8 times slower than its catalogue"), func(s *Scenario) { s.Hosts[0].Slower = 1.8 }),
		with(seedFleet("S7", "metered hosts only, a request a second"), func(s *Scenario) {
			s.Hosts, s.Load.PerSecond = append(workers70B(), tokenAPI(1)), 1
		}),
		with(seedFleet("S8", "four gateways that hear of each other every second"), func(s *Scenario) { s.Replicas, s.Share = 4, 1 }),
		with(seedFleet("S9", "four gateways that share nothing"), func(s *Scenario) { s.Replicas = 4 }),
		with(seedFleet("SA", "metered hosts only, 6 requests a second"), func(s *Scenario) {
			s.Hosts, s.Load.PerSecond = append(workers70B(), tokenAPI(1)), 6
		}),
		with(seedFleet("SB", "the same with an API at twice the price"), func(s *Scenario) {
			s.Hosts, s.Load.PerSecond = append(workers70B(), tokenAPI(2)), 6
		}),
		with(seedFleet("SC", "Mixtral with a strict SLO"), func(s *Scenario) {
			s.Hours, s.SLO, s.Load = 12, SLO{TTFT: 1, TPS: 30, Confidence: 0.9}, Load{PerSecond: 9, Diurnal: 0.5, Bursts: 1.4}
			s.Hosts = []Host{
				vast("a100", "m1", "A100 80GB", 1, Range{0.70, 1.20}, Range{45, 75}, Range{0.18, 0.35}, 0.040, 5000, 48),
				vast("h100", "m2", "H100 80GB", 1, Range{1.50, 2.50}, Range{75, 110}, Range{0.12, 0.22}, 0.030, 12000, 64),
				runpod("sls-a100", "A100 80GB", 0.00076, Range{50, 70}, Range{0.15, 0.25}, 0.040, 5000, 4),
				runpod("sls-h100", "H100 80GB", 0.00116, Range{80, 100}, Range{0.10, 0.18}, 0.030, 12000, 3),
			}
		}),
		with(seedFleet("SD", "the seed fleet with a strict SLO"), func(s *Scenario) {
			s.SLO, s.Load.PerSecond = SLO{TTFT: 1, TPS: 20, Confidence: 0.95}, 2.5
		}),
		with(seedFleet("price", "rented hosts' prices double at noon"), func(s *Scenario) {
			for i := range 5 {
				s.Events = append(s.Events, Event{At: noon, What: PriceTimes, Host: s.Hosts[i].Name, Factor: 2})
			}
		}),
		with(seedFleet("returns", "hosts come back from their first preemption 1.6 times slower"), func(s *Scenario) {
			for i := range 5 {
				s.Hosts[i].Returns = 1.6
			}
		}),
		with(seedFleet("cut", "four gateways; their shared state is gone for 10 minutes in the evening"), func(s *Scenario) {
			s.Replicas, s.Share = 4, 1
			s.Events = []Event{{At: 18 * 3600, For: 600, What: SharingCut}}
		}),
		with(seedFleet("killed", "four gateways; one is killed at noon and back after a minute"), func(s *Scenario) {
			s.Replicas, s.Share = 4, 1
			s.Events = []Event{{At: noon, For: 60, What: ReplicaKilled}}
		}),
		with(seedFleet("blind", "hosts live 1 h; the control planes answer nobody from noon to two"), func(s *Scenario) {
			s.Faults.Uptime = 3600
			s.Events = []Event{{At: noon, For: 2 * 3600, What: ControlDown}}
		}),
		with(seedFleet("clocks", "providers' clocks are wrong by up to a day"), func(s *Scenario) { s.WrongTime = 86400 }),
		with(seedFleet("throttled", "the per-token API takes 30 requests a minute"), func(s *Scenario) {
			s.Hosts = append(s.Hosts, tokenAPI(1))
			s.Hosts[len(s.Hosts)-1].PerMinute = 30
		}),
		with(seedFleet("kinked", "truth: flat up to a knee, then steep"), func(s *Scenario) { s.Truth = Kinked }),
		with(seedFleet("noisy", "truth: every stream another speed, and engines that wander"), func(s *Scenario) { s.Truth = Noisy }),
		with(seedFleet("chunked", "truth: prompts are computed in chunks along with decoding"), func(s *Scenario) { s.Truth = Chunked }),
		with(seedFleet("kv", "truth: KV caches too small for all sequences"), func(s *Scenario) { s.Truth = KV }),
	}
}

// ScenarioNamed returns the built-in scenario of that name; ok is false when there is none.
func ScenarioNamed(name string) (s Scenario, ok bool) {
	for _, s := range Scenarios() {
		if s.Name == name {
			return s, true
		}
	}
	return Scenario{}, false
}
