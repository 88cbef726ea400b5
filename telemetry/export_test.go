package telemetry_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	metrics "go.opentelemetry.io/proto/otlp/metrics/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"headrace/gateway/ledger"
	"headrace/gateway/trace"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
	"headrace/telemetry"
)

const patience = time.Minute

// collector takes OTLP by HTTP and gRPC, and keeps it.
type collector struct {
	coltrace.UnimplementedTraceServiceServer
	http *httptest.Server

	mu      sync.Mutex // guards all below
	news    chan struct{}
	spans   []*tracepb.Span
	figures map[string]*metrics.Metric
	lines   []*logs.LogRecord
	service string
}

func startCollector(t testing.TB) *collector {
	t.Helper()
	c := &collector{news: make(chan struct{}), figures: map[string]*metrics.Metric{}}
	mux := http.NewServeMux()
	for path, take := range map[string]func([]byte) error{
		"POST /v1/traces": func(b []byte) error {
			var m coltrace.ExportTraceServiceRequest
			err := proto.Unmarshal(b, &m)
			c.takeTraces(&m)
			return err
		},
		"POST /v1/metrics": func(b []byte) error {
			var m colmetrics.ExportMetricsServiceRequest
			err := proto.Unmarshal(b, &m)
			c.change(func() {
				for _, rm := range m.ResourceMetrics {
					for _, one := range rm.ScopeMetrics[0].Metrics {
						c.figures[one.Name] = one
					}
				}
			})
			return err
		},
		"POST /v1/logs": func(b []byte) error {
			var m collogs.ExportLogsServiceRequest
			err := proto.Unmarshal(b, &m)
			c.change(func() {
				for _, rl := range m.ResourceLogs {
					c.lines = append(c.lines, rl.ScopeLogs[0].LogRecords...)
				}
			})
			return err
		},
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			if err == nil {
				err = take(b)
			}
			if err != nil {
				t.Errorf("%s: %v", path, err)
				w.WriteHeader(http.StatusBadRequest)
			}
		})
	}
	c.http = httptest.NewServer(mux)
	t.Cleanup(c.http.Close)
	return c
}

// speakGRPC takes traces by gRPC too.
func (c *collector) speakGRPC(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	coltrace.RegisterTraceServiceServer(srv, c)
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(srv.Stop)
	return "http://" + ln.Addr().String()
}

// Export is gRPC's way in.
func (c *collector) Export(_ context.Context, m *coltrace.ExportTraceServiceRequest) (*coltrace.ExportTraceServiceResponse, error) {
	c.takeTraces(m)
	return &coltrace.ExportTraceServiceResponse{}, nil
}

func (c *collector) takeTraces(m *coltrace.ExportTraceServiceRequest) {
	c.change(func() {
		for _, rs := range m.ResourceSpans {
			for _, kv := range rs.Resource.Attributes {
				if kv.Key == "service.name" {
					c.service = kv.Value.GetStringValue()
				}
			}
			for _, ss := range rs.ScopeSpans {
				c.spans = append(c.spans, ss.Spans...)
			}
		}
	})
}

func (c *collector) change(fn func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fn()
	close(c.news)
	c.news = make(chan struct{})
}

// await waits until have says that enough has come.
func (c *collector) await(t testing.TB, what string, have func() bool) {
	t.Helper()
	late := time.After(patience)
	for {
		c.mu.Lock()
		ok, news := have(), c.news
		c.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-news:
		case <-late:
			t.Fatalf("%s did not come", what)
		}
	}
}

func attr(kvs []*common.KeyValue, key string) string {
	for _, kv := range kvs {
		if kv.Key == key {
			return text(kv.Value)
		}
	}
	return ""
}

func text(v *common.AnyValue) string {
	if s, ok := v.Value.(*common.AnyValue_StringValue); ok {
		return s.StringValue
	}
	_, s, _ := strings.Cut(v.String(), ":") // as in int_value:3
	return strings.Trim(s, `" `)
}

// runExport exports by o until stop is called.
func runExport(t *testing.T, o telemetry.ExportOptions) (e *telemetry.Export, stop func()) {
	t.Helper()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	e, err := telemetry.NewExport(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = e.Run(ctx) }()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return e, stop
}

// traced is the records, each with a trace.
func traced() []ledger.Record {
	rs := records()
	p := trace.Policy{On: true, Ratio: 1}
	for i := range rs {
		rs[i].Trace = p.Begin(nil, nil)
		rs[i].ID = "req_" + string(rune('a'+i))
		for j := range rs[i].Attempts {
			a := &rs[i].Attempts[j]
			a.Span = p.NewSpan()
			a.Decision.Why, a.Decision.TTFT, a.Decision.TPS, a.Decision.Candidates, a.Decision.Seq = "cheapest", 0.2, 38, 2, 7
		}
	}
	return rs
}

// ownParts are the gateway's own seconds of r, in all and by what they went into, "" for none.
func ownParts(r *ledger.Record) (texts []string) {
	for _, d := range []time.Duration{r.Overhead, r.Reading, r.Deciding, r.Overhead - r.Reading - r.Deciding} {
		text := ""
		if d > 0 {
			text = strconv.FormatFloat(d.Seconds(), 'g', -1, 64)
		}
		texts = append(texts, text)
	}
	return texts
}

// overtaken is a request whose late attempt was overtaken by a hedge, which broke off then: another host went on with its answer.
func overtaken() ledger.Record {
	p := trace.Policy{On: true, Ratio: 1}
	attempt := func(a ledger.Attempt) ledger.Attempt {
		a.Served, a.Endpoint, a.Span, a.Duration, a.Status = "meta/llama", "static:a", p.NewSpan(), time.Second, 200
		a.Decision.Why, a.Decision.TTFT, a.Decision.TPS, a.Decision.Candidates, a.Decision.Seq = "cheapest", 0.2, 38, 2, 7
		return a
	}
	return ledger.Record{
		ID: "req_overtaken", Trace: p.Begin(nil, nil), At: time.Now(), Method: "POST", Route: "/v1/chat/completions", Model: "m", Known: true, Stream: true,
		Status: 200, Tries: 3, Hedge: "won", Resumes: 1, Offered: 1, Prompt: -1, Cached: -1, Output: -1, Reasoning: -1, Duration: 4 * time.Second,
		Attempts: []ledger.Attempt{
			attempt(ledger.Attempt{Class: outcome.Outrun}),
			attempt(ledger.Attempt{Class: outcome.Truncated, Hedge: true, After: time.Second, First: 100 * time.Millisecond}),
			attempt(ledger.Attempt{Class: outcome.Success, After: 2 * time.Second, First: 100 * time.Millisecond, Resumed: true, Offset: 9}),
		},
	}
}

// TestSpans holds the shape of every kind of request's trace.
func TestSpans(t *testing.T) {
	c := startCollector(t)
	e, stop := runExport(t, telemetry.ExportOptions{
		URL: c.http.URL, Traces: true, Version: "1.2.3",
		Explain: func(seq uint64) (router.Explanation, bool) {
			return router.Explanation{Candidate: []router.CandidateView{
				{Endpoint: "static:a", Verdict: "serves", State: "ready", Breaker: "closed", MarginalUSD: new(1e-6), TTFT: new(0.2)},
				{Endpoint: "runpod:q", Verdict: "barred", Reason: "open", State: "cold", Breaker: "probing"},
			}}, seq == 7
		},
	})
	rs := traced()
	rs = append(rs, overtaken())
	rs[0].Trace.Parent = trace.SpanID{1}
	rs[1].Trace.LinkID, rs[1].Trace.LinkSpan = trace.ID{2}, trace.SpanID{3}
	total := 0
	for i := range rs {
		e.Record(&rs[i])
		total += 1 + rs[i].Tries
		if rs[i].Queued > 0 {
			total++
		}
	}
	stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.spans) != total || c.service != "headrace" {
		t.Fatalf("%d spans of service %q, want %d", len(c.spans), c.service, total)
	}
	byID := map[string]*tracepb.Span{}
	for _, s := range c.spans {
		byID[string(s.SpanId)] = s
	}
	for i := range rs {
		r := &rs[i]
		root := byID[string(r.Trace.Span[:])]
		if root == nil || root.Kind != tracepb.Span_SPAN_KIND_SERVER || root.Name != "POST /v1/chat/completions" || root.StartTimeUnixNano != uint64(r.At.UnixNano()) ||
			root.EndTimeUnixNano-root.StartTimeUnixNano != uint64(r.Duration) || string(root.TraceId) != string(r.Trace.ID[:]) || attr(root.Attributes, "headrace.request_id") != r.ID {
			t.Fatalf("%s: request span %v", r.ID, root)
		}
		failed := r.Class == outcome.Truncated
		if (root.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR) != failed || attr(root.Attributes, "headrace.class") != r.Class.String() {
			t.Errorf("%s (%s): status %v", r.ID, r.Class, root.Status)
		}
		if r.Overhead > 0 {
			var own []string
			for _, part := range []string{"", ".reading", ".deciding", ".answering"} {
				own = append(own, attr(root.Attributes, "headrace.overhead"+part))
			}
			if got, want := fmt.Sprint(own, attr(root.Attributes, "url.scheme")), fmt.Sprint(ownParts(r), "http"); got != want {
				t.Errorf("%s: own time %s, want %s", r.ID, got, want)
			}
		}
		for j := range r.Attempts {
			a := &r.Attempts[j]
			s := byID[string(a.Span[:])]
			if s == nil || s.Kind != tracepb.Span_SPAN_KIND_CLIENT || s.Name != "chat meta/llama" || string(s.ParentSpanId) != string(root.SpanId) || string(s.TraceId) != string(root.TraceId) ||
				s.StartTimeUnixNano != uint64(r.At.Add(a.After).UnixNano()) || s.EndTimeUnixNano-s.StartTimeUnixNano != uint64(a.Duration) {
				t.Fatalf("%s attempt %d: %v", r.ID, j, s)
			}
			if attr(s.Attributes, "headrace.endpoint") != string(a.Endpoint) || attr(s.Attributes, "headrace.decision.ttft") != "0.2" || attr(s.Attributes, "headrace.decision.why") != "cheapest" {
				t.Errorf("%s attempt %d: %v", r.ID, j, s.Attributes)
			}
			last := j == r.Tries-1
			if got := attr(s.Attributes, "gen_ai.usage.output_tokens"); (got != "") != (last && r.Output >= 0) {
				t.Errorf("%s attempt %d: usage %q", r.ID, j, got)
			}
			var breakers []string
			for _, ev := range s.Events {
				switch ev.Name {
				case "headrace.candidate":
					breakers = append(breakers, attr(ev.Attributes, "headrace.endpoint")+" "+attr(ev.Attributes, "headrace.state")+" "+attr(ev.Attributes, "headrace.breaker"))
				case "gen_ai.first_chunk":
					if ev.TimeUnixNano != s.StartTimeUnixNano+uint64(a.First) {
						t.Errorf("%s attempt %d: first token at %d", r.ID, j, ev.TimeUnixNano)
					}
				}
			}
			if want := []string{"static:a ready closed", "runpod:q cold probing"}; !slices.Equal(breakers, want) || attr(s.Attributes, "headrace.decision.breaker") != "closed" {
				t.Errorf("%s attempt %d: candidates %q, want %q; its own breaker %s", r.ID, j, breakers, want, attr(s.Attributes, "headrace.decision.breaker"))
			}
			failed := a.Class != outcome.Success && a.Class != outcome.ClientGone && a.Class != outcome.Outrun
			if (s.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR) != failed || attr(s.Attributes, "error.type") != map[bool]string{false: a.Class.String()}[a.Class == outcome.Success] {
				t.Errorf("%s attempt %d (%s): status %v", r.ID, j, a.Class, s.Status)
			}
			switch {
			case j == 0 && len(s.Links) != 0:
				t.Errorf("%s: the first attempt has links %v", r.ID, s.Links)
			case j > 0:
				if len(s.Links) != 1 || string(s.Links[0].SpanId) != string(r.Attempts[j-1].Span[:]) {
					t.Fatalf("%s: attempt %d has links %v", r.ID, j+1, s.Links)
				}
				want := "failover"
				if a.Hedge {
					want = "hedge"
				}
				if a.Resumed {
					want = "continuation"
				}
				if got := attr(s.Links[0].Attributes, "headrace.reason"); got != want {
					t.Errorf("%s: linked because of %q, want %q", r.ID, got, want)
				}
			}
		}
	}
	waits := 0
	for _, s := range c.spans {
		if s.Name != "admission" {
			continue
		}
		waits++
		r := &rs[8]
		if attr(s.Attributes, "headrace.reason") != "" {
			r = &rs[9]
		}
		end := uint64(r.At.Add(r.Duration).UnixNano())
		if len(r.Attempts) > 0 {
			end = uint64(r.At.Add(r.Attempts[0].After).UnixNano())
		}
		if s.Kind != tracepb.Span_SPAN_KIND_INTERNAL || string(s.ParentSpanId) != string(r.Trace.Span[:]) || byID[string(s.SpanId)] != s ||
			s.EndTimeUnixNano != end || s.EndTimeUnixNano-s.StartTimeUnixNano != uint64(r.Queued) ||
			attr(s.Attributes, "headrace.priority") != map[bool]string{true: "batch", false: "interactive"}[r.Batch] {
			t.Errorf("%s: %v", r.ID, s)
		}
	}
	if waits != 2 {
		t.Errorf("%d spans of waiting, want 2", waits)
	}
	if p := byID[string(rs[0].Trace.Span[:])].ParentSpanId; hex.EncodeToString(p) != "0100000000000000" {
		t.Errorf("a trusted caller's span is not the parent: %x", p)
	}
	if l := byID[string(rs[1].Trace.Span[:])].Links; len(l) != 1 || l[0].TraceId[0] != 2 || l[0].SpanId[0] != 3 {
		t.Errorf("a stranger's trace is not linked: %v", l)
	}
}

// TestInvalidUTF8 has hosts and callers write what is none: neither their spans and lines nor those beside them are lost.
func TestInvalidUTF8(t *testing.T) {
	const cut = "sto\xc3"
	c := startCollector(t)
	m := newMetrics(telemetry.NamesBoth)
	e, stop := runExport(t, telemetry.ExportOptions{
		URL: c.http.URL, Traces: true, Logs: true, Metrics: true, Figures: m, Names: telemetry.NamesBoth,
		Explain: func(uint64) (router.Explanation, bool) {
			return router.Explanation{Candidate: []router.CandidateView{{Endpoint: cut, Reason: cut}}}, true
		},
	})
	r := traced()[0]
	r.Finish, r.Code, r.Model = cut, cut, cut
	r.Attempts[0].Served, r.Attempts[0].Endpoint = cut, cut
	r.Attempts[0].Worker = &endpoint.WorkerReport{Worker: cut}
	e.Record(&r)
	m.Record(&r)
	log := slog.New(e.Handler(slog.LevelInfo))
	log.Info(cut, "error", errors.New(cut), "text", cut)
	log.With("part", cut).Info("fine")
	stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.spans) != 2 || len(c.lines) != 2 || len(c.figures) == 0 {
		t.Fatalf("%d spans, %d lines and %d figures came, want 2, 2 and all", len(c.spans), len(c.lines), len(c.figures))
	}
	for _, s := range c.spans {
		if s.Kind == tracepb.Span_SPAN_KIND_CLIENT && (s.Name != "chat sto?" || !strings.Contains(attr(s.Attributes, "gen_ai.response.finish_reasons"), "sto?")) {
			t.Errorf("span %v", s)
		}
	}
	if l := c.lines[0]; l.Body.GetStringValue() != "sto?" || attr(l.Attributes, "error") != "sto?" || attr(l.Attributes, "text") != "sto?" {
		t.Errorf("line %v", l)
	}
}

// TestFailuresAreTraced has requests that were not sampled.
func TestFailuresAreTraced(t *testing.T) {
	c := startCollector(t)
	rs := traced()
	want := map[string]bool{"req_b": true, "req_c": true, "req_d": true} // failover, continued, lost
	for _, on := range []bool{false, true} {
		e, stop := runExport(t, telemetry.ExportOptions{URL: c.http.URL, Traces: true})
		e.TraceFailures(on)
		for i := range rs {
			rs[i].Trace.Sampled = false
			e.Record(&rs[i])
		}
		stop()
		got := map[string]bool{}
		c.mu.Lock()
		for _, s := range c.spans {
			if id := attr(s.Attributes, "headrace.request_id"); id != "" {
				got[id] = true
			}
		}
		c.mu.Unlock()
		if !on && len(got) > 0 || on && (len(got) != len(want) || !got["req_b"] || !got["req_c"] || !got["req_d"]) {
			t.Errorf("failures %v: traces of %v", on, got)
		}
	}
}

func TestGRPC(t *testing.T) {
	c := startCollector(t)
	e, _ := runExport(t, telemetry.ExportOptions{URL: c.speakGRPC(t), GRPC: true, Traces: true})
	rs := traced()
	e.Record(&rs[0])
	c.await(t, "the span", func() bool { return len(c.spans) == 2 })
}

// TestPush has a collector take the figures of the page.
func TestPush(t *testing.T) {
	c := startCollector(t)
	m := newMetrics(telemetry.NamesBoth)
	for _, r := range traced() {
		m.Record(&r)
	}
	_, stop := runExport(t, telemetry.ExportOptions{URL: c.http.URL, Metrics: true, Figures: m, Names: telemetry.NamesBoth, Every: 20 * time.Millisecond})
	c.await(t, "metrics", func() bool { return len(c.figures) > 0 })
	stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, i := range telemetry.Instruments() {
		got := c.figures[i.Name]
		if got == nil || got.Unit != i.Unit || got.Description != i.Doc {
			t.Errorf("%s: %v", i.Name, got)
			continue
		}
		switch i.Kind {
		case telemetry.Counter:
			if s := got.GetSum(); s == nil || !s.IsMonotonic || s.AggregationTemporality != metrics.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE {
				t.Errorf("%s: %v", i.Name, got)
			}
		case telemetry.UpDownCounter:
			if s := got.GetSum(); s == nil || s.IsMonotonic || s.AggregationTemporality != metrics.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE {
				t.Errorf("%s: %v", i.Name, got)
			}
		case telemetry.Gauge:
			if got.GetGauge() == nil {
				t.Errorf("%s: %v", i.Name, got)
			}
		case telemetry.Histogram:
			p := got.GetHistogram().GetDataPoints()[0]
			if !slices.Equal(p.ExplicitBounds, i.Buckets) || len(p.BucketCounts) != len(i.Buckets)+1 || p.Count == 0 {
				t.Errorf("%s: %v", i.Name, p)
			}
		}
	}
	ttft := c.figures["gen_ai.server.time_to_first_token"].GetHistogram().DataPoints
	if !slices.ContainsFunc(ttft, func(p *metrics.HistogramDataPoint) bool {
		return len(p.Exemplars) > 0 && len(p.Exemplars[0].TraceId) == 16
	}) {
		t.Errorf("no exemplar in %v", ttft)
	}
	status := attr(c.figures["http.server.request.duration"].GetHistogram().DataPoints[0].Attributes, "http.response.status_code")
	if !slices.Contains([]string{"200", "404", "429", "499"}, status) {
		t.Errorf("status %q is no number", status)
	}
}

func TestLogLines(t *testing.T) {
	c := startCollector(t)
	e, stop := runExport(t, telemetry.ExportOptions{URL: c.http.URL, Logs: true})
	log := slog.New(e.Handler(slog.LevelInfo))
	log.Debug("not asked for")
	log.With("part", "x").WithGroup("g").Warn("careful", "n", 3, "ok", true, "f", 0.5, "trace_id", "ab000000000000000000000000000001", "span_id", "cd00000000000001")
	stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.lines) != 1 {
		t.Fatalf("%d lines, want 1", len(c.lines))
	}
	l := c.lines[0]
	if l.Body.GetStringValue() != "careful" || l.SeverityNumber != logs.SeverityNumber_SEVERITY_NUMBER_WARN || hex.EncodeToString(l.TraceId) != "ab000000000000000000000000000001" ||
		hex.EncodeToString(l.SpanId) != "cd00000000000001" || attr(l.Attributes, "part") != "x" || attr(l.Attributes, "g.n") != "3" {
		t.Errorf("line %v", l)
	}
}

// TestDeadCollector holds that nobody waits for a collector that takes nothing, that what is lost is counted, and that the
// process ends in time.
func TestDeadCollector(t *testing.T) {
	stuck := make(chan struct{})
	var asked atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		asked.Add(1)
		select {
		case <-stuck:
		case <-r.Context().Done():
		}
	}))
	defer srv.Close()
	defer close(stuck)
	m := newMetrics(telemetry.NamesLatest)
	var said strings.Builder
	e, stop := runExport(t, telemetry.ExportOptions{URL: srv.URL, Traces: true, Figures: m, Log: slog.New(slog.NewTextHandler(&said, nil))})
	rs := traced()
	began := time.Now()
	const many = 20_000
	var slowest time.Duration
	for range many {
		at := time.Now()
		e.Record(&rs[1])
		slowest = max(slowest, time.Since(at))
	}
	t.Logf("%d requests in %s, the slowest record %s", many, time.Since(began), slowest)
	if slowest > 30*time.Second {
		t.Errorf("a request waited %s for a collector", slowest)
	}
	ending := time.Now()
	stop()
	if d := time.Since(ending); d > 20*time.Second {
		t.Errorf("the end took %s", d)
	}
	page := scrape(t, m, "text/plain")
	full := families(t, page)["headrace_telemetry_dropped_total"]
	var lost float64
	for _, f := range full.Metric {
		lost += f.Counter.GetValue()
	}
	if lost < many-6000 || lost > many {
		t.Errorf("%v of %d requests' traces are counted as lost", lost, many)
	}
	if n := strings.Count(said.String(), "telemetry is not exported"); n > 1 {
		t.Errorf("said %d times that nothing is exported", n)
	}
}

func BenchmarkSampled(b *testing.B) {
	c := startCollector(b)
	e, err := telemetry.NewExport(b.Context(), telemetry.ExportOptions{URL: c.http.URL, Traces: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = e.Run(ctx) }()
	r := traced()[0]
	b.ReportAllocs()
	for b.Loop() {
		e.Record(&r)
	}
	cancel()
	<-done
}
