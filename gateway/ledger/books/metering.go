package books

import (
	"maps"
	"slices"
	"time"
)

// metering is what a host's meter has had booked. Until a look confirms it, that is a guess which the next one may take back from the hours that
// it went to. No hour has less than nothing: what it cannot give back those before it do.
type metering struct {
	from  time.Time // what the next look confirms began then
	ahead map[int64]part
	had   map[int64]part // each hour in all, of the last trailKept
	owed  part           // to give back, which none of them had
}

// part is what was booked in an hour.
type part struct {
	up, usd, cold float64 // worker seconds; US dollars, cold are those of starts
}

// reread begins anew with what the meter shows at now, of which it is not known what is new.
func (m *metered) reread(now time.Time) {
	m.read = m.meter.Read(now)
	m.metering.from, m.metering.ahead = now, nil
}

// course is how what a host cost has grown, as the newest look has it: by first from since until left, when those that went had gone, by rest
// from since until seen, the look, and by what is taken to have been since.
type course struct {
	since, left, seen time.Time
	first, rest       float64 // USD
}

// booking books what the meter shows more than at the last booking, d ago, and returns what it costs. What it has corrected since may be more
// than what has come, so that it may be below 0; grown tells then how it came about.
func (m *metered) booking(id string, now time.Time, d time.Duration) (usd float64, grown course) {
	k := &m.metering
	if k.had == nil {
		k.had = map[int64]part{}
	}
	r := m.meter.Read(now)
	seen, cold := r.Seconds-m.read.Seconds, (r.Cold-m.read.Cold)*m.rate
	m.hours(now.Add(-d), now, func(at time.Time, part time.Duration) { m.slot(id, at).Seconds += part.Seconds() })
	m.slot(id, now).Starts += r.Starts - m.read.Starts
	from, fresh := now.Add(-d), r.Ahead-m.read.Ahead
	began := r.At // what was found out between looks is of the time before the last
	if r.At.After(m.read.At) {
		for _, hour := range slices.Sorted(maps.Keys(k.ahead)) {
			p := k.ahead[hour]
			m.put(id, hour, part{up: -p.up, usd: -p.usd})
			seen += p.up
			usd -= p.usd
		}
		clear(k.ahead)
		began, from, fresh = k.from, r.At, r.Ahead
		k.from = r.At
	}
	seen -= fresh
	if gap, stayed := r.At.Sub(began), float64(r.Up); gap > 0 && r.Up < m.read.Up { // those that went were there first
		first := seen - stayed*gap.Seconds()
		left := began.Add(time.Duration(first / (float64(m.read.Up) - stayed) * float64(time.Second)))
		if first > 0 && left.Before(r.At) {
			grown.left, grown.first = left, m.confirm(id, began, left, part{first, first * m.rate, 0})
			usd += grown.first
			seen -= first
		}
	}
	grown.since, grown.seen, grown.rest = began, r.At, m.confirm(id, began, r.At, part{seen, seen * m.rate, cold})
	usd += grown.rest
	m.read = r
	if k.ahead == nil {
		k.ahead = map[int64]part{}
	}
	if whole := now.Sub(from); whole > 0 && fresh > 0 {
		m.hours(from, now, func(at time.Time, d time.Duration) {
			p := part{up: fresh * float64(d) / float64(whole)}
			p.usd = p.up * m.rate
			h := hourOf(at)
			k.ahead[h] = k.ahead[h].plus(p)
			m.put(id, h, p)
			usd += p.usd
		})
	}
	before := hourOf(now.Add(-trailKept))
	maps.DeleteFunc(k.had, func(h int64, _ part) bool { return h < before })
	return usd, grown
}

// confirm books p, of the time from one moment to another, and returns what it costs.
func (m *metered) confirm(id string, from, to time.Time, p part) (usd float64) {
	k := &m.metering
	p = p.plus(k.owed)
	k.owed = part{}
	if p.up > 0 {
		each := func(at time.Time, f float64) { m.put(id, hourOf(at), part{up: p.up * f, usd: p.usd * f}) }
		if whole := to.Sub(from); whole > 0 {
			m.hours(from, to, func(at time.Time, d time.Duration) { each(at, float64(d)/float64(whole)) })
		} else {
			each(to, 1)
		}
		usd += p.usd
		p.up, p.usd = 0, 0
	}
	if p.cold > 0 {
		m.put(id, hourOf(to), part{cold: p.cold})
		p.cold = 0
	}
	hours := slices.Sorted(maps.Keys(k.had))
	for _, h := range slices.Backward(hours) { // the newest first
		var back part
		had := k.had[h]
		if p.up < 0 && had.up > 0 {
			back.up = max(p.up, -had.up)
			back.usd = had.usd * back.up / had.up
			p.usd -= p.usd * back.up / p.up
			p.up -= back.up
			usd += back.usd
		}
		if p.cold < 0 {
			back.cold = max(p.cold, -had.cold)
			p.cold -= back.cold
		}
		m.put(id, h, back)
	}
	k.owed = p
	return usd
}

// put books p in an hour.
func (m *metered) put(id string, hour int64, p part) {
	if p == (part{}) {
		return
	}
	s := m.slot(id, time.Unix(hour, 0))
	s.Up += p.up
	s.USD += p.usd
	s.ColdUSD += p.cold
	m.metering.had[hour] = m.metering.had[hour].plus(p)
}

func (p part) plus(o part) part { return part{p.up + o.up, p.usd + o.usd, p.cold + o.cold} }

// level has the trail show how the host came to have cost usd by now, which is less than was booked: as g says, and nowhere more than that.
func (m *metered) level(g *course, now time.Time, usd float64) {
	base, known := m.at1(g.since)
	if !known {
		base = m.trail[len(m.trail)-1].usd
	}
	base = min(base, usd)
	for _, at := range []time.Time{g.since, g.left, g.seen} { // where it bends
		m.bend(at)
	}
	for i := range m.trail {
		t := &m.trail[i]
		if t.at.After(g.since) {
			x := base + g.first*share(g.since, g.left, t.at) + g.rest*share(g.since, g.seen, t.at)
			t.usd = max(base, x+(usd-base-g.first-g.rest)*share(g.seen, now, t.at))
		}
		t.usd = min(t.usd, usd)
	}
}

// share is how much of the time from one moment to another is over at t, in [0, 1].
func share(from, to, t time.Time) float64 {
	if !t.Before(to) {
		return 1
	}
	return max(0, float64(t.Sub(from))/float64(to.Sub(from)))
}
