package jobs

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// runpod-python stringifies a handler's error object with str(): {'error': {'message': "can't", 'code': 400, 'param': None}}.

// pythonToJSON rewrites the text of a Python object, made of dicts, lists, tuples, strings, numbers, None and booleans, as
// JSON. ok is false for anything else.
func pythonToJSON(s string) (b []byte, ok bool) {
	p := python{rest: s}
	if !p.value(0) {
		return nil, false
	}
	p.space()
	return p.out, p.rest == ""
}

type python struct {
	rest string
	out  []byte
}

const maxNesting = 64

func (p *python) space() { p.rest = strings.TrimLeft(p.rest, " \t\r\n") }

// take drops prefix and says whether it was there.
func (p *python) take(prefix string) bool {
	rest, ok := strings.CutPrefix(p.rest, prefix)
	p.rest = rest
	return ok
}

func (p *python) value(depth int) bool {
	p.space()
	if depth > maxNesting || p.rest == "" {
		return false
	}
	switch c := p.rest[0]; c {
	case '{':
		return p.members('{', "}", '}', true, depth)
	case '[':
		return p.members('[', "]", ']', false, depth)
	case '(':
		return p.members('[', ")", ']', false, depth)
	case '\'', '"':
		return p.text()
	case 'b':
		p.rest = p.rest[1:]
		return p.rest != "" && (p.rest[0] == '\'' || p.rest[0] == '"') && p.text()
	default:
		return p.name() || p.number()
	}
}

// members reads what stands between brackets.
func (p *python) members(open byte, end string, shut byte, dict bool, depth int) bool {
	p.rest = p.rest[1:]
	p.out = append(p.out, open)
	for n := 0; ; n++ {
		p.space()
		if p.take(end) {
			p.out = append(p.out, shut)
			return true
		}
		if n > 0 {
			if !p.take(",") {
				return false
			}
			p.space()
			if p.take(end) { // a tuple of one, or a comma too many
				p.out = append(p.out, shut)
				return true
			}
			p.out = append(p.out, ',')
		}
		if dict {
			if !p.key(depth) {
				return false
			}
		}
		if !p.value(depth + 1) {
			return false
		}
	}
}

// key reads a dict's key, which JSON wants to be a string, and the colon.
func (p *python) key(depth int) bool {
	p.space()
	from := len(p.out)
	if p.rest == "" || strings.IndexByte("{[(", p.rest[0]) >= 0 || !p.value(depth+1) { // one written within another grows without end
		return false
	}
	if p.out[from] != '"' {
		p.out = appendString(p.out[:from], string(p.out[from:]))
	}
	p.space()
	p.out = append(p.out, ':')
	return p.take(":")
}

func (p *python) name() bool {
	for py, js := range map[string]string{"None": "null", "True": "true", "False": "false", "nan": "null", "inf": "null", "-inf": "null"} {
		if p.take(py) {
			p.out = append(p.out, js...)
			return true
		}
	}
	return false
}

func (p *python) number() bool {
	n := 0
	for n < len(p.rest) && strings.IndexByte("+-.0123456789eE", p.rest[n]) >= 0 {
		n++
	}
	f, err := strconv.ParseFloat(p.rest[:n], 64)
	if err != nil {
		return false
	}
	if i, err := strconv.ParseInt(p.rest[:n], 10, 64); err == nil {
		p.out = strconv.AppendInt(p.out, i, 10)
	} else {
		p.out = strconv.AppendFloat(p.out, f, 'g', -1, 64)
	}
	p.rest = p.rest[n:]
	return true
}

// text reads a string literal as repr writes it.
func (p *python) text() bool {
	quote := p.rest[0]
	var b []byte
	for i := 1; i < len(p.rest); {
		c := p.rest[i]
		switch {
		case c == quote:
			p.out = appendString(p.out, string(b))
			p.rest = p.rest[i+1:]
			return true
		case c != '\\':
			b = append(b, c)
			i++
		case i+1 == len(p.rest):
			return false
		default:
			var n int
			b, n = escape(b, p.rest[i+1:])
			i += 1 + n
		}
	}
	return false
}

// escape appends what the escape sequence means whose text behind the backslash begins s, and returns how long that is.
func escape(b []byte, s string) ([]byte, int) {
	digits := 0
	switch s[0] {
	case 'n':
		return append(b, '\n'), 1
	case 'r':
		return append(b, '\r'), 1
	case 't':
		return append(b, '\t'), 1
	case '\\', '\'', '"':
		return append(b, s[0]), 1
	case 'x':
		digits = 2
	case 'u':
		digits = 4
	case 'U':
		digits = 8
	}
	if digits > 0 && len(s) > digits {
		if n, err := strconv.ParseUint(s[1:1+digits], 16, 32); err == nil && n <= utf8.MaxRune {
			return utf8.AppendRune(b, rune(n)), 1 + digits
		}
	}
	return append(b, '\\', s[0]), 1 // not an escape: Python keeps both
}
