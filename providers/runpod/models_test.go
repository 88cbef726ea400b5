package runpod

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"headrace/router/endpoint"
)

func TestModels(t *testing.T) {
	for name, tc := range map[string]struct {
		settings string
		models   string
		context  int
		seqs     int
	}{
		"the override wins": {
			`{"env":{"OPENAI_SERVED_MODEL_NAME_OVERRIDE":"a, b","MODEL_NAME":"org/m"},"args":"--served-model-name c"}`, "a b", 0, 0,
		},
		"the model that is loaded":    {`{"env":{"MODEL_NAME":"org/m","MAX_MODEL_LEN":"8192"}}`, "org/m", 8192, 0},
		"served-model-name":           {`{"env":{"MODEL_NAME":"org/m"},"args":"--served-model-name x y --port 80"}`, "x y", 0, 0},
		"served-model-name joined":    {`{"args":"serve org/m --served_model_name=x --max-model-len=32k --max-num-seqs 64"}`, "x", 32000, 64},
		"vllm serve":                  {`{"dockerArgs":"vllm serve 'org/m one' --max-model-len 4K"}`, "org/m one", 4096, 0},
		"model in a list of words":    {`{"args":["--model","org/m","--host","0.0.0.0"]}`, "org/m", 0, 0},
		"sglang":                      {`{"image":"runpod/worker-sglang:1","env":{"MODEL_PATH":"org/s","CONTEXT_LENGTH":"4096"}}`, "org/s", 4096, sglangConcurrency},
		"sglang's own name":           {`{"image":"runpod/worker-sglang:1","env":{"MODEL_PATH":"org/s","SERVED_MODEL_NAME":"s"}}`, "s", 0, sglangConcurrency},
		"a path of some other worker": {`{"image":"me/whisper","env":{"MODEL_PATH":"/models"}}`, "", 0, 0},
		"worker-vllm takes 30":        {`{"image":"runpod/worker-v1-vllm:v2.25.2","env":{"MODEL_NAME":"m","MAX_NUM_SEQS":"256"}}`, "m", 0, vllmConcurrency},
		"unless told otherwise":       {`{"image":"runpod/worker-v1-vllm:v2.25.2","env":{"MODEL_NAME":"m","MAX_NUM_SEQS":"256","MAX_CONCURRENCY":"300"}}`, "m", 0, 256},
		"numbers that are none":       {`{"env":{"MODEL_NAME":"m","MAX_MODEL_LEN":"auto","MAX_NUM_SEQS":"-1"}}`, "m", 0, 0},
		"numbers without quotes":      {`{"env":{"MODEL_NAME":"m","MAX_MODEL_LEN":2048}}`, "m", 2048, 0},
		"env as pairs":                {`{"env":[{"key":"MODEL_NAME","value":"m"}]}`, "m", 0, 0},
		"env as lines":                {`{"env":["MODEL_NAME=m","X"]}`, "m", 0, 0},
		"nothing":                     {`{}`, "", 0, 0},
		"nulls":                       {`{"env":null,"args":null,"image":null}`, "", 0, 0},
		"empty words":                 {`{"env":{"MODEL_NAME":"  "},"args":"--model"}`, "", 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var c container
			if err := json.Unmarshal([]byte(tc.settings), &c); err != nil {
				t.Fatal(err)
			}
			e := c.engine()
			if got := strings.Join(e.models, " "); got != tc.models || e.maxContext != tc.context || e.seqs != tc.seqs {
				t.Errorf("models %q, context %d, seqs %d; want %q, %d, %d", got, e.maxContext, e.seqs, tc.models, tc.context, tc.seqs)
			}
		})
	}
}

func TestServed(t *testing.T) {
	e := engine{models: []string{"m", "m"}, maxContext: 10}
	for name, tc := range map[string]struct {
		configured []string
		e          engine
		learned    string
		want       []endpoint.Served
	}{
		"config first":        {[]string{"c"}, e, "l", []endpoint.Served{{Name: "c", MaxContext: 10}}},
		"then settings, once": {nil, e, "l", []endpoint.Served{{Name: "m", MaxContext: 10}}},
		"then what it said":   {nil, engine{}, "l", []endpoint.Served{{Name: "l"}}},
		"else unnamed":        {nil, engine{}, "", []endpoint.Served{{Name: "own name", Unnamed: true}}},
	} {
		got := served(tc.configured, &tc.e, tc.learned, "own name")
		if !slices.EqualFunc(got, tc.want, func(a, b endpoint.Served) bool {
			return a.Name == b.Name && a.Unnamed == b.Unnamed && a.MaxContext == b.MaxContext
		}) {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
}

func TestWords(t *testing.T) {
	for in, want := range map[string][]string{
		``:                        nil,
		`  a  b `:                 {"a", "b"},
		`--x "a b" 'c d'e`:        {"--x", "a b", "c de"},
		`a\ b "q\"q" 'no\esc' ""`: {"a b", `q"q`, `no\esc`, ""},
		`"never closed`:           {"never closed"},
	} {
		if got := words(in); !slices.Equal(got, want) {
			t.Errorf("words(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestLookup(t *testing.T) {
	m := map[string]int{"id1": 1, "llama": 2, "ll*": 3, "llama-*": 4, "*": 5}
	for _, tc := range []struct {
		id, name string
		want     int
	}{{"id1", "llama", 1}, {"x", "llama", 2}, {"x", "llama-7b", 4}, {"llx", "y", 3}, {"x", "y", 5}} {
		if got, ok := lookup(m, tc.id, tc.name); !ok || got != tc.want {
			t.Errorf("lookup(%s, %s) = %d, %v, want %d", tc.id, tc.name, got, ok, tc.want)
		}
	}
	if _, ok := lookup(map[string]int{"a": 1}, "b", "c"); ok {
		t.Error("found something said of others")
	}
}
