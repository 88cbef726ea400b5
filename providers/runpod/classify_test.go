package runpod_test

import (
	"testing"

	"headrace/providers/runpod"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

const unknown = outcome.Class(255) // the status says it all

func TestFailuresClassified(t *testing.T) {
	queue := endpoint.Endpoint{ID: "runpod:q", BaseURL: "https://api.runpod.ai/v2/q/openai/v1"}
	job := queue
	job.Dialect = endpoint.RunPodJobs
	lb := endpoint.Endpoint{ID: "runpod:lb", BaseURL: "https://lb.api.runpod.ai/v1"}
	pod := endpoint.Endpoint{ID: "runpod:pod-p", BaseURL: "https://p-8000.proxy.runpod.net/v1"}
	const jsonType, page = "application/json", "<!DOCTYPE html><title>error</title>"
	for name, tc := range map[string]struct {
		ep     *endpoint.Endpoint
		status int
		ctype  string
		body   string
		want   outcome.Class
	}{
		"runpod_9.3_cold_call_524":                   {&queue, 524, "text/html", page, outcome.FirstByteTimeout},
		"runpod_9.6_500_of_one_route":                {&queue, 500, jsonType, `{"status":500,"title":"Internal Server Error","detail":"internal server error"}`, outcome.Opaque},
		"runpod_9.7_traceback_in_a_200":              {&queue, 200, jsonType, `{"err":"api","traceback":"Traceback (most recent call last)"}`, outcome.Opaque},
		"runpod_9.7_traceback_without_a_status":      {&queue, 0, jsonType, `{"err":"api","traceback":"…"}`, outcome.Opaque},
		"runpod_9.7_flat_vllm_error_in_a_200":        {&queue, 200, jsonType, `{"object":"error","message":"This model's maximum context length is 10","code":400}`, outcome.CallerFault},
		"runpod_9.8_model_id_changed":                {&queue, 404, jsonType, "{\"error\":{\"message\":\"The model `m` does not exist.\",\"type\":\"NotFoundError\",\"param\":\"model\",\"code\":404}}", outcome.UpstreamFault},
		"runpod_9.8_model_id_changed_lb":             {&lb, 404, jsonType, "{\"error\":{\"message\":\"The model `m` does not exist.\",\"type\":\"NotFoundError\",\"code\":404}}", outcome.UpstreamFault},
		"runpod_9.11_timed_out_after_retries":        {&queue, 500, jsonType, `{"error":"job timed out after 1 retries"}`, outcome.Opaque},
		"runpod_9.14_no_workers":                     {&lb, 400, jsonType, `{"error":"timed out waiting for worker"}`, outcome.NotReady},
		"runpod_9.14_no_workers_available":           {&lb, 503, jsonType, `{"error":"no workers available"}`, outcome.NotReady},
		"runpod_9.14_no_workers_429":                 {&lb, 429, "text/plain", `no workers available`, outcome.NotReady},
		"runpod_9.15_early_502_of_a_pod":             {&pod, 502, "text/html", page, outcome.NotReady},
		"runpod_9.15_pod_silent_for_100_s":           {&pod, 524, "text/html", page, outcome.FirstByteTimeout},
		"runpod_9.15_pod_port_not_exposed":           {&pod, 404, "text/html", page, outcome.UpstreamFault},
		"runpod_9.17_endpoint_withdrawn":             {&queue, 404, jsonType, `{"status":404,"title":"Not Found","detail":"endpoint not found"}`, outcome.UpstreamFault},
		"runpod_1.1_job_not_found":                   {&job, 404, jsonType, `{"status":404,"title":"Not Found","detail":"job not found"}`, outcome.UpstreamFault},
		"runpod_1.1_not_allowed_for_qb":              {&lb, 400, jsonType, `{"error":"not allowed for QB API"}`, outcome.UpstreamFault},
		"runpod_1.1_402":                             {&queue, 402, jsonType, `{}`, outcome.UpstreamDenied},
		"runpod_1.1_401":                             {&queue, 401, jsonType, `{"status":401,"title":"Unauthorized","detail":"invalid api key"}`, unknown},
		"runpod_1.1_429":                             {&queue, 429, "text/plain", `slow down`, unknown},
		"runpod_2_callers_mistake_as_500":            {&queue, 500, jsonType, `{"error":{"message":"vLLM returned HTTP 400: {\"error\":{\"message\":\"too long\"}}","type":"worker_error","code":null}}`, outcome.CallerFault},
		"runpod_2_callers_mistake_in_python":         {&queue, 500, jsonType, `{"error":"{'error': {'message': 'too long', 'type': 'BadRequestError', 'param': None, 'code': 400}}"}`, outcome.CallerFault},
		"runpod_2_callers_mistake_as_an_event":       {&queue, 502, jsonType, `{"error":{"message":"vLLM returned HTTP 400: x","type":"worker_error","code":null}}`, outcome.CallerFault},
		"runpod_2_vllm_is_dead":                      {&queue, 500, jsonType, `{"error":"vLLM server process is not running; worker is unhealthy"}`, outcome.UpstreamFault},
		"runpod_2_cuda":                              {&queue, 500, jsonType, `{"error":"CUDA error: an illegal memory access was encountered"}`, outcome.UpstreamFault},
		"runpod_2_wrong_name_quoted":                 {&queue, 500, jsonType, `{"error":"vLLM returned HTTP 404: x"}`, outcome.UpstreamFault},
		"runpod_4_model_loads":                       {&lb, 503, jsonType, `{"detail":{"status":"initializing"}}`, outcome.NotReady},
		"runpod_4_wrong_ports":                       {&lb, 502, "text/html", page, outcome.UpstreamFault},
		"runpod_4_affinity_gone":                     {&lb, 404, jsonType, `{"error":"affinity_worker_gone"}`, outcome.NotReady},
		"a page where JSON should be":                {&queue, 200, "text/html; charset=utf-8", page, outcome.UpstreamFault},
		"a page that says it is JSON":                {&queue, 520, jsonType, " <html>", outcome.UpstreamFault},
		"jobs without a worker":                      {&job, 503, jsonType, `{"error":{"message":"no worker"}}`, outcome.NotReady},
		"jobs out of time":                           {&job, 504, jsonType, `{"error":{"message":"late"}}`, outcome.FirstByteTimeout},
		"jobs that failed":                           {&job, 500, jsonType, `{"error":{"message":"the job failed"}}`, outcome.Opaque},
		"a caller's mistake that says so":            {&queue, 400, jsonType, `{"error":{"message":"too long","code":400}}`, unknown},
		"too large":                                  {&queue, 413, jsonType, ``, unknown},
		"a balancer's 500 is its server's":           {&lb, 500, jsonType, `{"error":"x"}`, unknown},
		"a pod's 500 is its server's":                {&pod, 500, jsonType, `{"error":"x"}`, unknown},
		"a pod's 502 that its server says":           {&pod, 502, jsonType, `{"error":"x"}`, unknown},
		"a route that is not there":                  {&lb, 404, jsonType, `{"detail":"Not Found"}`, unknown},
		"a body that is not there":                   {&queue, 500, "", ``, outcome.Opaque},
		"a balancer's 503 of an engine that is full": {&lb, 503, jsonType, `{"error":"overloaded"}`, unknown},
	} {
		t.Run(name, func(t *testing.T) {
			class, known := runpod.Classify(tc.ep, tc.status, tc.ctype, []byte(tc.body))
			if known != (tc.want != unknown) || known && class != tc.want {
				t.Errorf("%d %s: %v, %v; want %v", tc.status, tc.body, class, known, tc.want)
			}
		})
	}
}

func FuzzClassify(f *testing.F) {
	f.Add(500, "application/json", []byte(`{"error":"x"}`))
	f.Add(200, "text/html", []byte("<"))
	f.Add(0, "", []byte(nil))
	queue := endpoint.Endpoint{ID: "runpod:q", BaseURL: "https://api.runpod.ai/v2/q/openai/v1"}
	f.Fuzz(func(t *testing.T, status int, ctype string, body []byte) {
		class, known := runpod.Classify(&queue, status, ctype, body)
		if known && class == outcome.Success {
			t.Errorf("a failure was taken for success: %d %q %q", status, ctype, body)
		}
	})
}
