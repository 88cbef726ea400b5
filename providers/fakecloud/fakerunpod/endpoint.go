package fakerunpod

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"headrace/providers/fakecloud"
)

// Endpoint is a serverless endpoint. Its methods may be called from any goroutine.
type Endpoint struct {
	c       *Cloud
	cfg     EndpointConfig
	created time.Time
	limits  limiter

	mu      sync.Mutex // guards all below and what changes of the endpoint's jobs and workers
	changed signal     // of workers, of jobs' statuses and of counts; not of yields
	stats   Stats
	jobs    map[string]*job
	queue   []*job
	workers []*worker
	moving  bool

	workersMin, workersMax int
	version                int
	image                  string
	timeout                time.Duration // of an execution
	coldStart, idleTimeout time.Duration
	early404               time.Duration
	faults                 []Failure
	crashing, throttled    bool
	noOpenAI, funnel       bool
	stuck                  bool
	broken                 string // a route
	losing                 int    // answers of /stream that are to be lost
	models                 []string
	badPorts, sick         bool
	gone                   bool
}

// Stats are an endpoint's books.
type Stats struct {
	Submitted  int // jobs ever taken in
	Queued     int // now
	InProgress int // now
	Completed  int
	Failed     int
	Cancelled  int
	TimedOut   int
	Expired    int // dropped at the end of their time to live
	Retried    int // given to a second worker

	Cancels   int // calls of /cancel
	Aborts    int // generations that a worker ended because its job was stopped
	Yields    int
	Destroyed int // characters that workers replaced by U+FFFD

	Requests  map[string]int // by operation: "run", "stream", "openai", "health", "balancer"…
	Throttled int            // answered 429

	Workers        int // now, in any status
	WorkersStarted int
	WorkerDeaths   int
	Crashes        int     // starts that failed
	WorkerSeconds  float64 // billed, up to the last change of a worker or a price
	USD            float64 // the same

	OutputTokens int // made by workers that are gone; those of living ones are in their hosts' own books
}

// AddEndpoint adds a serverless endpoint.
func (c *Cloud) AddEndpoint(cfg EndpointConfig) *Endpoint {
	cfg.fill()
	if cfg.ID == "" {
		cfg.ID = c.draw(14)
	}
	if cfg.Name == "" {
		cfg.Name = cfg.ID
	}
	e := &Endpoint{
		c: c, cfg: cfg, created: time.Now(), jobs: map[string]*job{}, workersMin: cfg.WorkersMin, workersMax: cfg.WorkersMax,
		version: 1, image: cfg.Image, models: cfg.Models, timeout: cfg.Timeout, coldStart: cfg.ColdStart, idleTimeout: cfg.IdleTimeout,
	}
	e.stats.Requests = map[string]int{}
	if e.timeout == 0 {
		e.timeout = 10 * time.Minute
	}
	c.mu.Lock()
	c.endpoints = append(c.endpoints, e)
	c.mu.Unlock()
	e.rescale()
	return e
}

// ID returns the endpoint's id.
func (e *Endpoint) ID() string { return e.cfg.ID }

// Config returns the settings it began with, with all that was left out filled in.
func (e *Endpoint) Config() EndpointConfig { return e.cfg }

func (e *Endpoint) hostConfig(name string, n int) fakecloud.HostConfig {
	e.mu.Lock()
	models := e.models
	e.mu.Unlock()
	return fakecloud.HostConfig{
		Name: name, Models: models, Class: e.cfg.Class, TPS: e.cfg.TPS, TTFT: e.cfg.TTFT, TimeScale: e.c.cfg.TimeScale,
		Seed: e.c.cfg.Seed + uint64(n), MaxModelLen: e.cfg.MaxModelLen, Legacy: e.cfg.Legacy, Chunking: e.cfg.Chunking, //nolint:gosec // a count
	}
}

// with runs f under the endpoint's lock, then lets jobs and workers move.
func (e *Endpoint) with(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
	e.changed.fire()
	e.move()
}

func (e *Endpoint) rescale() { e.with(func() {}) }

// move gives queued jobs to workers and starts workers, as the scaler says. The caller holds e.mu.
func (e *Endpoint) move() {
	if e.moving || e.gone || e.c.ctx.Err() != nil {
		return
	}
	e.moving = true // what is called here may want to move again
	defer func() { e.moving = false }()
	for len(e.queue) > 0 && !e.stuck {
		w := e.pick()
		if w == nil {
			break
		}
		j := e.queue[0]
		e.queue = e.queue[1:]
		j.begin(w)
	}
	for len(e.workers) < e.wanted() {
		e.start()
	}
	for i, over := len(e.workers)-1, len(e.workers)-max(e.workersMax, e.workersMin); i >= 0 && over > 0; i, over = i-1, over-1 {
		w := e.workers[i]
		w.leaving = true
		if w.load() == 0 {
			w.remove()
		}
	}
}

// pick returns the worker that takes the next job, nil when none has room. The caller holds e.mu.
func (e *Endpoint) pick() (best *worker) {
	for _, w := range e.workers {
		if w.room() && (best == nil || w.load() < best.load()) {
			best = w
		}
		if e.funnel && w.up && !w.leaving {
			break
		}
	}
	return best
}

// wanted is how many workers there should be now. The caller holds e.mu.
func (e *Endpoint) wanted() int {
	urgent, oldest := 0, time.Time{}
	for _, j := range e.queue {
		if !j.policy.LowPriority {
			urgent++
			if oldest.IsZero() || j.submitted.Before(oldest) {
				oldest = j.submitted
			}
		}
	}
	want := 0
	switch {
	case e.cfg.Type == LoadBalancer:
		want = ceil(e.stats.Queued+e.stats.InProgress, e.cfg.RequestCount)
	case e.cfg.RequestCount > 0:
		want = ceil(urgent+e.stats.InProgress, e.cfg.RequestCount)
	case urgent > 0:
		want = len(e.workers)
		starting := slices.ContainsFunc(e.workers, func(w *worker) bool { return !w.up })
		if want == 0 || !starting && time.Since(oldest) >= e.c.limit(e.cfg.QueueDelay) {
			want++
		}
	}
	return min(max(want, e.workersMin), max(e.workersMax, e.workersMin))
}

func ceil(n, by int) int { return (n + by - 1) / by }

// Stats returns the endpoint's books.
func (e *Endpoint) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.view()
}

func (e *Endpoint) view() Stats {
	s := e.stats
	s.Requests = maps.Clone(s.Requests)
	return s
}

// Wait returns when the books satisfy done, or with ctx's error when it is done first.
func (e *Endpoint) Wait(ctx context.Context, done func(Stats) bool) error {
	for {
		e.mu.Lock()
		s, changed := e.view(), e.changed.wait()
		e.mu.Unlock()
		if done(s) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for endpoint %s (%+v): %w", e.cfg.ID, s, ctx.Err())
		}
	}
}

// Worker describes a worker that there is now.
type Worker struct {
	ID         string
	Status     WorkerStatus
	GPUTypeID  string
	DataCenter string
	Jobs       int
	Host       *fakecloud.Host // nil while it starts
}

// Workers returns the workers that there are now, oldest first.
func (e *Endpoint) Workers() (list []Worker) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, w := range e.workers {
		list = append(list, Worker{w.id, w.status, w.gpu, w.dc, w.load(), w.host})
	}
	return list
}

// Job describes a job as the fake knows it.
type Job struct {
	ID        string
	Status    string
	Worker    string
	Retries   int
	Error     string
	TTL       time.Duration // asked for by policy.ttl, 0 when it was not
	Submitted time.Time
	Began     time.Time // of the attempt, zero before
	Ended     time.Time
	Upstream  []byte // what the worker's engine sent it in the last attempt, before the worker cut it
	Destroyed int    // characters that the worker replaced in that attempt
}

// Jobs returns the jobs that are not forgotten, oldest first.
func (e *Endpoint) Jobs() (list []Job) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, j := range e.jobs {
		d := Job{
			ID: j.id, Status: j.status, Retries: j.retries, Error: j.errText, Submitted: j.submitted, Ended: j.ended,
			TTL: time.Duration(j.policy.TTL) * time.Millisecond, Upstream: slices.Clone(j.upstream), Destroyed: j.destroyed,
		}
		if j.attempt != nil {
			d.Worker, d.Began = j.attempt.w.id, j.attempt.began
		}
		list = append(list, d)
	}
	slices.SortFunc(list, func(a, b Job) int { return a.Submitted.Compare(b.Submitted) })
	return list
}

// retired adds what a worker's host did in its life. The caller holds e.mu.
func (e *Endpoint) retired(s fakecloud.Stats) { e.stats.OutputTokens += s.OutputTokens }

func (e *Endpoint) counted(op string, refused bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stats.Requests[op]++
	if refused {
		e.stats.Throttled++
	}
	e.changed.fire()
}
