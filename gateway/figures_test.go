package gateway

import (
	"bytes"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
)

func TestAppendUSD(t *testing.T) {
	t.Parallel()
	for usd, want := range map[float64]string{
		0: "0.000000000", 1: "1.000000000", 0.000000001: "0.000000001", 0.0000000004: "0.000000000", 0.0000000006: "0.000000001",
		0.1: "0.100000000", 12.000000345: "12.000000345", 0.9999999996: "1.000000000", 999999.5: "999999.500000000",
		1e6: "1000000.000000000", -0.25: "-0.250000000", math.Inf(1): "+Inf",
	} {
		if got := string(appendUSD([]byte("x"), usd)); got != "x"+want {
			t.Errorf("%v: %q, want %q", usd, got, "x"+want)
		}
	}
	const seed = 11
	rng := rand.New(rand.NewPCG(seed, seed))
	for range 10000 {
		usd := math.Pow(10, rng.Float64()*15-9)
		got := string(appendUSD(nil, usd))
		back, err := strconv.ParseFloat(got, 64)
		if _, decimals, _ := strings.Cut(got, "."); err != nil || len(decimals) != 9 || math.Abs(back-usd) > 0.7e-9 {
			t.Fatalf("%v: %q, %v (seed %d)", usd, got, err, seed)
		}
	}
}

// Request ids carry all of their random bits: whatever bit differs shows.
func TestRequestIDs(t *testing.T) {
	t.Parallel()
	id := func(bits [idBytes]byte) string {
		s := &Server{}
		s.ids.New = func() any {
			r := &randomBits{}
			copy(r.bits[:], bits[:])
			return r
		}
		return s.newID()
	}
	seen := map[string]bool{id([idBytes]byte{}): true}
	for i := range idBytes * 8 {
		var b [idBytes]byte
		b[i/8] = 1 << (i % 8)
		got := id(b)
		if len(got) != len("req_")+26 || !strings.HasPrefix(got, "req_") || strings.Trim(got[4:], idDigits) != "" {
			t.Errorf("bit %d: %q", i, got)
		}
		seen[got] = true
	}
	if len(seen) != idBytes*8+1 {
		t.Errorf("%d ids of %d", len(seen), idBytes*8+1)
	}
}

func TestInLine(t *testing.T) {
	t.Parallel()
	for v, want := range map[string]bool{"": true, "text/plain; q=0.5": true, "a\rb": false, "a\nb": false, "a\x00": false, "\u00e9\t": true} {
		if got := inLine([]byte(v)); got != want || want == bytes.ContainsAny([]byte(v), "\r\n\x00") {
			t.Errorf("%q: %v", v, got)
		}
	}
}
