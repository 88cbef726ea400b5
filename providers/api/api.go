// Package api is what the adapters of rented clouds share: a client for their control planes that keeps its
// distance between calls, tries again where that is harmless, counts all it asks, and shows no secret; and the
// status in which an adapter tells how it fares.
package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"headrace/router/endpoint"
)

// Options set up a Client; zero values but Provider mean the defaults named here.
type Options struct {
	Provider  string            // for messages: "runpod"
	Key       endpoint.Secret   // bearer of every call that has none of its own
	Timeout   time.Duration     // of one try; default 15 s
	MaxBody   int64             // bytes of an answer that are read; default 32 MiB
	Tries     int               // of a call that may be repeated; default 3
	Backoff   time.Duration     // before the second try, doubled before each further one, with jitter; default 500 ms
	Transport http.RoundTripper // default one of its own that follows the environment's proxy settings
	Now       func() time.Time  // default time.Now
}

// Client asks one provider's control plane. Its methods may be called from any goroutine.
type Client struct {
	opt  Options
	http *http.Client

	mu    sync.Mutex // guards all below
	calls map[string]*calls
	lines map[string]chan time.Time // by Call.Name: holds the earliest begin of the next call, and is empty during one
}

type calls struct {
	CallStats
	tookSum time.Duration
}

// New returns a Client.
func New(o Options) *Client {
	if o.Timeout <= 0 {
		o.Timeout = 15 * time.Second
	}
	if o.MaxBody <= 0 {
		o.MaxBody = 32 << 20
	}
	if o.Tries <= 0 {
		o.Tries = 3
	}
	if o.Backoff <= 0 {
		o.Backoff = 500 * time.Millisecond
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Transport == nil {
		o.Transport = &http.Transport{
			Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 4, IdleConnTimeout: 30 * time.Second,
			TLSHandshakeTimeout: 10 * time.Second, ForceAttemptHTTP2: true,
		}
	}
	return &Client{
		opt: o, calls: map[string]*calls{}, lines: map[string]chan time.Time{},
		http: &http.Client{Transport: o.Transport, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // the key goes where it was sent and nowhere else
		}},
	}
}

// Call is one question.
type Call struct {
	Name   string // what kind of call it is, for limits and counts: "GET /v2/serverless/{id}"
	Method string // default GET
	URL    string
	Body   any             // sent as JSON; nil for none
	Key    endpoint.Secret // default the client's
	// MinInterval is the least time between the end of a call of this Name and the begin of the next, whoever makes
	// them: a server counts from when a call reached it, and that may be as late as its answer. A call that comes sooner
	// waits, and so does one while another of its Name is under way.
	MinInterval time.Duration
	Timeout     time.Duration // default the client's
	// Repeat lets a call that changes nothing be tried again after 429, 5xx and network errors. GET calls always are.
	Repeat bool
}

// Answer is a 2xx answer.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
	// At is when the answer came, by the client's clock, and Date the server's Date header, zero without one.
	At, Date time.Time
}

// JSON decodes the body leniently: unknown members are fine.
func (a *Answer) JSON(into any) error {
	if err := json.Unmarshal(a.Body, into); err != nil {
		return fmt.Errorf("answer is not the JSON that was expected: %w", err)
	}
	return nil
}

// Error is a call that failed. Its text holds no secret: neither the key nor what the URL's query says.
type Error struct {
	Provider   string
	Call       string
	Status     int    // 0 when no answer came
	Code       string // "error" of the body, where that is a word: auth_error
	Detail     string // what the body says in words, cut to 300 bytes
	RetryAfter time.Duration
	Err        error // why no answer came, or nil
}

// Error says which call failed how.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Provider + ": " + e.Call)
	if e.Status != 0 {
		b.WriteString(": status " + strconv.Itoa(e.Status))
	}
	if e.Code != "" {
		b.WriteString(": " + e.Code)
	}
	if e.Detail != "" && e.Detail != e.Code {
		b.WriteString(": " + e.Detail)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

// Unwrap returns why no answer came.
func (e *Error) Unwrap() error { return e.Err }

// Denied tells whether the provider refused the key itself.
func (e *Error) Denied() bool {
	return e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden || e.Code == "auth_error"
}

// Do asks. The error is an *Error, or ctx's.
func (c *Client) Do(ctx context.Context, call Call) (*Answer, error) {
	if call.Method == "" {
		call.Method = http.MethodGet
	}
	var body []byte
	if call.Body != nil {
		var err error
		if body, err = json.Marshal(call.Body); err != nil {
			return nil, c.failed(&call, &Error{Err: err})
		}
	}
	repeat := call.Repeat || call.Method == http.MethodGet
	wait := c.opt.Backoff
	for try := 1; ; try++ {
		done, err := c.turn(ctx, &call)
		if err != nil {
			return nil, err
		}
		a, err := c.once(ctx, &call, body)
		done()
		if err == nil {
			return a, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		e, ok := errors.AsType[*Error](err)
		if !ok || !repeat || try >= c.opt.Tries || !transient(e) {
			return nil, err
		}
		d := max(e.RetryAfter, wait/2+time.Duration(rand.Int64N(int64(wait)))) //nolint:gosec // spreads questions, guards nothing
		wait = min(2*wait, 30*time.Second)
		if e.RetryAfter > time.Minute {
			return nil, err // whoever polls comes back by itself
		}
		if err := sleep(ctx, d); err != nil {
			return nil, err
		}
	}
}

func transient(e *Error) bool {
	switch e.Status {
	case 0:
		return true
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return e.Status >= 520 && e.Status <= 527 // Cloudflare's
}

// turn waits for the call's place behind others of its name. done ends it; it is to be called if err is nil.
func (c *Client) turn(ctx context.Context, call *Call) (done func(), err error) {
	if call.MinInterval <= 0 {
		return func() {}, ctx.Err()
	}
	c.mu.Lock()
	line, ok := c.lines[call.Name]
	if !ok {
		line = make(chan time.Time, 1)
		line <- time.Time{}
		c.lines[call.Name] = line
	}
	c.mu.Unlock()
	var at time.Time
	select {
	case at = <-line:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := sleep(ctx, at.Sub(c.opt.Now())); err != nil {
		line <- at
		return nil, err
	}
	return func() { line <- c.opt.Now().Add(call.MinInterval) }, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Client) once(ctx context.Context, call *Call, body []byte) (*Answer, error) {
	timeout := call.Timeout
	if timeout <= 0 {
		timeout = c.opt.Timeout
	}
	tryCtx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(tryCtx, call.Method, call.URL, bytes.NewReader(body))
	if err != nil {
		return nil, c.failed(call, &Error{Err: errors.New("the URL is malformed")})
	}
	if body == nil {
		req.Body, req.ContentLength = http.NoBody, 0
	} else {
		req.Header.Set("Content-Type", "application/json")
	}
	key := call.Key
	if key == "" {
		key = c.opt.Key
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key.Reveal())
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "headrace")
	began := c.opt.Now()
	res, err := c.http.Do(req)
	if err != nil {
		c.count(call, began, 0)
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err // without the URL, whose query may hold a key
		}
		return nil, c.failed(call, &Error{Err: err})
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(res.Body, c.opt.MaxBody+1))
	if err == nil && int64(len(b)) > c.opt.MaxBody {
		err = fmt.Errorf("the answer is larger than %d bytes", c.opt.MaxBody)
	}
	c.count(call, began, res.StatusCode)
	if err != nil {
		return nil, c.failed(call, &Error{Status: res.StatusCode, Err: err})
	}
	if res.StatusCode < 200 || res.StatusCode > 299 {
		e := Explain(res.StatusCode, []byte(c.redact(call, string(b[:min(len(b), maxExplained)])))) // before it is cut: a half of a key tells much
		e.RetryAfter = retryAfter(res.Header.Get("Retry-After"))
		return nil, c.failed(call, e)
	}
	a := &Answer{Status: res.StatusCode, Header: res.Header, Body: b, At: c.opt.Now()}
	if t, err := http.ParseTime(res.Header.Get("Date")); err == nil {
		a.Date = t
	}
	return a, nil
}

func retryAfter(v string) time.Duration {
	if s, err := strconv.Atoi(v); err == nil && s >= 0 && s < 1<<20 {
		return time.Duration(s) * time.Second
	}
	return 0
}

// failed fills in what all errors say and notes the error.
func (c *Client) failed(call *Call, e *Error) error {
	e.Provider, e.Call = c.opt.Provider, call.Name
	e.Detail = c.redact(call, e.Detail)
	e.Code = c.redact(call, e.Code)
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.of(call.Name)
	s.Errors++
	s.LastError = e.Error()
	return e
}

// redact takes the key out of what a provider says: some quote it.
func (c *Client) redact(call *Call, text string) string {
	for _, k := range []endpoint.Secret{call.Key, c.opt.Key} {
		if len(k) >= 4 {
			text = strings.ReplaceAll(text, k.Reveal(), "[redacted]")
		}
	}
	return text
}

const (
	maxDetail    = 300
	maxCode      = 64
	maxExplained = 64 << 10 // bytes of an error's body that are looked at
)

// Explain reads the body of a failed call: an object with error, code, msg, message, detail or title, in which error may be
// an object of its own, or plain text. HTML is not quoted.
func Explain(status int, body []byte) *Error {
	e := &Error{Status: status}
	var m map[string]json.RawMessage
	if json.Unmarshal(body, &m) != nil {
		text := strings.TrimSpace(string(body))
		if text != "" && text[0] != '<' && text[0] != '{' {
			e.Detail = clip(text)
		}
		return e
	}
	var inner map[string]json.RawMessage
	if json.Unmarshal(m["error"], &inner) == nil && inner != nil {
		m = inner
	}
	word := func(names ...string) string {
		for _, n := range names {
			var s string
			if json.Unmarshal(m[n], &s) == nil && s != "" {
				return s
			}
		}
		return ""
	}
	e.Code = word("error", "code")
	if strings.ContainsAny(e.Code, " \n") || len(e.Code) > maxCode {
		e.Code = "" // no word
	}
	e.Detail = clip(word("msg", "message", "detail", "error_msg", "title", "error"))
	return e
}

func clip(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) > maxDetail {
		s = strings.ToValidUTF8(s[:maxDetail], "") + "…"
	}
	return s
}

// CallStats counts calls of one name.
type CallStats struct {
	Name      string        `json:"name"`
	Calls     int64         `json:"calls"` // tries, repeated ones included
	Errors    int64         `json:"errors"`
	Throttled int64         `json:"throttled"` // answered 429
	Last      time.Time     `json:"last"`
	LastError string        `json:"last_error,omitempty"`
	MeanTook  time.Duration `json:"mean_took_ns"`
}

func (c *Client) of(name string) *calls {
	s := c.calls[name]
	if s == nil {
		s = &calls{CallStats: CallStats{Name: name}}
		c.calls[name] = s
	}
	return s
}

func (c *Client) count(call *Call, began time.Time, status int) {
	now := c.opt.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.of(call.Name)
	s.Calls++
	s.Last = now
	s.tookSum += now.Sub(began)
	s.MeanTook = s.tookSum / time.Duration(s.Calls)
	if status == http.StatusTooManyRequests {
		s.Throttled++
	}
}

// Stats returns the counts, by name.
func (c *Client) Stats() []CallStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]CallStats, 0, len(c.calls))
	for _, s := range c.calls {
		out = append(out, s.CallStats)
	}
	slices.SortFunc(out, func(a, b CallStats) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// CloseIdle closes idle connections.
func (c *Client) CloseIdle() { c.http.CloseIdleConnections() }
