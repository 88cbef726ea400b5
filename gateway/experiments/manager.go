// Package experiments runs experiments: it keeps their documents where replicas share them, feeds the statistics with settled requests,
// has one replica at a time decide the next step, and any of them end what harms. What follows from figures and time is said by
// package router/experiment, and what figures show by router/experiment/stats.
package experiments

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"headrace/gateway/state"
	"headrace/router/endpoint"
	"headrace/router/experiment"
	"headrace/router/experiment/stats"
)

// Trial is an experiment with what its statistics need to know.
type Trial struct {
	Spec       *experiment.Spec // Ready
	Alpha      float64
	Guardrails []stats.Guardrail // nil for the usual ones
}

// Options set up a Manager; zero values but Store and Host mean defaults.
type Options struct {
	Store state.Store
	// Host returns a host as discovery has it now, nil when it has it no more. It is asked for each request that is counted.
	Host func(endpoint.ID) *endpoint.Endpoint
	// Pool tells how many hosts an arm's pool has now; false when nobody serves its model. Nil cannot tell.
	Pool func(name string) (hosts int, ok bool)
	Log  *slog.Logger
	Now  func() time.Time // default time.Now
	// Look is how often new requests are looked at, 100 ms by default; Tell how often replicas tell each other what they saw, 2 s; Lease
	// how long a replica that has gone silent keeps its place, 10 s.
	Look, Tell, Lease time.Duration
}

// Manager owns the experiments of one gateway.
type Manager struct {
	opt   Options
	table atomic.Pointer[experiment.Table]

	queue   sync.Mutex // guards both below
	waiting []seen
	dropped int64 // requests that found it full

	wake chan struct{} // there is something to look at before the next tick

	mu      sync.Mutex // guards all below; held while the store is asked, so that no request takes it
	trials  []*trial
	spare   []seen
	slot    slot
	recent  recent
	hosts   names                // by number
	kinds   names                // likewise
	left    map[string]time.Time // experiments that are out of the config, since when
	heardAt time.Time            // when other replicas were last heard for somebody's sake
	silent  error                // why the store did not answer the last time, nil when it did
}

// trial is an experiment at this replica.
type trial struct {
	Trial
	doc     experiment.Doc
	version state.Version // of the store's document, 0 while there is none
	known   bool          // doc is what replicas have agreed on
	foreign bool          // they try something else under that name: theirs is another config
	ahead   bool          // doc was changed here, and the store does not know yet
	adopt   bool          // the config is to be told of in the document
	outOf   time.Time     // the config, until adopt is done with; zero for an experiment that never was

	stats            *stats.Experiment
	past             past
	run              int       // that stats is of
	told             int       // weights of the run that stats knows
	since            time.Time // requests that were accepted earlier found their arm by other shares
	recorded, stored uint64    // what stats took in here, and how much of it the store has
	speakAt          time.Time // not stored before
	fresh            bool      // something was recorded since it was last judged
	judged           stats.Verdict
	late             int64 // requests from before the shares in force, which are not counted
	failed           string
}

// Kinds of documents.
const (
	kindDocs    = "experiment"
	kindStats   = "experiment-stats"
	kindReplica = "experiment-replica"
	kindPast    = "experiment-past"
)

// New returns a Manager without experiments.
func New(o Options) *Manager {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	for _, d := range []struct {
		is    *time.Duration
		usual time.Duration
	}{{&o.Look, 100 * time.Millisecond}, {&o.Tell, 2 * time.Second}, {&o.Lease, 10 * time.Second}} {
		if *d.is <= 0 {
			*d.is = d.usual
		}
	}
	m := &Manager{opt: o, wake: make(chan struct{}, 1), left: map[string]time.Time{}}
	m.table.Store(experiment.NewTable(nil))
	return m
}

// Table is the experiments as requests see them now.
func (m *Manager) Table() *experiment.Table { return m.table.Load() }

// Configure replaces the experiments. Those that are new, or try something else than before, are the control's until the store was asked.
func (m *Manager) Configure(trials []Trial) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.trials
	m.trials = nil
	now := m.opt.Now()
	for _, c := range trials {
		t := &trial{Trial: c}
		if at, was := m.left[c.Spec.Name]; was && now.Sub(at) >= mishap {
			t.outOf = at
		}
		delete(m.left, c.Spec.Name)
		if i := slices.IndexFunc(old, func(o *trial) bool { return o.Spec.Name == c.Spec.Name }); i >= 0 {
			t = old[i]
			if t.Spec.Digest() != c.Spec.Digest() {
				t = &trial{Trial: c, doc: t.doc, version: t.version}
			}
			t.Trial = c
			m.regard(t)
		}
		t.adopt = true
		m.trials = append(m.trials, t)
	}
	for _, t := range old {
		if !slices.ContainsFunc(m.trials, func(n *trial) bool { return n.Spec.Name == t.Spec.Name }) {
			m.left[t.Spec.Name] = now
		}
	}
	m.publish()
	m.soon()
}

// mishap is how long an experiment may be out of the config and still be the same one when it comes back: a config that was rolled out by
// mistake and taken back changes nothing.
const mishap = 10 * time.Minute

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
}

// soon has Run look at once.
func (m *Manager) soon() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// publish makes the shares in force what requests see. The caller holds mu.
func (m *Manager) publish() {
	as := make([]*experiment.Assigner, 0, len(m.trials))
	for _, t := range m.trials {
		shares, recorded, run := t.doc.Shares, t.doc.State.Tries(), t.doc.Run
		if !t.known || t.foreign {
			shares, recorded, run = nil, false, 1 // the control's
		}
		as = append(as, experiment.NewAssigner(t.Spec, run, shares, recorded))
	}
	m.table.Store(experiment.NewTable(as))
}

// set makes d what is in force. The caller holds mu.
func (m *Manager) set(t *trial, d experiment.Doc, v state.Version) {
	if v < t.version {
		return
	}
	was, first := t.doc, !t.known
	t.doc, t.version, t.known, t.foreign, t.ahead = d, v, true, !d.Matches(t.Spec), false
	m.publish()
	if first || !slices.Equal(was.Shares, d.Shares) || was.Run != d.Run {
		t.since = m.opt.Now()
	}
	m.follow(t)
}

// follow has the statistics know of the shares in force. The caller holds mu.
func (m *Manager) follow(t *trial) {
	d := &t.doc
	if t.foreign || len(d.Weights) == 0 {
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
		t.stats, t.run, t.told, t.recorded, t.stored, t.judged, t.late = e, d.Run, 1, 0, 0, stats.Verdict{}, 0
	}
	for ; t.told < len(d.Weights) && (t.told < len(d.Weights)-1 || d.State.Tries()); t.told++ {
		if err := t.stats.Reweigh(d.Weights[t.told].Shares); err != nil {
			t.failed = err.Error()
			m.opt.Log.Error("an experiment cannot be measured any longer", "experiment", t.Spec.Name, "error", err)
			return
		}
	}
}

// capacity is how many units a replica remembers of a sticky experiment: more would make a look at what several of them saw too slow
// for ten a second. They fit into a document.
const capacity = 1 << 14

func (t *trial) design(d *experiment.Doc) stats.Design {
	return stats.Design{
		Arms: d.Arms, Weights: d.Weights[0].Shares, Sticky: t.Spec.Sticky(), Alpha: t.Alpha, Guardrails: t.Guardrails,
		MinUnits: max(2, min(t.Spec.MinUnits, 40)), Capacity: capacity,
	}
}

// Load asks the store how experiments stand, and takes a place among the replicas. It is to be called before the first request, and
// returns when it knows or ctx is done; what is not known by then is the control's until the store answers.
func (m *Manager) Load(ctx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sync(ctx)
	m.claim(ctx)
	m.hear(ctx)
}

// answered notes whether the store did. The caller holds mu.
func (m *Manager) answered(ctx context.Context, err error) bool {
	if errors.Is(err, state.ErrConflict) {
		err = nil
	}
	if err != nil && ctx.Err() != nil {
		return false
	}
	if (err == nil) != (m.silent == nil) {
		if err != nil {
			m.opt.Log.Warn("the state of experiments cannot be reached: shares stay as they are, harm still ends an experiment here", "error", err)
		} else {
			m.opt.Log.Info("the state of experiments can be reached again")
		}
	}
	m.silent = err
	return err == nil
}

// sync reads every document, and writes those that are missing or that the config has changed. The caller holds mu.
func (m *Manager) sync(ctx context.Context) {
	if len(m.trials) == 0 {
		return
	}
	docs, err := m.opt.Store.Load(ctx, kindDocs)
	if !m.answered(ctx, err) || err != nil {
		return
	}
	for _, t := range m.trials {
		d, exists := docs[t.Spec.Name]
		m.take(ctx, t, d, exists)
	}
}

// take takes in an experiment's document as the store has it. The caller holds mu.
func (m *Manager) take(ctx context.Context, t *trial, d state.Doc, exists bool) {
	now := m.opt.Now()
	if exists && t.known && d.Version == t.version && !t.ahead && !t.adopt {
		return
	}
	if !exists {
		t.version = 0
		t.adopt = false
		first := t.doc // the store has lost it: what was rolled back is not to begin anew for that
		if !t.known || t.foreign {
			first = experiment.NewDoc(t.Spec, now)
		}
		if adopted, changed := first.Adopt(t.Spec, now); changed {
			first = adopted
		}
		m.put(ctx, t, first)
		return
	}
	var doc experiment.Doc
	if err := json.Unmarshal(d.Body, &doc); err != nil || len(doc.Shares) != len(doc.Arms) || len(doc.Arms) == 0 {
		m.opt.Log.Error("the document of an experiment is not understood: the control serves its requests", "experiment", t.Spec.Name, "error", err)
		t.known, t.version = false, d.Version
		m.publish()
		return
	}
	if t.ahead && d.Version >= t.version && doc.State.Tries() { // harm was found while the store could not be asked
		t.version = d.Version
		mine := t.doc
		if next, ended := doc.Guard(t.Spec, readings(t.stats.Verdict()), now); ended {
			mine = next
		}
		m.put(ctx, t, mine)
		return
	}
	if t.adopt {
		next, changed := doc.Adopt(t.Spec, now)
		if !t.outOf.IsZero() {
			next, changed = doc.Return(t.Spec, t.outOf, now)
		}
		t.adopt, t.outOf = false, time.Time{}
		if changed {
			t.version = d.Version
			m.put(ctx, t, next)
			return
		}
	}
	first := !t.known
	m.set(t, doc, d.Version)
	if first && !t.foreign && doc.State == experiment.Promoted {
		m.opt.Log.Warn("an experiment was promoted earlier, and its arm serves all requests: write the arm into the config for good, or start it anew with headrace experiment start",
			"experiment", t.Spec.Name, "since", doc.EndedAt)
	}
	if t.foreign {
		m.opt.Log.Warn("replicas try something else under the name of an experiment: here the control serves its requests", "experiment", t.Spec.Name)
	}
}

// put writes a document that follows from the one the store has. The caller holds mu.
func (m *Manager) put(ctx context.Context, t *trial, next experiment.Doc) bool {
	body, err := json.Marshal(next)
	if err != nil {
		panic("BUG: an experiment's document cannot be written: " + err.Error())
	}
	v, err := m.opt.Store.Put(ctx, kindDocs, t.Spec.Name, t.version, body)
	if !m.answered(ctx, err) {
		return false
	}
	if err != nil {
		m.soon() // somebody else has decided: it is read again
		return false
	}
	m.tell(t, &next)
	m.set(t, next, v)
	return true
}

// tell logs what was decided.
func (m *Manager) tell(t *trial, next *experiment.Doc) {
	if n := len(next.Log); n > 0 && next.Decisions != t.doc.Decisions {
		e := next.Log[n-1]
		level := slog.LevelInfo
		if e.By == "guardrail" {
			level = slog.LevelWarn
		}
		m.opt.Log.Log(context.Background(), level, "experiment", "name", t.Spec.Name, "what", e.What, "arm", e.Arm, "by", e.By, "shares", e.Shares, "state", string(e.State), "metric", e.Metric, "why", e.Why)
	}
}

// Run keeps the experiments until ctx is done.
func (m *Manager) Run(ctx context.Context) error {
	changes, stop := m.opt.Store.Watch(kindDocs)
	defer stop()
	look, tell := time.NewTicker(m.opt.Look), time.NewTicker(m.opt.Tell)
	defer look.Stop()
	defer tell.Stop()
	for {
		stale := false
		select {
		case <-ctx.Done():
			m.leave(context.WithoutCancel(ctx))
			return ctx.Err()
		case <-changes:
			stale = true
		case <-m.wake:
			stale = true
		case <-tell.C:
			m.round(ctx)
		case <-look.C:
		}
		m.look(ctx, stale)
	}
}

// storeTime is how long the store is waited for.
const storeTime = 2 * time.Second

// look takes in what was settled, and ends what harms.
func (m *Manager) look(ctx context.Context, stale bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.trials) == 0 {
		return
	}
	c, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	if stale {
		m.sync(c)
	}
	m.drain()
	for _, t := range m.trials {
		if !t.fresh || t.stats == nil {
			continue
		}
		t.fresh = false
		v := t.stats.PeekOf(m.slot.part())
		if v.Broken != "" || slices.ContainsFunc(v.Arms, func(a stats.ArmVerdict) bool { return a.Action == stats.Stop }) {
			m.guard(c, t)
		}
	}
}

// guard ends what is proven to harm: here at once, and at the other replicas as soon as the store has it. The caller holds mu.
func (m *Manager) guard(ctx context.Context, t *trial) {
	if !t.known || t.foreign {
		return
	}
	t.judged = t.stats.VerdictOf(m.slot.part())
	next, ended := t.doc.Guard(t.Spec, readings(t.judged), m.opt.Now())
	if !ended {
		return
	}
	m.remember(ctx, t, true)
	if m.put(ctx, t, next) {
		return
	}
	if m.silent != nil {
		m.tell(t, &next)
		v := t.version
		m.set(t, next, v)
		t.ahead = true
	}
}

// drain takes in the requests that wait. The caller holds mu.
func (m *Manager) drain() {
	m.queue.Lock()
	batch := m.waiting
	m.waiting = m.spare[:0]
	m.queue.Unlock()
	byName := map[string]*trial{}
	for _, t := range m.trials {
		byName[t.Spec.Name] = t
	}
	for i := range batch {
		s := &batch[i]
		t := byName[s.place.Spec.Name]
		if t == nil || t.stats == nil || t.foreign || !t.doc.State.Tries() || s.place.Spec != t.Spec || t.doc.Dropped[s.place.Index] {
			continue
		}
		if s.at.Before(t.since) {
			t.late++
			continue
		}
		m.compare(t, s)
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
		g := experiment.Reading{Units: int64(float64(a.Units) / v.Sample), Requests: a.Requests, OutOfArm: a.OutOfArm, Why: a.Reason}
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

// round tells the other replicas what was seen here, and decides for all of them where it is this one's turn.
func (m *Manager) round(ctx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.trials) == 0 {
		return
	}
	c, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	m.sync(c)
	m.drain()
	m.hold(c)
	m.speak(c, false)
	if m.silent != nil || !m.slot.leads {
		return
	}
	m.hear(c)
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
		r = readings(t.judged)
	}
	next, changed := t.doc.Decide(t.Spec, r, m.opt.Now())
	m.remember(ctx, t, changed)
	if changed {
		m.put(ctx, t, next)
	}
}

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

// Apply carries out an operator's command. Errors are ErrUnknown, ErrSilent, experiment.ErrState and experiment.ErrArm.
func (m *Manager) Apply(ctx context.Context, name string, c experiment.Command, arm string) (View, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, err := m.find(name)
	if err != nil {
		return View{}, err
	}
	for range 10 {
		m.sync(ctx)
		if m.silent != nil {
			if c != experiment.Abort {
				return View{}, fmt.Errorf("%w: %w; abort works all the same, here and at once", ErrSilent, m.silent)
			}
			if !t.known {
				return View{}, fmt.Errorf("%w: %w; how experiment %q stands is not known here, so the control serves its requests at this replica: abort it again when the state answers", ErrSilent, m.silent, name)
			}
			next, err := t.doc.Apply(t.Spec, c, arm, "operator", m.opt.Now())
			if err != nil {
				return View{}, err
			}
			m.tell(t, &next)
			v := t.version
			m.set(t, next, v)
			t.ahead = true
			return m.view(t), nil
		}
		if t.foreign {
			return View{}, fmt.Errorf("%w: replicas try something else under the name %q; give all of them one config", experiment.ErrState, name)
		}
		next, err := t.doc.Apply(t.Spec, c, arm, "operator", m.opt.Now())
		if err != nil {
			return View{}, err
		}
		if m.put(ctx, t, next) {
			return m.view(t), nil
		}
		if err := ctx.Err(); err != nil {
			return View{}, err
		}
	}
	return View{}, fmt.Errorf("%w: other replicas keep changing it", ErrSilent)
}
