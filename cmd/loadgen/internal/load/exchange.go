package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"headrace/cmd/loadgen/internal/h1"
	"headrace/cmd/loadgen/internal/hist"
	"headrace/cmd/loadgen/internal/mock"
)

// tally collects what all workers of one run see.
type tally struct {
	ok, errs  atomic.Uint64
	tokens    atomic.Uint64 // content chunks received
	latency   hist.H        // of a whole exchange
	ttft      hist.H        // request sent to first content chunk
	gap       hist.H        // between content chunks
	transit   hist.H        // the mock's send time to arrival, per content chunk
	lastError atomic.Pointer[string]
}

func (t *tally) fail(err error) {
	t.errs.Add(1)
	s := err.Error()
	t.lastError.Store(&s)
}

// expected is what a right answer holds.
type expected struct {
	stream  bool
	tokens  int    // content chunks of a stream
	usage   bool   // a usage chunk is asked for; one that was not asked for is wrong
	content []byte // text of an answer that is no stream, as in its JSON
}

// worker runs exchanges one after another over one keep-alive connection.
type worker struct {
	t      *Target
	tally  *tally
	want   expected
	bufLen int
	limit  time.Duration // for one exchange

	conn   *h1.Conn
	detach func() bool // conn no longer closes with the context
	body   []byte      // of an answer, or an SSE line cut off by the end of a piece
}

// exchange does one request; since is when its latency starts to count. The connection closes when
// ctx ends, which ends the exchange.
func (w *worker) exchange(ctx context.Context, since time.Time) error {
	if w.conn == nil {
		c, err := h1.Dial(w.t.addr, w.bufLen)
		if err != nil {
			return err
		}
		w.conn = c
		w.detach = context.AfterFunc(ctx, func() { _ = c.Close() })
	}
	h, err := w.roundTrip(since)
	if err != nil || h.Close {
		w.close()
	}
	return err
}

func (w *worker) close() {
	if w.conn != nil {
		w.detach()
		_ = w.conn.Close()
		w.conn = nil
	}
}

func (w *worker) roundTrip(since time.Time) (h1.Head, error) {
	if err := w.conn.SetDeadline(time.Now().Add(w.limit)); err != nil {
		return h1.Head{}, err
	}
	req := w.t.plain
	if w.want.stream {
		req = w.t.sse
	}
	if err := w.conn.Write(req); err != nil {
		return h1.Head{}, err
	}
	h, err := w.conn.ReadHead()
	if err != nil {
		return h, err
	}
	switch {
	case h.Status != http.StatusOK:
		err = w.readFailure(h)
	case w.want.stream:
		err = w.readStream(h, since)
	default:
		err = w.readAnswer(h)
	}
	if err != nil {
		return h, err
	}
	w.tally.latency.Record(time.Since(since))
	w.tally.ok.Add(1)
	return h, nil
}

func (w *worker) readFailure(h h1.Head) error {
	w.body = w.body[:0]
	err := w.conn.ReadBody(h, func(p []byte) { w.body = append(w.body, p...) })
	return errors.Join(fmt.Errorf("status %d: %.200s", h.Status, w.body), err)
}

var (
	isAnswer   = []byte(`"chat.completion"`)
	dataPrefix = []byte("data:")
	done       = []byte("[DONE]")
	usageKey   = []byte(`"usage":{`)
	stampMark  = []byte{mock.StampMark}
)

// readAnswer reads an answer that is no stream and compares its text with what the mock says.
func (w *worker) readAnswer(h h1.Head) error {
	w.body = w.body[:0]
	if err := w.conn.ReadBody(h, func(p []byte) { w.body = append(w.body, p...) }); err != nil {
		return err
	}
	if !bytes.Contains(w.body, isAnswer) || !bytes.Contains(w.body, w.want.content) {
		return fmt.Errorf("not the mock's answer: %.200q", w.body)
	}
	return nil
}

// maxStale is how much older than its request a stream's first token may seem to be: the wall clock may
// be set back a little in between.
const maxStale = 100 * time.Millisecond

// progress is how far one stream has come.
type progress struct {
	since  time.Time
	last   time.Time // arrival of the last content chunk
	sent   int64     // its stamp
	tokens int
	usage  bool
	done   bool
}

// readStream reads an SSE answer and checks that it is whole, in order and ends as it should.
func (w *worker) readStream(h h1.Head, since time.Time) error {
	s := progress{since: since}
	w.body = w.body[:0]
	var bad error
	err := w.conn.ReadBody(h, func(p []byte) {
		now := time.Now()
		for len(p) > 0 && bad == nil {
			i := bytes.IndexByte(p, '\n')
			if i < 0 {
				w.body = append(w.body, p...)
				return
			}
			line := p[:i]
			if len(w.body) > 0 {
				w.body = append(w.body, line...)
				line = w.body
			}
			if len(line) > 1 {
				bad = s.line(w.tally, line, now)
			}
			w.body = w.body[:0]
			p = p[i+1:]
		}
	})
	w.tally.tokens.Add(uint64(s.tokens))
	switch {
	case err != nil:
		return fmt.Errorf("after %d of %d tokens: %w", s.tokens, w.want.tokens, err)
	case bad != nil:
		return bad
	case s.tokens != w.want.tokens || !s.done:
		return fmt.Errorf("stream had %d of %d tokens, [DONE]: %v", s.tokens, w.want.tokens, s.done)
	case s.usage != w.want.usage:
		return fmt.Errorf("usage chunk: got %v, want %v", s.usage, w.want.usage)
	}
	return nil
}

// line takes one line of a stream; anything but data passes.
func (s *progress) line(y *tally, line []byte, now time.Time) error {
	if !bytes.HasPrefix(line, dataPrefix) {
		return nil
	}
	if s.done {
		return fmt.Errorf("after [DONE]: %.80q", line)
	}
	_, digits, ok := bytes.Cut(line, stampMark)
	if !ok {
		s.done = bytes.Contains(line, done)
		s.usage = s.usage || bytes.Contains(line, usageKey)
		return nil
	}
	sent, ok := stamp(digits)
	if ok && s.tokens == 0 && sent < s.since.Add(-maxStale).UnixNano() {
		return fmt.Errorf("older than its request, from a cache? %.200q", line)
	}
	if !ok || sent < s.sent {
		return fmt.Errorf("token %d damaged or out of order: %.200q", s.tokens, line)
	}
	y.transit.Record(time.Duration(now.UnixNano() - sent))
	if s.tokens == 0 {
		y.ttft.Record(now.Sub(s.since))
	} else {
		y.gap.Record(now.Sub(s.last))
	}
	s.last, s.sent = now, sent
	s.tokens++
	return nil
}

// stamp reads the send time at the start of p.
func stamp(p []byte) (int64, bool) {
	if len(p) < mock.StampLen {
		return 0, false
	}
	var n int64
	for _, b := range p[:mock.StampLen] {
		if b < '0' || b > '9' {
			return 0, false
		}
		n = n*10 + int64(b-'0')
	}
	return n, true
}

// Probe does one plain exchange with a target, over a connection of its own.
func Probe(ctx context.Context, t *Target, body int) error {
	w := worker{t: t, tally: &tally{}, want: expected{content: []byte(mock.Content(body))}, bufLen: 16 << 10, limit: probeTimeout}
	defer w.close()
	return w.exchange(ctx, time.Now())
}

const probeTimeout = 5 * time.Second
