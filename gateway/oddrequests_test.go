package gateway

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestBadInputRequests sends what is wrong or odd as HTTP.
func TestBadInputRequests(t *testing.T) {
	var rows []badInput

	// Request lines.
	for _, l := range []struct{ name, send string }{
		{"garbage", "GARBAGE\r\n\r\n"},
		{"a lone method", "GET\r\n\r\n"},
		{"HTTP 0.9", "GET /v1/models\r\n\r\n"},
		{"HTTP 9.9", "GET /v1/models HTTP/9.9\r\nHost: gw\r\n\r\n"},
		{"HTTP 2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"},
		{"no version number", "GET /v1/models HTTP/\r\nHost: gw\r\n\r\n"},
		{"another protocol", "GET /v1/models ICY/1.1\r\nHost: gw\r\n\r\n"},
		{"two spaces behind the method", "GET  /v1/models HTTP/1.1\r\nHost: gw\r\n\r\n"},
		{"two spaces before the version", "GET /v1/models  HTTP/1.1\r\nHost: gw\r\n\r\n"},
		{"space in the target", "GET /v1/mod els HTTP/1.1\r\nHost: gw\r\n\r\n"},
		{"space before the method", " GET /v1/models HTTP/1.1\r\nHost: gw\r\n\r\n"},
		{"NUL in the method", "GE\x00T /v1/models HTTP/1.1\r\nHost: gw\r\n\r\n"},
		{"NUL in the target", "GET /v1/mo\x00dels HTTP/1.1\r\nHost: gw\r\n\r\n"},
		{"CR in the target", "GET /v1/mo\rdels HTTP/1.1\r\nHost: gw\r\n\r\n"},
		{"target without a slash", "GET v1/models HTTP/1.1\r\nHost: gw\r\n\r\n"},
		{"asterisk with GET", "GET * HTTP/1.1\r\nHost: gw\r\n\r\n"},
		{"method with a colon", "GE:T /v1/models HTTP/1.1\r\nHost: gw\r\n\r\n"},
		{"status line for a request", "HTTP/1.1 200 OK\r\nHost: gw\r\n\r\n"},
		{"missing Host", getModels + "\r\n"},
		{"empty Host", getModels + "Host:\r\n\r\n"},
		{"two Hosts", getModels + "Host: gw\r\nHost: other\r\n\r\n"},
		{"two equal Hosts", getModels + "Host: gw\r\nHost: gw\r\n\r\n"},
		{"NUL in a value", getModels + "Host: gw\r\nX-A: a\x00b\r\n\r\n"},
		{"NUL in a name", getModels + "Host: gw\r\nX-\x00A: ab\r\n\r\n"},
		{"CR in a value", getModels + "Host: gw\r\nX-A: a\rX-B: b\r\n\r\n"},
		{"CR in a name", getModels + "Host: gw\r\nX-\rA: b\r\n\r\n"},
		{"escape character in a value", getModels + "Host: gw\r\nX-A: \x1b[31m\r\n\r\n"},
		{"line without a colon", getModels + "Host: gw\r\nnonsense\r\n\r\n"},
		{"line without a name", getModels + "Host: gw\r\n: value\r\n\r\n"},
		{"space before the colon", getModels + "Host: gw\r\nX-A : b\r\n\r\n"},
		{"first line folded", getModels + " X-A: a\r\nHost: gw\r\n\r\n"},
		{"two lengths", postChat + "Content-Length: 28\r\nContent-Length: 29\r\n\r\n" + goodBody},
		{"two equal lengths", postChat + "Content-Length: 28\r\nContent-Length: 28\r\n\r\n" + goodBody},
		{"list of lengths", postChat + "Content-Length: 28, 28\r\n\r\n" + goodBody},
		{"negative length", postChat + "Content-Length: -1\r\n\r\n" + goodBody},
		{"length with a plus", postChat + "Content-Length: +28\r\n\r\n" + goodBody},
		{"hexadecimal length", postChat + "Content-Length: 0x1c\r\n\r\n" + goodBody},
		{"length in words", postChat + "Content-Length: many\r\n\r\n" + goodBody},
		{"empty length", postChat + "Content-Length:\r\n\r\n" + goodBody},
		{"length beyond 64 bits", postChat + "Content-Length: 99999999999999999999\r\n\r\n" + goodBody},
		{"unknown transfer coding", postChat + "Transfer-Encoding: gzip\r\n\r\n" + goodBody},
		{"two transfer codings", postChat + "Transfer-Encoding: gzip, chunked\r\n\r\n1c\r\n" + goodBody + "\r\n0\r\n\r\n"},
		{"chunked twice", postChat + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n1c\r\n" + goodBody + "\r\n0\r\n\r\n"},
		{"almost chunked", postChat + "Transfer-Encoding: xchunked\r\n\r\n1c\r\n" + goodBody + "\r\n0\r\n\r\n"},
		{"chunked under HTTP 1.0", "POST /v1/chat/completions HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n1c\r\n" + goodBody + "\r\n0\r\n\r\n"},
		{"chunk size in words", postChat + "Transfer-Encoding: chunked\r\n\r\nzz\r\n" + goodBody + "\r\n0\r\n\r\n"},
		{"no chunk size", postChat + "Transfer-Encoding: chunked\r\n\r\n\r\n" + goodBody + "\r\n0\r\n\r\n"},
		{"negative chunk size", postChat + "Transfer-Encoding: chunked\r\n\r\n-1c\r\n" + goodBody + "\r\n0\r\n\r\n"},
		{"prefixed chunk size", postChat + "Transfer-Encoding: chunked\r\n\r\n0x1c\r\n" + goodBody + "\r\n0\r\n\r\n"},
		{"chunk larger than its size", postChat + "Transfer-Encoding: chunked\r\n\r\n4\r\n" + goodBody + "\r\n0\r\n\r\n"},
		{"chunk without its CRLF", postChat + "Transfer-Encoding: chunked\r\n\r\n1c\r\n" + goodBody + "0\r\n\r\n"},
		{"chunk size beyond 64 bits", postChat + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n" + goodBody + "\r\n0\r\n\r\n"},
		{"trailer that would be a header", postChat + "Transfer-Encoding: chunked\r\nTrailer: Content-Length\r\n\r\n1c\r\n" + goodBody + "\r\n0\r\nContent-Length: 3\r\n\r\n"},
		{"trailer line without a colon", postChat + "Transfer-Encoding: chunked\r\n\r\n1c\r\n" + goodBody + "\r\n0\r\nnonsense\r\n\r\n"},
		{"CONNECT without a slash or host", "CONNECT  HTTP/1.1\r\nHost: gw\r\n\r\n"},
	} {
		rows = append(rows, badInput{name: l.name, send: l.send, status: 400, code: "malformed_request", then: closed})
	}
	rows = append(rows, oddDemands()...)
	runBadInputs(t, append(rows, oddRequests()...))
}

// oddDemands are values of the fields by which a request says what it wants of its host.
func oddDemands() []badInput {
	var rows []badInput
	send := func(header string) string { return postChat + header + "\r\n" + sizedMessage(goodBody) }
	for header, values := range map[string][]string{
		"x-headrace-slo-ttft": {"soon", "0", "0s", "-2s", "-2", "24h1s", "86400", "1e300", "NaN", "Inf", "2 s", "2s,3s", "0x", "1e-12"},
		"x-headrace-slo-tps":  {"fast", "0", "-1", "1000001", "1e300", "NaN", "-Inf", "Inf", "20/s", "1,5"},
		"x-headrace-policy":   {"cheap", "default", "cost,latency", "co st", "3", "balanced\xff"},
		"x-headrace-session":  {strings.Repeat("s", 257)},
		"x-headrace-trust":    {"high", "secure, verified"},
		"x-headrace-region":   {",", ", ,"},
	} {
		for _, v := range values {
			name := header + " " + v[:min(20, len(v))]
			rows = append(rows, badInput{name: name, send: send(header + ": " + v), status: 400, code: "invalid_header", param: header, says: "The header " + header + " is not understood. Give "})
		}
	}
	for _, l := range []string{
		"x-headrace-slo-ttft: 1h30m", "X-HEADRACE-SLO-TTFT: 86399.5", "x-headrace-slo-ttft: 24h", "x-headrace-slo-ttft: +30", "x-headrace-slo-tps: 0.5", "x-headrace-slo-tps: 1e1",
		"x-headrace-policy: BALANCED", "x-headrace-policy:  weighted ", "x-headrace-policy: cost", "x-headrace-policy: latency", "x-headrace-policy:",
		"x-headrace-session: " + strings.Repeat("s", 256), "x-headrace-session: Zo\xeb", "x-headrace-session:", "x-headrace-slo-ttft:   ",
		"x-headrace-unknown: 1", "x-headrace-: 1", "x-headrace: 1",
	} {
		rows = append(rows, badInput{name: l[:min(40, len(l))], send: send(l), status: 200, seen: seenChat})
	}
	return rows
}

// oddRequests are well formed or nearly so.
func oddRequests() []badInput {
	chatTo := func(target string) string {
		return strings.Replace(postChat, chatPath, target, 1) + sizedMessage(goodBody)
	}
	plain := func(line string) string { return line + " HTTP/1.1\r\nHost: gw\r\n\r\n" }
	typed := func(path, contentType, body string) string {
		return "POST " + path + " HTTP/1.1\r\nHost: gw\r\nContent-Type: " + contentType + "\r\n" + sizedMessage(body)
	}
	allow := func(want string) func(*testing.T, *http.Response) {
		return func(t *testing.T, r *http.Response) {
			if got := r.Header.Get("Allow"); got != want {
				t.Errorf("Allow %q, want %q", got, want)
			}
		}
	}
	const (
		speech = "/v1/audio/transcriptions"
		form   = "--B\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm1\r\n--B--\r\n"
		noForm = "--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nx\r\n--B--\r\n"
	)
	big := strings.Repeat("x", 128<<10)
	return []badInput{
		// Served, since no harm is in them.
		{name: "blank lines first", send: "\r\n\r\n" + chatTo(chatPath), status: 200, seen: seenChat},
		{name: "no blank behind the colon", send: strings.ReplaceAll(chatTo(chatPath), ": ", ":"), status: 200, seen: seenChat},
		{name: "names in lower case", send: strings.NewReplacer("Host", "host", "Content-", "content-", "Length", "length").Replace(chatTo(chatPath)), status: 200, seen: seenChat},
		{name: "space in a name", send: postChat + "X A: b\r\n" + sizedMessage(goodBody), status: 200, seen: seenChat},
		{name: "one line that ends in LF", send: postChat + "X-A: b\n" + sizedMessage(goodBody), status: 200, seen: seenChat},
		{name: "UTF-8 in a value", send: postChat + "X-Name: Zoë\r\n" + sizedMessage(goodBody), status: 200, seen: seenChat},
		{name: "folded line", send: postChat + "X-A: a\r\n b\r\n" + sizedMessage(goodBody), status: 200, seen: seenChat},
		{name: "chunked", send: postChat + chunkedMessage(goodBody), status: 200, seen: seenChat},
		{name: "chunk extension", send: postChat + "Transfer-Encoding: chunked\r\n\r\n1c;a=b\r\n" + goodBody + "\r\n0\r\n\r\n", status: 200, seen: seenChat},
		{name: "chunks of a byte", send: postChat + "Transfer-Encoding: chunked\r\n\r\n" + bytewise(goodBody) + "0\r\n\r\n", status: 200, seen: seenChat},
		{name: "trailer", send: postChat + "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n1c\r\n" + goodBody + "\r\n0\r\nX-Sum: 1\r\n\r\n", status: 200, seen: seenChat},
		{name: "coding identity", send: postChat + "Transfer-Encoding: identity\r\n" + sizedMessage(goodBody), status: 200, seen: seenChat, then: closed},
		{name: "length and chunked", send: postChat + "Content-Length: 5\r\n" + chunkedMessage(goodBody), status: 200, seen: seenChat, then: closed},
		{name: "chunked and length", send: postChat + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n1c\r\n" + goodBody + "\r\n0\r\n\r\n", status: 200, seen: seenChat, then: closed},
		{name: "asks to close", send: postChat + "Connection: close\r\n" + sizedMessage(goodBody), status: 200, seen: seenChat, then: closed},
		{name: "asks to upgrade to h2c", send: postChat + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n" + sizedMessage(goodBody), status: 200, seen: seenChat},
		{name: "asks for a range", send: postChat + "Range: bytes=0-1\r\n" + sizedMessage(goodBody), status: 200, says: plainBody, seen: seenChat},
		{name: "expects 100-continue", send: postChat + "Expect: 100-continue\r\n" + sizedMessage(goodBody), status: 200, seen: seenChat},
		{name: "query", send: chatTo(chatPath + "?api-version=1&x=%20"), status: 200, seen: seenChat + "?api-version=1&x=%20"},
		{name: "empty query", send: chatTo(chatPath + "?"), status: 200, seen: seenChat + "?"},
		{name: "fragment", send: chatTo(chatPath + "#top"), status: 200, seen: seenChat},
		{name: "absolute form", send: chatTo("http://gw" + chatPath), status: 200, seen: seenChat},
		{name: "absolute form with a query", send: chatTo("HTTPS://other:1" + chatPath + "?a=/v1"), status: 200, seen: seenChat + "?a=/v1"},
		{name: "HTTP 1.0 without Host", send: strings.Replace(chatTo(chatPath), "HTTP/1.1\r\nHost: gw", "HTTP/1.0", 1), status: 200, seen: seenChat, then: closed},
		{name: "type in capitals", send: typed(chatPath, "APPLICATION/JSON; Charset=UTF-8", goodBody), status: 200, seen: seenChat},
		{name: "no type", send: "POST " + chatPath + " HTTP/1.1\r\nHost: gw\r\n" + sizedMessage(goodBody), status: 200, seen: seenChat},
		{name: "encoding identity", send: postChat + "Content-Encoding: identity\r\n" + sizedMessage(goodBody), status: 200, seen: seenChat},
		{name: "models by HEAD", send: plain("HEAD /v1/models"), status: 200},
		{name: "models with a body", send: "GET /v1/models HTTP/1.1\r\nHost: gw\r\n" + sizedMessage("hello"), status: 200, says: `"m1"`},
		{name: "model with an escape", send: plain("GET /v1/models/%6d1"), status: 200, says: `"m1"`},
		{name: "upload", send: typed(speech, "multipart/form-data; boundary=B", form), status: 200, seen: "POST " + speech, then: closed},
		{name: "upload with 100-continue", send: "POST " + speech + " HTTP/1.1\r\nHost: gw\r\nExpect: 100-continue\r\nContent-Type: multipart/form-data; boundary=B\r\n" + sizedMessage(form), status: 200, seen: "POST " + speech, then: closed},

		// Routes.
		{name: "root", send: plain("GET /"), status: 404, code: "unknown_url", says: "GET /."},
		{name: "v1", send: plain("GET /v1"), status: 404, code: "unknown_url"},
		{name: "without v1", send: chatTo("/chat/completions"), status: 404, code: "unknown_url", says: "Did you mean /v1/chat/completions?"},
		{name: "v1 twice", send: chatTo("/v1/v1/chat/completions"), status: 404, code: "unknown_url", says: "Did you mean /v1/chat/completions?"},
		{name: "trailing slash", send: chatTo("/v1/chat/completions/"), status: 404, code: "unknown_url", says: "Did you mean /v1/chat/completions?"},
		{name: "two slashes", send: chatTo("//v1/chat/completions"), status: 404, code: "unknown_url"},
		{name: "capitals", send: chatTo("/V1/Chat/Completions"), status: 404, code: "unknown_url"},
		{name: "escaped slash", send: chatTo("/v1/chat%2Fcompletions"), status: 404, code: "unknown_url"},
		{name: "escaped letter", send: chatTo("/v1/%63hat/completions"), status: 404, code: "unknown_url"},
		{name: "broken escape", send: chatTo("/v1/%zz"), status: 404, code: "unknown_url"},
		{name: "dot segments", send: chatTo("/v1/chat/../chat/completions"), status: 404, code: "unknown_url"},
		{name: "markup in the path", send: chatTo("/<script>alert(1)</script>"), status: 404, code: "unknown_url"},
		{name: "invalid UTF-8 in the path", send: chatTo("/v1/\xff\xfe"), status: 404, code: "unknown_url"},
		{name: "long path", send: chatTo("/" + strings.Repeat("a", 8<<10)), status: 404, code: "unknown_url", says: "…"},
		{name: "absolute form of an unknown path", send: plain("GET http://other/secret"), status: 404, code: "unknown_url", says: "GET /secret."},
		{name: "absolute form without a path", send: plain("GET http://other"), status: 404, code: "unknown_url", says: "GET /."},
		{name: "admin path", send: plain("GET /admin/v1/hosts"), status: 404, code: "unknown_url"},
		{name: "metrics", send: plain("GET /metrics"), status: 404, code: "unknown_url"},
		{name: "unknown model", send: plain("GET /v1/models/none"), status: 404, code: "model_not_found", param: "model", says: "Available: m1."},
		{name: "model with a broken escape", send: plain("GET /v1/models/%zz"), status: 404, code: "model_not_found", param: "model", says: "%zz"},
		{name: "models with a slash", send: plain("GET /v1/models/"), status: 404, code: "unknown_url", says: "Did you mean /v1/models?"},

		// Methods.
		{name: "GET", send: plain("GET " + chatPath), status: 405, code: "method_not_allowed", says: "Use POST.", also: allow("POST")},
		{name: "HEAD", send: plain("HEAD " + chatPath), status: 405, also: allow("POST")},
		{name: "PUT with a body", send: strings.Replace(chatTo(chatPath), "POST", "PUT", 1), status: 405, code: "method_not_allowed", also: allow("POST")},
		{name: "DELETE", send: plain("DELETE " + chatPath), status: 405, code: "method_not_allowed", also: allow("POST")},
		{name: "PATCH", send: plain("PATCH " + chatPath), status: 405, code: "method_not_allowed", also: allow("POST")},
		{name: "OPTIONS", send: plain("OPTIONS " + chatPath), status: 405, code: "method_not_allowed", also: allow("POST")},
		{name: "TRACE", send: plain("TRACE " + chatPath), status: 405, code: "method_not_allowed", also: allow("POST")},
		{name: "CONNECT", send: plain("CONNECT " + chatPath), status: 405, code: "method_not_allowed", also: allow("POST")},
		{name: "lower case", send: plain("post " + chatPath), status: 405, code: "method_not_allowed", says: "post is not", also: allow("POST")},
		{name: "long method", send: plain(strings.Repeat("M", 200) + " " + chatPath), status: 405, code: "method_not_allowed", says: "MMM…", also: allow("POST")},
		{name: "POST to models", send: chatTo("/v1/models"), status: 405, code: "method_not_allowed", says: "Use GET.", also: allow("GET, HEAD")},
		{name: "DELETE of a model", send: plain("DELETE /v1/models/m1"), status: 405, code: "method_not_allowed", also: allow("GET, HEAD")},
		{name: "GET of an upload route", send: plain("GET " + speech), status: 405, code: "method_not_allowed", also: allow("POST")},
		{name: "GET in Anthropic's shape", send: plain("GET /v1/messages"), status: 405, says: `{"type":"error","error":{"type":"invalid_request_error","message":"GET is not allowed`, also: allow("POST")},
		{name: "CONNECT to a host", send: "CONNECT other:443 HTTP/1.1\r\nHost: other:443\r\n\r\n", status: 404, code: "unknown_url"},
		{name: "OPTIONS of the server", send: plain("OPTIONS *"), status: 404, code: "unknown_url"},
		{name: "web socket", send: "GET /v1/realtime HTTP/1.1\r\nHost: gw\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eHh4eHh4eHh4eHh4eHh4eA==\r\n\r\n", status: 404, code: "unknown_url"},

		// Types and codings of bodies.
		{name: "gzip", send: postChat + "Content-Encoding: gzip\r\n" + sizedMessage("\x1f\x8b\x08"), status: 415, code: "unsupported_content_encoding", says: "gzip"},
		{name: "XML", send: typed(chatPath, "application/xml", "<a/>"), status: 415, code: "unsupported_media_type", says: "application/json"},
		{name: "broken type", send: typed(chatPath, ";;;", goodBody), status: 415, code: "unsupported_media_type"},
		{name: "form for JSON", send: typed(chatPath, "multipart/form-data; boundary=B", form), status: 415, code: "unsupported_media_type", says: "application/json"},
		{name: "JSON for a form", send: typed(speech, "application/json", goodBody), status: 415, code: "unsupported_media_type", says: "multipart/form-data"},
		{name: "nothing for a form", send: "POST " + speech + " HTTP/1.1\r\nHost: gw\r\n\r\n", status: 415, code: "unsupported_media_type"},
		{name: "form without a boundary", send: typed(speech, "multipart/form-data", form), status: 400, code: "invalid_multipart", then: closed},
		{name: "form with an empty boundary", send: typed(speech, `multipart/form-data; boundary=""`, form), status: 400, code: "invalid_multipart", then: closed},
		{name: "form with another boundary", send: typed(speech, "multipart/form-data; boundary=C", form), status: 400, code: "invalid_multipart", then: closed},
		{name: "empty form", send: typed(speech, "multipart/form-data; boundary=B", ""), status: 400, code: "invalid_multipart", then: closed},
		{name: "form cut off", send: typed(speech, "multipart/form-data; boundary=B", form[:60]), status: 400, code: "invalid_multipart", then: closed},
		{name: "form without a model", send: typed(speech, "multipart/form-data; boundary=B", noForm), status: 400, code: "missing_required_parameter", param: "model", then: closed},
		{name: "form with an unknown model", send: typed(speech, "multipart/form-data; boundary=B", strings.Replace(form, "m1", "none", 1)), status: 404, code: "model_not_found", param: "model", then: closed},
		{name: "form with a bad chunk size", send: "POST " + speech + " HTTP/1.1\r\nHost: gw\r\nContent-Type: multipart/form-data; boundary=B\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", status: 400, code: "incomplete_body", then: closed},
		{name: "no body and no length", send: postChat + "\r\n", status: 400, code: "invalid_json", says: "is empty"},

		// Sizes.
		{name: "long head line", send: postChat + "X-A: " + big + "\r\n" + sizedMessage(goodBody), status: 431, code: "request_head_too_large", then: closed},
		{name: "many head lines", send: postChat + strings.Repeat("X-A: b\r\n", 8<<10) + sizedMessage(goodBody), status: 431, code: "request_head_too_large", then: closed},
		{name: "long target", send: chatTo("/" + big), status: 431, code: "request_head_too_large", then: closed},
		{name: "endless method", send: big, status: 431, code: "request_head_too_large", then: closed},
		{name: "large body", send: postChat + sizedMessage(big), status: 413, code: "request_too_large", says: "limits.max_body", then: closed},
		{name: "large chunked body", send: postChat + chunkedMessage(big), status: 413, code: "request_too_large", says: "limits.max_body", then: closed},
		{name: "large body announced", send: postChat + "Content-Length: 9223372036854775807\r\n\r\n", status: 413, code: "request_too_large", then: closed},
		{name: "large body that waits for 100-continue", send: postChat + "Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n", status: 413, code: "request_too_large", then: closed},
		{name: "large chunk announced", send: postChat + "Transfer-Encoding: chunked\r\n\r\n7fffffff\r\n", status: 413, code: "request_too_large", then: closed},
		{name: "large upload", send: typed(speech, "multipart/form-data; boundary=B", big), status: 413, code: "request_too_large", says: "limits.max_upload", then: closed},
		{name: "large chunked upload", send: "POST " + speech + " HTTP/1.1\r\nHost: gw\r\nContent-Type: multipart/form-data; boundary=B\r\n" + chunkedMessage(big), status: 413, code: "request_too_large", says: "limits.max_upload", then: closed},

		// The caller stops in the middle.
		{name: "nothing at all", then: departs},
		{name: "blank lines only", send: "\r\n\r\n", then: departs},
		{name: "leaves in the request line", send: "POST /v1/ch", status: 400, code: "malformed_request", then: departs},
		{name: "leaves in the head", send: postChat + "X-", status: 400, code: "malformed_request", then: departs},
		{name: "leaves before the body", send: postChat + "Content-Length: 28\r\n\r\n", status: 400, code: "malformed_request", then: departs},
		{name: "leaves in the body", send: postChat + "Content-Length: 28\r\n\r\n" + goodBody[:9], status: 400, code: "malformed_request", then: departs},
		{name: "leaves in a chunk", send: postChat + "Transfer-Encoding: chunked\r\n\r\n1c\r\n" + goodBody[:9], status: 400, code: "malformed_request", then: departs},
		{name: "leaves before the last chunk", send: postChat + "Transfer-Encoding: chunked\r\n\r\n1c\r\n" + goodBody + "\r\n", then: departs},
		{name: "leaves in an upload", send: "POST " + speech + " HTTP/1.1\r\nHost: gw\r\nContent-Type: multipart/form-data; boundary=B\r\nContent-Length: 100\r\n\r\n--B\r\n", status: 400, code: "malformed_request", then: departs},
		{name: "leaves in a longer upload", send: "POST " + speech + " HTTP/1.1\r\nHost: gw\r\nContent-Type: multipart/form-data; boundary=B\r\nContent-Length: 20000\r\n\r\n--B\r\n" + strings.Repeat("x", 10000), status: 400, code: "incomplete_body", then: departs},
	}
}

// bytewise frames each byte of s as a chunk.
func bytewise(s string) string {
	var b strings.Builder
	for i := range len(s) {
		fmt.Fprintf(&b, "1\r\n%c\r\n", s[i])
	}
	return b.String()
}

// TestBadInputSlow sends requests that never become whole.
func TestBadInputSlow(t *testing.T) {
	t.Parallel()
	const late = "request_timeout"
	runBadInputs(t, []badInput{
		{name: "request line", send: "POST /v1/ch", status: 408, code: late, then: closed},
		{name: "head", send: postChat + "X-A: ", status: 408, code: late, then: closed},
		{name: "body", send: postChat + "Content-Length: 28\r\n\r\n" + goodBody[:9], status: 408, code: late, then: closed},
		{name: "no byte of the body", send: postChat + "Content-Length: 28\r\n\r\n", status: 408, code: late, then: closed},
		{name: "chunk", send: postChat + "Transfer-Encoding: chunked\r\n\r\n1c\r\n" + goodBody[:9], status: 408, code: late, then: closed},
		{name: "last chunk", send: postChat + "Transfer-Encoding: chunked\r\n\r\n1c\r\n" + goodBody + "\r\n", status: 408, code: late, then: closed},
		{name: "body after 100-continue", send: postChat + "Expect: 100-continue\r\nContent-Length: 28\r\n\r\n", status: 408, code: late, then: closed},
		{name: "upload", send: "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: gw\r\nContent-Type: multipart/form-data; boundary=B\r\nContent-Length: 100\r\n\r\n--B\r\n", status: 408, code: late, then: closed},
		{name: "lines that end in LF", send: strings.ReplaceAll(postChat, "\r\n", "\n") + "Content-Length: 28\n\n" + goodBody, status: 408, code: late, then: closed},
		{name: "TLS on the plain port", send: "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", status: 408, code: late, then: closed},
	}, func(o *rigOptions) { o.set.Read = 300 * time.Millisecond })
}
