package jobs

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"headrace/router/endpoint"
)

// maxRun is the largest body that /run takes, in bytes (RunPod: 10 MB).
const maxRun = 10 << 20

// routeKind is how answers of a route look.
type routeKind uint8

const (
	routeOther       routeKind = iota // passed on; streams end without [DONE]
	routeChat                         // /v1/chat/completions
	routeCompletions                  // /v1/completions
)

// asked is what the translator must know of a caller's request.
type asked struct {
	route   string // "/v1/chat/completions"
	kind    routeKind
	body    []byte // the caller's, as it came
	model   string
	stream  bool
	usage   bool   // stream_options.include_usage
	limit   int    // max_tokens, 0 for none
	n       int    // choices, at least 1
	native  bool   // it is sent in the worker's own form
	jobID   string // for ids of answers that are made here
	created int64  // Unix seconds, for the same
}

// ask reads a caller's request.
func ask(w http.ResponseWriter, r *http.Request) (*asked, *failure) {
	if r.Method != http.MethodPost {
		return nil, &failure{status: http.StatusMethodNotAllowed, code: "method_not_allowed", message: "Only POST requests can be made into jobs."}
	}
	if ct := r.Header.Get("Content-Type"); ct != "" {
		if mt, _, err := mime.ParseMediaType(ct); err != nil || mt != "application/json" && !strings.HasSuffix(mt, "+json") {
			return nil, &failure{status: http.StatusUnsupportedMediaType, code: "unsupported_media_type", message: "Only JSON requests can be made into jobs."}
		}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRun))
	if err != nil {
		return nil, tooLarge()
	}
	a := &asked{route: r.URL.Path, body: body}
	switch a.route {
	case "/v1/chat/completions":
		a.kind = routeChat
	case "/v1/completions":
		a.kind = routeCompletions
	}
	if !bytes.HasPrefix(bytes.TrimSpace(body), []byte("{")) || !json.Valid(body) {
		return nil, &failure{status: http.StatusBadRequest, code: "invalid_json", message: "The request body is not a JSON object."}
	}
	var in struct {
		Model     any  `json:"model"`
		Stream    any  `json:"stream"`
		N         int  `json:"n"`
		Max       *int `json:"max_tokens"`
		MaxAnswer *int `json:"max_completion_tokens"`
		Options   struct {
			Usage any `json:"include_usage"`
		} `json:"stream_options"`
	}
	_ = json.Unmarshal(a.body, &in) // members of another type are the engine's to refuse
	a.model, _ = in.Model.(string)
	a.stream, _ = in.Stream.(bool)
	a.usage, _ = in.Options.Usage.(bool)
	a.n = max(1, in.N)
	if m := cmp.Or(in.MaxAnswer, in.Max); m != nil {
		a.limit = *m
	}
	return a, nil
}

func tooLarge() *failure {
	return &failure{
		status: http.StatusRequestEntityTooLarge, code: "request_too_large",
		message: fmt.Sprintf("The request is larger than the %d bytes that a RunPod job may have.", maxRun),
	}
}

// payload is the body of /run. Its input always has a member: a worker drops a job with an empty one, which then fails
// as if the worker had died.
func (a *asked) payload(ttl, execution time.Duration) ([]byte, *failure) {
	b := make([]byte, 0, len(a.body)+256)
	b = append(b, `{"input":`...)
	if a.native {
		in, f := a.nativeInput()
		if f != nil {
			return nil, f
		}
		b = append(b, in...)
	} else {
		b = append(b, `{"openai_route":`...)
		b = appendString(b, a.route)
		b = append(b, `,"openai_input":`...)
		b = append(b, a.body...)
		b = append(b, '}')
	}
	b = append(b, `,"policy":{"ttl":`...)
	b = strconv.AppendInt(b, ttl.Milliseconds(), 10)
	if execution > 0 {
		b = append(b, `,"executionTimeout":`...)
		b = strconv.AppendInt(b, execution.Milliseconds(), 10)
	}
	b = append(b, "}}"...)
	if len(b) > maxRun {
		return nil, tooLarge()
	}
	return b, nil
}

// nativeInput is the request in worker-vllm's own form. That has no place for much of what OpenAI's has, and a handler leaves
// out what it does not know: a request that holds more is refused, since its answer would look like one to all of it.
func (a *asked) nativeInput() ([]byte, *failure) {
	var in map[string]json.RawMessage
	_ = json.Unmarshal(a.body, &in) // it was found to be an object
	var key string
	switch a.kind {
	case routeChat:
		key = "messages"
	case routeCompletions:
		key = "prompt"
	default:
		return nil, &failure{status: http.StatusNotFound, code: "route_not_served", message: "This endpoint's handler takes chat and text completions only."}
	}
	what := in[key]
	if what == nil || string(what) == "null" {
		return nil, &failure{status: http.StatusBadRequest, code: "missing_required_parameter", param: key, message: "You must provide " + key + "."}
	}
	for _, name := range slices.Sorted(maps.Keys(in)) {
		if param := endpoint.BeyondPlain([]byte(name), in[name]); param != "" {
			return nil, beyond(param)
		}
	}
	if a.kind == routeChat {
		var f *failure
		if what, f = plainMessages(what); f != nil {
			return nil, f
		}
	}
	if v := in["max_completion_tokens"]; v != nil && string(v) != "null" {
		in["max_tokens"] = v
	}
	if string(in["best_of"]) == "1" { // engines since vLLM 0.11 do not know it
		delete(in, "best_of")
	}
	b := append([]byte("{"), appendString(nil, key)...)
	b = append(append(b, ':'), what...)
	b = append(b, `,"stream":`...)
	b = strconv.AppendBool(b, a.stream)
	b = append(b, `,"sampling_params":{`...)
	first := true
	for _, name := range endpoint.SamplingParams() {
		v := in[name]
		if v == nil || string(v) == "null" {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(append(appendString(b, name), ':'), v...)
	}
	return append(b, "}}"...), nil
}

// beyond refuses a request for what the worker's own form cannot say.
func beyond(param string) *failure {
	return &failure{
		status: http.StatusBadRequest, code: "unsupported_parameter", param: clip(param),
		message: "This RunPod endpoint is asked with a prompt and sampling parameters only, which cannot say " + clip(param) +
			". Leave it out, use another host, or have the endpoint asked by its OpenAI route (native: false), if its handler has one.",
	}
}

// plainMessages makes texts of contents that come in parts: templates print a list as Python does, or fail.
func plainMessages(raw json.RawMessage) (json.RawMessage, *failure) {
	var messages []map[string]json.RawMessage
	if json.Unmarshal(raw, &messages) != nil {
		return nil, &failure{status: http.StatusBadRequest, code: "invalid_type", param: "messages", message: "messages must be a list of objects."}
	}
	changed := false
	for _, m := range messages {
		c := m["content"]
		if len(c) == 0 || c[0] == '"' || string(c) == "null" {
			continue
		}
		text, ok := endpoint.TextOf(c)
		if !ok {
			return nil, beyond("messages")
		}
		m["content"], changed = appendString(nil, text), true
	}
	if !changed {
		return raw, nil // byte for byte
	}
	return encode(messages), nil
}

// appendString writes s as a JSON string.
func appendString(dst []byte, s string) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return append(dst, b...)
}
