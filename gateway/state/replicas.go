package state

import (
	"context"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// crowd is which replicas there are, as last heard.
type crowd struct {
	mu  sync.Mutex // guards all
	ids []string   // this one among them
}

// liveScript says that the replica ARGV[1] is there, forgets those that were silent for ARGV[2] milliseconds, and returns the others and it.
//
//nolint:gochecknoglobals // a table
var liveScript = redis.NewScript(`local t = redis.call("TIME")
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call("ZADD", KEYS[1], now, ARGV[1])
redis.call("ZREMRANGEBYSCORE", KEYS[1], "-inf", now - ARGV[2])
redis.call("PEXPIRE", KEYS[1], 10 * ARGV[2])
return redis.call("ZRANGE", KEYS[1], 0, -1)`)

// Replicas is how many replicas share this Redis, this one included: as last heard, when Redis is gone. It is 1 before Run has asked.
func (r *Redis) Replicas() int { return max(1, len(r.IDs())) }

// IDs returns which they are. Nobody changes the slice.
func (r *Redis) IDs() []string {
	r.crowd.mu.Lock()
	defer r.crowd.mu.Unlock()
	return r.crowd.ids
}

// live says that this replica is there until ctx is done, and then that it is not.
func (r *Redis) live(ctx context.Context) {
	key := []string{r.opt.Prefix + "replicas"}
	t := time.NewTimer(0)
	defer t.Stop()
	again := time.NewTicker(docsAgain)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			c, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opt.Timeout)
			defer cancel()
			_ = r.client.ZRem(c, key[0], r.me).Err() // else it is forgotten a little later
			return
		case <-again.C:
			r.docs.tell("")
			continue
		case <-t.C:
		}
		c, cancel := context.WithTimeout(ctx, r.opt.Timeout)
		from := time.Now()
		ids, err := liveScript.Run(c, r.client, key, r.me, silence.Milliseconds()).StringSlice()
		cancel()
		if ctx.Err() != nil {
			continue
		}
		wait := beat
		if took := time.Since(from); err != nil || took > Within {
			r.gate.stay(2 * away) // it is not opened to find out by a request what is known
			wait = away
		}
		r.report(err)
		if err == nil {
			r.crowd.mu.Lock()
			r.crowd.ids = ids
			r.crowd.mu.Unlock()
		}
		t.Reset(wait)
	}
}
