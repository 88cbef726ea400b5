// Package sse reads server-sent events out of a growing byte buffer without copying them.
//
// It follows the "event-stream interpretation" rules of the WHATWG HTML standard as far as a relay
// needs them: line ends are LF, CR or CRLF, a byte order mark may stand at the very start, lines
// that begin with a colon are comments, and several data lines of one event are joined by LF. The
// fields "id" and "retry" are passed over: they are the client's business and travel in the bytes.
package sse

import "bytes"

const bom = "\xEF\xBB\xBF"

// Event is one event as it lies in the buffer: a block of lines and the blank line that ends it. A
// block without a data line, such as a keep-alive comment or a blank line of its own, is an event
// too, so that every byte of the stream belongs to exactly one.
//
// The slices alias the buffer handed to Next and are valid until the next call; Data aliases memory
// of the Scanner when it was joined from several lines.
type Event struct {
	Size    int    // bytes from the front of the buffer to the end of the blank line behind the event
	Name    []byte // value of the last "event" field, nil when there was none
	Data    []byte // values of the data lines joined by LF, nil when there was none
	HasData bool   // there was a data line, if an empty one
}

// Scanner finds events in a buffer that its caller fills at the end and empties at the front. It
// remembers how far it has looked, so an event that comes in many pieces costs time linear in its
// size. The zero value is ready for use.
type Scanner struct {
	started bool // the first event is behind us: no byte order mark can follow

	// The event being read. All offsets count from the front of the buffer.
	seen    int // bytes the buffer held at the last call, without those dropped since
	line    int // where the line starts that has no end yet
	lf      int // first LF at or behind line when foundLF, else how far none was found
	cr      int // the same for CR
	foundLF bool
	foundCR bool

	named            bool
	nameFrom, nameTo int
	lines            int // data lines so far
	dataFrom, dataTo int // the first of them
	joined           []byte
}

// Reset makes s ready for another stream. It keeps the memory used for joining lines.
func (s *Scanner) Reset() { *s = Scanner{joined: s.joined[:0]} }

// Next returns the first whole event in b. When ok is false there is none yet: call again with the
// same bytes and more behind them. When ok is true drop ev.Size bytes from the front of b first.
//
// A CR that is the last byte of b may be half of a CRLF, so Next waits for the byte behind it: the
// events and their sizes do not depend on how the stream was cut.
func (s *Scanner) Next(b []byte) (ev Event, ok bool) { return s.scan(b, false) }

// Last returns what is left in b when the stream has ended, as an event although no blank line came
// behind it. Call it after Next has found nothing more. It returns ok false when nothing but white
// space is left. An event without its blank line was cut off as a rule: clients of the standard drop it.
func (s *Scanner) Last(b []byte) (ev Event, ok bool) {
	rest := b
	if !s.started {
		rest = bytes.TrimPrefix(rest, []byte(bom))
	}
	if len(bytes.Trim(rest, " \t\r\n")) == 0 {
		return Event{}, false
	}
	return s.scan(b, true)
}

// scan reads lines until one is blank. With final set the end of b ends a line and an event.
func (s *Scanner) scan(b []byte, final bool) (Event, bool) {
	if len(b) < s.seen { // against the contract, so what is known of b is worth nothing
		s.forget()
	}
	s.seen = len(b)
	if s.line == 0 && s.lf == 0 && !s.foundLF {
		if ev, ok := s.simple(b); ok {
			return ev, true
		}
	}
	for s.line < len(b) {
		end, next := s.lineEnd(b)
		if end < 0 {
			if !final {
				return Event{}, false
			}
			end, next = len(b), len(b)
		} else if next == len(b) && b[next-1] == '\r' && !final {
			return Event{}, false
		}
		from := s.line
		if from == 0 && !s.started && bytes.HasPrefix(b[:end], []byte(bom)) {
			from = len(bom)
		}
		s.line = next
		if from == end {
			return s.take(b, next), true
		}
		s.field(b, from, end)
	}
	if final && s.line > 0 {
		return s.take(b, len(b)), true
	}
	return Event{}, false
}

// simple takes an event of nothing but one data line with LF behind it, as nearly all of them are.
// It looks at a fresh front of the buffer only, and otherwise leaves what it found to lineEnd.
func (s *Scanner) simple(b []byte) (Event, bool) {
	const field = "data: "
	if len(b) < len(field) || string(b[:len(field)]) != field {
		return Event{}, false
	}
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		s.lf = len(b)
		return Event{}, false
	}
	if i+1 == len(b) || b[i+1] != '\n' || bytes.IndexByte(b[len(field):i], '\r') >= 0 {
		s.lf, s.foundLF = i, true
		return Event{}, false
	}
	s.started = true
	s.seen -= i + 2
	s.cr, s.foundCR = 0, false
	return Event{Size: i + 2, Data: b[len(field):i:i], HasData: true}, true
}

// lineEnd returns where the line at s.line ends and where the next one starts; end is negative when
// b holds no line end. Each byte is looked at once for LF and once for CR, whatever the cuts.
func (s *Scanner) lineEnd(b []byte) (end, next int) {
	if s.lf < s.line {
		s.lf, s.foundLF = s.line, false
	}
	if !s.foundLF && s.lf < len(b) {
		if i := bytes.IndexByte(b[s.lf:], '\n'); i >= 0 {
			s.lf += i
			s.foundLF = true
		} else {
			s.lf = len(b)
		}
	}
	if s.cr < s.line {
		s.cr, s.foundCR = s.line, false
	}
	if !s.foundCR && s.cr < s.lf {
		if i := bytes.IndexByte(b[s.cr:s.lf], '\r'); i >= 0 {
			s.cr += i
			s.foundCR = true
		} else {
			s.cr = s.lf
		}
	}
	switch {
	case s.foundCR && s.cr+1 < len(b) && b[s.cr+1] == '\n':
		return s.cr, s.cr + 2
	case s.foundCR:
		return s.cr, s.cr + 1
	case s.foundLF:
		return s.lf, s.lf + 1
	}
	return -1, 0
}

// field takes note of the line b[from:end], which is not empty.
func (s *Scanner) field(b []byte, from, end int) {
	line := b[from:end]
	switch {
	case line[0] == 'd' && is(line, "data"):
		from = value(b, from+len("data"), end)
		s.lines++
		switch s.lines {
		case 1:
			s.dataFrom, s.dataTo = from, end
			return
		case 2:
			s.joined = append(s.joined[:0], b[s.dataFrom:s.dataTo]...)
		}
		s.joined = append(s.joined, '\n')
		s.joined = append(s.joined, b[from:end]...)
	case line[0] == 'e' && is(line, "event"):
		s.named, s.nameFrom, s.nameTo = true, value(b, from+len("event"), end), end
	}
}

// is says whether line is the field of that name, with or without a colon and a value.
func is(line []byte, name string) bool {
	return len(line) >= len(name) && string(line[:len(name)]) == name &&
		(len(line) == len(name) || line[len(name)] == ':')
}

// value returns where the value starts whose field name ends at from: behind the colon and one space.
func value(b []byte, from, end int) int {
	if from < end {
		from++
	}
	if from < end && b[from] == ' ' {
		from++
	}
	return from
}

// take returns the event that ends at size and moves the offsets that stay useful to the next one.
func (s *Scanner) take(b []byte, size int) Event {
	ev := Event{Size: size, HasData: s.lines > 0}
	if s.named {
		ev.Name = b[s.nameFrom:s.nameTo:s.nameTo]
	}
	switch {
	case s.lines == 1:
		ev.Data = b[s.dataFrom:s.dataTo:s.dataTo]
	case s.lines > 1:
		ev.Data = s.joined
	}
	s.started, s.line, s.lines, s.named = true, 0, 0, false
	s.seen -= size
	if s.lf -= size; s.lf < 0 {
		s.lf, s.foundLF = 0, false
	}
	if s.cr -= size; s.cr < 0 {
		s.cr, s.foundCR = 0, false
	}
	return ev
}

// forget starts the event at the front of the buffer anew.
func (s *Scanner) forget() { *s = Scanner{started: s.started, joined: s.joined[:0]} }
