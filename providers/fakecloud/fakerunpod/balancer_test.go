package fakerunpod_test

import (
	"strings"
	"testing"
	"time"

	"headrace/providers/fakecloud/fakerunpod"
)

// balancer starts a load-balancing endpoint and returns its URL.
func balancer(t *testing.T, cfg fakerunpod.Config, ec fakerunpod.EndpointConfig) (*fakerunpod.Cloud, *fakerunpod.Endpoint, string) {
	t.Helper()
	ec.Type = fakerunpod.LoadBalancer
	c, e := one(t, cfg, ec)
	return c, e, strings.ReplaceAll(c.BalancerURL(), "{id}", e.ID())
}

func TestBalancer(t *testing.T) {
	t.Run("a request starts a worker and waits for it", func(t *testing.T) {
		c, e, url := balancer(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{})
		a := do(t, c, "POST", url+"/v1/chat/completions", chat(true, 30))
		if a.status != 200 || content(t, string(a.body)) != said(30) || a.header.Get("X-Runpod-Worker-Id") != e.Workers()[0].ID {
			t.Errorf("%d %v %s", a.status, a.header, a.body)
		}
		r := e.Workers()[0].Host.Requests()
		if got := r[len(r)-1]; got.Path != "/v1/chat/completions" || got.Header.Get("Authorization") != "" {
			t.Errorf("the worker saw %+v", got)
		}
		if h := healthOf(t, c, e); h.Jobs != (health{}.Jobs) || h.Workers.Ready != 1 || h.Workers.Running != 1 {
			t.Errorf("%+v", h)
		}
		if a := do(t, c, "GET", url+"/ping", ""); a.status != 200 {
			t.Errorf("%d", a.status)
		}
	})
	t.Run("requests make workers", func(t *testing.T) {
		c, e, url := balancer(t, fakerunpod.Config{TimeScale: 1, NoWorkerWait: 300 * time.Millisecond}, fakerunpod.EndpointConfig{ColdStart: time.Hour, RequestCount: 1, WorkersMax: 2})
		done := make(chan int, 3)
		for range 3 {
			go func() {
				a, err := send(t, c, "GET", url+"/v1/models", "")
				if err != nil {
					a.status = -1
				}
				done <- a.status
			}()
		}
		wait(t, e, func(s fakerunpod.Stats) bool { return s.Workers == 2 })
		for range 3 {
			if status := <-done; status != 400 {
				t.Errorf("status %d", status)
			}
		}
	})
	t.Run("runpod_9.14_nobody_comes", func(t *testing.T) {
		for text, want := range map[bool]string{false: `{"error":"no workers available"}`, true: "timed out waiting for worker"} {
			c, e, url := balancer(t, fakerunpod.Config{TimeScale: 1000, NoWorkerText: text}, fakerunpod.EndpointConfig{ColdStart: time.Second, WorkersMin: 1})
			e.FailHealthCheck(true)
			wait(t, e, func(fakerunpod.Stats) bool { h := healthOf(t, c, e).Workers; return h.Running == 1 && h.Ready == 0 })
			began := time.Now()
			do(t, c, "GET", url+"/v1/models", "").is(t, 400, want)
			if took := time.Since(began); took < 120*time.Millisecond {
				t.Errorf("held for %v of 2 min", took)
			}
		}
	})
	t.Run("affinity", func(t *testing.T) {
		c, e, url := balancer(t, fakerunpod.Config{TimeScale: 1000}, fakerunpod.EndpointConfig{WorkersMin: 2, MaxConcurrency: 1})
		wait(t, e, func(fakerunpod.Stats) bool { return healthOf(t, c, e).Workers.Ready == 2 })
		second := e.Workers()[1].ID
		for _, want := range []string{second, "strict " + second, "strict-resume " + second} {
			if a := do(t, c, "GET", url+"/v1/models", "", "X-Runpod-Worker-Id", want); a.header.Get("X-Runpod-Worker-Id") != second {
				t.Errorf("%s: %v", want, a.header)
			}
		}
		for want, status := range map[string]int{"gone": 200, "strict-resume gone": 200, "strict gone": 404} {
			if a := do(t, c, "GET", url+"/v1/models", "", "X-Runpod-Worker-Id", want); a.status != status || status == 404 && !strings.Contains(string(a.body), "affinity_worker_gone") {
				t.Errorf("%s: %d %s", want, a.status, a.body)
			}
		}
		e.FailHealthCheck(true)
		if a := do(t, c, "GET", url+"/v1/models", "", "X-Runpod-Worker-Id", "strict "+second); a.status != 400 || !strings.Contains(string(a.body), "worker_timeout") {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
	t.Run("5.5 minutes", func(t *testing.T) {
		c, _, url := balancer(t, fakerunpod.Config{TimeScale: 1000}, fakerunpod.EndpointConfig{TPS: 0.05, TTFT: time.Second, ColdStart: time.Second})
		a := do(t, c, "POST", url+"/v1/chat/completions", chat(true, 500))
		if a.status != 200 || a.err == nil || strings.Contains(string(a.body), "[DONE]") {
			t.Errorf("%d %v %s", a.status, a.err, a.body)
		}
	})
	t.Run("a worker dies in the middle", func(t *testing.T) {
		c, e, url := balancer(t, fakerunpod.Config{TimeScale: 10}, fakerunpod.EndpointConfig{TPS: 10, TTFT: time.Second, ColdStart: time.Millisecond})
		go func() {
			_ = e.Wait(t.Context(), func(fakerunpod.Stats) bool { w := e.Workers(); return len(w) > 0 && w[0].Jobs > 0 })
			poll(t, func() bool { return e.Workers()[0].Host.Stats().OutputTokens > 2 })
			e.KillWorkers()
		}()
		if a := do(t, c, "POST", url+"/v1/chat/completions", chat(true, 500)); a.status != 200 || a.err == nil {
			t.Errorf("%d %v %s", a.status, a.err, a.body)
		}
		if s := e.Stats(); s.Retried != 0 {
			t.Errorf("a request was given to another worker: %+v", s)
		}
	})
	t.Run("wrong ports, wrong product, too large", func(t *testing.T) {
		c, e, url := balancer(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{})
		api(t, c, e, "POST", "run", `{"input":{"a":1}}`).is(t, 400, `{"error":"not allowed for QB API"}`)
		api(t, c, e, "POST", openAI, chat(true, 1)).is(t, 400, `{"error":"not allowed for QB API"}`)
		q := c.AddEndpoint(fakerunpod.EndpointConfig{})
		do(t, c, "GET", strings.ReplaceAll(c.BalancerURL(), "{id}", q.ID())+"/ping", "").is(t, 400, `{"error":"not allowed for QB API"}`)
		if a := do(t, c, "POST", url+"/v1/chat/completions", strings.Repeat("x", 30<<20+1)); a.status != 413 {
			t.Errorf("%d", a.status)
		}
		e.BadPorts(true)
		if a := do(t, c, "GET", url+"/v1/models", ""); a.status != 502 {
			t.Errorf("%d", a.status)
		}
	})
}
