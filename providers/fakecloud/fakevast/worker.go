package fakevast

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
)

// workerBody is what a worker is sent.
type workerBody struct {
	Auth    map[string]json.RawMessage `json:"auth_data"`
	Session json.RawMessage            `json:"session_id"`
	Payload json.RawMessage            `json:"payload"`
}

// replayWindow is how far behind the highest reqnum an old worker still takes one.
const replayWindow = 100

// wrap is pyworker in front of the model.
func (w *Worker) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/chat/completions", "/v1/completions":
		default:
			out.WriteHeader(http.StatusNotFound)
			_, _ = out.Write([]byte("404: Not Found"))
			return
		}
		if r.Method != http.MethodPost {
			out.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		raw, err := io.ReadAll(http.MaxBytesReader(out, r.Body, 64<<20))
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		status, detail, payload, cost := w.read(raw)
		w.s.c.books.add(Request{Call: "POST worker" + r.URL.Path, Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery, Header: r.Header, Body: raw, Status: status})
		switch {
		case detail != nil:
			writeJSON(out, status, detail)
		case status != http.StatusOK:
			out.WriteHeader(status)
		default:
			defer w.done(cost)
			w.forward(out, r, payload, next)
		}
	})
}

// read looks at a request; a status other than 200 refuses it.
func (w *Worker) read(raw []byte) (status int, detail any, payload []byte, cost float64) {
	var b workerBody
	if json.Unmarshal(raw, &b) != nil {
		return http.StatusUnprocessableEntity, map[string]any{"error": "invalid JSON"}, nil, 0
	}
	missing := map[string]any{}
	if b.Auth == nil {
		missing["auth_data"] = "field missing"
	}
	if len(b.Payload) == 0 {
		missing["payload"] = "field missing"
	}
	if len(missing) > 0 {
		return http.StatusUnprocessableEntity, missing, nil, 0
	}
	needed := []string{"cost", "endpoint", "reqnum", "request_idx", "signature", "url"}
	for _, name := range needed {
		if _, ok := b.Auth[name]; !ok && (name != "request_idx" || !w.old) {
			missing[name] = "missing parameter"
		}
	}
	if len(missing) > 0 {
		return http.StatusUnprocessableEntity, map[string]any{"auth_data": missing}, nil, 0
	}
	if s := string(bytes.TrimSpace(b.Session)); s != "" && s != "null" {
		return http.StatusGone, map[string]any{"error": "invalid session"}, nil, 0
	}
	if !w.authentic(b.Auth) {
		return http.StatusUnauthorized, nil, nil, 0
	}
	payload, detail = w.unwrap(b.Payload)
	if detail != nil {
		return http.StatusUnprocessableEntity, detail, nil, 0
	}
	cost, _ = strconv.ParseFloat(string(bytes.Trim(b.Auth["cost"], `"`)), 64)
	status = w.admit(cost)
	return status, nil, payload, cost
}

// unwrap is the model's own body, or why it cannot be told.
func (w *Worker) unwrap(payload json.RawMessage) (body []byte, detail any) {
	var p struct {
		Input json.RawMessage `json:"input"`
	}
	_ = json.Unmarshal(payload, &p) // what is no object has no input
	form := w.s.Config().Payload
	if w.old {
		form = PayloadWrapped
	}
	switch {
	case form == PayloadWrapped && p.Input == nil:
		return nil, map[string]any{"payload": map[string]any{"input": "missing parameter"}}
	case form != PayloadBare && p.Input != nil:
		return p.Input, nil
	}
	return payload, nil
}

// authentic checks the signature, and with old workers that the message is new.
func (w *Worker) authentic(auth map[string]json.RawMessage) bool {
	c := w.s.c
	c.mu.Lock()
	refuses, unsecured := w.refuses, w.s.cfg.Unsecured
	c.mu.Unlock()
	if refuses {
		return false
	}
	if unsecured {
		return true
	}
	fields := []field{{"url", string(auth["url"])}}
	if w.old {
		fields = []field{
			{"cost", string(auth["cost"])}, {"endpoint", string(auth["endpoint"])}, {"reqnum", string(auth["reqnum"])}, {"url", string(auth["url"])},
		}
	}
	message := signed(fields)
	var signature string
	if json.Unmarshal(auth["signature"], &signature) != nil || !c.verify(message, signature) {
		return false
	}
	if !w.old {
		return true
	}
	n, err := strconv.ParseInt(string(auth["reqnum"]), 10, 64)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil || w.seen[message] || n < w.lastReq-replayWindow {
		return false
	}
	w.seen[message] = true
	w.lastReq = max(w.lastReq, n)
	return true
}

// admit takes a request on, or says with which status not.
func (w *Worker) admit(cost float64) int {
	c := w.s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(w.failures) > 0 {
		status := w.failures[0]
		w.failures = w.failures[1:]
		return status
	}
	if w.load/max(w.perf, 1e-9) > w.s.cfg.MaxQueueTime.Seconds() {
		return http.StatusTooManyRequests
	}
	w.load += cost
	w.working++
	return http.StatusOK
}

func (w *Worker) done(cost float64) {
	w.s.c.mu.Lock()
	defer w.s.c.mu.Unlock()
	w.load -= cost
	w.working--
	w.s.use()
}

// forward hands the payload to the model.
func (w *Worker) forward(out http.ResponseWriter, r *http.Request, payload []byte, next http.Handler) {
	to := r.Clone(r.Context())
	to.Body = io.NopCloser(bytes.NewReader(payload))
	to.ContentLength = int64(len(payload))
	to.Header.Set("Content-Length", strconv.Itoa(len(payload)))
	to.URL.RawQuery = ""
	to.Header.Del("Authorization")
	if w.old {
		out = &bare{ResponseWriter: out}
	}
	next.ServeHTTP(out, to)
}

// bare takes the body from answers that are no success.
type bare struct {
	http.ResponseWriter
	drop bool
}

// Unwrap returns the writer below.
func (b *bare) Unwrap() http.ResponseWriter { return b.ResponseWriter }

// WriteHeader looks at the status.
func (b *bare) WriteHeader(status int) {
	if b.drop = status >= 300; b.drop {
		b.Header().Set("Content-Length", "0")
	}
	b.ResponseWriter.WriteHeader(status)
}

// Write drops the body when it is to be dropped.
func (b *bare) Write(p []byte) (int, error) {
	if b.drop {
		return len(p), nil
	}
	return b.ResponseWriter.Write(p)
}
