// Package mock is an OpenAI-compatible upstream on loopback that does no work. It speaks HTTP/1.1
// straight over TCP with responses rendered beforehand, so that it stays cheaper than any proxy put
// in front of it.
//
// Each streamed content chunk carries StampMark and the send time in Unix nanoseconds, from which a
// client on the same machine reads the transit time of that very chunk.
//
// It answers POST /v1/chat/completions (plain or SSE; the usage chunk only if asked for), GET
// /v1/models, GET /health, and POST /control?tokens=64&gap=20ms&delay=0s&body=256&batch=1&usage=0,
// which changes the settings for requests that start afterwards and answers with the process id.
package mock

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"headrace/cmd/loadgen/internal/h1"
)

// acceptRetry is the pause after a failed accept, which means no descriptors are left.
const acceptRetry = 10 * time.Millisecond

// Server is a mock upstream.
type Server struct {
	current atomic.Pointer[rendered]

	mu    sync.Mutex // guards conns and ended
	conns map[net.Conn]struct{}
	ended bool
}

// New returns a server with the given settings, or what is wrong with them.
func New(s Settings) (*Server, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	m := &Server{conns: map[net.Conn]struct{}{}}
	m.current.Store(s.render())
	return m, nil
}

// Serve answers on l until ctx is done, then closes l and all connections and waits for their
// goroutines, which a stream may delay by one Gap or Delay. It returns nil when ctx ended it. l must
// listen on a loopback address.
func (m *Server) Serve(ctx context.Context, l net.Listener) error {
	if err := h1.CheckLoopback(l.Addr().String()); err != nil {
		return errors.Join(err, l.Close())
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { _ = l.Close(); m.closeAll() })
	defer stop()
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = c.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			m.closeAll()
			return err
		case err != nil:
			select {
			case <-time.After(acceptRetry):
			case <-ctx.Done():
			}
			continue
		}
		if m.add(c) {
			wg.Go(func() {
				defer m.remove(c)
				(&conn{c: c, in: make([]byte, 4096)}).serve(&m.current)
			})
		}
	}
}

func (m *Server) closeAll() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended = true
	for c := range m.conns {
		_ = c.Close()
	}
}

func (m *Server) add(c net.Conn) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		_ = c.Close()
		return false
	}
	m.conns[c] = struct{}{}
	return true
}

func (m *Server) remove(c net.Conn) {
	_ = c.Close()
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.conns, c)
}

func (c *conn) serve(current *atomic.Pointer[rendered]) {
	for {
		req, err := c.read()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				_ = c.refuse(err)
			}
			return
		}
		if err := c.answer(req, current); err != nil || req.close {
			return
		}
	}
}

func (c *conn) answer(q request, current *atomic.Pointer[rendered]) error {
	s := current.Load()
	switch q.path {
	case "/v1/chat/completions":
		if q.method != http.MethodPost {
			return c.write(failure(http.StatusMethodNotAllowed, "use POST"))
		}
		if s.Delay > 0 {
			time.Sleep(s.Delay) //nolint:forbidigo // cheaper than a timer with a context, and bounded by MaxPause
		}
		if q.stream {
			return c.stream(s, q.usage || s.Usage)
		}
		return c.write(s.full)
	case "/v1/models":
		return c.write(s.models)
	case "/control":
		changed, err := s.apply(q.query)
		if err != nil {
			return c.write(failure(http.StatusBadRequest, err.Error()))
		}
		current.Store(changed.render())
		return c.write(response(http.StatusOK, "text/plain", strconv.AppendInt(nil, int64(os.Getpid()), 10)))
	case "/health", "/", "/v1":
		return c.write(response(http.StatusOK, "application/json", []byte(`{"status":"ok"}`)))
	}
	return c.write(failure(http.StatusNotFound, "not found"))
}

// stream sends an SSE answer. Content chunks keep to an absolute schedule, so that a slow reader does
// not lower the offered rate.
func (c *conn) stream(s *rendered, usage bool) error {
	if err := c.write(s.open); err != nil {
		return err
	}
	start := time.Now()
	batch := s.Batch
	if s.Gap > 0 {
		batch = 1
	}
	for i := 0; i < s.Tokens; {
		if s.Gap > 0 && i > 0 {
			time.Sleep(time.Until(start.Add(time.Duration(i) * s.Gap))) //nolint:forbidigo // as above, for every token
		}
		c.out = c.out[:0]
		now := time.Now().UnixNano()
		for k := 0; k < batch && i < s.Tokens; k++ {
			at := len(c.out) + s.stampEnd - StampLen
			c.out = append(c.out, s.chunk...)
			strconv.AppendInt(c.out[:at], now, 10) // over the zeros: always StampLen digits
			i++
		}
		if err := c.write(c.out); err != nil {
			return err
		}
	}
	if usage {
		return c.write(s.endUsage)
	}
	return c.write(s.end)
}
