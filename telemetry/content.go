package telemetry

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"sync"

	"headrace/gateway/ledger"
)

// What was said, in the shape of OpenTelemetry's GenAI conventions: a JSON text of messages, each a role and parts. It is made of the
// bodies that a request's record carries, behind the queue of the exporter: nobody waits for it.
const (
	keyInput        = "gen_ai.input.messages"
	keyOutput       = "gen_ai.output.messages"
	keyInstructions = "gen_ai.system_instructions"
	keyContentCut   = "headrace.content.cut"
)

// saidMost bounds what was said that waits to be sent, and so a batch of it: servers of gRPC take 4 MiB unless told otherwise. Of more, spans
// say that it is missing.
const saidMost = 3 << 20

func said(s *ledger.Said) int64 { return int64(len(s.Asked) + len(s.Answered)) }

// hold returns s if there is room for it. The queue's mutex is held: one goroutine at a time.
func (e *Export) hold(s *ledger.Said) *ledger.Said {
	if s == nil {
		return nil
	}
	if n := said(s); e.said.Load()+n <= saidMost {
		e.said.Add(n)
		return s
	}
	return &ledger.Said{Cut: true}
}

func (e *Export) letGo(s *ledger.Said) {
	if s != nil {
		e.said.Add(-said(s))
	}
}

type message struct {
	Role   string `json:"role"`
	Parts  []part `json:"parts"`
	Finish string `json:"finish_reason,omitempty"`
}

type part struct {
	Type      string `json:"type"` // text, reasoning, tool_call, tool_call_response, or what the request called it, of which nothing else is kept
	Content   string `json:"content,omitempty"`
	ID        string `json:"id,omitempty"`
	Name      string `json:"name,omitempty"`
	Arguments string `json:"arguments,omitempty"`
	Response  string `json:"response,omitempty"`
}

// said puts what r's caller and model have said into the attributes.
func (a *attrs) said(r *ledger.Record) {
	var ask asked
	_ = json.Unmarshal(r.Said.Asked, &ask) // it was read before; what has another type than is usual is left out
	a.messages(keyInput, ask.messages())
	if parts := parts(ask.System, ask.Instructions); len(parts) > 0 {
		a.text(keyInstructions, encode(parts))
	}
	a.messages(keyOutput, answered(r.Said.Answered))
	if r.Said.Cut {
		a.flag(keyContentCut, true)
	}
}

func (a *attrs) messages(key string, ms []message) {
	if len(ms) > 0 {
		a.text(key, encode(ms))
	}
}

func encode(v any) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if e.Encode(v) != nil {
		return ""
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// asked is what there is to read in a request's body: Chat Completions, Completions, Responses, Anthropic's Messages, embeddings.
type asked struct {
	Messages     json.RawMessage `json:"messages"`
	Prompt       json.RawMessage `json:"prompt"`
	Input        json.RawMessage `json:"input"`
	System       json.RawMessage `json:"system"`
	Instructions json.RawMessage `json:"instructions"`
}

func (k *asked) messages() (ms []message) {
	for _, raw := range []json.RawMessage{k.Messages, k.Input} {
		var list []turn
		if json.Unmarshal(raw, &list) == nil {
			for i := range list {
				if m := list[i].message(); len(m.Parts) > 0 {
					ms = append(ms, m)
				}
			}
		}
	}
	if len(ms) == 0 {
		if ps := parts(k.Prompt, k.Input); len(ps) > 0 {
			ms = append(ms, message{Role: "user", Parts: ps})
		}
	}
	return ms
}

// turn is a message as APIs write it, or an item of the Responses API.
type turn struct {
	Role       string          `json:"role"`
	Type       string          `json:"type"`
	Content    json.RawMessage `json:"content"`
	Text       string          `json:"text"`
	Reasoning  string          `json:"reasoning_content"`
	ToolCalls  []call          `json:"tool_calls"`
	ToolCallID string          `json:"tool_call_id"`
	CallID     string          `json:"call_id"`
	Name       string          `json:"name"`
	Arguments  string          `json:"arguments"`
	Output     json.RawMessage `json:"output"`
}

type call struct {
	Index    int    `json:"index"`
	ID       string `json:"id"`
	Function struct {
		Name      string `json:"name"`
		Arguments string `json:"arguments"`
	} `json:"function"`
}

func (t *turn) message() message {
	m := message{Role: t.Role}
	switch {
	case t.Type == "function_call":
		m.Role = "assistant"
		m.Parts = []part{{Type: "tool_call", ID: t.CallID, Name: t.Name, Arguments: redact(t.Arguments)}}
		return m
	case t.Type == "function_call_output":
		m.Role = "tool"
		m.Parts = []part{{Type: "tool_call_response", ID: t.CallID, Response: joined(parts(t.Output))}}
		return m
	case t.Role == "":
		return message{}
	}
	if t.Reasoning != "" {
		m.Parts = append(m.Parts, part{Type: "reasoning", Content: redact(t.Reasoning)})
	}
	if said := parts(t.Content); t.Role == "tool" {
		m.Parts = append(m.Parts, part{Type: "tool_call_response", ID: t.ToolCallID, Response: joined(said)})
	} else {
		m.Parts = append(m.Parts, said...)
	}
	for _, c := range t.ToolCalls {
		m.Parts = append(m.Parts, part{Type: "tool_call", ID: c.ID, Name: c.Function.Name, Arguments: redact(c.Function.Arguments)})
	}
	return m
}

func joined(ps []part) string {
	texts := make([]string, 0, len(ps))
	for _, p := range ps {
		texts = append(texts, p.Content)
	}
	return strings.Join(texts, "\n")
}

// parts reads contents: a text, texts, or objects with a type. Of what is no text only the type is kept.
func parts(raws ...json.RawMessage) (ps []part) {
	for _, raw := range raws {
		var text string
		var texts []string
		var objects []struct{ Type, Text, Thinking, Refusal string }
		switch {
		case json.Unmarshal(raw, &text) == nil:
			if text != "" {
				ps = append(ps, part{Type: "text", Content: redact(text)})
			}
		case json.Unmarshal(raw, &texts) == nil:
			for _, t := range texts {
				ps = append(ps, part{Type: "text", Content: redact(t)})
			}
		case json.Unmarshal(raw, &objects) == nil:
			for _, o := range objects {
				p := part{Type: o.Type}
				switch {
				case o.Thinking != "":
					p = part{Type: "reasoning", Content: redact(o.Thinking)}
				case o.Text != "" || o.Refusal != "":
					p = part{Type: "text", Content: redact(o.Text + o.Refusal)}
				}
				if p.Type != "" {
					ps = append(ps, p)
				}
			}
		}
	}
	return ps
}

// event is what there is to read in an event's data, or in an answer in one piece, of all these APIs.
type event struct {
	Choices []struct {
		Index   int    `json:"index"`
		Delta   *turn  `json:"delta"`
		Message *turn  `json:"message"`
		Text    string `json:"text"`
		Finish  string `json:"finish_reason"`
	} `json:"choices"`
	Type    string          `json:"type"`
	Delta   json.RawMessage `json:"delta"`
	Output  []turn          `json:"output"`
	Content json.RawMessage `json:"content"`
	Role    string          `json:"role"`
	Stop    string          `json:"stop_reason"`
}

// answered puts together what data, events or a whole answer, say: one message of each choice.
func answered(data []byte) []message {
	var all choices
	d := json.NewDecoder(bytes.NewReader(data))
	for {
		var e event
		if err := d.Decode(&e); err != nil { // the end, or "[DONE]", or nonsense, behind which nothing follows that could be read
			if _, odd := err.(*json.UnmarshalTypeError); odd { //nolint:errorlint // the decoder's own, unwrapped; what is of its type was read
				continue
			}
			break
		}
		all.take(&e)
	}
	ms := make([]message, 0, len(all))
	for _, c := range all {
		if m := c.message(); len(m.Parts) > 0 {
			ms = append(ms, m)
		}
	}
	return ms
}

// choice is one of an answer's, as it is put together.
type choice struct {
	index           int
	text, reasoning strings.Builder
	calls           []call
	finish          string
}

type choices []*choice

// at returns the choice of that index; the list stays in order.
func (cs *choices) at(index int) *choice {
	i, found := slices.BinarySearchFunc(*cs, index, func(c *choice, index int) int { return c.index - index })
	if !found {
		*cs = slices.Insert(*cs, i, &choice{index: index})
	}
	return (*cs)[i]
}

func (cs *choices) take(e *event) {
	for i := range e.Choices {
		given := &e.Choices[i]
		c := cs.at(given.Index)
		c.text.WriteString(given.Text)
		for _, t := range []*turn{given.Delta, given.Message} {
			if t != nil {
				c.take(t)
			}
		}
		if given.Finish != "" {
			c.finish = given.Finish
		}
	}
	switch {
	case strings.HasSuffix(e.Type, "output_text.delta"), strings.HasSuffix(e.Type, "refusal.delta"):
		var s string
		if json.Unmarshal(e.Delta, &s) == nil {
			cs.at(0).text.WriteString(s)
		}
	case strings.HasPrefix(e.Type, "response.reasoning") && strings.HasSuffix(e.Type, ".delta"):
		var s string
		if json.Unmarshal(e.Delta, &s) == nil {
			cs.at(0).reasoning.WriteString(s)
		}
	case e.Type == "content_block_delta":
		var d struct{ Text, Thinking string }
		if json.Unmarshal(e.Delta, &d) == nil {
			cs.at(0).text.WriteString(d.Text)
			cs.at(0).reasoning.WriteString(d.Thinking)
		}
	case e.Type == "message" && e.Role != "":
		cs.at(0).take(&turn{Role: e.Role, Content: e.Content})
		cs.at(0).finish = e.Stop
	}
	for i := range e.Output {
		if t := &e.Output[i]; t.Type == "function_call" {
			c := call{ID: t.CallID, Index: len(cs.at(0).calls)}
			c.Function.Name, c.Function.Arguments = t.Name, t.Arguments
			cs.at(0).calls = append(cs.at(0).calls, c)
		} else {
			cs.at(0).take(t)
		}
	}
}

// take adds a message, or a piece of one.
func (c *choice) take(t *turn) {
	var text string
	if json.Unmarshal(t.Content, &text) == nil {
		c.text.WriteString(text)
	} else {
		for _, p := range parts(t.Content) {
			if p.Type == "reasoning" {
				c.reasoning.WriteString(p.Content)
			} else {
				c.text.WriteString(p.Content)
			}
		}
	}
	c.reasoning.WriteString(t.Reasoning)
	for _, k := range t.ToolCalls {
		i := slices.IndexFunc(c.calls, func(o call) bool { return o.Index == k.Index && (k.ID == "" || o.ID == k.ID) })
		if i < 0 {
			c.calls = append(c.calls, k)
			continue
		}
		c.calls[i].Function.Name += k.Function.Name
		c.calls[i].Function.Arguments += k.Function.Arguments
	}
}

func (c *choice) message() message {
	m := message{Role: "assistant", Finish: c.finish}
	if c.reasoning.Len() > 0 {
		m.Parts = append(m.Parts, part{Type: "reasoning", Content: redact(c.reasoning.String())})
	}
	if c.text.Len() > 0 {
		m.Parts = append(m.Parts, part{Type: "text", Content: redact(c.text.String())})
	}
	for _, k := range c.calls {
		m.Parts = append(m.Parts, part{Type: "tool_call", ID: k.ID, Name: k.Function.Name, Arguments: redact(k.Function.Arguments)})
	}
	return m
}

// keyLike finds what looks like a credential: tokens with the prefixes that vendors give theirs, bearers, AWS key ids, private keys and
// JSON web tokens. What is spelled otherwise stays: this is a net, and no promise.
var keyLike = sync.OnceValue(func() *regexp.Regexp { //nolint:gochecknoglobals // a table, made when it is needed
	return regexp.MustCompile(`(?i:\bbearer\s+)[\w.~+/=-]{8,}` +
		`|\b(?:sk|pk|rk|rpa|hr|hf|gsk|xai|ghp|gho|ghs|github_pat|glpat|xox[abprs])[-_][\w-]{12,}` +
		`|\bAKIA[0-9A-Z]{16}\b|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+` +
		`|-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(?:-----END [A-Z ]*PRIVATE KEY-----)?`)
})

const redacted = "[redacted]"

// redact takes what looks like a credential out of a text.
func redact(s string) string { return keyLike().ReplaceAllLiteralString(s, redacted) }
