package jobs

import (
	"net/http"
	"sync"
	"time"
)

// RunPod takes 100 cancels in 10 s and 20 at once, for each endpoint.
const (
	cancelsAtOnce = 20
	cancelsPer    = rateWindow
	cancelsInPer  = 100
)

// canceller keeps what is to be cancelled, by endpoint, until RunPod may be asked.
type canceller struct {
	mu     sync.Mutex // guards all below
	queues map[string]*cancels
}

// cancels are those of one endpoint.
type cancels struct {
	waiting []orphan
	running int
	begun   [cancelsInPer]time.Time // when the last ones were sent; a ring
	next    int                     // the oldest of them
}

// orphan is a job whose answer nobody wants any more.
type orphan struct {
	job  string
	seen bool // RunPod has known it: not found means that it is over
}

// forget has a job cancelled whose answer nobody wants any more, as soon as RunPod's limits allow. It does not wait.
func (t *Translator) forget(q *queue, o orphan) {
	c := &t.cancel
	t.count.cancelsWaiting.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.queues == nil {
		c.queues = map[string]*cancels{}
	}
	of := c.queues[q.base]
	if of == nil {
		of = &cancels{}
		c.queues[q.base] = of
	}
	of.waiting = append(of.waiting, o)
	if of.running < cancelsAtOnce {
		of.running++
		t.wg.Go(func() { t.runCancels(q, of) })
	}
}

// runCancels sends cancels until none waits.
func (t *Translator) runCancels(q *queue, of *cancels) {
	for {
		o, wait := t.cancel.take(of, t.opt.Now())
		if o.job == "" {
			return
		}
		err := sleep(t.life, wait)
		if err == nil {
			err = t.cancelJob(q, o)
		}
		t.count.cancelsWaiting.Add(-1)
		if err != nil {
			t.count.cancelsFailed.Add(1)
			t.opt.Log.Warn("a job could not be cancelled and may run until its end", "endpoint", q.id, "job", o.job, "error", q.redact(err.Error()))
			continue
		}
		t.count.cancelsSent.Add(1)
	}
}

// take returns the next job and how long to wait before it may be cancelled, or one without a name when none waits.
func (c *canceller) take(of *cancels, now time.Time) (o orphan, wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(of.waiting) == 0 {
		of.running--
		return o, 0
	}
	o, of.waiting = of.waiting[0], of.waiting[1:]
	at := now
	if first := of.begun[of.next]; !first.IsZero() && first.Add(cancelsPer).After(now) {
		at = first.Add(cancelsPer)
	}
	of.begun[of.next] = at
	of.next = (of.next + 1) % cancelsInPer
	return o, at.Sub(now)
}

// cancelJob asks RunPod, and once more when that fails. A job that RunPod does not know yet is asked for longer.
func (t *Translator) cancelJob(q *queue, o orphan) error {
	wait := 250 * time.Millisecond
	for try := 1; ; try++ {
		a := t.cancelOnce(q, o.job)
		switch {
		case a.err == nil && (a.status/100 == 2 || a.status == http.StatusNotFound && o.seen):
			return nil
		case a.err == nil:
			a.err = errStatus(a.status)
		}
		tries := 2
		if a.status == http.StatusNotFound {
			tries = 6
		}
		if try >= tries {
			return a.err
		}
		if sleep(t.life, max(wait, min(retryAfter(a.header), rateWindow))) != nil {
			return a.err
		}
		wait *= 2
	}
}

func (t *Translator) cancelOnce(q *queue, job string) reply {
	ctx, done := t.detached(t.opt.CancelTimeout)
	defer done()
	return t.call(ctx, q, http.MethodPost, "/cancel/"+job, nil)
}
