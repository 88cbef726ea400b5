package state

import (
	"context"
	"errors"
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

	Answer
}

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
	Book                     string        // what each replica has spent, for Restore
}

const (
	runningFor = 5 * time.Second      // a replica that is silent for that long has nothing running
	seqFor     = 24 * time.Hour       // a replica that is silent for that long counts anew
	aliveFor   = 24 * time.Hour       // what a replica has spent that is silent for that long is put together with that of others
	backFor    = 60 * 24 * time.Hour  // one that speaks again within that long, for its key was idle here, has its part taken out again
	spentFor   = 400 * 24 * time.Hour // what a key has spent is forgotten so long after it last did
)

// limitScript is one Usage. KEYS are the buckets, what runs where, what each replica has spent and this one's last Seq and Call; ARGV are as usageArgs
// puts them. Buckets are kept as the time, by Redis' clock in microseconds, at which they are full again. What a replica has spent is
// day:in it:month:in it:ever:when it said so; of two that speak of the same, each part's greater one is true. "gone" is what those have spent
// together that are silent, and "was:" and a replica what of it is that one's. Numbers have to be below 2^53.
//
//nolint:gochecknoglobals // a table
var limitScript = redis.NewScript(`
local function num(i) return tonumber(ARGV[i]) end
local function int(v) return string.format("%.0f", v) end
local t = redis.call("TIME")
local now = t[1] * 1000000 + t[2]
local minute = 60000000
local me, rpm, tpm, conc = ARGV[1], num(2), num(3), num(4)
local daily, monthly, ever = num(5), num(6), num(7)
local seq, fresh = num(8), false
local was = redis.call("HMGET", KEYS[4], "seq", "call", "requests", "tokens")
for i = 1, 4 do was[i] = tonumber(was[i] or 0) end
fresh = seq > was[1]

local others, reserved = 0, 0
local mine, minenano = num(11), num(12)
local shared = conc > 0 or daily > 0 or monthly > 0 or ever > 0
if shared then
  local all = redis.call("HGETALL", KEYS[2])
  for i = 1, #all, 2 do
    if all[i] ~= me then
      local n, nano, ends = string.match(all[i + 1], "^(%d+):(%d+):(%d+)$")
      if ends and tonumber(ends) > now then
        others, reserved = others + tonumber(n), reserved + tonumber(nano)
      else
        redis.call("HDEL", KEYS[2], all[i])
      end
    end
  end
end

local function read(v)
  local e = {}
  for part in string.gmatch(v, "%d+") do e[#e + 1] = tonumber(part) end
  return #e == 6 and e or {0, 0, 0, 0, 0, 0}
end
local function wrote(e)
  return int(e[1]) .. ":" .. int(e[2]) .. ":" .. int(e[3]) .. ":" .. int(e[4]) .. ":" .. int(e[5]) .. ":" .. int(e[6])
end
local function merged(a, b)
  local e = {a[1], a[2], a[3], a[4], math.max(a[5], b[5]), math.max(a[6], b[6])}
  for w = 1, 3, 2 do
    if b[w] > e[w] then e[w], e[w + 1] = b[w], b[w + 1]
    elseif b[w] == e[w] then e[w + 1] = math.max(e[w + 1], b[w + 1]) end
  end
  return e
end
local function put(book, who, e)
  e = book[who] and merged(book[who], e) or e
  book[who] = e
  redis.call("HSET", KEYS[3], who, wrote(e))
end
local book, stored = {}, redis.call("HGETALL", KEYS[3])
for i = 1, #stored, 2 do book[stored[i]] = read(stored[i + 1]) end
local lost = num(18) == 1 and not book[me] and not book["was:" .. me]
for who, v in string.gmatch(ARGV[19], "([^=;]+)=([^;]+)") do
  if who ~= me then put(book, who, read(v)) end
end
local part = book["was:" .. me]
if part and num(17) > 0 then -- it was silent, and says it all again
  local g = book["gone"] or {0, 0, 0, 0, 0, now}
  for w = 1, 3, 2 do
    if g[w] == part[w] then g[w + 1] = math.max(0, g[w + 1] - part[w + 1]) end
  end
  g[5] = math.max(0, g[5] - part[5])
  book["gone"], book["was:" .. me] = g, nil
  redis.call("HSET", KEYS[3], "gone", wrote(g))
  redis.call("HDEL", KEYS[3], "was:" .. me)
  put(book, me, part)
end
if num(17) > 0 then
  local was = book[me]
  put(book, me, {num(13), num(15), num(14), num(16), num(17), now})
  if not was or was[5] ~= num(17) then redis.call("EXPIRE", KEYS[3], ARGV[22]) end
end
local function summed(who) return string.sub(who, 1, 4) ~= "was:" end
local stale, old = {}, {}
for who, e in pairs(book) do
  if not summed(who) then
    if now - e[6] > num(31) then old[#old + 1] = who end
  elseif who ~= "gone" and now - e[6] > num(21) then stale[#stale + 1] = who end
end
for _, who in ipairs(old) do
  book[who] = nil
  redis.call("HDEL", KEYS[3], who)
end
for _, who in ipairs(stale) do
  local g, e = book["gone"] or {0, 0, 0, 0, 0, now}, book[who]
  local sum = merged(g, e)
  for w = 1, 3, 2 do
    sum[w + 1] = (g[w] == sum[w] and g[w + 1] or 0) + (e[w] == sum[w] and e[w + 1] or 0)
  end
  sum[5] = g[5] + e[5]
  book["gone"], book[who] = sum, nil
  redis.call("HSET", KEYS[3], "gone", wrote(sum))
  redis.call("HDEL", KEYS[3], who)
  if now - e[6] <= num(31) then put(book, "was:" .. who, e) end
end
local day, month, inday, inmon, total, list = num(13), num(14), 0, 0, 0, {}
for _, e in pairs(book) do day, month = math.max(day, e[1]), math.max(month, e[3]) end
for who, e in pairs(book) do
  if summed(who) then
    if e[1] == day then inday = inday + e[2] end
    if e[3] == month then inmon = inmon + e[4] end
    total = total + e[5]
  end
  list[#list + 1] = who .. "=" .. wrote(e)
end

local full = redis.call("HMGET", KEYS[1], "requests", "tokens")
local r, k = math.max(now, tonumber(full[1] or 0)), math.max(now, tonumber(full[2] or 0))
local r0, k0 = r, k
if was[2] > 0 and was[2] ~= num(29) then -- that call's answer did not come
  if rpm > 0 then r = math.max(now, r - was[3] * minute / rpm) end
  if tpm > 0 then k = math.max(now, k - was[4] * minute / tpm) end
end
if fresh then
  if rpm > 0 then r = math.max(now, r + num(9) * minute / rpm) end
  if tpm > 0 then k = math.max(now, k + num(10) * minute / tpm) end
end
local verdicts = {}
local tookr, tookk = 0, 0
for i = 32, #ARGV, 2 do
  local tokens, nano = num(i), num(i + 1)
  local running, due = others + mine, reserved + minenano + nano
  local function spends(b, s) return b > 0 and (s >= b or s + due > b) end
  local v = 0
  if conc > 0 and running >= conc then v = 1
  elseif rpm > 0 and r + minute / rpm - now > minute then v = 2
  elseif tpm > 0 and k + tokens * minute / tpm - now > minute then v = 3
  elseif spends(ever, total) then v = 4
  elseif spends(monthly, inmon) then v = 5
  elseif spends(daily, inday) then v = 6
  else
    if rpm > 0 then r = r + minute / rpm end
    if tpm > 0 then k = k + tokens * minute / tpm end
    mine, minenano = mine + 1, minenano + nano
    tookr, tookk = tookr + 1, tookk + tokens
  end
  verdicts[#verdicts + 1] = v
end

local function part(left) return num(24) > 0 and math.max(0, math.floor(left / (2 * num(24)))) or 0 end
local lent = {0, 0, 0, 0}
if rpm > 0 then
  lent[1] = part((now + minute - r) * rpm / minute + num(25)) - num(25)
  r = r + math.max(0, lent[1]) * minute / rpm
end
if tpm > 0 then
  lent[2] = part((now + minute - k) * tpm / minute + num(26)) - num(26)
  k = k + math.max(0, lent[2]) * minute / tpm
end
if conc > 0 then lent[3] = part(conc - others - mine) - num(27) end
local least
for _, b in ipairs({{ever, total}, {monthly, inmon}, {daily, inday}}) do
  if b[1] > 0 then least = math.min(least or b[1], b[1] - b[2]) end
end
if least then lent[4] = part(least - reserved - minenano) - num(28) end

if rpm > 0 or tpm > 0 then
  redis.call("HSET", KEYS[4], "seq", int(math.max(seq, was[1])), "call", ARGV[30], "requests", int(tookr + math.max(0, lent[1])), "tokens", int(tookk + math.max(0, lent[2])))
  redis.call("EXPIRE", KEYS[4], ARGV[20])
end
if r ~= r0 or k ~= k0 then
  redis.call("HSET", KEYS[1], "requests", string.format("%.2f", r), "tokens", string.format("%.2f", k))
  redis.call("PEXPIRE", KEYS[1], math.ceil((math.max(r, k) - now) / 1000) + 60000)
end
if shared then
  mine, minenano = mine + num(27) + math.max(0, lent[3]), minenano + num(28) + math.max(0, lent[4])
  if mine > 0 or minenano > 0 then
    redis.call("HSET", KEYS[2], me, int(mine) .. ":" .. int(minenano) .. ":" .. int(now + num(23)))
    redis.call("PEXPIRE", KEYS[2], 60000)
  else
    redis.call("HDEL", KEYS[2], me)
  end
end
return {table.concat(list, ";"), math.ceil(r - now), math.ceil(k - now), others, reserved, day, inday, month, inmon, total, lost and 1 or 0, lent[1], lent[2], lent[3], lent[4], unpack(verdicts)}`)

const (
	answerLen  = 15
	mostClaims = 256 // of one call: more wait for the next
)

func (r *Redis) usageKeys(u *Usage) []string {
	return []string{r.tagged("limit", u.Key), r.tagged("running", u.Key), r.tagged("spent", u.Key), r.tagged("counted", u.Key) + ":" + r.me}
}

// usageArgs are what limitScript reads. Numbers are pointers into one array: an any of each would be memory of its own.
func (r *Redis) usageArgs(u *Usage) []any {
	args := make([]any, 0, fixedArgs+2*len(u.Claims))
	ns := make([]int64, 0, cap(args))
	num := func(more ...int64) {
		ns = append(ns, more...)
		for i := len(ns) - len(more); i < len(ns); i++ {
			args = append(args, &ns[i])
		}
	}
	args = append(args, r.me)
	num(u.RPM, u.TPM, u.Concurrency, u.Day, u.Month, u.Total, int64(u.Seq), u.Requests, u.Tokens, u.Running, u.Reserved) //nolint:gosec // counted from 1
	num(u.Spent.Day, u.Spent.Month, u.Spent.InDay, u.Spent.InMon, u.Spent.Total, int64(btoi(u.Told)))
	args = append(args, u.Restore)
	num(int64(seqFor/time.Second), aliveFor.Microseconds(), int64(spentFor/time.Second), runningFor.Microseconds())
	num(u.Part, u.Have.Requests, u.Have.Tokens, u.Have.Running, u.Have.Nano, int64(u.Answered), int64(u.Call), backFor.Microseconds()) //nolint:gosec // counted from 1
	for i := range u.Claims {
		num(u.Claims[i].Tokens, u.Claims[i].Nano)
	}
	return args
}

const fixedArgs = 31 // of usageArgs: claims come after them

// take fills in what Redis has said.
func (u *Usage) take(c *redis.Cmd) error {
	answer, err := c.Slice()
	if err != nil {
		return err
	}
	odd := errors.New("redis has answered something else than was asked for")
	if len(answer) != answerLen+len(u.Claims) {
		return odd
	}
	book, ok := answer[0].(string)
	var ns [answerLen - 1]int64
	for i := range ns {
		var is bool
		ns[i], is = answer[1+i].(int64)
		ok = ok && is
	}
	for i := range u.Claims {
		v, is := answer[answerLen+i].(int64)
		u.Claims[i].Verdict = Verdict(v) //nolint:gosec // one of a handful
		ok = ok && is
	}
	if !ok {
		return odd
	}
	u.Answer = Answer{
		RequestsFull: time.Duration(ns[0]) * time.Microsecond, TokensFull: time.Duration(ns[1]) * time.Microsecond, Others: ns[2], OthersReserved: ns[3],
		Sum: Spent{Day: ns[4], InDay: ns[5], Month: ns[6], InMon: ns[7], Total: ns[8]}, Lost: ns[9] == 1, Book: book, Change: Lent{ns[10], ns[11], ns[12], ns[13]},
	}
	return nil
}

func btoi(b bool) int {
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
		return us[0].take(limitScript.Run(ctx, c, r.usageKeys(us[0]), r.usageArgs(us[0])...))
	}
	cmds := make([]*redis.Cmd, len(us))
	_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, u := range us {
			cmds[i] = limitScript.EvalSha(ctx, p, r.usageKeys(u), r.usageArgs(u)...)
		}
		return nil
	})
	if err != nil && !isReply(err) {
		return err
	}
	for i, u := range us {
		if redis.HasErrorPrefix(cmds[i].Err(), "NOSCRIPT") { // it was started anew, or is another node
			cmds[i] = limitScript.Eval(ctx, c, r.usageKeys(u), r.usageArgs(u)...)
		}
		if err := u.take(cmds[i]); err != nil {
			return err
		}
	}
	return nil
}
