package sim

import (
	"math"
	"math/rand/v2"
)

// curve is the true time between two tokens of a stream when n run at once: linear up to the knee, steeper beyond.
type curve struct {
	base  float64 // seconds, of no stream
	slope float64 // seconds for each stream
	knee  float64 // streams; +Inf for a straight line
	steep float64 // seconds for each stream beyond the knee, on top of slope
}

func (c *curve) itl(n float64) float64 { return c.base + c.slope*n + c.steep*max(0, n-c.knee) }

// safe is how many streams at once get a token every itl seconds at least, as a real number of 0 or more.
func (c *curve) safe(itl float64) float64 {
	n := (itl - c.base) / c.slope
	if n > c.knee {
		n = c.knee + (itl-c.itl(c.knee))/(c.slope+c.steep)
	}
	return max(0, n)
}

// nature is what an engine truly is; nobody but it and the oracle knows.
type nature struct {
	curve   curve
	first   float64 // seconds to the first token after the prompt's computation
	prefill float64 // prompt tokens per second
	seqs    int     // sequences at once
	kv      float64 // tokens of KV cache; +Inf for more than is ever used
	stall   float64 // share of a prompt's computation in which decoding stands still
	chunk   float64 // prompt tokens computed in one step together with decoding; 0 computes prompts apart, by stall
	noise   float64 // sigma of the logarithm of single streams' speed
	drift   float64 // sigma of the logarithm of the engine's speed as it wanders
	cache   int     // sessions whose prefix it remembers
}

// phase is where a sequence stands on its engine.
type phase uint8

const (
	waiting    phase = iota // for a slot
	prefilling              // its prompt is computed, or waits for that
	starting                // the first token is on its way
	decoding
	over
)

// seq is one request on an engine.
type seq struct {
	*attempt
	prompt, output int
	session        int
	shared         int // tokens of the prompt that the session's earlier turn had

	phase   phase
	hit     float64 // tokens that were in the prefix cache
	left    float64 // prompt tokens to compute
	made    float64 // tokens made before the present stretch of decoding
	startV  float64 // the engine's v when that began
	finV    float64 // and when the last token is made
	pace    float64 // of the engine's steps, for one token
	entered uint64  // order of admission
	idx     int     // in the heap of running ones
	again   bool    // its KV cache was lost: computed anew before it goes on
}

// engine is one vLLM-like server: a fluid of sequences that all advance at one rate, a queue of prompts to compute and a
// queue of those that wait for a slot or for KV cache.
type engine struct {
	w      *world
	nature nature
	b      *backend
	rand   *rand.Rand

	up       bool
	slow     float64 // factor on all its times: a noisy neighbour
	wander   float64 // likewise, of drift
	at       float64 // when the figures below were true
	v        float64 // tokens made by a stream of pace 1 since the beginning
	run      []*seq  // heap by finV
	prompts  []*seq  // prefilling, in order
	firsts   []*seq  // starting
	queue    []*seq  // waiting
	kv       float64 // tokens held
	growth   float64 // tokens of KV cache for each unit of v
	admitted uint64
	version  uint64 // of the entry in the agenda
	cache    prefixes
	kvLosses int     // sequences that lost their KV cache
	busy     float64 // seconds with work
	inFlight float64 // integral of load over time

	stalled   float64 // share of time lost to prefill, a mean over 20 s as of stalledAt
	stalledAt float64

	// of a serverless worker
	starting  bool
	since     float64 // billed from
	idleSince float64
	idleVer   uint64
}

// load is how many sequences hold a slot.
func (e *engine) load() int { return len(e.run) + len(e.prompts) + len(e.firsts) }

// rates are tokens of a stream, and prompt tokens, per second.
func (e *engine) rates() (decode, prompts float64) {
	n := &e.nature
	slow := e.slow * e.wander
	itl := n.curve.itl(float64(len(e.run))) * slow
	prompts = n.prefill / slow
	if len(e.prompts) == 0 {
		return 1 / itl, prompts
	}
	if n.chunk > 0 && len(e.run) > 0 { // one step computes a chunk and a token of each stream
		step := itl + n.chunk/prompts
		return 1 / step, n.chunk / step
	}
	return (1 - n.stall) / itl, prompts
}

// advance brings the engine up to now.
func (e *engine) advance() {
	dt := e.w.now - e.at
	e.at = e.w.now
	if dt <= 0 || !e.up {
		return
	}
	if e.load() > 0 {
		e.busy += dt
		e.inFlight += dt * float64(e.load())
	}
	decode, prompts := e.rates()
	if len(e.run) > 0 {
		e.v += decode * dt
		e.kv += e.growth * decode * dt
	}
	if len(e.prompts) > 0 {
		e.prompts[0].left -= prompts * dt
	}
}

const nearly = 1e-6 // tokens

// settle lets happen what is due and enters the next event.
func (e *engine) settle() {
	for e.due() {
	}
	e.version++
	if len(e.run) == 0 && len(e.prompts) == 0 || !e.up {
		return
	}
	decode, prompts := e.rates()
	next := math.Inf(1)
	if len(e.run) > 0 && decode > 0 {
		next = max(0, e.run[0].finV-e.v) / decode
		if e.kv < e.nature.kv && e.load() > 1 {
			next = min(next, (e.nature.kv-e.kv)/(e.growth*decode))
		}
	}
	if len(e.prompts) > 0 {
		next = min(next, max(0, e.prompts[0].left)/prompts)
	}
	if math.IsInf(next, 1) {
		return
	}
	version := e.version
	e.w.in(next+1e-9, func() {
		if version == e.version {
			e.advance()
			e.settle()
		}
	})
}

// due does one thing that is due; false when nothing is.
func (e *engine) due() bool {
	if len(e.run) > 0 && e.run[0].finV <= e.v+nearly {
		s := e.run[0]
		e.leave(s)
		e.cache.put(s.session, s.prompt+s.output)
		s.lastAt, s.made = e.w.now, float64(s.output)
		s.finished()
		e.b.released(e)
		return true
	}
	if len(e.prompts) > 0 && e.prompts[0].left <= nearly {
		s := e.prompts[0]
		e.prompts = e.prompts[1:]
		if s.again {
			e.decode(s)
			return true
		}
		s.phase = starting
		e.firsts = append(e.firsts, s)
		jitter := math.Exp(0.18*e.rand.NormFloat64() - 0.016)
		e.w.in(e.nature.first*jitter*(1+0.01*float64(len(e.run)))*math.Sqrt(e.slow), func() {
			if s.phase != starting {
				return
			}
			e.advance()
			e.firsts = drop(e.firsts, s)
			s.made = 1
			e.decode(s)
			s.first()
			e.settle()
		})
		return true
	}
	if e.kv >= e.nature.kv-nearly && e.load() > 1 && len(e.run) > 0 {
		e.evict()
		return true
	}
	return e.admit()
}

// admit lets the first that waits in, if there is room for it.
func (e *engine) admit() bool {
	if len(e.queue) == 0 || e.load() >= e.nature.seqs {
		return false
	}
	s := e.queue[0]
	need := float64(s.prompt) + s.made
	if e.load() > 0 && e.kv+need > 0.99*e.nature.kv {
		return false
	}
	e.queue = e.queue[1:]
	e.admitted++
	s.entered = e.admitted
	s.phase = prefilling
	s.left = need
	if !s.again {
		s.hit = float64(min(e.cache.get(s.session), s.shared))
		s.left -= s.hit
	}
	e.kv += need
	e.cache.keep(e.nature.kv - e.kv)
	e.prompts = append(e.prompts, s)
	e.noteStall(e.nature.stall * s.left / e.nature.prefill * e.slow * e.wander)
	return true
}

// noteStall keeps account of the time that prompts take from decoding.
func (e *engine) noteStall(seconds float64) {
	e.stalled = e.stalled*math.Exp(-(e.w.now-e.stalledAt)/20) + seconds/20
	e.stalledAt = e.w.now
}

// stallShare is the share of time that decoding stands still.
func (e *engine) stallShare() float64 { return e.stalled * math.Exp(-(e.w.now-e.stalledAt)/20) }

// decode lets s make tokens from now on.
func (e *engine) decode(s *seq) {
	s.phase = decoding
	s.startV = e.v
	s.finV = e.v + max(0, float64(s.output)-s.made)*s.pace
	e.growth += 1 / s.pace
	s.idx = len(e.run)
	e.run = append(e.run, s)
	e.rise(s.idx)
}

// produced is how many tokens s has made, with a part of the next.
func (e *engine) produced(s *seq) float64 {
	if s.phase != decoding {
		return s.made
	}
	return min(float64(s.output), s.made+(e.v-s.startV)/s.pace)
}

// evict takes the KV cache from the sequence that came last; it is computed anew when there is room.
func (e *engine) evict() {
	last := e.run[0]
	for _, s := range e.run {
		if s.entered > last.entered {
			last = s
		}
	}
	made := e.produced(last)
	e.leave(last)
	last.made = made
	last.phase, last.again = waiting, true
	e.queue = append([]*seq{last}, e.queue...)
	e.kvLosses++
}

// leave takes s off the engine, whatever it was doing there.
func (e *engine) leave(s *seq) {
	held := float64(s.prompt) + e.produced(s)
	switch s.phase {
	case waiting:
		e.queue = drop(e.queue, s)
		held = 0
	case prefilling:
		e.prompts = drop(e.prompts, s)
	case starting:
		e.firsts = drop(e.firsts, s)
	case decoding:
		s.made = e.produced(s)
		e.remove(s.idx)
		e.growth -= 1 / s.pace
	case over:
		return
	}
	s.phase = over
	e.kv -= held
	if len(e.run) == 0 {
		e.growth = 0
	}
	if e.load() == 0 {
		e.kv = 0
	}
}

// take accepts a request.
func (e *engine) take(s *seq) {
	e.advance()
	s.phase, s.pace = waiting, 1
	if e.nature.noise > 0 {
		s.pace = logNormal(e.rand, e.nature.noise)
	}
	e.queue = append(e.queue, s)
	e.settle()
}

// cancel drops a request whose caller has left.
func (e *engine) cancel(s *seq) {
	e.advance()
	e.leave(s)
	e.settle()
	e.b.released(e)
}

// kill drops all and returns those that were there, in the order they came.
func (e *engine) kill() []*seq {
	e.advance()
	all := append(append(append(append([]*seq{}, e.run...), e.firsts...), e.prompts...), e.queue...)
	for _, s := range all {
		if s.phase == decoding {
			s.made = e.produced(s)
		}
		s.phase = over
		s.lastAt = e.w.now
	}
	e.run, e.firsts, e.prompts, e.queue = nil, nil, nil, nil
	e.kv, e.growth = 0, 0
	e.cache = prefixes{most: e.nature.cache}
	e.version++
	return all
}

// The heap of running sequences by finV.

func (e *engine) rise(i int) {
	for i > 0 {
		p := (i - 1) / 2
		if e.run[p].finV <= e.run[i].finV {
			return
		}
		e.swap(i, p)
		i = p
	}
}

func (e *engine) sink(i int) {
	for {
		c := 2*i + 1
		if c >= len(e.run) {
			return
		}
		if c+1 < len(e.run) && e.run[c+1].finV < e.run[c].finV {
			c++
		}
		if e.run[i].finV <= e.run[c].finV {
			return
		}
		e.swap(i, c)
		i = c
	}
}

func (e *engine) swap(i, j int) {
	e.run[i], e.run[j] = e.run[j], e.run[i]
	e.run[i].idx, e.run[j].idx = i, j
}

func (e *engine) remove(i int) {
	n := len(e.run) - 1
	e.swap(i, n)
	e.run[n] = nil
	e.run = e.run[:n]
	if i < n {
		e.rise(i)
		e.sink(i)
	}
}

// drop removes s from a list and keeps the order.
func drop(list []*seq, s *seq) []*seq {
	for i := range list {
		if list[i] == s {
			return append(list[:i], list[i+1:]...)
		}
	}
	return list
}

// prefixes is a prefix cache: the newest sessions, by the tokens that they hold.
type prefixes struct {
	most   int // sessions
	tokens float64
	by     map[int]*prefix
	newest prefix // ring of all, newest first
}

type prefix struct {
	session, tokens int
	next, prev      *prefix
}

// get returns how many tokens of a session are held, and makes it the newest.
func (c *prefixes) get(session int) int {
	p := c.by[session]
	if p == nil {
		return 0
	}
	p.prev.next, p.next.prev = p.next, p.prev
	c.push(p)
	return p.tokens
}

// peek is get without making it the newest.
func (c *prefixes) peek(session int) int {
	if p := c.by[session]; p != nil {
		return p.tokens
	}
	return 0
}

func (c *prefixes) push(p *prefix) {
	r := &c.newest
	p.next, p.prev = r.next, r
	r.next.prev = p
	r.next = p
}

// put holds the tokens of a session.
func (c *prefixes) put(session, tokens int) {
	if c.by == nil {
		c.by = map[int]*prefix{}
		c.newest.next, c.newest.prev = &c.newest, &c.newest
	}
	if p := c.by[session]; p != nil {
		c.tokens += float64(tokens - p.tokens)
		p.tokens = tokens
		c.get(session)
		return
	}
	p := &prefix{session: session, tokens: tokens}
	c.by[session] = p
	c.tokens += float64(tokens)
	c.push(p)
	for len(c.by) > c.most {
		c.forget()
	}
}

// keep forgets the oldest until no more than that many tokens are held.
func (c *prefixes) keep(tokens float64) {
	for c.tokens > max(0, tokens) && len(c.by) > 0 {
		c.forget()
	}
}

func (c *prefixes) forget() {
	p := c.newest.prev
	p.prev.next, p.next.prev = p.next, p.prev
	delete(c.by, p.session)
	c.tokens -= float64(p.tokens)
}
