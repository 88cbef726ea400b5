package gateway

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"headrace/gateway/admission/queue"
	"headrace/gateway/openai"
	"headrace/router"
	"headrace/router/outcome"
)

// What callers are told is a closed set: upstream text reaches the log, never them, unless the
// upstream judged the request itself (outcome.CallerFault).

func errMalformed() *openai.Error {
	return &openai.Error{Status: 400, Type: "invalid_request_error", Code: "malformed_request", Message: "The request is not valid HTTP/1.1."}
}

func errUnknownRoute(method, path string) *openai.Error {
	e := &openai.Error{
		Status: 404, Type: "invalid_request_error", Code: "unknown_url",
		Message: fmt.Sprintf("Unknown request URL: %s %s.", clip(method, 16), clip(path, 128)),
	}
	if s := suggestion(path); s != "" {
		e.Message += " Did you mean " + s + "?"
	} else {
		e.Message += " See the README for the routes; other paths need passthrough in the config."
	}
	return e
}

func errMethod(method, path, allowed string) *openai.Error {
	return &openai.Error{
		Status: 405, Type: "invalid_request_error", Code: "method_not_allowed",
		Message: fmt.Sprintf("%s is not allowed for %s. Use %s.", clip(method, 16), path, allowed),
	}
}

func errModelMissing() *openai.Error {
	return &openai.Error{
		Status: 400, Type: "invalid_request_error", Param: "model", Code: "missing_required_parameter",
		Message: "You must provide a model parameter. GET /v1/models lists what there is.",
	}
}

func errModelUnknown(name string, have []string) *openai.Error {
	const most = 20
	list := "none yet: no host has told what it serves"
	if len(have) > 0 {
		list = strings.Join(have[:min(len(have), most)], ", ")
		if len(have) > most {
			list += fmt.Sprintf(" and %d more (GET /v1/models)", len(have)-most)
		}
	}
	return &openai.Error{
		Status: 404, Type: "invalid_request_error", Param: "model", Code: "model_not_found",
		Message: fmt.Sprintf("The model %q does not exist. Available: %s.", clip(name, 128), list),
	}
}

func errTooLarge(limit int64, what string) *openai.Error {
	return &openai.Error{
		Status: 413, Type: "invalid_request_error", Code: "request_too_large",
		Message: fmt.Sprintf("The request body is larger than the limit of %d bytes. Send less, or raise %s in the gateway's config.", limit, what),
	}
}

func errMediaType(route string, want string) *openai.Error {
	return &openai.Error{
		Status: 415, Type: "invalid_request_error", Code: "unsupported_media_type",
		Message: fmt.Sprintf("%s takes a body of type %s. Set the Content-Type header to that.", route, want),
	}
}

func errEncoding(encoding string) *openai.Error {
	return &openai.Error{
		Status: 415, Type: "invalid_request_error", Code: "unsupported_content_encoding",
		Message: fmt.Sprintf("Content-Encoding %q is not supported. Send the body uncompressed.", clip(encoding, 32)),
	}
}

func errScan(err error) *openai.Error {
	e := openai.Error{Status: 400, Type: "invalid_request_error", Code: "invalid_json", Message: "The request body is not valid JSON."}
	if se, ok := errors.AsType[*openai.ScanError](err); ok {
		e = se.Wire()
	}
	return &e
}

func errBusy() *openai.Error {
	return &openai.Error{
		Status: 503, Type: "server_error", Code: "gateway_overloaded", RetryAfter: time.Second,
		Message: "The gateway serves as many requests as it may at once (limits.max_in_flight). Try again shortly.",
	}
}

// errCrowded is e, told to somebody who does not wait, or has waited in vain.
func errCrowded(e *openai.Error, why queue.Why, waited time.Duration) *openai.Error {
	switch why {
	case queue.Full:
		e.Message += " The waiting room is full (queue.size, queue.max_bytes)."
	case queue.Late:
		e.Message += " Its turn would come too late for it to wait."
	case queue.Expired:
		e.Message += fmt.Sprintf(" It has waited %.1f s.", waited.Seconds())
	case queue.Waits, queue.Off, queue.Gone, queue.Drained:
	}
	return e
}

// mostRetry bounds what callers are told to wait: what lies further ahead nobody knows.
const mostRetry = 10 * time.Minute

func errDraining() *openai.Error {
	return &openai.Error{
		Status: 503, Type: "server_error", Code: "gateway_shutdown", RetryAfter: time.Second,
		Message: "The gateway is shutting down. Try again: another replica or the restarted one will answer.",
	}
}

func errInternal(id string) *openai.Error {
	return &openai.Error{
		Status: 500, Type: "server_error", Code: "internal_error",
		Message: "The gateway failed on this request. The log says why under request id " + id + ".",
	}
}

func errUnavailable(e *router.UnavailableError) *openai.Error {
	out := &openai.Error{
		Status: 503, Type: "server_error", Code: "no_host_available", RetryAfter: e.RetryAfter,
		Message: fmt.Sprintf("No host can take a request for the model %q now: %s. Try again in %d s.", clip(e.Model, 128), e.Reason, retrySeconds(e.RetryAfter)),
	}
	model := clip(e.Model, 128)
	switch e.Cause {
	case router.Failing:
	case router.Throttled:
		out.Status, out.Type, out.Code = 429, "rate_limit_error", "rate_limit_exceeded"
	case router.NoCapacity:
		out.Code = "no_capacity"
	case router.Unqualified:
		out.Code = "no_host_qualifies"
		out.Message = fmt.Sprintf("No host may take a request for the model %q: %s. Demand less (x-headrace-trust, x-headrace-region, models.*.require), or add a host.", model, e.Reason)
	case router.NotContinuable:
		out.Status, out.Code = 502, "upstream_lost"
		out.Message = fmt.Sprintf("The host broke off in the middle of its answer, and %s.", e.Reason)
	case router.NoRoute:
		out.Status, out.Type, out.Code, out.Param = 404, "invalid_request_error", "route_not_served", "model"
		out.Message = fmt.Sprintf("The model %q cannot be asked this way: %s.", model, e.Reason)
	case router.NoMedia:
		out.Status, out.Type, out.Code, out.Param = 400, "invalid_request_error", "text_only", "messages"
		out.Message = fmt.Sprintf("The model %q takes text only: %s. Send text, or add a host that takes them.", model, e.Reason)
	case router.TooPlain:
		member := clip(e.Member, 128)
		out.Status, out.Type, out.Code, out.Param = 400, "invalid_request_error", "unsupported_parameter", member
		out.Message = fmt.Sprintf("The model %q cannot be asked with %s: %s. Leave it out, or add a host with an OpenAI route (RunPod: native: false).", model, member, e.Reason)
	case router.TooLarge:
		out.Status, out.Type, out.Code = 413, "invalid_request_error", "request_too_large"
		out.Message = fmt.Sprintf("The request body is larger than any host of the model %q takes: %d bytes at most. Send less, or add a host with another limit.", model, e.MaxBytes)
	}
	return out
}

// errAttempt is what the caller is told when the last attempt failed and there will be no other.
func errAttempt(e *outcome.Error) *openai.Error {
	out := &openai.Error{Status: e.Class.Policy().Status, Type: "server_error", RetryAfter: e.RetryAfter}
	switch e.Class {
	case outcome.DialFailed:
		out.Code, out.Message = "host_unreachable", "The host that serves this model cannot be reached. Try again shortly."
	case outcome.Throttled:
		out.RetryAfter = max(out.RetryAfter, time.Second)
		out.Type, out.Code, out.Message = "rate_limit_error", "rate_limit_exceeded", "The host that serves this model is at its rate limit. Slow down and try again."
	case outcome.FirstByteTimeout:
		out.Code, out.Message = "first_event_timeout", "The host that serves this model did not begin its answer in time (timeouts.first_event)."
	case outcome.UpstreamDenied:
		out.Code, out.Message = "host_denied", "The host that serves this model refused the gateway's credentials. Its operator must check the host's api_key."
	case outcome.Truncated:
		out.Code, out.Message = "upstream_lost", "The host broke off in the middle of its answer."
	case outcome.Stalled:
		out.Code, out.Message = "upstream_lost", "The host fell silent in the middle of its answer."
	case outcome.Moved:
		out.Code, out.Message = "upstream_lost", "The host was taken away in the middle of its answer."
	case outcome.Severed:
		out.Code, out.Message = "host_failed", "The host that serves this model broke the connection before it answered."
	case outcome.UpstreamFault:
		out.Code, out.Message = "host_failed", "The host that serves this model failed."
		if e.Status >= 500 {
			out.Message = fmt.Sprintf("The host that serves this model failed with status %d.", e.Status)
		}
	case outcome.NotReady:
		out.RetryAfter = max(out.RetryAfter, time.Second)
		out.Code, out.Message = "host_not_ready", "The host that serves this model is not ready yet: no worker is up, or the model is still loading. Try again shortly."
	case outcome.Opaque:
		out.Code, out.Message = "host_failed", "The host that serves this model failed without saying why. If it does so again for this request alone, look at the request: a prompt that is too long, or a parameter it does not know."
	case outcome.CallerFault:
		out.Status, out.Type, out.Code, out.Message = 400, "invalid_request_error", "invalid_request", "The request body could not be read to its end."
	case outcome.ClientGone, outcome.Success, outcome.Unserved, outcome.Outrun:
		out.Status, out.Code, out.Message = 499, "client_gone", "The client closed the connection."
	}
	return out
}

// errLost is what a caller is told of an answer that broke off and is not gone on with.
func errLost() *openai.Error {
	e := errAttempt(&outcome.Error{Class: outcome.Truncated})
	e.Partial = true
	return e
}

// clip bounds what is echoed of a caller's text.
func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n] + "…"
	}
	return strings.ToValidUTF8(s, "?")
}

func retrySeconds(d time.Duration) int { return max(1, int(math.Ceil(d.Seconds()))) }

// writeError makes e the response.
func writeError(ctx *fasthttp.RequestCtx, e *openai.Error, proto protocol) {
	ctx.Response.ResetBody()
	ctx.SetStatusCode(e.Status)
	ctx.Response.Header.SetContentType("application/json")
	if e.RetryAfter > 0 {
		ctx.Response.Header.Set(fasthttp.HeaderRetryAfter, strconv.Itoa(retrySeconds(e.RetryAfter)))
	}
	ctx.Response.SetBodyRaw(errorBody(e, proto))
}

// errorBody is e in the shape that the route's SDKs read.
func errorBody(e *openai.Error, proto protocol) []byte {
	if proto != protoMessages {
		return e.AppendJSON(nil)
	}
	b := append([]byte(`{"type":"error","error":{"type":`), openai.AppendString(nil, anthropicType(e.Status))...)
	b = openai.AppendString(append(b, `,"message":`...), e.Message)
	return append(b, '}', '}')
}

// anthropicType maps a status to the names of Anthropic's API.
func anthropicType(status int) string {
	switch status {
	case 400, 405, 415, 422:
		return "invalid_request_error"
	case 401:
		return "authentication_error"
	case 403:
		return "permission_error"
	case 404:
		return "not_found_error"
	case 413:
		return "request_too_large"
	case 429:
		return "rate_limit_error"
	case 503:
		return "overloaded_error"
	default:
		return "api_error"
	}
}

// errorEvent is e as the last event of a stream that has begun. It is too late for a Retry-After header: the event says it.
func errorEvent(e *openai.Error, proto protocol) []byte {
	switch proto {
	case protoMessages:
		b := append([]byte("event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":"), openai.AppendString(nil, anthropicType(e.Status))...)
		b = openai.AppendString(append(b, `,"message":`...), e.Message)
		return append(e.AppendRetryAfter(b), "}}\n\n"...)
	case protoResponses:
		b := append([]byte("event: error\ndata: {\"type\":\"error\",\"code\":"), openai.AppendString(nil, e.Code)...)
		b = openai.AppendString(append(b, `,"message":`...), e.Message)
		return append(e.AppendRetryAfter(append(b, `,"param":null,"sequence_number":0`...)), "}\n\n"...)
	case protoChat, protoOpaque:
	}
	return append(e.AppendEvent([]byte("data: ")), "\n\n"...)
}
