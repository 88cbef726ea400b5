package admission

import (
	"context"
	"slices"
	"sync"
	"time"

	"headrace/gateway/state"
)

// What replicas tell of what they let in by themselves: a tenth of a second later, beside the path of requests.

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
		if !s.tellAll(ctx, g) || s.away.Load() {
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

// tellAll tells of all accounts that have something to tell, while Redis is too slow once of each: they have something to tell until it is in time. It
// returns false when Redis did not answer.
func (s *sharer) tellAll(ctx context.Context, g *Gate) bool {
	s.mu.Lock()
	once := len(s.due)
	s.mu.Unlock()
	for told := 0; told < once || !s.away.Load(); {
		s.mu.Lock()
		n := min(len(s.due), mostAtOnce)
		batch := slices.Clone(s.due[:n])
		s.due = slices.Delete(s.due, 0, n)
		s.mu.Unlock()
		if n == 0 {
			return true
		}
		told += n
		for _, a := range batch {
			a.mu.Lock()
			a.share.due = false
			a.mu.Unlock()
		}
		if !s.call(ctx, g, batch, max(tellWithin, s.within)) {
			return false
		}
	}
	return true
}
