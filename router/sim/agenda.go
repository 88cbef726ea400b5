package sim

import (
	"hash/fnv"
	"math"
	"math/rand/v2"
	"time"
)

// agenda is virtual time and what is to happen in it. Things of the same time happen in the order they were entered.
type agenda struct {
	now  float64 // seconds since the start
	seq  uint64
	heap []entry
}

type entry struct {
	at  float64
	seq uint64
	do  func()
}

func (e *entry) before(f *entry) bool { return e.at < f.at || e.at == f.at && e.seq < f.seq }

// at enters something; the past is now.
func (q *agenda) at(t float64, do func()) {
	q.seq++
	q.heap = append(q.heap, entry{max(t, q.now), q.seq, do})
	h, i := q.heap, len(q.heap)-1
	for i > 0 {
		p := (i - 1) / 2
		if h[p].before(&h[i]) {
			break
		}
		h[p], h[i] = h[i], h[p]
		i = p
	}
}

// in enters something that happens after d seconds.
func (q *agenda) in(d float64, do func()) { q.at(q.now+d, do) }

// run lets everything happen up to a time.
func (q *agenda) run(until float64) {
	for len(q.heap) > 0 && q.heap[0].at <= until {
		e := q.pop()
		q.now = e.at
		e.do()
	}
}

func (q *agenda) pop() entry {
	h := q.heap
	top, n := h[0], len(h)-1
	h[0] = h[n]
	h[n] = entry{}
	h = h[:n]
	q.heap = h
	for i := 0; ; {
		c := 2*i + 1
		if c >= n {
			break
		}
		if c+1 < n && h[c+1].before(&h[c]) {
			c++
		}
		if h[i].before(&h[c]) {
			break
		}
		h[i], h[c] = h[c], h[i]
		i = c
	}
	return top
}

// epoch is when a simulation begins, for those who want a date.
func epoch() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }

func (q *agenda) clock() time.Time { return epoch().Add(duration(q.now)) }

func duration(seconds float64) time.Duration {
	return time.Duration(math.Round(seconds * float64(time.Second)))
}

// dice is a stream of random numbers of its own for one concern, so that what one policy draws changes nothing of what
// happens to another.
func dice(seed uint64, concern string, i int) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(concern))
	return rand.New(rand.NewPCG(seed, h.Sum64()+uint64(i)*0x9e3779b97f4a7c15)) //nolint:gosec // not for secrets
}

// normal draws a number from exp(sigma·N(0,1)).
func logNormal(r *rand.Rand, sigma float64) float64 { return math.Exp(sigma * r.NormFloat64()) }
