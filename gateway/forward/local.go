package forward

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"headrace/router/endpoint"
)

// Hosts that do not speak plain OpenAI HTTP are reached through a translator: a handler that answers as such a
// host would and does whatever its provider needs instead. It is dialled over a pipe, so that deadlines, the
// caller's leaving and the judging of answers are the same for all.

// local serves the far ends of pipes. One is shared by all hosts of a Client.
type local struct {
	mu     sync.Mutex // guards all below
	srv    *http.Server
	ln     *pipeListener
	served chan struct{} // closed when srv has returned
	closed bool
}

type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

// localConn is the server's end of a pipe.
type localConn struct {
	net.Conn
	handler http.Handler
	report  *endpoint.Report
}

// reporting is the client's end of a pipe.
type reporting struct {
	net.Conn
	report endpoint.Report
}

var errClosed = errors.New("the forwarder is closed")

// dial returns a pipe to handler.
func (l *local) dial(ctx context.Context, handler http.Handler) (net.Conn, error) {
	ln, err := l.listener()
	if err != nil {
		return nil, err
	}
	near, far := net.Pipe()
	c := &reporting{Conn: near}
	select {
	case ln.conns <- &localConn{Conn: far, handler: handler, report: &c.report}:
		return c, nil
	case <-ln.done:
		err = errClosed
	case <-ctx.Done():
		err = ctx.Err()
	}
	_, _ = near.Close(), far.Close()
	return nil, err
}

// listener starts the server when the first translated host is dialled.
func (l *local) listener() (*pipeListener, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errClosed
	}
	if l.ln == nil {
		l.ln = &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
		l.served = make(chan struct{})
		l.srv = &http.Server{
			Handler:           http.HandlerFunc(serveLocal),
			ErrorLog:          log.New(io.Discard, "", 0), // a translator's panic is http.ErrAbortHandler, which cuts its answer
			ReadHeaderTimeout: 10 * time.Second,
			ConnContext: func(ctx context.Context, c net.Conn) context.Context {
				lc := c.(*localConn)
				return endpoint.WithReport(context.WithValue(ctx, localKey{}, lc), lc.report)
			},
		}
		srv, ln, served := l.srv, l.ln, l.served
		go func() { defer close(served); _ = srv.Serve(ln) }()
	}
	return l.ln, nil
}

type localKey struct{}

func serveLocal(w http.ResponseWriter, r *http.Request) {
	r.Context().Value(localKey{}).(*localConn).handler.ServeHTTP(w, r)
}

// close ends the server and all that is still translated.
func (l *local) close() {
	l.mu.Lock()
	l.closed = true
	srv, served := l.srv, l.served
	l.mu.Unlock()
	if srv != nil {
		_ = srv.Close()
		<-served
	}
}

// Accept hands out the next pipe.
func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close lets no further pipe in.
func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr names no place.
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "translator", Net: "pipe"} }
