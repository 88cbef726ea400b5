package affinity

import (
	"testing"
	"time"
)

// TestSalt has the same prompt known again by the same salt only.
func TestSalt(t *testing.T) {
	table := New(Options{Prefixes: 1024})
	now := time.Unix(1e9, 0)
	key := func(salt uint64) *Key {
		k := &Key{Session: SessionHash("m", []byte("s")), Root: 77}
		k.Add(Mark{Hash: 5, Tokens: 100})
		k.Add(Mark{Hash: 0, Tokens: 200})
		k.Salt(salt)
		return k
	}
	var m Matches
	finds := func(salt uint64) (int32, bool) {
		table.Lookup(key(salt), now, &m)
		return m.Tokens(7)
	}
	table.Learn(key(12345), 7, now)
	for salt, want := range map[uint64]int32{0: 0, 12345: 200, 12346: 0} {
		if tokens, session := finds(salt); tokens != want || session != (want > 0) {
			t.Errorf("salt %d: %d tokens, session %t; want %d tokens", salt, tokens, session, want)
		}
	}
	if a, b := key(12345), key(12346); a.Home() == b.Home() || a.Root == b.Root {
		t.Error("salts share a home")
	}
	var none Key
	if none.Salt(12345); none.Home() != 0 || none.N != 0 {
		t.Error("nothing to recognise has become something")
	}
}
