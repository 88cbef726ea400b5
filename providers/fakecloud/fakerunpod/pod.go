package fakerunpod

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"headrace/providers/fakecloud"
)

// PodStatus is how a pod is, in the management API's words.
type PodStatus string

// Statuses of pods.
const (
	PodProvisioning PodStatus = "PROVISIONING"
	PodStarting     PodStatus = "STARTING"
	PodRunning      PodStatus = "RUNNING"
	PodExited       PodStatus = "EXITED"
	PodError        PodStatus = "ERROR"
	PodTerminated   PodStatus = "TERMINATED"
)

// Pod is a rented machine with one server. Its methods may be called from any goroutine.
type Pod struct {
	c       *Cloud
	created time.Time

	mu       sync.Mutex // guards all below
	cfg      PodConfig  // ID changes by a migration
	status   PodStatus
	host     *fakecloud.Host
	started  time.Time
	billed   time.Time
	rate     float64 // USD per hour while it runs
	noGPU    bool
	oldPort  int // shown instead of the real one until oldUntil
	oldUntil time.Time
	starts   int
}

// AddPod adds a pod, which runs at once unless it is to begin stopped. The error is of a server that could not listen.
func (c *Cloud) AddPod(cfg PodConfig) (*Pod, error) {
	cfg.fill()
	if cfg.ID == "" {
		cfg.ID = c.draw(14)
	}
	if cfg.Name == "" {
		cfg.Name = cfg.ID
	}
	p := &Pod{c: c, cfg: cfg, created: time.Now(), status: PodExited}
	c.mu.Lock()
	c.pods = append(c.pods, p)
	c.mu.Unlock()
	if cfg.Stopped {
		return p, nil
	}
	return p, p.Start()
}

// ID returns the pod's id, which a migration changes.
func (p *Pod) ID() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cfg.ID
}

// Host returns the pod's server, nil while the pod does not run.
func (p *Pod) Host() *fakecloud.Host {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.host
}

// Status returns how the pod is.
func (p *Pod) Status() PodStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

// SetStatus makes the management API show another status; nothing else changes.
func (p *Pod) SetStatus(s PodStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status = s
}

// ZeroGPU takes the pod's GPUs: it runs, its server does not.
func (p *Pod) ZeroGPU(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.noGPU = on
}

// Start starts a stopped pod, at another TCP port than before.
func (p *Pod) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.host != nil || p.status == PodTerminated {
		return nil
	}
	g := p.c.gpu(p.cfg.GPUType)
	p.rate = p.cfg.USDPerHour
	if p.rate == 0 {
		p.rate = g.secure * float64(p.cfg.GPUCount)
		if p.cfg.Community {
			p.rate = g.community * float64(p.cfg.GPUCount)
		}
	}
	p.starts++
	h, err := fakecloud.StartHost(p.c.ctx, fakecloud.HostConfig{
		Name: p.cfg.ID, Models: p.cfg.Models, Class: p.cfg.Class, TPS: p.cfg.TPS, TTFT: p.cfg.TTFT, USDPerHour: p.rate,
		TimeScale: p.c.cfg.TimeScale, Seed: p.c.cfg.Seed + uint64(p.starts), APIKey: p.cfg.APIKey, //nolint:gosec // a count
	})
	if err != nil {
		return fmt.Errorf("start pod %s: %w", p.cfg.ID, err)
	}
	p.host, p.status, p.started = h, PodRunning, time.Now()
	p.billed = p.c.cfg.BillNow()
	if p.oldPort != 0 {
		p.oldUntil = p.started.Add(p.c.delay(p.cfg.StalePort))
	}
	return nil
}

// Stop stops the pod as its owner does: what runs has five seconds to end.
func (p *Pod) Stop() { p.down(PodExited, (*fakecloud.Host).Stop) }

// Preempt takes the pod away as somebody who bids more does: connections are reset, the status becomes EXITED.
func (p *Pod) Preempt() { p.down(PodExited, kill) }

// Terminate ends the pod for good; it is not listed any more.
func (p *Pod) Terminate() { p.down(PodTerminated, kill) }

// Restart stops and starts the pod.
func (p *Pod) Restart() error {
	p.Preempt()
	return p.Start()
}

// Migrate moves the pod to another machine: it has another id, and so another proxy URL, from then on.
func (p *Pod) Migrate() error {
	p.Preempt()
	id := p.c.draw(14)
	p.mu.Lock()
	p.cfg.ID = id
	p.mu.Unlock()
	return p.Start()
}

func kill(h *fakecloud.Host) {
	h.Kill()
	h.Stop()
}

func (p *Pod) end() { p.down(p.Status(), kill) }

func (p *Pod) down(s PodStatus, stop func(*fakecloud.Host)) {
	p.mu.Lock()
	h := p.host
	p.charge()
	p.host, p.status, p.billed, p.started = nil, s, time.Time{}, time.Time{}
	if h != nil {
		p.oldPort = portOf(h)
	}
	p.mu.Unlock()
	if h != nil {
		stop(h)
	}
}

// charge bills the pod until now. The caller holds mu.
func (p *Pod) charge() {
	if now := p.c.cfg.BillNow(); !p.billed.IsZero() {
		p.c.charge("", p.cfg.ID, p.billed, now, p.rate)
		p.billed = now
	}
}

func (p *Pod) settle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.charge()
}

func (p *Pod) spot() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cfg.Spot
}

func portOf(h *fakecloud.Host) int {
	_, port, _ := net.SplitHostPort(h.URL()[strings.Index(h.URL(), "//")+2:])
	return number(port)
}

func (c *Cloud) podByID(id string) *Pod {
	for _, p := range c.podList() {
		if p.ID() == id {
			return p
		}
	}
	return nil
}

// servePod answers what stands for https://ID-PORT.proxy.runpod.net/….
func (c *Cloud) servePod(w http.ResponseWriter, r *http.Request, path string) {
	name, rest, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	i := max(strings.LastIndexByte(name, '-'), 0)
	id, port := name[:i], strings.TrimPrefix(name[i:], "-")
	p := c.podByID(id)
	if p == nil {
		html(w, c.cfg.PodGoneCode, strconv.Itoa(c.cfg.PodGoneCode)+" "+http.StatusText(c.cfg.PodGoneCode))
		return
	}
	p.mu.Lock()
	h, exposed := p.host, slices.Contains(p.cfg.Ports, Port{Private: number(port)})
	cold := p.noGPU || time.Since(p.started) < c.delay(p.cfg.WarmUp)
	p.mu.Unlock()
	switch {
	case !exposed:
		html(w, http.StatusNotFound, "404 Not Found")
	case h == nil:
		html(w, c.cfg.PodGoneCode, strconv.Itoa(c.cfg.PodGoneCode)+" "+http.StatusText(c.cfg.PodGoneCode))
	case cold:
		html(w, http.StatusBadGateway, "502: Bad gateway")
	default:
		relay{
			c: c, w: w, r: r, target: h.URL() + "/" + rest, keepKey: true, first: c.limit(c.cfg.EdgeFirstByte), cut: true,
			late: func() { timeout(w) }, broken: func() { html(w, http.StatusBadGateway, "502: Bad gateway") },
		}.run()
	}
}

func (c *Cloud) listPods(w http.ResponseWriter) {
	list := []any{}
	odd := c.isOdd()
	for _, p := range c.podList() {
		if p.Status() != PodTerminated {
			list = append(list, p.describe(odd))
		}
	}
	writeJSON(w, http.StatusOK, map[string]any{"pods": list})
}

// serve answers GET /pods/ID, or POST /pods/ID/action.
func (p *Pod) serve(w http.ResponseWriter, r *http.Request, action bool) {
	if action {
		var in struct {
			Action string `json:"action"`
		}
		err := decode(r, &in)
		switch in.Action {
		case "start":
			if p.spot() {
				problem(w, http.StatusConflict, "Cannot resume a spot pod as an on demand pod.")
				return
			}
			err = p.Start()
		case "stop":
			p.Stop()
		case "restart":
			err = p.Restart()
		case "terminate":
			p.Terminate()
		default:
			problem(w, http.StatusUnprocessableEntity, "action: want start, stop, restart or terminate")
			return
		}
		if err != nil {
			problem(w, http.StatusConflict, "the action failed")
			return
		}
	}
	writeJSON(w, http.StatusOK, p.describe(p.c.isOdd()))
}

// describe is the pod as the management API shows it.
func (p *Pod) describe(odd bool) map[string]any {
	p.mu.Lock()
	defer p.mu.Unlock()
	cloud := "SECURE"
	if p.cfg.Community {
		cloud = "COMMUNITY"
	}
	cost, actions := 0.0, []string{"start", "terminate"}
	if p.status == PodRunning {
		cost, actions = p.rate, []string{"stop", "restart", "terminate"}
	}
	ports := []string{}
	for _, port := range p.cfg.Ports {
		kind := "/http"
		if port.TCP {
			kind = "/tcp"
		}
		ports = append(ports, strconv.Itoa(port.Private)+kind)
	}
	m := map[string]any{
		"id": p.cfg.ID, "name": p.cfg.Name, "status": string(p.status), "actions": actions, "gpu": map[string]any{"id": p.cfg.GPUType, "count": p.cfg.GPUCount},
		"cloud": cloud, "cost": cost, "image": p.cfg.Image, "args": p.cfg.Args, "env": p.cfg.Env, "ports": ports, "dataCenterId": p.cfg.DataCenter,
		"runtime": nil, "startedAt": nil, "createdAt": p.created.UTC().Format(time.RFC3339),
	}
	if p.cfg.Env == nil {
		m["env"] = map[string]string{}
	}
	if p.host != nil && p.status == PodRunning {
		m["startedAt"] = p.started.UTC().Format(time.RFC3339)
		m["runtime"] = p.runtime()
	}
	if odd {
		m["status"], m["cost"] = "HIBERNATING", decimal(cost)
		delete(m, "gpu")
	}
	return m
}

// runtime is what runs. The caller holds mu.
func (p *Pod) runtime() map[string]any {
	ports := []any{}
	for _, port := range p.cfg.Ports {
		public := portOf(p.host)
		kind := "tcp"
		if !port.TCP {
			kind, public = "http", 0
		} else if time.Now().Before(p.oldUntil) {
			public = p.oldPort
		}
		ports = append(ports, map[string]any{"private": port.Private, "public": public, "type": kind, "ip": "127.0.0.1"})
	}
	gpus := []any{}
	if !p.noGPU {
		for range p.cfg.GPUCount {
			gpus = append(gpus, map[string]int{"util": 0, "memoryUtil": 90})
		}
	}
	return map[string]any{
		"uptime": int(time.Since(p.started).Seconds()), "gpus": gpus, "cpu": map[string]int{"util": 3}, "memory": map[string]int{"util": 20}, "ports": ports,
	}
}
