package main

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"headrace/providers/runpod"
	"headrace/router"
	"headrace/router/endpoint"
)

const adviseEvery = time.Second

// actor carries out advice about an account's endpoints, as far as its operator allows.
type actor interface {
	// Seek tells what would help at each endpoint now. It never blocks.
	Seek(wants []runpod.Want)
	// Outcome tells what came of an advice.
	Outcome(ep *endpoint.Endpoint, action string) runpod.Outcome
}

// adviser asks the router again and again what would make the fleet cheaper, keeps what it said lately, and has done what may be.
type adviser struct {
	router *router.Router
	log    *slog.Logger
	act    actor                      // nil: all is left to the operator
	fleet  func() []endpoint.Endpoint // needed with act

	mu   sync.Mutex // guards said
	said []toldAdvice
}

// toldAdvice is advice with the time it was last given.
type toldAdvice struct {
	router.Advice
	At time.Time `json:"at"`

	Done   bool       `json:"done"`              // it was carried out, by this replica
	DoneAt *time.Time `json:"done_at,omitempty"` // the last time
	Note   string     `json:"note,omitempty"`    // why it was not, or not wholly
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
	a.seek(list)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.said = slices.DeleteFunc(a.said, func(t toldAdvice) bool { return now.Sub(t.At) > rememberAdvice })
	for i := range list {
		n := &list[i]
		j := slices.IndexFunc(a.said, func(t toldAdvice) bool {
			return t.Action == n.Action && t.Endpoint == n.Endpoint && t.Model == n.Model
		})
		if j >= 0 {
			a.said[j] = toldAdvice{Advice: *n, At: now}
			continue
		}
		a.said = append(a.said, toldAdvice{Advice: *n, At: now})
		a.log.Info("advice", "action", string(n.Action), "model", n.Model, "endpoint", string(n.Endpoint), "why", n.Why)
	}
}

// seek hands on what RunPod's endpoints are wanted to do: advice, and what was advised before and still holds.
func (a *adviser) seek(list []router.Advice) {
	if a.act == nil {
		return
	}
	held := a.router.Held()
	fleet := a.fleet()
	var wants []runpod.Want
	for i := range fleet {
		ep := &fleet[i]
		if ep.Provider != "runpod" {
			continue
		}
		w := runpod.Want{Endpoint: ep, Hold: held[ep.ID]}
		for j := range list {
			n := &list[j]
			if n.Endpoint != ep.ID || n.Action != router.Wake && n.Action != router.Hold {
				continue
			}
			w.Wake = w.Wake || n.Action == router.Wake
			w.Why = n.Why
		}
		wants = append(wants, w)
	}
	a.act.Seek(wants)
}

// lately returns what was said within the last minute, and what came of it.
func (a *adviser) lately() any {
	a.mu.Lock()
	said := append([]toldAdvice{}, a.said...)
	a.mu.Unlock()
	if a.act == nil {
		return said
	}
	fleet := a.fleet()
	for i := range said {
		t := &said[i]
		for j := range fleet {
			if fleet[j].ID != t.Endpoint {
				continue
			}
			o := a.act.Outcome(&fleet[j], string(t.Action))
			if t.Done, t.Note = o.Done, o.Note; o.Done {
				t.DoneAt = &o.At
			}
		}
	}
	return said
}
