package capacity

import "math"

// Constants of the estimate. They were fitted to the lines of catalogue.csv, which Estimate meets within a factor of 2 in
// tokens per second; TestEstimate shows each.
const (
	denseShare    = 0.85  // of the memory's bandwidth that reading weights of 16 or 8 bits reaches
	packedShare   = 0.65  // likewise weights of 4 bits, which are unpacked on the way
	expertsShare  = 0.6   // likewise a mixture of experts of 16 or 8 bits
	packedExperts = 0.4   // and of 4 bits
	kvShare       = 0.7   // likewise the KV cache
	stepSeconds   = 0.001 // of the scheduler and the kernels' starts for one token
	layerSeconds  = 8e-6  // further, for each layer
	gateSeconds   = 60e-6 // further, for each layer of a mixture of experts
	nvlinkSeconds = 15e-6 // for each of a layer's two sums over several GPUs
	pcieSeconds   = 35e-6
	prefillShare  = 0.45 // of the tensor cores' speed while prompts are read
	expertPrefill = 0.3  // likewise by a mixture of experts
	prefillLink   = 0.8  // of that, for each doubling of GPUs
	stallShare    = 0.5  // of a prompt's time that streams next to it wait
	usableVRAM    = 0.9  // vLLM's gpu_memory_utilization
	reservedVRAM  = 1.5e9
	estimatedTTFT = 0.2 // seconds: the way there and back, the tokenizer, the scheduler

	// The usual request: what it reads and writes, and how long its sequence may get.
	usualPrompt   = 430.0
	usualAnswer   = 233.0
	usualContext  = usualPrompt + usualAnswer/2
	usualSequence = 2048.0

	mostSequences = 256 // vLLM's default --max-num-seqs
	minSequences  = 4
	mostPrefill   = 1e5  // prompt tokens per second: tokenizer and scheduler are no faster
	leastSlope    = 1e-3 // each stream has to be sampled and sent
)

// layers of a model: 32 at 8 billion parameters, 80 at 70 billion.
func (m *Model) layers() float64 { return 32 * math.Pow(m.shape()/8e9, 0.42) }

// shape is the size of the dense model that has about as many layers.
func (m *Model) shape() float64 {
	if m.experts() {
		return math.Sqrt(m.Total * m.Active)
	}
	return m.Total
}

func (m *Model) experts() bool { return m.Active < 0.8*m.Total }

// kv is the bytes of KV cache of one token at 16 bits: 128 KiB at 8 billion parameters, 320 KiB at 70 billion.
func (m *Model) kv() float64 {
	if m.KV > 0 {
		return m.KV
	}
	kv := 131072 * math.Pow(m.shape()/8e9, 0.42)
	if m.experts() {
		kv /= 2
	}
	return kv
}

// fitted returns m with the quantisation that it must have to fit, where its name tells none.
func (m Model) fitted(vram float64) Model {
	for !m.Stated && m.Quant < INT4 && m.Total*m.Quant.bytes()+reservedVRAM > usableVRAM*vram {
		m.Quant++
	}
	return m
}

// Estimate is what count GPUs that serve a model together are expected to do, from first principles: a stream alone is bound
// by reading the weights that each token uses, prompts by arithmetic, sequences by memory. Expect it to be wrong by up to a
// factor of 2 in either direction; slope and MaxNumSeqs by up to 4, for they depend on prompts and settings.
func Estimate(g *GPU, count int, m Model) Prior {
	n := float64(max(1, count))
	m = m.fitted(g.VRAM * n)
	share := denseShare
	switch {
	case m.experts() && m.Quant == INT4:
		share = packedExperts
	case m.experts():
		share = expertsShare
	case m.Quant == INT4:
		share = packedShare
	}
	itl := m.Active*m.Quant.bytes()/(g.Bandwidth*n*share) + stepSeconds + m.layers()*layerSeconds
	if m.experts() {
		itl += m.layers() * gateSeconds
	}
	if n > 1 {
		sum := pcieSeconds
		if g.NVLink {
			sum = nvlinkSeconds
		}
		itl += 2 * m.layers() * sum
	}
	flops := g.FLOPS * n * math.Pow(prefillLink, math.Log2(n))
	if m.Quant == FP8 && g.FP8 {
		flops *= 2
	}
	mfu := prefillShare
	if m.experts() {
		mfu = expertPrefill
	}
	prefill := min(mostPrefill, flops*mfu/(2*m.Active))
	b := usualContext*m.kv()/(g.Bandwidth*n*kvShare) + usualPrompt/usualAnswer*stallShare/prefill
	free := usableVRAM*g.VRAM*n - m.Total*m.Quant.bytes() - reservedVRAM
	seqs := max(minSequences, min(mostSequences, free/(m.kv()*usualSequence)))
	return Prior{
		ITLSeconds: itl, Slope: max(leastSlope, b/itl), TTFTSeconds: estimatedTTFT, PrefillTokensPerSecond: prefill, MaxNumSeqs: int(seqs),
	}
}
