package serverless_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"

	"headrace/providers/vast/serverless"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// fails is a fault of a worker's first n calls.
func fails(n int, how func(w http.ResponseWriter, r *http.Request)) func(http.ResponseWriter, *http.Request, int) bool {
	return func(w http.ResponseWriter, r *http.Request, call int) bool {
		if call > n {
			return false
		}
		how(w, r)
		return true
	}
}

func status(s int) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(s) }
}

// reset breaks the connection without a byte of an answer.
func reset(w http.ResponseWriter, _ *http.Request) {
	c, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		if tc, ok := c.(*net.TCPConn); ok {
			_ = tc.SetLinger(0)
		}
		_ = c.Close()
	}
}

// headOnly breaks it behind the head.
func headOnly(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(200)
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

func emptyStream(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(200)
}

// TestFailures are the rows of the fact sheet's lists (sections 7 and 8) that concern serverless workers.
func TestFailures(t *testing.T) {
	const most = 2 // calls of a request: one and one reroute
	for name, tc := range map[string]struct {
		fault  func(http.ResponseWriter, *http.Request, int) bool
		status int
		code   string // of the error
		class  outcome.Class
		calls  int
	}{
		"vast_7.18_401_on_a_valid_route":            {fails(1, status(401)), 200, "", 0, most},
		"vast_7.18_401_on_every_route":              {fails(99, status(401)), 502, "worker_refused_route", outcome.UpstreamFault, most},
		"vast_7.18_worker_killed":                   {fails(1, reset), 200, "", 0, 2},
		"vast_7.18_worker_killed_behind_its_head":   {fails(1, headOnly), 200, "", 0, 2},
		"vast_7.18_workers_killed_for_good":         {fails(99, reset), 502, "worker_unreachable", outcome.UpstreamFault, most},
		"vast_8.9_429_empty":                        {fails(1, status(429)), 200, "", 0, most},
		"vast_8.9_429_empty_for_good":               {fails(99, status(429)), 429, "workers_busy", outcome.Throttled, most},
		"vast_8.9_500_empty":                        {fails(1, status(500)), 200, "", 0, most},
		"vast_8.9_500_empty_for_good":               {fails(99, status(500)), 502, "worker_failed_silently", outcome.Opaque, most},
		"vast_8.9_502_empty_for_good":               {fails(99, status(502)), 502, "worker_failed", outcome.UpstreamFault, most},
		"vast_8.9_422_of_the_route":                 {fails(99, auth422), 502, "worker_payload", outcome.UpstreamFault, 1},
		"vast_8.9_422_of_both_forms":                {fails(99, payload422), 502, "worker_payload", outcome.UpstreamFault, 2},
		"vast_8.9_stream_ends_before_it_begins":     {fails(1, emptyStream), 200, "", 0, 2},
		"vast_5.3_410_invalid_session":              {fails(1, session410), 200, "", 0, 2},
		"vast_5.3_499_client_gone":                  {fails(1, status(499)), 200, "", 0, 2},
		"vast_5.3_old_worker_loses_a_404":           {fails(99, status(404)), 404, "worker_refused", outcome.CallerFault, 1},
		"vast_5.3_redirect_to_a_stranger":           {fails(99, elsewhere), 502, "worker_failed", outcome.UpstreamFault, most},
		"vast_7.18_port_clash_says_503_for_a_while": {fails(1, status(503)), 200, "", 0, most},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			k := f.addWorker(true, chat)
			k.old = true // a route that is used twice is refused
			k.fault = tc.fault
			ep := f.routed()
			fr, _ := f.front(f.options(), ep)
			r := fr.post(t, t.Context(), streaming)
			if r.err != nil || r.status != tc.status || k.calls() != tc.calls || f.count("/route/") != tc.calls {
				t.Fatalf("status %d, %v after %d calls on %d routes: %s", r.status, r.err, k.calls(), f.count("/route/"), r.body)
			}
			if tc.code == "" {
				if r.body != answer || r.report.Redone != tc.calls-1 {
					t.Errorf("redone %d times: %s", r.report.Redone, r.body)
				}
				return
			}
			if r.code() != tc.code {
				t.Errorf("code %s", r.code())
			}
			class, known := serverless.Classify(&ep, r.status, r.header.Get("Content-Type"), []byte(r.body))
			if !known {
				class = outcome.OfStatus(r.status)
			}
			if class != tc.class {
				t.Errorf("class %s, want %s", class, tc.class)
			}
			if tc.class == outcome.Throttled && r.header.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
			for i, c := range f.routes {
				if c.Index != 0 {
					t.Errorf("route %d is not a fresh one: %+v", i, c)
				}
			}
		})
	}

	t.Run("no_other_worker_for_a_caller_that_left", func(t *testing.T) {
		f := newFake(t)
		k := f.addWorker(true, chat)
		ctx, cancel := context.WithCancel(t.Context())
		k.fault = fails(1, func(w http.ResponseWriter, r *http.Request) {
			cancel()
			<-r.Context().Done() // the caller's end has come this far
			reset(w, r)
		})
		fr, _ := f.front(f.options(), f.routed())
		if r := fr.post(t, ctx, streaming); r.err == nil {
			t.Errorf("the caller that left was answered: %+v", r)
		}
		if r := fr.post(t, t.Context(), streaming); r.body != answer || k.calls() != 2 || f.count("/route/") != 2 {
			t.Errorf("%d calls on %d routes for two requests: status %d: %s", k.calls(), f.count("/route/"), r.status, r.body)
		}
	})

	t.Run("vast_8.9_not_ready_with_stable_request_idx", func(t *testing.T) {
		f := newFake(t)
		f.addWorker(true, chat)
		fr, _ := f.front(f.options(), f.routed())
		var want []int64
		for range 2 { // the second request is another one and so begins at 0 again
			f.set(func() { f.notReady = 5 })
			if r := fr.post(t, t.Context(), streaming); r.body != answer {
				t.Fatalf("status %d: %s", r.status, r.body)
			}
			first := int64(1000 + len(want) + 1)
			want = append(want, 0, first, first, first, first, first)
		}
		for i, c := range f.routes {
			if len(f.routes) != len(want) || c.Index != want[i] {
				t.Fatalf("routes %+v, want indexes %v", f.routes, want)
			}
		}
	})

	t.Run("vast_8.9_sse_cut_half_way", func(t *testing.T) {
		const begun = "data: {\"choices\":[{\"delta\":{\"content\":\"say \\\"finish_reason\\\":\\\"stop\\\" and\"},\"finish_reason\":null}]}\n\n"
		for how, end := range map[string]func(http.ResponseWriter, *http.Request){
			"reset":   reset,
			"aborted": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
			"ended in good order, as workers do when the model fails": func(http.ResponseWriter, *http.Request) {},
		} {
			f := newFake(t)
			k := f.addWorker(true, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				fmt.Fprint(w, begun)
				_ = http.NewResponseController(w).Flush()
				end(w, r)
			})
			fr, _ := f.front(f.options(), f.routed())
			r := fr.post(t, t.Context(), streaming)
			if r.status != 200 || r.body != begun || !errors.Is(r.err, io.ErrUnexpectedEOF) || k.calls() != 1 {
				t.Errorf("%s: status %d, %v after %d calls: %q", how, r.status, r.err, k.calls(), r.body)
			}
			if !r.told || r.report.Worker == "" {
				t.Errorf("%s: report %+v", how, r.report)
			}
		}
	})

	t.Run("vast_8.9_plain_answer_cut", func(t *testing.T) {
		f := newFake(t)
		f.addWorker(true, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, `{"choices":`)
		})
		fr, _ := f.front(f.options(), f.routed())
		if r := fr.post(t, t.Context(), plain); !errors.Is(r.err, io.EOF) { // before the head even, so that the gateway may ask elsewhere
			t.Errorf("status %d, %v: %s", r.status, r.err, r.body)
		}
	})

	t.Run("vast_8.9_self_signed_tls", func(t *testing.T) { // signing failed at the worker's boot, so it signed for itself
		f := newFake(t)
		cert := workerCert(t, true)
		k := f.addWorkerWith(&cert, chat)
		fr, _ := f.front(f.options(), f.routed())
		if r := fr.post(t, t.Context(), plain); r.status != 502 || r.code() != "worker_unreachable" || k.calls() != 0 {
			t.Errorf("status %d, %s after %d calls", r.status, r.body, k.calls())
		}
	})

	t.Run("vast_7.18_dead_worker_still_routed_to", func(t *testing.T) { // readiness is reported 10 s late
		f := newFake(t)
		dead := f.addWorker(true, chat)
		dead.srv.Close()
		f.addWorker(true, chat)
		fr, p := f.front(f.options(), f.routed())
		for range 4 {
			if r := fr.post(t, t.Context(), streaming); r.body != answer {
				t.Fatalf("status %d, %v: %s", r.status, r.err, r.body)
			}
		}
		if p.Status().Oddities["worker that gave no answer"] == 0 {
			t.Errorf("nobody counted: %v", p.Status().Oddities)
		}
	})
}

func auth422(w http.ResponseWriter, _ *http.Request) {
	reply(w, 422, map[string]any{"auth_data": map[string]any{"reqnum": "missing parameter"}})
}

func payload422(w http.ResponseWriter, _ *http.Request) {
	reply(w, 422, map[string]any{"payload": "missing parameter"})
}

func session410(w http.ResponseWriter, _ *http.Request) {
	reply(w, 410, map[string]any{"error": "invalid session"})
}

func elsewhere(w http.ResponseWriter, r *http.Request) {
	http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusTemporaryRedirect)
}

func TestClassify(t *testing.T) {
	proxy := endpoint.Endpoint{ID: "vast:serverless-q", Provider: "vast", Tenure: endpoint.Serverless, BaseURL: "https://openai.vast.ai/q/v1"}
	route := proxy
	route.Dialect = endpoint.VastRoute
	ours := func(code string) string {
		return `{"error":{"message":"x","type":"server_error","param":null,"code":"` + code + `"}}`
	}
	for name, tc := range map[string]struct {
		ep     *endpoint.Endpoint
		status int
		body   string
		class  outcome.Class
		known  bool
	}{
		"the proxy gives up on a cold start":      {&proxy, 504, "", outcome.NotReady, true},
		"the proxy does not know the key":         {&proxy, 404, `{"detail":"Endpoint 'q' not found"}`, outcome.UpstreamDenied, true},
		"the proxy's 502 is what it says":         {&proxy, 502, "<html>", 0, false},
		"the proxy hands on the model's 400":      {&proxy, 400, `{"error":{"message":"m"}}`, 0, false},
		"no worker in time":                       {&route, 503, ours("no_worker"), outcome.NotReady, true},
		"a worker's bare 500":                     {&route, 502, ours("worker_failed_silently"), outcome.Opaque, true},
		"the model's 503 through a route":         {&route, 503, ours("overloaded"), 0, false},
		"a code that is a number":                 {&route, 500, `{"error":{"code":500}}`, 0, false},
		"a 504 of a model's own through a route":  {&route, 504, "", 0, false},
		"an answer that is no JSON on some route": {&route, 502, "x", 0, false},
	} {
		if class, known := serverless.Classify(tc.ep, tc.status, "application/json", bytes.Clone([]byte(tc.body))); class != tc.class || known != tc.known {
			t.Errorf("%s: %s, %v", name, class, known)
		}
	}
}
