package telemetry

import (
	"context"
	"encoding/hex"
	"log/slog"

	"go.opentelemetry.io/otel/attribute"
	otellog "go.opentelemetry.io/otel/log"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	oteltrace "go.opentelemetry.io/otel/trace"
)

// lineQueue puts log records into a queue.
type lineQueue struct{ to *queue[sdklog.Record] }

// OnEmit queues a copy.
func (q lineQueue) OnEmit(_ context.Context, r *sdklog.Record) error {
	q.to.add(r.Clone)
	return nil
}

// Enabled takes all; slog has decided.
func (q lineQueue) Enabled(context.Context, sdklog.EnabledParameters) bool { return true }

// Shutdown has nothing to do: the queue has an owner.
func (q lineQueue) Shutdown(context.Context) error { return nil }

// ForceFlush has nothing to do, likewise.
func (q lineQueue) ForceFlush(context.Context) error { return nil }

// Handler sends log lines to the collector; nil when none are sent. Whatever logs about the export itself must not use it.
func (e *Export) Handler(level slog.Leveler) slog.Handler {
	if e.lines == nil {
		return nil
	}
	return &lines{to: e.lines.Logger("headrace"), level: level}
}

// lines is a slog.Handler over OpenTelemetry's logs. Attributes trace_id and span_id become the record's own.
type lines struct {
	to     otellog.Logger
	level  slog.Leveler
	prefix string // of groups, with a dot at its end
	with   []attribute.KeyValue
}

func (l *lines) Enabled(_ context.Context, level slog.Level) bool { return level >= l.level.Level() }

func (l *lines) Handle(ctx context.Context, r slog.Record) error {
	var rec otellog.Record
	rec.SetTimestamp(r.Time)
	rec.SetBody(attribute.StringValue(valid(r.Message)))
	rec.SetSeverity(severity(r.Level))
	rec.SetSeverityText(r.Level.String())
	rec.AddAttributes(l.with...)
	var id oteltrace.TraceID
	var span oteltrace.SpanID
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "trace_id":
			_, _ = hex.Decode(id[:], []byte(a.Value.String())) // ours, and right
		case "span_id":
			_, _ = hex.Decode(span[:], []byte(a.Value.String()))
		default:
			rec.AddAttributes(l.attr(a))
		}
		return true
	})
	if id.IsValid() {
		ctx = oteltrace.ContextWithSpanContext(ctx, oteltrace.NewSpanContext(oteltrace.SpanContextConfig{TraceID: id, SpanID: span}))
	}
	l.to.Emit(ctx, rec)
	return nil
}

func (l *lines) WithAttrs(as []slog.Attr) slog.Handler {
	next := *l
	next.with = append([]attribute.KeyValue(nil), l.with...)
	for _, a := range as {
		next.with = append(next.with, l.attr(a))
	}
	return &next
}

func (l *lines) WithGroup(name string) slog.Handler {
	next := *l
	next.prefix += name + "."
	return &next
}

func (l *lines) attr(a slog.Attr) attribute.KeyValue {
	return attribute.KeyValue{Key: attribute.Key(l.prefix + a.Key), Value: value(a.Value.Resolve())}
}

func value(v slog.Value) attribute.Value {
	switch v.Kind() {
	case slog.KindBool:
		return attribute.BoolValue(v.Bool())
	case slog.KindInt64:
		return attribute.Int64Value(v.Int64())
	case slog.KindFloat64:
		return attribute.Float64Value(v.Float64())
	default:
		return attribute.StringValue(valid(v.String())) // as the text handler writes it; a secret hides itself there
	}
}

// severity has slog's steps of four between OpenTelemetry's.
func severity(l slog.Level) otellog.Severity {
	return otellog.Severity(min(max(int(l)+int(otellog.SeverityInfo), int(otellog.SeverityTrace1)), int(otellog.SeverityFatal4)))
}
