package gateway

import (
	"bytes"
	"mime"
	"strconv"
	"strings"

	"headrace/gateway/openai"
)

// formScanner finds the value of the "model" field in a multipart body (RFC 2046 section 5.1,
// RFC 7578) that is fed to it in pieces, and where it stands. It keeps the current line only. It
// reads forms with CRLF line ends as mime/multipart does, since hosts must find the same model. It goes on
// behind that field, to find what a host's reader could take for another one.
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
	confined  bool   // the key may not name every model
	cut       bool   // the line is longer than what was kept of it

	wrong      *formError // what hosts may read otherwise than we do; nil for nothing
	seen       int        // delimiters without their CRLF, wherever they stand
	delimiters int        // of these, those that are some
	tail       []byte     // the last bytes, in which the next one may have begun

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

// formError says what is wrong with a form. Its message is for callers.
type formError struct {
	param, message string
	denied         bool // to this key
}

func (e *formError) Error() string { return e.message }

func errFormModel(name string) *formError {
	return &formError{param: "model", message: "The form has a field " + strconv.Quote(clip(name, 64)) + " that some servers take for the model, and others do not. Send \"model\" once, in lower case, and no file under that name."}
}

func errFormHead(what string) *formError {
	return &formError{message: "The multipart body has " + what + ", which servers read differently. Let a library write it."}
}

func newFormScanner(boundary string) *formScanner {
	return &formScanner{delimiter: append([]byte("\r\n--"), boundary...)}
}

// feed takes the next bytes.
func (s *formScanner) feed(p []byte) {
	s.count(p)
	s.scan(p)
	begun := 0 // a delimiter whose line has not ended
	if s.state == formPreamble && bytes.HasPrefix(s.line, s.delimiter[2:]) {
		begun = 1
	}
	if s.seen > s.delimiters+begun {
		s.refuse(errFormHead("its boundary where it delimits nothing"))
	}
}

func (s *formScanner) refuse(e *formError) {
	if s.wrong == nil {
		s.wrong = e
	}
}

// count counts what may be a delimiter to readers that want no CRLF in front of it.
func (s *formScanner) count(p []byte) {
	want := s.delimiter[2:]
	if join := append(s.tail, p[:min(len(p), len(want)-1)]...); len(s.tail) > 0 {
		if i := bytes.Index(join, want); i >= 0 {
			s.seen++
			p = p[i+len(want)-len(s.tail):]
			s.tail = s.tail[:0]
		}
	}
	for {
		i := bytes.Index(p, want)
		if i < 0 {
			break
		}
		s.seen++
		p, s.tail = p[i+len(want):], s.tail[:0]
	}
	if n := len(want) - 1; len(p) >= n {
		s.tail = append(s.tail[:0], p[len(p)-n:]...)
	} else {
		s.tail = append(s.tail, p...)
		s.tail = append(s.tail[:0], s.tail[max(0, len(s.tail)-n):]...)
	}
}

func (s *formScanner) scan(p []byte) {
	for len(p) > 0 && s.state != formDone {
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
				s.delimiters++
				s.beginPart()
			case ok && string(rest) == "--":
				s.delimiters++
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
				s.refuse(errFormHead("text behind a boundary"))
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
		} else {
			s.cut = true
		}
		return
	}
	line, ok := bytes.CutSuffix(s.line, []byte("\r"))
	if ok = ok && !s.cut && bytes.IndexByte(line, '\r') < 0; !ok && (s.state != formPreamble || bytes.HasPrefix(line, s.delimiter[2:])) {
		s.refuse(errFormHead("a line in a part's head that does not end in CRLF, or is longer than " + strconv.Itoa(maxFormLine) + " bytes"))
	}
	s.line, s.cut = s.line[:0], false
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
			if len(s.head) > maxFormLine {
				s.refuse(errFormHead("a Content-Disposition longer than " + strconv.Itoa(maxFormLine) + " bytes"))
				s.inHead = false
			}
			return
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		if s.inHead = strings.EqualFold(string(bytes.TrimSpace(name)), "content-disposition"); s.inHead {
			if s.head != nil || len(bytes.TrimSpace(name)) != len(name) {
				s.refuse(errFormHead("a part with more than one Content-Disposition, or one that is misspelt"))
			}
			s.head = append([]byte{}, bytes.TrimSpace(value)...)
		}
		return
	}
	s.isModel = s.names() && !s.found
	s.state = formContent
	if s.match, s.implied = 2, true; !s.found { // an empty part may have no CRLF of its own
		s.value, s.from = s.value[:0], s.at+1
	}
}

// names tells whether the part whose head was read is the model field, and refuses what another reader may take for it.
func (s *formScanner) names() bool {
	if s.head == nil {
		return false
	}
	kind, params, err := mime.ParseMediaType(string(s.head))
	if lower := strings.ReplaceAll(strings.ToLower(string(s.head)), "filename*", ""); err != nil || strings.Contains(lower, "name*") {
		s.refuse(errFormHead("a Content-Disposition that is malformed"))
		return false
	}
	name := params["name"]
	plain, _, _ := strings.Cut(strings.TrimSpace(strings.ReplaceAll(name, "\\", "")), "[")
	_, isFile := params["filename"]
	switch {
	case name == "model" && kind == "form-data" && !isFile && !s.found && !s.isModel:
		return true
	case strings.EqualFold(plain, "model"):
		s.refuse(errFormModel(name))
	case s.confined && openai.IsStray([]byte(plain)):
		e := errFormModel(name)
		e.denied = true
		s.refuse(e)
	}
	return false
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
		s.delimiters++
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
		s.partEnds(1)
		s.finish()
	case s.dash:
		s.state = formContent
		s.delimiters--
		s.noDelimiter()
		s.keep([]byte{'-'})
		s.contentByte(b)
	case b == '-':
		s.dash = true
	case b == ' ', b == '\t', b == '\r', b == '\n':
		s.state, s.line = formDelimiterTail, s.line[:0]
		s.partEnds(0)
		s.step(b)
	default:
		s.state = formContent
		s.delimiters--
		s.noDelimiter()
		s.contentByte(b)
	}
}

// partEnds takes note that the part ended with a delimiter that stands the given number of bytes back.
func (s *formScanner) partEnds(back int64) {
	defer func() { s.isModel = false }()
	if s.isModel && !s.found {
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
