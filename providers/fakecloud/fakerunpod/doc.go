// Package fakerunpod is a fake RunPod on real loopback sockets: the management API, queue endpoints with their jobs and
// their OpenAI route, load-balancing endpoints, and pods behind a proxy or a TCP port. A worker or a pod is a
// fakecloud.Host; the fake queues jobs, starts, bills and stops workers, asks the worker's host over HTTP as the known
// worker images do, and turns what comes back into the yields of a job.
//
// Shapes and habits follow RunPod's documentation of August 2026 (docs.runpod.io), its OpenAPI description of the
// management API v2, runpod/runpod-python 1.12, runpod-workers/worker-vllm 2.23 and 2.25 and runpod-workers/worker-sglang.
// What is not known of the live service is a setting, whose comment says "not known".
//
// Delays that the platform causes (cold start, re-dispatch) are divided by Config.TimeScale and are nothing when it is 0.
// Limits (holds, time to live, idle timeout, the edge's 100 s) are divided by it too, but are real when it is 0. Rate
// limits count in real time always. Times that are reported (delayTime, executionTime, uptime, what is billed) are
// those of the wall clock.
package fakerunpod
