package experiments

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"headrace/router/experiment"
)

// ErrUnknown says that there is no experiment of that name.
var ErrUnknown = errors.New("no such experiment")

// find returns the trial of that name. The caller holds mu.
func (m *Manager) find(name string) (*trial, error) {
	for _, t := range m.trials {
		if t.Spec.Name == name {
			return t, nil
		}
	}
	return nil, fmt.Errorf("%w: %q; the config has %s", ErrUnknown, name, m.names())
}

func (m *Manager) names() string {
	if len(m.trials) == 0 {
		return "none"
	}
	names := make([]string, len(m.trials))
	for i, t := range m.trials {
		names[i] = t.Spec.Name
	}
	return strings.Join(names, ", ")
}

// ErrSilent says that the store did not answer, so that other replicas cannot be told.
var ErrSilent = errors.New("the state that replicas share cannot be reached")

// away says why nothing can be decided together with others now, nil when it can. The caller holds mu.
func (m *Manager) away() error {
	if m.silent == nil && m.timeless() {
		return cmp.Or(m.mute, errTimeless)
	}
	return m.silent
}

var errTimeless = errors.New("its clock was not read yet")

// Apply carries out an operator's command. An abort is in force here at once, also while the store does not answer, and what is owed to the others
// then is kept (owes). Errors are ErrUnknown, ErrSilent, experiment.ErrState and experiment.ErrArm.
func (m *Manager) Apply(ctx context.Context, name string, c experiment.Command, arm string) (View, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, err := m.find(name)
	if err != nil {
		return View{}, err
	}
	done := "nothing was done"
	for range 10 {
		m.setClock(ctx)
		m.sync(ctx)
		if why := m.away(); why != nil {
			if c != experiment.Abort {
				return View{}, fmt.Errorf("%w: %w; %s; abort works all the same, here and at once", ErrSilent, why, done)
			}
			if !t.known {
				return View{}, fmt.Errorf("%w: %w; how experiment %q stands is not known here, so the control serves its requests at this replica: abort it again when the state answers", ErrSilent, why, name)
			}
			break
		}
		if !t.known {
			return View{}, fmt.Errorf("%w: how experiment %q stands is not known, and the control serves its requests: the log says why; ask again then", experiment.ErrState, name)
		}
		if t.foreign {
			return View{}, fmt.Errorf("%w: replicas try something else under the name %q; give all of them one config", experiment.ErrState, name)
		}
		next, err := t.doc.Apply(t.Spec, c, arm, "operator", m.now())
		if err != nil {
			return View{}, err
		}
		if m.put(ctx, t, next) {
			return m.view(t), nil
		}
		if m.silent != nil {
			done = "whether it was done is not known"
		}
		if ctx.Err() != nil {
			break
		}
	}
	if c != experiment.Abort { // which always works
		return View{}, cmp.Or(ctx.Err(), fmt.Errorf("%w: other replicas keep changing it", ErrSilent))
	}
	next, err := t.doc.Apply(t.Spec, c, arm, "operator", m.now())
	if err != nil {
		return View{}, err
	}
	m.alone(t, next)
	return m.view(t), nil
}
