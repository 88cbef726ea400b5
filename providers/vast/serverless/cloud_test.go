package serverless_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"headrace/providers/fakecloud"
	"headrace/providers/fakecloud/fakevast"
	"headrace/providers/vast/serverless"
	"headrace/router/endpoint"
)

// These tests run against the fake of all of Vast.ai, with real model servers behind its workers.

func cloud(t *testing.T, cfg fakevast.Config) (*fakevast.Cloud, serverless.Options) {
	t.Helper()
	cfg.APIKey = accountKey
	c, err := fakevast.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	o := newFake(t).options() // for the journal and its check
	o.ConsoleURL, o.RunURL, o.OpenAIURL = c.ConsoleURL(), c.RunURL(), c.OpenAIURL()
	o.Prices = time.Millisecond
	return c, o
}

func question(n int) string {
	return fmt.Sprintf(`{"messages":[{"role":"user","content":"question %d"}],"stream":true,"max_tokens":40}`, n)
}

var changing = regexp.MustCompile(`"(id|created|system_fingerprint)":("[^"]*"|\d+)`)

// direct asks a worker's model server itself, with the parts left out that differ from answer to answer.
func direct(t *testing.T, w *fakevast.Worker, body string) string {
	t.Helper()
	p := httpModel(t, w.Host())
	res, err := http.Post(p+"/v1/chat/completions", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("status %d, %v: %s", res.StatusCode, err, b)
	}
	return same(string(b))
}

func same(answer string) string { return changing.ReplaceAllString(answer, `"$1":0`) }

// httpModel starts a twin of h without a worker in front: hosts of the same model say the same.
func httpModel(t *testing.T, h *fakecloud.Host) string {
	t.Helper()
	k := h.Config()
	twin, err := fakecloud.StartHost(t.Context(), fakecloud.HostConfig{
		Name: k.Name, Class: k.Class, Models: k.Models, TPS: k.TPS, TTFT: k.TTFT, TimeScale: k.TimeScale, Seed: k.Seed, Addr: "127.0.0.1:0",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(twin.Stop)
	return twin.URL()
}

func TestBothWays(t *testing.T) {
	c, o := cloud(t, fakevast.Config{RateLimits: true, RateScale: 1000, Hazards: fakevast.StringNumbers | fakevast.ExtraFields})
	worker := fakevast.InstanceConfig{DPHBase: 0.72, DiskGB: 0.001, NumGPUs: 2, Env: map[string]string{"MODEL_NAME": "Qwen/Qwen3-8B"}, Models: []string{"Qwen/Qwen3-8B"}}
	routed := c.AddServerless(fakevast.ServerlessConfig{Name: "routed", Ready: 2, TLS: true, Worker: worker, UpperWords: true, InactiveTime: time.Hour})
	c.AddServerless(fakevast.ServerlessConfig{Name: "proxied", Ready: 1, Worker: worker})
	c.AddServerless(fakevast.ServerlessConfig{Name: "off", State: "suspended"})
	o.Way = map[string]serverless.Way{"routed": serverless.Route}
	eps := run(t, o).fleet()
	if len(eps) != 2 {
		t.Fatalf("%+v", eps)
	}
	for i, ep := range eps {
		if ep.State != endpoint.Ready || ep.Workers != i+1 || len(ep.Served) != 1 || ep.Served[0].Name != "Qwen/Qwen3-8B" ||
			ep.Price.USDPerWorkerSecond*3600 < 0.72 || ep.Price.USDPerWorkerSecond*3600 > 0.721 || ep.Hardware.GPUCount != 2 {
			t.Errorf("%+v", ep)
		}
	}
	want := direct(t, routed.Workers()[0], question(1))

	fr, _ := (&fake{t: t}).front(o, eps[1])
	if r := fr.post(t, t.Context(), question(1)); r.err != nil || same(r.body) != want {
		t.Errorf("by route: status %d, %v: %s\nwant %s", r.status, r.err, r.body, want)
	}

	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, eps[0].BaseURL+"/chat/completions", strings.NewReader(question(1)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+eps[0].APIKey.Reveal())
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || same(string(b)) != want {
		t.Errorf("by proxy: status %d, %v: %s\nwant %s", res.StatusCode, err, b, want)
	}
}

// TestWorkerKinds goes through the generations of workers, their payload forms and certificates.
func TestWorkerKinds(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg  fakevast.ServerlessConfig
		code string
	}{
		"current templates":  {cfg: fakevast.ServerlessConfig{}},
		"old workers":        {cfg: fakevast.ServerlessConfig{Old: true}},
		"wrapped only":       {cfg: fakevast.ServerlessConfig{Payload: fakevast.PayloadWrapped}},
		"bare only":          {cfg: fakevast.ServerlessConfig{Payload: fakevast.PayloadBare}},
		"unsecured":          {cfg: fakevast.ServerlessConfig{Unsecured: true}},
		"TLS for 0.0.0.0":    {cfg: fakevast.ServerlessConfig{TLS: true}},
		"TLS for its IP":     {cfg: fakevast.ServerlessConfig{TLS: true, Certificate: fakevast.SignedWithIP}},
		"TLS that lapsed":    {cfg: fakevast.ServerlessConfig{TLS: true, Certificate: fakevast.SignedButLapsed}},
		"TLS of its own say": {cfg: fakevast.ServerlessConfig{TLS: true, Certificate: fakevast.SelfSigned}, code: "worker_unreachable"},
	} {
		t.Run(name, func(t *testing.T) {
			c, o := cloud(t, fakevast.Config{})
			tc.cfg.Name, tc.cfg.Ready = "q", 2
			s := c.AddServerless(tc.cfg)
			o.Way = map[string]serverless.Way{"*": serverless.Route}
			fr, _ := (&fake{t: t}).front(o, run(t, o).fleet()[0])
			for i := range 3 {
				r := fr.post(t, t.Context(), question(i))
				if tc.code != "" {
					if r.code() != tc.code {
						t.Errorf("status %d: %s", r.status, r.body)
					}
					continue
				}
				if want := direct(t, s.Workers()[0], question(i)); r.err != nil || same(r.body) != want {
					t.Errorf("status %d, %v: %s\nwant %s", r.status, r.err, r.body, want)
				}
			}
		})
	}
}

// TestFailuresOfWorkers are rows of the fact sheet's lists as the fake plays them.
func TestFailuresOfWorkers(t *testing.T) {
	start := func(t *testing.T, cfg fakevast.ServerlessConfig) (*fakevast.Cloud, *fakevast.Serverless, *front) {
		t.Helper()
		c, o := cloud(t, fakevast.Config{TimeScale: 1000})
		cfg.Name = "q"
		s := c.AddServerless(cfg)
		o.Way = map[string]serverless.Way{"*": serverless.Route}
		fr, _ := (&fake{t: t}).front(o, run(t, o).fleet()[0])
		return c, s, fr
	}
	t.Run("vast_7.18_one_worker_refuses_valid_routes", func(t *testing.T) {
		_, s, fr := start(t, fakevast.ServerlessConfig{Ready: 1, Old: true})
		s.Workers()[0].RefuseSignatures(true)
		if r := fr.post(t, t.Context(), question(1)); r.status != 502 || r.code() != "worker_refused_route" || r.report.Redone != 1 {
			t.Errorf("status %d: %s, %+v", r.status, r.body, r.report)
		}
		s.Workers()[0].RefuseSignatures(false)
		if r := fr.post(t, t.Context(), question(1)); r.status != 200 {
			t.Errorf("status %d: %s", r.status, r.body)
		}
	})
	t.Run("vast_8.9_statuses_without_a_body", func(t *testing.T) {
		_, s, fr := start(t, fakevast.ServerlessConfig{Ready: 1})
		want := direct(t, s.Workers()[0], question(1))
		for _, status := range []int{401, 429, 499, 500} {
			s.Workers()[0].Fail(status)
			if r := fr.post(t, t.Context(), question(1)); same(r.body) != want || r.report.Redone != 1 {
				t.Errorf("%d: status %d, redone %d times: %s", status, r.status, r.report.Redone, r.body)
			}
		}
	})
	t.Run("vast_5.5_cold_start_is_one_request_to_the_engine", func(t *testing.T) {
		_, s, fr := start(t, fakevast.ServerlessConfig{Stopped: 1, WakeTakes: 60 * time.Second})
		r := fr.post(t, t.Context(), question(1))
		if l := s.Load(); r.status != 200 || l.Counted != 1 || l.Routed != 1 || l.Queued != 0 {
			t.Errorf("status %d, load %+v: %s", r.status, l, r.body)
		}
		if r.report.Delayed < 50*time.Millisecond || r.report.Redone != 0 {
			t.Errorf("report %+v", r.report)
		}
	})
	for kind, whole := range map[string]bool{
		"reset_stream,after=4": false, "eof_stream,after=4": false, "cut_clean,after=4": false, "cut_event,after=4": false,
		"no_done": true, "no_space": true, "crlf": true, "bom": true, "comments": true, "ragged": true, "split_chars": true, "multi_line": true, "batched": true,
	} {
		t.Run("vast_8.9_sse_"+kind, func(t *testing.T) {
			_, s, fr := start(t, fakevast.ServerlessConfig{Ready: 1})
			f, err := fakecloud.ParseFault(kind)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Workers()[0].Host().SetFaults(f); err != nil {
				t.Fatal(err)
			}
			r := fr.post(t, t.Context(), question(1))
			if r.status != 200 || !strings.Contains(r.body, "data:") || (r.err == nil) != whole {
				t.Errorf("status %d, %v: %s", r.status, r.err, r.body)
			}
		})
	}
	t.Run("vast_7.7_outbid_in_mid_stream", func(t *testing.T) {
		_, s, fr := start(t, fakevast.ServerlessConfig{Ready: 1})
		w := s.Workers()[0]
		if err := w.Host().SetFaults(fakecloud.Fault{Kind: fakecloud.Stall, After: 4}); err != nil {
			t.Fatal(err)
		}
		done := make(chan result, 1)
		go func() { done <- fr.post(t, t.Context(), question(1)) }()
		if err := w.Host().Wait(t.Context(), func(s fakecloud.Stats) bool { return s.Faults == 1 && s.OutputTokens >= 4 }); err != nil {
			t.Fatal(err)
		}
		w.Instance().Outbid(fakevast.ExitedStopped)
		if r := <-done; r.err == nil || !strings.HasPrefix(r.body, "data:") && r.status != 0 {
			t.Errorf("status %d, %v: %s", r.status, r.err, r.body)
		}
	})
	t.Run("vast_5.3_leaving_frees_the_GPU", func(t *testing.T) {
		_, s, fr := start(t, fakevast.ServerlessConfig{Ready: 1})
		h := s.Workers()[0].Host()
		if err := h.SetFaults(fakecloud.Fault{Kind: fakecloud.Stall, After: 4}); err != nil {
			t.Fatal(err)
		}
		ctx, leave := context.WithCancel(t.Context())
		done := make(chan result, 1)
		go func() { done <- fr.post(t, ctx, question(1)) }()
		if err := h.Wait(t.Context(), func(s fakecloud.Stats) bool { return s.OutputTokens >= 4 }); err != nil {
			t.Fatal(err)
		}
		at := time.Now()
		leave()
		<-done
		if err := h.Wait(t.Context(), func(s fakecloud.Stats) bool { return s.Running+s.Waiting == 0 }); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(at); d > patience/2 { // the gateway's own tests hold it to 50 ms
			t.Errorf("freed after %s", d)
		}
	})
}

// TestLives follows an endpoint from no worker to its first and through troubles of the control plane.
func TestLives(t *testing.T) {
	c, o := cloud(t, fakevast.Config{TimeScale: 1000})
	s := c.AddServerless(fakevast.ServerlessConfig{Name: "q", Stopped: 1})
	o.Poll = 5 * time.Millisecond
	o.Pace = 1e-9
	r := run(t, o)
	await := func(what string, ok func(ep *endpoint.Endpoint) bool) {
		t.Helper()
		var seen []string
		late := time.After(patience)
		for {
			select {
			case eps := <-r.out:
				if len(eps) != 1 {
					t.Fatalf("%s: %d endpoints", what, len(eps))
				}
				if ok(&eps[0]) {
					return
				}
				seen = append(seen, eps[0].State.String())
			case <-late:
				t.Fatalf("%s: not seen; %v, %+v", what, slices.Compact(seen), r.Status())
			}
		}
	}
	is := func(s endpoint.State) func(*endpoint.Endpoint) bool {
		return func(ep *endpoint.Endpoint) bool { return ep.State == s }
	}
	await("cold, with the price of the one that sleeps", func(ep *endpoint.Endpoint) bool {
		return ep.State == endpoint.Cold && ep.Workers == 0 && ep.Price.Basis == endpoint.PerWorkerSecond
	})
	w := s.Workers()[0]
	w.SetStatus("creating")
	await("starting", is(endpoint.Starting))
	w.Wake()
	await("ready", is(endpoint.Ready))
	s.Unlisted(true)
	await("no list", is(endpoint.Cold))
	s.Unlisted(false)
	await("listed again", is(endpoint.Ready))
	for _, kind := range []fakevast.TroubleKind{
		fakevast.Down, fakevast.Status500, fakevast.HTML502, fakevast.EmptyBody, fakevast.MalformedJSON, fakevast.Status200Failure,
		fakevast.Deprecated410, fakevast.TooMany, fakevast.AuthError,
	} {
		before := r.Status().Polls
		c.Outage(kind, true)
		until(t, "failing looks", func() bool {
			select {
			case eps := <-r.out: // prices are read anew all the time
				if len(eps) != 1 || eps[0].State != endpoint.Ready {
					t.Errorf("trouble %d sends %+v", kind, eps)
				}
			default:
			}
			st := r.Status()
			return st.Polls > before+2 && st.Failing > 0 && st.LastError != ""
		})
		c.Outage(kind, false)
		until(t, "a good look", func() bool {
			select {
			case <-r.out:
			default:
			}
			return r.Status().Failing == 0
		})
	}
	w.Instance().SetPrice(7.2)
	await("another price", func(ep *endpoint.Endpoint) bool { return ep.Price.USDPerWorkerSecond > 0.002 })
	w.SetStatus("error")
	await("failed", func(ep *endpoint.Endpoint) bool {
		return ep.State == endpoint.Cold && strings.Contains(ep.StateReason, "failed")
	})
}
