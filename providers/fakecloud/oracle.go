package fakecloud

import (
	"hash/fnv"
	"io"
	"math"
	"strconv"
	"strings"
)

// Lengths of answers and reasoning that nobody limited, in tokens.
const (
	minNatural, maxNatural     = 16, 200
	minReasoning, maxReasoning = 8, 40
)

// words are most tokens. Even positions of an answer use even entries and odd positions odd ones, so that two
// neighbours are never the same: a doubled or swapped token shows at once.
var words = [...]string{
	" water", " wheel", " the", " stone", " over", " runs", " mill", " slowly", " before", " dam", " and", " turns",
	" through", " gate", " a", " river", " with", " power", " under", " weir", " of", " gravel", " into", " race",
	" from", " sluice", " that", " holds", " every", " morning", " grain", " without", " light", " cold", " they",
	" measure", " depth", " against", " winter", " ice", " where", " flow", " is", " steady", " but", " never",
	" still", " until", " spring", " opens", " it", " again", " ,", " .", " one", " two", " hundred", " litres",
	" per", " second", " fall", " by", " head", " naïve", " café", " größer", " ligne", " año", " żuraw", " мельница",
	" νερό", " 水車", " 川の流れ", " 물레방아", " नदी", " طاحونة", "ing", "ed", "s", "'s", "-", " (", ")", ":",
}

// rare are tokens that break careless code: characters of four bytes, joined and combined ones, quotes,
// backslashes, line ends and text that looks like the protocol around it.
var rare = [...]string{
	" 🦊", "\n", " \"", "\"", " 👩‍🚀", "\n\n", " 🌊", "\\", "\t", " 🇫🇮", " e\u0301", " <b>", " &amp;", " 👍🏽", " 𝔘", "\u2028",
	" data:", " [DONE]", " {\"a\":1}", "\r\n", " 🏞️", " \u00a0", " %s", " \\n",
}

// oracle knows one answer, token by token.
type oracle struct{ seed uint64 }

func newOracle(model, prompt string) oracle { return oracle{hash(model, prompt)} }

// hash is FNV-1a over the parts, with a byte between them that no UTF-8 text has.
func hash(parts ...string) uint64 {
	h := fnv.New64a()
	for _, p := range parts {
		_, _ = io.WriteString(h, p)
		_, _ = h.Write([]byte{0xff})
	}
	return h.Sum64()
}

// mix is the finalizer of splitmix64: it spreads x over all 64 bits.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

func (o oracle) number(i int) uint64 { return mix(o.seed + uint64(i+1)*0x9e3779b97f4a7c15) }

func (o oracle) token(i int) string {
	h := o.number(i)
	list := words[:]
	if h>>56 < 24 { // about one in eleven
		list = rare[:]
	}
	t := list[2*int(h%uint64(len(list)/2))+i&1]
	if i == 0 {
		t = strings.TrimPrefix(t, " ")
	}
	return t
}

func (o oracle) text(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(o.token(i))
	}
	return b.String()
}

// natural is the length of the answer when nobody limits it.
func (o oracle) natural() int {
	return minNatural + int(mix(o.seed^0x6e61)%(maxNatural-minNatural+1))
}

// locate finds where the answer goes on after sent: at the byte within of token next. ok is false when the answer
// does not begin with sent.
func (o oracle) locate(sent string) (next, within int, ok bool) {
	for sent != "" {
		t := o.token(next)
		if len(sent) < len(t) {
			return next, len(sent), strings.HasPrefix(t, sent)
		}
		if !strings.HasPrefix(sent, t) {
			return next, 0, false
		}
		sent = sent[len(t):]
		next++
	}
	return next, 0, true
}

// Token is token i, from 0, of the answer that model gives to prompt. The prompt of a chat is the text of its
// messages joined by line ends; that of a completion ends at its last "\nA:", if there is one; see also Choice.
func Token(model, prompt string, i int) string { return newOracle(model, prompt).token(i) }

// Answer is the first n tokens of the answer that model gives to prompt.
func Answer(model, prompt string, n int) string { return newOracle(model, prompt).text(n) }

// AnswerTokens is how many tokens model answers to prompt when the request sets no limit: 16 to 200.
func AnswerTokens(model, prompt string) int { return newOracle(model, prompt).natural() }

// Position says where the answer of model to prompt goes on after sent: token next, of which within bytes were sent.
// ok is false when the answer does not begin with sent.
func Position(model, prompt, sent string) (next, within int, ok bool) {
	return newOracle(model, prompt).locate(sent)
}

// Choice is the prompt whose answer is choice i of a request with n > 1; choice 0 is that of the prompt itself.
func Choice(prompt string, i int) string {
	if i == 0 {
		return prompt
	}
	return prompt + "\nchoice " + strconv.Itoa(i)
}

// Reasoning is what a model whose name contains "reason" thinks before it answers prompt.
func Reasoning(model, prompt string) string {
	o, n := reasoningOf(model, prompt)
	return o.text(n)
}

func reasoningOf(model, prompt string) (oracle, int) {
	o := newOracle(model, "thoughts about "+prompt)
	return o, minReasoning + int(mix(o.seed)%(maxReasoning-minReasoning+1))
}

// CountTokens is how many tokens a host counts for a prompt: one for every four bytes begun.
func CountTokens(prompt string) int { return max(1, (len(prompt)+3)/4) }

// countBegun is how many tokens a host counts for a prompt and the beginning of model's answer to it, whose tokens are those of the
// answer; ok is false when the answer does not begin with sent.
func countBegun(model, prompt, sent string) (n int, ok bool) {
	next, within, ok := Position(model, prompt, sent)
	if !ok {
		return CountTokens(prompt + sent), false
	}
	return CountTokens(prompt) + next + min(1, within), true
}

// DefaultDimensions is the length of an embedding when the request does not set it.
const DefaultDimensions = 64

// Vector is the embedding, of length 1, that model gives input.
func Vector(model, input string, dimensions int) []float32 {
	o := newOracle(model, "embedding of "+input)
	v := make([]float32, dimensions)
	var sum float64
	for i := range v {
		x := float64(o.number(i)>>11)/(1<<53)*2 - 1
		v[i] = float32(x)
		sum += x * x
	}
	if sum > 0 {
		norm := float32(1 / math.Sqrt(sum))
		for i := range v {
			v[i] *= norm
		}
	}
	return v
}

// Speech is the sound that model makes of input: bytes of no format, 16000 and 160 more for each byte of input.
func Speech(model, input string) []byte {
	o := newOracle(model, "speech of "+input)
	b := make([]byte, 16000+160*len(input))
	for i := range b {
		b[i] = byte(o.number(i/8) >> (8 * (i % 8)))
	}
	return b
}
