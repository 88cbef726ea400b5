package serverless_test

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"headrace/router/endpoint"
)

func pemOf(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func TestRequest(t *testing.T) {
	for name, body := range map[string]string{"streaming": streaming, "plain": plain} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			k := f.addWorker(true, chat)
			fr, _ := f.front(f.options(), f.routed())
			r := fr.post(t, t.Context(), body)
			if r.err != nil || r.status != 200 {
				t.Fatalf("status %d, %v: %s", r.status, r.err, r.body)
			}
			want, ct, cost := answer, "text/event-stream; charset=utf-8", float64(64+len(body)/4)
			if name == "plain" {
				want, ct, cost = r.body, "application/json", float64(512+len(body)/4)
				if !strings.Contains(r.body, `"hello"`) || r.header.Get("Content-Length") != fmt.Sprint(len(r.body)) {
					t.Errorf("body %s with head %v", r.body, r.header)
				}
			}
			if r.body != want || r.header.Get("Content-Type") != ct {
				t.Errorf("%s: %s", r.header.Get("Content-Type"), r.body)
			}
			if !bytes.HasSuffix(k.got[0], []byte(`"payload":{"input":`+body+`}}`)) {
				t.Errorf("the caller's body went out changed: %s", k.got[0])
			}
			if len(f.routes) != 1 || f.routes[0] != (routeCall{"qwen", endpointKey, endpointKey, cost, 0, 60}) {
				t.Errorf("routes %+v", f.routes)
			}
			if !r.told || r.report.Worker != strings.TrimPrefix(k.url, "https://") || r.report.Redone != 0 || r.report.Executed <= 0 || r.report.Delayed <= 0 {
				t.Errorf("report %+v, %v", r.report, r.told)
			}
		})
	}
}

// TestBytes lets workers stream random bytes in random pieces: each must arrive.
func TestBytes(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	f := newFake(t)
	var sent []byte
	var cuts []int
	f.addWorker(true, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		b := sent
		for _, n := range cuts {
			_, _ = w.Write(b[:n])
			_ = http.NewResponseController(w).Flush()
			b = b[n:]
		}
		_, _ = w.Write(b)
	})
	fr, _ := f.front(f.options(), f.routed())
	runes := []rune("aé水🦊\u2028\r\n\\\"{}:, \U0001F469\u200D\U0001F680")
	for i := range 60 {
		sent, cuts = nil, nil
		for range rng.IntN(40) {
			sent = append(sent, "data: "...)
			for range rng.IntN(3000) {
				if rng.IntN(50) == 0 {
					sent = append(sent, byte(rng.Uint32()))
				} else {
					sent = append(sent, string(runes[rng.IntN(len(runes))])...)
				}
			}
			sent = append(sent, "\n\n"...)
		}
		sent = append(sent, [...]string{"data: [DONE]\n\n", "\ndata:[DONE]\r\n\r\n", "data: {\"finish_reason\" : \"length\"}\n\n"}[rng.IntN(3)]...)
		for left := len(sent); left > 0 && len(cuts) < 100; {
			n := 1 + rng.IntN(min(left, 1+rng.IntN(5000)))
			cuts = append(cuts, n)
			left -= n
		}
		r := fr.post(t, t.Context(), streaming)
		if r.err != nil || r.status != 200 || r.body != string(sent) {
			t.Fatalf("seed %d, answer %d: status %d, %v, %d bytes of %d arrived", seed, i, r.status, r.err, len(r.body), len(sent))
		}
	}
}

// TestEventsAtOnce wants each event before the next one is made.
func TestEventsAtOnce(t *testing.T) {
	f := newFake(t)
	next := make(chan struct{})
	f.addWorker(true, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			_ = http.NewResponseController(w).Flush()
			<-next
		}
		fmt.Fprint(w, "data: [DONE]\n\n")
	})
	fr, _ := f.front(f.options(), f.routed())
	res, err := http.Post(fr.URL+"/v1/completions", "application/json", strings.NewReader(streaming))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	for i := range 3 {
		var b [9]byte
		if _, err := io.ReadFull(res.Body, b[:]); err != nil || string(b[:]) != fmt.Sprintf("data: %d\n\n", i) {
			t.Fatalf("event %d: %q, %v", i, b[:], err)
		}
		next <- struct{}{}
	}
}

// TestLeaving counts the time until the far side knows that the caller has left.
func TestLeaving(t *testing.T) {
	for _, when := range []string{"asking for a route", "before the head", "in the stream"} {
		t.Run(when, func(t *testing.T) {
			f := newFake(t)
			there, left := make(chan struct{}), make(chan struct{})
			if when != "asking for a route" {
				f.addWorker(true, func(w http.ResponseWriter, r *http.Request) {
					if when == "in the stream" {
						w.Header().Set("Content-Type", "text/event-stream")
						fmt.Fprint(w, "data: 1\n\n")
						_ = http.NewResponseController(w).Flush()
					}
					close(there)
					<-r.Context().Done()
					close(left)
				})
			}
			fr, _ := f.front(f.options(), f.routed())
			ctx, leave := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { defer close(done); fr.post(t, ctx, streaming) }()
			if when == "asking for a route" {
				until(t, "questions for a route", func() bool { return f.count("/route/") > 3 })
			} else {
				<-there
			}
			at := time.Now()
			leave()
			<-done
			if when == "asking for a route" {
				fr.Server.Close() // returns when its handlers have
			} else {
				<-left
			}
			if d := time.Since(at); d > patience/2 { // the gateway's own tests hold it to 50 ms
				t.Errorf("told after %s", d)
			}
		})
	}
}

// TestLeaksNone ends requests in every way and wants all goroutines back.
func TestLeaksNone(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("all", func(t *testing.T) {
		f := newFake(t)
		k := f.addWorker(true, chat)
		k.fault = func(w http.ResponseWriter, r *http.Request, n int) bool {
			switch n % 5 {
			case 0:
				w.WriteHeader(500)
			case 1:
				panic(http.ErrAbortHandler)
			case 2:
				w.Header().Set("Content-Type", "text/event-stream")
				fmt.Fprint(w, "data: 1\n\n")
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
			default:
				return false
			}
			return true
		}
		fr, _ := f.front(f.options(), f.routed())
		for range 40 {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			fr.post(t, ctx, streaming)
			cancel()
		}
		until(t, "idle workers", func() bool { k.mu.Lock(); defer k.mu.Unlock(); return k.busy == 0 })
	})
	http.DefaultClient.CloseIdleConnections()
	until(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= before+2 })
}

func TestRefusals(t *testing.T) {
	f := newFake(t)
	f.addWorker(true, chat)
	fr, _ := f.front(f.options(), f.routed())
	for name, tc := range map[string]struct {
		method, path, body string
		status             int
		code               string
	}{
		"models are not asked for, since that would wake a worker": {"GET", "/v1/models", "", 404, "unknown_url"},
		"other routes":     {"POST", "/v1/embeddings", "{}", 404, "unknown_url"},
		"no JSON":          {"POST", "/v1/completions", `{"a":`, 400, "invalid_json"},
		"no object":        {"POST", "/v1/completions", `[1]`, 400, "invalid_json"},
		"nothing":          {"POST", "/v1/completions", ``, 400, "invalid_json"},
		"out of its place": {"POST", "/v1/completions", `{}},"auth_data":{"x":{}`, 400, "invalid_json"},
	} {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			fr.Config.Handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), tc.method, tc.path, strings.NewReader(tc.body)))
			if r := (result{body: w.Body.String()}); w.Code != tc.status || r.code() != tc.code {
				t.Errorf("status %d, code %s", w.Code, r.code())
			}
		})
	}
	if n := f.count("/route/"); n != 0 {
		t.Errorf("%d routes were asked for", n)
	}
}

// TestWhoseWorker sends prompts only to workers that prove to be Vast.ai's, unless the operator gave that up.
func TestWhoseWorker(t *testing.T) {
	for name, tc := range map[string]struct {
		tls   func(endpoint.TLS) endpoint.TLS
		url   func(string) string
		plain bool
		https bool // the engine, and so what the endpoint promises
		code  string
	}{
		"below Vast.ai's root":          {},
		"another root":                  {tls: func(endpoint.TLS) endpoint.TLS { return endpoint.TLS{} }, code: "worker_unreachable"},
		"any, as asked":                 {tls: func(endpoint.TLS) endpoint.TLS { return endpoint.TLS{InsecureSkipVerify: true} }},
		"settings that cannot be used":  {tls: func(endpoint.TLS) endpoint.TLS { return endpoint.TLS{Roots: "nonsense"} }, code: "worker_tls"},
		"plain, in a plain world":       {plain: true},
		"plain where TLS is promised":   {plain: true, https: true, code: "worker_unencrypted"},
		"plain, as asked":               {plain: true, https: true, tls: func(endpoint.TLS) endpoint.TLS { return endpoint.TLS{InsecureSkipVerify: true} }},
		"a route to nowhere":            {url: func(string) string { return "ftp://x" }, code: "no_route"},
		"a route with a name and a key": {url: func(u string) string { return strings.Replace(u, "://", "://a:b@", 1) }, code: "no_route"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			k := f.addWorker(!tc.plain, chat)
			if tc.url != nil {
				k.url = tc.url(k.url)
			}
			ep := f.routed()
			if tc.tls != nil {
				ep.TLS = tc.tls(ep.TLS)
			}
			o := f.options()
			if tc.https {
				ep.BaseURL = strings.Replace(ep.BaseURL, "http:", "https:", 1)
				o.Transport = downgrade{}
			}
			fr, _ := f.front(o, ep)
			r := fr.post(t, t.Context(), plain)
			if tc.code == "" && r.status != 200 || tc.code != "" && r.code() != tc.code {
				t.Errorf("status %d: %s", r.status, r.body)
			}
			if tc.code != "" && k.calls() != 0 {
				t.Errorf("the worker got the prompt")
			}
		})
	}
}

// downgrade lets an https address stand for the fake's plain one.
type downgrade struct{}

func (downgrade) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Scheme = "http"
	return http.DefaultTransport.RoundTrip(r)
}

func TestRouteAnswers(t *testing.T) {
	say := func(status int, body string) func(http.ResponseWriter, int) bool {
		return func(w http.ResponseWriter, _ int) bool { w.WriteHeader(status); fmt.Fprint(w, body); return true }
	}
	thrice := func(status int, body string) func(http.ResponseWriter, int) bool {
		return func(w http.ResponseWriter, n int) bool { return n <= 3 && say(status, body)(w, n) }
	}
	for name, tc := range map[string]struct {
		route  func(http.ResponseWriter, int) bool
		status int
		code   string
		asked  int
	}{
		"429 passes":             {thrice(429, "API requests too frequent"), 200, "", 4},
		"502 passes":             {thrice(502, "<html>"), 200, "", 4},
		"a page passes":          {thrice(200, "<html>maintenance"), 200, "", 4},
		"429 for good":           {say(429, "API requests too frequent: "+endpointKey), 429, "workers_busy", 4},
		"500 for good":           {say(500, ""), 502, "no_route", 4},
		"key refused":            {say(401, `{"error":"Unauthorized `+endpointKey+`"}`), 401, "route_denied", 1},
		"key refused by 404":     {say(404, `{"success":false,"error":"auth_error","msg":"Invalid user key"}`), 401, "route_denied", 1},
		"unknown name":           {say(400, `{"error":"no such endpoint"}`), 502, "no_route", 1},
		"error_msg is no worker": {thrice(200, `{"error_msg":"groups are polled"}`), 200, "", 4},
		"null for a number":      {thrice(200, `{"status":"x","request_idx":null}`), 200, "", 4},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.addWorker(true, chat)
			f.route = tc.route
			fr, p := f.front(f.options(), f.routed())
			r := fr.post(t, t.Context(), plain)
			if r.status != tc.status || tc.code != "" && r.code() != tc.code || f.count("/route/") != tc.asked {
				t.Errorf("status %d after %d questions: %s", r.status, f.count("/route/"), r.body)
			}
			if s, _ := json.Marshal(p.Status()); bytes.Contains(s, []byte(endpointKey)) {
				t.Errorf("the status shows a key: %s", s)
			}
		})
	}
	t.Run("nobody in time", func(t *testing.T) {
		f := newFake(t)
		o := f.options()
		o.MaxWait = 100 * time.Millisecond
		fr, _ := f.front(o, f.routed())
		r := fr.post(t, t.Context(), plain)
		if r.status != 503 || r.code() != "no_worker" || r.header.Get("Retry-After") == "" || f.count("/route/") < 1 {
			t.Errorf("status %d: %s", r.status, r.body)
		}
	})
}
