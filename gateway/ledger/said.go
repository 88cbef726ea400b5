package ledger

// Said is what one request asked and what it was answered, for traces that are to have it (telemetry.content). Nothing else gets or keeps
// it: CopyTo leaves it out. Its owner is the request until it is settled, and from then on who took it from the record.
type Said struct {
	Asked    []byte // the request's body; nil where it is longer than Room
	Answered []byte // the data of the answer's events, each with a line feed behind it; or its body, where it came in one piece
	Room     int    // bytes of each
	Cut      bool   // one of them is not all there
	full     bool   // Answered takes no more
}

// Ask takes the request's body, which it copies.
func (s *Said) Ask(body []byte) {
	if len(body) > s.Room {
		s.Cut = true
		return
	}
	s.Asked = append(s.Asked[:0], body...)
}

// Answer takes the data of one event more, or an answer in one piece, and copies it. What does not fit is left out whole, and so is all
// that follows: what is there stands together.
func (s *Said) Answer(data []byte) {
	if s.full || len(s.Answered)+len(data)+1 > s.Room {
		s.full, s.Cut = true, true
		return
	}
	s.Answered = append(append(s.Answered, data...), '\n')
}

// Anew forgets what was answered: another host begins from the beginning.
func (s *Said) Anew() { s.Answered, s.full = s.Answered[:0], false }
