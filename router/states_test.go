package router

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"headrace/router/endpoint"
	"headrace/router/health"
	"headrace/router/outcome"
)

// toldHost is what a test knows of a host, by the rules alone.
type toldHost struct {
	ep      endpoint.Endpoint
	listed  bool
	away    bool // its control plane has had it away since it was up last
	absent  bool // nobody is there, as far as is known: it has to be tested before it is used
	returns int  // times it was found to be there again
	asked   bool // a synthetic request is under way
	askedAt time.Time
	askedIn int  // of returns
	voided  bool // what it finds comes too late
	test    bool // it is a self-test
	running int
	trial   *toldLease
}

type toldLease struct {
	Lease
	at      *toldHost
	returns int
	begun   bool // its first content has come
}

// tale is one random sequence of events against a Router, and what must hold whatever happens.
type tale struct {
	t      *testing.T
	rng    *rand.Rand
	c      *clock
	r      *Router
	probes bool
	hosts  []*toldHost
	leases []*toldLease
	log    []string
}

func (s *tale) say(format string, args ...any) { s.log = append(s.log, fmt.Sprintf(format, args...)) }

func (s *tale) failf(format string, args ...any) {
	s.t.Helper()
	s.t.Errorf("%s\nafter %q", fmt.Sprintf(format, args...), s.log)
}

func (s *tale) update() {
	var eps []endpoint.Endpoint
	for _, h := range s.hosts {
		if h.listed {
			eps = append(eps, h.ep)
		}
	}
	s.r.Update(eps, nil)
}

// many tells whether many engines are behind its address.
func (h *toldHost) many() bool { return !rented(&h.ep) }

// cuts tells of an end that says that one engine is gone.
func cuts(c outcome.Class) bool { return c == outcome.Truncated || c == outcome.Stalled }

func (s *tale) missing(h *toldHost) bool {
	c := s.r.snap.Load().byID[h.ep.ID]
	missing, _ := c.host.breaker.Missing()
	return missing
}

// gone notes evidence that nobody is there.
func (h *toldHost) gone() {
	h.absent, h.voided = true, true
}

func (s *tale) pick() {
	l := &toldLease{}
	q := &Request{Model: "m"}
	if s.rng.IntN(4) == 0 {
		q.Tried = append(q.Tried, s.hosts[0].ep.ID)
	}
	if s.rng.IntN(4) == 0 {
		q.Continue = &Continuation{From: s.hosts[0].ep.ID, Served: "m"}
	}
	if s.r.Pick(q, &l.Lease) != nil {
		return
	}
	for _, h := range s.hosts {
		if h.ep.ID == l.Endpoint.ID {
			l.at = h
		}
	}
	h := l.at
	s.say("picked %s", h.ep.ID)
	l.returns = h.returns
	switch {
	case !h.listed || !Usable(&h.ep):
		s.failf("%s was given out in state %v, listed %t", h.ep.ID, h.ep.State, h.listed)
	case h.absent && s.probes:
		s.failf("%s was given out before a probe", h.ep.ID)
	case h.absent && h.trial != nil:
		s.failf("%s has two trials at once", h.ep.ID)
	case h.absent:
		h.trial = l
	case q.Continue != nil && h == s.hosts[0]:
		s.failf("continued where it broke off")
	}
	h.running++
	s.leases = append(s.leases, l)
}

// well notes that the lease's host has answered.
func (l *toldLease) well() {
	if h := l.at; h.trial == l {
		h.trial, h.absent, h.voided = nil, false, true
		h.returns++
		l.returns = h.returns
	}
}

func (s *tale) first() {
	l := s.leases[s.rng.IntN(len(s.leases))]
	if l.begun {
		return
	}
	s.say("first of %s", l.at.ep.ID)
	l.begun = true
	l.FirstContent(time.Millisecond)
	l.well()
}

func (s *tale) done(k int, class outcome.Class) {
	l := s.leases[k]
	s.leases = slices.Delete(s.leases, k, k+1)
	h := l.at
	s.say("%v at %s", class, h.ep.ID)
	l.Done(Result{Class: class, RetryAfter: time.Second})
	if s.rng.IntN(8) == 0 {
		l.Done(Result{Class: outcome.DialFailed}) // once more, which does nothing
	}
	h.running--
	switch class {
	case outcome.Success:
		l.well()
	case outcome.DialFailed, outcome.Severed, outcome.Truncated, outcome.Stalled:
		if l.returns == h.returns && !h.absent && !(h.many() && cuts(class)) {
			h.gone()
		}
	default:
	}
	if h.trial == l {
		h.trial = nil
	}
}

func (s *tale) probe() {
	for _, p := range s.r.Probes(s.c.now(), nil) {
		k := slices.IndexFunc(s.hosts, func(h *toldHost) bool { return h.ep.ID == p.Endpoint.ID })
		h := s.hosts[k]
		s.say("probe %s, self-test %t", h.ep.ID, p.SelfTest)
		switch {
		case h.asked && s.c.now().Sub(h.askedAt) < 15*time.Second:
			s.failf("two probes of %s at once", h.ep.ID)
		case !h.listed || !Usable(&h.ep):
			s.failf("a probe of %s in state %v", h.ep.ID, h.ep.State)
		case p.SelfTest && h.absent:
			s.failf("a self-test of %s, where nobody is", h.ep.ID)
		}
		h.asked, h.askedAt, h.askedIn, h.voided, h.test = true, s.c.now(), h.returns, false, p.SelfTest
	}
}

func (s *tale) probed(h *toldHost, class outcome.Class) {
	s.say("probed %s: %v", h.ep.ID, class)
	s.r.Probed(h.ep.ID, class)
	if !h.asked {
		return
	}
	h.asked = false
	switch class {
	case outcome.Success, outcome.Throttled, outcome.CallerFault:
		if h.absent && !h.voided && !h.test {
			h.absent = false
			h.returns++
		}
	case outcome.DialFailed, outcome.Severed, outcome.Truncated, outcome.Stalled:
		there := h.many() && cuts(class) && !s.missing(h) // it may be one of its engines that broke off
		if h.askedIn == h.returns && !h.absent && !there {
			h.gone()
		}
	default:
	}
}

var toldStates = []endpoint.State{endpoint.Ready, endpoint.Ready, endpoint.Ready, endpoint.Preempted, endpoint.Preempted, endpoint.Starting, endpoint.Draining, endpoint.Gone}

func (s *tale) hear(h *toldHost, listed bool, state endpoint.State) {
	s.say("%s is listed %t as %v", h.ep.ID, listed, state)
	was, anew := h.listed, false
	if h.listed = listed; listed {
		h.ep.State = state
		switch {
		case !Usable(&h.ep):
			h.away = h.away || state != endpoint.Draining
		case h.away, !was && h.absent: // started anew: what was under way was sent to the one before
			h.trial, h.voided, h.away, anew = nil, true, false, true
			h.returns++
		}
		if state == endpoint.Preempted {
			h.gone()
			h.trial = nil
		}
	}
	s.update()
	if anew { // what was open before, if only because its neighbours were down, has to be tested now
		h.absent = h.absent || s.missing(h)
	}
}

// rumour is what another replica says.
func (s *tale) rumour(h *toldHost) {
	t := Transition{
		Endpoint: h.ep.ID, Change: health.Change(s.rng.IntN(int(health.Cleared) + 1)), //nolint:gosec // a handful
		Told: s.rng.IntN(2) == 0, For: time.Duration(s.rng.IntN(200)) * time.Second,
	}
	s.say("another says %+v", t)
	known, changed := s.r.Heard(t)
	if known != h.listed || changed && !known {
		s.failf("%s was known %t, changed %t", h.ep.ID, known, changed)
	}
	if changed && t.Told && t.Change == health.Preempted && s.r.kindOf(&h.ep).Told {
		h.gone()
		h.trial = nil
	}
}

func (s *tale) step() {
	h := s.hosts[s.rng.IntN(len(s.hosts))]
	switch x := s.rng.IntN(21); {
	case x < 6:
		s.pick()
	case x < 8 && len(s.leases) > 0:
		s.first()
	case x < 12 && len(s.leases) > 0:
		s.done(s.rng.IntN(len(s.leases)), outcome.Class(s.rng.IntN(int(outcome.Outrun)+1))) //nolint:gosec // a class
	case x < 14:
		s.c.seconds(s.rng.Float64() * []float64{0.5, 5, 90}[s.rng.IntN(3)])
	case x < 16 && s.probes:
		s.probe()
	case x < 18 && s.probes && h.listed:
		s.probed(h, outcome.Class(s.rng.IntN(int(outcome.Outrun)+1))) //nolint:gosec // a class
	case x < 19:
		s.hear(h, s.rng.IntN(6) > 0, toldStates[s.rng.IntN(len(toldStates))])
	case x < 20:
		s.rumour(h)
	default:
		s.r.SetPrefill(h.ep.ID, "m", Prefill{Known: true, OK: s.rng.IntN(2) == 0})
	}
	for _, h := range s.hosts {
		if h.listed {
			if n, _ := s.r.Load(h.ep.ID); n != int64(h.running) {
				s.failf("%s has %d in flight, want %d", h.ep.ID, n, h.running)
			}
			s.untold(h)
		}
	}
}

// untold holds a host that no control plane tells of to what the network has shown. Where one tells, streams that broke together
// void a probe, which the tale does not follow.
func (s *tale) untold(h *toldHost) {
	if s.r.kindOf(&h.ep).Told {
		return
	}
	b := s.r.snap.Load().byID[h.ep.ID].host.breaker
	missing, told := b.Missing()
	switch {
	case missing && !h.absent:
		s.failf("nobody is thought to be at %s, for no reason", h.ep.ID)
	case !told && b.State(s.c.now()) == health.StatePreempted:
		s.failf("%s is held to be preempted, which no control plane could take back", h.ep.ID)
	}
}

// heal lets all end, and every host be well: each must be used again.
func (s *tale) heal() {
	for len(s.leases) > 0 {
		s.done(0, outcome.ClientGone)
	}
	for _, h := range s.hosts {
		s.hear(h, true, endpoint.Ready)
	}
	for range 400 {
		s.c.seconds(0.5)
		for _, p := range s.r.Probes(s.c.now(), nil) {
			s.r.SetPrefill(p.Endpoint.ID, p.Served, Prefill{Known: true, OK: true})
			s.r.Probed(p.Endpoint.ID, outcome.Success)
		}
		if !s.probes {
			for range 2 {
				var l Lease
				if s.r.Pick(&Request{Model: "m"}, &l) == nil {
					l.Done(Result{Class: outcome.Success})
				}
			}
		}
		if s.well() {
			break
		}
	}
	for _, h := range s.hosts {
		c := s.r.snap.Load().byID[h.ep.ID]
		if got := c.host.breaker.State(s.c.now()); got != health.StateClosed {
			s.failf("%s is well, and stays %s", h.ep.ID, got)
		}
		if n, p := s.r.Load(h.ep.ID); n != 0 || p != 0 {
			s.failf("%s has %d in flight and %d prompt tokens pending at the end", h.ep.ID, n, p)
		}
	}
}

func (s *tale) well() bool {
	return !slices.ContainsFunc(s.hosts, func(h *toldHost) bool { return s.r.breakerOf(h.ep.ID) != "closed" })
}

// Of TestStates. Whoever changes what a breaker does, or what Router.follow makes of a control plane's word, runs more of them:
//
//	go test ./router -run TestStates -states 100000 -count 15
var (
	statesMost = flag.Int("states", 0, "TestStates: sequences, 0 for some seconds' worth")
	statesSeed = flag.Uint64("states.seed", 0, "the seed that a failure printed, 0 for another one each time")
	statesFrom = flag.Int("states.from", 0, "the first sequence")
)

// statesTogether is how many sequences follow each other at one Router.
const statesTogether = 1000

// TestStates runs random sequences of events, of callers, probes and control planes, and holds every step to the rules.
func TestStates(t *testing.T) {
	seed := *statesSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	sequences := *statesMost
	switch {
	case sequences > 0:
	case testing.Short(), underRace:
		sequences = 1000
	default:
		sequences = 40_000
	}
	var (
		c       *clock
		routers [2]*Router
	)
	from := *statesFrom / statesTogether * statesTogether
	for k := from; k < from+sequences; k++ {
		if k%statesTogether == 0 {
			c = newClock()
			for i := range routers {
				routers[i] = New(Options{Now: c.now, Prior: tell, Seed: seed, Probes: i == 1})
			}
		}
		rng := rand.New(rand.NewPCG(seed, uint64(k))) //nolint:gosec // a test's
		s := &tale{t: t, rng: rng, c: c, r: routers[k%2], probes: k%2 == 1}
		machine := []string{"", fmt.Sprint("machine ", k)}[rng.IntN(2)]
		for i := range 2 + rng.IntN(2) {
			ep := spot(fmt.Sprintf("%d/%d", k, i), machine, "", "")
			switch rng.IntN(4) {
			case 0: // no control plane tells of it
				ep.Provider = "static"
			case 1: // a fleet behind one address
				ep.Provider, ep.Tenure, ep.Workers = "runpod", endpoint.Serverless, 2
				ep.Hardware.Machine = ""
			}
			s.say("%s is of %s, %v", ep.ID, ep.Provider, ep.Tenure)
			s.hosts = append(s.hosts, &toldHost{ep: ep, listed: true})
		}
		s.update()
		for range 10 + rng.IntN(40) {
			s.step()
		}
		s.heal()
		c.pass(2 * time.Hour) // what is kept of them is forgotten
		if t.Failed() {
			t.Fatalf("sequence %d: again with -states.seed %d -states.from %d", k, seed, k)
		}
	}
}
