package router

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"headrace/router/affinity"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

func rooted(id, served, root string) endpoint.Endpoint {
	ep := hourly(id, 1, 10, served)
	if root != "" {
		ep.Served[0].Card = json.RawMessage(`{"id":"` + served + `","root":"` + root + `"}`)
	}
	return ep
}

func asleepServing(id, served string) endpoint.Endpoint {
	ep := serverless(id, 0.001, endpoint.Cold)
	ep.Served = []endpoint.Served{{Name: served}}
	return ep
}

// Only a host that serves the same model, goes on with unfinished answers, is up and has not failed the request may continue it.
func TestContinuationGoesToItsKind(t *testing.T) {
	rules := []ModelRule{{Name: "m", Serves: []string{"*"}}}
	for name, tc := range map[string]struct {
		eps     []endpoint.Endpoint
		proven  []endpoint.ID
		tried   []endpoint.ID
		root    string // of a's card
		back    bool
		want    endpoint.ID
		verdict map[endpoint.ID]verdict
	}{
		"a proven host of the same name": {
			eps: []endpoint.Endpoint{rooted("a", "x", ""), rooted("b", "x", ""), rooted("c", "x", "")}, proven: []endpoint.ID{"a", "c"}, want: "c",
			verdict: map[endpoint.ID]verdict{"a": tried, "b": noPrefill},
		},
		"the same root under another name": {
			eps: []endpoint.Endpoint{rooted("a", "x", "org/x"), rooted("b", "y", "org/x"), rooted("c", "x", "org/other")}, root: "org/x",
			proven: []endpoint.ID{"a", "b", "c"}, want: "b", verdict: map[endpoint.ID]verdict{"c": otherKind},
		},
		"the same name where one root is unknown": {
			eps: []endpoint.Endpoint{rooted("a", "x", "org/x"), rooted("b", "y", ""), rooted("c", "x", "")}, root: "org/x",
			proven: []endpoint.ID{"a", "b", "c"}, want: "c", verdict: map[endpoint.ID]verdict{"b": otherKind},
		},
		"nobody proven": {eps: []endpoint.Endpoint{rooted("a", "x", ""), rooted("b", "x", "")}, proven: []endpoint.ID{"a"}},
		"never a host that was tried, be it the last": {
			eps: []endpoint.Endpoint{rooted("a", "x", ""), rooted("b", "x", "")}, proven: []endpoint.ID{"a", "b"}, tried: []endpoint.ID{"b"},
		},
		"one that failed it before, when it has waited for that": {
			eps: []endpoint.Endpoint{rooted("a", "x", ""), rooted("b", "x", "")}, proven: []endpoint.ID{"a", "b"}, tried: []endpoint.ID{"a", "b"}, back: true, want: "a or b",
		},
		"one that did not, all the same": {
			eps: []endpoint.Endpoint{rooted("a", "x", ""), rooted("b", "x", ""), rooted("c", "x", "")}, proven: []endpoint.ID{"a", "b", "c"}, tried: []endpoint.ID{"a", "b"},
			back: true, want: "c",
		},
		"never a worker that must start": {
			eps: []endpoint.Endpoint{rooted("a", "x", ""), asleepServing("s", "x")}, proven: []endpoint.ID{"a", "s"},
			verdict: map[endpoint.ID]verdict{"s": asleep},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := brain(newClock(), 1)
			r.Update(tc.eps, rules)
			for _, id := range tc.proven {
				r.SetPrefill(id, r.Snapshot().Endpoint(id).Served[0].Name, Prefill{Known: true, OK: true})
			}
			q := &Request{Model: "m", Tried: tc.tried, Continue: &Continuation{From: "a", Served: "x", Root: tc.root, Back: tc.back}}
			x, err := r.Explain(q)
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range x.Candidate {
				if want, ok := tc.verdict[v.Endpoint]; ok && v.Verdict != want.String() {
					t.Errorf("%s: %s, want %s", v.Endpoint, v.Verdict, want)
				}
			}
			var l Lease
			err = r.Pick(q, &l)
			if tc.want == "" {
				if u, ok := errors.AsType[*UnavailableError](err); !ok || u.Cause != NotContinuable {
					t.Errorf("went to %v, error %v; want it refused", l.Endpoint, err)
				}
				return
			}
			if err != nil || !strings.Contains(string(tc.want), string(l.Endpoint.ID)) {
				t.Fatalf("went to %v, error %v; want %s", l.Endpoint, err, tc.want)
			}
			if !l.Prefill().OK || l.Prefill().Trims {
				t.Errorf("the lease says %+v", l.Prefill())
			}
		})
	}
}

// What a self-test found outlives snapshots, but not the engine that was tested.
func TestPrefillIsKeptAndForgotten(t *testing.T) {
	a, b := rooted("a", "m", ""), rooted("b", "m", "")
	a.Hardware.Machine = "1"
	r := brain(newClock(), 1, a, b)
	if r.Snapshot().Continuable("m") {
		t.Error("continuable before any self-test")
	}
	r.SetPrefill("a", "m", Prefill{Known: true, OK: true, Trims: true})
	r.Update([]endpoint.Endpoint{a, b}, nil)
	if !r.Snapshot().Continuable("m") || r.Snapshot().Continuable("n") {
		t.Error("what was found did not outlive the snapshot")
	}
	for what, change := range map[string]func(*endpoint.Endpoint){
		"preempted":          func(ep *endpoint.Endpoint) { ep.State = endpoint.Preempted },
		"on another machine": func(ep *endpoint.Endpoint) { ep.Hardware.Machine = "2" },
		"started anew":       func(ep *endpoint.Endpoint) { ep.State = endpoint.Starting },
	} {
		r.SetPrefill("a", "m", Prefill{Known: true, OK: true})
		changed := a
		change(&changed)
		r.Update([]endpoint.Endpoint{changed, b}, nil)
		if r.Snapshot().Continuable("m") {
			t.Errorf("%s: still continuable", what)
		}
		r.Update([]endpoint.Endpoint{a, b}, nil)
		if r.Snapshot().Continuable("m") {
			t.Errorf("%s: continuable again, untested", what)
		}
	}
	r.SetPrefill("a", "m", Prefill{Known: true, OK: true})
	r.SetPrefill("a", "m", Prefill{Known: true})
	if r.Snapshot().Continuable("m") {
		t.Error("still continuable after a self-test that failed")
	}
}

// A process that ended and was started again is seen by the network alone where no control plane tells of it: nothing that was true of
// the one before is believed of it, but what was told.
func TestStartedAnewUnseen(t *testing.T) {
	for name, tc := range map[string]struct {
		class  outcome.Class
		times  int
		p      Prefill
		forget bool
	}{
		"refused":             {outcome.DialFailed, 1, Prefill{Known: true, OK: true}, true},
		"a stream broke off":  {outcome.Truncated, 1, Prefill{Known: true, OK: true}, true},
		"answered badly":      {outcome.UpstreamFault, 2, Prefill{Known: true, OK: true}, false},
		"as its operator has": {outcome.DialFailed, 1, Prefill{Known: true, OK: true, Told: true}, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClock()
			eps := []endpoint.Endpoint{spot("a", "", "", "")}
			for i := range wholePool { // so that hosts are found by what their caches are called
				eps = append(eps, spot(fmt.Sprintf("b%d", i), "", "", ""))
			}
			r := probing(c, eps...)
			r.SetPrefill("a", "m", tc.p)
			h := r.snap.Load().byID["a"].host
			before := h.cache.Load()
			for range tc.times {
				leaseAt(t, r, "a").Done(Result{Class: tc.class})
			}
			c.seconds(5)
			p := r.Probes(c.now(), nil)
			if len(p) != 1 || p[0].SelfTest {
				t.Fatalf("due: %+v", p)
			}
			r.Probed("a", outcome.Success)
			if got := r.breakerOf("a"); got != "closed" {
				t.Fatalf("breaker %s", got)
			}
			tests := r.Probes(c.now(), nil)
			told := tc.p.Told
			if again := len(tests) == 1 && tests[0].SelfTest; again != (tc.forget && !told) || h.prefill("m").OK == again {
				t.Errorf("tests due: %+v, known %+v", tests, h.prefill("m"))
			}
			if renamed := h.cache.Load() != before; renamed != (tc.forget || told) {
				t.Errorf("its cache is forgotten: %t", renamed)
			}
			m := r.snap.Load().models["m"]
			if holders := *m.holders.Load(); len(holders) != len(eps) || holders[affinity.Host(h.cache.Load())].host != h {
				t.Error("its cache is not found")
			}
			if want := int32(len(eps)); m.prefills.Load()+m.untested.Load() != want {
				t.Errorf("%d proven, %d untested of %d", m.prefills.Load(), m.untested.Load(), want)
			}
		})
	}
}

// What a self-test has found of an engine that has ended since, or of what is told since, is not kept.
func TestTestedInVain(t *testing.T) {
	a, b := spot("a", "", "", ""), spot("b", "", "", "")
	for name, tc := range map[string]struct {
		meanwhile func(r *Router, c *clock)
		want      bool
	}{
		"nothing": {func(*Router, *clock) {}, true},
		"ended, unseen by its provider": {func(r *Router, c *clock) {
			leaseAt(t, r, "a").Done(Result{Class: outcome.DialFailed})
			r.Probed("a", outcome.Unserved)
			c.seconds(5)
			if got := due(r, c); len(got) == 0 || got[0] != "a" {
				t.Fatalf("due: %v", got)
			}
			r.Probed("a", outcome.Success)
		}, false},
		"started anew": {func(r *Router, _ *clock) {
			for _, s := range []endpoint.State{endpoint.Starting, endpoint.Ready} {
				again := a
				again.State = s
				r.Update([]endpoint.Endpoint{again, b}, nil)
			}
		}, false},
		"told":             {func(r *Router, _ *clock) { r.SetPrefill("a", "m", Prefill{Known: true, Told: true}) }, false},
		"gone":             {func(r *Router, _ *clock) { r.Update([]endpoint.Endpoint{b}, nil) }, false},
		"another model's":  {func(r *Router, _ *clock) { r.Update([]endpoint.Endpoint{hourly("a", 1, 10, "other"), b}, nil) }, false},
		"listed once more": {func(r *Router, _ *clock) { r.Update([]endpoint.Endpoint{a, b}, nil) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClock()
			r := New(Options{Now: c.now, Prior: tell, Seed: 1, Probes: true})
			r.Update([]endpoint.Endpoint{a, b}, nil)
			tests := r.Probes(c.now(), nil)
			if len(tests) != 2 || !tests[0].SelfTest || !r.Wants(&tests[0]) {
				t.Fatalf("due: %+v", tests)
			}
			tc.meanwhile(r, c)
			if got := r.Wants(&tests[0]); got != tc.want {
				t.Errorf("wanted: %t", got)
			}
			if got := r.Tested(&tests[0], Prefill{Known: true, OK: true}); got != tc.want || r.Snapshot().Continuable("m") != tc.want {
				t.Errorf("kept: %t, continuable: %t", got, r.Snapshot().Continuable("m"))
			}
			if tc.want && r.Wants(&tests[0]) {
				t.Error("wanted once more")
			}
		})
	}
}

// A host's adapters come and go; what was found of them goes with them.
func TestPrefillsOfWhatIsServed(t *testing.T) {
	a := hourly("a", 1, 10, "base")
	r := brain(newClock(), 1, a)
	for i := range 100 {
		a.Served = []endpoint.Served{{Name: "base"}, {Name: fmt.Sprint("lora-", i)}}
		r.Update([]endpoint.Endpoint{a}, nil)
		for _, sv := range a.Served {
			r.SetPrefill("a", sv.Name, Prefill{Known: true, OK: true})
		}
	}
	h := r.snap.Load().byID["a"].host
	if n := len(*h.prefills.Load()); n != 2 || !h.prefill("base").OK {
		t.Errorf("%d kept of a host that serves two, the first is %+v", n, h.prefill("base"))
	}
	a.Served = a.Served[:1]
	r.Update([]endpoint.Endpoint{a}, nil)
	r.SetPrefill("a", "lora-99", Prefill{Known: true, OK: true})
	if n := len(*h.prefills.Load()); n != 1 {
		t.Errorf("%d kept of a host that serves one", n)
	}
}

// A stream is followed for the sake of hosts that a self-test may yet find able, and not of those that get none.
func TestUntestable(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*endpoint.Endpoint)
		want   bool
	}{
		"tested some day":           {func(*endpoint.Endpoint) {}, true},
		"paid by the token":         {func(ep *endpoint.Endpoint) { ep.Price = endpoint.Price{Basis: endpoint.PerToken} }, false},
		"somebody else's":           {func(ep *endpoint.Endpoint) { ep.Tenure = endpoint.TenurePerToken }, false},
		"a model without a name":    {func(ep *endpoint.Endpoint) { ep.Served[0].Unnamed = true }, false},
		"it answers no chat":        {func(ep *endpoint.Endpoint) { ep.Routes = []string{"/embeddings"} }, false},
		"a worker is not up as yet": {func(ep *endpoint.Endpoint) { ep.Tenure = endpoint.Serverless }, true},
	} {
		eps := []endpoint.Endpoint{hourly("a", 1, 10, "m"), hourly("b", 1, 10, "m")}
		for i := range eps {
			tc.change(&eps[i])
		}
		r := brain(newClock(), 1, eps...)
		if got := r.Snapshot().MayContinue("m"); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func TestContinuableAllocatesNothing(t *testing.T) {
	r := brain(newClock(), 1, rooted("a", "m", ""), rooted("b", "m", ""))
	r.SetPrefill("b", "m", Prefill{Known: true, OK: true})
	s := r.Snapshot()
	if n := testing.AllocsPerRun(100, func() { s.Continuable("m") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
