package runpod

import (
	"context"
	"errors"
	"net/http"
	"time"

	"headrace/providers/api"
)

const (
	// wakeTTL is how long the job may wait for its worker, and wakeRun how long it may run: what it can cost is bounded, whoever
	// is there to see it. A start takes some 45 s, and 7 min until RunPod calls it unhealthy.
	wakeTTL = 10 * time.Minute
	wakeRun = time.Minute
	// balancerWait is how long RunPod keeps a request for which no worker is up (2 min), and a little more.
	balancerWait = 130 * time.Second
)

// tryWake starts a worker, if it may be done now.
func (a *Actor) tryWake(ctx context.Context, w wish) {
	r := &a.run
	now := r.opt.Now()
	switch {
	case now.Sub(w.at) > r.opt.Spacing:
		a.forget(w) // it has had to wait too long
	case now.Before(a.mark(w.id).next):
	default:
		a.forget(w)
		if err := a.wake(ctx, &w.aim); err != nil {
			a.failed(w.id, "wake", err)
			return
		}
		r.opt.Log.Info("capacity action", "action", "wake", "endpoint", w.ep, "name", w.name, "why", w.why)
		a.did(w.id, "wake", "", func(s *ActionStatus) { s.Wakes++ })
	}
}

// forget takes a wish off, unless another has come meanwhile.
func (a *Actor) forget(w wish) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := a.wakes[w.id]; now.at.Equal(w.at) {
		delete(a.wakes, w.id)
	}
}

// wake sends what makes RunPod's scaler start a worker, and no more: there is no call for it. A queue gets a job of one token;
// nobody asks for its answer. A load balancer gets a request for the list of models, which waits for the worker.
func (a *Actor) wake(ctx context.Context, t *aim) error {
	r := &a.run
	if t.balancer {
		client, now := r.client, r.opt.Now
		r.wg.Go(func() {
			_, err := client.Do(ctx, api.Call{Name: "GET /v1/models (wake)", URL: t.base + "/models", Key: t.key, Timeout: balancerWait})
			if e, ok := errors.AsType[*api.Error](err); ok && (e.Denied() || e.Status == http.StatusNotFound) {
				a.count(now(), err)
			} // all else may mean no more than that the worker was not up in time
		})
		return nil
	}
	native, _ := lookup(r.opt.Native, t.id, t.name)
	_, err := r.client.Do(ctx, api.Call{
		Name: "POST /run (wake)", Method: http.MethodPost, URL: t.base + "/run", Key: t.key, Body: wakeJob(t, native), Timeout: r.opt.RequestTimeout,
	})
	return err
}

type wakeBody struct {
	Input  any `json:"input"`
	Policy struct {
		ExecutionTimeout int64 `json:"executionTimeout"` // ms
		TTL              int64 `json:"ttl"`              // ms
	} `json:"policy"`
}

func wakeJob(t *aim, native bool) *wakeBody {
	b := &wakeBody{}
	b.Policy.ExecutionTimeout, b.Policy.TTL = wakeRun.Milliseconds(), wakeTTL.Milliseconds()
	if native {
		b.Input = map[string]any{"prompt": ".", "sampling_params": map[string]any{"max_tokens": 1}}
		return b
	}
	ask := map[string]any{"messages": []map[string]string{{"role": "user", "content": "."}}, "max_tokens": 1}
	if t.model != "" {
		ask["model"] = t.model
	}
	b.Input = map[string]any{"openai_route": "/v1/chat/completions", "openai_input": ask}
	return b
}

func retryAfter(err error) time.Duration {
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e.RetryAfter
	}
	return 0
}

// kinds of endpoints, as their label says.
const (
	queueKind    = "queue"
	balancerKind = "load_balancer"
)
