package capacity_test

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"testing"

	"headrace/router/capacity"
)

// lifelike is a host that is slower than its prior.
type lifelike struct {
	a, b, ttft float64
	rng        *rand.Rand
}

func (h *lifelike) measure(l *capacity.Learner, from float64, streams int) {
	for i := range streams {
		at := from + float64(i)*2
		n := 1 + 20*h.rng.Float64()
		l.ObserveDecode(at, n, (h.a+h.b*n)*(1+0.05*h.rng.NormFloat64()), 200)
		s := l.State()
		l.ObserveTTFT(at, h.ttft*math.Exp(0.1*h.rng.NormFloat64()), s.ExpectedTTFT(500, 0), n, 2)
	}
}

var slow = capacity.Prior{ITLSeconds: 0.02, Slope: 0.045, TTFTSeconds: 0.3, PrefillTokensPerSecond: 2000, MaxNumSeqs: 64}

// TestWarm starts a learner from what another has measured: it predicts as well as that one, doubts more, knows that what is old may have
// changed, and is moved by what it measures itself.
func TestWarm(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	h := &lifelike{a: 0.035, b: 0.002, ttft: 1.2, rng: rand.New(rand.NewPCG(seed, 0))}
	first := capacity.New(slow, 0)
	h.measure(first, 1000, 200)
	m, age, ok := first.Learned(1410)
	if !ok || age < 10 || age > 13 {
		t.Fatalf("learned %+v, %g s ago, %t", m, age, ok)
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var back capacity.Learned
	if err := json.Unmarshal(b, &back); err != nil || back != m {
		t.Fatalf("%s became %+v, %v", b, back, err)
	}
	truth := h.a + h.b*10
	for name, p := range map[string]capacity.Prior{
		"same prior":    slow,
		"another prior": {ITLSeconds: 0.05, Slope: 0.02, TTFTSeconds: 0.1, PrefillTokensPerSecond: 9000, MaxNumSeqs: 64},
	} {
		l := capacity.New(p, 0)
		if !l.Warm(&back, age, 50) {
			t.Fatalf("%s: not warm", name)
		}
		s, cold := l.State(), capacity.New(p, 0).State()
		itl, sigma := s.ITL(10)
		old := first.State()
		_, before := old.ITL(10)
		_, doubtful := cold.ITL(10)
		if math.Abs(itl/truth-1) > 0.06 || sigma < before || sigma > doubtful {
			t.Errorf("%s: %.4f s a token of %.4f; doubt %.3f, want %.3f to %.3f", name, itl, truth, sigma, before, doubtful)
		}
		if ttft, _ := s.TTFT(s.ExpectedTTFT(500, 0)); math.Abs(math.Log(ttft/h.ttft)) > 0.15 {
			t.Errorf("%s: first token after %.2f s, want %.2f", name, ttft, h.ttft)
		}
		h.measure(l, 52, 20)
		if l.Warm(&back, age, 100) {
			t.Errorf("%s: what was measured here gave way", name)
		}

		l = capacity.New(p, 0)
		if !l.Warm(&back, 4*3600, 50) {
			t.Fatalf("%s: not warm from of old", name)
		}
		s = l.State()
		was, _ := cold.ITL(10)
		if itl, _ := s.ITL(10); math.Abs(itl/was-1) > 0.02 {
			t.Errorf("%s: after hours %.4f s a token, want %.4f as the prior", name, itl, was)
		}
	}
	faster := &lifelike{a: 0.012, b: 0.0005, ttft: 0.2, rng: h.rng} // the machine has changed meanwhile
	l := capacity.New(slow, 0)
	l.Warm(&back, age, 50)
	faster.measure(l, 52, 40)
	s := l.State()
	if itl, _ := s.ITL(10); math.Abs(itl/(faster.a+faster.b*10)-1) > 0.1 {
		t.Errorf("after 40 streams %.4f s a token, want %.4f", itl, faster.a+faster.b*10)
	}
}

// TestMerge knows of three processes that each saw a part what one would know that saw all.
func TestMerge(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	h := &lifelike{a: 0.03, b: 0.001, ttft: 0.6, rng: rand.New(rand.NewPCG(seed, 0))}
	var parts []capacity.Learned
	for i := range 3 {
		l := capacity.New(slow, 0)
		h.measure(l, 1000, 30+10*i)
		m, _, ok := l.Learned(1200)
		if !ok {
			t.Fatal("nothing was learned")
		}
		parts = append(parts, m)
	}
	m, ok := capacity.Merge(parts)
	if !ok || m.Count != 120 || m.TTFTCount != 120 {
		t.Fatalf("merged %+v, %t", m, ok)
	}
	for i, p := range parts {
		if m.SAA >= p.SAA || m.SBB >= p.SBB {
			t.Errorf("merged it is no surer than part %d: %+v, %+v", i, m, p)
		}
	}
	if got, want := m.A+10*m.B, h.a+10*h.b; math.Abs(got/want-1) > 0.06 {
		t.Errorf("merged: %.4f s a token at 10, want %.4f", got, want)
	}
	if one, ok := capacity.Merge(parts[:1]); !ok || math.Abs(one.A/parts[0].A-1) > 1e-9 || math.Abs(one.SBB/parts[0].SBB-1) > 1e-6 || math.Abs(one.TTFT/parts[0].TTFT-1) > 1e-9 {
		t.Errorf("of one: %+v, want %+v", one, parts[0])
	}
	if _, ok := capacity.Merge(nil); ok {
		t.Error("of nothing something was learned")
	}
}

// TestWarmFromOdd takes no figures that one cannot calculate with.
func TestWarmFromOdd(t *testing.T) {
	good := capacity.Learned{A: 0.03, B: 0.001, SAA: 1e-6, SBB: 1e-9, Residual: 1e-6, Count: 50, TTFT: 0.5, TTFTVar: 0.1, TTFTCount: 50, Limit: 20}
	for name, spoil := range map[string]func(*capacity.Learned){
		"a NaN":           func(m *capacity.Learned) { m.A = math.NaN() },
		"an infinity":     func(m *capacity.Learned) { m.TTFT = math.Inf(1) },
		"no curve":        func(m *capacity.Learned) { m.A = 0 },
		"a wild doubt":    func(m *capacity.Learned) { m.SAB = 1 },
		"negative counts": func(m *capacity.Learned) { m.Count = -1 },
		"no limit":        func(m *capacity.Learned) { m.Limit = 0 },
		"nothing":         func(m *capacity.Learned) { m.Count, m.TTFTCount = 0, 0 },
	} {
		m, l := good, capacity.New(slow, 0)
		before := l.State()
		spoil(&m)
		if l.Warm(&m, 1, 10) || l.State() != before {
			t.Errorf("%s was taken", name)
		}
		if got, ok := capacity.Merge([]capacity.Learned{m}); ok {
			t.Errorf("%s was merged: %+v", name, got)
		}
	}
	l := capacity.New(slow, 0)
	if l.Warm(&good, math.NaN(), 10) || l.Warm(&good, -1, 10) || !l.Warm(&good, 1, 10) {
		t.Error("an odd age was taken, or a good one was not")
	}
}
