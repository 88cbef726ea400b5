package books_test

import (
	"math"
	"path/filepath"
	"testing"
	"time"

	"headrace/gateway/ledger/books"
	"headrace/router/endpoint"
)

// TestBilledHours has bills take the place of estimates, in a file and without one: for hours that lie in a bill whole, and once however often
// the bill comes. One that names nothing changes nothing.
func TestBilledHours(t *testing.T) {
	for name, path := range map[string]string{"file": "ledger.db", "memory": ""} {
		t.Run(name, func(t *testing.T) {
			if path != "" {
				path = filepath.Join(t.TempDir(), path)
			}
			c := newClock()
			began := c.now()
			b, stop := open(t, c, path, nil)
			b.Follow([]endpoint.Endpoint{rented("vast:a", 1, endpoint.Ready), rented("vast:b", 2, endpoint.Ready), rented("vast:c", 4, endpoint.Ready)})
			tick(t, c, b, 3*time.Hour)
			hour := func(n float64) time.Time { return began.Add(time.Duration(n * float64(time.Hour))) }
			for range 2 {
				b.Billed(books.Bill{Account: "vast", AsOf: c.now(), Billed: 5, Ledger: 6, Hosts: 2, From: began, To: c.now(), LeftOut: 3}, []books.Charge{
					{Host: "vast:a", From: hour(0), To: hour(1), Billed: 1.5, Ledger: 1},
					{Host: "vast:b", From: hour(-0.5), To: hour(2.5), Billed: 4, Ledger: 5}, // two hours whole, at four fifths
					{Host: "vast:c", From: hour(1), To: hour(2), Billed: 0, Ledger: 4},
				})
				tick(t, c, b, time.Minute)
			}
			if path != "" {
				stop()
				b, _ = open(t, c, path, nil)
			}
			p := period(t, b, began, hour(3))
			r := p.Report([]books.Dim{books.ByHost, books.ByHour}, nil)
			if want := 1.5 + 4*0.8 + 2 + 2 + 12; math.Abs(r.Rented-want) > 1e-9 || math.Abs(r.BilledUSD-4.7) > 1e-9 || math.Abs(r.EstimatedUSD-5) > 1e-9 || math.Abs(r.Total.Allocated()-want) > 1e-9 {
				t.Errorf("paid $%v, $%v as billed, estimated at $%v, allocated $%v, want $%v", r.Rented, r.BilledUSD, r.EstimatedUSD, r.Total.Allocated(), want)
			}
			if len(r.Bills) != 1 || r.Bills[0].LeftOut != 3 {
				t.Errorf("bills %+v", r.Bills)
			}
			other := books.Period{Since: p.Since, Until: p.Until}
			for _, h := range p.Hours { // as a replica has it that did not see the bill, and booked more
				h.Billed, h.USD = nil, h.USD*1.1
				other.Hours = append(other.Hours, h)
			}
			other.Runs = p.Runs
			both := books.Merge(p, other)
			if r := both.Report(nil, nil); math.Abs(r.BilledUSD-4.7) > 1e-9 {
				t.Errorf("two replicas: $%v as billed", r.BilledUSD)
			}
		})
	}
}

// TestBilledLines has each line say what of it bills name, which comes to what they name in all, however lines are told apart; also where an
// answer took of hours before the one in which it ended.
func TestBilledLines(t *testing.T) {
	begin := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
	usd := func(v float64) *float64 { return &v }
	p := books.Period{Since: begin, Until: begin.Add(4 * time.Hour)}
	for i, billed := range []*float64{usd(3), nil, usd(1.5), nil} {
		p.Hours = append(p.Hours, books.HostHour{Hour: begin.Unix() + int64(i)*3600, Provider: "vast", Host: "vast:a", USD: 2, Billed: billed})
	}
	p.Hours = append(p.Hours, books.HostHour{Hour: begin.Unix(), Provider: "vast", Host: "vast:idle", USD: 1, Billed: usd(0.5)})
	for i, used := range []float64{1, 3, 2, 0.5} { // the second hour takes 1 of the first, and the third 0.50
		for k, part := range []float64{0.25, 0.75} {
			r := books.Rollup{Cell: books.Cell{Hour: begin.Unix() + int64(i)*3600, Key: []string{"team-a", "team-b"}[k], Model: "m", Provider: "vast", Host: "vast:a"}}
			r.F[books.UsedPerHour] = used * part
			r.N[books.Requests] = 1
			p.Rollups = append(p.Rollups, r)
		}
	}
	for _, by := range [][]books.Dim{nil, {books.ByKey}, {books.ByHost}, {books.ByHour}, {books.ByKey, books.ByHour}, {books.ByDay, books.ByHost}} {
		r := p.Report(by, nil)
		sum := 0.0
		for i := range r.Lines {
			l := &r.Lines[i]
			if sum += l.BilledUSD; l.BilledUSD < -1e-9 || l.BilledUSD > l.Allocated()+1e-9 {
				t.Errorf("by %v: %v has $%v, of which $%v as billed", by, l.Group, l.Allocated(), l.BilledUSD)
			}
		}
		if math.Abs(sum-5) > 1e-9 || math.Abs(r.BilledUSD-5) > 1e-9 || math.Abs(r.Total.BilledUSD-5) > 1e-9 || math.Abs(r.Total.Allocated()-r.Rented) > 1e-9 {
			t.Errorf("by %v: $%v as billed in lines, $%v in all, $%v of $%v allocated", by, sum, r.BilledUSD, r.Total.Allocated(), r.Rented)
		}
	}
	for i, want := range []float64{1.5, 1, 2, 0} {
		r := p.Report([]books.Dim{books.ByHost, books.ByHour}, nil)
		got := math.NaN()
		for k := range r.Lines {
			if l := &r.Lines[k]; l.Group[0] == "vast:a" && l.Group[1] == begin.Add(time.Duration(i)*time.Hour).Format("2006-01-02 15:00") {
				got = l.BilledUSD
			}
		}
		if math.Abs(got-want) > 1e-9 {
			t.Errorf("hour %d: $%v as billed, want $%v", i, got, want)
		}
	}
}

// TestMeteredHours books what a meter shows, also where that becomes less, and nothing of what it showed before.
func TestMeteredHours(t *testing.T) {
	c := newClock()
	began := c.now()
	b, _ := open(t, c, "", nil)
	m := &endpoint.Meter{}
	w := workers("runpod:w", 0)
	w.Meter = m
	m.Set(endpoint.Reading{At: c.now(), Seconds: 1000, Starts: 7, Cold: 300})
	b.Follow([]endpoint.Endpoint{w})
	tick(t, c, b, 10*time.Minute)
	m.Set(endpoint.Reading{At: c.now(), Up: 2, Seconds: 1100, Starts: 9, Cold: 390})
	tick(t, c, b, 10*time.Minute) // 2 workers
	m.Set(endpoint.Reading{At: c.now(), Up: 0, Seconds: 2200, Starts: 9, Cold: 360})
	tick(t, c, b, 60*time.Minute) // one of them had gone 100 s before, and the start was shorter
	p := period(t, b, began, c.now())
	g := hostHours(&p)["runpod:w"]
	if math.Abs(g.USD-1.2) > 1e-9 || math.Abs(g.Up-1200) > 1e-6 || g.Starts != 2 || math.Abs(g.ColdUSD-0.06) > 1e-9 || math.Abs(g.Seconds-4800) > 1e-6 {
		t.Errorf("%+v", g)
	}
	if usd, known := b.Between("runpod:w", began, c.now()); !known || math.Abs(usd-1.2) > 1e-9 {
		t.Errorf("from the beginning $%v, %t", usd, known)
	}
	// It leaves the fleet and is back with a new meter.
	b.Follow(nil)
	tick(t, c, b, time.Minute)
	w.Meter = &endpoint.Meter{}
	w.Meter.Set(endpoint.Reading{At: c.now(), Seconds: 5000, Up: 1})
	b.Follow([]endpoint.Endpoint{w})
	tick(t, c, b, 10*time.Minute)
	p = period(t, b, began, c.now())
	if g := hostHours(&p)["runpod:w"]; math.Abs(g.USD-1.8) > 1e-9 {
		t.Errorf("with a new meter %+v", g)
	}
}
