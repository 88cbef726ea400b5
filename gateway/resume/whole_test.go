package resume_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"headrace/gateway/openai"
	"headrace/gateway/resume"
	"headrace/providers/fakecloud"
)

// gathered is a story of all of a stream.
func gathered(t testing.TB, chat bool, stream string) *resume.Story {
	t.Helper()
	s := new(resume.Story)
	s.Begin(chat, true, 1<<20)
	t.Cleanup(s.Release)
	see(t, s, stream)
	return s
}

func object(t testing.TB, b []byte) (v map[string]any) {
	t.Helper()
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	return v
}

// post sends body to h and returns the answer's.
func post(t *testing.T, h *fakecloud.Host, path, body string) []byte {
	t.Helper()
	resp, err := http.Post(h.URL()+"/v1"+path, "application/json", strings.NewReader(body)) //nolint:noctx // go test has the deadline
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("status %d, %v: %s", resp.StatusCode, err, b)
	}
	return b
}

// withoutNulls leaves out what is null, which older hosts do not write.
func withoutNulls(v map[string]any) map[string]any {
	maps.DeleteFunc(v, func(_ string, v any) bool { return v == nil })
	for _, v := range v {
		switch v := v.(type) {
		case map[string]any:
			withoutNulls(v)
		case []any:
			for _, v := range v {
				if v, ok := v.(map[string]any); ok {
					withoutNulls(v)
				}
			}
		}
	}
	return v
}

// A host's stream, put together, is what the host answers without stream.
func TestWholeIsWhatTheHostAnswers(t *testing.T) {
	for name, tc := range map[string]struct{ path, body string }{
		"chat":             {"/chat/completions", `{"model":"plain","messages":[{"role":"user","content":"hi"}]}`},
		"cut short":        {"/chat/completions", `{"model":"plain","messages":[{"role":"user","content":"say much"}],"max_tokens":30}`},
		"stopped":          {"/chat/completions", `{"model":"plain","messages":[{"role":"user","content":"on"}],"stop":[" w"," r"," d"]}`},
		"reasoning":        {"/chat/completions", `{"model":"reasoner","messages":[{"role":"user","content":"why"}]}`},
		"reasoning only":   {"/chat/completions", `{"model":"reasoner","messages":[{"role":"user","content":"why"}],"max_tokens":4}`},
		"completion":       {"/completions", `{"model":"plain","prompt":"once","max_tokens":60}`},
		"a short one":      {"/completions", `{"model":"plain","prompt":"upon a time"}`},
		"one that stopped": {"/completions", `{"model":"plain","prompt":"there","stop":" t","max_tokens":200}`},
	} {
		for _, legacy := range []bool{false, true} {
			t.Run(name+map[bool]string{true: ", old vLLM"}[legacy], func(t *testing.T) {
				h, err := fakecloud.StartHost(t.Context(), fakecloud.HostConfig{Models: []string{"plain", "reasoner"}, Legacy: legacy})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(h.Stop)
				post(t, h, tc.path, tc.body) // so that both find the same in the prefix cache
				want := object(t, post(t, h, tc.path, tc.body))
				var q openai.Request
				if err := q.Scan([]byte(tc.body)); err != nil {
					t.Fatal(err)
				}
				parts, _ := q.Parts(nil, []byte(tc.body), nil, true, true)
				stream := post(t, h, tc.path, string(bytes.Join(parts, nil)))
				b, r := gathered(t, tc.path != "/completions", string(stream)).Whole(nil)
				if r != resume.None {
					t.Fatal(r)
				}
				got := object(t, b)
				for _, name := range []string{"id", "created"} {
					if got[name] == nil || reflect.TypeOf(got[name]) != reflect.TypeOf(want[name]) {
						t.Errorf("%s is %v", name, got[name])
					}
					delete(got, name)
					delete(want, name)
				}
				if tc.path == "/completions" { // newer versions have more that is null
					withoutNulls(got)
					withoutNulls(want)
				}
				if !reflect.DeepEqual(got, want) {
					t.Errorf("\n got %v\nwant %v", got, want)
				}
			})
		}
	}
}

func TestWholeKeepsWhatItDoesNotKnow(t *testing.T) {
	stream := `data: {"id":"a","object":"chat.completion.chunk","created":1,"model":"m","system_fingerprint":"fp","service_tier":"default","x":1,"prompt_token_ids":null,` +
		`"choices":[{"index":0,"delta":{"role":"bot","content":"","y":[1]},"logprobs":null,"finish_reason":null}]}

data: {"id":"b","x":{"a":2},"choices":[{"index":0,"delta":{"content":"h\u00e9","reasoning":"so","reasoning_content":"so","refusal":"n"},"token_ids":null}]}

data: {"id":"b","choices":[{"index":0,"delta":{"content":"y","reasoning":" on","refusal":"o"},"finish_reason":"stop","stop_reason":7,"matched_stop":"e"}]}

data: {"id":"b","choices":[],"usage":{"prompt_tokens":1,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens":2,"z":null},"metrics":{"t":0.5}}

data: [DONE]

`
	const want = `{"id":"a","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"bot","content":"h\u00e9y","refusal":"no",` +
		`"annotations":null,"audio":null,"function_call":null,"reasoning_content":"so","reasoning":"so on","y":[1]},"logprobs":null,"finish_reason":"stop",` +
		`"stop_reason":7,"token_ids":null,"matched_stop":"e"}],"service_tier":"default","system_fingerprint":"fp","usage":{"prompt_tokens":1,` +
		`"prompt_tokens_details":{"cached_tokens":0},"completion_tokens":2,"z":null},"kv_transfer_params":null,"prompt_logprobs":null,"prompt_token_ids":null,` +
		`"x":{"a":2},"metrics":{"t":0.5}}`
	s := gathered(t, true, stream)
	for range 2 {
		if got, r := s.Whole([]byte("kept")); string(got) != "kept"+want || r != resume.None {
			t.Errorf("%q\n got %s\nwant kept%s", r, got, want)
		}
	}
}

func TestWholeOfARefusal(t *testing.T) {
	h := host{id: "a", chat: true}
	b, r := gathered(t, true, h.event(`{"index":0,"delta":{"role":"assistant","content":""}}`)+h.event(`{"index":0,"delta":{"refusal":"no"},"finish_reason":"stop"}`)).Whole(nil)
	m := object(t, b)["choices"].([]any)[0].(map[string]any)["message"].(map[string]any)
	if content, there := m["content"]; r != resume.None || content != nil || !there || m["refusal"] != "no" {
		t.Errorf("%q %s", r, b)
	}
}

func TestWholeOfTwoHosts(t *testing.T) {
	s := gathered(t, true, host{id: "first", chat: true}.stream([]string{"a", "b "}, ""))
	if _, r := s.Ask(nil, []byte(chatBody), nil, 2, true); r != resume.None {
		t.Fatal(r)
	}
	s.Seam()
	if got, r := goOn(t, s, host{id: "second", chat: true, prompt: 9, fp: "fp"}.stream([]string{" ", "c", "d"}, "stop"), true); got != "" || r != resume.None {
		t.Fatalf("%q %s", r, got)
	}
	b, r := s.Whole(nil)
	got := object(t, b)
	choice := got["choices"].([]any)[0].(map[string]any)
	usage := got["usage"].(map[string]any)
	if r != resume.None || got["id"] != "first" || got["model"] != "served-by-first" || choice["message"].(map[string]any)["content"] != "ab cd" ||
		choice["finish_reason"] != "stop" || usage["prompt_tokens"] != 7. || usage["completion_tokens"] != 5. || usage["total_tokens"] != 12. {
		t.Errorf("%q %s", r, b)
	}
}

func TestWholeOfAnEnd(t *testing.T) {
	s := gathered(t, true, host{id: "first", chat: true}.stream([]string{"a", "b"}, ""))
	if got := s.End(nil, true, openai.Usage{Prompt: 3, Completion: 2, Cached: -1, Reasoning: -1}); len(got) > 0 {
		t.Errorf("%s", got)
	}
	b, r := s.Whole(nil)
	got := object(t, b)
	if r != resume.None || got["choices"].([]any)[0].(map[string]any)["finish_reason"] != "length" || got["usage"].(map[string]any)["total_tokens"] != 5. {
		t.Errorf("%q %s", r, b)
	}
}

// manyMembers are events each of which has a member that no other one has.
func manyMembers() (s string) {
	for i := range 100 {
		s += fmt.Sprintf("data: {\"x%d\":1,\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n", i)
	}
	return s
}

func TestWholeRefuses(t *testing.T) {
	chat := host{id: "a", chat: true}
	for name, tc := range map[string]struct {
		stream string
		want   resume.Reason
	}{
		"nothing":              {": ping\n\n", resume.Unreadable},
		"a tool call":          {chat.event(`{"index":0,"delta":{"tool_calls":[{"index":0,"id":"a"}]}}`), resume.ToolCall},
		"a function call":      {chat.event(`{"index":0,"delta":{"function_call":{"name":"f"}}}`), resume.ToolCall},
		"no tool call":         {chat.event(`{"index":0,"delta":{"content":"x","tool_calls":[],"audio":null}}`), resume.None},
		"audio":                {chat.event(`{"index":0,"delta":{"audio":{"data":"AA=="}}}`), resume.Audio},
		"content in parts":     {chat.event(`{"index":0,"delta":{"content":[{"text":"x"}]}}`), resume.Unreadable},
		"logprobs":             {chat.event(`{"index":0,"delta":{"content":"x"},"logprobs":{"content":[]}}`), resume.Logprobs},
		"another choice":       {chat.event(`{"index":1,"delta":{"content":"x"}}`), resume.Choices},
		"a broken event":       {chat.stream([]string{"x"}, "") + "data: {\n\n", resume.Unreadable},
		"no end of members":    {chat.stream([]string{"x"}, "") + manyMembers(), resume.Unreadable},
		"no end of text":       {strings.Repeat(chat.event(`{"index":0,"delta":{"content":"`+strings.Repeat("x", 1<<20)+`"}}`), 17), resume.TooLong},
		"no end of thoughts":   {strings.Repeat(chat.event(`{"index":0,"delta":{"reasoning":"`+strings.Repeat("x", 1<<20)+`"}}`), 17), resume.TooLong},
		"no end of refusal":    {strings.Repeat(chat.event(`{"index":0,"delta":{"refusal":"`+strings.Repeat("x", 1<<20)+`"}}`), 17), resume.TooLong},
		"too much to continue": {chat.stream([]string{strings.Repeat("x", 1<<20), strings.Repeat("x", 1<<20)}, "stop"), resume.None},
	} {
		t.Run(name, func(t *testing.T) {
			if got, r := gathered(t, true, tc.stream).Whole([]byte("kept")); r != tc.want || (r != resume.None) != (string(got) == "kept") {
				t.Errorf("%q with %.200s, want %q", r, got, tc.want)
			}
		})
	}
}

// TestWholeIsBounded by what the story was told.
func TestWholeIsBounded(t *testing.T) {
	stream := host{id: "a", chat: true}.stream([]string{strings.Repeat("x", 60), strings.Repeat("y", 40)}, "stop")
	for most, want := range map[int]resume.Reason{100: resume.None, 99: resume.TooLong} {
		var s resume.Story
		s.Begin(true, true, 1<<20)
		s.Bound(most)
		see(t, &s, stream)
		if _, r := s.Whole(nil); r != want || s.Overlong() != (want == resume.TooLong) {
			t.Errorf("100 bytes of at most %d: %q, overlong %t", most, r, s.Overlong())
		}
		s.Release()
	}
}
