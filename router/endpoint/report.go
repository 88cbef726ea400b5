package endpoint

import (
	"context"
	"sync"
	"time"
)

// WorkerReport is what a provider tells of one request beyond its answer: who did the work, for how long.
type WorkerReport struct {
	Worker    string        // the provider's name of the worker, "" when it gave none
	Executed  time.Duration // the worker was busy with the request; 0 when unknown
	Delayed   time.Duration // the request waited for a worker, cold start included
	Submitted time.Time     // the provider took the request in, by our clock; zero when unknown
	Handing   time.Duration // what handing it in took: Submitted is in the middle of that
	Redone    int           // times that the provider gave the request to another worker
	Destroyed int           // characters that the worker had replaced by U+FFFD before we saw them
	Note      string        // what an operator should know of the worker, "" for nothing
}

// Report is where a dialect's translator leaves its WorkerReport for the gateway. Its zero value is empty.
type Report struct {
	mu  sync.Mutex // guards both below
	r   WorkerReport
	set bool
}

// Put leaves a report; the last one counts.
func (r *Report) Put(w WorkerReport) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.r, r.set = w, true
}

// Take returns the report and empties the place; ok is false when there is none.
func (r *Report) Take() (w WorkerReport, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w, ok = r.r, r.set
	r.r, r.set = WorkerReport{}, false
	return w, ok
}

type reportKey struct{}

// WithReport gives the handlers below ctx a place for their report.
func WithReport(ctx context.Context, r *Report) context.Context {
	return context.WithValue(ctx, reportKey{}, r)
}

// ReportTo returns the place for a report, nil when nobody wants one.
func ReportTo(ctx context.Context) *Report {
	r, _ := ctx.Value(reportKey{}).(*Report)
	return r
}
