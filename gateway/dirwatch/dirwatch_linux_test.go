package dirwatch

import (
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTake reads what the kernel writes: several events at once, of directories that are watched by no, one and two names, and what says
// that events were lost.
func TestTake(t *testing.T) {
	event := func(wd int32, mask uint32, name string) []byte {
		b := binary.NativeEndian.AppendUint32(nil, uint32(wd)) //nolint:gosec // as the kernel does
		b = binary.NativeEndian.AppendUint32(b, mask)
		b = binary.NativeEndian.AppendUint32(b, 0)
		padded := make([]byte, (len(name)+16)/16*16*min(1, len(name)))
		copy(padded, name)
		return append(binary.NativeEndian.AppendUint32(b, uint32(len(padded))), padded...) //nolint:gosec // it is short
	}
	w := &Watcher{events: make(chan Event, 16), closed: make(chan struct{}), dirs: map[string]int32{"/a": 1, "/b": 2, "/c": 2}}
	all := slices.Concat(
		event(1, unix.IN_CREATE, "file"), event(2, unix.IN_MODIFY, "shared"), event(3, unix.IN_MODIFY, "unknown"),
		event(-1, unix.IN_Q_OVERFLOW, ""), event(2, unix.IN_IGNORED, ""), event(2, unix.IN_MODIFY, "over"), event(1, unix.IN_DELETE_SELF, ""),
		event(1, unix.IN_CREATE, "cut off")[:20],
	)
	if !w.take(all) {
		t.Fatal("it takes itself for closed")
	}
	close(w.events)
	var got []string
	for e := range w.events {
		if e.Lost {
			e.Path = "lost"
		}
		got = append(got, e.Path)
	}
	if len(got) > 3 {
		slices.Sort(got[1:3])
	}
	if want := []string{"/a/file", "/b/shared", "/c/shared", "lost", "/a"}; !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
	if l := w.List(); !slices.Equal(l, []string{"/a"}) {
		t.Errorf("%q are watched, want /a alone", l)
	}
}
