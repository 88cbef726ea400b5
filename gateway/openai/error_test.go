package openai_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"headrace/gateway/openai"
)

func TestErrorJSON(t *testing.T) {
	for _, tc := range []struct {
		err  openai.Error
		want string
	}{
		{openai.Error{Status: 400, Message: "no"}, `{"error":{"message":"no","type":"invalid_request_error","param":null,"code":null}}`},
		{openai.Error{Status: 401, Message: "no", Code: openai.CodeInvalidAPIKey}, `{"error":{"message":"no","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}`},
		{openai.Error{Status: 403, Message: "no"}, `{"error":{"message":"no","type":"request_forbidden","param":null,"code":null}}`},
		{openai.Error{Status: 404, Message: "no", Param: "model", Code: openai.CodeModelNotFound}, `{"error":{"message":"no","type":"invalid_request_error","param":"model","code":"model_not_found"}}`},
		{openai.Error{Status: 429, Message: "no"}, `{"error":{"message":"no","type":"rate_limit_error","param":null,"code":null}}`},
		{openai.Error{Status: 429, Message: "no", Type: openai.TypeTokens}, `{"error":{"message":"no","type":"tokens","param":null,"code":null}}`},
		{openai.Error{Status: 503, Message: "a \"b\"\n\x01\xff"}, `{"error":{"message":"a \"b\"\n\u0001\ufffd","type":"server_error","param":null,"code":null}}`},
	} {
		if got := string(tc.err.AppendJSON([]byte("> "))); got != "> "+tc.want {
			t.Errorf("%+v:\n got %s\nwant > %s", tc.err, got, tc.want)
		}
	}
	for _, tc := range []struct {
		err  openai.Error
		want string
	}{
		{openai.Error{Status: 502, Message: "no", Code: "gone", Partial: true}, `{"error":{"message":"no","type":"server_error","param":null,"code":"gone","partial":true}}`},
		{openai.Error{Status: 503, Message: "no", RetryAfter: time.Second}, `{"error":{"message":"no","type":"server_error","param":null,"code":null,"retry_after":1}}`},
		{openai.Error{Status: 503, Message: "no", Partial: true, RetryAfter: 2001 * time.Millisecond}, `{"error":{"message":"no","type":"server_error","param":null,"code":null,"partial":true,"retry_after":3}}`},
	} {
		if got := string(tc.err.AppendEvent([]byte("> "))); got != "> "+tc.want {
			t.Errorf("%+v as an event:\n got %s\nwant > %s", tc.err, got, tc.want)
		}
	}
	var err error = &openai.Error{Status: 404, Message: "no such model", Code: "model_not_found"}
	if got := err.Error(); got != "status 404 (model_not_found): no such model" {
		t.Errorf("as text: %s", got)
	}
	if e, ok := errors.AsType[*openai.Error](err); !ok || e.Status != 404 {
		t.Error("errors.AsType does not find it")
	}
}

func TestNormalizeError(t *testing.T) {
	long := strings.Repeat("é", 2000)
	for name, tc := range map[string]struct {
		status            int
		contentType, body string
		want              openai.Error
		asIs              bool
	}{
		"OpenAI": {
			400, "application/json", `{"error":{"message":"no","type":"invalid_request_error","param":"n","code":"bad_n"}}`,
			openai.Error{Status: 400, Message: "no", Type: "invalid_request_error", Param: "n", Code: "bad_n"},
			true,
		},
		"vLLM": {
			400, "application/json", `{"error":{"message":"too long","type":"BadRequestError","param":"input_tokens","code":400}}`,
			openai.Error{Status: 400, Message: "too long", Type: "BadRequestError", Param: "input_tokens"},
			true,
		},
		"Anthropic": {
			529, "", `{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}`,
			openai.Error{Status: 529, Message: "Overloaded", Type: "overloaded_error"},
			true,
		},
		"flat vLLM": {
			400, "application/json", `{"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400}`,
			openai.Error{Status: 400, Message: "too long", Type: "BadRequestError"},
			false,
		},
		"flat vLLM under 200": {
			200, "", `{"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400}`,
			openai.Error{Status: 400, Message: "too long", Type: "BadRequestError"},
			false,
		},
		"error under 200 without a code": {200, "", `{"error":{"message":"x"}}`, openai.Error{Status: 502, Message: "x", Type: "server_error"}, true},
		"FastAPI text":                   {404, "", `{"detail":"Not Found"}`, openai.Error{Status: 404, Message: "Not Found", Type: "invalid_request_error"}, false},
		"FastAPI list": {
			422, "", `{"detail":[{"loc":["body","messages",0,"role"],"msg":"field required","type":"missing"},{"msg":"and more"}]}`,
			openai.Error{Status: 422, Message: "body.messages.0.role: field required; and more", Type: "invalid_request_error"},
			false,
		},
		"detail object": {503, "", `{"detail":{"status":"loading","message":"model is loading"}}`, openai.Error{Status: 503, Message: "model is loading", Type: "server_error"}, false},
		"problem+json": {
			404, "application/problem+json", `{"type":"https://x/y","status":404,"title":"Not Found","detail":"endpoint not found"}`,
			openai.Error{Status: 404, Message: "endpoint not found", Type: "invalid_request_error"},
			false,
		},
		"title only":        {500, "", `{"title":"Internal Server Error"}`, openai.Error{Status: 500, Message: "Internal Server Error", Type: "server_error"}, false},
		"message":           {500, "", `{"message":"boom"}`, openai.Error{Status: 500, Message: "boom", Type: "server_error"}, false},
		"text in error":     {400, "", `{"error":"not allowed for QB API"}`, openai.Error{Status: 400, Message: "not allowed for QB API", Type: "invalid_request_error"}, false},
		"code and message":  {404, "", `{"success":false,"error":"auth_error","msg":"Invalid user key"}`, openai.Error{Status: 404, Message: "Invalid user key", Type: "invalid_request_error", Code: "auth_error"}, false},
		"plain text":        {429, "text/plain", "API requests too frequent\n", openai.Error{Status: 429, Message: "API requests too frequent", Type: "rate_limit_error"}, false},
		"JSON string":       {500, "", `"boom"`, openai.Error{Status: 500, Message: "boom", Type: "server_error"}, false},
		"broken JSON":       {500, "", `{"error":`, openai.Error{Status: 500, Message: `{"error":`, Type: "server_error"}, false},
		"empty":             {502, "", " \n", openai.Error{Status: 502, Message: "The upstream answered without a body.", Type: "server_error"}, false},
		"HTML":              {502, "text/html; charset=utf-8", "<html>secret</html>", openai.Error{Status: 502, Message: "The upstream answered with an HTML page.", Type: "server_error"}, false},
		"HTML, no type":     {502, "", "\n<!DOCTYPE HTML><title>secret", openai.Error{Status: 502, Message: "The upstream answered with an HTML page.", Type: "server_error"}, false},
		"HTML in a message": {502, "", `{"error":{"message":"HTTP 502: <html>secret"}}`, openai.Error{Status: 502, Message: "The upstream answered with an HTML page.", Type: "server_error"}, false},
		"prompt with HTML": {
			400, "", `{"error":{"message":"` + strings.Repeat("x", 70) + `<html>"}}`,
			openai.Error{Status: 400, Message: strings.Repeat("x", 70) + "<html>", Type: "invalid_request_error"},
			true,
		},
		"binary":       {500, "", "\x00\x01\xff", openai.Error{Status: 500, Message: "The upstream answered with an error of unknown form (status 500 Internal Server Error).", Type: "server_error"}, false},
		"unknown JSON": {500, "", `{"err":"api","traceback":"File secret.py"}`, openai.Error{Status: 500, Message: "The upstream answered with an error of unknown form (status 500 Internal Server Error).", Type: "server_error"}, false},
		"empty object": {500, "", `{"error":{}}`, openai.Error{Status: 500, Message: "The upstream answered with an error of unknown form (status 500 Internal Server Error).", Type: "server_error"}, false},
		"long text":    {500, "", long, openai.Error{Status: 500, Message: long[:2042] + " […]", Type: "server_error"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, asIs := openai.NormalizeError(tc.status, []byte(tc.contentType), []byte(tc.body))
			if got != tc.want || asIs != tc.asIs {
				t.Errorf("got %+v, as is %v\nwant %+v, as is %v", got, asIs, tc.want, tc.asIs)
			}
			if len(got.Message) > 2<<10 || !utf8.ValidString(got.Message) {
				t.Errorf("the message has %d bytes, valid UTF-8 %v", len(got.Message), utf8.ValidString(got.Message))
			}
		})
	}
}

func FuzzNormalizeError(f *testing.F) {
	for _, seed := range []string{
		`{"error":{"message":"no","code":400}}`, `{"detail":[{"loc":["body",1],"msg":"x"}]}`, `{"object":"error","code":"500"}`, `<html>`, `"x"`, `[[]]`, `{"error":[`,
	} {
		f.Add(400, "text/plain", []byte(seed))
	}
	f.Fuzz(func(t *testing.T, status int, contentType string, body []byte) {
		e, asIs := openai.NormalizeError(status, []byte(contentType), body)
		if e.Status < 400 || e.Status > 599 || e.Message == "" || e.Type == "" || len(e.Message) > 2<<10 {
			t.Fatalf("%d %q: %+v", status, body, e)
		}
		var wire struct {
			Error struct{ Message, Type string }
		}
		if err := json.Unmarshal(e.AppendJSON(nil), &wire); err != nil || wire.Error.Type == "" {
			t.Fatalf("%d %q: %s: %v", status, body, e.AppendJSON(nil), err)
		}
		var shape struct {
			Error struct {
				Message *string `json:"message"`
			} `json:"error"`
		}
		if asIs && (json.Unmarshal(body, &shape) != nil || shape.Error.Message == nil) {
			t.Fatalf("%q is to go on as it is", body)
		}
	})
}

func FuzzAppendString(f *testing.F) {
	for _, seed := range []string{"", "plain", "\"\\\b\f\n\r\t\x00\x1f\x7f", "é😀\u2028", "\xff\xc3(\xed\xa0\x80", "</script>&"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := openai.AppendString([]byte("x"), s)[1:]
		want, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var gotText, wantText string
		if err := json.Unmarshal(got, &gotText); err != nil {
			t.Fatalf("%q became %q: %v", s, got, err)
		}
		if err := json.Unmarshal(want, &wantText); err != nil || gotText != wantText {
			t.Fatalf("%q became %q, encoding/json has %q", s, got, want)
		}
		if !utf8.Valid(got) {
			t.Fatalf("%q became %q, which is not UTF-8", s, got)
		}
	})
}

func TestModelCards(t *testing.T) {
	for _, tc := range []struct{ base, want string }{
		{"", `{"id":"a\"b","object":"model","created":7,"owned_by":"headrace"}`},
		{"null", `{"id":"a\"b","object":"model","created":7,"owned_by":"headrace"}`},
		{`{"id":"x"} y`, `{"id":"a\"b","object":"model","created":7,"owned_by":"headrace"}`},
		{`{"max_model_len":`, `{"id":"a\"b","object":"model","created":7,"owned_by":"headrace"}`},
		{`{}`, `{"id":"a\"b","object":"model","created":7,"owned_by":"headrace"}`},
		{
			`{"id":"meta/llama","object":"model","created":5,"owned_by":"vllm","max_model_len":4096,"permission":[{"id":"p"}]}`,
			`{"id":"a\"b","object":"model","created":5,"owned_by":"vllm","max_model_len":4096,"permission":[{"id":"p"}]}`,
		},
		{
			` { "max_model_len" : 1e3 , "\u0069d" : "x" , "owned_by" : null } `,
			`{"id":"a\"b","max_model_len":1e3,"owned_by":null,"object":"model","created":7}`,
		},
	} {
		got := string(openai.AppendModelCard([]byte("> "), `a"b`, []byte(tc.base), 7))
		if got != "> "+tc.want || !json.Valid([]byte(tc.want)) {
			t.Errorf("from %s:\n got %s\nwant > %s", tc.base, got, tc.want)
		}
	}
	cards := [][]byte{[]byte(`{"id":"a","x":1}`), []byte(`{"id":"b"}`), []byte(`{"id":"a","x":2}`), []byte(`{"name":"c"}`), []byte(`{"id":5}`), []byte(`[]`), []byte(`{"id":`), nil}
	if got, want := string(openai.AppendModelList(nil, cards)), `{"object":"list","data":[{"id":"a","x":1},{"id":"b"}]}`; got != want {
		t.Errorf("list: got %s, want %s", got, want)
	}
	if got, want := string(openai.AppendModelList(nil, nil)), `{"object":"list","data":[]}`; got != want {
		t.Errorf("empty list: got %s, want %s", got, want)
	}
}
