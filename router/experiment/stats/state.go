package stats

import (
	"math"
	"time"
)

// Counts are an arm's requests. Those set aside are counted among Requests, and their failures and SLO misses are.
type Counts struct {
	Requests     int64   `json:"requests"`
	Forced       int64   `json:"forced"`     // asked for the arm: not compared at all
	Unsampled    int64   `json:"unsampled"`  // of units that are not remembered
	Failed       int64   `json:"failed"`     // as are all below, of those that were drawn
	Missed       int64   `json:"missed"`     // their SLO
	Truncated    int64   `json:"truncated"`  //
	OutOfArm     int64   `json:"out_of_arm"` // served elsewhere; speed and price set aside, as of the next three
	Cold         int64   `json:"cold"`
	Preempted    int64   `json:"preempted"`
	Unmatched    int64   `json:"unmatched"` // the control had nothing like it: no such hosts, prompts, load
	Resumes      int64   `json:"resumes"`
	SpentUSD     float64 `json:"spent_usd"`   // of those with a known price
	MeteredUSD   float64 `json:"metered_usd"` // of it what would not have been spent without the request
	Unpriced     int64   `json:"unpriced"`
	OutputTokens int64   `json:"output_tokens"`
	PricedTokens int64   `json:"priced_tokens"` // output tokens of those with a known price
}

func (c *Counts) add(o *Counts) {
	c.Requests += o.Requests
	c.Forced += o.Forced
	c.Unsampled += o.Unsampled
	c.Failed += o.Failed
	c.Missed += o.Missed
	c.Truncated += o.Truncated
	c.OutOfArm += o.OutOfArm
	c.Cold += o.Cold
	c.Preempted += o.Preempted
	c.Unmatched += o.Unmatched
	c.Resumes += o.Resumes
	c.SpentUSD += o.SpentUSD
	c.MeteredUSD += o.MeteredUSD
	c.Unpriced += o.Unpriced
	c.OutputTokens += o.OutputTokens
	c.PricedTokens += o.PricedTokens
}

// sums are over units, each of which counts once.
type sums struct{ n, sum, sq float64 }

func (s *sums) mean() float64 { return s.sum / s.n }

// squares is the sum of squared differences from the mean.
func (s *sums) squares() float64 {
	if s.n == 0 {
		return 0
	}
	return max(0, s.sq-s.sum*s.sum/s.n)
}

// stratum is what an arm's units were like in one epoch. While weights are what they are, arms meet the same times; over several epochs
// they do not, for an arm has more of the later ones.
type stratum struct {
	sum [metrics]sums // each unit's mean over its requests of the epoch
	raw [metrics]sums // of requests' logarithms and of scores, not compared: what the report shows as typical
}

// arm is what is known of one.
type arm struct {
	counts Counts
	with   [metrics]int // units of which a figure is known, in whatever epoch
	strata []stratum    // by epoch, as far as there was a request
	early  early
	off    [logMetrics]weighted // how far the load of what was compared was from the control's, in its blocks; only w and sum
	unsure weighted             // of prices that were compared (Observation.USDUnsure); likewise
}

// units is how many were seen.
func (a *arm) units() int { return a.with[Failed] }

// at finds or makes what is known of an epoch.
func (a *arm) at(epoch int) *stratum {
	for len(a.strata) <= epoch {
		a.strata = append(a.strata, stratum{})
	}
	return &a.strata[epoch]
}

// known tells whether any request had a figure of m, compared or not.
func (a *arm) known(m Metric) bool {
	for i := range a.strata {
		if a.strata[i].raw[m].n > 0 {
			return true
		}
	}
	return false
}

// class counts, by arm, units that voted in an epoch and whose last vote before was on the control in epoch from; -1 when
// they had not voted before.
type class struct {
	from, epoch int8
	count       [MaxArms]uint32
}

// votes are units by class.
type votes []class

func (v *votes) vote(from, epoch, arm int) { v.class(from, epoch).count[arm]++ }

// count adds the votes of many.
func (v *votes) count(from, epoch int, n *[MaxArms]uint32) {
	c := v.class(from, epoch)
	for a := range n {
		c.count[a] += n[a]
	}
}

// class finds or makes one.
func (v *votes) class(from, epoch int) *class {
	for i := range *v {
		if c := &(*v)[i]; int(c.from) == from && int(c.epoch) == epoch {
			return c
		}
	}
	*v = append(*v, class{from: int8(from), epoch: int8(epoch)}) //nolint:gosec // less than maxEpochs
	return &(*v)[len(*v)-1]
}

func (v *votes) add(o votes) {
	for i := range o {
		v.count(int(o[i].from), int(o[i].epoch), &o[i].count)
	}
}

// host is what one host did for one arm.
type host struct {
	id, kind uint32
	arm      uint8
	n        int64
	of       [logMetrics]weighted // residuals
}

// weighted sums count a unit's later requests less, down to leastWeight.
type weighted struct{ w, w2, sum, sq float64 }

const leastWeight = 0.1

func (s *weighted) add(v, y float64) {
	s.w += v
	s.w2 += v * v
	s.sum += v * y
	s.sq += v * y * y
}

// mean and its variance, NaN where there is too little.
func (s *weighted) mean() (m, variance float64) {
	if s.w <= 0 {
		return math.NaN(), math.NaN()
	}
	m = s.sum / s.w
	return m, max(0, s.sq/s.w-m*m) * s.w2 / (s.w * s.w)
}

// most hosts of arms that are told apart; further ones are compared, but not told.
const maxHosts = 1024

// state is all that recording leaves, but for references, which are of the recorder's own.
type state struct {
	seq    uint64      // observations recorded
	epochs [][]float64 // weights in force, by arm
	arms   []arm
	units  units
	seen   votes     // units, of times that have been settled
	coming []arrival // units of later times
	slot   uint32    // the latest in which a request was accepted
	settle uint32    // slots until all of one has been settled
	bad    [ballots]votes
	hosts  []host
	byHost map[uint64]int32 // arm and host: position in hosts
	// slopeVariance is that of what load is thought to do, by which what was compared was adjusted.
	slopeVariance [logMetrics]float64
}

// arrival are units that were first seen in a slot of time, in epoch, by arm.
type arrival struct {
	slot  uint32
	epoch int8
	count [MaxArms]uint32
}

// slotTime is what arrivals are kept apart by.
const slotTime = 10 * time.Second

// slotOf is a time's slot, 0 of a zero time.
func slotOf(t time.Time) uint32 {
	if t.Unix() <= 0 {
		return 0
	}
	return uint32(min(t.Unix()/int64(slotTime/time.Second), math.MaxUint32)) //nolint:gosec // positive
}

// saw counts a unit that was first seen in a slot and an epoch.
func (s *state) saw(slot uint32, epoch, arm int) {
	if slot == 0 || s.settled(slot) {
		s.seen.vote(-1, epoch, arm)
		return
	}
	for i := range s.coming {
		if c := &s.coming[i]; c.slot == slot && int(c.epoch) == epoch {
			c.count[arm]++
			return
		}
	}
	c := arrival{slot: slot, epoch: int8(epoch)} //nolint:gosec // less than maxEpochs
	c.count[arm] = 1
	s.coming = append(s.coming, c)
}

// settled says that all requests which were accepted in a slot have been recorded.
func (s *state) settled(slot uint32) bool { return uint64(slot)+uint64(s.settle) < uint64(s.slot) }

// reach says that a request was accepted in a slot: time has passed.
func (s *state) reach(slot uint32) {
	if slot <= s.slot {
		return
	}
	s.slot = slot
	kept := s.coming[:0]
	for i := range s.coming {
		if c := &s.coming[i]; s.settled(c.slot) {
			s.seen.count(-1, int(c.epoch), &c.count)
		} else {
			kept = append(kept, *c)
		}
	}
	s.coming = kept
}

// unsaw takes back what saw counted, of a unit that is found to have come earlier.
func (s *state) unsaw(slot uint32, epoch, arm int) {
	for i := range s.coming {
		if c := &s.coming[i]; c.slot == slot && int(c.epoch) == epoch && c.count[arm] > 0 {
			c.count[arm]--
			return
		}
	}
	if c := s.seen.class(-1, epoch); c.count[arm] > 0 {
		c.count[arm]--
	}
}

func newState(d *Design) *state {
	return &state{
		epochs: [][]float64{append([]float64(nil), d.Weights...)},
		arms:   make([]arm, len(d.Arms)),
		units:  units{most: d.Capacity},
		settle: uint32((d.Settle + slotTime - 1) / slotTime), //nolint:gosec // not negative
		byHost: make(map[uint64]int32),
	}
}

// host finds or makes what is known of a host, nil when there are too many.
func (s *state) host(id uint32, kind uint32, arm int) *host {
	key := uint64(arm)<<32 | uint64(id) //nolint:gosec // small
	if i, ok := s.byHost[key]; ok {
		return &s.hosts[i]
	}
	if len(s.hosts) >= maxHosts {
		return nil
	}
	s.byHost[key] = int32(len(s.hosts))                                  //nolint:gosec // at most maxHosts
	s.hosts = append(s.hosts, host{id: id, kind: kind, arm: uint8(arm)}) //nolint:gosec // small
	return &s.hosts[len(s.hosts)-1]
}

// epoch is the index of an Observation's Epoch.
func (s *state) epoch(e int) int {
	if e <= 0 || e > len(s.epochs) {
		return len(s.epochs) - 1
	}
	return e - 1
}

// rising is the first epoch since which no arm but the control lost weight, up to epoch e.
func (s *state) rising(control, e int) int {
	for ; e > 0; e-- {
		for a, w := range s.epochs[e] {
			if a != control && w < s.epochs[e-1][a] {
				return e
			}
		}
	}
	return 0
}

// lastVote says when a unit voted last before epoch, and for which arm; -1 for never.
func (s *state) lastVote(unit uint64, epoch, ballot int) (last, arm int) {
	last = -1
	for a := range s.arms {
		if r := s.units.find(unit, a); r != nil {
			for e := epoch - 1; e > last; e-- {
				if r.badIn[ballot]&(1<<e) != 0 {
					last, arm = e, a
					break
				}
			}
		}
	}
	return last, arm
}

// ballots are votes by what went bad: Truncated, Failed, Missed.
const ballots = 3

// ballot is the place of m among them.
func (m Metric) ballot() (i int, voted bool) {
	return int(m) - int(Truncated), m >= Truncated && m <= Missed
}

// vote lets a remembered unit vote, once an epoch. Who voted for the control before votes again only among those who were
// the control's then; of who voted for another arm nothing is learned, for it stays there.
func (s *state) vote(r *record, control, epoch, ballot int) {
	last, arm := s.lastVote(r.unit, epoch, ballot)
	if last >= 0 && (arm != control || last < s.rising(control, epoch)) {
		return
	}
	s.bad[ballot].vote(last, epoch, int(r.arm))
}

// odds is the probability that a unit of a class was on the arm, given that it was there or on the control.
func (s *state) odds(c *class, control, arm int) float64 {
	now := s.epochs[c.epoch]
	if c.from < 0 {
		return now[arm] / (now[arm] + now[control])
	}
	then := s.epochs[c.from]
	gained := now[arm] - then[arm]
	lost := 0.0
	for a := range now {
		if a != control {
			lost += now[a] - then[a]
		}
	}
	if left := then[control] - lost; gained > 0 && left > 0 && math.Abs(left-now[control]) < 1e-9 {
		return gained / (gained + left)
	}
	return 0
}

// logE is the log e-value of votes for an arm against the control.
func (s *state) logE(v votes, thetas []float64, control, arm int) float64 {
	e := newEValue(thetas)
	for i := range v {
		e.add(s.odds(&v[i], control, arm), float64(v[i].count[arm]), float64(v[i].count[control]))
	}
	return e.log()
}

// rebuild makes anew what follows from the records.
func (s *state) rebuild(control int) {
	for a := range s.arms {
		arm := &s.arms[a]
		arm.with = [metrics]int{}
		for e := range arm.strata {
			arm.strata[e].sum = [metrics]sums{}
		}
	}
	s.seen, s.bad, s.coming = nil, [ballots]votes{}, nil
	for i := range s.units.recs {
		r := &s.units.recs[i]
		arm := &s.arms[r.arm]
		var with [metrics]bool
		for j := r.stays; j > 0; j = s.units.stays[j-1].next {
			t := &s.units.stays[j-1]
			for m := range metrics {
				if t.count(m) > 0 {
					arm.at(int(t.epoch)).sum[m].add(float64(t.mean[m]))
					with[m] = true
				}
			}
		}
		for m, is := range with {
			if is {
				arm.with[m]++
			}
		}
		first := true
		for a := range s.arms {
			if o := s.units.find(r.unit, a); o != nil && (o.first < r.first || o.first == r.first && o.arm < r.arm) {
				first = false
			}
		}
		if first {
			s.saw(r.slot, int(r.first), int(r.arm))
		}
		for b, in := range r.badIn {
			for e := 0; in != 0; e, in = e+1, in>>1 {
				if in&1 != 0 {
					s.vote(r, control, e, b)
				}
			}
		}
	}
}
