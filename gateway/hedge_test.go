package gateway

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"headrace/gateway/ledger"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// sleeper is a host that takes requests and says no more than what its test wants of it.
type sleeper struct {
	asked chan *upConn    // a request has come
	gone  chan time.Time  // its connection was closed, with the time
	then  func(c *upConn) // what it says first, nil for nothing
}

func newSleeper(then func(c *upConn)) *sleeper {
	return &sleeper{asked: make(chan *upConn, 8), gone: make(chan time.Time, 8), then: then}
}

func (s *sleeper) serve(c *upConn, _ *upRequest) bool {
	if s.then != nil {
		s.then(c)
	}
	s.asked <- c
	s.gone <- c.gone()
	return false
}

// beginning is what a host sends of a stream before its first content.
func beginning(c *upConn) {
	c.send(sseHead)
	c.sendChunk(": hello\n\n")
	c.sendChunk(roleEvent)
}

// hedgeSLO is the promised time to the first token: the second host is asked in the latter half of it, a window that no busy machine sleeps
// through.
const hedgeSLO = 1600 * time.Millisecond

// hedging is a test in which a second host is to be asked, for which there is a window of half of hedgeSLO.
func hedging(body func(t *try)) func(t *testing.T) {
	return func(t *testing.T) {
		t.Parallel()
		awake(t, hedgeSLO/8, body)
	}
}

// hears waits for what a host is to hear of, and no longer than a test waits for anything: it would never end.
func hears[T any](c <-chan T) {
	select {
	case <-c:
	case <-time.After(patience):
	}
}

type serving func(c *upConn, r *upRequest) bool

// newHedger starts a gateway in front of hosts paid by the hour that are known to begin answers at once, the first the cheapest.
func newHedger(t testing.TB, hosts []serving, change ...func(*rigOptions)) *rig {
	t.Helper()
	urls := make([]string, 0, len(hosts))
	for _, h := range hosts {
		urls = append(urls, newUpstream(t, h).url())
	}
	g := newRig(t, urls, append([]func(*rigOptions){func(o *rigOptions) {
		o.set.Hedge = true
		o.set.MaxResumes, o.set.MaxContinuation, o.set.Stall, o.set.Stuck = 4, 1<<20, 5*time.Second, 8*time.Second
		o.rules = []router.ModelRule{{Name: model, Serves: []string{model}, SLO: router.SLO{TTFT: hedgeSLO}}}
		o.edit = func(eps []endpoint.Endpoint) {
			for i := range eps {
				eps[i].Tenure = endpoint.Interruptible
				eps[i].Price.USDPerHour = 1 + float64(i)
			}
		}
	}}, change...)...)
	for i := range hosts {
		id := endpoint.ID(fmt.Sprintf("static:h%d", i))
		g.router.SetPrefill(id, model, router.Prefill{Known: true, OK: true, Told: true})
		g.teach(id, len(hosts))
	}
	return g
}

// teach has a host begin many answers after 5 ms.
func (g *rig) teach(id endpoint.ID, hosts int) {
	g.t.Helper()
	var tried []endpoint.ID
	for i := range hosts {
		if other := endpoint.ID(fmt.Sprintf("static:h%d", i)); other != id {
			tried = append(tried, other)
		}
	}
	for range 400 {
		var l router.Lease
		if err := g.router.Pick(&router.Request{Model: model, Tried: tried, PromptTokens: 1, SLO: router.SLO{TTFT: time.Hour}}, &l); err != nil {
			g.t.Fatal(err)
		}
		if l.Endpoint.ID != id {
			l.Done(router.Result{Class: outcome.ClientGone, Cached: -1})
			continue
		}
		l.FirstContent(5 * time.Millisecond)
		l.Done(router.Result{Class: outcome.Success, Cached: -1})
	}
}

// hedged checks what the record says of a request that ran at two hosts.
func (g *rig) hedged(n int, word string, classes ...outcome.Class) ledger.Record {
	g.t.Helper()
	r := g.recordN(n)
	if r.Hedge != word || r.Tries != len(classes) || r.USD < r.HedgeUSD || (word == wordFailed || r.HedgeUSD > 0) != (word != "") {
		g.t.Errorf("hedge %q, %d attempts, $%g of which $%g wasted; want %q and %d attempts", r.Hedge, r.Tries, r.USD, r.HedgeUSD, word, len(classes))
	}
	hedges := 0
	for i, c := range classes {
		if r.Attempts[i].Class != c {
			g.t.Errorf("attempt %d at %s: %s, want %s", i, r.Attempts[i].Endpoint, r.Attempts[i].Class, c)
		}
		if r.Attempts[i].Hedge {
			hedges++
		}
	}
	if (hedges == 1) != (word != "") {
		g.t.Errorf("%d attempts are said to be hedges", hedges)
	}
	for _, h := range g.router.Hosts() {
		if h.InFlight != 0 {
			g.t.Errorf("%s: %d in flight", h.ID, h.InFlight)
		}
	}
	return r
}

// TestHedgeWins: the first host is late, so another one is asked as well and answers. The caller sees one clean answer, and the first
// host is left at once.
func TestHedgeWins(t *testing.T) {
	t.Parallel()
	const n = 20
	for state, then := range map[string]func(*upConn){"silent": nil, "begun": beginning, "inside an event": func(c *upConn) {
		beginning(c)
		c.sendChunk(tokenEvent("never")[:20])
	}} {
		for _, overTLS := range []bool{false, true} {
			for _, stream := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/tls=%t/stream=%t", state, overTLS, stream), hedging(func(t *try) {
					var worst time.Duration
					inTime(t, &worst, func() time.Duration { // with a gateway of its own: a host that was late is known for it
						a := newSleeper(then)
						var said atomic.Int64
						b := &teller{words: n, delay: func(i int) {
							if i == 0 {
								said.Store(time.Now().UnixNano())
							}
						}}
						g := newHedger(t, []serving{a.serve, b.serve})
						members, dial := "", g.dial
						if stream {
							members = streamed
						}
						if overTLS {
							dial = g.dialTLS
						}
						c := dial()
						defer func() { _ = c.tcp.Close() }()
						res, body, err := c.send(ask(chatPath, members)).whole()
						if err != nil || res.StatusCode != 200 || res.Header.Get("X-Headrace-Endpoint") != "static:h1" || res.Header.Get("X-Headrace-Attempts") != "2" {
							t.Fatalf("%v, status %d, %v: %s", err, res.StatusCode, res.Header, body)
						}
						var text string
						if stream {
							s := readTold(t, body)
							if text = s.text; len(s.ids) != 1 || s.roles["assistant"] != 1 || !s.done || len(s.comments) != 0 || !strings.Contains(s.usage, `"completion_tokens":20`) {
								t.Errorf("told %+v", s)
							}
						} else {
							text, _ = readWhole(t, body)
						}
						if text != words(n) {
							t.Errorf("text %q", text)
						}
						r := g.hedged(0, wordWon, outcome.Outrun, outcome.Success)
						if r.Class != outcome.Success || r.Endpoint != "static:h1" || r.Output != n || stream && (r.TTFT < hedgeSLO/2 || r.UpstreamTTFT > r.TTFT-hedgeSLO/2) {
							t.Errorf("record %+v", r)
						}
						if h := g.host(0); h.Breaker != "closed" {
							t.Errorf("breaker %s of a host that was only slow", h.Breaker)
						}
						return wait(t, a.gone, "the first host to be left").Sub(time.Unix(0, said.Load()))
					})
				}))
			}
		}
	}
}

// TestHedgeLoses: the first host answers after all, and the second one is cut.
func TestHedgeLoses(t *testing.T) {
	t.Parallel()
	const n = 20
	for name, then := range map[string]func(*upConn){"silent": nil, "begun": beginning} {
		for _, members := range []string{streamed, ""} {
			t.Run(name+members, hedging(func(t *try) {
				var worst time.Duration
				inTime(t, &worst, func() time.Duration {
					b := newSleeper(then)
					var said atomic.Int64
					a := &teller{words: n, delay: func(i int) {
						if i == 0 {
							hears(b.asked)
							said.Store(time.Now().UnixNano())
						}
					}}
					g := newHedger(t, []serving{a.serve, b.serve})
					res, body, err := g.do(ask(chatPath, members))
					if err != nil || res.StatusCode != 200 || res.Header.Get("X-Headrace-Endpoint") != "static:h0" {
						t.Fatalf("%v, status %d, %v: %s", err, res.StatusCode, res.Header, body)
					}
					var text string
					if members != "" {
						text = readTold(t, body).text
					} else {
						text, _ = readWhole(t, body)
					}
					if text != words(n) {
						t.Errorf("text %q", text)
					}
					g.hedged(0, wordLost, outcome.Outrun, outcome.Success)
					return wait(t, b.gone, "the second host to be left").Sub(time.Unix(0, said.Load()))
				})
			}))
		}
	}
}

// failing is a host that does as it is told when it was asked and go is closed.
func failing(asked chan<- struct{}, goOn <-chan struct{}, fail func(c *upConn)) serving {
	return func(c *upConn, _ *upRequest) bool {
		asked <- struct{}{}
		hears(goOn)
		fail(c)
		return false
	}
}

// TestHedgeFailures lets one of the two fail, or both, one way or the other.
func TestHedgeFailures(t *testing.T) {
	t.Parallel()
	const n = 20
	fails := map[string]struct {
		do    func(c *upConn)
		class outcome.Class
	}{
		"reset":       {(*upConn).reset, outcome.Severed},
		"500":         {func(c *upConn) { c.send(jsonAnswer(500, `{"error":{"message":"SECRET-UPSTREAM-TEXT"}}`)) }, outcome.UpstreamFault},
		"429":         {func(c *upConn) { c.send(jsonAnswer(429, `{"error":{"message":"slow down"}}`, "Retry-After: 1")) }, outcome.Throttled},
		"error event": {func(c *upConn) { c.sendStream(`data: {"error":{"message":"no","code":503}}` + "\n\n") }, outcome.UpstreamFault},
		"HTML":        {func(c *upConn) { c.send("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi") }, outcome.UpstreamFault},
		"no events":   {func(c *upConn) { c.sendStream(": nothing\n\n") }, outcome.UpstreamFault},
		"aborted":     {func(c *upConn) { c.sendStream(strings.Replace(stopEvent, "stop", "abort", 1), doneEvent) }, outcome.UpstreamFault},
		"aborted amid its first words": {func(c *upConn) {
			c.sendStream(strings.Replace(tokenEvent("words of no answer"), `"finish_reason":null`, `"finish_reason":"abort"`, 1), doneEvent)
		}, outcome.UpstreamFault},
		"bare error":   {func(c *upConn) { c.sendStream(`{"error":{"message":"no","code":503}}`) }, outcome.UpstreamFault},
		"broken chunk": {func(c *upConn) { beginning(c); c.send("zz\r\n") }, outcome.UpstreamFault},
	}
	for name, f := range fails {
		t.Run("the second: "+name, hedging(func(t *try) {
			asked, goOn := make(chan struct{}, 1), make(chan struct{})
			close(goOn)
			var g *rig
			a := &teller{words: n, delay: func(i int) {
				if i == 0 {
					hears(asked)
					eventually(t, "the second host's failure is known", func() bool { return g.srv.hedges.Load() == 0 })
				}
			}}
			g = newHedger(t, []serving{a.serve, failing(asked, goOn, f.do)})
			_, body, err := g.do(ask(chatPath, streamed))
			if s := readTold(t, body); err != nil || s.text != words(n) || !s.done || strings.Contains(body, "SECRET") {
				t.Errorf("%v: %s", err, body)
			}
			g.hedged(0, wordFailed, f.class, outcome.Success)
		}))
		t.Run("the first: "+name, hedging(func(t *try) {
			asked, goOn := make(chan struct{}, 1), make(chan struct{})
			var g *rig
			b := &teller{words: n, delay: func(i int) {
				if i == 0 {
					close(goOn)
					eventually(t, "the first host's failure is known", func() bool { return g.host(0).InFlight == 0 })
				}
			}}
			g = newHedger(t, []serving{failing(asked, goOn, f.do), b.serve}, func(o *rigOptions) { o.set.MaxRetries = 0 })
			_, body, err := g.do(ask(chatPath, streamed))
			if s := readTold(t, body); err != nil || s.text != words(n) || !s.done || strings.Contains(body, "SECRET") {
				t.Errorf("%v: %s", err, body)
			}
			r := g.recordN(0)
			if r.Hedge != wordWon || r.Tries != 2 || r.Attempts[0].Class != f.class || r.HedgeUSD != 0 || r.Class != outcome.Success {
				t.Errorf("record %+v", r)
			}
		}))
	}
	for name, third := range map[string]bool{"both, and a third answers": true, "both, and there is no other": false} {
		t.Run(name, hedging(func(t *try) {
			firstAsked, secondAsked, goOn := make(chan struct{}, 4), make(chan struct{}, 4), make(chan struct{})
			hosts := []serving{failing(firstAsked, goOn, (*upConn).reset), failing(secondAsked, goOn, (*upConn).reset)}
			if third {
				hosts = append(hosts, (&teller{words: n}).serve)
			}
			g := newHedger(t, hosts, func(o *rigOptions) { o.set.MaxRetries = 1 })
			if third {
				var l router.Lease // so that it is not idle
				if err := g.router.Pick(&router.Request{Model: model, Tried: []endpoint.ID{"static:h0", "static:h1"}}, &l); err != nil {
					t.Fatal(err)
				}
				defer l.Done(router.Result{Class: outcome.ClientGone, Cached: -1})
			}
			go func() {
				<-firstAsked
				<-secondAsked
				close(goOn)
			}()
			res, body, err := g.do(ask(chatPath, streamed))
			r := g.recordN(0)
			if third {
				if s := readTold(t, body); err != nil || s.text != words(n) || !s.done {
					t.Errorf("%v: %s", err, body)
				}
				if r.Tries != 3 || r.Endpoint != "static:h2" || r.Hedge != wordFailed {
					t.Errorf("record %+v", r)
				}
				return
			}
			if err != nil || res.StatusCode < 500 || r.Hedge != wordFailed {
				t.Errorf("%v, status %d: %s; record %+v", err, res.StatusCode, body, r)
			}
		}))
	}
}

// TestHedgeCalledAway lets one of the two hosts leave the fleet while both work: the other one answers.
func TestHedgeCalledAway(t *testing.T) {
	t.Parallel()
	const n = 5
	for i, classes := range [][]outcome.Class{{outcome.Moved, outcome.Success}, {outcome.Moved, outcome.Success}} {
		t.Run(fmt.Sprintf("h%d", i), hedging(func(t *try) {
			leaving, asked, goOn := newSleeper(beginning), make(chan struct{}, 1), make(chan struct{})
			staying := &teller{words: n, delay: func(k int) {
				if k == 0 {
					asked <- struct{}{}
					hears(goOn)
				}
			}}
			hosts := []serving{leaving.serve, staying.serve}
			if i == 1 {
				hosts[0], hosts[1] = hosts[1], hosts[0]
			}
			g := newHedger(t, hosts)
			c := g.dial().send(ask(chatPath, streamed))
			wait(t, leaving.asked, "the host that leaves to be asked")
			wait(t, asked, "the other one to be asked")
			if k := g.fwd.Interrupt(endpoint.ID(fmt.Sprintf("static:h%d", i))); k != 1 {
				t.Errorf("%d attempts were called away", k)
			}
			wait(t, leaving.gone, "the host to be left")
			close(goOn)
			if _, body, err := c.whole(); err != nil || readTold(t, body).text != words(n) {
				t.Errorf("%v: %s", err, body)
			}
			r := g.recordN(0)
			for k, class := range classes {
				if r.Attempts[k].Class != class || r.Attempts[k].Hedge != (k != i) {
					t.Errorf("attempt %d: %+v", k, r.Attempts[k])
				}
			}
			if want := []string{wordWon, wordFailed}[i]; r.Hedge != want || r.Tries != 2 {
				t.Errorf("hedge %q after %d attempts, want %q", r.Hedge, r.Tries, want)
			}
		}))
	}
}

// TestHedgeTraces gives each of the two hosts a span of its own, and tells only those of the trace that may know of it.
func TestHedgeTraces(t *testing.T) {
	t.Parallel()
	for _, told := range []string{"static:h0", "static:h1", "static:h"} {
		t.Run(told, hedging(func(t *try) {
			parents := make(chan [2]string, 8)
			hear := func(who string, then serving) serving {
				return func(c *upConn, r *upRequest) bool {
					parents <- [2]string{who, r.Header.Get("Traceparent")}
					return then(c, r)
				}
			}
			a, b := newSleeper(nil), &teller{words: 3}
			g := newHedger(t, []serving{hear("static:h0", a.serve), hear("static:h1", b.serve)}, func(o *rigOptions) {
				o.set.Tracing.On = true
				o.set.Propagate = func(ep *endpoint.Endpoint) bool { return strings.HasPrefix(string(ep.ID), told) }
			})
			if _, body, err := g.do(ask(chatPath, streamed)); err != nil || readTold(t, body).text != words(3) {
				t.Errorf("%v: %s", err, body)
			}
			r := g.hedged(0, wordWon, outcome.Outrun, outcome.Success)
			if r.Attempts[0].Span == r.Attempts[1].Span || r.Attempts[1].After < hedgeSLO/2 || r.Attempts[1].Provider != "static" {
				t.Errorf("attempts %+v", r.Attempts[:2])
			}
			for i := range 2 {
				p := wait(t, parents, "a request")
				if (p[1] != "") != strings.HasPrefix(p[0], told) || p[1] != "" && !strings.Contains(p[1], fmt.Sprintf("-%x-", r.Attempts[i].Span)) {
					t.Errorf("%s was told %q", p[0], p[1])
				}
			}
			wait(t, a.gone, "the first host to be left")
		}))
	}
}

// TestHedgeRefusal hands a refusal of the first host on, whatever the second would say.
func TestHedgeRefusal(t *testing.T) {
	hedging(func(t *try) {
		b := newSleeper(nil)
		g := newHedger(t, []serving{func(c *upConn, _ *upRequest) bool {
			hears(b.asked)
			c.send(jsonAnswer(400, `{"error":{"message":"too long","type":"invalid_request_error"}}`))
			return true
		}, b.serve})
		res, body, err := g.do(ask(chatPath, streamed))
		if err != nil || res.StatusCode != 400 || !strings.Contains(body, "too long") {
			t.Errorf("%v, status %d: %s", err, res.StatusCode, body)
		}
		g.hedged(0, wordLost, outcome.Outrun, outcome.CallerFault)
		wait(t, b.gone, "the second host to be left")
	})(t)
}

// TestHedgeClientGone lets the caller leave while both hosts work.
func TestHedgeClientGone(t *testing.T) {
	t.Parallel()
	for _, members := range []string{streamed, ""} {
		for _, how := range leaves {
			t.Run(how.name+members, hedging(func(t *try) {
				var worst time.Duration
				inTime(t, &worst, func() time.Duration {
					a, b := newSleeper(nil), newSleeper(beginning)
					g := newHedger(t, []serving{a.serve, b.serve})
					c := g.dial().send(ask(chatPath, members))
					defer func() { _ = c.tcp.Close() }()
					wait(t, a.asked, "the first host to be asked")
					wait(t, b.asked, "the second host to be asked")
					from := time.Now()
					how.do(t, c)
					took := max(wait(t, a.gone, "the first host to be left").Sub(from), wait(t, b.gone, "the second host to be left").Sub(from))
					if r := g.recordN(0); r.Class != outcome.ClientGone || r.Status != 499 || r.Tries != 2 || r.Hedge == wordWon || r.Hedge == "" {
						t.Errorf("record %+v", r)
					}
					eventually(t, "the hedge has ended", func() bool { return g.srv.hedges.Load() == 0 })
					for _, h := range g.router.Hosts() {
						if h.InFlight != 0 || h.Breaker != "closed" {
							t.Errorf("%s: %d in flight, breaker %s", h.ID, h.InFlight, h.Breaker)
						}
					}
					return took
				})
			}))
		}
	}
}

// TestHedgeBudgets asks no second host when the budget of hedges is spent, nor when that of retries is.
func TestHedgeBudgets(t *testing.T) {
	t.Parallel()
	for name, spend := range map[string]func(r *router.Router) *router.Budget{
		"of hedges":  func(r *router.Router) *router.Budget { return r.Hedges },
		"of retries": func(r *router.Router) *router.Budget { return r.Budget },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := &teller{words: 3}
			quiet := time.NewTimer(0)
			<-quiet.C
			a := &teller{words: 3, delay: func(i int) {
				if i == 0 {
					quiet.Reset(hedgeSLO * 3 / 2)
					<-quiet.C
				}
			}}
			g := newHedger(t, []serving{a.serve, b.serve}, func(o *rigOptions) { o.retry = router.BudgetOptions{PerRequest: 0.001} })
			for spend(g.router).Spend() {
			}
			if _, body, err := g.do(ask(chatPath, streamed)); err != nil || readTold(t, body).text != words(3) {
				t.Errorf("%v: %s", err, body)
			}
			g.hedged(0, "", outcome.Success)
			if len(b.requests()) != 0 {
				t.Error("a second host was asked")
			}
		})
	}
	t.Run("one each", hedging(func(t *try) {
		const hedges = 4 // saved up
		a, b := newSleeper(nil), &teller{words: 3}
		g := newHedger(t, []serving{a.serve, b.serve}, func(o *rigOptions) { o.hedge.Cap = hedges })
		for i := range hedges + 2 {
			c := g.dial().send(ask(chatPath, streamed))
			conn, text := wait(t, a.asked, "the first host to be asked"), words(3)
			if i >= hedges {
				quiet := time.NewTimer(hedgeSLO * 5 / 4)
				<-quiet.C
				conn.sendStream(roleEvent, tokenEvent("late"), stopEvent, doneEvent)
				_ = conn.Close()
				text = "late"
			}
			if _, body, err := c.whole(); err != nil || readTold(t, body).text != text {
				t.Errorf("%v: %s", err, body)
			}
			wait(t, a.gone, "the first host to be left")
			if r := g.recordN(i); (r.Hedge == wordWon) != (i < hedges) {
				t.Errorf("request %d: hedge %q", i, r.Hedge)
			}
			_ = c.Close()
			g.teach("static:h0", 2) // it has shown to be slow
		}
		if n := len(b.requests()); n != hedges {
			t.Errorf("%d hedges", n)
		}
	}))
}

// TestHedgeNot asks no second host for what is not to be hedged.
func TestHedgeNot(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		request string
		change  func(*rigOptions)
		busy    bool // the second host
	}{
		"off":                {request: ask(chatPath, streamed), change: func(o *rigOptions) { o.set.Hedge = false }},
		"the second is busy": {request: ask(chatPath, streamed), busy: true},
		"a plain answer":     {request: ask(chatPath, ""), change: func(o *rigOptions) { o.set.MaxResumes = 0 }},
		"no tokens":          {request: post("/v1/embeddings", `{"model":"m1","input":"x"}`)},
		"the second is metered": {request: ask(chatPath, streamed), change: func(o *rigOptions) {
			edit := o.edit
			o.edit = func(eps []endpoint.Endpoint) {
				edit(eps)
				eps[1].Price = endpoint.Price{Basis: endpoint.PerToken, USDPerMTokOut: 1}
				eps[1].Tenure = endpoint.TenurePerToken
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := newSleeper(nil), &teller{words: 3}
			var changes []func(*rigOptions)
			if tc.change != nil {
				changes = append(changes, tc.change)
			}
			g := newHedger(t, []serving{a.serve, b.serve}, changes...)
			if tc.busy {
				var l router.Lease
				if err := g.router.Pick(&router.Request{Model: model, Tried: []endpoint.ID{"static:h0"}}, &l); err != nil || l.Endpoint.ID != "static:h1" {
					t.Fatal(err)
				}
				defer l.Done(router.Result{Class: outcome.ClientGone, Cached: -1})
			}
			c := g.dial().send(tc.request)
			conn := wait(t, a.asked, "the first host to be asked")
			quiet := time.NewTimer(hedgeSLO * 5 / 4)
			<-quiet.C
			if len(b.requests()) != 0 {
				t.Error("a second host was asked")
			}
			conn.send(jsonAnswer(400, `{"error":{"message":"enough"}}`))
			if res := c.response(); res.StatusCode != 400 {
				t.Errorf("status %d", res.StatusCode)
			}
			_ = c.Close()
			if r := g.recordN(0); r.Hedge != "" || r.Tries != 1 {
				t.Errorf("record %+v", r)
			}
		})
	}
}

// TestHedgeBeats tells a caller who waits for both that all is well, and then answers.
func TestHedgeBeats(t *testing.T) {
	hedging(func(t *try) {
		goOn := make(chan struct{})
		asked := make(chan struct{}, 1)
		b := &teller{words: 5, delay: func(i int) {
			if i == 0 {
				hears(goOn)
			}
		}}
		a := failing(asked, goOn, func(c *upConn) { c.reset() })
		g := newHedger(t, []serving{a, b.serve}, beating)
		c := g.dial().send(ask(chatPath, streamed))
		res := c.response()
		br := bufio.NewReader(res.Body)
		pings(t, br, 10)
		wait(t, asked, "the first host to be asked")
		eventually(t, "the second host is asked", func() bool { return len(b.requests()) > 0 })
		close(goOn)
		rest, err := io.ReadAll(br)
		if s := readTold(t, afterPings(string(rest))); err != nil || s.text != words(5) || !s.done {
			t.Errorf("%v: %+v", err, s)
		}
		if r := g.recordN(0); r.Hedge != wordWon && r.Hedge != wordFailed || r.Class != outcome.Success {
			t.Errorf("record %+v", r)
		}
	})(t)
}

// TestHedgeContinues takes an answer that a hedge has begun for any other: when its host is lost too, another one goes on with it.
func TestHedgeContinues(t *testing.T) {
	t.Parallel()
	const n = 30
	for _, members := range []string{streamed, ""} {
		t.Run(members, hedging(func(t *try) {
			a, b, c := newSleeper(nil), &teller{words: n, at: 12, lose: (*upConn).reset, times: 1}, &teller{words: n}
			var third router.Lease
			g := newHedger(t, []serving{a.serve, b.serve, c.serve})
			if err := g.router.Pick(&router.Request{Model: model, Tried: []endpoint.ID{"static:h0", "static:h1"}}, &third); err != nil {
				t.Fatal(err)
			}
			defer third.Done(router.Result{Class: outcome.ClientGone, Cached: -1})
			_, body, err := g.do(ask(chatPath, members))
			var text string
			if members != "" {
				text = readTold(t, body).text
			} else {
				text, _ = readWhole(t, body)
			}
			if err != nil || text != words(n) {
				t.Errorf("%v: %q", err, text)
			}
			if r := g.recordN(0); r.Hedge != wordWon || r.Resumes != 1 || r.Tries != 3 || r.Output != n || r.Attempts[2].Hedge {
				t.Errorf("record %+v", r)
			}
			wait(t, a.gone, "the first host to be left")
		}))
	}
}

// TestHedgeDrain ends both attempts when the gateway stops.
func TestHedgeDrain(t *testing.T) {
	hedging(func(t *try) {
		a, b := newSleeper(nil), newSleeper(nil)
		g := newHedger(t, []serving{a.serve, b.serve}, func(o *rigOptions) { o.set.Drain = 50 * time.Millisecond })
		c := g.dial().send(ask(chatPath, streamed))
		wait(t, a.asked, "the first host to be asked")
		wait(t, b.asked, "the second host to be asked")
		g.stop()
		wait(t, a.gone, "the first host to be left")
		wait(t, b.gone, "the second host to be left")
		if res := c.response(); res.StatusCode != 503 {
			t.Errorf("status %d", res.StatusCode)
		}
		wait(t, g.done, "the server to stop")
		if n := g.srv.hedges.Load(); n != 0 {
			t.Errorf("%d hedges outlive the server", n)
		}
	})(t)
}

// TestHedgeRaces lets both begin at about the same moment, over and over: each answer is one host's, whole, and nothing is left over.
func TestHedgeRaces(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	const n, callers, rounds = 6, 8, 6
	var mu sync.Mutex                     // guards rng
	rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test's
	roll := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return rng.IntN(n)
	}
	host := func(from, spread time.Duration) serving {
		return (&teller{words: n, delay: func(i int) {
			if i > 0 {
				return
			}
			d := time.NewTimer(from + time.Duration(roll(int(spread))))
			<-d.C
		}}).serve
	}
	hosts := []serving{host(hedgeSLO/2+2*time.Millisecond, 10*time.Millisecond)}
	for range callers {
		hosts = append(hosts, host(0, 10*time.Millisecond))
	}
	g := newHedger(t, hosts, func(o *rigOptions) {
		o.hedge = router.BudgetOptions{PerRequest: 1, Cap: 1000}
		edit := o.edit
		o.edit = func(eps []endpoint.Endpoint) {
			edit(eps)
			for i := range eps {
				if i > 0 { // only asked as a second
					eps[i].Price.USDPerHour = 1000
				}
			}
		}
	})
	var wg sync.WaitGroup
	var left atomic.Int64
	for k := range callers {
		wg.Go(func() {
			for i := range rounds {
				members := []string{streamed, ""}[(k+i)%2]
				cl := g.dial().send(ask(chatPath, members))
				if roll(6) == 0 { // in the middle of the race
					d := time.NewTimer(hedgeSLO/2 + time.Duration(roll(int(15*time.Millisecond))))
					<-d.C
					cl.reset()
					left.Add(1)
					continue
				}
				_, body, err := cl.whole()
				text := ""
				if err == nil && members != "" {
					s := readTold(t, body)
					if text = s.text; len(s.ids) != 1 || !s.done || s.roles["assistant"] != 1 {
						t.Errorf("told %+v", s)
					}
				} else if err == nil {
					var whole struct {
						Choices []struct{ Message struct{ Content string } }
					}
					if err = json.Unmarshal([]byte(body), &whole); err == nil && len(whole.Choices) == 1 {
						text = whole.Choices[0].Message.Content
					}
				}
				if err != nil || text != words(n) {
					t.Errorf("%v: %s", err, body)
				}
				_ = cl.Close()
			}
		})
	}
	wg.Wait()
	g.recordN(callers*rounds - 1)
	words := map[string]int{}
	g.mu.Lock()
	for i := range g.records {
		words[g.records[i].Hedge]++
	}
	g.mu.Unlock()
	t.Logf("hedges %v, %d callers left", words, left.Load())
	if words[wordWon]+words[wordLost] == 0 {
		t.Error("nothing was hedged")
	}
	eventually(t, "every hedge has ended", func() bool { return g.srv.hedges.Load() == 0 })
	for _, h := range g.router.Hosts() {
		if h.InFlight != 0 {
			t.Errorf("%s: %d in flight", h.ID, h.InFlight)
		}
	}
}
