package vast

import (
	"context"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"headrace/providers/api"
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

	says  reading
	addrs []address
	keys  []bearer
	ident string // address, start and keys, as far as its identity hangs on them
	rival int64  // another instance that claims the same address, 0 for none

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
				f.take(ctx, l, now)
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

// take makes a whole list the fleet.
func (f *fleet) take(ctx context.Context, l *listing, now time.Time) {
	seen := make(map[int64]bool, len(f.hosts))
	skipped := f.merge(l, seen)
	for id, h := range f.hosts {
		if !seen[id] && !slices.ContainsFunc(l.Pages, func(pg page) bool { return pg.Asked.Before(h.readAt) }) {
			f.p.log.Info("instance is gone", "endpoint", endpointID(id), "was", h.logged.state)
			delete(f.hosts, id)
			delete(f.byHash, h.hash)
			f.changed = true
		}
	}
	f.pages = len(l.Pages)
	f.review(now)
	if !f.listed {
		f.listed, f.changed, f.firstBy = true, true, now.Add(f.p.opt.ProbeTimeout)
	}
	f.p.mu.Lock()
	f.p.status.Skipped, f.p.status.Endpoints, f.p.status.ClockSkew = skipped, len(f.hosts), l.Skew
	f.p.mu.Unlock()
	f.readPorts(ctx, now)
}

const maxSkipped = 100

// merge takes rows in. Those that say what they said before are not even decoded.
func (f *fleet) merge(l *listing, seen map[int64]bool) (skipped []api.Skipped) {
	for _, pg := range l.Pages {
		for _, raw := range pg.Rows {
			hash := maphash.Bytes(f.seed, raw)
			if h := f.byHash[hash]; h != nil && h.hash == hash {
				seen[h.id] = true
				if h.readAt.Before(pg.Asked) {
					h.readAt = pg.Asked
				}
				continue
			}
			r, err := parseRow(raw)
			if err != nil {
				f.p.odd(err.Error())
				continue
			}
			if why := f.p.unwanted(r); why != "" {
				if len(skipped) < maxSkipped {
					skipped = append(skipped, api.Skipped{ID: string(endpointID(r.id())), Name: string(r.Label), Why: why})
				}
				continue
			}
			if seen[r.id()] && f.hosts[r.id()] != nil {
				f.p.odd("instance listed twice")
			}
			seen[r.id()] = true
			f.put(r, hash, pg.Asked)
		}
	}
	return skipped
}

// put makes r the row of its instance, unless a newer one is known.
func (f *fleet) put(r *row, hash uint64, asked time.Time) {
	h := f.hosts[r.id()]
	if h == nil {
		h = &host{id: r.id()}
		f.hosts[h.id] = h
	} else if asked.Before(h.readAt) {
		return
	}
	delete(f.byHash, h.hash)
	h.row, h.hash, h.readAt = r, hash, asked
	f.byHash[hash] = h
	for _, o := range r.oddities() {
		f.p.odd(o)
	}
}

// unwanted says why an instance is none of those to be used, "" when it is.
func (p *Provider) unwanted(r *row) string {
	o := &p.opt
	switch {
	case o.IDs != nil && !slices.Contains(o.IDs, r.id()):
		return "its id is not among those to be used"
	case o.Labels != nil && !slices.Contains(o.Labels, string(r.Label)):
		return "its label is not among those to be used"
	case o.Templates != nil && !slices.ContainsFunc(o.Templates, func(t string) bool {
		return t != "" && (t == string(r.TemplateID) || t == string(r.TemplateHash) || t == string(r.TemplateName))
	}):
		return "its template is not among those to be used"
	}
	return ""
}

// review reads all rows anew: what they say depends on the time, and who claims which address on all of them.
func (f *fleet) review(now time.Time) {
	claims := map[netip.AddrPort]int64{}
	rivals := map[int64]int64{}
	for _, id := range f.ids() { // in order, so that the same rows give the same
		h := f.hosts[id]
		h.says = h.row.read(now)
		if h.says.odd != h.odd {
			h.odd = h.says.odd
			f.p.odd(h.odd)
		}
		if !h.says.candidate { // it may come back elsewhere, and as what it now serves
			h.addrs, h.byID, h.byIDIP, h.pin = nil, portMap{}, "", ""
			continue
		}
		h.addrs = f.addresses(h)
		for _, a := range h.addrs {
			if other, taken := claims[a.key()]; taken && other != id {
				rivals[id], rivals[other] = other, id
			}
			claims[a.key()] = id
		}
	}
	for id, h := range f.hosts {
		h.rival = rivals[id]
		h.keys = nil
		if h.says.candidate {
			h.keys = h.row.bearers(f.p.opt.Bearer)
		}
		if ident := h.identity(); ident != h.ident {
			h.ident = ident
			h.round++
			h.known, h.asked, h.why, h.fails, h.backoff, h.checking = false, false, "", 0, 0, false
			h.checkAt = now
		}
		f.changes(h, now)
	}
}

func (f *fleet) ids() []int64 {
	ids := make([]int64, 0, len(f.hosts))
	for id := range f.hosts {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func (f *fleet) addresses(h *host) []address {
	r, ports := h.row, h.row.Ports
	if len(ports.tcp) == 0 {
		ports = h.byID
	}
	if r.IP == "" && h.byIDIP != "" {
		c := *r
		c.IP = h.byIDIP
		r = &c
	}
	return r.addresses(ports, f.p.opt.Port, h.port)
}

// identity is all that may not change without asking again who answers. Which port is asked first is no part of it.
func (h *host) identity() string {
	if !h.says.candidate {
		return "out"
	}
	var places []string
	for _, a := range h.addrs {
		places = append(places, a.key().String())
	}
	slices.Sort(places)
	return fmt.Sprint(places, h.row.Start.v, h.rival) // keys are tried anew at each check
}

// check asks an instance who it is.
func (f *fleet) check(ctx context.Context, h *host, now time.Time) {
	q := &question{addrs: h.addrs[:min(len(h.addrs), maxAddresses)], keys: h.keys, models: f.p.opt.Models, pin: h.pin, mustAsk: h.keyed}
	if h.rival != 0 {
		q.contested = string(endpointID(h.rival))
		q.keys = f.alone(h)
	}
	h.checking, h.lastAt = true, now
	f.checking++
	round := h.round
	f.beside(ctx, func() func() {
		found := f.p.check.check(ctx, q)
		return func() {
			f.checking--
			if f.hosts[h.id] == h && h.round == round {
				f.judge(h, found, f.p.now())
			}
		}
	})
}

// alone are the keys that no rival of h has.
func (f *fleet) alone(h *host) []bearer {
	rival := f.hosts[h.rival]
	return slices.DeleteFunc(slices.Clone(h.keys), func(b bearer) bool {
		return !b.own || rival != nil && slices.ContainsFunc(rival.keys, func(o bearer) bool { return o.key == b.key })
	})
}

// judge takes in what a check found. One failure to answer does not take a host out that serves, since its breaker sees that as
// well and sooner; an answer that is not the instance's does.
func (f *fleet) judge(h *host, found finding, now time.Time) {
	h.checking, h.asked = false, true
	if found.ok {
		h.known, h.found, h.why, h.fails, h.backoff = true, found, "", 0, 0
		h.port, h.base, h.served, h.keyed = found.addr.inner, found.base, found.served, h.keyed || found.keyed
		h.pin = found.tls.Pin
		h.checkAt = now.Add(spread(recheck * f.p.opt.Poll))
	} else {
		h.fails++
		h.why = found.reason
		if found.certain || h.fails > 1 {
			h.known = false
		}
		h.backoff = min(max(2*h.backoff, f.quick()), f.p.opt.Poll)
		h.checkAt = now.Add(spread(h.backoff))
	}
	f.changes(h, now)
}

// spread adds up to an eighth, so that a thousand hosts are not asked at once for ever.
func spread(d time.Duration) time.Duration {
	return d + time.Duration(rand.Int64N(int64(d/8)+1)) //nolint:gosec // guards nothing
}

// readSome reads a few instances out of turn.
func (f *fleet) readSome(ctx context.Context, ids []int64) {
	if f.reading {
		return
	}
	f.reading = true
	f.beside(ctx, func() func() {
		l, err := f.p.some(ctx, ids)
		return func() {
			f.reading = false
			if err != nil {
				return // counted with its call; the poll that is due tells the operator
			}
			f.merge(l, map[int64]bool{})
			f.review(f.p.now())
		}
	})
}

// readPorts reads by id what runs but shows no ports in the list, those read longest ago first.
func (f *fleet) readPorts(ctx context.Context, now time.Time) {
	var need []*host
	for _, h := range f.hosts {
		if h.says.candidate && len(h.row.Ports.tcp) == 0 {
			need = append(need, h)
		}
	}
	if len(need) == 0 || f.reading {
		return
	}
	slices.SortFunc(need, func(a, b *host) int {
		if c := a.byIDAt.Compare(b.byIDAt); c != 0 {
			return c
		}
		return int(a.id - b.id)
	})
	ids := []int64{}
	for _, h := range need[:min(len(need), readsByID)] {
		h.byIDAt = now
		ids = append(ids, h.id)
	}
	f.reading = true
	f.beside(ctx, func() func() {
		rows := map[int64]*row{}
		for _, id := range ids {
			if r, err := f.p.one(ctx, id); err == nil && r != nil {
				rows[id] = r
			}
		}
		return func() {
			f.reading = false
			for id, r := range rows {
				if h := f.hosts[id]; h != nil && r.id() == id {
					h.byID, h.byIDIP = r.Ports, r.IP
				}
			}
			f.review(f.p.now())
		}
	})
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
