package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"headrace/gateway"
	"headrace/gateway/admin"
	"headrace/gateway/admission"
	"headrace/gateway/config"
	"headrace/gateway/experiments"
	"headrace/gateway/forward"
	"headrace/gateway/ledger"
	"headrace/gateway/ledger/books"
	"headrace/gateway/listen"
	"headrace/gateway/probe"
	"headrace/gateway/scrape"
	"headrace/gateway/state"
	"headrace/gateway/state/fleet"
	"headrace/providers/runpod"
	"headrace/providers/static"
	"headrace/router"
	"headrace/router/capacity"
	"headrace/router/endpoint"
	"headrace/router/health"
	"headrace/router/outcome"
	"headrace/telemetry"
)

const (
	ringSize   = 1000
	logsWithin = 100 * time.Millisecond // an access log line is out that soon
)

// app wires the parts together: nothing else knows all of them.
type app struct {
	level   *slog.LevelVar
	logs    *telemetry.Writer
	log     *slog.Logger
	router  *router.Router
	forward *forward.Client
	engines *scrape.Poller
	leaver  *leaver
	prober  *probe.Prober
	server  *gateway.Server
	metrics *telemetry.Metrics // nil when none are kept
	export  *telemetry.Export  // nil when nothing is sent
	away    *slog.Logger       // to the collector, nil when it gets no lines
	ring    *ledger.Ring
	batches *ledger.Batches // of settled records, on their way to books and metrics
	books   *books.Books
	trying  *experiments.Manager
	audit   *auditor
	rented  atomic.Pointer[clouds]
	speak   *translators
	actor   *runpod.Actor
	redis   *state.Redis // nil when replicas share nothing
	keys    *admission.Gate
	store   state.Store // documents that replicas share, or that outlive the process
	bus     state.Bus
	replica string       // what this one is called by the others
	fleets  *fleet.Share // nil when replicas share nothing
	access  atomic.Bool

	expected atomic.Pointer[capacity.Rules] // of hosts, before they were measured
	json     bool                           // log.format
	certs    []*listen.Certificate

	onSettled func(*ledger.Record) // also told of every request, or nil; set before run

	listeners []gateway.Listener
	admin     net.Listener // nil when it is off

	mu     sync.Mutex // guards all below
	cfg    *config.Config
	fleet  []endpoint.Endpoint
	rules  []router.ModelRule
	trials []experiments.Trial
	reload admin.ReloadStatus

	reloadsOK, reloadsFailed int64
}

// newApp opens the listeners, those aside that are given, and builds everything; run starts it. It owns given.
func newApp(cfg *config.Config, logTo io.Writer, given ...net.Listener) (*app, error) {
	a := &app{level: new(slog.LevelVar), cfg: cfg, ring: ledger.NewRing(ringSize), rules: rules(cfg), trials: trials(cfg)}
	a.level.Set(cfg.Log.Level)
	a.logs = telemetry.NewWriter(logTo, logsWithin)
	a.log = telemetry.NewLogger(a.logs, telemetry.LogOptions{Level: a.level, Format: cfg.Log.Format})
	a.access.Store(cfg.Log.Access)
	a.json = cfg.Log.Format == "json"
	a.expected.Store(expectations(cfg))
	a.router = router.New(router.Options{
		Now:     time.Now,
		Probes:  true,
		Prior:   a.expect,
		Breaker: health.Options{Failures: cfg.Breaker.Failures, OpenFor: cfg.Breaker.OpenFor},
		Retry:   router.BudgetOptions{PerRequest: cfg.Retries.Budget, Cap: cfg.Retries.BudgetCap},
		Hedge:   router.BudgetOptions{PerRequest: cfg.Retries.HedgeBudget},
		Seed:    rand.Uint64(), //nolint:gosec // replicas differ by it, nothing is guarded
		Changed: a.changed,
	})
	a.batches = ledger.NewBatches(a.count)
	a.books = newBooks(cfg, a.batches.Flush, a.log)
	a.audit = &auditor{bills: a.accountBills, between: a.books.Between, billed: a.books.Billed, log: a.log}
	if err := a.tellOthers(cfg); err != nil {
		return nil, err
	}
	if err := a.openState(cfg); err != nil {
		return nil, err
	}
	a.trying = experiments.New(experiments.Options{
		Store: a.store, Log: a.log, Host: func(id endpoint.ID) *endpoint.Endpoint { return a.router.Snapshot().Endpoint(id) },
		Pool: func(name string) (int, bool) { return a.router.Snapshot().Pool(name) },
	})
	a.trying.Configure(a.trials)
	a.engines = scrape.New(scrape.Options{Log: a.log, Deliver: a.router.Observe})
	a.rented.Store(newClouds(cfg, a.redis, a.log))
	a.actor = runpod.NewActor(a.actorOptions(cfg))
	a.speak = newTranslators(cfg, a.log, a.rented.Load)
	a.forward = forward.New(forward.Options{Connect: cfg.Timeouts.Connect, UpstreamIdle: cfg.Timeouts.UpstreamIdle, Translate: a.speak.handler})
	a.leaver = newLeaver(a.forward.Interrupt, cfg.Timeouts.Leave, a.log)
	a.prober = a.newProber(cfg)
	a.keys = admission.New(a.keyOptions(cfg))
	a.keys.Configure(keysOf(cfg), cfg.RequireKey)
	a.server = gateway.New(gateway.Options{
		Router: a.router, Forward: a.forward, Log: a.log, Settled: a.settled,
		MaxHead: int(cfg.Limits.MaxHead), Idle: cfg.Timeouts.Idle, Classify: classify, Refusal: refusal,
		Failed:  func(id endpoint.ID, _ outcome.Class) { a.rented.Load().look(id) },
		Learned: func(id endpoint.ID, model string) { a.rented.Load().learned(id, model) },
		Worked:  func(id endpoint.ID, w endpoint.WorkerReport) { a.rented.Load().worked(id, w) },
		Refused: a.refused, Keys: a.keys, Arms: a.trying.Table,
		Webhook: func(name string, header func(string) string, body []byte) int {
			return a.rented.Load().webhook(name, header, body)
		},
	}, settings(cfg))
	if err := a.forward.Check(cfg.StaticEndpoints(time.Now())); err != nil {
		return nil, err
	}
	if err := a.open(cfg, given); err != nil {
		a.closeListeners()
		return nil, err
	}
	return a, nil
}

// run serves until ctx is done, reading configs from reloads.
func (a *app) run(ctx context.Context, reloads <-chan reading) error {
	logsCtx, stopLogs := context.WithCancel(context.WithoutCancel(ctx)) // logs outlive all that may log
	logsDone := make(chan struct{})
	go func() { defer close(logsDone); _ = a.logs.Run(logsCtx) }()
	defer func() { stopLogs(); <-logsDone }()
	if a.export != nil { // outlives all that it tells of, but the log
		exportCtx, stopExport := context.WithCancel(context.WithoutCancel(ctx))
		exported := make(chan struct{})
		go func() { defer close(exported); _ = a.export.Run(exportCtx) }()
		defer func() { stopExport(); <-exported }()
	}
	booksCtx, stopBooks := context.WithCancel(context.WithoutCancel(ctx)) // requests that drain are recorded whatever part has failed
	booked := make(chan struct{})
	defer func() { stopBooks(); <-booked }()

	backCtx, stopBack := context.WithCancel(context.WithoutCancel(ctx)) // background parts outlive the drain
	defer stopBack()
	serveCtx, stopServe := context.WithCancel(ctx)
	defer stopServe()
	back := parts{failed: stopServe} // which ends the server, while the others go on: requests that drain need hosts, and their keys are to be charged

	cfg := a.cfg                                                                                      // which a reload replaces
	a.discovered(slices.Clone(static.New(cfg.StaticEndpoints(time.Now()), static.Options{}).Hosts())) // before the first request
	back.Go(func() error { return a.discover(backCtx, reloads) })
	back.Go(func() error { return a.share(backCtx) })
	a.startKeys(ctx)
	back.Go(func() error { return a.keys.Run(backCtx) })
	back.Go(func() error { a.router.Warm(); return nil })
	go func() { defer close(booked); _ = a.books.Run(booksCtx, a.asked) }()
	a.startExperiments(ctx)
	back.Go(func() error { return a.trying.Run(backCtx) })
	back.Go(func() error { return a.server.RunShadows(backCtx) })
	back.Go(func() error {
		t := time.NewTicker(reconcileEvery)
		defer t.Stop()
		return a.audit.Run(backCtx, t.C)
	})
	back.Go(func() error { return a.engines.Run(backCtx) })
	back.Go(func() error { return a.leaver.Run(backCtx) })
	back.Go(func() error { return a.prober.Run(backCtx) })
	advice := &adviser{router: a.router, log: a.log, act: a.actor, fleet: a.hosts}
	back.Go(func() error { return advice.Run(backCtx) })
	back.Go(func() error { return a.actor.Run(backCtx) })
	back.Go(func() error {
		t := time.NewTicker(calibrationEvery)
		defer t.Stop()
		watchCalibration(backCtx, a.router, t.C, a.log)
		return nil
	})
	if a.admin != nil {
		back.Go(func() error {
			return admin.Serve(backCtx, a.admin, admin.Options{
				Router: a.router, Requests: a.ring, InFlight: a.server.InFlight, Draining: a.server.Draining,
				Reload: a.reloadStatus, Version: versionText(), Providers: func() any { return a.statuses() },
				Host: hostOf(cfg.Admin), Keys: a.keys, Experiments: a.trying, Shadow: a.shadow, Metrics: a.page(), Spend: a.books.Handler(listPrice(cfg)),
				Advice: advice.lately, Drain: a.drain, Undrain: a.undrain, Probe: a.prober.Status, State: a.stateStatus,
			})
		})
	}
	a.warnOfContent(&cfg.Telemetry)
	for _, l := range a.listeners {
		a.log.Info("listening", "address", l.Addr().String(), "tls", l.TLS != nil)
	}
	if a.admin != nil {
		a.log.Info("admin listening", "address", a.admin.Addr().String())
	}
	err := a.server.Serve(serveCtx, a.listeners...)
	stopBack()
	if berr := back.Wait(); berr != nil && !errors.Is(berr, context.Canceled) {
		err = errors.Join(err, berr)
	}
	a.forward.Close()
	a.speak.close(a.log)
	if a.redis != nil {
		_ = a.redis.Close()
	}
	a.log.Info("stopped", "requests", a.ring.Total())
	return err
}

// parts are goroutines of which one that fails has something done, and stops none of the others.
type parts struct {
	errgroup.Group
	failed func()
}

// Go runs a part.
func (p *parts) Go(part func() error) {
	p.Group.Go(func() error {
		err := part()
		if err != nil {
			p.failed()
		}
		return err
	})
}

// count adds a settled request to what is counted.
func (a *app) count(r *ledger.Record) {
	a.books.Record(r)
	if a.metrics != nil {
		a.metrics.Record(r)
	}
}

// settled records a request: in memory for the admin API, and as a line of the access log.
func (a *app) settled(r *ledger.Record) {
	a.ring.Add(r)
	a.batches.Add(r)
	a.worked(r)
	a.trying.Observe(r)
	if a.export != nil {
		a.export.Record(r)
	}
	if a.onSettled != nil {
		a.onSettled(r)
	}
	if !a.access.Load() || !a.log.Enabled(context.Background(), slog.LevelInfo) {
		return
	}
	if !a.json {
		logRecord(a.log, r)
		return
	}
	now := r.At.Add(r.Duration)
	_ = a.logs.Append(func(dst []byte) []byte { return r.AppendLine(dst, now) }) // a log that cannot be written has nowhere to say so
	if a.away != nil {
		logRecord(a.away, r)
	}
}

// logRecord is a function of its own since its kilobyte of stack would else be every request's.
func logRecord(to *slog.Logger, r *ledger.Record) {
	var room [24]slog.Attr
	to.LogAttrs(context.Background(), slog.LevelInfo, "request", r.Attrs(room[:0])...)
}
