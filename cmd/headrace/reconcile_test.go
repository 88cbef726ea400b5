package main

import (
	"context"
	"log/slog"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"headrace/gateway/ledger/books"
	"headrace/providers/api"
	"headrace/providers/fakecloud/fakerunpod"
	"headrace/providers/fakecloud/fakevast"
	"headrace/providers/runpod"
	"headrace/providers/vast"
	"headrace/router/endpoint"
)

// TestReconcile compares each bill once, and leaves out what the ledger has not watched.
func TestReconcile(t *testing.T) {
	at := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
	part := func(id endpoint.ID, hour int, usd float64) api.BillPart {
		from := at.Add(time.Duration(hour) * time.Hour)
		return api.BillPart{Endpoint: id, From: from, To: from.Add(time.Hour), USD: usd}
	}
	bill := &api.Bill{AsOf: at.Add(3 * time.Hour), From: at, To: at.Add(2 * time.Hour), Parts: []api.BillPart{
		part("vast:1", 0, 1), part("vast:1", 1, 1.2), part("vast:2", 0, 7), part("vast:3", 1, 0.5),
	}}
	log := newLogBuffer()
	var noted []books.Bill
	var charges []books.Charge
	removed := false
	a := &auditor{
		bills: func() map[string]*api.Bill {
			if removed {
				return map[string]*api.Bill{"runpod": nil}
			}
			return map[string]*api.Bill{"vast": bill, "runpod": nil, "vast serverless": {}}
		},
		between: func(id endpoint.ID, _, _ time.Time) (float64, bool) { return 1, id != "vast:2" },
		billed:  func(b books.Bill, parts []books.Charge) { noted, charges = append(noted, b), parts },
		log:     slog.New(slog.NewTextHandler(log, nil)),
	}
	for range 3 {
		a.look()
	}
	if len(noted) != 1 {
		t.Fatalf("noted %+v", noted)
	}
	b := noted[0]
	if b.Account != "vast" || b.Hosts != 2 || math.Abs(b.Billed-2.7) > 1e-12 || b.Ledger != 3 || !b.From.Equal(at) || !b.To.Equal(at.Add(2*time.Hour)) || math.Abs(b.ErrorPercent()-100*0.3/2.7) > 1e-9 {
		t.Errorf("%+v, %v%%", b, b.ErrorPercent())
	}
	if len(charges) != 3 || charges[1].Host != "vast:1" || charges[1].Billed != 1.2 || charges[1].Ledger != 1 || !charges[1].To.Equal(at.Add(2*time.Hour)) {
		t.Errorf("charges %+v", charges)
	}
	if n := strings.Count(log.String(), "the ledger against a bill"); n != 1 {
		t.Errorf("%d warnings for one bill that is off by 11%%:\n%s", n, log)
	}
	next := *bill
	next.AsOf = next.AsOf.Add(time.Hour)
	bill = &next
	a.look()
	if list := a.lately(); len(noted) != 2 || len(list) != 1 || !list[0].AsOf.Equal(next.AsOf) {
		t.Errorf("noted %+v, lately %+v", noted, list)
	}
	removed = true
	if a.look(); len(a.lately()) != 0 {
		t.Errorf("of an account that the config has no more: %+v", a.lately())
	}
}

// TestReconcileNothingWatched tells of a bill that has only what no gateway has watched.
func TestReconcileNothingWatched(t *testing.T) {
	at := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
	var noted []books.Bill
	a := &auditor{
		bills: func() map[string]*api.Bill {
			return map[string]*api.Bill{"vast": {AsOf: at, From: at.Add(-time.Hour), To: at, Parts: []api.BillPart{{Endpoint: "vast:1", From: at.Add(-time.Hour), To: at, USD: 7}}}}
		},
		between: func(endpoint.ID, time.Time, time.Time) (float64, bool) { return 0, false },
		billed:  func(b books.Bill, _ []books.Charge) { noted = append(noted, b) },
		log:     slog.New(slog.DiscardHandler),
	}
	a.look()
	if len(noted) != 1 || noted[0].LeftOut != 7 || noted[0].ErrorPercent() != 0 || !noted[0].From.Equal(at.Add(-time.Hour)) || !noted[0].To.Equal(at) || len(a.lately()) != 1 {
		t.Errorf("noted %+v", noted)
	}
}

// TestReconcileNothingBilled has a bill with nothing of hosts that the ledger has, and one of a host that it has not watched.
func TestReconcileNothingBilled(t *testing.T) {
	at := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
	log := newLogBuffer()
	a := &auditor{
		bills: func() map[string]*api.Bill {
			return map[string]*api.Bill{"runpod": {AsOf: at, Parts: []api.BillPart{
				{Endpoint: "runpod:a", From: at.Add(-time.Hour), To: at}, {Endpoint: "runpod:b", From: at.Add(-time.Hour), To: at, USD: 7},
			}}}
		},
		between: func(id endpoint.ID, _, _ time.Time) (float64, bool) { return 500, id == "runpod:a" },
		billed:  func(books.Bill, []books.Charge) {},
		log:     slog.New(slog.NewTextHandler(log, nil)),
	}
	a.look()
	if b := a.lately()[0]; b.ErrorPercent() != 100 || b.LeftOut != 7 || b.Ledger != 500 || b.Billed != 0 {
		t.Errorf("%+v, off by %v%%", b, b.ErrorPercent())
	}
	if !strings.Contains(log.String(), "level=WARN") {
		t.Errorf("nobody is warned that $500 were never billed:\n%s", log)
	}
}

// TestLedgerAgainstVastBill has Vast.ai's billing API compared with hours that the ledger booked of the same instances: one that runs, and one
// that is stopped amid it. The clock goes in steps of two minutes, so that the stop is seen that late.
func TestLedgerAgainstVastBill(t *testing.T) {
	for name, tc := range map[string]struct{ factor, low, high float64 }{
		"as it says":   {1, -4, 4},
		"30 % is more": {1.3, -26, -20},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var at atomic.Int64
			at.Store(time.Date(2026, 11, 28, 9, 30, 0, 0, time.UTC).UnixNano())
			now := func() time.Time { return time.Unix(0, at.Load()) }
			cloud := startVast(t, fakevast.Config{Now: now})
			for id := range int64(2) {
				cloud.AddInstance(fakevast.InstanceConfig{ID: 11 + id, DPHBase: 2, DiskGB: 720})
			}
			cloud.SetBilling(tc.factor)
			p := vast.New(vast.Options{Key: "vast-key", ConsoleURL: cloud.ConsoleURL(), Poll: 30 * time.Millisecond, ProbeTimeout: 2 * time.Second, Pace: 0.001, Now: now, Log: slog.New(slog.DiscardHandler)})
			b := books.New(books.Options{Flush: time.Hour, Now: now})
			ctx := follow(t, p, b)
			// until waits for the provider, and for the books to have heard of it.
			until := func(what string, ok func() bool) {
				t.Helper()
				tick := time.NewTicker(time.Millisecond)
				defer tick.Stop()
				late := time.After(patience)
				for !ok() {
					select {
					case <-tick.C:
					case <-late:
						t.Fatalf("%s: not within 20 s", what)
					}
				}
			}
			until("both are booked", func() bool {
				_, one := b.Between("vast:11", now(), now())
				_, two := b.Between("vast:12", now(), now())
				return one && two
			})
			for i := range 120 { // four hours
				if i == 40 {
					cloud.Instances()[1].Stop()
				}
				polls := p.Status().Polls
				at.Add(int64(2 * time.Minute))
				until("a poll", func() bool { return p.Status().Polls > polls })
				if err := b.Flush(ctx); err != nil {
					t.Fatal(err)
				}
			}
			r := audited(ctx, t, b, "vast", p.Status().Bill, now())
			bill := r.Bills[0]
			t.Logf("billed $%.3f, ledger $%.3f, %+.2f %%, %v", bill.Billed, bill.Ledger, bill.ErrorPercent(), bill.To.Sub(bill.From))
			if e := bill.ErrorPercent(); bill.Hosts != 2 || bill.Billed < 2 || bill.To.Sub(bill.From) < time.Hour || e < tc.low || e > tc.high {
				t.Errorf("%+v, off by %v%%", bill, e)
			}
			if text := reportText(&r); !strings.Contains(text, "Bills against the ledger:") || !strings.Contains(text, "2 hosts") {
				t.Errorf("the report does not tell:\n%s", text)
			}
		})
	}
}

// TestLedgerAgainstRunPodBill has RunPod's billing API compared with hours that the ledger booked of the same endpoints: one whose workers stay
// up, and one whose worker goes amid it. What is billed takes the place of what was estimated.
func TestLedgerAgainstRunPodBill(t *testing.T) {
	for name, tc := range map[string]struct{ factor, low, high float64 }{
		"as it says":   {1, -4, 4},
		"30 % is more": {1.3, -26, -20},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var at atomic.Int64
			at.Store(time.Date(2026, 11, 28, 9, 30, 0, 0, time.UTC).UnixNano())
			now := func() time.Time { return time.Unix(0, at.Load()) }
			cloud := startRunPod(t, fakerunpod.Config{
				BillNow: now, TimeScale: 100, RateLimits: fakerunpod.RateLimits{Off: true}, Management: fakerunpod.Management{PerMinute: 1e6, PerHour: 1e6, PerDay: 1e6},
			})
			var going *fakerunpod.Endpoint
			for _, id := range []string{"stays", "goes"} {
				going = cloud.AddEndpoint(fakerunpod.EndpointConfig{
					ID: id, WorkersMin: 2, WorkersMax: 3, ColdStart: time.Second, IdleTimeout: time.Second, Env: map[string]string{"MODEL_NAME": "m"},
				})
			}
			cloud.SetBilling(tc.factor)
			p := runpod.New(runpod.Options{
				Key: endpoint.Secret(cloud.Key()), ManagementURL: cloud.ManagementURL(), QueueURL: cloud.QueueURL(), BalancerURL: cloud.BalancerURL(), PodURL: cloud.PodURL(),
				Poll: 30 * time.Millisecond, HealthPoll: 10 * time.Millisecond, CatalogPoll: 50 * time.Millisecond, Settle: time.Nanosecond, Pace: 0.01, HealthPerSecond: 1000,
				Now: now, Log: slog.New(slog.DiscardHandler),
			})
			b := books.New(books.Options{Flush: time.Hour, Now: now})
			ctx := follow(t, p, b)
			// until has the clock creep on while it waits for the provider, so that looks come due.
			until := func(what string, ok func() bool) {
				t.Helper()
				tick := time.NewTicker(time.Millisecond)
				defer tick.Stop()
				late := time.After(time.Minute)
				for !ok() {
					select {
					case <-tick.C:
						at.Add(int64(time.Millisecond))
					case <-late:
						t.Fatalf("%s: not within a minute", what)
					}
				}
			}
			looks := func() (n int64) {
				for _, c := range p.Status().Calls {
					if c.Name == "GET /health" {
						n += c.Calls
					}
				}
				return n
			}
			up := func(e *fakerunpod.Endpoint, n int) {
				t.Helper()
				if err := e.Wait(ctx, func(s fakerunpod.Stats) bool { return s.Workers == n }); err != nil {
					t.Fatal(err)
				}
			}
			until("both are booked", func() bool {
				_, one := b.Between("runpod:stays", now(), now())
				_, two := b.Between("runpod:goes", now(), now())
				return one && two
			})
			for i := range 80 { // four hours
				if i == 27 {
					going.SetWorkersMin(0)
					up(going, 0)
				}
				before := looks()
				at.Add(int64(3 * time.Minute))
				until("looks", func() bool { return looks() >= before+4 }) // the first of both may have been under way
				if err := b.Flush(ctx); err != nil {
					t.Fatal(err)
				}
			}
			r := audited(ctx, t, b, "runpod", p.Status().Bill, now())
			bill := r.Bills[0]
			t.Logf("billed $%.3f, ledger $%.3f, %+.2f %%, %v; the report has $%.3f, of which $%.3f are billed and were estimated at $%.3f", bill.Billed, bill.Ledger, bill.ErrorPercent(),
				bill.To.Sub(bill.From), r.Rented, r.BilledUSD, r.EstimatedUSD)
			if e := bill.ErrorPercent(); bill.Hosts != 2 || bill.Billed < 2 || bill.To.Sub(bill.From) < time.Hour || e < tc.low || e > tc.high {
				t.Errorf("%+v, off by %v%%", bill, e)
			}
			if !nearly(r.BilledUSD, bill.Billed) || r.Rented < r.BilledUSD || r.EstimatedUSD <= 0 {
				t.Errorf("the report has $%v as billed, the bill has $%v", r.BilledUSD, bill.Billed)
			}
			if text := reportText(&r); !strings.Contains(text, "is as billed; it had been estimated at") {
				t.Errorf("the report does not tell:\n%s", text)
			}
		})
	}
}

// hostsOf finds a provider's hosts and tells them, until its context ends.
type hostsOf interface {
	Run(ctx context.Context, out chan<- []endpoint.Endpoint) error
}

// follow has the books hear of what the provider finds, until the test ends.
func follow(t *testing.T, p hostsOf, b *books.Books) context.Context {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	out := make(chan []endpoint.Endpoint)
	wg.Go(func() { _ = p.Run(ctx, out) })
	wg.Go(func() { _ = b.Run(ctx, nil) })
	wg.Go(func() {
		for {
			select {
			case eps := <-out:
				b.Follow(eps)
			case <-ctx.Done():
				return
			}
		}
	})
	return ctx
}

// audited is the report of the last six hours once the provider's bill has been set against the books; it has that bill alone.
func audited(ctx context.Context, t *testing.T, b *books.Books, account string, bill *api.Bill, now time.Time) books.Report {
	t.Helper()
	a := &auditor{
		bills: func() map[string]*api.Bill { return map[string]*api.Bill{account: bill} }, between: b.Between, billed: b.Billed, log: slog.New(slog.DiscardHandler),
	}
	a.look()
	period, err := b.Period(ctx, now.Add(-6*time.Hour), now)
	if err != nil {
		t.Fatal(err)
	}
	r := period.Report(nil, nil)
	if len(r.Bills) != 1 {
		t.Fatalf("bills %+v, the provider has %+v", r.Bills, bill)
	}
	return r
}
