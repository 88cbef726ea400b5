package experiments

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"headrace/gateway/state"
	"headrace/router/experiment"
)

// clocked is a store with a clock, which may be wrong.
type clocked struct {
	state.Store
	off time.Duration
}

func (c *clocked) Now(context.Context, string) (time.Time, error) { return time.Now().Add(c.off), nil }

// by starts a replica whose own clock is off by so much.
func by(t *testing.T, off time.Duration, store state.Store, trials ...Trial) *replica {
	t.Helper()
	return startWith(t, Options{Store: store, Look: time.Second, Now: func() time.Time { return time.Now().Add(off) }}, trials...)
}

func (r *replica) place() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.slot.number
}

// TestClocksDiffer: replicas whose clocks differ by hours take nobody's place, take that of who is gone, and take no step sooner or later than
// one would.
func TestClocksDiffer(t *testing.T) {
	const off = -30 * time.Minute // of the store's, which is wrong as well
	synctest.Test(t, func(t *testing.T) {
		store := &clocked{state.NewMemory(), off}
		cut := &flaky{Store: store.Store}
		began := time.Now().Add(off)
		ahead := by(t, 3*time.Hour, &struct {
			*flaky
			clock
		}{cut, store}, failuresOnly())
		late := by(t, -3*time.Hour, store, failuresOnly())
		right := by(t, 0, store, failuresOnly())
		if a, b, c := ahead.place(), late.place(), right.place(); a != 0 || b != 1 || c != 2 {
			t.Fatalf("places %d, %d and %d", a, b, c)
		}
		w := newWorld(t)
		for range 500 { // ten of the step's twenty seconds
			w.request(ahead, late, right)
			pass(20 * time.Millisecond)
		}
		if v, err := late.Show(t.Context(), "e"); err != nil || !v.StartedAt.Equal(began) || v.Step != 1 {
			t.Errorf("by the late one it began at %s, not at %s, and is at step %d, %v", v.StartedAt, began, v.Step, err)
		}
		cut.down.Store(true) // who decides is gone, and cannot say so
		ahead.stop()
		pass(15 * time.Second)
		for range 1000 {
			w.request(late, right)
			pass(20 * time.Millisecond)
		}
		pass(5 * time.Second)
		v, err := right.Show(t.Context(), "e")
		if err != nil || len(v.Weights) < 2 {
			t.Fatalf("shares %v, %v", v.Weights, err)
		}
		if took := v.Weights[1].At.Sub(began); took < 20*time.Second || took > time.Minute {
			t.Errorf("the first step took %s by who decided it, of %s since", took, time.Now().Add(off).Sub(began))
		}
		if again := by(t, -2*time.Hour, store, failuresOnly()); again.place() != 3 {
			t.Errorf("a new one is in place %d, which another may hold", again.place())
		}
		pass(abandoned + time.Minute)
		if again := by(t, -4*time.Hour, store, failuresOnly()); again.place() != 0 {
			t.Errorf("a new one is in place %d, though nobody has held the first for long", again.place())
		}
		if v, err = right.Show(t.Context(), "e"); err != nil || v.State == experiment.RolledBack {
			t.Errorf("it is %s, %v", v.State, err)
		}
	})
}

// mute is a store that does not tell the time the next so many times.
type mute struct {
	state.Store
	next atomic.Int64
}

func (c *mute) Now(context.Context, string) (time.Time, error) {
	if c.next.Add(-1) >= 0 {
		return time.Time{}, errDown
	}
	return time.Now(), nil
}

func muteFor(times int64, store state.Store) *mute {
	c := &mute{Store: store}
	c.next.Store(times)
	return c
}

// TestClockNotRead: while a store has a clock that was not read yet, a replica whose own is three hours ahead takes nobody's place, writes nothing
// and begins nothing; it serves by the document that there is, ends what harms, and has the store's time in all that it tells later.
func TestClockNotRead(t *testing.T) {
	const off = 3 * time.Hour
	written := func(t *testing.T, store state.Store) (n int) {
		t.Helper()
		for _, kind := range kindsKept {
			docs, err := store.Load(t.Context(), kind)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range docs {
				n += int(d.Version) //nolint:gosec // below 2^53
			}
		}
		return n
	}
	for name, test := range map[string]func(t *testing.T, store state.Store){
		"beside another": func(t *testing.T, store state.Store) {
			right := by(t, 0, &clocked{store, 0}, failuresOnly())
			w := newWorld(t)
			for range 500 {
				w.request(right)
				pass(20 * time.Millisecond)
			}
			ahead := by(t, off, muteFor(1, store), failuresOnly())
			if n := ahead.place(); n != -1 {
				t.Errorf("before it knows the time it is in place %d", n)
			}
			for range 50 {
				w.request(right, ahead)
				pass(20 * time.Millisecond)
			}
			pass(20 * time.Second)
			for _, r := range []*replica{right, ahead} {
				if v, err := r.Show(t.Context(), "e"); err != nil || v.Verdict.Seq != 550 || v.Problem != "" {
					t.Errorf("%d of 550 counted, problem %q, %v", v.Verdict.Seq, v.Problem, err)
				}
			}
			if a, b := right.place(), ahead.place(); a != 0 || b != 1 {
				t.Errorf("places %d and %d", a, b)
			}
		},
		"the first": func(t *testing.T, store state.Store) {
			began := time.Now()
			ahead := by(t, off, muteFor(1, store), failuresOnly())
			w := newWorld(t)
			for range 5000 {
				w.request(ahead)
				pass(20 * time.Millisecond)
			}
			v, err := ahead.Show(t.Context(), "e")
			if err != nil || v.StartedAt == nil || v.StartedAt.Before(began) || v.StartedAt.After(began.Add(5*time.Second)) || v.Step < 2 {
				t.Errorf("after %s at step %d, began at %s, not within seconds of %s, %v", time.Since(began), v.Step, v.StartedAt, began, err)
			}
		},
		"for long": func(t *testing.T, store state.Store) {
			muted := muteFor(1<<40, store)
			ahead := by(t, off, muted, failuresOnly())
			pass(time.Hour)
			v, err := ahead.Show(t.Context(), "e")
			if n := written(t, store); n > 0 || err != nil || v.Arms[0].Share != 1 || !strings.Contains(v.Problem, "the clock that replicas share") {
				t.Errorf("wrote %d, shares %+v, problem %q, %v", n, v.Arms, v.Problem, err)
			}
			for _, c := range []experiment.Command{experiment.Start, experiment.Abort} { // what is not known cannot be either
				if _, err := ahead.Apply(t.Context(), "e", c, ""); !errors.Is(err, ErrSilent) {
					t.Errorf("%s: %v", c, err)
				}
			}
			muted.next.Store(0)
			if _, err := ahead.Apply(t.Context(), "e", experiment.Abort, ""); err != nil {
				t.Errorf("abort once it tells the time: %v", err)
			}
		},
		"with a document": func(t *testing.T, store state.Store) {
			right := by(t, 0, &clocked{store, 0}, failuresOnly())
			pass(10 * time.Second)
			muted := muteFor(1<<40, store)
			ahead := by(t, off, muted, failuresOnly(func(s *experiment.Spec) { s.Steps = []float64{.1, .2, 1} }))
			if got := ahead.canary(); got != 0.1 {
				t.Errorf("by the document that there is the canary has 0.1, and not %v", got)
			}
			if _, err := ahead.Apply(t.Context(), "e", experiment.Pause, ""); !errors.Is(err, ErrSilent) {
				t.Errorf("pause: %v", err)
			}
			right.stop()
			before := written(t, store)
			w := newWorld(t)
			w.bad = 0.9
			w.run(t, experiment.RolledBack, 3000, ahead)
			pass(time.Minute)
			if after := written(t, store); after != before {
				t.Error("something was written")
			}
			if v, err := ahead.Show(t.Context(), "e"); err != nil || !strings.Contains(v.Problem, "at this gateway only") {
				t.Errorf("problem %q, %v", v.Problem, err)
			}
			muted.next.Store(0)
			pass(10 * time.Second)
			again := by(t, 0, &clocked{store, 0}, failuresOnly())
			v, err := again.Show(t.Context(), "e")
			if err != nil || v.State != experiment.RolledBack || v.EndedAt == nil || v.EndedAt.After(time.Now()) {
				t.Fatalf("the others have it %s, ended at %s, now %s, %v", v.State, v.EndedAt, time.Now(), err)
			}
			for _, e := range v.Decisions {
				if e.At.After(time.Now()) {
					t.Errorf("%s at %s, in the future", e.What, e.At)
				}
			}
			for _, e := range v.Weights {
				if e.At.After(time.Now()) {
					t.Errorf("shares of %s, in the future", e.At)
				}
			}
		},
		"promoted and withdrawn": func(t *testing.T, store state.Store) {
			right := by(t, 0, &clocked{store, 0}, failuresOnly())
			if _, err := right.Apply(t.Context(), "e", experiment.Promote, ""); err != nil {
				t.Fatal(err)
			}
			right.Configure(nil)
			pass(30 * time.Minute)
			muted := muteFor(1<<40, store)
			ahead := by(t, off, muted, failuresOnly())
			if arm, _ := ahead.Table().Of("m")[0].Assign([]byte("somebody")); arm.Name != "control" {
				t.Errorf("what is written down again is served by %s", arm.Name)
			}
			muted.next.Store(0)
			pass(10 * time.Second)
			if v, err := ahead.Show(t.Context(), "e"); err != nil || v.Run != 2 || v.State != experiment.Running {
				t.Errorf("run %d is %s, %v", v.Run, v.State, err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { test(t, state.NewMemory()) }) })
	}
}

// TestClockSet: that this process's clock is set anew, by hours, takes no step sooner or later.
func TestClockSet(t *testing.T) {
	for name, by := range map[string]time.Duration{"forward": 50 * time.Second, "back": -3 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var off atomic.Int64
				began := time.Now()
				r := startWith(t, Options{Store: &clocked{state.NewMemory(), 0}, Look: time.Second, Now: func() time.Time { return time.Now().Add(time.Duration(off.Load())) }}, failuresOnly())
				pass(5 * time.Second)
				off.Store(int64(by))
				w := newWorld(t)
				for range 3000 {
					w.request(r)
					pass(20 * time.Millisecond)
				}
				v, err := r.Show(t.Context(), "e")
				if err != nil || len(v.Weights) < 2 {
					t.Fatalf("after %s shares %v, %v", time.Since(began), v.Weights, err)
				}
				if took := v.Weights[1].At.Sub(began); took < 20*time.Second || took > 30*time.Second {
					t.Errorf("the step of 20 s took %s", took)
				}
			})
		})
	}
}
