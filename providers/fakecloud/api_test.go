package fakecloud_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"headrace/providers/fakecloud"
)

func TestModels(t *testing.T) {
	h := start(t, fakecloud.HostConfig{Models: []string{"meta/llama", "other"}, MaxModelLen: 4096})
	var list struct {
		Object string
		Data   []map[string]any
	}
	_, b, _ := do(t, h, http.MethodGet, "/v1/models", "")
	if err := json.Unmarshal(b, &list); err != nil || list.Object != "list" || len(list.Data) != 2 {
		t.Fatalf("%v in %s", err, b)
	}
	m := list.Data[0]
	if m["id"] != "meta/llama" || m["object"] != "model" || m["owned_by"] != "vllm" || m["root"] != "meta/llama" || m["max_model_len"] != 4096.0 || m["created"] == 0.0 {
		t.Errorf("model %v", m)
	}
	for _, path := range []string{"/v1/models/meta/llama", "/v1/models/meta%2Fllama"} {
		if status, b, _ := do(t, h, http.MethodGet, path, ""); status != 200 || !bytes.Contains(b, []byte(`"id":"meta/llama"`)) {
			t.Errorf("GET %s: %d %s", path, status, b)
		}
	}
	if status, _, _ := do(t, h, http.MethodGet, "/v1/models/none", ""); status != 404 {
		t.Errorf("unknown model: status %d", status)
	}
}

func TestPlainPaths(t *testing.T) {
	h := start(t, fakecloud.HostConfig{APIKey: "secret"})
	for _, tc := range []struct {
		method, path string
		status       int
		body         string
	}{
		{"GET", "/health", 200, ""},
		{"GET", "/ping", 200, ""},
		{"POST", "/ping", 200, ""},
		{"GET", "/version", 200, `{"version":"0.11.2"}`},
		{"GET", "/nothing", 404, `{"detail":"Not Found"}`},
		{"POST", "/health", 405, `{"detail":"Method Not Allowed"}`},
		{"GET", "/v1/models", 401, `{"error":"Unauthorized"}`},
		{"POST", "/v1/chat/completions", 401, `{"error":"Unauthorized"}`},
	} {
		status, b, head := do(t, h, tc.method, tc.path, "")
		if status != tc.status || string(b) != tc.body {
			t.Errorf("%s %s: %d %s", tc.method, tc.path, status, b)
		}
		if head.Get("Server") != "uvicorn" || len(head.Values("Date")) != 1 || len(head.Values("Content-Type")) != 1 {
			t.Errorf("%s %s: head %v", tc.method, tc.path, head)
		}
	}
	if status, _, _ := do(t, h, http.MethodGet, "/v1/models", "", "Authorization", "Bearer secret"); status != 200 {
		t.Errorf("the right key: status %d", status)
	}
	if status, _, _ := do(t, h, http.MethodGet, "/v1/models", "", "Authorization", "Basic secret"); status != 401 {
		t.Errorf("the wrong scheme: status %d", status)
	}
}

func TestChat(t *testing.T) {
	h := start(t, fakecloud.HostConfig{})
	var a struct {
		ID, Object, Model string
		Choices           []struct {
			Index   int
			Message struct{ Role, Content string }
			Finish  string `json:"finish_reason"`
		}
		Usage struct {
			Prompt     int `json:"prompt_tokens"`
			Completion int `json:"completion_tokens"`
			Total      int `json:"total_tokens"`
		}
	}
	ask(t, h, "/v1/chat/completions", chatBody("hello", `,"max_tokens":33,"n":3`), &a)
	if !strings.HasPrefix(a.ID, "chatcmpl-") || a.Object != "chat.completion" || a.Model != model || len(a.Choices) != 3 {
		t.Fatalf("answer %+v", a)
	}
	for i, c := range a.Choices {
		if want := fakecloud.Answer(model, fakecloud.Choice("hello", i), 33); c.Index != i || c.Message.Content != want || c.Finish != "length" || c.Message.Role != "assistant" {
			t.Errorf("choice %d: %+v, want %q", i, c, want)
		}
	}
	if u := a.Usage; u.Prompt != fakecloud.CountTokens("hello") || u.Completion != 99 || u.Total != u.Prompt+99 {
		t.Errorf("usage %+v", u)
	}
	ask(t, h, "/v1/chat/completions", chatBody("hello", `,"max_tokens":5,"max_completion_tokens":7`), &a)
	if a.Choices[0].Message.Content != fakecloud.Answer(model, "hello", 7) {
		t.Error("max_completion_tokens does not go before max_tokens")
	}
	n := fakecloud.AnswerTokens(model, "hello")
	ask(t, h, "/v1/chat/completions", chatBody("hello", ""), &a)
	if a.Choices[0].Message.Content != fakecloud.Answer(model, "hello", n) || a.Choices[0].Finish != "stop" || a.Usage.Completion != n {
		t.Errorf("without a limit: %+v, want %d tokens", a, n)
	}
	ask(t, h, "/v1/chat/completions", `{"messages":[{"role":"system","content":"be brief"},{"role":"user","content":[{"type":"text","text":"hel"},{"type":"text","text":"lo"}]}],"max_tokens":4}`, &a)
	if a.Choices[0].Message.Content != fakecloud.Answer(model, "be brief\nhello", 4) {
		t.Error("parts and several messages")
	}
}

func TestChatStream(t *testing.T) {
	h := start(t, fakecloud.HostConfig{})
	_, b, head := do(t, h, http.MethodPost, "/v1/chat/completions", chatBody("hi", `,"max_tokens":40,"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}`))
	if got := head.Get("Content-Type"); got != "text/event-stream; charset=utf-8" {
		t.Errorf("content type %q", got)
	}
	cs := chunks(t, b)
	if len(cs) != 42 {
		t.Fatalf("%d chunks, want one for the role, forty and one for the usage", len(cs))
	}
	if d := cs[0].Choices[0].Delta; d.Role == nil || *d.Role != "assistant" || d.Content == nil || *d.Content != "" {
		t.Errorf("first chunk %+v", cs[0])
	}
	var text strings.Builder
	for i, c := range cs[1:41] {
		text.WriteString(*c.Choices[0].Delta.Content)
		if last := i == 39; (c.Choices[0].Finish != nil) != last || c.Usage.Completion != i+1 || c.ID != cs[0].ID {
			t.Errorf("chunk %d: %+v", i+1, c)
		}
	}
	if text.String() != fakecloud.Answer(model, "hi", 40) || *cs[40].Choices[0].Finish != "length" {
		t.Errorf("text %q", text.String())
	}
	if u := cs[41]; len(u.Choices) != 0 || u.Usage.Completion != 40 || u.Usage.Total != u.Usage.Prompt+40 {
		t.Errorf("usage chunk %+v", u)
	}
	_, b, _ = do(t, h, http.MethodPost, "/v1/chat/completions", chatBody("hi", `,"stream":true`))
	cs = chunks(t, b)
	last := cs[len(cs)-1]
	if *last.Choices[0].Finish != "stop" || *last.Choices[0].Delta.Content != "" || last.Usage != nil {
		t.Errorf("the last chunk of an answer that ended by itself: %+v", last)
	}
}

func TestContinuation(t *testing.T) {
	h := start(t, fakecloud.HostConfig{})
	whole := fakecloud.Answer(model, "go on", 30)
	sent := whole[:len(fakecloud.Answer(model, "go on", 11))-1] // inside token 10
	last, err := json.Marshal(sent)
	if err != nil {
		t.Fatal(err)
	}
	body := fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":"go on"},{"role":"assistant","content":%s}],"max_tokens":20,"continue_final_message":true,"add_generation_prompt":false,"stream":true}`, model, last)
	_, b, _ := do(t, h, http.MethodPost, "/v1/chat/completions", body)
	got := sent
	for _, c := range chunks(t, b) {
		got += *c.Choices[0].Delta.Content
	}
	if got != whole {
		t.Errorf("sent and continued: %q, want %q", got, whole)
	}
	do(t, h, http.MethodPost, "/v1/chat/completions", strings.Replace(body, string(last), `"never said"`, 1))
	if s := h.Stats(); s.Continued != 2 || s.BadSeams != 1 {
		t.Errorf("books %+v, want 2 continued, 1 bad seam", s)
	}
	if status, b, _ := do(t, h, http.MethodPost, "/v1/chat/completions", strings.Replace(body, `"add_generation_prompt":false`, `"x":1`, 1)); status != 400 {
		t.Errorf("with a generation prompt: %d %s", status, b)
	}
}

// TestPrefill shows what hosts make of an unfinished answer that ends with white space.
func TestPrefill(t *testing.T) {
	const prompt, begun = "go on", 5
	whole := fakecloud.Answer(model, prompt, begun+20)
	sent := fakecloud.Answer(model, prompt, begun) + " "
	for name, tc := range map[string]struct {
		prefill fakecloud.Prefill
		status  int
		want    string // the answer begins with it, "" for anything but the answer's rest
	}{
		"continues": {fakecloud.PrefillContinues, 200, strings.TrimPrefix(whole, sent)},
		"trims":     {fakecloud.PrefillTrims, 200, strings.TrimPrefix(whole, strings.TrimRight(sent, " "))},
		"ignores":   {fakecloud.PrefillIgnored, 200, fakecloud.Answer(model, prompt+"\n"+sent, 20)},
		"refuses":   {fakecloud.PrefillRefused, 400, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.HasPrefix(whole, sent) {
				t.Fatalf("no white space behind token %d of %q", begun, whole)
			}
			h := start(t, fakecloud.HostConfig{Prefill: tc.prefill})
			body, err := json.Marshal(map[string]any{
				"model": model, "max_tokens": 20, "continue_final_message": true, "add_generation_prompt": false,
				"messages": []map[string]string{{"role": "user", "content": prompt}, {"role": "assistant", "content": sent}},
			})
			if err != nil {
				t.Fatal(err)
			}
			var a struct {
				Choices []struct{ Message struct{ Content string } }
			}
			status, b, _ := do(t, h, http.MethodPost, "/v1/chat/completions", string(body))
			if status != tc.status {
				t.Fatalf("status %d %s", status, b)
			}
			if status != http.StatusOK {
				return
			}
			if err := json.Unmarshal(b, &a); err != nil {
				t.Fatal(err)
			}
			if got := a.Choices[0].Message.Content; got != tc.want {
				t.Errorf("said %q, want %q", got, tc.want)
			}
			if s := h.Stats(); s.BadSeams != 0 {
				t.Errorf("%d bad seams", s.BadSeams)
			}
		})
	}
}

// TestContinuedCompletion goes on with an answer whose beginning stands at the end of the prompt.
func TestContinuedCompletion(t *testing.T) {
	h := start(t, fakecloud.HostConfig{})
	model := h.Config().Models[0]
	const question = "Q: go on\nA:"
	whole := fakecloud.Answer(model, question, 30)
	for _, cut := range []int{0, 1, len(fakecloud.Answer(model, question, 11)), len(fakecloud.Answer(model, question, 12)) - 1} {
		prompt, err := json.Marshal(question + whole[:cut])
		if err != nil {
			t.Fatal(err)
		}
		next, _, _ := fakecloud.Position(model, question, whole[:cut])
		_, b, _ := do(t, h, http.MethodPost, "/v1/completions", fmt.Sprintf(`{"model":%q,"prompt":%s,"max_tokens":%d}`, model, prompt, 30-next))
		var a struct {
			Choices []struct{ Text string }
			Usage   struct {
				Prompt int `json:"prompt_tokens"`
			}
		}
		if err := json.Unmarshal(b, &a); err != nil || len(a.Choices) != 1 {
			t.Fatalf("%v: %s", err, b)
		}
		if got := whole[:cut] + a.Choices[0].Text; got != whole {
			t.Errorf("cut at %d: %q, want %q", cut, got, whole)
		}
		begun := next
		if len(fakecloud.Answer(model, question, next)) < cut {
			begun++ // a part of a token is one
		}
		if want := fakecloud.CountTokens(question) + begun; a.Usage.Prompt != want {
			t.Errorf("cut at %d: %d prompt tokens, want %d: those of the question and those of the answer", cut, a.Usage.Prompt, want)
		}
	}
	do(t, h, http.MethodPost, "/v1/completions", fmt.Sprintf(`{"model":%q,"prompt":"Q: go on\nA: never said"}`, model))
	if s := h.Stats(); s.Continued != 3 || s.BadSeams != 1 {
		t.Errorf("books %+v, want 3 continued, 1 bad seam", s)
	}
}

func TestReasoning(t *testing.T) {
	h := start(t, fakecloud.HostConfig{Models: []string{"reasoner"}})
	_, b, _ := do(t, h, http.MethodPost, "/v1/chat/completions", `{"messages":[{"role":"user","content":"why"}],"stream":true,"max_tokens":80}`)
	var thought, said string
	for _, c := range chunks(t, b) {
		d := c.Choices[0].Delta
		if d.Reasoning != nil {
			if said != "" {
				t.Error("a thought after the answer began")
			}
			thought += *d.Reasoning
		}
		if d.Content != nil {
			said += *d.Content
		}
	}
	if want := fakecloud.Reasoning("reasoner", "why"); thought != want {
		t.Errorf("thought %q, want %q", thought, want)
	}
	if said == "" || !strings.HasPrefix(fakecloud.Answer("reasoner", "why", 80), said) {
		t.Errorf("said %q", said)
	}
}

func TestRefusals(t *testing.T) {
	h := start(t, fakecloud.HostConfig{MaxModelLen: 100})
	old := start(t, fakecloud.HostConfig{MaxModelLen: 100, Legacy: true})
	for _, tc := range []struct {
		body, kind, param string
		status            int
	}{
		{`{"model":`, "Bad Request", "", 400},
		{`{"model":1,"messages":[]}`, "Bad Request", "", 400},
		{`{"model":"none","messages":[{"role":"user","content":"x"}]}`, "NotFoundError", "model", 404},
		{`{"messages":[]}`, "BadRequestError", "messages", 400},
		{chatBody(strings.Repeat("long ", 100), ""), "BadRequestError", "input_tokens", 400},
		{chatBody("x", `,"max_tokens":100`), "BadRequestError", "input_tokens", 400},
		{chatBody("x", `,"max_tokens":0`), "BadRequestError", "max_tokens", 400},
		{chatBody("x", `,"n":0`), "BadRequestError", "n", 400},
		{chatBody("x", `,"stream_options":{"include_usage":true}`), "BadRequestError", "stream_options", 400},
		{chatBody("x", `,"top_logprobs":2`), "BadRequestError", "top_logprobs", 400},
		{chatBody("x", `,"tool_choice":"required"`), "BadRequestError", "tool_choice", 400},
	} {
		status, b, _ := do(t, h, http.MethodPost, "/v1/chat/completions", tc.body)
		var e struct {
			Error struct {
				Message, Type string
				Param         *string
				Code          int
			}
		}
		if err := json.Unmarshal(b, &e); err != nil {
			t.Fatalf("%v in %s", err, b)
		}
		param := ""
		if e.Error.Param != nil {
			param = *e.Error.Param
		}
		if status != tc.status || e.Error.Code != tc.status || e.Error.Type != tc.kind || param != tc.param || e.Error.Message == "" {
			t.Errorf("%.60s: %d %s", tc.body, status, b)
		}
		status, b, _ = do(t, old, http.MethodPost, "/v1/chat/completions", tc.body)
		var flat struct {
			Object, Message, Type string
			Code                  int
		}
		if err := json.Unmarshal(b, &flat); err != nil || status != tc.status || flat.Object != "error" || flat.Code != tc.status || flat.Type != tc.kind {
			t.Errorf("old version, %.60s: %d %s", tc.body, status, b)
		}
	}
	if s := h.Stats(); s.Refusals != 11 || s.Generations != 0 {
		t.Errorf("books %+v, want 11 refusals and no generation", s)
	}
}

func TestStop(t *testing.T) {
	h := start(t, fakecloud.HostConfig{})
	whole := fakecloud.Answer(model, "stop", 60)
	at := len(whole) / 2
	for whole[at]&0xc0 == 0x80 || whole[at+4]&0xc0 == 0x80 {
		at++
	}
	stop := whole[at : at+4]
	q, err := json.Marshal(stop)
	if err != nil {
		t.Fatal(err)
	}
	_, b, _ := do(t, h, http.MethodPost, "/v1/chat/completions", chatBody("stop", `,"max_tokens":60,"stream":true,"stop":[`+string(q)+`]`))
	var got string
	cs := chunks(t, b)
	for _, c := range cs {
		got += *c.Choices[0].Delta.Content
	}
	if want, _, _ := strings.Cut(whole, stop); got != want || *cs[len(cs)-1].Choices[0].Finish != "stop" {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestStructuredOutputFollowsItsSchema(t *testing.T) {
	h := start(t, fakecloud.HostConfig{})
	for i, schema := range []string{
		`{"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer"},"married":{"type":"boolean"},"tags":{"type":"array","items":{"type":"string"}}},"required":["name","age","married","tags"],"additionalProperties":false}`,
		`{"$defs":{"p":{"type":"object","properties":{"x":{"type":"number","minimum":-2,"maximum":-1}},"required":["x"]}},"type":"object","properties":{"a":{"$ref":"#/$defs/p"},"b":{"anyOf":[{"$ref":"#/$defs/p"},{"type":"null"}]}},"required":["a","b"]}`,
		`{"$defs":{"node":{"type":"object","properties":{"v":{"enum":["on","off"]},"next":{"type":"array","items":{"$ref":"#/$defs/node"}}},"required":["v","next"]}},"$ref":"#/$defs/node"}`,
		`{"type":"object","properties":{"n":{"type":"integer","exclusiveMinimum":3,"maximum":9,"multipleOf":2},"d":{"type":"string","minLength":30,"maxLength":31},"l":{"type":"array","minItems":4,"maxItems":4,"items":{"const":7}},"u":{"type":["string","null"]}},"required":["n","d","l","u"]}`,
		`{"allOf":[{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]},{"type":"object","properties":{"b":{"type":"string"}},"required":["b"]}]}`,
	} {
		doc, err := jsonschema.UnmarshalJSON(strings.NewReader(schema))
		if err != nil {
			t.Fatal(err)
		}
		c := jsonschema.NewCompiler()
		if err := c.AddResource("schema.json", doc); err != nil {
			t.Fatal(err)
		}
		compiled, err := c.Compile("schema.json")
		if err != nil {
			t.Fatal(err)
		}
		for k := range 20 {
			var a struct {
				Choices []struct{ Message struct{ Content string } }
			}
			ask(t, h, "/v1/chat/completions", chatBody(fmt.Sprint("try ", k), `,"response_format":{"type":"json_schema","json_schema":{"name":"s","schema":`+schema+`}}`), &a)
			v, err := jsonschema.UnmarshalJSON(strings.NewReader(a.Choices[0].Message.Content))
			if err == nil {
				err = compiled.Validate(v)
			}
			if err != nil {
				t.Fatalf("schema %d: %s: %v", i, a.Choices[0].Message.Content, err)
			}
		}
	}
	var a struct {
		Choices []struct{ Message struct{ Content string } }
	}
	ask(t, h, "/v1/chat/completions", chatBody("x", `,"response_format":{"type":"json_object"}`), &a)
	if !json.Valid([]byte(a.Choices[0].Message.Content)) || !strings.HasPrefix(a.Choices[0].Message.Content, "{") {
		t.Errorf("json_object: %q", a.Choices[0].Message.Content)
	}
}

func TestCompletions(t *testing.T) {
	h := start(t, fakecloud.HostConfig{})
	var a struct {
		Object  string
		Choices []struct {
			Index    int
			Text     string
			Logprobs *struct {
				Tokens     []string
				TextOffset []int `json:"text_offset"`
			}
		}
		Usage map[string]any
	}
	ask(t, h, "/v1/completions", `{"prompt":["one","two"],"max_tokens":9,"logprobs":1}`, &a)
	if a.Object != "text_completion" || len(a.Choices) != 2 || a.Usage["completion_tokens"] != 18.0 {
		t.Fatalf("answer %+v", a)
	}
	for i, prompt := range []string{"one", "two"} {
		c := a.Choices[i]
		if want := fakecloud.Answer(model, prompt, 9); c.Text != want || strings.Join(c.Logprobs.Tokens, "") != want || len(c.Logprobs.TextOffset) != 9 {
			t.Errorf("choice %d: %+v, want %q", i, c, want)
		}
	}
	ask(t, h, "/v1/completions", `{"prompt":"one","echo":true}`, &a)
	if a.Choices[0].Text != "one"+fakecloud.Answer(model, "one", 16) {
		t.Errorf("echo and the default length: %q", a.Choices[0].Text)
	}
	_, b, _ := do(t, h, http.MethodPost, "/v1/completions", `{"prompt":"one","max_tokens":9,"stream":true,"stream_options":{"include_usage":true}}`)
	var text string
	es := events(t, b)
	for _, e := range es[:len(es)-1] {
		if err := json.Unmarshal([]byte(e.data), &a); err != nil {
			t.Fatal(err)
		}
		if len(a.Choices) > 0 {
			text += a.Choices[0].Text
		}
	}
	if text != fakecloud.Answer(model, "one", 9) || len(es) != 11 || a.Usage["completion_tokens"] != 9.0 {
		t.Errorf("stream of %d events: %q, usage %v", len(es), text, a.Usage)
	}
}

func TestMessages(t *testing.T) {
	h := start(t, fakecloud.HostConfig{})
	const body = `{"model":"llama","max_tokens":12,"system":"sys","messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}]`
	want := fakecloud.Answer(model, "sys\nhi", 12)
	var a struct {
		Type, Role string
		Content    []struct{ Type, Text string }
		StopReason string `json:"stop_reason"`
		Usage      struct {
			In  int `json:"input_tokens"`
			Out int `json:"output_tokens"`
		}
	}
	ask(t, h, "/v1/messages", body+"}", &a)
	if a.Type != "message" || a.Role != "assistant" || a.Content[0].Text != want || a.StopReason != "max_tokens" || a.Usage.Out != 12 || a.Usage.In == 0 {
		t.Errorf("answer %+v, want %q", a, want)
	}
	_, b, _ := do(t, h, http.MethodPost, "/v1/messages", body+`,"stream":true}`)
	var names []string
	var text string
	for _, e := range events(t, b) {
		var d struct {
			Type  string
			Delta struct{ Text string }
		}
		if err := json.Unmarshal([]byte(e.data), &d); err != nil || d.Type != e.name {
			t.Fatalf("event %+v: %v", e, err)
		}
		names = append(names, e.name)
		text += d.Delta.Text
	}
	names = slices.Compact(names)
	if text != want || !slices.Equal(names, []string{"message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "message_stop"}) {
		t.Errorf("events %v, text %q", names, text)
	}
	if status, b, _ := do(t, h, http.MethodPost, "/v1/messages", `{"model":"none","max_tokens":1,"messages":[]}`); status != 404 || !bytes.Contains(b, []byte(`"type":"not_found_error"`)) {
		t.Errorf("unknown model: %d %s", status, b)
	}
}

func TestResponsesStream(t *testing.T) {
	h := start(t, fakecloud.HostConfig{})
	_, b, _ := do(t, h, http.MethodPost, "/v1/responses", `{"input":[{"role":"user","content":[{"type":"input_text","text":"hi"}]}],"max_output_tokens":6,"stream":true}`)
	var names []string
	var text string
	for i, e := range events(t, b) {
		var d struct {
			Type     string
			Sequence int `json:"sequence_number"`
			Delta    string
		}
		if err := json.Unmarshal([]byte(e.data), &d); err != nil || d.Type != e.name || d.Sequence != i {
			t.Fatalf("event %d %+v: %v", i, e, err)
		}
		names, text = append(names, e.name), text+d.Delta
	}
	want := []string{
		"response.created", "response.in_progress", "response.output_item.added", "response.content_part.added", "response.output_text.delta",
		"response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed",
	}
	if got := slices.Compact(names); !slices.Equal(got, want) || text != fakecloud.Answer(model, "hi", 6) {
		t.Errorf("events %v, text %q", got, text)
	}
}

func TestMetrics(t *testing.T) {
	h := start(t, fakecloud.HostConfig{})
	old := start(t, fakecloud.HostConfig{Legacy: true})
	long := strings.Repeat("the same beginning ", 40)
	for _, more := range []string{`,"max_tokens":5`, `,"max_tokens":6`} {
		do(t, h, http.MethodPost, "/v1/chat/completions", chatBody(long, more))
	}
	_, b, _ := do(t, h, http.MethodGet, "/metrics", "")
	labels := `{engine="0",model_name="llama"} `
	for _, line := range []string{
		"vllm:num_requests_running" + labels + "0", "vllm:num_requests_waiting" + labels + "0", "vllm:kv_cache_usage_perc" + labels + "0",
		"vllm:generation_tokens_total" + labels + "11", fmt.Sprint("vllm:prompt_tokens_total", labels, 2*fakecloud.CountTokens(long)),
		fmt.Sprint("vllm:prefix_cache_hits_total", labels, len(long)/64*16), `vllm:request_success_total{engine="0",model_name="llama",finished_reason="length"} 2`,
		`vllm:time_to_first_token_seconds_bucket{engine="0",model_name="llama",le="+Inf"} 2`,
	} {
		if !strings.Contains(string(b), line+"\n") {
			t.Errorf("no line %q in\n%s", line, b)
		}
	}
	if _, b, _ := do(t, old, http.MethodGet, "/metrics", ""); !bytes.Contains(b, []byte("vllm:gpu_cache_usage_perc{")) || bytes.Contains(b, []byte("vllm:kv_cache_usage_perc")) {
		t.Errorf("old version:\n%s", b)
	}
}

func TestRequestsAreKept(t *testing.T) {
	h := start(t, fakecloud.HostConfig{Keep: 2})
	for i := range 3 {
		do(t, h, http.MethodPost, "/v1/chat/completions?i="+fmt.Sprint(i), chatBody("x", ""), "Authorization", "Bearer k")
	}
	rs := h.Requests()
	if len(rs) != 2 || rs[0].Query != "i=1" || rs[1].Query != "i=2" || rs[1].Header.Get("Authorization") != "Bearer k" || string(rs[1].Body) != chatBody("x", "") {
		t.Errorf("kept %+v", rs)
	}
}
