package router

import (
	"math"
	"testing"
	"time"

	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// TestSequences: a request for several answers (n) is as many sequences on the engine.
func TestSequences(t *testing.T) {
	wide := func(t *testing.T, r *Router, n int) *Lease {
		t.Helper()
		l := new(Lease)
		if err := r.Pick(&Request{Model: "m", PromptTokens: 100, Sequences: n}, l); err != nil {
			t.Fatal(err)
		}
		return l
	}
	t.Run("they fill a host", func(t *testing.T) {
		c := newClock()
		r := brain(c, 1, hourly("a", 1, 8, "m"), hourly("b", 1, 8, "m"))
		first := wide(t, r, 6)
		for range 4 {
			if l := wide(t, r, 4); l.Endpoint.ID == first.Endpoint.ID {
				t.Fatalf("four more went to %s, which has room for two", l.Endpoint.ID)
			} else {
				l.Done(Result{Class: outcome.ClientGone})
			}
		}
		if n, _ := r.Load(first.Endpoint.ID); n != 6 || r.Loads(nil)[0].InFlight != 6 {
			t.Errorf("others hear of %d in flight, want 6", n)
		}
		first.Done(Result{Class: outcome.ClientGone})
		if n, _ := r.Load(first.Endpoint.ID); n != 0 || r.hosts[first.Endpoint.ID].running(0) != 0 {
			t.Errorf("%d are left of them", n)
		}
		huge := wide(t, r, 100)
		if d := huge.Decision; d.Feasible != 2 || math.IsNaN(d.MarginalUSD) {
			t.Errorf("more than an engine runs at once: %+v, want an empty host", d)
		}
	})
	t.Run("they share its time", func(t *testing.T) {
		c := newClock()
		r := brain(c, 1, hourly("a", 1, 32, "m"))
		four := wide(t, r, 4)
		c.seconds(10)
		if n := four.MeanInFlight(c.t); n != 1 {
			t.Errorf("alone it shares with %g", n)
		}
		one := wide(t, r, 1)
		c.seconds(10)
		a, b := 20/four.MeanInFlight(c.t), 10/one.MeanInFlight(c.t)
		if math.Abs(a-18) > 1e-9 || math.Abs(b-2) > 1e-9 {
			t.Errorf("of 20 s they are charged %g and %g, want 18 and 2", a, b)
		}
	})
	t.Run("they teach", func(t *testing.T) {
		c := newClock()
		r := brain(c, 1, hourly("a", 1, 32, "m"))
		tr := truth{0.03, 0.003, 0.3} // a b of 0.1, where the prior says 0.04
		for range 200 {
			l := wide(t, r, 8)
			l.FirstContent(seconds(tr.ttft))
			took := seconds(199 * (tr.a + 8*tr.b))
			c.pass(took)
			l.Done(Result{Class: outcome.Success, OutputTokens: 8 * 200, Choices: 8, Cached: -1, Streamed: took})
		}
		d := wide(t, r, 8).Decision
		if want := 1 / (tr.a + 8*tr.b); math.Abs(d.TPS/want-1) > 0.03 {
			t.Errorf("eight at once are expected at %.1f tokens/s, want %.1f", d.TPS, want)
		}
		if got := r.stats["m"].output.get(0); math.Abs(got-200) > 1 {
			t.Errorf("an answer has %.0f tokens, want 200", got)
		}
		l := wide(t, r, 4)
		if n := l.UnseenTokens(c.t.Add(time.Hour), false); n != 800 {
			t.Errorf("four answers of which nobody saw anything have %d tokens", n)
		}
	})
	t.Run("they cost", func(t *testing.T) {
		c := newClock()
		w := serverless("w", 0.00076, endpoint.Ready)
		w.Workers, w.MaxNumSeqs = 1, 32
		r := brain(c, 1, w)
		one := wide(t, r, 1)
		one.Done(Result{Class: outcome.ClientGone})
		four := wide(t, r, 4)
		// Alone, the worker runs a little longer for four at once than for one, and not four times as long.
		if x := four.Decision.MarginalUSD / one.Decision.MarginalUSD; x < 1.05 || x > 1.2 {
			t.Errorf("four cost %g times as much as one", x)
		}
		r = brain(c, 1, api("api", 1, 4))
		one, four = wide(t, r, 1), wide(t, r, 4)
		if x := four.Decision.MarginalUSD - one.Decision.MarginalUSD; math.Abs(x-3*priorOutput*4e-6) > 1e-9 {
			t.Errorf("four cost $%g more than one", x)
		}
	})
}
