package experiments

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"headrace/gateway/ledger"
	"headrace/gateway/state"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/experiment"
	"headrace/router/experiment/stats"
	"headrace/router/outcome"
)

// hosts are of one kind.
func hosts(id endpoint.ID) *endpoint.Endpoint {
	return &endpoint.Endpoint{ID: id, State: endpoint.Ready, Hardware: endpoint.Hardware{GPU: "A100 80GB", GPUCount: 1}}
}

func trialOf(change ...func(*experiment.Spec)) Trial {
	s := &experiment.Spec{
		Name: "e", Model: "m", Units: []experiment.Unit{{Kind: experiment.ByUser}}, Arms: []experiment.Arm{{Name: "control"}, {Name: "canary", Share: 1}},
		Steps: []float64{0.1, 0.5, 1}, MinTime: 20 * time.Second, MinUnits: 60, MaxTime: 24 * time.Hour,
	}
	for _, f := range change {
		f(s)
	}
	s.Ready()
	return Trial{Spec: s, Alpha: 0.05, Guardrails: []stats.Guardrail{{Metric: stats.Failed, Margin: 0.03, Tolerate: 0.03}, {Metric: stats.TTFT, Margin: 0.2, Tolerate: 0.2}}}
}

// flaky is a store that can be made to fail.
type flaky struct {
	state.Store
	down atomic.Bool
	puts atomic.Int64
}

var errDown = errors.New("down")

func (f *flaky) Load(ctx context.Context, kind string) (map[string]state.Doc, error) {
	if f.down.Load() {
		return nil, errDown
	}
	return f.Store.Load(ctx, kind)
}

func (f *flaky) Put(ctx context.Context, kind, name string, old state.Version, body []byte) (state.Version, error) {
	if f.down.Load() {
		return 0, errDown
	}
	f.puts.Add(1)
	return f.Store.Put(ctx, kind, name, old, body)
}

// replica is a running Manager.
type replica struct {
	*Manager
	stop func()
}

func startReplica(t *testing.T, store state.Store, trials ...Trial) *replica {
	t.Helper()
	return startWith(t, Options{Store: store}, trials...)
}

func startWith(t *testing.T, o Options, trials ...Trial) *replica {
	t.Helper()
	o.Host = hosts
	m := New(o)
	m.Configure(trials)
	m.Load(t.Context())
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() { defer close(done); _ = m.Run(ctx) }()
	r := &replica{Manager: m, stop: sync.OnceFunc(func() { cancel(); <-done })}
	t.Cleanup(r.stop)
	return r
}

// pass lets the bubble's time pass.
func pass(d time.Duration) { <-time.After(d) }

// world makes requests of users and settles them.
type world struct {
	rng   *rand.Rand
	n     int
	users int
	bad   float64 // probability that the canary fails
	slow  float64 // times the control's TTFT
	arms  map[string]string
	moved int // users that left the canary
}

func newWorld(t *testing.T) *world {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return &world{rng: rand.New(rand.NewPCG(seed, 3)), users: 4000, slow: 1, arms: map[string]string{}}
}

// request is one user's, at one of the replicas; it returns the arm.
func (w *world) request(rs ...*replica) string {
	r := rs[w.rng.IntN(len(rs))]
	user := fmt.Sprint("user ", w.rng.IntN(w.users))
	w.n++
	a := r.Table().Of("m")[0]
	arm, key := a.Assign([]byte(user))
	if was := w.arms[user]; was == "canary" && arm.Name != "canary" {
		w.moved++
	}
	w.arms[user] = arm.Name
	rec := &ledger.Record{
		ID: fmt.Sprint("req_", w.n), At: time.Now(), Arm: arm.Label(), Unit: key, Lot: a.Lot, Status: 200, Stream: true, Prompt: 100, Output: 200, USD: 0.001, USDKnown: true,
		TTFT: time.Duration(float64(300*time.Millisecond) * math.Exp(0.2*w.rng.NormFloat64())), TPS: 30 * math.Exp(0.1*w.rng.NormFloat64()), SLO: router.DefaultSLO(),
	}
	try := ledger.Attempt{Endpoint: endpoint.ID(fmt.Sprint("static:", w.rng.IntN(4))), Decision: router.Decision{Seq: 1, Use: 0.3}}
	if arm.Name == "canary" {
		rec.TTFT = time.Duration(float64(rec.TTFT) * w.slow)
		if w.rng.Float64() < w.bad {
			try.Class, rec.Class, rec.Status = outcome.UpstreamFault, outcome.UpstreamFault, 502
			rec.TTFT, rec.TPS = 0, 0
		}
	}
	rec.Attempts = []ledger.Attempt{try}
	r.Observe(rec)
	return arm.Name
}

// run makes requests, ten a second, until the experiment is in the given state at every replica, or for too long.
func (w *world) run(t *testing.T, until experiment.State, most int, rs ...*replica) {
	t.Helper()
	for range most {
		w.request(rs...)
		pass(20 * time.Millisecond)
		if w.n%50 == 0 && !slices.ContainsFunc(rs, func(r *replica) bool { return r.state() != until }) {
			return
		}
	}
	v, _ := rs[0].Show(t.Context(), "e")
	t.Fatalf("after %d requests it is %s at step %d, and waits for %q: %+v", w.n, v.State, v.Step, v.Waits, v.Verdict)
}

func (r *replica) state() experiment.State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.trials[0].doc.State
}

func (r *replica) canary() float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.trials[0].doc.Shares[1]
}

// TestGoodCanary takes a good one to everything across two replicas and a restart, with one document for both and every user in one arm
// but for those that its growth takes in.
func TestGoodCanary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.NewMemory()
		a, b := startReplica(t, store, trialOf()), startReplica(t, store, trialOf())
		w := newWorld(t)
		for range 1500 {
			w.request(a, b)
			pass(20 * time.Millisecond)
		}
		if a.canary() != b.canary() || a.canary() <= 0 {
			t.Fatalf("shares %v and %v", a.canary(), b.canary())
		}
		before, _ := b.Show(t.Context(), "e")
		b.stop()
		b = startReplica(t, store, trialOf())
		after, _ := b.Show(t.Context(), "e")
		if after.State != before.State || after.Step < before.Step || after.Verdict == nil || after.Verdict.Seq < before.Verdict.Seq-20 {
			t.Fatalf("before the restart step %d and %d seen, after it step %d and %+v", before.Step, before.Verdict.Seq, after.Step, after.Verdict)
		}
		w.run(t, experiment.Promoted, 60000, a, b)
		if w.moved > 0 {
			t.Errorf("%d users left the canary", w.moved)
		}
		v, err := a.Show(t.Context(), "e")
		if err != nil || v.Arms[1].Share != 1 || len(v.Decisions) != 3 || v.Uncounted.Dropped != 0 {
			t.Errorf("%+v, %v", v, err)
		}
		if seen := v.Verdict.Arms[0].Requests + v.Verdict.Arms[1].Requests + v.Uncounted.Late; seen < int64(w.n)*8/10 || seen > int64(w.n) {
			t.Errorf("%d of %d requests were seen", seen, w.n)
		}
		a.stop()
		b.stop()
	})
}

// TestStepsCountUnits: a step is over when so many users had answers in it, not when a few of them had as many.
func TestStepsCountUnits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startReplica(t, state.NewMemory(), failuresOnly())
		w := newWorld(t)
		for a.canary() < 0.5 && w.n < 20000 {
			w.request(a)
			pass(20 * time.Millisecond)
		}
		w.users = 40
		for range 4000 {
			w.request(a)
			pass(20 * time.Millisecond)
		}
		v, err := a.Show(t.Context(), "e")
		if err != nil || v.Step != 2 || v.State != experiment.Running || !strings.Contains(v.Waits, "of 60 units of canary in this step") {
			t.Errorf("%s at step %d after %d requests of 40 users: waits for %q, %v", v.State, v.Step, 4000, v.Waits, err)
		}
		w.users = 4000
		w.run(t, experiment.Promoted, 60000, a)
		a.stop()
	})
}

// TestFewerArms: a request of an arm that is taken out of the config before it was looked at is one of the run before.
func TestFewerArms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		arms := func(names ...string) Trial {
			return failuresOnly(func(s *experiment.Spec) {
				s.Arms = []experiment.Arm{{Name: "control"}}
				for _, name := range names {
					s.Arms = append(s.Arms, experiment.Arm{Name: name, Share: 0.3})
				}
			})
		}
		a := startReplica(t, state.NewMemory(), arms("a", "b", "c"))
		pass(5*time.Second + 50*time.Millisecond) // between two looks
		as := a.Table().Of("m")[0]
		a.Observe(&ledger.Record{ID: "req_1", At: time.Now(), Arm: "e/c", Unit: 1, Lot: as.Lot, Status: 200, Tries: 1, Attempts: []ledger.Attempt{{Endpoint: "static:1"}}})
		a.Configure([]Trial{arms("a", "b")})
		pass(5 * time.Second)
		if v, err := a.Show(t.Context(), "e"); err != nil || v.Run != 2 || v.Uncounted.Late != 1 || v.Verdict.Seq != 0 {
			t.Errorf("run %d, %d requests of earlier ones, %v", v.Run, v.Uncounted.Late, err)
		}
		a.stop()
	})
}

// TestBadCanary ends one that fails, and one that is slow, at both replicas.
func TestBadCanary(t *testing.T) {
	for name, change := range map[string]func(*world){
		"fails": func(w *world) { w.bad = 0.3 },
		"slow":  func(w *world) { w.slow = 1.8 },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := state.NewMemory()
				a, b := startReplica(t, store, trialOf()), startReplica(t, store, trialOf())
				w := newWorld(t)
				change(w)
				w.run(t, experiment.RolledBack, 30000, a, b)
				v, err := b.Show(t.Context(), "e")
				last := v.Decisions[len(v.Decisions)-1]
				if err != nil || v.Arms[1].Share != 0 || last.By != "guardrail" || last.Why == "" || last.Arm != "canary" {
					t.Errorf("%+v, %v", last, err)
				}
				for range 200 {
					if w.request(a, b) != "control" {
						t.Fatal("the canary still gets requests")
					}
				}
				a.stop()
				b.stop()
				c := startReplica(t, store, trialOf()) // a restart tries nothing again
				if c.state() != experiment.RolledBack || c.canary() != 0 {
					t.Errorf("after a restart it is %s", c.state())
				}
				if _, err := c.Apply(t.Context(), "e", experiment.Start, ""); err != nil || c.canary() != 0.1 {
					t.Errorf("started anew: %v, share %v", err, c.canary())
				}
				if v, _ := c.Show(t.Context(), "e"); v.Run != 2 || v.Verdict.Seq != 0 {
					t.Errorf("run %d has seen %d requests", v.Run, v.Verdict.Seq)
				}
				c.stop()
			})
		})
	}
}

// TestHardStop ends one that fails with nearly every request within its first twenty units.
func TestHardStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startReplica(t, state.NewMemory(), trialOf())
		defer a.stop()
		w := newWorld(t)
		w.bad = 0.9
		canary := 0
		for a.state() != experiment.RolledBack && canary < 100 {
			if w.request(a) == "canary" {
				canary++
				pass(time.Second)
			}
		}
		if canary > 20 {
			t.Errorf("the canary had %d units before it was ended", canary)
		}
	})
}

// TestStoreGone freezes shares while the store does not answer; harm still ends an experiment where it is found, and everywhere once the
// store is back.
func TestStoreGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.NewMemory()
		sa, sb := &flaky{Store: store}, &flaky{Store: store}
		a, b := startReplica(t, sa, trialOf()), startReplica(t, sb, trialOf())
		w := newWorld(t)
		for range 500 {
			w.request(a, b)
			pass(20 * time.Millisecond)
		}
		sa.down.Store(true)
		sb.down.Store(true)
		frozen := a.canary()
		for range 5000 {
			w.request(a, b)
			pass(20 * time.Millisecond)
		}
		if a.canary() != frozen || b.canary() != frozen || frozen != 0.1 {
			t.Errorf("without the store shares went from %v to %v and %v", frozen, a.canary(), b.canary())
		}
		if _, err := a.Apply(t.Context(), "e", experiment.Promote, ""); !errors.Is(err, ErrSilent) {
			t.Errorf("promote without the store: %v", err)
		}
		w.bad = 0.5
		for range 5000 { // its caller's requests are all at a
			w.request(a)
			pass(20 * time.Millisecond)
			if a.state() == experiment.RolledBack {
				break
			}
		}
		if a.state() != experiment.RolledBack || b.state() != experiment.Running {
			t.Fatalf("harm at one: it is %s there and %s at the other", a.state(), b.state())
		}
		sa.down.Store(false)
		sb.down.Store(false)
		pass(5 * time.Second)
		if a.state() != experiment.RolledBack || b.state() != experiment.RolledBack {
			t.Errorf("with the store again: %s and %s", a.state(), b.state())
		}
		a.stop()
		b.stop()
	})
}

// TestStoreLost goes on where it was when the store has lost everything.
func TestStoreLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.NewMemory()
		a, b := startReplica(t, store, trialOf()), startReplica(t, store, trialOf())
		if _, err := a.Apply(t.Context(), "e", experiment.Abort, ""); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		for _, kind := range []string{kindDocs, statsKind(0), statsKind(1), kindReplica, kindPast} {
			docs, err := store.Load(t.Context(), kind)
			if err != nil {
				t.Fatal(err)
			}
			for name, d := range docs {
				if err := store.Delete(t.Context(), kind, name, d.Version); err != nil && !errors.Is(err, state.ErrConflict) {
					t.Fatal(err)
				}
			}
		}
		pass(20 * time.Second)
		if a.state() != experiment.Aborted || b.state() != experiment.Aborted {
			t.Errorf("after the store was emptied: %s and %s", a.state(), b.state())
		}
		a.mu.Lock()
		b.mu.Lock()
		defer a.mu.Unlock()
		defer b.mu.Unlock()
		if a.slot.number == b.slot.number || a.slot.number < 0 || b.slot.number < 0 || a.slot.leads == b.slot.leads {
			t.Errorf("places %+v and %+v", a.slot, b.slot)
		}
	})
}

// TestAbortWithoutStore is possible at once, and the others follow when they can be told.
func TestAbortWithoutStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.NewMemory()
		sa := &flaky{Store: store}
		a, b := startReplica(t, sa, trialOf()), startReplica(t, store, trialOf())
		sa.down.Store(true)
		v, err := a.Apply(t.Context(), "e", experiment.Abort, "")
		if err != nil || v.State != experiment.Aborted || a.canary() != 0 {
			t.Errorf("aborted: %s, %v", v.State, err)
		}
		sa.down.Store(false)
		pass(5 * time.Second)
		if b.state() != experiment.Aborted {
			t.Errorf("the other replica has it %s", b.state())
		}
		a.stop()
		b.stop()
	})
}

// TestCommandsReach follows commands at one replica within a second at another.
func TestCommandsReach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.NewMemory()
		a, b := startReplica(t, store, trialOf()), startReplica(t, store, trialOf())
		for _, step := range []struct {
			c     experiment.Command
			state experiment.State
			share float64
		}{
			{experiment.Pause, experiment.Paused, 0.1},
			{experiment.Resume, experiment.Running, 0.1},
			{experiment.Promote, experiment.Promoted, 1},
			{experiment.Abort, experiment.Aborted, 0},
			{experiment.Start, experiment.Running, 0.1},
		} {
			if _, err := a.Apply(t.Context(), "e", step.c, ""); err != nil {
				t.Fatal(step.c, err)
			}
			pass(time.Second)
			if b.state() != step.state || b.canary() != step.share {
				t.Errorf("%s: the other has it %s with %v", step.c, b.state(), b.canary())
			}
			a, b = b, a
		}
		if _, err := a.Apply(t.Context(), "e", experiment.Resume, ""); !errors.Is(err, experiment.ErrState) {
			t.Errorf("resume of a running one: %v", err)
		}
		if _, err := a.Apply(t.Context(), "f", experiment.Abort, ""); !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "has e") {
			t.Errorf("of no experiment: %v", err)
		}
		a.stop()
		b.stop()
	})
}

// TestLeader has one replica decide at a time: the first, and the other one after it.
func TestLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.NewMemory()
		a := startReplica(t, store, trialOf())
		b := startReplica(t, store, trialOf())
		leads := func(r *replica) bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.slot.leads
		}
		for range 30 {
			pass(time.Second)
			if leads(a) && leads(b) {
				t.Fatal("two decide")
			}
		}
		if !leads(a) || leads(b) {
			t.Errorf("the first decides: %v, the second: %v", leads(a), leads(b))
		}
		a.stop()
		pass(5 * time.Second)
		if !leads(b) {
			t.Error("nobody decides")
		}
		c := startReplica(t, store, trialOf())
		if c.slot.number != 0 {
			t.Errorf("who starts anew has number %d, want that of the one that stopped", c.slot.number)
		}
		pass(15 * time.Second)
		if !leads(c) || leads(b) {
			t.Errorf("the lowest number decides: %v, the other: %v", leads(c), leads(b))
		}
		b.stop()
		c.stop()
	})
}

// TestOtherConfig lets replicas of two configs be: whoever is configured last says what is tried, and the others try nothing meanwhile.
func TestOtherConfig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.NewMemory()
		a := startReplica(t, store, trialOf())
		b := startReplica(t, store, trialOf(func(s *experiment.Spec) { s.Arms[1].Policy = "latency" }))
		pass(3 * time.Second)
		if v, _ := a.Show(t.Context(), "e"); v.Problem == "" || v.Arms[0].Share != 1 {
			t.Errorf("the older config tries %+v, problem %q", v.Arms, v.Problem)
		}
		if arm, _ := a.Table().Of("m")[0].Assign([]byte("x")); arm.Name != "control" || a.Table().Of("m")[0].Recorded {
			t.Errorf("the older config serves by %s", arm.Name)
		}
		if b.canary() != 0.1 {
			t.Errorf("the newer config tries %v", b.canary())
		}
		a.Configure([]Trial{trialOf(func(s *experiment.Spec) { s.Arms[1].Policy = "latency" })})
		pass(3 * time.Second)
		if a.canary() != 0.1 || a.state() != experiment.Running {
			t.Errorf("with the newer config: %s %v", a.state(), a.canary())
		}
		a.Configure(nil)
		if len(a.Table().Of("m")) != 0 {
			t.Error("an experiment that is no longer in the config is still one")
		}
		a.stop()
		b.stop()
	})
}

// TestOtherMargins judges what was seen by other margins once the config has them, and counts on.
func TestOtherMargins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startReplica(t, state.NewMemory(), trialOf(func(s *experiment.Spec) { s.Steps = []float64{0.5, 1} }))
		w := newWorld(t)
		w.slow = 1.5
		for range 1500 {
			w.request(a)
		}
		pass(time.Second)
		before, _ := a.Show(t.Context(), "e")
		if a.state() != experiment.RolledBack {
			t.Fatalf("half as slow again, with a margin of a fifth: %s", before.State)
		}
		wide := trialOf(func(s *experiment.Spec) { s.Steps = []float64{0.5, 1} })
		wide.Guardrails = []stats.Guardrail{{Metric: stats.TTFT, Margin: 0.9, Tolerate: 0.9}}
		a.Configure([]Trial{wide})
		pass(time.Second)
		after, _ := a.Show(t.Context(), "e")
		if after.Run != before.Run || after.Verdict.Seq != before.Verdict.Seq || after.Verdict.Arms[1].Action != stats.Promote || len(after.Guardrails) != 1 {
			t.Errorf("with a wide one: run %d, %d seen of %d, %s: %s", after.Run, after.Verdict.Seq, before.Verdict.Seq, after.Verdict.Arms[1].Action, after.Verdict.Arms[1].Reason)
		}
	})
}

// TestFeedback joins a score with its request or unit, and says what is wrong with one that cannot be.
func TestFeedback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startReplica(t, state.NewMemory(), trialOf())
		defer a.stop()
		w := newWorld(t)
		for range 50 {
			w.request(a)
		}
		score := 0.5
		arm, err := a.Feedback(t.Context(), "e", Feedback{RequestID: "req_7", Score: &score})
		if err != nil || arm == "" {
			t.Errorf("by request: %q, %v", arm, err)
		}
		user := slices.Sorted(maps.Keys(w.arms))[0]
		want, _ := a.Table().Of("m")[0].Assign([]byte(user))
		if arm, err = a.Feedback(t.Context(), "e", Feedback{Unit: user, Score: &score}); err != nil || arm != want.Name {
			t.Errorf("by unit: %q, %v", arm, err)
		}
		nan, two := math.NaN(), 2.0
		for name, f := range map[string]Feedback{
			"no score": {Unit: "x"}, "no number": {Unit: "x", Score: &nan}, "of nobody": {Score: &score}, "of two": {Unit: "x", RequestID: "req_7", Score: &score},
			"an old request": {RequestID: "req_x", Score: &score}, "another kind of unit": {Unit: "x", By: "users", Score: &score},
			"a kind that is not assigned": {Unit: user, By: "key", Score: &score}, "a unit that sent nothing": {Unit: "nobody", Score: &score}, "another scale": {RequestID: "req_7", Score: &two},
		} {
			if _, err := a.Feedback(t.Context(), "e", f); !errors.Is(err, ErrFeedback) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := a.Feedback(t.Context(), "f", Feedback{}); !errors.Is(err, ErrUnknown) {
			t.Errorf("of no experiment: %v", err)
		}
		v, _ := a.Show(t.Context(), "e")
		if i := slices.IndexFunc(v.Verdict.Arms[1].Estimates, func(e stats.Estimate) bool { return e.Metric == stats.Score }); i < 0 {
			t.Error("no estimate of the score")
		}
	})
}

// TestWhatCounts says of each outcome what it is for an arm.
func TestWhatCounts(t *testing.T) {
	m := New(Options{Store: state.NewMemory(), Host: func(id endpoint.ID) *endpoint.Endpoint {
		ep := hosts(id)
		switch id {
		case "unlisted":
			return nil
		case "gone":
			ep.State = endpoint.Preempted
		}
		return ep
	}})
	tries := func(cs ...outcome.Class) (as []ledger.Attempt) {
		for _, c := range cs {
			as = append(as, ledger.Attempt{Endpoint: "h", Class: c})
		}
		return as
	}
	gone := func(c outcome.Class) []ledger.Attempt { return []ledger.Attempt{{Endpoint: "gone", Class: c}} }
	for name, tc := range map[string]struct {
		r                            ledger.Record
		failed, truncated, preempted bool
	}{
		"an answer":                     {ledger.Record{Status: 200, Attempts: tries(outcome.Success)}, false, false, false},
		"an answer by another host":     {ledger.Record{Status: 200, Attempts: tries(outcome.UpstreamFault, outcome.Success)}, true, false, false},
		"an error":                      {ledger.Record{Status: 502, Class: outcome.UpstreamFault, Attempts: tries(outcome.UpstreamFault)}, true, false, false},
		"the caller's mistake":          {ledger.Record{Status: 400, Class: outcome.CallerFault, Attempts: tries(outcome.CallerFault)}, false, false, false},
		"the caller left":               {ledger.Record{Status: 499, Class: outcome.ClientGone, Attempts: tries(outcome.ClientGone)}, false, false, false},
		"left after a fault":            {ledger.Record{Status: 499, Class: outcome.ClientGone, Attempts: tries(outcome.UpstreamFault, outcome.ClientGone)}, true, false, false},
		"too many requests":             {ledger.Record{Status: 429, Class: outcome.Throttled, Attempts: tries(outcome.Throttled)}, true, false, false},
		"too many, answered elsewhere":  {ledger.Record{Status: 200, Attempts: tries(outcome.Throttled, outcome.Success)}, false, false, false},
		"nobody to ask":                 {ledger.Record{Status: 503, Class: outcome.Unserved}, true, false, false},
		"broke off":                     {ledger.Record{Status: 200, Class: outcome.Truncated, Lost: "no_host", Attempts: tries(outcome.Truncated)}, true, true, false},
		"broke off and was gone on":     {ledger.Record{Status: 200, Attempts: tries(outcome.Truncated, outcome.Success)}, true, false, false},
		"its host was taken away":       {ledger.Record{Status: 200, Attempts: append(gone(outcome.Truncated), tries(outcome.Success)...)}, false, false, true},
		"lost with a host taken away":   {ledger.Record{Status: 502, Class: outcome.Severed, Attempts: gone(outcome.Severed)}, true, false, true},
		"broke off with one":            {ledger.Record{Status: 200, Class: outcome.Truncated, Lost: "no_host", Attempts: gone(outcome.Truncated)}, true, true, true},
		"an error event with one":       {ledger.Record{Status: 200, Class: outcome.Severed, Attempts: gone(outcome.Severed)}, true, false, true},
		"its host is in no list":        {ledger.Record{Status: 200, Attempts: append([]ledger.Attempt{{Endpoint: "unlisted", Class: outcome.Severed}}, tries(outcome.Success)...)}, true, false, false},
		"moved from a host that leaves": {ledger.Record{Status: 200, Attempts: tries(outcome.Moved, outcome.Success)}, false, false, true},
		"a hedge was faster":            {ledger.Record{Status: 200, Attempts: tries(outcome.Outrun, outcome.Success)}, false, false, false},
	} {
		s := seen{place: experiment.Place{Assigner: experiment.NewAssigner(trialOf().Spec, 1, nil, true)}, Observation: stats.Unknown(1, 0)}
		m.fill(&s, &tc.r)
		if s.Failed != tc.failed || s.Truncated != tc.truncated || s.Preempted != tc.preempted {
			t.Errorf("%s: failed %v, truncated %v, preempted %v", name, s.Failed, s.Truncated, s.Preempted)
		}
	}
	r := ledger.Record{Status: 200, TTFT: 3 * time.Second, TPS: 20, USD: 0.002, USDKnown: true, Output: 100, SLO: router.DefaultSLO(), Attempts: []ledger.Attempt{{Decision: router.Decision{Seq: 1, Cold: true, Use: 0.5}}}}
	s := seen{Observation: stats.Unknown(1, 0)}
	m.fill(&s, &r)
	if !s.Missed || !s.Cold || s.TTFT != 3 || s.TPS != 20 || math.Abs(s.USDPerMtok-20) > 1e-9 || s.SpentUSD != 0.002 || s.OutputTokens != 100 || s.use != 0.5 {
		t.Errorf("figures %+v", s)
	}
}

func settledOnce() (*Manager, *ledger.Record) {
	m := New(Options{Store: state.NewMemory(), Host: hosts})
	m.Configure([]Trial{trialOf()})
	m.Load(context.Background())
	_, key := m.Table().Of("m")[0].Assign([]byte("user"))
	m.waiting = make([]seen, 0, queued)
	return m, &ledger.Record{ID: "req_1", At: time.Now(), Arm: "e/canary", Unit: key, Status: 200, TTFT: time.Second, TPS: 30, Attempts: []ledger.Attempt{{Endpoint: "static:a", Decision: router.Decision{Seq: 1}}}}
}

// TestObserveAllocates takes no memory of a request's.
func TestObserveAllocates(t *testing.T) {
	m, r := settledOnce()
	if n := testing.AllocsPerRun(100, func() { m.Observe(r) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if len(m.waiting) < 100 {
		t.Errorf("%d requests wait", len(m.waiting))
	}
}

// BenchmarkObserve is what a request pays for being counted.
func BenchmarkObserve(b *testing.B) {
	m, r := settledOnce()
	b.ReportAllocs()
	for b.Loop() {
		m.Observe(r)
		if len(m.waiting) == queued {
			m.waiting = m.waiting[:0]
		}
	}
}

// An abort before the store has ever answered is refused with what to do; the control serves everything meanwhile.
func TestAbortBeforeKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &flaky{Store: state.NewMemory()}
		store.down.Store(true)
		a := startReplica(t, store, trialOf())
		if _, err := a.Apply(t.Context(), "e", experiment.Abort, ""); !errors.Is(err, ErrSilent) || !strings.Contains(err.Error(), "again when the state answers") {
			t.Errorf("%v", err)
		}
		store.down.Store(false)
		pass(5 * time.Second)
		if _, err := a.Apply(t.Context(), "e", experiment.Abort, ""); err != nil || a.canary() != 0 {
			t.Errorf("%v, canary %v", err, a.canary())
		}
		a.stop()
	})
}

// feed settles requests, whose record change makes the arm's, until the experiment is decided or there were most of them. It returns
// the highest share that the canary had.
func (w *world) feed(r *replica, most int, change func(*ledger.Record, *ledger.Attempt, string)) (highest float64) {
	for range most {
		w.n++
		arm, key := r.Table().Of("m")[0].Assign(fmt.Append(nil, "user ", w.rng.Uint64()))
		rec := &ledger.Record{
			ID: fmt.Sprint("req_", w.n), At: time.Now(), Arm: arm.Label(), Unit: key, Status: 200, Stream: true, Prompt: 100, Output: 200, USD: 0.001, USDKnown: true,
			TTFT: 300 * time.Millisecond, TPS: 30, SLO: router.DefaultSLO(), Tries: 1,
		}
		try := ledger.Attempt{Endpoint: endpoint.ID(fmt.Sprint("static:", w.rng.IntN(4))), Decision: router.Decision{Seq: 1, Use: 0.3}}
		change(rec, &try, arm.Name)
		rec.Attempts = []ledger.Attempt{try}
		r.Observe(rec)
		pass(20 * time.Millisecond)
		if w.n%50 == 0 {
			highest = max(highest, r.canary())
			if r.state() != experiment.Running {
				break
			}
		}
	}
	return highest
}

// byRequest is a trial with the usual guardrails.
func byRequest() Trial {
	tr := trialOf(func(s *experiment.Spec) {
		s.Steps = []float64{.05, .25, .5, 1}
		s.Units = []experiment.Unit{{Kind: experiment.ByRequest}}
	})
	tr.Guardrails = nil
	return tr
}

// TestQuietHarm has a canary hurt its callers in ways that no error and no first token tells of.
func TestQuietHarm(t *testing.T) {
	for name, change := range map[string]func(*ledger.Record, *ledger.Attempt, string){
		"callers leave without a token": func(r *ledger.Record, try *ledger.Attempt, arm string) {
			if arm == "canary" {
				r.Status, r.Class, r.TTFT, r.TPS, r.Output, r.Duration = 499, outcome.ClientGone, 0, 0, -1, 30*time.Second
				try.Class = outcome.ClientGone
			}
		},
		"answers in one piece take a minute": func(r *ledger.Record, _ *ledger.Attempt, arm string) {
			r.Stream, r.TTFT, r.TPS, r.Duration = false, 0, 0, time.Second
			if arm == "canary" {
				r.Duration = time.Minute
			}
		},
		"hosts are taken away from a tenth": func(r *ledger.Record, try *ledger.Attempt, arm string) {
			if r.ID[len(r.ID)-1] == '0' && arm == "canary" {
				r.Status, r.Class, r.TTFT, r.TPS, r.Output = 502, outcome.Severed, 0, 0, -1
				try.Class, try.Endpoint = outcome.Severed, "gone"
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := startReplica(t, state.NewMemory(), byRequest())
				a.mu.Lock()
				a.opt.Host = func(id endpoint.ID) *endpoint.Endpoint {
					ep := hosts(id)
					if id == "gone" {
						ep.State = endpoint.Preempted
					}
					return ep
				}
				a.mu.Unlock()
				high := newWorld(t).feed(a, 20000, change)
				v, _ := a.Show(t.Context(), "e")
				if last := v.Decisions[len(v.Decisions)-1]; high > .05 || v.State != experiment.RolledBack {
					t.Errorf("the canary got up to %v of the units and is %s: %s", high, v.State, last.Why)
				}
				a.stop()
			})
		})
	}
}

func TestMissed(t *testing.T) {
	slo := router.DefaultSLO()
	for name, tc := range map[string]struct {
		r    ledger.Record
		want bool
	}{
		"in time":                     {ledger.Record{Stream: true, TTFT: time.Second, Duration: time.Minute, SLO: slo}, false},
		"late":                        {ledger.Record{Stream: true, TTFT: 3 * time.Second, Duration: time.Minute, SLO: slo}, true},
		"left early":                  {ledger.Record{Stream: true, Class: outcome.ClientGone, Output: -1, Duration: time.Second, SLO: slo}, false},
		"left late":                   {ledger.Record{Stream: true, Class: outcome.ClientGone, Output: -1, Duration: 30 * time.Second, SLO: slo}, true},
		"left late, in the answer":    {ledger.Record{Stream: true, Class: outcome.ClientGone, TTFT: time.Second, Duration: 30 * time.Second, SLO: slo}, false},
		"failed late":                 {ledger.Record{Status: 502, Output: -1, Duration: 30 * time.Second, SLO: slo}, true},
		"whole, as fast as promised":  {ledger.Record{Status: 200, Output: 150, Duration: 11 * time.Second, SLO: slo}, false},
		"whole, slower than promised": {ledger.Record{Status: 200, Output: 150, Duration: 13 * time.Second, SLO: slo}, true},
		"the caller's mistake":        {ledger.Record{Status: 400, Class: outcome.CallerFault, Duration: time.Minute, SLO: slo}, false},
		"nothing promised":            {ledger.Record{Status: 200, Output: 150, Duration: time.Minute}, false},
	} {
		if got := missed(&tc.r); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestNameAgain: what was promoted and deleted begins anew when its name is written down again; what was out by mistake goes on.
func TestNameAgain(t *testing.T) {
	for name, tc := range map[string]struct {
		out   time.Duration
		state experiment.State
		share float64
		run   int
	}{"later": {20 * time.Minute, experiment.Running, 0.1, 2}, "a mistake": {time.Minute, experiment.Promoted, 1, 1}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := state.NewMemory()
				a, b := startReplica(t, store, trialOf()), startReplica(t, store, trialOf())
				if _, err := a.Apply(t.Context(), "e", experiment.Promote, ""); err != nil {
					t.Fatal(err)
				}
				pass(5 * time.Second)
				a.Configure(nil)
				b.Configure(nil)
				pass(tc.out)
				a.Configure([]Trial{trialOf()})
				pass(5 * time.Second)
				b.Configure([]Trial{trialOf()})
				pass(5 * time.Second)
				for _, r := range []*replica{a, b} {
					if v, _ := r.Show(t.Context(), "e"); v.State != tc.state || v.Arms[1].Share != tc.share || v.Run != tc.run {
						t.Errorf("run %d is %s with %v of the units, want run %d %s with %v", v.Run, v.State, v.Arms[1].Share, tc.run, tc.state, tc.share)
					}
				}
				a.stop()
				b.stop()
			})
		})
	}
}

// TestFeedbackOnce: a request has one score, by whichever name it is given, and none if it chose its arm.
func TestFeedbackOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startReplica(t, state.NewMemory(), byRequest())
		defer a.stop()
		settle := func(id string, forced bool) {
			arm, key := a.Table().Of("m")[0].Assign([]byte(id))
			a.Observe(&ledger.Record{ID: id, At: time.Now(), Arm: arm.Label(), Unit: key, Status: 200, Forced: forced, Tries: 1, Attempts: []ledger.Attempt{{Endpoint: "static:1"}}})
		}
		settle("drawn", false)
		settle("another", false)
		settle("forced", true)
		good, bad := 1.0, 0.0
		for _, tc := range []struct {
			f  Feedback
			ok bool
		}{
			{Feedback{RequestID: "drawn", Score: &good}, true},
			{Feedback{RequestID: "drawn", Score: &good}, true}, // sent twice
			{Feedback{RequestID: "drawn", Score: &bad}, false},
			{Feedback{Unit: "drawn", Score: &bad}, false},
			{Feedback{Unit: "another", Score: &good}, true},
			{Feedback{RequestID: "another", Score: &bad}, false},
			{Feedback{Unit: "made up", Score: &good}, false}, // or served elsewhere, which is asked then
			{Feedback{RequestID: "made up", Score: &good}, false},
			{Feedback{RequestID: "forced", Score: &good}, false},
			{Feedback{Unit: "forced", Score: &good}, false},
		} {
			if _, err := a.Feedback(t.Context(), "e", tc.f); (err == nil) != tc.ok || err != nil && !errors.Is(err, ErrFeedback) {
				t.Errorf("%+v with %v: %v", tc.f, *tc.f.Score, err)
			}
		}
		settle("drawn", false) // a caller who names two requests alike
		if _, err := a.Feedback(t.Context(), "e", Feedback{RequestID: "drawn", Score: &bad}); !errors.Is(err, ErrFeedback) {
			t.Errorf("another score of one name: %v", err)
		}
		v, _ := a.Show(t.Context(), "e")
		if n := v.Verdict.Seq; n != 6 {
			t.Errorf("%d requests and scores were counted, want 4 and 2", n)
		}
	})
}

// TestParts: replicas judge by parts of alpha that are 1 together, also when some have gone or do not reach the store.
func TestParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.NewMemory()
		var rs []*replica
		for range 4 {
			rs = append(rs, startReplica(t, store, trialOf()))
		}
		pass(5 * time.Second)
		parts := func(rs []*replica) map[float64]int {
			got := map[float64]int{}
			for _, r := range rs {
				r.mu.Lock()
				got[r.slot.part()]++
				r.mu.Unlock()
			}
			return got
		}
		if got := parts(rs); got[0.5] != 1 || got[0.5/3] != 3 {
			t.Errorf("parts of alpha: %v, want one half for who decides, and the other shared by three", got)
		}
		rs[0].stop() // who decided: what it has spent is not given away again
		rs = rs[1:]
		pass(time.Minute)
		if got := parts(rs); got[0.5] != 1 || got[0.5/3] != 2 {
			t.Errorf("parts of alpha when one has gone: %v, want one half and two sixths", got)
		}
		for _, r := range rs {
			r.stop()
		}
	})
}

// TestPartFromTheStart: who starts beside others judges by its part from the first look on, and by a small one while it cannot know of them.
func TestPartFromTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.NewMemory()
		var rs []*replica
		for range 3 {
			rs = append(rs, startReplica(t, store, trialOf()))
		}
		pass(5 * time.Second)
		part := func(m *Manager) float64 {
			m.mu.Lock()
			defer m.mu.Unlock()
			return m.slot.part()
		}
		m := New(Options{Store: store, Host: hosts})
		m.Configure([]Trial{trialOf()})
		if got := part(m); !(got <= 0.5/3) {
			t.Errorf("before it was loaded a replica has %v of alpha", got)
		}
		m.Load(t.Context())
		if got := part(m); got != 0.5/3 {
			t.Errorf("the fourth replica has %v of alpha at its start, want a sixth", got)
		}
		for _, r := range rs {
			r.stop()
		}
	})
}

// TestShownDecides: what is shown is what decides: the bounds of who does, at every replica, and what keeps a step back.
func TestShownDecides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.NewMemory()
		gone := func(name string) (int, bool) {
			if strings.HasSuffix(name, "canary") {
				return 0, true
			}
			return 4, true
		}
		a, b := startWith(t, Options{Store: store, Pool: gone}, trialOf()), startWith(t, Options{Store: store, Pool: gone}, trialOf())
		w := newWorld(t)
		for range 1500 {
			w.request(a, b)
			pass(20 * time.Millisecond)
		}
		pass(time.Minute)
		a.mu.Lock()
		needs := a.trials[0].judged.Arms[1].Estimates[0].Needs
		a.mu.Unlock()
		for i, r := range []*replica{a, b} {
			v, err := r.Show(t.Context(), "e")
			if err != nil || v.Decides != (i == 0) {
				t.Fatalf("replica %d decides: %v, %v", i, v.Decides, err)
			}
			if is := v.Verdict.Arms[1].Estimates[0].Needs; is != needs {
				t.Errorf("replica %d shows a bound of %v, and what decides is %v", i, is, needs)
			}
			if is := r.Figures()[0].Verdict.Arms[1].Estimates[0].Needs; is != needs {
				t.Errorf("replica %d measures a bound of %v, and what decides is %v", i, is, needs)
			}
			if v.Step != 1 || v.Waits != "hosts of canary: there is none now" {
				t.Errorf("replica %d is at step %d, and waits for %q", i, v.Step, v.Waits)
			}
			rep, err := r.Report(t.Context(), "e")
			if err != nil || rep.Alpha != 0.05 || rep.Verdict.Alpha != 0.025 {
				t.Errorf("replica %d reports alpha %v, %v of it: %v", i, rep.Alpha, rep.Verdict.Alpha, err)
			}
		}
		a.stop()
		b.stop()
	})
}
