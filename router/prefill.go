package router

import (
	"encoding/json"
	"slices"

	"headrace/router/endpoint"
)

// Prefill is what a self-test found of a host's way with an assistant message that is not finished.
type Prefill struct {
	Known bool // a self-test came to a result
	OK    bool // its engine goes on with the message, and neither begins anew nor ends it first
	Trims bool // its template drops white space at the end of the message
	Told  bool // no self-test found it, but its operator says so, or its kind: it is true of every start
	// Tokens says that it tells the numbers of its tokens, of prompt and answer, and goes on behind such a prompt on the path
	// /completions.
	Tokens bool
}

// continues tells whether the host can go on with an answer in some way.
func (p Prefill) continues() bool { return p.OK || p.Tokens }

// suits tells whether it can in a way that k allows.
func (p Prefill) suits(k *Continuation) bool { return p.OK && !k.ExactOnly || p.Tokens && k.Exact }

// Continuation is what a stream that broke asks of the host that is to go on with it.
type Continuation struct {
	From   endpoint.ID // whose failure broke it
	Served string      // the model's id there
	Root   string      // "root" of that model's card, "" when unknown; see Lease.Root
	// Back says that whoever failed the answer before may go on with it, if nobody else can and it is well again: the request has
	// waited for that. Failing to find anybody is then no decision to be kept.
	Back bool
	// Exact says that the numbers of the answer's tokens are known, so that a host may be asked with these, and ExactOnly that its text
	// will not do.
	Exact, ExactOnly bool
	// Refused are hosts that would not go on with it, or cannot be asked to: they are not asked again, whatever Back says.
	Refused []endpoint.ID
}

// alike tells whether c serves the very model that began the answer: the same root where both tell theirs, else the same id.
func (k *Continuation) alike(c *candidate) bool {
	if k.Root != "" && c.root != "" {
		return k.Root == c.root
	}
	return k.Served == c.served && !c.unnamed
}

// others counts the model's hosts that could go on with the answer, now or in a while: not the one that broke it off, nor those that refused.
func (s *scratch) others() (n int) {
	k := s.q.Continue
	for _, c := range s.m.cands {
		if c.ep.ID != k.From && !slices.Contains(k.Refused, c.ep.ID) && c.fitness(s.q) == fit && k.alike(c) && c.host.prefill(c.served).suits(k) {
			n++
		}
	}
	return n
}

// rootOf reads what a host's card says the model was made from.
func rootOf(card json.RawMessage) string {
	var c struct {
		Root string `json:"root"`
	}
	if len(card) == 0 || json.Unmarshal(card, &c) != nil {
		return ""
	}
	return c.Root
}

// tested is what is known of one of a host's models.
type tested struct {
	served string
	p      Prefill
}

// prefill returns what is known of the model that the host serves by that id.
func (h *host) prefill(served string) Prefill {
	if list := h.prefills.Load(); list != nil {
		for i := range *list {
			if t := &(*list)[i]; t.served == served {
				return t.p
			}
		}
	}
	return Prefill{}
}

// SetPrefill tells what is known of an endpoint's way with a model, whoever found it. One that is not Known forgets what was. It is
// kept until the endpoint no longer serves the model and, unless it was Told, the host is started anew or moves to another machine.
// Endpoints that are not in the snapshot, and models that they do not serve, are left alone.
func (r *Router) SetPrefill(id endpoint.ID, served string, p Prefill) {
	defer r.freed(id)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.setPrefill(r.snap.Load().byID[id], served, p)
}

// Belied forgets that an endpoint goes on with unfinished answers, which it has just refused to as such: the next self-test tells. What was Told
// of it stays.
func (r *Router) Belied(id endpoint.ID, served string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.snap.Load().byID[id]; c != nil && !c.host.prefill(served).Told {
		r.setPrefill(c, served, Prefill{})
	}
}

// Tested is SetPrefill for what a self-test that Probes handed out has found. It is kept, and kept is true, where the engine that was
// tested is the one that runs as far as is known, and nothing was told meanwhile.
func (r *Router) Tested(p *Probe, found Prefill) (kept bool) {
	defer r.freed(p.Endpoint.ID)
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.snap.Load().byID[p.Endpoint.ID]
	if c == nil || c.host.cache.Load() != p.Start || c.host.prefill(p.Served).Told {
		return false
	}
	return r.setPrefill(c, p.Served, found)
}

// setPrefill is both of them; c may be nil. The caller holds Router.mu.
func (r *Router) setPrefill(c *candidate, served string, p Prefill) bool {
	if c == nil || !c.serves(served) {
		return false
	}
	c.host.keepTests(func(t *tested) bool { return t.served != served && c.serves(t.served) })
	if p.Known {
		next := []tested{{served, p}}
		if list := c.host.prefills.Load(); list != nil {
			next = append(slices.Clone(*list), next...)
		}
		c.host.prefills.Store(&next)
	}
	r.snap.Load().everyPool((*Model).countPrefills)
	return true
}

// keepTests forgets what is not to be kept. The caller holds Router.mu.
func (h *host) keepTests(keep func(*tested) bool) {
	list := h.prefills.Load()
	if list == nil {
		return
	}
	var next []tested
	for i := range *list {
		if t := &(*list)[i]; keep(t) {
			next = append(next, *t)
		}
	}
	if len(next) < len(*list) {
		h.prefills.Store(&next)
	}
}

// forgetTests forgets what was found of an engine that has ended. The caller holds Router.mu.
func (h *host) forgetTests() { h.keepTests(func(t *tested) bool { return t.p.Told }) }

// serves tells whether the endpoint serves a model by that id.
func (c *candidate) serves(served string) bool {
	return slices.ContainsFunc(c.ep.Served, func(sv endpoint.Served) bool { return sv.Name == served })
}

// Prefill is what is known of the leased host's way with an unfinished message of the leased model.
func (l *Lease) Prefill() Prefill { return l.host.prefill(l.Served) }

// Tokens is about how many tokens that many events of a stream of the leased host carry.
func (l *Lease) Tokens(events int64) int64 { return l.host.tokens(events) }

// MaxContext is how many tokens prompt and answer may have together at the leased host, 0 when nobody knows.
func (l *Lease) MaxContext() int {
	for i := range l.Endpoint.Served {
		if sv := &l.Endpoint.Served[i]; sv.Name == l.Served {
			return sv.MaxContext
		}
	}
	return 0
}

// Root is what the host's card says the leased model was made from, "" when it says nothing.
func (l *Lease) Root() string { return l.root }

// countPrefills notes how many candidates can continue an answer, so that requests need not look. The caller holds Router.mu.
func (m *Model) countPrefills() {
	var proven, open int32
	for _, c := range m.cands {
		switch p := c.host.prefill(c.served); {
		case p.continues():
			proven++
		case !p.Known && c.testable():
			open++
		}
	}
	m.prefills.Store(proven)
	m.untested.Store(open)
}

// testable tells whether a self-test may tell more of the candidate. One that is paid by the token gets none, nor can one whose model
// nobody knows by name.
func (c *candidate) testable() bool {
	return c.chats() && !c.unnamed && c.ep.Price.Basis != endpoint.PerToken && c.ep.Tenure != endpoint.TenurePerToken
}

// worth tells whether an answer could be lost by one host and gone on with by another.
func (m *Model) worth() bool { return m != nil && (m.fickle || len(m.cands) > 1) }

// MayContinue tells whether it is worth following a stream of the model: when it breaks, some host may have shown that it can go on
// with it, though none may have yet.
func (s *Snapshot) MayContinue(model string) bool {
	m := s.models[model]
	return m.worth() && m.prefills.Load()+m.untested.Load() > 0
}

// Interruptible tells whether some host of the model may be taken away.
func (s *Snapshot) Interruptible(model string) bool {
	m := s.models[model]
	return m != nil && m.fickle
}

// Continuable tells the same of now: some host that can go on with an answer may be used. It is cheap enough to be asked for each request.
func (s *Snapshot) Continuable(model string) bool {
	m := s.models[model]
	if !m.worth() || m.prefills.Load() == 0 {
		return false
	}
	now := s.now()
	for _, c := range m.cands {
		if c.usable() && !c.asleep() && c.host.prefill(c.served).continues() {
			if d, _ := c.host.breaker.Wait(now); d <= 0 {
				return true
			}
		}
	}
	return false
}
