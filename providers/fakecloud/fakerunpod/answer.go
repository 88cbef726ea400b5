package fakerunpod

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

const (
	idLetters  = "0123456789abcdefghijklmnopqrstuvwxyz"
	hexLetters = "0123456789abcdef"
)

// draw returns n letters of those that ids are made of.
func (c *Cloud) draw(n int) string { return c.drawFrom(idLetters, n) }

func (c *Cloud) drawFrom(letters string, n int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := make([]byte, n)
	for i := range b {
		b[i] = letters[c.rng.IntN(len(letters))]
	}
	return string(b)
}

// jobID is an id as the queue gives them out.
func (c *Cloud) jobID(prefix string) string {
	h := c.drawFrom(hexLetters, 32)
	return prefix + h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:] + "-u1"
}

// signal wakes all who wait for a change. The mutex of what changes guards it.
type signal struct{ ch chan struct{} }

func (s *signal) wait() <-chan struct{} {
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

func (s *signal) fire() {
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}

func encode(v any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic("BUG: " + err.Error())
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	writeBody(w, status, "application/json", encode(v))
}

func writeBody(w http.ResponseWriter, status int, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// envelope is an error of the data plane: its status is a number, where that of a job is a word.
func envelope(w http.ResponseWriter, status int, detail string) {
	writeJSON(w, status, struct {
		Status int    `json:"status"`
		Title  string `json:"title"`
		Detail string `json:"detail"`
	}{status, http.StatusText(status), detail})
}

// problem is an error of the management API.
func problem(w http.ResponseWriter, status int, detail string) {
	writeBody(w, status, "application/problem+json", encode(struct {
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
	}{http.StatusText(status), status, detail}))
}

// tooLarge answers 413 once the client has said all, or very much: it might not see the answer before.
func tooLarge(w http.ResponseWriter, r *http.Request) {
	_, _ = io.CopyN(io.Discard, r.Body, 4*maxBalancer)
	envelope(w, http.StatusRequestEntityTooLarge, "request body too large")
}

// html is a page of the edge.
func html(w http.ResponseWriter, status int, title string) {
	writeBody(w, status, "text/html; charset=UTF-8", fmt.Appendf(nil,
		"<!DOCTYPE html>\n<html lang=\"en-US\">\n<head><title>runpod | %s</title></head>\n<body><h1>%s</h1><p>cloudflare</p></body>\n</html>\n", title, title))
}

// timeout is the edge's page for an origin that answers too late.
func timeout(w http.ResponseWriter) { html(w, 524, "524: A timeout occurred") }

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0
	}
	return n
}

func words(list string) (out []string) {
	for s := range strings.SplitSeq(list, ",") {
		if s = strings.TrimSpace(s); s != "" {
			out = append(out, s)
		}
	}
	return out
}

func decimal(x float64) string { return strconv.FormatFloat(x, 'f', -1, 64) }
