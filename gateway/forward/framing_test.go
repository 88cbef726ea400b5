package forward

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http/httputil"
	"strings"
	"testing"
)

// decodeAll feeds a body to a framing in pieces and returns what comes out, and the bytes left behind its end.
func decodeAll(f *framing, body []byte, cut func(n int) int) (out, rest []byte, err error) {
	for len(body) > 0 && !f.end {
		p := bytes.Clone(body[:cut(len(body))])
		n, read, err := f.decode(p)
		out = append(out, p[:n]...)
		if err != nil {
			return out, nil, err
		}
		if read < len(p) && !f.end {
			return out, nil, fmt.Errorf("%d of %d bytes read in the middle of a body", read, len(p))
		}
		body = body[read:]
	}
	return out, body, nil
}

func atOnce(n int) int { return n }
func oneByOne(int) int { return 1 }
func seeded(seed uint64) func(int) int {
	r := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // a test's
	return func(n int) int { return 1 + r.IntN(n) }
}

// chunk frames a body as a host may: odd sizes, leading zeros, capitals, extensions, trailers.
func chunk(r *rand.Rand, body []byte) []byte {
	var b bytes.Buffer
	for len(body) > 0 {
		n := 1 + r.IntN(min(len(body), 300))
		fmt.Fprintf(&b, []string{"%x\r\n", "%X\r\n", "0%x\r\n", "%x;name=value\r\n", "%x \r\n", "%x;q=\"a b\"\r\n"}[r.IntN(6)], n)
		b.Write(body[:n])
		b.WriteString("\r\n")
		body = body[n:]
	}
	b.WriteString([]string{"0\r\n\r\n", "00\r\n\r\n", "0\r\nA: b\r\n\r\n", "0;x\r\nA: b\r\nC: d\r\n\r\n"}[r.IntN(4)])
	return b.Bytes()
}

// TestChunkedAnyCut decodes valid bodies, cut anywhere, to what Go's own reader makes of them.
func TestChunkedAnyCut(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // a test's
	for range 3000 {
		want := make([]byte, r.IntN(1000))
		for i := range want {
			want[i] = "0123456789abcdef\r\n;"[r.IntN(19)]
		}
		wire := chunk(r, want)
		const behind = "HTTP/1.1 200 OK\r\n"
		theirs, err := io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(wire)))
		if err != nil || !bytes.Equal(theirs, want) {
			t.Fatalf("the test's own body is not valid: %v", err)
		}
		for _, cut := range []func(int) int{atOnce, oneByOne, seeded(r.Uint64())} {
			f := framing{kind: chunked}
			got, rest, err := decodeAll(&f, append(bytes.Clone(wire), behind...), cut)
			if err != nil || !f.end || !bytes.Equal(got, want) || string(rest) != behind {
				t.Fatalf("%q: %q, ended %t, %q behind it, %v", wire, got, f.end, rest, err)
			}
		}
	}
}

func TestFramings(t *testing.T) {
	for name, tc := range map[string]struct {
		f          framing
		body, want string
		end        bool
		rest       string
	}{
		"sized":           {framing{kind: sized, left: 5}, "hello", "hello", true, ""},
		"sized, more":     {framing{kind: sized, left: 5}, "helloHTTP", "hello", true, "HTTP"},
		"sized, less":     {framing{kind: sized, left: 9}, "hello", "hello", false, ""},
		"until close":     {framing{kind: untilClose}, "hello", "hello", false, ""},
		"none":            {framing{kind: noBody}, "hello", "", true, "hello"},
		"chunked, no end": {framing{kind: chunked}, "5\r\nhello\r\n", "hello", false, ""},
		"chunked, white space before an extension": {framing{kind: chunked}, "5 \t;a=b\r\nhello\r\n0\r\n\r\n", "hello", true, ""},
		"chunked, trailer":                         {framing{kind: chunked}, "0\r\nA: b\r\n\r\nrest", "", true, "rest"},
	} {
		for _, cut := range []func(int) int{atOnce, oneByOne} {
			f := tc.f
			got, rest, err := decodeAll(&f, []byte(tc.body), cut)
			if err != nil || string(got) != tc.want || f.end != tc.end || string(rest) != tc.rest {
				t.Errorf("%s: %q, ended %t, %q behind it, %v", name, got, f.end, rest, err)
			}
		}
	}
}

// TestMalformedChunks refuses what different readers would read differently.
func TestMalformedChunks(t *testing.T) {
	for _, body := range []string{
		"\r\n", "x\r\n", "-1\r\n", "+5\r\nhello", "0x5\r\nhello", " 5\r\nhello", "5\nhello\n", "5\r\rhello", "5;a\nhello",
		"5\r\nhelloX", "5\r\nhello\rX", "5\r\nhello\n", "0\r\n\rX", strings.Repeat("f", 17) + "\r\n", "10000000000000\r\n",
	} {
		for _, cut := range []func(int) int{atOnce, oneByOne} {
			f := framing{kind: chunked}
			if out, _, err := decodeAll(&f, []byte(body), cut); !errors.Is(err, errFraming) {
				t.Errorf("%q: %q, %v", body, out, err)
			}
		}
	}
}

// FuzzChunked decodes anything without a panic and whatever the cuts; what both readers take is the same.
func FuzzChunked(f *testing.F) {
	for _, s := range []string{"5\r\nhello\r\n0\r\n\r\n", "0\r\n\r\n", "A;x=y\r\n0123456789\r\n00\r\nT: v\r\n\r\n", "5\r\nhel", "ffffffffff\r\nx", "5 \r\nhello\r\n0\r\n\r\n"} {
		f.Add([]byte(s), uint64(7))
	}
	f.Fuzz(func(t *testing.T, body []byte, seed uint64) {
		whole := framing{kind: chunked}
		want, rest, wantErr := decodeAll(&whole, body, atOnce)
		for _, cut := range []func(int) int{oneByOne, seeded(seed)} {
			f := framing{kind: chunked}
			got, left, err := decodeAll(&f, body, cut)
			if !bytes.Equal(got, want) || (err == nil) != (wantErr == nil) || f.end != whole.end || !bytes.Equal(left, rest) {
				t.Fatalf("%q: cut %q, %v, ended %t; whole %q, %v, ended %t", body, got, err, f.end, want, wantErr, whole.end)
			}
		}
		if !whole.end || wantErr != nil {
			return
		}
		if theirs, err := io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(body))); err == nil && !bytes.Equal(theirs, want) {
			t.Fatalf("%q: %q, net/http reads %q", body, want, theirs)
		}
	})
}
