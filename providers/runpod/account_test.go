package runpod

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"headrace/providers/api"
	"headrace/router/endpoint"
)

const (
	testKey = "rpa_VERYSECRETKEY"
	envCode = "hf_VERYSECRETTOKEN"
)

// account is RunPod without sockets, for tests in virtual time, in which no socket works. What is on the wire is tested against
// providers/fakecloud/fakerunpod.
type account struct {
	mu      sync.Mutex
	answers map[string]string // by path; without a status in front of it, 200
	calls   map[string]int    // by path
	limit   *quotas
	podKey  string   // that the server inside pods asks for, "" for none
	shown   []string // keys that it was shown
}

func newAccount() *account {
	return &account{calls: map[string]int{}, answers: map[string]string{
		"/v2/serverless": `{"endpoints":[]}`, "/v2/pods": `{"pods":[]}`, "/v2/catalog/gpus": `{"gpus":[` + join(sampleCatalog) + `]}`,
	}}
}

func join(raw []json.RawMessage) string {
	var parts []string
	for _, r := range raw {
		parts = append(parts, string(r))
	}
	return strings.Join(parts, ",")
}

// entry is an endpoint as the list has it.
func entry(id string) string {
	return fmt.Sprintf(`{"id":%q,"name":"name-%[1]s","type":"QUEUE","requestUrls":{"run":"https://api.runpod.ai/v2/%[1]s/run"},"image":"runpod/worker-v1-vllm:v2.25.2",`+
		`"args":"","disk":20,"env":{"MODEL_NAME":"org/model","HF_TOKEN":%q,"MAX_MODEL_LEN":"8192"},"gpu":{"pools":["ADA_24"],"excludedTypes":[],"count":1},`+
		`"workers":{"min":0,"max":3,"idleTimeout":5},"scaling":{"type":"QUEUE_DELAY","queueDelay":4},"dataCenterIds":["US-KS-2"],"networkVolumes":[],`+
		`"timeout":600000,"flashboot":"FLASHBOOT","createdAt":"2026-03-13T20:00:00Z"}`, id, envCode)
}

func listOf(entries ...string) string { return `{"endpoints":[` + strings.Join(entries, ",") + `]}` }

const (
	asleepHealth = `{"jobs":{"completed":31,"failed":1,"inProgress":0,"inQueue":0,"retried":1},"workers":{"idle":0,"initializing":0,"ready":0,"running":0,"throttled":0,"unhealthy":0}}`
	readyHealth  = `{"jobs":{"completed":31,"failed":1,"inProgress":0,"inQueue":0,"retried":1},"workers":{"idle":1,"initializing":0,"ready":1,"running":1,"throttled":0,"unhealthy":0}}`
	oneWorker    = `{"endpointVersion":4,"summary":{"total":1},"workers":[{"id":"w","status":"RUNNING","isStale":false,"gpuCount":1,"gpuTypeId":"NVIDIA GeForce RTX 4090","dataCenterId":"US-KS-2"}]}`
)

func (a *account) set(path, answer string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answers[path] = answer
}

func (a *account) count(path string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.calls[path]
}

// quotas are the limits of one minute, hour and day, which RunPod's answers tell.
type quotas struct {
	q       [3]float64
	used    [3]float64
	begun   [3]time.Time
	refused int
}

var quotaLen = [3]time.Duration{time.Minute, time.Hour, 24 * time.Hour}

func (l *quotas) take(h http.Header, now time.Time) bool {
	var limit, policy []string
	ok := true
	for i, name := range []string{"minute", "hour", "day"} {
		if now.Sub(l.begun[i]) >= quotaLen[i] {
			l.begun[i], l.used[i] = now, 0
		}
		ok = ok && l.used[i] < l.q[i]
		l.used[i]++
		limit = append(limit, fmt.Sprintf(`"%s";r=%.0f;t=%.0f`, name, max(0, l.q[i]-l.used[i]), l.begun[i].Add(quotaLen[i]).Sub(now).Seconds()))
		policy = append(policy, fmt.Sprintf(`"%s";q=%.0f;w=%.0f`, name, l.q[i], quotaLen[i].Seconds()))
	}
	h.Set("RateLimit", strings.Join(limit, ", "))
	h.Set("RateLimit-Policy", strings.Join(policy, ", "))
	return ok
}

// inside notes the key that a pod's server is shown, and tells whether it refuses it.
func (a *account) inside(bearer string) (refused bool) {
	a.shown = append(a.shown, bearer)
	return a.podKey != "" && bearer != "Bearer "+a.podKey
}

func (a *account) change(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

// RoundTrip answers at once.
func (a *account) RoundTrip(r *http.Request) (*http.Response, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls[r.URL.Path]++
	rec := httptest.NewRecorder()
	managed := r.URL.Host == "api.runpod.io"
	answer, known := a.answers[r.URL.Path]
	switch {
	case (managed || r.URL.Host == "api.runpod.ai") && r.Header.Get("Authorization") != "Bearer "+testKey:
		rec.WriteHeader(401)
		fmt.Fprint(rec, `{"status":401,"title":"Unauthorized","detail":"invalid api key"}`)
	case managed && a.limit != nil && !a.limit.take(rec.Header(), time.Now()):
		a.limit.refused++
		rec.Header().Set("Retry-After", "12")
		rec.WriteHeader(429)
		fmt.Fprint(rec, `{"title":"Too Many Requests","status":429,"detail":"rate limit exceeded for the minute window"}`)
	case r.URL.Path == "/v1/models" && a.inside(r.Header.Get("Authorization")):
		rec.WriteHeader(401)
		fmt.Fprint(rec, `{"error":"Unauthorized"}`)
	case answer == "broken":
		return nil, fmt.Errorf("connection reset by the peer of %s", r.URL.Path)
	case known:
		status := 200
		if len(answer) > 4 && answer[0] >= '1' && answer[0] <= '5' && answer[3] == ' ' {
			fmt.Sscanf(answer, "%d", &status)
			answer = answer[4:]
		}
		rec.WriteHeader(status)
		fmt.Fprint(rec, answer)
	case strings.HasSuffix(r.URL.Path, "/health"):
		fmt.Fprint(rec, asleepHealth)
	case strings.HasSuffix(r.URL.Path, "/workers"):
		fmt.Fprint(rec, oneWorker)
	default:
		rec.WriteHeader(404)
		fmt.Fprint(rec, `{"status":404,"title":"Not Found","detail":"endpoint not found"}`)
	}
	res := rec.Result()
	res.Request = r
	return res, nil
}

// watched is a Provider that runs, and what it has sent last.
type watched struct {
	*Provider
	log *bytes.Buffer // read it after the end only

	mu   sync.Mutex
	last []endpoint.Endpoint
	sent int
}

// inBubble runs f with a Provider in a bubble of virtual time.
func inBubble(t *testing.T, a *account, o Options, f func(t *testing.T, w *watched)) {
	t.Helper()
	inBubbleAfter(t, nil, a, o, f)
}

// inBubbleAfter does so with the heir of another Provider, which may be nil.
func inBubbleAfter(t *testing.T, old *Provider, a *account, o Options, f func(t *testing.T, w *watched)) {
	t.Helper()
	log := &bytes.Buffer{}
	synctest.Test(t, func(t *testing.T) {
		o.Key, o.Transport, o.Log = testKey, a, slog.New(slog.NewJSONHandler(log, nil))
		w := &watched{Provider: New(o), log: log}
		if old != nil {
			w.Inherit(old)
		}
		ctx, cancel := context.WithCancel(t.Context())
		out := make(chan []endpoint.Endpoint)
		ended := make(chan error, 1)
		go func() { ended <- w.Run(ctx, out) }()
		go func() {
			for {
				select {
				case set := <-out:
					w.mu.Lock()
					w.last, w.sent = set, w.sent+1
					w.mu.Unlock()
				case <-ctx.Done():
					return
				}
			}
		}()
		f(t, w)
		cancel()
		if err := <-ended; err != context.Canceled { //nolint:errorlint // Run's promise is this very error
			t.Errorf("Run ended with %v", err)
		}
	})
	for _, secret := range []string{testKey, envCode} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log holds a secret: %s", log)
		}
	}
	if t.Failed() {
		t.Logf("log:\n%s", log)
	}
}

// after lets virtual time pass and returns what was sent last.
func (w *watched) after(d time.Duration) []endpoint.Endpoint {
	<-time.After(d)
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

func (w *watched) sets() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sent
}

func callsOf(s api.Status, name string) (n int64) {
	for _, c := range s.Calls {
		if c.Name == name {
			n = c.Calls
		}
	}
	return n
}
