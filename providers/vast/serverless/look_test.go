package serverless_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"headrace/providers/api"
	"headrace/providers/vast/serverless"
	"headrace/router/endpoint"
)

// running is a discoverer at work.
type running struct {
	*serverless.Provider
	t   *testing.T
	out chan []endpoint.Endpoint
}

func run(t *testing.T, o serverless.Options) *running {
	t.Helper()
	return runs(t, serverless.New(o))
}

func runs(t *testing.T, p *serverless.Provider) *running {
	t.Helper()
	r := &running{p, t, make(chan []endpoint.Endpoint)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx, r.out) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != context.Canceled { //nolint:errorlint // as the contract says
			t.Errorf("Run ended with %v", err)
		}
		s := r.Status()
		b, _ := json.Marshal(s)
		if text := fmt.Sprintf("%s %+v", b, s); strings.Contains(text, accountKey) || strings.Contains(text, endpointKey) {
			t.Errorf("the status shows a key: %s", text)
		}
	})
	return r
}

// fleet is the next one that is sent.
func (r *running) fleet() []endpoint.Endpoint {
	r.t.Helper()
	select {
	case eps := <-r.out:
		return eps
	case <-time.After(patience):
		r.t.Fatalf("nothing was sent; status %+v", r.Status())
		return nil
	}
}

// quiet looks again and wants nothing sent.
func (r *running) quiet() api.Status {
	r.t.Helper()
	before := r.Status().Polls
	r.Nudge("vast:serverless-qwen")
	for s := r.Status(); ; s = r.Status() {
		if s.Polls > before {
			select {
			case eps := <-r.out:
				r.t.Fatalf("sent %+v", eps)
			default:
			}
			return s
		}
		select {
		case eps := <-r.out:
			r.t.Fatalf("sent %+v", eps)
		case <-time.After(time.Millisecond):
		}
	}
}

func row(id int64, usdPerHour any, more map[string]any) map[string]any {
	m := map[string]any{"id": id, "dph_total": usdPerHour, "gpu_name": "RTX 4090", "num_gpus": 2, "extra_env": nil, "unknown_member": []int{1}}
	maps.Copy(m, more)
	return m
}

func at(id int64, status string) map[string]any {
	return map[string]any{
		"id": id, "status": status, "cur_load": 10, "new_load": 0, "cur_load_rolling_avg": 50, "cur_perf": 80, "perf": 100.58,
		"measured_perf": 105.87, "dlperf": 105.87, "reliability": 0.95, "reqs_working": 2, "disk_usage": 30, "loaded_at": 1724275993.997, "started_at": 0,
	}
}

func near(a, b float64) bool { return math.Abs(a-b) < 1e-12 }

func TestDiscovery(t *testing.T) {
	f := newFake(t)
	f.add(1, "qwen", map[string]any{"inactivity_timeout": 600})
	f.add(2, "llama-8b", nil)
	f.add(3, "asleep", map[string]any{"endpoint_state": "suspended"})
	f.add(4, "off", map[string]any{"endpoint_state": "Stopped"})
	f.add(5, "foreign", nil)
	f.add(6, "llama-keyless", map[string]any{"api_key": nil})
	f.add(7, "llama-70b", map[string]any{"endpoint_state": "frozen"})
	f.add(8, "qwen", nil)
	f.add(9, "llama-/../x", nil)
	f.workers[1] = []any{at(11, "idle"), at(12, "MODEL_LOADING"), at(13, "stopped"), at(14, "Idle")}
	f.workers[2] = []any{at(21, "creating")}
	f.workers[7] = []any{at(71, "stopped")}
	f.instances[11] = row(11, 0.4, map[string]any{"extra_env": [][]any{{"-p 3000:3000", "1"}, {"MODEL_NAME", "Qwen/Qwen3-8B"}, {"VLLM_ARGS", "--max-model-len 32768"}}})
	f.instances[12] = row(12, "0.8", map[string]any{"extra_env": map[string]any{"MODEL_NAME": "Qwen/Qwen3-8B", "SECRET": endpointKey}})
	f.instances[13] = row(13, 100, nil)
	f.instances[21] = row(21, 2, map[string]any{"gpu_name": "H100 SXM", "num_gpus": 1})
	o := f.options()
	o.Endpoints = []string{"qwen", "llama*"}
	o.Way = map[string]serverless.Way{"llama-*": serverless.Route}
	o.Models = map[string][]string{"llama-70b": {"l70", "l70-awq"}}
	r := run(t, o)
	eps := r.fleet()
	if len(eps) != 3 {
		t.Fatalf("%d endpoints: %+v", len(eps), eps)
	}
	q, l70, l8 := eps[2], eps[0], eps[1]

	if q.ID != "vast:serverless-qwen" || q.Provider != "vast" || q.Dialect != endpoint.OpenAI || q.BaseURL != "https://openai.example/qwen/v1" ||
		q.APIKey != accountKey || q.Tenure != endpoint.Serverless || q.Trust != endpoint.TrustCommunity || !q.TextOnly || !q.Encrypted() {
		t.Errorf("proxied endpoint %+v", q)
	}
	if !slices.Equal(q.Routes, []string{"/chat/completions", "/completions"}) || q.State != endpoint.Ready || q.Workers != 2 {
		t.Errorf("routes %v, %s with %d workers", q.Routes, q.State, q.Workers)
	}
	if p := q.Price; p.Basis != endpoint.PerWorkerSecond || !near(p.USDPerWorkerSecond, 0.6/3600) || p.IdleTimeout != 10*time.Minute || p.AsOf.IsZero() || p.Source == "" {
		t.Errorf("price %+v: want the mean of the two workers that are up or load their model and whose rent is known", p)
	}
	if len(q.Served) != 1 || q.Served[0].Name != "Qwen/Qwen3-8B" || q.Served[0].Unnamed || q.Served[0].MaxContext != 32768 {
		t.Errorf("served %+v", q.Served)
	}
	if q.Hardware != (endpoint.Hardware{}) { // one of the four has no row
		t.Errorf("hardware %+v", q.Hardware)
	}

	if l8.ID != "vast:serverless-llama-8b" || l8.Dialect != endpoint.VastRoute || l8.BaseURL != f.engine.URL || l8.APIKey != endpointKey || l8.TextOnly ||
		l8.Labels["vast_endpoint"] != "llama-8b" || l8.TLS != (endpoint.TLS{Roots: pemOf(authority().cert.Raw), AnyName: true}) {
		t.Errorf("routed endpoint %+v", l8)
	}
	if l8.State != endpoint.Starting || l8.StateReason == "" || l8.Hardware != (endpoint.Hardware{GPU: "H100 SXM", GPUCount: 1}) || !near(l8.Price.USDPerWorkerSecond, 2.0/3600) {
		t.Errorf("starting endpoint %+v", l8)
	}
	if len(l8.Served) != 1 || l8.Served[0].Name != "llama-8b" || !l8.Served[0].Unnamed {
		t.Errorf("served %+v", l8.Served)
	}
	if len(l70.Served) != 2 || l70.Served[0].Name != "l70" || l70.Served[1].Name != "l70-awq" || l70.State != endpoint.Cold || l70.Price.Basis != endpoint.BasisUnknown {
		t.Errorf("cold endpoint %+v", l70)
	}

	s := r.Status()
	why := map[string]string{}
	for _, k := range s.Skipped {
		why[k.ID] = k.Why
	}
	for id, want := range map[string]string{"3": "suspended", "4": "stopped", "5": "not among", "6": "own key", "8": "same name", "9": "path"} {
		if !strings.Contains(why[id], want) {
			t.Errorf("endpoint %s was skipped because %q, want %q", id, why[id], want)
		}
	}
	for _, odd := range []string{"endpoint state frozen", "two endpoints of one name"} {
		if s.Oddities[odd] == 0 {
			t.Errorf("not counted: %s in %v", odd, s.Oddities)
		}
	}
	if s.Provider == "" || s.Endpoints != 3 || s.LastGood.IsZero() || s.LastError != "" || len(s.Calls) < 3 {
		t.Errorf("status %+v", s)
	}
	r.quiet() // nothing changed
}

// TestStates reads each of the documented worker states, whatever its case.
func TestStates(t *testing.T) {
	load := func(cur, perf float64) map[string]any {
		w := at(11, "idle")
		w["cur_load"], w["perf"] = cur, perf
		return w
	}
	list := func(states ...string) []any {
		l := []any{}
		for i, s := range states {
			l = append(l, at(int64(i+11), s))
		}
		return l
	}
	for name, tc := range map[string]struct {
		workers any
		state   endpoint.State
		up      int
		odd     string
	}{
		"nobody":                      {list(), endpoint.Cold, 0, ""},
		"idle":                        {list("idle"), endpoint.Ready, 1, ""},
		"IDLE beside others":          {list("STOPPED", "IDLE", "ERROR"), endpoint.Ready, 1, ""},
		"running, as of old":          {list("running"), endpoint.Ready, 1, ""},
		"model loading":               {list("MODEL_LOADING", "stopped"), endpoint.Starting, 0, ""},
		"loading":                     {list("loading"), endpoint.Starting, 0, ""},
		"starting":                    {list("STARTING"), endpoint.Starting, 0, ""},
		"creating":                    {list("creating"), endpoint.Starting, 0, ""},
		"created":                     {list("CREATED"), endpoint.Starting, 0, ""},
		"pending":                     {list("PENDING"), endpoint.Starting, 0, ""},
		"rebooting":                   {list("REBOOTING"), endpoint.Starting, 0, ""},
		"updating":                    {list("UPDATE_PENDING"), endpoint.Starting, 0, ""},
		"stopped":                     {list("stopped"), endpoint.Cold, 0, ""},
		"leaving":                     {list("STOPPING", "destroying"), endpoint.Cold, 0, ""},
		"a ghost that failed":         {list("error", "unavail"), endpoint.Cold, 0, ""},
		"a new word":                  {list("hibernating"), endpoint.Cold, 0, "worker state hibernating"},
		"at its limit":                {[]any{load(120, 100)}, endpoint.Saturated, 1, ""},
		"one of two at its limit":     {[]any{load(120, 100), load(20, 100)}, endpoint.Ready, 2, ""},
		"load without a measurement":  {[]any{load(120, 0)}, endpoint.Ready, 1, ""},
		"the object of the API file":  {map[string]any{"workers": list("idle")}, endpoint.Ready, 1, ""},
		"rows that are none":          {[]any{nil, 7, at(11, "idle"), map[string]any{"id": "x", "status": 3}}, endpoint.Ready, 1, "row of a list that is not what it should be"},
		"null for numbers":            {[]any{map[string]any{"id": 11, "status": "idle", "cur_load": nil, "perf": nil}}, endpoint.Ready, 1, ""},
		"error_msg: not ready yet":    {nil, endpoint.Cold, 0, ""},
		"null is no list":             {func(string) (int, string) { return 200, "null" }, endpoint.StateUnknown, 0, "worker list that cannot be read"},
		"never read, so nobody knows": {func(string) (int, string) { return 500, "" }, endpoint.StateUnknown, 0, "worker list that cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.add(1, "qwen", nil)
			f.workers[1] = tc.workers
			r := run(t, f.options())
			eps := r.fleet()
			if len(eps) != 1 || eps[0].State != tc.state || eps[0].Workers != tc.up {
				t.Errorf("%s with %d workers, want %s with %d", eps[0].State, eps[0].Workers, tc.state, tc.up)
			}
			if (eps[0].StateReason == "") != (tc.state == endpoint.Ready) || strings.Contains(eps[0].StateReason, accountKey) {
				t.Errorf("reason %q", eps[0].StateReason)
			}
			if tc.odd != "" && r.Status().Oddities[tc.odd] == 0 {
				t.Errorf("not counted: %s in %v", tc.odd, r.Status().Oddities)
			}
		})
	}
}

func TestRootThatCannotBeRead(t *testing.T) {
	f := newFake(t)
	f.add(1, "qwen", nil)
	f.fail["/static/jvastai_root.cer"] = func(w http.ResponseWriter) bool { fmt.Fprint(w, "<html>moved</html>"); return true }
	o := f.options()
	o.Way = map[string]serverless.Way{"*": serverless.Route}
	r := run(t, o)
	if ep := r.fleet()[0]; ep.TLS != (endpoint.TLS{}) { // the system's roots, below which no worker is
		t.Errorf("%+v", ep.TLS)
	}
	f.set(func() { f.fail["/static/jvastai_root.cer"] = nil })
	r.Nudge("vast:serverless-qwen")
	if ep := r.fleet()[0]; !ep.TLS.AnyName || ep.TLS.Roots == "" {
		t.Errorf("%+v", ep.TLS)
	}
}

// TestLookToAnswer finds an endpoint and has it answer, as the gateway does.
func TestLookToAnswer(t *testing.T) {
	f := newFake(t)
	f.add(1, "qwen", nil)
	f.addWorker(true, chat)
	o := f.options()
	o.Way = map[string]serverless.Way{"qwen": serverless.Route}
	ep := run(t, o).fleet()[0]
	fr, _ := f.front(f.options(), ep)
	if r := fr.post(t, t.Context(), streaming); r.body != answer {
		t.Errorf("status %d: %s", r.status, r.body)
	}
}
