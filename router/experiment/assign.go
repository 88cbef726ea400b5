package experiment

import (
	"crypto/sha256"
	"encoding/binary"
	"strconv"
	"sync"
)

// Key is a unit's name in an experiment: 64 bits that are also its position. It says nothing of the unit to whoever does not know it.
type Key uint64

// Position is where the unit lies in [0,1).
func (k Key) Position() float64 { return float64(k>>11) / (1 << 53) }

// Lot tells by which draw a request found its arm: the experiment's run, as far as it tells neighbouring ones apart, and which of the
// weights of that run were in force. The zero Lot tells nothing.
type Lot uint16

const epochBits = 6 // of a Lot: 0 to 63

// LotOf is the Lot of a run, from 1 on, and of its weights, which are counted from 1; 0 where nobody counts them.
func LotOf(run, epoch int) Lot { return Lot(run<<epochBits | epoch&(1<<epochBits-1)) } //nolint:gosec // neighbouring runs differ

// Of tells whether it may be that of the run.
func (l Lot) Of(run int) bool { return l == 0 || l>>epochBits == LotOf(run, 0)>>epochBits }

// Epoch is which of the run's weights were in force, 0 where nobody knows.
func (l Lot) Epoch() int { return int(l & (1<<epochBits - 1)) }

// Assigner says which arm of one experiment a unit belongs to. It is immutable: another share makes another Assigner.
type Assigner struct {
	Spec *Spec
	// Recorded says that what becomes of requests is a figure of the experiment.
	Recorded bool
	// Lot is that of requests whose arm it finds.
	Lot Lot

	winner *Arm
	id     hasher
	layer  hasher
	whole  bool // all units of the layer are this experiment's
	shares []stretch
}

// stretch is where an arm's units lie: from begin on, around the end of the line if need be.
type stretch struct {
	arm           *Arm
	begin, length float64
}

// NewAssigner returns the Assigner of an experiment's run, from 1 on, with the shares of its arms in their order; the control's is
// what the others leave.
func NewAssigner(s *Spec, run int, shares []float64, recorded bool) *Assigner {
	a := &Assigner{Spec: s, Recorded: recorded, whole: s.From <= 0 && s.To >= 1}
	id := s.Name
	if run > 1 { // else who was the first to meet what was rolled back would be so each time
		id += "#" + strconv.Itoa(run)
	}
	a.id.set(id)
	a.layer.set("layer " + s.Layer)
	begins := s.begins()
	for i := 1; i < len(s.Arms) && i < len(shares); i++ {
		if shares[i] > 0 {
			a.shares = append(a.shares, stretch{&s.Arms[i], begins[i], shares[i]})
			if !recorded && shares[i] >= 1 {
				a.winner = &s.Arms[i]
			}
		}
	}
	return a
}

// begins is where each arm's stretch begins: behind the most that those before it can get.
func (s *Spec) begins() []float64 {
	begins := make([]float64, len(s.Arms))
	at := 0.0
	for i := 1; i < len(s.Arms); i++ {
		begins[i] = at
		at += s.part(i)
	}
	return begins
}

// part is the arm's part of what all that are tried get.
func (s *Spec) part(i int) float64 {
	sum := 0.0
	for j := 1; j < len(s.Arms); j++ {
		sum += s.Arms[j].Share
	}
	if sum <= 0 {
		return 1 / float64(len(s.Arms)-1)
	}
	return s.Arms[i].Share / sum
}

// Takes tells whether the unit is one of this experiment's.
func (a *Assigner) Takes(unit []byte) bool {
	if a.whole {
		return true
	}
	p := a.layer.of(unit).Position()
	return p >= a.Spec.From && p < a.Spec.To
}

// Outside is the arm that serves requests which are in no arm: without a unit, or outside of the experiment's traffic. That is the
// control, until another one was promoted.
func (a *Assigner) Outside() *Arm {
	if a.winner != nil {
		return a.winner
	}
	return a.Spec.Control()
}

// Tries tells whether the arm has a share of the units while it is tried.
func (a *Assigner) Tries(arm *Arm) bool {
	if !a.Recorded {
		return false
	}
	for i := range a.shares {
		if a.shares[i].arm == arm {
			return true
		}
	}
	return false
}

// Assign returns the unit's arm and key. It allocates nothing.
func (a *Assigner) Assign(unit []byte) (*Arm, Key) {
	k := a.id.of(unit)
	return a.Arm(k), k
}

// Key returns the unit's key.
func (a *Assigner) Key(unit []byte) Key { return a.id.of(unit) }

// Arm returns the arm of the unit with that key.
func (a *Assigner) Arm(k Key) *Arm {
	p := k.Position()
	for i := range a.shares {
		s := &a.shares[i]
		d := p - s.begin
		if d < 0 {
			d++
		}
		if d < s.length {
			return s.arm
		}
	}
	return a.Spec.Control()
}

// Draw returns a number in [0,1) for something, that has to do with nothing else: not with the arm of its unit.
func (a *Assigner) Draw(what, id string) float64 {
	var h hasher
	h.set(what + " " + a.Spec.Name)
	return h.of([]byte(id)).Position()
}

// hasher hashes units under a name: the first 8 bytes of the SHA-256 of the name, a zero byte and the unit. Units that do not fit into
// its buffer, of more than 400 bytes, are hashed before.
type hasher struct {
	name [96]byte
	used int
}

const longestHashed = 96 + 400

func (h *hasher) set(name string) {
	if len(name)+1 > len(h.name) {
		sum := sha256.Sum256([]byte(name))
		name = string(sum[:])
	}
	h.used = copy(h.name[:], name) + 1
}

// hashBufs are what hashers put together what they hash in: the stack of a request is no place for it.
var hashBufs = sync.Pool{New: func() any { return new([longestHashed]byte) }}

func (h *hasher) of(unit []byte) Key {
	buf := hashBufs.Get().(*[longestHashed]byte)
	defer hashBufs.Put(buf)
	copy(buf[:], h.name[:h.used])
	if len(unit) > len(buf)-h.used {
		sum := sha256.Sum256(unit)
		return h.end(buf, sum[:])
	}
	return h.end(buf, unit)
}

func (h *hasher) end(buf *[longestHashed]byte, unit []byte) Key {
	n := h.used + copy(buf[h.used:], unit)
	sum := sha256.Sum256(buf[:n])
	return Key(binary.BigEndian.Uint64(sum[:]))
}
