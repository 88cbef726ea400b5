package gateway

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"headrace/gateway/forward"
	"headrace/gateway/ledger"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// errorOf reads an answer in OpenAI's error shape.
func errorOf(t *testing.T, body string) (code, param, message string) {
	t.Helper()
	var e struct {
		Error struct{ Code, Param, Message string }
	}
	if err := json.Unmarshal([]byte(body), &e); err != nil {
		t.Fatalf("no error object: %s", body)
	}
	return e.Error.Code, e.Error.Param, e.Error.Message
}

// TestDemands sends prompts only to hosts that are what header and model demand, also when those fail.
func TestDemands(t *testing.T) {
	stranger := newUpstream(t, answering)
	broken := newUpstream(t, func(c *upConn, _ *upRequest) bool {
		c.send(jsonAnswer(500, `{"error":{"message":"no"}}`))
		return true
	})
	g := newRig(t, []string{stranger.url(), broken.url()}, func(o *rigOptions) {
		o.edit = func(eps []endpoint.Endpoint) {
			eps[0].Trust, eps[0].Region = endpoint.TrustCommunity, "US"
			eps[1].Trust, eps[1].Region = endpoint.TrustSecure, "DE"
		}
		o.set.Passthrough = "static:h0"
	})
	for name, tc := range map[string]struct {
		header string
		status int
		code   string
		seen   int // requests at the stranger's
	}{
		"nothing demanded":        {"", 200, "", 1},
		"trust it has":            {"X-Headrace-Trust: community", 200, "", 1},
		"a retry goes nowhere":    {"x-headrace-trust: Secure", 502, "host_failed", 0},
		"region of the other":     {"x-headrace-region: EU", 502, "host_failed", 0},
		"either region":           {"x-headrace-region: EU, US", 200, "", 1},
		"nobody has it":           {"x-headrace-region: JP", 503, "no_host_qualifies", 0},
		"unknown word":            {"x-headrace-trust: high", 400, "invalid_header", 0},
		"no region in the header": {"x-headrace-region: ,", 400, "invalid_header", 0},
	} {
		t.Run(name, func(t *testing.T) {
			_, before := stranger.counts()
			var headers []string
			if tc.header != "" {
				headers = []string{tc.header}
			}
			res, body, err := g.do(chat(false, headers...))
			if err != nil || res.StatusCode != tc.status {
				t.Fatalf("status %d, %v: %s", res.StatusCode, err, body)
			}
			if tc.code != "" {
				if code, _, _ := errorOf(t, body); code != tc.code {
					t.Errorf("code %q, want %q: %s", code, tc.code, body)
				}
			}
			if _, after := stranger.counts(); after-before != tc.seen {
				t.Errorf("the stranger's host saw %d requests, want %d", after-before, tc.seen)
			}
		})
	}
	t.Run("passthrough", func(t *testing.T) {
		_, before := stranger.counts()
		res, body, err := g.do(post("/v1/other", "{}", "x-headrace-trust: secure"))
		if err != nil || res.StatusCode != 503 {
			t.Fatalf("status %d, %v: %s", res.StatusCode, err, body)
		}
		if _, after := stranger.counts(); after != before {
			t.Error("the passthrough host got what it must not see")
		}
	})
}

// TestProvidersReading lets a provider's adapter say what an answer means.
func TestProvidersReading(t *testing.T) {
	up := newUpstream(t, func(c *upConn, r *upRequest) bool {
		c.send(jsonAnswer(400, `{"error":"no workers available"}`))
		return true
	})
	var failed []string
	g := newRig(t, []string{up.url()}, func(o *rigOptions) {
		o.set.MaxRetries = 0
		o.before = func(s *Server) {
			s.opt.Classify = func(ep *endpoint.Endpoint, status int, ct string, body []byte) (outcome.Class, bool) {
				if ep.ID != "static:h0" || !strings.HasPrefix(ct, "application/json") {
					t.Errorf("asked about %s, %q", ep.ID, ct)
				}
				return outcome.NotReady, status == 400 && strings.Contains(string(body), "no workers available")
			}
			s.opt.Failed = func(id endpoint.ID, c outcome.Class) { failed = append(failed, fmt.Sprint(id, " ", c)) }
		}
	})
	res, body, err := g.do(chat(false))
	if err != nil || res.StatusCode != 503 || res.Header.Get("Retry-After") == "" {
		t.Fatalf("status %d, Retry-After %q, %v: %s", res.StatusCode, res.Header.Get("Retry-After"), err, body)
	}
	if code, _, _ := errorOf(t, body); code != "host_not_ready" {
		t.Errorf("code %q", code)
	}
	g.recordN(0)
	if len(failed) != 1 || failed[0] != "static:h0 not_ready" {
		t.Errorf("told of %q", failed)
	}
}

// TestRefusalInsideAnotherStatus gives the caller the engine's 400 where the provider says 500 or 502, and asks nobody else.
func TestRefusalInsideAnotherStatus(t *testing.T) {
	const wrapped = `{"error":{"message":"vLLM returned HTTP 400: {\"error\":{\"message\":\"temperature must be 0 or more\",\"param\":\"temperature\"}}","type":"worker_error","code":null}}`
	event := func(data string) func(c *upConn) {
		return func(c *upConn) { c.sendStream("data: " + data + "\n\n") }
	}
	for name, tc := range map[string]struct {
		stream  bool
		send    func(c *upConn)
		said    bool // the provider finds the engine's words
		status  int
		message string
	}{
		"500":                  {false, func(c *upConn) { c.send(jsonAnswer(500, wrapped)) }, true, 422, "temperature is bad"},
		"500, stream":          {true, func(c *upConn) { c.send(jsonAnswer(500, wrapped)) }, true, 422, "temperature is bad"},
		"502":                  {false, func(c *upConn) { c.send(jsonAnswer(502, wrapped)) }, true, 422, "temperature is bad"},
		"200":                  {false, func(c *upConn) { c.send(jsonAnswer(200, wrapped)) }, true, 422, "temperature is bad"},
		"event":                {true, event(wrapped), true, 422, "temperature is bad"},
		"no event":             {true, func(c *upConn) { c.sendStream(wrapped) }, true, 422, "temperature is bad"},
		"nothing found":        {false, func(c *upConn) { c.send(jsonAnswer(500, wrapped)) }, false, 400, "vLLM returned HTTP 400"},
		"event, nothing":       {true, event(wrapped), false, 400, "vLLM returned HTTP 400"},
		"a 400 stays as it is": {false, func(c *upConn) { c.send(jsonAnswer(400, `{"error":{"message":"no","type":"BadRequestError"}}`)) }, true, 400, "no"},
	} {
		t.Run(name, func(t *testing.T) {
			up := newUpstream(t, func(c *upConn, _ *upRequest) bool {
				tc.send(c)
				return false
			})
			other := newUpstream(t, answering)
			g := newRig(t, []string{up.url(), other.url()}, func(o *rigOptions) {
				o.edit = func(eps []endpoint.Endpoint) { eps[1].Price.USDPerHour *= 100 }
				o.before = func(s *Server) {
					s.opt.Classify = func(_ *endpoint.Endpoint, _ int, _ string, _ []byte) (outcome.Class, bool) {
						return outcome.CallerFault, true
					}
					s.opt.Refusal = func(ep *endpoint.Endpoint, body []byte) (outcome.Refusal, bool) {
						if ep.ID != "static:h0" || string(body) != wrapped {
							t.Errorf("asked about %s, %s", ep.ID, body)
						}
						return outcome.Refusal{Status: 422, Message: tc.message, Param: "temperature"}, tc.said
					}
					s.opt.Failed = func(id endpoint.ID, c outcome.Class) { t.Errorf("%s was told of: %s", id, c) }
				}
			})
			res, body, err := g.do(chat(tc.stream))
			if err != nil || res.StatusCode != tc.status || !strings.HasPrefix(res.Header.Get("Content-Type"), "application/json") {
				t.Fatalf("status %d, %v: %s", res.StatusCode, err, body)
			}
			_, param, message := errorOf(t, body)
			if !strings.Contains(message, tc.message) || tc.status == 422 && param != "temperature" {
				t.Errorf("%s", body)
			}
			if tc.message != "no" && !strings.Contains(body, `"type":"invalid_request_error"`) {
				t.Errorf("type: %s", body)
			}
			if _, n := other.counts(); n != 0 {
				t.Error("it was tried elsewhere")
			}
			rec := g.recordN(0)
			if rec.Tries != 1 || rec.Class != outcome.CallerFault || rec.Status != tc.status {
				t.Errorf("record: %d attempts, %s, status %d", rec.Tries, rec.Class, rec.Status)
			}
		})
	}
}

// TestNoCapacity tells the caller why no worker can start.
func TestNoCapacity(t *testing.T) {
	up := newUpstream(t, answering)
	g := newRig(t, []string{up.url()}, func(o *rigOptions) {
		o.edit = func(eps []endpoint.Endpoint) {
			eps[0].State, eps[0].Tenure, eps[0].StateReason = endpoint.NoCapacity, endpoint.Serverless, "its workers crash while jobs wait"
		}
	})
	res, body, err := g.do(chat(false))
	if err != nil || res.StatusCode != 503 || res.Header.Get("Retry-After") != "15" {
		t.Fatalf("status %d, Retry-After %q, %v: %s", res.StatusCode, res.Header.Get("Retry-After"), err, body)
	}
	code, _, message := errorOf(t, body)
	if code != "no_capacity" || !strings.Contains(message, "now: its workers crash while jobs wait. Try again") || strings.Contains(message, "GPU") {
		t.Errorf("code %q: %s", code, message)
	}
	if _, n := up.counts(); n != 0 {
		t.Errorf("the host saw %d requests", n)
	}
}

// TestUnnamedModel asks a host without a model, and learns from its first answer what it calls its own.
func TestUnnamedModel(t *testing.T) {
	for _, stream := range []bool{false, true} {
		t.Run(fmt.Sprint("stream=", stream), func(t *testing.T) {
			got := make(chan string, 9)
			up := newUpstream(t, func(c *upConn, r *upRequest) bool {
				got <- string(r.body)
				if stream {
					c.sendStream("data: "+`{"model":"real/name","choices":[{"index":0,"delta":{"content":"x"}}]}`+"\n\n", stopEvent, doneEvent)
					return false
				}
				c.send(jsonAnswer(200, `{"model":"real/name","choices":[{"index":0,"message":{"content":"x"},"finish_reason":"stop"}]}`))
				return true
			})
			var learned []string
			g := newRig(t, []string{up.url()}, func(o *rigOptions) {
				o.edit = func(eps []endpoint.Endpoint) { eps[0].Served = []endpoint.Served{{Name: model, Unnamed: true}} }
				o.before = func(s *Server) {
					s.opt.Learned = func(id endpoint.ID, m string) { learned = append(learned, string(id)+" "+m) }
				}
			})
			if res, body, err := g.do(chat(stream)); err != nil || res.StatusCode != 200 {
				t.Fatalf("%v: %s", err, body)
			}
			if body := wait(t, got, "the host's request"); !strings.Contains(body, `"model":null`) {
				t.Errorf("the host got %s", body)
			}
			g.recordN(0)
			if len(learned) != 1 || learned[0] != "static:h0 real/name" {
				t.Errorf("learned %q", learned)
			}
		})
	}
}

func TestHostLimitsAtTheDoor(t *testing.T) {
	up := newUpstream(t, answering)
	g := newRig(t, []string{up.url()}, func(o *rigOptions) {
		o.edit = func(eps []endpoint.Endpoint) {
			eps[0].Limits.MaxBodyBytes, eps[0].Routes, eps[0].TextOnly = 200, []string{"/chat/completions"}, true
		}
	})
	message := func(content string) string { return `{"model":"` + model + `","messages":[` + content + `]}` }
	for name, tc := range map[string]struct {
		path, body string
		status     int
		code       string
	}{
		"too large": {"/v1/chat/completions", message(`{"role":"user","content":"` + strings.Repeat("x", 300) + `"}`), 413, "request_too_large"},
		"route":     {"/v1/embeddings", `{"model":"` + model + `","input":"x"}`, 404, "route_not_served"},
		"media":     {"/v1/chat/completions", message(`{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}`), 400, "text_only"},
		"fine":      {"/v1/chat/completions", message(`{"role":"user","content":"x"}`), 200, ""},
	} {
		t.Run(name, func(t *testing.T) {
			res, body, err := g.do(post(tc.path, tc.body))
			if err != nil || res.StatusCode != tc.status {
				t.Fatalf("status %d, %v: %s", res.StatusCode, err, body)
			}
			if tc.code == "" {
				return
			}
			if code, _, message := errorOf(t, body); code != tc.code || tc.status == 413 && !strings.Contains(message, "200 bytes") {
				t.Errorf("code %q, want %q: %s", code, tc.code, message)
			}
		})
	}
	if _, n := up.counts(); n != 1 {
		t.Errorf("the host saw %d requests, want 1", n)
	}
}

// TestPlainHosts sends what a prompt and sampling parameters cannot say to the hosts that take it, and refuses it where there is
// none.
func TestPlainHosts(t *testing.T) {
	plain, full := newUpstream(t, answering), newUpstream(t, answering)
	both := newRig(t, []string{plain.url(), full.url()}, func(o *rigOptions) {
		o.edit = func(eps []endpoint.Endpoint) {
			eps[0].Plain = true
			eps[1].Price = endpoint.Price{Basis: endpoint.PerToken, USDPerMTokIn: 100, USDPerMTokOut: 100} // so that it is the second choice
		}
	})
	alone := newRig(t, []string{plain.url()}, func(o *rigOptions) { o.edit = func(eps []endpoint.Endpoint) { eps[0].Plain = true } })
	for name, tc := range map[string]struct{ members, param string }{
		"fits":            {`"temperature":0,"logprobs":false,"response_format":{"type":"text"},"tools":[]`, ""},
		"form":            {`"response_format":{"type":"json_object"}`, "response_format"},
		"escaped":         {`"respon\u0073e_format":{"type":"json_object"}`, "response_format"},
		"tools":           {`"tools":[{"type":"function","function":{"name":"f"}}]`, "tools"},
		"log probs":       {`"logprobs":true,"top_logprobs":2`, "logprobs"},
		"counts":          {`"stream_options":{"continuous_usage_stats":true}`, "stream_options.continuous_usage_stats"},
		"unknown":         {`"mirostat":2`, "mirostat"},
		"unknown escaped": {`"` + strings.Repeat("x", 40) + `\u00e4":2`, strings.Repeat("x", 40) + "ä"},
	} {
		t.Run(name, func(t *testing.T) {
			body := `{"model":"` + model + `","messages":[{"role":"user","content":"x"}],` + tc.members + `}`
			_, plainBefore := plain.counts()
			_, fullBefore := full.counts()
			for range 5 {
				if res, body, err := both.do(post("/v1/chat/completions", body)); err != nil || res.StatusCode != 200 {
					t.Fatalf("%v: %s", err, body)
				}
			}
			_, atPlain := plain.counts()
			_, atFull := full.counts()
			if tc.param == "" && atPlain == plainBefore || tc.param != "" && (atPlain != plainBefore || atFull != fullBefore+5) {
				t.Errorf("the plain host got %d, the other one %d", atPlain-plainBefore, atFull-fullBefore)
			}
			res, answer, err := alone.do(post("/v1/chat/completions", body))
			if err != nil {
				t.Fatal(err)
			}
			if tc.param == "" {
				if res.StatusCode != 200 {
					t.Errorf("status %d: %s", res.StatusCode, answer)
				}
				return
			}
			code, param, message := errorOf(t, answer)
			if res.StatusCode != 400 || code != "unsupported_parameter" || param != tc.param || !strings.Contains(message, "native: false") {
				t.Errorf("status %d, code %q, param %q: %s", res.StatusCode, code, param, message)
			}
			if _, n := plain.counts(); n != atPlain {
				t.Error("the plain host was asked")
			}
		})
	}
}

func TestBeyondPlainAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	body := []byte(`{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("word ", 1<<16) + `"}],"temperature":0.7,"max_tokens":100,"stop":["a"],"user":null,"tools":[],"logprobs":false}`)
	if n := testing.AllocsPerRun(50, func() {
		if beyondPlain(body) != "" {
			t.Error("it holds nothing")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestWorkerReport bills what the provider says a worker took, and shows it.
func TestWorkerReport(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		endpoint.ReportTo(r.Context()).Put(endpoint.WorkerReport{Worker: "w7", Executed: 2 * time.Second, Delayed: 30 * time.Second, Note: "old"})
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"model":"m","choices":[{"index":0,"message":{"content":"x"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1}}`)
	})
	var rec ledger.Record
	g := newRig(t, []string{"https://api.example.com/v2/x/openai/v1"}, func(o *rigOptions) {
		o.forward = forward.Options{Translate: func(*endpoint.Endpoint) http.Handler { return handler }}
		o.edit = func(eps []endpoint.Endpoint) {
			eps[0].Dialect = endpoint.RunPodJobs
			eps[0].Price = endpoint.Price{Basis: endpoint.PerWorkerSecond, USDPerWorkerSecond: 0.001}
		}
	})
	t.Cleanup(g.fwd.Close)
	if res, body, err := g.do(chat(false)); err != nil || res.StatusCode != 200 {
		t.Fatalf("%v: %s", err, body)
	}
	rec = g.recordN(0)
	if a := rec.Attempts[0].Worker; a.Worker != "w7" || a.Executed != 2*time.Second || a.Delayed != 30*time.Second {
		t.Errorf("report %+v", a)
	}
	if !rec.USDKnown || rec.USD < 0.00199 || rec.USD > 0.00201 {
		t.Errorf("cost %v, want 2 s at $0.001", rec.USD)
	}
	j, err := json.Marshal(&rec)
	if err != nil || !strings.Contains(string(j), `"worker_seconds":2`) || !strings.Contains(string(j), `"note":"old"`) {
		t.Errorf("%v: %s", err, j)
	}
}

// TestColdStartDeadline gives a host that has to start a worker first the time for that.
func TestColdStartDeadline(t *testing.T) {
	for state, within := range map[endpoint.State]time.Duration{endpoint.Ready: time.Hour, endpoint.Cold: 300 * time.Millisecond} {
		t.Run(state.String(), func(t *testing.T) {
			up := newUpstream(t, func(c *upConn, _ *upRequest) bool {
				c.gone() // never answers
				return false
			})
			g := newRig(t, []string{up.url()}, func(o *rigOptions) {
				o.set.FirstEvent, o.set.ColdStart, o.set.MaxRetries = 50*time.Millisecond, within, 0
				o.edit = func(eps []endpoint.Endpoint) { eps[0].State, eps[0].Tenure = state, endpoint.Serverless }
			})
			began := time.Now()
			res, body, err := g.do(chat(false))
			took := time.Since(began)
			if err != nil || res.StatusCode != 504 {
				t.Fatalf("%v: %s", err, body)
			}
			if state == endpoint.Cold && took < within {
				t.Errorf("gave up after %s", took)
			}
		})
	}
}

// TestFullWorkersDeadline gives a request that waits for a further worker the time for its start, though others are up.
func TestFullWorkersDeadline(t *testing.T) {
	up := newUpstream(t, func(c *upConn, _ *upRequest) bool {
		c.gone() // never answers
		return false
	})
	const start = 400 * time.Millisecond
	g := newRig(t, []string{up.url()}, func(o *rigOptions) {
		o.set.FirstEvent, o.set.ColdStart, o.set.MaxRetries = 50*time.Millisecond, start, 0
		o.edit = func(eps []endpoint.Endpoint) {
			eps[0].Tenure, eps[0].Workers, eps[0].MaxNumSeqs = endpoint.Serverless, 1, 1
		}
	})
	var l router.Lease // the one worker has something to do
	if err := g.router.Pick(&router.Request{Model: model}, &l); err != nil {
		t.Fatal(err)
	}
	defer l.Done(router.Result{Class: outcome.ClientGone, Cached: -1})
	began := time.Now()
	res, body, err := g.do(chat(false))
	if took := time.Since(began); err != nil || res.StatusCode != 504 || took < start {
		t.Errorf("gave up on a second worker after %s: %v: %s", took, err, body)
	}
}
