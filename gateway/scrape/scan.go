package scrape

import (
	"bytes"
	"math"
	"strconv"
)

// sample is what one page says. Sums go over the engines of a host (vLLM's data parallelism, label engine).
type sample struct {
	running, waiting float64
	load             bool    // either was there
	kv               float64 // sum of shares in use
	kvs              int     // of that many engines
	hits, queries    float64 // prompt tokens, counted since the engine started
	rate             float64 // of cache hits, from engines that tell it themselves
	rates            int
}

// scan reads from a page of Prometheus' text format 0.0.4 what engines call their load; false when nothing of it is there.
//
// It looks for a handful of names and skips all other lines. A page of vLLM has some 70 KB in 700 lines, and a thousand hosts
// may be read every five seconds: this takes 75 µs and no allocation for one (BenchmarkScan), where the TextParser of
// github.com/prometheus/common/expfmt v0.74.0 took 6 ms and 23,000 allocations on the same page and machine, 1.2 cores in all.
//
// Names: vLLM https://docs.vllm.ai/en/stable/usage/metrics/ (gpu_cache_usage_perc and gpu_prefix_cache_* up to 0.9, the
// gauge of the hit rate up to V0), SGLang https://docs.sglang.io/docs/references/production_metrics (behind some proxies
// with "_" for ":"), TensorRT-LLM, TGI and llama.cpp as in their own documentation.
func scan(page []byte, s *sample) bool {
	*s = sample{}
	for len(page) > 0 {
		var line []byte
		if i := bytes.IndexByte(page, '\n'); i >= 0 {
			line, page = page[:i], page[i+1:]
		} else {
			line, page = page, nil
		}
		if len(line) < 8 {
			continue
		}
		switch line[0] {
		case 'v', 's', 't', 'l':
			s.line(line)
		}
	}
	return s.load
}

// line takes in one line that is no comment.
func (s *sample) line(line []byte) {
	end := 0
	for end < len(line) && line[end] != '{' && line[end] != ' ' && line[end] != '\t' {
		end++
	}
	if end == len(line) {
		return
	}
	switch string(line[:end]) { // no allocation: the compiler compares bytes
	case "vllm:num_requests_running", "sglang:num_running_reqs", "sglang_num_running_reqs", "trtllm_num_requests_running", "tgi_batch_current_size", "llamacpp:requests_processing":
		if v, ok := value(line[end:], 1e9); ok {
			s.running += v
			s.load = true
		}
	case "vllm:num_requests_waiting", "sglang:num_queue_reqs", "sglang_num_queue_reqs", "trtllm_num_requests_waiting", "tgi_queue_size", "llamacpp:requests_deferred":
		if v, ok := value(line[end:], 1e9); ok {
			s.waiting += v
			s.load = true
		}
	case "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage", "sglang_token_usage", "trtllm_kv_cache_utilization", "llamacpp:kv_cache_usage_ratio":
		if v, ok := value(line[end:], 1.01); ok { // engines of a version that has both names say the same twice
			s.kv += v
			s.kvs++
		}
	case "vllm:prefix_cache_queries_total", "vllm:prefix_cache_queries", "vllm:gpu_prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries":
		if v, ok := value(line[end:], math.MaxFloat64); ok {
			s.queries += v
		}
	case "vllm:prefix_cache_hits_total", "vllm:prefix_cache_hits", "vllm:gpu_prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits":
		if v, ok := value(line[end:], math.MaxFloat64); ok {
			s.hits += v
		}
	case "vllm:gpu_prefix_cache_hit_rate", "sglang:cache_hit_rate", "sglang_cache_hit_rate":
		if v, ok := value(line[end:], 1); ok { // vLLM says -1 while it has none
			s.rate += v
			s.rates++
		}
	}
}

// value reads the number behind a metric's name: labels or none, the value from 0 to most, perhaps a time. Lines of tensor- or
// pipeline-parallel ranks but the first are left out, for SGLang lets each rank tell of the same sequences.
func value(rest []byte, most float64) (v float64, ok bool) {
	if rest[0] == '{' {
		end, quoted := -1, false
		for i := 1; i < len(rest) && end < 0; i++ {
			switch c := rest[i]; {
			case quoted && c == '\\':
				i++
			case c == '"':
				quoted = !quoted
			case c == '}' && !quoted:
				end = i
			}
		}
		if end < 0 || laterRank(rest[:end]) {
			return 0, false
		}
		rest = rest[end+1:]
	}
	rest = bytes.TrimLeft(rest, " \t")
	if i := bytes.IndexAny(rest, " \t\r"); i >= 0 {
		rest = rest[:i]
	}
	v, err := strconv.ParseFloat(string(rest), 64)
	return v, err == nil && v >= 0 && v <= most // NaN is neither
}

func laterRank(labels []byte) bool {
	for _, l := range [...]string{`tp_rank="`, `pp_rank="`} {
		if _, at, found := bytes.Cut(labels, []byte(l)); found && !bytes.HasPrefix(at, []byte(`0"`)) {
			return true
		}
	}
	return false
}
