package sim

import (
	"errors"
	"fmt"
	"math"

	"headrace/router"
)

// Range is where a number lies; each seed draws one from it. Policies are told the middle.
type Range struct {
	Low  float64 `json:"low"`
	High float64 `json:"high"`
}

func (r Range) mid() float64 { return (r.Low + r.High) / 2 }

// at is the number a share u of the way.
func (r Range) at(u float64) float64 { return r.Low + (r.High-r.Low)*u }

// Kind is how a host is paid for.
type Kind string

// Kinds.
const (
	Hourly     Kind = "hourly"     // rented by the hour, busy or not
	Serverless Kind = "serverless" // workers that come and go, by the second
	API        Kind = "api"        // by the token
)

// Host is a class of host with its price; each seed draws one host from it.
type Host struct {
	Name     string `json:"name"`
	Provider string `json:"provider"`
	Kind     Kind   `json:"kind"`
	GPU      string `json:"gpu,omitempty"`
	GPUCount int    `json:"gpu_count,omitempty"`
	Machine  string `json:"machine,omitempty"` // hosts of one machine die together where Faults say so

	TPS     Range   `json:"tps"`     // tokens per second of one stream alone
	TTFT    Range   `json:"ttft"`    // seconds to the first token of a prompt of 250 tokens, alone
	Slope   float64 `json:"slope"`   // b/a of ITL(n) = a+b·n, the truth's middle; policies are told 0.045
	Prefill float64 `json:"prefill"` // prompt tokens per second, the truth's middle
	Seqs    int     `json:"seqs"`    // sequences at once

	Interruptible bool  `json:"interruptible,omitempty"` // Hourly: may be taken away
	USDPerHour    Range `json:"usd_per_hour,omitzero"`

	USDPerSecond float64 `json:"usd_per_second,omitempty"` // Serverless: one worker
	Workers      int     `json:"workers,omitempty"`        // Serverless: most of them
	Concurrency  int     `json:"concurrency,omitempty"`    // Serverless: requests that one worker is given
	ColdStart    float64 `json:"cold_start,omitempty"`     // Serverless: seconds, as told to policies; the truth is a mixture of 8 s and 45 s
	SureCold     bool    `json:"sure_cold,omitempty"`      // Serverless: every cold start takes what policies are told
	IdleTimeout  float64 `json:"idle_timeout,omitempty"`   // Serverless: seconds

	USDPerMTokIn     float64 `json:"usd_per_mtok_in,omitempty"`
	USDPerMTokCached float64 `json:"usd_per_mtok_cached,omitempty"`
	USDPerMTokOut    float64 `json:"usd_per_mtok_out,omitempty"`
	PerMinute        int     `json:"per_minute,omitempty"` // API: requests that may begin in a minute before it answers 429; 0 for any

	Flaky   bool    `json:"flaky,omitempty"`   // noisy neighbours and episodes of 500
	Slower  float64 `json:"slower,omitempty"`  // the truth's times are that many times the class's; 0 means 1
	Returns float64 `json:"returns,omitempty"` // when it comes back from a preemption it is that many times slower than before; 0 means 1
}

// Truth is the family of engines that hosts are drawn from. The learner knows straight lines only.
type Truth string

// Truths.
const (
	Linear  Truth = "linear"  // ITL(n) = a + b·n; prompts stall decoding for half their time
	Kinked  Truth = "kinked"  // nearly flat up to a knee, then steep, as a roofline is
	Noisy   Truth = "noisy"   // each stream's speed is log-normal, and the engine's wanders
	Chunked Truth = "chunked" // prompts are computed in chunks along with decoding, which slows both
	KV      Truth = "kv"      // a KV cache too small for all sequences: they queue, or lose theirs and are computed anew
)

// Load is the traffic.
type Load struct {
	PerSecond float64 `json:"per_second"`          // requests, the day's mean; a trace is stretched to it, 0 leaves it as it is
	Diurnal   float64 `json:"diurnal"`             // amplitude of the day's sine, as a share of the mean
	Bursts    float64 `json:"bursts"`              // mean height of bursts, in multiples of the load; 1 for none
	From      float64 `json:"from,omitempty"`      // hour of the day when the run begins; load is least at 0 and most at 12
	Exact     bool    `json:"exact,omitempty"`     // callers ask for as many tokens as they get (max_tokens), not for any number
	NoResume  bool    `json:"no_resume,omitempty"` // nobody's answer may be continued on another host
	Trace     []Call  `json:"-"`                   // replays these instead, again from the start when they end
}

// Faults are what befalls hourly hosts. Zero values mean that it does not.
type Faults struct {
	Uptime     float64 `json:"uptime"`     // mean seconds between preemptions of an interruptible host
	Downtime   float64 `json:"downtime"`   // seconds that it is away, ±30 %
	Correlated float64 `json:"correlated"` // probability that a host of the same machine goes with it
	Spot       []Spot  `json:"-"`          // replays these instead of Uptime: hosts take turns at the traces, and at each one's instances
}

// Event is something that happens to the whole run at one time.
type Event struct {
	At     float64 `json:"at"` // seconds since the start
	For    float64 `json:"for,omitempty"`
	What   What    `json:"what"`
	Host   string  `json:"host,omitempty"`   // whom it concerns; "" for all
	Factor float64 `json:"factor,omitempty"` // PriceTimes: of the price from then on
}

// What happens.
type What string

// Events.
const (
	PriceTimes    What = "price"          // prices are multiplied by Factor from then on
	ControlDown   What = "control_down"   // providers' APIs answer nobody for a time
	SharingCut    What = "sharing_cut"    // replicas hear nothing of each other for a time
	ReplicaKilled What = "replica_killed" // replica 0 dies with its streams, and is back with an empty memory after For
)

// SLO is what requests are promised.
type SLO struct {
	TTFT       float64 `json:"ttft"`       // seconds
	TPS        float64 `json:"tps"`        // tokens per second
	Confidence float64 `json:"confidence"` // share of requests that must keep each
}

func (s SLO) router() router.SLO {
	return router.SLO{TTFT: duration(s.TTFT), TPS: s.TPS, Confidence: s.Confidence}
}

// Scenario is a fleet, its traffic and what befalls it.
type Scenario struct {
	Name      string  `json:"name"`
	Title     string  `json:"title"`
	Hours     float64 `json:"hours"`
	SLO       SLO     `json:"slo"`
	Truth     Truth   `json:"truth"`
	Hosts     []Host  `json:"hosts"`
	Load      Load    `json:"load"`
	Faults    Faults  `json:"faults"`
	Events    []Event `json:"events,omitempty"`
	Replicas  int     `json:"replicas"`             // gateways; 0 means 1
	Share     float64 `json:"share,omitempty"`      // seconds between their telling each other what is in flight; 0 for never
	WrongTime float64 `json:"wrong_time,omitempty"` // seconds that providers' clocks are off by, at most, either way
	Speed     float64 `json:"speed,omitempty"`      // how many times faster than life all goes that is not said here; 0 means 1: see Faster
}

// maxSeqs bounds what one engine can be asked to hold, and with it a run's memory.
const maxSeqs = 100_000

// Validate returns all that is wrong with a scenario, nil when it can be run.
func (s *Scenario) Validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("scenario %s: "+format, append([]any{s.Name}, args...)...))
	}
	positive := func(name string, v float64) {
		if !(v > 0 && v < math.Inf(1)) { //nolint:staticcheck // NaN is not positive either
			bad("%s is %g, want more than 0", name, v)
		}
	}
	notNegative := func(name string, v float64) {
		if !(v >= 0 && v < math.Inf(1)) { //nolint:staticcheck // likewise
			bad("%s is %g, want 0 or more", name, v)
		}
	}
	between := func(name string, r Range) {
		positive(name+".low", r.Low)
		if !(r.High >= r.Low && r.High < math.Inf(1)) { //nolint:staticcheck // likewise
			bad("%s ends at %g before it begins", name, r.High)
		}
	}
	positive("hours", s.Hours)
	positive("slo.ttft", s.SLO.TTFT)
	positive("slo.tps", s.SLO.TPS)
	if !(s.SLO.Confidence > 0 && s.SLO.Confidence < 1) { //nolint:staticcheck // likewise
		bad("slo.confidence is %g, want it between 0 and 1", s.SLO.Confidence)
	}
	notNegative("load.per_second", s.Load.PerSecond)
	notNegative("load.from", s.Load.From)
	if len(s.Load.Trace) == 0 {
		positive("load.per_second", s.Load.PerSecond)
		if !(s.Load.Diurnal >= 0 && s.Load.Diurnal < 1) { //nolint:staticcheck // likewise
			bad("load.diurnal is %g, want 0 or more and less than 1", s.Load.Diurnal)
		}
		notNegative("load.bursts", s.Load.Bursts)
	}
	notNegative("faults.uptime", s.Faults.Uptime)
	notNegative("faults.downtime", s.Faults.Downtime)
	notNegative("share", s.Share)
	notNegative("wrong_time", s.WrongTime)
	notNegative("speed", s.Speed)
	if s.Faults.Correlated < 0 || s.Faults.Correlated > 1 {
		bad("faults.correlated is %g, want a probability", s.Faults.Correlated)
	}
	if s.Replicas < 0 || s.Replicas > 64 {
		bad("%d replicas, want 1 to 64", s.Replicas)
	}
	switch s.Truth {
	case "", Linear, Kinked, Noisy, Chunked, KV:
	default:
		bad("unknown truth %q", s.Truth)
	}
	if len(s.Hosts) == 0 {
		bad("no hosts")
	}
	names := map[string]bool{}
	for i := range s.Hosts {
		h := &s.Hosts[i]
		at := "host " + h.Name + ": "
		if h.Name == "" || names[h.Name] {
			bad("host %d needs a name of its own, has %q", i, h.Name)
		}
		names[h.Name] = true
		between(at+"tps", h.TPS)
		between(at+"ttft", h.TTFT)
		positive(at+"slope", h.Slope)
		positive(at+"prefill", h.Prefill)
		notNegative(at+"slower", h.Slower)
		notNegative(at+"returns", h.Returns)
		if h.Seqs < 1 || h.Seqs > maxSeqs {
			bad("%sseqs is %d, want 1 to %d", at, h.Seqs, maxSeqs)
		}
		switch h.Kind {
		case Hourly:
			notNegative(at+"usd_per_hour.low", h.USDPerHour.Low)
			if !(h.USDPerHour.High >= h.USDPerHour.Low && h.USDPerHour.High < math.Inf(1)) { //nolint:staticcheck // likewise
				bad("%susd_per_hour ends before it begins", at)
			}
		case Serverless:
			notNegative(at+"usd_per_second", h.USDPerSecond)
			notNegative(at+"cold_start", h.ColdStart)
			notNegative(at+"idle_timeout", h.IdleTimeout)
			if h.Workers < 1 || h.Workers > 1000 || h.Concurrency < 1 {
				bad("%sneeds workers (1 to 1000) and concurrency", at)
			}
		case API:
			notNegative(at+"usd_per_mtok_in", h.USDPerMTokIn)
			notNegative(at+"usd_per_mtok_cached", h.USDPerMTokCached)
			notNegative(at+"usd_per_mtok_out", h.USDPerMTokOut)
		default:
			bad("%sunknown kind %q", at, h.Kind)
		}
	}
	for i, e := range s.Events {
		at := fmt.Sprintf("event %d: ", i+1)
		notNegative(at+"at", e.At)
		notNegative(at+"for", e.For)
		if e.Host != "" && !names[e.Host] {
			bad("%sunknown host %q", at, e.Host)
		}
		switch e.What {
		case PriceTimes:
			positive(at+"factor", e.Factor)
		case ControlDown, SharingCut, ReplicaKilled:
		default:
			bad("%sunknown %q", at, e.What)
		}
	}
	return errors.Join(errs...)
}
