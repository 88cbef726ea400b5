package fakerunpod_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"headrace/providers/fakecloud"
	"headrace/providers/fakecloud/fakerunpod"
)

// TestGenerations checks how each worker cuts the same stream, and that nothing but characters inside V24's cuts is lost.
func TestGenerations(t *testing.T) {
	const tokens = 150
	eventsIn := func(t *testing.T, y json.RawMessage) int {
		t.Helper()
		var s string
		if json.Unmarshal(y, &s) != nil {
			t.Fatalf("%s is no string", y)
		}
		if !strings.HasSuffix(s, "\n\n") {
			t.Errorf("a yield ends inside an event: %q", s)
		}
		return strings.Count(s, "\n\n")
	}
	seed := uint64(0)
	follow := func(t *testing.T, cfg fakerunpod.EndpointConfig) (yields []json.RawMessage, up string, destroyed int) {
		t.Helper()
		seed++
		c, e := one(t, fakerunpod.Config{Seed: seed}, cfg)
		id := run(t, c, e, openAIJob(chat(true, tokens)))
		yields, last := follow(t, c, e, id)
		if last != "COMPLETED" {
			t.Fatalf("%s %+v", last, e.Jobs())
		}
		return yields, string(e.Jobs()[0].Upstream), e.Jobs()[0].Destroyed
	}
	// as text, the JSON escapes of the engine hold no characters that a cut could destroy; its raw UTF-8 does
	t.Run("V24", func(t *testing.T) {
		yields, up, destroyed := follow(t, fakerunpod.EndpointConfig{CutMax: 40})
		for destroyed == 0 && seed < 100 { // where it is cut depends on what has come by then: once in a while between characters only
			yields, up, destroyed = follow(t, fakerunpod.EndpointConfig{CutMax: 40})
		}
		got := joined(t, yields)
		if n := strings.Count(got, "\ufffd"); n != destroyed || n == 0 || strings.Contains(up, "\ufffd") {
			t.Errorf("%d replaced characters, %d counted", n, destroyed)
		}
		inside := slices.ContainsFunc(yields, func(y json.RawMessage) bool { return !strings.HasSuffix(string(y), `\n\n"`) })
		if !inside || !same(got, up) {
			t.Errorf("cut inside events: %v; got\n%s\nof\n%s", inside, got, up)
		}
	})
	t.Run("V24 as it arrives", func(t *testing.T) {
		yields, up, destroyed := follow(t, fakerunpod.EndpointConfig{})
		if got := joined(t, yields); destroyed == 0 && got != up || content(t, up) != said(tokens) {
			t.Errorf("got\n%s\nof\n%s", got, up)
		}
	})
	t.Run("V23", func(t *testing.T) {
		yields, up, _ := follow(t, fakerunpod.EndpointConfig{Generation: fakerunpod.V23})
		var sizes []int
		for _, y := range yields {
			sizes = append(sizes, eventsIn(t, y))
		}
		if want := []int{1, 3, 9, 27, 50, 50, 12}; !slices.Equal(sizes, want) { // the role, 150 tokens and [DONE]
			t.Errorf("events in each yield: %v, want %v", sizes, want)
		}
		if got := joined(t, yields); got != up || content(t, got) != said(tokens) {
			t.Errorf("got\n%s", got)
		}
	})
	t.Run("V23 with DEFAULT_BATCH_SIZE=1", func(t *testing.T) {
		yields, _, _ := follow(t, fakerunpod.EndpointConfig{Generation: fakerunpod.V23, Models: []string{model}, Env: map[string]string{"DEFAULT_BATCH_SIZE": "1"}})
		if len(yields) != tokens+2 {
			t.Errorf("%d yields", len(yields))
		}
	})
	t.Run("V23 lists", func(t *testing.T) {
		yields, _, _ := follow(t, fakerunpod.EndpointConfig{Generation: fakerunpod.V23Lists})
		text, sizes := "", []int{}
		for _, y := range yields {
			var chunks []json.RawMessage
			if err := json.Unmarshal(y, &chunks); err != nil {
				t.Fatalf("%v in %s", err, y)
			}
			sizes = append(sizes, len(chunks))
			for _, c := range chunks {
				text += deltas(t, c)
			}
		}
		if want := []int{1, 3, 9, 27, 50, 50, 11}; !slices.Equal(sizes, want) || text != said(tokens) {
			t.Errorf("chunks in each yield: %v, want %v; %s", sizes, want, text)
		}
	})
	t.Run("SGLang", func(t *testing.T) {
		yields, _, _ := follow(t, fakerunpod.EndpointConfig{Generation: fakerunpod.SGLang})
		for _, y := range yields[:len(yields)-1] {
			if eventsIn(t, y) != 1 || strings.Count(string(y), "data: ") < 5 {
				t.Fatalf("an event that is not one JSON over several data lines: %s", y)
			}
		}
		if got := joined(t, yields); content(t, got) != said(tokens) || !strings.HasSuffix(got, "data: [DONE]\n\n") {
			t.Errorf("got\n%s", got)
		}
	})
	t.Run("fake streaming", func(t *testing.T) {
		yields, up, _ := follow(t, fakerunpod.EndpointConfig{Generation: fakerunpod.FakeStream})
		if len(yields) != 1 || joined(t, yields) != up {
			t.Errorf("%d yields", len(yields))
		}
	})
}

// same compares texts of which the first may have U+FFFD, two to four times, where the other has a character.
func same(got, want string) bool {
	for {
		g, n := utf8.DecodeRuneInString(got)
		w, m := utf8.DecodeRuneInString(want)
		switch {
		case got == "" || want == "":
			return got == want
		case g == w:
			got, want = got[n:], want[m:]
			continue
		case g != utf8.RuneError:
			return false
		}
		rest := strings.TrimLeft(got, "\ufffd")
		times := (len(got) - len(rest)) / len("\ufffd")
		for range max(1, times/2) { // so many characters at most
			_, m = utf8.DecodeRuneInString(want)
			want = want[m:]
			if same(rest, want) {
				return true
			}
		}
		return false
	}
}

// TestNative checks the handlers' own form of a job, streamed and not.
func TestNative(t *testing.T) {
	const job = `{"input":{"prompt":"tell me","sampling_params":{"max_tokens":40},"stream":STREAM}}`
	type yield struct {
		Choices []struct {
			Tokens []string `json:"tokens"`
		} `json:"choices"`
		Usage struct{ Input, Output int } `json:"usage"`
	}
	for _, gen := range []fakerunpod.Generation{fakerunpod.V23, fakerunpod.V23Native} {
		c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{Generation: gen})
		for stream, want := range map[string][]int{"true": {1, 3, 9, 27}, "false": {1}} {
			yields, _ := follow(t, c, e, run(t, c, e, strings.Replace(job, "STREAM", stream, 1)))
			text, sizes, last := "", []int{}, yield{}
			for _, y := range yields {
				last = yield{}
				if err := json.Unmarshal(y, &last); err != nil || len(last.Choices) != 1 {
					t.Fatalf("%v in %s", err, y)
				}
				sizes = append(sizes, len(last.Choices[0].Tokens))
				text += strings.Join(last.Choices[0].Tokens, "")
			}
			if !slices.Equal(sizes, want) || text != said(40) || last.Usage.Output != 40 || last.Usage.Input != fakecloud.CountTokens("tell me") {
				t.Errorf("stream %s: tokens in each yield %v, want %v; %q, %+v", stream, sizes, want, text, last.Usage)
			}
		}
		yields, _ := follow(t, c, e, run(t, c, e, `{"input":{"messages":[{"role":"user","content":"tell me"}]}}`))
		if len(yields) != 1 || !strings.Contains(string(yields[0]), `"tokens":["`) {
			t.Errorf("messages: %s", yields)
		}
	}
	c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{})
	yields, _ := follow(t, c, e, run(t, c, e, strings.Replace(job, "STREAM", "false", 1)))
	if m := decoded(t, yields[0]); m["object"] != "text_completion" {
		t.Errorf("V24 makes it a completion: %s", yields)
	}
	yields, _ = follow(t, c, e, run(t, c, e, `{"input":{"route":"/v1/embeddings","body":{"model":"llama","input":"a"}}}`))
	if m := decoded(t, yields[0]); m["object"] != "list" {
		t.Errorf("V24 takes any route: %s", yields)
	}
}

// TestPlainAnswers checks answers to jobs that ask for no stream.
func TestPlainAnswers(t *testing.T) {
	for gen, isString := range map[fakerunpod.Generation]bool{fakerunpod.V24: false, fakerunpod.V23: false, fakerunpod.SGLang: true} {
		c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{Generation: gen})
		yields, _ := follow(t, c, e, run(t, c, e, openAIJob(chat(false, 5))))
		if len(yields) != 1 {
			t.Fatalf("generation %d: %s", gen, yields)
		}
		body := []byte(yields[0])
		if isString {
			body = []byte(joined(t, yields))
		}
		if m := decoded(t, body); m["object"] != "chat.completion" {
			t.Errorf("generation %d: %s", gen, body)
		}
	}
}

func TestLargeYieldsAreSplit(t *testing.T) {
	c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{Generation: fakerunpod.FakeStream})
	yields, _ := follow(t, c, e, run(t, c, e, openAIJob(chat(true, 9000))))
	if len(yields) < 2 || content(t, joined(t, yields)) != said(9000) {
		t.Errorf("%d items", len(yields))
	}
	for _, y := range yields {
		var s string
		if json.Unmarshal(y, &s) != nil || len(s) > 1<<20 {
			t.Errorf("an item of %d bytes", len(y))
		}
	}
}
