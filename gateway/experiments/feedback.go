package experiments

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"headrace/router/experiment"
)

// Feedback is what somebody says of an answer, or of all answers that a unit gets.
type Feedback struct {
	RequestID string   `json:"request_id"`
	Unit      string   `json:"unit"`
	By        string   `json:"by"`    // what Unit is: a word of assign_by, the first of them by default
	Score     *float64 `json:"score"` // from 0, the worst, to 1
}

// ErrFeedback says what is wrong with a Feedback.
var ErrFeedback = errors.New("feedback")

// Feedback takes in what is said of an answer, and returns the arm that it is said of. Errors are ErrUnknown and ErrFeedback.
func (m *Manager) Feedback(ctx context.Context, name string, f Feedback) (arm string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, err := m.find(name)
	if err != nil {
		return "", err
	}
	bad := func(format string, args ...any) (string, error) {
		return "", fmt.Errorf("%w: %s", ErrFeedback, fmt.Sprintf(format, args...))
	}
	switch {
	case f.Score == nil || !(*f.Score >= 0 && *f.Score <= 1): //nolint:staticcheck // NaN
		return bad("score must be a number from 0, the worst, to 1, the best")
	case (f.RequestID == "") == (f.Unit == ""):
		return bad("give request_id, or unit")
	case t.stats == nil || !t.doc.State.Tries() || t.foreign:
		return bad("experiment %q is %s: nothing is counted", name, t.doc.State)
	}
	m.drain()
	said, judged := told{run: t.run}, f.RequestID // judged is the request, "" for all of a unit
	if !t.Spec.Sticky() {
		judged += f.Unit // the unit is the request
	}
	if judged != "" {
		var ok bool
		if said, ok = m.recent.of[judged]; !ok || said.experiment != name || said.run != t.run {
			hint := "give its unit instead"
			if !t.Spec.Sticky() {
				hint = "give it to the replica that served it, once it has ended"
			}
			return bad("request %q is not among the newest %d of this replica that were counted in %q; %s", judged, remembered, name, hint)
		}
	} else {
		kind := t.Spec.Units[0]
		if f.By != "" {
			var ok bool
			if kind, ok = experiment.ParseUnit(f.By); !ok || !slices.Contains(t.Spec.Units, kind) {
				return bad("by must be one of the experiment's assign_by: %s", strings.Join(assignedBy(t.Spec), ", "))
			}
		}
		unit := unitBytes(t.Spec, kind, f.Unit)
		a := m.table.Load().Named(name)
		if !a.Takes(unit) {
			return bad("that unit is not in the experiment")
		}
		is, key := a.Assign(unit)
		_, said.arm = t.Spec.Arm(is.Name)
		said.unit = uint64(key)
		if said.arm, err = m.servedBy(ctx, t, said.unit, said.arm); err != nil {
			return "", err
		}
	}
	switch {
	case said.forced:
		return bad("request %q chose its arm: only those that were drawn are judged", judged)
	case said.scored && said.score == *f.Score: // sent twice
		return t.Spec.Arms[said.arm].Name, nil
	case said.scored:
		return bad("request %q has a score already, %v", judged, said.score)
	}
	if judged != "" {
		said.scored, said.score = true, *f.Score
		m.recent.of[judged] = said
	}
	t.stats.Feedback(said.unit, said.arm, said.epoch, *f.Score)
	t.recorded++
	t.fresh = true
	return t.Spec.Arms[said.arm].Name, nil
}

// servedBy is the arm that a unit's answers are of: where it has moved, the one that it belongs to now. The caller holds mu.
func (m *Manager) servedBy(ctx context.Context, t *trial, unit uint64, now int) (arm int, err error) {
	arms, sampled := t.stats.ArmsOf(unit)
	if arms == 0 && sampled { // another replica may know it
		m.ask(ctx)
		arms, sampled = t.stats.ArmsOf(unit)
	}
	switch {
	case !sampled || arms&(1<<now) != 0: // of one that is left out nothing is counted
		return now, nil
	case arms == 0:
		return 0, fmt.Errorf("%w: no request of that unit was counted in this run of %q yet", ErrFeedback, t.Spec.Name)
	}
	return bits.TrailingZeros32(arms), nil
}
