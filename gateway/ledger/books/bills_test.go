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
