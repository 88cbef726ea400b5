package jobs

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"headrace/providers/fakecloud"
	"headrace/providers/fakecloud/fakerunpod"
	"headrace/router/endpoint"
)

// scale is how many times faster than in life the fake cloud's delays and limits pass where a test needs them.
const scale = 100

// cloud starts a fake RunPod with the endpoint ep1 and a translator before it.
func cloud(t *testing.T, cfg fakerunpod.Config, ep fakerunpod.EndpointConfig, o Options) (*fakerunpod.Endpoint, *front) {
	t.Helper()
	cfg.APIKey = cmp.Or(cfg.APIKey, testKey)
	c, err := fakerunpod.Start(context.WithoutCancel(t.Context()), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	ep.ID = "ep1"
	ep.Models = []string{"m"}
	e := c.AddEndpoint(ep)
	return e, newFront(t, c.QueueURL(), o)
}

// chatRequest asks for n tokens of the answer to prompt, which the fake's engine knows beforehand.
func chatRequest(prompt string, n int, stream bool) string {
	body := map[string]any{"model": "m", "stream": stream, "max_tokens": n, "messages": []any{map[string]string{"role": "user", "content": prompt}}}
	if stream {
		body["stream_options"] = map[string]bool{"include_usage": true}
	}
	return string(encode(body))
}

// said is the content of an answer, streamed or not.
func said(t *testing.T, body string, stream bool) (content, finish string) {
	t.Helper()
	type choices []struct {
		Delta, Message struct{ Content string }
		Finish         string `json:"finish_reason"`
	}
	if !stream {
		var a struct{ Choices choices }
		if err := json.Unmarshal([]byte(body), &a); err != nil || len(a.Choices) != 1 {
			t.Fatalf("%v: %s", err, body)
		}
		return a.Choices[0].Message.Content, a.Choices[0].Finish
	}
	var b strings.Builder
	for ev := range strings.SplitSeq(strings.TrimSuffix(body, "\n\n"), "\n\n") {
		d := data([]byte(ev))
		if string(d) == "[DONE]" {
			continue
		}
		var c struct{ Choices choices }
		if err := json.Unmarshal(d, &c); err != nil {
			t.Fatalf("event %q: %v", ev, err)
		}
		for _, ch := range c.Choices {
			b.WriteString(ch.Delta.Content)
			finish += ch.Finish
		}
	}
	return b.String(), finish
}

// TestFakeWorkers asks workers of every generation, cold, and compares with what the worker's engine sent: byte for byte
// where the worker passes text on, token for token where it rewrites it.
func TestFakeWorkers(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	for name, tc := range map[string]struct {
		gen    fakerunpod.Generation
		cut    int
		native bool
		exact  bool
	}{
		"v24":             {gen: fakerunpod.V24, exact: true},
		"v24 small cuts":  {gen: fakerunpod.V24, cut: 7, exact: true},
		"v24 larger cuts": {gen: fakerunpod.V24, cut: 90, exact: true},
		"v24 native":      {gen: fakerunpod.V24, native: true, exact: true},
		"v23":             {gen: fakerunpod.V23, exact: true},
		"v23 lists":       {gen: fakerunpod.V23Lists},
		"v23 native":      {gen: fakerunpod.V23Native, native: true},
		"sglang":          {gen: fakerunpod.SGLang},
		"fake stream":     {gen: fakerunpod.FakeStream, exact: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, f := cloud(t, fakerunpod.Config{Seed: seed}, fakerunpod.EndpointConfig{Generation: tc.gen, CutMax: tc.cut}, Options{Native: func(*endpoint.Endpoint) bool { return tc.native }})
			for round := range 3 {
				for _, stream := range []bool{true, false} {
					prompt := fmt.Sprintf("%s %d %v %d", name, round, stream, seed)
					a := f.ask(chatRequest(prompt, 120, stream))
					if a.status != 200 || a.broken {
						t.Fatalf("seed %d: %+v", seed, a)
					}
					list := e.Jobs()
					upstream, destroyed := string(list[len(list)-1].Upstream), list[len(list)-1].Destroyed
					r := f.report()
					if r.Worker == "" || (r.Destroyed > 0) != (destroyed > 0 && stream) || r.Destroyed > destroyed {
						t.Errorf("seed %d: report %+v, the worker destroyed %d", seed, r, destroyed)
					}
					if tc.exact {
						same(t, seed, a.body, upstream)
					}
					if r.Destroyed == 0 {
						content, finish := said(t, a.body, stream)
						if want := fakecloud.Answer("m", prompt, 120); content != want || finish != "length" {
							t.Errorf("seed %d, stream %v: finish %q, %s", seed, stream, finish, differ(content, want))
						}
					}
					if stream && !strings.HasSuffix(a.body, "data: [DONE]\n\n") {
						t.Errorf("no [DONE] at the end of %q", a.body[max(0, len(a.body)-200):])
					}
				}
			}
			if s := f.Stats(); s.Jobs != 6 || s.Completed != 6 || s.CancelsSent != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// same compares what came with what the engine sent. Each U+FFFD may stand for the one to three bytes that a cut left of a
// character; all else must be there.
func same(t *testing.T, seed uint64, got, sent string) {
	t.Helper()
	at := map[int]bool{0: true} // places in sent up to which got may have come
	for i, r := range got {
		next := map[int]bool{}
		for p := range at {
			if r == '\uFFFD' {
				next[p+1], next[p+2], next[p+3] = true, true, true
			} else if c := string(r); strings.HasPrefix(sent[min(p, len(sent)):], c) {
				next[p+len(c)] = true
			}
		}
		if len(next) == 0 {
			t.Fatalf("seed %d: it parts at byte %d, where it says %q", seed, i, got[i:min(len(got), i+60)])
		}
		at = next
	}
	if !at[len(sent)] {
		t.Fatalf("seed %d: it ends before the %d bytes do that were sent: %q", seed, len(sent), got[max(0, len(got)-60):])
	}
}

// await waits for the endpoint's books.
func await(t *testing.T, e *fakerunpod.Endpoint, done func(fakerunpod.Stats) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := e.Wait(ctx, done); err != nil {
		t.Fatal(err)
	}
}

// TestLeavingFreesTheWorker: the engine stops within 50 ms of the caller's leaving, at any moment.
func TestLeavingFreesTheWorker(t *testing.T) {
	for _, stream := range []bool{true, false} {
		for _, moment := range []string{"queued", "running"} {
			t.Run(fmt.Sprintf("stream=%v/%s", stream, moment), func(t *testing.T) {
				e, f := cloud(t, fakerunpod.Config{TimeScale: 1}, fakerunpod.EndpointConfig{ColdStart: time.Millisecond, TPS: 50}, Options{})
				if moment == "queued" {
					e.Throttle(true)
				}
				left := leave(t, f, chatRequest("long", 5000, stream), func() {
					await(t, e, func(s fakerunpod.Stats) bool {
						return s.Requests["stream"] > 0 && (moment == "queued" && s.Queued == 1 || s.InProgress == 1 && (!stream || s.Yields >= 3))
					})
				})
				await(t, e, func(s fakerunpod.Stats) bool { return s.Cancelled == 1 && (moment == "queued" || s.Aborts == 1) })
				within(t, 50*time.Millisecond, left, time.Now())
			})
		}
	}
}

// TestFailures are the rows of the fact sheet's list that concern jobs.
func TestFailures(t *testing.T) {
	ask := func(t *testing.T, f *front, stream bool) answer {
		t.Helper()
		return f.ask(chatRequest("hello", 40, stream))
	}
	whole := func(t *testing.T, a answer, stream bool) {
		t.Helper()
		if a.status != 200 || a.broken {
			t.Fatalf("%+v", a)
		}
		if content, _ := said(t, a.body, stream); content != fakecloud.Answer("m", "hello", 40) {
			t.Errorf("got %q", content)
		}
	}
	both := func(t *testing.T, run func(t *testing.T, stream bool)) {
		t.Helper()
		for _, stream := range []bool{true, false} {
			t.Run(fmt.Sprintf("stream=%v", stream), func(t *testing.T) { run(t, stream) })
		}
	}
	fails := func(n int, fault fakerunpod.Failure, gen fakerunpod.Generation, status int, code string) func(t *testing.T) {
		return func(t *testing.T) {
			both(t, func(t *testing.T, stream bool) {
				e, f := cloud(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{Generation: gen}, Options{})
				e.FailNextJobs(n, fault)
				if a := ask(t, f, stream); a.status != status || a.code != code {
					t.Errorf("%+v", a)
				}
				whole(t, ask(t, f, stream), stream) // the next one is well
			})
		}
	}

	t.Run("runpod_9.2_tokens_in_lumps", func(t *testing.T) {
		e, f := cloud(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{Generation: fakerunpod.V23}, Options{})
		a := f.ask(chatRequest("lumps", 200, true))
		if content, _ := said(t, a.body, true); content != fakecloud.Answer("m", "lumps", 200) || e.Stats().Yields > 12 {
			t.Errorf("%d yields, %+v", e.Stats().Yields, a)
		}
	})
	t.Run("runpod_9.3_cold_start_longer_than_the_edge_waits", func(t *testing.T) {
		both(t, func(t *testing.T, stream bool) {
			_, f := cloud(t, fakerunpod.Config{TimeScale: scale, EdgeFirstByte: 10 * time.Second}, fakerunpod.EndpointConfig{ColdStart: 45 * time.Second}, Options{Wait: 5 * time.Second})
			whole(t, ask(t, f, stream), stream)
			if r := f.report(); r.Delayed < 400*time.Millisecond {
				t.Errorf("%+v", r)
			}
		})
	})
	t.Run("runpod_9.5_crash_loop_ends_when_the_caller_leaves", func(t *testing.T) {
		e, f := cloud(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{}, Options{})
		e.CrashLoop(true)
		leave(t, f, streamBody, func() {
			await(t, e, func(s fakerunpod.Stats) bool { return s.Crashes > 0 && s.Requests["stream"] > 0 })
		})
		await(t, e, func(s fakerunpod.Stats) bool { return s.Cancelled == 1 })
	})
	t.Run("runpod_9.6_opaque_500", fails(1, fakerunpod.Opaque500, fakerunpod.V24, 500, "job_refused"))
	t.Run("runpod_9.7_traceback_under_200", fails(1, fakerunpod.TracebackBody, fakerunpod.V24, 500, "job_failed"))
	t.Run("runpod_9.7_flat_error_under_200", fails(1, fakerunpod.FlatBody, fakerunpod.V23, 500, "job_failed"))
	t.Run("runpod_9.8_model_id_changed", func(t *testing.T) {
		_, f := cloud(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{}, Options{})
		if a := f.ask(strings.Replace(chatBody, `"m"`, `"other"`, 1)); a.status != 404 || a.code != "model_not_found" || !strings.Contains(a.message, "other") {
			t.Errorf("%+v", a)
		}
	})
	t.Run("runpod_9.10_queued_for_ever", func(t *testing.T) {
		both(t, func(t *testing.T, stream bool) {
			e, f := cloud(t, fakerunpod.Config{TimeScale: scale}, fakerunpod.EndpointConfig{}, Options{TTL: 10 * time.Second, Wait: time.Second})
			e.SetWorkersMax(0)
			if a := ask(t, f, stream); a.status != 503 || a.code != "job_expired" || a.header.Get("Retry-After") == "" {
				t.Errorf("%+v", a)
			}
		})
	})
	t.Run("runpod_9.11_second_death", func(t *testing.T) {
		both(t, func(t *testing.T, stream bool) {
			e, f := cloud(t, fakerunpod.Config{TimeScale: 1, RedispatchAfter: 20 * time.Millisecond}, fakerunpod.EndpointConfig{ColdStart: time.Millisecond, TTFT: time.Hour}, Options{})
			go func() {
				for n := range 2 {
					await(t, e, func(s fakerunpod.Stats) bool { return s.Retried == n && s.InProgress == 1 && s.Workers > 0 })
					e.KillWorker("")
				}
			}()
			if a := ask(t, f, stream); a.status != 500 || a.code != "worker_lost" {
				t.Errorf("%+v", a)
			}
			if r := f.report(); r.Redone != 1 {
				t.Errorf("%+v", r)
			}
		})
	})
	t.Run("runpod_1_redispatch_before_the_first_event", func(t *testing.T) {
		both(t, func(t *testing.T, stream bool) {
			e, f := cloud(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{}, Options{})
			e.FailNextJobs(1, fakerunpod.WorkerExit)
			whole(t, ask(t, f, stream), stream) // lost once, before anything was said
			if r := f.report(); r.Redone != 1 {
				t.Errorf("%+v", r)
			}
		})
	})
	t.Run("runpod_9.11_empty_input_hidden_behind_a_timeout", func(t *testing.T) {
		e, f := cloud(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{}, Options{})
		if a := f.ask("{}"); a.code == "worker_lost" || e.Stats().WorkerDeaths > 0 {
			t.Errorf("%+v", a)
		}
	})
	t.Run("runpod_9.12_stream_read_once", func(t *testing.T) {
		e, f := cloud(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{Generation: fakerunpod.V23}, Options{})
		whole(t, ask(t, f, true), true)
		if s := e.Stats(); s.Requests["stream"] < 2 {
			t.Errorf("%+v", s)
		}
	})
	t.Run("runpod_9.13_answer_of_run_lost", func(t *testing.T) {
		e, f := cloud(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{}, Options{})
		e.FailNextJobs(1, fakerunpod.LostAnswer)
		if a := ask(t, f, true); a.status != 502 || f.Stats().RunsLost != 1 || e.Stats().Submitted != 1 {
			t.Errorf("%+v, %+v", a, f.Stats())
		}
	})
	t.Run("runpod_9.17_endpoint_withdrawn", func(t *testing.T) {
		e, f := cloud(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{}, Options{})
		e.Delete()
		if a := ask(t, f, true); a.status != 404 || a.code != "endpoint_not_found" {
			t.Errorf("%+v", a)
		}
	})
	t.Run("runpod_9.19_very_long_cold_start", func(t *testing.T) {
		_, f := cloud(t, fakerunpod.Config{TimeScale: 2000}, fakerunpod.EndpointConfig{ImagePull: 20 * time.Minute, ColdStart: 105 * time.Second}, Options{TTL: time.Hour})
		whole(t, ask(t, f, true), true)
	})

	t.Run("runpod_1.1_bad_key", func(t *testing.T) {
		_, f := cloud(t, fakerunpod.Config{APIKey: "rpa_another"}, fakerunpod.EndpointConfig{}, Options{})
		if a := ask(t, f, false); a.status != 401 || a.code != "invalid_api_key" {
			t.Errorf("%+v", a)
		}
	})
	t.Run("runpod_1_early_404", func(t *testing.T) {
		both(t, func(t *testing.T, stream bool) {
			e, f := cloud(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{}, Options{})
			e.Early404(200 * time.Millisecond)
			whole(t, ask(t, f, stream), stream)
			if f.Stats().EarlyNotFound == 0 {
				t.Error("it was known at once")
			}
		})
	})
	t.Run("runpod_1_bare_list", func(t *testing.T) {
		_, f := cloud(t, fakerunpod.Config{BareStream: true}, fakerunpod.EndpointConfig{}, Options{})
		whole(t, ask(t, f, true), true)
	})
	t.Run("runpod_1_redispatch_within_the_stream", func(t *testing.T) {
		for name, tells := range map[string]bool{"stream tells": true, "status tells": false} {
			t.Run(name, func(t *testing.T) {
				e, f := cloud(t, fakerunpod.Config{TimeScale: scale, StreamTellsWorker: tells}, fakerunpod.EndpointConfig{ColdStart: time.Second, Generation: fakerunpod.V23}, Options{StallAfter: 200 * time.Millisecond})
				e.FailNextJobs(1, fakerunpod.ExitMidStream)
				a := ask(t, f, true)
				if a.status != 200 || !a.broken || strings.Contains(a.body, "[DONE]") || f.Stats().Truncated != 1 {
					t.Errorf("%+v, %+v", a, f.Stats())
				}
				if job := e.Jobs()[0]; !strings.HasPrefix(fakecloud.Answer("m", "hello", 40), first(said(t, a.body, true))) {
					t.Errorf("a token came twice: %q, %+v", a.body, job)
				}
			})
		}
	})
	t.Run("runpod_1_failed_within_the_stream", func(t *testing.T) {
		e, f := cloud(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{Generation: fakerunpod.V23}, Options{})
		e.FailNextJobs(1, fakerunpod.MidStreamError)
		if a := ask(t, f, true); a.status != 200 || !a.broken || strings.Contains(a.body, "[DONE]") {
			t.Errorf("%+v", a)
		}
	})
	t.Run("runpod_1_timed_out", fails(1, fakerunpod.TimedOutJob, fakerunpod.V24, 504, "job_timeout"))
	t.Run("runpod_1_execution_timeout", func(t *testing.T) {
		_, f := cloud(t, fakerunpod.Config{TimeScale: scale}, fakerunpod.EndpointConfig{ColdStart: time.Second, TPS: 0.001, TTFT: time.Hour}, Options{ExecutionTimeout: 5 * time.Second})
		if a := ask(t, f, true); a.status != 504 || a.code != "job_timeout" {
			t.Errorf("%+v", a)
		}
	})
	t.Run("runpod_1.2_throttled", fails(1, fakerunpod.TooManyWait, fakerunpod.V24, 429, "rate_limit_exceeded"))
	t.Run("runpod_1.2_throttled_without_retry_after", fails(1, fakerunpod.TooMany, fakerunpod.V24, 429, "rate_limit_exceeded"))
	for name, gen := range map[string]fakerunpod.Generation{"v24": fakerunpod.V24, "v23": fakerunpod.V23, "v23_lists": fakerunpod.V23Lists, "sglang": fakerunpod.SGLang} {
		t.Run("runpod_2_the_requests_own_fault_"+name, func(t *testing.T) {
			both(t, func(t *testing.T, stream bool) {
				e, f := cloud(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{Generation: gen}, Options{})
				e.FailNextJobs(1, fakerunpod.RefusedJob)
				if a := ask(t, f, stream); a.status != 400 || !strings.HasPrefix(a.message, "This model's maximum context length is 4096 tokens.") {
					t.Errorf("%+v", a)
				}
			})
		})
	}
	t.Run("runpod_2_handler_without_openai_route", func(t *testing.T) {
		e, f := cloud(t, fakerunpod.Config{}, fakerunpod.EndpointConfig{}, Options{})
		e.NoOpenAIRoute(true)
		if a := ask(t, f, false); a.status != 500 || a.code != "job_failed" || strings.Contains(a.body, "prompt") {
			t.Errorf("%+v", a)
		}
	})
	t.Run("runpod_2_handlers_exception", fails(1, fakerunpod.HandlerError, fakerunpod.V24, 500, "job_failed"))
	t.Run("runpod_2_engine_dead", fails(1, fakerunpod.EngineDead, fakerunpod.V24, 500, "worker_unhealthy"))
	t.Run("runpod_1.1_malformed_answers", func(t *testing.T) {
		both(t, func(t *testing.T, stream bool) {
			c, err := fakerunpod.Start(t.Context(), fakerunpod.Config{APIKey: testKey})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(c.Stop)
			c.AddEndpoint(fakerunpod.EndpointConfig{ID: "ep1", Models: []string{"m"}})
			f := newFront(t, c.QueueURL(), Options{})
			c.MalformedJSON(fakerunpod.QueuePlane, true)
			if a := ask(t, f, stream); a.status != 502 || a.code != "bad_answer" {
				t.Errorf("%+v", a)
			}
			c.Outage(fakerunpod.QueuePlane, true)
			if a := ask(t, f, stream); a.status != 502 || a.code != "bad_answer" {
				t.Errorf("%+v", a)
			}
			c.SetTrouble(fakerunpod.QueuePlane, fakerunpod.Trouble{Reset: true})
			if a := ask(t, f, stream); a.status != 502 {
				t.Errorf("%+v", a)
			}
		})
	})
}

func first(s, _ string) string { return s }

// TestFakeNative asks a handler that knows no OpenAI route: what its form cannot say is refused and makes no job, all else
// comes as from any other host, usage included.
func TestFakeNative(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	e, f := cloud(t, fakerunpod.Config{Seed: seed}, fakerunpod.EndpointConfig{Generation: fakerunpod.V23Native}, Options{Native: func(*endpoint.Endpoint) bool { return true }})
	asking := func(members string) string {
		return `{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":20,` + members + `}`
	}
	for members, param := range map[string]string{
		`"response_format":{"type":"json_object"}`:              "response_format",
		`"tools":[{"type":"function","function":{"name":"f"}}]`: "tools",
		`"logprobs":true`: "logprobs",
		`"stream":true,"stream_options":{"continuous_usage_stats":true}`: "stream_options.continuous_usage_stats",
		`"guided_regex":"a+"`: "guided_regex",
		`"stream":true,"seed":1,"chat_template_kwargs":{"thinking":false}`: "chat_template_kwargs",
	} {
		var body struct {
			Error struct{ Message, Type, Param, Code string }
		}
		a := f.ask(asking(members))
		if err := json.Unmarshal([]byte(a.body), &body); err != nil {
			t.Fatalf("%s: %v: %+v", members, err, a)
		}
		if got := body.Error; a.status != 400 || got.Type != "invalid_request_error" || got.Param != param || got.Code != "unsupported_parameter" || !strings.Contains(got.Message, "native: false") {
			t.Errorf("%s: %d, %+v", members, a.status, got)
		}
	}
	if n := len(e.Jobs()); n != 0 {
		t.Errorf("%d jobs were made of refused requests", n)
	}
	counted := func(body string) (u usage) {
		for line := range strings.Lines(body) {
			var c struct{ Usage *usage }
			if json.Unmarshal([]byte(strings.TrimPrefix(line, "data: ")), &c) == nil && c.Usage != nil {
				u = *c.Usage
			}
		}
		return u
	}
	for _, members := range []string{`"temperature":0`, `"stream":true,"stream_options":{"include_usage":true}`} {
		if a := f.ask(asking(members)); a.status != 200 || counted(a.body).Completion != 20 || counted(a.body).Prompt == 0 {
			t.Errorf("seed %d: %s: usage %+v in %+v", seed, members, counted(a.body), a)
		}
	}
	if a := f.ask(asking(`"stream":true`)); a.status != 200 || counted(a.body) != (usage{}) {
		t.Errorf("seed %d: usage that nobody asked for: %+v", seed, a)
	}
}

// TestTooFewChoices says so when a handler passes over n.
func TestTooFewChoices(t *testing.T) {
	for _, stream := range []bool{true, false} {
		s := newScript(t)
		s.stream = []step{{state: "COMPLETED", yield: []string{`{"choices":[{"tokens":["Hi"]}],"usage":{"input":1,"output":1}}`}}, ended}
		f := newFront(t, s.srv.URL+"/v2", Options{Native: func(*endpoint.Endpoint) bool { return true }})
		a := f.ask(strings.Replace(chatRequest("hi", 20, stream), "{", `{"n":2,`, 1))
		if !strings.Contains(a.body, "1 of the 2 choices") || a.status != 400 || a.broken {
			t.Errorf("stream %v: %+v", stream, a)
		}
	}
}
