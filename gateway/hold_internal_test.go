package gateway

import "testing"

// TestHoldersTakeTurns wakes a few of those who are held, in turn, and another one for each that finds a place; those of other models sleep on.
func TestHoldersTakeTurns(t *testing.T) {
	var hs holders
	hs.freed("m", "n") // nobody hears it
	var all []*holding
	for range 3 * wokenAtOnce {
		all = append(all, hs.join("m"))
	}
	other := hs.join("n")
	awake := func(want ...int) {
		t.Helper()
		for i, h := range append(all, other) {
			woken := false
			select {
			case <-h.wake:
				woken = true
			default:
			}
			due := false
			for _, w := range want {
				due = due || w == i
			}
			if woken != due {
				t.Errorf("holding %d woken: %t", i, woken)
			}
		}
	}
	awake()
	hs.freed("m")
	awake(0, 1, 2, 3)
	hs.freed("x", "m")
	awake(4, 5, 6, 7) // those before have had their turn
	hs.leave(all[4], true)
	awake(8) // there may be room for another one
	hs.leave(all[5], false)
	awake()
	hs.freed()
	awake(9, 10, 11, 0, 12) // whichever model has it, in each
	hs.freed("m")
	hs.freed("m") // one of them has yet to look: once is enough
	awake(1, 2, 3, 6, 7, 8, 9, 10)
	for i, h := range append(all, other) {
		if i != 4 && i != 5 {
			hs.leave(h, false)
		}
	}
	if n := hs.n.Load(); n != 0 || len(hs.byModel) != 0 {
		t.Errorf("%d are held of %d models when all have left", n, len(hs.byModel))
	}
}
