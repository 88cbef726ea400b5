package experiments

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"time"

	"headrace/gateway/state"
	"headrace/router/experiment"
)

// answered notes whether the store did. That it does again is said once a whole round went well (recovered): one that can be read and not written
// to answers every other time. The caller holds mu.
func (m *Manager) answered(ctx context.Context, err error) bool {
	if errors.Is(err, state.ErrConflict) {
		err = nil
	}
	if err != nil && ctx.Err() != nil {
		return false
	}
	m.silent = err
	if err == nil {
		return true
	}
	m.failures++
	if !m.warned {
		m.warned = true
		m.opt.Log.Warn("the state of experiments cannot be reached: shares stay as they are, harm still ends an experiment here", "error", err)
	}
	return false
}

// recovered says that the store answers again, if it has since there were so many failures. The caller holds mu.
func (m *Manager) recovered(failures int64) {
	if m.warned && m.silent == nil && m.failures == failures {
		m.warned = false
		m.opt.Log.Info("the state of experiments can be reached again")
	}
}

// sync reads every document, and writes those that are missing or that the config has changed. The caller holds mu.
func (m *Manager) sync(ctx context.Context) {
	if len(m.trials) == 0 && len(m.owes) == 0 {
		return
	}
	docs, err := m.opt.Store.Load(ctx, kindDocs)
	if !m.answered(ctx, err) || err != nil {
		return
	}
	m.settle(ctx, docs)
	for _, t := range m.trials {
		d, exists := docs[t.Spec.Name]
		m.take(ctx, t, d, exists)
	}
	if m.silent == nil {
		m.resume(ctx)
	}
}

// take takes in an experiment's document as the store has it. The caller holds mu.
func (m *Manager) take(ctx context.Context, t *trial, d state.Doc, exists bool) {
	now := m.now()
	taken := t.known && d.Version == t.version && !t.ahead && !t.adopt
	if withdrawn := !t.foreign && !t.doc.Withdrawn.IsZero(); exists && taken && !withdrawn { // that it is not has to be written until it is
		return
	}
	if !exists {
		m.recollect(t)
		t.version = 0
		first := m.ours(t, now) // the store has lost it: what was rolled back is not to begin anew for that
		if !t.known || t.foreign {
			first = experiment.NewDoc(t.Spec, now)
		}
		if adopted, changed := first.Adopt(t.Spec, now); changed {
			first = adopted
		}
		if m.putOn(ctx, t, 0, first) {
			t.adopt, t.outOf = false, time.Time{}
		}
		return
	}
	var doc experiment.Doc
	err := json.Unmarshal(d.Body, &doc)
	if err == nil {
		err = doc.Check()
	}
	if err != nil {
		if t.known || t.version != d.Version { // it is read again at every round
			m.opt.Log.Error("the document of an experiment is not understood: the control serves its requests", "experiment", t.Spec.Name, "error", err)
		}
		t.known, t.version = false, d.Version
		m.publish()
		return
	}
	m.recollect(t)
	mine := m.ours(t, now)
	if t.known && !t.foreign { // the store may have lost what it had, or this replica has decided while it could not be asked
		if next, changed := doc.Reconcile(&mine, t.ahead, now); changed {
			if m.putOn(ctx, t, d.Version, next) {
				m.opt.Log.Warn("what replicas share of an experiment was behind what is known here, and was written anew", "experiment", t.Spec.Name, "state", string(next.State))
				return
			}
			m.enforce(t, next, t.version) // here at once, and read again until it can be written
			if t.ahead && doc.Decisions >= mine.Decisions {
				m.owe(&next, m.dated(doc.Decisions, next.Decisions))
			}
			return
		}
	}
	if m.timeless() && !t.known && doc.TakenOut { // it may begin anew, which needs the time: what had won is given nothing until then
		return
	}
	if t.adopt && !m.timeless() {
		next, changed := doc.Adopt(t.Spec, now)
		if t.outOf.IsZero() {
			t.outOf = doc.Away(now)
		}
		if !t.outOf.IsZero() {
			next, changed = doc.Return(t.Spec, t.outOf, now)
		}
		if !changed || m.putOn(ctx, t, d.Version, next) {
			t.adopt, t.outOf = false, time.Time{}
			if changed {
				return
			}
		} // else it is asked for again at the next reading; what others have decided meanwhile holds here too
	}
	if t.known && !t.foreign && !t.adopt && !doc.Withdrawn.IsZero() { // others took this one, which they could not hear, for gone
		if next := doc.Kept(); m.putOn(ctx, t, d.Version, next) {
			return
		}
	}
	first := !t.known
	m.set(t, doc, d.Version)
	if first && !t.foreign && doc.State == experiment.Promoted {
		m.opt.Log.Warn("an experiment was promoted earlier, and its arm serves all requests: write the arm into the config for good, or start it anew with headrace experiment start",
			"experiment", t.Spec.Name, "since", doc.EndedAt)
	}
	if t.foreign && !t.adopt {
		m.opt.Log.Warn("replicas try something else under the name of an experiment: here the control serves its requests", "experiment", t.Spec.Name)
	}
}

// put writes a document that follows from the one that is in force. The caller holds mu.
func (m *Manager) put(ctx context.Context, t *trial, next experiment.Doc) bool {
	return m.putOn(ctx, t, t.version, next)
}

// putOn writes a document that follows from the store's of that version, 0 for none, and puts it in force. Where it cannot be written, as before
// the store's clock is known, nothing has changed, so that the store's is read as news again. The caller holds mu.
func (m *Manager) putOn(ctx context.Context, t *trial, on state.Version, next experiment.Doc) bool {
	if m.timeless() {
		return false
	}
	v, err := m.opt.Store.Put(ctx, kindDocs, t.Spec.Name, on, encoded(&next))
	if !m.answered(ctx, err) {
		return false
	}
	if err != nil {
		m.behind = true // somebody else has decided
		return false
	}
	m.tell(t, &next)
	m.set(t, next, v)
	return true
}

// encoded is a document as it is stored.
func encoded(d *experiment.Doc) []byte {
	body, err := json.Marshal(d)
	if err != nil {
		panic("BUG: an experiment's document cannot be written: " + err.Error())
	}
	return body
}

// alone puts in force here what the others are told when the store can be written to. The caller holds mu.
func (m *Manager) alone(t *trial, next experiment.Doc) {
	m.tell(t, &next)
	dated := m.dated(t.doc.Decisions, next.Decisions)
	if o := m.owes[t.Spec.Name]; t.ahead && o.Dated < o.Doc.Decisions { // what it follows from has times to mend already
		dated = o.Dated
	}
	m.owe(&next, dated)
	m.enforce(t, next, t.version)
	t.ahead = true
}

// dated is how many decisions have times by the store's clock, of some and some more that were made now. The caller holds mu.
func (m *Manager) dated(before, all int64) int64 {
	if m.timeless() {
		return before
	}
	return all
}

// tell logs what was decided.
func (m *Manager) tell(t *trial, next *experiment.Doc) {
	if n := len(next.Log); n > 0 && next.Decisions != t.doc.Decisions {
		e := next.Log[n-1]
		level := slog.LevelInfo
		if e.By == "guardrail" {
			level = slog.LevelWarn
		}
		m.opt.Log.Log(context.Background(), level, "experiment", "name", t.Spec.Name, "what", e.What, "arm", e.Arm, "by", e.By, "shares", e.Shares, "state", string(e.State), "metric", e.Metric, "why", e.Why)
	}
}

// set makes d, as the store has it, what is in force. The caller holds mu.
func (m *Manager) set(t *trial, d experiment.Doc, v state.Version) {
	if t.ahead {
		t.ahead = false
		m.paid(t.Spec.Name)
	}
	m.enforce(t, d, v)
}

// enforce makes d what is in force. The caller holds mu.
func (m *Manager) enforce(t *trial, d experiment.Doc, v state.Version) {
	t.doc, t.version, t.known, t.foreign = d, v, true, !d.Matches(t.Spec)
	m.follow(t)
	m.publish()
}
