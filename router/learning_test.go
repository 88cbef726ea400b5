package router

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"headrace/router/capacity"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// What a host is expected to hold of a prompt follows what it says that it held.
func TestCachedShareIsLearned(t *testing.T) {
	c := newClock()
	r := brain(c, 1, hourly("a", 1, 32, "m"))
	q := Request{Model: "m", PromptTokens: 1000}
	q.Affinity.Add(affinityMark(42, 1000))
	answer := func(held int64) (expected float64) {
		var l Lease
		if err := r.Pick(&q, &l); err != nil {
			t.Fatal(err)
		}
		expected = l.Decision.Cached
		l.FirstContent(300 * time.Millisecond)
		c.seconds(6)
		l.Done(Result{Class: outcome.Success, OutputTokens: 200, Cached: held, Streamed: 5700 * time.Millisecond})
		return expected
	}
	for _, held := range []int64{250, 0, 1000} { // the last as after a restart with the cache turned on
		var got float64
		for range 150 {
			got = answer(held)
		}
		if math.Abs(got-float64(held)) > 30 {
			t.Errorf("%v of 1000 prompt tokens are expected in the cache of a host that says %d", got, held)
		}
	}
}

// Workers are filled to whole sequences, also where the limit that was learned is no whole number.
func TestWorkersBesideFullOne(t *testing.T) {
	w := serverless("worker", 0.0007, endpoint.Ready)
	w.Workers, w.MaxNumSeqs = 2, 30
	r := brain(newClock(), 1, w, api("api", 300, 450))
	h := r.hosts["worker"]
	h.mu.Lock()
	h.learner.ObserveFull(1, 7) // refused with 7: the limit is 6.3 for each
	h.publish()
	h.mu.Unlock()
	for i := range 12 {
		if l := mustPick(t, r); l.Endpoint.ID != "worker" || l.Decision.Cold {
			t.Fatalf("request %d of 12 went to %s (cold %v): two workers take 6 each", i+1, l.Endpoint.ID, l.Decision.Cold)
		}
	}
	if l := mustPick(t, r); l.Endpoint.ID != "api" {
		t.Errorf("the 13th went to %s", l.Endpoint.ID)
	}
}

// A host whose price nobody knows comes last by cost and time together; among such hosts time decides.
func TestBalancedWithoutPrices(t *testing.T) {
	unpriced := func(id string) endpoint.Endpoint {
		ep := hourly(id, 1, 32, "m")
		ep.Price = endpoint.Price{}
		return ep
	}
	pick := func(r *Router, n int) map[endpoint.ID]int {
		got := map[endpoint.ID]int{}
		for range n {
			var l Lease
			if err := r.Pick(&Request{Model: "m", Policy: PolicyBalanced}, &l); err != nil {
				t.Fatal(err)
			}
			got[l.Endpoint.ID]++
		}
		return got
	}
	if got := pick(brain(newClock(), 1, unpriced("lab"), hourly("rented", 1, 32, "m")), 5); got["rented"] != 5 {
		t.Errorf("with a known price: %v", got)
	}
	if got := pick(brain(newClock(), 1, unpriced("lab"), unpriced("lab2")), 20); got["lab"] < 5 || got["lab2"] < 5 {
		t.Errorf("without: %v", got)
	}
}

// Workers that pay for themselves by one model's requests count as paid, whatever other names they go by.
func TestPaidForAnyModel(t *testing.T) {
	c := newClock()
	w := serverless("worker", 0.00116, endpoint.Cold)
	w.MaxNumSeqs = 30
	r := brain(c, 1)
	r.Update([]endpoint.Endpoint{api("api", 3, 4.5), w}, []ModelRule{{Name: "busy", Serves: []string{"m"}}, {Name: "idle", Serves: []string{"m"}}})
	saves, api := 0.0, 0.0
	for range 900 {
		var l Lease
		if err := r.Pick(&Request{Model: "busy", PromptTokens: 430}, &l); err != nil {
			t.Fatal(err)
		}
		l.FirstContent(300 * time.Millisecond)
		l.Done(Result{Class: outcome.Success, OutputTokens: 233, Cached: -1, Streamed: 6 * time.Second})
		c.seconds(1.0 / 3)
		for _, a := range r.Advise(c.t) {
			if a.Action == Hold {
				saves, api = *a.USDPerDay, r.stats["busy"].demand.tier*86400
			}
			if a.Action == Hold && saves > api-float64(a.Workers)*0.00116*86400+1e-6 {
				t.Fatalf("%d workers are to save $%.2f a day of $%.2f at the API", a.Workers, saves, api)
			}
		}
	}
	if saves == 0 || r.Held()["worker"] == 0 || !r.hosts["worker"].paid.Load() {
		t.Errorf("advised to save $%.2f; %v are held, and paid is %v", saves, r.Held(), r.hosts["worker"].paid.Load())
	}
}

// Answers in one piece give a host back what refusals took.
func TestWholeAnswersGiveRoom(t *testing.T) {
	c := newClock()
	r := brain(c, 1, hourly("a", 1, 32, "m"))
	ask := func(class outcome.Class) {
		var l Lease
		if err := r.Pick(&Request{Model: "m", Whole: true}, &l); err != nil {
			t.Fatal(err)
		}
		l.Done(Result{Class: class, Cached: -1, RetryAfter: time.Millisecond})
		c.seconds(4)
	}
	for range 30 {
		ask(outcome.Throttled)
	}
	if got := *r.Hosts()[0].Limit; got > 2 {
		t.Fatalf("limit %v after 30 refusals", got)
	}
	for range 400 {
		leases := make([]Lease, 4)
		for i := range leases {
			if err := r.Pick(&Request{Model: "m", Whole: true}, &leases[i]); err != nil {
				t.Fatal(err)
			}
		}
		for i := range leases {
			leases[i].Done(Result{Class: outcome.Success, Cached: -1})
		}
		c.seconds(1)
	}
	if got := *r.Hosts()[0].Limit; got < 4 {
		t.Errorf("limit %v after 400 times four answers at once", got)
	}
}

// An answer of several choices is no faster than one of them.
func TestChoices(t *testing.T) {
	for _, whole := range []bool{false, true} {
		c := newClock()
		r := brain(c, 1, hourly("a", 1, 32, "m"))
		for range 30 {
			var l Lease
			if err := r.Pick(&Request{Model: "m", Whole: whole}, &l); err != nil {
				t.Fatal(err)
			}
			res := Result{Class: outcome.Success, OutputTokens: 8 * 200, Choices: 8, Cached: -1}
			if !whole {
				l.FirstContent(300 * time.Millisecond)
				res.Streamed = seconds(199 * 0.0285714)
			}
			c.seconds(0.3 + 199*0.0285714)
			l.Done(res)
		}
		v := r.Hosts()[0]
		if itl := *v.ITLMillis; itl < 24 || itl > 33 {
			t.Errorf("whole %v: ITL %v ms by answers of eight choices, the truth is 28.6", whole, itl)
		}
		if !whole && math.Abs(*v.TPS-35) > 1 {
			t.Errorf("%v tokens per second, the truth is 35", *v.TPS)
		}
	}
}

// A worker's second is shared by those on it, not by those on the others.
func TestMeanInFlightOfWorkers(t *testing.T) {
	c := newClock()
	w := serverless("worker", 0.0007, endpoint.Ready)
	w.Workers, w.MaxNumSeqs = 4, 10
	r := brain(c, 1, w)
	leases := make([]*Lease, 40)
	for i := range leases {
		leases[i] = mustPick(t, r)
	}
	c.seconds(10)
	sum := 0.0
	for _, l := range leases {
		sum += 1 / l.MeanInFlight(c.now()) // workers' worth
	}
	if math.Abs(sum-4) > 0.1 {
		t.Errorf("40 requests on 4 full workers are charged %.2f of them", sum)
	}
}

// The first tokens that never came are late.
func TestCalibrationCountsTimeouts(t *testing.T) {
	r := liar()
	for range 2 * alarmRequests {
		l := mustPick(t, r)
		l.Done(Result{Class: outcome.FirstByteTimeout, Cached: -1})
		r.hosts["liar"].breaker.Returned()
		r.hosts["liar"].pub.ramp.set(0)
	}
	if c := r.Calibration(); !c.Alarm {
		t.Errorf("nothing came in %d requests: %+v", 2*alarmRequests, c.TTFT)
	}
}

// The attempt's number is told right where a host that failed is tried again.
func TestAttemptOfForgiven(t *testing.T) {
	r := brain(newClock(), 1, hourly("a", 1, 32, "m"))
	for i := range 2 {
		q := Request{ID: fmt.Sprint("req", i), Model: "m"}
		if i > 0 {
			q.Tried = []endpoint.ID{"a"}
		}
		var l Lease
		if err := r.Pick(&q, &l); err != nil {
			t.Fatal(err)
		}
		if got := r.Decisions(1, q.ID)[0].Attempt; got != i+1 {
			t.Errorf("attempt %d is told as %d", i+1, got)
		}
	}
}

// Events that carry several tokens each, as with speculative decoding, are not taken for single ones under way.
func TestTokensPerEvent(t *testing.T) {
	c := newClock()
	r := brain(c, 1, hourly("a", 1, 32, "m"))
	for i := range 40 { // 35 tokens a second, four by four
		l := mustPick(t, r)
		if i >= 30 && l.Decision.Feasible == 0 {
			t.Errorf("request %d: a host of 35 tokens per second is expected to give %.1f", i, l.Decision.TPS)
		}
		l.FirstContent(300 * time.Millisecond)
		l.Progress(35, 4*time.Second)
		c.seconds(0.3 + 399*0.0286)
		res := Result{Class: outcome.Success, OutputTokens: 400, Events: 100, Cached: -1, Streamed: seconds(399 * 0.0286)}
		if i%4 == 3 { // the caller left
			res.Class, res.OutputTokens, res.Estimated = outcome.ClientGone, 100, true
		}
		l.Done(res)
	}
	if itl := *r.Hosts()[0].ITLMillis; itl < 24 || itl > 33 {
		t.Errorf("ITL %v ms, the truth is 28.6", itl)
	}
}

// One look at an engine that has just been given some requests says nothing of how many it can run; two in a row do.
func TestQueueTwice(t *testing.T) {
	c := newClock()
	r := brain(c, 1, hourly("a", 1, 48, "m"))
	limit := func() float64 { return *r.Hosts()[0].Limit }
	look := func(running, waiting float64) {
		r.Observe("a", capacity.Engine{Running: running, Waiting: waiting})
		c.seconds(5)
	}
	look(1, 4)
	look(5, 0)
	look(2, 1)
	if got := limit(); got != 48 {
		t.Fatalf("limit %v: five requests came at once", got)
	}
	look(20, 3)
	look(18, 3)
	if got := limit(); got != 20 {
		t.Errorf("limit %v of an engine that runs 20 and has a queue", got)
	}
	c.seconds(60)
	look(3, 1)
	if got := limit(); got != 20 {
		t.Errorf("limit %v by a queue a minute after the last", got)
	}
}

// Too many requests that wait for a worker to start are too many requests, not a host that fails.
func TestTooManyWaitForAWorker(t *testing.T) {
	r := brain(newClock(), 1)
	w := serverless("worker", 0.0007, endpoint.Cold)
	w.Price.ColdStart = 20 * time.Second
	r.Update([]endpoint.Endpoint{w}, []ModelRule{{Name: "m", Serves: []string{"m"}, SLO: SLO{TPS: 15}}})
	for i := range 20 {
		err := r.Pick(&Request{Model: "m"}, new(Lease))
		if err == nil {
			continue
		}
		ue, ok := errors.AsType[*UnavailableError](err)
		if i != 8 || !ok || ue.Cause != Throttled || ue.RetryAfter != 20*time.Second {
			t.Errorf("request %d: %v, %+v", i, err, ue)
		}
		return
	}
	t.Error("twenty requests wait for a worker of four")
}

// A retry that comes too late for the promise goes to the warm host with a short queue, not to a worker that takes half a minute.
func TestLateRetry(t *testing.T) {
	c := newClock()
	r := brain(c, 1, hourly("warm", 1, 48, "m"), hourly("bad", 1, 48, "m"), serverless("worker", 0.0007, endpoint.Cold))
	for i := range 4 {
		q := Request{Model: "m", PromptTokens: 300, Tried: []endpoint.ID{"bad"}}
		if i == 3 {
			q.Came = c.t.Add(-3 * time.Second)
		}
		var l Lease
		if err := r.Pick(&q, &l); err != nil || l.Endpoint.ID != "warm" {
			t.Errorf("request %d went to %v, first token in %.1f s: %s (%v)", i, l.Endpoint.ID, l.Decision.TTFT, l.Decision.Why, err)
		}
	}
}

// The parts of a host's time that its requests had come to the time in which there were any.
func TestSharesComeToTheTimeInUse(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test
	c := newClock()
	r := brain(c, 1, hourly("host", 1, 64, "m"))
	type held struct {
		l     *Lease
		since time.Time
	}
	var in []held
	var used, busy float64
	for range 2000 {
		if len(in) > 0 {
			busy++
		}
		c.seconds(1)
		for range rng.IntN(3) {
			in = append(in, held{mustPick(t, r), c.now()})
		}
		for len(in) > 0 && (len(in) > 6 || rng.IntN(3) > 0) {
			i := rng.IntN(len(in))
			h := in[i]
			in = append(in[:i], in[i+1:]...)
			used += c.now().Sub(h.since).Seconds() / h.l.MeanInFlight(c.now())
			h.l.Done(Result{Class: outcome.Success, Cached: -1})
		}
	}
	for _, h := range in {
		used += c.now().Sub(h.since).Seconds() / h.l.MeanInFlight(c.now())
	}
	if busy < 500 || math.Abs(used-busy) > 1e-6*busy {
		t.Errorf("requests were charged %.3f s of a host that was in use for %.0f s", used, busy)
	}
}

// What hosts report of prompts corrects the estimates of others.
func TestPromptTokensAreLearned(t *testing.T) {
	c := newClock()
	r := brain(c, 1, hourly("host", 1, 64, "m"))
	l := mustPick(t, r)
	if n := l.PromptTokens(100); n != 100 {
		t.Errorf("unlearned: %d of 100", n)
	}
	for range 100 {
		l.CountedPrompt(400, 500)
		l.CountedPrompt(3, 90) // too short to tell
	}
	if n := l.PromptTokens(1000); n != 1250 {
		t.Errorf("learned: %d of 1000, want 1250", n)
	}
	l.Done(Result{Class: outcome.Success, Cached: -1})
}

// Of a plain answer that broke off nobody saw a token: what it had by then follows from the time, or from what answers have.
func TestUnseenTokens(t *testing.T) {
	c := newClock()
	r := brain(c, 1, hourly("host", 1, 64, "m"))
	for range 50 {
		l := mustPick(t, r)
		c.seconds(1)
		l.Done(Result{Class: outcome.Success, OutputTokens: 100, Cached: -1})
	}
	l := mustPick(t, r)
	c.seconds(0.001)
	if n := l.UnseenTokens(c.now(), false); n != 0 {
		t.Errorf("%d tokens after a millisecond", n)
	}
	c.seconds(l.Decision.TTFT + 20/l.Decision.TPS)
	if n := l.UnseenTokens(c.now(), false); n < 19 || n > 21 {
		t.Errorf("%d tokens in the time of 20", n)
	}
	if n := l.UnseenTokens(c.now(), true); n != 100 {
		t.Errorf("%d tokens of an answer that was under way, others have 100", n)
	}
	c.seconds(1000)
	if n := l.UnseenTokens(c.now(), false); n != 100 {
		t.Errorf("%d tokens after ever so long, answers have 100", n)
	}
	l.Done(Result{Class: outcome.UpstreamFault, Cached: -1})
}
