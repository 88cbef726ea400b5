package serverless

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strconv"

	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// fault is why a request got no answer of a model.
type fault uint8

const (
	none fault = iota
	gone       // the gateway broke off
	badPath
	badJSON
	setUp       // the TLS settings cannot be used
	noWorker    // nobody was up in time
	denied      // the engine refused the endpoint's key
	noRoute     // the engine failed, or answered with what is no route
	unsafe      // the route leads to a plain worker
	unreachable // no answer came from the last worker
	refused     // the last worker refused its route
	busy        // the last worker's queue is full, or the engine wants fewer questions
	failed      // the last worker failed
	opaque      // the last worker failed as it does whatever the reason, the request's own fault included
	misread     // the workers understand neither payload form
	bare        // the worker said no and nothing else: its status goes on
)

// failure is what the caller is told.
type failure struct {
	status     int // 0 for the worker's own
	typ, code  string
	message    string
	retryAfter int // seconds, 0 for none
}

const serverError, requestError = "server_error", "invalid_request_error"

var failures = map[fault]failure{
	badPath:     {404, requestError, "unknown_url", "Vast.ai's serverless workers answer POST /v1/chat/completions and POST /v1/completions only.", 0},
	badJSON:     {400, requestError, "invalid_json", "The request body is not a JSON object.", 0},
	setUp:       {500, serverError, "worker_tls", "The settings for the workers' certificates cannot be used. The gateway's log says why.", 0},
	noWorker:    {503, serverError, "no_worker", "No worker came up in time. Vast.ai goes on starting one: try again in a while.", 30},
	denied:      {401, serverError, "route_denied", "Vast.ai refused the endpoint's key.", 0},
	noRoute:     {502, serverError, "no_route", "Vast.ai named no worker.", 0},
	unsafe:      {502, serverError, "worker_unencrypted", "The worker speaks plain HTTP and was sent nothing.", 0},
	unreachable: {502, serverError, "worker_unreachable", "No worker that Vast.ai named could be reached.", 0},
	refused:     {502, serverError, "worker_refused_route", "Every worker that Vast.ai named refused its own route.", 0},
	busy:        {429, "rate_limit_error", "workers_busy", "The workers' queues are full. Slow down and try again.", 5},
	failed:      {502, serverError, "worker_failed", "The workers failed.", 0},
	opaque:      {502, serverError, "worker_failed_silently", "The workers failed without saying why.", 0},
	misread:     {502, serverError, "worker_payload", "The workers do not understand the form in which they are sent requests.", 0},
	bare:        {0, requestError, "worker_refused", "The worker refused the request without saying why.", 0},
}

// refuse answers in OpenAI's shape; status is the worker's.
func refuse(w http.ResponseWriter, f fault, status int) {
	e := failures[f]
	if e.status == 0 {
		e.status = status
	}
	b, err := json.Marshal(map[string]any{"error": map[string]any{"message": e.message, "type": e.typ, "param": nil, "code": e.code}})
	if err != nil {
		panic("BUG: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	if e.retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(e.retryAfter))
	}
	w.WriteHeader(e.status)
	_, _ = w.Write(b)
}

// Classify knows what a failed answer of a serverless endpoint means where its status alone would mislead: the
// translator's own words, and the habits of Vast.ai's OpenAI proxy. known is false for all others.
func Classify(ep *endpoint.Endpoint, status int, _ string, body []byte) (class outcome.Class, known bool) {
	if ep.Dialect == endpoint.VastRoute {
		var m struct {
			Error struct {
				Code word `json:"code"`
			} `json:"error"`
		}
		_ = json.Unmarshal(body, &m) // anything else has no code
		switch string(m.Error.Code) {
		case failures[noWorker].code: // nobody's fault: a big model takes longer to load than a request can wait
			return outcome.NotReady, true
		case failures[opaque].code: // a worker's bare 500 hides what its model said, the caller's own fault included
			return outcome.Opaque, true
		}
		return 0, false
	}
	// The proxy says so to the key of another account, with whatever status.
	if bytes.Contains(body, []byte("Endpoint '")) && bytes.Contains(body, []byte("' not found")) {
		return outcome.UpstreamDenied, true
	}
	// It gives up after about five minutes while a worker starts, which takes longer for big models.
	if status == http.StatusGatewayTimeout {
		return outcome.NotReady, true
	}
	return 0, false
}
