package gateway

import (
	"math/bits"
	"time"

	"headrace/gateway/ledger"
	"headrace/gateway/openai"
)

// meter measures the tokens of one answer as they pass.
type meter struct {
	firstAt  time.Time // first content token came
	lastAt   time.Time // newest content token came
	handedAt time.Time // first content token was written to the caller
	outputs  int64     // content deltas
	finishes int64     // choices that gave a finish_reason
	finish   [16]byte  // the first of them
	finishN  uint8
	usage    openai.Usage
	hasUsage bool
	done     bool // the stream's own end mark was seen
	failed   bool // an error event was passed on, or an abort
	gaps     gapHistogram
}

// see takes one event that came at now.
func (m *meter) see(c *openai.Chunk, now time.Time) {
	if c.Content {
		if m.outputs == 0 {
			m.firstAt = now
		} else {
			m.gaps.add(now.Sub(m.lastAt))
		}
		m.lastAt = now
		m.outputs += int64(max(1, c.Outputs))
	}
	if c.Finish {
		if m.finishes == 0 {
			m.finishN = uint8(copy(m.finish[:], c.FinishReason))
		}
		m.finishes += int64(max(1, c.Finishes))
	}
	if c.HasUsage {
		m.merge(c.Usage)
	}
	m.done = m.done || c.Done
	m.failed = m.failed || c.Error || c.Aborted()
}

// merge takes newer figures for older ones; Anthropic reports prompt and output in separate events.
func (m *meter) merge(u openai.Usage) {
	if !m.hasUsage {
		m.usage, m.hasUsage = u, true
		return
	}
	for _, p := range [...]struct{ to, from *int64 }{
		{&m.usage.Prompt, &u.Prompt},
		{&m.usage.Completion, &u.Completion},
		{&m.usage.Cached, &u.Cached},
		{&m.usage.Reasoning, &u.Reasoning},
	} {
		if *p.from >= 0 {
			*p.to = *p.from
		}
	}
}

// output returns the number of output tokens, and whether it was counted from events because the
// host reported none.
func (m *meter) output() (n int64, estimated bool) {
	if m.hasUsage && m.usage.Completion >= 0 {
		return m.usage.Completion, false
	}
	return m.outputs, true
}

// tps is output tokens per second between the first and the last token, 0 when there are fewer than two.
func (m *meter) tps() float64 {
	n, _ := m.output()
	d := m.lastAt.Sub(m.firstAt).Seconds()
	if n < 2 || d <= 0 {
		return 0
	}
	return float64(n-1) / d // the first one marks the begin
}

// gapHistogram counts gaps between tokens in four steps an octave, from 1 µs up; quantiles are right
// within an eighth. It takes no memory beyond itself.
type gapHistogram struct {
	n [gapBuckets]uint16
}

const gapBuckets = 4 * 32

func (h *gapHistogram) add(d time.Duration) {
	i := gapIndex(d)
	if h.n[i]++; h.n[i] == 1<<16-1 { // a very long stream: keep the shape, halve the counts
		for j := range h.n {
			h.n[j] /= 2
		}
	}
}

// merge adds what o counted.
func (h *gapHistogram) merge(o *gapHistogram) {
	for i, n := range o.n {
		h.n[i] = uint16(min(uint32(h.n[i])+uint32(n), 1<<16-2)) //nolint:gosec // bounded
	}
}

func gapIndex(d time.Duration) int {
	us := uint64(max(0, d.Microseconds()))
	if us < 4 {
		return int(us)
	}
	e := bits.Len64(us) - 1         // 2^e <= us
	i := 4*(e-1) + int(us>>(e-2)&3) // two bits below the leading one
	return min(i, gapBuckets-1)     //nolint:gosec // small
}

// coarse says in which of ledger.Gaps each bucket counts, by its middle.
var coarse = func() (of [gapBuckets]uint8) {
	for i := range of {
		s := gapValue(i).Seconds()
		for int(of[i]) < len(ledger.GapBounds) && s > ledger.GapBounds[of[i]] {
			of[i]++
		}
	}
	return of
}()

// export adds the counts to g.
func (h *gapHistogram) export(g *ledger.Gaps) {
	for i, n := range h.n {
		if n > 0 {
			g.N[coarse[i]] += uint32(n)
			g.Sum += time.Duration(n) * gapValue(i)
		}
	}
}

// quantile returns the gap that a share q of all does not exceed, 0 when there is none.
func (h *gapHistogram) quantile(q float64) time.Duration {
	var total, seen float64
	for _, n := range h.n {
		total += float64(n)
	}
	if total == 0 {
		return 0
	}
	for i, n := range h.n {
		if seen += float64(n); n > 0 && seen >= q*total {
			return gapValue(i)
		}
	}
	return gapValue(gapBuckets - 1)
}

// gapValue is the middle of bucket i.
func gapValue(i int) time.Duration {
	if i < 4 {
		return time.Duration(i) * time.Microsecond
	}
	e := i/4 + 1
	low := uint64(4+i%4) << (e - 2)
	return time.Duration(low)*time.Microsecond + time.Duration(uint64(1)<<(e-2))*time.Microsecond/2
}
