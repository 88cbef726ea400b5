package fleet

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"time"

	"headrace/gateway/state"
	"headrace/router"
	"headrace/router/capacity"
	"headrace/router/endpoint"
)

// LearnedKind is the kind of the documents that hold what replicas have learned, one each.
const LearnedKind = "learned"

const (
	keepEvery = 30 * time.Second
	keepEnd   = time.Second    // for the last writing
	keepOld   = 24 * time.Hour // what is older says nothing
	keepMost  = 16             // documents; the oldest go
	// together is within which what several replicas wrote last is of the same time, and none of it is of another's making.
	together = 2 * time.Minute
)

// KeeperOptions set up a Keeper.
type KeeperOptions struct {
	Router *router.Router
	Store  state.Store
	ID     string // of this replica
	Log    *slog.Logger
	Now    func() time.Time // default time.Now
	Every  time.Duration    // default 30 s
}

// Keeper keeps what the router has learned, for the next start and for replicas that come.
type Keeper struct {
	opt     KeeperOptions
	written int           // observations when it was written last
	version state.Version // of this replica's document
}

// learned is such a document.
type learned struct {
	At     time.Time     `json:"at"`
	Memory router.Memory `json:"memory"`
}

// NewKeeper returns a Keeper.
func NewKeeper(o KeeperOptions) *Keeper {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Every <= 0 {
		o.Every = keepEvery
	}
	return &Keeper{opt: o}
}

// Run has the router begin with what was kept, and keeps what it learns, until ctx is done and once more then.
func (k *Keeper) Run(ctx context.Context) error {
	k.load(ctx)
	t := time.NewTicker(k.opt.Every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			c, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepEnd)
			defer cancel()
			k.save(c)
			k.tidy(c)
			return ctx.Err()
		case <-t.C:
			k.save(ctx)
			k.tidy(ctx)
		}
	}
}

func (k *Keeper) load(ctx context.Context) {
	docs, err := k.opt.Store.Load(ctx, LearnedKind)
	if err != nil {
		k.opt.Log.Warn("what was learned before is not known", "error", err)
		return
	}
	m := merge(k.decode(docs))
	if len(m.Hosts) == 0 && len(m.Models) == 0 {
		return
	}
	k.opt.Router.Remember(m)
	k.opt.Log.Info("what was learned before is taken up", "hosts", len(m.Hosts), "models", len(m.Models), "documents", len(docs))
}

// current tells whether what was written then may still be so. Clocks differ by minutes: what says that it comes later is wrong altogether, and
// would be the newest until then.
func (k *Keeper) current(at time.Time) bool {
	return k.opt.Now().Sub(at).Abs() < keepOld
}

// decode reads the documents that are not too old, the newest first.
func (k *Keeper) decode(docs map[string]state.Doc) []learned {
	var all []learned
	for _, d := range docs {
		var l learned
		if json.Unmarshal(d.Body, &l) == nil && k.current(l.At) {
			all = append(all, l)
		}
	}
	slices.SortFunc(all, func(a, b learned) int { return b.At.Compare(a.At) })
	return all
}

// merge is what all of them have learned; they are sorted from the newest. Of a host those that wrote at about the time of the newest
// count: what is older was learned by one who is gone, and whose heir that one may be.
func merge(all []learned) (m router.Memory) {
	type found struct {
		host   router.HostMemory
		at     time.Time // of its document
		speeds []capacity.Learned
	}
	hosts := map[endpoint.ID]*found{}
	models := map[string]bool{}
	for _, l := range all {
		for _, h := range l.Memory.Hosts {
			f := hosts[h.Endpoint]
			switch {
			case f == nil:
				hosts[h.Endpoint] = &found{h, l.At, []capacity.Learned{h.Speed}}
			case f.at.Sub(l.At) <= together && h.Machine == f.host.Machine && slices.Equal(h.Served, f.host.Served):
				f.speeds = append(f.speeds, h.Speed)
				if h.At.After(f.host.At) {
					f.host.At = h.At
				}
			}
		}
		for _, x := range l.Memory.Models {
			if !models[x.Name] {
				models[x.Name] = true
				m.Models = append(m.Models, x)
			}
		}
	}
	for _, f := range hosts {
		speed, ok := capacity.Merge(f.speeds)
		if !ok {
			continue
		}
		f.host.Speed = speed
		m.Hosts = append(m.Hosts, f.host)
	}
	slices.SortFunc(m.Hosts, func(a, b router.HostMemory) int { return cmp.Compare(a.Endpoint, b.Endpoint) })
	return m
}

// save writes what was learned, if that is more than was written last.
func (k *Keeper) save(ctx context.Context) {
	m := k.opt.Router.Learned()
	n := 0
	for i := range m.Hosts {
		n += m.Hosts[i].Speed.Count + m.Hosts[i].Speed.TTFTCount
	}
	if n == k.written || n == 0 {
		return
	}
	b, err := json.Marshal(learned{k.opt.Now(), m})
	if err != nil {
		k.opt.Log.Error("what was learned is not kept", "error", err)
		return
	}
	v, err := k.opt.Store.Put(ctx, LearnedKind, k.opt.ID, k.version, b)
	if err != nil {
		if errors.Is(err, state.ErrConflict) { // of a Redis that lost its data, say, or whose answer was lost
			docs, _ := k.opt.Store.Load(ctx, LearnedKind)
			k.version = docs[k.opt.ID].Version
		}
		k.opt.Log.Debug("what was learned is not kept this time", "error", err)
		return
	}
	k.version, k.written = v, n
}

// tidy has hosts that this replica hardly knows be as the others know them, and deletes documents of replicas that are long gone.
func (k *Keeper) tidy(ctx context.Context) {
	docs, err := k.opt.Store.Load(ctx, LearnedKind)
	if err != nil {
		return
	}
	k.opt.Router.Remember(merge(k.decode(docs)))
	type aged struct {
		name string
		at   time.Time
	}
	var all []aged
	for name, d := range docs {
		var l learned
		if json.Unmarshal(d.Body, &struct {
			At *time.Time `json:"at"`
		}{&l.At}) != nil {
			l.At = time.Time{}
		}
		all = append(all, aged{name, l.At})
	}
	slices.SortFunc(all, func(a, b aged) int { return b.at.Compare(a.at) })
	for i, a := range all {
		if a.name != k.opt.ID && (i >= keepMost || !k.current(a.at)) {
			_ = k.opt.Store.Delete(ctx, LearnedKind, a.name, docs[a.name].Version) // else another time
		}
	}
}
