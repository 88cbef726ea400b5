package load

import "time"

// Row is one run in numbers. Times are in microseconds, memory in bytes; a figure that a run does not
// give (CPU of a target without a process, gaps of a plain answer) is 0.
type Row struct {
	Target      string  `json:"target"`
	Mode        string  `json:"mode"` // plain or stream
	Conns       int     `json:"c"`
	Round       int     `json:"round"`
	Seconds     float64 `json:"seconds"`
	Requests    uint64  `json:"requests"` // that ended well
	Tokens      uint64  `json:"tokens"`   // content chunks received
	Errors      uint64  `json:"errors"`
	LastError   string  `json:"last_error,omitempty"`
	RPS         float64 `json:"rps"`
	TokensPS    float64 `json:"tokens_per_s"`
	P50         float64 `json:"p50"`
	P90         float64 `json:"p90"`
	P99         float64 `json:"p99"`
	P999        float64 `json:"p999"`
	TTFT50      float64 `json:"ttft50"`
	TTFT99      float64 `json:"ttft99"`
	Gap99       float64 `json:"gap99"`
	Transit50   float64 `json:"transit50"`
	Transit99   float64 `json:"transit99"`
	CPURequest  float64 `json:"cpu_us_per_request"`
	CPUToken    float64 `json:"cpu_us_per_token"`
	MockRequest float64 `json:"mock_cpu_us_per_request"`
	IdleRSS     int64   `json:"idle_rss"`
	PeakRSS     int64   `json:"peak_rss"`
	IdleAnon    int64   `json:"idle_anon"`
	PeakAnon    int64   `json:"peak_anon"`
	// Unscheduled are the arrivals of an open loop that found the queue full.
	Unscheduled uint64 `json:"unscheduled,omitempty"`
}

func (r *run) row(cpu, mockCPU time.Duration) Row {
	y := &r.tally
	requests, tokens := y.ok.Load(), y.tokens.Load()
	w := Row{
		Target: r.t.Name, Mode: "plain", Conns: r.p.Conns, Seconds: r.elapsed.Seconds(),
		Requests: requests, Tokens: tokens, Errors: y.errs.Load(),
		RPS: float64(requests) / r.elapsed.Seconds(), TokensPS: float64(tokens) / r.elapsed.Seconds(),
		P50: micros(y.latency.Quantile(.5)), P90: micros(y.latency.Quantile(.9)),
		P99: micros(y.latency.Quantile(.99)), P999: micros(y.latency.Quantile(.999)),
		TTFT50: micros(y.ttft.Quantile(.5)), TTFT99: micros(y.ttft.Quantile(.99)),
		Gap99:     micros(y.gap.Quantile(.99)),
		Transit50: micros(y.transit.Quantile(.5)), Transit99: micros(y.transit.Quantile(.99)),
		CPURequest: perUnit(cpu, requests), CPUToken: perUnit(cpu, tokens), MockRequest: perUnit(mockCPU, requests),
		IdleRSS: r.idle.RSS, PeakRSS: r.peak.RSS, IdleAnon: r.idle.Anon, PeakAnon: r.peak.Anon,
		Unscheduled: r.unscheduled.Load(),
	}
	if r.p.Stream {
		w.Mode = "stream"
	}
	if e := y.lastError.Load(); e != nil {
		w.LastError = *e
	}
	return w
}

// micros is d in microseconds.
func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// perUnit spreads CPU time over n units, in microseconds each; 0 for no units.
func perUnit(cpu time.Duration, n uint64) float64 {
	if n == 0 {
		return 0
	}
	return micros(cpu) / float64(n)
}

// RSSPerConn is how much the process grew for each connection held, in KiB.
func (w Row) RSSPerConn() float64 { return kibEach(w.PeakRSS-w.IdleRSS, w.Conns) }

// AnonPerConn is RSSPerConn without file and shared pages.
func (w Row) AnonPerConn() float64 { return kibEach(w.PeakAnon-w.IdleAnon, w.Conns) }

func kibEach(bytes int64, n int) float64 { return float64(bytes) / 1024 / float64(n) }
