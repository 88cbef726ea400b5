package gateway

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// become gives host i another state, as discovery would.
func (g *rig) become(i int, s endpoint.State) {
	hosts := g.router.Hosts()
	eps := make([]endpoint.Endpoint, 0, len(hosts))
	for j := range hosts {
		ep := *hosts[j].Endpoint
		if j == i {
			ep.State = s
		}
		eps = append(eps, ep)
	}
	g.router.Update(eps, nil)
}

// TestCalledAwayBeforeTheFirstToken takes requests away from a host that leaves while their callers have nothing yet: what has
// hardly begun begins anew elsewhere; an answer in one piece, which may be nearly done, does so only where it is lost anyway; and
// all stay where nobody else is.
func TestCalledAwayBeforeTheFirstToken(t *testing.T) {
	const head = sseHead
	role := func(c *upConn) {
		c.send(head)
		c.sendChunk(roleEvent)
	}
	half := func(c *upConn) { c.send(jsonAnswer(200, plainBody)[:120]) }
	for name, tc := range map[string]struct {
		stream bool
		says   func(c *upConn) // before it falls silent
		state  endpoint.State
		alone  bool
		left   int // retries
		moves  bool
	}{
		"a stream, no head yet":                    {stream: true, state: endpoint.Draining, left: 2, moves: true},
		"a stream, no token yet":                   {stream: true, says: role, state: endpoint.Draining, left: 2, moves: true},
		"a stream, and nobody else":                {stream: true, state: endpoint.Draining, left: 2, alone: true},
		"a stream, no token yet, and nobody else":  {stream: true, says: role, state: endpoint.Preempted, left: 2, alone: true},
		"a stream, and no retry left":              {stream: true, says: role, state: endpoint.Preempted},
		"one piece, its host drains":               {state: endpoint.Draining, left: 2},
		"one piece, its host is taken away":        {state: endpoint.Preempted, left: 2, moves: true},
		"one piece, half of it, its host drains":   {says: half, state: endpoint.Draining, left: 2},
		"one piece, half of it, its host is taken": {says: half, state: endpoint.Gone, left: 2, moves: true},
		"one piece, half of it, and nobody else":   {says: half, state: endpoint.Gone, left: 2, alone: true},
	} {
		t.Run(name, func(t *testing.T) {
			silent, goOn := make(chan struct{}), make(chan struct{})
			release := sync.OnceFunc(func() { close(goOn) })
			defer release()
			a := newUpstream(t, func(c *upConn, r *upRequest) bool {
				if tc.says != nil {
					tc.says(c)
				}
				close(silent)
				<-goOn
				switch {
				case !tc.stream && tc.says != nil:
					c.send(jsonAnswer(200, plainBody)[120:])
				case tc.says == nil:
					return answering(c, r)
				default:
					for _, e := range []string{tokenEvent("hel"), tokenEvent("lo"), stopEvent, doneEvent} {
						c.sendChunk(e)
					}
					c.send(lastChunk)
				}
				return true
			})
			urls := []string{a.url()}
			if !tc.alone {
				urls = append(urls, newUpstream(t, answering).url())
			}
			g := newRig(t, urls, func(o *rigOptions) {
				o.set.MaxRetries = tc.left
			})
			type answer struct {
				endpoint, body string
				err            error
			}
			got := make(chan answer, 1)
			go func() {
				res, body, err := g.do(chat(tc.stream))
				got <- answer{res.Header.Get("X-Headrace-Endpoint"), body, err}
			}()
			wait(t, silent, "the host to fall silent")
			g.become(0, tc.state)
			if n := g.fwd.Interrupt("static:h0"); n != 1 {
				t.Errorf("%d were called away", n)
			}
			want, tries := endpoint.ID("static:h1"), 2
			if !tc.moves {
				release()
				want, tries = "static:h0", 1
			}
			r := wait(t, got, "the answer")
			if r.err != nil || endpoint.ID(r.endpoint) != want || !strings.Contains(r.body, "hel") || tc.stream && !strings.HasSuffix(r.body, doneEvent) {
				t.Errorf("answered by %s, want %s: %q, %v", r.endpoint, want, r.body, r.err)
			}
			rec := g.recordN(0)
			if rec.Class != outcome.Success || rec.Tries != tries || tc.moves && rec.Attempts[0].Class != outcome.Moved {
				t.Errorf("record %+v", rec)
			}
			if h := g.host(0); h.Breaker == "open" || h.Failures != 0 || h.Opens > 1 {
				t.Errorf("breaker %s, %d failures of a host that did nothing wrong", h.Breaker, h.Failures)
			}
		})
	}
}

// TestCalledAwayTwice takes an answer away from the host that was to go on with it, before that has sent anything.
func TestCalledAwayTwice(t *testing.T) {
	const n = 40
	asked, goOn := make(chan struct{}), make(chan struct{})
	defer close(goOn)
	a, c := &teller{words: n, at: 17, lose: (*upConn).reset, times: 1}, &teller{words: n}
	b := &teller{words: n, delay: func(i int) {
		if i == 17 {
			close(asked)
			<-goOn
		}
	}}
	g := newTellers(t, []*teller{a, b, c}, func(o *rigOptions) { o.set.Stall, o.set.Stuck = time.Minute, time.Minute })
	got := make(chan string, 1)
	go func() {
		_, body, _ := g.do(ask(chatPath, streamed))
		got <- body
	}()
	wait(t, asked, "the second host")
	g.fwd.Interrupt("static:h1")
	if s := readTold(t, wait(t, got, "the answer")); s.text != words(n) || !s.done || len(s.ids) != 1 {
		t.Errorf("done %t, ids %v, text %q", s.done, s.ids, s.text)
	}
	rec := g.recordN(0)
	if rec.Tries != 3 || rec.Attempts[1].Class != outcome.Moved || rec.Endpoint != "static:h2" || rec.Resumes != 1 {
		t.Errorf("record %+v", rec)
	}
}

// TestStaysWithoutBudget leaves a stream where it is when the one thing that is missing for its move is a retry.
func TestStaysWithoutBudget(t *testing.T) {
	const n = 40
	reached, goOn := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(goOn) })
	defer release()
	a, c := &teller{words: n, at: 10, lose: (*upConn).reset, times: 1}, &teller{words: n}
	b := &teller{words: n, delay: func(i int) {
		if i == 20 {
			close(reached)
			<-goOn
		}
	}}
	g := newTellers(t, []*teller{a, b, c}, func(o *rigOptions) { o.set.Stall = time.Minute })
	for g.router.Budget.Spend() {
	}
	got := make(chan string, 1)
	go func() {
		_, body, _ := g.do(ask(chatPath, streamed))
		got <- body
	}()
	wait(t, reached, "the second host to be in the middle")
	eventually(t, "a token has come", func() bool { return g.host(1).TTFTMillis != nil })
	g.fwd.Interrupt("static:h1")
	eventually(t, "the place is given back", func() bool { return g.host(2).InFlight == 0 })
	release()
	if s := readTold(t, wait(t, got, "the answer")); s.text != words(n) || !s.done || s.code != "" {
		t.Errorf("done %t, error %q, text %q", s.done, s.code, s.text)
	}
	if rec := g.recordN(0); rec.Tries != 2 || rec.Endpoint != "static:h1" {
		t.Errorf("record %+v", rec)
	}
}

// TestCalledAwayOften calls at random while streams and plain answers run, until all have ended: each word comes once, wherever they
// went and stayed.
func TestCalledAwayOften(t *testing.T) {
	const n, hosts, callers = 60, 4, 9
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // repeatable on purpose
	tick := time.NewTicker(200 * time.Microsecond)
	defer tick.Stop()
	var tellers []*teller
	for range hosts {
		tellers = append(tellers, &teller{words: n, delay: func(int) { <-tick.C }})
	}
	g := newTellers(t, tellers, func(o *rigOptions) {
		o.set.MaxResumes, o.set.MaxRetries, o.set.Stall = 100, 10, time.Minute
		o.edit = func(eps []endpoint.Endpoint) {
			for i := range eps {
				eps[i].Tenure, eps[i].Price.USDPerHour = endpoint.Interruptible, 1
			}
		}
	})
	type answer struct {
		stream bool
		body   string
		err    error
	}
	got := make(chan answer, callers)
	for i := range callers {
		members := ""
		if i%3 > 0 {
			members = streamed
		}
		go func() {
			_, body, err := g.do(ask(chatPath, members))
			got <- answer{members != "", body, err}
		}()
	}
	late := time.After(patience)
	for left := callers; left > 0; {
		g.fwd.Interrupt(endpoint.ID(fmt.Sprint("static:h", rng.IntN(hosts))))
		pause := time.NewTimer(time.Duration(rng.IntN(20)) * time.Millisecond)
		select {
		case a := <-got:
			left--
			var text string
			if a.stream {
				s := readTold(t, a.body)
				if text = s.text; !s.done || s.code != "" || len(s.ids) != 1 || s.roles["assistant"] != 1 {
					t.Errorf("done %t, error %q, ids %v, roles %v", s.done, s.code, s.ids, s.roles)
				}
			} else {
				text, _ = readWhole(t, a.body)
			}
			if a.err != nil || text != words(n) {
				t.Errorf("%v: %q", a.err, text)
			}
		case <-pause.C:
		case <-late:
			t.Fatalf("%d answers did not end", left)
		}
		pause.Stop()
	}
	moved := 0
	for i := range callers {
		moved += g.recordN(i).Resumes
	}
	t.Logf("%d moves", moved)
	if moved == 0 {
		t.Error("nothing moved")
	}
}
