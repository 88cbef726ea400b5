package gateway

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"headrace/router/outcome"
)

// TestOwnTime tells the gateway's own time by what it went into, and how the caller came.
func TestOwnTime(t *testing.T) {
	up := newUpstream(t, answering)
	g := newRig(t, []string{up.url()})
	for i, tc := range []struct {
		dial    func() *client
		request string
		status  int
	}{
		{g.dial, chat(true), 200},
		{g.dialTLS, chat(true), 200},
		{g.dialTLS, chat(false), 200},
		{g.dial, strings.Replace(chat(false), fmt.Sprintf("%q", model), fmt.Sprintf("%q", strings.Repeat("x", len(model))), 1), 404},
	} {
		if r, body, err := tc.dial().send(tc.request).whole(); err != nil || r.StatusCode != tc.status {
			t.Fatalf("request %d: %d %q, %v", i, r.StatusCode, body, err)
		}
		r := g.recordN(i)
		answering := r.Overhead - r.Reading - r.Deciding
		switch {
		case r.Class == outcome.Success && (r.Reading <= 0 || r.Deciding <= 0 || answering <= 0 || r.Overhead > r.Duration):
			t.Errorf("request %d of %v: %v of its own: reading %v, deciding %v, answering %v", i, r.Duration, r.Overhead, r.Reading, r.Deciding, answering)
		case r.Class != outcome.Success && (r.Deciding != 0 || r.Reading != r.Overhead):
			t.Errorf("request %d was refused: %v of its own, reading %v, deciding %v", i, r.Overhead, r.Reading, r.Deciding)
		}
		if want := i == 1 || i == 2; r.TLS != want {
			t.Errorf("request %d by TLS: %v", i, r.TLS)
		}
	}
}

// TestOwnTimeOfAFailover counts what is done between two attempts as deciding, and no host's time.
func TestOwnTimeOfAFailover(t *testing.T) {
	var asked atomic.Int64
	failing := func(c *upConn, r *upRequest) bool {
		if asked.Add(1) > 1 {
			return answering(c, r)
		}
		c.send(jsonAnswer(500, `{}`))
		return true
	}
	g := newRig(t, []string{newUpstream(t, failing).url(), newUpstream(t, failing).url()})
	if r, body, err := g.do(chat(true)); err != nil || r.StatusCode != 200 {
		t.Fatalf("%d %q, %v", r.StatusCode, body, err)
	}
	r := g.recordN(0)
	if r.Tries != 2 || r.Reading <= 0 || r.Deciding <= 0 || r.Overhead <= r.Reading+r.Deciding || r.Overhead > r.Duration {
		t.Errorf("%d tries; %v of its own of %v: reading %v, deciding %v", r.Tries, r.Overhead, r.Duration, r.Reading, r.Deciding)
	}
}
