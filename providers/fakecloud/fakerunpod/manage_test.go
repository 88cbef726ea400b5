package fakerunpod_test

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"headrace/providers/fakecloud/fakerunpod"
)

func TestManagement(t *testing.T) {
	c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{
		Name: "chat", Env: map[string]string{"MODEL_NAME": "acme/llama", "OPENAI_SERVED_MODEL_NAME_OVERRIDE": "llama, other"}, Args: "--max-model-len 4096",
		WorkersMin: 1, WorkersMax: 4, Timeout: time.Minute, GPUTypes: []string{"NVIDIA GeForce RTX 4090", "NVIDIA H200"}, GPUCount: 2,
	})
	c.AddEndpoint(fakerunpod.EndpointConfig{ID: "lb", Type: fakerunpod.LoadBalancer})
	get := func(t *testing.T, path string) map[string]any {
		t.Helper()
		a := do(t, c, "GET", c.ManagementURL()+path, "")
		if a.status != 200 || a.header.Get("X-Request-Id") == "" {
			t.Fatalf("%s: %d %s", path, a.status, a.body)
		}
		return decoded(t, a.body)
	}
	t.Run("endpoints", func(t *testing.T) {
		list := get(t, "/serverless")["endpoints"].([]any) //nolint:forcetypeassert // a test
		one := get(t, "/serverless/"+e.ID())
		if len(list) != 2 || one["name"] != "chat" || one["type"] != "QUEUE" || one["timeout"] != 60000.0 || one["args"] != "--max-model-len 4096" {
			t.Errorf("%v", one)
		}
		j, _ := json.Marshal(one) //nolint:errchkjson // it was decoded a moment ago
		for _, want := range []string{
			`"env":{"MODEL_NAME":"acme/llama","OPENAI_SERVED_MODEL_NAME_OVERRIDE":"llama, other"}`, `"run":"` + c.QueueURL() + "/" + e.ID() + `/run"`,
			`"pools":["ADA_24","HOPPER_141"]`, `"count":2`, `"idleTimeout":5`, `"max":4`, `"scaling":{"queueDelay":4,"type":"QUEUE_DELAY"}`, `"image":"runpod/worker-v1-vllm:v2.25.2"`,
		} {
			if !strings.Contains(string(j), want) {
				t.Errorf("no %s in %s", want, j)
			}
		}
		if lb := get(t, "/serverless/lb"); lb["type"] != "LOAD_BALANCER" || lb["requestUrls"].(map[string]any)["base"] != c.QueueURL()[:len(c.QueueURL())-len("/ai/v2")]+"/lb/lb" { //nolint:forcetypeassert // a test
			t.Errorf("%v", lb)
		}
	})
	t.Run("workers", func(t *testing.T) {
		wait(t, e, func(fakerunpod.Stats) bool { return e.Workers()[0].Status == fakerunpod.Idle })
		j := end(t, c, e, run(t, c, e, `{"input":{"prompt":"a"}}`))
		a := do(t, c, "GET", c.ManagementURL()+"/serverless/"+e.ID()+"/workers", "")
		for _, want := range []string{`"id":"` + j.Worker + `"`, `"gpuTypeId":"NVIDIA GeForce RTX 4090"`, `"gpuCount":2`, `"dataCenterId":"US-KS-2"`, `"status":"IDLE"`, `"isStale":false`, `"total":1`, `"uptimeSeconds":0`} {
			if !strings.Contains(string(a.body), want) {
				t.Errorf("no %s in %s", want, a.body)
			}
		}
	})
	t.Run("catalogue and prices that move", func(t *testing.T) {
		price := func() any {
			return get(t, "/catalog/gpus/NVIDIA%20H200")["price"].(map[string]any)["serverless"] //nolint:forcetypeassert // a test
		}
		if price() != 5.58 {
			t.Errorf("%v", price())
		}
		c.SetPrice("NVIDIA H200", 6.25)
		if price() != 6.25 {
			t.Errorf("%v", price())
		}
		c.SetAvailability("NVIDIA H200", "NONE")
		for _, g := range get(t, "/catalog/gpus?include=AVAILABILITY&product=SERVERLESS")["gpus"].([]any) { //nolint:forcetypeassert // a test
			m := g.(map[string]any) //nolint:forcetypeassert // a test
			if m["id"] == "NVIDIA H200" && m["availability"] != "NONE" || m["id"] == "NVIDIA L4" && m["availability"] != "HIGH" {
				t.Errorf("%v", m)
			}
			if _, priced := m["price"].(map[string]any)["serverless"]; m["pool"] == nil && priced { //nolint:forcetypeassert // a test
				t.Errorf("a serverless price without a pool: %v", m)
			}
		}
		for path, status := range map[string]int{"/catalog/gpus?include=AVAILABILITY": 400, "/catalog/gpus?product=POD": 400, "/catalog/gpus?include=X": 422, "/catalog/gpus/none": 404, "/nothing": 404} {
			if a := do(t, c, "GET", c.ManagementURL()+path, ""); a.status != status || a.header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("%s: %d %s", path, a.status, a.body)
			}
		}
		if a := do(t, c, "POST", c.ManagementURL()+"/serverless", ""); a.status != 405 || a.header.Get("Allow") != "GET" {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
	t.Run("billing", func(t *testing.T) {
		m := get(t, "/billing/serverless?bucketSize=hour&lastN=3&serverlessId="+e.ID())
		r := m["records"].([]any) //nolint:forcetypeassert // a test
		if len(r) < 1 || len(r) > 2 {
			t.Fatalf("%v", m)
		}
		if first := r[0].(map[string]any); first["serverlessId"] != e.ID() || first["totalAmount"].(float64) <= 0 { //nolint:forcetypeassert // a test
			t.Errorf("%v", first)
		}
		for path, status := range map[string]int{"?bucketSize=minute": 422, "?lastN=2&startTime=2026-01-01T00:00:00Z": 400, "?startTime=yesterday": 422, "?bucketSize=month&startTime=2026-01-01T00:00:00Z": 200} {
			if a := do(t, c, "GET", c.ManagementURL()+"/billing/serverless"+path, ""); a.status != status {
				t.Errorf("%s: %d %s", path, a.status, a.body)
			}
		}
	})
	t.Run("odd shapes", func(t *testing.T) {
		c.OddShapes(true)
		defer c.OddShapes(false)
		if m := get(t, "/serverless/"+e.ID()); m["type"] != "HYBRID" || m["requestUrls"] != nil {
			t.Errorf("%v", m)
		}
		if g := get(t, "/catalog/gpus/NVIDIA%20L4"); g["price"].(map[string]any)["serverless"] != "0.684" { //nolint:forcetypeassert // a test
			t.Errorf("%v", g)
		}
	})
	if n := c.ManagementCalls()["GET serverless/{id}/workers"]; n != 1 {
		t.Errorf("%v", c.ManagementCalls())
	}
}

func TestManagementLimits(t *testing.T) {
	c, _ := one(t, fakerunpod.Config{Management: fakerunpod.Management{PerMinute: 2, PerHour: 100}}, fakerunpod.EndpointConfig{})
	url := c.ManagementURL() + "/serverless"
	first := do(t, c, "GET", url, "")
	if got := first.header.Get("RateLimit"); !strings.HasPrefix(got, `"minute";r=1;t=60, "hour";r=99;t=3600, "day";r=49999;t=86400`) {
		t.Errorf("RateLimit: %s", got)
	}
	if got := first.header.Get("RateLimit-Policy"); got != `"minute";q=2;w=60, "hour";q=100;w=3600, "day";q=50000;w=86400` {
		t.Errorf("RateLimit-Policy: %s", got)
	}
	do(t, c, "GET", url, "")
	a := do(t, c, "GET", url, "")
	if after, err := strconv.Atoi(a.header.Get("Retry-After")); a.status != http.StatusTooManyRequests || err != nil || after < 1 || after > 60 {
		t.Errorf("%d %v", a.status, a.header)
	}
	a.is(t, 429, `{"title":"Too Many Requests","status":429,"detail":"rate limit exceeded for the minute window"}`)
}

func TestPods(t *testing.T) {
	pod := func(t *testing.T, cfg fakerunpod.Config, pc fakerunpod.PodConfig) (*fakerunpod.Cloud, *fakerunpod.Pod, func(port string) string) {
		t.Helper()
		c := start(t, cfg)
		pc.Models = []string{model}
		p, err := c.AddPod(pc)
		if err != nil {
			t.Fatal(err)
		}
		return c, p, func(port string) string {
			return strings.NewReplacer("{id}", p.ID(), "{port}", port).Replace(c.PodURL())
		}
	}
	describe := func(t *testing.T, c *fakerunpod.Cloud, p *fakerunpod.Pod) (m struct {
		Status, Cloud string
		Cost          float64
		Runtime       *struct {
			Ports []struct {
				Private, Public int
				Type, IP        string
			}
		}
	},
	) {
		t.Helper()
		if err := json.Unmarshal(do(t, c, "GET", c.ManagementURL()+"/pods/"+p.ID(), "").body, &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	t.Run("behind the proxy", func(t *testing.T) {
		c, p, url := pod(t, fakerunpod.Config{}, fakerunpod.PodConfig{APIKey: "sk-pod", Community: true})
		a := do(t, c, "POST", url("8000")+"/v1/chat/completions", chat(true, 30), "Authorization", "Bearer sk-pod")
		if a.status != 200 || content(t, string(a.body)) != said(30) {
			t.Errorf("%d %s", a.status, a.body)
		}
		if a := do(t, c, "GET", url("8000")+"/v1/models", "", "Authorization", "Bearer other"); a.status != 401 || string(a.body) != `{"error":"Unauthorized"}` {
			t.Errorf("the pod's own refusal: %d %s", a.status, a.body)
		}
		if a := do(t, c, "GET", url("9000")+"/v1/models", ""); a.status != 404 || !strings.HasPrefix(string(a.body), "<!DOCTYPE html>") {
			t.Errorf("a port that is not exposed: %d %s", a.status, a.body)
		}
		if m := describe(t, c, p); m.Status != "RUNNING" || m.Cloud != "COMMUNITY" || m.Cost != 1.19 || m.Runtime == nil {
			t.Errorf("%+v", m)
		}
		p.ZeroGPU(true)
		if a := do(t, c, "GET", url("8000")+"/v1/models", ""); a.status != 502 {
			t.Errorf("without GPUs: %d", a.status)
		}
	})
	t.Run("runpod_9.15_proxy", func(t *testing.T) {
		c, _, url := pod(t, fakerunpod.Config{TimeScale: 200}, fakerunpod.PodConfig{WarmUp: 30 * time.Second, TTFT: 400 * time.Second})
		if a := do(t, c, "GET", url("8000")+"/health", ""); a.status != 502 || !strings.HasPrefix(string(a.body), "<!DOCTYPE html>") {
			t.Errorf("warming up: %d %s", a.status, a.body)
		}
		poll(t, func() bool { return do(t, c, "GET", url("8000")+"/health", "").status == 200 })
		if a := do(t, c, "POST", url("8000")+"/v1/chat/completions", chat(false, 5)); a.status != 524 {
			t.Errorf("silent for 100 s: %d %s", a.status, a.body)
		}
	})
	t.Run("runpod_9.15_port_changes_after_restart", func(t *testing.T) {
		c, p, _ := pod(t, fakerunpod.Config{TimeScale: 10}, fakerunpod.PodConfig{Ports: []fakerunpod.Port{{Private: 8000, TCP: true}}, StalePort: time.Second})
		before := describe(t, c, p).Runtime.Ports[0]
		if before.Type != "tcp" || before.Private != 8000 || p.Host().URL() != "http://"+net.JoinHostPort(before.IP, strconv.Itoa(before.Public)) {
			t.Errorf("%+v, the server is at %s", before, p.Host().URL())
		}
		if err := p.Restart(); err != nil {
			t.Fatal(err)
		}
		if now := describe(t, c, p).Runtime.Ports[0]; now.Public != before.Public {
			t.Errorf("the old port is not shown for a while: %+v", now)
		}
		poll(t, func() bool { return describe(t, c, p).Runtime.Ports[0].Public != before.Public })
		if now := describe(t, c, p).Runtime.Ports[0]; p.Host().URL() != "http://"+net.JoinHostPort(now.IP, strconv.Itoa(now.Public)) {
			t.Errorf("%+v, the server is at %s", now, p.Host().URL())
		}
	})
	t.Run("runpod_9.16_spot_pod_is_taken_away", func(t *testing.T) {
		c, p, url := pod(t, fakerunpod.Config{TimeScale: 1}, fakerunpod.PodConfig{Spot: true, TPS: 100, TTFT: time.Millisecond})
		host := p.Host()
		go func() {
			poll(t, func() bool { return host.Stats().OutputTokens > 3 })
			p.Preempt()
		}()
		if a := do(t, c, "POST", url("8000")+"/v1/chat/completions", chat(true, 2000)); a.status != 200 || a.err == nil || !strings.Contains(a.err.Error(), "reset") {
			t.Errorf("%d %v", a.status, a.err)
		}
		if m := describe(t, c, p); m.Status != "EXITED" || m.Cost != 0 || m.Runtime != nil {
			t.Errorf("%+v", m)
		}
		if a := do(t, c, "GET", url("8000")+"/v1/models", ""); a.status != 404 {
			t.Errorf("%d", a.status)
		}
		if a := do(t, c, "POST", c.ManagementURL()+"/pods/"+p.ID()+"/action", `{"action":"start"}`); a.status != 409 {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
	t.Run("actions, migration, bill", func(t *testing.T) {
		c, p, url := pod(t, fakerunpod.Config{}, fakerunpod.PodConfig{USDPerHour: 3600})
		act := func(action string) int {
			return do(t, c, "POST", c.ManagementURL()+"/pods/"+p.ID()+"/action", `{"action":"`+action+`"}`).status
		}
		if act("stop") != 200 || describe(t, c, p).Status != "EXITED" || act("start") != 200 || describe(t, c, p).Status != "RUNNING" || act("dance") != 422 {
			t.Errorf("%+v", describe(t, c, p))
		}
		old, before := p.ID(), url("8000")
		if err := p.Migrate(); err != nil || p.ID() == old {
			t.Errorf("%v %s", err, p.ID())
		}
		if a, b := do(t, c, "GET", before+"/v1/models", ""), do(t, c, "GET", url("8000")+"/v1/models", ""); a.status != 404 || b.status != 200 {
			t.Errorf("old address %d, new %d", a.status, b.status)
		}
		if usd := c.Bill(old); usd <= 0 || usd > 60 {
			t.Errorf("$%v", usd)
		}
		if act("terminate") != 200 || strings.Contains(string(do(t, c, "GET", c.ManagementURL()+"/pods", "").body), p.ID()) {
			t.Error("a terminated pod is listed")
		}
	})
}

// TestStop checks that nothing hangs when a busy cloud ends, by Stop or by its context.
func TestStop(t *testing.T) {
	for _, byContext := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		c, err := fakerunpod.Start(ctx, fakerunpod.Config{TimeScale: 1})
		if err != nil {
			cancel()
			t.Fatal(err)
		}
		e := c.AddEndpoint(fakerunpod.EndpointConfig{Models: []string{model}, ColdStart: time.Millisecond, TPS: 1, WorkersMin: 1})
		c.AddEndpoint(fakerunpod.EndpointConfig{WorkersMin: 1, ColdStart: time.Hour})
		if _, err := c.AddPod(fakerunpod.PodConfig{}); err != nil {
			t.Error(err)
		}
		id := run(t, c, e, openAIJob(chat(true, 100)))
		held := make(chan struct{})
		go func() {
			defer close(held)
			for {
				if _, err := send(t, c, "GET", c.QueueURL()+"/"+e.ID()+"/stream/"+id, ""); err != nil {
					return
				}
			}
		}()
		wait(t, e, func(s fakerunpod.Stats) bool { return s.Yields > 0 || s.InProgress > 0 })
		if byContext {
			cancel()
		}
		c.Stop()
		cancel()
		<-held
	}
}

func TestChangeOfWorkers(t *testing.T) {
	c, e := one(t, fakerunpod.Config{TimeScale: 10}, fakerunpod.EndpointConfig{WorkersMax: 2, IdleTimeout: 7 * time.Second, ColdStart: time.Second})
	url := c.ManagementURL() + "/serverless/" + e.ID()
	patch := func(body string, want int) answer {
		t.Helper()
		a := do(t, c, "PATCH", url, body)
		if a.status != want {
			t.Errorf("%s: %d %s, want %d", body, a.status, a.body, want)
		}
		return a
	}
	if a := patch(`{"workers":{"min":1}}`, 200); !strings.Contains(string(a.body), `"workers":{"idleTimeout":7,"max":2,"min":1}`) {
		t.Errorf("%s", a.body)
	}
	wait(t, e, func(fakerunpod.Stats) bool { return len(e.Workers()) == 1 && e.Workers()[0].Status == fakerunpod.Idle })
	patch(`{"workers":{"min":3}}`, 422) // more than max
	patch(`{"workers":{"min":-1}}`, 422)
	patch(`{"workers":{"min":1},"env":{}}`, 422)
	patch(`{"workers":`, 400)
	c.RefuseChanges(1)
	patch(`{"workers":{"min":2}}`, 403)
	if e.WorkersMin() != 1 {
		t.Errorf("refused changes changed min to %d", e.WorkersMin())
	}
	patch(`{"workers":{"min":0,"max":2,"idleTimeout":7}}`, 200)
	wait(t, e, func(s fakerunpod.Stats) bool { return s.Workers == 0 })
	c.LoseChangeAnswers(1)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPatch, url, strings.NewReader(`{"workers":{"min":2}}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.Key())
	if res, err := http.DefaultClient.Do(req); err == nil {
		_ = res.Body.Close()
		t.Errorf("the answer was not lost: %d", res.StatusCode)
	}
	if e.WorkersMin() != 2 {
		t.Error("a change whose answer was lost was not made")
	}
	if n := c.ManagementCalls()["PATCH serverless/{id}"]; n != 8 {
		t.Errorf("%d changes counted, want 8", n)
	}
}
