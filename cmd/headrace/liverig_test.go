package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"headrace/gateway/config"
	"headrace/gateway/ledger"
	"headrace/providers/fakecloud"
	"headrace/providers/fakecloud/fakerunpod"
	"headrace/providers/fakecloud/fakevast"
	"headrace/providers/runpod"
	"headrace/router"
	"headrace/router/sim"
)

const (
	liveModel = "llama-70b"
	// Control planes are late as the simulator has it, 2 to 15 s of life after what the network shows: the account is polled
	// every livePoll, and tells what has happened liveLag ago.
	liveLag, livePoll = 2 * time.Second, 13 * time.Second
	liveHealthPoll    = 5 * time.Second
	// What the simulated gateway has patience for, in life as well.
	liveConnect, liveFirst, liveGap = 2 * time.Second, 12 * time.Second, 5 * time.Second
)

// liveStage is a fake cloud and the gateway in front of it.
type liveStage struct {
	t         *testing.T
	sc        *sim.Scenario
	plan      *sim.Plan
	instances []*fakevast.Instance // by host of the plan; nil where it is none
	apis      []*fakecloud.Host    // likewise
	workers   []*fakerunpod.Endpoint
	runpod    *fakerunpod.Cloud // nil without any workers
	app       *app
	base      string

	mu       sync.Mutex     // guards all below
	classes  map[string]int // attempts by outcome
	attempts map[string]int // by host
}

// settled counts a request's attempts.
func (s *liveStage) settled(r *ledger.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range r.Attempts[:min(r.Tries, len(r.Attempts))] {
		s.classes[a.Class.String()]++
		s.attempts[string(a.Endpoint)]++
	}
}

// life makes seconds of the plan a duration of life, which the fakes divide by their TimeScale again.
func (s *liveStage) life(seconds float64) time.Duration {
	return time.Duration(seconds * s.sc.Speed * float64(time.Second))
}

func (s *liveStage) class(h *sim.Drawn) fakecloud.Class {
	c := fakecloud.Classes[2]
	c.BatchCost, c.PrefillTPS, c.MaxNumSeqs = h.Slope/h.Base, h.Prefill/s.sc.Speed, h.Seqs
	return c
}

func (s *liveStage) tps(h *sim.Drawn) float64 { return 1 / (h.Base + h.Slope) / s.sc.Speed }

// build starts the fakes and returns the gateway's config.
func (s *liveStage) build(seed uint64) string {
	speed := s.sc.Speed
	cloud := startVast(s.t, fakevast.Config{
		TimeScale: speed, Seed: seed, DetectionLag: liveLag, Boot: fakevast.Boot{Provision: 1, Pull: 1, Ports: 1, Model: 1},
	})
	var statics, expect strings.Builder
	cold := liveFirst // patience for a first token where a worker has to start
	for i := range s.plan.Hosts {
		h, class := &s.plan.Hosts[i], &s.sc.Hosts[i]
		id := "static:" + class.Name
		switch class.Kind {
		case sim.Hourly:
			in := cloud.AddInstance(fakevast.InstanceConfig{
				IsBid: true, DPHBase: h.USDPerHour, StorageCost: 1e-9, Class: s.class(h), Models: []string{liveModel}, TPS: s.tps(h), TTFT: s.life(h.First), MaxNumSeqs: h.Seqs,
			})
			s.instances[i] = in
			id = "vast:" + strconv.FormatInt(in.ID(), 10)
		case sim.API:
			a := startHost(s.t, fakecloud.HostConfig{Name: class.Name, Models: []string{liveModel}, Class: s.class(h), TPS: s.tps(h), TTFT: s.life(h.First), TimeScale: speed})
			s.apis[i] = a
			fmt.Fprintf(&statics, "    - {name: %s, base_url: %q, models: [%s], price: {usd_per_mtok: {in: %g, cached: %g, out: %g}}}\n",
				class.Name, a.URL()+"/v1", liveModel, class.USDPerMTokIn, class.USDPerMTokCached, class.USDPerMTokOut)
		case sim.Serverless:
			id = "runpod:" + s.serverless(i, seed).ID()
		}
		cold = max(cold, 4*s.life(class.ColdStart))
		p := &h.Prior
		fmt.Fprintf(&expect, "  - {host: %q, tps: %g, slope: %g, ttft: %v, prefill_tps: %g, max_num_seqs: %d}\n",
			id, 1/p.ITLSeconds, p.Slope, time.Duration(p.TTFTSeconds*float64(time.Second)), p.PrefillTokensPerSecond, p.MaxNumSeqs)
	}
	slo := &s.sc.SLO
	text := fmt.Sprintf("listen: \"127.0.0.1:0\"\nadmin: \"off\"\nlog: {level: warn, access: false}\nproviders:\n  vast: {api_key: vast-key, console_url: %q, run_url: %q, openai_url: %q, poll: %v}\n",
		cloud.ConsoleURL(), cloud.RunURL(), cloud.OpenAIURL(), brought(livePoll, speed))
	if c := s.runpod; c != nil {
		text += fmt.Sprintf("  runpod: {api_key: %q, management_url: %q, queue_url: %q, balancer_url: %q, pod_url: %q, health_poll: %v}\n",
			c.Key(), c.ManagementURL(), c.QueueURL(), c.BalancerURL(), c.PodURL(), brought(liveHealthPoll, speed))
	}
	if statics.Len() > 0 {
		text += "  static:\n" + statics.String()
	}
	text += fmt.Sprintf("timeouts: {connect: %v, first_event: %v, cold_start: %v, gap: %v}\n",
		brought(liveConnect, speed), brought(liveFirst, speed), brought(cold, speed), brought(liveGap, speed))
	text += fmt.Sprintf("models:\n  %s:\n    serves: [%s]\n    slo: {ttft: %v, tps: %g, confidence: %g}\n", liveModel, liveModel, time.Duration(slo.TTFT*float64(time.Second)), slo.TPS, slo.Confidence)
	return text + "catalogue:\n" + expect.String()
}

// serverless starts the fake of a serverless endpoint.
func (s *liveStage) serverless(i int, seed uint64) *fakerunpod.Endpoint {
	if s.runpod == nil {
		s.runpod = startRunPod(s.t, fakerunpod.Config{
			TimeScale: s.sc.Speed, Seed: seed, RateLimits: fakerunpod.RateLimits{Off: true}, Management: fakerunpod.Management{PerMinute: 1e6, PerHour: 1e6, PerDay: 1e6},
		})
	}
	class, h := &s.sc.Hosts[i], &s.plan.Hosts[i]
	const gpu = "NVIDIA A100 80GB PCIe"
	s.runpod.SetPrice(gpu, class.USDPerSecond*3600)
	e := s.runpod.AddEndpoint(fakerunpod.EndpointConfig{
		ID: class.Name, Type: fakerunpod.LoadBalancer, Env: map[string]string{"MODEL_NAME": liveModel, "MAX_CONCURRENCY": strconv.Itoa(class.Concurrency)},
		Class: s.class(h), TPS: s.tps(h), TTFT: s.life(h.First), MaxConcurrency: class.Concurrency, GPUTypes: []string{gpu}, GPUCount: 1,
		WorkersMax: class.Workers, IdleTimeout: s.life(class.IdleTimeout), ColdStart: s.life(class.ColdStart), RequestCount: class.Concurrency,
	})
	s.workers[i] = e
	return e
}

// hurry has the gateway ask both accounts in the fakes' time.
func (s *liveStage) hurry(cfg *config.Config) {
	c := hurried(cfg, 1/s.sc.Speed, s.app.log)
	if r := cfg.Providers.RunPod; r != nil {
		o := runpodOptions(r, s.app.log)
		o.Settle, o.Pace = time.Nanosecond, 1/s.sc.Speed // the fake's workers are up when it says so
		c.runpod = runpod.New(o)
	}
	s.app.rented.Store(c)
}

// start brings clouds and gateway up and waits until every host can be used.
func (s *liveStage) start(seed uint64) {
	t := s.t
	cfg, err := config.Parse("live.yaml", []byte(s.build(seed)), config.Overrides{}, noEnv)
	if err == nil {
		err = cfg.Validate()
	}
	if err != nil {
		t.Fatal(err)
	}
	log := newLogBuffer()
	if s.app, err = newApp(cfg, log); err != nil {
		t.Fatal(err)
	}
	s.hurry(cfg)
	s.app.onSettled = s.settled
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.app.run(ctx, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		if t.Failed() {
			t.Logf("log:\n%s", log)
		}
	})
	s.base = "http://" + s.app.listeners[0].Addr().String()
	r := rented{t: t, app: s.app, log: log, base: s.base}
	r.until("all hosts are found", func(hosts []router.HostView) bool {
		n := 0
		for i := range hosts {
			if slices.Contains([]string{"ready", "cold", "unknown"}, hosts[i].State) && len(hosts[i].Models) > 0 { // nobody tells of an API
				n++
			}
		}
		return n == len(s.plan.Hosts)
	})
}

// preempt plays the outages from begin on, and returns what stops it.
func (s *liveStage) preempt(begin time.Time) (stop func()) {
	var wg sync.WaitGroup
	quit := make(chan struct{})
	at := func(seconds float64) bool {
		if math.IsInf(seconds, 1) {
			return false
		}
		timer := time.NewTimer(time.Until(begin.Add(time.Duration(seconds * float64(time.Second)))))
		defer timer.Stop()
		select {
		case <-timer.C:
			return true
		case <-quit:
			return false
		}
	}
	for _, o := range s.plan.Outages {
		in := s.instances[o.Host]
		wg.Go(func() {
			if !at(o.From) {
				return
			}
			if o.Silent {
				in.HostOffline()
			} else {
				in.Outbid(fakevast.ExitedStopped)
			}
			if !at(o.To) {
				return
			}
			if o.Silent {
				in.Host().Kill() // nothing of what it held goes on
				in.HostOnline()
			}
			in.Resume()
		})
	}
	return func() { close(quit); wg.Wait() }
}
