package experiments

import (
	"context"
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
