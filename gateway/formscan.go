package gateway

import (
	"bytes"
	"mime"
	"strings"
)

// formScanner finds the value of the "model" field in a multipart body (RFC 2046 section 5.1,
// RFC 7578) that is fed to it in pieces, and where it stands. It keeps the current line only.
type formScanner struct {
	delimiter []byte // "--" and the boundary
	state     formState
	line      []byte // of a delimiter or header being put together, or the value
	at        int64  // bytes fed before the next one
	isModel   bool   // the part whose head was read is the model field
	head      []byte // Content-Disposition of the part being read
	match     int    // bytes of CRLF delimiter that the content's end matches so far

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
	formDelimiterTail // behind a delimiter in content
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
			if bytes.Equal(line, s.delimiter[2:]) {
				s.beginPart()
			} else if bytes.Equal(line, append(s.delimiter[2:len(s.delimiter):len(s.delimiter)], "--"...)) {
				s.finish()
			}
		})
	case formHeader:
		s.lineByte(b, s.headerLine)
	case formContent:
		s.contentByte(b)
	case formDelimiterTail:
		s.lineByte(b, func(line []byte) {
			if bytes.HasPrefix(line, []byte("--")) {
				s.finish()
				return
			}
			s.beginPart()
		})
		if s.state == formDelimiterTail && len(s.line) == 2 && string(s.line) == "--" {
			s.finish() // the closing delimiter needs no line end
		}
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

func (s *formScanner) beginPart() { s.state, s.isModel, s.head = formHeader, false, nil }

func (s *formScanner) finish() { s.state, s.ended = formDone, true }

func (s *formScanner) headerLine(line []byte) {
	if len(line) > 0 {
		name, value, _ := bytes.Cut(line, []byte(":"))
		if strings.EqualFold(string(bytes.TrimSpace(name)), "content-disposition") {
			s.head = append([]byte(nil), bytes.TrimSpace(value)...)
		}
		return
	}
	_, params, err := mime.ParseMediaType(string(s.head))
	_, isFile := params["filename"]
	s.isModel = err == nil && params["name"] == "model" && !isFile
	s.state, s.match, s.value, s.from = formContent, 0, s.value[:0], s.at+1
}

// contentByte looks for the delimiter behind a part's content. CR occurs in a delimiter at its
// start only, so a failed match begins anew with the byte at hand.
func (s *formScanner) contentByte(b byte) {
	if b != s.delimiter[s.match] {
		s.keep(s.delimiter[:s.match])
		s.match = 0
		if b != s.delimiter[0] {
			s.keep([]byte{b})
			return
		}
	}
	if s.match++; s.match < len(s.delimiter) {
		return
	}
	if s.isModel {
		s.to = s.at + 1 - int64(len(s.delimiter))
		s.found = true
		return
	}
	s.match, s.state = 0, formDelimiterTail
}

func (s *formScanner) keep(p []byte) {
	if s.isModel && len(s.value) < maxFormModel {
		s.value = append(s.value, p...)
	}
}
