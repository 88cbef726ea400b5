package router

import (
	"errors"
	"slices"
	"testing"
	"time"

	"headrace/router/endpoint"
	"headrace/router/health"
	"headrace/router/outcome"
)

// TestFreed names what may let in a request that nobody took before.
func TestFreed(t *testing.T) {
	c := newClock()
	a, b := hourly("a", 1, 10, "m", "n"), hourly("b", 1, 10, "m")
	r := New(Options{Now: c.now, Prior: tell, Probes: true, Breaker: health.Options{Failures: 1}})
	var freed []endpoint.ID
	r.OnFreed(func(id endpoint.ID) {
		freed = append(freed, id)
		_ = r.Hosts() // takes what locks there are
	})
	expect := func(what string, want ...endpoint.ID) {
		t.Helper()
		if !slices.Equal(freed, want) {
			t.Errorf("%s: %q was freed, want %q", what, freed, want)
		}
		freed = nil
	}
	r.Update([]endpoint.Endpoint{a, b}, nil)
	expect("a new fleet", "")
	l := mustPick(t, r, "b")
	expect("a pick")
	l.FirstContent(time.Second)
	expect("a first token", "a")
	l.FirstContent(time.Second)
	expect("another one")
	l.Done(Result{Class: outcome.Success, Cached: -1})
	expect("an end", "a")
	l.Done(Result{Class: outcome.Success, Cached: -1})
	expect("another one")
	r.Drain("a", true)
	expect("a drain")
	r.Drain("a", false)
	expect("the end of a drain", "a")
	r.Share("b", 0, 0)
	expect("word of other replicas", "b")
	r.SetPrefill("b", "m", Prefill{Known: true, OK: true})
	expect("one that goes on with answers", "b")
	mustPick(t, r, "b").Done(Result{Class: outcome.DialFailed, Cached: -1})
	freed = nil
	c.seconds(10)
	for _, p := range r.Probes(c.now(), nil) {
		r.Probed(p.Endpoint.ID, outcome.Success)
	}
	if !slices.Contains(freed, "a") {
		t.Error("a host that was found alive was not freed")
	}
	if got := r.Snapshot().Offers("a"); !slices.Equal(slices.Sorted(slices.Values(got)), []string{"m", "n"}) || r.Snapshot().Offers("x") != nil {
		t.Errorf("offers %v", got)
	}
	r.OnFreed(nil)
	freed = nil
	mustPick(t, r, "b").Done(Result{Class: outcome.Success, Cached: -1})
	expect("nobody")
}

// TestSoon says when a request may be taken that is not taken now.
func TestSoon(t *testing.T) {
	slo := []ModelRule{{Name: "m", Serves: []string{"m"}, SLO: SLO{TPS: 15, TTFT: time.Second}}}
	soon := func(t *testing.T, r *Router) time.Duration {
		t.Helper()
		for range 1000 {
			if err := r.Pick(&Request{Model: "m", PromptTokens: 10}, new(Lease)); err != nil {
				ue, ok := errors.AsType[*UnavailableError](err)
				if !ok {
					t.Fatal(err)
				}
				return ue.Soon
			}
		}
		t.Fatal("never full")
		return 0
	}
	for name, tc := range map[string]struct {
		edit        func(*endpoint.Endpoint)
		least, most time.Duration
	}{
		"full":             {func(*endpoint.Endpoint) {}, 100 * time.Millisecond, time.Second},
		"a limit of two":   {func(ep *endpoint.Endpoint) { ep.Limits.Concurrent = 2 }, 3 * time.Second, 5 * time.Second},
		"a rate":           {func(ep *endpoint.Endpoint) { ep.Limits.Requests, ep.Limits.Per = 3, 10*time.Second }, 9 * time.Second, 11 * time.Second},
		"starting":         {func(ep *endpoint.Endpoint) { ep.State = endpoint.Starting }, 15 * time.Second, 15 * time.Second},
		"taken away":       {func(ep *endpoint.Endpoint) { ep.State = endpoint.Preempted }, 0, 0},
		"without capacity": {func(ep *endpoint.Endpoint) { ep.State = endpoint.NoCapacity }, noCapacityRetry, noCapacityRetry},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClock()
			ep := hourly("a", 1, 64, "m")
			tc.edit(&ep)
			r := brain(c, 1)
			r.Update([]endpoint.Endpoint{ep}, slo)
			if got := soon(t, r); got < tc.least || got > tc.most {
				t.Errorf("soon is %v, want %v to %v", got, tc.least, tc.most)
			}
		})
	}
}

// TestSpare keeps room free of requests that can wait, and never starts a worker for them while somebody is up.
func TestSpare(t *testing.T) {
	c := newClock()
	r := brain(c, 1)
	asleep := serverless("asleep", 0.00001, endpoint.Cold)
	r.Update([]endpoint.Endpoint{hourly("a", 1, 64, "m"), asleep}, []ModelRule{{Name: "m", Serves: []string{"m"}, SLO: SLO{TPS: 15, TTFT: 2 * time.Second}}})
	fill := func(q Request) (n int, last error) {
		q.Model, q.PromptTokens = "m", 10
		var held []*Lease
		for last == nil {
			l := new(Lease)
			ask := q
			if last = r.Pick(&ask, l); last == nil && l.Endpoint.ID == "asleep" {
				if q.Spare > 0 {
					t.Fatalf("a worker is started for the %d. that can wait", n+1)
				}
				l.Done(Result{Class: outcome.ClientGone, Cached: -1})
				break
			}
			if last == nil {
				n++
				held = append(held, l)
			}
		}
		for _, l := range held {
			l.Done(Result{Class: outcome.ClientGone, Cached: -1})
		}
		return n, last
	}
	all, _ := fill(Request{})
	some, err := fill(Request{Batch: true, Spare: 0.2})
	if ue, ok := errors.AsType[*UnavailableError](err); !ok || ue.Cause != Throttled || ue.Soon <= 0 {
		t.Errorf("refused with %+v", err)
	}
	t.Logf("a host takes %d at once, and %d that can wait", all, some)
	if some > all*8/10 || some < all/3 {
		t.Errorf("a host takes %d at once, and %d that can wait", all, some)
	}
	// A slow host that nobody uses serves them all the same, one at a time.
	slow := hourly("slow", 1, 64, "m")
	r.Update([]endpoint.Endpoint{slow}, []ModelRule{{Name: "m", Serves: []string{"m"}, SLO: SLO{TPS: 500, TTFT: 2 * time.Second}}})
	if n, _ := fill(Request{Batch: true, Spare: 0.2}); n != 1 {
		t.Errorf("%d run at once on a host that keeps nobody's SLO", n)
	}
	r.Update([]endpoint.Endpoint{asleep}, nil)
	var l Lease
	if err := r.Pick(&Request{Model: "m", Batch: true, Spare: 0.2}, &l); err != nil || l.Endpoint.ID != "asleep" {
		t.Errorf("nobody is up, and no worker is started: %v", err)
	}
	// Hours of waiting are no reason to miss a promise that begins when a host is found.
	r.Update([]endpoint.Endpoint{hourly("a", 1, 64, "m")}, nil)
	var d Lease
	if err := r.Pick(&Request{Model: "m", Batch: true, Came: c.now().Add(-time.Hour), PromptTokens: 10}, &d); err != nil || d.Decision.Feasible != 1 {
		t.Errorf("after an hour: %v, %+v", err, d.Decision)
	}
}

// TestOutlook tells what a request is promised and about what it takes.
func TestOutlook(t *testing.T) {
	r := brain(newClock(), 1)
	r.Update([]endpoint.Endpoint{hourly("a", 1, 64, "m")}, []ModelRule{{Name: "m", Serves: []string{"m"}, SLO: SLO{TTFT: 5 * time.Second}}})
	slo, tokens := r.Outlook(&Request{Model: "m", PromptTokens: 100, MaxTokens: 50, SLO: SLO{TPS: 3}}, 0)
	if want := (SLO{TTFT: 5 * time.Second, TPS: 3, Confidence: DefaultSLO().Confidence}); slo != want || tokens != 150 {
		t.Errorf("%+v and %v tokens", slo, tokens)
	}
	if _, tokens := r.Outlook(&Request{Model: "m", PromptTokens: 100, MaxTokens: 50}, 8); tokens != 500 {
		t.Errorf("eight answers: %v tokens", tokens)
	}
	if slo, tokens := r.Outlook(&Request{Model: "x", BodyBytes: 400}, 1); slo != DefaultSLO() || tokens != 100+priorOutput {
		t.Errorf("of an unknown model %+v and %v tokens", slo, tokens)
	}
}

// TestWaited crowds no host for a request that has waited, where somebody asked for an SLO.
func TestWaited(t *testing.T) {
	for _, strict := range []bool{true, false} {
		r := brain(newClock(), 1)
		rule := ModelRule{Name: "m", Serves: []string{"m"}}
		if strict {
			rule.SLO = SLO{TPS: 15, TTFT: 2 * time.Second}
		}
		r.Update([]endpoint.Endpoint{hourly("a", 1, 64, "m")}, []ModelRule{rule})
		for n := 0; ; n++ {
			l := new(Lease)
			if err := r.Pick(&Request{Model: "m", PromptTokens: 10}, l); err != nil || n == 200 {
				t.Fatalf("never crowded: %v", err)
			}
			if l.Decision.Feasible == 0 { // nobody keeps the SLO any more
				l.Done(Result{Class: outcome.ClientGone, Cached: -1})
				break
			}
		}
		err := r.Pick(&Request{Model: "m", PromptTokens: 10, Waited: true}, new(Lease))
		if refused := err != nil; refused != strict {
			t.Errorf("strict %v: %v", strict, err)
		}
		if err := r.Pick(&Request{Model: "m", PromptTokens: 10}, new(Lease)); err != nil {
			t.Errorf("one that has not waited: %v", err)
		}
	}
}
