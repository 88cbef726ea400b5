package sim

import "testing"

// TestRoom has an hour's rush at a fleet that is too small: who waits is served or refused in the end, and nobody is lost, and to wait costs the
// promise nothing.
func TestRoom(t *testing.T) {
	slow(t)
	s := around(scenario(t, "S5"), 11, 0.2)
	s.Load.PerSecond *= 2
	play := func(share float64) (Result, *room) {
		t.Helper()
		p := policy(t, Brain)
		p.rules.wait = share
		w := build(&s, 1)
		w.replicas = append(w.replicas, newReplica(w, 0, &p))
		w.ledger = newLedger(w)
		w.traffic = newTraffic(&s, 1)
		w.begin()
		w.run(w.end + w.life(drainSeconds))
		return w.result(), w.replicas[0].room
	}
	none, nobody := play(0)
	half, q := play(0.5)
	t.Logf("%d requests; refused %.1f %% and %.1f %%, kept %.1f %% and %.1f %%", half.Requests, 100*none.Shed, 100*half.Shed, 100*none.SLO, 100*half.SLO)
	if nobody != nil || none.Shed == 0 {
		t.Errorf("without a room %.3f were refused", none.Shed)
	}
	if q.last == 0 || len(q.list) != 0 {
		t.Errorf("somebody has waited until %.0f s, and %d still do", q.last, len(q.list))
	}
	if half.Requests != none.Requests {
		t.Errorf("%d requests have ended of %d", half.Requests, none.Requests)
	}
	if half.SLO < none.SLO-0.03 {
		t.Errorf("with a room %.3f keep the promise, without %.3f", half.SLO, none.SLO)
	}
}

// TestRoomKnows tells who would have his turn too late, by how fast it was seen to empty, and forgets that.
func TestRoomKnows(t *testing.T) {
	w := &world{sc: &Scenario{SLO: SLO{TTFT: 2}}}
	g := &replica{w: w}
	q := &room{g: g, share: 0.5, served: 100, busy: 10} // ten a second
	q.at, q.last = 0, 0
	if got := q.expect(0); got < 0.09 || got > 0.11 {
		t.Errorf("the first has his turn after %.2f s", got)
	}
	if got := q.expect(0.01); got != 0.01 {
		t.Errorf("hosts that expect room in 10 ms give it after %.2f s", got)
	}
	let := 0
	for q.enter(&request{call: call{at: 0}}, 0) { // one second of waiting
		if let++; let > 20 {
			break
		}
	}
	if let < 8 || let > 10 {
		t.Errorf("%d wait where ten a second have their turn and a second is left", let)
	}
	q.list = nil
	w.now = 2 * roomStale
	if q.pass(); q.busy != roomKeep {
		t.Errorf("after two minutes without anybody %.1f s are remembered", q.busy)
	}
	if got := q.expect(0); got != 0 {
		t.Errorf("and it is believed: %.2f s", got)
	}
}
