package experiments

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"headrace/gateway/state"
	"headrace/router/experiment/stats"
)

// What a replica has seen is stored under its slot: a kind of documents for each slot, so that others read what has changed and nothing else.

// heading is the first line of what a slot has seen of an experiment; the statistics' own bytes are behind it.
type heading struct {
	Digest string `json:"digest"`
	Run    int    `json:"run"`
	Told   int    `json:"weights"` // of the run that the statistics know
}

// statsKind is the kind of a slot's observations, with its number in letters. Each document has the experiment's name.
func statsKind(n int) string {
	var letters []byte
	for n++; n > 0; n = (n - 1) / 26 {
		letters = append(letters, byte('a'+(n-1)%26)) //nolint:gosec // a letter
	}
	return "experiment-stats-" + string(letters)
}

// oftenBelow is the size in bytes of what may be stored at every round; larger ones are at fewer of them.
const oftenBelow = 64 << 10

// speak stores what was seen here, whatever its size if it is for the last time. The caller holds mu.
func (m *Manager) speak(ctx context.Context, last bool) {
	s := &m.slot
	if s.number < 0 || m.silent != nil {
		return
	}
	if m.resume(ctx); s.stored == nil {
		return
	}
	for _, t := range m.trials {
		now := m.opt.Now()
		if t.stats == nil || !t.resumed || t.foreign || t.recorded == t.stored || !last && now.Before(t.speakAt) {
			continue
		}
		head, _ := json.Marshal(heading{t.doc.Digest, t.run, t.told}) // always encodes
		name, snapshot := t.Spec.Name+t.voice, t.stats.Snapshot()
		v, err := m.opt.Store.Put(ctx, statsKind(s.number), name, s.stored[name], append(append(head, '\n'), snapshot...))
		if !m.answered(ctx, err) {
			return
		}
		if err != nil { // the store has lost some, or another has taken the slot, which is found out next
			s.stored = nil
			return
		}
		s.stored[name] = v
		s.spoken++
		t.stored = t.recorded
		t.speakAt = now.Add(m.opt.Tell * time.Duration(len(snapshot)/oftenBelow))
	}
}

// resume takes up what is stored under this replica's slot of experiments whose statistics are new. The caller holds mu.
func (m *Manager) resume(ctx context.Context) {
	s := &m.slot
	due := s.stored == nil
	for _, t := range m.trials {
		due = due || t.stats != nil && !t.resumed
	}
	if s.number < 0 || !due {
		return
	}
	docs, err := m.opt.Store.Load(ctx, statsKind(s.number))
	if !m.answered(ctx, err) || err != nil {
		return
	}
	s.stored = make(map[string]state.Version, len(docs))
	for name, d := range docs {
		s.stored[name] = d.Version
	}
	for _, t := range m.trials {
		if t.stats == nil || t.resumed {
			continue
		}
		t.resumed = true
		for name, d := range docs {
			if of, _, _ := strings.Cut(name, " "); of == t.Spec.Name {
				t.stats.Forget(slotName(s.number) + strings.TrimPrefix(name, of)) // heard before this replica had the slot
				m.takeUp(ctx, t, name, d)
			}
		}
	}
	m.publish()
}

// takeUp makes a document of this replica's slot part of what it has seen, with what was recorded before it could be read. The caller holds mu.
func (m *Manager) takeUp(ctx context.Context, t *trial, name string, d state.Doc) {
	h, b, ok := t.recordIn(d)
	if !ok {
		return
	}
	var err error
	if name == t.Spec.Name {
		err = m.restore(t, h, b)
	} else {
		err = t.stats.Merge(slotName(m.slot.number)+" "+name, b)
	}
	if errors.Is(err, stats.ErrWeights) {
		m.setAside(ctx, t, name)
	}
	if err != nil {
		m.opt.Log.Warn("what was seen of an experiment before the restart cannot be taken up", "experiment", t.Spec.Name, "error", err)
	}
}

// restore goes on from what was stored, and adds what was recorded since, if that was seen under the run's shares; else the error is stats.ErrWeights. The caller holds mu.
func (m *Manager) restore(t *trial, h heading, snapshot []byte) error {
	e, err := stats.New(t.design(&t.doc))
	if err == nil {
		err = e.Restore(snapshot)
	}
	if err != nil {
		return err
	}
	if _, is := apart(e.Epochs(), &t.doc); is {
		return stats.ErrWeights
	}
	if err := t.stats.Absorb(snapshot); err != nil { // beside what is heard already
		return err
	}
	t.told, t.fresh = max(t.told, h.Told), true
	m.follow(t)
	return nil
}

// setAside deletes a document of this replica's slot that nobody can add to anything, so that others do not wait for it, and goes on under
// another name: they may know some of what was under that one. The caller holds mu.
func (m *Manager) setAside(ctx context.Context, t *trial, name string) {
	s := &m.slot
	if err := m.opt.Store.Delete(ctx, statsKind(s.number), name, s.stored[name]); err != nil {
		return // what is told next takes its place
	}
	delete(s.stored, name)
	if name == t.Spec.Name {
		t.voice = " " + rand.Text()[:8]
	}
	s.spoken++ // there is something to hear: that it is gone
}

// recordIn returns the observations in a document, if they are of the run that is on.
func (t *trial) recordIn(d state.Doc) (h heading, snapshot []byte, ok bool) {
	head, snapshot, ok := bytes.Cut(d.Body, []byte("\n"))
	if !ok || json.Unmarshal(head, &h) != nil || h.Digest != t.doc.Digest || h.Run != t.run {
		return h, nil, false
	}
	return h, snapshot, true
}

// hear takes in what the other replicas have seen since they were heard the last time. The caller holds mu.
func (m *Manager) hear(ctx context.Context) {
	if len(m.trials) == 0 || m.timeless() {
		return
	}
	slots, err := m.opt.Store.Load(ctx, kindReplica)
	if !m.answered(ctx, err) || err != nil {
		return
	}
	if m.heard == nil {
		m.heard = map[int]int64{}
	}
	for name, d := range slots {
		n, ok := slotNumber(name)
		var h held
		if !ok || n == m.slot.number || json.Unmarshal(d.Body, &h) != nil {
			continue
		}
		if was, known := m.heard[n]; known && was == h.Spoken {
			continue
		}
		docs, err := m.opt.Store.Load(ctx, statsKind(n))
		if !m.answered(ctx, err) || err != nil {
			return
		}
		if m.listen(n, docs, m.vacant(d)) {
			m.heard[n] = h.Spoken
		} else {
			delete(m.heard, n) // tried again
		}
	}
}

// listen takes in what a slot has seen, and tells whether all of it was understood. What a holder who is gone saw under shares that nobody
// else had is waited for no longer. The caller holds mu.
func (m *Manager) listen(n int, docs map[string]state.Doc, gone bool) bool {
	all := true
	for _, t := range m.trials {
		if t.stats == nil {
			continue
		}
		was := t.unheard[n]
		delete(t.unheard, n)
		for name, d := range docs {
			of, _, _ := strings.Cut(name, " ")
			_, b, ok := t.recordIn(d)
			if of != t.Spec.Name || !ok {
				continue
			}
			if err := t.stats.Merge(slotName(n)+strings.TrimPrefix(name, of), b); err != nil {
				if gone && errors.Is(err, stats.ErrWeights) {
					m.opt.Log.Warn("what a replica that is gone has seen of an experiment by itself is not counted", "experiment", of, "replica", slotName(n), "error", err)
					continue
				}
				if t.unheard == nil {
					t.unheard = map[int]string{}
				}
				if t.unheard[n] == "" && was == "" { // it is tried at every round
					m.opt.Log.Warn("what another replica has seen of an experiment is not counted: no step is taken meanwhile", "experiment", of, "replica", slotName(n), "error", err)
				}
				t.unheard[n], all = err.Error(), false
			}
		}
	}
	return all
}

// leave stores what was seen and gives up the slot, so that whoever starts next goes on from there.
func (m *Manager) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.slot.number < 0 {
		m.disappear(true)
		return
	}
	m.drain()
	m.speak(ctx, true)
	b, _ := json.Marshal(held{At: m.now(), Spoken: m.slot.spoken}) // always encodes
	_, err := m.opt.Store.Put(ctx, kindReplica, slotName(m.slot.number), m.slot.version, b)
	m.disappear(err == nil) // else it is free to the next process of this directory, and to others after a while
}
