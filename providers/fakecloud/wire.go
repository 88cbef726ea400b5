package fakecloud

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// field is a header line.
type field struct{ name, value string }

// sender puts one answer on the connection.
type sender interface {
	// head sends the head; length < 0 means chunked.
	head(status int, length int64, fields []field) error
	// write sends a part of the body at once.
	write(p []byte) error
	// end ends the body as it should.
	end() error
}

// httpSender answers through net/http.
type httpSender struct {
	w http.ResponseWriter
	c *http.ResponseController
}

func (s *httpSender) head(status int, length int64, fields []field) error {
	h := s.w.Header()
	h["Date"], h["Content-Type"] = nil, nil // ours are spelled as uvicorn does
	for _, f := range fields {
		h[f.name] = append(h[f.name], f.value)
	}
	if length >= 0 {
		h.Set("Content-Length", strconv.FormatInt(length, 10))
	}
	s.w.WriteHeader(status)
	return s.c.Flush()
}

func (s *httpSender) write(p []byte) error {
	if _, err := s.w.Write(p); err != nil {
		return err
	}
	return s.c.Flush()
}

func (s *httpSender) end() error { return nil }

// rawSender answers on a connection that was taken from net/http. A goroutine reads it to see the client leave.
type rawSender struct {
	c       net.Conn
	plan    *plan
	chunked bool
	deaf    atomic.Bool   // nobody reads any more
	done    chan struct{} // closed when nobody does
}

func newRawSender(w http.ResponseWriter, p *plan, left func()) (*rawSender, error) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Time{})
	s := &rawSender{c: c, plan: p, done: make(chan struct{})}
	go s.watch(rw.Reader, left)
	return s, nil
}

func (s *rawSender) watch(r *bufio.Reader, left func()) {
	defer close(s.done)
	for {
		if _, err := r.ReadByte(); err != nil {
			if !s.deaf.Load() {
				left()
			}
			return
		}
	}
}

// stopReading makes the connection as if the other end of the cable were cut.
func (s *rawSender) stopReading() {
	s.deaf.Store(true)
	_ = s.c.SetReadDeadline(time.Unix(1, 0))
	<-s.done
}

func (s *rawSender) head(status int, length int64, fields []field) error {
	var b strings.Builder
	if s.plan.has(Interim) {
		b.WriteString("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n")
	}
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\n", status, http.StatusText(status))
	for _, f := range fields {
		b.WriteString(f.name + ": " + f.value + "\r\n")
	}
	switch {
	case s.plan.has(ShortLength):
		length = max(1, length) / 2
		if length == 0 {
			length = 100 // a stream's
		}
	case s.plan.has(LongLength) && length >= 0:
		length += 100
	case s.plan.has(LongLength):
		length = 1 << 20
	case s.plan.end.Kind == noFault:
		b.WriteString("connection: close\r\n")
	}
	if s.chunked = length < 0; s.chunked {
		b.WriteString("transfer-encoding: chunked\r\n\r\n")
	} else {
		b.WriteString("content-length: " + strconv.FormatInt(length, 10) + "\r\n\r\n")
	}
	_, err := s.c.Write([]byte(b.String()))
	return err
}

func (s *rawSender) write(p []byte) error {
	if s.chunked {
		if len(p) == 0 {
			return nil
		}
		p = fmt.Appendf(nil, "%x\r\n%s\r\n", len(p), p)
	}
	_, err := s.c.Write(p)
	return err
}

func (s *rawSender) end() error {
	if !s.chunked {
		return nil
	}
	_, err := s.c.Write([]byte("0\r\n\r\n"))
	return err
}

// tcp is the connection below TLS, if there is any.
func (s *rawSender) tcp() net.Conn {
	if t, ok := s.c.(*tls.Conn); ok {
		return t.NetConn()
	}
	return s.c
}

// reset closes the connection with RST.
func (s *rawSender) reset() {
	c := s.tcp()
	if l, ok := c.(interface{ SetLinger(int) error }); ok {
		_ = l.SetLinger(0)
	}
	_ = c.Close()
}

// close closes the connection with FIN, as the end of the process does: without TLS's goodbye.
func (s *rawSender) close() {
	s.deaf.Store(true)
	_ = s.tcp().Close()
	<-s.done
}

// batchEvents is how many events Batched puts into one write.
const batchEvents = 8

// shaper writes a body in the looks that the plan asks for.
type shaper struct {
	ctx     context.Context
	plan    *plan
	out     sender
	pending []byte
	events  int  // in pending
	begun   bool // something was written
}

// event sends one server-sent event; name may be "".
func (s *shaper) event(name string, data []byte) error {
	eol, space := "\n", " "
	if s.plan.has(CRLF) {
		eol = "\r\n"
	}
	if s.plan.has(NoSpace) {
		space = ""
	}
	var b bytes.Buffer
	if s.plan.has(Comments) {
		b.WriteString(": still here" + eol + eol)
	}
	if name != "" {
		b.WriteString("event:" + space + name + eol)
	}
	if cut := structuralComma(data); s.plan.has(MultiLine) && cut > 0 {
		b.WriteString("data:" + space)
		b.Write(data[:cut])
		b.WriteString(eol)
		data = data[cut:]
	}
	b.WriteString("data:" + space)
	b.Write(data)
	b.WriteString(eol + eol)
	return s.push(b.Bytes())
}

// structuralComma returns the position behind the first comma of JSON that is in no string, where a line end does no
// harm; 0 when there is none.
func structuralComma(data []byte) int {
	quoted := false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case !quoted && c == ',':
			return i + 1
		}
	}
	return 0
}

// push sends p in the writes that the plan asks for. Some of it may be held back until the next push or flush.
func (s *shaper) push(p []byte) error {
	if !s.begun && s.plan.has(BOM) {
		s.pending = append(s.pending, "\ufeff"...)
	}
	s.begun = true
	s.pending = append(s.pending, p...)
	s.events++
	keep := 0
	switch {
	case s.plan.has(Batched) && s.events < batchEvents:
		return nil
	case s.plan.has(Ragged) && s.plan.rng.IntN(2) == 0:
		keep = s.plan.rng.IntN(len(s.pending))
	}
	return s.drain(keep)
}

func (s *shaper) flush() error { return s.drain(0) }

// drain writes all but keep bytes of what is pending.
func (s *shaper) drain(keep int) error {
	s.events = 0
	p := s.pending[:len(s.pending)-keep]
	s.pending = append([]byte(nil), s.pending[len(s.pending)-keep:]...)
	for len(p) > 0 {
		n := s.cut(p)
		if err := s.out.write(p[:n]); err != nil {
			return err
		}
		p = p[n:]
		if f, ok := s.plan.shape(Drip); ok {
			if err := Pause(s.ctx, cmp.Or(f.Delay, time.Millisecond)); err != nil {
				return err
			}
		}
	}
	return nil
}

// cut is how much of p goes into the next write.
func (s *shaper) cut(p []byte) int {
	switch {
	case s.plan.has(Drip):
		return 1
	case s.plan.has(SplitChars):
		for i := 1; i < len(p); i++ {
			if p[i-1] >= 0xc0 && p[i]&0xc0 == 0x80 {
				return i
			}
		}
	case s.plan.has(Ragged):
		return 1 + s.plan.rng.IntN(len(p))
	}
	return len(p)
}

// Pause waits for d of the wall clock, and less with the context's error when that ends first.
func Pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
