package gateway

import (
	"bytes"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"headrace/gateway/admission"
	"headrace/gateway/openai"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// Who may ask for what is gateway/admission's business. Here is what it reads of a request, and where it is asked: before anything of
// the body is looked at, and again with what the body says.

// strangerBody is how large a body may be that is read before its sender's key is known to be none of ours.
const strangerBody = 64 << 10

// credential returns the key that a request carries, nil for none: that of the caller's SDK, be it OpenAI's, Anthropic's or Azure's. Two
// that differ are refused, since whoever stands in front of us may have looked at the other one.
func credential(h *fasthttp.RequestHeader) (key []byte, two bool) {
	for k, v := range h.All() {
		switch len(k) {
		case len("authorization"):
			if !bytes.EqualFold(k, []byte("authorization")) {
				continue
			}
			scheme, rest, ok := bytes.Cut(v, []byte(" "))
			if !ok || !bytes.EqualFold(scheme, []byte("bearer")) {
				continue // some proxy's
			}
			v = rest
		case len("x-api-key"):
			if !bytes.EqualFold(k, []byte("x-api-key")) {
				continue
			}
		case len("api-key"):
			if !bytes.EqualFold(k, []byte("api-key")) {
				continue
			}
		default:
			continue
		}
		if v = bytes.TrimSpace(v); len(v) == 0 {
			continue
		}
		if key != nil && !bytes.Equal(key, v) {
			return nil, true
		}
		key = v
	}
	return key, false
}

// enter finds the key that a request carries, and what it allows; nil where nobody needs one.
func (s *Server) enter(ctx *fasthttp.RequestCtx, now time.Time) (*admission.Grant, *openai.Error) {
	g, h := s.opt.Keys, &ctx.Request.Header
	if uri := h.RequestURI(); bytes.IndexByte(uri, '?') >= 0 {
		if name := secretParameter(uri); name != "" {
			return nil, g.QueryKey(name)
		}
	}
	if g.Open() {
		return nil, nil
	}
	key, two := credential(h)
	if two {
		return nil, g.TwoKeys()
	}
	return g.Enter(key, now)
}

// stranger tells whether a request comes from somebody without a key of ours, by its head.
func (s *Server) stranger(h *fasthttp.RequestHeader) bool {
	if s.opt.Keys.Open() {
		return false
	}
	key, two := credential(h)
	return two || !s.opt.Keys.Knows(key, time.Now())
}

// secretParameter returns the first parameter of a URL that seems to hold a credential, "" for none.
func secretParameter(uri []byte) string {
	_, query, _ := bytes.Cut(uri, []byte("?"))
	query, _, _ = bytes.Cut(query, []byte("#"))
	for p := range bytes.FieldsFuncSeq(query, func(r rune) bool { return r == '&' || r == ';' }) {
		name, _, _ := bytes.Cut(p, []byte("="))
		plain, err := url.QueryUnescape(string(name))
		if err != nil {
			continue // no name that anybody reads
		}
		switch plain = strings.ReplaceAll(strings.ToLower(strings.TrimSpace(plain)), "-", "_"); plain {
		case "api_key", "apikey", "x_api_key", "key", "access_token", "auth_token", "token", "authorization", "bearer", "secret":
			return plain
		}
	}
	return ""
}

// hasParameter tells whether a URL has the parameter, whatever its case.
func hasParameter(uri []byte, want string) bool {
	_, query, _ := bytes.Cut(uri, []byte("?"))
	for p := range bytes.FieldsFuncSeq(query, func(r rune) bool { return r == '&' || r == ';' || r == '#' }) {
		name, _, _ := bytes.Cut(p, []byte("="))
		if plain, err := url.QueryUnescape(string(name)); err == nil && strings.EqualFold(plain, want) {
			return true
		}
	}
	return false
}

// visible returns those of the models that the key may name.
func visible(models []string, g *admission.Grant) []string {
	if !g.Limited() {
		return models
	}
	var out []string
	for _, m := range models {
		if g.Model(m) {
			out = append(out, m)
		}
	}
	return out
}

// confined refuses what could make a host serve another model than the one that the key allows.
func (x *exchange) confined() *openai.Error {
	if !x.grant.Limited() {
		return nil
	}
	if stray := x.scan.Stray; stray != nil {
		name := clip(string(stray), 64)
		return x.s.opt.Keys.NotAllowed(name, "unsupported_parameter",
			"This API key is limited to some models, so a request may not hold "+strconv.Quote(name)+", which a host may take for another model. Leave it out.")
	}
	if uri := x.ctx.Request.Header.RequestURI(); bytes.IndexByte(uri, '?') >= 0 && (hasParameter(uri, "model") || hasParameter(uri, "deployment")) {
		return x.s.opt.Keys.NotAllowed("model", "unsupported_parameter",
			"This API key is limited to some models, so the URL may not name one. Name it in the body.")
	}
	return nil
}

// mostChoices is how many answers are charged in advance; no host gives more.
const mostChoices = 128

// choices is how many answers a host makes for the request, be it to give the best of them.
func (x *exchange) choices() int64 { return min(max(x.scan.N, int64(x.scan.BestOf)), mostChoices) }

// spend takes what the request is going to use from the key's limits and budgets.
func (x *exchange) spend() *openai.Error {
	if x.grant == nil {
		return nil
	}
	var left admission.Left
	ask := admission.Ask{
		Now: x.rec.At, Prompt: x.ask.PromptTokens, Output: x.ask.MaxTokens, N: int(x.choices()), Silent: x.ask.Tokenless || x.pinned != "",
	}
	if x.grant.Key.Budget.Any() {
		ask.Price = x.s.router.Ceiling(x.ask.Model)
	}
	p, e := x.grant.Admit(&ask, &left)
	if e != nil {
		x.setLimits(&left)
		if e.Code == openai.CodeInsufficientQuota {
			x.ctx.Response.Header.SetCanonical(nameShouldRetry, []byte("false")) // which OpenAI's and Anthropic's SDKs understand
		}
		return e
	}
	x.pass = p
	return nil
}

// leave gives back what was taken in advance, and notes what was used, once. The record is complete.
func (x *exchange) leave() {
	if x.pass == nil {
		return
	}
	r := &x.rec
	u := admission.Used{Now: time.Now(), Prompt: r.Prompt, Output: r.Output, Began: r.Tries > 0, USD: r.USD}
	if x.route.proto == protoOpaque && u.Prompt >= 0 {
		u.Output = max(u.Output, 0)
	}
	u.Unpriced = u.Output < 0 && r.Class != outcome.Success
	for i := range r.Attempts {
		switch a := &r.Attempts[i]; {
		case !a.USDKnown:
			u.Unpriced = u.Unpriced || a.Output > 0 || a.Class == outcome.Success
		case a.Output == 0: // nothing was written, for all that is known
			u.PromptUSD += a.USD
		case a.Basis == endpoint.PerToken || a.First > 0:
			u.PromptUSD += a.PromptUSD
			u.OutputUSD += a.USD - a.PromptUSD
		} // of an answer in one piece nobody has seen when it began
	}
	x.pass.Settle(&u)
	x.pass = nil
}
