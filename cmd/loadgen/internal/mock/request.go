package mock

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
)

// What one request may take of memory.
const (
	maxHead = 64 << 10
	maxSent = 16 << 20 // request body
)

// conn is one keep-alive server connection and belongs to one goroutine.
type conn struct {
	c    net.Conn
	in   []byte
	r, w int    // in[r:w] was read and not used yet
	out  []byte // scratch for stamped chunks
}

// request is what the mock needs to know of one.
type request struct {
	method, path, query string
	stream, usage       bool
	close               bool // the client wants no other request on this connection
}

var (
	headEnd     = []byte("\r\n\r\n")
	crlf        = []byte("\r\n")
	streamKey   = []byte(`"stream"`)
	usageKey    = []byte(`"include_usage"`)
	errTooLarge = errors.New("request too large")
)

// read takes one whole request off the connection.
func (c *conn) read() (request, error) {
	var q request
	head, err := c.until(headEnd)
	if err != nil {
		return q, err
	}
	line, fields, _ := bytes.Cut(head, crlf)
	part := bytes.SplitN(line, []byte(" "), 3)
	if len(part) != 3 {
		return q, fmt.Errorf("bad request line %.80q", line)
	}
	path, query, _ := bytes.Cut(part[1], []byte("?"))
	q.method, q.path, q.query = string(part[0]), string(path), string(query)
	q.close = bytes.Equal(part[2], []byte("HTTP/1.0"))
	length, chunked, expects := 0, false, false
	for field := range bytes.SplitSeq(fields, crlf) {
		name, value, _ := bytes.Cut(field, []byte(":"))
		value = bytes.TrimSpace(value)
		switch {
		case bytes.EqualFold(name, []byte("content-length")):
			if length, err = strconv.Atoi(string(value)); err != nil || length < 0 {
				return q, fmt.Errorf("bad content-length %.40q", value)
			}
		case bytes.EqualFold(name, []byte("transfer-encoding")):
			chunked = true
		case bytes.EqualFold(name, []byte("connection")):
			q.close = bytes.EqualFold(value, []byte("close"))
		case bytes.EqualFold(name, []byte("expect")):
			expects = true
		}
	}
	if expects {
		if err := c.write([]byte("HTTP/1.1 100 Continue\r\n\r\n")); err != nil {
			return q, err
		}
	}
	var body []byte
	switch {
	case chunked:
		body, err = c.chunks()
	case length > maxSent:
		err = errTooLarge
	default:
		body, err = c.take(length)
	}
	q.stream = isTrue(body, streamKey)
	q.usage = isTrue(body, usageKey)
	return q, err
}

// chunks reads a chunked request body.
func (c *conn) chunks() ([]byte, error) {
	var body []byte
	for {
		line, err := c.until(crlf)
		if err != nil {
			return nil, err
		}
		n, err := strconv.ParseUint(string(bytes.TrimSpace(line)), 16, 31)
		if err != nil {
			return nil, fmt.Errorf("bad chunk size: %w", err)
		}
		if len(body)+int(n) > maxSent {
			return nil, errTooLarge
		}
		p, err := c.take(int(n) + len(crlf))
		if err != nil || n == 0 {
			return body, err
		}
		body = append(body, p[:n]...)
	}
}

// isTrue says whether JSON has the key with the value true. It takes no notice of nesting; within
// a string the key's quotes would be escaped and not match.
func isTrue(body, key []byte) bool {
	for {
		i := bytes.Index(body, key)
		if i < 0 {
			return false
		}
		body = body[i+len(key):]
		rest, ok := bytes.CutPrefix(bytes.TrimLeft(body, " \t\r\n"), []byte(":"))
		if ok && bytes.HasPrefix(bytes.TrimLeft(rest, " \t\r\n"), []byte("true")) {
			return true
		}
	}
}

func (c *conn) fill() error {
	if c.r == c.w {
		c.r, c.w = 0, 0
	} else if c.w == len(c.in) {
		if c.r > 0 {
			c.w = copy(c.in, c.in[c.r:c.w])
			c.r = 0
		} else {
			c.in = append(c.in, make([]byte, len(c.in))...)
		}
	}
	n, err := c.c.Read(c.in[c.w:])
	c.w += n
	if n > 0 {
		return nil
	}
	return err
}

// until returns the bytes up to and including sep, valid until the next read.
func (c *conn) until(sep []byte) ([]byte, error) {
	for {
		if i := bytes.Index(c.in[c.r:c.w], sep); i >= 0 {
			p := c.in[c.r : c.r+i+len(sep)]
			c.r += len(p)
			return p, nil
		}
		if c.w-c.r > maxHead {
			return nil, errTooLarge
		}
		if err := c.fill(); err != nil {
			return nil, err
		}
	}
}

// take returns the next n bytes, valid until the next read.
func (c *conn) take(n int) ([]byte, error) {
	for c.w-c.r < n {
		if err := c.fill(); err != nil {
			return nil, err
		}
	}
	p := c.in[c.r : c.r+n]
	c.r += n
	return p, nil
}

func (c *conn) write(p []byte) error {
	_, err := c.c.Write(p)
	return err
}

// refuse says what was wrong with a request that could not be read, as far as the client still listens.
func (c *conn) refuse(err error) error {
	status := http.StatusBadRequest
	if errors.Is(err, errTooLarge) {
		status = http.StatusRequestEntityTooLarge
	}
	return c.write(failure(status, err.Error()))
}
