package gateway

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// refusal is a host's word that it will not go on with an answer, as vLLM refuses members it does not know.
const refusal = `{"error":{"message":"%s","type":"BadRequestError","param":null,"code":400}}`

// fussy are three hosts of which the one that is asked first is lost after four words, and those that are asked to go on with that refuse, the first few
// times: which host is which is the router's choice.
type fussy struct {
	hosts    [3]teller
	lost     atomic.Bool
	refuse   int64  // times
	say      string // in the refusal
	refusals atomic.Int64
	refused  func() // behind each refusal; may be nil
}

const fussyWords = 10

func newFussy(t *testing.T, f *fussy, change ...func(*rigOptions)) *rig {
	t.Helper()
	var urls []string
	for i := range f.hosts {
		h := &f.hosts[i]
		h.words = fussyWords
		h.fate = func() (int, func(*upConn)) {
			if f.lost.CompareAndSwap(false, true) {
				return 4, (*upConn).reset
			}
			return 0, nil
		}
		urls = append(urls, newUpstream(t, func(c *upConn, r *upRequest) bool {
			if !strings.Contains(string(r.body), "continue_final_message") || f.refusals.Add(1) > f.refuse {
				return h.serve(c, r)
			}
			c.send(jsonAnswer(400, strings.Replace(refusal, "%s", f.say, 1)))
			if f.refused != nil {
				f.refused()
			}
			return true
		}).url())
	}
	g := newRig(t, urls, append([]func(*rigOptions){func(o *rigOptions) {
		o.set.MaxResumes, o.set.MaxContinuation, o.set.Stuck = 2, 1<<20, 10*patience
		o.set.Resume, o.set.Total = time.Hour, time.Hour // whoever waits for a host that nobody expects runs into the test's own limit
		o.edit = func(eps []endpoint.Endpoint) {
			for i := range eps {
				eps[i].Tenure = endpoint.Interruptible
			}
		}
	}}, change...)...)
	for i := range f.hosts {
		g.router.SetPrefill(g.host(i).ID, model, goesOn)
	}
	return g
}

// TestAnotherGoesOn: one host's refusal to go on with an answer is not every host's.
func TestAnotherGoesOn(t *testing.T) {
	for name, members := range map[string]string{"stream": streamed, "plain": ""} {
		t.Run(name, func(t *testing.T) {
			f := &fussy{refuse: 1, say: "no such thing here"}
			g := newFussy(t, f)
			_, body, err := g.do(ask(chatPath, members+`,"max_tokens":9`))
			var text, finish string
			if members == "" {
				text, finish = readWhole(t, body)
			} else {
				s := readTold(t, body)
				text, finish = s.text, s.finish
			}
			if err != nil || text != words(9) || finish != "length" {
				t.Errorf("%v: %s", err, body)
			}
			r := g.recordN(0)
			if r.Class != outcome.Success || r.Resumes != 1 || r.Lost != "" || r.Output != 9 || len(r.Attempts) != 3 {
				t.Fatalf("record %+v", r)
			}
			a, b, c := &r.Attempts[0], &r.Attempts[1], &r.Attempts[2]
			if a.Class != outcome.Truncated && a.Class != outcome.Severed || b.Class != outcome.CallerFault || c.Class != outcome.Success {
				t.Errorf("attempts %+v", r.Attempts)
			}
			if a.Endpoint == b.Endpoint || b.Endpoint == c.Endpoint || a.Endpoint == c.Endpoint || !c.Resumed || c.Offset != 4 {
				t.Errorf("attempts %+v", r.Attempts)
			}
			for i := range f.hosts {
				if h := g.host(i); h.InFlight != 0 {
					t.Errorf("%s: %d in flight", h.ID, h.InFlight)
				}
			}
			if len(g.router.Probes(time.Now(), nil)) != 0 {
				t.Error("what it said of something else was taken for a word on unfinished messages")
			}
		})
	}
}

// TestAllRefuse: each host is asked once, and nobody waits for what nobody will do.
func TestAllRefuse(t *testing.T) {
	f := &fussy{refuse: 100, say: "no such thing here"}
	g := newFussy(t, f)
	had := retriesLeft(g)
	_, body, err := g.do(ask(chatPath, streamed))
	if s := readTold(t, body); err == nil || s.text != words(4) || s.code != "upstream_lost" || !s.partial || s.done {
		t.Errorf("%v: %s", err, body)
	}
	r := g.recordN(0)
	if r.Lost != whyNoHost || len(r.Attempts) != 3 || f.refusals.Load() != 2 || r.Attempts[1].Endpoint == r.Attempts[2].Endpoint {
		t.Errorf("lost for %s, %d refusals, attempts %+v", r.Lost, f.refusals.Load(), r.Attempts)
	}
	if n := retriesLeft(g); n != had-1 {
		t.Errorf("%d retries left of %d, and one was made", n, had)
	}
}

// retriesLeft counts what the fleet's budget allows.
func retriesLeft(g *rig) (n int) {
	for g.router.Budget.Spend() {
		n++
	}
	for range n {
		g.router.Budget.Refund()
	}
	return n
}

// TestRefusedAndWaited: while another host may come that could go on, the caller has patience.
func TestRefusedAndWaited(t *testing.T) {
	f := &fussy{refuse: 1, say: "no such thing here"}
	refused := make(chan struct{}, 1)
	f.refused = func() { refused <- struct{}{} }
	g := newFussy(t, f)
	away := g.host(2).ID
	g.router.Drain(away, true)
	answer := g.goDo(ask(chatPath, streamed))
	wait(t, refused, "the refusal")
	eventually(t, "it waits", func() bool { return g.srv.held.n.Load() == 1 })
	g.router.Drain(away, false)
	a := wait(t, answer, "the answer")
	if s := readTold(t, a.body); a.err != nil || s.text != words(fussyWords) || !s.done {
		t.Errorf("%v: %s", a.err, a.body)
	}
	if r := g.recordN(0); len(r.Attempts) != 3 || r.Attempts[2].Endpoint != away {
		t.Errorf("attempts %+v", r.Attempts)
	}
}

// TestBelied: a host that refuses what a continuation is asked with has yet to show again that it goes on with answers.
func TestBelied(t *testing.T) {
	for name, told := range map[string]bool{"found by a test": false, "told by its operator": true} {
		t.Run(name, func(t *testing.T) {
			f := &fussy{refuse: 1, say: "Extra inputs are not permitted: continue_final_message"}
			g := newFussy(t, f)
			if told {
				for i := range f.hosts {
					g.router.SetPrefill(g.host(i).ID, model, router.Prefill{Known: true, OK: true, Told: true})
				}
			}
			_, body, err := g.do(ask(chatPath, streamed))
			if s := readTold(t, body); err != nil || s.text != words(fussyWords) || !s.done {
				t.Errorf("%v: %s", err, body)
			}
			refuser := g.recordN(0).Attempts[1].Endpoint
			due := g.router.Probes(time.Now(), nil)
			if told && len(due) != 0 || !told && (len(due) != 1 || !due[0].SelfTest || due[0].Endpoint.ID != refuser) {
				t.Errorf("%s refused; tests due: %+v", refuser, due)
			}
		})
	}
}
