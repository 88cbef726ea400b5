package books

import (
	"math"

	"headrace/gateway/ledger"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// share is one attempt's part of a record.
type share struct {
	served, provider, host string
	Sums
}

// split parts a record among its attempts and calls add for each part, the last of which has the request itself. What is useful: the
// attempts whose output is in an answer that reached its caller, down to where he left it. Of those that went on with an answer the
// prompt is waste; of one that waited for a worker to start, that wait.
func split(r *ledger.Record, add func(*share)) {
	n := len(r.Attempts)
	answered := r.Class == outcome.Success || r.Class == outcome.ClientGone && r.Left == ledger.Streaming
	var chain [ledger.MaxAttempts]bool
	said := int64(0) // output of the chain's attempts but the last
	if answered && n > 0 {
		chain[n-1] = true
		for i, on := n-2, r.Attempts[n-1].Resumed; i >= 0 && on; i-- {
			a := &r.Attempts[i]
			if a.Hedge && a.Class == outcome.Outrun || a.Output <= 0 {
				continue // it added nothing to the answer
			}
			chain[i], on = true, a.Resumed
			said += a.Output
		}
	}
	usd, promptDone := 0.0, false
	for i := range r.Attempts {
		a := &r.Attempts[i]
		s := share{served: a.Served, provider: a.Provider, host: string(a.Endpoint)}
		s.N[Attempts] = 1
		s.F[HostSeconds], s.F[WorkerSeconds] = a.Share.Seconds(), a.Told().Executed.Seconds()
		if m := a.Decision.MarginalUSD; a.Provider != "" && !math.IsNaN(m) && !math.IsInf(m, 0) {
			s.F[MarginalUSD] = m
		}
		switch {
		case a.USDKnown:
			usd += a.USD
			s.spend(a)
		case a.Provider != "":
			s.N[UnknownPrice] = 1
		}
		last := i == n-1
		switch {
		case !chain[i]:
			s.N[WastedPrompt], s.N[WastedOutput] = a.Prompt, max(0, a.Output)
			s.waste(reason(a, last && r.Class == outcome.ClientGone), a.USD, a.USDKnown)
		case a.Resumed && promptDone:
			s.N[WastedPrompt] = a.Prompt
			s.waste(RePrefilled, a.PromptUSD, a.USDKnown)
		default:
			promptDone = true
			s.N[PromptTokens] = a.Prompt
			if r.Prompt >= 0 { // of the whole answer, as its last host reported it
				s.N[PromptTokens] = r.Prompt
			}
			s.N[CachedTokens] = a.Cached
			if a.Decision.Cold && a.Basis == endpoint.PerWorkerSecond && a.Told().Executed == 0 {
				s.waste(ColdStart, a.PromptUSD, a.USDKnown)
			}
		}
		if chain[i] {
			if s.N[OutputTokens] = max(0, a.Output); last && r.Output >= 0 && !r.Estimated {
				s.N[OutputTokens] = max(0, r.Output-said)
			}
			s.N[ReasoningTokens] = a.Reasoning
		}
		if !a.Counted {
			s.N[EstimatedTokens] = s.N[OutputTokens] + s.N[WastedPrompt] + s.N[WastedOutput]
			if r.Prompt < 0 {
				s.N[EstimatedTokens] += s.N[PromptTokens]
			}
		}
		if last {
			if more := int64(r.Tries - n); more > 0 { // that the record does not name
				s.N[Attempts] += more
			}
			if rest := r.USD - usd; r.USDKnown && rest > 1e-12 {
				s.F[UsedPerHour] += rest
				s.waste(Retry, rest, true)
			}
			s.request(r)
		}
		add(&s)
	}
	if n == 0 {
		s := share{}
		s.request(r)
		add(&s)
	}
}

// spend books what an attempt cost.
func (s *share) spend(a *ledger.Attempt) {
	switch a.Basis {
	case endpoint.PerHour:
		s.F[UsedPerHour], s.F[TrafficUSD] = a.USD, a.TrafficUSD
	case endpoint.PerWorkerSecond:
		s.F[UsedPerSecond] = a.USD
	case endpoint.PerToken:
		s.F[UsedPerToken] = a.USD
	case endpoint.BasisUnknown:
	}
	if a.Guessed {
		s.F[GuessedUSD] = a.USD
	}
}

func (s *share) waste(why Reason, usd float64, known bool) {
	if known {
		s.F[Wasted+Amount(why)] += usd
	}
}

// request counts what is the request's.
func (s *share) request(r *ledger.Record) {
	s.N[Requests] = 1
	switch r.Class {
	case outcome.Success, outcome.CallerFault:
	case outcome.ClientGone:
		s.N[Left] = 1
	default:
		s.N[Errors] = 1
	}
	if r.TTFT > 0 {
		s.N[FirstTokens], s.F[TTFTSeconds] = 1, r.TTFT.Seconds()
	}
	if r.TPS > 0 {
		s.N[Streams], s.F[TokensPerSecond] = 1, r.TPS
	}
}

// reason is why an attempt gave nothing to its request's answer; left says that the caller left while it ran, however it ended then.
func reason(a *ledger.Attempt, left bool) Reason {
	if left {
		return Orphaned
	}
	switch a.Class {
	case outcome.Outrun:
		return HedgeLost
	case outcome.ClientGone:
		if a.Hedge {
			return HedgeLost
		}
		return Orphaned
	case outcome.Truncated, outcome.Stalled, outcome.Severed, outcome.Moved:
		return Preempted
	case outcome.CallerFault:
		return Refused
	case outcome.Success, outcome.DialFailed, outcome.Throttled, outcome.UpstreamFault, outcome.FirstByteTimeout, outcome.UpstreamDenied, outcome.Unserved,
		outcome.NotReady, outcome.Opaque:
	}
	return Retry
}
