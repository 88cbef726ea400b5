// Package state is what replicas share through Redis. Each call has a short deadline, and says what holds when Redis is
// slow or gone: nobody's request waits for it.
package state

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// Options set up a Redis; zero values but URL mean the defaults named here.
type Options struct {
	URL     string        // redis://[user:password@]host:port[/db], rediss:// for TLS, unix://path
	Prefix  string        // of all keys; default "headrace:"
	Timeout time.Duration // of one call; default 250 ms
	Log     *slog.Logger
	Now     func() time.Time // default time.Now
}

// Redis is what replicas share.
type Redis struct {
	opt    Options
	client *redis.Client
	me     string // this replica, as holder of leases
	down   atomic.Bool

	shared, fetched, alone atomic.Int64
}

// Open reads the URL. It connects to nothing yet: a Redis that is down keeps no gateway from starting.
func Open(o Options) (*Redis, error) {
	ro, err := redis.ParseURL(o.URL)
	if err != nil {
		return nil, errors.New("state.redis is no address of a Redis, such as redis://127.0.0.1:6379/0") // err may quote the password
	}
	if o.Prefix == "" {
		o.Prefix = "headrace:"
	}
	if o.Timeout <= 0 {
		o.Timeout = 250 * time.Millisecond
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	ro.DialTimeout, ro.ReadTimeout, ro.WriteTimeout, ro.PoolTimeout = o.Timeout, o.Timeout, o.Timeout, o.Timeout
	ro.MaxRetries, ro.DialerRetries, ro.ContextTimeoutEnabled = -1, 1, true
	redis.SetLogger(quiet{}) // what it would print, our callers are told as errors
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	return &Redis{opt: o, client: redis.NewClient(ro), me: hex.EncodeToString(id[:])}, nil
}

// quiet takes the client's own log lines.
type quiet struct{}

// Printf drops one line.
func (quiet) Printf(context.Context, string, ...any) {}

// Close closes the connections.
func (r *Redis) Close() error { return r.client.Close() }

// Stats counts polls.
type Stats struct {
	Shared  int64 `json:"shared"`  // answered by what another replica, or this one a moment ago, had fetched
	Fetched int64 `json:"fetched"` // fetched here, for all
	Alone   int64 `json:"alone"`   // fetched here for this replica only, since Redis did not answer
	Down    bool  `json:"down"`    // Redis did not answer the last time
}

// Stats returns the counts.
func (r *Redis) Stats() Stats {
	return Stats{r.shared.Load(), r.fetched.Load(), r.alone.Load(), r.down.Load()}
}

const (
	leaseFor = 30 * time.Second // a replica that dies while it fetches keeps the others waiting no longer than that
	lookFor  = 100 * time.Millisecond
	keepFor  = 10 // times every: how long an answer stays in Redis
	// failedFor is how long after a fetch that failed nobody fetches: Vast.ai asks for up to 3 s between two calls of a kind, failed
	// ones included (GET /api/v0/endptjobs/; 1 s for the list of instances).
	failedFor = 3 * time.Second
)

// restScript lets a lease that is still ours run out in a while.
const restScript = `if redis.call("GET", KEYS[1]) == ARGV[1] then return redis.call("PEXPIRE", KEYS[1], ARGV[2]) end return 0`

// releaseScript deletes a lease that is still ours: one that has run out may be another's by now.
const releaseScript = `if redis.call("GET", KEYS[1]) == ARGV[1] then return redis.call("DEL", KEYS[1]) end return 0`

// Poll returns what fetch returns, at most every old, whichever replica has called it: one of them does, under a lease, and
// the others get its answer. A fetch that fails is told to the replica that made it only; the next one tries, every later or 3 s,
// whichever is less: no sooner than the far side takes two calls. When
// Redis does not answer, each replica fetches for itself.
func (r *Redis) Poll(ctx context.Context, key string, every time.Duration, fetch func(context.Context) ([]byte, error)) ([]byte, error) {
	return r.poll(ctx, &poll{
		value: r.opt.Prefix + "poll:" + key, lease: r.opt.Prefix + "lease:" + key,
		every: every, hold: leaseFor, rest: min(every, failedFor),
	}, fetch)
}

// Once returns what do returns, at most within ago, whichever replica has called it: of those that call at about the same time
// one does, and the others get its answer. It differs from Poll in what it costs when something is wrong: a replica that dies
// keeps the others waiting for 5 s, and after a do that failed the next replica goes at once.
func (r *Redis) Once(ctx context.Context, key string, within time.Duration, do func(context.Context) ([]byte, error)) ([]byte, error) {
	return r.poll(ctx, &poll{
		value: r.opt.Prefix + "once:" + key, lease: r.opt.Prefix + "lease:" + key,
		every: within, hold: onceFor,
	}, do)
}

const onceFor = 5 * time.Second

// poll is something that one replica fetches for all.
type poll struct {
	value, lease string        // keys
	every        time.Duration // an answer is good for that long
	hold         time.Duration // of the lease, renewed while the fetch lasts
	rest         time.Duration // nobody fetches after a fetch that failed
}

func (r *Redis) poll(ctx context.Context, p *poll, fetch func(context.Context) ([]byte, error)) ([]byte, error) {
	for {
		b, err := r.fresh(ctx, p)
		if err == nil && b != nil {
			r.shared.Add(1)
			return b, nil
		}
		held := false
		if err == nil {
			held, err = r.acquire(ctx, p)
		}
		if oerr := over(ctx); oerr != nil {
			return nil, oerr
		}
		if err != nil {
			r.report(err)
			r.alone.Add(1)
			return fetch(ctx)
		}
		r.report(nil)
		if held {
			if b, _ := r.fresh(ctx, p); b != nil { // another has fetched between our look and the lease
				r.drop(ctx, p.lease)
				r.shared.Add(1)
				return b, nil
			}
			return r.fetch(ctx, p, fetch)
		}
		if err := pause(ctx, lookFor); err != nil {
			return nil, err
		}
	}
}

// over is ctx's error. A connection's deadline, which is ctx's as well, may come a moment before ctx says so.
func over(ctx context.Context) error {
	if t, ok := ctx.Deadline(); ok && !time.Now().Before(t) {
		return context.DeadlineExceeded
	}
	return ctx.Err()
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// fetch fetches for all replicas. The lease is renewed as long as it takes.
func (r *Redis) fetch(ctx context.Context, p *poll, fetch func(context.Context) ([]byte, error)) ([]byte, error) {
	renewCtx, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for pause(renewCtx, p.hold/3) == nil {
			c, cancel := context.WithTimeout(renewCtx, r.opt.Timeout)
			_ = r.client.PExpire(c, p.lease, p.hold).Err() // lost leases cost a second fetch, nothing else
			cancel()
		}
	}()
	b, err := fetch(ctx)
	stop()
	<-done
	switch {
	case err != nil && p.rest > 0:
		r.rest(ctx, p.lease, p.rest)
		return b, err
	case err != nil:
		r.drop(ctx, p.lease)
		return b, err
	}
	r.fetched.Add(1)
	c, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opt.Timeout)
	defer cancel()
	stamped := binary.BigEndian.AppendUint64(nil, uint64(r.opt.Now().UnixMilli())) //nolint:gosec // after 1970
	if serr := r.client.Set(c, p.value, append(stamped, b...), max(keepFor*p.every, time.Minute)).Err(); serr != nil {
		r.report(serr)
	}
	r.drop(ctx, p.lease)
	return b, nil
}

// rest keeps the lease for d, so that nobody fetches meanwhile.
func (r *Redis) rest(ctx context.Context, lease string, d time.Duration) {
	c, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opt.Timeout)
	defer cancel()
	_ = r.client.Eval(c, restScript, []string{lease}, r.me, max(d.Milliseconds(), 1)).Err() // it runs out by itself, later
}

// drop gives the lease back; one that cannot be runs out by itself.
func (r *Redis) drop(ctx context.Context, lease string) {
	c, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opt.Timeout)
	defer cancel()
	_ = r.client.Eval(c, releaseScript, []string{lease}, r.me).Err()
}

// fresh returns the shared answer if it is young enough, nil if there is none.
func (r *Redis) fresh(ctx context.Context, p *poll) ([]byte, error) {
	c, cancel := context.WithTimeout(ctx, r.opt.Timeout)
	defer cancel()
	b, err := r.client.Get(c, p.value).Bytes()
	if errors.Is(err, redis.Nil) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(b) < 8 {
		return nil, nil
	}
	at := time.UnixMilli(int64(binary.BigEndian.Uint64(b))) //nolint:gosec // what was written above
	if age := r.opt.Now().Sub(at); age >= p.every || age < -time.Minute {
		return nil, nil
	}
	return b[8:], nil
}

func (r *Redis) acquire(ctx context.Context, p *poll) (bool, error) {
	c, cancel := context.WithTimeout(ctx, r.opt.Timeout)
	defer cancel()
	err := r.client.SetArgs(c, p.lease, r.me, redis.SetArgs{Mode: "NX", TTL: p.hold}).Err()
	if errors.Is(err, redis.Nil) {
		return false, nil
	}
	return err == nil, err
}

// report logs when Redis goes and when it comes back.
func (r *Redis) report(err error) {
	if was := r.down.Swap(err != nil); was == (err != nil) {
		return
	}
	if err != nil {
		r.opt.Log.Warn("Redis does not answer: this replica goes on by itself", "error", fmt.Sprint(err))
	} else {
		r.opt.Log.Info("Redis answers again")
	}
}
