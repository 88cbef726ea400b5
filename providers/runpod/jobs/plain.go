package jobs

import (
	"bytes"
	"cmp"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// maxPlain bounds a plain answer, in bytes.
const maxPlain = 64 << 20

// plain gathers the yields of one job for a caller who wants one JSON answer.
type plain struct {
	a     *asked
	kinds kinds
	cuts  cuts
	texts []byte
	objs  []object
	size  int
}

// add takes one yield.
func (p *plain) add(v json.RawMessage) *failure { return walk(v, 0, p, &p.kinds) }

// reset forgets all yields.
func (p *plain) reset() { p.texts, p.objs, p.size = nil, nil, 0 }

func (p *plain) text(raw json.RawMessage) *failure {
	from := len(p.texts)
	p.texts = unquote(p.texts, raw)
	p.cuts.piece(p.texts[from:])
	return p.grow(len(raw))
}

func (p *plain) object(o object, _ kind) *failure {
	p.objs = append(p.objs, o)
	return p.grow(len(o.raw))
}

func (p *plain) grow(n int) *failure {
	if p.size += n; p.size > maxPlain {
		return &failure{status: http.StatusBadGateway, code: "bad_answer", message: "The worker's answer is too large."}
	}
	return nil
}

// answer is the one answer that the yields make.
func (p *plain) answer() ([]byte, *failure) {
	if f := p.read(p.texts, 0); f != nil {
		return nil, f
	}
	if len(p.objs) == 0 {
		return nil, noAnswer(p.texts)
	}
	last := &p.objs[len(p.objs)-1]
	if p.a.kind == routeOther {
		return p.other(last)
	}
	if len(p.objs) == 1 && len(last.Choices) > 0 && (last.Choices[0].Message != nil || p.a.kind == routeCompletions && last.Choices[0].Text != nil) {
		return last.raw, nil // as the engine wrote it
	}
	for i := range p.objs {
		if o := &p.objs[i]; o.Choices == nil {
			return nil, noAnswer(o.raw)
		}
	}
	return p.a.merge(p.objs)
}

// other is the answer of a route whose form is not looked into.
func (p *plain) other(last *object) ([]byte, *failure) {
	if _, k := parseObject(last.raw); k != kindEvent {
		return last.raw, nil
	}
	var end struct { // the last event of a stream of Responses holds the whole
		Response json.RawMessage `json:"response"`
	}
	if json.Unmarshal(last.raw, &end) == nil && end.Response != nil {
		return end.Response, nil
	}
	return nil, noAnswer(last.raw)
}

// read takes the objects out of text: JSON, JSON in a JSON string, or a stream of events.
func (p *plain) read(text []byte, depth int) *failure {
	text = bytes.TrimSpace(text)
	switch {
	case len(text) == 0 || depth > maxDepth:
		return nil
	case !json.Valid(text):
		return p.events(text)
	case text[0] == '"':
		return p.read(unquote(nil, text), depth+1)
	}
	return walk(text, depth+1, p, &p.kinds)
}

// events takes the objects out of an event stream.
func (p *plain) events(text []byte) *failure {
	var event []byte
	take := func() *failure {
		d := bytes.TrimSpace(data(event))
		event = event[:0]
		if len(d) == 0 || d[0] != '{' {
			return nil
		}
		if !json.Valid(d) {
			return noAnswer(d)
		}
		return walk(d, 1, p, &p.kinds)
	}
	for line := range bytes.Lines(bytes.ReplaceAll(bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n")), []byte("\r"), []byte("\n"))) {
		if len(bytes.TrimSpace(line)) > 0 {
			event = append(event, line...)
			continue
		}
		if f := take(); f != nil {
			return f
		}
	}
	return take()
}

// merge puts the whole answer together from chunks, or from worker-vllm's own form.
func (a *asked) merge(objs []object) ([]byte, *failure) {
	m := a.new(false)
	choices := map[int]*merged{}
	of := func(i int) *merged {
		if choices[i] == nil {
			choices[i] = &merged{text: map[string]*strings.Builder{}, rest: map[string]json.RawMessage{}, logs: map[string][]json.RawMessage{}}
		}
		return choices[i]
	}
	var native *nativeUsage
	for i := range objs {
		o := &objs[i]
		m.ID, m.Created, m.Model = cmp.Or(o.ID, m.ID), cmp.Or(o.Created, m.Created), cmp.Or(o.Model, m.Model)
		tokens := false
		for j := range o.Choices {
			c := &o.Choices[j]
			if c.Tokens != nil {
				tokens = true
				of(j).add("content", joined(c.Tokens))
				continue
			}
			of(c.Index).take(c)
		}
		switch {
		case tokens:
			native = cmp.Or(native, &nativeUsage{})
			native.take(o.Usage)
		case truthy(o.Usage):
			m.Usage = o.Usage
		}
	}
	if len(choices) == 0 {
		return nil, noAnswer(nil)
	}
	if native != nil && native.told {
		m.Usage = native.openAI()
	}
	if native != nil && len(choices) < a.n {
		return nil, tooFew(len(choices), a.n)
	}
	for _, i := range slices.Sorted(maps.Keys(choices)) {
		c := choices[i]
		if native != nil && c.finish == nil {
			c.finish = a.finishOf(*native)
		}
		m.Choices = append(m.Choices, c.choice(i, a.kind))
	}
	return encode(m), nil
}

// merged is one choice, as far as it was read.
type merged struct {
	text   map[string]*strings.Builder // content, reasoning_content and the like, by name; "content" holds the text of completions too
	rest   map[string]json.RawMessage
	calls  []*call
	logs   map[string][]json.RawMessage
	finish json.RawMessage
	stop   json.RawMessage
}

// call is a tool call.
type call struct {
	Index    *int   `json:"index,omitempty"`
	ID       string `json:"id"`
	Type     string `json:"type"`
	Function struct {
		Name      string `json:"name"`
		Arguments string `json:"arguments"`
	} `json:"function"`
}

func (c *merged) add(name, s string) {
	if c.text[name] == nil {
		c.text[name] = &strings.Builder{}
	}
	c.text[name].WriteString(s)
}

func (c *merged) take(in *choice) {
	if in.Text != nil {
		c.add("content", *in.Text)
	}
	part := in.Delta
	if part == nil {
		part = in.Message
	}
	var fields map[string]json.RawMessage
	_ = json.Unmarshal(part, &fields)
	for name, v := range fields {
		switch {
		case name == "tool_calls":
			c.toolCalls(v)
		case name == "role" || v[0] != '"':
			if string(v) != "null" || c.rest[name] == nil {
				c.rest[name] = v
			}
		default:
			c.add(name, word(v))
		}
	}
	var logs map[string][]json.RawMessage
	if json.Unmarshal(in.Logprobs, &logs) == nil {
		for name, list := range logs {
			c.logs[name] = append(c.logs[name], list...)
		}
	}
	if truthy(in.FinishReason) {
		c.finish, c.stop = in.FinishReason, in.StopReason
	}
}

func (c *merged) toolCalls(v json.RawMessage) {
	var list []call
	_ = json.Unmarshal(v, &list)
	for i, in := range list {
		at := i
		if in.Index != nil {
			at = *in.Index
		}
		if at < 0 || at > 1<<10 {
			continue
		}
		for len(c.calls) <= at {
			c.calls = append(c.calls, &call{Type: "function"})
		}
		to := c.calls[at]
		to.ID, to.Type = cmp.Or(in.ID, to.ID), cmp.Or(in.Type, to.Type)
		to.Function.Name += in.Function.Name
		to.Function.Arguments += in.Function.Arguments
	}
}

// choice is c in the form of the route.
func (c *merged) choice(index int, kind routeKind) madeChoice {
	out := madeChoice{Index: index, FinishReason: c.finish, StopReason: c.stop}
	if len(c.logs) > 0 {
		out.Logprobs = encode(c.logs)
	}
	if kind == routeCompletions {
		text := ""
		if b := c.text["content"]; b != nil {
			text = b.String()
		}
		out.Text = &text
		return out
	}
	message := map[string]any{"role": "assistant", "content": nil}
	for name, v := range c.rest {
		message[name] = v
	}
	for name, b := range c.text {
		message[name] = b.String()
	}
	if len(c.calls) > 0 {
		message["tool_calls"] = c.calls
		if message["content"] == "" {
			message["content"] = nil
		}
	}
	out.Message = message
	return out
}

// streamed is a message as the delta of a stream: its tool calls carry their places.
func streamed(message json.RawMessage) any {
	var fields map[string]json.RawMessage
	var calls []map[string]any
	if json.Unmarshal(message, &fields) != nil || json.Unmarshal(fields["tool_calls"], &calls) != nil || len(calls) == 0 {
		return message
	}
	for i, c := range calls {
		c["index"] = i
	}
	fields["tool_calls"] = encode(calls)
	return fields
}

func joined(tokens []string) string { return strings.Join(tokens, "") }
