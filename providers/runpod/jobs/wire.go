package jobs

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Statuses of jobs. RUNNING stands in documentation for IN_PROGRESS.
const (
	statusQueued    = "IN_QUEUE"
	statusProgress  = "IN_PROGRESS"
	statusRunning   = "RUNNING"
	statusCompleted = "COMPLETED"
	statusFailed    = "FAILED"
	statusCancelled = "CANCELLED"
	statusTimedOut  = "TIMED_OUT"
)

func terminal(status string) bool {
	switch status {
	case statusCompleted, statusFailed, statusCancelled, statusTimedOut:
		return true
	}
	return false
}

// maxAnswer bounds one answer of the queue API, in bytes: a poll may bring many yields of up to 1 MB, a status all of them.
const maxAnswer = 96 << 20

// reply is one answer of the queue API.
type reply struct {
	status int
	header http.Header
	body   []byte
	err    error // no answer, or not all of it
	sent   int   // times that the request went out: net/http sends a GET again by itself when an old connection breaks
}

type errStatus int

func (e errStatus) Error() string { return fmt.Sprintf("status %d", int(e)) }

// call asks the queue API once.
func (t *Translator) call(ctx context.Context, q *queue, method, path string, body []byte) (a reply) {
	var sent atomic.Int32 // the transport's goroutines count
	var h2 atomic.Bool
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteHeaders: func() { sent.Add(1) },
		GetConn: func(string) {
			if sent.Load() > 0 && strings.HasPrefix(path, "/stream/") { // what it hands out it hands out once
				cancel()
			}
		},
		GotConn: func(c httptrace.GotConnInfo) {
			if tc, ok := c.Conn.(*tls.Conn); ok && tc.ConnectionState().NegotiatedProtocol == "h2" {
				h2.Store(true)
			}
		},
	})
	defer func() {
		if a.sent = int(sent.Load()); h2.Load() {
			a.sent = min(a.sent, 1) // HTTP/2 repeats only what the other side has said not to have looked at
		}
	}()
	req, err := http.NewRequestWithContext(ctx, method, q.base+path, bytes.NewReader(body))
	if err != nil {
		return reply{err: errors.New("the endpoint's URL is malformed")}
	}
	if body == nil {
		req.Body = http.NoBody
	} else {
		req.Header.Set("Content-Type", "application/json")
	}
	if q.key != "" {
		req.Header.Set("Authorization", "Bearer "+q.key.Reveal())
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "headrace")
	res, err := t.http.Do(req)
	if err != nil {
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err
		}
		return reply{err: err}
	}
	defer func() { _ = res.Body.Close() }()
	a = reply{status: res.StatusCode, header: res.Header}
	a.body, a.err = io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if len(a.body) > maxAnswer {
		a.err = fmt.Errorf("the answer is larger than %d bytes", maxAnswer)
	}
	if a.status/100 != 2 && len(q.key) >= 4 { // before it is cut: a half of a key tells much
		a.body = bytes.ReplaceAll(a.body, []byte(q.key.Reveal()), []byte("[redacted]"))
	}
	return a
}

// redact takes the key out of what a provider or the network says.
func (q *queue) redact(text string) string {
	if len(q.key) >= 4 {
		text = strings.ReplaceAll(text, q.key.Reveal(), "[redacted]")
	}
	return clip(text)
}

// news is what /stream or /status tells of a job.
type news struct {
	Status   string
	Yields   []json.RawMessage // of /stream
	Output   json.RawMessage   // of /status
	Error    string
	Worker   string
	Retries  int
	retries  bool // Retries was told
	Executed time.Duration
	Delayed  time.Duration
}

// told are the members of an answer that it may lack.
type told struct {
	Output    json.RawMessage `json:"output"`
	Error     json.RawMessage `json:"error"`
	Worker    json.RawMessage `json:"workerId"`
	Retries   *float64        `json:"retries"`
	Execution float64         `json:"executionTime"`
	Delay     float64         `json:"delayTime"`
}

type item struct {
	Output json.RawMessage `json:"output"`
}

// parseNews reads an answer of /stream or /status. /stream may be a bare list of yields, as one page of RunPod's shows it.
func parseNews(body []byte) (n news, err error) {
	var usual struct {
		Status string `json:"status"`
		Stream []item `json:"stream"`
		told
	}
	if json.Unmarshal(body, &usual) == nil && !slices.ContainsFunc(usual.Stream, func(i item) bool { return i.Output == nil }) {
		n = usual.told.news(usual.Status)
		for _, i := range usual.Stream {
			n.yield(i.Output)
		}
		return n, nil
	}
	var odd struct {
		Status json.RawMessage `json:"status"`
		Stream json.RawMessage `json:"stream"`
		told
	}
	body = bytes.TrimSpace(body)
	switch {
	case !json.Valid(body):
		return n, errors.New("it is not JSON")
	case body[0] == '[':
		odd.Stream = body
	case body[0] != '{':
		return n, errors.New("it is not an object")
	default:
		_ = json.Unmarshal(body, &odd) // members of other types stay empty
	}
	n = odd.told.news(word(odd.Status))
	if len(odd.Stream) == 0 {
		return n, nil
	}
	var list []json.RawMessage
	if json.Unmarshal(odd.Stream, &list) != nil {
		list = []json.RawMessage{odd.Stream}
	}
	for _, one := range list {
		var i item
		if json.Unmarshal(one, &i) == nil && i.Output != nil {
			one = i.Output
		}
		n.yield(one)
	}
	return n, nil
}

func (n *news) yield(v json.RawMessage) {
	if string(v) != "null" {
		n.Yields = append(n.Yields, v)
	}
}

func (t *told) news(status string) news {
	n := news{Status: strings.ToUpper(status), Output: t.Output, Error: word(t.Error), Worker: word(t.Worker), Executed: millis(t.Execution), Delayed: millis(t.Delay)}
	if n.Error == "" && truthy(t.Error) {
		n.Error = string(t.Error)
	}
	if string(n.Output) == "null" {
		n.Output = nil
	}
	if t.Retries != nil {
		n.Retries, n.retries = int(*t.Retries), true
	}
	return n
}

func millis(ms float64) time.Duration {
	if ms < 0 || ms > 1e12 {
		return 0
	}
	return time.Duration(ms * float64(time.Millisecond))
}

// run sends a job and returns its id.
func (t *Translator) run(q *queue, payload []byte) (id string, f *failure) {
	ctx, done := t.detached(t.opt.CallTimeout)
	defer done()
	wait := 100 * time.Millisecond
	for try := 1; ; try++ {
		a := t.call(ctx, q, http.MethodPost, "/run", payload)
		switch {
		case a.err != nil && a.sent == 0 && try < 3 && ctx.Err() == nil: // nobody saw it
			if sleep(ctx, wait) == nil {
				wait *= 2
				continue
			}
			return "", unreachable(a.err)
		case a.err != nil && a.sent == 0:
			return "", unreachable(a.err)
		case a.err != nil:
			return "", t.runLost(q, a.err.Error())
		case a.status/100 != 2:
			if a.status >= 502 {
				t.runLost(q, errStatus(a.status).Error()) // it may have been taken all the same
			}
			return "", ofAnswer(a.status, a.header, a.body)
		}
		var in struct {
			ID string `json:"id"`
		}
		if json.Unmarshal(a.body, &in) != nil || in.ID == "" || in.ID != url.PathEscape(in.ID) {
			return "", t.runLost(q, "the answer names no job")
		}
		t.count.jobs.Add(1)
		return in.ID, nil
	}
}

func unreachable(err error) *failure {
	return &failure{status: http.StatusBadGateway, code: "unreachable", message: "RunPod cannot be reached.", cause: err.Error()}
}

// runLost notes a job that may run without anyone knowing its id: only its time to live ends it.
func (t *Translator) runLost(q *queue, cause string) *failure {
	t.count.runsLost.Add(1)
	t.opt.Log.Warn("a job may have been started whose id is unknown", "endpoint", q.id, "cause", q.redact(cause), "ends_in", t.timeToLive().String())
	return &failure{status: http.StatusBadGateway, code: "bad_answer", message: "RunPod's answer to the job was lost.", cause: cause}
}

// status asks how a job is, without taking anything of its stream.
func (t *Translator) status(ctx context.Context, q *queue, id string) (n news, err error) {
	ctx, done := context.WithTimeout(ctx, t.opt.CallTimeout)
	defer done()
	a := t.call(ctx, q, http.MethodGet, "/status/"+id, nil)
	switch {
	case a.err != nil:
		return n, a.err
	case a.status/100 != 2:
		return n, errStatus(a.status)
	}
	n, err = parseNews(a.body)
	n.retries = true // absent means none here
	return n, err
}
