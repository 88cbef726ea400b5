package gateway

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"headrace/gateway/trace"
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

// TestAnswerID keeps the host's name of its answer where the attempt may be traced, and nowhere else.
func TestAnswerID(t *testing.T) {
	for name, tc := range map[string]struct {
		tracing trace.Policy
		want    string
	}{
		"all are traced":  {trace.Policy{On: true, Ratio: 1}, "c1"},
		"this one is not": {trace.Policy{On: true}, ""},
		"nothing is ever": {trace.Policy{}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			up := newUpstream(t, answering)
			g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.set.Tracing = tc.tracing })
			for i, stream := range []bool{true, false} {
				if r, body, err := g.do(chat(stream)); err != nil || r.StatusCode != 200 {
					t.Fatalf("%d %q, %v", r.StatusCode, body, err)
				}
				if got := g.recordN(i).Attempts[0].AnswerID; got != tc.want {
					t.Errorf("stream %v: %q, want %q", stream, got, tc.want)
				}
			}
		})
	}
}

// TestAnswerIDOfABrokenStream keeps it of an attempt that failed, though the request was not sampled: that one is looked for.
func TestAnswerIDOfABrokenStream(t *testing.T) {
	up := newUpstream(t, func(c *upConn, _ *upRequest) bool {
		c.send(sseHead)
		c.sendChunk(roleEvent + tokenEvent("one"))
		return false
	})
	g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.set.Tracing = trace.Policy{On: true} })
	_, _, _ = g.do(chat(true)) // it breaks off
	if r := g.recordN(0); r.Attempts[0].Class == outcome.Success || r.Attempts[0].AnswerID != "c1" {
		t.Errorf("attempt of class %s has answer %q", r.Attempts[0].Class, r.Attempts[0].AnswerID)
	}
}
