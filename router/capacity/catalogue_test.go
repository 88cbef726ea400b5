package capacity_test

import (
	"math"
	"strings"
	"testing"
	"unicode/utf8"

	"headrace/router/capacity"
	"headrace/router/endpoint"
)

func host(gpu string, count int, models ...string) *endpoint.Endpoint {
	ep := &endpoint.Endpoint{Hardware: endpoint.Hardware{GPU: gpu, GPUCount: count}}
	for _, m := range models {
		ep.Served = append(ep.Served, endpoint.Served{Name: m})
	}
	return ep
}

func TestLookup(t *testing.T) {
	for name, tc := range map[string]struct {
		ep        *endpoint.Endpoint
		low, high float64 // tokens per second
		seqs      int     // 0 for any
		source    string  // part of it
	}{
		"a line of the table":            {host("A100 80GB", 1, "llama-2-70b-chat-4bit"), 35, 35, 48, "as measured 2023-12: 1 x A100 SXM 80GB, Llama-2-70B 4bit"},
		"two GPUs":                       {host("RTX 4090", 2, "llama-70b-awq"), 24, 26, 12, "as measured 2023-12: 2 x RTX 4090"},
		"what must be 4 bits to fit":     {host("RTX 4090", 2, "meta-llama/Llama-3.1-70B-Instruct"), 24, 26, 12, "2 x RTX 4090"},
		"a mixture of experts":           {host("H100 SXM", 1, "mixtral-8x7b-instruct-4bit"), 90, 90, 64, "Mixtral-8x7B"},
		"RunPod's name":                  {host("NVIDIA H100 80GB HBM3", 1, "Qwen/Qwen3-8B"), 145, 146, 0, "as measured 2026-09-24"},
		"a model of nearly that size":    {host("H100 SXM", 1, "meta-llama/Llama-3.1-8B-Instruct"), 140, 160, 0, "as measured"},
		"a GPU of that family":           {host("H200", 1, "meta-llama/Llama-3.1-8B-Instruct"), 170, 240, 0, "after measured"},
		"a smaller model":                {host("RTX 4090", 1, "Qwen/Qwen2.5-7B-Instruct-AWQ"), 120, 160, 0, "as measured 2024-05"},
		"nothing like it":                {host("L4", 1, "google/gemma-2-2b-it"), 40, 60, 0, "estimated"},
		"a GPU that nobody has heard of": {host("RTX 9090", 1, "llama-8b"), 0, 0, 0, "default: GPU RTX 9090 not in the catalogue"},
		"no GPU":                         {host("", 0, "llama-8b"), 0, 0, 0, "default: GPU unknown"},
		"no model":                       {host("RTX 4090", 1), 0, 0, 0, "default: model unknown"},
		"a model of unknown size":        {host("RTX 4090", 1, "my-model"), 0, 0, 0, "default: size unknown of model my-model"},
		"an adapter beside its base":     {host("A100 80GB", 1, "my-adapter", "llama-2-70b-chat-4bit"), 35, 35, 48, "as measured"},
		"several GPU types: the slowest": {host("L4, RTX A5000", 1, "llama-8b-awq"), 35, 55, 0, "1 x L4"},
		"a pool":                         {host("ADA_24", 1, "Llama-3-8B"), 54, 55, 0, "RTX 4090"},
		"no count is one":                {host("RTX 3090", 0, "Llama-3-8B"), 46, 47, 0, "1 x RTX 3090"},
	} {
		t.Run(name, func(t *testing.T) {
			p := capacity.Lookup(tc.ep)
			if tps := 1 / p.ITLSeconds; tc.high > 0 && !(tps > tc.low-0.01 && tps < tc.high+0.01) || tc.high == 0 && p.ITLSeconds != 0 {
				t.Errorf("%g tok/s; %s", tps, p.Source)
			}
			if tc.seqs > 0 && p.MaxNumSeqs != tc.seqs {
				t.Errorf("%d sequences", p.MaxNumSeqs)
			}
			if !strings.Contains(p.Source, tc.source) {
				t.Errorf("source %q", p.Source)
			}
		})
	}
}

// TestLookupAPI asks for somebody else's fleet: nearly flat, whatever the host says of GPUs.
func TestLookupAPI(t *testing.T) {
	ep := host("A100 80GB", 1, "llama-70b")
	ep.Tenure = endpoint.TenurePerToken
	p := capacity.Lookup(ep)
	if p.Slope > 1e-3 || p.TTFTSeconds != 0.45 || p.PrefillTokensPerSecond != 8000 || p.MaxNumSeqs < 1000 {
		t.Errorf("%+v", p)
	}
	s := capacity.New(p, 0).State()
	one, _ := s.ITL(1)
	hundred, _ := s.ITL(100)
	if !(hundred < 1.02*one) {
		t.Errorf("%g s between tokens alone, %g s with 100", one, hundred)
	}
	ep.Limits.Concurrent = 20
	if p := capacity.Lookup(ep); p.MaxNumSeqs != 20 {
		t.Errorf("%d sequences where the provider lets 20 through", p.MaxNumSeqs)
	}
	ep.MaxNumSeqs = 7
	if p := capacity.Lookup(ep); p.MaxNumSeqs != 7 {
		t.Errorf("%d sequences where the endpoint says 7", p.MaxNumSeqs)
	}
}

func TestFindGPU(t *testing.T) {
	for name, want := range map[string]string{
		// RunPod's ids and names
		"NVIDIA RTX A4000": "RTX A4000", "NVIDIA L4": "L4", "NVIDIA RTX A5000": "RTX A5000", "NVIDIA GeForce RTX 3090": "RTX 3090",
		"NVIDIA GeForce RTX 3090 Ti": "RTX 3090 Ti", "NVIDIA GeForce RTX 4090": "RTX 4090", "NVIDIA GeForce RTX 5090": "RTX 5090", "NVIDIA A40": "A40",
		"NVIDIA RTX A6000": "RTX A6000", "NVIDIA L40S": "L40S", "NVIDIA L40": "L40", "NVIDIA RTX 6000 Ada Generation": "RTX 6000 Ada",
		"NVIDIA RTX 4000 Ada Generation": "RTX 4000 Ada", "NVIDIA RTX 2000 Ada Generation": "RTX 2000 Ada", "NVIDIA A100 80GB PCIe": "A100 PCIe 80GB",
		"NVIDIA A100-SXM4-80GB": "A100 SXM 80GB", "NVIDIA H100 80GB HBM3": "H100 SXM", "NVIDIA H100 NVL": "H100 NVL", "NVIDIA H100 PCIe": "H100 PCIe",
		"NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTX PRO 6000", "NVIDIA H200": "H200 SXM", "NVIDIA B200": "B200", "NVIDIA B300 SXM6 AC": "B300",
		"A100 SXM": "A100 SXM 80GB", "A100 PCIe": "A100 PCIe 80GB", "H100 SXM": "H100 SXM", "H200 SXM": "H200 SXM", "AMD Instinct MI300X OAM": "MI300X",
		// Vast.ai's
		"RTX 4090": "RTX 4090", "RTX 6000Ada": "RTX 6000 Ada", "RTX 5000Ada": "RTX 5000 Ada", "RTX PRO 6000 S": "RTX PRO 6000", "RTX PRO 6000 WS": "RTX PRO 6000",
		"A100 PCIE": "A100 PCIe 80GB", "A100 SXM4": "A100 SXM 80GB", "A100X": "A100 SXM 80GB", "H100 PCIE": "H100 PCIe", "H200 NVL": "H200 NVL", "GH200 SXM": "GH200",
		"Tesla V100": "V100", "Tesla T4": "T4", "RTX 4080S": "RTX 4080", "RTX 4070S Ti": "RTX 4070 Ti", "RTX 5070 Ti": "RTX 5070 Ti", "Q RTX 8000": "Quadro RTX 8000", "A10": "A10",
		// people's
		"rtx4090": "RTX 4090", "A100 80GB": "A100 SXM 80GB", "a100-40gb": "A100 40GB", "NVIDIA A100-PCIE-40GB": "A100 40GB", "H100": "H100 SXM", "H100 80GB": "H100 SXM", "RTX_3090": "RTX 3090",
		// pools
		"ADA_24": "RTX 4090", "AMPERE_16": "RTX A4000", "AMPERE_24": "RTX A5000", "AMPERE_48": "A40", "ADA_48_PRO": "L40S", "AMPERE_80": "A100 SXM 80GB", "ADA_80_PRO": "H100 SXM",
		"HOPPER_141": "H200 SXM", "BLACKWELL_96": "RTX PRO 6000", "BLACKWELL_180": "B200", "ADA_32_PRO": "RTX 5090",
	} {
		if g, ok := capacity.FindGPU(name); !ok || g.Name != want {
			t.Errorf("%s is taken for %q, not %q", name, g.Name, want)
		}
	}
	for _, name := range []string{"", "unknown", "RTX", "GTX 1080", "RTX A1000", "H1000", "TPU v5e", "Radeon VII", ",", "Gaudi 2"} {
		if g, ok := capacity.FindGPU(name); ok {
			t.Errorf("%q is taken for %s", name, g.Name)
		}
	}
}

func TestParseModel(t *testing.T) {
	const bf16, fp8, int4 = capacity.BF16, capacity.FP8, capacity.INT4
	type want struct {
		total, active float64 // billions
		quant         capacity.Quant
	}
	dense := func(b float64, q capacity.Quant) want { return want{b, b, q} }
	for name, w := range map[string]want{
		"meta-llama/Llama-3.1-70B-Instruct":             dense(70, bf16),
		"meta-llama/Llama-3.1-405B-Instruct-FP8":        dense(405, fp8),
		"meta-llama/Meta-Llama-3-8B-Instruct":           dense(8, bf16),
		"meta-llama/Llama-3.3-70B-Instruct":             dense(70.6, bf16),
		"meta-llama/Llama-3.2-1B":                       dense(1, bf16),
		"meta-llama/Llama-2-7b-chat-hf":                 dense(7, bf16),
		"meta-llama/Llama-4-Scout-17B-16E-Instruct":     {109, 17, bf16},
		"meta-llama/Llama-4-Maverick-17B-128E-Instruct": {400, 17, bf16},
		"llama-70b":                      dense(70, bf16),
		"llama-70b-awq":                  dense(70, int4),
		"llama70b":                       dense(70, bf16),
		"llama-2-70b-chat-4bit":          dense(70, int4),
		"llama3.1:8b-instruct-q4_K_M":    dense(8, int4),
		"llama3.3":                       {},
		"llama-3.3":                      dense(70.6, bf16),
		"TheBloke/Llama-2-13B-chat-GPTQ": dense(13, int4),
		"hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4": dense(8, int4),
		"neuralmagic/Meta-Llama-3.1-70B-Instruct-FP8":        dense(70, fp8),
		"RedHatAI/Llama-3.3-70B-Instruct-quantized.w8a8":     dense(70.6, fp8),
		"RedHatAI/Llama-3.3-70B-Instruct-quantized.w4a16":    dense(70.6, int4),
		"RedHatAI/Qwen2.5-7B-Instruct-FP8-dynamic":           dense(7, fp8),
		"nvidia/Llama-3.3-70B-Instruct-FP4":                  dense(70.6, int4),
		"nvidia/Llama-3.1-8B-Instruct-NVFP4":                 dense(8, int4),
		"nvidia/Llama-3_3-Nemotron-Super-49B-v1_5":           dense(49, bf16),
		"nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-FP8":          {30, 3, fp8},
		"unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit":        dense(8, int4),
		"turboderp/Llama-3-8B-Instruct-exl2-4.0bpw":          dense(8, int4),
		"turboderp/Llama-3-8B-Instruct-exl2-8.0bpw":          dense(8, fp8),
		"NousResearch/Hermes-3-Llama-3.1-405B-FP8":           dense(405, fp8),
		"Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4":                 dense(7, int4),
		"Qwen/Qwen2.5-72B-Instruct-GPTQ-Int8":                dense(72, fp8),
		"Qwen/Qwen2.5-0.5B-Instruct":                         dense(0.5, bf16),
		"Qwen/Qwen2.5-7B-Instruct-1M":                        dense(7, bf16),
		"Qwen/Qwen2.5-VL-72B-Instruct-AWQ":                   dense(72, int4),
		"Qwen/Qwen2.5-Coder-32B-Instruct":                    dense(32, bf16),
		"Qwen/Qwen3-8B":                                      dense(8, bf16),
		"Qwen/Qwen3-30B-A3B":                                 {30.5, 3.3, bf16},
		"Qwen/Qwen3-30B-A3B-Instruct-2507-FP8":               {30.5, 3.3, fp8},
		"Qwen3-30B-A3B":                                      {30.5, 3.3, bf16},
		"Qwen/Qwen3-235B-A22B-Instruct-2507":                 {235, 22, bf16},
		"Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8":            {480, 35, fp8},
		"Qwen/Qwen3-Next-80B-A3B-Instruct":                   {80, 3, bf16},
		"Qwen/Qwen3-0.6B":                                    dense(0.6, bf16),
		"Qwen/Qwen1.5-MoE-A2.7B-Chat":                        {14.3, 2.7, bf16},
		"Qwen/Qwen2-57B-A14B-Instruct":                       {57, 14, bf16},
		"Qwen/QwQ-32B":                                       dense(32.8, bf16),
		"Qwen/QwQ-32B-AWQ":                                   dense(32.8, int4),
		"mistralai/Mistral-7B-Instruct-v0.3":                 dense(7, bf16),
		"mistralai/Mixtral-8x7B-Instruct-v0.1":               {46.7, 12.9, bf16},
		"mixtral-8x7b":                                       {46.7, 12.9, bf16},
		"mixtral-8x7b-instruct-4bit":                         {46.7, 12.9, int4},
		"mistralai/Mixtral-8x22B-Instruct-v0.1":              {141, 39, bf16},
		"alpindale/WizardLM-2-8x22B":                         {141, 39, bf16},
		"NousResearch/Nous-Hermes-2-Mixtral-8x7B-DPO":        {46.7, 12.9, bf16},
		"mistralai/Mistral-Small-3.2-24B-Instruct-2506":      dense(24, bf16),
		"mistralai/Mistral-Large-Instruct-2411":              dense(123, bf16),
		"mistralai/Mistral-Nemo-Instruct-2407":               dense(12.2, bf16),
		"mistralai/Codestral-22B-v0.1":                       dense(22.2, bf16),
		"mistralai/Ministral-8B-Instruct-2410":               dense(8, bf16),
		"mistralai/Devstral-Small-2507":                      dense(24, bf16),
		"openai/gpt-oss-20b":                                 {20.9, 3.6, int4},
		"openai/gpt-oss-120b":                                {116.8, 5.1, int4},
		"gpt-oss-20b":                                        {20.9, 3.6, int4},
		"deepseek-r1-distill-qwen-32b":                       dense(32, bf16),
		"deepseek-ai/DeepSeek-R1-Distill-Llama-70B":          dense(70, bf16),
		"deepseek-ai/DeepSeek-R1":                            {671, 37, fp8},
		"deepseek-ai/DeepSeek-V3-0324":                       {671, 37, fp8},
		"deepseek-ai/DeepSeek-V3.1":                          {671, 37, fp8},
		"cognitivecomputations/DeepSeek-V3-0324-AWQ":         {671, 37, int4},
		"deepseek-ai/DeepSeek-V2-Lite-Chat":                  {15.7, 2.4, bf16},
		"deepseek-r1:8b":                                     dense(8, bf16),
		"moonshotai/Kimi-K2-Instruct":                        {1026, 32, fp8},
		"moonshotai/Kimi-K2-Thinking":                        {1026, 32, int4},
		"zai-org/GLM-4.5-Air-FP8":                            {106, 12, fp8},
		"zai-org/GLM-4.6":                                    {355, 32, bf16},
		"zai-org/GLM-4-32B-0414":                             dense(32, bf16),
		"MiniMaxAI/MiniMax-M2":                               {230, 10, fp8},
		"microsoft/Phi-3.5-MoE-instruct":                     {41.9, 6.6, bf16},
		"microsoft/Phi-3-mini-128k-instruct":                 dense(3.8, bf16),
		"microsoft/phi-4":                                    dense(14.7, bf16),
		"google/gemma-2-27b-it":                              dense(27, bf16),
		"google/gemma-3-4b-it":                               dense(4, bf16),
		"google/gemma-3n-E4B-it":                             {6.9, 4, bf16},
		"CohereForAI/c4ai-command-r-plus":                    dense(104, bf16),
		"CohereForAI/c4ai-command-r7b-12-2024":               dense(8, bf16),
		"HuggingFaceTB/SmolLM2-135M-Instruct":                dense(0.135, bf16),
		"TinyLlama/TinyLlama-1.1B-Chat-v1.0":                 dense(1.1, bf16),
		"tiiuae/falcon-180B-chat":                            dense(180, bf16),
		"bigcode/starcoder2-15b":                             dense(15, bf16),
		"01-ai/Yi-1.5-34B-Chat":                              dense(34, bf16),
		"internlm/internlm2_5-20b-chat":                      dense(20, bf16),
		"upstage/SOLAR-10.7B-Instruct-v1.0":                  dense(10.7, bf16),
		"ibm-granite/granite-3.3-8b-instruct":                dense(8, bf16),
		"baidu/ERNIE-4.5-300B-A47B-PT":                       {300, 47, bf16},
		"tencent/Hunyuan-A13B-Instruct":                      {80, 13, bf16},
		"ByteDance-Seed/Seed-OSS-36B-Instruct":               dense(36, bf16),
		"/workspace/models/Qwen2.5-14B-Instruct-AWQ/":        dense(14, int4),
		"codellama34b":                                       dense(34, bf16),
		"Salesforce/xLAM-8x22b-r":                            {146.08, 40.48, bf16},
		"intfloat/e5-mistral-7b-instruct":                    dense(7, bf16),
		"bartowski/Qwen2.5-32B-Instruct-GGUF":                dense(32, int4),
		"databricks/dbrx-instruct":                           {132, 36, bf16},
		"cyankiwi/Qwen3-VL-30B-A3B-Instruct-AWQ-8bit":        {30, 3, fp8},
		"Qwen/Qwen3-VL-235B-A22B-Instruct":                   {235, 22, bf16},
	} {
		m, ok := capacity.ParseModel(name)
		if w == (want{}) {
			if ok {
				t.Errorf("%s: %+v, which the name does not tell", name, m)
			}
			continue
		}
		near := func(a, b float64) bool { return math.Abs(a/b-1) < 1e-6 }
		if !ok || !near(m.Total, w.total*1e9) || !near(m.Active, w.active*1e9) || m.Quant != w.quant {
			t.Errorf("%s: ok=%v %gB of which %gB active, %v; want %+v", name, ok, m.Total/1e9, m.Active/1e9, m.Quant, w)
		}
	}
	for _, name := range []string{
		"", "/", "my-model", "gpt-4o-mini", "claude-sonnet-4", "whisper-large-v3", "BAAI/bge-m3", "text-embedding-3-large", "default", "model",
		"b", "xb", "0b", "99999b", "a3b", "e4b", "8xb", "llama", "qwen", "v0.1", "128k", "deepseek-v4", "awq", "1m",
	} {
		if m, ok := capacity.ParseModel(name); ok {
			t.Errorf("%q was taken for %+v", name, m)
		}
	}
}

// FuzzParseModel holds it to sizes that exist, whatever the name.
func FuzzParseModel(f *testing.F) {
	for _, s := range []string{"meta-llama/Llama-3.1-70B-Instruct", "mixtral-8x7b-awq", "a..1b", "8x8x7b", "1e309b", "-", "ß70b", "gpt-oss-20b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		m, ok := capacity.ParseModel(name)
		if ok && !(m.Total >= 5e7 && m.Total <= 4e12 && m.Active > 0 && m.Active <= m.Total) {
			t.Errorf("%q: %+v", name, m)
		}
		p := capacity.Lookup(host(name, 1, name))
		if math.IsNaN(p.ITLSeconds+p.Slope+p.PrefillTokensPerSecond) || p.ITLSeconds < 0 || utf8.ValidString(name) && !utf8.ValidString(p.Source) {
			t.Errorf("%q: %+v", name, p)
		}
	})
}

// BenchmarkLookup is what one endpoint costs each time discovery sends the fleet.
func BenchmarkLookup(b *testing.B) {
	for name, ep := range map[string]*endpoint.Endpoint{
		"measured":  host("NVIDIA A100-SXM4-80GB", 1, "meta-llama/Llama-3.1-70B-Instruct-AWQ-INT4"),
		"estimated": host("RTX 6000Ada", 4, "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8"),
		"default":   host("", 0, "my-model"),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				capacity.Lookup(ep)
			}
		})
	}
}
