package vast

import (
	"bytes"
	"encoding/json"
	"unicode/utf8"
)

// A thousand rows are read at each poll, and most of them only to see that they say what they said before. So lists are cut into
// rows and members without decoding them: encoding/json goes over each byte four times on that way.

// members calls f with each member of an object, in order; key and value are parts of b. ok is false when b is no object or
// breaks off. What is inside a value is looked at only to find its end.
func members(b []byte, f func(key, value []byte)) (ok bool) {
	i := space(b, 0)
	if i == len(b) || b[i] != '{' {
		return false
	}
	for i = space(b, i+1); i < len(b) && b[i] != '}'; {
		if b[i] != '"' {
			return false
		}
		end := value(b, i)
		colon := space(b, end)
		if end < 0 || colon == len(b) || b[colon] != ':' {
			return false
		}
		from := space(b, colon+1)
		to := value(b, from)
		if to < 0 {
			return false
		}
		f(b[i+1:end-1], b[from:to])
		if i, ok = comma(b, to, '}'); !ok {
			return false
		}
	}
	return i < len(b) && space(b, i+1) == len(b)
}

// elements calls f with each element of an array, as members does.
func elements(b []byte, f func(value []byte)) (ok bool) {
	i := space(b, 0)
	if i == len(b) || b[i] != '[' {
		return false
	}
	for i = space(b, i+1); i < len(b) && b[i] != ']'; {
		to := value(b, i)
		if to < 0 {
			return false
		}
		f(b[i:to])
		if i, ok = comma(b, to, ']'); !ok {
			return false
		}
	}
	return i < len(b) && space(b, i+1) == len(b)
}

// comma steps over the comma behind a value, or to the end of what holds it.
func comma(b []byte, i int, end byte) (next int, ok bool) {
	switch i = space(b, i); {
	case i == len(b):
		return i, false
	case b[i] == end:
		return i, true
	case b[i] == ',':
		i = space(b, i+1)
		return i, i < len(b) && b[i] != end
	}
	return i, false
}

func space(b []byte, i int) int {
	for i >= 0 && i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\t' || b[i] == '\r') {
		i++
	}
	if i < 0 {
		return len(b)
	}
	return i
}

// value returns the end of the value that begins at i, -1 when it has none.
func value(b []byte, i int) int {
	if i >= len(b) {
		return -1
	}
	switch b[i] {
	case '"':
		return quoted(b, i)
	case '{', '[':
		depth := 0
		for i < len(b) {
			switch b[i] {
			case '"':
				if i = quoted(b, i); i < 0 {
					return -1
				}
				continue
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1
				}
			}
			i++
		}
		return -1
	}
	from := i
	for i < len(b) && bytes.IndexByte([]byte(",]} \n\t\r:\"[{"), b[i]) < 0 {
		i++
	}
	if i == from {
		return -1
	}
	return i
}

// quoted returns the end of the string that begins at i, -1 when it has none.
func quoted(b []byte, i int) int {
	for i++; i < len(b); {
		n := bytes.IndexByte(b[i:], '"')
		if n < 0 {
			return -1
		}
		i += n
		escapes := 0
		for b[i-1-escapes] == '\\' {
			escapes++
		}
		if i++; escapes%2 == 0 {
			return i
		}
	}
	return -1
}

// unquoted decodes a JSON string; ok is false when it is none.
func unquoted(b []byte) (s string, ok bool) {
	if len(b) < 2 || b[0] != '"' {
		return "", false
	}
	if inner := b[1 : len(b)-1]; bytes.IndexByte(inner, '\\') < 0 && utf8.Valid(inner) {
		return string(inner), true
	}
	return s, json.Unmarshal(b, &s) == nil
}
