package api_test

import (
	"bytes"
	"errors"
	"log/slog"
	"math"
	"strings"
	"testing"
	"time"

	"headrace/providers/api"
)

func TestBook(t *testing.T) {
	noon := time.Date(2026, 8, 20, 12, 0, 0, 0, time.UTC)
	at := func(minutes float64) time.Time { return noon.Add(time.Duration(minutes * float64(time.Minute))) }
	var b api.Book
	for m := range 131 { // seen once a minute; 6 USD/h from 12:00, 12 from 12:40, gone at 13:30
		switch {
		case m < 40:
			b.Rate("a", at(float64(m)), 6)
		case m < 90:
			b.Rate("a", at(float64(m)), 12)
		case m == 90:
			b.Gone("a", at(90))
		}
		if m < 30 || m > 60 { // unseen for half an hour
			b.Rate("b", at(float64(m)), 6)
		}
	}
	b.Add("b", at(100), 5)
	b.Rate("no price", at(0), math.NaN())
	for name, tc := range map[string]struct {
		id       string
		from, to float64 // minutes after noon
		want     float64 // USD; -1 for not watched
	}{
		"one price":                {"a", 0, 30, 3},
		"a price that changed":     {"a", 30, 60, 1 + 4},
		"within a quarter":         {"a", 16, 26, 1},
		"until it was gone":        {"a", 60, 120, 6},
		"after it was gone":        {"a", 95, 200, 0},
		"before it was seen":       {"a", -1, 30, -1},
		"over a gap":               {"b", 0, 90, -1},
		"after a gap, with a cost": {"b", 61, 121, 6 + 5},
		"a little ahead":           {"b", 121, 133, 1.2},
		"too far ahead":            {"b", 121, 150, -1},
		"of unknown price":         {"no price", 0, 10, -1},
		"unknown":                  {"c", 0, 10, -1},
	} {
		got, ok := b.Between(tc.id, at(tc.from), at(tc.to))
		if ok != (tc.want >= 0) || ok && math.Abs(got-tc.want) > 1e-9 {
			t.Errorf("%s: %g, %t, want %g", name, got, ok, tc.want)
		}
	}
	if n := len(b.Things(at(60 * 25))); n != 2 {
		t.Errorf("%d things after a day", n)
	}
	if n := len(b.Things(at(60 * 50))); n != 0 {
		t.Errorf("%d things after two days", n)
	}
}

// TestAudit has a bill that goes off, further off, stays so, and is right again: each change is said once.
func TestAudit(t *testing.T) {
	var log bytes.Buffer
	l := slog.New(slog.NewTextHandler(&log, nil))
	var a api.Audit
	var bill *api.Bill
	now := time.Date(2026, 8, 20, 12, 0, 0, 0, time.UTC)
	for i, tc := range []struct {
		billed, expected float64
		err              error
		says             string
	}{
		{1.05, 1, nil, ""},
		{0.06, 0.03, nil, ""}, // off by half, but by 3 cents
		{1.3, 1, nil, "is not what"},
		{1.35, 1, nil, ""},
		{1.6, 1, nil, "is not what"},
		{0, 0, errors.New("no answer"), "cannot be read"},
		{0, 0, errors.New("no answer"), ""},
		{1.6, 1, nil, ""},
		{1, 1, nil, "again"},
		{1, 1, nil, ""},
		{2, 0, nil, "is not what"},
	} {
		log.Reset()
		var b api.Bill
		b.Take("x", tc.billed, tc.expected)
		before := bill
		bill = a.Settle(l, bill, b, tc.err, now)
		if s := log.String(); tc.says == "" && s != "" || !strings.Contains(s, tc.says) {
			t.Errorf("%d: log %q, want %q", i, s, tc.says)
		}
		if tc.err != nil && (bill.LastError == "" || bill.BilledUSD != before.BilledUSD) || tc.err == nil && bill.LastError != "" {
			t.Errorf("%d: %+v after %+v", i, bill, before)
		}
	}
	if bill.ErrorPercent != 100 || bill.Aged(now.Add(time.Minute)).AgeSeconds != 60 {
		t.Errorf("%+v", bill)
	}
}
