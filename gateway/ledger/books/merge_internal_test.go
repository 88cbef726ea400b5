package books

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3"

	"headrace/gateway/ledger"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// TestCompact puts blocks of single requests together, and every request is found as it was, in the same order. None of what was put together
// covers more than a twentieth of the time for which requests are kept.
func TestCompact(t *testing.T) {
	slow(t)
	at := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test's
	const keep = 24 * time.Hour
	b := New(Options{Path: filepath.Join(t.TempDir(), "ledger.db"), Flush: time.Second, Keep: keep, Now: func() time.Time { return at }})
	record := func(i, attempts int) {
		r := &ledger.Record{
			ID: fmt.Sprint("r", i), At: at, Key: fmt.Sprint("k", i%3), Model: fmt.Sprint("m", i%2), Known: i%5 > 0, Class: outcome.Success, Prompt: int64(i), Output: 3, Tries: attempts,
			USD: float64(i) / 7, USDKnown: true,
		}
		for k := range attempts {
			host := fmt.Sprint("h", (i+k)%4)
			r.Attempts = append(r.Attempts, ledger.Attempt{Endpoint: endpoint.ID("vast:" + host), Provider: "vast", Served: "s" + host, Class: outcome.Success, USD: 0.25, USDKnown: true, Output: 3})
			r.Served, r.Provider, r.Endpoint = "s"+host, "vast", endpoint.ID("vast:"+host)
		}
		b.Record(r)
	}
	n := 0
	for i := range 1500 {
		for range 1 + rng.IntN(2) {
			record(n, rng.IntN(4))
			n++
		}
		if i == 700 { // a burst fills blocks of its own
			for range 1300 {
				record(n, 1)
				n++
			}
		}
		if err := b.flush(true); err != nil {
			t.Fatal(err)
		}
		at = at.Add(time.Second + time.Duration(rng.IntN(4))*time.Second)
	}
	var before []ledger.Record
	read := func() (rs []ledger.Record) {
		if err := query(b.f.db, "SELECT body FROM requests ORDER BY block", func(st *sqlite3.Stmt) error {
			return readBlock(st.ColumnRawBlob(0), func(r *ledger.Record) bool {
				rs = append(rs, *r)
				return true
			})
		}); err != nil {
			t.Fatal(err)
		}
		return rs
	}
	before = read()
	if len(before) != n {
		t.Fatalf("%d of %d", len(before), n)
	}
	for range 3 {
		b.f.compact(keep)
	}
	if after := read(); !reflect.DeepEqual(before, after) {
		for i := range min(len(before), len(after)) {
			if !reflect.DeepEqual(before[i], after[i]) {
				t.Fatalf("request %d was %+v, is %+v", i, before[i], after[i])
			}
		}
		t.Fatalf("%d requests were there, %d are", len(before), len(after))
	}
	blocks, widest := 0, int64(0)
	if err := query(b.f.db, "SELECT n,until-since,length(ids) FROM requests", func(st *sqlite3.Stmt) error {
		blocks++
		widest = max(widest, st.ColumnInt64(1))
		if st.ColumnInt64(0)*8 != st.ColumnInt64(2) || st.ColumnInt64(0) > blockSize {
			t.Errorf("a block of %d with %d bytes of hashes", st.ColumnInt64(0), st.ColumnInt64(2))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d blocks of %d requests, the widest of %v", blocks, n, time.Duration(widest)*time.Microsecond)
	if blocks > 40 || widest > (keep/20).Microseconds() {
		t.Errorf("%d blocks, the widest of %v", blocks, time.Duration(widest)*time.Microsecond)
	}
	for range 50 {
		want := before[rng.IntN(n)]
		if got, ok, err := b.f.find(want.ID); err != nil || !ok || !reflect.DeepEqual(got, want) {
			t.Fatalf("found %v, %v: %+v, want %+v", ok, err, got, want)
		}
	}
	b.f.close()
}

// TestSignOfLife is written while nothing else is, and tells replicas' reports for how long each gateway ran.
func TestSignOfLife(t *testing.T) {
	at := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
	b := New(Options{Path: filepath.Join(t.TempDir(), "ledger.db"), Flush: time.Second, Now: func() time.Time { return at }})
	began := at
	for range 3600 {
		if err := b.flush(false); err != nil {
			t.Fatal(err)
		}
		at = at.Add(time.Second)
	}
	p, err := b.f.period(began, at)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Runs) != 1 || at.Sub(p.Runs[0].To) > aliveEvery+time.Second || b.f.writes > 100 {
		t.Errorf("runs %v at %v, %d writes", p.Runs, at, b.f.writes)
	}
	b.f.close()
}

// TestHostsComeAndGo has hosts of a year in memory: when there is no room for names any more those of the oldest hours' hosts go, and no
// key, model or dollar.
func TestHostsComeAndGo(t *testing.T) {
	at := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
	b := New(Options{Flush: time.Second, Now: func() time.Time { return at }})
	const hours, hosts = 60, 20
	b.kept.sums.most = 1000
	for h := range hours {
		for i := range hosts {
			b.Record(&ledger.Record{
				ID: fmt.Sprint("r", h, ".", i), At: at, Key: fmt.Sprint("team-", i%2), Model: "m", Known: true, Class: outcome.Success, USD: 1, USDKnown: true,
				Attempts: []ledger.Attempt{{Endpoint: endpoint.ID(fmt.Sprint("vast:", h*hosts+i)), Provider: "vast", Served: "m", Class: outcome.Success, USD: 1, USDKnown: true, Usage: ledger.Usage{Basis: endpoint.PerHour}}},
			})
		}
		b.stay(at)
		at = at.Add(time.Hour)
	}
	p := Period{Since: at.Add(-hours * time.Hour), Until: at}
	b.kept.period(&p, at)
	p = Merge(p)
	r := p.Report([]Dim{ByKey}, nil)
	for _, l := range r.Lines {
		if l.Used() != hours*hosts/2 {
			t.Errorf("%v used $%v", l.Group, l.Used())
		}
	}
	if len(r.Lines) != 2 || len(p.Rollups) > b.kept.sums.most {
		t.Errorf("%d keys, %d cells", len(r.Lines), len(p.Rollups))
	}
	last := p.Report([]Dim{ByHost}, nil)
	names := map[string]bool{}
	for _, l := range last.Lines {
		names[l.Group[0]] = true
	}
	if !names[fmt.Sprint("vast:", hours*hosts-1)] || !names["vast:"+otherName] || names["vast:0"] {
		t.Errorf("of %d hosts: the last one %t, the first %t", len(names), names[fmt.Sprint("vast:", hours*hosts-1)], names["vast:0"])
	}
}

// TestHoursOfAFailingDisk has hosts' hours that could not be written in what a running gateway tells, beside those that were.
func TestHoursOfAFailingDisk(t *testing.T) {
	at := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
	began := at
	b := New(Options{Path: filepath.Join(t.TempDir(), "ledger.db"), Flush: time.Second, Now: func() time.Time { return at }})
	b.Follow([]endpoint.Endpoint{{ID: "vast:a", Provider: "vast", State: endpoint.Ready, Price: endpoint.Price{Basis: endpoint.PerHour, USDPerHour: 6}}})
	pass := func(d time.Duration) {
		for ; d > 0; d -= time.Minute {
			at = at.Add(time.Minute)
			b.mu.Lock()
			b.hours.hosts["vast:a"].accrue("vast:a", at)
			b.mu.Unlock()
		}
	}
	pass(10 * time.Minute)
	if err := b.flush(true); err != nil {
		t.Fatal(err)
	}
	pass(10 * time.Minute) // nobody can write it
	p, err := b.f.period(began, at)
	if err != nil {
		t.Fatal(err)
	}
	b.waits(&p)
	p = Merge(p)
	if len(p.Hours) != 1 || p.Hours[0].USD < 1.99 || p.Hours[0].USD > 2.01 {
		t.Errorf("%+v, want $2", p.Hours)
	}
	b.f.close()
}

// TestUnwatchedAtBegin counts the time before the first gateway ran.
func TestUnwatchedAtBegin(t *testing.T) {
	at := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
	hour := func(n int) time.Time { return at.Add(time.Duration(n) * time.Hour) }
	for name, tc := range map[string]struct {
		runs []Span
		want time.Duration
	}{
		"none":               {nil, 0},
		"an hour of a day":   {[]Span{{hour(23), hour(24)}}, 23 * time.Hour},
		"from before":        {[]Span{{hour(-5), hour(20)}}, 0},
		"a gap, and overlap": {[]Span{{hour(-5), hour(2)}, {hour(6), hour(9)}, {hour(7), hour(20)}}, 4 * time.Hour},
	} {
		p := Period{Since: at, Until: hour(24), Runs: tc.runs}
		if got := p.unwatched(); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
	p, q := Period{Runs: []Span{{hour(0), hour(2)}, {hour(3), hour(4)}}}, Period{Runs: []Span{{hour(3), hour(5)}}}
	if !Same(&p, &q) || Same(&q, &Period{Runs: []Span{{hour(4), hour(5)}}}) {
		t.Error("Same does not tell ledgers by when their gateways began")
	}
}
