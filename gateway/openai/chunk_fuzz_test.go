package openai_test

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"headrace/gateway/openai"
)

// object is a decoded JSON object; a repeated name makes decode give up.
type object = map[string]any

// decode reads one JSON value with encoding/json; ok is false when it is invalid or has repeated names.
func decode(data []byte) (v any, ok bool) {
	if !json.Valid(data) {
		return nil, false
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var value func() (any, bool)
	value = func() (any, bool) {
		token, err := dec.Token()
		if err != nil {
			return nil, false
		}
		switch token {
		case json.Delim('{'):
			o := object{}
			for dec.More() {
				name, _ := dec.Token()
				if _, dup := o[name.(string)]; dup {
					return nil, false
				}
				if o[name.(string)], ok = value(); !ok {
					return nil, false
				}
			}
			_, err = dec.Token()
			return o, err == nil
		case json.Delim('['):
			a := []any{}
			for dec.More() {
				e, ok := value()
				if !ok {
					return nil, false
				}
				a = append(a, e)
			}
			_, err = dec.Token()
			return a, err == nil
		}
		return token, true
	}
	return value()
}

// encode writes v with the members of every object in random order.
func encode(dst []byte, v any, rng *rand.Rand) []byte {
	switch v := v.(type) {
	case object:
		names := make([]string, 0, len(v))
		for name := range v {
			names = append(names, name)
		}
		// Map order is random on its own; sort first so that the seed decides.
		for i := range names {
			for j := i; j > 0 && names[j] < names[j-1]; j-- {
				names[j], names[j-1] = names[j-1], names[j]
			}
		}
		rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		dst = append(dst, '{')
		for i, name := range names {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = openai.AppendString(dst, name)
			dst = encode(append(dst, ':'), v[name], rng)
		}
		return append(dst, '}')
	case []any:
		dst = append(dst, '[')
		for i, e := range v {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = encode(dst, e, rng)
		}
		return append(dst, ']')
	default:
		b, _ := json.Marshal(v)
		return append(dst, b...)
	}
}

// holds is the reference for "holds something".
func holds(v any) bool {
	switch v := v.(type) {
	case nil:
		return false
	case bool:
		return v
	case string:
		return v != ""
	case []any:
		return len(v) > 0
	case object:
		return len(v) > 0
	}
	return true
}

func counted(v any) int64 {
	n, ok := v.(json.Number)
	if !ok || strings.HasPrefix(string(n), "-") {
		return -1
	}
	if i, ok := wholeNumber(string(n)); ok {
		return i
	}
	return -1
}

func statusIn(v any) int {
	s, _ := v.(string)
	if n, ok := v.(json.Number); ok {
		s = string(n)
	}
	if n, err := strconv.Atoi(s); err == nil && len(s) == 3 && n >= 400 && n < 600 {
		return n
	}
	return 0
}

// called is the reference for tool calls.
func called(v any) bool {
	o, _ := v.(object)
	return holds(o["id"]) || holds(o["name"]) || holds(o["arguments"]) || holds(o["input"]) || called2(o["function"]) || called2(o["custom"])
}

func called2(v any) bool {
	o, ok := v.(object)
	return ok && called(o)
}

// referenceChat is Parse for chat chunks and completions without "type", on decoded values.
func referenceChat(top object, name string) chunk {
	c := said(nothing)
	choices, _ := top["choices"].([]any)
	for _, e := range choices {
		choice, _ := e.(object)
		text, _ := choice["text"].(string)
		out := text != ""
		for _, key := range []string{"delta", "message"} {
			d, _ := choice[key].(object)
			out = out || holds(d["content"]) || holds(d["refusal"]) || holds(d["audio"])
			if holds(d["reasoning_content"]) || holds(d["reasoning"]) || holds(d["reasoning_details"]) {
				out, c.Reasoning = true, true
			}
			calls, _ := d["tool_calls"].([]any)
			for _, call := range append(calls, d["function_call"]) {
				if called(call) {
					out, c.ToolCall = true, true
				}
			}
		}
		if out {
			c.Content = true
			c.Outputs++
		}
		if reason, _ := choice["finish_reason"].(string); reason != "" {
			c.Finish, c.FinishReason = true, []byte(reason)
			c.Finishes++
		}
	}
	u, isUsage := top["usage"].(object)
	if isUsage {
		pick := func(names ...string) int64 {
			for _, name := range names {
				if n := counted(u[name]); n >= 0 {
					return n
				}
			}
			return -1
		}
		detail := func(name string, in ...string) int64 {
			for _, key := range in {
				if d, ok := u[key].(object); ok && counted(d[name]) >= 0 {
					return counted(d[name])
				}
			}
			return -1
		}
		c.Usage = openai.Usage{
			Prompt: pick("prompt_tokens"), Completion: pick("completion_tokens"),
			Cached:    detail("cached_tokens", "prompt_tokens_details"),
			Reasoning: detail("reasoning_tokens", "completion_tokens_details"),
		}
		if c.Usage.Prompt < 0 && c.Usage.Completion < 0 {
			c.Usage.Prompt = pick("total_tokens")
		}
		c.HasUsage = c.Usage != openai.NoUsage()
	}
	c.Error = holds(top["error"]) || name == "error" || top["object"] == "error"
	if e, ok := top["error"].(object); ok {
		c.Error = true
		if c.ErrorStatus = statusIn(e["code"]); c.ErrorStatus == 0 {
			c.ErrorStatus = statusIn(e["status"])
		}
	}
	if c.Error && c.ErrorStatus == 0 {
		if c.ErrorStatus = statusIn(top["code"]); c.ErrorStatus == 0 {
			c.ErrorStatus = statusIn(top["status"])
		}
	}
	c.UsageOnly = isUsage && len(choices) == 0 && !c.Error
	return c
}

// mixed says whether usage has names of several shapes at once, which no server sends.
func mixed(top object) bool {
	u, _ := top["usage"].(object)
	for name := range u {
		switch name {
		case "input_tokens", "output_tokens", "input_tokens_details", "output_tokens_details", "prompt_cache_hit_tokens",
			"cache_read_input_tokens", "cache_creation_input_tokens":
			return true
		}
	}
	return false
}

func FuzzChunk(f *testing.F) {
	for _, tc := range chunkTable {
		f.Add([]byte(tc.name), []byte(tc.data))
	}
	f.Fuzz(checkChunk)
}

// checkChunk compares Parse with encoding/json and the reference above.
func checkChunk(t *testing.T, name, data []byte) {
	t.Helper()
	before := bytes.Clone(data)
	var c, body chunk
	c.Parse(name, data)
	body.ParseBody(data)
	if !bytes.Equal(data, before) {
		t.Fatal("the data was changed")
	}
	for _, c := range []chunk{c, body} {
		if c.Content != (c.Outputs > 0) && !(c.Content && reflect.DeepEqual(c, body)) || c.Reasoning && !c.Content || c.ToolCall && !c.Content ||
			c.Finish != (c.FinishReason != nil) || c.Finish != (c.Finishes > 0) || c.UsageOnly && c.Content || c.HasUsage != (c.Usage != openai.NoUsage()) ||
			c.ErrorStatus != 0 && (!c.Error || c.ErrorStatus < 400 || c.ErrorStatus > 599) {
			t.Fatalf("%q %q contradicts itself: %+v", name, data, c)
		}
	}
	if c.TextAt.Present() && string(data[c.TextAt.From:c.TextAt.To]) != `"`+string(c.Text)+`"` || !c.TextAt.Present() && c.Text != nil {
		t.Fatalf("%q: text %q at %v", data, c.Text, c.TextAt)
	}
	p := openai.PieceOf(data)
	if said := data[p.At.From:p.At.To]; (p.Kind != openai.NoPiece) != (len(said) > 1 && said[0] == '"' && said[len(said)-1] == '"') || p.Index < 0 ||
		json.Valid(data) && p.Kind != openai.NoPiece && (!json.Valid(said) || c.Malformed) {
		t.Fatalf("%q: piece %d, %q of %d", data, p.Kind, said, p.Index)
	}
	if bytes.HasPrefix(data, []byte("[DONE]")) || depthOf(data) > 512 {
		return
	}
	if json.Valid(data) {
		trimmed := bytes.TrimLeft(data, " \t\r\n")
		if want := trimmed[0] != '{'; c.Malformed != want || body.Malformed != want {
			t.Fatalf("%q: Malformed is %v and %v, want %v", data, c.Malformed, body.Malformed, want)
		}
	} else if !c.Malformed && !bytes.ContainsAny(data, "NI\x00\x01\x02\x03\x04\x05\x06\x07\x08\t\n\x0b\x0c\r\x0e\x0f"+
		"\x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f") {
		t.Fatalf("%q passes for JSON", data)
	}
	v, ok := decode(data)
	top, isObject := v.(object)
	if !ok || !isObject || mixed(top) || len(name) > 0 && string(name) != "error" {
		return
	}
	if _, typed := top["type"]; typed {
		return
	}
	want := referenceChat(top, string(name))
	if !bytes.Contains(data, []byte(`\`)) && !reflect.DeepEqual(c.FinishReason, want.FinishReason) &&
		string(c.FinishReason) != string(want.FinishReason) && strings.ToValidUTF8(string(c.FinishReason), "") == string(c.FinishReason) {
		t.Fatalf("%q: finish reason %q, want %q", data, c.FinishReason, want.FinishReason)
	}
	c.FinishReason, want.FinishReason = nil, nil // raw in one, decoded in the other
	if c = coarse(c); !reflect.DeepEqual(c, want) {
		t.Fatalf("%q %q:\n got %+v\nwant %+v", name, data, c, want)
	}
}
