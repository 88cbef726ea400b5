package telemetry

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"headrace/gateway/ledger"
	"headrace/gateway/trace"
	"headrace/router/outcome"
)

// Names says which names the GenAI figures have.
type Names uint8

// Names.
const (
	NamesLatest Names = iota
	NamesLegacy
	NamesBoth
)

// ParseNames reads the word used in config.
func ParseNames(word string) (Names, bool) {
	for i, w := range [...]string{"latest", "legacy", "both"} {
		if w == word {
			return Names(i), true //nolint:gosec // three
		}
	}
	return NamesLatest, false
}

// has tells whether figures of a set are told under these names.
func (n Names) has(s Set) bool {
	return s == Always || n == NamesBoth || (s == Latest) == (n == NamesLatest)
}

// MetricsOptions set up Metrics.
type MetricsOptions struct {
	Names     Names
	Exemplars bool             // histograms remember sampled traces
	Now       func() time.Time // the clock; required
	Sources   Sources
	Version   string // of this program
	// Before is called before figures are read: records that were put by come to Record now. Nil where none are.
	Before func()
}

// Metrics counts what requests met. Its figures are kept in sets, each with one lock, and the labels of each set are put
// together once: a request costs a microsecond, where the SDK's instruments would take five.
type Metrics struct {
	opt   MetricsOptions
	since time.Time

	http   family[httpKey, httpSet]
	routes family[string, routeSet]
	models family[string, modelSet]
	refuse family[refusalKey, atomic.Int64]
	served family[servedKey, servedSet]
	genai  family[genaiKey, genaiSet]
	hosts  family[hostKey, hostSet]

	naming                  sync.Mutex // held while sets of genai and hosts, and names of knownHosts, come and go; taken before all other locks
	knownModels, knownHosts bounded
	overflowed              atomic.Int64

	traces signal
	logs   signal
	pushes signal // of metrics
}

// signal counts what became of one kind of telemetry.
type signal struct {
	full, failed atomic.Int64 // items dropped because the queue was full, or their export had failed
	exports      atomic.Int64 // that failed
}

// NewMetrics returns Metrics that have counted nothing yet.
func NewMetrics(o MetricsOptions) *Metrics {
	if o.Now == nil {
		panic("BUG: telemetry.NewMetrics without a clock")
	}
	if o.Before == nil {
		o.Before = func() {}
	}
	return &Metrics{opt: o, since: o.Now()}
}

const (
	mostNames = 1000      // models, and endpoints, that have series of their own
	keepGone  = time.Hour // an endpoint's series, from its last attempt on, once it is no longer of the fleet
	other     = "other"
	none      = "none"
)

// classes is how many outcome classes there are.
const classes = int(outcome.Outrun) + 1

// family holds sets by their key. Looking one up takes no lock.
type family[K comparable, S any] struct {
	mu sync.Mutex // held while sets are added or dropped
	t  atomic.Pointer[lookup[K, S]]
}

// lookup is a family's sets between two changes.
type lookup[K comparable, S any] struct {
	sets map[K]*member[K, S]
	last atomic.Pointer[member[K, S]] // looked up last: most records are like the one before, and comparing keys is cheaper than hashing one
}

type member[K comparable, S any] struct {
	key K
	set S
}

func (f *family[K, S]) get(k K) *S {
	t := f.t.Load()
	if t == nil {
		return nil
	}
	e := t.last.Load()
	if e == nil || e.key != k {
		if e = t.sets[k]; e == nil {
			return nil
		}
		t.last.Store(e)
	}
	return &e.set
}

// add returns the set of k, a new one where there is none.
func (f *family[K, S]) add(k K) *S {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.get(k); s != nil {
		return s
	}
	next, e := &lookup[K, S]{sets: map[K]*member[K, S]{}}, &member[K, S]{key: k}
	if t := f.t.Load(); t != nil {
		maps.Copy(next.sets, t.sets)
	}
	next.sets[k] = e
	f.t.Store(next)
	return &e.set
}

// drop takes away the sets that gone chooses. Who has looked one up may still hold it: see life.
func (f *family[K, S]) drop(gone func(K, *S) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := &lookup[K, S]{sets: map[K]*member[K, S]{}}
	if t := f.t.Load(); t != nil {
		for k, e := range t.sets {
			if !gone(k, &e.set) {
				next.sets[k] = e
			}
		}
	}
	f.t.Store(next)
}

// each calls fn for every set.
func (f *family[K, S]) each(fn func(K, *S)) {
	if t := f.t.Load(); t != nil {
		for k, e := range t.sets {
			fn(k, &e.set)
		}
	}
}

// bounded is a set of names that takes no more than mostNames.
type bounded struct {
	mu sync.Mutex // guards m
	m  map[string]bool
}

// of returns name, or other where there is no room for it.
func (b *bounded) of(name string, over *atomic.Int64) string {
	name = valid(name)
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.m[name] || name == other:
		return name
	case len(b.m) >= mostNames:
		over.Add(1)
		return other
	case b.m == nil:
		b.m = map[string]bool{}
	}
	b.m[name] = true
	return name
}

// free makes room for another name.
func (b *bounded) free(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.m, name)
}

// life is of a set that may be dropped.
type life struct {
	mu    sync.Mutex // guards the whole set
	since time.Time  // when its figures began
	last  time.Time  // when its newest attempt ended
	gone  bool       // it is no longer of its family: nobody would read what is counted here
}

// lock takes the lock, unless the set is gone.
func (l *life) lock() bool {
	l.mu.Lock()
	if l.gone {
		l.mu.Unlock()
		return false
	}
	return true
}

func (l *life) begin(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.since.IsZero() {
		l.since, l.last = now, now
	}
}

func (l *life) counted() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// endAt makes the set gone if nothing was counted for keepGone.
func (l *life) endAt(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gone = now.Sub(l.last) >= keepGone
	return l.gone
}

// exemplar is a request that a figure can be looked up by.
type exemplar struct {
	trace trace.ID
	span  trace.SpanID
	value float64
	at    time.Time
}

// hist counts values by size. Its set's lock guards it.
type hist struct {
	n   []uint64 // one more than there are bounds; nil before the first value
	sum float64
	ex  []exemplar // by bucket; nil before the first
}

func (h *hist) add(i instrument, v float64, ex *exemplar) {
	bounds := table[i].Buckets
	if h.n == nil {
		h.n = make([]uint64, len(bounds)+1)
	}
	b := 0
	for b < len(bounds) && v > bounds[b] {
		b++
	}
	h.n[b]++
	h.sum += v
	if ex != nil {
		if h.ex == nil {
			h.ex = make([]exemplar, len(bounds)+1)
		}
		h.ex[b] = *ex
		h.ex[b].value = v
	}
}

type refusalKey struct {
	status int
	code   string // of a closed set
}

type httpKey struct {
	method, route string
	status        int
	class         outcome.Class // Success where nothing went wrong
	tls           bool
}

// scheme is the value of url.scheme.
func scheme(tls bool) string {
	if tls {
		return "https"
	}
	return "http"
}

type httpSet struct {
	mu       sync.Mutex // guards all below
	duration hist
}

type routeSet struct {
	mu       sync.Mutex // guards all below
	overhead hist
}

// modelSet is of requests by the name that callers use.
type modelSet struct {
	mu        sync.Mutex // guards all below
	requests  [classes]int64
	failovers [classes]int64
	offered   goneOn
	done      goneOn
	refused   map[string]int64 // by reason, of a closed set
	gap       hist
	hedges    map[string]int64
	promises  [2][2]int64 // ttft and tps, not kept and kept
	cancels   [ledger.Streaming + 1]int64
	waiting   waiting
}

type servedKey struct{ op, vendor, model string }

// servedSet is what callers saw.
type servedSet struct {
	mu       sync.Mutex // guards all below
	duration [classes]*hist
	ttft     hist
	tpot     hist
}

type genaiKey struct{ op, vendor, served, endpoint string }

// genaiSet is of attempts, by OpenTelemetry's conventions.
type genaiSet struct {
	life
	duration                         [classes]*hist
	first, chunk                     hist
	inputSize, outputSize            hist
	input, output, cached, reasoning int64
}

type hostKey struct{ vendor, endpoint, model string }

// hostSet is of attempts, by ours.
type hostSet struct {
	life
	attempts [classes]int64
	useful   used
	wasted   [classes]used
	cold     int64
	coldTime hist
	lately   window
}

type used struct {
	attempts int64
	tokens   int64
	usd      float64
}

// window sums up what was billed, and what for, in stretches of windowLength.
type window struct {
	from      time.Time // of now
	now, last used
}

const windowLength = 5 * time.Minute

func (w *window) turn(at time.Time) {
	switch d := at.Sub(w.from); {
	case d < windowLength:
	case d < 2*windowLength:
		w.last, w.now, w.from = w.now, used{}, w.from.Add(windowLength)
	default:
		w.last, w.now, w.from = used{}, used{}, at
	}
}

// operations are OpenTelemetry's names for what a route does, where there is one.
var operations = map[string]string{
	"/v1/chat/completions": "chat", "/v1/completions": "text_completion", "/v1/embeddings": "embeddings", "/v1/responses": "chat", "/v1/messages": "chat",
	"/v1/messages/count_tokens": "count_tokens", "/v1/rerank": "rerank", "/v1/score": "score", "/v1/moderations": "moderation",
	"/v1/images/generations": "image_generation", "/v1/images/edits": "image_generation", "/v1/images/variations": "image_generation",
	"/v1/audio/speech": "speech", "/v1/audio/transcriptions": "transcription", "/v1/audio/translations": "transcription",
}

func operation(route string) string {
	if op := operations[route]; op != "" {
		return op
	}
	return other
}

// providerName is OpenTelemetry's way to write a provider.
func providerName(vendor string) string {
	switch vendor {
	case "vast":
		return "vast_ai"
	case "":
		return none
	}
	return vendor
}

// Record counts a request that is over. It neither blocks nor keeps r.
func (m *Metrics) Record(r *ledger.Record) {
	model := r.Model
	if !r.Known {
		model = other
	}
	var ex *exemplar
	if m.opt.Exemplars && r.Trace.Sampled && r.Trace.On() {
		ex = &exemplar{trace: r.Trace.ID, span: r.Trace.Span, at: r.At.Add(r.Duration)}
	}
	op := operation(r.Route)
	m.recordHTTP(r, ex)
	m.recordModel(r, model, ex)
	m.recordServed(r, op, model, ex)
	for i := range r.Attempts {
		m.recordAttempt(r, i, op, model, ex)
	}
}

// Refused counts what got no record. code is of a closed set.
func (m *Metrics) Refused(status int, code string) {
	k := refusalKey{status, code}
	n := m.refuse.get(k)
	if n == nil {
		n = m.refuse.add(k)
	}
	n.Add(1)
}

func (m *Metrics) recordHTTP(r *ledger.Record, ex *exemplar) {
	k := httpKey{r.Method, r.Route, r.Status, r.Class, r.TLS}
	s := m.http.get(k)
	if s == nil {
		s = m.http.add(k)
	}
	s.mu.Lock()
	s.duration.add(httpDuration, r.Duration.Seconds(), ex)
	s.mu.Unlock()

	o := m.routes.get(r.Route)
	if o == nil {
		o = m.routes.add(r.Route)
	}
	o.mu.Lock()
	o.overhead.add(overhead, r.Overhead.Seconds(), ex)
	o.mu.Unlock()
}

func (m *Metrics) recordModel(r *ledger.Record, model string, ex *exemplar) {
	s := m.models.get(model)
	if s == nil {
		model = m.knownModels.of(model, &m.overflowed)
		s = m.models.add(model)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests[r.Class]++
	s.failedOver(r)
	if r.Hedge != "" {
		if s.hedges == nil {
			s.hedges = map[string]int64{}
		}
		s.hedges[r.Hedge]++
	}
	s.goneOn(r)
	if r.Lost != "" {
		if s.refused == nil {
			s.refused = map[string]int64{}
		}
		s.refused[r.Lost]++
	}
	if r.SeamGap > 0 {
		s.gap.add(seamGap, r.SeamGap.Seconds(), ex)
	}
	if r.Class == outcome.ClientGone {
		s.cancels[r.Left]++
	}
	s.waiting.record(r, ex)
	if r.Stream {
		s.judge(r)
	}
}

// failedOver counts each attempt that took the place of another one. A hedge stands beside its attempt, unless it has won: then
// it is the one that is followed.
// goneOn counts continuations by what the host that was to go on was told of the answer.
type goneOn struct{ byText, byNumbers int64 }

// goneOn counts r's. Of more attempts than a record keeps, those that it does not keep count as by text. The caller holds mu.
func (s *modelSet) goneOn(r *ledger.Record) {
	if r.Offered == 0 {
		return
	}
	var offered, done int64
	for i := range r.Attempts {
		if a := &r.Attempts[i]; a.Resumed && a.Exact {
			if offered++; a.First > 0 {
				done++
			}
		}
	}
	offered, done = min(offered, int64(r.Offered)), min(done, int64(r.Resumes))
	s.offered.byNumbers += offered
	s.offered.byText += int64(r.Offered) - offered
	s.done.byNumbers += done
	s.done.byText += int64(r.Resumes) - done
}

func (s *modelSet) failedOver(r *ledger.Record) {
	var before *ledger.Attempt
	for i := range r.Attempts {
		a := &r.Attempts[i]
		if before != nil && !a.Hedge && before.Class != outcome.Outrun {
			s.failovers[before.Class]++
		}
		if !a.Hedge || r.Hedge == "won" {
			before = a
		}
	}
}

const fewTokens = 10 // of an answer, whose speed nobody notices

// judge counts whether the SLO was kept.
func (s *modelSet) judge(r *ledger.Record) {
	kept := func(promise int, yes bool) {
		n := 0
		if yes {
			n = 1
		}
		s.promises[promise][n]++
	}
	ttft := r.TTFT
	if r.Batch { // its time begins with its turn
		ttft = max(0, ttft-r.Queued)
	}
	if r.SLO.TTFT > 0 && (r.TTFT > 0 || r.Class.Policy().Verdict == outcome.Faulty) {
		kept(0, r.TTFT > 0 && ttft <= r.SLO.TTFT)
	}
	if r.SLO.TPS > 0 && r.TPS > 0 && r.Output > fewTokens {
		kept(1, r.TPS >= r.SLO.TPS)
	}
}

func (m *Metrics) recordServed(r *ledger.Record, op, model string, ex *exemplar) {
	k := servedKey{op, r.Provider, model}
	s := m.served.get(k)
	if s == nil {
		k.model = m.knownModels.of(model, &m.overflowed)
		s = m.served.add(k)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	byClass(&s.duration, r.Class).add(serverDuration, r.Duration.Seconds(), ex)
	if r.TTFT <= 0 || r.Class != outcome.Success {
		return
	}
	s.ttft.add(serverTTFT, r.TTFT.Seconds(), ex)
	if r.Output > 1 && r.Duration > r.TTFT {
		s.tpot.add(serverTPOT, (r.Duration-r.TTFT).Seconds()/float64(r.Output-1), ex)
	}
}

func byClass(hs *[classes]*hist, c outcome.Class) *hist {
	if hs[c] == nil {
		hs[c] = &hist{}
	}
	return hs[c]
}

// recordAttempt counts attempt i of r.
func (m *Metrics) recordAttempt(r *ledger.Record, i int, op, model string, ex *exemplar) {
	a := &r.Attempts[i]
	if a.Provider == "" { // passed through without a lease
		return
	}
	last := i == len(r.Attempts)-1
	at := r.At.Add(a.After + a.Duration)
	g := genaiKey{op, a.Provider, a.Served, string(a.Endpoint)}
	s := m.genai.get(g)
	for s == nil || !s.lock() {
		s = m.addGenai(g)
	}
	s.last = later(s.last, at)
	byClass(&s.duration, a.Class).add(clientDuration, a.Duration.Seconds(), ex)
	if a.First > 0 {
		s.first.add(clientFirstChunk, a.First.Seconds(), ex)
	}
	if last {
		s.usage(r, ex)
	}
	s.mu.Unlock()

	k := hostKey{a.Provider, string(a.Endpoint), model}
	h := m.hosts.get(k)
	for h == nil || !h.lock() {
		h = m.addHost(k)
	}
	defer h.mu.Unlock()
	h.last = later(h.last, at)
	useful := a.Class == outcome.Success || last && r.Class == outcome.Success || !last && r.Attempts[i+1].Resumed && a.Output > 0
	h.attempts[a.Class]++
	u := &h.wasted[a.Class]
	if useful {
		u = &h.useful
	}
	u.attempts++
	u.tokens += a.Output
	if a.USDKnown {
		u.usd += a.USD
		h.lately.turn(at)
		h.lately.now.usd += a.USD
		h.lately.now.tokens += a.Output
	}
	if a.Decision.Cold {
		h.cold++
		if a.First > 0 {
			h.coldTime.add(coldStart, a.First.Seconds(), ex)
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// addGenai returns the set of k, or of the names that there is room for.
func (m *Metrics) addGenai(k genaiKey) *genaiSet {
	m.naming.Lock()
	defer m.naming.Unlock()
	k.served, k.endpoint = m.knownModels.of(k.served, &m.overflowed), m.knownHosts.of(k.endpoint, &m.overflowed)
	s := m.genai.add(k)
	s.begin(m.opt.Now())
	return s
}

// addHost does the same.
func (m *Metrics) addHost(k hostKey) *hostSet {
	m.naming.Lock()
	defer m.naming.Unlock()
	k.endpoint, k.model = m.knownHosts.of(k.endpoint, &m.overflowed), m.knownModels.of(k.model, &m.overflowed)
	s := m.hosts.add(k)
	s.begin(m.opt.Now())
	return s
}

// forget drops what was counted of endpoints that are not of the fleet and had no attempt for keepGone, and gives their names'
// room to others.
func (m *Metrics) forget(fleet map[string]bool, now time.Time) {
	m.naming.Lock()
	defer m.naming.Unlock()
	last := map[string]time.Time{other: now} // it is of many
	m.genai.each(func(k genaiKey, s *genaiSet) { last[k.endpoint] = later(last[k.endpoint], s.counted()) })
	m.hosts.each(func(k hostKey, s *hostSet) { last[k.endpoint] = later(last[k.endpoint], s.counted()) })
	idle := map[string]bool{}
	for id, at := range last {
		if !fleet[id] && now.Sub(at) >= keepGone {
			idle[id] = true
		}
	}
	if len(idle) == 0 {
		return
	}
	again := map[string]bool{} // an attempt ended meanwhile
	end := func(id string, l *life) bool {
		if !idle[id] {
			return false
		}
		if !l.endAt(now) {
			again[id] = true
			return false
		}
		return true
	}
	m.genai.drop(func(k genaiKey, s *genaiSet) bool { return end(k.endpoint, &s.life) })
	m.hosts.drop(func(k hostKey, s *hostSet) bool { return end(k.endpoint, &s.life) })
	for id := range idle {
		if !again[id] {
			m.knownHosts.free(id)
		}
	}
}

// usage counts what the whole answer used, for the host that ended it, so that no token counts twice.
func (s *genaiSet) usage(r *ledger.Record, ex *exemplar) {
	for i, n := range r.Gaps.N {
		if n > 0 {
			if s.chunk.n == nil {
				s.chunk.n = make([]uint64, len(secondsA)+1)
			}
			s.chunk.n[i] += uint64(n)
		}
	}
	s.chunk.sum += r.Gaps.Sum.Seconds()
	if r.Prompt >= 0 {
		s.input += r.Prompt
		s.inputSize.add(clientInputSize, float64(r.Prompt), ex)
	}
	if r.Output >= 0 && !r.Estimated {
		s.output += r.Output
		s.outputSize.add(clientOutputSize, float64(r.Output), ex)
	}
	s.cached += max(0, r.Cached)
	s.reasoning += max(0, r.Reasoning)
}
