package gateway

import "strings"

// protocol is the family a route's answers belong to; it decides how streams end and how errors look.
type protocol uint8

const (
	protoChat      protocol = iota // Chat Completions and what is alike
	protoResponses                 // OpenAI Responses: typed events, no [DONE]
	protoMessages                  // Anthropic Messages: typed events, no [DONE]
	protoOpaque                    // answers that are passed on unread
)

// bodyKind is what a route takes.
type bodyKind uint8

const (
	jsonBody bodyKind = iota
	formBody          // multipart, streamed through
	anyBody           // passed on unread
)

// route is one path of the OpenAI surface.
type route struct {
	path  string // as callers write it
	proto protocol
	body  bodyKind
	// usage says that hosts know stream_options.include_usage there.
	usage bool
}

// below is the path as endpoints list it, "" for those without a model.
func (r *route) below() string {
	p, ok := strings.CutPrefix(r.path, "/v1")
	if !ok {
		return ""
	}
	return p
}

const chatRoute = "/v1/chat/completions"

// routes are the paths that are forwarded by model.
var routes = func() map[string]*route {
	m := map[string]*route{}
	for _, r := range []route{
		{path: chatRoute, proto: protoChat, usage: true},
		{path: "/v1/completions", proto: protoChat, usage: true},
		{path: "/v1/embeddings", proto: protoOpaque},
		{path: "/v1/responses", proto: protoResponses},
		{path: "/v1/messages", proto: protoMessages},
		{path: "/v1/messages/count_tokens", proto: protoOpaque},
		{path: "/v1/rerank", proto: protoOpaque},
		{path: "/v1/score", proto: protoOpaque},
		{path: "/v1/moderations", proto: protoOpaque},
		{path: "/v1/images/generations", proto: protoOpaque},
		{path: "/v1/images/edits", proto: protoOpaque, body: formBody},
		{path: "/v1/images/variations", proto: protoOpaque, body: formBody},
		{path: "/v1/audio/speech", proto: protoOpaque},
		{path: "/v1/audio/transcriptions", proto: protoOpaque, body: formBody},
		{path: "/v1/audio/translations", proto: protoOpaque, body: formBody},
	} {
		m[r.path] = &r
	}
	return m
}()

const (
	modelsPath  = "/v1/models"
	modelPrefix = modelsPath + "/"
)

// suggestion returns a known path that the caller may have meant, or "".
func suggestion(path string) string {
	p := strings.TrimRight(path, "/")
	for _, try := range []string{p, "/v1" + p, strings.TrimPrefix(p, "/v1"), strings.TrimPrefix(p, "/openai")} {
		if try != path && (routes[try] != nil || try == modelsPath) {
			return try
		}
	}
	return ""
}
