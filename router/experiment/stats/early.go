package stats

import (
	"fmt"
	"math"
)

// early are the first units of an arm and the control's that came in meanwhile, each by its first request.
type early struct{ seen, failed, control, controlFailed uint32 }

// earlyUnits of an arm are watched one by one.
const earlyUnits = 20

// take takes in the first request of a unit, and tells whether it is one of the first.
func (e *early) take(control, failed bool) bool {
	if e.seen >= earlyUnits {
		return false
	}
	n := uint32(0)
	if failed {
		n = 1
	}
	if control {
		e.control++
		e.controlFailed += n
	} else {
		e.seen++
		e.failed += n
	}
	return true
}

func (e *early) add(o *early) {
	e.seen, e.failed = e.seen+o.seen, e.failed+o.failed
	e.control, e.controlFailed = e.control+o.control, e.controlFailed+o.controlFailed
}

// forget takes away the first request of a unit that take took in.
func (e *early) forget(control, failed bool) {
	n := uint32(0)
	if failed {
		n = 1
	}
	if control {
		e.control--
		e.controlFailed -= n
	} else {
		e.seen--
		e.failed -= n
	}
}

// forgo takes those of the first units away that did not come first, as o knows, by which units were seen before: nobody told of them yet when
// they were counted. Of units that o does not remember it is not known, and they are taken for such.
func (s *state) forgo(o *state, control int) {
	for i := range s.units.recs {
		r := &s.units.recs[i]
		if r.watched == 0 {
			continue
		}
		if was := o.units.find(r.unit, int(r.arm)); o.units.sampled(r.unit) && (was == nil || was.requests == 0) {
			continue
		}
		for k := range s.arms {
			if r.watched&(1<<k) != 0 {
				s.arms[k].early.forget(int(r.arm) == control, r.spoilt)
			}
		}
		r.watched = 0
	}
}

// What the first units tell has earlyPart of alpha; guardrails share the rest. An arm is stopped when as many failures as it has are too
// unlikely by the control's rate, as the units tell that came in meanwhile: less likely than trusting times that alpha if the control is thought
// to be as sound as most are, which earlyBad failures of earlyGood+earlyBad units say beforehand, and than doubting times that alpha if
// nothing is thought of it. How often both are reached by chance at any of the looks was counted in simulations, for rates up to 40 % and
// shares from 1 % to 50 %: no more often than that alpha.
const (
	earlyPart = 0.5
	trusting  = 0.14
	doubting  = 0.29
	earlyBad  = 0.5
	earlyGood = 100
)

// alarm tells how likely so many failures would be without harm, beyond what is tolerated, as part of what stops the arm: 1 and less does.
func (e *early) alarm(alpha, tolerate float64) float64 {
	k, n := float64(e.failed), float64(e.seen)
	bad, good := e.rate(tolerate)
	if e.failed < 2 || k*(bad+good) <= n*bad {
		return math.Inf(1)
	}
	if e.seen > earlyUnits { // several replicas have had their first ones: more of them are looked at
		alpha /= 1 + math.Log2(n/earlyUnits)/2
	}
	return max(e.chance(tolerate)/(trusting*alpha), failures(int(e.failed), int(e.seen), bad+0.5, good+0.5)/(doubting*alpha))
}

// rate is what is known of the control's, in units that failed and that did not, with what is tolerated.
func (e *early) rate(tolerate float64) (bad, good float64) {
	bad = float64(e.controlFailed) + tolerate*float64(e.control)
	return bad, max(0, float64(e.control)-bad)
}

// chance is how likely as many failures are of an arm that fails like the control, which is as sound as most until it shows otherwise.
func (e *early) chance(tolerate float64) float64 {
	bad, good := e.rate(tolerate)
	return failures(int(e.failed), int(e.seen), bad+earlyBad, good+earlyGood)
}

// failures is the probability of k or more failures of n units whose rate is drawn from a beta distribution.
func failures(k, n int, a, b float64) float64 {
	lg := func(x float64) float64 { y, _ := math.Lgamma(x); return y }
	beta := func(a, b float64) float64 { return lg(a) + lg(b) - lg(a+b) }
	// The probability of exactly k, and from there on upwards, so that what is small is exact.
	p := math.Exp(lg(float64(n+1)) - lg(float64(k+1)) - lg(float64(n-k+1)) + beta(a+float64(k), b+float64(n-k)) - beta(a, b))
	sum := p
	for i := k; i < n; i++ {
		x := float64(i)
		p *= (float64(n) - x) / (x + 1) * (a + x) / (b + float64(n) - x - 1)
		sum += p
	}
	return min(1, sum)
}

// tell says in words what the first units are like.
func (e *early) tell(control string, tolerate float64) string {
	beyond := ""
	if tolerate > 0 {
		beyond = ", and by what is tolerated more"
	}
	return fmt.Sprintf("error_rate: %d of the first %d units failed at their first request, of %d of %s in the same time %d did: %.2g %% likely of an arm that fails like it%s",
		e.failed, e.seen, e.control, control, e.controlFailed, 100*e.chance(tolerate), beyond)
}
