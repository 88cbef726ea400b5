package chaos

import (
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"headrace/gateway/ledger"
	"headrace/router/outcome"
)

// Options are what a Run needs beside its scenario.
type Options struct {
	Scenario *Scenario
	Fleet    *Fleet
	Base     string       // of the gateway, up to /v1
	TLS      *tls.Config  // for callers, nil for plain HTTP
	Tell     func(string) // of faults, one line at a time; nil for nobody
	// Held tells how many requests the gateway holds to be running, by host; nil for nobody.
	Held func() map[string]int64
}

// Run is one play of a scenario. Settled may be called from any goroutine.
type Run struct {
	o     Options
	began time.Time
	news  chan struct{} // something was settled since somebody looked

	mu        sync.Mutex // guards all below
	heard     []answer
	gaps      histogram
	seams     histogram
	stalled   int
	tokens    int64
	records   map[string]*ledger.Record // by request id
	again     map[string]int            // by request id: settlements after the first one
	faults    map[string]int
	outages   []*outage
	suffering map[*member]bool
	quiet     time.Time // callers begin no answer after that; zero for not yet
}

// answer is what a caller got for what it asked.
type answer struct {
	ask Ask
	heard
}

// came says that the gateway answered, however that ended.
func (a *answer) came() bool { return a.id != "" || a.Status != 0 }

// outage is a host's absence.
type outage struct {
	id   string
	from time.Time
	back time.Time // it takes connections again; zero for never
	next time.Time // something befalls it once more; zero for never
}

// New makes a Run. Give Settled to the gateway before it serves.
func New(o Options) *Run {
	return &Run{
		o: o, records: map[string]*ledger.Record{}, again: map[string]int{}, faults: map[string]int{}, suffering: map[*member]bool{},
		news: make(chan struct{}, 1),
	}
}

// Settled notes what the gateway's ledger says of a request.
func (r *Run) Settled(rec *ledger.Record) {
	var c ledger.Record
	rec.CopyTo(&c)
	r.mu.Lock()
	if r.records[rec.ID] != nil {
		r.again[rec.ID]++
	} else {
		r.records[rec.ID] = &c
	}
	r.mu.Unlock()
	select {
	case r.news <- struct{}{}:
	default: // it is known already
	}
}

// tail is how long answers may take that run when the scenario is over.
const tail = 90 * time.Second

// settling is how long the gateway may take to settle requests and to give their hosts back, once their callers have their
// answers to the end.
const settling = 10 * time.Second

// Play plays the scenario until its end, or until ctx is done, and returns what came of it.
func (r *Run) Play(ctx context.Context) *Report {
	s := r.o.Scenario
	r.began = time.Now()
	running, stop := context.WithTimeout(ctx, s.For)
	defer stop()
	asking, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	defer hangUp()
	client := newClient(r.o.TLS)
	defer client.CloseIdleConnections()

	var faults, callers sync.WaitGroup
	faults.Go(func() { r.breakThings(running) })
	for i := range s.Streams {
		callers.Go(func() { r.call(running, asking, &caller{base: r.o.Base, client: client}, i) })
	}
	<-running.Done()
	r.mu.Lock()
	r.quiet = time.Now()
	r.mu.Unlock()
	late := time.AfterFunc(tail, hangUp)
	defer late.Stop()
	callers.Wait()
	faults.Wait()
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), settling)
	defer cancel()
	r.settle(limit)
	return r.report()
}

// settle waits until every answer has its record and no host is held, or until ctx is done.
func (r *Run) settle(ctx context.Context) {
	t := time.NewTicker(10 * time.Millisecond) // nobody tells of a host that is given back
	defer t.Stop()
	for r.unsettled() > 0 || len(r.held()) > 0 {
		select {
		case <-r.news:
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// held is how many requests are held to be running, by host; hosts without any are left out.
func (r *Run) held() map[string]int64 {
	if r.o.Held == nil {
		return nil
	}
	m := r.o.Held()
	maps.DeleteFunc(m, func(_ string, n int64) bool { return n == 0 })
	return m
}

// unsettled counts answers that have no record.
func (r *Run) unsettled() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.heard {
		if r.heard[i].came() && r.records[r.heard[i].id] == nil {
			n++
		}
	}
	return n
}

// call asks one thing after another.
func (r *Run) call(running, asking context.Context, c *caller, n int) {
	s := r.o.Scenario
	rng := rand.New(rand.NewPCG(s.Seed, uint64(n)+1000)) //nolint:gosec // repeatable on purpose
	wait(running, time.Duration(rng.Float64()*float64(s.TTFTMost())))
	for i := 0; running.Err() == nil; i++ {
		a := s.Traffic.draw(rng, Named, Model, n, i)
		var gaps, seams []time.Duration
		stalled := false
		h := c.ask(asking, &a, func(d time.Duration, seam bool) {
			stalled = stalled || d > time.Second
			if seam {
				seams = append(seams, d)
			} else {
				gaps = append(gaps, d)
			}
		})
		if asking.Err() != nil {
			h.bad("it had not ended %v after the end of the scenario", tail)
		}
		r.mu.Lock()
		r.heard = append(r.heard, answer{a, h})
		r.tokens += int64(h.Tokens)
		if stalled {
			r.stalled++
		}
		for _, d := range gaps {
			r.gaps.add(d)
		}
		for _, d := range seams {
			r.seams.add(d)
		}
		r.mu.Unlock()
		if h.End == Refused {
			wait(running, min(max(h.after, 100*time.Millisecond), time.Second))
		}
	}
}

// TTFTMost is the longest time to the first token of an idle host: callers begin within it.
func (s *Scenario) TTFTMost() (d time.Duration) {
	for _, h := range s.Hosts {
		d = max(d, h.TTFT)
	}
	return d
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// breakThings lets faults befall hosts until ctx is done; then all of them are over.
func (r *Run) breakThings(ctx context.Context) {
	s := r.o.Scenario
	if len(s.Faults) == 0 {
		return
	}
	rng := rand.New(rand.NewPCG(s.Seed, 1)) //nolint:gosec // repeatable on purpose
	var over sync.WaitGroup
	defer over.Wait()
	t := time.NewTicker(s.Every)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		f, m := r.next(rng)
		lasts := time.Duration((0.7 + 0.6*rng.Float64()) * float64(s.Down))
		if f == nil {
			continue
		}
		switch f.Do {
		case Outbid, Leave: // it boots in the other half
			lasts /= 2
		case Restart: // it does so at once
			lasts = 0
		default:
		}
		over.Go(func() { r.strike(ctx, f, m, lasts) })
	}
}

// next draws a fault and its victim; nil when none is possible now.
func (r *Run) next(rng *rand.Rand) (*FaultSpec, *member) {
	s := r.o.Scenario
	weight, victim := rng.Float64(), rng.Float64() // drawn whatever is possible
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.o.Fleet.members)-len(r.suffering) <= s.Keep {
		return nil, nil
	}
	can := make([][]*member, len(s.Faults))
	total := 0.0
	for i := range s.Faults {
		for _, m := range r.o.Fleet.members {
			if !r.suffering[m] && s.Faults[i].befalls(m.name, m.kind) {
				can[i] = append(can[i], m)
			}
		}
		if len(can[i]) > 0 {
			total += s.Faults[i].Weight
		}
	}
	at := weight * total
	for i := range s.Faults {
		if len(can[i]) == 0 {
			continue
		}
		if at -= s.Faults[i].Weight; at <= 0 {
			m := can[i][int(victim*float64(len(can[i])))]
			r.suffering[m] = true
			return &s.Faults[i], m
		}
	}
	return nil, nil
}

// strike lets f befall m for a while, or until ctx is done.
func (r *Run) strike(ctx context.Context, f *FaultSpec, m *member, lasts time.Duration) {
	r.tell("%s: %s", m.id, f.Do)
	var out *outage
	if f.Do.dead() || f.Do == Leave {
		out = &outage{id: m.id, from: time.Now()}
	}
	r.mu.Lock()
	r.faults[string(f.Do)]++
	for _, o := range r.outages {
		if o.id == m.id && o.next.IsZero() {
			o.next = time.Now()
		}
	}
	if out != nil {
		r.outages = append(r.outages, out)
	}
	r.mu.Unlock()
	heal := m.befall(f)
	wait(ctx, lasts)
	heal()
	back := time.Now()
	if out != nil { // until it serves, which takes an instance a while
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), tail)
		for !m.listens(limit) && limit.Err() == nil {
			wait(limit, 10*time.Millisecond)
		}
		back = time.Now()
		cancel()
	}
	r.tell("%s is well again", m.id)
	r.mu.Lock()
	defer r.mu.Unlock()
	if out != nil {
		out.back = back
	}
	delete(r.suffering, m)
}

func (r *Run) tell(format string, args ...any) {
	if r.o.Tell != nil {
		r.o.Tell(fmt.Sprintf("%6.1f s  %s", time.Since(r.began).Seconds(), fmt.Sprintf(format, args...)))
	}
}

// most problems are told of; the others are counted.
const mostProblems = 12

func (r *Run) report() *Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.o.Scenario
	rep := &Report{
		Scenario: s.Name, Title: s.Title, Seed: s.Seed, Hosts: len(r.o.Fleet.members), Streams: s.Streams, Seconds: time.Since(r.began).Seconds(), TLS: s.TLS, TokenIDs: s.TokenIDs, LeftOut: s.LeftOut,
		Tokens: r.tokens, Stalled: r.stalled, Gaps: r.gaps.spans(), Seams: r.seams.spans(), Faults: r.faults, Problems: []Problem{},
		Attempts: map[string]int{}, NotContinued: map[string]int{},
	}
	for _, name := range []string{FreeStreams, FreePlain, BoundAll} {
		rep.Groups = append(rep.Groups, Group{Name: name, Errors: map[string]int{}})
	}
	for i := range r.heard {
		r.enter(rep, &r.heard[i])
	}
	rep.Held = r.held()
	for _, n := range r.again { // also of those whose answer nobody got
		rep.Resettled += n
	}
	r.follow(rep)
	for _, m := range r.o.Fleet.members {
		if m.kind == Static {
			if rep.Probes == nil {
				rep.Probes = new(int64)
			}
			*rep.Probes += m.probes.Load()
		}
	}
	rep.judge(s.Complete)
	return rep
}

// enter counts one answer.
func (r *Run) enter(rep *Report, a *answer) {
	g := &rep.Groups[0]
	switch {
	case a.ask.Bound != Free:
		g = &rep.Groups[2]
	case !a.ask.Stream:
		g = &rep.Groups[1]
	}
	rec := r.records[a.id]
	continued, moved := a.Resumed > 0, false
	if rec != nil {
		continued, moved = continued || rec.Resumes > 0, rec.Tries > 1
		if rec.Lost != "" && a.End != Complete {
			rep.NotContinued[rec.Lost]++
		}
	}
	g.Answers++
	switch a.End {
	case Complete:
		g.Complete++
		switch {
		case continued:
			if g.Continued++; rec != nil && exact(rec) {
				g.Exact++
			}
		case moved:
			g.Moved++
		}
	case Failed:
		g.Failed++
	case Refused:
		g.Refused++
	case Cut:
		g.Cut++
	}
	if a.Code != "" {
		g.Errors[a.Code]++
	}
	rep.Lost += a.Lost
	rep.Doubled += a.Doubled
	rep.Altered += a.Altered
	if len(a.Problems) > 0 && a.End != Cut {
		rep.Wrong++
	}
	what := a.Problems
	if rec == nil && a.came() {
		rep.Unsettled++
		what = append(slices.Clip(what), "the ledger has no record of it")
	}
	if n := r.again[a.id]; n > 0 {
		what = append(slices.Clip(what), fmt.Sprintf("it was settled %d times", n+1))
	}
	if len(what) > 0 && len(rep.Problems) < mostProblems {
		p := Problem{Request: a.id, Asked: string(a.ask.Body()), End: a.End, Code: a.Code, What: what, Attempts: []string{}}
		if rec != nil {
			for _, t := range rec.Attempts {
				p.Attempts = append(p.Attempts, fmt.Sprintf("%s %s", t.Endpoint, t.Class))
			}
		}
		rep.Problems = append(rep.Problems, p)
	}
}

// exact tells whether all that went on with an answer did so by the numbers of its tokens.
func exact(rec *ledger.Record) bool {
	n := 0
	for i := range rec.Attempts {
		a := &rec.Attempts[i]
		if a.Resumed && !a.Exact {
			return false
		}
		if a.Exact {
			n++
		}
	}
	return n > 0
}

// attempt is one request to one host.
type attempt struct {
	began, ended time.Time
	class        outcome.Class
	served       bool // a token came of it, or all of a plain answer
}

// slack is how long after the report of a failure a request may still have been chosen for the host before: what the scheduler of a
// busy machine takes.
const slack = 20 * time.Millisecond

// enough requests per host of the fleet, begun while one that is back is due to be asked, leave no excuse for not asking it.
const enough = 10

// follow finds out what was sent to hosts that were away, and when those that came back were asked again.
func (r *Run) follow(rep *Report) {
	sent := map[string][]attempt{} // by host
	var begun []time.Time          // any of them
	for _, rec := range r.records {
		for i := range rec.Attempts {
			t := &rec.Attempts[i]
			began := rec.At.Add(t.After)
			begun = append(begun, began)
			sent[string(t.Endpoint)] = append(sent[string(t.Endpoint)], attempt{began, began.Add(t.Duration), t.Class, t.First > 0 || t.Class == outcome.Success})
			if t.Class != outcome.Success {
				rep.Attempts[t.Class.String()]++
			}
		}
	}
	within := r.o.Fleet.trustWithin()
	busy := func(from time.Time) bool { // requests enough in the time within which a host is due to be asked
		n := 0
		for _, at := range begun {
			if !at.Before(from) && at.Before(from.Add(within)) {
				n++
			}
		}
		return n >= enough*len(r.o.Fleet.members)
	}
	var trusted histogram
	for _, o := range r.outages {
		rep.Outages++
		until := time.Now() // of what is looked at after its return
		if !o.next.IsZero() {
			until = o.next
		}
		back := o.back
		if back.IsZero() {
			back = until
		}
		var first time.Time // failure
		for _, a := range sent[o.id] {
			if a.class.Policy().Verdict == outcome.Faulty && !a.ended.Before(o.from) && a.ended.Before(back) && (first.IsZero() || a.ended.Before(first)) {
				first = a.ended
			}
		}
		var served time.Time
		for _, a := range sent[o.id] {
			if !first.IsZero() && a.began.After(first.Add(slack)) && a.began.Before(back) {
				rep.Corpse++
			}
			if !o.back.IsZero() && a.served && !a.began.Before(o.back) && a.began.Before(until) && (served.IsZero() || a.began.Before(served)) {
				served = a.began
			}
		}
		if o.back.IsZero() {
			continue
		}
		if !r.quiet.IsZero() && r.quiet.Before(until) {
			until = r.quiet
		}
		switch late := served.Sub(o.back); {
		case !served.IsZero() && (late <= within || busy(o.back)):
			trusted.add(late)
		case served.IsZero() && until.Sub(o.back) >= within && busy(o.back):
			rep.Unasked++
		default:
			rep.Untold++
		}
	}
	rep.Trusted, rep.TrustWithin = trusted.spans(), within.Seconds()
}

// Faulted lists what befell hosts, most often first.
func (r *Report) Faulted() (words []string) {
	for w := range r.Faults {
		words = append(words, w)
	}
	slices.SortFunc(words, func(a, b string) int {
		if r.Faults[a] != r.Faults[b] {
			return r.Faults[b] - r.Faults[a]
		}
		if a < b {
			return -1
		}
		return 1
	})
	return words
}
