package fakecloud

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// metrics answers in Prometheus' text form with the names that vLLM uses.
func (x *exchange) metrics() {
	h := x.h
	s := h.Stats()
	var b bytes.Buffer
	labels := `engine="0",model_name="` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(h.cfg.Models[0]) + `"`
	one := func(name, kind, help string, value float64) {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n%s{%s} %s\n", name, help, name, kind, name, labels, strconv.FormatFloat(value, 'g', -1, 64))
	}
	one("vllm:num_requests_running", "gauge", "Number of requests in model execution batches.", float64(h.engine.batch.used()))
	one("vllm:num_requests_waiting", "gauge", "Number of requests waiting to be processed.", float64(h.engine.batch.waiting()))
	if h.cfg.Legacy {
		one("vllm:gpu_cache_usage_perc", "gauge", "GPU KV-cache usage. 1 means 100 percent usage.", h.engine.kvUsage())
	} else {
		one("vllm:kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.", h.engine.kvUsage())
	}
	one("vllm:prompt_tokens_total", "counter", "Number of prefill tokens processed.", float64(s.PromptTokens))
	one("vllm:generation_tokens_total", "counter", "Number of generation tokens processed.", float64(s.OutputTokens))
	queries, hits := "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"
	if h.cfg.Legacy {
		queries, hits = "vllm:gpu_prefix_cache_queries_total", "vllm:gpu_prefix_cache_hits_total"
	}
	one(queries, "counter", "Prefix cache queries, in terms of number of queried tokens.", float64(s.PromptTokens))
	one(hits, "counter", "Prefix cache hits, in terms of number of cached tokens.", float64(s.CachedTokens))

	h.books.mu.Lock()
	ttft, stops := h.books.ttft, maps.Clone(h.books.stops)
	h.books.mu.Unlock()
	name := "vllm:request_success_total"
	fmt.Fprintf(&b, "# HELP %s Count of successfully processed requests.\n# TYPE %s counter\n", name, name)
	for _, reason := range slices.Sorted(maps.Keys(stops)) {
		fmt.Fprintf(&b, "%s{%s,finished_reason=%q} %d\n", name, labels, reason, stops[reason])
	}
	name = "vllm:time_to_first_token_seconds"
	fmt.Fprintf(&b, "# HELP %s Histogram of time to first token in seconds.\n# TYPE %s histogram\n", name, name)
	sum := 0
	for i, le := range bounds {
		sum += ttft.counts[i]
		fmt.Fprintf(&b, "%s_bucket{%s,le=\"%g\"} %d\n", name, labels, le, sum)
	}
	fmt.Fprintf(&b, "%s_bucket{%s,le=\"+Inf\"} %d\n%s_count{%s} %d\n%s_sum{%s} %g\n", name, labels, ttft.n, name, labels, ttft.n, name, labels, ttft.sum)
	x.answer(http.StatusOK, "text/plain; version=0.0.4; charset=utf-8", b.Bytes())
}
