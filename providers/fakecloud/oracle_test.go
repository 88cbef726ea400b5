package fakecloud_test

import (
	"crypto/sha256"
	"encoding/hex"
	"math"
	"strings"
	"testing"
	"unicode/utf8"

	"headrace/providers/fakecloud"
)

// TestAnswersStayTheSame pins the oracle: recorded streams and other processes rely on it.
func TestAnswersStayTheSame(t *testing.T) {
	sum := sha256.Sum256([]byte(fakecloud.Answer("model", "prompt", 1000)))
	const want = "1c81ea11bea8b1c55673d4959ec5abb8f6031ad12fb281444256e73280d9a6bf"
	if got := hex.EncodeToString(sum[:]); got != want {
		t.Errorf("the answer has SHA-256 %s, want %s", got, want)
	}
}

func TestAnswerIsItsTokens(t *testing.T) {
	var b strings.Builder
	kinds := map[string]bool{}
	last := ""
	for i := range 3000 {
		tok := fakecloud.Token("m", "p", i)
		if tok == "" || !utf8.ValidString(tok) || tok == last {
			t.Fatalf("token %d is %q after %q", i, tok, last)
		}
		last = tok
		for _, r := range tok {
			kinds["four bytes"] = kinds["four bytes"] || r > 0xffff
			kinds["joined"] = kinds["joined"] || r == 0x200d
			kinds["quote"] = kinds["quote"] || r == '"'
			kinds["line end"] = kinds["line end"] || r == '\n'
			kinds["three bytes"] = kinds["three bytes"] || r > 0x7ff && r < 0x10000
		}
		b.WriteString(tok)
	}
	if b.String() != fakecloud.Answer("m", "p", 3000) {
		t.Error("Answer is not the tokens joined")
	}
	for _, k := range []string{"four bytes", "joined", "quote", "line end", "three bytes"} {
		if !kinds[k] {
			t.Errorf("3000 tokens without %s", k)
		}
	}
	if fakecloud.Answer("m", "p", 50) == fakecloud.Answer("m2", "p", 50) || fakecloud.Answer("m", "p", 50) == fakecloud.Answer("m", "p2", 50) {
		t.Error("another model or prompt gives the same answer")
	}
}

func TestPosition(t *testing.T) {
	const n = 60
	whole := fakecloud.Answer("m", "p", n)
	for cut := range len(whole) + 1 {
		next, within, ok := fakecloud.Position("m", "p", whole[:cut])
		if !ok || len(fakecloud.Answer("m", "p", next))+within != cut {
			t.Fatalf("cut at %d: token %d, byte %d, %v", cut, next, within, ok)
		}
	}
	lost := fakecloud.Answer("m", "p", 20) + strings.TrimPrefix(whole, fakecloud.Answer("m", "p", 21))
	if _, _, ok := fakecloud.Position("m", "p", lost); ok {
		t.Error("a lost token was not found")
	}
	doubled := fakecloud.Answer("m", "p", 21) + fakecloud.Token("m", "p", 20) + strings.TrimPrefix(whole, fakecloud.Answer("m", "p", 21))
	if _, _, ok := fakecloud.Position("m", "p", doubled); ok {
		t.Error("a doubled token was not found")
	}
}

func TestVectorHasLengthOne(t *testing.T) {
	var sum float64
	for _, x := range fakecloud.Vector("m", "in", 384) {
		sum += float64(x) * float64(x)
	}
	if math.Abs(sum-1) > 1e-5 {
		t.Errorf("the square of the length is %v", sum)
	}
}
