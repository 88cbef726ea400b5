package main

import (
	"fmt"
	"strings"
	"time"

	"headrace/gateway/config"
	"headrace/router/sim"
)

// fleetFile is a fleet of one's own for simulate, as YAML. Its tags are those of package config. A range is one number, or
// the two between which each seed draws one.
type fleetFile struct {
	Name     string        `yaml:"name" default:"own" eg:"my-fleet" doc:"What the table calls it." aka:"id|scenario"`
	Title    string        `yaml:"title" default:"a fleet of one's own" eg:"four rented A100 and an API" doc:"What it is, in a line." aka:"description"`
	Hours    float64       `yaml:"hours" default:"24" above:"0" max:"8784" eg:"24" doc:"Hours to simulate, from midnight." aka:"duration|length"`
	SLO      fleetSLO      `yaml:"slo" doc:"What requests are promised."`
	Hosts    []fleetHost   `yaml:"hosts" required:"true" doc:"The hosts." aka:"host|fleet|endpoints"`
	Load     fleetLoad     `yaml:"load" doc:"The traffic." aka:"traffic|requests"`
	Faults   fleetFaults   `yaml:"faults" doc:"What befalls interruptible hosts." aka:"fault|preemptions"`
	Events   []fleetEvent  `yaml:"events" otherwise:"none" doc:"What happens at one time." aka:"event"`
	Gateways fleetGateways `yaml:"gateways" doc:"The gateways in front." aka:"replicas|gateway"`
	Truth    string        `yaml:"truth" words:"linear|kinked|noisy|chunked|kv" default:"linear" doc:"How engines truly behave: see docs/simulator.md. The router always learns straight lines." aka:"engine|engines"`
}

type fleetSLO struct {
	TTFT       time.Duration `yaml:"ttft" above:"0" default:"2s" eg:"2s" doc:"The most time to the first token." aka:"time_to_first_token"`
	TPS        float64       `yaml:"tps" above:"0" default:"15" eg:"15" doc:"The least tokens per second of a stream." aka:"tokens_per_second"`
	Confidence float64       `yaml:"confidence" above:"0" max:"0.9999" default:"0.9" eg:"0.95" doc:"Share of requests that must keep each of the two." aka:"percentile|p"`
}

type fleetHost struct {
	Name          string          `yaml:"name" required:"true" eg:"a100" doc:"A name of its own." aka:"id"`
	Count         int             `yaml:"count" min:"1" max:"1000" default:"1" eg:"2" doc:"How many of these; more than one are called NAME-1, NAME-2 and so on." aka:"number|n"`
	Provider      string          `yaml:"provider" default:"static" eg:"vast" doc:"Whose it is, for your own overview."`
	Price         fleetPrice      `yaml:"price" required:"true" eg:"{usd_per_hour: 1.20}" doc:"What it costs, by exactly one basis, which makes it a rented host, a serverless endpoint or an API." aka:"cost|pricing"`
	Tenure        string          `yaml:"tenure" words:"interruptible|on_demand" otherwise:"on_demand" doc:"Whether a rented host may be taken away." aka:"type"`
	GPU           string          `yaml:"gpu" otherwise:"unknown" eg:"A100 80GB" doc:"Marketing name of the GPU." aka:"gpu_name|hardware"`
	GPUs          int             `yaml:"gpus" min:"1" max:"1024" default:"1" eg:"2" doc:"How many serve the model together." aka:"gpu_count|num_gpus"`
	Machine       string          `yaml:"machine" otherwise:"one of its own" eg:"m1" doc:"The physical machine: where faults.correlated says so, its hosts are taken away together."`
	TPS           []float64       `yaml:"tps" single:"true" required:"true" above:"0" eg:"35" doc:"Tokens per second of one stream alone; a number or [least, most]." aka:"tokens_per_second|speed"`
	TTFT          []time.Duration `yaml:"ttft" single:"true" required:"true" above:"0" eg:"300ms" doc:"Time to the first token of a prompt of 250 tokens, alone; a duration or [least, most]." aka:"time_to_first_token"`
	Slope         float64         `yaml:"slope" min:"0.000001" max:"10" default:"0.045" eg:"0.04" doc:"How much slower each further stream makes all, as a share of the time per token at none." aka:"batching"`
	Prefill       float64         `yaml:"prefill" required:"true" above:"0" eg:"1200" doc:"Prompt tokens computed per second." aka:"prefill_speed|prompt_speed"`
	MaxNumSeqs    int             `yaml:"max_num_seqs" required:"true" min:"1" max:"100000" eg:"48" doc:"Sequences the engine (of a serverless endpoint: each worker) runs at once." aka:"seqs|max_concurrency"`
	Workers       int             `yaml:"workers" min:"1" max:"1000" default:"3" eg:"3" doc:"Serverless: the most workers." aka:"max_workers"`
	PerWorker     int             `yaml:"requests_per_worker" min:"1" max:"100000" default:"30" eg:"30" doc:"Serverless: requests that one worker is given at once." aka:"concurrency"`
	PerMinute     int             `yaml:"requests_per_minute" min:"1" max:"100000000" otherwise:"any" eg:"600" doc:"API: requests that may begin in a minute before it answers 429." aka:"rate_limit|rpm"`
	Flaky         bool            `yaml:"flaky" default:"false" doc:"Has noisy neighbours and episodes of errors."`
	TimesSlower   float64         `yaml:"times_slower" above:"0" max:"1000" default:"1" eg:"1.8" doc:"It is so many times slower than this file, and so the router, says." aka:"slower"`
	ReturnsSlower float64         `yaml:"returns_slower" above:"0" max:"1000" default:"1" eg:"1.6" doc:"It comes back from its first preemption so many times slower." aka:"returns"`
}

type fleetPrice struct {
	USDPerHour         []float64        `yaml:"usd_per_hour" single:"true" min:"0" eg:"1.20" doc:"Rent of the whole host, US dollars per hour; a number or [least, most]." aka:"hourly|per_hour|usd_hour|dph"`
	USDPerWorkerSecond float64          `yaml:"usd_per_worker_second" min:"0" eg:"0.00076" doc:"One worker, US dollars per second." aka:"per_second|usd_per_second"`
	ColdStart          time.Duration    `yaml:"cold_start" default:"25s" eg:"25s" doc:"What the router is told a start of a worker takes. In truth half take about 8 s, half about 45 s."`
	IdleTimeout        time.Duration    `yaml:"idle_timeout" default:"15s" eg:"5s" doc:"How long an idle worker stays, and is billed."`
	USDPerMTok         *fleetTokenPrice `yaml:"usd_per_mtok" doc:"US dollars per million tokens." aka:"per_token|usd_per_token|tokens"`
}

type fleetTokenPrice struct {
	In     float64 `yaml:"in" min:"0" required:"true" eg:"0.60" doc:"A million prompt tokens." aka:"input|prompt"`
	Cached float64 `yaml:"cached" min:"0" otherwise:"the price of in" eg:"0.10" doc:"A million prompt tokens that it had computed before." aka:"cache"`
	Out    float64 `yaml:"out" min:"0" required:"true" eg:"0.90" doc:"A million output tokens." aka:"output|completion"`
}

type fleetLoad struct {
	PerSecond float64 `yaml:"per_second" above:"0" max:"100000" otherwise:"4, or the trace's own" eg:"4.2" doc:"Requests per second, the day's mean; stretches or squeezes a trace." aka:"rate|rps|qps"`
	Daily     float64 `yaml:"daily" min:"0" max:"0.99" default:"0.65" eg:"0.65" doc:"How far the rate swings over the day, as a share of the mean: lowest at midnight, highest at noon." aka:"diurnal"`
	Bursts    float64 `yaml:"bursts" min:"1" max:"100" default:"1.4" eg:"1.4" doc:"Mean height of bursts, in multiples of the rate; 1 for none." aka:"burst"`
	From      float64 `yaml:"from" min:"0" max:"24" default:"0" eg:"8" doc:"Hour of the day at which the run begins." aka:"start"`
	Trace     string  `yaml:"trace" unit:"file" otherwise:"made-up requests" eg:"calls.csv" doc:"CSV file of requests to replay instead, again from its start when it ends." aka:"csv|file"`
}

type fleetFaults struct {
	Uptime     time.Duration `yaml:"uptime" default:"6h" eg:"6h" doc:"Mean time between preemptions of an interruptible host; 0 for never." aka:"mtbf"`
	Downtime   time.Duration `yaml:"downtime" default:"10m" eg:"10m" doc:"How long it is away, ±30 %." aka:"mttr"`
	Correlated float64       `yaml:"correlated" min:"0" max:"1" default:"0" eg:"0.6" doc:"Probability that a host on the same machine goes with it."`
	Deaths     []string      `yaml:"deaths" single:"true" unit:"file" otherwise:"at random" eg:"spot.json" doc:"JSON files of spot instances' availability to follow instead: one for each interruptible host in turn." aka:"spot|traces"`
}

type fleetEvent struct {
	At     time.Duration `yaml:"at" required:"true" eg:"12h" doc:"When, since the start." aka:"time"`
	What   string        `yaml:"what" required:"true" words:"price|control_down|sharing_cut|replica_killed" eg:"price" doc:"Prices are multiplied by factor from then on; providers' APIs answer nobody; gateways hear nothing of each other; one gateway dies with its streams." aka:"event|type"`
	Host   string        `yaml:"host" otherwise:"all" eg:"a100" doc:"Whom a price concerns."`
	Factor float64       `yaml:"factor" above:"0" max:"1000" default:"1" eg:"2" doc:"For price." aka:"times"`
	For    time.Duration `yaml:"for" otherwise:"0s" eg:"10m" doc:"How long the others last." aka:"duration"`
}

type fleetGateways struct {
	Count int           `yaml:"count" min:"1" max:"64" default:"1" eg:"4" doc:"How many." aka:"replicas|number"`
	Share time.Duration `yaml:"share" otherwise:"never" eg:"1s" doc:"How often they tell each other what is in flight." aka:"every"`
}

// readFleet reads a fleet and the traces it names. The error is a *config.Problems for the file, or names a trace's line.
func readFleet(path string, getenv func(string) (string, bool)) (*sim.Scenario, error) {
	var f fleetFile
	doc := config.ReadDocument(path, &f, getenv)
	s := f.scenario(doc)
	if err := doc.Err(); err != nil {
		return nil, err
	}
	var err error
	if f.Load.Trace != "" {
		if s.Load.Trace, err = readFile(f.Load.Trace, sim.ReadCalls); err != nil {
			return nil, err
		}
	}
	for _, name := range f.Faults.Deaths {
		spot, err := readFile(name, sim.ReadSpot)
		if err != nil {
			return nil, err
		}
		s.Faults.Spot = append(s.Faults.Spot, spot)
	}
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// scenario makes a scenario of the file, and adds what is wrong with it to doc.
func (f *fleetFile) scenario(doc *config.Document) *sim.Scenario {
	s := &sim.Scenario{
		Name: f.Name, Title: f.Title, Hours: f.Hours, Truth: sim.Truth(f.Truth), Replicas: f.Gateways.Count, Share: f.Gateways.Share.Seconds(),
		SLO:    sim.SLO{TTFT: f.SLO.TTFT.Seconds(), TPS: f.SLO.TPS, Confidence: f.SLO.Confidence},
		Load:   sim.Load{PerSecond: f.Load.PerSecond, Diurnal: f.Load.Daily, Bursts: f.Load.Bursts, From: f.Load.From},
		Faults: sim.Faults{Uptime: f.Faults.Uptime.Seconds(), Downtime: f.Faults.Downtime.Seconds(), Correlated: f.Faults.Correlated},
	}
	if f.Load.PerSecond == 0 && f.Load.Trace == "" {
		s.Load.PerSecond = 4
	}
	if doc.Given("hosts") && len(f.Hosts) == 0 {
		doc.Add("hosts", "is empty", "a fleet needs a host")
	}
	names := map[string]string{} // of hosts, to where they are
	for i := range f.Hosts {
		at := fmt.Sprintf("hosts[%d]", i)
		h := f.Hosts[i].host(doc, at)
		for k := range f.Hosts[i].Count {
			one := h
			if f.Hosts[i].Count > 1 {
				one.Name = fmt.Sprintf("%s-%d", h.Name, k+1)
			}
			if first, taken := names[one.Name]; taken && one.Name != "" {
				doc.Add(at+".name", fmt.Sprintf("%q is the name of %s already", one.Name, first), "give each host a name of its own")
				break
			}
			names[one.Name] = at
			s.Hosts = append(s.Hosts, one)
		}
	}
	if len(s.Hosts) > mostFleetHosts {
		doc.Add("hosts", fmt.Sprintf("are %d, of which at most %d can be simulated", len(s.Hosts), mostFleetHosts), "")
	}
	for i := range f.Events {
		e := &f.Events[i]
		at := fmt.Sprintf("events[%d]", i)
		if _, ok := names[e.Host]; e.Host != "" && !ok {
			doc.Add(at+".host", fmt.Sprintf("%q is no host of this file", e.Host), "where count is above 1 they are called NAME-1, NAME-2 and so on")
		}
		if e.What != string(sim.PriceTimes) && doc.Given(at+".host") {
			doc.Add(at+".host", "is for price only", "delete the line")
		}
		if e.What == string(sim.PriceTimes) && !doc.Given(at+".factor") {
			doc.Add(at, "needs a factor", "add factor: 2")
		}
		s.Events = append(s.Events, sim.Event{At: e.At.Seconds(), For: e.For.Seconds(), What: sim.What(e.What), Host: e.Host, Factor: e.Factor})
	}
	return s
}

const mostFleetHosts = 1000

// host makes one host, and adds what is wrong with it to doc.
func (h *fleetHost) host(doc *config.Document, at string) sim.Host {
	c := sim.Host{
		Name: h.Name, Provider: h.Provider, GPU: h.GPU, GPUCount: h.GPUs, Machine: h.Machine, Slope: h.Slope, Prefill: h.Prefill, Seqs: h.MaxNumSeqs,
		Flaky: h.Flaky, Slower: h.TimesSlower, Returns: h.ReturnsSlower, TPS: between(doc, at+".tps", h.TPS),
	}
	ttft := make([]float64, len(h.TTFT))
	for i, d := range h.TTFT {
		ttft[i] = d.Seconds()
	}
	c.TTFT = between(doc, at+".ttft", ttft)
	var bases []string
	for _, basis := range []string{"usd_per_hour", "usd_per_worker_second", "usd_per_mtok"} {
		if doc.Given(at + ".price." + basis) {
			bases = append(bases, basis)
		}
	}
	if len(bases) != 1 {
		if doc.Given(at + ".price") {
			what := "needs exactly one of usd_per_hour, usd_per_worker_second and usd_per_mtok"
			if len(bases) > 1 {
				what += ", but has " + strings.Join(bases, " and ")
			}
			doc.Add(at+".price", what, "")
		}
		return c
	}
	only := func(key, basis, of string) {
		if bases[0] != basis && doc.Given(at+"."+key) {
			doc.Add(at+"."+key, "is for "+of+" only, whose price is "+basis, "delete the line")
		}
	}
	only("tenure", "usd_per_hour", "rented hosts")
	only("flaky", "usd_per_hour", "rented hosts")
	only("returns_slower", "usd_per_hour", "rented hosts")
	only("workers", "usd_per_worker_second", "serverless endpoints")
	only("requests_per_worker", "usd_per_worker_second", "serverless endpoints")
	only("price.cold_start", "usd_per_worker_second", "serverless endpoints")
	only("price.idle_timeout", "usd_per_worker_second", "serverless endpoints")
	only("requests_per_minute", "usd_per_mtok", "APIs")
	switch p := &h.Price; bases[0] {
	case "usd_per_hour":
		c.Kind, c.Interruptible, c.USDPerHour = sim.Hourly, h.Tenure == "interruptible", between(doc, at+".price.usd_per_hour", p.USDPerHour)
	case "usd_per_worker_second":
		c.Kind, c.USDPerSecond, c.Workers, c.Concurrency = sim.Serverless, p.USDPerWorkerSecond, h.Workers, h.PerWorker
		c.ColdStart, c.IdleTimeout = p.ColdStart.Seconds(), p.IdleTimeout.Seconds()
	case "usd_per_mtok":
		c.Kind = sim.API
		if t := p.USDPerMTok; t != nil {
			c.USDPerMTokIn, c.USDPerMTokCached, c.USDPerMTokOut, c.PerMinute = t.In, t.Cached, t.Out, h.PerMinute
			if !doc.Given(at + ".price.usd_per_mtok.cached") {
				c.USDPerMTokCached = t.In
			}
		}
	}
	return c
}

// between is a range that is written as a number or as two.
func between(doc *config.Document, at string, xs []float64) sim.Range {
	switch len(xs) {
	case 1:
		return sim.Range{Low: xs[0], High: xs[0]}
	case 2:
		if xs[1] < xs[0] {
			doc.Add(at, "ends below its beginning", "write the lower figure first")
		}
		return sim.Range{Low: xs[0], High: xs[1]}
	}
	if doc.Given(at) {
		doc.Add(at, fmt.Sprintf("has %d figures", len(xs)), "write one, or the least and the most: [25, 45]")
	}
	return sim.Range{}
}
