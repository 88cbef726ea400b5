package gateway

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"headrace/gateway/forward"
	"headrace/gateway/openai"
	"headrace/gateway/resume"
	"headrace/gateway/sse"
	"headrace/router"
	"headrace/router/outcome"
)

// Preemption is what becomes of an answer whose host is lost in the middle of it.
type Preemption uint8

// What may become of it.
const (
	Continue Preemption = iota // another host goes on with it, where that is safe: see gateway/resume
	Restart                    // another host begins anew, as long as the caller has none of it
	Fail                       // the caller gets an error
)

// ParsePreemption reads the word used in config and headers.
func ParsePreemption(word string) (Preemption, bool) {
	switch word {
	case "continue":
		return Continue, true
	case "restart":
		return Restart, true
	case "fail":
		return Fail, true
	}
	return Continue, false
}

// tale is an answer that another host can go on with: what the caller has of it, and how often it was broken off. An exchange
// has one while that is so.
type tale struct {
	story   resume.Story
	gather  bool                // the caller gets it in one piece: it is read as a stream and put together
	opened  bool                // the attempt asks for that stream
	breaks  int                 // times it was gone on with
	seam    bool                // what comes is a later attempt's: it is retold
	mark    bool                // the caller is to be told of the seam with the next piece
	out     []byte              // retold and not written yet
	body    *[]byte             // of the request that goes on with it, until that has begun to answer, or of an answer put together; pooled, or nil
	want    router.Continuation // of whoever goes on with it
	prompt  int                 // tokens of the caller's own prompt, as far as can be told
	most    int                 // tokens of the whole answer, 0 for no limit
	before  meter               // of the attempts that broke off, whose outputs are events
	lost    int64               // their output, in tokens
	gap     time.Duration       // the longest silence at a seam
	stall   time.Duration       // silence that means the host is lost
	judged  int64               // outputs when stall was set
	heard   int64               // outputs at heardAt, when the newest of them was handed on
	heardAt time.Time
	asked   time.Time // the same, or later when nobody else could go on with it
	sent    int64     // bytes that the caller got of attempts before
	holdBy  time.Time // until when a host is waited for that can go on
	held    *holding  // among those who wait for one; nil while it does not
	path    string    // that the caller's request goes to, below a host's base URL
	textual bool      // a host would not go on by the numbers of tokens: none is asked to any more
	poor    bool      // what was asked to go on with it last failed, and no retry was left

	declined bool          // a host would not go on with it since it was broken off
	no       resume.Reason // of the first of these
	paid     bool          // a retry was taken for a host in place of one of these, which is yet to be found
}

var (
	tales  = sync.Pool{New: func() any { return new(tale) }}
	bodies = sync.Pool{New: func() any { return new([]byte) }}
)

// What a tale's buffers keep for the next one, in bytes.
const (
	keptOut  = 4 << 10
	keptBody = 64 << 10
)

// blank is an empty buffer for a body.
func (t *tale) blank() []byte {
	if t.body == nil {
		t.body = bodies.Get().(*[]byte)
	}
	return (*t.body)[:0]
}

// dropBody gives it back.
func (t *tale) dropBody() {
	if t.body == nil {
		return
	}
	if *t.body = (*t.body)[:0]; cap(*t.body) <= keptBody {
		bodies.Put(t.body)
	}
	t.body = nil
}

func (x *exchange) endTale() {
	t := x.tale
	if t == nil {
		return
	}
	x.unhold(false)
	x.tale = nil
	t.story.Release()
	t.dropBody()
	out := t.out[:0]
	if cap(out) > keptOut {
		out = nil
	}
	*t = tale{out: out}
	tales.Put(t)
}

// follow begins a tale, if the answer could be gone on with.
func (x *exchange) follow() {
	if x.onLoss != Continue || x.route.proto != protoChat || x.set.MaxResumes <= 0 {
		return
	}
	snap := x.s.router.Snapshot()
	if x.why = resume.Allowed(x.route.below(), &x.scan); x.why != resume.None {
		return
	}
	gather := !x.wantStream
	if gather && !(snap.Interruptible(x.model) && snap.Continuable(x.model)) || !gather && !snap.MayContinue(x.model) {
		return
	}
	t := tales.Get().(*tale)
	t.gather, t.prompt, t.most, t.path = gather, x.ask.PromptTokens, x.ask.MaxTokens, x.req.Path
	x.tale, x.ask.Whole = t, false
	x.beginTale()
}

// beginTale forgets all of the answer that was seen.
func (x *exchange) beginTale() {
	t := x.tale
	x.unhold(false)
	t.story.Begin(x.chats(), t.gather, x.set.MaxContinuation)
	t.story.Bound(x.set.MaxGathered)
	t.seam, x.errand, t.breaks, t.lost, t.before, t.judged, t.stall = false, nil, 0, 0, meter{}, 0, x.set.Stall
	t.heard, t.want.Refused, t.declined, t.paid = 0, nil, false, false
	x.why = resume.None
	t.askAnew(&x.ask)
	x.req.Path = t.path
}

// askAnew makes q ask for the answer from its beginning again.
func (t *tale) askAnew(q *router.Request) {
	q.Continue, q.Resumed, q.PromptTokens, q.MaxTokens = nil, false, t.prompt, t.most
}

// gathers tells whether the running attempt's events are put together.
func (x *exchange) gathers() bool { return x.tale != nil && x.tale.gather && x.isStream }

// tell lets the tale have an event; taken says that the event itself goes no further.
func (x *exchange) tell(c *openai.Chunk, ev *sse.Event, now time.Time) (taken bool) {
	t := x.tale
	switch {
	case c.Malformed && x.phase == awaitingContent: // some sign of life
		return t.seam || t.gather
	case (c.Error || c.Aborted()) && x.phase != awaitingContent:
		x.errand = errEvent
		return true
	case c.Malformed && !t.seam && x.phase != awaitingContent && len(bytes.TrimSpace(ev.Data)) > 0 && x.reserve():
		x.errand = errNoJSON // else it is passed on as it came: it may be some sign of life
		return true
	case t.seam:
		had := len(t.out)
		if t.mark {
			t.out = append(t.out, seamMark...)
		}
		n := len(t.out)
		var no resume.Reason
		if t.out, no = t.story.Continue(t.out, c, ev, x.scan.IncludeUsage); no != resume.None {
			x.errand = errNotOn
		}
		switch {
		case len(t.out) == n:
			t.out = t.out[:had]
		default:
			t.mark = false
		}
	default:
		t.story.See(c, ev)
		if !t.gather {
			if r := t.story.Reason(); r != resume.None && r != resume.Finished {
				x.endTale()
				x.why = r
				if !x.m.handedAt.IsZero() { // else it may be sent once more
					x.forget()
				}
			}
			return false
		}
	}
	if t.gather && c.Content && x.leased {
		x.lease.FirstContent(x.m.firstAt.Sub(x.beginAt)) // only the first counts
		x.progress()
	}
	if c.Content && t.seam && x.m.outputs == int64(max(1, c.Outputs)) && x.errand == nil {
		x.rec.Resumes++
		t.gap = max(t.gap, now.Sub(t.before.lastAt))
	}
	return true
}

var seamMark = []byte(": resumed\n\n")

// mayGoOn tells whether another host could go on with the answer from here.
func (x *exchange) mayGoOn() bool {
	t := x.tale
	return t != nil && !x.opaque && x.leased && !x.watch.Aborted() && t.breaks < x.set.MaxResumes && time.Now().Before(x.totalBy) && x.ending() == resume.None
}

// ending is what keeps the answer from being gone on with.
func (x *exchange) ending() resume.Reason {
	t := x.tale
	if t == nil {
		return x.why
	}
	return t.story.Reason()
}

// gather reads a stream to its end, for a caller who gets it in one piece.
func (x *exchange) gather() {
	a := x.attempt
	if x.errand != nil {
		x.gatherBroke(x.errand)
		return
	}
	if t := x.tale; t.story.Overlong() { // sooner asked for anew than read to an end that may not come
		x.gatherWhole()
		return
	}
	if x.m.done && !a.Ended() { // all was said: the framing's end is missing, without which the connection serves no other
		_ = a.More(earlier(time.Now().Add(time.Second), x.totalBy), 0)
	}
	if a.Ended() && len(a.Unread()) == 0 || x.m.done {
		x.gathered(io.ErrUnexpectedEOF)
		return
	}
	by, slack := x.quietBy(time.Now())
	switch err := a.More(by, slack); {
	case err == nil:
		x.scanEvents(time.Now())
	case errors.Is(err, io.EOF):
		x.takeLast(time.Now())
		x.gathered(io.ErrUnexpectedEOF)
	case x.whole() && x.m.hasUsage:
		x.gathered(err)
	case errors.Is(err, forward.ErrInterrupted) && !x.reserve():
		a.CarryOn() // to the end, if it comes to one
	case errors.Is(err, os.ErrDeadlineExceeded) && x.patient(time.Now()):
	default:
		x.gatherBroke(err)
	}
}

// gathered takes the stream for ended, if all has come.
func (x *exchange) gathered(err error) {
	if x.errand != nil || !x.whole() {
		x.gatherBroke(err)
		return
	}
	x.gatherWhole()
}

// gatherWhole puts the answer together. An answer that is not understood, or too long, is asked for again, in one piece.
func (x *exchange) gatherWhole() {
	t := x.tale
	x.bodyEnd = true
	whole, why := t.story.Whole(t.blank())
	*t.body, x.why = whole, why
	if why == resume.None {
		x.phase, x.began = ready, time.Now()
		return
	}
	oe := &outcome.Error{Class: outcome.Success, Endpoint: x.endpointID(), Status: x.attempt.Status}
	if x.leased {
		x.endAttempt(*oe, time.Now())
	}
	t.askAnew(&x.ask)
	x.req.Path = t.path
	x.endTale()
	x.why, x.ask.Whole = why, true
	if !x.mayRetry() {
		oe.Class = outcome.UpstreamFault
		x.failAttempt(oe)
		return
	}
	x.last = oe
	x.again()
}

// gatherBroke goes on elsewhere with a stream that broke off, or begins anew: the caller has nothing of it yet.
func (x *exchange) gatherBroke(err error) {
	oe := x.lostAs(err)
	if x.goOn(oe) {
		return
	}
	done := x.spent()
	again := !(done && x.m.hasUsage) && !x.watch.Aborted() && x.mayRetry() // without usage it costs its tokens once more, and tells how many
	if done && !again {
		x.complete(oe)
		x.gatherWhole()
		return
	}
	x.began = time.Now()
	x.endAttempt(*oe, x.began)
	if !again {
		x.failAttempt(oe)
		return
	}
	x.beginTale()
	x.last = oe
	x.again()
}

// Words of the ledger for why no host goes on with an answer that broke off, where it is not the answer's own doing: see resume.Reason.
const (
	whyPolicy     = "policy"      // it is not wanted: Settings.OnPreemption, or the request's header
	whyMaxResumes = "max_resumes" // it was gone on with as often as it may
	whyNoRetry    = "no_retry"    // neither its own retries nor the fleet's allowed another attempt
	whyTotal      = "timeout"     // there was no time left for one: Settings.Total
	whyNoHost     = "no_host"     // nobody is there who can
)

// lostWhy says why no host goes on with an answer that broke off. asked says that one was to go on with it, and none was found or
// did.
func (x *exchange) lostWhy(asked bool) string {
	t := x.tale
	switch r := x.ending(); {
	case x.onLoss != Continue:
		return whyPolicy
	case x.pinned != "" || x.route.proto != protoChat:
		return resume.Route.String()
	case r != resume.None:
		return r.String()
	case x.why != resume.None:
		return x.why.String()
	case x.opaque:
		return resume.Unreadable.String()
	case !asked && (x.set.MaxResumes <= 0 || t != nil && t.breaks >= x.set.MaxResumes):
		return whyMaxResumes
	case !time.Now().Before(x.totalBy):
		return whyTotal
	case t != nil && t.poor:
		return whyNoRetry
	}
	return whyNoHost
}

// silence is how long the answer may be silent: a host that is gone sends no word of it. Only where another one can go on is it
// given up before timeouts.gap.
func (x *exchange) silence() time.Duration {
	t := x.tale
	if t == nil || x.opaque || x.m.outputs == 0 {
		return x.set.Gap
	}
	if t.judged == 0 || x.m.outputs >= 2*t.judged {
		t.judged = x.m.outputs
		itl := time.Duration(0)
		if x.leased && x.lease.Decision.TPS > 0 {
			itl = time.Duration(float64(time.Second) / x.lease.Decision.TPS)
		}
		if n := x.m.outputs - 1; n > 0 {
			itl = max(itl, x.m.lastAt.Sub(x.m.firstAt)/time.Duration(n))
		}
		t.stall = min(max(x.set.Stall, stallGaps*itl), x.set.Gap)
	}
	return t.stall
}

// quietBy is until when nothing need come, and how early that may be found out.
func (x *exchange) quietBy(now time.Time) (by time.Time, slack time.Duration) {
	gap := x.silence()
	from := now
	if t := x.tale; t != nil && !x.opaque && x.m.outputs > 0 { // comments keep a connection alive, and no answer
		if t.heard != x.m.outputs {
			t.heard, t.heardAt, t.asked = x.m.outputs, now, now
		}
		if from = t.asked; gap >= x.set.Gap {
			from = now
		}
	}
	return earlier(from.Add(gap), x.totalBy), gap / 8
}

// patient tells whether to go on waiting for a host that has stalled, because no other can go on with the answer.
func (x *exchange) patient(now time.Time) bool {
	t := x.tale
	if t == nil || x.opaque || x.m.outputs == 0 || x.watch.Aborted() || !now.Before(x.totalBy) || now.Sub(t.heardAt) >= x.set.Gap || x.reserve() {
		return false
	}
	t.asked = now
	return true
}

// stallGaps is how many usual gaps make a stall.
const stallGaps = 20

// reserve takes a place at another host before the running attempt is given up; false when there is none.
func (x *exchange) reserve() bool {
	t := x.tale
	if !x.mayGoOn() || t.story.Finished() {
		return false
	}
	if x.ahead != nil {
		return true
	}
	if !x.mayAsk(t.lost + x.lease.Tokens(x.m.outputs)) {
		return false
	}
	if t.breaks > 0 && !x.s.router.Budget.Spend() {
		return false
	}
	ask := x.ask
	x.want(&ask)
	if !x.takeAhead(&ask) {
		if t.breaks > 0 {
			x.s.router.Budget.Refund()
		}
		return false
	}
	return true
}

// mayAsk tells whether a request can be written that goes on with the answer, of which so many tokens are delivered.
func (x *exchange) mayAsk(delivered int64) bool {
	t := x.tale
	exact, no := x.mayBeExact()
	body, why := t.story.Ask(t.blank(), x.ctx.Request.Body(), nil, delivered, false)
	*t.body, x.why = body, why
	t.dropBody()
	switch t.want.Exact, t.want.ExactOnly = exact, why != resume.None; {
	case exact:
		x.why = resume.None
	case no == resume.Exhausted: // who has numbered them knows better
		x.why = no
	}
	return x.why == resume.None
}

// want makes q a question for a host that goes on with the answer.
func (x *exchange) want(q *router.Request) {
	t := x.tale
	t.want.From, t.want.Served, t.want.Root, t.want.Back = x.lease.Endpoint.ID, x.lease.Served, x.lease.Root(), false
	delivered := x.delivered()
	q.Continue, q.Resumed = &t.want, true
	q.PromptTokens = t.prompt + int(delivered)
	if t.most > 0 {
		q.MaxTokens = max(1, t.most-int(delivered))
	}
}

// goOn has another host go on with an answer that broke off as oe says. false means that none may, or can; nothing has changed then.
func (x *exchange) goOn(oe *outcome.Error) bool {
	t := x.tale
	if !x.mayGoOn() || t.story.Finished() {
		return false
	}
	delivered := x.delivered()
	if !x.mayAsk(delivered) {
		return false
	}
	if t.breaks > 0 && x.ahead == nil && !x.s.router.Budget.Spend() {
		t.poor = true
		return false
	}
	t.poor = false
	x.began = time.Now()
	x.endAttempt(*oe, x.began) // first: what it took is reckoned by what it was asked
	x.want(&x.ask)
	t.sent = x.rec.BytesOut
	t.holdBy = x.began.Add(x.set.Resume)
	t.before.add(&x.m)
	t.lost = delivered
	t.breaks++
	t.declined, t.paid = false, false
	x.rec.Offered++
	t.seam, t.mark, x.errand, t.judged, t.heard = true, !t.gather, nil, 0, 0
	x.last = oe
	x.again()
	return true
}

// delivered is about how many tokens the caller has. That an answer is at its limit is known only by what was seen of it: an estimate
// leaves a token to be asked for.
func (x *exchange) delivered() int64 {
	t := x.tale
	if n, ok := t.story.Counted(); ok {
		return n
	}
	n := t.lost + x.lease.Tokens(x.m.outputs)
	if limit := x.scan.MaxTokens; limit > 0 && t.before.outputs+x.m.outputs < limit {
		n = min(n, limit-1)
	}
	return n
}

// spent tells whether the answer had all its tokens when it broke off.
func (x *exchange) spent() bool {
	t := x.tale
	return t != nil && (t.story.Finished() || x.why == resume.Exhausted)
}

// complete ends an answer that lacked its end only, when its host was lost as oe says.
func (x *exchange) complete(oe *outcome.Error) {
	t := x.tale
	u := openai.NoUsage()
	u.Completion = x.delivered()
	t.out = t.story.End(t.out, x.scan.IncludeUsage, u)
	x.endAttempt(*oe, time.Now())
	x.m.done, x.bodyEnd = true, true
	x.rec.Class = outcome.Success // the caller lacks nothing
}

// startOver takes a place at a host that begins an answer anew of which the caller has nothing yet, where none can go on with it.
func (x *exchange) startOver() bool {
	t := x.tale
	if !t.gather || !t.paid && !x.mayRetry() {
		return false
	}
	t.paid = true
	going := x.ask
	t.askAnew(&x.ask)
	out, err := x.choose(&x.ask, &x.lease)
	if err != nil {
		x.unpay()
		x.ask = going
		return false
	}
	x.rec.OutOfArm = x.rec.OutOfArm || out
	x.beginTale()
	return true
}

// notGoneOn ends an attempt that was to go on with the answer and cannot, as oe says, through no fault of the caller's: another host may. said is
// the host's refusal, nil where it was not asked.
func (x *exchange) notGoneOn(oe outcome.Error, said []byte) {
	t := x.tale
	belied := !x.exact && x.leased && (bytes.Contains(said, []byte("continue_final_message")) || bytes.Contains(said, []byte("add_generation_prompt")))
	x.endAttempt(oe, time.Now())
	x.rec.Class = x.last.Class // how the answer was lost
	if belied {
		x.s.router.Belied(oe.Endpoint, x.lease.Served)
	}
	if x.asText() {
		return
	}
	t.want.Refused = append(t.want.Refused, oe.Endpoint)
	if !t.declined {
		t.declined, t.no = true, x.why
	}
	if x.mayRetry() {
		t.paid = true
		x.again()
		return
	}
	t.poor = true
	x.noneGoesOn()
}

// noneGoesOn gives the answer up, with which nobody was found to go on.
func (x *exchange) noneGoesOn() {
	t := x.tale
	x.unpay()
	if t.declined {
		x.why = t.no
	}
	x.failAttempt(x.last)
}

// unpay gives the retry back that was taken for a host that was not found.
func (x *exchange) unpay() {
	if t := x.tale; t.paid {
		t.paid = false
		x.s.router.Budget.Refund()
		x.retries--
	}
}

// composeOn builds the request that goes on with the answer at the leased endpoint.
func (x *exchange) composeOn() bool {
	t, p := x.tale, x.lease.Prefill()
	if x.composeExact() {
		return true
	}
	if x.exact = false; t.want.ExactOnly || !p.OK { // it was picked for the other way
		return false
	}
	body, why := t.story.Ask(t.blank(), x.ctx.Request.Body(), x.lease.ServedJSON, t.lost, p.Trims)
	if *t.body, x.why = body, why; why != resume.None {
		return false
	}
	x.req.Path = t.path
	x.goesOn(body)
	if x.numbered = x.wantsNumbers(&x.lease); x.numbered {
		x.req.Body, x.req.Size = openai.AskTokenIDs(x.req.Body, x.req.Size)
	}
	return true
}

// goesOn makes body the attempt's request, which goes on with the answer.
func (x *exchange) goesOn(body []byte) {
	x.tale.story.Seam()
	x.dropUsage = false // retold events leave it out
	x.parts[0] = body
	x.req.Body, x.req.Size = x.parts[:1], len(body)
}

// asked forgets the request that goes on with the answer, when the host has begun to do so: it would double what is kept of the text for
// as long as that takes.
func (x *exchange) asked() {
	x.tale.dropBody()
	x.parts, x.req.Body = [len(x.parts)][]byte{}, nil
}

// lostAs is how an attempt ended whose answer broke off with err.
func (x *exchange) lostAs(err error) *outcome.Error {
	class := outcome.Truncated
	switch {
	case errors.Is(err, forward.ErrInterrupted):
		class = outcome.Moved
	case errors.Is(err, os.ErrDeadlineExceeded):
		class = outcome.Stalled
	case x.errand != nil, x.attempt.Full(err):
		class = outcome.UpstreamFault
	}
	return &outcome.Error{Class: class, Endpoint: x.endpointID(), Status: x.attempt.Status, Err: err}
}

// add makes m what it and n measured together, one after the other.
func (m *meter) add(n *meter) {
	if m.outputs == 0 {
		m.firstAt = n.firstAt
	}
	if m.handedAt.IsZero() {
		m.handedAt = n.handedAt
	}
	if n.outputs > 0 {
		m.lastAt = n.lastAt
	}
	m.outputs += n.outputs
	m.gaps.merge(&n.gaps)
	m.finishes, m.finish, m.finishN = n.finishes, n.finish, n.finishN
	m.usage, m.hasUsage, m.done, m.failed = n.usage, n.hasUsage, n.done, n.failed
}

// all is what was measured of the whole answer, until there is more of it.
func (x *exchange) all() *meter {
	t := x.tale
	if t == nil || t.breaks == 0 {
		return &x.m
	}
	m := new(meter)
	*m = t.before
	m.add(&x.m)
	if m.hasUsage {
		m.usage = t.story.Usage(m.usage)
	}
	return m
}
