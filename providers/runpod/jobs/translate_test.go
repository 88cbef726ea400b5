package jobs

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"headrace/router/endpoint"
)

var (
	helloEvents = chunksOf([]string{"Hel", "lo"}, "\n")
	hello       = strings.Join(helloEvents, "")
	helloYield  = string(quoted(hello))
	plainAnswer = `{"id":"c","object":"chat.completion","created":3,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},"finish_reason":"stop"}]}`
	ended       = step{state: "COMPLETED"}
)

func TestStreamThroughJob(t *testing.T) {
	s := newScript(t)
	s.stream = []step{
		{state: "IN_QUEUE"},
		{state: "IN_PROGRESS", yield: []string{string(quoted(hello[:100]))}},
		{state: "RUNNING", yield: []string{string(quoted(hello[100:300])), string(quoted(hello[300:]))}},
		{state: "COMPLETED"},
	}
	f := newFront(t, s.srv.URL+"/v2", Options{TTL: time.Hour})
	a := f.ask(streamBody)
	if a.status != 200 || a.body != hello || a.broken || !strings.HasPrefix(a.header.Get("Content-Type"), "text/event-stream") {
		t.Fatalf("%+v", a)
	}
	want := endpoint.WorkerReport{Worker: "w1", Executed: 3400 * time.Millisecond, Delayed: 1200 * time.Millisecond}
	got := f.report()
	if got.Submitted.IsZero() || got.Handing < 0 || time.Since(got.Submitted) < got.Handing/2 {
		t.Errorf("submitted at %v, within %v", got.Submitted, got.Handing)
	}
	if got.Submitted, got.Handing = (time.Time{}), 0; got != want {
		t.Errorf("report %+v, want %+v", got, want)
	}
	if got := s.sent()[0]; got != `{"input":{"openai_route":"/v1/chat/completions","openai_input":`+streamBody+`},"policy":{"ttl":3600000}}` {
		t.Errorf("sent %s", got)
	}
	st := f.Stats()
	if st.Jobs != 1 || st.Completed != 1 || st.Failed+st.Truncated+st.CancelsSent+st.CancelsWaiting != 0 || st.Yields["text"] != 3 {
		t.Errorf("%+v", st)
	}
	if s.calls("cancel") != 0 {
		t.Error("a job that had completed was cancelled")
	}
}

func TestPlainThroughJob(t *testing.T) {
	s := newScript(t)
	s.stream = []step{{state: "COMPLETED", yield: []string{plainAnswer}}, ended}
	f := newFront(t, s.srv.URL+"/v2", Options{})
	if a := f.ask(chatBody); a.status != 200 || a.body != plainAnswer || a.header.Get("Content-Type") != "application/json" {
		t.Fatalf("%+v", a)
	}
	if r := f.report(); r.Worker != "w1" {
		t.Errorf("report %+v", r)
	}
}

// TestReadToTheEnd: chunks can come with and after the terminal status.
func TestReadToTheEnd(t *testing.T) {
	s := newScript(t)
	s.stream = []step{{state: "COMPLETED", yield: []string{string(quoted(hello[:90]))}}, {state: "COMPLETED", yield: []string{string(quoted(hello[90:]))}}, ended}
	f := newFront(t, s.srv.URL+"/v2", Options{})
	if a := f.ask(streamBody); a.body != hello {
		t.Fatalf("%+v", a)
	}
}

func TestOutputOfHandlersThatYieldNothing(t *testing.T) {
	for name, output := range map[string]string{"object": plainAnswer, "list": "[" + plainAnswer + "]", "text": string(quoted(plainAnswer))} {
		t.Run(name, func(t *testing.T) {
			s := newScript(t)
			s.stream = []step{ended}
			s.status = []step{{body: `{"status":"COMPLETED","output":` + output + `,"executionTime":5,"workerId":"w"}`}}
			f := newFront(t, s.srv.URL+"/v2", Options{})
			if a := f.ask(chatBody); a.body != plainAnswer {
				t.Errorf("%+v", a)
			}
		})
	}
}

func TestBareListOfYields(t *testing.T) {
	s := newScript(t)
	s.stream = []step{{body: `[{"output":` + helloYield + `,"metrics":{}}]`}, {body: `[]`}}
	f := newFront(t, s.srv.URL+"/v2", Options{})
	if a := f.ask(streamBody); a.body != hello || a.broken {
		t.Errorf("%+v", a)
	}
}

func TestUnknownStatusIsToleratedAndCounted(t *testing.T) {
	s := newScript(t)
	s.stream = []step{{state: "WARMING_UP"}, {state: "IN_PROGRESS", yield: []string{helloYield}}, ended}
	f := newFront(t, s.srv.URL+"/v2", Options{})
	if a := f.ask(streamBody); a.body != hello || f.Stats().UnknownStatus != 1 {
		t.Errorf("%+v, %+v", a, f.Stats())
	}
}

func TestDoneIsAdded(t *testing.T) {
	noDone := strings.Join(helloEvents[:4], "")
	for name, last := range map[string]step{"completed": ended, "failed after the finish": {state: "FAILED", more: `,"error":"x"`}} {
		t.Run(name, func(t *testing.T) {
			s := newScript(t)
			s.stream = []step{{state: "IN_PROGRESS", yield: []string{string(quoted(noDone))}}, last}
			f := newFront(t, s.srv.URL+"/v2", Options{})
			if a := f.ask(streamBody); a.body != hello || a.broken {
				t.Errorf("%+v", a)
			}
		})
	}
}

// TestEndIsNotHeldUp: a job that does not end after [DONE] does not keep the caller.
func TestEndIsNotHeldUp(t *testing.T) {
	s := newScript(t)
	s.stream = []step{{state: "IN_PROGRESS", yield: []string{helloYield}}, {state: "IN_PROGRESS", hold: make(chan struct{})}}
	f := newFront(t, s.srv.URL+"/v2", Options{})
	began := time.Now()
	a := f.ask(streamBody)
	if took := time.Since(began); a.body != hello || a.broken || took > 30*time.Second {
		t.Errorf("after %v: %+v", took, a)
	}
	if s.calls("cancel") != 0 || f.Stats().Completed != 1 {
		t.Errorf("cancelled %d, %+v", s.calls("cancel"), f.Stats())
	}
}

// TestStatusesBeforeTheFirstEvent covers what a caller gets when a job cannot be begun.
func TestStatusesBeforeTheFirstEvent(t *testing.T) {
	for name, tc := range map[string]struct {
		run    step
		status int
		code   string
		retry  string
	}{
		"row 17: endpoint withdrawn": {step{code: 404, body: `{"status":404,"title":"Not Found","detail":"endpoint not found"}`}, 404, "endpoint_not_found", ""},
		"bad key":                    {step{code: 401, body: `{"status":401,"title":"Unauthorized","detail":"invalid api key rpa_very-secret-key"}`}, 401, "invalid_api_key", ""},
		"throttled":                  {step{code: 429, head: map[string]string{"Retry-After": "3"}, body: "slow down"}, 429, "rate_limit_exceeded", "3"},
		"throttled, says not when":   {step{code: 429}, 429, "rate_limit_exceeded", "1"},
		"row 3: 524":                 {step{code: 524, body: "<html></html>"}, 504, "timeout", ""},
		"row 6: opaque 500":          {step{code: 500, body: `{"status":500,"title":"Internal Server Error","detail":"internal server error"}`}, 500, "job_refused", ""},
		"too large":                  {step{code: 413}, 413, "request_too_large", ""},
		"not JSON":                   {step{body: "<html>hello</html>"}, 502, "bad_answer", ""},
		"a strange id":               {step{body: `{"id":"../../x"}`}, 502, "bad_answer", ""},
		"broken off":                 {step{cut: true}, 502, "bad_answer", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript(t)
			s.run = []step{tc.run}
			f := newFront(t, s.srv.URL+"/v2", Options{})
			for _, body := range []string{chatBody, streamBody} {
				a := f.ask(body)
				if a.status != tc.status || a.code != tc.code || a.header.Get("Retry-After") != tc.retry || a.message == "" {
					t.Errorf("%+v", a)
				}
			}
			if s.calls("run") != 2 {
				t.Errorf("%d jobs were sent for 2 requests", s.calls("run"))
			}
		})
	}
}

// TestJobsThatFail covers jobs that end badly before the first event, by status and by yield.
func TestJobsThatFail(t *testing.T) {
	for name, tc := range map[string]struct {
		stream []step
		status string // body of /status
		want   int
		code   string
		text   string
		retry  bool
		python int64
	}{
		"row 11: second death":             {[]step{{state: "FAILED"}}, `{"status":"FAILED","error":"job timed out after 1 retries","retries":1,"workerId":"w2"}`, 500, "worker_lost", "", false, 0},
		"error in /stream itself":          {[]step{{state: "FAILED", more: `,"error":"executionTimeout exceeded"`}}, `{}`, 504, "job_timeout", "", false, 0},
		"timed out":                        {[]step{{state: "TIMED_OUT"}}, `{"status":"TIMED_OUT"}`, 504, "job_timeout", "", false, 0},
		"row 10: cancelled by another":     {[]step{{state: "IN_QUEUE"}, {state: "CANCELLED"}}, `{"status":"CANCELLED"}`, 503, "job_cancelled", "", true, 0},
		"expired":                          {[]step{{state: "IN_QUEUE"}, {code: 404, body: `{"status":404,"detail":"job not found"}`}}, `{}`, 503, "job_expired", "", true, 0},
		"endpoint withdrawn meanwhile":     {[]step{{state: "IN_QUEUE"}, {code: 404, body: `{"status":404,"detail":"endpoint not found"}`}}, `{}`, 404, "endpoint_not_found", "", false, 0},
		"key revoked meanwhile":            {[]step{{code: 401, body: `{"status":401,"detail":"invalid api key"}`}}, `{}`, 401, "invalid_api_key", "", false, 0},
		"python repr of the request's own": {[]step{{state: "FAILED"}}, `{"status":"FAILED","error":"{'error': {'message': \"too long\", 'type': 'BadRequestError', 'param': None, 'code': 400}}"}`, 400, "", "too long", false, 1},
		"yield of worker-vllm 2.24":        {[]step{{state: "IN_PROGRESS", yield: []string{`{"error":{"message":"vLLM returned HTTP 400: {\"error\":{\"message\":\"bad top_p\",\"type\":\"BadRequestError\",\"param\":null,\"code\":400}}","type":"worker_error","code":null}}`}}}, `{}`, 400, "", "bad top_p", false, 0},
		"row 7: traceback under 200":       {[]step{{state: "COMPLETED", yield: []string{`{"err":"api","traceback":"..."}`}}}, `{}`, 500, "job_failed", "", false, 0},
		"flat error of old vLLM":           {[]step{{state: "COMPLETED", yield: []string{`{"object":"error","message":"nope","type":"BadRequestError","param":null,"code":400}`}}}, `{}`, 400, "", "nope", false, 0},
		"row 8: another model id":          {[]step{{state: "FAILED"}}, `{"status":"FAILED","error":"vLLM returned HTTP 404: {\"error\":{\"message\":\"The model m does not exist.\",\"type\":\"NotFoundError\",\"param\":\"model\",\"code\":404}}"}`, 404, "model_not_found", "The model m does not exist.", false, 0},
		"worker's engine dead":             {[]step{{state: "FAILED"}}, `{"status":"FAILED","error":"vLLM server process is not running; worker is unhealthy"}`, 500, "worker_unhealthy", "", false, 0},
		"no reason, and no status":         {[]step{{state: "FAILED"}}, `[]`, 500, "job_failed", "", false, 0},
		"an object that is no answer":      {[]step{{state: "COMPLETED", yield: []string{`{"hello":"world"}`}}, ended}, `{}`, 502, "bad_answer", "", false, 0},
		"no output at all":                 {[]step{ended}, `{"status":"COMPLETED"}`, 502, "bad_answer", "", false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			for kind, body := range map[string]string{"plain": chatBody, "stream": streamBody} {
				s := newScript(t)
				s.stream, s.status = tc.stream, []step{{body: tc.status}}
				f := newFront(t, s.srv.URL+"/v2", Options{})
				a := f.ask(body)
				if a.status != tc.want || a.code != tc.code || tc.text != "" && a.message != tc.text || (a.header.Get("Retry-After") != "") != tc.retry {
					t.Errorf("%s: %+v", kind, a)
				}
				if strings.Contains(a.body, "timed out after") || strings.Contains(a.body, "executionTimeout") || strings.Contains(a.body, "traceback") {
					t.Errorf("%s: the vendor's text went to the caller: %s", kind, a.body)
				}
				if st := f.Stats(); st.PythonErrors != tc.python || st.Failed != 1 {
					t.Errorf("%s: %+v", kind, st)
				}
			}
		})
	}
}

// TestStreamsThatBreak covers what ends a stream after its first event: no [DONE], no clean end, and no event of our own.
func TestStreamsThatBreak(t *testing.T) {
	first := step{state: "IN_PROGRESS", yield: []string{string(quoted(helloEvents[0] + helloEvents[1]))}}
	begun := helloEvents[0] + helloEvents[1]
	rest := step{state: "IN_PROGRESS", yield: []string{string(quoted(strings.Join(helloEvents[2:], "")))}}
	for name, tc := range map[string]struct {
		second  step
		cancels bool
	}{
		"failed":                 {step{state: "FAILED", more: `,"error":"x"`}, false},
		"timed out":              {step{state: "TIMED_OUT"}, false},
		"cancelled":              {step{state: "CANCELLED"}, false},
		"expired":                {step{code: 404, body: `{"detail":"job not found"}`}, false},
		"another worker":         {step{state: "IN_PROGRESS", yield: rest.yield, more: `,"workerId":"w9"`}, true},
		"retries":                {step{state: "IN_PROGRESS", yield: rest.yield, more: `,"retries":1`}, true},
		"row 12: poll broke off": {step{cut: true}, true},
		"poll's answer was HTML": {step{body: "<html></html>"}, true},
		"poll got 500":           {step{code: 500, body: `{"status":500}`}, true},
		"poll got 524":           {step{code: 524, body: "<html></html>"}, true},
		"error yield":            {step{state: "IN_PROGRESS", yield: []string{`{"error":"CUDA error"}`}}, true},
		"half an event":          {step{state: "COMPLETED", yield: []string{`"data: {\"id\""`}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript(t)
			head := first
			if tc.second.more != "" && strings.Contains(tc.second.more, "workerId") {
				head.more = `,"workerId":"w1"`
			}
			s.stream = []step{head, tc.second, ended}
			s.status = []step{{body: `{"status":"IN_PROGRESS","workerId":"w1"}`}}
			f := newFront(t, s.srv.URL+"/v2", Options{})
			a := f.ask(streamBody)
			if a.status != 200 || !a.broken || a.body != begun {
				t.Errorf("%+v", a)
			}
			if tc.cancels {
				s.wait("cancel", 1)
			} else if s.calls("cancel") > 0 {
				t.Error("a job that had ended was cancelled")
			}
			if st := f.Stats(); st.Truncated != 1 || st.Completed != 0 {
				t.Errorf("%+v", st)
			}
			if r := f.report(); r == (endpoint.WorkerReport{}) && strings.Contains(tc.second.more, "r") && tc.cancels && tc.second.code == 0 && !tc.second.cut && tc.second.more != "" {
				t.Error("no report")
			}
		})
	}
}

// TestRedispatchAfterASilence: /stream tells nothing of workers, so that /status is asked after a silence.
func TestRedispatchAfterASilence(t *testing.T) {
	rest := string(quoted(strings.Join(helloEvents[2:], "")))
	for name, tc := range map[string]struct {
		status []step
		broken bool
	}{
		"same worker":      {[]step{{body: `{"status":"IN_PROGRESS","workerId":"w1"}`}}, false},
		"given away":       {[]step{{body: `{"status":"IN_PROGRESS","workerId":"w2","retries":1}`}}, true},
		"nobody can say":   {[]step{{code: 500}}, true},
		"back in queue":    {[]step{{body: `{"status":"IN_QUEUE","retries":1}`}}, true},
		"status lost once": {[]step{{code: 500}, {body: `{"status":"COMPLETED","workerId":"w1"}`}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript(t)
			now := newClock()
			hold := make(chan struct{})
			s.stream = []step{{state: "IN_PROGRESS", yield: []string{string(quoted(helloEvents[0] + helloEvents[1]))}}, {state: "IN_PROGRESS", yield: []string{rest}, hold: hold}, ended}
			s.status = tc.status
			f := newFront(t, s.srv.URL+"/v2", Options{Now: now.read})
			go func() {
				s.wait("stream", 2)
				now.add(11 * time.Second)
				close(hold)
			}()
			a := f.ask(streamBody)
			if a.broken != tc.broken || !tc.broken && a.body != hello || tc.broken && a.body != helloEvents[0]+helloEvents[1] {
				t.Errorf("%+v", a)
			}
		})
	}
}

// TestRedispatchBeforeTheFirstEvent loses nothing: the second worker's stream is the only one.
func TestRedispatchBeforeTheFirstEvent(t *testing.T) {
	s := newScript(t)
	now := newClock()
	hold := make(chan struct{})
	half := len(hello) / 2
	s.stream = []step{{state: "IN_QUEUE"}, {state: "IN_PROGRESS", yield: []string{string(quoted(hello[:half]))}, hold: hold}, {state: "IN_PROGRESS", yield: []string{string(quoted(hello[half:]))}}, ended}
	s.status = []step{{body: `{"status":"IN_PROGRESS","workerId":"w2","retries":1}`}, {body: `{"status":"COMPLETED","workerId":"w2","retries":1,"executionTime":9}`}}
	f := newFront(t, s.srv.URL+"/v2", Options{Now: now.read})
	go func() {
		s.wait("stream", 2)
		now.add(90 * time.Second)
		close(hold)
	}()
	if a := f.ask(streamBody); a.body != hello || a.broken {
		t.Errorf("%+v", a)
	}
	if r := f.report(); r.Redone != 1 || r.Worker != "w2" {
		t.Errorf("%+v", r)
	}
	if f.Stats().Redispatched != 1 {
		t.Errorf("%+v", f.Stats())
	}
}

// TestLostPolls before anything has come: what was queued is whole, and what has completed can be fetched once more.
func TestLostPolls(t *testing.T) {
	list := string(encode(helloEvents))
	for name, tc := range map[string]struct {
		body   string
		stream []step
		status []step
		want   string
		code   string
	}{
		"queued, stream":       {streamBody, []step{{cut: true}, {state: "IN_PROGRESS", yield: []string{helloYield}}, ended}, []step{{body: `{"status":"IN_QUEUE"}`}}, hello, ""},
		"not known yet":        {streamBody, []step{{code: 502}, {state: "IN_PROGRESS", yield: []string{helloYield}}, ended}, []step{{code: 404, body: `{"detail":"job not found"}`}}, hello, ""},
		"completed, stream":    {streamBody, []step{{cut: true}}, []step{{body: `{"status":"COMPLETED","output":` + list + `}`}}, hello, ""},
		"in progress, plain":   {chatBody, []step{{cut: true}}, []step{{body: `{"status":"IN_PROGRESS"}`}, {body: `{"status":"COMPLETED","output":[` + plainAnswer + `]}`}}, plainAnswer, ""},
		"in progress, stream":  {streamBody, []step{{cut: true}}, []step{{body: `{"status":"IN_PROGRESS"}`}}, "", "poll_lost"},
		"failed, plain":        {chatBody, []step{{cut: true}}, []step{{body: `{"status":"FAILED","error":"executionTimeout exceeded"}`}}, "", "job_timeout"},
		"completed, no output": {chatBody, []step{{cut: true}}, []step{{body: `{"status":"COMPLETED"}`}}, "", "bad_answer"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript(t)
			s.stream, s.status = tc.stream, tc.status
			f := newFront(t, s.srv.URL+"/v2", Options{})
			a := f.ask(tc.body)
			if a.broken || tc.want != "" && a.body != tc.want || a.code != tc.code {
				t.Errorf("%+v", a)
			}
			if f.Stats().PollsLost != 1 {
				t.Errorf("%+v", f.Stats())
			}
		})
	}
}

// TestEarlyNotFound: RunPod may not know a job for a while after it took it.
func TestEarlyNotFound(t *testing.T) {
	notFound := step{code: 404, body: `{"status":404,"title":"Not Found","detail":"job not found"}`}
	s := newScript(t)
	s.stream = []step{notFound, notFound, {state: "IN_PROGRESS", yield: []string{helloYield}}, ended}
	f := newFront(t, s.srv.URL+"/v2", Options{})
	if a := f.ask(streamBody); a.body != hello || f.Stats().EarlyNotFound != 2 {
		t.Errorf("%+v, %+v", a, f.Stats())
	}
	s.set(&s.stream, notFound)
	now := newClock()
	f = newFront(t, s.srv.URL+"/v2", Options{Now: now.read, Early404: time.Minute})
	go func() {
		s.wait("stream", s.calls("stream")+1)
		now.add(time.Hour)
	}()
	if a := f.ask(streamBody); a.status != 503 || a.code != "job_expired" || a.header.Get("Retry-After") == "" {
		t.Errorf("%+v", a)
	}
	s.wait("cancel", 1) // it may turn up yet, and would run for nobody
}

func TestThrottledPollsGoOn(t *testing.T) {
	s := newScript(t)
	s.stream = []step{{code: 429}, {code: 429, body: "x"}, {state: "IN_PROGRESS", yield: []string{helloYield}}, ended}
	f := newFront(t, s.srv.URL+"/v2", Options{})
	if a := f.ask(streamBody); a.body != hello || f.Stats().PollsThrottled != 2 {
		t.Errorf("%+v, %+v", a, f.Stats())
	}
}

func TestUnreachable(t *testing.T) {
	f := newFront(t, "http://127.0.0.1:1/v2", Options{})
	if a := f.ask(chatBody); a.status != 502 || a.code != "unreachable" {
		t.Errorf("%+v", a)
	}
	if f.Stats().RunsLost != 0 {
		t.Error("a call that nobody got was taken for a job")
	}
}

// TestEmptyInputIsNeverSent: a worker drops a job with an empty input, which then fails as if the worker had died.
func TestEmptyInputIsNeverSent(t *testing.T) {
	s := newScript(t)
	s.stream = []step{{state: "COMPLETED", yield: []string{plainAnswer}}, ended}
	f := newFront(t, s.srv.URL+"/v2", Options{})
	for body, want := range map[string]int{"": 400, "{}": 200, "[]": 400, "null": 400, "{": 400} {
		if a := f.ask(body); a.status != want {
			t.Errorf("%q: %+v", body, a)
		}
	}
	for _, b := range s.sent() {
		if strings.HasPrefix(b, `{"input":{}`) || !strings.Contains(b, `"openai_route"`) {
			t.Errorf("sent %s", b)
		}
	}
}

func TestOddRequests(t *testing.T) {
	s := newScript(t)
	f := newFront(t, s.srv.URL+"/v2", Options{})
	for want, with := range map[int]func(*http.Request){
		http.StatusMethodNotAllowed:      func(r *http.Request) { r.Method = http.MethodGet },
		http.StatusUnsupportedMediaType:  func(r *http.Request) { r.Header.Set("Content-Type", "multipart/form-data; boundary=x") },
		http.StatusRequestEntityTooLarge: func(r *http.Request) { r.Body, r.ContentLength = http.NoBody, 0 },
	} {
		body := chatBody
		if want == http.StatusRequestEntityTooLarge {
			body = `{"a":"` + strings.Repeat("x", maxRun) + `"}`
			with = func(*http.Request) {}
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.srv.URL+"/v1/chat/completions", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		with(req)
		res, err := f.srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("status %d, want %d", res.StatusCode, want)
		}
	}
	if s.calls("run") != 0 {
		t.Error("a job was sent")
	}
}

func TestNativeForm(t *testing.T) {
	s := newScript(t)
	s.stream = []step{{state: "COMPLETED", yield: []string{`{"choices":[{"tokens":["Hi"]}],"usage":{"input":1,"output":1}}`}}, ended}
	f := newFront(t, s.srv.URL+"/v2", Options{Native: func(ep *endpoint.Endpoint) bool { return ep.ID == "runpod:ep1" }})
	if a := f.ask(chatBody); a.status != 200 || !strings.Contains(a.body, `"content":"Hi"`) {
		t.Errorf("%+v", a)
	}
	if !strings.HasPrefix(s.sent()[0], `{"input":{"messages":[{"role":"user","content":"hi"}],"stream":false,"sampling_params":{}},`) {
		t.Errorf("sent %s", s.sent()[0])
	}
}

func TestDestroyedCharactersAreReported(t *testing.T) {
	s := newScript(t)
	cut := strings.Replace(hello, "Hel", "\uFFFD|\uFFFD\uFFFDl", 1)
	a, b, _ := strings.Cut(cut, "|")
	s.stream = []step{{state: "IN_PROGRESS", yield: []string{string(quoted(a)), string(quoted(b))}}, ended}
	f := newFront(t, s.srv.URL+"/v2", Options{})
	if got := f.ask(streamBody); got.body != a+b {
		t.Errorf("%+v", got)
	}
	if r := f.report(); r.Destroyed != 1 || !strings.Contains(r.Note, "worker-vllm 2.24.0") || f.Stats().Destroyed != 1 {
		t.Errorf("%+v, %+v", r, f.Stats())
	}
}

// clock is a time that tests move.
type clock struct {
	began time.Time
	ahead chan time.Duration // holds how far it was moved
}

func newClock() *clock {
	c := &clock{began: time.Now(), ahead: make(chan time.Duration, 1)}
	c.ahead <- 0
	return c
}

func (c *clock) read() time.Time {
	d := <-c.ahead
	c.ahead <- d
	return time.Now().Add(d)
}

func (c *clock) add(d time.Duration) { c.ahead <- d + <-c.ahead }

// within checks that an event came soon enough after the caller left.
func within(t *testing.T, limit time.Duration, left, came time.Time) {
	t.Helper()
	if d := came.Sub(left); d > limit {
		t.Errorf("the job was cancelled %v after the caller had left", d)
	}
}

// TestCancelWhenTheCallerLeaves at every moment.
func TestCancelWhenTheCallerLeaves(t *testing.T) {
	for _, body := range []string{chatBody, streamBody} {
		kind := fmt.Sprintf("stream=%v", body == streamBody)
		t.Run(kind+"/queued", func(t *testing.T) {
			s := newScript(t)
			s.stream = []step{{state: "IN_QUEUE", hold: make(chan struct{})}}
			f := newFront(t, s.srv.URL+"/v2", Options{})
			left := leave(t, f, body, func() { s.wait("stream", 1) })
			within(t, 50*time.Millisecond, left, s.wait("cancel", 1))
		})
		t.Run(kind+"/id not known yet", func(t *testing.T) {
			s := newScript(t)
			hold := make(chan struct{})
			s.run[0].hold = hold
			s.stream = []step{{state: "IN_QUEUE", hold: make(chan struct{})}}
			f := newFront(t, s.srv.URL+"/v2", Options{})
			leave(t, f, body, func() { s.wait("run", 1) })
			known := time.Now()
			close(hold)
			within(t, 50*time.Millisecond, known, s.wait("cancel", 1))
		})
		t.Run(kind+"/after the first yield", func(t *testing.T) {
			s := newScript(t)
			s.stream = []step{{state: "IN_PROGRESS", yield: []string{string(quoted(helloEvents[0]))}}, {state: "IN_PROGRESS", hold: make(chan struct{})}}
			f := newFront(t, s.srv.URL+"/v2", Options{})
			left := leave(t, f, body, func() { s.wait("stream", 2) })
			within(t, 50*time.Millisecond, left, s.wait("cancel", 1))
		})
	}
}

// leave asks, waits for ready and leaves. It returns when that was.
func leave(t *testing.T, f *front, body string, ready func()) time.Time {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if res, err := f.post(ctx, body); err == nil {
			for p := make([]byte, 1024); ; {
				if _, err := res.Body.Read(p); err != nil {
					res.Body.Close()
					return
				}
			}
		}
	}()
	ready()
	left := time.Now()
	cancel()
	<-done
	return left
}

func TestCancelIsTriedAgain(t *testing.T) {
	for name, tc := range map[string]struct {
		steps  []step
		failed int64
		calls  int
	}{
		"once":              {[]step{{code: 500}, {body: `{}`}}, 0, 2},
		"no more than once": {[]step{{code: 500}}, 1, 2},
		"not known yet":     {[]step{{code: 404}, {code: 404}, {body: `{}`}}, 0, 3},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript(t)
			hold := make(chan struct{})
			s.stream = []step{{state: "IN_QUEUE", hold: hold}}
			s.cancel = tc.steps
			f := newFront(t, s.srv.URL+"/v2", Options{})
			leave(t, f, chatBody, func() { s.wait("stream", 1) })
			s.wait("cancel", tc.calls)
			f.srv.Close()
			if err := f.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if st := f.Stats(); st.CancelsFailed != tc.failed || st.CancelsSent != 1-tc.failed || st.CancelsWaiting != 0 || s.calls("cancel") != tc.calls {
				t.Errorf("%d calls, %+v", s.calls("cancel"), st)
			}
		})
	}
}

func TestCloseGivesUp(t *testing.T) {
	s := newScript(t)
	s.stream = []step{{state: "IN_QUEUE", hold: make(chan struct{})}}
	s.cancel = []step{{hold: make(chan struct{})}}
	f := newFront(t, s.srv.URL+"/v2", Options{})
	leave(t, f, chatBody, func() { s.wait("stream", 1) })
	s.wait("cancel", 1)
	f.srv.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Close(ctx); err == nil || f.Stats().CancelsFailed != 1 {
		t.Errorf("%v, %+v", err, f.Stats())
	}
}
