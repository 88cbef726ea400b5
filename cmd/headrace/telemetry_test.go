package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"headrace/gateway/state/redistest"
	"headrace/providers/fakecloud"
	"headrace/providers/fakecloud/fakerunpod"
	"headrace/router"
)

// told is what a collector has got.
type told struct {
	mu      sync.Mutex // guards all below
	spans   []*tracepb.Span
	figures map[string]int // data points by instrument, of the newest export
	lines   []*logs.LogRecord
}

// holds tells whether some span is as ok says.
func (c *told) holds(ok func(*tracepb.Span) bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.spans, ok)
}

func (c *told) traces(m *coltrace.ExportTraceServiceRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range m.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			c.spans = append(c.spans, ss.Spans...)
		}
	}
}

func (c *told) metrics(m *colmetrics.ExportMetricsServiceRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.figures = map[string]int{}
	for _, rm := range m.ResourceMetrics {
		for _, sm := range rm.ScopeMetrics {
			for _, one := range sm.Metrics {
				c.figures[one.Name] = len(one.GetSum().GetDataPoints()) + len(one.GetGauge().GetDataPoints()) + len(one.GetHistogram().GetDataPoints())
			}
		}
	}
}

// listenOTLP takes OTLP over HTTP into c.
func (c *told) listenOTLP(t *testing.T) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/traces", func(_ http.ResponseWriter, r *http.Request) {
		var m coltrace.ExportTraceServiceRequest
		b, _ := io.ReadAll(r.Body)
		if err := proto.Unmarshal(b, &m); err != nil {
			t.Error(err)
		}
		c.traces(&m)
	})
	mux.HandleFunc("POST /v1/metrics", func(_ http.ResponseWriter, r *http.Request) {
		var m colmetrics.ExportMetricsServiceRequest
		b, _ := io.ReadAll(r.Body)
		if err := proto.Unmarshal(b, &m); err != nil {
			t.Error(err)
		}
		c.metrics(&m)
	})
	mux.HandleFunc("POST /v1/logs", func(_ http.ResponseWriter, r *http.Request) {
		var m collogs.ExportLogsServiceRequest
		b, _ := io.ReadAll(r.Body)
		if err := proto.Unmarshal(b, &m); err != nil {
			t.Error(err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, rl := range m.ResourceLogs {
			for _, sl := range rl.ScopeLogs {
				c.lines = append(c.lines, sl.LogRecords...)
			}
		}
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return srv.URL
}

const callersTrace = "0af7651916cd43dd8448eb211c80319c"

// played is a run of one request of each kind.
type played struct {
	*running
	ids     map[string]string // of requests, by what they were to meet
	own     *fakecloud.Host
	foreign *fakecloud.Host
}

// play has a gateway that reports to otlp serve one request of each kind.
func play(t *testing.T, otlp string, more ...string) *played {
	t.Helper()
	p := &played{ids: map[string]string{}}
	p.own = startHost(t, fakecloud.HostConfig{Name: "own", Models: []string{"good", "saved"}})
	p.foreign = startHost(t, fakecloud.HostConfig{Name: "foreign", Models: []string{"bought"}})
	first := startHost(t, fakecloud.HostConfig{Name: "first", Models: []string{"told"}})
	second := startHost(t, fakecloud.HostConfig{Name: "second", Models: []string{"told"}})
	cut := startHost(t, fakecloud.HostConfig{Name: "cut", Models: []string{"cut"}})
	slow := startHost(t, fakecloud.HostConfig{Name: "slow", Models: []string{"slow"}, TPS: 10, TimeScale: 1})
	for h, f := range map[*fakecloud.Host]fakecloud.Fault{first: {Kind: fakecloud.ResetStream, After: 5, Times: 1}, cut: {Kind: fakecloud.ResetStream, After: 5, Times: 1}} {
		if err := h.SetFaults(f); err != nil {
			t.Fatal(err)
		}
	}
	const dead = "127.0.0.1:1" // nobody listens there
	p.running = startApp(t, t.TempDir(), fmt.Sprintf(`
listen: "127.0.0.1:0"
admin: "127.0.0.1:0"
continuation: {self_test: false}
telemetry: {otlp: %q, sample: 1%s}
models:
  good: {serves: [good]}
  saved: {serves: [saved]}
  told: {serves: [told]}
  cut: {serves: [cut], on_preemption: fail}
  slow: {serves: [slow]}
  bought: {serves: [bought]}
providers:
  static:
    - {name: own, base_url: "%s/v1", models: [good, saved], price: {usd_per_hour: 1.8}, max_num_seqs: 2} # so that the dead one looks better
    - {name: dead, base_url: "http://%s/v1", models: [saved], price: {usd_per_hour: 0.1}, gpu: "H100 80GB"}
    - {name: first, base_url: "%s/v1", models: [told], continues: always, price: {usd_per_hour: 0.5}}
    - {name: second, base_url: "%s/v1", models: [told], continues: always, price: {usd_per_hour: 2}}
    - {name: cut, base_url: "%s/v1", models: [cut], price: {usd_per_hour: 1}}
    - {name: slow, base_url: "%s/v1", models: [slow], price: {usd_per_hour: 1}}
    - {name: foreign, base_url: "%s/v1", models: [bought], price: {usd_per_mtok: {in: 1, out: 2}}}
`, otlp, strings.Join(more, ""), p.own.URL(), dead, first.URL(), second.URL(), cut.URL(), slow.URL(), p.foreign.URL()), nil)
	for i, r := range []struct {
		what, model string
		tokens      int
	}{{"success", "good", 20}, {"failover", "saved", 20}, {"continuation", "told", 20}, {"truncated", "cut", 20}, {"cancel", "slow", 200}, {"fault", "no-such-model", 20}, {"foreign", "bought", 20}} {
		p.send(t, r.what, r.model, r.tokens)
		p.log.await(t, `"msg":"request"`, i+1)
	}
	return p
}

// send asks for a stream and reads it to its end, or to its first event where the caller is to leave.
func (p *played) send(t *testing.T, what, model string, tokens int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	body := fmt.Sprintf(`{"model":%q,"stream":true,"max_tokens":%d,"messages":[{"role":"user","content":"%s: hello"}]}`, model, tokens, what)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.base+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("traceparent", "00-"+callersTrace+"-b7ad6b7169203331-01")
	req.Header.Set("baggage", "tenant=secret")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	p.ids[what] = res.Header.Get("X-Request-Id")
	if what == "cancel" {
		if _, err := bufio.NewReader(res.Body).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		cancel()
		return
	}
	_, _ = io.Copy(io.Discard, res.Body) // one of them breaks off
}

func attrText(kvs []*common.KeyValue, key string) string {
	for _, kv := range kvs {
		if kv.Key == key {
			_, v, _ := strings.Cut(kv.Value.String(), ":")
			return strings.Trim(v, `" `)
		}
	}
	return ""
}

// check holds what was told to what has happened.
func (p *played) check(t *testing.T, c *told) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	roots, attempts := map[string]*tracepb.Span{}, map[string][]*tracepb.Span{}
	for _, s := range c.spans {
		if s.Kind == tracepb.Span_SPAN_KIND_SERVER {
			roots[attrText(s.Attributes, "headrace.request_id")] = s
		}
	}
	for _, s := range c.spans {
		if s.Kind == tracepb.Span_SPAN_KIND_CLIENT {
			attempts[string(s.ParentSpanId)] = append(attempts[string(s.ParentSpanId)], s)
		}
	}
	for what, want := range map[string]struct {
		class, status, endpoints, reason string
		failed                           bool
	}{
		"success":      {class: "success", status: "200", endpoints: "static:own success"},
		"failover":     {class: "success", status: "200", endpoints: "static:dead dial_failed, static:own success", reason: "failover"},
		"continuation": {class: "success", status: "200", endpoints: "static:first truncated, static:second success", reason: "continuation"},
		"truncated":    {class: "truncated", status: "200", endpoints: "static:cut truncated", failed: true},
		"cancel":       {class: "client_gone", status: "200", endpoints: "static:slow client_gone"},
		"fault":        {class: "caller_fault", status: "404"},
		"foreign":      {class: "success", status: "200", endpoints: "static:foreign success"},
	} {
		root := roots[p.ids[what]]
		if root == nil {
			t.Errorf("%s: no span of request %s", what, p.ids[what])
			continue
		}
		if got := attrText(root.Attributes, "headrace.class"); got != want.class || attrText(root.Attributes, "http.response.status_code") != want.status ||
			(root.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR) != want.failed {
			t.Errorf("%s: %s, status %s, %v", what, got, attrText(root.Attributes, "http.response.status_code"), root.Status)
		}
		if len(root.Links) != 1 || hex.EncodeToString(root.Links[0].TraceId) != callersTrace || hex.EncodeToString(root.TraceId) == callersTrace {
			t.Errorf("%s: the caller's trace is not linked, or believed: %v", what, root.Links)
		}
		as := attempts[string(root.SpanId)]
		slices.SortFunc(as, func(a, b *tracepb.Span) int { return int(int64(a.StartTimeUnixNano) - int64(b.StartTimeUnixNano)) })
		var went []string
		for i, s := range as {
			went = append(went, attrText(s.Attributes, "headrace.endpoint")+" "+attrText(s.Attributes, "headrace.class"))
			if string(s.TraceId) != string(root.TraceId) || s.StartTimeUnixNano < root.StartTimeUnixNano || s.EndTimeUnixNano > root.EndTimeUnixNano {
				t.Errorf("%s: attempt %d is outside of its request", what, i)
			}
			alone := what != "failover" && what != "continuation"
			if attrText(s.Attributes, "headrace.decision.why") == "" || !alone && !slices.ContainsFunc(s.Events, func(e *tracepb.Span_Event) bool {
				return e.Name == "headrace.candidate" && attrText(e.Attributes, "headrace.verdict") == "serves"
			}) {
				t.Errorf("%s: attempt %d does not tell its decision: %v", what, i, s)
			}
			if i > 0 && (len(s.Links) != 1 || string(s.Links[0].SpanId) != string(as[i-1].SpanId) || attrText(s.Links[0].Attributes, "headrace.reason") != want.reason) {
				t.Errorf("%s: attempt %d is linked by %v", what, i, s.Links)
			}
		}
		if got := strings.Join(went, ", "); got != want.endpoints {
			t.Errorf("%s: went to %q, want %q", what, got, want.endpoints)
		}
		switch what {
		case "failover": // the dead one's breaker opened at once, and may be due for its test where the machine is slow
			was := attrText(as[0].Attributes, "headrace.decision.breaker")
			if i := slices.IndexFunc(as[1].Events, func(e *tracepb.Span_Event) bool { return attrText(e.Attributes, "headrace.endpoint") == "static:dead" }); i < 0 || was != "closed" ||
				!slices.Contains([]string{"open", "probing"}, attrText(as[1].Events[i].Attributes, "headrace.breaker")) {
				t.Errorf("failover: breaker %q at first, then %v", was, as[1].Events)
			}
		case "success":
			if attrText(as[0].Attributes, "gen_ai.usage.output_tokens") != "20" || attrText(as[0].Attributes, "gen_ai.request.model") != "good" || !strings.HasPrefix(attrText(as[0].Attributes, "gen_ai.response.id"), "chatcmpl-") || as[0].Name != "chat good" {
				t.Errorf("success: %v", as[0].Attributes)
			}
		case "continuation":
			if n := attrText(as[1].Links[0].Attributes, "headrace.seam.offset_tokens"); n == "" || n == "0" || attrText(as[1].Attributes, "gen_ai.usage.output_tokens") != "20" {
				t.Errorf("continuation: at token %q, usage %s", n, attrText(as[1].Attributes, "gen_ai.usage.output_tokens"))
			}
		case "cancel":
			if phase := attrText(root.Attributes, "headrace.phase"); phase != "streaming" {
				t.Errorf("cancel: in phase %q", phase)
			}
		}
		if log := p.log.String(); !strings.Contains(log, `"trace_id":"`+hex.EncodeToString(root.TraceId)+`","span_id":"`+hex.EncodeToString(root.SpanId)) {
			t.Errorf("%s: the log does not lead to the trace", what)
		}
	}
	for _, s := range c.spans {
		if strings.Contains(s.String(), "hello") || strings.Contains(s.String(), "secret") {
			t.Errorf("a span holds what was asked: %v", s)
		}
	}
	for _, name := range []string{"gen_ai.client.operation.duration", "gen_ai.server.time_to_first_token", "headrace.attempts", "headrace.failovers", "headrace.continuations", "headrace.client.cancels", "headrace.host.state", "headrace.host.breaker.transitions", "headrace.spend.usd"} {
		if c.figures[name] == 0 {
			t.Errorf("no figure of %s came", name)
		}
	}
	for h, want := range map[*fakecloud.Host]bool{p.own: true, p.foreign: false} {
		for _, r := range h.Requests() {
			if r.Method != http.MethodPost {
				continue
			}
			tp := r.Header.Get("Traceparent")
			if (tp != "") != want || r.Header.Get("Baggage") != "" || strings.Contains(tp, callersTrace) {
				t.Errorf("%s got traceparent %q and baggage %q", h.Name(), tp, r.Header.Get("Baggage"))
			}
			if want && !slices.ContainsFunc(c.spans, func(s *tracepb.Span) bool {
				return tp == "00-"+hex.EncodeToString(s.TraceId)+"-"+hex.EncodeToString(s.SpanId)+"-01"
			}) {
				t.Errorf("%s got traceparent %q, which is no span", h.Name(), tp)
			}
		}
	}
}

// TestTelemetry holds spans and figures of a scripted run, as a collector gets them.
func TestTelemetry(t *testing.T) {
	c := &told{}
	p := play(t, c.listenOTLP(t))
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	p.check(t, c)
}

// TestTelemetryOfAColdStart has everything said by OpenTelemetry's own variables, and a worker be started for a request.
func TestTelemetryOfAColdStart(t *testing.T) {
	c := &told{}
	cloud := startRunPod(t, fakerunpod.Config{TimeScale: 100, Seed: 1})
	cloud.AddEndpoint(fakerunpod.EndpointConfig{ID: "sleepy", Name: "llama", ColdStart: 60 * time.Second, IdleTimeout: 2000 * time.Second, Env: map[string]string{"MODEL_NAME": "org/llama"}})
	env := runpodEnv(cloud)
	for name, v := range map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": c.listenOTLP(t), "OTEL_TRACES_SAMPLER": "always_on", "OTEL_LOGS_EXPORTER": "otlp"} {
		env[name] = v
		t.Setenv(name, v) // exporters look there
	}
	r := startRented(t, env)
	const id = "runpod:sleepy"
	r.until("found asleep", func(hs []router.HostView) bool { return stateOf(hs, id) == "cold" })
	if got := r.chat("org/llama", "hello", 12, true); got.status != 200 {
		t.Fatalf("cold: %+v", got)
	}
	var trace string
	await(t, "the attempt's span", func() bool {
		return c.holds(func(s *tracepb.Span) bool {
			if attrText(s.Attributes, "headrace.endpoint") != id || attrText(s.Attributes, "headrace.decision.cold") != "true" || attrText(s.Attributes, "headrace.worker") == "" ||
				attrText(s.Attributes, "headrace.worker.delayed") == "" || attrText(s.Attributes, "gen_ai.provider.name") != "runpod" {
				return false
			}
			trace = string(s.TraceId)
			return true
		})
	})
	await(t, "the log line", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return slices.ContainsFunc(c.lines, func(l *logs.LogRecord) bool {
			return l.Body.GetStringValue() == "request" && string(l.TraceId) == trace
		})
	})
	get(t, r.base+"/v1/no-such-path")
	_, page := get(t, "http://"+r.app.admin.Addr().String()+"/metrics")
	for _, line := range []string{
		`headrace_cold_starts_total{headrace_endpoint="runpod:sleepy",headrace_model="org/llama",headrace_provider="runpod"} 1`,
		`headrace_refusals_total{headrace_reason="unknown_url",http_response_status_code="404"} 1`,
		`headrace_discovery_failing{headrace_account="runpod"} 0`, `headrace_discovery_hosts{headrace_account="runpod"} 1`,
		`headrace_spend_usd_total{headrace_endpoint="runpod:sleepy",headrace_model="org/llama",headrace_provider="runpod",headrace_reason="",headrace_use="useful"} `,
	} {
		if !strings.Contains(page, line) {
			t.Errorf("/metrics lacks %s", line)
		}
	}
	if strings.Contains(page, cloud.Key()) || c.holds(func(s *tracepb.Span) bool { return strings.Contains(s.String(), cloud.Key()) }) {
		t.Error("the key is told")
	}
}

// TestTelemetryReload changes what is traced while the gateway runs.
func TestTelemetryReload(t *testing.T) {
	c := &told{}
	h := startHost(t, fakecloud.HostConfig{Name: "a", Models: []string{"m"}})
	yaml, otlp := fmt.Sprintf(appYAML, h.URL()+"/v1"), c.listenOTLP(t)
	r := startApp(t, t.TempDir(), yaml+fmt.Sprintf("telemetry: {otlp: %q, sample: 0, failures: false}\n", otlp), nil)
	failing := func() {
		t.Helper()
		if err := h.SetFaults(fakecloud.Fault{Kind: fakecloud.ErrorEvent}); err != nil {
			t.Fatal(err)
		}
		ask(t, http.DefaultClient, r.base, "m", "hello", 5)
		if err := h.SetFaults(); err != nil {
			t.Fatal(err)
		}
	}
	ask(t, http.DefaultClient, r.base, "m", "hello", 5)
	failing()
	r.write(t, yaml+fmt.Sprintf("telemetry: {otlp: %q, sample: 1, names: legacy}\n", otlp))
	r.log.await(t, "config reloaded", 1)
	r.log.await(t, `"keys":["telemetry"]`, 1) // names, at the next start
	ask(t, http.DefaultClient, r.base, "m", "hello", 5)
	r.write(t, yaml+fmt.Sprintf("telemetry: {otlp: %q, sample: 0, failures: true}\n", otlp))
	r.log.await(t, "config reloaded", 2)
	ask(t, http.DefaultClient, r.base, "m", "hello", 5)
	failing()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var got []string
	for _, s := range c.spans {
		if s.Kind == tracepb.Span_SPAN_KIND_SERVER {
			got = append(got, attrText(s.Attributes, "headrace.class")+attrText(s.Attributes, "headrace.sampled_for"))
		}
	}
	if len(got) != 2 || got[0] != "success" || !strings.HasSuffix(got[1], "failure") {
		t.Errorf("traced %q, want one success while all were, and the failure after that", got)
	}
}

// daemon runs a server for the test and waits until ready answers 200.
func daemon(t *testing.T, ready, program string, args ...string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	stop = sync.OnceFunc(func() { cancel(); <-ended })
	t.Cleanup(stop)
	await(t, program, func() bool {
		select {
		case <-ended:
			t.Fatalf("%s ended:\n%s", program, out.String())
		default:
		}
		res, err := http.Get(ready) //nolint:gosec,noctx // loopback
		if err != nil {
			return false
		}
		_ = res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
	return stop
}

// await asks until the answer is yes.
func await(t *testing.T, what string, yes func() bool) {
	t.Helper()
	late, tick := time.After(patience), time.NewTicker(50*time.Millisecond)
	defer tick.Stop()
	for !yes() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: not in time", what)
		}
	}
}

// needed tells whether HEADRACE_E2E_REQUIRE names what a test cannot do without.
func needed(name string) bool {
	return slices.Contains(strings.Split(os.Getenv("HEADRACE_E2E_REQUIRE"), ","), name)
}

// TestCollector is TestTelemetry with a real OpenTelemetry Collector between, over HTTP and over gRPC, which gets the log as well.
func TestCollector(t *testing.T) {
	for _, protocol := range []string{"http", "grpc"} {
		t.Run(protocol, func(t *testing.T) { testCollector(t, protocol) })
	}
}

func testCollector(t *testing.T, protocol string) {
	t.Helper()
	cache := os.Getenv("HEADRACE_CACHE")
	if home, err := os.UserCacheDir(); cache == "" && err == nil {
		cache = filepath.Join(home, "headrace")
	}
	program := filepath.Join(cache, "bin", "otelcol")
	if _, err := os.Stat(program); err != nil {
		if needed("otelcol") {
			t.Fatal(err)
		}
		t.Skip("no collector in the cache: make collector builds one, in some minutes")
	}
	dir, otlp, health := t.TempDir(), redistest.Address(t), redistest.Address(t)
	file, out := filepath.Join(dir, "collector.yaml"), filepath.Join(dir, "out")
	if err := os.WriteFile(file, fmt.Appendf(nil, `
receivers: {otlp: {protocols: {%[4]s: {endpoint: "%[1]s"}}}}
exporters:
  file/traces: {path: "%[2]s.traces"}
  file/metrics: {path: "%[2]s.metrics"}
  file/logs: {path: "%[2]s.logs"}
service:
  telemetry: {metrics: {readers: [{pull: {exporter: {prometheus: {host: 127.0.0.1, port: %[3]s}}}}]}}
  pipelines:
    traces: {receivers: [otlp], exporters: [file/traces]}
    metrics: {receivers: [otlp], exporters: [file/metrics]}
    logs: {receivers: [otlp], exporters: [file/logs]}
`, otlp, out, health[strings.LastIndexByte(health, ':')+1:], protocol), 0o600); err != nil {
		t.Fatal(err)
	}
	stop := daemon(t, "http://"+health+"/metrics", program, "--config", file)
	p := play(t, "http://"+otlp, ", otlp_logs: true, protocol: ", protocol)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	stop() // it writes all that it has
	var b []byte
	for _, kind := range []string{".traces", ".metrics", ".logs"} {
		one, err := os.ReadFile(out + kind)
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, one...)
	}
	c := &told{}
	lines := map[string]string{} // the trace of each request that has a line
	var err error
	for line := range bytes.Lines(b) {
		var traces coltrace.ExportTraceServiceRequest
		var metrics colmetrics.ExportMetricsServiceRequest
		var written collogs.ExportLogsServiceRequest
		switch {
		case bytes.HasPrefix(line, []byte(`{"resourceSpans"`)):
			err = protojson.Unmarshal(hexIDs(t, line), &traces)
			c.traces(&traces)
		case bytes.HasPrefix(line, []byte(`{"resourceMetrics"`)):
			err = (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(hexIDs(t, line), &metrics)
			c.metrics(&metrics)
		case bytes.HasPrefix(line, []byte(`{"resourceLogs"`)):
			err = (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(hexIDs(t, line), &written)
			for _, rl := range written.ResourceLogs {
				for _, sl := range rl.ScopeLogs {
					for _, r := range sl.LogRecords {
						for _, a := range r.Attributes {
							if r.Body.GetStringValue() == "request" && a.Key == "request_id" {
								lines[a.Value.GetStringValue()] = hex.EncodeToString(r.TraceId)
							}
						}
					}
				}
			}
		}
		if err != nil {
			t.Fatalf("%v in %s", err, line)
		}
	}
	p.check(t, c)
	for what, id := range p.ids {
		if trace := lines[id]; len(trace) != 32 {
			t.Errorf("%s: its line says that it is of trace %q", what, trace)
		}
	}
}

// hexIDs turns OTLP's hexadecimal ids into the base64 that protojson wants.
func hexIDs(t *testing.T, line []byte) []byte {
	t.Helper()
	var v any
	if err := json.Unmarshal(line, &v); err != nil {
		t.Fatal(err)
	}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, w := range v {
				if s, ok := w.(string); ok && (k == "traceId" || k == "spanId" || k == "parentSpanId") {
					raw, err := hex.DecodeString(s)
					if err != nil {
						t.Fatal(err)
					}
					v[k] = raw // encodes as base64
				}
				walk(w)
			}
		case []any:
			for _, w := range v {
				walk(w)
			}
		}
	}
	walk(v)
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestPrometheus has a real Prometheus read the figures of a scripted run.
func TestPrometheus(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("prometheus")
	if err != nil {
		if needed("prometheus") {
			t.Fatal(err)
		}
		t.Skip("prometheus is not installed")
	}
	p := play(t, (&told{}).listenOTLP(t))
	dir, addr := t.TempDir(), redistest.Address(t)
	file := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(file, fmt.Appendf(nil, `
global: {scrape_interval: 1s} # its limit too: a page takes its time on a busy machine
scrape_configs: [{job_name: headrace, static_configs: [{targets: [%q]}]}]
`, p.app.admin.Addr()), 0o600); err != nil {
		t.Fatal(err)
	}
	daemon(t, "http://"+addr+"/-/ready", program, "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+addr,
		"--enable-feature=exemplar-storage", "--log.level=warn")
	query := func(path, q string) (n int, value string) {
		_, body := get(t, "http://"+addr+path+"?query="+url.QueryEscape(q)+"&start=0&end=9999999999")
		var answer struct {
			Data json.RawMessage
		}
		if err := json.Unmarshal([]byte(body), &answer); err != nil {
			t.Fatalf("%v in %s", err, body)
		}
		var series struct {
			Result []struct{ Value [2]any }
		}
		var list []any
		if json.Unmarshal(answer.Data, &list) == nil {
			return len(list), ""
		}
		if err := json.Unmarshal(answer.Data, &series); err != nil {
			t.Fatalf("%v in %s", err, body)
		}
		if len(series.Result) > 0 {
			value, _ = series.Result[0].Value[1].(string)
		}
		return len(series.Result), value
	}
	await(t, "a scrape", func() bool { n, _ := query("/api/v1/query", `headrace_requests_total`); return n > 0 })
	for q, want := range map[string]string{
		`up`:                            "1",
		`sum(headrace_requests_total)`:  "7",
		`sum(headrace_failovers_total)`: "2",
		`headrace_client_cancels_total`: "1",
		`sum(gen_ai_server_request_duration_seconds_count)`:                                                             "7",
		`headrace_continuations_total{headrace_result="done"}`:                                                          "1",
		`headrace_attempts_total{headrace_endpoint="static:dead",headrace_class="dial_failed"}`:                         "1",
		`gen_ai_client_inference_usage_output_tokens_total{headrace_endpoint="static:own",gen_ai_request_model="good"}`: "20",
		`http_server_request_duration_seconds_count{http_response_status_code="404",error_type="caller_fault"}`:         "1",
		`count(headrace_host_state)`: "7",
		`headrace_host_breaker_transitions_total{headrace_endpoint="static:dead",headrace_from="closed",headrace_to="open"}`: "1",
		`histogram_quantile(0.5, sum by (le) (gen_ai_server_time_to_first_token_seconds_bucket)) < bool 5`:                   "1",
	} {
		await(t, q+" is "+want, func() bool { // a scrape that took too long leaves none for a while
			n, got := query("/api/v1/query", q)
			return n == 1 && got == want
		})
	}
	await(t, "exemplars", func() bool {
		n, _ := query("/api/v1/query_exemplars", `gen_ai_server_request_duration_seconds_bucket`)
		return n > 0
	})
}
