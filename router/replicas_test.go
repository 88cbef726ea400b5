package router

import (
	"slices"
	"testing"
	"time"

	"headrace/router/endpoint"
	"headrace/router/health"
	"headrace/router/outcome"
)

// TestChanged tells others what attempts, tests and control planes make of a breaker, and nothing else.
func TestChanged(t *testing.T) {
	c := newClock()
	var told []Transition
	a, b := spot("a", "", "", ""), spot("b", "", "", "")
	r := New(Options{Now: c.now, Prior: tell, Seed: 1, Probes: true, Changed: func(tr Transition) { told = append(told, tr) }})
	r.Update([]endpoint.Endpoint{a, b}, nil)
	expect := func(what string, want ...Transition) {
		t.Helper()
		for i := range told {
			if told[i].For < 0 || told[i].For > 2*time.Minute {
				t.Errorf("%s: tested again in %s", what, told[i].For)
			}
			if !told[i].At.Equal(c.now()) {
				t.Errorf("%s: found at %s, want %s", what, told[i].At, c.now())
			}
			told[i].For, told[i].At = 0, time.Time{}
		}
		if !slices.Equal(told, want) {
			t.Errorf("%s: told %+v, want %+v", what, told, want)
		}
		told = nil
	}
	leaseAt(t, r, "a").Done(Result{Class: outcome.Success})
	leaseAt(t, r, "a").Done(Result{Class: outcome.UpstreamFault})
	expect("an answer, and one fault")
	l, m := leaseAt(t, r, "a"), leaseAt(t, r, "a")
	l.Done(Result{Class: outcome.DialFailed})
	m.Done(Result{Class: outcome.DialFailed})
	expect("nobody is there", Transition{Endpoint: "a", Change: health.Lost})
	c.seconds(5)
	for range due(r, c) {
		r.Probed("a", outcome.Success)
	}
	expect("somebody is there", Transition{Endpoint: "a", Change: health.Revived})
	a.State = endpoint.Preempted
	r.Update([]endpoint.Endpoint{a, b}, nil)
	r.Update([]endpoint.Endpoint{a, b}, nil)
	expect("taken away", Transition{Endpoint: "a", Change: health.Preempted, Told: true})
	at := c.now()
	c.seconds(5)
	r.Update([]endpoint.Endpoint{a, b}, nil) // says it again, not anew
	if got := r.Missing(nil); len(got) != 1 || got[0].Endpoint != "a" || !got[0].Told || got[0].Change != health.Preempted || !got[0].At.Equal(at) {
		t.Errorf("missing %+v", got)
	}
	if known, changed := r.Heard(Transition{Endpoint: "b", Change: health.Lost}); !known || !changed {
		t.Errorf("heard: %t, %t", known, changed)
	}
	if known, _ := r.Heard(Transition{Endpoint: "c", Change: health.Lost}); known {
		t.Error("it knows a host that there is not")
	}
	expect("what was heard is not told on")
}

// TestHeard avoids a host that another replica has lost, tests it, and believes what it sees itself.
func TestHeard(t *testing.T) {
	c := newClock()
	r := probing(c, spot("a", "", "", ""), spot("b", "", "", ""))
	say := func(id endpoint.ID, what health.Change, told bool, d time.Duration) {
		t.Helper()
		if _, changed := r.Heard(Transition{Endpoint: id, Change: what, Told: told, For: d}); !changed {
			t.Errorf("%s: %d was nothing new", id, what)
		}
	}
	running := leaseAt(t, r, "a")
	say("a", health.Lost, false, time.Minute)
	if l := mustPick(t, r); l.Endpoint.ID != "b" {
		t.Errorf("picked %s, which is lost", l.Endpoint.ID)
	} else {
		l.Done(Result{Class: outcome.Success})
	}
	if got := due(r, c); !slices.Equal(got, []endpoint.ID{"a"}) {
		t.Errorf("%v are due for a test", got)
	}
	running.FirstContent(time.Millisecond)
	if got := r.breakerOf("a"); got != "closed" {
		t.Errorf("a answered here, and is %s", got)
	}
	running.Done(Result{Class: outcome.Success})

	say("a", health.Opened, false, 20*time.Second)
	say("b", health.Preempted, false, 0) // as its network shows: nobody here has seen it
	forced := mustPick(t, r)             // all may be that one's fault
	forced.Done(Result{Class: outcome.ClientGone})
	r.Probed("a", outcome.Success)                                     // of the test above, which nobody waits for any more
	if got := due(r, c); !slices.Equal(got, []endpoint.ID{"a", "b"}) { // one that only answers badly too: it may be the other's doing
		t.Errorf("%v are due for a test", got)
	}
	r.Probed("b", outcome.Success)
	if got := r.breakerOf("b"); got != "closed" {
		t.Errorf("b was tested, and is %s", got)
	}
	r.Probed("a", outcome.UpstreamFault)
	if got := due(r, c); len(got) > 0 {
		t.Errorf("%v are due for a test, just after it was failed", got)
	}
	say("a", health.Recovered, false, 0)
	if got := due(r, c); !slices.Equal(got, []endpoint.ID{"a"}) {
		t.Errorf("%v are due for a test once a is well elsewhere", got)
	}
	r.Probed("a", outcome.Success)

	say("a", health.Preempted, true, time.Minute)
	say("b", health.Preempted, true, time.Minute)
	var l Lease
	if err := r.Pick(&Request{Model: "m"}, &l); err == nil {
		t.Errorf("picked %s, which its control plane has taken away", l.Endpoint.ID)
	}
	if got := due(r, c); len(got) > 0 {
		t.Errorf("%v are due for a test at once", got)
	}
	if got := r.Missing(nil); len(got) > 0 {
		t.Errorf("it says %+v, of which it knows by others only", got)
	}
	c.seconds(61) // and this one's own control plane has not said so
	if got := due(r, c); len(got) != 2 {
		t.Errorf("%v are due for a test after a minute", got)
	}
}

// TestLoads tells what runs where.
func TestLoads(t *testing.T) {
	c := newClock()
	r := probing(c, spot("a", "", "", ""), spot("b", "", "", ""))
	if got := r.Loads(nil); len(got) > 0 {
		t.Errorf("idle: %+v", got)
	}
	l := leaseAt(t, r, "b")
	if got := r.Loads(nil); len(got) != 1 || got[0].Endpoint != "b" || got[0].InFlight != 1 {
		t.Errorf("one: %+v", got)
	}
	l.Done(Result{Class: outcome.Success})
	if got := r.Loads(nil); len(got) > 0 {
		t.Errorf("done: %+v", got)
	}
}

// TestHeardOfAnEarlierLife believes nothing of a host that was said of one of its earlier lives, and all that is said of the present one or of no
// life by name.
func TestHeardOfAnEarlierLife(t *testing.T) {
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	for name, tc := range map[string]struct {
		said, is time.Time
		changed  bool
	}{
		"the same":      {now, now, true},
		"an earlier":    {now.Add(-time.Hour), now, false},
		"a later":       {now.Add(time.Hour), now, true}, // which this one's provider has yet to tell
		"nobody knows":  {time.Time{}, time.Time{}, true},
		"it is unnamed": {time.Time{}, now, true},
		"ours is":       {now, time.Time{}, true},
	} {
		c := newClock()
		a := spot("a", "", "", "")
		a.Started = tc.is
		r := probing(c, a, spot("b", "", "", ""))
		known, changed := r.Heard(Transition{Endpoint: "a", Change: health.Preempted, Told: true, For: time.Minute, Started: tc.said})
		if !known || changed != tc.changed || (r.breakerOf("a") == "closed") == tc.changed {
			t.Errorf("%s: known %t, changed %t, %s", name, known, changed, r.breakerOf("a"))
		}
	}
	// what is told on has the life in it, and so has what is noted
	c := newClock()
	var told []Transition
	a := spot("a", "", "", "")
	a.Started = now
	r := New(Options{Now: c.now, Prior: tell, Seed: 1, Probes: true, Changed: func(tr Transition) { told = append(told, tr) }})
	r.Update([]endpoint.Endpoint{a}, nil)
	a.State = endpoint.Preempted
	r.Update([]endpoint.Endpoint{a}, nil)
	if missing := r.Missing(nil); len(told) != 1 || !told[0].Started.Equal(now) || len(missing) != 1 || !missing[0].Started.Equal(now) {
		t.Errorf("told %+v, missing %+v", told, missing)
	}
}
