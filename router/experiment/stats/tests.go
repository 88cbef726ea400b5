package stats

import "math"

// harmful are the ratios of rates that the e-process of bad units is a mixture of.
var harmful = []float64{1.25, 1.5, 2, 3, 5, 10} //nolint:gochecknoglobals // a table

// mismatched are those of the two-sided one, of units; fine near 1, for a leak of a few percent is a mistake as well.
var mismatched = []float64{0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 0.95, 0.98, 1.02, 1.05, 1.1, 1.25, 1.5, 2, 3, 5, 10} //nolint:gochecknoglobals // a table

// eValue is an e-process for "units fall on the arm with probability w, whatever happens to them": a mixture, evenly over
// thetas, of likelihood ratios under which the odds are theta times as high. Whatever is added is known before the unit falls.
type eValue struct {
	thetas []float64
	logs   []float64
}

func newEValue(thetas []float64) eValue {
	return eValue{thetas: thetas, logs: make([]float64, len(thetas))}
}

// add counts hits on the arm and others on the control, while the arm had probability w of a hit.
func (e *eValue) add(w float64, hits, others float64) {
	if !(w > 0 && w < 1) { //nolint:staticcheck // NaN; a sure thing says nothing
		return
	}
	for i, th := range e.thetas {
		norm := math.Log(th*w + 1 - w)
		e.logs[i] += hits*(math.Log(th)-norm) - others*norm
	}
}

// log is the natural logarithm of the e-value.
func (e *eValue) log() float64 {
	top := math.Inf(-1)
	for _, l := range e.logs {
		top = max(top, l)
	}
	sum := 0.0
	for _, l := range e.logs {
		sum += math.Exp(l - top)
	}
	return top + math.Log(sum/float64(len(e.logs)))
}

// BadUnits is the e-value of units that went bad, hits of them on the arm and others on the control, while a unit of either
// was on the arm with probability w. It is at least 1/alpha at any time with a probability of at most alpha when the arm
// makes no difference.
func BadUnits(w float64, hits, others int) float64 {
	e := newEValue(harmful)
	e.add(w, float64(hits), float64(others))
	return math.Exp(e.log())
}

// MSPRT is the natural logarithm of the mixture likelihood ratio of a difference d of means, whose variance is v, against none;
// differences are thought to be normal with standard deviation tau. It reaches log(1/alpha) at any time with a probability
// of about alpha when there is no difference.
func MSPRT(d, v, tau float64) float64 {
	t := tau * tau
	return 0.5*math.Log(v/(v+t)) + t*d*d/(2*v*(v+t))
}

// Worse is MSPRT of differences that are thought to be positive, whose mixture is the normal's upper half: who only asks whether it is worse
// need not pay for the question whether it is better. It reaches log(1/alpha) with a probability of about alpha at most when the true
// difference is zero or negative.
func Worse(d, v, tau float64) float64 {
	t := tau * tau
	return MSPRT(d, v, tau) + math.Log(math.Erfc(-tau*d/math.Sqrt(2*v*(v+t))))
}

// HalfWidth is half the width of the confidence sequence at level 1-alpha that belongs to MSPRT: zero is outside of it
// exactly when MSPRT is log(1/alpha).
func HalfWidth(v, tau, alpha float64) float64 {
	t := tau * tau
	return math.Sqrt(v * (v + t) / t * 2 * math.Log(math.Sqrt((v+t)/v)/alpha))
}
