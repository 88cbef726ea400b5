package experiments

import (
	"context"
	"encoding/json"
	"time"

	"headrace/gateway/state"
	"headrace/router/experiment"
)

// keeper is what a store has where a process can note for its next one what it could not tell the store itself.
type keeper interface {
	// Keep keeps a document, nil for no longer.
	Keep(kind, name string, body []byte) error
	Kept(kind string) (map[string][]byte, error)
}

// owed is a document that was decided here by itself: what was aborted, or harmed, while the store could not be asked. The store is told as
// soon as it can be, also by a process that has another config by then, or by the next one.
type owed struct {
	Doc experiment.Doc `json:"doc"`
	// Dated is how many decisions of Doc have times by the store's clock.
	Dated int64     `json:"dated"`
	At    time.Time `json:"at"` // by this process's clock
	kept  bool      // also over a restart
}

// owe notes what the store is to be told, of which so many decisions have times by the store's clock. The caller holds mu.
func (m *Manager) owe(d *experiment.Doc, dated int64) {
	o := owed{Doc: *d, Dated: dated, At: m.opt.Now()}
	if k, ok := m.opt.Store.(keeper); ok {
		b, err := json.Marshal(o)
		if err == nil {
			err = k.Keep(kindDocs, d.Name, b)
		}
		if o.kept = err == nil; err != nil {
			m.opt.Log.Warn("what was decided of an experiment while other replicas could not be told is forgotten if this gateway ends before they can be", "experiment", d.Name, "error", err)
		}
	}
	m.owes[d.Name] = o
}

// paid says that the store knows, or knows better. The caller holds mu.
func (m *Manager) paid(name string) {
	if _, ok := m.owes[name]; !ok {
		return
	}
	delete(m.owes, name)
	if r := m.left[name]; r.trial != nil {
		r.ahead = false
	}
	if k, ok := m.opt.Store.(keeper); ok {
		if err := k.Keep(kindDocs, name, nil); err != nil {
			m.opt.Log.Warn("a note of what was decided of an experiment cannot be removed: it changes nothing but the run that it is of", "experiment", name, "error", err)
		}
	}
}

// remind takes up what an earlier process owed. The caller holds mu.
func (m *Manager) remind() {
	k, ok := m.opt.Store.(keeper)
	if !ok {
		return
	}
	all, err := k.Kept(kindDocs)
	if err != nil {
		m.opt.Log.Warn("what an earlier process has decided of experiments by itself cannot be read", "error", err)
		return
	}
	for name, b := range all {
		var o owed
		if json.Unmarshal(b, &o) != nil || o.Doc.Name != name || o.Doc.Check() != nil || m.opt.Now().Sub(o.At) > experiment.Forgotten {
			_ = k.Keep(kindDocs, name, nil) // or the next one does
			continue
		}
		if _, known := m.owes[name]; !known {
			o.kept = true
			m.owes[name] = o
		}
	}
	for _, t := range m.trials {
		m.recollect(t)
	}
}

// ours is the document that is in force here, with the store's time in what was decided before that was known. The caller holds mu.
func (m *Manager) ours(t *trial, now time.Time) experiment.Doc {
	if !t.ahead || m.timeless() {
		return t.doc
	}
	return t.doc.Dated(m.owes[t.Spec.Name].Dated, now)
}

// recollect puts in force what is owed of an experiment of which nothing is known here, for it is new or what the store had was not understood. The caller holds mu.
func (m *Manager) recollect(t *trial) {
	o, ok := m.owes[t.Spec.Name]
	if !ok || t.known || !o.Doc.Matches(t.Spec) {
		return
	}
	m.enforce(t, o.Doc, 0)
	t.ahead = true
}

// settle tells the store what is owed of experiments that the config has no more, or as something else; of the others take does. The caller
// holds mu.
func (m *Manager) settle(ctx context.Context, docs map[string]state.Doc) {
	if len(m.owes) == 0 || m.timeless() {
		return
	}
	carried := map[string]bool{}
	for _, t := range m.trials {
		carried[t.Spec.Name] = t.ahead
	}
	now := m.now()
	for name, o := range m.owes {
		if carried[name] {
			continue
		}
		if m.opt.Now().Sub(o.At) > experiment.Forgotten {
			m.paid(name)
			continue
		}
		d, exists := docs[name]
		next, changed := o.Doc.Dated(o.Dated, now), true
		if exists {
			var doc experiment.Doc
			if json.Unmarshal(d.Body, &doc) != nil || doc.Check() != nil {
				continue // of another version, it may be
			}
			if doc.Digest != next.Digest && doc.Run < next.Run {
				continue // another experiment, or from before: whoever has this one in its config says so
			}
			next, changed = doc.Reconcile(&next, true, now)
		}
		if changed {
			body := encoded(&next)
			v, err := m.opt.Store.Put(ctx, kindDocs, name, d.Version, body)
			if !m.answered(ctx, err) {
				return
			}
			if err != nil {
				m.behind = true // somebody else has decided
				continue
			}
			docs[name] = state.Doc{Version: v, Body: body}
			m.opt.Log.Warn("what was decided of an experiment while other replicas could not be told was written", "experiment", name, "state", string(next.State))
		}
		m.paid(name)
	}
}

// unsaid says of what is in force here that others do not know, "" when they do. The caller holds mu.
func (m *Manager) unsaid(t *trial) string {
	if !t.ahead {
		return ""
	}
	s := "this is in force at this gateway only, for what replicas share cannot be written now: the others follow when it can"
	if m.owes[t.Spec.Name].kept {
		return s + ", also if this gateway is restarted before"
	}
	return s + "; if this gateway is restarted before, it is forgotten, for there is no directory to keep it in (state.dir): then say it again"
}
