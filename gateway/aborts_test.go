package gateway

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestRandomAborts has thousands of clients leave at random moments, and looks for what they left behind.
func TestRandomAborts(t *testing.T) {
	total, workers := 10_000, 50
	switch {
	case testing.Short():
		total = 1000
	case raceEnabled: // each takes ten times as long
		total = 2000
	}
	r := random(t)
	seed := r.Uint64()
	idle := ours()
	up := newUpstream(t, unhurried)
	g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.forward.UpstreamIdle = 100 * time.Millisecond })
	var next, complete, seen atomic.Int64
	var ids sync.Map
	from := time.Now()
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(w)))
			var c *client
			for next.Add(1) <= int64(total) {
				if c == nil {
					if r.IntN(4) == 0 {
						c = g.dialTLS()
					} else {
						c = g.dial()
					}
				}
				id, whole := abortSomewhere(r, c)
				if id != "" {
					seen.Add(1)
					if _, twice := ids.LoadOrStore(id, true); twice {
						t.Errorf("two answers carry the id %s", id)
					}
				}
				if whole {
					complete.Add(1)
				} else {
					c = nil
				}
			}
			if c != nil {
				_ = c.tcp.Close()
			}
		})
	}
	wg.Wait()
	took := time.Since(from)
	eventually(t, "nothing is in flight", func() bool { return g.srv.InFlight() == 0 })
	h := g.host(0)
	t.Logf("%d requests in %v: %d complete, %d answers begun, %d reached the host", total, took.Round(time.Millisecond), complete.Load(), seen.Load(), up.requests)
	if h.InFlight != 0 || h.Failures != 0 || h.Breaker != "closed" || h.Opens != 0 {
		t.Errorf("host: %d in flight, %d failures, breaker %s, opened %d times", h.InFlight, h.Failures, h.Breaker, h.Opens)
	}
	if complete.Load() == 0 || seen.Load() <= complete.Load() {
		t.Errorf("%d complete of %d begun answers: the mix is not what it should be", complete.Load(), seen.Load())
	}
	g.mu.Lock()
	ids.Range(func(id, _ any) bool {
		if g.settled[id.(string)] != 1 {
			t.Errorf("%s was settled %d times", id, g.settled[id.(string)])
		}
		return true
	})
	g.mu.Unlock()
	// The host still serves, over the connections that are left and fresh ones.
	if r, body, err := g.do(chat(false)); err != nil || r.StatusCode != 200 {
		t.Errorf("afterwards: %d %q %v", r.StatusCode, body, err)
	}
	g.close()
	eventually(t, "the host has no connection left", func() bool { return up.open() == 0 })
	up.close()
	known := len(idle)
	var left []string
	eventually(t, "no goroutine is left", func() bool {
		left = left[:0]
		for _, s := range ours() {
			if !strings.Contains(s, "(*workerPool).Start.func") { // sleeps for up to 10 s before it looks whether it may end
				left = append(left, s)
			}
		}
		return len(left) <= known
	})
}

// unhurried is a host that takes some time over everything, as the request asks.
func unhurried(c *upConn, r *upRequest) bool {
	_, v, _ := bytes.Cut(r.body, []byte(`"user":"`))
	v, _, _ = bytes.Cut(v, []byte(`"`))
	micros, _ := strconv.Atoi(string(v))
	pause := func() {
		if micros > 0 {
			<-time.After(time.Duration(micros) * time.Microsecond)
		}
	}
	pause()
	if !bytes.Contains(r.body, []byte(`"stream":true`)) {
		c.send("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: " + strconv.Itoa(len(plainBody)) + "\r\n\r\n" + plainBody[:20])
		pause()
		c.send(plainBody[20:])
		return true
	}
	c.send(sseHead)
	for i := range 5 {
		c.sendChunk(tokenEvent(strconv.Itoa(i)))
		pause()
	}
	c.sendChunk(stopEvent + doneEvent)
	c.send(lastChunk)
	return true
}

// abortSomewhere sends a request and goes away at some point of its life, or stays to the end. It
// returns the answer's request id, if it saw one. It may run beside the test's goroutine.
func abortSomewhere(r *rand.Rand, c *client) (id string, whole bool) {
	request := post(chatPath, fmt.Sprintf(`{"model":"m1","stream":%t,"user":"%d","messages":[]}`, r.IntN(2) == 0, r.IntN(2000)))
	phase := r.IntN(6)
	if phase == 0 {
		request = request[:r.IntN(len(request))]
	}
	_, err := io.WriteString(c.Conn, request)
	var res *http.Response
	if phase > 1 && err == nil {
		if res, err = http.ReadResponse(c.br, nil); err == nil {
			id = res.Header.Get("X-Request-Id")
		}
	}
	switch {
	case err != nil:
	case phase == 3:
		_, _ = io.CopyN(io.Discard, res.Body, int64(1+r.IntN(600)))
	case phase > 3:
		var n int64
		if n, err = io.Copy(io.Discard, res.Body); err == nil && n > 0 && res.StatusCode == 200 {
			return id, true
		}
	}
	switch r.IntN(3) {
	case 0:
		c.reset()
	case 1:
		_ = c.tcp.CloseWrite()
		_, _ = io.Copy(io.Discard, c.tcp)
		_ = c.tcp.Close()
	default:
		_ = c.Close()
	}
	return id, false
}
