package resume_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"headrace/gateway/openai"
	"headrace/gateway/resume"
	"headrace/gateway/sse"
)

// number passes the events of a stream through s, numbers and all, by Continue where goes is set.
func number(t testing.TB, s *resume.Story, stream string, goes bool) (string, resume.Reason) {
	t.Helper()
	var dst []byte
	for _, ev := range events(t, stream) {
		var c openai.Chunk
		c.Parse(ev.Name, ev.Data)
		s.Number(&c, ev.Data)
		if !goes {
			s.See(&c, &ev)
			continue
		}
		var r resume.Reason
		if dst, r = s.Continue(dst, &c, &ev, true); r != resume.None {
			return string(dst), r
		}
	}
	return string(dst), resume.None
}

// counted are events of a chat whose tokens have the numbers 100, 101 and so on, behind those of the prompt.
func counted(prompt string, pieces ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `data: {"id":"first","created":5,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""}}],"prompt_token_ids":%s}`+"\n\n", prompt)
	for i, p := range pieces {
		fmt.Fprintf(&b, `data: {"id":"first","created":5,"model":"m","choices":[{"index":0,"delta":{"content":%q},"finish_reason":null,"token_ids":[%d]}]}`+"\n\n", p, 100+i)
	}
	return b.String()
}

// TestAskExact asks with prompt and answer as they were told, and otherwise for what the caller has asked for.
func TestAskExact(t *testing.T) {
	const prompt = "[1, 22 ,333]"
	for name, tc := range map[string]struct {
		stream, body, want string
		context            int
		why                resume.Reason
	}{
		"a chat": {
			stream: counted(prompt, "a", "b"), body: `{"model":"m","messages":[{"role":"user","content":"hi"}],"temperature":0.5,"max_tokens":9,"stream":false,"stop":null,"top_p" : 1}`,
			want: `{"prompt":[1,22,333,100,101],"max_tokens":7,"stream":true,"stream_options":{"include_usage":true},"return_token_ids":true,"model":"m","temperature":0.5,"top_p":1}`,
		},
		"a character that is not whole": {
			stream: counted(prompt, "a", "", ""), body: `{"messages":[1],"max_completion_tokens":9,"max_tokens":3}`,
			want: `{"prompt":[1,22,333,100],"max_tokens":8,"stream":true,"stream_options":{"include_usage":true},"return_token_ids":true}`,
		},
		"one that was": {
			stream: counted(prompt, "a", "", "🦊"), body: `{"messages":[1],"max_tokens":9,"min_tokens":5}`,
			want: `{"prompt":[1,22,333,100,101,102],"max_tokens":6,"stream":true,"stream_options":{"include_usage":true},"return_token_ids":true,"min_tokens":2}`,
		},
		"as many as there is room for": {
			stream: counted(prompt, "a"), body: `{"messages":[1]}`, context: 50,
			want: `{"prompt":[1,22,333,100],"max_tokens":46,"stream":true,"stream_options":{"include_usage":true},"return_token_ids":true}`,
		},
		"the least that was asked for is there": {
			stream: counted(prompt, "a", "b"), body: `{"messages":[1],"max_tokens":9,"min_tokens":2}`,
			want: `{"prompt":[1,22,333,100,101],"max_tokens":7,"stream":true,"stream_options":{"include_usage":true},"return_token_ids":true}`,
		},
		"nobody knows the room":      {stream: counted(prompt, "a"), body: `{"messages":[1]}`, why: resume.PromptForm},
		"all tokens are there":       {stream: counted(prompt, "a", "b"), body: `{"messages":[1],"max_tokens":2}`, why: resume.Exhausted},
		"a stop string":              {stream: counted(prompt, "a"), body: `{"messages":[1],"max_tokens":9,"stop":"x"}`, why: resume.Stop},
		"a member that nobody knows": {stream: counted(prompt, "a"), body: `{"messages":[1],"max_tokens":9,"top_q":1}`, why: resume.PromptForm},
		"one that is null":           {stream: counted(prompt, "a"), body: `{"messages":[1],"max_tokens":2000,"top_q":null}`, want: `{"prompt":[1,22,333,100],"max_tokens":1999,"stream":true,"stream_options":{"include_usage":true},"return_token_ids":true}`},
		"no numbers":                 {stream: `data: {"choices":[{"index":0,"delta":{"content":"a"}}]}` + "\n\n", body: `{"messages":[1],"max_tokens":9}`, why: resume.TokenIDs},
		"no numbers of the prompt":   {stream: strings.ReplaceAll(counted(prompt, "a"), "prompt_token_ids", "none"), body: `{"messages":[1],"max_tokens":9}`, why: resume.TokenIDs},
		"numbers that are none":      {stream: counted(`[1,"2"]`, "a"), body: `{"messages":[1],"max_tokens":9}`, why: resume.TokenIDs},
		"an empty prompt":            {stream: counted(`[]`, "a"), body: `{"messages":[1],"max_tokens":9}`, why: resume.TokenIDs},
		"a token without a number": {
			stream: counted(prompt, "a") + `data: {"choices":[{"index":0,"delta":{"content":"b"},"token_ids":[]}]}` + "\n\n", body: `{"messages":[1],"max_tokens":9}`, why: resume.TokenIDs,
		},
		"more than is kept":   {stream: counted("[1"+strings.Repeat(",1", 1<<10)+"]", "a"), body: `{"messages":[1],"max_tokens":9}`, why: resume.TokenIDs},
		"a character cut off": {stream: counted(prompt, "a\ufffd"), body: `{"messages":[1],"max_tokens":9}`, why: resume.Unreadable},
		"reasoning":           {stream: counted(prompt) + `data: {"choices":[{"index":0,"delta":{"reasoning":"b"},"token_ids":[1]}]}` + "\n\n", body: `{"messages":[1],"max_tokens":9}`, why: resume.Reasoning},
		"an end":              {stream: counted(prompt, "a") + `data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\n", body: `{"messages":[1],"max_tokens":9}`, why: resume.Finished},
		"marks of reasoning, which no template takes out": {
			stream: counted(prompt, "<think>", "a"), body: `{"messages":[1],"max_tokens":9}`,
			want: `{"prompt":[1,22,333,100,101],"max_tokens":7,"stream":true,"stream_options":{"include_usage":true},"return_token_ids":true}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var s resume.Story
			s.Begin(true, false, 1<<11)
			defer s.Release()
			number(t, &s, tc.stream, false)
			got, why := s.AskExact([]byte("kept"), []byte(tc.body), nil, tc.context)
			if why != tc.why || string(got) != "kept"+tc.want {
				t.Errorf("%q: %s, want %q: %s", why, got, tc.why, tc.want)
			}
			if tc.want != "" && !json.Valid(got[len("kept"):]) {
				t.Error("that is no JSON")
			}
		})
	}
}

// TestAskExactCompletion changes the prompt and what counts tokens, and nothing else.
func TestAskExactCompletion(t *testing.T) {
	stream := `data: {"choices":[{"index":0,"text":"a","prompt_token_ids":[1,2],"token_ids":[3]}]}` + "\n\n" + `data: {"choices":[{"index":0,"text":"b","token_ids":[4,5]}]}` + "\n\n"
	for body, want := range map[string]string{
		`{"prompt":"hi","top_q":1,"max_tokens":9}`:               `{"prompt":[1,2,3,4,5],"top_q":1,"max_tokens":6,"stream":true,"stream_options":{"include_usage":true},"return_token_ids":true}`,
		`{ "stream":false, "prompt":"hi","stream_options":null}`: `{ "stream":true, "prompt":[1,2,3,4,5],"stream_options":{"include_usage":true},"max_tokens":13,"return_token_ids":true}`,
	} {
		var s resume.Story
		s.Begin(false, false, 1<<10)
		number(t, &s, stream, false)
		got, why := s.AskExact(nil, []byte(body), nil, 0)
		if why != resume.None || string(got) != want {
			t.Errorf("%s: %q %s, want %s", body, why, got, want)
		}
		s.Release()
	}
}

// TestRetell makes a chat's events of those of Completions, as if the first host had gone on.
func TestRetell(t *testing.T) {
	var s resume.Story
	s.Begin(true, false, 1<<10)
	defer s.Release()
	number(t, &s, counted("[1,2]", "a", "b "), false)
	if _, why := s.AskExact(nil, []byte(`{"messages":[1],"max_tokens":9}`), nil, 0); why != resume.None || s.Exact() {
		t.Fatal(why)
	}
	s.Seam()
	event := func(choice, more string) string {
		return `data: {"id":"second","object":"text_completion","created":9,"model":"its-own","choices":[` + choice + `]` + more + "}\n\n"
	}
	got, why := number(t, &s, strings.Join([]string{
		event(`{"index":0,"text":" c","logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":[1,2,100,101],"token_ids":[102]}`, ""),
		event(`{"index":0,"text":"\"d\\n","logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":[103]}`, ""),
		event(`{"index":0,"text":"","logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":[104]}`, ""),
		": ping\n\n",
		"data: {\"choices\":[{\"index\":0,\ndata: \"text\":\"e\",\"token_ids\":[105]}]}\n\n",
		event(`{"index":0,"text":"","logprobs":null,"finish_reason":"stop","stop_reason":7,"prompt_token_ids":null,"token_ids":[]}`, ""),
		event("", `,"usage":{"prompt_tokens":4,"total_tokens":9,"completion_tokens":5}`),
		"data: [DONE]\n\n",
	}, ""), true)
	const head = `data: {"id":"first","object":"chat.completion.chunk","created":5,"model":"m","choices":[`
	want := strings.Join([]string{
		head + `{"index":0,"delta":{"content":" c"},"logprobs":null,"finish_reason":null}]}`,
		head + `{"index":0,"delta":{"content":"\"d\\n"},"logprobs":null,"finish_reason":null}]}`,
		head + `{"index":0,"delta":{"content":"e"},"logprobs":null,"finish_reason":null}]}`,
		head + `{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":"stop","stop_reason":7}]}`,
		head + `],"usage":{"prompt_tokens":2,"total_tokens":9,"completion_tokens":7}}`,
		"data: [DONE]\n\n",
	}, "\n\n")
	if why != resume.None || got != want || !s.Exact() {
		t.Errorf("%q, exact %t:\n%s\nwant\n%s", why, s.Exact(), got, want)
	}
	if n, ok := s.Counted(); n != 6 || !ok { // a, b, c, d, what is part of e, and e
		t.Errorf("%d tokens were counted, %t", n, ok)
	}
}

// TestNumbersOfWhatIsNoAnswer: an event that cannot belong to the answer leaves no number behind.
func TestNumbersOfWhatIsNoAnswer(t *testing.T) {
	var s resume.Story
	s.Begin(true, false, 1<<10)
	defer s.Release()
	number(t, &s, counted("[1,2]", "a"), false)
	body := []byte(`{"messages":[1],"max_tokens":9}`)
	for range 2 {
		got, why := s.AskExact(nil, body, nil, 0)
		if why != resume.None || !strings.HasPrefix(string(got), `{"prompt":[1,2,100],`) {
			t.Fatalf("%q: %s", why, got)
		}
		s.Seam()
		if _, why := number(t, &s, `data: {"choices":[{"index":0,"text":"x","logprobs":{"tokens":["x"]},"token_ids":[7]}]}`+"\n\n", true); why == resume.None {
			t.Fatal("what has logprobs belongs to the answer")
		}
	}
}

// TestNumbersBehindText: where a host goes on by text and tells numbers, its prompt is the part of the answer that it was given as well.
func TestNumbersBehindText(t *testing.T) {
	var s resume.Story
	s.Begin(true, false, 1<<10)
	defer s.Release()
	see(t, &s, host{id: "a", chat: true}.stream([]string{"a", "b"}, ""))
	body := []byte(`{"messages":[{"role":"user","content":"hi"}]}`)
	if _, why := s.Ask(nil, body, nil, 2, false); why != resume.None {
		t.Fatal(why)
	}
	s.Seam()
	number(t, &s, counted("[1,2,3,4]", "c", "d", "e"), true)
	if n, ok := s.Counted(); n != 5 || !ok {
		t.Errorf("%d tokens counted, %t", n, ok)
	}
	got, why := s.AskExact(nil, body, nil, 100) // 2 of prompt and 2 of answer in front of 3
	if want := `{"prompt":[1,2,3,4,100,101,102],"max_tokens":93,`; why != resume.None || !strings.HasPrefix(string(got), want) {
		t.Errorf("%q: %s, want %s", why, got, want)
	}
}

// TestNumbersOfWhatIsSaidAgain: white space that the next host writes once more is one token of the caller's, whichever way is asked then.
func TestNumbersOfWhatIsSaidAgain(t *testing.T) {
	var s resume.Story
	s.Begin(true, false, 1<<10)
	defer s.Release()
	see(t, &s, host{id: "a", chat: true}.stream([]string{"a", " "}, ""))
	body := []byte(`{"messages":[{"role":"user","content":"hi"}],"max_tokens":10}`)
	if _, why := s.Ask(nil, body, nil, 2, true); why != resume.None {
		t.Fatal(why)
	}
	s.Seam()
	number(t, &s, counted("[1,2]", " ", "b"), true)
	n, ok := s.Counted()
	if !ok {
		t.Fatal("not counted")
	}
	for way, ask := range map[string]func() ([]byte, resume.Reason){
		"text":    func() ([]byte, resume.Reason) { return s.Ask(nil, body, nil, n, true) },
		"numbers": func() ([]byte, resume.Reason) { return s.AskExact(nil, body, nil, 0) },
	} {
		if got, why := ask(); why != resume.None || !strings.Contains(string(got), `"max_tokens":7`) {
			t.Errorf("by %s: %q, %s, and 3 of 10 tokens are delivered", way, why, got)
		}
	}
}

// TestExactOverAnyCut breaks numbered answers at random places, over and over: the caller has each token once, and each host is told all
// that were told, and no other.
func TestExactOverAnyCut(t *testing.T) {
	pieces := []string{"a", " b", "", "\n", "🦊", "", "", "\"c", " ", "d\\", "e"} // the last has text
	var whole []string
	for range 4 {
		whole = append(whole, pieces...)
	}
	for cut := range whole {
		for second := cut; second < len(whole); second += 3 {
			var s resume.Story
			s.Begin(true, false, 1<<12)
			out := counted("[9]", whole[:cut]...)
			number(t, &s, out, false)
			told, broken := cut, false
			for _, until := range []int{second, len(whole)} {
				ask, why := s.AskExact(nil, []byte(`{"messages":[1],"max_tokens":1000}`), nil, 0)
				if why == resume.TokenIDs { // nothing is told yet
					broken = true
					break
				}
				var q struct {
					Prompt []int
					Max    int `json:"max_tokens"`
				}
				if err := json.Unmarshal(ask, &q); err != nil || why != resume.None {
					t.Fatalf("%q, %v: %s", why, err, ask)
				}
				had := len(q.Prompt) - 1
				for i, id := range q.Prompt[1:] {
					if id != 100+i {
						t.Fatalf("cut at %d and %d: asked with %v", cut, second, q.Prompt)
					}
				}
				if joined := strings.Join(whole[:told], ""); had > told || strings.Join(whole[:had], "") != joined || q.Max != 1000-had {
					t.Fatalf("cut at %d and %d: behind %q it goes on from %q, for %d tokens", cut, second, joined, strings.Join(whole[:had], ""), q.Max)
				}
				s.Seam()
				var b strings.Builder
				for i := had; i < until; i++ {
					fmt.Fprintf(&b, `data: {"id":"x","choices":[{"index":0,"text":%s,"finish_reason":null,"token_ids":[%d]}]}`+"\n\n", strconv.Quote(whole[i]), 100+i)
				}
				more, why := number(t, &s, b.String(), true)
				if why != resume.None {
					t.Fatal(why)
				}
				out += more
				told = max(had, until)
			}
			if sp := listen(t, out); !broken && (sp.text(t) != strings.Join(whole, "") || len(sp.ids) != 1) {
				t.Fatalf("cut at %d and %d: %q of %v", cut, second, sp.text(t), slices.Collect(func(yield func(string) bool) {
					for id := range sp.ids {
						if !yield(id) {
							return
						}
					}
				}))
			}
			s.Release()
		}
	}
}

// FuzzNumbers: whatever hosts tell, what is asked for is JSON, and what goes to the caller whole events of it.
func FuzzNumbers(f *testing.F) {
	f.Add([]byte(counted("[1,2]", "a", "b")), []byte(`data: {"choices":[{"index":0,"text":"c","token_ids":[1]}]}`+"\n\n"), true)
	f.Add([]byte(`data: {"choices":[{"index":0,"text":"c","prompt_token_ids":[1 ,2],"token_ids":[ 3]}]}`+"\n\n"), []byte(`data: {"choices":[{"text":"c","stop_reason":"x","finish_reason":"stop"}],"usage":{"prompt_tokens":1}}`+"\n\n"), false)
	f.Fuzz(func(t *testing.T, first, second []byte, chat bool) {
		var s resume.Story
		s.Begin(chat, false, 1<<10)
		defer s.Release()
		valid := true
		each := func(stream []byte, do func(*openai.Chunk, *sse.Event)) {
			for _, ev := range events(t, string(stream)) {
				var c openai.Chunk
				c.Parse(ev.Name, ev.Data)
				valid = valid && (ev.Data == nil || json.Valid(ev.Data) || c.Done)
				s.Number(&c, ev.Data)
				do(&c, &ev)
			}
		}
		each(first, s.See)
		body := []byte(`{"messages":[1],"prompt":"x","max_tokens":50}`)
		if chat {
			body = []byte(`{"messages":[1],"max_tokens":50}`)
		}
		ask, r := s.AskExact(nil, body, nil, 0)
		if r != resume.None {
			return
		}
		if !json.Valid(ask) {
			t.Fatalf("%q: asked %s", first, ask)
		}
		s.Seam()
		each(second, func(c *openai.Chunk, ev *sse.Event) {
			got, _ := s.Continue(nil, c, ev, true)
			checkWritten(t, got, ev.Data, valid)
		})
	})
}
