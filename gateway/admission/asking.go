package admission

import (
	"context"
	"slices"
	"time"

	"headrace/gateway/state"
)

// How Redis is asked: by the request itself where nobody else asks about its key, so that nobody has to be woken; else by one of a few askers, for all
// that wait by then.

// ask asks Redis for a request. The account's mu is held, and given up while it waits. The claim is decided, or nobody answers.
func (s *sharer) ask(gr *Grant, p *Pass) *claim {
	a := gr.acct
	c := &claim{tokens: p.tokens, nano: p.nano}
	a.share.claims = append(a.share.claims, c)
	s.waited.Add(1)
	if a.share.busy || len(a.share.claims) > state.MostClaims || !s.itself(a, gr.gate) {
		s.await(a, c)
	}
	if !c.decided {
		c.left = true
		s.lose(gr.gate) // nobody else waits, until it is known to be back
		s.owes(a)
		s.fellOut.Add(1)
	}
	return c
}

// itself asks about an account for which nobody does, on behalf of all that wait there. It returns false where enough requests do so for theirs by
// now: one call of an asker's for all of these costs less. The account's mu is held, and given up meanwhile.
func (s *sharer) itself(a *account, g *Gate) bool {
	defer s.direct.Add(-1)
	if s.direct.Add(1) > mostDirect {
		return false
	}
	claims := a.begin(g.opt.Now(), s.replicas())
	a.share.only[0] = &a.share.usage
	a.mu.Unlock()
	from := time.Now()
	err := s.with.Limits(context.Background(), s.within, a.share.only[:])
	s.heard(g, err, from)
	a.mu.Lock()
	s.end(a, claims, err, g.clock(g.opt.Now()))
	return true
}

// await has somebody else ask for c, and waits. The account's mu is held, and given up meanwhile.
func (s *sharer) await(a *account, c *claim) {
	c.done = make(chan struct{}, 1)
	if !a.share.busy { // else whoever asks has them asked for that came meanwhile
		s.push(a)
	}
	a.mu.Unlock()
	t := time.NewTimer(s.within)
	select {
	case <-c.done:
	case <-t.C:
	}
	t.Stop()
	a.mu.Lock()
}

// replicas is how many share what is left.
func (s *sharer) replicas() int64 { return int64(max(1, s.with.Replicas())) }

// heard notes how a call went that began at from.
func (s *sharer) heard(g *Gate, err error, from time.Time) {
	switch {
	case err != nil:
		s.lose(g)
	case time.Since(from) <= s.within: // else it is too slow for a request to wait
		s.away.Store(false)
	}
}

// push has an asker look at the account. Its mu is held.
func (s *sharer) push(a *account) {
	s.mu.Lock()
	s.urgent = append(s.urgent, a)
	s.mu.Unlock()
	nudge(s.wake)
}

// answer asks on behalf of waiting requests.
func (s *sharer) answer(ctx context.Context, g *Gate) {
	var batch []*account
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		}
		for {
			s.mu.Lock()
			n := min(len(s.urgent), mostAtOnce)
			batch = append(batch[:0], s.urgent[:n]...)
			s.urgent = slices.Delete(s.urgent, 0, n)
			more := len(s.urgent) > 0
			s.mu.Unlock()
			batch = slices.DeleteFunc(batch, (*account).nobodyWaits)
			if more {
				nudge(s.wake)
			}
			if len(batch) > 0 {
				s.call(ctx, g, batch, s.within)
			}
			if n == 0 || ctx.Err() != nil {
				break
			}
		}
	}
}

// nobodyWaits tells whether those are decided for whom the account was pushed: another request has asked for them.
func (a *account) nobodyWaits() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.share.claims) == 0
}

// call tells Redis of accounts and asks it for their claims. It returns false when Redis did not answer.
func (s *sharer) call(ctx context.Context, g *Gate, batch []*account, within time.Duration) bool {
	us := make([]*state.Usage, 0, len(batch))
	asked := make([]*account, 0, len(batch))
	claims := make([][]*claim, 0, len(batch))
	now, replicas := g.opt.Now(), s.replicas()
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
	if err == nil || ctx.Err() == nil { // a call that we have ended ourselves says nothing
		s.heard(g, err, from)
	}
	clock := g.clock(g.opt.Now())
	for i, a := range asked {
		a.mu.Lock()
		s.end(a, claims[i], err, clock)
		a.mu.Unlock()
	}
	return err == nil
}

// end takes over what came of a call. The account's mu is held.
func (s *sharer) end(a *account, claims []*claim, err error, clock int64) {
	sh := &a.share
	if sh.busy = false; err != nil {
		a.unanswered(claims)
		a.unanswered(sh.claims) // those that came meanwhile
		sh.claims = sh.claims[:0]
		s.owes(a)
		return
	}
	a.answered(claims, clock)
	switch {
	case len(sh.claims) > 0:
		s.push(a)
	case sh.owed != (taken{}) || sh.mine.Total > sh.sent.Total || sh.lost || s.away.Load(): // it is asked on until it is in time
		s.owes(a)
	}
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
	s.claims = slices.DeleteFunc(s.claims, func(c *claim) bool { // who went is decided, and told of if he was let in
		if c.left && c.in {
			s.owed.requests++
			s.owed.tokens += c.tokens
		}
		return c.left
	})
	if s.told == nil && s.owed != (taken{}) {
		s.told, s.owed = new(s.owed), taken{}
		s.seq++
	}
	n := min(len(s.claims), state.MostClaims)
	claims := append(s.asking[:0], s.claims[:n]...)
	s.asking, s.claims = claims, slices.Delete(s.claims, 0, n)
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
	u.Reset()
	u.Call, u.Answered = s.call, s.answeredBy
	u.Key, u.RPM, u.TPM, u.Concurrency, u.Day, u.Month, u.Total = a.id, k.RPM, k.TPM, k.Concurrency, gr.day, gr.month, gr.total
	u.Running, u.Reserved, u.Told, u.Have = a.running, a.reserved, s.has, s.free
	u.Spent = state.Spent{Day: int64(s.mine.Day), Month: int64(s.mine.Month), InDay: s.mine.InDay, InMon: s.mine.InMon, Total: s.mine.Total}
	u.Brief = s.bookAt > 0 && clock-s.bookAt < int64(bookEvery)
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
		u.Claims = append(u.Claims, state.Claim{Tokens: c.tokens, Nano: c.nano})
	}
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
	if s.lost = u.Lost; !s.lost && !u.Brief {
		s.book, s.bookAt = u.Book, now
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
