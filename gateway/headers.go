package gateway

import (
	"bytes"
	"strings"

	"github.com/valyala/fasthttp"
)

// forwarded are the request header fields that hosts get, by lower-case name; all others stay here:
// the caller's credentials and cookies above all.
func forwarded(name []byte) bool {
	switch len(name) {
	case len("accept"):
		return bytes.EqualFold(name, []byte("accept"))
	case len("openai-beta"):
		return bytes.EqualFold(name, []byte("openai-beta"))
	case len("content-type"):
		return bytes.EqualFold(name, []byte("content-type"))
	case len("anthropic-beta"):
		return bytes.EqualFold(name, []byte("anthropic-beta"))
	case len("idempotency-key"):
		return bytes.EqualFold(name, []byte("idempotency-key"))
	case len("anthropic-version"):
		return bytes.EqualFold(name, []byte("anthropic-version"))
	}
	return false
}

// passthroughForwarded takes everything that is not this hop's own or secret.
func passthroughForwarded(name []byte) bool {
	if bytes.IndexByte(name, ' ') >= 0 {
		return false // fasthttp lets it pass; the host would refuse the whole request, and be blamed for it
	}
	s := strings.ToLower(string(name))
	switch s {
	case "host", "connection", "keep-alive", "proxy-connection", "transfer-encoding", "content-length", "te", "trailer",
		"upgrade", "expect", "authorization", "proxy-authorization", "api-key", "x-api-key", "cookie", "user-agent", "accept-encoding",
		"x-request-id", "baggage": // the last is what other parties know of the caller
		return false
	case "cf-access-jwt-assertion", "cf-access-token", "cf-access-client-id", "cf-access-client-secret", "x-forwarded-access-token", "x-auth-token", "x-auth-request-access-token",
		"x-goog-api-key", "x-goog-iap-jwt-assertion", "ocp-apim-subscription-key", "x-ms-token-aad-access-token", "x-ms-token-aad-id-token", "x-amz-security-token", "x-csrf-token":
		return false // credentials of the proxies in front of us, or for others than this host
	}
	if strings.HasPrefix(s, "x-amzn-oidc-") {
		return false
	}
	return !strings.HasPrefix(s, "x-headrace-")
}

// passthroughTraced is passthroughForwarded where the gateway says which trace the request belongs to.
func passthroughTraced(name []byte) bool {
	return !bytes.EqualFold(name, nameParent) && !bytes.EqualFold(name, nameState) && passthroughForwarded(name)
}

// appendHeader renders the header lines of an upstream request.
func appendHeader(dst []byte, h *fasthttp.RequestHeader, take func([]byte) bool, requestID string) []byte {
	hop := h.Peek(fasthttp.HeaderConnection)
	for k, v := range h.All() {
		if take(k) && !named(hop, k) && inLine(v) {
			dst = append(dst, k...)
			dst = append(dst, ": "...)
			dst = append(dst, v...)
			dst = append(dst, '\r', '\n')
		}
	}
	dst = append(dst, "X-Request-Id: "...)
	dst = append(dst, requestID...)
	return append(dst, '\r', '\n')
}

// inLine tells whether v can stand in a header line.
func inLine(v []byte) bool {
	for _, c := range v { // bytes.ContainsAny makes itself a table first, each time
		if c == '\r' || c == '\n' || c == 0 {
			return false
		}
	}
	return true
}

// named tells whether a Connection field makes name this hop's own (RFC 9110 section 7.6.1).
func named(connection, name []byte) bool {
	for len(connection) > 0 {
		var option []byte
		option, connection, _ = bytes.Cut(connection, []byte(","))
		if bytes.EqualFold(bytes.TrimSpace(option), name) {
			return true
		}
	}
	return false
}

// returned tells which response header fields of a host reach the caller.
func returned(name []byte) bool {
	var buf [32]byte
	if len(name) > len(buf) {
		return !hasFoldPrefix(name, "x-headrace-") && !hasFoldPrefix(name, "anthropic-ratelimit-")
	}
	low := buf[:len(name)]
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		low[i] = c
	}
	switch string(low) { // compiled without allocating
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "content-length", "trailer", "upgrade",
		"te", "date", "server", "set-cookie", "proxy-authenticate", "www-authenticate", "authorization", "alt-svc",
		"x-request-id", "x-should-retry", "server-timing", "content-type", "strict-transport-security":
		return false
	}
	return !bytes.HasPrefix(low, []byte("x-headrace-")) &&
		!bytes.HasPrefix(low, []byte("x-ratelimit-")) && !bytes.HasPrefix(low, []byte("anthropic-ratelimit-")) // the host's limits are ours, not the caller's
}

func hasFoldPrefix(b []byte, prefix string) bool {
	return len(b) >= len(prefix) && strings.EqualFold(string(b[:len(prefix)]), prefix)
}

// copyHead gives the caller the host's header fields.
func copyHead(dst *fasthttp.ResponseHeader, src *fasthttp.ResponseHeader) {
	hop := src.Peek(fasthttp.HeaderConnection)
	for k, v := range src.All() {
		if returned(k) && !named(hop, k) {
			dst.AddBytesKV(k, v)
		}
	}
	if ct := src.ContentType(); len(ct) > 0 {
		dst.SetContentTypeBytes(ct)
	}
}
