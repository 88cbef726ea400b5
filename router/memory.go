package router

import (
	"slices"
	"time"

	"headrace/router/capacity"
	"headrace/router/endpoint"
)

// Memory is what a router has learned that is worth keeping for the next one, or for one that comes in addition.
type Memory struct {
	Hosts  []HostMemory  `json:"hosts"`
	Models []ModelMemory `json:"models,omitempty"`
}

// HostMemory is what was measured of an endpoint, and what it was then.
type HostMemory struct {
	Endpoint endpoint.ID      `json:"id"`
	Provider string           `json:"provider"`
	Machine  string           `json:"machine,omitempty"`
	GPU      string           `json:"gpu,omitempty"`
	GPUs     int              `json:"gpus,omitempty"`
	Served   []string         `json:"served"`
	At       time.Time        `json:"at"` // when it was measured last
	Speed    capacity.Learned `json:"speed"`
}

// ModelMemory is how long a model's answers are.
type ModelMemory struct {
	Name   string  `json:"name"`
	Tokens float64 `json:"tokens"` // on average
	N      int64   `json:"n"`      // answers, at most some hundreds
}

// Learned returns what was learned of the endpoints and models there are. The caller owns it.
func (r *Router) Learned() Memory {
	s, now := r.snap.Load(), r.opt.Now() // others read it by their clocks
	at := r.seconds(now)
	var m Memory
	for _, c := range s.list {
		h := c.host
		h.mu.Lock()
		speed, age, ok := h.learner.Learned(at)
		h.mu.Unlock()
		if !ok {
			continue
		}
		x := HostMemory{
			Endpoint: c.ep.ID, Provider: c.ep.Provider, Machine: c.ep.Hardware.Machine, GPU: c.ep.Hardware.GPU, GPUs: c.ep.Hardware.GPUCount,
			At: now.Add(-seconds(age)), Speed: speed,
		}
		for i := range c.ep.Served {
			x.Served = append(x.Served, c.ep.Served[i].Name)
		}
		m.Hosts = append(m.Hosts, x)
	}
	for _, name := range s.names {
		if st := s.models[name].stats; st.output.n.Load() > 0 {
			m.Models = append(m.Models, ModelMemory{name, st.output.get(0), st.output.n.Load()})
		}
	}
	return m
}

// warmed is for how many answers those of another process count at most.
const warmed = 30

// Remember has endpoints of which little was measured begin with what others have measured of them, or of others on the same machine that
// served the same. It holds for endpoints to come as well; the next call replaces it.
func (r *Router) Remember(m Memory) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lore = m
	for _, c := range r.snap.Load().list {
		r.warmUp(c.host, c.ep)
	}
	for _, x := range m.Models {
		if st := r.stats[x.Name]; st != nil {
			st.output.warm(x.Tokens, x.N)
		}
	}
}

// warmUp has a host begin with what others know of it. The caller holds mu.
func (r *Router) warmUp(h *host, ep *endpoint.Endpoint) {
	var best *HostMemory
	for i := range r.lore.Hosts {
		x := &r.lore.Hosts[i]
		if x.fits(ep) && (best == nil || x.Endpoint == ep.ID || best.Endpoint != ep.ID && x.At.After(best.At)) {
			best = x
		}
	}
	if best == nil {
		return
	}
	now := r.opt.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.learner.Warm(&best.Speed, max(0, now.Sub(best.At).Seconds()), r.seconds(now)) {
		h.publish()
	}
}

// fits tells whether what was measured says something of the endpoint.
func (x *HostMemory) fits(ep *endpoint.Endpoint) bool {
	hw := &ep.Hardware
	was := endpoint.Hardware{Machine: x.Machine, GPU: x.GPU, GPUCount: x.GPUs}
	switch {
	case x.Endpoint == ep.ID:
		if otherMachine(&was, hw) {
			return false
		}
	case x.Machine == "" || x.Machine != hw.Machine || x.Provider != ep.Provider || x.GPU != hw.GPU || x.GPUs != hw.GPUCount || len(ep.Served) == 0:
		return false
	}
	if len(ep.Served) == 0 || len(x.Served) == 0 {
		return true // it has not told yet
	}
	return slices.ContainsFunc(ep.Served, func(sv endpoint.Served) bool { return slices.Contains(x.Served, sv.Name) })
}

// warm begins a mean of which nothing is known with another's.
func (l *longMean) warm(mean float64, n int64) {
	if mean > 0 && mean < 1e7 && n > 0 && l.n.CompareAndSwap(0, min(n, warmed)) {
		l.mean.set(mean)
	}
}
