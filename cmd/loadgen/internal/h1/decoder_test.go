package h1

import (
	"bytes"
	"errors"
	"io"
	"net/http/httputil"
	"strings"
	"testing"
)

const framed = "5\r\nhello\r\n1;x=y\r\n \r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"

// decode feeds p in pieces of the given size and returns the body, the bytes used and how it ended.
func decode(p []byte, size int) (body []byte, used int, end bool, err error) {
	var d Decoder
	for used < len(p) && !end && err == nil {
		var n int
		piece := p[used:min(used+size, len(p))]
		n, end, err = d.Feed(piece, func(q []byte) { body = append(body, q...) })
		used += n
		if err == nil && !end && n != len(piece) {
			panic("BUG: bytes left over before the end")
		}
	}
	return body, used, end, err
}

func TestDecoderInPieces(t *testing.T) {
	for size := 1; size <= len(framed); size++ {
		body, used, end, err := decode([]byte(framed+"HTTP/1.1"), size)
		if err != nil || string(body) != "hello 0123456789" || !end || used != len(framed) {
			t.Fatalf("pieces of %d: body %q, ended %v after %d of %d bytes, %v", size, body, end, used, len(framed), err)
		}
	}
}

func TestDecoderRejects(t *testing.T) {
	for name, bad := range map[string]string{
		"no size":            "\r\n",
		"no hex digit":       "x\r\n",
		"extension only":     ";a=b\r\n",
		"data too long":      "1\r\nab\r\n",
		"bare LF after size": "1\na\r\n",
		"bare LF after data": "1\r\na\n",
		"CR without LF":      "1\rxa\r\n",
		"space before CR":    "1 \r\na\r\n",
		"size too large":     "fffffffffffffff\r\n",
		"too many digits":    "00000000000000001\r\n",
		"bare LF in trailer": "0\r\nA: b\n\r\n",
		"no final CRLF":      "0\r\n\rx",
	} {
		if _, _, end, err := decode([]byte(bad), len(bad)); !errors.Is(err, ErrFraming) || end {
			t.Errorf("%s: %q gave %v, ended %v", name, bad, err, end)
		}
	}
}

func TestDecoderCopiesNothing(t *testing.T) {
	p := []byte(framed)
	var d Decoder
	allocs := testing.AllocsPerRun(100, func() {
		d = Decoder{}
		if _, end, err := d.Feed(p, func([]byte) {}); !end || err != nil {
			t.Fatalf("ended %v, %v", end, err)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations for a body", allocs)
	}
}

// FuzzDecoder checks that the cut into reads does not matter, and that whatever the decoder takes,
// the standard library takes for the same body.
func FuzzDecoder(f *testing.F) {
	f.Add([]byte(framed), uint8(1))
	f.Add([]byte("0\r\n\r\n"), uint8(3))
	f.Add([]byte("3;a=\"b\"\r\nabc\r\n00\r\nX: y\r\nZ:\r\n\r\nrest"), uint8(2))
	f.Add([]byte("ffffffffffffffff\r\n"), uint8(7))
	f.Fuzz(func(t *testing.T, p []byte, size uint8) {
		body, used, end, err := decode(p, len(p)+1)
		pieces, usedPieces, endPieces, errPieces := decode(p, int(size)+1)
		if !bytes.Equal(body, pieces) || used != usedPieces || end != endPieces || !errors.Is(errPieces, err) {
			t.Fatalf("whole: %q %d %v %v; in pieces of %d: %q %d %v %v",
				body, used, end, err, int(size)+1, pieces, usedPieces, endPieces, errPieces)
		}
		if !end {
			return
		}
		std, err := io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(p)))
		if err != nil && strings.Contains(err.Error(), "too much non-data") {
			return // the library's bound on overhead, no question of syntax
		}
		if err != nil && strings.Contains(err.Error(), "line too long") {
			return
		}
		if err != nil || !bytes.Equal(std, body) {
			t.Fatalf("ours %q; net/http %q, %v", body, std, err)
		}
	})
}
