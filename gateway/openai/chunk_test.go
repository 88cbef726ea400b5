package openai_test

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"testing"

	"headrace/gateway/openai"
)

type (
	chunk   = openai.Chunk
	request = openai.Request
)

// said builds an expected chunk from one in which nothing is reported.
func said(change func(*chunk)) chunk {
	c := chunk{Usage: openai.NoUsage()}
	change(&c)
	return c
}

// coarse is c without what TestParseText looks at.
func coarse(c chunk) chunk {
	c.Text, c.TextAt, c.TextChoice, c.Other, c.ID, c.Role = nil, openai.Span{}, false, false, nil, false
	return c
}

func output(c *chunk)    { c.Content, c.Outputs = true, 1 }
func reasoning(c *chunk) { c.Content, c.Outputs, c.Reasoning = true, 1, true }
func toolCall(c *chunk)  { c.Content, c.Outputs, c.ToolCall = true, 1, true }
func nothing(*chunk)     {}

func failed(status int) func(*chunk) {
	return func(c *chunk) { c.Error, c.ErrorStatus = true, status }
}

func finished(reason string) func(*chunk) {
	return func(c *chunk) { c.Finish, c.FinishReason, c.Finishes = true, []byte(reason), c.Finishes+1 }
}

func all(changes ...func(*chunk)) func(*chunk) {
	return func(c *chunk) {
		for _, change := range changes {
			change(c)
		}
	}
}

func reported(prompt, completion, cached, reasoning int64) func(*chunk) {
	return func(c *chunk) {
		c.HasUsage, c.Usage = true, openai.Usage{Prompt: prompt, Completion: completion, Cached: cached, Reasoning: reasoning}
	}
}

func usageOnly(c *chunk) { c.UsageOnly = true }
func done(c *chunk)      { c.Done = true }
func malformed(c *chunk) { c.Malformed = true }

var chunkTable = []struct {
	name, data string
	want       func(*chunk)
}{
	// Chat Completions and Completions.
	{"", chatChunk, output},
	{"", `[DONE]`, done},
	{"", `{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}`, nothing},
	{"", `{"choices":[{"delta":{"content":null}}]}`, nothing},
	{"", `{"choices":[{"finish_reason":"stop","delta":{}}]}`, finished("stop")},
	{"", `{"choices":[{"delta":{"content":"x"},"finish_reason":"length"}]}`, all(output, finished("length"))},
	{"", `{"choices":[{"delta":{"content":"x"},"finish_reason":""}]}`, output},
	{
		"", `{"choices":[{"index":1,"delta":{"content":"x"}},{"index":0,"delta":{"content":"y"}},{"delta":{}}]}`,
		func(c *chunk) { c.Content, c.Outputs = true, 2 },
	},
	{"", `{"choices":[{"index":0,"finish_reason":"stop"},{"index":1,"finish_reason":"length"},{"finish_reason":null}]}`, all(finished("stop"), finished("length"))},
	{"", `{"choices":[{"delta":{"reasoning_content":"hm"}}]}`, reasoning},
	{"", `{"choices":[{"delta":{"reasoning":"hm","content":""}}]}`, reasoning},
	{"", `{"choices":[{"delta":{"reasoning":"","content":"x"}}]}`, output},
	{"", `{"choices":[{"delta":{"refusal":"no"}}]}`, output},
	{"", `{"choices":[{"delta":{"audio":{"data":"AA=="}}}]}`, output},
	{"", `{"choices":[{"delta":{"content":[{"type":"text","text":"x"}]}}]}`, output},
	{"", `{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"f","arguments":""}}]}}]}`, toolCall},
	{"", `{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"a"}}]}}]}`, toolCall},
	{"", `{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":""}}]}}]}`, nothing},
	{"", `{"choices":[{"delta":{"tool_calls":[]}}]}`, nothing},
	{"", `{"choices":[{"delta":{"tool_calls":[{"type":"custom","custom":{"input":"x"}}]}}]}`, toolCall},
	{"", `{"choices":[{"delta":{"function_call":{"name":"f"}}}]}`, toolCall},
	{"", `{"choices":[{"delta":{"function_call":null}}]}`, nothing},
	{"", `{"choices":[{"text":" world","finish_reason":null}]}`, output},
	{"", `{"choices":[{"text":"","finish_reason":"stop"}]}`, finished("stop")},
	{"", `{"\u0063hoices":[{"d\u0065lta":{"\u0063\u006f\u006e\u0074\u0065\u006e\u0074":"x"}}]}`, output},
	{"", `{ "choices" : [ { "delta" : { "content" : "x" } } ] }`, output},
	{"", "{\n  \"choices\": [\n    {\n      \"delta\": {\n        \"content\": \"x\"\n      }\n    }\n  ]\n}", output},
	// Look-alikes.
	{"", `{"choices":[{"delta":{},"logprobs":{"content":[{"token":"x","text":"x"}]},"finish_reason":null}]}`, nothing},
	{"", `{"choices":[{"delta":{"content":"\"finish_reason\":\"stop\"}]}"}}]}`, output},
	{"", `{"choices":[{"delta":{"role":"{\"content\":\"x\"}"}}]}`, nothing},
	{"", `{"content":"x","delta":{"content":"x"},"finish_reason":"stop"}`, nothing},
	{"", `{"choices":[{"delta":{"x":{"content":"y","error":"z"}},"error":{"code":500}}]}`, nothing},
	{"", `{"choices":[{"delta":{"content":""}}],"prompt_logprobs":[{"choices":[{"text":"x"}]}]}`, nothing},
	// Usage.
	{"", `{"choices":[],"usage":{"prompt_tokens":14,"total_tokens":24,"completion_tokens":10}}`, all(usageOnly, reported(14, 10, -1, -1))},
	{
		"", `{"usage":{"completion_tokens":10,"prompt_tokens":14,"completion_tokens_details":{"reasoning_tokens":3},"prompt_tokens_details":{"cached_tokens":8}}}`,
		all(usageOnly, reported(14, 10, 8, 3)),
	},
	{"", `{"choices":[],"usage":{"prompt_tokens":14,"completion_tokens":10,"prompt_tokens_details":null}}`, all(usageOnly, reported(14, 10, -1, -1))},
	{"", `{"choices":[{"delta":{"content":"x"}}],"usage":{"prompt_tokens":1,"completion_tokens":2}}`, all(output, reported(1, 2, -1, -1))},
	{"", `{"choices":[{"delta":{"content":"x"}}],"usage":null}`, output},
	{"", `{"choices":[],"usage":{}}`, usageOnly},
	{"", `{"choices":[],"usage":null}`, nothing},
	{"", `{"choices":[],"usage":{"prompt_tokens":null,"completion_tokens":2.5}}`, usageOnly},
	{"", `{"choices":[],"usage":{"prompt_tokens":1e2,"completion_tokens":-4}}`, all(usageOnly, reported(100, -1, -1, -1))},
	{"", `{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":1,"prompt_cache_hit_tokens":7}}`, all(usageOnly, reported(9, 1, 7, -1))},
	{"message", `{"choices":[],"usage":{"prompt_tokens":9}}`, all(usageOnly, reported(9, -1, -1, -1))},
	// Errors.
	{"", `{"error":{"message":"no","type":"BadRequestError","param":null,"code":400}}`, failed(400)},
	{"", `{"error":{"message":"no","code":"429"}}`, failed(429)},
	{"", `{"error":{"message":"no","status":503}}`, failed(503)},
	{"", `{"error":{"message":"no","code":200}}`, failed(0)},
	{"", `{"error":{"code":"context_length_exceeded"},"status":400}`, failed(400)},
	{"", `{"error":"worker died"}`, failed(0)},
	{"", `{"error":"worker died","code":500}`, failed(500)},
	{"", `{"error":{}}`, failed(0)},
	{"", `{"error":null,"choices":[{"delta":{"content":"x"}}]}`, output},
	{"", `{"error":"","code":500}`, nothing},
	{"", `{"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400}`, failed(400)},
	{"", `{"object":"error","code":500,"usage":{"prompt_tokens":1}}`, all(failed(500), reported(1, -1, -1, -1))},
	{"error", `{"message":"no"}`, failed(0)},
	{"error", `oops`, all(malformed, failed(0))},
	{"", `{"error":{"code":502},"usage":{"prompt_tokens":1}}`, all(failed(502), reported(1, -1, -1, -1))},
	// Responses.
	{"", `{"type":"response.created","response":{"status":"in_progress","output":[],"usage":null,"error":null}}`, nothing},
	{"", `{"type":"response.output_text.delta","delta":"x","logprobs":[]}`, output},
	{"", `{"delta":"x","type":"response.output_text.delta"}`, output},
	{"response.output_text.delta", `{"delta":"x"}`, output},
	{"", `{"type":"response.output_text.delta","delta":""}`, nothing},
	{"", `{"type":"response.output_text.done","text":"xyz"}`, nothing},
	{"", `{"type":"response.refusal.delta","delta":"x"}`, output},
	{"", `{"type":"response.reasoning_text.delta","delta":"x"}`, reasoning},
	{"", `{"type":"response.reasoning_summary_text.delta","delta":"x"}`, reasoning},
	{"", `{"type":"response.function_call_arguments.delta","delta":"{"}`, toolCall},
	{"", `{"type":"response.custom_tool_call_input.delta","delta":"x"}`, toolCall},
	{"", `{"type":"response.output_item.added","item":{"type":"function_call","name":"f","arguments":""}}`, toolCall},
	{"", `{"type":"response.output_item.added","item":{"type":"message","content":[]}}`, nothing},
	{
		"", `{"type":"response.completed","response":{"output":[{"content":[{"text":"x"}]}],"usage":{"input_tokens":5,"input_tokens_details":{"cached_tokens":4},"output_tokens":3,"output_tokens_details":{"reasoning_tokens":2}}}}`,
		all(done, finished("completed"), reported(5, 3, 4, 2)),
	},
	{"", `{"response":{"usage":{"input_tokens":5,"output_tokens":3}},"type":"response.incomplete"}`, all(done, finished("incomplete"), reported(5, 3, -1, -1))},
	{"", `{"type":"response.failed","response":{"error":{"code":"server_error","message":"x"},"usage":null}}`, all(done, failed(0))},
	{"error", `{"type":"error","code":"500","message":"x","param":null}`, failed(500)},
	// Anthropic Messages.
	{"message_start", `{"type":"message_start","message":{"content":[],"usage":{"input_tokens":10,"cache_creation_input_tokens":2,"cache_read_input_tokens":30,"output_tokens":1}}}`, reported(42, 1, 30, -1)},
	{"content_block_start", `{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`, nothing},
	{"content_block_start", `{"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"t","name":"f","input":{}}}`, toolCall},
	{"content_block_delta", `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"x"}}`, output},
	{"content_block_delta", `{"type":"content_block_delta","delta":{"type":"thinking_delta","thinking":"x"}}`, reasoning},
	{"content_block_delta", `{"type":"content_block_delta","delta":{"type":"input_json_delta","partial_json":"{"}}`, toolCall},
	{"content_block_delta", `{"type":"content_block_delta","delta":{"type":"input_json_delta","partial_json":""}}`, nothing},
	{"content_block_delta", `{"delta":{"text":"x"},"type":"content_block_delta"}`, output},
	{"ping", `{"type":"ping"}`, nothing},
	{"message_delta", `{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":15}}`, all(finished("end_turn"), reported(-1, 15, -1, -1))},
	{"message_stop", `{"type":"message_stop"}`, done},
	{"error", `{"type":"error","error":{"type":"overloaded_error","message":"x"}}`, failed(0)},
	// What is no JSON object, or not quite.
	{"", ``, malformed},
	{"", `null`, malformed},
	{"", `[1]`, malformed},
	{"", `{"choices":[{"delta":{"content":"x`, malformed},
	{"", `{"choices":[{"delta":{"content":"x"}}]`, all(output, malformed)},
	{"", `{"choices":[{"delta":{"content":"x"}}]} {}`, all(output, malformed)},
	{"", `{"usage":{"prompt_tokens":1}} x`, all(malformed, reported(1, -1, -1, -1))},
	{"", `{"choices":[{"logprobs":{"token_logprobs":[NaN,-Infinity,Infinity]},"text":"x` + "\x01" + `"}]}`, output},
}

func TestParse(t *testing.T) {
	for _, tc := range chunkTable {
		var name []byte
		if tc.name != "" {
			name = []byte(tc.name)
		}
		got := chunk{Error: true, Outputs: 9, Malformed: true} // Parse must overwrite all of it
		got.Parse(name, []byte(tc.data))
		if want := said(tc.want); !reflect.DeepEqual(coarse(got), want) {
			t.Errorf("%s %s:\n got %+v\nwant %+v", tc.name, tc.data, got, want)
		}
	}
}

func TestParseText(t *testing.T) {
	for data, want := range map[string]struct {
		text          string // with its quotes, "" for none
		choice, other bool
	}{
		`{"choices":[{"index":0,"delta":{"content":" a\n"},"logprobs":null}]}`:        {`" a\n"`, true, false},
		`{"choices":[{"delta":{"content":""}}]}`:                                      {`""`, true, false},
		`{ "choices" : [ { "index" : 0 , "text" : "x" , "logprobs" : null } ] }`:      {`"x"`, true, false},
		`{"choices":[{"delta":{"content":null}}]}`:                                    {``, true, false},
		`{"choices":[{"delta":{},"finish_reason":"stop"}]}`:                           {``, true, false},
		`{"choices":[{"delta":{"c\u006fntent":"x"}}]}`:                                {`"x"`, true, false},
		`{"choices":[{"delta":{"reasoning":"hm","content":"x"}}]}`:                    {`"x"`, true, false},
		`{"choices":[{"index":1,"delta":{"content":"x"}}]}`:                           {`"x"`, false, false},
		`{"choices":[{"delta":{"content":"x"},"index":"0"}]}`:                         {`"x"`, false, false},
		`{"choices":[{"delta":{"content":"x"}},{"index":1,"delta":{}}]}`:              {`"x"`, false, false},
		`{"choices":[{"delta":{"content":"x"}},{"index":0,"delta":{"content":"y"}}]}`: {`"y"`, false, true},
		`{"choices":[{"delta":{"content":"x"},"text":"y"}]}`:                          {`"y"`, true, true},
		`{"choices":[{"delta":{"content":"x"}}],"choices":[{"index":0,"delta":{}}]}`:  {`"x"`, false, false},
		`{"choices":[5]}`: {``, false, false},
		`{"choices":[],"usage":{"prompt_tokens":1}}`:                                          {``, false, false},
		`{"choices":[{"delta":{"content":[{"text":"x"}]}}]}`:                                  {``, true, true},
		`{"choices":[{"delta":{"content":[]}}]}`:                                              {``, true, false},
		`{"choices":[{"delta":{"content":"x"},"logprobs":{"content":[]}}]}`:                   {`"x"`, true, true},
		`{"choices":[{"delta":{"refusal":"no"}}]}`:                                            {``, true, true},
		`{"choices":[{"delta":{"refusal":null,"audio":null,"tool_calls":[],"content":"x"}}]}`: {`"x"`, true, false},
		`{"choices":[{"delta":{"audio":{"id":"a"}}}]}`:                                        {``, true, true},
		`{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{"}}]}}]}`:   {``, true, true},
		`{"choices":[{"delta":{"function_call":{"name":"f"}}}]}`:                              {``, true, true},
		`{"type":"response.output_text.delta","delta":"x"}`:                                   {``, false, false},
		`[DONE]`: {``, false, false},
	} {
		var c chunk
		c.Parse(nil, []byte(data))
		text := data[c.TextAt.From:c.TextAt.To]
		if text != want.text || c.TextChoice != want.choice || c.Other != want.other || want.text != "" && `"`+string(c.Text)+`"` != text {
			t.Errorf("%s: text %s (%q), the only choice %v, other output %v", data, text, c.Text, c.TextChoice, c.Other)
		}
	}
}

func TestAborted(t *testing.T) {
	for reason, want := range map[string]bool{`"stop"`: false, `"length"`: false, `null`: false, `"abort"`: true, `"error"`: true} {
		var c chunk
		c.Parse(nil, []byte(`{"choices":[{"delta":{},"finish_reason":`+reason+`}]}`))
		if c.Aborted() != want {
			t.Errorf("%s: aborted %v", reason, c.Aborted())
		}
	}
}

func TestParseBody(t *testing.T) {
	content := func(c *chunk) { c.Content = true }
	for body, want := range map[string]func(*chunk){
		`{"id":"x","object":"chat.completion","choices":[{"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2}}`:                                         all(output, finished("stop"), reported(1, 2, -1, -1)),
		`{"choices":[{"message":{"content":null,"tool_calls":[{"id":"a","function":{"name":"f","arguments":"{}"}}]},"finish_reason":"tool_calls"}]}`:                                                                         all(toolCall, finished("tool_calls")),
		`{"object":"text_completion","choices":[{"text":"a"},{"text":"b"}]}`:                                                                                                                                                 func(c *chunk) { c.Content, c.Outputs = true, 2 },
		`{"object":"list","data":[{"object":"embedding","embedding":[-0.5,1e-3]}],"usage":{"prompt_tokens":4,"total_tokens":4}}`:                                                                                             all(content, reported(4, -1, -1, -1)),
		`{"results":[{"index":0,"relevance_score":0.5}],"usage":{"total_tokens":56}}`:                                                                                                                                        all(content, reported(56, -1, -1, -1)),
		`{"object":"response","status":"completed","error":null,"output":[{"type":"reasoning","content":[]},{"type":"message","content":[{"type":"output_text","text":"x"}]}],"usage":{"input_tokens":5,"output_tokens":3}}`: all(output, finished("completed"), reported(5, 3, -1, -1)),
		`{"object":"response","status":"incomplete","output":[{"type":"function_call","name":"f"}]}`:                                                                                                                         all(toolCall, finished("incomplete")),
		`{"object":"response","status":"failed","output":[],"error":{"code":"server_error"}}`:                                                                                                                                failed(0),
		`{"type":"message","content":[{"type":"thinking","thinking":"a"},{"type":"text","text":"x"}],"stop_reason":"end_turn","usage":{"input_tokens":5,"output_tokens":3}}`:                                                 all(reasoning, finished("end_turn"), reported(5, 3, -1, -1)),
		`{"type":"message","content":[],"stop_reason":null}`:                                                                                                                                                                 nothing,
		`{"choices":[],"usage":{"prompt_tokens":1}}`:                                                                                                                                                                         reported(1, -1, -1, -1),
		`{"text":"what was said"}`:             content,
		`{"error":{"message":"x","code":404}}`: failed(404),
		`{"object":"error","code":400}`:        failed(400),
		`<html>`:                               malformed,
		`[DONE]`:                               malformed,
	} {
		var got chunk
		got.ParseBody([]byte(body))
		if want := said(want); !reflect.DeepEqual(coarse(got), want) {
			t.Errorf("%s:\n got %+v\nwant %+v", body, got, want)
		}
	}
}

func TestUsageMerge(t *testing.T) {
	u := openai.NoUsage()
	u.Merge(openai.Usage{Prompt: 42, Completion: 1, Cached: 30, Reasoning: -1})
	u.Merge(openai.Usage{Prompt: -1, Completion: 15, Cached: -1, Reasoning: 0})
	if want := (openai.Usage{Prompt: 42, Completion: 15, Cached: 30, Reasoning: 0}); u != want {
		t.Errorf("merged to %+v, want %+v", u, want)
	}
}

func TestParseDoesNotAllocate(t *testing.T) {
	var c chunk
	for _, tc := range chunkTable {
		name, data := []byte(tc.name), []byte(tc.data)
		if n := testing.AllocsPerRun(10, func() { c.Parse(name, data); c.ParseBody(data) }); n != 0 {
			t.Errorf("%s allocates %v times, want 0", tc.data, n)
		}
	}
}

// The order of members must not matter: each object of each chunk is shuffled and read again.
func TestParseIgnoresMemberOrder(t *testing.T) {
	const seed = 7
	rng := rand.New(rand.NewPCG(seed, seed))
	for _, tc := range chunkTable {
		v, ok := decode([]byte(tc.data))
		if !ok {
			continue
		}
		var want chunk
		want.Parse([]byte(tc.name), []byte(tc.data))
		for range 10 {
			shuffled := encode(nil, v, rng)
			var got chunk
			got.Parse([]byte(tc.name), shuffled)
			got.TextAt, want.TextAt = openai.Span{}, openai.Span{}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("seed %d: %s\n got %+v\nwant %+v", seed, shuffled, got, want)
			}
		}
	}
}

// TestChunkID reads by what a stream's chunks belong together.
func TestChunkID(t *testing.T) {
	for data, want := range map[string]struct {
		id   string
		role bool
	}{
		`{"id":"chatcmpl-1","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}`: {"chatcmpl-1", true},
		`{"choices":[{"index":0,"delta":{"role":null,"content":"x"}}],"id":"a"}`:                {"a", false},
		`{"id":7,"choices":[{"index":0,"text":"x"}]}`:                                           {"", false},
		`{"choices":[{"delta":{"content":"{\"id\":\"b\",\"role\":\"x\"}"}}]}`:                   {"", false},
		`[DONE]`: {"", false},
	} {
		var c openai.Chunk
		if c.Parse(nil, []byte(data)); string(c.ID) != want.id || c.Role != want.role {
			t.Errorf("%s: id %q, role %t", data, c.ID, c.Role)
		}
	}
}

// TestTokenIDs finds the numbers of tokens where engines put them, and takes them out without a trace.
func TestTokenIDs(t *testing.T) {
	for data, want := range map[string]struct{ tokens, prompt, without string }{
		`{"id":"x","choices":[{"index":0,"delta":{"content":"a"},"token_ids":[1,2]}]}`:                      {`[1,2]`, "", `{"id":"x","choices":[{"index":0,"delta":{"content":"a"}}]}`},
		`{"choices":[{"delta":{"role":"assistant"}}],"prompt_token_ids":[ 7 ]}`:                             {"", `[ 7 ]`, `{"choices":[{"delta":{"role":"assistant"}}]}`},
		`{"choices":[{"text":"a","prompt_token_ids":[7],"token_ids":[1]}]}`:                                 {`[1]`, `[7]`, `{"choices":[{"text":"a"}]}`},
		`{"choices":[{"token_ids":[1],"text":"a"}]}`:                                                        {`[1]`, "", `{"choices":[{"text":"a"}]}`},
		`{"choices":[{ "token_ids" : [1] , "text":"a"}]}`:                                                   {`[1]`, "", `{"choices":[{ "text":"a"}]}`},
		`{"choices":[{"token_ids":[]}]}`:                                                                    {`[]`, "", `{"choices":[{}]}`},
		`{"choices":[{"text":"a","token_ids":null,"prompt_token_ids":null}]}`:                               {"", "", `{"choices":[{"text":"a","token_ids":null,"prompt_token_ids":null}]}`},
		`{"choices":[{"delta":{"token_ids":[1]}}],"token_ids":[2]}`:                                         {"", "", `{"choices":[{"delta":{"token_ids":[1]}}],"token_ids":[2]}`},
		"{\"choices\":[{\"text\":\"a\"\n,\n\"token_ids\"\n:\n[1]\n}]}":                                      {`[1]`, "", "{\"choices\":[{\"text\":\"a\"\n\n}]}"},
		`{"prompt_token_ids":[9],"choices":[{"text":"\"token_ids\":[5]","token_ids":[1],"index":0}],"a":1}`: {`[1]`, `[9]`, `{"choices":[{"text":"\"token_ids\":[5]","index":0}],"a":1}`},
	} {
		var c openai.Chunk
		c.Parse(nil, []byte(data))
		if got := data[c.TokenIDsAt.From:c.TokenIDsAt.To]; got != want.tokens {
			t.Errorf("%s: tokens %q, want %q", data, got, want.tokens)
		}
		if got := data[c.PromptIDsAt.From:c.PromptIDsAt.To]; got != want.prompt {
			t.Errorf("%s: prompt %q, want %q", data, got, want.prompt)
		}
		first, last := c.TokenIDsAt, c.PromptIDsAt
		if first.From > last.From {
			first, last = last, first
		}
		without := data
		for _, at := range []openai.Span{last, first} {
			if at.Present() {
				at = openai.Member([]byte(without), at)
				without = without[:at.From] + without[at.To:]
			}
		}
		if without != want.without {
			t.Errorf("%s: without %s, want %s", data, without, want.without)
		}
	}
}

// TestAskTokenIDs asks for them at the end of any request, however it was taken apart.
func TestAskTokenIDs(t *testing.T) {
	for _, body := range []string{`{"model":"m","messages":[1]}`, "{\"messages\":[{}],\"stream\":true,\"model\":\"m\"}\n ", `{"model":"m","a":{"stream_options":{}},"stream_options":null}`} {
		var q openai.Request
		if err := q.Scan([]byte(body)); err != nil {
			t.Fatal(err)
		}
		for _, inject := range []bool{false, true} {
			parts, n := q.Parts(nil, []byte(body), []byte(`"new"`), inject, inject)
			parts, n = openai.AskTokenIDs(parts, n)
			all := bytes.Join(parts, nil)
			var m map[string]any
			if err := json.Unmarshal(all, &m); err != nil || m["return_token_ids"] != true || m["model"] != "new" || len(all) != n {
				t.Errorf("%v, %d bytes of %d: %s", err, n, len(all), all)
			}
		}
	}
}
