// Package health says whether an endpoint may be used. Evidence of the network comes first, the word of a control plane
// confirms or clears it: a host that nobody answers for is left alone at once, one that answers badly after a few times, one
// that was taken away until its control plane has it running again. Back in use it comes by a synthetic request, never by a
// caller's, while somebody sends those. Cool-downs that an endpoint asked for are kept here as well.
package health

import (
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
)

// Options set up breakers; zero values mean the defaults named here.
type Options struct {
	Failures int           // 5xx and odd answers in a row that open it; default 2. More than half of five or more within 30 s do as well
	OpenFor  time.Duration // until an open one is tested; default 2 s. Twice that each time it opens again, up to a minute
	Probed   bool          // a synthetic request decides whether it closes; without, one caller's request does
	Seed     uint64        // of the jitter; the same seed makes the same choices
}

const (
	stuckInRow   = 3
	ratioOf      = 5 // outcomes within the window, more than half of them failures
	lateInRow    = 3 // of an endpoint of many engines: moments at which streams broke, none completed between
	togetherFor  = time.Second
	maxOpen      = time.Minute
	maxReopen    = 30 * time.Second // after a test that failed
	maxLook      = 4 * time.Second  // likewise, where nobody answers and asking is free
	maxDoublings = 5
	jitter       = 0.2
	probeLapse   = 15 * time.Second // after which a test that nobody reported of is another's to make
	unsaidPause  = time.Second
	notReadyWait = 3 * time.Second
	testPause    = time.Minute // between two self-tests of a host that say nothing
	// declinedPause is between two that were not made.
	declinedPause = 5 * time.Second
	// takenWord is how long a control plane that goes on to call a host ready is given to learn that it was taken away; then
	// the network is taken for the liar.
	takenWord = time.Minute
	// DownTogether is the time within which hosts that go down are thought to have one cause.
	DownTogether = time.Minute
)

// status is why a breaker is not closed; the higher, the surer that nobody is there.
type status = uint32

const (
	closed    status = iota
	suspected        // others of its failure domain went down: nothing is held against it yet
	buggy
	stuck
	gone
	preempted // several of its streams broke at once; its control plane has not said so
	taken     // its control plane says so
)

// Kind is what is to be known of an endpoint to judge it.
type Kind struct {
	Many bool // many engines behind one address: a stream that breaks says something of one of them only
	Told bool // a control plane tells when it was taken away and when it runs again
	// Free says that a test costs nothing, the host being paid for anyway: one that is away is looked for every few seconds.
	Free bool
	// Trials says that nobody tests it by synthetic requests: a caller's may try, one at a time.
	Trials bool
}

// Breaker guards one endpoint. Whether it is open, and since when, is kept here, on the caller's clock; gobreaker counts what
// has to come several times in a row. It hears of results at once, for it drops those older than its interval, and a stream
// may last longer than any.
type Breaker struct {
	now     func() time.Time
	most    int
	openFor time.Duration
	probed  bool

	status atomic.Uint32 // written under mu, as are the next ones
	until  atomic.Int64  // Unix nanoseconds when it may be tested
	trial  atomic.Uint32 // the caller's request that is the trial, 0 for none
	trials atomic.Bool   // a caller's request may be
	again  atomic.Int32  // times it opened since an answer was completed
	epoch  atomic.Uint32 // times it was started anew, or somebody was there again: what began before says nothing of now
	rows   atomic.Bool   // there is something that a success ends
	opens  atomic.Int64
	wins   window

	cool    atomic.Int64 // Unix nanoseconds until which the endpoint wants no requests
	coolWhy atomic.Pointer[string]

	mu       sync.Mutex // guards all below
	kind     Kind
	buggies  *gobreaker.TwoStepCircuitBreaker[struct{}] // nil while there is nothing to count
	stucks   *gobreaker.TwoStepCircuitBreaker[struct{}]
	fails    window
	trialSeq uint32
	cuts     bool          // several of its streams broke at once since it went down
	late     int           // streams that began well and failed later, since one was completed
	lateAt   time.Time     // the newest of them
	cutAt    time.Time     // when a stream broke last
	downAt   time.Time     // when it went down last, zero while it is up
	shutAt   time.Time     // when it was last found that it is not to be used
	backAt   time.Time     // when it was last found that it is to be: closed, or running again by its control plane
	pause    time.Duration // the last one, before jitter
	probeAt  time.Time     // when a synthetic request was handed out that nobody has reported of; zero for none
	probedIn uint32        // the epoch then
	testing  bool          // it is a self-test of a closed one
	voided   bool          // nobody waits for what it finds
	testFrom time.Time     // no self-test before
	dice     uint64
	was      State // as it was counted last
	moves    [numOwn][numOwn]int64
}

var errFailed = errors.New("attempt failed")

// NewBreaker returns a closed breaker that goes by the clock now.
func NewBreaker(name string, o Options, now func() time.Time) *Breaker {
	if o.Failures <= 0 {
		o.Failures = 2
	}
	if o.OpenFor <= 0 {
		o.OpenFor = 2 * time.Second
	}
	b := &Breaker{now: now, most: o.Failures, openFor: o.OpenFor, probed: o.Probed, dice: o.Seed ^ nameHash(name)}
	b.trials.Store(!o.Probed)
	return b
}

// nameHash is FNV-1a: hosts of one router draw differently, and alike in each run.
func nameHash(name string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 1099511628211
	}
	return h
}

// Is tells what kind of endpoint it guards.
func (b *Breaker) Is(k Kind) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kind = k
	b.trials.Store(k.Trials || !b.probed)
}

// Ticket is the right to one attempt. Settle it on every path, or the trial of an open breaker stays taken for good.
type Ticket struct {
	b       *Breaker
	epoch   uint32
	trial   uint32 // its number, 0 for no trial
	forced  bool   // it was let in although the breaker is open
	settled bool
}

// Allow takes a ticket; ok is false while the breaker is open, unless it is a caller's request that decides and none does yet.
func (b *Breaker) Allow() (t Ticket, ok bool) {
	epoch := b.epoch.Load() // first: of a breaker that opens and closes in between it is an old one
	if b.status.Load() == closed {
		return Ticket{b: b, epoch: epoch}, true
	}
	b.lock()
	defer b.unlock()
	switch {
	case b.status.Load() == closed:
		return Ticket{b: b, epoch: b.epoch.Load()}, true
	case !b.trials.Load() || b.trial.Load() != 0 || b.status.Load() == taken || b.now().UnixNano() < b.until.Load():
		return Ticket{}, false
	}
	b.trialSeq++
	b.trialSeq = max(1, b.trialSeq)
	b.trial.Store(b.trialSeq)
	return Ticket{b: b, epoch: b.epoch.Load(), trial: b.trialSeq}, true
}

// Ignorable tells whether requests may go there although it is open, when nobody else is left: it answers badly, or is
// only suspected. The less bad, the better.
func (b *Breaker) Ignorable() (bad int, ok bool) {
	switch b.status.Load() {
	case suspected:
		return 0, true
	case buggy, stuck:
		return int(b.again.Load()), true
	}
	return 0, false
}

// Force takes a ticket of a breaker that is Ignorable; ok is false when it is not.
func (b *Breaker) Force() (t Ticket, ok bool) {
	b.lock()
	defer b.unlock()
	if b.status.Load() == closed {
		return Ticket{b: b, epoch: b.epoch.Load()}, true
	}
	if _, ok := b.Ignorable(); !ok {
		return Ticket{}, false
	}
	return Ticket{b: b, epoch: b.epoch.Load(), forced: true}, true
}

// Succeeded counts a success: call it at the first content, not at the end of a long stream.
func (t *Ticket) Succeeded(now time.Time) Change {
	b := t.b
	if t.settled || b == nil {
		return Unchanged
	}
	t.settled = true
	b.wins.add(now)
	if t.trial == 0 && !t.forced && !b.rows.Load() && b.status.Load() != suspected {
		return Unchanged // nearly always
	}
	b.lock()
	defer b.unlock()
	switch s := b.status.Load(); {
	case t.trial != 0:
		if t.trial != b.trial.Load() {
			return Unchanged // it is not the trial any more
		}
		c := b.close()
		t.epoch = b.epoch.Load()
		return c
	case t.epoch != b.epoch.Load():
		return Unchanged
	case s == closed:
		b.forget()
	case s == suspected || t.forced && (s == buggy || s == stuck):
		c := b.close()
		t.epoch = b.epoch.Load()
		return c
	}
	return Unchanged
}

// Completed tells that the answer came to its end, some time after Succeeded.
func (t *Ticket) Completed() {
	b := t.b
	if b == nil || !b.rows.Load() && b.again.Load() == 0 {
		return
	}
	b.lock()
	defer b.unlock()
	if t.epoch == b.epoch.Load() && b.status.Load() == closed {
		b.late, b.lateAt = 0, time.Time{}
		b.again.Store(0)
	}
}

// Release gives the ticket back without judging.
func (t *Ticket) Release() { t.Ended(Neutral) }

// Ended tells how the attempt ended. After Succeeded only what came later counts.
func (t *Ticket) Ended(e Evidence) Change {
	b := t.b
	switch {
	case b == nil:
		return Unchanged
	case e == Well:
		return t.Succeeded(b.now())
	case e == Neutral && (t.settled || t.trial == 0):
		t.settled = true
		return Unchanged
	}
	later := t.settled
	t.settled = true
	b.lock()
	defer b.unlock()
	trial := t.trial != 0 && !later && t.trial == b.trial.Load() // or it was overtaken, and is like any other
	if trial {
		b.trial.Store(0)
	}
	if e == Neutral || t.epoch != b.epoch.Load() || b.status.Load() == taken {
		return Unchanged
	}
	return b.judge(e, later, trial)
}

// judge weighs a failure. The caller holds mu.
func (b *Breaker) judge(e Evidence, later, trial bool) Change {
	now, s := b.now(), b.status.Load()
	if b.kind.Many && e == Cut { // of one engine of many
		e, later = Buggy, true
	}
	switch e {
	case Gone, Cut:
		together := e == Cut && !b.cutAt.IsZero() && now.Sub(b.cutAt) <= togetherFor
		if e == Cut {
			b.cutAt = now
		}
		return b.lose(now, together, trial)
	case Buggy, Stuck:
		why := buggy
		if e == Stuck {
			why = stuck
		}
		switch {
		case trial:
			if s == suspected {
				b.status.Store(why)
			}
			b.reopen(now)
		case s == closed && b.tooMany(e, later, now):
			b.open(now, why)
			return Opened
		}
	case Neutral, Well:
	}
	return Unchanged
}

// lose notes that nobody is there; together says that it broke another stream a moment ago. The caller holds mu.
func (b *Breaker) lose(now time.Time, together, trial bool) Change {
	change := Unchanged
	switch s := b.status.Load(); {
	case s < gone && s != closed && !trial: // open already, for less
		b.status.Store(gone)
		b.downAt = now
		b.void()
		b.trial.Store(0)
		b.until.Store(max(b.until.Load(), now.Add(b.jittered(b.openFor)).UnixNano()))
		change = Lost
	case s == closed:
		b.open(now, gone)
		change = Lost
	case trial:
		if s < gone {
			b.status.Store(gone)
			b.downAt = now
			change = Lost
		}
		b.reopen(now)
	}
	if !together || b.cuts || b.status.Load() >= preempted {
		return change
	}
	b.cuts = true
	if b.kind.Told {
		b.status.Store(preempted)
		b.void()
		b.trial.Store(0)
		b.until.Store(now.Add(takenWord).UnixNano())
	}
	return Preempted
}

// tooMany counts a failure of a closed breaker, and tells whether it opens it. The caller holds mu.
func (b *Breaker) tooMany(e Evidence, later bool, now time.Time) bool {
	b.rows.Store(true)
	if later { // its good begin has broken the row that gobreaker counts
		most := b.most
		if b.kind.Many {
			if !b.lateAt.IsZero() && now.Sub(b.lateAt) <= togetherFor {
				return false // an engine that dies breaks all its streams
			}
			most = max(most, lateInRow)
		}
		b.lateAt = now
		b.late++
		return b.late >= most
	}
	if e == Stuck {
		return count(&b.stucks, stuckInRow, errFailed)
	}
	b.fails.add(now)
	failed := b.fails.sum(now)
	total := failed + b.wins.sum(now)
	return count(&b.buggies, b.most, errFailed) || total >= ratioOf && 2*failed > total
}

// count tells one of gobreaker's a result, and whether the row is full.
func count(cb **gobreaker.TwoStepCircuitBreaker[struct{}], row int, err error) bool {
	if *cb == nil {
		*cb = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
			Timeout:     math.MaxInt64, // it never closes: a new one begins a new row
			ReadyToTrip: func(c gobreaker.Counts) bool { return int(c.ConsecutiveFailures) >= row },
		})
	}
	done, openErr := (*cb).Allow()
	if openErr != nil {
		return true
	}
	done(err)
	return (*cb).State() != gobreaker.StateClosed
}

// forget ends the rows. The caller holds mu.
func (b *Breaker) forget() {
	if b.buggies != nil {
		count(&b.buggies, b.most, nil)
	}
	if b.stucks != nil {
		count(&b.stucks, stuckInRow, nil)
	}
	b.rows.Store(b.late > 0)
}

// open opens it, for longer each time. The caller holds mu.
func (b *Breaker) open(now time.Time, why status) {
	k := min(b.again.Add(1)-1, maxDoublings)
	b.pause = max(b.openFor, min(b.openFor<<k, maxOpen))
	b.opens.Add(1)
	if why >= gone {
		b.downAt = now
	}
	b.shut(why, now.Add(b.jittered(b.pause)))
}

// shut leaves it open until a time. The caller holds mu.
func (b *Breaker) shut(why status, until time.Time) {
	b.late, b.lateAt = 0, time.Time{}
	b.buggies, b.stucks = nil, nil
	b.void()
	b.trial.Store(0)
	b.rows.Store(false)
	b.cuts = false
	b.shutAt = b.now()
	b.until.Store(until.UnixNano()) // before the status: who sees that it is open sees for how long
	b.status.Store(why)
}

// reopen leaves it open for twice as long after a test that failed. The caller holds mu.
func (b *Breaker) reopen(now time.Time) {
	most := maxReopen
	if b.kind.Free && b.status.Load() >= gone { // while it is away nobody is disturbed, and its return is money
		most = maxLook
	}
	b.shutAt = now
	b.pause = min(2*max(b.pause, b.openFor), max(most, b.openFor))
	b.opens.Add(1)
	b.again.Add(1)
	b.until.Store(now.Add(b.jittered(b.pause)).UnixNano())
}

// close lets requests in again. The caller holds mu.
func (b *Breaker) close() Change {
	was := b.status.Load()
	b.buggies, b.stucks = nil, nil
	b.fails.reset()
	b.wins.reset()
	b.late, b.lateAt, b.cutAt, b.downAt = 0, time.Time{}, time.Time{}, time.Time{}
	b.backAt = b.now()
	b.void()
	b.trial.Store(0)
	b.testFrom = time.Time{}
	b.rows.Store(false)
	b.cuts = false
	if was >= gone {
		b.epoch.Add(1)
	}
	b.status.Store(closed)
	switch {
	case was == suspected:
		return Cleared
	case was >= gone:
		return Revived
	}
	return Recovered
}

// jittered sets breakers that opened together apart. The caller holds mu.
func (b *Breaker) jittered(d time.Duration) time.Duration {
	b.dice += 0x9e3779b97f4a7c15 // splitmix64 (Steele, Lea and Flood 2014)
	z := b.dice
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	z ^= z >> 31
	u := float64(z>>11) / (1 << 53)
	return time.Duration(float64(d) * (1 + jitter*(2*u-1)))
}

// CoolDown keeps requests away until the given time, because the endpoint asked for it. It does not end an earlier one sooner.
func (b *Breaker) CoolDown(until time.Time, why string) {
	for t := until.UnixNano(); ; {
		old := b.cool.Load()
		if old >= t {
			return
		}
		b.coolWhy.Store(&why) // first, for Wait reads it once it sees the time
		if b.cool.CompareAndSwap(old, t) {
			return
		}
	}
}

var whys = [...]string{
	suspected: "others on its machine, or of its owner or region, went down", buggy: "breaker open", stuck: "breaker open: it does not begin its answers",
	gone: "breaker open: nobody answers there", preempted: "its streams broke together", taken: "preempted",
}

// Wait returns how long nothing may be sent from now on, as far as can be told, and why; 0 when something may.
func (b *Breaker) Wait(now time.Time) (time.Duration, string) {
	if d := time.Duration(b.cool.Load() - now.UnixNano()); d > 0 {
		return d, *b.coolWhy.Load()
	}
	s := b.status.Load()
	if s == closed {
		return 0, ""
	}
	if s == taken {
		return maxOpen, whys[s]
	}
	if d := time.Duration(b.until.Load() - now.UnixNano()); d > 0 {
		return d, whys[s]
	}
	if b.trials.Load() && b.trial.Load() == 0 {
		return 0, ""
	}
	return unsaidPause, whys[s]
}

// Opens counts how often it opened.
func (b *Breaker) Opens() int64 { return b.opens.Load() }
