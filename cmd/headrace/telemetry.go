package main

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"headrace/gateway/admission/queue"
	"headrace/gateway/config"
	"headrace/gateway/trace"
	"headrace/router/endpoint"
	"headrace/telemetry"
)

// tellOthers sets up metrics and what is sent to a collector. From here on the log goes there too, if it is to.
func (a *app) tellOthers(cfg *config.Config) (err error) {
	a.metrics = a.newMetrics(cfg)
	if a.export, err = a.newExport(cfg, a.log); err != nil || a.export == nil {
		return err
	}
	if h := a.export.Handler(a.level); h != nil {
		a.away = slog.New(h)
		a.log = slog.New(slog.NewMultiHandler(a.log.Handler(), h))
	}
	return nil
}

// newMetrics returns what keeps figures, nil where the config wants none.
func (a *app) newMetrics(cfg *config.Config) *telemetry.Metrics {
	if !cfg.Telemetry.Metrics {
		return nil
	}
	names, _ := telemetry.ParseNames(cfg.Telemetry.Names) // the config knows its words
	return telemetry.NewMetrics(telemetry.MetricsOptions{
		Names: names, Exemplars: true, Version: versionText(), Now: time.Now, Before: a.batches.Flush,
		Sources: telemetry.Sources{
			Hosts: a.router.Hosts, Calibration: a.router.Calibration, Accounts: a.discoveries, Probes: a.probed,
			Waiting:  func() []queue.Length { return a.server.Waiting() },
			InFlight: func() int64 { return a.server.InFlight() }, Draining: func() bool { return a.server.Draining() }, Reloads: a.reloaded, Ledger: a.ledgerFigures, Shared: a.shared(cfg), Experiments: a.experimentFigures,
			Keys: a.keyFigures,
		},
	})
}

// newExport returns what sends telemetry to a collector, nil where the config names none. log must not lead to it.
func (a *app) newExport(cfg *config.Config, log *slog.Logger) (*telemetry.Export, error) {
	t := &cfg.Telemetry
	if t.OTLP == "" {
		return nil, nil //nolint:nilnil // nothing is sent
	}
	names, _ := telemetry.ParseNames(t.Names) // the config knows its words
	o := telemetry.ExportOptions{
		URL: t.OTLP, GRPC: t.Protocol == "grpc", Traces: t.OTLPTraces, Metrics: t.OTLPMetrics && a.metrics != nil, Logs: t.OTLPLogs,
		Figures: a.metrics, Names: names, Version: versionText(), Explain: a.router.Decision, Log: log,
	}
	if t.FromEnv {
		o.URL = ""
	}
	e, err := telemetry.NewExport(context.Background(), o)
	if err != nil {
		return nil, err
	}
	e.TraceFailures(t.Failures)
	return e, nil
}

// page serves the figures, nil where none are kept.
func (a *app) page() http.Handler {
	if a.metrics == nil {
		return nil
	}
	return a.metrics.Handler()
}

func (a *app) refused(status int, code string) {
	if a.metrics != nil {
		a.metrics.Refused(status, code)
	}
}

// discoveries tells how the accounts fare.
func (a *app) discoveries() []telemetry.Account {
	var all []telemetry.Account
	for _, acc := range a.rented.Load().all() {
		s := acc.status()
		t := telemetry.Account{Name: acc.name, LastGood: s.LastGood, Failing: s.Failing, Polls: s.Polls, Hosts: s.Endpoints}
		for _, c := range s.Calls {
			t.Calls = append(t.Calls, telemetry.Calls{Name: c.Name, Calls: c.Calls, Errors: c.Errors, Throttled: c.Throttled})
		}
		all = append(all, t)
	}
	return all
}

func (a *app) probed(id endpoint.ID) telemetry.Probes {
	s := a.prober.Status(id)
	p := telemetry.Probes{Sent: s.Sent, Failed: s.Failed}
	if len(s.Prefills) > 0 {
		p.Continues = make(map[string]string, len(s.Prefills))
	}
	for _, f := range s.Prefills {
		p.Continues[f.Model] = f.Continues
	}
	return p
}

func (a *app) reloaded() telemetry.Reloads {
	a.mu.Lock()
	defer a.mu.Unlock()
	return telemetry.Reloads{OK: a.reloadsOK, Failed: a.reloadsFailed, Current: a.reload.At.IsZero() || a.reload.OK}
}

// tracing says which requests are traced by a config, and which hosts are told.
func tracing(t *config.Telemetry) (trace.Policy, func(*endpoint.Endpoint) bool) {
	p := trace.Policy{On: t.OTLP != "" && t.OTLPTraces, Ratio: t.Sample, Trust: t.Trust}
	switch t.Propagate {
	case "all":
		return p, func(*endpoint.Endpoint) bool { return true }
	case "own":
		return p, func(ep *endpoint.Endpoint) bool { return ep.Tenure != endpoint.TenurePerToken }
	}
	return p, nil
}

// content is how much of what is said spans get; 0 for nothing.
func content(t *config.Telemetry) int {
	if t.Content != "messages" || t.OTLP == "" || !t.OTLPTraces {
		return 0
	}
	return int(t.ContentMax)
}

// warnOfContent is loud about what somebody may have set on another day for an hour.
func (a *app) warnOfContent(t *config.Telemetry) {
	if n := content(t); n > 0 {
		a.log.Warn("prompts and answers are sent with traces (telemetry.content: messages): whoever reads traces reads what callers and models say",
			"share_of_requests", t.Sample, "content_max", n)
	}
}

// telemetryLater names the keys of telemetry that differ and take effect at the next start.
func telemetryLater(old, cur config.Telemetry) []string {
	for _, t := range []*config.Telemetry{&old, &cur} { // these do not need one
		t.Sample, t.Failures, t.Trust, t.Propagate, t.Content, t.ContentMax = 0, false, false, "", "", 0
	}
	if old == cur {
		return nil
	}
	return []string{"telemetry"}
}
