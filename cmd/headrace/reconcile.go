package main

import (
	"context"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"headrace/gateway/ledger/books"
	"headrace/providers/api"
	"headrace/router/endpoint"
	"headrace/telemetry"
)

const reconcileEvery = 10 * time.Second

// auditor sets accounts' bills against what the ledger has of the same hosts and times.
type auditor struct {
	bills   func() map[string]*api.Bill // by account; nil where none was read
	between func(host endpoint.ID, from, to time.Time) (usd float64, known bool)
	billed  func(books.Bill, []books.Charge)
	log     *slog.Logger

	mu     sync.Mutex // guards newest
	newest map[string]books.Bill
}

// Run looks for new bills at every tick until ctx is done.
func (a *auditor) Run(ctx context.Context, ticks <-chan time.Time) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticks:
			a.look()
		}
	}
}

func (a *auditor) look() {
	bills := a.bills()
	a.mu.Lock()
	maps.DeleteFunc(a.newest, func(account string, _ books.Bill) bool { // a reload has taken it away
		_, there := bills[account]
		return !there
	})
	a.mu.Unlock()
	for account, bill := range bills {
		if bill == nil || bill.AsOf.IsZero() {
			continue
		}
		a.mu.Lock()
		old, seen := a.newest[account]
		a.mu.Unlock()
		if seen && !bill.AsOf.After(old.AsOf) {
			continue
		}
		b, parts := a.compare(account, bill)
		a.mu.Lock()
		if a.newest == nil {
			a.newest = map[string]books.Bill{}
		}
		a.newest[account] = b
		a.mu.Unlock()
		if !tells(&b) {
			continue
		}
		a.billed(b, parts)
		level := slog.LevelDebug
		if math.Abs(b.ErrorPercent()) > 10 && math.Abs(b.Ledger-b.Billed) > 0.05 {
			level = slog.LevelWarn
		}
		a.log.Log(context.Background(), level, "the ledger against a bill", "account", account, "billed_usd", b.Billed, "ledger_usd", b.Ledger, "error_percent", b.ErrorPercent(),
			"from", b.From, "to", b.To)
	}
}

// compare leaves out what the ledger has not watched. Of the rest it returns the parts too.
func (a *auditor) compare(account string, bill *api.Bill) (b books.Bill, parts []books.Charge) {
	b = books.Bill{Account: account, AsOf: bill.AsOf, From: bill.To, To: bill.From}
	var hosts []endpoint.ID
	for _, p := range bill.Parts {
		usd, known := a.between(p.Endpoint, p.From, p.To)
		if !known {
			b.LeftOut += p.USD
			continue
		}
		parts = append(parts, books.Charge{Host: p.Endpoint, From: p.From, To: p.To, Billed: p.USD, Ledger: usd})
		b.Billed += p.USD
		b.Ledger += usd
		if p.From.Before(b.From) {
			b.From = p.From
		}
		if p.To.After(b.To) {
			b.To = p.To
		}
		if !slices.Contains(hosts, p.Endpoint) {
			hosts = append(hosts, p.Endpoint)
		}
	}
	if b.Hosts = len(hosts); b.Hosts == 0 {
		b.From, b.To = bill.From, bill.To
	}
	return b, parts
}

// tells is false for a bill of nothing.
func tells(b *books.Bill) bool { return b.Hosts > 0 || b.LeftOut > 0 }

// lately returns the newest comparison of each account.
func (a *auditor) lately() (list []books.Bill) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, b := range a.newest {
		if tells(&b) {
			list = append(list, b)
		}
	}
	slices.SortFunc(list, func(a, b books.Bill) int { return strings.Compare(a.Account, b.Account) })
	return list
}

// accountBills are the newest bills of the accounts.
func (a *app) accountBills() map[string]*api.Bill {
	m := map[string]*api.Bill{}
	for _, acc := range a.rented.Load().all() {
		m[acc.name] = acc.status().Bill
	}
	return m
}

// ledgerFigures tells how the ledger fares.
func (a *app) ledgerFigures() telemetry.Ledger {
	s := a.books.Status()
	l := telemetry.Ledger{Records: s.Records, Dropped: s.Dropped, Failures: s.Failures, Disbelieved: a.server.Disbelieved(), Bytes: s.Bytes, Written: s.Error == ""}
	for _, b := range a.audit.lately() {
		l.Bills = append(l.Bills, telemetry.Bill{Account: b.Account, Billed: b.Billed, Ledger: b.Ledger})
	}
	return l
}
