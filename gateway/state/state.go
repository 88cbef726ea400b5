// Package state is what replicas share through Redis. Each call has a short deadline, and says what holds when Redis is
// slow or gone: nobody's request waits for it.
package state

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Options set up a Redis; zero values but URL mean the defaults named here.
type Options struct {
	URL     string        // redis://[user:password@]host:port[/db], rediss:// for TLS, unix://path, redis+sentinel:// or redis+cluster://
	Prefix  string        // of all keys; default "headrace:"
	Timeout time.Duration // of one call; default 250 ms
	Log     *slog.Logger
	Now     func() time.Time // default time.Now
}

// Redis is what replicas share.
type Redis struct {
	opt    Options
	client redis.UniversalClient
	me     string // this replica: holder of leases, sender of events
	place  string // names this Redis, and no secret of it
	down   atomic.Bool
	gate   gate
	events events
	crowd  crowd
	docs   watchers

	shared, fetched, alone, errors, misses, joins atomic.Int64
}

// Open reads the URL. It connects to nothing yet: a Redis that is down keeps no gateway from starting.
func Open(o Options) (*Redis, error) {
	ro, err := parseURL(o.URL)
	if err != nil {
		return nil, err
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
	ro.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled} // a question to each new connection that few servers understand
	redis.SetLogger(quiet{})                                                                        // what it would print, our callers are told as errors
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	place := sha256.Sum256(fmt.Appendf(nil, "%q %q %d %q", ro.Addrs, ro.MasterName, ro.DB, o.Prefix))
	return &Redis{
		opt: o, client: redis.NewUniversalClient(ro), me: hex.EncodeToString(id[:]), place: hex.EncodeToString(place[:8]), gate: gate{began: time.Now()},
		events: events{channel: fmt.Sprintf("%sevents:%d", o.Prefix, ro.DB)},
	}, nil
}

// ID is what this replica is called by the others: new with each process.
func (r *Redis) ID() string { return r.me }

// quiet takes the client's own log lines.
type quiet struct{}

// Printf drops one line.
func (quiet) Printf(context.Context, string, ...any) {}

// Close closes the connections.
func (r *Redis) Close() error { return r.client.Close() }

// Stats counts what was asked of Redis.
type Stats struct {
	Shared  int64 `json:"shared"`  // answered by what another replica, or this one a moment ago, had fetched
	Fetched int64 `json:"fetched"` // fetched here, for all
	Alone   int64 `json:"alone"`   // fetched here for this replica only, since Redis did not answer
	Down    bool  `json:"down"`    // Redis did not answer the last time
	Errors  int64 `json:"errors"`  // calls that Redis did not answer, or refused
	Missed  int64 `json:"missed"`  // calls on a request's path that were answered from memory instead, since Redis was slow or gone
	Joins   int64 `json:"joins"`   // times that the stream of events was begun
}

// Stats returns the counts.
func (r *Redis) Stats() Stats {
	return Stats{r.shared.Load(), r.fetched.Load(), r.alone.Load(), r.down.Load(), r.errors.Load(), r.misses.Load(), r.joins.Load()}
}

const (
	leaseFor = 30 * time.Second // a replica that dies while it fetches keeps the others waiting no longer than that
	lookFor  = 100 * time.Millisecond
	keepFor  = 10 // times every: how long an answer stays in Redis
	// failedFor is how long after a fetch that failed nobody fetches: Vast.ai asks for up to 3 s between two calls of a kind, failed
	// ones included (GET /api/v0/endptjobs/; 1 s for the list of instances).
	failedFor = 3 * time.Second
)

// Leases are handed out with a number that only grows. Whoever writes an answer shows his: one whose lease has run out, and who was
// overtaken, cannot put an older answer in the place of a newer one.
//
//nolint:gochecknoglobals // tables
var (
	// acquireScript takes a lease that nobody has, and returns its number; 0 when somebody has it. The counter outlives the lease by ARGV[3].
	acquireScript = redis.NewScript(`if not redis.call("SET", KEYS[1], ARGV[1], "NX", "PX", ARGV[2]) then return 0 end
local n = redis.call("INCR", KEYS[2]) redis.call("PEXPIRE", KEYS[2], ARGV[3]) return n`)
	// saveScript writes an answer, unless a lease was handed out since.
	saveScript = redis.NewScript(`local n = redis.call("GET", KEYS[2]) if n and n ~= ARGV[1] then return 0 end
redis.call("SET", KEYS[1], ARGV[2], "PX", ARGV[3]) return 1`)
	// freshScript returns an answer, and for how many milliseconds it is kept.
	freshScript = redis.NewScript(`local v = redis.call("GET", KEYS[1]) if not v then return false end return {v, redis.call("PTTL", KEYS[1])}`)
	// restScript lets a lease that is still ours run out in a while.
	restScript = redis.NewScript(`if redis.call("GET", KEYS[1]) == ARGV[1] then return redis.call("PEXPIRE", KEYS[1], ARGV[2]) end return 0`)
	// releaseScript deletes a lease that is still ours: one that has run out may be another's by now.
	releaseScript = redis.NewScript(`if redis.call("GET", KEYS[1]) == ARGV[1] then return redis.call("DEL", KEYS[1]) end return 0`)
)

// Poll returns what fetch returns, at most every old, whichever replica has called it: one of them does, under a lease, and
// the others get its answer. A fetch that fails is told to the replica that made it only; the next one tries, every later or 3 s,
// whichever is less: no sooner than the far side takes two calls. When
// Redis does not answer, each replica fetches for itself.
func (r *Redis) Poll(ctx context.Context, key string, every time.Duration, fetch func(context.Context) ([]byte, error)) ([]byte, error) {
	return r.poll(ctx, &poll{
		value: r.tagged("poll", key), lease: r.tagged("lease", key), fence: r.tagged("fence", key),
		every: every, hold: leaseFor, rest: min(every, failedFor),
	}, fetch)
}

// Once returns what do returns, at most within ago, whichever replica has called it: of those that call at about the same time
// one does, and the others get its answer. It differs from Poll in what it costs when something is wrong: a replica that dies
// keeps the others waiting for 5 s, and after a do that failed the next replica goes at once.
func (r *Redis) Once(ctx context.Context, key string, within time.Duration, do func(context.Context) ([]byte, error)) ([]byte, error) {
	return r.poll(ctx, &poll{
		value: r.tagged("once", key), lease: r.tagged("lease", key), fence: r.tagged("fence", key),
		every: within, hold: onceFor,
	}, do)
}

const onceFor = 5 * time.Second

// tagged is a key that lies in a Cluster where all others of that name do: scripts touch several of them.
func (r *Redis) tagged(kind, name string) string { return r.opt.Prefix + kind + ":{" + name + "}" }

// poll is something that one replica fetches for all.
type poll struct {
	value, lease, fence string        // keys
	every               time.Duration // an answer is good for that long
	hold                time.Duration // of the lease, renewed while the fetch lasts
	rest                time.Duration // nobody fetches after a fetch that failed
}

// keep is how long an answer stays in Redis.
func (p *poll) keep() time.Duration { return max(keepFor*p.every, time.Minute) }

func (r *Redis) poll(ctx context.Context, p *poll, fetch func(context.Context) ([]byte, error)) ([]byte, error) {
	for {
		b, err := r.fresh(ctx, p)
		if err == nil && b != nil {
			r.shared.Add(1)
			return b, nil
		}
		held := int64(0)
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
		if held > 0 {
			if b, _ := r.fresh(ctx, p); b != nil { // another has fetched between our look and the lease
				r.drop(ctx, p.lease)
				r.shared.Add(1)
				return b, nil
			}
			return r.fetch(ctx, p, held, fetch)
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

// fetch fetches for all replicas, by the lease of that number. The lease is renewed as long as it takes.
func (r *Redis) fetch(ctx context.Context, p *poll, held int64, fetch func(context.Context) ([]byte, error)) ([]byte, error) {
	renewCtx, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for pause(renewCtx, p.hold/3) == nil {
			c, cancel := context.WithTimeout(renewCtx, r.opt.Timeout)
			_ = restScript.Run(c, r.client, []string{p.lease}, r.me, p.hold.Milliseconds()).Err() // lost leases cost a second fetch, nothing else
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
	stamped := binary.BigEndian.AppendUint64(nil, uint64(p.keep().Milliseconds())) //nolint:gosec // above 0
	saved, serr := saveScript.Run(c, r.client, []string{p.value, p.fence}, held, append(stamped, b...), p.keep().Milliseconds()).Int()
	switch {
	case serr != nil:
		r.report(serr)
	case saved == 0: // somebody else has had the lease meanwhile, and may know better
		if newer, _ := r.fresh(ctx, p); newer != nil {
			b = newer
		}
	}
	r.drop(ctx, p.lease)
	return b, nil
}

// rest keeps the lease for d, so that nobody fetches meanwhile.
func (r *Redis) rest(ctx context.Context, lease string, d time.Duration) {
	c, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opt.Timeout)
	defer cancel()
	_ = restScript.Run(c, r.client, []string{lease}, r.me, max(d.Milliseconds(), 1)).Err() // it runs out by itself, later
}

// drop gives the lease back; one that cannot be runs out by itself.
func (r *Redis) drop(ctx context.Context, lease string) {
	c, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opt.Timeout)
	defer cancel()
	_ = releaseScript.Run(c, r.client, []string{lease}, r.me).Err()
}

// fresh returns the shared answer if it is young enough, nil if there is none. How old it is follows from how long Redis will still keep it: the
// clocks of replicas differ. In front of it stands how long that was at first, in milliseconds.
func (r *Redis) fresh(ctx context.Context, p *poll) ([]byte, error) {
	c, cancel := context.WithTimeout(ctx, r.opt.Timeout)
	defer cancel()
	is, err := freshScript.Run(c, r.client, []string{p.value}).Slice()
	if errors.Is(err, redis.Nil) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(is) != 2 {
		return nil, nil
	}
	s, _ := is[0].(string)
	left, _ := is[1].(int64)
	if len(s) < 8 || left <= 0 {
		return nil, nil
	}
	kept := binary.BigEndian.Uint64([]byte(s[:8]))
	if age := time.Duration(int64(min(kept, math.MaxInt64/uint64(time.Millisecond)))-left) * time.Millisecond; age >= p.every { //nolint:gosec // bounded
		return nil, nil
	}
	return []byte(s[8:]), nil
}

// acquire returns the number of a lease that nobody had, 0 when somebody has it.
func (r *Redis) acquire(ctx context.Context, p *poll) (int64, error) {
	c, cancel := context.WithTimeout(ctx, r.opt.Timeout)
	defer cancel()
	keep := 2 * (p.hold + p.keep()) // longer than what is written by it
	return acquireScript.Run(c, r.client, []string{p.lease, p.fence}, r.me, p.hold.Milliseconds(), keep.Milliseconds()).Int64()
}

// report logs when Redis goes and when it comes back.
func (r *Redis) report(err error) {
	if err != nil {
		r.errors.Add(1)
	}
	if was := r.down.Swap(err != nil); was == (err != nil) {
		return
	}
	if err != nil {
		r.opt.Log.Warn("Redis does not answer: this replica goes on by itself", "error", fmt.Sprint(err))
	} else {
		r.opt.Log.Info("Redis answers again")
	}
}
