package main

import (
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"

	"headrace/router"
	"headrace/router/endpoint"
)

// TestAdviser shows advice while it holds and logs it once.
func TestAdviser(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	r := router.New(router.Options{Now: func() time.Time { return now }})
	host := func(id string, usd float64) endpoint.Endpoint {
		return endpoint.Endpoint{
			ID: endpoint.ID(id), MaxNumSeqs: 32, Served: []endpoint.Served{{Name: "m"}}, State: endpoint.Ready,
			Price: endpoint.Price{Basis: endpoint.PerHour, USDPerHour: usd},
		}
	}
	r.Update([]endpoint.Endpoint{host("a", 1), host("dear", 3)}, nil)
	var log strings.Builder
	a := &adviser{router: r, log: slog.New(slog.NewTextHandler(&log, nil))}
	for range 100 {
		now = now.Add(time.Minute)
		a.ask(now)
	}
	b, err := json.Marshal(a.lately())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"action":"release"`, `"endpoint":"dear"`, `"saves_usd_per_day":72`, `"at":"`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%s lacks %s", b, want)
		}
	}
	if n := strings.Count(log.String(), "action=release"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, log.String())
	}
	r.Update([]endpoint.Endpoint{host("a", 1)}, nil)
	for range 3 {
		now = now.Add(time.Minute)
		a.ask(now)
	}
	if b, _ = json.Marshal(a.lately()); string(b) != "[]" {
		t.Errorf("with one host left: %s", b)
	}
}
