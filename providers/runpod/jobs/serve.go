package jobs

import (
	"net/http"
	"sync/atomic"
	"time"

	"headrace/router/endpoint"
)

// job is one request on its way.
type job struct {
	t  *Translator
	q  *queue
	a  *asked
	w  http.ResponseWriter
	r  *http.Request
	id string

	stream *stream // for callers who want a stream
	plain  *plain  // for the others

	began   time.Time     // RunPod took the job
	handing time.Duration // that took
	seen    bool          // RunPod has shown that it knows the job
	over    bool          // the job has ended, or has said all: it needs no cancelling
	any     bool          // something was yielded
	heard   time.Time     // when the last yield came
	checked time.Time     // when /status was asked for another worker
	worker  string        // who was seen at it since the first yield, "" when nobody was
	retries int           // as of the first yield; -1 while nobody knows
	wrote   bool          // the head of a stream went out
	report  endpoint.WorkerReport
}

func (t *Translator) serve(w http.ResponseWriter, r *http.Request, q *queue) {
	t.wg.Add(1)
	defer t.wg.Done()
	a, f := ask(w, r)
	var payload []byte
	if f == nil {
		a.native = q.native
		payload, f = a.payload(t.timeToLive(), t.opt.ExecutionTimeout)
	}
	if f != nil {
		writeFailure(w, f)
		return
	}
	j := &job{t: t, q: q, a: a, w: w, r: r}
	sent := t.opt.Now()
	j.id, f = j.start(payload)
	switch {
	case r.Context().Err() != nil:
		if j.id != "" {
			t.forget(q, orphan{job: j.id})
		}
		return
	case f != nil:
		j.log(f)
		writeFailure(w, f)
		return
	}
	j.began = t.opt.Now()
	j.handing = j.began.Sub(sent)
	a.jobID, a.created = j.id, j.began.Unix()
	if a.stream {
		j.stream = &stream{a: a}
	} else {
		j.plain = &plain{a: a}
	}
	defer j.settle() // also when http.ErrAbortHandler is on its way
	j.follow(r.Context())
}

// settle cancels a job that goes on for nobody, and counts.
func (j *job) settle() {
	if !j.over {
		j.t.forget(j.q, orphan{j.id, j.seen})
	}
	c := &j.t.count
	var n *kinds
	if j.stream != nil {
		n = &j.stream.kinds
	} else {
		n = &j.plain.kinds
	}
	for k, n := range n {
		c.yields[k].Add(n)
	}
	c.destroyed.Add(int64(j.destroyed()))
	c.redispatched.Add(int64(j.report.Redone))
}

// start sends the job. When the caller leaves meanwhile it returns at once, and the job is cancelled as soon as its id is known.
func (j *job) start(payload []byte) (id string, f *failure) {
	type result struct {
		id string
		f  *failure
	}
	const (
		pending = iota
		handed
		abandoned
	)
	var state atomic.Int32
	got := make(chan result, 1)
	j.t.wg.Go(func() {
		id, f := j.t.run(j.q, payload)
		got <- result{id, f}
		if !state.CompareAndSwap(pending, handed) && id != "" {
			j.t.forget(j.q, orphan{job: id})
		}
	})
	select {
	case r := <-got:
		return r.id, r.f
	case <-j.r.Context().Done():
		if state.CompareAndSwap(pending, abandoned) {
			return "", nil
		}
		r := <-got
		return r.id, r.f
	}
}
