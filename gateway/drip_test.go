package gateway

import (
	"strings"
	"testing"
	"time"

	"headrace/router/outcome"
)

// TestDripsBeforeTheFirstToken leaves a host that begins to answer and then gives no token: neither who speaks nor comments, nor the
// blanks in front of a plain answer, are a token, however steadily they come.
func TestDripsBeforeTheFirstToken(t *testing.T) {
	begun := map[string]func(c *upConn) (drop string){
		"a role, then comments": func(c *upConn) string { c.send(sseHead); c.sendChunk(roleEvent); return ": ping\n\n" },
		"comments":              func(c *upConn) string { c.send(sseHead); return ": ping\n\n" },
		"bytes of an event":     func(c *upConn) string { c.send(sseHead); c.sendChunk(roleEvent + `data: {"id":"`); return "x" },
		"roles":                 func(c *upConn) string { c.send(sseHead); return roleEvent },
		"informational answers": func(c *upConn) string { return "" },
	}
	for name, begin := range begun {
		for _, members := range []string{streamed, ""} {
			t.Run(name+members, func(t *testing.T) {
				t.Parallel()
				left := make(chan struct{})
				drips := func(c *upConn, _ *upRequest) bool {
					gone := make(chan struct{})
					go func() { defer close(gone); c.gone() }()
					drop := begin(c)
					tick := time.NewTicker(5 * time.Millisecond)
					defer tick.Stop()
					for {
						select {
						case <-gone:
							close(left)
							return false
						case <-tick.C:
							if drop == "" {
								c.send("HTTP/1.1 103 Early Hints\r\n\r\n")
							} else {
								c.sendChunk(drop)
							}
						}
					}
				}
				b := &teller{words: 5}
				g := newOdd(t, goesOn, drips, b.serve)
				set := *g.srv.set.Load()
				set.Stuck = 100 * time.Millisecond
				g.srv.Configure(set)
				g.router.Drain("static:h1", true) // until the other one is asked
				got := make(chan string, 1)
				go func() {
					_, body, _ := g.do(ask(chatPath, members))
					got <- body
				}()
				eventually(t, "the first host is asked", func() bool { return g.host(0).InFlight == 1 })
				g.router.Drain("static:h1", false)
				body := wait(t, got, "the other host's answer")
				if members == "" {
					if text, _ := readWhole(t, body); text != words(5) {
						t.Errorf("answer %s", body)
					}
				} else if s := readTold(t, body); s.text != words(5) || !s.done || s.roles["assistant"] != 1 || strings.Contains(body, "ping") {
					t.Errorf("answer %s", body)
				}
				wait(t, left, "the first host to be left")
				if r := g.recordN(0); r.Attempts[0].Class != outcome.FirstByteTimeout || r.Class != outcome.Success {
					t.Errorf("%s, then %s", r.Attempts[0].Class, r.Class)
				}
			})
		}
	}
}
