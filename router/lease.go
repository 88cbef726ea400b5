package router

import (
	"math"
	"time"

	"headrace/router/affinity"
	"headrace/router/endpoint"
	"headrace/router/health"
	"headrace/router/outcome"
)

// FirstContent tells that the first content token has come, ttft after the attempt began: the breaker's verdict is due
// now, and the time is learned. Further calls do nothing.
func (l *Lease) FirstContent(ttft time.Duration) {
	if !l.held || !math.IsNaN(l.firstAt) {
		return
	}
	defer l.r.freed(l.Endpoint.ID) // when all of it is known, as in Done
	h := l.host
	l.firstAt = l.pickedAt + ttft.Seconds()
	first := l.r.origin.Add(seconds(l.firstAt))
	l.r.judged(l, l.ticket.Succeeded(first))
	h.ttft.add(ttft.Seconds())
	h.pending.Add(-l.pending)
	l.pending = 0
	h.mu.Lock()
	defer h.mu.Unlock()
	h.integrate(l.firstAt)
	l.sinceTok = h.integral
	if !l.Decision.Cold && !l.metCold(ttft) {
		h.calib.ttft.add(ttft.Seconds(), l.Decision.TTFT)
		h.learner.ObserveTTFT(l.firstAt, ttft.Seconds(), l.expected, l.perEngine(h.running(l.firstAt)), l.target)
		h.publish()
	}
	l.r.affinity.Learn(l.key, affinity.Host(h.cache.Load()), first)
}

// coldShare is the share of a cold start that a first token takes at least when a worker had to start for it.
const coldShare = 0.8

// metCold tells whether the first token seems to have waited for a worker that nobody knew would have to start: that says
// nothing of the workers that are up.
func (l *Lease) metCold(ttft time.Duration) bool {
	if l.Endpoint.Tenure != endpoint.Serverless {
		return false
	}
	cold := l.Endpoint.Price.ColdStart.Seconds()
	if cold <= 0 {
		cold = coldStart
	}
	return ttft.Seconds() > coldShare*cold
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// SLO is what the request was promised when it was picked, every field filled in.
func (l *Lease) SLO() SLO { return l.slo }

// perEngine is how many sequences run on the engine that the lease is on, as far as can be told: workers of a serverless
// endpoint are taken to be filled one after another, so that most requests are on full ones.
func (l *Lease) perEngine(inFlight float64) float64 {
	if l.engines > 1 && inFlight > l.limit && l.limit >= 1 {
		filled := math.Floor(min(inFlight/l.limit, l.engines))
		rest := min(l.limit, max(0, inFlight-filled*l.limit))
		if filled >= l.engines {
			rest = 0
		}
		inFlight = (filled*l.limit*l.limit + rest*rest) / (filled*l.limit + rest)
	}
	return max(1, min(inFlight, max(l.limit, 1)))
}

// ProgressAfter is when after its first token a stream's speed is worth telling, so that a slow host is known before its
// answers end.
const ProgressAfter = 4 * time.Second

// Progress tells how many events with output of one choice have come up to now, where the newest came since after the first.
func (l *Lease) Progress(events int64, since time.Duration) {
	l.learnSpeed(l.host.tokens(events), since)
}

// tokens is how many tokens that many events of the endpoint's streams carry: speculative decoding, for one, gives several at once.
func (h *host) tokens(events int64) int64 {
	return int64(math.Round(float64(events) * h.perEvent.mean(1)))
}

const fewEvents = 16 // of a stream, which do not tell how many tokens each carries

func (l *Lease) learnSpeed(outputTokens int64, since time.Duration) {
	if math.IsNaN(l.firstAt) || outputTokens < 2 || since <= 0 || l.wordless {
		return
	}
	h, last := l.host, l.firstAt+since.Seconds()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.integrate(last)
	mean := l.perEngine((h.integral - l.sinceTok) / since.Seconds())
	h.learner.ObserveDecode(last, mean, since.Seconds()/float64(outputTokens-1), int(min(outputTokens, math.MaxInt32)))
	h.publish()
}

// fewWhole is how many tokens an answer in one piece must have to tell a speed: its first token's time is only guessed.
const fewWhole = 64

// learnWhole learns from an answer that came in one piece.
func (l *Lease) learnWhole(outputTokens int64, at float64) {
	if l.Decision.Cold {
		return
	}
	h := l.host
	h.mu.Lock()
	defer h.mu.Unlock()
	defer h.publish()
	h.learner.ObserveWell(l.perEngine(h.running(at)))
	took := at - l.pickedAt
	if l.wordless || outputTokens < fewWhole || !(took > 0) { //nolint:staticcheck // NaN
		return
	}
	h.integrate(at)
	mean := l.perEngine((h.integral - l.integral) / took)
	decoding := took - min(l.Decision.TTFT, took/2)
	h.learner.ObserveDecode(at, mean, decoding/float64(outputTokens-1), int(min(outputTokens, math.MaxInt32)))
}

// Result is how a lease ended. Of tokens, those that were not counted are 0, or -1 for Cached.
type Result struct {
	Class        outcome.Class
	At           time.Time     // when, by the Router's clock; zero asks the clock
	RetryAfter   time.Duration // with Throttled
	OutputTokens int64
	Estimated    bool          // nobody told OutputTokens: they are Events
	Events       int64         // of a stream, with output in them; 0 for an answer in one piece, or whose tokens are not all in them
	Choices      int64         // that share OutputTokens and came side by side (n of a request); 0 is 1
	Cached       int64         // prompt tokens that the host read from its prefix cache; -1 when it does not say
	Streamed     time.Duration // from the first output token to the last
	USD          float64       // the attempt's share of the host's bill; NaN or 0 when unknown
}

// Done gives the slot back, judges the endpoint and learns from the answer. Only the first call counts.
func (l *Lease) Done(res Result) {
	if !l.held {
		return
	}
	defer l.r.freed(l.Endpoint.ID)
	h, now := l.host, res.At
	if now.IsZero() {
		now = l.r.opt.Now()
	}
	now = l.r.steady(now)
	at := l.r.seconds(now)
	switch {
	case res.Estimated:
		res.OutputTokens = h.tokens(res.OutputTokens)
	case res.Class == outcome.Success && res.Events >= fewEvents:
		h.perEvent.add(float64(res.OutputTokens) / float64(res.Events))
	}
	tokens := res.OutputTokens / max(1, res.Choices) // of one stream
	switch {
	case !math.IsNaN(l.firstAt):
		l.learnSpeed(tokens, res.Streamed)
	case res.Class == outcome.Success:
		l.r.affinity.Learn(l.key, affinity.Host(h.cache.Load()), now)
		l.learnWhole(tokens, at)
	}
	l.held = false
	h.leave(at, now, l.width)
	if l.pending != 0 {
		h.pending.Add(-l.pending)
	}
	h.requests.Add(1)
	if res.Class == outcome.Success {
		if tokens > 0 && !l.wordless {
			l.stats.output.add(float64(tokens))
		}
		if l.match >= 1 && res.Cached >= 0 {
			h.hits.add(min(2, float64(res.Cached)/l.match))
		}
		if s := res.Streamed.Seconds(); s > 0 && tokens > 1 && !l.wordless {
			h.tps.add(float64(tokens-1) / s)
		}
	}
	l.account(&res, tokens, at)
	if e := health.Of(res.Class, l.Decision.Cold); e == health.Well {
		l.r.judged(l, l.ticket.Succeeded(now)) // as Ended, without another look at the clock
	} else {
		l.r.judged(l, l.ticket.Ended(e))
	}
	if res.Class == outcome.Success {
		l.ticket.Completed()
		h.wentWell()
	}
	switch res.Class.Policy().Verdict {
	case outcome.Healthy:
		if h.doubts.Load() > 0 {
			h.doubts.Store(0)
		}
	case outcome.Faulty:
		h.failures.Add(1)
	case outcome.Unrelated:
	case outcome.Doubtful:
		h.failures.Add(1)
		if h.doubts.Add(1) >= doubtsInRow {
			h.doubts.Store(0)
			h.breaker.CoolDown(now.Add(doubtCoolDown), whyDoubtful)
		}
	}
	switch res.Class {
	case outcome.NotReady:
		d := res.RetryAfter
		if d <= 0 {
			d = notReadyCool
		}
		h.breaker.CoolDown(now.Add(min(d, maxCoolDown)), whyNotReady)
	case outcome.Throttled:
		d := res.RetryAfter
		if d <= 0 {
			d = time.Second
		}
		h.refused(l, at)
		h.breaker.CoolDown(now.Add(min(d, maxCoolDown)), whyThrottled)
	case outcome.UpstreamDenied:
		h.breaker.CoolDown(now.Add(deniedCoolDown), whyDenied)
	case outcome.Success, outcome.DialFailed, outcome.UpstreamFault, outcome.FirstByteTimeout,
		outcome.CallerFault, outcome.Truncated, outcome.ClientGone, outcome.Unserved, outcome.Opaque,
		outcome.Stalled, outcome.Severed, outcome.Moved:
	case outcome.Outrun:
		l.outrun(at)
	}
}

const fewTokens = 10 // of an answer, whose speed nobody notices

// account compares what came with what was expected; tokens are those of one stream. A first token that never came counts as
// late, and one that came in time counts even if the rest did not.
func (l *Lease) account(res *Result, tokens int64, at float64) {
	ttft, tps := l.firstAt-l.pickedAt, math.NaN()
	if s := res.Streamed.Seconds(); s > 0 && tokens > 1 {
		tps = float64(tokens-1) / s
	}
	l.r.decisions.ended(l.seq, res.Class, ttft, tps)
	came := !math.IsNaN(l.firstAt)
	well := res.Class == outcome.Success && came
	d := &l.Decision
	first, speed := !d.resumed && (came || l.missed(res.Class, at)), well && tokens > fewTokens && !math.IsNaN(tps)
	if c := &l.r.calibrated; first || speed {
		c.mu.Lock()
		if first {
			c.ttft.add(d.PTTFT, l.slo.Confidence, l.late+ttft <= l.slo.TTFT.Seconds()) // NaN is late
		}
		if speed {
			c.tps.add(d.PTPS, l.slo.Confidence, tps >= l.slo.TPS)
		}
		c.mu.Unlock()
	}
	if !well {
		return
	}
	h := l.host
	h.mu.Lock()
	defer h.mu.Unlock()
	if tokens > fewTokens {
		h.calib.itl.add(1/tps, 1/d.TPS)
	}
	if res.USD > 0 {
		h.calib.usd.add(res.USD, d.MarginalUSD)
	}
}

// refused learns that the endpoint takes no more than it has.
func (h *host) refused(l *Lease, at float64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.learner.ObserveFull(at, l.perEngine(h.running(at)))
	h.publish()
}

// MeanInFlight is how many requests like the lease's, of as many sequences, were served at once by the engine that it is on; this one counts. It is the mean by which
// the lease's time is to be divided: each moment is parted among those that were there, so that the parts of all of them come to the
// time in which anybody was. now is the Router's clock, as it is for Result.At.
func (l *Lease) MeanInFlight(now time.Time) float64 {
	at := l.r.seconds(now)
	d := at - l.pickedAt
	w := float64(max(1, l.width))
	if d <= 0 {
		return max(1, float64(l.host.sequences())/w)
	}
	h := l.host
	h.mu.Lock()
	h.integrate(at)
	share, n := h.shares-l.shares, max(1, (h.integral-l.integral)/d)
	h.mu.Unlock()
	if l.engines > 1 { // each of them is billed
		return max(1, max(l.perEngine(n), n/l.engines)/w)
	}
	if share *= w; share <= 0 || share > d {
		return max(1, n/w)
	}
	return d / share
}

// PromptTokens corrects an estimate of a prompt's tokens by what hosts have reported of the model's prompts.
func (l *Lease) PromptTokens(estimated int64) int64 {
	return int64(math.Round(float64(estimated) * l.stats.prompts.mean(1)))
}

// UnseenTokens is about how many output tokens an answer in one piece had by now, of which nobody saw any: as many as answers of the
// model have on average, where its host had begun to send it, which it does when it has all; else no more of them than fit into the time
// since the first one was expected. now is the Router's clock.
func (l *Lease) UnseenTokens(now time.Time, sent bool) int64 {
	if l.wordless {
		return 0
	}
	w := float64(max(1, l.width))
	n := l.stats.output.get(fewWhole) * w
	if !sent {
		n = min(n, (l.r.seconds(now)-l.pickedAt-l.Decision.TTFT)*l.Decision.TPS*w)
	}
	if !(n >= 1) { //nolint:staticcheck // NaN
		return 0
	}
	return int64(n)
}

// CountedPrompt tells how many tokens a prompt has that was estimated.
func (l *Lease) CountedPrompt(estimated, counted int64) {
	if estimated >= fewEvents && counted > 0 {
		l.stats.prompts.add(float64(counted) / float64(estimated))
	}
}
