package health_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"headrace/router/health"
	"headrace/router/outcome"
)

// moves are the transitions that there have been, as from>to and how often, in order of their words.
func (r rig) moves() []string {
	out := []string{}
	for _, t := range r.Transitions(nil) {
		if t.N > 0 {
			out = append(out, fmt.Sprintf("%s>%s %d", t.From, t.To, t.N))
		}
	}
	slices.Sort(out)
	return out
}

// TestTransitions leads a breaker every way there is, and counts each.
func TestTransitions(t *testing.T) {
	fault := func(r rig) { r.end(health.Buggy); r.end(health.Buggy) }
	for name, tc := range map[string]struct {
		o    health.Options
		do   func(r rig)
		want []string
	}{
		"nothing happens":                   {byProbe, func(r rig) { r.end(health.Well); r.end(health.Buggy); r.end(health.Well) }, []string{}},
		"it opens":                          {byProbe, fault, []string{"closed>open 1"}},
		"its test is due, and nobody looks": {byProbe, func(r rig) { fault(r); r.due() }, []string{"closed>open 1", "open>probing 1"}},
		"tests fail twice, and one goes well": {byProbe, func(r rig) {
			fault(r)
			for _, c := range []outcome.Class{outcome.UpstreamFault, outcome.UpstreamFault, outcome.Success} {
				r.due()
				r.probed(c)
			}
		}, []string{"closed>open 1", "open>probing 3", "probing>closed 1", "probing>open 2"}},
		"a test says nothing": {byProbe, func(r rig) { fault(r); r.due(); r.probed(outcome.NotReady) }, []string{"closed>open 1", "open>probing 1", "probing>open 1"}},
		"a caller's request is the test, and fails": {tried, func(r rig) {
			fault(r)
			r.due()
			r.end(health.Buggy)
		}, []string{"closed>open 1", "open>probing 1", "probing>open 1"}},
		"a caller's request is the test, and goes well": {tried, func(r rig) {
			fault(r)
			r.due()
			r.end(health.Well)
		}, []string{"closed>open 1", "open>probing 1", "probing>closed 1"}},
		"a request that is let in all the same goes well": {byProbe, func(r rig) {
			fault(r)
			tk, _ := r.Force()
			tk.Succeeded(r.now())
		}, []string{"closed>open 1", "open>closed 1"}},
		"its control plane takes it away and has it again": {byProbe, func(r rig) {
			r.Preempt()
			r.Preempt()
			r.Returned()
			r.probed(outcome.Success)
		}, []string{"closed>preempted 1", "preempted>probing 1", "probing>closed 1"}},
		"it is taken away while it is open": {byProbe, func(r rig) {
			fault(r)
			r.Preempt()
		}, []string{"closed>open 1", "open>preempted 1"}},
		"it is taken away while its test is due": {byProbe, func(r rig) {
			fault(r)
			r.due()
			r.Preempt()
		}, []string{"closed>open 1", "open>probing 1", "probing>preempted 1"}},
		"its streams break together": {byProbe, func(r rig) {
			a, b := r.begun(), r.begun()
			a.Ended(health.Cut)
			b.Ended(health.Cut)
		}, []string{"closed>open 1", "open>preempted 1"}},
		"it is suspected, and there": {byProbe, func(r rig) {
			r.Suspect()
			r.probed(outcome.Success)
		}, []string{"closed>suspected 1", "suspected>closed 1"}},
		"it is suspected, and gone": {byProbe, func(r rig) {
			r.Suspect()
			r.probed(outcome.DialFailed)
		}, []string{"closed>suspected 1", "suspected>open 1"}},
		"another replica has lost it, and then it is taken away": {byProbe, func(r rig) {
			r.Heard(health.Lost, false, time.Time{})
			r.Heard(health.Preempted, true, time.Time{})
			r.Preempt()
		}, []string{"closed>suspected 1", "suspected>preempted 1"}},
		"word comes that it is well": {byProbe, func(r rig) {
			fault(r)
			r.Heard(health.Recovered, false, time.Time{})
		}, []string{"closed>open 1", "open>probing 1"}},
		"it asks for a pause": {byProbe, func(r rig) { r.CoolDown(r.now().Add(time.Minute), "rate limited") }, []string{}},
	} {
		t.Run(name, func(t *testing.T) {
			r := rigged(t, tc.o, oneHost)
			tc.do(r)
			if got := r.moves(); !slices.Equal(got, tc.want) {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}

// TestTransitionsThatAreTold has those of every day there before they happen, and no others.
func TestTransitionsThatAreTold(t *testing.T) {
	r := rigged(t, byProbe, oneHost)
	want := []health.Transition{
		{From: "closed", To: "open"},
		{From: "closed", To: "preempted"},
		{From: "open", To: "probing"},
		{From: "probing", To: "closed"},
		{From: "probing", To: "open"},
		{From: "preempted", To: "probing"},
	}
	if got := r.Transitions(nil); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	r.Suspect()
	want = slices.Insert(want, 1, health.Transition{From: "closed", To: "suspected", N: 1})
	if got := r.Transitions(nil); !slices.Equal(got, want) {
		t.Errorf("after it was suspected %v, want %v", got, want)
	}
}

// TestTransitionsLeadToTheState lets all sorts of things happen to breakers: whatever it was, the transitions lead from closed to the state
// that it shows, and none leads where it begins.
func TestTransitionsLeadToTheState(t *testing.T) {
	seed := uint64(time.Now().UnixNano()) //nolint:gosec // any will do
	t.Logf("seed %d", seed)
	dice := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // no secret
	seen := map[string]bool{}
	for range 200 {
		o := []health.Options{tried, byProbe}[dice.IntN(2)]
		r := rigged(t, o, health.Kind{Told: dice.IntN(2) == 0, Many: dice.IntN(4) == 0, Free: dice.IntN(2) == 0})
		var held []health.Ticket
		for range 60 {
			switch dice.IntN(12) {
			case 0, 1:
				if tk, ok := r.Allow(); ok {
					held = append(held, tk)
				}
			case 2:
				if tk, ok := r.Force(); ok {
					held = append(held, tk)
				}
			case 3, 4, 5:
				if len(held) > 0 {
					i := dice.IntN(len(held))
					held[i].Ended(health.Evidence(dice.IntN(int(health.Cut) + 1))) //nolint:gosec // a handful
				}
			case 6:
				if len(held) > 0 {
					i := dice.IntN(len(held))
					held[i].Succeeded(r.now())
				}
			case 7, 8:
				if r.Probe(r.now()) {
					r.Probed([]outcome.Class{outcome.Success, outcome.DialFailed, outcome.UpstreamFault, outcome.NotReady}[dice.IntN(4)])
				}
			case 9:
				r.pass(time.Duration(dice.IntN(5000)) * time.Millisecond)
			case 10:
				[]func(){func() { r.Preempt() }, r.Returned, func() { r.Suspect() }}[dice.IntN(3)]()
			case 11:
				r.Heard(health.Change(dice.IntN(int(health.Cleared)+1)), dice.IntN(2) == 0, time.Time{}) //nolint:gosec // a handful
			}
			balance := map[string]int64{"closed": 1}
			for _, m := range r.Transitions(nil) {
				if m.From == m.To || m.N < 0 {
					t.Fatalf("%v", m)
				}
				balance[m.From] -= m.N
				balance[m.To] += m.N
				if m.N > 0 {
					seen[m.From+">"+m.To] = true
				}
			}
			for s, n := range balance {
				if want := s == r.state(); (n == 1) != want || !want && n != 0 {
					t.Fatalf("transitions %v lead %d times to %s, and it is %s", r.Transitions(nil), n, s, r.state())
				}
			}
		}
	}
	if len(seen) < 10 {
		t.Errorf("so few ways were gone: %v", seen)
	}
}
