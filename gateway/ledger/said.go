package ledger

import (
	"bytes"
	"encoding/json"
	"strconv"
	"sync/atomic"
)

// Said is what one request asked and what it was answered, for traces that are to have it (telemetry.content). Nothing else gets or keeps
// it: CopyTo leaves it out. Its owner is the request until it is settled, and from then on who took it from the record, but for Release.
type Said struct {
	Asked []byte // the request's body; nil where it is longer than Room
	// Answered has JSON texts, each with a line feed behind it: what events say that say a piece of one thing and nothing else, other events, or the
	// answer in one piece. A string is text; a list has "reasoning" and a piece of that, or "arguments", the index of a tool call and a
	// piece of those.
	Answered []byte
	Room     int  // bytes of each
	Cut      bool // something is not there that Missing does not know of by itself

	under *Bound // nil for none
	taken int64  // bytes of it
	full  bool   // Answered takes no more
	last  thing  // that the last of Answered is a piece of, which goes on
}

// thing is what a piece is one of. The zero value is none.
type thing struct {
	head string // of its line
	call int    // behind "arguments"
}

// Bound is how many bytes of what was said the requests under way may keep together.
type Bound struct{ left atomic.Int64 }

// NewBound returns one of that many bytes.
func NewBound(bytes int64) *Bound {
	b := &Bound{}
	b.left.Store(bytes)
	return b
}

// Left is how many bytes there is room for.
func (b *Bound) Left() int64 { return b.left.Load() }

// NewSaid returns one for that many bytes of a request and of its answer, each, while b has them too. It is given back by Release.
func NewSaid(room int, b *Bound) *Said { return &Said{Room: room, under: b} }

// Missing tells whether something that was said is not there.
func (s *Said) Missing() bool { return s.Cut || s.full }

// Release gives back what s has of its bound. Whoever has taken s keeps what it holds.
func (s *Said) Release() {
	if s != nil {
		s.take(-s.taken)
	}
}

// take asks the bound for n bytes more; less than none are given back.
func (s *Said) take(n int64) bool {
	if s.under == nil {
		return true
	}
	if s.under.left.Add(-n) < 0 && n > 0 {
		s.under.left.Add(n)
		return false
	}
	s.taken += n
	return true
}

// Ask takes the request's body, which it copies.
func (s *Said) Ask(body []byte) {
	if len(body) > s.Room || !s.take(int64(len(body))) {
		s.Cut = true
		return
	}
	s.Asked = append(s.Asked[:0], body...)
}

// fits tells whether there is room for n bytes more of the answer. Once there is not, all that follows is left out too: what is there
// stands together.
func (s *Said) fits(n int) bool {
	s.full = s.full || len(s.Answered)+n > s.Room || !s.take(int64(n))
	return !s.full
}

var choices = []byte(`"choices":`)

// Answer takes the data of one event more, or an answer in one piece, and copies it, of Chat Completions and Completions without what
// stands in front of the choices and is the same in all events. It is left out whole if it does not fit, or is no JSON.
func (s *Said) Answer(data []byte) {
	if s.full {
		return
	}
	if !json.Valid(data) {
		s.Cut = true
		return
	}
	if i := bytes.Index(data, choices); i > 1 && s.line('{', data[i:]) {
		return
	}
	s.line(0, data)
}

// line adds data, behind first if that is not 0, and says whether it is JSON or there is no room for it.
func (s *Said) line(first byte, data []byte) bool {
	from := len(s.Answered)
	if !s.fits(len(data) + 2) {
		return true
	}
	if first != 0 {
		s.Answered = append(s.Answered, first)
	}
	s.Answered = append(append(s.Answered, data...), '\n')
	if first != 0 && !json.Valid(s.Answered[from:]) {
		s.take(-int64(len(data) + 2))
		s.Answered = s.Answered[:from]
		return false
	}
	s.last = thing{}
	return true
}

const (
	ofText      = `"`
	ofReasoning = `["reasoning","`
	ofArguments = `["arguments",`
)

// Text takes what an event says that says nothing else: a JSON string, quotes included. Those that follow each other become one.
func (s *Said) Text(quoted []byte) { s.piece(thing{head: ofText}, quoted, "\"\n") }

// Reasoning takes likewise what is said of the way there.
func (s *Said) Reasoning(quoted []byte) { s.piece(thing{head: ofReasoning}, quoted, "\"]\n") }

// Arguments takes likewise those of the tool call of that index.
func (s *Said) Arguments(call int, quoted []byte) { s.piece(thing{ofArguments, call}, quoted, "\"]\n") }

// piece adds to the last line, which ends in tail, what goes on with it, or begins a line. It is left out if it is empty.
func (s *Said) piece(of thing, quoted []byte, tail string) {
	switch {
	case s.full || len(quoted) < 3:
		return
	case !json.Valid(quoted):
		s.Cut = true
		return
	}
	inner := quoted[1 : len(quoted)-1]
	if s.last == of {
		if s.fits(len(inner)) {
			s.Answered = append(append(s.Answered[:len(s.Answered)-len(tail)], inner...), tail...)
		}
		return
	}
	var number [24]byte
	index := number[:0]
	if of.head == ofArguments {
		index = append(strconv.AppendInt(index, int64(of.call), 10), `,"`...)
	}
	if s.fits(len(of.head) + len(index) + len(inner) + len(tail)) {
		s.Answered = append(append(append(append(s.Answered, of.head...), index...), inner...), tail...)
		s.last = of
	}
}

// Anew forgets what was answered: another host begins from the beginning.
func (s *Said) Anew() {
	s.take(-min(s.taken, int64(len(s.Answered))))
	s.Answered, s.full, s.last = s.Answered[:0], false, thing{}
}
