package chaos

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"headrace/providers/fakecloud"
)

func ask() Ask {
	return Ask{Chat: true, Stream: true, Usage: true, Model: "m", Served: "org/m", Prompt: "why?", MaxTokens: 40}
}

// line makes one event of a stream.
func line(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return "data: " + string(b)
}

type obj = map[string]any

func chunk(id string, delta obj, finish any) string {
	return line(obj{
		"id": id, "object": "chat.completion.chunk", "created": 1, "model": "m",
		"choices": []obj{{"index": 0, "delta": delta, "finish_reason": finish}},
	})
}

// good is a stream without fault, an event a line: role, 40 tokens (the last with finish_reason), usage, [DONE].
func good(a *Ask) []string {
	ls := []string{chunk("c", obj{"role": "assistant", "content": ""}, nil)}
	for i := range a.MaxTokens {
		var finish any
		if i == a.MaxTokens-1 {
			finish = "length"
		}
		ls = append(ls, chunk("c", obj{"content": fakecloud.Token(a.Served, a.Prompt, i)}, finish))
	}
	p := fakecloud.CountTokens(a.Prompt)
	return append(ls, line(obj{
		"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": []obj{},
		"usage": obj{"prompt_tokens": p, "completion_tokens": a.MaxTokens, "total_tokens": p + a.MaxTokens},
	}), "data: [DONE]")
}

func judge(a *Ask, events []string, err error) Verdict {
	c := NewCheck(a)
	for _, e := range events {
		c.Line([]byte(e), time.Now())
		c.Line(nil, time.Now())
	}
	return c.End(err)
}

const lostEvent = `data: {"error":{"message":"gone","type":"server_error","code":"upstream_lost"}}`

func TestCheck(t *testing.T) {
	cut := func(at int, with ...string) func([]string) []string {
		return func(ls []string) []string { return append(slices.Clone(ls[:at]), with...) }
	}
	put := func(at int, with ...string) func([]string) []string {
		return func(ls []string) []string { return slices.Insert(slices.Clone(ls), at, with...) }
	}
	drop := func(from, to int) func([]string) []string {
		return func(ls []string) []string { return slices.Delete(slices.Clone(ls), from, to) }
	}
	a := ask()
	for name, tc := range map[string]struct {
		ask                    func(*Ask)
		change                 func([]string) []string
		err                    error
		end                    End
		lost, doubled, altered int
		problem                string // "" for none
	}{
		"as it should be":        {end: Complete},
		"a seam that is told of": {change: put(20, ": resumed"), end: Complete},
		"an error event":         {change: cut(20, lostEvent), end: Failed},
		"an error first":         {change: cut(0, lostEvent), end: Failed},
		"ends in silence":        {change: cut(20), end: Cut, problem: "without finish_reason and [DONE]"},
		"connection broken":      {change: cut(20), err: io.ErrUnexpectedEOF, end: Cut, problem: "connection broke"},
		"broken behind [DONE]":   {err: io.ErrUnexpectedEOF, end: Cut, problem: "connection broke"},
		"nothing at all":         {change: cut(0), end: Cut, problem: "without finish_reason"},
		"no [DONE]":              {change: drop(42, 43), end: Cut, problem: "no [DONE]"},
		"[DONE] too early":       {change: cut(20, "data: [DONE]"), end: Cut, problem: "[DONE] without finish_reason"},
		"a clean end of half":    {change: drop(20, 40), end: Cut, lost: 20, problem: "a clean end of an answer that is not complete"},
		"a token lost":           {change: drop(20, 21), end: Cut, lost: 1, problem: "1 tokens lost"},
		"the first token lost":   {change: drop(1, 2), end: Cut, lost: 1, problem: "1 tokens lost"},
		"a token doubled":        {change: func(ls []string) []string { return slices.Insert(slices.Clone(ls), 20, ls[19]) }, end: Complete, doubled: 1, problem: "1 doubled"},
		"five tokens doubled":    {change: func(ls []string) []string { return slices.Insert(slices.Clone(ls), 20, ls[15:20]...) }, end: Complete, doubled: 5, problem: "5 doubled"},
		"begun anew": {change: func(ls []string) []string {
			return slices.Concat(ls[:20], ls[1:])
		}, end: Complete, doubled: 19, problem: "19 doubled"},
		"a token altered": {change: func(ls []string) []string {
			ls = slices.Clone(ls)
			ls[20] = chunk("c", obj{"content": "other"}, nil)
			return ls
		}, end: Complete, altered: 1, problem: "1 altered"},
		"white space lost at a seam": {change: func(ls []string) []string {
			ls = slices.Clone(ls)
			k := 10
			for !strings.HasPrefix(fakecloud.Token(a.Served, a.Prompt, k), " ") {
				k++
			}
			ls[k+1] = chunk("c", obj{"content": fakecloud.Token(a.Served, a.Prompt, k)[1:]}, nil)
			return ls
		}, end: Complete, altered: 1, problem: "1 altered"},
		"lost before an error": {change: func(ls []string) []string { return slices.Concat(ls[:10], ls[12:20], []string{lostEvent}) }, end: Failed, lost: 2, problem: "2 tokens lost"},
		"two ids": {change: func(ls []string) []string {
			return slices.Replace(slices.Clone(ls), 30, 31, strings.Replace(ls[30], `"id":"c"`, `"id":"d"`, 1))
		}, end: Complete, problem: `id "d" after "c"`},
		"two models": {change: func(ls []string) []string {
			return slices.Replace(slices.Clone(ls), 30, 31, strings.Replace(ls[30], `"model":"m"`, `"model":"n"`, 1))
		}, end: Complete, problem: `model "n"`},
		"two times": {change: func(ls []string) []string {
			return slices.Replace(slices.Clone(ls), 30, 31, strings.Replace(ls[30], `"created":1`, `"created":2`, 1))
		}, end: Complete, problem: `created 2`},
		"two roles":       {change: put(20, chunk("c", obj{"role": "assistant", "content": ""}, nil)), end: Complete, problem: "role behind the first token"},
		"two roles first": {change: put(1, chunk("c", obj{"role": "assistant", "content": ""}, nil)), end: Complete, problem: "2 deltas with a role"},
		"no role":         {change: drop(0, 1), end: Complete, problem: "0 deltas with a role"},
		"two finishes":    {change: put(41, chunk("c", obj{}, "stop")), end: Complete, problem: "finish_reason twice"},
		"another finish": {change: func(ls []string) []string {
			return slices.Replace(slices.Clone(ls), 40, 41, strings.Replace(ls[40], "length", "stop", 1))
		}, end: Complete, problem: "finish_reason stop instead of length"},
		"text behind the finish":   {change: put(41, chunk("c", obj{"content": "x"}, nil)), end: Complete, altered: 1, problem: "text behind finish_reason"},
		"an event behind the end":  {change: put(43, chunk("c", obj{"content": "x"}, nil)), end: Complete, problem: "behind the end"},
		"[DONE] twice":             {change: put(43, "data: [DONE]"), end: Complete, problem: "behind the end"},
		"[DONE] behind an error":   {change: cut(20, lostEvent, "data: [DONE]"), end: Failed, problem: "behind the end"},
		"an error behind a finish": {change: cut(41, lostEvent), end: Failed, problem: "error behind finish_reason"},
		"no JSON":                  {change: put(20, "data: {"), end: Complete, problem: "no JSON"},
		"usage missing":            {change: drop(41, 42), end: Complete, problem: "no usage"},
		"usage twice":              {change: func(ls []string) []string { return slices.Insert(slices.Clone(ls), 41, ls[41]) }, end: Complete, problem: "usage twice"},
		"usage unasked":            {ask: func(a *Ask) { a.Usage = false }, end: Complete, problem: "usage that nobody asked for"},
		"usage of a part": {change: func(ls []string) []string {
			return slices.Replace(slices.Clone(ls), 41, 42, strings.Replace(ls[41], `"completion_tokens":40`, `"completion_tokens":20`, 1))
		}, end: Complete, problem: "usage"},
		"continued though forbidden": {ask: func(a *Ask) { a.Bound = Seed }, change: put(20, ": resumed"), end: Complete, problem: "seed forbids it"},
		"another choice": {change: put(20, line(obj{
			"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": []obj{{"index": 1, "delta": obj{"content": "x"}}},
		})), end: Complete, problem: "choice 1"},
	} {
		t.Run(name, func(t *testing.T) {
			a := ask()
			ls := good(&a)
			if tc.ask != nil {
				tc.ask(&a)
			}
			if tc.change != nil {
				ls = tc.change(ls)
			}
			v := judge(&a, ls, tc.err)
			if v.End != tc.end || v.Lost != tc.lost || v.Doubled != tc.doubled || v.Altered != tc.altered {
				t.Errorf("%s, %d lost, %d doubled, %d altered; want %s, %d, %d, %d (%q)", v.End, v.Lost, v.Doubled, v.Altered, tc.end, tc.lost, tc.doubled, tc.altered, v.Problems)
			}
			if all := strings.Join(v.Problems, "; "); tc.problem == "" && all != "" || !strings.Contains(all, tc.problem) {
				t.Errorf("problems %q, want %q", all, tc.problem)
			}
		})
	}
}

func TestCheckWhole(t *testing.T) {
	a := ask()
	a.Stream, a.Usage = false, false
	p := fakecloud.CountTokens(a.Prompt)
	answer := func(tokens, counted int, finish string) string {
		return strings.TrimPrefix(line(obj{
			"id": "c", "object": "chat.completion", "created": 1, "model": "m",
			"choices": []obj{{"index": 0, "message": obj{"role": "assistant", "content": fakecloud.Answer(a.Served, a.Prompt, tokens)}, "finish_reason": finish}},
			"usage":   obj{"prompt_tokens": p, "completion_tokens": counted, "total_tokens": p + counted},
		}), "data: ")
	}
	for name, tc := range map[string]struct {
		status  int
		body    string
		err     error
		end     End
		problem string
	}{
		"as it should be":  {200, answer(40, 40, "length"), nil, Complete, ""},
		"half of it":       {200, answer(20, 20, "length"), nil, Cut, "clean end"},
		"usage of a part":  {200, answer(40, 20, "length"), nil, Complete, "usage"},
		"another finish":   {200, answer(40, 40, "stop"), nil, Complete, "finish_reason"},
		"half the JSON":    {200, answer(40, 40, "length")[:90], nil, Cut, "no JSON"},
		"broken":           {200, "", errors.New("reset"), Cut, "connection broke"},
		"lost":             {502, `{"error":{"message":"gone","code":"upstream_lost"}}`, nil, Failed, ""},
		"refused":          {503, `{"error":{"message":"full","code":"no_capacity"}}`, nil, Refused, ""},
		"no error in it":   {502, `<html>`, nil, Failed, "status 502"},
		"an empty failure": {502, `{"error":{}}`, nil, Failed, "status 502"},
	} {
		t.Run(name, func(t *testing.T) {
			v := NewCheck(&a).Whole(tc.status, []byte(tc.body), tc.err)
			if all := strings.Join(v.Problems, "; "); v.End != tc.end || tc.problem == "" && all != "" || !strings.Contains(all, tc.problem) {
				t.Errorf("%s, %q; want %s, %q", v.End, v.Problems, tc.end, tc.problem)
			}
		})
	}
}

// TestCompareFindsEveryChange changes random answers by some tokens and expects exactly that to be found.
func TestCompareFindsEveryChange(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // printed, to be repeated
	for range 3000 {
		prompt := fmt.Sprint(rng.Uint64())
		n := 20 + rng.IntN(60)
		var tokens []string
		for i := range n {
			tokens = append(tokens, fakecloud.Token("m", prompt, i))
		}
		at, k := 1+rng.IntN(n-12), 1+rng.IntN(5)
		said := slices.Clone(tokens)
		what := rng.IntN(3)
		var want [3]int
		switch want[what] = k; what {
		case 0:
			said = slices.Delete(said, at, at+k)
		case 1:
			k = min(k, at)
			want[what] = k
			said = slices.Insert(said, at, said[at-k:at]...)
		case 2:
			want[what] = 1
			said[at] = "<other>"
		}
		text := strings.Join(said, "")
		lost, doubled, altered := compare(tokens, text, true)
		if got := [3]int{lost, doubled, altered}; got != want && text != strings.Join(tokens, "") {
			// Tokens that look alike may tell another story of the same length of text; never none.
			if lost+doubled+altered == 0 {
				t.Fatalf("prompt %s, %d at %d: nothing found, want %v", prompt, k, at, want)
			}
			if d := lost - doubled - want[0] + want[1]; d > 2 || d < -2 {
				t.Errorf("prompt %s, %d at %d: lost, doubled, altered %v, want %v", prompt, k, at, got, want)
			}
		}
	}
}

// TestCompareEnds cuts and mixes answers anywhere, inside tokens too: each change is found, and in the end it is done.
func TestCompareEnds(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // printed, to be repeated
	for range 3000 {
		prompt, n := fmt.Sprint(rng.Uint64()), 1+rng.IntN(40)
		var tokens []string
		for i := range n {
			tokens = append(tokens, fakecloud.Token("m", prompt, i))
		}
		text := strings.Join(tokens, "")
		a, b, c := rng.IntN(len(text)+1), rng.IntN(len(text)+1), rng.IntN(len(text)+1)
		for _, said := range []string{text[:a], text[a:], text[:a] + text[b:], text[:a] + "?" + text[b:], text[b:] + text[:c], text[:a] + text[b:] + text[c:]} {
			lost, doubled, altered := compare(tokens, said, true)
			if (lost+doubled+altered == 0) != (said == text) {
				t.Fatalf("prompt %s: %d lost, %d doubled, %d altered in %q of %q", prompt, lost, doubled, altered, said, text)
			}
			if lost, doubled, altered = compare(tokens, said, false); (lost+doubled+altered == 0) != strings.HasPrefix(text, said) {
				t.Fatalf("prompt %s, a part: %d lost, %d doubled, %d altered in %q of %q", prompt, lost, doubled, altered, said, text)
			}
		}
	}
}

// TestAskMatchesHosts asks a host everything there is, and finds no fault with its answers.
func TestAskMatchesHosts(t *testing.T) {
	h, err := fakecloud.StartHost(t.Context(), fakecloud.HostConfig{Models: []string{"org/m"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Stop)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // printed, to be repeated
	tr := Traffic{Plain: 0.3, Bound: 0.4, Completions: 0.2, Usage: 0.5, Stop: 0.3, Least: 4, Most: 60}
	c := &caller{base: h.URL() + "/v1", client: newClient(nil)}
	t.Cleanup(c.client.CloseIdleConnections)
	kinds := map[string]int{}
	for i := 0; i < 300 || i < 3000 && len(kinds) < 14; i++ { // the rarest kind is one in sixty
		a := tr.draw(rng, "org/m", "org/m", 1, i)
		kinds[fmt.Sprint(a.Chat, a.Stream, a.Bound)]++
		if v := c.ask(t.Context(), &a, nil).Verdict; v.End != Complete || len(v.Problems) > 0 {
			t.Errorf("%+v: %s %d %s %q", a, v.End, v.Status, v.Code, v.Problems)
		}
	}
	if len(kinds) != 14 {
		t.Errorf("kinds asked: %v", kinds)
	}
}
