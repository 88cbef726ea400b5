// Package router decides which endpoint serves a request. It does no I/O and reads no clock but the
// one it is given, so that a simulator can run it in virtual time.
//
// A request goes Pick -> Lease -> Done over one immutable snapshot, read once and without a lock.
// What is learned of an endpoint is kept by its ID and outlives snapshots.
//
// The choice made here is the static spill: the endpoint that is cheapest at full load, until it is
// half full, then the next; when all are half full, the least used. It never looks at the measured
// average price per token: the busiest host looks cheapest by that figure until it collapses.
package router

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"headrace/router/endpoint"
	"headrace/router/health"
	"headrace/router/outcome"
)

// Options set up a Router; zero values but Now mean defaults.
type Options struct {
	Breaker health.Options
	Retry   BudgetOptions
	Now     func() time.Time // the clock; required
}

// Router holds the current snapshot and the state of every endpoint.
type Router struct {
	opt    Options
	now    func() time.Time
	Budget *Budget // of retries, shared by all requests

	mu    sync.Mutex // guards hosts; held in Update only
	hosts map[endpoint.ID]*host
	snap  atomic.Pointer[Snapshot]
}

// New returns a Router without endpoints.
func New(o Options) *Router {
	r := &Router{opt: o, now: o.Now, Budget: NewBudget(o.Retry), hosts: map[endpoint.ID]*host{}}
	if r.now == nil {
		panic("BUG: router.New without a clock")
	}
	r.snap.Store(&Snapshot{models: map[string]*Model{}, byID: map[endpoint.ID]*candidate{}})
	return r
}

// Snapshot returns the current view.
func (r *Router) Snapshot() *Snapshot { return r.snap.Load() }

// Request is what Pick needs to know.
type Request struct {
	Model string
	Now   time.Time     // when it is asked, by the Router's clock; zero asks the clock
	Tried []endpoint.ID // endpoints that failed this request already: not picked while another lives
}

// ErrUnknownModel says that no endpoint serves the model, now or as far as is known.
var ErrUnknownModel = errors.New("unknown model")

// UnavailableError says that endpoints serve the model but none may be used now.
type UnavailableError struct {
	Model      string
	RetryAfter time.Duration // when the first of them may be tried again
	Throttled  bool          // all of them said they are at their limit
	Reason     string        // closed set, fit for a caller
}

// Error names the model and the reason.
func (e *UnavailableError) Error() string {
	return fmt.Sprintf("no endpoint for model %q: %s", e.Model, e.Reason)
}

// Decision says why a lease went where it went.
type Decision struct {
	Candidates int     // endpoints that serve the model
	Eligible   int     // of these, those that could have been picked
	USDPerMTok float64 // the winner's full-load price per million output tokens; NaN when unknown
	Why        string
}

// Lease is a slot on an endpoint, from Pick to Done.
type Lease struct {
	Endpoint *endpoint.Endpoint
	// Served is the model's id as the endpoint knows it; ServedJSON the same as a JSON string, nil
	// when the caller used it.
	Served     string
	ServedJSON []byte
	Decision   Decision

	host   *host
	ticket health.Ticket
	now    func() time.Time
	held   bool

	inFlightAtPick int64
}

const (
	spillAt        = 0.5 // share of an engine's sequences up to which the cheapest is preferred
	defaultSeqs    = 32  // sequences of an engine that told nothing
	priorTPS       = 30  // tokens per second of one stream before anything was measured
	deniedCoolDown = time.Minute
	maxCoolDown    = 10 * time.Minute
)

// Pick leases the endpoint that serves q best into l. The error is ErrUnknownModel or an *UnavailableError.
func (r *Router) Pick(q *Request, l *Lease) error {
	m := r.snap.Load().models[q.Model]
	if m == nil {
		return ErrUnknownModel
	}
	now := q.Now
	if now.IsZero() {
		now = r.now()
	}
	tried := q.Tried
	var busy []endpoint.ID // their half-open trial is another request's
	for {
		best, eligible := r.choose(m, tried, busy, now)
		if best == nil && len(tried) > 0 {
			tried = nil // all that live were tried: the least bad one again
			continue
		}
		if best == nil {
			return r.unavailable(m, now)
		}
		ticket, ok := best.host.breaker.Allow()
		if !ok {
			busy = append(busy, best.ep.ID)
			continue
		}
		crowded := best.load() > spillAt
		n := best.host.inflight.Add(1)
		*l = Lease{
			Endpoint: best.ep, Served: best.served, ServedJSON: best.servedJSON,
			Decision: Decision{Candidates: len(m.cands), Eligible: eligible, USDPerMTok: best.fullLoadUSDPerMTok(), Why: "cheapest under half load"},
			host:     best.host, ticket: ticket, now: r.now, held: true, inFlightAtPick: n,
		}
		if crowded {
			l.Decision.Why = "least used"
		}
		return nil
	}
}

// choose returns the best candidate outside tried and busy, nil when there is none, and how many there were.
func (r *Router) choose(m *Model, tried, busy []endpoint.ID, now time.Time) (best *candidate, eligible int) {
	var bestLoad, bestPrice float64
	for _, c := range m.cands {
		if !usable(c.ep.State) || slices.Contains(tried, c.ep.ID) || slices.Contains(busy, c.ep.ID) {
			continue
		}
		if d, _ := c.host.breaker.Wait(now); d > 0 {
			continue
		}
		eligible++
		load, price := c.load(), c.fullLoadUSDPerMTok()
		if math.IsNaN(price) {
			price = math.MaxFloat64 // unknown is never taken for free
		}
		if best == nil || better(load, price, bestLoad, bestPrice) {
			best, bestLoad, bestPrice = c, load, price
		}
	}
	return best, eligible
}

func better(load, price, bestLoad, bestPrice float64) bool {
	under, bestUnder := load <= spillAt, bestLoad <= spillAt
	switch {
	case under != bestUnder:
		return under
	case under && price != bestPrice, load == bestLoad:
		return price < bestPrice
	default:
		return load < bestLoad
	}
}

func usable(s endpoint.State) bool {
	switch s {
	case endpoint.Preempted, endpoint.Draining, endpoint.Gone, endpoint.Starting:
		return false
	case endpoint.StateUnknown, endpoint.Cold, endpoint.Ready, endpoint.Saturated:
	}
	return true
}

func (r *Router) unavailable(m *Model, now time.Time) error {
	e := &UnavailableError{Model: m.Name, Reason: "every host that serves it is failing", Throttled: len(m.cands) > 0}
	for _, c := range m.cands {
		d, why := c.host.breaker.Wait(now)
		if why != whyThrottled {
			e.Throttled = false
		}
		if d > 0 && (e.RetryAfter == 0 || d < e.RetryAfter) {
			e.RetryAfter = d
		}
	}
	if e.Throttled {
		e.Reason = "every host that serves it is at its rate limit"
	}
	if e.RetryAfter == 0 {
		e.RetryAfter = time.Second
	}
	return e
}

const (
	whyThrottled = "rate limited"
	whyDenied    = "credentials refused"
)

// FirstContent tells that the first content token has come: the breaker's verdict is due now, and
// ttft is learned. Further calls do nothing.
func (l *Lease) FirstContent(ttft time.Duration) {
	l.host.ttft.add(ttft.Seconds())
	l.ticket.Succeeded()
}

// Result is how a lease ended.
type Result struct {
	Class      outcome.Class
	RetryAfter time.Duration // with Throttled
	TPS        float64       // output tokens per second of the stream, 0 when not measured
}

// Done gives the slot back and judges the endpoint. Only the first call counts.
func (l *Lease) Done(res Result) {
	if !l.held {
		return
	}
	l.held = false
	h := l.host
	h.inflight.Add(-1)
	h.requests.Add(1)
	switch res.Class.Policy().Verdict {
	case outcome.Healthy:
		l.ticket.Succeeded()
		if res.Class == outcome.Success {
			l.ticket.Completed()
		}
		if res.TPS > 0 {
			h.tps.add(res.TPS)
		}
	case outcome.Faulty:
		h.failures.Add(1)
		l.ticket.Failed()
	case outcome.Unrelated:
		l.ticket.Release()
	}
	switch res.Class {
	case outcome.Throttled:
		d := res.RetryAfter
		if d <= 0 {
			d = time.Second
		}
		h.breaker.CoolDown(l.now().Add(min(d, maxCoolDown)), whyThrottled)
	case outcome.UpstreamDenied:
		h.breaker.CoolDown(l.now().Add(deniedCoolDown), whyDenied)
	case outcome.Success, outcome.DialFailed, outcome.UpstreamFault, outcome.FirstByteTimeout,
		outcome.CallerFault, outcome.Truncated, outcome.ClientGone, outcome.Unserved:
	}
}

// MeanInFlight estimates how many requests the endpoint served at once during the lease: the mean
// of the numbers at its begin and now.
func (l *Lease) MeanInFlight() float64 {
	return (float64(l.inFlightAtPick) + float64(max(1, l.host.inflight.Load()))) / 2
}
