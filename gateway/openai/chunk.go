package openai

import "bytes"

// Chunk is what one event of a stream says, or a whole answer. Its slices alias the data it was
// read from.
type Chunk struct {
	// Content says that it carries new output: text, reasoning, refusal, audio, or a tool call (its
	// id, name or arguments). For whole answers also: embeddings, rerank results or a transcript, for
	// which Outputs stays 0.
	Content   bool
	Outputs   int  // choices that carry output in it: about as many tokens, when usage is not reported
	Reasoning bool // some of the output is reasoning
	ToolCall  bool // some of the output is a tool call

	// ID is the answer's, as it stands between its quotes; nil when there is none. Role says that some choice tells who speaks,
	// as the first chunk of an answer does.
	ID   []byte
	Role bool

	// TextChoice says that it has exactly one choice and that its index is 0 or not given. Text is what
	// that choice says in "content" of its delta, or in "text", as it stands between its quotes, with its
	// escapes; TextAt is the string in the data, quotes included, and absent when there is none.
	TextChoice bool
	Text       []byte
	TextAt     Span

	// TokenIDsAt and PromptIDsAt are the lists in "token_ids" and "prompt_token_ids" in the data, as engines give them that were asked for
	// the numbers of tokens; absent where there are none. Of several choices it is the last one's.
	TokenIDsAt, PromptIDsAt Span

	// Other says that it carries what is neither plain text nor reasoning: a tool call, a refusal, audio,
	// content in parts, logprobs, or a second text.
	Other bool

	// Finish says that some choice (or the message, the response) has ended for the reason given in
	// FinishReason, the last one seen, as it stands between its quotes. "" is taken for null.
	Finish       bool
	FinishReason []byte
	Finishes     int // choices that have ended in it

	// UsageOnly says that it has usage and no choices: the chunk that stream_options.include_usage
	// adds. Never set for whole answers, Responses and Anthropic events.
	UsageOnly bool
	HasUsage  bool  // some count of Usage is known
	Usage     Usage // -1 where nothing is reported

	// Error says that it reports a failure: a member "error" that is not null, false or "",
	// "object" or "type" "error", the SSE event name "error", or response.failed.
	Error       bool
	ErrorStatus int // 400 to 599 when the code or status in the error is such a number, else 0

	Done      bool // the stream is over: [DONE], message_stop, response.completed, .failed or .incomplete
	Malformed bool // neither [DONE] nor a JSON object; what was found before the fault still holds

	marks marks // here, and not on the stack, which streams keep as large as it once was
}

// Aborted says that the host has given the output up, as vLLM does when it is shut down or fails inside: that
// is no end, though it has a finish_reason.
func (c *Chunk) Aborted() bool {
	return c.Finish && (string(c.FinishReason) == "abort" || string(c.FinishReason) == "error")
}

// marks are what one pass over the outermost object leaves to be judged at its end, since "type" may
// come last. All are raw JSON values.
type marks struct {
	kind, object                          []byte // strings without quotes
	code, status                          []byte
	delta, item, block, response, message []byte
	content, output, stopReason           []byte
	choices, usage, list                  bool // there are choices; usage is an object; "data", "results" or "text" holds something
}

// Parse reads one event by its SSE name (nil for none) and data: Chat Completions and Completions,
// Responses and Anthropic Messages by their "type". It overwrites c, never fails and never allocates.
func (c *Chunk) Parse(name, data []byte) {
	*c = Chunk{} // and not with its usage, which would go through the stack
	c.Usage = NoUsage()
	if bytes.HasPrefix(data, []byte("[DONE]")) { // the SDKs look at the prefix too
		c.Done = true
		return
	}
	m := &c.marks
	ok := c.top(data)
	c.UsageOnly = ok && m.usage && !m.choices && m.kind == nil
	if m.kind == nil {
		m.kind = name
	}
	switch {
	case m.kind == nil:
	case bytes.HasPrefix(m.kind, []byte("response.")):
		c.responses(m)
	default:
		c.anthropic(m)
	}
	c.judge(m, string(name) == "error")
	c.UsageOnly = c.UsageOnly && !c.Error
	c.marks = marks{}
}

// ParseBody reads a whole answer that was not streamed, of any kind: chat.completion,
// text_completion, response, message, embeddings, rerank and score. It overwrites c and never
// allocates. Done stays false.
func (c *Chunk) ParseBody(body []byte) {
	*c = Chunk{}
	c.Usage = NoUsage()
	m := &c.marks
	c.top(body)
	switch {
	case string(m.kind) == "message":
		c.blocks(m.content)
		c.finish(m.stopReason)
	case string(m.object) == "response":
		c.items(m.output)
		if reason, ok := unquoted(m.status); ok && string(reason) != "failed" {
			c.finish(m.status)
		}
	}
	c.Content = c.Content || m.list
	c.judge(m, false)
	c.marks = marks{}
}

// top reads the outermost object and says whether it is one.
func (c *Chunk) top(data []byte) bool {
	m := &c.marks
	r := reader{b: data, lax: true}
	if r.peek() != '{' {
		c.Malformed = true
		return false
	}
	r.enter('{')
	for name, ok := r.member(); ok; name, ok = r.member() {
		switch string(name) {
		case "choices":
			c.choices(&r, m)
		case "id":
			c.ID, _ = unquoted(r.skip())
		case "usage":
			m.usage = c.usage(&r)
		case "prompt_token_ids":
			list(&r, &c.PromptIDsAt)
		case "error":
			c.fault(&r)
		case "type":
			m.kind, _ = unquoted(r.skip())
		case "object":
			m.object, _ = unquoted(r.skip())
		case "code":
			m.code = r.skip()
		case "status":
			m.status = r.skip()
		case "delta":
			m.delta = r.skip()
		case "item":
			m.item = r.skip()
		case "content_block":
			m.block = r.skip()
		case "response":
			m.response = r.skip()
		case "message":
			m.message = r.skip()
		case "content":
			m.content = r.skip()
		case "output":
			m.output = r.skip()
		case "stop_reason":
			m.stopReason = r.skip()
		case "data", "results", "text":
			m.list = filled(r.skip()) || m.list
		default:
			r.skip()
		}
	}
	if r.peek(); r.problem != fine || r.i < len(data) {
		c.Malformed = true
		return false
	}
	return true
}

// judge decides on errors once everything is known.
func (c *Chunk) judge(m *marks, named bool) {
	if named || string(m.object) == "error" || string(m.kind) == "error" {
		c.Error = true
	}
	if !c.Error {
		return
	}
	for _, v := range [...][]byte{m.code, m.status} {
		if c.ErrorStatus == 0 {
			c.ErrorStatus = statusOf(v)
		}
	}
}

// fault reads the value of "error".
func (c *Chunk) fault(r *reader) {
	if r.peek() != '{' {
		v := r.skip()
		c.Error = c.Error || filled(v)
		return
	}
	c.Error = true
	var code, status int
	r.enter('{')
	for name, ok := r.member(); ok; name, ok = r.member() {
		switch string(name) {
		case "code":
			code = statusOf(r.skip())
		case "status":
			status = statusOf(r.skip())
		default:
			r.skip()
		}
	}
	if c.ErrorStatus = code; code == 0 {
		c.ErrorStatus = status
	}
}

// statusOf returns the JSON value v as an error status, be it a number or a string; 0 when it is none.
func statusOf(v []byte) int {
	if s, ok := unquoted(v); ok {
		v = s
	}
	return httpStatus(v)
}

// unquoted returns what is between the quotes of the JSON value v; ok is false when it is no string.
func unquoted(v []byte) (s []byte, ok bool) {
	if len(v) < 2 || v[0] != '"' {
		return nil, false
	}
	return v[1 : len(v)-1], true
}

// finish takes the JSON value v as the reason for which the output has ended.
func (c *Chunk) finish(v []byte) {
	if reason, ok := unquoted(v); ok && len(reason) > 0 {
		c.Finish, c.FinishReason = true, reason
		c.Finishes++
	}
}

// choices reads the value of "choices".
func (c *Chunk) choices(r *reader, m *marks) {
	if !r.open('[') {
		return
	}
	for r.element() {
		c.TextChoice = !m.choices
		m.choices = true
		if !r.open('{') {
			c.TextChoice = false
			continue
		}
		output := false
		for name, ok := r.member(); ok; name, ok = r.member() {
			switch string(name) {
			case "index":
				if string(r.skip()) != "0" {
					c.TextChoice = false
				}
			case "delta", "message":
				output = c.delta(r) || output
			case "text":
				output = c.text(r) && c.TextAt.Present() || output
			case "logprobs":
				c.Other = filled(r.skip()) || c.Other
			case "finish_reason":
				c.finish(r.skip())
			case "token_ids":
				list(r, &c.TokenIDsAt)
			case "prompt_token_ids":
				list(r, &c.PromptIDsAt)
			default:
				r.skip()
			}
		}
		if output {
			c.Content = true
			c.Outputs++
		}
	}
}

// list skips a value and notes where it lies, if it is a list.
func list(r *reader, at *Span) {
	if v := r.skip(); len(v) > 0 && v[0] == '[' {
		*at = Span{r.i - len(v), r.i}
	}
}

// Member is where the member lies whose value is at: with its name, and with the comma in front of it or, where it is the first, behind
// it. Without it data is as though it had never been there.
func Member(data []byte, at Span) Span {
	back := func(i int) int { // over white space
		for i > 0 && (data[i-1] == ' ' || data[i-1] == '\t' || data[i-1] == '\n' || data[i-1] == '\r') {
			i--
		}
		return i
	}
	from := back(back(at.From) - 1)                      // behind the name
	from = back(bytes.LastIndexByte(data[:from-1], '"')) // no name that is looked for has a quote in it
	if from > 0 && data[from-1] == ',' {
		return Span{from - 1, at.To}
	}
	to := at.To
	for to < len(data) && (data[to] == ' ' || data[to] == '\t' || data[to] == '\n' || data[to] == '\r') {
		to++
	}
	if to < len(data) && data[to] == ',' {
		return Span{from, to + 1}
	}
	return Span{from, at.To}
}

// delta reads the delta or message of a choice and says whether it carries output.
func (c *Chunk) delta(r *reader) (output bool) {
	if !r.open('{') {
		return false
	}
	for name, ok := r.member(); ok; name, ok = r.member() {
		switch string(name) {
		case "content":
			output = c.text(r) || output
		case "role":
			c.Role = filled(r.skip()) || c.Role
		case "refusal", "audio":
			if filled(r.skip()) {
				output, c.Other = true, true
			}
		case "reasoning_content", "reasoning", "reasoning_details":
			if filled(r.skip()) {
				output, c.Reasoning = true, true
			}
		case "tool_calls":
			if r.open('[') {
				for r.element() {
					output = c.toolCall(r) || output
				}
			}
		case "function_call":
			output = c.toolCall(r) || output
		default:
			r.skip()
		}
	}
	return output
}

// text reads what a choice says and says whether it is something.
func (c *Chunk) text(r *reader) bool {
	if r.problem != fine || r.peek() != '"' {
		said := filled(r.skip())
		c.Other = c.Other || said
		return said
	}
	from := r.i
	raw := r.str()
	if r.problem != fine {
		return false
	}
	c.Other = c.Other || c.TextAt.Present()
	c.Text, c.TextAt = raw, Span{from, r.i}
	return len(raw) > 0
}

// toolCall reads a tool or function call and says whether it has an id, a name or arguments. The
// members of its "function" or "custom" count as its own.
func (c *Chunk) toolCall(r *reader) (output bool) {
	if !r.open('{') {
		return false
	}
	for name, ok := r.member(); ok; name, ok = r.member() {
		switch string(name) {
		case "id", "name", "arguments", "input":
			output = filled(r.skip()) || output
		case "function", "custom":
			output = c.toolCall(r) || output
		default:
			r.skip()
		}
	}
	if output {
		c.ToolCall, c.Other = true, true
	}
	return output
}
