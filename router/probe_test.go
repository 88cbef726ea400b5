package router

import (
	"slices"
	"sync"
	"testing"
	"time"

	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// probing returns a Router whose probes somebody carries out.
func probing(c *clock, eps ...endpoint.Endpoint) *Router {
	r := New(Options{Now: c.now, Prior: tell, Seed: 1, Probes: true})
	r.Update(eps, nil)
	for _, ep := range eps {
		for _, sv := range ep.Served {
			r.SetPrefill(ep.ID, sv.Name, Prefill{Known: true, OK: true})
		}
	}
	return r
}

// spot is a host at Vast.ai.
func spot(id, machine, owner, region string) endpoint.Endpoint {
	ep := hourly(id, 1, 10, "m")
	ep.Provider, ep.Tenure, ep.State = "vast", endpoint.Interruptible, endpoint.Ready
	ep.Hardware.Machine, ep.Hardware.Host, ep.Region = machine, owner, region
	return ep
}

func due(r *Router, c *clock) (ids []endpoint.ID) {
	for _, p := range r.Probes(c.now(), nil) {
		ids = append(ids, p.Endpoint.ID)
	}
	return ids
}

// leaseAt holds a slot on that very host.
func leaseAt(t *testing.T, r *Router, id endpoint.ID) *Lease {
	t.Helper()
	var others []endpoint.ID
	for _, c := range r.snap.Load().list {
		if c.ep.ID != id {
			others = append(others, c.ep.ID)
		}
	}
	l := mustPick(t, r, others...)
	if l.Endpoint.ID != id {
		t.Fatalf("leased %s, want %s", l.Endpoint.ID, id)
	}
	return l
}

func (r *Router) breakerOf(id endpoint.ID) string {
	return r.snap.Load().byID[id].host.breaker.State(r.now()).String()
}

// Once it is reported that nobody is there, no request goes there, however many are being picked: only a probe does.
func TestNobodyIsSentToACorpse(t *testing.T) {
	c := newClock()
	r := probing(c, spot("a", "", "", ""), spot("b", "", "", ""))
	leases := make([]*Lease, 8)
	for i := range leases {
		leases[i] = leaseAt(t, r, "a")
	}
	var wg sync.WaitGroup
	reported := make(chan struct{})
	for g := range 8 {
		wg.Go(func() {
			if g == 0 {
				leases[0].Done(Result{Class: outcome.DialFailed})
				close(reported)
			}
			for range 2000 {
				var l Lease
				after := false
				select {
				case <-reported:
					after = true
				default:
				}
				if r.Pick(&Request{Model: "m"}, &l) != nil {
					continue
				}
				if after && l.Endpoint.ID == "a" {
					t.Error("picked after its first failure was reported")
				}
				l.Done(Result{Class: outcome.ClientGone})
			}
		})
	}
	wg.Wait()
	for _, l := range leases[1:] {
		l.Done(Result{Class: outcome.Truncated})
	}
	c.pass(time.Hour)
	var l Lease
	for range 20 {
		if err := r.Pick(&Request{Model: "m"}, &l); err != nil || l.Endpoint.ID == "a" {
			t.Fatalf("%v %v: a caller pays for the test", l.Endpoint, err)
		}
		l.Done(Result{Class: outcome.Success})
	}
	if got := due(r, c); !slices.Equal(got, []endpoint.ID{"a"}) {
		t.Fatalf("due: %v", got)
	}
	if got := due(r, c); got != nil {
		t.Errorf("a second probe beside the first: %v", got)
	}
	r.Probed("a", outcome.Success)
	if got := r.breakerOf("a"); got != "closed" {
		t.Errorf("breaker %s after a good probe", got)
	}
	if ramp := r.snap.Load().byID["a"].host.pub.ramp.get(); ramp != rampFrom {
		t.Errorf("comes back with %v at once, want a slow start", ramp)
	}
}

// Two streams that break at once mean that the host was taken away; those near it are no targets for its streams for a minute.
func TestStreamsKeepAwayFromTheNeighbours(t *testing.T) {
	c := newClock()
	r := probing(c, spot("a", "m1", "o1", "SE"), spot("b", "m1", "o1", "SE"), spot("c", "m2", "o1", "SE"), spot("d", "m3", "o2", "SE"), spot("e", "m4", "o3", "US"))
	var broken []*Lease
	for range 3 {
		broken = append(broken, leaseAt(t, r, "a"))
	}
	for _, l := range broken {
		l.FirstContent(time.Millisecond)
		l.Done(Result{Class: outcome.Truncated})
	}
	if got := r.breakerOf("a"); got != "preempted" {
		t.Fatalf("breaker %s", got)
	}
	q := Request{Model: "m", Continue: &Continuation{From: "a", Served: "m"}}
	for _, want := range []endpoint.ID{"e", "d", "c", "b"} { // from the farthest to the nearest
		var l Lease
		if err := r.Pick(&q, &l); err != nil || l.Endpoint.ID != want {
			t.Fatalf("continued at %v (%v), want %s", l.Endpoint, err, want)
		}
		l.Done(Result{Class: outcome.ClientGone})
		q.Tried = append(q.Tried, want)
	}
	if err := r.Pick(&q, new(Lease)); err == nil {
		t.Error("continued where it was tried before")
	}
	fresh := Request{Model: "m", Tried: []endpoint.ID{"c", "d", "e"}}
	var l Lease
	if err := r.Pick(&fresh, &l); err != nil || l.Endpoint.ID != "b" {
		t.Errorf("%v, %v: a neighbour is as good as any for other requests", l.Endpoint, err)
	}
	l.Done(Result{Class: outcome.Success})
	if n := r.snap.Load().byID["b"].host.near[sameMachine].Load(); n != c.now().Add(time.Minute).UnixNano() {
		t.Errorf("kept away until %v", time.Unix(0, n))
	}
}

// Hosts whose neighbours are down have to show that they are there.
func TestSuspects(t *testing.T) {
	for name, tc := range map[string]struct {
		eps  []endpoint.Endpoint
		down []endpoint.ID
		want []endpoint.ID // suspected
	}{
		"one of a machine":        {[]endpoint.Endpoint{spot("a", "1", "", ""), spot("b", "1", "", "")}, []endpoint.ID{"a"}, nil},
		"two of a machine":        {[]endpoint.Endpoint{spot("a", "1", "", ""), spot("b", "1", "", ""), spot("c", "1", "", ""), spot("z", "2", "", "")}, []endpoint.ID{"a", "b"}, []endpoint.ID{"c"}},
		"two of an owner":         {[]endpoint.Endpoint{spot("a", "1", "o", ""), spot("b", "2", "o", ""), spot("c", "3", "o", ""), spot("z", "4", "p", "")}, []endpoint.ID{"a", "b"}, []endpoint.ID{"c"}},
		"two of a region":         {[]endpoint.Endpoint{spot("a", "", "", "SE"), spot("b", "", "", "SE"), spot("c", "", "", "SE")}, []endpoint.ID{"a", "b"}, nil},
		"three of five, a region": {[]endpoint.Endpoint{spot("a", "", "", "SE"), spot("b", "", "", "SE"), spot("c", "", "", "SE"), spot("d", "", "", "SE"), spot("e", "", "", "SE"), spot("z", "", "", "US")}, []endpoint.ID{"a", "b", "c"}, []endpoint.ID{"d", "e"}},
		"three of six, a region":  {[]endpoint.Endpoint{spot("a", "", "", "SE"), spot("b", "", "", "SE"), spot("c", "", "", "SE"), spot("d", "", "", "SE"), spot("e", "", "", "SE"), spot("f", "", "", "SE")}, []endpoint.ID{"a", "b", "c"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClock()
			r := probing(c, tc.eps...)
			for _, id := range tc.down {
				leaseAt(t, r, id).Done(Result{Class: outcome.DialFailed})
				c.seconds(0.1)
			}
			var got []endpoint.ID
			for _, ep := range tc.eps {
				if r.breakerOf(ep.ID) == "suspected" {
					got = append(got, ep.ID)
				}
			}
			if !slices.Equal(got, tc.want) {
				t.Fatalf("suspected: %v, want %v", got, tc.want)
			}
			if d := due(r, c); !slices.Equal(d, tc.want) {
				t.Errorf("due at once: %v, want %v", d, tc.want)
			}
			for _, id := range tc.want {
				l := leaseAt(t, r, id) // sooner than nobody
				l.Done(Result{Class: outcome.ClientGone})
				r.Probed(id, outcome.Success)
				if h := r.snap.Load().byID[id].host; h.pub.ramp.get() != 0 || h.breaker.Opens() != 0 {
					t.Errorf("%s pays for its neighbours: slow start at %v, opened %d times", id, h.pub.ramp.get(), h.breaker.Opens())
				}
			}
		})
	}
	t.Run("two whose turns are far apart", func(t *testing.T) {
		c := newClock()
		r := probing(c, spot("a", "1", "", ""), spot("b", "1", "", ""), spot("c", "1", "", ""))
		leaseAt(t, r, "a").Done(Result{Class: outcome.DialFailed})
		c.pass(61 * time.Second)
		leaseAt(t, r, "b").Done(Result{Class: outcome.DialFailed})
		if got := r.breakerOf("c"); got != "closed" {
			t.Errorf("breaker %s", got)
		}
	})
}

// A control plane's word holds: nothing is sent until it says running, then a probe, then callers.
func TestControlPlaneSaysSo(t *testing.T) {
	c := newClock()
	a, b := spot("a", "", "", ""), spot("b", "", "", "")
	r := probing(c, a, b)
	a.State = endpoint.Preempted
	r.Update([]endpoint.Endpoint{a, b}, nil)
	c.pass(time.Hour)
	if got := due(r, c); got != nil || r.breakerOf("a") != "preempted" {
		t.Errorf("due: %v, %s", got, r.breakerOf("a"))
	}
	a.State, a.BaseURL = endpoint.Ready, "http://new:1/v1"
	r.Update([]endpoint.Endpoint{a, b}, nil)
	for range 20 {
		l := mustPick(t, r)
		if l.Endpoint.ID == "a" {
			t.Fatal("a caller's request came before the probe")
		}
		l.Done(Result{Class: outcome.Success})
	}
	p := r.Probes(c.now(), nil)
	if len(p) != 1 || p[0].Endpoint.ID != "a" || p[0].SelfTest || p[0].Endpoint.BaseURL != a.BaseURL || p[0].Served != "m" {
		t.Fatalf("%+v", p)
	}
	r.Probed("a", outcome.Success)
	if p = r.Probes(c.now(), nil); len(p) != 1 || !p[0].SelfTest {
		t.Errorf("its engine is a new one, and no self-test is due: %+v", p)
	}
	leaseAt(t, r, "a").Done(Result{Class: outcome.Success})
}

// What is paid by use is probed while it is asked for, and not at all where that would buy a worker.
func TestProbesOfMeteredHosts(t *testing.T) {
	c := newClock()
	worker := serverless("w", 0.001, endpoint.Ready)
	worker.Workers = 1
	r := probing(c, worker)
	leaseAt(t, r, "w").Done(Result{Class: outcome.DialFailed})
	c.pass(3 * time.Minute)
	if got := due(r, c); got != nil {
		t.Errorf("probed although nobody asks for it: %v", got)
	}
	if r.Pick(&Request{Model: "m"}, new(Lease)) == nil {
		t.Error("let in before a probe")
	}
	if got := due(r, c); !slices.Equal(got, []endpoint.ID{"w"}) {
		t.Errorf("asked for, and due are %v", got)
	}
	r.Probed("w", outcome.DialFailed)
	worker.State, worker.Workers = endpoint.Cold, 0
	r.Update([]endpoint.Endpoint{worker}, nil)
	c.pass(time.Minute)
	trial := leaseAt(t, r, "w")
	if got := due(r, c); got != nil {
		t.Errorf("a probe would buy a worker: %v", got)
	}
	if r.Pick(&Request{Model: "m"}, new(Lease)) == nil {
		t.Error("a second trial beside the first")
	}
	trial.Done(Result{Class: outcome.Success})
	leaseAt(t, r, "w").Done(Result{Class: outcome.Success})
}

// The least bad of those that answer badly is asked when nobody else is left; never one where nobody is.
func TestLeastBad(t *testing.T) {
	c := newClock()
	r := probing(c, spot("a", "", "", ""), spot("b", "", "", ""), spot("gone", "", "", ""))
	bad := func(id endpoint.ID) {
		for range 2 {
			leaseAt(t, r, id).Done(Result{Class: outcome.UpstreamFault})
		}
	}
	bad("a")
	c.pass(10 * time.Second)
	due(r, c)
	r.Probed("a", outcome.UpstreamFault) // for the second time
	bad("b")
	leaseAt(t, r, "gone").Done(Result{Class: outcome.DialFailed})
	for range 10 {
		l := mustPick(t, r)
		if l.Endpoint.ID != "b" {
			t.Fatalf("went to %s", l.Endpoint.ID)
		}
		l.Done(Result{Class: outcome.UpstreamFault})
	}
	l := mustPick(t, r)
	l.FirstContent(time.Millisecond)
	l.Done(Result{Class: outcome.Success})
	if got := r.breakerOf("b"); got != "closed" {
		t.Errorf("it answers, and its breaker is %s", got)
	}
}

// A host that was taken off the list while nobody answered there, and is listed again, has lost its cache and a life.
func TestListedAgain(t *testing.T) {
	c := newClock()
	a, b := spot("a", "", "", ""), spot("b", "", "", "")
	r := probing(c, a, b)
	h := r.snap.Load().byID["a"].host
	cache := h.cache.Load()
	relist := func() {
		r.Update([]endpoint.Endpoint{b}, nil)
		c.pass(5 * time.Minute)
		r.Update([]endpoint.Endpoint{a, b}, nil)
	}
	relist()
	if h.cache.Load() != cache || h.losses != 0 || r.breakerOf("a") != "closed" {
		t.Errorf("dropped by mistake: cache forgotten %t, %v losses, %s", h.cache.Load() != cache, h.losses, r.breakerOf("a"))
	}
	leaseAt(t, r, "a").Done(Result{Class: outcome.DialFailed})
	relist()
	if h.cache.Load() == cache || h.losses != 1 {
		t.Errorf("gone, dropped and back: cache forgotten %t, %v losses", h.cache.Load() != cache, h.losses)
	}
	if got := due(r, c); !slices.Contains(got, "a") {
		t.Errorf("no probe is due: %v", got)
	}
	r.Probed("a", outcome.Success)
	cache = h.cache.Load()
	a.State = endpoint.Preempted
	r.Update([]endpoint.Endpoint{a, b}, nil)
	a.State = endpoint.Ready
	relist()
	if h.cache.Load() == cache || h.losses != 2 {
		t.Errorf("preempted, dropped and back: cache forgotten %t, %v losses", h.cache.Load() != cache, h.losses)
	}
}

// A host that was being stopped when nobody answered there any more, and is listed again, is another start: it has lost its cache,
// though nobody took it away, and what was sent to the one before decides nothing.
func TestStoppedAndListedAgain(t *testing.T) {
	c := newClock()
	a := spot("a", "", "", "")
	r := brain(c, 1, a)
	h := r.snap.Load().byID["a"].host
	leaseAt(t, r, "a").Done(Result{Class: outcome.DialFailed})
	c.pass(time.Minute)
	trial, cache := leaseAt(t, r, "a"), h.cache.Load()
	a.State = endpoint.Draining
	r.Update([]endpoint.Endpoint{a}, nil)
	r.Update(nil, nil)
	a.State = endpoint.Ready
	r.Update([]endpoint.Endpoint{a}, nil)
	if h.cache.Load() == cache || h.losses != 0 {
		t.Errorf("stopped and started: cache forgotten %t, %v losses", h.cache.Load() != cache, h.losses)
	}
	trial.FirstContent(time.Millisecond)
	if got := r.breakerOf("a"); got != "probing" {
		t.Errorf("a trial of before it was stopped leaves it %s", got)
	}
	leaseAt(t, r, "a").FirstContent(time.Millisecond)
	if got := r.breakerOf("a"); got != "closed" {
		t.Errorf("it answers, and its breaker is %s", got)
	}
}

// Streams that began before their host was started anew say nothing of it as it is now, whatever was thought of it.
func TestStreamsOfBeforeARestart(t *testing.T) {
	for name, suspected := range map[string]bool{"in use": false, "suspected": true} {
		t.Run(name, func(t *testing.T) {
			c := newClock()
			eps := []endpoint.Endpoint{spot("a", "m1", "", ""), spot("b", "m1", "", ""), spot("c", "m1", "", "")}
			r := brain(c, 1, eps...)
			before := leaseAt(t, r, "a")
			if suspected {
				for _, id := range []endpoint.ID{"b", "c"} {
					leaseAt(t, r, id).Done(Result{Class: outcome.DialFailed})
				}
				if got := r.breakerOf("a"); got != "suspected" {
					t.Fatalf("breaker %s", got)
				}
			}
			for _, eps[0].State = range []endpoint.State{endpoint.Starting, endpoint.Ready} {
				r.Update(slices.Clone(eps), nil)
			}
			trial := leaseAt(t, r, "a")
			before.Done(Result{Class: outcome.Stalled})
			trial.FirstContent(time.Millisecond)
			if got := r.breakerOf("a"); got != "closed" {
				t.Errorf("it answers, and its breaker is %s", got)
			}
			trial.Done(Result{Class: outcome.Success})
		})
	}
}

// A serverless endpoint with all its workers up and full starts no other one.
func TestNoMoreWorkers(t *testing.T) {
	ep := serverless("w", 0.001, endpoint.Ready)
	ep.Workers, ep.MaxWorkers = 2, 2
	r := probing(newClock(), ep)
	for range 8 { // two workers of four
		mustPick(t, r)
	}
	x, err := r.Explain(&Request{Model: "m"})
	if err != nil || x.Candidate[0].Verdict != noRoom.String() || x.Candidate[0].ColdSeconds == nil || *x.Candidate[0].ColdSeconds != 0 {
		t.Errorf("%v: %+v", err, x.Candidate[0])
	}
	ep.MaxWorkers = 3
	r.Update([]endpoint.Endpoint{ep}, nil)
	if x, _ = r.Explain(&Request{Model: "m"}); *x.Candidate[0].ColdSeconds == 0 {
		t.Errorf("a third worker would start: %+v", x.Candidate[0])
	}
}

// What is not made of tokens teaches no speed, and a first token behind a start that nobody knew of no lateness.
func TestWhatIsNotLearned(t *testing.T) {
	c := newClock()
	ep := serverless("w", 0.001, endpoint.Ready)
	ep.Workers, ep.Price.ColdStart = 1, 30*time.Second
	r := probing(c, ep)
	h := r.snap.Load().byID["w"].host
	var l Lease
	if err := r.Pick(&Request{Model: "m", Tokenless: true}, &l); err != nil {
		t.Fatal(err)
	}
	l.FirstContent(time.Millisecond)
	l.Done(Result{Class: outcome.Success, OutputTokens: 1000, Streamed: time.Millisecond})
	if h.learner.Count != 0 || h.tps.mean(-1) != -1 {
		t.Errorf("learned %d speeds from an answer without tokens, %v a second", h.learner.Count, h.tps.mean(-1))
	}
	before := h.learner.State().TTFTCount
	for _, took := range []time.Duration{25 * time.Second, 200 * time.Millisecond} {
		l := mustPick(t, r)
		l.FirstContent(took)
		l.Done(Result{Class: outcome.ClientGone})
	}
	if got := h.learner.State().TTFTCount; got != before+1 {
		t.Errorf("learned %d first tokens, want one of two", got-before)
	}
}

// A host that several models share ages once.
func TestWatchedOnce(t *testing.T) {
	c := newClock()
	ep := hourly("a", 1, 10, "x", "y", "z")
	r := brain(c, 1, ep)
	for range 100 {
		c.seconds(1)
		r.Advise(c.now())
	}
	if w := r.snap.Load().byID["a"].host.watched; w < 98 || w > 100 {
		t.Errorf("watched for %v s in 100", w)
	}
}

// However many answers end at once, each lets a host in slow start have more.
func TestSlowStartCountsAll(t *testing.T) {
	for range 200 {
		var h host
		h.comesBack()
		var wg sync.WaitGroup
		want := float64(rampFrom)
		for range 8 {
			want *= rampBy
			wg.Go(h.wentWell)
		}
		wg.Wait()
		if got := h.pub.ramp.get(); got != want {
			t.Fatalf("after eight answers %v at once, want %v", got, want)
		}
	}
}
