package main

import (
	"errors"
	"reflect"
	"slices"
	"time"

	"headrace/gateway/admin"
	"headrace/gateway/config"
)

// reconfigure applies a config that was read anew; false means that it changes nothing.
func (a *app) reconfigure(r reading) bool {
	err := r.err
	if err == nil {
		err = errors.Join(a.forward.Check(r.cfg.StaticEndpoints(time.Now())), a.checkBound(r.cfg))
	}
	if err == nil {
		for _, c := range a.certs {
			err = errors.Join(err, c.Reload())
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reload = admin.ReloadStatus{At: time.Now(), OK: err == nil}
	if err != nil {
		a.reloadsFailed++
		a.reload.Error = err.Error()
		a.log.Error("config not reloaded: the one in force stays", "error", err)
		return false
	}
	if later := needRestart(a.cfg, r.cfg); len(later) > 0 {
		a.log.Warn("changes that take effect at the next start only", "keys", later)
	}
	a.reloadsOK++
	a.cfg, a.rules, a.trials = r.cfg, rules(r.cfg), trials(r.cfg)
	a.router.Update(a.fleet, a.rules, a.pools()...) // before requests look for an arm's hosts
	a.trying.Configure(a.trials)
	a.warn(r.cfg)
	if a.export != nil {
		a.export.TraceFailures(r.cfg.Telemetry.Failures)
	}
	a.expected.Store(expectations(r.cfg))
	a.rented.Store(a.rented.Load().next(r.cfg, a.redis, a.log)) // the old ones end with their round
	a.actor.Configure(a.actorOptions(r.cfg))
	a.level.Set(r.cfg.Log.Level)
	a.access.Store(r.cfg.Log.Access)
	a.speak.configure(r.cfg)
	a.keys.Configure(keysOf(r.cfg), r.cfg.RequireKey)
	a.server.Configure(settings(r.cfg))
	a.leaver.Configure(r.cfg.Timeouts.Leave)
	a.prober.Configure(probing(r.cfg))
	a.warnOfContent(&r.cfg.Telemetry)
	a.log.Info("config reloaded")
	return true
}

// needRestart names the keys that differ and cannot change while the process runs.
func needRestart(old, cur *config.Config) []string {
	var keys []string
	for _, k := range []struct {
		name string
		same bool
	}{
		{"listen", slices.EqualFunc(old.Listen, cur.Listen, sameListener)},
		{"admin", old.Admin == cur.Admin},
		{"limits.max_head", old.Limits.MaxHead == cur.Limits.MaxHead},
		{"timeouts.idle", old.Timeouts.Idle == cur.Timeouts.Idle},
		{"timeouts.connect", old.Timeouts.Connect == cur.Timeouts.Connect},
		{"timeouts.upstream_idle", old.Timeouts.UpstreamIdle == cur.Timeouts.UpstreamIdle},
		{"retries.budget", old.Retries.Budget == cur.Retries.Budget && old.Retries.BudgetCap == cur.Retries.BudgetCap},
		{"retries.hedge_budget", old.Retries.HedgeBudget == cur.Retries.HedgeBudget},
		{"breaker", old.Breaker == cur.Breaker},
		{"state", old.State == cur.State},
		{"log.format", old.Log.Format == cur.Log.Format},
	} {
		if !k.same {
			keys = append(keys, k.name)
		}
	}
	if !reflect.DeepEqual(old.Ledger, cur.Ledger) {
		keys = append(keys, "ledger")
	}
	return append(keys, telemetryLater(old.Telemetry, cur.Telemetry)...)
}

func sameListener(a, b config.Listener) bool {
	if a.Address != b.Address || (a.TLS == nil) != (b.TLS == nil) {
		return false
	}
	return a.TLS == nil || *a.TLS == *b.TLS
}

func (a *app) reloadStatus() *admin.ReloadStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.reload.At.IsZero() {
		return nil
	}
	s := a.reload
	return &s
}
