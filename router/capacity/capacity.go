// Package capacity learns how fast an endpoint is as a function of its load, and predicts from it: the gap between two
// tokens, the time to the first one, and how many requests at once keep a promise.
//
// An engine that decodes n sequences gives each of them a token every ITL(n) = a + b·n seconds. a and b come from the
// catalogue at first; a Kalman filter over the two, relative to the catalogue's a, follows what is measured, forgets slowly
// what nobody measures any more, and starts anew when a host has plainly changed. The time to the first token is the
// catalogue's times a factor whose logarithm is learned.
//
// Time is in seconds by the caller's clock, from any fixed origin. A Learner is not safe for concurrent use; a State is a
// value that predicts.
package capacity

import "math"

// Prior is what is expected of one engine (one worker, where there are several) before anything was measured.
type Prior struct {
	ITLSeconds             float64 // between two tokens of a stream alone: a + b
	Slope                  float64 // b/a: what each further stream adds, relative to a
	TTFTSeconds            float64 // to the first token without the prompt's computation
	PrefillTokensPerSecond float64 // of prompts
	MaxNumSeqs             int     // sequences the engine runs at once; 0 when unknown
	Source                 string  // where this is from, with its date
}

// Defaults for engines of which nothing is known: 30 tokens per second, b/a 0.045, 32 sequences.
const (
	defaultITLSeconds = 1.0 / 30
	defaultSlope      = 0.045
	defaultTTFT       = 0.3
	defaultPrefill    = 1500
	DefaultMaxNumSeqs = 32
)

// withDefaults fills in what is missing or not a number one can calculate with.
func (p Prior) withDefaults() Prior {
	or := func(v *float64, def float64) {
		if !within(*v, 1e-6, 1e7) {
			*v = def
		}
	}
	or(&p.ITLSeconds, defaultITLSeconds)
	or(&p.Slope, defaultSlope)
	or(&p.TTFTSeconds, defaultTTFT)
	or(&p.PrefillTokensPerSecond, defaultPrefill)
	if p.MaxNumSeqs <= 0 {
		p.MaxNumSeqs = DefaultMaxNumSeqs
	}
	return p
}

// within tells whether v is a number between the two.
func within(v, low, high float64) bool { return v >= low && v <= high }

// a is the part of ITL that does not depend on the load, in seconds.
func (p *Prior) a() float64 { return p.ITLSeconds / (1 + p.Slope) }

// Constants of the filter; facts in docs/routing.md.
const (
	priorVarA      = 0.06    // variance of a/a0 before anything was measured
	priorDevB      = 0.6     // standard deviation of b/a0 before, relative to the prior slope
	driftVar       = 2e-5    // of a/a0, each second; of b/a0 times the slope squared
	revertAfter    = 20.0    // seconds without an observation, after which the estimate goes back to the prior
	revertSeconds  = 400.0   // time constant of that
	minTokens      = 16      // shorter streams tell too little
	varFloor       = 0.004   // of the residuals
	varStart       = 0.02    //
	clipSigmas     = 3.0     // innovations are cut there
	clipsInRow     = 3       // cut ones on one side after which the host has changed
	floorShare     = 0.2     // of the prior, below which neither a nor b falls
	ttftVarStart   = 0.12    // of the logarithm of observed/expected time to the first token
	ttftVarFloor   = 0.03    //
	ttftClip       = 0.7     //
	limitEvery     = 3.0     // seconds between two cuts of the limit
	limitCut       = 0.92    //
	pendingShare   = 0.7     // of the prompts before this one that it waits for
	minSafe        = 1.0     //
	itlSigmaFloor  = 0.02    // relative
	residualInITL  = 0.5     // share of the residuals' variance that a whole stream's mean keeps
	ttftVarOfDoubt = 0.3     // over the number of observations + 3
	nearZero       = 1e-9    //
	never          = -1e18   // a time before all others
	maxSeconds     = 86400.0 // an observation beyond is none
	maxInFlight    = 1e6     // likewise
)

// State predicts. The zero State does not; take it from a Learner.
type State struct {
	Prior
	A, B       float64 // of ITL(n) = A0·(A + B·n)
	A0         float64 // seconds
	SAA        float64 // variance of A
	SAB        float64
	SBB        float64
	Residual   float64 // variance of single observations around the curve, relative to A0
	TTFTLog    float64 // mean of ln(observed/expected) time to the first token
	TTFTFactor float64 // e to that
	TTFTSigma  float64 // standard deviation of a prediction's logarithm
	TTFTVar    float64 // its variance
	TTFTCount  int
	Limit      float64 // sequences at once that did not queue
	ObservedAt float64 // when a decode speed was last measured
	At         float64 // when this was true
}

// Learner follows one endpoint.
type Learner struct {
	s     State
	clips int
	cutAt float64
	Count int // decode observations taken in
}

// New returns a Learner that knows the prior only. maxNumSeqs is what the endpoint says of itself, 0 for nothing.
func New(p Prior, maxNumSeqs int) *Learner {
	l := &Learner{}
	l.Reset(p, maxNumSeqs)
	return l
}

// Reset forgets all that was measured: the host is another one now.
func (l *Learner) Reset(p Prior, maxNumSeqs int) {
	p = p.withDefaults()
	if maxNumSeqs > 0 {
		p.MaxNumSeqs = maxNumSeqs
	}
	*l = Learner{cutAt: never, s: State{
		Prior: p, A0: p.a(), Residual: varStart, TTFTVar: ttftVarStart, TTFTFactor: 1, Limit: float64(p.MaxNumSeqs), ObservedAt: never, At: never,
	}}
	l.s.TTFTSigma = l.s.ttftSigma()
	l.toPrior()
}

func (l *Learner) toPrior() {
	s := &l.s
	s.A, s.B = 1, s.Slope
	s.SAA, s.SAB, s.SBB = priorVarA, 0, s.priorVarB()
}

func (s *State) priorVarB() float64 { return priorDevB * priorDevB * s.Slope * s.Slope }

// State returns what is known now.
func (l *Learner) State() State { return l.s }

// SetPrior takes in that something else is expected of the endpoint now: its model or GPU was learned, or the catalogue has
// changed. What was measured stays, if it is enough to be worth more than a prior.
func (l *Learner) SetPrior(p Prior, maxNumSeqs int) {
	p = p.withDefaults()
	if maxNumSeqs > 0 {
		p.MaxNumSeqs = maxNumSeqs
	}
	before := l.s
	if p == before.Prior {
		return
	}
	if l.Count < enough {
		l.Reset(p, 0)
		return
	}
	if p.MaxNumSeqs != before.MaxNumSeqs {
		l.s.Limit = float64(p.MaxNumSeqs)
	}
	k := before.A0 / p.a()
	l.s.Prior, l.s.A0 = p, p.a()
	l.s.A, l.s.B = before.A*k, before.B*k
	l.s.SAA, l.s.SAB, l.s.SBB, l.s.Residual = before.SAA*k*k, before.SAB*k*k, before.SBB*k*k, before.Residual*k*k
	l.s.TTFTLog += math.Log(before.ExpectedTTFT(typicalPrompt, 0) / p.expected(typicalPrompt))
	l.s.TTFTFactor = math.Exp(l.s.TTFTLog)
	l.guard()
}

const (
	enough        = 8     // streams measured that are worth more than another prior
	typicalPrompt = 500.0 // tokens
)

// Advance lets time pass without an observation; see State.Advance.
func (l *Learner) Advance(at float64) { l.s.Advance(at) }

// ObserveDecode takes in that a stream of the given number of output tokens had one every itl seconds, while on average
// meanInFlight sequences ran on its engine. What cannot be true is left out.
func (l *Learner) ObserveDecode(at, meanInFlight, itl float64, outputTokens int) {
	if outputTokens < minTokens || !within(itl, 1e-9, maxSeconds) || !within(meanInFlight, nearZero, maxInFlight) || !isTime(at) {
		return
	}
	s := &l.s
	s.Advance(at)
	s.ObservedAt = max(s.ObservedAt, at)
	n := max(1, meanInFlight)
	y := itl / s.A0
	predicted := s.A + s.B*n
	weight := min(2, float64(outputTokens)/100)
	h0, h1 := s.SAA+s.SAB*n, s.SAB+s.SBB*n
	v := h0 + h1*n + (s.Residual+0.002*predicted*predicted)/weight
	e := y - predicted
	if c := clipSigmas * math.Sqrt(v); math.Abs(e) > c {
		l.clipped(e)
		e = math.Copysign(c, e)
	} else {
		l.clips = 0
	}
	s.Residual = max(varFloor, s.Residual+0.02*(min(e*e, clipSigmas*clipSigmas*v)-s.Residual))
	g0, g1 := h0/v, h1/v
	s.A = max(floorShare, s.A+g0*e)
	s.B = max(floorShare*s.Slope, s.B+g1*e)
	s.SAA -= g0 * h0
	s.SAB -= g0 * h1
	s.SBB -= g1 * h1
	l.guard()
	l.Count++
}

// clipped counts innovations that had to be cut; after some on one side what was learned is forgotten.
func (l *Learner) clipped(e float64) {
	switch {
	case e > 0 && l.clips >= 0:
		l.clips++
	case e < 0 && l.clips <= 0:
		l.clips--
	default:
		l.clips = 0
	}
	if l.clips >= clipsInRow || l.clips <= -clipsInRow {
		l.s.SAA, l.s.SAB, l.s.SBB = 1, 0, l.s.priorVarB()
		l.clips = 0
	}
}

// isTime tells whether the filter can calculate with a time.
func isTime(at float64) bool { return within(at, -1e12, 1e12) }

// guard keeps the covariance one, and starts anew where a number was lost: a host with a NaN would never be picked again.
func (l *Learner) guard() {
	s := &l.s
	s.SAA, s.SBB = max(s.SAA, 1e-6), max(s.SBB, nearZero)
	m := 0.95 * math.Sqrt(s.SAA*s.SBB)
	s.SAB = max(-m, min(m, s.SAB))
	if sum := s.A + s.B + s.SAA + s.SAB + s.SBB + s.Residual; math.IsNaN(sum) || math.IsInf(sum, 0) {
		l.toPrior()
		s.Residual = varStart
	}
}

// Advance lets time pass: doubt grows, and what nobody has measured for long goes back to what the catalogue says.
// A clock that goes back changes nothing.
func (s *State) Advance(at float64) {
	dt := at - s.At
	if !isTime(at) || dt <= 0 {
		return
	}
	if s.At == never {
		s.At = at
		return
	}
	s.At = at
	if at-s.ObservedAt > revertAfter {
		back := -math.Expm1(-dt / revertSeconds)
		s.A += (1 - s.A) * back
		s.B += (s.Slope - s.B) * back
	}
	s.SAA = max(s.SAA, min(priorVarA, s.SAA+driftVar*dt)) // after a change doubt is beyond the prior's, and stays until it is settled
	vb := s.priorVarB()
	s.SBB = max(s.SBB, min(vb, s.SBB+driftVar*s.Slope*s.Slope*dt))
}

// Now returns the state as of a later time, for predictions.
func (s State) Now(at float64) State {
	s.Advance(at)
	return s
}

// ITL predicts the seconds between two tokens of one stream when n run at once, and the relative standard deviation of a
// whole stream's mean.
func (s *State) ITL(n float64) (seconds, relSigma float64) {
	y := s.A + s.B*n
	v := s.SAA + 2*s.SAB*n + s.SBB*n*n + residualInITL*s.Residual
	return s.A0 * y, max(itlSigmaFloor, math.Sqrt(max(v, 1e-6))/y)
}

// ExpectedTTFT is the catalogue's time to the first token, in seconds, for a prompt of that many tokens to compute, behind
// pending tokens of others. TTFT corrects it by what was measured.
func (s *State) ExpectedTTFT(promptTokens, pendingTokens float64) float64 {
	return s.TTFTSeconds + (max(0, promptTokens)+pendingShare*max(0, pendingTokens))/s.PrefillTokensPerSecond
}

func (p *Prior) expected(promptTokens float64) float64 {
	return p.TTFTSeconds + promptTokens/p.PrefillTokensPerSecond
}

// TTFT predicts from ExpectedTTFT the seconds to the first token and the standard deviation of its logarithm.
func (s *State) TTFT(expected float64) (seconds, logSigma float64) {
	return expected * s.TTFTFactor, s.TTFTSigma
}

func (s *State) ttftSigma() float64 {
	return math.Sqrt(s.TTFTVar + ttftVarOfDoubt/float64(s.TTFTCount+3))
}

// ObserveTTFT takes in that the first token took that many seconds where ExpectedTTFT had said expected, with inFlight
// sequences on the engine. target is the promised time, in seconds. First tokens behind a cold start are not for this.
func (l *Learner) ObserveTTFT(at, observed, expected, inFlight, target float64) {
	if !within(observed, 0, maxSeconds) || !within(expected, nearZero, maxSeconds) || !within(inFlight, 0, maxInFlight) || !isTime(at) {
		return
	}
	s := &l.s
	d := math.Log(max(observed, 0.005)/expected) - s.TTFTLog
	predicted := expected * s.TTFTFactor
	w := max(1/float64(s.TTFTCount+4), 0.02)
	s.TTFTLog += w * max(-ttftClip, min(ttftClip, d))
	s.TTFTFactor = math.Exp(s.TTFTLog)
	s.TTFTVar = max(ttftVarFloor, s.TTFTVar+w*(min(d*d, 0.5)-s.TTFTVar))
	s.TTFTCount++
	s.TTFTSigma = s.ttftSigma()
	switch {
	case observed > 2*predicted+0.4*max(0, target) && inFlight > 0.7*s.Limit && at-l.cutAt >= limitEvery:
		s.Limit = max(2, limitCut*min(inFlight, s.Limit))
		l.cutAt = at
	case inFlight >= 0.85*s.Limit && d < ttftClip:
		s.Limit = min(float64(s.MaxNumSeqs), s.Limit+1/s.Limit)
	}
}

// ObserveWell takes in that an answer whose first token nobody saw was completed, with inFlight sequences on the engine: so
// many it can run, and perhaps one more.
func (l *Learner) ObserveWell(inFlight float64) {
	if s := &l.s; within(inFlight, 0, maxInFlight) && inFlight >= 0.85*s.Limit {
		s.Limit = min(float64(s.MaxNumSeqs), s.Limit+1/s.Limit)
	}
}

// ObserveFull takes in that the endpoint refused work, or queued it, with inFlight sequences on the engine.
func (l *Learner) ObserveFull(at, inFlight float64) {
	if !within(inFlight, 1, maxInFlight) || !isTime(at) || at-l.cutAt < limitEvery {
		return
	}
	l.s.Limit = max(1, 0.9*min(inFlight, l.s.Limit))
	l.cutAt = at
}

// ObserveQueue takes in that the engine keeps requests waiting while it runs that many: it can run no more.
func (l *Learner) ObserveQueue(at, running float64) {
	if !within(running, 1, maxInFlight) || !isTime(at) || running >= l.s.Limit {
		return
	}
	l.s.Limit = max(1, running)
	l.cutAt = at
}

// Restarted tells that the engine was started anew on the same machine: its curve stays, its queue is gone.
func (l *Learner) Restarted() {
	l.s.Limit = float64(l.s.MaxNumSeqs)
	l.cutAt = never
}

// SafeConcurrency is how many sequences at once give each of them tps tokens per second, with z standard deviations to
// spare: relSigma is ITL's at the load in question. It lies between 1 and Limit; without a promise it is Limit.
func (s *State) SafeConcurrency(tps, z, relSigma float64) float64 {
	if !within(tps, nearZero, 1e9) {
		return max(minSafe, s.Limit)
	}
	// (decay/(tps·A0) - A) / B, as one fraction: three divisions that wait for each other are the longest part of a decision.
	num, den := decay(z * relSigma)
	den *= tps * s.A0
	return max(minSafe, min(s.Limit, (num-s.A*den)/(max(s.B, nearZero)*den)))
}

// FullLoad is what SecondsPerToken is expected to be when as many run as keep the promise of tps, with nothing to spare, and the standard
// deviation of its logarithm: as far as the curve is known, not what streams differ by. A host that has not run so many yet has its
// catalogue's slope, which may be wrong by half.
func (s *State) FullLoad(tps float64) (secondsPerToken, logSigma float64) {
	n := s.SafeConcurrency(tps, 0, 0)
	y := s.A + s.B*n
	logSigma = math.Sqrt(max(0, s.SAA+2*s.SAB*n+s.SBB*n*n)) / y
	if n < s.Limit { // a slower one runs fewer, too
		logSigma *= y / max(s.B*n, nearZero)
	}
	return s.A0 * y / n, min(logSigma, 1)
}

// decay is e to the power of -x for x of 0 or more, right within 1e-4 of itself, and 1 below, as a fraction. It is what a decision
// asks of every host: a Padé approximant takes a third of the time of math.Exp.
func decay(x float64) (num, den float64) {
	switch {
	case !(x > 0): //nolint:staticcheck // NaN
		return 1, 1
	case x > 1.3:
		return math.Exp(-x), 1
	}
	even, odd := 1+x*x*(1./10), x/2+x*x*x*(1./120)
	return even - odd, even + odd
}

// SecondsPerToken is the time between two tokens of any of n sequences: one over what they give together.
func (s *State) SecondsPerToken(n float64) float64 { return s.A0 * (s.A + s.B*n) / n }
