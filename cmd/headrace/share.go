package main

import (
	"context"
	"crypto/rand"

	"golang.org/x/sync/errgroup"

	"headrace/gateway/config"
	"headrace/gateway/state"
	"headrace/gateway/state/fleet"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/telemetry"
)

// openState sets up what replicas share, or what outlives the process where there is one.
func (a *app) openState(cfg *config.Config) (err error) {
	a.bus, a.replica = state.Alone{}, rand.Text()
	switch {
	case cfg.State.Redis != "":
		if a.redis, err = state.Open(state.Options{URL: cfg.State.Redis.Reveal(), Prefix: cfg.State.Prefix, Timeout: cfg.State.Timeout, Log: a.log}); err != nil {
			return err
		}
		o := state.DocsOptions{Dir: cfg.State.Dir, Passing: []string{fleet.LearnedKind}}
		if o.Dir == config.Off {
			o.Dir = ""
		}
		a.store, a.bus, a.replica = a.redis.Docs(o), a.redis, a.redis.ID()
		a.fleets = fleet.New(fleet.Options{Router: a.router, Way: a.redis, Taken: a.takenElsewhere, Log: a.log})
	case cfg.State.Dir == config.Off:
		a.store = state.NewMemory()
	default:
		a.store = state.NewFiles(cfg.State.Dir, a.log)
	}
	return nil
}

// share keeps this replica among the others, and what it learns for the next one, until ctx is done.
func (a *app) share(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if a.redis != nil {
		g.Go(func() error { return a.redis.Run(ctx) })
		g.Go(func() error { return a.fleets.Run(ctx) })
	}
	if _, ends := a.store.(*state.Memory); !ends {
		k := fleet.NewKeeper(fleet.KeeperOptions{Router: a.router, Store: a.store, ID: a.replica, Log: a.log})
		g.Go(func() error { return k.Run(ctx) })
	}
	<-ctx.Done()
	return g.Wait()
}

// changed tells other replicas, and the ledger, what became of a host's breaker.
func (a *app) changed(t router.Transition) {
	a.seen(t)
	if a.fleets != nil {
		a.fleets.Changed(t)
	}
}

// takenElsewhere calls requests away from a host that another replica's control plane has taken away.
func (a *app) takenElsewhere(id endpoint.ID) {
	h := a.forward.Host(id)
	if h == nil {
		return
	}
	if n := h.Interrupt(); n > 0 {
		a.log.Info("host taken away: its requests go on elsewhere, where they can", "endpoint", id, "state", "as another replica was told", "requests", n)
	}
}

// stateView is what the admin API shows of what is shared and kept.
type stateView struct {
	Documents string        `json:"documents"` // where they are: redis, memory, or the directory
	Replica   string        `json:"replica,omitempty"`
	Replicas  []string      `json:"replicas,omitempty"` // as last heard
	Redis     *state.Stats  `json:"redis,omitempty"`
	Fleet     *fleet.Status `json:"fleet,omitempty"`
}

func (a *app) stateStatus() any {
	a.mu.Lock()
	v := stateView{Documents: a.cfg.State.Dir}
	a.mu.Unlock()
	if v.Documents == config.Off {
		v.Documents = "memory"
	}
	if f, ok := a.store.(*state.Files); ok && f.InMemory() {
		v.Documents = "memory"
	}
	if a.redis != nil {
		s, f := a.redis.Stats(), a.fleets.Status()
		v = stateView{"redis", a.redis.ID(), a.redis.IDs(), &s, &f}
	}
	return v
}

// shared tells how the sharing fares; nil where nothing is shared.
func (a *app) shared(cfg *config.Config) func() telemetry.Shared {
	if cfg.State.Redis == "" {
		return nil
	}
	return func() telemetry.Shared {
		s, f := a.redis.Stats(), a.fleets.Status()
		return telemetry.Shared{Up: !s.Down, Errors: s.Errors, Fallbacks: s.Missed, Replicas: a.redis.Replicas(), Told: f.Told, Heard: f.Heard, Lost: f.Lost}
	}
}
