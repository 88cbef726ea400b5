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

// clockEvery is how often the store's clock is looked at.
const clockEvery = time.Minute

// setClock finds how far the store's clock is from this process's, if that is not known of late. The error of a store that does not say is that of
// whatever it is asked next. The caller holds mu.
func (m *Manager) setClock(ctx context.Context) {
	c, ok := m.opt.Store.(clock)
	if now := m.opt.Now(); !ok || !m.clockAt.IsZero() && now.Sub(m.clockAt) < clockEvery {
		return
	}
	asked := m.opt.Now()
	is, err := c.Now(ctx, kindDocs)
	if err != nil {
		return
	}
	m.clockAt = m.opt.Now()
	m.off = is.Sub(asked.Add(m.clockAt.Sub(asked) / 2))
}

// now is the time by the store's clock, as far as it is known. The caller holds mu.
func (m *Manager) now() time.Time { return m.opt.Now().Add(m.off) }
