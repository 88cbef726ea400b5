package experiments

import (
	"context"
	"errors"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"headrace/gateway/state"
	"headrace/router/experiment"
)

// rewinding is a store that can go back in time, as a Redis does that comes back with its last file, or whose lagging replica takes over. It
// may also refuse every write as a conflict.
type rewinding struct {
	mu       sync.Mutex
	docs     map[string]map[string]state.Doc
	kept     map[string]map[string]state.Doc
	contends bool
}

func (s *rewinding) Load(_ context.Context, kind string) (map[string]state.Doc, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	docs := map[string]state.Doc{}
	maps.Copy(docs, s.docs[kind])
	return docs, nil
}

func (s *rewinding) Put(_ context.Context, kind, name string, old state.Version, body []byte) (state.Version, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.docs[kind][name].Version != old || s.contends && kind == kindDocs {
		return 0, state.ErrConflict
	}
	if s.docs == nil {
		s.docs = map[string]map[string]state.Doc{}
	}
	if s.docs[kind] == nil {
		s.docs[kind] = map[string]state.Doc{}
	}
	v := old + 1 // counts, so that it is used again after the store went back
	s.docs[kind][name] = state.Doc{Version: v, Body: body}
	return v, nil
}

func (s *rewinding) Delete(_ context.Context, kind, name string, old state.Version) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.docs[kind][name].Version != old {
		return state.ErrConflict
	}
	delete(s.docs[kind], name)
	return nil
}

func (s *rewinding) Watch(string) (<-chan struct{}, func()) { return nil, func() {} }

// keep notes how it is now, for rewind.
func (s *rewinding) keep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept = map[string]map[string]state.Doc{}
	for kind, docs := range s.docs {
		s.kept[kind] = maps.Clone(docs)
	}
}

func (s *rewinding) rewind() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.docs = s.kept
}

func (s *rewinding) contend(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.contends = on
}

// TestStoreGoesBack: a store that has lost the last minutes gets back what replicas know, and what harms is still ended and aborted.
func TestStoreGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &rewinding{}
		a, b := startReplica(t, store, trialOf()), startReplica(t, store, trialOf())
		pass(5 * time.Second)
		store.keep()
		for _, c := range []experiment.Command{experiment.Pause, experiment.Resume, experiment.Pause} {
			if _, err := a.Apply(t.Context(), "e", c, ""); err != nil {
				t.Fatal(err)
			}
		}
		pass(3 * time.Second)
		store.rewind()
		pass(5 * time.Second)
		if a.state() != experiment.Paused || b.state() != experiment.Paused {
			t.Fatalf("after the store went back it is %s and %s", a.state(), b.state())
		}
		if _, err := b.Apply(t.Context(), "e", experiment.Resume, ""); err != nil {
			t.Fatal(err)
		}
		w := newWorld(t)
		w.bad = 0.9
		w.run(t, experiment.RolledBack, 3000, a, b)
		v, _ := b.Show(t.Context(), "e")
		if len(v.Decisions) != 6 {
			t.Errorf("decisions %+v", v.Decisions)
		}
		store.rewind() // to where it was running
		pass(5 * time.Second)
		if a.state() != experiment.RolledBack || b.state() != experiment.RolledBack || a.canary() > 0 {
			t.Errorf("what was rolled back is %s and %s after the store went back", a.state(), b.state())
		}
		a.mu.Lock()
		b.mu.Lock()
		if a.slot.number == b.slot.number || a.slot.number < 0 || b.slot.number < 0 {
			t.Errorf("places %d and %d", a.slot.number, b.slot.number)
		}
		b.mu.Unlock()
		a.mu.Unlock()
		a.stop()
		b.stop()
	})
}

// TestStoreContends: abort acts at once, and so does proven harm, also while the store refuses every change.
func TestStoreContends(t *testing.T) {
	for name, harm := range map[string]bool{"abort": false, "harm": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &rewinding{}
				a, b := startReplica(t, store, trialOf()), startReplica(t, store, trialOf())
				pass(5 * time.Second)
				store.contend(true)
				want := experiment.Aborted
				if harm {
					want = experiment.RolledBack
					w := newWorld(t)
					w.bad = 0.9
					w.run(t, want, 3000, a)
				} else if _, err := a.Apply(t.Context(), "e", experiment.Abort, ""); err != nil {
					t.Errorf("abort: %v", err)
				}
				if a.state() != want || a.canary() > 0 {
					t.Errorf("it is %s, and the canary has %v", a.state(), a.canary())
				}
				if _, err := b.Apply(t.Context(), "e", experiment.Promote, ""); !errors.Is(err, ErrSilent) {
					t.Errorf("promote: %v", err)
				}
				store.contend(false)
				pass(5 * time.Second)
				if a.state() != want || b.state() != want {
					t.Errorf("when it can be written: %s and %s", a.state(), b.state())
				}
				a.stop()
				b.stop()
			})
		})
	}
}

// TestAloneAndOthers: what one replica has ended while it could not reach the store is ended for all, whatever else they decided in that run,
// and does nothing to a later run.
func TestAloneAndOthers(t *testing.T) {
	for name, tc := range map[string]struct {
		commands []experiment.Command // meanwhile, by others
		want     experiment.State
		run      int
		log      int
	}{
		"nothing":   {nil, experiment.Aborted, 1, 2},
		"paused":    {[]experiment.Command{experiment.Pause, experiment.Resume, experiment.Pause}, experiment.Aborted, 1, 5},
		"promoted":  {[]experiment.Command{experiment.Pause, experiment.Promote}, experiment.Aborted, 1, 4},
		"begun new": {[]experiment.Command{experiment.Abort, experiment.Start}, experiment.Running, 2, 3},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &rewinding{}
				cut := &flaky{Store: store}
				a, b := startReplica(t, cut, trialOf()), startReplica(t, store, trialOf())
				pass(5 * time.Second)
				cut.down.Store(true)
				if _, err := a.Apply(t.Context(), "e", experiment.Abort, ""); err != nil {
					t.Fatal(err)
				}
				for _, c := range tc.commands {
					if _, err := b.Apply(t.Context(), "e", c, ""); err != nil {
						t.Fatal(err)
					}
				}
				cut.down.Store(false)
				pass(5 * time.Second)
				for _, r := range []*replica{a, b} {
					v, err := r.Show(t.Context(), "e")
					if err != nil || v.State != tc.want || v.Run != tc.run || len(v.Decisions) != tc.log {
						t.Errorf("run %d is %s after %+v, %v", v.Run, v.State, v.Decisions, err)
					}
				}
				a.stop()
				b.stop()
			})
		})
	}
}
