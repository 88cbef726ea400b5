package experiments

import (
	"context"
	"time"
)

// clock is what a store has that replicas on several machines share. What is written into documents, and held against them, is told by it, for
// replicas' own clocks may differ: who decides may be an hour ahead of who decided before. A store without one is of one machine.
type clock interface {
	// Now is the time where the documents of a kind are.
	Now(ctx context.Context, kind string) (time.Time, error)
}

const (
	// clockEvery is how often the store's clock is looked at.
	clockEvery = time.Minute
	// clockSet is by how much this process's clock has to be off from the time that went by to have been set anew, or a machine that slept.
	clockSet = time.Second
)

// setClock finds how far the store's clock is from this process's, if that is not known of late or this process's was set since. Until it is known for the first time nothing is
// written that has a time in it: this process's may be hours off, and what is held against it be anybody's place. The caller holds mu.
func (m *Manager) setClock(ctx context.Context) {
	c, ok := m.opt.Store.(clock)
	if !ok {
		return
	}
	if up := time.Since(m.began) - m.clockUp; !m.clockAt.IsZero() && up < clockEvery && (m.opt.Now().Round(0).Sub(m.clockAt.Round(0))-up).Abs() < clockSet {
		return
	}
	asked := m.opt.Now()
	is, err := c.Now(ctx, kindDocs)
	if err != nil {
		if m.clockAt.IsZero() && m.mute == nil && len(m.trials) > 0 {
			m.opt.Log.Warn("the clock that replicas share cannot be read: experiments stay as they are until it can, harm still ends one here", "error", err)
		}
		m.mute = err
		return
	}
	first := m.clockAt.IsZero()
	m.clockAt, m.clockUp, m.mute = m.opt.Now(), time.Since(m.began), nil
	m.off = is.Sub(asked.Add(m.clockAt.Sub(asked) / 2))
	if first {
		m.redate()
	}
}

// timeless tells whether the store has a clock that was not read yet. The caller holds mu.
func (m *Manager) timeless() bool {
	_, has := m.opt.Store.(clock)
	return has && m.clockAt.IsZero()
}

// redate has the store's time in what was noted by this process's. The caller holds mu.
func (m *Manager) redate() {
	seen := func(t *trial) {
		if t != nil && t.stats != nil { // nothing of others was heard yet
			t.stats.Shift(m.off)
		}
	}
	for _, t := range m.trials {
		seen(t)
		if !t.outOf.IsZero() {
			t.outOf = t.outOf.Add(m.off)
		}
	}
	for name, r := range m.left {
		seen(r.trial)
		m.left[name] = removed{r.trial, r.at.Add(m.off)}
	}
}

// now is the time by the store's clock, as far as it is known. The caller holds mu.
func (m *Manager) now() time.Time { return m.opt.Now().Add(m.off) }
