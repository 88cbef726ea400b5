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
}

// Client holds a pool of connections for each endpoint.
type Client struct {
	opt   Options
	hosts atomic.Pointer[map[endpoint.ID]*Host]
}

// New returns a Client without hosts.
func New(o Options) *Client {
	c := &Client{opt: Options{
		Connect:      orDuration(o.Connect, 3*time.Second),
		Send:         orDuration(o.Send, 30*time.Second),
		UpstreamIdle: orDuration(o.UpstreamIdle, 4*time.Second),
		MaxEvent:     o.MaxEvent,
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
		if _, err := newHost(&eps[i], c.opt); err != nil {
			return fmt.Errorf("endpoint %s: %w", eps[i].ID, err)
		}
	}
	return nil
}

// Update makes eps the set of hosts. Hosts whose address, key and TLS stay the same keep their
// connections; those that fell out close their idle ones. On an error nothing changes. Calls must
// not overlap.
func (c *Client) Update(eps []endpoint.Endpoint) error {
	old := *c.hosts.Load()
	next := make(map[endpoint.ID]*Host, len(eps))
	for i := range eps {
		ep := &eps[i]
		if h := old[ep.ID]; h != nil && h.base == ep.BaseURL && h.key == ep.APIKey && h.tls == ep.TLS {
			next[ep.ID] = h
			continue
		}
		h, err := newHost(ep, c.opt)
		if err != nil {
			return fmt.Errorf("endpoint %s: %w", ep.ID, err)
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

// CloseIdle closes every idle connection.
func (c *Client) CloseIdle() {
	for _, h := range *c.hosts.Load() {
		h.pool.closeIdle()
	}
}

// Host is where one endpoint is reached.
type Host struct {
	id   endpoint.ID
	base string
	key  endpoint.Secret
	tls  endpoint.TLS

	prefix string // path in front of "/chat/completions"
	head   string // header lines that every request to it carries, the request line excepted
	opt    Options
	pool   connPool
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

func newHost(ep *endpoint.Endpoint, o Options) (*Host, error) {
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
	port := u.Port()
	var cfg *tls.Config
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
	h := &Host{id: ep.ID, base: ep.BaseURL, key: ep.APIKey, tls: ep.TLS, opt: o, prefix: strings.TrimRight(u.EscapedPath(), "/")}
	h.head = "Host: " + u.Host + "\r\nUser-Agent: headrace\r\n"
	if ep.APIKey != "" {
		h.head += "Authorization: Bearer " + ep.APIKey.Reveal() + "\r\n"
	}
	addr := net.JoinHostPort(u.Hostname(), port)
	hc := &fasthttp.HostClient{
		Addr:                addr,
		MaxConns:            1 << 20, // the router limits what is in flight
		MaxIdleConnDuration: o.UpstreamIdle,
		ConnPoolStrategy:    fasthttp.LIFO,
		Dial: func(string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(context.Background(), o.Connect)
			defer cancel()
			return dial(ctx, addr, cfg)
		},
	}
	h.pool = newPool(hc.AcquireConn, hc.ReleaseConn, hc.CloseConn, hc.CloseIdleConnections)
	return h, nil
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
	return newConn(nc), nil
}

func clientTLS(t endpoint.TLS, host string) (*tls.Config, error) {
	cfg, err := t.Config(host)
	if err != nil {
		return nil, err
	}
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(64) // a resumed handshake costs half
	return cfg, nil
}
