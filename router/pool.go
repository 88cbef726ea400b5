package router

import (
	"encoding/json"
	"slices"

	"headrace/router/endpoint"
)

// Pool is a part of a model's hosts that requests can be kept to: Request.Model names it in the model's place. Callers cannot ask for
// it, and it is not among Models. What is learned of a model's requests is the model's, whichever of its pools they went to.
type Pool struct {
	Name  string // of no model
	Label string // by which people know it; Name by default
	// Model is whose hosts, demands and promises these are.
	Model string
	// As is the name that callers use, "" where it is Model's.
	As string
	// Holds tells which of the hosts belong to it, by what they are and the model's id there; nil takes all. It is asked at each
	// Update, for every host.
	Holds  func(ep *endpoint.Endpoint, served string) bool
	Policy Policy // PolicyDefault is the model's
}

// pool returns the model or pool of that name, nil when there is none.
func (s *Snapshot) pool(name string) *Model {
	if m := s.models[name]; m != nil {
		return m
	}
	return s.pools[name]
}

// Pool tells how many hosts a pool has; ok is false when there is none, because nobody serves its model.
func (s *Snapshot) Pool(name string) (hosts int, ok bool) {
	if m := s.pools[name]; m != nil {
		return len(m.cands), true
	}
	return 0, false
}

// InPool tells whether a host is one of a pool's.
func (s *Snapshot) InPool(name string, id endpoint.ID) bool {
	m := s.pools[name]
	return m != nil && slices.ContainsFunc(m.cands, func(c *candidate) bool { return c.ep.ID == id })
}

// divide makes the pools out of the models, which are complete.
func (s *Snapshot) divide(pools []Pool) {
	if len(pools) == 0 {
		return
	}
	s.pools = make(map[string]*Model, len(pools))
	for i := range pools {
		p := &pools[i]
		of := s.models[p.Model]
		if of == nil {
			continue
		}
		as := p.As
		if as == "" {
			as = p.Model
		}
		label := p.Label
		if label == "" {
			label = p.Name
		}
		m := &Model{Name: as, pool: label, demand: of.demand, slo: of.slo, policy: of.policy, strict: of.strict, stats: of.stats}
		if p.Policy != PolicyDefault {
			m.policy = p.Policy
		}
		for _, c := range of.cands {
			if p.Holds != nil && !p.Holds(c.ep, c.served) {
				continue
			}
			own := *c
			if !own.unnamed {
				if own.servedJSON = nil; own.served != as {
					own.servedJSON, _ = json.Marshal(own.served) // a string always encodes
				}
			}
			m.take(&own)
		}
		m.arrange()
		m.countPrefills()
		s.pools[p.Name] = m
	}
}

// everyPool calls do for each model and pool.
func (s *Snapshot) everyPool(do func(*Model)) {
	for _, m := range s.models {
		do(m)
	}
	for _, m := range s.pools {
		do(m)
	}
}
