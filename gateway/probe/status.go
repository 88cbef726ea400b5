package probe

import (
	"time"

	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// Status is what the admin API shows of a host's tests.
type Status struct {
	Sent     int64           `json:"sent"`   // probes, by this replica; self-tests are not counted
	Failed   int64           `json:"failed"` // of them
	Last     *outcome.Class  `json:"last"`   // of the newest probe; nil before the first
	LastAt   *time.Time      `json:"last_at"`
	Prefills []PrefillStatus `json:"prefills"`
}

// PrefillStatus is what is known of a host's way with unfinished answers of one model.
type PrefillStatus struct {
	Model     string     `json:"model"`
	Continues string     `json:"continues"` // "yes", "no" or "unknown"
	Trims     bool       `json:"trims"`     // white space at the end is dropped
	TokenIDs  bool       `json:"token_ids"` // it goes on with answers by the numbers of their tokens
	Why       string     `json:"why"`       // of a closed set
	TestedAt  *time.Time `json:"tested_at"` // nil when it was not tested
}

// Status returns what was found of a host.
func (p *Prober) Status(id endpoint.ID) Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Status{Prefills: []PrefillStatus{}}
	h := p.hosts[id]
	if h == nil {
		return s
	}
	s.Sent, s.Failed = h.sent, h.failed
	if !h.lastAt.IsZero() {
		s.Last, s.LastAt = new(h.last), new(h.lastAt)
	}
	for i := range h.prefills {
		f := &h.prefills[i]
		one := PrefillStatus{Model: f.served, Continues: "unknown", Trims: f.OK && f.Trims, TokenIDs: f.Tokens, Why: f.why}
		switch {
		case f.OK:
			one.Continues = "yes"
		case f.Known:
			one.Continues = "no"
		case f.why == "":
			one.Why = "not tested yet"
		}
		if !f.at.IsZero() {
			one.TestedAt = new(f.at)
		}
		s.Prefills = append(s.Prefills, one)
	}
	return s
}
