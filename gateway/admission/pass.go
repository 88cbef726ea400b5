package admission

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"headrace/gateway/openai"
	"headrace/gateway/state"
	"headrace/router"
)

// Ask is what a request is going to take, as far as can be told before it was answered.
type Ask struct {
	Now    time.Time
	Prompt int  // tokens, estimated
	Output int  // most tokens that the caller takes of each answer; 0 for no such limit
	N      int  // answers; 0 for one
	Silent bool // no tokens come of it: embeddings, scores, images
	// Price is what the dearest host of the model may take, all 0 where none takes anything. It is read for keys with a budget only.
	Price router.Ceiling
}

// Pass is a request that was let in, from Admit to Settle. A nil Pass is one for which no key was needed. It is not safe for use by
// several goroutines.
type Pass struct {
	grant  *Grant
	tokens int64   // taken in advance
	prompt int64   // of these
	nano   int64   // billionths of a US dollar, likewise
	weight float64 // see prices.learn
	at     int64   // the gate's clock when it was let in

	left Left
}

// Left is what a key may still take after a request was let in or refused; limits are 0 where there is none.
type Left struct {
	RPM, Requests  int64         // a minute, and left of it
	RequestsFullIn time.Duration // until all of it can be taken again
	TPM, Tokens    int64
	TokensFullIn   time.Duration
	Budget         bool  // there is one
	NanoUSD        int64 // left of the budget that is nearest to its end, in billionths of a US dollar
}

// USD is what is left of the budget, in US dollars.
func (l *Left) USD() float64 { return usd(l.NanoUSD) }

var passes = sync.Pool{New: func() any { return new(Pass) }}

const (
	priorOutput = 256 // tokens of an answer, before any was seen
	// mostOutput is how long an answer is thought to become, for a budget, where the caller sets no limit and none longer was seen.
	mostOutput = 4096
	// knownOf is after how many requests a key's own figures are believed.
	knownOf = 4
)

// Admit takes from the key's limits and budgets what the request is going to use, or says why it cannot. Whoever gets a Pass settles it
// once. left is filled in either way; it may be nil.
func (gr *Grant) Admit(ask *Ask, left *Left) (*Pass, *openai.Error) {
	if gr == nil {
		return nil, nil
	}
	p := passes.Get().(*Pass)
	p.grant = gr
	e := p.admit(ask)
	if left != nil {
		*left = p.left
	}
	if e != nil {
		*p = Pass{}
		passes.Put(p)
		return nil, e
	}
	return p, nil
}

func (p *Pass) admit(ask *Ask) *openai.Error {
	gr := p.grant
	k, a, g := &gr.Key, gr.acct, gr.gate
	now := g.clock(ask.Now)
	a.mu.Lock()
	defer a.mu.Unlock()
	p.prompt, p.at, p.weight = int64(ask.Prompt), now, weightOf(&ask.Price)
	p.tokens = p.prompt
	if !ask.Silent {
		out := int64(a.output.of(priorOutput))
		if ask.Output > 0 {
			out = min(out, int64(ask.Output))
		}
		p.tokens += out * int64(max(1, ask.N))
	}
	p.tokens = max(p.tokens, 1)
	if int64(ask.Prompt) <= k.TPM { // what answers are expected to be keeps nobody out for good: it waits for all of the minute
		p.tokens = min(p.tokens, k.TPM)
	}
	if gr.limited() {
		p.nano = a.alone(gr, a.atMost(ask), ask.Now)
	}
	r, wait, w := p.decide(now, ask.Now)
	p.look(now)
	switch r {
	case numReasons:
		return nil
	case overBudget:
		return g.refuse(r, errBudget(w, gr.limit(w), a.spentIn(w), p.nano, a.next(), ask.Now))
	case unknownBudget:
		return g.refuse(r, errBudgetUnknown())
	case overTokens:
		return g.refuse(r, errRate(r, k.TPM, p.tokens, wait))
	case overConcurrency:
		return g.refuse(r, errRate(r, k.Concurrency, 1, a.next()))
	default:
		return g.refuse(r, errRate(r, k.RPM, 1, wait))
	}
}

// next is how long it takes until one of the running requests ends, by how long those of late took. mu is held.
func (a *account) next() time.Duration {
	running := a.running + a.share.others
	return max(leastNext, time.Duration(a.took.of(0)/float64(max(1, running))))
}

const leastNext = time.Second // what Retry-After can say

// alone has a request that seems to cost more than a whole budget fit into it while nothing of that is spent and nothing runs: what is only an
// estimate keeps nobody out for good. mu is held.
func (a *account) alone(gr *Grant, nano int64, now time.Time) int64 {
	if a.roll(now); a.running > 0 || a.share.others > 0 || a.share.theirs > 0 {
		return nano
	}
	weight := gr.gate.share.weight()
	for _, w := range [...]window{perDay, perMonth, inTotal} {
		if limit := gr.limit(w); limit > 0 && a.spentIn(w) == 0 {
			nano = min(nano, limit/weight)
		}
	}
	return nano
}

// spentIn is what was spent in the window of now, as of the last roll. mu is held.
func (a *account) spentIn(w window) int64 {
	switch w {
	case perDay:
		return a.spent.InDay + a.unsaved.InDay
	case perMonth:
		return a.spent.InMon + a.unsaved.InMon
	case inTotal:
		return a.spent.Total + a.unsaved.Total
	case noWindow:
	}
	return 0
}

// decide takes what the request needs, or tells what has no room for it: numReasons for nothing. The account's mu is held.
func (p *Pass) decide(now int64, at time.Time) (r reason, wait time.Duration, w window) {
	gr, a := p.grant, p.grant.acct
	s, k := gr.gate.share, &gr.Key
	if s == nil {
		if r, wait, w = a.room(gr, p, now, at, 1); r == numReasons {
			a.take(gr, p, now, 1)
		}
		return r, wait, w
	}
	if a.share.grant != gr { // the key has changed: what was asked was by other limits
		a.share.grant, a.share.asked = gr, 0
	}
	if r, wait, w = a.room(gr, p, now, at, s.weight()); r != numReasons {
		s.owes(a) // to hear when there is room
		return r, wait, w
	}
	a.share.taking = now
	var c *claim
	if gr.bounded() {
		if a.takes(gr, p, now) {
			a.take(gr, p, now, 1)
			return numReasons, 0, noWindow
		}
	}
	if gr.bounded() && !s.away.Load() {
		if c = s.ask(gr, p); c.decided {
			return gr.verdict(c.verdict, p, now)
		}
		if r, wait, w = a.room(gr, p, now, at, s.weight()); r != numReasons { // others have come meanwhile
			return r, wait, w
		}
	}
	if weight := s.weight(); weight > 1 {
		if r, wait = a.onItsOwn(gr, p, now, weight, s.gone.Load()); r != numReasons {
			return r, wait, noWindow
		}
		a.share.anything = true
		a.share.alone[0].take(now, weight, k.RPM)
		a.share.alone[1].take(now, p.tokens*weight, k.TPM)
	}
	if gr.gate.opt.Strict && gr.limited() && s.away.Load() && now-a.share.asked > int64(strictAfter) {
		return unknownBudget, 0, noWindow
	}
	a.take(gr, p, now, s.weight())
	if c != nil && !c.lost {
		c.in = true // whoever asks for it may hear yet
		return numReasons, 0, noWindow
	}
	a.share.owed.requests++
	a.share.owed.tokens += p.tokens
	s.owes(a)
	return numReasons, 0, noWindow
}

// verdict is what Redis says, in our words. The account's mu is held.
func (gr *Grant) verdict(v state.Verdict, p *Pass, now int64) (reason, time.Duration, window) {
	k, a := &gr.Key, gr.acct
	switch v {
	case state.LetIn:
		return numReasons, 0, noWindow
	case state.NoConcurrency:
		return overConcurrency, 0, noWindow
	case state.NoRequests:
		return overRequests, time.Duration(max(a.requests.wait(now, 1, k.RPM), int64(time.Millisecond))), noWindow
	case state.NoTokens:
		return overTokens, time.Duration(max(a.tokens.wait(now, p.tokens, k.TPM), int64(time.Millisecond))), noWindow
	case state.NoMonth:
		return overBudget, 0, perMonth
	case state.NoDay:
		return overBudget, 0, perDay
	case state.NoTotal:
	}
	return overBudget, 0, inTotal
}

// take takes what p needs. mu is held.
func (a *account) take(gr *Grant, p *Pass, now, weight int64) {
	a.requests.take(now, weight, gr.Key.RPM)
	a.tokens.take(now, p.tokens*weight, gr.Key.TPM)
	a.running++
	a.reserved += p.nano
}

// room tells whether limits and budgets have room for p: numReasons, or which has not, and when it will. Where other replicas cannot be asked
// each request counts weight times. mu is held.
func (a *account) room(gr *Grant, p *Pass, now int64, at time.Time, weight int64) (reason, time.Duration, window) {
	k := &gr.Key
	others, theirs := a.share.others, a.share.theirs
	if weight > 1 { // they do as we do, as far as we know
		others, theirs = 0, 0
	}
	if k.Concurrency > 0 && a.running*weight+others >= k.Concurrency {
		return overConcurrency, 0, noWindow
	}
	if k.RPM > 0 {
		if w := a.requests.wait(now, min(weight, k.RPM), k.RPM); w > 0 {
			return overRequests, time.Duration(w), noWindow
		}
	}
	if k.TPM > 0 {
		if p.tokens > k.TPM {
			return overTokens, 0, noWindow
		}
		if w := a.tokens.wait(now, min(p.tokens*weight, k.TPM), k.TPM); w > 0 {
			return overTokens, time.Duration(w), noWindow
		}
	}
	if gr.limited() {
		if w := a.broke(gr, (a.reserved+p.nano)*weight+theirs, at, weight); w != noWindow {
			return overBudget, 0, w
		}
	}
	return numReasons, 0, noWindow
}

// broke tells which budget has no room for so much more. mu is held.
func (a *account) broke(gr *Grant, next int64, now time.Time, weight int64) window {
	a.roll(now)
	fits := func(limit, spent, unsaved int64) bool {
		spent += unsaved * weight
		return limit == 0 || spent < limit && spent+next <= limit
	}
	switch {
	case !fits(gr.total, a.spent.Total, a.unsaved.Total):
		return inTotal
	case !fits(gr.month, a.spent.InMon, a.unsaved.InMon):
		return perMonth
	case !fits(gr.day, a.spent.InDay, a.unsaved.InDay):
		return perDay
	}
	return noWindow
}

func (a *account) roll(now time.Time) {
	day, month := on(now)
	if day != a.spent.Day || month != a.spent.Month || day != a.unsaved.Day {
		if day > a.spent.Day {
			a.warned &^= perDay
		}
		if month > a.spent.Month {
			a.warned &^= perMonth
		}
		a.spent.unwind(day, month)
		a.unsaved.unwind(day, month)
		a.spent.roll(day, month)
		a.unsaved.roll(day, month)
	}
}

func (gr *Grant) limit(w window) int64 {
	switch w {
	case perDay:
		return gr.day
	case perMonth:
		return gr.month
	case inTotal:
		return gr.total
	case noWindow:
	}
	return 0
}

// look notes what is left. The account's mu is held.
func (p *Pass) look(now int64) {
	gr, l := p.grant, &p.left
	k, a := &gr.Key, gr.acct
	if l.RPM = k.RPM; k.RPM > 0 {
		l.Requests, l.RequestsFullIn = a.requests.left(now, k.RPM), time.Duration(max(0, a.requests.full-now))
	}
	if l.TPM = k.TPM; k.TPM > 0 {
		l.Tokens, l.TokensFullIn = a.tokens.left(now, k.TPM), time.Duration(max(0, a.tokens.full-now))
	}
	l.NanoUSD, l.Budget = a.funds(gr)
}

// funds is what is left of the budget that is nearest to its end. mu is held.
func (a *account) funds(gr *Grant) (nano int64, limited bool) {
	for _, b := range [...]struct{ limit, spent int64 }{
		{gr.day, a.spent.InDay + a.unsaved.InDay}, {gr.month, a.spent.InMon + a.unsaved.InMon}, {gr.total, a.spent.Total + a.unsaved.Total},
	} {
		if b.limit > 0 {
			if n := max(0, b.limit-b.spent); !limited || n < nano {
				nano = n
			}
			limited = true
		}
	}
	return nano, limited
}

// Left says what the key may still take, as of Admit. It is nil where no key was needed.
func (p *Pass) Left() *Left {
	if p == nil {
		return nil
	}
	return &p.left
}

// Grant returns what the key allows, nil where no key was needed.
func (p *Pass) Grant() *Grant {
	if p == nil {
		return nil
	}
	return p.grant
}

// Used is what a request took in truth.
type Used struct {
	Now            time.Time
	Prompt, Output int64   // tokens; -1 for unknown
	Began          bool    // some host was asked: else it took no tokens
	USD            float64 // of hosts' bills, all attempts together; 0 for unknown
	// PromptUSD and OutputUSD are what of USD is known to be for prompts and for answers. The rest is parted by tokens.
	PromptUSD, OutputUSD float64
	// Unpriced says that USD does not tell what the tokens cost: no host answered, or what the one takes that did is not known.
	Unpriced bool
}

// Settle puts what the request took in the place of what was thought when it was let in. The Pass is another request's afterwards.
func (p *Pass) Settle(u *Used) {
	if p == nil {
		return
	}
	gr := p.grant
	a, k := gr.acct, &gr.Key
	now := gr.gate.clock(u.Now)
	tokens := int64(0)
	switch {
	case u.Prompt >= 0 && u.Output >= 0:
		tokens = u.Prompt + u.Output
	case u.Began: // nobody has counted
		tokens = max(p.tokens, u.Prompt, u.Output)
	}
	nano := nanos(u.USD)
	s := gr.gate.share
	a.mu.Lock()
	a.running--
	a.reserved -= p.nano
	a.tokens.take(now, (tokens-p.tokens)*s.weight(), k.TPM)
	if u.Began {
		if u.Output >= 0 {
			a.output.add(float64(u.Output))
			a.longest = max(float64(u.Output), a.longest*(1-1./meanOf))
		}
		a.took.add(float64(max(0, now-p.at)))
		a.price(u, p)
	}
	warn, left := noWindow, int64(0)
	if nano > 0 {
		a.roll(u.Now)
		a.unsaved.book(nano)
		warn, left = a.soft(gr)
	}
	if s != nil {
		a.settled(tokens-p.tokens, nano)
		s.owes(a)
	}
	a.mu.Unlock()
	if warn != noWindow {
		gr.gate.counts.warned.Add(1)
		gr.gate.log.LogAttrs(context.Background(), slog.LevelWarn, "a key has used most of its budget",
			slog.String("key", k.Name), slog.String("id", k.ID), slog.String("budget", warn.String()), slog.Float64("limit_usd", usd(gr.limit(warn))), slog.Float64("left_usd", usd(left)))
	}
	*p = Pass{}
	passes.Put(p)
}

// soft tells which budget's soft limit was passed just now, and what is left of it. mu is held.
func (a *account) soft(gr *Grant) (w window, left int64) {
	for _, b := range [...]struct {
		w            window
		limit, spent int64
	}{
		{perDay, gr.day, a.spent.InDay + a.unsaved.InDay}, {perMonth, gr.month, a.spent.InMon + a.unsaved.InMon}, {inTotal, gr.total, a.spent.Total + a.unsaved.Total},
	} {
		if b.limit > 0 && a.warned&b.w == 0 && float64(b.spent) >= gr.soft*float64(b.limit) {
			a.warned |= b.w
			return b.w, max(0, b.limit-b.spent)
		}
	}
	return noWindow, 0
}

// Name is the key's name, "" where no key was needed.
func (gr *Grant) Name() string {
	if gr == nil {
		return ""
	}
	return gr.Key.Name
}

// ID tells keys apart, and stays the same when a key is rotated; "" where no key was needed.
func (gr *Grant) ID() string {
	if gr == nil {
		return ""
	}
	return gr.Key.ID
}

// Salt is what the key's prompts and sessions are recognised by beside themselves, so that no other key finds them; 0 where no key was needed.
func (gr *Grant) Salt() uint64 {
	if gr == nil {
		return 0
	}
	return gr.salt
}

// Model tells whether requests may name the model.
func (gr *Grant) Model(name string) bool {
	return gr == nil || len(gr.Key.Models) == 0 || fits(gr.Key.Models, name)
}

// Limited tells whether there are models that requests may not name.
func (gr *Grant) Limited() bool { return gr != nil && len(gr.Key.Models) > 0 }

// Policy tells whether requests may ask for the policy.
func (gr *Grant) Policy(p router.Policy) bool {
	return gr == nil || gr.policy == 0 || p == router.PolicyDefault || gr.policy&(1<<p) != 0
}

// MayArm tells whether requests may choose their arm of the experiment.
func (gr *Grant) MayArm(experiment string) bool {
	return gr == nil || fits(gr.Key.Experiments, experiment)
}

// Passthrough tells whether requests may use paths that are passed on unread.
func (gr *Grant) Passthrough() bool { return gr == nil || gr.Key.Passthrough }

// Demand is what hosts must be that get requests with the key, nil for anything. Nobody changes it.
func (gr *Grant) Demand() *router.Demand {
	if gr == nil || !gr.demand.Demanding() {
		return nil
	}
	return &gr.demand
}

// Batch tells whether the key's requests may wait.
func (gr *Grant) Batch() bool { return gr != nil && gr.Key.Priority == Batch }

// Weight is the key's share against others where not all can be served.
func (gr *Grant) Weight() float64 {
	if gr == nil || !(gr.Key.Weight > 0) { //nolint:staticcheck // NaN is not above 0 either
		return 1
	}
	return gr.Key.Weight
}
