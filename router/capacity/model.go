package capacity

import (
	"math"
	"strconv"
	"strings"
)

// Quant is how a model's weights are stored.
type Quant uint8

// Quants.
const (
	BF16 Quant = iota // 16 bits, bf16 or fp16
	FP8               // 8 bits, floats or integers
	INT4              // about 4 bits: AWQ, GPTQ, MXFP4, NVFP4, GGUF and the like
)

// String returns the word used in catalogue.csv.
func (q Quant) String() string { return [...]string{"bf16", "fp8", "4bit"}[min(q, INT4)] }

// bytes of one parameter, scales included.
func (q Quant) bytes() float64 { return [...]float64{2, 1, 0.5625}[min(q, INT4)] }

// Model is what a model's name tells of its size.
type Model struct {
	Total  float64 // parameters
	Active float64 // parameters that one token uses; fewer than Total in a mixture of experts
	Quant  Quant
	Stated bool    // the name, or the model's makers, say which Quant
	KV     float64 // bytes of KV cache for one token, 0 when only the size can tell
}

// family is a model whose name does not tell its size, or not all of it.
type family struct {
	name   string  // words of the name, in a row
	total  float64 // billions
	active float64 // billions; 0 for all of them
	quant  Quant   // as its makers publish it
	kv     float64 // KiB of KV cache for one token, where the size is no guide to it; 0 otherwise
	always bool    // a size in the name is another one than the total
}

// families are sought in this order. Sizes are from the models' cards at huggingface.co, read 2026-11.
var families = []family{
	{"gpt-oss-120b", 116.8, 5.1, INT4, 72, false},
	{"gpt-oss-20b", 20.9, 3.6, INT4, 48, false},
	{"deepseek-coder-v2-lite", 15.7, 2.4, BF16, 30, false},
	{"deepseek-v2-lite", 15.7, 2.4, BF16, 30, false},
	{"deepseek-coder-v2", 236, 21, BF16, 68, false},
	{"deepseek-v2", 236, 21, BF16, 68, false},
	{"deepseek-v2.5", 236, 21, BF16, 68, false},
	{"deepseek-v3", 671, 37, FP8, 69, false},
	{"deepseek-v3.1", 671, 37, FP8, 69, false},
	{"deepseek-v3.2", 671, 37, FP8, 69, false},
	{"deepseek-r1", 671, 37, FP8, 69, false},
	{"kimi-k2-thinking", 1026, 32, INT4, 69, false},
	{"kimi-k2", 1026, 32, FP8, 69, false},
	{"glm-4.5-air", 106, 12, BF16, 184, false},
	{"glm-4.5", 355, 32, BF16, 368, false},
	{"glm-4.6", 355, 32, BF16, 368, false},
	{"minimax-m2", 230, 10, FP8, 248, false},
	{"minimax-m1", 456, 45.9, BF16, 0, false},
	{"minimax-text-01", 456, 45.9, BF16, 0, false},
	{"llama-4-scout", 109, 17, BF16, 192, true},
	{"llama-4-maverick", 400, 17, BF16, 192, true},
	{"llama-3.3", 70.6, 0, BF16, 320, false},
	{"mixtral-8x22b", 141, 39, BF16, 224, true},
	{"mixtral-8x7b", 46.7, 12.9, BF16, 128, true},
	{"wizardlm-2-8x22b", 141, 39, BF16, 224, true},
	{"mistral-nemo", 12.2, 0, BF16, 160, false},
	{"mistral-small", 24, 0, BF16, 160, false},
	{"magistral-small", 24, 0, BF16, 160, false},
	{"devstral-small", 24, 0, BF16, 160, false},
	{"devstral", 24, 0, BF16, 160, false},
	{"codestral", 22.2, 0, BF16, 224, false},
	{"mistral-large", 123, 0, BF16, 352, false},
	{"pixtral-large", 124, 0, BF16, 352, false},
	{"phi-3.5-moe", 41.9, 6.6, BF16, 128, false},
	{"phi-3.5-mini", 3.8, 0, BF16, 384, false},
	{"phi-3.5-vision", 4.2, 0, BF16, 384, false},
	{"phi-3-mini", 3.8, 0, BF16, 384, false},
	{"phi-3-small", 7.4, 0, BF16, 128, false},
	{"phi-3-medium", 14, 0, BF16, 200, false},
	{"phi-4-mini", 3.8, 0, BF16, 128, false},
	{"phi-4-multimodal", 5.6, 0, BF16, 128, false},
	{"phi-4", 14.7, 0, BF16, 200, false},
	{"phi-2", 2.8, 0, BF16, 320, false},
	{"command-r-plus", 104, 0, BF16, 256, false},
	{"command-a", 111, 0, BF16, 256, false},
	{"command-r7b", 8, 0, BF16, 128, false},
	{"command-r", 35, 0, BF16, 160, false},
	{"qwq", 32.8, 0, BF16, 256, false},
	{"qwen3-coder-next", 80, 3, BF16, 24, false},
	{"qwen3-next", 80, 3, BF16, 24, false},
	{"qwen3-30b", 30.5, 3.3, BF16, 96, false},
	{"qwen3-235b", 235, 22, BF16, 188, false},
	{"qwen1.5-moe-a2.7b", 14.3, 2.7, BF16, 192, false},
	{"hunyuan-a13b", 80, 13, BF16, 128, false},
	{"dbrx", 132, 36, BF16, 160, false},
	{"grok-1", 314, 86, BF16, 256, false},
	{"jamba-1.5-mini", 52, 12, BF16, 16, false},
	{"jamba-1.5-large", 398, 94, BF16, 36, false},
	{"gemma-3n-e4b", 6.9, 4, BF16, 40, true},
	{"gemma-3n-e2b", 4.5, 2, BF16, 32, true},
}

// Sizes that models of text have, in billions of parameters: what lies outside is no size.
const (
	smallestModel = 0.05
	largestModel  = 4000
)

// ParseModel reads size and quantisation from the name under which a model is served, such as
// "meta-llama/Llama-3.1-70B-Instruct", "llama-70b-awq", "Qwen/Qwen3-30B-A3B-FP8" or "llama3.1:8b-instruct-q4_K_M". ok is false
// when the name tells no size.
func ParseModel(name string) (m Model, ok bool) {
	name = strings.ToLower(name)
	if i := strings.LastIndexByte(strings.TrimRight(name, "/"), '/'); i >= 0 {
		name = strings.TrimRight(name, "/")[i+1:]
	}
	var room [96]byte
	words := append(room[:0], '-')
	for i := range len(name) { // words parted by "-"; a dot is part of a word between digits only
		c := name[i]
		dot := c == '.' && i > 0 && i+1 < len(name) && digit(name[i-1]) && digit(name[i+1])
		if !dot && !digit(c) && (c < 'a' || c > 'z') {
			c = '-'
		}
		if c != '-' || words[len(words)-1] != '-' {
			words = append(words, c)
		}
	}
	if words[len(words)-1] != '-' {
		words = append(words, '-')
	}
	norm := string(words)

	var said sizes
	for w := range strings.SplitSeq(norm, "-") {
		said.word(w)
	}
	m = Model{Total: said.total, Active: said.active, Quant: said.quant, Stated: said.quantSaid}
	if f := findFamily(norm); f != nil && (said.total == 0 || f.always || math.Abs(said.total-f.total) <= f.total/4) {
		m.Total, m.Active, m.KV = f.total, f.active, f.kv*1024
		if !m.Stated && f.quant != BF16 {
			m.Quant, m.Stated = f.quant, true
		}
	}
	if m.Active == 0 {
		m.Active = m.Total
	}
	if !within(m.Total, smallestModel, largestModel) || m.Active > m.Total {
		return Model{}, false
	}
	m.Total *= 1e9
	m.Active *= 1e9
	return m, true
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

func findFamily(norm string) *family {
	for i := range families {
		f := &families[i]
		for at := 0; ; {
			j := strings.Index(norm[at:], f.name)
			if j < 0 {
				break
			}
			begin, end := at+j, at+j+len(f.name)
			if norm[begin-1] == '-' && norm[end] == '-' { // norm begins and ends with one
				return f
			}
			at = end
		}
	}
	return nil
}

// sizes is what single words of a name say.
type sizes struct {
	total, active float64 // billions
	quant         Quant
	quantSaid     bool
}

// word takes in one word of lower case letters, digits and dots.
func (s *sizes) word(w string) {
	if q, ok := quantWord(w); ok {
		if !s.quantSaid || q == FP8 && w != "fp8" { // "gptq-int8": the second word is the exact one
			s.quant, s.quantSaid = q, true
		}
		return
	}
	if len(w) < 2 {
		return
	}
	unit := w[len(w)-1]
	if unit != 'b' && unit != 'm' {
		return
	}
	begin := len(w) - 1
	for begin > 0 && (digit(w[begin-1]) || w[begin-1] == '.') {
		begin--
	}
	v, err := strconv.ParseFloat(w[begin:len(w)-1], 64)
	if err != nil {
		return
	}
	before := w[:begin]
	if unit == 'm' { // "135m"; "1m" is a context length
		if before == "" && v >= 50 && s.total == 0 {
			s.total = v / 1000
		}
		return
	}
	switch {
	case before == "a": // "a3b": active
		s.active = v
	case before == "e": // experts, or effective parameters
	case strings.HasSuffix(before, "x"): // "8x7b": the experts share their attention
		if n, err := strconv.ParseFloat(strings.TrimLeft(strings.TrimSuffix(before, "x"), "abcdefghijklmnopqrstuvwxyz"), 64); err == nil && n > 1 {
			s.total, s.active = 0.83*n*v, min(2, n)*0.92*v
		}
	case s.total == 0:
		s.total = v
	}
}

// quantWord tells whether a word names a quantisation.
func quantWord(w string) (Quant, bool) {
	switch w {
	case "awq", "gptq", "int4", "4bit", "w4a16", "w4a8", "w4afp8", "nf4", "fp4", "nvfp4", "mxfp4", "bnb", "gguf", "exl2", "exl3", "hqq", "autoround",
		"q4", "q3", "q2", "q5", "iq4", "iq3", "iq2", "iq1", "3bit", "2bit", "u4", "marlin":
		return INT4, true
	case "fp8", "int8", "8bit", "w8a8", "w8a16", "q8", "q6", "fp8dynamic", "mxfp8":
		return FP8, true
	case "bf16", "fp16", "f16":
		return BF16, true
	}
	if bpw, ok := strings.CutSuffix(w, "bpw"); ok { // bits per weight, of exl2
		if v, err := strconv.ParseFloat(bpw, 64); err == nil && v > 5.5 {
			return FP8, true
		}
		return INT4, true
	}
	return BF16, false
}
