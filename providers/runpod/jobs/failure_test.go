package jobs

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"headrace/router/outcome"
)

// TestJobErrors reads what jobs say when they fail.
func TestJobErrors(t *testing.T) {
	vllm := `{"error":{"message":"This model's maximum context length is 100 tokens.","type":"BadRequestError","param":"input_tokens","code":400}}`
	for name, tc := range map[string]struct {
		status, text string
		want         failure
	}{
		"python repr of vLLM's error": {
			"FAILED", `{'error': {'message': "This model's maximum context length is 100 tokens.", 'type': 'BadRequestError', 'param': 'input_tokens', 'code': 400}}`,
			failure{status: 400, kind: "BadRequestError", param: "input_tokens", message: "This model's maximum context length is 100 tokens.", python: true},
		},
		"python repr of the inner object": {
			"FAILED", `{'message': 'bad top_p', 'type': 'BadRequestError', 'param': None, 'code': 400}`,
			failure{status: 400, kind: "BadRequestError", message: "bad top_p", python: true},
		},
		"wrapped by worker-vllm 2.24": {
			"FAILED", `{'message': 'vLLM returned HTTP 400: ` + strings.ReplaceAll(vllm, "'", `\'`) + `', 'type': 'worker_error', 'code': None}`,
			failure{status: 400, kind: "BadRequestError", param: "input_tokens", message: "This model's maximum context length is 100 tokens.", python: true},
		},
		"wrapped, as JSON": {
			"FAILED", `{"error":{"message":` + string(quoted("vLLM returned HTTP 400: "+vllm)) + `,"type":"worker_error","code":null}}`,
			failure{status: 400, kind: "BadRequestError", param: "input_tokens", message: "This model's maximum context length is 100 tokens."},
		},
		"wrapped, as plain text":       {"FAILED", "vLLM returned HTTP 400: " + vllm, failure{status: 400, kind: "BadRequestError", param: "input_tokens", message: "This model's maximum context length is 100 tokens."}},
		"wrapped, engine's plain text": {"FAILED", "vLLM returned HTTP 422: what is this", failure{status: 422, message: "what is this"}},
		"wrapped 500":                  {"FAILED", "vLLM returned HTTP 500: oops", failure{status: 500, code: "job_failed", message: "The job failed."}},
		"wrapped 429":                  {"FAILED", `vLLM returned HTTP 429: {"detail":"slow"}`, failure{status: 429, code: "rate_limit_exceeded", message: "The worker takes no more requests now."}},
		"wrapped 401":                  {"FAILED", `vLLM returned HTTP 401: {"error":{"message":"no"}}`, failure{status: 500, code: "job_failed", message: "The job failed."}},
		"row 8: the model's id changed": {
			"FAILED", `{"error":{"message":"The model m does not exist.","type":"NotFoundError","param":"model","code":404}}`,
			failure{status: 404, kind: "NotFoundError", param: "model", code: "model_not_found", message: "The model m does not exist."},
		},
		"flat error of old vLLM":            {"FAILED", `{"object":"error","message":"bad","type":"BadRequestError","param":null,"code":400}`, failure{status: 400, kind: "BadRequestError", message: "bad"}},
		"error as text":                     {"FAILED", `{"error":"{'message': 'x', 'code': 422}"}`, failure{status: 422, message: "x", python: true}},
		"a handler's exception":             {"FAILED", `{"error_type":"<class 'ValueError'>","error_message":"vLLM returned HTTP 400: nope","error_traceback":"Traceback"}`, failure{status: 400, message: "nope"}},
		"traceback":                         {"FAILED", `{"err":"api","traceback":"Traceback (most recent call last)"}`, failure{status: 500, code: "job_failed", message: "The job failed."}},
		"engine dead":                       {"FAILED", `vLLM server process is not running; worker is unhealthy`, failure{status: 500, code: "worker_unhealthy", message: "The worker's engine is not running."}},
		"row 11: lost twice":                {"FAILED", "job timed out after 1 retries", failure{status: 500, code: "worker_lost", message: "Every worker that was given the job was lost. The request itself may be the reason."}},
		"execution timeout":                 {"FAILED", "executionTimeout exceeded", failure{status: 504, code: "job_timeout", message: "The job took longer than its endpoint allows."}},
		"TIMED_OUT":                         {"TIMED_OUT", "", failure{status: 504, code: "job_timeout", message: "The job took longer than its endpoint allows."}},
		"CANCELLED":                         {"CANCELLED", "", failure{status: 503, code: "job_cancelled", message: "The job was cancelled before a worker finished it."}},
		"nothing said":                      {"FAILED", "", failure{status: 500, code: "job_failed", message: "The job failed."}},
		"no object of Python after all":     {"FAILED", "{'message': 'x', 'code': ", failure{status: 500, code: "job_failed", message: "The job failed."}},
		"an engine's error without message": {"FAILED", `{"error":{"code":400}}`, failure{status: 500, code: "job_failed", message: "The job failed."}},
	} {
		t.Run(name, func(t *testing.T) {
			f := *ofJob(tc.status, tc.text)
			if f.cause != tc.text {
				t.Errorf("the log gets %q", f.cause)
			}
			if (f.status == 429 || f.status == 503) != (f.retryAfter > 0) {
				t.Errorf("retry after %v with status %d", f.retryAfter, f.status)
			}
			f.cause, f.retryAfter = "", 0
			if f != tc.want {
				t.Errorf("got %+v\nwant %+v", f, tc.want)
			}
		})
	}
}

// TestQueueErrors reads every error body of the queue API.
func TestQueueErrors(t *testing.T) {
	html := "<html><head><title>524</title></head></html>"
	for name, tc := range map[string]struct {
		status     int
		retryAfter string
		body       string
		want       int
		code       string
		wait       time.Duration
	}{
		"no key":                     {401, "", `{"status":401,"title":"Unauthorized","detail":"no token provided"}`, 401, "invalid_api_key", 0},
		"bad key":                    {401, "", `{"status":401,"title":"Unauthorized","detail":"invalid api key"}`, 401, "invalid_api_key", 0},
		"forbidden":                  {403, "", ``, 403, "invalid_api_key", 0},
		"no such endpoint":           {404, "", `{"status":404,"title":"Not Found","detail":"endpoint not found"}`, 404, "endpoint_not_found", 0},
		"404 of unknown form":        {404, "", `<html></html>`, 404, "endpoint_not_found", 0},
		"500":                        {500, "", `{"status":500,"title":"Internal Server Error","detail":"internal server error"}`, 500, "job_refused", 0},
		"400":                        {400, "", `{"status":400,"title":"Bad Request","detail":"?"}`, 500, "job_refused", 0},
		"wrong product":              {400, "", `{"error":"not allowed for QB API"}`, 502, "wrong_endpoint_type", 0},
		"402":                        {402, "", `{"error":"no credit"}`, 402, "payment_required", 0},
		"413":                        {413, "", ``, 413, "request_too_large", 0},
		"429 that says when":         {429, "7", `{"status":429,"detail":"x"}`, 429, "rate_limit_exceeded", 7 * time.Second},
		"429 that does not, as text": {429, "", `too many`, 429, "rate_limit_exceeded", time.Second},
		"503":                        {503, "", ``, 503, "unavailable", time.Second},
		"524":                        {524, "", html, 504, "timeout", 0},
		"504":                        {504, "", html, 504, "timeout", 0},
		"502":                        {502, "", html, 502, "bad_answer", 0},
		"520":                        {520, "", html, 502, "bad_answer", 0},
		"a redirect":                 {302, "", ``, 502, "bad_answer", 0},
	} {
		t.Run(name, func(t *testing.T) {
			h := http.Header{}
			if tc.retryAfter != "" {
				h.Set("Retry-After", tc.retryAfter)
			}
			f := ofAnswer(tc.status, h, []byte(tc.body))
			if f.status != tc.want || f.code != tc.code || f.retryAfter != tc.wait {
				t.Errorf("got %d %s %v", f.status, f.code, f.retryAfter)
			}
			rec := httptest.NewRecorder()
			writeFailure(rec, f)
			var body struct {
				Error struct{ Message, Type, Code string }
			}
			if err := json.Unmarshal(rec.Body.Bytes(), &body); err != nil || body.Error.Message == "" || body.Error.Type == "" || body.Error.Code != tc.code {
				t.Errorf("%s: %v", rec.Body, err)
			}
			if (rec.Header().Get("Retry-After") != "") != (tc.wait > 0) {
				t.Errorf("Retry-After %q", rec.Header().Get("Retry-After"))
			}
		})
	}
}

func TestPythonToJSON(t *testing.T) {
	for in, want := range map[string]string{
		`{'a': 1, "b": [True, False, None, 1.5, -2, 1e3], 'c': ('x',), 'd': ()}`: `{"a":1,"b":[true,false,null,1.5,-2,1000],"c":["x"],"d":[]}`,
		`{'it\'s': "can't", 'n': 'a\nb\x41\u00e4\U0001f98a\q'}`:                  `{"it's":"can't","n":"a\nbAä🦊\\q"}`,
		`{1: 'x', None: nan}`:      `{"1":"x","null":null}`,
		`{'b': b'raw', 'i': -inf}`: `{"b":"raw","i":null}`,
		` { } `:                    `{}`,
		`<class 'ValueError'>`:     "",
		`{'a': }`:                  "",
		`{'a' 1}`:                  "",
		`{'a': 1} tail`:            "",
		`{'a': 'open`:              "",
		`{'a': '\`:                 "",
		`{'a': 1 2}`:               "",
	} {
		got, ok := pythonToJSON(in)
		if ok != (want != "") || ok && string(got) != want {
			t.Errorf("%s: got %s, %v, want %s", in, got, ok, want)
		}
	}
}

func FuzzPythonToJSON(f *testing.F) {
	f.Add(`{'error': {'message': "can't", 'code': 400, 'param': None}}`)
	f.Add(`[(1, -2.5e3), b'\x00\ud800', True]`)
	f.Add(strings.Repeat("[", 1000))
	f.Fuzz(func(t *testing.T, s string) {
		if b, ok := pythonToJSON(s); ok && !json.Valid(b) {
			t.Errorf("%q became %q", s, b)
		}
		_ = ofWorker(s)
	})
}

func FuzzNews(f *testing.F) {
	f.Add([]byte(`{"status":"IN_PROGRESS","stream":[{"output":"x"},{"output":null},"y"],"retries":1,"workerId":"w"}`))
	f.Add([]byte(`[{"output":"x","metrics":{}}]`))
	f.Add([]byte(`{"status":404,"stream":{},"retries":"1","executionTime":-1e300}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := parseNews(b)
		if err == nil && !json.Valid(b) {
			t.Errorf("%q was taken for JSON", b)
		}
		for _, y := range n.Yields {
			if !json.Valid(y) {
				t.Errorf("yield %q of %q", y, b)
			}
		}
	})
}

// TestRefusal reads the same errors in answers of the OpenAI route.
func TestRefusal(t *testing.T) {
	const long = "This model's maximum context length is 100 tokens."
	vllm := `{"error":{"message":"` + long + `","type":"BadRequestError","param":"input_tokens","code":400}}`
	repr := `{'error': {'message': "` + long + `", 'type': 'BadRequestError', 'param': 'input_tokens', 'code': 400}}`
	want := outcome.Refusal{Status: 400, Message: long, Param: "input_tokens"}
	for name, tc := range map[string]struct {
		body string
		want outcome.Refusal // zero for none
	}{
		"quoted by worker-vllm":       {`{"error":{"message":` + string(quoted("vLLM returned HTTP 400: "+vllm)) + `,"type":"worker_error","code":null}}`, want},
		"a text that quotes":          {`{"error":` + string(quoted("vLLM returned HTTP 400: "+vllm)) + `}`, want},
		"a Python dict in a text":     {`{"error":` + string(quoted(repr)) + `}`, want},
		"as vLLM says it":             {vllm, want},
		"flat":                        {`{"object":"error","message":"` + long + `","param":"input_tokens","code":400}`, want},
		"422":                         {`{"error":"vLLM returned HTTP 422: what is this"}`, outcome.Refusal{Status: 422, Message: "what is this"}},
		"no status":                   {`{"error":"` + long + `"}`, outcome.Refusal{Status: 400, Message: long}},
		"a status that is no refusal": {`{"error":"vLLM returned HTTP 503: ` + long + `"}`, outcome.Refusal{Status: 400, Message: long}},
		"nothing said":                {`{"error":{"code":400}}`, outcome.Refusal{}},
		"no body":                     {``, outcome.Refusal{}},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := Refusal([]byte(tc.body))
			if got != tc.want || ok != (tc.want.Status != 0) {
				t.Errorf("%+v, %v; want %+v", got, ok, tc.want)
			}
		})
	}
}
