package openai

import "bytes"

// responses judges an event of the Responses API by its type.
func (c *Chunk) responses(m *marks) {
	switch kind := m.kind[len("response."):]; string(kind) {
	case "completed", "incomplete":
		c.Done, c.Finish, c.FinishReason, c.Finishes = true, true, kind, 1
		c.nested(m.response)
	case "failed":
		c.Done, c.Error = true, true
		c.nested(m.response)
	case "created", "in_progress", "queued":
		c.nested(m.response)
	case "output_item.added":
		c.item(&reader{b: m.item, lax: true})
	default:
		if !bytes.HasSuffix(kind, []byte(".delta")) || !filled(m.delta) {
			return
		}
		c.output()
		c.Reasoning = bytes.HasPrefix(kind, []byte("reasoning"))
		c.ToolCall = bytes.Contains(kind, []byte("_call"))
	}
}

// output notes that one choice carries output.
func (c *Chunk) output() { c.Content, c.Outputs = true, 1 }

// nested reads usage and error of the object in "response" or "message".
func (c *Chunk) nested(v []byte) {
	r := reader{b: v, lax: true}
	if !r.open('{') {
		return
	}
	for name, ok := r.member(); ok; name, ok = r.member() {
		switch string(name) {
		case "usage":
			c.usage(&r)
		case "error":
			c.fault(&r)
		default:
			r.skip()
		}
	}
}

// items reads "output" of a whole response.
func (c *Chunk) items(v []byte) {
	r := reader{b: v, lax: true}
	if !r.open('[') {
		return
	}
	for r.element() {
		c.item(&r)
	}
}

// item reads an output item of the Responses API: a message counts as output when it has content, a
// call or a reasoning step by being there.
func (c *Chunk) item(r *reader) {
	if !r.open('{') {
		return
	}
	var kind []byte
	content := false
	for name, ok := r.member(); ok; name, ok = r.member() {
		switch string(name) {
		case "type":
			kind, _ = unquoted(r.skip())
		case "content":
			content = filled(r.skip())
		default:
			r.skip()
		}
	}
	switch {
	case bytes.HasSuffix(kind, []byte("_call")):
		c.output()
		c.ToolCall = true
	case !content:
	case string(kind) == "reasoning":
		c.output()
		c.Reasoning = true
	default:
		c.output()
	}
}

// anthropic judges an event of the Anthropic Messages API by its type.
func (c *Chunk) anthropic(m *marks) {
	switch string(m.kind) {
	case "message_start":
		c.nested(m.message)
	case "message_stop":
		c.Done = true
	case "content_block_start":
		c.block(&reader{b: m.block, lax: true})
	case "content_block_delta":
		c.block(&reader{b: m.delta, lax: true})
	case "message_delta":
		r := reader{b: m.delta, lax: true}
		if !r.open('{') {
			return
		}
		for name, ok := r.member(); ok; name, ok = r.member() {
			if v := r.skip(); string(name) == "stop_reason" {
				c.finish(v)
			}
		}
	}
}

// blocks reads "content" of a whole message.
func (c *Chunk) blocks(v []byte) {
	r := reader{b: v, lax: true}
	if !r.open('[') {
		return
	}
	for r.element() {
		c.block(&r)
	}
}

// block reads a content block or the delta of one. A block that names a tool is a call.
func (c *Chunk) block(r *reader) {
	if !r.open('{') {
		return
	}
	for name, ok := r.member(); ok; name, ok = r.member() {
		switch string(name) {
		case "text":
			if r.words() {
				c.output()
			}
		case "thinking":
			if r.words() {
				c.output()
				c.Reasoning = true
			}
		case "partial_json", "name":
			if r.words() {
				c.output()
				c.ToolCall = true
			}
		default:
			r.skip()
		}
	}
}
