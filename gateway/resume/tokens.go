package resume

import (
	"bytes"
	"slices"
	"strconv"

	"headrace/gateway/openai"
)

// Where a host tells the numbers of its tokens (vLLM's return_token_ids), and another one takes such a prompt, the next request says
// exactly what the first host had read and written: no template is laid out again, no text is cut into tokens anew, and nothing is
// trimmed. The numbers are kept as they stand in the events, for the request is JSON again.

// numbers are those of the prompt and of the answer behind it, as hosts told them. The zero value is of a host that tells none.
type numbers struct {
	list   *buffer // "1,2,3"
	prompt int64   // how many are the prompt's; 0 while nobody has told
	n      int64   // how many are the answer's, of the hosts since the prompt was told
	sure   int     // bytes of list whose text is told: engines keep a character back until it is whole
	sureN  int64   // of n, likewise
	base   int64   // tokens of the answer that are part of the prompt
	off    bool    // some are missing

	was struct { // before the newest event
		bytes, sure int
		n, sureN    int64
	}
}

func (k *numbers) free() {
	if k.list != nil {
		k.list.free()
	}
	*k = numbers{}
}

// give gives the memory back for good: what was told is of no use.
func (k *numbers) give() {
	k.free()
	k.off = true
}

// anew begins with a host that is asked with text; base tokens of the answer are in that.
func (k *numbers) anew(base int64) {
	k.free()
	k.base = base
}

// keepOn begins with a host that is asked with the numbers that are sure.
func (k *numbers) keepOn() {
	k.list.b, k.n = k.list.b[:k.sure], k.sureN
}

// Number takes the token numbers of an event that See or Continue is given next, in whose data they still stand; c is Parse's of that. It
// keeps nothing of them.
func (s *Story) Number(c *openai.Chunk, data []byte) {
	k := &s.numbers
	if k.off {
		return
	}
	part := !c.Malformed && !c.Error && !c.Aborted() // of the answer, or the caller does not get it, whatever is found in it
	if at := c.PromptIDsAt; part && at.Present() && !s.exact && k.prompt == 0 {
		if k.prompt = s.numbered(data[at.From:at.To]); k.prompt == 0 {
			k.give()
			return
		}
		k.sure = len(k.list.b)
	}
	k.was.n, k.was.sureN, k.was.sure = k.n, k.sureN, k.sure
	if k.list != nil {
		k.was.bytes = len(k.list.b)
	}
	at := c.TokenIDsAt
	switch {
	case !part, !at.Present() && len(c.Text) == 0: // who speaks, how it ended, usage
		return
	case !c.TextChoice, c.Other, c.Reasoning: // no answer to be gone on with, or no part of it: See and Continue tell
		return
	case !at.Present(), k.prompt == 0:
		k.give()
		return
	}
	n := s.numbered(data[at.From:at.To])
	if n == 0 && len(c.Text) > 0 {
		k.give()
		return
	}
	if k.n += n; len(c.Text) > 0 {
		k.sure, k.sureN = len(k.list.b), k.n
	}
}

// numbered appends the list v and returns how long it is; 0 for one that is empty, no list of numbers, or too long.
func (s *Story) numbered(v []byte) (n int64) {
	v = only(v)
	if len(v) == 0 {
		return 0
	}
	k := &s.numbers
	if k.list == nil {
		k.list = takeBuffer(len(v) + 1)
	} else if k.list = k.list.add([]byte{','}); len(k.list.b)+len(v) > s.limit {
		return 0
	}
	from := len(k.list.b)
	if k.list = k.list.add(v); len(k.list.b) > s.limit {
		return 0
	}
	kept, digits := k.list.b[:from], 0
	for _, c := range k.list.b[from:] {
		switch {
		case c-'0' <= 9:
			digits++
		case c == ',' && digits > 0:
			n, digits = n+1, 0
		case c == ' ':
			continue
		default:
			return 0
		}
		kept = append(kept, c)
	}
	k.list.b = kept
	if digits == 0 {
		return 0
	}
	return n + 1
}

// unnumber takes the newest event back, which is no part of the answer.
func (s *Story) unnumber() {
	k := &s.numbers
	if k.off || k.list == nil {
		return
	}
	k.list.b, k.n, k.sure, k.sureN = k.list.b[:k.was.bytes], k.was.n, k.was.sure, k.was.sureN
}

// Counted returns how many tokens hosts have sent for the caller, as Ask and End take it, where they have told the number of each.
func (s *Story) Counted() (n int64, ok bool) {
	n, ok = s.has()
	return n + s.again, ok
}

// has returns how many tokens of the answer the caller has, where hosts have told the number of each.
func (s *Story) has() (n int64, ok bool) {
	k := &s.numbers
	return k.base + k.sureN, !k.off && k.sureN > 0
}

// Exact says that the attempt whose events are seen was asked for by AskExact.
func (s *Story) Exact() bool { return s.exact }

// What of a chat's request means the same to Completions, and what has done its work when the prompt is tokens. A request with anything
// else in it is not asked for exactly: nobody knows what that would change.
const (
	carried = 1 + iota
	rendered
)

var exactMembers = map[string]uint8{ //nolint:gochecknoglobals // a table
	"model": rendered, "messages": rendered, "max_tokens": rendered, "max_completion_tokens": rendered, "min_tokens": rendered, "stream": rendered,
	"stream_options": rendered, "n": rendered, "chat_template": rendered, "chat_template_kwargs": rendered, "add_generation_prompt": rendered,
	"continue_final_message": rendered, "documents": rendered, "add_special_tokens": rendered, "tools": rendered, "tool_choice": rendered,
	"parallel_tool_calls": rendered, "reasoning_effort": rendered, "include_reasoning": rendered, "separate_reasoning": rendered, "stream_reasoning": rendered,
	"store": rendered, "metadata": rendered, "service_tier": rendered, "safety_identifier": rendered, "prompt_cache_key": rendered, "verbosity": rendered,
	"logprobs": rendered, "top_logprobs": rendered, "response_format": rendered, "modalities": rendered, "stop": rendered, "echo": rendered,

	"temperature": carried, "top_p": carried, "top_k": carried, "min_p": carried, "presence_penalty": carried, "frequency_penalty": carried,
	"repetition_penalty": carried, "logit_bias": carried, "stop_token_ids": carried, "ignore_eos": carried, "bad_words": carried, "allowed_token_ids": carried,
	"skip_special_tokens": carried, "spaces_between_special_tokens": carried, "user": carried, "priority": carried, "cache_salt": carried,
}

// AskExact is Ask for a host that takes tokens by their numbers, as the path Completions. maxContext is how many tokens prompt and answer
// may have there together, 0 when nobody knows: then a chat that sets no limit cannot be asked for so, since Completions sets one. With a
// Reason other than None nothing is appended; for all but Exhausted and Finished Ask may do.
func (s *Story) AskExact(dst, body, modelJSON []byte, maxContext int) ([]byte, Reason) {
	if r := s.Reason(); r != None {
		return dst, r
	}
	k := &s.numbers
	total, ok := s.has()
	if !ok {
		return dst, TokenIDs
	}
	var a asked
	a.read(body, s.chat)
	switch {
	case slices.ContainsFunc(a.stops, func(stop string) bool { return stop != "" }): // text is kept back then, so that it is not known which tokens are told
		return dst, Stop
	case shapeOf(s.raw()).invalid:
		return dst, Unreadable
	case s.chat && !onlyKnown(body):
		return dst, PromptForm
	}
	limit := a.limit
	switch {
	case limit >= 0:
	case !s.chat:
		limit = defaultCompletion
	case maxContext > 0:
		limit = int64(maxContext) - k.prompt + k.base // the answer's part of the prompt counts as answer
	default:
		return dst, PromptForm
	}
	if total >= limit {
		return dst, Exhausted
	}
	s.next = attempt{prefilled: true, delivered: total, exact: true}
	if s.notes == nil {
		s.notes = notesPool.Get().(*notes)
	}
	s.notes.nextSpace = s.notes.nextSpace[:0]
	if s.chat {
		return s.writeExact(dst, body, modelJSON, limit-total, total), None
	}
	return s.write(dst, body, modelJSON, written{ids: k.list.b[:k.sure], delivered: total}), None
}

// onlyKnown says that a chat's request holds nothing but what exactMembers knows.
func onlyKnown(body []byte) bool {
	m := openai.ReadMembers(body)
	for name, at, ok := m.Next(); ok; name, at, ok = m.Next() {
		if v := body[at.From:at.To]; exactMembers[string(name)] == 0 && string(v) != "null" {
			return false
		}
	}
	return true
}

// writeExact appends the request to Completions that goes on with the chat body.
func (s *Story) writeExact(dst, body, modelJSON []byte, left, total int64) []byte {
	k := &s.numbers
	dst = append(append(append(dst, `{"prompt":[`...), k.list.b[:k.sure]...), `],"max_tokens":`...)
	dst = strconv.AppendInt(dst, left, 10)
	dst = append(dst, `,"stream":true,"stream_options":{"include_usage":true},"`+openai.TokenIDs+`":true`...)
	m := openai.ReadMembers(body)
	for name, at, ok := m.Next(); ok; name, at, ok = m.Next() {
		v := body[at.From:at.To]
		switch {
		case string(name) == "model" && modelJSON == nil:
			dst = append(append(dst, `,"model":`...), v...)
		case string(name) == "min_tokens":
			if n := tokens(v); n > total {
				dst = strconv.AppendInt(append(dst, `,"min_tokens":`...), n-total, 10)
			}
		case exactMembers[string(name)] == carried:
			quoted := m.NameAt()
			dst = append(append(append(append(dst, ','), body[quoted.From:quoted.To]...), ':'), v...)
		}
	}
	if modelJSON != nil {
		dst = append(append(dst, `,"model":`...), modelJSON...)
	}
	return append(dst, '}')
}

// retell appends an event of Completions as the chat's that the caller reads.
func (s *Story) retell(dst []byte, c *openai.Chunk, data []byte, wantUsage bool) []byte {
	var stop, usage []byte
	m := openai.ReadMembers(data)
	for name, at, ok := m.Next(); ok; name, at, ok = m.Next() {
		switch string(name) {
		case "usage":
			if c.HasUsage && wantUsage {
				usage = data[at.From:at.To]
			}
		case "choices":
			if c.Finish {
				stop = stopReason(only(data[at.From:at.To]))
			}
		}
	}
	from := len(dst)
	dst = s.open(dst)
	at := 0
	if c.TextChoice {
		dst = append(dst, `"choices":[{"index":0,"delta":{"content":"`...)
		at = len(dst)
		dst = append(dst, c.Text...)
		dst = append(dst, `"},"logprobs":null,"finish_reason":`...)
		if c.Finish {
			dst = append(append(append(dst, '"'), c.FinishReason...), `","stop_reason":`...)
			dst = orNull(dst, stop)
		} else {
			dst = append(dst, "null"...)
		}
		dst = append(dst, "}]"...)
	} else {
		dst = append(dst, `"choices":[]`...)
	}
	if len(usage) > 0 {
		dst = s.appendUsage(append(dst, `,"usage":`...), usage, c.Usage)
	}
	dst = append(dst, "}\n\n"...)
	if bytes.IndexByte(dst[from:len(dst)-2], '\n') >= 0 { // of an engine that writes its JSON over several lines
		dst = append(lines(dst[:len(dst)-2], from+len("data: ")), "\n\n"...)
		return dst
	}
	if at > 0 && plain(c) {
		n := s.notes
		n.before = append(n.before[:0], data[:c.TextAt.From]...)
		n.after = append(n.after[:0], data[c.TextAt.To:]...)
		n.front = append(n.front[:0], dst[from:at]...)
		n.back = append(n.back[:0], dst[at+len(c.Text):]...)
	}
	return dst
}

// stopReason is the value of that member of a choice.
func stopReason(choice []byte) []byte {
	m := openai.ReadMembers(choice)
	for name, at, ok := m.Next(); ok; name, at, ok = m.Next() {
		if string(name) == "stop_reason" {
			return choice[at.From:at.To]
		}
	}
	return nil
}
