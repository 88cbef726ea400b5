package fakerunpod_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"headrace/providers/fakecloud/fakerunpod"
)

func TestKeys(t *testing.T) {
	c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{})
	queue := c.QueueURL() + "/" + e.ID() + "/health"
	const none, bad = `{"status":401,"title":"Unauthorized","detail":"no token provided"}`, `{"status":401,"title":"Unauthorized","detail":"invalid api key"}`
	for name, tc := range map[string]struct {
		url, header string
		status      int
		body        string
	}{
		"queue, no key":       {queue, "", 401, none},
		"queue, bad key":      {queue, "Bearer rpa_OTHER", 401, bad},
		"queue, bare key":     {queue, c.Key(), 200, ""},
		"queue, bearer":       {queue, "Bearer " + c.Key(), 200, ""},
		"unknown, no key":     {c.QueueURL() + "/nobody/health", "", 401, none},
		"balancer, bad key":   {strings.ReplaceAll(c.BalancerURL(), "{id}", e.ID()) + "/ping", "Bearer x", 401, bad},
		"management, no key":  {c.ManagementURL() + "/serverless", "", 401, `{"title":"Unauthorized","status":401,"detail":"missing bearer token"}`},
		"management, bare":    {c.ManagementURL() + "/serverless", c.Key(), 401, `{"title":"Unauthorized","status":401,"detail":"missing bearer token"}`},
		"management, bad key": {c.ManagementURL() + "/serverless", "Bearer x", 401, `{"title":"Unauthorized","status":401,"detail":"invalid bearer token"}`},
	} {
		t.Run(name, func(t *testing.T) {
			a := do(t, c, "GET", tc.url, "", "Authorization", tc.header)
			if a.status != tc.status || tc.body != "" && string(a.body) != tc.body {
				t.Errorf("got %d %s, want %d %s", a.status, a.body, tc.status, tc.body)
			}
			if ct := a.header.Get("Content-Type"); !strings.Contains(ct, "json") {
				t.Errorf("content type %q", ct)
			}
		})
	}
}

// TestJobClock follows a job through its statuses and sees /health move with it.
func TestJobClock(t *testing.T) {
	c, e := one(t, fakerunpod.Config{TimeScale: 10}, fakerunpod.EndpointConfig{ColdStart: time.Second, ReadyEarly: 200 * time.Millisecond, IdleTimeout: 2 * time.Second})
	if h := healthOf(t, c, e); h != (health{}) {
		t.Errorf("before: %+v", h)
	}
	id := run(t, c, e, openAIJob(chat(true, 60)))
	if j := api(t, c, e, "GET", "status/"+id, "").job(t); j.Status != "IN_QUEUE" || j.Worker != "" || j.Delay != nil {
		t.Errorf("queued: %+v", j)
	}
	if h := healthOf(t, c, e); h.Workers.Initializing != 1 || h.Jobs.InQueue != 1 {
		t.Errorf("queued: %+v", h)
	}
	wait(t, e, func(s fakerunpod.Stats) bool { return s.InProgress == 1 })
	j := api(t, c, e, "POST", "status/"+id, "").job(t)
	if j.Status != "IN_PROGRESS" || j.Worker == "" || j.Delay == nil || *j.Delay < 90 || j.Execution != nil {
		t.Errorf("running: %+v", j)
	}
	if h := healthOf(t, c, e); h.Workers.Running != 1 || h.Workers.Ready != 1 || h.Workers.Idle != 0 || h.Jobs.InProgress != 1 {
		t.Errorf("running: %+v", h)
	}
	k := end(t, c, e, id)
	if k.Status != "COMPLETED" || k.Worker != j.Worker || k.Execution == nil || *k.Execution == 0 || k.Output == nil {
		t.Errorf("completed: %+v", k)
	}
	if h := healthOf(t, c, e); h.Workers.Idle != 1 || h.Workers.Ready != 1 || h.Workers.Running != 0 || h.Jobs.Completed != 1 {
		t.Errorf("completed: %+v", h)
	}
	s := wait(t, e, func(s fakerunpod.Stats) bool { return s.Workers == 0 })
	if h := healthOf(t, c, e); h.Workers != (health{}.Workers) {
		t.Errorf("scaled down: %+v", h)
	}
	// start, work and idle timeout are billed, up to the next of the platform's seconds, by the A100's $2.736 an hour
	if s.WorkerSeconds < 0.3 || s.WorkerSeconds > 5 || s.USD < s.WorkerSeconds/3600*2.735 || s.USD > s.WorkerSeconds/3600*2.737 {
		t.Errorf("billed %v s, $%v", s.WorkerSeconds, s.USD)
	}
	if usd := c.Bill(e.ID()); usd < s.USD*0.999 || usd > s.USD*1.001 {
		t.Errorf("the bill says $%v, the endpoint $%v", usd, s.USD)
	}
}

func TestReadyEarly(t *testing.T) {
	c, e := one(t, fakerunpod.Config{TimeScale: 1}, fakerunpod.EndpointConfig{ColdStart: 10 * time.Minute, ReadyEarly: 10 * time.Minute, WorkersMin: 1})
	id := run(t, c, e, openAIJob(chat(true, 1)))
	wait(t, e, func(fakerunpod.Stats) bool { return healthOf(t, c, e).Workers.Ready == 1 })
	if j := api(t, c, e, "GET", "status/"+id, "").job(t); j.Status != "IN_QUEUE" {
		t.Errorf("%+v", j)
	}
}

func TestStreamIsDestructive(t *testing.T) {
	c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{})
	id := run(t, c, e, openAIJob(chat(true, 20)))
	end(t, c, e, id)
	first := api(t, c, e, "GET", "stream/"+id, "").job(t)
	second := api(t, c, e, "POST", "stream/"+id, "").job(t)
	if first.Status != "COMPLETED" || len(first.Stream) == 0 || second.Status != "COMPLETED" || second.Stream == nil || len(second.Stream) != 0 {
		t.Errorf("first %+v, second %+v", first, second)
	}
	if out, _ := api(t, c, e, "GET", "status/"+id, "").job(t).Output.([]any); len(out) != len(first.Stream) {
		t.Errorf("/status shows %d yields, /stream gave %d", len(out), len(first.Stream))
	}
}

// TestHolds checks that an empty /stream is held for the default, and for what the caller asks within its range.
func TestHolds(t *testing.T) {
	c, e := one(t, fakerunpod.Config{TimeScale: 100, EdgeFirstByte: 40 * time.Second}, fakerunpod.EndpointConfig{})
	e.SetWorkersMax(0)
	id := run(t, c, e, openAIJob(chat(true, 1)))
	for query, least := range map[string]time.Duration{"": 100 * time.Millisecond, "?wait=1": 10 * time.Millisecond, "?wait=20000": 200 * time.Millisecond} {
		began := time.Now()
		j := api(t, c, e, "GET", "stream/"+id+query, "").job(t)
		if took := time.Since(began); took < least || took > least+5*time.Second || j.Status != "IN_QUEUE" || len(j.Stream) != 0 {
			t.Errorf("%q: %v %+v", query, took, j)
		}
	}
	if j := api(t, c, e, "POST", "runsync?wait=1", openAIJob(chat(true, 1))).job(t); j.Status != "IN_QUEUE" || !strings.HasPrefix(j.ID, "sync-") || j.Delay != nil {
		t.Errorf("runsync: %+v", j)
	}
	if a := api(t, c, e, "POST", "runsync?wait=300000", openAIJob(chat(true, 1))); a.status != 524 || !strings.HasPrefix(string(a.body), "<!DOCTYPE html>") {
		t.Errorf("a hold beyond the edge's limit: %d %s", a.status, a.body)
	}
}

func TestPolicies(t *testing.T) {
	t.Run("ttl ends a queued job", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{TimeScale: 200}, fakerunpod.EndpointConfig{})
		e.SetWorkersMax(0)
		id := run(t, c, e, `{"input":{"prompt":"a"},"policy":{"ttl":1}}`) // 10 s at least
		wait(t, e, func(s fakerunpod.Stats) bool { return s.Expired == 1 })
		api(t, c, e, "GET", "status/"+id, "").is(t, 404, `{"status":404,"title":"Not Found","detail":"job not found"}`)
		api(t, c, e, "GET", "stream/"+id, "").is(t, 404, `{"status":404,"title":"Not Found","detail":"job not found"}`)
	})
	t.Run("executionTimeout", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{TimeScale: 50}, fakerunpod.EndpointConfig{TPS: 0.1, ColdStart: time.Second})
		id := run(t, c, e, strings.TrimSuffix(openAIJob(chat(true, 9999)), "}")+`,"policy":{"executionTimeout":5000}}`)
		if j := end(t, c, e, id); j.Status != "FAILED" || j.Error != "executionTimeout exceeded" || j.Execution == nil || *j.Execution < 90 {
			t.Errorf("%+v", j)
		}
		wait(t, e, func(s fakerunpod.Stats) bool { return s.Aborts == 1 })
	})
	t.Run("retention", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{RunRetention: 50 * time.Millisecond}, fakerunpod.EndpointConfig{})
		id := run(t, c, e, `{"input":{"prompt":"a"}}`)
		wait(t, e, func(s fakerunpod.Stats) bool {
			return s.Completed == 1 && len(e.Jobs()) == 0 || s.Completed == 1 && poll(t, func() bool { return len(e.Jobs()) == 0 })
		})
		api(t, c, e, "GET", "status/"+id, "").is(t, 404, `{"status":404,"title":"Not Found","detail":"job not found"}`)
	})
	t.Run("lowPriority starts no worker", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{})
		id := run(t, c, e, `{"input":{"prompt":"a"},"policy":{"lowPriority":true}}`)
		if s := e.Stats(); s.WorkersStarted != 0 {
			t.Errorf("%+v", s)
		}
		run(t, c, e, `{"input":{"prompt":"a"}}`)
		if j := end(t, c, e, id); j.Status != "COMPLETED" {
			t.Errorf("%+v", j)
		}
	})
}

// poll waits for something that makes no noise.
func poll(t *testing.T, done func() bool) bool {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range 10_000 {
		if done() {
			return true
		}
		<-tick.C
	}
	t.Fatal("it never comes")
	return false
}

func TestCancel(t *testing.T) {
	slow := fakerunpod.EndpointConfig{TPS: 8, TTFT: time.Millisecond, ColdStart: time.Millisecond}
	for name, old := range map[string]bool{"reaches the worker": false, "does not reach an old one": true} {
		t.Run(name, func(t *testing.T) {
			cfg := slow
			cfg.OldSDK = old
			c, e := one(t, fakerunpod.Config{TimeScale: 10}, cfg)
			id := run(t, c, e, openAIJob(chat(true, 30)))
			api(t, c, e, "GET", "stream/"+id+"?wait=300000", "")
			host := e.Workers()[0].Host
			api(t, c, e, "POST", "cancel/"+id, "").is(t, 200, `{"id":"`+id+`","status":"CANCELLED"}`)
			if j := api(t, c, e, "GET", "status/"+id, "").job(t); j.Status != "CANCELLED" || j.Output != nil {
				t.Errorf("%+v", j)
			}
			poll(t, func() bool { s := host.Stats(); return s.Completed+s.Aborted == 1 })
			want := 1
			if old {
				want = 0
			}
			if s := host.Stats(); s.Aborted != want {
				t.Errorf("the host's books: %+v", s)
			}
			if s := e.Stats(); s.Cancels != 1 || s.Cancelled != 1 {
				t.Errorf("%+v", s)
			}
		})
	}
	t.Run("queued", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{}, slow)
		e.SetWorkersMax(0)
		id := run(t, c, e, openAIJob(chat(true, 30)))
		run(t, c, e, openAIJob(chat(true, 30)))
		api(t, c, e, "POST", "cancel/"+id, "{}").is(t, 200, `{"id":"`+id+`","status":"CANCELLED"}`)
		api(t, c, e, "POST", "purge-queue", "null").is(t, 200, `{"removed":1,"status":"completed"}`)
		if s := e.Stats(); s.Queued != 0 || s.Cancelled != 2 {
			t.Errorf("%+v", s)
		}
		api(t, c, e, "POST", "cancel/nothing-u1", "").is(t, 404, `{"status":404,"title":"Not Found","detail":"job not found"}`)
	})
}

func TestRetry(t *testing.T) {
	c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{})
	e.FailNextJobs(1, fakerunpod.HandlerError)
	id := run(t, c, e, openAIJob(chat(false, 3)))
	if j := end(t, c, e, id); j.Status != "FAILED" {
		t.Fatalf("%+v", j)
	}
	if j := api(t, c, e, "POST", "retry/"+id, "").job(t); j.ID != id || j.Status != "IN_QUEUE" {
		t.Errorf("%+v", j)
	}
}

func TestRefusedRequests(t *testing.T) {
	c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{})
	big := strings.Repeat("x", 10<<20)
	for name, tc := range map[string]struct {
		method, op, body string
		status           int
	}{
		"no such endpoint":   {"GET", "../nobody/health", "", 404},
		"no such operation":  {"GET", "batch", "", 404},
		"wrong method":       {"GET", "run", "", 405},
		"no JSON":            {"POST", "run", "{", 400},
		"no input":           {"POST", "run", "{}", 400},
		"run above 10 MB":    {"POST", "run", `{"input":{"a":"` + big + `"}}`, 413},
		"sync below 20 MB":   {"POST", "runsync", `{"input":{"prompt":"` + big + `"}}`, 200},
		"sync above 20 MB":   {"POST", "runsync", `{"input":{"a":"` + big + big + `"}}`, 413},
		"openai above 20 MB": {"POST", "openai/v1/chat/completions", `{"a":"` + big + big + `"}`, 413},
	} {
		t.Run(name, func(t *testing.T) {
			a := api(t, c, e, tc.method, tc.op, tc.body)
			if a.status != tc.status || !strings.HasPrefix(string(a.body), "{") {
				t.Errorf("got %d %.200s, want %d", a.status, a.body, tc.status)
			}
		})
	}
}

func TestRateLimits(t *testing.T) {
	c, e := one(t, fakerunpod.Config{RateLimits: fakerunpod.RateLimits{Scale: 0.005}}, fakerunpod.EndpointConfig{})
	e.SetWorkersMax(0)
	codes := map[int]int{}
	var last answer
	for range 7 {
		last = api(t, c, e, "POST", "run", `{"input":{"prompt":"a"}}`)
		codes[last.status]++
	}
	if codes[200] != 5 || codes[429] != 2 || last.header.Get("Retry-After") != "" || e.Stats().Throttled != 2 {
		t.Errorf("of 1000×0.005 allowed: %v; %s", codes, last.body)
	}
	if a := api(t, c, e, "GET", "health", ""); a.status != 200 {
		t.Errorf("/health has no limit: %d", a.status)
	}
	c2, e2 := one(t, fakerunpod.Config{RateLimits: fakerunpod.RateLimits{Scale: 0.001, RetryAfter: 1500 * time.Millisecond, Plain: true, PerWorker: 3}},
		fakerunpod.EndpointConfig{WorkersMin: 1})
	poll(t, func() bool { return healthOf(t, c2, e2).Workers.Ready == 1 })
	for i := range 4 { // 3 for the running worker, above 1000×0.001
		a := api(t, c2, e2, "POST", "run", `{"input":{"prompt":"a"}}`)
		if i < 3 && a.status != 200 || i == 3 && (a.status != 429 || a.header.Get("Retry-After") != "2" || strings.HasPrefix(string(a.body), "{")) {
			t.Errorf("request %d: %d %s", i, a.status, a.body)
		}
	}
	c3, e3 := one(t, fakerunpod.Config{QueueLimit: true, RateLimits: fakerunpod.RateLimits{Off: true}}, fakerunpod.EndpointConfig{})
	e3.SetWorkersMax(0)
	codes = map[int]int{}
	for range 60 {
		codes[api(t, c3, e3, "POST", "run", `{"input":{"prompt":"a"}}`).status]++
	}
	if codes[200] != 51 {
		t.Errorf("with 50 in the queue: %v", codes)
	}
}

// TestScalers checks how many workers there are for how many jobs.
func TestScalers(t *testing.T) {
	t.Run("request count", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{TimeScale: 1}, fakerunpod.EndpointConfig{RequestCount: 2, WorkersMax: 3, ColdStart: time.Hour})
		for i, want := range []int{1, 1, 2, 2, 3, 3, 3} {
			run(t, c, e, `{"input":{"prompt":"a"}}`)
			if got := len(e.Workers()); got != want {
				t.Errorf("after job %d: %d workers, want %d", i+1, got, want)
			}
		}
	})
	t.Run("queue delay", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{TimeScale: 20}, fakerunpod.EndpointConfig{MaxConcurrency: 1, TPS: 0.1, ColdStart: time.Second, WorkersMax: 2})
		for range 3 {
			run(t, c, e, openAIJob(chat(true, 500)))
		}
		if n := len(e.Workers()); n != 1 {
			t.Errorf("%d workers at once", n)
		}
		wait(t, e, func(s fakerunpod.Stats) bool { return s.InProgress == 2 })
		if s := e.Stats(); s.Queued != 1 || s.WorkersStarted != 2 {
			t.Errorf("%+v", s)
		}
	})
	t.Run("minimum and GPUs in turn", func(t *testing.T) {
		_, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{WorkersMin: 2, GPUTypes: []string{"NVIDIA L4", "NVIDIA A40"}})
		wait(t, e, func(fakerunpod.Stats) bool {
			w := e.Workers()
			return len(w) == 2 && w[0].Status == fakerunpod.Idle && w[1].Status == fakerunpod.Idle
		})
		if w := e.Workers(); w[0].GPUTypeID != "NVIDIA L4" || w[1].GPUTypeID != "NVIDIA A40" {
			t.Errorf("%+v", w)
		}
		e.SetWorkersMax(0)
		if w := e.Workers(); len(w) != 0 {
			t.Errorf("%+v", w)
		}
	})
	t.Run("release", func(t *testing.T) {
		_, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{WorkersMin: 1})
		wait(t, e, func(fakerunpod.Stats) bool { return e.Workers()[0].Status == fakerunpod.Idle })
		old := e.Workers()[0].ID
		e.Release("acme/new:2")
		if w := e.Workers(); len(w) != 1 || w[0].ID == old {
			t.Errorf("%+v", w)
		}
	})
}

// TestOpenAIRoute checks what differs from a plain host behind it.
func TestOpenAIRoute(t *testing.T) {
	ask := func(t *testing.T, c *fakerunpod.Cloud, e *fakerunpod.Endpoint, body string) answer {
		t.Helper()
		return api(t, c, e, "POST", "openai/v1/chat/completions", body)
	}
	t.Run("plain, with a cost", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{CostUSD: 0.00024})
		a := ask(t, c, e, chat(false, 3))
		m := decoded(t, a.body)
		if a.status != 200 || m["cost"] != 0.00024 || m["object"] != "chat.completion" || a.header.Get("Content-Type") != "application/json" {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
	t.Run("usage only when asked for", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{})
		a := ask(t, c, e, chat(true, 30))
		if a.header.Get("Content-Type") != "text/event-stream" || content(t, string(a.body)) != said(30) || strings.Contains(string(a.body), `"usage"`) {
			t.Errorf("%d %s", a.status, a.body)
		}
		a = ask(t, c, e, strings.TrimSuffix(chat(true, 3), "}")+`,"stream_options":{"include_usage":true}}`)
		if !strings.Contains(string(a.body), `"choices":[],"usage"`) {
			t.Errorf("%s", a.body)
		}
	})
	t.Run("a GET is a job too", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{})
		a := api(t, c, e, "GET", "openai/v1/models", "")
		if m := decoded(t, a.body); m["object"] != "list" || e.Stats().WorkersStarted != 1 || e.Stats().Completed != 1 {
			t.Errorf("%s %+v", a.body, e.Stats())
		}
	})
	t.Run("without a model", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{})
		if a := ask(t, c, e, strings.Replace(chat(false, 3), `"model":"llama",`, "", 1)); a.status != 200 {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
	t.Run("a client that leaves", func(t *testing.T) {
		for _, cancels := range []bool{false, true} {
			c, e := one(t, fakerunpod.Config{TimeScale: 1, CancelOnDisconnect: cancels, EdgeFirstByte: time.Hour}, fakerunpod.EndpointConfig{ColdStart: time.Hour})
			req, err := http.NewRequestWithContext(t.Context(), "POST", c.QueueURL()+"/"+e.ID()+"/openai/v1/chat/completions", strings.NewReader(chat(true, 1)))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+c.Key())
			client := &http.Client{Timeout: 100 * time.Millisecond}
			if resp, err := client.Do(req); err == nil {
				_ = resp.Body.Close()
				t.Error("an answer from nobody")
			}
			if cancels {
				wait(t, e, func(s fakerunpod.Stats) bool { return s.Cancelled == 1 })
			} else if s := e.Stats(); s.Queued != 1 {
				t.Errorf("%+v", s)
			}
		}
	})
}
