package listen

import (
	"net"
	"testing"
	"time"
)

// TestKeptHasItsDeadline has what was written under a deadline go out under it, though there was none any more by the time it did: a server
// takes it back behind a stream, whose last bytes a client that takes in nothing would hold for good.
func TestKeptHasItsDeadline(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := WatchPortably(ln)
	defer func() { _ = l.Close() }()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := nc.(*Conn)
	defer func() { _ = c.Close() }()
	none, first, second := time.Time{}, time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
	for name, tc := range map[string]struct {
		write     bool
		then      []time.Time // what is set behind it
		told, end time.Time
	}{
		"taken back":           {true, []time.Time{none}, first, none},
		"taken back twice":     {true, []time.Time{none, none}, first, none},
		"put off":              {true, []time.Time{second}, second, second},
		"taken back and anew":  {true, []time.Time{none, second}, second, second},
		"nothing was kept":     {false, []time.Time{none}, none, none},
		"nothing, and not set": {false, nil, none, first},
	} {
		_ = c.SetDeadline(none)
		c.armWrite()
		_ = c.SetWriteDeadline(first)
		if tc.write {
			if _, err := c.Write([]byte("kept")); err != nil {
				t.Fatal(err)
			}
		}
		for _, d := range tc.then {
			_ = c.SetWriteDeadline(d)
		}
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
		if !c.dl.writeSet.Equal(tc.told) || !c.dl.write.Equal(tc.end) {
			t.Errorf("%s: it went out under %v, want %v; then there is %v, want %v", name, c.dl.writeSet, tc.told, c.dl.write, tc.end)
		}
	}
}
