package jobs

import (
	"unicode/utf16"
	"unicode/utf8"
)

// appendEscaped appends the character whose \uXXXX, or pair of them, begins s, and returns how long that is.
func appendEscaped(dst, s []byte) ([]byte, int) {
	r := hex4(s[2:6])
	if utf16.IsSurrogate(r) && len(s) >= 12 && s[6] == '\\' && s[7] == 'u' {
		if pair := utf16.DecodeRune(r, hex4(s[8:12])); pair != utf8.RuneError {
			return utf8.AppendRune(dst, pair), 12
		}
	}
	return utf8.AppendRune(dst, r), 6 // half a pair alone becomes U+FFFD
}

func hex4(s []byte) (r rune) {
	for _, c := range s {
		r <<= 4
		switch {
		case c <= '9':
			r |= rune(c - '0')
		default:
			r |= rune(c|0x20-'a') + 10
		}
	}
	return r
}

const replacement = "\uFFFD"

// cuts counts characters that were destroyed where a worker cut its stream: it decodes each piece by itself and puts
// U+FFFD for what is left of a character on either side (worker-vllm from 2.24: decode(errors="replace")). A U+FFFD that
// stands on one side only is the model's own.
type cuts struct {
	open    bool // the last piece ended with U+FFFD
	counted bool // and that one's character is counted already
	n       int
}

// piece looks at the next one.
func (c *cuts) piece(p []byte) {
	if len(p) == 0 {
		return
	}
	begins := len(p) >= 3 && string(p[:3]) == replacement
	if c.open && begins && !c.counted {
		c.n++
		c.counted = true
	}
	i := len(p)
	for i >= 3 && string(p[i-3:i]) == replacement {
		i -= 3
	}
	if whole := i == 0; !whole || !c.open {
		c.counted = false
	}
	c.open = i < len(p)
}
