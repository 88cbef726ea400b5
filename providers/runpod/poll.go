package runpod

import (
	"encoding/json"
	"errors"
	"hash/maphash"
	"maps"
	"slices"
	"strings"
	"time"

	"headrace/providers/api"
	"headrace/router/endpoint"
)

// gotList takes the account's endpoints in.
func (p *Provider) gotList(a *api.Answer, err error) {
	p.listing = false
	now := p.opt.Now()
	var entries []json.RawMessage
	if err == nil {
		entries, err = list(a, "endpoints", endpointsOf)
	}
	if err == nil && len(entries) > 0 {
		err = p.takeList(entries, now)
	}
	p.update(func(s *api.Status) { s.Polls++ })
	if err != nil {
		if errors.Is(err, errShape) {
			p.odd("endpoints: no list in the answer")
		}
		p.listFails++
		p.listAt = p.budget.urgent(now.Add(retry(p.listFails, p.opt.Poll)), now)
		p.failed(p.listFails, err)
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
	if len(entries) == 0 {
		_ = p.takeList(nil, now) // there is nothing in it that could not be read
	}
	if p.firstBy.IsZero() {
		p.firstBy = now.Add(firstWait)
		p.changed() // an empty account is news too
	}
}

// takeList compares the list with what is known. It fails, and changes nothing, when no entry names its endpoint; when only some
// do not, each of those may be any endpoint that the others do not name, so that none is taken for gone.
func (p *Provider) takeList(entries []json.RawMessage, now time.Time) error {
	var skipped []api.Skipped
	nameless := 0
	listed := make(map[string]bool, len(entries))
	for _, raw := range entries {
		sum := maphash.Bytes(p.seed, raw)
		if s := p.bySum[sum]; s != nil { // the very entry of the last list
			listed[s.desc.id] = true
			continue
		}
		d, ok := p.describe(raw)
		if !ok {
			if id := idOf(raw); id != "" {
				listed[id] = true // as it was, if it is known
			} else {
				nameless++
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
	if nameless > 0 && nameless == len(entries) {
		return errShape
	}
	for id, s := range p.services {
		if !listed[id] && nameless == 0 {
			delete(p.services, id)
			p.audit.Book.Gone(id, now)
			p.opt.Log.Info("endpoint is gone from the account", "endpoint", s.ep.ID, "name", s.desc.name)
			p.changed()
		}
	}
	p.mu.Lock()
	maps.DeleteFunc(p.work, func(id endpoint.ID, _ *work) bool { // requests may tell of one that has just gone
		return p.services[strings.TrimPrefix(string(id), string(serviceID("")))] == nil
	})
	p.mu.Unlock()
	p.heritage = nil
	p.order = p.order[:0]
	clear(p.bySum)
	for _, id := range slices.Sorted(maps.Keys(p.services)) {
		s := p.services[id]
		p.order = append(p.order, s)
		p.bySum[s.sum] = s
	}
	p.update(func(s *api.Status) {
		s.Skipped = slices.DeleteFunc(s.Skipped, func(k api.Skipped) bool { return !isPod(k) })
		s.Skipped = append(s.Skipped, skipped...)
	})
	return nil
}

func (p *Provider) takeEndpoint(d description, sum uint64, now time.Time) {
	s := p.services[d.id]
	if s == nil {
		s = &service{reason: "not looked at yet", seen: sight{pace: p.opt.Pace}, time: newWorkTime()}
		if o := p.heritage[d.id]; o != nil {
			s.desc, s.learned, s.seen.cold, s.time = o.desc, o.learned, o.seen.cold, o.time
		}
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
	case len(p.opt.Endpoints) > 0 && !slices.Contains(p.opt.Endpoints, "*"):
		return "it is not among the endpoints to use"
	case d.cpu:
		return "its workers have no GPU: name it among the endpoints to use it"
	}
	return ""
}

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
		entries, err = list(a, "gpus", gpusOf)
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
func (p *Provider) failed(fails int, err error) {
	p.update(func(s *api.Status) { s.Failing, s.LastError = fails, err.Error() })
	e, ok := errors.AsType[*api.Error](err)
	switch {
	case fails > 1:
	case ok && e.Denied():
		p.opt.Log.Error("RunPod refuses the key; the endpoints known stay in use", "error", err)
	default:
		p.opt.Log.Warn("endpoints cannot be listed; those known stay in use", "error", err)
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
