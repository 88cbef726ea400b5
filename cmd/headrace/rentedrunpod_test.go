package main

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"

	"headrace/gateway/ledger"
	"headrace/providers/fakecloud/fakerunpod"
	"headrace/providers/fakecloud/fakevast"
	"headrace/router"
	"headrace/router/outcome"
)

func startRunPod(t *testing.T, cfg fakerunpod.Config) *fakerunpod.Cloud {
	t.Helper()
	c, err := fakerunpod.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	return c
}

func runpodEnv(c *fakerunpod.Cloud) map[string]string {
	return map[string]string{
		"RUNPOD_API_KEY": c.Key(), "RUNPOD_MANAGEMENT_URL": c.ManagementURL(), "RUNPOD_QUEUE_URL": c.QueueURL(),
		"RUNPOD_BALANCER_URL": c.BalancerURL(), "RUNPOD_POD_URL": c.PodURL(),
	}
}

// lastRecord is the newest request of an endpoint.
func (r *rented) lastRecord(id string) (rec ledger.Record) {
	for _, one := range r.app.ring.Newest(1, func(l *ledger.Record) bool { return string(l.Endpoint) == id }) {
		rec = one
	}
	return rec
}

// TestZeroConfigRunPod finds an endpoint whose workers sleep, wakes one by a native job, and speaks to it by the OpenAI route once it is up.
func TestZeroConfigRunPod(t *testing.T) {
	for name, generation := range map[string]fakerunpod.Generation{"v2.24": fakerunpod.V24, "v2.23": fakerunpod.V23} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // most of it waits for the next look at /health
			cloud := startRunPod(t, fakerunpod.Config{TimeScale: 100, Seed: 1})
			cloud.AddEndpoint(fakerunpod.EndpointConfig{
				ID: "sleepy", Name: "llama", Generation: generation, ColdStart: 60 * time.Second, IdleTimeout: 2000 * time.Second, Env: map[string]string{"MODEL_NAME": "org/llama"},
			})
			r := startRented(t, runpodEnv(cloud))
			const id = "runpod:sleepy"
			r.until("found asleep", func(hs []router.HostView) bool { return stateOf(hs, id) == "cold" })
			h := r.app.router.Hosts()[0]
			if h.Dialect != "runpod_jobs" || len(h.Models) != 1 || h.Models[0] != "org/llama" || h.PriceBasis != "per_worker_second" || h.USDPerHour == nil || *h.USDPerHour <= 0 {
				t.Errorf("host %+v", h)
			}
			if s := cloud.Endpoint("sleepy").Stats(); len(cloud.Endpoint("sleepy").Jobs()) != 0 {
				t.Fatalf("finding it has woken a worker: %+v", s)
			}
			cold := r.chat("org/llama", "hello", 12, true)
			if cold.status != 200 || !cold.done || cold.endpoint != id {
				t.Fatalf("cold: %+v", cold)
			}
			if rec := r.lastRecord(id); rec.Attempts[0].Told().Worker == "" || rec.Attempts[0].Told().Delayed <= 0 || !rec.USDKnown {
				t.Errorf("the job's worker and times are not in the record: %+v", rec.Attempts[0])
			}
			r.until("warm", func(hs []router.HostView) bool { return stateOf(hs, id) == "ready" && hs[0].Dialect == "openai" })
			warm := r.chat("org/llama", "hello", 12, true)
			if warm.status != 200 || !warm.done || warm.text != cold.text {
				t.Errorf("warm %+v, cold said %q", warm, cold.text)
			}
			if rec := r.lastRecord(id); rec.Attempts[0].Told().Worker != "" {
				t.Errorf("the warm request was a native job: %+v", rec.Attempts[0])
			}
			if strings.Contains(r.log.String(), cloud.Key()) {
				t.Error("the key is in the log")
			}
		})
	}
}

// TestRefusalOfRunPod gives the caller vLLM's 400 out of what RunPod wraps around it, cold and warm.
func TestRefusalOfRunPod(t *testing.T) {
	for name, generation := range map[string]fakerunpod.Generation{"v2.24": fakerunpod.V24, "v2.23": fakerunpod.V23, "SGLang": fakerunpod.SGLang} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cloud := startRunPod(t, fakerunpod.Config{TimeScale: 100, Seed: 1, QuoteError: true})
			e := cloud.AddEndpoint(fakerunpod.EndpointConfig{ID: "e", Generation: generation, WorkersMin: 1, Env: map[string]string{"MODEL_NAME": "org/llama"}})
			r := startRented(t, runpodEnv(cloud))
			const id = "runpod:e"
			for _, dialect := range []string{"runpod_jobs", "openai"} {
				if dialect == "openai" {
					r.chat("org/llama", "hello", 12, false) // an answer shows that the worker works
					r.until("warm", func(hs []router.HostView) bool { return stateOf(hs, id) == "ready" && hs[0].Dialect == dialect })
				} else {
					r.until("found", func(hs []router.HostView) bool { return stateOf(hs, id) != "" })
				}
				for _, stream := range []bool{false, true} {
					e.FailNextJobs(1, fakerunpod.RefusedJob)
					c := r.chat("org/llama", "hello", 12, stream)
					for tries := 0; c.status == 200 && tries < 10; tries++ { // it befell a test of the gateway's own
						e.FailNextJobs(1, fakerunpod.RefusedJob)
						c = r.chat("org/llama", "hello", 12, stream)
					}
					var got struct {
						Error struct{ Message, Type string }
					}
					if err := json.Unmarshal([]byte(c.body), &got); err != nil || c.status != 400 || !strings.HasPrefix(got.Error.Message, "This model's maximum context length is 4096 tokens.") {
						t.Errorf("%s, stream %v: %d %s", dialect, stream, c.status, c.body)
					}
					if dialect == "openai" && generation != fakerunpod.SGLang && got.Error.Type != "invalid_request_error" {
						t.Errorf("%s, stream %v: type %q", dialect, stream, got.Error.Type)
					}
					if rec := r.lastRecord(id); rec.Tries != 1 || rec.Class != outcome.CallerFault {
						t.Errorf("%s, stream %v: %d attempts, %s", dialect, stream, rec.Tries, rec.Class)
					}
				}
			}
		})
	}
}

// TestZeroConfigBoth takes both accounts, and serves one model from whichever is cheaper.
func TestZeroConfigBoth(t *testing.T) {
	rp := startRunPod(t, fakerunpod.Config{TimeScale: 100, Seed: 1})
	rp.AddEndpoint(fakerunpod.EndpointConfig{ID: "lb1", Name: "balanced", Type: fakerunpod.LoadBalancer, WorkersMin: 1, ColdStart: time.Second, Models: []string{"m1"}, Env: map[string]string{"MODEL_NAME": "m1"}})
	va := startVast(t, fakevast.Config{TimeScale: 1000, EngineScale: -1, Seed: 1})
	cheap := va.AddInstance(fakevast.InstanceConfig{IsBid: true, DPHBase: 0.1, Models: []string{"m1"}})
	env := runpodEnv(rp)
	maps.Copy(env, vastEnv(va))
	r := startRented(t, env)
	vastID := "vast:" + string(idText(cheap.ID()))
	r.until("both found", func(hs []router.HostView) bool { // a worker that has just come up is doubted for half a minute
		s := stateOf(hs, "runpod:lb1")
		return ready(vastID)(hs) && (s == "starting" || s == "ready")
	})
	if c := r.chat("m1", "hello", 8, true); c.status != 200 || c.endpoint != vastID || !c.done {
		t.Errorf("the cheap one first: %+v", c)
	}
	cheap.Outbid(0)
	if c := r.chat("m1", "hello", 8, true); c.status != 200 || c.endpoint != "runpod:lb1" || !c.done {
		t.Errorf("the steady one after a preemption: %+v", c)
	}
	text, err := checked(t, env, "table")
	t.Log("\n" + text)
	if err != nil || !strings.Contains(text, "runpod: answers (1 hosts") || !strings.Contains(text, "preempted") {
		t.Errorf("check --live: %v", err)
	}
}
