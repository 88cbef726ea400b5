package fakecloud

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// version is what /version tells: a release whose wire shapes these are.
const version = "0.11.2"

func (x *exchange) route() {
	if !x.authorized() {
		if x.body == nil { // nobody is going to read it
			x.record(nil, 0, nil)
		}
		x.h.books.update(func(s *Stats) { s.Refusals++ })
		x.answer(http.StatusUnauthorized, "application/json", []byte(`{"error":"Unauthorized"}`))
		return
	}
	path := x.r.URL.Path
	method, serve := x.find(path)
	switch {
	case serve == nil:
		x.detail(http.StatusNotFound, "Not Found")
	case method != "" && x.r.Method != method && !(method == http.MethodGet && x.r.Method == http.MethodHead):
		x.detail(http.StatusMethodNotAllowed, "Method Not Allowed")
	default:
		serve()
	}
}

// find returns what serves path, nil when nothing does, and the method it asks for, "" for any.
func (x *exchange) find(path string) (method string, serve func()) {
	switch path {
	case "/health", "/ping":
		if path == "/ping" && x.r.Method == http.MethodPost {
			return "", x.ok
		}
		return http.MethodGet, x.ok
	case "/version":
		return http.MethodGet, func() { x.json(map[string]string{"version": version}) }
	case "/metrics":
		return http.MethodGet, x.metrics
	case "/v1/models":
		return http.MethodGet, x.listModels
	case "/v1/chat/completions":
		return http.MethodPost, x.chat
	case "/v1/completions":
		return http.MethodPost, x.completions
	case "/v1/responses":
		return http.MethodPost, x.responses
	case "/v1/messages":
		return http.MethodPost, x.messages
	case "/v1/embeddings":
		return http.MethodPost, x.embeddings
	case "/v1/rerank", "/rerank", "/v2/rerank":
		return http.MethodPost, x.rerank
	case "/v1/score", "/score":
		return http.MethodPost, x.score
	case "/v1/moderations":
		return http.MethodPost, x.moderations
	case "/v1/images/generations":
		return http.MethodPost, x.images
	case "/v1/audio/transcriptions", "/v1/audio/translations":
		return http.MethodPost, x.transcribe
	case "/v1/audio/speech":
		return http.MethodPost, x.speech
	}
	switch {
	case strings.HasPrefix(path, "/v1/models/"):
		return http.MethodGet, x.oneModel
	case strings.HasPrefix(path, "/v1/echo/"):
		return http.MethodPost, x.echo
	case isUpload(path): // files
		return "", x.echo
	}
	return "", nil
}

func (x *exchange) ok() { x.answer(http.StatusOK, "application/json", nil) }

type modelCard struct {
	ID          string  `json:"id"`
	Object      string  `json:"object"`
	Created     int64   `json:"created"`
	OwnedBy     string  `json:"owned_by"`
	Root        string  `json:"root"`
	Parent      *string `json:"parent"`
	MaxModelLen int     `json:"max_model_len"`
	Permission  []any   `json:"permission"`
}

func (x *exchange) card(model string) modelCard {
	h := x.h
	return modelCard{
		model, "model", h.created, "vllm", h.cfg.Models[0], nil, h.cfg.MaxModelLen,
		[]any{map[string]any{
			"id": fmt.Sprintf("modelperm-%016x", hash(model)), "object": "model_permission", "created": h.created,
			"allow_create_engine": false, "allow_sampling": true, "allow_logprobs": true, "allow_search_indices": false,
			"allow_view": true, "allow_fine_tuning": false, "organization": "*", "group": nil, "is_blocking": false,
		}},
	}
}

func (x *exchange) listModels() {
	list := struct {
		Object string      `json:"object"`
		Data   []modelCard `json:"data"`
	}{Object: "list"}
	for _, m := range x.h.cfg.Models {
		list.Data = append(list.Data, x.card(m))
	}
	x.json(list)
}

// oneModel answers as OpenAI does; of vLLM's versions, some have no such route.
func (x *exchange) oneModel() {
	name := strings.TrimPrefix(x.r.URL.Path, "/v1/models/") // ids with slashes arrive with and without escapes
	if n, err := url.PathUnescape(name); err == nil {
		name = n
	}
	if p := x.model(&name); p != nil {
		x.refuse(p)
		return
	}
	x.json(x.card(name))
}

// Echo is what /v1/echo/… and /v1/files… answer: the request as it arrived.
type Echo struct {
	Method    string      `json:"method"`
	Path      string      `json:"path"`     // decoded
	RawPath   string      `json:"raw_path"` // as it was on the wire, without the query
	Query     string      `json:"query"`
	BodyBytes int64       `json:"body_bytes"`
	BodyHash  string      `json:"body_sha256"` // in hex
	Headers   http.Header `json:"headers"`     // Host included
	Chunked   bool        `json:"chunked"`     // the body came without Content-Length
}

func (x *exchange) echo() {
	sum := sha256.New()
	n, err := io.Copy(sum, x.reader())
	if err != nil {
		panic(http.ErrAbortHandler) // the client left before it had said all
	}
	if x.body == nil {
		x.record(nil, n, sum.Sum(nil))
	}
	header := x.r.Header.Clone()
	header.Set("Host", x.r.Host)
	raw, _, _ := strings.Cut(x.r.RequestURI, "?")
	x.json(Echo{
		x.r.Method, x.r.URL.Path, raw, x.r.URL.RawQuery, n, hex.EncodeToString(sum.Sum(nil)), header,
		len(x.r.TransferEncoding) > 0,
	})
}
