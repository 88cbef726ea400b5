package gateway

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// TestSlowReaderNoBlame streams far more than sockets hold to a caller who pauses, after the half of it and for three times as long as that
// took, which is most of the stream's time however busy the machine is: the host is not taken for slow.
func TestSlowReaderNoBlame(t *testing.T) {
	const tokens, size = 200, 64 << 10
	up := newUpstream(t, func(c *upConn, _ *upRequest) bool {
		events := make([]string, tokens, tokens+2)
		for i := range events {
			events[i] = tokenEvent(strings.Repeat("x", size))
		}
		c.sendStream(append(events, stopEvent, doneEvent)...)
		return true
	})
	g := newRig(t, []string{up.url()}, func(o *rigOptions) { // the caller's pause is as long as the machine is busy
		o.set.ClientWrite, o.set.Total = 10*patience, 10*patience
	})
	c := g.dial()
	if err := c.SetDeadline(time.Now().Add(10 * patience)); err != nil {
		t.Fatal(err)
	}
	if err := c.tcp.SetReadBuffer(8 * size); err != nil { // so that it does not grow to all of the stream
		t.Fatal(err)
	}
	start := time.Now()
	body := bufio.NewReader(c.send(chat(true)).response().Body)
	if _, err := io.CopyN(io.Discard, body, tokens/2*size); err != nil {
		t.Fatal(err)
	}
	<-time.After(3*time.Since(start) + 100*time.Millisecond)
	_, _ = io.Copy(io.Discard, body)
	if rec := g.recordN(0); rec.Output != tokens {
		t.Fatalf("%d tokens are recorded", rec.Output)
	}
	if v := g.host(0); v.TPS != nil || v.Observed != 0 {
		t.Errorf("the host is taken to give %.0f tokens per second, with %d streams observed, by a caller who paused", *v.TPS, v.Observed)
	}
}

// TestWholeWithoutUsage does not take an answer that counts no tokens for one of a single token.
func TestWholeWithoutUsage(t *testing.T) {
	up := newUpstream(t, func(c *upConn, _ *upRequest) bool {
		c.send(jsonAnswer(200, `{"id":"c1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"a long answer"},"finish_reason":"stop"}]}`))
		return true
	})
	g := newRig(t, []string{up.url()})
	before := expectedOutput(t, g)
	if res, body, err := g.do(chat(false)); err != nil || res.StatusCode != 200 {
		t.Fatal(res, body, err)
	}
	g.recordN(0)
	if after := expectedOutput(t, g); after != before {
		t.Errorf("an answer is expected to have %v tokens, %v before", after, before)
	}
}

func expectedOutput(t *testing.T, g *rig) float64 {
	t.Helper()
	x, err := g.router.Explain(&router.Request{Model: "m1"})
	if err != nil {
		t.Fatal(err)
	}
	return x.Output
}

// TestChoicesTeachOneStream has a host that sends eight choices side by side, round by round, each once the caller has the one
// before: what is learned lies between what both of them saw, however busy the machine is.
func TestChoicesTeachOneStream(t *testing.T) {
	const rounds, choices, gap, tries = 20, 8, 20 * time.Millisecond, 10
	type span struct{ first, last time.Time }
	got, sent := make(chan struct{}, rounds), make(chan span, 1)
	up := newUpstream(t, func(c *upConn, _ *upRequest) bool {
		c.send(sseHead)
		pace := time.NewTicker(gap)
		defer pace.Stop()
		s := span{first: time.Now()}
		for round := range rounds {
			<-pace.C
			var all strings.Builder
			for i := range choices {
				fmt.Fprintf(&all, "data: {\"id\":\"c1\",\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":%d,\"delta\":{\"content\":\"x\"},\"finish_reason\":null}]}\n\n", i)
			}
			s.last = time.Now()
			c.sendChunk(all.String())
			if round == rounds-1 {
				break
			}
			select {
			case <-got:
			case <-t.Context().Done():
				return false
			}
		}
		sent <- s
		c.sendChunk(strings.Repeat(stopEvent, choices) + doneEvent)
		c.send(lastChunk)
		return true
	})
	g := newRig(t, []string{up.url()})
	for try := range tries {
		body := bufio.NewScanner(g.dial().send(post(chatPath, `{"model":"m1","stream":true,"n":8,"messages":[{"role":"user","content":"hi"}]}`)).response().Body)
		var came span
		events := 0
		for body.Scan() && body.Text() != "data: [DONE]" {
			if !strings.Contains(body.Text(), `"content"`) {
				continue
			}
			if came.last = time.Now(); events == 0 {
				came.first = came.last
			}
			if events++; events%choices == 0 && events < rounds*choices {
				got <- struct{}{}
			}
		}
		if body.Err() != nil || events != rounds*choices {
			t.Fatalf("%d events came: %v", events, body.Err())
		}
		s := <-sent
		g.recordN(try)
		v := g.host(0)
		if v.TPS == nil {
			continue
		}
		least, most := (rounds-1)/came.last.Sub(s.first).Seconds(), (rounds-1)/s.last.Sub(came.first).Seconds()
		if *v.TPS < least || *v.TPS > most {
			t.Errorf("a stream is taken to give %.1f tokens per second, each of the eight gave from %.1f to %.1f", *v.TPS, least, most)
		}
		return
	}
	t.Errorf("nothing was learned of %d answers, as if their caller had held them up", tries)
}

// TestHostDroppedMeanwhile asks a host that discovery has just taken away: nothing was used, so nothing is charged.
func TestHostDroppedMeanwhile(t *testing.T) {
	up := newUpstream(t, answering)
	g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.set.MaxRetries = 0 })
	ghost := endpoint.Endpoint{ID: "ghost", Served: []endpoint.Served{{Name: "m1"}}, Price: endpoint.Price{Basis: endpoint.PerHour, USDPerHour: 1}}
	g.router.Update([]endpoint.Endpoint{ghost}, nil)
	if res, body, err := g.do(chat(true)); err != nil || res.StatusCode != 503 {
		t.Fatal(res, body, err)
	}
	if rec := g.recordN(0); rec.USD > 0.001 || rec.Attempts[0].Duration > time.Minute {
		t.Errorf("$%.2f are charged for an attempt of %v", rec.USD, rec.Attempts[0].Duration)
	}
}

// TestTokensPerEvent has a host that sends four tokens in each event, as its usage says once: when it says nothing it does so still.
func TestTokensPerEvent(t *testing.T) {
	const events = 20
	answers := 0
	up := newUpstream(t, func(c *upConn, _ *upRequest) bool {
		all := slices.Repeat([]string{tokenEvent("four tokens at once")}, events)
		if all = append(all, stopEvent); answers == 0 {
			all = append(all, fmt.Sprintf("data: {\"id\":\"c1\",\"object\":\"chat.completion.chunk\",\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":%d,\"total_tokens\":87}}\n\n", 4*events))
		}
		answers++
		c.sendStream(append(all, doneEvent)...)
		return true
	})
	g := newRig(t, []string{up.url()})
	for i := range 2 {
		if _, body, err := g.do(chat(true)); err != nil || !strings.Contains(body, "[DONE]") {
			t.Fatal(body, err)
		}
		g.recordN(i)
		if got, want := expectedOutput(t, g), 4.0*events; got != want {
			t.Errorf("after %d answers of %v tokens one is expected to have %v", i+1, want, got)
		}
	}
}

// TestStopStringTeachesNoTokensPerEvent has a host that counts the tokens of a stop string, of which nothing is shown: its other
// events carry one token each all the same, and of an answer that breaks off just as many were delivered.
func TestStopStringTeachesNoTokensPerEvent(t *testing.T) {
	const events = 20
	up := newUpstream(t, func(c *upConn, _ *upRequest) bool {
		all := slices.Repeat([]string{tokenEvent("one")}, events)
		c.sendStream(append(all, stopEvent,
			fmt.Sprintf("data: {\"id\":\"c1\",\"object\":\"chat.completion.chunk\",\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":%d,\"total_tokens\":87}}\n\n", events+3),
			doneEvent)...)
		return true
	})
	g := newRig(t, []string{up.url()})
	for i := range 5 {
		if _, body, err := g.do(ask(chatPath, streamed+`,"stop":["\n\n"]`)); err != nil || !strings.Contains(body, "[DONE]") {
			t.Fatal(body, err)
		}
		g.recordN(i)
	}
	var l router.Lease
	if err := g.router.Pick(&router.Request{Model: "m1", Now: time.Now()}, &l); err != nil {
		t.Fatal(err)
	}
	defer l.Done(router.Result{Class: outcome.ClientGone, Cached: -1})
	if n := l.Tokens(100); n != 100 {
		t.Errorf("100 events are taken for %d tokens", n)
	}
}

// TestSequencesAreCounted: a request for several answers is as many sequences at its host.
func TestSequencesAreCounted(t *testing.T) {
	began, goOn := make(chan struct{}), make(chan struct{})
	up := newUpstream(t, func(c *upConn, r *upRequest) bool {
		began <- struct{}{}
		<-goOn
		return answering(c, r)
	})
	g := newRig(t, []string{up.url()})
	for body, want := range map[string]int64{`"n":3`: 3, `"n":1`: 1, `"temperature":1`: 1} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _, _ = g.do(post(chatPath, `{"model":"m1","messages":[{"role":"user","content":"x"}],`+body+`}`))
		}()
		<-began
		if n, _ := g.router.Load(g.host(0).ID); n != want || g.host(0).InFlight != 1 {
			t.Errorf("%s: %d sequences of %d requests, want %d of 1", body, n, g.host(0).InFlight, want)
		}
		goOn <- struct{}{}
		<-done
		eventually(t, "nothing is left", func() bool { n, _ := g.router.Load(g.host(0).ID); return n == 0 })
	}
}
