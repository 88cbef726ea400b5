package experiments

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"headrace/gateway/state"
	"headrace/router/experiment"
)

// checkEvery is how often it is looked for experiments that are in nobody's config.
const checkEvery = time.Minute

// withdraw notes in the documents of experiments that no replica has in its config any more that it is so, once that has lasted for longer
// than a mishap, and deletes what was seen of those that are gone for good. Any replica does, also one without experiments. The caller
// holds mu.
func (m *Manager) withdraw(ctx context.Context) {
	now := m.opt.Now()
	if now.Sub(m.checked) < checkEvery {
		return
	}
	m.checked = now
	docs, err := m.opt.Store.Load(ctx, kindDocs)
	if err != nil || len(docs) == 0 {
		return
	}
	slots, err := m.opt.Store.Load(ctx, kindReplica)
	if err != nil {
		return
	}
	inUse := map[string]bool{}
	for _, d := range slots {
		var h held
		if json.Unmarshal(d.Body, &h) == nil && h.By != "" && !m.free(d) {
			for _, name := range h.Has {
				inUse[name] = true
			}
		}
	}
	for _, t := range m.trials {
		inUse[t.Spec.Name] = true
	}
	for name := range m.unheld {
		if _, exists := docs[name]; inUse[name] || !exists {
			delete(m.unheld, name)
		}
	}
	for name, d := range docs {
		var doc experiment.Doc
		if inUse[name] || json.Unmarshal(d.Body, &doc) != nil {
			continue
		}
		if !doc.Withdrawn.IsZero() {
			if now.Sub(doc.Withdrawn) >= experiment.Forgotten {
				m.forget(ctx, name, slots)
			}
			continue
		}
		since, known := m.unheld[name]
		if !known {
			m.unheld[name] = now
			continue
		}
		if now.Sub(since) < mishap {
			continue
		}
		next, _ := doc.Withdraw(since, now)
		body, err := json.Marshal(next)
		if err != nil {
			panic("BUG: an experiment's document cannot be written: " + err.Error())
		}
		if _, err := m.opt.Store.Put(ctx, kindDocs, name, d.Version, body); err == nil { // else somebody has written it, or it is tried again
			m.opt.Log.Info("experiment", "name", name, "what", "withdrawn", "why", "no replica has it in its config any more", "state", string(next.State))
		}
	}
}

// forget deletes what was seen of an experiment, in every slot, and how it stood over time. The caller holds mu.
func (m *Manager) forget(ctx context.Context, name string, slots map[string]state.Doc) {
	kinds := []string{kindPast}
	for slot := range slots {
		if n, ok := slotNumber(slot); ok {
			kinds = append(kinds, statsKind(n))
		}
	}
	slices.Sort(kinds)
	for _, kind := range kinds {
		docs, err := m.opt.Store.Load(ctx, kind)
		if err != nil {
			return
		}
		for doc, d := range docs {
			if of, _, _ := strings.Cut(doc, " "); of == name {
				if err := m.opt.Store.Delete(ctx, kind, doc, d.Version); err != nil {
					return // at the next look
				}
			}
		}
	}
}
