// Package books is the durable ledger: sums by hour of what requests used, cost and wasted, what hosts were paid for meanwhile, and the
// requests themselves for a while, in one SQLite file.
//
// A request adds itself to the sums and to the block of requests that is being filled, both in memory: half a microsecond. One goroutine
// (Run) writes what has come, once in Options.Flush, in one transaction: a process that is killed loses that much and nothing else, and
// no request counts twice. Sums never lose anything while the process lives: where requests cannot be kept one by one, because too many
// came at once or the disk fails for long, they are still added up.
package books

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"headrace/gateway/ledger"
)

// Options set up Books.
type Options struct {
	Path        string        // of the file; "" keeps sums in memory, for as long as the process lives, and no requests
	Flush       time.Duration // between two writes; what a killed process loses at most
	Keep        time.Duration // requests, one by one; 0 for ever
	KeepSums    time.Duration // everything else; 0 for ever
	MaxBytes    int64         // of the file: the oldest requests go beyond, sums stay; 0 for any size
	Now         func() time.Time
	Log         *slog.Logger
	MostWaiting int // requests between two writes of which more than sums is kept; 0 for DefaultWaiting
	// Before is called before anything is written or read: records that were put by come to Record now. Nil where none are.
	Before func()
}

// DefaultWaiting is how many requests wait to be written one by one: some 5 MB of memory when that many do.
const DefaultWaiting = 32768

const (
	mostCells  = 100_000               // of sums in memory; beyond they are added up without names
	openAfter  = 50 * time.Millisecond // of Run the file is opened: megabytes of SQLite come in with it, which the first answers need not wait for
	hoursEvery = 10 * time.Second      // hosts' hours are written that often where no request comes
	aliveEvery = time.Minute           // a sign of life is written that often where there is nothing else
	tidyEvery  = 10 * time.Minute      // old lines are looked for
	retryMost  = 30 * time.Second      // between two tries to write to a disk that fails
	otherName  = "(other)"             // stands for names that there was no room for
	noModel    = "(unknown)"           // stands in sums for whatever callers name that no host serves: they could name anything
	seenSize   = 1 << 12               // of the newest requests' hashes
)

// Books keep the ledger. Methods may be called by any goroutine unless they say otherwise.
type Books struct {
	opt Options

	mu      sync.Mutex // guards all below; held for half a microsecond by requests
	sums    cells      // not written yet
	memo    [4]memo
	filling *block // nil in memory
	full    []*block
	free    []*block
	waiting int
	blocks  uint32
	seen    [seenSize]uint64
	hours   accountant

	wake chan struct{}
	asks chan ask
	done chan struct{} // closed when Run is over

	f     file           // Run's goroutine only
	kept  memory         // likewise, and used without a file only
	price func() []Price // likewise; nil: nobody tells

	records, dropped, doubled, failures atomic.Int64
	state                               atomic.Pointer[Status]
	bills                               pendingBills
}

// memo finds the cell of requests that are like one before, which most are.
type memo struct {
	cell Cell
	e    *entry // nil for none
}

// Status is how the ledger fares.
type Status struct {
	Path     string    // "" in memory
	Records  int64     // taken since the start
	Dropped  int64     // of these, the ones of which only the sums are kept; none in memory, where all are so
	Doubled  int64     // told twice, and counted once
	Failures int64     // writes that failed
	Bytes    int64     // of the file that are in use, as of the last write
	Written  time.Time // last time that everything was written; zero before the first
	Error    string    // why the last write failed, "" when it did not
}

// New returns Books that write nothing before Run does.
func New(o Options) *Books {
	if o.Now == nil || o.Flush <= 0 {
		panic("BUG: books.New without a clock or an interval")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Before == nil {
		o.Before = func() {}
	}
	if o.MostWaiting <= 0 {
		o.MostWaiting = DefaultWaiting
	}
	b := &Books{opt: o, sums: newCells(mostCells, 0), wake: make(chan struct{}, 1), asks: make(chan ask), done: make(chan struct{})}
	b.f.path, b.f.now = o.Path, o.Now
	b.kept = memory{sums: newCells(mostCells, 0), hours: map[hostHour]HostHour{}, most: mostCells, began: o.Now()}
	b.hours.init(o.Now)
	b.state.Store(&Status{Path: o.Path})
	return b
}

// Record takes a settled record, of which it keeps nothing: no I/O, no allocation but now and then for room.
func (b *Books) Record(r *ledger.Record) {
	b.records.Add(1)
	hash := hashID(r.ID)
	hour := hourOf(r.At.Add(r.Duration))
	var at [ledger.MaxAttempts]int64
	b.mu.Lock()
	if slot := &b.seen[hash%seenSize]; *slot == hash {
		b.mu.Unlock()
		b.doubled.Add(1)
		return
	} else { //nolint:revive // slot is of the if
		*slot = hash
	}
	if r.At.Before(b.hours.doubt) {
		b.hours.answered(r)
	}
	keep := b.opt.Path != "" && b.waiting < b.opt.MostWaiting
	var to *block
	if keep {
		if to = b.filling; to == nil || len(to.ids) >= blockSize {
			to = b.fresh()
		}
	}
	last := int64(0)
	model := r.Model
	if !r.Known && model != "" {
		model = noModel
	}
	split(r, func(i int) *Sums {
		c := Cell{Hour: hour, Key: r.Key, Model: model, Arm: r.Arm}
		if i >= 0 {
			a := &r.Attempts[i]
			c.Served, c.Provider, c.Host = a.Served, a.Provider, string(a.Endpoint)
		}
		e := b.cell(&c)
		if to != nil {
			if model != r.Model { // the request itself keeps what it said
				c.Model = r.Model
				e.block, e.place = to.no, int64(len(to.cells))
				to.cells = append(to.cells, c)
			} else if e.block != to.no {
				e.block, e.place = to.no, int64(len(to.cells))
				to.cells = append(to.cells, c)
			}
			if last = e.place; i >= 0 {
				at[i] = last
			}
		}
		return &e.Sums
	})
	half := false
	if to != nil {
		to.add(r, hash, last, &at)
		b.waiting++
		half = b.waiting == b.opt.MostWaiting/2
	}
	b.mu.Unlock()
	if half {
		b.nudge()
	}
	if !keep && b.opt.Path != "" {
		b.dropped.Add(1)
	}
}

// cell returns what is not written yet of a cell. The caller holds mu.
func (b *Books) cell(c *Cell) *entry {
	m := &b.memo[uint(len(c.Host)+len(c.Model)+len(c.Key))%uint(len(b.memo))]
	if m.e != nil && m.cell == *c {
		return m.e
	}
	if len(b.sums.of) >= b.sums.most { // some may have to give way
		b.memo = [len(b.memo)]memo{}
	}
	e := b.sums.at(c)
	m.cell, m.e = *c, e
	return e
}

// swap puts other sums in the place of those that are not written yet, which it returns. The caller holds mu.
func (b *Books) swap(s cells) cells {
	old := b.sums
	b.sums, b.memo = s, [len(b.memo)]memo{}
	return old
}

// fresh puts an empty block in place of the full one. The caller holds mu.
func (b *Books) fresh() *block {
	if b.filling != nil {
		b.full = append(b.full, b.filling)
	}
	if n := len(b.free); n > 0 {
		b.filling, b.free = b.free[n-1], b.free[:n-1]
	} else {
		b.filling = &block{ids: make([]uint64, 0, blockSize), buf: make([]byte, 0, blockSize*128)}
	}
	b.blocks++ // from 1: 0 names no entry
	b.filling.no = b.blocks
	return b.filling
}

const mostFree = 4 // blocks; what a burst took is not kept for ever

// recycle lets blocks be filled again. The caller holds mu.
func (b *Books) recycle(bs []*block) {
	for _, k := range bs {
		if len(b.free) >= mostFree {
			return
		}
		clear(k.cells) // they refer to others' memory
		*k = block{cells: k.cells[:0], ids: k.ids[:0], buf: k.buf[:0]}
		b.free = append(b.free, k)
	}
}

func (b *Books) nudge() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// pending is what a write takes.
type pending struct {
	sums   cells
	blocks []*block
	hours  []HostHour
	bills  []Bill
	billed []Charge
	prices []Price
}

// take takes what is not written yet.
func (b *Books) take(at time.Time) (p pending) {
	p.bills, p.billed = b.bills.take()
	b.mu.Lock()
	defer b.mu.Unlock()
	p.sums, p.blocks = b.swap(newCells(b.sums.most, len(b.sums.of))), b.full
	if b.filling != nil && len(b.filling.ids) > 0 {
		p.blocks = append(p.blocks, b.filling)
		b.filling = nil
	}
	b.full, b.waiting = nil, 0
	p.hours = b.hours.take(at)
	return p
}

// giveBack takes back what could not be written: sums and hours all, requests as far as there is room for them.
func (b *Books) giveBack(p *pending) {
	b.bills.giveBack(p.bills, p.billed)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.giveBackSums(p.sums)
	b.hours.giveBack(p.hours)
	for i, k := range p.blocks {
		if b.waiting+len(k.ids) <= b.opt.MostWaiting {
			b.waiting += len(k.ids)
			b.full = append(b.full, k)
			p.blocks[i] = nil
			continue
		}
		b.dropped.Add(int64(len(k.ids)))
	}
}

// giveBackSums takes sums back, beside what came meanwhile, which is less as a rule. The caller holds mu.
func (b *Books) giveBackSums(s cells) {
	newer := b.swap(s)
	for c, e := range newer.of {
		b.cell(&c).Add(&e.Sums)
	}
}

// ask is something that Run's goroutine does for another one.
type ask struct {
	do   func()
	done chan struct{}
}

// Run writes until ctx is done, then writes what is left and closes the file. Prices, if not nil, tells what hosts ask; it is called now
// and then.
func (b *Books) Run(ctx context.Context, prices func() []Price) error {
	defer close(b.done)
	b.price = prices
	tick := time.NewTicker(b.opt.Flush)
	defer tick.Stop()
	early := time.NewTimer(openAfter)
	defer early.Stop()
	for {
		select {
		case <-early.C:
			_ = b.flush(false)
		case <-ctx.Done():
			_ = b.flush(true) // Status and the log say why it failed
			b.f.close()
			return ctx.Err()
		case a := <-b.asks:
			a.do()
			close(a.done)
		case <-b.wake:
			_ = b.flush(false)
		case <-tick.C:
			_ = b.flush(false)
		}
	}
}

// errOver is returned where Run is over.
var errOver = errors.New("the ledger is closed")

// do has Run's goroutine call fn, and returns when it has.
func (b *Books) do(ctx context.Context, fn func()) error {
	a := ask{fn, make(chan struct{})}
	select {
	case b.asks <- a:
	case <-b.done:
		return errOver
	case <-ctx.Done():
		return ctx.Err()
	}
	<-a.done
	return nil
}

// Flush writes all that has come by now, and returns when it is on disk, or why it is not.
func (b *Books) Flush(ctx context.Context) error {
	var err error
	if e := b.do(ctx, func() { err = b.flush(true) }); e != nil {
		return e
	}
	return err
}

// flush writes what waits; now says to write hosts' hours too, and not to wait after a failure.
func (b *Books) flush(now bool) error {
	b.opt.Before()
	at := b.opt.Now()
	if b.opt.Path == "" {
		b.stay(at)
		return nil
	}
	b.mu.Lock()
	idle := len(b.sums.of) == 0 && !b.hours.due(at, hoursEvery)
	b.mu.Unlock()
	switch {
	case now:
	case b.f.err != nil && at.Before(b.f.retryAt):
		return b.f.err
	case b.f.db == nil && b.f.err == nil: // opened before it is needed: what it takes is taken at the start
	case idle && !b.bills.any() && at.Sub(b.f.aliveAt) < aliveEvery:
		return nil
	}
	err := b.f.open()
	if err == nil {
		err = b.f.begin()
	}
	if err == nil {
		p := b.take(at)
		if b.price != nil && b.f.wantPrices(at) {
			p.prices = b.price()
		}
		if err = b.f.write(at, &p); err == nil {
			b.mu.Lock()
			b.recycle(p.blocks)
			b.mu.Unlock()
		} else {
			b.giveBack(&p)
		}
	}
	switch {
	case err != nil:
		b.failed(err, at)
	case b.f.err != nil:
		b.f.err, b.f.pause = nil, 0
		b.opt.Log.Info("the ledger is written again", "path", b.opt.Path)
	}
	if err == nil {
		b.f.tidy(at, b.opt.Keep, b.opt.KeepSums, b.opt.MaxBytes)
	}
	s := &Status{Path: b.opt.Path, Bytes: b.f.size, Written: at}
	if err != nil {
		s.Written, s.Error = b.state.Load().Written, err.Error()
	}
	b.state.Store(s)
	return err
}

// failed notes that the disk fails, once in the log.
func (b *Books) failed(err error, at time.Time) {
	b.failures.Add(1)
	if b.f.err == nil {
		b.opt.Log.Error("the ledger cannot be written: it is kept in memory until it can, sums all and requests for a while", "path", b.opt.Path, "error", err)
	}
	b.f.err = err
	b.f.pause = min(max(2*b.f.pause, b.opt.Flush), retryMost)
	b.f.retryAt = at.Add(b.f.pause)
}

// Status tells how the ledger fares.
func (b *Books) Status() Status {
	b.opt.Before()
	s := *b.state.Load()
	s.Records, s.Dropped, s.Doubled, s.Failures = b.records.Load(), b.dropped.Load(), b.doubled.Load(), b.failures.Load()
	return s
}

// Period returns what there is of the hours that have a moment from since on and before until, up to this moment.
func (b *Books) Period(ctx context.Context, since, until time.Time) (Period, error) {
	p := Period{Since: since, Until: until}
	var err error
	if e := b.do(ctx, func() {
		werr := b.flush(true) // what cannot be written is added below
		if b.opt.Path == "" {
			b.kept.period(&p, b.opt.Now())
			if b.price != nil {
				p.Prices = b.price()
			}
			return
		}
		read, rerr := b.f.period(since, until)
		switch {
		case rerr == nil:
			p = read
		case werr == nil:
			err = rerr
		}
		if werr != nil {
			b.waits(&p)
		}
	}); e != nil {
		return Period{}, e
	}
	p.Dropped = b.dropped.Load()
	return Merge(p), err
}

// waits adds what could not be written. Requests wait for none of it: sums go on in others meanwhile.
func (b *Books) waits(p *Period) {
	in := p.within()
	b.mu.Lock()
	b.hours.waits(p, in)
	sums := b.swap(newCells(b.sums.most, len(b.sums.of)))
	b.mu.Unlock()
	for c, e := range sums.of {
		if in(c.Hour) {
			p.Rollups = append(p.Rollups, Rollup{c, e.Sums})
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.giveBackSums(sums)
}

// Find returns one request; ok is false when the ledger has it no more, or never had.
func (b *Books) Find(ctx context.Context, id string) (r ledger.Record, ok bool, err error) {
	if b.opt.Path == "" {
		return r, false, nil
	}
	if e := b.do(ctx, func() {
		_ = b.flush(true) // what it says is in Status
		r, ok, err = b.f.find(id)
	}); e != nil {
		return r, false, e
	}
	return r, ok, err
}
