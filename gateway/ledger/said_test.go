package ledger_test

import (
	"testing"

	"headrace/gateway/ledger"
)

// TestSaidIsBounded keeps whole pieces from the front as far as there is room, and nothing that others get.
func TestSaidIsBounded(t *testing.T) {
	bound := ledger.NewBound(20)
	s := ledger.NewSaid(10, bound)
	s.Ask([]byte("0123456789"))
	for _, piece := range []string{`[1]`, `"äö"`, `"fghi"`, `"l"`} { // 4 bytes and 5 more for text, a line feed each: then too much
		s.Answer([]byte(piece))
	}
	if string(s.Asked) != "0123456789" || string(s.Answered) != "[1]\n" || !s.Missing() {
		t.Errorf("kept %q and %q, something missing: %t", s.Asked, s.Answered, s.Missing())
	}
	if s.Anew(); s.Missing() {
		t.Error("another host begins, and something is missing already")
	}
	if s.Answer([]byte("true")); string(s.Answered) != "true\n" || s.Missing() {
		t.Errorf("anew: %q", s.Answered)
	}
	other := ledger.NewSaid(10, bound)
	if other.Ask([]byte("0123456")); other.Asked != nil || !other.Missing() {
		t.Errorf("all requests together have %q more than there is room for", other.Asked)
	}
	other.Release()
	s.Release()
	if s.Release(); bound.Left() != 20 || string(s.Answered) != "true\n" {
		t.Errorf("%d bytes are free of 20, and %q is left", bound.Left(), s.Answered)
	}
	long := &ledger.Said{Room: 10}
	if long.Ask([]byte("01234567890")); long.Asked != nil || !long.Missing() {
		t.Errorf("kept %q of what is too long", long.Asked)
	}
	r, kept := ledger.Record{ID: "a", Said: s}, ledger.Record{}
	ring := ledger.NewRing(1)
	r.CopyTo(&kept)
	ring.Add(&r)
	if kept.Said != nil || kept.ID != "a" || ring.Newest(1, func(*ledger.Record) bool { return true })[0].Said != nil {
		t.Error("a copy has what was said")
	}
}

// TestSaidIsShort keeps of an answer's events what differs, and what is no JSON not at all.
func TestSaidIsShort(t *testing.T) {
	s := ledger.NewSaid(1000, ledger.NewBound(1000))
	for _, text := range []string{`"Hel"`, `""`, `"l\ud83d"`, `"\ude00ö"`, "\"\x01\"", `"\x"`} {
		s.Text([]byte(text))
	}
	s.Answer([]byte(`{"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"delta":{"reasoning":"hm \"choices\":[]"}}]}`))
	s.Answer([]byte(`{"id":1,"x":{"a":1,"choices":[]}}`)) // not the event's own
	s.Answer([]byte(`{"id":`))
	s.Text([]byte(`"again"`))
	for _, piece := range []string{`"h\""`, `""`, `"m"`} {
		s.Reasoning([]byte(piece))
	}
	s.Arguments(0, []byte(`"{\"a"`))
	s.Arguments(0, []byte(`"\":1}"`))
	s.Arguments(12, []byte(`"{}"`))
	s.Text([]byte(`"."`))
	want := `"Hell\ud83d\ude00ö"` + "\n" + `{"choices":[{"delta":{"reasoning":"hm \"choices\":[]"}}]}` + "\n" + `{"id":1,"x":{"a":1,"choices":[]}}` + "\n" + `"again"` + "\n" +
		`["reasoning","h\"m"]` + "\n" + `["arguments",0,"{\"a\":1}"]` + "\n" + `["arguments",12,"{}"]` + "\n" + `"."` + "\n"
	if string(s.Answered) != want || !s.Missing() {
		t.Errorf("kept\n%s, want\n%s", s.Answered, want)
	}
}
