package jobs

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/time/rate"
)

const (
	// tailTime is how long after a stream's last event its job may take to end, and to tell how long it took. The caller
	// has everything by then, and waits for the end of the body only.
	tailTime = 800 * time.Millisecond
	// statusEvery is how often a job is looked at whose stream cannot be read any more.
	statusEvery = time.Second
	maxPause    = 2 * time.Second // between polls that RunPod turned down
	// rateWindow is the time that RunPod's limits of an endpoint are for: nobody has to wait longer for a call to be taken.
	rateWindow = 10 * time.Second
)

// follow reads the job's stream until the job has ended and nothing is left in it.
func (j *job) follow(ctx context.Context) {
	var last news // with which the job has ended
	early := 0    // polls in a row that came back before their time, without news
	ctx, tooLate := context.WithCancel(ctx)
	defer tooLate()
	for {
		if j.stream != nil && j.stream.done && !j.over {
			j.over = true
			defer time.AfterFunc(tailTime, tooLate).Stop() //nolint:gocritic // once: over stays true
		}
		asked := j.t.opt.Now()
		n, f, lost := j.poll(ctx)
		switch {
		case j.stream != nil && j.stream.done && (ctx.Err() != nil || f != nil || lost): // all was said
			j.end(ctx, &news{Status: statusCompleted})
			return
		case ctx.Err() != nil:
			return
		case f != nil:
			j.fail(f)
			return
		case lost:
			if !j.recover(ctx) {
				return
			}
			continue
		}
		if !j.take(ctx, &n) {
			return
		}
		if terminal(n.Status) {
			last = n
		}
		switch {
		case len(n.Yields) > 0:
			early = 0
			continue
		case last.Status != "":
			j.over = true
			j.end(ctx, &last)
			return
		case n.Status == "": // a bare list never says that the job has ended
			if s, err := j.t.status(ctx, j.q, j.id); err == nil && terminal(s.Status) {
				last = s
				continue
			}
		}
		if j.t.opt.Now().Sub(asked) >= j.t.opt.Wait/2 {
			early = 0
		} else if early++; early > 1 { // polls are not held: leave RunPod some air
			if sleep(ctx, min(10*time.Millisecond<<min(early, 7), time.Second)) != nil {
				return
			}
		}
	}
}

// poll reads the stream once. It goes on until RunPod has answered or may have: lost says that yields may have been taken
// out of the stream that did not come here.
func (j *job) poll(ctx context.Context) (n news, f *failure, lost bool) {
	path := "/stream/" + j.id + "?wait=" + strconv.FormatInt(j.t.opt.Wait.Milliseconds(), 10)
	pause := 50 * time.Millisecond
	for unsent := 0; ; pause = min(2*pause, maxPause) {
		if sleep(ctx, j.t.pollTurn(j.q)) != nil {
			return n, nil, false
		}
		a := j.pollOnce(ctx, path)
		switch {
		case ctx.Err() != nil:
			return n, nil, false
		case a.err != nil && a.sent == 0:
			if unsent++; unsent > 5 {
				return n, unreachable(a.err), false
			}
		case a.err != nil:
			j.lost(a.err.Error())
			return n, nil, true
		case a.status/100 == 2:
			return j.read(&a)
		case a.status == http.StatusTooManyRequests: // turned down before anything was taken
			j.t.count.pollsThrottled.Add(1)
			pause = max(pause, min(retryAfter(a.header), rateWindow))
		case a.status == http.StatusNotFound:
			f := ofAnswer(a.status, a.header, a.body)
			if strings.Contains(strings.ToLower(f.cause), textEndpointNotFound) {
				return n, f, false
			}
			if j.seen || j.t.opt.Now().Sub(j.began) >= j.t.opt.Early404 {
				j.over = j.seen // one that RunPod never knew may still turn up, and run for nobody
				return n, gone(), false
			}
			j.t.count.earlyNotFound.Add(1)
		case a.status == http.StatusUnauthorized, a.status == http.StatusForbidden:
			return n, ofAnswer(a.status, a.header, a.body), false
		default:
			j.lost(errStatus(a.status).Error())
			return n, nil, true
		}
		if sleep(ctx, pause) != nil {
			return n, nil, false
		}
	}
}

// RunPod takes 2000 polls in 10 s of an endpoint's streams. Ours stay below that, so that none has to be turned down: a poll that
// waits for its turn brings all that was yielded meanwhile.
const (
	pollsAtOnce    = 200
	pollsPerSecond = 175 // with those at once, 1950 in 10 s
)

// pollTurn is how long the next poll of an endpoint has to wait. It is to be made then.
func (t *Translator) pollTurn(q *queue) time.Duration {
	t.paceMu.Lock()
	of := t.pace[q.base]
	if of == nil {
		of = rate.NewLimiter(pollsPerSecond, pollsAtOnce)
		t.pace[q.base] = of
	}
	t.paceMu.Unlock()
	return of.Reserve().Delay()
}

func (j *job) pollOnce(ctx context.Context, path string) reply {
	ctx, done := context.WithTimeout(ctx, j.t.opt.Wait+j.t.opt.CallTimeout)
	defer done()
	return j.t.call(ctx, j.q, http.MethodGet, path, nil)
}

// read takes a poll's answer apart.
func (j *job) read(a *reply) (n news, f *failure, lost bool) {
	n, err := parseNews(a.body)
	queued := n.Status == statusQueued && len(n.Yields) == 0 && !j.any
	if err != nil {
		j.lost("the answer is not the JSON that was expected")
		return n, nil, true
	}
	j.seen = true
	if a.sent > 1 && !queued { // the first one may have been answered too
		j.lost("the transport sent it twice")
		return n, nil, true
	}
	switch n.Status {
	case "", statusQueued, statusProgress, statusRunning, statusCompleted, statusFailed, statusCancelled, statusTimedOut:
	default:
		j.t.count.unknownStatus.Add(1)
		j.t.opt.Log.Debug("a job has a status that is in no list", "endpoint", j.q.id, "job", j.id, "status", clip(n.Status))
	}
	return n, nil, false
}

func (j *job) lost(cause string) {
	j.t.count.pollsLost.Add(1)
	j.t.opt.Log.Warn("a poll of a job's stream was lost", "endpoint", j.q.id, "job", j.id, "cause", j.q.redact(cause))
}

// recover goes on after a lost poll: what RunPod has handed out once it does not hand out again, but nothing was lost while
// the job was queued, and its status may have the whole output once it has ended. It says whether the stream is to be read on.
func (j *job) recover(ctx context.Context) (goOn bool) {
	for try := 0; ; try++ {
		n, err := j.t.status(ctx, j.q, j.id)
		code, answered := errors.AsType[errStatus](err)
		switch {
		case ctx.Err() != nil:
			return false
		case err == nil && n.Status == statusQueued && !j.any, answered && code == http.StatusNotFound && !j.seen:
			return true
		case err != nil && try < 2, err == nil && j.plain != nil && !terminal(n.Status): // a plain answer can wait for its end
			if sleep(ctx, statusEvery) != nil {
				return false
			}
			continue
		case err == nil && n.Status == statusCompleted && !j.wrote:
			j.over = true
			j.note(&n)
			if j.stream != nil {
				j.stream = &stream{a: j.a}
			} else {
				j.plain.reset()
			}
			j.any = false
			j.end(ctx, &n)
		case err == nil && terminal(n.Status) && n.Status != statusCompleted:
			j.over = true
			j.end(ctx, &n)
		default:
			j.fail(broken("poll_lost", "a part of the worker's answer was lost on the way"))
		}
		return false
	}
}

func broken(code, why string) *failure {
	return &failure{status: http.StatusBadGateway, code: code, message: "The answer broke off: " + why + "."}
}

// take passes on what a poll has brought. It returns false when the answer has ended.
func (j *job) take(ctx context.Context, n *news) bool {
	now := j.t.opt.Now()
	has := len(n.Yields) > 0
	first := has && !j.any
	since := j.heard
	if !j.any {
		since = j.began
	}
	check := now.Sub(since) >= j.t.opt.StallAfter && (has || j.any && now.Sub(j.checked) >= j.t.opt.StallAfter)
	if first {
		if j.any = true; check {
			j.retries = -1 // it may have changed hands before
		}
	}
	if check {
		j.checked = now
		s, err := j.t.status(ctx, j.q, j.id)
		switch {
		case ctx.Err() != nil:
			return false
		case err != nil && has && !first:
			j.fail(broken("worker_unknown", "nobody can say whether another worker has begun anew"))
			return false
		case err == nil && j.moved(&s):
			j.fail(workerLost())
			return false
		}
	}
	if j.any && j.moved(n) {
		j.fail(workerLost())
		return false
	}
	return j.pass(n, now)
}

func workerLost() *failure {
	return broken("worker_lost", "its worker was lost and another one has begun anew")
}

// moved tells whether the job has changed hands since its first yield. Nobody knows whether its stream then begins anew.
func (j *job) moved(n *news) bool {
	j.note(n)
	moved := false
	if n.retries {
		moved = j.retries >= 0 && n.Retries > j.retries
		j.retries = n.Retries
	}
	if n.Worker != "" {
		moved = moved || j.worker != "" && n.Worker != j.worker
		j.worker = n.Worker
	}
	return moved
}

// note gathers what the gateway is told of the job.
func (j *job) note(n *news) {
	r := &j.report
	r.Worker = cmp.Or(n.Worker, r.Worker)
	r.Executed, r.Delayed = max(n.Executed, r.Executed), max(n.Delayed, r.Delayed)
	r.Redone = max(n.Retries, r.Redone)
}

// pass hands yields on.
func (j *job) pass(n *news, now time.Time) bool {
	for _, v := range n.Yields {
		j.heard = now
		var f *failure
		if j.stream != nil {
			f = j.stream.add(v)
		} else {
			f = j.plain.add(v)
		}
		if f != nil {
			if j.deliver() {
				j.fail(f)
			}
			return false
		}
	}
	return j.deliver()
}

// deliver sends the events that are whole. It returns false when the caller has left.
func (j *job) deliver() bool {
	if j.stream == nil {
		return true
	}
	out := j.stream.take()
	if len(out) == 0 {
		return true
	}
	if !j.wrote {
		j.wrote = true
		h := j.w.Header()
		h.Set("Content-Type", "text/event-stream; charset=utf-8")
		h.Set("Cache-Control", "no-cache")
	}
	if _, err := j.w.Write(out); err != nil {
		return false
	}
	j.stream.drop()
	return http.NewResponseController(j.w).Flush() == nil
}
