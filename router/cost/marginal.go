package cost

import (
	"math"

	"headrace/router/endpoint"
)

// Load is what one more request would do to an endpoint, as far as its price depends on it.
type Load struct {
	OutputTokens  float64 // expected, of all its sequences
	PromptTokens  float64 // to be computed: without those in the endpoint's prefix cache
	CachedTokens  float64 // in it
	BodyBytes     float64 // of the request
	Sequences     float64 // that the request adds to the engine's; below 1 is one
	Concurrency   float64 // sequences on the engine with these
	ITLSeconds    float64 // between two tokens at that concurrency
	PrefillPerSec float64 // prompt tokens per second
	FirstSeconds  float64 // to the first token beside the prompt's computation

	Cold        bool
	ColdSeconds float64 // billed until the worker that starts for it answers
	IdleSeconds float64 // of the idle timeout that have gone by: the request starts it anew

	FullLoadUSDPerToken float64 // FullLoad's; NaN when unknown
	LossPerSecond       float64 // rate at which the host is taken away, 1/s
}

const (
	prefillShare = 0.5   // of the time of a prompt's computation, in which decoding stands still
	releaseShare = 0.05  // of the full-load price: orders hosts that are paid anyway, and which of them could be given back
	lostShare    = 0.5   // of an answer that is there on average when its host is lost, and is computed again
	usdPerBreak  = 0.002 // what it is worth not to have an answer break off
	seenShare    = 0.2   // of the breaks that a caller gets to see
	bytesPerTok  = 250   // of an event of a stream on the wire, for traffic that is billed
)

// Marginal returns the dollars that a request is expected to cost in addition to what is paid anyway; ok is false when the
// price is unknown. It decides; FullLoad plans, and USD reports.
//
// An hour of a rented host is paid whoever comes, so that nearly nothing is due for one more; a worker's seconds are
// shared by those that it runs, and a cold one is paid from its start to the end of its idle timeout.
func Marginal(p *endpoint.Price, l *Load) (usd float64, ok bool) {
	switch p.Basis {
	case endpoint.PerHour:
		usd = l.OutputTokens*releaseShare*l.FullLoadUSDPerToken + (l.BodyBytes*p.USDPerGBIn+l.OutputTokens*bytesPerTok*p.USDPerGBOut)*1e-9
	case endpoint.PerWorkerSecond:
		prefill := l.PromptTokens / l.PrefillPerSec
		seconds := l.OutputTokens*l.ITLSeconds/max(1, l.Concurrency) + prefillShare*prefill
		if w := max(1, l.Sequences); l.Concurrency <= w { // the worker does nothing else
			seconds = l.OutputTokens/w*l.ITLSeconds + prefill + l.FirstSeconds + l.IdleSeconds
		}
		if l.Cold {
			seconds = math.Ceil(seconds + l.ColdSeconds + p.IdleTimeout.Seconds())
		}
		usd = p.USDPerWorkerSecond * seconds
	case endpoint.PerToken:
		usd = (l.PromptTokens*p.USDPerMTokIn + l.CachedTokens*p.USDPerMTokCached + l.OutputTokens*p.USDPerMTokOut) / 1e6
	case endpoint.BasisUnknown:
		return math.NaN(), false
	}
	if l.LossPerSecond > 0 {
		lost := l.LossPerSecond * l.OutputTokens / max(1, l.Sequences) * l.ITLSeconds
		if lost > 1e-3 { // below, the two are alike within half a thousandth
			lost = -math.Expm1(-lost)
		}
		usd += lost * (lostShare*l.OutputTokens*l.FullLoadUSDPerToken + seenShare*usdPerBreak)
	}
	return usd, !math.IsNaN(usd)
}

// FullLoad returns the dollars per output token of an engine that gives one every secondsPerToken, all its streams together; NaN
// when the price is unknown.
func FullLoad(p *endpoint.Price, secondsPerToken float64) float64 {
	switch p.Basis {
	case endpoint.PerHour:
		return p.USDPerHour * (secondsPerToken * (1. / 3600))
	case endpoint.PerWorkerSecond:
		return p.USDPerWorkerSecond * secondsPerToken
	case endpoint.PerToken:
		return p.USDPerMTokOut / 1e6
	case endpoint.BasisUnknown:
	}
	return math.NaN()
}

// Metered tells whether a request there costs extra, rather than using what is paid anyway.
func Metered(p *endpoint.Price) bool {
	return p.Basis == endpoint.PerWorkerSecond || p.Basis == endpoint.PerToken
}

// Paid returns what a committed worker's tokens are charged, in dollars, so that demand which would pay for it is drawn to
// it while it has room: nothing on an empty one, usdPerToken on one that is as full as its promise allows.
func Paid(outputTokens, usdPerToken, use float64) float64 {
	return outputTokens * usdPerToken * (math.Pow(steep, min(1.2, use)) - 1) / (steep - 1)
}

const steep = 50

// Covered returns the dollars per hour of service by a host at usdPerHour that is there for up and then away for down, again
// and again, while another at coverUSDPerHour stands in; billedAway says that the first is paid while it is away.
func Covered(usdPerHour, coverUSDPerHour, up, down float64, billedAway bool) float64 {
	away := 0.0
	if billedAway {
		away = usdPerHour
	}
	return (usdPerHour*up + (away+coverUSDPerHour)*down) / (up + down)
}
