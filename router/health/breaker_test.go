package health_test

import (
	"testing"
	"time"

	"headrace/router/health"
	"headrace/router/outcome"
)

// clock is a time that tests move.
type clock struct{ t time.Time }

func (c *clock) now() time.Time       { return c.t }
func (c *clock) pass(d time.Duration) { c.t = c.t.Add(d) }

func start() *clock { return &clock{time.Unix(1_800_000_000, 0)} }

// rig is a breaker with its clock.
type rig struct {
	*health.Breaker
	*clock
	t *testing.T
}

func rigged(t *testing.T, o health.Options, k health.Kind) rig {
	t.Helper()
	c := start()
	b := health.NewBreaker("x", o, c.now)
	b.Is(k)
	return rig{b, c, t}
}

func (r rig) ticket() health.Ticket {
	r.t.Helper()
	tk, ok := r.Allow()
	if !ok {
		r.t.Fatalf("shut: %s", r.state())
	}
	return tk
}

// end is an attempt that ends so before its first content.
func (r rig) end(e health.Evidence) health.Change {
	r.t.Helper()
	tk := r.ticket()
	return tk.Ended(e)
}

// begun is a stream that has begun well.
func (r rig) begun() health.Ticket {
	r.t.Helper()
	tk := r.ticket()
	tk.Succeeded(r.now())
	return tk
}

func (r rig) state() string { return r.State(r.now()).String() }

func (r rig) is(want string) {
	r.t.Helper()
	if got := r.state(); got != want {
		r.t.Errorf("state %s, want %s", got, want)
	}
}

// due lets time pass until a test is due, and returns how long that took.
func (r rig) due() time.Duration {
	d, _ := r.Wait(r.now())
	r.pass(d)
	return d
}

// probed sends it the synthetic request that is due.
func (r rig) probed(c outcome.Class) health.Change {
	r.t.Helper()
	if !r.Probe(r.now()) {
		r.t.Fatalf("no probe is due: %s", r.state())
	}
	return r.Probed(c)
}

var (
	tried    = health.Options{Failures: 2}
	byProbe  = health.Options{Failures: 2, Probed: true}
	oneHost  = health.Kind{Told: true}
	manyMore = health.Kind{Many: true}
)

// Each row of evidence, and what it takes to open.
func TestEvidence(t *testing.T) {
	for name, tc := range map[string]struct {
		kind health.Kind
		do   func(r rig) health.Change // the last one's
		want string
		last health.Change
	}{
		"nobody answers once":  {oneHost, func(r rig) health.Change { return r.end(health.Gone) }, "open", health.Lost},
		"a stream breaks once": {oneHost, func(r rig) health.Change { tk := r.begun(); return tk.Ended(health.Cut) }, "open", health.Lost},
		"two break within a second": {oneHost, func(r rig) health.Change {
			a, b := r.begun(), r.begun()
			a.Ended(health.Cut)
			r.pass(time.Second)
			return b.Ended(health.Cut)
		}, "preempted", health.Preempted},
		"two break, the second later": {oneHost, func(r rig) health.Change {
			a, b := r.begun(), r.begun()
			a.Ended(health.Cut)
			r.pass(time.Second + 1)
			return b.Ended(health.Cut)
		}, "open", health.Unchanged},
		"two break where no control plane could say so": {health.Kind{}, func(r rig) health.Change {
			a, b := r.begun(), r.begun()
			a.Ended(health.Cut)
			return b.Ended(health.Cut)
		}, "open", health.Preempted},
		"one 5xx":          {oneHost, func(r rig) health.Change { return r.end(health.Buggy) }, "closed", health.Unchanged},
		"two 5xx in a row": {oneHost, func(r rig) health.Change { r.end(health.Buggy); return r.end(health.Buggy) }, "open", health.Opened},
		"two 5xx with a success between": {oneHost, func(r rig) health.Change {
			r.end(health.Buggy)
			r.end(health.Well)
			return r.end(health.Buggy)
		}, "closed", health.Unchanged},
		"two 5xx with what says nothing between": {oneHost, func(r rig) health.Change {
			r.end(health.Buggy)
			r.end(health.Neutral)
			return r.end(health.Buggy)
		}, "open", health.Opened},
		"three 5xx of five": {oneHost, func(r rig) health.Change {
			for range 2 {
				r.end(health.Buggy)
				r.end(health.Well)
			}
			return r.end(health.Buggy)
		}, "open", health.Opened},
		"three 5xx of six": {oneHost, func(r rig) health.Change {
			r.end(health.Well)
			for range 2 {
				r.end(health.Buggy)
				r.end(health.Well)
			}
			return r.end(health.Buggy)
		}, "closed", health.Unchanged},
		"three 5xx of five in more than half a minute": {oneHost, func(r rig) health.Change {
			for range 2 {
				r.end(health.Buggy)
				r.end(health.Well)
				r.pass(20 * time.Second)
			}
			return r.end(health.Buggy)
		}, "closed", health.Unchanged},
		"streams that begin well and fail": {oneHost, func(r rig) health.Change {
			a := r.begun()
			a.Ended(health.Buggy)
			b := r.begun()
			return b.Ended(health.Buggy)
		}, "open", health.Opened},
		"streams that begin well and fail, one completed between": {oneHost, func(r rig) health.Change {
			a := r.begun()
			a.Ended(health.Buggy)
			b := r.begun()
			b.Completed()
			c := r.begun()
			return c.Ended(health.Buggy)
		}, "closed", health.Unchanged},
		"twice silent":       {oneHost, func(r rig) health.Change { r.end(health.Stuck); return r.end(health.Stuck) }, "closed", health.Unchanged},
		"three times silent": {oneHost, func(r rig) health.Change { r.end(health.Stuck); r.end(health.Stuck); return r.end(health.Stuck) }, "open", health.Opened},
		"callers' doing":     {oneHost, repeated(health.Neutral, 100), "closed", health.Unchanged},
		"one worker of many": {manyMore, func(r rig) health.Change { return burst(r, 20) }, "closed", health.Unchanged},
		"three workers of many": {manyMore, func(r rig) health.Change {
			burst(r, 20)
			r.pass(2 * time.Second)
			burst(r, 20)
			r.pass(2 * time.Second)
			tk := r.begun()
			return tk.Ended(health.Cut)
		}, "open", health.Opened},
		"the address of many": {manyMore, func(r rig) health.Change { return r.end(health.Gone) }, "open", health.Lost},
	} {
		t.Run(name, func(t *testing.T) {
			r := rigged(t, tried, tc.kind)
			if got := tc.do(r); got != tc.last {
				t.Errorf("the last one made it %d, want %d", got, tc.last)
			}
			r.is(tc.want)
		})
	}
}

func repeated(e health.Evidence, times int) func(rig) health.Change {
	return func(r rig) (last health.Change) {
		for range times {
			last = r.end(e)
		}
		return last
	}
}

// burst is so many streams that break at once.
func burst(r rig, streams int) (last health.Change) {
	var all []health.Ticket
	for range streams {
		all = append(all, r.begun())
	}
	for i := range all {
		last = all[i].Ended(health.Cut)
	}
	return last
}

// An outcome says what the table says of it; a cold start is never a fault.
func TestOf(t *testing.T) {
	for c := outcome.Success; c <= outcome.Moved; c++ {
		e := health.Of(c, false)
		if faulty := c.Policy().Verdict == outcome.Faulty; faulty != (e > health.Well) {
			t.Errorf("%s: evidence %d, verdict %d", c, e, c.Policy().Verdict)
		}
	}
	if health.Of(outcome.FirstByteTimeout, true) != health.Neutral {
		t.Error("a cold start that took too long is held against the host")
	}
}

// It stays open for 2·2^k seconds, a fifth more or less, and a minute at most.
func TestPauses(t *testing.T) {
	for seed := range uint64(50) {
		r := rigged(t, health.Options{Seed: seed, Probed: true}, health.Kind{})
		for i, want := range []float64{2, 4, 8, 16, 32, 60, 60} {
			r.end(health.Gone)
			if d := r.due().Seconds(); d < 0.8*want || d > 1.2*want {
				t.Errorf("seed %d: opened for the %d. time it stays so for %v s, want %v", seed, i+1, d, want)
			}
			if got := r.probed(outcome.Success); got != health.Revived {
				t.Fatalf("a good probe made it %d", got)
			}
		}
		tk := r.begun()
		tk.Completed()
		r.end(health.Gone)
		if d := r.due().Seconds(); d > 2.4 {
			t.Errorf("after a whole answer it stays open for %v s", d)
		}
	}
}

// A host that is away is looked for often, where that costs nothing; one that answers badly is left alone.
func TestLooksOften(t *testing.T) {
	for name, tc := range map[string]struct {
		end  []health.Evidence
		want []float64
	}{
		"away":  {[]health.Evidence{health.Gone}, []float64{2, 4, 4, 4}},
		"there": {[]health.Evidence{health.Buggy, health.Buggy}, []float64{2, 4, 8, 16}},
	} {
		t.Run(name, func(t *testing.T) {
			r := rigged(t, byProbe, health.Kind{Free: true})
			for _, e := range tc.end {
				r.end(e)
			}
			for _, want := range tc.want {
				if d := r.due().Seconds(); d < 0.8*want || d > 1.2*want {
					t.Errorf("%v s until the next probe, want %v", d, want)
				}
				r.probed(outcome.UpstreamFault)
			}
		})
	}
}

// A probe that fails doubles the pause, up to half a minute.
func TestFailedProbesDouble(t *testing.T) {
	r := rigged(t, byProbe, health.Kind{})
	r.end(health.Gone)
	for _, want := range []float64{2, 4, 8, 16, 30, 30} {
		if d := r.due().Seconds(); d < 0.8*want || d > 1.2*want {
			t.Errorf("%v s until the next probe, want %v", d, want)
		}
		r.probed(outcome.DialFailed)
	}
	r.due()
	r.probed(outcome.NotReady)
	if d := r.due(); d != 3*time.Second {
		t.Errorf("%v until a host that is not ready yet is asked again", d)
	}
	r.probed(outcome.Success)
	r.is("closed")
}

// With somebody who probes, no caller's request is the trial, and there is one probe at a time.
func TestProbesDecide(t *testing.T) {
	r := rigged(t, byProbe, health.Kind{})
	r.end(health.Gone)
	if r.Probe(r.now()) {
		t.Error("a probe before its time")
	}
	r.due()
	r.is("probing")
	if _, ok := r.Allow(); ok {
		t.Error("a caller's request was let in")
	}
	if !r.Probe(r.now()) || r.Probe(r.now()) {
		t.Error("want one probe at a time")
	}
	r.pass(15*time.Second - 1)
	if r.Probe(r.now()) {
		t.Error("a second one before the first has lapsed")
	}
	r.pass(1)
	if !r.Probe(r.now()) {
		t.Error("no other one after the first has lapsed")
	}
	if r.Probed(outcome.Success) != health.Revived || r.Probed(outcome.DialFailed) != health.Unchanged {
		t.Error("what is reported when nobody waits for it counts")
	}
	r.is("closed")
}

// Without, one caller's request is.
func TestTrial(t *testing.T) {
	r := rigged(t, tried, oneHost)
	r.end(health.Gone)
	r.due()
	trial := r.ticket()
	if _, ok := r.Allow(); ok {
		t.Error("a second trial beside the first")
	}
	trial.Release()
	trial = r.ticket()
	trial.Ended(health.Buggy)
	if d := r.due().Seconds(); d < 3.2 || d > 4.8 {
		t.Errorf("after a trial that failed it stays open for %v s, want 4", d)
	}
	trial = r.ticket()
	if got := trial.Succeeded(r.now()); got != health.Revived {
		t.Errorf("a good trial made it %d", got)
	}
	r.is("closed")
	if trial.Ended(health.Cut) != health.Lost {
		t.Error("the trial's stream broke off later, which counts for nothing")
	}
	r.is("open")
}

// Where all workers are asleep a probe would buy one: callers' requests may try.
func TestTrialsWhereAProbeCosts(t *testing.T) {
	r := rigged(t, byProbe, health.Kind{Many: true, Trials: true})
	r.end(health.Gone)
	r.due()
	trial := r.ticket()
	if r.Probe(r.now()) {
		t.Error("a probe beside the trial")
	}
	trial.Succeeded(r.now())
	r.is("closed")
}

// What began before it opened says nothing of the host that came back.
func TestLateResults(t *testing.T) {
	r := rigged(t, byProbe, oneHost)
	good, bad, silent, lost := r.begun(), r.ticket(), r.begun(), r.ticket()
	lost.Ended(health.Gone)
	r.due()
	good.Completed()
	if !r.Probe(r.now()) {
		t.Fatal("no probe")
	}
	if bad.Ended(health.Buggy) != health.Unchanged {
		t.Error("a late failure disturbs the probe")
	}
	r.Probed(outcome.Success)
	if silent.Ended(health.Cut) != health.Unchanged {
		t.Error("a stream of before it opened opens it again")
	}
	r.is("closed")
}

// Taken away by its control plane's word, it waits for that; by the network's alone, for a minute.
func TestPreempted(t *testing.T) {
	r := rigged(t, byProbe, oneHost)
	if r.Preempt() != health.Preempted || r.Preempt() != health.Unchanged {
		t.Error("want it told once")
	}
	for range 100 {
		r.pass(time.Minute)
		if _, ok := r.Allow(); ok || r.Probe(r.now()) {
			t.Fatal("it is used while its control plane says that it is away")
		}
	}
	r.is("preempted")
	r.Returned()
	if _, ok := r.Allow(); ok {
		t.Error("a caller's request was let in before a probe")
	}
	r.probed(outcome.Success)
	r.is("closed")

	burst(r, 2)
	r.is("preempted")
	r.pass(59 * time.Second)
	if r.Probe(r.now()) {
		t.Error("a probe before the control plane had time to say so")
	}
	if r.Preempt() != health.Unchanged {
		t.Error("what the network has shown is told again")
	}
	r.pass(time.Hour)
	if r.Probe(r.now()) {
		t.Error("a probe although the control plane has confirmed it")
	}
	r.Returned()
	r.probed(outcome.Success)

	burst(r, 2)
	r.pass(time.Minute)
	r.probed(outcome.Success) // the control plane has called it ready all the time
	r.is("closed")
}

// A suspect is left alone until it answers, be it a stream that runs already; nothing is held against it.
func TestSuspected(t *testing.T) {
	r := rigged(t, byProbe, oneHost)
	under := r.ticket()
	if !r.Suspect() || r.Suspect() {
		t.Error("want it suspected once")
	}
	if _, ok := r.Allow(); ok {
		t.Error("it is used before it has answered")
	}
	r.is("suspected")
	if under.Succeeded(r.now()) != health.Cleared {
		t.Error("a first token from it did not clear it")
	}
	r.Suspect()
	if r.probed(outcome.Success) != health.Cleared || r.Opens() != 0 {
		t.Errorf("opened %d times", r.Opens())
	}
	r.Suspect()
	if r.probed(outcome.DialFailed) != health.Lost || !r.Down(r.now()) {
		t.Error("a suspect that does not answer is not lost")
	}
}

// One that answers badly may be asked when nobody else is left, and is used again if it answers; one that is gone may not.
func TestForced(t *testing.T) {
	r := rigged(t, byProbe, oneHost)
	repeated(health.Buggy, 2)(r)
	if _, ok := r.Ignorable(); !ok {
		t.Fatal("not ignorable")
	}
	tk, ok := r.Force()
	if !ok || tk.Ended(health.Buggy) != health.Unchanged {
		t.Error("a forced failure changes something")
	}
	if tk, _ = r.Force(); tk.Succeeded(r.now()) != health.Recovered {
		t.Error("it answers, and is not used")
	}
	for _, away := range []func(){func() { r.end(health.Gone) }, func() { r.Preempt() }} {
		away()
		if _, ok := r.Force(); ok {
			t.Errorf("forced while %s", r.state())
		}
	}
}

// A self-test is for one that is closed, one at a time, and after one that told nothing not again at once.
func TestSelfTests(t *testing.T) {
	r := rigged(t, byProbe, oneHost)
	if !r.Test(r.now()) || r.Test(r.now()) {
		t.Error("want one self-test at a time")
	}
	r.Probed(outcome.UpstreamFault)
	r.is("closed")
	if r.pass(59 * time.Second); r.Test(r.now()) {
		t.Error("again at once")
	}
	if r.pass(time.Second); !r.Test(r.now()) {
		t.Error("never again")
	}
	if r.Probed(outcome.DialFailed) != health.Lost {
		t.Error("that nobody answered counts for nothing")
	}
	if r.due(); r.Test(r.now()) {
		t.Error("a self-test of one that is open")
	}
}

// A shorter cool-down that comes later, of a request that was under way, does not end a longer one.
func TestCoolDownsDoNotShorten(t *testing.T) {
	r := rigged(t, tried, oneHost)
	r.CoolDown(r.now().Add(time.Minute), "credentials refused")
	r.CoolDown(r.now().Add(time.Second), "rate limited")
	r.is("cooling")
	if d, why := r.Wait(r.now()); d != time.Minute || why != "credentials refused" {
		t.Errorf("%v, %s", d, why)
	}
	r.CoolDown(r.now().Add(time.Hour), "rate limited")
	if d, why := r.Wait(r.now()); d != time.Hour || why != "rate limited" {
		t.Errorf("%v, %s", d, why)
	}
	r.pass(time.Hour)
	r.is("closed")
}

func TestHealthyPathAllocatesNothing(t *testing.T) {
	b := health.NewBreaker("x", health.Options{}, time.Now)
	if n := testing.AllocsPerRun(100, func() {
		tk, _ := b.Allow()
		tk.Succeeded(time.Now())
		tk.Completed()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// One that was lost while it was tested is tested as soon as it is back.
func TestSelfTestAfterALoss(t *testing.T) {
	r := rigged(t, byProbe, oneHost)
	r.Test(r.now())
	r.Probed(outcome.DialFailed)
	r.due()
	r.probed(outcome.Success)
	if !r.Test(r.now()) {
		t.Error("it is back, and its self-test waits")
	}
}
