package router

import (
	"math"
	"sync"
	"time"

	"headrace/router/affinity"
	"headrace/router/capacity"
	"headrace/router/cost"
	"headrace/router/endpoint"
)

// view is one candidate as one request sees it: what it would cost there, and how fast the answer would be.
type view struct {
	c       *candidate
	verdict verdict

	inFlight    float64 // sequences on the engine that the request would join
	joins       float64 // sequences that it would add
	limit       float64 // that may run there
	itl         float64 // seconds between tokens, with it
	itlSigma    float64 // relative
	expected    float64 // seconds to the first token before correction
	ttft        float64 // seconds to the first token, a cold start included
	ttftSigma   float64 // of the logarithm
	safe        float64 // sequences at once that keep the SLO
	spread      float64 // likewise, doubt left aside
	full        float64 // USD per output token at safe; NaN when the price is unknown
	usd         float64 // marginal cost; NaN when unknown
	prompt      float64 // tokens to compute
	cached      float64 // tokens that it holds already
	match       float64 // likewise, before what its answers said of that
	coldSeconds float64 // until a worker is up; 0 when one is
	forced      bool    // it may be asked though its breaker is open
	session     bool    // it served the session last
	cramped     bool    // prompt and answer may be longer than its context
	metered     bool
}

// use is the share of the safe concurrency in use with this request. Doubt is left aside: a host of which little is known is
// no worse for it, or those that were asked once would be asked for ever.
func (v *view) use() float64 { return (v.inFlight + v.joins) / v.spread }

// verdict is what keeps a candidate from a request, or lets it in.
type verdict uint8

const (
	serves verdict = iota
	slowFirst
	slowStream
	noRoom   // no sequence is free
	ramping  // slow start
	notSpare // a second attempt there would cost something: see Hedge
	keptFree // what is left of it is kept for others: see Request.Spare
	nearLost // likely to go the way of the host that the answer began on
	// From here on a candidate is out of the question, and nothing is predicted of it.
	limited   // a rate or number of requests that its provider sets
	barred    // breaker, or a cool-down
	away      // by its state
	misfit    // see fitness
	asleep    // a worker would have to start, which a caller who is reading does not wait for
	otherKind // serves another model than the one that began the answer
	noPrefill // is not known to go on with an unfinished answer
	tried     // failed this request already, or lost it to another one this moment
	numVerdicts
)

var verdictWords = [numVerdicts]string{
	"serves", "first token too late", "stream too slow", "full", "in slow start", "not idle, or not paid anyway", "what is left is kept free for requests that cannot wait", "near a host that was taken away", "at its provider's limit", "breaker open or cooling down",
	"not usable in its state", "cannot or must not take this request",
	"would start a worker first", "serves another model than began the answer", "cannot continue an answer", "tried already",
}

func (v verdict) String() string { return verdictWords[v] }

// plan is what a request asks, in the numbers that scoring needs.
type plan struct {
	q       *Request
	m       *Model
	now     time.Time
	at      float64 // now in the learners' seconds
	slo     SLO
	policy  Policy
	resumed bool    // the caller is reading already
	strict  bool    // somebody asked for the SLO: sooner refuse a request than break everyone's
	waited  float64 // seconds since the request came
	left    float64 // seconds for the first token; +Inf without a promise
	gap     float64 // most seconds between tokens; +Inf without a promise
	z       float64 // standard deviations to spare
	zSafe   float64 // likewise, for the safe concurrency
	output  float64 // expected tokens of one sequence
	total   float64 // of all of them
	prompt  float64 // tokens
	home    uint64  // affinity.Key.Home
	dice    uint64  // of this request
	api     float64 // USD of this request at the cheapest endpoint that is priced per token; +Inf without one
	metered float64 // USD per output token of the cheapest metered candidate at full load; +Inf without one
}

// scratch is the memory of one Pick.
type scratch struct {
	plan
	matches  affinity.Matches
	views    []view
	state    capacity.State
	load     cost.Load
	attempt  int // of the request, from 1
	lenience leniency
	bad      int                // with ofBad: how bad a host may be
	from     *endpoint.Endpoint // with Continue: where the answer broke off; nil when nobody knows

	perLeft, perGap float64 // 1 over plan.left and plan.gap: every candidate is held against them
}

var scratches = sync.Pool{New: func() any { return new(scratch) }} //nolint:gochecknoglobals // a pool of buffers

const (
	priorOutput   = 250.0 // tokens of an answer before any was seen
	meteredUSD    = 5e-6  // USD per output token where nothing metered is there
	bandShare     = 1.10  // candidates that cost up to this times the least are alike
	bandMetered   = 0.02  // and up to this share of the metered price of the answer above it
	jitter        = 0.1   // of the use, so that replicas do not all choose the same
	affinityBonus = 0.15  // of the use, for a host that holds the whole prompt
	coldStart     = 30.0  // seconds, where nobody says
	startingShare = 0.5   // of a cold start that is left when a worker is on its way
	crowdedBy     = 1.5   // times the safe concurrency, and one more, that are put up with when nothing is feasible
	beyondLimit   = 1.2   // times the limit likewise
	tooLate       = 1.25  // times the promised time to the first token likewise
	coldQueue     = 2.0   // workers' worth of requests that may wait for a cold start
	sooner        = 1.10  // times the earliest first token that PolicyLatency takes for alike
	zUsual        = 1.28  // up to a confidence of 0.95
	zHigh         = 2.0   // above
)

// prepare reads the request.
func (s *scratch) prepare(r *Router, m *Model, q *Request) {
	asked := q.Now
	if asked.IsZero() {
		asked = r.opt.Now()
	}
	now := r.steady(asked)
	s.plan = plan{q: q, m: m, now: now, at: r.seconds(now), policy: q.Policy}
	s.attempt = len(q.Tried) + 1
	s.lenience, s.from = firm, nil
	if q.Continue != nil {
		s.from = r.snap.Load().Endpoint(q.Continue.From)
	}
	s.resumed = q.Resumed || q.Continue != nil
	s.strict = m.strict || q.SLO.TTFT > 0 || q.SLO.TPS > 0
	s.slo = q.SLO.or(m.slo)
	if s.policy == PolicyDefault {
		s.policy = m.policy
	}
	if !q.Came.IsZero() {
		s.waited = max(0, asked.Sub(q.Came).Seconds())
	}
	if q.Batch {
		s.waited = 0
	}
	s.left = max(0.01, s.slo.TTFT.Seconds()-s.waited)
	if s.resumed {
		s.left = math.Inf(1)
	}
	s.gap = 1 / s.slo.TPS
	s.z = math.Sqrt2 * math.Erfinv(2*s.slo.Confidence-1)
	s.zSafe = zUsual
	if s.slo.Confidence > 0.95 {
		s.zSafe = zHigh
	}
	s.output = m.stats.output.get(priorOutput)
	if q.MaxTokens > 0 {
		s.output = min(s.output, float64(q.MaxTokens))
	}
	if s.output = max(1, s.output); q.Tokenless {
		s.output, s.gap = 1, math.Inf(1)
	}
	s.total = s.output * max(1, float64(q.Sequences))
	s.perLeft, s.perGap = 1/s.left, 1/s.gap
	if s.prompt = float64(q.PromptTokens); q.PromptTokens <= 0 {
		s.prompt = float64(q.BodyBytes) / 4
	}
	s.home, s.dice = q.Affinity.Home(), r.roll()
	r.affinity.Lookup(&q.Affinity, now, &s.matches)
}

// look fills v with what c would be for the request.
func (s *scratch) look(c *candidate, v *view) {
	*v = view{c: c, usd: math.NaN(), full: math.NaN()}
	h, ep := c.host, c.ep
	if v.verdict = s.admission(c); v.verdict != serves {
		return
	}
	h.pub.load(&s.state, s.at)
	n := h.running(s.at)
	v.limit = s.state.Limit
	v.cramped = c.maxContext > 0 && s.prompt+float64(max(0, s.q.MaxTokens)) > float64(c.maxContext)
	v.forced = s.lenience >= ofSuspects
	held, session := s.matches.Tokens(affinity.Host(h.cache.Load()))
	if v.prompt, v.session = s.prompt, session; held > 0 {
		v.match = min(float64(held), s.prompt)
		v.cached = min(v.match*h.hits.mean(1), s.prompt)
		v.prompt -= v.cached
	}
	pending, idle := h.computing(s.at), 0.0
	ramp := h.pub.ramp.get()
	if ramp > 0 && float64(h.inflight.Load()) >= ramp {
		v.verdict = ramping
	}
	cold, full := c.asleep(), false
	if ep.Tenure == endpoint.Serverless {
		workers, each := float64(max(1, ep.Workers)), max(1, math.Floor(v.limit)) // a limit that is learned is no whole number
		if n >= each*workers {                                                    // those that are up are full
			full = !cold && ep.MaxWorkers > 0 && ep.Workers >= ep.MaxWorkers
			cold = !full // another one has to start
		}
		if at := h.idleAt.Load(); n == 0 && at > 0 {
			idle = min(max(0, s.now.Sub(time.Unix(0, at)).Seconds()), ep.Price.IdleTimeout.Seconds())
		}
		switch { // those that are up are filled one by one
		case cold:
			n = 0
		case full:
			n /= workers
		default:
			n = math.Mod(n, each)
		}
		pending /= workers
	}
	if cold && s.q.Continue != nil {
		v.verdict = asleep
		return
	}
	v.inFlight, v.joins = n, max(1, min(float64(s.q.Sequences), math.Floor(v.limit))) // more than run at once wait for each other
	n += v.joins
	v.itl, v.itlSigma = s.state.ITL(n)
	v.expected = s.state.ExpectedTTFT(v.prompt, pending)
	v.ttft, v.ttftSigma = s.state.TTFT(v.expected)
	if cold {
		if v.coldSeconds = ep.Price.ColdStart.Seconds(); v.coldSeconds <= 0 {
			v.coldSeconds = coldStart
		}
		if ep.State == endpoint.Starting {
			v.coldSeconds *= startingShare
		}
		v.ttft += v.coldSeconds
	}
	v.safe = s.state.SafeConcurrency(s.slo.TPS, s.zSafe, v.itlSigma)
	v.spread = s.state.SafeConcurrency(s.slo.TPS, 0, 0)
	v.full = cost.FullLoad(&ep.Price, s.state.SecondsPerToken(v.safe))
	s.load = cost.Load{
		OutputTokens: s.total, PromptTokens: v.prompt, CachedTokens: v.cached, BodyBytes: float64(s.q.BodyBytes),
		Sequences: v.joins, Concurrency: n, ITLSeconds: v.itl, PrefillPerSec: s.state.PrefillTokensPerSecond, FirstSeconds: s.state.TTFTSeconds,
		Cold: cold, ColdSeconds: v.coldSeconds, IdleSeconds: idle,
		FullLoadUSDPerToken: v.full, LossPerSecond: h.pub.hazard.get(),
	}
	v.usd, _ = cost.Marginal(&ep.Price, &s.load)
	if v.metered = cost.Metered(&ep.Price); v.metered && v.full < s.metered {
		s.metered = v.full
	}
	if ep.Price.Basis == endpoint.PerToken {
		s.api = min(s.api, v.usd)
	}
	switch {
	case v.verdict != serves:
	case full, n > v.limit:
		v.verdict = noRoom
	case s.resumed && cold, !surely(v.ttft*s.perLeft, s.z*v.ttftSigma):
		v.verdict = slowFirst
	case !surely(v.itl*s.perGap, s.z*v.itlSigma):
		v.verdict = slowStream
	case s.q.Spare > 0 && (v.inFlight >= 1 && n > (1-s.q.Spare)*min(v.safe, v.limit) || cold):
		v.verdict = keptFree
	}
}

// surely tells whether x is at most e to the power of -doubt: whether a figure, as a share of its limit, stays below it with
// as many standard deviations to spare. Two bounds spare the exponential nearly always.
func surely(x, doubt float64) bool {
	switch {
	case x <= 1-doubt:
		return true
	case doubt > 0 && x*(1+doubt) > 1:
		return false
	}
	return x <= math.Exp(-doubt)
}

// Reasons of a decision.
const (
	whyCheapest  = "the least marginal cost among those that keep the SLO"
	whyOnly      = "the only one that keeps the SLO"
	whySooner    = "the earliest first token among those that keep the SLO"
	whyBalanced  = "the least cost and time together among those that keep the SLO"
	whyDrawn     = "drawn by price among those that keep the SLO"
	whyUnpriced  = "keeps the SLO; nobody that does has a known price"
	whyCrowded   = "nobody keeps the SLO: the one that misses it least"
	whyColdStart = "no other has room: waits for a worker to start"
	whyOverfull  = "all are full: the least crowded"
	whyIdle      = "has nothing to do, for a request that can wait"
	whyResumed   = "the fastest that is up, for a stream that its caller is reading"
)

// choose returns the best of the views, nil when none may be used, and why it is the best.
func (s *scratch) choose() (best *view, why string) {
	least, feasible, priced := math.Inf(1), 0, 0
	for i := range s.views {
		if v := &s.views[i]; v.verdict == serves {
			feasible++
			if !math.IsNaN(v.usd) {
				priced++
				least = min(least, v.usd)
			}
		}
	}
	if feasible == 0 {
		return s.degrade()
	}
	switch s.policy {
	case PolicyLatency:
		return s.soonest(), whySooner
	case PolicyBalanced:
		return s.least(func(v *view) float64 {
			usd := v.usd
			if priced == 0 {
				usd = 0 // nobody's price is known: time decides
			}
			return (usd + USDPerSecond*(v.ttft+s.output*v.itl)) * (1 + jitter*s.luck(v))
		}), whyBalanced
	case PolicyWeighted:
		if priced > 0 {
			return s.draw(), whyDrawn
		}
	case PolicyDefault, PolicyCost, numPolicies:
	}
	band := least*bandShare + bandMetered*s.metered*s.total
	best = s.least(func(v *view) float64 {
		switch {
		case priced > 0 && !(v.usd <= band): //nolint:staticcheck // NaN is out as well
			return math.Inf(1)
		case v.metered: // pack, so that others scale to zero
			return 0.5 - v.inFlight/1000
		}
		return v.use()*(1+jitter*s.luck(v)) - affinityBonus*v.held(s.prompt)
	})
	switch {
	case priced == 0:
		return best, whyUnpriced
	case feasible == 1:
		return best, whyOnly
	}
	return best, whyCheapest
}

// luck sets candidates that are alike apart, in [0,1), the less the better: at random, so that replicas do not all choose the
// same, or by the conversation, so that replicas which share nothing send it to the same one.
func (s *scratch) luck(v *view) float64 {
	if s.home == 0 {
		return unit(mix(s.dice ^ v.c.hash))
	}
	return 1 - affinity.Rendezvous(s.home, v.c.hash)
}

// held is the share of the prompt that the candidate holds already; one that served the session last is taken to hold all.
func (v *view) held(prompt float64) float64 {
	if v.session {
		return 1
	}
	if v.cached <= 0 {
		return 0
	}
	return v.cached / prompt
}

// least returns the view that serves with the least score; unknown scores come last.
func (s *scratch) least(score func(*view) float64) (best *view) {
	least := math.Inf(1)
	for i := range s.views {
		v := &s.views[i]
		if v.verdict != serves {
			continue
		}
		if x := score(v); best == nil || x < least || math.IsNaN(least) {
			best, least = v, x
		}
	}
	return best
}

// soonest returns the fastest stream of those whose first token comes about as early as the earliest.
func (s *scratch) soonest() *view {
	earliest := math.Inf(1)
	for i := range s.views {
		if v := &s.views[i]; v.verdict == serves {
			earliest = min(earliest, v.ttft)
		}
	}
	return s.least(func(v *view) float64 {
		if v.ttft > earliest*sooner+0.02 {
			return math.Inf(1)
		}
		return v.itl * (1 + jitter*s.luck(v))
	})
}

// draw returns one at random, by the inverse square of its full-load price. Free ones count as a tenth of a cent a million.
func (s *scratch) draw() (best *view) {
	weight := func(v *view) float64 {
		if v.verdict != serves || math.IsNaN(v.full) {
			return 0
		}
		return 1 / math.Pow(max(v.full, 1e-9), 2)
	}
	sum := 0.0
	for i := range s.views {
		sum += weight(&s.views[i])
	}
	x := unit(s.dice) * sum
	for i := range s.views {
		v := &s.views[i]
		if w := weight(v); w > 0 {
			if best = v; x < w {
				return v
			}
			x -= w
		}
	}
	return best
}

// alone is the seconds to the first token with nobody else's prompt before it and a worker that is up.
func (s *scratch) alone(v *view) float64 {
	v.c.host.pub.load(&s.state, s.at)
	ttft, _ := s.state.TTFT(s.state.ExpectedTTFT(v.prompt, 0))
	return ttft
}

// idle returns whom a request is sent to that leaves room for others, where nobody has it: a host that has nothing to do keeps
// nobody from anything, however slow it is; where nobody is up, a worker has to start.
func (s *scratch) idle() (best *view, why string) {
	up := false
	for i := range s.views {
		v := &s.views[i]
		if v.verdict >= limited || v.coldSeconds > 0 {
			continue
		}
		if up = true; v.verdict != ramping && v.inFlight < 1 && (best == nil || v.itl < best.itl) {
			best = v
		}
	}
	if up {
		return best, whyIdle
	}
	for i := range s.views {
		if v := &s.views[i]; v.verdict < limited && (best == nil || v.coldSeconds < best.coldSeconds) &&
			float64(v.c.host.inflight.Load()) < coldQueue*v.limit*float64(max(1, v.c.ep.Workers)) {
			best = v
		}
	}
	return best, whyColdStart
}

// degrade returns whom to ask when nobody keeps the SLO: the one that misses it least among those that are not hopelessly
// crowded; a cold start; for a stream that is being read, whoever is up. If nobody asked for an SLO, any that is up.
func (s *scratch) degrade() (best *view, why string) {
	pick := func(score func(*view) float64) (v *view) {
		least := math.Inf(1)
		for i := range s.views {
			if c := &s.views[i]; c.verdict < limited {
				if x := score(c); x < least {
					v, least = c, x
				}
			}
		}
		return v
	}
	switch {
	case s.q.Spare > 0:
		return s.idle()
	case s.q.Waited && s.strict:
		return nil, ""
	}
	if best = pick(func(v *view) float64 {
		if v.coldSeconds > 0 || v.verdict == ramping || v.inFlight+v.joins > max(crowdedBy*v.safe+v.joins, v.spread) || v.inFlight+v.joins > beyondLimit*v.limit {
			return math.Inf(1)
		}
		missTTFT := 0.0
		if !s.resumed {
			missTTFT = v.ttft / s.left
		}
		// Of a request that has waited before, its queue is judged by the whole promise: what is over is over, and a start takes longer.
		whole := max(s.left, s.slo.TTFT.Seconds())
		if !s.resumed && v.ttft > tooLate*whole {
			if alone := s.alone(v); alone < whole || v.ttft > crowdedBy*alone {
				return math.Inf(1) // sooner another worker than a queue that grows; a long prompt takes its time anywhere
			}
		}
		return max(v.itl*s.slo.TPS, missTTFT)
	}); best != nil {
		return best, whyCrowded
	}
	if !s.resumed {
		if best = pick(func(v *view) float64 {
			if v.coldSeconds == 0 || float64(v.c.host.inflight.Load()) >= coldQueue*v.limit*float64(max(1, v.c.ep.Workers)) {
				return math.Inf(1)
			}
			return v.coldSeconds
		}); best != nil {
			return best, whyColdStart
		}
	}
	if s.resumed {
		return pick(func(v *view) float64 { return v.itl + v.coldSeconds }), whyResumed
	}
	if !s.strict {
		return pick(func(v *view) float64 { return (float64(v.c.host.sequences()) + 1) / v.limit }), whyOverfull
	}
	return nil, ""
}

// fullLoad is the price of a million output tokens of an engine that is as full as keeps the promise, NaN when unknown, and the standard
// deviation of its logarithm. One that is paid by the token has a price that is known.
func (s *scratch) fullLoad(v *view) (usdPerMTok, logSigma float64) {
	var st capacity.State
	v.c.host.pub.load(&st, s.at)
	seconds, sigma := st.FullLoad(s.slo.TPS)
	if v.c.ep.Price.Basis == endpoint.PerToken {
		sigma = 0
	}
	return cost.FullLoad(&v.c.ep.Price, seconds) * 1e6, sigma
}
