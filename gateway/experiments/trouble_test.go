package experiments

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"headrace/gateway/ledger"
	"headrace/gateway/state"
	"headrace/router"
	"headrace/router/experiment"
	"headrace/router/experiment/stats"
	"headrace/router/outcome"
)

var (
	troubles     = flag.Int("troubles", 1, "TestAnyTrouble: rounds")
	troublesSeed = flag.Uint64("troubles.seed", 8, "its seed, 0 for another one each time")
)

// lossy is a store that a replica may be cut off from, and in which documents may be as they were some time ago.
type lossy struct {
	*state.Memory
	*line
	*shelf
	state.Census
}

// line is how a replica reaches the store.
type line struct {
	down  atomic.Bool
	shaky atomic.Bool   // three calls of ten fail
	calls atomic.Uint64 // mixed, they say which
}

func (l *line) fails() bool {
	n := l.calls.Add(0x9e3779b97f4a7c15)
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	return l.down.Load() || l.shaky.Load() && (n>>33)%10 < 3
}

func (l lossy) Load(ctx context.Context, kind string) (map[string]state.Doc, error) {
	if l.fails() {
		return nil, errDown
	}
	return l.Memory.Load(ctx, kind)
}

func (l lossy) Put(ctx context.Context, kind, name string, old state.Version, body []byte) (state.Version, error) {
	if l.fails() {
		return 0, errDown
	}
	return l.Memory.Put(ctx, kind, name, old, body)
}

func (l lossy) Delete(ctx context.Context, kind, name string, old state.Version) error {
	if l.fails() {
		return errDown
	}
	return l.Memory.Delete(ctx, kind, name, old)
}

func (l lossy) Now(context.Context, string) (time.Time, error) {
	if l.fails() {
		return time.Time{}, errDown
	}
	return time.Now(), nil
}

var kindsKept = []string{kindDocs, kindReplica, kindPast, statsKind(0), statsKind(1), statsKind(2), statsKind(3), statsKind(4)} //nolint:gochecknoglobals // a table

// trouble is three replicas to which everything happens.
type trouble struct {
	t      *testing.T
	rng    *rand.Rand
	store  *state.Memory
	cut    [3]*line
	shelf  [3]shelf // directories, which outlive processes
	census [3]state.Census
	rs     [3]*replica
	spec   [3]int // which config each has; -1 for none
	n      int
	asked  map[int]int       // requests by run
	was    map[string]string // who had which arm at which replica, by run
	kept   map[string]map[string]state.Doc
	told   []string
	badArm string
	ended  string // run that was aborted last
	by     experiment.Unit
	skew   [3]time.Duration
}

func (x *trouble) say(format string, a ...any) {
	x.told = append(x.told, time.Now().Format(time.TimeOnly)+" "+fmt.Sprintf(format, a...))
}

func (x *trouble) fail(format string, a ...any) {
	x.t.Helper()
	for _, l := range x.told {
		x.t.Log(l)
	}
	x.t.Fatalf(format, a...)
}

func (x *trouble) config(k int) []Trial {
	if k < 0 {
		return nil
	}
	tr := failuresOnly(func(s *experiment.Spec) {
		s.Arms = []experiment.Arm{{Name: "control"}, {Name: "a", Share: 0.5}, {Name: "b", Share: 0.5}}
		s.Units = []experiment.Unit{x.by}
		s.Steps, s.MinTime, s.MinUnits = []float64{0.2, 0.4, 0.6, 1}, 5*time.Second, 10
		switch k {
		case 1:
			s.Steps = []float64{0.2, 0.3, 0.5, 0.9}
		case 2:
			s.Arms[1].Policy = "latency"
		case 3:
			s.Arms = append(s.Arms, experiment.Arm{Name: "c", Share: 0.5})
		case 4:
			s.Wanted = experiment.WantPause
		}
	})
	if k == 5 {
		tr.Guardrails = []stats.Guardrail{{Metric: stats.Failed, Margin: 0.01}}
	}
	return []Trial{tr}
}

func (x *trouble) start(i int) {
	x.rs[i] = startWith(x.t, Options{Store: lossy{x.store, x.cut[i], &x.shelf[i], x.census[i]}, Look: time.Second, Now: func() time.Time { return time.Now().Add(x.skew[i]) }}, x.config(x.spec[i])...)
	for key := range x.was {
		if key[0] == byte('0'+i) {
			delete(x.was, key)
		}
	}
}

// serve has a user served by a replica.
func (x *trouble) serve(i int) {
	r := x.rs[i]
	as := r.Table().Of("m")
	if len(as) == 0 {
		return
	}
	a := as[0]
	user := fmt.Sprint("user ", x.rng.IntN(300))
	arm, key := a.Assign([]byte(user))
	run := int(a.Lot >> 6)
	x.n++
	rec := &ledger.Record{
		ID: fmt.Sprint("t_", x.n), At: time.Now(), Arm: arm.Label(), Unit: key, Lot: a.Lot, Status: 200, Stream: true, Prompt: 100, Output: 200,
		TTFT: 300 * time.Millisecond, TPS: 30, SLO: router.DefaultSLO(), Tries: 1, Attempts: []ledger.Attempt{{Endpoint: "static:1", Decision: router.Decision{Seq: 1, Use: 0.3}}},
	}
	if arm.Name == x.badArm && x.rng.IntN(2) == 0 {
		rec.Attempts[0].Class, rec.Class, rec.Status, rec.TTFT, rec.TPS = outcome.UpstreamFault, outcome.UpstreamFault, 502, 0, 0
	}
	x.asked[run]++
	if a.Recorded {
		where := fmt.Sprint(i, " ", a.Spec.Digest(), run, user)
		was := x.was[where]
		r.mu.Lock()
		_, k := r.trials[0].Spec.Arm(was)
		dropped := k >= 0 && r.trials[0].doc.Dropped[k]
		r.mu.Unlock()
		if was != "" && was != "control" && was != arm.Name && !dropped {
			x.fail("%s was in %s, and is in %s of run %d at %d", user, was, arm.Name, run, i)
		}
		x.was[where] = arm.Name
	}
	rec.At = rec.At.Add(x.skew[i])
	r.Observe(rec)
}

func (x *trouble) keep() {
	x.kept = map[string]map[string]state.Doc{}
	for _, kind := range kindsKept {
		docs, err := x.store.Load(x.t.Context(), kind)
		if err != nil {
			x.t.Fatal(err)
		}
		x.kept[kind] = maps.Clone(docs)
	}
}

// lose has documents be what they were when they were kept.
func (x *trouble) lose() {
	for _, kind := range kindsKept {
		docs, err := x.store.Load(x.t.Context(), kind)
		if err != nil {
			x.t.Fatal(err)
		}
		for name, d := range docs {
			was, had := x.kept[kind][name]
			if had && was.Version == d.Version {
				continue
			}
			if had {
				_, err = x.store.Put(x.t.Context(), kind, name, d.Version, was.Body)
			} else {
				err = x.store.Delete(x.t.Context(), kind, name, d.Version)
			}
			if err != nil {
				x.t.Fatal(err)
			}
		}
	}
}

func (x *trouble) happen() {
	i := x.rng.IntN(3)
	r := x.rs[i]
	switch x.rng.IntN(16) {
	case 0:
		x.cut[i].down.Store(true)
		x.say("%d is cut off", i)
	case 1, 2:
		x.cut[i].down.Store(false)
		x.cut[i].shaky.Store(x.rng.IntN(3) == 0)
		x.say("%d is not cut off, shaky %v", i, x.cut[i].shaky.Load())
	case 3:
		x.say("%d restarts", i)
		r.stop()
		x.start(i)
	case 4:
		x.say("%d crashes", i)
		was := x.cut[i].down.Swap(true)
		r.stop()
		x.cut[i] = &line{}
		x.cut[i].down.Store(was)
		x.cut[i].shaky.Store(x.rng.IntN(2) == 0)
		x.start(i)
	case 5, 6:
		x.spec[i] = x.rng.IntN(7) - 1
		x.say("%d has config %d", i, x.spec[i])
		r.Configure(x.config(x.spec[i]))
	case 7, 8:
		c := []experiment.Command{experiment.Start, experiment.Pause, experiment.Resume, experiment.Promote, experiment.Abort, experiment.Start, experiment.Resume}[x.rng.IntN(7)]
		arm := ""
		if c == experiment.Promote {
			arm = []string{"a", "b"}[x.rng.IntN(2)]
		}
		v, err := r.Apply(x.t.Context(), "e", c, arm)
		x.say("%d is told to %s: %s, %v", i, c, v.State, err)
		if c == experiment.Abort && err == nil {
			if x.ended = fmt.Sprint(r.trials[0].Spec.Digest(), v.Run); v.Arms[0].Share != 1 {
				x.fail("aborted, with %v", v.Arms)
			}
		}
	case 9:
		x.keep()
		x.say("kept")
	case 10:
		if x.kept != nil && x.rng.IntN(3) == 0 {
			x.say("lost")
			x.lose()
			clear(x.was)
			x.ended = ""
		}
	case 11:
		d := time.Duration(x.rng.IntN(800)) * time.Second
		x.say("%s pass", d)
		pass(d)
	case 12:
		x.badArm = []string{"", "a", "b"}[x.rng.IntN(3)]
		x.say("%q is bad", x.badArm)
	case 13:
		r.List(x.t.Context())
		_, _ = r.Report(x.t.Context(), "e")
		r.Figures()
	default:
		n := x.rng.IntN(300)
		for range n {
			x.serve(x.rng.IntN(3))
			pass(20 * time.Millisecond)
		}
	}
	x.check()
}

// check holds what must hold at any time.
func (x *trouble) check() {
	synctest.Wait()
	for i, r := range x.rs {
		r.mu.Lock()
		for _, t := range r.trials {
			if t.stats != nil {
				if seq := t.stats.Verdict().Seq; int(seq) > x.asked[t.run] {
					r.mu.Unlock()
					x.fail("%d counts %d requests in run %d, of %d", i, seq, t.run, x.asked[t.run])
				}
			}
			if err := t.doc.Check(); t.known && err != nil {
				r.mu.Unlock()
				x.fail("%d has a document that is wrong: %v", i, err)
			}
		}
		r.mu.Unlock()
	}
}

// TestAnyTrouble: whatever happens, no request is counted twice, nobody leaves his arm at one gateway but when it is ended, what was aborted is
// not tried again in its run, and when it is over all replicas have one document, and one of them decides.
func TestAnyTrouble(t *testing.T) {
	t.Parallel()
	seed := *troublesSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	for round := range uint64(*troubles) { //nolint:gosec // not negative
		synctest.Test(t, func(t *testing.T) {
			x := &trouble{t: t, rng: rand.New(rand.NewPCG(seed, round)), store: state.NewMemory(), asked: map[int]int{}, was: map[string]string{}}
			x.say("round %d", round)
			x.by.Kind = []experiment.UnitKind{experiment.ByUser, experiment.ByRequest}[round%2]
			x.skew = [3]time.Duration{0, time.Duration(x.rng.IntN(7200)-3600) * time.Second, time.Duration(x.rng.IntN(7200)-3600) * time.Second}
			for i := range x.rs {
				x.cut[i], x.census[i] = &line{}, state.NewFiles(t.TempDir(), nil).Census
				x.start(i)
			}
			for range 60 {
				x.happen()
			}
			for i, r := range x.rs {
				x.cut[i].down.Store(false)
				x.cut[i].shaky.Store(false)
				x.spec[i] = 0
				r.Configure(x.config(0))
			}
			x.say("over")
			pass(time.Minute)
			x.check()
			var docs []experiment.Doc
			for _, r := range x.rs {
				r.mu.Lock()
				tr := r.trials[0]
				docs = append(docs, tr.doc)
				x.say("known %v, foreign %v, ahead %v, place %d", tr.known, tr.foreign, tr.ahead, r.slot.number)
				r.mu.Unlock()
				v, _ := r.Show(t.Context(), "e")
				x.say("%s: run %d %s, %v, problem %q, leads %v", v.Replica, v.Run, v.State, v.Arms, v.Problem, v.Decides)
				if v.Problem != "" {
					x.fail("it has a problem: %s", v.Problem)
				}
			}
			if d := docs[0]; d.State.Tries() && fmt.Sprint(d.Digest, d.Run) == x.ended {
				x.fail("it was aborted in run %d, and is %s", d.Run, d.State)
			}
			for _, d := range docs[1:] {
				if d.Run != docs[0].Run || d.State != docs[0].State || d.Decisions != docs[0].Decisions || !slices.Equal(d.Shares, docs[0].Shares) {
					x.fail("run %d %s %v and run %d %s %v", docs[0].Run, docs[0].State, docs[0].Shares, d.Run, d.State, d.Shares)
				}
			}
			leads := 0
			for _, r := range x.rs {
				if v, _ := r.Show(t.Context(), "e"); v.Decides {
					leads++
				}
			}
			if leads != 1 {
				x.fail("%d replicas decide", leads)
			}
			for _, r := range x.rs {
				r.stop()
			}
		})
		if t.Failed() {
			t.Fatalf("round %d: go test -run TestAnyTrouble -troubles %d -troubles.seed %d", round, round+1, seed)
		}
	}
}
