package sim

import (
	"math"
	"slices"
	"testing"
)

// bench is one engine without a gateway in front.
type bench struct {
	*engine
	t *testing.T
}

// newBench returns an idle engine: 10 ms and 1 ms for each stream between tokens, 100 prompt tokens a second, no time
// beside, after the change.
func newBench(t *testing.T, change func(n *nature)) *bench {
	t.Helper()
	n := nature{curve: curve{base: 0.010, slope: 0.001, knee: math.Inf(1)}, prefill: 100, seqs: 100, kv: math.Inf(1), cache: 3}
	if change != nil {
		change(&n)
	}
	w := &world{sc: &Scenario{}}
	b := &backend{w: w, class: &Host{Kind: Hourly}, up: true}
	e := &engine{w: w, b: b, nature: n, rand: dice(1, "bench", 0), up: true, slow: 1, wander: 1, cache: prefixes{most: n.cache}}
	b.engines = []*engine{e}
	return &bench{e, t}
}

// watch is a sequence that notes when it was done.
type watch struct {
	seq
}

// send takes a request at a time; its attempt counts as ended, so that no gateway hears of it.
func (b *bench) send(at float64, prompt, output, session int) *watch {
	s := &watch{seq{attempt: &attempt{done: true}, prompt: prompt, output: output, session: session, shared: prompt}}
	s.engine = b.engine
	b.w.at(at, func() { b.take(&s.seq) })
	return s
}

// until runs and tells the state of s as of a time.
func (b *bench) until(at float64, s *watch) float64 {
	b.t.Helper()
	b.w.run(at)
	b.w.now = at
	b.advance()
	return b.produced(&s.seq)
}

// over returns when s is over, found by halves of the time.
func (b *bench) over(s ...*watch) []float64 {
	b.t.Helper()
	ends := make([]float64, len(s))
	for len(b.w.heap) > 0 && b.w.now < 1e5 {
		e := b.w.pop()
		b.w.now = e.at
		e.do()
		for i := range s {
			if s[i].phase == over && ends[i] == 0 {
				ends[i] = b.w.now
			}
		}
	}
	if b.load() != 0 || len(b.queue) != 0 || b.kv != 0 || b.growth != 0 {
		b.t.Errorf("afterwards %d run, %d wait, %g tokens of KV cache are held that grow by %g", b.load(), len(b.queue), b.kv, b.growth)
	}
	return ends
}

func near(t *testing.T, what string, got, want float64) {
	t.Helper()
	if math.Abs(got-want) > 1e-4*math.Max(1, want) {
		t.Errorf("%s: %g, want %g", what, got, want)
	}
}

func TestEngineAlone(t *testing.T) {
	b := newBench(t, nil)
	// 2 s of prompt, then 100 further tokens 11 ms apart
	near(t, "end", b.over(b.send(1, 200, 101, 1))[0], 1+2+1.1)
	near(t, "busy", b.busy, 3.1)
}

func TestEngineTogether(t *testing.T) {
	b := newBench(t, func(n *nature) { n.prefill = 1e9 })
	var all []*watch
	for i := range 10 {
		all = append(all, b.send(0, 1, 101, i))
	}
	all = append(all, b.send(0.5, 1, 11, 99))
	ends := b.over(all...)
	// ten at 20 ms; from 0.5 s on eleven at 21 ms, until the last has its ten further tokens
	near(t, "the late one", ends[10], 0.5+10*0.021)
	near(t, "the ten", ends[0], 0.5+10*0.021+(100-25-10)*0.020)
}

func TestEngineKnee(t *testing.T) {
	c := curve{base: 0.02, slope: 0.001, knee: 10, steep: 0.004}
	near(t, "at the knee", c.itl(10), 0.030)
	near(t, "beyond", c.itl(14), 0.030+4*0.005)
	for _, n := range []float64{1, 5, 10, 10.5, 30} {
		near(t, "safe is the inverse", c.safe(c.itl(n)), n)
	}
	near(t, "nobody is fast enough", c.safe(0.001), 0)
}

func TestEnginePromptsStallStreams(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*nature)
		prompt float64 // seconds that a prompt of 400 tokens takes beside a stream
		made   float64 // tokens of the stream meanwhile
	}{
		"not at all":   {func(n *nature) { n.stall = 0 }, 4, 4 / 0.011},
		"half":         {func(n *nature) { n.stall = 0.5 }, 4, 2 / 0.011},
		"wholly":       {func(n *nature) { n.stall = 1 }, 4, 0},
		"step by step": {func(n *nature) { n.chunk = 50 }, 8 * 0.511, 8},
		"a slow host":  {func(n *nature) { n.stall = 0.5; n.prefill, n.curve.base, n.curve.slope = 50, 0.02, 0.002 }, 8, 4 / 0.022},
	} {
		b := newBench(t, tc.change)
		long := b.send(0, 0, 1_000_000, 1)
		before := b.until(1, long)
		short := b.send(1, 400, 1, 2)
		b.w.run(1)
		after := b.until(1+tc.prompt-0.01, long)
		if short.phase != prefilling {
			t.Errorf("%s: the prompt is computed too early", name)
		}
		near(t, name, after-before, tc.made*(1-0.01/tc.prompt))
		b.until(1+tc.prompt+0.05, long)
		if short.phase != over {
			t.Errorf("%s: the prompt is not computed after %g s", name, tc.prompt)
		}
	}
}

func TestEngineSlots(t *testing.T) {
	b := newBench(t, func(n *nature) { n.seqs, n.prefill = 2, 1e9 })
	ends := b.over(b.send(0, 1, 101, 1), b.send(0, 1, 201, 2), b.send(0.1, 1, 101, 3), b.send(0.2, 1, 2, 4))
	near(t, "first", ends[0], 1.2)
	near(t, "second, beside the first and then the third", ends[1], 2.4)
	near(t, "third waits for the first", ends[2], 1.2+1.2)
	near(t, "fourth waits for the second", ends[3], 2.4+0.011)
}

func TestEngineKVCache(t *testing.T) {
	b := newBench(t, func(n *nature) { n.kv, n.prefill, n.stall = 100, 1000, 0 })
	first, second := b.send(0, 30, 41, 1), b.send(0, 30, 41, 2)
	most := 0.0
	for at := 0.01; at < 1; at += 0.01 {
		b.until(at, first)
		most = math.Max(most, b.kv)
	}
	if most > 101 || most < 95 {
		t.Errorf("up to %g tokens of KV cache were held, of 100", most)
	}
	if b.kvLosses != 1 {
		t.Errorf("%d sequences lost theirs, want 1", b.kvLosses)
	}
	ends := b.over(first, second)
	if second.again != true || first.again {
		t.Error("the one that came last goes first")
	}
	if first.phase != over || second.phase != over || ends[0] > 0 {
		t.Errorf("phases %d, %d after %v", first.phase, second.phase, ends)
	}
	near(t, "all tokens are made", second.made, 41)

	b = newBench(t, func(n *nature) { n.kv, n.prefill = 10, 1000 }) // larger than the cache, but alone
	near(t, "one that is too large", b.over(b.send(0, 30, 41, 1))[0], 0.03+40*0.011)
}

func TestEngineCancelAndKill(t *testing.T) {
	b := newBench(t, func(n *nature) { n.seqs, n.first = 3, 0.5 })
	running, begins, computes, waits := b.send(0, 0, 1000, 1), b.send(1, 10, 1000, 2), b.send(1.11, 1000, 1000, 3), b.send(1.2, 10, 1000, 4)
	all := []*watch{running, begins, computes, waits}
	b.until(1.3, running)
	for i, want := range []phase{decoding, starting, prefilling, waiting} {
		if all[i].phase != want {
			t.Errorf("sequence %d is in phase %d, want %d", i, all[i].phase, want)
		}
	}
	for _, s := range all {
		b.cancel(&s.seq)
	}
	b.over(all...)
	if computes.made != 0 || running.made < 50 {
		t.Errorf("made %g and %g tokens", computes.made, running.made)
	}

	b = newBench(t, nil)
	running, waits = b.send(0, 0, 1000, 1), b.send(0.5, 1000, 10, 2)
	b.until(1, running)
	killed := b.kill()
	if !slices.Equal(killed, []*seq{&running.seq, &waits.seq}) || killed[0].made < 40 || killed[0].phase != over {
		t.Errorf("killed %d", len(killed))
	}
	b.over()
}

func TestEnginePrefixCache(t *testing.T) {
	b := newBench(t, nil) // of three sessions
	hit := func(session int) float64 {
		s := b.send(b.w.now, 200, 1, session)
		b.over(s)
		return s.hit
	}
	for i, want := range []float64{0, 200, 0, 0, 200, 0, 0, 200, 200} {
		if got := hit([]int{1, 1, 2, 3, 1, 4, 2, 1, 4}[i]); got != want {
			t.Errorf("request %d: %g tokens were there, want %g", i, got, want)
		}
	}
	near(t, "held", b.cache.tokens, 3*201)
	b.kill()
	if got := hit(1); got != 0 {
		t.Errorf("%g tokens outlived a restart", got)
	}
	b.cache.keep(150)
	if len(b.cache.by) != 0 || b.cache.tokens != 0 {
		t.Errorf("holds %g tokens, may hold 150", b.cache.tokens)
	}
}

func TestAgenda(t *testing.T) {
	var q agenda
	var got []int
	r := dice(3, "agenda", 0)
	for i := range 200 {
		q.at(float64(r.IntN(20)), func() { got = append(got, int(q.now)*1000+i) })
	}
	q.at(5, func() { q.at(2, func() { got = append(got, int(q.now)*1000+999) }) }) // the past is now
	q.run(10)
	if q.now != 10 || len(q.heap) == 0 {
		t.Errorf("ran to %g with %d left", q.now, len(q.heap))
	}
	q.run(math.Inf(1))
	if len(got) != 201 || !slices.IsSorted(got) {
		t.Errorf("%d happened, in order: %v", len(got), slices.IsSorted(got))
	}
	if !slices.Contains(got, 5999) {
		t.Error("what was entered for the past did not happen at once")
	}
}
