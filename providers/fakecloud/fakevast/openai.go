package fakevast

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"
)

// openAIRoutes serves the proxy for OpenAI's dialect: /NAME/v1/chat/completions and /NAME/v1/completions, with and
// without the v1.
func (c *Cloud) openAIRoutes() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<20))
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		name, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		path = "/v1/" + strings.TrimPrefix(path, "v1/")
		n := &noted{ResponseWriter: w}
		call := r.Method + " openai" + path
		defer func() {
			c.books.add(Request{
				At: time.Now(), Call: call, Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery, Header: r.Header, Body: body, Status: n.status,
			})
		}()
		answer := func(w http.ResponseWriter) { c.proxy(w, r, name, path, body) }
		if t, ok := c.trouble(call); ok {
			c.strike(t, n, r, answer)
			return
		}
		answer(n)
	})
}

func (c *Cloud) proxy(w http.ResponseWriter, r *http.Request, name, path string, body []byte) {
	fail := func(status int, msg string) { writeJSON(w, status, map[string]any{"error": msg}) }
	if path != "/v1/chat/completions" && path != "/v1/completions" {
		fail(http.StatusNotFound, "Not found")
		return
	}
	if r.Method != http.MethodPost {
		fail(http.StatusMethodNotAllowed, "Method not allowed")
		return
	}
	c.mu.Lock()
	s := c.endpointNamed(name)
	c.mu.Unlock()
	if s == nil || keyOf(r) != c.cfg.APIKey {
		c.books.update(func(s *Stats) { s.Denied++ })
		status := http.StatusNotFound
		if keyOf(r) == "" {
			status = http.StatusUnauthorized
		}
		fail(status, "Endpoint '"+name+"' not found")
		return
	}
	payload, err := s.text(body)
	if err != nil {
		fail(http.StatusBadRequest, err.Error())
		return
	}
	reply := c.hold(r.Context(), s)
	switch {
	case r.Context().Err() != nil:
		panic(http.ErrAbortHandler)
	case reply == nil:
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(http.StatusGatewayTimeout)
		_, _ = w.Write([]byte("<html><head><title>504 Gateway Time-out</title></head><body><center><h1>504 Gateway Time-out</h1></center></body></html>"))
		return
	}
	if s.Config().Payload != PayloadBare {
		payload = append(append([]byte(`{"input":`), payload...), '}')
	}
	c.relay(w, r, reply, path, payload)
}

var errText = errors.New("only text content is supported")

// text is the body for the worker: its own model whatever was asked for, and nothing but text.
func (s *Serverless) text(body []byte) ([]byte, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, errors.New("the body is not a JSON object")
	}
	var messages []struct {
		Content json.RawMessage `json:"content"`
	}
	_ = json.Unmarshal(m["messages"], &messages) // the model refuses what is malformed
	for _, msg := range messages {
		var parts []struct {
			Type string `json:"type"`
		}
		if json.Unmarshal(msg.Content, &parts) != nil {
			continue
		}
		for _, p := range parts {
			if p.Type != "text" {
				return nil, errText
			}
		}
	}
	k := s.Config().Worker
	k.fill(1)
	model, err := json.Marshal(k.Models[0])
	if err != nil {
		panic("BUG: " + err.Error())
	}
	m["model"] = model
	for _, name := range []string{"parallel_tool_calls", "user", "suffix"} {
		delete(m, name)
	}
	return json.Marshal(m)
}

// hold waits for a worker; nil means that none came in time.
func (c *Cloud) hold(ctx context.Context, s *Serverless) *routeReply {
	ctx, cancel := context.WithTimeout(ctx, max(c.scaled(c.cfg.ProxyHold), 100*time.Millisecond))
	defer cancel()
	var idx int64
	for {
		_, changed := c.books.view(true)
		c.mu.Lock()
		reply := s.assign(idx, 256, "256")
		old := s.cfg.Old
		c.mu.Unlock()
		if reply.URL != "" {
			reply.Signature = c.sign(reply.message(old))
			return reply
		}
		idx = reply.Idx
		tick := time.NewTimer(20 * time.Millisecond) // steps that nobody is told of
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			return nil
		}
		tick.Stop()
	}
}

// relay hands the request to the worker and its answer back as it comes.
func (c *Cloud) relay(w http.ResponseWriter, r *http.Request, reply *routeReply, path string, payload []byte) {
	auth, err := json.Marshal(reply)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	body := append([]byte(`{"auth_data":`), auth...)
	body = append(body, `,"session_id":null,"payload":`...)
	body = append(body, payload...)
	body = append(body, '}')
	req, err := http.NewRequestWithContext(r.Context(), http.MethodPost, reply.URL+path, bytes.NewReader(body))
	if err != nil {
		panic("BUG: " + err.Error())
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept-Encoding", "identity")
	for _, f := range r.Header.Values("X-Fake-Fault") {
		req.Header.Add("X-Fake-Fault", f)
	}
	resp, err := c.inner.Do(req)
	if err != nil {
		if r.Context().Err() != nil {
			panic(http.ErrAbortHandler)
		}
		writeJSON(w, http.StatusBadGateway, map[string]any{"error": "worker failed"})
		return
	}
	defer resp.Body.Close()
	w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
	w.WriteHeader(resp.StatusCode)
	flush := http.NewResponseController(w)
	buf := make([]byte, 16<<10)
	for {
		n, err := resp.Body.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				panic(http.ErrAbortHandler)
			}
			_ = flush.Flush()
		}
		switch {
		case errors.Is(err, io.EOF):
			return
		case err != nil:
			panic(http.ErrAbortHandler) // the client is to see that the answer was cut
		}
	}
}

func newInner() *http.Client {
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}, //nolint:gosec // its own workers on loopback
	}}
}
