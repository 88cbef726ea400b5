package jobs

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"strconv"

	"headrace/router/endpoint"
)

// end makes what came the answer, now that the job has ended with n and nothing is left in its stream.
func (j *job) end(ctx context.Context, n *news) {
	j.note(n)
	if n.Status != statusCompleted {
		if n.Error == "" {
			if s, err := j.t.status(ctx, j.q, j.id); err == nil {
				j.note(&s)
				n.Error = s.Error
			}
		}
		j.fail(ofJob(n.Status, n.Error))
		return
	}
	if !j.any && !j.whole(ctx, n) {
		return
	}
	if j.stream != nil {
		j.endStream(ctx)
		return
	}
	body, f := j.plain.answer()
	if f != nil {
		j.fail(f)
		return
	}
	j.endPlain(ctx, body)
}

// whole takes the output of a job whose stream had nothing: its handler yields nothing, or what it yielded was lost.
func (j *job) whole(ctx context.Context, n *news) bool {
	if n.Output == nil {
		s, err := j.t.status(ctx, j.q, j.id)
		switch {
		case ctx.Err() != nil:
			return false
		case err != nil:
			j.fail(broken("poll_lost", "its output could not be fetched"))
			return false
		}
		j.note(&s)
		n.Output = s.Output
	}
	if n.Output != nil {
		j.any = true
		return j.pass(&news{Yields: []json.RawMessage{n.Output}}, j.t.opt.Now())
	}
	j.fail(noAnswer(nil))
	return false
}

// endStream ends a stream in good order, if it may.
func (j *job) endStream(ctx context.Context) {
	s := j.stream
	f, cut := s.finish()
	switch {
	case cut:
		if s.ended = false; j.deliver() {
			j.fail(broken("cut_event", "its last event is not whole"))
		}
		return
	case f != nil:
		j.fail(f)
		return
	case !s.begun && s.answer != nil:
		j.endPlain(ctx, s.answer)
		return
	case !s.begun:
		j.fail(noAnswer(s.buf))
		return
	}
	if j.deliver() {
		j.t.count.completed.Add(1)
		j.ask(ctx)
		j.put()
	}
}

// endPlain sends the one answer.
func (j *job) endPlain(ctx context.Context, body []byte) {
	j.t.count.completed.Add(1)
	j.ask(ctx)
	j.put()
	h := j.w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = j.w.Write(body)
}

// ask learns how long the job took, unless that is known.
func (j *job) ask(ctx context.Context) {
	if j.report.Executed > 0 && j.report.Worker != "" {
		return
	}
	ctx, done := context.WithTimeout(ctx, tailTime)
	defer done()
	if s, err := j.t.status(ctx, j.q, j.id); err == nil {
		j.note(&s)
	}
}

// fail ends the answer without success: with a status while nothing has gone out, by breaking off afterwards. An error
// event would go through to the caller; the gateway tells a broken body from a whole one without it.
func (j *job) fail(f *failure) {
	j.log(f)
	if !j.wrote {
		j.t.count.failed.Add(1)
		j.put()
		writeFailure(j.w, f)
		return
	}
	if s := j.stream; s.done || s.ended { // what failed came after the answer
		if f, cut := s.finish(); f == nil && !cut && j.deliver() {
			j.t.count.completed.Add(1)
			j.put()
			return
		}
	}
	j.t.count.truncated.Add(1)
	j.put()
	panic(http.ErrAbortHandler)
}

// log tells operators what the caller is not told.
func (j *job) log(f *failure) {
	if f.python {
		j.t.count.pythonErrors.Add(1)
	}
	level := slog.LevelWarn
	if f.status == http.StatusBadRequest || f.status == http.StatusUnprocessableEntity {
		level = slog.LevelInfo // the request's own fault
	}
	j.t.opt.Log.Log(j.r.Context(), level, "a job failed", "endpoint", j.q.id, "job", j.id, "request_id", j.r.Header.Get("X-Request-Id"),
		"status", f.status, "code", f.code, "begun", j.wrote, "cause", j.q.redact(f.cause))
}

const cutNote = "the worker cuts characters in its streams: worker-vllm 2.24.0 to at least 2.25.2 decodes each piece by itself; use an image with a later release, or with 2.23"

// put leaves the report for the gateway.
func (j *job) put() {
	to := endpoint.ReportTo(j.r.Context())
	if to == nil {
		return
	}
	r := j.report
	if r.Destroyed = j.destroyed(); r.Destroyed > 0 {
		r.Note = cutNote
	}
	if r.Worker != "" {
		r.Handing, r.Submitted = j.handing, j.began.Add(-j.handing/2)
	}
	to.Put(r)
}

func (j *job) destroyed() int {
	if j.stream != nil {
		return j.stream.cuts.n
	}
	return j.plain.cuts.n
}
