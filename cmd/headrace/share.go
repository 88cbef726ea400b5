package main

import (
	"context"

	"headrace/gateway/config"
	"headrace/gateway/state"
)

// openState sets up what replicas share, or what outlives the process where there is one.
func (a *app) openState(cfg *config.Config) (err error) {
	switch {
	case cfg.State.Redis != "":
		if a.redis, err = state.Open(state.Options{URL: cfg.State.Redis.Reveal(), Log: a.log}); err != nil {
			return err
		}
		a.store, a.bus = a.redis.Docs(), a.redis
		return nil
	case cfg.State.Dir == config.Off:
		a.store = state.NewMemory()
	default:
		a.store = state.NewFiles(cfg.State.Dir, a.log)
	}
	a.bus = state.Alone{}
	return nil
}

// share keeps this replica among the others until ctx is done.
func (a *app) share(ctx context.Context) error {
	if a.redis == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	return a.redis.Run(ctx)
}
