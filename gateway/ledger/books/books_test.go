package books_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"headrace/gateway/ledger"
	"headrace/gateway/ledger/books"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// clock is the books' time. It stands still unless it is moved.
type clock struct{ at atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.at.Store(time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC).UnixNano())
	return c
}

func (c *clock) now() time.Time       { return time.Unix(0, c.at.Load()) }
func (c *clock) pass(d time.Duration) { c.at.Add(int64(d)) }
func near(a, b float64) bool          { return math.Abs(a-b) <= 1e-9*(1+math.Abs(a)) }
func (c *clock) hour() (from, to time.Time) {
	f := c.now().Truncate(time.Hour)
	return f, f.Add(time.Hour)
}

// open starts books; the returned function stops them, as the end of the process does.
func open(t *testing.T, c *clock, path string, edit func(*books.Options)) (b *books.Books, stop func()) {
	t.Helper()
	o := books.Options{Path: path, Flush: time.Hour, Keep: 30 * 24 * time.Hour, KeepSums: 400 * 24 * time.Hour, Now: c.now}
	if edit != nil {
		edit(&o)
	}
	b = books.New(o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = b.Run(ctx, nil) }()
	over := false
	stop = func() {
		if !over {
			over = true
			cancel()
			<-done
		}
	}
	t.Cleanup(stop)
	return b, stop
}

// answered is a request that one host answered at once.
func answered(id string, at time.Time, usd float64) *ledger.Record {
	a := ledger.Attempt{
		Endpoint: "vast:1", Provider: "vast", Served: "llama-70b-awq", Class: outcome.Success, Status: 200, First: 200 * time.Millisecond, Duration: 2 * time.Second,
		Output: 50, USD: usd, USDKnown: true, Decision: router.Decision{MarginalUSD: usd / 100},
		Usage: ledger.Usage{Counted: true, Prompt: 100, Cached: 40, Reasoning: 5, Basis: endpoint.PerHour, Share: time.Second, PromptUSD: usd / 10},
	}
	return &ledger.Record{
		ID: id, At: at, Route: "/v1/chat/completions", Method: "POST", Model: "llama", Known: true, Key: "team-a", Served: a.Served, Stream: true, Endpoint: a.Endpoint,
		Provider: a.Provider, Status: 200, Class: outcome.Success, Finish: "stop", Attempts: []ledger.Attempt{a}, Tries: 1, TTFT: 300 * time.Millisecond,
		Duration: 2 * time.Second, TPS: 25, Prompt: 100, Cached: 40, Output: 50, Reasoning: 5, USD: usd, USDKnown: true,
	}
}

func period(t *testing.T, b *books.Books, from, to time.Time) books.Period {
	t.Helper()
	p, err := b.Period(t.Context(), from, to)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestKeepsAcrossRestarts(t *testing.T) {
	c, path := newClock(), filepath.Join(t.TempDir(), "state", "ledger.db")
	for round := range 3 {
		b, stop := open(t, c, path, nil)
		for i := range 100 {
			b.Record(answered(fmt.Sprint("req_", round, "_", i), c.now(), 0.001))
		}
		from, to := c.hour()
		p := period(t, b, from, to)
		if len(p.Rollups) != 1 {
			t.Fatalf("round %d: %d rollups: %+v", round, len(p.Rollups), p.Rollups)
		}
		r := p.Rollups[0]
		n := int64(100 * (round + 1))
		if r.Key != "team-a" || r.Model != "llama" || r.Served != "llama-70b-awq" || r.Provider != "vast" || r.Host != "vast:1" || r.Hour != from.Unix() {
			t.Errorf("rollup of %+v", r.Cell)
		}
		if r.N[books.Requests] != n || r.N[books.Attempts] != n || r.N[books.PromptTokens] != 100*n || r.N[books.CachedTokens] != 40*n || r.N[books.OutputTokens] != 50*n ||
			r.N[books.ReasoningTokens] != 5*n || r.N[books.EstimatedTokens] != 0 || !near(r.F[books.UsedPerHour], 0.001*float64(n)) || r.WastedUSD() != 0 ||
			!near(r.F[books.MarginalUSD], 0.00001*float64(n)) || !near(r.F[books.HostSeconds], float64(n)) {
			t.Errorf("round %d: %+v", round, r.Sums)
		}
		stop()
	}
	if left, err := filepath.Glob(path + "-*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("file %v, %v: others may read it", info, err)
	}
	from, to := c.hour()
	t.Chdir(filepath.Dir(path))
	p, err := books.Read("ledger.db", from, to) // nobody has it open
	if err != nil || len(p.Rollups) != 1 || p.Rollups[0].N[books.Requests] != 300 {
		t.Errorf("read without a gateway: %+v, %v", p.Rollups, err)
	}
}

// A record that is told twice counts once.
func TestCountsOnce(t *testing.T) {
	c, path := newClock(), filepath.Join(t.TempDir(), "ledger.db")
	r := answered("req_once", c.now(), 1)
	from, to := c.hour()
	b, _ := open(t, c, path, nil)
	b.Record(r)
	b.Record(r)
	if err := b.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.Record(r)
	if p := period(t, b, from, to); p.Rollups[0].N[books.Requests] != 1 || p.Rollups[0].Used() != 1 {
		t.Errorf("counted %d times, $%v", p.Rollups[0].N[books.Requests], p.Rollups[0].Used())
	}
	if s := b.Status(); s.Doubled != 2 || s.Records != 3 || s.Dropped != 0 {
		t.Errorf("status %+v", s)
	}
}

// What comes faster than it can be written is added up all the same.
func TestOverflowLosesNoMoney(t *testing.T) {
	c := newClock()
	for _, path := range []string{"", filepath.Join(t.TempDir(), "ledger.db")} {
		full := books.New(books.Options{Path: path, Flush: time.Hour, Now: c.now, MostWaiting: 512}) // nobody writes
		for i := range 2000 {
			full.Record(answered(fmt.Sprint("x", i), c.now(), 0.5))
		}
		dropped := int64(2000 - 512)
		if path == "" {
			dropped = 0 // nobody was promised more
		}
		if s := full.Status(); s.Dropped != dropped {
			t.Errorf("%d of 2000 were dropped, with room for 512", s.Dropped)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = full.Run(ctx, nil) }()
		from, to := c.hour()
		p := period(t, full, from, to)
		if p.Rollups[0].N[books.Requests] != 2000 || !near(p.Rollups[0].Used(), 1000) || p.Dropped != dropped {
			t.Errorf("path %q: %d requests, $%v, %d dropped", path, p.Rollups[0].N[books.Requests], p.Rollups[0].Used(), p.Dropped)
		}
		cancel()
		<-done
	}
}

// A disk that fails costs details and no money.
func TestDiskThatFails(t *testing.T) {
	c, dir := newClock(), t.TempDir()
	blocked := filepath.Join(dir, "state")
	if err := os.WriteFile(blocked, []byte("in the way"), 0o600); err != nil {
		t.Fatal(err)
	}
	b, stop := open(t, c, filepath.Join(blocked, "ledger.db"), nil)
	for i := range 10 {
		b.Record(answered(fmt.Sprint("a", i), c.now(), 1))
	}
	if err := b.Flush(t.Context()); err == nil {
		t.Fatal("written to a folder that is none")
	}
	from, to := c.hour()
	if p := period(t, b, from, to); len(p.Rollups) != 1 || p.Rollups[0].N[books.Requests] != 10 {
		t.Errorf("while the disk fails: %+v", p.Rollups)
	}
	if s := b.Status(); s.Error == "" || s.Failures == 0 || s.Dropped != 0 {
		t.Errorf("status %+v", s)
	}
	if err := os.Remove(blocked); err != nil {
		t.Fatal(err)
	}
	c.pass(time.Minute)
	b.Record(answered("b", c.now(), 1))
	if err := b.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := b.Status(); s.Error != "" || s.Written.IsZero() {
		t.Errorf("status after the disk is well: %+v", s)
	}
	if r, ok, err := b.Find(t.Context(), "a3"); !ok || err != nil || r.USD != 1 {
		t.Errorf("a request of before: %+v, %v, %v", r, ok, err)
	}
	stop()
	p, err := books.Read(filepath.Join(blocked, "ledger.db"), from, to)
	if err != nil || p.Rollups[0].N[books.Requests] != 11 || p.Rollups[0].Used() != 11 {
		t.Errorf("on disk: %+v, %v", p.Rollups, err)
	}
}

// TestReportsWhileTheDiskFails counts every request once, while reports are made of what cannot be written and requests go on.
func TestReportsWhileTheDiskFails(t *testing.T) {
	c, dir := newClock(), t.TempDir()
	blocked := filepath.Join(dir, "state")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b, _ := open(t, c, filepath.Join(blocked, "ledger.db"), nil)
	from, to := c.hour()
	const senders, each = 4, 500
	var wg sync.WaitGroup
	for s := range senders {
		wg.Go(func() {
			for i := range each {
				r := answered(fmt.Sprint("r", s, ".", i), c.now(), 0.5)
				r.Key = fmt.Sprint("team-", i%7)
				b.Record(r)
			}
		})
	}
	requests := func() (n int64) {
		p := period(t, b, from, to)
		for i := range p.Rollups {
			n += p.Rollups[i].N[books.Requests]
		}
		return n
	}
	for last := int64(0); last < senders*each; {
		n := requests()
		if n < last || n > senders*each {
			t.Errorf("%d requests after %d", n, last)
			break
		}
		last = n
	}
	wg.Wait()
	if err := os.Remove(blocked); err != nil {
		t.Fatal(err)
	}
	c.pass(time.Minute)
	if err := b.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := requests(); n != senders*each {
		t.Errorf("%d requests on disk, want %d", n, senders*each)
	}
}

// Two processes with one file would book hosts' hours twice: the second waits, and loses no money meanwhile.
func TestOneWriter(t *testing.T) {
	c, path := newClock(), filepath.Join(t.TempDir(), "ledger.db")
	first, stopFirst := open(t, c, path, nil)
	first.Record(answered("a", c.now(), 1))
	if err := first.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	second, stopSecond := open(t, c, path, nil)
	second.Record(answered("b", c.now(), 1))
	if err := second.Flush(t.Context()); !errors.Is(err, books.ErrTaken) {
		t.Fatalf("the second one writes too: %v", err)
	}
	stopFirst()
	if err := second.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	stopSecond()
	from, to := c.hour()
	if p, err := books.Read(path, from, to); err != nil || p.Rollups[0].Used() != 2 {
		t.Errorf("%+v, %v", p.Rollups, err)
	}
}

// BenchmarkRecord is what a request pays, and the writing of a second's worth of them.
func BenchmarkRecord(b *testing.B) {
	for name, path := range map[string]string{"memory": "", "file": filepath.Join(b.TempDir(), "l.db")} {
		b.Run(name, func(b *testing.B) {
			c := newClock()
			bk := books.New(books.Options{Flush: time.Hour, Now: c.now, Path: path})
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan struct{})
			go func() { defer close(done); _ = bk.Run(ctx, nil) }()
			r := answered("", c.now(), 0.001)
			ids := make([]string, 8192)
			for i := range ids {
				ids[i] = fmt.Sprintf("req_%026d", rand.Uint64()) //nolint:gosec // any
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				r.ID = ids[i%len(ids)]
				bk.Record(r)
				if i%len(ids) == len(ids)-1 {
					b.StopTimer()
					_ = bk.Flush(ctx)
					b.StartTimer()
				}
			}
			cancel()
			<-done
		})
	}
}

func BenchmarkWrite(b *testing.B) {
	c := newClock()
	bk := books.New(books.Options{Flush: time.Hour, Now: c.now, Path: filepath.Join(b.TempDir(), "l.db"), MostWaiting: 1 << 20})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = bk.Run(ctx, nil) }()
	rng := rand.New(rand.NewPCG(1, 1))
	n := 0
	for b.Loop() {
		b.StopTimer()
		for range 1000 {
			n++
			r := answered(fmt.Sprintf("req_%026d", rng.Uint64()), c.now().Add(time.Duration(n)*time.Millisecond), 0.001)
			r.Attempts[0].Endpoint = endpoint.ID(fmt.Sprint("vast:", n%20))
			bk.Record(r)
		}
		b.StartTimer()
		if err := bk.Flush(ctx); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/record")
	b.ReportMetric(float64(bk.Status().Bytes)/float64(n), "B/record")
	cancel()
	<-done
}

// The file is opened soon after the start, long before it is time to write: what that takes in memory and how it may fail is seen then.
func TestOpensEarly(t *testing.T) {
	t.Parallel()
	c, path := newClock(), filepath.Join(t.TempDir(), "ledger.db")
	b := books.New(books.Options{Path: path, Flush: time.Hour, Now: c.now})
	ctx, cancel := context.WithCancel(t.Context())
	asked, over := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		over <- b.Run(ctx, func() []books.Price {
			select {
			case asked <- struct{}{}: // by a write
			default:
			}
			return nil
		})
	}()
	select {
	case <-asked:
	case <-time.After(30 * time.Second):
		t.Error("nothing was written")
	}
	cancel()
	<-over
	from, to := c.hour()
	if p, err := books.Read(path, from, to); err != nil || len(p.Runs) != 1 {
		t.Errorf("%d runs, %v", len(p.Runs), err)
	}
}
