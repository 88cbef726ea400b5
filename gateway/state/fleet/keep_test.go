package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"testing"
	"time"

	"headrace/gateway/state"
	"headrace/gateway/state/redistest"
	"headrace/router"
	"headrace/router/capacity"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// learner is a router by a clock of its own.
type learner struct {
	t     *testing.T
	clock *atomic.Int64 // Unix nanoseconds
	r     *router.Router
}

func newLearner(t *testing.T, clock *atomic.Int64, hosts ...endpoint.Endpoint) *learner {
	t.Helper()
	l := &learner{t: t, clock: clock}
	l.r = router.New(router.Options{Now: l.now, Seed: 1, Prior: func(*endpoint.Endpoint) capacity.Prior {
		return capacity.Prior{ITLSeconds: 0.02, Slope: 0.045, TTFTSeconds: 0.3, PrefillTokensPerSecond: 2000, MaxNumSeqs: 64}
	}})
	l.r.Update(hosts, nil)
	return l
}

func (l *learner) now() time.Time { return time.Unix(0, l.clock.Load()) }

// stream has answers of 200 tokens come at that speed.
func (l *learner) stream(tps float64, times int) {
	l.t.Helper()
	for range times {
		var lease router.Lease
		if err := l.r.Pick(&router.Request{Model: "m"}, &lease); err != nil {
			l.t.Fatal(err)
		}
		lease.FirstContent(200 * time.Millisecond)
		took := time.Duration(199 / tps * float64(time.Second))
		l.clock.Add(int64(took + 200*time.Millisecond))
		lease.Done(router.Result{Class: outcome.Success, OutputTokens: 200, Streamed: took})
	}
}

// tps is how fast the host is taken to be.
func (l *learner) tps() float64 { return 1e3 / *l.r.Hosts()[0].ITLMillis }

func (l *learner) keeper(s state.Store, id string) *Keeper {
	return NewKeeper(KeeperOptions{Router: l.r, Store: s, ID: id, Now: l.now})
}

// keep runs a keeper until ctx is done, which is now, so that it loads and saves once.
func (l *learner) keep(s state.Store, id string) {
	l.t.Helper()
	ctx, cancel := context.WithCancel(l.t.Context())
	k := l.keeper(s, id)
	k.load(ctx)
	cancel()
	if err := k.Run(ctx); !errors.Is(err, context.Canceled) {
		l.t.Error(err)
	}
}

// TestKeeper has a router that starts anew know how fast its host is: from files, across restarts, and from a Redis that others have
// written to, all of them together.
func TestKeeper(t *testing.T) {
	dir := t.TempDir()
	redis := redistest.Start(t)
	open := func() state.Store {
		r, err := state.Open(state.Options{URL: redis.URL(), Timeout: patience / 3})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		return r.Docs(state.DocsOptions{})
	}
	for name, store := range map[string]func() state.Store{
		"files": func() state.Store { return state.NewFiles(dir, nil) },
		"redis": open,
	} {
		t.Run(name, func(t *testing.T) {
			var clock atomic.Int64
			clock.Store(1_800_000_000_000_000_000)
			cold := newLearner(t, &clock, host("a"))
			usual := cold.tps()
			near := func(what string, l *learner, want float64) {
				t.Helper()
				if got := l.tps(); math.Abs(got/want-1) > 0.1 {
					t.Errorf("%s: %.1f tokens a second, want about %.1f; %.1f is usual", what, got, want, usual)
				}
			}
			cold.keep(store(), "idle")
			if docs, err := store().Load(t.Context(), LearnedKind); err != nil || len(docs) > 0 {
				t.Errorf("one who has learned nothing has written %v, %v", docs, err)
			}
			one, two := newLearner(t, &clock, host("a")), newLearner(t, &clock, host("a"))
			one.stream(20, 30)
			two.stream(20, 30)
			one.keep(store(), "one")
			two.keep(store(), "two")
			clock.Add(int64(10 * time.Second))

			next := newLearner(t, &clock, host("a"))
			near("before", next, usual)
			next.keep(store(), "next")
			near("after a restart", next, 20)
			next.stream(10, 60) // the host has changed
			next.keep(store(), "next")
			clock.Add(int64(together + time.Second))
			last := newLearner(t, &clock, host("a"))
			last.keeper(store(), "last").load(t.Context())
			if got := last.tps(); got > 15 && got < 20 {
				t.Errorf("%.1f tokens a second: what those said who are gone is mixed with what is newer", got)
			}
			last.stream(20, 1)
			clock.Add(int64(keepOld))
			last.keep(store(), "last")
			if docs, err := store().Load(t.Context(), LearnedKind); err != nil || len(docs) != 1 {
				t.Errorf("after a day %d documents are left, %v", len(docs), err)
			}
		})
	}
}

// TestKeeperMost keeps some documents only, the newest.
func TestKeeperMost(t *testing.T) {
	var clock atomic.Int64
	clock.Store(1_800_000_000_000_000_000)
	s := state.NewMemory()
	for i := range keepMost + 5 {
		l := newLearner(t, &clock, host("a"))
		l.stream(20, 3)
		l.keep(s, fmt.Sprint("r", i))
	}
	docs, err := s.Load(t.Context(), LearnedKind)
	if err != nil || len(docs) != keepMost {
		t.Errorf("%d documents, %v", len(docs), err)
	}
	if _, ok := docs["r4"]; ok {
		t.Error("the oldest are not those that went")
	}
}

// TestKeeperOdd takes no document that is none, and goes on when the store does not answer.
func TestKeeperOdd(t *testing.T) {
	var clock atomic.Int64
	clock.Store(1_800_000_000_000_000_000)
	s := state.NewMemory()
	for name, body := range map[string]string{
		"empty": "", "text": "x", "null": "null", "list": "[]", "odd": `{"at":"2027-01-15T08:00:00Z","memory":{"hosts":[{"id":"a","served":["m"],"speed":{"a":-1,"count":9}}]}}`,
	} {
		if _, err := s.Put(t.Context(), LearnedKind, name, 0, []byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	l := newLearner(t, &clock, host("a"))
	before := l.tps()
	l.keep(s, "me")
	if got := l.tps(); got != before {
		t.Errorf("%.1f tokens a second, %.1f before", got, before)
	}
	redis := redistest.Start(t)
	r, err := state.Open(state.Options{URL: redis.URL(), Timeout: patience / 3})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	k := l.keeper(r.Docs(state.DocsOptions{}), "me")
	l.stream(20, 5)
	k.save(t.Context())
	redis.Stop()
	k.load(t.Context())
	l.stream(20, 5)
	k.save(t.Context())
	redis.Start()       // empty
	k.save(t.Context()) // which finds out
	k.save(t.Context())
	if docs, err := r.Docs(state.DocsOptions{}).Load(t.Context(), LearnedKind); err != nil || len(docs) != 1 {
		t.Errorf("after Redis came back empty: %v, %v", docs, err)
	}
}

// TestKeeperShares has a replica that runs already know a host that others have measured.
func TestKeeperShares(t *testing.T) {
	var clock atomic.Int64
	clock.Store(1_800_000_000_000_000_000)
	s := state.NewMemory()
	one, two := newLearner(t, &clock, host("a")), newLearner(t, &clock)
	k := two.keeper(s, "two")
	k.load(t.Context())
	one.stream(20, 30)
	one.keep(s, "one")
	two.r.Update([]endpoint.Endpoint{host("a")}, nil)
	usual := two.tps()
	k.tidy(t.Context())
	if got := two.tps(); math.Abs(got/20-1) > 0.1 {
		t.Errorf("%.1f tokens a second, want about 20; %.1f is usual", got, usual)
	}
	two.stream(40, 30)
	k.save(t.Context())
	before := two.tps()
	k.tidy(t.Context())
	if got := two.tps(); got != before {
		t.Errorf("%.1f tokens a second, %.1f as it had measured itself", got, before)
	}
}

// TestKeepCurrent leaves out documents that are too old, and those of a clock that is wrong.
func TestKeepCurrent(t *testing.T) {
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	k := NewKeeper(KeeperOptions{Now: func() time.Time { return now }})
	for at, want := range map[time.Time]int{
		now.Add(-keepOld): 0, now.Add(1 - keepOld): 1, now: 1, now.Add(5 * time.Minute): 1, now.Add(365 * 24 * time.Hour): 0,
	} {
		b, err := json.Marshal(learned{At: at})
		if err != nil {
			t.Fatal(err)
		}
		if got := len(k.decode(map[string]state.Doc{"x": {Version: 1, Body: b}})); got != want {
			t.Errorf("of %s %d are taken, want %d", at, got, want)
		}
	}
}
