package router

import (
	"fmt"
	"strings"
	"time"

	"headrace/router/affinity"
	"headrace/router/endpoint"
)

// Request is what Pick needs to know.
type Request struct {
	ID    string        // for Decisions
	Model string        // or a Pool of one
	Now   time.Time     // when it is asked, by the Router's clock; zero asks the clock
	Came  time.Time     // when the gateway got the request: what it waited since counts against the SLO; zero means Now
	Tried []endpoint.ID // endpoints that failed this request already: not picked while another lives

	Route     string // path below /v1, such as "/chat/completions"; "" for any
	BodyBytes int64
	Media     bool // the prompt holds images, audio or files
	// Beyond names what the request holds that is more than a prompt and sampling parameters (endpoint.BeyondPlain): hosts
	// that are Plain do not get it. "" for nothing.
	Beyond string
	Demand Demand
	Also   *Demand // what the caller's key demands beside that; nil for nothing. Nobody changes it

	PromptTokens int // of the whole prompt, as far as can be told; 0 makes it BodyBytes/4
	MaxTokens    int // most output tokens that the caller takes; 0 for no such limit
	Affinity     affinity.Key
	SLO          SLO    // its zero fields are the model's
	Policy       Policy // PolicyDefault is the model's
	// Resumed says that the caller is reading the stream already and the request continues it: no cold start may come in
	// between, and the time to the first token was kept or missed before.
	Resumed bool
	// Continue is set for a stream that broke and is to be continued from what was delivered; it implies Resumed. Only a host that
	// serves the same model and is known to go on with an unfinished answer may, and none that failed the request before.
	Continue *Continuation
	// Whole says that the answer comes in one piece, so that nobody sees its first token.
	Whole bool
	// Firm says that somebody else can be asked than the hosts of Model: none is tried again, and none that is failing is asked
	// because nobody else is left.
	Firm bool
	// Batch says that nobody watches: of the time that it waited before it was picked, nothing counts against the SLO.
	Batch bool
	// Waited says that the request has stood in a queue for want of room. Where somebody asked for an SLO it gets only a host that is
	// expected to keep it in the time that is left: crowding one more host for an answer that comes late makes others late.
	Waited bool
	// Spare is the share of what keeps the SLO at a host that is kept free of this request, in [0,1), for others that come: it gets a
	// host with more room than that, or one that has nothing to do, and no worker is started for it while somebody is up. 0 keeps
	// nothing free.
	Spare float64
	// Sequences is how many answers the engine computes side by side for the request, such as its n; 0 is one.
	Sequences int
	// Tokenless says that the answer is not made of output tokens: embeddings, scores, images. No TPS is promised then.
	Tokenless bool
}

// SLO is what a caller is promised. A zero field promises nothing, or leaves it to whoever is asked next: the request's
// header, then the model, then DefaultSLO.
type SLO struct {
	TTFT       time.Duration // from Came to the first content token
	TPS        float64       // tokens per second of one stream
	Confidence float64       // share of requests that must keep each of the two, in (0,1)
}

// DefaultSLO is what is promised where nobody says otherwise.
func DefaultSLO() SLO { return SLO{TTFT: 2 * time.Second, TPS: 15, Confidence: 0.9} }

// or fills in what s leaves open.
func (s SLO) or(t SLO) SLO {
	if s.TTFT <= 0 {
		s.TTFT = t.TTFT
	}
	if !(s.TPS > 0) { //nolint:staticcheck // NaN is not above 0 either
		s.TPS = t.TPS
	}
	if !(s.Confidence > 0 && s.Confidence < 1) { //nolint:staticcheck // likewise
		s.Confidence = t.Confidence
	}
	return s
}

// Policy is what is looked for among the endpoints that keep the SLO.
type Policy uint8

// Policies.
const (
	PolicyDefault  Policy = iota
	PolicyCost            // the least marginal cost
	PolicyLatency         // the earliest first token, then the fastest stream
	PolicyBalanced        // marginal cost and time together, at USDPerSecond
	PolicyWeighted        // drawn at random, by the inverse square of the full-load price
	numPolicies
)

var policyNames = [numPolicies]string{"", "cost", "latency", "balanced", "weighted"}

// String returns the word used in config, headers and decisions.
func (p Policy) String() string {
	if p < numPolicies {
		return policyNames[p]
	}
	return fmt.Sprintf("invalid(%d)", uint8(p))
}

// ParsePolicy reads a policy's word, whatever its case.
func ParsePolicy(s string) (Policy, bool) {
	for p := PolicyCost; p < numPolicies; p++ {
		if strings.EqualFold(s, policyNames[p]) {
			return p, true
		}
	}
	return PolicyDefault, false
}

// USDPerSecond is what PolicyBalanced pays for each second that a whole answer, from Came to its last token, comes sooner:
// about what a person who waits for it costs at $3.60 an hour.
const USDPerSecond = 0.001
