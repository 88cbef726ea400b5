package openai_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// texts makes random JSON out of the names and values that this package looks for. It reaches
// combinations that random bytes never do.
type texts struct {
	*rand.Rand
	names, values []string
}

func (g texts) pick(from []string) string { return from[g.IntN(len(from))] }

// space is white space, now and then.
func (g texts) space() string {
	if g.IntN(8) > 0 {
		return ""
	}
	return g.pick([]string{" ", "\n", "\t", "\r\n  "})
}

// name writes a name, now and then with an escape in it.
func (g texts) name() string {
	name := g.pick(g.names)
	if i := g.IntN(8 * (len(name) + 1)); i < len(name) {
		name = name[:i] + fmt.Sprintf(`\u%04x`, name[i]) + name[i+1:]
	}
	return `"` + name + `"`
}

func (g texts) object(depth int) string {
	s := "{" + g.space()
	for i := range g.IntN(7) {
		if i > 0 {
			s += "," + g.space()
		}
		s += g.name() + g.space() + ":" + g.space() + g.value(depth-1) + g.space()
	}
	return s + "}"
}

func (g texts) value(depth int) string {
	switch n := g.IntN(10); {
	case n < 3 && depth > 0:
		return g.object(depth)
	case n < 5 && depth > 0:
		s := "[" + g.space()
		for i := range g.IntN(3) {
			if i > 0 {
				s += ","
			}
			s += g.value(depth - 1)
		}
		return s + "]"
	}
	return g.pick(g.values)
}

var someValues = []string{
	`null`, `true`, `false`, `0`, `1`, `400`, `503`, `12.0`, `-3`, `1e2`, `0.5`, `""`, `"x"`, `"text"`, `"none"`, `"error"`, `"stop"`, `"429"`,
	`"\"content\":\"x\""`, `"\\"`, `"\u00e9\ud83d\ude00"`, `"a longer text that spans several words"`, `{}`, `[]`, `[ ]`, `{ }`,
}

func TestRandomRequests(t *testing.T) {
	const seed = 20
	g := texts{rand.New(rand.NewPCG(seed, seed)), []string{
		"model", "stream", "stream_options", "include_usage", "max_tokens", "max_completion_tokens", "max_output_tokens", "n", "user",
		"messages", "prompt", "input", "query", "documents", "system", "tools", "tool_choice", "response_format", "type", "text", "format",
		"logprobs", "seed", "stop", "temperature", "a", "b", "c", "d", "e", "f", "g", "h", "",
	}, someValues}
	accepted := 0
	for range 2_000 {
		body := []byte(g.space() + g.object(3) + g.space())
		if g.IntN(10) == 0 {
			body = body[:g.IntN(len(body)+1)]
		}
		checkScan(t, body)
		checkParts(t, body, "new", g.IntN(4) > 0, g.IntN(4) > 0, g.IntN(4) == 0)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
		var r request
		if r.Scan(body) == nil {
			accepted++
		}
	}
	if accepted < 600 {
		t.Errorf("only %d of 2000 bodies were accepted: the test tests little", accepted)
	}
}

func TestRandomChunks(t *testing.T) {
	const seed = 21
	g := texts{rand.New(rand.NewPCG(seed, seed)), []string{
		"choices", "delta", "message", "content", "text", "finish_reason", "reasoning", "reasoning_content", "refusal", "audio", "tool_calls",
		"function_call", "function", "custom", "id", "name", "arguments", "input", "usage", "prompt_tokens", "completion_tokens", "total_tokens",
		"prompt_tokens_details", "completion_tokens_details", "cached_tokens", "reasoning_tokens", "error", "code", "status", "object", "index", "logprobs",
	}, someValues}
	contents, usages := 0, 0
	for range 2_000 {
		// Free objects seldom have the shape of a chunk, so half of them are given one.
		data := g.object(4)
		if g.IntN(2) == 0 {
			data = fmt.Sprintf(`{"choices":[{%s:%s,"delta":%s,"finish_reason":%s},%s],"usage":%s,%s:%s}`, g.name(), g.value(3),
				g.object(4), g.value(1), g.object(2), g.object(2), g.name(), g.value(2))
		}
		if g.IntN(20) == 0 {
			data = data[:g.IntN(len(data)+1)]
		}
		name := ""
		if g.IntN(10) == 0 {
			name = "error"
		}
		checkChunk(t, []byte(name), []byte(data))
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
		var c chunk
		if c.Parse(nil, []byte(data)); c.Content {
			contents++
		}
		if c.HasUsage {
			usages++
		}
	}
	if contents < 200 || usages < 20 {
		t.Errorf("%d chunks had content and %d usage: the test tests little", contents, usages)
	}
}
