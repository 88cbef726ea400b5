// Package config reads Headrace's configuration: one YAML file, the environment and command line
// flags, in that order of growing precedence over the defaults.
//
// The struct tags of this file are the one place where a key, its type, default, limits and meaning
// are written down: the decoder, the JSON Schema and the tables of docs/config.md all come from them.
// The tags are: yaml the key; doc its meaning; default its value when absent; otherwise the same in
// words where it is no constant; eg a value shown in hints; words the closed set of values, parted by
// "|"; unit "bytes" or "file"; min, above and max limits; required; short for the field that a plain
// value in place of the section stands for; single for a list that may be written as its only item;
// aka for what people write instead of the key.
package config

import (
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"headrace/router/endpoint"
)

// Config is a configuration whose every value is checked and ready to use. It is not altered after
// Load or Parse has returned it.
type Config struct {
	Listen               []Listener       `yaml:"listen" single:"true" default:"127.0.0.1:8080" eg:"127.0.0.1:8080" doc:"Where the OpenAI surface is served: an address, an address with TLS, or a list of such." aka:"address|bind|port|listeners|server"`
	Admin                string           `yaml:"admin" default:"127.0.0.1:9090" eg:"127.0.0.1:9090" doc:"Where the admin API, /metrics, /livez and /readyz are served; \"off\" switches it off." aka:"admin_listen|admin_address|metrics"`
	AllowUnauthenticated bool             `yaml:"allow_unauthenticated" default:"false" doc:"Must be true to listen on anything but loopback where nobody is asked for a key: with neither keys nor require_key. As soon as there is a key, callers need one all the same."`
	RequireKey           bool             `yaml:"require_key" default:"false" doc:"Whether callers need a key even while there is none: then nobody is let in until headrace keys create has made one." aka:"require_keys|authenticate|auth"`
	Keys                 []Key            `yaml:"keys" otherwise:"none; those that headrace keys create has made count as well" doc:"Keys of callers, with what each may use (docs/keys.md)." aka:"api_keys|users|tenants|tokens"`
	Providers            Providers        `yaml:"providers" doc:"Where hosts come from." aka:"provider|hosts|upstreams|backends|endpoints"`
	Models               map[string]Model `yaml:"models" otherwise:"every model id that a host serves, under its own name" doc:"Names that applications use, each with the ids it stands for. With any name here, only these are offered." aka:"model|aliases"`
	Experiments          []Experiment     `yaml:"experiments" otherwise:"none" doc:"Ways of serving a model that are tried on a share of its requests, and measured against the usual one (docs/experiments.md)." aka:"experiment|canary|canaries|ab"`
	Passthrough          string           `yaml:"passthrough" otherwise:"off" doc:"Name of the static host that gets every unknown path under /v1, any method, byte for byte."`
	Limits               Limits           `yaml:"limits" doc:"What one process and one request may take up." aka:"limit"`
	Queue                Queue            `yaml:"queue" doc:"Requests that wait where hosts, or the gateway, have no room (docs/queue.md)." aka:"waiting_room|queueing|admission"`
	Timeouts             Timeouts         `yaml:"timeouts" doc:"How long each phase of a request may last." aka:"timeout|deadlines"`
	Retries              Retries          `yaml:"retries" doc:"Second attempts at another host." aka:"retry"`
	Breaker              Breaker          `yaml:"breaker" doc:"When a failing host is left alone, and for how long." aka:"circuit_breaker"`
	Continuation         Continuation     `yaml:"continuation" doc:"Streams that a host breaks off and another one goes on with." aka:"continue|resume"`
	Catalogue            []Expectation    `yaml:"catalogue" otherwise:"the built-in catalogue" doc:"How fast hosts are expected to be before they were measured, where you know better than the built-in catalogue." aka:"catalog|expect|priors"`
	State                State            `yaml:"state" doc:"What replicas of the gateway share."`
	Ledger               Ledger           `yaml:"ledger" doc:"What is kept of requests and of what hosts cost (docs/costs.md)." aka:"books|accounting|costs"`
	Telemetry            Telemetry        `yaml:"telemetry" doc:"What is told of requests beside the log: metrics and traces (docs/telemetry.md)." aka:"otel|opentelemetry|tracing|observability"`
	Log                  Log              `yaml:"log" doc:"What is logged." aka:"logging|logs"`

	source string            // file name for messages, "" without a file
	origin map[string]origin // by path, for every value that was given
}

// Listener is one address that callers reach.
type Listener struct {
	// Address is "host:port"; an empty host means every interface.
	Address string `yaml:"address" short:"true" required:"true" eg:"127.0.0.1:8443" doc:"host:port; without a host, every interface; port 0 picks a free one." aka:"addr|listen|bind"`
	// TLS is nil where plain HTTP is spoken.
	TLS *ListenTLS `yaml:"tls" otherwise:"plain HTTP" doc:"Certificate for HTTPS."`
}

// ListenTLS names the certificate that a listener shows.
type ListenTLS struct {
	Cert string `yaml:"cert" unit:"file" required:"true" eg:"server.pem" doc:"PEM file with the certificate and its chain." aka:"cert_file|certificate|crt"`
	Key  string `yaml:"key" unit:"file" required:"true" eg:"server.key" doc:"PEM file with the private key." aka:"key_file|private_key"`
}

// Providers lists where hosts come from.
type Providers struct {
	Static []StaticHost `yaml:"static" doc:"Hosts that are written down here." aka:"hosts|openai"`
	RunPod *RunPod      `yaml:"runpod" otherwise:"not asked; without a providers section, asked when RUNPOD_API_KEY is set" doc:"Serverless endpoints and pods of an account at RunPod."`
	Vast   *Vast        `yaml:"vast" otherwise:"not asked; without a providers section, asked when VAST_API_KEY is set" doc:"Instances and serverless endpoints of an account at Vast.ai." aka:"vastai|vast_ai"`
}

// StaticHost is one host of providers.static.
type StaticHost struct {
	Name string `yaml:"name" required:"true" eg:"lab" doc:"Unique name: lower case letters, digits, \".\", \"_\" and \"-\", starting with a letter or digit. The host is known as static:NAME." aka:"id"`
	// BaseURL has no slash at its end.
	BaseURL     string            `yaml:"base_url" required:"true" eg:"http://gpu-box:8000/v1" doc:"What stands in front of /chat/completions; used as written, with or without /v1. http or https, without user, query or fragment." aka:"url|address|endpoint|host|uri|api_base"`
	Models      []HostModel       `yaml:"models" otherwise:"asked from the host's GET /models" doc:"Model ids the host serves: plain ids, or sections with name and max_context." aka:"model|served|serves"`
	APIKey      endpoint.Secret   `yaml:"api_key" otherwise:"none" eg:"${LAB_KEY}" doc:"Key sent to the host as a bearer token." aka:"key|token|apikey|bearer|secret|password"`
	Price       Price             `yaml:"price" otherwise:"unknown, which is not free" doc:"What the host costs, by exactly one basis." aka:"cost|pricing|rate"`
	Tenure      endpoint.Tenure   `yaml:"tenure" words:"interruptible|on_demand|serverless|per_token" otherwise:"follows the price: on_demand per hour, serverless per worker second, per_token per million tokens" doc:"How the host may be taken away." aka:"type|kind"`
	GPU         string            `yaml:"gpu" otherwise:"unknown" eg:"A100 80GB" doc:"Marketing name of the GPU, without the vendor." aka:"gpu_name|hardware"`
	GPUs        int               `yaml:"gpus" min:"1" max:"1024" otherwise:"1" eg:"2" doc:"How many of them serve the model together." aka:"gpu_count|num_gpus"`
	Machine     string            `yaml:"machine" otherwise:"unknown" eg:"rack-7" doc:"The physical machine; hosts on the same one are expected to fail together."`
	Region      string            `yaml:"region" otherwise:"unknown" eg:"eu-west" doc:"Where it stands, in your own words." aka:"location|zone|datacenter"`
	Trust       endpoint.Trust    `yaml:"trust" words:"community|verified|datacenter|secure" otherwise:"unknown" doc:"Who may read the requests it gets, from a stranger's machine to one's own."`
	MaxNumSeqs  int               `yaml:"max_num_seqs" min:"1" max:"1000000" otherwise:"unknown" eg:"256" doc:"Sequences the engine runs at once (vLLM's --max-num-seqs)." aka:"max_concurrency|concurrency|max_in_flight"`
	Labels      map[string]string `yaml:"labels" otherwise:"none" doc:"Free names and values of your own." aka:"tags"`
	TLS         HostTLS           `yaml:"tls" doc:"How an https host proves who it is."`
	Continues   string            `yaml:"continues" words:"auto|always|never" default:"auto" doc:"Whether the host goes on with an unfinished assistant message (vLLM's continue_final_message): as a self-test finds, always, or never. A host that does not would begin its answer anew in the middle of a stream." aka:"continue|prefill"`
	InjectUsage bool              `yaml:"inject_usage" default:"true" doc:"Whether stream_options.include_usage may be added to streaming requests for this host; false for hosts that refuse it."`
}

// HostModel is one model of a static host.
type HostModel struct {
	Name string `yaml:"name" short:"true" required:"true" eg:"llama-70b" doc:"The id the host expects in a request." aka:"id|model"`
	// MaxContext is 0 when unknown.
	MaxContext int `yaml:"max_context" min:"1" max:"1000000000" otherwise:"unknown" eg:"131072" doc:"Tokens of prompt and answer together (vLLM's --max-model-len)." aka:"max_model_len|context|context_length|max_tokens"`
}

// Price is what a static host costs, in US dollars. Only what belongs to Basis is set.
type Price struct {
	USDPerHour         float64       `yaml:"usd_per_hour" min:"0" eg:"1.80" doc:"Rent of the whole host, US dollars per hour." aka:"hourly|per_hour|usd_hour|dph"`
	USDPerWorkerSecond float64       `yaml:"usd_per_worker_second" min:"0" eg:"0.00044" doc:"One busy worker, US dollars per second." aka:"per_second|usd_per_second"`
	ColdStart          time.Duration `yaml:"cold_start" otherwise:"0s" eg:"45s" doc:"Billed before a worker's first token; with usd_per_worker_second only."`
	IdleTimeout        time.Duration `yaml:"idle_timeout" otherwise:"0s" eg:"5s" doc:"Billed after a worker's last token; with usd_per_worker_second only."`
	USDPerMTok         *TokenPrice   `yaml:"usd_per_mtok" doc:"US dollars per million tokens, by kind of token." aka:"per_token|usd_per_token|tokens"`

	// Basis is which of the three was given.
	Basis endpoint.Basis `yaml:"-"`
}

// TokenPrice is a price in US dollars per million tokens.
type TokenPrice struct {
	In     float64 `yaml:"in" min:"0" required:"true" eg:"0.40" doc:"A million prompt tokens, in US dollars." aka:"input|prompt"`
	Cached float64 `yaml:"cached" min:"0" otherwise:"the price of in" eg:"0.10" doc:"A million prompt tokens read from the prefix cache, in US dollars." aka:"cache|cached_in"`
	Out    float64 `yaml:"out" min:"0" required:"true" eg:"1.20" doc:"A million output tokens, in US dollars." aka:"output|completion"`
}

// HostTLS is how an https host proves who it is.
type HostTLS struct {
	CA                 string `yaml:"ca" unit:"file" otherwise:"the system's roots" eg:"ca.pem" doc:"PEM file of the roots to trust." aka:"ca_file|cacert|root"`
	ServerName         string `yaml:"server_name" otherwise:"the host in base_url" eg:"gpu.example.com" doc:"Name to expect in the certificate." aka:"sni"`
	InsecureSkipVerify bool   `yaml:"insecure_skip_verify" default:"false" doc:"Accept any certificate: anyone on the way can read and alter everything." aka:"insecure|skip_verify|verify"`
}

// Model is a name that applications use.
type Model struct {
	Serves  []string `yaml:"serves" required:"true" eg:"meta-llama/Llama-3.1-70B-Instruct" doc:"Ids that hosts serve: exact, or the beginning of one with \"*\" at the end." aka:"hosts|ids|models|served|targets"`
	Require Require  `yaml:"require" doc:"What every host must be that gets its requests." aka:"requires|demand"`
	SLO     SLO      `yaml:"slo" otherwise:"2s, 15 tokens per second, for 9 of 10 requests, and no request is refused for it" doc:"What callers are promised. Hosts that are not expected to keep it come last; with ttft or tps set here, requests are refused with 429 rather than break it for all."`
	Policy  string   `yaml:"policy" words:"cost|latency|balanced|weighted" default:"cost" doc:"What is looked for among the hosts that keep the slo: the least marginal cost; the earliest first token, then the fastest stream; cost and time together at $0.001 a second; drawn at random by the inverse square of the price." aka:"strategy|routing"`
	// OnPreemption is "continue", "restart" or "fail".
	OnPreemption string `yaml:"on_preemption" words:"continue|restart|fail" default:"continue" doc:"What becomes of an answer whose host is lost in the middle of it: continued on another host, where that is safe (docs/continuation.md); begun anew, as long as the caller has none of it; or ended with an error." aka:"on_interruption|on_failure|preemption"`
}

// SLO is what the callers of a model are promised; zero values are the router's defaults.
type SLO struct {
	TTFT       time.Duration `yaml:"ttft" above:"0" otherwise:"2s" eg:"2s" doc:"From the request to the first token, at most." aka:"first_token"`
	TPS        float64       `yaml:"tps" min:"0" max:"1000000" otherwise:"15" eg:"15" doc:"Tokens per second of one stream, at least." aka:"tokens_per_second"`
	Confidence float64       `yaml:"confidence" min:"0.5" max:"0.9999" otherwise:"0.9" eg:"0.95" doc:"Share of requests that must keep each of the two." aka:"probability|p"`
}

// Limits bound what one process and one request may take up. Sizes are in bytes.
type Limits struct {
	MaxBody     int64 `yaml:"max_body" unit:"bytes" above:"0" default:"32MiB" doc:"Largest JSON request body." aka:"max_body_size|body"`
	MaxUpload   int64 `yaml:"max_upload" unit:"bytes" above:"0" default:"512MiB" doc:"Largest body of an upload, such as audio, images or files." aka:"upload"`
	MaxInFlight int   `yaml:"max_in_flight" min:"1" max:"10000000" default:"10000" doc:"Requests served at once." aka:"max_concurrency|concurrency|max_requests|max_inflight"`
	MaxHead     int64 `yaml:"max_head" unit:"bytes" above:"0" default:"16KiB" doc:"Largest request line and headers together." aka:"max_header|max_headers|header"`
	// MaxContinuation is bytes of an answer's text, as it stands in JSON.
	MaxContinuation int64 `yaml:"max_continuation" unit:"bytes" above:"0" default:"256KiB" doc:"Text of an answer that is kept so that another host can continue it; a longer one cannot be continued." aka:"continuation|resume_buffer"`
	// MaxGathered is bytes of an answer's text, and as many of its reasoning, likewise.
	MaxGathered int64 `yaml:"max_gathered" unit:"bytes" above:"0" default:"16MiB" doc:"Text of a plain answer that is read as a stream and put together, so that another host can continue it; a longer one is asked for again in one piece, and is not continued." aka:"max_plain|gathered"`
}

// Queue says who waits where there is no room, and for how long. Shares are in [0,1].
type Queue struct {
	Size            int           `yaml:"size" min:"0" max:"1000000" default:"1000" doc:"Requests that wait at once; 0 lets none wait." aka:"max_size|length|depth|max_queue"`
	MaxBytes        int64         `yaml:"max_bytes" unit:"bytes" above:"0" default:"256MiB" doc:"Bodies of requests that wait, all together." aka:"bytes|memory|max_memory"`
	MaxWait         time.Duration `yaml:"max_wait" above:"0" default:"2m" doc:"Longest wait, from the request's arrival on; a request may ask for less by x-headrace-max-wait." aka:"timeout|wait|max_time"`
	InteractiveWait float64       `yaml:"interactive_wait" min:"0" max:"1" default:"0.5" doc:"Longest wait of interactive requests that name none, as a share of what is left of the promised time to the first token (models.*.slo.ttft)." aka:"interactive"`
	BatchShare      float64       `yaml:"batch_share" min:"0.01" max:"0.99" default:"0.1" doc:"Share of tokens served to waiting batch requests while interactive ones wait as well." aka:"batch"`
	BatchSpare      float64       `yaml:"batch_spare" min:"0" max:"0.9" default:"0.2" doc:"Share of what keeps the slo at a host that batch requests leave free; it shrinks to nothing in the first half of max_wait." aka:"spare|headroom"`
}

// Timeouts bound the phases of a request.
type Timeouts struct {
	Connect      time.Duration `yaml:"connect" above:"0" default:"3s" doc:"To reach a host, TLS included." aka:"dial"`
	FirstEvent   time.Duration `yaml:"first_event" above:"0" default:"120s" doc:"From the request sent to the beginning of the answer." aka:"first_byte|first_token|ttft"`
	ColdStart    time.Duration `yaml:"cold_start" above:"0" default:"10m" doc:"The same, where a serverless worker has to start first."`
	Gap          time.Duration `yaml:"gap" above:"0" default:"60s" doc:"Between two events of a stream." aka:"idle_gap|between"`
	Stall        time.Duration `yaml:"stall" above:"0" default:"5s" doc:"The same, where another host can continue the answer; 20 times the stream's usual gap where that is more." aka:"stalled"`
	Resume       time.Duration `yaml:"resume" default:"10s" doc:"For a host to come up or get free that can go on with a broken answer, where none can at once; 0 waits for none." aka:"resume_wait"`
	Stuck        time.Duration `yaml:"stuck" above:"0" default:"12s" doc:"From a streaming request sent to its first token, where the host is up and another one can be asked; 4 times the expected time where that is more." aka:"slow_first_token"`
	Total        time.Duration `yaml:"total" above:"0" default:"30m" doc:"A whole request, all attempts and the whole stream together." aka:"request|overall"`
	ClientWrite  time.Duration `yaml:"client_write" above:"0" default:"30s" doc:"Without a byte taken by the caller while some wait to be sent." aka:"write"`
	Idle         time.Duration `yaml:"idle" above:"0" default:"75s" doc:"A caller's connection between two requests." aka:"keepalive|keep_alive"`
	Read         time.Duration `yaml:"read" above:"0" default:"30s" doc:"To read a request, headers and body." aka:"client_read|header"`
	UpstreamIdle time.Duration `yaml:"upstream_idle" above:"0" default:"4s" doc:"A host's connection between two requests; keep it below what the host allows (uvicorn: 5s)."`
	Heartbeat    time.Duration `yaml:"heartbeat" default:"0s" doc:"Silence after which a streaming caller gets a comment line; 0 is off." aka:"ping"`
	Leave        time.Duration `yaml:"leave" default:"20s" doc:"Before a host's contract ends its running answers are moved to other hosts, where they can be continued (docs/continuation.md); 0 moves none." aka:"move|before_end"`
	Drain        time.Duration `yaml:"drain" default:"30s" doc:"For running requests to end at shutdown; what is left then ends with an error. 0 waits for none. Whatever stops the process must wait longer, such as Kubernetes with terminationGracePeriodSeconds." aka:"shutdown|grace"`
}

// Retries bound second attempts.
type Retries struct {
	Max       int     `yaml:"max" min:"0" max:"10" default:"2" doc:"Further attempts of one request." aka:"attempts|count"`
	Budget    float64 `yaml:"budget" min:"0" max:"1" default:"0.2" doc:"Retries earned by each request: 0.2 allows one for every five." aka:"ratio"`
	BudgetCap int     `yaml:"budget_cap" min:"0" max:"1000000" default:"200" doc:"Retries that can be saved up." aka:"cap|burst"`
	// MaxResumes is how often one answer is continued.
	MaxResumes int `yaml:"max_resumes" min:"0" max:"100" default:"4" doc:"Times that one answer is continued on another host; each after the first counts as a retry of the budget." aka:"resumes|continuations"`
	// Hedge is "off" or "sunk".
	Hedge       string  `yaml:"hedge" words:"off|sunk" default:"off" doc:"Whether a second host is asked as well when the first token of an answer is late, the faster one answering. off: no. sunk: one that is paid anyway, has nothing to do, and is expected to keep the slo; costs about 4 % more where it was simulated (docs/failover.md)." aka:"hedging|hedged"`
	HedgeBudget float64 `yaml:"hedge_budget" min:"0" max:"1" default:"0.02" doc:"Such attempts earned by each request: 0.02 allows one for every fifty; up to 10 are saved up, and none is made while the budget of retries is empty." aka:"hedge_share|hedge_ratio"`
}

// Breaker says when a failing host is left alone.
type Breaker struct {
	Failures int           `yaml:"failures" min:"1" max:"10000" default:"2" doc:"Answers in a row with a 5xx or nonsense that open it. More than half of five or more within 30 s do as well, three in a row that do not begin in time, and at once a host that nobody answers for." aka:"threshold|max_failures"`
	OpenFor  time.Duration `yaml:"open_for" above:"0" default:"2s" doc:"Until the host is tested again; twice that each time, up to a minute, and a fifth more or less." aka:"cooldown|reset|open|timeout"`
}

// Continuation says how it is found out who can go on with a stream that broke.
type Continuation struct {
	SelfTest bool `yaml:"self_test" default:"true" doc:"Whether each host that is up, and paid by the hour or by its workers' seconds, is asked to go on with an unfinished answer before one is given to it: less than 64 output tokens, once per model and start of the host. Without it only hosts with \"continues: always\" are given any." aka:"selftest|test"`
	TokenIDs bool `yaml:"token_ids" default:"false" doc:"Whether hosts that can (vLLM 0.10.2 and later) are asked for the numbers of their tokens, so that a broken answer is continued by exactly these, where its request allows, instead of by its text. The self-test finds out who can, with 16 output tokens more, of hosts that start after it was set. It costs some bytes a token on the way from the hosts, and memory for prompt and answer." aka:"return_token_ids|exact"`
}

// Expectation is what the operator expects of the hosts that meet its conditions; zero values say nothing.
type Expectation struct {
	Host  string `yaml:"host" otherwise:"any" eg:"vast:48738927" doc:"Id of the host, such as static:lab, exact or with \"*\" at the end." aka:"hosts|id|endpoint"`
	GPU   string `yaml:"gpu" otherwise:"any" eg:"RTX 4090" doc:"The host's GPU, by any of its names." aka:"gpu_name|hardware"`
	GPUs  int    `yaml:"gpus" min:"1" max:"1024" otherwise:"any number" eg:"2" doc:"How many of them the host has." aka:"gpu_count|num_gpus"`
	Model string `yaml:"model" otherwise:"any" eg:"llama-70b-awq" doc:"A model id that the host serves, exact or with \"*\" at the end." aka:"models|serves"`

	TPS        float64       `yaml:"tps" above:"0" max:"100000" otherwise:"as the built-in catalogue" eg:"28" doc:"Tokens per second of a stream alone." aka:"tokens_per_second|speed"`
	Slope      float64       `yaml:"slope" above:"0" max:"10" otherwise:"as the built-in catalogue" eg:"0.04" doc:"What each further stream adds to the time between two tokens, as a share of that time's constant part."`
	TTFT       time.Duration `yaml:"ttft" above:"0" otherwise:"as the built-in catalogue" eg:"250ms" doc:"To the first token of a very short prompt." aka:"first_token"`
	PrefillTPS float64       `yaml:"prefill_tps" above:"0" max:"10000000" otherwise:"as the built-in catalogue" eg:"1200" doc:"Prompt tokens read per second." aka:"prefill"`
	MaxNumSeqs int           `yaml:"max_num_seqs" min:"1" max:"1000000" otherwise:"as the built-in catalogue" eg:"48" doc:"Sequences the engine runs at once; what the host itself says wins." aka:"max_concurrency|concurrency"`
}

// State says where replicas share what they know, and where it outlives the process.
type State struct {
	Redis  endpoint.Secret `yaml:"redis" otherwise:"nothing is shared: one replica, or each for itself" eg:"${REDIS_URL}" doc:"Address of the Redis that replicas share: redis://[user:password@]host:port[/db], rediss:// for TLS, redis+sentinel://host,host/master or redis+cluster://host,host (docs/replicas.md)." aka:"url|redis_url"`
	Prefix string          `yaml:"prefix" default:"headrace:" eg:"staging:" doc:"Beginning of all keys and channels in Redis: gateways that share one and know nothing of each other need another each." aka:"key_prefix|namespace"`
	// Timeout is of one call that no request waits for.
	Timeout time.Duration `yaml:"timeout" above:"0" default:"250ms" doc:"How long an answer of Redis may take before it counts as away. Requests never wait that long: they go on by themselves after 5 ms." aka:"redis_timeout"`
	// Dir is a clean path, or "off".
	Dir string `yaml:"dir" otherwise:"$HEADRACE_STATE_DIR, $STATE_DIRECTORY (systemd), $XDG_STATE_HOME/headrace or ~/.local/state/headrace" eg:"/var/lib/headrace" doc:"Directory for what outlives the process; made when there is something to write, for its owner only. \"off\" keeps everything in memory." aka:"directory|path|data_dir|state_dir"`
	// BudgetOnLoss is "local" or "refuse".
	BudgetOnLoss string `yaml:"budget_on_loss" words:"local|refuse" default:"local" doc:"What becomes of keys with a budget while Redis does not answer. local: each replica goes on with its part of what is left. refuse: their requests get 503 budget_unknown." aka:"on_redis_loss|budgets"`
}

// Log says what is logged.
type Log struct {
	Level  slog.Level `yaml:"level" words:"debug|info|warn|error" default:"info" doc:"Least severity that is logged."`
	Format string     `yaml:"format" words:"json|text" default:"json" doc:"One JSON object a line, or text for reading."`
	Access bool       `yaml:"access" default:"true" doc:"Whether each request gets a line." aka:"access_log"`
}

// Telemetry says what is told of requests, and to whom.
type Telemetry struct {
	Metrics     bool    `yaml:"metrics" default:"true" doc:"Whether figures are kept: /metrics of the admin listener shows them." aka:"prometheus"`
	Names       string  `yaml:"names" words:"latest|legacy|both" default:"latest" doc:"Which of OpenTelemetry's names the GenAI figures and spans have: those of today, those that most dashboards were made for, or both." aka:"semconv"`
	OTLP        string  `yaml:"otlp" otherwise:"none: nothing is sent; OTEL_EXPORTER_OTLP_ENDPOINT stands in" eg:"http://collector:4318" doc:"Base URL of an OpenTelemetry collector." aka:"endpoint|otlp_endpoint|collector|url"`
	Protocol    string  `yaml:"protocol" words:"http|grpc" default:"http" doc:"How it is spoken to: http for OTLP over HTTP in protobuf (port 4318), grpc for OTLP over gRPC (port 4317)." aka:"otlp_protocol"`
	OTLPTraces  bool    `yaml:"otlp_traces" default:"true" doc:"Whether traces are sent there." aka:"traces"`
	OTLPMetrics bool    `yaml:"otlp_metrics" default:"true" doc:"Whether metrics are sent there, beside being shown at /metrics."`
	OTLPLogs    bool    `yaml:"otlp_logs" default:"false" doc:"Whether log lines are sent there, beside being written." aka:"logs"`
	Sample      float64 `yaml:"sample" min:"0" max:"1" default:"0.1" doc:"Share of requests that are traced." aka:"sampling|ratio|sample_rate"`
	Failures    bool    `yaml:"failures" default:"true" doc:"Whether requests that failed, were answered by a later attempt or went on elsewhere are traced whatever the share. Callers' own faults and leaving are no failures." aka:"errors"`
	Trust       bool    `yaml:"trust" default:"false" doc:"Whether callers' traceparent is believed: their request joins their trace, sampled or not as they say. Else their trace is linked." aka:"trust_traceparent|trust_callers"`
	Propagate   string  `yaml:"propagate" words:"own|all|none" default:"own" doc:"Which hosts get a traceparent: your own (all but those priced per token, which are somebody else's), all or none." aka:"propagation"`

	Content    string `yaml:"content" words:"none|messages" default:"none" doc:"Whether spans of sampled requests have what was asked and answered: messages and the tools that were offered, without what looks like a key; images, audio and files are left out. With trust callers decide which requests are sampled. Whoever reads your traces reads it." aka:"prompts|capture|messages|capture_content"`
	ContentMax int64  `yaml:"content_max" unit:"bytes" above:"0" default:"64KiB" doc:"Of a request and of an answer, each, that spans may have. A longer request is left out, a longer answer ends there." aka:"max_content"`

	FromEnv bool `yaml:"-"` // OTLP is the environment's: exporters read the rest of it there, such as addresses by signal
}

// StaticEndpoints returns the hosts of providers.static as endpoints, priced as of now. The caller
// owns the slice and all that it refers to.
func (c *Config) StaticEndpoints(now time.Time) []endpoint.Endpoint {
	eps := make([]endpoint.Endpoint, 0, len(c.Providers.Static))
	for i := range c.Providers.Static {
		eps = append(eps, c.Providers.Static[i].endpoint(now))
	}
	return eps
}

func (h *StaticHost) endpoint(now time.Time) endpoint.Endpoint {
	ep := endpoint.Endpoint{
		ID:               endpoint.ID("static:" + h.Name),
		Provider:         "static",
		BaseURL:          strings.TrimRight(h.BaseURL, "/"),
		Dialect:          endpoint.OpenAI,
		APIKey:           h.APIKey,
		Hardware:         endpoint.Hardware{GPU: h.GPU, GPUCount: h.GPUs, Machine: h.Machine},
		Trust:            h.Trust,
		Region:           h.Region,
		MaxNumSeqs:       h.MaxNumSeqs,
		Tenure:           h.Tenure,
		Labels:           maps.Clone(h.Labels),
		TLS:              endpoint.TLS{Roots: roots(h.TLS.CA), ServerName: h.TLS.ServerName, InsecureSkipVerify: h.TLS.InsecureSkipVerify},
		NoUsageInjection: !h.InjectUsage,
	}
	switch h.Continues {
	case "always":
		ep.Continues = endpoint.ContinuesAlways
	case "never":
		ep.Continues = endpoint.ContinuesNever
	}
	for _, m := range h.Models {
		ep.Served = append(ep.Served, endpoint.Served{Name: m.Name, MaxContext: m.MaxContext})
	}
	if p := h.Price; p.Basis != endpoint.BasisUnknown {
		ep.Price = endpoint.Price{Basis: p.Basis, AsOf: now, Source: "config"}
		switch p.Basis {
		case endpoint.PerHour:
			ep.Price.USDPerHour = p.USDPerHour
		case endpoint.PerWorkerSecond:
			ep.Price.USDPerWorkerSecond = p.USDPerWorkerSecond
			ep.Price.ColdStart, ep.Price.IdleTimeout = p.ColdStart, p.IdleTimeout
		case endpoint.PerToken:
			ep.Price.USDPerMTokIn, ep.Price.USDPerMTokCached, ep.Price.USDPerMTokOut = p.USDPerMTok.In, p.USDPerMTok.Cached, p.USDPerMTok.Out
		case endpoint.BasisUnknown:
		}
	}
	return ep
}

// roots returns what is in the file now. A file that cannot be read leaves text that is no certificate:
// whoever builds a connection from it is told so, and the file's name.
func roots(path string) string {
	if path == "" {
		return ""
	}
	pem, err := os.ReadFile(path)
	if err != nil {
		return "tls.ca: " + err.Error()
	}
	return string(pem)
}

// Files returns the files that c was made from or names, its own first, each once: what Watch
// should look at.
func (c *Config) Files() []string {
	var paths []string
	add := func(p string) {
		if p != "" && !slices.Contains(paths, p) {
			paths = append(paths, p)
		}
	}
	add(c.source)
	for _, f := range c.namedFiles() {
		add(f.path)
	}
	return paths
}

type namedFile struct{ key, path string }

// namedFiles lists the certificate files with the keys that name them.
func (c *Config) namedFiles() []namedFile {
	var fs []namedFile
	for i := range c.Listen {
		if t := c.Listen[i].TLS; t != nil {
			at := c.listenerPath(i)
			fs = append(fs, namedFile{at + ".tls.cert", t.Cert}, namedFile{at + ".tls.key", t.Key})
		}
	}
	for i := range c.Providers.Static {
		if ca := c.Providers.Static[i].TLS.CA; ca != "" {
			fs = append(fs, namedFile{staticPath(i) + ".tls.ca", ca})
		}
	}
	return fs
}
