package gateway

import (
	"time"

	"headrace/gateway/ledger"
	"headrace/router/cost"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// account fills in what the attempt that ended as class says has used of its host, and returns its cost. The lease must still be held.
func (x *exchange) account(a *ledger.Attempt, class outcome.Class, now time.Time) (usd float64, known bool) {
	u := x.used(now)
	a.Basis = x.lease.Endpoint.Price.Basis
	a.Share = time.Duration(float64(u.Busy) / max(1, u.InFlight))
	guess := x.lease.PromptTokens(int64(x.ask.PromptTokens))
	if x.m.hasUsage && x.m.usage.Prompt >= 0 {
		a.Counted, a.Prompt, a.Cached, a.Reasoning = true, x.m.usage.Prompt, max(0, x.m.usage.Cached), max(0, x.m.usage.Reasoning)
		if !x.resumed() {
			x.lease.CountedPrompt(int64(x.ask.PromptTokens), a.Prompt)
		}
		if u.Output < 0 {
			u.Output, a.Guessed = a.Output, a.Basis == endpoint.PerToken && !x.ask.Tokenless
		}
	} else if worked(class, a.Status) {
		a.Prompt = guess
		if !x.isStream && a.Output == 0 { // nothing of it was seen, but it was made
			a.Output = x.lease.UnseenTokens(now, a.Status != 0)
			if most := x.sought.most; most > 0 {
				a.Output = min(a.Output, most)
			}
		}
		u.Prompt, u.Output, a.Guessed = guess, a.Output, a.Basis == endpoint.PerToken
	}
	if usd, known = cost.USD(&x.lease.Endpoint.Price, u); !known {
		return 0, false
	}
	a.TrafficUSD = cost.Traffic(&x.lease.Endpoint.Price, u)
	switch {
	case a.Basis == endpoint.PerToken:
		u.Output = 0
		a.PromptUSD, _ = cost.USD(&x.lease.Endpoint.Price, u)
	case a.First > 0 && a.Duration > 0:
		a.PromptUSD = (usd - a.TrafficUSD) * min(1, a.First.Seconds()/a.Duration.Seconds())
	default:
		a.PromptUSD = usd
	}
	return usd, true
}

// worked tells whether a host has worked on a prompt, where it told no usage: it began an answer, or was still at it when it was left.
func worked(class outcome.Class, status int) bool {
	if status != 0 {
		return outcome.OfStatus(status) == outcome.Success
	}
	return class == outcome.ClientGone || class == outcome.Outrun || class == outcome.FirstByteTimeout || class == outcome.Moved
}

// used is what the attempt has taken from its host by now.
func (x *exchange) used(now time.Time) cost.Used {
	u := cost.Used{
		Busy: now.Sub(x.beginAt), InFlight: x.lease.MeanInFlight(now), Prompt: -1, Cached: -1, Output: -1,
		BytesIn: x.rec.BytesIn, BytesOut: x.rec.BytesOut,
	}
	if x.worker != nil {
		u.Executed = x.worker.Executed
	}
	if x.tale != nil {
		u.BytesOut -= x.tale.sent
	}
	if x.m.hasUsage {
		u.Prompt, u.Cached, u.Output = x.m.usage.Prompt, x.m.usage.Cached, x.m.usage.Completion
	}
	return u
}

// usd is what the attempt has cost by now.
func (x *exchange) usd(now time.Time) (float64, bool) {
	return cost.USD(&x.lease.Endpoint.Price, x.used(now))
}
