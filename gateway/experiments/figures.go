package experiments

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"headrace/router/experiment"
	"headrace/router/experiment/stats"
)

// follow has the statistics know of the shares in force. The caller holds mu.
func (m *Manager) follow(t *trial) {
	d := &t.doc
	if len(d.Weights) == 0 { // it has yet to begin, or to begin again: what is known is of a run that the store has no more
		t.stats = nil
		return
	}
	if t.foreign {
		return
	}
	if t.stats == nil || t.run != d.Run {
		t.past = past{version: t.past.version}
		e, err := stats.New(t.design(d))
		if err != nil {
			t.failed = err.Error()
			m.opt.Log.Error("an experiment cannot be measured", "experiment", t.Spec.Name, "error", err)
			return
		}
		t.stats, t.run, t.told, t.recorded, t.stored, t.judged, t.late, t.failed, t.deaf = e, d.Run, 1, 0, 0, stats.Verdict{}, 0, "", false
		t.resumed, t.voice, t.unheard, t.warned = false, "", nil, false
		t.apartFrom, t.apartUntil = 0, time.Time{}
		m.heard = nil
	}
	if from, apart := apart(t.stats.Epochs(), d); apart {
		m.rejoin(t, from)
	}
	for ; t.told < len(d.Weights) && (t.told < len(d.Weights)-1 || d.State.Tries()); t.told++ {
		if err := t.stats.Reweigh(d.Weights[t.told].Shares); err != nil {
			if t.failed != err.Error() {
				t.failed, t.deaf = err.Error(), true
				m.opt.Log.Error("an experiment cannot be measured any longer: shares stay as they are", "experiment", t.Spec.Name, "error", err)
			}
			return
		}
	}
}

// apart tells whether statistics were told of shares that are not those of the run, one after another, and from which of theirs on.
func apart(epochs [][]float64, d *experiment.Doc) (from int, is bool) {
	for i := range d.Weights {
		w := d.Weights[i].Shares
		if i > 0 && slices.Equal(w, d.Weights[i-1].Shares) { // no epoch of its own
			continue
		}
		if from == len(epochs) {
			return from, false
		}
		if !slices.Equal(w, epochs[from]) {
			return from, true
		}
		from++
	}
	return from, from < len(epochs)
}

// epochOf is the statistics' epoch, from 0 on, of one of the shares of a run.
func epochOf(d *experiment.Doc, weighing int) (epoch int) {
	for i := 1; i <= weighing && i < len(d.Weights); i++ {
		if !slices.Equal(d.Weights[i].Shares, d.Weights[i-1].Shares) {
			epoch++
		}
	}
	return epoch
}

// rejoin goes on by the shares of all where this replica had ended an arm by itself while others took a step: what it saw under shares that
// nobody else had cannot be added to anything. It goes on from what it had stored before, as after a restart; requests whose arm was found by
// epochs from the given one on, and which end later, are in no figure. The caller holds mu.
func (m *Manager) rejoin(t *trial, from int) {
	e, err := stats.New(t.design(&t.doc))
	if err != nil {
		t.failed = err.Error()
		m.opt.Log.Error("an experiment cannot be measured", "experiment", t.Spec.Name, "error", err)
		return
	}
	m.opt.Log.Warn("others took a step in an experiment while this replica had ended an arm by itself: what it saw since it last told them is not counted", "experiment", t.Spec.Name, "requests", t.recorded-t.stored)
	t.stats, t.told, t.recorded, t.stored, t.judged, t.deaf = e, 1, 0, 0, stats.Verdict{}, false
	t.resumed, t.voice, t.unheard = false, "", nil
	t.apartFrom, t.apartUntil = from+1, m.opt.Now()
	m.heard = nil
}

// muffled says what of other replicas is not counted, "" when all is.
func (t *trial) muffled() string {
	for n, why := range t.unheard {
		return fmt.Sprintf("what replica %s has seen is not counted (%s): give all replicas one version, or begin it anew", slotName(n), why)
	}
	return ""
}

// capacity is how many units a replica remembers of a sticky experiment: more would make a look at what several of them saw too slow
// for ten a second. They fit into a document.
const capacity = 1 << 14

func (t *trial) design(d *experiment.Doc) stats.Design {
	guardrails := t.Guardrails
	if guardrails == nil {
		guardrails = stats.Guardrails()
	}
	return stats.Design{
		Arms: d.Arms, Weights: d.Weights[0].Shares, Sticky: t.Spec.Sticky(), Alpha: t.Alpha, Guardrails: guardrails,
		MinUnits: max(2, min(t.Spec.MinUnits, 40)), Capacity: capacity,
	}
}

// regard has what was seen judged by the margins that hold now. The caller holds mu.
func (m *Manager) regard(t *trial) {
	if t.stats == nil || len(t.doc.Weights) == 0 {
		return
	}
	was, want := t.stats.Design(), t.design(&t.doc)
	if was.Alpha == want.Alpha && slices.Equal(was.Guardrails, want.Guardrails) && was.MinUnits == want.MinUnits {
		return
	}
	e, err := stats.New(want)
	if err == nil {
		err = e.Restore(t.stats.Snapshot())
	}
	if err != nil {
		t.failed = err.Error()
		m.opt.Log.Error("an experiment is judged by the margins that it had before", "experiment", t.Spec.Name, "error", err)
		return
	}
	t.stats, t.judged, t.fresh, t.failed = e, stats.Verdict{}, true, ""
	m.heard = nil // what others have seen is to be merged anew
}

// guard ends what is proven to harm: here at once, and at the other replicas as soon as the store has it. The caller holds mu.
func (m *Manager) guard(ctx context.Context, t *trial) {
	if !t.known || t.foreign {
		return
	}
	t.judged = t.stats.VerdictOf(m.slot.part())
	next, ended := t.doc.Guard(t.Spec, readings(t.judged), m.now())
	if !ended {
		return
	}
	m.remember(ctx, t, true)
	run := t.run
	for range 3 {
		if m.put(ctx, t, next) {
			return
		}
		if m.away() != nil {
			break
		}
		m.sync(ctx) // somebody else has decided meanwhile
		if t.foreign || t.run != run {
			return
		}
		if next, ended = t.doc.Guard(t.Spec, readings(t.judged), m.now()); !ended {
			return
		}
	}
	m.alone(t, next)
}

// drain takes in the requests that wait. The caller holds mu.
func (m *Manager) drain() {
	m.queue.Lock()
	batch := m.waiting
	if len(batch) > 0 {
		m.waiting = m.spare[:0]
	}
	m.queue.Unlock()
	if len(batch) == 0 {
		return
	}
	byName := map[string]*trial{}
	for _, t := range m.trials {
		byName[t.Spec.Name] = t
	}
	for i := range batch {
		s := &batch[i]
		t := byName[s.place.Spec.Name]
		if t == nil || t.stats == nil || t.foreign || !t.doc.State.Tries() || t.deaf {
			continue
		}
		if !s.lot.Of(t.run) || s.place.Spec != t.Spec && s.place.Spec.Digest() != t.Spec.Digest() { // it may be of an arm that there is no more
			t.late++
			continue
		}
		if t.doc.Dropped[s.place.Index] {
			continue
		}
		if s.Epoch >= t.apartFrom && s.At.Before(t.apartUntil) { // its epoch has other shares by now
			t.late++
			continue
		}
		m.compare(t, s)
		s.At = s.At.Add(m.off) // others hold theirs against it
		t.stats.Record(&s.Observation)
		t.recorded++
		t.fresh = true
		m.recent.add(s.request, told{experiment: t.Spec.Name, run: t.run, arm: s.place.Index, unit: s.Unit, epoch: s.Epoch, forced: s.Forced})
	}
	clear(batch)
	m.spare = batch
}

// readings are the statistics as decisions need them.
func readings(v stats.Verdict) experiment.Readings {
	r := experiment.Readings{Broken: v.Broken, Arms: make([]experiment.Reading, len(v.Arms))}
	for i := range v.Arms {
		a := &v.Arms[i]
		g := experiment.Reading{Requests: a.Requests - a.Forced, OutOfArm: a.OutOfArm, Why: a.Reason}
		switch a.Action {
		case stats.Hold:
		case stats.Advance:
			g.Judgement = experiment.Advance
		case stats.Promote:
			g.Judgement = experiment.Pass
		case stats.Stop:
			g.Judgement = experiment.Stop
		}
		if j := slices.IndexFunc(a.Estimates, func(e stats.Estimate) bool { return int(e.Metric) == a.By }); j >= 0 {
			e := &a.Estimates[j]
			g.Metric, g.Figure, g.Bound = e.Metric.String(), float64(e.Diff), float64(e.Margin)
		}
		r.Arms[i] = g
	}
	return r
}

// unpriced says what a guardrail on dollars waits for that nobody knows, "" when it is known or there is none. Hosts that a provider reports are
// known at run time only. The caller holds mu.
func (m *Manager) unpriced(t *trial, v *stats.Verdict) string {
	gs := t.stats.Design().Guardrails
	g := slices.IndexFunc(gs, func(g stats.Guardrail) bool { return g.Metric == stats.USD && !g.Optional })
	if g < 0 || !t.doc.State.Tries() {
		return ""
	}
	key := "guardrails.usd_per_mtok"
	if gs[g].Goal {
		key = "goal"
	}
	waits := false
	for i := range v.Arms {
		waits = waits || !t.doc.Dropped[i] && slices.ContainsFunc(v.Arms[i].Estimates, func(e stats.Estimate) bool { return e.Metric == stats.USD && e.Finding == stats.Unmeasured })
	}
	if !waits {
		return ""
	}
	var arms, hosts []string
	for i := range v.Arms {
		a := &v.Arms[i]
		if t.doc.Dropped[i] || a.Unpriced == 0 || a.PricedTokens > 0 {
			continue
		}
		arms = append(arms, a.Name)
		for _, h := range a.Hosts {
			if name, ok := m.hosts[h.Host]; ok && !slices.Contains(hosts, name) {
				hosts = append(hosts, name)
			}
		}
	}
	who := "one of the arms"
	if len(arms) > 0 {
		who = strings.Join(arms, " and of ")
	}
	slices.Sort(hosts)
	if more := len(hosts) - 5; more > 0 {
		hosts = append(hosts[:5], fmt.Sprintf("%d more", more))
	}
	where := "its hosts"
	if len(hosts) > 0 {
		where = strings.Join(hosts, ", ")
	}
	return fmt.Sprintf("%s: of no request of %s it is known what tokens cost, and no arm is promoted by dollars that nobody knows: give %s a price, or leave it out", key, who, where)
}

// toDecide are the readings that the next step goes by. The caller holds mu.
func (m *Manager) toDecide(t *trial, v stats.Verdict) experiment.Readings {
	r, from := readings(v), epochOf(&t.doc, t.doc.StepFrom())
	why := cmp.Or(t.failed, t.muffled())
	for i := range r.Arms {
		a := &r.Arms[i]
		if m.opt.Pool != nil {
			n, _ := m.opt.Pool(t.Spec.Arms[i].Pool())
			a.Hostless = n == 0
		}
		if n := v.Arms[i].UnitsFrom; from < len(n) {
			a.Units = int64(float64(n[from]) / v.Sample)
		}
		if why != "" && a.Judgement != experiment.Stop {
			a.Judgement, a.Why = experiment.Hold, why
		}
	}
	return r
}

// round tells the other replicas what was seen here, and decides for all of them where it is this one's turn.
func (m *Manager) round(ctx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.converse(ctx)
	m.withdraw(ctx) // last, and with time of its own: it can wait
}

// converse is what a round is of the experiments in the config. The caller holds mu.
func (m *Manager) converse(ctx context.Context) {
	c, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	defer m.recovered(m.failures)
	m.setClock(c)
	m.sync(c)
	if len(m.trials) == 0 {
		return
	}
	m.drain()
	m.speak(c, false)
	m.hold(c) // which tells the others that there is something to hear
	if m.silent == nil && (m.slot.leads || m.heard == nil) {
		m.hear(c)
	}
	if m.silent != nil || !m.slot.leads {
		return
	}
	for _, t := range m.trials {
		m.decide(c, t)
	}
}

// decide takes the next step, if it is time. The caller holds mu.
func (m *Manager) decide(ctx context.Context, t *trial) {
	if !t.known || t.foreign || t.ahead {
		return
	}
	r := experiment.Readings{}
	if t.stats != nil {
		t.judged = t.stats.VerdictOf(m.slot.part())
		r = m.toDecide(t, t.judged)
		if why := m.unpriced(t, &t.judged); why != "" && !t.warned {
			t.warned = true
			m.opt.Log.Warn("an experiment waits for what nobody measures", "experiment", t.Spec.Name, "why", why)
		}
	}
	next, changed := t.doc.Decide(t.Spec, r, m.now())
	m.remember(ctx, t, changed)
	if changed {
		m.put(ctx, t, next)
	}
}
