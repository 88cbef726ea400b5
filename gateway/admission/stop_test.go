package admission

import (
	"math"
	"strings"
	"testing"
	"time"

	"headrace/gateway/openai"
	"headrace/gateway/state"
	"headrace/router"
)

// dear is a host's price by the million tokens.
func dear(usdPerM float64) router.Ceiling {
	return router.Ceiling{Prompt: usdPerM / 1e6, Output: usdPerM / 1e6}
}

// burst lets in at once as many as come in, of which each costs what the price says, and returns what that is in all.
func burst(t *testing.T, gr *Grant, ask Ask, most int) (spent float64, n int, last *openai.Error) {
	t.Helper()
	var ps []*Pass
	for ; n < most && last == nil; n++ {
		var p *Pass
		if p, last = gr.Admit(&ask, nil); last == nil {
			ps = append(ps, p)
		}
	}
	before := gr.acct.unsaved.Total
	for _, p := range ps {
		p.Settle(&Used{Now: ask.Now, Began: true, Prompt: int64(ask.Prompt), Output: int64(ask.Output * max(1, ask.N)), USD: ask.Price.USD(float64(ask.Prompt), float64(ask.Output*max(1, ask.N)))})
	}
	return usd(gr.acct.unsaved.Total - before), len(ps), last
}

// TestHardStop has everybody come at once: to a key of which nothing is known, to one that has sent only small requests, and with many answers each.
func TestHardStop(t *testing.T) {
	large := Ask{Now: start, Prompt: 100_000, Output: 8000, Price: dear(4)}
	for name, ask := range map[string]Ask{
		"nothing known": large,
		"many answers":  {Now: start, Prompt: 10, Output: 1000, N: 20, Price: dear(4)},
	} {
		gr := enter(t, gateWith(Key{Name: "k", Budget: Budget{USDPerDay: 1}}), goodKey, start)
		if spent, n, e := burst(t, gr, ask, 5000); spent > 1 || n == 0 || e == nil {
			t.Errorf("%s: %d requests spent $%.2f of $1, then %v", name, n, spent, e)
		}
	}
	gr := enter(t, gateWith(Key{Name: "k", Budget: Budget{USDPerDay: 1}}), goodKey, start)
	small := Ask{Now: start, Prompt: 10, Output: 10, Price: dear(4)}
	before := 0.0
	for range meanOf {
		spent, _, _ := burst(t, gr, small, 1)
		before += spent
	}
	if spent, n, e := burst(t, gr, large, 5000); before+spent > 1 || n == 0 || e == nil {
		t.Errorf("after small ones: %d requests spent $%.2f of $1, then %v", n, spent, e)
	}
}

// What a token has cost is known after a restart as well, to which hosts without a price are no hindrance.
func TestHardStopAfterRestart(t *testing.T) {
	s := state.NewMemory()
	open := func() (*Gate, *Grant) {
		g := New(Options{Now: func() time.Time { return start }, Store: s})
		g.Configure([]Key{{Name: "k", Hash: HashOf(goodKey), Budget: Budget{USDTotal: 1}}}, false)
		g.Start(t.Context())
		return g, enter(t, g, goodKey, start)
	}
	g, gr := open()
	for range 8 {
		p, e := admit(gr, start, 100, 100)
		if e != nil {
			t.Fatal(e)
		}
		p.Settle(&Used{Now: start, Began: true, Prompt: 100, Output: 100, USD: 0.01})
	}
	if err := g.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, gr = open()
	n := 0
	for ; n < 1000; n++ {
		if _, e := admit(gr, start, 100, 100); e != nil {
			break
		}
	}
	if n != 92 {
		t.Errorf("%d requests of $0.01 run at once, with $0.92 left", n)
	}
}

// TestForgetsKeysThatAreGone keeps no account of keys that have left the config, once their requests are over and written; one that is back has spent
// what it had.
func TestForgetsKeysThatAreGone(t *testing.T) {
	now := start
	g := New(Options{Now: func() time.Time { return now }, Store: state.NewMemory()})
	k := Key{Name: "k", Hash: HashOf(goodKey), Budget: Budget{USDTotal: 1}}
	g.Configure([]Key{k}, true)
	g.Start(t.Context())
	p, e := admit(enter(t, g, goodKey, start), start, 100, 100)
	if e != nil {
		t.Fatal(e)
	}
	accounts := func(want int, when string) {
		t.Helper()
		if err := g.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := len(g.accounts); n != want {
			t.Errorf("%s: %d accounts, want %d", when, n, want)
		}
	}
	g.Configure(nil, true)
	now = now.Add(forgetAfter / 2)
	accounts(1, "a moment later")
	now = now.Add(2 * forgetAfter)
	accounts(1, "while its request runs")
	p.Settle(&Used{Now: now, Began: true, Prompt: 100, Output: 100, USD: 0.25})
	accounts(1, "before that is written")
	accounts(0, "when all is written")
	g.Configure([]Key{k}, true)
	if gr := enter(t, g, goodKey, start); usd(gr.acct.spent.Total) != 0.25 {
		t.Errorf("back, it has spent $%v, want $0.25", usd(gr.acct.spent.Total))
	}
	now = now.Add(2 * forgetAfter)
	accounts(1, "when it is back")
}

// What is only thought keeps nobody out for good; what a caller asks for may.
func TestNoLockout(t *testing.T) {
	gr := enter(t, gateWith(Key{Name: "k", Budget: Budget{USDPerDay: 0.05}}), goodKey, start)
	day := 24 * time.Hour
	for d := range 10 {
		now := start.Add(time.Duration(d) * day)
		p, e := admit(gr, now, 1, 1)
		if e != nil {
			t.Fatalf("day %d: nothing is spent, and %v", d, e)
		}
		if d >= knownOf { // it is known by now what they cost
			if _, e := admit(gr, now, 1, 1); e == nil {
				t.Errorf("day %d: another one is let in beside it", d)
			}
		}
		p.Settle(&Used{Now: now, Began: true, Prompt: 1, Output: 1, USD: 0.06})
		if _, e := admit(gr, now, 1, 1); e == nil || e.Code != "insufficient_quota" {
			t.Errorf("day %d: all is spent, and %v", d, e)
		}
	}
	gr = enter(t, gateWith(Key{Name: "k", TPM: 1000}), goodKey, start)
	p, e := admit(gr, start, 10, 0)
	if e != nil {
		t.Fatal(e)
	}
	p.Settle(&Used{Now: start, Began: true, Prompt: 10, Output: 1200})
	if _, e := admit(gr, start.Add(day), 10, 0); e != nil {
		t.Errorf("after one long answer: %v", e)
	}
	if _, e := admit(gr, start.Add(2*day), 1001, 0); e == nil || !strings.Contains(e.Message, "too large") {
		t.Errorf("a prompt above the limit: %v", e)
	}
}

// A request that is too dear for what is left is told so, and smaller ones go on; what only runs is no reason to give up for the day.
func TestBudgetRefusals(t *testing.T) {
	gr := enter(t, gateWith(Key{Name: "k", Budget: Budget{USDPerDay: 1}}), goodKey, start)
	p, e := gr.Admit(&Ask{Now: start, Prompt: 100_000, Output: 1, Price: dear(5)}, nil)
	if e != nil {
		t.Fatal(e)
	}
	if _, e := gr.Admit(&Ask{Now: start, Prompt: 110_000, Output: 1, Price: dear(5)}, nil); e == nil || e.Code != "rate_limit_exceeded" || e.RetryAfter > time.Minute || !strings.Contains(e.Message, "running") {
		t.Errorf("what is left may be needed: %v", e)
	}
	p.Settle(&Used{Now: start, Began: true, Prompt: 100_000, Output: 1, USD: 0.5})
	if _, e := gr.Admit(&Ask{Now: start, Prompt: 110_000, Output: 1, Price: dear(5)}, nil); e == nil || e.Code != "insufficient_quota" || !strings.Contains(e.Message, "This request alone") {
		t.Errorf("larger than what is left: %v", e)
	}
	if _, e := gr.Admit(&Ask{Now: start, Prompt: 10, Output: 1, Price: dear(5)}, nil); e != nil {
		t.Errorf("a small one: %v", e)
	}
}

// A clock that was ahead for a moment does not end daily budgets until that day.
func TestClockAhead(t *testing.T) {
	s := state.NewMemory()
	now := start
	g := New(Options{Now: func() time.Time { return now }, Store: s})
	g.Configure([]Key{{Name: "k", Hash: HashOf(goodKey), Budget: Budget{USDPerDay: 1}}}, false)
	g.Start(t.Context())
	day := 24 * time.Hour
	for i, after := range []time.Duration{90 * day, 0, day, 2 * day, 3 * day} {
		now = start.Add(after)
		if e := trySpend(t, g, goodKey, 0.4, now); e != nil {
			t.Errorf("step %d, $0.40 a day of $1: %v", i, e)
		}
		if err := g.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if v, _ := g.View(t.Context(), "k"); math.Abs(v.SpentTotal-2) > 1e-9 || math.Abs(v.SpentToday-0.4) > 1e-9 {
		t.Errorf("%+v", v)
	}
}
