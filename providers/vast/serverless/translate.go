package serverless

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"headrace/router/endpoint"
)

// nameLabel is the label of an endpoint's name at Vast.ai.
const nameLabel = "vast_endpoint"

// translator stands for an endpoint with Dialect VastRoute: it takes OpenAI requests, asks for a worker and has it answer.
type translator struct {
	p         *Provider
	id        endpoint.ID
	name      string
	key       endpoint.Secret // the endpoint's own
	base      string          // of the engine
	encrypted bool            // prompts may go to workers only under TLS
	workers   http.RoundTripper
	unfit     error // why no worker can be called
}

// Handler returns what stands for ep, whose Dialect is VastRoute: it gets OpenAI requests below /v1.
func (p *Provider) Handler(ep endpoint.Endpoint) http.Handler {
	t := &translator{p: p, id: ep.ID, name: ep.Labels[nameLabel], key: ep.APIKey, base: strings.TrimRight(ep.BaseURL, "/"), encrypted: ep.Encrypted()}
	if t.name == "" {
		t.name = strings.TrimPrefix(string(ep.ID), idPrefix)
	}
	t.workers, t.unfit = p.transport(ep.TLS)
	return t
}

// transport returns the connections to workers that prove themselves as t says. A RoundTripper alone follows no
// redirect: a worker that names another address is not obeyed.
func (p *Provider) transport(t endpoint.TLS) (http.RoundTripper, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if tr := p.ways[t]; tr != nil {
		return tr, nil
	}
	cfg, err := t.Config("")
	if err != nil {
		return nil, err
	}
	tr := &http.Transport{
		TLSClientConfig: cfg, DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext, TLSHandshakeTimeout: 5 * time.Second,
		MaxIdleConnsPerHost: 16, IdleConnTimeout: 30 * time.Second, DisableCompression: true,
	}
	p.ways[t] = tr
	return tr, nil
}

// call is one request on its way.
type call struct {
	*translator
	w     http.ResponseWriter
	path  string
	body  []byte
	form  PayloadForm
	began time.Time

	wait    context.Context // the request's, and over when that has waited for a worker long enough
	reroute int             // routes asked for after the first because a worker failed
	worker  string          // host of the last worker
	waited  time.Duration   // until it was called
	sent    time.Time
	status  int    // of the last worker
	first   *reply // what the other form was answered with
}

// reply is an answer that is no success.
type reply struct {
	status      int
	contentType string
	retryAfter  string
	body        []byte
}

// ServeHTTP answers one request.
func (t *translator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost || (r.URL.Path != "/v1/chat/completions" && r.URL.Path != "/v1/completions") {
		refuse(w, badPath, 0)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler) // the gateway broke off: nobody is there to be told
	}
	if body = bytes.TrimSpace(body); len(body) == 0 || body[0] != '{' || !json.Valid(body) { // it becomes a part of our own JSON
		refuse(w, badJSON, 0)
		return
	}
	if t.unfit != nil {
		t.p.opt.Log.Error("workers cannot be called", "endpoint", t.id, "error", t.unfit)
		refuse(w, setUp, 0)
		return
	}
	wait, cancel := context.WithTimeout(r.Context(), t.p.opt.MaxWait)
	defer cancel()
	c := &call{translator: t, w: w, path: r.URL.Path, body: body, form: t.p.form(t.name), began: t.p.opt.Now(), wait: wait}
	if f := c.do(r.Context()); f != none {
		if r.Context().Err() != nil {
			panic(http.ErrAbortHandler)
		}
		c.report(r.Context())
		refuse(w, f, c.status)
	}
}

// do asks for routes and calls workers until one has answered.
func (c *call) do(ctx context.Context) fault {
	cost := costOf(c.body)
	for {
		to, f := c.route(c.wait, cost)
		if f != none {
			return f
		}
		res, head, err := c.ask(ctx, to) //nolint:bodyclose // relay and drain close it
		var r *reply
		if err == nil {
			if res.StatusCode/100 == 2 {
				c.p.proved(c.name, c.form)
				c.relay(ctx, res, head)
				return none
			}
			r, err = drain(res, head)
		}
		switch {
		case ctx.Err() != nil:
			return gone
		case err != nil:
			c.p.odd("worker that gave no answer")
			if !c.again(err, true) {
				return unreachable
			}
		default:
			if done, f := c.judge(ctx, r); done {
				return f
			}
		}
	}
}

// judge decides on an answer that is no success: done is false when another route is to be asked for.
func (c *call) judge(ctx context.Context, r *reply) (done bool, f fault) {
	if c.otherForm(r) {
		c.first = r
		return false, none
	}
	if c.first != nil && r.ofForm() { // the form was right the first time
		r = c.first
	}
	c.status = r.status
	said := fmt.Errorf("worker answered with status %d", r.status)
	silent := len(bytes.TrimSpace(r.body)) == 0 // the worker's own word, where the model says something
	switch s := r.status; {
	case s == http.StatusUnauthorized: // a known fault of some workers: routes that are fine are refused (vast-cli issue 493)
		c.p.odd("route refused by its worker")
		return !c.again(said, true), refused
	case s == http.StatusTooManyRequests && silent: // its queue is longer than the endpoint's max_queue_time
		return !c.again(said, false), busy
	case s == http.StatusInternalServerError && silent:
		return !c.again(said, true), opaque
	case s < 400, s == http.StatusGone, (s > 500 || s == http.StatusRequestTimeout || s == clientClosed) && silent:
		return !c.again(said, true), failed
	case r.ofForm():
		c.p.odd("payload form that its worker does not understand")
		c.p.opt.Log.Warn("worker does not understand the request's form", "endpoint", c.id, "worker", c.worker, "said", clip(string(r.body)))
		return true, misread
	case silent: // old workers lose what the model said
		return true, bare
	}
	c.report(ctx)
	r.write(c.w)
	return true, none
}

// clientClosed is what a worker answers with when it thinks that its client has left.
const clientClosed = 499

// reroutes is how often a request is given to another worker here. One route may lead to a worker that is gone, restarts or refuses
// routes that are fine, while the endpoint is well, and Vast.ai's own client asks for a new one then; that is tried once. Whatever
// fails twice is the router's to try elsewhere, within its budgets: each worker that was given the request may bill it.
const reroutes = 1

// again makes ready for another worker; false means that there have been enough, or that nobody waits any more. After a fault it is
// asked for at once, since it may well be better.
func (c *call) again(why error, atOnce bool) bool {
	c.p.opt.Log.Debug("worker failed", "endpoint", c.id, "worker", c.worker, "error", why, "reroutes", c.reroute)
	if c.reroute >= reroutes || c.wait.Err() != nil {
		return false
	}
	c.reroute++
	return atOnce || c.pause(c.reroute) == nil
}

// pause waits as Vast.ai's client does: a second, then a random time up to 2^n, at most five.
func (c *call) pause(n int) error {
	d := 1.0
	if n > 0 {
		d = 0.1 + rand.Float64()*(min(float64(int(1)<<min(n, 10)), 5)-0.1) //nolint:gosec // spreads questions, guards nothing
	}
	t := time.NewTimer(time.Duration(d * float64(c.p.opt.Wait)))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-c.wait.Done():
		return c.wait.Err()
	}
}

// ask calls a worker. head is the beginning of its answer's body, so that a connection that breaks right behind
// the head is known for one before the caller has been promised anything.
func (c *call) ask(ctx context.Context, to *worker) (res *http.Response, head []byte, err error) {
	body := c.compose(to.auth)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to.url+c.path, bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("User-Agent", "headrace")
	c.sent = c.p.opt.Now()
	c.waited = c.sent.Sub(c.began)
	if res, err = c.workers.RoundTrip(req); err != nil {
		return nil, nil, err
	}
	head = make([]byte, readSize)
	for {
		var n int
		if n, err = res.Body.Read(head); n > 0 {
			return res, head[:n], nil
		}
		if err != nil {
			break
		}
	}
	if errors.Is(err, io.EOF) && !isStream(res) {
		return res, nil, nil
	}
	_ = res.Body.Close()
	return nil, nil, fmt.Errorf("the answer ended before its first byte: %w", err)
}

// compose wraps the caller's body, byte for byte, as the worker wants it.
func (c *call) compose(auth []byte) []byte {
	b := make([]byte, 0, len(auth)+len(c.body)+80)
	b = append(b, `{"auth_data":`...)
	b = append(b, auth...)
	b = append(b, `,"session_id":null,"payload":`...)
	if c.form == Wrapped {
		b = append(b, `{"input":`...)
	}
	b = append(b, c.body...)
	if c.form == Wrapped {
		b = append(b, '}')
	}
	return append(b, '}')
}

// otherForm switches to the other payload form if that may help and has not been tried.
func (c *call) otherForm(r *reply) bool {
	if c.first != nil || of(c.p.opt.Payload, c.name) != Auto || bytes.HasPrefix(bytes.TrimSpace(r.body), []byte(`{"auth_data"`)) {
		return false
	}
	// A worker that hands on the payload as it is makes the model complain of it. Once a form is known to be right, only
	// the worker's own complaint puts it in doubt.
	if !r.ofForm() && (c.p.isProved(c.name) || r.status != http.StatusBadRequest && r.status != http.StatusUnprocessableEntity) {
		return false
	}
	if c.form == Wrapped {
		c.form = Bare
	} else {
		c.form = Wrapped
	}
	return true
}

// ofForm tells whether it is a worker that does not understand the request: it answers with an object of member names
// and faults, where a model server has "error", "detail" or "object".
func (r *reply) ofForm() bool {
	if r.status != http.StatusUnprocessableEntity {
		return false
	}
	var m map[string]json.RawMessage
	_ = json.Unmarshal(r.body, &m) // anything else has no such members
	return m["error"] == nil && m["detail"] == nil && m["object"] == nil
}

// form is the payload form to begin with at an endpoint.
func (p *Provider) form(name string) PayloadForm {
	if f := of(p.opt.Payload, name); f != Auto {
		return f
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.forms[name]; f != Auto {
		return f
	}
	return Wrapped
}

// proved remembers what an endpoint's workers understand.
func (p *Provider) proved(name string, f PayloadForm) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forms[name] = f
}

func (p *Provider) isProved(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.forms[name] != Auto
}

// report tells the gateway who worked and for how long.
func (c *call) report(ctx context.Context) {
	to := endpoint.ReportTo(ctx)
	if to == nil || c.worker == "" {
		return
	}
	to.Put(endpoint.WorkerReport{Worker: c.worker, Delayed: c.waited, Executed: c.p.opt.Now().Sub(c.sent), Redone: c.reroute})
}

// defaultTokens stands for the answer's length where the caller sets no limit.
const defaultTokens = 512

// costOf is a request's load in the unit of Vast.ai's engine, which for language models is about a token: those of the
// answer at most, and those of the prompt at four bytes each.
func costOf(body []byte) int64 {
	var m struct {
		Tokens number `json:"max_tokens"`
		Newer  number `json:"max_completion_tokens"`
	}
	_ = json.Unmarshal(body, &m) // valid, and number takes anything
	n := max(m.Tokens, m.Newer)
	if n <= 0 {
		n = defaultTokens
	}
	return int64(min(n, 1<<20)) + int64(len(body)/4)
}

// workerURL checks where a route leads and returns it without a slash at the end.
func (t *translator) workerURL(text string) (base, host string, err error) {
	u, err := url.Parse(strings.TrimRight(text, "/"))
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || (u.Scheme != "http" && u.Scheme != "https") {
		return "", "", errors.New("the route leads to no http(s) address")
	}
	if t.encrypted && u.Scheme != "https" {
		return "", "", errPlain
	}
	return u.String(), u.Host, nil
}

var errPlain = errors.New("the worker speaks plain HTTP: anybody on the way could read the prompt")
