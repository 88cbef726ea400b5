package fakecloud

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// part says where in an answer a token belongs.
type part uint8

const (
	content   part = iota
	reasoning      // before the content
	toolHead       // id and name of a tool call
	toolArgs       // its arguments
	eos            // the end of the answer, which is no token here and has no text
)

type piece struct {
	part part
	text string
}

// output is all that one choice will say.
type output struct {
	pieces []piece // at least one
	finish string  // OpenAI's finish_reason
	stop   string  // the stop string that was met, "" for none
	call   string  // id of the tool call, "" for none
	begins bool    // the first piece is the first one of the answer
}

// tokens counts what the first n pieces cost.
func (o *output) tokens(n int) int {
	n = min(n, len(o.pieces))
	if n > 0 && o.pieces[n-1].part == eos {
		n--
	}
	return n
}

// text is what the choice says in a part.
func (o *output) text(p part) string {
	var b strings.Builder
	for _, one := range o.pieces {
		if one.part == p {
			b.WriteString(one.text)
		}
	}
	return b.String()
}

// wish is what a request asks of one choice.
type wish struct {
	model, prompt string
	limit         int // tokens, 0 for none
	stops         []string
	keepStop      bool   // the stop string belongs to the answer
	sent          string // an answer begun elsewhere that is to be continued
	thinks        bool
	json          []byte // say this instead, nil for the oracle's answer
	tool          string // call this function with json as arguments
	toolFinish    string // finish_reason of such a call
	call          string // its id
}

func (w wish) output() output {
	o := output{finish: "stop", call: w.call, begins: w.sent == ""}
	switch {
	case w.tool != "":
		o.finish = w.toolFinish
		o.pieces = append([]piece{{toolHead, w.tool}}, split(toolArgs, w.json)...)
	case w.json != nil:
		o.pieces = split(content, w.json)
	default:
		o.pieces = w.prose()
	}
	switch exact := w.limit > 0 && w.json == nil; { // the oracle never comes to an end by itself before the limit
	case exact, w.limit > 0 && len(o.pieces) > w.limit:
		o.pieces, o.finish = o.pieces[:w.limit], "length"
	default:
		o.pieces = append(o.pieces, piece{part: eos})
	}
	o.cut(w.stops, w.keepStop)
	return o
}

// prose is the oracle's answer, as long as the limit says.
func (w wish) prose() (ps []piece) {
	if w.thinks && w.sent == "" {
		o, n := reasoningOf(w.model, w.prompt)
		for i := range n {
			ps = append(ps, piece{reasoning, o.token(i)})
		}
	}
	o := newOracle(w.model, w.prompt)
	next, within, ok := o.locate(w.sent)
	if !ok { // no answer of this model: whatever comes next follows from both
		o = newOracle(w.model, w.prompt+"\n"+w.sent)
		next, within = 0, 0
	}
	n := max(0, o.natural()-next)
	if w.limit > 0 {
		n = max(0, w.limit-len(ps))
	}
	for i := range n {
		t := o.token(next + i)
		if i == 0 {
			t = t[within:]
		}
		ps = append(ps, piece{content, t})
	}
	return ps
}

// split cuts text into tokens of four bytes, more where a character would be cut.
func split(p part, text []byte) (ps []piece) {
	rest := []rune(string(text))
	for len(rest) > 0 {
		n := min(4, len(rest))
		ps = append(ps, piece{p, string(rest[:n])})
		rest = rest[n:]
	}
	return ps
}

// cut ends the content before the first stop string, or behind it when keep is set.
func (o *output) cut(stops []string, keep bool) {
	var said strings.Builder
	for i, p := range o.pieces {
		if p.part != content {
			continue
		}
		before := said.Len()
		said.WriteString(p.text)
		at, met := -1, ""
		for _, s := range stops {
			if k := strings.Index(said.String(), s); s != "" && k >= 0 && (at < 0 || k < at) {
				at, met = k, s
			}
		}
		if at < 0 {
			continue
		}
		if keep {
			at += len(met)
		}
		o.pieces = o.pieces[:i+1]
		// Tokens that the stop string reaches back into lose what belongs to it.
		for k := i; k >= 0 && o.pieces[k].part == content; k-- {
			if at >= before {
				o.pieces[k].text = o.pieces[k].text[:at-before]
				break
			}
			o.pieces[k].text = ""
			if k > 0 && o.pieces[k-1].part == content {
				before -= len(o.pieces[k-1].text)
			}
		}
		o.finish, o.stop = "stop", met
		return
	}
}

// job is a request for tokens, ready to be carried out.
type job struct {
	model        string
	prompt       string // for the prefix cache
	between      string // what a later prompt has between this one and its answer
	promptTokens int
	promptIDs    []int // the numbers of the prompt's tokens, where the request asks for such
	numbered     bool  // it does
	cached       int   // of them, set when the request is admitted
	outputs      []output
	stream       bool
	continued    bool
	badSeam      bool
}

func (j *job) steps() (n int) {
	for i := range j.outputs {
		n = max(n, len(j.outputs[i].pieces))
	}
	return n
}

// made is how many tokens all choices have after n steps.
func (j *job) made(n int) (tokens int) {
	for i := range j.outputs {
		tokens += j.outputs[i].tokens(n)
	}
	return tokens
}

// check refuses what does not fit into the model's context.
func (x *exchange) check(promptTokens, limit int) *problem {
	longest := x.h.cfg.MaxModelLen
	if promptTokens+max(limit, 1) <= longest {
		return nil
	}
	return invalid("input_tokens", "This model's maximum context length is %d tokens. However, you requested %d tokens (%d in the messages, %d in the completion). Please reduce the length of the messages or completion.",
		longest, promptTokens+limit, promptTokens, limit)
}

// emitter sends an event; name may be "".
type emitter func(name string, data []byte) error

// renderer turns tokens into the form of one API.
type renderer interface {
	begin(emit emitter) error // when the first token is there
	piece(emit emitter, choice, i int) error
	end(emit emitter) error
	whole() any // the answer to a request that asked for no stream
}

// generation is a job under way.
type generation struct {
	*exchange
	job      *job
	seq      *sequence
	admitted bool // to the batch
	left     bool // the books have its outcome
	done     int  // steps
}

// generate carries a job out and sends what comes of it.
func (x *exchange) generate(j *job, r renderer) {
	g := &generation{exchange: x, job: j}
	x.h.books.update(func(s *Stats) {
		s.Generations++
		s.Waiting++
		if j.continued {
			s.Continued++
		}
		if j.badSeam {
			s.BadSeams++
		}
	})
	var err error
	if j.stream && !x.plan.has(PlainJSON) {
		err = g.stream(r)
	} else {
		err = g.plain(r)
	}
	switch {
	case err == nil:
	case errors.Is(err, errStruck):
		g.leave(func(s *Stats) { s.Failed++ })
		x.strike()
	case x.life.dying.Load():
		g.leave(func(s *Stats) { s.Failed++ })
		panic(http.ErrAbortHandler)
	default:
		g.abort()
	}
}

func (g *generation) enter() (err error) {
	g.job.cached = g.h.engine.cached(g.job.prompt)
	g.seq, err = g.h.engine.enter(g.ctx, len(g.job.outputs), g.job.promptTokens, g.job.cached, func() {
		g.h.books.update(func(s *Stats) {
			s.Waiting--
			s.Running++
			s.PromptTokens += g.job.promptTokens
			s.CachedTokens += g.job.cached
		})
		g.admitted = true
	})
	if err == nil {
		g.h.books.first(time.Since(g.began))
	}
	return err
}

// leave frees the place in the batch and notes the outcome, once.
func (g *generation) leave(outcome func(*Stats)) {
	if g.left {
		return
	}
	g.left = true
	if g.seq != nil {
		g.seq.close()
	}
	g.h.books.update(func(s *Stats) {
		if g.admitted {
			s.Running--
		} else {
			s.Waiting--
		}
		outcome(s)
	})
}

func (g *generation) abort() {
	if g.left {
		return
	}
	if g.seq != nil {
		g.seq.close()
	}
	a := Abort{Path: g.r.URL.Path, Began: g.began, Freed: time.Now(), Tokens: g.job.made(g.done)}
	a.Seen = a.Freed // a write failed before anything else told
	if t := g.gone.Load(); t != nil && t.Before(a.Freed) {
		a.Seen = *t
	}
	g.leave(func(s *Stats) { s.abort(a) })
}

func (g *generation) complete() {
	g.h.engine.cached(g.job.prompt + g.job.between + g.job.outputs[0].text(content)) // engines hold what they said as well
	g.leave(func(s *Stats) { s.Completed++ })
	var reasons []string
	for i := range g.job.outputs {
		reasons = append(reasons, g.job.outputs[i].finish)
	}
	g.h.books.finish(reasons...)
}

// advance waits for the next step and books its tokens; at the last the place in the batch is free again.
func (g *generation) advance(completes bool) error {
	if g.done > 0 {
		if err := g.seq.step(g.ctx); err != nil {
			return err
		}
	}
	before := g.job.made(g.done)
	g.done++
	made := g.job.made(g.done) - before
	g.h.books.update(func(s *Stats) { s.OutputTokens += made })
	if completes && g.done == g.job.steps() {
		g.complete()
	}
	return nil
}

func (g *generation) stream(r renderer) error {
	if err := g.out.head(http.StatusOK, -1, g.fields("text/event-stream; charset=utf-8")); err != nil {
		return err
	}
	if err := g.enter(); err != nil {
		return err
	}
	if err := r.begin(g.shape.event); err != nil {
		return err
	}
	for steps := g.job.steps(); g.done < steps; {
		if f := g.plan.end; f.Kind == RoleOnly || f.Kind.duringStream() && f.After == g.done {
			return g.struck()
		}
		if err := g.advance(true); err != nil {
			return err
		}
		for c := range g.job.outputs {
			if g.done > len(g.job.outputs[c].pieces) {
				continue
			}
			if err := r.piece(g.shape.event, c, g.done-1); err != nil {
				return err
			}
		}
	}
	if err := r.end(g.shape.event); err != nil {
		return err
	}
	if err := g.shape.flush(); err != nil {
		return err
	}
	return g.out.end()
}

// struck stops at a fault. A stalled engine keeps the place in its batch until the client leaves.
func (g *generation) struck() error {
	if err := g.shape.flush(); err != nil {
		return err
	}
	if k := g.plan.end.Kind; k == Stall || k == RoleOnly {
		g.hang()
		if err := g.ctx.Err(); err != nil {
			return err
		}
	}
	return errStruck
}

func (g *generation) plain(r renderer) error {
	if err := g.enter(); err != nil {
		return err
	}
	f := g.plan.end
	fails := f.Kind.duringStream()
	for steps := g.job.steps(); g.done < steps; {
		if err := g.advance(!fails); err != nil {
			return err
		}
	}
	body := encode(r.whole())
	switch {
	case !fails:
		g.answer(http.StatusOK, "application/json", body)
		return nil
	case f.Kind == ErrorEvent:
		g.leave(func(s *Stats) { s.Failed++ })
		g.fail(http.StatusInternalServerError, "InternalServerError", "Internal server error", "")
		return nil
	}
	length := len(body)
	body = body[:length/2]
	switch f.Kind {
	case CutClean:
		length = len(body)
	case RoleOnly:
		body = nil
	default:
	}
	if err := g.out.head(http.StatusOK, int64(length), g.fields("application/json")); err != nil {
		return err
	}
	if err := g.shape.push(body); err != nil {
		return err
	}
	return g.struck()
}

// newID is an id in vLLM's manner, unlike that of any other request.
func (x *exchange) newID(prefix string) string {
	return fmt.Sprintf("%s%016x%016x", prefix, hash(x.h.at.Load().bound), x.plan.rng.Uint64())
}
