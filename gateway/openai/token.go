package openai

import (
	"encoding/binary"
	"math/bits"
)

// literal reads true, false or null.
func (r *reader) literal(c byte) {
	word := ""
	switch c {
	case 't':
		word = "true"
	case 'f':
		word = "false"
	case 'n':
		word = "null"
	case 'N':
		if r.lax {
			word = "NaN"
		}
	case 'I':
		if r.lax {
			word = "Infinity"
		}
	}
	if word == "" {
		r.want(wantValue)
		return
	}
	rest := r.b[r.i:]
	if len(rest) >= len(word) && string(rest[:len(word)]) == word {
		r.i += len(word)
		return
	}
	if len(rest) < len(word) && string(rest) == word[:len(rest)] {
		r.i = len(r.b)
		r.fail(endsEarly)
		return
	}
	r.fail(wantValue)
}

// number reads a number.
func (r *reader) number() {
	b, i := r.b, r.i
	if b[i] == '-' {
		i++
		if r.lax && i < len(b) && b[i] == 'I' {
			r.i = i
			r.literal('I')
			return
		}
	}
	ok := true
	if i < len(b) && b[i] == '0' {
		i++
	} else {
		i, ok = digits(b, i)
	}
	if ok && i < len(b) && b[i] == '.' {
		i, ok = digits(b, i+1)
	}
	if ok && i < len(b) && b[i]|0x20 == 'e' {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		i, ok = digits(b, i)
	}
	r.i = i
	if !ok {
		r.want(badNumber)
	}
}

// digits returns where the digits at i end; ok is false when there are none.
func digits(b []byte, i int) (end int, ok bool) {
	end = i
	for end < len(b) && b[end]-'0' <= 9 {
		end++
	}
	return end, end > i
}

// str reads a string and returns what is between its quotes; esc says whether that has escapes.
func (r *reader) str() []byte {
	from := r.i + 1
	end := plainEnd(r.b, from)
	if end < len(r.b) && r.b[end] == '"' {
		r.i, r.esc = end+1, false
		return r.b[from:end:end]
	}
	return r.oddStr(from, end)
}

// oddStr goes on with a string from index i, where something else than its closing quote stands.
func (r *reader) oddStr(from, i int) []byte {
	r.esc = false
	for b := r.b; ; i = plainEnd(b, i) {
		if i >= len(b) {
			r.i = len(b)
			r.fail(endsInString)
			return nil
		}
		switch b[i] {
		case '"':
			r.i = i + 1
			return b[from:i:i]
		case '\\':
			r.esc = true
			n := escapeLen(b[i:])
			if n < 0 {
				r.i = len(b)
				r.fail(endsInString)
				return nil
			}
			if n == 0 {
				r.i = i
				r.fail(badEscape)
				return nil
			}
			i += n
		default: // a control character
			if !r.lax {
				r.i = i
				r.fail(badControl)
				return nil
			}
			i++
		}
	}
}

// plainEnd returns the index of the first quote, backslash or control character at or behind i,
// len(b) when there is none. It looks at eight bytes at a time, since prompts are mostly this.
func plainEnd(b []byte, i int) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	for ; i+8 <= len(b); i += 8 {
		w := binary.LittleEndian.Uint64(b[i:])
		// Per byte: exchanging space and quote leaves just quote and control characters below '!', and
		// a backslash is what xor makes zero. Subtracting sets the high bit of those bytes, and
		// of bytes that had it, which &^ w takes out. A borrow can set higher bits wrongly but
		// never the lowest one, and that is all that counts.
		hit := ((w ^ ones*('"'-' ') - ones*'!') | (w ^ ones*'\\' - ones)) &^ w & highs
		if hit != 0 {
			return i + bits.TrailingZeros64(hit)>>3
		}
	}
	for ; i < len(b); i++ {
		if c := b[i]; c == '"' || c == '\\' || c < ' ' {
			return i
		}
	}
	return i
}

// escapeLen returns the length of the escape that b starts with, 0 when it is none and -1 when b ends in it.
func escapeLen(b []byte) int {
	if len(b) < 2 {
		return -1
	}
	switch b[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2
	case 'u':
		for k := 2; k < 6; k++ {
			if k >= len(b) {
				return -1
			}
			if _, ok := hexDigit(b[k]); !ok {
				return 0
			}
		}
		return 6
	}
	return 0
}

func hexDigit(c byte) (v rune, ok bool) {
	switch {
	case c-'0' <= 9:
		return rune(c - '0'), true
	case c|0x20-'a' <= 5:
		return rune(c|0x20-'a') + 10, true
	}
	return 0, false
}
