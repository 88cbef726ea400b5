package experiments

import (
	"encoding/json"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"headrace/gateway/state"
	"headrace/router/experiment"
)

// TestRefusedWriteIsMadeAgain has a replica that was cut off while another withdrew its experiment, and whose first write then is refused.
func TestRefusedWriteIsMadeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.NewMemory()
		cut := &flaky{Store: store}
		ref := &refusing{Store: cut, err: errDown}
		slow := Options{Store: store, Look: 10 * time.Second, Tell: 10 * time.Second}
		a := startWith(t, slow, trialOf())
		whole := slow
		slow.Store = ref
		b := startWith(t, slow, trialOf())
		withdrawn := withdrawnMeanwhile(t, store, cut, a)
		ref.next.Store(1) // one write is refused
		cut.down.Store(false)
		pass(time.Hour)
		if withdrawn() {
			t.Error("an hour after one refused write it is still thought to be in no config though a replica has it")
		}
		b.stop()
		b = startWith(t, whole, trialOf())
		if v, err := b.Show(t.Context(), "e"); err != nil || v.State != experiment.Aborted || v.Run != 1 {
			t.Errorf("after a restart it is %s, run %d, %v", v.State, v.Run, err)
		}
		a.stop()
		b.stop()
	})
}

// TestClockWithoutExperiments has a gateway whose config has no experiment any more, and whose own clock is set right meanwhile: it goes by the
// store's and takes nobody for gone.
func TestClockWithoutExperiments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &clocked{state.NewMemory(), 0}
		var off atomic.Int64
		off.Store(int64(-time.Hour)) // an hour late at boot
		opt := Options{Store: store, Look: 10 * time.Second, Tell: 10 * time.Second}
		a := startWith(t, opt, trialOf())
		opt.Now = func() time.Time { return time.Now().Add(time.Duration(off.Load())) }
		b := startWith(t, opt, trialOf())
		if _, err := a.Apply(t.Context(), "e", experiment.Abort, ""); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		b.Configure(nil)
		off.Store(0) // NTP sets it right
		n := 0
		for range 3600 {
			pass(time.Second)
			docs, err := store.Load(t.Context(), kindDocs)
			if err == nil && strings.Contains(string(docs["e"].Body), `"taken_out":true`) {
				n++
			}
		}
		v, _ := a.Show(t.Context(), "e")
		if n > 0 || v.Made > 3 {
			t.Errorf("withdrawn in %d of 3600 seconds though a has it all the while; %d decisions, last %+v", n, v.Made, v.Decisions[len(v.Decisions)-1])
		}
		a.stop()
		pass(2 * time.Minute)
		opt.Now = nil
		a = startWith(t, opt, trialOf())
		if v, err := a.Show(t.Context(), "e"); err != nil || v.State != experiment.Aborted || v.Run != 1 {
			t.Errorf("after a restart of two minutes it is %s, run %d, %v", v.State, v.Run, err)
		}
		a.stop()
		b.stop()
	})
}

// TestRunThatIsGone has a replica without a place, for the store takes none, which knows run 1 as running; the store then has the experiment as
// one that has yet to begin.
func TestRunThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.NewMemory()
		a := startReplica(t, store, steady())
		w := newWorld(t)
		w.serve(100, a)
		a.stop() // its figures of run 1 are under place 0
		placeless := &refusing{Store: store, kind: kindReplica, err: errDown}
		placeless.next.Store(1 << 30)
		a = startReplica(t, placeless, steady())
		w.serve(10, a)
		docs, err := store.Load(t.Context(), kindDocs)
		if err != nil {
			t.Fatal(err)
		}
		tr := steady()
		tr.Spec.Wanted = experiment.WantPause
		b, err := json.Marshal(experiment.NewDoc(tr.Spec, time.Now())) // as a replica whose config says state: pause makes it anew
		if err != nil {
			t.Fatal(err)
		}
		if _, err := store.Put(t.Context(), kindDocs, "e", docs["e"].Version, b); err != nil {
			t.Fatal(err)
		}
		pass(5 * time.Second)
		placeless.next.Store(0) // and now it has a place, and takes up what it has of that run
		pass(5 * time.Second)
		if v, err := a.Show(t.Context(), "e"); err != nil || v.State != experiment.Scheduled {
			t.Errorf("%s, %v", v.State, err)
		}
		a.stop()
	})
}
