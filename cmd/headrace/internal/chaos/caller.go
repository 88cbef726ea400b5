package chaos

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"
)

// caller asks one question after another.
type caller struct {
	base   string // up to /v1
	client *http.Client
}

func newClient(tc *tls.Config) *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: tc, DisableCompression: true, MaxIdleConnsPerHost: 1024}}
}

// heard is what one request came to.
type heard struct {
	Verdict
	id    string // x-request-id
	after time.Duration
	took  time.Duration
}

// ask sends a and reads the answer to its end. gap is told of pauses, as Check.Gap is.
func (c *caller) ask(ctx context.Context, a *Ask, gap func(time.Duration, bool)) (h heard) {
	began := time.Now()
	defer func() { h.took = time.Since(began) }()
	ck := NewCheck(a)
	ck.Gap = gap
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+a.Path(), bytes.NewReader(a.Body()))
	if err != nil {
		panic("BUG: no request: " + err.Error())
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := c.client.Do(req)
	if err != nil {
		h.Verdict = ck.Whole(0, nil, err)
		return h
	}
	defer func() { _ = res.Body.Close() }()
	h.id = res.Header.Get("X-Request-Id")
	if s, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil {
		h.after = time.Duration(s) * time.Second
	}
	if !a.Stream || res.StatusCode != http.StatusOK {
		body, err := io.ReadAll(res.Body)
		h.Verdict = ck.Whole(res.StatusCode, body, err)
		return h
	}
	r := bufio.NewReader(res.Body)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			h.Verdict = ck.End(err)
			return h
		}
		ck.Line(bytes.TrimRight(line, "\r\n"), time.Now())
	}
}
