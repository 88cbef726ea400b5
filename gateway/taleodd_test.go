package gateway

import (
	"strings"
	"testing"
	"time"

	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// newOdd is newTellers for hosts that are no tellers.
func newOdd(t *testing.T, p router.Prefill, hosts ...func(*upConn, *upRequest) bool) *rig {
	t.Helper()
	return newOddOf(t, 300*time.Millisecond, p, hosts...)
}

// newOddOf is newOdd with hosts that are silent for so long when they have stalled.
func newOddOf(t testing.TB, stall time.Duration, p router.Prefill, hosts ...func(*upConn, *upRequest) bool) *rig {
	t.Helper()
	var urls []string
	for _, serve := range hosts {
		urls = append(urls, newUpstream(t, serve).url())
	}
	g := newRig(t, urls, func(o *rigOptions) {
		o.set.MaxResumes, o.set.MaxContinuation, o.set.Stall, o.set.Stuck = 4, 1<<20, stall, 5*time.Second
		o.forward.UpstreamIdle = patience
		o.edit = func(eps []endpoint.Endpoint) {
			for i := range eps {
				eps[i].Tenure = endpoint.Interruptible
			}
		}
	})
	for i := range hosts {
		g.router.SetPrefill(g.host(i).ID, model, p)
	}
	return g
}

var goesOn = router.Prefill{Known: true, OK: true}

// goesOnWith answers a request that continues one with continued, and others as usual.
func goesOnWith(continued func(c *upConn)) func(*upConn, *upRequest) bool {
	return func(c *upConn, r *upRequest) bool {
		if !strings.Contains(string(r.body), "continue_final_message") {
			return answering(c, r)
		}
		continued(c)
		return true
	}
}

// TestSignsOfLife: an event that is no JSON in front of the first token says nothing, and costs nothing.
func TestSignsOfLife(t *testing.T) {
	const life = "data: ping\n\n"
	t.Run("of a host that is lost then", func(t *testing.T) {
		b := &teller{words: 5}
		g := newOdd(t, goesOn, func(c *upConn, _ *upRequest) bool {
			c.send(sseHead)
			c.sendChunk(life)
			c.reset()
			return false
		}, b.serve)
		res, body, err := g.do(ask(chatPath, streamed))
		if s := readTold(t, body); err != nil || res.StatusCode != 200 || s.text != words(5) || !s.done {
			t.Errorf("%v, status %d: %s", err, res.StatusCode, body)
		}
	})
	t.Run("of a host that goes on", func(t *testing.T) {
		a := &teller{words: 10, at: 4, times: 1, lose: (*upConn).reset}
		g := newOdd(t, goesOn, a.serve, goesOnWith(func(c *upConn) {
			c.send(sseHead)
			for _, e := range []string{life, tokenEvent("and so on"), stopEvent, useEvent, doneEvent} {
				c.sendChunk(e)
			}
			c.send(lastChunk)
		}))
		_, body, err := g.do(ask(chatPath, streamed))
		if s := readTold(t, body); err != nil || s.text != words(4)+"and so on" || !s.done || strings.Contains(body, "ping") {
			t.Errorf("%v: %s", err, body)
		}
	})
}

// TestPlainBeginsAnew: a plain answer that nobody can go on with is begun anew, as if it had not been read as a stream.
func TestPlainBeginsAnew(t *testing.T) {
	for name, tc := range map[string]struct {
		other   func(*upConn, *upRequest) bool
		prefill router.Prefill
	}{
		"nobody is known to go on": {answering, router.Prefill{Known: true}},
		"refused by status":        {goesOnWith(func(c *upConn) { c.send(jsonAnswer(400, `{"error":{"message":"too long"}}`)) }), goesOn},
		"refused by event": {goesOnWith(func(c *upConn) {
			c.sendStream("data: {\"error\":{\"message\":\"context too long\",\"type\":\"BadRequestError\",\"code\":400}}\n\n", doneEvent)
		}), goesOn},
		"refused in one piece": {goesOnWith(func(c *upConn) {
			c.send(jsonAnswer(200, `{"object":"error","message":"context too long","type":"BadRequestError","param":null,"code":400}`))
		}), goesOn},
	} {
		t.Run(name, func(t *testing.T) {
			a := &teller{words: 10, at: 4, times: 1, lose: (*upConn).reset}
			g := newOdd(t, goesOn, a.serve, tc.other)
			g.router.SetPrefill(g.host(1).ID, model, tc.prefill)
			res, body, err := g.do(ask(chatPath, `,"max_tokens":9`))
			if err != nil || res.StatusCode != 200 {
				t.Fatalf("%v, status %d: %s", err, res.StatusCode, body)
			}
			if text, finish := readWhole(t, body); text != "hello" || finish != "stop" {
				t.Errorf("text %q, finish %q", text, finish)
			}
			r := g.recordN(0)
			if r.Class != outcome.Success || r.Attempts[0].Class != outcome.Truncated {
				t.Errorf("class %s after %s", r.Class, r.Attempts[0].Class)
			}
			asked := g.router.Decisions(100, r.ID) // the newest first
			if anew, first := asked[0], asked[len(asked)-1]; len(asked) < 2 || anew.Prompt != first.Prompt || anew.Output != 9 || first.Output != 9 {
				t.Errorf("anew for %v and %v tokens, at first for %v and %v", anew.Prompt, anew.Output, first.Prompt, first.Output)
			}
		})
	}
}

// TestOverlongPlainAnswers are asked for again, in one piece, before they come to an end: they may never.
func TestOverlongPlainAnswers(t *testing.T) {
	left := make(chan struct{}, 1)
	g := newOdd(t, goesOn, func(c *upConn, r *upRequest) bool {
		if !strings.Contains(string(r.body), `"stream":true`) {
			return answering(c, r)
		}
		c.send(sseHead)
		c.sendChunk(roleEvent)
		for range 12 {
			c.sendChunk(tokenEvent(strings.Repeat("x", 100)))
		}
		c.gone()
		left <- struct{}{}
		return false
	}, answering)
	set := *g.srv.set.Load()
	set.MaxGathered = 1000
	g.srv.Configure(set)
	g.router.Drain("static:h1", true)
	res, body, err := g.do(ask(chatPath, ""))
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("%v, status %d: %s", err, res.StatusCode, body)
	}
	if text, finish := readWhole(t, body); text != "hello" || finish != "stop" {
		t.Errorf("text %q, finish %q", text, finish)
	}
	wait(t, left, "the endless answer to be cut")
	if r := g.recordN(0); r.Tries != 2 || r.Class != outcome.Success {
		t.Errorf("%d tries, class %s", r.Tries, r.Class)
	}
}

// TestLostAsItWas: a stream that the next host cannot be asked to go on with was lost by the first, and nobody left.
func TestLostAsItWas(t *testing.T) {
	lose := func(c *upConn, _ *upRequest) bool {
		c.send(sseHead)
		c.sendChunk(roleEvent)
		c.sendChunk(tokenEvent("# ")) // what is left of it, when trimmed, may begin a stop string
		c.reset()
		return false
	}
	g := newOdd(t, router.Prefill{Known: true, OK: true, Trims: true}, lose, answering)
	_, body, err := g.do(ask(chatPath, streamed+`,"stop":["###"]`))
	if s := readTold(t, body); err == nil || s.code != "upstream_lost" {
		t.Errorf("%v: %s", err, body)
	}
	if r := g.recordN(0); r.Class != outcome.Truncated || r.Lost != "stop" {
		t.Errorf("class %s, not gone on with for %q", r.Class, r.Lost)
	}
}

// TestUnendedEvents: events that lack the blank line behind them, or are cut off, never run into others.
func TestUnendedEvents(t *testing.T) {
	t.Run("the first one", func(t *testing.T) {
		g := newOdd(t, goesOn, func(c *upConn, _ *upRequest) bool {
			c.sendStream(roleEvent, strings.TrimRight(tokenEvent("w0 "), "\n"))
			return true
		}, answering)
		_, body, err := g.do(ask(chatPath, streamed))
		if s := readTold(t, body); err != nil || s.text != "w0 hello" || !s.done {
			t.Errorf("%v: %s", err, body)
		}
	})
	t.Run("behind the end of what was gone on with", func(t *testing.T) {
		a := &teller{words: 10, at: 4, times: 1, lose: (*upConn).reset}
		g := newOdd(t, goesOn, a.serve, goesOnWith(func(c *upConn) {
			c.sendStream(tokenEvent("x"), stopEvent, "data: {\"id\":\"other\",\"choices\":[],\"usa")
		}))
		_, body, err := g.do(ask(chatPath, streamed))
		if s := readTold(t, body); err != nil || s.text != words(4)+"x" || !s.done || strings.Contains(body, `"usadata`) {
			t.Errorf("%v: %s", err, body)
		}
	})
}

// TestGatheredConnectionsServeAgain though the framing's end comes late.
func TestGatheredConnectionsServeAgain(t *testing.T) {
	up := newUpstream(t, func(c *upConn, _ *upRequest) bool {
		c.send(sseHead)
		for _, e := range []string{roleEvent, tokenEvent("x"), stopEvent, useEvent, doneEvent} {
			c.sendChunk(e)
		}
		pause := time.NewTimer(20 * time.Millisecond)
		<-pause.C
		c.send(lastChunk)
		return true
	})
	g := newRig(t, []string{up.url(), refusing}, func(o *rigOptions) {
		o.set.MaxResumes, o.set.MaxContinuation, o.set.Stall = 4, 1<<20, 3*time.Second
		o.forward.UpstreamIdle = patience
		o.edit = func(eps []endpoint.Endpoint) { eps[0].Tenure = endpoint.Interruptible }
	})
	g.router.SetPrefill(g.host(0).ID, model, goesOn)
	for range 4 {
		if res, body, err := g.do(ask(chatPath, "")); err != nil || res.StatusCode != 200 {
			t.Fatalf("%v: %s", err, body)
		}
	}
	if conns, requests := up.counts(); conns != 1 || requests != 4 {
		t.Errorf("%d connections for %d requests", conns, requests)
	}
}

// TestSlowReaderIsNoStall: what comes while the caller reads nothing is no silence of the host's.
func TestSlowReaderIsNoStall(t *testing.T) {
	t.Parallel()
	const stall = 2 * time.Second
	awake(t, stall/8, func(t *try) { slowReaderIsNoStall(t, stall) })
}

func slowReaderIsNoStall(t testing.TB, stall time.Duration) {
	t.Helper()
	comment := ": " + strings.Repeat("x", 200<<10) + "\n\n"
	b := &teller{words: 3}
	g := newOddOf(t, stall, goesOn, func(c *upConn, _ *upRequest) bool {
		c.send(sseHead)
		c.sendChunk(roleEvent + tokenEvent("w0 "))
		for range 60 { // more than the caller's socket holds
			c.sendChunk(comment)
		}
		for _, e := range []string{tokenEvent("w1 "), stopEvent, useEvent, doneEvent} {
			c.sendChunk(e)
		}
		c.send(lastChunk)
		return true
	}, b.serve)
	c := g.dial().send(ask(chatPath, streamed))
	quiet := time.NewTimer(2 * stall)
	<-quiet.C
	_, _, err := c.whole()
	if r := g.recordN(0); err != nil || r.Tries != 1 || r.Class != outcome.Success || len(b.requests()) != 0 {
		t.Errorf("%v: %d tries, %s", err, r.Tries, r.Class)
	}
}

// TestAbortedAtOnce: a host that gives an answer up in the very event with its first words has given none.
func TestAbortedAtOnce(t *testing.T) {
	const n = 10
	abort := func(c *upConn) {
		c.sendStream(roleEvent, "data: {\"id\":\"x\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"words of no answer\"},\"finish_reason\":\"abort\"}]}\n\n", doneEvent)
	}
	for name, members := range map[string]string{"stream": streamed, "plain": ""} {
		read := func(t *testing.T, body string) (text, finish string) {
			t.Helper()
			if members == "" {
				return readWhole(t, body)
			}
			s := readTold(t, body)
			return s.text, s.finish
		}
		t.Run(name, func(t *testing.T) {
			b := &teller{words: n}
			g := newOdd(t, goesOn, func(c *upConn, _ *upRequest) bool { abort(c); return true }, b.serve)
			res, body, err := g.do(ask(chatPath, members))
			if text, finish := read(t, body); err != nil || res.StatusCode != 200 || text != words(n) || finish != "stop" {
				t.Errorf("%v, status %d: %s", err, res.StatusCode, body)
			}
		})
		t.Run(name+" that is gone on with", func(t *testing.T) {
			a, c := &teller{words: n, at: 4, times: 1, lose: (*upConn).reset}, &teller{words: n}
			g := newOdd(t, goesOn, a.serve, goesOnWith(abort), c.serve)
			_, body, err := g.do(ask(chatPath, members))
			if text, finish := read(t, body); err != nil || text != words(n) || finish != "stop" {
				t.Errorf("%v: %s", err, body)
			}
		})
	}
}

// TestLastWordsBeforeTheError: what the host has said reaches the caller, though nobody goes on with it.
func TestLastWordsBeforeTheError(t *testing.T) {
	g := newOdd(t, goesOn, func(c *upConn, _ *upRequest) bool {
		c.sendStream(roleEvent, tokenEvent("w0 "), strings.TrimRight(tokenEvent("w1 "), "\n"))
		return true
	}, goesOnWith(func(c *upConn) { c.send(jsonAnswer(400, `{"error":{"message":"too long"}}`)) }))
	_, body, err := g.do(ask(chatPath, streamed))
	if s := readTold(t, body); err == nil || s.text != "w0 w1 " || s.code != "upstream_lost" || s.done {
		t.Errorf("%v: %s", err, body)
	}
}

// TestWhatABrokenAttemptTook: it is reckoned by what it was asked and what came from it, not by what the next one is asked.
func TestWhatABrokenAttemptTook(t *testing.T) {
	const prompt = 4000 // bytes
	a, b := &teller{words: 40, at: 30, times: 1, lose: (*upConn).reset}, &teller{words: 40}
	g := newTellers(t, []*teller{a, b}, func(o *rigOptions) {
		edit := o.edit
		o.edit = func(eps []endpoint.Endpoint) {
			edit(eps)
			for i := range eps {
				eps[i].Price = endpoint.Price{Basis: endpoint.PerHour, USDPerHour: 1, USDPerGBOut: 1e6}
			}
		}
	})
	_, body, err := g.do(post(chatPath, `{"model":"`+model+`","messages":[{"role":"user","content":"`+strings.Repeat("word ", prompt/5)+`"}]`+streamed+`}`))
	if s := readTold(t, body); err != nil || s.text != words(40) {
		t.Fatalf("%v: %s", err, body)
	}
	r := g.recordN(0)
	if got := r.Attempts[0].Prompt; got < prompt/bytesPerToken || got > prompt/bytesPerToken+10 {
		t.Errorf("%d tokens of prompt, of %d bytes", got, prompt)
	}
	first, second := r.Attempts[0].TrafficUSD, r.Attempts[1].TrafficUSD
	if all := float64(len(body)) / 1e3; first < all/2 || second <= 0 || first+second > all*1.001 {
		t.Errorf("traffic of $%g and $%g, all of it $%g", first, second, all)
	}
}
