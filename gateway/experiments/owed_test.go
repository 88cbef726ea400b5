package experiments

import (
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"headrace/gateway/state"
	"headrace/router/experiment"
)

// shelf keeps what a replica could not tell the store, over its restarts.
type shelf struct {
	mu   sync.Mutex
	kept map[string][]byte
	err  error
}

func (s *shelf) Keep(kind, name string, body []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if kind != kindDocs || s.err != nil {
		return s.err
	}
	if s.kept == nil {
		s.kept = map[string][]byte{}
	}
	if delete(s.kept, name); body != nil {
		s.kept[name] = body
	}
	return nil
}

func (s *shelf) Kept(string) (map[string][]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.kept), nil
}

func (s *shelf) empty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.kept) == 0
}

// TestAbortIsNotForgotten: what one replica has aborted while it could not reach the store is aborted for all once it can, whatever became of that
// replica and its config meanwhile, and does nothing to a later run.
func TestAbortIsNotForgotten(t *testing.T) {
	other := func(s *experiment.Spec) { s.Arms[1].Policy = "latency" }
	restart := func(t *testing.T, store state.Store, a *replica, trials ...Trial) *replica {
		t.Helper()
		a.stop()
		return startReplica(t, store, trials...)
	}
	for name, tc := range map[string]struct {
		then  func(t *testing.T, store state.Store, a *replica) *replica
		alone experiment.State // at a, before it is back; "" where it has no such experiment
		want  experiment.State // at both afterwards
		run   int
	}{
		"nothing happens": {func(_ *testing.T, _ state.Store, a *replica) *replica { return a }, experiment.Aborted, experiment.Aborted, 1},
		"it is restarted": {func(t *testing.T, store state.Store, a *replica) *replica {
			t.Helper()
			return restart(t, store, a, trialOf())
		}, experiment.Aborted, experiment.Aborted, 1},
		"twice": {func(t *testing.T, store state.Store, a *replica) *replica {
			t.Helper()
			return restart(t, store, restart(t, store, a, trialOf()), trialOf())
		}, experiment.Aborted, experiment.Aborted, 1},
		"its config is reloaded": {func(_ *testing.T, _ state.Store, a *replica) *replica {
			a.Configure([]Trial{trialOf()})
			return a
		}, experiment.Aborted, experiment.Aborted, 1},
		"its config leaves it out": {func(_ *testing.T, _ state.Store, a *replica) *replica {
			a.Configure(nil)
			return a
		}, "", experiment.Aborted, 1},
		"it is restarted without it": {func(t *testing.T, store state.Store, a *replica) *replica {
			t.Helper()
			return restart(t, store, a)
		}, "", experiment.Aborted, 1},
		"its config leaves it out for long": {func(_ *testing.T, _ state.Store, a *replica) *replica {
			a.Configure(nil)
			pass(time.Hour)
			return a
		}, "", experiment.Aborted, 1},
		"its config tries something else and back": {func(_ *testing.T, _ state.Store, a *replica) *replica {
			a.Configure([]Trial{trialOf(other)})
			pass(time.Second)
			a.Configure([]Trial{trialOf()})
			return a
		}, experiment.Aborted, experiment.Aborted, 1},
		"others begin it anew": {func(t *testing.T, store state.Store, a *replica) *replica {
			t.Helper()
			b := startReplica(t, store.(*onShelf).flaky.Store, trialOf())
			defer b.stop()
			for _, c := range []experiment.Command{experiment.Abort, experiment.Start} {
				if _, err := b.Apply(t.Context(), "e", c, ""); err != nil {
					t.Fatal(err)
				}
			}
			return restart(t, store, a, trialOf())
		}, experiment.Aborted, experiment.Running, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				shared := state.NewMemory()
				store := &onShelf{&flaky{Store: shared}, &shelf{}}
				a, b := startReplica(t, store, trialOf()), startReplica(t, shared, trialOf())
				pass(5 * time.Second)
				store.down.Store(true)
				v, err := a.Apply(t.Context(), "e", experiment.Abort, "")
				if err != nil || v.State != experiment.Aborted || a.canary() > 0 || !strings.Contains(v.Problem, "also if this gateway is restarted") {
					t.Fatalf("aborted: %s with %v, problem %q, %v", v.State, a.canary(), v.Problem, err)
				}
				a = tc.then(t, store, a)
				pass(5 * time.Second)
				if vs := a.List(t.Context()); tc.alone == "" && len(vs) > 0 || tc.alone != "" && (vs[0].State != tc.alone || vs[0].Arms[1].Share > 0) {
					t.Errorf("before it is back it has %+v", vs)
				}
				if s := b.state(); s != experiment.Running {
					t.Fatalf("the other, which nobody could tell, has it %s", s)
				}
				store.down.Store(false)
				pass(5 * time.Second)
				rs := []*replica{a, b}
				if tc.alone == "" {
					rs = rs[1:]
				}
				for _, r := range rs {
					if v, err := r.Show(t.Context(), "e"); err != nil || v.State != tc.want || v.Run != tc.run || v.Problem != "" {
						t.Errorf("run %d is %s, problem %q, %v", v.Run, v.State, v.Problem, err)
					}
				}
				if !store.empty() {
					t.Error("what all know by now is kept")
				}
				a.stop()
				b.stop()
			})
		})
	}
}

// onShelf is a store that can be cut off, of a replica with a shelf.
type onShelf struct {
	*flaky
	*shelf
}

// TestAbortAndOtherConfig: a replica that has aborted by itself and then gets a config that tries something else tells the others of both.
func TestAbortAndOtherConfig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := state.NewMemory()
		store := &onShelf{&flaky{Store: shared}, &shelf{}}
		a, b := startReplica(t, store, trialOf()), startReplica(t, shared, trialOf())
		pass(5 * time.Second)
		store.down.Store(true)
		if _, err := a.Apply(t.Context(), "e", experiment.Abort, ""); err != nil {
			t.Fatal(err)
		}
		a.Configure([]Trial{trialOf(func(s *experiment.Spec) { s.Arms[1].Policy = "latency" })})
		pass(5 * time.Second)
		if arm, _ := a.Table().Of("m")[0].Assign([]byte("somebody")); arm.Name != "control" {
			t.Errorf("what nobody has begun is served by %s", arm.Name)
		}
		store.down.Store(false)
		pass(5 * time.Second)
		v, err := a.Show(t.Context(), "e")
		if err != nil || v.Run != 2 || v.State != experiment.Running {
			t.Errorf("run %d is %s, %v", v.Run, v.State, err)
		}
		var log []string
		for _, d := range v.Decisions {
			log = append(log, d.What)
		}
		if got := strings.Join(log, ", "); got != "started, aborted, changed, started" {
			t.Errorf("decisions: %s", got)
		}
		if arm, _ := b.Table().Of("m")[0].Assign([]byte("somebody")); arm.Name != "control" {
			t.Errorf("under the old config it is served by %s", arm.Name)
		}
		a.stop()
		b.stop()
	})
}

// TestAbortAndDamage: an abort that the store could not be told outlives that its document is not understood for a while.
func TestAbortAndDamage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := state.NewMemory()
		store := &onShelf{&flaky{Store: shared}, &shelf{}}
		a, b := startReplica(t, store, trialOf()), startReplica(t, shared, trialOf())
		pass(5 * time.Second)
		store.down.Store(true)
		if _, err := a.Apply(t.Context(), "e", experiment.Abort, ""); err != nil {
			t.Fatal(err)
		}
		docs, err := shared.Load(t.Context(), kindDocs)
		if err != nil {
			t.Fatal(err)
		}
		v, err := shared.Put(t.Context(), kindDocs, "e", docs["e"].Version, []byte("{}"))
		if err != nil {
			t.Fatal(err)
		}
		store.down.Store(false)
		pass(5 * time.Second)
		if v, err := a.Show(t.Context(), "e"); err != nil || v.Arms[0].Share != 1 || !strings.Contains(v.Problem, "not known") {
			t.Errorf("with a document that nobody understands: %+v, problem %q, %v", v.Arms, v.Problem, err)
		}
		if _, err := shared.Put(t.Context(), kindDocs, "e", v, docs["e"].Body); err != nil {
			t.Fatal(err)
		}
		pass(5 * time.Second)
		if x, y := a.state(), b.state(); x != experiment.Aborted || y != experiment.Aborted {
			t.Errorf("when it is as before they have it %s and %s", x, y)
		}
		a.stop()
		b.stop()
	})
}

// TestAbortThatIsNotKept: where nothing can be kept the abort acts here all the same, and the answer says what a restart does.
func TestAbortThatIsNotKept(t *testing.T) {
	for name, store := range map[string]state.Store{
		"no directory": &flaky{Store: state.NewMemory()},
		"it is full":   &onShelf{&flaky{Store: state.NewMemory()}, &shelf{err: errDown}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := startReplica(t, store, trialOf())
				pass(5 * time.Second)
				switch s := store.(type) {
				case *flaky:
					s.down.Store(true)
				case *onShelf:
					s.down.Store(true)
				}
				v, err := a.Apply(t.Context(), "e", experiment.Abort, "")
				if err != nil || v.State != experiment.Aborted || a.canary() > 0 || !strings.Contains(v.Problem, "it is forgotten") {
					t.Errorf("aborted: %s with %v, problem %q, %v", v.State, a.canary(), v.Problem, err)
				}
				a.stop()
			})
		})
	}
}

// TestForgottenIsNotTakenUp: what was decided alone longer ago than experiments are remembered is of another one by now.
func TestForgottenIsNotTakenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &onShelf{&flaky{Store: state.NewMemory()}, &shelf{}}
		a := startReplica(t, store, trialOf())
		pass(5 * time.Second)
		store.down.Store(true)
		if _, err := a.Apply(t.Context(), "e", experiment.Abort, ""); err != nil {
			t.Fatal(err)
		}
		a.stop()
		pass(experiment.Forgotten + time.Hour)
		store.flaky = &flaky{Store: state.NewMemory()} // it was deleted there
		a = startReplica(t, store, trialOf())
		if s := a.state(); s != experiment.Running || !store.empty() {
			t.Errorf("it is %s, and nothing is kept: %v", s, store.empty())
		}
		a.stop()
	})
}

// TestStaleNote: what was owed and is known to all by now, but whose note is still there, for its process was killed before it could remove it,
// takes nothing back that was decided since.
func TestStaleNote(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &onShelf{&flaky{Store: state.NewMemory()}, &shelf{}}
		a := startReplica(t, store, trialOf())
		pass(5 * time.Second)
		store.down.Store(true)
		if _, err := a.Apply(t.Context(), "e", experiment.Abort, ""); err != nil {
			t.Fatal(err)
		}
		note, err := store.Kept(kindDocs)
		if err != nil || len(note) != 1 {
			t.Fatalf("kept %d, %v", len(note), err)
		}
		store.down.Store(false)
		pass(5 * time.Second)
		if _, err := a.Apply(t.Context(), "e", experiment.Promote, "canary"); err != nil {
			t.Fatal(err)
		}
		a.stop()
		if err := store.Keep(kindDocs, "e", note["e"]); err != nil {
			t.Fatal(err)
		}
		a = startReplica(t, store, trialOf())
		pass(5 * time.Second)
		if s := a.state(); s != experiment.Promoted || !store.empty() {
			t.Errorf("it is %s, and nothing is kept: %v", s, store.empty())
		}
		a.stop()
	})
}

// TestOwedOfAnother: what is owed of an experiment does nothing to another one that has its name, whichever has had more runs.
func TestOwedOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := state.NewMemory()
		store := &onShelf{&flaky{Store: shared}, &shelf{}}
		a := startReplica(t, store, trialOf())
		pass(5 * time.Second)
		for _, c := range []experiment.Command{experiment.Abort, experiment.Start} {
			if _, err := a.Apply(t.Context(), "e", c, ""); err != nil {
				t.Fatal(err)
			}
		}
		store.down.Store(true)
		if v, err := a.Apply(t.Context(), "e", experiment.Abort, ""); err != nil || v.Run != 2 {
			t.Fatalf("run %d, %v", v.Run, err)
		}
		a.Configure(nil)
		a.stop()
		store.flaky = &flaky{Store: state.NewMemory()} // they have lost all, and try something else
		b := startReplica(t, store.flaky.Store, trialOf(func(s *experiment.Spec) { s.Arms[1].Policy = "latency" }))
		pass(5 * time.Second)
		a = startReplica(t, store)
		pass(10 * time.Second)
		if v, err := b.Show(t.Context(), "e"); err != nil || v.State != experiment.Running || v.Run != 1 || v.Problem != "" {
			t.Errorf("the other one is %s in run %d, problem %q, %v", v.State, v.Run, v.Problem, err)
		}
		a.stop()
		b.stop()
	})
}
