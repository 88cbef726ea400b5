package fakerunpod

import (
	"context"
	"slices"
	"time"

	"headrace/providers/fakecloud"
)

// WorkerStatus is how a worker is, in the management API's words.
type WorkerStatus string

// Statuses of workers.
const (
	Initializing WorkerStatus = "INITIALIZING"
	Throttled    WorkerStatus = "THROTTLED"
	Unhealthy    WorkerStatus = "UNHEALTHY"
	Idle         WorkerStatus = "IDLE"
	Running      WorkerStatus = "RUNNING"
)

// worker is one container of an endpoint. Endpoint.mu guards what changes of it.
type worker struct {
	e       *Endpoint
	id      string
	gpu, dc string
	version int
	image   string
	ctx     context.Context
	cancel  context.CancelFunc
	turn    chan struct{} // of SGLang, which does one job at a time

	status   WorkerStatus
	up       bool // it takes jobs
	ready    bool // /health counts it as ready
	leaving  bool // it takes nothing new
	gone     bool
	started  time.Time // of the container, zero before
	billed   time.Time // until when it is billed; zero while it is not
	span     time.Duration
	host     *fakecloud.Host
	attempts map[*attempt]struct{}
	requests int // of a load balancer
	idle     *time.Timer
}

// start adds a worker. The caller holds e.mu.
func (e *Endpoint) start() {
	n := e.stats.WorkersStarted
	e.stats.WorkersStarted++
	w := &worker{
		e: e, id: e.c.draw(14), status: Initializing, version: e.version, image: e.image, attempts: map[*attempt]struct{}{},
		gpu: e.cfg.GPUTypes[n%len(e.cfg.GPUTypes)], dc: e.cfg.DataCenters[n%len(e.cfg.DataCenters)], turn: make(chan struct{}, 1),
	}
	w.ctx, w.cancel = context.WithCancel(e.c.ctx)
	e.workers = append(e.workers, w)
	e.stats.Workers++
	e.changed.fire()
	e.c.spawn(func() { w.run(n) })
}

// run brings a worker up and takes it down at its end.
func (w *worker) run(n int) {
	defer w.end()
	e := w.e
	for {
		if w.placed() != nil || fakecloud.Pause(w.ctx, e.c.delay(e.cfg.ImagePull)) != nil {
			return
		}
		e.mu.Lock()
		w.started = time.Now()
		w.billed = e.c.cfg.BillNow()
		cold, early := e.coldStart, min(e.cfg.ReadyEarly, e.coldStart)
		e.mu.Unlock()
		if fakecloud.Pause(w.ctx, e.c.delay(cold-early)) != nil {
			return
		}
		e.mu.Lock()
		crash := e.crashing
		if crash {
			w.bill()
			w.billed, w.started = time.Time{}, time.Time{}
			w.status = Unhealthy
			e.stats.Crashes++
		}
		w.ready = !crash && early > 0
		e.changed.fire()
		e.mu.Unlock()
		if !crash {
			if fakecloud.Pause(w.ctx, e.c.delay(early)) != nil {
				return
			}
			break
		}
		if fakecloud.Pause(w.ctx, e.c.delay(e.c.cfg.CrashBackoff)) != nil {
			return
		}
		if e.c.cfg.TimeScale <= 0 && w.calm() != nil { // without any waiting it would crash as fast as it can
			return
		}
	}
	h, err := fakecloud.StartHost(e.c.ctx, e.hostConfig(w.id, n))
	if err != nil {
		e.mu.Lock()
		w.status = Unhealthy
		e.changed.fire()
		e.mu.Unlock()
		<-w.ctx.Done()
		return
	}
	e.mu.Lock()
	w.host, w.up, w.ready, w.status = h, true, true, Idle
	w.rest()
	e.changed.fire()
	e.move()
	e.mu.Unlock()
	<-w.ctx.Done()
}

// placed waits while the platform has no place for the worker.
func (w *worker) placed() error {
	return w.hold(func() bool {
		w.status = Initializing
		if w.e.throttled {
			w.status = Throttled
		}
		return !w.e.throttled
	})
}

// calm waits while the endpoint's workers crash.
func (w *worker) calm() error { return w.hold(func() bool { return !w.e.crashing }) }

func (w *worker) hold(until func() bool) error {
	for {
		w.e.mu.Lock()
		before := w.status
		ok := until()
		if w.status != before {
			w.e.changed.fire()
		}
		changed := w.e.changed.wait()
		w.e.mu.Unlock()
		if ok {
			return w.ctx.Err()
		}
		select {
		case <-changed:
		case <-w.ctx.Done():
			return w.ctx.Err()
		}
	}
}

// end takes the worker's host away and closes its account.
func (w *worker) end() {
	w.e.mu.Lock()
	w.remove()
	h := w.host
	w.e.mu.Unlock()
	if h != nil {
		h.Kill()
		w.e.mu.Lock()
		w.e.retired(h.Stats())
		w.host = nil
		w.e.mu.Unlock()
		h.Stop()
	}
}

// remove takes w off the endpoint's list. The caller holds e.mu.
func (w *worker) remove() {
	if w.gone {
		return
	}
	w.gone, w.up, w.ready = true, false, false
	w.bill()
	w.round()
	w.billed = time.Time{}
	w.cancel()
	if w.idle != nil {
		w.idle.Stop()
	}
	w.e.workers = slices.DeleteFunc(w.e.workers, func(o *worker) bool { return o == w })
	w.e.stats.Workers--
	w.e.changed.fire()
}

// take and drop keep the books of what w does. The caller holds e.mu.
func (w *worker) take(a *attempt) {
	w.attempts[a] = struct{}{}
	w.busy()
}

func (w *worker) drop(a *attempt) {
	delete(w.attempts, a)
	w.rest()
}

func (w *worker) busy() {
	w.status = Running
	if w.idle != nil {
		w.idle.Stop()
	}
	w.e.changed.fire()
}

// rest makes w idle when it has nothing to do, and ends it after the idle timeout. The caller holds e.mu.
func (w *worker) rest() {
	if w.load() > 0 || w.gone {
		return
	}
	w.status = Idle
	w.e.changed.fire()
	if w.leaving {
		w.remove()
		return
	}
	w.idle = w.e.c.after(w.e.c.limit(w.e.idleTimeout), func() {
		w.e.mu.Lock()
		defer w.e.mu.Unlock()
		if w.load() == 0 && !w.gone && len(w.e.workers) > w.e.workersMin {
			w.remove()
		}
	})
}

func (w *worker) load() int { return len(w.attempts) + w.requests }

// room says that w can take one more. The caller holds e.mu.
func (w *worker) room() bool { return w.up && !w.leaving && w.load() < w.e.cfg.MaxConcurrency }

// die loses w with all it does. The caller holds e.mu.
func (w *worker) die() {
	for a := range w.attempts {
		a.lose()
	}
	clear(w.attempts)
	w.e.stats.WorkerDeaths++
	w.remove()
	w.e.move()
}
