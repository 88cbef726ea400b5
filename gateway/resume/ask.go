package resume

import (
	"bytes"
	"encoding/json"
	"math"
	"strconv"

	"headrace/gateway/openai"
)

// defaultCompletion is how many tokens Completions writes when the request does not say, in OpenAI's API,
// vLLM and SGLang alike.
const defaultCompletion = 16

// asked is what decides on a continuation in the caller's request.
type asked struct {
	limit      int64 // of tokens, -1 for none
	completion int64 // max_completion_tokens, which goes before max_tokens
	most       int64 // max_tokens, -1 when absent or no limit
	stops      []string
	prompt     bool // there is one that can be gone on with
}

// Ask appends to dst the body of the request that continues the answer to body at a host that knows the
// model as modelJSON, a JSON string; nil leaves the model alone. body is the caller's, which Allowed has
// judged. delivered is how many tokens hosts have sent for the caller, also those that Continue dropped. trims says that the host drops white space at
// the end of an unfinished message, as chat templates do.
//
// Where nothing but white space is delivered the request is the caller's own again. In any case the
// answer is a stream with usage. Everything else is as in body, byte for byte.
//
// With a Reason other than None nothing is appended: for Exhausted and Finished all was delivered, and End
// is what is due; for the others the answer is lost. Ask can be called again, for another host; Seam makes
// the next events those of the host that was asked last.
func (s *Story) Ask(dst, body, modelJSON []byte, delivered int64, trims bool) ([]byte, Reason) {
	if r := s.Reason(); r != None {
		return dst, r
	}
	var a asked
	a.read(body, s.chat)
	delivered = max(0, delivered-s.again)
	text := s.raw()
	sh := shapeOf(text)
	if s.notes == nil {
		s.notes = notesPool.Get().(*notes)
	}
	s.notes.nextSpace = s.notes.nextSpace[:0]
	s.next = attempt{}
	if sh.solid == 0 { // what there is will come again, if it is to
		s.notes.nextSpace = decode(s.notes.nextSpace, text)
		return s.write(dst, body, modelJSON, written{}), None
	}
	said := decode(nil, text)
	switch {
	case !a.prompt:
		return dst, PromptForm
	case s.chat && thinks(said):
		return dst, Reasoning
	case sh.invalid:
		return dst, Unreadable
	case a.limit >= 0 && delivered >= a.limit:
		return dst, Exhausted
	}
	// White space at the end is cut here where the host may do it: then it is known what the host goes on
	// with. Transformers does so too where the text begins with white space, whatever the template.
	space := decode(s.notes.nextSpace, text[sh.solid:])
	if s.chat && (trims || sh.indent) || crosses(said, a.stops) {
		s.notes.nextSpace, text, said = space, text[:sh.solid], said[:len(said)-len(space)]
		delivered = max(0, delivered-s.blanks) // these will be written again, and count once
	}
	if crosses(said, a.stops) {
		return dst, Stop // the host would not find a stop string that began before its own first token
	}
	s.next = attempt{prefilled: true, delivered: delivered}
	return s.write(dst, body, modelJSON, written{text: text, delivered: delivered}), None
}

// Seam says that the next events are those of the attempt that was asked for last.
func (s *Story) Seam() {
	if s.attempt = s.next; s.exact {
		s.numbers.keepOn()
	} else {
		s.numbers.anew(s.delivered)
	}
	if n := s.notes; n != nil {
		n.space, n.nextSpace = n.nextSpace, n.space
		n.before, n.after = n.before[:0], n.after[:0]
	}
}

// read collects from body.
func (a *asked) read(body []byte, chat bool) {
	*a = asked{limit: -1, completion: -1, most: -1}
	m := openai.ReadMembers(body)
	for name, at, ok := m.Next(); ok; name, at, ok = m.Next() {
		v := body[at.From:at.To]
		switch string(name) {
		case "messages":
			a.prompt = a.prompt || chat && len(only(v)) > 0
		case "prompt":
			a.prompt = a.prompt || !chat && v[0] == '"'
		case "max_completion_tokens":
			a.completion = tokens(v)
		case "max_tokens":
			a.most = tokens(v)
		case "stop", "stop_sequences":
			a.stops = append(a.stops, texted(v)...)
		}
	}
	a.limit = a.most
	if a.completion >= 0 {
		a.limit = a.completion
	}
}

// tokens reads a number of tokens; -1 stands for null and what is no limit.
func tokens(v []byte) int64 {
	if n, err := strconv.ParseInt(string(v), 10, 64); err == nil {
		return max(n, -1)
	}
	f, err := strconv.ParseFloat(string(v), 64)
	if err != nil || f != math.Trunc(f) || f < 0 || f >= 1<<63 {
		return -1
	}
	return int64(f)
}

// texted reads a string or a list of them.
func texted(v []byte) []string {
	var one string
	if json.Unmarshal(v, &one) == nil {
		return []string{one}
	}
	var all []string
	_ = json.Unmarshal(v, &all) // what is neither is the host's to refuse
	return all
}

// written is what the next host is told of the answer: its text, as it stands in the events, or the numbers of prompt and answer. The
// zero value asks from the beginning.
type written struct {
	text, ids []byte
	delivered int64 // tokens of it
}

// write appends body with what makes it the next attempt's request.
func (s *Story) write(dst, body, modelJSON []byte, w written) []byte {
	text, delivered := w.text, w.delivered
	goes := w.text != nil || w.ids != nil
	done := 0
	replace := func(at openai.Span, by string) {
		dst = append(append(dst, body[done:at.From]...), by...)
		done = at.To
	}
	var names, streams, options, continues, adds, limits bool
	m := openai.ReadMembers(body)
	for name, at, ok := m.Next(); ok; name, at, ok = m.Next() {
		v := body[at.From:at.To]
		switch string(name) {
		case "model":
			if names = true; modelJSON != nil {
				replace(at, string(modelJSON))
			}
		case "stream":
			streams = true
			replace(at, "true")
		case "stream_options":
			options = true
			dst = append(dst, body[done:at.From]...)
			dst = withUsage(dst, v)
			done = at.To
		case "max_tokens", "max_completion_tokens", "min_tokens":
			limits = limits || string(name) == "max_tokens"
			if n := tokens(v); goes && n > 0 {
				least := int64(1)
				if string(name) == "min_tokens" {
					least = 0
				}
				replace(at, strconv.FormatInt(max(least, n-delivered), 10))
			}
		case "messages", "prompt":
			if w.ids != nil && string(name) == "prompt" {
				replace(at, "["+string(w.ids)+"]")
				break
			}
			if text == nil || s.chat != (string(name) == "messages") {
				break
			}
			end := at.To - 1 // in front of the bracket or quote
			dst = append(dst, body[done:end]...)
			if s.chat {
				dst = append(dst, `,{"role":"assistant","content":"`...)
			}
			dst = appendRaw(dst, text)
			if s.chat {
				dst = append(dst, `"}`...)
			}
			done = end
		case "continue_final_message":
			if continues = true; text != nil && s.chat {
				replace(at, "true")
			}
		case "add_generation_prompt":
			if adds = true; text != nil && s.chat {
				replace(at, "false")
			}
		}
	}
	end := bytes.LastIndexByte(body, '}')
	dst = append(dst, body[done:end]...)
	if modelJSON != nil && !names {
		dst = append(append(dst, `,"model":`...), modelJSON...)
	}
	if !streams {
		dst = append(dst, `,"stream":true`...)
	}
	if !options {
		dst = append(dst, `,"stream_options":{"include_usage":true}`...)
	}
	if text != nil && s.chat && !continues {
		dst = append(dst, `,"continue_final_message":true`...)
	}
	if text != nil && s.chat && !adds {
		dst = append(dst, `,"add_generation_prompt":false`...)
	}
	if goes && !s.chat && !limits && delivered < defaultCompletion {
		dst = append(dst, `,"max_tokens":`...)
		dst = strconv.AppendInt(dst, defaultCompletion-delivered, 10)
	}
	if w.ids != nil {
		dst = append(dst, `,"`+openai.TokenIDs+`":true`...)
	}
	return append(dst, body[end:]...)
}

// withUsage appends the stream_options v with include_usage true.
func withUsage(dst, v []byte) []byte {
	if v[0] != '{' {
		return append(dst, `{"include_usage":true}`...)
	}
	done, found, empty := 0, false, true
	m := openai.ReadMembers(v)
	for name, at, ok := m.Next(); ok; name, at, ok = m.Next() {
		if empty = false; string(name) == "include_usage" {
			dst = append(append(dst, v[done:at.From]...), "true"...)
			done, found = at.To, true
		}
	}
	end := len(v) - 1
	dst = append(dst, v[done:end]...)
	if !found {
		if !empty {
			dst = append(dst, ',')
		}
		dst = append(dst, `"include_usage":true`...)
	}
	return append(dst, v[end:]...)
}
