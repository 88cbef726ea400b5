// Package fleet tells the other replicas what this one knows of the hosts, and its router what they know: who is lost or taken away, at
// once; how much each of them has at each host, every second and when it changes. Nothing here is on the path of a request.
package fleet

import (
	"context"
	"encoding/json"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"headrace/gateway/state"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/health"
)

// Kinds of events and notes.
const (
	hostKind = "host" // a host was lost, was taken away or is back
	loadKind = "load" // what a replica has at each host
)

const (
	loadEvery = time.Second
	loadLook  = 100 * time.Millisecond // whether it has changed so much that others should know sooner
	loadLeap  = 4                      // requests at one host, or a quarter of them if that is more
	// silentFor is after which a replica that says nothing has nothing.
	silentFor = 3 * time.Second
	// fadeOver is how long its last word is given ever less weight, where the way by which they come is cut.
	fadeOver = 10 * time.Second
	// noteEvery is how often it is noted who is missing, for replicas that come later; a note holds for noteFor.
	noteEvery = 5 * time.Second
	noteFor   = 15 * time.Second
	// toldLately is how long what another has told need not be told again.
	toldLately = 5 * time.Second
	// toldFor is how long what a control plane has told one replica is more than a suspicion for the others, whose own has told them by then; and a
	// note that is older than noteFor breaks off nothing.
	toldFor = time.Minute
	queue   = 256 // transitions that wait to be told
	// tellAgain is after which what could not be told is told again, until it is older than toldFor.
	tellAgain = 250 * time.Millisecond
	// mostLoad and mostPrompt are more than a replica can have at one host: sums of what is said stay numbers.
	mostLoad   = 1 << 16
	mostPrompt = 1 << 32
)

// Way is how replicas reach each other. *state.Redis is one.
type Way interface {
	state.Bus
	ID() string
	Joined(call func()) (stop func())
	Hears() bool
	Note(ctx context.Context, kind, name string, body []byte, keep time.Duration, quiet bool) error
	Notes(ctx context.Context, kind string) ([]state.Note, error)
}

// Options set up a Share.
type Options struct {
	Router *router.Router
	Way    Way
	// Taken is told of a host that another replica's control plane has taken away: what runs there breaks off any moment. It must not block.
	Taken func(endpoint.ID)
	Log   *slog.Logger
	Now   func() time.Time // default time.Now
}

// Share is this replica's part.
type Share struct {
	opt  Options
	out  chan router.Transition
	join chan struct{} // of one: events have begun to come

	lost, told, heard atomic.Int64

	mu     sync.Mutex // guards all below
	others map[string]*replica
	lately map[endpoint.ID]word // what others said of late
	wait   map[endpoint.ID]word // likewise, of hosts that this one does not know yet
}

// replica is what another one has.
type replica struct {
	at    time.Time // it said so last
	loads map[endpoint.ID]load
}

// load is requests in flight, and prompt tokens of those that have no first token yet.
type load struct{ n, prompt int64 }

type word struct {
	transition router.Transition
	until      time.Time
}

// New returns a Share. Run has it take part.
func New(o Options) *Share {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Share{
		opt: o, out: make(chan router.Transition, queue), join: make(chan struct{}, 1),
		others: map[string]*replica{}, lately: map[endpoint.ID]word{}, wait: map[endpoint.ID]word{},
	}
}

// Changed tells the others of a transition, soon. It is router.Options.Changed, and never blocks.
func (s *Share) Changed(t router.Transition) {
	select {
	case s.out <- t:
	default: // others find out by themselves
		s.lost.Add(1)
	}
}

// Status counts what was told and heard.
type Status struct {
	Replicas int   `json:"loaded"` // others that have something in flight
	Told     int64 `json:"told"`   // transitions of hosts
	Heard    int64 `json:"heard"`  // likewise, that were news
	Lost     int64 `json:"lost"`   // likewise, that could not be told
}

// Status returns the counts.
func (s *Share) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Status{len(s.others), s.told.Load(), s.heard.Load(), s.lost.Load()}
}

// Run takes part until ctx is done.
func (s *Share) Run(ctx context.Context) error {
	defer s.opt.Way.Subscribe(hostKind, s.hearHost)()
	defer s.opt.Way.Subscribe(loadKind, s.hearLoad)()
	defer s.opt.Way.Joined(func() {
		s.again()
		select {
		case s.join <- struct{}{}:
		default:
		}
	})()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.tellHosts(ctx) })
	s.tellLoads(ctx)
	return ctx.Err()
}

// hostWord is a transition as it is sent. It has no time, for clocks differ, but says how long ago that was when it was sent.
type hostWord struct {
	Host endpoint.ID   `json:"host"`
	What string        `json:"what"` // one of words
	Told bool          `json:"told,omitempty"`
	For  time.Duration `json:"for,omitempty"` // nanoseconds
	Age  time.Duration `json:"age,omitempty"` // likewise
	// Life is when the host was started that it is said of, in Unix milliseconds by its provider's clock; 0 for unknown.
	Life int64 `json:"life,omitempty"`
	// From and Keep are of notes: whose it is, and how long it was to be kept.
	From string        `json:"from,omitempty"`
	Keep time.Duration `json:"keep,omitempty"`
}

//nolint:gochecknoglobals // a table
var words = map[health.Change]string{
	health.Opened: "opened", health.Lost: "lost", health.Preempted: "preempted",
	health.Recovered: "recovered", health.Revived: "revived", health.Cleared: "cleared",
}

func (s *Share) encode(t router.Transition, keep time.Duration) []byte {
	w := hostWord{Host: t.Endpoint, What: words[t.Change], Told: t.Told, For: t.For, From: s.opt.Way.ID(), Keep: keep}
	if !t.Started.IsZero() {
		w.Life = t.Started.UnixMilli()
	}
	if !t.At.IsZero() {
		w.Age = max(0, s.opt.Now().Sub(t.At))
	}
	b, err := json.Marshal(w)
	if err != nil {
		panic("BUG: a transition that JSON cannot express: " + err.Error())
	}
	return b
}

// decode returns what a word says; late is how long it was under way.
func decode(w *hostWord, late time.Duration, now time.Time) (t router.Transition, ok bool) {
	age := max(0, w.Age, w.Age+late)
	for c, name := range words {
		if name == w.What {
			t = router.Transition{Endpoint: w.Host, Change: c, Told: w.Told && age < toldFor, For: w.For, At: now.Add(-age)}
			if w.Life > 0 {
				t.Started = time.UnixMilli(w.Life)
			}
			return t, true
		}
	}
	return t, false // a later version's
}

// down tells whether a change says that a host is not to be used.
func down(c health.Change) bool {
	return c == health.Opened || c == health.Lost || c == health.Preempted
}

// tellHosts tells of transitions, notes who is missing, and takes in what others had noted before events came.
func (s *Share) tellHosts(ctx context.Context) {
	t := time.NewTicker(noteEvery)
	defer t.Stop()
	again := time.NewTimer(tellAgain)
	defer again.Stop()
	untold := map[endpoint.ID]router.Transition{} // the newest of each host
	tell := func(tr router.Transition) (ok bool) {
		delete(untold, tr.Endpoint)
		switch ok = s.tellHost(ctx, tr); {
		case ok:
		case s.opt.Now().Sub(tr.At) < toldFor:
			untold[tr.Endpoint] = tr
			again.Reset(tellAgain)
		default:
			s.lost.Add(1)
		}
		return ok
	}
	for {
		select {
		case <-ctx.Done():
			return
		case tr := <-s.out:
			if tr.At.IsZero() {
				tr.At = s.opt.Now()
			}
			tell(tr)
		case <-again.C:
			for _, tr := range untold {
				if !tell(tr) {
					break // nor can the others be told
				}
			}
			if len(untold) > 0 {
				again.Reset(tellAgain)
			}
		case <-s.join:
			notes, err := s.opt.Way.Notes(ctx, hostKind)
			if err != nil {
				continue // the next beginning reads them
			}
			for _, n := range notes {
				s.hearNote(n)
			}
		case <-t.C:
			for _, tr := range s.opt.Router.Missing(nil) {
				if s.opt.Way.Note(ctx, hostKind, string(tr.Endpoint), s.encode(tr, noteFor), noteFor, true) != nil {
					break
				}
			}
		}
	}
}

// tellHost tells of one; false where that has failed.
func (s *Share) tellHost(ctx context.Context, t router.Transition) bool {
	s.mu.Lock()
	w, ok := s.lately[t.Endpoint]
	s.mu.Unlock()
	if ok && s.opt.Now().Before(w.until) && down(t.Change) && down(w.transition.Change) && (w.transition.Told || !t.Told) {
		return true // it is what this one was told
	}
	keep := time.Duration(0)
	if down(t.Change) {
		keep = max(noteFor, min(t.For, time.Minute))
	}
	if s.opt.Way.Note(ctx, hostKind, string(t.Endpoint), s.encode(t, keep), keep, false) != nil {
		return false
	}
	s.told.Add(1)
	return true
}

// hearHost takes in another's transition.
func (s *Share) hearHost(_ string, payload []byte) {
	var w hostWord
	if json.Unmarshal(payload, &w) == nil {
		s.hear(&w, 0)
	}
}

// hearNote takes in what another has noted, as old as it is. What this one has noted itself it knows better by now.
func (s *Share) hearNote(n state.Note) {
	var w hostWord
	if json.Unmarshal(n.Body, &w) == nil && w.From != s.opt.Way.ID() {
		s.hear(&w, max(0, w.Keep-n.Left))
	}
}

// hear takes in a word that was under way for so long.
func (s *Share) hear(w *hostWord, late time.Duration) {
	now := s.opt.Now()
	t, ok := decode(w, late, now)
	if !ok {
		return
	}
	s.mu.Lock()
	if now.Sub(t.At) < toldLately {
		s.lately[t.Endpoint] = word{t, now.Add(toldLately)}
	}
	delete(s.wait, t.Endpoint)
	s.mu.Unlock()
	known, changed := s.opt.Router.Heard(t)
	if !known && down(t.Change) {
		s.mu.Lock()
		s.wait[t.Endpoint] = word{t, now.Add(noteFor)}
		s.mu.Unlock()
	}
	if changed {
		s.news(t)
	}
}

// news does what follows from what another has told.
func (s *Share) news(t router.Transition) {
	s.heard.Add(1)
	s.opt.Log.Info("another replica tells of a host", "endpoint", t.Endpoint, "what", words[t.Change], "told_by_provider", t.Told)
	if t.Told && t.Change == health.Preempted && s.opt.Taken != nil && s.opt.Now().Sub(t.At) < noteFor {
		s.opt.Taken(t.Endpoint)
	}
}

// late takes in what was told of hosts that have come since, and forgets what is too long ago.
func (s *Share) late(now time.Time) {
	s.mu.Lock()
	var try []router.Transition
	for id, w := range s.wait {
		if now.After(w.until) {
			delete(s.wait, id)
		} else {
			try = append(try, w.transition)
		}
	}
	for id, w := range s.lately {
		if now.After(w.until) {
			delete(s.lately, id)
		}
	}
	s.mu.Unlock()
	for _, t := range try {
		known, changed := s.opt.Router.Heard(t)
		if known {
			s.mu.Lock()
			delete(s.wait, t.Endpoint)
			s.mu.Unlock()
		}
		if changed {
			s.news(t)
		}
	}
}

// loadWord is what a replica has at one host, as it is sent.
type loadWord struct {
	Host   endpoint.ID `json:"h"`
	N      int64       `json:"n"`
	Prompt int64       `json:"p,omitempty"`
}

// tellLoads tells what this replica has at each host, and has the router know what the others have.
func (s *Share) tellLoads(ctx context.Context) {
	t := time.NewTicker(loadLook)
	defer t.Stop()
	var toldAt time.Time
	told := map[endpoint.ID]int64{}
	var loads []router.HostLoad
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			if len(told) > 0 { // others need not wait until it is silent
				c, cancel := context.WithTimeout(context.WithoutCancel(ctx), loadLook)
				defer cancel()
				_ = s.opt.Way.Publish(c, loadKind, []byte("[]"))
			}
			return
		case <-t.C:
		}
		now := s.opt.Now()
		if n%10 == 0 {
			s.late(now)
		}
		s.settle(now)
		loads = s.opt.Router.Loads(loads[:0])
		if now.Sub(toldAt) < loadEvery && !leapt(told, loads) || len(loads) == 0 && len(told) == 0 || !s.opt.Way.Hears() {
			continue
		}
		list := make([]loadWord, len(loads))
		for i, l := range loads {
			list[i] = loadWord{l.Endpoint, l.InFlight, l.PromptTokens}
		}
		b, err := json.Marshal(list)
		if err != nil {
			panic("BUG: loads that JSON cannot express: " + err.Error())
		}
		toldAt = now
		if s.opt.Way.Publish(ctx, loadKind, b) != nil {
			continue
		}
		clear(told)
		for _, l := range loads {
			told[l.Endpoint] = l.InFlight
		}
	}
}

// leapt tells whether some load differs much from what was told.
func leapt(told map[endpoint.ID]int64, loads []router.HostLoad) bool {
	far := func(was, is int64) bool {
		d := max(is-was, was-is)
		return d >= loadLeap && 4*d >= was
	}
	seen := 0
	for _, l := range loads {
		was, ok := told[l.Endpoint]
		if ok {
			seen++
		}
		if far(was, l.InFlight) {
			return true
		}
	}
	if seen == len(told) {
		return false
	}
	for id, was := range told { // some have nothing any more
		if far(was, 0) && !slices.ContainsFunc(loads, func(l router.HostLoad) bool { return l.Endpoint == id }) {
			return true
		}
	}
	return false
}

// hearLoad takes in what another replica has.
func (s *Share) hearLoad(from string, payload []byte) {
	var list []loadWord
	if json.Unmarshal(payload, &list) != nil {
		return
	}
	now := s.opt.Now()
	s.mu.Lock()
	r := s.others[from]
	if r == nil {
		r = &replica{}
		s.others[from] = r
	}
	touched := make(map[endpoint.ID]bool, len(list))
	for id := range r.loads {
		touched[id] = true
	}
	r.at, r.loads = now, make(map[endpoint.ID]load, len(list))
	for _, l := range list {
		r.loads[l.Host] = load{min(max(0, l.N), mostLoad), min(max(0, l.Prompt), mostPrompt)}
		touched[l.Host] = true
	}
	if len(list) == 0 {
		delete(s.others, from)
	}
	sums := s.sums(touched, now)
	s.mu.Unlock()
	s.crowd(sums)
}

// sums is what the others have at some hosts. The caller holds mu.
func (s *Share) sums(at map[endpoint.ID]bool, now time.Time) map[endpoint.ID]load {
	hears := s.opt.Way.Hears()
	sums := make(map[endpoint.ID]load, len(at))
	for id := range at {
		var n, prompt float64
		for _, r := range s.others {
			w := r.weight(now, hears)
			n += w * float64(r.loads[id].n)
			prompt += w * float64(r.loads[id].prompt)
		}
		sums[id] = load{int64(math.Round(n)), int64(math.Round(prompt))}
	}
	return sums
}

// weight is how much of what the replica said last is believed.
func (r *replica) weight(now time.Time, hears bool) float64 {
	age := now.Sub(r.at)
	switch {
	case !hears:
		return max(0, 1-float64(max(0, age))/float64(fadeOver))
	case age > silentFor:
		return 0
	}
	return 1
}

func (s *Share) crowd(sums map[endpoint.ID]load) {
	for id, l := range sums {
		s.opt.Router.Share(id, l.n, l.prompt)
	}
}

// again gives the others time to say what they have, once they can be heard again.
func (s *Share) again() {
	now := s.opt.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.others {
		r.at = now
	}
}

// settle forgets replicas that are silent, and gives those that cannot be heard less weight.
func (s *Share) settle(now time.Time) {
	hears := s.opt.Way.Hears()
	s.mu.Lock()
	var touched map[endpoint.ID]bool
	for from, r := range s.others {
		w := r.weight(now, hears)
		if w == 1 {
			continue
		}
		if touched == nil {
			touched = map[endpoint.ID]bool{}
		}
		for id := range r.loads {
			touched[id] = true
		}
		if w == 0 {
			delete(s.others, from)
		}
	}
	sums := s.sums(touched, now)
	s.mu.Unlock()
	s.crowd(sums)
}
