package experiments

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"headrace/gateway/state"
	"headrace/router/experiment"
)

// refusing is a store that answers, but does not take the next so many documents of experiments.
type refusing struct {
	state.Store
	next atomic.Int64
	err  error
}

func (r *refusing) Put(ctx context.Context, kind, name string, old state.Version, body []byte) (state.Version, error) {
	if kind == kindDocs && r.next.Add(-1) >= 0 {
		return 0, r.err
	}
	return r.Store.Put(ctx, kind, name, old, body)
}

// TestConfigIsHeardAgain: what the config asks for is written as soon as the store takes it, and not lost by the one write that failed.
func TestConfigIsHeardAgain(t *testing.T) {
	for name, err := range map[string]error{"somebody else was first": state.ErrConflict, "the store did not answer": errDown} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &refusing{Store: state.NewMemory(), err: err}
				a := startReplica(t, store, trialOf())
				pass(time.Second)
				store.next.Store(1)
				a.Configure([]Trial{trialOf(func(s *experiment.Spec) { s.Wanted = experiment.WantAbort })})
				pass(5 * time.Second)
				if s := a.state(); s != experiment.Aborted {
					t.Errorf("the config says abort, and it is %s", s)
				}
				store.next.Store(1)
				a.Configure([]Trial{trialOf(func(s *experiment.Spec) { s.Arms[1].Policy = "latency" })})
				pass(5 * time.Second)
				if v, err := a.Show(t.Context(), "e"); err != nil || v.Problem != "" || v.Run != 2 {
					t.Errorf("the config tries something else: run %d, problem %q, %v", v.Run, v.Problem, err)
				}
				a.Configure(nil)
				pass(11 * time.Minute)
				store.next.Store(1)
				a.Configure([]Trial{trialOf()})
				pass(5 * time.Second)
				if v, err := a.Show(t.Context(), "e"); err != nil || v.Problem != "" || v.Run != 3 {
					t.Errorf("and back, after a while: run %d, problem %q, %v", v.Run, v.Problem, err)
				}
				a.stop()
			})
		})
	}
}

// TestOthersAreFollowed: a replica that wants to write something and cannot follows what others have decided all the same.
func TestOthersAreFollowed(t *testing.T) {
	for name, refused := range map[string]int64{"once": 1, "for good": 1 << 40} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				shared := state.NewMemory()
				store := &refusing{Store: shared, err: errDown}
				cut := &flaky{Store: store}
				a, b := startReplica(t, shared, trialOf()), startReplica(t, cut, trialOf())
				pass(10 * time.Second)
				cut.down.Store(true)
				if _, err := a.Apply(t.Context(), "e", experiment.Abort, ""); err != nil {
					t.Fatal(err)
				}
				pass(time.Second)
				if s := b.state(); s != experiment.Running {
					t.Fatalf("cut off, it is %s", s)
				}
				b.Configure([]Trial{trialOf(func(s *experiment.Spec) { s.Steps = []float64{.1, .2, 1} })})
				store.next.Store(refused)
				cut.down.Store(false)
				pass(5 * time.Second)
				if s := b.state(); s != experiment.Aborted || b.canary() > 0 {
					t.Errorf("what was aborted is %s at %v where it could not be written to", s, b.canary())
				}
				if v, _ := b.Show(t.Context(), "e"); refused == 1 && len(v.Steps) != 3 || v.Problem != "" {
					t.Errorf("steps %v, problem %q", v.Steps, v.Problem)
				}
				a.stop()
				b.stop()
			})
		})
	}
}

// TestBehindIsWrittenAgain: a store that has lost what was decided gets it as soon as it can be written to.
func TestBehindIsWrittenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &rewinding{}
		stubborn := &refusing{Store: store, err: errDown}
		a := startReplica(t, stubborn, trialOf())
		pass(5 * time.Second)
		store.keep()
		if _, err := a.Apply(t.Context(), "e", experiment.Abort, ""); err != nil {
			t.Fatal(err)
		}
		pass(5 * time.Second)
		stubborn.next.Store(3)
		store.rewind()
		pass(time.Minute)
		a.stop()
		b := startReplica(t, store, trialOf())
		if s := b.state(); s != experiment.Aborted {
			t.Errorf("the store has it %s", s)
		}
		b.stop()
	})
}

// TestLostAndBack: an experiment that the store had lost while it was out of the config begins then, and not once more at some later reload.
func TestLostAndBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &rewinding{}
		quiet := Options{Store: store, Look: time.Minute, Tell: time.Minute} // there is nothing to see in a week
		a := startWith(t, quiet, trialOf())
		pass(time.Minute)
		a.Configure(nil)
		pass(11 * time.Minute)
		store.keep()
		store.kept[kindDocs] = nil
		store.rewind()
		a.Configure([]Trial{trialOf()})
		pass(time.Minute)
		if _, err := a.Apply(t.Context(), "e", experiment.Promote, ""); err != nil {
			t.Fatal(err)
		}
		pass(experiment.Forgotten + time.Hour)
		a.Configure([]Trial{trialOf()}) // nothing has changed
		pass(2 * time.Minute)
		if v, err := a.Show(t.Context(), "e"); err != nil || v.State != experiment.Promoted || v.Run != 1 {
			t.Errorf("a reload has it %s, run %d, %v", v.State, v.Run, err)
		}
		a.stop()
	})
}
