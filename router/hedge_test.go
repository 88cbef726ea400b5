package router

import (
	"errors"
	"testing"
	"time"

	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// TestHedge asks for a second host beside the running one: only idle ones that are paid anyway, and keep the SLO.
func TestHedge(t *testing.T) {
	starting := serverless("starting", 0.0001, endpoint.Cold)
	unpriced := hourly("unpriced", 0, 10, "m")
	unpriced.Price = endpoint.Price{}
	away := hourly("away", 1, 10, "m")
	away.State = endpoint.Draining
	for name, tc := range map[string]struct {
		eps    []endpoint.Endpoint
		busy   []endpoint.ID // that serve a request already
		waited time.Duration // since the request came
		want   endpoint.ID   // "" for nobody
	}{
		"an idle rented host":                   {eps: []endpoint.Endpoint{hourly("b", 9, 10, "m")}, want: "b"},
		"one that serves somebody":              {eps: []endpoint.Endpoint{hourly("b", 1, 10, "m")}, busy: []endpoint.ID{"b"}},
		"the idle one of two":                   {eps: []endpoint.Endpoint{hourly("b", 1, 10, "m"), hourly("c", 9, 10, "m")}, busy: []endpoint.ID{"b"}, want: "c"},
		"a worker that is up":                   {eps: []endpoint.Endpoint{serverless("worker", 0.0001, endpoint.Ready)}},
		"a worker that is not":                  {eps: []endpoint.Endpoint{starting}},
		"an API":                                {eps: []endpoint.Endpoint{api("api", 0.01, 0.01)}},
		"an unknown price":                      {eps: []endpoint.Endpoint{unpriced}},
		"a host that is leaving":                {eps: []endpoint.Endpoint{away}},
		"nobody else":                           {},
		"another model's host":                  {eps: []endpoint.Endpoint{hourly("b", 1, 10, "other")}},
		"time for it is left":                   {eps: []endpoint.Endpoint{hourly("b", 1, 10, "m")}, waited: time.Second, want: "b"},
		"too late for it to keep the promise":   {eps: []endpoint.Endpoint{hourly("b", 1, 10, "m")}, waited: 1900 * time.Millisecond},
		"the promise is over":                   {eps: []endpoint.Endpoint{hourly("b", 1, 10, "m")}, waited: time.Minute},
		"a worker that is paid anyway, as well": {eps: []endpoint.Endpoint{serverless("held", 0.0001, endpoint.Ready)}, want: "held"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClock()
			r := brain(c, 1, append([]endpoint.Endpoint{hourly("a", 1, 10, "m")}, tc.eps...)...)
			if tc.want == "held" {
				r.snap.Load().byID["held"].host.paid.Store(true)
			}
			var others []*Lease
			for _, id := range tc.busy {
				var tried []endpoint.ID
				for _, ep := range r.Hosts() {
					if ep.ID != id {
						tried = append(tried, ep.ID)
					}
				}
				others = append(others, mustPick(t, r, tried...))
			}
			before := r.decisions.next.Load()
			var l Lease
			err := r.Hedge(&Request{Model: "m", Tried: []endpoint.ID{"a"}, Now: c.now(), Came: c.now().Add(-tc.waited), PromptTokens: 100}, &l)
			switch {
			case tc.want == "" && !errors.Is(err, ErrNoSpare):
				t.Errorf("leased %+v, %v", l.Endpoint, err)
			case tc.want == "" && r.decisions.next.Load() != before:
				t.Error("what was not done is among the decisions")
			case tc.want != "" && (err != nil || l.Endpoint.ID != tc.want):
				t.Errorf("leased %+v, %v, want %s", l.Endpoint, err, tc.want)
			case tc.want != "" && r.Decisions(1, "")[0].Why != whyHedge:
				t.Errorf("decision %+v", r.Decisions(1, "")[0])
			}
			l.Done(Result{Class: outcome.Outrun, Cached: -1})
			for _, o := range others {
				o.Done(Result{Class: outcome.Success, Cached: -1})
			}
			for _, h := range r.Hosts() {
				if h.InFlight != 0 || h.Breaker != "closed" {
					t.Errorf("%s: %d in flight, breaker %s", h.ID, h.InFlight, h.Breaker)
				}
			}
		})
	}
	if err := brain(newClock(), 1).Hedge(&Request{Model: "m"}, new(Lease)); !errors.Is(err, ErrUnknownModel) {
		t.Errorf("an unknown model: %v", err)
	}
}

// TestHedgesDoNotMeet: of two that look at the same moment, and see the same idle host, only one gets it.
func TestHedgesDoNotMeet(t *testing.T) {
	c := newClock()
	r := brain(c, 1, hourly("a", 1, 10, "m"), hourly("b", 1, 10, "m"))
	m := r.snap.Load().models["m"]
	var both [2]scratch
	for i := range both {
		s := &both[i]
		s.prepare(r, m, &Request{Model: "m", Tried: []endpoint.ID{"a"}, Now: c.now(), PromptTokens: 100})
		s.survey()
		if s.spare(); s.soonest() == nil {
			t.Fatal("nobody is idle")
		}
	}
	var first, second Lease
	if !both[0].lease(r, both[0].soonest(), whyHedge, &first) || first.Endpoint.ID != "b" {
		t.Fatal("the first did not get the idle host")
	}
	if both[1].lease(r, both[1].soonest(), whyHedge, &second) {
		t.Error("the second got it as well")
	}
	if h := r.Hosts()[1]; h.InFlight != 1 {
		t.Errorf("%d in flight", h.InFlight)
	}
	first.Done(Result{Class: outcome.Outrun, Cached: -1})
	var third Lease
	if err := r.Hedge(&Request{Model: "m", Tried: []endpoint.ID{"a"}, Now: c.now(), PromptTokens: 100}, &third); err != nil {
		t.Errorf("idle again, and not taken: %v", err)
	}
	third.Done(Result{Class: outcome.Outrun, Cached: -1})
}

// TestHedgeWindow says when a first token is late enough, by the SLO of 2 s and an expected time of 0.27 s.
func TestHedgeWindow(t *testing.T) {
	for name, tc := range map[string]struct {
		waited, slo time.Duration
		from, until time.Duration
	}{
		"half of the promise, where 19 of 20 would have come by then": {from: time.Second, until: 2 * time.Second},
		"that counts from when the request came":                      {waited: 400 * time.Millisecond, from: 600 * time.Millisecond, until: 1600 * time.Millisecond},
		"later than 19 of 20, where the promise is short":             {slo: 700 * time.Millisecond, from: 577 * time.Millisecond, until: 700 * time.Millisecond},
		"never, where that is too late for another host":              {slo: 500 * time.Millisecond, from: 577 * time.Millisecond, until: 500 * time.Millisecond},
		"at once, where it was not expected to be kept":               {slo: 300 * time.Millisecond, from: 0, until: 300 * time.Millisecond},
		"never, where it is over":                                     {waited: 3 * time.Second, from: 0, until: -time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClock()
			r := brain(c, 1, hourly("a", 1, 10, "m"))
			var l Lease
			if err := r.Pick(&Request{Model: "m", Now: c.now(), Came: c.now().Add(-tc.waited), PromptTokens: 20, SLO: SLO{TTFT: tc.slo}, Policy: PolicyCost}, &l); err != nil {
				t.Fatal(err)
			}
			from, until := l.HedgeWindow()
			if from.Round(time.Millisecond) != tc.from || until != tc.until {
				t.Errorf("from %v until %v; want %v and %v (expected %.3f s, P %.3f)", from, until, tc.from, tc.until, l.Decision.TTFT, l.Decision.PTTFT)
			}
		})
	}
}

// TestOutrunTeaches: a host that is always outrun is known to be slow, although none of its first tokens was seen.
func TestOutrunTeaches(t *testing.T) {
	c := newClock()
	r := brain(c, 1, hourly("a", 1, 10, "m"))
	pick := func() *Lease {
		var l Lease
		if err := r.Pick(&Request{Model: "m", Now: c.now(), PromptTokens: 20}, &l); err != nil {
			t.Fatal(err)
		}
		return &l
	}
	expected := pick()
	first := expected.Decision.TTFT
	expected.Done(Result{Class: outcome.ClientGone, Cached: -1})
	for range 3 { // sooner than expected: says nothing
		l := pick()
		c.seconds(first / 2)
		l.Done(Result{Class: outcome.Outrun, Cached: -1})
	}
	l := pick()
	if l.Decision.TTFT > first*1.001 {
		t.Errorf("expected %.3f s, then %.3f s of a host that was never late", first, l.Decision.TTFT)
	}
	l.Done(Result{Class: outcome.ClientGone, Cached: -1})
	for range 30 {
		l := pick()
		c.seconds(3)
		l.Done(Result{Class: outcome.Outrun, Cached: -1})
	}
	l = pick()
	if l.Decision.TTFT < 1 || l.Decision.PTTFT > 0.9 {
		t.Errorf("still expected to take %.3f s, and to keep the promise with %.2f", l.Decision.TTFT, l.Decision.PTTFT)
	}
	l.Done(Result{Class: outcome.ClientGone, Cached: -1})
	if h := r.Hosts()[0]; h.Breaker != "closed" || h.InFlight != 0 {
		t.Errorf("%d in flight, breaker %s", h.InFlight, h.Breaker)
	}
}

func TestHedgeBudget(t *testing.T) {
	r := New(Options{Now: time.Now})
	n := 0
	for r.Hedges.Left() && r.Hedges.Spend() {
		n++
	}
	if n != hedgeCap || r.Hedges.Spend() {
		t.Errorf("%d hedges saved up, want %d", n, hedgeCap)
	}
	for range 49 {
		r.Hedges.Earn()
	}
	if r.Hedges.Left() {
		t.Error("49 requests earn a hedge")
	}
	if r.Hedges.Earn(); !r.Hedges.Left() || !r.Budget.Left() {
		t.Error("50 requests earn none, or retries are spent by hedges")
	}
}

func BenchmarkHedge(b *testing.B) {
	r := brain(newClock(), 1, hourly("a", 1, 10, "m"), hourly("b", 1, 10, "m"), hourly("c", 1, 10, "m"))
	q := &Request{Model: "m", Now: r.now(), Tried: []endpoint.ID{"a"}, PromptTokens: 100}
	var l Lease
	b.ReportAllocs()
	for b.Loop() {
		if err := r.Hedge(q, &l); err != nil {
			b.Fatal(err)
		}
		l.Done(Result{Class: outcome.Outrun, Cached: -1})
	}
}
