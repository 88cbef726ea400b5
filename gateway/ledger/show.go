package ledger

import (
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"time"

	"headrace/gateway/admission/queue"
)

// view is a Record as the admin API shows it; absent figures are null or left out, never zero.
type view struct {
	ID           string        `json:"request_id"`
	Trace        string        `json:"trace_id,omitempty"`
	Sampled      bool          `json:"trace_sampled,omitempty"`
	At           time.Time     `json:"at"`
	Route        string        `json:"route"`
	Model        string        `json:"model,omitempty"`
	Served       string        `json:"served,omitempty"`
	Key          string        `json:"key,omitempty"`
	Arm          string        `json:"arm,omitempty"`
	OutOfArm     bool          `json:"out_of_arm,omitempty"`
	ArmForced    bool          `json:"arm_forced,omitempty"`
	Stream       bool          `json:"stream"`
	Endpoint     string        `json:"endpoint,omitempty"`
	Provider     string        `json:"provider,omitempty"`
	Status       int           `json:"status"`
	Class        string        `json:"class"`
	Code         string        `json:"error_code,omitempty"`
	Finish       string        `json:"finish_reason,omitempty"`
	Attempts     []attemptView `json:"attempts"`
	Batch        bool          `json:"batch,omitempty"`
	Queued       float64       `json:"queued_ms,omitempty"`
	Refused      string        `json:"queue_refused,omitempty"`
	Resumes      int           `json:"resumes,omitempty"`
	SeamGap      float64       `json:"seam_gap_ms,omitempty"`
	Lost         string        `json:"not_resumed,omitempty"`
	Hedge        string        `json:"hedge,omitempty"`
	HedgeUSD     float64       `json:"hedge_waste_usd,omitempty"`
	TTFT         *float64      `json:"ttft_ms"`
	UpstreamTTFT *float64      `json:"upstream_ttft_ms"`
	Duration     float64       `json:"duration_ms"`
	Overhead     float64       `json:"overhead_us"`
	ITLp50       *float64      `json:"itl_p50_ms"`
	ITLp99       *float64      `json:"itl_p99_ms"`
	TPS          *float64      `json:"tokens_per_second"`
	Prompt       *int64        `json:"prompt_tokens"`
	Cached       *int64        `json:"cached_tokens"`
	Output       *int64        `json:"output_tokens"`
	Reasoning    *int64        `json:"reasoning_tokens"`
	Estimated    bool          `json:"output_tokens_estimated"`
	BytesIn      int64         `json:"bytes_in"`
	BytesOut     int64         `json:"bytes_out"`
	USD          *float64      `json:"usd"`
	MoreAttempts int           `json:"attempts_not_shown,omitempty"`
}

type attemptView struct {
	Endpoint string   `json:"endpoint"`
	Class    string   `json:"class"`
	Status   int      `json:"status,omitempty"`
	Duration float64  `json:"duration_ms"`
	After    float64  `json:"after_ms"`
	Prompt   int64    `json:"prompt_tokens,omitempty"` // estimated unless counted
	Cached   int64    `json:"cached_tokens,omitempty"`
	Output   int64    `json:"output_tokens,omitempty"`
	Counted  bool     `json:"tokens_counted"`
	USD      *float64 `json:"usd"`
	Share    float64  `json:"host_seconds,omitempty"`
	Worker   string   `json:"worker,omitempty"`
	Executed float64  `json:"worker_seconds,omitempty"`
	Delayed  float64  `json:"delay_ms,omitempty"`
	Redone   int      `json:"redispatches,omitempty"`
	Note     string   `json:"note,omitempty"`
	Hedge    bool     `json:"hedge,omitempty"`
	GoesOn   string   `json:"goes_on_by,omitempty"` // "text" or "token_ids", with the answer of those before
	Behind   int64    `json:"behind_tokens,omitempty"`
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

func some[T comparable](v, none T) *T {
	if v == none {
		return nil
	}
	return &v
}

// MarshalJSON shows the record with units in every name.
func (r *Record) MarshalJSON() ([]byte, error) {
	v := view{
		ID: r.ID, At: r.At.UTC(), Route: r.Route, Model: r.Model, Served: r.Served, Key: r.Key, Arm: r.Arm, OutOfArm: r.OutOfArm, ArmForced: r.Forced && r.Arm != "", Stream: r.Stream,
		Endpoint: string(r.Endpoint), Provider: r.Provider, Status: r.Status, Class: r.Class.String(), Code: r.Code, Finish: r.Finish,
		Attempts: []attemptView{}, TTFT: some(millis(r.TTFT), 0), UpstreamTTFT: some(millis(r.UpstreamTTFT), 0),
		Duration: millis(r.Duration), Overhead: micros(r.Overhead), ITLp50: some(millis(r.ITLp50), 0), ITLp99: some(millis(r.ITLp99), 0),
		TPS: some(r.TPS, 0), Prompt: some(r.Prompt, -1), Cached: some(r.Cached, -1), Output: some(r.Output, -1), Reasoning: some(r.Reasoning, -1),
		Estimated: r.Estimated, BytesIn: r.BytesIn, BytesOut: r.BytesOut, MoreAttempts: max(0, r.Tries-MaxAttempts),
		Resumes: r.Resumes, SeamGap: millis(r.SeamGap), Lost: r.Lost, Hedge: r.Hedge, HedgeUSD: r.HedgeUSD,
	}
	if r.USDKnown {
		v.USD = &r.USD
	}
	if v.Batch, v.Queued = r.Batch, millis(r.Queued); r.Refused != queue.Waits {
		v.Refused = r.Refused.String()
	}
	if r.Trace.On() {
		v.Trace, v.Sampled = hex.EncodeToString(r.Trace.ID[:]), r.Trace.Sampled
	}
	for i := range r.Attempts {
		a := &r.Attempts[i]
		var usd *float64
		if a.USDKnown {
			usd = &a.USD
		}
		by := ""
		switch {
		case a.Exact:
			by = "token_ids"
		case a.Resumed:
			by = "text"
		}
		v.Attempts = append(v.Attempts, attemptView{
			GoesOn: by, Behind: a.Offset, After: millis(a.After), Prompt: a.Prompt, Cached: a.Cached, Counted: a.Counted, USD: usd, Share: a.Share.Seconds(),
			Endpoint: string(a.Endpoint), Class: a.Class.String(), Status: a.Status, Duration: millis(a.Duration), Output: a.Output, Worker: a.Told().Worker,
			Executed: a.Told().Executed.Seconds(), Delayed: millis(a.Told().Delayed), Redone: a.Told().Redone, Note: a.Told().Note, Hedge: a.Hedge,
		})
	}
	return json.Marshal(&v)
}

// Attrs appends the record as fields of an access log line to dst; figures that are unknown are left out.
func (r *Record) Attrs(dst []slog.Attr) []slog.Attr {
	dst = append(dst, slog.String("request_id", r.ID))
	if r.Trace.On() {
		dst = append(dst, slog.String("trace_id", hex.EncodeToString(r.Trace.ID[:])), slog.String("span_id", hex.EncodeToString(r.Trace.Span[:])))
	}
	dst = append(dst, slog.String("route", r.Route), slog.String("model", r.Model))
	if r.Key != "" {
		dst = append(dst, slog.String("key", r.Key))
	}
	if r.Arm != "" {
		dst = append(dst, slog.String("arm", r.Arm))
		if r.OutOfArm {
			dst = append(dst, slog.Bool("out_of_arm", true))
		}
	}
	dst = append(dst, slog.Bool("stream", r.Stream), slog.String("endpoint", string(r.Endpoint)), slog.Int("status", r.Status),
		slog.String("class", r.Class.String()), slog.Int("attempts", r.Tries), slog.Float64("duration_ms", millis(r.Duration)),
		slog.Float64("overhead_us", micros(r.Overhead)))
	if r.Code != "" {
		dst = append(dst, slog.String("error_code", r.Code))
	}
	if r.Batch {
		dst = append(dst, slog.Bool("batch", true))
	}
	if r.Queued > 0 {
		dst = append(dst, slog.Float64("queued_ms", millis(r.Queued)))
	}
	if r.Refused != queue.Waits {
		dst = append(dst, slog.String("queue_refused", r.Refused.String()))
	}
	if r.Resumes > 0 {
		dst = append(dst, slog.Int("resumes", r.Resumes), slog.Float64("seam_gap_ms", millis(r.SeamGap)))
	}
	if r.Lost != "" {
		dst = append(dst, slog.String("not_resumed", r.Lost))
	}
	if r.Hedge != "" {
		dst = append(dst, slog.String("hedge", r.Hedge), slog.Float64("hedge_waste_usd", r.HedgeUSD))
	}
	if r.TTFT > 0 {
		dst = append(dst, slog.Float64("ttft_ms", millis(r.TTFT)), slog.Float64("upstream_ttft_ms", millis(r.UpstreamTTFT)))
	}
	if r.TPS > 0 {
		dst = append(dst, slog.Float64("tokens_per_second", r.TPS), slog.Float64("itl_p50_ms", millis(r.ITLp50)), slog.Float64("itl_p99_ms", millis(r.ITLp99)))
	}
	if r.Prompt >= 0 {
		dst = append(dst, slog.Int64("prompt_tokens", r.Prompt))
	}
	if r.Output >= 0 {
		dst = append(dst, slog.Int64("output_tokens", r.Output))
		if r.Estimated {
			dst = append(dst, slog.Bool("output_tokens_estimated", true))
		}
	}
	if r.USDKnown {
		dst = append(dst, slog.Float64("usd", r.USD))
	}
	return dst
}
