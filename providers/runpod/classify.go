package runpod

import (
	"bytes"
	"net/http"
	"strings"

	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// Classify says what an answer of a RunPod endpoint means where its status alone would mislead; known is false where it does not.
// It is for answers that are no plain success: other than 2xx, an HTML page, or an error told in the body or the first event of a
// 200, in which case status may be 0. The first rule that fits counts. Where each comes from is said behind it; GP is
// runpod/runpod-plugins-official's golden paths, "worker" is runpod-workers/worker-vllm.
func Classify(ep *endpoint.Endpoint, status int, contentType string, body []byte) (class outcome.Class, known bool) {
	q := quirk{
		pod: strings.HasPrefix(string(ep.ID), provider+":"+podPrefix), queue: strings.HasSuffix(ep.BaseURL, "/openai/v1"),
		status: status, text: bytes.ToLower(body[:min(len(body), maxRead)]),
	}
	q.html = strings.HasPrefix(contentType, "text/html") || bytes.HasPrefix(bytes.TrimSpace(q.text), []byte("<"))
	switch {
	// Load-balancing endpoints without a worker: documented without a status, seen as 400 after 2 min of silence (GP 14); with
	// worker affinity as 404 and with "worker_timeout" (docs, worker-affinity).
	case q.says("no workers available", "timed out waiting for worker", "worker_timeout", "affinity_worker_gone"):
		return outcome.NotReady, true
	// The wrong product was asked: the endpoint has been made anew as another type (docs, load balancing, build a worker).
	case q.says("not allowed for qb api"):
		return outcome.UpstreamFault, true
	// Withdrawn without notice (public usage log, 2026-08-17); a job that fell out of retention, or not known yet.
	case status == http.StatusNotFound && q.says("endpoint not found", "job not found"):
		return outcome.UpstreamFault, true
	// The name is the one that the endpoint's settings give, so that it is the endpoint which fell out with them: worker images
	// have changed the name (worker commit fcdc799).
	case status == http.StatusNotFound && q.says("model") && q.says("does not exist", "not found", "notfounderror"):
		return outcome.UpstreamFault, true
	// One adapter reads it as "no credit"; whatever it is, another request fares no better.
	case status == http.StatusPaymentRequired:
		return outcome.UpstreamDenied, true
	// The edge saw no byte for about 100 s; a queue's job runs on and bills (GP 20; docs, expose ports).
	case status == 524:
		return outcome.FirstByteTimeout, true
	// A pod is "running" before its server listens; RunPod's proxy answers so when the server is gone too, or the pod came back
	// without a GPU (docs, troubleshooting 502 errors). Seconds later it may be well, and its provider is asked.
	case q.pod && status == http.StatusBadGateway && q.html:
		return outcome.NotReady, true
	// A page where JSON should be comes from what stands in front: Cloudflare, or the proxy of a port that is not exposed (404).
	case q.html:
		return outcome.UpstreamFault, true
	// vllm-loadbalancer-ep answers 503 with "detail" while the model loads; vLLM itself gives 503 when its engine is gone.
	case !q.queue && !q.pod && status == http.StatusServiceUnavailable && q.says(`"detail"`):
		return outcome.NotReady, true
	// providers/runpod/jobs has 503 for "no worker can come", and 504 for jobs that ran out of time.
	case ep.Dialect == endpoint.RunPodJobs && status == http.StatusServiceUnavailable:
		return outcome.NotReady, true
	case ep.Dialect == endpoint.RunPodJobs && status == http.StatusGatewayTimeout:
		return outcome.FirstByteTimeout, true
	}
	// What is left is for queues: there a worker's failure and its engine's refusal both come as 500, or in a 200; the gateway gives
	// 502 to an error event that names no status. Pods and load balancers hand on what the server inside said, which status tells well.
	switch {
	case !q.queue:
		return 0, false
	case status == 0, status >= 200 && status <= 299, status == http.StatusInternalServerError, status == http.StatusBadGateway:
	default:
		return 0, false
	}
	switch {
	// The worker will do no better with any other request (worker, handler.py), until RunPod replaces it.
	case q.says("is not running; worker is unhealthy", "cuda error", "cuda out of memory", "outofmemoryerror", "enginedeaderror", "engine is dead"):
		return outcome.UpstreamFault, true
	// vLLM's 400, quoted by the worker, as JSON or as Python prints a dict.
	case q.says("returned http 400", "returned http 422", "badrequesterror", `"code":400`, `"code": 400`, `'code': 400`, "maximum context length"):
		return outcome.CallerFault, true
	case q.says("returned http 404", "notfounderror", `"code":404`, `"code": 404`, `'code': 404`):
		return outcome.UpstreamFault, true
	// RunPod's envelope, "job timed out after 1 retries", "executionTimeout exceeded", a traceback in a 200: a request that kills each
	// worker it meets looks like workers that die by themselves.
	default:
		return outcome.Opaque, true
	}
}

const maxRead = 16 << 10 // of a body: errors are short, or pages

type quirk struct {
	pod, queue, html bool
	status           int
	text             []byte // in lower case
}

// says tells whether the body holds any of the texts.
func (q *quirk) says(texts ...string) bool {
	for _, t := range texts {
		if bytes.Contains(q.text, []byte(t)) {
			return true
		}
	}
	return false
}
