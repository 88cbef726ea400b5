package jobs

import (
	"cmp"
	"encoding/json"
	"math"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"headrace/providers/api"
	"headrace/router/outcome"
)

// failure is a job without an answer. What the caller is told is of this package's own words, unless the engine judged
// the caller's request; the vendor's text goes to the log.
type failure struct {
	status     int
	code       string // for programs: "job_failed"
	kind       string // OpenAI's error type; "" leaves the one of status
	message    string
	param      string
	retryAfter time.Duration
	cause      string // vendor's text, for the log only
	python     bool   // it came as text of a Python object
}

// Words that the vendor's answers and jobs use; see RunPod's documentation and runpod-python.
const (
	textEndpointNotFound = "endpoint not found"
	textTimeout          = "executiontimeout exceeded"
	textLostTwice        = "job timed out after" // and then "N retries": each worker that had it is gone
	textWorkerUnhealthy  = "worker is unhealthy" // worker-vllm: its engine is dead
	textWrongProduct     = "not allowed for"     // and then "QB API": a load-balancing endpoint
)

// writeFailure makes f the answer, in OpenAI's shape.
func writeFailure(w http.ResponseWriter, f *failure) {
	type inner struct {
		Message string  `json:"message"`
		Type    string  `json:"type"`
		Param   *string `json:"param"`
		Code    *string `json:"code"`
	}
	e := inner{Message: f.message, Type: cmp.Or(f.kind, typeOf(f.status))}
	if f.param != "" {
		e.Param = &f.param
	}
	if f.code != "" {
		e.Code = &f.code
	}
	body, err := json.Marshal(map[string]inner{"error": e})
	if err != nil {
		panic("BUG: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	if f.retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(max(1, int(math.Ceil(f.retryAfter.Seconds())))))
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(f.status)
	_, _ = w.Write(body)
}

func typeOf(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return "authentication_error"
	case http.StatusForbidden:
		return "permission_error"
	case http.StatusTooManyRequests:
		return "rate_limit_error"
	case http.StatusPaymentRequired:
		return "insufficient_quota"
	}
	if status >= 500 {
		return "server_error"
	}
	return "invalid_request_error"
}

// ofAnswer reads an answer of the queue API that is no success.
func ofAnswer(status int, header http.Header, body []byte) *failure {
	e := api.Explain(status, body)
	f := &failure{status: status, cause: cmp.Or(e.Detail, e.Code)}
	text := strings.ToLower(f.cause)
	switch {
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		f.code, f.message = "invalid_api_key", "RunPod refused the API key of this endpoint."
	case status == http.StatusPaymentRequired: // unconfirmed: one public adapter takes it for an empty account
		f.code, f.message = "payment_required", "RunPod asks for payment before it takes more jobs."
	case status == http.StatusTooManyRequests:
		f.code, f.message = "rate_limit_exceeded", "RunPod takes no more jobs for this endpoint now."
		f.retryAfter = max(retryAfter(header), time.Second)
	case status == http.StatusRequestEntityTooLarge:
		return tooLarge()
	case strings.Contains(text, textWrongProduct):
		f.status, f.code, f.message = http.StatusBadGateway, "wrong_endpoint_type", "This endpoint is not a queue: it takes no jobs."
	case status == http.StatusNotFound && (f.cause == "" || strings.Contains(text, textEndpointNotFound)):
		f.code, f.message = "endpoint_not_found", "RunPod knows no such endpoint: endpoint not found."
	case status == http.StatusServiceUnavailable:
		f.code, f.message, f.retryAfter = "unavailable", "RunPod is not available.", max(retryAfter(header), time.Second)
	case status == http.StatusRequestTimeout, status == http.StatusGatewayTimeout, status == 524: // Cloudflare's: no answer from behind it
		f.status, f.code, f.message = http.StatusGatewayTimeout, "timeout", "RunPod did not answer in time."
	case status >= 502 || status < 400:
		f.status, f.code, f.message = http.StatusBadGateway, "bad_answer", "RunPod answered with something that is no job."
	default: // 500, and 4xx whose form is not known: our envelope or the request in it
		f.status, f.code, f.message = http.StatusInternalServerError, "job_refused", "RunPod did not take the job and did not say why."
	}
	return f
}

func retryAfter(h http.Header) time.Duration {
	if s, err := strconv.Atoi(h.Get("Retry-After")); err == nil && s >= 0 && s < 1<<20 {
		return time.Duration(s) * time.Second
	}
	return 0
}

// ofJob reads how a job ended that did not complete. text is its "error", and may be "".
func ofJob(status, text string) *failure {
	low := strings.ToLower(text)
	switch {
	case status == statusCancelled:
		return &failure{status: http.StatusServiceUnavailable, code: "job_cancelled", retryAfter: 5 * time.Second, cause: text, message: "The job was cancelled before a worker finished it."}
	case status == statusTimedOut, strings.Contains(low, textTimeout):
		return &failure{status: http.StatusGatewayTimeout, code: "job_timeout", cause: text, message: "The job took longer than its endpoint allows."}
	case strings.HasPrefix(low, textLostTwice):
		return &failure{status: http.StatusInternalServerError, code: "worker_lost", cause: text, message: "Every worker that was given the job was lost. The request itself may be the reason."}
	}
	return ofWorker(text)
}

// gone is a job that RunPod has forgotten: its time to live has passed.
func gone() *failure {
	return &failure{status: http.StatusServiceUnavailable, code: "job_expired", retryAfter: 5 * time.Second, message: "No worker finished the job in its time."}
}

// ofWorker reads an error of a worker: plain text, JSON, or text of a Python object. An error that the engine raised
// against the request itself is the caller's to read.
func ofWorker(text string) *failure {
	r := reader{}
	v := r.read(text, 0)
	f := &failure{status: http.StatusInternalServerError, code: "job_failed", message: "The job failed.", cause: text, python: r.python}
	if strings.Contains(strings.ToLower(text), textWorkerUnhealthy) {
		f.code, f.message = "worker_unhealthy", "The worker's engine is not running."
		return f
	}
	switch s := v.status; {
	case s == http.StatusTooManyRequests:
		f.status, f.code, f.message, f.retryAfter = s, "rate_limit_exceeded", "The worker takes no more requests now.", time.Second
	case s >= 400 && s < 500 && s != http.StatusUnauthorized && s != http.StatusForbidden && s != http.StatusRequestTimeout && v.message != "":
		f.status, f.message, f.kind, f.param, f.code = s, v.message, v.kind, v.param, v.code
		if s == http.StatusNotFound && f.code == "" && strings.Contains(v.message, "model") {
			f.code = "model_not_found"
		}
	}
	return f
}

// Refusal finds what the engine said against the request itself in an answer of the OpenAI route, where it comes as a 500, a 502 or a
// 200: the worker quotes it, as JSON or as Python prints a dict, and RunPod wraps the quotation. ok is false where nothing is said.
func Refusal(body []byte) (r outcome.Refusal, ok bool) {
	v := (&reader{}).read(string(body), 0)
	if v.message == "" {
		return r, false
	}
	if outcome.OfStatus(v.status) != outcome.CallerFault {
		v.status = http.StatusBadRequest
	}
	return outcome.Refusal{Status: v.status, Message: v.message, Param: v.param, Code: v.code}, true
}

// verdict is what an error object says.
type verdict struct {
	status               int // 0 when it says none
	message, kind, param string
	code                 string // "" when it was the status
}

// reader finds the verdict within the layers that worker and SDK wrap around it.
type reader struct{ python bool }

// engineStatus is how worker-vllm 2.24 and later wraps what its engine answered.
var engineStatus = regexp.MustCompile(`(?s)\bvLLM returned HTTP ([1-5]\d\d): ?(.*)`)

const maxLayers = 8

func (r *reader) read(text string, layer int) verdict {
	text = strings.TrimSpace(text)
	if layer > maxLayers || text == "" {
		return verdict{}
	}
	if text[0] == '{' {
		var fields map[string]json.RawMessage
		if json.Unmarshal([]byte(text), &fields) == nil {
			return r.object(fields, layer+1)
		}
		if b, ok := pythonToJSON(text); ok && json.Unmarshal(b, &fields) == nil {
			r.python = true
			return r.object(fields, layer+1)
		}
	}
	if m := engineStatus.FindStringSubmatch(text); m != nil {
		v := verdict{message: clip(m[2])}
		if inner := r.read(m[2], layer+1); inner.message != "" {
			v = inner
		}
		v.status, _ = strconv.Atoi(m[1]) // the status line is the engine's own word
		return v
	}
	return verdict{message: clip(text)}
}

func (r *reader) object(fields map[string]json.RawMessage, layer int) verdict {
	if e := fields["error"]; truthy(e) {
		if e[0] == '"' {
			return r.read(word(e), layer+1)
		}
		var inner map[string]json.RawMessage
		if json.Unmarshal(e, &inner) == nil && inner != nil {
			return r.object(inner, layer+1)
		}
	}
	if m := word(fields["error_message"]); m != "" { // runpod-python: a handler's exception
		return r.read(m, layer+1)
	}
	v := verdict{message: word(fields["message"]), kind: word(fields["type"]), param: word(fields["param"])}
	if engineStatus.MatchString(v.message) {
		return r.read(v.message, layer+1)
	}
	v.message = clip(v.message)
	v.code = word(fields["code"])
	for _, s := range []string{v.code, string(fields["code"])} {
		if n, err := strconv.Atoi(s); err == nil && n >= 400 && n <= 599 {
			v.status, v.code = n, ""
			break
		}
	}
	if v.status == 0 {
		switch v.kind {
		case "BadRequestError", "invalid_request_error":
			v.status = http.StatusBadRequest
		case "NotFoundError":
			v.status = http.StatusNotFound
		}
	}
	return v
}

// word is v when that is a JSON string, else "".
func word(v json.RawMessage) string {
	var s string
	if json.Unmarshal(v, &s) != nil {
		return ""
	}
	return s
}

// truthy is Python's judgement of a JSON value, by which runpod-python takes an object with an "error" for a failure.
func truthy(v json.RawMessage) bool {
	switch string(v) {
	case "", "null", "false", `""`, "0", "{}", "[]", "0.0":
		return false
	}
	return true
}

const maxMessage = 2 << 10

// clip bounds an engine's message that is passed on, in bytes.
func clip(s string) string {
	s = strings.ToValidUTF8(strings.TrimSpace(s), "?")
	if len(s) <= maxMessage {
		return s
	}
	n := maxMessage
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}
