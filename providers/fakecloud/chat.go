package fakecloud

import (
	"cmp"
	"encoding/json"
	"strings"
	"time"
	"unicode"
)

// stringOrList is a JSON string or a list of them.
type stringOrList []string

// UnmarshalJSON reads null as no string at all.
func (l *stringOrList) UnmarshalJSON(b []byte) error {
	var one string
	if err := json.Unmarshal(b, &one); err == nil {
		*l = nil
		if string(b) != "null" {
			*l = stringOrList{one}
		}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(l))
}

// partText is the text of a message: a string, null, or a list of parts of which those with text count.
type partText string

// UnmarshalJSON joins the texts of all parts.
func (t *partText) UnmarshalJSON(b []byte) error {
	var one string
	if err := json.Unmarshal(b, &one); err == nil {
		*t = partText(one)
		return nil
	}
	var parts []struct {
		Text string `json:"text"`
	}
	if err := json.Unmarshal(b, &parts); err != nil {
		return err
	}
	for _, p := range parts {
		*t += partText(p.Text)
	}
	return nil
}

type message struct {
	Role    string   `json:"role"`
	Content partText `json:"content"`
}

// promptOf is the prompt that the oracle and the engine see.
func promptOf(messages []message) string {
	var texts []string
	for _, m := range messages {
		if m.Content != "" {
			texts = append(texts, string(m.Content))
		}
	}
	return strings.Join(texts, "\n")
}

type streamOptions struct {
	IncludeUsage    bool `json:"include_usage"`
	ContinuousUsage bool `json:"continuous_usage_stats"`
}

type toolDefinition struct {
	Function struct {
		Name       string `json:"name"`
		Parameters any    `json:"parameters"`
	} `json:"function"`
}

type chatRequest struct {
	Model               string           `json:"model"`
	Messages            []message        `json:"messages"`
	Stream              bool             `json:"stream"`
	StreamOptions       *streamOptions   `json:"stream_options"`
	MaxTokens           *int             `json:"max_tokens"`
	MaxCompletionTokens *int             `json:"max_completion_tokens"`
	N                   *int             `json:"n"`
	Logprobs            bool             `json:"logprobs"`
	TopLogprobs         *int             `json:"top_logprobs"`
	Tools               []toolDefinition `json:"tools"`
	ToolChoice          json.RawMessage  `json:"tool_choice"`
	Stop                stringOrList     `json:"stop"`
	IncludeStop         bool             `json:"include_stop_str_in_output"`
	ContinueFinal       bool             `json:"continue_final_message"`
	AddPrompt           *bool            `json:"add_generation_prompt"`
	TokenIDs            bool             `json:"return_token_ids"`
	ResponseFormat      *struct {
		Type       string `json:"type"`
		JSONSchema struct {
			Schema any `json:"schema"`
		} `json:"json_schema"`
	} `json:"response_format"`
}

// maxChoices is the largest n.
const maxChoices = 128

func (q *chatRequest) limit() *int { return cmp.Or(q.MaxCompletionTokens, q.MaxTokens) }

// checkLimits holds what all requests for tokens are held to.
func checkLimits(limit, n *int, stream bool, options *streamOptions) *problem {
	switch {
	case limit != nil && *limit < 1:
		return invalid("max_tokens", "max_tokens must be at least 1, got %d.", *limit)
	case n != nil && (*n < 1 || *n > maxChoices):
		return invalid("n", "n must be between 1 and %d, got %d.", maxChoices, *n)
	case options != nil && !stream:
		return invalid("stream_options", "Stream options can only be defined when `stream=True`.")
	}
	return nil
}

func (q *chatRequest) check() *problem {
	if p := checkLimits(q.limit(), q.N, q.Stream, q.StreamOptions); p != nil {
		return p
	}
	switch {
	case len(q.Messages) == 0:
		return invalid("messages", "messages: at least one message is needed")
	case q.ContinueFinal && (q.AddPrompt == nil || *q.AddPrompt):
		return invalid("", "Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
	case q.TopLogprobs != nil && *q.TopLogprobs > 0 && !q.Logprobs:
		return invalid("top_logprobs", "when using `top_logprobs`, `logprobs` must be set to true.")
	case q.TopLogprobs != nil && (*q.TopLogprobs < 0 || *q.TopLogprobs > 20):
		return invalid("top_logprobs", "top_logprobs must be between 0 and 20, got %d.", *q.TopLogprobs)
	}
	for _, m := range q.Messages {
		if m.Role == "" {
			return invalid("messages", "messages: a message has no role")
		}
	}
	return nil
}

// call says which tool the model calls, "" for none, and how such an answer ends.
func (q *chatRequest) call(prompt string) (name, finish string, parameters any, p *problem) {
	var mode string
	var named struct {
		Function struct {
			Name string `json:"name"`
		} `json:"function"`
	}
	if len(q.ToolChoice) > 0 && json.Unmarshal(q.ToolChoice, &mode) != nil {
		if err := json.Unmarshal(q.ToolChoice, &named); err != nil {
			return "", "", nil, invalid("tool_choice", "tool_choice: neither a word nor a function")
		}
	}
	answered := q.Messages[len(q.Messages)-1].Role == "tool"
	wanted := strings.Contains(strings.ToLower(prompt), "use the tool") && !answered
	switch {
	case named.Function.Name != "":
		for _, t := range q.Tools {
			if t.Function.Name == named.Function.Name {
				return t.Function.Name, "stop", t.Function.Parameters, nil // vLLM says tool_calls only when the model chose
			}
		}
		return "", "", nil, invalid("tool_choice", "The tool specified in `tool_choice` does not match any of the specified `tools`")
	case mode == "required" && len(q.Tools) == 0:
		return "", "", nil, invalid("tool_choice", "When using `tool_choice`, `tools` must be set.")
	case len(q.Tools) > 0 && (mode == "required" || mode != "none" && wanted):
		return q.Tools[0].Function.Name, "tool_calls", q.Tools[0].Function.Parameters, nil
	}
	return "", "", nil, nil
}

// job works out all that will be said.
func (x *exchange) chatJob(q *chatRequest) (*job, *problem) {
	if p := x.model(&q.Model); p != nil {
		return nil, p
	}
	if p := q.check(); p != nil {
		return nil, p
	}
	switch x.h.cfg.Prefill {
	case PrefillIgnored:
		q.ContinueFinal = false
	case PrefillRefused:
		if q.ContinueFinal {
			return nil, invalid("continue_final_message", "Unrecognized request argument supplied: continue_final_message")
		}
	case PrefillContinues, PrefillTrims:
	}
	messages, sent := q.Messages, ""
	if last := messages[len(messages)-1]; q.ContinueFinal {
		if last.Role != "assistant" {
			return nil, invalid("messages", "continue_final_message: the last message is not the assistant's")
		}
		messages, sent = messages[:len(messages)-1], string(last.Content)
		if x.h.cfg.Prefill == PrefillTrims {
			sent = strings.TrimRightFunc(sent, unicode.IsSpace)
		}
	}
	prompt := promptOf(messages)
	j := &job{model: q.Model, prompt: prompt + sent, stream: q.Stream, continued: q.ContinueFinal}
	if sent == "" {
		j.between = "\n" // as promptOf joins messages
	}
	var ok bool
	if j.promptTokens, ok = countBegun(q.Model, prompt, sent); !ok {
		j.badSeam = true
	}
	if j.numbered = q.TokenIDs && !x.h.cfg.NoTokenIDs; j.numbered {
		j.promptIDs = PromptIDs(q.Model, prompt, sent)
	}
	limit := 0
	if l := q.limit(); l != nil {
		limit = *l
	}
	if p := x.check(j.promptTokens, limit); p != nil {
		return nil, p
	}
	w := wish{
		model: q.Model, limit: limit, stops: q.Stop, keepStop: q.IncludeStop, sent: sent,
		thinks: strings.Contains(strings.ToLower(q.Model), "reason"),
	}
	tool, finish, parameters, p := q.call(prompt)
	if p != nil {
		return nil, p
	}
	for i := range choices(q.N) {
		w.prompt = Choice(prompt, i)
		o := newOracle(q.Model, w.prompt)
		switch f := q.ResponseFormat; {
		case tool != "":
			w.tool, w.toolFinish, w.call = tool, finish, x.newID("chatcmpl-tool-")
			w.json = encode(sample(parameters, o))
		case f != nil && f.Type == "json_schema":
			w.json = encode(sample(f.JSONSchema.Schema, o))
		case f != nil && f.Type == "json_object":
			w.json = encode(map[string]any{"answer": o.text(4), "tokens": o.natural()})
		}
		j.outputs = append(j.outputs, w.output())
	}
	return j, nil
}

func choices(n *int) int {
	if n == nil {
		return 1
	}
	return *n
}

func (x *exchange) chat() {
	var q chatRequest
	if !x.decode(&q) {
		return
	}
	j, p := x.chatJob(&q)
	if p != nil {
		x.refuse(p)
		return
	}
	r := &chatRenderer{job: j, id: x.newID("chatcmpl-"), created: time.Now().Unix(), plan: x.plan, legacy: x.h.cfg.Legacy}
	if q.StreamOptions != nil {
		r.options = *q.StreamOptions
	}
	if r.logprobs = q.Logprobs; q.TopLogprobs != nil {
		r.top = *q.TopLogprobs
	}
	x.generate(j, r)
}
