package admission

import (
	"cmp"
	"context"
	"sync"
	"sync/atomic"
	"time"

	"headrace/gateway/state"
)

// With Redis, replicas agree on what keys have used. Each decides from memory: it has borrowed its part of half of what is left of a key's
// limits and budgets, and lets in by itself what that covers. A request beyond it waits for Redis, 5 ms at most, together with all that wait
// by then: one call for many requests. So requests wait only while a key is near a limit or new here, and over all replicas no more is let in than one
// would.
//
// Redis gone, each replica goes on with its part: a request weighs as much as there are replicas. What was let in meanwhile is told
// when it is back. What was taken is told under a number, and what was spent as a sum, so that what was told twice counts once.

// Shared is what replicas share of keys; state.Redis is one.
type Shared interface {
	// Limits asks about keys, each once, and fills in the answers; see state.Redis.
	Limits(ctx context.Context, within time.Duration, us []*state.Usage) error
	// Replicas is how many share it, this one included.
	Replicas() int
}

const (
	tellEvery   = 100 * time.Millisecond // what was let in here without asking
	tellWithin  = 250 * time.Millisecond
	awayAgain   = 250 * time.Millisecond // Redis gone, until it is asked again
	aloneHas    = 2 * time.Second        // what may be let in at once by a replica that has lost Redis: its part of that time's worth
	strictAfter = time.Second            // that what is left of a budget is not known: Options.Strict
	sayEvery    = time.Second            // that requests are still running
	trustFor    = 3 * time.Second        // how long what is borrowed is ours: less than Redis thinks
	idleFor     = time.Second            // after which it is given back
	mostDirect  = 4                      // calls at once that requests make themselves
	askers      = 2                      // likewise, that others make for them
	mostAtOnce  = 64                     // keys of one call
	// rememberFor is how old a book may be that Redis is reminded of: what it says of replicas that are gone is put together after a day.
	rememberFor = time.Hour
	bookEvery   = time.Second // a book costs more than the answer that it comes with
)

// share is what an account has to do with the other replicas. The account's mu guards it.
type share struct {
	grant *Grant      // by which it is asked about
	usage state.Usage // of the call under way
	busy  bool        // a call is under way
	due   bool        // it stands in the sharer's list of those that have something to tell

	owed             taken    // let in here and not told yet
	told             *taken   // what a call tells that is under way, or has failed: it is told again as it was
	seq              uint64   // of told
	call, answeredBy uint64   // numbers of the call under way or the last one, and of the last one that was answered
	mine             spending // here since the process began
	sent             spending // of that, what the call under way tells
	has              bool     // an answer has said that it has it
	lost             bool     // it had lost it: it is to be reminded of the others as well
	book             string   // of the last answer that had it
	bookAt           int64    // the clock when that came

	claims []*claim // requests that wait
	asking []*claim // of these, those of the call under way
	only   [1]*state.Usage
	asked  int64      // the clock when the last answer came, 0 for never
	free   state.Lent // what is borrowed, and left of it
	taking int64      // the clock when a request was last let in
	others int64      // running at other replicas
	theirs int64      // billionths of a US dollar that these are expected to cost

	alone    [2]bucket // requests and tokens while Redis is away, beside those of the account
	aloneAt  int64     // since when: it is that of the sharer, or they are of another time
	anything bool      // was let in since
}

// taken is what was taken from limits.
type taken struct{ requests, tokens int64 }

// claim is a request that waits for Redis.
type claim struct {
	tokens, nano int64
	done         chan struct{} // of one: it is decided; nil where the request asks itself

	// The account's mu guards all below.
	verdict state.Verdict
	decided bool
	left    bool // nobody waits any more
	lost    bool // it will not be decided
	in      bool // with left: it was let in all the same
}

// sharer tells Redis and asks it.
type sharer struct {
	with    Shared
	within  time.Duration // that a request waits
	away    atomic.Bool   // Redis did not answer the last time
	gone    atomic.Int64  // the clock since when
	waited  atomic.Int64
	fellOut atomic.Int64 // requests that were decided alone
	direct  atomic.Int64 // calls that requests make themselves

	mu     sync.Mutex // guards all below; taken after an account's
	urgent []*account
	due    []*account
	wake   chan struct{} // of one: urgent has something
	rouse  chan struct{} // of one: due has something
}

func newSharer(with Shared, within time.Duration) *sharer {
	return &sharer{with: with, within: cmp.Or(within, state.Within), wake: make(chan struct{}, 1), rouse: make(chan struct{}, 1)}
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// owes puts an account on the list of those that have something to tell. Its mu is held.
func (s *sharer) owes(a *account) {
	if a.share.due {
		return
	}
	a.share.due = true
	s.mu.Lock()
	s.due = append(s.due, a)
	s.mu.Unlock()
	nudge(s.rouse)
}

// lose notes that Redis is away.
func (s *sharer) lose(g *Gate) {
	if !s.away.Load() {
		s.gone.Store(g.clock(g.opt.Now()))
		s.away.Store(true)
	}
}

// onItsOwn tells whether a request may be let in while Redis is away. What the account knows of is what was left for all: of that no more is given
// out at once than belongs to a few seconds, for Redis may be back in a moment, and others may not have lost it at all. The first request is let
// in. mu is held.
func (a *account) onItsOwn(gr *Grant, p *Pass, now, weight, since int64) (reason, time.Duration) {
	s, k := &a.share, &gr.Key
	if s.aloneAt != since {
		little := bucket{now + minute - int64(aloneHas)}
		s.alone, s.aloneAt, s.anything = [2]bucket{little, little}, since, false
	}
	if !s.anything {
		return numReasons, 0
	}
	if k.RPM > 0 {
		if w := s.alone[0].wait(now, min(weight, k.RPM), k.RPM); w > 0 {
			return overRequests, time.Duration(w)
		}
	}
	if k.TPM > 0 {
		if w := s.alone[1].wait(now, min(p.tokens*weight, k.TPM), k.TPM); w > 0 {
			return overTokens, time.Duration(w)
		}
	}
	return numReasons, 0
}

// weight is what each request counts here while Redis is away: as if every replica had let one in.
func (s *sharer) weight() int64 {
	if s == nil || !s.away.Load() {
		return 1
	}
	return int64(max(1, s.with.Replicas()))
}

// takes tells whether a request may be let in without asking, and takes it then. mu is held.
func (a *account) takes(gr *Grant, p *Pass, now int64) bool {
	s, f := &a.share, &a.share.free
	k := &gr.Key
	if s.asked == 0 || now-s.asked > int64(trustFor) ||
		k.RPM > 0 && f.Requests < 1 || k.TPM > 0 && f.Tokens < p.tokens || k.Concurrency > 0 && f.Running < 1 || gr.limited() && f.Nano < max(p.nano, 1) {
		return false
	}
	if k.RPM > 0 {
		f.Requests--
	}
	if k.TPM > 0 {
		f.Tokens -= p.tokens
	}
	if k.Concurrency > 0 {
		f.Running--
	}
	if gr.limited() {
		f.Nano -= p.nano
	}
	return true
}

// settled notes what a request has used beyond what was thought, and has cost. mu is held.
func (a *account) settled(tokens, nano int64) {
	s := &a.share
	s.owed.tokens += tokens
	s.mine.roll(a.spent.Day, a.spent.Month)
	s.mine.book(nano)
	if s.grant.Key.Concurrency > 0 {
		s.free.Running++ // the place is ours until it is given back
	}
}

// limited tells whether there is a budget.
func (gr *Grant) limited() bool { return gr.day > 0 || gr.month > 0 || gr.total > 0 }

// bounded tells whether there is anything that replicas have to agree on before a request is let in.
func (gr *Grant) bounded() bool {
	return gr.Key.RPM > 0 || gr.Key.TPM > 0 || gr.Key.Concurrency > 0 || gr.limited()
}
