package main

import (
	"headrace/gateway/config"
	"headrace/router/capacity"
	"headrace/router/endpoint"
)

// expectations returns what the operator expects of hosts.
func expectations(c *config.Config) *capacity.Rules {
	var rs capacity.Rules
	for _, e := range c.Catalogue {
		r := capacity.Rule{Host: e.Host, GPU: e.GPU, GPUCount: e.GPUs, Model: e.Model, Expect: capacity.Prior{
			Slope: e.Slope, TTFTSeconds: e.TTFT.Seconds(), PrefillTokensPerSecond: e.PrefillTPS, MaxNumSeqs: e.MaxNumSeqs,
		}}
		if e.TPS > 0 {
			r.Expect.ITLSeconds = 1 / e.TPS
		}
		rs = append(rs, r)
	}
	return &rs
}

// expect is what to expect of an endpoint, by the config in force.
func (a *app) expect(ep *endpoint.Endpoint) capacity.Prior { return a.expected.Load().Lookup(ep) }
