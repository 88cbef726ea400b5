package fakecloud

import (
	"context"
	"slices"
	"sync"
	"time"
)

// prefillStall is the share of its time that decoding stands still while a prompt is being read.
const prefillStall = 0.5

// engine is the batch of one host: sequences wait for a place, read their prompts one after the other and then
// advance together, each slower the more there are.
type engine struct {
	speed   speed
	scale   float64 // all durations are divided by it; 0 means no waiting at all
	maxSeqs int
	kvMax   int

	batch   gate // places, one a sequence
	prefill gate // one prompt at a time

	mu    sync.Mutex // guards all below
	kv    int        // tokens that running sequences hold
	cache prefixCache
	read  time.Time // when the last prompt was to be read, or was given up
}

func newEngine(s speed, scale float64, c Class, maxSeqs int) *engine {
	return &engine{
		speed: s, scale: scale, maxSeqs: maxSeqs, kvMax: maxSeqs * c.KVPerSeq,
		batch: gate{free: maxSeqs}, prefill: gate{free: 1},
	}
}

// scaled turns a duration of the model into one of the wall clock.
func (e *engine) scaled(d time.Duration) time.Duration {
	if e.scale <= 0 {
		return 0
	}
	return time.Duration(float64(d) / e.scale)
}

// sequence is a request in the batch: one or more sequences that advance together. One goroutine uses it.
type sequence struct {
	e      *engine
	weight int
	kv     int
	next   time.Time // when its next token is due
	timer  *time.Timer
	closed bool
}

// enter waits for a place in the batch, reads the prompt and returns when the first token is due. admitted is
// called once the place is there. Whatever enter returns without an error must be closed.
func (e *engine) enter(ctx context.Context, weight, promptTokens, cached int, admitted func()) (*sequence, error) {
	weight = min(weight, e.maxSeqs) // a request larger than the batch runs alone
	if err := e.batch.acquire(ctx, weight); err != nil {
		return nil, err
	}
	admitted()
	s := &sequence{e: e, weight: weight}
	if err := s.readPrompt(ctx, promptTokens, cached); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *sequence) readPrompt(ctx context.Context, tokens, cached int) error {
	s.grow(tokens)
	if s.e.scale <= 0 {
		return ctx.Err()
	}
	s.next = time.Now()
	if err := s.e.prefill.acquire(ctx, 1); err != nil {
		return err
	}
	if free := s.e.readUntil(time.Time{}); free.After(s.next) {
		s.next = free
	}
	err := s.wait(ctx, time.Duration(float64(tokens-cached)/s.e.speed.prefillTPS*float64(time.Second)))
	if err != nil {
		s.next = time.Now()
	}
	s.e.readUntil(s.next)
	s.e.prefill.release(1)
	if err != nil {
		return err
	}
	return s.wait(ctx, s.e.speed.ttft)
}

// readUntil notes until when prompts are being read, and returns it: the next one begins then, not when its goroutine gets to
// run, which would make an engine slower the more its time is scaled.
func (e *engine) readUntil(t time.Time) time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !t.IsZero() {
		e.read = t
	}
	return e.read
}

// step waits until the next token is due. A caller who is late gets the tokens it missed at once, as from an engine
// that went on without it.
func (s *sequence) step(ctx context.Context) error {
	s.grow(s.weight)
	if s.e.scale <= 0 {
		return ctx.Err()
	}
	itl := s.e.speed.itl(s.e.batch.used())
	if s.e.prefill.used() > 0 {
		itl = time.Duration(float64(itl) / (1 - prefillStall))
	}
	return s.wait(ctx, itl)
}

// wait lets d of the model's time pass.
func (s *sequence) wait(ctx context.Context, d time.Duration) error {
	s.next = s.next.Add(s.e.scaled(d))
	left := time.Until(s.next)
	if left <= 0 {
		return ctx.Err()
	}
	if s.timer == nil {
		s.timer = time.NewTimer(left)
	} else {
		s.timer.Reset(left)
	}
	select {
	case <-s.timer.C:
		return nil
	case <-ctx.Done():
		s.timer.Stop()
		return ctx.Err()
	}
}

func (s *sequence) grow(tokens int) {
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	s.kv += tokens
	s.e.kv += tokens
}

// close gives the place back; further calls do nothing.
func (s *sequence) close() {
	if s.closed {
		return
	}
	s.closed = true
	s.grow(-s.kv)
	s.e.batch.release(s.weight)
}

// kvUsage is the used share of the KV cache in [0,1].
func (e *engine) kvUsage() float64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return min(1, float64(e.kv)/float64(max(1, e.kvMax)))
}

// cached returns how many tokens of the prompt, whole blocks from its beginning, the host has read before, and
// remembers the prompt.
func (e *engine) cached(prompt string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.cache.see(prompt)
}

func (e *engine) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.cache = prefixCache{}
}

// gate hands out places, first come, first served.
type gate struct {
	mu    sync.Mutex // guards free, taken and queue
	free  int
	taken int
	queue []*ticket
}

type ticket struct {
	weight int
	ready  chan struct{} // closed when the places are the ticket's
}

func (g *gate) acquire(ctx context.Context, weight int) error {
	g.mu.Lock()
	if len(g.queue) == 0 && weight <= g.free {
		g.take(weight)
		g.mu.Unlock()
		return nil
	}
	t := &ticket{weight, make(chan struct{})}
	g.queue = append(g.queue, t)
	g.mu.Unlock()
	select {
	case <-t.ready:
		return nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(g.queue, t); i >= 0 {
		g.queue = slices.Delete(g.queue, i, i+1)
	} else { // it was given the places in the meantime
		g.give(weight)
	}
	g.serve()
	return ctx.Err()
}

func (g *gate) release(weight int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.give(weight)
	g.serve()
}

func (g *gate) take(weight int) { g.free -= weight; g.taken += weight }
func (g *gate) give(weight int) { g.free += weight; g.taken -= weight }

// serve lets those in front of the queue in. The caller holds mu.
func (g *gate) serve() {
	for len(g.queue) > 0 && g.queue[0].weight <= g.free {
		g.take(g.queue[0].weight)
		close(g.queue[0].ready)
		g.queue = g.queue[1:]
	}
}

func (g *gate) used() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.taken
}

func (g *gate) waiting() (n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, t := range g.queue {
		n += t.weight
	}
	return n
}

// Sizes of the prefix cache.
const (
	blockTokens    = 16
	blockBytes     = 4 * blockTokens // as CountTokens counts
	maxPromptBlock = 2048            // a prompt is remembered up to here
	maxBlocks      = 1 << 15         // of one generation
)

// prefixCache remembers the beginnings of prompts by the hash of each block and all before it. The older of two
// generations is dropped when the younger is full, which keeps about what was used last.
type prefixCache struct{ young, old map[uint64]struct{} }

func (c *prefixCache) see(prompt string) (tokens int) {
	h := uint64(14695981039346656037) // FNV-1a
	miss := false
	for n := range maxPromptBlock {
		if len(prompt) < (n+1)*blockBytes {
			break
		}
		for _, b := range []byte(prompt[n*blockBytes : (n+1)*blockBytes]) {
			h = (h ^ uint64(b)) * 1099511628211
		}
		_, young := c.young[h]
		_, old := c.old[h]
		if miss = miss || !young && !old; !miss {
			tokens += blockTokens
		}
		if young {
			continue
		}
		if c.young == nil || len(c.young) >= maxBlocks {
			c.young, c.old = map[uint64]struct{}{}, c.young
		}
		c.young[h] = struct{}{}
	}
	return tokens
}
