package stats

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"
)

// Experiment gathers observations and says what they show. It is safe for concurrent use.
type Experiment struct {
	design Design

	mu     sync.Mutex // guards all below
	own    *state
	refs   references
	once   record            // of a unit that is not remembered
	only   stay              // likewise
	peers  map[string]*state // what other replicas recorded, by their names
	others *state            // all of them together, nil until it is needed
}

// New returns an experiment without observations. The error names every mistake of the design.
func New(d Design) (*Experiment, error) {
	d, err := d.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("experiment: %w", err)
	}
	d.Arms, d.Weights, d.Guardrails = slices.Clone(d.Arms), slices.Clone(d.Weights), slices.Clone(d.Guardrails)
	return &Experiment{design: d, own: newState(&d), refs: newReferences()}, nil
}

// Design returns the design with its defaults filled in.
func (e *Experiment) Design() Design { return e.design }

// ErrEpochs says that weights changed too often.
var ErrEpochs = errors.New("weights have changed 31 times: begin a new experiment")

// Reweigh says that other weights are in force from now on, one for each arm. What arms gain, the control loses. Replicas have
// to be told the same ones in the same order. Weights that are in force already change nothing.
func (e *Experiment) Reweigh(weights []float64) error {
	if err := checkWeights(weights, len(e.design.Arms)); err != nil {
		return fmt.Errorf("experiment: %w", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.own
	if slices.Equal(s.epochs[len(s.epochs)-1], weights) {
		return nil
	}
	if len(s.epochs) >= maxEpochs {
		return ErrEpochs
	}
	s.epochs = append(s.epochs, slices.Clone(weights))
	return nil
}

// Shift moves the times of all that was recorded here by so much: they were told by a clock that is found to be off. Times are kept in tens of
// seconds.
func (e *Experiment) Shift(by time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	slots := int64(by.Round(slotTime) / slotTime)
	move := func(slot *uint32) {
		if *slot > 0 { // else it is not known
			*slot = uint32(min(max(int64(*slot)+slots, 1), math.MaxUint32)) //nolint:gosec // bounded
		}
	}
	s := e.own
	move(&s.slot)
	for i := range s.coming {
		move(&s.coming[i].slot)
	}
	for i := range s.units.recs {
		move(&s.units.recs[i].slot)
	}
}

// Epoch numbers the weights that are in force, from 1 on; Reweigh makes it one more unless it changes nothing. It is what a request's
// Observation.Epoch has to be whose arm is drawn now.
func (e *Experiment) Epoch() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.own.epochs)
}

// Epochs are all weights that were in force, one after another. The caller owns them.
func (e *Experiment) Epochs() [][]float64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	epochs := make([][]float64, len(e.own.epochs))
	for i := range epochs {
		epochs[i] = slices.Clone(e.own.epochs[i])
	}
	return epochs
}

// reference is what the control's requests of a block are like.
type reference struct {
	w, mean [logMetrics]float64
	load    [logMetrics]float64 // their mean load
}

// slope is what load does to a metric on hosts of one kind, as the control's requests of the same blocks show it.
type slope struct {
	xx, xy, yy, w float64 // sums of products of deviations, and of weights
}

// add takes in a request whose load and metric are that far from its block's.
func (p *slope) add(v, dx, dy float64) {
	p.xx += v * dx * dx
	p.xy += v * dx * dy
	p.yy += v * dy * dy
	p.w += v
}

// at is the change of the metric with load. Of little variation little is concluded.
func (p *slope) at() float64 {
	return max(-mostSlope, min(mostSlope, p.xy/(p.xx+leastSpread)))
}

// variance is that of at.
func (p *slope) variance() float64 {
	if p.w < 1 {
		return 0
	}
	b := p.at()
	return max(0, p.yy-2*b*p.xy+b*b*p.xx) / p.w / (p.xx + leastSpread)
}

const (
	leastSpread = 0.02 // of load: some requests at one load and as many at another that is 0.1 higher
	mostSlope   = 5.0  // log of a metric, from no load to all that is safe
)

// references are those of blocks.
type references struct {
	of     []reference
	index  map[uint64]int32
	slopes map[uint32]*[logMetrics]slope // by kind
}

func newReferences() references {
	return references{index: make(map[uint64]int32), slopes: make(map[uint32]*[logMetrics]slope)}
}

// slope finds or makes those of a kind; more kinds than maxKinds share the last.
func (r *references) slope(kind uint32) *[logMetrics]slope {
	p, ok := r.slopes[kind]
	if !ok {
		if len(r.slopes) >= maxKinds {
			kind = math.MaxUint32
			if p, ok = r.slopes[kind]; ok {
				return p
			}
		}
		p = new([logMetrics]slope)
		r.slopes[kind] = p
	}
	return p
}

const (
	maxBlocks    = 2048
	maxKinds     = 64
	leastKnown   = 3.0   // weight of the control's requests in a block before others are compared with them
	mostKnown    = 200.0 // of which it is an average: older ones fade
	mostLoad     = 4.0   // beyond, it is not known what it means
	mostResidual = 3.0   // log; further ones count as that far
)

func (r *references) find(block uint64) *reference {
	i, ok := r.index[block]
	if !ok {
		if len(r.of) >= maxBlocks {
			return nil
		}
		i = int32(len(r.of)) //nolint:gosec // at most maxBlocks
		r.index[block] = i
		r.of = append(r.of, reference{})
	}
	return &r.of[i]
}

// residual compares y, under load x, with what the control's earlier requests of the block were like, NaN where there were too few; dx
// is how far its load was from theirs, 0 when unknown. Then the control's own, of weight v, become part of it.
func (f *reference) residual(m Metric, y, x, v float64, control bool, p *slope) (d, dx float64) {
	d = math.NaN()
	if f.w[m] >= leastKnown {
		d = y - f.mean[m]
		if !math.IsNaN(x) {
			dx = x - f.load[m]
			adjusted := d - p.at()*dx
			if control {
				p.add(v, dx, d)
			}
			d = adjusted
		}
		d = max(-mostResidual, min(mostResidual, d))
	}
	if control {
		f.w[m] = min(mostKnown, f.w[m]+v)
		f.mean[m] += v / f.w[m] * (y - f.mean[m])
		if !math.IsNaN(x) {
			f.load[m] += v / f.w[m] * (x - f.load[m])
		}
	}
	return d, dx
}

// Record takes in a request. It keeps nothing of o, takes less than a microsecond and, once units, hosts and blocks are known,
// does not allocate. An arm that is not one of the design's is a mistake of the caller's that panics; weights that are not known yet
// (Observation.Epoch) are taken for the latest.
func (e *Experiment) Record(o *Observation) {
	if o.Arm < 0 || o.Arm >= len(e.design.Arms) {
		panic(fmt.Sprintf("BUG: arm %d of %d", o.Arm, len(e.design.Arms)))
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.own
	s.seq++
	a := &s.arms[o.Arm]
	a.counts.take(o)
	if o.Forced {
		return
	}
	epoch := s.epoch(o.Epoch)
	slot := slotOf(o.At)
	s.reach(slot)
	r := e.record(o.Unit, o.Arm, epoch, slot)
	if r == nil {
		a.counts.Unsampled++
		return
	}
	if r.requests == 0 {
		e.first(o, r)
	}
	r.requests++
	t := e.stay(r, epoch)
	t.requests++
	for b, is := range [ballots]bool{o.Truncated, o.Failed, o.Missed} {
		if is {
			e.bad(r, epoch, b)
		}
		e.share(r, t, Truncated+Metric(b), is) //nolint:gosec // small
	}
	if !math.IsNaN(o.Score) && !math.IsInf(o.Score, 0) {
		e.score(r, t, o.Score)
	}
	if o.Cold || o.Preempted || o.OutOfArm || o.Failed {
		return
	}
	e.compare(o, a, r, t)
}

// first takes in the first request of a unit in its arm, for what the first units tell.
func (e *Experiment) first(o *Observation, r *record) {
	r.spoilt = o.Failed
	for k := range e.own.arms {
		if (k == o.Arm && k != e.design.Control || k != o.Arm && o.Arm == e.design.Control) && e.own.arms[k].early.take(o.Arm == e.design.Control, o.Failed) {
			r.watched |= 1 << k
		}
	}
}

// stay is what is known of a unit's requests in an epoch.
func (e *Experiment) stay(r *record, epoch int) *stay {
	if !e.design.Sticky {
		e.only = stay{epoch: uint8(epoch)} //nolint:gosec // less than maxEpochs
		return &e.only
	}
	return e.own.units.stay(r, epoch)
}

// record returns what is remembered of a unit, nil of one that is not to be.
func (e *Experiment) record(unit uint64, arm, epoch int, slot uint32) *record {
	s := e.own
	if !e.design.Sticky {
		e.once = record{arm: uint8(arm)} //nolint:gosec // small
		s.saw(slot, epoch, arm)
		return &e.once
	}
	if !s.units.sampled(unit) {
		return nil
	}
	if r := s.units.find(unit, arm); r != nil {
		e.earlier(r, epoch, slot)
		return r
	}
	for s.units.full() {
		s.units.halve()
		s.rebuild(e.design.Control)
	}
	if !s.units.sampled(unit) {
		return nil
	}
	var known *record
	for k := range s.arms {
		if r := s.units.find(unit, k); r != nil && (known == nil || r.first < known.first) {
			known = r
		}
	}
	switch {
	case known == nil:
		s.saw(slot, epoch, arm)
	case epoch < int(known.first): // this request was under way for longer than a later one
		s.unsaw(known.slot, int(known.first), int(known.arm))
		s.saw(slot, epoch, arm)
	}
	return s.units.add(unit, arm, epoch, slot)
}

// earlier takes note of a request that was under way since before the epoch in which its unit was seen in its arm first.
func (e *Experiment) earlier(r *record, epoch int, slot uint32) {
	if epoch >= int(r.first) {
		return
	}
	s, counted := e.own, true
	for k := range s.arms {
		if o := s.units.find(r.unit, k); o != nil && (o.first < r.first || o.first == r.first && o.arm < r.arm) {
			counted = false
		}
	}
	if counted {
		s.unsaw(r.slot, int(r.first), int(r.arm))
		s.saw(slot, epoch, int(r.arm))
	}
	r.first, r.slot = uint8(epoch), slot //nolint:gosec // less than maxEpochs
}

// Feedback takes in what somebody says of an answer after its request was recorded, whose Epoch it was; 0 means now. With units that come
// again it is part of the unit's mean; without, every word of it counts for itself. What is no number is ignored.
func (e *Experiment) Feedback(unit uint64, arm, epoch int, score float64) {
	if arm < 0 || arm >= len(e.design.Arms) {
		panic(fmt.Sprintf("BUG: arm %d of %d", arm, len(e.design.Arms)))
	}
	if math.IsNaN(score) || math.IsInf(score, 0) {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.own
	s.seq++
	r := &record{arm: uint8(arm)} //nolint:gosec // small
	if e.design.Sticky {
		if r = e.record(unit, arm, s.epoch(epoch), s.slot); r == nil {
			return
		}
	}
	e.score(r, e.stay(r, s.epoch(epoch)), score)
}

func (e *Experiment) score(r *record, t *stay, score float64) {
	t.n[logMetrics]++
	e.revise(r, t, Score, score)
	e.own.arms[r.arm].at(int(t.epoch)).raw[Score].add(score)
}

// bad has a unit vote, of a request that was.
func (e *Experiment) bad(r *record, epoch, ballot int) {
	switch {
	case !e.design.Sticky:
		e.own.bad[ballot].vote(-1, epoch, int(r.arm))
	case r.badIn[ballot]&(1<<epoch) == 0 && e.mayVote(r, epoch, ballot):
		r.badIn[ballot] |= 1 << epoch
		e.own.vote(r, e.design.Control, epoch, ballot)
	}
}

// mayVote tells whether a unit votes for what happened in an epoch: not when it has voted of a later one, by which more is known of its
// place than the weights of the earlier say.
func (e *Experiment) mayVote(r *record, epoch, ballot int) bool {
	s := e.own
	if epoch == len(s.epochs)-1 {
		return true
	}
	for a := range s.arms {
		if o := s.units.find(r.unit, a); o != nil && o.badIn[ballot]>>(epoch+1) != 0 {
			return false
		}
	}
	return true
}

// compare takes in what is compared like with like.
func (e *Experiment) compare(o *Observation, a *arm, r *record, t *stay) {
	f := e.refs.find(o.Block)
	var h *host
	if o.Host != 0 {
		if h = e.own.host(o.Host, kindOf(o.Block), o.Arm); h != nil {
			h.n++
		}
	}
	v := max(leastWeight, 1/float64(r.requests))
	x := o.Load
	if !(x >= 0) || x > mostLoad { //nolint:staticcheck // NaN
		x = math.NaN()
	}
	slopes := e.refs.slope(kindOf(o.Block))
	some, matched := false, false
	for m, y := range [logMetrics]float64{o.TTFT, o.TPS, o.USDPerMtok} {
		if !(y > 0) || math.IsInf(y, 0) { //nolint:staticcheck // NaN
			continue
		}
		y = math.Log(y)
		a.at(int(t.epoch)).raw[m].add(y)
		some = true
		if f == nil {
			continue
		}
		control := o.Arm == e.design.Control
		d, dx := f.residual(Metric(m), y, x, v, control, &slopes[m]) //nolint:gosec // small
		if control {
			e.own.slopeVariance[m] = slopes[m].variance()
		}
		if math.IsNaN(d) {
			continue
		}
		matched = true
		t.n[m]++
		e.revise(r, t, Metric(m), d) //nolint:gosec // small
		a.off[m].w += v
		a.off[m].sum += v * dx
		if m == int(USD) {
			a.unsure.w += v
			a.unsure.sum += v * o.unsure()
		}
		if h != nil {
			h.of[m].add(v, d)
		}
	}
	if some && !matched {
		a.counts.Unmatched++
	}
}

func (s *sums) add(y float64) { s.n, s.sum, s.sq = s.n+1, s.sum+y, s.sq+y*y }

// share takes in whether a request was such.
func (e *Experiment) share(r *record, t *stay, m Metric, is bool) {
	y := 0.0
	if is {
		y = 1
	}
	e.revise(r, t, m, y)
}

// revise makes y part of a unit's mean of m in an epoch, of which t's count is one more already, and that of the arm's sums.
func (e *Experiment) revise(r *record, t *stay, m Metric, y float64) {
	a := &e.own.arms[r.arm]
	n, s, old := t.count(m), &a.at(int(t.epoch)).sum[m], float64(t.mean[m])
	if n == 1 {
		old = 0
		s.n++
		if !e.design.Sticky || e.own.units.only(r, t, m) {
			a.with[m]++
		}
	}
	now := old + (y-old)/float64(n)
	t.mean[m] = float32(now)
	now = float64(t.mean[m]) // as the sums would be made anew
	s.sum += now - old
	s.sq += now*now - old*old
}

func (c *Counts) take(o *Observation) {
	c.Requests++
	c.Resumes += int64(o.Resumes)
	c.OutputTokens += o.OutputTokens
	if math.IsNaN(o.SpentUSD) {
		c.Unpriced++
	} else {
		c.SpentUSD += o.SpentUSD
		if o.Metered {
			c.MeteredUSD += o.SpentUSD
		}
		c.PricedTokens += o.OutputTokens
	}
	if o.Forced {
		c.Forced++
		return
	}
	for _, f := range [...]struct {
		is bool
		n  *int64
	}{{o.Failed, &c.Failed}, {o.Missed, &c.Missed}, {o.Truncated, &c.Truncated}, {o.OutOfArm, &c.OutOfArm}, {o.Cold, &c.Cold}, {o.Preempted, &c.Preempted}} {
		if f.is {
			*f.n++
		}
	}
}
