package resume

import (
	"bytes"

	"headrace/gateway/openai"
	"headrace/gateway/sse"
)

// Story is what the caller has of one answer. The zero value is ready for Begin.
type Story struct {
	chat     bool
	gather   bool
	limit    int    // bytes of text
	most     int    // bytes that are gathered
	reason   Reason // why no other host can go on
	odd      Reason // why Whole cannot put it together
	headed   bool   // the members that all events share are noted
	role     bool   // the caller knows who speaks
	finished bool   // a finish_reason was seen
	reported bool   // usage was seen behind it
	ended    bool   // [DONE] was seen
	text     *buffer
	blanks   int64 // events at the end of the text that are white space and nothing else
	again    int64 // events that were dropped because they said what was there
	notes    *notes
	numbers  numbers

	prompt int64 // tokens of the caller's prompt, -1 while nobody has told
	attempt
	next attempt // what Ask has prepared
}

// attempt is what the attempt whose events are seen builds on.
type attempt struct {
	prefilled bool  // it continues the text, else it answers from the beginning
	delivered int64 // tokens of the text that it was given
	exact     bool  // by their numbers
}

// notes are what else is kept of an answer. All are raw JSON.
type notes struct {
	id, created, model, fingerprint []byte

	before, after []byte // the newest event without its text
	front, back   []byte // what the caller saw around the text, at a later attempt

	roleName             []byte
	reasoning            [2][]byte // inside of strings, by the names below
	reasoned             [2]bool
	refusal              []byte
	finish               []byte
	usage                []byte
	top, choice, message fields
	space, nextSpace     []byte // decoded white space that is dropped if the next text begins with it
}

var reasoningNames = [2]string{"reasoning_content", "reasoning"}

// fields are members that nobody here knows, with their last values.
type fields []field

type field struct{ name, value []byte }

// set keeps a value that is not null. name has its quotes. false means that there are too many.
func (f *fields) set(name, value []byte) bool {
	if len(value) == 0 || value[0] == 'n' {
		return true
	}
	for i := range *f {
		if one := &(*f)[i]; bytes.Equal(one.name, name) {
			one.value = append(one.value[:0], value...)
			return true
		}
	}
	n := len(*f)
	if n == maxFields {
		return false
	}
	if n < cap(*f) {
		*f = (*f)[:n+1]
	} else {
		*f = append(*f, field{})
	}
	one := &(*f)[n]
	one.name = append(one.name[:0], name...)
	one.value = append(one.value[:0], value...)
	return true
}

// What is gathered is bounded for the sake of hosts that never come to an end.
const (
	maxFields = 64       // members that nobody here knows, in one object
	mostWhole = 16 << 20 // bytes of text, and of reasoning, unless Bound says otherwise
)

// Begin readies s for an answer: of Chat Completions or, with chat false, Completions. With gather, Whole
// is wanted in the end. Of more than limit bytes of text, as they stand in the events, s keeps no more than
// gather needs, and the answer cannot be continued.
func (s *Story) Begin(chat, gather bool, limit int) {
	s.Release()
	s.chat, s.gather, s.limit, s.most, s.prompt = chat, gather, limit, mostWhole, -1
}

// Bound sets how many bytes of text, and as many of reasoning and of a refusal, are gathered: of a longer answer Whole says TooLong. It
// is to be called behind Begin; without it they are 16 MiB.
func (s *Story) Bound(most int) { s.most = most }

// Overlong says that more came than is gathered, so that Whole will not put it together.
func (s *Story) Overlong() bool { return s.odd == TooLong }

// Release gives the memory of s back; s is as if new.
func (s *Story) Release() {
	if s.text != nil {
		s.text.free()
	}
	s.numbers.free()
	if n := s.notes; n != nil {
		n.clear()
		notesPool.Put(n)
	}
	*s = Story{}
}

// clear empties n, and keeps the memory of what is short as a rule.
func (n *notes) clear() {
	const most = 4 << 10 // bytes
	for _, b := range [...]*[]byte{
		&n.id, &n.created, &n.model, &n.fingerprint, &n.before, &n.after, &n.front, &n.back, &n.roleName, &n.reasoning[0], &n.reasoning[1], &n.refusal,
		&n.finish, &n.usage, &n.space, &n.nextSpace,
	} {
		if *b = (*b)[:0]; cap(*b) > most {
			*b = nil
		}
	}
	n.reasoned = [2]bool{}
	for _, f := range [...]*fields{&n.top, &n.choice, &n.message} {
		for i := range *f {
			if cap((*f)[i].value) > most {
				(*f)[i].value = nil
			}
		}
		*f = (*f)[:0]
	}
}

// Reason says why no other host can go on with the answer, by what was seen of it; None when one can. What is
// gathered and not yet with the caller can always be asked for from the beginning, behind another Begin.
func (s *Story) Reason() Reason {
	if s.finished {
		return Finished
	}
	return s.reason
}

// Finished says that a finish_reason was seen: only usage or [DONE] can be missing, and End writes them.
func (s *Story) Finished() bool { return s.finished }

// Size is how many bytes of text were kept, as they stand in the events.
func (s *Story) Size() int { return len(s.raw()) }

func (s *Story) raw() []byte {
	if s.text == nil {
		return nil
	}
	return s.text.b
}

// refuse notes the first reason.
func (s *Story) refuse(r Reason) {
	if s.reason == None {
		s.reason = r
	}
	if s.reason != None {
		s.numbers.give()
	}
	if !s.gather && s.text != nil && s.reason != None { // nobody will ask for it
		s.text.free()
		s.text = nil
	}
}

// See takes an event of the first attempt, which goes to the caller as it came. It keeps nothing of c and ev.
func (s *Story) See(c *openai.Chunk, ev *sse.Event) {
	if plain(c) && !c.Malformed && s.headed && (!s.gather || s.alike(c, ev.Data)) {
		s.say(c.Text)
		return
	}
	switch {
	case !s.tells(c, ev):
		return
	case c.Malformed: // and the caller has it
		s.refuse(Unreadable)
		s.odd = Unreadable
		return
	}
	s.refuse(judge(c))
	s.mark(c)
	s.note(c, ev.Data)
	s.say(c.Text)
}

// alike says whether data is the newest event that was noted but for the text, as most are.
func (s *Story) alike(c *openai.Chunk, data []byte) bool {
	n := s.notes
	at := c.TextAt
	return at.Present() && len(n.before) == at.From && len(n.after) == len(data)-at.To &&
		string(data[:at.From]) == string(n.before) && string(data[at.To:]) == string(n.after)
}

// say appends text.
func (s *Story) say(raw []byte) {
	if len(raw) == 0 {
		return
	}
	s.role = true // it is too late to tell otherwise
	if len(raw) > s.limit-len(s.raw()) {
		s.refuse(TooLong)
	}
	if s.reason != None && !s.gather {
		return
	}
	if len(raw) > s.most-len(s.raw()) {
		s.odd = TooLong
		return
	}
	if s.text == nil {
		s.text = takeBuffer(len(raw))
	}
	s.text = s.text.add(raw)
	if s.blanks++; !blank(raw) {
		s.blanks = 0
	}
}

// tells says whether there is something in an event besides an end mark, which it notes.
func (s *Story) tells(c *openai.Chunk, ev *sse.Event) bool {
	s.ended = s.ended || c.Done
	return len(ev.Data) > 0 && !c.Done && !c.Error && !c.Aborted() // the last two are the relay's business
}

// mark notes ends and usage.
func (s *Story) mark(c *openai.Chunk) {
	if s.notes == nil {
		s.notes = notesPool.Get().(*notes)
	}
	s.finished = s.finished || c.Finish
	s.reported = s.reported || c.UsageOnly || c.HasUsage && s.finished
	if c.HasUsage && !s.prefilled && c.Usage.Prompt >= 0 {
		s.prompt = c.Usage.Prompt
	}
}

// judge says why an answer with such an event in it cannot be continued.
func judge(c *openai.Chunk) Reason {
	switch {
	case c.ToolCall:
		return ToolCall
	case c.Content && !c.TextChoice:
		return Choices
	case c.Reasoning:
		return Reasoning
	case c.Other:
		return Unreadable
	}
	return None
}

// note keeps what an event says besides its text: what all events share of the first one, all of it for Whole.
func (s *Story) note(c *openai.Chunk, data []byte) {
	first := !s.headed && c.TextChoice
	if !first && !s.gather {
		return
	}
	n := s.notes
	s.headed = s.headed || first
	m := openai.ReadMembers(data)
	for name, at, ok := m.Next(); ok; name, at, ok = m.Next() {
		v := data[at.From:at.To]
		switch string(name) {
		case "id":
			keep(&n.id, v, first)
		case "created":
			keep(&n.created, v, first)
		case "model":
			keep(&n.model, v, first)
		case "system_fingerprint":
			keep(&n.fingerprint, v, first)
		case "object":
		case "choices":
			s.noteChoice(c, v)
		case "usage":
			if v[0] == '{' && s.gather {
				n.usage = s.appendUsage(n.usage[:0], v, c.Usage)
			}
		default:
			if s.gather {
				quoted := m.NameAt()
				s.keepField(&n.top, data[quoted.From:quoted.To], v)
			}
		}
	}
	if s.gather && c.TextAt.Present() {
		n.before = append(n.before[:0], data[:c.TextAt.From]...)
		n.after = append(n.after[:0], data[c.TextAt.To:]...)
	}
}

func (s *Story) keepField(f *fields, name, value []byte) {
	if !f.set(name, value) {
		s.odd = Unreadable
	}
}

// keep sets a member that all events share.
func keep(to *[]byte, v []byte, first bool) {
	if first && v[0] != 'n' {
		*to = append((*to)[:0], v...)
	}
}

// only returns the only element of the array v, without the white space around it.
func only(v []byte) []byte {
	if len(v) < 2 || v[0] != '[' {
		return nil
	}
	return bytes.TrimSpace(v[1 : len(v)-1])
}

// some says whether v is an object or a list with something in it.
func some(v []byte) bool { return v[0] == '{' || len(only(v)) > 0 }

func (s *Story) noteChoice(c *openai.Chunk, v []byte) {
	if !c.TextChoice {
		if c.Content || c.Finish {
			s.odd = Choices
		}
		return
	}
	v = only(v)
	m := openai.ReadMembers(v)
	for name, at, ok := m.Next(); ok; name, at, ok = m.Next() {
		quoted, value := m.NameAt(), v[at.From:at.To]
		switch string(name) {
		case "index", "text":
		case "delta", "message":
			s.noteDelta(value)
		case "finish_reason":
			if c.Finish {
				s.notes.finish = append(s.notes.finish[:0], value...)
			}
		case "logprobs":
			if value[0] != 'n' {
				s.odd = Logprobs
			}
		default:
			if s.gather {
				s.keepField(&s.notes.choice, v[quoted.From:quoted.To], value)
			}
		}
	}
}

func (s *Story) noteDelta(v []byte) {
	n := s.notes
	m := openai.ReadMembers(v)
	for name, at, ok := m.Next(); ok; name, at, ok = m.Next() {
		quoted, value := m.NameAt(), v[at.From:at.To]
		switch string(name) {
		case "role":
			if value[0] == '"' {
				s.role = true
				n.roleName = append(n.roleName[:0], value...)
			}
		case "content":
			if value[0] != '"' && value[0] != 'n' {
				s.odd = Unreadable
			}
		case reasoningNames[0]:
			s.think(0, value)
		case reasoningNames[1]:
			s.think(1, value)
		case "refusal":
			switch inside, ok := inside(value); {
			case ok && len(inside) > s.most-len(n.refusal):
				s.odd = TooLong
			case ok:
				n.refusal = append(n.refusal, inside...)
			}
		case "tool_calls", "function_call":
			if some(value) {
				s.odd = ToolCall
			}
		case "audio":
			if some(value) {
				s.odd = Audio
			}
		case "reasoning_details": // a list that goes on with each event
			if some(value) {
				s.odd = Unreadable
			}
		default:
			if s.gather {
				s.keepField(&n.message, v[quoted.From:quoted.To], value)
			}
		}
	}
}

// inside is what is between the quotes of the string v.
func inside(v []byte) (s []byte, ok bool) {
	if v[0] != '"' {
		return nil, false
	}
	return v[1 : len(v)-1], true
}

// think notes reasoning by the name i.
func (s *Story) think(i int, value []byte) {
	n := s.notes
	inside, ok := inside(value)
	switch {
	case !ok:
	case len(inside) > s.most-len(n.reasoning[i]):
		s.odd = TooLong
	default:
		n.reasoning[i], n.reasoned[i] = append(n.reasoning[i], inside...), true
	}
}
