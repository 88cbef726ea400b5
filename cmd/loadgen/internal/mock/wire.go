package mock

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// StampLen is the number of digits of a Unix time in nanoseconds, from 2001 to 2286.
const StampLen = 19

// StampMark precedes the stamp in each content chunk and occurs nowhere else in a stream.
const StampMark = '@'

// promptTokens is what the mock says every prompt had.
const promptTokens = 12

// rendered holds everything a response consists of, ready to be written.
type rendered struct {
	Settings

	full, models  []byte
	open          []byte // stream head and role chunk
	chunk         []byte // one content chunk with a zero stamp
	stampEnd      int    // where the stamp ends in chunk
	end, endUsage []byte
}

// Content is the text of an answer of n bytes that is no stream.
func Content(n int) string {
	const words = "lorem ipsum "
	return strings.Repeat(words, n/len(words)+1)[:n]
}

func (s Settings) render() *rendered {
	r := &rendered{Settings: s}
	r.full = response(http.StatusOK, "application/json", s.completion())
	r.models = response(http.StatusOK, "application/json", fmt.Appendf(nil,
		`{"object":"list","data":[{"id":%s,"object":"model","created":1700000000,"owned_by":"mock","max_model_len":8192}]}`, quote(s.Model)))

	r.open = append([]byte("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"+
		"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"),
		httpChunk(s.event(`{"role":"assistant","content":""}`, "null"))...)
	zero := string(StampMark) + strings.Repeat("0", StampLen)
	r.chunk = httpChunk(s.event(`{"content":"`+zero+`"}`, "null"))
	r.stampEnd = bytes.Index(r.chunk, []byte(zero)) + len(zero)

	finish := httpChunk(s.event(`{}`, `"stop"`))
	done := append(httpChunk([]byte("data: [DONE]\n\n")), "0\r\n\r\n"...)
	usage := httpChunk(fmt.Appendf(nil,
		`data: {"id":"chatcmpl-mock0123456789abcdef","object":"chat.completion.chunk","created":1700000000,"model":%s,"choices":[],"usage":%s}`+"\n\n",
		quote(s.Model), usageOf(s.Tokens)))
	r.end = bytes.Join([][]byte{finish, done}, nil)
	r.endUsage = bytes.Join([][]byte{finish, usage, done}, nil)
	return r
}

func (s Settings) event(delta, finish string) []byte {
	return fmt.Appendf(nil, `data: {"id":"chatcmpl-mock0123456789abcdef","object":"chat.completion.chunk","created":1700000000,"model":%s,"system_fingerprint":"fp_mock","choices":[{"index":0,"delta":%s,"logprobs":null,"finish_reason":%s}]}`+"\n\n",
		quote(s.Model), delta, finish)
}

func (s Settings) completion() []byte {
	return fmt.Appendf(nil, `{"id":"chatcmpl-mock0123456789abcdef","object":"chat.completion","created":1700000000,"model":%s,"system_fingerprint":"fp_mock","choices":[{"index":0,"message":{"role":"assistant","content":%s},"logprobs":null,"finish_reason":"stop"}],"usage":%s}`,
		quote(s.Model), quote(Content(s.Body)), usageOf(s.Body/4))
}

func usageOf(tokens int) string {
	return fmt.Sprintf(`{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}`, promptTokens, tokens, tokens+promptTokens)
}

// quote is a JSON string; a Go string always has one.
func quote(s string) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return b
}

func httpChunk(p []byte) []byte {
	return fmt.Appendf(nil, "%x\r\n%s\r\n", len(p), p)
}

func response(status int, kind string, body []byte) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s",
		status, http.StatusText(status), kind, len(body), body)
}

func failure(status int, message string) []byte {
	return response(status, "application/json", fmt.Appendf(nil, `{"error":{"message":%s,"type":"invalid_request_error"}}`, quote(message)))
}
