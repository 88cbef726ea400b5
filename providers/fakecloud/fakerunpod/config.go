package fakerunpod

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"headrace/providers/fakecloud"
)

// Config sets a Cloud up. Zero values mean the defaults named here.
type Config struct {
	Addr      string  // IPv4 address and port; default "127.0.0.1:0"
	APIKey    string  // the account's key; default "rpa_FAKE"
	TimeScale float64 // how many times faster than in life; 0 waits for nothing
	Seed      uint64  // of all that is drawn

	EdgeFirstByte   time.Duration // a held answer without a first byte ends in 524; default 100 s
	StreamCutAfter  time.Duration // streams of the OpenAI route end, as if they were complete; default never
	NoWorkerWait    time.Duration // of a load-balancing request, for a worker; default 2 min
	AffinityWait    time.Duration // of one that insists on a worker; default 5 min
	BalancerLimit   time.Duration // of a load-balancing request in all; default 5.5 min
	RedispatchAfter time.Duration // a lost job is given to another worker; default 40 s
	CrashBackoff    time.Duration // between the tries of a worker that crashes; default 30 s
	RunRetention    time.Duration // of results of /run; default 30 min
	SyncRetention   time.Duration // of results of /runsync and the OpenAI route; default 1 min

	RateLimits RateLimits // of queue endpoints
	Management Management // of the management API

	NoWorkerText  bool // 400 "timed out waiting for worker" instead of {"error":"no workers available"}
	NoWorkerCode  int  // status of the latter; default 400, not known
	WrongTypeCode int  // status of "not allowed for QB API"; default 400, not known
	// PodGoneCode is what the proxy answers for a pod that is stopped or gone; default 404, not known.
	PodGoneCode int
	// AbruptEnd cuts the connection of the OpenAI route when a job fails after its first chunk; without it the body ends
	// as if it were complete. Not known.
	AbruptEnd bool
	// QuoteError has the 500 of the OpenAI route say what the job says, instead of nothing. Both were reported.
	QuoteError bool
	// CancelOnDisconnect cancels the job of an OpenAI request whose client leaves; not known, assumed not.
	CancelOnDisconnect bool
	// NoReplay keeps what a job that was given to a second worker yields again out of its stream; not known.
	NoReplay bool
	// StreamTellsWorker adds workerId and retries to answers of /stream; not known.
	StreamTellsWorker bool
	// BareStream answers /stream with a bare list, as a page of the documentation shows it.
	BareStream bool
	// QueueLimit answers 429 when more than 50 and more than 500 jobs for each of the endpoint's workers wait, as
	// documented until 2025.
	QueueLimit bool
	ClockSkew  time.Duration // added to every Date header

	BillNow func() time.Time // the clock by which is billed; default time.Now
}

// RateLimits are those of queue endpoints. The zero value holds the documented ones, without Retry-After: what a 429
// of the data plane looks like is not known.
type RateLimits struct {
	Off        bool
	Scale      float64       // multiplies all numbers; default 1
	PerWorker  int           // requests in 10 s for each running worker, where that is more; default 50
	RetryAfter time.Duration // sent in whole seconds
	Plain      bool          // the body is plain text
}

// Management limits the management API, in requests of real time. The defaults are 180, 7200 and 50000.
type Management struct{ PerMinute, PerHour, PerDay int }

func (c *Config) fill() {
	if c.BillNow == nil {
		c.BillNow = time.Now
	}
	c.Addr = cmp.Or(c.Addr, "127.0.0.1:0")
	c.APIKey = cmp.Or(c.APIKey, "rpa_FAKE")
	c.EdgeFirstByte = cmp.Or(c.EdgeFirstByte, 100*time.Second)
	c.NoWorkerWait = cmp.Or(c.NoWorkerWait, 2*time.Minute)
	c.AffinityWait = cmp.Or(c.AffinityWait, 5*time.Minute)
	c.BalancerLimit = cmp.Or(c.BalancerLimit, 330*time.Second)
	c.RedispatchAfter = cmp.Or(c.RedispatchAfter, 40*time.Second)
	c.CrashBackoff = cmp.Or(c.CrashBackoff, 30*time.Second)
	c.RunRetention = cmp.Or(c.RunRetention, 30*time.Minute)
	c.SyncRetention = cmp.Or(c.SyncRetention, time.Minute)
	c.RateLimits.Scale = cmp.Or(c.RateLimits.Scale, 1)
	c.RateLimits.PerWorker = cmp.Or(c.RateLimits.PerWorker, 50)
	c.Management.PerMinute = cmp.Or(c.Management.PerMinute, 180)
	c.Management.PerHour = cmp.Or(c.Management.PerHour, 7200)
	c.Management.PerDay = cmp.Or(c.Management.PerDay, 50000)
	c.NoWorkerCode = cmp.Or(c.NoWorkerCode, 400)
	c.WrongTypeCode = cmp.Or(c.WrongTypeCode, 400)
	c.PodGoneCode = cmp.Or(c.PodGoneCode, 404)
}

// Type is what an endpoint is.
type Type uint8

// Types of endpoints.
const (
	Queue Type = iota
	LoadBalancer
)

// Generation is the image that a worker runs, as far as its answers differ.
type Generation uint8

// Generations.
const (
	V24        Generation = iota // worker-vllm since 2.24: bytes of vllm serve as they arrive, cut anywhere
	V23                          // worker-vllm until 2.23: 1, 3, 9, 27, 50, 50… whole events in one string
	V23Lists                     // the same with RAW_OPENAI_OUTPUT=0: lists of chunks, without [DONE]
	V23Native                    // a handler that takes prompt or messages only, and yields {"choices":[{"tokens":[…]}]}
	SGLang                       // one request at a time, all events at its end, JSON over several data lines, plain answers as a string
	FakeStream                   // the whole stream as one string at its end
)

// EndpointConfig sets a serverless endpoint up. Zero values mean the defaults named here.
type EndpointConfig struct {
	ID   string // default drawn
	Name string // default the id
	Type Type

	Generation Generation
	Env        map[string]string // as the management API shows it; MODEL_NAME is added unless NoModelEnv
	NoModelEnv bool
	Image      string // default an image that fits Generation
	Args       string

	Class          fakecloud.Class // default Classes[0]
	Models         []string        // ids its workers serve; default those of Env, else the class's
	MaxModelLen    int             // as fakecloud.HostConfig
	TPS            float64         // as fakecloud.HostConfig
	TTFT           time.Duration   // as fakecloud.HostConfig
	Legacy         bool            // workers answer errors as old vLLM versions did
	Chunking       fakecloud.Chunking
	MaxConcurrency int // jobs that a worker takes at once; default MAX_CONCURRENCY of Env, else 30, 300 for SGLang

	GPUTypes    []string // ids of the catalogue, given to workers in turn; default one that fits Class
	GPUCount    int      // of a worker; default the class's
	Pools       []string // as the management API shows them; default those of GPUTypes
	DataCenters []string // given to workers in turn; default "US-KS-2"

	WorkersMin   int
	WorkersMax   int           // default 3; SetWorkersMax makes it 0
	IdleTimeout  time.Duration // default 5 s
	ImagePull    time.Duration // before a worker's start, not billed
	ColdStart    time.Duration // container and model, billed; default 45 s
	ReadyEarly   time.Duration // the last part of ColdStart during which /health already calls the worker ready
	RequestCount int           // makes the scaler REQUEST_COUNT with this value; load balancers have 1 without it
	QueueDelay   time.Duration // value of QUEUE_DELAY, the default scaler; default 4 s
	Timeout      time.Duration // of an execution; default 10 min, shown as 0 when it was never set

	// CutMax makes V24 workers read between 1 and CutMax bytes at a time, drawn from Seed, instead of what has arrived.
	CutMax int
	// PostTime is what each yield takes until the worker reads on: tokens that come meanwhile travel together.
	PostTime time.Duration
	// NoAggregate leaves the yields out of the output that /status shows.
	NoAggregate bool
	// OldSDK is a worker with runpod-python before 1.10: /cancel, timeouts and ttl do not reach it.
	OldSDK bool
	// CostUSD is added to plain answers as "cost", as RunPod's public endpoints do.
	CostUSD float64
}

func (c *EndpointConfig) fill() {
	if c.Class.Name == "" {
		c.Class = fakecloud.Classes[0]
	}
	c.fillModels()
	if c.Image == "" {
		c.Image = [...]string{
			V24: "runpod/worker-v1-vllm:v2.25.2", V23: "runpod/worker-v1-vllm:v2.23.0", V23Lists: "runpod/worker-v1-vllm:v2.23.0",
			V23Native: "acme/handler:1", SGLang: "runpod/worker-sglang:v0.4.10", FakeStream: "acme/handler:2",
		}[c.Generation]
	}
	if c.MaxConcurrency == 0 {
		c.MaxConcurrency = 30
		if c.Generation == SGLang {
			c.MaxConcurrency = 300
		}
		if n := number(c.Env["MAX_CONCURRENCY"]); n > 0 {
			c.MaxConcurrency = n
		}
	}
	if len(c.GPUTypes) == 0 {
		c.GPUTypes = []string{gpuOf(c.Class)}
	}
	if len(c.DataCenters) == 0 {
		c.DataCenters = []string{"US-KS-2"}
	}
	c.GPUCount = cmp.Or(c.GPUCount, c.Class.GPUCount)
	c.WorkersMax = cmp.Or(c.WorkersMax, 3)
	c.IdleTimeout = cmp.Or(c.IdleTimeout, 5*time.Second)
	c.ColdStart = cmp.Or(c.ColdStart, 45*time.Second)
	c.QueueDelay = cmp.Or(c.QueueDelay, 4*time.Second)
	if c.Type == LoadBalancer {
		c.RequestCount = cmp.Or(c.RequestCount, 1)
	}
}

// fillModels makes Models and the names in Env agree.
func (c *EndpointConfig) fillModels() {
	env := map[string]string{}
	maps.Copy(env, c.Env)
	if len(c.Models) == 0 {
		switch {
		case env["OPENAI_SERVED_MODEL_NAME_OVERRIDE"] != "":
			c.Models = words(env["OPENAI_SERVED_MODEL_NAME_OVERRIDE"])
		case env["MODEL_NAME"] != "":
			c.Models = []string{env["MODEL_NAME"]}
		default:
			c.Models = []string{c.Class.Model}
		}
	}
	c.Models = slices.Clone(c.Models)
	if env["MODEL_NAME"] == "" && !c.NoModelEnv {
		env["MODEL_NAME"] = c.Models[0]
	}
	c.Env = env
}

// Port is a port that a pod exposes.
type Port struct {
	Private int
	TCP     bool // else it is behind the HTTP proxy
}

// PodConfig sets a pod up. Zero values mean the defaults named here.
type PodConfig struct {
	ID        string // default drawn
	Name      string // default the id
	Class     fakecloud.Class
	Models    []string
	TPS       float64
	TTFT      time.Duration
	APIKey    string // bearer that the pod's server asks for
	GPUType   string // default one that fits Class
	GPUCount  int
	Community bool // community cloud, else secure
	Spot      bool // the management API does not start it again; it shows no other sign of it
	Image     string
	Args      string
	Env       map[string]string
	Ports     []Port // all of one server; default 8000 by proxy

	DataCenter string        // default "US-KS-2"
	USDPerHour float64       // default by the catalogue
	WarmUp     time.Duration // the proxy answers 502 for so long after a start
	StalePort  time.Duration // after a restart the old TCP port is shown for so long
	Stopped    bool          // it begins stopped
}

func (c *PodConfig) fill() {
	if c.Class.Name == "" {
		c.Class = fakecloud.Classes[0]
	}
	if c.GPUType == "" {
		c.GPUType = gpuOf(c.Class)
	}
	c.GPUCount = cmp.Or(c.GPUCount, c.Class.GPUCount)
	c.DataCenter = cmp.Or(c.DataCenter, "US-KS-2")
	c.Image = cmp.Or(c.Image, "vllm/vllm-openai:v0.11.2")
	if len(c.Ports) == 0 {
		c.Ports = []Port{{Private: 8000}}
	}
	if len(c.Models) == 0 {
		c.Models = []string{c.Class.Model}
	}
}
