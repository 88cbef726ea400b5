package main

import (
	"log/slog"
	"time"

	"headrace/gateway/config"
	"headrace/gateway/ledger"
	"headrace/gateway/ledger/books"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/health"
	"headrace/router/outcome"
)

// newBooks returns the ledger of a config. Its file is opened soon after the start. Before is books.Options.Before.
func newBooks(cfg *config.Config, before func(), log *slog.Logger) *books.Books {
	l := &cfg.Ledger
	o := books.Options{Path: l.Path, Flush: l.Flush, Keep: l.Keep, KeepSums: l.KeepSums, MaxBytes: l.MaxSize, Now: time.Now, Before: before, Log: log}
	if l.Path == config.Off {
		o.Path = ""
	}
	return books.New(o)
}

// listPrice is the API of the operator's choice, nil for none.
func listPrice(cfg *config.Config) *books.ListPrice {
	p := cfg.Ledger.ListPrice
	if p == nil {
		return nil
	}
	return &books.ListPrice{In: p.In, Cached: p.Cached, Out: p.Out, Source: "ledger.list_price"}
}

// asked is what the fleet asks for its work now.
func (a *app) asked() (list []books.Price) {
	now := time.Now()
	for _, h := range a.router.Hosts() {
		ep := h.Endpoint
		p := &ep.Price
		q := books.Price{Host: string(ep.ID), Provider: ep.Provider, Basis: p.Basis.String(), GPU: ep.Hardware.GPU, Source: p.Source, At: now}
		switch p.Basis {
		case endpoint.PerHour:
			q.USD = p.USDPerHour
		case endpoint.PerWorkerSecond:
			q.USD = p.USDPerWorkerSecond * 3600
		case endpoint.PerToken:
			q.In, q.Cached, q.Out = p.USDPerMTokIn, p.USDPerMTokCached, p.USDPerMTokOut
		case endpoint.BasisUnknown:
			continue
		}
		if h.FullLoadUSDPerMTok != nil && p.Basis != endpoint.PerToken {
			q.Out = *h.FullLoadUSDPerMTok
		}
		for _, s := range ep.Served {
			q.Served = s.Name
			list = append(list, q)
		}
	}
	return list
}

// worked tells those who add up workers' time when an attempt ended that says nothing of its worker.
func (a *app) worked(r *ledger.Record) {
	for i := range r.Attempts {
		t := &r.Attempts[i]
		if t.Basis == endpoint.PerWorkerSecond && t.Worker == nil && t.Provider == "runpod" && (t.First > 0 || t.Class == outcome.Success) {
			a.rented.Load().busy(t.Endpoint, r.At.Add(t.After+t.Duration))
		}
	}
}

// seen tells the ledger when hosts were lost: their control planes do so later.
func (a *app) seen(t router.Transition) {
	switch t.Change {
	case health.Lost, health.Preempted:
		if !t.Told {
			a.books.Lost(t.Endpoint)
		}
	case health.Recovered, health.Revived, health.Cleared:
		a.books.Back(t.Endpoint)
	case health.Unchanged, health.Opened:
	}
}
