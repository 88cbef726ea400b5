package resume_test

import (
	"strings"
	"testing"

	"headrace/gateway/openai"
	"headrace/gateway/resume"
)

const chatBody = `{"messages":[{"role":"user","content":"hi"}],"max_tokens":512}`

// broken is a story at the seam: the caller has the raw text, in delivered tokens.
func broken(t testing.TB, chat bool, text string, delivered int64) *resume.Story {
	t.Helper()
	s := told(t, chat, text)
	body := chatBody
	if !chat {
		body = `{"prompt":"hi"}`
	}
	if _, r := s.Ask(nil, []byte(body), nil, delivered, true); r != resume.None {
		t.Fatal(r)
	}
	s.Seam()
	return s
}

func TestContinue(t *testing.T) {
	// What all events begin with: of the second host, and as the caller is to see it.
	const second = `data: {"id":"second","object":"chat.completion.chunk","created":99,"model":"its-own",`
	const first = `data: {"id":"first","object":"chat.completion.chunk","created":5,"model":"served-by-first",`
	for name, tc := range map[string]struct {
		text, in  string
		want      string
		wantUsage bool
		reason    resume.Reason
	}{
		"text": {
			in:   second + `"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null,"token_ids":null}]}` + "\n\n",
			want: first + `"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null,"token_ids":null}]}` + "\n\n",
		},
		"the role alone": {in: second + `"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}` + "\n\n"},
		"the role in front": {
			in:   second + `"choices":[{"index":0,"delta":{ "role":"assistant", "content":"x","a":1},"finish_reason":null}]}` + "\n\n",
			want: first + `"choices":[{"index":0,"delta":{ "content":"x","a":1},"finish_reason":null}]}` + "\n\n",
		},
		"the role behind": {
			in:   second + `"choices":[{"delta":{"content":"x" , "role":"assistant"}} ]}` + "\n\n",
			want: first + `"choices":[{"delta":{"content":"x"}} ]}` + "\n\n",
		},
		"the role in the middle": {
			in:   second + `"choices":[ {"delta":{"content":"x","role":"assistant","a":1}}]}` + "\n\n",
			want: first + `"choices":[ {"delta":{"content":"x","a":1}}]}` + "\n\n",
		},
		"a role that is null, as SGLang has it": {
			in:   second + `"choices":[{"index":0,"delta":{"role":null,"content":"x","tool_calls":null}}]}` + "\n\n",
			want: first + `"choices":[{"index":0,"delta":{"content":"x","tool_calls":null}}]}` + "\n\n",
		},
		"the role in each": {
			in: strings.Repeat(second+`"choices":[{"index":0,"delta":{"role":"assistant","content":"x"}}]}`+"\n\n", 3),
			want: first + `"choices":[{"index":0,"delta":{"content":"x"}}]}` + "\n\n" + first + `"choices":[{"index":0,"delta":{"content":"x"}}]}` + "\n\n" +
				first + `"choices":[{"index":0,"delta":{"content":"x"}}]}` + "\n\n",
		},
		"only the role, and an end": {
			in:   second + `"choices":[{"index":0,"delta":{"role":"assistant"},"finish_reason":"stop"}]}` + "\n\n",
			want: first + `"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\n",
		},
		"an end without text": {
			in:   second + `"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}` + "\n\ndata: [DONE]\n\n",
			want: first + `"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}` + "\n\ndata: [DONE]\n\n",
		},
		"a fingerprint the first did not have": {
			in:   second + `"choices":[{"index":0,"delta":{"content":"x"}}],"system_fingerprint":"fp_2"}` + "\n\n",
			want: first + `"choices":[{"index":0,"delta":{"content":"x"}}],"system_fingerprint":null}` + "\n\n",
		},
		"comments, names of events and line ends": {
			in:   ": ping\r\n\r\nevent: chunk\r\nid: 7\r\n" + second + `"choices":[{"delta":{"content":"x"}}]}` + "\r\n\r\n: idle\n\ndata\n\n",
			want: "event: chunk\n" + first + `"choices":[{"delta":{"content":"x"}}]}` + "\n\n",
		},
		"a name from the second one on": {
			in:   sayings(second, `"x"`) + "event: chunk\n" + sayings(second, `"y"`),
			want: sayings(first, `"x"`) + "event: chunk\n" + sayings(first, `"y"`),
		},
		"data in several lines": {
			in:   "data: {\"id\":\"second\",\ndata: \"choices\":\ndata:[\ndata: {\"delta\":{\"content\":\ndata: \" \\nx\"}}]}\n\n",
			text: `a \n`,
			want: "data: {\"id\":\"first\",\ndata: \"choices\":\ndata: [\ndata: {\"delta\":{\"content\":\ndata: \"x\"}}]}\n\n",
		},
		"white space again, in several events": {
			text: `a \n\n\t`,
			in:   sayings(second, `" "`, `""`, `"\n"`, `"\u000A\tb"`, `" c"`),
			want: sayings(first, `"b"`, `" c"`),
		},
		"some of it again":   {text: `a \n`, in: sayings(second, `" b"`, `"\nc"`), want: sayings(first, `"b"`, `"\nc"`)},
		"other white space":  {text: `a `, in: sayings(second, `"\n"`, `" b"`), want: sayings(first, `"\n"`, `" b"`)},
		"more white space":   {text: `a `, in: sayings(second, `"   b"`), want: sayings(first, `"  b"`)},
		"none of it":         {text: `a `, in: sayings(second, `"b"`, `" c"`), want: sayings(first, `"b"`, `" c"`)},
		"no white space had": {text: `a`, in: sayings(second, `" b"`), want: sayings(first, `" b"`)},
		"only white space had": {
			text: `\n`,
			in:   sayings(second, `"\n"`, `"\nb"`),
			want: sayings(first, `"\nb"`),
		},
		"white space dropped at an end": {
			text: `a\n`,
			in:   second + `"choices":[{"index":0,"delta":{"content":"\n"},"finish_reason":"stop"}]}` + "\n\n",
			want: first + `"choices":[{"index":0,"delta":{"content":""},"finish_reason":"stop"}]}` + "\n\n",
		},
		"usage that nobody asked for": {in: second + `"choices":[],"usage":{"prompt_tokens":1}}` + "\n\n"},
		"at an end": {
			in:   second + `"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":207,"completion_tokens":1}}` + "\n\n",
			want: first + `"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}` + "\n\n",
		},
		"usage": {
			wantUsage: true,
			in:        second + `"choices":[],"usage":{"prompt_tokens":207,"total_tokens":307,"completion_tokens":100,"prompt_tokens_details":{"cached_tokens":192},"x":{"prompt_tokens":1}}}` + "\n\n",
			want:      first + `"choices":[],"usage":{"prompt_tokens":7,"total_tokens":307,"completion_tokens":300,"prompt_tokens_details":{"cached_tokens":7},"x":{"prompt_tokens":1}}}` + "\n\n",
		},
		"usage with every event": {
			wantUsage: true,
			in:        second + `"choices":[{"delta":{"content":"x"}}],"usage":{"completion_tokens":1,"prompt_tokens_details":null}}` + "\n\n",
			want:      first + `"choices":[{"delta":{"content":"x"}}],"usage":{"completion_tokens":201,"prompt_tokens_details":null}}` + "\n\n",
		},
		"null usage":         {wantUsage: true, in: second + `"usage":null,"choices":[{"delta":{"content":"x"}}]}` + "\n\n", want: first + `"usage":null,"choices":[{"delta":{"content":"x"}}]}` + "\n\n"},
		"reasoning":          {in: second + `"choices":[{"delta":{"reasoning_content":"hm"}}]}` + "\n\n", reason: resume.Reasoning},
		"a tool call":        {in: second + `"choices":[{"delta":{"tool_calls":[{"id":"x"}]}}]}` + "\n\n", reason: resume.ToolCall},
		"a refusal":          {in: second + `"choices":[{"delta":{"refusal":"no"}}]}` + "\n\n", reason: resume.Unreadable},
		"another choice":     {in: second + `"choices":[{"index":1,"delta":{"content":"x"}}]}` + "\n\n", reason: resume.Choices},
		"an event cut off":   {in: second + "\n\n", reason: resume.Unreadable},
		"an error":           {in: `data: {"error":{"message":"no","code":500}}` + "\n\nevent: error\ndata: oops\n\n"},
		"it gives up":        {in: second + `"choices":[{"index":0,"delta":{},"finish_reason":"abort"}]}` + "\n\n"},
		"the end mark twice": {in: "data: [DONE]\n\ndata: [DONE]\n\n", want: "data: [DONE]\n\n"},
	} {
		t.Run(name, func(t *testing.T) {
			text := tc.text
			if text == "" {
				text = "a"
			}
			s := broken(t, true, text, 200)
			got, r := goOn(t, s, tc.in, tc.wantUsage)
			if got != tc.want || r != tc.reason {
				t.Errorf("%q\n got %s\nwant %s", r, got, tc.want)
			}
			if tc.reason == resume.None {
				return
			}
			if _, r := s.Ask(nil, []byte(chatBody), nil, 200, true); r != resume.None { // of a host that does better
				t.Errorf("nobody else may be asked: %q", r)
			}
		})
	}
}

// sayings are events that say the texts.
func sayings(head string, texts ...string) (s string) {
	for _, text := range texts {
		s += head + `"choices":[{"index":0,"delta":{"content":` + text + "}}]}\n\n"
	}
	return s
}

// An answer of which nothing was said yet may be of any kind.
func TestContinueFromTheBeginning(t *testing.T) {
	for name, in := range map[string]string{
		"reasoning": `"choices":[{"index":0,"delta":{"reasoning_content":"hm"}}]}`,
		"a refusal": `"choices":[{"index":0,"delta":{"refusal":"no"}}]}`,
		"usage":     `"choices":[],"usage":{"prompt_tokens":7,"total_tokens":17,"completion_tokens":10}}`,
	} {
		t.Run(name, func(t *testing.T) {
			s := told(t, true)
			if _, r := s.Ask(nil, []byte(chatBody), nil, 0, true); r != resume.None {
				t.Fatal(r)
			}
			s.Seam()
			got, r := goOn(t, s, `data: {"id":"second",`+in+"\n\n", true)
			if want := `data: {"id":"first",` + in + "\n\n"; got != want || r != resume.None {
				t.Errorf("%q\n got %s\nwant %s", r, got, want)
			}
		})
	}
	t.Run("the role in each", func(t *testing.T) {
		var s resume.Story
		s.Begin(true, false, 100)
		defer s.Release()
		s.Ask(nil, []byte(chatBody), nil, 0, true)
		s.Seam()
		const event = `data: {"choices":[{"delta":{"role":"assistant","content":"x"}}]}` + "\n\n"
		got, r := goOn(t, &s, event+event+event, true)
		if want := strings.ReplaceAll(event+sayings("data: {", `"x"`, `"x"`), `"index":0,`, ""); got != want || r != resume.None {
			t.Errorf("%q\n got %s\nwant %s", r, got, want)
		}
	})
	t.Run("no role from the first host", func(t *testing.T) {
		var s resume.Story
		s.Begin(true, false, 100)
		defer s.Release()
		see(t, &s, sayings("data: {", `"a"`))
		s.Ask(nil, []byte(chatBody), nil, 1, true)
		s.Seam()
		got, r := goOn(t, &s, `data: {"choices":[{"delta":{"role":"assistant","content":"x"}}]}`+"\n\n", true)
		if want := `data: {"choices":[{"delta":{"content":"x"}}]}` + "\n\n"; got != want || r != resume.None {
			t.Errorf("%q\n got %s\nwant %s", r, got, want)
		}
	})
	t.Run("a null for a role from the first host", func(t *testing.T) {
		var s resume.Story
		s.Begin(true, false, 100)
		defer s.Release()
		see(t, &s, `data: {"choices":[{"delta":{"role":null,"content":""}}]}`+"\n\n")
		s.Ask(nil, []byte(chatBody), nil, 0, true)
		s.Seam()
		const in = `data: {"choices":[{"delta":{"role":"assistant","content":"x"}}]}` + "\n\n"
		if got, r := goOn(t, &s, in, true); got != in || r != resume.None {
			t.Errorf("%q\n got %s\nwant %s", r, got, in)
		}
	})
	t.Run("before its first event", func(t *testing.T) {
		var s resume.Story
		s.Begin(true, false, 100)
		defer s.Release()
		if _, r := s.Ask(nil, []byte(chatBody), nil, 0, true); r != resume.None {
			t.Fatal(r)
		}
		s.Seam()
		in := host{id: "second", chat: true, fp: "fp"}.stream([]string{"a", "b"}, "stop")
		if got, r := goOn(t, &s, in, true); got != in || r != resume.None {
			t.Errorf("%q\n got %s\nwant %s", r, got, in)
		}
	})
}

// Two seams, usage known of the first attempt: TV11 of the routing facts and one more.
func TestContinueTwice(t *testing.T) {
	var s resume.Story
	s.Begin(true, false, 1<<10)
	defer s.Release()
	running := host{id: "first", chat: true}.event(`{"index":0,"delta":{"content":"x"}}`)
	see(t, &s, strings.Replace(running, `"choices"`, `"usage":{"prompt_tokens":40,"completion_tokens":1},"choices"`, 1))
	ask, r := s.Ask(nil, []byte(chatBody), nil, 200, false)
	if r != resume.None || !strings.Contains(string(ask), `"max_tokens":312`) {
		t.Fatalf("%q %s", r, ask)
	}
	s.Seam()
	if _, r := goOn(t, &s, host{id: "second", chat: true, prompt: 241}.stream([]string{"y"}, ""), true); r != resume.None {
		t.Fatal(r)
	}
	if u := s.Usage(openai.Usage{Prompt: 241, Completion: 30, Cached: 64, Reasoning: -1}); u != (openai.Usage{Prompt: 40, Completion: 230, Cached: 40, Reasoning: -1}) {
		t.Errorf("at the second attempt %+v", u)
	}
	ask, r = s.Ask(nil, []byte(chatBody), nil, 230, false)
	if r != resume.None || !strings.Contains(string(ask), `"max_tokens":282`) || sent(t, ask, true) != "xy" {
		t.Fatalf("%q %s", r, ask)
	}
	s.Seam()
	got, r := goOn(t, &s, host{id: "third", chat: true, prompt: 270}.stream([]string{"z"}, "length"), true)
	if sp := listen(t, got); r != resume.None || sp.raw != "z" || sp.usage["prompt_tokens"] != 40. || sp.usage["completion_tokens"] != 231. ||
		sp.usage["total_tokens"] != 271. || !sp.ids["first"] || len(sp.ids) != 1 {
		t.Errorf("%q %s", r, got)
	}
	if !s.Finished() || s.Reason() != resume.Finished {
		t.Errorf("finished %v, %q", s.Finished(), s.Reason())
	}
	if got := s.End(nil, true, openai.NoUsage()); len(got) > 0 {
		t.Errorf("behind an answer that has ended: %s", got)
	}
}

func TestEnd(t *testing.T) {
	const share = `data: {"id":"first","object":"chat.completion.chunk","created":5,"model":"served-by-first",`
	known := openai.Usage{Prompt: 7, Completion: 12, Cached: -1, Reasoning: -1}
	for name, tc := range map[string]struct {
		seen      string
		wantUsage bool
		usage     openai.Usage
		want      string
	}{
		"nothing left to ask for": {
			host{id: "first", chat: true}.stream([]string{"x"}, ""), true, known,
			share + `"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length","stop_reason":null}]}` + "\n\n" +
				share + `"choices":[],"usage":{"prompt_tokens":7,"total_tokens":19,"completion_tokens":12}}` + "\n\ndata: [DONE]\n\n",
		},
		"nobody wants usage": {
			host{id: "first", chat: true}.stream([]string{"x"}, ""), false, known,
			share + `"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length","stop_reason":null}]}` + "\n\ndata: [DONE]\n\n",
		},
		"nobody knows usage": {
			host{id: "first", chat: true}.stream([]string{"x"}, ""), true,
			openai.Usage{Prompt: -1, Completion: 12, Cached: -1, Reasoning: -1},
			share + `"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length","stop_reason":null}]}` + "\n\ndata: [DONE]\n\n",
		},
		"finished": {
			host{id: "first", chat: true}.event(`{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}`), true, known,
			share + `"choices":[],"usage":{"prompt_tokens":7,"total_tokens":19,"completion_tokens":12}}` + "\n\ndata: [DONE]\n\n",
		},
		"usage with every event": {
			strings.Replace(host{id: "first", chat: true}.event(`{"index":0,"delta":{"content":"x"}}`), `"choices"`, `"usage":{"prompt_tokens":5,"completion_tokens":1},"choices"`, 1),
			true,
			openai.Usage{Prompt: -1, Completion: 12, Cached: -1, Reasoning: -1},
			share + `"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length","stop_reason":null}]}` + "\n\n" +
				share + `"choices":[],"usage":{"prompt_tokens":5,"total_tokens":17,"completion_tokens":12}}` + "\n\ndata: [DONE]\n\n",
		},
		"without its end mark": {strings.TrimSuffix(host{id: "first", chat: true}.stream([]string{"x"}, "stop"), "data: [DONE]\n\n"), true, known, "data: [DONE]\n\n"},
		"whole":                {host{id: "first", chat: true}.stream([]string{"x"}, "stop"), true, known, ""},
		"nothing seen":         {"", false, known, `data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length","stop_reason":null}]}` + "\n\ndata: [DONE]\n\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var s resume.Story
			s.Begin(true, false, 1<<10)
			defer s.Release()
			see(t, &s, tc.seen)
			if got := s.End(nil, tc.wantUsage, tc.usage); string(got) != tc.want {
				t.Errorf("\n got %s\nwant %s", got, tc.want)
			}
			if got := s.End(nil, tc.wantUsage, tc.usage); len(got) > 0 {
				t.Errorf("and again %s", got)
			}
		})
	}
	t.Run("a completion", func(t *testing.T) {
		const share = `data: {"id":"first","object":"text_completion","created":5,"model":"served-by-first","system_fingerprint":"fp",`
		var s resume.Story
		s.Begin(false, false, 1<<10)
		defer s.Release()
		see(t, &s, host{id: "first", fp: "fp"}.stream([]string{"x"}, ""))
		want := share + `"choices":[{"index":0,"text":"","logprobs":null,"finish_reason":"length","stop_reason":null}]}` + "\n\ndata: [DONE]\n\n"
		if got := s.End(nil, false, known); string(got) != want {
			t.Errorf("\n got %s\nwant %s", got, want)
		}
	})
}
