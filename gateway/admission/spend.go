package admission

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"headrace/gateway/state"
)

// What keys have spent is kept in the store, so that a budget outlives the process: at most flushEvery of it is lost when that is
// killed. With Redis it is kept there instead, by everybody: see share.go.

const (
	spendKind  = "spend"
	flushEvery = time.Second
	forgetDays = 400 // what an unknown key has spent is forgotten so many days after it last did
	// forgetAfter is how long a key's account stays in memory after the key is gone, for requests that have come with it.
	forgetAfter = time.Hour
)

// shard is the document that an account is kept in: a few dozen for all of them, so that one that spends has not all written anew.
func shard(id string) string { return id[:1] }

// books is what the store has of everybody's spending, by shard and ID.
type books struct {
	shards map[string]page
}

// attempt is a write of which is not known whether it was done.
type attempt struct {
	body   []byte
	deltas map[string]spending
}

type page struct {
	version  state.Version
	accounts map[string]spending
}

// LoadSpent reads what was spent before.
func (g *Gate) LoadSpent(ctx context.Context) error {
	docs, err := g.opt.Store.Load(ctx, spendKind)
	if err != nil {
		return fmt.Errorf("read what keys have spent: %w", err)
	}
	b := books{map[string]page{}}
	for name, d := range docs {
		p := page{version: d.Version}
		if err := json.Unmarshal(d.Body, &p.accounts); err != nil {
			g.log.Error("what keys have spent cannot be read: it counts as nothing", "document", name, "error", err)
		}
		b.shards[name] = p
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.books = b
	for name, t := range g.tried {
		if bytes.Equal(docs[name].Body, t.body) { // it was done
			for id, d := range t.deltas {
				if a := g.accounts[id]; a != nil {
					a.mu.Lock()
					a.unsaved.take(&d)
					a.mu.Unlock()
				}
			}
		}
	}
	clear(g.tried)
	for id, a := range g.accounts {
		a.adopt(g.books.of(id))
	}
	return nil
}

func (b *books) of(id string) spending { return b.shards[shard(id)].accounts[id] }

// adopt takes over what the store knows.
func (a *account) adopt(s spending) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.spent = s
	a.prices.prompt.begin(s.PerPrompt)
	a.prices.output.begin(s.PerOutput)
}

// flush writes what was spent since the last time.
func (g *Gate) flush(ctx context.Context) error {
	g.flushing.Lock()
	defer g.flushing.Unlock()
	if !g.known.Load() {
		return nil // it would be taken for all there is
	}
	g.forget()
	g.mu.Lock()
	doubt := len(g.tried) > 0
	g.mu.Unlock()
	if doubt {
		if err := g.LoadSpent(ctx); err != nil {
			return err
		}
	}
	for range 5 {
		again, err := g.flushOnce(ctx)
		if err != nil || !again {
			return err
		}
		if err := g.LoadSpent(ctx); err != nil { // another process has written: add to what it has
			return err
		}
	}
	return state.ErrConflict
}

// forget drops accounts of keys that are gone, of which nothing runs or waits to be written. Should such a key be back, the store knows what it has
// spent. With Redis they stay: each replica tells what has been spent there since it began.
func (g *Gate) forget() {
	if g.share != nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.opt.Now()
	for id, a := range g.accounts {
		if a.gone.IsZero() || now.Sub(a.gone) < forgetAfter {
			continue
		}
		a.mu.Lock()
		if a.running == 0 && a.unsaved.Total == 0 {
			delete(g.accounts, id)
		}
		a.mu.Unlock()
	}
}

// flushOnce writes what can be written; again says that another process has written meanwhile.
func (g *Gate) flushOnce(ctx context.Context) (again bool, err error) {
	due := map[string]map[string]spending{} // by shard and ID
	g.mu.Lock()
	for id, a := range g.accounts {
		a.mu.Lock()
		if d := a.unsaved; d.Total > 0 {
			if due[shard(id)] == nil {
				due[shard(id)] = map[string]spending{}
			}
			d.PerPrompt, d.PerOutput = a.prices.prompt.of(), a.prices.output.of()
			due[shard(id)][id] = d
		}
		a.mu.Unlock()
	}
	g.mu.Unlock()
	for name, deltas := range due {
		body, next := g.nextPage(name, deltas)
		v, err := g.opt.Store.Put(ctx, spendKind, name, next.version, body)
		if errors.Is(err, state.ErrConflict) {
			again = true
			continue
		}
		if err != nil {
			g.mu.Lock()
			g.tried[name] = attempt{body, deltas}
			g.mu.Unlock()
			return false, fmt.Errorf("write what keys have spent: %w", err)
		}
		next.version = v
		g.mu.Lock()
		g.books.shards[name] = next
		for id, d := range deltas {
			if a := g.accounts[id]; a != nil {
				a.saved(&d, next.accounts[id])
			}
		}
		g.mu.Unlock()
	}
	return again, nil
}

// nextPage is a shard with deltas added.
func (g *Gate) nextPage(name string, deltas map[string]spending) ([]byte, page) {
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.books.shards[name]
	next := page{old.version, maps.Clone(old.accounts)}
	if next.accounts == nil {
		next.accounts = map[string]spending{}
	}
	today, month := on(g.opt.Now())
	for id, s := range next.accounts {
		if g.accounts[id] == nil && s.Day < today-forgetDays {
			delete(next.accounts, id)
		}
	}
	for id, d := range deltas {
		s := next.accounts[id]
		s.unwind(today, month)
		s.add(&d)
		next.accounts[id] = s
	}
	body, err := json.Marshal(next.accounts)
	if err != nil {
		panic("BUG: amounts cannot be encoded: " + err.Error())
	}
	return body, next
}

// saved takes note that d is in what is stored now.
func (a *account) saved(d *spending, stored spending) {
	a.mu.Lock()
	defer a.mu.Unlock()
	day, month := a.spent.Day, a.spent.Month
	a.spent = stored
	a.spent.roll(day, month) // midnight may have passed meanwhile
	a.unsaved.take(d)
}

// add adds what was spent in t's day and month.
func (s *spending) add(t *spending) {
	s.roll(t.Day, t.Month)
	if t.Day == s.Day {
		s.InDay += t.InDay
	}
	if t.Month == s.Month {
		s.InMon += t.InMon
	}
	s.Total += t.Total
	s.PerPrompt, s.PerOutput = cmp.Or(t.PerPrompt, s.PerPrompt), cmp.Or(t.PerOutput, s.PerOutput)
}

// take takes off what was added elsewhere.
func (s *spending) take(t *spending) {
	if t.Day == s.Day {
		s.InDay -= t.InDay
	}
	if t.Month == s.Month {
		s.InMon -= t.InMon
	}
	s.Total -= t.Total
}
