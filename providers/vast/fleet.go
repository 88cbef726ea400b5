package vast

import (
	"context"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"time"

	"headrace/router/endpoint"
)

// fleet is what Run knows. Its goroutine owns all of it; whatever waits for the network does so beside it and comes back as an event.
type fleet struct {
	p      *Provider
	events chan func()
	wg     sync.WaitGroup
	seed   maphash.Seed

	hosts  map[int64]*host
	byHash map[uint64]*host // by the bytes of the row as last listed

	listed    bool      // the account was read whole once
	firstBy   time.Time // when the first set is sent though some instances have not been asked yet
	pages     int       // of the last list
	polling   bool
	pollAgain bool      // something happened while a poll was under way
	emptied   bool      // the last list was empty, which the next one has to confirm
	urgent    bool      // the next poll is due to something that happened: another replica's list must be fresh
	pollAt    time.Time // when the next one is due
	pollBegan time.Time
	lastError string
	reading   bool // instances are read by id
	checking  int  // checks under way

	changed bool // something is to be sent
	sentAt  time.Time
}

// host is an instance and what was found out about it.
type host struct {
	id     int64
	row    *row
	hash   uint64
	readAt time.Time // when its row was asked for
	odd    string    // last oddity that was counted

	says   reading
	ending time.Time // when it was first said that it is being stopped; zero while it is not
	addrs  []address
	keys   []bearer
	ident  string  // address, start and keys, as far as its identity hangs on them
	rivals []int64 // other instances that claim the same address

	byID     portMap   // ports from a read by id, where lists show none
	byIDIP   text      // its address then
	byIDAt   time.Time // when it was read
	round    int       // of checks: what an older one finds is not about this address any more
	checking bool
	checkAt  time.Time
	lastAt   time.Time // when the last check began
	fails    int       // checks in a row that found nothing certain
	backoff  time.Duration
	asked    bool // a check of this round has ended

	known  bool // it is the instance it is taken for, and serves
	found  finding
	why    string // of the last check that failed
	port   int    // of the container on which it served
	keyed  bool   // it has asked for its key before
	pin    string
	served []endpoint.Served
	base   string // where it was reached last, without /v1

	sent   endpoint.Endpoint // as last sent
	logged struct {
		state  endpoint.State
		reason string
	}
}

const (
	checksAtOnce = 32
	readsByID    = 5 // of a poll, 2.2 s apart: rows without ports are few, and reads by id must not become a storm
	recheck      = 4 // polls between two checks of an instance that serves
	refresh      = 4 // polls after which prices are sent anew though nothing changed but their date

	sendEvery = 20 * time.Millisecond // changes that come in a burst are sent together
)

// Run reads the account's instances and sends them, then again after every change, until ctx is done. The first set waits, at most for
// Options.ProbeTimeout, until each running instance was asked who it is. A poll that fails sends nothing.
func (p *Provider) Run(ctx context.Context, out chan<- []endpoint.Endpoint) error {
	ctx, cancel := context.WithCancel(ctx)
	f := &fleet{
		p: p, events: make(chan func()), seed: maphash.MakeSeed(),
		hosts: map[int64]*host{}, byHash: map[uint64]*host{}, pollAt: p.now(),
	}
	defer func() { p.hosts = f.hosts }()
	defer p.client.CloseIdle()
	defer f.wg.Wait()
	defer cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		now := p.now()
		nudged, look := p.asked()
		f.heed(ctx, now, nudged, look)
		timer.Reset(f.begin(ctx, now))
		var to chan<- []endpoint.Endpoint
		var set, kept []endpoint.Endpoint
		if f.maySend(now) {
			set = f.set(now)
			to, kept = out, slices.Clone(set) // what was sent is the receiver's
		}
		select {
		case to <- set:
			f.changed, f.sentAt = false, now
			for i := range kept {
				f.hosts[idOf(&kept[i])].sent = kept[i]
			}
		case event := <-f.events:
			event()
		case <-p.wake:
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// beside runs work off the loop; the function it returns runs on it.
func (f *fleet) beside(ctx context.Context, work func() func()) {
	f.wg.Go(func() {
		event := work()
		select {
		case f.events <- event:
		case <-ctx.Done():
		}
	})
}

// pollEvery is the time between the begins of two polls: Poll, or longer where the list's pages take longer.
func (f *fleet) pollEvery() time.Duration { return max(f.p.opt.Poll, f.listTakes()) }

// listTakes is the least time in which Vast.ai's rate limit lets all pages be read.
func (f *fleet) listTakes() time.Duration {
	return time.Duration(max(f.pages, 1)) * f.p.paced(listEvery)
}

// heed does what Nudge and look asked for.
func (f *fleet) heed(ctx context.Context, now time.Time, nudged map[int64]struct{}, look bool) {
	var ids []int64
	for id := range nudged {
		h := f.hosts[id]
		if h == nil {
			continue
		}
		ids = append(ids, id)
		if soon := h.lastAt.Add(f.quick()); h.says.candidate && soon.Before(h.checkAt) {
			h.checkAt = soon
		}
	}
	if len(ids) == 0 && !look {
		return
	}
	f.soon(now)
	if f.pages > 1 && !look && !f.p.isSimple() { // a look at all of them takes a while
		slices.Sort(ids)
		f.readSome(ctx, ids[:min(len(ids), pageSize)])
	}
}

// soon brings the next poll forward, as far as the least time between lists allows.
func (f *fleet) soon(now time.Time) {
	if f.polling {
		f.pollAgain = true
		return
	}
	f.urgent = true
	at := f.pollBegan.Add(f.listTakes())
	if at.Before(now) {
		at = now
	}
	if at.Before(f.pollAt) {
		f.pollAt = at
	}
}

// quick is the time before a check that failed is made again, the first time; also the least time between two.
func (f *fleet) quick() time.Duration { return f.p.opt.Poll / 15 }

// begin starts what is due and returns the time until something is.
func (f *fleet) begin(ctx context.Context, now time.Time) time.Duration {
	next := f.pollAt
	if f.polling {
		next = now.Add(time.Hour)
	} else if !now.Before(f.pollAt) {
		f.poll(ctx, now)
		next = now.Add(time.Hour)
	}
	if at := f.bill(ctx, now); at.Before(next) {
		next = at
	}
	for _, h := range f.hosts {
		switch {
		case !h.says.candidate || h.checking || len(h.addrs) == 0:
		case h.checkAt.After(now):
			if h.checkAt.Before(next) {
				next = h.checkAt
			}
		case f.checking < checksAtOnce:
			f.check(ctx, h, now)
		}
	}
	if f.sentAt.IsZero() && f.listed && f.firstBy.After(now) && f.firstBy.Before(next) {
		next = f.firstBy
	}
	if at := f.sentAt.Add(sendEvery); f.changed && at.After(now) && at.Before(next) {
		next = at
	}
	return max(next.Sub(now), 0)
}

func (f *fleet) poll(ctx context.Context, now time.Time) {
	within := f.pollEvery() * 9 / 10 // how old another replica's list may be
	if f.urgent {
		within = f.listTakes()
	}
	f.polling, f.pollBegan, f.pollAgain, f.urgent = true, now, false, false
	f.beside(ctx, func() func() {
		l, err := f.p.shared(ctx, within)
		return func() {
			now := f.p.now()
			f.polling = false
			if err == nil {
				err = f.take(ctx, l, now)
			}
			f.pollAt = f.pollBegan.Add(f.pollEvery())
			if f.settle(err, now); f.pollAgain {
				f.soon(now)
			}
		}
	})
}

// settle notes how a poll went.
func (f *fleet) settle(err error, now time.Time) {
	p := f.p
	p.mu.Lock()
	p.status.Polls++
	if err != nil {
		p.status.Failing++
		p.status.LastError = err.Error()
	} else {
		p.status.Failing, p.status.LastError, p.status.LastGood = 0, "", now
	}
	failing := p.status.Failing
	p.mu.Unlock()
	switch {
	case err != nil && (failing == 1 || err.Error() != f.lastError):
		p.log.Warn("Vast.ai's instances cannot be read, the last known ones stay in use", "error", err, "failing_polls", failing)
		f.lastError = err.Error()
	case err == nil && f.lastError != "":
		p.log.Info("Vast.ai's instances can be read again")
		f.lastError = ""
	}
}

// maySend tells whether there is something to send. The first set waits for the first answers.
func (f *fleet) maySend(now time.Time) bool {
	if !f.listed || now.Sub(f.sentAt) < sendEvery {
		return false
	}
	if f.sentAt.IsZero() && now.Before(f.firstBy) {
		for _, h := range f.hosts {
			if h.says.candidate && len(h.addrs) > 0 && !h.asked {
				return false
			}
		}
	}
	return f.changed || len(f.hosts) > 0 && now.Sub(f.sentAt) > refresh*f.pollEvery()
}

// set returns the fleet, by ID.
func (f *fleet) set(now time.Time) []endpoint.Endpoint {
	eps := make([]endpoint.Endpoint, 0, len(f.hosts))
	for _, h := range f.hosts {
		eps = append(eps, f.p.endpoint(h, now))
	}
	slices.SortFunc(eps, func(a, b endpoint.Endpoint) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return eps
}

// changes notes whether h is another than was sent, the date of its price aside, and logs what is.
func (f *fleet) changes(h *host, now time.Time) {
	ep := f.p.endpoint(h, now)
	if same(&ep, &h.sent) {
		return
	}
	if f.changed = true; ep.State != h.logged.state || ep.StateReason != h.logged.reason {
		f.p.log.Info("instance", "endpoint", ep.ID, "state", ep.State, "was", h.logged.state, "why", ep.StateReason, "url", ep.BaseURL)
		h.logged.state, h.logged.reason = ep.State, ep.StateReason
	}
}
