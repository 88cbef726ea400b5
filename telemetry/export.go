package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploggrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploghttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"headrace/gateway/ledger"
	"headrace/router"
)

// ExportOptions say what is sent to a collector.
type ExportOptions struct {
	URL     string // its base; "" where the environment says all of it (OTEL_EXPORTER_OTLP_ENDPOINT and those by signal)
	GRPC    bool   // OTLP over gRPC rather than HTTP
	Traces  bool
	Logs    bool
	Metrics bool // of Figures
	Figures *Metrics

	Names   Names
	Version string                                      // of this program
	Explain func(seq uint64) (router.Explanation, bool) // tells a decision with its candidates; nil knows none
	Log     *slog.Logger                                // must not lead back here: see Handler
	Every   time.Duration                               // between two exports of metrics; 0 is OTEL_METRIC_EXPORT_INTERVAL or a minute
}

// Export sends what requests met to a collector. It never makes anyone wait: its queues are bounded, and what does not fit, or
// finds no collector, is counted and gone.
type Export struct {
	opt      ExportOptions
	resource *resource.Resource
	scope    instrumentation.Scope
	spanner  spanner
	failures atomic.Bool
	said     atomic.Int64 // bytes of what was said that wait

	traces *queue[*ledger.Record] // nil when none are sent, as is logs
	logs   *queue[sdklog.Record]
	lines  *sdklog.LoggerProvider

	traceTo  sdktrace.SpanExporter
	metricTo metric.Exporter
	logTo    sdklog.Exporter
}

// Queues hold what comes while an export takes its longest. A record takes 0.6 KB and 280 bytes an attempt, a line of the access log 1.5 KB.
const (
	traceQueue = 4096
	logQueue   = 8192
)

// NewExport connects to nobody yet. The error is about the options, or the environment.
func NewExport(ctx context.Context, o ExportOptions) (*Export, error) {
	if o.Figures == nil {
		o.Figures = NewMetrics(MetricsOptions{Now: time.Now}) // for its counts of what is lost
		o.Metrics = false
	}
	if o.Every <= 0 {
		o.Every = time.Minute
		if ms, err := strconv.Atoi(os.Getenv("OTEL_METRIC_EXPORT_INTERVAL")); err == nil && ms > 0 {
			o.Every = time.Duration(ms) * time.Millisecond
		}
	}
	res, err := resource.New(ctx,
		resource.WithTelemetrySDK(),
		resource.WithAttributes(attribute.String("service.name", "headrace"), attribute.String("service.version", o.Version),
			attribute.String("service.instance.id", instanceID(rand.Uint64(), rand.Uint64()))), //nolint:gosec // a name
		resource.WithFromEnv(), // last: it wins
	)
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, fmt.Errorf("describe this process to OpenTelemetry: %w", err)
	}
	e := &Export{opt: o, resource: res, scope: instrumentation.Scope{Name: "headrace", Version: o.Version}}
	e.spanner = spanner{names: o.Names, resource: res, scope: e.scope, explain: o.Explain}
	if err := e.open(ctx); err != nil {
		return nil, fmt.Errorf("set up OTLP: %w", err)
	}
	if o.Traces {
		e.traces = newQueue("traces", traceQueue, &o.Figures.traces, o.Log, e.sendTraces)
	}
	if o.Logs {
		e.logs = newQueue("logs", logQueue, &o.Figures.logs, o.Log, func(ctx context.Context, batch []sdklog.Record) error { return e.logTo.Export(ctx, batch) })
		e.lines = sdklog.NewLoggerProvider(sdklog.WithResource(res), sdklog.WithProcessor(lineQueue{e.logs}))
	}
	return e, nil
}

// Repeats of a failed export.
const (
	repeatAfter = time.Second
	repeatAt    = 5 * time.Second // most between two
)

// open makes the exporters. All of them find headers, timeouts, compression and certificates in the environment.
func (e *Export) open(ctx context.Context) error {
	o := &e.opt
	at := func(path string) string { return strings.TrimRight(o.URL, "/") + path }
	var errs [3]error
	switch {
	case !o.Traces:
	case o.GRPC:
		opts := []otlptracegrpc.Option{otlptracegrpc.WithRetry(otlptracegrpc.RetryConfig{Enabled: true, InitialInterval: repeatAfter, MaxInterval: repeatAt, MaxElapsedTime: exportWithin})}
		if o.URL != "" {
			opts = append(opts, otlptracegrpc.WithEndpointURL(o.URL))
		}
		e.traceTo, errs[0] = otlptrace.New(ctx, otlptracegrpc.NewClient(opts...))
	default:
		opts := []otlptracehttp.Option{otlptracehttp.WithRetry(otlptracehttp.RetryConfig{Enabled: true, InitialInterval: repeatAfter, MaxInterval: repeatAt, MaxElapsedTime: exportWithin})}
		if o.URL != "" {
			opts = append(opts, otlptracehttp.WithEndpointURL(at("/v1/traces")))
		}
		e.traceTo, errs[0] = otlptrace.New(ctx, otlptracehttp.NewClient(opts...))
	}
	switch {
	case !o.Metrics:
	case o.GRPC:
		opts := []otlpmetricgrpc.Option{otlpmetricgrpc.WithRetry(otlpmetricgrpc.RetryConfig{Enabled: true, InitialInterval: repeatAfter, MaxInterval: repeatAt, MaxElapsedTime: exportWithin})}
		if o.URL != "" {
			opts = append(opts, otlpmetricgrpc.WithEndpointURL(o.URL))
		}
		e.metricTo, errs[1] = otlpmetricgrpc.New(ctx, opts...)
	default:
		opts := []otlpmetrichttp.Option{otlpmetrichttp.WithRetry(otlpmetrichttp.RetryConfig{Enabled: true, InitialInterval: repeatAfter, MaxInterval: repeatAt, MaxElapsedTime: exportWithin})}
		if o.URL != "" {
			opts = append(opts, otlpmetrichttp.WithEndpointURL(at("/v1/metrics")))
		}
		e.metricTo, errs[1] = otlpmetrichttp.New(ctx, opts...)
	}
	switch {
	case !o.Logs:
	case o.GRPC:
		opts := []otlploggrpc.Option{otlploggrpc.WithRetry(otlploggrpc.RetryConfig{Enabled: true, InitialInterval: repeatAfter, MaxInterval: repeatAt, MaxElapsedTime: exportWithin})}
		if o.URL != "" {
			opts = append(opts, otlploggrpc.WithEndpointURL(o.URL))
		}
		e.logTo, errs[2] = otlploggrpc.New(ctx, opts...)
	default:
		opts := []otlploghttp.Option{otlploghttp.WithRetry(otlploghttp.RetryConfig{Enabled: true, InitialInterval: repeatAfter, MaxInterval: repeatAt, MaxElapsedTime: exportWithin})}
		if o.URL != "" {
			opts = append(opts, otlploghttp.WithEndpointURL(at("/v1/logs")))
		}
		e.logTo, errs[2] = otlploghttp.New(ctx, opts...)
	}
	return errors.Join(errs[:]...)
}

// TraceFailures sets whether requests that failed, or were saved, are sent though they were not sampled.
func (e *Export) TraceFailures(yes bool) { e.failures.Store(yes) }

// Record takes a copy of a request that is over, if it is to be traced. It does not wait.
func (e *Export) Record(r *ledger.Record) {
	if e.traces == nil || !r.Trace.On() || !r.Trace.Sampled && !(e.failures.Load() && notable(r)) {
		return
	}
	e.traces.add(func() *ledger.Record {
		kept := copies.Get().(*ledger.Record)
		r.CopyTo(kept)
		kept.Said = e.hold(r.Said)
		return kept
	})
}

// copies are records on their way.
var copies = sync.Pool{New: func() any { return new(ledger.Record) }}

func (e *Export) sendTraces(ctx context.Context, batch []*ledger.Record) error {
	spans := make([]sdktrace.ReadOnlySpan, 0, 2*len(batch))
	e.spanner.left = saidMost
	for _, r := range batch {
		spans = append(spans, e.spanner.spans(r)...)
		e.letGo(r.Said)
		clear(r.Attempts) // it refers to others' memory
		*r = ledger.Record{Attempts: r.Attempts[:0]}
		copies.Put(r)
	}
	return e.traceTo.ExportSpans(ctx, spans)
}

// Run exports until ctx is done, and then what is left, for three seconds at most.
func (e *Export) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	if e.traces != nil {
		wg.Go(func() { e.traces.run(ctx) })
	}
	if e.logs != nil {
		wg.Go(func() { e.logs.run(ctx) })
	}
	if e.metricTo != nil {
		wg.Go(func() { e.push(ctx) })
	}
	wg.Wait()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWithin)
	defer cancel()
	if e.traceTo != nil {
		_ = e.traceTo.Shutdown(last) // what could not be sent is counted already, here and below
	}
	if e.metricTo != nil {
		_ = e.metricTo.Shutdown(last)
	}
	if e.logTo != nil {
		_ = e.logTo.Shutdown(last)
	}
	return nil
}

// push sends the figures now and then, and once more at the end.
func (e *Export) push(ctx context.Context) {
	tick := time.NewTicker(e.opt.Every)
	defer tick.Stop()
	m, told := e.opt.Figures, false
	send := func(ctx context.Context, within time.Duration) {
		ctx, cancel := context.WithTimeout(ctx, within)
		defer cancel()
		err := e.metricTo.Export(ctx, m.snapshot(e.resource, e.scope))
		if err != nil {
			m.pushes.exports.Add(1)
		}
		told = tell(e.opt.Log, "metrics", told, err)
	}
	for {
		select {
		case <-tick.C:
			send(ctx, exportWithin)
		case <-ctx.Done():
			send(context.WithoutCancel(ctx), lastWithin)
			return
		}
	}
}
