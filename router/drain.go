package router

import "headrace/router/endpoint"

// Drain keeps new requests from an endpoint, continuations included, until it is called with false; those that run are left
// alone. It outlives what discovery says of the endpoint, for as long as that lists it and an hour longer, and ends with the
// Router. known is false, and nothing changes, where the snapshot has no such endpoint.
func (r *Router) Drain(id endpoint.ID, drain bool) (known bool) {
	c := r.snap.Load().byID[id]
	if c == nil {
		return false
	}
	c.host.drained.Store(drain)
	if !drain {
		r.freed(id)
	}
	return true
}

// Drained tells whether Drain keeps requests from the endpoint.
func (s *Snapshot) Drained(id endpoint.ID) bool {
	c := s.byID[id]
	return c != nil && c.host.drained.Load()
}

// TakenAway tells whether the endpoint's provider has taken it away already, so that what runs there breaks off any moment.
func (s *Snapshot) TakenAway(id endpoint.ID) bool {
	ep := s.Endpoint(id)
	return ep == nil || ep.State == endpoint.Preempted || ep.State == endpoint.Gone
}

// whyDrained says it to operators.
const whyDrained = "drained by its operator"
