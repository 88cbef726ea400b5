package ledger_test

import (
	"testing"

	"headrace/gateway/ledger"
)

// TestSaidIsBounded keeps whole pieces from the front as far as there is room, and nothing that others get.
func TestSaidIsBounded(t *testing.T) {
	s := &ledger.Said{Room: 10}
	s.Ask([]byte("0123456789"))
	for _, piece := range []string{"abc", "de", "fghijk", "l"} { // each with a line feed: 4 + 3 bytes, and then too many
		s.Answer([]byte(piece))
	}
	if string(s.Asked) != "0123456789" || string(s.Answered) != "abc\nde\n" || !s.Cut {
		t.Errorf("kept %q and %q, cut: %t", s.Asked, s.Answered, s.Cut)
	}
	s.Anew()
	if s.Answer([]byte("again")); string(s.Answered) != "again\n" {
		t.Errorf("anew: %q", s.Answered)
	}
	long := &ledger.Said{Room: 10}
	if long.Ask([]byte("01234567890")); long.Asked != nil || !long.Cut {
		t.Errorf("kept %q of what is too long, cut: %t", long.Asked, long.Cut)
	}
	r, kept := ledger.Record{ID: "a", Said: s}, ledger.Record{}
	ring := ledger.NewRing(1)
	r.CopyTo(&kept)
	ring.Add(&r)
	if kept.Said != nil || kept.ID != "a" || ring.Newest(1, func(*ledger.Record) bool { return true })[0].Said != nil {
		t.Error("a copy has what was said")
	}
}
