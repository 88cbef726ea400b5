package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"headrace/gateway/config"
	"headrace/gateway/state"
	"headrace/gateway/state/redistest"
	"headrace/providers/fakecloud"
	"headrace/providers/fakecloud/fakerunpod"
	"headrace/providers/runpod"
	"headrace/router"
	"headrace/router/capacity"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// patience is how long a test waits for what is to happen at all, however busy the machine.
const patience = 150 * time.Second

// eventually polls until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not so after %v", what, patience)
		}
	}
}

// burst is a gateway with a rented host that is full and an endpoint that sleeps.
type burst struct {
	*running
	cloud *fakerunpod.Cloud
	e     *fakerunpod.Endpoint
	leave func() // ends the streams
}

// startBurst opens as many streams as the rented host has room for; they last until the test ends.
func startBurst(t *testing.T, actions string) *burst {
	t.Helper()
	const room = 4
	host := startHost(t, fakecloud.HostConfig{Models: []string{"org/llama"}, TimeScale: 1, TPS: 20, MaxNumSeqs: room})
	cloud := startRunPod(t, fakerunpod.Config{TimeScale: 100, Seed: 1})
	e := cloud.AddEndpoint(fakerunpod.EndpointConfig{
		ID: "e1", Name: "llama", ColdStart: 60 * time.Second, IdleTimeout: 3000 * time.Second, Env: map[string]string{"MODEL_NAME": "org/llama"},
	})
	b := &burst{cloud: cloud, e: e}
	b.running = startApp(t, t.TempDir(), fmt.Sprintf(`
listen: "127.0.0.1:0"
admin: "127.0.0.1:0"
continuation: {self_test: false} # takes room for a moment
providers:
  static:
    - {name: lab, base_url: "%s/v1", models: ["org/llama"], max_num_seqs: %d, price: {usd_per_hour: 1}}
  runpod:
    api_key: %s
    management_url: %s
    queue_url: %s
    balancer_url: "%s"
    health_poll: 100ms
    endpoints: [{match: llama, actions: "%s"}]
`, host.URL(), room, cloud.Key(), cloud.ManagementURL(), cloud.QueueURL(), cloud.BalancerURL(), actions), nil)
	eventually(t, "found asleep", func() bool { return stateOf(b.app.router.Hosts(), "runpod:e1") == "cold" })
	ctx, cancel := context.WithCancel(t.Context())
	b.leave = cancel
	t.Cleanup(cancel)
	for range room {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.base+"/v1/chat/completions",
			strings.NewReader(`{"model":"org/llama","stream":true,"max_tokens":4000,"ignore_eos":true,"messages":[{"role":"user","content":"on and on"}]}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = res.Body.Close() })
		if id := res.Header.Get("X-Headrace-Endpoint"); res.StatusCode != 200 || id != "static:lab" {
			t.Fatalf("%d from %q", res.StatusCode, id)
		}
	}
	return b
}

type shownAdvice struct {
	Action, Endpoint, Note string
	Done                   bool
	DoneAt                 *time.Time `json:"done_at"`
}

func (b *burst) advice(t *testing.T) (a shownAdvice) {
	t.Helper()
	_, body := get(t, "http://"+b.app.admin.Addr().String()+"/admin/v1/advice")
	var list struct{ Advice []shownAdvice }
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		t.Fatal(err)
	}
	for _, a := range list.Advice {
		if a.Action == "wake" {
			return a
		}
	}
	return a
}

// TestBurstWakesAWorker has a worker up before the first request that needs it comes.
func TestBurstWakesAWorker(t *testing.T) {
	t.Parallel()
	b := startBurst(t, "wake")
	eventually(t, "woken and up", func() bool {
		return b.e.Stats().Completed == 1 && stateOf(b.app.router.Hosts(), "runpod:e1") == "ready"
	})
	if n := b.e.Stats(); n.Submitted != 1 || n.Requests["run"] != 1 || n.Requests["openai"] != 0 || n.WorkersStarted != 1 {
		t.Fatalf("before anybody needed it: %+v", n)
	}
	began := time.Now()
	r := &rented{t: t, app: b.app, log: b.log, base: b.base}
	c := r.chat("org/llama", "hello", 8, true)
	if c.status != 200 || c.endpoint != "runpod:e1" || c.attempts != "1" || !c.done {
		t.Errorf("the next request: %+v", c)
	}
	if n := b.e.Stats(); n.Requests["run"] != 1 || n.Requests["openai"] != 1 || n.WorkersStarted != 1 {
		t.Errorf("it did not find the worker up (%v): %+v", time.Since(began), n)
	}
	if a := b.advice(t); a.Endpoint != "runpod:e1" || !a.Done || a.DoneAt == nil || a.Note != "" {
		t.Errorf("advice %+v", a)
	}
	_, body := get(t, "http://"+b.app.admin.Addr().String()+"/admin/v1/providers")
	if !strings.Contains(body, `"actions":{"acting":true,"wakes":1,"holds":0,"let_go":0,"failed":0,"held":[]`) {
		t.Errorf("providers: %s", body)
	}
	if n := b.cloud.ManagementCalls(); n["PATCH serverless/{id}"] != 0 {
		t.Errorf("%v", n)
	}
}

// TestBurstWithActionsOff tells what would help, and does nothing.
func TestBurstWithActionsOff(t *testing.T) {
	b := startBurst(t, "off")
	eventually(t, "advised", func() bool { return b.advice(t).Endpoint == "runpod:e1" })
	if a := b.advice(t); a.Done || a.DoneAt != nil || !strings.Contains(a.Note, `actions is "off"`) {
		t.Errorf("advice %+v", a)
	}
	b.leave()
	if err := b.stop(); err != nil { // whatever was to be sent was sent
		t.Error(err)
	}
	if n := b.e.Stats(); n.Submitted != 0 || n.WorkersStarted != 0 || len(n.Requests) != 1 || n.Requests["health"] == 0 {
		t.Errorf("%+v", n)
	}
	for call := range b.cloud.ManagementCalls() {
		if !strings.HasPrefix(call, "GET ") {
			t.Errorf("%s was called", call)
		}
	}
}

// TestHoldFollowsDemand holds a worker while it is cheaper than the API, and lets it go after that.
func TestHoldFollowsDemand(t *testing.T) {
	cloud := startRunPod(t, fakerunpod.Config{TimeScale: 100, Seed: 1})
	e := cloud.AddEndpoint(fakerunpod.EndpointConfig{ID: "w", Name: "worker", ColdStart: time.Second, IdleTimeout: 5 * time.Second})
	var clock atomic.Int64
	clock.Store(time.Unix(1_900_000_000, 0).UnixNano())
	now := func() time.Time { return time.Unix(0, clock.Load()) }
	r := router.New(router.Options{Now: now, Seed: 1, Prior: func(*endpoint.Endpoint) capacity.Prior {
		return capacity.Prior{ITLSeconds: 0.0275 * 1.04, Slope: 0.04, TTFTSeconds: 0.25, PrefillTokensPerSecond: 1200}
	}})
	worker := endpoint.Endpoint{
		ID: "runpod:w", Provider: "runpod", Tenure: endpoint.Serverless, Served: []endpoint.Served{{Name: "m"}}, MaxNumSeqs: 30, State: endpoint.Cold,
		Price:  endpoint.Price{Basis: endpoint.PerWorkerSecond, USDPerWorkerSecond: 0.00116, ColdStart: 45 * time.Second, IdleTimeout: 5 * time.Second},
		Labels: map[string]string{"name": "worker", "type": "queue"}, BaseURL: cloud.QueueURL() + "/w/openai/v1",
	}
	fleet := []endpoint.Endpoint{worker, {
		ID: "api", MaxNumSeqs: 400, Served: []endpoint.Served{{Name: "m"}}, Tenure: endpoint.TenurePerToken, State: endpoint.Ready,
		Price: endpoint.Price{Basis: endpoint.PerToken, USDPerMTokIn: 3, USDPerMTokOut: 4.5},
	}}
	r.Update(fleet, nil)
	log := newLogBuffer()
	actor := runpod.NewActor(runpod.ActorOptions{
		Key: endpoint.Secret(cloud.Key()), ManagementURL: cloud.ManagementURL(), Permits: []runpod.Permit{{Match: "worker", Permission: runpod.MayHold}},
		Memory: runpod.File(filepath.Join(t.TempDir(), "held")), Log: slog.New(slog.NewTextHandler(log, nil)), Now: now,
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = actor.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	a := &adviser{router: r, log: slog.New(slog.DiscardHandler), act: actor, fleet: func() []endpoint.Endpoint { return fleet }}

	for range 900 { // three requests a second for five minutes
		var l router.Lease
		if err := r.Pick(&router.Request{Model: "m", PromptTokens: 430}, &l); err != nil {
			t.Fatal(err)
		}
		l.FirstContent(300 * time.Millisecond)
		l.Done(router.Result{Class: outcome.Success, OutputTokens: 233, Cached: -1, Streamed: 6 * time.Second})
		clock.Add(int64(time.Second / 3))
		a.ask(now())
	}
	eventually(t, "held", func() bool { a.ask(now()); return e.WorkersMin() == 1 && len(actor.Status().Held) == 1 })
	worker.State, worker.Workers = endpoint.Ready, 3
	fleet = []endpoint.Endpoint{worker, fleet[1]}
	r.Update(fleet, nil)
	b, err := json.Marshal(a.lately())
	if err != nil || !strings.Contains(string(b), `"action":"hold"`) || !strings.Contains(string(b), `"done":true,"done_at":"`) {
		t.Errorf("advice %s, %v", b, err)
	}
	if why := actor.Status().Held[0].Why; !strings.Contains(why, "at the API") {
		t.Errorf("held because %q", why)
	}
	for range 1000 { // nobody asks any more
		clock.Add(int64(time.Second))
		a.ask(now())
	}
	eventually(t, "let go", func() bool {
		clock.Add(int64(time.Second))
		a.ask(now())
		return e.WorkersMin() == 0 && actor.Status().LetGo == 1
	})
	if n := cloud.ManagementCalls()["PATCH serverless/{id}"]; n != 2 {
		t.Errorf("%d changes:\n%s", n, log.String())
	}
}

// TestReplicasThroughRedis has one of two gateways find what a third had held when it died, and the other take its place.
func TestReplicasThroughRedis(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t).URL()
	cloud := startRunPod(t, fakerunpod.Config{TimeScale: 100, Seed: 1})
	e := cloud.AddEndpoint(fakerunpod.EndpointConfig{ID: "e1", WorkersMin: 2, Env: map[string]string{"MODEL_NAME": "org/llama"}})
	yaml := fmt.Sprintf(`
listen: "127.0.0.1:0"
admin: "127.0.0.1:0"
state: {redis: "%s", timeout: 10s}
providers:
  runpod:
    api_key: %s
    management_url: %s
    queue_url: %s
    balancer_url: "%s"
    endpoints: [{match: e1, actions: hold}]
`, redis, cloud.Key(), cloud.ManagementURL(), cloud.QueueURL(), cloud.BalancerURL())
	start := func() *running { return startApp(t, t.TempDir(), yaml, nil) }

	r, err := state.Open(state.Options{URL: redis, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	kept := r.Turn(turnName(&config.RunPod{ManagementURL: cloud.ManagementURL(), APIKey: endpoint.Secret(cloud.Key())}))
	if err := kept.Save(t.Context(), []byte(`{"held":{"e1":{"was":1,"from":1,"set":2,"since":"2026-01-02T03:04:05Z","why":"demand"}}}`)); err != nil {
		t.Fatal(err)
	}

	first := start()
	eventually(t, "found", func() bool { return len(first.app.actor.Status().Held) == 1 })
	first.log.await(t, "has left workers held", 1)
	second := start()
	second.log.await(t, "listening", 1)
	if st := second.app.actor.Status(); st.Acting || len(st.Held) != 0 {
		t.Errorf("the second acts as well: %+v", st)
	}
	if err := first.stop(); err != nil {
		t.Error(err)
	}
	if n := e.WorkersMin(); n != 1 {
		t.Errorf("%d workers at least after the end, 1 is the operator's own", n)
	}
	if b, err := kept.Load(t.Context()); err != nil || b != nil {
		t.Errorf("kept %s, %v", b, err)
	}
	eventually(t, "the second's turn", func() bool { return second.app.actor.Status().Acting })
	if n := cloud.ManagementCalls()["PATCH serverless/{id}"]; n != 1 {
		t.Errorf("%d changes", n)
	}
}
