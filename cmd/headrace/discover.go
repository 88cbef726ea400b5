package main

import (
	"context"
	"time"

	"headrace/providers"
	"headrace/providers/static"
	"headrace/router/endpoint"
)

// discover runs the providers, anew with each good config.
func (a *app) discover(ctx context.Context, reloads <-chan reading) error {
	for {
		roundCtx, cancel := context.WithCancel(ctx)
		done := make(chan error, 1)
		asked, sources := a.rented.Load(), a.sources() // before a reload can put others in their place
		go func() { done <- providers.Run(roundCtx, sources, a.discovered) }()
		again := false
		for !again {
			select {
			case err := <-done:
				cancel()
				return err
			case r, ok := <-reloads:
				if !ok {
					reloads = nil
					continue
				}
				again = a.reconfigure(r)
			}
		}
		cancel()
		if err := <-done; err != nil {
			return err
		}
		a.rented.Load().inherit(asked)
	}
}

func (a *app) sources() []providers.Source {
	a.mu.Lock()
	defer a.mu.Unlock()
	known := make(map[endpoint.ID]endpoint.Endpoint, len(a.fleet))
	for _, ep := range a.fleet {
		known[ep.ID] = ep
	}
	p := static.New(a.cfg.StaticEndpoints(time.Now()), static.Options{Log: a.log, Known: known})
	sources := []providers.Source{{Name: "static", Discoverer: p}}
	c := a.rented.Load()
	for _, acc := range c.all() {
		s := providers.Source{Name: acc.name, Discoverer: acc.Discoverer}
		for i := range a.fleet {
			if c.owns(acc, &a.fleet[i]) {
				s.Known = append(s.Known, a.fleet[i])
			}
		}
		sources = append(sources, s)
	}
	return sources
}

// discovered makes eps the fleet.
func (a *app) discovered(eps []endpoint.Endpoint) {
	a.mu.Lock()
	defer a.mu.Unlock()
	gone := a.takenAway(eps)
	eps, err := a.forward.Usable(eps)
	if err != nil {
		a.log.Error("hosts left out: they cannot be reached as described", "error", err)
	}
	if err := a.forward.Update(eps); err != nil {
		a.log.Error("fleet not changed", "error", err)
		return
	}
	a.fleet = eps
	a.router.Update(eps, a.rules, a.pools()...)
	a.books.Follow(eps)
	a.engines.Update(eps)
	a.callAway(gone) // now that nobody is sent there any more
	a.leaver.Update(eps)
	a.prober.Update(eps)
}

// hosts returns the fleet. Nobody changes the slice.
func (a *app) hosts() []endpoint.Endpoint {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.fleet
}
