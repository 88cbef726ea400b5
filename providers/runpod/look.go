package runpod

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"headrace/providers/api"
	"headrace/router/endpoint"
)

// look asks an endpoint's /health, on the queue's host for load-balancing endpoints too: their own health check hangs
// while no worker is up.
func (p *Provider) look(ctx context.Context, s *service) {
	base := p.opt.QueueURL + "/" + s.desc.id
	if s.desc.base != "" && !s.desc.balancer {
		base = s.desc.base
	}
	p.task(ctx, func() func() {
		a, err := p.health.Do(ctx, api.Call{Name: "GET /health", URL: base + "/health"})
		return func() {
			p.looks--
			if p.services[s.desc.id] == s {
				p.gotHealth(s, a, err)
			}
		}
	})
}

// gotHealth takes a reading in.
func (p *Provider) gotHealth(s *service, a *api.Answer, err error) {
	now := p.opt.Now()
	var h healthJSON
	if err == nil {
		if err = p.decode(a.Body, &h, "health"); err == nil && !h.tells() {
			err = errShape
		}
		if err != nil {
			p.odd("health: an answer that cannot be read")
		}
	}
	told := err == nil
	if err != nil {
		s.look.failing++
		if p.blind(s, err, now); s.state == endpoint.Gone {
			p.meterLook(s, &gauges{completed: s.seen.last.completed}, now)
		}
	} else {
		w, j := h.Workers, h.Jobs
		p.numbers("health", w.Idle, w.Initializing, w.Ready, w.Running, w.Throttled, w.Unhealthy, j.Completed, j.InProgress, j.InQueue)
		g := gauges{
			idle: w.Idle.count(), initializing: w.Initializing.count(), ready: w.Ready.count(), running: w.Running.count(),
			throttled: w.Throttled.count(), unhealthy: w.Unhealthy.count(),
			queued: j.InQueue.count(), inProgress: j.InProgress.count(), completed: j.Completed.count(),
		}
		s.look.failing, s.goodAt = 0, now
		s.state, s.reason = s.seen.look(g, now, &s.desc, p.opt.Settle)
		p.meterLook(s, &g, now)
		p.planAsk(s, now)
	}
	s.look.ended(p.lookAgain(s), p.nudgeGap())
	if p.build(s) {
		p.changed()
	}
	if told {
		p.bookService(s, now)
	}
}

// blind says what a look that told nothing means.
func (p *Provider) blind(s *service, err error, now time.Time) {
	e, ok := errors.AsType[*api.Error](err)
	switch {
	case ok && e.Status == http.StatusNotFound:
		s.state, s.reason = endpoint.Gone, "RunPod does not know it any more (404 at /health)"
		if s.seen.up = false; s.look.failing == 1 { // the list knows whether it was deleted
			p.listAt = earlier(p.listAt, p.soon(p.listedAt, now))
		}
	case ok && e.Denied() && s.look.failing >= 2:
		s.state, s.reason = endpoint.Gone, "RunPod refuses the key for it"
	case s.look.failing >= 3 && (s.goodAt.IsZero() || now.Sub(s.goodAt) >= idleLook*p.opt.HealthPoll):
		s.state, s.reason = endpoint.StateUnknown, "its /health does not answer"
	}
}

// lookAgain is how soon an endpoint is looked at again: a sleeping one of which nobody wants anything less and less often, since
// what wakes it are requests, and those made here go as jobs that wait for the worker.
func (p *Provider) lookAgain(s *service) time.Duration {
	asleep := s.state == endpoint.Cold || s.state == endpoint.Gone || s.desc.maxWorkers == 0 && s.state == endpoint.NoCapacity
	if !asleep || s.seen.last.queued > 0 {
		s.calm = 0
	} else {
		s.calm++
	}
	return p.opt.HealthPoll * time.Duration(min(max(1, s.calm, 1<<min(s.look.failing, 3)), idleLook))
}

// planAsk decides when the workers are asked for: soon when their number has changed, now and then otherwise. Nobody up means
// that there is nothing to ask.
func (p *Provider) planAsk(s *service, now time.Time) {
	switch {
	case !s.seen.up:
		s.askAt, s.workers = time.Time{}, nil
		s.upAsked = 0
	case s.upAsked != s.upCount():
		s.askAt = now
		if next := s.askedAt.Add(p.opt.Poll / 4); !s.askedAt.IsZero() && next.After(now) && s.workers != nil {
			s.askAt = next
		}
	case s.askAt.IsZero():
		s.askAt = s.askedAt.Add(p.opt.CatalogPoll)
	}
}

// askWorkers reads which GPUs the workers that are up sit on, and where.
func (p *Provider) askWorkers(ctx context.Context, now time.Time, s *service) {
	s.askedAt, s.askAt, s.upAsked = now, time.Time{}, s.upCount()
	p.call(ctx, now, "GET /v2/serverless/{id}/workers", "/serverless/"+s.desc.id+"/workers", func(a *api.Answer, err error) {
		p.asks--
		s.asking = false
		if p.services[s.desc.id] != s {
			return
		}
		var entries []json.RawMessage
		if err == nil {
			if entries, err = list(a, "workers", workersOf); err != nil {
				p.odd("workers: no list in the answer")
			}
		}
		if err != nil {
			s.askAt = p.opt.Now().Add(p.opt.Poll) // the price goes on to rest on what was known
			return
		}
		s.askAt = now.Add(p.opt.CatalogPoll)
		var ran []told
		s.workers, ran = p.readWorkers(entries, span{now, a.At})
		s.time.list(ran)
		if p.build(s) {
			p.changed()
		}
	})
}

// readWorkers keeps those that are up, which bill, and when they began, by an answer to a call.
func (p *Provider) readWorkers(entries []json.RawMessage, call span) (up []worker, ran []told) {
	for _, raw := range entries {
		var w workerJSON
		if err := p.decode(raw, &w, "worker"); err != nil {
			p.odd("worker: an entry that cannot be read")
			continue
		}
		p.numbers("worker", w.GPUCount, w.Uptime)
		switch strings.ToUpper(w.Status) {
		case "RUNNING", "IDLE":
			if w.GPUTypeID != "" { // null until it is placed
				up = append(up, worker{gpuType: w.GPUTypeID, gpus: w.GPUCount.count(), dataCenter: w.DataCenterID})
			}
			if d := seconds(w.Uptime.v); w.Uptime.set && w.Uptime.v >= 0 && w.ID != "" { // whole seconds
				ran = append(ran, told{w.ID, span{call.from.Add(-d - time.Second), call.to.Add(-d)}})
			}
		case "INITIALIZING", "THROTTLED", "UNHEALTHY":
		default:
			p.odd("worker: unknown status " + word(w.Status))
		}
	}
	return up, ran
}

// askDetail reads what the list has left out of an endpoint: what runs inside.
func (p *Provider) askDetail(ctx context.Context, now time.Time, s *service) {
	s.detailAt = now.Add(p.opt.CatalogPoll)
	p.call(ctx, now, "GET /v2/serverless/{id}", "/serverless/"+s.desc.id, func(a *api.Answer, err error) {
		p.asks--
		s.asking = false
		if p.services[s.desc.id] != s || err != nil {
			return // asked again at detailAt
		}
		d, ok := p.describe(a.Body)
		if !ok || d.id != s.desc.id {
			return
		}
		s.desc.engine, s.desc.image = d.engine, d.image
		if p.build(s) {
			p.changed()
		}
	})
}
