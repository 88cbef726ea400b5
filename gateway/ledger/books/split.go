package books

import (
	"math"

	"headrace/gateway/ledger"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// split parts a record among its attempts and adds each part to what of returns for it, the last one's with the request itself; of is
// asked for -1 where there was no attempt. What is useful: the attempts whose output is in an answer that reached its caller, down to
// where he left it. Of those that went on with an answer the prompt is waste; of one that waited for a worker to start, that wait.
func split(r *ledger.Record, of func(attempt int) *Sums) {
	n := len(r.Attempts)
	if n == 0 {
		of(-1).request(r)
		return
	}
	answered := r.Class == outcome.Success || r.Class == outcome.ClientGone && r.Left == ledger.Streaming
	var chain [ledger.MaxAttempts]bool
	said := int64(0) // output of the chain's attempts but the last
	if answered {
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
		a, last := &r.Attempts[i], i == n-1
		s := of(i)
		s.N[Attempts]++
		s.F[HostSeconds] += a.Share.Seconds()
		if a.Worker != nil {
			s.F[WorkerSeconds] += a.Worker.Executed.Seconds()
		}
		switch {
		case a.USDKnown && finite(a.USD) == a.USD:
			usd += a.USD
			s.spend(a)
		case a.Provider != "":
			s.N[UnknownPrice]++
		}
		if m := a.Decision.MarginalUSD; a.Provider != "" && !math.IsNaN(m) && !math.IsInf(m, 0) {
			s.F[MarginalUSD] += m
		}
		guess := int64(0) // tokens that nobody reported
		switch {
		case !chain[i]:
			output := max(0, a.Output)
			s.N[WastedPrompt] += a.Prompt
			s.N[WastedOutput] += output
			guess = a.Prompt + output
			s.waste(reason(a, last && r.Class == outcome.ClientGone), a.USD, a.USDKnown)
		case a.Resumed && promptDone:
			s.N[WastedPrompt] += a.Prompt
			guess = a.Prompt
			s.waste(RePrefilled, a.PromptUSD, a.USDKnown)
		default:
			promptDone = true
			if r.Prompt >= 0 { // of the whole answer, as its last host reported it
				s.N[PromptTokens] += r.Prompt
			} else {
				s.N[PromptTokens] += a.Prompt
				guess = a.Prompt
			}
			s.N[CachedTokens] += a.Cached
			if a.Decision.Cold && a.Basis == endpoint.PerWorkerSecond && (a.Worker == nil || a.Worker.Executed == 0) {
				s.waste(ColdStart, a.PromptUSD, a.USDKnown)
			}
		}
		if chain[i] {
			output := max(0, a.Output)
			if last && r.Output >= 0 && !r.Estimated {
				output = max(0, r.Output-said)
			}
			s.N[OutputTokens] += output
			s.N[ReasoningTokens] += a.Reasoning
			guess += output
		}
		if !a.Counted {
			s.N[EstimatedTokens] += guess
		}
		if !last {
			continue
		}
		if more := int64(r.Tries - n); more > 0 { // that the record does not name
			s.N[Attempts] += more
		}
		if rest := finite(r.USD) - usd; r.USDKnown && rest > 1e-12 {
			s.used(restBasis(r, n), rest)
			s.waste(Retry, rest, true)
		}
		s.request(r)
	}
}

// spend books what an attempt cost.
func (s *Sums) spend(a *ledger.Attempt) {
	if a.Basis == endpoint.PerHour {
		s.F[TrafficUSD] += a.TrafficUSD
	}
	s.used(a.Basis, a.USD)
	if a.Guessed {
		s.F[GuessedUSD] += a.USD
	}
}

// used books what was paid by a basis.
func (s *Sums) used(b endpoint.Basis, usd float64) {
	switch b {
	case endpoint.PerHour:
		s.F[UsedPerHour] += usd
	case endpoint.PerWorkerSecond:
		s.F[UsedPerSecond] += usd
	case endpoint.PerToken:
		s.F[UsedPerToken] += usd
	case endpoint.BasisUnknown:
	}
}

// restBasis is by what the attempts are paid that a record does not name: by what most of the money of the n that it names is, for all of them
// were for one model, and by the hour where that tells nothing.
func restBasis(r *ledger.Record, n int) endpoint.Basis {
	basis, most := endpoint.PerHour, 0.0
	var usd [endpoint.PerToken + 1]float64
	for i := range r.Attempts[:n] {
		a := &r.Attempts[i]
		if a.Basis == endpoint.BasisUnknown || int(a.Basis) >= len(usd) {
			continue
		}
		if usd[a.Basis] += a.USD; usd[a.Basis] > most {
			basis, most = a.Basis, usd[a.Basis]
		}
	}
	return basis
}

func (s *Sums) waste(why Reason, usd float64, known bool) {
	if known && finite(usd) == usd {
		s.F[Wasted+Amount(why)] += usd
	}
}

// request counts what is the request's.
func (s *Sums) request(r *ledger.Record) {
	s.N[Requests]++
	switch r.Class {
	case outcome.Success, outcome.CallerFault:
	case outcome.ClientGone:
		s.N[Left]++
	default:
		s.N[Errors]++
	}
	if r.TTFT > 0 {
		s.N[FirstTokens]++
		s.F[TTFTSeconds] += r.TTFT.Seconds()
	}
	if r.TPS > 0 {
		s.N[Streams]++
		s.F[TokensPerSecond] += r.TPS
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
