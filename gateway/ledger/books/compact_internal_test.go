package books

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3"

	"headrace/gateway/ledger"
	"headrace/router/outcome"
)

// singles has one request a step written, each in a block of its own.
func singles(t *testing.T, o Options, n int, step time.Duration) (b *Books, at *time.Time) {
	t.Helper()
	now := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
	o.Path, o.Flush, o.Now = filepath.Join(t.TempDir(), "ledger.db"), time.Second, func() time.Time { return now }
	b = New(o)
	t.Cleanup(b.f.close)
	for i := range n {
		b.Record(&ledger.Record{ID: fmt.Sprint("r", i), At: now, Key: "k", Model: "m", Known: true, Class: outcome.Success})
		if err := b.flush(true); err != nil {
			t.Fatal(err)
		}
		now = now.Add(step)
	}
	return b, &now
}

// blocks are how many requests each line of the file says it has, in order.
func blocks(t *testing.T, b *Books) (ns []int) {
	t.Helper()
	if err := query(b.f.db, "SELECT n FROM requests ORDER BY block", func(st *sqlite3.Stmt) error {
		ns = append(ns, st.ColumnInt(0))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return ns
}

// TestCompactAfterFailure puts together later what could not be written when it was first tried.
func TestCompactAfterFailure(t *testing.T) {
	b, _ := singles(t, Options{}, 210, time.Second)
	refused := 0
	b.f.db.CommitHook(func() bool { refused++; return false })
	b.f.compact(0)
	if ns := blocks(t, b); refused == 0 || len(ns) != 210 {
		t.Fatalf("%d blocks after %d commits that failed", len(ns), refused)
	}
	b.f.db.CommitHook(nil)
	b.f.compact(0)
	if ns := blocks(t, b); !slices.Equal(ns, []int{210}) {
		t.Errorf("blocks of %v requests", ns)
	}
}

// TestCompactPastDamage leaves a line that cannot be read where it is, and goes on with those around it.
func TestCompactPastDamage(t *testing.T) {
	b, _ := singles(t, Options{}, 230, time.Second)
	for _, no := range []int64{1, 120, 121, 230} {
		if err := query(b.f.db, "UPDATE requests SET body=x'01ff' WHERE block=?", func(*sqlite3.Stmt) error { return nil }, no); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		b.f.compact(0)
	}
	if ns := blocks(t, b); !slices.Equal(ns, []int{1, 118, 1, 1, 108, 1}) {
		t.Errorf("blocks of %v requests", ns)
	}
	for id, want := range map[string]bool{"r1": true, "r118": true, "r121": true, "r228": true} {
		if _, ok, err := b.f.find(id); ok != want || err != nil {
			t.Errorf("%s is found %t, %v", id, ok, err)
		}
	}
}

// TestTidyWhileFull has a file that is at its largest size all the time: what is too old leaves it in time all the same, and no more of what
// is not than there has to.
func TestTidyWhileFull(t *testing.T) {
	b, at := singles(t, Options{}, 60, time.Second)
	began := *at
	b.opt.Keep, b.opt.KeepSums = 10*time.Minute, time.Hour
	b.opt.MaxBytes = b.f.size - 1
	for range 200 { // each write finds it too large
		*at = at.Add(time.Minute)
		b.Record(&ledger.Record{ID: fmt.Sprint(at.Unix()), At: *at, Key: "k", Model: "m", Known: true, Class: outcome.Success})
		if err := b.flush(true); err != nil {
			t.Fatal(err)
		}
		b.opt.MaxBytes = b.f.size - 1
	}
	p, err := b.f.period(began.Add(-time.Hour), *at)
	if err != nil {
		t.Fatal(err)
	}
	if oldest := time.Unix(p.Rollups[0].Hour, 0); at.Sub(oldest) > 2*time.Hour+2*tidyEvery {
		t.Errorf("sums of %v ago are there, an hour is what they may stay", at.Sub(oldest))
	}
}

// TestTooLarge takes away what is too much, and not all there is.
func TestTooLarge(t *testing.T) {
	b, at := singles(t, Options{}, 0, 0)
	long := string(make([]byte, 4000))
	for i := range 150 {
		b.Record(&ledger.Record{ID: fmt.Sprint("r", i, long), At: *at, Model: "m", Known: true, Class: outcome.Success})
		if err := b.flush(true); err != nil {
			t.Fatal(err)
		}
	}
	b.opt.MaxBytes = b.f.size - 100_000
	*at = at.Add(time.Second)
	for range 3 { // what a round has left is seen by the next write
		if err := b.flush(true); err != nil {
			t.Fatal(err)
		}
	}
	if ns := blocks(t, b); b.f.size > b.opt.MaxBytes || len(ns) < 80 {
		t.Errorf("%d of 150 requests of 4 KB are left in %d bytes, for %d there is room", len(ns), b.f.size, b.opt.MaxBytes)
	}
}

// TestCompactWhatBeginsAnew puts together what comes after all that there was had its time: the file numbers its lines from 1 again.
func TestCompactWhatBeginsAnew(t *testing.T) {
	const keep = 10 * time.Hour
	b, at := singles(t, Options{Keep: keep}, 1, time.Minute)
	for i := range 25 * blockSize {
		b.Record(&ledger.Record{ID: fmt.Sprint("b", i), At: *at, Key: "k", Model: "m", Known: true, Class: outcome.Success})
	}
	*at = at.Add(tidyEvery)
	if err := b.flush(true); err != nil || b.f.compacted < 20 {
		t.Fatalf("looked at up to block %d, %v", b.f.compacted, err)
	}
	*at = at.Add(2 * keep)
	if err := b.flush(true); err != nil { // a sign of life, after which nothing is left
		t.Fatal(err)
	}
	for i := range 20 {
		b.Record(&ledger.Record{ID: fmt.Sprint("n", i), At: *at, Key: "k", Model: "m", Known: true, Class: outcome.Success})
		if err := b.flush(true); err != nil {
			t.Fatal(err)
		}
	}
	b.f.compact(keep)
	if ns := blocks(t, b); len(ns) != 1 {
		t.Errorf("20 requests are in blocks of %v", ns)
	}
}
