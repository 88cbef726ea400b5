package router

import "headrace/router/endpoint"

// Ceiling is what a model's dearest hosts may take for a request, in US dollars.
type Ceiling struct {
	Once   float64 // whatever it asks for
	Prompt float64 // a token that is read
	Output float64 // a token that is written
}

// What a host that is paid by time manages at the least. A request that has it for itself, at these speeds, is charged more than any
// that shares it, or that a host worth its rent serves.
const (
	leastPrefill = 500 // tokens a second
	leastTPS     = 10
)

// USD is what a request of so many tokens may cost.
func (c *Ceiling) USD(prompt, output float64) float64 {
	return c.Once + c.Prompt*prompt + c.Output*output
}

// Ceiling returns the prices of the dearest hosts of a model or of a part of its hosts, of all models for "", all 0 where none takes anything.
func (r *Router) Ceiling(model string) (c Ceiling) {
	snap := r.snap.Load()
	if model == "" {
		for _, m := range snap.models {
			c.raise(m)
		}
	} else if m := snap.pool(model); m != nil {
		c.raise(m)
	}
	return c
}

func (c *Ceiling) raise(m *Model) {
	for i := range m.cands {
		p := &m.cands[i].ep.Price
		second := 0.0
		switch p.Basis {
		case endpoint.PerToken:
			c.Prompt, c.Output = max(c.Prompt, p.USDPerMTokIn/1e6), max(c.Output, p.USDPerMTokOut/1e6)
		case endpoint.PerHour:
			second = p.USDPerHour / 3600
		case endpoint.PerWorkerSecond:
			second = p.USDPerWorkerSecond
			c.Once = max(c.Once, second*p.ColdStart.Seconds())
		case endpoint.BasisUnknown:
		}
		c.Prompt, c.Output = max(c.Prompt, second/leastPrefill), max(c.Output, second/leastTPS)
	}
}
