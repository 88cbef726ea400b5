package telemetry

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"regexp"
	"slices"
	"strings"
	"sync"

	"headrace/gateway/ledger"
	"headrace/router/outcome"
)

// What was said, in the shape of OpenTelemetry's GenAI conventions: a JSON text of messages, each a role and parts. It is made of the
// bodies that a request's record carries, behind the queue of the exporter: nobody waits for it.
const (
	keyInput        = "gen_ai.input.messages"
	keyOutput       = "gen_ai.output.messages"
	keyInstructions = "gen_ai.system_instructions"
	keyTools        = "gen_ai.tool.definitions"
	keyContentCut   = "headrace.content.cut"
)

// saidMost bounds what was said that waits to be sent, and so a batch of it: servers of gRPC take 4 MiB unless told otherwise. Of more, spans
// say that it is missing.
const saidMost = 3 << 20

func said(s *ledger.Said) int64 { return int64(cap(s.Asked) + cap(s.Answered)) }

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
	Finish string `json:"finish_reason,omitempty"` // of all answers
}

type part struct {
	Type      string          `json:"type"` // text, reasoning, tool_call, tool_call_response, or what the request called it, of which nothing else is kept
	Content   string          `json:"content,omitempty"`
	ID        string          `json:"id,omitempty"`
	Name      string          `json:"name,omitempty"`
	Arguments json.RawMessage `json:"arguments,omitempty"`
	Response  *string         `json:"response,omitempty"` // of all tool_call_response
}

// said puts what r's caller and model have said into the attributes, as far as the batch has room.
func (s *spanner) said(a *attrs, r *ledger.Record) {
	var ask asked
	_ = json.Unmarshal(r.Said.Asked, &ask) // it was read before; what has another type than is usual is left out
	missing := r.Said.Missing()
	put := func(key, text string) {
		if len(text) > s.left {
			missing = true
			return
		}
		s.left -= len(text)
		a.text(key, text)
	}
	put(keyInput, messages(ask.messages()))
	if ps := parts(ask.System, ask.Instructions); len(ps) > 0 {
		put(keyInstructions, encode(ps))
	}
	put(keyOutput, messages(answered(r.Said.Answered, r)))
	if ds := definitions(ask.Tools, ask.Functions); len(ds) > 0 { // last: they are long, and the same in every request of an agent
		put(keyTools, encode(ds))
	}
	if missing {
		a.flag(keyContentCut, true)
	}
}

func messages(ms []message) string {
	if len(ms) == 0 {
		return ""
	}
	return encode(ms)
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
	Tools        json.RawMessage `json:"tools"`
	Functions    json.RawMessage `json:"functions"` // as Chat Completions had them before tools
}

func (k *asked) messages() (ms []message) {
	for _, raw := range []json.RawMessage{k.Messages, k.Input} {
		var list []json.RawMessage
		_ = json.Unmarshal(raw, &list) // else it is none
		for _, item := range list {
			var t turn
			if readable(item, &t) {
				if m := t.message(); len(m.Parts) > 0 {
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

// readable reads an object into v, but for members of another type than is usual, and says whether it is one.
func readable(raw json.RawMessage, v any) bool {
	if kind(raw) != '{' {
		return false
	}
	err := json.Unmarshal(raw, v)
	if _, odd := errors.AsType[*json.UnmarshalTypeError](err); odd {
		return true
	}
	return err == nil
}

// kind is the first byte of a JSON text, 0 if there is none.
func kind(raw json.RawMessage) byte {
	if raw = bytes.TrimSpace(raw); len(raw) > 0 {
		return raw[0]
	}
	return 0
}

// loose is a text, or the JSON of what stands in its place.
type loose string

// UnmarshalJSON takes all there is but null.
func (l *loose) UnmarshalJSON(raw []byte) error {
	switch kind(raw) {
	case '"':
		return json.Unmarshal(raw, (*string)(l))
	case 'n':
	default:
		*l = loose(raw)
	}
	return nil
}

// turn is a message as APIs write it, or an item of the Responses API.
type turn struct {
	Role       string          `json:"role"`
	Type       string          `json:"type"`
	Content    json.RawMessage `json:"content"`
	Reasoning  loose           `json:"reasoning_content"`
	Reasoned   loose           `json:"reasoning"` // its newer name
	Refusal    loose           `json:"refusal"`
	ToolCalls  []call          `json:"tool_calls"`
	ToolCallID string          `json:"tool_call_id"`
	CallID     string          `json:"call_id"`
	Name       string          `json:"name"`
	Arguments  loose           `json:"arguments"`
	Output     json.RawMessage `json:"output"`
}

func (t *turn) reasoning() string { return string(cmp.Or(t.Reasoning, t.Reasoned)) }

type call struct {
	Index    int    `json:"index"`
	ID       string `json:"id"`
	Function struct {
		Name      string `json:"name"`
		Arguments loose  `json:"arguments"`
	} `json:"function"`
}

func (t *turn) message() message {
	m := message{Role: t.Role}
	switch {
	case t.Type == "function_call":
		m.Role = "assistant"
		m.Parts = []part{toolCall(t.CallID, t.Name, string(t.Arguments))}
		return m
	case t.Type == "function_call_output":
		m.Role = "tool"
		m.Parts = []part{toolResponse(t.CallID, t.Output)}
		return m
	case t.Role == "":
		return message{}
	}
	if r := t.reasoning(); r != "" {
		m.Parts = append(m.Parts, part{Type: "reasoning", Content: redact(r)})
	}
	if t.Role == "tool" {
		m.Parts = append(m.Parts, toolResponse(t.ToolCallID, t.Content))
	} else {
		m.Parts = append(m.Parts, parts(t.Content)...)
	}
	if t.Refusal != "" {
		m.Parts = append(m.Parts, part{Type: "text", Content: redact(string(t.Refusal))})
	}
	for _, c := range t.ToolCalls {
		m.Parts = append(m.Parts, toolCall(c.ID, c.Function.Name, string(c.Function.Arguments)))
	}
	return m
}

func toolCall(id, name, args string) part {
	p := part{Type: "tool_call", ID: id, Name: name}
	if args != "" {
		p.Arguments = embedded(redact(args))
	}
	return p
}

func toolResponse(id string, content json.RawMessage) part {
	ps := parts(content)
	texts := make([]string, 0, len(ps))
	for _, p := range ps {
		texts = append(texts, p.Content)
	}
	text := strings.Join(texts, "\n")
	return part{Type: "tool_call_response", ID: id, Response: &text}
}

// definition is a tool that the model may call, in the conventions' shape. Of one that is no function they want type and name.
type definition struct {
	Type        string          `json:"type"`
	Name        string          `json:"name,omitempty"`
	Description string          `json:"description,omitempty"`
	Parameters  json.RawMessage `json:"parameters,omitempty"`
}

// tool is a definition as APIs write it: Chat Completions puts what matters one level deeper.
type tool struct {
	Type        string          `json:"type"`
	Function    *tool           `json:"function"`
	Custom      *tool           `json:"custom"`
	Name        loose           `json:"name"`
	Description loose           `json:"description"`
	Parameters  json.RawMessage `json:"parameters"`
	InputSchema json.RawMessage `json:"input_schema"` // Anthropic's name of them
}

// definitions reads lists of tools.
func definitions(raws ...json.RawMessage) (ds []definition) {
	for _, raw := range raws {
		var list []json.RawMessage
		_ = json.Unmarshal(raw, &list) // else it is none
		for _, item := range list {
			var t tool
			if !readable(item, &t) {
				continue
			}
			word, own := t.Type, &t
			switch {
			case t.Function != nil:
				own = t.Function
			case t.Custom != nil:
				own = t.Custom
			case word == "custom" && len(t.InputSchema) > 0: // Anthropic's word for a function, which may be left out
				word = ""
			}
			d := definition{Type: cmp.Or(word, "function"), Name: redact(string(own.Name)), Description: redact(string(own.Description))}
			for _, p := range []json.RawMessage{own.Parameters, own.InputSchema} {
				if k := kind(p); k != 0 && k != 'n' {
					d.Parameters = embedded(redact(string(p)))
				}
			}
			ds = append(ds, d)
		}
	}
	return ds
}

// embedded is a text as part of a JSON text: as such where it is one, else, such as one that broke off, as a string.
func embedded(text string) json.RawMessage {
	if json.Valid([]byte(text)) {
		return json.RawMessage(text)
	}
	return json.RawMessage(encode(text))
}

// parts reads contents: a text, or a list of texts and of objects with a type.
func parts(raws ...json.RawMessage) (ps []part) {
	for _, raw := range raws {
		list := []json.RawMessage{raw}
		if kind(raw) == '[' {
			_ = json.Unmarshal(raw, &list)
		}
		for _, item := range list {
			if p := partOf(item); p.Type != "" {
				ps = append(ps, p)
			}
		}
	}
	return ps
}

// block is a part of a content, as APIs write it.
type block struct {
	Type     string          `json:"type"`
	Text     loose           `json:"text"`
	Thinking loose           `json:"thinking"`
	Refusal  loose           `json:"refusal"`
	ID       string          `json:"id"`
	Name     string          `json:"name"`
	Input    loose           `json:"input"`
	UseID    string          `json:"tool_use_id"`
	Content  json.RawMessage `json:"content"`
}

// partOf reads one part of a content. Of what is no text and no tool's only the type is kept.
func partOf(raw json.RawMessage) part {
	if kind(raw) == '"' {
		var text string
		if json.Unmarshal(raw, &text) != nil || text == "" {
			return part{}
		}
		return part{Type: "text", Content: redact(text)}
	}
	var b block
	switch {
	case !readable(raw, &b):
		return part{}
	case b.Type == "tool_use":
		return toolCall(b.ID, b.Name, string(b.Input))
	case b.Type == "tool_result":
		return toolResponse(b.UseID, b.Content)
	case b.Thinking != "":
		return part{Type: "reasoning", Content: redact(string(b.Thinking))}
	case b.Text != "" || b.Refusal != "":
		return part{Type: "text", Content: redact(string(b.Text + b.Refusal))}
	}
	return part{Type: b.Type}
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
	Type      string          `json:"type"`
	Delta     json.RawMessage `json:"delta"`
	Output    []turn          `json:"output"`
	Content   json.RawMessage `json:"content"`
	Role      string          `json:"role"`
	Stop      string          `json:"stop_reason"`
	Index     int             `json:"index"` // of Block and its deltas
	Block     block           `json:"content_block"`
	OutputIdx int             `json:"output_index"` // of Item and its deltas
	Item      turn            `json:"item"`
}

// answered puts together what data, JSON texts as ledger.Said has them, say: one message of each choice.
func answered(data []byte, r *ledger.Record) []message {
	var all choices
	d := json.NewDecoder(bytes.NewReader(data))
	for {
		var raw json.RawMessage
		if d.Decode(&raw) != nil { // the end, or nonsense, behind which nothing follows that could be read
			break
		}
		var e event
		switch text := ""; kind(raw) {
		case '"':
			if json.Unmarshal(raw, &text) == nil {
				all.at(0).text.WriteString(text)
			}
		case '[':
			all.piece(raw)
		default:
			if readable(raw, &e) {
				all.take(&e)
			}
		}
	}
	ms := make([]message, 0, len(all))
	for _, c := range all {
		if m := c.message(r); len(m.Parts) > 0 {
			ms = append(ms, m)
		}
	}
	return ms
}

// choice is one of an answer's, as it is put together.
type choice struct {
	index           int
	text, reasoning strings.Builder
	calls           []*calling
	finish          string
}

// calling is a tool call as it is put together.
type calling struct {
	index      int
	id         string
	name, args strings.Builder
}

type choices []*choice

// at returns the choice of that index; the list stays in order.
func (cs *choices) at(index int) *choice {
	i, found := slices.BinarySearchFunc(*cs, index, func(c *choice, index int) int { return cmp.Compare(c.index, index) })
	if !found {
		*cs = slices.Insert(*cs, i, &choice{index: index})
	}
	return (*cs)[i]
}

// piece adds one of what is no text, as ledger.Said has it.
func (cs *choices) piece(raw json.RawMessage) {
	var list []json.RawMessage
	var what, piece string
	var index int
	if json.Unmarshal(raw, &list) != nil || len(list) < 2 || json.Unmarshal(list[0], &what) != nil || json.Unmarshal(list[len(list)-1], &piece) != nil {
		return
	}
	switch {
	case what == "reasoning":
		cs.at(0).reasoning.WriteString(piece)
	case what == "arguments" && len(list) == 3 && json.Unmarshal(list[1], &index) == nil:
		cs.at(0).call(index, "", "", piece)
	}
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
	var said string
	_ = json.Unmarshal(e.Delta, &said) // else it is an object
	switch {
	case strings.HasSuffix(e.Type, "output_text.delta"), strings.HasSuffix(e.Type, "refusal.delta"):
		cs.at(0).text.WriteString(said)
	case strings.HasPrefix(e.Type, "response.reasoning") && strings.HasSuffix(e.Type, ".delta"):
		cs.at(0).reasoning.WriteString(said)
	case e.Type == "response.output_item.added" && e.Item.Type == "function_call":
		cs.at(0).call(e.OutputIdx, e.Item.CallID, e.Item.Name, string(e.Item.Arguments))
	case e.Type == "response.function_call_arguments.delta":
		cs.at(0).call(e.OutputIdx, "", "", said)
	case e.Type == "content_block_start" && e.Block.Type == "tool_use": // its input is empty, and comes in deltas
		cs.at(0).call(e.Index, e.Block.ID, e.Block.Name, "")
	case e.Type == "content_block_start":
		cs.at(0).text.WriteString(string(e.Block.Text))
		cs.at(0).reasoning.WriteString(string(e.Block.Thinking))
	case e.Type == "content_block_delta":
		var d struct {
			Text, Thinking string
			Partial        string `json:"partial_json"`
		}
		if readable(e.Delta, &d) {
			cs.at(0).text.WriteString(d.Text)
			cs.at(0).reasoning.WriteString(d.Thinking)
			if d.Partial != "" {
				cs.at(0).call(e.Index, "", "", d.Partial)
			}
		}
	case e.Type == "message_delta":
		var d struct {
			Stop string `json:"stop_reason"`
		}
		if readable(e.Delta, &d) {
			cs.at(0).finish = d.Stop
		}
	case e.Type == "message" && e.Role != "":
		cs.at(0).take(&turn{Role: e.Role, Content: e.Content})
		cs.at(0).finish = e.Stop
	}
	for i := range e.Output {
		if t := &e.Output[i]; t.Type == "function_call" {
			cs.at(0).call(i, t.CallID, t.Name, string(t.Arguments))
		} else {
			cs.at(0).take(t)
		}
	}
}

// take adds a message, or a piece of one.
func (c *choice) take(t *turn) {
	var text string
	if kind(t.Content) == '"' && json.Unmarshal(t.Content, &text) == nil {
		c.text.WriteString(text) // redacted when it is whole
	} else {
		for i, p := range parts(t.Content) {
			switch p.Type {
			case "reasoning":
				c.reasoning.WriteString(p.Content)
			case "tool_call":
				c.call(i, p.ID, p.Name, string(p.Arguments))
			default:
				c.text.WriteString(p.Content)
			}
		}
	}
	c.text.WriteString(string(t.Refusal))
	c.reasoning.WriteString(t.reasoning())
	for i := range t.ToolCalls {
		k := &t.ToolCalls[i]
		c.call(k.Index, k.ID, k.Function.Name, string(k.Function.Arguments))
	}
}

// call adds a tool call, or a piece of the one with that index, which has no id or the same.
func (c *choice) call(index int, id, name, args string) {
	i := slices.IndexFunc(c.calls, func(o *calling) bool { return o.index == index && (id == "" || o.id == id) })
	if i < 0 {
		c.calls = append(c.calls, &calling{index: index, id: id})
		i = len(c.calls) - 1
	}
	c.calls[i].name.WriteString(name)
	c.calls[i].args.WriteString(args)
}

func (c *choice) message(r *ledger.Record) message {
	m := message{Role: "assistant", Finish: finishOf(c.finish, r)}
	if c.reasoning.Len() > 0 {
		m.Parts = append(m.Parts, part{Type: "reasoning", Content: redact(c.reasoning.String())})
	}
	if c.text.Len() > 0 {
		m.Parts = append(m.Parts, part{Type: "text", Content: redact(c.text.String())})
	}
	for _, k := range c.calls {
		m.Parts = append(m.Parts, toolCall(k.id, k.name.String(), k.args.String()))
	}
	return m
}

// finishOf is why an answer ended, in the conventions' words where they have one. They want one of every answer.
func finishOf(reason string, r *ledger.Record) string {
	switch reason = cmp.Or(reason, r.Finish); reason {
	case "":
		if r.Class == outcome.Success {
			return "stop"
		}
		return "error"
	case "end_turn", "stop_sequence", "completed":
		return "stop"
	case "max_tokens", "incomplete":
		return "length"
	case "tool_calls", "tool_use", "function_call":
		return "tool_call"
	case "refusal":
		return "content_filter"
	}
	return reason
}

// keyLike finds what looks like a credential: tokens with the prefixes that vendors give theirs, bearers, key ids of clouds, private keys and
// JSON web tokens, also behind the escape of a JSON text in a text. What is spelled otherwise stays: this is a net, and no promise.
var keyLike = sync.OnceValue(func() *regexp.Regexp { //nolint:gochecknoglobals // a table, made when it is needed
	return regexp.MustCompile(`(\\u[0-9a-fA-F]{4}|\\[bfnrtv]|\b)(?:(?i:bearer\s+)[\w.~+/=-]{8,}` +
		`|(?:sk|pk|rk|rpa|hr|hf|gsk|xai|ghp|gho|ghs|github_pat|glpat|npm|pypi|xox[abprs])[-_][\w-]{12,}` +
		`|AKIA[0-9A-Z]{16}\b|AIza[\w-]{35}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+)` +
		`|-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(?:-----END [A-Z ]*PRIVATE KEY-----)?`)
})

const redacted = "[redacted]"

// redact takes what looks like a credential out of a text.
func redact(s string) string { return keyLike().ReplaceAllString(s, "${1}"+redacted) }
