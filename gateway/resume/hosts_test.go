package resume_test

import (
	"fmt"
	"strings"
	"testing"

	"headrace/gateway/openai"
	"headrace/gateway/resume"
	"headrace/providers/fakecloud"
)

// An answer that is broken behind any of its tokens is the one that an unbroken host gives, with hosts that keep white space at
// the end of an unfinished message and with such that trim it.
func TestAnyBreakBetweenHosts(t *testing.T) {
	for name, prefill := range map[string]fakecloud.Prefill{"keeps": fakecloud.PrefillContinues, "trims": fakecloud.PrefillTrims} {
		t.Run(name, func(t *testing.T) {
			h, err := fakecloud.StartHost(t.Context(), fakecloud.HostConfig{Models: []string{"m"}, Prefill: prefill})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(h.Stop)
			prompts := []string{"one", "two", "three", "four", "five", "six"}
			if underRace {
				prompts = prompts[:1]
			}
			for _, prompt := range prompts {
				breakEverywhere(t, h, prompt, prefill == fakecloud.PrefillTrims)
			}
			if s := h.Stats(); s.BadSeams != 0 {
				t.Errorf("%d bad seams", s.BadSeams)
			}
		})
	}
}

func breakEverywhere(t *testing.T, h *fakecloud.Host, prompt string, trims bool) {
	t.Helper()
	const path, model, limit = "/chat/completions", "m", 40
	body := fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":%q}],"max_tokens":%d,"stream":true,"stream_options":{"include_usage":true}}`, model, prompt, limit)
	whole := string(post(t, h, path, body))
	want := listen(t, whole)
	answer := fakecloud.Answer(model, prompt, limit)
	if text := want.text(t); text != answer {
		t.Fatalf("%q said, %q expected", text, answer)
	}
	all := strings.SplitAfter(whole, "\n\n")
	for at := range limit + 1 {
		var s resume.Story
		s.Begin(true, false, 1<<20)
		first := strings.Join(all[:1+at], "") // and the role
		see(t, &s, first)
		ask, r := s.Ask(nil, []byte(body), nil, int64(at), trims)
		rest := ""
		if r == resume.None {
			rest, r = onwards(t, h, &s, body, ask, at, trims)
		}
		if r == resume.Exhausted || r == resume.Finished {
			prompted := int64(want.usage["prompt_tokens"].(float64))
			rest, r = rest+string(s.End(nil, true, openai.Usage{Prompt: prompted, Completion: int64(at)})), resume.None
		}
		got := listen(t, first+rest)
		if text := got.text(t); r != resume.None || text != answer || got.finish != want.finish || got.done != 1 || got.roles != want.roles || len(got.ids) != 1 ||
			got.usage["completion_tokens"] != float64(limit) {
			t.Fatalf("%q broken behind token %d: %q, %+v\n got %q\nwant %q\nasked %s", prompt, at, r, got, text, answer, ask)
		}
		s.Release()
	}
}

// onwards has h go on twice: it is broken again behind a few tokens, unless those were all.
func onwards(t *testing.T, h *fakecloud.Host, s *resume.Story, body string, ask []byte, at int, trims bool) (string, resume.Reason) {
	t.Helper()
	s.Seam()
	second := strings.SplitAfter(string(post(t, h, "/chat/completions", string(ask))), "\n\n")
	more := at % 5
	if len(second) <= 1+more+3 {
		return goOn(t, s, strings.Join(second, ""), true)
	}
	rest, r := goOn(t, s, strings.Join(second[:1+more], ""), true)
	if r != resume.None {
		return rest, r
	}
	if ask, r = s.Ask(nil, []byte(body), nil, int64(at+more), trims); r != resume.None {
		return rest, r
	}
	s.Seam()
	last, r := goOn(t, s, string(post(t, h, "/chat/completions", string(ask))), true)
	return rest + last, r
}
