package gateway

import (
	"bytes"
	"mime"
	"strings"
)

// formScanner finds the value of the "model" field in a multipart body (RFC 2046 section 5.1,
// RFC 7578) that is fed to it in pieces, and where it stands. It keeps the current line only. It
// reads forms with CRLF line ends as mime/multipart does, since hosts must find the same model.
type formScanner struct {
	delimiter []byte // CRLF, "--" and the boundary
	state     formState
	line      []byte // being put together
	at        int64  // bytes fed before the next one
	isModel   bool   // the part whose head was read is the model field
	head      []byte // Content-Disposition of the part being read
	inHead    bool   // the last header line belongs to it
	match     int    // bytes of delimiter that the content's end matches so far
	implied   bool   // the first two of them are the head's last CRLF
	dash      bool   // a dash stands behind the delimiter

	found    bool
	ended    bool // the closing delimiter was seen
	eof      bool
	value    []byte
	from, to int64
}

type formState uint8

const (
	formPreamble formState = iota // at the start of a line before the first part
	formHeader
	formContent
	formDelimiter     // behind what is a delimiter if the next bytes fit
	formDelimiterTail // in the rest of a delimiter's line
	formDone
)

const (
	maxFormLine  = 4 << 10
	maxFormModel = 512
)

func newFormScanner(boundary string) *formScanner {
	return &formScanner{delimiter: append([]byte("\r\n--"), boundary...)}
}

// feed takes the next bytes.
func (s *formScanner) feed(p []byte) {
	for len(p) > 0 && !s.found && s.state != formDone {
		if s.state == formContent && !s.isModel && s.match == 0 {
			i := bytes.IndexByte(p, '\r') // a file's bytes are skipped at memory speed
			if i < 0 {
				s.at += int64(len(p))
				return
			}
			s.at += int64(i)
			p = p[i:]
		}
		s.step(p[0])
		s.at++
		p = p[1:]
	}
}

func (s *formScanner) step(b byte) {
	switch s.state {
	case formPreamble:
		s.lineByte(b, func(line []byte) {
			rest, ok := bytes.CutPrefix(line, s.delimiter[2:])
			switch rest = bytes.TrimRight(rest, " \t"); {
			case ok && len(rest) == 0:
				s.beginPart()
			case ok && string(rest) == "--":
				s.finish()
			}
		})
	case formHeader:
		s.lineByte(b, s.headerLine)
	case formContent:
		s.contentByte(b)
	case formDelimiter:
		s.delimiterByte(b)
	case formDelimiterTail:
		s.lineByte(b, func(line []byte) {
			if len(bytes.TrimLeft(line, " \t")) == 0 {
				s.beginPart()
			} else {
				s.state = formDone // malformed
			}
		})
	case formDone:
	}
}

// lineByte collects a line and calls whole with it, without its end.
func (s *formScanner) lineByte(b byte, whole func([]byte)) {
	if b != '\n' {
		if len(s.line) < maxFormLine {
			s.line = append(s.line, b)
		}
		return
	}
	line := bytes.TrimSuffix(s.line, []byte("\r"))
	s.line = s.line[:0]
	whole(line)
}

func (s *formScanner) beginPart() {
	s.state, s.isModel, s.head, s.inHead = formHeader, false, nil, false
}

func (s *formScanner) finish() { s.state, s.ended = formDone, true }

func (s *formScanner) headerLine(line []byte) {
	if len(line) > 0 {
		if line[0] == ' ' || line[0] == '\t' { // a folded line goes on
			if s.inHead {
				s.head = append(append(s.head, ' '), bytes.TrimSpace(line)...)
			}
			return
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		if s.inHead = s.head == nil && strings.EqualFold(string(name), "content-disposition"); s.inHead {
			s.head = append([]byte{}, bytes.TrimSpace(value)...)
		}
		return
	}
	kind, params, err := mime.ParseMediaType(string(s.head))
	_, isFile := params["filename"]
	s.isModel = err == nil && kind == "form-data" && params["name"] == "model" && !isFile
	s.state, s.value, s.from = formContent, s.value[:0], s.at+1
	s.match, s.implied = 2, true // an empty part may have no CRLF of its own
}

// contentByte looks for the delimiter behind a part's content. CR occurs in a delimiter at its
// start only, so a failed match begins anew with the byte at hand.
func (s *formScanner) contentByte(b byte) {
	if b != s.delimiter[s.match] {
		s.noDelimiter()
		if b != s.delimiter[0] {
			s.keep([]byte{b})
			return
		}
	}
	if s.match++; s.match == len(s.delimiter) {
		s.state, s.dash = formDelimiter, false
	}
}

// noDelimiter makes content of what looked like a delimiter.
func (s *formScanner) noDelimiter() {
	known := s.delimiter[:s.match]
	if s.implied {
		known = known[2:]
	}
	s.keep(known)
	s.match, s.implied = 0, false
}

// delimiterByte decides by what stands behind it whether a delimiter was one.
func (s *formScanner) delimiterByte(b byte) {
	switch {
	case s.dash && b == '-':
		if s.partEnds(1); !s.found {
			s.finish()
		}
	case s.dash:
		s.state = formContent
		s.noDelimiter()
		s.keep([]byte{'-'})
		s.contentByte(b)
	case b == '-':
		s.dash = true
	case b == ' ', b == '\t', b == '\r', b == '\n':
		s.state, s.line = formDelimiterTail, s.line[:0]
		if s.partEnds(0); !s.found {
			s.step(b)
		}
	default:
		s.state = formContent
		s.noDelimiter()
		s.contentByte(b)
	}
}

// partEnds takes note that the part ended with a delimiter that stands the given number of bytes back.
func (s *formScanner) partEnds(back int64) {
	if s.isModel {
		s.found = true
		if s.to = s.at - back - int64(len(s.delimiter)); s.implied {
			s.to = s.from
		}
	}
	s.match, s.implied = 0, false
}

func (s *formScanner) keep(p []byte) {
	if s.isModel && len(s.value) < maxFormModel {
		s.value = append(s.value, p...)
	}
}
