package telemetry_test

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	room "headrace/gateway/admission/queue"
	"headrace/gateway/ledger"
	"headrace/gateway/trace"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/health"
	"headrace/router/outcome"
	"headrace/telemetry"
)

var start = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// sources are a fleet of two hosts and an account.
func sources() telemetry.Sources {
	return telemetry.Sources{
		Hosts: func() []router.HostView {
			return []router.HostView{
				{
					Endpoint: &endpoint.Endpoint{ID: "static:a", Provider: "static", Tenure: endpoint.OnDemand}, ID: "static:a", Provider: "static", State: "ready", Breaker: "closed",
					Opens: 2, Transitions: []health.Transition{{From: "closed", To: "open", N: 1}, {From: "open", To: "probing", N: 2}, {From: "probing", To: "open", N: 1}, {From: "probing", To: "closed", N: 1}}, InFlight: 3, TTFTMillis: new(250.0), TPS: new(40.0), FullLoadUSDPerMTok: new(0.9), StreamUSDPerMTok: new(12.5), USDPerHour: new(1.8), PriceAgeSeconds: new(7.0),
					ITLMillis: new(25.0), Safe: new(16.0), Limit: new(48.0), Losses: new(0.1), Calibration: router.HostCalibration{TTFT: new(1.1), ITL: new(0.9), USD: new(1.0)},
				},
				{
					Endpoint: &endpoint.Endpoint{ID: "runpod:q", Provider: "runpod", Tenure: endpoint.Serverless}, ID: "runpod:q", Provider: "runpod", State: "cold", Breaker: "open",
					Workers: 2, Drained: true,
				},
			}
		},
		Calibration: func() router.Calibration {
			c := router.Calibration{TTFTExcess: -0.05, TPSExcess: 0.01, Alarm: true}
			c.TTFT[9] = router.CalibrationBin{N: 100, Predicted: 0.97, Kept: 90}
			return c
		},
		Accounts: func() []telemetry.Account {
			return []telemetry.Account{{
				Name: "runpod", LastGood: start.Add(-30 * time.Second), Failing: 1, Polls: 12, Hosts: 1,
				Calls: []telemetry.Calls{{Name: "list endpoints", Calls: 12, Errors: 3, Throttled: 1}},
			}}
		},
		Probes: func(id endpoint.ID) telemetry.Probes {
			if id != "static:a" {
				return telemetry.Probes{}
			}
			return telemetry.Probes{Sent: 5, Failed: 2, Continues: map[string]string{"llama": "yes"}}
		},
		Waiting: func() []room.Length {
			return []room.Length{{Pool: "m", Priority: room.Batch, Waiting: 3}, {Pool: room.Door, Waiting: 2}}
		},
		InFlight: func() int64 { return 4 },
		Draining: func() bool { return false },
		Reloads:  func() telemetry.Reloads { return telemetry.Reloads{OK: 2, Failed: 1} },
		Ledger: func() telemetry.Ledger {
			return telemetry.Ledger{Records: 9, Dropped: 1, Failures: 2, Bytes: 4096, Written: true, Bills: []telemetry.Bill{{Account: "vast", Billed: 4, Ledger: 5}}}
		},
		Experiments: func() []telemetry.Experiment {
			return []telemetry.Experiment{{Name: "awq", State: "running", Decisions: 2, Arms: []telemetry.ExperimentArm{
				{Name: "control", Share: 0.95, Units: 950, Requests: 1900, Failed: 9},
				{Name: "canary", Share: 0.05, Units: 50, Requests: 100, Failed: 1, OutOfArm: 2, Effects: []telemetry.Effect{
					{Figure: "ttft", Diff: 0.05, Low: -0.1, High: 0.2}, {Figure: "tps", Diff: math.NaN(), Low: math.NaN(), High: math.NaN()},
				}},
			}}}
		},
		Keys: func() telemetry.Keys {
			return telemetry.Keys{Refused: []telemetry.KeyRefusals{{Reason: "no_key", N: 3}, {Reason: "budget", N: 1}}, Warned: 2, Answered: 7, Alone: 1}
		},
		Shared: func() telemetry.Shared {
			return telemetry.Shared{Up: true, Errors: 1, Fallbacks: 2, Replicas: 3, Told: 4, Heard: 5, Lost: 6}
		},
	}
}

// records are one request of each kind there is.
func records() []ledger.Record {
	attempt := func(class outcome.Class, after, first, took time.Duration, output int64) ledger.Attempt {
		return ledger.Attempt{
			Endpoint: "static:a", Provider: "static", Served: "meta/llama", Class: class, Status: 200, After: after, First: first, Duration: took, Output: output,
			USD: float64(output) * 1e-6, USDKnown: true,
		}
	}
	base := ledger.Record{
		ID: "req_1", At: start, Method: "POST", Route: "/v1/chat/completions", Model: "llama", Known: true, Served: "meta/llama", Stream: true, Endpoint: "static:a", Provider: "static", Status: 200, Tries: 1,
		TTFT: 300 * time.Millisecond, Duration: 1300 * time.Millisecond, Overhead: 60 * time.Microsecond, Reading: 30 * time.Microsecond, Deciding: 20 * time.Microsecond, TPS: 40, Prompt: 100, Cached: 64, Output: 41, Reasoning: -1,
		SLO: router.SLO{TTFT: 2 * time.Second, TPS: 15, Confidence: 0.9}, USD: 41e-6, USDKnown: true,
	}
	base.Attempts = []ledger.Attempt{attempt(outcome.Success, 0, 250*time.Millisecond, 1250*time.Millisecond, 41)}
	base.Gaps.N[2], base.Gaps.Sum = 40, time.Second
	base.Trace = trace.Context{ID: trace.ID{0xab, 15: 1}, Span: trace.SpanID{0xcd, 7: 1}, Sampled: true}

	like := func(r ledger.Record) ledger.Record {
		r.Attempts = slices.Clone(r.Attempts)
		return r
	}
	failover := base
	failover.Tries, failover.Trace = 2, trace.Context{}
	failover.Attempts = []ledger.Attempt{
		attempt(outcome.DialFailed, 0, 0, time.Millisecond, 0), attempt(outcome.Success, time.Second, 100*time.Millisecond, 300*time.Millisecond, 41),
	}
	failover.Attempts[0].Status, failover.Attempts[0].Endpoint = 0, "runpod:q"
	failover.Attempts[0].Provider = "runpod"

	continued := like(failover)
	continued.Resumes, continued.Offered, continued.SeamGap = 1, 1, 400*time.Millisecond
	continued.Attempts[0] = attempt(outcome.Truncated, 0, 250*time.Millisecond, time.Second, 20)
	continued.Attempts[1].Resumed, continued.Attempts[1].Output = true, 21

	lost := like(base)
	lost.Class, lost.Lost, lost.TTFT = outcome.Truncated, "tools", 3*time.Second
	lost.Attempts[0].Class = outcome.Truncated

	cold := like(base)
	cold.Attempts[0].Decision = router.Decision{Cold: true}
	cold.Attempts[0].First, cold.Attempts[0].Endpoint, cold.Attempts[0].Provider = 47*time.Second, "runpod:q", "runpod"
	cold.Provider, cold.TTFT, cold.Duration = "runpod", 48*time.Second, 50*time.Second

	left := like(base)
	left.Class, left.Left, left.Status, left.TTFT, left.TPS = outcome.ClientGone, ledger.BeforeFirstToken, 499, 0, 0
	left.Attempts[0].Class, left.Attempts[0].First, left.Attempts[0].Output = outcome.ClientGone, 0, 0
	left.Prompt, left.Cached, left.Output, left.Gaps = -1, -1, -1, ledger.Gaps{}

	hedged := like(failover)
	hedged.Hedge = "won"
	hedged.Attempts[0].Class, hedged.Attempts[1].Hedge = outcome.Outrun, true

	fault := ledger.Record{At: start, Method: "POST", Route: "/v1/chat/completions", Model: "no-such-model", Status: 404, Class: outcome.CallerFault, Prompt: -1, Cached: -1, Output: -1, Reasoning: -1, Overhead: 8 * time.Microsecond}
	queued := like(base)
	queued.Queued, queued.Batch, queued.TTFT = 2*time.Second, true, 2300*time.Millisecond
	queued.Duration += 2 * time.Second
	queued.Attempts[0].After = 2 * time.Second
	refused := fault
	refused.Model, refused.Known, refused.Status, refused.Queued, refused.Duration, refused.Refused = base.Model, true, 429, 30*time.Millisecond, 31*time.Millisecond, room.Expired
	return []ledger.Record{base, failover, continued, lost, cold, left, fault, hedged, queued, refused}
}

func newMetrics(names telemetry.Names) *telemetry.Metrics {
	m := telemetry.NewMetrics(telemetry.MetricsOptions{Names: names, Exemplars: true, Sources: sources(), Version: "test", Now: func() time.Time { return start.Add(time.Minute) }})
	m.Refused(404, "unknown_url")
	return m
}

func scrape(t testing.TB, m *telemetry.Metrics, accept string) string {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	r.Header.Set("Accept", accept)
	for tries := 1; ; tries++ {
		w := httptest.NewRecorder()
		if m.Handler().ServeHTTP(w, r); w.Code == http.StatusOK {
			return w.Body.String()
		}
		if w.Code != http.StatusServiceUnavailable || tries == 5 { // a page has 10 s, which a busy machine may take for it
			t.Fatalf("status %d: %s", w.Code, w.Body)
		}
	}
}

func families(t testing.TB, page string) map[string]*dto.MetricFamily {
	t.Helper()
	var p expfmt.TextParser
	fs, err := p.TextToMetricFamilies(strings.NewReader(page))
	if err != nil {
		t.Fatalf("%v\n%s", err, page)
	}
	return fs
}

// ours leaves out what Go and the system tell of the process.
func ours(page string) string {
	var out []string
	for line := range strings.Lines(page) {
		name := strings.TrimPrefix(strings.TrimPrefix(line, "# HELP "), "# TYPE ")
		if !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "process_") && !strings.HasPrefix(name, "# EOF") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

// TestPage holds /metrics to a file, figure by figure.
func TestPage(t *testing.T) {
	for name, names := range map[string]telemetry.Names{"latest": telemetry.NamesLatest, "legacy": telemetry.NamesLegacy, "both": telemetry.NamesBoth} {
		t.Run(name, func(t *testing.T) {
			m := newMetrics(names)
			for _, r := range records() {
				m.Record(&r)
			}
			got := ours(scrape(t, m, "text/plain"))
			path := filepath.Join("testdata", "metrics."+name+".txt")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("/metrics differs from %s; look at it after go test ./telemetry -update", path)
			}
		})
	}
}

// TestPageIsTheTable holds that every instrument is on the page, by its name, kind and labels, and nothing else.
func TestPageIsTheTable(t *testing.T) {
	m := newMetrics(telemetry.NamesBoth)
	for _, r := range records() {
		m.Record(&r)
	}
	page := ours(scrape(t, m, "text/plain"))
	fs := families(t, page)
	for _, i := range telemetry.Instruments() {
		f := fs[i.Prometheus()]
		if f == nil {
			t.Errorf("%s is not on the page", i.Prometheus())
			continue
		}
		want := i.Kind.String()
		if i.Kind == telemetry.UpDownCounter {
			want = "gauge"
		}
		if kind := strings.ToLower(f.GetType().String()); kind != want {
			t.Errorf("%s is a %s", i.Prometheus(), kind)
		}
		var labels []string
		for _, l := range i.Labels {
			labels = append(labels, telemetry.PrometheusLabel(l))
		}
		for _, l := range f.Metric[0].Label {
			if !slices.Contains(labels, l.GetName()) {
				t.Errorf("%s has label %s", i.Prometheus(), l.GetName())
			}
		}
		delete(fs, i.Prometheus())
	}
	for name := range fs {
		t.Errorf("%s is on the page and not in the table", name)
	}
}

// TestAttempts holds what is a failover, and which attempts are in the answer.
func TestAttempts(t *testing.T) {
	attempt := func(id endpoint.ID, class outcome.Class, output int64) ledger.Attempt {
		return ledger.Attempt{Endpoint: id, Provider: "static", Served: "m", Class: class, Duration: time.Second, Output: output, USD: 1, USDKnown: true}
	}
	hedge := func(a ledger.Attempt) ledger.Attempt { a.Hedge = true; return a }
	resumed := func(a ledger.Attempt) ledger.Attempt { a.Resumed = true; return a }
	for name, tc := range map[string]struct {
		attempts  []ledger.Attempt
		hedge     string
		failovers map[string]float64 // by class
		useful    map[string]float64 // dollars by endpoint
	}{
		"one": {
			[]ledger.Attempt{attempt("a", outcome.Success, 9)},
			"",
			nil,
			map[string]float64{"a": 1},
		},
		"the next one": {
			[]ledger.Attempt{attempt("a", outcome.DialFailed, 0), attempt("b", outcome.Success, 9)},
			"",
			map[string]float64{"dial_failed": 1},
			map[string]float64{"b": 1},
		},
		"a hedge lost, and the attempt broke off": {
			[]ledger.Attempt{hedge(attempt("h", outcome.Outrun, 0)), attempt("a", outcome.Severed, 4), resumed(attempt("b", outcome.Success, 5))},
			"lost",
			map[string]float64{"severed": 1},
			map[string]float64{"a": 1, "b": 1},
		},
		"both failed": {
			[]ledger.Attempt{attempt("a", outcome.UpstreamFault, 0), hedge(attempt("h", outcome.Severed, 0)), attempt("b", outcome.Success, 9)},
			"failed",
			map[string]float64{"upstream_fault": 1},
			map[string]float64{"b": 1},
		},
		"both failed, the hedge first": {
			[]ledger.Attempt{hedge(attempt("h", outcome.Severed, 0)), attempt("a", outcome.UpstreamFault, 0), attempt("b", outcome.Success, 9)},
			"failed",
			map[string]float64{"upstream_fault": 1},
			map[string]float64{"b": 1},
		},
		"a hedge won": {
			[]ledger.Attempt{attempt("a", outcome.Outrun, 0), hedge(attempt("h", outcome.Success, 9))},
			"won",
			nil,
			map[string]float64{"h": 1},
		},
		"a hedge won and broke off": {
			[]ledger.Attempt{attempt("a", outcome.Outrun, 0), hedge(attempt("h", outcome.Severed, 4)), resumed(attempt("b", outcome.Success, 5))},
			"won",
			map[string]float64{"severed": 1},
			map[string]float64{"h": 1, "b": 1},
		},
		"one that was to go on and did not": {
			[]ledger.Attempt{attempt("a", outcome.Severed, 4), resumed(attempt("b", outcome.Severed, 0)), resumed(attempt("c", outcome.Success, 5))},
			"",
			map[string]float64{"severed": 2},
			map[string]float64{"a": 1, "c": 1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := telemetry.NewMetrics(telemetry.MetricsOptions{Now: func() time.Time { return start }})
			m.Record(&ledger.Record{At: start, Route: "/v1/chat/completions", Model: "m", Known: true, Hedge: tc.hedge, Attempts: tc.attempts, Tries: len(tc.attempts)})
			fs := families(t, scrape(t, m, "text/plain"))
			counted := func(name, by, only string) map[string]float64 {
				got := map[string]float64{}
				for _, one := range fs[name].GetMetric() {
					labels := map[string]string{}
					for _, l := range one.Label {
						labels[l.GetName()] = l.GetValue()
					}
					if only == "" || labels["headrace_use"] == only {
						got[labels[by]] += one.Counter.GetValue()
					}
				}
				return got
			}
			if got := counted("headrace_failovers_total", "headrace_class", ""); !maps.Equal(got, tc.failovers) {
				t.Errorf("failovers %v, want %v", got, tc.failovers)
			}
			if got := counted("headrace_spend_usd_total", "headrace_endpoint", "useful"); !maps.Equal(got, tc.useful) {
				t.Errorf("useful dollars %v, want %v", got, tc.useful)
			}
		})
	}
}

// TestContinuedBy counts continuations by what the other host was told: one asked with the numbers of tokens that never answered, one that
// went on by text, and one by numbers.
func TestContinuedBy(t *testing.T) {
	attempt := func(resumed, exact bool, first time.Duration) ledger.Attempt {
		return ledger.Attempt{Endpoint: "a", Provider: "static", Served: "m", Class: outcome.Severed, Resumed: resumed, Exact: exact, First: first, Duration: time.Second}
	}
	m := telemetry.NewMetrics(telemetry.MetricsOptions{Now: func() time.Time { return start }})
	m.Record(&ledger.Record{
		At: start, Route: "/v1/chat/completions", Model: "m", Known: true, Tries: 4, Offered: 3, Resumes: 2, Lost: "too_many",
		Attempts: []ledger.Attempt{attempt(false, false, time.Millisecond), attempt(true, true, 0), attempt(true, false, time.Millisecond), attempt(true, true, time.Millisecond)},
	})
	got := map[string]float64{}
	for _, one := range families(t, scrape(t, m, "text/plain"))["headrace_continuations_total"].GetMetric() {
		labels := map[string]string{}
		for _, l := range one.Label {
			labels[l.GetName()] = l.GetValue()
		}
		got[labels["headrace_result"]+" "+labels["headrace_goes_on_by"]] += one.Counter.GetValue()
	}
	want := map[string]float64{"offered text": 1, "offered token_ids": 2, "done text": 1, "done token_ids": 1, "refused ": 1}
	if !maps.Equal(got, want) {
		t.Errorf("counted %v, want %v", got, want)
	}
}

// TestExemplars holds that a figure leads to a sampled request.
func TestExemplars(t *testing.T) {
	m := newMetrics(telemetry.NamesLatest)
	for _, r := range records() {
		m.Record(&r)
	}
	page := scrape(t, m, "application/openmetrics-text; version=1.0.0")
	want := regexp.MustCompile(`gen_ai_server_time_to_first_token_seconds_bucket\{.*\} \d+ # \{.*trace_id="ab000000000000000000000000000001".*\} 0\.3 `)
	if !want.MatchString(page) {
		t.Errorf("no exemplar of the sampled request on\n%s", page)
	}
	if strings.Contains(scrape(t, m, "text/plain"), "trace_id") {
		t.Error("exemplars on a page for a scraper that does not know them")
	}
}

// TestPromtool has Prometheus' own tool look at the page.
func TestPromtool(t *testing.T) {
	tool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not installed")
	}
	m := newMetrics(telemetry.NamesBoth)
	for _, r := range records() {
		m.Record(&r)
	}
	cmd := exec.CommandContext(t.Context(), tool, "check", "metrics")
	cmd.Stdin = strings.NewReader(ours(scrape(t, m, "text/plain")))
	if out, err := cmd.CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

// slow leaves out what the race detector makes too slow.
func slow(t *testing.T) {
	t.Helper()
	if underRace {
		t.Skip("too slow under the race detector, and nothing in it is shared")
	}
}

// TestSeriesAreBounded lets callers invent names, and a fleet have more hosts and models than there are series for.
func TestSeriesAreBounded(t *testing.T) {
	slow(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test's
	m := newMetrics(telemetry.NamesBoth)
	r, stranger := records()[0], records()[6]
	m.Record(&r)
	m.Record(&stranger)
	size := func() int { return strings.Count(scrape(t, m, "text/plain"), "\n") }
	before := size()
	for range 50_000 {
		stranger.Model = fmt.Sprintf("invented-%d", rng.IntN(5000))
		m.Record(&stranger)
	}
	if after := size(); after != before {
		t.Errorf("invented names: %d lines, %d before", after, before)
	}
	var page string
	count := func(label string) int {
		seen := map[string]bool{}
		for _, m := range regexp.MustCompile(`headrace_attempts_total\{.*`+label+`="([^"]*)"`).FindAllStringSubmatch(page, -1) {
			seen[m[1]] = true
		}
		return len(seen)
	}
	for i := range 1200 { // hosts that come and go over months
		r.Attempts[0].Endpoint = endpoint.ID(fmt.Sprint("static:", i))
		m.Record(&r)
	}
	for i := range 1200 {
		r.Attempts[0].Endpoint, r.Model = "static:a", fmt.Sprint("model-", i)
		m.Record(&r)
	}
	page = scrape(t, m, "text/plain")
	if n := count("headrace_endpoint"); n > 1001 {
		t.Errorf("%d hosts have series", n)
	}
	if n := count("headrace_model"); n > 1001 {
		t.Errorf("%d models have series", n)
	}
	var total float64
	for _, one := range regexp.MustCompile(`(?m)^headrace_requests_total\{.*\} (.*)$`).FindAllStringSubmatch(page, -1) {
		n, err := strconv.ParseFloat(one[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		total += n
	}
	if total != 2+50_000+2400 {
		t.Errorf("%v requests are counted, 52,402 were made", total)
	}
}

// TestHostsThatAreGone has a fleet whose hosts are replaced, one after another, more often than there are names for.
func TestHostsThatAreGone(t *testing.T) {
	slow(t)
	now, fleet := start, []router.HostView{}
	m := telemetry.NewMetrics(telemetry.MetricsOptions{
		Names: telemetry.NamesBoth, Now: func() time.Time { return now },
		Sources: telemetry.Sources{Hosts: func() []router.HostView { return fleet }},
	})
	one := records()[0]
	ask := func(id endpoint.ID) {
		one.At, one.Attempts[0].Endpoint = now.Add(-one.Duration), id
		m.Record(&one)
	}
	view := func(id endpoint.ID) router.HostView {
		return router.HostView{Endpoint: &endpoint.Endpoint{ID: id}, ID: id, Provider: "static"}
	}
	attempts := func() map[string]float64 {
		got := map[string]float64{}
		for _, one := range families(t, scrape(t, m, "text/plain"))["headrace_attempts_total"].GetMetric() {
			for _, l := range one.Label {
				if l.GetName() == "headrace_endpoint" {
					got[l.GetValue()] += one.Counter.GetValue()
				}
			}
		}
		return got
	}
	ask("static:idle") // stays, and is asked nothing more
	const hosts, each = 1100, 10 * time.Minute
	for i := range hosts {
		id := endpoint.ID(fmt.Sprint("static:", i))
		fleet = []router.HostView{view("static:idle"), view(id)}
		ask(id)
		if i%20 == 0 {
			attempts()
		}
		now = now.Add(each)
	}
	got := attempts()
	if got["static:idle"] != 1 || got["static:1099"] != 1 || got["other"] != 0 {
		t.Errorf("figures of the two hosts there are: %v", got)
	}
	if got["static:1094"] != 0 || got["static:1095"] != 1 || len(got) != 6 {
		t.Errorf("figures of the hosts that were asked within the hour: %v", got)
	}
	if page := scrape(t, m, "text/plain"); !strings.Contains(page, "headrace_telemetry_overflow_total 0\n") || strings.Contains(page, `"static:1094"`) {
		t.Errorf("after %d hosts:\n%s", hosts, page)
	}

	ask("static:1") // was forgotten, and is back
	ask("static:1")
	if got := attempts(); got["static:1"] != 2 {
		t.Errorf("a host that is back: %v", got)
	}

	fleet = nil
	for i := range 1002 {
		fleet = append(fleet, view(endpoint.ID(fmt.Sprint("static:", i))))
	}
	if page := scrape(t, m, "text/plain"); !strings.Contains(page, "headrace_telemetry_overflow_total 2\n") {
		t.Error("hosts that get no gauges are not counted")
	}
}

// TestConcurrently has requests counted while pages are read.
func TestConcurrently(t *testing.T) {
	m := newMetrics(telemetry.NamesBoth)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 500 {
				for _, r := range records() {
					m.Record(&r)
				}
			}
		})
	}
	for range 20 {
		families(t, scrape(t, m, "text/plain"))
	}
	wg.Wait()
	if page := scrape(t, m, "text/plain"); !strings.Contains(page, `headrace_requests_total{headrace_class="caller_fault",headrace_model="other"} 2000`) {
		t.Errorf("counts were lost:\n%s", page)
	}
}

func TestRecordAllocatesNothing(t *testing.T) {
	m := newMetrics(telemetry.NamesBoth)
	rs := records()
	for i := range rs {
		rs[i].Trace = trace.Context{}
		m.Record(&rs[i])
	}
	if n := testing.AllocsPerRun(100, func() {
		for i := range rs {
			m.Record(&rs[i])
		}
	}); n != 0 {
		t.Errorf("%v allocations for %d requests", n, len(rs))
	}
}

func BenchmarkRecord(b *testing.B) {
	m := newMetrics(telemetry.NamesLatest)
	r := records()[0]
	r.Trace = trace.Context{}
	b.ReportAllocs()
	for b.Loop() {
		m.Record(&r)
	}
}

// BenchmarkScrape is a page of 64 hosts with 4 models each.
func BenchmarkScrape(b *testing.B) {
	m := newMetrics(telemetry.NamesLatest)
	for h := range 64 {
		for i := range 4 {
			r := records()[0]
			r.Attempts[0].Endpoint, r.Attempts[0].Served, r.Model = endpoint.ID(fmt.Sprint("static:", h)), fmt.Sprint("m", i), fmt.Sprint("m", i)
			m.Record(&r)
		}
	}
	h := m.Handler()
	for b.Loop() {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		b.SetBytes(int64(w.Body.Len()))
	}
}

// What is counted does not depend on the order in which requests of different kinds come.
func TestAnyOrder(t *testing.T) {
	t.Parallel()
	m := newMetrics(telemetry.NamesLatest)
	rs := records()
	for round := range 3 {
		for i := range rs {
			m.Record(&rs[i])
			m.Record(&rs[(i*7+round)%len(rs)])
		}
	}
	want := newMetrics(telemetry.NamesLatest)
	for i := range rs { // each as often, all of a kind together
		n := 3
		for round := range 3 {
			for j := range rs {
				if (j*7+round)%len(rs) == i {
					n++
				}
			}
		}
		for range n {
			want.Record(&rs[i])
		}
	}
	counts := func(m *telemetry.Metrics) string {
		var b strings.Builder
		for line := range strings.Lines(scrape(t, m, "text/plain")) {
			name, _, _ := strings.Cut(line, "{")
			if name, ok := strings.CutSuffix(name, "_total"); (ok || strings.HasSuffix(name, "_bucket")) && !strings.Contains(name, "usd") { // sums of fractions do depend on it, in their last digit
				b.WriteString(line)
			}
		}
		return b.String()
	}
	if got, want := counts(m), counts(want); got != want || !strings.Contains(got, "_bucket{") || !strings.Contains(got, "_total{") {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
