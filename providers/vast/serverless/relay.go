package serverless

import (
	"bytes"
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
)

const (
	readSize = 16 << 10 // bytes of an answer that are passed on at once; an event of a stream is a few hundred
	maxError = 1 << 20  // bytes of an error that are kept
)

func isStream(res *http.Response) bool {
	t, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	return t == "text/event-stream"
}

// relay hands the worker's answer on, as it comes. One that is not whole ends without an end, so that the gateway
// knows it for cut off.
func (c *call) relay(ctx context.Context, res *http.Response, head []byte) {
	defer func() { _ = res.Body.Close() }()
	h := c.w.Header()
	h["Content-Type"] = res.Header["Content-Type"] // nil keeps net/http from guessing one
	if v := res.Header.Get("Content-Encoding"); v != "" {
		h.Set("Content-Encoding", v)
	}
	if res.ContentLength >= 0 {
		h.Set("Content-Length", strconv.FormatInt(res.ContentLength, 10))
	}
	c.report(ctx)
	c.w.WriteHeader(res.StatusCode)
	end := ending{stream: isStream(res)}
	flush := http.NewResponseController(c.w).Flush
	for b, err := head, error(nil); ; {
		if len(b) > 0 {
			end.see(b)
			c.report(ctx)
			if _, e := c.w.Write(b); e != nil {
				panic(http.ErrAbortHandler) // nobody reads on
			}
			if end.stream {
				if flush() != nil {
					panic(http.ErrAbortHandler)
				}
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			c.cut(ctx, err)
		}
		if head == nil {
			head = make([]byte, readSize)
		}
		var n int
		n, err = res.Body.Read(head[:cap(head)])
		b = head[:n]
	}
	if !end.whole() { // the worker's way to say that its model failed
		c.cut(ctx, io.ErrUnexpectedEOF)
	}
}

func (c *call) cut(ctx context.Context, err error) {
	if ctx.Err() == nil {
		c.p.odd("answer cut off by its worker")
		c.p.opt.Log.Debug("worker broke off", "endpoint", c.id, "worker", c.worker, "error", err)
	}
	panic(http.ErrAbortHandler)
}

// drain reads an answer that is not to be relayed as it comes.
func drain(res *http.Response, head []byte) (*reply, error) {
	defer func() { _ = res.Body.Close() }()
	rest, err := io.ReadAll(io.LimitReader(res.Body, maxError))
	if err != nil {
		return nil, err
	}
	return &reply{
		status: res.StatusCode, contentType: res.Header.Get("Content-Type"), retryAfter: res.Header.Get("Retry-After"),
		body: append(head, rest...),
	}, nil
}

func (r *reply) write(w http.ResponseWriter) {
	h := w.Header()
	if h["Content-Type"] = nil; r.contentType != "" {
		h.Set("Content-Type", r.contentType)
	}
	if r.retryAfter != "" {
		h.Set("Retry-After", r.retryAfter)
	}
	w.WriteHeader(r.status)
	_, _ = w.Write(r.body)
}

// ending watches a stream go by for a sign that it is whole: its end mark, or a choice's reason to finish. Quotes
// inside a token's text are escaped and its line ends too, so neither is found there.
type ending struct {
	stream bool
	seen   bool
	tail   []byte // the last bytes, in which a sign may have begun
}

const maxSign = 64 // bytes of a sign, with generous white space

func (e *ending) see(b []byte) {
	if !e.stream || e.seen {
		return
	}
	if e.tail == nil {
		e.tail = append(make([]byte, 0, readSize+maxSign), '\n') // the first line begins behind a line end, so to say
	}
	e.tail = append(e.tail, b...)
	if e.seen = finished(e.tail); e.seen {
		return
	}
	if n := len(e.tail) - maxSign; n > 0 {
		e.tail = append(e.tail[:0], e.tail[n:]...)
	}
}

func finished(b []byte) bool {
	for _, end := range []string{"\ndata: [DONE]", "\ndata:[DONE]", "\rdata: [DONE]", "\rdata:[DONE]"} {
		if bytes.Contains(b, []byte(end)) {
			return true
		}
	}
	for {
		_, rest, there := bytes.Cut(b, []byte(`"finish_reason"`))
		if !there {
			return false
		}
		b = rest
		if v := bytes.TrimLeft(rest, " \t"); len(v) > 0 && v[0] == ':' {
			if v = bytes.TrimLeft(v[1:], " \t"); len(v) > 0 && v[0] == '"' {
				return true
			}
		}
	}
}

func (e *ending) whole() bool { return !e.stream || e.seen }
