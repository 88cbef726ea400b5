package books

import (
	"math"
	"testing"
	"time"
)

// What replicas have booked of a host side by side is one rent, what they booked one after another is two halves of it.
func TestMergeOfHours(t *testing.T) {
	begin := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
	// ledger has an hour of a host at $1 an hour, watched from one minute to another, in one run each.
	ledger := func(minutes ...int) Period {
		p := Period{Since: begin, Until: begin.Add(time.Hour)}
		h := HostHour{Hour: begin.Unix(), Provider: "vast", Host: "v"}
		for i := 0; i < len(minutes); i += 2 {
			from, to := minutes[i], minutes[i+1]
			p.Runs = append(p.Runs, Span{begin.Add(time.Duration(from) * time.Minute), begin.Add(time.Duration(to) * time.Minute)})
			n := float64(min(to, 60)-max(from, 0)) * 60
			h.Seconds += n
			h.Up += n
			h.USD += n / 3600
		}
		p.Hours = []HostHour{h}
		return p
	}
	without := ledger(0, 30)
	without.Runs = nil
	late := ledger(0, 60)
	late.Runs[0].From = begin.Add(30 * time.Second)
	late.Hours[0].USD += 1e-9 // it is the first to be counted
	for _, tc := range []struct {
		name string
		ps   []Period
		want float64 // minutes
	}{
		{"one", []Period{ledger(0, 30)}, 30},
		{"side by side", []Period{ledger(0, 60), ledger(0, 60), ledger(-600, 600)}, 60},
		{"one after another", []Period{ledger(0, 30), ledger(30, 60)}, 60},
		{"the other way round", []Period{ledger(30, 60), ledger(0, 30)}, 60},
		{"a gap", []Period{ledger(0, 20), ledger(30, 60)}, 50},
		{"a rolling restart of two", []Period{ledger(-100, 30), ledger(-100, 31), ledger(29, 200), ledger(30, 200)}, 60},
		{"a short one within a long one", []Period{ledger(10, 50), ledger(20, 30)}, 40},
		{"one that was restarted, and one beside it", []Period{ledger(0, 20, 30, 60), ledger(20, 30)}, 60},
		{"one whose run began with its first write", []Period{late, ledger(0, 60)}, 60},
		{"nobody knows when one ran", []Period{ledger(0, 40), without}, 40},
	} {
		p := Merge(tc.ps...)
		if len(p.Hours) != 1 {
			t.Fatalf("%s: %+v", tc.name, p.Hours)
		}
		h := p.Hours[0]
		if math.Abs(h.USD-tc.want/60) > 2e-9 || math.Abs(h.Seconds-60*tc.want) > 1e-6 || math.Abs(h.Up-60*tc.want) > 1e-6 {
			t.Errorf("%s: $%v for %v s, want %v minutes", tc.name, h.USD, h.Seconds, tc.want)
		}
		if r := p.Report(nil, nil); math.Abs(r.Rented-tc.want/60) > 2e-9 {
			t.Errorf("%s: rented for $%v", tc.name, r.Rented)
		}
	}
}
