package resume

import (
	"bytes"
	"strconv"

	"headrace/gateway/openai"
	"headrace/gateway/sse"
)

var doneEvent = []byte("data: [DONE]\n\n")

// Continue appends to dst what the caller is to see instead of an event of a later attempt: a whole event
// with the blank line behind it, or nothing. The caller sees one id, created, model and fingerprint, one
// role, no white space twice, and usage, if wantUsage, of the answer as a whole. While the answer is
// gathered nothing is ever appended. Error events and aborted ends are passed over: they are the relay's business.
//
// With a Reason other than None the event cannot belong to the answer, and the attempt is of no use: a host
// that reasons anew, calls a tool, or writes what cannot be read. Nothing is appended, and s is as before:
// another host may be asked.
func (s *Story) Continue(dst []byte, c *openai.Chunk, ev *sse.Event, wantUsage bool) ([]byte, Reason) {
	if s.framed(c, ev) {
		n := s.notes
		s.say(c.Text)
		return append(append(append(dst, n.front...), c.Text...), n.back...), None
	}
	ended := s.ended
	switch {
	case !s.tells(c, ev):
		if s.ended && !ended && !s.gather {
			dst = append(dst, doneEvent...)
		}
		return dst, None
	case c.Malformed:
		s.unnumber()
		return dst, Unreadable
	}
	r := judge(c)
	if r != None && s.prefilled {
		s.unnumber()
		return dst, r
	}
	s.refuse(r)
	s.mark(c)
	spoke := s.role
	cut := s.dropSpace(c.Text)
	if cut > 0 && cut == len(c.Text) {
		s.again++
	}
	s.note(c, ev.Data)
	role := s.role && !spoke
	s.say(c.Text[cut:])
	if s.gather || len(c.Text) == cut && !role && !c.Finish && !c.Reasoning && !c.Other && !(c.HasUsage && wantUsage) {
		return dst, None
	}
	if s.exact && s.chat {
		return s.retell(dst, c, ev.Data, wantUsage), None
	}
	if ev.Name != nil {
		dst = append(append(append(dst, "event: "...), ev.Name...), '\n')
	}
	dst = append(dst, "data: "...)
	at := len(dst)
	w := writer{s: s, c: c, dst: dst, data: ev.Data, cut: cut, spoke: spoke, wantUsage: wantUsage}
	w.event()
	dst = append(lines(w.dst, at), "\n\n"...)
	if spoke && w.said > 0 && len(dst) == len(w.dst)+2 && plain(c) && ev.Name == nil {
		n := s.notes
		n.before = append(n.before[:0], ev.Data[:c.TextAt.From]...)
		n.after = append(n.after[:0], ev.Data[c.TextAt.To:]...)
		n.front = append(n.front[:0], dst[at-len("data: "):w.said]...)
		n.back = append(n.back[:0], dst[w.said+len(c.Text)-cut:]...)
	}
	return dst, None
}

// plain says that an event holds text at most.
func plain(c *openai.Chunk) bool {
	return c.TextChoice && !c.Finish && !c.Other && !c.Reasoning && !c.HasUsage
}

// framed says whether an event is like the newest one but for its text, as most are: then front and back go around that.
func (s *Story) framed(c *openai.Chunk, ev *sse.Event) bool {
	n := s.notes
	return plain(c) && n != nil && len(n.front) > 0 && len(c.Text) > 0 && ev.Name == nil && s.alike(c, ev.Data)
}

// dropSpace returns how many bytes of text are white space that the caller has already.
func (s *Story) dropSpace(text []byte) (n int) {
	space := s.notes.space
	for len(space) > 0 && n < len(text) {
		c, size := character(text[n:])
		var one [4]byte
		want := append(one[:0], string(c)...)
		if !bytes.HasPrefix(space, want) {
			space = nil
			break
		}
		space = space[len(want):]
		n += size
	}
	s.notes.space = append(s.notes.space[:0], space...)
	return n
}

// lines puts the field's name in front of each line of the data that begins at from, but for the first.
func lines(dst []byte, from int) []byte {
	if bytes.IndexByte(dst[from:], '\n') < 0 {
		return dst
	}
	data := bytes.ReplaceAll(dst[from:], []byte("\n"), []byte("\ndata: "))
	return append(dst[:from], data...)
}

// writer copies an event and changes what has to be changed.
type writer struct {
	s         *Story
	c         *openai.Chunk
	dst       []byte
	data      []byte
	done      int // bytes of data that are in dst or replaced
	cut       int // bytes at the front of the text that are dropped
	said      int // index in dst of the text
	spoke     bool
	wantUsage bool
}

func (w *writer) replace(from, to int, by []byte) {
	w.dst = append(append(w.dst, w.data[w.done:from]...), by...)
	w.done = to
}

func (w *writer) event() {
	n := w.s.notes
	m := openai.ReadMembers(w.data)
	for name, at, ok := m.Next(); ok; name, at, ok = m.Next() {
		switch string(name) {
		case "id":
			w.share(at, n.id)
		case "created":
			w.share(at, n.created)
		case "model":
			w.share(at, n.model)
		case "system_fingerprint":
			if w.share(at, n.fingerprint); len(n.fingerprint) == 0 {
				w.replace(at.From, at.To, []byte("null"))
			}
		case "usage":
			v := w.data[at.From:at.To]
			switch {
			case v[0] != '{':
			case !w.wantUsage:
				w.replace(at.From, at.To, []byte("null"))
			case w.s.prefilled:
				w.replace(at.From, at.To, nil)
				w.dst = w.s.appendUsage(w.dst, v, w.c.Usage)
			}
		case "choices":
			if w.c.TextChoice {
				w.choice(at)
			}
		}
	}
	w.dst = append(w.dst, w.data[w.done:]...)
}

// share puts in the value that the first event had.
func (w *writer) share(at openai.Span, v []byte) {
	if len(v) > 0 {
		w.replace(at.From, at.To, v)
	}
}

// choice looks at the only element of the array at.
func (w *writer) choice(at openai.Span) {
	v := only(w.data[at.From:at.To])
	if len(v) == 0 || v[0] != '{' { // there are two such members
		return
	}
	from := at.From + bytes.IndexByte(w.data[at.From:at.To], '{')
	m := openai.ReadMembers(v)
	for name, at, ok := m.Next(); ok; name, at, ok = m.Next() {
		at.From, at.To = at.From+from, at.To+from
		switch string(name) {
		case "delta":
			w.delta(at)
		case "text":
			w.text(at)
		}
	}
}

func (w *writer) text(at openai.Span) {
	if at == w.c.TextAt {
		w.replace(at.From+1, at.From+1+w.cut, nil)
		w.said = len(w.dst)
	}
}

// delta takes the role out where the caller knows it.
func (w *writer) delta(at openai.Span) {
	m := openai.ReadMembers(w.data[at.From:at.To])
	end := at.From + 1 // of the member in front
	from := -1         // where the first member begins, if it is to go
	first := true
	for name, v, ok := m.Next(); ok; name, v, ok = m.Next() {
		member := m.NameAt().From + at.From
		v.From, v.To = v.From+at.From, v.To+at.From
		if from >= 0 {
			w.replace(from, member, nil)
			from = -1
		}
		switch {
		case string(name) != "role" || !w.spoke:
			if string(name) == "content" {
				w.text(v)
			}
			first, end = false, v.To
		case first:
			from, end = member, v.To
		default:
			w.replace(end, v.To, nil)
			end = v.To
		}
	}
	if from >= 0 {
		w.replace(from, end, nil)
	}
}

// Usage is what the caller is to be told where the attempt under way reports u.
func (s *Story) Usage(u openai.Usage) openai.Usage {
	if !s.prefilled {
		return u
	}
	if u.Completion >= 0 {
		u.Completion += s.delivered
	}
	if u.Prompt >= 0 { // the text was part of it
		u.Prompt = max(0, u.Prompt-s.delivered)
	}
	if s.prompt >= 0 {
		u.Prompt = s.prompt
	}
	if u.Prompt >= 0 {
		u.Cached = min(u.Cached, u.Prompt)
	}
	return u
}

// appendUsage appends the value v of "usage", in which u was found, as the caller is to see it.
func (s *Story) appendUsage(dst, v []byte, u openai.Usage) []byte {
	if !s.prefilled {
		return append(dst, v...)
	}
	u = s.Usage(u)
	done := 0
	put := func(at openai.Span, n int64) {
		if v[at.From]-'0' <= 9 && n >= 0 {
			dst = strconv.AppendInt(append(dst, v[done:at.From]...), n, 10)
			done = at.To
		}
	}
	m := openai.ReadMembers(v)
	for name, at, ok := m.Next(); ok; name, at, ok = m.Next() {
		switch string(name) {
		case "prompt_tokens":
			put(at, u.Prompt)
		case "completion_tokens":
			put(at, u.Completion)
		case "total_tokens":
			put(at, u.Prompt+max(0, u.Completion))
		case "prompt_tokens_details":
			details := openai.ReadMembers(v[at.From:at.To])
			for name, in, ok := details.Next(); ok; name, in, ok = details.Next() {
				if string(name) == "cached_tokens" {
					put(openai.Span{From: in.From + at.From, To: in.To + at.From}, u.Cached)
				}
			}
		}
	}
	return append(dst, v[done:]...)
}

// End appends the events that end an answer of which all text is delivered: a finish_reason "length" where
// none was seen, u where usage is wanted and was not reported, and [DONE]. u.Completion counts as Ask's delivered does;
// u.Prompt -1 stands for what was
// reported before the break; where that is unknown as well no usage is told. While the answer is gathered
// nothing is appended, but Whole knows it.
func (s *Story) End(dst []byte, wantUsage bool, u openai.Usage) []byte {
	if s.notes == nil {
		s.notes = notesPool.Get().(*notes)
	}
	n := s.notes
	if !s.finished {
		s.finished = true
		n.finish = append(n.finish[:0], `"length"`...)
		if !s.gather {
			dst = s.open(dst)
			if s.chat {
				dst = append(dst, `"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length","stop_reason":null}]}`...)
			} else {
				dst = append(dst, `"choices":[{"index":0,"text":"","logprobs":null,"finish_reason":"length","stop_reason":null}]}`...)
			}
			dst = append(dst, "\n\n"...)
		}
	}
	if u.Prompt < 0 {
		u.Prompt = s.prompt
	}
	u.Completion = max(-1, u.Completion-s.again)
	if !s.reported && u.Prompt >= 0 && u.Completion >= 0 {
		s.reported = true
		n.usage = append(n.usage[:0], `{"prompt_tokens":`...)
		n.usage = strconv.AppendInt(n.usage, u.Prompt, 10)
		n.usage = strconv.AppendInt(append(n.usage, `,"total_tokens":`...), u.Prompt+u.Completion, 10)
		n.usage = strconv.AppendInt(append(n.usage, `,"completion_tokens":`...), u.Completion, 10)
		n.usage = append(n.usage, '}')
		if wantUsage && !s.gather {
			dst = append(s.open(dst), `"choices":[],"usage":`...)
			dst = append(append(dst, n.usage...), "}\n\n"...)
		}
	}
	if !s.ended && !s.gather {
		s.ended = true
		dst = append(dst, doneEvent...)
	}
	return dst
}

// open appends the beginning of an event, with what all of them share.
func (s *Story) open(dst []byte) []byte {
	object := `"text_completion",`
	if s.chat {
		object = `"chat.completion.chunk",`
	}
	dst = s.notes.head(append(dst, "data: {"...), object)
	return member(dst, `"system_fingerprint":`, s.notes.fingerprint)
}

// head appends the members that every event of an answer begins with, and so does the whole of it; object is what it is, and a comma.
func (n *notes) head(dst []byte, object string) []byte {
	dst = member(dst, `"id":`, n.id)
	dst = append(append(dst, `"object":`...), object...)
	dst = member(dst, `"created":`, n.created)
	return member(dst, `"model":`, n.model)
}

// member appends a member and a comma, nothing where there is no value.
func member(dst []byte, name string, v []byte) []byte {
	if len(v) == 0 {
		return dst
	}
	return append(append(append(dst, name...), v...), ',')
}
