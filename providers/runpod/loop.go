package runpod

import (
	"context"
	"encoding/json"
	"errors"
	"hash/maphash"
	"maps"
	"net/http"
	"slices"
	"time"

	"headrace/providers/api"
	"headrace/router/endpoint"
)

const (
	firstWait   = 2 * time.Second        // for the first looks at a new fleet, before it is sent with what is known
	sendGap     = 100 * time.Millisecond // changes that come closer together are sent as one
	maxLooks    = 16                     // at once
	maxAsks     = 4
	idleLook    = 6               // a sleeping endpoint is looked at that many times less often
	firstRetry  = time.Second     // after a failed poll, doubled up to Poll
	confirmWait = 5 * time.Second // before an empty list is believed
	skewLimit   = time.Minute
)

// changed notes that there is something to send.
func (p *Provider) changed() { p.news, p.set = true, nil }

// sendable tells whether there is something to send, and when.
func (p *Provider) sendable(now time.Time) (at time.Time, ok bool) {
	if !p.news || p.firstBy.IsZero() {
		return at, false
	}
	if p.sentAt.IsZero() {
		if now.Before(p.firstBy) && !p.allKnown() {
			return p.firstBy, true
		}
		return now, true
	}
	return p.sentAt.Add(min(sendGap, p.opt.HealthPoll)), true
}

// allKnown tells whether everything of the first set has been asked.
func (p *Provider) allKnown() bool {
	if !p.priced || len(p.opt.Pods) > 0 && !p.podsKnown {
		return false
	}
	for _, s := range p.order {
		if s.goodAt.IsZero() && s.look.failing == 0 || s.seen.up && s.askedAt.IsZero() || s.asking {
			return false
		}
	}
	for _, pd := range p.pods {
		if pd.base != "" && pd.state != endpoint.Ready && pd.look.failing == 0 {
			return false
		}
	}
	return true
}

// fleet puts the set together, in the order of the ids.
func (p *Provider) fleet() []endpoint.Endpoint {
	set := make([]endpoint.Endpoint, 0, len(p.services)+len(p.pods))
	for _, s := range p.order {
		set = append(set, s.ep)
	}
	for _, id := range slices.Sorted(maps.Keys(p.pods)) {
		set = append(set, p.pods[id].ep)
	}
	p.update(func(s *api.Status) { s.Endpoints = len(set) })
	return set
}

// rebuildAll builds every service anew, after a change of what they have in common.
func (p *Provider) rebuildAll() {
	for _, s := range p.order {
		if p.build(s) {
			p.changed()
		}
	}
}

// attend takes in what other goroutines have told.
func (p *Provider) attend(now time.Time) {
	p.mu.Lock()
	nudged, learned, delays := p.nudged, p.learned, p.delays
	if len(nudged)+len(learned)+len(delays) == 0 {
		p.mu.Unlock()
		return
	}
	p.nudged, p.learned, p.delays = map[endpoint.ID]struct{}{}, map[endpoint.ID]string{}, map[endpoint.ID]time.Duration{}
	p.mu.Unlock()
	for _, s := range p.order {
		id := serviceID(s.desc.id)
		if _, ok := nudged[id]; ok {
			s.look.next = earlier(s.look.next, s.look.begun.Add(p.nudgeGap()))
		}
		model, told := learned[id]
		if told && model != s.learned {
			s.learned = model
		}
		delay, delayed := delays[id]
		if delayed && !s.seen.up { // a worker that was up had a queue, not a cold start
			s.seen.learn(delay)
		}
		if (told || delayed) && p.build(s) {
			p.changed()
		}
	}
	for _, pd := range p.pods {
		if _, ok := nudged[podID(pd.desc.id)]; ok {
			pd.look.next = earlier(pd.look.next, pd.look.begun.Add(p.nudgeGap()))
			p.podsAt = earlier(p.podsAt, p.soon(p.podsReadAt, now))
		}
	}
}

// nudgeGap is the least time between two looks at one endpoint, however often it is asked for.
func (p *Provider) nudgeGap() time.Duration { return p.opt.HealthPoll / 5 }

// soon is when a list may be read ahead of its time.
func (p *Provider) soon(last, now time.Time) time.Time {
	return p.budget.urgent(last.Add(min(p.opt.Poll, 2*p.opt.HealthPoll)), now)
}

// task runs f in a goroutine of its own, and what it returns in Run's.
func (p *Provider) task(ctx context.Context, f func() func()) {
	p.wg.Go(func() {
		then := f()
		select {
		case p.done <- then:
		case <-ctx.Done():
		}
	})
}

// call asks REST v2 and keeps count of what that costs of the rate limit.
func (p *Provider) call(ctx context.Context, now time.Time, name, path string, got func(a *api.Answer, err error)) {
	p.budget.spend(now)
	p.task(ctx, func() func() {
		a, err := p.manage.Do(ctx, api.Call{Name: name, URL: p.opt.ManagementURL + path})
		return func() {
			if err == nil {
				if !p.budget.told(a.Header, a.At) {
					p.odd("rate limit: a header that cannot be read")
				}
				p.clock(a)
			} else if e, ok := errors.AsType[*api.Error](err); ok && e.Status == http.StatusTooManyRequests {
				p.budget.refused(p.opt.Now(), e.RetryAfter)
			}
			got(a, err)
		}
	})
}

// clock compares RunPod's clock with ours: ages of prices rest on both.
func (p *Provider) clock(a *api.Answer) {
	if a.Date.IsZero() {
		return
	}
	skew := a.Date.Sub(a.At).Truncate(time.Second)
	p.update(func(s *api.Status) { s.ClockSkew = skew })
	if skew.Abs() > skewLimit {
		p.odd("clock: RunPod's and ours differ by more than a minute")
	}
}

// schedule begins what is due and returns when the next thing will be; zero when only an answer can tell.
func (p *Provider) schedule(ctx context.Context, now time.Time) time.Time {
	var next time.Time
	due := func(at time.Time, busy bool) bool {
		if busy {
			return false
		}
		if at.After(now) {
			next = earlier(next, at)
			return false
		}
		return true
	}
	if due(p.listAt, p.listing) {
		p.listing, p.listedAt = true, now
		p.call(ctx, now, "GET /v2/serverless", "/serverless", p.gotList)
	}
	if len(p.opt.Pods) > 0 && due(p.podsAt, p.reading) {
		p.reading, p.podsReadAt = true, now
		p.call(ctx, now, "GET /v2/pods", "/pods", p.gotPods)
	}
	if due(p.priceAt, p.pricing) {
		p.pricing = true
		p.call(ctx, now, "GET /v2/catalog/gpus", "/catalog/gpus", p.gotPrices)
	}
	next = earlier(next, p.scheduleLooks(ctx, now))
	next = earlier(next, p.scheduleAsks(ctx, now))
	if next.IsZero() {
		next = now.Add(time.Minute)
	}
	return next
}

// scheduleLooks begins the looks at /health and into pods that are due, the longest due first.
func (p *Provider) scheduleLooks(ctx context.Context, now time.Time) (next time.Time) {
	rate := float64(p.opt.HealthPerSecond)
	p.lookTokens = min(rate, p.lookTokens+now.Sub(p.lookFilled).Seconds()*rate)
	p.lookFilled = now
	for {
		var of *service
		var in *pod
		var w *watch // of the one or the other
		next = time.Time{}
		for _, s := range p.order {
			if s.look.before(w, now, &next) {
				w, of = &s.look, s
			}
		}
		for _, pd := range p.pods {
			if pd.base != "" && pd.look.before(w, now, &next) {
				w, of, in = &pd.look, nil, pd
			}
		}
		if w == nil || p.looks >= maxLooks {
			return next
		}
		if p.lookTokens < 1 {
			return earlier(next, now.Add(seconds((1-p.lookTokens)/rate)+time.Millisecond))
		}
		p.lookTokens--
		p.looks++
		w.busy, w.begun = true, now
		if of != nil {
			p.look(ctx, of)
		} else {
			p.lookInside(ctx, in)
		}
	}
}

// before tells whether w is due, and longer so than other, which may be nil. It notes in next when it will be due.
func (w *watch) before(other *watch, now time.Time, next *time.Time) bool {
	switch {
	case w.busy:
		return false
	case w.next.After(now):
		*next = earlier(*next, w.next)
		return false
	}
	return other == nil || w.next.Before(other.next)
}

// scheduleAsks begins questions about workers, and about endpoints of which the list tells too little, as the budget allows.
func (p *Provider) scheduleAsks(ctx context.Context, now time.Time) (next time.Time) {
	for p.asks < maxAsks {
		var s *service
		var at time.Time
		next = time.Time{}
		for _, c := range p.order {
			due := earlier(c.askAt, c.detailAt)
			switch {
			case c.asking || due.IsZero():
			case due.After(now):
				next = earlier(next, due)
			case s == nil || due.Before(at):
				s, at = c, due
			}
		}
		if s == nil {
			return next
		}
		wait, ok := p.budget.take(now)
		if !ok {
			return earlier(next, now.Add(wait+time.Millisecond))
		}
		p.asks++
		s.asking = true
		if !s.detailAt.IsZero() && !s.detailAt.After(now) {
			p.askDetail(ctx, now, s)
		} else {
			p.askWorkers(ctx, now, s)
		}
	}
	return next
}

// gotList takes the account's endpoints in.
func (p *Provider) gotList(a *api.Answer, err error) {
	p.listing = false
	now := p.opt.Now()
	var entries []json.RawMessage
	if err == nil {
		entries, err = p.list(a, "endpoints")
	}
	p.update(func(s *api.Status) { s.Polls++ })
	if err != nil {
		if errors.Is(err, errShape) {
			p.odd("endpoints: no list in the answer")
		}
		p.listFails++
		p.listAt = p.budget.urgent(now.Add(retry(p.listFails, p.opt.Poll)), now)
		p.failed("endpoints cannot be listed; those known stay in use", p.listFails, err)
		return
	}
	p.listAt = p.budget.next(p.listedAt, now, p.fixedCalls(), p.opt.Poll)
	if len(entries) == 0 && len(p.services) > 0 && !p.emptied {
		p.emptied = true
		p.odd("endpoints: the list is suddenly empty")
		p.listAt = earlier(p.listAt, p.budget.urgent(now.Add(confirmWait), now))
		return
	}
	p.emptied = false
	p.good(p.listFails)
	p.listFails = 0
	p.takeList(entries, now)
	if p.firstBy.IsZero() {
		p.firstBy = now.Add(firstWait)
		p.changed() // an empty account is news too
	}
}

// takeList compares the list with what is known.
func (p *Provider) takeList(entries []json.RawMessage, now time.Time) {
	var skipped []api.Skipped
	listed := make(map[string]bool, len(entries))
	for _, raw := range entries {
		id, sum := idOf(raw), maphash.Bytes(hashSeed, raw)
		if s := p.services[id]; s != nil && s.sum == sum {
			listed[id] = true
			continue
		}
		d, ok := p.describe(raw)
		if !ok {
			if p.services[id] != nil {
				listed[id] = true // as it was
			}
			continue
		}
		if why := p.unwanted(&d); why != "" {
			skipped = append(skipped, api.Skipped{ID: d.id, Name: d.name, Why: why})
			continue
		}
		listed[d.id] = true
		p.takeEndpoint(d, sum, now)
	}
	for id, s := range p.services {
		if !listed[id] {
			delete(p.services, id)
			p.opt.Log.Info("endpoint is gone from the account", "endpoint", s.ep.ID, "name", s.desc.name)
			p.changed()
		}
	}
	p.order = p.order[:0]
	for _, id := range slices.Sorted(maps.Keys(p.services)) {
		p.order = append(p.order, p.services[id])
	}
	p.update(func(s *api.Status) {
		s.Skipped = slices.DeleteFunc(s.Skipped, func(k api.Skipped) bool { return !isPod(k) })
		s.Skipped = append(s.Skipped, skipped...)
	})
}

func (p *Provider) takeEndpoint(d description, sum uint64, now time.Time) {
	s := p.services[d.id]
	if s == nil {
		s = &service{reason: "not looked at yet"}
		s.look.next = now
		p.services[d.id] = s
	}
	if !d.told {
		d.engine = s.desc.engine
		s.detailAt = now
	} else {
		s.detailAt = time.Time{}
	}
	if d.image != s.desc.image && s.desc.image != "" {
		s.learned = "" // another image may call its model otherwise
	}
	s.desc, s.sum = d, sum
	if p.build(s) {
		p.changed()
	}
}

// unwanted says why an endpoint is none of ours, "" when it is.
func (p *Provider) unwanted(d *description) string {
	named := slices.ContainsFunc(p.opt.Endpoints, func(pattern string) bool { return pattern != "*" && fits(pattern, d.id, d.name) })
	switch {
	case named:
		return ""
	case p.opt.Endpoints != nil && !slices.Contains(p.opt.Endpoints, "*"):
		return "it is not among the endpoints to use"
	case d.cpu:
		return "its workers have no GPU: name it among the endpoints to use it"
	}
	return ""
}

var hashSeed = maphash.MakeSeed()

func idOf(raw json.RawMessage) string {
	var e struct {
		ID string `json:"id"`
	}
	_ = json.Unmarshal(raw, &e) // describe complains
	return e.ID
}

// gotPrices takes the price list in. Without one the last one counts, then the table.
func (p *Provider) gotPrices(a *api.Answer, err error) {
	p.pricing, p.priced = false, true
	now := p.opt.Now()
	var entries []json.RawMessage
	if err == nil {
		entries, err = p.list(a, "gpus")
	}
	if err != nil {
		p.priceFails++
		p.priceAt = p.budget.urgent(now.Add(retry(p.priceFails, p.opt.CatalogPoll)), now)
		if p.priceFails == 1 {
			p.opt.Log.Warn("price list cannot be read; the last known prices count", "error", err)
		}
		return
	}
	if p.priceFails > 0 {
		p.opt.Log.Info("price list can be read again")
	}
	p.priceFails = 0
	p.priceAt = p.budget.next(now, now, 1, p.opt.CatalogPoll)
	p.gotCatalog(entries, a.At)
}

func retry(fails int, limit time.Duration) time.Duration {
	return min(firstRetry<<min(fails-1, 10), limit)
}

// fixedCalls is how many calls a poll makes whatever the size of the fleet.
func (p *Provider) fixedCalls() int {
	if len(p.opt.Pods) > 0 {
		return 2
	}
	return 1
}

// failed notes a poll that told nothing.
func (p *Provider) failed(what string, fails int, err error) {
	p.update(func(s *api.Status) { s.Failing, s.LastError = fails, err.Error() })
	e, ok := errors.AsType[*api.Error](err)
	switch {
	case fails > 1:
	case ok && e.Denied():
		p.opt.Log.Error("RunPod refuses the key", "what", what, "error", err)
	default:
		p.opt.Log.Warn(what, "error", err)
	}
}

// good notes that the fleet was read whole.
func (p *Provider) good(fails int) {
	now := p.opt.Now()
	p.update(func(s *api.Status) { s.LastGood, s.Failing, s.LastError = now, 0, "" })
	if fails > 0 {
		p.opt.Log.Info("RunPod answers again", "failed_polls", fails)
	}
}
