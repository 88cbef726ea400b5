package h1

import "errors"

// ErrFraming is what a body gets that does not keep to chunked transfer coding (RFC 9112, section 7.1).
var ErrFraming = errors.New("h1: bad chunk framing")

// maxSizeDigits bounds a chunk size as net/http does; a longer one is an attack or a fault.
const maxSizeDigits = 16

// Decoder follows chunked framing over bytes as they pass. The zero value stands before the first
// chunk. It is stricter than the RFC asks of a recipient (no bare LF, no space around sizes), since
// it judges what a proxy under test sends.
type Decoder struct {
	state  state
	digits int   // of the chunk size being read
	left   int64 // bytes of the chunk still to come
}

type state uint8

const (
	inSize      state = iota
	inExtension       // after the size's ';', up to CR
	inSizeEnd         // LF of the size line
	inData
	inDataCR     // CR after the data
	inDataLF     // LF after the data
	inTrailer    // at the start of a trailer line
	inTrailerEnd // LF of the empty line that ends the body
	inField      // within a trailer field
	inFieldEnd   // LF of a trailer field
	ended
)

// Feed takes the next bytes off the wire and hands each stretch of body among them to data, without
// copying. It returns how many bytes of p belong to the body's framing (all of them until the end)
// and whether the body has ended. After an error or the end, Feed takes nothing more.
func (d *Decoder) Feed(p []byte, data func([]byte)) (n int, end bool, err error) {
	for n < len(p) && d.state != ended {
		if d.state == inData {
			k := int(min(d.left, int64(len(p)-n)))
			data(p[n : n+k])
			n += k
			if d.left -= int64(k); d.left == 0 {
				d.state = inDataCR
			}
			continue
		}
		if !d.step(p[n]) {
			return n, false, ErrFraming
		}
		n++
	}
	return n, d.state == ended, nil
}

// step moves over one byte of framing and says whether it was legal.
func (d *Decoder) step(b byte) bool {
	switch d.state {
	case inSize:
		return d.size(b)
	case inExtension:
		if b == '\r' {
			d.state = inSizeEnd
		}
		return b != '\n'
	case inSizeEnd:
		d.digits, d.state = 0, inData
		if d.left == 0 {
			d.state = inTrailer
		}
		return b == '\n'
	case inDataCR:
		d.state = inDataLF
		return b == '\r'
	case inDataLF:
		d.state = inSize
		return b == '\n'
	case inTrailer:
		d.state = inField
		if b == '\r' {
			d.state = inTrailerEnd
		}
		return b != '\n'
	case inTrailerEnd:
		d.state = ended
		return b == '\n'
	case inField:
		if b == '\r' {
			d.state = inFieldEnd
		}
		return b != '\n'
	case inFieldEnd:
		d.state = inTrailer
		return b == '\n'
	default:
		return false
	}
}

// size takes one byte of a chunk-size line.
func (d *Decoder) size(b byte) bool {
	v := int64(-1)
	switch {
	case b >= '0' && b <= '9':
		v = int64(b - '0')
	case b >= 'a' && b <= 'f':
		v = int64(b-'a') + 10
	case b >= 'A' && b <= 'F':
		v = int64(b-'A') + 10
	}
	if v >= 0 {
		d.digits++
		if d.digits > maxSizeDigits || d.left > 1<<40 {
			return false
		}
		d.left = d.left<<4 | v
		return true
	}
	switch b {
	case '\r':
		d.state = inSizeEnd
	case ';':
		d.state = inExtension
	default:
		return false
	}
	return d.digits > 0
}
