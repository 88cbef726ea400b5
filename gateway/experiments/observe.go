package experiments

import (
	"math"
	"strconv"
	"time"

	"github.com/cespare/xxhash/v2"

	"headrace/gateway/ledger"
	"headrace/router/endpoint"
	"headrace/router/experiment"
	"headrace/router/experiment/stats"
	"headrace/router/outcome"
)

// seen is a settled request on its way into the statistics.
type seen struct {
	place   experiment.Place
	lot     experiment.Lot
	request string
	stats.Observation
	endpoint endpoint.ID // that answered, "" for none
	prompt   int64       // tokens
	use      float64     // share of the endpoint's safe concurrency; NaN when unknown
	whole    bool        // answered in one piece: its time is that of all of it
	fullLoad float64     // dollars per million output tokens of the endpoint at full load; NaN or 0 when unknown
	unsure   float64     // standard deviation of its logarithm
}

// queued bounds the requests that wait for the statistics: about a second's, at the most that a gateway serves.
const queued = 1 << 15

// Observe takes in a settled request. It blocks for no longer than a copy takes, and keeps nothing of r.
func (m *Manager) Observe(r *ledger.Record) {
	if r.Arm == "" || r.Tries == 0 && r.Class == outcome.CallerFault { // refused before its arm could make a difference
		return
	}
	place, ok := m.table.Load().Labelled(r.Arm)
	if !ok || !place.Recorded {
		return
	}
	s := seen{place: place, lot: r.Lot, request: r.ID, Observation: stats.Unknown(uint64(r.Unit), place.Index)}
	m.fill(&s, r)
	m.queue.Lock()
	defer m.queue.Unlock()
	if len(m.waiting) >= queued {
		m.dropped++
		return
	}
	m.waiting = append(m.waiting, s)
}

// fill says what became of the request.
func (m *Manager) fill(s *seen, r *ledger.Record) {
	o := &s.Observation
	o.At, o.Epoch = r.At, r.Lot.Epoch()
	o.Forced, o.OutOfArm, o.Resumes = r.Forced, r.OutOfArm, r.Resumes
	o.Truncated = r.Lost != "" || r.Class == outcome.Truncated || r.Class == outcome.Stalled
	o.OutputTokens = max(0, r.Output)
	o.Missed = missed(r)
	if r.TTFT > 0 {
		o.TTFT = r.TTFT.Seconds()
	}
	if r.TPS > 0 {
		o.TPS = r.TPS
	}
	if s.whole = !r.Stream && r.TTFT <= 0 && r.Status < 300 && r.Duration > 0; s.whole { // its first byte is its last one
		o.TTFT = r.Duration.Seconds()
		if r.Output > 0 {
			o.TPS = float64(r.Output) / o.TTFT
		}
	}
	if r.USDKnown {
		o.SpentUSD = r.USD
		if r.USD > 0 && r.Output > 0 {
			o.USDPerMtok = r.USD * 1e6 / float64(r.Output)
		}
	}
	for i := range r.Attempts {
		a := &r.Attempts[i]
		o.Cold = o.Cold || a.Decision.Cold
		switch {
		case a.Class == outcome.Moved, lostHost(a.Class) && m.takenAway(a.Endpoint):
			o.Preempted = true
		case a.Class.Policy().Verdict == outcome.Faulty || a.Class.Policy().Verdict == outcome.Doubtful:
			o.Failed = true
		}
	}
	switch r.Class {
	case outcome.ClientGone, outcome.CallerFault: // whatever it was, the caller's doing
	case outcome.Throttled, outcome.Unserved, outcome.NotReady:
		o.Failed = o.Failed || r.Status >= 400 // too much for its hosts is a fault of the arm's
	default:
		blame := r.Class.Policy().Verdict // of the last try, which is what the caller saw, whoever took the host away
		o.Failed = o.Failed || r.Status >= 500 || o.Truncated || blame == outcome.Faulty || blame == outcome.Doubtful
	}
	if n := len(r.Attempts); n > 0 {
		a := &r.Attempts[n-1]
		s.endpoint, s.prompt, s.use = a.Endpoint, max(0, r.Prompt), a.Decision.Use
		s.fullLoad, s.unsure = a.Decision.FullUSD, a.Decision.FullSigma
		if a.Decision.Seq == 0 {
			s.use = math.NaN()
		}
	}
}

// missed tells whether the caller waited for longer than was promised: for the first token, where none came until the end, and where the
// answer came in one piece for all its tokens at the promised speed. Whoever left earlier than that says nothing of it.
func missed(r *ledger.Record) bool {
	if r.SLO.TTFT <= 0 || r.Class == outcome.CallerFault {
		return false
	}
	if r.TTFT > 0 {
		return r.TTFT > r.SLO.TTFT
	}
	promised := r.SLO.TTFT
	if !r.Stream && r.Output > 0 && r.SLO.TPS > 0 {
		promised += time.Duration(float64(r.Output) / r.SLO.TPS * float64(time.Second))
	}
	return r.Duration > promised
}

// lostHost tells whether an attempt ended as it does when its host is taken away.
func lostHost(c outcome.Class) bool {
	return c == outcome.Severed || c == outcome.Truncated || c == outcome.Stalled || c == outcome.DialFailed
}

// takenAway tells whether the host is, as far as its provider says: a host that breaks by itself is a failure of the arm's. So is one that
// is in no list any more, which it may be for any reason.
func (m *Manager) takenAway(id endpoint.ID) bool {
	ep := m.opt.Host(id)
	return ep != nil && (ep.State == endpoint.Preempted || ep.State == endpoint.Gone)
}

// compare says what the request may be compared with, and at what price. A host that is paid by the hour is compared by what it costs at
// full load: the share of an hour that a request is charged says how many others came by. The caller holds mu.
func (m *Manager) compare(t *trial, s *seen) {
	if s.endpoint == "" {
		return
	}
	s.Host, s.Metered = m.host(s.endpoint), m.metered(s.endpoint)
	s.Block, s.Load = stats.BlockOf(m.kind(t.Spec, s.endpoint), s.prompt, s.use), s.use
	if s.whole {
		s.Block = stats.Whole(s.Block)
	}
	if !s.Metered && s.fullLoad > 0 {
		s.USDPerMtok, s.USDUnsure = s.fullLoad, s.unsure
	}
}

// metered tells whether a host is paid for because of requests: by the second of a worker or by the token.
func (m *Manager) metered(id endpoint.ID) bool {
	ep := m.opt.Host(id)
	return ep != nil && (ep.Price.Basis == endpoint.PerWorkerSecond || ep.Price.Basis == endpoint.PerToken)
}

// kind numbers the kinds of hosts that may be compared with each other: those of one GPU, where the GPU is not what the arms differ in.
// The caller holds mu.
func (m *Manager) kind(s *experiment.Spec, id endpoint.ID) uint32 {
	for i := range s.Arms {
		if a := &s.Arms[i]; a.Model != "" || a.Hosts != nil && len(a.Hosts.GPU) > 0 {
			return 0
		}
	}
	ep := m.opt.Host(id)
	if ep == nil || ep.Hardware.GPU == "" {
		return 0
	}
	name := ep.Hardware.GPU
	if n := ep.Hardware.GPUCount; n > 1 {
		name = strconv.Itoa(n) + "x " + name
	}
	return m.kinds.number(name)
}

// host is the statistics' number for a host. The caller holds mu.
func (m *Manager) host(id endpoint.ID) uint32 { return m.hosts.number(string(id)) }

// names are texts by their numbers, which are the same at every replica and never 0.
type names map[uint32]string

// mostNames bounds them; beyond it names are forgotten, which shows only where they are shown.
const mostNames = 1 << 14

func (ns *names) number(name string) uint32 {
	n := uint32(xxhash.Sum64String(name)) | 1 //nolint:gosec // half of it will do
	if _, known := (*ns)[n]; !known {
		if *ns == nil || len(*ns) >= mostNames {
			*ns = names{}
		}
		(*ns)[n] = name
	}
	return n
}

// recent remembers which units the newest requests were of, for feedback.
type recent struct {
	of   map[string]told
	ring []string
	next int
}

type told struct {
	experiment string
	run        int
	arm        int
	unit       uint64
	epoch      int  // of the request, as the statistics count them; 0 for now
	forced     bool // it chose its arm, and so says nothing of it
	scored     bool
	score      float64
}

const remembered = 1 << 15 // requests

func (r *recent) add(request string, t told) {
	if r.of == nil {
		r.of = map[string]told{}
	}
	if was, known := r.of[request]; known { // its caller has named two alike
		if was.experiment == t.experiment && was.run == t.run {
			t.scored, t.score = was.scored, was.score
		}
		r.of[request] = t
		return
	}
	if len(r.ring) < remembered {
		r.ring = append(r.ring, request)
	} else {
		delete(r.of, r.ring[r.next])
		r.ring[r.next] = request
		r.next = (r.next + 1) % remembered
	}
	r.of[request] = t
}
