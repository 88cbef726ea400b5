package api

import (
	"log/slog"
	"math"
	"math/rand/v2"
	"time"

	"headrace/router/endpoint"
)

// Bill is what the provider billed for a while, beside what its own prices and the time that things were up come to.
type Bill struct {
	From        time.Time `json:"from"`
	To          time.Time `json:"to"`
	BilledUSD   float64   `json:"billed_usd"`
	ExpectedUSD float64   `json:"expected_usd"`
	// ErrorPercent is how much more was billed than expected, below 0 for less; 100 where nothing was expected.
	ErrorPercent float64 `json:"error_percent"`
	// OtherUSD was billed for what no price and time tell: traffic, fees, disks of workers. It is not compared.
	OtherUSD float64 `json:"other_usd"`
	Compared int     `json:"compared"` // instances, endpoints and pods
	// LeftOut are those that were billed, or should have been, and are not compared: not watched all the time, of unknown
	// price, or not billed yet.
	LeftOut int `json:"left_out"`
	// Worst is the one that is furthest off, and WorstUSD by how much.
	Worst    string  `json:"worst,omitempty"`
	WorstUSD float64 `json:"worst_usd,omitempty"`

	AsOf       time.Time `json:"as_of"` // when the bill was read; zero: not yet
	AgeSeconds float64   `json:"age_seconds"`
	LastError  string    `json:"last_error,omitempty"` // why the last bill could not be read

	// Parts are what BilledUSD is made of. Nobody changes them.
	Parts []BillPart `json:"-"`
}

// BillPart is what was billed for one thing for a while, without what is in OtherUSD.
type BillPart struct {
	Endpoint endpoint.ID
	From, To time.Time
	USD      float64
}

// Take adds one thing to the comparison.
func (b *Bill) Take(id string, billed, expected float64) {
	b.BilledUSD += billed
	b.ExpectedUSD += expected
	b.Compared++
	if d := billed - expected; math.Abs(d) > math.Abs(b.WorstUSD) {
		b.Worst, b.WorstUSD = id, d
	}
}

// A bill that is off by more than both is worth a line in the log.
const (
	billPercent = 10
	billUSD     = 0.05
)

func (b *Bill) off() bool {
	return math.Abs(b.ErrorPercent) > billPercent && math.Abs(b.BilledUSD-b.ExpectedUSD) > billUSD
}

// Audit compares bills with what a Book expects, at most once an hour. Its owner's one goroutine uses it.
type Audit struct {
	Book Book
	Next time.Time // when the next bill is due; zero for not planned
	Busy bool      // one is being read

	warned float64 // ErrorPercent as it was warned of, 0 when it was not
	failed string  // last error that was logged
}

// BillEvery is the least time between two bills.
const BillEvery = time.Hour

// Plan sets Next to some time within spread from at: replicas and accounts should not ask all at once.
func (a *Audit) Plan(at time.Time, spread time.Duration) {
	a.Next = at.Add(time.Duration(rand.Int64N(int64(spread)))) //nolint:gosec // spreads questions, guards nothing
}

// Settle completes b, which was read at now, and logs when it is off, once per change. old is the one before, nil for none;
// it stays when err says why there is no new one.
func (a *Audit) Settle(log *slog.Logger, old *Bill, b Bill, err error, now time.Time) *Bill {
	if err != nil {
		kept := Bill{}
		if old != nil {
			kept = *old
		}
		kept.LastError = err.Error()
		if a.failed != kept.LastError {
			a.failed = kept.LastError
			log.Warn("the bill cannot be read; prices are not compared with it", "error", err)
		}
		return &kept
	}
	b.AsOf, a.failed = now, ""
	switch {
	case b.ExpectedUSD > 0:
		b.ErrorPercent = 100 * (b.BilledUSD - b.ExpectedUSD) / b.ExpectedUSD
	case b.BilledUSD > 0:
		b.ErrorPercent = 100
	}
	switch {
	case b.off() && (a.warned == 0 || math.Abs(b.ErrorPercent-a.warned) > billPercent):
		a.warned = b.ErrorPercent
		log.Warn("the bill is not what prices and time come to", "billed_usd", cents(b.BilledUSD), "expected_usd", cents(b.ExpectedUSD),
			"error_percent", math.Round(b.ErrorPercent), "from", b.From, "to", b.To, "worst", b.Worst, "worst_usd", cents(b.WorstUSD))
	case !b.off() && a.warned != 0:
		a.warned = 0
		log.Info("the bill is what prices and time come to again", "billed_usd", cents(b.BilledUSD), "expected_usd", cents(b.ExpectedUSD))
	}
	return &b
}

func cents(usd float64) float64 { return math.Round(usd*1e4) / 1e4 }

// Aged returns a copy with its age at now; nil of nil.
func (b *Bill) Aged(now time.Time) *Bill {
	if b == nil || b.AsOf.IsZero() {
		return b
	}
	c := *b
	c.AgeSeconds = math.Round(now.Sub(b.AsOf).Seconds())
	return &c
}

const (
	bookSlot = 15 * time.Minute // within one, costs count as spread evenly
	bookKeep = 26 * time.Hour
	// bookGap is how long a thing may go unseen: what it was meanwhile is not known, so that it counts as watched anew.
	bookGap = 10 * time.Minute
)

// Book keeps what each thing should have cost, by the prices and states that were seen of it. The zero value is empty.
type Book struct {
	things map[string]*entry
}

// entry is one thing's account.
type entry struct {
	since, at  time.Time // watched from when until when
	usdPerHour float64   // since at
	gone       bool
	slots      map[int64]float64 // USD, by begin in Unix seconds
}

// Rate notes that a thing was seen at now and costs usdPerHour from then on; NaN when its price is not known.
func (b *Book) Rate(id string, now time.Time, usdPerHour float64) {
	e := b.things[id]
	switch {
	case math.IsNaN(usdPerHour):
		delete(b.things, id)
		return
	case e == nil || e.gone || now.Sub(e.at) > bookGap:
		if b.things == nil {
			b.things = map[string]*entry{}
		}
		b.things[id] = &entry{since: now, at: now, usdPerHour: usdPerHour, slots: map[int64]float64{}}
		return
	}
	e.accrue(now)
	e.usdPerHour = usdPerHour
}

// Gone notes that a thing is no more. What it has cost stays for a day.
func (b *Book) Gone(id string, now time.Time) {
	if e := b.things[id]; e != nil {
		e.accrue(now)
		e.usdPerHour, e.gone = 0, true
	}
}

// Add books what a thing cost at once, such as a start.
func (b *Book) Add(id string, now time.Time, usd float64) {
	if e := b.things[id]; e != nil {
		e.slots[slotOf(now).Unix()] += usd
	}
}

func slotOf(t time.Time) time.Time { return t.UTC().Truncate(bookSlot) }

func (e *entry) accrue(now time.Time) {
	for e.at.Before(now) {
		slot := slotOf(e.at)
		to := earliest(now, slot.Add(bookSlot))
		e.slots[slot.Unix()] += to.Sub(e.at).Hours() * e.usdPerHour
		if e.at = to; len(e.slots) > int(bookKeep/bookSlot) {
			for k := range e.slots {
				if k < now.Add(-bookKeep).Unix() {
					delete(e.slots, k)
				}
			}
		}
	}
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// Since tells from when on a thing has been watched without a gap; ok is false when it is not.
func (b *Book) Since(id string) (since time.Time, ok bool) {
	if e := b.things[id]; e != nil {
		return e.since, true
	}
	return since, false
}

// Between returns what a thing should have cost from one time to another; ok is false when it was not watched all that time.
func (b *Book) Between(id string, from, to time.Time) (usd float64, ok bool) {
	e := b.things[id]
	if e == nil || e.since.After(from) || !e.gone && to.Sub(e.at) > bookGap {
		return 0, false
	}
	for k, v := range e.slots {
		begin := time.Unix(k, 0)
		end := earliest(begin.Add(bookSlot), latest(e.at, begin.Add(time.Nanosecond))) // the last one is not full yet
		begin = earliest(latest(begin, e.since), end.Add(-time.Nanosecond))
		if part := earliest(end, to).Sub(latest(begin, from)); part > 0 {
			usd += v * float64(part) / float64(end.Sub(begin))
		}
	}
	if rest := to.Sub(latest(e.at, from)); rest > 0 {
		usd += rest.Hours() * e.usdPerHour
	}
	return usd, true
}

// Things returns the ids of all that is watched, or was within a day, and drops the rest.
func (b *Book) Things(now time.Time) []string {
	ids := make([]string, 0, len(b.things))
	for id, e := range b.things {
		if now.Sub(e.at) > bookKeep {
			delete(b.things, id)
			continue
		}
		ids = append(ids, id)
	}
	return ids
}
