package fakerunpod

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Largest bodies, in bytes.
const (
	maxRun      = 10 << 20
	maxRunSync  = 20 << 20
	maxBalancer = 30 << 20
)

// Holds of a request whose caller sets none, and the range of those it may set.
const (
	syncWait   = 90 * time.Second
	streamWait = 10 * time.Second
	minWait    = time.Second
	maxWait    = 300 * time.Second
)

// call is one request of the queue API.
type call struct {
	c  *Cloud
	e  *Endpoint
	w  http.ResponseWriter
	r  *http.Request
	op string
	id string // of a job
}

// methods are those of each operation. "!" marks operations on a job.
var methods = map[string]string{
	"run": "POST", "runsync": "POST", "purge-queue": "POST", "health": "GET", "requests": "GET", "metrics": "GET",
	"status": "GET POST !", "status-sync": "GET POST !", "stream": "GET POST !", "cancel": "POST !", "retry": "POST !",
}

// serveQueue answers /v2/ID/….
func (c *Cloud) serveQueue(w http.ResponseWriter, r *http.Request, path string) {
	if err := c.authorize(r, true); err != nil {
		envelope(w, http.StatusUnauthorized, err.Error())
		return
	}
	id, rest, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	e := c.endpointByID(id)
	if e == nil {
		envelope(w, http.StatusNotFound, "endpoint not found")
		return
	}
	q := &call{c: c, e: e, w: w, r: r}
	q.op, q.id, _ = strings.Cut(rest, "/")
	if e.cfg.Type == LoadBalancer && q.op != "health" {
		writeJSON(w, c.cfg.WrongTypeCode, map[string]string{"error": "not allowed for QB API"})
		return
	}
	m := methods[q.op]
	switch {
	case q.op == "openai":
	case m == "" || strings.HasSuffix(m, "!") != (q.id != ""):
		envelope(w, http.StatusNotFound, "not found")
		return
	case !slices.Contains(strings.Fields(m), r.Method):
		envelope(w, http.StatusMethodNotAllowed, "method not allowed")
		return
	}
	e.mu.Lock()
	running := 0
	for _, k := range e.workers {
		if k.up {
			running++
		}
	}
	crowded := c.cfg.QueueLimit && (q.op == "run" || q.op == "runsync" || q.op == "openai") && len(e.queue) > 50 && len(e.queue) > 500*e.workersMax
	e.mu.Unlock()
	done, ok := e.limits.begin(q.op, c.cfg.RateLimits, running)
	if ok {
		defer done()
	}
	refused := !ok || crowded
	e.counted(q.op, refused)
	if refused {
		c.tooMany(w, c.cfg.RateLimits.RetryAfter)
		return
	}
	q.serve()
}

func (q *call) serve() {
	switch q.op {
	case "openai":
		q.openAI()
	case "run":
		q.run()
	case "runsync":
		q.runSync()
	case "health":
		writeJSON(q.w, http.StatusOK, q.e.health())
	case "metrics":
		writeJSON(q.w, http.StatusOK, q.e.metrics())
	case "requests":
		q.requests()
	case "purge-queue":
		q.purge()
	case "status", "status-sync":
		q.status()
	case "stream":
		q.stream()
	case "cancel":
		q.cancel()
	case "retry":
		q.retry()
	}
}

// body reads the request, no larger than most bytes.
func (q *call) body(most int64) ([]byte, bool) {
	b, err := io.ReadAll(http.MaxBytesReader(q.w, q.r.Body, most))
	if err == nil {
		return b, true
	}
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		tooLarge(q.w, q.r)
		return nil, false
	}
	panic(http.ErrAbortHandler) // the client left before it had said all
}

// platformFault carries out a failure of the platform; it says whether the request goes on.
func (q *call) platformFault() (goOn, lose bool) {
	q.e.mu.Lock()
	f := q.e.takeFault(true)
	q.e.mu.Unlock()
	switch f {
	case Opaque500:
		envelope(q.w, http.StatusInternalServerError, "internal server error")
	case TooMany:
		q.c.tooMany(q.w, q.c.cfg.RateLimits.RetryAfter)
	case TooManyWait:
		q.c.tooMany(q.w, time.Second)
	case Hang:
		<-q.r.Context().Done()
		panic(http.ErrAbortHandler)
	case LostAnswer:
		return true, true
	default:
		return true, false
	}
	return false, false
}

// take reads a job and puts it into the queue; nil when it answered instead.
func (q *call) take(prefix string, most int64, keep time.Duration) *job {
	b, ok := q.body(most)
	if !ok {
		return nil
	}
	goOn, lose := q.platformFault()
	if !goOn {
		return nil
	}
	var in struct {
		Input  json.RawMessage `json:"input"`
		Policy policy          `json:"policy"`
	}
	if json.Unmarshal(b, &in) != nil || len(in.Input) == 0 || string(in.Input) == "null" {
		envelope(q.w, http.StatusBadRequest, "input is required")
		return nil
	}
	q.e.mu.Lock()
	j := q.e.submit(prefix, in.Input, in.Policy, keep)
	q.e.mu.Unlock()
	if lose {
		reset(q.r)
	}
	return j
}

func (q *call) run() {
	if j := q.take("", maxRun, q.c.cfg.RunRetention); j != nil {
		writeJSON(q.w, http.StatusOK, view{ID: j.id, Status: inQueue})
	}
}

// wait is how long the caller lets the request be held.
func (q *call) wait(preset time.Duration) time.Duration {
	d := preset
	if ms, err := strconv.ParseInt(q.r.URL.Query().Get("wait"), 10, 64); err == nil {
		d = min(max(time.Duration(ms)*time.Millisecond, minWait), maxWait)
	}
	return q.c.limit(d)
}

// hold waits until ready says so under the endpoint's lock, the caller's wait is over, or the edge's patience is, which it
// answers itself. late tells of the edge, and of a client that left.
func (q *call) hold(j *job, wait time.Duration, ready func() bool) (late bool) {
	over := time.NewTimer(wait)
	defer over.Stop()
	edge := time.NewTimer(q.c.limit(q.c.cfg.EdgeFirstByte))
	defer edge.Stop()
	for {
		q.e.mu.Lock()
		ok, changed := ready(), j.changed.wait()
		q.e.mu.Unlock()
		if ok {
			return false
		}
		select {
		case <-changed:
		case <-over.C:
			return false
		case <-edge.C:
			timeout(q.w)
			return true
		case <-q.r.Context().Done():
			panic(http.ErrAbortHandler)
		}
	}
}

func (q *call) runSync() {
	j := q.take("sync-", maxRunSync, q.c.cfg.SyncRetention)
	if j == nil || q.hold(j, q.wait(syncWait), func() bool { return terminal(j.status) }) {
		return
	}
	q.e.mu.Lock()
	v := j.view()
	q.e.mu.Unlock()
	if !terminal(v.Status) {
		v = view{ID: v.ID, Status: v.Status}
	}
	writeJSON(q.w, http.StatusOK, v)
}

// find returns the job that the request names; nil when it answered 404.
func (q *call) find(early bool) *job {
	q.e.mu.Lock()
	j := q.e.jobs[q.id]
	if j != nil && early && time.Now().Before(j.visible) {
		j = nil
	}
	q.e.mu.Unlock()
	if j == nil {
		envelope(q.w, http.StatusNotFound, "job not found")
	}
	return j
}

func (q *call) status() {
	j := q.find(true)
	if j == nil {
		return
	}
	if q.op == "status-sync" && q.hold(j, q.wait(syncWait), func() bool { return terminal(j.status) }) {
		return
	}
	q.e.mu.Lock()
	v := j.view()
	q.e.mu.Unlock()
	writeJSON(q.w, http.StatusOK, v)
}

// item is one yield in an answer of /stream.
type item struct {
	Output json.RawMessage `json:"output"`
}

func (q *call) stream() {
	j := q.find(true)
	if j == nil {
		return
	}
	known := func() bool { return q.e.jobs[j.id] == j }
	if q.hold(j, q.wait(streamWait), func() bool { return len(j.buffer) > 0 || terminal(j.status) || !known() }) {
		return
	}
	q.e.mu.Lock()
	v, got, ok := j.view(), j.drain(), known()
	lose := len(got) > 0 && q.e.losing > 0
	if lose {
		q.e.losing--
	}
	q.e.mu.Unlock()
	if lose {
		reset(q.r)
	}
	if !ok {
		envelope(q.w, http.StatusNotFound, "job not found")
		return
	}
	items := make([]item, len(got))
	for i, y := range got {
		items[i].Output = y
	}
	answer := struct {
		Status  string `json:"status"`
		Stream  []item `json:"stream"`
		Worker  string `json:"workerId,omitempty"`
		Retries int    `json:"retries,omitempty"`
	}{Status: v.Status, Stream: items}
	switch {
	case q.c.cfg.BareStream:
		writeJSON(q.w, http.StatusOK, items)
		return
	case q.c.cfg.StreamTellsWorker:
		answer.Worker, answer.Retries = v.Worker, v.Retries
	}
	writeJSON(q.w, http.StatusOK, answer)
}

func (q *call) cancel() {
	q.e.with(func() { q.e.stats.Cancels++ })
	j := q.find(false)
	if j == nil {
		return
	}
	q.e.mu.Lock()
	if !terminal(j.status) {
		j.stop()
		j.end(cancelled, "")
		q.e.move()
	}
	status := j.status
	q.e.mu.Unlock()
	writeJSON(q.w, http.StatusOK, view{ID: j.id, Status: status})
}

func (q *call) retry() {
	j := q.find(false)
	if j == nil {
		return
	}
	q.e.mu.Lock()
	ok := j.status == failed || j.status == timedOut
	if ok {
		j.forgets.Stop()
		j.errText, j.buffer, j.aggregate, j.attempt, j.retries, j.ended = "", nil, nil, nil, 0, time.Time{}
		j.submitted = time.Now()
		q.e.queue = append(q.e.queue, j)
		j.set(inQueue)
		q.e.move()
	}
	q.e.mu.Unlock()
	if !ok {
		envelope(q.w, http.StatusBadRequest, "job cannot be retried")
		return
	}
	writeJSON(q.w, http.StatusOK, view{ID: j.id, Status: inQueue})
}

func (q *call) purge() {
	q.e.mu.Lock()
	waiting := slices.Clone(q.e.queue)
	for _, j := range waiting {
		j.end(cancelled, "")
	}
	q.e.mu.Unlock()
	writeJSON(q.w, http.StatusOK, struct {
		Removed int    `json:"removed"`
		Status  string `json:"status"`
	}{len(waiting), "completed"})
}

// requests lists what is queued or runs; the shape is not known.
func (q *call) requests() {
	list := []view{}
	q.e.mu.Lock()
	for _, j := range q.e.jobs {
		if !terminal(j.status) {
			list = append(list, j.view())
		}
	}
	q.e.mu.Unlock()
	writeJSON(q.w, http.StatusOK, map[string]any{"requests": list})
}
