// Package chaos breaks a fleet of fake hosts under load and checks every token that callers get meanwhile. The hosts'
// answers are known beforehand (package fakecloud), so that a lost, doubled or altered token is always found.
package chaos

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"

	"headrace/providers/fakecloud"
)

// Bound is why an answer must not be continued on another host.
type Bound string

// Bounds. Free is none.
const (
	Free     Bound = ""
	Tools    Bound = "tools"
	Format   Bound = "response_format"
	Choices  Bound = "n"
	Logprobs Bound = "logprobs"
	Seed     Bound = "seed"
)

var bounds = [...]Bound{Tools, Format, Choices, Logprobs, Seed}

// Ask is one request of a caller, and with it all that its answer has to be.
type Ask struct {
	Chat      bool // else a completion
	Stream    bool
	Usage     bool   // stream_options.include_usage
	Model     string // as the caller names it
	Served    string // as hosts know it; it decides what they answer
	System    string // of a chat, "" for none
	Prompt    string
	MaxTokens int    // 0 for none
	Stop      string // "" for none
	Bound     Bound
}

// Path is where the request goes, below /v1.
func (a *Ask) Path() string {
	if a.Chat {
		return "/chat/completions"
	}
	return "/completions"
}

// Body is the request's JSON.
func (a *Ask) Body() []byte {
	m := map[string]any{"model": a.Model}
	if a.Stream {
		m["stream"] = true
	}
	if a.Usage {
		m["stream_options"] = map[string]bool{"include_usage": true}
	}
	if a.MaxTokens > 0 {
		m["max_tokens"] = a.MaxTokens
	}
	if a.Stop != "" {
		m["stop"] = []string{a.Stop}
	}
	if a.Chat {
		var ms []map[string]string
		if a.System != "" {
			ms = append(ms, map[string]string{"role": "system", "content": a.System})
		}
		m["messages"] = append(ms, map[string]string{"role": "user", "content": a.Prompt})
	} else {
		m["prompt"] = a.Prompt
	}
	switch a.Bound {
	case Tools:
		m["tools"] = []any{map[string]any{"type": "function", "function": map[string]any{
			"name": "level", "description": "Level of a river.", "parameters": map[string]any{
				"type": "object", "properties": map[string]any{"river": map[string]string{"type": "string"}},
			},
		}}}
	case Format:
		m["response_format"] = map[string]string{"type": "json_object"}
	case Choices:
		m["n"] = 2
	case Logprobs:
		m["logprobs"] = true
	case Seed:
		m["seed"] = 7
	case Free:
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic("BUG: a request that is no JSON: " + err.Error())
	}
	return b
}

// whole is the prompt as hosts see it.
func (a *Ask) whole() string {
	if a.System == "" {
		return a.Prompt
	}
	return a.System + "\n" + a.Prompt
}

// meant is what one choice has to say.
type meant struct {
	tokens []string
	finish string
	counts int // tokens in usage; more than have a text where a stop string was met
}

// meant lists the choices in order.
func (a *Ask) meant() []meant {
	n := 1
	if a.Bound == Choices {
		n = 2
	}
	list := make([]meant, n)
	for i := range list {
		list[i] = a.choice(i)
	}
	return list
}

func (a *Ask) choice(i int) (m meant) {
	prompt := fakecloud.Choice(a.whole(), i)
	if a.Bound == Format {
		m.tokens, m.finish = inFours(object(a.Served, prompt)), "stop"
		m.counts = len(m.tokens)
		return m
	}
	n := a.MaxTokens
	m.finish = "length"
	if n == 0 {
		n, m.finish = fakecloud.AnswerTokens(a.Served, prompt), "stop"
	}
	for k := range n {
		m.tokens = append(m.tokens, fakecloud.Token(a.Served, prompt, k))
	}
	m.counts = n
	if a.Stop != "" {
		m.cut(a.Stop)
	}
	return m
}

// cut ends m before the first stop.
func (m *meant) cut(stop string) {
	at := strings.Index(strings.Join(m.tokens, ""), stop)
	if at < 0 {
		return
	}
	m.finish = "stop"
	from := 0
	var kept []string
	for i, t := range m.tokens {
		if from < at {
			kept = append(kept, t[:min(len(t), at-from)])
		}
		if from += len(t); from >= at+len(stop) {
			m.counts = i + 1
			break
		}
	}
	m.tokens = kept
}

// object is the answer to a request for a JSON object, as the fake hosts write it.
func object(served, prompt string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(map[string]any{"answer": fakecloud.Answer(served, prompt, 4), "tokens": fakecloud.AnswerTokens(served, prompt)}); err != nil {
		panic("BUG: an object that is no JSON: " + err.Error())
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// inFours cuts text into tokens of four characters.
func inFours(text string) (ts []string) {
	for rest := []rune(text); len(rest) > 0; {
		n := min(4, len(rest))
		ts = append(ts, string(rest[:n]))
		rest = rest[n:]
	}
	return ts
}

// Traffic is what callers ask for. Shares are of all requests, in [0,1].
type Traffic struct {
	Plain       float64 // that are no streams
	Bound       float64 // that must not be continued
	Completions float64 // that are no chats
	Usage       float64 // of the streams: that ask for usage
	Stop        float64 // that have a stop string
	Least, Most int     // tokens asked for
}

// draw makes request n of a caller. The same seed of rng draws the same.
func (t *Traffic) draw(rng *rand.Rand, model, served string, caller, n int) Ask {
	a := Ask{
		Chat: rng.Float64() >= t.Completions, Stream: rng.Float64() >= t.Plain, Model: model, Served: served,
		MaxTokens: t.Least + rng.IntN(t.Most-t.Least+1),
	}
	usage, bound, stop, which, at := rng.Float64() < t.Usage, rng.Float64() < t.Bound, rng.Float64() < t.Stop, rng.IntN(len(bounds)), rng.Float64()
	a.Usage = usage && a.Stream
	a.Prompt = fmt.Sprintf("Question %d of caller %d: what did the %s say?", n, caller, [...]string{"miller", "river", "wheel", "heron"}[rng.IntN(4)])
	if rng.IntN(2) == 0 && a.Chat {
		a.System = "Answer in the words of a water wheel."
	}
	if !a.Chat {
		a.Prompt = "Q: " + a.Prompt + "\nA:"
	}
	switch {
	case bound && a.Chat:
		if a.Bound = bounds[which]; a.Bound == Format {
			a.MaxTokens = 0 // half an object is no use
		}
	case stop && a.MaxTokens > 8:
		k := 4 + int(at*float64(a.MaxTokens-6))
		a.Stop = fakecloud.Token(served, a.whole(), k) + fakecloud.Token(served, a.whole(), k+1)
	}
	return a
}
