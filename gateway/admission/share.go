package admission

import (
	"cmp"
	"context"
	"slices"
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
	askers      = 2                      // calls at once on behalf of waiting requests
	mostAtOnce  = 64                     // keys of one call
	// rememberFor is how old a book may be that Redis is reminded of: what it says of replicas that are gone is put together after a day.
	rememberFor = time.Hour
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
	book             string   // of the last answer

	claims []*claim   // requests that wait
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
	done         chan struct{} // of one: it is decided

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

// ask asks Redis for a request. The account's mu is held, and given up while it waits. The claim is decided, or nobody answers.
func (s *sharer) ask(gr *Grant, p *Pass) *claim {
	a := gr.acct
	c := &claim{tokens: p.tokens, nano: p.nano, done: make(chan struct{}, 1)}
	a.share.claims = append(a.share.claims, c)
	s.push(a)
	a.mu.Unlock()
	s.waited.Add(1)
	t := time.NewTimer(s.within)
	select {
	case <-c.done:
	case <-t.C:
	}
	t.Stop()
	a.mu.Lock()
	if !c.decided {
		c.left = true
		s.lose(gr.gate) // nobody else waits, until it is known to be back
		s.fellOut.Add(1)
	}
	return c
}

// push has an asker look at the account. Its mu is held.
func (s *sharer) push(a *account) {
	s.mu.Lock()
	s.urgent = append(s.urgent, a)
	s.mu.Unlock()
	nudge(s.wake)
}

// run tells and asks until ctx is done; then it tells the rest.
func (s *sharer) run(ctx context.Context, g *Gate) {
	var wg sync.WaitGroup
	for range askers {
		wg.Go(func() { s.answer(ctx, g) })
	}
	wg.Go(func() { s.tell(ctx, g) })
	wg.Wait()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushAtEnd)
	defer cancel()
	s.tellAll(last, g)
}

// answer asks on behalf of waiting requests.
func (s *sharer) answer(ctx context.Context, g *Gate) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		}
		for {
			s.mu.Lock()
			n := min(len(s.urgent), mostAtOnce)
			batch := slices.Clone(s.urgent[:n])
			s.urgent = slices.Delete(s.urgent, 0, n)
			more := len(s.urgent) > 0
			s.mu.Unlock()
			if more {
				nudge(s.wake)
			}
			if len(batch) == 0 || !s.call(ctx, g, batch, s.within) && ctx.Err() != nil {
				break
			}
		}
	}
}

// tell tells of what was let in without asking.
func (s *sharer) tell(ctx context.Context, g *Gate) {
	wait := time.NewTimer(0)
	defer wait.Stop()
	alive := time.NewTicker(sayEvery)
	defer alive.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-wait.C:
		}
		again := tellEvery
		if !s.tellAll(ctx, g) {
			again = awayAgain
		}
		for idle := true; idle; {
			select {
			case <-ctx.Done():
				return
			case <-alive.C:
				g.stillRunning()
				s.mu.Lock()
				idle = len(s.due) == 0
				s.mu.Unlock()
			case <-s.rouse:
				idle = false
			}
		}
		wait.Reset(again)
	}
}

// stillRunning has all accounts told of that have requests running, which would be taken for gone else, or have borrowed something.
func (g *Gate) stillRunning() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, a := range g.accounts {
		a.mu.Lock()
		s := &a.share
		if s.grant != nil && (s.free != (state.Lent{}) || a.running > 0 && (s.grant.Key.Concurrency > 0 || s.grant.limited())) {
			g.share.owes(a)
		}
		a.mu.Unlock()
	}
}

// refresh asks about all keys now, so that what is shown of them is everybody's.
func (g *Gate) refresh(ctx context.Context) {
	if g.share == nil {
		return
	}
	var all []*account
	g.mu.Lock()
	for _, a := range g.accounts {
		all = append(all, a)
	}
	g.mu.Unlock()
	for batch := range slices.Chunk(all, mostAtOnce) {
		if !g.share.call(ctx, g, batch, max(tellWithin, g.share.within)) {
			return
		}
	}
}

// tellAll tells of all accounts that have something to tell. It returns false when Redis did not answer.
func (s *sharer) tellAll(ctx context.Context, g *Gate) bool {
	for {
		s.mu.Lock()
		n := min(len(s.due), mostAtOnce)
		batch := slices.Clone(s.due[:n])
		s.due = slices.Delete(s.due, 0, n)
		s.mu.Unlock()
		if n == 0 {
			return true
		}
		for _, a := range batch {
			a.mu.Lock()
			a.share.due = false
			a.mu.Unlock()
		}
		if !s.call(ctx, g, batch, max(tellWithin, s.within)) {
			return false
		}
	}
}

// call tells Redis of accounts and asks it for their claims. It returns false when Redis did not answer.
func (s *sharer) call(ctx context.Context, g *Gate, batch []*account, within time.Duration) bool {
	us := make([]*state.Usage, 0, len(batch))
	asked := make([]*account, 0, len(batch))
	claims := make([][]*claim, 0, len(batch))
	now, replicas := g.opt.Now(), int64(max(1, s.with.Replicas()))
	for _, a := range batch {
		a.mu.Lock()
		if a.share.busy || a.share.grant == nil {
			a.mu.Unlock()
			continue // whoever asks about it now looks at it again
		}
		cs := a.begin(now, replicas)
		us, asked, claims = append(us, &a.share.usage), append(asked, a), append(claims, cs)
		a.mu.Unlock()
	}
	if len(us) == 0 {
		return true
	}
	from := time.Now()
	err := s.with.Limits(ctx, within, us)
	switch {
	case err != nil && ctx.Err() == nil:
		s.lose(g)
	case err == nil && time.Since(from) <= s.within: // else it is too slow for a request to wait
		s.away.Store(false)
	}
	clock := g.clock(g.opt.Now())
	for i, a := range asked {
		a.mu.Lock()
		if err != nil {
			a.unanswered(claims[i])
		} else {
			a.answered(claims[i], clock)
		}
		a.share.busy = false
		if err != nil {
			a.unanswered(a.share.claims) // those that came meanwhile
			a.share.claims = nil
			s.owes(a)
		} else if len(a.share.claims) > 0 {
			s.push(a)
		} else if a.share.owed != (taken{}) || a.share.mine.Total > a.share.sent.Total || a.share.lost {
			s.owes(a)
		}
		a.mu.Unlock()
	}
	return err == nil
}

// begin makes a call's question. mu is held.
func (a *account) begin(now time.Time, replicas int64) []*claim {
	s := &a.share
	s.busy = true
	gr := s.grant
	k := &gr.Key
	clock := gr.gate.clock(now)
	if clock-s.asked > int64(trustFor) { // Redis thinks the same of places and budgets; limits have to be told
		s.owed.requests -= s.free.Requests
		s.owed.tokens -= s.free.Tokens
		s.free = state.Lent{}
	}
	if s.told == nil && s.owed != (taken{}) {
		s.told, s.owed = new(s.owed), taken{}
		s.seq++
	}
	n := min(len(s.claims), state.MostClaims)
	claims := slices.Clone(s.claims[:n])
	s.claims = slices.Delete(s.claims, 0, n)
	for _, c := range claims { // what was given back while they waited is theirs: Redis would let them in beside it, and others here take it meanwhile
		if k.Concurrency > 0 {
			s.free.Running = max(0, s.free.Running-1)
		}
		s.free.Nano -= min(s.free.Nano, c.nano)
	}
	s.mine.roll(on(now))
	s.sent = s.mine
	s.call++
	u := &s.usage
	list := u.Claims[:0]
	*u = state.Usage{
		Call: s.call, Answered: s.answeredBy,
		Key: a.id, RPM: k.RPM, TPM: k.TPM, Concurrency: k.Concurrency, Day: gr.day, Month: gr.month, Total: gr.total,
		Running: a.running, Reserved: a.reserved, Told: s.has, Have: s.free,
		Spent: state.Spent{Day: int64(s.mine.Day), Month: int64(s.mine.Month), InDay: s.mine.InDay, InMon: s.mine.InMon, Total: s.mine.Total},
	}
	if t := s.told; t != nil {
		u.Seq, u.Requests, u.Tokens = s.seq, t.requests, t.tokens
	}
	if n > 0 || clock-s.taking < int64(idleFor) {
		u.Part = replicas
	}
	if s.lost && clock-s.asked < int64(rememberFor) {
		u.Restore = s.book
	}
	for _, c := range claims {
		list = append(list, state.Claim{Tokens: c.tokens, Nano: c.nano})
	}
	u.Claims = list
	return claims
}

// unanswered decides nothing: those who wait go on alone, and those who went already owe what they took. mu is held.
func (a *account) unanswered(claims []*claim) {
	for _, c := range claims {
		if c.in {
			a.share.owed.requests++
			a.share.owed.tokens += c.tokens
		}
		c.lost = true
		nudge(c.done)
	}
}

// answered takes over what Redis says. mu is held.
func (a *account) answered(claims []*claim, now int64) {
	s, u := &a.share, &a.share.usage
	k := &s.grant.Key
	s.told, s.answeredBy = nil, s.call
	for i, c := range claims {
		in := u.Claims[i].Verdict == state.LetIn
		switch {
		case !c.left && in:
			a.running++
			a.reserved += c.nano
		case c.left && c.in && !in: // let in alone, and Redis has not counted it
			s.owed.requests++
			s.owed.tokens += c.tokens
		case c.left && !c.in && in: // counted, and refused alone
			s.owed.requests--
			s.owed.tokens -= c.tokens
		}
		c.verdict, c.decided = u.Claims[i].Verdict, true
		nudge(c.done)
	}
	s.asked, s.others, s.theirs = now, u.Others, u.OthersReserved
	s.has = s.has || s.sent.Total > 0
	if s.lost = u.Lost; !s.lost {
		s.book = u.Book
	}
	a.spent = spending{Day: int32(u.Sum.Day), Month: int32(u.Sum.Month), InDay: u.Sum.InDay, InMon: u.Sum.InMon, Total: u.Sum.Total} //nolint:gosec // days and months
	a.unsaved = s.mine
	a.unsaved.take(&s.sent)
	s.free.Running, s.free.Nano = max(0, s.free.Running+u.Change.Running), max(0, s.free.Nano+u.Change.Nano)
	lend(&s.free.Requests, u.Change.Requests, &s.owed.requests)
	lend(&s.free.Tokens, u.Change.Tokens, &s.owed.tokens)
	a.requests.full, a.tokens.full = now+int64(u.RequestsFull), now+int64(u.TokensFull)
	a.requests.take(now, s.owed.requests-s.free.Requests, k.RPM)
	a.tokens.take(now, s.owed.tokens-s.free.Tokens, k.TPM)
}

// lend changes what is borrowed. What is called back is given back as far as it is there.
func lend(free *int64, change int64, owed *int64) {
	if change < 0 {
		change = -min(-change, *free)
		*owed += change
	}
	*free += change
}
