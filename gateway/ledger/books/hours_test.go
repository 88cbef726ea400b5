package books_test

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3"

	"headrace/gateway/ledger/books"
	"headrace/router/endpoint"
)

func rented(id string, usd float64, s endpoint.State) endpoint.Endpoint {
	return endpoint.Endpoint{
		ID: endpoint.ID(id), Provider: "vast", State: s, Tenure: endpoint.Interruptible,
		Price: endpoint.Price{Basis: endpoint.PerHour, USDPerHour: usd, USDPerHourStopped: usd / 10},
	}
}

func workers(id string, n int) endpoint.Endpoint {
	return endpoint.Endpoint{
		ID: endpoint.ID(id), Provider: "runpod", State: endpoint.Ready, Tenure: endpoint.Serverless, Workers: n,
		Price: endpoint.Price{Basis: endpoint.PerWorkerSecond, USDPerWorkerSecond: 0.001, ColdStart: 30 * time.Second, IdleTimeout: 5 * time.Second},
	}
}

// tick lets time pass in steps that the books are told of, as Run does.
func tick(t *testing.T, c *clock, b *books.Books, d time.Duration) {
	t.Helper()
	for ; d > 0; d -= 30 * time.Second {
		c.pass(min(d, 30*time.Second))
		if err := b.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// hostHours are by host, of all hours together.
func hostHours(p *books.Period) map[string]books.HostHour {
	m := map[string]books.HostHour{}
	for _, h := range p.Hours {
		s := m[h.Host]
		s.Seconds += h.Seconds
		s.Up += h.Up
		s.USD += h.USD
		s.Starts += h.Starts
		s.ColdUSD += h.ColdUSD
		m[h.Host] = s
	}
	return m
}

func TestHostsHours(t *testing.T) {
	c, path := newClock(), filepath.Join(t.TempDir(), "ledger.db")
	began := c.now()
	b, stop := open(t, c, path, nil)
	a, w := rented("vast:a", 0.90, endpoint.Ready), workers("runpod:w", 1)
	static := endpoint.Endpoint{ID: "static:s", Provider: "static", State: endpoint.StateUnknown, Price: endpoint.Price{Basis: endpoint.PerHour, USDPerHour: 2}}
	token := endpoint.Endpoint{ID: "static:api", Provider: "static", Price: endpoint.Price{Basis: endpoint.PerToken, USDPerMTokOut: 1}}
	fleet := func(eps ...endpoint.Endpoint) { b.Follow(append(eps, static, token)) }
	fleet(a, w)
	tick(t, c, b, 40*time.Minute) // a $0.60, w $2.40
	a.State = endpoint.Preempted
	w.Workers = 3 // two more: $0.06 for their starts
	fleet(a, w)
	tick(t, c, b, 30*time.Minute) // over the end of the hour; a $0.045 for its disk, w $5.40
	a.State, a.Price.Accrues = endpoint.Ready, endpoint.AccruesNothing
	w.Workers = 0
	fleet(a, w)
	tick(t, c, b, 10*time.Minute)
	a.Price.Accrues, a.Price.USDPerHour = endpoint.AccruesRent, 1.20 // dearer
	fleet(a)                                                         // and the endpoint is deleted
	tick(t, c, b, 10*time.Minute)                                    // a $0.20
	stop()

	// Nobody watches for an hour, then another process does.
	c.pass(time.Hour)
	b, _ = open(t, c, path, nil)
	b.Follow([]endpoint.Endpoint{a})
	tick(t, c, b, 10*time.Minute) // a $0.20
	// The process was stopped, as by SIGSTOP or its machine's sleep: what hosts cost meanwhile nobody knows.
	c.pass(time.Hour)
	tick(t, c, b, 10*time.Minute) // a $0.19

	p := period(t, b, began, c.now())
	got := hostHours(&p)
	for host, want := range map[string]books.HostHour{
		"vast:a":   {Seconds: 6600 - 30, Up: 4200 - 30, USD: 0.60 + 0.045 + 0.20 + 0.20 + 0.19}, // the first step after the sleep is part of the gap
		"runpod:w": {Seconds: 4800, Up: 40*60 + 3*30*60 + 60, USD: 2.40 + 0.06 + 5.40, Starts: 2, ColdUSD: 0.06},
		"static:s": {Seconds: 5400, Up: 5400, USD: 3},
	} {
		g := got[host]
		if math.Abs(g.Seconds-want.Seconds) > 1e-6 || math.Abs(g.Up-want.Up) > 1e-6 || math.Abs(g.USD-want.USD) > 1e-9 || g.Starts != want.Starts || math.Abs(g.ColdUSD-want.ColdUSD) > 1e-12 {
			t.Errorf("%s: %+v, want %+v", host, g, want)
		}
	}
	if _, there := got["static:api"]; there || len(got) != 3 {
		t.Errorf("hosts %v", got)
	}
	for _, h := range p.Hours {
		if h.Seconds > 3600 || h.Hour%3600 != 0 {
			t.Errorf("hour %+v", h)
		}
	}
	r := p.Report(nil, nil)
	if d := r.Unwatched - time.Hour; d < 0 || d > time.Minute { // the second gap was within a run
		t.Errorf("unwatched for %v", r.Unwatched)
	}
}

// What a host has cost between two times follows its price of each moment.
func TestBetween(t *testing.T) {
	c := newClock()
	b, _ := open(t, c, "", nil)
	a := rented("vast:a", 1, endpoint.Ready)
	if _, known := b.Between("vast:a", c.now(), c.now()); known {
		t.Error("known before it was seen")
	}
	t0 := c.now()
	b.Follow([]endpoint.Endpoint{a})
	tick(t, c, b, 30*time.Minute)
	t1 := c.now()
	a.Price.USDPerHour = 3
	b.Follow([]endpoint.Endpoint{a})
	tick(t, c, b, 30*time.Minute)
	t2 := c.now()
	b.Follow(nil)
	tick(t, c, b, 30*time.Minute)
	for _, tc := range []struct {
		from, to time.Time
		want     float64 // NaN when not known
	}{
		{t0, t1, 0.5},
		{t1, t2, 1.5},
		{t0, t2, 2},
		{t0.Add(15 * time.Minute), t1.Add(10 * time.Minute), 0.25 + 0.5},
		{t2, c.now(), 0},
		{t0, c.now(), 2},
		{t0.Add(-time.Second), t1, math.NaN()},
	} {
		usd, known := b.Between("vast:a", tc.from, tc.to)
		if known == math.IsNaN(tc.want) || known && math.Abs(usd-tc.want) > 1e-9 {
			t.Errorf("%v to %v: $%v, %v, want $%v", tc.from.Sub(t0), tc.to.Sub(t0), usd, known, tc.want)
		}
	}
	c.pass(10 * time.Minute) // nobody watched
	b.Follow([]endpoint.Endpoint{a})
	tick(t, c, b, time.Minute)
	if _, known := b.Between("vast:a", t0, c.now()); known {
		t.Error("known over a gap")
	}
}

// A file of a version to come is left as it is, and money is kept in memory.
func TestNewerFile(t *testing.T) {
	c, path := newClock(), filepath.Join(t.TempDir(), "ledger.db")
	db, err := sqlite3.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Exec("CREATE TABLE later (x); PRAGMA user_version=99"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	b, _ := open(t, c, path, nil)
	b.Record(answered("a", c.now(), 1))
	if err := b.Flush(t.Context()); !errors.Is(err, books.ErrNewer) {
		t.Fatalf("written: %v", err)
	}
	from, to := c.hour()
	if p := period(t, b, from, to); p.Rollups[0].Used() != 1 {
		t.Errorf("%+v", p.Rollups)
	}
	if _, err := books.Read(path, from, to); !errors.Is(err, books.ErrNewer) {
		t.Errorf("read: %v", err)
	}
	if err := os.WriteFile(path, []byte(strings.Repeat("no database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := books.Read(path, from, to); err == nil {
		t.Error("a file that is no database was read")
	}
}

// Old requests go by age and by size, some at a time; sums stay as long as they are to.
func TestTidies(t *testing.T) {
	c, path := newClock(), filepath.Join(t.TempDir(), "ledger.db")
	began := c.now()
	b, _ := open(t, c, path, func(o *books.Options) { o.Keep, o.KeepSums = 2*time.Hour, 30*24*time.Hour })
	record := func(id string) {
		t.Helper()
		b.Record(answered(id, c.now(), 1))
		if err := b.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	record("old")
	c.pass(3 * time.Hour)
	record("new")
	found := func(id string) bool {
		t.Helper()
		r, ok, err := b.Find(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if ok && (r.ID != id || r.USD != 1 || r.Model != "llama" || r.Key != "team-a" || len(r.Attempts) != 1 || r.Attempts[0].Endpoint != "vast:1" || r.Attempts[0].Prompt != 100) {
			t.Errorf("%s reads back as %+v", id, r)
		}
		return ok
	}
	if found("old") || !found("new") || found("never") {
		t.Errorf("old %v, new %v", found("old"), found("new"))
	}
	if p := period(t, b, began, c.now().Add(time.Hour)); len(p.Rollups) != 2 {
		t.Errorf("sums went with the requests: %+v", p.Rollups)
	}
	c.pass(31 * 24 * time.Hour)
	record("later")
	if p := period(t, b, began, c.now().Add(time.Hour)); len(p.Rollups) != 1 {
		t.Errorf("sums of a month ago: %+v", p.Rollups)
	}
}

func TestStaysSmall(t *testing.T) {
	c, path := newClock(), filepath.Join(t.TempDir(), "ledger.db")
	const most = 1 << 20
	b, _ := open(t, c, path, func(o *books.Options) { o.MaxBytes = most })
	n := 0
	for range 40 {
		for range 1000 {
			n++
			b.Record(answered("req_"+strings.Repeat("x", 20)+time.Duration(n).String(), c.now().Add(time.Duration(n)), 1))
		}
		if err := b.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if s := b.Status(); s.Bytes > 2*most || s.Dropped > 0 {
		t.Errorf("%d bytes after %d requests", s.Bytes, n)
	}
	from, to := c.hour()
	if p := period(t, b, from, to); p.Rollups[0].N[books.Requests] != int64(n) {
		t.Errorf("%d of %d requests are in the sums", p.Rollups[0].N[books.Requests], n)
	}
}

// A record costs its request no allocation but for room now and then.
func TestRecordAllocatesNothing(t *testing.T) {
	c := newClock()
	for _, path := range []string{"", filepath.Join(t.TempDir(), "ledger.db")} {
		b := books.New(books.Options{Path: path, Flush: time.Hour, Now: c.now})
		ids := make([]string, 400)
		for i := range ids {
			ids[i] = "req_" + time.Duration(i).String()
		}
		r, i := answered("first", c.now(), 1), 0
		b.Record(r)
		if n := testing.AllocsPerRun(len(ids)-10, func() { r.ID = ids[i]; i++; b.Record(r) }); n > 0 {
			t.Errorf("path %q: %v allocations", path, n)
		}
	}
}

// A host that attempts have found gone is paid for until then, once its control plane says that it was taken away.
func TestLostIsNotPaid(t *testing.T) {
	c := newClock()
	b, _ := open(t, c, "", nil)
	t0 := c.now()
	a := rented("vast:a", 3.6, endpoint.Ready) // a tenth of a cent a second
	a.Price.USDPerHourStopped = 0
	b.Follow([]endpoint.Endpoint{a})
	tick(t, c, b, time.Minute)
	b.Lost("vast:a")
	tick(t, c, b, time.Minute)
	b.Back("vast:a") // a false alarm
	tick(t, c, b, time.Minute)
	b.Lost("vast:a")
	lost := c.now()
	tick(t, c, b, time.Minute)
	b.Lost("vast:a") // it is still so
	a.State = endpoint.Preempted
	b.Follow([]endpoint.Endpoint{a})
	tick(t, c, b, time.Minute)
	p := period(t, b, t0, c.now())
	if h := hostHours(&p)["vast:a"]; math.Abs(h.USD-0.18) > 1e-9 || math.Abs(h.Up-180) > 1e-6 || h.Seconds != 300 {
		t.Errorf("%+v, want three minutes of five", h)
	}
	for _, tc := range []struct {
		from, to time.Time
		want     float64
	}{{t0, lost, 0.18}, {lost, c.now(), 0}, {t0, c.now(), 0.18}} {
		if usd, known := b.Between("vast:a", tc.from, tc.to); !known || math.Abs(usd-tc.want) > 1e-9 {
			t.Errorf("%v to %v: $%v, %v, want $%v", tc.from.Sub(t0), tc.to.Sub(t0), usd, known, tc.want)
		}
	}
}

// An endpoint whose workers nobody has counted yet books nothing, and none of them for started.
func TestWorkersUnseen(t *testing.T) {
	c := newClock()
	b, _ := open(t, c, "", nil)
	t0 := c.now()
	w := workers("runpod:w", 0)
	w.State = endpoint.StateUnknown
	b.Follow([]endpoint.Endpoint{w})
	tick(t, c, b, time.Minute)
	w.State, w.Workers = endpoint.Ready, 2
	b.Follow([]endpoint.Endpoint{w})
	tick(t, c, b, time.Minute)
	w.State = endpoint.StateUnknown // its health does not answer for a while
	w.Workers = 0
	b.Follow([]endpoint.Endpoint{w})
	tick(t, c, b, time.Minute)
	p := period(t, b, t0, c.now())
	if h := hostHours(&p)["runpod:w"]; h.Starts != 0 || math.Abs(h.USD-2*120*0.001) > 1e-9 || h.Seconds != 120 {
		t.Errorf("%+v", h)
	}
}
