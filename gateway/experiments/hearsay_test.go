package experiments

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"headrace/gateway/state"
	"headrace/router/experiment"
)

// counting is a store that counts what is read of it, and can refuse to read some.
type counting struct {
	state.Store
	mu     sync.Mutex
	loads  map[string]int
	refuse string // kinds that begin like that cannot be read; "" for none
}

func (c *counting) Load(ctx context.Context, kind string) (map[string]state.Doc, error) {
	c.mu.Lock()
	if c.loads == nil {
		c.loads = map[string]int{}
	}
	c.loads[kind]++
	refused := c.refuse != "" && strings.HasPrefix(kind, c.refuse)
	c.mu.Unlock()
	if refused {
		return nil, errDown
	}
	return c.Store.Load(ctx, kind)
}

func (c *counting) of(kind string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.loads[kind]
}

func (c *counting) refuses(kind string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuse = kind
}

// seq is how many requests a replica knows of.
func seq(t *testing.T, r *replica) int {
	t.Helper()
	v, err := r.Show(t.Context(), "e")
	if err != nil || v.Verdict == nil {
		t.Fatal(v.Problem, err)
	}
	return int(v.Verdict.Seq) //nolint:gosec // some thousand
}

// serve has the world make n requests.
func (w *world) serve(n int, rs ...*replica) {
	for range n {
		w.request(rs...)
		pass(20 * time.Millisecond)
	}
	pass(5 * time.Second)
}

// failuresOnly judges by failures, of which there are none: chance holds nothing and ends nothing.
func failuresOnly(change ...func(*experiment.Spec)) Trial {
	tr := trialOf(change...)
	tr.Guardrails = tr.Guardrails[:1]
	return tr
}

// steady takes no step.
func steady() Trial { return failuresOnly(func(s *experiment.Spec) { s.MinTime = time.Hour }) }

// TestHearsOnlyNews reads what others have stored when that has changed, and not at every round.
func TestHearsOnlyNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.NewMemory()
		sa := &counting{Store: store}
		a, b := startReplica(t, sa, steady()), startReplica(t, store, steady())
		w := newWorld(t)
		w.serve(200, b)
		if n := seq(t, a); n != 200 {
			t.Errorf("the replica that decides knows of %d requests at the other, want 200", n)
		}
		before := sa.of(statsKind(1))
		pass(5 * time.Minute)
		if after := sa.of(statsKind(1)); after != before || before == 0 {
			t.Errorf("read %d times, and %d times more while nothing was new", before, after-before)
		}
		w.serve(10, b)
		if n := seq(t, a); n != 210 {
			t.Errorf("then it knows of %d, want 210", n)
		}
		a.stop()
		b.stop()
	})
}

// TestOutAndBack keeps all that was seen of an experiment that is taken out of the config by mistake, also when the process is another
// one by the time it is back.
func TestOutAndBack(t *testing.T) {
	for name, restart := range map[string]bool{"the same process": false, "another one": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := state.NewMemory()
				a := startReplica(t, store, steady())
				w := newWorld(t)
				w.serve(300, a)
				a.Configure(nil)
				pass(5 * time.Minute)
				if restart {
					a.stop()
					a = startReplica(t, store)
				}
				a.Configure([]Trial{steady()})
				pass(5 * time.Second)
				w.serve(50, a)
				if v, _ := a.Show(t.Context(), "e"); v.Run != 1 || v.State != experiment.Running || v.Verdict.Seq != 350 {
					t.Errorf("run %d is %s, and of 350 requests %d are known", v.Run, v.State, v.Verdict.Seq)
				}
				a.stop()
				if b := startReplica(t, store, steady()); seq(t, b) != 350 {
					t.Errorf("after a restart %d are", seq(t, b))
				}
			})
		})
	}
}

// TestTakenUpLate loses nothing of what was stored before a restart, nor of what was recorded after it before that could be read.
func TestTakenUpLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.NewMemory()
		a := startReplica(t, store, steady())
		w := newWorld(t)
		w.serve(100, a)
		a.stop()
		again := &counting{Store: store}
		again.refuses("experiment-stats")
		a = startReplica(t, again, steady())
		w.serve(50, a)
		again.refuses("")
		w.serve(25, a)
		if n := seq(t, a); n != 175 {
			t.Errorf("it knows of %d requests, want 175", n)
		}
		b := startReplica(t, store, steady())
		if n := seq(t, b); n != 175 {
			t.Errorf("another one knows of %d, want 175", n)
		}
		a.stop()
		b.stop()
		if c := startReplica(t, store, steady()); seq(t, c) != 175 {
			t.Errorf("after both have stopped %d are known, want 175", seq(t, c))
		}
	})
}

// TestOtherMarginsOfAll keeps what others have seen when a config with other margins is read.
func TestOtherMarginsOfAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.NewMemory()
		a, b := startReplica(t, store, steady()), startReplica(t, store, steady())
		w := newWorld(t)
		w.serve(200, a, b)
		for _, r := range []*replica{a, b} {
			if n := seq(t, r); n != 200 {
				t.Fatalf("known %d", n)
			}
			tr := steady()
			tr.Alpha = 0.1
			r.Configure([]Trial{tr})
			pass(5 * time.Second)
			if n := seq(t, r); n != 200 {
				t.Errorf("with other margins it knows of %d requests, want 200", n)
			}
		}
		a.stop()
		b.stop()
	})
}

// TestUnheard takes no step, and says why, while what another replica has seen cannot be counted.
func TestUnheard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.NewMemory()
		calm := Options{Store: store, Look: time.Second}
		a, b := startWith(t, calm, failuresOnly()), startWith(t, calm, failuresOnly())
		w := newWorld(t)
		w.serve(100, a, b)
		b.stop()
		docs, err := store.Load(t.Context(), statsKind(1))
		if err != nil || len(docs) != 1 {
			t.Fatal(docs, err)
		}
		d := docs["e"]
		head, _, _ := strings.Cut(string(d.Body), "\n")
		v, err := store.Put(t.Context(), statsKind(1), "e", d.Version, []byte(head+"\nof another version"))
		if err != nil {
			t.Fatal(err)
		}
		a.mu.Lock()
		a.heard = nil
		a.mu.Unlock()
		w.serve(2000, a)
		if v, _ := a.Show(t.Context(), "e"); v.Step != 1 || !strings.Contains(v.Problem, "r1") {
			t.Errorf("step %d, problem %q", v.Step, v.Problem)
		}
		if _, err := store.Put(t.Context(), statsKind(1), "e", v, d.Body); err != nil {
			t.Fatal(err)
		}
		pass(10 * time.Second)
		if v, _ := a.Show(t.Context(), "e"); v.Step != 2 || v.Problem != "" {
			t.Errorf("when it can: step %d, problem %q", v.Step, v.Problem)
		}
		a.stop()
	})
}

// TestWithdrawn: what was taken out of a config that was in force, and is in nobody's any more, is another experiment when its name comes back,
// whatever was restarted since. One that somebody has, or whose gateways are down, stays as it is; a week later it is deleted.
func TestWithdrawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.NewMemory()
		a := startReplica(t, store, trialOf())
		w := newWorld(t)
		w.serve(100, a)
		if _, err := a.Apply(t.Context(), "e", experiment.Promote, ""); err != nil {
			t.Fatal(err)
		}
		idle := Options{Store: store, Look: time.Minute, Tell: time.Minute} // days go by
		other := startWith(t, idle)                                         // rolled out meanwhile
		pass(time.Hour)
		if a.canary() != 1 || a.state() != experiment.Promoted {
			t.Fatalf("one that somebody has in his config is %s with %v", a.state(), a.canary())
		}
		a.stop()
		pass(time.Hour)
		a = startReplica(t, store, trialOf())
		pass(5 * time.Second)
		if v, _ := a.Show(t.Context(), "e"); v.Run != 1 || v.State != experiment.Promoted {
			t.Fatalf("after its gateway was down for an hour it is run %d, %s", v.Run, v.State)
		}
		a.Configure(nil)
		pass(25 * time.Minute)
		a.stop()
		pass(time.Hour)
		other.stop()
		b := startReplica(t, store, trialOf())
		pass(5 * time.Second)
		if v, _ := b.Show(t.Context(), "e"); v.Run != 2 || v.State != experiment.Running || v.Arms[1].Share != 0.1 {
			t.Errorf("written down again it is run %d, %s with %v", v.Run, v.State, v.Arms[1].Share)
		}
		w.serve(100, b)
		b.stop()
		other = startWith(t, idle)
		kinds := []string{statsKind(0), statsKind(1), kindPast, kindDocs}
		left := func() (names []string) {
			for _, kind := range kinds {
				docs, err := store.Load(t.Context(), kind)
				if err != nil {
					t.Fatal(err)
				}
				for name := range docs {
					names = append(names, fmt.Sprint(kind, " ", name))
				}
			}
			return names
		}
		pass(24 * time.Hour)
		if len(left()) == 0 {
			t.Error("what was seen is gone after a day")
		}
		pass(experiment.Forgotten)
		if names := left(); len(names) > 0 {
			t.Errorf("after a week there is still %v", names)
		}
		other.stop()
		c := startReplica(t, store, trialOf())
		if v, _ := c.Show(t.Context(), "e"); v.Run != 1 || v.State != experiment.Running || v.Verdict.Seq != 0 {
			t.Errorf("back after a week it is run %d, %s, and knows %+v", v.Run, v.State, v.Verdict)
		}
		c.stop()
	})
}

// TestStatsKind names a kind of its own for every slot, as the store's kinds may be called.
func TestStatsKind(t *testing.T) {
	seen := map[string]int{}
	for n := range 2000 {
		kind := statsKind(n)
		if was, double := seen[kind]; double || len(kind) > 32 || strings.Trim(kind, "abcdefghijklmnopqrstuvwxyz-") != "" {
			t.Fatalf("slot %d is %q, as slot %d", n, kind, was)
		}
		seen[kind] = n
	}
}

// TestFeedbackElsewhere: what is said to one replica of a unit that another has served is of the arm that answered, also after a step has
// moved the unit, and is part of what the replica that decides goes by.
func TestFeedbackElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.NewMemory()
		a, b := startReplica(t, store, steady()), startReplica(t, store, steady())
		w := newWorld(t)
		w.serve(200, a)
		served := maps.Clone(w.arms)
		for _, r := range []*replica{a, b} { // other steps, and one of them at once
			r.Configure([]Trial{failuresOnly(func(s *experiment.Spec) { s.Steps, s.MinTime, s.MinUnits = []float64{0.1, 0.9}, time.Second, 1 })})
		}
		w.serve(200, a)
		if b.canary() != 0.9 {
			t.Fatalf("the canary has %v", b.canary())
		}
		moved, score := 0, 1.0
		said := map[string]int{}
		for user, arm := range served {
			if w.arms[user] != arm { // it was seen again, in the other arm
				continue
			}
			is, err := b.Feedback(t.Context(), "e", Feedback{Unit: user, Score: &score})
			if err != nil || is != arm {
				t.Fatalf("%s was served by %s, and is judged as %s: %v", user, arm, is, err)
			}
			said[arm]++
			if now, _ := b.Table().Of("m")[0].Assign([]byte(user)); now.Name != arm {
				moved++
			}
		}
		if moved == 0 || said["canary"] == 0 {
			t.Fatalf("%v were judged, %d of which had moved", said, moved)
		}
		pass(5 * time.Second)
		v, _ := a.Show(t.Context(), "e")
		if !v.Decides || int(v.Verdict.Seq) != 400+said["control"]+said["canary"] {
			t.Errorf("who decides (%v) knows of %d requests and scores, want 400 and %v", v.Decides, v.Verdict.Seq, said)
		}
		a.stop()
		b.stop()
	})
}

// TestHeardThenTakenUp: what is stored under a place is counted once by whoever takes it, also if it was heard as another's before, since the
// place could not be had at first.
func TestHeardThenTakenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.NewMemory()
		a := startReplica(t, store, steady())
		w := newWorld(t)
		w.serve(300, a)
		a.stop()
		placeless := &refusing{Store: store, kind: kindReplica, err: errDown}
		placeless.next.Store(1)
		a = startReplica(t, placeless, steady())
		w.serve(50, a)
		if n := seq(t, a); n != 350 {
			t.Errorf("%d requests are known after 300 before the restart and 50 since", n)
		}
		a.stop()
		if docs, err := store.Load(t.Context(), statsKind(0)); err != nil || len(docs) != 1 {
			t.Errorf("they are in %d documents, %v", len(docs), err)
		}
		a = startReplica(t, store, steady())
		if n := seq(t, a); n != 350 {
			t.Errorf("%d requests are known after one more restart, of 350", n)
		}
		a.stop()
	})
}
