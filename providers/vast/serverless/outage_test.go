package serverless_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"headrace/router/endpoint"
)

// TestOutages: whatever the console answers, the last good fleet stays, and the status says so.
func TestOutages(t *testing.T) {
	say := func(status int, body string) func(http.ResponseWriter) bool {
		return func(w http.ResponseWriter) bool { w.WriteHeader(status); fmt.Fprint(w, body); return true }
	}
	for name, fail := range map[string]func(http.ResponseWriter) bool{
		"vast_7.1_410_retired":                          say(410, `{"success":false,"error":"deprecated_endpoint","msg":"gone"}`),
		"vast_7.12_429_text":                            say(429, "API requests too frequent"),
		"vast_7.12_429_json":                            say(429, `{"detail":"API requests too frequent endpoint threshold=2.0"}`),
		"vast_8.6_404_auth_error":                       say(404, `{"success":false,"error":"auth_error","msg":"Invalid user key `+accountKey+`"}`),
		"vast_8.6_403_auth_error":                       say(403, `{"success":false,"error":"auth_error","msg":"This action requires login."}`),
		"vast_8.7_200_success_false":                    say(200, `{"success":false,"error":"`+accountKey+`","msg":"x"}`),
		"vast_8.7_200_success_false_with_an_empty_list": say(200, `{"success":false,"error":"try_later","results":[]}`),
		"vast_8.7_502_html":                             say(502, "<html>bad gateway</html>"),
		"vast_8.7_empty_body":                           say(200, ""),
		"vast_8.7_truncated_json":                       say(200, `{"success":true,"results":[{"id":1`),
		"vast_7.16_list_is_an_object":                   say(200, `{"success":true,"results":{"1":{}}}`),
		"vast_7.16_list_is_missing":                     say(200, `{"success":true}`),
		"vast_7.16_rows_without_names":                  say(200, `{"success":true,"results":[{"id":1,"name":"qwen","api_key":"`+endpointKey+`"}]}`),
		"vast_7.16_rows_that_are_words":                 say(200, `{"success":true,"results":["qwen"]}`),
		"connection reset":                              func(http.ResponseWriter) bool { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.console.Config.ErrorLog = nil
			f.add(1, "qwen", nil)
			r := run(t, f.options())
			r.fleet()
			good := r.Status().LastGood
			f.set(func() { f.fail["/api/v0/endptjobs/"] = fail })
			s := r.quiet()
			if s.Failing != 1 || s.LastError == "" || s.Endpoints != 1 || !s.LastGood.Equal(good) {
				t.Errorf("status %+v", s)
			}
			f.set(func() {
				f.fail["/api/v0/endptjobs/"] = nil
				f.jobs[0]["endpoint_state"] = "stopped"
			})
			r.Nudge("vast:serverless-qwen")
			if eps := r.fleet(); len(eps) != 0 {
				t.Errorf("after the outage %+v", eps)
			}
			if s := r.quiet(); s.Failing != 0 || s.LastError != "" {
				t.Errorf("status %+v", s)
			}
		})
	}
}

// TestNamelessRowsTakeNothingAway: a row that does not say which endpoint it is may be any of those that no other row names.
func TestNamelessRowsTakeNothingAway(t *testing.T) {
	f := newFake(t)
	f.add(1, "qwen", nil)
	f.add(2, "llama", nil)
	r := run(t, f.options())
	if eps := r.fleet(); len(eps) != 2 {
		t.Fatalf("%+v", eps)
	}
	f.set(func() { delete(f.jobs[0], "endpoint_name") })
	if s := r.quiet(); s.Failing != 0 || s.Endpoints != 2 {
		t.Errorf("status %+v", s)
	}
	f.set(func() { f.jobs = f.jobs[1:] })
	r.Nudge("vast:serverless-llama")
	if eps := r.fleet(); len(eps) != 1 || eps[0].ID != "vast:serverless-llama" {
		t.Errorf("when all rows can be read: %+v", eps)
	}
}

// TestPartOutages: workers and prices that cannot be read stay as they were.
func TestPartOutages(t *testing.T) {
	f := newFake(t)
	f.add(1, "qwen", nil)
	f.workers[1] = []any{at(11, "idle")}
	f.instances[11] = row(11, 0.36, nil)
	o := f.options()
	now := time.Date(2026, 8, 7, 0, 0, 0, 0, time.UTC)
	o.Now = func() time.Time { f.mu.Lock(); defer f.mu.Unlock(); return now }
	o.Pace = 1e-9 // this clock stands still between looks
	r := run(t, o)
	first := r.fleet()[0]
	if !near(first.Price.USDPerWorkerSecond, 0.0001) || !first.Price.AsOf.Equal(now) {
		t.Fatalf("price %+v", first.Price)
	}
	look := func(change func()) endpoint.Endpoint {
		t.Helper()
		f.set(change)
		r.Nudge(first.ID)
		return r.fleet()[0]
	}
	ep := look(func() {
		f.fail["/get_endpoint_workers/"] = func(w http.ResponseWriter) bool { w.WriteHeader(500); return true }
	})
	if ep.State != endpoint.Ready || ep.Workers != 1 || !strings.Contains(ep.StateReason, "last seen") || ep.Price != first.Price {
		t.Errorf("without a worker list: %+v", ep)
	}
	ep = look(func() {
		f.fail["/get_endpoint_workers/"] = nil
		f.fail["/api/v1/instances/"] = func(w http.ResponseWriter) bool { w.WriteHeader(429); return true }
		now = now.Add(time.Hour)
	})
	if ep.State != endpoint.Ready || ep.StateReason != "" || ep.Price != first.Price {
		t.Errorf("without prices: %+v", ep)
	}
	ep = look(func() { f.fail["/api/v1/instances/"] = nil; f.instances[11]["dph_total"] = 0.72 })
	if !near(ep.Price.USDPerWorkerSecond, 0.0002) || !ep.Price.AsOf.Equal(now) {
		t.Errorf("a price that moved: %+v", ep.Price)
	}
	ep = look(func() { f.workers[1] = []any{} })
	if ep.State != endpoint.Cold || !near(ep.Price.USDPerWorkerSecond, 0.0002) {
		t.Errorf("nobody left: the last price is what the next worker will cost, about: %+v", ep)
	}
	ep = look(func() { f.jobs[0]["id"] = 2 })
	if ep.Price.Basis != endpoint.BasisUnknown {
		t.Errorf("an endpoint made anew under the same name inherits %+v", ep.Price)
	}
	now2 := now
	if r.quiet(); !now2.Equal(r.Status().LastGood) {
		t.Errorf("status %+v", r.Status())
	}
}

// TestOwnKeyForWorkers: which key the engine wants for its list is not documented.
func TestOwnKeyForWorkers(t *testing.T) {
	for name, no := range map[string]struct {
		status int
		body   string
	}{"by status": {401, `{"error":"bad key"}`}, "by message": {200, `{"error_msg":"bad key"}`}} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.add(1, "qwen", nil)
			f.workers[1] = func(key string) (int, string) {
				if key != endpointKey {
					return no.status, no.body
				}
				return 200, `[{"id":11,"status":"idle"}]`
			}
			r := run(t, f.options())
			if eps := r.fleet(); eps[0].State != endpoint.Ready {
				t.Errorf("%s: %s", eps[0].State, eps[0].StateReason)
			}
			before := f.count("/get_endpoint_workers/")
			if r.quiet(); f.count("/get_endpoint_workers/") != before+1 {
				t.Error("the right key was not remembered")
			}
		})
	}
}

// TestPricesInPages asks for no more than a page holds, for all endpoints together, and not at each look.
func TestPricesInPages(t *testing.T) {
	f := newFake(t)
	for e := range int64(3) {
		f.add(e+1, fmt.Sprint("e", e), nil)
		var list []any
		for w := range int64(20) {
			id := e*100 + w + 1
			list = append(list, at(id, "idle"))
			f.instances[id] = row(id, 3.6, nil)
		}
		f.workers[e+1] = list
	}
	r := run(t, f.options())
	for _, ep := range r.fleet() {
		if !near(ep.Price.USDPerWorkerSecond, 0.001) || ep.Hardware.GPU != "RTX 4090" || ep.Hardware.GPUCount != 2 || ep.Workers != 20 {
			t.Errorf("%+v", ep)
		}
	}
	r.quiet()
	f.set(func() {
		if len(f.queries) != 3 || f.queries[0].Get("limit") != "25" || !strings.Contains(f.queries[0].Get("select_cols"), "dph_total") {
			t.Errorf("queries %v", f.queries)
		}
	})
}
