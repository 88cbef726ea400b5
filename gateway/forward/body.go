package forward

import "errors"

// framing follows how a body is delimited (RFC 9112 section 6) over the bytes of a Conn's buffer.
type framing struct {
	kind  bodyKind
	left  int64 // sized: bytes to come; chunked: bytes of the current chunk to come
	state chunkState
	digit bool // chunked: a digit of the size was seen
	extra int  // chunked: bytes of framing since the last chunk's data
	end   bool // the whole body was seen
}

type bodyKind uint8

const (
	noBody bodyKind = iota
	sized
	chunked
	untilClose
)

type chunkState uint8

const (
	inSize chunkState = iota
	inExtension
	inSizeLF // behind the CR of the size line
	inData
	inDataCR
	inDataLF
	inTrailer // at the start of a trailer line
	inTrailerLine
	inTrailerLF // behind the CR of the empty line
)

var errFraming = errors.New("malformed chunked body")

const (
	maxChunk = 1 << 40
	maxExtra = 16 << 10 // a chunk's size line, or all trailers: nobody reads what is in them
)

// decode takes the framing out of p and leaves the body's bytes at its front. It returns how many
// there are, and how many bytes of p it read; only a body's end leaves some unread.
func (f *framing) decode(p []byte) (out, read int, err error) {
	switch f.kind {
	case untilClose:
		return len(p), len(p), nil
	case sized:
		n := int(min(f.left, int64(len(p))))
		if f.left -= int64(n); f.left == 0 {
			f.end = true
		}
		return n, n, nil
	case noBody:
		f.end = true
		return 0, 0, nil
	case chunked:
	}
	for i := 0; i < len(p); {
		if f.state == inData {
			n := int(min(f.left, int64(len(p)-i)))
			copy(p[out:], p[i:i+n])
			out += n
			i += n
			if f.left -= int64(n); f.left == 0 {
				f.state = inDataCR
			}
			continue
		}
		if err := f.step(p[i]); err != nil {
			return out, i, err
		}
		i++
		if f.end {
			return out, i, nil
		}
	}
	return out, len(p), nil
}

// step takes one byte outside a chunk's data.
func (f *framing) step(b byte) error {
	if f.extra++; f.extra > maxExtra {
		return errFraming
	}
	switch f.state {
	case inSize:
		v := int64(-1)
		switch {
		case b >= '0' && b <= '9':
			v = int64(b - '0')
		case b >= 'a' && b <= 'f':
			v = int64(b-'a') + 10
		case b >= 'A' && b <= 'F':
			v = int64(b-'A') + 10
		}
		switch {
		case v >= 0:
			if f.left > maxChunk {
				return errFraming
			}
			f.left, f.digit = f.left<<4|v, true
		case !f.digit:
			return errFraming
		case b == '\r':
			f.state = inSizeLF
		case b == ';' || b == ' ' || b == '\t':
			f.state = inExtension
		default:
			return errFraming
		}
	case inExtension:
		switch b {
		case '\r':
			f.state = inSizeLF
		case '\n':
			return errFraming
		}
	case inSizeLF:
		if b != '\n' {
			return errFraming
		}
		f.digit, f.extra = false, 0
		if f.state = inData; f.left == 0 {
			f.state = inTrailer
		}
	case inDataCR:
		if b != '\r' {
			return errFraming
		}
		f.state = inDataLF
	case inDataLF:
		if b != '\n' {
			return errFraming
		}
		f.state = inSize
	case inTrailer:
		if f.state = inTrailerLine; b == '\r' {
			f.state = inTrailerLF
		}
	case inTrailerLine:
		if b == '\n' {
			f.state = inTrailer
		}
	case inTrailerLF:
		if b != '\n' {
			return errFraming
		}
		f.end = true
	case inData:
		panic("BUG: forward: a data byte reached step")
	}
	return nil
}
