// Package experiments runs experiments: it keeps their documents where replicas share them, feeds the statistics with settled requests,
// has one replica at a time decide the next step, and any of them end what harms. What follows from figures and time is said by
// package router/experiment, and what figures show by router/experiment/stats.
package experiments

import (
	"context"
	"log/slog"
	"slices"
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
	Now  func() time.Time // default time.Now; what a Store with a clock says of the time (Now, as state.Docs has it) is reckoned with
	// Look is how often new requests are looked at, 100 ms by default; Tell how often replicas tell each other what they saw, 2 s; Lease
	// how long a replica that has gone silent keeps its place, 10 s.
	Look, Tell, Lease time.Duration
}

// Manager owns the experiments of one gateway.
type Manager struct {
	opt   Options
	began time.Time // by the clock that nobody sets
	table atomic.Pointer[experiment.Table]

	queue   sync.Mutex // guards both below
	waiting []seen
	dropped int64 // requests that found it full

	wake chan struct{} // there is something to look at before the next tick

	mu       sync.Mutex // guards all below; held while the store is asked, so that no request takes it
	trials   []*trial
	spare    []seen
	slot     slot
	recent   recent
	hosts    names                // by number
	kinds    names                // likewise
	heard    map[int]int64        // slots, by what they had spoken when they were heard; nil when all are to be heard again
	left     map[string]removed   // experiments that are out of the config
	unheld   map[string]time.Time // documents that are in no replica's config, since when; see withdraw
	checked  time.Time            // when these were looked for
	heardAt  time.Time            // when other replicas were last heard for somebody's sake
	owes     map[string]owed      // what was decided here and the store does not know yet
	behind   bool                 // documents are to be read again at the next look
	silent   error                // why the store did not answer the last time, nil when it did
	warned   bool                 // of that, and nobody was told since that it answers again
	failures int64                // how often it did not
	off      time.Duration        // of the store's clock from this process's; see setClock
	clockAt  time.Time            // when that was found, zero before
	clockUp  time.Duration        // likewise, since began
	mute     error                // why the store's clock could not be read the last time, nil when it could
}

// trial is an experiment at this replica.
type trial struct {
	Trial
	doc     experiment.Doc
	version state.Version // of the store's document, 0 while there is none
	known   bool          // doc is what replicas have agreed on
	foreign bool          // they try something else under that name: theirs is another config
	ahead   bool          // doc was changed here, and the store does not know yet: it is in owes
	adopt   bool          // the config is to be told of in the document
	outOf   time.Time     // the config, until adopt is done with; zero for an experiment that never was

	stats            *stats.Experiment
	past             past
	run              int            // that stats is of
	told             int            // weights of the run that stats knows
	resumed          bool           // what is stored under the slot was taken up
	voice            string         // behind the experiment's name in its document
	unheard          map[int]string // slots whose observations cannot be counted, and why
	recorded, stored uint64         // what stats took in here, and how much of it the store has
	speakAt          time.Time      // not stored before
	fresh            bool           // something was recorded since it was last judged
	judged           stats.Verdict
	late             int64 // requests of an earlier run, or of shares that nobody else had, which are not counted
	apartFrom        int   // epoch from which on requests that were accepted before apartUntil are late; see rejoin
	apartUntil       time.Time
	failed           string
	warned           bool // that dollars are not known
	deaf             bool // statistics cannot tell the shares in force from others: nothing is recorded
}

// removed is an experiment that is out of the config for now.
type removed struct {
	*trial // nil once it would be another one when it comes back
	at     time.Time
}

// Kinds of documents; those of observations are statsKind.
const (
	kindDocs    = "experiment"
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
	m := &Manager{opt: o, began: time.Now(), wake: make(chan struct{}, 1), slot: slot{number: -1}, left: map[string]removed{}, unheld: map[string]time.Time{}, owes: map[string]owed{}}
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
	now := m.now()
	for _, c := range trials {
		t := &trial{Trial: c}
		if was, ok := m.left[c.Spec.Name]; ok {
			if was.trial != nil && was.Spec.Digest() == c.Spec.Digest() { // with all that it has seen; how it stands now is asked first
				t = was.trial
				t.known = t.ahead
			}
			if now.Sub(was.at) >= mishap {
				t.outOf = was.at
			}
			delete(m.left, c.Spec.Name)
			t.Trial = c
			m.regard(t)
		}
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
	for _, t := range m.trials { // none before all are there: what is published is all that requests see
		m.recollect(t)
	}
	for _, t := range old {
		if !slices.ContainsFunc(m.trials, func(n *trial) bool { return n.Spec.Name == t.Spec.Name }) {
			m.left[t.Spec.Name] = removed{t, now}
		}
	}
	m.publish()
	m.soon()
}

// mishap is how long an experiment may be out of the config and still be the same one when it comes back: a config that was rolled out by
// mistake and taken back changes nothing.
const mishap = 10 * time.Minute

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
		a := experiment.NewAssigner(t.Spec, run, shares, recorded)
		if a.Lot = experiment.LotOf(run, 0); recorded && t.stats != nil && t.run == run {
			a.Lot = experiment.LotOf(run, t.stats.Epoch())
		}
		as = append(as, a)
	}
	m.table.Store(experiment.NewTable(as))
}

// Load asks the store how experiments stand, and takes a place among the replicas. It is to be called before the first request, and
// returns when it knows or ctx is done; what is not known by then is the control's until the store answers.
func (m *Manager) Load(ctx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remind()
	m.setClock(ctx)
	m.sync(ctx)
	m.claim(ctx)
	m.hear(ctx)
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
	if len(m.trials) == 0 && len(m.owes) == 0 {
		return
	}
	c, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	if stale || m.behind {
		m.behind = false
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
