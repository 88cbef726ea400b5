package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"time"

	"headrace/gateway/listen"
)

// Listener is an address to serve on.
type Listener struct {
	net.Listener             // TCP
	TLS          *tls.Config // nil for plain HTTP
}

// Serve serves on lns until ctx is done, then drains: it takes no new connections and no new
// requests, lets running ones finish for Settings.Drain and ends the rest with an error event. It
// returns nil after a drain, whatever was cut, and owns lns.
func (s *Server) Serve(ctx context.Context, lns ...Listener) error {
	watched := make([]*listen.Listener, 0, len(lns))
	failed := make(chan error, len(lns))
	for _, ln := range lns {
		wl, err := listen.Watch(ln.Listener)
		if err != nil {
			for _, l := range watched {
				l.StopWatching()
			}
			for _, l := range lns {
				_ = l.Close()
			}
			return err
		}
		watched = append(watched, wl)
	}
	for i, ln := range lns {
		var l net.Listener = watched[i]
		if ln.TLS != nil {
			l = tls.NewListener(l, ln.TLS)
		}
		go func() { failed <- s.http.Serve(l) }()
	}
	var first error
	running := len(lns)
	select {
	case <-ctx.Done():
	case first = <-failed:
		running--
	}
	s.drain(watched)
	for _, l := range watched {
		_ = l.Close() // fasthttp closes those it had come to know by then
	}
	for range running {
		<-failed
	}
	for _, l := range watched {
		l.CloseAll()
		l.StopWatching()
	}
	if ctx.Err() != nil {
		return nil //nolint:nilerr // that ctx ended is how a server is stopped
	}
	if first == nil { // fasthttp takes every failed Accept for a wanted end
		first = errListener
	}
	return first
}

var errListener = errors.New("a listener stopped accepting connections")

func (s *Server) drain(ls []*listen.Listener) {
	s.draining.Store(true)
	s.room.Drain()
	ctx, cancel := context.WithTimeout(context.Background(), s.set.Load().Drain)
	defer cancel()
	s.shutdown(ctx)
	if s.inFlight.Load() > 0 {
		s.log.Warn("drain limit reached: ending requests", "in_flight", s.inFlight.Load())
		for _, l := range ls {
			l.AbortAll()
		}
		last, cancelLast := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancelLast()
		s.shutdown(last)
	}
	for _, l := range ls {
		l.CloseAll()
	}
}

// lastAnswers is how long a drain waits for answers that are settled but not wholly written.
const lastAnswers = 5 * time.Second

// shutdown closes the listeners and idle connections, and waits until no request runs or ctx is done.
func (s *Server) shutdown(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.http.ShutdownWithContext(ctx) // fails when ctx ends, which inFlight tells better
	}()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for s.inFlight.Load()+s.hedges.Load() > 0 && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	// What is open now is writing its last answer, or a connection without a request yet.
	grace := time.NewTimer(lastAnswers)
	defer grace.Stop()
	select {
	case <-done:
	case <-grace.C:
	case <-ctx.Done():
	}
	cancel()
	<-done
}
