package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"headrace/gateway/admin"
	"headrace/gateway/ledger"
	"headrace/providers/fakecloud"
	"headrace/router"
	"headrace/router/capacity"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

var update = flag.Bool("update", false, "rewrite golden files")

// explained runs `headrace explain` with args and returns what it prints and its exit code.
func explained(t *testing.T, args ...string) (out string, code int, err error) {
	t.Helper()
	var b bytes.Buffer
	c := root()
	c.SetArgs(append([]string{"explain"}, args...))
	c.SetOut(&b)
	err = c.ExecuteContext(t.Context())
	if ee, ok := errors.AsType[*exitError](err); ok {
		code = ee.code
	} else if err != nil {
		code = 1
	}
	return b.String(), code, err
}

const explainYAML = `
listen: "127.0.0.1:0"
admin: "127.0.0.1:0"
providers:
  static:
    - {name: lab, base_url: %q, models: [m], price: {usd_per_hour: 1.8}, tenure: on_demand, region: DE}
    - {name: dear, base_url: %q, models: [m], price: {usd_per_hour: 90}, tenure: on_demand, region: US}
`

// TestExplain asks a running gateway about a request that was, one that could be, and what does not exist.
func TestExplain(t *testing.T) {
	lab := startHost(t, fakecloud.HostConfig{Name: "lab", Models: []string{"m"}})
	dear := startHost(t, fakecloud.HostConfig{Name: "dear", Models: []string{"m"}})
	r := startApp(t, t.TempDir(), fmt.Sprintf(explainYAML, lab.URL()+"/v1", dear.URL()+"/v1"), nil)
	addr := r.app.admin.Addr().String()

	out, code, err := explained(t, "--admin", addr)
	if code != 0 || !strings.Contains(out, "No decision yet") {
		t.Errorf("before any request: exit code %d, %v\n%s", code, err, out)
	}

	body := `{"model":"m","stream":true,"max_tokens":20,"messages":[{"role":"user","content":"hello"}]}`
	res, err := http.Post(r.base+"/v1/chat/completions", "application/json", strings.NewReader(body)) //nolint:noctx // loopback
	if err != nil {
		t.Fatal(err)
	}
	var sink bytes.Buffer
	if _, err := sink.ReadFrom(res.Body); err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	id := res.Header.Get("X-Request-Id")
	settled(t, addr, id)

	for name, tc := range map[string]struct {
		args []string
		code int
		want []string
	}{
		"newest": {nil, 0, []string{id, "static:lab", "success", "the least marginal cost"}},
		"request": {[]string{id}, 0, []string{
			id + " went to static:lab: the least marginal cost among those that keep the SLO (first token in ", "tokens/s; $0.",
			"a prompt of ", "│ static:lab", "│ chosen", "│ static:dear", "It ended with success; first token in ", "(expected: ", "status 200; 20 tokens", "is its share of the bill",
		}},
		"request as JSON":  {[]string{id, "-o", "json"}, 0, []string{`"winner": "static:lab"`, `"class": "success"`, `"marginal_usd": 0.0`, `"request": {`}},
		"could be":         {[]string{"--model", "m", "--prompt-tokens", "2000", "--max-tokens", "64", "--ttft", "9s", "--tps", "5"}, 0, []string{"It would go to static:lab: the least", "a prompt of 2000 tokens, an answer of about ", "within 9 s and 5 tokens/s"}},
		"could be, JSON":   {[]string{"--model", "m", "-o", "json"}, 0, []string{`"winner": "static:lab"`, `"prompt_tokens": 500`}},
		"another region":   {[]string{"--model", "m", "--region", "US,CA"}, 0, []string{"It would go to static:dear: the only one", "below the demanded trust, encryption or region"}},
		"session, policy":  {[]string{"--model", "m", "--session", "s1", "--policy", "LATENCY"}, 0, []string{"policy latency"}},
		"nobody":           {[]string{"--model", "m", "--trust", "secure", "--region", "FR"}, 1, []string{"It would be refused: no endpoint for model", "│ static:lab"}},
		"unknown model":    {[]string{"--model", "nosuch"}, 1, []string{`The model "nosuch" does not exist. Available: m.`}},
		"unknown request":  {[]string{"req_nosuch"}, 1, []string{`no decision of request "req_nosuch"`}},
		"bad policy":       {[]string{"--model", "m", "--policy", "fast"}, 2, []string{"policy is not understood. Give one of cost, latency, balanced or weighted"}},
		"bad ttft":         {[]string{"--model", "m", "--ttft", "soon"}, 2, []string{"such as 800ms or 2s"}},
		"bad tps":          {[]string{"--model", "m", "--tps", "0"}, 2, []string{"the least tokens per second"}},
		"bad trust":        {[]string{"--model", "m", "--trust", "some"}, 2, []string{"one of community"}},
		"bad region":       {[]string{"--model", "m", "--region", ","}, 2, []string{"regions parted by commas"}},
		"negative prompt":  {[]string{"--model", "m", "--prompt-tokens", "-1"}, 2, []string{"a whole number of tokens from 1"}},
		"no model":         {[]string{"--policy", "cost"}, 2, []string{"--model is missing"}},
		"both":             {[]string{id, "--model", "m"}, 2, []string{"not both"}},
		"bad output":       {[]string{id, "-o", "xml"}, 2, []string{"want table or json"}},
		"bad address":      {[]string{id, "--admin", "nowhere"}, 2, []string{"want host:port"}},
		"off":              {[]string{id, "--admin", "off"}, 2, []string{"admin API is off"}},
		"nobody listens":   {[]string{id, "--admin", "127.0.0.1:1"}, 1, []string{"no gateway answers at 127.0.0.1:1"}},
		"not an admin API": {[]string{id, "--admin", strings.TrimPrefix(lab.URL(), "http://")}, 1, []string{"is not the admin API"}},
	} {
		t.Run(name, func(t *testing.T) {
			args := tc.args
			if !strings.Contains(strings.Join(args, " "), "--admin") {
				args = append(args, "--admin", addr)
			}
			out, code, err := explained(t, args...)
			if err != nil {
				out += err.Error()
			}
			if code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			for _, w := range tc.want {
				if !strings.Contains(out, w) {
					t.Errorf("it does not say %q:\n%s", w, out)
				}
			}
			if code == 0 && strings.HasSuffix(strings.Join(tc.args, " "), "-o json") && !json.Valid([]byte(out)) {
				t.Errorf("no JSON: %s", out)
			}
		})
	}
	if hosts := r.app.router.Hosts(); hosts[0].InFlight+hosts[1].InFlight != 0 {
		t.Error("asking took a lease")
	}

	t.Run("address from the config", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(file, []byte("admin: "+addr+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, code, err := explained(t, id, "-c", file); code != 0 || !strings.Contains(out, "static:lab") {
			t.Errorf("exit code %d, %v: %s", code, err, out)
		}
		t.Setenv("HEADRACE_ADMIN", addr)
		if out, code, err := explained(t, id); code != 0 || !strings.Contains(out, "static:lab") {
			t.Errorf("by HEADRACE_ADMIN: exit code %d, %v: %s", code, err, out)
		}
	})
}

// settled waits until the request's record and what became of its decision can be read.
func settled(t *testing.T, addr, id string) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		_, recs := get(t, "http://"+addr+"/admin/v1/requests?request_id="+id)
		_, ds := get(t, "http://"+addr+"/admin/v1/decisions?request_id="+id)
		if strings.Contains(recs, id) && strings.Contains(ds, `"realised"`) {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("request %q does not end:\n%s\n%s", id, recs, ds)
		}
	}
}

func TestExplainCompletion(t *testing.T) {
	for flag, want := range map[string]string{"--policy": "cost\nlatency\nbalanced\nweighted\n", "--trust": "community\nverified\ndatacenter\nsecure\n", "--output": "table\njson\n"} {
		var b bytes.Buffer
		c := root()
		c.SetArgs([]string{"__completeNoDesc", "explain", flag, ""})
		c.SetOut(&b)
		if err := c.ExecuteContext(t.Context()); err != nil || !strings.HasPrefix(b.String(), want) {
			t.Errorf("%s: %v\n%s", flag, err, b.String())
		}
	}
}

// TestAdminDecisions checks the answers of the admin API that explain does not need, and what it says to bad questions.
func TestAdminDecisions(t *testing.T) {
	r := router.New(router.Options{Now: time.Now})
	h := admin.Handler(admin.Options{
		Host:   "example.com",
		Router: r, Requests: ledger.NewRing(1), InFlight: func() int64 { return 0 }, Draining: func() bool { return false },
		Reload: func() *admin.ReloadStatus { return nil },
	})
	ask := func(url string) (int, string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, url, nil))
		return w.Code, w.Body.String()
	}
	for url, want := range map[string]string{
		"/admin/v1/explain?model=m": `404 {"error":{"code":"model_not_found","message":"The model \"m\" does not exist. Available: none yet: no host has told what it serves."`,
	} {
		if status, body := ask(url); !strings.HasPrefix(fmt.Sprint(status, " ", body), want) {
			t.Errorf("without hosts, %s: %d %s", url, status, body)
		}
	}
	var models []endpoint.Served
	for i := range 30 {
		models = append(models, endpoint.Served{Name: fmt.Sprintf("m%02d", i)})
	}
	r.Update([]endpoint.Endpoint{{ID: "a", Served: models, Price: endpoint.Price{Basis: endpoint.PerHour, USDPerHour: 1}}}, nil)
	if err := r.Pick(&router.Request{ID: "req_1", Model: "m00"}, new(router.Lease)); err != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]string{
		"/admin/v1/decisions":                                   `200 {"decisions":[{"request_id":"req_1",`,
		"/admin/v1/decisions?request_id=req_2":                  `200 {"decisions":[]}`,
		"/admin/v1/decisions?n=0":                               `400 {"error":{"code":"invalid_n","message":"n must be a whole number from 1 to 1000."`,
		"/admin/v1/decisions?n=1001":                            `400 {"error":{"code":"invalid_n"`,
		"/admin/v1/explain":                                     `400 {"error":{"code":"invalid_parameter","message":"You must provide a model parameter`,
		"/admin/v1/explain?model=m00&promt_tokens=3":            `400 {"error":{"code":"invalid_parameter","message":"There is no parameter \"promt_tokens\". There are model, prompt_tokens,`,
		"/admin/v1/explain?model=m00&prompt_tokens=few":         `400 {"error":{"code":"invalid_parameter","message":"The parameter prompt_tokens is not understood. Give a whole number of tokens from 1,`,
		"/admin/v1/explain?model=m00&max_tokens=1e3":            `400 {"error":{"code":"invalid_parameter","message":"The parameter max_tokens`,
		"/admin/v1/explain?model=m00&policy=":                   `400 {"error":{"code":"invalid_parameter","message":"The parameter policy is not understood. Give one of cost, latency, balanced or weighted,`,
		"/admin/v1/explain?model=m00&session=":                  `400 {"error":{"code":"invalid_parameter","message":"The parameter session`,
		"/admin/v1/explain?model=m00&key=nobody":                `404 {"error":{"code":"key_not_found","message":"There is no key \"nobody\".`,
		"/admin/v1/explain?model=m00&key=":                      `400 {"error":{"code":"invalid_parameter","message":"The parameter key`,
		"/admin/v1/explain?model=m00&tps=NaN":                   `400 {"error":{"code":"invalid_parameter","message":"The parameter tps`,
		"/admin/v1/explain?model=none":                          `404 {"error":{"code":"model_not_found","message":"The model \"none\" does not exist. Available: m00, m01,`,
		"/admin/v1/explain?model=m00&prompt_tokens=10&ttft=1.5": `200 {"at":`,
		"/admin/v1/calibration":                                 `200 {"calibration":{"ttft":{"bins":[{"n":0,"predicted":0,"kept":0},`,
		"/admin/v1/status":                                      `200 {"calibration_alarm":false,`,
	} {
		if status, body := ask(url); !strings.HasPrefix(fmt.Sprint(status, " ", body), want) {
			t.Errorf("%s: %d %s, want %s", url, status, body, want)
		}
	}
	if _, body := ask("/admin/v1/explain?model=none"); !strings.Contains(body, "m19 and 10 more") {
		t.Errorf("thirty models: %s", body)
	}
	if _, body := ask("/nosuch"); !strings.Contains(body, "/admin/v1/decisions, /admin/v1/explain, /admin/v1/calibration") {
		t.Errorf("the list of URLs: %s", body)
	}
}

// TestCalibrationLog has a host that gives fast first tokens and then is slow: its alarm is logged once, and its end once.
func TestCalibrationLog(t *testing.T) {
	r := router.New(router.Options{Now: time.Now, Prior: func(*endpoint.Endpoint) capacity.Prior {
		return capacity.Prior{ITLSeconds: 0.01, Slope: 0.001, TTFTSeconds: 0.1, PrefillTokensPerSecond: 1e4, MaxNumSeqs: 256}
	}})
	r.Update([]endpoint.Endpoint{{ID: "liar", Served: []endpoint.Served{{Name: "m"}}, MaxNumSeqs: 256, Price: endpoint.Price{Basis: endpoint.PerHour, USDPerHour: 1}}}, nil)
	wave := func(tps float64) {
		leases := make([]router.Lease, 100)
		for i := range leases {
			if err := r.Pick(&router.Request{Model: "m"}, &leases[i]); err != nil {
				t.Fatal(err)
			}
		}
		for i := range leases {
			leases[i].FirstContent(100 * time.Millisecond)
			leases[i].Done(router.Result{Class: outcome.Success, OutputTokens: 101, Streamed: time.Duration(100 / tps * float64(time.Second))})
		}
	}
	log := newLogBuffer()
	ticks := make(chan time.Time)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		watchCalibration(ctx, r, ticks, slog.New(slog.NewJSONHandler(log, nil)))
	}()
	look := func() {
		for range 3 { // when the third is taken the first two were seen to
			ticks <- time.Time{}
		}
	}
	const began, ended = `"level":"WARN","msg":"fewer requests keep their slo`, `"level":"WARN","msg":"predictions come true again`
	if look(); log.String() != "" {
		t.Fatalf("with nothing amiss it says %s", log)
	}
	wave(5)
	look()
	log.await(t, began, 1)
	if s := log.String(); !strings.Contains(s, `"furthest_off":"liar"`) || !strings.Contains(s, `"tps_excess":-0.`) || strings.Contains(s, "ERROR") {
		t.Errorf("it says %s", s)
	}
	for i := 0; r.Calibration().Alarm; i++ {
		if i == 100 {
			t.Fatal("the alarm does not end")
		}
		wave(60)
		look()
	}
	look()
	log.await(t, ended, 1)
	cancel()
	<-done
	if s := log.String(); strings.Count(s, "\n") != 2 {
		t.Errorf("it says it again:\n%s", s)
	}
}

// TestExplainGolden holds the text to testdata/explain/*.golden; -update rewrites them.
func TestExplainGolden(t *testing.T) {
	at := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	now := at.Add(95 * time.Second)
	f := func(v float64) *float64 { return &v }
	n := func(v int64) *int64 { return &v }
	slo := router.SLOView{TTFT: 2, TPS: 15, Confidence: 0.9}
	hourly := func(id string, usd, ttft, tps, inFlight float64) router.CandidateView {
		return router.CandidateView{
			Endpoint: endpoint.ID(id), Verdict: servesWord, State: "ready", Breaker: "closed", MarginalUSD: f(usd), FullUSDMTok: f(0.58), TTFT: f(ttft), TTFTSigma: f(0.27),
			TPS: f(tps), TPSSigma: f(0.09), PTTFT: f(0.9999), PTPS: f(0.992), InFlight: f(inFlight), Safe: f(12), Cached: f(0), ColdSeconds: f(0),
		}
	}
	holder := hourly("vast:123", 0.0000312, 0.42, 21.2, 3)
	holder.Cached = f(1536)
	cold := hourly("runpod:llama", 0.01044, 4.2, 30, 0)
	cold.State, cold.Verdict, cold.ColdSeconds, cold.PTTFT = "cold", "first token too late", f(3.9), f(0.0001)
	unpriced := hourly("static:lab", 0, 0.5, 30, 0)
	unpriced.MarginalUSD, unpriced.FullUSDMTok = nil, nil
	gone := router.CandidateView{Endpoint: "vast:125", Verdict: "not usable in its state", Reason: "outbid", State: "preempted", Breaker: "preempted"}
	cooling := router.CandidateView{Endpoint: "vast:126", Verdict: barredWord, Reason: "rate limited", State: "ready", Breaker: "cooling"}
	tried := router.CandidateView{Endpoint: "vast:123", Verdict: "tried already", State: "ready", Breaker: "open"}

	first := router.Explanation{
		Request: "req_one", At: at, Model: "llama-70b", Policy: "cost", SLO: slo, Prompt: 2048, Output: 250, Attempt: 1, Winner: "vast:123",
		Why:       "the least marginal cost among those that keep the SLO",
		Candidate: []router.CandidateView{holder, hourly("vast:124", 0.0000304, 0.38, 22, 7), unpriced, cold, gone}, Others: 2,
		Realised: &router.Realised{Class: "dial_failed"},
	}
	second := first
	second.At, second.Attempt, second.Winner, second.Others = at.Add(80*time.Millisecond), 2, "vast:124", 0
	second.Why = "the only one that keeps the SLO"
	second.Candidate = []router.CandidateView{hourly("vast:124", 0.0000304, 0.38, 22, 7), tried}
	second.Realised = &router.Realised{Class: "success", TTFT: f(0.451), TPS: f(20.3)}
	running := first
	running.Request, running.Realised, running.Others = "req_two", nil, 0
	refused := router.Explanation{
		Request: "req_three", At: at, Model: "llama-70b", Policy: "latency", SLO: slo, Prompt: 1, Output: 250, Attempt: 1,
		Why: "nobody can be asked", Candidate: []router.CandidateView{gone, cooling},
	}
	crowded := second
	crowded.Candidate = []router.CandidateView{cold}
	crowded.Winner, crowded.Why = "runpod:llama", "no other has room: waits for a worker to start"
	none := router.Explanation{Model: "llama-70b", Policy: "cost", SLO: slo, Prompt: 500, Output: 250, Why: `no endpoint for model "llama-70b": every host that serves it is failing`}
	rec := &settledRequest{Status: 200, TTFT: f(531.2), Duration: 12840, Output: n(250), Prompt: n(2051), Cached: n(1536), USD: f(0.00123)}
	for name, got := range map[string]string{
		"request": requestText([]router.Explanation{first, second}, rec, now, 0),
		"running": requestText([]router.Explanation{running}, nil, now, 0),
		"refused": requestText([]router.Explanation{refused}, &settledRequest{Status: 503, Duration: 0.4}, now, 0),
		"crowded": hypotheticalText(&crowded, 0),
		"none":    hypotheticalText(&none, 0),
		"newest":  decisionsText([]router.Explanation{refused, running, crowded, second, first}, now, 0),
		"narrow":  requestText([]router.Explanation{running}, nil, now, 100) + decisionsText([]router.Explanation{running, first}, now, 90),
	} {
		file := filepath.Join("testdata", "explain", name+".golden")
		if *update {
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil { //nolint:gosec // as the repository's folders are
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s (-update rewrites it): got\n%s, want\n%s", file, got, want)
		}
	}
}
