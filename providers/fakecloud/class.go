package fakecloud

import (
	"math/rand/v2"
	"time"
)

// Range is a figure known by its limits.
type Range struct{ Low, High float64 }

// Mid is the middle of the range.
func (r Range) Mid() float64 { return (r.Low + r.High) / 2 }

func (r Range) draw(rng *rand.Rand) float64 { return r.Low + rng.Float64()*(r.High-r.Low) }

// Offer is what one provider's hosts of a class do and cost.
type Offer struct {
	TPS        Range // tokens per second of one stream on an idle host
	TTFT       Range // milliseconds to the first token of a short prompt on an idle host
	USDPerHour Range
}

// Class is a kind of host: a GPU that serves a model.
type Class struct {
	Name       string // as flags and configs call it
	GPU        string // marketing name without vendor
	GPUCount   int
	Model      string  // id it serves unless told otherwise
	BatchCost  float64 // b/a of ITL(n) = a + b·n: what each further sequence costs, in parts of the fixed share
	PrefillTPS float64 // prompt tokens per second
	MaxNumSeqs int     // sequences at once; more wait
	RunPod     Offer
	Vast       Offer
	KVPerSeq   int // tokens of KV cache for each of MaxNumSeqs
}

// Models of the classes.
const (
	llama70B = "llama-2-70b-chat-4bit"
	mixtral  = "mixtral-8x7b-instruct-4bit"
)

// Classes are the kinds of hosts there are. TPS, TTFT and prices are illustrative figures of late 2023 and early
// 2024 for RunPod and Vast.ai; batch cost, prefill speed and batch limits are assumed.
var Classes = [...]Class{
	{
		"a100-llama-70b", "A100 80GB", 1, llama70B, 0.04, 1200, 48,
		Offer{Range{30, 40}, Range{200, 300}, Range{1.50, 2.00}},
		Offer{Range{25, 45}, Range{250, 400}, Range{0.70, 1.20}},
		2048,
	},
	{
		"a100-mixtral", "A100 80GB", 1, mixtral, 0.04, 5000, 48,
		Offer{Range{50, 70}, Range{150, 250}, Range{1.50, 2.00}},
		Offer{Range{45, 75}, Range{180, 350}, Range{0.70, 1.20}},
		2048,
	},
	{
		"2x4090-llama-70b", "RTX 4090", 2, llama70B, 0.06, 900, 12,
		Offer{Range{20, 30}, Range{350, 500}, Range{0.70, 1.00}},
		Offer{Range{18, 35}, Range{400, 600}, Range{0.30, 0.60}},
		2048,
	},
	{
		"h100-llama-70b", "H100 80GB", 1, llama70B, 0.03, 3000, 64,
		Offer{Range{45, 60}, Range{150, 250}, Range{2.50, 3.50}},
		Offer{Range{40, 65}, Range{180, 300}, Range{1.50, 2.50}},
		2048,
	},
	{
		"h100-mixtral", "H100 80GB", 1, mixtral, 0.03, 12000, 64,
		Offer{Range{80, 100}, Range{100, 180}, Range{2.50, 3.50}},
		Offer{Range{75, 110}, Range{120, 220}, Range{1.50, 2.50}},
		2048,
	},
}

// ClassNamed finds a class by its name.
func ClassNamed(name string) (Class, bool) {
	for _, c := range Classes {
		if c.Name == name {
			return c, true
		}
	}
	return Class{}, false
}

// Offer returns what a provider's hosts of the class do and cost: "vast", or RunPod's for any other word.
func (c Class) Offer(provider string) Offer {
	if provider == "vast" {
		return c.Vast
	}
	return c.RunPod
}

// speed is how fast one host is; all in real seconds, before any time scale.
type speed struct {
	a, b       float64       // ITL(n) = a + b·n seconds per token with n sequences in the batch
	ttft       time.Duration // before the first token, besides prefill and queueing
	prefillTPS float64
}

// newSpeed is the speed of a host that makes tps tokens a second for one stream alone.
func newSpeed(tps float64, ttft time.Duration, c Class) speed {
	a := 1 / (tps * (1 + c.BatchCost))
	return speed{a: a, b: c.BatchCost * a, ttft: ttft, prefillTPS: c.PrefillTPS}
}

func (s speed) itl(n int) time.Duration {
	return time.Duration((s.a + s.b*float64(n)) * float64(time.Second))
}
