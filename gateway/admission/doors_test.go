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

// An answer that is lost behind a write that was done counts nothing twice.
func TestLostAnswer(t *testing.T) {
	s := &fails{Store: state.NewMemory(), kind: spendKind, done: true}
	g := New(Options{Store: s, Now: func() time.Time { return start }})
	g.Configure([]Key{{Name: "k", Hash: HashOf(goodKey)}}, false)
	g.Start(t.Context())
	for range 3 {
		s.times.Store(2)
		spend(t, g, goodKey, 0.25, start)
		_ = g.flush(t.Context()) // the answer is lost
		spend(t, g, goodKey, 0.5, start)
		_ = g.flush(t.Context()) // likewise
		if err := g.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if v, _ := g.View(t.Context(), "k"); v.SpentTotal != 2.25 || v.SpentToday != 2.25 {
		t.Errorf("$%.2f are booked, $2.25 were spent", v.SpentTotal)
	}
	other := New(Options{Store: s, Now: func() time.Time { return start }})
	other.Configure([]Key{{Name: "k", Hash: HashOf(goodKey)}}, false)
	other.Start(t.Context())
	if v, _ := other.View(t.Context(), "k"); v.SpentTotal != 2.25 {
		t.Errorf("$%.2f are kept, $2.25 were spent", v.SpentTotal)
	}
}

// The last key that opens the admin API stays: without it the API would ask nobody.
func TestLastAdminKey(t *testing.T) {
	g := New(Options{Store: state.NewMemory()})
	for _, k := range []Key{{Name: "root", Admin: true}, {Name: "old", Admin: true, Expires: time.Unix(1, 0)}, {Name: "off", Admin: true, Off: true}} {
		if _, _, err := g.Create(t.Context(), k); err != nil {
			t.Fatal(err)
		}
	}
	_, err := g.Revoke(t.Context(), "root")
	_, err1 := g.Update(t.Context(), "root", &Spec{Admin: new(false)})
	_, err2 := g.Update(t.Context(), "root", &Spec{Disabled: new(true)})
	_, err3 := g.Update(t.Context(), "root", &Spec{Expires: new("2020-01-01")})
	for _, err := range []error{err, err1, err2, err3} {
		if !errors.Is(err, ErrLastAdmin) {
			t.Errorf("the last one: %v", err)
		}
	}
	if _, _, err := g.Rotate(t.Context(), "root", 0); err != nil {
		t.Error(err)
	}
	if _, _, err := g.Create(t.Context(), Key{Name: "second", Admin: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Revoke(t.Context(), "root"); err != nil || !g.AdminKeys() {
		t.Errorf("with another one: %v, asked for: %t", err, g.AdminKeys())
	}
}

// A key may not be called like another one's ID; where that happened all the same both work, and a name goes before an ID.
func TestNameLikeID(t *testing.T) {
	s := state.NewMemory()
	g := New(Options{Store: s})
	a, secret, err := g.Create(t.Context(), Key{Name: "team"})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := g.Create(t.Context(), Key{Name: a.ID}); !errors.As(err, new(*FieldError)) {
		t.Errorf("%v", err)
	}
	id, other := mint("")
	twin := Key{Name: a.ID, ID: id, Hash: HashOf(other)}
	if _, err := s.Put(t.Context(), keyKind, twin.Name, 0, twin.document()); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if err := g.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{secret, other} {
			if _, e := g.Enter([]byte(key), time.Now()); e != nil {
				t.Fatal(e)
			}
		}
		if v, err := g.View(t.Context(), a.ID); err != nil || v.ID != id {
			t.Fatalf("%s is %+v, %v", a.ID, v, err)
		}
	}
}

// An empty list may be meant to allow nothing, and would allow all.
func TestEmptyLists(t *testing.T) {
	for _, s := range []Spec{{Models: new([]string{})}, {Policies: new([]string{})}, {Regions: new([]string{})}} {
		k := Key{Name: "k", Models: []string{"m"}, Policies: []string{"cost"}, Regions: []string{"EU"}}
		if err := s.Apply(&k); !errors.As(err, new(*FieldError)) || len(k.Models) != 1 || len(k.Policies) != 1 || len(k.Regions) != 1 {
			t.Errorf("%v, %+v", err, k)
		}
	}
	k := Key{Name: "k", Models: []string{"m"}, Policies: []string{"cost"}, Regions: []string{"EU"}}
	all := []string{"*"}
	if err := (&Spec{Models: &all, Policies: &all, Regions: &all}).Apply(&k); err != nil || k.Models != nil || k.Policies != nil || k.Regions != nil {
		t.Errorf("%v, %+v", err, k)
	}
}

// Two keys of one secret: it is the first one's.
func TestSameSecret(t *testing.T) {
	g := gateWith(Key{Name: "a", Models: []string{"m1"}}, Key{Name: "b"})
	if gr := enter(t, g, goodKey, start); gr.Name() != "a" || gr.Model("m2") {
		t.Errorf("it is %s's", gr.Name())
	}
}

// A grant ends with its key, however that ends.
func TestLive(t *testing.T) {
	g := New(Options{Store: state.NewMemory()})
	for name, end := range map[string]func() error{
		"revoked":  func() error { _, err := g.Revoke(t.Context(), "revoked"); return err },
		"disabled": func() error { _, err := g.Update(t.Context(), "disabled", &Spec{Disabled: new(true)}); return err },
		"expired": func() error {
			_, err := g.Update(t.Context(), "expired", &Spec{Expires: new("2020-01-01")})
			return err
		},
	} {
		_, secret, err := g.Create(t.Context(), Key{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		gr := enter(t, g, secret, time.Now())
		if !gr.Live(time.Now()) {
			t.Errorf("%s: not live before", name)
		}
		if err := end(); err != nil || gr.Live(time.Now()) {
			t.Errorf("%s: still live, %v", name, err)
		}
	}
}
