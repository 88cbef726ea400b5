package fakerunpod

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"strings"

	"headrace/providers/fakecloud"
)

// ask is what a handler asks its worker's engine.
type ask struct {
	method, path string
	body         []byte
	stream       bool
	native       bool // the answer is wanted as {"choices":[{"tokens":[…]}]}
}

// Texts of errors, as workers send them.
const (
	engineDead = "vLLM server process is not running; worker is unhealthy"
	traceback  = "Traceback (most recent call last):\n  File \"/usr/local/lib/python3.12/site-packages/runpod/serverless/modules/rp_job.py\", line 331, in run_job_generator\n"
)

// handlerError is what runpod-python reports of an exception of the handler: its text, and a traceback that ends with its
// class and its text.
func handlerError(class, text string) string {
	return "handler: " + text + " \ntraceback: " + traceback + class + ": " + text + "\n"
}

// workerError is an error of the worker's own, as worker-vllm since 2.24 yields it.
func workerError(text string) json.RawMessage {
	type inner struct {
		Message string  `json:"message"`
		Type    string  `json:"type"`
		Code    *string `json:"code"`
	}
	return encode(map[string]inner{"error": {Message: text, Type: "worker_error"}})
}

// handle carries the job out, as the worker's handler does below runpod-python. It returns the job's error, or gone when
// the worker does not live to tell.
func (a *attempt) handle() (errText string, gone bool) {
	if a.j.poison {
		return "", true
	}
	y := &yielder{a: a}
	fault := NoFailure
	if a.j.retries == 0 || a.j.fault == ExitTwice {
		fault = a.j.fault
	}
	switch fault {
	case WorkerExit, ExitTwice:
		return "", true
	case ExitMidStream, MidStreamError:
		y.limit = 1
	case TracebackBody:
		a.yield(encode(map[string]string{"err": "api", "traceback": traceback + "openai.APIError: upstream\n"}))
		return "", false
	case FlatBody:
		a.yield(encode(map[string]any{"object": "error", "message": "Internal server error", "type": "InternalServerError", "param": nil, "code": 500}))
		return "", false
	case HandlerError:
		return handlerError("AttributeError", "'NoneType' object has no attribute 'get'"), false
	case EngineDead:
		return y.out(workerError(engineDead)), false
	case TimedOutJob:
		e := a.j.e
		e.mu.Lock()
		if a.j.attempt == a {
			a.j.end(timedOut, "")
		}
		e.mu.Unlock()
		return "", false
	case RefusedJob:
		return y.refuse(http.StatusBadRequest, []byte(`{"error":{"message":"This model's maximum context length is 4096 tokens. However, your request has 5000 input tokens. Please reduce the length of the input messages.","type":"BadRequestError","param":"input_tokens","code":400}}`)), false
	default: // the platform's were carried out when the request came, those in the middle come below
	}
	q, errText := a.ask()
	if errText != "" {
		return errText, false
	}
	if a.j.e.cfg.Generation == SGLang {
		select {
		case a.w.turn <- struct{}{}:
			defer func() { <-a.w.turn }()
		case <-a.ctx.Done():
			return "", false
		}
	}
	errText = y.relay(q)
	switch {
	case fault == ExitMidStream && y.struck:
		return "", true
	case fault == MidStreamError && y.struck:
		return handlerError("RuntimeError", "CUDA error: an illegal memory access was encountered"), false
	}
	return errText, false
}

// ask reads the job's input.
func (a *attempt) ask() (q *ask, errText string) {
	e := a.j.e
	e.mu.Lock()
	noOpenAI, broken, model := e.noOpenAI, e.broken, e.models[0]
	e.mu.Unlock()
	gen := e.cfg.Generation
	var in map[string]json.RawMessage
	if json.Unmarshal(a.j.input, &in) != nil {
		return nil, handlerError("AttributeError", "'str' object has no attribute 'get'")
	}
	text := func(name string) (s string) { _ = json.Unmarshal(in[name], &s); return s }
	route := text("openai_route")
	switch {
	case route != "" && (gen == V23Native || noOpenAI):
		return nil, handlerError("KeyError", "'prompt'")
	case route != "" || in["openai_input"] != nil:
		if route == "" {
			route = "/v1/chat/completions"
		}
		q = &ask{method: http.MethodPost, path: route, body: in["openai_input"]}
		if len(q.body) == 0 || string(q.body) == "null" {
			q.method, q.body = http.MethodGet, nil
		}
	case text("route") != "" && gen == V24:
		q = &ask{method: http.MethodPost, path: text("route"), body: in["body"]}
		if m := text("method"); m != "" {
			q.method = m
		}
	case in["prompt"] != nil || in["messages"] != nil:
		q = e.native(in, model)
	default:
		return nil, handlerError("KeyError", "'prompt'")
	}
	var body struct {
		Stream bool    `json:"stream"`
		Model  *string `json:"model"`
	}
	if json.Unmarshal(q.body, &body) == nil && q.body != nil {
		q.stream = q.stream || body.Stream && !q.native
		if body.Model == nil && gen == V24 {
			q.body = with(q.body, "model", encode(model))
		}
	}
	if q.path == broken {
		return nil, handlerError("IndexError", "list index out of range")
	}
	return q, ""
}

// native makes the handler's own form of a request into one for the engine.
func (e *Endpoint) native(in map[string]json.RawMessage, model string) *ask {
	tokens := e.cfg.Generation == V23 || e.cfg.Generation == V23Lists || e.cfg.Generation == V23Native
	out := map[string]json.RawMessage{"model": encode(model)}
	if tokens {
		out["max_tokens"] = []byte("100")
	}
	var params map[string]json.RawMessage
	_ = json.Unmarshal(in["sampling_params"], &params)
	maps.Copy(out, params)
	q := &ask{method: http.MethodPost, path: "/v1/completions", native: tokens}
	if in["messages"] != nil {
		q.path, out["messages"] = "/v1/chat/completions", in["messages"]
	} else {
		out["prompt"] = in["prompt"]
	}
	_ = json.Unmarshal(in["stream"], &q.stream)
	if q.stream || tokens {
		out["stream"] = []byte("true")
	}
	if tokens {
		out["stream_options"] = []byte(`{"include_usage":true,"continuous_usage_stats":true}`)
	}
	q.body = encode(out)
	return q
}

// with adds a member to a JSON object.
func with(object []byte, name string, value json.RawMessage) []byte {
	b := bytes.TrimSpace(object)
	if len(b) < 2 || b[0] != '{' {
		return object
	}
	sep := ","
	if len(bytes.TrimSpace(b[1:len(b)-1])) == 0 {
		sep = ""
	}
	return append(append(append(b[:len(b)-1:len(b)-1], sep+string(encode(name))+":"...), value...), '}')
}

// send asks the worker's engine.
func (a *attempt) send(q *ask) (*http.Response, error) {
	a.j.e.mu.Lock()
	h := a.w.host
	a.j.e.mu.Unlock()
	if h == nil {
		return nil, io.ErrUnexpectedEOF
	}
	return a.j.e.c.post(a.ctx, h, q)
}

func (c *Cloud) post(ctx context.Context, h *fakecloud.Host, q *ask) (*http.Response, error) {
	if !strings.HasPrefix(q.path, "/") {
		q.path = "/" + q.path
	}
	req, err := http.NewRequestWithContext(ctx, q.method, h.URL()+q.path, bytes.NewReader(q.body))
	if err != nil {
		return nil, err
	}
	if q.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return c.client.Do(req)
}
