package experiments

import (
	"testing"
	"testing/synctest"
	"time"

	"headrace/gateway/state"
)

// counted is a store of a directory in which processes are missed when they end.
type counted struct {
	*flaky
	state.Census
}

// TestOwnPlaceAgain: a lone gateway that was killed goes on in its own place at once, with what it had told and all of alpha, where its directory
// shows that the one that held it was its own process and has ended. Else it takes another, for the one before may live.
func TestOwnPlaceAgain(t *testing.T) {
	for name, tc := range map[string]struct {
		killed, same bool // its process has ended; the next one has its directory
		place        int
		part         float64
	}{
		"killed":                   {true, true, 0, 1},
		"killed, directory gone":   {true, false, 1, 0.5},
		"cut off, while it lives":  {false, true, 1, 0.5},
		"another one, cut off too": {false, false, 1, 0.5},
	} {
		t.Run(name, func(t *testing.T) {
			dirs := []state.Census{state.NewFiles(t.TempDir(), nil).Census, state.NewFiles(t.TempDir(), nil).Census}
			if tc.same {
				dirs[1] = dirs[0]
			}
			synctest.Test(t, func(t *testing.T) {
				shared := state.NewMemory()
				line := &flaky{Store: shared}
				a := startReplica(t, counted{line, dirs[0]}, steady())
				w := newWorld(t)
				w.serve(100, a)
				pass(5 * time.Second)
				line.down.Store(true)
				if tc.killed {
					a.stop() // and could not say so
				}
				b := startReplica(t, counted{&flaky{Store: shared}, dirs[1]}, steady())
				b.mu.Lock()
				place, part := b.slot.number, b.slot.part()
				b.mu.Unlock()
				if place != tc.place || part != tc.part {
					t.Errorf("it is in place %d with %v of alpha, want %d with %v", place, part, tc.place, tc.part)
				}
				pass(5 * time.Second)
				if v, err := b.Show(t.Context(), "e"); err != nil || v.Verdict.Seq != 100 {
					t.Errorf("it counts %d of 100, %v", v.Verdict.Seq, err)
				}
				b.mu.Lock()
				if part := b.slot.part(); part != tc.part {
					t.Errorf("seconds later it has %v of alpha, want %v", part, tc.part)
				}
				b.mu.Unlock()
				b.stop()
				a.stop()
			})
		})
	}
}
