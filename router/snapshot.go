package router

import (
	"encoding/json"
	"maps"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"headrace/router/affinity"
	"headrace/router/capacity"
	"headrace/router/cost"
	"headrace/router/endpoint"
	"headrace/router/health"
)

// ModelRule offers what endpoints serve under a name of the operator's choice.
type ModelRule struct {
	Name   string
	Serves []string // ids that endpoints serve, exact or with * at the end
	Demand Demand   // of every host that gets its requests
	SLO    SLO      // zero fields are DefaultSLO's
	Policy Policy   // PolicyDefault is PolicyCost
}

// Snapshot is an immutable view of endpoints and models.
type Snapshot struct {
	models map[string]*Model
	pools  map[string]*Model // by name, of which callers know nothing
	names  []string          // sorted
	byID   map[endpoint.ID]*candidate
	list   []*candidate // by ID
	now    func() time.Time
	// domains are the hosts that one cause can take away together.
	domains map[domain][]*candidate
}

// Model is what callers may name.
type Model struct {
	pool   string // its label as a Pool, "" for a whole model
	Name   string
	demand Demand
	slo    SLO
	policy Policy
	strict bool // the operator has set an SLO
	stats  *modelStats
	cands  []*candidate // those that are paid anyway first
	paid   int          // how many of them are
	// holders are the candidates by what names their prefix caches; nil in small pools. The map is replaced whole, under Router.mu.
	holders atomic.Pointer[map[affinity.Host]*candidate]
	// textOnly says that one of them takes no images, audio or files.
	textOnly bool
	plain    bool         // one of them takes no more than a prompt and sampling parameters
	prefills atomic.Int32 // candidates that can continue an answer
	untested atomic.Int32 // candidates of which that is not known
	fickle   bool         // one of them is Interruptible
}

// candidate is one endpoint as one model sees it.
type candidate struct {
	ep         *endpoint.Endpoint
	host       *host
	served     string
	servedJSON []byte
	unnamed    bool
	meets      bool   // what the operator demands of the model's hosts
	maxContext int    // tokens, 0 when unknown
	hash       uint64 // affinity.EndpointHash
	card       json.RawMessage
	root       string        // in the card
	offers     []*modelStats // of the models it serves; of Snapshot.list only, as is the next
	names      []string      // of these models, among the snapshot's
}

// ewma is an exponentially weighted mean, weight 0.1 for the newest; NaN bits unset mean no sample.
type ewma struct{ bits atomic.Uint64 }

func (e *ewma) add(v float64) {
	if math.IsNaN(v) || math.IsInf(v, 0) || v < 0 {
		return
	}
	for {
		old := e.bits.Load()
		next := v
		if old != 0 {
			m := math.Float64frombits(old)
			next = m + 0.1*(v-m)
		}
		if e.bits.CompareAndSwap(old, math.Float64bits(max(next, math.SmallestNonzeroFloat64))) {
			return
		}
	}
}

// mean returns the mean, or def without a sample.
func (e *ewma) mean(def float64) float64 {
	if b := e.bits.Load(); b != 0 {
		return math.Float64frombits(b)
	}
	return def
}

// longMean is the mean of the newest few hundred values, of all while there are fewer.
type longMean struct {
	n    atomic.Int64
	mean number
}

const longMeanOf = 300

func (l *longMean) add(v float64) {
	if math.IsNaN(v) || math.IsInf(v, 0) || v < 0 {
		return
	}
	n := l.n.Load()
	if n < longMeanOf {
		n = l.n.Add(1)
	}
	m := l.mean.get()
	l.mean.set(m + (v-m)/float64(n)) // a lost race loses one value of hundreds
}

// get returns the mean, or def without a value.
func (l *longMean) get(def float64) float64 {
	if l.n.Load() == 0 {
		return def
	}
	return l.mean.get()
}

// Update makes eps and rules the current view. Without rules every model is offered under the id
// that endpoints serve it by. Endpoints that were known keep what was learned of them. A pool of a model that does not exist is none.
func (r *Router) Update(eps []endpoint.Endpoint, rules []ModelRule, pools ...Pool) {
	defer r.freed("")
	fell := r.update(eps, rules, pools)
	s, now := r.snap.Load(), r.now()
	for _, c := range fell {
		s.mourn(c, true, now)
		r.tell(c, health.Preempted, true, now)
	}
}

// update is Update, and returns those that were taken away, as is told now.
func (r *Router) update(eps []endpoint.Endpoint, rules []ModelRule, pools []Pool) (fell []*candidate) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &Snapshot{models: map[string]*Model{}, byID: make(map[endpoint.ID]*candidate, len(eps)), now: r.now}
	at := r.seconds(r.now())
	before := r.snap.Load()
	known := make(map[endpoint.ID]*host, len(eps))
	for i := range eps {
		ep := &eps[i]
		h, anew := r.hosts[ep.ID], false
		if h == nil {
			h = &host{breaker: health.NewBreaker(string(ep.ID), r.opt.Breaker, r.now)}
			anew = true
		}
		h.breaker.Is(r.kindOf(ep))
		change, forgets := h.follow(ep, before.byID[ep.ID] == nil, r.opt.Prior(ep), at)
		if forgets || h.cache.Load() == 0 {
			r.caches++
			h.cache.Store(r.caches)
		}
		if anew {
			r.warmUp(h, ep)
		}
		known[ep.ID], h.goneAt = h, math.NaN()
		c := &candidate{ep: ep, host: h, hash: affinity.EndpointHash(string(ep.ID))}
		if len(ep.Served) > 0 { // a host that is starting may not tell yet
			h.keepTests(func(t *tested) bool { return c.serves(t.served) })
		}
		s.byID[ep.ID] = c
		s.settle(c)
		if change != health.Unchanged {
			fell = append(fell, c)
		}
		s.list = append(s.list, c)
		for j := range ep.Served {
			s.offer(c, &ep.Served[j], rules)
		}
	}
	r.forget(known, at)
	r.hosts = known
	for name := range s.models {
		s.names = append(s.names, name)
	}
	for i := range rules { // a model whose hosts are all away still exists
		rule := &rules[i]
		if s.models[rule.Name] == nil {
			s.models[rule.Name] = &Model{Name: rule.Name}
			s.names = append(s.names, rule.Name)
		}
		m := s.models[rule.Name]
		m.demand, m.slo, m.policy = rule.Demand, rule.SLO, rule.Policy
		m.strict = rule.SLO.TTFT > 0 || rule.SLO.TPS > 0
	}
	for name, m := range s.models {
		if m.stats = r.stats[name]; m.stats == nil {
			m.stats = &modelStats{}
			r.stats[name] = m.stats
			for i := range r.lore.Models {
				if x := &r.lore.Models[i]; x.Name == name {
					m.stats.output.warm(x.Tokens, x.N)
				}
			}
		}
		if m.slo = m.slo.or(DefaultSLO()); m.policy == PolicyDefault {
			m.policy = PolicyCost
		}
	}
	for _, m := range s.models {
		m.arrange()
		m.countPrefills()
	}
	s.divide(pools)
	maps.DeleteFunc(r.stats, func(name string, _ *modelStats) bool { return s.models[name] == nil })
	slices.Sort(s.names)
	slices.SortFunc(s.list, func(a, b *candidate) int { return strings.Compare(string(a.ep.ID), string(b.ep.ID)) })
	for name, m := range s.models {
		for _, c := range m.cands {
			base := s.byID[c.ep.ID]
			base.offers = append(base.offers, s.models[name].stats)
			base.names = append(base.names, name)
		}
	}
	r.snap.Store(s)
	return fell
}

// settle notes the candidate in its failure domains.
func (s *Snapshot) settle(c *candidate) {
	for k := sameRegion; k < numKinships; k++ {
		if d := domainOf(c.ep, k); d.name != "" {
			if s.domains == nil {
				s.domains = map[domain][]*candidate{}
			}
			s.domains[d] = append(s.domains[d], c)
		}
	}
}

// arrange readies the candidates for picks.
func (m *Model) arrange() {
	metered := func(c *candidate) int {
		if cost.Metered(&c.ep.Price) {
			return 1
		}
		return 0
	}
	for _, c := range m.cands {
		c.meets = m.demand.Meets(c.ep)
	}
	slices.SortStableFunc(m.cands, func(a, b *candidate) int { return metered(a) - metered(b) })
	m.paid = len(m.cands)
	for m.paid > 0 && metered(m.cands[m.paid-1]) == 1 {
		m.paid--
	}
	if len(m.cands) > wholePool {
		holders := make(map[affinity.Host]*candidate, len(m.cands))
		for _, c := range m.cands {
			holders[affinity.Host(c.host.cache.Load())] = c
		}
		m.holders.Store(&holders)
	}
}

// renamed has holders know a host's prefix cache by another name. The caller holds Router.mu.
func (m *Model) renamed(h *host, was, is affinity.Host) {
	holders := m.holders.Load()
	if holders == nil || (*holders)[was] == nil || (*holders)[was].host != h {
		return
	}
	next := maps.Clone(*holders)
	next[is] = next[was]
	delete(next, was)
	m.holders.Store(&next)
}

// Endpoints that discovery drops are remembered for a while: their provider may have been wrong.
const (
	rememberSeconds = 3600.0
	rememberMost    = 1000
)

// forget keeps what was learned of endpoints that are gone but not for long. The caller holds mu.
func (r *Router) forget(known map[endpoint.ID]*host, at float64) {
	gone := 0
	for id, h := range r.hosts {
		if known[id] != nil {
			continue
		}
		if math.IsNaN(h.goneAt) {
			h.drop(at)
		}
		if gone++; at-h.goneAt < rememberSeconds && gone <= rememberMost {
			known[id] = h
		}
	}
}

// offer adds one served model under every name it goes by.
func (s *Snapshot) offer(c *candidate, sv *endpoint.Served, rules []ModelRule) {
	if len(rules) == 0 {
		s.add(sv.Name, c, sv)
		return
	}
	for i := range rules {
		if slices.ContainsFunc(rules[i].Serves, func(p string) bool { return matches(p, sv.Name) }) {
			s.add(rules[i].Name, c, sv)
		}
	}
}

func (s *Snapshot) add(name string, base *candidate, sv *endpoint.Served) {
	m := s.models[name]
	if m == nil {
		m = &Model{Name: name}
		s.models[name] = m
	}
	c := *base
	c.served, c.card, c.maxContext, c.root = sv.Name, sv.Card, sv.MaxContext, rootOf(sv.Card)
	if c.unnamed = sv.Unnamed; c.unnamed {
		c.servedJSON = null
	} else if sv.Name != name {
		c.servedJSON, _ = json.Marshal(sv.Name) // a string always encodes
	}
	m.take(&c)
}

// take adds a candidate.
func (m *Model) take(c *candidate) {
	m.cands = append(m.cands, c)
	m.textOnly = m.textOnly || c.ep.TextOnly
	m.plain = m.plain || c.ep.Plain
	m.fickle = m.fickle || c.ep.Tenure == endpoint.Interruptible
}

// null stands for the model in requests to hosts of which nobody knows what they call theirs; they fill it in.
var null = []byte("null")

func matches(pattern, name string) bool {
	if p, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(name, p)
	}
	return pattern == name
}

// Models returns the names that callers may use, sorted. It is not to be changed.
func (s *Snapshot) Models() []string { return s.names }

// Intern returns the model of that name in the snapshot's own memory, without allocating.
func (s *Snapshot) Intern(name []byte) (string, bool) {
	if m := s.models[string(name)]; m != nil {
		return m.Name, true
	}
	return "", false
}

// Has tells whether callers may use the name.
func (s *Snapshot) Has(model string) bool { return s.models[model] != nil }

// TextOnly tells whether some endpoint of the model takes text only, so that it matters what a prompt holds.
func (s *Snapshot) TextOnly(model string) bool {
	m := s.models[model]
	return m != nil && m.textOnly
}

// Plain tells whether some endpoint of the model is Plain, so that it matters what else a request holds.
func (s *Snapshot) Plain(model string) bool {
	m := s.models[model]
	return m != nil && m.plain
}

// Card returns a host's own description of the model, nil when none gave one, and whether the model exists.
func (s *Snapshot) Card(model string) (card json.RawMessage, ok bool) {
	m := s.models[model]
	if m == nil {
		return nil, false
	}
	for _, c := range m.cands {
		if c.card != nil {
			return c.card, true
		}
	}
	return nil, true
}

// Ready tells whether some model has an endpoint.
func (s *Snapshot) Ready() bool {
	for _, m := range s.models {
		if len(m.cands) > 0 {
			return true
		}
	}
	return false
}

// Endpoint returns the endpoint with that ID, or nil.
func (s *Snapshot) Endpoint(id endpoint.ID) *endpoint.Endpoint {
	if c := s.byID[id]; c != nil {
		return c.ep
	}
	return nil
}

// fullLoadUSDPerMTok is what a million output tokens cost when the engine runs as many streams as keep the model's SLO, or
// the default one; NaN when the price is unknown. It plans and orders; what a request costs is another figure.
func (c *candidate) fullLoadUSDPerMTok(at float64) float64 {
	var s capacity.State
	c.host.pub.load(&s, at)
	_, sigma := s.ITL(1)
	safe := s.SafeConcurrency(DefaultSLO().TPS, zUsual, sigma)
	return cost.FullLoad(&c.ep.Price, s.SecondsPerToken(safe)) * 1e6
}

// HostView is what the admin API and the demo show of an endpoint.
type HostView struct {
	Endpoint *endpoint.Endpoint `json:"-"`
	ID       endpoint.ID        `json:"id"`
	Provider string             `json:"provider"`
	URL      string             `json:"url"`
	Models   []string           `json:"models"`
	State    string             `json:"state"`
	Breaker  string             `json:"breaker"`
	Opens    int64              `json:"breaker_opens"`
	// Transitions are those of the breaker so far.
	Transitions []health.Transition `json:"breaker_transitions"`
	InFlight    int64               `json:"in_flight"`
	Elsewhere   int64               `json:"in_flight_elsewhere"` // from other replicas and callers, as last heard
	Requests    int64               `json:"requests"`
	Failures    int64               `json:"failures"`
	TTFTMillis  *float64            `json:"ttft_ms"`
	TPS         *float64            `json:"tokens_per_second"`
	// StreamUSDPerMTok is the price of a million output tokens of one stream alone at the speed
	// measured; FullLoadUSDPerMTok of a full engine. Nil when unknown.
	StreamUSDPerMTok   *float64 `json:"usd_per_mtok_one_stream"`
	FullLoadUSDPerMTok *float64 `json:"usd_per_mtok_full_load"`
	PriceBasis         string   `json:"price_basis"`
	PriceSource        string   `json:"price_source,omitempty"`
	PriceAgeSeconds    *float64 `json:"price_age_seconds"`
	Tenure             string   `json:"tenure"`
	StateReason        string   `json:"state_reason,omitempty"`
	Drained            bool     `json:"drained"` // by its operator: see Router.Drain
	Dialect            string   `json:"dialect"`
	Trust              string   `json:"trust"`
	Encrypted          bool     `json:"encrypted"`
	Region             string   `json:"region,omitempty"`
	GPU                string   `json:"gpu,omitempty"`
	GPUCount           int      `json:"gpu_count,omitempty"`
	Workers            int      `json:"workers,omitempty"`
	// What was learned of it, for a request alone on it: expected ITL and its doubt; the sequences at once that keep the default
	// SLO, and that it takes; and how true predictions were.
	ITLMillis   *float64        `json:"itl_ms"`
	ITLSigma    *float64        `json:"itl_relative_sigma"`
	Safe        *float64        `json:"safe_concurrency"`
	Limit       *float64        `json:"limit_concurrency"`
	Observed    int64           `json:"streams_observed"`
	Prior       string          `json:"prior"`
	Losses      *float64        `json:"expected_losses_per_day"`
	Calibration HostCalibration `json:"calibration"`

	USDPerHour *float64 `json:"usd_per_hour"` // of the host, or of one worker while it runs; nil when unknown or priced per token
}

// Hosts returns a view of every endpoint, by ID.
func (r *Router) Hosts() []HostView {
	s, now := r.Snapshot(), r.now()
	out := make([]HostView, 0, len(s.list))
	for _, c := range s.list {
		h, ep := c.host, c.ep
		v := HostView{
			Endpoint: ep, ID: ep.ID, Provider: ep.Provider, URL: ep.BaseURL, Models: []string{}, State: ep.State.String(),
			Breaker: h.breaker.State(now).String(), Opens: h.breaker.Opens(), Transitions: h.breaker.Transitions(nil), InFlight: h.inflight.Load(), Elsewhere: h.elsewhere(r.seconds(now)),
			Requests: h.requests.Load(), Failures: h.failures.Load(),
			PriceBasis: ep.Price.Basis.String(), PriceSource: ep.Price.Source, Tenure: ep.Tenure.String(),
			StateReason: ep.StateReason, Drained: h.drained.Load(), Dialect: ep.Dialect.String(), Trust: ep.Trust.String(), Encrypted: ep.Encrypted(), Region: ep.Region,
			GPU: ep.Hardware.GPU, GPUCount: ep.Hardware.GPUCount, Workers: ep.Workers, USDPerHour: known(usdPerHour(&ep.Price)),
			TTFTMillis: known(h.ttft.mean(math.NaN()) * 1e3), TPS: known(h.tps.mean(math.NaN())),
			FullLoadUSDPerMTok: known(c.fullLoadUSDPerMTok(r.seconds(now))), StreamUSDPerMTok: known(c.streamUSDPerMTok()),
		}
		if !ep.Price.AsOf.IsZero() {
			v.PriceAgeSeconds = known(r.opt.Now().Sub(ep.Price.AsOf).Round(time.Second).Seconds())
		}
		for _, sv := range ep.Served {
			v.Models = append(v.Models, sv.Name)
		}
		v.learned(h, r.seconds(now))
		out = append(out, v)
	}
	return out
}

// learned fills in what was learned of the host.
func (v *HostView) learned(h *host, at float64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.learner.State().Now(at)
	itl, sigma := s.ITL(1)
	v.ITLMillis, v.ITLSigma = known(itl*1e3), known(sigma)
	v.Safe, v.Limit = known(s.SafeConcurrency(DefaultSLO().TPS, zUsual, sigma)), known(s.Limit)
	v.Observed, v.Prior, v.Losses = int64(h.learner.Count), s.Source, known(h.pub.hazard.get()*86400)
	c := &v.Calibration
	c.TTFT, c.TTFTSigma = h.calib.ttft.show()
	c.ITL, c.ITLSigma = h.calib.itl.show()
	c.USD, _ = h.calib.usd.show()
}

func (c *candidate) streamUSDPerMTok() float64 {
	p, tps := &c.ep.Price, c.host.tps.mean(math.NaN())
	switch p.Basis {
	case endpoint.PerHour:
		return p.USDPerHour / 3600 / tps * 1e6
	case endpoint.PerWorkerSecond:
		return p.USDPerWorkerSecond / tps * 1e6
	case endpoint.PerToken:
		return p.USDPerMTokOut
	case endpoint.BasisUnknown:
	}
	return math.NaN()
}

func known(v float64) *float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return nil
	}
	return &v
}

func usdPerHour(p *endpoint.Price) float64 {
	switch p.Basis {
	case endpoint.PerHour:
		return p.USDPerHour
	case endpoint.PerWorkerSecond:
		return p.USDPerWorkerSecond * 3600
	case endpoint.PerToken, endpoint.BasisUnknown:
	}
	return math.NaN()
}
