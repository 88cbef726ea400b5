package fakerunpod

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"time"
)

// relay passes a request on to a host and its answer back, as a proxy does.
type relay struct {
	c       *Cloud
	w       http.ResponseWriter
	r       *http.Request
	target  string
	keepKey bool          // Authorization goes on to the host
	first   time.Duration // for the head, 0 for no limit
	whole   time.Duration // for all, 0 for no limit
	most    int64         // bytes each way, 0 for no limit
	late    func()        // answers when first is over
	broken  func()        // answers when the host does not
	cut     bool          // an answer that breaks ends in RST
}

// hop are the headers of one connection only.
var hop = []string{"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

var errLate = errors.New("too late")

func (p relay) run() {
	// The host may answer before the end of the body was read here. Without this the server would then read the rest itself, and
	// sending it on would fail in the middle of the answer.
	_ = http.NewResponseController(p.w).EnableFullDuplex() // what cannot, need not
	ctx, cancel := context.WithCancelCause(p.r.Context())
	defer cancel(nil)
	body := p.r.Body
	if p.most > 0 {
		body = http.MaxBytesReader(p.w, body, p.most)
	}
	target := p.target
	if p.r.URL.RawQuery != "" {
		target += "?" + p.r.URL.RawQuery
	}
	req, err := http.NewRequestWithContext(ctx, p.r.Method, target, body)
	if err != nil {
		p.broken()
		return
	}
	req.ContentLength = p.r.ContentLength
	if req.ContentLength == 0 {
		req.Body = http.NoBody
	}
	for k, v := range p.r.Header {
		if !slices.Contains(hop, k) && (p.keepKey || k != "Authorization") {
			req.Header[k] = v
		}
	}
	var timer *time.Timer
	if p.first > 0 {
		timer = time.AfterFunc(p.first, func() { cancel(errLate) })
		defer timer.Stop()
	}
	if p.whole > 0 {
		defer time.AfterFunc(p.whole, func() { cancel(context.DeadlineExceeded) }).Stop()
	}
	resp, err := p.c.client.Do(req)
	if timer != nil {
		timer.Stop()
	}
	if err != nil {
		_, large := errors.AsType[*http.MaxBytesError](err)
		switch {
		case p.r.Context().Err() != nil:
			panic(http.ErrAbortHandler)
		case large:
			envelope(p.w, http.StatusRequestEntityTooLarge, "request body too large")
		case errors.Is(context.Cause(ctx), errLate) && p.late != nil:
			p.late()
		default:
			p.broken()
		}
		return
	}
	defer resp.Body.Close()
	p.answer(resp)
}

func (p relay) answer(resp *http.Response) {
	for k, v := range resp.Header {
		if !slices.Contains(hop, k) && k != "Server" && k != "Date" {
			p.w.Header()[k] = v
		}
	}
	p.w.WriteHeader(resp.StatusCode)
	flush := http.NewResponseController(p.w)
	_ = flush.Flush()
	buf := make([]byte, 32<<10)
	sent := int64(0)
	for {
		n, err := resp.Body.Read(buf)
		sent += int64(n)
		if n > 0 {
			if _, werr := p.w.Write(buf[:n]); werr != nil || flush.Flush() != nil {
				panic(http.ErrAbortHandler)
			}
		}
		switch {
		case err == io.EOF:
			return
		case err != nil && p.cut:
			reset(p.r)
		case err != nil, p.most > 0 && sent > p.most:
			panic(http.ErrAbortHandler)
		}
	}
}
