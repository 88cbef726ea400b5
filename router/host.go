package router

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"headrace/router/capacity"
	"headrace/router/endpoint"
	"headrace/router/health"
)

// host is what is known of an endpoint beyond what discovery says; it outlives snapshots.
type host struct {
	breaker  *health.Breaker
	cache    atomic.Uint32             // its affinity.Host
	near     [numKinships]atomic.Int64 // Unix nanoseconds until which a host that near is thought to have been taken away
	away     bool                      // it has not been up since it was taken away, dropped or started; guarded by Router.mu
	prefills atomic.Pointer[[]tested]  // what self-tests found; replaced whole, under Router.mu
	hits     ewma                      // tokens read from its prefix cache, as a share of those that were expected
	inflight atomic.Int64              // requests
	beside   atomic.Int64              // sequences of these beyond one each
	others   atomic.Int64              // in flight from other replicas and other callers, as last heard
	prompts  atomic.Int64              // prompt tokens of others that have no first token yet, as last heard
	pending  atomic.Int64              // prompt tokens sent there that have no first token yet
	requests atomic.Int64
	failures atomic.Int64
	doubts   atomic.Int32 // opaque failures since the last success
	begun    window       // requests, where the endpoint's provider limits them
	ttft     ewma         // seconds to the first content token
	tps      ewma         // output tokens per second of one stream
	perEvent ewma         // output tokens that an event of a stream carries
	idleAt   atomic.Int64 // Unix nanoseconds when the last request ended, 0 for never
	paid     atomic.Bool  // workers are committed: see Advise
	drained  atomic.Bool  // its operator lets nothing new in: see Drain

	sharedAt number             // when replicas last told of others
	othersAt number             // when others was last set
	goneAt   float64            // when discovery dropped it, NaN while it lists it; guarded by Router.mu
	last     *endpoint.Endpoint // as it was listed last; guarded by Router.mu

	mu        sync.Mutex // guards what follows; picks read pub instead
	learner   *capacity.Learner
	integral  float64 // of sequences in flight over time, in sequence seconds
	shares    float64 // of a second each, parted among the sequences in flight: what one of them that was there all the time has had
	counted   float64 // up to this time
	upAt      float64 // up since, NaN while it is not
	upFor     float64 // seconds up before that
	losses    float64 // times it was taken away
	calib     struct{ ttft, itl, usd ratio }
	use       float64 // mean share of its safe concurrency in use, over hours
	watched   float64 // seconds that it was taken over
	watchedAt float64 // up to this time

	queuedAt   float64 // when its engine was last heard to keep requests waiting, 0 when it did not
	queuedWith float64 // sequences that it ran then

	pub published
}

// published is a host's learned state for readers without a lock. Each word is whole; readers may see a mix of two
// states that follow each other, which predicts as well as either.
type published struct {
	priorITL, slope, priorTTFT, prefill, seqs         number
	a, b, a0, saa, sab, sbb, residual                 number
	ttftFactor, ttftSigma, limit, observed, at, count number
	hazard                                            number
	ramp                                              number // most in flight while it comes back to use, 0 for no such limit; set without mu
}

type number struct{ bits atomic.Uint64 }

// set writes only what changed: the write takes the number from the other processors' caches.
func (n *number) set(v float64) {
	if b := math.Float64bits(v); n.bits.Load() != b {
		n.bits.Store(b)
	}
}

func (n *number) get() float64 { return math.Float64frombits(n.bits.Load()) }

// publish makes what was learned visible to picks. The caller holds mu.
func (h *host) publish() {
	s, p := h.learner.State(), &h.pub
	p.priorITL.set(s.ITLSeconds)
	p.slope.set(s.Slope)
	p.priorTTFT.set(s.TTFTSeconds)
	p.prefill.set(s.PrefillTokensPerSecond)
	p.seqs.set(float64(s.MaxNumSeqs))
	p.a.set(s.A)
	p.b.set(s.B)
	p.a0.set(s.A0)
	p.saa.set(s.SAA)
	p.sab.set(s.SAB)
	p.sbb.set(s.SBB)
	p.residual.set(s.Residual)
	p.ttftFactor.set(s.TTFTFactor)
	p.ttftSigma.set(s.TTFTSigma)
	p.limit.set(s.Limit)
	p.observed.set(s.ObservedAt)
	p.at.set(s.At)
	p.count.set(float64(h.learner.Count))
}

// load reads the state as of a time into s: what predictions need of it. Advise brings it up to date every second or so.
func (p *published) load(s *capacity.State, at float64) {
	s.ITLSeconds, s.Slope, s.TTFTSeconds = p.priorITL.get(), p.slope.get(), p.priorTTFT.get()
	s.PrefillTokensPerSecond, s.MaxNumSeqs = p.prefill.get(), int(p.seqs.get())
	s.A, s.B, s.A0 = p.a.get(), p.b.get(), p.a0.get()
	s.SAA, s.SAB, s.SBB, s.Residual = p.saa.get(), p.sab.get(), p.sbb.get(), p.residual.get()
	s.TTFTFactor, s.TTFTSigma = p.ttftFactor.get(), p.ttftSigma.get()
	s.Limit, s.ObservedAt, s.At = p.limit.get(), p.observed.get(), p.at.get()
	if at-s.At > freshSeconds {
		s.Advance(at)
	}
}

const freshSeconds = 2.0

// refresh lets time pass for what was learned.
func (h *host) refresh(at float64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.learner.Advance(at)
	h.publish()
}

// enter counts one more request of some sequences in flight from now on; at is the same moment in the learner's seconds.
func (h *host) enter(at float64, sequences int64) (inFlight int64, integral, shares float64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.integrate(at)
	if sequences > 1 {
		h.beside.Add(sequences - 1)
	}
	return h.inflight.Add(1), h.integral, h.shares
}

func (h *host) leave(at float64, now time.Time, sequences int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.integrate(at)
	if sequences > 1 {
		h.beside.Add(1 - sequences)
	}
	if h.inflight.Add(-1) == 0 {
		h.idleAt.Store(now.UnixNano())
	}
}

// running is how many sequences the endpoint has, those of others included while what was heard of them is fresh.
func (h *host) running(at float64) float64 { return float64(h.sequences() + h.elsewhere(at)) }

// sequences is how many of them this gateway has sent.
func (h *host) sequences() int64 { return h.inflight.Load() + h.beside.Load() }

// elsewhere is how many of them this gateway has not sent.
func (h *host) elsewhere(at float64) int64 {
	if o := h.others.Load(); o > 0 && at-h.othersAt.get() < staleAfter {
		return o
	}
	return 0
}

// computing is how many prompt tokens wait for their first token, those of others included likewise.
func (h *host) computing(at float64) float64 {
	n := float64(h.pending.Load())
	if o := h.prompts.Load(); o > 0 && at-h.othersAt.get() < staleAfter {
		n += float64(o)
	}
	return n
}

// integrate brings the integral up to a time. The caller holds mu.
func (h *host) integrate(at float64) {
	if d := at - h.counted; d > 0 {
		n := h.running(at)
		h.integral += d * n
		h.shares += d / max(1, n)
		h.counted = at
	}
}

// Slow start: a host that comes back gets few requests at first.
const (
	rampFrom = 4
	rampBy   = 1.25
	rampOver = 60
)

// comesBack begins a slow start.
func (h *host) comesBack() { h.pub.ramp.set(rampFrom) }

// wentWell lets a host in slow start have more.
func (h *host) wentWell() {
	for {
		old := h.pub.ramp.bits.Load()
		if old == 0 {
			return
		}
		next := math.Float64frombits(old) * rampBy
		if next > rampOver {
			next = 0
		}
		if h.pub.ramp.bits.CompareAndSwap(old, math.Float64bits(next)) { // else it has come back meanwhile, say
			return
		}
	}
}

// Prior rates of being taken away, as the time to one such event in seconds.
const (
	interruptibleStay = 6 * 3600
	onDemandStay      = 30 * 24 * 3600
)

// hazard is how often the endpoint is taken away, in 1/s: a Gamma prior of one event in its tenure's usual stay, and
// what was seen since. The caller holds mu.
func (h *host) hazard(ep *endpoint.Endpoint, at float64) float64 {
	stay := 0.0
	switch ep.Tenure {
	case endpoint.Interruptible:
		stay = interruptibleStay
	case endpoint.OnDemand:
		stay = onDemandStay
	case endpoint.TenureUnknown, endpoint.Serverless, endpoint.TenurePerToken:
		return 0
	}
	up := h.upFor
	if !math.IsNaN(h.upAt) {
		up += max(0, at-h.upAt)
	}
	return (1 + h.losses) / (stay + up)
}

// otherMachine tells whether two descriptions are of different machines; what one of them leaves out says nothing.
func otherMachine(a, b *endpoint.Hardware) bool {
	differ := func(a, b string) bool { return a != b && a != "" && b != "" }
	return differ(a.Machine, b.Machine) || differ(a.GPU, b.GPU) || a.GPUCount != b.GPUCount && a.GPUCount > 0 && b.GPUCount > 0
}

// follow takes in what discovery says of the endpoint; dropped says that it did not list it before. What it comes to for the
// breaker is returned, and whether what the host held in its caches is lost.
func (h *host) follow(ep *endpoint.Endpoint, dropped bool, prior capacity.Prior, at float64) (change health.Change, forget bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	was, up := h.last, Usable(ep)
	moved, back := false, false
	switch {
	case h.learner == nil:
		h.learner = capacity.New(prior, ep.MaxNumSeqs)
		h.upAt = math.NaN()
	case was != nil && otherMachine(&was.Hardware, &ep.Hardware):
		h.learner.Reset(prior, ep.MaxNumSeqs) // on another machine it is another host
		moved = true
	default:
		h.learner.SetPrior(prior, ep.MaxNumSeqs)
	}
	missing, told := h.breaker.Missing()
	switch {
	case ep.State == endpoint.Preempted:
		if was != nil && Usable(was) {
			h.losses++
		}
		change = h.breaker.Preempt()
	case was == nil || !up:
	case dropped && missing: // taken away, and off the list before that could be said
		if Usable(was) { // or it was being stopped, as was planned
			h.losses++
		}
		back = true
	case h.away:
		back = true
	case told, missing && (moved || was.BaseURL != ep.BaseURL): // at another address it is another start
		back = true
	}
	if back {
		h.learner.Restarted()
		h.breaker.Returned()
		h.comesBack()
	}
	h.last = ep
	h.away = !up && (h.away || ep.State == endpoint.Preempted || ep.State == endpoint.Gone || ep.State == endpoint.Starting && rented(ep))
	switch {
	case up && math.IsNaN(h.upAt):
		h.upAt = at
	case !up && !math.IsNaN(h.upAt):
		h.upFor += max(0, at-h.upAt)
		h.upAt = math.NaN()
	}
	if forget = moved || back || ep.State == endpoint.Preempted; forget {
		h.forgetTests()
	}
	h.pub.hazard.set(h.hazard(ep, at))
	h.publish()
	return change, forget
}

// drop notes that discovery does not list it any more. The caller holds Router.mu.
func (h *host) drop(at float64) {
	h.goneAt = at
	last := *h.last // a copy, for it lies among all the others of its time
	h.last = &last
	h.keepTests(func(t *tested) bool { return !t.p.Told }) // nobody would take it back
	h.mu.Lock()
	defer h.mu.Unlock()
	if !math.IsNaN(h.upAt) {
		h.upFor += max(0, at-h.upAt)
		h.upAt = math.NaN()
	}
}

// staleAfter is how many seconds what replicas or an engine said of others is believed.
const staleAfter = 10.0

// Share tells what the other replicas have at an endpoint: requests in flight, and prompt tokens of those that have no first
// token yet.
func (r *Router) Share(id endpoint.ID, inFlight, promptTokens int64) {
	if c := r.snap.Load().byID[id]; c != nil {
		at := r.seconds(r.now())
		c.host.sharedAt.set(at)
		c.host.crowd(at, inFlight, promptTokens)
		r.freed(id)
	}
}

// Full tells whether an endpoint has no sequence free, as far as is known, so that another request would wait, or have others wait. It
// is false for one that is not in the snapshot.
func (r *Router) Full(id endpoint.ID) bool {
	c := r.snap.Load().byID[id]
	if c == nil {
		return false
	}
	at := r.seconds(r.now())
	var s capacity.State
	c.host.pub.load(&s, at)
	return c.host.running(at) >= s.Limit*float64(max(1, c.ep.Workers))
}

// Load is what this gateway has at an endpoint, for the others to hear by Share.
func (r *Router) Load(id endpoint.ID) (inFlight, promptTokens int64) {
	if c := r.snap.Load().byID[id]; c != nil {
		return c.host.sequences(), max(0, c.host.pending.Load())
	}
	return 0, 0
}

// crowd sets how many are in flight that this gateway does not know of.
func (h *host) crowd(at float64, others, promptTokens int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.integrate(at)
	h.others.Store(max(0, others))
	h.prompts.Store(max(0, promptTokens))
	h.othersAt.set(at)
}

// Observe takes in what an endpoint's engine says of itself: a queue twice in a row tells that it is full, and what it runs beside
// this gateway's requests belongs to others. A queue seen once may be requests that came this moment, before the engine's next step.
func (r *Router) Observe(id endpoint.ID, e capacity.Engine) {
	c := r.snap.Load().byID[id]
	if c == nil || !(e.Running >= 0 && e.Waiting >= 0) { //nolint:staticcheck // NaN
		return
	}
	defer r.freed(id)
	h, at := c.host, r.seconds(r.now())
	if at-h.sharedAt.get() > staleAfter || h.sharedAt.get() == 0 {
		h.crowd(at, int64(min(e.Running+e.Waiting, 1e6))-h.sequences(), 0)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if e.Waiting < 1 {
		h.queuedAt = 0
		return
	}
	if h.queuedAt > 0 && at-h.queuedAt < staleAfter {
		h.learner.ObserveQueue(at, max(e.Running, h.queuedWith))
		h.publish()
	}
	h.queuedAt, h.queuedWith = at, e.Running
}
