package experiments

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"headrace/router/affinity"
	"headrace/router/experiment"
)

// ErrPlace says why nobody can tell which arm a request would be of.
var ErrPlace = errors.New("no such arm")

// Pool returns the router's pool to which a request for the model would be kept: of the arm that it asks for as "experiment=arm", of that of
// its unit, in the words of assign_by's first, or of what serves requests without a unit. It is "" where no experiment is on the model. The
// error is ErrPlace.
func (m *Manager) Pool(model, unit, arm string) (pool string, err error) {
	t := m.Table()
	list := t.Of(model)
	switch {
	case arm != "":
		name, want, _ := strings.Cut(strings.Replace(arm, "/", "=", 1), "=")
		a := t.Named(name)
		if a == nil || a.Spec.Model != model {
			return "", fmt.Errorf("%w: there is no experiment %q on model %q", ErrPlace, name, model)
		}
		is, _ := a.Spec.Arm(want)
		if is == nil {
			return "", fmt.Errorf("%w: experiment %q has no arm %q", ErrPlace, name, want)
		}
		return is.Pool(), nil
	case len(list) == 0 && unit != "":
		return "", fmt.Errorf("%w: no experiment is on model %q, so a unit makes no difference", ErrPlace, model)
	case len(list) == 0:
		return "", nil
	case unit != "":
		for _, a := range list {
			u := unitBytes(a.Spec, a.Spec.Units[0], unit)
			if a.Takes(u) {
				is, _ := a.Assign(u)
				return is.Pool(), nil
			}
		}
	}
	return list[0].Outside().Pool(), nil
}

// unitBytes is a unit, as people name it, as it is assigned.
func unitBytes(s *experiment.Spec, kind experiment.Unit, unit string) []byte {
	if kind.Kind == experiment.BySession {
		return binary.BigEndian.AppendUint64(nil, affinity.NameHash(s.Model, affinity.SessionHash(s.Model, []byte(unit))))
	}
	return []byte(unit)
}
