package admission

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"headrace/gateway/state"
)

// A process whose first write fails (a full disk stands here as a file in the place of a directory) goes over to memory, with its keys.
func TestKeysOutliveAFullDisk(t *testing.T) {
	dir := t.TempDir()
	_, secret, err := New(Options{Store: state.NewFiles(dir, nil)}).Create(t.Context(), Key{Name: "team"})
	if err != nil {
		t.Fatal(err)
	}
	store := state.NewFiles(dir, nil)
	g := New(Options{Store: store})
	g.Start(t.Context())
	if err := os.WriteFile(filepath.Join(dir, "docs", spendKind), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	spend(t, g, secret, 0.1, time.Now())
	if err := g.flush(t.Context()); err != nil || !store.InMemory() {
		t.Fatalf("flush: %v, in memory: %t", err, store.InMemory())
	}
	if err := g.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, e := g.Enter([]byte(secret), time.Now()); g.Open() || e != nil {
		t.Errorf("the key is forgotten; open to everybody: %t, %v", g.Open(), e)
	}
}

// TestDoorStaysShut has keys go in other ways than by an operator's word.
func TestDoorStaysShut(t *testing.T) {
	dir := t.TempDir()
	g := New(Options{Store: state.NewFiles(dir, nil)})
	if _, _, err := g.Create(t.Context(), Key{Name: "team"}); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "docs", keyKind, "team*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	if err := os.WriteFile(files[0], []byte("\x00\x00\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := New(Options{Store: state.NewFiles(dir, nil)})
	other.Start(t.Context())
	if other.Open() {
		t.Error("the only key's file is damaged, and the door is open to everybody")
	}
	if err := os.Remove(files[0]); err != nil {
		t.Fatal(err)
	}
	if err := g.Load(t.Context()); err != nil || g.Open() {
		t.Errorf("the only key's file is gone, and the door is open to everybody: %t, %v", g.Open(), err)
	}
}

// fails is a store whose writes of a kind fail: before they are done or, with done, behind.
type fails struct {
	state.Store
	kind  string
	done  bool
	times atomic.Int64 // how many are left
}

func (s *fails) Put(ctx context.Context, kind, name string, old state.Version, body []byte) (state.Version, error) {
	if kind != s.kind || s.times.Add(-1) < 0 {
		return s.Store.Put(ctx, kind, name, old, body)
	}
	if s.done {
		if _, err := s.Store.Put(ctx, kind, name, old, body); err != nil {
			return 0, err
		}
	}
	return 0, errors.New("i/o timeout")
}

// A rotation that was not written gives no secret: it would open nothing, while whoever asked believes that the one before ends.
func TestRotationThatFails(t *testing.T) {
	s := &fails{Store: state.NewMemory(), kind: keyKind}
	g := New(Options{Store: s})
	_, old, err := g.Create(t.Context(), Key{Name: "leaked"})
	if err != nil {
		t.Fatal(err)
	}
	s.times.Store(1)
	if _, secret, err := g.Rotate(t.Context(), "leaked", 0); err == nil || secret != "" {
		t.Errorf("the store has failed: secret %q, error %v", secret, err)
	}
	_, secret, err := g.Rotate(t.Context(), "leaked", 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, e := g.Enter([]byte(secret), time.Now()); e != nil {
		t.Error(e)
	}
	if _, e := g.Enter([]byte(old), time.Now()); e == nil {
		t.Error("the old secret still opens the door")
	}
}
