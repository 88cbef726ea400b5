package ledger

import (
	"runtime"
	"slices"
	"sync"
)

// Batches hand settled records on, some at a time. Who counts what requests met counts in memory that all processors share: with a
// request settled here and the next one there, fetching it from the other's cache takes longer than the counting. So each processor
// puts its records by, nearly always in memory of its own, and counts batchSize of them in one go.
//
// Whoever reads what was counted calls Flush first, and misses nothing.
type Batches struct {
	to    func(*Record)
	local sync.Pool // of *batch: the one that this processor used last. All of them are in all, too, so none is lost.

	mu   sync.Mutex // guards both below; never held with a batch's
	all  []*batch
	next int // of all, for a processor that has none
}

// batchSize is how many records are handed on together: half as many cost a tenth more, twice as many save next to nothing.
const batchSize = 16

type batch struct {
	mu   sync.Mutex // guards all below; held for a copy, or for as long as it takes to hand on the batch
	n    int
	recs [batchSize]Record
}

// NewBatches returns Batches that hand each record to the given function: once, in any goroutine that calls Add or Flush, beside other
// records. It must not keep the record.
func NewBatches(to func(*Record)) *Batches {
	b := &Batches{to: to}
	b.local.New = b.another
	return b
}

// another returns a batch for a processor that has none.
func (b *Batches) another() any {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.all) < runtime.GOMAXPROCS(0) {
		b.all = append(b.all, new(batch))
	}
	b.next = (b.next + 1) % len(b.all)
	return b.all[b.next]
}

// Add takes a copy of r. It does not wait for others.
func (b *Batches) Add(r *Record) {
	k := b.local.Get().(*batch)
	if !k.mu.TryLock() { // somebody reads, or shares it with us
		b.to(r)
		b.local.Put(k)
		return
	}
	defer k.mu.Unlock()
	r.CopyTo(&k.recs[k.n])
	if k.n++; k.n == batchSize {
		k.handOn(b.to)
	}
	b.local.Put(k)
}

// Flush hands on every record that was added before it was called.
func (b *Batches) Flush() {
	b.mu.Lock()
	all := slices.Clip(b.all) // what is added later lies elsewhere or beyond
	b.mu.Unlock()
	for _, k := range all {
		k.flush(b.to)
	}
}

func (k *batch) flush(to func(*Record)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.handOn(to)
}

// handOn empties the batch. The caller holds mu.
func (k *batch) handOn(to func(*Record)) {
	n := k.n
	k.n = 0 // first: were one to panic, it would do so again
	for i := range n {
		to(&k.recs[i])
	}
}
