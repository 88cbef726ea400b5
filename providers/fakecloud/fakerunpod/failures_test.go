package fakerunpod_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"headrace/providers/fakecloud/fakerunpod"
)

const (
	openAI  = "openai/v1/chat/completions"
	opaque  = `{"status":500,"title":"Internal Server Error","detail":"internal server error"}`
	noJob   = `{"status":404,"title":"Not Found","detail":"job not found"}`
	noEndpt = `{"status":404,"title":"Not Found","detail":"endpoint not found"}`
)

// TestErrorForms checks how each way to fail looks, at a job and at the OpenAI route.
func TestErrorForms(t *testing.T) {
	const long = "This model's maximum context length is 4096 tokens. However, your request has 5000 input tokens. Please reduce the length of the input messages."
	for name, tc := range map[string]struct {
		fault    fakerunpod.Failure
		gen      fakerunpod.Generation
		status   string // of the job
		err      string // of the job, at its beginning
		output   string // of the job, in it
		answer   int    // of the OpenAI route
		contains string // in its answer
	}{
		"traceback body": {fakerunpod.TracebackBody, fakerunpod.V24, "COMPLETED", "", "traceback", 200, `{"err":"api","traceback":"Traceback`},
		"flat body":      {fakerunpod.FlatBody, fakerunpod.V24, "COMPLETED", "", "object", 200, `"code":500`},
		"refused, V24": {
			fakerunpod.RefusedJob, fakerunpod.V24, "FAILED",
			`{'message': 'vLLM returned HTTP 400: {"error":{"message":"` + strings.ReplaceAll(long, "'", `\'`) + `","type":"BadRequestError","param":"input_tokens","code":400}}', 'type': 'worker_error', 'code': None}`,
			"", 500, opaque,
		},
		"refused, V23": {
			fakerunpod.RefusedJob, fakerunpod.V23, "FAILED", `{'message': "` + long + `", 'type': 'BadRequestError', 'param': 'input_tokens', 'code': 400}`, "", 500, opaque,
		},
		"refused, SGLang":    {fakerunpod.RefusedJob, fakerunpod.SGLang, "COMPLETED", "", "BadRequestError", 200, `{"error":{"message":"This model's`},
		"handler error":      {fakerunpod.HandlerError, fakerunpod.V24, "FAILED", "handler: 'NoneType' object has no attribute 'get' \ntraceback: Traceback (most", "", 500, opaque},
		"in the middle":      {fakerunpod.MidStreamError, fakerunpod.V23, "FAILED", "handler: CUDA error", "", 200, "data: {"},
		"timed out":          {fakerunpod.TimedOutJob, fakerunpod.V24, "TIMED_OUT", "", "", 500, opaque},
		"dead engine":        {fakerunpod.EngineDead, fakerunpod.V24, "FAILED", "{'message': 'vLLM server process is not running; worker is unhealthy', 'type'", "", 500, opaque},
		"worker exits":       {fakerunpod.WorkerExit, fakerunpod.V24, "COMPLETED", "", "data: ", 200, "data: "},
		"exits twice":        {fakerunpod.ExitTwice, fakerunpod.V24, "FAILED", "job timed out after 1 retries", "", 500, opaque},
		"no failure, SGLang": {fakerunpod.NoFailure, fakerunpod.SGLang, "COMPLETED", "", "data: ", 200, "data: "},
	} {
		t.Run(name, func(t *testing.T) {
			c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{Generation: tc.gen})
			if tc.fault != fakerunpod.NoFailure {
				e.FailNextJobs(2, tc.fault)
			}
			j := end(t, c, e, run(t, c, e, openAIJob(chat(true, 20))))
			if j.Status != tc.status || !strings.HasPrefix(j.Error, tc.err) || tc.err == "" && j.Error != "" {
				t.Errorf("%+v", j)
			}
			if (j.Output == nil) != (tc.output == "") {
				t.Errorf("output %v", j.Output)
			}
			a := api(t, c, e, "POST", openAI, chat(true, 20))
			if a.status != tc.answer || !strings.Contains(string(a.body), tc.contains) {
				t.Errorf("the OpenAI route: %d %s", a.status, a.body)
			}
			if name == "in the middle" && (a.err != nil || strings.Contains(string(a.body), "finish_reason\":\"") || strings.Contains(string(a.body), "[DONE]")) {
				t.Errorf("not a clean end without a finish: %v %s", a.err, a.body)
			}
		})
	}
	t.Run("quoted", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{QuoteError: true}, fakerunpod.EndpointConfig{Generation: fakerunpod.V24})
		e.FailNextJobs(1, fakerunpod.RefusedJob)
		if a := api(t, c, e, "POST", openAI, chat(true, 20)); a.status != 500 || !strings.HasPrefix(string(a.body), `{"error":"{'message': 'vLLM returned HTTP 400: `) {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
	t.Run("abrupt end", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{AbruptEnd: true}, fakerunpod.EndpointConfig{Generation: fakerunpod.V23})
		e.FailNextJobs(1, fakerunpod.MidStreamError)
		if a := api(t, c, e, "POST", openAI, chat(true, 20)); a.err == nil {
			t.Errorf("a clean end: %s", a.body)
		}
	})
	t.Run("of the platform", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{})
		e.FailNextJobs(1, fakerunpod.Opaque500)
		e.FailNextJobs(1, fakerunpod.TooMany)
		e.FailNextJobs(1, fakerunpod.TooManyWait)
		e.FailNextJobs(1, fakerunpod.LostAnswer)
		api(t, c, e, "POST", openAI, chat(true, 1)).is(t, 500, opaque)
		if a := api(t, c, e, "POST", "run", openAIJob(chat(true, 1))); a.status != 429 || a.header.Get("Retry-After") != "" {
			t.Errorf("%d %s", a.status, a.body)
		}
		if a := api(t, c, e, "POST", "run", openAIJob(chat(true, 1))); a.status != 429 || a.header.Get("Retry-After") != "1" {
			t.Errorf("%d %s", a.status, a.body)
		}
		if _, err := send(t, c, "POST", c.QueueURL()+"/"+e.ID()+"/run", openAIJob(chat(true, 1))); err == nil {
			t.Error("an answer that was to be lost")
		}
		wait(t, e, func(s fakerunpod.Stats) bool { return s.Submitted == 1 && s.Completed == 1 })
	})
	t.Run("a real refusal", func(t *testing.T) {
		for legacy, want := range map[bool]string{false: "FAILED", true: "COMPLETED"} {
			c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{Generation: fakerunpod.V23, Legacy: legacy, MaxModelLen: 8})
			if j := end(t, c, e, run(t, c, e, openAIJob(chat(true, 2000)))); j.Status != want {
				t.Errorf("old vLLM %v: %+v", legacy, j)
			}
		}
	})
}

func TestRedispatch(t *testing.T) {
	setup := func(t *testing.T, cfg fakerunpod.Config) (c *fakerunpod.Cloud, e *fakerunpod.Endpoint, id, worker string) {
		t.Helper()
		cfg.TimeScale, cfg.RedispatchAfter = 10, 2*time.Second
		c, e = one(t, cfg, fakerunpod.EndpointConfig{TPS: 10, TTFT: time.Millisecond, ColdStart: 100 * time.Millisecond})
		id = run(t, c, e, openAIJob(chat(true, 40)))
		if j := api(t, c, e, "GET", "stream/"+id+"?wait=300000", "").job(t); len(j.Stream) == 0 {
			t.Fatalf("%+v", j)
		}
		return c, e, id, e.KillWorker("")
	}
	t.Run("once", func(t *testing.T) {
		c, e, id, first := setup(t, fakerunpod.Config{StreamTellsWorker: true})
		if j := api(t, c, e, "GET", "status/"+id, "").job(t); j.Status != "IN_PROGRESS" || j.Worker != first || j.Retries != 0 {
			t.Errorf("before anybody noticed: %+v", j)
		}
		yields, status := follow(t, c, e, id)
		j := end(t, c, e, id)
		if status != "COMPLETED" || j.Retries != 1 || j.Worker == first || *j.Delay < 200 {
			t.Errorf("%s %+v", status, j)
		}
		if got := joined(t, yields); !strings.Contains(got, `"role":"assistant"`) || !strings.HasSuffix(content(t, got), said(40)) {
			t.Errorf("the second worker's answer is not there from its beginning: %s", got)
		}
		if s := e.Stats(); s.Retried != 1 || s.WorkerDeaths != 1 || s.WorkersStarted != 2 {
			t.Errorf("%+v", s)
		}
		if h := healthOf(t, c, e); h.Jobs.Retried != 1 {
			t.Errorf("%+v", h)
		}
	})
	t.Run("without a replay", func(t *testing.T) {
		c, e, id, _ := setup(t, fakerunpod.Config{NoReplay: true})
		yields, status := follow(t, c, e, id)
		if got := joined(t, yields); status != "COMPLETED" || strings.Contains(got, "[DONE]") {
			t.Errorf("%s %s", status, got)
		}
	})
	t.Run("twice", func(t *testing.T) {
		c, e, id, _ := setup(t, fakerunpod.Config{})
		wait(t, e, func(s fakerunpod.Stats) bool { return s.Retried == 1 && s.InProgress == 1 })
		second := e.KillWorker("")
		j := end(t, c, e, id)
		if j.Status != "FAILED" || j.Error != "job timed out after 1 retries" || j.Retries != 1 || j.Worker != second || j.Execution == nil {
			t.Errorf("%+v", j)
		}
	})
	t.Run("an empty input is poison", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{})
		j := end(t, c, e, run(t, c, e, `{"input": { } }`))
		if j.Status != "FAILED" || j.Error != "job timed out after 1 retries" || j.Retries != 1 || e.Stats().WorkerDeaths != 0 {
			t.Errorf("%+v", j)
		}
	})
}

// TestFailures shows that the fake can do what users of RunPod hit: the rows of the list of failures it was built from.
func TestFailures(t *testing.T) {
	t.Run("runpod_9.1_stream_cut_at_a_fixed_time", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{TimeScale: 10, StreamCutAfter: 2 * time.Second}, fakerunpod.EndpointConfig{TPS: 20, TTFT: time.Millisecond, ColdStart: time.Millisecond})
		a := api(t, c, e, "POST", openAI, chat(true, 500))
		if a.status != 200 || a.err != nil || content(t, string(a.body)) == "" || strings.Contains(string(a.body), "[DONE]") {
			t.Errorf("%d %v %s", a.status, a.err, a.body)
		}
	})
	t.Run("runpod_9.2_lumps", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{TimeScale: 10}, fakerunpod.EndpointConfig{TPS: 50, TTFT: time.Millisecond, ColdStart: time.Millisecond, PostTime: 200 * time.Millisecond})
		yields, _ := follow(t, c, e, run(t, c, e, openAIJob(chat(true, 100))))
		if len(yields) > 50 || content(t, joined(t, yields)) != said(100) {
			t.Errorf("%d yields for 100 tokens", len(yields))
		}
	})
	t.Run("runpod_9.3_524_and_the_job_goes_on", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{TimeScale: 100, EdgeFirstByte: 5 * time.Second}, fakerunpod.EndpointConfig{ColdStart: 20 * time.Second})
		a := api(t, c, e, "POST", openAI, chat(true, 5))
		if a.status != 524 || !strings.HasPrefix(a.header.Get("Content-Type"), "text/html") || !strings.HasPrefix(string(a.body), "<!DOCTYPE html>") {
			t.Errorf("%d %s", a.status, a.body)
		}
		if s := wait(t, e, func(s fakerunpod.Stats) bool { return s.Completed == 1 }); s.WorkersStarted != 1 {
			t.Errorf("%+v", s)
		}
	})
	t.Run("runpod_9.4_cold_again_after_idling", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{TimeScale: 100}, fakerunpod.EndpointConfig{ColdStart: 5 * time.Second, IdleTimeout: time.Second})
		for range 2 {
			if j := end(t, c, e, run(t, c, e, openAIJob(chat(true, 5)))); *j.Delay < 50 {
				t.Errorf("%+v", j)
			}
			wait(t, e, func(s fakerunpod.Stats) bool { return s.Workers == 0 })
		}
	})
	t.Run("runpod_9.5_crash_loop", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{TimeScale: 1000}, fakerunpod.EndpointConfig{ColdStart: 2 * time.Second})
		e.CrashLoop(true)
		id := run(t, c, e, openAIJob(chat(true, 5)))
		s := wait(t, e, func(s fakerunpod.Stats) bool { return s.Crashes >= 3 })
		if s.USD == 0 || s.Queued != 1 {
			t.Errorf("%+v", s)
		}
		poll(t, func() bool { h := healthOf(t, c, e); return h.Workers.Unhealthy == 1 && h.Jobs.InQueue == 1 })
		e.CrashLoop(false)
		if j := end(t, c, e, id); j.Status != "COMPLETED" {
			t.Errorf("%+v", j)
		}
	})
	t.Run("runpod_9.6_one_route_fails", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{})
		e.BreakRoute("/v1/completions")
		api(t, c, e, "POST", "openai/v1/completions", `{"model":"llama","prompt":"a"}`).is(t, 500, opaque)
		if a := api(t, c, e, "POST", openAI, chat(false, 2)); a.status != 200 {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
	t.Run("runpod_9.8_model_id_changes_with_the_image", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{})
		e.SetModels("/models/llama")
		e.Release("")
		api(t, c, e, "POST", openAI, chat(false, 2)).is(t, 500, opaque)
		if j := e.Jobs()[0]; !strings.Contains(j.Error, "vLLM returned HTTP 404") {
			t.Errorf("%+v", j)
		}
	})
	t.Run("runpod_9.9_all_jobs_on_one_worker", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{TimeScale: 1}, fakerunpod.EndpointConfig{WorkersMin: 3, TPS: 1, ColdStart: time.Millisecond})
		e.Funnel(true)
		wait(t, e, func(fakerunpod.Stats) bool { return healthOf(t, c, e).Workers.Idle == 3 })
		for range 3 {
			run(t, c, e, openAIJob(chat(true, 500)))
		}
		if h := healthOf(t, c, e); h.Workers.Running != 1 || h.Workers.Idle != 2 || h.Jobs.InProgress != 3 {
			t.Errorf("%+v", h)
		}
	})
	t.Run("runpod_9.10_queued_for_ever_beside_ready_workers", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{WorkersMin: 1})
		e.Stick(true)
		wait(t, e, func(fakerunpod.Stats) bool { return healthOf(t, c, e).Workers.Ready == 1 })
		id := run(t, c, e, openAIJob(chat(true, 5)))
		if h := healthOf(t, c, e); h.Workers.Ready != 1 || h.Jobs.InQueue != 1 {
			t.Errorf("%+v", h)
		}
		e.Stick(false)
		end(t, c, e, id)
	})
	t.Run("runpod_9.12_a_stream_that_was_read_and_lost", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{})
		id := run(t, c, e, openAIJob(chat(true, 5)))
		end(t, c, e, id)
		e.LoseNextStreams(1)
		if _, err := send(t, c, "GET", c.QueueURL()+"/"+e.ID()+"/stream/"+id, ""); err == nil {
			t.Error("an answer that was to be lost")
		}
		if j := api(t, c, e, "GET", "stream/"+id, "").job(t); j.Status != "COMPLETED" || len(j.Stream) != 0 {
			t.Errorf("%+v", j)
		}
	})
	t.Run("runpod_9.13_runsync_is_released_at_90_s", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{TimeScale: 1000}, fakerunpod.EndpointConfig{ColdStart: 300 * time.Second})
		began := time.Now()
		j := api(t, c, e, "POST", "runsync", openAIJob(chat(true, 5))).job(t)
		if took := time.Since(began); j.Status != "IN_QUEUE" || took < 90*time.Millisecond {
			t.Errorf("%v %+v", took, j)
		}
		if j := end(t, c, e, j.ID); j.Status != "COMPLETED" {
			t.Errorf("%+v", j)
		}
	})
	t.Run("runpod_9.17_endpoint_withdrawn", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{WorkersMin: 1})
		id := run(t, c, e, openAIJob(chat(true, 5)))
		e.Delete()
		for _, op := range []string{"health", "status/" + id, "stream/" + id} {
			api(t, c, e, "GET", op, "").is(t, 404, noEndpt)
		}
		api(t, c, e, "POST", openAI, chat(true, 5)).is(t, 404, noEndpt)
		do(t, c, "GET", c.ManagementURL()+"/serverless/"+e.ID(), "").is(t, 404, `{"title":"Not Found","status":404,"detail":"resource not found"}`)
		wait(t, e, func(s fakerunpod.Stats) bool { return s.Workers == 0 })
	})
	t.Run("runpod_9.19_image_pulls_for_ever", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{TimeScale: 1}, fakerunpod.EndpointConfig{ImagePull: 20 * time.Minute, WorkersMin: 1})
		wait(t, e, func(fakerunpod.Stats) bool { return healthOf(t, c, e).Workers.Initializing == 1 })
		if usd := c.Bill(e.ID()); usd != 0 {
			t.Errorf("an image pull is billed: $%v", usd)
		}
	})
	t.Run("runpod_9.20_another_GPU_than_was_asked_for", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{WorkersMin: 1, Pools: []string{"ADA_24"}, GPUTypes: []string{"NVIDIA H200"}})
		wait(t, e, func(fakerunpod.Stats) bool { return e.Workers()[0].Status == fakerunpod.Idle })
		if a := do(t, c, "GET", c.ManagementURL()+"/serverless/"+e.ID()+"/workers", ""); !strings.Contains(string(a.body), `"gpuTypeId":"NVIDIA H200"`) {
			t.Errorf("%s", a.body)
		}
		if a := do(t, c, "GET", c.ManagementURL()+"/serverless/"+e.ID(), ""); !strings.Contains(string(a.body), `"pools":["ADA_24"]`) {
			t.Errorf("%s", a.body)
		}
	})
}

// TestCapacity tells apart the ways in which no worker comes.
func TestCapacity(t *testing.T) {
	t.Run("throttled", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{})
		e.Throttle(true)
		id := run(t, c, e, openAIJob(chat(true, 5)))
		wait(t, e, func(fakerunpod.Stats) bool { return healthOf(t, c, e).Workers.Throttled == 1 })
		if h := healthOf(t, c, e); h.Workers.Initializing != 0 || h.Jobs.InQueue != 1 {
			t.Errorf("%+v", h)
		}
		e.Throttle(false)
		if j := end(t, c, e, id); j.Status != "COMPLETED" {
			t.Errorf("%+v", j)
		}
	})
	t.Run("crash loop without waiting", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{})
		e.CrashLoop(true)
		id := run(t, c, e, openAIJob(chat(true, 5)))
		wait(t, e, func(fakerunpod.Stats) bool { return healthOf(t, c, e).Workers.Unhealthy == 1 })
		e.CrashLoop(false)
		if j := end(t, c, e, id); j.Status != "COMPLETED" {
			t.Errorf("%+v", j)
		}
	})
	t.Run("no workers allowed", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{})
		e.SetWorkersMax(0)
		id := run(t, c, e, openAIJob(chat(true, 5)))
		if h := healthOf(t, c, e); h.Workers != (health{}.Workers) || h.Jobs.InQueue != 1 {
			t.Errorf("%+v", h)
		}
		e.SetWorkersMax(1)
		end(t, c, e, id)
	})
	t.Run("early 404", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{})
		e.Early404(100 * time.Millisecond)
		id := run(t, c, e, openAIJob(chat(true, 5)))
		api(t, c, e, "GET", "status/"+id, "").is(t, 404, noJob)
		api(t, c, e, "GET", "stream/"+id, "").is(t, 404, noJob)
		poll(t, func() bool { return api(t, c, e, "GET", "status/"+id, "").status == 200 })
	})
	t.Run("a handler without OpenAI route", func(t *testing.T) {
		c, e := one(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{})
		e.NoOpenAIRoute(true)
		api(t, c, e, "POST", openAI, chat(true, 5)).is(t, 500, opaque)
		if j := end(t, c, e, run(t, c, e, `{"input":{"prompt":"a"}}`)); j.Status != "COMPLETED" {
			t.Errorf("%+v", j)
		}
	})
}

// TestTrouble checks what can ail a whole plane.
func TestTrouble(t *testing.T) {
	c, e := one(t, fakerunpod.Config{ClockSkew: 2 * time.Hour}, fakerunpod.EndpointConfig{})
	url := c.QueueURL() + "/" + e.ID() + "/health"
	c.Outage(fakerunpod.QueuePlane, true)
	if a := do(t, c, "GET", url, ""); a.status != 502 || !strings.HasPrefix(string(a.body), "<!DOCTYPE html>") {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := do(t, c, "GET", c.ManagementURL()+"/serverless", ""); a.status != 200 {
		t.Errorf("the other plane: %d", a.status)
	}
	c.SetTrouble(fakerunpod.QueuePlane, fakerunpod.Trouble{Reset: true})
	if _, err := send(t, c, "GET", url, ""); err == nil || err == io.EOF { //nolint:errorlint // a bare EOF would be a FIN
		t.Errorf("a reset shows as %v", err)
	}
	c.SlowReplies(fakerunpod.QueuePlane, 50*time.Millisecond)
	began := time.Now()
	if a := do(t, c, "GET", url, ""); a.status != 200 || time.Since(began) < 50*time.Millisecond {
		t.Errorf("%d after %v", a.status, time.Since(began))
	}
	c.MalformedJSON(fakerunpod.QueuePlane, true)
	if a := do(t, c, "GET", url, ""); a.status != 200 || !strings.HasPrefix(string(a.body), "{") || strings.HasSuffix(string(a.body), "}}") {
		t.Errorf("%d %s", a.status, a.body)
	}
	c.MalformedJSON(fakerunpod.QueuePlane, false)
	a := do(t, c, "GET", url, "")
	if at, err := http.ParseTime(a.header.Get("Date")); err != nil || time.Until(at) < 119*time.Minute {
		t.Errorf("the clock says %v", at)
	}
	if a.header.Get("Server") != "cloudflare" || a.header.Get("Cf-Ray") == "" {
		t.Errorf("%v", a.header)
	}
}

// TestBareStream checks the form of /stream that a page of the documentation shows.
func TestBareStream(t *testing.T) {
	c, e := one(t, fakerunpod.Config{BareStream: true}, fakerunpod.EndpointConfig{})
	id := run(t, c, e, openAIJob(chat(true, 5)))
	end(t, c, e, id)
	if a := api(t, c, e, "GET", "stream/"+id, ""); !strings.HasPrefix(string(a.body), `[{"output":"data: `) {
		t.Errorf("%s", a.body)
	}
}
