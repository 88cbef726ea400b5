package books

import (
	"slices"
	"time"

	"headrace/gateway/ledger"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// accountant books what hosts cost while somebody watches: rented ones by the hour, and serverless workers by the second. It knows what
// discovery has told, and books nothing for the time in which nobody was there.
type accountant struct {
	now   func() time.Time
	hosts map[string]*metered
	last  time.Time // of the newest take
	doubt time.Time // until then an answer may show that a host is there which was taken for lost
}

// metered is one host's account.
type metered struct {
	provider string
	at       time.Time        // booked up to this
	up       float64          // hosts, or workers, that are paid for since then
	usd      float64          // an hour, of all of them
	workers  int              // -1 for hosts that are rented as a whole
	meter    *endpoint.Meter  // of its workers; nil for none
	read     endpoint.Reading // of the meter, as booked
	metering metering
	rate     float64             // USD of a worker's second
	gone     bool                // from the fleet
	left     time.Time           // when it went
	lost     time.Time           // since when nobody is there, as attempts have shown; zero while somebody is
	slots    map[int64]*HostHour // not taken yet
	trail    []mark
}

// mark is a point of what a host has cost in all; between two of them it grows evenly. first begins a stretch that was watched.
type mark struct {
	at    time.Time
	usd   float64
	first bool
}

const (
	// unwatched is how long a host may go unbooked while the process lives: where it was stopped for longer, or its machine slept, nobody knows.
	unwatched = 5 * time.Minute
	trailKept = 50 * time.Hour   // bills are compared within a day or two
	trailStep = 30 * time.Second // within which what a meter shows counts as even
	// stepped is by how much the clock of the wall and that of the process may differ between two bookings: more is a clock that was set,
	// or a machine that slept, during which the latter stands still.
	stepped = 2 * time.Second
)

func (a *accountant) init(now func() time.Time) { a.now, a.hosts = now, map[string]*metered{} }

// due tells whether something may have been booked that is not taken for that long.
func (a *accountant) due(at time.Time, every time.Duration) bool {
	return len(a.hosts) > 0 && at.Sub(a.last) >= every
}

// accrues is what an endpoint costs as it stands: how many hosts or workers are paid for, and US dollars an hour of all of them. known is
// false where nobody knows: no price, a price by tokens, workers that nobody counts.
func accrues(ep *endpoint.Endpoint) (up, usd float64, known bool) {
	p := &ep.Price
	switch p.Basis {
	case endpoint.PerHour:
		switch {
		case p.Accrues == endpoint.AccruesNothing:
			return 0, 0, true
		case p.Accrues == endpoint.AccruesDisk, p.Accrues == endpoint.AccruesUnknown && away(ep.State):
			return 0, p.USDPerHourStopped, true
		}
		return 1, p.USDPerHour, true
	case endpoint.PerWorkerSecond:
		if ep.Provider == "static" {
			return 0, 0, false
		}
		return float64(ep.Workers), float64(ep.Workers) * p.USDPerWorkerSecond * 3600, true
	case endpoint.PerToken, endpoint.BasisUnknown:
	}
	return 0, 0, false
}

// away tells whether a host in that state is not running.
func away(s endpoint.State) bool {
	return s == endpoint.Preempted || s == endpoint.Gone || s == endpoint.Cold || s == endpoint.NoCapacity
}

// follow takes in the fleet as it is from now on.
func (a *accountant) follow(fleet []endpoint.Endpoint) {
	now := a.now()
	there := make(map[string]bool, len(fleet))
	for i := range fleet {
		ep := &fleet[i]
		up, usd, known := accrues(ep)
		id := string(ep.ID)
		m := a.hosts[id]
		if known && ep.Price.Basis == endpoint.PerWorkerSecond && ep.State == endpoint.StateUnknown { // nobody has counted its workers
			if m != nil { // it costs what it did
				there[id] = true
				m.accrue(id, now)
			}
			continue
		}
		if !known {
			continue
		}
		there[id] = true
		if m == nil {
			m = &metered{at: now, workers: -1, slots: map[int64]*HostHour{}}
			m.trail = []mark{{now, 0, true}}
			if ep.Price.Basis == endpoint.PerWorkerSecond {
				m.workers = ep.Workers // those that were up before are not known to have started now
			}
			a.hosts[id] = m
		}
		m.provider = ep.Provider
		m.accrue(id, now)
		if ep.Meter != nil && ep.Price.Basis == endpoint.PerWorkerSecond {
			m.follow(ep, now)
			continue
		}
		m.meter = nil
		if m.gone {
			// Workers that were up before a poll or two that did not list it have not started anew.
			if m.workers > 0 && now.Sub(m.left) > max(unwatched, ep.Price.IdleTimeout) {
				m.workers = 0
			}
			m.gone = false
			m.trail = append(m.trail, mark{now, m.total(), true})
		}
		if came := ep.Workers - m.workers; ep.Price.Basis == endpoint.PerWorkerSecond && came > 0 && m.workers >= 0 {
			m.start(id, now, came, &ep.Price)
		}
		if ep.Price.Basis == endpoint.PerWorkerSecond {
			m.workers = ep.Workers
		}
		if up < m.up {
			m.refund(id, now, usd)
		}
		if up != m.up { // while it stays as it was its control plane may not have been asked since
			m.lost = time.Time{}
		}
		if up != m.up || usd != m.usd {
			m.up, m.usd = up, usd
			m.mark(now)
		}
	}
	for id, m := range a.hosts {
		if there[id] {
			continue
		}
		m.accrue(id, now)
		if !m.gone {
			m.refund(id, now, 0)
			m.left = now
		}
		m.up, m.usd, m.gone, m.lost = 0, 0, true, time.Time{}
		m.mark(now)
		if len(m.slots) == 0 && now.Sub(m.trail[len(m.trail)-1].at) > trailKept {
			delete(a.hosts, id)
		}
	}
}

// follow has the host's meter tell what it costs from now on.
func (m *metered) follow(ep *endpoint.Endpoint, now time.Time) {
	if m.meter != ep.Meter || m.gone { // what it has shown before is not known to be new
		m.meter = ep.Meter
		m.reread(now)
		if m.gone {
			m.trail = append(m.trail, mark{now, m.total(), true})
		}
	}
	m.gone, m.lost, m.workers = false, time.Time{}, ep.Workers
	m.up, m.rate = float64(ep.Workers), ep.Price.USDPerWorkerSecond
	m.usd = m.up * m.rate * 3600
}

func (m *metered) total() float64 { return m.trail[len(m.trail)-1].usd }

// mark notes where the host's account stands.
func (m *metered) mark(now time.Time) {
	last := &m.trail[len(m.trail)-1]
	if last.at.Equal(now) {
		return
	}
	m.trail = append(m.trail, mark{at: now, usd: last.usd})
}

// bend notes what the host's account was at a time, so that what follows may be told apart from what was before.
func (m *metered) bend(at time.Time) {
	i, there := slices.BinarySearchFunc(m.trail, at, func(k mark, t time.Time) int { return k.at.Compare(t) })
	if !there && i > 0 && i < len(m.trail) && !m.trail[i].first {
		usd, _ := m.at1(at)
		m.trail = slices.Insert(m.trail, i, mark{at: at, usd: usd})
	}
}

// slot is where what is booked now belongs.
func (m *metered) slot(id string, at time.Time) *HostHour {
	h := hourOf(at)
	s := m.slots[h]
	if s == nil {
		s = &HostHour{Hour: h, Provider: m.provider, Host: id}
		m.slots[h] = s
	}
	return s
}

// accrue books up to now.
func (m *metered) accrue(id string, now time.Time) {
	d, wall := now.Sub(m.at), now.Round(0).Sub(m.at.Round(0))
	step := (d - wall).Abs() > stepped
	if d <= 0 && !step {
		return // a clock that was set back books nothing twice
	}
	if m.gone {
		m.at = now
		return
	}
	if step || d > unwatched {
		usd := m.total()
		switch {
		case m.meter != nil && d > 0 && d <= unwatched:
			cost, _ := m.booking(id, now, d)
			usd += cost
		case m.meter != nil:
			m.reread(now)
		case step && d > 0 && d <= unwatched: // what the process has seen is what counts, not what the wall's clock has skipped
			s := m.slot(id, now)
			s.Seconds += d.Seconds()
			s.Up += m.up * d.Seconds()
			s.USD += m.usd * d.Hours()
			usd += m.usd * d.Hours()
		}
		m.at, m.lost = now, time.Time{}
		m.trail = append(m.trail, mark{now, usd, true})
		return
	}
	usd := m.total()
	if m.meter != nil {
		cost, grown := m.booking(id, now, d)
		if usd += cost; cost < 0 {
			m.level(&grown, now, usd)
		}
	} else {
		usd += m.usd * d.Hours()
		m.hours(now.Add(-d), now, func(at time.Time, part time.Duration) {
			s := m.slot(id, at)
			s.Seconds += part.Seconds()
			s.Up += m.up * part.Seconds()
			s.USD += m.usd * part.Hours()
		})
	}
	m.at = now
	// Where nothing has changed the last mark moves on.
	if n := len(m.trail); n > 1 && !m.trail[n-1].first && !m.trail[n-1].at.Equal(m.lost) && (m.meter != nil && now.Sub(m.trail[n-2].at) < trailStep || m.even(n, now, usd)) {
		m.trail[n-1] = mark{at: now, usd: usd}
	} else {
		m.trail = append(m.trail, mark{at: now, usd: usd})
	}
	for len(m.trail) > 2 && now.Sub(m.trail[1].at) > trailKept {
		m.trail = m.trail[1:]
		m.trail[0].first = true
	}
}

// hours calls each for the part of every hour between two times.
func (*metered) hours(from, to time.Time, each func(at time.Time, part time.Duration)) {
	for from.Before(to) {
		end := time.Unix(hourOf(from)+3600, 0)
		if to.Before(end) {
			end = to
		}
		each(from, end.Sub(from))
		from = end
	}
}

// even tells whether the stretch before the last mark is as steep as the one that follows it.
func (m *metered) even(n int, now time.Time, usd float64) bool {
	a, b := &m.trail[n-2], &m.trail[n-1]
	before, after := b.at.Sub(a.at).Hours(), now.Sub(b.at).Hours()
	if before <= 0 || after <= 0 {
		return false
	}
	x, y := (b.usd-a.usd)/before, (usd-b.usd)/after
	d := x - y
	return d < 1e-9*(1+y) && d > -1e-9*(1+y)
}

// refund takes back what was booked since the host was lost, if it was, which its control plane tells only now: it has cost usd an hour
// since. Each hour gives back what was booked in it.
func (m *metered) refund(id string, now time.Time, usd float64) {
	d := now.Sub(m.lost)
	if m.lost.IsZero() || d <= 0 || d > unwatched {
		return
	}
	m.hours(m.lost, now, func(at time.Time, part time.Duration) {
		s := m.slot(id, at)
		s.USD -= (m.usd - usd) * part.Hours()
		s.Up -= m.up * part.Seconds()
	})
	back := (m.usd - usd) * d.Hours()
	last := m.trail[len(m.trail)-1].usd - back
	for i := range m.trail { // it stood still from then on
		if k := &m.trail[i]; k.at.After(m.lost) {
			k.usd = min(k.usd, last)
		}
	}
}

// start books what workers cost that have come up, until they could work.
func (m *metered) start(id string, now time.Time, came int, p *endpoint.Price) {
	usd := float64(came) * p.ColdStart.Seconds() * p.USDPerWorkerSecond
	s := m.slot(id, now)
	s.Starts += int64(came)
	s.USD += usd
	s.ColdUSD += usd
	s.Up += float64(came) * p.ColdStart.Seconds()
	m.trail = append(m.trail, mark{at: now, usd: m.total() + usd})
}

// take returns what was booked since the last call.
func (a *accountant) take(at time.Time) (hs []HostHour) {
	a.last = at
	for id, m := range a.hosts {
		m.accrue(id, at)
		for h, s := range m.slots {
			hs = append(hs, *s)
			delete(m.slots, h)
		}
	}
	return hs
}

// waits adds what was not taken yet to a period, beside what that has of the same hours.
func (a *accountant) waits(p *Period, in func(hour int64) bool) {
	at := map[hostHour]int{}
	for i := range p.Hours {
		at[hostHour{p.Hours[i].Hour, p.Hours[i].Host}] = i
	}
	for id, m := range a.hosts {
		for hour, s := range m.slots {
			if !in(hour) {
				continue
			}
			if i, there := at[hostHour{hour, id}]; there {
				p.Hours[i].add(s)
			} else {
				p.Hours = append(p.Hours, *s)
			}
		}
	}
}

// giveBack takes back what could not be written.
func (a *accountant) giveBack(hs []HostHour) {
	for i := range hs {
		h := &hs[i]
		m := a.hosts[h.Host]
		if m == nil { // it was dropped meanwhile
			m = &metered{provider: h.Provider, at: a.now(), gone: true, workers: -1, slots: map[int64]*HostHour{}, trail: []mark{{a.now(), 0, true}}}
			a.hosts[h.Host] = m
		}
		s := m.slots[h.Hour]
		if s == nil {
			s = &HostHour{Hour: h.Hour, Provider: h.Provider, Host: h.Host}
			m.slots[h.Hour] = s
		}
		s.add(h)
	}
}

func (h *HostHour) add(o *HostHour) {
	h.Seconds += o.Seconds
	h.Up += o.Up
	h.USD += o.USD
	h.Starts += o.Starts
	h.ColdUSD += o.ColdUSD
}

// plus is both hours together. What was billed of one and not of the other counts as billed.
func (h HostHour) plus(o *HostHour) HostHour {
	if h.Billed != nil || o.Billed != nil {
		usd := h.Paid() + o.Paid()
		h.Billed = &usd
	}
	h.add(o)
	return h
}

// between is what a host has cost from one time to another; known is false when it was not watched all that time.
func (a *accountant) between(id string, from, to time.Time) (usd float64, known bool) {
	m := a.hosts[id]
	if m == nil {
		return 0, false
	}
	m.accrue(id, a.now())
	x, ok := m.at1(from)
	y, ok2 := m.at1(to)
	if !ok || !ok2 {
		return 0, false
	}
	for i := range m.trail {
		if t := &m.trail[i]; t.first && t.at.After(from) && t.at.Before(to) {
			return 0, false
		}
	}
	return y - x, true
}

// at1 is what the host had cost in all by a time.
func (m *metered) at1(t time.Time) (usd float64, known bool) {
	for i := len(m.trail) - 1; i >= 0; i-- {
		a := &m.trail[i]
		if a.at.After(t) {
			continue
		}
		if i == len(m.trail)-1 {
			return a.usd, m.gone || t.Sub(a.at) < time.Second
		}
		b := &m.trail[i+1]
		if span := b.at.Sub(a.at); span > 0 && !b.first {
			return a.usd + (b.usd-a.usd)*float64(t.Sub(a.at))/float64(span), true
		}
		return a.usd, !b.first
	}
	return 0, false
}

// Follow takes in the fleet as it is from now on: what its hosts cost is booked until the next call. It does not keep fleet.
func (b *Books) Follow(fleet []endpoint.Endpoint) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hours.follow(fleet)
}

// Lost notes that attempts have found nobody at a host. If its control plane says soon that it was taken away, then it was paid until now.
func (b *Books) Lost(host endpoint.ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if m := b.hours.hosts[string(host)]; m != nil && m.up > 0 && m.lost.IsZero() {
		m.lost = b.opt.Now()
		b.hours.doubt = m.lost.Add(unwatched)
		m.accrue(string(host), m.lost)
		m.mark(m.lost) // that there is to go back to
	}
}

// answered notes answers of hosts that were taken for lost: they have been there until these ended.
func (a *accountant) answered(r *ledger.Record) {
	for i := range r.Attempts {
		t := &r.Attempts[i]
		end := r.At.Add(t.After + t.Duration)
		m := a.hosts[string(t.Endpoint)]
		if t.Class != outcome.Success || m == nil || m.lost.IsZero() || !end.After(m.lost) {
			continue
		}
		now := a.now()
		if end.After(now) {
			end = now
		}
		m.accrue(string(t.Endpoint), now)
		m.lost = end
		m.bend(end)
	}
}

// Back notes that somebody answers at a host.
func (b *Books) Back(host endpoint.ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if m := b.hours.hosts[string(host)]; m != nil {
		m.lost = time.Time{}
	}
}

// Between is what a host has cost from one time to another, within the last two days; known is false when it was not watched all that time.
func (b *Books) Between(host endpoint.ID, from, to time.Time) (usd float64, known bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.hours.between(string(host), from, to)
}
