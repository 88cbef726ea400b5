package stats

import (
	"math"
	"time"
)

// Observation is one request, as it was settled.
type Observation struct {
	// At is when the request was accepted. Units are only held to their arms' weights when all of their time must have been settled
	// (Design.Settle), for the requests of a slow arm come in later; of a zero At at once.
	At time.Time
	// Unit is a hash of the unit; those of different units may be taken to differ. It may be the one that assigns arms.
	Unit uint64
	Arm  int // that the unit is assigned, whoever served it (intention to treat)
	// Epoch tells by which weights the arm was drawn: what Experiment.Epoch was then. 0 means those in force when it is recorded, which is
	// right only of requests that take no time: one that was under way when weights changed has to say by which it found its arm.
	Epoch int
	// Forced says that the arm was asked for, not drawn: the request is counted and not compared.
	Forced bool

	Block uint64 // what it may be compared with: BlockOf
	// Load is the share of the host's safe concurrency that was in use when it was picked, NaN when unknown. Within a block, what the
	// control's own requests show of its effect is taken away.
	Load float64
	Host uint32 // the caller's number of the host that answered, 0 for none

	Failed    bool // by the host's or our fault; neither the caller's leaving nor its bad request
	Missed    bool // an SLO was promised and not kept
	Truncated bool
	Cold      bool // a worker started for it: its TTFT, TPS and USD are not compared
	Preempted bool // a host was taken away under it: likewise
	OutOfArm  bool // served outside its arm, which had no host: likewise

	TTFT float64 // seconds; NaN, like all figures here, when unknown
	TPS  float64 // output tokens per second
	// USDPerMtok is dollars per million output tokens: of a host that is paid by the hour, at full load, for what an idle hour costs is
	// nobody's who came by.
	USDPerMtok float64
	// USDUnsure is the standard deviation of its logarithm that all requests of an arm's hosts share, because a full engine was expected
	// and not seen; 0 of what was billed.
	USDUnsure float64
	Score     float64 // feedback, from 0, the worst, to 1

	SpentUSD     float64 // for the arm's money; NaN when unknown
	Metered      bool    // it was spent because of the request, on a worker or an API; otherwise the host was paid for anyway
	OutputTokens int64
	Resumes      int
}

// Unknown is an observation of which only unit and arm are known.
func Unknown(unit uint64, arm int) Observation {
	nan := math.NaN()
	return Observation{Unit: unit, Arm: arm, Load: nan, TTFT: nan, TPS: nan, USDPerMtok: nan, Score: nan, SpentUSD: nan}
}

// unsure is USDUnsure, where it is a number that may be.
func (o *Observation) unsure() float64 {
	if !(o.USDUnsure > 0) { //nolint:staticcheck // NaN
		return 0
	}
	return min(o.USDUnsure, 1)
}

// BlockOf is the block of a request: kind is the caller's number of the hosts' kind (GPU type and count, say, but not what
// the arms differ in), promptTokens 0 when unknown, use the share of the host's safe concurrency that was in use when it
// was picked, NaN when unknown. Prompts are alike within a factor of four, loads within a quarter of what is safe.
func BlockOf(kind uint32, promptTokens int64, use float64) uint64 {
	prompt := uint64(0)
	for edge := int64(64); promptTokens > 0; edge *= 4 {
		prompt++
		if promptTokens <= edge || prompt == 9 {
			break
		}
	}
	load := uint64(0)
	if use >= 0 {
		load = 1 + uint64(min(4, use*4))
	}
	return uint64(kind)<<32 | prompt<<8 | load
}

// Whole is the block of answers in one piece that are otherwise of the given one: their time is that of the whole answer, which says nothing
// beside the first token's of a stream.
func Whole(block uint64) uint64 { return block | 1<<16 }

// kindOf is the kind of a block's hosts.
func kindOf(block uint64) uint32 { return uint32(block >> 32) } //nolint:gosec // the upper half

// mix is splitmix64's finaliser: whatever order x stands in to others, the result stands in another.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
