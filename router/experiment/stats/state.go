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

// sums are over an arm's units, each of which counts once.
type sums struct{ n, sum, sq float64 }

func (s *sums) mean() float64 { return s.sum / s.n }

// early are the first units of an arm.
type early struct{ seen, failed uint32 }

// earlyUnits of an arm are watched one by one. When earlyFails of them fail at their first request, and their share is earlyTimes that
// of the control's requests, for it is no news of the arm when everything fails, the arm is stopped.
const (
	earlyUnits = 20
	earlyFails = 5
	earlyTimes = 4
)

// arm is what is known of one.
type arm struct {
	counts Counts
	sum    [metrics]sums
	raw    [metrics]sums // of requests' logarithms, not compared: what the report shows as typical
	early  early
	off    [logMetrics]weighted // how far the load of what was compared was from the control's, in its blocks; only w and sum
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
	failed votes
	missed votes
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
func (s *state) lastVote(unit uint64, epoch int, mask func(*record) uint32) (last, arm int) {
	last = -1
	for a := range s.arms {
		if r := s.units.find(unit, a); r != nil {
			for e := epoch - 1; e > last; e-- {
				if mask(r)&(1<<e) != 0 {
					last, arm = e, a
					break
				}
			}
		}
	}
	return last, arm
}

func failedIn(r *record) uint32 { return r.failedIn }
func missedIn(r *record) uint32 { return r.missedIn }

// bad lets a remembered unit vote, once an epoch. Who voted for the control before votes again only among those who were
// the control's then; of who voted for another arm nothing is learned, for it stays there.
func (s *state) bad(v *votes, r *record, control, epoch int, mask func(*record) uint32) {
	last, arm := s.lastVote(r.unit, epoch, mask)
	if last >= 0 && (arm != control || last < s.rising(control, epoch)) {
		return
	}
	v.vote(last, epoch, int(r.arm))
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
		s.arms[a].sum = [metrics]sums{}
	}
	s.seen, s.failed, s.missed, s.coming = nil, nil, nil, nil
	for i := range s.units.recs {
		r := &s.units.recs[i]
		for m := range metrics {
			if r.count(m) > 0 {
				t, y := &s.arms[r.arm].sum[m], float64(r.mean[m])
				t.n, t.sum, t.sq = t.n+1, t.sum+y, t.sq+y*y
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
		if r.failedIn|r.missedIn == 0 {
			continue
		}
		for e := range s.epochs {
			if r.failedIn&(1<<e) != 0 {
				s.bad(&s.failed, r, control, e, failedIn)
			}
			if r.missedIn&(1<<e) != 0 {
				s.bad(&s.missed, r, control, e, missedIn)
			}
		}
	}
}
