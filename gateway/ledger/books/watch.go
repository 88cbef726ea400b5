package books

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// watched is a host's hour as one of several ledgers has it.
type watched struct {
	HostHour
	ledger int
}

// ledgerHour is an hour of one of them.
type ledgerHour struct {
	ledger int
	hour   int64
}

// watch tells when the gateways of several ledgers ran.
type watch struct {
	ps []Period
	of map[ledgerHour][]Span // in order, apart from each other
}

// together is what a host's hour comes to as several ledgers have it. What one has booked while another ran that has it too, is the same
// money; what it booked while none of them did, as before and after a restart with a new file, is not. Within its time a ledger's
// figures are taken as even.
func (w *watch) together(l []watched) HostHour {
	if len(l) == 1 {
		return l[0].HostHour
	}
	slices.SortFunc(l, func(a, b watched) int {
		return cmp.Or(cmp.Compare(b.USD, a.USD), cmp.Compare(b.Seconds, a.Seconds), cmp.Compare(a.ledger, b.ledger))
	})
	h := l[0].HostHour
	seen := w.spans(l[0].ledger, h.Hour)
	for i := range l[1:] {
		o := &l[1+i]
		if h.Billed == nil {
			h.Billed = o.Billed // of the whole hour, whoever watched
		}
		own := w.spans(o.ledger, h.Hour)
		all := joined(append(slices.Clone(seen), own...))
		ran := length(own)
		if ran <= 0 || o.Seconds <= 0 {
			continue
		}
		// A run's line begins with its first write, and what it watched a moment before: no host is watched for longer than somebody ran.
		part := min(float64(length(all)-length(seen))/float64(ran), max(0, length(all).Seconds()-h.Seconds)/o.Seconds)
		h.Seconds += part * o.Seconds
		h.Up += part * o.Up
		h.USD += part * o.USD
		h.Starts += int64(math.Round(part * float64(o.Starts)))
		h.ColdUSD += part * o.ColdUSD
		seen = all
	}
	return h
}

// spans are when a ledger's gateways ran within an hour.
func (w *watch) spans(ledger int, hour int64) []Span {
	k := ledgerHour{ledger, hour}
	s, there := w.of[k]
	if there {
		return s
	}
	begin, end := time.Unix(hour, 0), time.Unix(hour+3600, 0)
	for _, r := range w.ps[ledger].Runs {
		if r.From.Before(begin) {
			r.From = begin
		}
		if r.To.After(end) {
			r.To = end
		}
		if r.From.Before(r.To) {
			s = append(s, r)
		}
	}
	s = joined(s)
	w.of[k] = s
	return s
}

// joined makes one of spans that overlap, in place.
func joined(s []Span) []Span {
	slices.SortFunc(s, func(a, b Span) int { return a.From.Compare(b.From) })
	out := s[:0]
	for _, r := range s {
		if n := len(out); n > 0 && !r.From.After(out[n-1].To) {
			if r.To.After(out[n-1].To) {
				out[n-1].To = r.To
			}
			continue
		}
		out = append(out, r)
	}
	return out
}

func length(s []Span) (d time.Duration) {
	for _, r := range s {
		d += r.To.Sub(r.From)
	}
	return d
}

// Same tells whether two periods are of one ledger: no two gateways begin in the same microsecond.
func Same(p, q *Period) bool {
	return slices.ContainsFunc(p.Runs, func(r Span) bool {
		return slices.ContainsFunc(q.Runs, func(o Span) bool { return r.From.Equal(o.From) })
	})
}
