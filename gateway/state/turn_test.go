package state

import (
	"errors"
	"testing"
)

// TestTurn gives a task to one replica at a time, and what it has kept to the next.
func TestTurn(t *testing.T) {
	s := startRedis(t)
	open := func() Turn {
		r, err := Open(Options{URL: s.URL(), Timeout: patience / 3})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		return r.Turn("task")
	}
	a, b := open(), open()
	take := func(name string, of Turn, ours, anew bool) {
		t.Helper()
		if o, n, err := of.Take(t.Context()); err != nil || o != ours || n != anew {
			t.Errorf("%s: ours %v anew %v (%v), want %v %v", name, o, n, err, ours, anew)
		}
	}
	take("the first", a, true, true)
	take("the first again", a, true, false)
	take("the second meanwhile", b, false, false)
	if kept, err := b.Load(t.Context()); err != nil || kept != nil {
		t.Errorf("nothing was kept: %q, %v", kept, err)
	}
	if err := a.Save(t.Context(), []byte("x")); err != nil {
		t.Error(err)
	}
	b.Give(t.Context())
	take("what is another's cannot be given away", b, false, false)
	a.Give(t.Context())
	take("the second", b, true, true)
	take("the first after it", a, false, false)
	if err := a.Save(t.Context(), []byte("late")); !errors.Is(err, ErrOvertaken) {
		t.Errorf("what the first saves too late: %v", err)
	}
	if kept, err := b.Load(t.Context()); err != nil || string(kept) != "x" {
		t.Errorf("kept %q, %v", kept, err)
	}
	if err := b.Save(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if kept, err := a.Load(t.Context()); err != nil || kept != nil {
		t.Errorf("deleted: %q, %v", kept, err)
	}
	s.Stop()
	if ours, _, err := b.Take(t.Context()); err == nil || ours {
		t.Error("without Redis it is nobody's")
	}
	if err := b.Save(t.Context(), []byte("y")); err == nil {
		t.Error("saved without Redis")
	}
	if _, err := b.Load(t.Context()); err == nil {
		t.Error("loaded without Redis")
	}
}
