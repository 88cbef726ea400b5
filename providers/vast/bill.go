package vast

import (
	"context"
	"math"
	"time"

	"headrace/providers/api"
	"headrace/router/endpoint"
)

// books compare charges with prices. Charges come by the day, so that two readings of the same days are compared with each other:
// what was billed between them.
type books struct {
	api.Audit
	base *chargeSheet // the first reading of these days
}

// chargeSheet is what was billed of each instance since from.
type chargeSheet struct {
	from, at time.Time
	usd      map[endpoint.ID]float64 // for GPU and disk, as far as the bill tells
	other    map[endpoint.ID]float64
	until    map[endpoint.ID]time.Time // up to when; zero where the bill does not say
}

const (
	billSpread = 5 * time.Minute // some time within which bills are read is drawn
	sheetFor   = 24 * time.Hour  // a base older than that is replaced
)

// accrues is what is due for the instance in the state that it is in: nothing while it is offline, its disk alone while it is not running
// (docs.vast.ai/guides/reference/billing).
func (r *row) accrues() endpoint.Accrual {
	switch cur := r.Cur.word(); r.Actual.word() {
	case "offline", "unknown":
		return endpoint.AccruesNothing
	case "running", "frozen":
		if cur == "" || cur == "running" {
			return endpoint.AccruesRent
		}
	}
	return endpoint.AccruesDisk
}

// usdPerHour is what the instance costs in the state that it is in, without traffic; NaN when that is not known.
func (r *row) usdPerHour() float64 {
	pr := r.price(time.Time{})
	if pr.Basis != endpoint.PerHour {
		return math.NaN()
	}
	switch pr.Accrues {
	case endpoint.AccruesNothing:
		return 0
	case endpoint.AccruesDisk:
		return pr.USDPerHourStopped
	case endpoint.AccruesRent, endpoint.AccruesUnknown:
	}
	return pr.USDPerHour
}

// book notes what each instance costs now, after the account was read whole.
func (f *fleet) book(now time.Time) {
	b := f.p.books
	for id, h := range f.hosts {
		b.Book.Rate(string(endpointID(id)), now, h.row.usdPerHour())
	}
	if b.Next.IsZero() {
		b.Plan(now.Add(time.Minute), billSpread)
	}
}

// bill reads the charges when they are due, and returns when they will be.
func (f *fleet) bill(ctx context.Context, now time.Time) time.Time {
	b := f.p.books
	switch {
	case b.Busy || b.Next.IsZero() || len(f.hosts) == 0:
		return now.Add(time.Hour)
	case b.Next.After(now):
		return b.Next
	}
	b.Busy = true
	b.Plan(now.Add(api.BillEvery), billSpread)
	from := now.UTC().Truncate(24 * time.Hour)
	if b.base != nil && now.Sub(b.base.at) <= sheetFor {
		from = b.base.from
	}
	f.beside(ctx, func() func() {
		charges, err := f.p.Charges(ctx, from, now)
		return func() {
			b.Busy = false
			f.reconcile(sheet(charges, from, now), err)
		}
	})
	return now.Add(time.Hour)
}

func sheet(charges []Charge, from, at time.Time) *chargeSheet {
	s := &chargeSheet{from, at, map[endpoint.ID]float64{}, map[endpoint.ID]float64{}, map[endpoint.ID]time.Time{}}
	for i := range charges {
		c := &charges[i]
		usd, told := 0.0, false
		for _, it := range c.Items {
			if it.Kind == "gpu" || it.Kind == "disk" {
				usd, told = usd+it.USD, true
			}
		}
		if !told {
			usd = c.USD
		}
		s.usd[c.ID] += usd
		s.other[c.ID] += c.USD - usd
		if c.To.After(s.until[c.ID]) {
			s.until[c.ID] = c.To
		}
	}
	return s
}

// reconcile compares a reading with the base, or makes it the base.
func (f *fleet) reconcile(s *chargeSheet, err error) {
	p, b := f.p, f.p.books
	p.mu.Lock()
	old := p.status.Bill
	p.mu.Unlock()
	var done *api.Bill
	switch base := b.base; {
	case err != nil:
		done = b.Settle(p.log, old, api.Bill{}, err, s.at)
	case base == nil || !base.from.Equal(s.from):
		b.base = s
		if old == nil {
			return
		}
		c := *old
		c.LastError, done = "", &c
	default:
		bill, watched := b.compare(s)
		if done = old; !watched { // there was a gap in all that is known
			b.base = s
		} else {
			done = b.Settle(p.log, old, bill, nil, s.at)
		}
	}
	p.mu.Lock()
	p.status.Bill = done
	p.mu.Unlock()
}

// compare sets what was billed between the base and s against what is expected for the same time. watched is false when none of
// the instances has been watched since the base.
func (b *books) compare(s *chargeSheet) (bill api.Bill, watched bool) {
	bill = api.Bill{From: b.base.at, To: s.at}
	for _, id := range b.Book.Things(s.at) {
		eid := endpoint.ID(id)
		since, _ := b.Book.Since(id)
		before, known := b.base.usd[eid]
		from, to := b.base.at, s.at
		if known {
			if at := b.base.until[eid]; !at.IsZero() && at.Before(from) { // billed that far then
				from = at
			}
			if late := since.Sub(from); late > 0 && late < 5*time.Minute { // seen a little later than it was billed until
				from = since
			}
		} else if since.After(from) { // rented since
			from = since
		}
		if at := s.until[eid]; !at.IsZero() && at.Before(to) {
			to = at
		}
		expected, ok := b.Book.Between(id, from, to)
		watched = watched || ok
		billed := s.usd[eid] - before
		if !ok || billed == 0 && expected > 0 { // not billed yet
			bill.LeftOut++
			continue
		}
		bill.Take(id, billed, expected)
		bill.Parts = append(bill.Parts, api.BillPart{Endpoint: eid, From: from, To: to, USD: billed})
		bill.OtherUSD += s.other[eid] - b.base.other[eid]
	}
	return bill, watched
}
