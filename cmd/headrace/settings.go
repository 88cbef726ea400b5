package main

import (
	"headrace/gateway"
	"headrace/gateway/config"
	"headrace/router"
	"headrace/router/endpoint"
)

func settings(c *config.Config) gateway.Settings {
	s := gateway.Settings{
		MaxBody: int(c.Limits.MaxBody), MaxUpload: c.Limits.MaxUpload, MaxInFlight: int64(c.Limits.MaxInFlight),
		Read: c.Timeouts.Read, FirstEvent: c.Timeouts.FirstEvent, ColdStart: c.Timeouts.ColdStart, Gap: c.Timeouts.Gap, Total: c.Timeouts.Total,
		ClientWrite: c.Timeouts.ClientWrite, Heartbeat: c.Timeouts.Heartbeat, Drain: c.Timeouts.Drain, MaxRetries: c.Retries.Max,
		OnPreemption: map[string]gateway.Preemption{}, MaxResumes: c.Retries.MaxResumes, MaxContinuation: int(c.Limits.MaxContinuation), MaxGathered: int(c.Limits.MaxGathered), TokenIDs: c.Continuation.TokenIDs,
		Resume: c.Timeouts.Resume, Stall: c.Timeouts.Stall, Stuck: c.Timeouts.Stuck,
		Hedge: c.Retries.Hedge == "sunk" && c.Retries.HedgeBudget > 0,
	}
	for name := range c.Models {
		s.OnPreemption[name], _ = gateway.ParsePreemption(c.Models[name].OnPreemption) // the config knows its words
	}
	s.Queue = gateway.Queue{
		Size: c.Queue.Size, MaxBytes: c.Queue.MaxBytes, MaxWait: c.Queue.MaxWait, InteractiveWait: c.Queue.InteractiveWait, BatchShare: c.Queue.BatchShare, BatchSpare: c.Queue.BatchSpare,
	}
	s.Tracing, s.Propagate = tracing(&c.Telemetry)
	s.Content = content(&c.Telemetry)
	if c.Passthrough != "" {
		s.Passthrough = endpoint.ID("static:" + c.Passthrough)
	}
	return s
}

func rules(c *config.Config) []router.ModelRule {
	var rs []router.ModelRule
	for name, m := range c.Models {
		q := m.Require
		policy, _ := router.ParsePolicy(m.Policy) // the config knows its words
		rs = append(rs, router.ModelRule{
			Name: name, Serves: m.Serves, Policy: policy,
			Demand: router.Demand{Trust: q.Trust, Encrypted: q.Encrypted, Regions: q.Regions},
			SLO:    router.SLO{TTFT: m.SLO.TTFT, TPS: m.SLO.TPS, Confidence: m.SLO.Confidence},
		})
	}
	return rs
}
