// Package ledger keeps what each request used, cost and met. Here it is the last requests in
// memory; the durable ledger will take the same records.
package ledger

import (
	"sync"
	"time"

	"headrace/gateway/admission/queue"
	"headrace/gateway/trace"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/experiment"
	"headrace/router/outcome"
)

// MaxAttempts bounds the attempts that a record names. Of more the last one is named in the place of those before it.
const MaxAttempts = 8

// Attempt is one try at one endpoint.
type Attempt struct {
	Endpoint endpoint.ID
	Class    outcome.Class
	Status   int           // upstream HTTP status, 0 when none came
	After    time.Duration // it began that long after Record.At
	First    time.Duration // from its begin to its first content token, 0 when none came
	Duration time.Duration
	Output   int64   // tokens that came of it, estimated where the host did not say; 0 when none did or nobody knows
	USD      float64 // share of the host's bill, when USDKnown
	USDKnown bool
	Resumed  bool  // it was asked to go on with the answer of those before
	Offset   int64 // with Resumed: tokens of the answer that there were by then
	Exact    bool  // with Resumed: it was told the numbers of these tokens, and of the prompt's, instead of text
	Span     trace.SpanID
	Provider string                 // as in Record, as is Served; "" where no lease was held
	Served   string                 // of the model
	Decision router.Decision        // why it went there, and what was expected of it; zero where no lease was held
	AnswerID string                 // of chats and completions, as the host named its answer, where that is known and the attempt may be traced
	Worker   *endpoint.WorkerReport // what the provider told of the work; nil for most, and never changed
	Hedge    bool                   // it was made beside another one, because that was late
	Usage
}

// Usage is what an attempt took from its host. Of attempts that held no lease nothing is known.
type Usage struct {
	// Counted says that the host reported Prompt, Cached and Reasoning. Else Prompt is estimated from the prompt's bytes, and is 0
	// where the host did no work on it as far as can be told; the others are 0.
	Counted                   bool
	Prompt, Cached, Reasoning int64          // tokens; Prompt has those cached too
	Basis                     endpoint.Basis // what its host is paid for
	Share                     time.Duration  // of the host's time: the attempt's, where others ran beside it parted among them
	PromptUSD                 float64        // share of USD that is the prompt's: before the first token, or by the prices of tokens
	TrafficUSD                float64        // share of USD that is for bytes
	Guessed                   bool           // USD rests on tokens that nobody reported
}

// GapBounds are the upper bounds of Gaps, in seconds: those of OpenTelemetry's gen_ai.client.operation.time_per_output_chunk.
var GapBounds = [...]float64{0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92}

// Gaps counts the gaps between output tokens as they arrived, by size; the last count is of all beyond the last bound.
type Gaps struct {
	N   [len(GapBounds) + 1]uint32
	Sum time.Duration // within an eighth
}

// Phase is how far a request had come.
type Phase uint8

// Phases.
const (
	BeforeAnswer     Phase = iota // no host had begun to answer
	BeforeFirstToken              // one had, and the caller had nothing of it
	Streaming                     // the caller had its first token
)

// String returns the word used in metrics.
func (p Phase) String() string {
	return [...]string{"before_answer", "before_first_token", "streaming"}[p]
}

// Told is what the provider told of the work, empty where it told nothing.
func (a *Attempt) Told() endpoint.WorkerReport {
	if a.Worker == nil {
		return endpoint.WorkerReport{}
	}
	return *a.Worker
}

// Note returns where the next attempt is to be written down. The caller counts it in Tries.
func (r *Record) Note() *Attempt {
	if len(r.Attempts) < MaxAttempts {
		r.Attempts = append(r.Attempts, Attempt{})
	}
	return &r.Attempts[len(r.Attempts)-1]
}

// Record is one request, settled once. Counts are -1 and durations 0 when unknown.
type Record struct {
	ID        string
	At        time.Time // accepted
	Method    string    // of HTTP, "_OTHER" for what HTTP does not define
	Route     string
	Model     string // as the caller named it
	Arm       string // of an experiment, as "experiment/arm"; "" outside of any
	Known     bool   // some host serves it, so that Model is one of a bounded set
	OutOfArm  bool   // with Arm: served by hosts that are not the arm's, which had none
	Forced    bool   // with Arm: it was asked for, and not drawn
	Stream    bool
	Estimated bool           // Output was counted from events: no usage was reported
	USDKnown  bool           // flags stand together, for a request holds its record while it runs
	TLS       bool           // its caller came that way
	Lot       experiment.Lot // with Arm: by which draw it found it
	Unit      experiment.Key // with Arm: what was assigned to it
	Key       string         // name of the caller's key (gateway/admission), never a part of it; "" where callers need none
	Served    string         // as the endpoint knows it
	Endpoint  endpoint.ID    // the last one tried
	Provider  string

	Status   int // sent to the caller; 499 when it left before one was
	Class    outcome.Class
	Code     string    // error code sent to the caller
	Finish   string    // the first choice's finish_reason
	Attempts []Attempt // who keeps a settled record copies them too: see CopyTo
	Tries    int
	Resumes  int           // times that another host went on with the answer
	Offered  int           // times that another host was asked to
	SeamGap  time.Duration // the longest silence at such a seam
	Lost     string        // why no host goes on with an answer that broke off: a gateway/resume.Reason or "no_host"; "" where none did

	Hedge    string  // what became of the attempt that was made beside a late one: "won", "lost" or "failed"; "" where none was
	HedgeUSD float64 // share of USD of whichever of the two gave no answer, where that is known

	Queued  time.Duration // it waited so long for room; TTFT and Duration have it in them
	Batch   bool          // nobody watches: it could wait
	Refused queue.Why     // why the waiting room did not serve it; 0 where it did, or was not needed

	TTFT         time.Duration // accepted to first content token handed to the caller
	UpstreamTTFT time.Duration // request sent to first content token received, last attempt
	Duration     time.Duration
	Overhead     time.Duration // our own time up to the first token: reading, deciding, and answering
	Reading      time.Duration // of Overhead: up to asking for a host. What is read again from a store has 0 of this and the next
	Deciding     time.Duration // of Overhead: choosing hosts, composing what they are sent, and what comes between a failed attempt and the next
	ITLp50       time.Duration // gap between output tokens as they arrived
	ITLp99       time.Duration
	TPS          float64 // output tokens per second between the first and the last one
	Gaps         Gaps
	Left         Phase      // with class client_gone: when it left
	SLO          router.SLO // promised by the last lease; zero where there was none
	Trace        trace.Context

	Prompt, Cached, Output, Reasoning int64 // tokens
	BytesIn, BytesOut                 int64

	USD float64 // share of the host's bill, when USDKnown; see router/cost

	Said *Said // nil unless traces are to have it
}

// CopyTo makes dst a copy of r, without Said, that shares nothing with it that changes. It takes memory only where dst has had fewer attempts.
func (r *Record) CopyTo(dst *Record) {
	room := dst.Attempts[:0]
	*dst = *r
	dst.Said = nil
	dst.Attempts = append(room, r.Attempts...)
}

// Ring holds the newest records.
type Ring struct {
	mu    sync.Mutex // guards all below
	buf   []Record
	next  int
	total uint64
}

// NewRing returns a ring for size records.
func NewRing(size int) *Ring { return &Ring{buf: make([]Record, 0, max(1, size))} }

// Add stores a copy of r in the place of the oldest.
func (g *Ring) Add(r *Record) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.total++
	if len(g.buf) < cap(g.buf) {
		g.buf = append(g.buf, Record{})
		r.CopyTo(&g.buf[len(g.buf)-1])
		return
	}
	r.CopyTo(&g.buf[g.next])
	g.next = (g.next + 1) % len(g.buf)
}

// Newest returns up to n records, newest first, for which keep is true; a nil keep takes all.
func (g *Ring) Newest(n int, keep func(*Record) bool) []Record {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []Record
	for i := 1; i <= len(g.buf) && len(out) < n; i++ {
		r := &g.buf[(g.next-i+2*len(g.buf))%len(g.buf)]
		if keep == nil || keep(r) {
			out = append(out, Record{})
			r.CopyTo(&out[len(out)-1])
		}
	}
	return out
}

// Total counts the records ever added.
func (g *Ring) Total() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.total
}
