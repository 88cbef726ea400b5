package router

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"headrace/router/affinity"
	"headrace/router/endpoint"
	"headrace/router/health"
	"headrace/router/outcome"
)

func hourly(id string, usd float64, seqs int, models ...string) endpoint.Endpoint {
	ep := endpoint.Endpoint{ID: endpoint.ID(id), MaxNumSeqs: seqs, Price: endpoint.Price{Basis: endpoint.PerHour, USDPerHour: usd}}
	for _, m := range models {
		ep.Served = append(ep.Served, endpoint.Served{Name: m})
	}
	return ep
}

func newRouter(eps ...endpoint.Endpoint) *Router {
	r := New(Options{Now: time.Now, Breaker: health.Options{Failures: 3, OpenFor: 10 * time.Second}})
	r.Update(eps, nil)
	return r
}

func mustPick(t *testing.T, r *Router, tried ...endpoint.ID) *Lease {
	t.Helper()
	l := new(Lease)
	if err := r.Pick(&Request{Model: "m", Tried: tried}, l); err != nil {
		t.Fatal(err)
	}
	return l
}

func TestPickOrder(t *testing.T) {
	perToken := endpoint.Endpoint{ID: "api", MaxNumSeqs: 10, Served: []endpoint.Served{{Name: "m"}}, Price: endpoint.Price{Basis: endpoint.PerToken, USDPerMTokOut: 0.01}}
	unknown := hourly("unknown", 0, 10, "m")
	unknown.Price = endpoint.Price{}
	gone := hourly("gone", 0.01, 10, "m")
	gone.State = endpoint.Gone
	for name, tc := range map[string]struct {
		eps  []endpoint.Endpoint
		want []endpoint.ID // of picks one after another, none given back
	}{
		"an engine that is paid anyway before one that is not": {
			[]endpoint.Endpoint{serverless("worker", 0.0007, endpoint.Ready), hourly("host", 1, 2, "m")},
			[]endpoint.ID{"host", "host", "worker"},
		},
		"the cheaper worker until it is full, then the other": {
			[]endpoint.Endpoint{serverless("dear", 0.001, endpoint.Ready), serverless("cheap", 0.0005, endpoint.Ready)},
			[]endpoint.ID{"cheap", "cheap", "cheap", "cheap", "dear", "dear"},
		},
		"a price per token":                   {[]endpoint.Endpoint{serverless("worker", 0.001, endpoint.Ready), perToken}, []endpoint.ID{"api", "api"}},
		"unknown price is never free":         {[]endpoint.Endpoint{unknown, hourly("known", 99, 10, "m")}, []endpoint.ID{"known", "known"}},
		"unknown price when all else is full": {[]endpoint.Endpoint{unknown, hourly("known", 99, 2, "m")}, []endpoint.ID{"known", "known", "unknown"}},
		"a host that is gone is none":         {[]endpoint.Endpoint{gone, hourly("up", 5, 10, "m")}, []endpoint.ID{"up"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRouter(tc.eps...)
			for i, want := range tc.want {
				if got := mustPick(t, r).Endpoint.ID; got != want {
					t.Fatalf("pick %d went to %s, want %s", i, got, want)
				}
			}
		})
	}
}

func TestPickTried(t *testing.T) {
	r := newRouter(hourly("a", 1, 10, "m"), hourly("b", 2, 10, "m"))
	if got := mustPick(t, r, "a").Endpoint.ID; got != "b" {
		t.Errorf("with a tried: %s, want b", got)
	}
	if got := mustPick(t, r, "a", "b").Endpoint.ID; got != "a" {
		t.Errorf("with both tried: %s, want the cheapest again", got)
	}
}

func TestUnknownModel(t *testing.T) {
	r := newRouter(hourly("a", 1, 10, "m"))
	if err := r.Pick(&Request{Model: "x"}, new(Lease)); !errors.Is(err, ErrUnknownModel) {
		t.Errorf("got %v", err)
	}
}

func TestRules(t *testing.T) {
	r := New(Options{Now: time.Now})
	r.Update([]endpoint.Endpoint{hourly("a", 1, 10, "org/llama-70b"), hourly("b", 2, 10, "llama-awq")},
		[]ModelRule{{Name: "llama", Serves: []string{"org/*", "llama-awq"}}, {Name: "nobody", Serves: []string{"x"}}})
	var l Lease
	if err := r.Pick(&Request{Model: "llama", Tried: []endpoint.ID{"b"}}, &l); err != nil || l.Served != "org/llama-70b" || string(l.ServedJSON) != `"org/llama-70b"` {
		t.Errorf("pick by rule: %v, served %q as %s", err, l.Served, l.ServedJSON)
	}
	if err := r.Pick(&Request{Model: "org/llama-70b"}, new(Lease)); !errors.Is(err, ErrUnknownModel) {
		t.Errorf("with rules only their names are offered: %v", err)
	}
	var ue *UnavailableError
	if err := r.Pick(&Request{Model: "nobody"}, new(Lease)); !errors.As(err, &ue) || ue.RetryAfter <= 0 {
		t.Errorf("a rule without a host: %v", err)
	}
}

func TestThrottled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRouter(hourly("a", 1, 10, "m"))
		mustPick(t, r).Done(Result{Class: outcome.Throttled, RetryAfter: 7 * time.Second})
		err := r.Pick(&Request{Model: "m"}, new(Lease))
		ue, ok := errors.AsType[*UnavailableError](err)
		if !ok || ue.Cause != Throttled || ue.RetryAfter != 7*time.Second {
			t.Fatalf("after 429: %+v", err)
		}
		<-time.After(7 * time.Second) // by the bubble's clock
		mustPick(t, r).Done(Result{Class: outcome.Success})
	})
}

func TestBreakerOpensAndHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRouter(hourly("a", 1, 10, "m"))
		mustPick(t, r).Done(Result{Class: outcome.DialFailed})
		var ue *UnavailableError
		if err := r.Pick(&Request{Model: "m"}, new(Lease)); !errors.As(err, &ue) || ue.Cause == Throttled || ue.RetryAfter > 12*time.Second {
			t.Fatalf("after nobody answered: %v", err)
		}
		<-time.After(12 * time.Second) // by the bubble's clock
		trial := mustPick(t, r)
		if err := r.Pick(&Request{Model: "m"}, new(Lease)); err == nil {
			t.Error("two requests at once tried a half-open host")
		}
		trial.Done(Result{Class: outcome.ClientGone}) // says nothing: the slot is free again
		mustPick(t, r).Done(Result{Class: outcome.Success})
		mustPick(t, r).Done(Result{Class: outcome.Success})
		if v := r.Hosts()[0]; v.Breaker != "closed" || v.InFlight != 0 || v.Opens != 1 {
			t.Errorf("host after healing: %+v", v)
		}
	})
}

// TestNeverCounts checks that what callers do wrong never opens a breaker.
func TestNeverCounts(t *testing.T) {
	r := newRouter(hourly("a", 1, 10, "m"))
	for range 50 {
		mustPick(t, r).Done(Result{Class: outcome.CallerFault})
		mustPick(t, r).Done(Result{Class: outcome.ClientGone})
	}
	mustPick(t, r)
}

func TestStateOutlivesSnapshots(t *testing.T) {
	r := newRouter(hourly("a", 1, 10, "m"), hourly("b", 1, 10, "m"))
	l := mustPick(t, r)
	r.Update([]endpoint.Endpoint{hourly("a", 1, 10, "m"), hourly("b", 1, 10, "m")}, nil)
	if got := r.Hosts()[0].InFlight + r.Hosts()[1].InFlight; got != 1 {
		t.Errorf("in flight after an update: %d", got)
	}
	l.Done(Result{Class: outcome.Success})
	l.Done(Result{Class: outcome.Success})
	if got := r.Hosts()[0].InFlight + r.Hosts()[1].InFlight; got != 0 {
		t.Errorf("in flight after done twice: %d", got)
	}
}

// TestLeasesAddUp runs random outcomes from many goroutines over changing fleets.
func TestLeasesAddUp(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var eps []endpoint.Endpoint
	for i := range 5 {
		eps = append(eps, hourly(fmt.Sprint("h", i), float64(i+1), 8, "m"))
	}
	r := newRouter(eps...)
	var wg sync.WaitGroup
	for g := range 8 {
		rng := rand.New(rand.NewPCG(seed, uint64(g))) //nolint:gosec // a test's
		wg.Go(func() {
			for range 3000 {
				var l Lease
				if r.Pick(&Request{Model: "m"}, &l) != nil {
					continue
				}
				if rng.IntN(3) == 0 {
					l.FirstContent(time.Millisecond)
				}
				if rng.IntN(50) == 0 {
					n := 1 + rng.IntN(len(eps))
					r.Update(eps[:n:n], nil)
				}
				l.Done(Result{Class: outcome.Class(rng.IntN(int(outcome.Moved) + 1)), RetryAfter: time.Nanosecond})
			}
		})
	}
	wg.Wait()
	r.Update(eps, nil)
	for _, h := range r.Hosts() {
		if h.InFlight != 0 {
			t.Errorf("%s: %d in flight, want 0", h.ID, h.InFlight)
		}
	}
}

func TestBudget(t *testing.T) {
	b := NewBudget(BudgetOptions{PerRequest: 0.5, Cap: 2})
	if got := spendAll(b); got != 2 {
		t.Fatalf("a budget of two gives %d", got)
	}
	b.Earn()
	if b.Spend() {
		t.Error("half a retry was spent as one")
	}
	b.Earn()
	if !b.Spend() {
		t.Error("two requests did not earn one retry")
	}
	for range 100 {
		b.Earn()
	}
	if got := spendAll(b); got != 2 {
		t.Errorf("%d were saved up, want the cap", got)
	}
}

func spendAll(b *Budget) int {
	n := 0
	for b.Spend() {
		n++
	}
	return n
}

// conversation is a request that continues one of several conversations with a prompt of a few turns.
func conversation(i uint64) Request {
	q := Request{Model: "m", Now: time.Now(), PromptTokens: 500, Affinity: affinity.Key{Session: i + 1, Root: 7}}
	for turn := range int32(8) {
		q.Affinity.Add(affinity.Mark{Hash: i<<8 + uint64(turn) + 1, Tokens: 60 * (turn + 1)}) //nolint:gosec // not negative
	}
	return q
}

// serve is what a streamed answer asks of the router, from its pick to its end.
func serve(r *Router, q *Request, l *Lease) error {
	if err := r.Pick(q, l); err != nil {
		return err
	}
	l.FirstContent(100 * time.Millisecond)
	l.Done(Result{Class: outcome.Success, OutputTokens: 200, Events: 200, Cached: 100, Streamed: 6 * time.Second, USD: 1e-4})
	return nil
}

// hosts are n of a model, with hourly prices from $1 on.
func hosts(n, seqs int) (eps []endpoint.Endpoint) {
	for i := range n {
		eps = append(eps, hourly(fmt.Sprint("h", i), float64(i+1), seqs, "m"))
	}
	return eps
}

func TestPickAllocatesNothing(t *testing.T) {
	for _, n := range []int{2, 16} {
		r := newRouter(hosts(n, 10)...)
		var l Lease
		q := conversation(0)
		if allocs := testing.AllocsPerRun(200, func() {
			if err := serve(r, &q, &l); err != nil {
				t.Fatal(err)
			}
		}); allocs != 0 {
			t.Errorf("%v allocations at %d hosts", allocs, n)
		}
	}
}

func BenchmarkPickDone(b *testing.B) {
	for _, n := range []int{1, 16, 64, 256, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r := newRouter(hosts(n, 8)...)
			var l Lease
			q := Request{Model: "m", Now: time.Now()}
			b.ReportAllocs()
			for b.Loop() {
				if err := r.Pick(&q, &l); err != nil {
					b.Fatal(err)
				}
				l.Done(Result{Class: outcome.Success})
			}
		})
	}
}

// BenchmarkConversation is all that streamed answers of eight conversations ask of the router, each with its marks.
func BenchmarkConversation(b *testing.B) {
	for _, n := range []int{1, 16, 64} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r := newRouter(hosts(n, 8)...)
			var l Lease
			var qs [8]Request
			for i := range qs {
				qs[i] = conversation(uint64(i)) //nolint:gosec // not negative
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if err := serve(r, &qs[i%len(qs)], &l); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkContention is Pick and Done by several goroutines at once, at 16 hosts.
func BenchmarkContention(b *testing.B) {
	for _, workers := range []int{1, 2, 8} {
		b.Run(fmt.Sprint(workers), func(b *testing.B) {
			r := newRouter(hosts(16, 64)...)
			var wg sync.WaitGroup
			b.ReportAllocs()
			b.ResetTimer()
			for range workers {
				wg.Go(func() {
					var l Lease
					q := Request{Model: "m", Now: time.Now()}
					for range b.N / workers {
						if err := r.Pick(&q, &l); err != nil {
							b.Error(err)
							return
						}
						l.FirstContent(100 * time.Millisecond)
						l.Done(Result{Class: outcome.Success, OutputTokens: 200, Cached: -1, Streamed: 6 * time.Second})
					}
				})
			}
			wg.Wait()
		})
	}
}
