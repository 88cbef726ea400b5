package jobs

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
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
	native  bool   // it is sent in the worker's own form
	jobID   string // for ids of answers that are made here
	created int64  // Unix seconds, for the same
}

// sampling are the request members that worker-vllm hands to vLLM's SamplingParams in its own form.
var sampling = [...]string{
	"n", "best_of", "presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p", "top_k", "min_p", "seed", "stop",
	"stop_token_ids", "ignore_eos", "max_tokens", "min_tokens", "logprobs", "prompt_logprobs", "skip_special_tokens", "spaces_between_special_tokens",
	"length_penalty", "include_stop_str_in_output", "bad_words",
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

// nativeInput is the request in worker-vllm's own form.
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
	if what == nil {
		return nil, &failure{status: http.StatusBadRequest, code: "missing_required_parameter", param: key, message: "You must provide " + key + "."}
	}
	if v := in["max_completion_tokens"]; v != nil {
		in["max_tokens"] = v
	}
	b := append([]byte("{"), appendString(nil, key)...)
	b = append(append(b, ':'), what...)
	b = append(b, `,"stream":`...)
	b = strconv.AppendBool(b, a.stream)
	b = append(b, `,"sampling_params":{`...)
	first := true
	for _, name := range sampling {
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

// appendString writes s as a JSON string.
func appendString(dst []byte, s string) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return append(dst, b...)
}
