package experiments

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"headrace/gateway/ledger"
	"headrace/gateway/state"
	"headrace/router"
	"headrace/router/experiment"
	"headrace/router/outcome"
)

// refusing is a store that answers, but does not take the next so many documents of a kind, by default those of experiments.
type refusing struct {
	state.Store
	kind string
	next atomic.Int64
	err  error
}

func (r *refusing) Put(ctx context.Context, kind, name string, old state.Version, body []byte) (state.Version, error) {
	if kind == cmp.Or(r.kind, kindDocs) && r.next.Add(-1) >= 0 {
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

// lone makes requests of users at a replica, every other one of which fails in one arm, until done says so or for too long.
func (w *world) lone(t *testing.T, bad string, done func() bool, rs ...*replica) {
	t.Helper()
	for range 4000 {
		r := rs[w.rng.IntN(len(rs))]
		w.n++
		as := r.Table().Of("m")[0]
		arm, key := as.Assign(fmt.Append(nil, "user ", w.rng.IntN(w.users)))
		rec := &ledger.Record{
			ID: fmt.Sprint("lone_", w.n), At: time.Now(), Arm: arm.Label(), Unit: key, Lot: as.Lot, Status: 200, Stream: true, Prompt: 100, Output: 200,
			TTFT: 300 * time.Millisecond, TPS: 30, SLO: router.DefaultSLO(), Attempts: []ledger.Attempt{{Endpoint: "static:1", Decision: router.Decision{Seq: 1, Use: 0.3}}},
		}
		if arm.Name == bad {
			rec.Attempts[0].Class, rec.Class, rec.Status, rec.TTFT, rec.TPS = outcome.UpstreamFault, outcome.UpstreamFault, 502, 0, 0
		}
		r.Observe(rec)
		pass(20 * time.Millisecond)
		if w.n%25 == 0 && done() {
			return
		}
	}
	t.Fatalf("after %d requests it is not so", w.n)
}

// TestArmEndedAlone: a replica that ends one of two arms while it is cut off, and others step up, counts with them again when it is back, also
// where what it saw by itself is in the store already, and does not keep them waiting when it never comes back.
func TestArmEndedAlone(t *testing.T) {
	two := func(s *experiment.Spec) {
		s.Arms = []experiment.Arm{{Name: "control"}, {Name: "canary", Share: 0.5}, {Name: "other", Share: 0.5}}
		s.Steps, s.MinTime, s.MinUnits = []float64{0.2, 0.4, 0.6, 1}, 10*time.Second, 20
	}
	for name, tc := range map[string]struct{ told, back bool }{"cut off": {false, true}, "last words arrive": {true, true}, "gone": {true, false}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				shared := state.NewMemory()
				cut := &flaky{Store: shared}
				a := startReplica(t, shared, trialOf(two))
				b := startReplica(t, cut, trialOf(two))
				w := newWorld(t)
				w.serve(100, b)
				cut.down.Store(true)
				dropped := func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.trials[0].doc.Dropped[1] }
				w.lone(t, "canary", dropped, b)
				w.lone(t, "", func() bool { return a.canary() > 0.15 }, a)
				if tc.told { // its last words arrive
					docs, err := shared.Load(t.Context(), statsKind(1))
					if err != nil || len(docs) != 1 {
						t.Fatal(docs, err)
					}
					head, _, _ := strings.Cut(string(docs["e"].Body), "\n")
					b.mu.Lock()
					body := append([]byte(head+"\n"), b.trials[0].stats.Snapshot()...)
					b.mu.Unlock()
					if _, err := shared.Put(t.Context(), statsKind(1), "e", docs["e"].Version, body); err != nil {
						t.Fatal(err)
					}
					a.mu.Lock()
					a.heard = nil
					a.mu.Unlock()
					pass(5 * time.Second)
					if v, _ := a.Show(t.Context(), "e"); v.Problem == "" {
						t.Fatal("what contradicts the shares of all is no problem")
					}
				}
				if !tc.back {
					b.stop() // and cannot give up its place
					pass(abandoned + time.Minute)
					w.lone(t, "", func() bool { v, _ := a.Show(t.Context(), "e"); return v.Problem == "" && v.Step > 2 }, a)
					a.stop()
					return
				}
				cut.down.Store(false)
				pass(10 * time.Second)
				var was int64
				for _, r := range []*replica{a, b} {
					v, err := r.Show(t.Context(), "e")
					if err != nil || v.Problem != "" || !v.Arms[1].Dropped || v.Arms[2].Share != 0.2 {
						t.Fatalf("together again: problem %q, %+v, %v", v.Problem, v.Arms, err)
					}
					was = int64(v.Verdict.Seq) //nolint:gosec // some thousand
				}
				kept := uint64(0) // of what was deleted, by who had heard it
				if tc.told {
					kept = 100
				}
				step := 0
				w.lone(t, "", func() bool { v, _ := a.Show(t.Context(), "e"); step = v.Step; return step > 2 }, a, b)
				pass(10 * time.Second)
				va, _ := a.Show(t.Context(), "e")
				vb, _ := b.Show(t.Context(), "e")
				if va.Problem != "" || vb.Problem != "" || va.Verdict.Seq != vb.Verdict.Seq+kept || int64(va.Verdict.Seq) <= was { //nolint:gosec // likewise
					t.Errorf("problems %q and %q, %d and %d requests are known after %d", va.Problem, vb.Problem, va.Verdict.Seq, vb.Verdict.Seq, was)
				}
				a.stop()
				b.stop()
			})
		})
	}
}

// TestForgotten: what is out of the config for longer than a mishap is not kept in memory, and what was deleted is not looked for again.
func TestForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &counting{Store: state.NewMemory()}
		a := startWith(t, Options{Store: store, Look: time.Hour, Tell: 5 * time.Minute})
		w := newWorld(t)
		for i := range 5 { // named after builds
			a.Configure([]Trial{trialOf(func(s *experiment.Spec) { s.Name = fmt.Sprint("build-", i) })})
			pass(time.Minute)
			w.request(a)
			pass(30 * time.Minute)
		}
		a.Configure(nil)
		pass(30 * time.Minute)
		a.mu.Lock()
		for name, r := range a.left {
			if r.trial != nil {
				t.Errorf("%s is kept in memory", name)
			}
		}
		a.mu.Unlock()
		for _, kind := range []string{kindDocs, statsKind(0)} {
			if docs, err := store.Store.Load(t.Context(), kind); err != nil || len(docs) != 5 {
				t.Errorf("half an hour later the store has %d of %s, %v", len(docs), kind, err)
			}
		}
		pass(experiment.Forgotten + 6*time.Hour)
		for _, kind := range []string{kindDocs, kindPast, statsKind(0)} {
			if docs, err := store.Store.Load(t.Context(), kind); err != nil || len(docs) > 0 {
				t.Errorf("after a week the store has %d of %s, %v", len(docs), kind, err)
			}
		}
		was := store.of(kindPast) + store.of(statsKind(0))
		pass(time.Hour)
		if now := store.of(kindPast) + store.of(statsKind(0)); now != was {
			t.Errorf("%d loads for what was deleted", now-was)
		}
		a.mu.Lock()
		if len(a.left) > 0 {
			t.Errorf("%d experiments are remembered for good", len(a.left))
		}
		a.mu.Unlock()
		a.stop()
	})
}

// TestDownIsNotWithdrawn: what was rolled back is not tried again because its gateway was down for a while and another, which never had it, was not.
func TestDownIsNotWithdrawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.NewMemory()
		other := startWith(t, Options{Store: store, Look: time.Minute, Tell: time.Minute})
		a := startReplica(t, store, trialOf())
		pass(5 * time.Second)
		w := newWorld(t)
		w.bad = 0.9
		w.run(t, experiment.RolledBack, 3000, a)
		a.stop()
		pass(24 * time.Hour)
		b := startReplica(t, store, trialOf())
		pass(5 * time.Second)
		if v, err := b.Show(t.Context(), "e"); err != nil || v.State != experiment.RolledBack || v.Run != 1 {
			t.Errorf("after its gateway was down it is %s, run %d, %v", v.State, v.Run, err)
		}
		b.stop()
		other.stop()
	})
}

// withdrawnMeanwhile has a abort its experiment, which then is in its config no more while the other replica that has it is cut off, until the
// store has that nobody has it; it returns whether that is so.
func withdrawnMeanwhile(t *testing.T, store state.Store, cut *flaky, a *replica) func() bool {
	t.Helper()
	if _, err := a.Apply(t.Context(), "e", experiment.Abort, ""); err != nil {
		t.Fatal(err)
	}
	pass(time.Minute)
	cut.down.Store(true)
	a.Configure(nil)
	withdrawn := func() bool {
		docs, err := store.Load(t.Context(), kindDocs)
		return err == nil && strings.Contains(string(docs["e"].Body), `"taken_out":true`)
	}
	for range 60 {
		if pass(time.Minute); withdrawn() {
			return withdrawn
		}
	}
	t.Fatal("nobody has noted that it is in no config that can be heard of")
	return nil
}

// TestCutOffIsNotWithdrawn: what one replica leaves out while another, which has it, cannot be heard is not over for that: when that one is
// restarted it goes on where it was.
func TestCutOffIsNotWithdrawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.NewMemory()
		cut := &flaky{Store: store}
		slow := Options{Store: store, Look: 10 * time.Second, Tell: 10 * time.Second}
		a := startWith(t, slow, trialOf())
		slow.Store = cut
		b := startWith(t, slow, trialOf())
		withdrawn := withdrawnMeanwhile(t, store, cut, a)
		cut.down.Store(false)
		pass(time.Minute)
		if withdrawn() {
			t.Error("it is thought to be in no config though a replica has it")
		}
		b.stop()
		b = startWith(t, Options{Store: store, Look: 10 * time.Second, Tell: 10 * time.Second}, trialOf())
		if v, err := b.Show(t.Context(), "e"); err != nil || v.State != experiment.Aborted || v.Run != 1 {
			t.Errorf("after a restart it is %s, run %d, %v", v.State, v.Run, err)
		}
		a.stop()
		b.stop()
	})
}

// TestStrangeDocuments: a document that does not fit, of another config or damaged, gives the control everything, and is shown as a problem.
func TestStrangeDocuments(t *testing.T) {
	three := func(s *experiment.Spec) {
		s.Arms = []experiment.Arm{{Name: "control"}, {Name: "canary", Share: 0.5}, {Name: "other", Share: 0.5}}
	}
	for name, tc := range map[string]struct {
		write   func(t *testing.T, store state.Store, b *replica)
		problem string
	}{
		"of more arms, the last of which was promoted": {func(t *testing.T, store state.Store, _ *replica) {
			t.Helper()
			c := startReplica(t, store, trialOf(three))
			if _, err := c.Apply(t.Context(), "e", experiment.Promote, "other"); err != nil {
				t.Fatal(err)
			}
			c.stop()
		}, "something else under this name"},
		"with figures missing": {func(t *testing.T, store state.Store, _ *replica) {
			t.Helper()
			docs, err := store.Load(t.Context(), kindDocs)
			if err != nil {
				t.Fatal(err)
			}
			d := docs["e"]
			body := strings.Replace(string(d.Body), `"dropped":[false,false]`, `"dropped":[]`, 1)
			if _, err := store.Put(t.Context(), kindDocs, "e", d.Version, []byte(body)); err != nil || body == string(d.Body) {
				t.Fatal(err, body)
			}
		}, "not known"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := state.NewMemory()
				b := startReplica(t, store, trialOf())
				pass(5 * time.Second)
				tc.write(t, store, b)
				pass(5 * time.Second)
				v, err := b.Show(t.Context(), "e")
				if err != nil || !strings.Contains(v.Problem, tc.problem) || v.Arms[1].Share != 0 || v.Arms[0].Share != 1 {
					t.Errorf("problem %q, arms %+v, %v", v.Problem, v.Arms, err)
				}
				if r, err := b.Report(t.Context(), "e"); err != nil || len(r.Arms) != 2 {
					t.Errorf("report: %v", err)
				}
				for _, c := range []experiment.Command{experiment.Start, experiment.Promote, experiment.Abort} {
					if _, err := b.Apply(t.Context(), "e", c, ""); err == nil {
						t.Errorf("%s: no error", c)
					}
				}
				if arm, _ := b.Table().Of("m")[0].Assign([]byte("anybody")); arm.Name != "control" {
					t.Errorf("served by %s", arm.Name)
				}
				b.stop()
			})
		})
	}
}

// deafened is a store whose word of changes does not arrive.
type deafened struct{ state.Store }

func (deafened) Watch(string) (<-chan struct{}, func()) { return nil, func() {} }

// TestApart: how long two gateways may give a user different arms at a step: not at all where the store's word of it arrives, and until the
// next round of reading where it is lost. At either of them nobody leaves the canary while it grows.
func TestApart(t *testing.T) {
	for name, tc := range map[string]struct {
		store func(state.Store) state.Store
		most  time.Duration
	}{
		"told":     {func(s state.Store) state.Store { return s }, 0},
		"not told": {func(s state.Store) state.Store { return deafened{s} }, 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := state.NewMemory()
				a := startReplica(t, store, failuresOnly())
				pass(700 * time.Millisecond) // rounds are not at the same times
				b := startReplica(t, tc.store(store), failuresOnly())
				w := newWorld(t)
				var since, longest time.Duration
				was := map[string]string{} // arms by replica and user
				users := make([]string, 10)
				for i := range users {
					users[i] = fmt.Sprint("user ", i)
				}
				began := time.Now()
				for i := 0; a.state() == experiment.Running || b.state() == experiment.Running; i++ {
					if i > 30000 {
						t.Fatalf("after %d requests it is %s", i, a.state())
					}
					w.request(a, b)
					synctest.Wait() // what was to be done now is
					same := true
					for _, user := range users {
						var at [2]string
						for k, r := range []*replica{a, b} {
							arm, _ := r.Table().Of("m")[0].Assign([]byte(user))
							at[k] = arm.Name
							if key := fmt.Sprint(k, user); was[key] == "canary" && arm.Name != "canary" {
								t.Fatalf("%s has left the canary at gateway %d", user, k)
							} else {
								was[key] = arm.Name
							}
						}
						same = same && at[0] == at[1]
					}
					if now := time.Since(began); same {
						since = now
					} else {
						longest = max(longest, now-since)
					}
					pass(50 * time.Millisecond)
				}
				if longest > tc.most || a.canary() != 1 || b.canary() != 1 {
					t.Errorf("for %s gateways gave a user different arms, want %s at most; shares %v and %v", longest, tc.most, a.canary(), b.canary())
				}
				if tc.most > 0 && longest == 0 {
					t.Error("nobody was seen in two arms, which the test is about")
				}
				a.stop()
				b.stop()
			})
		})
	}
}
