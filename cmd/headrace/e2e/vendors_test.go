package e2e_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"headrace/providers/fakecloud"
	"headrace/providers/fakecloud/fakerunpod"
)

// The vendors' own clients, each as its vendor publishes it.
var (
	runPodNode   = script{"runpod-node", "node", "vendors/node/package-lock.json", []string{"node", "vendors/node/runpod_client.cjs", "{dir}/node_modules", "{plan}"}}
	runPodPython = script{"runpod-python", "python", "vendors/python/runpod.txt", []string{"{dir}/bin/python", "-I", "-B", "vendors/python/runpod_client.py", "{plan}"}}
	vastPython   = script{"vast-python", "python", "vendors/python/vastai.txt", []string{"{dir}/bin/python", "-I", "-B", "vendors/python/vast_client.py", "{plan}"}}
)

// TestVendors lets the vendors' own clients do their ordinary calls at the fake clouds, which must look to them as the real ones
// do: what Headrace is tested against is judged by clients that know nothing of it.
func TestVendors(t *testing.T) {
	for name, run := range map[string]func(t *testing.T){
		"runpod-node":   func(t *testing.T) { runPodClient(t, runPodNode, runPodNodeChecks) },
		"runpod-python": func(t *testing.T) { runPodClient(t, runPodPython, runPodPythonChecks) },
		"vast-python":   func(t *testing.T) { vastClient(t, vastPython) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // each has a cloud of its own, and much of what they do is waiting
			run(t)
		})
	}
}

var runPodNodeChecks = []string{
	"health_idle", "run_and_status", "run_sync", "status_sync", "health_counts", "run_sync_longer_than_its_wait", "run_sync_times_out",
	"stream", "stream_while_it_runs", "cancel_running", "cancel_queued", "purge_queue", "failed", "timed_out", "wrong_key",
	"unknown_endpoint", "unknown_job", "too_many",
}

var runPodPythonChecks = []string{
	"health_idle", "run", "run_sync", "run_prompt", "status", "health_counts", "stream", "stream_while_it_runs", "cancel_running",
	"cancel_queued", "output_times_out", "purge_queue", "failed", "worker_raises", "worker_yields_an_error", "worker_streams",
	"timed_out", "wrong_key", "unknown_endpoint", "unknown_job", "too_many", "asyncio_run", "asyncio_stream", "asyncio_cancel", "asyncio_health_and_purge",
}

// runPodPlan is what a client of RunPod is told. Its JSON is what the scripts read.
type runPodPlan struct {
	URL       string            `json:"url"`
	Key       string            `json:"key"`
	Endpoints map[string]string `json:"endpoints"` // ids by name
	Ask       question          `json:"ask"`
	Longer    question          `json:"longer"`  // takes the slow endpoint two seconds
	Endless   question          `json:"endless"` // takes it minutes
	Dead      string            `json:"dead"`    // what the workers of the endpoint "dead" say
}

const vendorModel = "lab/vendors"

// runPodClient starts a RunPod and runs s at it.
func runPodClient(t *testing.T, s script, checks []string) {
	s.installed(t)
	c, err := fakerunpod.Start(context.Background(), fakerunpod.Config{TimeScale: 1, Seed: 1}) //nolint:usetesting // stopped by the cleanup
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	p := runPodPlan{
		URL: c.QueueURL(), Key: c.Key(), Endpoints: map[string]string{},
		Ask:     tell(vendorModel, vendorModel, "Why do mills have a headrace? 🦊", 48),
		Longer:  tell(vendorModel, vendorModel, "Go on.", 80),
		Endless: question{Model: vendorModel, Prompt: "Take your time.", MaxTokens: 8000},
		Dead:    "vLLM server process is not running; worker is unhealthy",
	}
	add := func(name string, cfg fakerunpod.EndpointConfig) *fakerunpod.Endpoint {
		cfg.Name, cfg.Models = name, []string{vendorModel}
		cfg.ColdStart, cfg.WorkersMin = time.Millisecond, 1
		if cfg.TPS == 0 {
			cfg.TPS, cfg.TTFT = 5000, time.Millisecond
		}
		e := c.AddEndpoint(cfg)
		p.Endpoints[name] = e.ID()
		return e
	}
	fail := func(name string, f fakerunpod.Failure) {
		add(name, fakerunpod.EndpointConfig{}).FailNextJobs(1000, f)
	}
	add("counted", fakerunpod.EndpointConfig{}) // runs three jobs, and is looked at
	add("fast", fakerunpod.EndpointConfig{})
	add("native", fakerunpod.EndpointConfig{Generation: fakerunpod.V23Native})
	slow := add("slow", fakerunpod.EndpointConfig{TPS: 40, TTFT: 50 * time.Millisecond})
	stuck := add("stuck", fakerunpod.EndpointConfig{})
	stuck.SetWorkersMin(0)
	stuck.SetWorkersMax(0)
	fail("broken", fakerunpod.HandlerError)
	fail("dead", fakerunpod.EngineDead)
	fail("late", fakerunpod.TimedOutJob)
	fail("busy", fakerunpod.TooMany)

	ctx, cancel := context.WithTimeout(t.Context(), settleLimit)
	defer cancel()
	for name, id := range p.Endpoints {
		e := c.Endpoint(id)
		want := []fakerunpod.WorkerStatus{fakerunpod.Idle}
		if e == stuck {
			want = nil
		}
		err := e.Wait(ctx, func(fakerunpod.Stats) bool {
			var got []fakerunpod.WorkerStatus
			for _, w := range e.Workers() {
				got = append(got, w.Status)
			}
			return slices.Equal(got, want)
		})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	s.run(t, p, checks, func(t *testing.T, check string) {
		t.Helper()
		if check != "cancel_running" {
			return
		}
		// the worker was told: it works for nobody any more
		ctx, cancel := context.WithTimeout(t.Context(), settleLimit)
		defer cancel()
		if err := slow.Wait(ctx, func(s fakerunpod.Stats) bool { return s.Cancelled == 1 && s.Aborts == 1 }); err != nil {
			t.Error(err)
		}
		for _, w := range slow.Workers() {
			if err := w.Host.Wait(ctx, func(s fakecloud.Stats) bool { return s.Running == 0 && s.Waiting == 0 && s.Aborted == 1 }); err != nil {
				t.Errorf("worker %s: %v", w.ID, err)
			}
		}
	})
}
