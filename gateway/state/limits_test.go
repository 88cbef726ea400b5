package state

import (
	"errors"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// usage asks about one key and returns what came of it.
func usage(t *testing.T, r *Redis, u Usage) Usage {
	t.Helper()
	u.Claims = append([]Claim(nil), u.Claims...)
	if err := r.Limits(t.Context(), patience, []*Usage{&u}); err != nil {
		t.Fatal(err)
	}
	return u
}

func letIn(u Usage) (n int) {
	for _, c := range u.Claims {
		if c.Verdict == LetIn {
			n++
		}
	}
	return n
}

// Over two replicas no more is let in than a minute's worth at once, and what was taken without asking counts as well.
func TestLimitsOfTwo(t *testing.T) {
	s := startRedis(t)
	a, b := s.open(nil), s.open(nil)
	u := Usage{Key: "k", RPM: 60, TPM: 6000, Claims: make([]Claim, 25)}
	for i := range u.Claims {
		u.Claims[i].Tokens = 100
	}
	began := time.Now()
	more := func() int { return int(time.Since(began)/time.Second) + 1 } // one a second
	if n := letIn(usage(t, a, u)) + letIn(usage(t, b, u)); n != 50 {
		t.Fatalf("%d of 50 were let in", n)
	}
	got := usage(t, a, u)
	if n := letIn(got); n < 10 || n > 10+more() || n < 25 && got.Claims[24].Verdict != NoRequests {
		t.Errorf("%d more were let in, and then %v", n, got.Claims[24].Verdict)
	}
	if got.RequestsFull < 58*time.Second-time.Since(began) || got.RequestsFull > time.Minute || got.TokensFull < 58*time.Second-time.Since(began) {
		t.Errorf("full again in %s and %s", got.RequestsFull, got.TokensFull)
	}
	back := Usage{Key: "k", RPM: 60, TPM: 6000, Seq: 1, Requests: -30, Tokens: -2000}
	for range 3 { // told three times, counted once
		got = usage(t, b, back)
	}
	if got.RequestsFull < 28*time.Second-time.Since(began) || got.RequestsFull > 31*time.Second || got.TokensFull < 38*time.Second-time.Since(began) || got.TokensFull > 41*time.Second {
		t.Errorf("after 30 requests and 2000 tokens were given back, full again in %s and %s", got.RequestsFull, got.TokensFull)
	}
	only := Usage{Key: "t", TPM: 1000, Claims: []Claim{{Tokens: 600}, {Tokens: 600}, {Tokens: 400}}}
	if got := usage(t, a, only); got.Claims[0].Verdict != LetIn || got.Claims[1].Verdict != NoTokens || got.Claims[2].Verdict != LetIn {
		t.Errorf("%+v", got.Claims)
	}
}

// What was let in or lent by a call whose answer did not come is taken back by the next one.
func TestLimitsOfAnAnswerThatDidNotCome(t *testing.T) {
	s := startRedis(t)
	a := s.open(nil)
	u := Usage{Key: "k", RPM: 100, TPM: 1000, Part: 1, Call: 1, Claims: []Claim{{Tokens: 100}, {Tokens: 100}}}
	first := usage(t, a, u)
	if letIn(first) != 2 || first.Change.Requests != 49 || first.Change.Tokens != 400 {
		t.Fatalf("%+v", first)
	}
	u.Call, u.Answered = 2, 0
	if again := usage(t, a, u); letIn(again) != 2 || again.Change.Requests != 49 || again.Change.Tokens != 400 {
		t.Errorf("%+v, as if the first had counted", again)
	}
	u.Call, u.Answered, u.Have = 3, 2, first.Change
	if next := usage(t, a, u); letIn(next) != 2 || next.Change.Requests != -1 || next.Change.Tokens != -100 {
		t.Errorf("%+v", next)
	}
}

// What runs elsewhere counts, until its replica says that it has ended.
func TestConcurrencyOfTwo(t *testing.T) {
	s := startRedis(t)
	a, b := s.open(nil), s.open(nil)
	u := Usage{Key: "k", Concurrency: 5, Claims: make([]Claim, 3)}
	if n := letIn(usage(t, a, u)); n != 3 {
		t.Fatal(n)
	}
	got := usage(t, b, u)
	if n := letIn(got); n != 2 || got.Claims[2].Verdict != NoConcurrency || got.Others != 3 {
		t.Errorf("%d were let in beside 3, %d are said to run elsewhere: %+v", n, got.Others, got.Claims)
	}
	usage(t, a, Usage{Key: "k", Concurrency: 5, Running: 1})
	if got := usage(t, b, Usage{Key: "k", Concurrency: 5, Running: 2, Claims: make([]Claim, 3)}); letIn(got) != 2 || got.Others != 1 {
		t.Errorf("%d were let in beside 1 and 2: %+v", letIn(got), got)
	}
}

// Amounts are summed over replicas, counted once however often they are told, and outlive what Redis has lost, whoever remembers them.
func TestSpentOfMany(t *testing.T) {
	s := startRedis(t)
	a, b, c := s.open(nil), s.open(nil), s.open(nil)
	ask := func(r *Redis, day, inDay, total int64, told bool, restore string) Usage {
		return usage(t, r, Usage{
			Key: "k", Day: 100, Month: 1000, Total: 2000, Told: told, Restore: restore, Claims: []Claim{{Nano: 10}},
			Spent: Spent{Day: day, Month: 7, InDay: inDay, InMon: total, Total: total},
		})
	}
	first := ask(a, 50, 30, 30, false, "")
	if first.Sum != (Spent{50, 7, 30, 30, 30}) || letIn(first) != 1 || first.Lost {
		t.Fatalf("%+v", first)
	}
	got := ask(b, 50, 40, 40, false, "")
	if got.Sum != (Spent{50, 7, 70, 70, 70}) || got.Others != 1 || got.OthersReserved != 10 || letIn(got) != 1 {
		t.Errorf("%+v", got)
	}
	if got = ask(b, 50, 40, 40, true, ""); got.Sum.Total != 70 || got.Lost {
		t.Errorf("told twice: %+v", got.Sum)
	}
	if got = ask(a, 50, 55, 55, true, ""); got.Sum.InDay != 95 || got.Claims[0].Verdict != NoDay {
		t.Errorf("95 of 100 are spent and 10 wanted: %+v", got)
	}
	if got = ask(b, 51, 1, 41, true, ""); got.Sum != (Spent{51, 7, 1, 96, 96}) || letIn(got) != 1 {
		t.Errorf("the next day: %+v", got)
	}
	if got = ask(a, 50, 59, 59, true, ""); got.Sum != (Spent{51, 7, 1, 100, 100}) {
		t.Errorf("what comes late from the day before counts in its month: %+v", got.Sum)
	}
	if got = ask(c, 51, 5, 5, false, ""); got.Sum != (Spent{51, 7, 6, 105, 105}) {
		t.Errorf("a third: %+v", got.Sum)
	}
	late := ask(b, 51, 3, 43, true, "")
	if err := a.client.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	// c is gone: only what others remember of it is left.
	if got = ask(a, 51, 2, 61, true, ""); !got.Lost || got.Sum.Total != 61 {
		t.Errorf("after Redis has lost its data: %+v", got)
	}
	if got = ask(a, 51, 2, 61, true, first.Book); got.Sum.Total != 61 || got.Lost { // an old book takes nothing away
		t.Errorf("with an old book: %+v", got)
	}
	if got = ask(b, 51, 4, 44, true, late.Book); got.Sum != (Spent{51, 7, 11, 110, 110}) {
		t.Errorf("with what the second remembers: %+v", got)
	}
	if got = ask(a, 51, 2, 61, true, ""); got.Sum != (Spent{51, 7, 11, 110, 110}) {
		t.Errorf("in the end: %+v", got)
	}
}

// What is lent of budgets is of the one that is nearest to its end, also where two are alike.
func TestLentOfBudgets(t *testing.T) {
	s := startRedis(t)
	a := s.open(nil)
	u := Usage{Key: "k", Day: 1000, Month: 1000, Total: 1000, Part: 1, Spent: Spent{Day: 50, Month: 7, InDay: 100, InMon: 300, Total: 700}}
	if got := usage(t, a, u); got.Change.Nano != 150 {
		t.Errorf("%d of 300 are lent", got.Change.Nano)
	}
}

// TestLeastShare: near the end of a limit a replica is lent its part of a hundredth of it at least, while there is as much, so that not each request asks;
// and of a small limit nothing that is not there.
func TestLeastShare(t *testing.T) {
	s := startRedis(t)
	a, b := s.open(nil), s.open(nil)
	const tpm = 1 << 40
	u := Usage{Key: "k", TPM: tpm, Part: 2, Seq: 1, Tokens: tpm - tpm/60, Call: 1}
	if got := usage(t, a, u).Change.Tokens; got < tpm/200 || got > tpm/199 {
		t.Errorf("%d of %d tokens are lent, want a two hundredth of the limit", got, tpm/60)
	}
	u.Seq, u.Tokens = 0, 0
	if got := usage(t, b, u).Change.Tokens; got < tpm/200 { // by then there may be more
		t.Errorf("the second is lent %d tokens", got)
	}
	if got := usage(t, a, Usage{Key: "few", Concurrency: 60, Part: 2, Running: 59}); got.Change.Running != 0 {
		t.Errorf("%d of one place are lent", got.Change.Running)
	}
	if got := usage(t, a, Usage{Key: "many", Concurrency: 1000, Part: 2, Running: 997}); got.Change.Running != 3 {
		t.Errorf("%d of three places are lent where five may", got.Change.Running)
	}
}

// What a replica has spent that is long gone is kept with that of others.
func TestSpentOfTheGone(t *testing.T) {
	s := startRedis(t)
	a := s.open(nil)
	key := a.tagged("spent", "k")
	if err := a.client.HSet(t.Context(), key, "r1", "50:7:600:8:100:5", "r2", "49:4:600:9:50:5", "gone", "50:1:600:2:3:5").Err(); err != nil {
		t.Fatal(err)
	}
	got := usage(t, a, Usage{Key: "k", Total: 1000, Spent: Spent{Day: 50, Month: 600, InDay: 1, InMon: 1, Total: 1}})
	if got.Sum != (Spent{50, 600, 9, 20, 154}) {
		t.Errorf("%+v", got.Sum)
	}
	all, err := a.client.HGetAll(t.Context(), key).Result()
	if err != nil || len(all) != 2 || all["gone"][:16] != "50:8:600:19:153:" {
		t.Errorf("%v, %v", all, err)
	}
}

// A replica at which nobody used a key for a day is not counted twice when somebody does again, nor has it anything lost.
func TestSpentOfTheIdle(t *testing.T) {
	s := startRedis(t)
	a, b := s.open(nil), s.open(nil)
	key := a.tagged("spent", "k")
	pass := func(d time.Duration) {
		t.Helper()
		all, err := a.client.HGetAll(t.Context(), key).Result()
		if err != nil {
			t.Fatal(err)
		}
		for who, v := range all {
			i := strings.LastIndexByte(v, ':')
			at, err := strconv.ParseInt(v[i+1:], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			if err := a.client.HSet(t.Context(), key, who, v[:i+1]+strconv.FormatInt(at-d.Microseconds(), 10)).Err(); err != nil {
				t.Fatal(err)
			}
		}
	}
	ask := func(r *Redis, spent, want Spent, told bool) Usage {
		t.Helper()
		got := usage(t, r, Usage{Key: "k", Month: 1000, Total: 1000, Told: told, Spent: spent})
		if got.Sum != want || got.Lost {
			t.Errorf("%+v, want %+v; lost: %v", got.Sum, want, got.Lost)
		}
		return got
	}
	ask(a, Spent{50, 7, 30, 30, 30}, Spent{50, 7, 30, 30, 30}, false)
	pass(25 * time.Hour)
	ask(b, Spent{51, 7, 1, 1, 1}, Spent{51, 7, 1, 31, 31}, false)
	ask(a, Spent{51, 7, 1, 31, 31}, Spent{51, 7, 2, 32, 32}, true)
	pass(25 * time.Hour) // and again, both of them
	got := ask(b, Spent{51, 7, 2, 2, 2}, Spent{51, 7, 3, 33, 33}, true)
	if err := a.client.FlushAll(t.Context()).Err(); err != nil { // b remembers that a has a part in those that are gone
		t.Fatal(err)
	}
	usage(t, b, Usage{Key: "k", Total: 1000, Told: true, Restore: got.Book, Spent: Spent{51, 7, 2, 2, 2}})
	ask(a, Spent{51, 7, 2, 32, 32}, Spent{51, 7, 4, 34, 34}, true)
}

// Many keys go in one round trip, also when Redis has forgotten the script.
func TestManyKeysAtOnce(t *testing.T) {
	s := startRedis(t)
	r := s.open(nil)
	for round := range 2 {
		us := make([]*Usage, 100)
		for i := range us {
			us[i] = &Usage{Key: string(rune('a'+i%26)) + string(rune('a'+i/26)), RPM: 1, Claims: make([]Claim, 2)}
		}
		if err := r.Limits(t.Context(), patience, us); err != nil {
			t.Fatal(err)
		}
		for _, u := range us {
			if n := letIn(*u); n != 1-round {
				t.Fatalf("round %d: %d of %q were let in", round, n, u.Key)
			}
		}
		if err := r.client.ScriptFlush(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
	}
}

// A server that is gone keeps no request.
func TestLimitsOfGoneRedis(t *testing.T) {
	s := startRedis(t)
	r := s.open(nil)
	usage(t, r, Usage{Key: "k"})
	s.Stop()
	var soon atomic.Int64
	for tries := 0; soon.Load() == 0; tries++ { // a busy machine may hold them up
		if tries == 10 {
			t.Fatal("all were kept for longer than 50 ms")
		}
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				begin := time.Now()
				if err := r.Limits(t.Context(), Within, []*Usage{{Key: "k"}}); !errors.Is(err, ErrAway) {
					t.Errorf("%v after %s", err, time.Since(begin))
				}
				if time.Since(begin) <= 50*time.Millisecond {
					soon.Add(1)
				}
			})
		}
		wg.Wait()
	}
}
