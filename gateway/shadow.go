package gateway

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"headrace/gateway/forward"
	"headrace/gateway/openai"
	"headrace/router"
	"headrace/router/cost"
	"headrace/router/experiment"
	"headrace/router/experiment/report"
	"headrace/router/outcome"
)

// Shadows: a share of the requests that an experiment's control serves are asked once more of another arm, when their own answer is over.
// Nobody gets that answer; it is measured, compared and thrown away. The copy shares nothing with the request, whose caller never waits for
// it: what has no room is not made.

const (
	shadowsAtOnce = 4
	shadowsKept   = 256       // that wait, for their own request's end or for a worker
	shadowBody    = 256 << 10 // bytes of a request that is copied
	shadowMemory  = 16 << 20  // bytes of all that wait
	shadowTime    = 2 * time.Minute
)

// shadow is a copy of a request, on its way.
type shadow struct {
	in      *experiment.Spec
	ask     router.Request
	body    []byte // the caller's
	head    []byte
	finish  string // of the control's answer, as are all below
	output  int64  // tokens, -1 when unknown
	text    string
	hasText bool
}

// shadows are all copies of a Server.
type shadows struct {
	jobs chan *shadow
	n    atomic.Int64 // of open

	mu     sync.Mutex // guards all below
	open   map[string]*shadow
	bytes  int
	counts map[string]*ShadowCounts
}

// ShadowCounts are what came of an experiment's copies at this gateway.
type ShadowCounts struct {
	report.Shadow
	tps, ttft int64 // of their means
}

func newShadows() *shadows {
	return &shadows{jobs: make(chan *shadow, shadowsKept), open: map[string]*shadow{}, counts: map[string]*ShadowCounts{}}
}

// count changes an experiment's counts.
func (s *shadows) count(in *experiment.Spec, change func(*ShadowCounts)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.counts[in.Name]
	if arm := in.Arms[in.Shadow.Arm].Name; c == nil || c.Arm != arm {
		c = &ShadowCounts{Shadow: report.Shadow{Experiment: in.Name, Arm: arm}}
		s.counts[in.Name] = c
	}
	change(c)
}

// Shadows tells what came of the copies, by experiment.
func (s *Server) Shadows() []ShadowCounts {
	s.shadows.mu.Lock()
	defer s.shadows.mu.Unlock()
	list := make([]ShadowCounts, 0, len(s.shadows.counts))
	for _, c := range s.shadows.counts {
		list = append(list, *c)
	}
	slices.SortFunc(list, func(a, b ShadowCounts) int { return cmp.Compare(a.Experiment, b.Experiment) })
	return list
}

// casts notes a copy of the request, if it is drawn for one. Only requests of one answer are, of which somebody can tell the length.
func (x *exchange) casts(a *experiment.Assigner, arm *experiment.Arm) {
	w := &a.Spec.Shadow
	if w.Arm == 0 || !a.Recorded || arm != a.Spec.Control() || x.route.path != chatRoute || x.scan.N > 1 || x.form != nil || len(x.ctx.Request.Body()) > shadowBody {
		return
	}
	if a.Draw("shadow", x.rec.ID) >= w.Share {
		return
	}
	body := bytes.Clone(x.ctx.Request.Body())
	j := &shadow{in: a.Spec, body: body, ask: x.ask, head: appendHeader(nil, &x.ctx.Request.Header, forwarded, x.rec.ID+"_shadow")}
	j.ask.ID, j.ask.Model, j.ask.MaxTokens, j.ask.Whole = x.rec.ID+"_shadow", a.Spec.Arms[w.Arm].Pool(), w.MaxTokens, false
	s := x.s.shadows
	s.mu.Lock()
	full := len(s.open) >= shadowsKept || s.bytes+len(body) > shadowMemory
	if !full {
		s.open[x.rec.ID] = j
		s.bytes += len(body)
		s.n.Add(1)
	}
	s.mu.Unlock()
	if full {
		s.count(a.Spec, func(c *ShadowCounts) { c.NoRoom++ })
	}
}

// shows hands the request's copy on, now that its own answer is over. The record is complete.
func (x *exchange) shows() {
	s := x.s.shadows
	if x.rec.Arm == "" || s.n.Load() == 0 {
		return
	}
	s.mu.Lock()
	j := s.open[x.rec.ID]
	if j != nil {
		delete(s.open, x.rec.ID)
		s.bytes -= len(j.body)
		s.n.Add(-1)
	}
	s.mu.Unlock()
	if j == nil || x.rec.Class != outcome.Success || x.rec.Status >= 400 {
		return
	}
	j.finish, j.output = x.rec.Finish, x.rec.Output
	if !x.rec.Stream {
		j.text, j.hasText = answerText(x.ctx.Response.Body())
	}
	select {
	case s.jobs <- j:
	default:
		s.count(j.in, func(c *ShadowCounts) { c.NoRoom++ })
	}
}

// answerText is what a whole chat answer says.
func answerText(body []byte) (string, bool) {
	var a struct {
		Choices []struct {
			Message struct {
				Content *string `json:"content"`
			} `json:"message"`
		} `json:"choices"`
	}
	if json.Unmarshal(body, &a) != nil || len(a.Choices) != 1 || a.Choices[0].Message.Content == nil {
		return "", false
	}
	return *a.Choices[0].Message.Content, true
}

// RunShadows makes the copies until ctx is done. Without it none are made.
func (s *Server) RunShadows(ctx context.Context) error {
	var g errgroup.Group
	for range shadowsAtOnce {
		g.Go(func() error {
			for {
				select {
				case <-ctx.Done():
					return ctx.Err()
				case j := <-s.shadows.jobs:
					s.cast(ctx, j)
				}
			}
		})
	}
	return g.Wait()
}

// cast makes one copy.
func (s *Server) cast(ctx context.Context, j *shadow) {
	defer func() {
		if r := recover(); r != nil {
			s.panicked(j.ask.ID, r)
		}
	}()
	now := time.Now()
	h := &hedge{s: s, id: j.ask.ID, main: &forward.Guard{}, ask: j.ask, at: now}
	h.ask.Now, h.ask.Came, h.ask.Tried = now, now, nil
	var err error
	if j.in.Shadow.Paid {
		h.ask.Firm = true
		err = s.router.Pick(&h.ask, &h.lease)
	} else {
		err = s.router.Copy(&h.ask, &h.lease)
	}
	if err != nil {
		s.shadows.count(j.in, func(c *ShadowCounts) { c.NoRoom++ })
		return
	}
	body, wants, err := j.compose(h.lease.Served, !h.lease.Endpoint.NoUsageInjection && !s.refusedUsage(h.lease.Endpoint.ID))
	h.host = s.forward.Host(h.lease.Endpoint.ID)
	if err != nil || h.host == nil || h.lease.Unnamed {
		h.lease.Done(router.Result{Class: outcome.ClientGone, Cached: -1})
		return
	}
	h.req = forward.Request{Method: "POST", Path: "/chat/completions", Header: j.head, Body: [][]byte{body}, Size: len(body)}
	set := s.set.Load()
	h.by = now.Add(min(set.FirstEvent, shadowTime))
	h.attempt = attempts.Get().(*forward.Attempt)
	stop := context.AfterFunc(ctx, h.guard.Abort)
	defer stop()
	answer, oe := h.whole(now.Add(shadowTime), set.Gap)
	ended := time.Now()
	w, _ := h.attempt.Report()
	h.attempt.Finish()
	attempts.Put(h.attempt)
	m := &answer.m
	u := cost.Used{Busy: ended.Sub(now), InFlight: h.lease.MeanInFlight(ended), Executed: w.Executed, Prompt: -1, Cached: -1, Output: -1, BytesIn: int64(len(body))}
	res := router.Result{Class: outcome.Success, At: ended, Cached: -1, Events: m.outputs, Streamed: m.lastAt.Sub(m.firstAt), Choices: 1}
	res.OutputTokens, res.Estimated = m.output()
	if m.hasUsage {
		u.Prompt, u.Cached, u.Output, res.Cached = m.usage.Prompt, m.usage.Cached, m.usage.Completion, m.usage.Cached
	}
	usd, known := cost.USD(&h.lease.Endpoint.Price, u)
	if known {
		res.USD = usd
	}
	if oe != nil {
		res.Class, res.RetryAfter = oe.Class, oe.RetryAfter
	} else if !m.firstAt.IsZero() {
		h.lease.FirstContent(m.firstAt.Sub(now))
	}
	h.lease.Done(res)
	s.shadows.count(j.in, func(c *ShadowCounts) {
		c.Copied++
		if known {
			c.USD += usd
		}
		if oe != nil {
			c.Failed++
			return
		}
		c.take(j, answer, wants, now)
	})
}

// shadowAnswer is what came of a copy.
type shadowAnswer struct {
	m    meter
	text strings.Builder
	odd  bool // it holds more than text
}

// whole reads the answer to its end.
func (h *hedge) whole(until time.Time, gap time.Duration) (*shadowAnswer, *outcome.Error) {
	s := &shadowAnswer{}
	if oe := h.begin(); oe != nil {
		return s, oe
	}
	a := h.attempt
	h.events.Reset()
	for {
		now := time.Now()
		for {
			ev, ok := h.events.Next(a.Unread())
			if !ok {
				break
			}
			if ev.HasData {
				h.chunk.Parse(ev.Name, ev.Data)
				s.m.see(&h.chunk, now)
				s.say(&h.chunk)
			}
			a.Consume(ev.Size)
		}
		switch {
		case s.m.failed:
			return s, h.fault(outcome.UpstreamFault, errEvent)
		case s.m.done:
			return s, nil
		}
		err := a.More(earlier(until, now.Add(gap)), 0)
		switch {
		case err == nil:
		case errors.Is(err, io.EOF) && s.m.finishes > 0:
			return s, nil
		case errors.Is(err, io.EOF):
			return s, h.fault(outcome.Truncated, io.ErrUnexpectedEOF)
		case errors.Is(err, forward.ErrInterrupted):
			return s, h.fault(outcome.Moved, err)
		default:
			return s, h.fault(outcome.Stalled, err)
		}
	}
}

// say adds what an event says to the text.
func (s *shadowAnswer) say(c *openai.Chunk) {
	if s.odd = s.odd || c.Other; len(c.Text) == 0 {
		return
	}
	var part string
	if json.Unmarshal(slices.Concat([]byte{'"'}, c.Text, []byte{'"'}), &part) != nil {
		s.odd = true
		return
	}
	s.text.WriteString(part)
}

// take compares an answer with the control's. Neither is kept.
func (c *ShadowCounts) take(j *shadow, s *shadowAnswer, wants wanted, began time.Time) {
	n, _ := s.m.output()
	c.Output += n
	mean := func(of *float64, n *int64, v float64) {
		*n++
		*of += (v - *of) / float64(*n)
	}
	if !s.m.firstAt.IsZero() {
		mean(&c.TTFT, &c.ttft, s.m.firstAt.Sub(began).Seconds())
	}
	if v := s.m.tps(); v > 0 && !math.IsInf(v, 0) {
		mean(&c.TPS, &c.tps, v)
	}
	finish := finishReason(s.m.finish[:s.m.finishN])
	capped := finish == "length" && n >= int64(j.in.Shadow.MaxTokens) // by us
	if finish != "" && j.finish != "" && !capped {
		c.Finished++
		if finish == j.finish {
			c.SameFinish++
		}
	}
	switch {
	case j.output < 0:
	case n > j.output:
		c.Longer++
	case n < j.output && !capped:
		c.Shorter++
	}
	text := s.text.String()
	if wants.cold && j.hasText && !s.odd {
		c.Compared++
		if text == j.text || capped && strings.HasPrefix(j.text, text) {
			c.SameText++
		}
	}
	if wants.json && finish == "stop" && !s.odd {
		c.JSON++
		if json.Valid([]byte(text)) {
			c.ValidJSON++
		}
	}
}

// wanted is what a request asked for, as far as its answers can be compared by it.
type wanted struct{ cold, json bool }

var errNoObject = errors.New("the request is no JSON object")

// compose is the copy's body: the caller's, for another model, streamed, and with a limit of its own.
func (j *shadow) compose(served string, usage bool) ([]byte, wanted, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(j.body, &members); err != nil || members == nil {
		return nil, wanted{}, errNoObject
	}
	most := j.in.Shadow.MaxTokens
	for _, name := range []string{"max_tokens", "max_completion_tokens"} {
		var n int
		if json.Unmarshal(members[name], &n) == nil && n > 0 {
			most = min(most, n)
		}
		delete(members, name)
	}
	var t float64
	w := wanted{json: len(members["response_format"]) > 0 && !bytes.Contains(members["response_format"], []byte(`"text"`))}
	w.cold = json.Unmarshal(members["temperature"], &t) == nil && members["temperature"] != nil && t == 0
	delete(members, "stream_options")
	add := map[string]any{"model": served, "stream": true, "max_tokens": most}
	if usage {
		add["stream_options"] = map[string]bool{"include_usage": true}
	}
	for name, v := range add {
		b, err := json.Marshal(v)
		if err != nil {
			return nil, w, err
		}
		members[name] = b
	}
	b, err := json.Marshal(members)
	return b, w, err
}
