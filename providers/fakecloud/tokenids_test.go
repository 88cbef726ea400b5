package fakecloud_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"headrace/providers/fakecloud"
)

// numbered is an event or an answer with the numbers of its tokens.
type numbered struct {
	Prompt  []int `json:"prompt_token_ids"`
	Choices []struct {
		Delta, Message struct{ Content string }
		Text           string
		Prompt         []int  `json:"prompt_token_ids"`
		Tokens         []int  `json:"token_ids"`
		Finish         string `json:"finish_reason"`
	}
	Usage struct {
		Prompt int `json:"prompt_tokens"`
	}
}

// told is what came of a request with numbers.
func told(t *testing.T, h *fakecloud.Host, path, body string) (text string, prompt, tokens []int, usage int) {
	t.Helper()
	code, b, _ := do(t, h, "POST", path, body)
	if code != 200 {
		t.Fatalf("status %d: %s", code, b)
	}
	var all []numbered
	if strings.Contains(body, `"stream":true`) {
		for _, ev := range events(t, b) {
			if ev.data == "[DONE]" {
				continue
			}
			var n numbered
			if err := json.Unmarshal([]byte(ev.data), &n); err != nil {
				t.Fatalf("%v: %s", err, ev.data)
			}
			all = append(all, n)
		}
	} else {
		var n numbered
		if err := json.Unmarshal(b, &n); err != nil {
			t.Fatalf("%v: %s", err, b)
		}
		all = append(all, n)
	}
	for _, n := range all {
		prompt = append(prompt, n.Prompt...)
		usage += n.Usage.Prompt
		for _, c := range n.Choices {
			text += c.Delta.Content + c.Message.Content + c.Text
			prompt, tokens = append(prompt, c.Prompt...), append(tokens, c.Tokens...)
		}
	}
	return text, prompt, tokens, usage
}

// TestTokenIDs are a known function of the text, and what was told of one answer makes a host go on with it.
func TestTokenIDs(t *testing.T) {
	const n = 24
	h := start(t, fakecloud.HostConfig{Models: []string{"m"}})
	for _, prompt := range []string{"hi", "What did the mill say, and why? Ærlig.", ""} {
		for name, ask := range map[string]string{
			"/v1/chat/completions": `"messages":[{"role":"user","content":` + quote(prompt) + `}]`,
			"/v1/completions":      `"prompt":` + quote(prompt),
		} {
			for _, stream := range []string{"", `,"stream":true,"stream_options":{"include_usage":true}`} {
				text, ids, tokens, usage := told(t, h, name, fmt.Sprintf(`{"model":"m",%s,"max_tokens":%d,"return_token_ids":true%s}`, ask, n, stream))
				if text != fakecloud.Answer("m", prompt, n) || len(tokens) != n || usage != len(ids) || !slices.Equal(ids, fakecloud.PromptIDs("m", prompt, "")) {
					t.Fatalf("%s of %q: %d prompt tokens with numbers %v, tokens %v, text %q", name, prompt, usage, ids, tokens, text)
				}
				for i, id := range tokens {
					if id != fakecloud.TokenID("m", prompt, i) {
						t.Errorf("token %d has number %d, want %d", i, id, fakecloud.TokenID("m", prompt, i))
					}
				}
				if prompt == "" { // its token stands for nothing
					continue
				}
				seams := h.Stats().BadSeams
				rest, all, _, usage := told(t, h, "/v1/completions", fmt.Sprintf(`{"model":"m","prompt":%s,"max_tokens":5,"return_token_ids":true%s}`, list(ids, tokens[:9]), stream))
				if want := strings.TrimPrefix(fakecloud.Answer("m", prompt, 14), fakecloud.Answer("m", prompt, 9)); rest != want || usage != len(ids)+9 || !slices.Equal(all, append(slices.Clone(ids), tokens[:9]...)) {
					t.Errorf("goes on with %q behind %d tokens, want %q", rest, usage, want)
				}
				if h.Stats().BadSeams != seams {
					t.Error("a seam that is none")
				}
				wrong := slices.Clone(tokens[:9])
				wrong[4] = (wrong[4] + 1) % 60
				rest, _, _, _ = told(t, h, "/v1/completions", fmt.Sprintf(`{"model":"m","prompt":%s,"max_tokens":5%s}`, list(ids, wrong), stream))
				if want := strings.TrimPrefix(fakecloud.Answer("m", prompt, 14), fakecloud.Answer("m", prompt, 9)); rest == want || h.Stats().BadSeams != seams+1 {
					t.Errorf("with a wrong number it goes on with %q", rest)
				}
			}
		}
	}
	if code, b, _ := do(t, h, "POST", "/v1/completions", `{"model":"m","prompt":[9007199254740991],"max_tokens":5}`); code != 400 || !strings.Contains(string(b), "out of vocabulary") {
		t.Errorf("a number of no token: %d %s", code, b)
	}
}

// TestNoTokenIDs: a host that does not know them passes the wish over.
func TestNoTokenIDs(t *testing.T) {
	h := start(t, fakecloud.HostConfig{Models: []string{"m"}, NoTokenIDs: true})
	text, ids, tokens, _ := told(t, h, "/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":5,"return_token_ids":true,"stream":true}`)
	if text != fakecloud.Answer("m", "hi", 5) || len(ids)+len(tokens) != 0 {
		t.Errorf("%q with numbers %v %v", text, ids, tokens)
	}
	rest, _, _, _ := told(t, h, "/v1/completions", `{"model":"m","prompt":`+list(fakecloud.PromptIDs("m", "hi", text))+`,"max_tokens":5}`)
	if strings.HasPrefix(fakecloud.Answer("m", "hi", 10), text+rest) {
		t.Errorf("goes on with %q", rest)
	}
}

func quote(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

func list(ids ...[]int) string {
	b, _ := json.Marshal(slices.Concat(ids...))
	return string(b)
}
