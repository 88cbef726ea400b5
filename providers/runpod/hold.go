package runpod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"headrace/providers/api"
)

// holding is an endpoint whose least number of workers was raised. It is written down before RunPod is asked, so that a run that
// does not live to put it back is followed by one that can: an endpoint that says Set, or From, is as it was left.
type holding struct {
	Name  string    `json:"name"`
	Was   int       `json:"was"`  // the operator's own
	From  int       `json:"from"` // before the last change
	Set   int       `json:"set"`  // asked for by the last change
	Since time.Time `json:"since"`
	Why   string    `json:"why"`

	unsure bool      // what it says now has to be asked
	sureAt time.Time // when it was last known
	low    time.Time // since when less is wanted, zero while it is not
}

// leaves tells whether an endpoint that has so many workers at least is as h may have left it.
func (h *holding) leaves(least int) bool { return least == h.Set || least == h.From || least == h.Was }

// memo is what is kept in Memory.
type memo struct {
	About string              `json:"about"`
	Held  map[string]*holding `json:"held"` // by RunPod's id
}

const about = "RunPod endpoints whose workers.min Headrace has raised from was to set; it puts them back by itself"

// load reads what was held before this run, once. It tells whether that is known.
func (a *Actor) load(ctx context.Context) bool {
	r := &a.run
	if r.loaded {
		return true
	}
	now := r.opt.Now()
	if now.Before(r.loadNext) {
		return false
	}
	b, err := r.opt.Memory.Load(ctx)
	var m memo
	if err == nil && b != nil {
		if err = json.Unmarshal(b, &m); err != nil {
			err = fmt.Errorf("what is remembered of held workers cannot be read: %w", err)
		}
	}
	if err != nil {
		r.loadFail++
		r.loadNext = now.Add(min(r.opt.Spacing<<min(r.loadFail-1, 6), longestPause))
		a.count(now, err)
		r.opt.Log.Error("workers are not held: it is not known what an earlier run may have left", "error", err, "again_in", r.loadNext.Sub(now))
		return false
	}
	known := r.held
	r.held = map[string]*holding{}
	for id, h := range m.Held {
		if h == nil || h.Was < 0 {
			continue
		}
		h.unsure, h.low = true, now
		r.held[id] = h
		if known[id] == nil {
			r.opt.Log.Warn("an earlier run, or another replica, has left workers held: they are let go unless they are wanted",
				"endpoint", serviceID(id), "name", h.Name, "workers_min_was", h.Was, "workers_min", h.Set, "since", h.Since, "why", h.Why)
		}
	}
	r.loaded, r.loadFail = true, 0
	return true
}

// save writes down what is held.
func (a *Actor) save(ctx context.Context) error {
	r := &a.run
	var b []byte
	if len(r.held) > 0 {
		var err error
		if b, err = json.MarshalIndent(memo{about, r.held}, "", "  "); err != nil {
			return err
		}
	}
	return r.opt.Memory.Save(ctx, b)
}

// settle brings what is held of an endpoint to what is wanted: more at once, less after a while.
func (a *Actor) settle(ctx context.Context, id string, aims map[string]aim) {
	r := &a.run
	now := r.opt.Now()
	h := r.held[id]
	t, wanted := aims[id]
	target := 0
	if wanted && t.permission == MayHold {
		target = t.hold
	}
	m := a.mark(id)
	if h != nil {
		if now.Sub(h.sureAt) >= r.opt.RecheckAfter {
			h.unsure = true
		}
		if target >= h.Set {
			h.low = time.Time{}
		} else if h.low.IsZero() {
			h.low = now
		}
	}
	switch {
	case h == nil && target == 0, now.Before(m.next):
	case h == nil || target > h.Set || target == h.Set && h.unsure:
		if !now.Before(m.look) {
			a.raise(ctx, &t, target)
		}
	case target < h.Set && (now.Sub(h.low) >= r.opt.LetGoAfter || r.opt.permission(id, h.Name) < MayHold):
		why := "they do not pay for themselves any more"
		if r.opt.permission(id, h.Name) < MayHold {
			why = "the config does not allow to hold them any more"
		}
		if err := a.lower(ctx, id, target, why); err != nil {
			a.failed(id, letGo, err)
		}
	}
}

const (
	hold  = "hold"
	letGo = "let go"
)

// raise has target workers held at t, or as many as may be.
func (a *Actor) raise(ctx context.Context, t *aim, target int) {
	r := &a.run
	h := r.held[t.id]
	e, err := a.ask(ctx, t.id)
	if err != nil {
		a.failed(t.id, hold, err)
		return
	}
	least := e.Workers.Min.count()
	if h != nil && !h.leaves(least) {
		a.disowned(ctx, t.id, h, least)
		h = nil
	}
	was := least
	if h != nil {
		was = h.Was
	}
	set := min(target, was+a.room(t.id))
	if e.Workers.Max.set {
		set = min(set, e.Workers.Max.count())
	}
	if set <= least {
		if h != nil {
			h.From, h.Set, h.unsure, h.sureAt = least, least, false, r.opt.Now()
			if least <= was { // the last change has not come about
				delete(r.held, t.id)
			}
			_ = a.save(ctx) // what is written is true as well, and wider
		}
		a.skipped(t.id, hold, held(e, target, least, was, r.opt.MaxHeld))
		return
	}
	next := &holding{Name: t.name, Was: was, From: least, Set: set, Since: r.opt.Now(), Why: t.why}
	if h != nil {
		next.Since = h.Since
	}
	r.held[t.id] = next
	if err := a.save(ctx); err != nil {
		a.restore(t.id, h)
		a.failed(t.id, hold, fmt.Errorf("not held, because it could not be remembered: %w", err))
		return
	}
	sure, err := a.set(ctx, t.id, e, set)
	next.unsure = !sure
	if err != nil {
		if sure { // it was refused
			a.restore(t.id, h)
			_ = a.save(ctx) // what is written allows for both
		}
		a.failed(t.id, hold, err)
		return
	}
	next.sureAt = r.opt.Now()
	r.opt.Log.Info("capacity action", "action", hold, "endpoint", t.ep, "name", t.name, "workers_min_was", was, "workers_min", set, "wanted", target, "why", t.why)
	note := ""
	if set < target {
		note = held(e, target, set, was, r.opt.MaxHeld)
	}
	a.did(t.id, hold, note, func(s *ActionStatus) { s.Holds++ })
}

// held says why no more are held.
func held(e *endpointJSON, target, least, was, most int) string {
	switch {
	case least >= target:
		return fmt.Sprintf("its least number of workers is %d already", least)
	case e.Workers.Max.set && least >= e.Workers.Max.count():
		return fmt.Sprintf("it may have no more than %d workers", e.Workers.Max.count())
	}
	return fmt.Sprintf("%d of %d: max_held is %d for all endpoints together, and %d are the operator's own", least, target, most, was)
}

func (a *Actor) restore(id string, h *holding) {
	if h == nil {
		delete(a.run.held, id)
		return
	}
	a.run.held[id] = h
}

// room is how many workers may be held at id.
func (a *Actor) room(id string) int {
	n := a.run.opt.MaxHeld
	for o, h := range a.run.held {
		if o != id {
			n -= h.Set - h.Was
		}
	}
	return max(0, n)
}

// lower lets go of all but target workers, and never of those that the operator has set.
func (a *Actor) lower(ctx context.Context, id string, target int, why string) error {
	r := &a.run
	h := r.held[id]
	e, err := a.ask(ctx, id)
	if ae, ok := errors.AsType[*api.Error](err); ok && ae.Status == http.StatusNotFound {
		r.opt.Log.Info("workers are held no more: the endpoint is gone", "endpoint", serviceID(id), "name", h.Name)
		delete(r.held, id)
		return a.save(ctx)
	}
	if err != nil {
		return err
	}
	least := e.Workers.Min.count()
	if !h.leaves(least) {
		a.disowned(ctx, id, h, least)
		return nil
	}
	set := max(target, h.Was)
	if least > set {
		before := *h
		h.From, h.Set, h.unsure = least, set, true
		if set > h.Was { // else what is written says enough: it is taken off when it has come about
			if err := a.save(ctx); err != nil {
				*h = before
				return err
			}
		} else {
			*h = before
		}
		if sure, err := a.set(ctx, id, e, set); err != nil {
			if sure {
				*h = before
			}
			return err
		}
		h.Set, h.unsure, h.sureAt = set, false, r.opt.Now()
		r.opt.Log.Info("capacity action", "action", letGo, "endpoint", serviceID(id), "name", h.Name, "workers_min_was", h.Was, "workers_min", set, "why", why)
		a.did(id, letGo, "", func(s *ActionStatus) { s.LetGo++ })
	}
	h.low = time.Time{}
	if set <= h.Was || least <= h.Was {
		delete(r.held, id)
	}
	return a.save(ctx)
}

// disowned forgets an endpoint that somebody else has changed meanwhile: their word stands.
func (a *Actor) disowned(ctx context.Context, id string, h *holding, least int) {
	a.run.opt.Log.Warn("workers are held no more: somebody else has changed the endpoint, which stays as it is",
		"endpoint", serviceID(id), "name", h.Name, "workers_min_was", h.Was, "workers_min_set", h.Set, "workers_min", least)
	delete(a.run.held, id)
	if err := a.save(ctx); err != nil {
		a.count(a.run.opt.Now(), err)
	}
}

// part lets go of all that is held, trying twice, and gives the turn to others.
func (a *Actor) part(ctx context.Context, why string) {
	r := &a.run
	if r.opt.Turn != nil {
		defer func() {
			if r.ours {
				r.opt.Turn.Give(ctx)
			}
		}()
	}
	for _, id := range slices.Sorted(maps.Keys(r.held)) {
		err := a.lower(ctx, id, 0, why)
		if err != nil && r.held[id] != nil {
			err = a.lower(ctx, id, 0, why)
		}
		if h := r.held[id]; err != nil && h != nil {
			a.count(r.opt.Now(), err)
			r.opt.Log.Error("workers are still held and cost money: they could not be let go, which the next run tries again",
				"endpoint", serviceID(id), "name", h.Name, "workers_min_was", h.Was, "workers_min", h.Set, "error", err)
		}
	}
	a.publish()
}

var errNoWorkers = errors.New("RunPod does not tell the endpoint's least number of workers")

// ask reads an endpoint's settings.
func (a *Actor) ask(ctx context.Context, id string) (*endpointJSON, error) {
	answer, err := a.run.client.Do(ctx, api.Call{Name: "GET /v2/serverless/{id}", URL: a.run.opt.ManagementURL + "/serverless/" + id})
	if err != nil {
		return nil, err
	}
	return workersIn(answer)
}

func workersIn(answer *api.Answer) (*endpointJSON, error) {
	var e endpointJSON
	if err := json.Unmarshal(answer.Body, &e); err != nil {
		return nil, fmt.Errorf("an endpoint's settings cannot be read: %w", err)
	}
	if !e.Workers.Min.set {
		return nil, errNoWorkers
	}
	return &e, nil
}

// set changes how many workers an endpoint has at least. The others of the workers' settings are sent as they were read: whether
// RunPod leaves alone what is left out inside of a section is not told. sure is false when it may have been done or not.
func (a *Actor) set(ctx context.Context, id string, e *endpointJSON, least int) (sure bool, err error) {
	workers := map[string]int{"min": least}
	if e.Workers.Max.set {
		workers["max"] = e.Workers.Max.count()
	}
	if e.Workers.IdleTimeout.set {
		workers["idleTimeout"] = e.Workers.IdleTimeout.count()
	}
	answer, err := a.run.client.Do(ctx, api.Call{
		Name: "PATCH /v2/serverless/{id}", Method: http.MethodPatch, URL: a.run.opt.ManagementURL + "/serverless/" + id,
		Body: map[string]any{"workers": workers},
	})
	if err != nil {
		ae, ok := errors.AsType[*api.Error](err)
		return ok && ae.Status >= 400 && ae.Status < 500 && ae.Status != http.StatusRequestTimeout, err
	}
	now, err := workersIn(answer)
	if err != nil {
		return false, err
	}
	if n := now.Workers.Min.count(); n != least {
		return false, fmt.Errorf("RunPod has taken the change of workers.min to %d and says %d", least, n)
	}
	return true, nil
}
