package script

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"headrace/providers/fakecloud"
	"headrace/providers/fakecloud/fakerunpod"
	"headrace/providers/fakecloud/fakevast"
)

// Clouds are the fake clouds of a script, with its fleet. Run plays the events.
type Clouds struct {
	RunPod *fakerunpod.Cloud // nil when the script has none
	Vast   *fakevast.Cloud   // nil when the script has none

	script *Script
	hosts  []*host

	mu  sync.Mutex // guards say
	say func(News)
}

// host is one thing of the fleet, or what else an event names.
type host struct {
	name     string
	id       string // as headrace names it: "vast:20000001"
	instance *fakevast.Instance
	service  *fakerunpod.Endpoint
	pod      *fakerunpod.Pod
	line     Line
}

// Line is a host of the fleet for people.
type Line struct{ ID, Name, What, Model, Price string }

// News is something that has happened.
type News struct {
	ID   string // of the host, as headrace names it: "vast:20000001"; a cloud's name, or "" for none
	What string // the event's word: "outbid"
	Text string // goes on after the host's name: "is outbid: …"
	Undo bool   // the event is over
}

var generations = map[string]fakerunpod.Generation{
	"v24": fakerunpod.V24, "v23": fakerunpod.V23, "v23_lists": fakerunpod.V23Lists, "v23_native": fakerunpod.V23Native,
	"sglang": fakerunpod.SGLang, "fake_stream": fakerunpod.FakeStream,
}

func handlerNames() []string {
	return []string{"v24", "v23", "v23_lists", "v23_native", "sglang", "fake_stream"}
}

// or is *f, or otherwise when there is none.
func or(f *float64, otherwise float64) float64 {
	if f == nil {
		return otherwise
	}
	return *f
}

func (s *Script) engine() float64      { return or(s.EngineScale, 1) }
func (s *Script) scale() float64       { return or(s.TimeScale, 1) }
func (s *Script) runpodScale() float64 { return or(s.RunPod.TimeScale, s.scale()) }
func (s *Script) vastScale() float64   { return or(s.Vast.TimeScale, s.scale()) }

// boot is how long an instance takes to come up; a part of BidWar.Away.
var boot = fakevast.Boot{Provision: 10 * time.Second, Pull: 90 * time.Second, Ports: 5 * time.Second, Model: 2 * time.Minute} //nolint:gochecknoglobals // a constant, if structs could be

// Start starts the clouds with their fleet. They end with ctx, or by Stop.
func (s *Script) Start(ctx context.Context) (*Clouds, error) {
	c := &Clouds{script: s}
	var err error
	if s.RunPod != nil {
		err = c.startRunPod(ctx)
	}
	if err == nil && s.Vast != nil {
		err = c.startVast(ctx)
	}
	if err != nil {
		c.Stop()
		return nil, err
	}
	return c, nil
}

// Stop ends the clouds and all that runs in them.
func (c *Clouds) Stop() {
	if c.Vast != nil {
		c.Vast.Stop()
	}
	if c.RunPod != nil {
		c.RunPod.Stop()
	}
}

// class finds a class of hosts that the script was checked to name rightly.
func class(name string) fakecloud.Class {
	c, ok := fakecloud.ClassNamed(cmp.Or(name, defaultClass))
	if !ok {
		panic("BUG: no class " + name)
	}
	return c
}

const defaultClass = "a100-llama-70b"

func (c *Clouds) startRunPod(ctx context.Context) error {
	s, r := c.script, c.script.RunPod
	// The fake knows one scale for all: what is of the platform and not of the engines is brought to it here.
	life := func(d time.Duration) time.Duration {
		return time.Duration(float64(d) * s.engine() / s.runpodScale())
	}
	cloud, err := fakerunpod.Start(ctx, fakerunpod.Config{
		APIKey: r.Key, TimeScale: s.engine(), Seed: s.Seed, RateLimits: fakerunpod.RateLimits{Off: !r.RateLimits},
		RedispatchAfter: life(40 * time.Second), CrashBackoff: life(30 * time.Second),
	})
	if err != nil {
		return err
	}
	c.RunPod = cloud
	for _, e := range r.Endpoints {
		k := class(e.Class)
		cfg := fakerunpod.EndpointConfig{
			ID: e.Name, Name: e.Name, Generation: generations[cmp.Or(e.Handler, "v24")], Class: k, Models: e.Models,
			WorkersMin: e.WorkersMin, WorkersMax: e.WorkersMax,
			ColdStart:   life(time.Duration(cmp.Or(e.ColdStart, Duration(45*time.Second)))),
			IdleTimeout: life(time.Duration(cmp.Or(e.IdleTimeout, Duration(5*time.Second)))),
		}
		what := "queue endpoint"
		if e.Type == "load_balancer" {
			cfg.Type, what = fakerunpod.LoadBalancer, "load-balancing endpoint"
		}
		ep := cloud.AddEndpoint(cfg)
		c.add(&host{name: e.Name, id: "runpod:" + ep.ID(), service: ep}, what+", "+gpus(k), ep.Config().Models, 0)
	}
	for _, p := range r.Pods {
		k := class(p.Class)
		pd, err := cloud.AddPod(fakerunpod.PodConfig{
			ID: p.Name, Name: p.Name, Class: k, Models: p.Models, APIKey: p.Key, Community: p.Community, Spot: p.Spot, USDPerHour: p.Price,
			Ports: []fakerunpod.Port{{Private: 8000, TCP: p.TCP}},
		})
		if err != nil {
			return fmt.Errorf("pod %s: %w", p.Name, err)
		}
		what := "pod, "
		if p.Spot {
			what = "spot pod, "
		}
		c.add(&host{name: p.Name, id: "runpod:pod-" + pd.ID(), pod: pd}, what+gpus(k), orModel(p.Models, k), p.Price)
	}
	return nil
}

func (c *Clouds) startVast(ctx context.Context) error {
	s, v := c.script, c.script.Vast
	cloud, err := fakevast.Start(ctx, fakevast.Config{
		APIKey: v.Key, TimeScale: s.vastScale(), EngineScale: s.engine(), Seed: s.Seed, RateLimits: v.RateLimits, Boot: boot,
		DetectionLag: 10 * time.Second,
	})
	if err != nil {
		return err
	}
	c.Vast = cloud
	for _, i := range v.Instances {
		k := class(i.Class)
		cfg := fakevast.InstanceConfig{
			ID: i.ID, Label: i.Name, IsBid: i.Bid > 0, DPHBase: cmp.Or(i.Bid, i.Price, k.Vast.USDPerHour.High), Geolocation: i.Region,
			APIKey: i.Key, Class: k, Models: i.Models, GPUName: vastGPU(k.GPU), NumGPUs: k.GPUCount, GPURAMMB: 81920,
			Args: []string{"--max-num-seqs", strconv.Itoa(k.MaxNumSeqs)}, // as the engine keeps it
		}
		if cfg.GPUName == "RTX 4090" {
			cfg.GPURAMMB = 24564
		}
		switch i.Trust {
		case "community":
			cfg.Verification = "unverified"
		case "datacenter":
			cfg.HostingType = 1
		}
		if i.Booting {
			cfg.Boot = &fakevast.Boot{}
		}
		what := "on-demand instance, "
		if cfg.IsBid {
			what = "interruptible instance, "
		}
		in := cloud.AddInstance(cfg)
		c.add(&host{name: i.Name, id: fmt.Sprint("vast:", in.ID()), instance: in}, what+gpus(k), in.Config().Models, cfg.DPHBase)
	}
	for _, e := range v.Serverless {
		k := class(e.Class)
		sv := cloud.AddServerless(fakevast.ServerlessConfig{
			Name: e.Name, Ready: e.Ready, MaxWorkers: e.WorkersMax,
			Worker: fakevast.InstanceConfig{Class: k, Models: e.Models, GPUName: vastGPU(k.GPU), NumGPUs: k.GPUCount},
		})
		c.add(&host{name: e.Name, id: fmt.Sprint("vast:serverless-", sv.Config().ID)}, "serverless endpoint, "+gpus(k), orModel(e.Models, k), 0)
	}
	return nil
}

// vastGPU is a GPU in Vast.ai's words.
func vastGPU(gpu string) string {
	switch gpu {
	case "A100 80GB":
		return "A100 PCIE"
	case "H100 80GB":
		return "H100 SXM"
	}
	return gpu
}

func orModel(models []string, k fakecloud.Class) []string {
	if len(models) == 0 {
		return []string{k.Model}
	}
	return models
}

func gpus(k fakecloud.Class) string {
	if k.GPUCount > 1 {
		return fmt.Sprintf("%dx %s", k.GPUCount, k.GPU)
	}
	return k.GPU
}

func (c *Clouds) add(h *host, what string, models []string, usd float64) {
	h.line = Line{ID: h.id, Name: h.name, What: what, Model: models[0], Price: "by catalogue"}
	if usd > 0 {
		h.line.Price = fmt.Sprintf("%.2f", usd)
	}
	c.hosts = append(c.hosts, h)
}

// Fleet lists the hosts.
func (c *Clouds) Fleet() []Line {
	lines := make([]Line, 0, len(c.hosts))
	for _, h := range c.hosts {
		lines = append(lines, h.line)
	}
	return lines
}

func (c *Clouds) host(name string) *host {
	if i := slices.IndexFunc(c.hosts, func(h *host) bool { return h.name == name }); i >= 0 {
		return c.hosts[i]
	}
	return &host{name: name, id: name} // a cloud, or a number
}

// Variable is one of the environment.
type Variable struct{ Name, Value string }

// Env is the environment in which headrace, and the vendors' own clients, find the clouds.
func (c *Clouds) Env() []Variable {
	var vs []Variable
	set := func(name, value string) { vs = append(vs, Variable{name, value}) }
	// As often as by default in life, but no more often than once a second.
	poll := func(every time.Duration, scale float64) string {
		return max(time.Second, time.Duration(float64(every)/scale).Round(time.Millisecond)).String()
	}
	if r := c.RunPod; r != nil {
		set("RUNPOD_API_KEY", r.Key())
		set("RUNPOD_MANAGEMENT_URL", r.ManagementURL())
		set("RUNPOD_QUEUE_URL", r.QueueURL())
		set("RUNPOD_BALANCER_URL", r.BalancerURL())
		set("RUNPOD_POD_URL", r.PodURL())
		set("RUNPOD_POLL", poll(time.Minute, c.script.runpodScale()))
		if len(c.script.RunPod.Pods) > 0 {
			set("RUNPOD_PODS", "1")
		}
		set("RUNPOD_ENDPOINT_BASE_URL", r.QueueURL())
	}
	if v := c.Vast; v != nil {
		set("VAST_API_KEY", cmp.Or(c.script.Vast.Key, "vast-key"))
		set("VAST_CONSOLE_URL", v.ConsoleURL())
		set("VAST_RUN_URL", v.RunURL())
		set("VAST_OPENAI_URL", v.OpenAIURL())
		set("VAST_POLL", poll(15*time.Second, c.script.vastScale()))
		if len(c.script.Vast.Serverless) > 0 {
			set("VAST_SERVERLESS", "1")
		}
		set("VAST_URL", v.ConsoleURL())
	}
	return vs
}
