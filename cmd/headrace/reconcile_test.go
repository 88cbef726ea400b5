package main

import (
	"log/slog"
	"math"
	"strings"
	"testing"
	"time"

	"headrace/gateway/ledger/books"
	"headrace/providers/api"
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
	a := &auditor{
		bills: func() map[string]*api.Bill {
			return map[string]*api.Bill{"vast": bill, "runpod": nil, "vast serverless": {}}
		},
		between: func(id endpoint.ID, _, _ time.Time) (float64, bool) { return 1, id != "vast:2" },
		billed:  func(b books.Bill) { noted = append(noted, b) },
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
}
