package state

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// ErrAway says that Redis is slow or gone: decide by what this replica knows.
var ErrAway = errors.New("redis is slow or does not answer")

const (
	awayLeast = 100 * time.Millisecond // after a call that was too slow none is made on a request's path
	awayMost  = 5 * time.Second
	awayAgain = 2 * time.Second // a slow call so soon after the last ones doubles that
	// Within is how long a call on the path of a request should wait for Redis at most.
	Within = 5 * time.Millisecond
)

// gate keeps requests from waiting for a Redis that has just been slow, one after another.
type gate struct {
	began time.Time
	shut  atomic.Int64 // until then, as nanoseconds since began
	last  atomic.Int64 // for how long, the last time
}

func (g *gate) open() bool { return int64(time.Since(g.began)) >= g.shut.Load() }

// slow shuts the gate: for longer, the sooner it comes after the last time.
func (g *gate) slow() {
	now := int64(time.Since(g.began))
	until := g.shut.Load()
	if now < until {
		return // one of those that were under way
	}
	d := int64(awayLeast)
	if last := g.last.Load(); last > 0 && now-until < int64(awayAgain) {
		d = min(2*last, int64(awayMost))
	}
	if g.shut.CompareAndSwap(until, now+d) {
		g.last.Store(d)
	}
}

// stay keeps it shut for a while, if it is.
func (g *gate) stay(d time.Duration) {
	now := int64(time.Since(g.began))
	for until := g.shut.Load(); now < until && until < now+int64(d); until = g.shut.Load() {
		if g.shut.CompareAndSwap(until, now+int64(d)) {
			return
		}
	}
}

// Call has do ask Redis on the path of a request: it waits for it no longer than within, which should be Within, and not at all while
// Redis is known to be slow or gone. The error is ErrAway then, else do's. A call whose answer came too late may
// have been carried out: what it counts must bear to be counted by another call, or not at all.
func (r *Redis) Call(ctx context.Context, within time.Duration, do func(context.Context, redis.UniversalClient) error) error {
	if !r.gate.open() {
		r.misses.Add(1)
		return ErrAway
	}
	c, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	err := do(c, r.client)
	if err == nil || errors.Is(err, redis.Nil) || isReply(err) {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err() // the caller left: that says nothing of Redis
	}
	r.misses.Add(1)
	r.errors.Add(1)
	r.gate.slow()
	return errors.Join(ErrAway, err)
}

// isReply tells whether Redis has answered, if only to refuse. One that is loading its data, or has no master, is as good as gone.
func isReply(err error) bool {
	e, ok := errors.AsType[redis.Error](err)
	return ok && !redis.IsLoadingError(e) && !redis.IsClusterDownError(e) && !redis.IsMasterDownError(e) && !redis.IsReadOnlyError(e) && !redis.IsTryAgainError(e)
}
