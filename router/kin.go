package router

import (
	"math"
	"time"

	"headrace/router/endpoint"
	"headrace/router/health"
)

// kinship is how near two hosts are to each other in what takes them away.
type kinship uint8

const (
	strangers kinship = iota
	sameRegion
	sameOwner
	sameMachine
	numKinships
)

// domain names hosts that one cause can take away together.
type domain struct {
	kinship  kinship
	provider string
	name     string
}

// domainOf is the endpoint's domain of that kinship; its name is "" when it has none. Endpoints that are fleets of their own,
// and regions of hosts in the config, of which nobody knows how large they are, make none.
func domainOf(ep *endpoint.Endpoint, k kinship) domain {
	d := domain{kinship: k, provider: ep.Provider}
	if !rented(ep) {
		return d
	}
	switch k {
	case sameMachine:
		d.name = ep.Hardware.Machine
	case sameOwner:
		d.name = ep.Hardware.Host
	case sameRegion:
		if ep.Provider != "static" {
			d.name = ep.Region
		}
	case strangers, numKinships:
	}
	return d
}

// nearFor is how long after a host was taken away those near it are no targets for its streams.
const nearFor = time.Minute

// mourn tells the hosts near c that it went down: that they may be next, if it was taken away; that they have to show that they
// are still there, if it is not the only one. Of a region that takes three, and more than half of it: it holds many machines.
func (s *Snapshot) mourn(c *candidate, preempted bool, now time.Time) {
	for k := sameRegion; k < numKinships; k++ {
		d := domainOf(c.ep, k)
		if d.name == "" {
			continue
		}
		members := s.domains[d]
		down := 0
		for _, o := range members {
			if o.host.breaker.Down(now.Add(-health.DownTogether)) {
				down++
			}
			if preempted && o != c {
				o.host.near[k].Store(now.Add(nearFor).UnixNano())
			}
		}
		if down < 2 || k == sameRegion && (down < 3 || 2*down <= len(members)) {
			continue
		}
		for _, o := range members {
			o.host.breaker.Suspect()
		}
	}
}

// nearness is how near the candidate is to a host that was taken away of late, or to the one whose stream is to be continued.
func (s *scratch) nearness(c *candidate) kinship {
	now := s.now.UnixNano()
	for k := sameMachine; k > strangers; k-- {
		if c.host.near[k].Load() > now {
			return k
		}
		if s.from != nil {
			if d := domainOf(c.ep, k); d.name != "" && d == domainOf(s.from, k) {
				return k
			}
		}
	}
	return strangers
}

// keepApart leaves a continuation to the hosts that are least likely to go the way of the one it comes from.
func (s *scratch) keepApart() {
	least := kinship(math.MaxUint8)
	for i := range s.views {
		if v := &s.views[i]; v.verdict == serves {
			least = min(least, s.nearness(v.c))
		}
	}
	for i := range s.views {
		if v := &s.views[i]; v.verdict == serves && s.nearness(v.c) > least {
			v.verdict = nearLost
		}
	}
}
