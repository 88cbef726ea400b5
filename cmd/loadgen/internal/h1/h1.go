// Package h1 is a bare HTTP/1.1 client connection to loopback addresses. It exists so that the load
// generator costs as little CPU as possible beside what it measures: net/http would cost several
// times what the proxies under test do.
package h1

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"time"
)

// DialTimeout bounds the making of a connection.
const DialTimeout = 5 * time.Second

// Conn is one keep-alive client connection. Its methods are for one goroutine, but Close, which any
// goroutine may call to end a read or write in progress.
type Conn struct {
	c    net.Conn
	buf  []byte
	r, w int // buf[r:w] was read off the wire and not used yet
}

// Head is what a client needs to know of a response head.
type Head struct {
	Status  int
	Length  int64 // of the body in bytes, -1 when none is given
	Chunked bool
	Close   bool // the connection cannot be used again
}

// LoopbackAddr returns the host:port of u, and an error unless the host is a literal loopback
// address. Names are refused, "localhost" too: what they resolve to can change.
func LoopbackAddr(u *url.URL) (string, error) {
	if u.Scheme != "http" {
		return "", fmt.Errorf("%q: only http URLs can be measured", u.Redacted())
	}
	port := u.Port()
	if port == "" {
		port = "80"
	}
	addr := net.JoinHostPort(u.Hostname(), port)
	return addr, CheckLoopback(addr)
}

// CheckLoopback returns an error unless addr is a literal loopback IP address and a port.
func CheckLoopback(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("%q is not a loopback address", host)
	}
	return nil
}

// Dial connects to a loopback address. The buffer of bufSize bytes must hold the largest response head.
func Dial(addr string, bufSize int) (*Conn, error) {
	if err := CheckLoopback(addr); err != nil {
		return nil, err
	}
	c, err := net.DialTimeout("tcp", addr, DialTimeout)
	if err != nil {
		return nil, err
	}
	return NewConn(c, bufSize), nil
}

// NewConn speaks over a connection that exists already.
func NewConn(c net.Conn, bufSize int) *Conn {
	return &Conn{c: c, buf: make([]byte, bufSize)}
}

// Close closes the connection.
func (c *Conn) Close() error { return c.c.Close() }

// SetDeadline bounds all reads and writes to come.
func (c *Conn) SetDeadline(t time.Time) error { return c.c.SetDeadline(t) }

// Write sends p.
func (c *Conn) Write(p []byte) error {
	_, err := c.c.Write(p)
	return err
}

// fill reads more. An end of file is unexpected here: callers that may meet one say so.
func (c *Conn) fill() error {
	if c.r == c.w {
		c.r, c.w = 0, 0
	} else if c.w == len(c.buf) {
		if c.r == 0 {
			return errors.New("h1: response head longer than the buffer")
		}
		c.w = copy(c.buf, c.buf[c.r:c.w])
		c.r = 0
	}
	n, err := c.c.Read(c.buf[c.w:])
	c.w += n
	if n > 0 {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

var (
	crlf    = []byte("\r\n")
	headEnd = []byte("\r\n\r\n")
)

// head returns the bytes of a response head, valid until the next read.
func (c *Conn) head() ([]byte, error) {
	from := 0
	for {
		if i := bytes.Index(c.buf[c.r+from:c.w], headEnd); i >= 0 {
			end := c.r + from + i + len(headEnd)
			p := c.buf[c.r:end]
			c.r = end
			return p, nil
		}
		from = max(0, c.w-c.r-len(headEnd)+1)
		if err := c.fill(); err != nil {
			return nil, err
		}
	}
}

// ReadHead reads a status line and headers.
func (c *Conn) ReadHead() (Head, error) {
	h := Head{Length: -1}
	p, err := c.head()
	if err != nil {
		return h, err
	}
	line, fields, _ := bytes.Cut(p, crlf)
	if len(line) < len("HTTP/1.1 200") || !bytes.HasPrefix(line, []byte("HTTP/1.")) {
		return h, fmt.Errorf("h1: bad status line %.40q", line)
	}
	if h.Status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return h, fmt.Errorf("h1: bad status line %.40q", line)
	}
	h.Close = line[7] == '0'
	for field := range bytes.SplitSeq(fields, crlf) {
		name, value, ok := bytes.Cut(field, []byte(":"))
		if !ok {
			continue
		}
		value = bytes.TrimSpace(value)
		switch {
		case bytes.EqualFold(name, []byte("content-length")):
			h.Length, err = strconv.ParseInt(string(value), 10, 64)
			if err != nil || h.Length < 0 {
				return h, fmt.Errorf("h1: bad content-length %.40q", value)
			}
		case bytes.EqualFold(name, []byte("transfer-encoding")):
			if !bytes.EqualFold(value, []byte("chunked")) {
				return h, fmt.Errorf("h1: transfer-encoding %.40q", value)
			}
			h.Chunked = true
		case bytes.EqualFold(name, []byte("connection")):
			h.Close = bytes.EqualFold(value, []byte("close"))
		}
	}
	if h.Chunked && h.Length >= 0 {
		return h, errors.New("h1: both content-length and transfer-encoding")
	}
	if !h.Chunked && h.Length < 0 {
		h.Close = true
	}
	return h, nil
}

// ReadBody hands the decoded body to sink piece by piece, as it arrives; a piece is valid during the
// call only. A body that ends early gives io.ErrUnexpectedEOF. Bytes after the body are an error too:
// this client never sends a second request before the first is answered.
func (c *Conn) ReadBody(h Head, sink func([]byte)) error {
	var err error
	switch {
	case h.Chunked:
		err = c.chunked(sink)
	case h.Length >= 0:
		err = c.exactly(h.Length, sink)
	default:
		return c.rest(sink)
	}
	if err == nil && c.r != c.w {
		return fmt.Errorf("h1: %d bytes after the answer", c.w-c.r)
	}
	return err
}

func (c *Conn) chunked(sink func([]byte)) error {
	var d Decoder
	for {
		if c.r == c.w {
			if err := c.fill(); err != nil {
				return err
			}
		}
		n, end, err := d.Feed(c.buf[c.r:c.w], sink)
		c.r += n
		if end || err != nil {
			return err
		}
	}
}

func (c *Conn) exactly(n int64, sink func([]byte)) error {
	for n > 0 {
		if c.r == c.w {
			if err := c.fill(); err != nil {
				return err
			}
		}
		k := min(int64(c.w-c.r), n)
		sink(c.buf[c.r : c.r+int(k)])
		c.r += int(k)
		n -= k
	}
	return nil
}

// rest reads up to the end of the connection.
func (c *Conn) rest(sink func([]byte)) error {
	for {
		if c.r == c.w {
			switch err := c.fill(); {
			case errors.Is(err, io.ErrUnexpectedEOF):
				return nil
			case err != nil:
				return err
			}
		}
		sink(c.buf[c.r:c.w])
		c.r = c.w
	}
}
