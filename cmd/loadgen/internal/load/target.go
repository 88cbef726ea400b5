// Package load sends chat completions to loopback targets, checks every answer, and measures what
// they took in time and what they cost the process that answered.
package load

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"

	"headrace/cmd/loadgen/internal/h1"
	"headrace/cmd/loadgen/internal/procstat"
)

// Target is one way to reach the mock upstream: directly, or through a proxy.
type Target struct {
	Name string
	URL  string // of the chat completions endpoint
	PID  int    // of the process whose CPU and memory are read, 0 for none

	addr       string
	plain, sse []byte // whole requests
	asksUsage  bool   // sse does
}

// Request says what the requests to a target look like.
type Request struct {
	Model  string
	Usage  bool        // streams ask for the usage chunk
	Header http.Header // in addition to, or in place of, the usual ones
}

const messages = `"messages":[{"role":"system","content":"You are a helpful assistant."},` +
	`{"role":"user","content":"Say something short about loopback benchmarks, please."}],"max_tokens":256,"temperature":0.7`

// NewTarget prepares the requests for a target. The URL must be an http URL of a literal loopback address.
func NewTarget(name, rawURL string, pid int, req Request) (*Target, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, fmt.Errorf("target %s: %w", name, err)
	}
	t := &Target{Name: name, URL: rawURL, PID: pid, asksUsage: req.Usage}
	if t.addr, err = h1.LoopbackAddr(u); err != nil {
		return nil, fmt.Errorf("target %s: %w", name, err)
	}
	plain := fmt.Sprintf(`{"model":%q,%s}`, req.Model, messages)
	options := ""
	if req.Usage {
		options = `,"stream_options":{"include_usage":true}`
	}
	sse := fmt.Sprintf(`{"model":%q,%s,"stream":true%s}`, req.Model, messages, options)
	if t.plain, err = render(u, req.Header, plain); err == nil {
		t.sse, err = render(u, req.Header, sse)
	}
	if err != nil {
		return nil, fmt.Errorf("target %s: %w", name, err)
	}
	return t, nil
}

// render writes a whole request, as a usual client would send it.
func render(u *url.URL, extra http.Header, body string) ([]byte, error) {
	h := http.Header{
		"User-Agent":    {"loadgen"},
		"Accept":        {"*/*"},
		"Content-Type":  {"application/json"},
		"Authorization": {"Bearer sk-bench"},
	}
	maps.Copy(h, extra)
	var b strings.Builder
	fmt.Fprintf(&b, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n", u.RequestURI(), u.Host, len(body))
	if err := h.Write(&b); err != nil { // sorted, and CR and LF in values replaced
		return nil, err
	}
	b.WriteString("\r\n" + body)
	return []byte(b.String()), nil
}

// ParseTarget reads NAME=URL or NAME=URL,PID, where PID is a number or the path of a file that holds it.
func ParseTarget(s string, req Request) (*Target, error) {
	name, rest, ok := strings.Cut(s, "=")
	if !ok || name == "" || rest == "" {
		return nil, fmt.Errorf("target %q: want NAME=URL or NAME=URL,PID", s)
	}
	rawURL, pidText, ok := strings.Cut(rest, ",")
	pid := 0
	if ok {
		var err error
		if pid, err = parsePID(pidText); err != nil {
			return nil, fmt.Errorf("target %s: %w", name, err)
		}
		if _, err := procstat.Tree(pid); err != nil {
			return nil, fmt.Errorf("target %s: read process %d: %w", name, pid, err)
		}
	}
	return NewTarget(name, rawURL, pid, req)
}

func parsePID(s string) (int, error) {
	if strings.ContainsAny(s, "/.") {
		b, err := os.ReadFile(s)
		if err != nil {
			return 0, err
		}
		s = strings.TrimSpace(string(b))
	}
	pid, err := strconv.Atoi(s)
	if err == nil && pid <= 0 {
		err = errors.New("not positive")
	}
	if err != nil {
		return 0, fmt.Errorf("pid %q: %w", s, err)
	}
	return pid, nil
}

// ParseHeader reads "Name: value".
func ParseHeader(s string) (name, value string, err error) {
	name, value, ok := strings.Cut(s, ":")
	if !ok || strings.TrimSpace(name) == "" {
		return "", "", fmt.Errorf("header %q: want NAME: VALUE", s)
	}
	return http.CanonicalHeaderKey(strings.TrimSpace(name)), strings.TrimSpace(value), nil
}

// usage reads the process's CPU and memory; zero when the target has none.
func (t *Target) usage() (procstat.Usage, error) {
	if t.PID == 0 {
		return procstat.Usage{}, nil
	}
	u, err := procstat.Tree(t.PID)
	if err != nil {
		return u, fmt.Errorf("usage of %s: %w", t.Name, err)
	}
	return u, nil
}
