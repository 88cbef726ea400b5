package runpod

import (
	"context"
	"errors"
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
	nudged, learned, waits := p.nudged, p.learned, p.waits
	if len(nudged)+len(learned)+len(waits) == 0 {
		p.mu.Unlock()
		return
	}
	p.nudged = map[endpoint.ID]struct{}{}
	if !p.firstBy.IsZero() { // before the first list it is kept for the endpoints that this will name
		p.learned, p.waits = map[endpoint.ID]string{}, map[endpoint.ID]wait{}
	}
	p.mu.Unlock()
	for _, s := range p.order {
		id := serviceID(s.desc.id)
		if _, ok := nudged[id]; ok {
			s.look.soon(p.nudgeGap())
		}
		model, told := learned[id]
		if told && model != s.learned {
			s.learned = model
		}
		wait, delayed := waits[id]
		if delayed {
			p.takeWork(s)
		}
		if delayed && wait.begun.Before(s.seen.down) { // else a worker was up, and what the job waited for was its turn
			s.seen.learn(wait.took)
		}
		if (told || delayed) && p.build(s) {
			p.changed()
		}
	}
	for _, pd := range p.pods {
		if _, ok := nudged[podID(pd.desc.id)]; ok {
			pd.look.soon(p.nudgeGap())
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
	if p.audit.Next.IsZero() {
		p.planBill(now)
	}
	if len(p.services)+len(p.pods) > 0 && due(p.audit.Next, p.audit.Busy) {
		if p.audit.Next = p.budget.urgent(p.audit.Next, now); due(p.audit.Next, false) {
			p.readBill(ctx, now)
		}
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
		switch {
		case p.looks >= maxLooks:
			return time.Time{} // the end of one of them wakes Run
		case p.lookTokens < 1:
			return now.Add(seconds((1-p.lookTokens)/rate) + time.Millisecond)
		}
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
		if w == nil {
			return next
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

// soon brings the next look forward. One that is under way may have been answered before what it is asked for.
func (w *watch) soon(gap time.Duration) {
	w.again = w.busy
	w.next = earlier(w.next, w.begun.Add(gap))
}

// ended plans the look after one that has ended.
func (w *watch) ended(again, gap time.Duration) {
	if w.again {
		again = min(again, gap)
	}
	w.busy, w.again = false, false
	w.next = w.begun.Add(again)
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
