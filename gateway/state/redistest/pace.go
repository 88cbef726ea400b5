package redistest

import (
	"bufio"
	"net"
	"sync"
	"testing"
	"time"
)

// Pace says for how long the machine stood still: what is promised to happen within some time cannot be held to it meanwhile. It is safe for use by
// several goroutines.
type Pace struct {
	mu    sync.Mutex // guards all
	since time.Time  // when the beat under way should have ended
	late  []lateness // of those that ended, only such as are noticed
}

type lateness struct {
	ended time.Time
	by    time.Duration
}

const (
	beatEvery = 5 * time.Millisecond
	noticed   = 5 * time.Millisecond
)

// Watch has a timer wait and the server answer, again and again, until the test ends.
func (s *Server) Watch() *Pace {
	s.t.Helper()
	c, err := net.Dial("unix", s.Socket())
	if err != nil {
		s.t.Fatal(err)
	}
	p := &Pace{since: time.Now().Add(beatEvery)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.beat(c)
	}()
	s.t.Cleanup(func() { _ = c.Close(); <-done })
	return p
}

// beat goes on until the connection ends.
func (p *Pace) beat(c net.Conn) {
	answers := bufio.NewReader(c)
	for {
		<-time.After(beatEvery)
		if _, err := c.Write([]byte("PING\r\n")); err != nil {
			return
		}
		if _, err := answers.ReadSlice('\n'); err != nil {
			return
		}
		now := time.Now()
		p.mu.Lock()
		if by := now.Sub(p.since); by >= noticed {
			p.late = append(p.late, lateness{now, by})
		}
		p.since = now.Add(beatEvery)
		p.mu.Unlock()
	}
}

// Late returns the longest that a timer and a bare answer of the server were late since then.
func (p *Pace) Late(since time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	longest := max(0, time.Since(p.since))
	for i := len(p.late) - 1; i >= 0 && p.late[i].ended.After(since); i-- {
		longest = max(longest, p.late[i].by)
	}
	return longest
}

// Within fails the test when what began then has taken more than d, and ten times what the machine was late meanwhile: news go through about as many
// hands, each of which may have to wait for it. It returns how long it took.
func (p *Pace) Within(t testing.TB, what string, began time.Time, d time.Duration) time.Duration {
	t.Helper()
	took := time.Since(began)
	if late := p.Late(began); took > d+10*late {
		t.Errorf("%s after %s, want %s, on a machine that was late by %s at most", what, took, d, late)
	}
	return took
}
