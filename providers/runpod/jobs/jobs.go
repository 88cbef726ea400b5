// Package jobs makes a RunPod queue endpoint look like a plain OpenAI host: each request becomes a job of
// RunPod's native API (POST /run, then GET /stream again and again), and what the worker yields becomes
// the answer that the worker's engine would have given, byte for byte. A job outlives a cold start, which a
// held connection does not, and it can be cancelled.
//
// Facts that the code rests on are named where they are used; most come from RunPod's documentation of
// serverless endpoints, from runpod/runpod-python and from runpod-workers/worker-vllm (2.23 and 2.25).
package jobs

import (
	"cmp"
	"context"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"headrace/router/endpoint"
)

// Options set up a Translator; zero values mean the defaults named here.
type Options struct {
	Log       *slog.Logger
	Now       func() time.Time
	Transport http.RoundTripper // default one of its own that follows the environment's proxy settings

	// Wait is how long RunPod may hold a poll without news; default 10 s, between 1 s and 5 min.
	Wait time.Duration
	// TTL is after what time RunPod drops a job whatever becomes of us; default 30 min, at least 10 s. It bounds what an
	// orphan costs: RunPod's own default is a day.
	TTL time.Duration
	// ExecutionTimeout is how long a worker may take for a job, at least 5 s; 0 leaves the endpoint's own setting.
	ExecutionTimeout time.Duration
	// Native says that an endpoint's handler knows no OpenAI route, and takes prompt and sampling parameters instead.
	Native func(ep *endpoint.Endpoint) bool
	// Early404 is how long after /run a job may be unknown to /stream; default 150 s.
	Early404 time.Duration
	// StallAfter is a silence after which a job may have been given to another worker, so that /status is asked before
	// anything more is passed on; default 10 s. RunPod needs some 40 s to give a lost job away.
	StallAfter time.Duration
	// CallTimeout bounds /run and /status, and what a poll takes beyond Wait; default 30 s.
	CallTimeout time.Duration
	// CancelTimeout bounds each try to cancel a job; default 5 s.
	CancelTimeout time.Duration
}

// Translator answers OpenAI requests by RunPod jobs. Its methods may be called from any goroutine.
type Translator struct {
	opt    Options
	ttl    atomic.Int64 // Options.TTL as it is now, in ns
	http   *http.Client
	count  counters
	cancel canceller

	paceMu sync.Mutex               // guards pace
	pace   map[string]*rate.Limiter // of polls, by the endpoint's URL

	// life is done when Close gives up waiting. It outlives requests, since what is to be cancelled does.
	life context.Context
	end  context.CancelFunc
	wg   sync.WaitGroup // handlers at work, calls of /run whose caller may have left, cancels
}

// New returns a Translator. It starts nothing.
func New(o Options) *Translator {
	o.Log = cmp.Or(o.Log, slog.New(slog.DiscardHandler))
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Transport == nil {
		o.Transport = &http.Transport{
			Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 256, IdleConnTimeout: 30 * time.Second,
			TLSHandshakeTimeout: 10 * time.Second, ForceAttemptHTTP2: true,
			HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second},
		}
	}
	if o.Native == nil {
		o.Native = func(*endpoint.Endpoint) bool { return false }
	}
	o.Wait = min(max(cmp.Or(o.Wait, 10*time.Second), time.Second), 5*time.Minute)
	if o.ExecutionTimeout > 0 {
		o.ExecutionTimeout = max(o.ExecutionTimeout, 5*time.Second)
	}
	o.Early404 = cmp.Or(o.Early404, 150*time.Second)
	o.StallAfter = cmp.Or(o.StallAfter, 10*time.Second)
	o.CallTimeout = cmp.Or(o.CallTimeout, 30*time.Second)
	o.CancelTimeout = cmp.Or(o.CancelTimeout, 5*time.Second)
	t := &Translator{opt: o, pace: map[string]*rate.Limiter{}, http: &http.Client{
		Transport: o.Transport,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // key and prompt go where they were sent and nowhere else
		},
	}}
	t.SetTTL(o.TTL)
	t.life, t.end = context.WithCancel(context.Background())
	return t
}

// SetTTL changes Options.TTL for the jobs that come from now on.
func (t *Translator) SetTTL(d time.Duration) {
	t.ttl.Store(int64(max(cmp.Or(d, 30*time.Minute), 10*time.Second)))
}

func (t *Translator) timeToLive() time.Duration { return time.Duration(t.ttl.Load()) }

// Handler returns the handler that stands for ep. It answers POST requests below /v1.
func (t *Translator) Handler(ep endpoint.Endpoint) http.Handler {
	q := &queue{
		base: strings.TrimSuffix(strings.TrimRight(ep.BaseURL, "/"), "/openai/v1"),
		key:  ep.APIKey, id: ep.ID, native: t.opt.Native(&ep),
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { t.serve(w, r, q) })
}

// queue is the endpoint that jobs are sent to.
type queue struct {
	base   string // https://api.runpod.ai/v2/ID
	key    endpoint.Secret
	id     endpoint.ID
	native bool
}

// Close waits until handlers have returned and every job that lost its caller is cancelled. When ctx is done first it gives
// up, and the jobs' TTL bounds what they cost. Callers must have been sent away before: no request may come any more.
func (t *Translator) Close(ctx context.Context) error {
	defer t.end()
	done := make(chan struct{})
	go func() { t.wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		t.end() // what still waits ends at once
		timer := time.NewTimer(time.Second)
		defer timer.Stop()
		select {
		case <-done:
		case <-timer.C: // a caller is still there
		}
		return ctx.Err()
	}
}

// detached lets go of a request's end but keeps the end of the Translator.
func (t *Translator) detached(timeout time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.life, timeout)
}

// sleep waits, or returns ctx's error when that is done first.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
