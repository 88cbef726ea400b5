package stats

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math"
	"slices"
)

// snapshotVersion is the first byte of a snapshot; another version is not read.
const snapshotVersion = 3

// Errors of snapshots.
var (
	ErrSnapshot = errors.New("not a snapshot that can be read")
	ErrDesign   = errors.New("snapshot of another design")
	ErrWeights  = errors.New("snapshot with other weights in force before")
)

// fingerprint tells designs apart whose observations cannot be added.
func (d *Design) fingerprint() uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%q %d %v %d %v", d.Arms, d.Control, d.Sticky, d.Capacity, d.Settle)
	return h.Sum64()
}

// MaxSnapshot is the size of the largest snapshot, in bytes.
const MaxSnapshot = 1_000_000

// Snapshot is what this replica recorded, for Restore and, elsewhere, Merge: some 40 bytes a unit. When it would be larger than
// MaxSnapshot, half of the units are forgotten first.
func (e *Experiment) Snapshot() []byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		b := e.own.encode(&e.design)
		if len(b) <= MaxSnapshot || len(e.own.units.recs) == 0 {
			return b
		}
		e.own.units.halve()
		e.own.rebuild(e.design.Control)
	}
}

// Restore takes up what Snapshot gave before a restart, in place of what was recorded since. After an error nothing has changed.
func (e *Experiment) Restore(snapshot []byte) error {
	s, err := decode(snapshot, &e.design)
	if err != nil {
		return fmt.Errorf("restore experiment: %w", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.own = s
	return nil
}

// Absorb takes up what Snapshot gave before a restart, beside what was recorded since: a unit that was known before is one and the same. After an
// error, which is ErrWeights where the two were not recorded by the same weights, nothing has changed.
func (e *Experiment) Absorb(snapshot []byte) error {
	s, err := decode(snapshot, &e.design)
	if err != nil {
		return fmt.Errorf("restore experiment: %w", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.own.seq == 0 && len(s.epochs) >= len(e.own.epochs) {
		e.own = s
		return nil
	}
	if !s.fits(e.own) {
		return fmt.Errorf("restore experiment: %w", ErrWeights)
	}
	e.own.forgo(s, e.design.Control)
	own := e.sum(newState(&e.design), []*state{s, e.own})
	e.settle(own)
	e.own = own
	return nil
}

// fits tells whether two were recorded by the same weights, as far as both know them.
func (s *state) fits(o *state) bool {
	n := min(len(s.epochs), len(o.epochs))
	return slices.EqualFunc(s.epochs[:n], o.epochs[:n], slices.Equal[[]float64])
}

// Merge takes in what another replica recorded, in place of its earlier snapshots; an older one than is known changes nothing, nor
// does the order of replicas. A replica that starts anew without Restore has to take another name; what it recorded before stays.
func (e *Experiment) Merge(replica string, snapshot []byte) error {
	s, err := decode(snapshot, &e.design)
	if err != nil {
		return fmt.Errorf("merge experiment of replica %s: %w", replica, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !s.fits(e.own) {
		return fmt.Errorf("merge experiment of replica %s: %w", replica, ErrWeights)
	}
	if old := e.peers[replica]; old != nil && old.seq >= s.seq {
		return nil
	}
	if e.peers == nil {
		e.peers = make(map[string]*state)
	}
	e.peers[replica], e.others = s, nil
	return nil
}

// Forget drops what was merged of a replica.
func (e *Experiment) Forget(replica string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.peers, replica)
	e.others = nil
}

// combined adds up all replicas.
func (e *Experiment) combined() *state {
	if e.others == nil {
		names := slices.Sorted(maps.Keys(e.peers)) // so that the same figures give the same sums
		parts := make([]*state, len(names))
		for i, n := range names {
			parts[i] = e.peers[n]
		}
		e.others = e.sum(newState(&e.design), parts)
	}
	out := e.sum(e.others.clone(), []*state{e.own})
	e.settle(out)
	return out
}

// settle makes sums of what sum has put together.
func (e *Experiment) settle(s *state) {
	for len(s.units.recs) > s.units.most {
		s.units.halve()
	}
	if e.design.Sticky {
		s.rebuild(e.design.Control)
	}
}

// sum adds parts to out. The sums of sticky units have to be rebuilt afterwards.
func (e *Experiment) sum(out *state, parts []*state) *state {
	level, recs := out.units.level, len(out.units.recs)
	for _, p := range parts {
		if len(p.epochs) > len(out.epochs) {
			out.epochs = p.epochs
		}
		level = max(level, p.units.level)
		recs += len(p.units.recs)
	}
	for out.units.level < level {
		out.units.halve()
	}
	out.units.reserve(min(recs, 2*out.units.most))
	for _, p := range parts {
		out.add(p)
	}
	return out
}

// clone is a copy that shares nothing that changes.
func (s *state) clone() *state {
	c := *s
	c.arms, c.hosts, c.byHost = slices.Clone(s.arms), slices.Clone(s.hosts), maps.Clone(s.byHost)
	for k := range c.arms {
		c.arms[k].strata = slices.Clone(c.arms[k].strata)
	}
	c.seen, c.coming = slices.Clone(s.seen), slices.Clone(s.coming)
	for b := range c.bad {
		c.bad[b] = slices.Clone(s.bad[b])
	}
	c.units.recs, c.units.stays, c.units.index = slices.Clone(s.units.recs), slices.Clone(s.units.stays), slices.Clone(s.units.index)
	return &c
}

// add takes in another replica's state. The sums of sticky units have to be rebuilt afterwards.
func (s *state) add(o *state) {
	s.seq += o.seq
	for k := range s.arms {
		a, b := &s.arms[k], &o.arms[k]
		a.counts.add(&b.counts)
		for m := range a.off {
			a.off[m].w += b.off[m].w
			a.off[m].sum += b.off[m].sum
		}
		a.unsure.w += b.unsure.w
		a.unsure.sum += b.unsure.sum
		for e := range b.strata {
			x, y := a.at(e), &b.strata[e]
			for m := range metrics {
				x.sum[m].merge(&y.sum[m])
				x.raw[m].merge(&y.raw[m])
			}
		}
		for m := range metrics {
			a.with[m] += b.with[m]
		}
		a.early.add(&b.early) // each replica watches the first that it sees
	}
	for m := range s.slopeVariance {
		s.slopeVariance[m] = max(s.slopeVariance[m], o.slopeVariance[m])
	}
	s.reach(o.slot)
	s.seen.add(o.seen)
	for i := range o.coming {
		c := &o.coming[i]
		if s.settled(c.slot) {
			s.seen.count(-1, int(c.epoch), &c.count)
		} else if j := slices.IndexFunc(s.coming, func(x arrival) bool { return x.slot == c.slot && x.epoch == c.epoch }); j >= 0 {
			for a := range c.count {
				s.coming[j].count[a] += c.count[a]
			}
		} else {
			s.coming = append(s.coming, *c)
		}
	}
	for b := range s.bad {
		s.bad[b].add(o.bad[b])
	}
	for i := range o.hosts {
		b := &o.hosts[i]
		if h := s.host(b.id, b.kind, int(b.arm)); h != nil {
			h.n += b.n
			for m := range h.of {
				h.of[m].w += b.of[m].w
				h.of[m].w2 += b.of[m].w2
				h.of[m].sum += b.of[m].sum
				h.of[m].sq += b.of[m].sq
			}
		}
	}
	for i := range o.units.recs {
		b := &o.units.recs[i]
		if !s.units.sampled(b.unit) {
			continue
		}
		r := s.units.find(b.unit, int(b.arm))
		if r == nil {
			r = s.units.add(b.unit, int(b.arm), int(b.first), b.slot)
		}
		r.requests += b.requests
		r.first, r.slot = min(r.first, b.first), min(r.slot, b.slot)
		for i := range r.badIn {
			r.badIn[i] |= b.badIn[i]
		}
		for j := b.stays; j > 0; j = o.units.stays[j-1].next {
			t := &o.units.stays[j-1]
			s.units.stay(r, int(t.epoch)).merge(t)
		}
	}
}

func (s *sums) merge(o *sums) { s.n, s.sum, s.sq = s.n+o.n, s.sum+o.sum, s.sq+o.sq }

// merge makes what another replica saw of the same unit in the same epoch part of t.
func (t *stay) merge(o *stay) {
	for m := range metrics {
		if n, k := float64(t.count(m)), float64(o.count(m)); k > 0 {
			t.mean[m] = float32((n*float64(t.mean[m]) + k*float64(o.mean[m])) / (n + k))
		}
	}
	t.requests += o.requests
	for i := range t.n {
		t.n[i] += o.n[i]
	}
}

// writer and reader are of little-endian figures of fixed width, and of varints where figures are small and many. Whatever varies
// in number is preceded by its count.
type writer struct{ b []byte }

func (w *writer) u8(v uint8)    { w.b = append(w.b, v) }
func (w *writer) u32(v uint32)  { w.b = binary.LittleEndian.AppendUint32(w.b, v) }
func (w *writer) u64(v uint64)  { w.b = binary.LittleEndian.AppendUint64(w.b, v) }
func (w *writer) i64(v int64)   { w.u64(uint64(v)) } //nolint:gosec // bits
func (w *writer) f64(v float64) { w.u64(math.Float64bits(v)) }
func (w *writer) f32(v float32) { w.u32(math.Float32bits(v)) }
func (w *writer) uv(v uint32)   { w.b = binary.AppendUvarint(w.b, uint64(v)) }
func (w *writer) count(n int)   { w.u32(uint32(n)) } //nolint:gosec // bounded

type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if len(r.b) < n {
		r.b, r.bad = nil, true
		return make([]byte, 8)
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) u8() uint8    { return r.take(1)[0] }
func (r *reader) u32() uint32  { return binary.LittleEndian.Uint32(r.take(4)) }
func (r *reader) u64() uint64  { return binary.LittleEndian.Uint64(r.take(8)) }
func (r *reader) i64() int64   { return int64(r.u64()) } //nolint:gosec // bits
func (r *reader) f64() float64 { return r.number(math.Float64frombits(r.u64())) }
func (r *reader) f32() float32 { return float32(r.number(float64(math.Float32frombits(r.u32())))) }

func (r *reader) uv() uint32 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || v > math.MaxUint32 {
		r.b, r.bad = nil, true
		return 0
	}
	r.b = r.b[n:]
	return uint32(v)
}

// number refuses what no state holds.
func (r *reader) number(v float64) float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		r.bad = true
		return 0
	}
	return v
}

// below reads a byte that has to be less than n.
func (r *reader) below(n int) uint8 {
	v := r.u8()
	if int(v) >= n {
		r.bad = true
		return 0
	}
	return v
}

// count reads how many things of at least so many bytes follow.
func (r *reader) count(each int) int {
	n := int(r.u32())
	if n > len(r.b)/each {
		r.bad = true
		return 0
	}
	return n
}

// leastRecord is the size of the shortest record of a unit.
const (
	leastRecord = 8 + 1 + 1 + 2 + ballots + 1
	leastStay   = 1 + 1 + counted + 1
)

func (c *Counts) figures() []*int64 {
	return []*int64{
		&c.Requests, &c.Forced, &c.Unsampled, &c.Failed, &c.Missed, &c.Truncated, &c.OutOfArm, &c.Cold, &c.Preempted, &c.Unmatched,
		&c.Resumes, &c.Unpriced, &c.OutputTokens, &c.PricedTokens,
	}
}

func (s *state) encode(d *Design) []byte {
	w := &writer{b: make([]byte, 0, 4096+48*len(s.units.recs)+112*len(s.hosts))}
	w.u8(snapshotVersion)
	w.u64(d.fingerprint())
	w.u64(s.seq)
	w.count(len(s.epochs))
	for _, e := range s.epochs {
		for _, v := range e {
			w.f64(v)
		}
	}
	for k := range s.arms {
		a := &s.arms[k]
		for _, n := range a.counts.figures() {
			w.i64(*n)
		}
		w.f64(a.counts.SpentUSD)
		w.f64(a.counts.MeteredUSD)
		for m := range metrics {
			w.u32(uint32(a.with[m])) //nolint:gosec // not negative
		}
		w.count(len(a.strata))
		for e := range a.strata {
			for m := range metrics {
				for _, t := range []*sums{&a.strata[e].sum[m], &a.strata[e].raw[m]} {
					w.f64(t.n)
					w.f64(t.sum)
					w.f64(t.sq)
				}
			}
		}
		for _, n := range a.early.figures() {
			w.u32(*n)
		}
		for m := range a.off {
			w.f64(a.off[m].w)
			w.f64(a.off[m].sum)
		}
		w.f64(a.unsure.w)
		w.f64(a.unsure.sum)
	}
	for _, v := range s.votes() {
		v := *v
		w.count(len(v))
		for i := range v {
			w.u8(uint8(v[i].from + 1)) //nolint:gosec // not negative
			w.u8(uint8(v[i].epoch))    //nolint:gosec // likewise
			for k := range s.arms {
				w.u32(v[i].count[k])
			}
		}
	}
	for _, v := range s.slopeVariance {
		w.f64(v)
	}
	w.u32(s.slot)
	w.count(len(s.coming))
	for i := range s.coming {
		c := &s.coming[i]
		w.u32(c.slot)
		w.u8(uint8(c.epoch)) //nolint:gosec // not negative
		for k := range s.arms {
			w.u32(c.count[k])
		}
	}
	w.count(len(s.hosts))
	for i := range s.hosts {
		h := &s.hosts[i]
		w.u32(h.id)
		w.u32(h.kind)
		w.u8(h.arm)
		w.i64(h.n)
		for m := range h.of {
			w.f64(h.of[m].w)
			w.f64(h.of[m].w2)
			w.f64(h.of[m].sum)
			w.f64(h.of[m].sq)
		}
	}
	w.u8(uint8(s.units.level)) //nolint:gosec // less than 64
	w.count(len(s.units.recs))
	for i := range s.units.recs {
		r := &s.units.recs[i]
		w.u64(r.unit)
		w.u8(r.arm)
		w.u8(r.first)
		w.uv(r.slot)
		for _, in := range r.badIn {
			w.uv(in)
		}
		w.uv(r.requests)
		stays := uint8(0)
		for j := r.stays; j > 0; j = s.units.stays[j-1].next {
			stays++
		}
		w.u8(stays)
		for j := r.stays; j > 0; j = s.units.stays[j-1].next {
			t := &s.units.stays[j-1]
			w.u8(t.epoch)
			w.uv(t.requests)
			for _, n := range t.n {
				w.uv(n)
			}
			var set uint8 // means that are not zero, as most are
			for m, y := range t.mean {
				if y != 0 {
					set |= 1 << m
				}
			}
			w.u8(set)
			for _, y := range t.mean {
				if y != 0 {
					w.f32(y)
				}
			}
		}
	}
	return w.b
}

// stay reads one of a record's.
func (r *reader) stay(s *state, p *record) {
	epoch := r.below(len(s.epochs))
	before := len(s.units.stays)
	t := s.units.stay(p, int(epoch))
	if len(s.units.stays) == before { // twice the same epoch
		r.bad = true
		return
	}
	t.requests = r.uv()
	for i := range t.n {
		t.n[i] = r.uv()
	}
	set := r.u8()
	for m := range t.mean {
		if set&(1<<m) != 0 {
			t.mean[m] = r.f32()
		}
	}
}

// votes are all that there are, in the order of a snapshot.
func (s *state) votes() []*votes { return []*votes{&s.seen, &s.bad[0], &s.bad[1], &s.bad[2]} }

func (e *early) figures() []*uint32 {
	return []*uint32{&e.seen, &e.failed, &e.control, &e.controlFailed}
}

func decode(b []byte, d *Design) (*state, error) {
	if len(b) < 17 || b[0] != snapshotVersion {
		return nil, ErrSnapshot
	}
	r := &reader{b: b[1:]}
	if r.u64() != d.fingerprint() {
		return nil, ErrDesign
	}
	s := newState(d)
	s.seq = r.u64()
	n := r.count(8 * len(d.Arms))
	if n < 1 || n > maxEpochs {
		return nil, ErrSnapshot
	}
	s.epochs = nil
	for range n {
		e := make([]float64, len(d.Arms))
		for k := range e {
			e[k] = r.f64()
		}
		if checkWeights(e, len(e)) != nil {
			return nil, ErrSnapshot
		}
		s.epochs = append(s.epochs, e)
	}
	for k := range s.arms {
		a := &s.arms[k]
		for _, p := range a.counts.figures() {
			*p = r.i64()
		}
		a.counts.SpentUSD, a.counts.MeteredUSD = r.f64(), r.f64()
		for m := range metrics {
			a.with[m] = int(r.u32())
		}
		n := r.count(2 * 3 * 8 * int(metrics))
		if n > len(s.epochs) {
			return nil, ErrSnapshot
		}
		for e := range n {
			x := a.at(e)
			for m := range metrics {
				for _, t := range []*sums{&x.sum[m], &x.raw[m]} {
					t.n, t.sum, t.sq = r.f64(), r.f64(), r.f64()
				}
			}
		}
		for _, n := range a.early.figures() {
			*n = r.u32()
		}
		for m := range a.off {
			a.off[m].w, a.off[m].sum = r.f64(), r.f64()
		}
		a.unsure.w, a.unsure.sum = r.f64(), r.f64()
	}
	for _, v := range s.votes() {
		for range r.count(2 + 4*len(s.arms)) {
			c := class{from: int8(r.below(len(s.epochs)+1)) - 1, epoch: int8(r.below(len(s.epochs)))} //nolint:gosec // at most maxEpochs
			for k := range s.arms {
				c.count[k] = r.u32()
			}
			*v = append(*v, c)
		}
	}
	for m := range s.slopeVariance {
		s.slopeVariance[m] = r.f64()
	}
	s.slot = r.u32()
	for range r.count(5 + 4*len(s.arms)) {
		c := arrival{slot: r.u32(), epoch: int8(r.below(len(s.epochs)))} //nolint:gosec // less than maxEpochs
		for k := range s.arms {
			c.count[k] = r.u32()
		}
		s.coming = append(s.coming, c)
	}
	for range r.count(113) {
		h := host{id: r.u32(), kind: r.u32(), arm: r.below(len(s.arms)), n: r.i64()}
		for m := range h.of {
			h.of[m] = weighted{r.f64(), r.f64(), r.f64(), r.f64()}
		}
		if p := s.host(h.id, h.kind, int(h.arm)); p != nil {
			*p = h
		}
	}
	s.units.level = uint(r.below(64))
	for range min(d.Capacity, r.count(leastRecord)) {
		u := record{unit: r.u64(), arm: r.below(len(s.arms)), first: r.below(len(s.epochs)), slot: r.uv()}
		for b := range u.badIn {
			if u.badIn[b] = r.uv(); uint64(u.badIn[b])>>len(s.epochs) != 0 {
				r.bad = true
			}
		}
		u.requests = r.uv()
		stays := int(r.below(len(s.epochs) + 1))
		if r.bad || s.units.find(u.unit, int(u.arm)) != nil {
			r.bad = true
			break
		}
		p := s.units.add(u.unit, int(u.arm), int(u.first), u.slot)
		*p = u
		for range stays {
			r.stay(s, p)
		}
		s.units.turn(p)
	}
	if r.bad || len(r.b) != 0 {
		return nil, ErrSnapshot
	}
	return s, nil
}
