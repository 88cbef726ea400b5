package books

import (
	"maps"
	"slices"
	"time"
)

// memory is where everything stays without a file. One goroutine uses it.
type memory struct {
	sums  cells
	hours map[hostHour]HostHour
	most  int // of hours
	bills []Bill
	began time.Time
}

// stay keeps in memory what a file would have, all for as long as it may stay.
func (b *Books) stay(at time.Time) {
	bills, billed := b.bills.take()
	var sums cells
	b.mu.Lock()
	if n := len(b.sums.of); n > 0 {
		sums = b.swap(newCells(b.sums.most, n))
	}
	hours := b.hours.take(at)
	b.mu.Unlock()
	m := &b.kept
	for c, e := range sums.of {
		m.sums.at(&c).Add(&e.Sums)
	}
	for i := range hours {
		m.add(&hours[i])
	}
	for i := range billed {
		from, to := billed[i].hours()
		for h := from; h < to; h += 3600 {
			k := hostHour{h, string(billed[i].Host)}
			if s, there := m.hours[k]; there {
				usd := billed[i].of(s.USD)
				s.Billed = &usd
				m.hours[k] = s
			}
		}
	}
	if m.bills = append(m.bills, bills...); len(m.bills) > mostBills {
		m.bills = slices.Delete(m.bills, 0, len(m.bills)-mostBills)
	}
	if at.Sub(b.f.tidiedAt) < tidyEvery {
		return
	}
	b.f.tidiedAt = at
	if b.opt.KeepSums > 0 {
		before := hourOf(at.Add(-b.opt.KeepSums))
		maps.DeleteFunc(m.sums.of, func(c Cell, _ *entry) bool { return c.Hour < before })
		maps.DeleteFunc(m.hours, func(k hostHour, _ HostHour) bool { return k.hour < before })
	}
	m.fold()
}

func (m *memory) add(h *HostHour) {
	k := hostHour{h.Hour, h.Host}
	s, there := m.hours[k]
	if !there {
		s = HostHour{Hour: h.Hour, Provider: h.Provider, Host: h.Host}
	}
	s.add(h)
	m.hours[k] = s
}

// fold counts hosts' hours under their providers where there are too many, the oldest first, and what was used of them likewise. It is done now and
// then: a fleet has few at once.
func (m *memory) fold() {
	enough := m.most - m.most/20
	if len(m.hours) <= m.most {
		return
	}
	keys := slices.SortedFunc(maps.Keys(m.hours), func(a, b hostHour) int { return int(a.hour/3600 - b.hour/3600) })
	last := int64(0)
	for i := 0; i < len(keys) && len(m.hours) > enough; {
		last = keys[i].hour
		for hour := last; i < len(keys) && keys[i].hour == hour; i++ {
			h := m.hours[keys[i]]
			if isOther(h.Host) {
				continue
			}
			delete(m.hours, keys[i])
			h.Host = otherHost(h.Provider)
			k := hostHour{h.Hour, h.Host}
			if other, there := m.hours[k]; there {
				h = h.plus(&other)
			}
			m.hours[k] = h
		}
	}
	m.sums.merge(0, last, unnameHost)
}

// period adds what there is of some hours to p.
func (m *memory) period(p *Period, now time.Time) {
	in := p.within()
	for c, e := range m.sums.of {
		if in(c.Hour) {
			p.Rollups = append(p.Rollups, Rollup{c, e.Sums})
		}
	}
	for k, h := range m.hours {
		if in(k.hour) {
			p.Hours = append(p.Hours, h)
		}
	}
	p.Bills = append(p.Bills, m.bills...)
	p.Runs = append(p.Runs, Span{m.began, now})
	p.Replicas = []string{"memory"}
}

// within tells of which hours the period has a moment.
func (p *Period) within() func(hour int64) bool {
	from, to := hourOf(p.Since), secondOf(p.Until)
	return func(hour int64) bool { return hour >= from && hour < to }
}
