package main

import (
	"time"

	"headrace/gateway/config"
	"headrace/gateway/probe"
	"headrace/router/endpoint"
)

// newProber returns what tests hosts, for this replica or for all that share a Redis.
func (a *app) newProber(cfg *config.Config) *probe.Prober {
	o := probe.Options{Router: a.router, Forward: a.forward, Log: a.log, Classify: classify, Busy: a.busy, Fresh: min(time.Second, cfg.Breaker.OpenFor/2)}
	if a.redis != nil {
		o.Share = a.redis
	}
	return probe.New(o, probing(cfg))
}

func probing(cfg *config.Config) probe.Settings {
	return probe.Settings{SelfTest: cfg.Continuation.SelfTest, ColdStart: cfg.Timeouts.ColdStart}
}

// busy tells whether a host has no sequence free: a self-test would wait, and have others wait.
func (a *app) busy(id endpoint.ID) bool {
	for _, h := range a.router.Hosts() {
		if h.ID == id {
			return h.Limit != nil && float64(h.InFlight) >= *h.Limit*float64(max(1, h.Workers))
		}
	}
	return false
}
