package resume

import (
	"bytes"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"headrace/gateway/openai"
)

// Text is kept as it stands between the quotes of the events: the inside of JSON strings, joined, is the
// inside of a JSON string, even where a surrogate pair was cut in two.

// character decodes the character that the inside of a JSON string begins with. Half of a surrogate pair
// comes back as itself, a byte that is no UTF-8 as utf8.RuneError of size 1.
func character(raw []byte) (c rune, size int) {
	if raw[0] != '\\' {
		return utf8.DecodeRune(raw)
	}
	if len(raw) < 2 {
		return utf8.RuneError, 1
	}
	switch raw[1] {
	case 'b':
		return '\b', 2
	case 'f':
		return '\f', 2
	case 'n':
		return '\n', 2
	case 'r':
		return '\r', 2
	case 't':
		return '\t', 2
	case 'u':
		c, ok := hex4(raw)
		if !ok {
			return utf8.RuneError, 1
		}
		if utf16.IsSurrogate(c) {
			if low, ok := hex4(raw[6:]); ok {
				if pair := utf16.DecodeRune(c, low); pair != utf8.RuneError {
					return pair, 12
				}
			}
		}
		return c, 6
	}
	return rune(raw[1]), 2 // quote, backslash or slash
}

// hex4 reads an escape \uXXXX.
func hex4(raw []byte) (c rune, ok bool) {
	if len(raw) < 6 || raw[0] != '\\' || raw[1] != 'u' {
		return 0, false
	}
	for _, d := range raw[2:6] {
		switch {
		case d-'0' <= 9:
			d -= '0'
		case d|0x20-'a' <= 5:
			d = d | 0x20 - 'a' + 10
		default:
			return 0, false
		}
		c = c<<4 | rune(d)
	}
	return c, true
}

// isSpace says whether templates, which are written in Jinja, trim c.
func isSpace(c rune) bool { return unicode.IsSpace(c) || c >= 0x1c && c <= 0x1f }

// shape is what has to be known of a text to continue it.
type shape struct {
	solid   int  // where the white space at its end begins
	indent  bool // it begins with white space
	invalid bool // it holds what is no character, or ends in U+FFFD, which stands for one that was cut
}

func shapeOf(raw []byte) (s shape) {
	var c rune
	for i := 0; i < len(raw); {
		var size int
		if c = rune(raw[i]); c > ' ' && c < utf8.RuneSelf && c != '\\' { // nearly all
			i++
			s.solid = i
			continue
		}
		c, size = character(raw[i:])
		switch {
		case utf16.IsSurrogate(c) || c == utf8.RuneError && size == 1:
			s.invalid, s.solid = true, i+size
		case !isSpace(c):
			s.solid = i + size
		case i == 0:
			s.indent = true
		}
		i += size
	}
	s.invalid = s.invalid || c == utf8.RuneError
	return s
}

// blank says whether raw is white space and nothing else.
func blank(raw []byte) bool {
	for len(raw) > 0 {
		if c := raw[0]; c > ' ' && c < utf8.RuneSelf && c != '\\' {
			return false
		}
		c, size := character(raw)
		if !isSpace(c) {
			return false
		}
		raw = raw[size:]
	}
	return true
}

// decode appends what the inside of a JSON string stands for.
func decode(dst, raw []byte) []byte {
	for len(raw) > 0 {
		c, size := character(raw)
		dst = utf8.AppendRune(dst, c)
		raw = raw[size:]
	}
	return dst
}

// appendRaw appends the inside of a JSON string, with escapes for what some engines leave without.
func appendRaw(dst, raw []byte) []byte {
	from := 0
	for i, c := range raw {
		if c >= ' ' {
			continue
		}
		dst = append(dst, raw[from:i]...)
		quoted := openai.AppendString(dst, string(rune(c)))
		copy(quoted[len(dst):], quoted[len(dst)+1:]) // without the quotes
		dst, from = quoted[:len(quoted)-2], i+1
	}
	return append(dst, raw[from:]...)
}

// crosses says whether text ends in the beginning of one of the strings, but not in all of it.
func crosses(text []byte, stops []string) bool {
	for _, s := range stops {
		for n := min(len(s)-1, len(text)); n > 0; n-- {
			if bytes.HasSuffix(text, []byte(s[:n])) {
				return true
			}
		}
	}
	return false
}

// thinks says whether text has marks around reasoning in it, as of an engine without a parser for them. Templates
// take what is between them out of earlier messages, or more than that.
func thinks(text []byte) bool {
	for _, mark := range [...]string{"<think>", "</think>", "[THINK]", "[/THINK]", "<|channel|>", "<seed:think>", "◁think▷"} {
		if bytes.Contains(text, []byte(mark)) {
			return true
		}
	}
	return false
}
