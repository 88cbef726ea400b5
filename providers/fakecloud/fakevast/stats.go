package fakevast

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Stats are the books of what the Cloud was asked.
type Stats struct {
	Calls      map[string]int // by call: "GET /api/v1/instances/", "PUT /api/v0/instances/{id}/", "POST run/route/"
	Statuses   map[int]int    // answers by status
	Denied     int            // for a lack of a key that is known
	TooSoon    int            // 429, by limits or trouble
	Troubled   int            // answers that a Trouble gave
	Deliveries int            // tries to reach a webhook
	Delivered  int            // of those, the ones taken
	Failed     int            // events that no webhook took in the end
	Pending    int            // events that are on their way
}

// Request is one call as it arrived.
type Request struct {
	At     time.Time
	Call   string // as in Stats.Calls
	Method string
	Path   string
	Query  string
	Header http.Header // not to be changed
	Body   []byte      // not to be changed
	Status int         // of the answer; 0 when none was given
}

const keptRequests = 4096

type books struct {
	mu      sync.Mutex // guards all below
	s       Stats
	last    []Request
	changed chan struct{} // closed at the next change; nil while nobody waits
}

func (b *books) update(f func(*Stats)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.s.Calls == nil {
		b.s.Calls, b.s.Statuses = map[string]int{}, map[int]int{}
	}
	f(&b.s)
	if b.changed != nil {
		close(b.changed)
		b.changed = nil
	}
}

func (b *books) add(r Request) {
	b.update(func(s *Stats) {
		s.Calls[r.Call]++
		s.Statuses[r.Status]++
		if r.Status == http.StatusTooManyRequests {
			s.TooSoon++
		}
		if len(b.last) >= keptRequests {
			b.last = slices.Delete(b.last, 0, keptRequests/4)
		}
		b.last = append(b.last, r)
	})
}

func (b *books) view(wait bool) (Stats, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.s
	s.Calls, s.Statuses = maps.Clone(s.Calls), maps.Clone(s.Statuses)
	if wait && b.changed == nil {
		b.changed = make(chan struct{})
	}
	return s, b.changed
}

// Stats returns the books.
func (c *Cloud) Stats() Stats {
	s, _ := c.books.view(false)
	return s
}

// Requests returns the last calls, oldest first.
func (c *Cloud) Requests() []Request {
	c.books.mu.Lock()
	defer c.books.mu.Unlock()
	return slices.Clone(c.books.last)
}

// Wait returns when the books satisfy done, or with ctx's error when it is done first. It looks again after every
// call, delivery and step in an instance's life.
func (c *Cloud) Wait(ctx context.Context, done func(Stats) bool) error {
	for {
		s, changed := c.books.view(true)
		if done(s) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for fake vast (%+v): %w", s, ctx.Err())
		}
	}
}
