package router

import (
	"errors"
	"testing"

	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// TestDrain keeps a host from new requests and from continuations, whatever discovery says, until it is let in again.
func TestDrain(t *testing.T) {
	eps := []endpoint.Endpoint{hourly("a", 1, 10, "m"), hourly("b", 9, 10, "m")}
	r := newRouter(eps...)
	if r.Drain("x", true) || r.Snapshot().Drained("x") {
		t.Error("a host that is not there was drained")
	}
	running := mustPick(t, r)
	if running.Endpoint.ID != "a" || !r.Drain("a", true) {
		t.Fatalf("picked %s", running.Endpoint.ID)
	}
	r.Update(eps, nil)
	if got := mustPick(t, r).Endpoint.ID; got != "b" {
		t.Errorf("with a drained %s was picked", got)
	}
	r.Update(eps[1:], nil) // off the list for a while
	r.Update(eps, nil)
	if got := mustPick(t, r).Endpoint.ID; got != "b" {
		t.Errorf("with a drained, and listed again, %s was picked", got)
	}
	if h := r.Hosts()[0]; !h.Drained || h.State != "unknown" || h.InFlight != 1 {
		t.Errorf("shown as %+v", h)
	}
	x, err := r.Explain(&Request{Model: "m"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range x.Candidate {
		if c.Endpoint == "a" && (c.Verdict != away.String() || c.Reason != whyDrained) {
			t.Errorf("explained as %q, %q", c.Verdict, c.Reason)
		}
	}
	r.SetPrefill("a", "m", Prefill{Known: true, OK: true})
	if r.Snapshot().Continuable("m") {
		t.Error("answers are read for a drained host to go on with them")
	}
	on := &Request{Model: "m", Continue: &Continuation{From: "b", Served: "m"}}
	if err := r.Pick(on, new(Lease)); err == nil {
		t.Error("a drained host was to go on with an answer")
	}
	r.Drain("b", true)
	if e, ok := errors.AsType[*UnavailableError](r.Pick(&Request{Model: "m"}, new(Lease))); !ok {
		t.Error("with all drained somebody was picked")
	} else if e.Cause != Failing || e.Reason != "every host that serves it is drained by the operator" || e.RetryAfter != drainedRetry {
		t.Errorf("with all drained: %+v", e)
	}
	if !r.Drain("a", false) || r.Hosts()[0].Drained {
		t.Error("it was not let in again")
	}
	if got := mustPick(t, r).Endpoint.ID; got != "a" {
		t.Errorf("let in again, but %s was picked", got)
	}
	if err := r.Pick(on, new(Lease)); err != nil {
		t.Errorf("let in again, and it does not go on with an answer: %v", err)
	}
}

// TestTakenAway tells hosts whose answers break off any moment from those that leave in time.
func TestTakenAway(t *testing.T) {
	for state, want := range map[endpoint.State]bool{
		endpoint.Ready: false, endpoint.Draining: false, endpoint.Starting: false, endpoint.Preempted: true, endpoint.Gone: true,
	} {
		ep := hourly("a", 1, 10, "m")
		ep.State = state
		if got := newRouter(ep).Snapshot().TakenAway("a"); got != want {
			t.Errorf("%v: %t", state, got)
		}
	}
	if !newRouter().Snapshot().TakenAway("a") {
		t.Error("a host that is not listed any more")
	}
}

// TestDrainedBesideAway: a model whose hosts are up but drained, or not up, is not said to fail.
func TestDrainedBesideAway(t *testing.T) {
	away := hourly("b", 1, 10, "m")
	away.State = endpoint.Preempted
	r := newRouter(hourly("a", 1, 10, "m"), away)
	r.Drain("a", true)
	if e, ok := errors.AsType[*UnavailableError](r.Pick(&Request{Model: "m"}, new(Lease))); !ok || e.Reason != "every host that serves it is away, or drained by the operator" {
		t.Errorf("with one drained and one taken away: %+v", e)
	}
	r.Drain("a", false)
	r.Drain("b", true)
	if got := mustPick(t, r).Endpoint.ID; got != "a" {
		t.Errorf("with the other one drained %s was picked", got)
	}
}

// TestFull tells hosts apart that have a sequence free.
func TestFull(t *testing.T) {
	r := newRouter(hourly("a", 1, 2, "m"))
	if r.Full("a") || r.Full("x") {
		t.Error("an idle host, or one that is not there, is full")
	}
	l := mustPick(t, r)
	if r.Full("a") {
		t.Error("one of two sequences is taken")
	}
	r.Share("a", 1, 0) // by another replica
	if !r.Full("a") {
		t.Error("both are taken, and it is not full")
	}
	r.Share("a", 0, 0)
	second := mustPick(t, r)
	if !r.Full("a") {
		t.Error("both are taken here, and it is not full")
	}
	l.Done(Result{Class: outcome.Success, Cached: -1})
	second.Done(Result{Class: outcome.Success, Cached: -1})
	if r.Full("a") {
		t.Error("idle again, and full")
	}
}
