package scrape

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"headrace/router/capacity"
)

func TestScan(t *testing.T) {
	nan := math.NaN()
	for name, tc := range map[string]struct {
		page                       string
		ok                         bool
		running, waiting, kv, rate float64
	}{
		"vLLM": {`# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 8.0
vllm:num_requests_waiting{engine="0",model_name="m"} 15.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 99.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 200.0
vllm:prefix_cache_queries_created{engine="0",model_name="m"} 1.7537953269352946e+09
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 50.0
`, true, 8, 15, 0.25, 0.25},
		"vLLM 0.8, one of whose names is old": {`vllm:num_requests_running{engine="0",model_name="m"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
vllm:gpu_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:gpu_prefix_cache_queries_total{engine="0",model_name="m"} 10.0
vllm:gpu_prefix_cache_hits_total{engine="0",model_name="m"} 5.0
`, true, 1, 0, 0.5, 0.5},
		"vLLM 0.10 with both names": {`vllm:num_requests_running{engine="0"} 2
vllm:gpu_cache_usage_perc{engine="0"} 0.5
vllm:kv_cache_usage_perc{engine="0"} 0.5
vllm:gpu_prefix_cache_queries_total{engine="0"} 10
vllm:gpu_prefix_cache_hits_total{engine="0"} 2
vllm:prefix_cache_queries_total{engine="0"} 10
vllm:prefix_cache_hits_total{engine="0"} 2
`, true, 2, 0, 0.5, 0.2},
		"vLLM V0": {`vllm:num_requests_running{model_name="m"} 1.0
vllm:gpu_cache_usage_perc{model_name="m"} 0.125
vllm:gpu_prefix_cache_hit_rate{model_name="m"} 0.75
vllm:cpu_prefix_cache_hit_rate{model_name="m"} -1.0
`, true, 1, 0, 0.125, 0.75},
		"vLLM V0 that has no hit rate yet":    {"vllm:num_requests_running 0\nvllm:gpu_prefix_cache_hit_rate -1.0\n", true, 0, 0, nan, nan},
		"vLLM with two data parallel engines": {"vllm:num_requests_running{engine=\"0\"} 3\nvllm:num_requests_running{engine=\"1\"} 4\nvllm:kv_cache_usage_perc{engine=\"0\"} 0.2\nvllm:kv_cache_usage_perc{engine=\"1\"} 0.4\n", true, 7, 0, 0.3, nan},
		"SGLang": {`sglang:num_running_reqs{model_name="m",tp_rank="0",pp_rank="0"} 5.0
sglang:num_running_reqs{model_name="m",tp_rank="1",pp_rank="0"} 5.0
sglang:num_running_reqs{model_name="m",tp_rank="0",pp_rank="1"} 5.0
sglang:num_queue_reqs{model_name="m",tp_rank="0"} 2.0
sglang:token_usage{model_name="m",tp_rank="0"} 0.28
sglang:cache_hit_rate{model_name="m",tp_rank="0"} 0.5
`, true, 5, 2, 0.28, 0.5},
		"SGLang behind a proxy":     {"sglang_num_running_reqs 5\nsglang_num_queue_reqs 1\nsglang_token_usage 0.5\nsglang_cache_hit_rate 0\n", true, 5, 1, 0.5, 0},
		"TensorRT-LLM":              {"trtllm_num_requests_running 2\ntrtllm_num_requests_waiting 1\ntrtllm_kv_cache_utilization 0.5\n", true, 2, 1, 0.5, nan},
		"TGI":                       {"tgi_batch_current_size 2\ntgi_queue_size 1\n", true, 2, 1, nan, nan},
		"llama.cpp":                 {"llamacpp:requests_processing 2\nllamacpp:requests_deferred 1\nllamacpp:kv_cache_usage_ratio 0.5\n", true, 2, 1, 0.5, nan},
		"odd labels":                {"vllm:num_requests_running{a=\"}\",b=\"\\\"} 9\",c=\"\\\\\"} 3\n", true, 3, 0, nan, nan},
		"a time behind the value":   {"vllm:num_requests_running 3 1700000000000\n", true, 3, 0, nan, nan},
		"tabs, CR and no last LF":   {"vllm:num_requests_running{}\t3\r\nvllm:num_requests_waiting 4", true, 3, 4, nan, nan},
		"more than all of a cache":  {"vllm:num_requests_running 1\nvllm:kv_cache_usage_perc 1.005\n", true, 1, 0, 1, nan},
		"values that cannot be":     {"vllm:num_requests_running NaN\nvllm:num_requests_waiting -1\nvllm:num_requests_waiting +Inf\nvllm:kv_cache_usage_perc 25\n", false, 0, 0, nan, nan},
		"a value that is no number": {"vllm:num_requests_running many\n", false, 0, 0, nan, nan},
		"labels without end":        {"vllm:num_requests_running{a=\"} 3\n", false, 0, 0, nan, nan},
		"a name and nothing else":   {"vllm:num_requests_running\nvllm:num_requests_waiting \nvllm:num_requests_waiting{\n", false, 0, 0, nan, nan},
		"a cache without load":      {"vllm:kv_cache_usage_perc 0.5\n", false, 0, 0, 0.5, nan},
		"another server's page":     {"go_goroutines 12\nprocess_cpu_seconds_total 3\nvllm_num_requests_running 3\n", false, 0, 0, nan, nan},
		"a page of HTML":            {"<!doctype html>\n<html>vllm:num_requests_running 3</html>\n", false, 0, 0, nan, nan},
		"nothing":                   {"", false, 0, 0, nan, nan},
		"comments only":             {"# vllm:num_requests_running 3\n", false, 0, 0, nan, nan},
	} {
		var s sample
		if ok := scan([]byte(tc.page), &s); ok != tc.ok {
			t.Errorf("%s: found %v", name, ok)
		}
		e := (&cache{}).engine(&s, time.Time{})
		same := func(a, b float64) bool { return math.Abs(a-b) < 1e-12 || math.IsNaN(a) && math.IsNaN(b) }
		if !same(e.Running, tc.running) || !same(e.Waiting, tc.waiting) || !same(e.KVUse, tc.kv) || !same(e.CacheHitRate, tc.rate) {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

// TestHitRate follows the counters of an engine over time.
func TestHitRate(t *testing.T) {
	var c cache
	for i, step := range []struct{ hits, queries, want float64 }{
		{0, 0, math.NaN()}, // nobody has asked it yet
		{50, 100, 0.5},
		{50, 100, 0.5}, // idle: as before
		{50, 150, 0},
		{140, 250, 0.9},
		{8, 10, 0.8}, // started anew
		{8, 10, 0.8},
		{100, 11, 1}, // cannot be, and stays in bounds
	} {
		e := c.engine(&sample{load: true, hits: step.hits, queries: step.queries}, time.Time{})
		if got := e.CacheHitRate; math.Abs(got-step.want) > 1e-12 || math.IsNaN(got) != math.IsNaN(step.want) {
			t.Errorf("step %d: %g, not %g", i, got, step.want)
		}
	}
}

// FuzzScan holds what is delivered to what can be, whatever a page says.
func FuzzScan(f *testing.F) {
	f.Add([]byte("vllm:num_requests_running{engine=\"0\"} 8.0\nvllm:kv_cache_usage_perc 0.5 12\n"))
	f.Add([]byte("sglang:num_running_reqs{tp_rank=\"1\",a=\"\\\"}\"} 1e3\r\nvllm:gpu_prefix_cache_hit_rate -1"))
	f.Add([]byte("vllm:prefix_cache_queries_total 10\nvllm:prefix_cache_hits_total 1e308\ntgi_queue_size 0x1p-2\n"))
	f.Fuzz(func(t *testing.T, page []byte) {
		var s sample
		ok := scan(page, &s)
		var e capacity.Engine
		for c, i := (cache{}), 0; i < 2; i++ {
			e = c.engine(&s, time.Time{})
		}
		share := func(v float64) bool { return v >= 0 && v <= 1 || math.IsNaN(v) }
		if !(e.Running >= 0 && e.Waiting >= 0) || !share(e.KVUse) || !share(e.CacheHitRate) || !ok && e.Running+e.Waiting > 0 {
			t.Errorf("%q: %+v", page, e)
		}
	})
}

// vllmPage is as long as a page of vLLM: what is looked for among forty histograms and the process's own metrics.
func vllmPage() []byte {
	var b strings.Builder
	labels := `engine="0",model_name="meta-llama/Llama-3.1-70B-Instruct"`
	b.WriteString("# HELP python_gc_objects_collected_total Objects collected during gc\n# TYPE python_gc_objects_collected_total counter\n")
	for i := range 30 {
		fmt.Fprintf(&b, "python_gc_objects_collected_total{generation=\"%d\"} 12345.0\n", i)
	}
	for _, m := range []string{"num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"} {
		fmt.Fprintf(&b, "# HELP vllm:%s What it is.\n# TYPE vllm:%s gauge\nvllm:%s{%s} 0.25\n", m, m, m, labels)
	}
	for _, m := range []string{"prefix_cache_queries", "prefix_cache_hits", "prompt_tokens", "generation_tokens", "num_preemptions"} {
		fmt.Fprintf(&b, "# HELP vllm:%s_total What it is.\n# TYPE vllm:%s_total counter\nvllm:%s_total{%s} 1.234567e+06\n", m, m, m, labels)
	}
	for h := range 24 {
		fmt.Fprintf(&b, "# HELP vllm:histogram_%d_seconds Histogram of something in seconds.\n# TYPE vllm:histogram_%d_seconds histogram\n", h, h)
		for i := range 24 {
			fmt.Fprintf(&b, "vllm:histogram_%d_seconds_bucket{%s,le=\"%g\"} %d.0\n", h, labels, 0.001*float64(i*i+1), 100*i)
		}
		fmt.Fprintf(&b, "vllm:histogram_%d_seconds_sum{%s} 1234.5\nvllm:histogram_%d_seconds_count{%s} 2400.0\n", h, labels, h, labels)
	}
	return []byte(b.String())
}

func BenchmarkScan(b *testing.B) {
	page := vllmPage()
	b.SetBytes(int64(len(page)))
	b.ReportAllocs()
	for b.Loop() {
		var s sample
		if !scan(page, &s) {
			b.Fatal("nothing found")
		}
	}
}

func TestScanAllocatesNothing(t *testing.T) {
	page := vllmPage()
	var s sample
	if n := testing.AllocsPerRun(10, func() { scan(page, &s) }); n > 0 || s.running != 0.25 {
		t.Errorf("%g allocations for a page; %+v", n, s)
	}
}
