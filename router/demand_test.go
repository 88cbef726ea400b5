package router

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"headrace/router/endpoint"
	"headrace/router/health"
	"headrace/router/outcome"
)

func TestInRegion(t *testing.T) {
	for _, tc := range []struct {
		region, want string
		in           bool
	}{
		{"US-KS-2", "US", true},
		{"us-ks-2", "US-KS", true},
		{"US-KS-2", "US-KS-2", true},
		{"US", "us", true},
		{"USA", "US", false},
		{"US", "US-KS-2", false},
		{"", "US", false},
		{"US", "", false},
		{"DE", "EU", true},
		{"EU-RO-1", "EU", true},
		{"GB", "EU", false},
		{"US", "EU", false},
		{"de", "eu", true},
		{"DE-FRA", "EU", true},
		{"eu-west", "eu-west", true},
		{"E ", "EU", false},
	} {
		if got := InRegion(tc.region, tc.want); got != tc.in {
			t.Errorf("%q in %q: %v, want %v", tc.region, tc.want, got, tc.in)
		}
	}
}

// TestDemandProperty holds, for random fleets, models, requests and ways to fail, that no host below what the model, the key and
// the request demand is ever leased: not first, not when all others have failed, not when it is the only one.
func TestDemandProperty(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // printed below
	regions := []string{"", "US-KS-2", "US", "DE", "CA", "lab"}
	demand := func() (d Demand) {
		if rng.IntN(2) == 0 {
			d.Trust = endpoint.Trust(rng.IntN(5)) //nolint:gosec // a handful
		}
		d.Encrypted = rng.IntN(3) == 0
		for range rng.IntN(3) {
			d.Regions = append(d.Regions, []string{"US", "EU", "lab", "US-KS-2"}[rng.IntN(4)])
		}
		return d
	}
	now := time.Unix(1_800_000_000, 0)
	picks, rounds := 0, 2000
	if underRace {
		rounds = 300
	}
	for round := range rounds {
		r := New(Options{Now: func() time.Time { return now }})
		var eps []endpoint.Endpoint
		for i := range 1 + rng.IntN(6) {
			ep := hourly(fmt.Sprint("h", i), rng.Float64(), 4, "m")
			ep.Trust = endpoint.Trust(rng.IntN(5)) //nolint:gosec // a handful
			ep.Region = regions[rng.IntN(len(regions))]
			ep.BaseURL = []string{"http://h", "https://h"}[rng.IntN(2)]
			ep.TLS.InsecureSkipVerify = rng.IntN(4) == 0
			eps = append(eps, ep)
		}
		model := demand()
		r.Update(eps, []ModelRule{{Name: "m", Serves: []string{"m"}, Demand: model}})
		for range 10 {
			q := Request{Model: "m", Demand: demand()}
			key := Demand{}
			if rng.IntN(3) == 0 {
				key = demand()
				q.Also = &key
			}
			for range 4 {
				var l Lease
				if r.Pick(&q, &l) != nil {
					for i := range eps {
						if model.Meets(&eps[i]) && q.Demand.Meets(&eps[i]) && key.Meets(&eps[i]) && r.hosts[eps[i].ID].breaker.State(now) == health.StateClosed {
							t.Fatalf("seed %d round %d: %+v meets %+v and %+v but was not picked", seed, round, eps[i], model, q.Demand)
						}
					}
					break
				}
				picks++
				ep := l.Endpoint
				if ep.Trust < max(model.Trust, q.Demand.Trust, key.Trust) || (model.Encrypted || q.Demand.Encrypted || key.Encrypted) && (ep.BaseURL != "https://h" || ep.TLS.InsecureSkipVerify) {
					t.Fatalf("seed %d round %d: %+v was picked for %+v and %+v", seed, round, *ep, model, q.Demand)
				}
				for _, d := range []Demand{model, q.Demand, key} {
					in := len(d.Regions) == 0
					for _, want := range d.Regions {
						in = in || InRegion(ep.Region, want)
					}
					if !in {
						t.Fatalf("seed %d round %d: region %q was picked for %q", seed, round, ep.Region, d.Regions)
					}
				}
				class := []outcome.Class{outcome.Success, outcome.DialFailed, outcome.UpstreamFault, outcome.Throttled, outcome.NotReady, outcome.Opaque}[rng.IntN(6)]
				l.Done(Result{Class: class})
				if q.Tried = append(q.Tried, ep.ID); class == outcome.Success {
					break
				}
			}
		}
	}
	if picks < rounds/2 {
		t.Errorf("seed %d: only %d picks: the property was hardly tried", seed, picks)
	}
}

func TestUnfit(t *testing.T) {
	chatOnly := hourly("chat", 1, 4, "m")
	chatOnly.Routes, chatOnly.TextOnly, chatOnly.Plain, chatOnly.Limits.MaxBodyBytes = []string{"/chat/completions"}, true, true, 1000
	all := hourly("all", 9, 4, "m")
	for name, tc := range map[string]struct {
		eps   []endpoint.Endpoint
		q     Request
		want  endpoint.ID
		cause Cause
	}{
		"route it has":       {[]endpoint.Endpoint{chatOnly, all}, Request{Route: "/chat/completions", BodyBytes: 1000}, "chat", 0},
		"route it lacks":     {[]endpoint.Endpoint{chatOnly, all}, Request{Route: "/embeddings"}, "all", 0},
		"nobody has it":      {[]endpoint.Endpoint{chatOnly}, Request{Route: "/embeddings"}, "", NoRoute},
		"media goes round":   {[]endpoint.Endpoint{chatOnly, all}, Request{Route: "/chat/completions", Media: true}, "all", 0},
		"nobody takes media": {[]endpoint.Endpoint{chatOnly}, Request{Media: true}, "", NoMedia},
		"forms go round":     {[]endpoint.Endpoint{chatOnly, all}, Request{Beyond: "response_format"}, "all", 0},
		"nobody takes forms": {[]endpoint.Endpoint{chatOnly}, Request{Beyond: "response_format"}, "", TooPlain},
		"size goes round":    {[]endpoint.Endpoint{chatOnly, all}, Request{BodyBytes: 1001}, "all", 0},
		"nobody takes it":    {[]endpoint.Endpoint{chatOnly}, Request{BodyBytes: 1001}, "", TooLarge},
		"nobody qualifies":   {[]endpoint.Endpoint{chatOnly, all}, Request{Demand: Demand{Trust: endpoint.TrustSecure}}, "", Unqualified},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRouter(tc.eps...)
			tc.q.Model = "m"
			var l Lease
			err := r.Pick(&tc.q, &l)
			if tc.want != "" {
				if err != nil || l.Endpoint.ID != tc.want {
					t.Fatalf("got %v, want %s", err, tc.want)
				}
				return
			}
			ue, ok := err.(*UnavailableError) //nolint:errorlint // Pick returns it as it is
			if !ok || ue.Cause != tc.cause || ue.RetryAfter != 0 {
				t.Fatalf("got %+v, want cause %d and no Retry-After", err, tc.cause)
			}
			if tc.cause == TooLarge && ue.MaxBytes != 1000 {
				t.Errorf("largest body %d, want 1000", ue.MaxBytes)
			}
			if ue.Member != tc.q.Beyond {
				t.Errorf("member %q, want %q", ue.Member, tc.q.Beyond)
			}
		})
	}
}

func serverless(id string, usdPerSecond float64, s endpoint.State) endpoint.Endpoint {
	return endpoint.Endpoint{
		ID: endpoint.ID(id), MaxNumSeqs: 4, Served: []endpoint.Served{{Name: "m"}}, Tenure: endpoint.Serverless, State: s,
		Price: endpoint.Price{Basis: endpoint.PerWorkerSecond, USDPerWorkerSecond: usdPerSecond},
	}
}

// TestSleepingHosts wakes a worker only when those that are up are full.
func TestSleepingHosts(t *testing.T) {
	r := newRouter(serverless("cold", 0.00001, endpoint.Cold), hourly("up", 5, 2, "m"))
	for i, want := range []endpoint.ID{"up", "up", "cold", "cold"} {
		if got := mustPick(t, r).Endpoint.ID; got != want {
			t.Fatalf("pick %d went to %s, want %s", i, got, want)
		}
	}
	starting := hourly("vast", 1, 4, "m")
	starting.State = endpoint.Starting
	if err := newRouter(starting).Pick(&Request{Model: "m"}, new(Lease)); err == nil {
		t.Error("an instance that is still starting was picked")
	}
	if got := mustPick(t, newRouter(serverless("starting", 1, endpoint.Starting))); got.Decision.Why != whyColdStart {
		t.Errorf("why %q", got.Decision.Why)
	}
	err := newRouter(serverless("none", 1, endpoint.NoCapacity)).Pick(&Request{Model: "m"}, new(Lease))
	if ue, ok := err.(*UnavailableError); !ok || ue.Cause != NoCapacity || ue.RetryAfter < 10*time.Second { //nolint:errorlint // as it is
		t.Errorf("without capacity: %+v", err)
	}
}

// TestNoCapacityTellsWhy gives the endpoints' own reasons, each once.
func TestNoCapacityTellsWhy(t *testing.T) {
	const crash, gpus = "its workers crash", "no free GPU"
	at := func(id string, s endpoint.State, why string) endpoint.Endpoint {
		ep := serverless(id, 1, s)
		ep.StateReason = why
		return ep
	}
	for name, tc := range map[string]struct {
		eps   []endpoint.Endpoint
		cause Cause
		want  string
	}{
		"crash loop":     {[]endpoint.Endpoint{at("a", endpoint.NoCapacity, crash)}, NoCapacity, crash},
		"no GPU":         {[]endpoint.Endpoint{at("a", endpoint.NoCapacity, gpus)}, NoCapacity, gpus},
		"both":           {[]endpoint.Endpoint{at("a", endpoint.NoCapacity, gpus), at("b", endpoint.NoCapacity, crash), at("c", endpoint.NoCapacity, gpus)}, NoCapacity, crash + "; or " + gpus},
		"nobody says":    {[]endpoint.Endpoint{at("a", endpoint.NoCapacity, "")}, NoCapacity, "its provider can start no worker"},
		"another is out": {[]endpoint.Endpoint{at("a", endpoint.NoCapacity, crash), at("b", endpoint.Preempted, "secret text")}, Failing, "every host that serves it is failing"},
	} {
		t.Run(name, func(t *testing.T) {
			err := newRouter(tc.eps...).Pick(&Request{Model: "m"}, new(Lease))
			ue, ok := errors.AsType[*UnavailableError](err)
			if !ok || ue.Cause != tc.cause || ue.Reason != tc.want {
				t.Errorf("%+v, want %q", err, tc.want)
			}
		})
	}
}

// TestLimits keeps an endpoint's limits, so that its provider need not say 429.
func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ep := hourly("a", 1, 1000, "m")
		ep.Limits = endpoint.Limits{Requests: 10, Per: 10 * time.Second, Concurrent: 4}
		r := newRouter(ep)
		var held []*Lease
		for range 4 {
			held = append(held, mustPick(t, r))
		}
		ue, ok := r.Pick(&Request{Model: "m"}, new(Lease)).(*UnavailableError) //nolint:errorlint // as it is
		if !ok || ue.Cause != Throttled || ue.RetryAfter != time.Second {
			t.Fatalf("a fifth at once: %+v", ue)
		}
		for _, l := range held {
			l.Done(Result{Class: outcome.Success})
		}
		for range 6 {
			mustPick(t, r).Done(Result{Class: outcome.Success})
		}
		ue, ok = r.Pick(&Request{Model: "m"}, new(Lease)).(*UnavailableError) //nolint:errorlint // as it is
		if !ok || ue.Cause != Throttled || ue.RetryAfter < 9*time.Second || ue.RetryAfter > 11*time.Second {
			t.Fatalf("an eleventh within ten seconds: %+v", ue)
		}
		<-time.After(ue.RetryAfter) // by the bubble's clock
		mustPick(t, r).Done(Result{Class: outcome.Success})
	})
}

// TestWindowProperty holds that any stretch of time has at most the limit, and that most of it can be used.
func TestWindowProperty(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // printed below
	const limit, per = 50, 10 * time.Second
	var w window
	var taken []time.Time
	now := time.Unix(1_800_000_000, 0)
	for range 20_000 {
		now = now.Add(time.Duration(rng.Int64N(int64(200 * time.Millisecond))))
		if rng.IntN(500) == 0 {
			now = now.Add(time.Minute)
		}
		ok, wait := w.take(now, limit, per)
		if !ok && wait <= 0 {
			t.Fatalf("seed %d: full, but nothing to wait for", seed)
		}
		if (w.full(now, limit, per) > 0) != (int(w.sum) >= limit) {
			t.Fatalf("seed %d: full and take disagree", seed)
		}
		if !ok {
			continue
		}
		taken = append(taken, now)
		if n := len(taken); n > limit && now.Sub(taken[n-1-limit]) < per {
			t.Fatalf("seed %d: %d within %s", seed, limit+1, now.Sub(taken[n-1-limit]))
		}
	}
	if len(taken) < 4000 {
		t.Errorf("seed %d: only %d were let in", seed, len(taken))
	}
}

// TestDoubts lets opaque failures speak against a host only when request after request ends so.
func TestDoubts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRouter(hourly("a", 1, 10, "m"))
		for range 3 * doubtsInRow {
			for range doubtsInRow - 1 {
				mustPick(t, r).Done(Result{Class: outcome.Opaque})
			}
			mustPick(t, r).Done(Result{Class: outcome.Success})
		}
		for range doubtsInRow {
			mustPick(t, r).Done(Result{Class: outcome.Opaque})
		}
		if err := r.Pick(&Request{Model: "m"}, new(Lease)); err == nil {
			t.Error("still picked after ten opaque failures in a row")
		}
		<-time.After(doubtCoolDown)
		mustPick(t, r).Done(Result{Class: outcome.Success})
	})
}

func TestNotReadyCools(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRouter(hourly("a", 1, 10, "m"))
		for range 20 {
			mustPick(t, r).Done(Result{Class: outcome.NotReady})
			if err := r.Pick(&Request{Model: "m"}, new(Lease)); err == nil {
				t.Fatal("picked again at once")
			}
			<-time.After(notReadyCool)
		}
		if v := r.Hosts()[0]; v.Opens != 0 {
			t.Errorf("the breaker opened %d times for a host that only was not ready", v.Opens)
		}
	})
}

func TestUnnamed(t *testing.T) {
	ep := hourly("a", 1, 10)
	ep.Served = []endpoint.Served{{Name: "my-endpoint", Unnamed: true}}
	r := newRouter(ep)
	var l Lease
	if err := r.Pick(&Request{Model: "my-endpoint"}, &l); err != nil || !l.Unnamed || string(l.ServedJSON) != "null" {
		t.Errorf("got %v, unnamed %v, model sent %s", err, l.Unnamed, l.ServedJSON)
	}
}
