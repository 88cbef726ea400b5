package admission

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"headrace/gateway/openai"
	"headrace/gateway/state"
	"headrace/gateway/state/redistest"
)

// replica is a gate with a connection to Redis of its own.
type replica struct {
	*Gate
	redis *state.Redis
}

// replicas starts n of them, which know of each other.
func replicas(t testing.TB, n int, sock string, change func(*Options), keys ...Key) []*replica {
	t.Helper()
	rs := make([]*replica, n)
	for i := range rs {
		var o Options
		if change != nil {
			change(&o)
		}
		r, err := state.Open(state.Options{URL: "unix://" + sock, Timeout: o.Within})
		if err != nil {
			t.Fatal(err)
		}
		o.Store, o.Shared = r.Docs(state.DocsOptions{}), r
		g := New(o)
		for j := range keys {
			if keys[j].Hash.IsZero() {
				keys[j].Hash = HashOf(goodKey)
			}
		}
		g.Configure(keys, true)
		g.Start(t.Context())
		rs[i] = &replica{g, r}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { _ = g.Run(ctx) })
		wg.Go(func() { _ = r.Run(ctx) })
		t.Cleanup(func() { cancel(); wg.Wait(); _ = r.Close() })
	}
	for deadline := time.Now().Add(patience); ; <-time.After(5 * time.Millisecond) {
		known := true
		for _, r := range rs {
			known = known && r.redis.Replicas() == n
		}
		if known {
			return rs
		}
		if time.Now().After(deadline) {
			t.Fatal("the replicas do not know of each other")
		}
	}
}

// flood is what callers of all replicas do for a while, as fast as they can.
type flood struct {
	tokens, output int          // asked for
	used           func() int64 // tokens in truth
	usd            float64      // of each
	hold           func() time.Duration
	callers        int   // of each replica
	refusals       int64 // it goes on until there were so many
	most           int64 // and so many were seen to run at once
}

// poured is what came of a flood.
type poured struct {
	in, refused, failed atomic.Int64
	tokens, nano        atomic.Int64
	full                atomic.Int64 // when one of those that were refused had come, in nanoseconds since 1970

	mu        sync.Mutex // guards all below
	waits     []time.Duration
	now, most int64 // running at once
}

// running adds n to those that run, and returns the most that ever did.
func (p *poured) running(n int64) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now += n
	p.most = max(p.most, p.now)
	return p.most
}

func (f *flood) pour(t testing.TB, rs []*replica, out *poured, until time.Time) {
	t.Helper()
	var wg sync.WaitGroup
	for _, r := range rs {
		for range max(1, f.callers) {
			wg.Go(func() {
				var waits []time.Duration
				for late := until.Add(patience); time.Now().Before(until) || (out.refused.Load() < f.refusals || out.running(0) < f.most) && time.Now().Before(late); {
					gr, e := r.Enter([]byte(goodKey), time.Now())
					if e != nil {
						out.failed.Add(1)
						continue
					}
					begin := time.Now()
					p, e := gr.Admit(&Ask{Now: begin, Prompt: f.tokens, Output: f.output}, nil)
					waits = append(waits, time.Since(begin))
					switch {
					case e == nil:
						out.in.Add(1)
						out.running(1)
						if f.hold != nil {
							<-time.After(f.hold())
						}
						u := Used{Now: time.Now(), Prompt: int64(f.tokens), Output: int64(f.output), Began: true, USD: f.usd}
						if f.used != nil {
							u.Output = f.used()
						}
						out.running(-1)
						out.tokens.Add(u.Prompt + u.Output)
						out.nano.Add(nanos(u.USD))
						p.Settle(&u)
					case e.Status == 429:
						out.refused.Add(1)
						out.full.Store(begin.UnixNano())
						<-time.After(min(max(e.RetryAfter, time.Millisecond), 3*time.Millisecond)) // impatient
					default:
						out.failed.Add(1)
					}
				}
				out.mu.Lock()
				out.waits = append(out.waits, waits...)
				out.mu.Unlock()
			})
		}
	}
	wg.Wait()
}

// quantile returns a share's wait.
func (p *poured) quantile(q float64) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.waits) == 0 {
		return 0
	}
	slices.Sort(p.waits)
	return p.waits[int(q*float64(len(p.waits)-1))]
}

// TestReplicasHoldLimits floods two and three replicas that share a key: within 2 % as much is let in as one gateway would let in.
// They wait for Redis as long as it takes: what they do where it does not answer in time is TestPartsWithoutRedis' business.
func TestReplicasHoldLimits(t *testing.T) {
	for _, n := range []int{2, 3} {
		for what, tc := range map[string]struct {
			key   Key
			flood flood
			got   func(*poured) float64
			want  float64 // at once, and again each minute
		}{
			"requests": {Key{RPM: 1200}, flood{tokens: 10, output: 10}, func(p *poured) float64 { return float64(p.in.Load()) }, 1200},
			"tokens": {
				Key{TPM: 600_000}, flood{tokens: 300, output: 250, used: func() int64 { return rand.Int64N(400) }}, //nolint:gosec // any will do
				func(p *poured) float64 { return float64(p.tokens.Load()) }, 600_000,
			},
			"dollars": {
				Key{Budget: Budget{USDPerDay: 1}},
				flood{tokens: 300, output: 250, usd: 0.0007, hold: func() time.Duration { return time.Millisecond }},
				func(p *poured) float64 { return usd(p.nano.Load()) }, 1,
			},
			"at once": {
				Key{Concurrency: 50}, flood{callers: 40, most: 49, hold: func() time.Duration { return time.Duration(rand.Int64N(int64(40 * time.Millisecond))) }}, //nolint:gosec // any will do
				func(p *poured) float64 { return float64(p.most) }, 50,
			},
		} {
			t.Run(fmt.Sprintf("%d replicas, %s", n, what), func(t *testing.T) {
				t.Parallel() // replicas know of each other after a second
				tc.key.Name, tc.flood.callers, tc.flood.refusals = "k", max(4, tc.flood.callers), 50
				rs := replicas(t, n, redistest.Start(t).Socket(), func(o *Options) { o.Within = patience }, tc.key)
				var out poured
				begin := time.Now()
				tc.flood.pour(t, rs, &out, begin.Add(1200*time.Millisecond))
				least, want := tc.want, tc.want
				if tc.key.RPM+tc.key.TPM > 0 {
					least *= 1 + time.Unix(0, out.full.Load()).Sub(begin).Minutes() // then nothing was left
					want *= 1 + time.Since(begin).Minutes()
				}
				got := tc.got(&out)
				waited, alone := int64(0), int64(0)
				for _, r := range rs {
					waited += r.share.waited.Load()
					alone += r.share.fellOut.Load()
				}
				t.Logf("%.6g of %.6g were let in, %d requests and %d refusals, of which %d waited for Redis, %d in vain; waits p50 %s p99 %s",
					got, want, out.in.Load(), out.refused.Load(), waited, alone, out.quantile(0.5), out.quantile(0.99))
				if failed := out.failed.Load(); failed > 0 || alone > 0 {
					t.Errorf("%d failed, and %d were decided alone", failed, alone)
				}
				if got > 1.02*want || got < 0.98*least {
					t.Errorf("%.6g were let in, want %.6g to %.6g within 2 %%", got, least, want)
				}
			})
		}
	}
}

// slowLine passes bytes on late.
type slowLine struct {
	path string
	late atomic.Int64 // nanoseconds
}

func newSlowLine(t testing.TB, to string) *slowLine {
	t.Helper()
	s := &slowLine{path: to + ".slow"}
	ln, err := net.Listen("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("unix", to)
			if err != nil {
				_ = c.Close()
				continue
			}
			pass := func(dst, src net.Conn) {
				buf := make([]byte, 64<<10)
				for {
					n, err := src.Read(buf)
					if d := time.Duration(s.late.Load()); d > 0 {
						<-time.After(d)
					}
					if n > 0 {
						if _, werr := dst.Write(buf[:n]); werr != nil {
							break
						}
					}
					if err != nil {
						break
					}
				}
				_ = dst.Close()
				_ = src.Close()
			}
			go pass(up, c)
			go pass(c, up)
		}
	}()
	return s
}

// TestRedisInTrouble kills, stops and slows Redis under load: no request fails, hardly any waits, each replica goes on with its part, and
// when it is back what was spent meanwhile is counted once.
func TestRedisInTrouble(t *testing.T) {
	for name, trouble := range map[string]func(s *redistest.Server, line *slowLine) (mend func()){
		"killed": func(s *redistest.Server, _ *slowLine) func() { s.Stop(); return s.Start },
		"stopped": func(s *redistest.Server, _ *slowLine) func() {
			s.Signal(syscall.SIGSTOP)
			return func() { s.Signal(syscall.SIGCONT) }
		},
		"slow": func(_ *redistest.Server, l *slowLine) func() {
			l.late.Store(int64(40 * time.Millisecond))
			return func() { l.late.Store(0) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := redistest.Start(t)
			line := newSlowLine(t, s.Socket())
			rs := replicas(t, 3, line.path, nil, Key{Name: "k", RPM: 60_000, Budget: Budget{USDTotal: 1000}})
			f := flood{tokens: 10, output: 10, callers: 2, usd: 0.001, hold: func() time.Duration { return 2 * time.Millisecond }}
			var well, ill, after poured
			asked := func() (n int64) {
				for _, r := range rs {
					n += r.share.waited.Load()
				}
				return n
			}
			before := asked()
			f.pour(t, rs, &well, time.Now().Add(600*time.Millisecond))
			mend := trouble(s, line)
			f.pour(t, rs, &ill, time.Now().Add(1200*time.Millisecond))
			if name != "slow" { // then all that were let in may be covered by what was borrowed
				await(t, "all have noticed", func() bool {
					for _, r := range rs {
						if !r.share.away.Load() {
							f.pour(t, rs, &ill, time.Now().Add(100*time.Millisecond))
							return false
						}
					}
					return true
				})
			}
			mend()
			await(t, "Redis is used again", func() bool {
				for _, r := range rs {
					if r.share.away.Load() { // it is asked again, soon enough or not, where there is something to tell of
						f.pour(t, rs, &after, time.Now().Add(100*time.Millisecond))
						return false
					}
				}
				return true
			})
			f.pour(t, rs, &after, time.Now().Add(600*time.Millisecond))
			t.Logf("let in %d, %d and %d; waits p50 %s, %s and %s, p99 %s, %s and %s, max %s, %s and %s", well.in.Load(), ill.in.Load(), after.in.Load(),
				well.quantile(0.5), ill.quantile(0.5), after.quantile(0.5), well.quantile(0.99), ill.quantile(0.99), after.quantile(0.99),
				well.quantile(1), ill.quantile(1), after.quantile(1))
			in := int64(0)
			for _, p := range []*poured{&well, &ill, &after} {
				if in += p.in.Load(); p.failed.Load() != 0 || p.in.Load() == 0 {
					t.Errorf("%d let in, %d failed", p.in.Load(), p.failed.Load())
				}
				if p50 := p.quantile(0.5); p50 > time.Millisecond { // microseconds, in which no machine puts a half of them aside
					t.Errorf("the median request was held up for %s", p50)
				}
			}
			if n := asked() - before; 2*n > in { // a clock would tell of the machine
				t.Errorf("%d of %d waited for Redis", n, in)
			}
			want := usd(well.nano.Load() + ill.nano.Load() + after.nano.Load())
			for _, r := range rs {
				await(t, "what was spent is known", func() bool {
					v, _ := r.View(t.Context(), "k")
					return math.Abs(v.SpentTotal-want) < 1e-9
				})
			}
		})
	}
}

// Redis gone, replicas let in together what the limit allows, each its part.
func TestPartsWithoutRedis(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	rs := replicas(t, 3, s.Socket(), nil, Key{Name: "k", RPM: 600, Budget: Budget{USDTotal: 3}})
	for _, r := range rs {
		spend(t, r.Gate, goodKey, 0.01, time.Now()) // knows the key's limits and what was spent
	}
	await(t, "all know", func() bool {
		for _, r := range rs {
			if v, _ := r.View(t.Context(), "k"); math.Abs(v.SpentTotal-0.03) > 1e-9 {
				return false
			}
		}
		return true
	})
	s.Stop()
	for _, r := range rs {
		await(t, "Redis is missed", func() bool { _ = trySpend(t, r.Gate, goodKey, 0, time.Now()); return r.share.away.Load() })
	}
	in, most := 0, 0
	begin := time.Now()
	for second := range 180 { // of a time made up, in which callers come as often as they can
		now := begin.Add(time.Duration(second) * time.Second)
		was := in
		for _, r := range rs {
			for trySpend(t, r.Gate, goodKey, 0, now) == nil {
				in++
			}
		}
		if second == 0 { // what was borrowed, and what belongs to two seconds
			if in > 300+20+3 {
				t.Errorf("%d were let in at once", in)
			}
			in = 0
			continue
		}
		most = max(most, in-was)
	}
	if in > 1790+18 || in < 1790-18 || most > 12 {
		t.Errorf("%d were let in within 179 seconds, up to %d within one; 10 a second may", in, most)
	}
	for _, r := range rs { // later, to have budgets to look at only
		now := begin.Add(5 * time.Minute)
		n := 0
		for ; n < 5000; n++ {
			if e := trySpend(t, r.Gate, goodKey, 0.01, now); e != nil {
				if e.Code != "insufficient_quota" {
					now = now.Add(time.Minute)
					continue
				}
				break
			}
		}
	}
	var spent float64
	for _, r := range rs {
		v, _ := r.View(context.Background(), "k")
		spent += v.SpentTotal - 0.03
	}
	if spent > 3 || spent < 2.5 {
		t.Errorf("$%.2f of $2.97 were spent by three that know nothing of each other", spent)
	}
}

// TestPlacesWithoutRedis has requests run at one replica, as many as the key may have at once, when Redis goes: each of the others lets its part
// of the places in and no more, for it does not know of those, and the first one none.
func TestPlacesWithoutRedis(t *testing.T) {
	t.Parallel()
	const places, n = 30, 3
	s := redistest.Start(t)
	rs := replicas(t, n, s.Socket(), nil, Key{Name: "k", Concurrency: places})
	fill := func(r *replica) (in int64) {
		for {
			gr, e := r.Enter([]byte(goodKey), time.Now())
			if e != nil {
				t.Fatal(e)
			}
			if _, e := gr.Admit(&Ask{Now: time.Now(), Prompt: 1}, nil); e != nil {
				return in
			}
			in++
		}
	}
	var in int64
	await(t, "all places are taken", func() bool { in += fill(rs[0]); return in >= places })
	s.Stop()
	for _, r := range rs {
		await(t, "Redis is missed", func() bool {
			if r.share.away.Load() {
				return true
			}
			r.share.call(t.Context(), r.Gate, []*account{enter(t, r.Gate, goodKey, time.Now()).acct}, tellWithin)
			return false
		})
	}
	if more := fill(rs[0]); more > 0 {
		t.Errorf("%d run where %d did, and %d may", in+more, in, places)
	}
	for _, r := range rs[1:] {
		if got := fill(r); got != places/n {
			t.Errorf("%d of %d places are given away by one of %d replicas", got, places, n)
		}
	}
}

// With Strict a key with a budget waits for Redis; others do not.
func TestStrict(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	r := replicas(t, 1, s.Socket(), func(o *Options) { o.Strict = true }, Key{Name: "k", Budget: Budget{USDTotal: 1000}}, Key{Name: "free", Hash: HashOf("a-key-without-a-budget"), RPM: 100})[0]
	await(t, "it is let in", func() bool { return trySpend(t, r.Gate, goodKey, 0.01, time.Now()) == nil })
	s.Stop()
	var e *openai.Error
	await(t, "the key waits", func() bool { e = trySpend(t, r.Gate, goodKey, 0.01, time.Now()); return e != nil })
	if e.Status != 503 || e.Code != "budget_unknown" || e.RetryAfter == 0 {
		t.Errorf("%v", e)
	}
	if e := trySpend(t, r.Gate, "a-key-without-a-budget", 0.01, time.Now()); e != nil {
		t.Errorf("a key without a budget: %v", e)
	}
	s.Start()
	await(t, "Redis is used again", func() bool { return trySpend(t, r.Gate, goodKey, 0.01, time.Now()) == nil })
}

// cpu is what this process has used.
func cpu() time.Duration {
	var ru syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// bareScript is what a script costs that does nothing.
//
//nolint:gochecknoglobals // a table
var bareScript = redis.NewScript("return 1")

// bare is a call of Redis in which there is nothing of ours.
func bare(t testing.TB, r *replica, do func(context.Context, redis.UniversalClient) error) {
	t.Helper()
	if err := r.redis.Call(t.Context(), patience, do); err != nil {
		t.Fatal(err)
	}
}

// TestAskingIsCheap bounds what a request takes that asks Redis all alone, which is once: docs/keys.md has what it costs. What is bounded is how much more
// of the CPU it takes than a script that does nothing, in the best of many rounds of both: a machine that is slow or busy is it for both.
func TestAskingIsCheap(t *testing.T) {
	r := replicas(t, 2, redistest.Start(t).Socket(), func(o *Options) { o.Within = patience }, farFromItsLimits)[0]
	const runs = 300
	had, _ := r.Waits()
	n := testing.AllocsPerRun(runs, func() {
		if e := askingNow(t, r); e != nil {
			t.Fatal(e)
		}
	})
	if n > 24 && !raceOn { // 14, with those of who tells meanwhile
		t.Errorf("%v allocations for a request that asks", n)
	}
	if answered, alone := r.Waits(); answered-had != runs+1 || alone > 0 { // once to warm up
		t.Errorf("%d requests asked %d times, and %d were decided alone", runs+1, answered-had, alone)
	}
	const rounds, each = 40, 25
	asking, nothing := time.Duration(math.MaxInt64), time.Duration(math.MaxInt64)
	for range rounds {
		from := cpu()
		for range each {
			bare(t, r, func(ctx context.Context, c redis.UniversalClient) error { return bareScript.Run(ctx, c, nil).Err() })
		}
		nothing = min(nothing, cpu()-from)
		from = cpu()
		for range each {
			if e := askingNow(t, r); e != nil {
				t.Fatal(e)
			}
		}
		asking = min(asking, cpu()-from)
	}
	t.Logf("a request that asks takes %s of the CPU, and a script that does nothing %s", asking/each, nothing/each)
	if asking > 5*nothing && !raceOn {
		t.Errorf("a request that asks takes %s, which is more than five times what a script takes that does nothing, %s", asking/each, nothing/each)
	}
}

// farFromItsLimits is a key that no benchmark comes near the limits of, however long it takes.
//
//nolint:gochecknoglobals // a table
var farFromItsLimits = Key{Name: "k", RPM: 1e12, TPM: 1e14, Concurrency: 1e6, Budget: Budget{USDPerDay: 1e5}}

// BenchmarkShared is a request of a key that is far from its limits, and one that asks Redis, alone or with others, beside what go-redis itself takes to
// ask; cpu-ns/op is this process' alone.
func BenchmarkShared(b *testing.B) {
	for name, n := range map[string]int{"alone": 1, "one of two": 2} {
		b.Run(name, func(b *testing.B) {
			s := redistest.Start(b)
			r := replicas(b, n, s.Socket(), nil, farFromItsLimits)[0]
			key := []byte(goodKey)
			b.ReportAllocs()
			before := cpu()
			for b.Loop() {
				if e := onceNow(r.Gate, key); e != nil {
					b.Fatal(e)
				}
			}
			b.ReportMetric(float64(cpu()-before)/float64(b.N), "cpu-ns/op")
			b.ReportMetric(float64(r.share.waited.Load())/float64(b.N), "asked/op")
		})
	}
	for name, do := range map[string]func(context.Context, redis.UniversalClient) error{
		"bare PING":    func(ctx context.Context, c redis.UniversalClient) error { return c.Ping(ctx).Err() },
		"bare EVALSHA": func(ctx context.Context, c redis.UniversalClient) error { return bareScript.Run(ctx, c, nil).Err() },
	} {
		b.Run(name, func(b *testing.B) {
			r := replicas(b, 2, redistest.Start(b).Socket(), nil, farFromItsLimits)[0]
			b.ReportAllocs()
			before := cpu()
			for b.Loop() {
				bare(b, r, do)
			}
			b.ReportMetric(float64(cpu()-before)/float64(b.N), "cpu-ns/op")
		})
	}
	for name, callers := range map[string]int{"asks each time": 1, "sixteen at once ask": 16} {
		b.Run(name, func(b *testing.B) {
			s := redistest.Start(b)
			r := replicas(b, 2, s.Socket(), func(o *Options) { o.Within = patience }, farFromItsLimits)[0]
			b.ReportAllocs()
			b.ResetTimer()
			before := cpu()
			had, _ := r.Waits()
			var left atomic.Int64
			left.Store(int64(b.N))
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						if e := askingNow(b, r); e != nil {
							b.Error(e)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(cpu()-before)/float64(b.N), "cpu-ns/op")
			answered, alone := r.Waits()
			if b.ReportMetric(float64(answered-had)/float64(b.N), "answered/op"); alone > 0 || callers == 1 && answered-had < int64(b.N) {
				b.Errorf("of %d requests Redis has answered %d, and %d were decided alone", b.N, answered-had, alone)
			}
		})
	}
}

// askingNow is a request that may not use what is borrowed.
func askingNow(t testing.TB, r *replica) *openai.Error {
	t.Helper()
	a := enter(t, r.Gate, goodKey, time.Now()).acct
	a.mu.Lock()
	a.share.asked = 0
	a.mu.Unlock()
	return onceNow(r.Gate, []byte(goodKey))
}

func onceNow(g *Gate, key []byte) *openai.Error {
	now := time.Now()
	gr, e := g.Enter(key, now)
	if e != nil {
		return e
	}
	p, e := gr.Admit(&Ask{Now: now, Prompt: 500, Output: 100}, nil)
	if e == nil {
		p.Settle(&Used{Now: now, Prompt: 480, Output: 90, Began: true, USD: 1e-9})
	}
	return e
}

// TestPlacesAreClaimedOnce: places that were given back while requests wait for Redis are no longer free when Redis is asked for these. It lets a
// request in beside what is free here, so that the same place would be had twice.
func TestPlacesAreClaimedOnce(t *testing.T) {
	t.Parallel()
	rs := replicas(t, 2, redistest.Start(t).Socket(), func(o *Options) { o.Within = patience },
		Key{Name: "k", Concurrency: 4, Budget: Budget{USDTotal: 1}})
	gr, e := rs[0].Enter([]byte(goodKey), time.Now())
	if e != nil {
		t.Fatal(e)
	}
	a := gr.acct
	a.mu.Lock()
	defer a.mu.Unlock()
	a.share.grant, a.running, a.share.asked = gr, 1, gr.gate.clock(time.Now())
	a.share.free = state.Lent{Running: 2, Nano: 900}
	a.share.claims = []*claim{{nano: 1000, done: make(chan struct{}, 1)}}
	a.begin(time.Now(), 2)
	if u := &a.share.usage; u.Running+u.Have.Running+int64(len(u.Claims)) != 3 || u.Have.Nano != 0 || a.share.free != u.Have {
		t.Errorf("one of three places runs, and one is claimed: %d running, %+v told to be free, %+v free", u.Running, u.Have, a.share.free)
	}
	a.share.busy = false
}
