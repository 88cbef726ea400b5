package gateway

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

// wireError is an error as a caller gets it. Absent members stay nil.
type wireError struct {
	Error *struct {
		Message *string          `json:"message"`
		Type    *string          `json:"type"`
		Param   *json.RawMessage `json:"param"`
		Code    *string          `json:"code"`
	} `json:"error"`
}

// checkError holds an answer to OpenAI's error shape and returns its code and message.
func checkError(t *testing.T, contentType, id, body string) (code, message string) {
	t.Helper()
	var e wireError
	if err := json.Unmarshal([]byte(body), &e); err != nil || e.Error == nil || e.Error.Message == nil || *e.Error.Message == "" ||
		e.Error.Type == nil || e.Error.Code == nil || e.Error.Param == nil && !strings.Contains(body, `"param":null`) {
		t.Fatalf("not OpenAI's error shape: %q (%v)", body, err)
	}
	if contentType != "application/json" || !strings.HasPrefix(id, "req_") {
		t.Errorf("content type %q, request id %q", contentType, id)
	}
	return *e.Error.Code, *e.Error.Message
}

// TestBadRequests sends what callers should not send. Each row gets a clear error; then the same
// gateway answers a good request.
func TestBadRequests(t *testing.T) {
	up := newUpstream(t, answering)
	g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.set.MaxBody = 64 << 10; o.set.Read = time.Second })
	body := func(s string) string { return post(chatPath, s) }
	with := func(member string) string {
		return body(fmt.Sprintf(`{"model":%q,"messages":[],%s}`, model, member))
	}
	raw := func(head string) string { return head + "\r\nHost: gw\r\n\r\n" }
	rows := map[string]struct {
		send   string
		status int
		code   string
		says   string // part of the message
	}{
		"no request line":               {"hello\r\n\r\n", 400, "malformed_request", "HTTP"},
		"two words":                     {"GET /v1/models\r\nHost: gw\r\n\r\n", 400, "malformed_request", ""},
		"HTTP/2 preface":                {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "malformed_request", ""},
		"no host":                       {"GET /v1/models HTTP/1.1\r\n\r\n", 400, "malformed_request", ""},
		"two hosts":                     {"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "malformed_request", ""},
		"space before colon":            {"GET /v1/models HTTP/1.1\r\nHost : gw\r\n\r\n", 400, "malformed_request", ""},
		"NUL in a header":               {"GET /v1/models HTTP/1.1\r\nHost: gw\r\nX: a\x00b\r\n\r\n", 400, "malformed_request", ""},
		"two lengths":                   {"POST " + chatPath + " HTTP/1.1\r\nHost: gw\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400, "malformed_request", ""},
		"negative length":               {"POST " + chatPath + " HTTP/1.1\r\nHost: gw\r\nContent-Length: -1\r\n\r\n", 400, "malformed_request", ""},
		"length in hexadecimal":         {"POST " + chatPath + " HTTP/1.1\r\nHost: gw\r\nContent-Length: 0x2\r\n\r\n{}", 400, "malformed_request", ""},
		"unknown transfer coding":       {"POST " + chatPath + " HTTP/1.1\r\nHost: gw\r\nTransfer-Encoding: gzip\r\n\r\n", 400, "malformed_request", ""},
		"chunk size no number":          {"POST " + chatPath + " HTTP/1.1\r\nHost: gw\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "malformed_request", ""},
		"chunk without its end":         {"POST " + chatPath + " HTTP/1.1\r\nHost: gw\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n", 400, "malformed_request", ""},
		"head too large":                {"GET /v1/models HTTP/1.1\r\nHost: gw\r\nX: " + strings.Repeat("a", 20<<10) + "\r\n\r\n", 431, "request_head_too_large", "max_head"},
		"body too large":                {body(`{"model":"` + strings.Repeat("a", 70<<10) + `"}`), 413, "request_too_large", "max_body"},
		"body too large, chunked":       {"POST " + chatPath + " HTTP/1.1\r\nHost: gw\r\nTransfer-Encoding: chunked\r\n\r\n20000\r\n" + strings.Repeat("a", 0x20000) + "\r\n0\r\n\r\n", 413, "request_too_large", "max_body"},
		"body that never comes":         {"POST " + chatPath + " HTTP/1.1\r\nHost: gw\r\nContent-Length: 10\r\n\r\n{", 408, "request_timeout", "timeouts.read"},
		"unknown route":                 {raw("GET /nosuch HTTP/1.1"), 404, "unknown_url", "/nosuch"},
		"route without /v1":             {post("/chat/completions", "{}"), 404, "unknown_url", "Did you mean /v1/chat/completions"},
		"route with a slash at its end": {post(chatPath+"/", "{}"), 404, "unknown_url", "Did you mean"},
		"route in capitals":             {post("/V1/chat/completions", "{}"), 404, "unknown_url", ""},
		"dot segments":                  {post("/v1/../v1/chat/completions", "{}"), 404, "unknown_url", ""},
		"encoded route":                 {post("/v1/chat%2Fcompletions", "{}"), 404, "unknown_url", ""},
		"GET of a POST route":           {raw("GET " + chatPath + " HTTP/1.1"), 405, "method_not_allowed", "POST"},
		"DELETE of a POST route":        {raw("DELETE " + chatPath + " HTTP/1.1"), 405, "method_not_allowed", "POST"},
		"OPTIONS":                       {raw("OPTIONS " + chatPath + " HTTP/1.1"), 405, "method_not_allowed", "POST"},
		"PATCH":                         {raw("PATCH " + chatPath + " HTTP/1.1"), 405, "method_not_allowed", "POST"},
		"POST of models":                {post("/v1/models", "{}"), 405, "method_not_allowed", "GET"},
		"unknown model by path":         {raw("GET /v1/models/nosuch HTTP/1.1"), 404, "model_not_found", model},
		"compressed body":               {post(chatPath, "{}", "Content-Encoding: gzip"), 415, "unsupported_content_encoding", "gzip"},
		"form where JSON is due":        {"POST " + chatPath + " HTTP/1.1\r\nHost: gw\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 2\r\n\r\n{}", 415, "unsupported_media_type", "application/json"},
		"picture where JSON is due":     {"POST " + chatPath + " HTTP/1.1\r\nHost: gw\r\nContent-Type: image/png\r\nContent-Length: 2\r\n\r\n{}", 415, "unsupported_media_type", "application/json"},
		"JSON where a form is due":      {post("/v1/audio/transcriptions", "{}"), 415, "unsupported_media_type", "multipart/form-data"},
		"form without a boundary":       {"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: gw\r\nContent-Type: multipart/form-data\r\nContent-Length: 2\r\n\r\n--", 400, "invalid_multipart", "boundary"},
		"form without a model":          {"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: gw\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 57\r\n\r\n--x\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nb\r\n--x--\r\n", 400, "missing_required_parameter", "model"},
		"empty body":                    {body(""), 400, "", ""},
		"white space":                   {body("  \n "), 400, "", ""},
		"null":                          {body("null"), 400, "", "object"},
		"array":                         {body("[]"), 400, "", "object"},
		"string":                        {body(`"hi"`), 400, "", "object"},
		"number":                        {body("7"), 400, "", "object"},
		"cut off":                       {body(`{"model":"m1","messages":[`), 400, "", ""},
		"text behind the object":        {body(`{"model":"m1"} x`), 400, "", ""},
		"two objects":                   {body(`{"model":"m1"}{"model":"m1"}`), 400, "", ""},
		"byte order mark":               {body("\xef\xbb\xbf{\"model\":\"m1\"}"), 400, "", ""},
		"NUL":                           {body("{\"model\":\"m1\",\"a\":\"\x00\"}"), 400, "", ""},
		"single quotes":                 {body(`{'model':'m1'}`), 400, "", ""},
		"comma at the end":              {body(`{"model":"m1",}`), 400, "", ""},
		"comment":                       {body(`{"model":"m1" /* x */}`), 400, "", ""},
		"NaN":                           {with(`"temperature":NaN`), 400, "", ""},
		"bad escape":                    {with(`"a":"\x"`), 400, "", ""},
		"too deep":                      {with(`"a":` + strings.Repeat("[", 10000) + strings.Repeat("]", 10000)), 400, "", ""},
		"model twice":                   {body(`{"model":"m1","model":"m2"}`), 400, "", "model"},
		"model twice by an escape":      {body(`{"model":"m1","mod\u0065l":"m2"}`), 400, "", "model"},
		"no model":                      {body(`{"messages":[]}`), 400, "missing_required_parameter", "model"},
		"empty model":                   {body(`{"model":""}`), 400, "missing_required_parameter", "model"},
		"model a number":                {body(`{"model":7}`), 400, "", "model"},
		"model a list":                  {body(`{"model":["m1"]}`), 400, "", "model"},
		"unknown model":                 {body(`{"model":"gpt-nosuch"}`), 404, "model_not_found", model},
		"unknown model of 60 KB":        {body(`{"model":"` + strings.Repeat("x", 60<<10) + `"}`), 404, "model_not_found", model},
		"model that is no UTF-8":        {body("{\"model\":\"\xff\xfe\"}"), 404, "model_not_found", model},
		"model in other capitals":       {body(`{"model":"M1"}`), 404, "model_not_found", model},
		"stream a string":               {with(`"stream":"yes"`), 400, "", "stream"},
		"stream a number":               {with(`"stream":1`), 400, "", "stream"},
		"stream_options a list":         {with(`"stream_options":[]`), 400, "", "stream_options"},
		"max_tokens a string":           {with(`"max_tokens":"5"`), 400, "", "max_tokens"},
		"max_tokens a fraction":         {with(`"max_tokens":1.5`), 400, "", "max_tokens"},
		"n a string":                    {with(`"n":"2"`), 400, "", "n"},
	}
	if len(rows) < 60 {
		t.Errorf("only %d rows", len(rows))
	}
	for name, tc := range rows {
		t.Run(name, func(t *testing.T) {
			c := g.dial()
			_, _ = io.WriteString(c.Conn, tc.send) // an early answer may close the connection under the rest of it
			res := c.response()
			b, _ := io.ReadAll(res.Body)
			if res.StatusCode != tc.status {
				t.Fatalf("status %d, want %d: %s", res.StatusCode, tc.status, b)
			}
			code, message := checkError(t, res.Header.Get("Content-Type"), res.Header.Get("X-Request-Id"), string(b))
			if tc.code != "" && code != tc.code || !strings.Contains(message, tc.says) {
				t.Errorf("code %q, want %q; message %q, want %q in it", code, tc.code, message, tc.says)
			}
			if len(b) > 2<<10 {
				t.Errorf("an error of %d bytes", len(b))
			}
			if res.StatusCode == 405 && res.Header.Get("Allow") == "" {
				t.Error("405 without Allow")
			}
			if !res.Close { // said to be usable: then it is
				if again, _, err := c.send(chat(false)).whole(); err != nil || again.StatusCode != 200 {
					t.Errorf("a good request on the same connection: %v", err)
				}
			}
		})
	}
	if res, b, err := g.do(chat(true)); err != nil || res.StatusCode != 200 || !strings.HasSuffix(b, doneEvent) {
		t.Errorf("a good request after all: %v %q", err, b)
	}
	eventually(t, "no request in flight", func() bool { return g.srv.InFlight() == 0 })
}

// TestBadAnswers has the only host answer badly, to plain and streaming requests. The caller gets a
// clear error or the answer, never the host's own words, and the gateway lives on.
func TestBadAnswers(t *testing.T) {
	const secret = "sk-upstream-secret at 10.0.0.7"
	ok := "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
	events := func(s string) string { return sseHead + fmt.Sprintf("%x\r\n%s\r\n", len(s), s) + lastChunk }
	for name, tc := range map[string]struct {
		send   string
		stream bool
		status int
		code   string // "" for an answer that is passed on
		has    string
	}{
		"nothing":                       {"", false, 502, "host_failed", ""},
		"garbage":                       {"\x00\x01\x02 garbage\r\n\r\n", false, 502, "host_failed", ""},
		"HTTP/0.9":                      {"hello\n", false, 502, "host_failed", ""},
		"another protocol":              {"SSH-2.0-OpenSSH_9\r\n\r\n", false, 502, "host_failed", ""},
		"status no number":              {"HTTP/1.1 abc OK\r\n\r\n", false, 502, "host_failed", ""},
		"switching protocols":           {"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", false, 502, "host_failed", ""},
		"huge head":                     {"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 40<<10) + "\r\n\r\n", false, 502, "host_failed", ""},
		"two lengths":                   {ok + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", false, 502, "host_failed", ""},
		"length too long":               {ok + "Content-Length: 500\r\n\r\n{}", false, 502, "host_failed", ""},
		"bad chunk size":                {ok + "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", false, 502, "host_failed", ""},
		"huge chunk size":               {ok + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{}", false, 502, "host_failed", ""},
		"chunks cut off":                {ok + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", false, 502, "host_failed", ""},
		"empty body":                    {jsonAnswer(200, ""), false, 502, "host_failed", ""},
		"JSON array":                    {jsonAnswer(200, "[]"), false, 502, "host_failed", ""},
		"no JSON":                       {jsonAnswer(200, "hello "+secret), false, 502, "host_failed", ""},
		"HTML under 200":                {"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>", false, 502, "host_failed", ""},
		"HTML under 502":                {"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>", false, 502, "host_failed", ""},
		"HTML under 400":                {"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\nContent-Length: 26\r\n\r\n<html><body>no</body></html", false, 400, "400", ""},
		"redirect":                      {"HTTP/1.1 302 Found\r\nLocation: http://10.0.0.7/\r\nContent-Length: 0\r\n\r\n", false, 502, "host_failed", ""},
		"500 that talks":                {jsonAnswer(500, `{"error":{"message":"`+secret+`","type":"x","param":null,"code":null}}`), false, 502, "host_failed", "500"},
		"503":                           {jsonAnswer(503, `{}`), false, 502, "host_failed", "503"},
		"401 for our key":               {jsonAnswer(401, `{"error":"`+secret+`"}`), false, 502, "host_denied", ""},
		"403 for our key":               {jsonAnswer(403, `{"error":"`+secret+`"}`), false, 502, "host_denied", ""},
		"429":                           {jsonAnswer(429, `{}`, "Retry-After: 7"), false, 429, "rate_limit_exceeded", ""},
		"429 with a nonsense time":      {jsonAnswer(429, `{}`, "Retry-After: soon"), false, 429, "rate_limit_exceeded", ""},
		"error under 200":               {jsonAnswer(200, `{"error":{"message":"`+secret+`","code":500}}`), false, 502, "host_failed", ""},
		"flat error under 200":          {jsonAnswer(200, `{"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400}`), false, 400, "400", "too long"},
		"FastAPI's 422":                 {jsonAnswer(422, `{"detail":[{"loc":["body","n"],"msg":"bad n","type":"x"}]}`), false, 422, "422", "bad n"},
		"OpenAI's 400":                  {jsonAnswer(400, `{"error":{"message":"context too long","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}`), false, 400, "context_length_exceeded", "context too long"},
		"stream cut before its first":   {sseHead, true, 502, "host_failed", ""},
		"stream of nothing":             {sseHead + lastChunk, true, 502, "host_failed", ""},
		"stream of comments":            {events(": hi\n\n: ho\n\n"), true, 502, "host_failed", ""},
		"role, then the end":            {events(roleEvent), true, 502, "host_failed", ""},
		"error event first":             {events("data: {\"error\":{\"message\":\"" + secret + "\",\"code\":500}}\n\n"), true, 502, "host_failed", ""},
		"flat error event first":        {events("data: {\"object\":\"error\",\"message\":\"too long\",\"code\":400}\n\n"), true, 400, "400", "too long"},
		"HTML for a stream":             {"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>", true, 502, "host_failed", ""},
		"garbage between events":        {events("@@@\n\ndata: {nope\n\n" + tokenEvent("a") + stopEvent + doneEvent), true, 200, "", "[DONE]"},
		"stream for a plain request":    {events(tokenEvent("a") + stopEvent + doneEvent), false, 200, "", "[DONE]"},
		"plain answer for a stream":     {jsonAnswer(200, plainBody), true, 200, "", "hello"},
		"cookies and hop-by-hop fields": {jsonAnswer(200, plainBody, "Set-Cookie: a="+"sk-upstream-secret", "Keep-Alive: x", "X-Headrace-Endpoint: forged", "Server: "+"sk-upstream-secret"), false, 200, "", "hello"},
		"interim answers first":         {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + jsonAnswer(200, plainBody), false, 200, "", "hello"},
		"more than its length":          {jsonAnswer(200, plainBody) + "HTTP/1.1 200 OK\r\n", false, 200, "", "hello"},
	} {
		t.Run(name, func(t *testing.T) {
			up := newUpstream(t, func(c *upConn, _ *upRequest) bool { c.send(tc.send); return false })
			g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.noTLS = true; o.breaker.Failures = 100; o.set.FirstEvent = 2 * time.Second })
			res, body, _ := g.do(chat(tc.stream))
			if res.StatusCode != tc.status || !strings.Contains(body, tc.has) {
				t.Fatalf("status %d, want %d with %q: %s", res.StatusCode, tc.status, tc.has, body)
			}
			var head bytes.Buffer
			_ = res.Header.Write(&head) // to memory
			if all := head.String() + body; strings.Contains(all, "sk-upstream-secret") || strings.Contains(all, "forged") || strings.Contains(all, "upstream-key") {
				t.Errorf("the caller sees what is the host's: %s", all)
			}
			if tc.code == "" {
				return
			}
			if tc.code[0] >= '4' && tc.code[0] <= '9' { // the host's own judgement, in whatever words
				var e wireError
				if err := json.Unmarshal([]byte(body), &e); err != nil || e.Error == nil || e.Error.Message == nil {
					t.Errorf("not OpenAI's error shape: %q", body)
				}
				return
			}
			if code, _ := checkError(t, res.Header.Get("Content-Type"), res.Header.Get("X-Request-Id"), body); code != tc.code {
				t.Errorf("code %q, want %q", code, tc.code)
			}
			if tc.status == 429 && res.Header.Get("Retry-After") == "" {
				t.Error("429 without Retry-After")
			}
		})
	}
}
