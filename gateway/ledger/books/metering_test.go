package books_test

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"headrace/gateway/ledger/books"
	"headrace/router/endpoint"
)

// TestLateNewsOfWorkers has nobody look at workers for a while, in which they go: what was booked for them is taken back from the hours that it
// went to, so that an hour's bill takes the place of all that was booked for it.
func TestLateNewsOfWorkers(t *testing.T) {
	for name, tc := range map[string]struct {
		blind, ran time.Duration
	}{
		"gone at the full hour":       {2 * time.Hour, time.Hour},
		"gone within the first hour":  {90 * time.Minute, 45 * time.Minute},
		"gone within the second hour": {150 * time.Minute, 80 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClock()
			c.at.Store(time.Unix(1_800_000_000, 0).Truncate(time.Hour).UnixNano())
			began := c.now()
			b, _ := open(t, c, "", nil)
			m := &endpoint.Meter{}
			w := workers("runpod:w", 0)
			w.Meter = m
			m.Set(endpoint.Reading{At: c.now(), Up: 4})
			b.Follow([]endpoint.Endpoint{w})
			tick(t, c, b, tc.blind)
			seconds := 4 * tc.ran.Seconds()
			m.Set(endpoint.Reading{At: c.now(), Seconds: seconds})
			tick(t, c, b, 4*time.Hour-tc.blind)
			usd := w.Price.USDPerWorkerSecond
			if paid, known := b.Between("runpod:w", began.Add(tc.ran), c.now()); !known || math.Abs(paid) > 1e-6 {
				t.Errorf("after they had gone: $%v, %t", paid, known)
			}
			first := min(tc.ran.Seconds(), 3600) * 4 * usd
			b.Billed(books.Bill{Account: "runpod", AsOf: c.now(), Billed: first, Hosts: 1, From: began, To: c.now()},
				[]books.Charge{{Host: "runpod:w", From: began, To: began.Add(time.Hour), Billed: first, Ledger: 4 * 3600 * usd}})
			tick(t, c, b, time.Minute)
			p := period(t, b, began, began.Add(4*time.Hour))
			if r := p.Report(nil, nil); math.Abs(r.Rented-seconds*usd) > 1e-6 {
				t.Errorf("$%v for all, want $%v", r.Rented, seconds*usd)
			}
			for _, h := range p.Hours {
				from := time.Unix(h.Hour, 0).Sub(began)
				want := 4 * max(0, min(tc.ran-from, time.Hour)).Seconds()
				if math.Abs(h.Up-want) > 1e-3 || math.Abs(h.USD-want*usd) > 1e-6 {
					t.Errorf("hour at %v: %v worker seconds, $%v, want %v", from, h.Up, h.USD, want)
				}
			}
		})
	}
}

// TestCorrectionsOfAMeter has a meter correct itself at random: no hour is below nothing, and all of them are what it shows.
func TestCorrectionsOfAMeter(t *testing.T) {
	seed := rand.Uint64()
	t.Log("seed", seed)
	rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test's
	c := newClock()
	began := c.now()
	b, _ := open(t, c, "", nil)
	m := &endpoint.Meter{}
	w := workers("runpod:w", 0)
	w.Meter = m
	r := endpoint.Reading{At: began}
	m.Set(r)
	b.Follow([]endpoint.Endpoint{w})
	for range 300 {
		d := time.Duration(1+rng.IntN(240)) * time.Second
		tick(t, c, b, d)
		if rng.IntN(3) == 0 {
			continue // no look
		}
		d = c.now().Sub(r.At)
		stayed := rng.IntN(r.Up + 1)
		r.Seconds += float64(stayed)*d.Seconds() + float64(r.Up-stayed)*rng.Float64()*d.Seconds()
		r.Seconds = max(0, r.Seconds-float64(rng.IntN(60)))
		r.Cold = min(r.Seconds, max(0, r.Cold+float64(rng.IntN(60)-25)))
		r.Up, r.At = stayed+rng.IntN(3), c.now()
		m.Set(r)
	}
	r.Up, r.At = 0, c.now()
	m.Set(r)
	tick(t, c, b, time.Second)
	p := period(t, b, began, c.now())
	var up, usd, cold float64
	for _, h := range p.Hours {
		up, usd, cold = up+h.Up, usd+h.USD, cold+h.ColdUSD
		if h.Up < -1e-6 || h.USD < -1e-9 || h.ColdUSD < -1e-9 {
			t.Errorf("an hour below nothing: %+v", h)
		}
	}
	rate := w.Price.USDPerWorkerSecond
	if math.Abs(up-r.Seconds) > 1e-3 || math.Abs(usd-r.Seconds*rate) > 1e-6 || math.Abs(cold-r.Cold*rate) > 1e-6 {
		t.Errorf("%v s, $%v, $%v of starts, of %+v", up, usd, cold, r)
	}
	if all, known := b.Between("runpod:w", began, c.now()); !known || math.Abs(all-usd) > 1e-6 {
		t.Errorf("$%v in all, %t, want $%v", all, known, usd)
	}
}
