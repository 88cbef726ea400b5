package fakerunpod

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"time"
	"unicode/utf8"
)

// Statuses of jobs.
const (
	inQueue    = "IN_QUEUE"
	inProgress = "IN_PROGRESS"
	completed  = "COMPLETED"
	failed     = "FAILED"
	cancelled  = "CANCELLED"
	timedOut   = "TIMED_OUT"
)

func terminal(status string) bool { return status != inQueue && status != inProgress }

const (
	lostForGood = "job timed out after 1 retries"
	tooLong     = "executionTimeout exceeded"
)

// maxChunk is the largest string that one item of /stream holds, in bytes; larger ones are split.
const maxChunk = 1 << 20

// policy is that of a job, in milliseconds.
type policy struct {
	Execution   int64 `json:"executionTimeout"`
	TTL         int64 `json:"ttl"`
	LowPriority bool  `json:"lowPriority"`
}

// job is one request of a queue endpoint. Endpoint.mu guards what changes of it.
type job struct {
	e       *Endpoint
	id      string
	input   json.RawMessage
	policy  policy
	poison  bool // the worker's SDK drops it
	fault   Failure
	keep    time.Duration // after its end
	forgets *time.Timer   // at the end of its time to live, then of its retention

	changed   signal
	status    string
	submitted time.Time
	visible   time.Time // /status and /stream know it from then on
	attempt   *attempt  // nil before the first
	retries   int
	ended     time.Time
	buffer    []json.RawMessage // yields that nobody has taken yet
	aggregate []json.RawMessage
	yields    int // of the attempt
	errText   string
	upstream  []byte
	destroyed int
}

// attempt is one worker's go at a job.
type attempt struct {
	j       *job
	w       *worker
	ctx     context.Context
	cancel  context.CancelFunc
	began   time.Time
	expires *time.Timer // at its execution timeout
	lost    bool        // its worker died
}

// submit takes a job in. The caller holds e.mu.
func (e *Endpoint) submit(prefix string, input json.RawMessage, p policy, keep time.Duration) *job {
	now := time.Now()
	j := &job{
		e: e, id: e.c.jobID(prefix), input: input, policy: p, keep: keep, status: inQueue, submitted: now,
		visible: now.Add(e.early404), fault: e.takeFault(false), poison: bytes.Equal(bytes.Join(bytes.Fields(input), nil), []byte("{}")),
	}
	ttl := 24 * time.Hour
	if p.TTL > 0 {
		ttl = min(max(time.Duration(p.TTL)*time.Millisecond, 10*time.Second), 7*24*time.Hour)
	}
	j.forgets = e.c.after(e.c.limit(ttl), func() { e.forget(j, true) })
	e.jobs[j.id] = j
	e.queue = append(e.queue, j)
	e.stats.Submitted++
	e.stats.Queued++
	e.move()
	if e.cfg.RequestCount == 0 {
		e.c.after(e.c.limit(e.cfg.QueueDelay), e.rescale)
	}
	return j
}

// set changes a job's status and the counts with it. The caller holds e.mu.
func (j *job) set(status string) {
	s := &j.e.stats
	count := func(status string, n int) {
		switch status {
		case inQueue:
			s.Queued += n
		case inProgress:
			s.InProgress += n
		case completed:
			s.Completed += n
		case failed:
			s.Failed += n
		case cancelled:
			s.Cancelled += n
		case timedOut:
			s.TimedOut += n
		}
	}
	count(j.status, -1)
	count(status, 1)
	j.status = status
	j.changed.fire()
	j.e.changed.fire()
}

// end gives a job its last status. The caller holds e.mu.
func (j *job) end(status, errText string) {
	if terminal(j.status) {
		return
	}
	j.errText = errText
	j.ended = time.Now()
	j.e.queue = slices.DeleteFunc(j.e.queue, func(q *job) bool { return q == j })
	j.set(status)
	j.forgets.Stop()
	j.forgets = j.e.c.after(j.e.c.limit(j.keep), func() { j.e.forget(j, false) })
}

// forget drops a job at the end of its time to live, however it is, or of its retention.
func (e *Endpoint) forget(j *job, expired bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.jobs[j.id] != j || expired && terminal(j.status) {
		return
	}
	delete(e.jobs, j.id)
	if !terminal(j.status) {
		j.stop()
		j.end(timedOut, "")
		j.forgets.Stop()
		e.stats.TimedOut--
		e.stats.Expired++
	}
	j.changed.fire()
}

// stop ends what a worker does for j, if the worker can be told. The caller holds e.mu.
func (j *job) stop() {
	if j.attempt != nil && !j.e.cfg.OldSDK {
		j.attempt.cancel()
	}
}

// begin gives j to w. The caller holds e.mu.
func (j *job) begin(w *worker) {
	a := &attempt{j: j, w: w, began: time.Now()}
	a.ctx, a.cancel = context.WithCancel(w.ctx)
	j.attempt = a
	j.yields = 0
	j.aggregate = nil
	j.upstream, j.destroyed = nil, 0
	j.set(inProgress)
	limit := j.e.timeout
	if j.policy.Execution > 0 {
		limit = min(max(time.Duration(j.policy.Execution)*time.Millisecond, 5*time.Second), 7*24*time.Hour)
	}
	a.expires = j.e.c.after(j.e.c.limit(limit), a.expire)
	w.take(a)
	j.e.c.spawn(a.run)
}

func (a *attempt) expire() {
	e := a.j.e
	e.mu.Lock()
	defer e.mu.Unlock()
	if a.j.attempt == a && !terminal(a.j.status) {
		a.j.stop()
		a.j.end(failed, tooLong)
	}
}

// run lets the worker do the job.
func (a *attempt) run() {
	e := a.j.e
	errText, gone := a.handle()
	e.mu.Lock()
	defer e.mu.Unlock()
	stopped := a.ctx.Err() != nil
	a.cancel()
	a.expires.Stop()
	switch {
	case a.lost:
		return
	case gone && a.j.poison: // the worker never answers for this job
		a.w.drop(a)
		a.lose()
		e.move()
		return
	case gone: // the worker's process has ended
		a.w.die()
		return
	case stopped && a.w.ctx.Err() != nil: // the endpoint or the cloud has ended
		a.w.drop(a)
		return
	case stopped:
		e.stats.Aborts++
	}
	a.w.drop(a)
	if a.j.attempt == a {
		if errText != "" {
			a.j.end(failed, errText)
		} else {
			a.j.end(completed, "")
		}
	}
	e.move()
}

// yield is one POST of a worker's: it adds to what /stream gives. It says whether the worker is to go on.
func (a *attempt) yield(y json.RawMessage) bool {
	e := a.j.e
	e.mu.Lock()
	defer e.mu.Unlock()
	j := a.j
	if a.lost || a.ctx.Err() != nil {
		return false
	}
	if j.attempt != a || terminal(j.status) {
		return true // an old worker goes on for nobody
	}
	e.stats.Yields++
	j.yields++
	if !e.cfg.NoAggregate {
		j.aggregate = append(j.aggregate, y)
	}
	if !(e.c.cfg.NoReplay && j.retries > 0) {
		j.buffer = append(j.buffer, split(y)...)
		j.changed.fire()
	}
	return true
}

// split cuts a string that is too large for one item of a stream.
func split(y json.RawMessage) []json.RawMessage {
	var s string
	if len(y) <= maxChunk || y[0] != '"' || json.Unmarshal(y, &s) != nil {
		return []json.RawMessage{y}
	}
	var parts []json.RawMessage
	for len(s) > maxChunk {
		n := maxChunk
		for !utf8.RuneStart(s[n]) {
			n--
		}
		parts = append(parts, encode(s[:n]))
		s = s[n:]
	}
	return append(parts, encode(s))
}

// lose leaves the job as it is until the platform notices. The caller holds e.mu.
func (a *attempt) lose() {
	a.lost = true
	a.cancel()
	a.expires.Stop()
	e := a.j.e
	e.c.after(e.c.delay(e.c.cfg.RedispatchAfter), func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		j := a.j
		if j.attempt != a || terminal(j.status) || e.jobs[j.id] != j {
			return
		}
		if j.retries > 0 {
			j.end(failed, lostForGood)
			return
		}
		j.retries++
		e.stats.Retried++
		e.queue = slices.Insert(e.queue, 0, j)
		j.set(inQueue)
		e.move()
	})
}

// view is a job as /status shows it. The order of its members is that of the live service.
type view struct {
	Delay     *int64 `json:"delayTime,omitempty"`
	Error     string `json:"error,omitempty"`
	Execution *int64 `json:"executionTime,omitempty"`
	ID        string `json:"id"`
	Output    any    `json:"output,omitempty"`
	Retries   int    `json:"retries,omitempty"`
	Status    string `json:"status"`
	Worker    string `json:"workerId,omitempty"`
}

// view describes j. The caller holds e.mu.
func (j *job) view() view {
	v := view{ID: j.id, Status: j.status, Retries: j.retries, Error: j.errText}
	if a := j.attempt; a != nil && j.status != inQueue {
		v.Delay = new(a.began.Sub(j.submitted).Milliseconds())
		v.Worker = a.w.id
		if terminal(j.status) {
			v.Execution = new(j.ended.Sub(a.began).Milliseconds())
		}
	}
	if j.status == completed {
		v.Output = slices.Clone(j.aggregate)
		if j.aggregate == nil {
			v.Output = []any{}
		}
	}
	return v
}

// drain takes what /stream has to give. The caller holds e.mu.
func (j *job) drain() []json.RawMessage {
	b := j.buffer
	j.buffer = nil
	return b
}
