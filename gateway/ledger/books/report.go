package books

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Dim is what lines of a report are told apart by.
type Dim string

// Dims.
const (
	ByKey      Dim = "key"
	ByModel    Dim = "model"
	ByServed   Dim = "served"
	ByProvider Dim = "provider"
	ByHost     Dim = "host"
	ByArm      Dim = "arm"
	ByHour     Dim = "hour"
	ByDay      Dim = "day"
)

// Dims returns all of them.
func Dims() []Dim {
	return []Dim{ByKey, ByModel, ByServed, ByProvider, ByHost, ByArm, ByHour, ByDay}
}

// ParseDims reads words such as "model,provider".
func ParseDims(words []string) (by []Dim, err error) {
	for _, w := range words {
		for part := range strings.SplitSeq(w, ",") {
			d := Dim(strings.TrimSpace(part))
			switch {
			case d == "":
			case !slices.Contains(Dims(), d):
				return nil, fmt.Errorf("%q is nothing to report by: want %s", d, list(names(Dims()), func(s string) string { return s }))
			case !slices.Contains(by, d):
				by = append(by, d)
			}
		}
	}
	return by, nil
}

func names(ds []Dim) (ns []string) {
	for _, d := range ds {
		ns = append(ns, string(d))
	}
	return ns
}

// Idle stands in a line's group for what nobody asked for.
const Idle = "(idle)"

// Line is one line of a report.
type Line struct {
	Group []string // values of the report's dims
	Sums
	// IdleUSD is what was paid for hosts while they did nothing, cold starts of workers included: hosts' bills less what of them was used.
	// Each host's is shared out by what was used of it.
	IdleUSD float64
	// BilledUSD is what bills name of Allocated: the rest is an estimate by prices and time, or was paid for tokens.
	BilledUSD float64
}

// Allocated is what the line's share of all bills is, in USD.
func (l *Line) Allocated() float64 { return l.Used() + l.IdleUSD }

// PerMTok is the line's USD per million output tokens in answers; ok is false when there are none.
func (l *Line) PerMTok() (usd float64, ok bool) {
	if n := l.N[OutputTokens]; n > 0 {
		return l.Allocated() / float64(n) * 1e6, true
	}
	return 0, false
}

// Alternative is what the same answers would have cost elsewhere.
type Alternative struct {
	Name   string   `json:"name"` // "all on runpod", "all on vast", "at list price"
	USD    float64  `json:"usd"`
	Tokens int64    `json:"output_tokens"`     // that it covers
	All    int64    `json:"output_tokens_all"` // that there are
	Why    []string `json:"why"`               // how each model was reckoned
}

// Report is what a Period comes to.
type Report struct {
	Since, Until time.Time
	By           []Dim
	Lines        []Line
	Total        Line
	Rented       float64 // USD: what hosts were paid for by time, used or not
	ColdUSD      float64 // of it, for workers' starts, as far as that is known
	BilledUSD    float64 // of Rented, what bills name: the rest is an estimate by prices and time
	EstimatedUSD float64 // what had been estimated where bills name it
	Alternatives []Alternative
	Bills        []Bill // the newest of each account
	Replicas     []string
	Dropped      int64
	Unwatched    time.Duration // of the time in question, when no gateway was there to book hosts' hours
}

// MarshalJSON names every figure.
func (l Line) MarshalJSON() ([]byte, error) {
	m := map[string]any{"group": l.Group}
	for _, f := range l.Figures() {
		m[f.Name] = f.Value
	}
	return json.Marshal(m)
}

// MarshalJSON gives units in every name.
func (r Report) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]any{
		"since": r.Since, "until": r.Until, "by": r.By, "lines": r.Lines, "total": r.Total, "rented_usd": r.Rented, "cold_start_usd": r.ColdUSD,
		"billed_usd": r.BilledUSD, "estimated_usd": r.EstimatedUSD,
		"elsewhere": r.Alternatives, "bills": r.Bills, "ledgers": r.Replicas, "requests_without_details": r.Dropped, "unwatched_seconds": r.Unwatched.Seconds(),
	})
}

// ListPrice is what somebody asks for a model's tokens, in USD per million.
type ListPrice struct {
	In, Cached, Out float64
	Source          string
}

// hostHour names a HostHour.
type hostHour struct {
	hour int64
	host string
}

// Merge adds up what several ledgers have of the same time. Requests add up; a host's hours are booked by every replica that watched it,
// so that whoever booked most of one tells what it cost, and others add what they booked while that one did not run.
func Merge(ps ...Period) Period {
	var out Period
	cells := map[Cell]*Sums{}
	hours := map[hostHour][]watched{}
	prices := map[[2]string]Price{}
	for i, p := range ps {
		if i == 0 || p.Since.Before(out.Since) {
			out.Since = p.Since
		}
		if p.Until.After(out.Until) {
			out.Until = p.Until
		}
		for i := range p.Rollups {
			r := &p.Rollups[i]
			s := cells[r.Cell]
			if s == nil {
				s = new(Sums)
				cells[r.Cell] = s
			}
			s.Add(&r.Sums)
		}
		for _, h := range p.Hours {
			k := hostHour{h.Hour, h.Host}
			hours[k] = append(hours[k], watched{h, i})
		}
		for _, q := range p.Prices {
			k := [2]string{q.Host, q.Served}
			if old, there := prices[k]; !there || q.At.After(old.At) {
				prices[k] = q
			}
		}
		for _, b := range p.Bills {
			if !slices.ContainsFunc(out.Bills, func(o Bill) bool { return o.Account == b.Account && o.AsOf.Equal(b.AsOf) }) {
				out.Bills = append(out.Bills, b)
			}
		}
		out.Runs = append(out.Runs, p.Runs...)
		out.Replicas = append(out.Replicas, p.Replicas...)
		out.Dropped += p.Dropped
	}
	for c, s := range cells {
		out.Rollups = append(out.Rollups, Rollup{c, *s})
	}
	slices.SortFunc(out.Rollups, func(a, b Rollup) int { return compareCells(&a.Cell, &b.Cell) })
	w := watch{ps: ps, of: map[ledgerHour][]Span{}}
	for _, l := range hours {
		out.Hours = append(out.Hours, w.together(l))
	}
	slices.SortFunc(out.Hours, func(a, b HostHour) int { return cmp.Or(cmp.Compare(a.Hour, b.Hour), cmp.Compare(a.Host, b.Host)) })
	for _, q := range prices {
		out.Prices = append(out.Prices, q)
	}
	slices.SortFunc(out.Prices, func(a, b Price) int { return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.Served, b.Served)) })
	slices.SortFunc(out.Bills, func(a, b Bill) int { return a.AsOf.Compare(b.AsOf) })
	return out
}

func compareCells(a, b *Cell) int {
	return cmp.Or(cmp.Compare(a.Hour, b.Hour), cmp.Compare(a.Key, b.Key), cmp.Compare(a.Model, b.Model), cmp.Compare(a.Served, b.Served),
		cmp.Compare(a.Provider, b.Provider), cmp.Compare(a.Host, b.Host), cmp.Compare(a.Arm, b.Arm))
}

// bucket is a host and a stretch of time over which its bill is shared out.
type bucket struct {
	host string
	at   int64
}

// Report sums a period up, by what tells lines apart. List, which may be nil, adds the price of an API of choice.
func (p *Period) Report(by []Dim, listPrice *ListPrice) Report {
	if by == nil {
		by = []Dim{}
	}
	out := Report{Since: p.Since, Until: p.Until, By: by, Lines: []Line{}, Total: Line{Group: []string{}}, Bills: []Bill{}, Alternatives: []Alternative{}, Replicas: p.Replicas, Dropped: p.Dropped}
	span := func(hour int64) int64 { // the finest time that lines tell apart
		switch {
		case slices.Contains(by, ByHour):
			return hour
		case slices.Contains(by, ByDay):
			return hour / 86400
		}
		return 0
	}
	idle := p.idle(span)
	lines := map[string]*Line{}
	line := func(group []string) *Line {
		k := strings.Join(group, "\x00")
		l := lines[k]
		if l == nil {
			l = &Line{Group: group}
			lines[k] = l
		}
		return l
	}
	for i := range p.Rollups {
		r := &p.Rollups[i]
		l := line(group(by, &r.Cell))
		l.Add(&r.Sums)
		if u := idle[bucket{r.Host, span(r.Hour)}]; u != nil && u.used > 0 {
			u.shared = true
			l.IdleUSD += u.idle * r.timed() / u.used
			l.BilledUSD += u.named * r.timed() / u.used
		}
	}
	// What nobody has used belongs to nobody.
	for b, u := range idle {
		if usd := u.idle; !u.shared && usd > 0 {
			l := line(group(by, &Cell{Hour: u.hour, Provider: u.provider, Host: b.host, Key: Idle, Model: Idle, Served: Idle, Arm: Idle}))
			l.IdleUSD += usd
			l.BilledUSD += u.named
		}
	}
	for i := range p.Hours {
		h := &p.Hours[i]
		out.Rented += h.Paid()
		out.ColdUSD += h.ColdUSD
		if h.Billed != nil {
			out.BilledUSD += *h.Billed
			out.EstimatedUSD += h.USD
		}
	}
	for _, l := range lines {
		out.Lines = append(out.Lines, *l)
		out.Total.Add(&l.Sums)
		out.Total.IdleUSD += l.IdleUSD
		out.Total.BilledUSD += l.BilledUSD
	}
	timed := slices.Contains(by, ByHour) || slices.Contains(by, ByDay)
	slices.SortFunc(out.Lines, func(a, b Line) int {
		if timed {
			return slices.Compare(a.Group, b.Group)
		}
		return cmp.Or(cmp.Compare(b.Allocated(), a.Allocated()), slices.Compare(a.Group, b.Group))
	})
	out.Alternatives = append(out.Alternatives, p.alternatives(listPrice)...)
	newest := map[string]int{}
	for _, b := range p.Bills {
		if i, there := newest[b.Account]; there {
			out.Bills[i] = b
			continue
		}
		newest[b.Account] = len(out.Bills)
		out.Bills = append(out.Bills, b)
	}
	out.Unwatched = p.unwatched()
	return out
}

// timed is what of the dollars was used of hosts that are paid for by time.
func (s *Sums) timed() float64 { return s.F[UsedPerHour] + s.F[UsedPerSecond] - s.F[TrafficUSD] }

// usage is what a host was paid and used for.
type usage struct {
	hour       int64
	provider   string
	rent, used float64 // USD
	billed     float64 // of rent: what bills name
	idle       float64 // USD: paid and used by nobody, in no hour
	named      float64 // of what was used or idle, USD that bills name
	shared     bool
}

// give has what was idle here count as used in another hour.
func (u *usage) give(to *usage, usd float64) {
	if usd <= 0 {
		return
	}
	billed := usd * u.billed / u.rent
	u.idle -= usd
	u.named -= billed
	to.named += billed
}

// idle is what hosts were paid and not used for, by host and stretch of time. It is the same in all however time is divided.
func (p *Period) idle(span func(int64) int64) map[bucket]*usage {
	hosts := map[string]map[int64]*usage{}
	for i := range p.Hours {
		h := &p.Hours[i]
		of := hosts[h.Host]
		if of == nil {
			of = map[int64]*usage{}
			hosts[h.Host] = of
		}
		u := of[h.Hour]
		if u == nil {
			u = &usage{hour: h.Hour, provider: h.Provider}
			of[h.Hour] = u
		}
		u.rent += h.Paid()
		if h.Billed != nil {
			u.billed += *h.Billed
		}
	}
	for i := range p.Rollups {
		r := &p.Rollups[i]
		of := hosts[r.Host]
		if of == nil {
			continue
		}
		u := of[r.Hour]
		if u == nil { // nobody watched it in that hour
			u = &usage{hour: r.Hour, provider: r.Provider}
			of[r.Hour] = u
		}
		u.used += r.timed()
	}
	p.unnamed(hosts)
	m := map[bucket]*usage{}
	for host, of := range hosts {
		hours := slices.SortedFunc(maps.Values(of), func(a, b *usage) int { return cmp.Compare(a.hour, b.hour) })
		unused(hours)
		for _, h := range hours {
			b := bucket{host, span(h.hour)}
			u := m[b]
			if u == nil {
				u = &usage{hour: h.hour, provider: h.provider}
				m[b] = u
			}
			u.rent += h.rent
			u.used += h.used
			u.idle += h.idle
			u.named += h.named
		}
	}
	return m
}

// unnamed sets what was used of hosts that there was no room for against what their providers' hosts were paid in that hour and nobody is known to
// have used: it is one of these.
func (p *Period) unnamed(hosts map[string]map[int64]*usage) {
	type place struct {
		hour     int64
		provider string
	}
	used := map[place]float64{} // and not paid
	for i := range p.Rollups {
		if r := &p.Rollups[i]; isOther(r.Host) && r.timed() > 0 {
			used[place{r.Hour, r.Provider}] += r.timed()
		}
	}
	if len(used) == 0 {
		return
	}
	each := func(others bool, fn func(place, *usage)) {
		for host, of := range hosts {
			for hour, u := range of {
				if at := (place{hour, u.provider}); isOther(host) == others && used[at] > 0 {
					fn(at, u)
				}
			}
		}
	}
	each(true, func(at place, u *usage) { used[at] -= min(used[at], u.rent) })
	spare := map[place]float64{}
	each(false, func(at place, u *usage) { spare[at] += max(0, u.rent-u.used) })
	billed := map[place]float64{}
	share := func(at place) float64 { return min(used[at], spare[at]) }
	each(false, func(at place, u *usage) {
		if own := max(0, u.rent-u.used); own > 0 {
			usd := own * share(at) / spare[at]
			named := usd * u.billed / u.rent
			u.rent, u.billed = u.rent-usd, u.billed-named
			billed[at] += named
		}
	})
	each(true, func(at place, u *usage) { u.rent, u.billed = u.rent+share(at), u.billed+billed[at] })
}

// unused finds what of a host's hours, in their order, nobody used. An answer counts in the hour in which it ended, with all it has used:
// where that is more than the hour cost it was in hours before, the nearest first. What is left began before all of them, or in an hour
// that was not watched whole, and is taken off those that follow, so that no more is shared out than was paid.
func unused(hours []*usage) {
	var before []*usage                 // that have some left
	over := make([]float64, len(hours)) // used, and not paid in any hour before
	for i, u := range hours {
		u.idle, u.named = max(0, u.rent-u.used), u.billed
		over[i] = max(0, u.used-u.rent)
		for len(before) > 0 && over[i] > 0 {
			b := before[len(before)-1]
			d := min(over[i], b.idle)
			b.give(u, d)
			if over[i] -= d; b.idle <= 0 {
				before = before[:len(before)-1]
			}
		}
		if u.idle > 0 {
			before = append(before, u)
		}
	}
	from := 0 // the first that has something over
	for i, u := range hours {
		for from < i && u.idle > 0 {
			d := min(over[from], u.idle)
			u.give(hours[from], d)
			if over[from] -= d; over[from] <= 0 {
				from++
			}
		}
	}
}

// none stands for what is empty in a line's group.
const none = "-"

func group(by []Dim, c *Cell) []string {
	g := make([]string, len(by))
	for i, d := range by {
		switch d {
		case ByKey:
			g[i] = c.Key
		case ByModel:
			g[i] = c.Model
		case ByServed:
			g[i] = c.Served
		case ByProvider:
			g[i] = c.Provider
		case ByHost:
			g[i] = c.Host
		case ByArm:
			g[i] = c.Arm
		case ByHour:
			g[i] = time.Unix(c.Hour, 0).UTC().Format("2006-01-02 15:00")
		case ByDay:
			g[i] = time.Unix(c.Hour, 0).UTC().Format(time.DateOnly)
		}
		if g[i] == "" {
			g[i] = none
		}
	}
	return g
}

// unwatched is how much of the period nobody was there, up to the newest sign of life; 0 where there is none.
func (p *Period) unwatched() (d time.Duration) {
	runs := slices.Clone(p.Runs)
	slices.SortFunc(runs, func(a, b Span) int { return a.From.Compare(b.From) })
	seen := p.Since
	for _, r := range runs {
		from, to := r.From, r.To
		if from.Before(p.Since) {
			from = p.Since
		}
		if to.After(p.Until) {
			to = p.Until
		}
		if from.After(seen) {
			d += from.Sub(seen)
		}
		if to.After(seen) {
			seen = to
		}
	}
	return d
}

// alternatives reckons what the period's answers would have cost elsewhere.
func (p *Period) alternatives(listPrice *ListPrice) (as []Alternative) {
	total := p.perModel("")
	if len(total) == 0 {
		return nil
	}
	for _, provider := range []string{"runpod", "vast"} {
		if a := p.elsewhere(total, provider); a.Tokens > 0 {
			as = append(as, a)
		}
	}
	if a := p.atListPrice(total, listPrice); a.Tokens > 0 {
		as = append(as, a)
	}
	return as
}

// modelUse is what one model's answers took.
type modelUse struct {
	Line
	served []string
}

// perModel sums a provider's part up by model; all providers' for "".
func (p *Period) perModel(provider string) map[string]*modelUse {
	idle := p.idle(func(int64) int64 { return 0 })
	m := map[string]*modelUse{}
	for i := range p.Rollups {
		r := &p.Rollups[i]
		if r.Model == "" || provider != "" && r.Provider != provider {
			continue
		}
		u := m[r.Model]
		if u == nil {
			u = &modelUse{}
			m[r.Model] = u
		}
		u.Add(&r.Sums)
		if h := idle[bucket{r.Host, 0}]; h != nil && h.used > 0 {
			u.IdleUSD += h.idle * r.timed() / h.used
		}
		if r.Served != "" && !slices.Contains(u.served, r.Served) {
			u.served = append(u.served, r.Served)
		}
	}
	for name, u := range m {
		if u.N[OutputTokens] == 0 {
			delete(m, name)
		}
	}
	return m
}

func sorted(m map[string]*modelUse) []string {
	ns := make([]string, 0, len(m))
	for n := range m {
		ns = append(ns, n)
	}
	slices.Sort(ns)
	return ns
}

// fewOutput is how many output tokens tell what a model costs at a provider.
const fewOutput = 1000

// elsewhere reckons a provider's hosts for everything: by what they cost per token in this very period where they served the model, idle
// time included, else by what a full engine of the cheapest host asks.
func (p *Period) elsewhere(total map[string]*modelUse, provider string) Alternative {
	a := Alternative{Name: "all on " + provider}
	there := p.perModel(provider)
	for _, model := range sorted(total) {
		u := total[model]
		n := u.N[OutputTokens]
		a.All += n
		if t := there[model]; t != nil && t.N[OutputTokens] >= fewOutput && t.Allocated() > 0 {
			rate := t.Allocated() / float64(t.N[OutputTokens])
			a.USD += rate * float64(n)
			a.Tokens += n
			a.Why = append(a.Why, fmt.Sprintf("%s: $%.4g per million output tokens, as its %d there cost in this time, idle hours included", model, rate*1e6, t.N[OutputTokens]))
			continue
		}
		best := p.cheapest(u.served, func(q *Price) bool { return q.Provider == provider && q.Out > 0 && q.Basis != "per_token" })
		if best == nil {
			a.Why = append(a.Why, model+": none of its hosts serves it, left out")
			continue
		}
		a.USD += best.Out / 1e6 * float64(n)
		a.Tokens += n
		a.Why = append(a.Why, fmt.Sprintf("%s: $%.4g per million output tokens, what %s would cost always full (%s, as of %s): no less than that", model, best.Out, best.Host, best.Source,
			best.At.UTC().Format("2006-01-02 15:04")))
	}
	return a
}

func (p *Period) cheapest(served []string, fits func(*Price) bool) (best *Price) {
	for i := range p.Prices {
		q := &p.Prices[i]
		if fits(q) && slices.Contains(served, q.Served) && (best == nil || q.Out < best.Out) {
			best = q
		}
	}
	return best
}

// atListPrice reckons an API for everything: the fleet's own that serves the model and is paid by tokens, else the one that is configured.
func (p *Period) atListPrice(total map[string]*modelUse, listPrice *ListPrice) Alternative {
	a := Alternative{Name: "at list price"}
	for _, model := range sorted(total) {
		u := total[model]
		n := u.N[OutputTokens]
		a.All += n
		var l ListPrice
		if q := p.cheapest(u.served, func(q *Price) bool { return q.Basis == "per_token" }); q != nil {
			l = ListPrice{q.In, q.Cached, q.Out, q.Host + ", " + q.Source}
		} else if listPrice != nil {
			l = *listPrice
		} else {
			a.Why = append(a.Why, model+": nobody in the fleet is paid by its tokens, and ledger.list_price is not set: left out")
			continue
		}
		cached := min(u.N[CachedTokens], u.N[PromptTokens])
		a.USD += (float64(u.N[PromptTokens]-cached)*l.In + float64(cached)*l.Cached + float64(n)*l.Out) / 1e6
		a.Tokens += n
		a.Why = append(a.Why, fmt.Sprintf("%s: $%.4g in, $%.4g cached and $%.4g out per million tokens (%s)", model, l.In, l.Cached, l.Out, l.Source))
	}
	return a
}
