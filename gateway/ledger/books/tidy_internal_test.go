package books

import (
	"fmt"
	"math"
	"path/filepath"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3"

	"headrace/gateway/ledger"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// slow leaves out what the race detector makes too slow.
func slow(t *testing.T) {
	t.Helper()
	if underRace {
		t.Skip("too slow under the race detector, and nothing in it is shared")
	}
}

// Requests that come one a second, each a block of its own, go when their time is over, also behind one whose clock was far ahead. Names
// that no sum is of any more go with the sums.
func TestRequestsGoInTime(t *testing.T) {
	slow(t)
	at := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
	const keep = 10 * time.Minute
	b := New(Options{Path: filepath.Join(t.TempDir(), "ledger.db"), Flush: time.Second, Keep: keep, KeepSums: time.Hour, Now: func() time.Time { return at }})
	record := func(id string, at time.Time) {
		b.Record(&ledger.Record{ID: id, At: at, Model: id, Known: true, Class: outcome.Success})
		if err := b.flush(true); err != nil {
			t.Fatal(err)
		}
	}
	record("ahead", at.Add(1000*time.Hour))
	for i := range 2400 {
		record(fmt.Sprint("r", i), at)
		at = at.Add(time.Second)
	}
	at = at.Add(2 * time.Hour)
	record("late", at)
	record("later", at) // after the round
	cells := 0
	if err := query(b.f.db, "SELECT count(*) FROM cells", func(st *sqlite3.Stmt) error {
		cells = st.ColumnInt(0)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if cells != 3 { // of ahead, late and later
		t.Errorf("%d cells have a name, want 3", cells)
	}
	b.f.close()
	var left []string
	if err := Each(b.opt.Path, func(r *ledger.Record) bool {
		left = append(left, r.ID)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(left) != "[ahead late later]" {
		t.Errorf("%d requests are left: %.100v", len(left), left)
	}
}

// While one comes a second nothing stays longer than it may, its block and a round take.
func TestRequestsGoMeanwhile(t *testing.T) {
	slow(t)
	at := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
	const keep = 10 * time.Minute
	b := New(Options{Path: filepath.Join(t.TempDir(), "ledger.db"), Flush: time.Second, Keep: keep, Now: func() time.Time { return at }})
	for i := range 2400 {
		b.Record(&ledger.Record{ID: fmt.Sprint("r", i), At: at, Class: outcome.Success})
		if err := b.flush(true); err != nil {
			t.Fatal(err)
		}
		at = at.Add(time.Second)
	}
	b.f.close()
	n, old := 0, 0
	if err := Each(b.opt.Path, func(r *ledger.Record) bool {
		n++
		if at.Sub(r.At) > keep+keep/20+tidyEvery {
			old++
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if old > 0 || n < 600 {
		t.Errorf("%d of %d requests are older than they may be", old, n)
	}
}

// Names of models that nobody serves are one in the sums, however many callers think up, and each request keeps its own.
func TestUnknownModelsAreOne(t *testing.T) {
	at := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
	b := New(Options{Path: filepath.Join(t.TempDir(), "ledger.db"), Flush: time.Second, Now: func() time.Time { return at }})
	const n = 1500 // some blocks
	for i := range n {
		b.Record(&ledger.Record{ID: fmt.Sprint("r", i), At: at, Model: fmt.Sprint("no-such-", i), Key: "a", Class: outcome.CallerFault})
	}
	b.Record(&ledger.Record{ID: "known", At: at, Model: "llama", Known: true, Key: "a", Class: outcome.Success})
	b.Record(&ledger.Record{ID: "nameless", At: at, Key: "a", Class: outcome.CallerFault})
	if err := b.flush(true); err != nil {
		t.Fatal(err)
	}
	p, err := b.f.period(at, at.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for _, l := range p.Report([]Dim{ByModel}, nil).Lines {
		got[l.Group[0]] = l.N[Requests]
	}
	if fmt.Sprint(got) != fmt.Sprint(map[string]int64{noModel: n, "llama": 1, none: 1}) || len(p.Rollups) != 3 {
		t.Errorf("%d sums, by model %v", len(p.Rollups), got)
	}
	for id, want := range map[string]string{"r0": "no-such-0", "r700": "no-such-700", "r1499": "no-such-1499", "known": "llama", "nameless": ""} {
		if r, ok, err := b.f.find(id); err != nil || !ok || r.Model != want || r.Key != "a" {
			t.Errorf("%s is of model %q, found %v, %v; want %q", id, r.Model, ok, err, want)
		}
	}
	b.f.close()
}

// One figure that is no number keeps no other from being written.
func TestOddFigures(t *testing.T) {
	at := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
	b := New(Options{Path: filepath.Join(t.TempDir(), "ledger.db"), Flush: time.Second, Now: func() time.Time { return at }})
	for key, usd := range map[string]float64{"a": math.NaN(), "b": math.Inf(1), "c": 2} {
		b.Record(&ledger.Record{ID: key, At: at, Key: key, Class: outcome.Success, Attempts: []ledger.Attempt{
			{Provider: "p", Endpoint: "e", Class: outcome.Success, USD: usd, USDKnown: true, Usage: ledger.Usage{Basis: endpoint.PerHour}},
		}})
	}
	if err := b.flush(true); err != nil {
		t.Fatal(err)
	}
	p, err := b.f.period(at, at.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if r := p.Report(nil, nil); r.Total.N[Requests] != 3 || r.Total.Used() != 2 {
		t.Errorf("%d requests with $%v, want 3 with $2", r.Total.N[Requests], r.Total.Used())
	}
	b.f.close()
}
