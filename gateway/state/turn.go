package state

import (
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"
)

//nolint:gochecknoglobals // tables
var (
	// takeScript renews a lease that is ours (1), takes one that nobody has (2), or leaves another's alone (0).
	takeScript = redis.NewScript(`if redis.call("GET", KEYS[1]) == ARGV[1] then redis.call("PEXPIRE", KEYS[1], ARGV[2]) return 1 end
if redis.call("SET", KEYS[1], ARGV[1], "NX", "PX", ARGV[2]) then return 2 end return 0`)
	// keepScript writes what is remembered, or deletes it, unless another has the lease: it knows better by now.
	keepScript = redis.NewScript(`local h = redis.call("GET", KEYS[1]) if h and h ~= ARGV[1] then return 0 end
if ARGV[2] == "" then redis.call("DEL", KEYS[2]) else redis.call("SET", KEYS[2], ARGV[2]) end return 1`)
)

// ErrOvertaken says that another replica has the task now.
var ErrOvertaken = errors.New("another replica has the task")

// Turn is a task that one replica at a time has, and what it has to remember for whoever has it next. Its methods never use what
// was known before when Redis does not answer: they say so.
// Two of them are equal when they are the same task.
type Turn struct {
	r          *Redis
	lease, key string
}

// Turn returns the task of that name. It is the same task at every replica.
func (r *Redis) Turn(name string) Turn {
	return Turn{r, r.tagged("lease", name), r.tagged("kept", name)}
}

// Take tells whether the task is ours for the next half minute, and whether it was not before: then another may have had it
// meanwhile, and Load tells what it left.
func (t Turn) Take(ctx context.Context) (ours, anew bool, err error) {
	c, cancel := context.WithTimeout(ctx, t.r.opt.Timeout)
	defer cancel()
	n, err := takeScript.Run(c, t.r.client, []string{t.lease}, t.r.me, leaseFor.Milliseconds()).Int()
	if ctx.Err() == nil {
		t.r.report(err)
	}
	if err != nil {
		return false, false, fmt.Errorf("take a turn by Redis: %w", err)
	}
	return n > 0, n == 2, nil
}

// Give lets another replica have the task at once, if it is ours.
func (t Turn) Give(ctx context.Context) { t.r.drop(ctx, t.lease) }

// Load returns what was saved last, by whichever replica; nil when nothing was.
func (t Turn) Load(ctx context.Context) ([]byte, error) {
	c, cancel := context.WithTimeout(ctx, t.r.opt.Timeout)
	defer cancel()
	b, err := t.r.client.Get(c, t.key).Bytes()
	if errors.Is(err, redis.Nil) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read from Redis: %w", err)
	}
	return b, nil
}

// Save keeps b until the next Save; nil deletes it. It does not expire. The error is ErrOvertaken, and nothing is written, when another
// replica has the task.
func (t Turn) Save(ctx context.Context, b []byte) error {
	c, cancel := context.WithTimeout(ctx, t.r.opt.Timeout)
	defer cancel()
	n, err := keepScript.Run(c, t.r.client, []string{t.lease, t.key}, t.r.me, b).Int()
	if err != nil {
		return fmt.Errorf("write to Redis: %w", err)
	}
	if n == 0 {
		return ErrOvertaken
	}
	return nil
}
