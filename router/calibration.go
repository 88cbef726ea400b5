package router

import (
	"encoding/json"
	"math"
	"sync"
)

// Calibration compares what was predicted with what came.
type Calibration struct {
	// Bins of predicted probability, a tenth each, of all requests: how many there were, and how many kept the promise.
	TTFT, TPS [10]CalibrationBin
	// Of the newest requests that were expected to keep a promise with at least its confidence: the share that did, less
	// the mean confidence. NaN with fewer than 50.
	TTFTExcess, TPSExcess float64
	// Alarm says that one of the two is below -0.03 by more than chance explains: predictions are too good to be true.
	Alarm bool
}

// MarshalJSON shows an excess that is not known as null.
func (c Calibration) MarshalJSON() ([]byte, error) {
	type promise struct {
		Bins   [10]CalibrationBin `json:"bins"`
		Excess *float64           `json:"excess"`
	}
	return json.Marshal(struct {
		TTFT  promise `json:"ttft"`
		TPS   promise `json:"tokens_per_second"`
		Alarm bool    `json:"alarm"`
	}{promise{c.TTFT, known(c.TTFTExcess)}, promise{c.TPS, known(c.TPSExcess)}, c.Alarm})
}

// CalibrationBin counts predictions.
type CalibrationBin struct {
	N         int64   `json:"n"`
	Predicted float64 `json:"predicted"` // mean
	Kept      int64   `json:"kept"`
}

const (
	alarmBelow    = -0.03
	alarmRequests = 50
	alarmWeight   = 1.0 / 200 // of the newest request
	alarmSigmas   = 2.0       // standard errors that the excess is below 0, at least: fifty requests say little of three in a hundred
	alarmOff      = 2.0 / 3   // of what sets the alarm off ends it, so that it does not flutter
)

// calibration learns how true predictions are.
type calibration struct {
	mu        sync.Mutex // guards all below
	ttft, tps bins
}

type bins struct {
	bin    [10]CalibrationBin
	n      int64   // promises expected to be kept
	excess float64 // mean of kept (0 or 1) less the confidence
	chance float64 // mean variance of one such difference, where predictions are true
	shares float64 // sum of the squared weights in these means
	alarm  bool
}

func (b *bins) add(p, confidence float64, kept bool) {
	if math.IsNaN(p) {
		return
	}
	c := &b.bin[min(9, max(0, int(p*10)))]
	c.N++
	c.Predicted += (p - c.Predicted) / float64(c.N)
	hit := 0.0
	if kept {
		c.Kept++
		hit = 1
	}
	if p < confidence {
		return
	}
	b.n++
	w := max(alarmWeight, 1/float64(b.n))
	b.excess += w * (hit - confidence - b.excess)
	b.chance += w * (confidence*(1-confidence) - b.chance)
	b.shares = (1-w)*(1-w)*b.shares + w*w
	limit := min(alarmBelow, -alarmSigmas*math.Sqrt(b.chance*b.shares))
	if b.alarm {
		limit *= alarmOff
	}
	b.alarm = b.n >= alarmRequests && b.excess < limit
}

func (b *bins) sure() float64 {
	if b.n < alarmRequests {
		return math.NaN()
	}
	return b.excess
}

// Calibration returns the comparison so far.
func (r *Router) Calibration() Calibration {
	c := &r.calibrated
	c.mu.Lock()
	defer c.mu.Unlock()
	return Calibration{
		TTFT: c.ttft.bin, TPS: c.tps.bin, TTFTExcess: c.ttft.sure(), TPSExcess: c.tps.sure(), Alarm: c.ttft.alarm || c.tps.alarm,
	}
}

// ratio is the mean logarithm of realised over predicted, and its spread.
type ratio struct {
	n        int64
	mean, sq float64
}

func (q *ratio) add(realised, predicted float64) {
	d := math.Log(realised / predicted)
	if math.IsNaN(d) || math.IsInf(d, 0) {
		return
	}
	q.n++
	w := max(0.02, 1/float64(q.n))
	q.mean += w * (d - q.mean)
	q.sq += w * (d*d - q.sq)
}

// HostCalibration is how true predictions for one endpoint are: realised over predicted, as the geometric mean of the
// newest some fifty, and the standard deviation of the logarithm. Nil before there was any.
type HostCalibration struct {
	TTFT      *float64 `json:"ttft_ratio"`
	TTFTSigma *float64 `json:"ttft_log_sigma"`
	ITL       *float64 `json:"itl_ratio"`
	ITLSigma  *float64 `json:"itl_log_sigma"`
	USD       *float64 `json:"usd_ratio"` // realised share of the bill over marginal cost
}

func (q *ratio) show() (mean, sigma *float64) {
	if q.n == 0 {
		return nil, nil
	}
	return known(math.Exp(q.mean)), known(math.Sqrt(max(0, q.sq-q.mean*q.mean)))
}
