package resume_test

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"headrace/gateway/openai"
	"headrace/gateway/resume"
)

// told is a story in which the caller has got the raw text.
func told(t testing.TB, chat bool, raw ...string) *resume.Story {
	t.Helper()
	s := new(resume.Story)
	s.Begin(chat, false, 1<<20)
	t.Cleanup(s.Release)
	see(t, s, host{id: "first", chat: chat, prompt: 7}.stream(raw, ""))
	return s
}

func TestAsk(t *testing.T) {
	const tail = `,"continue_final_message":true,"add_generation_prompt":false}`
	for _, tc := range []struct {
		name, body, model, text string
		delivered               int64
		trims                   bool
		want                    string
	}{
		{
			"a chat", `{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"hi"}],"max_tokens":512}`,
			`"served"`, ` two\n\"w\u00f6rds`, 200, false,
			`{"model":"served","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":" two\n\"w\u00f6rds"}],"max_tokens":312` + tail,
		},
		{
			"nothing is there yet", `{"messages":[{"role":"user","content":"hi"} ] }`, `"served"`, "x", 1, false,
			`{"messages":[{"role":"user","content":"hi"} ,{"role":"assistant","content":"x"}] ,"model":"served","stream":true,"stream_options":{"include_usage":true}` + tail,
		},
		{
			"all is there already",
			`{"add_generation_prompt":null,"continue_final_message":false,"stream":false,"stream_options":{"x":[1],"include_usage":null},"messages":[1],"n":1}`, ``, "x", 1, false,
			`{"add_generation_prompt":false,"continue_final_message":true,"stream":true,"stream_options":{"x":[1],"include_usage":true},"messages":[1,{"role":"assistant","content":"x"}],"n":1}`,
		},
		{
			"stream options without usage, escaped names", `{"str\u0065am":null,"stream_options":{"x":1},"m\u0065ssages":[1],"model":"m"}`, `"s"`, "x", 1, false,
			`{"str\u0065am":true,"stream_options":{"x":1,"include_usage":true},"m\u0065ssages":[1,{"role":"assistant","content":"x"}],"model":"s"` + tail,
		},
		{
			"empty stream options", `{"stream":true,"stream_options":{ },"messages":[1]}`, ``, "x", 1, false,
			`{"stream":true,"stream_options":{ "include_usage":true},"messages":[1,{"role":"assistant","content":"x"}]` + tail,
		},
		{
			"two limits and a least", `{"stream":true,"stream_options":null,"max_tokens":10,"max_completion_tokens":30.0,"min_tokens":12,"messages":[1]}`, ``, "x", 15, false,
			`{"stream":true,"stream_options":{"include_usage":true},"max_tokens":1,"max_completion_tokens":15,"min_tokens":0,"messages":[1,{"role":"assistant","content":"x"}]` + tail,
		},
		{
			"no limits", `{"stream":true,"stream_options":null,"max_tokens":-1,"max_completion_tokens":null,"min_tokens":0,"messages":[1]}`, ``, "x", 15, false,
			`{"stream":true,"stream_options":{"include_usage":true},"max_tokens":-1,"max_completion_tokens":null,"min_tokens":0,"messages":[1,{"role":"assistant","content":"x"}]` + tail,
		},
		{
			"a host that trims", `{"stream":true,"stream_options":null,"messages":[1]}`, ``, `x \u00a0\u001c\n`, 15, true,
			`{"stream":true,"stream_options":{"include_usage":true},"messages":[1,{"role":"assistant","content":"x"}]` + tail,
		},
		{
			"white space at both ends", `{"stream":true,"stream_options":null,"messages":[1]}`, ``, `\n x `, 15, false,
			`{"stream":true,"stream_options":{"include_usage":true},"messages":[1,{"role":"assistant","content":"\n x"}]` + tail,
		},
		{
			"white space that may begin a stop string", `{"stream":true,"stream_options":null,"stop":["\n\n"],"messages":[1]}`, ``, `x\n`, 15, false,
			`{"stream":true,"stream_options":{"include_usage":true},"stop":["\n\n"],"messages":[1,{"role":"assistant","content":"x"}]` + tail,
		},
		{
			"nothing delivered", `{"stream":true,"max_tokens":9,"messages":[1],"min_tokens":3}`, `"s"`, ``, 0, false,
			`{"stream":true,"max_tokens":9,"messages":[1],"min_tokens":3,"model":"s","stream_options":{"include_usage":true}}`,
		},
		{
			"white space delivered", `{"stream":true,"max_tokens":1,"messages":[1],"min_tokens":3}`, ``, `\n\n`, 1, false,
			`{"stream":true,"max_tokens":1,"messages":[1],"min_tokens":3,"stream_options":{"include_usage":true}}`,
		},
		{
			"control characters without escapes", `{"stream":true,"stream_options":null,"messages":[1]}`, ``, "a\tb\x01", 1, false,
			`{"stream":true,"stream_options":{"include_usage":true},"messages":[1,{"role":"assistant","content":"a\tb\u0001"}]` + tail,
		},
		{
			"a completion", `{"model":"m","prompt":"once \"upon\"","max_tokens":20}`, ``, ` a time `, 3, true,
			`{"model":"m","prompt":"once \"upon\" a time ","max_tokens":17,"stream":true,"stream_options":{"include_usage":true}}`,
		},
		{
			"a completion without a limit", `{"prompt":"once"}`, `"s"`, ` a time`, 3, true,
			`{"prompt":"once a time","model":"s","stream":true,"stream_options":{"include_usage":true},"max_tokens":13}`,
		},
		{
			"a completion whose host knows no such default", `{"prompt":"once","messages":[1]}`, ``, ` a time`, 16, true,
			`{"prompt":"once a time","messages":[1],"stream":true,"stream_options":{"include_usage":true}}`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := told(t, !strings.Contains(tc.body, `"prompt"`), tc.text)
			var model []byte
			if tc.model != "" {
				model = []byte(tc.model)
			}
			got, r := s.Ask([]byte("kept"), []byte(tc.body), model, tc.delivered, tc.trims)
			if string(got) != "kept"+tc.want || r != resume.None {
				t.Errorf("%q\n got %s\nwant kept%s", r, got, tc.want)
			}
			if again, r := s.Ask(nil, []byte(tc.body), model, tc.delivered, tc.trims); string(again) != tc.want || r != resume.None {
				t.Errorf("asked again: %q %s", r, again)
			}
		})
	}
}

func TestAskRefuses(t *testing.T) {
	chat := host{id: "a", chat: true}
	const body = `{"messages":[{"role":"user","content":"hi"}],"max_tokens":10}`
	for name, tc := range map[string]struct {
		seen, body string
		want       resume.Reason
	}{
		"all tokens delivered":    {chat.stream([]string{"x"}, ""), `{"messages":[1],"max_tokens":5}`, resume.Exhausted},
		"of the limit that holds": {chat.stream([]string{"x"}, ""), `{"messages":[1],"max_tokens":50,"max_completion_tokens":4}`, resume.Exhausted},
		"finished":                {chat.stream([]string{"x"}, "stop"), body, resume.Finished},
		"finished, then reasoned": {chat.stream([]string{"x"}, "stop") + chat.event(`{"index":0,"delta":{"reasoning":"x"}}`), body, resume.Finished},
		"reasoning":               {chat.event(`{"index":0,"delta":{"reasoning_content":"x"}}`) + chat.stream([]string{"x"}, ""), body, resume.Reasoning},
		"reasoning as text":       {chat.stream([]string{"\\u003cthi", "nk>hm"}, ""), body, resume.Reasoning},
		"and behind it":           {chat.stream([]string{"hm</think>so"}, ""), body, resume.Reasoning},
		"thinking without a mark": {chat.stream([]string{"I think> so"}, ""), body, resume.None},
		"a tool call":             {chat.stream([]string{"x"}, "") + chat.event(`{"index":0,"delta":{"tool_calls":[{"index":0,"id":"a"}]}}`), body, resume.ToolCall},
		"a refusal":               {chat.stream([]string{"x"}, "") + chat.event(`{"index":0,"delta":{"refusal":"no"}}`), body, resume.Unreadable},
		"content in parts":        {chat.stream([]string{"x"}, "") + chat.event(`{"index":0,"delta":{"content":[{"text":"x"}]}}`), body, resume.Unreadable},
		"logprobs":                {chat.event(`{"index":0,"delta":{"content":"x"},"logprobs":{"content":[]}}`), body, resume.Unreadable},
		"another choice":          {chat.stream([]string{"x"}, "") + chat.event(`{"index":1,"delta":{"content":"x"}}`), body, resume.Choices},
		"two choices":             {chat.event(`{"index":0,"delta":{"content":"x"}},{"index":0,"delta":{"content":"x"}}`), body, resume.Choices},
		"an event cut off":        {chat.stream([]string{"x"}, "") + "data: {\"choices\":[\n\n", body, resume.Unreadable},
		"no JSON":                 {chat.stream([]string{"x"}, "") + "data: x\n\n", body, resume.Unreadable},
		"half a character":        {chat.stream([]string{"x", `\ud83d`}, ""), body, resume.Unreadable},
		"half of one inside":      {chat.stream([]string{`\ud83d`, "x"}, ""), body, resume.Unreadable},
		"no UTF-8":                {chat.stream([]string{"x\xff", "x"}, ""), body, resume.Unreadable},
		"ends in a replacement":   {chat.stream([]string{"x\ufffd"}, ""), body, resume.Unreadable},
		"one with an escape":      {chat.stream([]string{`x\uFFFD`}, ""), body, resume.Unreadable},
		"one further in front":    {chat.stream([]string{`\uFFFD x`}, ""), body, resume.None},
		"too long":                {chat.stream([]string{strings.Repeat("x", 60), strings.Repeat("x", 41)}, ""), body, resume.TooLong},
		"just not too long":       {chat.stream([]string{strings.Repeat("x", 60), strings.Repeat("x", 40)}, ""), body, resume.None},
		"in a stop string":        {chat.stream([]string{"x Obs"}, ""), `{"messages":[1],"stop":"Observation:"}`, resume.Stop},
		"in one of several":       {chat.stream([]string{`x\u000aO`}, ""), `{"messages":[1],"stop":["zz","\nOb"]}`, resume.Stop},
		"at a whole stop string":  {chat.stream([]string{"x Obs"}, ""), `{"messages":[1],"stop":["Obs"]}`, resume.None},
		"no messages":             {chat.stream([]string{"x"}, ""), `{"prompt":"x"}`, resume.PromptForm},
		"empty messages":          {chat.stream([]string{"x"}, ""), `{"messages":[]}`, resume.PromptForm},
		"an error event":          {chat.stream([]string{"x"}, "") + "data: {\"error\":{\"code\":500}}\n\n", body, resume.None},
		"given up":                {chat.stream([]string{"x"}, "") + chat.event(`{"index":0,"delta":{},"finish_reason":"abort"}`), body, resume.None},
	} {
		t.Run(name, func(t *testing.T) {
			var s resume.Story
			s.Begin(true, false, 100)
			defer s.Release()
			see(t, &s, tc.seen)
			got, r := s.Ask([]byte("kept"), []byte(tc.body), nil, 5, false)
			if r != tc.want || (r != resume.None) != (string(got) == "kept") {
				t.Errorf("%q with %s, want %q", r, got, tc.want)
			}
		})
	}
	t.Run("a completion by a list", func(t *testing.T) {
		s := told(t, false, "x")
		if _, r := s.Ask(nil, []byte(`{"prompt":["x"]}`), nil, 1, false); r != resume.PromptForm {
			t.Errorf("%q", r)
		}
	})
}

// members are those of the outermost object with their values as they stand.
func members(t testing.TB, body []byte) map[string]json.RawMessage {
	t.Helper()
	var m map[string]json.RawMessage
	if err := json.Unmarshal(body, &m); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	return m
}

// Nothing but what has to change does, wherever it stands, however it is written.
func TestAskLeavesTheRest(t *testing.T) {
	const seed = 5
	rng := rand.New(rand.NewPCG(seed, seed))
	values := []string{`null`, `true`, `0.10`, `"a\/b"`, `{"stream":false, "messages":[ ]}`, `[1, 2]`, `-1e5`, `"\ud83d"`}
	for range 3000 {
		chat := rng.IntN(2) == 0
		all := []string{[]string{`"stream":true`, `"stream": false`, `"n":1`}[rng.IntN(3)], `"model": "m"`, `"temperature":0.70`, `"x":` + values[rng.IntN(len(values))], `"metadata":` + values[rng.IntN(len(values))]}
		for _, some := range []string{
			`"stream_options":{"continuous_usage_stats": true }`, `"max_tokens": 30`, `"max_completion_tokens":40`, `"min_tokens":3`,
			`"add_generation_prompt":true`, `"continue_final_message" :null`, `"stop":["never, \u006eever"]`,
		} {
			if rng.IntN(2) == 0 {
				all = append(all, some)
			}
		}
		if chat {
			all = append(all, `"messages":[{"role":"user","content":"a \/ b"}`+[]string{" ", ""}[rng.IntN(2)]+`]`)
		} else {
			all = append(all, `"prompt":"a \/ b"`)
		}
		rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		for i := range all {
			if rng.IntN(8) == 0 {
				all[i] = `"\u00` + strconv.FormatInt(int64(all[i][1]), 16) + all[i][2:]
			}
		}
		body := []byte("{ " + strings.Join(all, " , ") + " }")
		text := tokens[rng.IntN(6)] + " end"
		s := told(t, chat, text)
		got, r := s.Ask(nil, body, []byte(`"served"`), 10, false)
		if r != resume.None {
			t.Fatalf("seed %d: %s: %q", seed, body, r)
		}
		want := members(t, body)
		have := members(t, got)
		minus := func(name string, least int) {
			if v := want[name]; v != nil {
				n, _ := strconv.Atoi(string(v))
				want[name] = json.RawMessage(strconv.Itoa(max(least, n-10)))
			}
		}
		minus("max_tokens", 1)
		minus("max_completion_tokens", 1)
		minus("min_tokens", 0)
		want["model"], want["stream"] = json.RawMessage(`"served"`), json.RawMessage("true")
		if chat {
			want["continue_final_message"], want["add_generation_prompt"] = json.RawMessage("true"), json.RawMessage("false")
			m := want["messages"]
			want["messages"] = bytes.Join([][]byte{m[:len(m)-1], []byte(`,{"role":"assistant","content":"` + text + `"}]`)}, nil)
		} else {
			p := want["prompt"]
			want["prompt"] = bytes.Join([][]byte{p[:len(p)-1], []byte(text + `"`)}, nil)
			if want["max_tokens"] == nil {
				want["max_tokens"] = json.RawMessage("6")
			}
		}
		var q openai.Request
		if err := q.Scan(got); err != nil || !q.Stream || !q.IncludeUsage {
			t.Fatalf("seed %d: %s became %s: %v", seed, body, got, err)
		}
		delete(want, "stream_options")
		delete(have, "stream_options")
		if !reflect.DeepEqual(have, want) {
			t.Fatalf("seed %d: %s became\n%s\nwant %s", seed, body, got, want)
		}
	}
}
