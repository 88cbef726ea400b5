package state

import (
	"context"
	_ "embed" // of the script
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
)

// What keys use of their limits and budgets is counted in Redis, where there is one: a call tells what a replica has let in by itself,
// asks for what it must not let in by itself, and learns what is left, all at once.

// Usage is one such call, for one key. Its fields below Answer are filled in by Limits.
type Usage struct {
	Key string // its ID

	RPM, TPM, Concurrency int64 // 0 for no limit, as are those below
	Day, Month, Total     int64 // budgets in billionths of a US dollar

	// Seq is that of Requests and Tokens, which are counted once however often they are told: the same number stands for the same. It grows; 0
	// says that there is nothing to count.
	Seq              uint64
	Requests, Tokens int64 // let in here since the last Seq; Tokens may be negative, where less was used than was thought

	// Call is this call's number, which grows, and Answered that of the last one that was answered: what Redis has let in or lent by one whose
	// answer did not come it takes back.
	Call, Answered uint64

	// Spent is what was spent here since this process began: each replica tells its own sum, and all of them are added up. So it does not
	// matter how often it is told, nor that Redis loses its data: then everybody tells his own again, and with Restore what he
	// remembers of the others, some of whom may be gone.
	Spent   Spent
	Told    bool   // an answer has said before that it is counted
	Restore string // Book of an earlier answer; "" for nothing

	// Have is what an answer has lent before and is left of it. What is lent is taken from the key's limits and budgets, so that it may be used
	// without asking; an answer lends or calls back so much that it is Part of half of what is left by then, 0 all of it. What is called back is
	// still taken, since it may be used meanwhile: the next Usage gives it back, by its Requests, Tokens and Have.
	Have Lent
	Part int64 // one of how many

	Running  int64   // requests here now
	Reserved int64   // billionths of a US dollar that they are expected to cost
	Claims   []Claim // of requests that wait to be let in, in their order
	Brief    bool    // no Book is needed

	Answer

	ask ask
}

// Reset empties u, but for the memory that it has: a Usage that is used again, for the same key, costs less.
func (u *Usage) Reset() { *u = Usage{Claims: u.Claims[:0], ask: u.ask} }

// Spent is what was spent on a day, in a month and ever, in billionths of a US dollar.
type Spent struct {
	Day, Month          int64 // UTC: since 1970, and since year 0
	InDay, InMon, Total int64
}

// Lent is what a replica may let in without asking.
type Lent struct{ Requests, Tokens, Running, Nano int64 }

// Claim is a request that wants to be let in.
type Claim struct {
	Tokens, Nano int64   // what it is expected to take, and to cost in billionths of a US dollar
	Verdict      Verdict // filled in by Limits
}

// Verdict says whether a claim was let in, or what has no room for it.
type Verdict uint8

// Verdicts.
const (
	LetIn Verdict = iota
	NoConcurrency
	NoRequests
	NoTokens
	NoTotal
	NoMonth
	NoDay
)

// Answer is what Redis says of a key.
type Answer struct {
	RequestsFull, TokensFull time.Duration // until a whole minute's worth can be taken again
	Others, OthersReserved   int64         // running at other replicas, and what that is expected to cost
	Sum                      Spent         // by all replicas, those that are gone too
	Change                   Lent          // of what is lent
	Lost                     bool          // with Told: Redis had lost it, and what others have spent may be missing in Sum
	Book                     string        // what each replica has spent, for Restore; "" with Brief
}

const (
	runningFor = 5 * time.Second      // a replica that is silent for that long has nothing running
	seqFor     = 24 * time.Hour       // a replica that is silent for that long counts anew
	aliveFor   = 24 * time.Hour       // what a replica has spent that is silent for that long is put together with that of others
	backFor    = 60 * 24 * time.Hour  // one that speaks again within that long, for its key was idle here, has its part taken out again
	spentFor   = 400 * 24 * time.Hour // what a key has spent is forgotten so long after it last did
)

// limitScript is one Usage.
//
//nolint:gochecknoglobals // a table
var limitScript = redis.NewScript(limitSource)

//go:embed limits.lua
var limitSource string

const mostClaims = 256 // of one call: more wait for the next

// ask is what limitScript reads, as it goes to Redis, in memory that is used again.
type ask struct {
	of   *Redis
	key  string
	args []any
	list []byte
}

const (
	numbersAt  = 8 // in ask.args: the command, the script, how many keys, these, and our name come before
	fixed      = 30
	answered   = 14 // numbers of an answer: verdicts come after them, a byte each, and then the book
	numberSize = 8
)

// numbers appends some as limitScript reads them: a Lua number is a float64, which is exact below 2^53.
func (q *ask) numbers(ns ...int64) {
	for _, n := range ns {
		q.list = binary.LittleEndian.AppendUint64(q.list, math.Float64bits(float64(n)))
	}
}

// question makes the command that asks about u. It is good until the next one.
func (r *Redis) question(ctx context.Context, u *Usage) *redis.StringCmd {
	q := &u.ask
	if q.of != r || q.key != u.Key {
		*q = ask{r, u.Key, []any{
			"evalsha", limitScript.Hash(), "4", r.tagged("limit", u.Key), r.tagged("running", u.Key), r.tagged("spent", u.Key), r.tagged("counted", u.Key) + ":" + r.me,
			r.me, nil, nil,
		}, q.list}
	}
	q.list = slices.Grow(q.list[:0], numberSize*(fixed+2*len(u.Claims)))
	q.numbers(u.RPM, u.TPM, u.Concurrency, u.Day, u.Month, u.Total, int64(u.Seq), u.Requests, u.Tokens, u.Running, u.Reserved, //nolint:gosec // counted from 1
		u.Spent.Day, u.Spent.Month, u.Spent.InDay, u.Spent.InMon, u.Spent.Total, btoi(u.Told),
		u.Part, u.Have.Requests, u.Have.Tokens, u.Have.Running, u.Have.Nano, int64(u.Answered), int64(u.Call), btoi(u.Brief), //nolint:gosec // counted from 1
		int64(seqFor/time.Second), aliveFor.Microseconds(), int64(spentFor/time.Second), runningFor.Microseconds(), backFor.Microseconds())
	for i := range u.Claims {
		q.numbers(u.Claims[i].Tokens, u.Claims[i].Nano)
	}
	q.args[numbersAt], q.args[numbersAt+1] = q.list, u.Restore
	return redis.NewStringCmd(ctx, q.args...)
}

// whole is a question to a Redis that does not have the script.
func (r *Redis) whole(ctx context.Context, u *Usage) *redis.StringCmd {
	args := slices.Clone(u.ask.args)
	args[0], args[1] = "eval", limitSource
	return redis.NewStringCmd(ctx, args...)
}

// take fills in what Redis has said.
func (u *Usage) take(c *redis.StringCmd) error {
	answer, err := c.Result()
	if err != nil {
		return err
	}
	const fixed = answered * numberSize
	if len(answer) < fixed+len(u.Claims) {
		return errors.New("redis has answered something else than was asked for")
	}
	var ns [answered]int64
	for i := range ns {
		ns[i] = int64(math.Float64frombits(binary.LittleEndian.Uint64([]byte(answer[i*numberSize:][:numberSize]))))
	}
	for i := range u.Claims {
		u.Claims[i].Verdict = Verdict(answer[fixed+i])
	}
	u.Answer = Answer{
		RequestsFull: time.Duration(ns[0]) * time.Microsecond, TokensFull: time.Duration(ns[1]) * time.Microsecond, Others: ns[2], OthersReserved: ns[3],
		Sum:  Spent{Day: ns[4], InDay: ns[5], Month: ns[6], InMon: ns[7], Total: ns[8]},
		Lost: ns[9] == 1, Change: Lent{ns[10], ns[11], ns[12], ns[13]}, Book: answer[fixed+len(u.Claims):],
	}
	return nil
}

func btoi(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// MostClaims is how many claims one Usage may have.
const MostClaims = mostClaims

// Limits asks Redis about keys, each once, in one round trip, and waits for it no longer than within; not at all while Redis is known to be slow
// or gone, and within is short. The error is ErrAway then, or wraps why Redis has refused: nothing is known of any of the keys, and what was told
// may have been counted.
func (r *Redis) Limits(ctx context.Context, within time.Duration, us []*Usage) error {
	if within <= Within {
		return r.Call(ctx, within, func(ctx context.Context, c redis.UniversalClient) error { return r.limits(ctx, c, us) })
	}
	c, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	err := r.limits(c, r.client, us)
	r.report(err)
	return err
}

func (r *Redis) limits(ctx context.Context, c redis.UniversalClient, us []*Usage) error {
	if len(us) == 1 {
		cmd := r.question(ctx, us[0])
		if err := c.Process(ctx, cmd); err != nil && redis.HasErrorPrefix(err, "NOSCRIPT") { // it was started anew, or is another node
			cmd = r.whole(ctx, us[0])
			_ = c.Process(ctx, cmd) // take has its error
		}
		return us[0].take(cmd)
	}
	cmds := make([]*redis.StringCmd, len(us))
	_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, u := range us {
			cmds[i] = r.question(ctx, u)
			_ = p.Process(ctx, cmds[i]) // it is put down only
		}
		return nil
	})
	if err != nil && !isReply(err) {
		return err
	}
	for i, u := range us {
		if err := cmds[i].Err(); err != nil && redis.HasErrorPrefix(err, "NOSCRIPT") {
			cmds[i] = r.whole(ctx, u)
			_ = c.Process(ctx, cmds[i]) // likewise
		}
		if err := u.take(cmds[i]); err != nil {
			return err
		}
	}
	return nil
}
