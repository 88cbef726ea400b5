package router

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"headrace/router/affinity"
	"headrace/router/capacity"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// clock is a time that a test moves.
type clock struct{ t time.Time }

func (c *clock) now() time.Time       { return c.t }
func (c *clock) pass(d time.Duration) { c.t = c.t.Add(d) }
func (c *clock) seconds(s float64)    { c.pass(seconds(s)) }
func newClock() *clock                { return &clock{time.Unix(1_800_000_000, 0)} }
func tell(*endpoint.Endpoint) capacity.Prior {
	return capacity.Prior{ITLSeconds: 0.0274725 * 1.04, Slope: 0.04, TTFTSeconds: 0.25, PrefillTokensPerSecond: 1200}
}

func brain(c *clock, seed uint64, eps ...endpoint.Endpoint) *Router {
	r := New(Options{Now: c.now, Prior: tell, Seed: seed})
	r.Update(eps, nil)
	return r
}

func api(id string, in, out float64) endpoint.Endpoint {
	return endpoint.Endpoint{
		ID: endpoint.ID(id), MaxNumSeqs: 400, Served: []endpoint.Served{{Name: "m"}}, Tenure: endpoint.TenurePerToken,
		Price: endpoint.Price{Basis: endpoint.PerToken, USDPerMTokIn: in, USDPerMTokOut: out},
	}
}

// truth is an engine that answers as it is, whatever is expected of it: a token every a+b·n seconds.
type truth struct{ a, b, ttft float64 }

// serve answers a request of 200 tokens at once in virtual time, as if n ran there.
func (tr truth) serve(l *Lease, n float64) {
	l.FirstContent(seconds(tr.ttft))
	l.Done(Result{Class: outcome.Success, OutputTokens: 200, Cached: -1, Streamed: seconds(199 * (tr.a + tr.b*n))})
}

// A lease's worth of marginal cost: whoever serves the most at once is not drawn more requests by it, and an idle host that is
// paid anyway is used.
func TestIdleHostsAreUsed(t *testing.T) {
	c := newClock()
	r := brain(c, 1, hourly("a", 1, 32, "m"), hourly("b", 1.1, 32, "m"), hourly("c", 0.9, 32, "m"))
	got := map[endpoint.ID]int{}
	for range 600 {
		l := mustPick(t, r)
		got[l.Endpoint.ID]++
		c.seconds(1)
		truth{0.0275, 0.0011, 0.3}.serve(l, 1)
	}
	for _, id := range []endpoint.ID{"a", "b", "c"} {
		if got[id] < 100 {
			t.Errorf("%s got %d of 600 requests: idle and paid, it should be used as the others are", id, got[id])
		}
	}
}

// Replicas that know nothing of each other do not all send their next request to the same host.
func TestReplicasDoNotHerd(t *testing.T) {
	const replicas, hosts = 32, 8
	c := newClock()
	got := map[endpoint.ID]int{}
	for replica := range uint64(replicas) {
		var eps []endpoint.Endpoint
		for i := range hosts {
			eps = append(eps, hourly(fmt.Sprint("h", i), 1, 32, "m"))
		}
		got[mustPick(t, brain(c, replica, eps...)).Endpoint.ID]++
	}
	for id, n := range got {
		if n > 3*replicas/hosts {
			t.Errorf("%s got %d of %d requests, one of each replica, with %d hosts alike", id, n, replicas, hosts)
		}
	}
}

// A host that turned slow is left alone, and given another chance when it has been idle for long.
func TestSlowHostIsLeftAndRetried(t *testing.T) {
	c := newClock()
	r := brain(c, 1, hourly("slow", 1, 32, "m"), hourly("fast", 1, 32, "m"))
	truths := map[endpoint.ID]truth{"slow": {0.11, 0.004, 0.3}, "fast": {0.0275, 0.0011, 0.3}} // 9 and 35 tokens per second
	count := func(n int) map[endpoint.ID]int {
		got := map[endpoint.ID]int{}
		for range n {
			l := mustPick(t, r)
			got[l.Endpoint.ID]++
			c.seconds(3)
			truths[l.Endpoint.ID].serve(l, 1)
		}
		return got
	}
	count(20)
	if got := count(100); got["slow"] > 3 {
		t.Errorf("a host at 9 tokens per second got %d of 100 requests that want 15", got["slow"])
	}
	truths["slow"] = truths["fast"]
	if got := count(400); got["slow"] < 40 {
		t.Errorf("well again, it got %d of the next 400 requests within 20 minutes", got["slow"])
	}
}

// A host that gives its first tokens fast and then hardly any is found by the speed of its streams, before they end.
func TestLiar(t *testing.T) {
	c := newClock()
	r := brain(c, 1, hourly("liar", 1, 32, "m"), hourly("honest", 1, 32, "m"))
	late := 0
	for i := range 200 {
		l := mustPick(t, r)
		if l.Endpoint.ID == "liar" {
			l.FirstContent(50 * time.Millisecond)
			l.Progress(20, 4*time.Second) // 5 tokens per second
			if i > 20 {
				late++
			}
			// its answer is still running when the others come
			defer l.Done(Result{Class: outcome.ClientGone})
		} else {
			truth{0.0275, 0.0011, 0.3}.serve(l, 1)
		}
		c.seconds(1)
	}
	if late > 5 {
		t.Errorf("the liar got %d requests after it was known", late)
	}
}

// Whatever price, speed or clock says, somebody is picked, and no host is taken for free because nobody knows its price.
func TestOddNumbers(t *testing.T) {
	odd := []float64{math.NaN(), math.Inf(1), math.Inf(-1), 0, -1, 1e-300, 1e300}
	const seed = 11
	rnd := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test's choice
	some := func() float64 { return odd[rnd.IntN(len(odd))] }
	rounds := 300
	if underRace {
		rounds = 30
	}
	for round := range rounds {
		c := newClock()
		var eps []endpoint.Endpoint
		for i := range 6 {
			ep := hourly(fmt.Sprint("h", i), some(), rnd.IntN(40)-2, "m")
			ep.Price.Basis = endpoint.Basis(rnd.IntN(4))
			ep.Price.USDPerWorkerSecond, ep.Price.USDPerMTokIn, ep.Price.USDPerMTokOut = some(), some(), some()
			ep.Price.ColdStart, ep.Price.IdleTimeout = time.Duration(rnd.Int64()-rnd.Int64()), time.Duration(rnd.Int64()-rnd.Int64())
			ep.Tenure = endpoint.Tenure(rnd.IntN(5))
			ep.Workers = rnd.IntN(5) - 1
			eps = append(eps, ep)
		}
		r := New(Options{Now: c.now, Seed: seed, Prior: func(*endpoint.Endpoint) capacity.Prior {
			return capacity.Prior{ITLSeconds: some(), Slope: some(), TTFTSeconds: some(), PrefillTokensPerSecond: some()}
		}})
		r.Update(eps, nil)
		for range 40 {
			q := Request{
				Model: "m", BodyBytes: rnd.Int64N(1e9) - 10, PromptTokens: rnd.IntN(3) - 1, MaxTokens: rnd.IntN(3) - 1,
				SLO:    SLO{TTFT: time.Duration(rnd.IntN(3)-1) * time.Nanosecond, TPS: some(), Confidence: some()},
				Policy: Policy(rnd.IntN(int(numPolicies) + 2)), Came: c.t.Add(time.Duration(rnd.Int64N(1e12) - 5e11)), Resumed: rnd.IntN(2) == 0,
			}
			var l Lease
			err := r.Pick(&q, &l)
			if err != nil {
				ue, ok := err.(*UnavailableError) //nolint:errorlint // as it is
				if !ok || ue.Cause != Throttled || ue.RetryAfter <= 0 {
					t.Fatalf("seed %d round %d: %+v of %+v", seed, round, err, q)
				}
				continue
			}
			c.pass(time.Duration(rnd.Int64N(2e12) - 1e12)) // clocks jump
			if rnd.IntN(2) == 0 {
				l.FirstContent(time.Duration(rnd.Int64N(1e11) - 5e10))
				l.Progress(rnd.Int64N(1000)-5, time.Duration(rnd.Int64N(1e11)-5e10))
			}
			l.Done(Result{
				Class: outcome.Success, OutputTokens: rnd.Int64N(1000) - 10, Cached: rnd.Int64N(1000) - 10,
				Streamed: time.Duration(rnd.Int64N(1e11) - 5e10), USD: some(),
			})
			r.Advise(c.t)
		}
		for _, h := range r.Hosts() {
			if h.InFlight != 0 {
				t.Fatalf("seed %d round %d: %d in flight at %s", seed, round, h.InFlight, h.ID)
			}
			if p := r.hosts[h.ID].pending.Load(); p != 0 {
				t.Fatalf("seed %d round %d: %d prompt tokens pending at %s", seed, round, p, h.ID)
			}
		}
	}
}

func TestPriceZeroAndUnknown(t *testing.T) {
	c := newClock()
	free := hourly("free", 0, 32, "m")
	nobody := hourly("nobody-knows", 0, 32, "m")
	nobody.Price = endpoint.Price{}
	r := brain(c, 1, free, nobody, hourly("dear", 100, 32, "m"))
	for range 10 {
		if l := mustPick(t, r); l.Endpoint.ID != "free" || l.Decision.MarginalUSD < 0 {
			t.Errorf("picked %s at %v", l.Endpoint.ID, l.Decision.MarginalUSD)
		}
	}
	for _, h := range r.Hosts() {
		if (h.FullLoadUSDPerMTok == nil) != (h.ID == "nobody-knows") {
			t.Errorf("%s: full load %v", h.ID, h.FullLoadUSDPerMTok)
		}
	}
}

func TestPolicies(t *testing.T) {
	c := newClock()
	quick := api("quick", 2, 4)
	r := New(Options{Now: c.now, Seed: 1, Prior: func(ep *endpoint.Endpoint) capacity.Prior {
		p := tell(ep)
		if ep.ID == "quick" {
			p = capacity.Prior{ITLSeconds: 1.0 / 150, Slope: 1e-6, TTFTSeconds: 0.1, PrefillTokensPerSecond: 20000}
		}
		return p
	}})
	r.Update([]endpoint.Endpoint{hourly("cheap", 1, 32, "m"), quick}, nil)
	pick := func(p Policy) endpoint.ID {
		var l Lease
		if err := r.Pick(&Request{Model: "m", Policy: p, PromptTokens: 300}, &l); err != nil {
			t.Fatal(err)
		}
		defer l.Done(Result{Class: outcome.ClientGone})
		if l.Decision.Policy != p {
			t.Errorf("decided by %s, asked for %s", l.Decision.Policy, p)
		}
		return l.Endpoint.ID
	}
	for p, want := range map[Policy]endpoint.ID{PolicyCost: "cheap", PolicyLatency: "quick", PolicyBalanced: "quick"} {
		if got := pick(p); got != want {
			t.Errorf("%s: %s, want %s", p, got, want)
		}
	}
	got := map[endpoint.ID]int{}
	for range 2000 {
		got[pick(PolicyWeighted)]++
	}
	// Full-load prices: 4 against about 0.9 dollars a million (1/h at 37 streams of 15 tokens per second, limit 32).
	if got["quick"] == 0 || got["quick"] > 200 {
		t.Errorf("weighted: %v", got)
	}
	for _, word := range []string{"cost", "Latency", "balanced", "weighted"} {
		if p, ok := ParsePolicy(word); !ok || !strings.EqualFold(p.String(), word) {
			t.Errorf("%q is read as %v", word, p)
		}
	}
	if _, ok := ParsePolicy(""); ok {
		t.Error("an empty word is a policy")
	}
}

// With an SLO that somebody asked for, requests are refused rather than all of them served late; without, they are served.
func TestSheds(t *testing.T) {
	for _, strict := range []bool{true, false} {
		c := newClock()
		r := brain(c, 1, hourly("a", 1, 64, "m"))
		if strict {
			r.Update([]endpoint.Endpoint{hourly("a", 1, 64, "m")}, []ModelRule{{Name: "m", Serves: []string{"m"}, SLO: SLO{TPS: 15}}})
		}
		served := 0
		var err error
		for served < 500 && err == nil {
			if err = r.Pick(&Request{Model: "m"}, new(Lease)); err == nil {
				served++
			}
		}
		ue, refused := err.(*UnavailableError) //nolint:errorlint // as it is
		switch {
		case strict && (!refused || ue.Cause != Throttled || ue.RetryAfter < time.Second || served < 20 || served > 77):
			t.Errorf("strict: served %d at once, then %+v", served, err)
		case !strict && served < 500:
			t.Errorf("not strict: served %d at once, then %v", served, err)
		}
	}
}

// A stream that its caller reads does not wait for a cold start.
func TestResumed(t *testing.T) {
	c := newClock()
	r := brain(c, 1, serverless("cold", 0.0001, endpoint.Cold), hourly("busy", 1, 4, "m"))
	for range 4 {
		mustPick(t, r)
	}
	var l Lease
	if err := r.Pick(&Request{Model: "m", Resumed: true}, &l); err != nil || l.Endpoint.ID != "busy" {
		t.Errorf("went to %v, %v", l.Endpoint, err)
	}
}

// Test vector 6 of the routing facts: how sure each promise is, and that a host is let in where it is surer than was asked.
func TestHowSure(t *testing.T) {
	p := &plan{left: 2, gap: 1.0 / 15}
	v := &view{ttft: 0.8, ttftSigma: 0.35, itl: 0.055, itlSigma: 0.12}
	if first, speed := v.pTTFT(p), v.pTPS(p); math.Abs(first-0.99558) > 1e-5 || math.Abs(speed-0.94554) > 1e-5 {
		t.Errorf("sure by %.5f and %.5f, want 0.99558 and 0.94554", first, speed)
	}
	rnd := rand.New(rand.NewPCG(6, 0))
	for range 100_000 {
		confidence, x, sigma := 0.01+0.98*rnd.Float64(), math.Exp(3*rnd.NormFloat64()), rnd.Float64()
		z := math.Sqrt2 * math.Erfinv(2*confidence-1)
		sure := normal(-math.Log(x) / sigma)
		if got := surely(x, z*sigma); got != (sure >= confidence) && math.Abs(sure-confidence) > 1e-9 {
			t.Fatalf("%g of the limit with a deviation of %g is kept with probability %g, asked for %g: %v", x, sigma, sure, confidence, got)
		}
	}
}

// Test vector 8: 8 losses in 24 hours, prior 6 h: 0.30 an hour. And a host that comes back is slow-started, on another
// machine begins anew.
func TestComingsAndGoings(t *testing.T) {
	c := newClock()
	ep := hourly("v", 1, 48, "m")
	ep.Tenure, ep.State, ep.Hardware.Machine = endpoint.Interruptible, endpoint.Ready, "m1"
	r := brain(c, 1, ep)
	for range 50 {
		truth{0.055, 0.0022, 0.3}.serve(mustPick(t, r), 1) // half the catalogue's speed
		c.seconds(1)
	}
	itl := func() float64 { return *r.Hosts()[0].ITLMillis }
	slow := itl()
	if slow < 50 {
		t.Fatalf("ITL %v ms after 50 streams of 57 ms", slow)
	}
	ep.Hardware.GPU = "A100 80GB" // learned late: the same machine
	r.Update([]endpoint.Endpoint{ep}, nil)
	if got := itl(); got < 30 {
		t.Errorf("with its GPU known ITL is %v ms, what was measured is forgotten", got)
	}
	up := 24*time.Hour - 50*time.Second
	for range 8 {
		c.pass(up / 8)
		ep.State = endpoint.Preempted
		r.Update([]endpoint.Endpoint{ep}, nil)
		if err := r.Pick(&Request{Model: "m"}, new(Lease)); err == nil {
			t.Fatal("a preempted host was picked")
		}
		c.pass(10 * time.Minute)
		ep.State = endpoint.Ready
		r.Update([]endpoint.Endpoint{ep}, nil)
	}
	if got := *r.Hosts()[0].Losses / 24; math.Abs(got-0.30) > 1e-3 {
		t.Errorf("expects %v losses an hour, want 0.30", got)
	}
	mustPick(t, r).Done(Result{Class: outcome.Success}) // the trial
	for i := range 5 {
		if l := mustPick(t, r); i == 4 {
			var next Lease
			if err := r.Pick(&Request{Model: "m"}, &next); err == nil && next.Decision.Feasible > 0 {
				t.Error("a fifth request at once went to a host in slow start")
			}
			l.Done(Result{Class: outcome.ClientGone})
		}
	}
	ep.Hardware.Machine = "m2"
	r.Update([]endpoint.Endpoint{ep}, nil)
	if got := itl(); math.Abs(got-28.57) > 0.1 {
		t.Errorf("on another machine ITL is %v ms, want the catalogue's", got)
	}
}

// Ten thousand hosts come and go, and nothing is kept of them for long.
func TestManyHostsComeAndGo(t *testing.T) {
	c := newClock()
	r, rounds := brain(c, 1), 100
	if underRace {
		rounds = 15 // still more than are remembered
	}
	for round := range rounds {
		var eps []endpoint.Endpoint
		for i := range 100 {
			eps = append(eps, hourly(fmt.Sprint("h", round*100+i), 1, 8, "m"))
		}
		r.Update(eps, nil)
		for range 20 {
			truth{0.0275, 0.0011, 0.3}.serve(mustPick(t, r), 1)
		}
		c.pass(2 * time.Minute)
	}
	if n := len(r.hosts); n > 100+rememberMost {
		t.Errorf("%d hosts are remembered", n)
	}
	c.pass(2 * time.Hour)
	r.Update(nil, nil)
	r.Update(nil, nil)
	c.pass(2 * time.Hour)
	r.Update(nil, nil)
	if n := len(r.hosts); n != 0 {
		t.Errorf("%d hosts are remembered after hours", n)
	}
	if len(r.stats) != 0 {
		t.Errorf("%d models are remembered", len(r.stats))
	}
}

// A prompt goes back to the host that has computed its beginning, unless that is crowded.
func TestAffinityInThePick(t *testing.T) {
	c := newClock()
	var eps []endpoint.Endpoint
	for i := range 6 {
		eps = append(eps, hourly(fmt.Sprint("h", i), 1, 32, "m"))
	}
	r := brain(c, 1, eps...)
	q := Request{Model: "m", PromptTokens: 1000}
	q.Affinity.Add(affinityMark(42, 1000))
	var l Lease
	if err := r.Pick(&q, &l); err != nil {
		t.Fatal(err)
	}
	first := l.Endpoint.ID
	truth{0.0275, 0.0011, 0.3}.serve(&l, 1)
	q.PromptTokens = 1100
	q.Affinity.Add(affinityMark(43, 1100))
	for range 20 {
		if err := r.Pick(&q, &l); err != nil || l.Endpoint.ID != first || l.Decision.Cached != 1000 {
			t.Fatalf("went to %s with %v tokens cached, want %s with 1000 (%v)", l.Endpoint.ID, l.Decision.Cached, first, err)
		}
		l.Done(Result{Class: outcome.ClientGone})
	}
	elsewhere := false
	for range 40 {
		if err := r.Pick(&q, &l); err != nil {
			t.Fatal(err)
		}
		elsewhere = elsewhere || l.Endpoint.ID != first
	}
	if !elsewhere {
		t.Errorf("40 requests at once all went to %s", first)
	}
}

func TestAdvice(t *testing.T) {
	find := func(list []Advice, a Action) *Advice {
		for i := range list {
			if list[i].Action == a {
				return &list[i]
			}
		}
		return nil
	}
	t.Run("wake", func(t *testing.T) {
		c := newClock()
		c2 := serverless("worker", 0.0007, endpoint.Cold)
		r := brain(c, 1, hourly("a", 1, 10, "m"), c2)
		mustPick(t, r)
		if a := find(r.Advise(c.t), Wake); a != nil {
			t.Errorf("with one request: %+v", a)
		}
		for range 9 {
			mustPick(t, r)
		}
		a := find(r.Advise(c.t), Wake)
		if a == nil || a.Endpoint != "worker" || a.Workers != 1 {
			t.Fatalf("with ten of ten: %+v", a)
		}
		c.seconds(1)
		if a := find(r.Advise(c.t), Wake); a != nil {
			t.Error("again within a second")
		}
		c.seconds(60)
		if a := find(r.Advise(c.t), Wake); a != nil {
			t.Error("a minute after the last request")
		}
	})
	t.Run("hold", func(t *testing.T) {
		c := newClock()
		w := serverless("worker", 0.00116, endpoint.Cold)
		w.MaxNumSeqs = 30
		r := brain(c, 1, api("api", 3, 4.5), w)
		ask := func(perSecond float64, d time.Duration) (held *Advice) {
			for range int(perSecond * d.Seconds()) {
				var l Lease
				if err := r.Pick(&Request{Model: "m", PromptTokens: 430}, &l); err != nil {
					t.Fatal(err)
				}
				l.FirstContent(300 * time.Millisecond)
				l.Done(Result{Class: outcome.Success, OutputTokens: 233, Cached: -1, Streamed: 6 * time.Second})
				c.seconds(1 / perSecond)
				if a := find(r.Advise(c.t), Hold); a != nil {
					held = a
				}
			}
			return held
		}
		if a := ask(0.05, 10*time.Minute); a != nil {
			t.Errorf("at one request in 20 s: %+v", a)
		}
		a := ask(3, 5*time.Minute)
		if a == nil || a.Endpoint != "worker" || a.Workers < 1 || a.USDPerDay == nil || *a.USDPerDay <= 0 {
			t.Fatalf("at three requests a second: %+v", a)
		}
		w.State, w.Workers = endpoint.Ready, a.Workers
		r.Update([]endpoint.Endpoint{api("api", 3, 4.5), w}, nil)
		c.seconds(6)
		if again := find(r.Advise(c.t), Hold); again != nil || r.Held()["worker"] != a.Workers {
			t.Errorf("with its workers up: advice %+v, held %v", again, r.Held())
		}
		if !r.hosts["worker"].paid.Load() {
			t.Error("a worker that pays for itself is not counted as paid")
		}
		r.Update([]endpoint.Endpoint{w}, nil)
		r.Advise(c.t)
		if r.hosts["worker"].paid.Load() {
			t.Error("without an API to compare with it is still counted as paid")
		}
		r.Update([]endpoint.Endpoint{api("api", 3, 4.5), w}, nil)
		ask(3, 5*time.Minute)
		c.pass(time.Hour)
		if a := find(r.Advise(c.t), Hold); a != nil || r.hosts["worker"].paid.Load() {
			t.Errorf("an hour after the last request it is still held: %+v", a)
		}
		if h := r.Held(); len(h) != 0 {
			t.Errorf("an hour after the last request: %v", h)
		}
	})
	t.Run("release", func(t *testing.T) {
		c := newClock()
		r := brain(c, 1, hourly("a", 1, 32, "m"), hourly("dear", 2, 32, "m"))
		l := mustPick(t, r)
		for range 30 {
			c.pass(time.Minute)
			if a := find(r.Advise(c.t), Release); a != nil {
				t.Fatalf("within half an hour: %+v", a)
			}
		}
		var a *Advice
		for range 60 {
			c.pass(time.Minute)
			a = find(r.Advise(c.t), Release)
		}
		if a == nil || a.Endpoint != "dear" || a.USDPerDay == nil || *a.USDPerDay != 48 {
			t.Fatalf("after an hour: %+v", a)
		}
		l.Done(Result{Class: outcome.ClientGone})
	})
	t.Run("release nothing that costs nothing", func(t *testing.T) {
		c := newClock()
		r := brain(c, 1, hourly("mine", 0, 32, "m"), hourly("mine too", 0, 32, "m"))
		for range 120 {
			c.pass(time.Minute)
			if a := find(r.Advise(c.t), Release); a != nil {
				t.Fatalf("advice %+v", a)
			}
		}
		r.Update([]endpoint.Endpoint{hourly("mine", 0, 32, "m"), hourly("mine too", 0, 32, "m"), hourly("rented", 1, 32, "m")}, nil)
		var a *Advice
		for range 120 {
			c.pass(time.Minute)
			a = find(r.Advise(c.t), Release)
		}
		if a == nil || a.Endpoint != "rented" {
			t.Fatalf("advice %+v", a)
		}
	})
	t.Run("rent", func(t *testing.T) {
		c := newClock()
		w := serverless("worker", 0.01, endpoint.Ready)
		w.Workers, w.MaxNumSeqs = 4, 30
		h := hourly("a", 0.5, 4, "m")
		h.Tenure, h.Hardware.GPU = endpoint.Interruptible, "RTX 4090"
		r := brain(c, 1, h, w)
		var a *Advice
		for range 4 {
			mustPick(t, r) // "a" is full
		}
		for range 4000 {
			l := mustPick(t, r)
			c.seconds(1)
			if x := find(r.Advise(c.t), Rent); x != nil {
				a = x
			}
			l.FirstContent(300 * time.Millisecond)
			l.Done(Result{Class: outcome.Success, OutputTokens: 233, Cached: -1, Streamed: 6 * time.Second})
		}
		if a == nil || a.Endpoint != "a" || a.USDPerDay == nil || *a.USDPerDay <= 0 || !strings.Contains(a.Why, "RTX 4090") {
			t.Fatalf("advice %+v", a)
		}
	})
}

func affinityMark(hash uint64, tokens int32) affinity.Mark {
	return affinity.Mark{Hash: hash, Tokens: tokens}
}

// Answers in one piece tell how fast a host is as well.
func TestWholeAnswersTeach(t *testing.T) {
	c := newClock()
	r := brain(c, 1, hourly("a", 1, 32, "m"))
	for range 40 {
		var l Lease
		if err := r.Pick(&Request{Model: "m", Whole: true, PromptTokens: 300}, &l); err != nil {
			t.Fatal(err)
		}
		if p := r.hosts["a"].pending.Load(); p != 0 {
			t.Fatalf("%d prompt tokens wait for a first token that nobody will see", p)
		}
		c.seconds(0.5 + 200*0.057) // half the catalogue's speed
		l.Done(Result{Class: outcome.Success, OutputTokens: 200, Cached: -1})
	}
	if itl := *r.Hosts()[0].ITLMillis; itl < 45 || itl > 65 {
		t.Errorf("ITL %v ms, the truth is 57", itl)
	}
}

// A prompt that seems too long for a host's context goes to another, if there is one.
func TestContext(t *testing.T) {
	short, long := hourly("short", 1, 32, "m"), hourly("long", 100, 32, "m")
	short.Served[0].MaxContext, long.Served[0].MaxContext = 8192, 32768
	r := brain(newClock(), 1, short, long)
	pick := func(prompt, most int) endpoint.ID {
		var l Lease
		if err := r.Pick(&Request{Model: "m", PromptTokens: prompt, MaxTokens: most, SLO: SLO{TTFT: time.Minute}}, &l); err != nil {
			t.Fatal(err)
		}
		defer l.Done(Result{Class: outcome.ClientGone})
		return l.Endpoint.ID
	}
	for _, tc := range []struct {
		prompt, most int
		want         endpoint.ID
	}{{4000, 500, "short"}, {8000, 500, "long"}, {20000, 0, "long"}} {
		if got := pick(tc.prompt, tc.most); got != tc.want {
			t.Errorf("%d tokens and %d more went to %s", tc.prompt, tc.most, got)
		}
	}
	if got := pick(40000, 0); got == "" {
		t.Error("nobody was asked: the count is an estimate")
	}
}

// Of a thousand hosts a part is looked at, and still the one is found that holds the prompt, the only one that is well, and a
// host that is paid before one that is not.
func TestLargePool(t *testing.T) {
	c := newClock()
	var eps []endpoint.Endpoint
	for i := range 500 {
		eps = append(eps, serverless(fmt.Sprint("worker", i), 0.0007, endpoint.Ready), hourly(fmt.Sprint("h", i), 1, 32, "m"))
	}
	r := brain(c, 5, eps...)
	got := map[endpoint.ID]bool{}
	for range 600 {
		l := mustPick(t, r)
		if l.Decision.Candidates != 1000 || !strings.HasPrefix(string(l.Endpoint.ID), "h") {
			t.Fatalf("picked %s of %d", l.Endpoint.ID, l.Decision.Candidates)
		}
		got[l.Endpoint.ID] = true
		l.Done(Result{Class: outcome.ClientGone})
	}
	if len(got) < 250 {
		t.Errorf("600 requests went to %d of 500 hosts alike", len(got))
	}
	q := Request{Model: "m", PromptTokens: 1000}
	q.Affinity.Add(affinityMark(42, 1000))
	var l Lease
	if err := r.Pick(&q, &l); err != nil {
		t.Fatal(err)
	}
	first := l.Endpoint.ID
	truth{0.0275, 0.0011, 0.3}.serve(&l, 1)
	for range 50 {
		if err := r.Pick(&q, &l); err != nil || l.Endpoint.ID != first {
			t.Fatalf("went to %s, %s holds the prompt (%v)", l.Endpoint.ID, first, err)
		}
		l.Done(Result{Class: outcome.ClientGone})
	}
	for i := range eps {
		if i != 777 {
			eps[i].State = endpoint.Preempted
		}
	}
	r.Update(eps, nil)
	for range 50 {
		l := mustPick(t, r)
		if l.Endpoint.ID != eps[777].ID {
			t.Fatalf("picked %s, only %s is up", l.Endpoint.ID, eps[777].ID)
		}
		l.Done(Result{Class: outcome.ClientGone})
	}
}

// The example of docs/routing.md, in its numbers.
func TestWorkedExample(t *testing.T) {
	c := newClock()
	a100 := hourly("vast", 0.90, 48, "m")
	a100.Tenure = endpoint.Interruptible
	worker := serverless("runpod", 0.00076, endpoint.Cold)
	worker.MaxNumSeqs, worker.Price.ColdStart, worker.Price.IdleTimeout = 30, 30*time.Second, 5*time.Second
	r := brain(c, 1, a100, worker, api("api", 0.60, 0.90))
	r.snap.Load().models["m"].stats.output.add(233)
	for range 6 {
		var l Lease
		if err := r.Pick(&Request{Model: "m", PromptTokens: 430}, &l); err != nil || l.Endpoint.ID != "vast" {
			t.Fatalf("went to %v: %v", l.Endpoint.ID, err)
		}
		l.FirstContent(600 * time.Millisecond)
	}
	x, err := r.Explain(&Request{Model: "m", PromptTokens: 430})
	if err != nil || x.Winner != "vast" {
		t.Fatalf("%+v, %v", x, err)
	}
	want := map[endpoint.ID]struct{ usd, ttft float64 }{"vast": {0.000007, 0.61}, "runpod": {0.0327, 30.61}, "api": {0.00047, 0.61}}
	for _, v := range x.Candidate {
		w := want[v.Endpoint]
		if math.Abs(*v.MarginalUSD/w.usd-1) > 0.15 || math.Abs(*v.TTFT/w.ttft-1) > 0.1 {
			t.Errorf("%s adds $%.7f, first token in %.2f s; the page says %v", v.Endpoint, *v.MarginalUSD, *v.TTFT, w)
		}
	}
}

// A prompt whose computation alone takes longer than the SLO allows is served by an idle host all the same.
func TestLongPrompt(t *testing.T) {
	a, b := hourly("slow", 1, 32, "m"), hourly("fast", 3, 32, "m")
	r := New(Options{Now: newClock().now, Prior: func(ep *endpoint.Endpoint) capacity.Prior {
		p := tell(ep)
		if ep.ID == "fast" {
			p.PrefillTokensPerSecond = 5000
		}
		return p
	}})
	r.Update([]endpoint.Endpoint{a, b}, []ModelRule{{Name: "m", Serves: []string{"m"}, SLO: SLO{TTFT: 2 * time.Second, TPS: 15}}})
	var l Lease
	if err := r.Pick(&Request{Model: "m", PromptTokens: 100_000}, &l); err != nil || l.Endpoint.ID != "fast" || l.Decision.Why != whyCrowded {
		t.Errorf("went to %v: %v, %s", l.Endpoint, err, l.Decision.Why)
	}
}
