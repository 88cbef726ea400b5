package admission

import (
	"math"

	"headrace/router"
)

// prices are what a key's tokens have cost lately, in billionths of a US dollar each: those of prompts and those of answers apart, since one
// that is written may cost a hundred times what one costs that is read.
type prices struct{ prompt, output ratio }

// of is what so many tokens would cost; known is false where too little was seen of their kind.
func (ps *prices) of(prompt, output float64) (nano float64, known bool) {
	return ps.prompt.of()*prompt + ps.output.of()*output, ps.prompt.n >= knownOf && (output == 0 || ps.output.n >= knownOf)
}

// learn adds a request of so many tokens, which has cost what u says. weight is how many times as much as a token of a prompt one of an answer is
// taken to cost where that was not seen; 0 for unknown.
func (ps *prices) learn(u *Used, prompt, output, weight float64) {
	p, o := float64(nanos(u.PromptUSD)), float64(nanos(u.OutputUSD))
	if rest := float64(nanos(u.USD)) - p - o; rest > 0 {
		if in := ps.prompt.of(); weight == 0 && in > 0 {
			weight = ps.output.of() / in
		}
		if weight == 0 {
			weight = 1
		}
		if output *= weight; prompt+output > 0 {
			p += rest * prompt / (prompt + output)
			o += rest * output / (prompt + output)
		}
		output /= weight
	}
	ps.prompt.add(p, prompt)
	ps.output.add(o, output)
}

// price learns what p has cost. Where nobody has counted tokens and nobody takes anything, nothing is known of either: what was expected of a
// request that a host has turned away is not to be had for nothing. mu is held.
func (a *account) price(u *Used, p *Pass) {
	in, out, nano := u.Prompt, u.Output, nanos(u.USD)
	if u.Unpriced || nano <= 0 && (in < 0 || out < 0) {
		return
	}
	a.cost.add(float64(nano))
	if in < 0 { // nobody has counted them
		in = p.prompt
	}
	if out < 0 {
		out = max(0, p.tokens-p.prompt)
	}
	a.prices.learn(u, float64(in), float64(out), p.weight)
}

// atMost is what a request may cost, in billionths of a US dollar: the tokens that it may use at what those of this key have cost lately, or at the
// prices of the dearest host, where that is less or too little was seen. mu is held.
func (a *account) atMost(ask *Ask) int64 {
	out := 0.0
	if !ask.Silent {
		switch {
		case ask.Output > 0:
			out = float64(ask.Output)
		case a.output.n < knownOf:
			out = mostOutput
		default: // twice the longest, unless that is more than we believe
			out = max(min(2*a.longest, mostOutput), a.longest)
		}
		out *= float64(max(1, ask.N))
	}
	most := float64(nanos(ask.Price.USD(float64(ask.Prompt), out)))
	seen, known := a.prices.of(float64(ask.Prompt), out)
	if ask.Silent {
		seen = max(seen, a.cost.of(0))
	}
	switch {
	case !known && most > 0:
		return int64(most)
	case !known:
		return int64(max(seen, a.cost.of(0)))
	case most > 0:
		return int64(min(seen, most))
	}
	return int64(min(seen, math.MaxInt64/4))
}

// weightOf is how many times as much as a token of a prompt one of an answer costs at the dearest host; 0 for unknown.
func weightOf(c *router.Ceiling) float64 {
	if c.Prompt > 0 {
		return c.Output / c.Prompt
	}
	return 0
}
