package telemetry

import "strings"

// SchemaVersion is the version of OpenTelemetry's GenAI conventions whose names the table has
// (open-telemetry/semantic-conventions-genai, of the same names as semantic-conventions v1.41 but for its token counters).
const SchemaVersion = "0.1.0"

// Kind is how an instrument's figures are read.
type Kind uint8

// Kinds.
const (
	Counter       Kind = iota // only grows; its rate is what tells
	Gauge                     // as it is now
	Histogram                 // counts by size
	UpDownCounter             // a Gauge whose series add up; Prometheus has no word for it
)

// String returns the word used in docs and by Prometheus.
func (k Kind) String() string {
	return [...]string{"counter", "gauge", "histogram", "up-down counter"}[k]
}

// Set says which of the GenAI conventions' names an instrument belongs to.
type Set uint8

// Sets.
const (
	Always Set = iota // whatever names are chosen
	Latest            // with names latest and both
	Legacy            // with names legacy and both
)

// Instrument is one line of the table: a figure with its name and labels.
type Instrument struct {
	Name    string // OpenTelemetry's; see Prometheus for the other
	Kind    Kind
	Unit    string // by UCUM; what stands in braces counts things
	Set     Set
	Labels  []string  // attribute keys, each of LabelDocs
	Buckets []float64 // upper bounds of a Histogram, in Unit
	Doc     string
}

// Prometheus is the instrument's name on /metrics, as the OpenTelemetry specification and its Collector translate it.
// Histograms have _bucket, _sum and _count behind it.
func (i *Instrument) Prometheus() string {
	n := strings.ReplaceAll(i.Name, ".", "_")
	switch {
	case i.Unit == "s":
		n += "_seconds"
	case i.Unit == "By":
		n += "_bytes"
	case i.Unit == "1" && i.Kind == Gauge:
		n += "_ratio"
	}
	if i.Kind == Counter {
		n += "_total"
	}
	return n
}

// PrometheusLabel is an attribute's name on /metrics.
func PrometheusLabel(key string) string { return strings.ReplaceAll(key, ".", "_") }

// Attribute keys. The GenAI and HTTP ones are OpenTelemetry's.
const (
	keyOperation = "gen_ai.operation.name"
	keyProvider  = "gen_ai.provider.name"
	keySystem    = "gen_ai.system"
	keyModel     = "gen_ai.request.model"
	keyModality  = "gen_ai.token.modality"
	keyTokenType = "gen_ai.token.type"
	keyErrorType = "error.type"
	keyMethod    = "http.request.method"
	keyScheme    = "url.scheme"
	keyRoute     = "http.route"
	keyStatus    = "http.response.status_code"

	keyAlias    = "headrace.model"
	keyVendor   = "headrace.provider"
	keyEndpoint = "headrace.endpoint"
	keyClass    = "headrace.class"
	keyReason   = "headrace.reason"
	keyResult   = "headrace.result"
	keyGoesOn   = "headrace.goes_on_by"
	keyState    = "headrace.state"
	keyPhase    = "headrace.phase"
	keyPromise  = "headrace.promise"
	keyKept     = "headrace.kept"
	keyBin      = "headrace.bin"
	keyFigure   = "headrace.figure"
	keyUse      = "headrace.use"
	keyAccount  = "headrace.account"
	keyCall     = "headrace.call"
	keySignal   = "headrace.signal"
	keyVersion  = "headrace.version"

	keyExperiment = "headrace.experiment"
	keyArm        = "headrace.arm"
	keyBound      = "headrace.bound"
	keyPriority   = "headrace.priority"
	keyFrom       = "headrace.from"
	keyTo         = "headrace.to"
)

// Values of keyGoesOn, as the admin API has them.
const (
	byText    = "text"
	byNumbers = "token_ids"
)

// LabelDoc says what a label holds, and what bounds its values.
type LabelDoc struct{ Key, Doc string }

// LabelDocs returns what every label of the table means. The caller owns the slice.
func LabelDocs() []LabelDoc {
	return []LabelDoc{
		{keyOperation, "`chat`, `text_completion`, `embeddings`, `rerank`, `score`, `moderation`, `image_generation`, `speech`, `transcription`, `count_tokens` or `other`: follows from the route; Responses and Anthropic's Messages are `chat`."},
		{keyProvider, "who was asked: `runpod`, `vast_ai`, `static`; `none` where nobody was."},
		{keySystem, "the same under its older name; only with names `legacy` and `both`."},
		{keyModel, "the model's id as the host knows it, but in `gen_ai.server` figures as callers name it (see `headrace.model`); `other` beyond 1,000 of them."},
		{keyModality, "`unknown`: hosts do not split their counts."},
		{keyTokenType, "`input` or `output`."},
		{keyErrorType, "the class (see `headrace.class`); absent on success."},
		{keyMethod, "`POST`, or another of the methods HTTP defines; else `_OTHER`."},
		{keyScheme, "`http` or `https`, as the gateway's own listener was spoken to."},
		{keyRoute, "the path as docs list it; `passthrough` for all that have no route of their own."},
		{keyStatus, "sent to the caller; 499 where it left before one was."},
		{keyAlias, "the model as callers name it; `other` for names that no host serves, and beyond 1,000 of them."},
		{keyVendor, "`runpod`, `vast` or `static`; `none` where nobody was asked."},
		{keyEndpoint, "the host's id, such as `vast:48738927`; `other` beyond 1,000 of them."},
		{keyClass, "how it ended: `success`, `dial_failed`, `throttled`, `upstream_fault`, `first_byte_timeout`, `upstream_denied`, `caller_fault`, `truncated`, `client_gone`, `unserved`, `not_ready`, `opaque`, `stalled`, `severed`, `moved` or `outrun` ([errors.md](errors.md))."},
		{keyReason, "why not, of a closed set each."},
		{keyResult, "of a closed set each."},
		{keyGoesOn, "`text` or `token_ids`: what the other host was told of the answer so far ([continuation.md](continuation.md#by-the-numbers-of-tokens)); empty where none was asked."},
		{keyState, "a state's word."},
		{keyPhase, "`before_answer` (no host had begun), `before_first_token` or `streaming`."},
		{keyPromise, "`ttft` or `tps`: which half of the SLO."},
		{keyKept, "`true` or `false`."},
		{keyBin, "the tenth of predicted probability: `0.0`, `0.1` … `0.9`."},
		{keyFigure, "which of several figures; see the instrument."},
		{keyUse, "`useful`: it is in an answer that reached its caller; `wasted`: it is not."},
		{keyAccount, "`runpod`, `vast` or `vast serverless`."},
		{keyCall, "the kind of call to the provider's control plane, of a closed set."},
		{keySignal, "`traces`, `metrics` or `logs`."},
		{keyVersion, "of this program."},
		{keyExperiment, "an experiment's name in the config."},
		{keyArm, "an arm's name in it."},
		{keyBound, "`estimate`, `low` or `high`."},
		{keyPriority, "`interactive` or `batch` ([queue.md](queue.md))."},
		{keyFrom, "the state that was left: `closed`, `open`, `probing` (half open), `suspected` or `preempted` ([failover.md](failover.md#when-a-host-fails))."},
		{keyTo, "the state that followed, likewise."},
	}
}

// Buckets. secondsA and tokensB are the conventions'; cold starts of minutes need two more.
var (
	secondsA    = []float64{0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92}
	secondsLong = []float64{0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68}
	tokensB     = []float64{1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864}
	secondsTTFT = []float64{0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 320}
	secondsTPOT = []float64{0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5}
	secondsHTTP = []float64{0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60, 120, 300, 600}
	secondsOwn  = []float64{10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 50e-3, 250e-3}
	secondsSeam = []float64{0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 20, 40, 80}
	secondsWait = []float64{0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640}
	secondsCold = []float64{1, 2.5, 5, 10, 20, 40, 60, 90, 120, 180, 300, 600}
)

// instrument is an Instrument's place in the table.
type instrument uint8

const (
	clientDuration instrument = iota
	clientFirstChunk
	clientOutputChunk
	clientInput
	clientOutput
	clientCached
	clientReasoning
	clientInputSize
	clientOutputSize
	clientUsage
	serverDuration
	serverTTFT
	serverTPOT
	httpDuration
	httpActive

	requests
	refusals
	overhead
	attemptsMade
	failovers
	continuations
	seamGap
	hedges
	promises
	tokens
	spend
	coldStarts
	coldStart
	cancels
	queueWait
	queueLength
	queueRefusals

	hostState
	hostBreaker
	breakerTransitions
	hostInFlight
	hostUSDPerMTok
	hostUSDPerHour
	hostPriceAge
	hostTTFT
	hostTPS
	hostITL
	hostConcurrency
	hostLosses
	hostWorkers
	hostDrained
	hostContinues
	probes

	calibrationRatio
	calibrationExcess
	calibrationAlarm
	calibrationPromises

	discoveryAge
	discoveryFailing
	discoveryPolls
	discoveryHosts
	discoveryCalls
	discoveryErrors

	reloads
	reloadOK
	draining

	ledgerRecords
	ledgerDropped
	ledgerDisbelieved
	ledgerFailures
	ledgerSize
	ledgerWritten
	ledgerBill
	ledgerBillError

	keyRefusals
	keyBudgets
	keyCalls
	redisUp
	redisErrors
	redisFallbacks
	replicas
	replicaHosts
	experimentState
	experimentShare
	experimentUnits
	experimentRequests
	experimentEffect
	experimentDecisions

	dropped
	exportFailures
	overflow
	buildInfo

	instruments int = iota
)

// table is every instrument there is.
var table = [instruments]Instrument{
	clientDuration: {
		"gen_ai.client.operation.duration", Histogram, "s", Always,
		[]string{keyOperation, keyProvider, keySystem, keyModel, keyEndpoint, keyErrorType},
		secondsLong,
		"One attempt at one host, from its begin to the last byte.",
	},
	clientFirstChunk: {
		"gen_ai.client.operation.time_to_first_chunk", Histogram, "s", Latest,
		[]string{keyOperation, keyProvider, keyModel, keyEndpoint},
		secondsLong,
		"From the begin of an attempt to its first token, of streams.",
	},
	clientOutputChunk: {
		"gen_ai.client.operation.time_per_output_chunk", Histogram, "s", Latest,
		[]string{keyOperation, keyProvider, keyModel, keyEndpoint},
		secondsA,
		"Between two tokens of a stream as they came from the host. Recorded when the request ends; an answer that was continued counts for the host that ended it.",
	},
	clientInput: {
		"gen_ai.client.inference.usage.input_tokens", Counter, "{token}", Latest,
		[]string{keyOperation, keyProvider, keyModel, keyEndpoint, keyModality},
		nil,
		"Prompt tokens, cached ones included, as the hosts reported them.",
	},
	clientOutput: {
		"gen_ai.client.inference.usage.output_tokens", Counter, "{token}", Latest,
		[]string{keyOperation, keyProvider, keyModel, keyEndpoint, keyModality},
		nil,
		"Output tokens as the hosts reported them.",
	},
	clientCached: {
		"gen_ai.client.inference.usage.cache_read.input_tokens", Counter, "{token}", Latest,
		[]string{keyOperation, keyProvider, keyModel, keyEndpoint, keyModality},
		nil,
		"Prompt tokens that were read from a prefix cache.",
	},
	clientReasoning: {
		"gen_ai.client.inference.usage.reasoning.output_tokens", Counter, "{token}", Latest,
		[]string{keyOperation, keyProvider, keyModel, keyEndpoint, keyModality},
		nil,
		"Output tokens spent on reasoning.",
	},
	clientInputSize: {
		"gen_ai.client.inference.operation.input_tokens", Histogram, "{token}", Latest,
		[]string{keyOperation, keyProvider, keyModel, keyEndpoint},
		tokensB,
		"Prompt tokens of one answer; for percentiles, not for cost.",
	},
	clientOutputSize: {
		"gen_ai.client.inference.operation.output_tokens", Histogram, "{token}", Latest,
		[]string{keyOperation, keyProvider, keyModel, keyEndpoint},
		tokensB,
		"Output tokens of one answer; for percentiles, not for cost.",
	},
	clientUsage: {
		"gen_ai.client.token.usage", Histogram, "{token}", Legacy,
		[]string{keyOperation, keyProvider, keySystem, keyModel, keyEndpoint, keyTokenType},
		tokensB,
		"Tokens of one answer, under the name used before the counters.",
	},
	serverDuration: {
		"gen_ai.server.request.duration", Histogram, "s", Always,
		[]string{keyOperation, keyProvider, keySystem, keyModel, keyErrorType},
		secondsLong,
		"A request as its caller saw it: accepted to last byte, all attempts.",
	},
	serverTTFT: {
		"gen_ai.server.time_to_first_token", Histogram, "s", Always,
		[]string{keyOperation, keyProvider, keySystem, keyModel},
		secondsTTFT,
		"Accepted to first token handed to the caller, of streams: retries and cold starts included.",
	},
	serverTPOT: {
		"gen_ai.server.time_per_output_token", Histogram, "s", Always,
		[]string{keyOperation, keyProvider, keySystem, keyModel},
		secondsTPOT,
		"(duration - TTFT) / (output tokens - 1) of a stream that ended well.",
	},
	httpDuration: {
		"http.server.request.duration", Histogram, "s", Always,
		[]string{keyMethod, keyScheme, keyRoute, keyStatus, keyErrorType},
		secondsHTTP,
		"Every request that was forwarded or refused by one of the forwarding routes.",
	},
	httpActive: {
		"http.server.active_requests", UpDownCounter, "{request}", Always, nil, nil,
		"Requests in flight. Owner: the gateway's own count.",
	},

	requests: {
		"headrace.requests", Counter, "{request}", Always,
		[]string{keyAlias, keyClass},
		nil,
		"Requests by how they ended for their callers.",
	},
	refusals: {
		"headrace.refusals", Counter, "{request}", Always,
		[]string{keyStatus, keyReason},
		nil,
		"What was refused before it became a request with a record: unreadable heads, unknown paths, wrong methods. It is in no other figure. The reason is the error's code (docs/errors.md).",
	},
	overhead: {
		"headrace.gateway.overhead", Histogram, "s", Always,
		[]string{keyRoute},
		secondsOwn,
		"The gateway's own time up to the first token: reading, deciding, answering. Spans have it by these.",
	},
	attemptsMade: {
		"headrace.attempts", Counter, "{attempt}", Always,
		[]string{keyVendor, keyEndpoint, keyAlias, keyClass},
		nil,
		"Attempts by host and how they ended. Of one request the first seven and the last are counted.",
	},
	failovers: {
		"headrace.failovers", Counter, "{attempt}", Always,
		[]string{keyAlias, keyClass},
		nil,
		"Further attempts of a request, by how the one before had ended.",
	},
	continuations: {
		"headrace.continuations", Counter, "{continuation}", Always,
		[]string{keyAlias, keyResult, keyReason, keyGoesOn},
		nil,
		"Answers that broke off. Results: `offered`, the rest was asked of another host; `done`, another host went on; `refused`, nobody was let go on, with the reason (docs/continuation.md).",
	},
	seamGap: {
		"headrace.continuation.gap", Histogram, "s", Always,
		[]string{keyAlias},
		secondsSeam,
		"The longest silence at a seam of an answer that was continued.",
	},
	hedges: {
		"headrace.hedges", Counter, "{attempt}", Always,
		[]string{keyAlias, keyResult},
		nil,
		"Second attempts beside a late one. Results: `won`, `lost`, `failed`.",
	},
	promises: {
		"headrace.slo.requests", Counter, "{request}", Always,
		[]string{keyAlias, keyPromise, keyKept},
		nil,
		"Streams that had a token, by whether the model's SLO was kept. Requests that got none count as late where they ended by a host's fault.",
	},
	tokens: {
		"headrace.tokens", Counter, "{token}", Always,
		[]string{keyVendor, keyEndpoint, keyAlias, keyUse, keyReason},
		nil,
		"Output tokens that hosts produced. The reason of wasted ones is the attempt's class.",
	},
	spend: {
		"headrace.spend.usd", Counter, "{USD}", Always,
		[]string{keyVendor, keyEndpoint, keyAlias, keyUse, keyReason},
		nil,
		"Share of the hosts' bills, US dollars: what the request's time or tokens cost where nobody else pays for them. The reason of wasted ones is the attempt's class.",
	},
	coldStarts: {
		"headrace.cold_starts", Counter, "{attempt}", Always,
		[]string{keyVendor, keyEndpoint, keyAlias},
		nil,
		"Attempts that a worker had to be started for.",
	},
	coldStart: {
		"headrace.cold_start.duration", Histogram, "s", Always,
		[]string{keyVendor, keyEndpoint, keyAlias},
		secondsCold,
		"From the begin of such an attempt to its first token.",
	},
	cancels: {
		"headrace.client.cancels", Counter, "{request}", Always,
		[]string{keyAlias, keyPhase},
		nil,
		"Callers that left before they had everything.",
	},
	queueWait: {
		"headrace.queue.wait", Histogram, "s", Always,
		[]string{keyAlias, keyPriority},
		secondsWait,
		"What requests waited for room, of those that did, whatever came of it.",
	},
	queueLength: {
		"headrace.queue.length", Gauge, "{request}", Always,
		[]string{keyAlias, keyPriority},
		nil,
		"Requests that wait for room now; without a model, to be let into the gateway. Owner: the gateway's waiting room.",
	},
	queueRefusals: {
		"headrace.queue.refusals", Counter, "{request}", Always,
		[]string{keyAlias, keyReason},
		nil,
		"Requests that the waiting room did not serve. Reasons: `full`, `late` (it would have had its turn too late), `expired` (it waited in vain), `gone` (its caller left), `draining` (docs/queue.md).",
	},

	hostState: {
		"headrace.host.state", Gauge, "{host}", Always,
		[]string{keyVendor, keyEndpoint, keyState},
		nil,
		"1 for the state that the provider reports: `unknown`, `cold`, `starting`, `ready`, `saturated`, `preempted`, `draining`, `gone`, `no_capacity`. Owner of this and of all `headrace.host` gauges: the router's view of its hosts.",
	},
	hostBreaker: {
		"headrace.host.breaker", Gauge, "{host}", Always,
		[]string{keyVendor, keyEndpoint, keyState},
		nil,
		"1 for the breaker's state: `closed`, `open`, `probing` (half open: a test is due or under way), `suspected`, `preempted`, `cooling` (docs/failover.md).",
	},
	breakerTransitions: {
		"headrace.host.breaker.transitions", Counter, "{transition}", Always,
		[]string{keyVendor, keyEndpoint, keyFrom, keyTo},
		nil,
		"Times that the breaker went from one state to another; `cooling`, a pause that the host asked for, is none of them. A test that says nothing leads from `probing` to `open` and back within seconds.",
	},
	hostInFlight: {
		"headrace.host.in_flight", Gauge, "{request}", Always,
		[]string{keyVendor, keyEndpoint},
		nil,
		"Requests of this gateway at the host.",
	},
	hostUSDPerMTok: {
		"headrace.host.usd_per_mtok", Gauge, "{USD}", Always,
		[]string{keyVendor, keyEndpoint, keyFigure},
		nil,
		"US dollars per million output tokens. Figures: `full_load`, by which hosts are compared; `one_stream`, of a stream alone; `allocated`, what was billed to requests in the last five to ten minutes over their output tokens.",
	},
	hostUSDPerHour: {
		"headrace.host.usd_per_hour", Gauge, "{USD}", Always,
		[]string{keyVendor, keyEndpoint},
		nil,
		"Rent of the host, or of one of its workers while it runs.",
	},
	hostPriceAge: {
		"headrace.host.price.age", Gauge, "s", Always,
		[]string{keyVendor, keyEndpoint},
		nil,
		"Since the price was last read.",
	},
	hostTTFT: {
		"headrace.host.ttft", Gauge, "s", Always,
		[]string{keyVendor, keyEndpoint},
		nil,
		"Mean time to the first token of the newest attempts.",
	},
	hostTPS: {
		"headrace.host.tps", Gauge, "{tps}", Always,
		[]string{keyVendor, keyEndpoint},
		nil,
		"Tokens per second: mean of the newest streams, each by itself.",
	},
	hostITL: {
		"headrace.host.itl", Gauge, "s", Always,
		[]string{keyVendor, keyEndpoint},
		nil,
		"Expected time between two tokens of a stream alone.",
	},
	hostConcurrency: {
		"headrace.host.concurrency", Gauge, "{request}", Always,
		[]string{keyVendor, keyEndpoint, keyFigure},
		nil,
		"Streams at once. Figures: `safe`, those that keep the default SLO; `limit`, those the engine takes.",
	},
	hostLosses: {
		"headrace.host.losses_per_day", Gauge, "{loss}", Always,
		[]string{keyVendor, keyEndpoint},
		nil,
		"How often the host is expected to be taken away.",
	},
	hostWorkers: {
		"headrace.host.workers", Gauge, "{worker}", Always,
		[]string{keyVendor, keyEndpoint},
		nil,
		"Workers of a serverless endpoint that are up.",
	},
	hostDrained: {
		"headrace.host.drained", Gauge, "{host}", Always,
		[]string{keyVendor, keyEndpoint},
		nil,
		"1 where its operator lets nothing new in.",
	},
	hostContinues: {
		"headrace.host.continues", Gauge, "{host}", Always,
		[]string{keyVendor, keyEndpoint, keyModel, keyState},
		nil,
		"1 for whether it goes on with unfinished answers, by its self-test: `yes`, `no`, `unknown`.",
	},
	probes: {
		"headrace.probes", Counter, "{probe}", Always,
		[]string{keyVendor, keyEndpoint, keyResult},
		nil,
		"Synthetic requests to hosts that had failed. Results: `ok`, `failed`.",
	},

	calibrationRatio: {
		"headrace.calibration", Gauge, "1", Always,
		[]string{keyVendor, keyEndpoint, keyFigure},
		nil,
		"Realised over predicted, geometric mean of the newest some fifty: `ttft`, `itl`, `usd`.",
	},
	calibrationExcess: {
		"headrace.calibration.excess", Gauge, "1", Always,
		[]string{keyPromise},
		nil,
		"Share of promises kept, of those that were expected to be, less the confidence. Below -0.03 predictions are too good to be true.",
	},
	calibrationAlarm: {
		"headrace.calibration.alarm", Gauge, "{alarm}", Always, nil, nil,
		"1 while an excess is below -0.03 by more than chance explains.",
	},
	calibrationPromises: {
		"headrace.calibration.promises", Counter, "{request}", Always,
		[]string{keyPromise, keyBin, keyKept},
		nil,
		"Requests by the predicted probability that a promise is kept, and whether it was.",
	},

	discoveryAge: {
		"headrace.discovery.age", Gauge, "s", Always,
		[]string{keyAccount},
		nil,
		"Since the account's hosts were last read whole. Owner of this and of all `headrace.discovery` figures: the account's own status.",
	},
	discoveryFailing: {
		"headrace.discovery.failing", Gauge, "{poll}", Always,
		[]string{keyAccount},
		nil,
		"Polls in a row that have failed.",
	},
	discoveryPolls: {
		"headrace.discovery.polls", Counter, "{poll}", Always,
		[]string{keyAccount},
		nil,
		"Polls of the account.",
	},
	discoveryHosts: {
		"headrace.discovery.hosts", Gauge, "{host}", Always,
		[]string{keyAccount},
		nil,
		"Hosts that the account has.",
	},
	discoveryCalls: {
		"headrace.discovery.calls", Counter, "{call}", Always,
		[]string{keyAccount, keyCall},
		nil,
		"Calls to the control plane, repeated ones included.",
	},
	discoveryErrors: {
		"headrace.discovery.errors", Counter, "{call}", Always,
		[]string{keyAccount, keyCall, keyReason},
		nil,
		"Calls that failed. Reasons: `throttled` for a 429, else `error`.",
	},

	reloads: {
		"headrace.config.reloads", Counter, "{reload}", Always,
		[]string{keyResult},
		nil,
		"Reloads of the config: `ok` or `failed`.",
	},
	reloadOK: {
		"headrace.config.current", Gauge, "{config}", Always, nil, nil,
		"1 while the config in force is the newest one that was read; 0 after a failed reload.",
	},
	draining: {
		"headrace.draining", Gauge, "{gateway}", Always, nil, nil,
		"1 while the gateway takes no new requests.",
	},
	ledgerRecords: {
		"headrace.ledger.records", Counter, "{request}", Always, nil, nil,
		"Requests that the ledger has taken (docs/costs.md).",
	},
	ledgerDropped: {
		"headrace.ledger.dropped", Counter, "{request}", Always, nil, nil,
		"Of these, requests of which the sums are kept and nothing else: they came faster than they could be written, or the disk failed.",
	},
	ledgerDisbelieved: {
		"headrace.ledger.disbelieved", Counter, "{attempt}", Always, nil, nil,
		"Attempts whose host reported more tokens than there can have been: these are estimated.",
	},
	ledgerFailures: {
		"headrace.ledger.write.failures", Counter, "{write}", Always, nil, nil,
		"Writes of the ledger that failed. Its sums are kept in memory until one goes well.",
	},
	ledgerSize: {
		"headrace.ledger.size", Gauge, "By", Always, nil, nil,
		"Bytes of the ledger's file that are in use.",
	},
	ledgerWritten: {
		"headrace.ledger.written", Gauge, "{ledger}", Always, nil, nil,
		"1 when the last write of the ledger went well.",
	},
	ledgerBill: {
		"headrace.ledger.bill.usd", Gauge, "{USD}", Always,
		[]string{keyAccount, keyFigure},
		nil,
		"The newest bill of an account against the ledger, of the same hosts and time. Figures: `billed`, by the account; `ledger`, by prices and the time that hosts were up.",
	},
	ledgerBillError: {
		"headrace.ledger.bill.error", Gauge, "1", Always,
		[]string{keyAccount},
		nil,
		"How much more the ledger has than was billed, as a share of the bill; below 0 for less.",
	},

	keyRefusals: {
		"headrace.keys.refusals", Counter, "{request}", Always,
		[]string{keyReason},
		nil,
		"Requests refused for want of a key or of a right, or by a key's limits, whosever it was. Reasons: `no_key`, `bad_key`, `key_in_query`, `disabled`, `expired`, `not_allowed`, `requests`, `tokens`, `concurrency`, `budget`, `budget_unknown` (docs/keys.md).",
	},
	keyBudgets: {
		"headrace.keys.budget.warnings", Counter, "{key}", Always, nil, nil,
		"Times that a key has used more than the soft share of its budget of a day, a month or in all. The log names it.",
	},
	keyCalls: {
		"headrace.keys.shared.waits", Counter, "{request}", Always,
		[]string{keyResult},
		nil,
		"Requests that waited for Redis to say whether their key's limits have room. Results: `answered`, `alone` (there was no answer in time, and this replica decided by itself).",
	},
	redisUp: {
		"headrace.redis.up", Gauge, "{redis}", Always, nil, nil,
		"1 while the Redis that replicas share answers, 0 while it does not: each goes on by itself then. Absent without `state.redis`.",
	},
	redisErrors: {
		"headrace.redis.errors", Counter, "{call}", Always, nil, nil,
		"Calls that Redis did not answer.",
	},
	redisFallbacks: {
		"headrace.redis.fallbacks", Counter, "{call}", Always, nil, nil,
		"Calls on the path of a request that were decided from this replica's memory, since Redis was slow or gone.",
	},
	replicas: {
		"headrace.replicas", Gauge, "{gateway}", Always, nil, nil,
		"Replicas that share the Redis, this one included; as last heard while it does not answer.",
	},
	replicaHosts: {
		"headrace.replicas.hosts", Counter, "{transition}", Always,
		[]string{keyResult},
		nil,
		"Hosts lost, taken away, failing or back that replicas tell each other of. Results: `told`, `heard` (it was news here), `lost` (it could not be told).",
	},
	experimentState: {
		"headrace.experiment.state", Gauge, "{experiment}", Always,
		[]string{keyExperiment, keyState},
		nil,
		"1 for the state that each experiment is in: `scheduled`, `running`, `paused`, `inconclusive`, `promoted`, `rolled_back`, `aborted` or `ended` ([experiments.md](experiments.md)). All figures of experiments are those of all replicas, as far as this one has heard: take the largest, not the sum.",
	},
	experimentShare: {
		"headrace.experiment.share", Gauge, "1", Always,
		[]string{keyExperiment, keyArm},
		nil,
		"Share of units that each arm gets now.",
	},
	experimentUnits: {
		"headrace.experiment.units", Gauge, "{unit}", Always,
		[]string{keyExperiment, keyArm},
		nil,
		"Units that each arm has had, of those that are remembered.",
	},
	experimentRequests: {
		"headrace.experiment.requests", Gauge, "{request}", Always,
		[]string{keyExperiment, keyArm, keyResult},
		nil,
		"Requests of each arm that were counted in this run. Results: `all`, and of them `failed` (a host failed, though another may have answered) and `out_of_arm` (others than the arm's hosts answered).",
	},
	experimentEffect: {
		"headrace.experiment.effect", Gauge, "1", Always,
		[]string{keyExperiment, keyArm, keyFigure, keyBound},
		nil,
		"Each arm against the control: a ratio less 1 of `ttft`, `tps` and `usd_per_mtok`, a difference of `error_rate`, `slo_missed`, `truncated` and `score`. Bounds: `estimate`, and `low` and `high` of its always-valid interval.",
	},
	experimentDecisions: {
		"headrace.experiment.decisions", Counter, "{decision}", Always,
		[]string{keyExperiment},
		nil,
		"Steps, commands and roll-backs.",
	},
	dropped: {
		"headrace.telemetry.dropped", Counter, "{item}", Always,
		[]string{keySignal, keyReason},
		nil,
		"Requests' traces and log lines that were not exported. Reasons: `queue_full`, `export_failed`.",
	},
	exportFailures: {
		"headrace.telemetry.export.failures", Counter, "{export}", Always,
		[]string{keySignal},
		nil,
		"Exports that failed.",
	},
	overflow: {
		"headrace.telemetry.overflow", Counter, "{measurement}", Always, nil, nil,
		"Records with a model or endpoint beyond the 1,000 that there is room for, counted as `other`, and hosts beyond 1,000, which have no gauges, each time that somebody reads.",
	},
	buildInfo: {
		"headrace.build", Gauge, "{build}", Always,
		[]string{keyVersion},
		nil,
		"1.",
	},
}

// Instruments returns the table. Nobody changes what it refers to.
func Instruments() []Instrument { return table[:] }
