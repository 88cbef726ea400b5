package router

import (
	"math"
	"slices"

	"headrace/router/affinity"
	"headrace/router/cost"
)

// survey looks at every candidate of the model.
func (s *scratch) survey() {
	s.metered, s.api = math.Inf(1), math.Inf(1)
	if s.views = slices.Grow(s.views[:0], len(s.m.cands)); len(s.m.cands) <= wholePool || !s.sample() {
		s.views = s.views[:0]
		for _, c := range s.m.cands {
			s.see(c)
		}
	}
	if math.IsInf(s.metered, 1) {
		s.metered = meteredUSD
	}
	s.uncramp()
	if s.q.Continue != nil {
		s.keepApart()
	}
	for i := range s.views {
		if v := &s.views[i]; v.verdict < limited && v.coldSeconds == 0 && v.c.host.paid.Load() { // paid for while demand justifies it
			v.usd = cost.Paid(s.total, s.metered, v.use())
			v.metered = false
		}
	}
}

// Of more candidates than wholePool not all are looked at: the best of a random window of that many is as good within a
// hair, and a window at random is herd protection besides.
const (
	wholePool     = 256
	paidWindow    = 192 // of those that are paid anyway
	meteredWindow = 48
)

// sample looks at a part of the candidates: those that hold some of the prompt, and a window of each kind. It is false if
// nobody among them serves.
func (s *scratch) sample() bool {
	holders := *s.m.holders.Load()
	for h := range s.matches.Hosts() {
		if c := holders[h]; c != nil {
			s.see(c)
		}
	}
	s.window(s.m.cands[:s.m.paid], paidWindow)
	s.window(s.m.cands[s.m.paid:], meteredWindow)
	return slices.ContainsFunc(s.views, func(v view) bool { return v.verdict == serves })
}

// window looks at candidates from a random one on, until it has seen as many as can be used.
func (s *scratch) window(list []*candidate, usable int) {
	if len(list) == 0 {
		return
	}
	from := int(s.dice % uint64(len(list))) //nolint:gosec // less than len
	for i := range list {
		c := list[(from+i)%len(list)]
		if held, session := s.matches.Tokens(affinity.Host(c.host.cache.Load())); held > 0 || session {
			continue // seen
		}
		if s.see(c).verdict < limited {
			if usable--; usable == 0 {
				return
			}
		}
	}
}

// see adds a view of c.
func (s *scratch) see(c *candidate) *view {
	s.views = s.views[:len(s.views)+1]
	v := &s.views[len(s.views)-1]
	s.look(c, v)
	return v
}

// uncramp leaves out those whose context seems too short, if there are others: token counts are estimates.
func (s *scratch) uncramp() {
	cramped, roomy := false, false
	for i := range s.views {
		if v := &s.views[i]; v.verdict < limited {
			cramped, roomy = cramped || v.cramped, roomy || !v.cramped
		}
	}
	if !cramped || !roomy {
		return
	}
	for i := range s.views {
		if v := &s.views[i]; v.cramped && v.verdict < limited {
			v.verdict = misfit
		}
	}
}

// leniency is what is put up with when nobody else is left.
type leniency uint8

const (
	firm         leniency = iota
	ofSuspects            // hosts that have to show that they are still there, because others near them are not
	ofTried               // hosts that failed this request before
	ofBad                 // hosts that answer badly, the least bad first; never those where nobody is
	mostLeniency = ofBad
)

// forgive surveys once more with the next leniency that could help; false when none is left.
func (s *scratch) forgive() bool {
	for s.lenience < mostLeniency && !s.q.Firm {
		s.lenience++
		if s.lenience == ofTried && (len(s.q.Tried) == 0 || s.q.Continue != nil && !s.q.Continue.Back) {
			continue
		}
		if s.lenience == ofBad && (s.q.Spare > 0 || !s.leastBad()) {
			continue
		}
		s.survey()
		return true
	}
	return false
}

// leastBad finds how bad the least bad host is that could be asked all the same; false when there is none.
func (s *scratch) leastBad() bool {
	s.bad = math.MaxInt
	for _, c := range s.m.cands {
		if bad, ok := c.host.breaker.Ignorable(); ok && c.usable() && c.fitness(s.q) == fit {
			s.bad = min(s.bad, bad)
		}
	}
	return s.bad < math.MaxInt
}

// excused tells whether the candidate's open breaker is put up with.
func (s *scratch) excused(c *candidate) bool {
	if s.lenience < ofSuspects {
		return false
	}
	bad, ok := c.host.breaker.Ignorable()
	return ok && (bad == 0 && s.lenience < ofBad || s.lenience == ofBad && bad <= s.bad)
}

// admission is whether the candidate may be used at all, whatever it would cost.
func (s *scratch) admission(c *candidate) verdict {
	switch {
	case slices.Contains(s.q.Tried, c.ep.ID) && (s.lenience < ofTried || s.q.Continue != nil && !s.q.Continue.Back):
		return tried
	case c.fitness(s.q) != fit:
		return misfit
	case !c.usable():
		return away
	}
	if k := s.q.Continue; k != nil {
		switch {
		case k.From == c.ep.ID && (!k.Back || s.lenience < ofTried), slices.Contains(k.Refused, c.ep.ID):
			return tried
		case !k.alike(c):
			return otherKind
		case !c.host.prefill(c.served).suits(k):
			return noPrefill
		}
	}
	if d, _ := c.host.breaker.Wait(s.now); d > 0 && !s.excused(c) {
		return barred
	}
	if c.host.limited(&c.ep.Limits, s.now) > 0 {
		return limited
	}
	return serves
}
