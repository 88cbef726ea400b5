package capacity_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"headrace/router/capacity"
)

func near(t *testing.T, what string, got, want, rel float64) {
	t.Helper()
	if math.Abs(got-want) > rel*math.Abs(want) || math.IsNaN(got) {
		t.Errorf("%s = %v, want %v", what, got, want)
	}
}

// prior with a and b/a as given.
func prior(a, slope float64, seqs int) capacity.Prior {
	return capacity.Prior{ITLSeconds: a * (1 + slope), Slope: slope, TTFTSeconds: 0.25, PrefillTokensPerSecond: 1200, MaxNumSeqs: seqs}
}

// Test vector 7 of the routing facts.
func TestDecodeStep(t *testing.T) {
	l := capacity.New(prior(0.0275, 0.045, 48), 0)
	before := l.State()
	itl, _ := before.ITL(30)
	near(t, "ITL(30) before", itl, 0.064625, 1e-9)
	l.ObserveDecode(0, 10, 0.045, 100)
	s := l.State()
	near(t, "A", s.A, 1.071174, 1e-6)
	near(t, "B", s.B, 0.053648, 1e-5)
	near(t, "SAA", s.SAA, 0.037085, 1e-4)
	near(t, "SAB", s.SAB, -0.002784, 1e-3)
	near(t, "SBB", s.SBB, 0.000390729, 1e-5)
	itl, _ = s.ITL(30)
	near(t, "ITL(30)", itl, 0.073717, 1e-5)
}

// Test vector 2 of the routing facts: an A100 at 35 tokens per second alone, b/a 0.04.
func TestCurve(t *testing.T) {
	l := capacity.New(prior(0.0274725, 0.04, 64), 0)
	s := l.State()
	for _, v := range []struct{ n, each, all float64 }{{1, 35, 35}, {8, 27.58, 220.6}, {32, 15.96, 510.9}} {
		itl, _ := s.ITL(v.n)
		near(t, "tokens per second", 1/itl, v.each, 1e-3)
		near(t, "of all", 1/s.SecondsPerToken(v.n), v.all, 1e-3)
	}
	near(t, "c* at 15", s.SafeConcurrency(15, 1.28, 0), 35.67, 1e-3)
	near(t, "c* at 20", s.SafeConcurrency(20, 1.28, 0), 20.5, 1e-3)
	near(t, "c* without a promise", s.SafeConcurrency(0, 1.28, 0), 64, 0)
	near(t, "c* that nobody can keep", s.SafeConcurrency(1000, 1.28, 0), 1, 0)
}

// TestFullLoad: a host that was seen alone only is expected to be what its catalogue says, nothing held back, and is known to be in doubt; one
// that was seen full is not.
func TestFullLoad(t *testing.T) {
	l := capacity.New(prior(0.0274725, 0.04, 64), 0)
	s := l.State()
	want := s.SecondsPerToken(35.67)
	got, sigma := s.FullLoad(15)
	near(t, "seconds a token of a full engine", got, want, 1e-3)
	if sigma < 0.3 {
		t.Errorf("sigma %.2f of a host that nobody has used, whose slope may be wrong by half", sigma)
	}
	for i := range 300 {
		l.ObserveDecode(float64(i), 1, 0.0274725, 200)
	}
	s = l.State()
	got, sigma = s.FullLoad(15)
	near(t, "the same of one that was seen alone", got, want, 0.1)
	if sigma < 0.2 {
		t.Errorf("sigma %.2f of a host that was seen alone only", sigma)
	}
	for i := range 300 {
		n := float64(1 + i%30)
		l.ObserveDecode(float64(300+i), n, 0.0274725/1.04*(1+0.04*n), 200)
	}
	s = l.State()
	got, sigma = s.FullLoad(15)
	near(t, "the same of one that was seen full", got, want, 0.1)
	if sigma > 0.1 {
		t.Errorf("sigma %.2f of a host that was seen full", sigma)
	}
	s = capacity.New(prior(0.0274725, 0.04, 8), 0).State()
	got, sigma = s.FullLoad(15)
	near(t, "of one that is full before it is slow", got, s.SecondsPerToken(8), 1e-9)
	if !(sigma > 0.05 && sigma < 0.35) { //nolint:staticcheck // NaN
		t.Errorf("sigma %.2f of one that is full before it is slow", sigma)
	}
}

// The filter finds the truth of a host that is not what the catalogue says, at the loads the host has seen.
func TestLearns(t *testing.T) {
	const seed = 7
	r := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test's noise
	l := capacity.New(prior(0.0275, 0.045, 48), 0)
	a, b := 0.0275*1.8, 0.0275*1.8*0.04
	at := 0.0
	for range 300 {
		n := 1 + 20*r.Float64()
		l.ObserveDecode(at, n, (a+b*n)*math.Exp(0.05*r.NormFloat64()), 200)
		at++
	}
	s := l.State()
	for _, n := range []float64{1, 10, 20} {
		itl, sigma := s.ITL(n)
		near(t, "ITL", itl, a+b*n, 0.04)
		if sigma > 0.1 {
			t.Errorf("after 300 streams the doubt is still %.2f", sigma)
		}
	}
	// Nobody measures any more: an hour later the host is worth another try at the catalogue's word.
	s = s.Now(at + 3600)
	itl, sigma := s.ITL(10)
	near(t, "ITL(10) an hour later", itl, 0.0275*1.45, 0.02)
	if sigma < 0.1 {
		t.Errorf("an hour later there is no more doubt than before: %.3f", sigma)
	}
}

// A host that turns slow at once is known as such within a handful of streams.
func TestRegimeChange(t *testing.T) {
	l := capacity.New(prior(0.0275, 0.045, 48), 0)
	for i := range 200 {
		l.ObserveDecode(float64(i), 8, 0.0275*(1+0.045*8), 200)
	}
	for i := range 8 {
		l.ObserveDecode(200+float64(i), 8, 3*0.0275*(1+0.045*8), 200)
	}
	s := l.State()
	if itl, _ := s.ITL(8); itl < 2.5*0.0275*(1+0.045*8) {
		t.Errorf("after 8 streams at a third of the speed ITL(8) is %.4f s, the truth %.4f", itl, 3*0.0275*(1+0.045*8))
	}
}

// Whatever is fed in, predictions stay numbers and limits stay within bounds.
func TestNonsense(t *testing.T) {
	bad := []float64{math.NaN(), math.Inf(1), math.Inf(-1), 0, -1, 1e-300, 1e300, math.MaxFloat64, math.SmallestNonzeroFloat64, 0.03, 1, 8}
	const seed = 3
	r := rand.New(rand.NewPCG(seed, 2)) //nolint:gosec // a test's choice
	some := func() float64 { return bad[r.IntN(len(bad))] }
	for range 2000 {
		l := capacity.New(capacity.Prior{ITLSeconds: some(), Slope: some(), TTFTSeconds: some(), PrefillTokensPerSecond: some(), MaxNumSeqs: r.IntN(5) - 1}, r.IntN(5)-1)
		for range 30 {
			l.ObserveDecode(some(), some(), some(), r.IntN(300)-10)
			l.ObserveTTFT(some(), some(), some(), some(), some())
			l.ObserveFull(some(), some())
		}
		s := l.State()
		s = s.Now(some())
		itl, sigma := s.ITL(3)
		_, logSigma := s.TTFT(1)
		c := s.SafeConcurrency(15, 1.28, 0.1)
		if !(itl > 0) || math.IsInf(itl, 0) || !(sigma > 0) || !(logSigma > 0) || !(c >= 1) || c > 100 { //nolint:staticcheck // NaN
			t.Fatalf("seed %d: ITL %v ± %v, ln TTFT ± %v, c* %v of %+v", seed, itl, sigma, logSigma, c, s)
		}
	}
}

// The limit falls when first tokens come late under load, and comes back.
func TestLimit(t *testing.T) {
	l := capacity.New(prior(0.0275, 0.045, 48), 0)
	l.ObserveTTFT(0, 5, 0.3, 10, 2) // late, but nobody was there: not the queue
	if got := l.State().Limit; got != 48 {
		t.Errorf("limit %v after a late token on an empty host", got)
	}
	l.ObserveTTFT(1, 5, 0.3, 40, 2)
	l.ObserveTTFT(2, 5, 0.3, 40, 2) // within 3 s of the last cut
	near(t, "limit", l.State().Limit, 0.92*40, 1e-9)
	for i := range 1000 {
		l.ObserveTTFT(10+float64(i), 0.3, 0.3, 48, 2)
	}
	near(t, "limit after good ones", l.State().Limit, 48, 0.1)
	l.ObserveFull(2000, 20)
	near(t, "limit after a refusal", l.State().Limit, 18, 1e-9)
	l.Restarted()
	near(t, "limit after a restart", l.State().Limit, 48, 0)
}

// A prior that comes late changes what nobody has measured, and nothing of what was measured.
func TestSetPrior(t *testing.T) {
	slow, fast := prior(0.0275, 0.045, 48), prior(0.01, 0.03, 64)
	l := capacity.New(slow, 0)
	l.SetPrior(fast, 0)
	s := l.State()
	itl, _ := s.ITL(1)
	near(t, "ITL(1) of the new prior", itl, 0.01*1.03, 1e-9)
	near(t, "limit", s.Limit, 64, 0)
	l = capacity.New(slow, 0)
	for i := range 50 {
		l.ObserveDecode(float64(i), 10, 0.05, 200)
		l.ObserveTTFT(float64(i), 0.9, 0.66, 10, 2)
	}
	before := l.State()
	want, doubt := before.ITL(10)
	first, _ := before.TTFT(before.ExpectedTTFT(500, 0))
	l.SetPrior(fast, 12)
	after := l.State()
	got, sigma := after.ITL(10)
	near(t, "ITL(10) as measured", got, want, 1e-9)
	near(t, "its doubt", sigma, doubt, 0.2)
	ttft, _ := after.TTFT(after.ExpectedTTFT(500, 0))
	near(t, "first token as measured", ttft, first, 1e-9)
	near(t, "limit", after.Limit, 12, 0)
	l.SetPrior(fast, 12)
	if l.State() != after {
		t.Error("the same prior again changed something")
	}
}
