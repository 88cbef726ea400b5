package resume

import (
	"math/bits"
	"sync"
)

// Texts live in pooled buffers of a power of two bytes, so that one is never more than twice its text,
// but for short ones, and a stream's end feeds the next one.
const (
	minText   = 10 // 1 KiB
	maxPooled = 17 // 128 KiB
)

var (
	texts     = [maxPooled + 1]sync.Pool{minText: {}} // by the logarithm of the size
	notesPool = sync.Pool{New: func() any { return new(notes) }}
)

// buffer is a pooled text. It is kept by its pointer, or putting it back would allocate.
type buffer struct{ b []byte }

// takeBuffer returns an empty buffer for at least n bytes.
func takeBuffer(n int) *buffer {
	class := max(minText, bits.Len(uint(max(n, 1)-1)))
	if class <= maxPooled {
		if t, ok := texts[class].Get().(*buffer); ok {
			return t
		}
	}
	return &buffer{make([]byte, 0, 1<<class)}
}

func (t *buffer) free() {
	if class := bits.Len(uint(cap(t.b)) - 1); class <= maxPooled {
		t.b = t.b[:0]
		texts[class].Put(t)
	}
}

// add appends p to the text and returns where it lives now.
func (t *buffer) add(p []byte) *buffer {
	if len(t.b)+len(p) > cap(t.b) {
		larger := takeBuffer(len(t.b) + len(p))
		larger.b = append(larger.b, t.b...)
		t.free()
		t = larger
	}
	t.b = append(t.b, p...)
	return t
}
