package resume_test

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"headrace/gateway/openai"
	"headrace/gateway/resume"
	"headrace/gateway/sse"
)

// Any text, cut into any events and broken at any of them, is the same text behind the seam.
func FuzzSeam(f *testing.F) {
	f.Add("Hello, world", uint64(1))
	f.Add(" \n\nDas größte 水車 🦊👩‍🚀\t\u2028 ", uint64(2))
	f.Add("\"\\\\u0041\" \ufffd {} \x00\x1f", uint64(3))
	f.Fuzz(func(t *testing.T, text string, seed uint64) {
		if !utf8.ValidString(text) || len(text) > 2000 {
			return
		}
		rng := rand.New(rand.NewPCG(seed, seed))
		pieces := split(text, rng)
		checkCut(t, pieces, rng.IntN(len(pieces)+1), rng.IntN(2) == 0, rng.IntN(2) == 0, rng)
	})
}

// Whatever hosts send, nothing panics, and what goes to the caller are whole events of valid JSON, if what came was.
func FuzzEvents(f *testing.F) {
	h := host{id: "h", chat: true, prompt: 3, fp: "fp"}
	f.Add([]byte(h.stream([]string{"a", " b"}, "")), []byte(h.stream([]string{" b", "c"}, "stop")), true, true)
	f.Add([]byte(host{id: "h"}.stream([]string{"a "}, "")), []byte(host{id: "i"}.stream([]string{" b"}, "stop")), false, true)
	f.Add([]byte("data: {\"choices\":[{}],\"choices\":5}\n\n"), []byte("data: {\"choices\":[{\"delta\":{\"role\":1,\"content\":\"\"}}],\"choices\":5}\n\n"), true, false)
	f.Add([]byte(""), []byte("data: {\"choices\":[{\"delta\":{\"r\\u006fle\":1,\"content\":\"x\"}}],\"usage\":{\"prompt_tokens\":NaN}}\n\n"), true, true)
	f.Fuzz(func(t *testing.T, first, second []byte, chat, wantUsage bool) {
		for _, gather := range []bool{false, true} {
			checkEvents(t, first, second, chat, gather, wantUsage)
		}
	})
}

func checkEvents(t *testing.T, first, second []byte, chat, gather, wantUsage bool) {
	t.Helper()
	var s resume.Story
	s.Begin(chat, gather, 1<<10)
	defer s.Release()
	valid := true
	each := func(stream []byte, do func(*openai.Chunk, *sse.Event)) {
		for _, ev := range events(t, string(stream)) {
			var c openai.Chunk
			c.Parse(ev.Name, ev.Data)
			valid = valid && (ev.Data == nil || json.Valid(ev.Data) || c.Done)
			before := bytes.Clone(ev.Data)
			do(&c, &ev)
			if !bytes.Equal(before, ev.Data) {
				t.Fatalf("%q became %q", before, ev.Data)
			}
		}
	}
	each(first, s.See)
	body := []byte(`{"messages":[1],"max_tokens":50}`)
	if !chat {
		body = []byte(`{"prompt":"x","max_tokens":50}`)
	}
	ask, r := s.Ask(nil, body, nil, 3, true)
	if r == resume.None && !json.Valid(ask) {
		t.Fatalf("%q: asked %s", first, ask)
	}
	s.Seam()
	each(second, func(c *openai.Chunk, ev *sse.Event) {
		got, r := s.Continue([]byte("kept"), c, ev, wantUsage)
		if !bytes.HasPrefix(got, []byte("kept")) || (r != resume.None || gather) && len(got) > len("kept") {
			t.Fatalf("%q %q: %q", ev.Data, r, got)
		}
		checkWritten(t, got[len("kept"):], ev.Data, valid)
	})
	if whole, r := s.Whole(nil); gather && valid && r == resume.None && !json.Valid(whole) {
		t.Fatalf("%q, %q: %s", first, second, whole)
	}
	for _, ev := range events(t, string(s.End(nil, wantUsage, openai.Usage{Prompt: 1, Completion: 2}))) {
		if valid && !json.Valid(ev.Data) && string(ev.Data) != "[DONE]" {
			t.Fatalf("%q, %q: end %q", first, second, ev.Data)
		}
	}
}

// checkWritten looks at what was made of the data. valid says that it is JSON, and so was all that came before.
func checkWritten(t *testing.T, got, data []byte, valid bool) {
	t.Helper()
	if len(got) == 0 {
		return
	}
	var s sse.Scanner
	ev, ok := s.Next(got)
	if !ok || ev.Size != len(got) {
		t.Fatalf("%q became %q: no one event", data, got)
	}
	if valid && !json.Valid(ev.Data) && string(ev.Data) != "[DONE]" {
		t.Fatalf("%q became %q", data, ev.Data)
	}
}

// Whatever is asked, what the next host is asked is the same with the text behind it.
func FuzzAsk(f *testing.F) {
	f.Add([]byte(`{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":9,"stream":false,"stream_options":null}`), "a\n", true, true)
	f.Add([]byte(`{"prompt":"say \"hi\"","stream_options":{"include_usage":false},"stop":["a","\n"]} `), " once", false, true)
	f.Add([]byte(`{"m\u0065ssages" : [ 1 ] , "continue_final_message":null,"add_generation_prompt":true,"min_tokens":1e1}`), "\"\\", true, false)
	f.Fuzz(func(t *testing.T, body []byte, text string, chat, trims bool) {
		path := "/completions"
		if chat {
			path = "/chat/completions"
		}
		var q openai.Request
		if !utf8.ValidString(text) || len(text) > 1000 || q.Scan(body) != nil || resume.Allowed(path, &q) != resume.None {
			return
		}
		quoted, _ := json.Marshal(text)
		s := told(t, chat, string(quoted[1:len(quoted)-1]))
		ask, r := s.Ask(nil, body, []byte(`"served"`), 1, trims)
		if r != resume.None {
			if len(ask) > 0 {
				t.Fatalf("%q: %q and %s", body, r, ask)
			}
			return
		}
		var again openai.Request
		if err := again.Scan(ask); err != nil || !again.Stream || !again.IncludeUsage || string(again.Model) != "served" {
			t.Fatalf("%q became %q: %v", body, ask, err)
		}
		had, have := members(t, body), members(t, ask)
		for name, v := range had {
			switch name {
			case "model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "min_tokens", "messages", "prompt":
			case "continue_final_message", "add_generation_prompt":
			default:
				if !bytes.Equal(v, have[name]) {
					t.Fatalf("%q: %s became %q", body, name, have[name])
				}
			}
		}
		if solid := strings.TrimFunc(text, unicode.IsSpace); solid != "" && !strings.HasPrefix(text, behind(t, had, have, chat)) {
			t.Fatalf("%q became %q", body, ask)
		}
	})
}

// behind is the text that was put at the end of a prompt.
func behind(t testing.TB, had, have map[string]json.RawMessage, chat bool) (text string) {
	t.Helper()
	if !chat {
		var before, after string
		if json.Unmarshal(had["prompt"], &before) != nil || json.Unmarshal(have["prompt"], &after) != nil || !strings.HasPrefix(after, before) {
			t.Fatalf("%q became %q", had["prompt"], have["prompt"])
		}
		return after[len(before):]
	}
	var before, after []json.RawMessage
	var last struct{ Role, Content string }
	if json.Unmarshal(had["messages"], &before) != nil || json.Unmarshal(have["messages"], &after) != nil || len(after) > len(before)+1 {
		t.Fatalf("%q became %q", had["messages"], have["messages"])
	}
	if len(after) == len(before) {
		return ""
	}
	if err := json.Unmarshal(after[len(before)], &last); err != nil || last.Role != "assistant" || string(have["continue_final_message"]) != "true" ||
		string(have["add_generation_prompt"]) != "false" {
		t.Fatalf("%q became %q: %v", had["messages"], have["messages"], err)
	}
	return last.Content
}
