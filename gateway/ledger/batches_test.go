package ledger_test

import (
	"fmt"
	"runtime"
	"sync"
	"testing"

	"headrace/gateway/ledger"
)

// Every record comes once, however many processors add, read and collect garbage meanwhile; and who reads misses nothing that was
// added before.
func TestBatchesLoseNothing(t *testing.T) {
	const adders, each = 8, 500
	var mu sync.Mutex // guards seen
	seen := map[string]int{}
	count := func() int { mu.Lock(); defer mu.Unlock(); return len(seen) }
	b := ledger.NewBatches(func(r *ledger.Record) {
		mu.Lock()
		seen[r.ID]++
		mu.Unlock()
	})
	var wg sync.WaitGroup
	for a := range adders {
		wg.Go(func() {
			for i := range each {
				r := ledger.Record{ID: fmt.Sprint(a, "/", i)}
				b.Add(&r)
				r.ID = "of the next request"
				if i%100 == 99 {
					runtime.GC() // empties pools
					b.Flush()
				}
			}
		})
	}
	wg.Wait()
	b.Flush()
	if n := count(); n != adders*each {
		t.Errorf("%d of %d records came", n, adders*each)
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("%s came %d times", id, n)
		}
	}
	b.Add(&ledger.Record{ID: "one more"})
	if b.Flush(); seen["one more"] != 1 {
		t.Error("a lone record does not come when it is asked for")
	}
}

// A record on which counting breaks takes no other one with it, and nothing waits for ever.
func TestBatchesSurviveAPanic(t *testing.T) {
	var came []string
	b := ledger.NewBatches(func(r *ledger.Record) {
		if r.ID == "bad" {
			panic("bad record")
		}
		came = append(came, r.ID)
	})
	b.Add(&ledger.Record{ID: "bad"})
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic is lost")
			}
		}()
		b.Flush()
	}()
	b.Add(&ledger.Record{ID: "good"})
	if b.Flush(); len(came) != 1 || came[0] != "good" {
		t.Errorf("behind a bad record came %q", came)
	}
}
