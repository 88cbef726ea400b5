package stats

import "slices"

// record is what is remembered of a unit in one arm.
type record struct {
	unit     uint64
	badIn    [ballots]uint32 // bit i: it voted of epoch i, having had a truncated answer, a failure, a missed SLO
	requests uint32          // that were drawn
	slot     uint32          // of time in which the request was accepted that it was first seen by; 0 for unknown
	stays    uint32          // position of its newest stay + 1, 0 for none
	arm      uint8
	first    uint8 // epoch when it was first seen in this arm
	// watched are the arms, by bit, among whose first units this process has counted it, and spoilt says that its first request failed. No
	// snapshot has them: what was counted by an earlier process stays so.
	watched uint16
	spoilt  bool
}

// stay is what a unit's requests of one epoch were like.
type stay struct {
	next     uint32           // position of the unit's stay of another epoch + 1, 0 for none
	requests uint32           // whose outcome counts: all that were drawn
	n        [counted]uint32  // figures that went into the mean of each logMetric, and of Score
	mean     [metrics]float32 // of residuals, of shares, of scores
	epoch    uint8
}

// counted are the metrics that a request may lack: the log ones and Score.
const counted = logMetrics + 1

// count is how many requests went into the mean of m.
func (t *stay) count(m Metric) uint32 {
	switch {
	case m < logMetrics:
		return t.n[m]
	case m == Score:
		return t.n[logMetrics]
	}
	return t.requests
}

// units finds records by unit and arm. There are at most as many as it was told, then those of half of all units are dropped.
type units struct {
	recs  []record
	stays []stay
	index []uint32 // position in recs + 1, 0 for none; a power of two of slots, twice as many as records at least
	most  int
	level uint // units whose mixed hash begins with that many zero bits are remembered
}

// sampled says that a unit is one of those that are remembered.
func (u *units) sampled(unit uint64) bool {
	return u.level == 0 || mix(unit^0xa5a5a5a5a5a5a5a5)>>(64-u.level) == 0
}

func (u *units) slot(unit uint64, arm int) uint64 {
	mask := uint64(len(u.index) - 1)
	for i := mix(unit+uint64(arm)*0x632be59bd9b4e019) & mask; ; i = (i + 1) & mask { //nolint:gosec // an index
		p := u.index[i]
		if p == 0 {
			return i
		}
		if r := &u.recs[p-1]; r.unit == unit && int(r.arm) == arm {
			return i
		}
	}
}

// find returns the record of a unit in an arm, nil when there is none. It is good until the next add.
func (u *units) find(unit uint64, arm int) *record {
	if len(u.index) == 0 {
		return nil
	}
	if p := u.index[u.slot(unit, arm)]; p != 0 {
		return &u.recs[p-1]
	}
	return nil
}

// add makes the record of a sampled unit, of which there must be none. There must be room.
func (u *units) add(unit uint64, arm, epoch int, slot uint32) *record {
	if 2*(len(u.recs)+1) > len(u.index) {
		u.resize(max(128, 2*len(u.index)))
	}
	i := u.slot(unit, arm)
	u.recs = append(u.recs, record{unit: unit, arm: uint8(arm), first: uint8(epoch), slot: slot}) //nolint:gosec // both are small
	u.index[i] = uint32(len(u.recs))                                                              //nolint:gosec // at most most
	return &u.recs[len(u.recs)-1]
}

// stay finds or makes a record's of an epoch. It is good until the next one is made.
func (u *units) stay(r *record, epoch int) *stay {
	for i := r.stays; i > 0; i = u.stays[i-1].next {
		if t := &u.stays[i-1]; int(t.epoch) == epoch {
			return t
		}
	}
	u.stays = append(u.stays, stay{next: r.stays, epoch: uint8(epoch)}) //nolint:gosec // less than maxEpochs
	r.stays = uint32(len(u.stays))                                      //nolint:gosec // at most maxEpochs a record
	return &u.stays[len(u.stays)-1]
}

// only tells whether this is the only stay of a record with a figure of m.
func (u *units) only(r *record, t *stay, m Metric) bool {
	for i := r.stays; i > 0; i = u.stays[i-1].next {
		if o := &u.stays[i-1]; o != t && o.count(m) > 0 {
			return false
		}
	}
	return true
}

// turn reverses the order of a record's stays: the newest first again, after they were read.
func (u *units) turn(r *record) {
	last := uint32(0)
	for i := r.stays; i > 0; {
		t := &u.stays[i-1]
		i, t.next, last = t.next, last, i
	}
	r.stays = last
}

// reserve makes room for so many records.
func (u *units) reserve(n int) {
	slots := max(128, len(u.index))
	for slots < 2*n {
		slots *= 2
	}
	if slots > len(u.index) {
		u.recs = slices.Grow(u.recs, n-len(u.recs))
		u.resize(slots)
	}
}

func (u *units) full() bool { return len(u.recs) >= u.most }

// halve drops the records of half of the units that are left.
func (u *units) halve() {
	u.level++
	kept := u.recs[:0]
	for i := range u.recs {
		if u.sampled(u.recs[i].unit) {
			kept = append(kept, u.recs[i])
		}
	}
	u.recs = kept
	u.resize(len(u.index))
	stays := make([]stay, 0, len(u.stays)/2+16)
	for i := range u.recs {
		r := &u.recs[i]
		last := uint32(0)
		for j := r.stays; j > 0; {
			t := u.stays[j-1]
			j, t.next = t.next, last
			stays = append(stays, t)
			last = uint32(len(stays)) //nolint:gosec // no more than there were
		}
		r.stays = last
	}
	u.stays = stays
}

func (u *units) resize(slots int) {
	u.index = make([]uint32, slots)
	for i := range u.recs {
		u.index[u.slot(u.recs[i].unit, int(u.recs[i].arm))] = uint32(i + 1) //nolint:gosec // at most most
	}
}
