package stats_test

import (
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"headrace/router/experiment/stats"
)

// told is a verdict as text, to compare.
func told(t *testing.T, e *stats.Experiment) string {
	t.Helper()
	b, err := json.Marshal(e.Verdict())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestRestore(t *testing.T) {
	for _, sticky := range []bool{false, true} {
		d := stats.Design{Sticky: sticky}
		e := design(t, d)
		fill(e, rand.New(rand.NewPCG(1, 1)), 5000, 1.1)
		if err := e.Reweigh([]float64{0.3, 0.7}); err != nil {
			t.Fatal(err)
		}
		fill(e, rand.New(rand.NewPCG(2, 2)), 5000, 1.1)
		f := design(t, d)
		if err := f.Restore(e.Snapshot()); err != nil {
			t.Fatal(err)
		}
		if a, b := told(t, e), told(t, f); a != b {
			t.Errorf("sticky %t: restored\n%s\nwant\n%s", sticky, b, a)
		}
	}
}

// TestAbsorb: what was stored and what was recorded since are one, and say the same as if they were two replicas'; what was recorded by other
// weights is refused, and changes nothing.
func TestAbsorb(t *testing.T) {
	for _, sticky := range []bool{false, true} {
		es := replicas(t, sticky)
		want := design(t, stats.Design{Sticky: sticky})
		for i, name := range []string{"before", "since"} {
			if err := want.Merge(name, es[i].Snapshot()); err != nil {
				t.Fatal(err)
			}
		}
		if err := es[1].Absorb(es[0].Snapshot()); err != nil {
			t.Fatal(err)
		}
		if a, b := told(t, want), told(t, es[1]); a != b {
			t.Errorf("sticky %t: absorbed\n%s\nwant\n%s", sticky, b, a)
		}
		again := design(t, stats.Design{Sticky: sticky})
		if err := again.Restore(es[1].Snapshot()); err != nil {
			t.Fatal(err)
		}
		if a, b := told(t, es[1]), told(t, again); a != b {
			t.Errorf("sticky %t: absorbed and restored\n%s\nwant\n%s", sticky, b, a)
		}
		for i, canary := range []float64{0.6, 0.7} { // each by itself
			if err := es[i].Reweigh([]float64{1 - canary, canary}); err != nil {
				t.Fatal(err)
			}
		}
		before, other := es[0].Snapshot(), es[1]
		fill(other, rand.New(rand.NewPCG(4, 4)), 100, 1)
		was := told(t, other)
		if err := other.Absorb(before); !errors.Is(err, stats.ErrWeights) || told(t, other) != was {
			t.Errorf("sticky %t: of other weights: %v", sticky, err)
		}
	}
}

// TestAbsorbFirstUnits: units that come again after a restart, before what was stored of them is taken up, are first units once: what says that
// an arm fails from the start is what it is without a restart.
func TestAbsorbFirstUnits(t *testing.T) {
	for name, failing := range map[string]uint64{"some fail": 4, "all fail": 12} {
		once, before, since := design(t, stats.Design{Sticky: true}), design(t, stats.Design{Sticky: true}), design(t, stats.Design{Sticky: true})
		request := func(unit uint64, es ...*stats.Experiment) {
			o := stats.Unknown(unit, int(unit%2))
			o.Failed = unit%2 == 1 && unit/2 < failing
			for _, e := range es {
				e.Record(&o)
			}
		}
		for unit := range uint64(24) { // twelve of each arm
			request(unit, once, before)
		}
		for unit := range uint64(28) { // and come again, with two that are new
			request(unit, once, since)
		}
		if err := since.Absorb(before.Snapshot()); err != nil {
			t.Fatal(err)
		}
		if a, b := told(t, once), told(t, since); a != b {
			t.Errorf("%s: after a restart\n%s\nwithout\n%s", name, b, a)
		}
		if v := canary(once); (v.Action == stats.Stop) != (failing == 12) {
			t.Errorf("%s, which the test is about: %s, %s", name, v.Action, v.Reason)
		}
	}
}

// replicas are three that share an experiment whose users come to any of them.
func replicas(t *testing.T, sticky bool) []*stats.Experiment {
	t.Helper()
	var es []*stats.Experiment
	for range 3 {
		es = append(es, design(t, stats.Design{Sticky: sticky}))
	}
	r := rand.New(rand.NewPCG(3, 3))
	for range 30000 {
		unit := r.Uint64() >> 53
		o := answer(r, unit, int(unit&1), 1)
		o.Failed, o.Missed = r.IntN(100) == 0, r.IntN(30) == 0
		es[r.IntN(3)].Record(&o)
	}
	return es
}

// TestMerge: whichever replica asks, in whatever order it heard of the others and how often, says the same.
func TestMerge(t *testing.T) {
	for _, sticky := range []bool{false, true} {
		es := replicas(t, sticky)
		snaps := [][]byte{es[0].Snapshot(), es[1].Snapshot(), es[2].Snapshot()}
		for i, order := range [][]int{{1, 2}, {2, 0, 2}, {1, 0, 1, 0}} {
			for _, k := range order {
				if err := es[i].Merge(string(rune('a'+k)), snaps[k]); err != nil {
					t.Fatal(err)
				}
			}
		}
		first := es[0].Verdict()
		for _, e := range es[1:] {
			v := e.Verdict()
			if v.Seq != first.Seq || v.Seq != 30000 {
				t.Fatalf("sticky %t: %d and %d observations, want 30,000", sticky, v.Seq, first.Seq)
			}
			for k, a := range v.Arms {
				b := first.Arms[k]
				if a.Units != b.Units || a.Requests != b.Requests || a.Action != b.Action {
					t.Errorf("sticky %t: %+v and %+v", sticky, a, b)
				}
				for i := range a.Estimates {
					x, y := a.Estimates[i], b.Estimates[i]
					if math.Abs(float64(x.Diff-y.Diff)) > 1e-6 || math.Abs(float64(x.LogE-y.LogE)) > 1e-4 || x.Bad != y.Bad || x.Units != y.Units {
						t.Errorf("sticky %t: %+v and %+v", sticky, x, y)
					}
				}
			}
		}
		if sticky && first.Arms[0].Units+first.Arms[1].Units != 2048 {
			t.Errorf("%d and %d units: want 2,048 users, each once, whatever replicas it came to", first.Arms[0].Units, first.Arms[1].Units)
		}
	}
}

// TestMergeCountsVotesOnce: a user who fails at two replicas has one vote.
func TestMergeCountsVotesOnce(t *testing.T) {
	one, two := design(t, stats.Design{Sticky: true}), design(t, stats.Design{Sticky: true})
	for unit := range uint64(10) {
		for _, e := range []*stats.Experiment{one, two} {
			o := stats.Unknown(unit, 1)
			o.Failed = true
			e.Record(&o)
		}
	}
	alone := estimate(t, canary(one), stats.Failed)
	if err := one.Merge("two", two.Snapshot()); err != nil {
		t.Fatal(err)
	}
	v := canary(one)
	if got := estimate(t, v, stats.Failed); got.LogE != alone.LogE || got.Bad != [2]int{0, 10} || v.Units != 10 || v.Requests != 20 {
		t.Errorf("%+v of %d units, %d requests: want the evidence of 10 votes", got, v.Units, v.Requests)
	}
	one.Forget("two")
	if v := canary(one); v.Requests != 10 {
		t.Errorf("%d requests after a replica was forgotten: want 10", v.Requests)
	}
}

// TestMergeKeepsTheNewest: a snapshot that comes late changes nothing.
func TestMergeKeepsTheNewest(t *testing.T) {
	a, b := design(t, stats.Design{}), design(t, stats.Design{})
	fill(b, rand.New(rand.NewPCG(4, 4)), 100, 1)
	old := b.Snapshot()
	fill(b, rand.New(rand.NewPCG(5, 5)), 100, 1)
	for _, s := range [][]byte{b.Snapshot(), old, b.Snapshot()} {
		if err := a.Merge("b", s); err != nil {
			t.Fatal(err)
		}
		if n := a.Verdict().Seq; n != 200 {
			t.Errorf("%d observations, want 200", n)
		}
	}
}

func TestSnapshotsRefused(t *testing.T) {
	e := design(t, stats.Design{Sticky: true})
	fill(e, rand.New(rand.NewPCG(6, 6)), 300, 1)
	s := e.Snapshot()
	before := told(t, e)
	other := design(t, stats.Design{Sticky: true, Arms: []string{"control", "other"}, Weights: []float64{0.5, 0.5}})
	if err := other.Merge("x", s); !errors.Is(err, stats.ErrDesign) {
		t.Errorf("other arms: %v", err)
	}
	weights := design(t, stats.Design{Sticky: true, Arms: []string{"control", "canary"}, Weights: []float64{0.9, 0.1}})
	if err := weights.Merge("x", s); !errors.Is(err, stats.ErrWeights) {
		t.Errorf("other weights: %v", err)
	}
	for n := range len(s) {
		if n%7 == 0 || n < 100 {
			if err := e.Restore(s[:n]); !errors.Is(err, stats.ErrSnapshot) {
				t.Fatalf("cut after %d bytes: %v", n, err)
			}
		}
	}
	if err := e.Restore(append(s, 0)); !errors.Is(err, stats.ErrSnapshot) {
		t.Errorf("a byte too many: %v", err)
	}
	if after := told(t, e); after != before {
		t.Error("a refused snapshot changed something")
	}
}

// FuzzRestore: whatever is restored, a verdict can be given and JSON be made of it.
func FuzzRestore(f *testing.F) {
	d := stats.Design{Sticky: true, Capacity: 64, Arms: []string{"control", "canary"}, Weights: []float64{0.5, 0.5}}
	e := design(f, d)
	fill(e, rand.New(rand.NewPCG(7, 7)), 50, 1)
	f.Add(e.Snapshot())
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		e := design(t, d)
		if e.Restore(b) != nil {
			return
		}
		o := answer(rand.New(rand.NewPCG(8, 8)), 5, 1, 1)
		o.Failed = true
		e.Record(&o)
		other := design(t, d)
		if err := other.Merge("x", b); err != nil && !errors.Is(err, stats.ErrWeights) {
			t.Fatal(err)
		}
		for _, e := range []*stats.Experiment{e, other} {
			if _, err := json.Marshal(e.Verdict()); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// BenchmarkMerged is a look at what three replicas recorded of 30,000 users, one after another's snapshot was read.
func BenchmarkMerged(b *testing.B) {
	var es []*stats.Experiment
	for range 3 {
		es = append(es, design(b, stats.Design{Sticky: true}))
	}
	r := rand.New(rand.NewPCG(3, 3))
	for range 300000 {
		unit := uint64(r.IntN(30000))
		o := answer(r, unit, int(unit&1), 1)
		o.Failed, o.Missed = r.IntN(100) == 0, r.IntN(30) == 0
		es[r.IntN(3)].Record(&o)
	}
	two, three := es[1].Snapshot(), es[2].Snapshot()
	b.ReportMetric(float64(len(two)), "snapshot-B")
	b.Run("snapshot", func(b *testing.B) {
		for b.Loop() {
			es[1].Snapshot()
		}
	})
	b.Run("merge", func(b *testing.B) {
		for b.Loop() {
			es[0].Forget("two")
			if err := es[0].Merge("two", two); err != nil {
				b.Fatal(err)
			}
		}
	})
	if err := es[0].Merge("three", three); err != nil {
		b.Fatal(err)
	}
	b.Run("verdict", func(b *testing.B) {
		for b.Loop() {
			es[0].Verdict()
		}
	})
}

// TestSnapshotSize: however many units there are, a snapshot can be stored, and what is left of the units is an experiment of its own.
func TestSnapshotSize(t *testing.T) {
	e := design(t, stats.Design{Sticky: true, Capacity: 1 << 16})
	r := rand.New(rand.NewPCG(9, 9))
	for i := range 120000 {
		unit := uint64(i % 60000)
		o := answer(r, unit, int(unit&1), 1)
		o.Failed, o.Missed, o.Truncated = i%3 == 0, i%2 == 0, i%5 == 0
		e.Record(&o)
	}
	before := e.Verdict()
	s := e.Snapshot()
	after := e.Verdict()
	t.Logf("%d bytes for %d units, of which there were %d", len(s), after.Arms[0].Units+after.Arms[1].Units, before.Arms[0].Units+before.Arms[1].Units)
	if len(s) > stats.MaxSnapshot || len(s) < stats.MaxSnapshot/3 {
		t.Errorf("%d bytes: want at most %d, and not much less than half", len(s), stats.MaxSnapshot)
	}
	if before.Sample != 1 || after.Sample > 0.5 || after.Arms[0].Units >= before.Arms[0].Units {
		t.Errorf("samples %v and %v", before.Sample, after.Sample)
	}
	f := design(t, stats.Design{Sticky: true, Capacity: 1 << 16})
	if err := f.Restore(s); err != nil {
		t.Fatal(err)
	}
	if a, b := told(t, e), told(t, f); a != b {
		t.Errorf("restored\n%s\nwant\n%s", b, a)
	}
}

// TestConcurrentUse has everything done at once; what was recorded is there afterwards.
func TestConcurrentUse(t *testing.T) {
	e, other := design(t, stats.Design{Sticky: true, Capacity: 1024}), design(t, stats.Design{Sticky: true, Capacity: 1024})
	fill(other, rand.New(rand.NewPCG(10, 10)), 500, 1)
	snapshot := other.Snapshot()
	var wg sync.WaitGroup
	const workers, each = 4, 3000
	for w := range workers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(11, uint64(w)))
			for i := range each {
				unit := r.Uint64() >> 52
				o := answer(r, unit, int(unit&1), 1)
				e.Record(&o)
				switch i % 100 {
				case 10 * w:
					e.Verdict()
				case 10*w + 1:
					e.Peek()
				case 10*w + 2:
					if err := e.Merge("other", snapshot); err != nil {
						t.Error(err)
					}
				case 10*w + 3:
					e.Snapshot()
				case 10*w + 4:
					e.Feedback(unit, int(unit&1), 0, 0.5)
				case 10*w + 5:
					e.Forget("other")
				}
			}
		})
	}
	wg.Wait()
	e.Forget("other")
	if v := e.Verdict(); v.Arms[0].Requests+v.Arms[1].Requests != workers*each {
		t.Errorf("%d and %d requests: want %d together", v.Arms[0].Requests, v.Arms[1].Requests, workers*each)
	}
}
