package gateway

import (
	"net/url"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"headrace/gateway/openai"
	"headrace/router"
)

// passthroughRoute is every path under /v1 that has no route of its own.
var passthroughRoute = &route{path: "passthrough", proto: protoOpaque, body: anyBody}

// other serves what is not forwarded by model.
func (s *Server) other(ctx *fasthttp.RequestCtx, path string, rt *route, now time.Time) {
	get := ctx.IsGet() || ctx.IsHead()
	isModel := len(path) > len(modelPrefix) && strings.HasPrefix(path, modelPrefix)
	switch {
	case rt != nil && !ctx.IsPost():
		ctx.Response.Header.Set(fasthttp.HeaderAllow, "POST")
		s.refuse(ctx, errMethod(string(ctx.Method()), rt.path, "POST"), rt.proto)
	case rt != nil: // a multipart route without a multipart body: uploads never come here
		s.refuse(ctx, errMediaType(rt.path, "multipart/form-data"), rt.proto)
	case path == modelsPath && get:
		s.listModels(ctx, now)
	case path == modelsPath:
		ctx.Response.Header.Set(fasthttp.HeaderAllow, "GET, HEAD")
		s.refuse(ctx, errMethod(string(ctx.Method()), path, "GET"), protoChat)
	case isModel && get:
		s.showModel(ctx, path[len(modelPrefix):], now)
	case s.opt.Webhook != nil && strings.HasPrefix(path, webhookPrefix):
		s.webhook(ctx, path[len(webhookPrefix):])
	case s.set.Load().Passthrough != "" && strings.HasPrefix(path, "/v1/"):
		s.passthrough(ctx, path, now)
	case isModel:
		ctx.Response.Header.Set(fasthttp.HeaderAllow, "GET, HEAD")
		s.refuse(ctx, errMethod(string(ctx.Method()), modelPrefix+"{model}", "GET"), protoChat)
	default:
		s.refuse(ctx, errUnknownRoute(string(ctx.Method()), path), protoChat)
	}
}

const (
	webhookPrefix   = "/webhooks/"
	maxWebhookBytes = 64 << 10
)

// webhook hands what a provider tells of its own accord to its adapter. Senders get a status and nothing else.
func (s *Server) webhook(ctx *fasthttp.RequestCtx, name string) {
	var status int
	switch body := ctx.Request.Body(); {
	case !ctx.IsPost():
		ctx.Response.Header.Set(fasthttp.HeaderAllow, "POST")
		status = fasthttp.StatusMethodNotAllowed
	case len(body) > maxWebhookBytes:
		status = fasthttp.StatusRequestEntityTooLarge
	default:
		status = s.opt.Webhook(name, func(h string) string { return string(ctx.Request.Header.Peek(h)) }, body)
	}
	ctx.SetStatusCode(status)
	ctx.Response.Header.SetContentTypeBytes(jsonType)
	ctx.Response.SetBodyString("{}")
	s.log.Info("webhook", "name", clip(name, 32), "status", status)
}

// refuse answers a request that never became an exchange.
func (s *Server) refuse(ctx *fasthttp.RequestCtx, e *openai.Error, proto protocol) {
	id := s.newID()
	ctx.Response.Header.Set("X-Request-Id", id)
	writeError(ctx, e, proto)
	s.refused(id, e)
}

// passthrough sends a request on as it is to the one host configured for that.
func (s *Server) passthrough(ctx *fasthttp.RequestCtx, path string, now time.Time) {
	if hasDotSegment(path) {
		s.refuse(ctx, &openai.Error{
			Status: 400, Type: "invalid_request_error", Code: "invalid_url",
			Message: "The path contains a dot segment. Send the path it stands for.",
		}, protoChat)
		return
	}
	grant, e := s.enter(ctx, now)
	if e != nil {
		s.refuse(ctx, e, protoChat)
		return
	}
	x := s.begin(ctx, passthroughRoute, grant, now)
	s.serve(x, func(x *exchange) *openai.Error {
		if e := x.enter(); e != nil {
			return e
		}
		if e := x.pin(); e != nil {
			return e
		}
		body := ctx.Request.Body()
		x.rec.BytesIn = int64(len(body))
		x.prepare(x.passes())
		x.req.Method = string(ctx.Method())
		x.rec.Method = knownMethod(x.req.Method)
		x.parts[0] = body
		x.req.Body, x.req.Size = x.parts[:1], len(body)
		return nil
	})
}

// passes tells which header fields the passthrough host gets.
func (x *exchange) passes() func([]byte) bool {
	if x.rec.Trace.On() {
		return passthroughTraced
	}
	return passthroughForwarded
}

// knownMethod is m where HTTP or WebDAV's common part defines it, as OpenTelemetry counts methods.
func knownMethod(m string) string {
	switch m {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT":
		return m
	}
	return "_OTHER"
}

// hasDotSegment finds "." and ".." segments, which could lead out of the host's base path, however
// they are written.
func hasDotSegment(path string) bool {
	for seg := range strings.FieldsFuncSeq(path, func(r rune) bool { return r == '/' || r == '\\' }) {
		plain, err := url.PathUnescape(seg)
		if err != nil {
			return true
		}
		for part := range strings.FieldsFuncSeq(plain, func(r rune) bool { return r == '/' || r == '\\' }) {
			if part == "." || part == ".." {
				return true
			}
		}
	}
	return false
}

// modelList is the answer of GET /v1/models for one snapshot.
type modelList struct {
	of   *router.Snapshot
	body []byte
}

func (s *Server) listModels(ctx *fasthttp.RequestCtx, now time.Time) {
	grant, e := s.enter(ctx, now)
	if e != nil {
		s.refuse(ctx, e, protoChat)
		return
	}
	snap := s.router.Snapshot()
	if grant.Limited() {
		s.sendJSON(ctx, s.modelCards(snap, visible(snap.Models(), grant)))
		return
	}
	l := s.models.Load()
	if l == nil || l.of != snap {
		l = &modelList{of: snap, body: s.modelCards(snap, snap.Models())}
		s.models.Store(l)
	}
	s.sendJSON(ctx, l.body)
}

// modelCards is the list of the models by those names.
func (s *Server) modelCards(snap *router.Snapshot, names []string) []byte {
	cards := make([][]byte, 0, len(names))
	for _, name := range names {
		base, _ := snap.Card(name)
		cards = append(cards, openai.AppendModelCard(nil, name, base, s.created))
	}
	return openai.AppendModelList(nil, cards)
}

func (s *Server) showModel(ctx *fasthttp.RequestCtx, escaped string, now time.Time) {
	grant, e := s.enter(ctx, now)
	if e != nil {
		s.refuse(ctx, e, protoChat)
		return
	}
	name, err := url.PathUnescape(escaped) // ids contain slashes, written as they are or as %2F
	snap := s.router.Snapshot()
	if err != nil {
		name = escaped // as no model is called
	}
	if err != nil || !snap.Has(name) || !grant.Model(name) {
		s.refuse(ctx, errModelUnknown(name, visible(snap.Models(), grant)), protoChat)
		return
	}
	base, _ := snap.Card(name)
	s.sendJSON(ctx, openai.AppendModelCard(nil, name, base, s.created))
}

func (s *Server) sendJSON(ctx *fasthttp.RequestCtx, body []byte) {
	ctx.Response.Header.Set("X-Request-Id", s.newID())
	ctx.Response.Header.SetContentTypeBytes(jsonType)
	ctx.Response.SetBodyRaw(body)
}
