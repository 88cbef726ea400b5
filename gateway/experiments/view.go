package experiments

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"time"

	"headrace/router/experiment"
	"headrace/router/experiment/stats"
)

// View is an experiment as operators see it.
type View struct {
	Name       string                `json:"name"`
	Model      string                `json:"model"`
	State      experiment.State      `json:"state"`
	Run        int                   `json:"run"`
	AssignBy   []string              `json:"assign_by"`
	Traffic    float64               `json:"traffic"` // share of its layer's units
	Steps      []float64             `json:"steps"`
	Step       int                   `json:"step"` // from 1, 0 before the first
	StartedAt  *time.Time            `json:"started_at"`
	EndedAt    *time.Time            `json:"ended_at"`
	Arms       []ArmView             `json:"arms"`
	Passed     bool                  `json:"passed"`          // every guardrail is shown to be kept
	Waits      string                `json:"waits,omitempty"` // for what, before the next step
	Weights    []experiment.Weighing `json:"weights"`
	Decisions  []experiment.Entry    `json:"decisions"`      // the oldest first
	Made       int64                 `json:"decisions_made"` // of which Decisions are the newest
	Verdict    *stats.Verdict        `json:"verdict"`        // null before anything was seen
	Hosts      map[uint32]string     `json:"hosts,omitempty"`
	Kinds      map[uint32]string     `json:"kinds,omitempty"`
	Replica    string                `json:"replica"` // that tells
	Decides    bool                  `json:"decides"` // that replica, for all
	Uncounted  Uncounted             `json:"uncounted"`
	Problem    string                `json:"problem,omitempty"`
	Advice     string                `json:"advice,omitempty"` // what is left to the operator
	Guardrails []stats.Guardrail     `json:"guardrails"`
	Alpha      float64               `json:"alpha"` // of the experiment; the Verdict's is the part that who decides goes by
}

// ArmView is an arm of it.
type ArmView struct {
	Name    string  `json:"name"`
	Control bool    `json:"control,omitempty"`
	Share   float64 `json:"share"` // of the units, in force
	Dropped bool    `json:"dropped,omitempty"`
	Hosts   *int    `json:"hosts"` // that could serve it, by what they are; null where nobody can tell
}

// Uncounted are requests of this replica that are in no figure.
type Uncounted struct {
	Late    int64 `json:"late"`    // they are of an earlier run, or of shares that were this replica's alone
	Dropped int64 `json:"dropped"` // too many at once, over all experiments
}

// view shows a trial. The caller holds mu.
func (m *Manager) view(t *trial) View {
	s, d := t.Spec, t.doc // a copy: what is returned is read when mu is free again
	v := View{
		Name: s.Name, Model: s.Model, State: d.State, Run: d.Run, Traffic: s.To - s.From, Steps: d.Steps, Step: d.Step + 1, Passed: d.Passed,
		AssignBy: assignedBy(s), Weights: d.Weights, Decisions: d.Log, Made: d.Decisions, Arms: m.arms(t), Replica: m.slot.name(), Decides: m.slot.leads,
		Uncounted: Uncounted{Late: t.late, Dropped: m.lost()}, Problem: t.failed, Advice: advice(t), Guardrails: t.Guardrails, Alpha: t.Alpha,
	}
	if !d.StartedAt.IsZero() {
		v.StartedAt = &d.StartedAt
	}
	if !d.EndedAt.IsZero() {
		v.EndedAt = &d.EndedAt
	}
	switch {
	case !t.known:
		v.Problem = "its state is not known yet: the control serves its requests"
		if m.silent == nil && m.timeless() {
			v.Problem = fmt.Sprintf("its state is not known before the clock that replicas share can be read (%v): the control serves its requests", m.away())
		}
		return v
	case t.foreign:
		v.Problem = "replicas try something else under this name: here the control serves its requests"
		return v
	}
	v.Problem = cmp.Or(m.unsaid(t), v.Problem, t.muffled(), m.missing(t))
	if m.silent == nil && m.timeless() {
		v.Problem = cmp.Or(v.Problem, fmt.Sprintf("the clock that replicas share cannot be read (%v): shares stay as they are", m.away()))
	}
	if t.stats == nil {
		return v
	}
	verdict := t.stats.VerdictOf(m.slot.deciding())
	v.Verdict = &verdict
	v.Problem = cmp.Or(v.Problem, m.unpriced(t, &verdict))
	v.Guardrails, v.Alpha = t.stats.Design().Guardrails, t.stats.Design().Alpha
	if d.State == experiment.Running && !d.Passed {
		v.Waits = d.Waits(s, m.toDecide(t, verdict), m.now())
	}
	v.Hosts, v.Kinds = map[uint32]string{}, map[uint32]string{}
	for i := range verdict.Arms {
		for _, h := range verdict.Arms[i].Hosts {
			if name, ok := m.hosts[h.Host]; ok {
				v.Hosts[h.Host] = name
			}
			if name, ok := m.kinds[h.Kind]; ok {
				v.Kinds[h.Kind] = name
			}
		}
	}
	return v
}

// assignedBy is what is assigned to arms, in the config's words.
func assignedBy(s *experiment.Spec) []string {
	words := make([]string, len(s.Units))
	for i, u := range s.Units {
		words[i] = u.String()
	}
	return words
}

// missing says which hosts a trial lacks, "" when it has what it needs. The caller holds mu.
func (m *Manager) missing(t *trial) string {
	if m.opt.Pool == nil {
		return ""
	}
	for i := range t.Spec.Arms {
		a := &t.Spec.Arms[i]
		n, ok := m.opt.Pool(a.Pool())
		switch model := cmp.Or(a.Model, t.Spec.Model); {
		case !ok:
			return "no host serves the model " + strconv.Quote(model) + " now"
		case n == 0:
			return a.Name + " has no host now: none is what its selector says (" + a.Hosts.String() + ")"
		}
	}
	return ""
}

// arms shows a trial's arms with the shares in force here. The caller holds mu.
func (m *Manager) arms(t *trial) []ArmView {
	vs := make([]ArmView, 0, len(t.Spec.Arms))
	for i := range t.Spec.Arms {
		a := ArmView{Name: t.Spec.Arms[i].Name, Control: i == 0}
		if t.known && !t.foreign {
			a.Share, a.Dropped = t.doc.Shares[i], t.doc.Dropped[i]
		} else if i == 0 {
			a.Share = 1
		}
		if m.opt.Pool != nil {
			n, _ := m.opt.Pool(t.Spec.Arms[i].Pool())
			a.Hosts = &n
		}
		vs = append(vs, a)
	}
	return vs
}

func (m *Manager) lost() int64 {
	m.queue.Lock()
	defer m.queue.Unlock()
	return m.dropped
}

// List shows all experiments, with what other replicas have seen as of some seconds ago.
func (m *Manager) List(ctx context.Context) []View {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ask(ctx)
	vs := make([]View, 0, len(m.trials))
	for _, t := range m.trials {
		vs = append(vs, m.view(t))
	}
	return vs
}

// Figures shows all experiments without asking the store or finding words, for who looks often.
func (m *Manager) Figures() []View {
	m.mu.Lock()
	defer m.mu.Unlock()
	vs := make([]View, 0, len(m.trials))
	for _, t := range m.trials {
		v := View{Name: t.Spec.Name, State: t.doc.State, Made: t.doc.Decisions, Arms: m.arms(t)}
		if t.known && !t.foreign && t.stats != nil {
			verdict := t.stats.PeekOf(m.slot.deciding())
			v.Verdict = &verdict
		}
		vs = append(vs, v)
	}
	return vs
}

// Show shows one. The error is ErrUnknown.
func (m *Manager) Show(ctx context.Context, name string) (View, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, err := m.find(name)
	if err != nil {
		return View{}, err
	}
	m.ask(ctx)
	return m.view(t), nil
}

// ask hears the other replicas, unless that was done of late. The caller holds mu.
func (m *Manager) ask(ctx context.Context) {
	if len(m.trials) == 0 {
		return
	}
	c, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	m.drain()
	if now := m.opt.Now(); now.Sub(m.heardAt) >= m.opt.Tell/2 && m.silent == nil {
		m.heardAt = now
		m.hear(c)
	}
}
