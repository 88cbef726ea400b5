package probe

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"headrace/gateway/forward"
	"headrace/gateway/openai"
	"headrace/gateway/sse"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// Paths below a host's base URL.
const (
	chatPath        = "/chat/completions"
	completionsPath = "/completions"
	embeddingsPath  = "/embeddings"
	modelsPath      = "/models"
)

// answer is how a host took a request of ours.
type answer struct {
	class  outcome.Class
	status int    // 0 when none came
	body   []byte // as far as it was read
}

// maxAnswer is how much of an answer is read, in bytes: a list of models may be long.
const maxAnswer = 512 << 10

// message is one of a chat.
type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// question is the body of a request.
type question struct {
	Model       json.RawMessage `json:"model"` // null where nobody knows the model's id
	Messages    []message       `json:"messages,omitempty"`
	Prompt      any             `json:"prompt,omitempty"` // a text, or numbers of tokens
	Input       string          `json:"input,omitempty"`
	MaxTokens   int             `json:"max_tokens,omitempty"`
	Temperature *float64        `json:"temperature,omitempty"`
	// Of vLLM and engines like it: the last message is not closed but gone on with.
	Continue  bool  `json:"continue_final_message,omitempty"`
	AddPrompt *bool `json:"add_generation_prompt,omitempty"`
	// Likewise: the answer tells the numbers of its tokens.
	TokenIDs bool `json:"return_token_ids,omitempty"`
	Stream   bool `json:"stream,omitempty"`
}

// name is how the host knows the model.
func name(ep *endpoint.Endpoint, served string) json.RawMessage {
	for i := range ep.Served {
		if ep.Served[i].Name == served && ep.Served[i].Unnamed {
			return json.RawMessage("null")
		}
	}
	return openai.AppendString(nil, served)
}

// smallest asks the host for as little as shows that it is well: one token, where it makes any.
func (p *Prober) smallest(ctx context.Context, ep *endpoint.Endpoint, served string) answer {
	by := time.Now().Add(p.within(ep))
	q := question{Model: name(ep, served), MaxTokens: 1, Temperature: new(0.0)}
	var path string
	switch {
	case ep.Routes == nil, slices.Contains(ep.Routes, chatPath):
		path, q.Messages = chatPath, []message{{"user", "Say yes."}}
	case slices.Contains(ep.Routes, completionsPath):
		path, q.Prompt = completionsPath, "One, two,"
	case slices.Contains(ep.Routes, embeddingsPath):
		path, q = embeddingsPath, question{Model: q.Model, Input: "yes"}
	default:
		return p.listed(ctx, ep, served, by, nil)
	}
	a := p.post(ctx, ep, path, &q, by)
	if a.class == outcome.CallerFault { // it makes no tokens that way, or not so few: is it the one we mean at all?
		return p.listed(ctx, ep, served, by, &a)
	}
	return a
}

// listed asks the host for its models: it is well when it lists the one, or when it knows no such list but refused what it was
// asked before as an engine does. Another machine may have got its address, and many a server answers 404 to everything. refusal
// is nil where nothing was asked before.
func (p *Prober) listed(ctx context.Context, ep *endpoint.Endpoint, served string, by time.Time, refusal *answer) answer {
	a := p.send(ctx, ep, "GET", modelsPath, nil, by)
	if a.class == outcome.CallerFault && refusal == nil && len(ep.Routes) > 0 { // a request without its input costs nothing anywhere
		b := p.send(ctx, ep, "POST", ep.Routes[0], slices.Concat([]byte(`{"model":`), name(ep, served), []byte("}")), by)
		if b.class != outcome.CallerFault {
			return b
		}
		refusal = &b
	}
	switch {
	case a.class == outcome.CallerFault && refusal != nil && refusal.ofEngine():
		a.class = outcome.Success
	case a.class == outcome.CallerFault:
		a.class = outcome.UpstreamFault
	case a.class == outcome.Success && len(a.body) < maxAnswer && !lists(a.body, name(ep, served)):
		a.class = outcome.UpstreamFault
	}
	return a
}

// ofEngine tells whether a refusal speaks of the request, in OpenAI's shape, and not of the path.
func (a *answer) ofEngine() bool {
	if a.status == http.StatusNotFound || a.status == http.StatusMethodNotAllowed {
		return false
	}
	var c openai.Chunk
	c.ParseBody(a.body)
	return c.Error && !c.Malformed
}

func lists(body []byte, id json.RawMessage) bool {
	var list struct {
		Data []struct {
			ID json.RawMessage `json:"id"`
		} `json:"data"`
	}
	if json.Unmarshal(body, &list) != nil {
		return false
	}
	var want string
	if json.Unmarshal(id, &want) != nil || want == "" {
		return len(list.Data) > 0
	}
	for i := range list.Data {
		var got string
		if json.Unmarshal(list.Data[i].ID, &got) == nil && got == want {
			return true
		}
	}
	return false
}

// within is how long the host may take to answer.
func (p *Prober) within(ep *endpoint.Endpoint) time.Duration {
	asleep := ep.State == endpoint.Cold || ep.State == endpoint.Starting || ep.Tenure == endpoint.Serverless && ep.Workers == 0
	if !asleep {
		return p.opt.Within
	}
	most := p.set.Load().ColdStart
	if ep.Price.ColdStart > 0 {
		most = min(most, coldStarts*ep.Price.ColdStart)
	}
	return max(p.opt.Within, most)
}

// coldStarts is how many times as long as usual a worker's start may take.
const coldStarts = 4

func (p *Prober) post(ctx context.Context, ep *endpoint.Endpoint, path string, q *question, by time.Time) answer {
	body, err := json.Marshal(q)
	if err != nil {
		panic("BUG: a question that JSON cannot hold: " + err.Error())
	}
	a := p.send(ctx, ep, "POST", path, body, by)
	if a.class == outcome.Success && !tokens(a.body) {
		a.class = outcome.UpstreamFault
	}
	return a
}

// tokens tells whether a whole answer, or a stream that nobody asked for, carries any output.
func tokens(body []byte) bool {
	var c openai.Chunk
	if t := bytes.TrimSpace(body); len(t) > 0 && t[0] == '{' {
		c.ParseBody(t)
		return !c.Error && !c.Malformed && (c.Content || c.Finish)
	}
	var events sse.Scanner
	for rest := body; ; {
		ev, ok := events.Next(rest)
		if !ok {
			return false
		}
		rest = rest[ev.Size:]
		if c.Parse(ev.Name, ev.Data); ev.HasData && !c.Error && (c.Content || c.Finish) {
			return true
		}
	}
}

// send sends one request and reads its answer. A host that has left the fleet meanwhile is nobody's fault.
func (p *Prober) send(ctx context.Context, ep *endpoint.Endpoint, method, path string, body []byte, by time.Time) (a answer) {
	host := p.opt.Forward.Host(ep.ID)
	if host == nil {
		return answer{class: outcome.Unserved}
	}
	var guard forward.Guard
	defer context.AfterFunc(ctx, guard.Abort)()
	began := time.Now()
	id := newID()
	req := forward.Request{Method: method, Path: path, Size: len(body), Header: []byte("Accept: application/json\r\nX-Headrace-Probe: 1\r\nX-Request-Id: " + id + "\r\n")}
	if body != nil {
		req.Header = append(req.Header, "Content-Type: application/json\r\n"...)
		req.Body = [][]byte{body}
	}
	var t forward.Attempt
	defer t.Finish()
	err := p.exchange(&t, host, &guard, &req, by, &a)
	a.class = p.judge(ep, &t, &a, err)
	if p.opt.Answered != nil && a.class == outcome.Success {
		w, _ := t.Report()
		p.opt.Answered(ep, w)
	}
	p.opt.Log.Debug("probe", "endpoint", ep.ID, "request_id", id, "path", path, "class", a.class, "status", a.status, "seconds", time.Since(began).Seconds(), "error", err)
	return a
}

// exchange carries one request.
func (p *Prober) exchange(t *forward.Attempt, host *forward.Host, guard *forward.Guard, req *forward.Request, by time.Time, a *answer) error {
	if err := t.Start(host, guard, req, time.Now()); err != nil {
		return err
	}
	if err := t.AwaitHead(by); err != nil {
		return err
	}
	a.status = t.Status
	for len(t.Unread()) < maxAnswer {
		if err := t.More(by, 0); err != nil {
			a.body = bytes.Clone(t.Unread())
			if errors.Is(err, io.EOF) || t.Full(err) {
				return nil
			}
			return err
		}
	}
	a.body = bytes.Clone(t.Unread())
	return nil
}

var html = []byte("text/html")

// judge finds the class of an answer, or of the error in its place.
func (p *Prober) judge(ep *endpoint.Endpoint, t *forward.Attempt, a *answer, err error) outcome.Class {
	oe, ok := errors.AsType[*outcome.Error](err)
	switch {
	case ok:
		return oe.Class
	case errors.Is(err, forward.ErrInterrupted):
		return outcome.Moved // its operator wants nothing of ours there
	case errors.Is(err, os.ErrDeadlineExceeded):
		return outcome.FirstByteTimeout
	case errors.Is(err, net.ErrClosed):
		return outcome.ClientGone // it was us
	case err != nil:
		return outcome.Truncated
	}
	class := outcome.OfStatus(a.status)
	ct := t.Head.ContentType()
	odd := class == outcome.Success && bytes.HasPrefix(bytes.ToLower(ct), html)
	status := a.status
	if class == outcome.Success && !odd {
		var c openai.Chunk
		if c.ParseBody(a.body); c.Malformed || !c.Error {
			return class
		}
		class, status = outcome.UpstreamFault, c.ErrorStatus
		if status >= 400 {
			class = outcome.OfStatus(status)
		}
	}
	if odd {
		class = outcome.UpstreamFault
	}
	if p.opt.Classify != nil {
		if c, known := p.opt.Classify(ep, status, string(ct), a.body); known {
			return c
		}
	}
	return class
}

// newID returns a request id that no caller's is like.
func newID() string { return "req_probe_" + strings.ToLower(rand.Text()) }
