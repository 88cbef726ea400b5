package runpod

import (
	"slices"
	"strconv"
	"strings"

	"headrace/router/endpoint"
)

// engine is what a container's settings tell of the server inside: worker-vllm's environment
// (https://docs.runpod.io/serverless/vllm/environment-variables) and the command line of vLLM and SGLang.
type engine struct {
	models     []string
	maxContext int
	seqs       int // requests that one worker takes at once, 0 when unknown
}

// Requests that worker-vllm and worker-sglang take at once unless MAX_CONCURRENCY says otherwise (their README files).
const (
	vllmConcurrency   = 30
	sglangConcurrency = 300
)

// engine reads the settings. A model's id is what the server was told to call it, else the model that it loads.
func (c *container) engine() engine {
	args := slices.Concat(c.Args, c.DockerArgs)
	var e engine
	switch {
	case c.Env["OPENAI_SERVED_MODEL_NAME_OVERRIDE"] != "":
		e.models = commaList(c.Env["OPENAI_SERVED_MODEL_NAME_OVERRIDE"])
	case len(flag(args, "--served-model-name")) > 0:
		e.models = flag(args, "--served-model-name")
	case c.Env["SERVED_MODEL_NAME"] != "": // worker-sglang
		e.models = commaList(c.Env["SERVED_MODEL_NAME"])
	case c.Env["MODEL_NAME"] != "":
		e.models = []string{strings.TrimSpace(c.Env["MODEL_NAME"])}
	case c.Env["MODEL_PATH"] != "" && strings.Contains(c.Image, "sglang"):
		e.models = []string{strings.TrimSpace(c.Env["MODEL_PATH"])}
	default:
		e.models = loaded(args)
	}
	e.models = slices.DeleteFunc(e.models, func(m string) bool { return m == "" })
	e.maxContext = first(c.Env["MAX_MODEL_LEN"], c.Env["CONTEXT_LENGTH"], one(args, "--max-model-len"), one(args, "--context-length"))
	e.seqs = first(c.Env["MAX_NUM_SEQS"], one(args, "--max-num-seqs"), c.Env["MAX_RUNNING_REQUESTS"])
	taken := first(c.Env["MAX_CONCURRENCY"]) // jobs that the worker takes from the queue; vLLM lets those beyond MAX_NUM_SEQS wait
	switch {
	case taken > 0:
	case strings.Contains(c.Image, "worker") && strings.Contains(c.Image, "vllm"):
		taken = vllmConcurrency
	case strings.Contains(c.Image, "worker") && strings.Contains(c.Image, "sglang"):
		taken = sglangConcurrency
	}
	if taken > 0 && (e.seqs == 0 || taken < e.seqs) {
		e.seqs = taken
	}
	return e
}

// loaded finds the model in a command line: --model X, --model-path X, or X in "vllm serve X".
func loaded(args []string) []string {
	for _, name := range []string{"--model", "--model-path"} {
		if v := flag(args, name); len(v) > 0 {
			return v[:1]
		}
	}
	if i := slices.Index(args, "serve"); i >= 0 && i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
		return args[i+1 : i+2]
	}
	return nil
}

// flag returns the values of a flag: "--name a b", "--name=a". vLLM reads an underscore as a hyphen.
func flag(args []string, name string) []string {
	for i, a := range args {
		key, value, joined := strings.Cut(a, "=")
		if strings.ReplaceAll(key, "_", "-") != name {
			continue
		}
		if joined {
			return []string{value}
		}
		var out []string
		for _, v := range args[i+1:] {
			if strings.HasPrefix(v, "-") {
				break
			}
			out = append(out, v)
		}
		return out
	}
	return nil
}

func one(args []string, name string) string {
	if v := flag(args, name); len(v) > 0 {
		return v[0]
	}
	return ""
}

// first returns the first of the texts that is a positive whole number. vLLM takes 32k for 32,000 and 32K for 32,768.
func first(texts ...string) int {
	for _, t := range texts {
		t = strings.TrimSpace(t)
		unit := 1
		switch {
		case strings.HasSuffix(t, "k"):
			t, unit = t[:len(t)-1], 1000
		case strings.HasSuffix(t, "K"):
			t, unit = t[:len(t)-1], 1024
		}
		if n, err := strconv.Atoi(t); err == nil && n > 0 && n < 1<<30 {
			return n * unit
		}
	}
	return 0
}

func commaList(s string) []string {
	var out []string
	for name := range strings.SplitSeq(s, ",") {
		if name = strings.TrimSpace(name); name != "" {
			out = append(out, name)
		}
	}
	return out
}

// served is what an endpoint is offered as. While nobody knows the model's id, the endpoint's own name stands for it.
func served(configured []string, e *engine, learned, name string) []endpoint.Served {
	models := configured
	if len(models) == 0 {
		models = e.models
	}
	if len(models) == 0 && learned != "" {
		models = []string{learned}
	}
	if len(models) == 0 {
		return []endpoint.Served{{Name: name, Unnamed: true, MaxContext: e.maxContext}}
	}
	out := make([]endpoint.Served, 0, len(models))
	for _, m := range models {
		if !slices.ContainsFunc(out, func(s endpoint.Served) bool { return s.Name == m }) {
			out = append(out, endpoint.Served{Name: m, MaxContext: e.maxContext})
		}
	}
	return out
}

// fits tells whether a pattern means a thing: its id or its name, exactly or up to a "*" at the end.
func fits(pattern, id, name string) bool {
	if p, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(id, p) || strings.HasPrefix(name, p)
	}
	return pattern == id || pattern == name
}

// lookup finds what is said of a thing: by its id, by its name, then by the longest pattern that fits.
func lookup[V any](m map[string]V, id, name string) (v V, ok bool) {
	if v, ok = m[id]; ok {
		return v, true
	}
	if v, ok = m[name]; ok {
		return v, true
	}
	best := ""
	for pattern := range m {
		if fits(pattern, id, name) && len(pattern) > len(best) {
			best = pattern
		}
	}
	v, ok = m[best]
	return v, ok && best != ""
}
