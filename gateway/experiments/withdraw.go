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
// than a mishap, and deletes those that are gone for good. Any replica does, also one without experiments; but only one whose own config has
// left an experiment out knows that this was meant, and the others do not take gateways that are down for such. The caller holds mu.
func (m *Manager) withdraw(ctx context.Context) {
	now := m.now()
	if m.timeless() || now.Sub(m.checked) < checkEvery {
		return
	}
	m.checked = now
	for name, r := range m.left {
		switch away := now.Sub(r.at); {
		case away >= experiment.Forgotten:
			delete(m.left, name)
		case away >= mishap && r.trial != nil && !r.ahead:
			m.left[name] = removed{nil, r.at}
		}
	}
	if len(m.trials) > 0 && m.silent != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
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
	gone := map[string]state.Version{}
	for name, d := range docs {
		var doc experiment.Doc
		if inUse[name] || json.Unmarshal(d.Body, &doc) != nil {
			continue
		}
		if !doc.Withdrawn.IsZero() && now.Sub(doc.Withdrawn) >= experiment.Forgotten {
			gone[name] = d.Version
			continue
		}
		since, known := m.unheld[name]
		if !known {
			m.unheld[name] = now
			continue
		}
		_, said := m.left[name]
		next, changed := doc.Withdraw(since, said, now)
		if !changed || now.Sub(since) < mishap {
			continue
		}
		body, err := json.Marshal(next)
		if err != nil {
			panic("BUG: an experiment's document cannot be written: " + err.Error())
		}
		if _, err := m.opt.Store.Put(ctx, kindDocs, name, d.Version, body); err == nil && said { // else somebody has written it, or it is tried again
			m.opt.Log.Info("experiment", "name", name, "what", "withdrawn", "why", "no replica has it in its config any more", "state", string(next.State))
		}
	}
	m.forget(ctx, gone, slots)
}

// forget deletes experiments: what was seen of them, in every slot, how they stood over time, and in the end their documents. What there is no
// time for is for the next time. The caller holds mu.
func (m *Manager) forget(ctx context.Context, gone map[string]state.Version, slots map[string]state.Doc) {
	if len(gone) == 0 {
		return
	}
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
			of, _, _ := strings.Cut(doc, " ")
			if _, is := gone[of]; !is {
				continue
			}
			if err := m.opt.Store.Delete(ctx, kind, doc, d.Version); err != nil {
				return
			}
		}
	}
	for name, v := range gone {
		if err := m.opt.Store.Delete(ctx, kindDocs, name, v); err != nil { // it is in somebody's config again, maybe
			continue
		}
		m.opt.Log.Info("experiment", "name", name, "what", "forgotten", "why", "no replica has had it in its config for long")
	}
}
