package admission

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"headrace/gateway/openai"
	"headrace/router"
)

const goodKey = "hr_abcdefgh0123456789abcdefghjkmnpq"

// start is noon of a day that is not the last of its month.
var start = time.Date(2030, 5, 15, 12, 0, 0, 0, time.UTC)

func gateWith(keys ...Key) *Gate {
	g := New(Options{Now: func() time.Time { return start }})
	for i := range keys {
		if keys[i].Hash.IsZero() {
			keys[i].Hash = HashOf(goodKey)
		}
	}
	g.Configure(keys, false)
	return g
}

func enter(t testing.TB, g *Gate, key string, now time.Time) *Grant {
	t.Helper()
	gr, e := g.Enter([]byte(key), now)
	if e != nil || gr == nil {
		t.Fatalf("%v, %v", gr, e)
	}
	return gr
}

// TestSaltOf finds a key by its ID though another one is named like that.
func TestSaltOf(t *testing.T) {
	const other = "a-key-that-another-has"
	id := enter(t, gateWith(Key{Name: "z"}), goodKey, start).ID()
	g := gateWith(Key{Name: "z"}, Key{Name: id, Hash: HashOf(other)})
	if gr := enter(t, g, goodKey, start); gr.ID() != id {
		t.Fatalf("the key's ID is %s, and was %s", gr.ID(), id)
	}
	for name, key := range map[string]string{id: goodKey, "z": goodKey, enter(t, g, other, start).ID(): other} {
		if salt, ok := g.SaltOf(name); !ok || salt != enter(t, g, key, start).Salt() {
			t.Errorf("%s is not the key that it names", name)
		}
	}
	if _, ok := g.SaltOf("nobody"); ok {
		t.Error("a key that is not there has a salt")
	}
}

func TestEnter(t *testing.T) {
	g := gateWith(Key{Name: "good"}, Key{Name: "old", Hash: HashOf("the-new-one-of-the-two"), Old: HashOf("the-old-one-of-the-two"), OldEnds: start.Add(time.Hour)},
		Key{Name: "off", Hash: HashOf("one-that-is-off-for-now"), Off: true}, Key{Name: "late", Hash: HashOf("one-that-has-expired-ago"), Expires: start},
		Key{Name: "soon", Hash: HashOf("one-that-expires-later"), Expires: start.Add(time.Second)})
	for name, tc := range map[string]struct {
		key  string
		at   time.Duration
		want string // the key's name, or a part of the message
	}{
		"good":                       {goodKey, 0, "good"},
		"none":                       {"", 0, "didn't provide"},
		"another secret":             {goodKey[:len(goodKey)-1] + "r", 0, "Incorrect"},
		"longer":                     {goodKey + "r", 0, "Incorrect"},
		"too long":                   {strings.Repeat("x", maxKeyLen+1), 0, "Incorrect"},
		"its hash":                   {HashOf(goodKey).String(), 0, "Incorrect"},
		"the new one":                {"the-new-one-of-the-two", 2 * time.Hour, "old"},
		"the old one while it may":   {"the-old-one-of-the-two", time.Hour - 1, "old"},
		"the old one when it's over": {"the-old-one-of-the-two", time.Hour, "Incorrect"},
		"off":                        {"one-that-is-off-for-now", 0, "switched off"},
		"expired":                    {"one-that-has-expired-ago", 0, "expired on 2030-05-15T12:00:00Z"},
		"not yet expired":            {"one-that-expires-later", 0, "soon"},
	} {
		t.Run(name, func(t *testing.T) {
			gr, e := g.Enter([]byte(tc.key), start.Add(tc.at))
			if got := gr.Name(); e == nil && got != tc.want || e != nil && (!strings.Contains(e.Message, tc.want) || e.Status != 401 || e.Code != "invalid_api_key" || gr != nil) {
				t.Errorf("%q, %v, want %q", got, e, tc.want)
			}
		})
	}
}

// Whatever is sent costs one look into the book and one comparison of all bytes: how long a refusal takes tells nothing of how near the
// key was to one of ours.
func TestKeysAreComparedAlike(t *testing.T) {
	g := gateWith(Key{Name: "good"})
	b := g.book.Load()
	near := []byte(goodKey)
	near[len(near)-1]++
	for name, key := range map[string]string{
		"a known id and a wrong secret": goodKey[:11] + strings.Repeat("z", 24), "an unknown id": "hr_zzzzzzzz" + goodKey[11:],
		"all but the last byte": string(near), "nonsense": "x",
	} {
		h := HashOf(key)
		if _, there := b.entries[g.index(&h)]; there {
			t.Errorf("%s: the book has an entry to compare it with: it is found by the whole key only", name)
		}
		if e := g.find(b, &h); e != nil {
			t.Errorf("%s: opens the door of %q", name, e.grant.Key.Name)
		}
	}
	h := HashOf(goodKey)
	if e := g.find(b, &h); e == nil || e.grant.Key.Name != "good" {
		t.Error("the right key does not open its door")
	}
	if e := g.find(b, &g.decoy.hash); e != &g.decoy { // nobody knows a key of that hash
		t.Error("a key that nobody has is compared with nothing")
	}
	other := gateWith(Key{Name: "good"})
	if g.index(&h) == other.index(&h) {
		t.Error("the book's order is the same in every process, so that it can be probed for")
	}
}

// TestConstantTime measures what TestKeysAreComparedAlike says: the shortest of both refusals lie within a quarter of each other.
// Rounds are short, so that some are not interrupted on a busy machine either.
func TestConstantTime(t *testing.T) {
	if testing.Short() || raceOn {
		t.Skip("measures")
	}
	g := gateWith(Key{Name: "good"})
	known, unknown := []byte(goodKey[:11]+strings.Repeat("z", 24)), []byte("hr_zzzzzzzz"+goodKey[11:])
	rounds := func(key []byte) time.Duration {
		b := g.book.Load()
		begin := time.Now()
		for range 50 {
			if g.open(b, key, start) != nil {
				t.Fatal("opened")
			}
		}
		return time.Since(begin)
	}
	var ratio float64
	for range 5 { // the machine does other things too
		var a, b []time.Duration
		for range 1000 {
			a, b = append(a, rounds(known)), append(b, rounds(unknown))
		}
		ratio = float64(slices.Min(a)) / float64(slices.Min(b))
		if ratio > 0.8 && ratio < 1.25 {
			return
		}
	}
	t.Errorf("a known id with a wrong secret takes %.2f times what an unknown one takes", ratio)
}

func TestRights(t *testing.T) {
	g := gateWith(Key{Name: "k", Models: []string{"m", "llama-*"}, Policies: []string{"cost", "balanced"}, Experiments: []string{"canary-*"}, Priority: Batch, Weight: 3})
	gr := enter(t, g, goodKey, start)
	for what, ok := range map[string]bool{
		"m": gr.Model("m"), "llama-70b": gr.Model("llama-70b"), "llama-": gr.Model("llama-"),
		"not mm": !gr.Model("mm"), "not llama": !gr.Model("llama"), "not M": !gr.Model("M"), "not empty": !gr.Model(""),
		"cost": gr.Policy(router.PolicyCost), "default": gr.Policy(router.PolicyDefault), "not latency": !gr.Policy(router.PolicyLatency),
		"arm": gr.MayArm("canary-2"), "no arm": !gr.MayArm("other"), "no passthrough": !gr.Passthrough(), "batch": gr.Batch(), "weight": gr.Weight() == 3,
		"no demand": gr.Demand() == nil,
	} {
		if !ok {
			t.Error(what)
		}
	}
	var open *Grant
	if !open.Model("x") || !open.Policy(router.PolicyLatency) || !open.MayArm("x") || !open.Passthrough() || open.Limited() || open.Batch() || open.Weight() != 1 || open.Demand() != nil || open.Name() != "" {
		t.Error("where nobody needs a key something is not allowed")
	}
}

// admit asks for n tokens.
func admit(gr *Grant, now time.Time, prompt, output int) (*Pass, *openai.Error) {
	return gr.Admit(&Ask{Now: now, Prompt: prompt, Output: output}, nil)
}

// TestLimitsHold holds, for random keys and requests, that over any time no more is let in than the limit and the burst of one minute
// allow, that a refusal takes nothing, and that all is given back in the end.
func TestLimitsHold(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // printed below
	for round := range 300 {
		k := Key{Name: "k", RPM: rng.Int64N(200), TPM: rng.Int64N(50000) + 500*rng.Int64N(2), Concurrency: rng.Int64N(20)}
		g := gateWith(k)
		gr := enter(t, g, goodKey, start)
		now := start
		type running struct {
			p     *Pass
			until time.Time
			used  int64
		}
		var live []running
		requests, tokens, sure := int64(0), int64(0), int64(0) // let in; what they took; what of it is settled
		for range 400 {
			now = now.Add(time.Duration(rng.ExpFloat64() * float64(time.Second)))
			live = slices.DeleteFunc(live, func(r running) bool {
				if r.until.After(now) {
					return false
				}
				r.p.Settle(&Used{Now: now, Prompt: r.used / 2, Output: r.used - r.used/2, Began: true})
				sure += r.used
				return true
			})
			a := gr.acct
			held := [4]int64{a.running, a.requests.full, a.tokens.full, a.reserved}
			prompt := 1 + rng.IntN(300)
			p, e := admit(gr, now, prompt, 1+rng.IntN(300))
			elapsed := now.Sub(start).Minutes() + 1
			if e == nil {
				requests++
				tokens += p.tokens
				live = append(live, running{p, now.Add(time.Duration(rng.ExpFloat64() * float64(3*time.Second))), rng.Int64N(600)})
				if k.RPM > 0 && float64(requests) > float64(k.RPM)*elapsed+1e-3 {
					t.Fatalf("seed %d round %d: %d requests in %.3f minutes and a burst, %d allowed", seed, round, requests, elapsed-1, k.RPM)
				}
				reserved := int64(0)
				for _, r := range live {
					reserved += r.p.tokens
				}
				// What is settled may be more than was thought: that is paid back before the next one is let in.
				if k.TPM > 0 && float64(sure+reserved) > float64(k.TPM)*elapsed+600*float64(len(live)+1) {
					t.Fatalf("seed %d round %d: %d tokens in %.3f minutes and a burst, %d allowed", seed, round, sure+reserved, elapsed-1, k.TPM)
				}
				if k.Concurrency > 0 && int64(len(live)) > k.Concurrency {
					t.Fatalf("seed %d round %d: %d at once, %d allowed", seed, round, len(live), k.Concurrency)
				}
				continue
			}
			if e.Status != 429 || e.Code != "rate_limit_exceeded" {
				t.Fatalf("seed %d round %d: %v", seed, round, e)
			}
			if held != [4]int64{a.running, a.requests.full, a.tokens.full, a.reserved} {
				t.Fatalf("seed %d round %d: a refusal took something", seed, round)
			}
		}
		for _, r := range live {
			r.p.Settle(&Used{Now: now, Prompt: -1, Output: -1})
		}
		if a := gr.acct; a.running != 0 || a.reserved != 0 {
			t.Fatalf("seed %d round %d: %d run and %d are reserved after all", seed, round, a.running, a.reserved)
		}
	}
}

func TestRetryAfterIsHonest(t *testing.T) {
	gr := enter(t, gateWith(Key{Name: "k", RPM: 30, TPM: 1000}), goodKey, start)
	for i := range 30 {
		if p, e := admit(gr, start, 1, 1); e != nil {
			t.Fatalf("request %d: %v", i, e)
		} else {
			p.Settle(&Used{Now: start, Prompt: 1, Output: 1, Began: true})
		}
	}
	_, e := admit(gr, start, 1, 1)
	if e == nil || e.RetryAfter != 2*time.Second {
		t.Fatalf("%v, to be tried again in %s, want 2s", e, e.RetryAfter)
	}
	if _, early := admit(gr, start.Add(e.RetryAfter-time.Microsecond), 1, 1); early == nil {
		t.Error("let in before it was time")
	} else if !strings.HasSuffix(early.Message, "Try again in 1s.") { // as Retry-After, which has no less
		t.Errorf("a microsecond too early: %s", early.Message)
	}
	if _, late := admit(gr, start.Add(e.RetryAfter), 1, 1); late != nil {
		t.Error(late)
	}
	if _, e := admit(gr, start.Add(time.Hour), 2000, 1); e == nil || e.RetryAfter != 0 || !strings.Contains(e.Message, "too large") {
		t.Errorf("more than a minute has: %v", e)
	}
}

// What was estimated is put right: by what the host counted, by nothing where no host was asked, and not at all where nobody counted.
func TestSettleTokens(t *testing.T) {
	for name, tc := range map[string]struct {
		used Used
		left int64
	}{
		"counted":         {Used{Prompt: 100, Output: 50, Began: true}, 850},
		"more than asked": {Used{Prompt: 400, Output: 900, Began: true}, 0},
		"never begun":     {Used{Prompt: -1, Output: -1}, 1000},
		"nobody counted":  {Used{Prompt: -1, Output: -1, Began: true}, 700},
		"by its events":   {Used{Prompt: -1, Output: 350, Began: true}, 650},
	} {
		t.Run(name, func(t *testing.T) {
			gr := enter(t, gateWith(Key{Name: "k", TPM: 1000}), goodKey, start)
			p, e := admit(gr, start, 200, 100)
			if e != nil || p.Left().Tokens != 700 {
				t.Fatal(e, p.Left())
			}
			tc.used.Now = start
			p.Settle(&tc.used)
			if got := gr.acct.tokens.left(gr.gate.clock(start), 1000); got != tc.left {
				t.Errorf("%d are left, want %d", got, tc.left)
			}
		})
	}
	gr := enter(t, gateWith(Key{Name: "k", TPM: 1000}), goodKey, start)
	p, _ := admit(gr, start, 200, 100)
	p.Settle(&Used{Now: start, Prompt: 400, Output: 900, Began: true})
	if _, e := admit(gr, start, 1, 1); e == nil || e.RetryAfter < 18*time.Second || e.RetryAfter > 20*time.Second {
		t.Errorf("300 tokens over the limit of 1000 a minute: %v, %s", e, e.RetryAfter)
	}
}

// TestBudgets follows a key over days and months.
func TestBudgets(t *testing.T) {
	var logs bytes.Buffer
	g := New(Options{Now: func() time.Time { return start }, Log: slog.New(slog.NewTextHandler(&logs, nil))})
	g.Configure([]Key{{Name: "k", Hash: HashOf(goodKey), Budget: Budget{USDPerDay: 1, USDPerMonth: 1.9, USDTotal: 2.5, Soft: 0.5}}}, false)
	gr := enter(t, g, goodKey, start)
	spend := func(now time.Time, each float64) (n int, last *openai.Error) {
		for ; n < 1000; n++ {
			p, e := admit(gr, now, 1, 1)
			if e != nil {
				return n, e
			}
			p.Settle(&Used{Now: now, Prompt: 1, Output: 1, Began: true, USD: each})
		}
		return n, nil
	}
	day := 24 * time.Hour
	for i, tc := range []struct {
		at    time.Duration
		n     int
		says  string
		again time.Duration
	}{
		{0, 10, "budget of this day, $1.", 12 * time.Hour},
		{11 * time.Hour, 0, "budget of this day", time.Hour},
		{day, 9, "budget of this month, $1.9.", 16*day - 12*time.Hour}, // the rest of the month's
		{2 * day, 0, "budget of this month", 15*day - 12*time.Hour},
		{20 * day, 6, "budget of its life, $2.5.", 0},
		{400 * day, 0, "budget of its life", 0},
	} {
		n, e := spend(start.Add(tc.at), 0.1)
		if n != tc.n || e == nil || e.Status != 429 || e.Code != "insufficient_quota" || e.Type != "insufficient_quota" || !strings.Contains(e.Message, tc.says) || e.RetryAfter != tc.again {
			t.Errorf("step %d: %d requests, %v, again in %s", i, n, e, e.RetryAfter)
		}
	}
	if n := strings.Count(logs.String(), "most of its budget"); n != 5 || strings.Contains(logs.String(), goodKey) { // three days, a month, in all
		t.Errorf("the soft limits were told of %d times:\n%s", n, logs.String())
	}
}

// What runs is expected to cost what such requests have cost: a budget is not overdrawn by many at once.
func TestBudgetOfManyAtOnce(t *testing.T) {
	gr := enter(t, gateWith(Key{Name: "k", Budget: Budget{USDTotal: 1}}), goodKey, start)
	for range meanOf {
		p, e := admit(gr, start, 1, 1)
		if e != nil {
			t.Fatal(e)
		}
		p.Settle(&Used{Now: start, Prompt: 1, Output: 1, Began: true, USD: 0.01})
	}
	var ps []*Pass
	for {
		p, e := admit(gr, start, 1, 1)
		if e != nil {
			break
		}
		ps = append(ps, p)
	}
	for _, p := range ps {
		p.Settle(&Used{Now: start, Prompt: 1, Output: 1, Began: true, USD: 0.01})
	}
	if got := usd(gr.acct.unsaved.Total); got > 1 || got < 0.97 {
		t.Errorf("$%.2f of $1 were spent, %d requests at once", got, len(ps))
	}
}

func TestKeyCheck(t *testing.T) {
	for field, k := range map[string]Key{
		"name": {Name: "Bad"}, "note": {Name: "k", Note: strings.Repeat("x", maxNote+1)}, "models": {Name: "k", Models: []string{"a*b"}},
		"experiments": {Name: "k", Experiments: []string{""}}, "policies": {Name: "k", Policies: []string{"fast"}}, "regions": {Name: "k", Regions: []string{"US,EU"}},
		"rpm": {Name: "k", RPM: -1}, "tpm": {Name: "k", TPM: 2e9}, "concurrency": {Name: "k", Concurrency: -1},
		"budget.usd_per_day": {Name: "k", Budget: Budget{USDPerDay: -1}}, "budget.soft": {Name: "k", Budget: Budget{Soft: 2}},
		"priority": {Name: "k", Priority: "high"}, "weight": {Name: "k", Weight: -1},
	} {
		err := k.Check()
		if fe, ok := err.(*FieldError); !ok || fe.Field != field { //nolint:errorlint // as documented
			t.Errorf("%s: %v", field, err)
		}
	}
	if err := (&Key{Name: "team-1.a_b", Models: []string{"*"}, Policies: []string{"cost"}, RPM: 1, Priority: Batch}).Check(); err != nil {
		t.Error(err)
	}
}

func TestMint(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		id, key := mint("")
		if len(key) != keyLen || len(id) != idLen || !strings.HasPrefix(key, Prefix+id) || seen[key] || strings.ContainsAny(key[3:], "ilou-") {
			t.Fatalf("%q %q", id, key)
		}
		seen[key] = true
		if same, again := mint(id); same != id || again == key || again[:11] != key[:11] {
			t.Fatalf("%q %q after %q", same, again, key)
		}
	}
}

// The way of a request through the gate, limits and budget and all, allocates nothing.
func TestNoAllocations(t *testing.T) {
	g, key := hot(t)
	n := testing.AllocsPerRun(2000, func() {
		if e := once(g, key); e != nil {
			t.Fatal(e)
		}
	})
	if n != 0 && !raceOn {
		t.Errorf("%v allocations a request", n)
	}
}

func hot(t testing.TB) (*Gate, []byte) {
	t.Helper()
	keys := []Key{{Name: "k", RPM: 1e12, TPM: 1e14, Concurrency: 1e6, Models: []string{"a", "b", "m*"}, Budget: Budget{USDPerDay: 1e5, USDPerMonth: 1e6, USDTotal: 1e6}}}
	for i := range 1000 {
		keys = append(keys, Key{Name: fmt.Sprint("k", i), Hash: HashOf(fmt.Sprint(i))})
	}
	g := gateWith(keys...)
	enter(t, g, goodKey, start)
	return g, []byte(goodKey)
}

func once(g *Gate, key []byte) *openai.Error {
	gr, e := g.Enter(key, start)
	if e != nil || !gr.Model("mixtral") {
		return errBadKey()
	}
	p, e := gr.Admit(&Ask{Now: start, Prompt: 500, Output: 100}, nil)
	if e == nil {
		p.Settle(&Used{Now: start, Prompt: 480, Output: 90, Began: true, USD: 1e-5})
	}
	return e
}

func BenchmarkRequest(b *testing.B) {
	g, key := hot(b)
	b.ReportAllocs()
	for b.Loop() {
		if e := once(g, key); e != nil {
			b.Fatal(e)
		}
	}
}

func BenchmarkStranger(b *testing.B) {
	g, _ := hot(b)
	key := []byte("hr_abcdefgh0000000000000000000000000")
	b.ReportAllocs()
	for b.Loop() {
		if g.Knows(key, start) {
			b.Fatal("known")
		}
	}
}
