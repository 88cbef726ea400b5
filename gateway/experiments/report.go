package experiments

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"

	"headrace/gateway/state"
	"headrace/router/experiment"
	"headrace/router/experiment/report"
	"headrace/router/experiment/stats"
)

// past is how an experiment stood over time. Whoever decides writes it; the others read it for reports.
type past struct {
	history *report.History
	version state.Version
	read    bool      // what others wrote was looked for
	wrote   time.Time // when it was last written
}

// pastDoc is its document.
type pastDoc struct {
	heading
	History *report.History `json:"history"`
}

const (
	pastEvery = 2 * time.Second  // between two points, while there are few
	pastWrite = 20 * time.Second // between two writings
)

// recall reads how the experiment stood before, as whoever decided then wrote it. The caller holds mu.
func (m *Manager) recall(ctx context.Context, t *trial) {
	docs, err := m.opt.Store.Load(ctx, kindPast)
	if !m.answered(ctx, err) || err != nil {
		return
	}
	p := &t.past
	d := docs[t.Spec.Name]
	if p.read && p.version == d.Version {
		return
	}
	p.read, p.version = true, d.Version
	var doc pastDoc
	if json.Unmarshal(d.Body, &doc) == nil && doc.History != nil && doc.Digest == t.doc.Digest && doc.Run == t.run {
		p.history = doc.History
	}
}

// remember keeps how the experiment stands now, for reports. The caller holds mu, and decides.
func (m *Manager) remember(ctx context.Context, t *trial, decided bool) {
	if t.stats == nil || !t.doc.State.Tries() || m.timeless() {
		return
	}
	p, now := &t.past, m.now()
	if !p.read {
		m.recall(ctx, t)
	}
	if p.history == nil {
		p.history = report.NewHistory(pastEvery)
	}
	p.history.Add(now, &t.judged, decided)
	if !decided && now.Sub(p.wrote) < pastWrite || m.silent != nil {
		return
	}
	b, err := json.Marshal(pastDoc{heading{Digest: t.doc.Digest, Run: t.run}, p.history})
	if err != nil {
		panic("BUG: an experiment's past cannot be written: " + err.Error())
	}
	v, err := m.opt.Store.Put(ctx, kindPast, t.Spec.Name, p.version, b)
	if !m.answered(ctx, err) {
		return
	}
	if err != nil { // another one has written it, who decided until now
		p.read = false
		return
	}
	p.version, p.wrote = v, now
}

// Report tells all there is of an experiment. The error is ErrUnknown.
func (m *Manager) Report(ctx context.Context, name string) (*report.Report, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, err := m.find(name)
	if err != nil {
		return nil, err
	}
	m.ask(ctx)
	c, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	if !m.slot.leads {
		m.recall(c, t)
	}
	v := m.view(t)
	r := &report.Report{
		Name: v.Name, Model: v.Model, AssignBy: strings.Join(v.AssignBy, ", else "), State: string(v.State), At: m.now(),
		Started: t.doc.StartedAt, Ended: t.doc.EndedAt, Alpha: v.Alpha, Hosts: v.Hosts, Kinds: v.Kinds, Advice: advice(t), Command: "headrace experiment report " + name + " --html FILE",
	}
	if v.Verdict != nil {
		r.Verdict = *v.Verdict
	}
	for i := range t.Spec.Arms {
		a := &t.Spec.Arms[i]
		r.Arms = append(r.Arms, report.Arm{Name: a.Name, What: a.String()})
		if v.Verdict == nil { // nothing was seen: the shares are known all the same
			r.Verdict.Arms = append(r.Verdict.Arms, stats.ArmVerdict{Name: a.Name, Control: i == 0, Weight: v.Arms[i].Share, By: -1, SRM: stats.Figure(math.NaN())})
		} else {
			r.Verdict.Arms[i].Weight = v.Arms[i].Share
		}
	}
	if t.past.history != nil {
		r.History = append(r.History, t.past.history.Points...)
	}
	for i := range t.doc.Log {
		r.Decisions = append(r.Decisions, decision(&t.doc.Log[i]))
	}
	return r, nil
}

func decision(e *experiment.Entry) report.Decision {
	figure := func(f *float64) stats.Figure {
		if f == nil {
			return stats.Figure(math.NaN())
		}
		return stats.Figure(*f)
	}
	return report.Decision{
		At: e.At, By: e.By, What: e.What, Arm: e.Arm, Weights: e.Shares, Metric: e.Metric, Figure: figure(e.Figure), Bound: figure(e.Bound), Why: e.Why,
	}
}

// advice is what is left to its operator.
func advice(t *trial) string {
	s, d := t.Spec, &t.doc
	if !t.known || t.foreign { // the document is of other arms
		return ""
	}
	switch d.State {
	case experiment.Promoted:
		i := 0
		for k, share := range d.Shares {
			if share > 0 {
				i = k
			}
		}
		a := &s.Arms[i]
		var to []string
		switch {
		case a.Model != "":
			to = append(to, fmt.Sprintf("have models.%s serve what models.%s serves", s.Model, a.Model))
		case a.Hosts != nil && len(a.Hosts.Served) > 0:
			to = append(to, fmt.Sprintf("have models.%s.serves name what its hosts serve (%s) and nothing else", s.Model, strings.Join(a.Hosts.Served, ", ")))
		case a.Hosts != nil:
			to = append(to, "give up the hosts that are not its own ("+a.Hosts.String()+")")
		}
		for _, w := range [][2]string{{"models." + s.Model + ".policy", a.Policy}, {"models." + s.Model + ".on_preemption", a.OnPreemption}, {"retries.hedge", a.Hedge}} {
			if w[1] != "" {
				to = append(to, "set "+w[0]+": "+w[1])
			}
		}
		return fmt.Sprintf("%s serves everything for as long as this experiment stays in the config. To make that last, %s; then delete the experiment.", a.Name, strings.Join(to, ", "))
	case experiment.RolledBack, experiment.Aborted, experiment.Ended:
		return "The control serves everything. Delete the experiment from the config to have its hosts used by the model again, or start it anew: headrace experiment start " + s.Name + "."
	case experiment.Running:
		if d.Passed {
			return "Every guardrail is shown to be kept: headrace experiment promote " + s.Name + " gives everything to an arm."
		}
	case experiment.Inconclusive:
		return "Nothing was shown in time: promote or abort it, or have it go on with headrace experiment resume " + s.Name + "."
	case experiment.Scheduled, experiment.Paused:
	}
	return ""
}
