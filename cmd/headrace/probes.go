package main

import (
	"time"

	"headrace/gateway/config"
	"headrace/gateway/probe"
	"headrace/router/endpoint"
)

// newProber returns what tests hosts, for this replica or for all that share a Redis.
func (a *app) newProber(cfg *config.Config) *probe.Prober {
	o := probe.Options{Router: a.router, Forward: a.forward, Log: a.log, Classify: classify, Busy: a.router.Full, Fresh: min(time.Second, cfg.Breaker.OpenFor/2)}
	o.Answered = func(ep *endpoint.Endpoint, w endpoint.WorkerReport) {
		switch c := a.rented.Load(); {
		case ep.Price.Basis != endpoint.PerWorkerSecond:
		case w == endpoint.WorkerReport{}:
			c.busy(ep.ID, time.Now())
		default:
			c.worked(ep.ID, w)
		}
	}
	if a.redis != nil {
		o.Share = a.redis
	}
	return probe.New(o, probing(cfg))
}

func probing(cfg *config.Config) probe.Settings {
	return probe.Settings{SelfTest: cfg.Continuation.SelfTest, TokenIDs: cfg.Continuation.TokenIDs, ColdStart: cfg.Timeouts.ColdStart}
}
