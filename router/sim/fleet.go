package sim

import (
	"math"
	"math/rand/v2"

	"headrace/router/capacity"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// backend is one endpoint of the fleet as it truly is.
type backend struct {
	w       *world
	i       int
	class   *Host
	id      endpoint.ID
	engines []*engine // one, or the workers of a serverless endpoint
	prior   capacity.Prior
	fate    *rand.Rand // when it dies, and how
	colds   *rand.Rand

	up      bool
	vanish  bool // while it is down: connections hang, and streams fall silent rather than break
	failing bool // answers 500 at once
	port    int
	price   float64 // USD per hour or worker second; factor on the price per token
	version uint64  // of what the control plane has to tell

	queue     []*seq // serverless: no worker has room
	minute    int64  // API: of the rate limit
	inMinute  int
	usd       float64
	pricedAt  float64 // hourly: billed up to
	requests  int     // attempts
	tokens    float64 // made, delivered or not
	downs     [][2]float64
	silent    []bool // of downs: nobody was told, and connections hung
	throttled int
}

// told is what a control plane says of a backend at one time.
type told struct {
	version         uint64
	up              bool
	port            int
	price           float64
	workers, coming int
	asOf            float64
}

func (b *backend) now() told {
	t := told{version: b.version, up: b.up, port: b.port, price: b.price, asOf: b.w.now}
	if b.class.Kind == Serverless {
		t.workers, t.coming = b.warm()
	}
	return t
}

const (
	firstPort     = 40000
	refuseSeconds = 0.05 // until a connection is refused
	hangSeconds   = 2.0  // until one that nobody answers is given up
	errorSeconds  = 0.03 // until a 500 comes
	shortSeconds  = 0.05 // until a 429 comes
)

// submit is what happens on the wire when a gateway sends a request to the address it knows.
func (b *backend) submit(s *seq, port int) {
	b.requests++
	switch {
	case !b.up || port != b.port:
		d := b.w.life(refuseSeconds)
		if !b.up && b.vanish {
			d = b.w.life(hangSeconds)
		}
		b.w.in(d, func() { s.failed(outcome.DialFailed, 0) })
	case b.failing:
		b.w.in(b.w.life(errorSeconds), func() { s.failed(outcome.UpstreamFault, 0) })
	case b.class.Kind == Serverless:
		s.phase = waiting
		if e := b.fullest(); e != nil {
			e.idleVer++
			b.give(e, s)
			return
		}
		b.queue = append(b.queue, s)
		b.scale()
		b.w.in(b.w.life(1), b.scale)
	case b.class.PerMinute > 0 && !b.mayBegin():
		b.throttled++
		wait := b.w.life(60)*float64(b.minute+1) - b.w.now
		b.w.in(b.w.life(shortSeconds), func() { s.failed(outcome.Throttled, max(1, wait)) })
	default:
		b.give(b.engines[0], s)
	}
}

// mayBegin counts a request against the limit of the present minute.
func (b *backend) mayBegin() bool {
	full := b.full()
	b.inMinute++
	return !full
}

// full tells whether the present minute's requests have begun.
func (b *backend) full() bool {
	if m := int64(b.w.now / b.w.life(60)); m != b.minute {
		b.minute, b.inMinute = m, 0
	}
	return b.class.PerMinute > 0 && b.inMinute >= b.class.PerMinute
}

func (b *backend) give(e *engine, s *seq) {
	s.engine = e
	e.take(s)
}

// cancel drops an attempt at the gateway's wish.
func (b *backend) cancel(s *seq) {
	if s.engine != nil {
		s.engine.cancel(s)
		return
	}
	b.queue = drop(b.queue, s)
	s.phase = over
}

// charge bills what an attempt used where that is by the token.
func (b *backend) charge(s *seq, made float64) {
	b.tokens += made
	if b.class.Kind == API && s.engine != nil && made > 0 {
		c := b.class
		b.usd += b.price * ((float64(s.prompt)-s.hit)*c.USDPerMTokIn + s.hit*c.USDPerMTokCached + made*c.USDPerMTokOut) / 1e6
	}
}

// fullest is the worker with room that has the most to do.
func (b *backend) fullest() (best *engine) {
	for _, e := range b.engines {
		if e.up && b.held(e) < b.class.Concurrency && (best == nil || b.held(e) > b.held(best)) {
			best = e
		}
	}
	return best
}

func (b *backend) held(e *engine) int { return e.load() + len(e.queue) }

func (b *backend) warm() (up, starting int) {
	for _, e := range b.engines {
		switch {
		case e.up:
			up++
		case e.starting:
			starting++
		}
	}
	return up, starting
}

// scale starts a worker when those that are starting will not do for the queue.
func (b *backend) scale() {
	if _, starting := b.warm(); len(b.queue) > starting*b.class.Concurrency {
		b.spawn()
	}
}

// wake sees to it that n workers are up or starting, as a changed minimum of workers does.
func (b *backend) wake(n int) {
	up, starting := b.warm()
	for ; up+starting < min(n, len(b.engines)); starting++ {
		b.spawn()
	}
}

func (b *backend) spawn() {
	for _, e := range b.engines {
		if e.up || e.starting {
			continue
		}
		e.starting, e.since = true, b.w.now
		cold := 8.0 // half the starts find the model on the machine, the rest load 40 GB
		if b.colds.Float64() >= 0.5 {
			cold = 45
		}
		takes := b.w.life(cold) * logNormal(b.colds, 0.3)
		if b.class.SureCold {
			takes = b.class.ColdStart
		}
		b.w.in(takes, func() {
			e.starting, e.up, e.at = false, true, b.w.now
			b.feed(e)
			b.released(e)
		})
		return
	}
}

func (b *backend) feed(e *engine) {
	for len(b.queue) > 0 && e.up && b.held(e) < b.class.Concurrency {
		s := b.queue[0]
		b.queue = b.queue[1:]
		e.idleVer++
		b.give(e, s)
	}
}

// released is called when a worker may have become idle.
func (b *backend) released(e *engine) {
	if b.class.Kind != Serverless || !e.up {
		return
	}
	b.feed(e)
	if b.held(e) > 0 {
		return
	}
	e.idleVer++
	v := e.idleVer
	e.idleSince = b.w.now
	b.w.in(b.class.IdleTimeout, func() {
		if v == e.idleVer && e.up && b.held(e) == 0 {
			e.up = false
			e.cache = prefixes{most: e.nature.cache}
			b.billWorker(e)
		}
	})
}

func (b *backend) billWorker(e *engine) {
	second := b.w.life(1) // begun is billed whole
	b.usd += math.Ceil((b.w.now-e.since)/second) * second * b.price
}

// billHours brings an hourly bill up to a time; a host is billed while it is away as well, as the article does.
func (b *backend) billHours(to float64) {
	if b.class.Kind == Hourly && to > b.pricedAt {
		b.usd += b.price * (to - b.pricedAt) / 3600
		b.pricedAt = to
	}
}

// close ends the bill.
func (b *backend) close(end float64) {
	b.billHours(end)
	for _, e := range b.engines {
		if b.class.Kind == Serverless && (e.up || e.starting) {
			b.billWorker(e)
		}
	}
}

// die takes an hourly host away.
func (b *backend) die() {
	if !b.up {
		return
	}
	b.up = false
	b.vanish = b.fate.Float64() < 0.25
	b.downs = append(b.downs, [2]float64{b.w.now, math.Inf(1)})
	b.silent = append(b.silent, b.vanish)
	b.w.note(b, "preempted")
	e := b.engines[0]
	all := e.kill()
	e.up = false
	b.w.changed(b)
	for _, s := range all {
		if s.made >= 1 { // the caller is reading it
			if b.vanish {
				b.w.in(b.w.life(s.replica.rules.gap), func() { s.lost(outcome.Stalled) })
			} else {
				s.lost(outcome.Truncated)
			}
			continue
		}
		if !b.vanish {
			s.failed(outcome.Severed, 0)
		} // else the time for the first token passes
	}
}

// comeBack brings it up again, at another port, with nothing in its caches.
func (b *backend) comeBack() {
	if b.up {
		return
	}
	b.up = true
	b.port++
	b.downs[len(b.downs)-1][1] = b.w.now
	e := b.engines[0]
	e.up, e.at = true, b.w.now
	if f := b.class.Returns; f > 0 && len(b.downs) == 1 { // on other hardware from then on
		e.slow *= f
	}
	b.w.note(b, "back")
	b.w.changed(b)
}

// sicken begins an episode of a flaky host.
func (b *backend) sicken() {
	e := b.engines[0]
	last := b.w.life(300 + 600*b.fate.Float64())
	if b.fate.Float64() < 0.5 {
		e.advance()
		e.slow *= 3.5
		e.settle()
		b.w.note(b, "slow neighbour")
		b.w.in(last, func() {
			e.advance()
			e.slow /= 3.5
			e.settle()
		})
		return
	}
	b.failing = true
	b.w.note(b, "answers 500")
	if b.up {
		for _, s := range e.kill() {
			if s.made >= 1 {
				s.lost(outcome.Truncated)
			} else {
				s.failed(outcome.UpstreamFault, 0)
			}
		}
	}
	b.w.in(last, func() { b.failing = false })
}
