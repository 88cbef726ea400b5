package sim

import (
	"encoding/json"
	"math"
	"slices"

	"headrace/router/outcome"
)

// Figure is a number that may be unknown: NaN, which is null in JSON.
type Figure float64

// MarshalJSON writes null for what is not a finite number.
func (f Figure) MarshalJSON() ([]byte, error) {
	if v := float64(f); math.IsNaN(v) || math.IsInf(v, 0) {
		return []byte("null"), nil
	}
	return json.Marshal(float64(f))
}

// UnmarshalJSON reads null as NaN.
func (f *Figure) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		*f = Figure(math.NaN())
		return nil
	}
	return json.Unmarshal(b, (*float64)(f))
}

// Result is what became of one run. Shares are in [0,1] of all requests unless said otherwise.
type Result struct {
	Scenario string `json:"scenario"`
	Policy   string `json:"policy"`
	Seed     uint64 `json:"seed"`

	Requests  int     `json:"requests"`
	USD       float64 `json:"usd"`         // all that was billed, idle and cold time with it
	SunkUSD   float64 `json:"sunk_usd"`    // of it, by the hour
	MeterUSD  float64 `json:"metered_usd"` // of it, by worker seconds and tokens
	FluidUSD  Figure  `json:"fluid_usd"`   // what could not be undercut: see fluid
	OutTokens int64   `json:"out_tokens"`  // delivered with answers that were not broken off

	USDPerMTok    Figure `json:"usd_per_mtok"`     // USD over OutTokens
	USDPerMTokSLO Figure `json:"usd_per_mtok_slo"` // USD over the tokens of answers that kept both promises
	SLO           Figure `json:"slo"`              // share that kept both promises
	Failed        Figure `json:"failed"`           // share that the caller saw fail
	Shed          Figure `json:"shed"`             // share that was refused
	Resumed       Figure `json:"resumed"`          // share that was continued on another host
	Metered       Figure `json:"metered"`          // share of attempts on metered hosts
	Wasted        Figure `json:"wasted"`           // share of the callers' tokens that belong to answers which failed

	TTFTp50 Figure `json:"ttft_p50"` // seconds
	TTFTp95 Figure `json:"ttft_p95"`
	TTFTp99 Figure `json:"ttft_p99"`
	TPSp50  Figure `json:"tps_p50"` // tokens per second
	TPSp05  Figure `json:"tps_p05"` // 95 % are at least as fast

	Classes map[string]int `json:"classes"` // attempts by outcome
	Hosts   []HostResult   `json:"hosts"`
	TTFT    Calibration    `json:"calibration_ttft"` // of the first promise
	TPS     Calibration    `json:"calibration_tps"`  // of the second
	Moments []Moment       `json:"moments"`
}

// HostResult is one host's part of a run.
type HostResult struct {
	Name        string      `json:"name"`
	Kind        Kind        `json:"kind"`
	Attempts    int         `json:"attempts"`
	USD         float64     `json:"usd"`
	Tokens      float64     `json:"tokens"`       // made, delivered or not
	USDPerMTok  Figure      `json:"usd_per_mtok"` // USD over Tokens
	Busy        Figure      `json:"busy"`         // share of the run with any work; of all workers' times where there are several
	InFlight    Figure      `json:"in_flight"`    // mean sequences while there was work
	Preemptions int         `json:"preemptions"`
	Down        float64     `json:"down"`      // seconds away
	KVLosses    int         `json:"kv_losses"` // sequences whose KV cache was taken from them
	Throttled   int         `json:"throttled"` // requests answered 429
	TTFT        Calibration `json:"calibration_ttft"`
	TPS         Calibration `json:"calibration_tps"`
	TTFTBias    Figure      `json:"ttft_bias"` // mean of ln(realised/expected) time to the first token
	TPSBias     Figure      `json:"tps_bias"`  // mean of ln(realised/expected) tokens per second
}

// Calibration compares what was expected with what came, by bins of the expected probability.
type Calibration struct {
	Bins  []Bin  `json:"bins"`
	Sure  Bin    `json:"sure"`  // all that were expected to keep the promise with the SLO's confidence or more
	Brier Figure `json:"brier"` // mean squared difference between the probability and what came (0 or 1)

	squares float64
	n       int
}

// Bin is one of a Calibration.
type Bin struct {
	From     float64 `json:"from"` // expected probabilities from here on, up to the next bin's
	N        int     `json:"n"`
	Expected Figure  `json:"expected"` // mean
	Realised Figure  `json:"realised"`

	sum  float64
	kept int
}

var binEdges = []float64{0, 0.5, 0.8, 0.9, 0.95, 0.99} //nolint:gochecknoglobals // a table

func newCalibration() Calibration {
	var c Calibration
	for _, e := range binEdges {
		c.Bins = append(c.Bins, Bin{From: e})
	}
	return c
}

func (b *Bin) add(p float64, kept bool) {
	b.N++
	b.sum += p
	if kept {
		b.kept++
	}
	b.close()
}

func (b *Bin) close() {
	b.Expected, b.Realised = ratio(b.sum, float64(b.N)), ratio(float64(b.kept), float64(b.N))
}

func (c *Calibration) add(p, confidence float64, kept bool) {
	if math.IsNaN(p) {
		return
	}
	i := len(c.Bins) - 1
	for i > 0 && p < c.Bins[i].From {
		i--
	}
	c.Bins[i].add(p, kept)
	if p >= confidence {
		c.Sure.add(p, kept)
	}
	came := 0.0
	if kept {
		came = 1
	}
	c.squares += (p - came) * (p - came)
	c.n++
	c.Brier = ratio(c.squares, float64(c.n))
}

func ratio(a, b float64) Figure {
	if b == 0 {
		return Figure(math.NaN())
	}
	return Figure(a / b)
}

// ledger is the account of a run's requests.
type ledger struct {
	w                    *world
	n, good, bad, refuse int
	resumed              int
	tokens, goodTokens   int
	wasted               int
	computed             float64 // prompt tokens that no session's turn before had
	attempts, metered    int
	ttft, tps            []float64
	demand               []float64 // requests by minute
	classes              map[string]int
	first, stream        Calibration
	hosts                []hostLedger
}

type hostLedger struct {
	first, stream      Calibration
	bias, streamBias   float64
	biasN, streamBiasN int
}

// shortAnswer is the most tokens of an answer whose speed nobody notices.
const shortAnswer = 10

func newLedger(w *world) ledger {
	l := ledger{w: w, classes: map[string]int{}, first: newCalibration(), stream: newCalibration(), demand: make([]float64, int(w.end/60)+1)}
	l.hosts = make([]hostLedger, len(w.hosts))
	for i := range l.hosts {
		l.hosts[i].first, l.hosts[i].stream = newCalibration(), newCalibration()
	}
	return l
}

func (l *ledger) count(r *request) {
	l.n++
	l.computed += float64(r.prompt - r.shared)
	if m := int(r.at / 60); m < len(l.demand) {
		l.demand[m]++
	}
	if r.breaks > 0 {
		l.resumed++
	}
}

func (l *ledger) served(r *request) {
	l.count(r)
	l.tokens += r.output
	ttft := r.firstAt - r.at
	tps := float64(max(1, r.output-1)) / max(1e-3, l.w.now-r.firstAt)
	l.ttft = append(l.ttft, ttft)
	short := r.output <= shortAnswer
	if !short {
		l.tps = append(l.tps, tps)
	}
	if slo := &l.w.sc.SLO; ttft <= slo.TTFT && (short || tps >= slo.TPS) {
		l.good++
		l.goodTokens += r.output
	}
}

func (l *ledger) failed(r *request) {
	l.count(r)
	l.bad++
	l.wasted += r.got
}

func (l *ledger) shed(r *request) {
	l.count(r)
	l.refuse++
}

// attempt takes in how an attempt ended, and compares it with what was expected.
func (l *ledger) attempt(a *attempt, class outcome.Class) {
	l.attempts++
	if a.host.class.Kind != Hourly {
		l.metered++
	}
	l.classes[class.String()]++
	if !a.forecast.made {
		return
	}
	slo, h, f := &l.w.sc.SLO, &l.hosts[a.host.i], &a.forecast
	switch {
	case a.firstAt > 0:
		kept := a.firstAt-a.request.at <= slo.TTFT
		l.first.add(f.pTTFT, slo.Confidence, kept)
		h.first.add(f.pTTFT, slo.Confidence, kept)
		if !a.cold && f.ttft > 0 {
			h.bias += math.Log((a.firstAt - a.begun) / f.ttft)
			h.biasN++
		}
	case class == outcome.FirstByteTimeout:
		l.first.add(f.pTTFT, slo.Confidence, false)
		h.first.add(f.pTTFT, slo.Confidence, false)
	}
	if class == outcome.Success && a.seq.output > shortAnswer {
		tps := float64(a.seq.output-1) / max(1e-3, a.streamed())
		l.stream.add(f.pTPS, slo.Confidence, tps >= slo.TPS)
		h.stream.add(f.pTPS, slo.Confidence, tps >= slo.TPS)
		if f.tps > 0 {
			h.streamBias += math.Log(tps / f.tps)
			h.streamBiasN++
		}
	}
}

func quantile(sorted []float64, p float64) Figure {
	if len(sorted) == 0 {
		return Figure(math.NaN())
	}
	return Figure(sorted[min(len(sorted)-1, int(p*float64(len(sorted))))])
}

// result closes the books.
func (w *world) result() Result {
	l := &w.ledger
	n := float64(l.n)
	res := Result{
		Scenario: w.sc.Name, Seed: w.seed, Requests: l.n, OutTokens: int64(l.tokens),
		SLO: ratio(float64(l.good), n), Failed: ratio(float64(l.bad), n), Shed: ratio(float64(l.refuse), n), Resumed: ratio(float64(l.resumed), n),
		Metered: ratio(float64(l.metered), float64(l.attempts)), Wasted: ratio(float64(l.wasted), float64(l.tokens+l.wasted)),
		Classes: l.classes, TTFT: l.first, TPS: l.stream, Moments: w.timeline,
	}
	for _, b := range w.hosts {
		b.close(w.end)
		h := &l.hosts[b.i]
		hr := HostResult{
			Name: b.class.Name, Kind: b.class.Kind, Attempts: b.requests, USD: b.usd, Tokens: b.tokens, USDPerMTok: ratio(b.usd*1e6, b.tokens),
			Preemptions: len(b.downs), TTFT: h.first, TPS: h.stream, TTFTBias: ratio(h.bias, float64(h.biasN)), TPSBias: ratio(h.streamBias, float64(h.streamBiasN)),
			Throttled: b.throttled,
		}
		for _, d := range b.downs {
			hr.Down += max(0, min(d[1], w.end)-d[0])
		}
		busy, inFlight := 0.0, 0.0
		for _, e := range b.engines {
			e.advance()
			busy += e.busy
			inFlight += e.inFlight
			hr.KVLosses += e.kvLosses
		}
		hr.Busy, hr.InFlight = ratio(busy, w.end*float64(len(b.engines))), ratio(inFlight, busy)
		res.Hosts = append(res.Hosts, hr)
		res.USD += b.usd
		if b.class.Kind == Hourly {
			res.SunkUSD += b.usd
		} else {
			res.MeterUSD += b.usd
		}
	}
	res.USDPerMTok, res.USDPerMTokSLO = ratio(res.USD*1e6, float64(l.tokens)), ratio(res.USD*1e6, float64(l.goodTokens))
	res.FluidUSD = Figure(w.fluid())
	slices.Sort(l.ttft)
	slices.Sort(l.tps)
	res.TTFTp50, res.TTFTp95, res.TTFTp99 = quantile(l.ttft, 0.5), quantile(l.ttft, 0.95), quantile(l.ttft, 0.99)
	res.TPSp50, res.TPSp05 = quantile(l.tps, 0.5), quantile(l.tps, 0.05)
	return res
}

// fluid is the cheapest conceivable bill for this traffic within the promised speed: every minute's requests are a fluid
// that fills the hourly hosts that are up, and what is left is served by the cheapest metered capacity at its best load,
// there at once and gone at once. It is a bound, not a policy; with NaN where something must be left over.
func (w *world) fluid() float64 {
	l := &w.ledger
	if l.n == 0 || l.tokens == 0 {
		return math.NaN()
	}
	served := float64(l.n - l.bad - l.refuse)
	prompt, output := l.computed/float64(l.n), float64(l.tokens)/served
	able := func(n *nature, most float64) float64 { // requests a second at the promised speed
		low, high := 0.0, 1000.0
		for range 60 {
			x := (low + high) / 2
			left := 1 - x*n.stall*prompt/n.prefill // share of time for decoding
			if left <= 0.05 || x*output*n.curve.itl(min(most, n.curve.safe(left/w.sc.SLO.TPS)))/left > min(most, n.curve.safe(left/w.sc.SLO.TPS)) {
				high = x
			} else {
				low = x
			}
		}
		return low
	}
	usd, metered := 0.0, math.Inf(1)
	capacity := make([]float64, len(w.hosts))
	for i, b := range w.hosts {
		n := &b.engines[0].nature
		switch c := b.class; c.Kind {
		case Hourly:
			usd += b.usd
			capacity[i] = able(n, float64(n.seqs))
		case Serverless:
			metered = min(metered, b.price/able(n, float64(c.Concurrency)))
		case API:
			metered = min(metered, b.price*(prompt*c.USDPerMTokIn+output*c.USDPerMTokOut)/1e6)
		}
	}
	for m, demand := range l.demand {
		from, to := float64(m)*60, float64(m)*60+60
		for i, b := range w.hosts {
			up := 60.0
			for _, d := range b.downs {
				up -= max(0, min(to, d[1])-max(from, d[0]))
			}
			demand -= capacity[i] * up
		}
		if demand > 0 {
			usd += demand * metered
		}
	}
	if math.IsInf(usd, 0) {
		return math.NaN()
	}
	return usd
}
