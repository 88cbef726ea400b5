package admission

import (
	"testing"
	"time"

	"headrace/router"
)

// TestPricedApart has a key that sent long prompts for short answers ask for long answers: one of these costs hundreds of times as much, and the
// budget holds nevertheless, whether records tell what of the cost was for which, or the model's hosts have to.
func TestPricedApart(t *testing.T) {
	price := router.Ceiling{Prompt: 1e-6, Output: 100e-6}
	for name, seen := range map[string]bool{"the records tell": true, "the dearest host tells": false} {
		gr := enter(t, gateWith(Key{Name: "k", Budget: Budget{USDPerDay: 5}}), goodKey, start)
		ceiling := price
		ceiling.Prompt, ceiling.Output = 3*price.Prompt, 3*price.Output // another host is dearer
		used := func(prompt, output int) *Used {
			u := &Used{Now: start, Began: true, Prompt: int64(prompt), Output: int64(output), USD: price.USD(float64(prompt), float64(output))}
			if seen {
				u.PromptUSD, u.OutputUSD = price.USD(float64(prompt), 0), price.USD(0, float64(output))
			}
			return u
		}
		for range meanOf {
			p, e := gr.Admit(&Ask{Now: start, Prompt: 10_000, Output: 10, Price: ceiling}, nil)
			if e != nil {
				t.Fatal(name, e)
			}
			p.Settle(used(10_000, 10))
		}
		var ps []*Pass
		for len(ps) < 1000 {
			p, e := gr.Admit(&Ask{Now: start, Prompt: 10, Output: 8000, Price: ceiling}, nil)
			if e != nil {
				break
			}
			ps = append(ps, p)
		}
		for _, p := range ps {
			p.Settle(used(10, 8000))
		}
		// $4.30 are left, and each takes $0.80: five of them, not one by the dearest host nor hundreds by the mean
		if spent := usd(gr.acct.unsaved.Total); len(ps) != 5 || spent > 5 {
			t.Errorf("%s: %d requests of $0.80 each are let in at once, and $%.2f of $5 are spent", name, len(ps), spent)
		}
	}
}

// TestRefusalsHaveNoPrice has hosts turn large requests away, for which nobody takes anything and of which nobody counts a token: the key's tokens are
// as dear afterwards as they were, and its budget lets in as much.
func TestRefusalsHaveNoPrice(t *testing.T) {
	price := router.Ceiling{Prompt: 1e-6, Output: 100e-6}
	for name, u := range map[string]*Used{
		"none": nil, "refused": {Now: start, Began: true, Prompt: -1, Output: -1},
		"cost little before they failed": {Now: start, Began: true, Prompt: -1, Output: -1, USD: 1e-6, Unpriced: true},
		"answered, price unknown":        {Now: start, Began: true, Prompt: 100_000, Output: 8000, Unpriced: true},
	} {
		gr := enter(t, gateWith(Key{Name: "k", Budget: Budget{USDPerDay: 5}}), goodKey, start)
		for range meanOf {
			p, e := gr.Admit(&Ask{Now: start, Prompt: 1000, Output: 100, Price: price}, nil)
			if e != nil {
				t.Fatal(name, e)
			}
			p.Settle(&Used{Now: start, Began: true, Prompt: 1000, Output: 100, USD: 0.011, PromptUSD: 0.001, OutputUSD: 0.01})
		}
		for range 100 {
			if u == nil {
				break
			}
			p, e := gr.Admit(&Ask{Now: start, Prompt: 100_000, Output: 8000, Price: price}, nil)
			if e != nil {
				t.Fatal(name, e)
			}
			p.Settle(u)
		}
		n := 0
		for ; n < 1000; n++ {
			if _, e := gr.Admit(&Ask{Now: start, Prompt: 1000, Output: 8000, Price: price}, nil); e != nil {
				break
			}
		}
		if n != 5 { // of $4.30 each takes $0.80
			t.Errorf("%s: %d requests of $0.80 are let in where $4.30 are left", name, n)
		}
	}
	gr := enter(t, gateWith(Key{Name: "k", Budget: Budget{USDPerDay: 5}}), goodKey, start)
	for range meanOf { // a host that takes nothing for tokens which it counted does teach it
		p, e := gr.Admit(&Ask{Now: start, Prompt: 1000, Output: 100, Price: price}, nil)
		if e != nil {
			t.Fatal(e)
		}
		p.Settle(&Used{Now: start, Began: true, Prompt: 1000, Output: 100})
	}
	if p, e := gr.Admit(&Ask{Now: start, Prompt: 1000, Output: 100, Price: price}, nil); e != nil || p.nano != 0 {
		t.Errorf("%d billionths are expected of hosts that are free, %v", p.nano, e)
	}
}

// TestNextPlace tells who has to wait for one of the running requests to end how long that takes, by how long they took of late.
func TestNextPlace(t *testing.T) {
	gr := enter(t, gateWith(Key{Name: "k", Concurrency: 2}), goodKey, start)
	now := start
	for range 8 {
		p, e := gr.Admit(&Ask{Now: now, Prompt: 1}, nil)
		if e != nil {
			t.Fatal(e)
		}
		now = now.Add(20 * time.Second)
		p.Settle(&Used{Now: now, Began: true, Prompt: 1, Output: 1})
	}
	for range 2 {
		if _, e := gr.Admit(&Ask{Now: now, Prompt: 1}, nil); e != nil {
			t.Fatal(e)
		}
	}
	if _, e := gr.Admit(&Ask{Now: now, Prompt: 1}, nil); e == nil || e.RetryAfter != 10*time.Second {
		t.Errorf("two run that take 20 s each: %+v", e)
	}
}
