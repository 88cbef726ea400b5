package telemetry

import (
	"math"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	room "headrace/gateway/admission/queue"
	"headrace/gateway/ledger"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// Sources are where gauges and others' counters are read from, each time that somebody asks. A nil one has nothing to tell.
type Sources struct {
	Hosts       func() []router.HostView
	Calibration func() router.Calibration
	Accounts    func() []Account
	Probes      func(endpoint.ID) Probes
	InFlight    func() int64
	Waiting     func() []room.Length
	Draining    func() bool
	Reloads     func() Reloads
	Ledger      func() Ledger
	Shared      func() Shared // nil without a Redis
	Experiments func() []Experiment
	Keys        func() Keys
}

// Keys is what became of requests by their callers' keys.
type Keys struct {
	Refused         []KeyRefusals
	Warned          int64 // budgets whose soft share was passed
	Answered, Alone int64 // requests that waited for Redis, and those that waited in vain
}

// KeyRefusals are those for one reason, of a closed set.
type KeyRefusals struct {
	Reason string
	N      int64
}

// Shared is how the sharing with other replicas fares.
type Shared struct {
	Up                bool
	Errors, Fallbacks int64
	Replicas          int
	Told, Heard, Lost int64 // transitions of hosts
}

// Ledger is how the ledger fares.
type Ledger struct {
	Records, Dropped, Failures int64
	Disbelieved                int64 // attempts whose host reported more tokens than there can have been
	Bytes                      int64
	Written                    bool // all that came up to the last write
	Bills                      []Bill
}

// Bill sets what an account billed against what the ledger has of the same hosts and time, in USD.
type Bill struct {
	Account        string
	Billed, Ledger float64
}

// Account is how the discovery of one account fares.
type Account struct {
	Name     string
	LastGood time.Time // zero before its hosts were read
	Failing  int       // polls in a row
	Polls    int64
	Hosts    int
	Calls    []Calls
}

// Calls are those of one kind to an account's control plane.
type Calls struct {
	Name                     string
	Calls, Errors, Throttled int64 // Errors has those throttled too
}

// Probes are the tests of one host.
type Probes struct {
	Sent, Failed int64
	Continues    map[string]string // by model: "yes", "no" or "unknown"
}

// Reloads are those of the config so far.
type Reloads struct {
	OK, Failed int64
	Current    bool // the newest one is in force
}

// sink takes one series: the values of the instrument's labels, "" for one that is left out, and the figure. It may keep
// values and h, which nobody changes.
type sink interface {
	from(since time.Time) // counters and histograms told from here on count since then
	number(i instrument, v float64, values ...string)
	hist(i instrument, h *hist, values ...string)
}

// shelf is a sink for the series of one set while its lock is held. They are told when it is not, so that no request waits for
// whoever reads them.
type shelf struct{ series []series }

type series struct {
	i      instrument
	v      float64
	h      *hist // a copy; nil where v is the figure
	values []string
}

func (s *shelf) from(time.Time) {} // whoever tells it knows

func (s *shelf) number(i instrument, v float64, values ...string) {
	s.series = append(s.series, series{i: i, v: v, values: values})
}

func (s *shelf) hist(i instrument, h *hist, values ...string) {
	if h.n == nil {
		return
	}
	s.series = append(s.series, series{i: i, h: &hist{slices.Clone(h.n), h.sum, slices.Clone(h.ex)}, values: values})
}

// tell empties the shelf.
func (s *shelf) tell(to sink) {
	for i := range s.series {
		if one := &s.series[i]; one.h != nil {
			to.hist(one.i, one.h, one.values...)
		} else {
			to.number(one.i, one.v, one.values...)
		}
	}
	clear(s.series)
	s.series = s.series[:0]
}

// collect tells every series there is to to, those of one instrument not together.
func (m *Metrics) collect(to sink) {
	m.opt.Before()
	views := m.fleet()
	to.from(m.since)
	m.collectRequests(to)
	m.collectAttempts(to)
	to.from(m.since)
	m.collectHosts(to, views)
	m.collectGateway(to)
}

// errorType is the value of error.type.
func errorType(c outcome.Class) string {
	if c == outcome.Success {
		return ""
	}
	return c.String()
}

// providers returns the values of gen_ai.provider.name and gen_ai.system where both are labels.
func (m *Metrics) providers(vendor string) (name, system string) {
	name = providerName(vendor)
	switch m.opt.Names {
	case NamesLegacy:
		return "", name
	case NamesBoth:
		return name, name
	case NamesLatest:
	}
	return name, ""
}

func (m *Metrics) collectRequests(to sink) {
	var held shelf
	m.http.each(func(k httpKey, s *httpSet) {
		s.mu.Lock()
		held.hist(httpDuration, &s.duration, k.method, scheme(k.tls), k.route, strconv.Itoa(k.status), errorType(k.class))
		s.mu.Unlock()
		held.tell(to)
	})
	m.refuse.each(func(k refusalKey, n *atomic.Int64) {
		to.number(refusals, float64(n.Load()), strconv.Itoa(k.status), k.code)
	})
	m.routes.each(func(route string, s *routeSet) {
		s.mu.Lock()
		held.hist(overhead, &s.overhead, route)
		s.mu.Unlock()
		held.tell(to)
	})
	m.models.each(func(model string, s *modelSet) {
		s.mu.Lock()
		for c := range classes {
			word := outcome.Class(c).String() //nolint:gosec // a handful
			some(&held, requests, s.requests[c], model, word)
			some(&held, failovers, s.failovers[c], model, word)
		}
		some(&held, continuations, s.offered.byText, model, "offered", "", byText)
		some(&held, continuations, s.offered.byNumbers, model, "offered", "", byNumbers)
		some(&held, continuations, s.done.byText, model, "done", "", byText)
		some(&held, continuations, s.done.byNumbers, model, "done", "", byNumbers)
		for why, n := range s.refused {
			some(&held, continuations, n, model, "refused", why, "")
		}
		for result, n := range s.hedges {
			some(&held, hedges, n, model, result)
		}
		held.hist(seamGap, &s.gap, model)
		for p, promise := range [...]string{"ttft", "tps"} {
			some(&held, promises, s.promises[p][0], model, promise, "false")
			some(&held, promises, s.promises[p][1], model, promise, "true")
		}
		for p, n := range s.cancels {
			some(&held, cancels, n, model, ledger.Phase(p).String()) //nolint:gosec // three
		}
		s.waiting.tell(&held, model)
		s.mu.Unlock()
		held.tell(to)
	})
	m.collectLengths(to)
	m.served.each(func(k servedKey, s *servedSet) {
		s.mu.Lock()
		name, system := m.providers(k.vendor)
		for c, h := range s.duration {
			if h != nil {
				held.hist(serverDuration, h, k.op, name, system, k.model, errorType(outcome.Class(c))) //nolint:gosec // a handful
			}
		}
		held.hist(serverTTFT, &s.ttft, k.op, name, system, k.model)
		held.hist(serverTPOT, &s.tpot, k.op, name, system, k.model)
		s.mu.Unlock()
		held.tell(to)
	})
}

// some tells a counter that has counted something.
func some(to sink, i instrument, n int64, values ...string) {
	if n > 0 {
		to.number(i, float64(n), values...)
	}
}

func (m *Metrics) collectAttempts(to sink) {
	var held shelf
	m.genai.each(func(k genaiKey, s *genaiSet) {
		s.mu.Lock()
		name, system := m.providers(k.vendor)
		for c, h := range s.duration {
			if h != nil {
				held.hist(clientDuration, h, k.op, name, system, k.served, k.endpoint, errorType(outcome.Class(c))) //nolint:gosec // a handful
			}
		}
		if m.opt.Names.has(Latest) {
			held.hist(clientFirstChunk, &s.first, k.op, name, k.served, k.endpoint)
			held.hist(clientOutputChunk, &s.chunk, k.op, name, k.served, k.endpoint)
			held.hist(clientInputSize, &s.inputSize, k.op, name, k.served, k.endpoint)
			held.hist(clientOutputSize, &s.outputSize, k.op, name, k.served, k.endpoint)
			for _, c := range [...]struct {
				i instrument
				n int64
			}{{clientInput, s.input}, {clientOutput, s.output}, {clientCached, s.cached}, {clientReasoning, s.reasoning}} {
				held.number(c.i, float64(c.n), k.op, name, k.served, k.endpoint, "unknown")
			}
		}
		if m.opt.Names.has(Legacy) {
			held.hist(clientUsage, &s.inputSize, k.op, name, system, k.served, k.endpoint, "input")
			held.hist(clientUsage, &s.outputSize, k.op, name, system, k.served, k.endpoint, "output")
		}
		since := s.since
		s.mu.Unlock()
		to.from(since)
		held.tell(to)
	})
	m.hosts.each(func(k hostKey, s *hostSet) {
		s.mu.Lock()
		for c := range classes {
			word := outcome.Class(c).String() //nolint:gosec // a handful
			some(&held, attemptsMade, s.attempts[c], k.vendor, k.endpoint, k.model, word)
			if w := s.wasted[c]; w.attempts > 0 {
				held.number(tokens, float64(w.tokens), k.vendor, k.endpoint, k.model, "wasted", word)
				held.number(spend, w.usd, k.vendor, k.endpoint, k.model, "wasted", word)
			}
		}
		if s.useful.attempts > 0 {
			held.number(tokens, float64(s.useful.tokens), k.vendor, k.endpoint, k.model, "useful", "")
			held.number(spend, s.useful.usd, k.vendor, k.endpoint, k.model, "useful", "")
		}
		some(&held, coldStarts, s.cold, k.vendor, k.endpoint, k.model)
		held.hist(coldStart, &s.coldTime, k.vendor, k.endpoint, k.model)
		since := s.since
		s.mu.Unlock()
		to.from(since)
		held.tell(to)
	})
}

// maybe tells a gauge whose value is known.
func maybe(to sink, i instrument, v *float64, values ...string) {
	if v != nil && !math.IsNaN(*v) && !math.IsInf(*v, 0) {
		to.number(i, *v, values...)
	}
}

// fleet returns the hosts there are, after the figures of others that were there once are forgotten.
func (m *Metrics) fleet() []router.HostView {
	if m.opt.Sources.Hosts == nil {
		return nil
	}
	views := m.opt.Sources.Hosts()
	ids := make(map[string]bool, len(views))
	for i := range views {
		ids[valid(string(views[i].ID))] = true
	}
	m.forget(ids, m.opt.Now())
	return views
}

func (m *Metrics) collectHosts(to sink, views []router.HostView) {
	paid, now := map[string]used{}, m.opt.Now()
	m.hosts.each(func(k hostKey, s *hostSet) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.lately.turn(now)
		u := paid[k.endpoint]
		u.usd += s.lately.now.usd + s.lately.last.usd
		u.tokens += s.lately.now.tokens + s.lately.last.tokens
		paid[k.endpoint] = u
	})
	if more := len(views) - mostNames; more > 0 {
		m.overflowed.Add(int64(more))
		views = views[:mostNames]
	}
	for i := range views {
		v := &views[i]
		vendor, id := v.Provider, valid(string(v.ID))
		to.number(hostState, 1, vendor, id, v.State)
		to.number(hostBreaker, 1, vendor, id, v.Breaker)
		for _, t := range v.Transitions {
			to.number(breakerTransitions, float64(t.N), vendor, id, t.From, t.To)
		}
		to.number(hostInFlight, float64(v.InFlight), vendor, id)
		maybe(to, hostUSDPerMTok, v.FullLoadUSDPerMTok, vendor, id, "full_load")
		maybe(to, hostUSDPerMTok, v.StreamUSDPerMTok, vendor, id, "one_stream")
		if u := paid[id]; u.tokens > 0 {
			to.number(hostUSDPerMTok, u.usd/float64(u.tokens)*1e6, vendor, id, "allocated")
		}
		maybe(to, hostUSDPerHour, v.USDPerHour, vendor, id)
		maybe(to, hostPriceAge, v.PriceAgeSeconds, vendor, id)
		maybe(to, hostTTFT, thousandth(v.TTFTMillis), vendor, id)
		maybe(to, hostTPS, v.TPS, vendor, id)
		maybe(to, hostITL, thousandth(v.ITLMillis), vendor, id)
		maybe(to, hostConcurrency, v.Safe, vendor, id, "safe")
		maybe(to, hostConcurrency, v.Limit, vendor, id, "limit")
		maybe(to, hostLosses, v.Losses, vendor, id)
		if v.Endpoint.Tenure == endpoint.Serverless {
			to.number(hostWorkers, float64(v.Workers), vendor, id)
		}
		to.number(hostDrained, flag(v.Drained), vendor, id)
		maybe(to, calibrationRatio, v.Calibration.TTFT, vendor, id, "ttft")
		maybe(to, calibrationRatio, v.Calibration.ITL, vendor, id, "itl")
		maybe(to, calibrationRatio, v.Calibration.USD, vendor, id, "usd")
		if m.opt.Sources.Probes == nil {
			continue
		}
		p := m.opt.Sources.Probes(v.ID)
		to.number(probes, float64(p.Sent-p.Failed), vendor, id, "ok")
		to.number(probes, float64(p.Failed), vendor, id, "failed")
		for model, word := range p.Continues {
			to.number(hostContinues, 1, vendor, id, valid(model), word)
		}
	}
}

func thousandth(v *float64) *float64 {
	if v == nil {
		return nil
	}
	return new(*v / 1e3)
}

func flag(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

func (m *Metrics) collectGateway(to sink) {
	s := &m.opt.Sources
	to.number(buildInfo, 1, m.opt.Version)
	to.number(overflow, float64(m.overflowed.Load()))
	for name, of := range map[string]*signal{"traces": &m.traces, "logs": &m.logs, "metrics": &m.pushes} {
		to.number(exportFailures, float64(of.exports.Load()), name)
		to.number(dropped, float64(of.full.Load()), name, "queue_full")
		to.number(dropped, float64(of.failed.Load()), name, "export_failed")
	}
	if s.InFlight != nil {
		to.number(httpActive, float64(s.InFlight()))
	}
	if s.Draining != nil {
		to.number(draining, flag(s.Draining()))
	}
	if s.Reloads != nil {
		r := s.Reloads()
		to.number(reloads, float64(r.OK), "ok")
		to.number(reloads, float64(r.Failed), "failed")
		to.number(reloadOK, flag(r.Current))
	}
	if s.Keys != nil {
		k := s.Keys()
		for _, r := range k.Refused {
			to.number(keyRefusals, float64(r.N), r.Reason)
		}
		to.number(keyBudgets, float64(k.Warned))
		to.number(keyCalls, float64(k.Answered), "answered")
		to.number(keyCalls, float64(k.Alone), "alone")
	}
	if s.Shared != nil {
		x := s.Shared()
		to.number(redisUp, flag(x.Up))
		to.number(redisErrors, float64(x.Errors))
		to.number(redisFallbacks, float64(x.Fallbacks))
		to.number(replicas, float64(x.Replicas))
		to.number(replicaHosts, float64(x.Told), "told")
		to.number(replicaHosts, float64(x.Heard), "heard")
		to.number(replicaHosts, float64(x.Lost), "lost")
	}
	m.collectExperiments(to)
	if s.Ledger != nil {
		l := s.Ledger()
		to.number(ledgerRecords, float64(l.Records))
		to.number(ledgerDropped, float64(l.Dropped))
		to.number(ledgerDisbelieved, float64(l.Disbelieved))
		to.number(ledgerFailures, float64(l.Failures))
		to.number(ledgerSize, float64(l.Bytes))
		to.number(ledgerWritten, flag(l.Written))
		for _, b := range l.Bills {
			to.number(ledgerBill, b.Billed, b.Account, "billed")
			to.number(ledgerBill, b.Ledger, b.Account, "ledger")
			switch {
			case b.Billed > 0:
				to.number(ledgerBillError, (b.Ledger-b.Billed)/b.Billed, b.Account)
			case b.Ledger > 0:
				to.number(ledgerBillError, 1, b.Account)
			}
		}
	}
	if s.Calibration != nil {
		c := s.Calibration()
		to.number(calibrationAlarm, flag(c.Alarm))
		maybe(to, calibrationExcess, &c.TTFTExcess, "ttft")
		maybe(to, calibrationExcess, &c.TPSExcess, "tps")
		for promise, bins := range map[string]*[10]router.CalibrationBin{"ttft": &c.TTFT, "tps": &c.TPS} {
			for i := range bins {
				bin := strconv.FormatFloat(float64(i)/10, 'f', 1, 64)
				some(to, calibrationPromises, bins[i].Kept, promise, bin, "true")
				some(to, calibrationPromises, bins[i].N-bins[i].Kept, promise, bin, "false")
			}
		}
	}
	if s.Accounts == nil {
		return
	}
	now := m.opt.Now()
	for _, a := range s.Accounts() {
		if !a.LastGood.IsZero() {
			to.number(discoveryAge, max(0, now.Sub(a.LastGood).Seconds()), a.Name)
		}
		to.number(discoveryFailing, float64(a.Failing), a.Name)
		to.number(discoveryPolls, float64(a.Polls), a.Name)
		to.number(discoveryHosts, float64(a.Hosts), a.Name)
		for _, c := range a.Calls {
			to.number(discoveryCalls, float64(c.Calls), a.Name, c.Name)
			to.number(discoveryErrors, float64(c.Throttled), a.Name, c.Name, "throttled")
			to.number(discoveryErrors, float64(c.Errors-c.Throttled), a.Name, c.Name, "error")
		}
	}
}
