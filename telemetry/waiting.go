package telemetry

import (
	"time"

	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	oteltrace "go.opentelemetry.io/otel/trace"

	room "headrace/gateway/admission/queue"
	"headrace/gateway/ledger"
)

const reasons = int(room.Drained) + 1 // of room.Why

// waiting is what requests of a model, or for the door, met in the waiting room.
type waiting struct {
	took    [room.NumPriorities]hist
	refused [reasons]int64
}

// record counts r.
func (w *waiting) record(r *ledger.Record, ex *exemplar) {
	if r.Queued > 0 {
		w.took[priority(r)].add(queueWait, r.Queued.Seconds(), ex)
	}
	if r.Refused != room.Waits {
		w.refused[r.Refused]++
	}
}

func priority(r *ledger.Record) room.Priority {
	if r.Batch {
		return room.Batch
	}
	return room.Interactive
}

func (w *waiting) tell(held *shelf, model string) {
	for p := range room.NumPriorities {
		held.hist(queueWait, &w.took[p], model, p.String())
	}
	for why, n := range w.refused {
		some(held, queueRefusals, n, model, room.Why(why).String()) //nolint:gosec // a handful
	}
}

// collectLengths tells how many wait.
func (m *Metrics) collectLengths(to sink) {
	if m.opt.Sources.Waiting == nil {
		return
	}
	for _, l := range m.opt.Sources.Waiting() {
		model := l.Pool
		if model != room.Door {
			model = m.knownModels.of(model, &m.overflowed)
		}
		to.number(queueLength, float64(l.Waiting), model, l.Priority.String())
	}
}

// admission is the span of a request's waiting. Its id is the request's own but for the last bit, which is set in all that are drawn.
func (s *spanner) admission(r *ledger.Record, parent oteltrace.SpanContext) tracetest.SpanStub {
	id := r.Trace.Span
	id[len(id)-1] &^= 1
	end := r.At.Add(waitedTo(r))
	a := make(attrs, 0, 4)
	a.text(keyPriority, priority(r).String())
	a.took("headrace.queued", r.Queued)
	if r.Refused != room.Waits {
		a.text(keyReason, r.Refused.String())
	}
	return tracetest.SpanStub{
		Name: "admission", Parent: parent, SpanKind: oteltrace.SpanKindInternal, StartTime: end.Add(-r.Queued), EndTime: end,
		SpanContext: spanContext(r.Trace.ID, id, r.Trace.State, false), Resource: s.resource, InstrumentationScope: s.scope, Attributes: a,
	}
}

// waitedTo is when the waiting was over, from Record.At on: before the first attempt that has so much time before it.
func waitedTo(r *ledger.Record) time.Duration {
	over := time.Duration(0)
	for i := range r.Attempts {
		a := &r.Attempts[i]
		if a.After-over >= r.Queued {
			return a.After
		}
		over = max(over, a.After+a.Duration)
	}
	return max(r.Duration, r.Queued)
}
