package vast

import (
	"bytes"
	"net/http"
	"strings"

	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// Classify knows what an instance, or Vast.ai's OpenAI proxy, means by an answer that is no 2xx or that is a web page. The first
// line that fits counts; known is false where the status says it all. It is pure and keeps nothing of body.
func Classify(ep *endpoint.Endpoint, status int, contentType string, body []byte) (class outcome.Class, known bool) {
	if ep.Provider != "vast" || ep.Dialect != endpoint.OpenAI {
		return 0, false
	}
	html := strings.HasPrefix(strings.ToLower(contentType), "text/html") || bytes.HasPrefix(bytes.TrimSpace(body), []byte("<"))
	proxied := strings.HasPrefix(string(ep.ID), idPrefix+"serverless-")
	switch {
	case proxied && status == http.StatusGatewayTimeout:
		// The proxy gives up after about 5 min while a worker goes on starting.
		return outcome.NotReady, true
	case proxied && status == http.StatusNotFound && bytes.Contains(body, []byte("Endpoint '")):
		// "Endpoint 'X' not found": the key is another account's.
		return outcome.UpstreamDenied, true
	case html && (status == http.StatusBadGateway || status == http.StatusServiceUnavailable || status == http.StatusOK):
		// The portal's placeholder (X-Portal-Placeholder) while the model server behind Caddy is down; 200 through a Cloudflare tunnel.
		return outcome.NotReady, true
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		// Caddy and vLLM alike refuse the key that this very server took when it was checked: most likely another's server by now.
		return outcome.UpstreamDenied, true
	case html && status >= 400 && status < 500 && status != http.StatusRequestEntityTooLarge && status != http.StatusTooManyRequests:
		// Model servers answer JSON: this is somebody else's server, so it is not the caller's fault.
		return outcome.UpstreamFault, true
	case status == http.StatusBadRequest && bytes.Contains(body, []byte("HTTPS")) && bytes.Contains(body, []byte("HTTP request")):
		// The port was restarted with TLS ("… sent an HTTP request to an HTTPS server", "plain HTTP request was sent to HTTPS port").
		return outcome.UpstreamFault, true
	case status == http.StatusNotFound && (bytes.Contains(body, []byte("NotFoundError")) || bytes.Contains(body, []byte("model_not_found"))) &&
		bytes.Contains(body, []byte("model")):
		// The model is one that this server listed: it serves others now, or it is another tenant's.
		return outcome.UpstreamFault, true
	}
	return 0, false
}
