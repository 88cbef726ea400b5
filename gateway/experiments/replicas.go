package experiments

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
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
	number  int    // -1 while it has none
	version state.Version
	leads   bool
	heard   map[string]holder // by slot
	others  int               // the most replicas that were alive together with this one
}

// part is this replica's of alpha, those of all being 1 together: each of them may end an experiment. Who decides looks at what all have
// seen and has one half; the others look at little more than their own and share the other half. Who is out of the store's reach keeps to
// that, for the others go on with theirs.
func (s *slot) part() float64 {
	switch {
	case s.others == 0:
		return 1
	case s.leads:
		return 0.5
	}
	return 0.5 / float64(s.others)
}

// holder is a slot as it was last seen.
type holder struct {
	version state.Version
	changed time.Time // when that was first seen, by this process
}

// held is a slot's document.
type held struct {
	By string    `json:"by"` // "" when it was given up
	At time.Time `json:"at"` // by the holder's clock
}

// abandoned is after how long a slot is free whose holder has said nothing, whatever clocks say.
const abandoned = time.Minute

func slotName(n int) string { return "r" + strconv.Itoa(n) }

// claim takes the lowest slot that nobody holds, and what is stored under it. The caller holds mu.
func (m *Manager) claim(ctx context.Context) {
	s := &m.slot
	if s.me == "" {
		s.me, s.number, s.heard = rand.Text(), -1, map[string]holder{}
	}
	if s.number >= 0 || len(m.trials) == 0 {
		return
	}
	slots, err := m.opt.Store.Load(ctx, kindReplica)
	if !m.answered(ctx, err) || err != nil {
		return
	}
	for n := range len(slots) + 1 {
		d, exists := slots[slotName(n)]
		if exists && !m.free(d) {
			continue
		}
		v, err := m.opt.Store.Put(ctx, kindReplica, slotName(n), d.Version, m.claimed())
		if err == nil {
			s.number, s.version = n, v
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
	b, _ := json.Marshal(held{m.slot.me, m.opt.Now()}) // text and a time always encode
	return b
}

// free tells whether nobody holds the slot.
func (m *Manager) free(d state.Doc) bool {
	var h held
	if json.Unmarshal(d.Body, &h) != nil || h.By == "" {
		return true
	}
	age := m.opt.Now().Sub(h.At)
	return age > max(abandoned, 6*m.opt.Lease)
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
		n, err := strconv.Atoi(strings.TrimPrefix(name, "r"))
		if err != nil || n == s.number || json.Unmarshal(d.Body, &by) != nil || by.By == "" || now.Sub(h.changed) >= m.opt.Lease {
			continue
		}
		alive++
		if n < s.number {
			s.leads = false
		}
	}
	s.others = max(s.others, alive) // who has gone has spent its part
}

// statsName is where a slot's observations of an experiment are stored.
func statsName(n int, experiment string) string { return slotName(n) + " " + experiment }

// heading is the first line of what a slot has seen of an experiment; the statistics' own bytes are behind it.
type heading struct {
	Digest string `json:"digest"`
	Run    int    `json:"run"`
	Told   int    `json:"weights"` // of the run that the statistics know
}

// oftenBelow is the size in bytes of what may be stored at every round; larger ones are at fewer of them.
const oftenBelow = 64 << 10

// speak stores what was seen here, whatever its size if it is for the last time. The caller holds mu.
func (m *Manager) speak(ctx context.Context, last bool) {
	if m.slot.number < 0 || m.silent != nil {
		return
	}
	var docs map[string]state.Doc
	for _, t := range m.trials {
		now := m.opt.Now()
		if t.stats == nil || t.foreign || t.recorded == t.stored || !last && now.Before(t.speakAt) {
			continue
		}
		if docs == nil {
			var err error
			if docs, err = m.opt.Store.Load(ctx, kindStats); !m.answered(ctx, err) || err != nil {
				return
			}
		}
		head, _ := json.Marshal(heading{t.doc.Digest, t.run, t.told}) // always encodes
		name, snapshot := statsName(m.slot.number, t.Spec.Name), t.stats.Snapshot()
		_, err := m.opt.Store.Put(ctx, kindStats, name, docs[name].Version, append(append(head, '\n'), snapshot...))
		if !m.answered(ctx, err) {
			return
		}
		if err == nil {
			t.stored = t.recorded
			t.speakAt = now.Add(m.opt.Tell * time.Duration(len(snapshot)/oftenBelow))
		}
	}
}

// resume takes up what is stored under this replica's slot. The caller holds mu.
func (m *Manager) resume(ctx context.Context) {
	docs, err := m.opt.Store.Load(ctx, kindStats)
	if !m.answered(ctx, err) || err != nil {
		return
	}
	for _, t := range m.trials {
		h, b, ok := t.recordIn(docs[statsName(m.slot.number, t.Spec.Name)])
		if !ok || t.stats == nil || t.recorded > 0 {
			continue
		}
		if err := t.stats.Restore(b); err != nil {
			m.opt.Log.Warn("what was seen of an experiment before the restart cannot be taken up", "experiment", t.Spec.Name, "error", err)
			continue
		}
		t.told, t.fresh = h.Told, true
		m.follow(t)
	}
	m.publish()
}

// recordIn returns the observations in a document, if they are of the run that is on.
func (t *trial) recordIn(d state.Doc) (h heading, snapshot []byte, ok bool) {
	head, snapshot, ok := bytes.Cut(d.Body, []byte("\n"))
	if !ok || json.Unmarshal(head, &h) != nil || h.Digest != t.doc.Digest || h.Run != t.run {
		return h, nil, false
	}
	return h, snapshot, true
}

// hear takes in what the other replicas have seen. The caller holds mu.
func (m *Manager) hear(ctx context.Context) {
	if len(m.trials) == 0 {
		return
	}
	docs, err := m.opt.Store.Load(ctx, kindStats)
	if !m.answered(ctx, err) || err != nil {
		return
	}
	for name, d := range docs {
		slot, of, _ := strings.Cut(name, " ")
		if slot == slotName(m.slot.number) {
			continue
		}
		t, err := m.find(of)
		if err != nil || t.stats == nil {
			continue
		}
		if _, b, ok := t.recordIn(d); ok {
			if err := t.stats.Merge(slot, b); err != nil {
				m.opt.Log.Debug("what another replica has seen of an experiment is not counted", "experiment", of, "replica", slot, "error", fmt.Sprint(err))
			}
		}
	}
}

// leave stores what was seen and gives up the slot, so that whoever starts next goes on from there.
func (m *Manager) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.slot.number < 0 {
		return
	}
	m.drain()
	m.speak(ctx, true)
	b, _ := json.Marshal(held{At: m.opt.Now()})                                          // always encodes
	_, _ = m.opt.Store.Put(ctx, kindReplica, slotName(m.slot.number), m.slot.version, b) // else it is free after a while
}
