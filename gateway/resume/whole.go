package resume

import "slices"

// Members that vLLM writes, be they null, in its order. Those behind the first are Chat Completions' alone.
const tier = `"service_tier"`

var (
	topNames     = []string{`"kv_transfer_params"`, `"prompt_logprobs"`, `"prompt_token_ids"`}
	choiceNames  = []string{`"stop_reason"`, `"token_ids"`}
	messageNames = []string{`"annotations"`, `"audio"`, `"function_call"`}
)

// Whole appends the answer, of which all events were gathered, as the one JSON object that vLLM answers a
// request with that asks for no stream: a chat.completion or text_completion. With a Reason other than
// None it cannot be put together, and nothing is appended: several choices, tool calls, audio, logprobs or
// an unreadable event.
func (s *Story) Whole(dst []byte) ([]byte, Reason) {
	switch {
	case s.odd != None:
		return dst, s.odd
	case s.notes == nil:
		return dst, Unreadable
	}
	n, object := s.notes, `"text_completion",`
	if s.chat {
		object = `"chat.completion",`
	}
	dst = n.head(append(dst, '{'), object)
	dst = append(dst, `"choices":[{"index":0,`...)
	if s.chat {
		dst = s.message(dst)
	} else {
		dst = append(appendRaw(append(dst, `"text":"`...), s.raw()), '"')
	}
	dst = append(dst, `,"logprobs":null,"finish_reason":`...)
	dst = orNull(dst, n.finish)
	choice, top := choiceNames, topNames
	if !s.chat {
		choice, top = choice[:1], top[:1]
	}
	dst = n.choice.named(dst, choice...)
	dst = append(n.choice.rest(dst, choice...), `}]`...)
	dst = n.top.named(dst, tier)
	dst = orNull(append(dst, `,"system_fingerprint":`...), n.fingerprint)
	if len(n.usage) > 0 {
		dst = append(append(dst, `,"usage":`...), n.usage...)
	}
	dst = n.top.named(dst, top...)
	return append(n.top.rest(dst, append(slices.Clip(top), tier)...), '}'), None
}

// message appends the member "message".
func (s *Story) message(dst []byte) []byte {
	n := s.notes
	dst = append(dst, `"message":{"role":`...)
	if len(n.roleName) > 0 {
		dst = append(dst, n.roleName...)
	} else {
		dst = append(dst, `"assistant"`...)
	}
	text := s.raw()
	thought := len(n.reasoning[0]) > 0 || len(n.reasoning[1]) > 0
	if dst = append(dst, `,"content":`...); len(text) > 0 || !thought && len(n.refusal) == 0 {
		dst = append(appendRaw(append(dst, '"'), text), '"')
	} else {
		dst = append(dst, "null"...)
	}
	dst = quoted(dst, `,"refusal":`, n.refusal)
	dst = n.message.named(dst, messageNames...)
	for i, name := range reasoningNames {
		if i == 0 || n.reasoned[i] {
			dst = append(append(append(dst, `,"`...), name...), `":`...)
			dst = quoted(dst, "", n.reasoning[i])
		}
	}
	return append(n.message.rest(dst, messageNames...), '}')
}

// quoted appends a member that is a string, null when it is empty.
func quoted(dst []byte, name string, raw []byte) []byte {
	dst = append(dst, name...)
	if len(raw) == 0 {
		return append(dst, "null"...)
	}
	return append(appendRaw(append(dst, '"'), raw), '"')
}

func orNull(dst, v []byte) []byte {
	if len(v) == 0 {
		return append(dst, "null"...)
	}
	return append(dst, v...)
}

// named appends commas and the members of those names, null where there is none.
func (f fields) named(dst []byte, names ...string) []byte {
	for _, name := range names {
		var value []byte
		for _, one := range f {
			if string(one.name) == name {
				value = one.value
			}
		}
		dst = orNull(append(append(append(dst, ','), name...), ':'), value)
	}
	return dst
}

// rest appends the other members.
func (f fields) rest(dst []byte, names ...string) []byte {
	for _, one := range f {
		if !slices.Contains(names, string(one.name)) {
			dst = append(append(append(append(dst, ','), one.name...), ':'), one.value...)
		}
	}
	return dst
}
