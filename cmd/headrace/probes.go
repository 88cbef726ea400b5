package main

import (
	"time"

	"headrace/gateway/config"
	"headrace/gateway/probe"
)

// newProber returns what tests hosts, for this replica or for all that share a Redis.
func (a *app) newProber(cfg *config.Config) *probe.Prober {
	o := probe.Options{Router: a.router, Forward: a.forward, Log: a.log, Classify: classify, Busy: a.router.Full, Fresh: min(time.Second, cfg.Breaker.OpenFor/2)}
	if a.redis != nil {
		o.Share = a.redis
	}
	return probe.New(o, probing(cfg))
}

func probing(cfg *config.Config) probe.Settings {
	return probe.Settings{SelfTest: cfg.Continuation.SelfTest, TokenIDs: cfg.Continuation.TokenIDs, ColdStart: cfg.Timeouts.ColdStart}
}
