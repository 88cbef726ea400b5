package main

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"headrace/router"
)

const adviseEvery = time.Second

// adviser asks the router again and again what would make the fleet cheaper, and keeps what it said lately.
type adviser struct {
	router *router.Router
	log    *slog.Logger

	mu   sync.Mutex // guards said
	said []toldAdvice
}

// toldAdvice is advice with the time it was last given.
type toldAdvice struct {
	router.Advice
	At time.Time `json:"at"`
}

// rememberAdvice is how long advice is shown after it was last given: a worker is advised to be woken at most every 20 s.
const rememberAdvice = time.Minute

// Run asks until ctx is done.
func (a *adviser) Run(ctx context.Context) error {
	t := time.NewTicker(adviseEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now := <-t.C:
			a.ask(now)
		}
	}
}

// ask takes what the router says, and logs what is new.
func (a *adviser) ask(now time.Time) {
	list := a.router.Advise(now)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.said = slices.DeleteFunc(a.said, func(t toldAdvice) bool { return now.Sub(t.At) > rememberAdvice })
	for i := range list {
		n := &list[i]
		j := slices.IndexFunc(a.said, func(t toldAdvice) bool {
			return t.Action == n.Action && t.Endpoint == n.Endpoint && t.Model == n.Model
		})
		if j >= 0 {
			a.said[j] = toldAdvice{*n, now}
			continue
		}
		a.said = append(a.said, toldAdvice{*n, now})
		a.log.Info("advice", "action", string(n.Action), "model", n.Model, "endpoint", string(n.Endpoint), "why", n.Why)
	}
}

// lately returns what was said within the last minute.
func (a *adviser) lately() any {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]toldAdvice{}, a.said...)
}
