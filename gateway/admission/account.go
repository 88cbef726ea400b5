package admission

import (
	"math"
	"sync"
	"time"
)

// account is what a key has used. It belongs to the key's ID and outlives its changes.
type account struct {
	id   string
	gone time.Time // no key has had the ID since; zero while one has. The gate's mu guards it

	mu       sync.Mutex // guards all below
	requests bucket
	tokens   bucket
	running  int64
	spent    spending // as far as everybody knows: the store's or Redis' figures
	unsaved  spending // what came here since, and is not in spent
	reserved int64    // billionths of a US dollar that the running requests are expected to cost
	output   mean     // tokens of an answer
	longest  float64  // tokens of the longest answer, fading
	cost     mean     // billionths of a US dollar of a request
	took     mean     // nanoseconds of a request
	prices   prices
	warned   window // of the soft limit that the log has told of
	share    share
}

// minute is what limits are counted by.
const minute = int64(time.Minute)

// bucket is a token bucket that holds a minute's worth, by the generic cell rate algorithm: it is kept as the time at which it will be
// full again, so that it needs no filling. The zero value is full.
type bucket struct{ full int64 } // nanoseconds of the gate's clock

// cost is how much later a bucket of limit a minute is full when n are taken.
func cost(n, limit int64) int64 {
	return int64(math.Round(float64(n) * float64(minute) / float64(limit)))
}

// wait is how long it takes until n can be taken; 0 for now.
func (b bucket) wait(now, n, limit int64) int64 {
	return max(0, max(b.full, now)+cost(n, limit)-now-minute)
}

// take takes n, whether they are there or not; a negative n gives back. A limit of 0 is none.
func (b *bucket) take(now, n, limit int64) {
	if limit > 0 {
		b.full = max(b.full, now) + cost(n, limit)
	}
}

// left is how many there are, 0 where more were taken than there were.
func (b bucket) left(now, limit int64) int64 {
	gone := min(max(0, b.full-now), minute)
	return int64(float64(limit)*float64(minute-gone)/float64(minute) + 1e-6)
}

// mean is an average that forgets: the newest few dozen count.
type mean struct {
	v float64
	n float64
}

const meanOf = 64

// of returns the average, or prior where nothing is known.
func (m *mean) of(prior float64) float64 {
	if m.n == 0 {
		return prior
	}
	return m.v
}

func (m *mean) add(v float64) {
	m.n = min(m.n+1, meanOf)
	m.v += (v - m.v) / m.n
}

// ratio is of two sums that forget: the newest few dozen count, each by its size.
type ratio struct{ over, under, n float64 }

// of returns the ratio, 0 where nothing is known.
func (r *ratio) of() float64 {
	if !(r.under > 0) { //nolint:staticcheck // NaN is not above 0 either
		return 0
	}
	return r.over / r.under
}

func (r *ratio) add(over, under float64) {
	if under <= 0 {
		return
	}
	const keep = 1 - 1./meanOf
	r.over, r.under, r.n = r.over*keep+over, r.under*keep+under, min(r.n+1, meanOf)
}

// begin has the ratio of an earlier process count until something is known; 0 is none.
func (r *ratio) begin(was float64) {
	if r.n == 0 && was > 0 {
		*r = ratio{was, 1, knownOf} // the next request weighs more
	}
}

// window is a stretch of time that a budget is for.
type window uint8

const (
	noWindow window = 0
	perDay   window = 1
	perMonth window = 2
	inTotal  window = 4
)

// spending is what was spent today, this month and ever, in billionths of a US dollar.
type spending struct {
	Day   int32 `json:"day"`   // since 1970, UTC
	Month int32 `json:"month"` // since year 0, UTC
	InDay int64 `json:"nano_usd_today"`
	InMon int64 `json:"nano_usd_month"`
	Total int64 `json:"nano_usd_total"`
	// PerPrompt and PerOutput are what a token of a prompt and one of an answer have cost lately, in billionths of a US dollar, 0 for unknown.
	// They are kept in the store, and of no use in between.
	PerPrompt float64 `json:"nano_usd_per_prompt_token,omitempty"`
	PerOutput float64 `json:"nano_usd_per_output_token,omitempty"`
}

// on says what day and month it is.
func on(now time.Time) (day, month int32) {
	now = now.UTC()
	days := now.Unix() / 86400
	return int32(days), int32(now.Year()*12) + int32(now.Month()) - 1 //nolint:gosec // until the year 5 million
}

// roll begins a new day and month where it is time.
func (s *spending) roll(day, month int32) {
	if day > s.Day {
		s.Day, s.InDay = day, 0
	}
	if month > s.Month {
		s.Month, s.InMon = month, 0
	}
}

// unwind ends a day or month that only a clock which was ahead has begun. What was spent counts as today's.
func (s *spending) unwind(day, month int32) {
	if s.Day > day+1 {
		s.Day = day
	}
	if s.Month > month+1 {
		s.Month = month
	}
}

// book adds one amount.
func (s *spending) book(nano int64) {
	s.InDay += nano
	s.InMon += nano
	s.Total += nano
}

// ends is when the day or month of now is over.
func (w window) ends(now time.Time) time.Time {
	now = now.UTC()
	switch w {
	case perDay:
		return time.Date(now.Year(), now.Month(), now.Day()+1, 0, 0, 0, 0, time.UTC)
	case perMonth:
		return time.Date(now.Year(), now.Month()+1, 1, 0, 0, 0, 0, time.UTC)
	case noWindow, inTotal:
	}
	return time.Time{}
}

// String returns the window's word in messages.
func (w window) String() string {
	switch w {
	case perDay:
		return "day"
	case perMonth:
		return "month"
	case inTotal:
		return "total"
	case noWindow:
	}
	return ""
}
