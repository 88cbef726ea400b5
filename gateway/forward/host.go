// Package forward carries one attempt of one request to one host: connection, request, head, body,
// each phase with its own deadline, and an abort that works at any moment. It is the only sender of
// inference traffic.
//
// It uses fasthttp's HostClient for its pool of connections and fasthttp's parser for the response
// head, but sends and reads by itself: HostClient.Do can be neither cancelled nor given a deadline
// a phase, and hands a stream on one upstream chunk at a time.
package forward

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"headrace/router/endpoint"
)

// Options bound the attempts of a Client. Zero durations mean the defaults named here.
type Options struct {
	Connect      time.Duration // dial and TLS handshake; default 3 s
	Send         time.Duration // writing a request that makes no progress; default 30 s
	UpstreamIdle time.Duration // how long an idle connection is kept; default 4 s, under uvicorn's 5 s
	MaxEvent     int           // largest event or head held whole, in bytes; default 1 MiB
	// Translate returns the handler that stands for an endpoint which does not speak plain OpenAI HTTP: it gets
	// requests below /v1 and answers them. Nil, or a nil handler, means that the endpoint is spoken to as it is.
	Translate func(ep *endpoint.Endpoint) http.Handler
}

// Client holds a pool of connections for each endpoint.
type Client struct {
	opt   Options
	hosts atomic.Pointer[map[endpoint.ID]*Host]
	local local
}

// New returns a Client without hosts.
func New(o Options) *Client {
	c := &Client{opt: Options{
		Connect:      orDuration(o.Connect, 3*time.Second),
		Send:         orDuration(o.Send, 30*time.Second),
		UpstreamIdle: orDuration(o.UpstreamIdle, 4*time.Second),
		MaxEvent:     o.MaxEvent,
		Translate:    o.Translate,
	}}
	if c.opt.MaxEvent <= 0 {
		c.opt.MaxEvent = 1 << 20
	}
	c.hosts.Store(&map[endpoint.ID]*Host{})
	return c
}

func orDuration(d, def time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return def
}

// Check tells whether Update would take eps, and changes nothing.
func (c *Client) Check(eps []endpoint.Endpoint) error {
	for i := range eps {
		if _, err := c.newHost(&eps[i]); err != nil {
			return fmt.Errorf("endpoint %s: %w", eps[i].ID, err)
		}
	}
	return nil
}

// Usable returns those of eps that Update would take, and why it would not take the others. One host that cannot be reached as
// described takes none of the others away.
func (c *Client) Usable(eps []endpoint.Endpoint) (usable []endpoint.Endpoint, err error) {
	old := *c.hosts.Load()
	usable = make([]endpoint.Endpoint, 0, len(eps))
	for i := range eps {
		if h := old[eps[i].ID]; h == nil || !h.same(&eps[i]) {
			if _, herr := c.newHost(&eps[i]); herr != nil {
				err = errors.Join(err, fmt.Errorf("endpoint %s: %w", eps[i].ID, herr))
				continue
			}
		}
		usable = append(usable, eps[i])
	}
	return usable, err
}

// same tells whether the host is the one that ep describes.
func (h *Host) same(ep *endpoint.Endpoint) bool {
	return h.base == ep.BaseURL && h.key == ep.APIKey && h.tls == ep.TLS && h.dialect == ep.Dialect
}

// Update makes eps the set of hosts. Hosts whose address, key and TLS stay the same keep their
// connections; those that fell out close their idle ones. On an error nothing changes. Calls must
// not overlap.
func (c *Client) Update(eps []endpoint.Endpoint) error {
	old := *c.hosts.Load()
	next := make(map[endpoint.ID]*Host, len(eps))
	for i := range eps {
		ep := &eps[i]
		if h := old[ep.ID]; h != nil && h.same(ep) {
			next[ep.ID] = h
			continue
		}
		h, err := c.newHost(ep)
		if err != nil {
			return fmt.Errorf("endpoint %s: %w", ep.ID, err)
		}
		if was := old[ep.ID]; was != nil {
			h.serving = was.serving
		}
		next[ep.ID] = h
	}
	c.hosts.Store(&next)
	for id, h := range old {
		if next[id] != h {
			h.pool.closeIdle()
		}
	}
	return nil
}

// Host returns the host of an endpoint, or nil when discovery has dropped it.
func (c *Client) Host(id endpoint.ID) *Host { return (*c.hosts.Load())[id] }

// Interrupt calls every attempt at the endpoint away from it, because it is leaving: More and AwaitHead return ErrInterrupted at
// once. It returns how many there were, those at addresses that the endpoint has left included.
func (c *Client) Interrupt(id endpoint.ID) int {
	h := c.Host(id)
	if h == nil {
		return 0
	}
	return h.Interrupt()
}

// Interrupt is Client.Interrupt for an endpoint that may have left the set by now.
func (h *Host) Interrupt() int { return h.serving.call() }

// CloseIdle closes every idle connection.
func (c *Client) CloseIdle() {
	for _, h := range *c.hosts.Load() {
		h.pool.closeIdle()
	}
}

// Close ends the translators and what they still do. No attempt may begin afterwards.
func (c *Client) Close() {
	c.CloseIdle()
	c.local.close()
}

// Host is where one endpoint is reached.
type Host struct {
	id   endpoint.ID
	base string
	key  endpoint.Secret
	tls  endpoint.TLS

	dialect endpoint.Dialect

	prefix string // path in front of "/chat/completions"
	head   string // header lines that every request to it carries, the request line excepted
	opt    Options
	pool   connPool

	serving *crowd // of its endpoint, at this address and those that it had before
}

// connPool hides that fasthttp's connection handles are of an unexported type.
type connPool interface {
	get() (*conn, error)
	put(c *conn)
	close(c *conn)
	closeIdle()
}

type pool[C interface{ Conn() net.Conn }] struct {
	acquire func(time.Duration, bool) (C, error)
	release func(C)
	discard func(C)
	idle    func()
}

func newPool[C interface{ Conn() net.Conn }](acquire func(time.Duration, bool) (C, error), release, discard func(C), idle func()) connPool {
	return &pool[C]{acquire, release, discard, idle}
}

func (p *pool[C]) get() (*conn, error) {
	h, err := p.acquire(0, false)
	if err != nil {
		return nil, err
	}
	c := h.Conn().(*conn)
	c.reused = c.handle != nil
	c.handle = h
	return c, nil
}

func (p *pool[C]) put(c *conn)   { p.release(c.handle.(C)) }
func (p *pool[C]) close(c *conn) { p.discard(c.handle.(C)) }
func (p *pool[C]) closeIdle()    { p.idle() }

func (c *Client) newHost(ep *endpoint.Endpoint) (*Host, error) {
	o := c.opt
	u, err := url.Parse(ep.BaseURL)
	if err != nil {
		return nil, errors.New("base URL cannot be parsed")
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || u.User != nil || u.RawQuery != "" {
		return nil, errors.New("base URL must be http(s)://host[:port][/path]")
	}
	if strings.ContainsAny(ep.APIKey.Reveal(), "\r\n\x00") {
		return nil, errors.New("API key contains a line break")
	}
	h := &Host{id: ep.ID, base: ep.BaseURL, key: ep.APIKey, tls: ep.TLS, dialect: ep.Dialect, opt: o, serving: new(crowd)}
	var connect func(context.Context) (net.Conn, error)
	if ep.Dialect == endpoint.OpenAI {
		connect, err = h.direct(u, ep)
	} else {
		connect, err = h.translated(c, ep)
	}
	if err != nil {
		return nil, err
	}
	hc := &fasthttp.HostClient{
		Addr:                u.Host,
		MaxConns:            1 << 20, // the router limits what is in flight
		MaxIdleConnDuration: o.UpstreamIdle,
		ConnPoolStrategy:    fasthttp.LIFO,
		Dial:                func(string) (net.Conn, error) { return dialApart(connect, o.Connect) },
	}
	h.pool = newPool(hc.AcquireConn, hc.ReleaseConn, hc.CloseConn, hc.CloseIdleConnections)
	return h, nil
}

// dialApart opens a connection on a stack of its own: dialling needs more of it than all else that a request does before its answer
// comes, and a stack that has grown stays with the caller's connection, held streams and all.
func dialApart(connect func(context.Context) (net.Conn, error), within time.Duration) (net.Conn, error) {
	var c net.Conn
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if r := recover(); r != nil { // it would end the process: nobody above this one recovers
				err = fmt.Errorf("panic: %v", r)
			}
		}()
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		var nc net.Conn
		if nc, err = connect(ctx); err == nil {
			c = newConn(nc)
		}
	}()
	<-done
	return c, err
}

// direct prepares h for an endpoint that is spoken to over the network.
func (h *Host) direct(u *url.URL, ep *endpoint.Endpoint) (connect func(context.Context) (net.Conn, error), err error) {
	var cfg *tls.Config
	port := u.Port()
	if u.Scheme == "https" {
		if cfg, err = clientTLS(ep.TLS, u.Hostname()); err != nil {
			return nil, err
		}
		if port == "" {
			port = "443"
		}
	} else if port == "" {
		port = "80"
	}
	h.prefix = strings.TrimRight(u.EscapedPath(), "/")
	h.head = "Host: " + u.Host + "\r\nUser-Agent: headrace\r\n"
	if ep.Provider != "static" { // what rented hosts stand behind compresses streams unless asked not to
		h.head += "Accept-Encoding: identity\r\n"
	}
	if ep.APIKey != "" {
		h.head += "Authorization: Bearer " + ep.APIKey.Reveal() + "\r\n"
	}
	addr := net.JoinHostPort(u.Hostname(), port)
	return func(ctx context.Context) (net.Conn, error) { return dial(ctx, addr, cfg) }, nil
}

// translated prepares h for an endpoint that a translator stands for.
func (h *Host) translated(c *Client, ep *endpoint.Endpoint) (connect func(context.Context) (net.Conn, error), err error) {
	var handler http.Handler
	if c.opt.Translate != nil {
		handler = c.opt.Translate(ep)
	}
	if handler == nil {
		return nil, fmt.Errorf("nobody here speaks %s", ep.Dialect)
	}
	h.prefix, h.head = "/v1", "Host: translator\r\n"
	return func(ctx context.Context) (net.Conn, error) { return c.local.dial(ctx, handler) }, nil
}

func dial(ctx context.Context, addr string, cfg *tls.Config) (net.Conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if cfg != nil {
		tc := tls.Client(nc, cfg)
		if err := tc.HandshakeContext(ctx); err != nil {
			_ = nc.Close()
			return nil, fmt.Errorf("TLS handshake: %w", err)
		}
		nc = tc
	}
	return nc, nil
}

func clientTLS(t endpoint.TLS, host string) (*tls.Config, error) {
	cfg, err := t.Config(host)
	if err != nil {
		return nil, err
	}
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(64) // a resumed handshake costs half
	return cfg, nil
}
