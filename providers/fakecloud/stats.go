package fakecloud

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Stats are a host's own books. Of the requests for tokens, Generations = Waiting + Running + Completed + Aborted + Failed.
type Stats struct {
	Requests    int // HTTP requests of any kind
	Refusals    int // answered 4xx, those of a fault not counted
	Faults      int // requests that some fault struck
	Connections int // open now
	Accepted    int // connections ever

	Generations int // requests that asked the engine for tokens
	Waiting     int // for a place in the batch
	Running     int // in the batch, reading their prompt or being decoded
	Completed   int // the last token was made; it may not have been sent yet
	Aborted     int // the client left
	Failed      int // cut off by a fault or by the end of the host

	PromptTokens int // of the generations admitted to the batch
	CachedTokens int // those of them found in the prefix cache
	OutputTokens int // made, sent or not

	Continued int // requests that went on with an answer begun elsewhere
	BadSeams  int // of those, the ones whose beginning is not what this model would have said

	Aborts []Abort // the last 512 at least
}

// Abort is a generation whose client left.
type Abort struct {
	Path   string
	Began  time.Time
	Seen   time.Time // when the connection told so
	Freed  time.Time // when its place in the batch was free again
	Tokens int       // made in vain
}

const maxAborts = 1024

// books keeps Stats and lets tests wait for them to change.
type books struct {
	mu      sync.Mutex // guards all below
	s       Stats
	changed chan struct{} // closed at the next change; nil while nobody waits
	ttft    histogram
	stops   map[string]int // completed, by finish_reason
}

func (b *books) update(f func(*Stats)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(&b.s)
	if b.changed != nil {
		close(b.changed)
		b.changed = nil
	}
}

func (s *Stats) abort(a Abort) {
	s.Aborted++
	if len(s.Aborts) >= maxAborts { // a copy: readers keep the old one
		s.Aborts = slices.Clone(s.Aborts[maxAborts/2:])
	}
	s.Aborts = append(s.Aborts, a)
}

// view returns the books and, while they do not satisfy the caller, what to wait for.
func (b *books) view(wait bool) (Stats, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.s
	s.Aborts = slices.Clip(s.Aborts)
	if wait && b.changed == nil {
		b.changed = make(chan struct{})
	}
	return s, b.changed
}

func (b *books) await(ctx context.Context, done func(Stats) bool) error {
	for {
		s, changed := b.view(true)
		if done(s) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (b *books) first(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ttft.add(d.Seconds())
}

func (b *books) finish(reasons ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stops == nil {
		b.stops = map[string]int{}
	}
	for _, r := range reasons {
		b.stops[r]++
	}
}

// bounds are the upper limits of the histogram's buckets, in seconds.
var bounds = [...]float64{0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160}

type histogram struct {
	counts [len(bounds) + 1]int // by bucket, not summed up; the last is above all bounds
	sum    float64
	n      int
}

func (h *histogram) add(x float64) {
	i, _ := slices.BinarySearch(bounds[:], x)
	h.counts[i]++
	h.sum += x
	h.n++
}

// Received is a request as it reached a host.
type Received struct {
	At        time.Time
	Method    string
	Path      string
	Query     string
	Header    http.Header // Host included; not to be changed
	Body      []byte      // at most the first 64 KiB, none for uploads; not to be changed
	BodyBytes int64
	BodyHash  string // SHA-256 in hex
}

const maxKeptBody = 64 << 10

// ring keeps the last requests.
type ring struct {
	mu   sync.Mutex // guards all below
	max  int
	last []Received
}

func (r *ring) add(q Received) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.last) >= r.max {
		r.last = slices.Delete(r.last, 0, len(r.last)-r.max+1)
	}
	r.last = append(r.last, q)
}

func (r *ring) all() []Received {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.last)
}
