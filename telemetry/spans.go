package telemetry

import (
	"math"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	oteltrace "go.opentelemetry.io/otel/trace"

	"headrace/gateway/ledger"
	"headrace/gateway/trace"
	"headrace/router"
	"headrace/router/outcome"
)

// keyBreaker is the state of a host's breaker, beside keyState, which its provider reports.
const keyBreaker = "headrace.breaker"

// spanner makes the spans of a request out of its record, when it is over. A span does not repeat what another of the request's
// says: each attribute costs a third of a microsecond on its way out.
type spanner struct {
	names    Names
	resource *resource.Resource
	scope    instrumentation.Scope
	explain  func(seq uint64) (router.Explanation, bool) // nil knows nothing
	left     int                                         // bytes of what was said that the batch may still have
}

// notable tells whether a request is worth a trace though it was not sampled: it failed, or was saved.
func notable(r *ledger.Record) bool {
	switch r.Class {
	case outcome.Success, outcome.CallerFault, outcome.ClientGone:
	default:
		return true
	}
	if r.Resumes > 0 {
		return true
	}
	for i := range r.Attempts {
		switch a := &r.Attempts[i]; a.Class {
		case outcome.Success, outcome.CallerFault, outcome.ClientGone, outcome.Outrun:
		default:
			return true
		}
	}
	return false
}

func spanContext(id trace.ID, span trace.SpanID, state string, remote bool) oteltrace.SpanContext {
	ts, _ := oteltrace.ParseTraceState(state) // one that is wrong is left out
	return oteltrace.NewSpanContext(oteltrace.SpanContextConfig{
		TraceID: oteltrace.TraceID(id), SpanID: oteltrace.SpanID(span), TraceFlags: oteltrace.FlagsSampled, TraceState: ts, Remote: remote,
	})
}

// spans returns the spans of r: the request's, and one of each attempt. SpanStub is the SDK's way to a span that is over, with an
// id and times of its own.
func (s *spanner) spans(r *ledger.Record) []sdktrace.ReadOnlySpan {
	stubs := make(tracetest.SpanStubs, 0, 2+ledger.MaxAttempts)
	own := spanContext(r.Trace.ID, r.Trace.Span, r.Trace.State, false)
	root := tracetest.SpanStub{
		Name: r.Method + " " + r.Route, SpanContext: own, SpanKind: oteltrace.SpanKindServer, StartTime: r.At, EndTime: r.At.Add(r.Duration),
		Attributes: s.request(r), Resource: s.resource, InstrumentationScope: s.scope,
	}
	if r.Trace.Parent != (trace.SpanID{}) {
		root.Parent = spanContext(r.Trace.ID, r.Trace.Parent, r.Trace.State, true)
	}
	if r.Trace.LinkID != (trace.ID{}) {
		root.Links = []sdktrace.Link{{
			SpanContext: spanContext(r.Trace.LinkID, r.Trace.LinkSpan, "", true), Attributes: []attribute.KeyValue{attribute.String(keyReason, "caller")},
		}}
	}
	if r.TTFT > 0 {
		root.Events = append(root.Events, sdktrace.Event{Name: "headrace.first_token", Time: r.At.Add(r.TTFT)})
	}
	switch r.Class {
	case outcome.Success, outcome.CallerFault, outcome.ClientGone, outcome.Throttled: // callers' doing, or their turn to wait
	default:
		root.Status = sdktrace.Status{Code: codes.Error, Description: r.Class.String()}
	}
	stubs = append(stubs, root)
	if r.Queued > 0 {
		stubs = append(stubs, s.admission(r, own))
	}
	for i := range r.Attempts {
		if r.Attempts[i].Span != (trace.SpanID{}) {
			stubs = append(stubs, s.attempt(r, i, own))
		}
	}
	return stubs.Snapshots()
}

// valid returns text without what is no UTF-8, such as a character that was cut: OTLP's encoder refuses a whole batch for it.
func valid(text string) string { return strings.ToValidUTF8(text, "?") }

// attrs puts attributes together, leaving out what is not known.
type attrs []attribute.KeyValue

func (a *attrs) text(key, v string) {
	if v != "" {
		*a = append(*a, attribute.String(key, valid(v)))
	}
}
func (a *attrs) count(key string, v int64) { *a = append(*a, attribute.Int64(key, v)) }
func (a *attrs) flag(key string, v bool)   { *a = append(*a, attribute.Bool(key, v)) }
func (a *attrs) figure(key string, v float64) {
	if !math.IsNaN(v) && !math.IsInf(v, 0) {
		*a = append(*a, attribute.Float64(key, v))
	}
}

func (a *attrs) maybe(key string, v *float64) {
	if v != nil {
		a.figure(key, *v)
	}
}

func (a *attrs) took(key string, d time.Duration) {
	if d > 0 {
		a.figure(key, d.Seconds())
	}
}

// request is what the request's own span tells.
func (s *spanner) request(r *ledger.Record) []attribute.KeyValue {
	a := make(attrs, 0, 32)
	a.text(keyMethod, r.Method)
	a.text(keyRoute, r.Route)
	if r.Route != "passthrough" {
		a.text("url.path", r.Route)
	}
	a.text(keyScheme, scheme(r.TLS))
	a.count(keyStatus, int64(r.Status))
	a.text(keyErrorType, errorType(r.Class))
	a.text("headrace.request_id", r.ID)
	if r.Known {
		a.text(keyAlias, r.Model)
	} else if r.Model != "" {
		a.text(keyAlias, other)
	}
	a.text("headrace.key", r.Key)
	a.text(keyArm, r.Arm)
	if r.Stream {
		a.flag("headrace.stream", true)
	}
	a.text(keyClass, r.Class.String())
	a.text("headrace.error_code", r.Code)
	a.count("headrace.attempts", int64(r.Tries))
	a.took("headrace.overhead", r.Overhead)
	a.took("headrace.overhead.reading", r.Reading)
	a.took("headrace.overhead.deciding", r.Deciding)
	a.took("headrace.overhead.answering", r.Overhead-r.Reading-r.Deciding)
	a.took("headrace.queued", r.Queued)
	a.took("headrace.ttft", r.TTFT)
	if r.TPS > 0 {
		a.figure("headrace.tps", r.TPS)
	}
	if r.Stream && r.SLO.TTFT > 0 {
		a.took("headrace.slo.ttft", r.SLO.TTFT)
		a.figure("headrace.slo.tps", r.SLO.TPS)
	}
	if r.USDKnown {
		a.figure("headrace.cost.usd", r.USD)
	}
	if r.Offered > 0 {
		a.count("headrace.continuations.offered", int64(r.Offered))
		a.count("headrace.continuations", int64(r.Resumes))
		a.took("headrace.continuation.gap", r.SeamGap)
	}
	a.text("headrace.not_resumed", r.Lost)
	a.text("headrace.hedge", r.Hedge)
	if r.Class == outcome.ClientGone {
		a.text(keyPhase, r.Left.String())
	}
	if !r.Trace.Sampled {
		a.text("headrace.sampled_for", "failure")
	}
	return a
}

// attempt is the span of attempt i.
func (s *spanner) attempt(r *ledger.Record, i int, parent oteltrace.SpanContext) tracetest.SpanStub {
	t := &r.Attempts[i]
	last := i == min(r.Tries, ledger.MaxAttempts)-1
	begin := r.At.Add(t.After)
	op := operation(r.Route)
	a := make(attrs, 0, 40)
	a.text(keyOperation, op)
	name := providerName(t.Provider)
	if s.names != NamesLegacy {
		a.text(keyProvider, name)
	}
	if s.names != NamesLatest {
		a.text(keySystem, name)
	}
	a.text(keyModel, t.Served)
	if r.Stream {
		a.flag("gen_ai.request.stream", true)
	}
	a.text(keyEndpoint, string(t.Endpoint))
	if r.Tries > 1 {
		a.count("headrace.attempt", int64(i+1))
	}
	a.text(keyClass, t.Class.String())
	a.text(keyErrorType, errorType(t.Class))
	if t.Status != 0 {
		a.count(keyStatus, int64(t.Status))
	}
	a.text("gen_ai.response.id", t.AnswerID)
	a.took("gen_ai.response.time_to_first_chunk", t.First)
	if t.Output > 0 && r.Tries > 1 { // else it is the answer's usage
		a.count("headrace.output_tokens", t.Output)
	}
	if t.USDKnown && r.Tries > 1 { // else it is the request's
		a.figure("headrace.cost.usd", t.USD)
	}
	if t.Hedge {
		a.flag("headrace.hedge", true)
	}
	a.text("headrace.worker", t.Told().Worker)
	a.took("headrace.worker.executed", t.Told().Executed)
	a.took("headrace.worker.delayed", t.Told().Delayed)
	if last {
		s.usage(&a, r)
	}
	a.decision(t)
	stub := tracetest.SpanStub{
		Name: op + " " + valid(t.Served), Parent: parent, SpanKind: oteltrace.SpanKindClient, StartTime: begin, EndTime: begin.Add(t.Duration),
		SpanContext: spanContext(r.Trace.ID, t.Span, r.Trace.State, false), Resource: s.resource, InstrumentationScope: s.scope,
		Attributes: a, Links: links(r, i), Events: s.candidates(t, begin),
	}
	if t.First > 0 {
		stub.Events = append(stub.Events, sdktrace.Event{Name: "gen_ai.first_chunk", Time: begin.Add(t.First)})
	}
	switch t.Class {
	case outcome.Success, outcome.ClientGone, outcome.Outrun, outcome.Moved: // wanted so by the caller, or by us
	default:
		stub.Status = sdktrace.Status{Code: codes.Error, Description: t.Class.String()}
	}
	return stub
}

// usage tells what the answer used, once a request: on the attempt that ended it.
func (s *spanner) usage(a *attrs, r *ledger.Record) {
	input, output := "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"
	for _, u := range [...]struct {
		key string
		n   int64
	}{{input, r.Prompt}, {output, r.Output}, {"gen_ai.usage.cache_read.input_tokens", r.Cached}, {"gen_ai.usage.reasoning.output_tokens", r.Reasoning}} {
		if u.n >= 0 && (u.key != output || !r.Estimated) {
			a.count(u.key, u.n)
		}
	}
	if r.Said != nil {
		s.said(a, r)
	}
	if r.Finish != "" {
		*a = append(*a, attribute.StringSlice("gen_ai.response.finish_reasons", []string{valid(r.Finish)}))
	}
	if r.TPS > 0 {
		a.figure("headrace.tps", r.TPS)
	}
}

// decision tells why the attempt went where it did, and what was expected of it.
func (a *attrs) decision(t *ledger.Attempt) {
	d := &t.Decision
	if d.Why == "" {
		return
	}
	a.text("headrace.decision.why", d.Why)
	a.text("headrace.decision.policy", d.Policy.String())
	a.text("headrace.decision.breaker", d.Breaker.String())
	if d.Candidates > 1 {
		a.count("headrace.decision.candidates", int64(d.Candidates))
		a.count("headrace.decision.eligible", int64(d.Eligible))
		a.count("headrace.decision.feasible", int64(d.Feasible))
	}
	a.figure("headrace.decision.usd_per_mtok", d.USDPerMTok)
	a.figure("headrace.decision.marginal_usd", d.MarginalUSD)
	a.figure("headrace.decision.ttft", d.TTFT)
	a.figure("headrace.decision.tps", d.TPS)
	a.figure("headrace.decision.p_ttft", d.PTTFT)
	a.figure("headrace.decision.p_tps", d.PTPS)
	if d.Cold {
		a.flag("headrace.decision.cold", true)
	}
}

// candidates tells of every host that was considered, as far as the router remembers. A host that was alone was not chosen.
func (s *spanner) candidates(t *ledger.Attempt, at time.Time) []sdktrace.Event {
	if s.explain == nil || t.Decision.Candidates < 2 {
		return nil
	}
	x, ok := s.explain(t.Decision.Seq)
	if !ok {
		return nil
	}
	events := make([]sdktrace.Event, 0, len(x.Candidate)+1)
	for i := range x.Candidate {
		c := &x.Candidate[i]
		a := make(attrs, 0, 15)
		a.text(keyEndpoint, string(c.Endpoint))
		a.text("headrace.verdict", c.Verdict)
		a.text(keyReason, c.Reason)
		a.text(keyState, c.State)
		a.text(keyBreaker, c.Breaker)
		a.flag("headrace.chosen", c.Endpoint == t.Endpoint)
		a.maybe("headrace.marginal_usd", c.MarginalUSD)
		a.maybe("headrace.usd_per_mtok", c.FullUSDMTok)
		a.maybe("headrace.ttft", c.TTFT)
		a.maybe("headrace.tps", c.TPS)
		a.maybe("headrace.p_ttft", c.PTTFT)
		a.maybe("headrace.p_tps", c.PTPS)
		a.maybe("headrace.in_flight", c.InFlight)
		a.maybe("headrace.cold_start", c.ColdSeconds)
		events = append(events, sdktrace.Event{Name: "headrace.candidate", Time: at, Attributes: a})
	}
	return events
}

// links leads from a later attempt to the one that it makes up for: a hedge to the late one, and whoever comes behind a hedge that
// won, to that.
func links(r *ledger.Record, i int) []sdktrace.Link {
	t, to := &r.Attempts[i], -1
	for j := range r.Attempts {
		o := &r.Attempts[j]
		if j != i && (!o.Hedge || !t.Hedge && r.Hedge == "won") && o.After <= t.After && (to < 0 || o.After >= r.Attempts[to].After) && (j < i || t.Hedge) {
			to = j
		}
	}
	if to < 0 || r.Attempts[to].Span == (trace.SpanID{}) {
		return nil
	}
	a := make(attrs, 0, 4)
	switch {
	case t.Hedge:
		a.text(keyReason, "hedge")
	case t.Resumed:
		a.text(keyReason, "continuation")
		a.count("headrace.seam.offset_tokens", t.Offset)
		if t.Exact {
			a.flag("headrace.seam.exact", true)
		}
	default:
		a.text(keyReason, "failover")
	}
	a.text(keyClass, r.Attempts[to].Class.String())
	return []sdktrace.Link{{SpanContext: spanContext(r.Trace.ID, r.Attempts[to].Span, r.Trace.State, false), Attributes: a}}
}
