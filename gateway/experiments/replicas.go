package experiments

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"

	"headrace/gateway/state"
)

// Replicas have numbers. A number names what its holder has recorded, and whoever starts takes up the lowest that nobody holds with all
// that is stored under it: so a restart loses little, and restarts do not pile up. The lowest number that is held decides for all. That
// two hold one for a moment does no harm: documents are written only by whoever has read the latest.

// slot is this replica's place among the others.
type slot struct {
	me      string // of this process only
	release func() // says that this process is no more, nil where nobody is told
	number  int    // -1 while it has none
	version state.Version
	leads   bool
	heard   map[string]holder        // by slot
	others  int                      // the most replicas that were alive together with this one
	spoken  int64                    // how often this slot's observations were stored
	stored  map[string]state.Version // of its documents of observations, by name; nil while that is not known
}

// part is this replica's of alpha, those of all being 1 together: each of them may end an experiment. Who decides looks at what all have
// seen and has one half; the others look at little more than their own and share the other half. Who is out of the store's reach keeps to
// that, for the others go on with theirs.
func (s *slot) part() float64 {
	switch {
	case s.number < 0 && s.others == 0: // nobody knows of it yet, nor it of anybody
		return 0.5 / unknownOthers
	case s.leads || s.others == 0:
		return s.deciding()
	}
	return 0.5 / float64(s.others)
}

// unknownOthers is how many others there may be as far as a replica knows that could not look yet.
const unknownOthers = 8

// deciding is the part of whoever decides, by which steps are taken: what is shown is held to that, wherever it is asked for.
func (s *slot) deciding() float64 {
	if s.others == 0 {
		return 1
	}
	return 0.5
}

// holder is a slot as it was last seen.
type holder struct {
	version state.Version
	changed time.Time // when that was first seen, by this process
}

// held is a slot's document.
type held struct {
	By     string    `json:"by"`     // "" when it was given up
	At     time.Time `json:"at"`     // by the store's clock, where it has one
	Spoken int64     `json:"spoken"` // grows whenever observations were stored under it, so that others know when to look
	Has    []string  `json:"has"`    // experiments in the holder's config
}

// abandoned is after how long a slot is free whose holder has said nothing. What it has seen is heard all the same, so that nothing is lost by
// waiting.
const abandoned = 10 * time.Minute

func slotName(n int) string { return "r" + strconv.Itoa(n) }

// name is that of this replica's slot, "" while it has none.
func (s *slot) name() string {
	if s.number < 0 {
		return ""
	}
	return slotName(s.number)
}

func slotNumber(name string) (n int, ok bool) {
	n, err := strconv.Atoi(strings.TrimPrefix(name, "r"))
	return n, err == nil && n >= 0 && name == slotName(n)
}

// census is what a store has that knows of processes that they have ended, however that was.
type census interface {
	// Alive says that the process of that name is there, until release or its end.
	Alive(id string) (release func(), err error)
	// Dead tells whether it was there and has ended for sure.
	Dead(id string) bool
	// Bury forgets it.
	Bury(id string)
}

// appear has this process be missed when it ends. The caller holds mu.
func (m *Manager) appear() {
	c, ok := m.opt.Store.(census)
	if !ok || m.slot.release != nil {
		return
	}
	release, err := c.Alive(m.slot.me)
	if err != nil { // then its place is free some minutes after its end
		release = func() {}
	}
	m.slot.release = release
}

// disappear has this process be missed no more where it leaves no place behind. The caller holds mu.
func (m *Manager) disappear(clean bool) {
	if m.slot.release == nil {
		return
	}
	m.slot.release()
	if c, ok := m.opt.Store.(census); ok && clean {
		c.Bury(m.slot.me)
	}
}

// dead tells whether a process has ended for sure. The caller holds mu.
func (m *Manager) dead(id string) bool {
	c, ok := m.opt.Store.(census)
	return ok && id != m.slot.me && c.Dead(id)
}

// vacant tells whether nobody holds the slot, or whoever does has ended for sure. The caller holds mu.
func (m *Manager) vacant(d state.Doc) bool {
	var h held
	return m.free(d) || json.Unmarshal(d.Body, &h) == nil && m.dead(h.By)
}

// claim takes the lowest slot that nobody holds, and what is stored under it. The caller holds mu.
func (m *Manager) claim(ctx context.Context) {
	s := &m.slot
	if s.me == "" {
		s.me, s.number, s.heard = rand.Text(), -1, map[string]holder{}
	}
	if s.number >= 0 || len(m.trials) == 0 || m.timeless() {
		return
	}
	slots, err := m.opt.Store.Load(ctx, kindReplica)
	if !m.answered(ctx, err) || err != nil {
		return
	}
	m.appear()
	for n := range len(slots) + 1 {
		d, exists := slots[slotName(n)]
		if exists && !m.vacant(d) {
			continue
		}
		others := 0
		for name, d := range slots {
			var h held
			if name != slotName(n) && json.Unmarshal(d.Body, &h) == nil && h.By != "" && !m.vacant(d) {
				others++
			}
		}
		var was held
		_ = json.Unmarshal(d.Body, &was) // its count goes on
		s.spoken = was.Spoken
		v, err := m.opt.Store.Put(ctx, kindReplica, slotName(n), d.Version, m.claimed())
		if err == nil {
			s.number, s.version, s.stored = n, v, nil
			s.others = max(s.others, others) // before it judges anything
			if c, ok := m.opt.Store.(census); ok {
				c.Bury(was.By)
			}
			m.resume(ctx)
			return
		}
		if !m.answered(ctx, err) {
			return
		}
	}
}

// mine returns the version of this replica's place as the store has it now, 0 for none; false when another has taken it. The caller holds mu.
func (m *Manager) mine(ctx context.Context) (v state.Version, ok bool) {
	slots, err := m.opt.Store.Load(ctx, kindReplica)
	if err != nil {
		return 0, false
	}
	d, exists := slots[slotName(m.slot.number)]
	var h held
	return d.Version, !exists || json.Unmarshal(d.Body, &h) == nil && h.By == m.slot.me
}

func (m *Manager) claimed() []byte {
	h := held{By: m.slot.me, At: m.now(), Spoken: m.slot.spoken}
	for _, t := range m.trials {
		h.Has = append(h.Has, t.Spec.Name)
	}
	b, _ := json.Marshal(h) // always encodes
	return b
}

// free tells whether nobody holds the slot.
func (m *Manager) free(d state.Doc) bool {
	var h held
	if json.Unmarshal(d.Body, &h) != nil || h.By == "" {
		return true
	}
	return m.now().Sub(h.At) > max(abandoned, 6*m.opt.Lease)
}

// hold keeps the slot, and finds whether it is the lowest. The caller holds mu.
func (m *Manager) hold(ctx context.Context) {
	s := &m.slot
	s.leads = false
	if m.claim(ctx); s.number < 0 {
		return
	}
	v, err := m.opt.Store.Put(ctx, kindReplica, slotName(s.number), s.version, m.claimed())
	if errors.Is(err, state.ErrConflict) { // the store may have lost it, or what was written last, which is nobody's doing
		if was, ok := m.mine(ctx); ok {
			v, err = m.opt.Store.Put(ctx, kindReplica, slotName(s.number), was, m.claimed())
		}
	}
	if !m.answered(ctx, err) {
		return
	}
	if err != nil { // this process was silent for so long that another has taken it, with what was recorded
		m.opt.Log.Warn("another replica has taken the place of this one among the experiments' replicas")
		s.number = -1
		for _, t := range m.trials {
			t.stats = nil
			m.follow(t)
		}
		m.publish()
		m.claim(ctx)
		return
	}
	s.version = v
	slots, err := m.opt.Store.Load(ctx, kindReplica)
	if !m.answered(ctx, err) || err != nil {
		return
	}
	now := m.opt.Now()
	s.leads = true
	alive := 0
	for name, d := range slots {
		h, known := s.heard[name]
		if !known || h.version != d.Version {
			h = holder{d.Version, now}
			s.heard[name] = h
		}
		var by held
		n, ok := slotNumber(name)
		if !ok || n == s.number || json.Unmarshal(d.Body, &by) != nil || by.By == "" || now.Sub(h.changed) >= m.opt.Lease || m.dead(by.By) {
			continue
		}
		alive++
		if n < s.number {
			s.leads = false
		}
	}
	s.others = max(s.others, alive) // who has gone has spent its part
}
