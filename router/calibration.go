package router

import (
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
	// Alarm says that one of the two is below -0.03: predictions are too good to be true.
	Alarm bool
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
	if p >= confidence {
		b.n++
		b.excess += max(alarmWeight, 1/float64(b.n)) * (hit - confidence - b.excess)
	}
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
	out := Calibration{TTFT: c.ttft.bin, TPS: c.tps.bin, TTFTExcess: c.ttft.sure(), TPSExcess: c.tps.sure()}
	out.Alarm = out.TTFTExcess < alarmBelow || out.TPSExcess < alarmBelow
	return out
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
