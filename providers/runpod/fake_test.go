package runpod_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"headrace/providers/fakecloud/fakerunpod"
	"headrace/providers/runpod"
	"headrace/router/endpoint"
)

const fakeKey = "rpa_FAKE_AND_SECRET"

// rented is a fake account with a Provider that looks at it.
type rented struct {
	*fakerunpod.Cloud
	*runpod.Provider
	out chan []endpoint.Endpoint
	log *safeLog
	now []endpoint.Endpoint // the set that was sent last
}

type safeLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *safeLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *safeLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// rent starts a fake RunPod a hundred times faster than life, prepares it and lets a Provider look at it.
func rent(t *testing.T, cfg fakerunpod.Config, o runpod.Options, prepare func(c *fakerunpod.Cloud)) *rented {
	t.Helper()
	cfg.APIKey = fakeKey
	if cfg.TimeScale == 0 {
		cfg.TimeScale = 100
	}
	if cfg.Management.PerMinute == 0 {
		cfg.Management = fakerunpod.Management{PerMinute: 1e6, PerHour: 1e7, PerDay: 1e8}
	}
	c, err := fakerunpod.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	prepare(c)
	r := &rented{Cloud: c, log: &safeLog{}, out: make(chan []endpoint.Endpoint)}
	o.Key, o.ManagementURL, o.QueueURL, o.BalancerURL, o.PodURL = fakeKey, c.ManagementURL(), c.QueueURL(), c.BalancerURL(), c.PodURL()
	o.Log = slog.New(slog.NewJSONHandler(r.log, nil))
	if o.Poll == 0 {
		o.Poll = 50 * time.Millisecond
	}
	o.HealthPoll, o.CatalogPoll, o.Settle, o.HealthPerSecond = 10*time.Millisecond, 50*time.Millisecond, 20*time.Millisecond, 1000
	r.Provider = runpod.New(o)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = r.Run(ctx, r.out)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		if log := r.log.String(); strings.Contains(log, fakeKey) || strings.Contains(log, "hf_secret") {
			t.Errorf("the log holds a secret:\n%s", log)
		}
		if t.Failed() {
			t.Logf("log:\n%s", r.log)
		}
	})
	return r
}

// until waits for a set in which the endpoint is as wanted, and returns it.
func (r *rented) until(t *testing.T, id endpoint.ID, what string, wanted func(ep *endpoint.Endpoint) bool) endpoint.Endpoint {
	t.Helper()
	late := time.NewTimer(time.Minute)
	defer late.Stop()
	for {
		for i := range r.now {
			if r.now[i].ID == id && wanted(&r.now[i]) {
				return r.now[i]
			}
		}
		select {
		case r.now = <-r.out:
		case <-late.C:
			t.Fatalf("%s did not happen to %s; the last set was %+v, status %+v", what, id, r.now, r.Status())
		}
	}
}

func (r *rented) state(t *testing.T, id endpoint.ID, want endpoint.State) endpoint.Endpoint {
	t.Helper()
	return r.until(t, id, want.String(), func(ep *endpoint.Endpoint) bool { return ep.State == want })
}

// status waits until the status is as wanted.
func (r *rented) status(t *testing.T, what string, wanted func() bool) {
	t.Helper()
	late := time.NewTimer(time.Minute)
	defer late.Stop()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for !wanted() {
		select {
		case r.now = <-r.out:
		case <-again.C:
		case <-late.C:
			t.Fatalf("%s did not come about: %+v", what, r.Status())
		}
	}
}

// submit puts a job into an endpoint's queue.
func (r *rented) submit(t *testing.T, id string) {
	t.Helper()
	body := `{"input":{"openai_route":"/v1/chat/completions","openai_input":{"model":"m","messages":[{"role":"user","content":"hi"}]}}}`
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.QueueURL()+"/"+id+"/run", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+fakeKey)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if answer, _ := io.ReadAll(res.Body); res.StatusCode != 200 {
		t.Fatalf("/run: %d %s", res.StatusCode, answer)
	}
}

var secretEnv = map[string]string{"MODEL_NAME": "m", "HF_TOKEN": "hf_secret", "MAX_MODEL_LEN": "4096"}

func TestColdStartAndSleep(t *testing.T) {
	r := rent(t, fakerunpod.Config{}, runpod.Options{}, func(c *fakerunpod.Cloud) {
		c.AddEndpoint(fakerunpod.EndpointConfig{ID: "e1", Name: "chat", Env: secretEnv, ColdStart: 30 * time.Second, IdleTimeout: 100 * time.Second, GPUTypes: []string{"NVIDIA L40S"}, GPUCount: 2})
	})
	ep := r.state(t, "runpod:e1", endpoint.Cold)
	if ep.Dialect != endpoint.RunPodJobs || ep.BaseURL != r.QueueURL()+"/e1/openai/v1" || ep.Served[0].Name != "m" || ep.Served[0].MaxContext != 4096 {
		t.Errorf("asleep: %+v", ep)
	}
	if p := ep.Price; p.Basis != endpoint.PerWorkerSecond || math.Abs(p.USDPerWorkerSecond-2*1.908/3600) > 1e-12 || p.IdleTimeout != 100*time.Second {
		t.Errorf("price %+v", p)
	}
	r.submit(t, "e1")
	r.state(t, "runpod:e1", endpoint.Starting)
	ep = r.until(t, "runpod:e1", "a worker with its GPU known", func(ep *endpoint.Endpoint) bool {
		return ep.State == endpoint.Ready && ep.Hardware.GPU == "L40S"
	})
	if ep.Dialect != endpoint.OpenAI || ep.Workers != 1 || ep.Region != "US-KS-2" || ep.Hardware.GPUCount != 2 {
		t.Errorf("up: %+v", ep)
	}
	ep = r.state(t, "runpod:e1", endpoint.Cold)
	if ep.Dialect != endpoint.RunPodJobs || ep.Workers != 0 || ep.Price.ColdStart == 45*time.Second {
		t.Errorf("runpod_9.4: asleep again: %+v", ep)
	}
	if n := r.Endpoint("e1").Stats(); n.WorkersStarted != 1 || n.Requests["openai"] != 0 || n.Requests["status"] != 0 {
		t.Errorf("looking at it woke or bothered it: %+v", n)
	}
	if o := r.Status().Oddities; len(o) != 0 {
		t.Errorf("oddities %v", o)
	}
}

func TestFailures(t *testing.T) {
	queue := func(set func(*fakerunpod.EndpointConfig)) func(c *fakerunpod.Cloud) {
		return func(c *fakerunpod.Cloud) {
			cfg := fakerunpod.EndpointConfig{ID: "e1", Name: "chat", Env: secretEnv}
			if set != nil {
				set(&cfg)
			}
			c.AddEndpoint(cfg)
		}
	}
	const id = endpoint.ID("runpod:e1")
	t.Run("runpod_9.3_cold_goes_by_jobs", func(t *testing.T) {
		r := rent(t, fakerunpod.Config{}, runpod.Options{}, queue(nil))
		if ep := r.state(t, id, endpoint.Cold); ep.Dialect != endpoint.RunPodJobs || ep.Limits.MaxBodyBytes != 10e6 {
			t.Errorf("%+v", ep)
		}
	})
	t.Run("runpod_9.5_crash_loop", func(t *testing.T) {
		r := rent(t, fakerunpod.Config{}, runpod.Options{}, queue(func(c *fakerunpod.EndpointConfig) { c.ColdStart = 5 * time.Second }))
		r.state(t, id, endpoint.Cold)
		r.Endpoint("e1").CrashLoop(true)
		r.submit(t, "e1")
		if ep := r.state(t, id, endpoint.NoCapacity); !strings.Contains(ep.StateReason, "crash") {
			t.Errorf("reason %q", ep.StateReason)
		}
	})
	t.Run("runpod_9.10_queued_while_throttled", func(t *testing.T) {
		r := rent(t, fakerunpod.Config{}, runpod.Options{}, queue(nil))
		r.state(t, id, endpoint.Cold)
		r.Endpoint("e1").Throttle(true)
		r.submit(t, "e1")
		if ep := r.state(t, id, endpoint.NoCapacity); !strings.Contains(ep.StateReason, "no free GPU") {
			t.Errorf("reason %q", ep.StateReason)
		}
		r.Endpoint("e1").Throttle(false)
		r.state(t, id, endpoint.Ready)
	})
	t.Run("runpod_8_idle_decay_to_no_workers", func(t *testing.T) {
		r := rent(t, fakerunpod.Config{}, runpod.Options{}, queue(nil))
		r.state(t, id, endpoint.Cold)
		r.Endpoint("e1").SetWorkersMax(0)
		if ep := r.state(t, id, endpoint.NoCapacity); !strings.Contains(ep.StateReason, "7 days") {
			t.Errorf("reason %q", ep.StateReason)
		}
	})
	t.Run("runpod_9.10_stuck_with_ready_workers", func(t *testing.T) {
		r := rent(t, fakerunpod.Config{}, runpod.Options{}, queue(func(c *fakerunpod.EndpointConfig) { c.WorkersMin = 1; c.ColdStart = time.Second }))
		r.state(t, id, endpoint.Ready)
		r.Endpoint("e1").Stick(true)
		r.submit(t, "e1")
		if ep := r.state(t, id, endpoint.Starting); ep.Dialect != endpoint.RunPodJobs {
			t.Errorf("%+v", ep)
		}
	})
	t.Run("runpod_9.14_balancer_not_ready", func(t *testing.T) {
		r := rent(t, fakerunpod.Config{}, runpod.Options{}, queue(func(c *fakerunpod.EndpointConfig) {
			c.Type, c.WorkersMin, c.ColdStart = fakerunpod.LoadBalancer, 1, time.Second
		}))
		ep := r.state(t, id, endpoint.Ready)
		if ep.Dialect != endpoint.OpenAI || ep.BaseURL != strings.ReplaceAll(r.BalancerURL(), "{id}", "e1")+"/v1" || ep.Lumpy {
			t.Errorf("%+v", ep)
		}
		r.Endpoint("e1").FailHealthCheck(true)
		if ep := r.state(t, id, endpoint.Starting); !strings.Contains(ep.StateReason, "health check") {
			t.Errorf("reason %q", ep.StateReason)
		}
	})
	t.Run("runpod_9.17_endpoint_withdrawn", func(t *testing.T) {
		r := rent(t, fakerunpod.Config{}, runpod.Options{Poll: time.Hour}, queue(nil))
		r.state(t, id, endpoint.Cold)
		r.Endpoint("e1").Delete()
		r.Nudge(id)
		r.state(t, id, endpoint.Gone) // an hour before the next list
	})
	t.Run("runpod_9.19_long_image_pull", func(t *testing.T) {
		r := rent(t, fakerunpod.Config{}, runpod.Options{}, queue(func(c *fakerunpod.EndpointConfig) { c.ImagePull = time.Hour }))
		r.state(t, id, endpoint.Cold)
		r.submit(t, "e1")
		r.until(t, id, "a start", func(ep *endpoint.Endpoint) bool {
			return ep.State == endpoint.Starting && ep.StateReason == "a worker starts"
		})
	})
	t.Run("runpod_9.20_workers_on_other_GPUs", func(t *testing.T) {
		r := rent(t, fakerunpod.Config{}, runpod.Options{}, queue(func(c *fakerunpod.EndpointConfig) {
			c.GPUTypes, c.GPUCount, c.WorkersMin, c.ColdStart = []string{"NVIDIA L40S", "NVIDIA H200"}, 1, 2, time.Second
			c.Pools = []string{"ADA_48_PRO"}
		}))
		ep := r.until(t, id, "both workers priced", func(ep *endpoint.Endpoint) bool { return ep.Hardware.GPU == "H200 SXM, L40S" })
		if want := (1.908 + 5.580) / 2 / 3600; math.Abs(ep.Price.USDPerWorkerSecond-want) > 1e-12 || ep.Workers != 2 {
			t.Errorf("%+v, want %g USD per worker second", ep.Price, want)
		}
		r.SetPrice("NVIDIA H200", 36)
		r.until(t, id, "the new price", func(ep *endpoint.Endpoint) bool {
			return math.Abs(ep.Price.USDPerWorkerSecond-(1.908+36)/2/3600) < 1e-12
		})
	})
}

func TestFailuresOfPods(t *testing.T) {
	t.Run("runpod_9.15_early_502_and_moving_port", func(t *testing.T) {
		var pod *fakerunpod.Pod
		r := rent(t, fakerunpod.Config{}, runpod.Options{Pods: []runpod.PodOptions{{Match: "tcp-*", TCP: true, Key: "pod-key"}, {Match: "p*"}}}, func(c *fakerunpod.Cloud) {
			var err error
			if _, err = c.AddPod(fakerunpod.PodConfig{ID: "p1", Models: []string{"pm"}, WarmUp: 30 * time.Second, Env: secretEnv, Community: true, GPUType: "NVIDIA GeForce RTX 4090", GPUCount: 1}); err != nil {
				t.Fatal(err)
			}
			if pod, err = c.AddPod(fakerunpod.PodConfig{ID: "tcp-1", Models: []string{"tm"}, APIKey: "pod-key", Ports: []fakerunpod.Port{{Private: 8000, TCP: true}}}); err != nil {
				t.Fatal(err)
			}
		})
		r.until(t, "runpod:pod-p1", "an early 502", func(ep *endpoint.Endpoint) bool {
			return ep.State == endpoint.Starting && strings.Contains(ep.StateReason, "502")
		})
		ep := r.state(t, "runpod:pod-p1", endpoint.Ready)
		if ep.Served[0].Name != "pm" || ep.Trust != endpoint.TrustCommunity || ep.Price.USDPerHour != 0.34 || ep.Region != "US-KS-2" {
			t.Errorf("%+v", ep)
		}
		first := r.state(t, "runpod:pod-tcp-1", endpoint.Ready)
		if first.Served[0].Name != "tm" || first.Trust != endpoint.TrustSecure || !strings.HasPrefix(first.BaseURL, "http://127.0.0.1:") {
			t.Errorf("%+v", first)
		}
		if err := pod.Restart(); err != nil {
			t.Fatal(err)
		}
		r.until(t, "runpod:pod-tcp-1", "the new port", func(ep *endpoint.Endpoint) bool { return ep.State == endpoint.Ready && ep.BaseURL != first.BaseURL })
	})
	t.Run("runpod_9.16_spot_pod_taken_away", func(t *testing.T) {
		var pod *fakerunpod.Pod
		r := rent(t, fakerunpod.Config{}, runpod.Options{Poll: time.Minute, Pods: []runpod.PodOptions{{Match: "*", Spot: true}}}, func(c *fakerunpod.Cloud) {
			var err error
			if pod, err = c.AddPod(fakerunpod.PodConfig{ID: "p1", Spot: true}); err != nil {
				t.Fatal(err)
			}
		})
		if ep := r.state(t, "runpod:pod-p1", endpoint.Ready); ep.Tenure != endpoint.Interruptible {
			t.Errorf("tenure %v", ep.Tenure)
		}
		pod.Preempt()
		r.Nudge("runpod:pod-p1") // a request has failed there, a minute before the next poll
		r.state(t, "runpod:pod-p1", endpoint.Preempted)
	})
}

func TestTroubleOfRunPod(t *testing.T) {
	up := func(c *fakerunpod.Cloud) {
		c.AddEndpoint(fakerunpod.EndpointConfig{ID: "e1", Env: secretEnv, WorkersMin: 1, ColdStart: time.Second})
	}
	const id = endpoint.ID("runpod:e1")
	t.Run("outage of the management API", func(t *testing.T) {
		r := rent(t, fakerunpod.Config{}, runpod.Options{}, up)
		r.state(t, id, endpoint.Ready)
		r.Outage(fakerunpod.ManagementPlane, true)
		r.status(t, "failing polls", func() bool { return r.Status().Failing > 3 })
		r.Outage(fakerunpod.ManagementPlane, false)
		r.status(t, "a good poll", func() bool { return r.Status().Failing == 0 })
		if len(r.now) != 1 || r.now[0].State != endpoint.Ready {
			t.Errorf("fleet %+v", r.now)
		}
	})
	t.Run("malformed JSON", func(t *testing.T) {
		r := rent(t, fakerunpod.Config{}, runpod.Options{}, up)
		r.state(t, id, endpoint.Ready)
		r.MalformedJSON(fakerunpod.ManagementPlane, true)
		r.status(t, "failing polls", func() bool { return r.Status().Failing > 3 })
		if len(r.now) != 1 {
			t.Errorf("fleet %+v", r.now)
		}
	})
	t.Run("odd shapes", func(t *testing.T) {
		r := rent(t, fakerunpod.Config{}, runpod.Options{}, up)
		r.state(t, id, endpoint.Ready)
		r.OddShapes(true)
		r.status(t, "oddities", func() bool {
			o := r.Status().Oddities
			return o["endpoint: unknown type HYBRID"] > 0 && o["endpoint: a number in another form"] > 0 && o["catalog: a number in another form"] > 0
		})
		if st := r.Status(); st.Failing != 0 || len(r.now) != 1 || r.now[0].Price.Basis != endpoint.PerWorkerSecond || r.now[0].Served[0].Name != "m" {
			t.Errorf("fleet %+v, status %+v", r.now, st)
		}
	})
	t.Run("clock skew", func(t *testing.T) {
		r := rent(t, fakerunpod.Config{ClockSkew: -time.Hour}, runpod.Options{}, up)
		r.state(t, id, endpoint.Ready)
		if st := r.Status(); st.ClockSkew > -59*time.Minute || st.Oddities["clock: RunPod's and ours differ by more than a minute"] == 0 {
			t.Errorf("status %+v", st)
		}
	})
	t.Run("a key that is refused", func(t *testing.T) {
		r := rent(t, fakerunpod.Config{}, runpod.Options{}, up)
		r.state(t, id, endpoint.Ready)
		other := runpod.New(runpod.Options{Key: "rpa_WRONG", ManagementURL: r.ManagementURL(), QueueURL: r.QueueURL(), Poll: 10 * time.Millisecond, Log: slog.New(slog.NewJSONHandler(r.log, nil))})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan struct{})
		go func() { _ = other.Run(ctx, nil); close(ended) }()
		r.status(t, "a refusal", func() bool { return other.Status().Failing > 0 })
		if e := other.Status().LastError; !strings.Contains(e, "401") || strings.Contains(e, "WRONG") {
			t.Errorf("last error %q", e)
		}
		cancel()
		<-ended
	})
	t.Run("the rate limit of the management API", func(t *testing.T) {
		r := rent(t, fakerunpod.Config{Management: fakerunpod.Management{PerMinute: 40, PerHour: 1e6, PerDay: 1e7}}, runpod.Options{}, func(c *fakerunpod.Cloud) {
			for i := range 30 {
				c.AddEndpoint(fakerunpod.EndpointConfig{ID: fmt.Sprintf("e%d", i+1), WorkersMin: 1, ColdStart: time.Second})
			}
		})
		r.state(t, id, endpoint.Ready)
		r.status(t, "some calls", func() bool { return r.ManagementCalls()["GET serverless/{id}/workers"] >= 8 })
		for _, call := range r.Status().Calls {
			if call.Throttled > 0 {
				t.Errorf("%s ran into the rate limit", call.Name)
			}
		}
	})
}
