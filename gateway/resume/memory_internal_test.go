package resume

import (
	"bytes"
	"strings"
	"testing"

	"headrace/gateway/openai"
	"headrace/gateway/sse"
)

// A text takes at most twice its own memory, 1 KiB at least, whatever it grew in, and its buffers are used again.
func TestTextMemory(t *testing.T) {
	var want []byte
	text := takeBuffer(1)
	for i := range 5000 {
		piece := []byte(strings.Repeat(string(rune('a'+i%26)), 1+i%97))
		want = append(want, piece...)
		text = text.add(piece)
		if c := cap(text.b); c > max(1<<minText, 2*len(text.b)) {
			t.Fatalf("%d bytes in a buffer of %d", len(text.b), c)
		}
	}
	if !bytes.Equal(text.b, want) {
		t.Error("the text is another one")
	}
	text.free()
	big := takeBuffer(1).add(make([]byte, 3<<20))
	if c := cap(big.b); c > 4<<20 {
		t.Errorf("3 MiB in a buffer of %d", c)
	}
	big.free()
}

func TestReleaseForgets(t *testing.T) {
	var s Story
	for _, gather := range []bool{true, false} {
		s.Begin(true, gather, 1<<20)
		ev := sse.Event{HasData: true, Data: []byte(`{"id":"SECRET","x":"SECRET","choices":[{"delta":{"content":"SECRET","y":"SECRET","reasoning":"SECRET"},"finish_reason":null}],"usage":{"z":"SECRET"}}`)}
		var c openai.Chunk
		c.Parse(nil, ev.Data)
		s.See(&c, &ev)
		s.Release()
		if s.text != nil || s.notes != nil || s.Size() != 0 {
			t.Errorf("gather %v: %+v is left", gather, s)
		}
		s.Begin(true, true, 1<<20)
		ev.Data = []byte(`{"id":"a","choices":[{"delta":{"content":"b"},"finish_reason":"stop"}]}`)
		c.Parse(nil, ev.Data)
		s.See(&c, &ev)
		if whole, r := s.Whole(nil); r != None || bytes.Contains(whole, []byte("SECRET")) {
			t.Errorf("the next answer is %q %s", r, whole)
		}
	}
	s.Release()
}
