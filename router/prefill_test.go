package router

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"headrace/router/endpoint"
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

func TestContinuableAllocatesNothing(t *testing.T) {
	r := brain(newClock(), 1, rooted("a", "m", ""), rooted("b", "m", ""))
	r.SetPrefill("b", "m", Prefill{Known: true, OK: true})
	s := r.Snapshot()
	if n := testing.AllocsPerRun(100, func() { s.Continuable("m") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
