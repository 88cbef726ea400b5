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
	"strings"
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

	Route     string // path below /v1, such as "/chat/completions"; "" for any
	BodyBytes int64
	Media     bool // the prompt holds images, audio or files
	Demand    Demand
}

// ErrUnknownModel says that no endpoint serves the model, now or as far as is known.
var ErrUnknownModel = errors.New("unknown model")

// Cause says why no endpoint can be picked, for the caller's sake.
type Cause uint8

// Causes, from what the caller can change to what it can only wait for.
const (
	Failing     Cause = iota // all are failing, away or not up yet
	Throttled                // all are at a limit of theirs
	NoCapacity               // the provider can start no worker now
	Unqualified              // none is what the model or the request demands (trust, encryption, region)
	NoRoute                  // none answers this path
	NoMedia                  // none takes images, audio or files
	TooLarge                 // the body is larger than any of them takes
)

// UnavailableError says that endpoints serve the model but none may be used now, or none for such a request.
type UnavailableError struct {
	Model      string
	Cause      Cause
	RetryAfter time.Duration // when the first of them may be tried again; 0 when waiting does not help
	MaxBytes   int64         // with TooLarge: the largest body that any of them takes
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
	Unnamed    bool // nobody knows the model's id yet: ServedJSON is null
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
	notReadyCool   = 3 * time.Second  // nobody is up there: what a health poll takes to tell more
	doubtsInRow    = 10               // opaque failures of different requests that together speak against the host
	doubtCoolDown  = 30 * time.Second // of such a host
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
		best, eligible := r.choose(m, q, tried, busy, now)
		if best == nil && len(tried) > 0 {
			tried = nil // all that live were tried: the least bad one again
			continue
		}
		if best == nil {
			return r.unavailable(m, q, now)
		}
		ticket, ok := best.host.breaker.Allow()
		if !ok {
			busy = append(busy, best.ep.ID)
			continue
		}
		crowded, price := best.load() > spillAt, best.fullLoadUSDPerMTok()
		n := best.host.inflight.Add(1)
		if !best.host.admit(&best.ep.Limits, n, now) { // others took the last place meanwhile
			best.host.inflight.Add(-1)
			ticket.Release()
			busy = append(busy, best.ep.ID)
			continue
		}
		*l = Lease{
			Endpoint: best.ep, Served: best.served, ServedJSON: best.servedJSON, Unnamed: best.unnamed,
			Decision: Decision{Candidates: len(m.cands), Eligible: eligible, USDPerMTok: price, Why: "cheapest under half load"},
			host:     best.host, ticket: ticket, now: r.now, held: true, inFlightAtPick: n,
		}
		switch {
		case best.asleep():
			l.Decision.Why = "no other has room: wakes a worker"
		case crowded:
			l.Decision.Why = "least used"
		}
		return nil
	}
}

// choose returns the best candidate outside tried and busy, nil when there is none, and how many there were.
func (r *Router) choose(m *Model, q *Request, tried, busy []endpoint.ID, now time.Time) (best *candidate, eligible int) {
	var bestRank rank
	for _, c := range m.cands {
		if !c.usable() || slices.Contains(tried, c.ep.ID) || slices.Contains(busy, c.ep.ID) || c.fitness(m, q) != fit {
			continue
		}
		if d, _ := c.host.breaker.Wait(now); d > 0 {
			continue
		}
		if c.host.limited(&c.ep.Limits, now) > 0 {
			continue
		}
		eligible++
		if rk := c.rank(); best == nil || rk.before(bestRank) {
			best, bestRank = c, rk
		}
	}
	return best, eligible
}

// rank orders candidates: the lower tier first.
type rank struct {
	tier        tier
	load, price float64
}

type tier uint8

const (
	roomy   tier = iota // under half load: the cheapest first
	filling             // up to full: the least used first
	asleep              // nobody is up there, and the request would wake a worker: the cheapest first
	overfull
)

func (c *candidate) rank() rank {
	rk := rank{load: c.load(), price: c.fullLoadUSDPerMTok()}
	if math.IsNaN(rk.price) {
		rk.price = math.MaxFloat64 // unknown is never taken for free
	}
	switch {
	case c.asleep():
		rk.tier = asleep
	case rk.load <= spillAt:
		rk.tier = roomy
	case rk.load <= 1:
		rk.tier = filling
	default:
		rk.tier = overfull
	}
	return rk
}

func (a rank) before(b rank) bool {
	switch {
	case a.tier != b.tier:
		return a.tier < b.tier
	case (a.tier == roomy || a.tier == asleep) && a.price != b.price, a.load == b.load:
		return a.price < b.price
	default:
		return a.load < b.load
	}
}

func (c *candidate) usable() bool { return Usable(c.ep) }

// Usable tells whether the endpoint's state lets requests in. A serverless endpoint that is starting takes them:
// they wait for the worker that comes up.
func Usable(ep *endpoint.Endpoint) bool {
	switch ep.State {
	case endpoint.Preempted, endpoint.Draining, endpoint.Gone, endpoint.NoCapacity:
		return false
	case endpoint.Starting:
		return ep.Tenure == endpoint.Serverless
	case endpoint.StateUnknown, endpoint.Cold, endpoint.Ready, endpoint.Saturated:
	}
	return true
}

// asleep tells whether a request would wait for a worker to start.
func (c *candidate) asleep() bool {
	return c.ep.State == endpoint.Cold || c.ep.State == endpoint.Starting
}

// limited returns how long the endpoint's limits let nothing in, 0 when they do.
func (h *host) limited(l *endpoint.Limits, now time.Time) time.Duration {
	if l.Concurrent > 0 && h.inflight.Load() >= int64(l.Concurrent) {
		return time.Second
	}
	if l.Requests > 0 && l.Per > 0 {
		return h.begun.full(now, l.Requests, l.Per)
	}
	return 0
}

// admit counts a request against the endpoint's limits; n is how many are in flight with it.
func (h *host) admit(l *endpoint.Limits, n int64, now time.Time) bool {
	if l.Concurrent > 0 && n > int64(l.Concurrent) {
		return false
	}
	if l.Requests > 0 && l.Per > 0 {
		ok, _ := h.begun.take(now, l.Requests, l.Per)
		return ok
	}
	return true
}

// unavailable says why choose found nobody.
func (r *Router) unavailable(m *Model, q *Request, now time.Time) error {
	e := &UnavailableError{Model: m.Name, Reason: "every host that serves it is failing"}
	var fits, throttled, noCapacity int
	cause := fit // the last reason on the way in that still kept some candidate out
	for _, c := range m.cands {
		if u := c.fitness(m, q); u != fit {
			if cause == fit || u < cause {
				cause = u
			}
			if u == unfitSize {
				e.MaxBytes = max(e.MaxBytes, c.ep.Limits.MaxBodyBytes)
			}
			continue
		}
		fits++
		if c.ep.State == endpoint.NoCapacity {
			noCapacity++
		}
		if !c.usable() {
			continue
		}
		d, why := c.host.breaker.Wait(now)
		if limited := c.host.limited(&c.ep.Limits, now); d <= 0 && limited > 0 {
			d, why = limited, whyThrottled
		}
		if why == whyThrottled {
			throttled++
		}
		if d > 0 && (e.RetryAfter == 0 || d < e.RetryAfter) {
			e.RetryAfter = d
		}
	}
	switch {
	case fits == 0 && cause != fit:
		e.unfit(cause)
		return e
	case fits > 0 && throttled == fits:
		e.Cause, e.Reason = Throttled, "every host that serves it is at its rate limit"
	case fits > 0 && noCapacity == fits:
		e.Cause, e.Reason, e.RetryAfter = NoCapacity, m.noCapacity(q), max(e.RetryAfter, noCapacityRetry)
	}
	if e.RetryAfter == 0 {
		e.RetryAfter = time.Second
	}
	return e
}

// noCapacity says in the providers' words why none of the fitting endpoints can start a worker: there may be no free GPU,
// but workers that crash, or a limit of none, as well.
func (m *Model) noCapacity(q *Request) string {
	var why []string
	for _, c := range m.cands {
		if s := c.ep.StateReason; c.fitness(m, q) == fit && s != "" && !slices.Contains(why, s) {
			why = append(why, s)
		}
	}
	if len(why) == 0 {
		return "its provider can start no worker"
	}
	slices.Sort(why)
	return strings.Join(why, "; or ")
}

const noCapacityRetry = 15 * time.Second // throttled workers often clear in about 30 s (facts of RunPod's /health)

// unfit names what no candidate can or may do.
func (e *UnavailableError) unfit(u unfit) {
	switch u {
	case unfitRoute:
		e.Cause, e.Reason = NoRoute, "no host that serves it answers this path"
	case unfitMedia:
		e.Cause, e.Reason = NoMedia, "no host that serves it takes images, audio or files"
	case unfitSize:
		e.Cause, e.Reason = TooLarge, "the request body is larger than any host that serves it takes"
	case unfitDemand, fit:
		e.Cause, e.Reason = Unqualified, "no host that serves it meets the demanded trust, encryption and region"
	}
}

const (
	whyThrottled = "rate limited"
	whyDenied    = "credentials refused"
	whyNotReady  = "not ready"
	whyDoubtful  = "failing without a reason"
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
		if h.doubts.Load() > 0 {
			h.doubts.Store(0)
		}
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
	case outcome.Doubtful:
		h.failures.Add(1)
		l.ticket.Release()
		if h.doubts.Add(1) >= doubtsInRow {
			h.doubts.Store(0)
			h.breaker.CoolDown(l.now().Add(doubtCoolDown), whyDoubtful)
		}
	}
	switch res.Class {
	case outcome.NotReady:
		d := res.RetryAfter
		if d <= 0 {
			d = notReadyCool
		}
		h.breaker.CoolDown(l.now().Add(min(d, maxCoolDown)), whyNotReady)
	case outcome.Throttled:
		d := res.RetryAfter
		if d <= 0 {
			d = time.Second
		}
		h.breaker.CoolDown(l.now().Add(min(d, maxCoolDown)), whyThrottled)
	case outcome.UpstreamDenied:
		h.breaker.CoolDown(l.now().Add(deniedCoolDown), whyDenied)
	case outcome.Success, outcome.DialFailed, outcome.UpstreamFault, outcome.FirstByteTimeout,
		outcome.CallerFault, outcome.Truncated, outcome.ClientGone, outcome.Unserved, outcome.Opaque:
	}
}

// MeanInFlight estimates how many requests the endpoint served at once during the lease: the mean
// of the numbers at its begin and now.
func (l *Lease) MeanInFlight() float64 {
	return (float64(l.inFlightAtPick) + float64(max(1, l.host.inflight.Load()))) / 2
}
