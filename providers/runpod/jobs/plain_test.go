package jobs

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestPlainAnswers puts the one answer together from whatever a worker yields.
func TestPlainAnswers(t *testing.T) {
	answer := `{"id":"c","object":"chat.completion","created":3,"model":"mm","choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1}, "cost":0.00024}`
	sse := strings.Join(chunksOf([]string{"Hel", "lo"}, "\n"), "")
	merged := `{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"content":"Hello","role":"assistant"},"logprobs":null,"finish_reason":"stop"}]}`
	var objects []string
	for _, e := range chunksOf([]string{"Hel", "lo"}, "\n")[:4] {
		objects = append(objects, string(data([]byte(e))))
	}
	for name, tc := range map[string]struct {
		kind   routeKind
		limit  int
		yields []string
		want   string
		code   string // of the failure
		status int
	}{
		"an object, byte for byte":    {kind: routeChat, yields: []string{answer}, want: answer},
		"a JSON string (SGLang)":      {kind: routeChat, yields: []string{string(quoted(answer))}, want: answer},
		"a JSON string in pieces":     {kind: routeChat, yields: []string{string(quoted(answer[:50])), string(quoted(answer[50:]))}, want: answer},
		"a list with the one":         {kind: routeChat, yields: []string{"[" + answer + "]"}, want: answer},
		"a list with the one as text": {kind: routeChat, yields: []string{string(encode([]string{answer}))}, want: answer},
		"event stream":                {kind: routeChat, yields: []string{string(quoted(sse))}, want: merged},
		"event stream, CRLF and cuts": {kind: routeChat, yields: []string{string(quoted(strings.ReplaceAll(sse, "\n", "\r\n")[:90])), string(quoted(strings.ReplaceAll(sse, "\n", "\r\n")[90:]))}, want: merged},
		"aggregate list of texts":     {kind: routeChat, yields: []string{string(encode(chunksOf([]string{"Hel", "lo"}, "\n")))}, want: merged},
		"chunks":                      {kind: routeChat, yields: objects, want: merged},
		"list of chunks":              {kind: routeChat, yields: []string{"[" + strings.Join(objects, ",") + "]"}, want: merged},
		"native tokens": {
			kind: routeChat, yields: []string{`{"choices":[{"tokens":["Hello you"]}],"usage":{"input":7,"output":3}}`},
			want: `{"id":"chatcmpl-j","object":"chat.completion","created":7,"model":"m","choices":[{"index":0,"message":{"content":"Hello you","role":"assistant"},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"total_tokens":10,"completion_tokens":3}}`,
		},
		"native tokens of two choices, to the limit": {
			kind: routeCompletions, limit: 4, yields: []string{`{"choices":[{"tokens":["a"]},{"tokens":["b"]}],"usage":{"input":1,"output":2}}`, `{"choices":[{"tokens":["c"]},{"tokens":["d"]}],"usage":{"input":1,"output":4}}`},
			want: `{"id":"cmpl-j","object":"text_completion","created":7,"model":"m","choices":[{"index":0,"text":"ac","logprobs":null,"finish_reason":"length"},{"index":1,"text":"bd","logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":1,"total_tokens":5,"completion_tokens":4}}`,
		},
		"text completion": {kind: routeCompletions, yields: []string{`{"object":"text_completion","choices":[{"index":0,"text":"a"}]}`}, want: `{"object":"text_completion","choices":[{"index":0,"text":"a"}]}`},
		"text completion chunks": {
			kind: routeCompletions, yields: []string{`{"id":"q","object":"text_completion","choices":[{"index":0,"text":"a","logprobs":{"tokens":["a"]}}]}`, `{"object":"text_completion","choices":[{"index":0,"text":"b","logprobs":{"tokens":["b"]},"finish_reason":"stop"}]}`},
			want: `{"id":"q","object":"text_completion","created":7,"model":"m","choices":[{"index":0,"text":"ab","logprobs":{"tokens":["a","b"]},"finish_reason":"stop"}]}`,
		},
		"tool calls": {
			kind: routeChat, yields: []string{
				`{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"x","type":"function","function":{"name":"f","arguments":""}}]}}]}`,
				`{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"a\""}}]}}]}`,
				`{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":":1}"}}],"reasoning_content":"hm"},"finish_reason":"tool_calls"}]}`,
				`{"object":"chat.completion.chunk","choices":[],"usage":{"prompt_tokens":5}}`,
			},
			want: `{"id":"chatcmpl-j","object":"chat.completion","created":7,"model":"m","choices":[{"index":0,"message":{"content":null,"reasoning_content":"hm","role":"assistant","tool_calls":[{"id":"x","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]},"logprobs":null,"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":5}}`,
		},
		"embeddings":             {kind: routeOther, yields: []string{`{"object":"list","data":[]}`}, want: `{"object":"list","data":[]}`},
		"responses stream":       {kind: routeOther, yields: []string{string(quoted("event: a\ndata: {\"type\":\"response.created\"}\n\nevent: b\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":1}}\n\n"))}, want: `{"id":1}`},
		"vendor 7: error object": {kind: routeChat, yields: []string{`{"err":"api","traceback":"x"}`}, code: "job_failed", status: 500},
		"flat error":             {kind: routeChat, yields: []string{`{"object":"error","message":"bad","type":"BadRequestError","param":null,"code":400}`}, status: 400},
		"error in a stream":      {kind: routeChat, yields: []string{string(quoted("data: {\"error\":{\"message\":\"m\",\"code\":400}}\n\n"))}, status: 400},
		"an object without":      {kind: routeChat, yields: []string{`{"hello":1}`}, code: "bad_answer", status: 502},
		"text":                   {kind: routeChat, yields: []string{`"hello"`}, code: "bad_answer", status: 502},
		"half an event":          {kind: routeChat, yields: []string{`"data: {\"a\":"`}, code: "bad_answer", status: 502},
		"nothing":                {kind: routeChat, code: "bad_answer", status: 502},
		"no choices at all":      {kind: routeChat, yields: []string{`{"choices":[],"usage":{}}`}, code: "bad_answer", status: 502},
		"chunks without content": {kind: routeOther, yields: []string{`{"type":"response.created"}`}, code: "bad_answer", status: 502},
	} {
		t.Run(name, func(t *testing.T) {
			p := &plain{a: &asked{kind: tc.kind, limit: tc.limit, model: "m", jobID: "j", created: 7}}
			var f *failure
			for _, y := range tc.yields {
				if f = p.add(json.RawMessage(y)); f != nil {
					break
				}
			}
			var got []byte
			if f == nil {
				got, f = p.answer()
			}
			switch {
			case tc.status != 0 && (f == nil || f.status != tc.status || f.code != tc.code):
				t.Errorf("got %s, %+v", got, f)
			case tc.status == 0 && f != nil:
				t.Errorf("%+v", f)
			case tc.status == 0 && string(got) != tc.want:
				t.Errorf("got\n%s\nwant\n%s", got, tc.want)
			}
		})
	}
}

func TestPayload(t *testing.T) {
	body := "{ \"model\":\"m\",\n\"messages\":[{\"role\":\"user\",\"content\":\"\\u00e4 \"}], \"max_completion_tokens\":5, \"top_p\":0.5, \"seed\":null, \"user\":\"u\" }"
	for name, tc := range map[string]struct {
		a      asked
		native bool
		exec   time.Duration
		want   string
		status int
		param  string
	}{
		"byte for byte": {a: asked{route: "/v1/chat/completions", kind: routeChat, body: []byte(body)}, exec: 15 * time.Second, want: `{"input":{"openai_route":"/v1/chat/completions","openai_input":` + body + `},"policy":{"ttl":60000,"executionTimeout":15000}}`},
		"native chat": {
			a: asked{kind: routeChat, body: []byte(body), stream: true}, native: true,
			want: `{"input":{"messages":[{"role":"user","content":"\u00e4 "}],"stream":true,"sampling_params":{"top_p":0.5,"max_tokens":5}},"policy":{"ttl":60000}}`,
		},
		"native completion": {a: asked{kind: routeCompletions, body: []byte(`{"prompt":"p"}`)}, native: true, want: `{"input":{"prompt":"p","stream":false,"sampling_params":{}},"policy":{"ttl":60000}}`},
		"native, parts": {
			a:      asked{kind: routeChat, body: []byte(`{"messages":[{"content":[{"type":"text","text":"a<"},{"type":"text","text":"\n"}],"role":"user"},{"role":"assistant","content":null}],"best_of":1,"n":2}`)},
			native: true,
			want:   `{"input":{"messages":[{"content":"a\u003c\n\n","role":"user"},{"content":null,"role":"assistant"}],"stream":false,"sampling_params":{"n":2}},"policy":{"ttl":60000}}`,
		},
		"native, says nothing": {
			a:      asked{kind: routeChat, body: []byte(`{"messages":[],"tools":[],"logprobs":false,"response_format":{"type":"text"},"max_completion_tokens":null,"max_tokens":3,"metadata":{"a":"b"}}`)},
			native: true,
			want:   `{"input":{"messages":[],"stream":false,"sampling_params":{"max_tokens":3}},"policy":{"ttl":60000}}`,
		},
		"native, form":        {a: asked{kind: routeChat, body: []byte(`{"messages":[],"response_format":{"type":"json_object"}}`)}, native: true, status: 400, param: "response_format"},
		"native, tools":       {a: asked{kind: routeChat, body: []byte(`{"messages":[],"tools":[{"type":"function"}]}`)}, native: true, status: 400, param: "tools"},
		"native, logprobs":    {a: asked{kind: routeCompletions, body: []byte(`{"prompt":"p","logprobs":0}`)}, native: true, status: 400, param: "logprobs"},
		"native, tokens":      {a: asked{kind: routeCompletions, body: []byte(`{"prompt":[1,2]}`)}, native: true, status: 400, param: "prompt"},
		"native, image":       {a: asked{kind: routeChat, body: []byte(`{"messages":[{"content":[{"type":"image_url"}]}]}`)}, native: true, status: 400, param: "messages"},
		"native, no list":     {a: asked{kind: routeChat, body: []byte(`{"messages":"m"}`)}, native: true, status: 400, param: "messages"},
		"native, null":        {a: asked{kind: routeChat, body: []byte(`{"messages":null}`)}, native: true, status: 400, param: "messages"},
		"native, no prompt":   {a: asked{kind: routeCompletions, body: []byte(`{}`)}, native: true, status: 400},
		"native, other route": {a: asked{kind: routeOther, body: []byte(`{}`)}, native: true, status: 404},
		"too large":           {a: asked{kind: routeChat, body: slices.Concat([]byte(`{"a":"`), make([]byte, maxRun-20), []byte(`"}`))}, status: 413},
	} {
		t.Run(name, func(t *testing.T) {
			tc.a.native = tc.native
			got, f := tc.a.payload(time.Minute, tc.exec)
			switch {
			case tc.status != 0 && (f == nil || f.status != tc.status || tc.param != "" && f.param != tc.param):
				t.Errorf("got %s, %+v", got, f)
			case tc.status == 0 && (f != nil || string(got) != tc.want):
				t.Errorf("got %+v\n%s\nwant\n%s", f, got, tc.want)
			}
		})
	}
}
