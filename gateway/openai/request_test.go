package openai_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"

	"headrace/gateway/openai"
)

func TestScan(t *testing.T) {
	absent := func(change func(*request)) request {
		r := request{MaxTokens: -1, N: 1, OpenAt: 1}
		change(&r)
		return r
	}
	for body, want := range map[string]request{
		`{}`:       absent(func(r *request) { r.Empty = true }),
		" \t\n{ }": {MaxTokens: -1, N: 1, OpenAt: 4, Empty: true},
		`{"model":"m","stream":true}`: absent(func(r *request) {
			r.Model, r.ModelAt, r.Stream = []byte("m"), openai.Span{From: 9, To: 12}, true
			r.StreamAt = openai.Span{From: 22, To: 26}
		}),
		`{"model":""}`:                                           absent(func(r *request) { r.Model, r.ModelAt = []byte{}, openai.Span{From: 9, To: 11} }),
		`{"m\u006fdel":"a\/b\u00e9"}`:                            absent(func(r *request) { r.Model, r.ModelAt = []byte("a/bé"), openai.Span{From: 14, To: 26} }),
		`{"model":"\ud83d\ude00\ud83d"}`:                         absent(func(r *request) { r.Model, r.ModelAt = []byte("😀\uFFFD"), openai.Span{From: 9, To: 29} }),
		`{"stream":null,"max_tokens":null,"n":null,"user":null}`: absent(func(r *request) { r.StreamAt = openai.Span{From: 10, To: 14} }),
		`{"stream_options":null}`:                                absent(func(r *request) { r.StreamOptionsAt = openai.Span{From: 18, To: 22} }),
		`{"stream_options":{}}`:                                  absent(func(r *request) { r.StreamOptionsAt = openai.Span{From: 18, To: 20} }),
		`{"stream_options": {"include_usage" :false } }`: absent(func(r *request) {
			r.StreamOptionsAt, r.IncludeUsageAt = openai.Span{From: 19, To: 44}, openai.Span{From: 37, To: 42}
		}),
		`{"stream_options":{"include\u005fusage":true}}`: absent(func(r *request) {
			r.StreamOptionsAt, r.IncludeUsageAt, r.IncludeUsage = openai.Span{From: 18, To: 45}, openai.Span{From: 40, To: 44}, true
		}),
		`{"stream_options":{"include_usage":true,"include_usage":null}}`: absent(func(r *request) {
			r.StreamOptionsAt, r.IncludeUsageAt = openai.Span{From: 18, To: 61}, openai.Span{From: 56, To: 60}
		}),
		`{"max_output_tokens":3}`:                               absent(func(r *request) { r.MaxTokens = 3 }),
		`{"max_tokens":2,"max_output_tokens":3}`:                absent(func(r *request) { r.MaxTokens = 2 }),
		`{"max_completion_tokens":0,"max_tokens":2}`:            absent(func(r *request) { r.MaxTokens = 0 }),
		`{"max_completion_tokens":null,"max_tokens":2}`:         absent(func(r *request) { r.MaxTokens = 2 }),
		`{"max_tokens":-1}`:                                     absent(func(*request) {}),
		`{"max_tokens":1e3}`:                                    absent(func(r *request) { r.MaxTokens = 1000 }),
		`{"max_tokens":5.0}`:                                    absent(func(r *request) { r.MaxTokens = 5 }),
		`{"max_tokens":9223372036854775807}`:                    absent(func(r *request) { r.MaxTokens = math.MaxInt64 }),
		`{"n":4}`:                                               absent(func(r *request) { r.N = 4 }),
		`{"n":0}`:                                               absent(func(*request) {}),
		`{"tools":[{}],"tool_choice":"none"}`:                   absent(func(r *request) { r.Tools, r.ToolChoiceNone, r.PromptBytes = true, true, 4 }),
		`{"tools":[ ],"tool_choice":"auto"}`:                    absent(func(r *request) { r.PromptBytes = 3 }),
		`{"tools":null,"functions":[{"name":"f"}]}`:             absent(func(r *request) { r.Tools, r.PromptBytes = true, 4+14 }),
		`{"tool_choice":{"type":"function"},"tools":{"a":1}}`:   absent(func(r *request) { r.Tools, r.PromptBytes = true, 7 }),
		`{"response_format":{"type":"text"}}`:                   absent(func(*request) {}),
		`{"response_format":null}`:                              absent(func(*request) {}),
		`{"response_format":{"type":"json_object"}}`:            absent(func(r *request) { r.ResponseFormat = true }),
		`{"response_format":{"json_schema":{"type":"text"}}}`:   absent(func(r *request) { r.ResponseFormat = true }),
		`{"response_format":{"x":1,"type":"te\u0078t","y":[]}}`: absent(func(*request) {}),
		`{"text":{"format":{"type":"json_schema"}}}`:            absent(func(r *request) { r.ResponseFormat = true }),
		`{"text":{"format":{"type":"text"},"verbosity":"low"}}`: absent(func(*request) {}),
		`{"guided_regex":"a+"}`:                                 absent(func(r *request) { r.ResponseFormat = true }),
		`{"guided_json":null,"guided_choice":[]}`:               absent(func(*request) {}),
		`{"structured_outputs":{"regex":"a"}}`:                  absent(func(r *request) { r.ResponseFormat = true }),
		`{"logprobs":0,"seed":0,"stop":"x"}`:                    absent(func(r *request) { r.Logprobs, r.Seed, r.Stop = true, true, true }),
		`{"logprobs":false,"seed":null,"stop":[]}`:              absent(func(*request) {}),
		`{"stop":null,"stop_sequences":["a"]}`:                  absent(func(r *request) { r.Stop = true }),
		`{"user":"u\n"}`:                                        absent(func(r *request) { r.User = []byte("u\n") }),
		`{"prompt_cache_key":"a\n"}`:                            absent(func(r *request) { r.CacheKey = []byte(`a\n`) }),
		`{"prompt_cache_key":{"a":1}}`:                          absent(func(*request) {}),
		`{"prompt":"ab","messages": [1] }`: absent(func(r *request) {
			r.PromptBytes, r.PromptAt, r.Turns = 7, openai.Span{From: 27, To: 30}, 1
		}),
		`{"query":"q","documents":["a","b"],"input":[]}`: absent(func(r *request) {
			r.PromptBytes, r.PromptAt = 3+9+2, openai.Span{From: 43, To: 45}
		}),
		// What looks like a member but lies deeper is none.
		`{"messages":[{"model":"x","stream":true}],"metadata":{"model":1,"n":"a"}}`: absent(func(r *request) {
			r.PromptBytes, r.PromptAt, r.Turns = 29, openai.Span{From: 12, To: 41}, 1
		}),
		`{"prompt":"\"model\":\"x\", \\"}`: absent(func(r *request) {
			r.PromptBytes, r.PromptAt, r.PromptIsText = 21, openai.Span{From: 10, To: 31}, true
		}),
	} {
		var got request
		got.Stop = true // Scan must overwrite all of it
		if err := got.Scan([]byte(body)); err != nil {
			t.Errorf("%s: %v", body, err)
			continue
		}
		got.Layout = openai.Layout{} // TestMarks looks at what comes of it
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %+v\nwant %+v", body, got, want)
		}
	}
}

// What forbids that another host continues the answer.
func TestScanContinuation(t *testing.T) {
	for body, want := range map[string]func(*request){
		`"n":1`:                                func(*request) {},
		`"stream":false`:                       func(r *request) { r.StreamAt = openai.Span{From: 10, To: 15} },
		`"echo":true,"suffix":"x","best_of":2`: func(r *request) { r.Echo, r.Suffix, r.BestOf = true, true, 2 },
		`"echo":false,"suffix":"","best_of":1,"use_beam_search":false`:                  func(r *request) { r.BestOf = 1 },
		`"use_beam_search":true,"best_of":1000`:                                         func(r *request) { r.BestOf = 255 },
		`"best_of":"many"`:                                                              func(*request) {},
		`"best_of":1.5`:                                                                 func(r *request) { r.BestOf = 255 },
		`"use_beam_search":true`:                                                        func(r *request) { r.BestOf = 2 },
		`"prompt_logprobs":0,"return_token_ids":true`:                                   func(r *request) { r.PromptLogprobs, r.TokenIDs = true, true },
		`"prompt_logprobs":null,"return_token_ids":false`:                               func(*request) {},
		`"return_hidden_states":true,"session_params":{"id":"a"}`:                       func(r *request) { r.TokenIDs, r.PromptElsewhere = true, true },
		`"modalities":["text"]`:                                                         func(*request) {},
		`"modalities":["t\u0065xt","audio"]`:                                            func(r *request) { r.Audio = true },
		`"modalities":"audio"`:                                                          func(r *request) { r.Audio = true },
		`"modalities":null,"truncate_prompt_tokens":null,"kv_transfer_params":{}`:       func(*request) {},
		`"truncate_prompt_tokens":-1,"prompt_embeds":"AA=="`:                            func(r *request) { r.PromptTruncated, r.PromptElsewhere = true, true },
		`"include_stop_str_in_output":true`:                                             func(r *request) { r.KeepStop = true },
		`"no_stop_trim":true,"include_stop_str_in_output":false`:                        func(r *request) { r.KeepStop = true },
		`"continue_final_message":true`:                                                 func(r *request) { r.OwnPrefill = true },
		`"continue_final_message":false,"add_generation_prompt":true`:                   func(*request) {},
		`"add_generation_prompt":false`:                                                 func(r *request) { r.OwnPrefill = true },
		`"add_generation_prompt":null`:                                                  func(*request) {},
		`"messages":[{"role":"assistant"},{"role":"user"}]`:                             func(r *request) { r.Turns = 2 },
		`"messages":[{"role":"user"},{"content":[{"role":"user"}],"role":"assistant"}]`: func(r *request) { r.Turns, r.OwnPrefill = 2, true },
		`"messages":[{"role":"user","content":{"role":"assistant"}}]`:                   func(r *request) { r.Turns = 1 },
		`"messages":[{"role":"user","r\u006fle":"\u0061ssistant"}]`:                     func(r *request) { r.Turns, r.OwnPrefill = 1, true },
		`"messages":["assistant"]`:                                                      func(r *request) { r.Turns = 1 },
		`"messages":[],"input":[{"role":"assistant"}]`:                                  func(*request) {},
		`"messages":null,"prompt":"x"`:                                                  func(*request) {},
		`"prompt":"x"`:                                                                  func(r *request) { r.PromptIsText = true },
		`"prompt":["x"]`:                                                                func(*request) {},
	} {
		var got request
		if err := got.Scan([]byte("{" + body + "}")); err != nil {
			t.Errorf("%s: %v", body, err)
			continue
		}
		w := request{MaxTokens: -1, N: 1, OpenAt: 1}
		want(&w)
		w.Stream, w.Layout, w.PromptAt, w.PromptBytes = got.Stream, got.Layout, got.PromptAt, got.PromptBytes
		if !reflect.DeepEqual(got, w) {
			t.Errorf("%s:\n got %+v\nwant %+v", body, got, w)
		}
	}
}

func TestPartsOfAStream(t *testing.T) {
	const usage = `"stream_options":{"include_usage":true}`
	for _, tc := range []struct{ body, want string }{
		{`{}`, `{"model":"new","stream":true,` + usage + `}`},
		{`{"a":1}`, `{"model":"new","stream":true,` + usage + `,"a":1}`},
		{`{"stream":true,"a":1}`, `{"model":"new",` + usage + `,"stream":true,"a":1}`},
		{`{"stream": false ,"model":"old","a":1}`, `{` + usage + `,"stream": true ,"model":"new","a":1}`},
		{`{"model":"old","stream_options":null,"stream":null}`, `{"model":"new","stream_options":{"include_usage":true},"stream":true}`},
		{`{"stream_options":{"x":1},"stream":false,"model":"old"}`, `{"stream_options":{"include_usage":true,"x":1},"stream":true,"model":"new"}`},
		{`{"str\u0065am":false,"stream_options":{"include_usage":true},"model":"old"}`, `{"str\u0065am":true,"stream_options":{"include_usage":true},"model":"new"}`},
		{`{"stream_options":{"include_usage":false}}`, `{"model":"new","stream":true,"stream_options":{"include_usage":true}}`},
	} {
		var r openai.Request
		body := []byte(tc.body)
		if err := r.Scan(body); err != nil {
			t.Fatalf("%s: %v", tc.body, err)
		}
		parts, n := r.Parts(nil, body, []byte(`"new"`), false, true)
		if got := string(bytes.Join(parts, nil)); got != tc.want || n != len(got) || len(parts) > 9 {
			t.Errorf("%s:\n got %s (%d, %d parts)\nwant %s (%d)", tc.body, got, n, len(parts), tc.want, len(tc.want))
		}
	}
}

func TestScanErrors(t *testing.T) {
	deep := strings.Repeat(`[`, 512)
	for _, tc := range []struct {
		body, code, param string
		offset            int
		says              string // part of the message
	}{
		{"", openai.CodeInvalidJSON, "", 0, "is empty"},
		{" \r\n", openai.CodeInvalidJSON, "", 0, "is empty"},
		{"\xEF\xBB\xBF{}", openai.CodeInvalidJSON, "", 0, "byte order mark"},
		{"[]", openai.CodeInvalidJSON, "", 0, "is an array"},
		{` "text"`, openai.CodeInvalidJSON, "", 1, "is a string"},
		{"null", openai.CodeInvalidJSON, "", 0, "is null"},
		{"12", openai.CodeInvalidJSON, "", 0, "is a number"},
		{"true", openai.CodeInvalidJSON, "", 0, "is a boolean"},
		{"model=x&stream=1", openai.CodeInvalidJSON, "", 0, `found 'm' at line 1, column 1`},
		{"[1] x", openai.CodeInvalidJSON, "", 4, "goes on"},
		{"{", openai.CodeInvalidJSON, "", 1, "ends after 1 bytes"},
		{`{"model"`, openai.CodeInvalidJSON, "", 8, "ends after 8 bytes"},
		{`{"model":`, openai.CodeInvalidJSON, "", 9, "ends after"},
		{`{"model":"a`, openai.CodeInvalidJSON, "", 11, "inside a string"},
		{`{"model":"a\`, openai.CodeInvalidJSON, "", 12, "inside a string"},
		{`{"model":"a\u12`, openai.CodeInvalidJSON, "", 15, "inside a string"},
		{`{"model":"a"`, openai.CodeInvalidJSON, "", 12, "ends after"},
		{`{"model":"a",`, openai.CodeInvalidJSON, "", 13, "ends after"},
		{`{"a":tru`, openai.CodeInvalidJSON, "", 8, "ends after"},
		{`{"a":-`, openai.CodeInvalidJSON, "", 6, "ends after"},
		{`{"a":[1,`, openai.CodeInvalidJSON, "", 8, "ends after"},
		{`{"a":1}}`, openai.CodeInvalidJSON, "", 7, "goes on behind the end"},
		{`{"a":1}{"b":2}`, openai.CodeInvalidJSON, "", 7, "goes on behind the end"},
		{"{\"a\":1}\x00", openai.CodeInvalidJSON, "", 7, "the byte 0x00"},
		{`{"a":1,}`, openai.CodeInvalidJSON, "", 7, "a member name in double quotes"},
		{`{,"a":1}`, openai.CodeInvalidJSON, "", 1, "a member name"},
		{`{a:1}`, openai.CodeInvalidJSON, "", 1, "a member name"},
		{`{'a':1}`, openai.CodeInvalidJSON, "", 1, "a member name"},
		{`{"a" 1}`, openai.CodeInvalidJSON, "", 5, "a colon"},
		{`{"a"=1}`, openai.CodeInvalidJSON, "", 4, "found '='"},
		{`{"a":1 "b":2}`, openai.CodeInvalidJSON, "", 7, "a comma or a closing brace"},
		{`{"a":1]`, openai.CodeInvalidJSON, "", 6, "a closing brace"},
		{`{"a":[1}`, openai.CodeInvalidJSON, "", 7, "a comma or a closing bracket"},
		{`{"a":[1 2]}`, openai.CodeInvalidJSON, "", 8, "a closing bracket"},
		{`{"a":[1,]}`, openai.CodeInvalidJSON, "", 8, "a value"},
		{`{"a":[,1]}`, openai.CodeInvalidJSON, "", 6, "a value"},
		{`{"a":}`, openai.CodeInvalidJSON, "", 5, "a value"},
		{`{"a":True}`, openai.CodeInvalidJSON, "", 5, "found 'T'"},
		{`{"a":trve}`, openai.CodeInvalidJSON, "", 5, "a value"},
		{`{"a":NaN}`, openai.CodeInvalidJSON, "", 5, "a value"},
		{`{"a":-Infinity}`, openai.CodeInvalidJSON, "", 6, "a digit"},
		{`{"a":+1}`, openai.CodeInvalidJSON, "", 5, "a value"},
		{`{"a":.5}`, openai.CodeInvalidJSON, "", 5, "a value"},
		{`{"a":5.}`, openai.CodeInvalidJSON, "", 7, "a digit"},
		{`{"a":1e}`, openai.CodeInvalidJSON, "", 7, "a digit"},
		{`{"a":01}`, openai.CodeInvalidJSON, "", 6, "a comma or"},
		{`{"a":0x1}`, openai.CodeInvalidJSON, "", 6, "a comma or"},
		{`{"a":"\x41"}`, openai.CodeInvalidJSON, "", 6, "starts no escape"},
		{`{"a":"\u12g4"}`, openai.CodeInvalidJSON, "", 6, "starts no escape"},
		{"{\"a\":\"line\nbreak\"}", openai.CodeInvalidJSON, "", 10, "the byte 0x0a unescaped"},
		{"{\"a\":\"\x00\"}", openai.CodeInvalidJSON, "", 6, `\u0000`},
		{"{\"a\n\":1}", openai.CodeInvalidJSON, "", 3, "unescaped"},
		{"{\n  \"a\": 1,\n  b: 2\n}", openai.CodeInvalidJSON, "", 14, "line 3, column 3 (byte 14)"},
		{`{"a":1 /* no */}`, openai.CodeInvalidJSON, "", 7, "found '/'"},
		{`{"a":` + deep + strings.Repeat("]", 512) + `}`, openai.CodeTooDeep, "", 516, "more than 512 deep"},
		{`{"model":"a","model":"b"}`, openai.CodeDuplicateKey, "model", 13, `"model" twice`},
		{`{"model":"a","m\u006fdel":"b"}`, openai.CodeDuplicateKey, "model", 13, `"model" twice`},
		{`{"x":1,"y":2,"x":1}`, openai.CodeDuplicateKey, "x", 13, `"x" twice`},
		{`{"":1,"":2}`, openai.CodeDuplicateKey, "", 6, `"" twice`},
		{"{\"\xff\":1,\"\\ufffd\":2}", openai.CodeDuplicateKey, "\uFFFD", 7, "twice"},
		{
			`{"` + strings.Repeat("k", 99) + `":1,"` + strings.Repeat("k", 99) + `":1}`, openai.CodeDuplicateKey,
			strings.Repeat("k", 29) + "...", 105, "twice",
		},
		{`{"model":5}`, openai.CodeInvalidType, "model", 9, "expected a string, but got a number"},
		{`{"model":null}`, openai.CodeInvalidType, "model", 9, "got null"},
		{`{"model":["a"]}`, openai.CodeInvalidType, "model", 9, "got an array"},
		{`{"user":7}`, openai.CodeInvalidType, "user", 8, "a string or null"},
		{`{"stream":"true"}`, openai.CodeInvalidType, "stream", 10, "got a string"},
		{`{"stream":1}`, openai.CodeInvalidType, "stream", 10, "true, false or null"},
		{`{"stream_options":true}`, openai.CodeInvalidType, "stream_options", 18, "an object or null, but got a boolean"},
		{`{"stream_options":[]}`, openai.CodeInvalidType, "stream_options", 18, "an array"},
		{`{"stream_options":{"include_usage":1}}`, openai.CodeInvalidType, "stream_options.include_usage", 35, "got a number"},
		{`{"max_tokens":"5"}`, openai.CodeInvalidType, "max_tokens", 14, "an integer or null, but got a string"},
		{`{"max_tokens":1.5}`, openai.CodeInvalidType, "max_tokens", 14, "no integer"},
		{`{"max_completion_tokens":true}`, openai.CodeInvalidType, "max_completion_tokens", 25, "a boolean"},
		{`{"max_output_tokens":9223372036854775808}`, openai.CodeInvalidType, "max_output_tokens", 21, "too large"},
		{`{"n":{}}`, openai.CodeInvalidType, "n", 5, "an object"},
	} {
		var r openai.Request
		err := r.Scan([]byte(tc.body))
		e, ok := errors.AsType[*openai.ScanError](err)
		if !ok {
			t.Errorf("%.60q: error %v, want a ScanError", tc.body, err)
			continue
		}
		if e.Code != tc.code || e.Param != tc.param || e.Offset != tc.offset || !strings.Contains(e.Message, tc.says) {
			t.Errorf("%.60q:\n got %s, param %q, offset %d, %s\nwant %s, param %q, offset %d, ...%s...",
				tc.body, e.Code, e.Param, e.Offset, e.Message, tc.code, tc.param, tc.offset, tc.says)
		}
		if w := e.Wire(); w.Status != 400 || w.Code != tc.code || w.Param != tc.param || w.Type != "invalid_request_error" {
			t.Errorf("%.60q goes out as %+v", tc.body, w)
		}
	}
}

// Prompts and keys may be secret: a message repeats little of them.
func TestScanErrorsDoNotEchoTheBody(t *testing.T) {
	secret := strings.Repeat("secret", 20)
	for _, body := range []string{
		`{"` + secret + `":1,"` + secret + `":2}`, `{"model":` + secret + `}`, secret, `"` + secret + `"`,
		`{"model":"` + secret + "\n", `{"a":"` + secret, `{"stream":"` + secret + `"}`, `{} ` + secret,
	} {
		var r openai.Request
		err := r.Scan([]byte(body))
		if err == nil || strings.Contains(err.Error(), secret[:33]) {
			t.Errorf("%.40q...: %v", body, err)
		}
	}
}

func TestScanManyMembers(t *testing.T) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i := range 100_000 {
		fmt.Fprintf(&b, `"k%d":0,`, i)
	}
	var r openai.Request
	if err := r.Scan(append(b.Bytes(), `"model":"m"}`...)); err != nil || string(r.Model) != "m" {
		t.Errorf("model %q, error %v", r.Model, err)
	}
	for _, dup := range []string{"k0", "k39", "k40", "k99999"} {
		if err := r.Scan(append(b.Bytes(), `"`+dup+`":"m"}`...)); err == nil {
			t.Errorf("a second %s behind 100,000 members is accepted", dup)
		}
	}
}

func TestRequestDoesNotAllocate(t *testing.T) {
	body := chatRequest(4 << 10)
	model := []byte(`"meta-llama/Llama-3.1-70B-Instruct"`)
	var r openai.Request
	dst := make([][]byte, 0, 16)
	if n := testing.AllocsPerRun(100, func() {
		if err := r.Scan(body); err != nil {
			t.Fatal(err)
		}
		dst, _ = r.Parts(dst[:0], body, model, true, false)
	}); n != 0 {
		t.Errorf("Scan and Parts allocate %v times, want 0", n)
	}
}

func TestParts(t *testing.T) {
	const model, usage = `"new"`, `"stream_options":{"include_usage":true}`
	for _, tc := range []struct{ body, want string }{
		{`{}`, `{"model":"new",` + usage + `}`},
		{` { } `, ` {"model":"new",` + usage + ` } `},
		{`{"a":1}`, `{"model":"new",` + usage + `,"a":1}`},
		{`{"model":"old"}`, `{` + usage + `,"model":"new"}`},
		{`{"stream_options":null,"model" : "old" , "z":0}`, `{"stream_options":{"include_usage":true},"model" : "new" , "z":0}`},
		{`{"model":"old","stream_options":{}}`, `{"model":"new","stream_options":{"include_usage":true}}`},
		{`{"model":"old","stream_options":{ }}`, `{"model":"new","stream_options":{"include_usage":true }}`},
		{`{"stream_options":{"x":1},"model":"old"}`, `{"stream_options":{"include_usage":true,"x":1},"model":"new"}`},
		{`{"stream_options":{"x":1,"include_usage": false},"model":"old"}`, `{"stream_options":{"x":1,"include_usage": true},"model":"new"}`},
		{`{"stream_options":{"include_usage":true},"model":"old"}`, `{"stream_options":{"include_usage":true},"model":"new"}`},
		{`{"stream_options":{"include_usage":null}}`, `{"model":"new","stream_options":{"include_usage":true}}`},
		{`{"model":"a","messages":[{"content":"\"model\":\"a\""}]}`, `{` + usage + `,"model":"new","messages":[{"content":"\"model\":\"a\""}]}`},
	} {
		var r openai.Request
		body := []byte(tc.body)
		if err := r.Scan(body); err != nil {
			t.Fatalf("%s: %v", tc.body, err)
		}
		parts, n := r.Parts(nil, body, []byte(model), true, false)
		if got := string(bytes.Join(parts, nil)); got != tc.want || n != len(got) {
			t.Errorf("%s:\n got %s (%d)\nwant %s (%d)", tc.body, got, n, tc.want, len(tc.want))
		}
		parts, n = r.Parts([][]byte{[]byte("kept")}, body, nil, false, false)
		if got := string(bytes.Join(parts, nil)); got != "kept"+tc.body || n != len(tc.body) {
			t.Errorf("%s without a change: %s (%d)", tc.body, got, n)
		}
	}
}
