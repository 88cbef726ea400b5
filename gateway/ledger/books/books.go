// Package books is the durable ledger: sums by hour of what requests used, cost and wasted, what hosts were paid for meanwhile, and the
// requests themselves for a while, in one SQLite file.
//
// Nothing of it is on a request's way but Record, which copies. One goroutine (Run) writes what has come, once in Options.Flush, in one
// transaction: a process that is killed loses that much and nothing else, and no request counts twice. Sums never lose anything while the
// process lives: where details cannot be kept, because too many came at once or the disk fails, they are still added up.
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
	Path        string        // of the file; "" keeps all in memory, for as long as the process lives
	Flush       time.Duration // between two writes; what a killed process loses at most
	Keep        time.Duration // requests, one by one
	KeepSums    time.Duration // everything else
	MaxBytes    int64         // of the file: the oldest requests go beyond; sums stay
	Now         func() time.Time
	Log         *slog.Logger
	MostWaiting int // requests between two writes of which more than sums is kept; 0 for DefaultWaiting
}

// DefaultWaiting is how many requests wait for being written with all their details: some 10 MB of memory when that many do.
const DefaultWaiting = 16384

const (
	chunkSize  = 256              // records
	mostCells  = 100_000          // of sums that wait for a disk that fails; beyond they are added up without names
	hoursEvery = 10 * time.Second // hosts' hours are written that often where no request comes
	tidyEvery  = 10 * time.Minute // old lines are looked for
	retryMost  = 30 * time.Second // between two tries to write to a disk that fails
	otherName  = "(other)"        // stands for names that there was no room for
)

type chunk struct {
	n int
	r [chunkSize]ledger.Record
}

// Books keep the ledger. Methods may be called by any goroutine unless they say otherwise.
type Books struct {
	opt Options

	mu      sync.Mutex // guards the four below; held for a copy of a record
	filling *chunk     // nil before the first
	full    []*chunk
	free    []*chunk
	waiting int

	sumsMu sync.Mutex // guards sums and hours
	sums   map[Cell]*Sums
	hours  accountant

	wake chan struct{}
	asks chan ask
	done chan struct{} // closed when Run is over

	f file // Run's goroutine only, and before and after it

	records, dropped, doubled, failures atomic.Int64
	state                               atomic.Pointer[Status]
	price                               func() []Price // nil: nobody tells
	bills                               pendingBills
}

// Status is how the ledger fares.
type Status struct {
	Path     string    // "" in memory
	Records  int64     // taken since the start
	Dropped  int64     // of these, the ones of which only the sums are kept
	Doubled  int64     // told twice, and counted once
	Failures int64     // writes that failed
	Bytes    int64     // of the file, as of the last write
	Written  time.Time // last time that everything was written; zero before the first
	Error    string    // why the last write failed, "" when it did not
}

// New returns Books that write nothing before Run does. The file is opened when there is something to write or to read.
func New(o Options) *Books {
	if o.Now == nil || o.Flush <= 0 {
		panic("BUG: books.New without a clock or an interval")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.MostWaiting <= 0 {
		o.MostWaiting = DefaultWaiting
	}
	b := &Books{opt: o, sums: map[Cell]*Sums{}, wake: make(chan struct{}, 1), asks: make(chan ask), done: make(chan struct{})}
	b.f.path, b.f.now = o.Path, o.Now
	b.hours.init(o.Now)
	b.state.Store(&Status{Path: o.Path})
	return b
}

// Record takes a settled record. It copies it and returns: some 100 ns, no allocation, no I/O.
func (b *Books) Record(r *ledger.Record) {
	b.records.Add(1)
	b.mu.Lock()
	if b.waiting >= b.opt.MostWaiting {
		b.mu.Unlock()
		b.dropped.Add(1)
		b.fold(r)
		b.nudge()
		return
	}
	c := b.filling
	if c == nil || c.n == chunkSize {
		c = b.fresh()
	}
	c.r[c.n] = *r
	c.n++
	b.waiting++
	half := b.waiting == b.opt.MostWaiting/2
	b.mu.Unlock()
	if half {
		b.nudge()
	}
}

// fresh puts another chunk in place of the full one. The caller holds mu.
func (b *Books) fresh() *chunk {
	if b.filling != nil {
		b.full = append(b.full, b.filling)
	}
	if n := len(b.free); n > 0 {
		b.filling, b.free = b.free[n-1], b.free[:n-1]
	} else {
		b.filling = new(chunk)
	}
	return b.filling
}

func (b *Books) nudge() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// fold adds a record to the sums.
func (b *Books) fold(r *ledger.Record) {
	hour := hourOf(r.At.Add(r.Duration))
	b.sumsMu.Lock()
	defer b.sumsMu.Unlock()
	split(r, func(s *share) {
		b.sum(Cell{Hour: hour, Key: r.Key, Model: r.Model, Served: s.served, Provider: s.provider, Host: s.host, Arm: r.Arm}).Add(&s.Sums)
	})
}

// sum returns a cell's sums. The caller holds sumsMu.
func (b *Books) sum(c Cell) *Sums {
	s := b.sums[c]
	if s == nil {
		if len(b.sums) >= mostCells {
			c = Cell{Hour: c.Hour, Key: otherName, Model: otherName, Provider: c.Provider, Host: otherName}
			if s = b.sums[c]; s != nil {
				return s
			}
		}
		s = new(Sums)
		b.sums[c] = s
	}
	return s
}

// take returns the chunks that wait.
func (b *Books) take() []*chunk {
	b.mu.Lock()
	defer b.mu.Unlock()
	cs := b.full
	if b.filling != nil && b.filling.n > 0 {
		cs = append(cs, b.filling)
		b.filling = nil
	}
	b.full, b.waiting = nil, 0
	return cs
}

// giveBack lets chunks be filled again.
func (b *Books) giveBack(cs []*chunk) {
	for _, c := range cs {
		clear(c.r[:c.n]) // they refer to others' memory
		c.n = 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range cs {
		if len(b.free) < 16 { // what a burst took is not kept for ever
			b.free = append(b.free, c)
		}
	}
}

// ask is something that Run's goroutine does for another one.
type ask struct {
	do   func()
	done chan struct{}
}

// Run writes until ctx is done, then writes what is left. Prices, if not nil, tells what hosts ask; it is called now and then.
func (b *Books) Run(ctx context.Context, prices func() []Price) error {
	defer close(b.done)
	b.price = prices
	tick := time.NewTicker(b.opt.Flush)
	defer tick.Stop()
	for {
		select {
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
	at := b.opt.Now()
	cs := b.take()
	defer b.giveBack(cs)
	n := 0
	for _, c := range cs {
		n += c.n
	}
	b.sumsMu.Lock()
	idle := n == 0 && len(b.sums) == 0
	b.sumsMu.Unlock()
	if !now && idle && !b.hours.due(at, hoursEvery) && !b.bills.any() {
		return nil
	}
	if !now && b.f.err != nil && at.Before(b.f.retryAt) { // the disk fails: sums are kept, and details are not
		b.keepSums(cs)
		return b.f.err
	}
	err := b.write(cs, at)
	if err != nil {
		b.failed(err, at)
	} else if b.f.err != nil {
		b.f.err, b.f.pause = nil, 0
		b.opt.Log.Info("the ledger is written again", "path", b.opt.Path)
	}
	if err == nil {
		b.f.tidy(at, b.opt.Keep, b.opt.KeepSums, b.opt.MaxBytes)
	}
	b.publish(at, err)
	return err
}

// keepSums adds records up of which no details will be written.
func (b *Books) keepSums(cs []*chunk) {
	for _, c := range cs {
		for i := range c.n {
			b.fold(&c.r[i])
		}
		b.dropped.Add(int64(c.n))
	}
}

// write writes records, sums, hours and bills in one transaction. After an error nothing of it is there, and the sums are kept.
func (b *Books) write(cs []*chunk, at time.Time) error {
	if err := b.f.open(); err != nil {
		b.keepSums(cs)
		return err
	}
	if err := b.f.begin(); err != nil {
		b.keepSums(cs)
		return err
	}
	var err error
	unwritten := 0
	for _, c := range cs {
		for i := range c.n {
			r, fresh := &c.r[i], true
			if err == nil {
				fresh, err = b.f.record(r)
			}
			if err != nil {
				unwritten++
			}
			if !fresh {
				b.doubled.Add(1)
				continue
			}
			b.fold(r)
		}
	}
	b.sumsMu.Lock()
	sums := b.sums
	b.sums = make(map[Cell]*Sums, len(sums))
	hours := b.hours.take(at)
	b.sumsMu.Unlock()
	bills := b.bills.take()
	var prices []Price
	if b.price != nil && b.f.wantPrices(at) {
		prices = b.price()
	}
	if err == nil {
		err = b.f.end(at, sums, hours, bills, prices)
	} else {
		b.f.rollback()
	}
	if err == nil {
		return nil
	}
	n := 0
	for _, c := range cs {
		n += c.n
	}
	b.dropped.Add(int64(n))
	b.sumsMu.Lock()
	for c, s := range sums {
		b.sum(c).Add(s)
	}
	b.hours.giveBack(hours)
	b.sumsMu.Unlock()
	b.bills.giveBack(bills)
	return err
}

// failed notes that the disk fails, once in the log.
func (b *Books) failed(err error, at time.Time) {
	b.failures.Add(1)
	if b.f.err == nil {
		b.opt.Log.Error("the ledger cannot be written: sums are kept in memory, and details of requests are not kept", "path", b.opt.Path, "error", err)
	}
	b.f.err = err
	b.f.pause = min(max(2*b.f.pause, b.opt.Flush), retryMost)
	b.f.retryAt = at.Add(b.f.pause)
}

func (b *Books) publish(at time.Time, err error) {
	s := &Status{Path: b.opt.Path, Bytes: b.f.size, Written: at}
	if err != nil {
		s.Written, s.Error = b.state.Load().Written, err.Error()
	}
	b.state.Store(s)
}

// Status tells how the ledger fares.
func (b *Books) Status() Status {
	s := *b.state.Load()
	s.Records, s.Dropped, s.Doubled, s.Failures = b.records.Load(), b.dropped.Load(), b.doubled.Load(), b.failures.Load()
	return s
}

// Period returns what there is of the hours that have a moment from since on and before until, up to this moment.
func (b *Books) Period(ctx context.Context, since, until time.Time) (Period, error) {
	var p Period
	var err error
	if e := b.do(ctx, func() {
		werr := b.flush(true) // what cannot be written is added below
		if p, err = b.f.period(since, until); err != nil && werr != nil {
			p, err = Period{Since: since, Until: until}, nil
		}
		b.sumsMu.Lock()
		defer b.sumsMu.Unlock()
		for c, s := range b.sums {
			if c.Hour >= hourOf(since) && c.Hour < until.Unix() {
				p.Rollups = append(p.Rollups, Rollup{c, *s})
			}
		}
	}); e != nil {
		return Period{}, e
	}
	p.Dropped = b.dropped.Load()
	return Merge(p), err
}

// Find returns one request; ok is false when the ledger has it no more, or never had.
func (b *Books) Find(ctx context.Context, id string) (r ledger.Record, ok bool, err error) {
	if e := b.do(ctx, func() {
		_ = b.flush(true) // what it says is in Status
		r, ok, err = b.f.find(id)
	}); e != nil {
		return r, false, e
	}
	return r, ok, err
}
