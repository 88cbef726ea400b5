package fakerunpod

import (
	"slices"
	"time"
)

// Failure is a way in which a request or a job of a queue endpoint fails.
type Failure uint8

// Failures of the platform: what is answered instead of taking the request.
const (
	NoFailure   Failure = iota
	Opaque500           // 500 with the queue API's envelope
	TooMany             // 429, as Config.RateLimits says
	TooManyWait         // 429 with Retry-After: 1
	LostAnswer          // the job is taken, and the connection is reset instead of an answer
	Hang                // the request is read and never answered

	// Failures of the worker.

	TracebackBody  // the job completes with {"err":"api","traceback":…}
	FlatBody       // the job completes with the flat error object of old vLLM versions
	RefusedJob     // the job fails: vLLM found the request too long, told by the generation's own form
	HandlerError   // the job fails: the handler raised an exception
	MidStreamError // the job fails after its first yield
	TimedOutJob    // the job ends as TIMED_OUT
	WorkerExit     // a CUDA error ends the worker
	ExitTwice      // the same in both attempts
	ExitMidStream  // the same after the first yield
	EngineDead     // vLLM has ended, the worker has not: the job fails
)

// FailNextJobs makes the next n requests or jobs fail by f. Those of the platform strike /run, /runsync and the OpenAI route
// when they arrive, those of the worker strike the job in its first attempt.
func (e *Endpoint) FailNextJobs(n int, f Failure) {
	e.with(func() { e.faults = append(e.faults, slices.Repeat([]Failure{f}, n)...) })
}

// takeFault takes the next fault, if it is one of the platform or of a worker as asked for. The caller holds e.mu.
func (e *Endpoint) takeFault(platform bool) Failure {
	if len(e.faults) == 0 || platform != (e.faults[0] < TracebackBody) {
		return NoFailure
	}
	f := e.faults[0]
	e.faults = e.faults[1:]
	return f
}

// KillWorker takes a worker away in the middle of what it does, the busiest one when id is "". It returns the worker's id,
// "" when there was none.
func (e *Endpoint) KillWorker(id string) string {
	e.mu.Lock()
	var w *worker
	for _, o := range e.workers {
		if (id == "" || o.id == id) && (w == nil || o.load() > w.load() || o.up && !w.up) {
			w = o
		}
	}
	if w == nil {
		e.mu.Unlock()
		return ""
	}
	h := w.host
	w.die()
	e.mu.Unlock()
	if h != nil {
		h.Kill()
	}
	return w.id
}

// KillWorkers takes all workers away.
func (e *Endpoint) KillWorkers() {
	for _, w := range e.Workers() {
		e.KillWorker(w.ID)
	}
}

// CrashLoop makes all workers that start from now on crash at the end of their start, again and again.
func (e *Endpoint) CrashLoop(on bool) { e.with(func() { e.crashing = on }) }

// Throttle lets no worker start from now on: the platform has no GPU for it.
func (e *Endpoint) Throttle(on bool) { e.with(func() { e.throttled = on }) }

// SetWorkersMax moves the most workers that there may be. With 0 jobs wait for ever.
func (e *Endpoint) SetWorkersMax(n int) {
	e.with(func() { e.workersMax = n; e.workersMin = min(e.workersMin, n) })
}

// SetWorkersMin moves how many workers are kept up.
func (e *Endpoint) SetWorkersMin(n int) { e.with(func() { e.setWorkersMin(n) }) }

// setWorkersMin lets idle workers beyond the new number end in their time. The caller holds e.mu.
func (e *Endpoint) setWorkersMin(n int) {
	e.workersMin = n
	for _, w := range slices.Clone(e.workers) {
		if w.up {
			w.rest()
		}
	}
}

// Early404 lets /status and /stream deny each job for so long after it was taken; of the wall clock.
func (e *Endpoint) Early404(d time.Duration) { e.with(func() { e.early404 = d }) }

// NoOpenAIRoute makes the handler one that knows no OpenAI route.
func (e *Endpoint) NoOpenAIRoute(on bool) { e.with(func() { e.noOpenAI = on }) }

// Funnel gives all jobs to the oldest worker, as some versions of the worker's SDK did.
func (e *Endpoint) Funnel(on bool) { e.with(func() { e.funnel = on }) }

// BadPorts makes a load balancer look for its workers at a port where none listens: 502.
func (e *Endpoint) BadPorts(on bool) { e.with(func() { e.badPorts = on }) }

// FailHealthCheck keeps a load balancer's workers out of rotation: their containers run, their health checks fail.
func (e *Endpoint) FailHealthCheck(on bool) { e.with(func() { e.sick = on }) }

// Release makes the endpoint one of another image, "" for the same: idle workers are replaced at once, busy ones after their jobs.
func (e *Endpoint) Release(image string) {
	e.with(func() {
		e.version++
		if image != "" {
			e.image = image
		}
		for _, w := range slices.Clone(e.workers) {
			w.leaving = true
			if w.load() == 0 {
				w.remove()
			}
		}
	})
}

// SetModels makes workers that start from now on serve other model ids.
func (e *Endpoint) SetModels(models ...string) { e.with(func() { e.models = slices.Clone(models) }) }

// Stick leaves all jobs in the queue, whatever workers there are.
func (e *Endpoint) Stick(on bool) { e.with(func() { e.stuck = on }) }

// BreakRoute makes the handler fail on one route, such as "/v1/completions"; "" on none.
func (e *Endpoint) BreakRoute(route string) { e.with(func() { e.broken = route }) }

// LoseNextStreams resets the connection of the next n answers of /stream that hold yields, which are lost.
func (e *Endpoint) LoseNextStreams(n int) { e.with(func() { e.losing = n }) }

// Delete takes the endpoint away: 404 from now on.
func (e *Endpoint) Delete() {
	e.c.mu.Lock()
	e.c.endpoints = slices.DeleteFunc(e.c.endpoints, func(o *Endpoint) bool { return o == e })
	e.c.mu.Unlock()
	e.end()
}

// end ends all jobs and workers.
func (e *Endpoint) end() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.gone = true
	for _, j := range e.jobs {
		j.end(cancelled, "")
		delete(e.jobs, j.id)
		j.forgets.Stop()
		j.changed.fire()
	}
	for _, w := range slices.Clone(e.workers) {
		w.remove()
	}
	e.changed.fire()
}
