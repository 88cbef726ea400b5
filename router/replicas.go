package router

import (
	"time"

	"headrace/router/endpoint"
	"headrace/router/health"
)

// Transition is what became of an endpoint's breaker, for other replicas to hear.
type Transition struct {
	Endpoint endpoint.ID
	Change   health.Change
	Told     bool          // its control plane says so; else attempts or tests have shown it
	For      time.Duration // until it is tested again, as far as can be told
	At       time.Time     // when it was found, by the router's clock; zero for now
	Started  time.Time     // endpoint.Endpoint.Started of the one that it was found of; zero when unknown
}

// tell tells the others.
func (r *Router) tell(c *candidate, what health.Change, told bool, now time.Time) {
	if r.opt.Changed == nil || what == health.Unchanged {
		return
	}
	wait, _ := c.host.breaker.Wait(now)
	r.opt.Changed(Transition{Endpoint: c.ep.ID, Change: what, Told: told, For: wait, At: now, Started: c.ep.Started})
}

// Heard takes in what another replica says of an endpoint: see health.Breaker.Heard. known is false when the snapshot does not have it,
// changed when it was nothing new. What is of an earlier life than the one that is known here says nothing of this one. It is not told on.
func (r *Router) Heard(t Transition) (known, changed bool) {
	s := r.snap.Load()
	c := s.byID[t.Endpoint]
	if c == nil {
		return false, false
	}
	if !t.Started.IsZero() && t.Started.Before(c.ep.Started) {
		return true, false
	}
	if !c.host.breaker.Heard(t.Change, t.Told, t.At) {
		return true, false
	}
	if t.Told && t.Change == health.Preempted {
		s.mourn(c, true, r.now())
	}
	return true, true
}

// Missing adds to dst the endpoints where nobody is thought to be, as transitions, and returns it: others may have come since those were
// told. What only another replica's control plane has said, that one says again.
func (r *Router) Missing(dst []Transition) []Transition {
	now := r.now()
	for _, c := range r.snap.Load().list {
		b := c.host.breaker
		if missing, told := b.Missing(); missing && (told || b.State(now) != health.StatePreempted) {
			t := Transition{Endpoint: c.ep.ID, Change: health.Lost, Told: told, At: b.ShutAt(), Started: c.ep.Started}
			if told {
				t.Change = health.Preempted
			}
			t.For, _ = b.Wait(now)
			dst = append(dst, t)
		}
	}
	return dst
}

// HostLoad is what this gateway has at an endpoint.
type HostLoad struct {
	Endpoint     endpoint.ID
	InFlight     int64
	PromptTokens int64 // of requests that have no first token yet
}

// Loads adds to dst the endpoints at which this gateway has something, for others to hear by Share, and returns it.
func (r *Router) Loads(dst []HostLoad) []HostLoad {
	for _, c := range r.snap.Load().list {
		if n := c.host.sequences(); n > 0 {
			dst = append(dst, HostLoad{c.ep.ID, n, max(0, c.host.pending.Load())})
		}
	}
	return dst
}
