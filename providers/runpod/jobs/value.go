package jobs

import (
	"bytes"
	"encoding/json"
	"strings"
)

// object is what is looked at in a JSON object that a worker yields.
type object struct {
	raw     json.RawMessage
	ID      string          `json:"id"`
	Object  string          `json:"object"`
	Type    string          `json:"type"`
	Created int64           `json:"created"`
	Model   string          `json:"model"`
	Choices []choice        `json:"choices"`
	Usage   json.RawMessage `json:"usage"`
	Error   json.RawMessage `json:"error"`
	Err     json.RawMessage `json:"err"` // with a traceback, in old handlers
}

type choice struct {
	Index        int             `json:"index"`
	Message      json.RawMessage `json:"message"`
	Delta        json.RawMessage `json:"delta"`
	Text         *string         `json:"text"`
	Tokens       []string        `json:"tokens"`
	Logprobs     json.RawMessage `json:"logprobs"`
	FinishReason json.RawMessage `json:"finish_reason"`
	StopReason   json.RawMessage `json:"stop_reason"`
}

// nativeUsage is how worker-vllm up to 2.23 counts tokens in its own form: of the whole answer so far.
type nativeUsage struct {
	Input  int
	Output int
	told   bool // a zero value tells nothing
}

// take reads a count. Handlers may leave it out, or fill it with something else: then nothing is told.
func (n *nativeUsage) take(raw json.RawMessage) {
	var u struct{ Input, Output *int }
	if json.Unmarshal(raw, &u) == nil && u.Input != nil && u.Output != nil {
		*n = nativeUsage{*u.Input, *u.Output, true}
	}
}

// parseObject looks at raw, which is a JSON object.
func parseObject(raw json.RawMessage) (o object, k kind) {
	_ = json.Unmarshal(raw, &o) // members of other types stay empty, and the rest is read
	o.raw = raw
	if truthy(o.Error) || truthy(o.Err) || o.Object == "error" || o.Type == "error" {
		return o, kindError
	}
	for i := range o.Choices {
		c := &o.Choices[i]
		switch {
		case c.Tokens != nil:
			return o, kindTokens
		case c.Message != nil:
			return o, kindAnswer
		case c.Delta != nil:
			return o, kindChunk
		}
	}
	switch {
	case strings.HasSuffix(o.Object, ".chunk"):
		return o, kindChunk
	case o.Choices != nil && len(o.Choices) == 0 && o.Usage != nil: // the last chunk of a stream, with its usage
		return o, kindChunk
	case o.Object == "text_completion", len(o.Choices) > 0 && o.Choices[0].Text != nil:
		return o, kindChunk // of a stream or the whole: they look alike
	case strings.ContainsAny(o.Type, "._"): // response.created, content_block_delta
		return o, kindEvent
	}
	return o, kindOther
}

// usage of tokens, in OpenAI's words.
type usage struct {
	Prompt     int `json:"prompt_tokens"`
	Total      int `json:"total_tokens"`
	Completion int `json:"completion_tokens"`
}

func (n nativeUsage) openAI() *usage { return &usage{n.Input, n.Input + n.Output, n.Output} }

// made is a chunk or an answer that is put together here.
type made struct {
	ID      string       `json:"id"`
	Object  string       `json:"object"`
	Created int64        `json:"created"`
	Model   string       `json:"model"`
	Choices []madeChoice `json:"choices"`
	Usage   any          `json:"usage,omitempty"`
}

type madeChoice struct {
	Index        int             `json:"index"`
	Message      any             `json:"message,omitempty"`
	Delta        any             `json:"delta,omitempty"`
	Text         *string         `json:"text,omitempty"`
	Logprobs     json.RawMessage `json:"logprobs"`
	FinishReason json.RawMessage `json:"finish_reason"`
	StopReason   json.RawMessage `json:"stop_reason,omitempty"`
}

type delta struct {
	Role    string  `json:"role,omitempty"`
	Content *string `json:"content,omitempty"`
}

// new returns an answer, or a chunk of one, without choices.
func (a *asked) new(chunk bool) made {
	m := made{Created: a.created, Model: a.model, Choices: []madeChoice{}}
	switch {
	case a.kind == routeCompletions:
		m.ID, m.Object = "cmpl-"+a.jobID, "text_completion"
	case chunk:
		m.ID, m.Object = "chatcmpl-"+a.jobID, "chat.completion.chunk"
	default:
		m.ID, m.Object = "chatcmpl-"+a.jobID, "chat.completion"
	}
	return m
}

// nativeLimit is how many tokens worker-vllm up to 2.23 makes in its own form when nobody says.
const nativeLimit = 100

// finishOf is why an answer of so many tokens ended, of which the worker says nothing.
func (a *asked) finishOf(u nativeUsage) json.RawMessage {
	limit := a.limit
	if limit == 0 && a.native {
		limit = nativeLimit
	}
	if limit > 0 && u.Output >= limit {
		return json.RawMessage(`"length"`)
	}
	return json.RawMessage(`"stop"`)
}

// encode writes v as vLLM writes JSON: without blanks, UTF-8 as it is.
func encode(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("BUG: " + err.Error())
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// oneLine returns JSON that fits into one data line.
func oneLine(raw json.RawMessage) []byte {
	if bytes.IndexByte(raw, '\n') < 0 && bytes.IndexByte(raw, '\r') < 0 {
		return raw
	}
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return raw
	}
	return b.Bytes()
}

// unquote appends the text of a JSON string, as it stands in an answer, to dst. Bytes that are no UTF-8 stay what they are.
func unquote(dst []byte, raw json.RawMessage) []byte {
	s := raw[1 : len(raw)-1]
	for {
		i := bytes.IndexByte(s, '\\')
		if i < 0 {
			return append(dst, s...)
		}
		dst = append(dst, s[:i]...)
		n := 2
		switch c := s[i+1]; c {
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'u':
			dst, n = appendEscaped(dst, s[i:])
		default: // quote, backslash, slash
			dst = append(dst, c)
		}
		s = s[i+n:]
	}
}
