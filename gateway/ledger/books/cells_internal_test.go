package books

import (
	"fmt"
	"math"
	"testing"
	"time"

	"headrace/gateway/ledger"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// TestFoldKeepsWhatItCan takes no more hours' names than it needs to: those of the running hour stay while older ones can give way.
func TestFoldKeepsWhatItCan(t *testing.T) {
	s := newCells(100, 0)
	for hour, n := range []int{50, 30, 19} {
		for i := range n {
			s.at(&Cell{Hour: int64(hour * 3600), Provider: "vast", Host: fmt.Sprint("vast:", hour, ".", i)}).N[Requests]++
		}
	}
	s.fold(2 * 3600)
	left := map[int64]int{}
	for c := range s.of {
		left[c.Hour/3600]++
	}
	if fmt.Sprint(left) != "map[0:1 1:30 2:19]" {
		t.Errorf("cells by hour %v", left)
	}
}

// TestFoldsOnce looks for names that may give way once where there are none, and not once a request.
func TestFoldsOnce(t *testing.T) {
	s := newCells(1000, 0)
	const n = 20_000
	for i := range n {
		s.at(&Cell{Hour: 3600, Key: fmt.Sprint(i)}).N[Requests]++
	}
	if len(s.of) > 1001 || s.full != 3600 {
		t.Errorf("%d cells, full in hour %d", len(s.of), s.full)
	}
	if allocs := testing.AllocsPerRun(100, func() { s.at(&Cell{Hour: 3600, Key: "one more"}) }); allocs > 1 {
		t.Errorf("a name that there is no room for takes %v allocations", allocs)
	}
}

// TestFoldsKeys has keys of the oldest hours give way where hosts' names have, and counts every request.
func TestFoldsKeys(t *testing.T) {
	s := newCells(1000, 0)
	const hours, keys = 700, 4
	for h := range hours {
		for k := range keys {
			s.at(&Cell{Hour: int64(h * 3600), Key: fmt.Sprint("team-", k), Provider: "vast", Host: fmt.Sprint("vast:", k)}).N[Requests]++
		}
	}
	n, newest := int64(0), 0
	for c, e := range s.of {
		if n += e.N[Requests]; c.Hour == (hours-1)*3600 {
			newest++
		}
	}
	if n != hours*keys || newest != keys || len(s.of) > 1000 {
		t.Errorf("%d requests of %d in %d cells, %d of them of the newest hour", n, hours*keys, len(s.of), newest)
	}
}

// TestFoldsForTheNextHour has names of an hour that is over give way to those of the next, however full they are, and late ones of the hour before have
// nothing looked for anew.
func TestFoldsForTheNextHour(t *testing.T) {
	s := newCells(1000, 0)
	for i := range 1000 {
		s.at(&Cell{Hour: 3600, Key: fmt.Sprint(i)}).N[Requests]++
	}
	for i := range 900 {
		c := Cell{Hour: 7200, Key: fmt.Sprint(i)}
		if s.at(&c).N[Requests]++; c.Key == otherName {
			t.Fatalf("no room for key %d of the second hour beside %d sums", i, len(s.of))
		}
	}
	for i := range 1000 {
		s.at(&Cell{Hour: 7200, Key: fmt.Sprint("more", i)}).N[Requests]++
	}
	for i := range 100 {
		s.at(&Cell{Hour: 3600, Key: fmt.Sprint("late", i)}).N[Requests]++
		if s.full != 7200 {
			t.Fatalf("full in hour %d after one that came late", s.full)
		}
	}
}

// TestFoldedMoney has more hosts than there is room for, with all or some of their rents: no more is shared out than was paid.
func TestFoldedMoney(t *testing.T) {
	at := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
	began := at
	for name, mostHours := range map[string]int{"rents named": mostCells, "rents folded": 60} {
		t.Run(name, func(t *testing.T) {
			at = began
			b := New(Options{Flush: time.Second, Now: func() time.Time { return at }})
			b.kept.sums.most, b.kept.most = 60, mostHours
			paid := 0.0
			for h := range 12 {
				var fleet []endpoint.Endpoint
				for i := range 20 {
					fleet = append(fleet, endpoint.Endpoint{
						ID: endpoint.ID(fmt.Sprint("vast:", h, ".", i)), Provider: "vast", State: endpoint.Ready, Price: endpoint.Price{Basis: endpoint.PerHour, USDPerHour: 2},
					})
				}
				for range 60 {
					b.Follow(fleet)
					at = at.Add(time.Minute)
					b.Follow(fleet)
				}
				for i, ep := range fleet {
					b.Record(&ledger.Record{
						ID: fmt.Sprint("r", h, ".", i), At: at.Add(-time.Minute), Key: "k", Model: "m", Known: true, Class: outcome.Success, USD: 0.5, USDKnown: true,
						Attempts: []ledger.Attempt{{Endpoint: ep.ID, Provider: "vast", Served: "m", Class: outcome.Success, USD: 0.5, USDKnown: true, Usage: ledger.Usage{Basis: endpoint.PerHour}}},
					})
				}
				paid += 20 * 2
				b.stay(at)
			}
			p := Period{Since: began, Until: at}
			b.kept.period(&p, at)
			if len(p.Rollups) > 61 || len(p.Hours) > max(60, mostHours) {
				t.Errorf("%d sums and %d hosts' hours", len(p.Rollups), len(p.Hours))
			}
			for _, by := range [][]Dim{nil, {ByHost}, {ByHour}, {ByProvider, ByKey}} {
				r := p.Report(by, nil)
				if math.Abs(r.Rented-paid) > 1e-6 || math.Abs(r.Total.Allocated()-paid) > 1e-6 || math.Abs(r.Total.Used()-paid/4) > 1e-6 {
					t.Errorf("by %v: paid $%v, rented $%v, used $%v, allocated $%v", by, paid, r.Rented, r.Total.Used(), r.Total.Allocated())
				}
			}
		})
	}
}

// TestFoldedRents has more hosts' hours than there is room for, and room for all that was used of them.
func TestFoldedRents(t *testing.T) {
	began := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
	at := began
	b := New(Options{Flush: time.Second, Now: func() time.Time { return at }})
	b.kept.most = 60
	const hours, hosts = 12, 20
	for h := range hours {
		var fleet []endpoint.Endpoint
		for i := range hosts {
			fleet = append(fleet, endpoint.Endpoint{
				ID: endpoint.ID(fmt.Sprint("vast:", h, ".", i)), Provider: "vast", State: endpoint.Ready, Price: endpoint.Price{Basis: endpoint.PerHour, USDPerHour: 2},
			})
		}
		for range 60 {
			b.Follow(fleet)
			at = at.Add(time.Minute)
			b.Follow(fleet)
		}
		b.Record(&ledger.Record{ // one of them; nobody uses the others
			ID: fmt.Sprint("r", h), At: at.Add(-time.Minute), Key: "k", Model: "m", Known: true, Class: outcome.Success, USD: 0.5, USDKnown: true,
			Attempts: []ledger.Attempt{{Endpoint: fleet[0].ID, Provider: "vast", Served: "m", Class: outcome.Success, USD: 0.5, USDKnown: true, Usage: ledger.Usage{Basis: endpoint.PerHour}}},
		})
		b.stay(at)
	}
	p := Period{Since: began, Until: at}
	b.kept.period(&p, at)
	if len(p.Hours) > 60 {
		t.Errorf("%d hosts' hours", len(p.Hours))
	}
	const paid, used = hours * hosts * 2.0, hours * 0.5
	for _, by := range [][]Dim{nil, {ByHost}, {ByHour}, {ByProvider, ByKey}} {
		r := p.Report(by, nil)
		if math.Abs(r.Rented-paid) > 1e-6 || math.Abs(r.Total.Allocated()-paid) > 1e-6 || math.Abs(r.Total.Used()-used) > 1e-6 {
			t.Errorf("by %v: paid $%v, rented $%v, used $%v, allocated $%v", by, paid, r.Rented, r.Total.Used(), r.Total.Allocated())
		}
	}
}
