// Package endpoint holds the values that describe a GPU host to the rest of Headrace: who it is,
// where it is reached, what it serves, what it costs and how likely it is to stay. It is a leaf:
// it imports the standard library only, so that providers, router and gateway can all speak it.
package endpoint

import (
	"encoding/json"
	"time"
)

// ID names an endpoint for good: it survives restarts, new addresses and new ports.
// The form is "provider:name", such as "static:lab", "vast:48738927" or "runpod:abc123".
type ID string

// Endpoint is one address that serves models from one engine. It is a value: discovery builds a new
// one after every change and nobody alters it afterwards, slices included.
type Endpoint struct {
	ID       ID
	Provider string // "static", "runpod" or "vast"
	BaseURL  string // scheme, host and path prefix in front of "/chat/completions", without a slash at the end
	Dialect  Dialect
	Served   []Served // models it answers for; empty while nobody has learned them
	APIKey   Secret   // bearer sent upstream, empty for none

	Hardware    Hardware
	Trust       Trust
	Region      string // as the provider names it, "" when unknown
	MaxNumSeqs  int    // sequences the engine runs at once, 0 when unknown (vLLM: --max-num-seqs)
	Price       Price
	Tenure      Tenure
	Until       time.Time // when the contract ends, or the host was told to stop, and it is taken away; zero when it has no end
	Started     time.Time // when the machine behind it was started last, as its provider says: another start is another life; zero when unknown
	State       State
	StateReason string // why, in plain words, "" when nothing is to be said
	Workers     int    // of a Serverless endpoint: up now; 0 when none is or nobody knows
	MaxWorkers  int    // of a Serverless endpoint: the most it may have; 0 when unknown
	Limits      Limits
	Labels      map[string]string
	TLS         TLS
	// Routes are the paths below /v1 that it answers, such as "/chat/completions"; nil when it is not known to lack any.
	Routes []string
	// TextOnly is set for endpoints that take no images, audio or files in a prompt.
	TextOnly bool
	// Plain is set for endpoints that can be asked with a prompt and sampling parameters only: no tools, no form of the
	// output, no log probabilities. BeyondPlain tells what is more than that.
	Plain bool
	// Lumpy is set where tokens come in lumps that the way there makes, so that the gaps between events say nothing of the engine.
	Lumpy bool
	// NoUsageInjection is set for hosts known to refuse stream_options.
	NoUsageInjection bool
	// Continues is what the operator says of it and unfinished assistant messages.
	Continues Continues
	// Meter is what its workers are billed for; nil where nobody can tell better than by Workers and Price.
	Meter *Meter `json:"-"`
}

// Limits are what an endpoint's provider lets through; zero values mean that no limit is known.
type Limits struct {
	MaxBodyBytes int64         // of a request
	MaxDuration  time.Duration // of a request, from sent to the end of its answer
	Requests     int           // that may begin within any stretch of Per
	Per          time.Duration
	Concurrent   int // requests at once
}

// Served is one model of an endpoint.
type Served struct {
	Name string // the id the host expects in the request's "model"
	// Unnamed says that nobody has learned the model's id yet: Name is the endpoint's own name, by which it can be
	// asked for, and requests go there without a model, which the host fills in.
	Unnamed    bool
	MaxContext int             // tokens of prompt and answer together, 0 when unknown (vLLM: max_model_len)
	Card       json.RawMessage // the host's own object from GET /v1/models, nil when it was never read
}

// Dialect says how an endpoint is spoken to.
type Dialect uint8

// Dialects.
const (
	OpenAI     Dialect = iota // plain OpenAI-compatible HTTP
	RunPodJobs                // jobs of a RunPod queue: POST /run, then GET /stream; providers/runpod/jobs translates
	VastRoute                 // Vast.ai serverless: a route is asked for, then its worker; providers/vast/serverless translates
)

// Continues says whether an endpoint's engine goes on with an assistant message that is not finished.
type Continues uint8

// What is said. The zero value leaves it to a self-test.
const (
	ContinuesAuto Continues = iota
	ContinuesAlways
	ContinuesNever
)

// Hardware is what runs behind an endpoint; zero values mean unknown.
type Hardware struct {
	GPU      string // marketing name without vendor, such as "A100 80GB" or "RTX 4090"
	GPUCount int
	Machine  string // hosts of one machine die together
	Host     string // owner of the machine, as the provider numbers them
}

// Trust is what is known of who can read the requests an endpoint gets. Higher is better.
type Trust uint8

// Trust levels, from a stranger's machine to one's own.
const (
	TrustUnknown Trust = iota
	TrustCommunity
	TrustVerified
	TrustDatacenter
	TrustSecure
)

// Basis says what an endpoint's owner bills for.
type Basis uint8

// Bases. The zero value means that no price is known: such an endpoint is routable and shown
// as "unknown", never as free.
const (
	BasisUnknown Basis = iota
	PerHour
	PerWorkerSecond
	PerToken
)

// Price is what an endpoint costs, all in US dollars. Only the fields of its Basis are set.
type Price struct {
	Basis Basis

	USDPerHour        float64 // PerHour: rent of the whole host while it runs
	USDPerHourStopped float64 // PerHour: what it goes on to cost while it is stopped, its disk for instance
	USDPerGBIn        float64 // PerHour: a GB (1e9 bytes) sent to the host
	USDPerGBOut       float64 // PerHour: a GB (1e9 bytes) that the host sends

	USDPerWorkerSecond float64       // PerWorkerSecond: one worker, all its GPUs together; the mean of those that are up
	ColdStart          time.Duration // PerWorkerSecond: billed before a worker's first token
	IdleTimeout        time.Duration // PerWorkerSecond: billed after a worker's last token

	USDPerMTokIn     float64 // PerToken: a million prompt tokens
	USDPerMTokCached float64 // PerToken: a million prompt tokens read from the prefix cache
	USDPerMTokOut    float64 // PerToken: a million output tokens

	Accrues Accrual // PerHour: what is due in the state that it is in

	AsOf   time.Time // when Source said so
	Source string    // who said so: "config", "runpod catalog", "vast dph_total"
}

// Accrual is what a rented host costs in the state that it is in, as its provider bills.
type Accrual uint8

// Accruals. The zero value leaves it to the host's state: rent while it is there, its disk while it is not.
const (
	AccruesUnknown Accrual = iota
	AccruesRent            // USDPerHour
	AccruesDisk            // USDPerHourStopped
	AccruesNothing
)

// Tenure is how an endpoint may be taken away.
type Tenure uint8

// Tenures.
const (
	TenureUnknown  Tenure = iota
	Interruptible         // goes to whoever bids more
	OnDemand              // stays while it is paid
	Serverless            // workers come and go with the load
	TenurePerToken        // somebody else's fleet behind an API
)

// State is whether an endpoint can be used now, as its provider or its own answers say.
type State uint8

// States (see ARCHITECTURE.md). The breaker's open and probing are the router's and not listed here.
const (
	StateUnknown State = iota // nobody has asked yet: routable, with a prior
	Cold
	Starting
	Ready
	Saturated
	Preempted
	Draining
	Gone
	NoCapacity // Serverless: nobody is up and the provider can start nobody now; callers are told the StateReason, so it is one of a closed set
)

// Secret is text that must never be printed. Its fmt and JSON forms are "[redacted]"; Reveal is the one way out.
type Secret string

const redacted = "[redacted]"

// Reveal returns the secret itself, for the wire only.
func (s Secret) Reveal() string { return string(s) }

// String returns "[redacted]", or "" when there is no secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// GoString keeps %#v from printing the secret.
func (s Secret) GoString() string { return s.String() }

// MarshalText keeps JSON, YAML and slog from printing the secret.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
