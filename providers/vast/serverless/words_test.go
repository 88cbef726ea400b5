package serverless

import (
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"

	"headrace/router/endpoint"
)

// FuzzWords: whatever Vast.ai answers, reading it ends in rows or an error.
func FuzzWords(f *testing.F) {
	for _, s := range []string{
		`{"success":true,"results":[{"id":1,"endpoint_name":"q","api_key":"k","inactivity_timeout":"600"},null,[]]}`,
		`[{"id":123456,"status":"idle","cur_load":150,"perf":100.58}]`, `{"workers":[{"id":"7"}]}`, `{"error_msg":"not ready"}`,
		`{"success":true,"instances":[{"id":1e99,"dph_total":"x","num_gpus":-1,"extra_env":[["MODEL_NAME","m"],[1,2,3],"x"]}],"next_token":"t"}`,
		`{"success":false,"error":"e","msg":"m"}`, `{"results":null}`, `[[["VLLM_ARGS","--served-model-name=x --max-model-len"]]]`, "<html>", "",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		odd := func(string) {}
		if rows, err := decodeJobs(b, odd); err != nil && rows != nil {
			t.Errorf("rows and an error: %v, %v", rows, err)
		}
		if rows, err := decodeWorkers(b, odd); err != nil && rows != nil {
			t.Errorf("rows and an error: %v, %v", rows, err)
		}
		if rows, _, err := decodeInstances(b, odd); err != nil && rows != nil {
			t.Errorf("rows and an error: %v, %v", rows, err)
		}
		if name, n := model(b); n != 0 && name == "" {
			t.Errorf("a length of %d without a model", n)
		}
		if c := costOf(b); c < 1 {
			t.Errorf("cost %d", c)
		}
	})
}

// TestNudgeOfOthers: failed traffic at somebody else's host is no reason to ask Vast.ai anything.
func TestNudgeOfOthers(t *testing.T) {
	p := New(Options{})
	for id, want := range map[endpoint.ID]int{"runpod:abc": 0, "vast:17": 0, "static:lab": 0, "vast:serverless-qwen": 1} {
		p.Nudge(id)
		if n := len(p.nudged); n != want {
			t.Errorf("%s: %d looks are due, want %d", id, n, want)
		}
		select {
		case <-p.nudged:
		default:
		}
	}
}

func TestModel(t *testing.T) {
	for env, want := range map[string]struct {
		name string
		max  int
	}{
		`[["MODEL_NAME","a/b"]]`: {"a/b", 0},
		`[["VLLM_MODEL","a/b"],["MODEL_NAME","c/d"],["VLLM_ARGS","--max-model-len 4096 --foo"]]`: {"c/d", 4096},
		`{"VLLM_MODEL":"a/b","VLLM_ARGS":"--served-model-name='x' --max-model-len=auto"}`:        {"x", 0},
		`[["VLLM_ARGS","--max-model-len 4096"]]`:                                                 {"", 0},
		`[["MODEL_NAME"],7,["MODEL_NAME",7]]`:                                                    {"", 0},
		`null`:                                                                                   {"", 0},
		``:                                                                                       {"", 0},
	} {
		if name, n := model(json.RawMessage(env)); name != want.name || n != want.max {
			t.Errorf("%s: %q, %d", env, name, n)
		}
	}
}

func TestCost(t *testing.T) {
	for body, want := range map[string]int64{
		`{"max_tokens":100}`: 100 + 4, `{"max_tokens":null,"max_completion_tokens":7}`: 7 + 11, `{"max_tokens":-1}`: 512 + 4, `{}`: 512, `{"max_tokens":"9"}`: 9 + 4,
		`{"max_tokens":1e300}`: 1<<20 + 5,
	} {
		if got := costOf([]byte(body)); got != want {
			t.Errorf("%s costs %d, want %d", body, got, want)
		}
	}
}

// TestEnding finds the sign of a whole stream wherever the pieces are cut, and no sign in what a token says.
func TestEnding(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 2))
	for text, want := range map[string]bool{
		"data: [DONE]\n\n":                    true,
		"data: {}\r\n\r\ndata:[DONE]\r\n\r\n": true,
		`data: {"finish_reason" : "stop"}`:    true,
		`data: {"finish_reason":null}`:        false,
		`data: {"x":"\"finish_reason\":\"a"}`: false,
		`data: {"content":"data: [DONE]"}`:    false,
		`data: {"content":"\ndata: [DONE]"}`:  false,
		"data: {}\n\n: data: [DONE]\n\n":      false,
		"":                                    false,
	} {
		for range 200 {
			e := ending{stream: true}
			s := strings.Repeat("data: {\"finish_reason\":null,\"content\":\"é\"}\n\n", rng.IntN(4)) + text
			for len(s) > 0 {
				n := 1 + rng.IntN(len(s))
				e.see([]byte(s[:n]))
				s = s[n:]
			}
			if e.whole() != want {
				t.Fatalf("seed %d: %q is whole: %v", seed, text, e.whole())
			}
		}
	}
	if e := (ending{}); !e.whole() {
		t.Error("an answer in one piece has no end mark to wait for")
	}
}
