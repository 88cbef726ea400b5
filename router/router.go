// Package router decides which endpoint serves a request. It does no I/O and reads no clock but the
// one it is given, so that a simulator can run it in virtual time.
//
// A request goes Pick -> Lease -> Done over one immutable snapshot, read once and without a lock.
// What is learned of an endpoint is kept by its ID and outlives snapshots.
//
// Of the endpoints that keep the SLO, the one that costs the least more for this request serves it: see Policy. The choice
// never looks at the measured average price per token: the busiest host looks cheapest by that figure until it collapses.
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

	"headrace/router/affinity"
	"headrace/router/capacity"
	"headrace/router/endpoint"
	"headrace/router/health"
)

// Options set up a Router; zero values but Now mean defaults.
type Options struct {
	Breaker health.Options // Probed and Seed are set by Probes and Seed below
	Probes  bool           // somebody carries out what Probes returns; without, callers' requests try hosts that failed
	Retry   BudgetOptions
	Hedge   BudgetOptions    // of hedges; zero values mean 0.02 and 10
	Now     func() time.Time // the clock; required
	// Prior is what to expect of an endpoint before it was measured; default capacity.Lookup.
	Prior    func(*endpoint.Endpoint) capacity.Prior
	Affinity affinity.Options
	Seed     uint64 // of the jitter; the same seed makes the same choices
	// Changed is told when an endpoint's breaker opened or closed, for other replicas to hear; nil when nobody wants to know. It is called on
	// the path of requests, without a lock of ours, and must not block.
	Changed func(Transition)
}

// Router holds the current snapshot and the state of every endpoint.
type Router struct {
	opt    Options
	now    func() time.Time // steady
	Budget *Budget          // of retries, shared by all requests
	Hedges *Budget          // of second attempts beside a running one, likewise

	mu     sync.Mutex // guards hosts, stats, caches and lore, and writing of what tests found; no request takes it unless it finds a host alive again
	hosts  map[endpoint.ID]*host
	stats  map[string]*modelStats
	caches uint32 // affinity hosts given out
	lore   Memory // what others have learned

	snap     atomic.Pointer[Snapshot]
	affinity *affinity.Table
	onFreed  atomic.Pointer[func(endpoint.ID)]
	origin   time.Time // second 0 of the learners

	// What each request writes stands apart from what each request reads, which would leave the other processors' caches with it.
	_          cacheLines
	decisions  decisions
	_          cacheLines
	dice       atomic.Uint64
	_          cacheLines
	calibrated calibration
}

// cacheLines keep apart what different processors write, or write and read: two lines, for processors fetch them in pairs.
type cacheLines [128]byte

// modelStats is what is learned of a model's requests, wherever they went; it outlives snapshots.
type modelStats struct {
	output   longMean // tokens of an answer
	prompts  ewma     // tokens of a prompt that hosts reported, as a share of those estimated
	wantedAt number   // when it was last asked for, served or not
	demand   demand
}

// New returns a Router without endpoints.
func New(o Options) *Router {
	if o.Now == nil {
		panic("BUG: router.New without a clock")
	}
	if o.Prior == nil {
		o.Prior = capacity.Lookup
	}
	o.Breaker.Probed, o.Breaker.Seed = o.Probes, o.Seed
	r := &Router{
		opt: o, Budget: NewBudget(o.Retry), Hedges: NewBudget(o.Hedge.orHedges()), hosts: map[endpoint.ID]*host{}, stats: map[string]*modelStats{},
		affinity: affinity.New(o.Affinity), origin: o.Now().Add(-time.Second), // so that second 0 was never
	}
	r.now = func() time.Time { return r.steady(o.Now()) }
	r.decisions.slots = make([]slot, decisionsKept)
	r.dice.Store(o.Seed)
	r.snap.Store(&Snapshot{models: map[string]*Model{}, byID: map[endpoint.ID]*candidate{}, now: r.now})
	return r
}

// Warm takes the memory of decisions and prefixes from the system, so that the first requests do not have to: about 4 MB, a
// millisecond or so. It may run beside them.
func (r *Router) Warm() {
	for i := 0; i < len(r.decisions.slots); i += 2 { // two lie in a page
		e := &r.decisions.slots[i]
		e.mu.Lock()   // a write
		e.mu.Unlock() //nolint:staticcheck // nothing is guarded
	}
	r.affinity.Warm()
}

// seconds turns a time into the learners' seconds.
func (r *Router) seconds(t time.Time) float64 { return t.Sub(r.origin).Seconds() }

// steady is t by a clock that nobody sets: as long after the router's start as has passed. What keeps times as numbers goes by it, or a
// host would be left alone for an hour because the machine's clock was set back by one.
func (r *Router) steady(t time.Time) time.Time { return r.origin.Add(t.Sub(r.origin)) }

// shown is a steady time as the machine's clock has it now, for people.
func (r *Router) shown(t time.Time) time.Time {
	now := r.opt.Now()
	return now.Add(t.Sub(now))
}

// roll returns a random number: splitmix64 over a counter, so that no lock is needed (Steele, Lea and Flood 2014).
func (r *Router) roll() uint64 { return mix(r.dice.Add(0x9e3779b97f4a7c15)) }

func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// unit makes a random number one in [0,1).
func unit(z uint64) float64 { return float64(z>>11) / (1 << 53) }

// Snapshot returns the current view.
func (r *Router) Snapshot() *Snapshot { return r.snap.Load() }

// ErrUnknownModel says that no endpoint serves the model, now or as far as is known.
var ErrUnknownModel = errors.New("unknown model")

// Cause says why no endpoint can be picked, for the caller's sake.
type Cause uint8

// Causes, from what the caller can change to what it can only wait for.
const (
	Failing        Cause = iota // all are failing, away or not up yet
	Throttled                   // all are at a limit of theirs
	NoCapacity                  // the provider can start no worker now
	Unqualified                 // none is what the model or the request demands (trust, encryption, region)
	NoRoute                     // none answers this path
	NoMedia                     // none takes images, audio or files
	TooPlain                    // none takes more than a prompt and sampling parameters, and Member is more
	TooLarge                    // the body is larger than any of them takes
	NotContinuable              // none can go on with the answer: the caller gets an error rather than a corrupt one
)

// UnavailableError says that endpoints serve the model but none may be used now, or none for such a request.
type UnavailableError struct {
	Model      string
	Cause      Cause
	RetryAfter time.Duration // when the first of them may be tried again; 0 when waiting does not help
	Soon       time.Duration // when one of them is expected to take a request, as far as can be told; 0 when none is
	MaxBytes   int64         // with TooLarge: the largest body that any of them takes
	Member     string        // with TooPlain: what of the request none of them takes, in the caller's words
	Reason     string        // closed set, fit for a caller
	Others     int           // with NotContinuable: hosts that could continue the answer, were they free and well, beside the one that broke it off and those that refused
}

// Error names the model and the reason.
func (e *UnavailableError) Error() string {
	return fmt.Sprintf("no endpoint for model %q: %s", e.Model, e.Reason)
}

// Decision says why a lease went where it went, with what was expected of it.
type Decision struct {
	Candidates  int          // endpoints that serve the model
	Eligible    int          // of these, those that could have been picked
	Feasible    int          // of these, those that were expected to keep the SLO
	Policy      Policy       // by which it was picked
	Breaker     health.State // the winner's
	USDPerMTok  float64      // the winner's full-load price per million output tokens, with something held back for what is not known of its speed; NaN when unknown
	FullUSD     float64      // the same with nothing held back
	FullSigma   float64      // standard deviation of its logarithm, for what is not known of the winner's speed
	MarginalUSD float64      // what the request was expected to cost in addition to what is paid anyway; NaN when unknown
	TTFT        float64      // seconds to the first token, expected
	TPS         float64      // tokens per second of the stream, expected
	PTTFT, PTPS float64      // probability that each promise is kept, as expected
	Use         float64      // share of the endpoint's safe concurrency in use with the request
	Cached      float64      // tokens of the prompt that it was expected to hold
	Cold        bool         // a worker had to start
	Why         string
	Seq         uint64 // by which Router.Decision knows it
	resumed     bool
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

	host     *host
	ticket   health.Ticket
	r        *Router
	stats    *modelStats
	root     string // of the model's card
	held     bool
	whole    bool // nobody sees its first token
	wordless bool // its answer is not made of tokens

	pickedAt  float64 // seconds by the learners' clock, as are all below
	firstAt   float64
	expected  float64 // time to the first token, before correction
	target    float64 // promised time to the first token
	ttftSigma float64 // of the logarithm of that time, as expected
	engines   float64 // that share the endpoint's requests
	limit     float64 // sequences of one of them
	pending   int64   // prompt tokens counted in host.pending
	width     int64   // sequences counted in host.inflight and host.beside
	seq       uint64  // of the decision
	late      float64 // seconds waited before it was picked
	slo       SLO
	integral  float64       // of the sequences in flight, when picked
	shares    float64       // of each second that one of them has, when picked
	sinceTok  float64       // likewise, when the first token came
	key       *affinity.Key // of the request, which outlives the lease
	match     float64       // prompt tokens that the endpoint was taken to hold, before correction
}

const (
	deniedCoolDown = time.Minute
	notReadyCool   = 3 * time.Second  // nobody is up there: what a health poll takes to tell more
	doubtsInRow    = 10               // opaque failures of different requests that together speak against the host
	doubtCoolDown  = 30 * time.Second // of such a host
	maxCoolDown    = 10 * time.Minute
)

// Pick leases the endpoint that serves q best into l. q.Affinity is to stay as it is until l is done. The error is ErrUnknownModel or an *UnavailableError.
func (r *Router) Pick(q *Request, l *Lease) error {
	m := r.snap.Load().pool(q.Model)
	if m == nil {
		return ErrUnknownModel
	}
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	s.prepare(r, m, q)
	m.stats.wantedAt.set(s.at)
	for s.survey(); ; {
		v, why := s.choose()
		if v == nil {
			if s.forgive() {
				continue
			}
			if q.Continue == nil || !q.Continue.Back {
				r.decisions.note(s, nil, "nobody can be asked")
			}
			return r.unavailable(s)
		}
		if s.lease(r, v, why, l) {
			m.stats.demand.asked(s, v)
			return nil
		}
		v.verdict = tried // another request was faster
	}
}

// lease takes the slot; false when somebody else has taken the last one this moment.
func (s *scratch) lease(r *Router, v *view, why string, l *Lease) bool {
	h, ep := v.c.host, v.c.ep
	ticket, ok := h.breaker.Allow()
	if !ok && v.forced {
		ticket, ok = h.breaker.Force()
	}
	if !ok {
		return false
	}
	width := max(1, int64(s.q.Sequences))
	n, integral, shares := h.enter(s.at, width)
	if why == whyHedge && n > 1 || !h.admit(&ep.Limits, n, s.now) { // it was idle when it was looked at
		h.leave(s.at, s.now, width)
		ticket.Release()
		return false
	}
	pending := int64(v.prompt)
	if s.q.Whole {
		pending = 0 // it would count until the answer's end
	}
	h.pending.Add(pending)
	engines := 1.0
	if ep.Tenure == endpoint.Serverless {
		engines = float64(max(1, ep.Workers))
	}
	s.fill(l, v)
	l.width = width
	l.ticket, l.r, l.engines, l.pending, l.integral, l.shares = ticket, r, engines, pending, integral, shares
	l.seq = r.decisions.note(s, v, why)
	d := &l.Decision
	d.Seq, d.Policy, d.Candidates, d.Why = l.seq, s.policy, len(s.m.cands), why
	for i := range s.views {
		if w := s.views[i].verdict; w < limited {
			d.Eligible++
			if w == serves {
				d.Feasible++
			}
		}
	}
	d.FullUSD, d.FullSigma = s.fullLoad(v)
	d.USDPerMTok, d.MarginalUSD, d.TTFT, d.TPS = v.full*1e6, v.usd, v.ttft, 1/v.itl
	d.PTTFT, d.PTPS = v.pTTFT(&s.plan), v.pTPS(&s.plan)
	d.Use, d.Cached, d.Cold = v.use(), v.cached, v.coldSeconds > 0
	d.Breaker = h.breaker.State(s.now)
	d.resumed = s.resumed
	return true
}

// fill begins a lease of v. It is a function of its own for the stack's sake: what lease calls next lies deep.
func (s *scratch) fill(l *Lease, v *view) {
	*l = Lease{
		Endpoint: v.c.ep, Served: v.c.served, ServedJSON: v.c.servedJSON, Unnamed: v.c.unnamed,
		host: v.c.host, stats: s.m.stats, root: v.c.root, held: true, whole: s.q.Whole, wordless: s.q.Tokenless,
		pickedAt: s.at, firstAt: math.NaN(), expected: v.expected, target: s.slo.TTFT.Seconds(), ttftSigma: v.ttftSigma, limit: v.limit, late: s.waited, slo: s.slo,
		key: &s.q.Affinity, match: v.match,
	}
}

// normal is the probability that a standard normal variable is at most z.
func normal(z float64) float64 { return 0.5 * math.Erfc(-z/math.Sqrt2) }

func (c *candidate) usable() bool { return Usable(c.ep) && !c.host.drained.Load() }

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
func (r *Router) unavailable(s *scratch) error {
	m, q, now := s.m, s.q, s.now
	e := &UnavailableError{Model: m.Name, Reason: "every host that serves it is failing"}
	if q.Continue != nil {
		e.Cause, e.Reason, e.Others = NotContinuable, "no other host can continue the answer", s.others()
		return e
	}
	var fits, usable, drained, throttled, noCapacity int
	crowded := 0.0 // seconds until the first of those that are too crowded has room again
	cause := fit   // the last reason on the way in that still kept some candidate out
	soon := 0.0    // seconds until somebody takes a request
	for _, c := range m.cands {
		if u := c.fitness(q); u != fit {
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
		if c.host.drained.Load() && Usable(c.ep) {
			drained++
		}
		if !c.usable() {
			if !c.host.drained.Load() {
				soon = earlier0(soon, startsWithin(c.ep))
			}
			continue
		}
		usable++
		d, why := c.host.breaker.Wait(now)
		opens := d.Seconds()
		if l := c.host.limited(&c.ep.Limits, now); d <= 0 && l > 0 {
			d, why, opens = l, whyThrottled, l.Seconds()
			if n := c.ep.Limits.Concurrent; n > 0 && c.host.inflight.Load() >= int64(n) {
				opens = s.turnover(c.host)
			}
		}
		soon = earlier0(soon, opens)
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
		if cause == unfitPlain {
			e.Member = q.Beyond
		}
		return e
	case usable == 0 && drained > 0:
		e.Reason, e.RetryAfter = "every host that serves it is drained by the operator", drainedRetry
		if drained < fits {
			e.Reason = "every host that serves it is away, or drained by the operator"
		}
		return e
	case fits > 0 && throttled == fits:
		e.Cause, e.Reason = Throttled, "every host that serves it is at its rate limit"
	case s.full(&crowded):
		soon = earlier0(soon, s.crowded())
		e.Cause, e.Reason = Throttled, "every host that serves it has as many requests as its slo allows"
		e.RetryAfter = max(time.Second, min(seconds(crowded), time.Minute))
	case fits > 0 && noCapacity == fits:
		e.Cause, e.Reason, e.RetryAfter = NoCapacity, m.noCapacity(q), max(e.RetryAfter, noCapacityRetry)
		soon = earlier0(soon, noCapacityRetry.Seconds())
	}
	e.Soon = within(soon)
	if e.RetryAfter == 0 {
		e.RetryAfter = time.Second
	}
	return e
}

// full tells whether somebody is well who takes no more for the SLO's sake, and how many seconds until one does: about when
// one of its requests ends, or a worker is up.
func (s *scratch) full(wait *float64) (yes bool) {
	for i := range s.views {
		if v := &s.views[i]; v.verdict < limited {
			w := v.coldSeconds
			if w == 0 {
				w = s.output * v.itl / max(1, v.inFlight)
			}
			if !yes || w < *wait {
				*wait = w
			}
			yes = true
		}
	}
	return yes
}

// noCapacity says in the providers' words why none of the fitting endpoints can start a worker: there may be no free GPU,
// but workers that crash, or a limit of none, as well.
func (m *Model) noCapacity(q *Request) string {
	var why []string
	for _, c := range m.cands {
		if s := c.ep.StateReason; c.fitness(q) == fit && s != "" && !slices.Contains(why, s) {
			why = append(why, s)
		}
	}
	if len(why) == 0 {
		return "its provider can start no worker"
	}
	slices.Sort(why)
	return strings.Join(why, "; or ")
}

const drainedRetry = 15 * time.Second // a person has to let it in again, or something to come back

const noCapacityRetry = 15 * time.Second // throttled workers often clear in about 30 s (facts of RunPod's /health)

// unfit names what no candidate can or may do.
func (e *UnavailableError) unfit(u unfit) {
	switch u {
	case unfitRoute:
		e.Cause, e.Reason = NoRoute, "no host that serves it answers this path"
	case unfitMedia:
		e.Cause, e.Reason = NoMedia, "no host that serves it takes images, audio or files"
	case unfitPlain:
		e.Cause, e.Reason = TooPlain, "no host that serves it takes more than a prompt and sampling parameters"
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
