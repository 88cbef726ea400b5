package gateway

import (
	"container/list"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"headrace/router"
)

// Where no host can go on with an answer that broke off, its caller is held for a while: hosts that were lost come back, and others get free, and
// one who is reading had rather have a pause than an error. Those held are woken by what is given back or comes back, and by what hosts are expected
// to bring with time; a few at once of a model, and another for each that finds a place, so that a thousand whose host was lost do not all ask
// at every token that ends.

// holders are the exchanges that are held, by model.
type holders struct {
	n atomic.Int64 // how many; written under mu

	mu      sync.Mutex // guards all below
	byModel map[string]*list.List
}

// holding is an exchange's place among them. Its goroutine owns it, but for wake.
type holding struct {
	model string
	wake  chan struct{} // of one
	at    *list.Element // guarded by holders.mu
}

const (
	wokenAtOnce = 4 // of a model, by one thing that was given back
	// heldLook is how often one looks who was not woken, where hosts do not say when there may be room.
	heldLook  = 500 * time.Millisecond
	leastHold = 10 * time.Millisecond
)

// join has a model's news wake the holding from now on.
func (hs *holders) join(model string) *holding {
	h := &holding{model: model, wake: make(chan struct{}, 1)}
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if hs.byModel == nil {
		hs.byModel = map[string]*list.List{}
	}
	l := hs.byModel[model]
	if l == nil {
		l = list.New()
		hs.byModel[model] = l
	}
	h.at = l.PushBack(h)
	hs.n.Add(1)
	return h
}

// leave takes the holding out. found says that it has found a place: there may be another one.
func (hs *holders) leave(h *holding, found bool) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	l := hs.byModel[h.model]
	l.Remove(h.at)
	if hs.n.Add(-1); l.Len() == 0 {
		delete(hs.byModel, h.model)
		return
	}
	if found {
		wakeFirst(l, 1)
	}
}

// freed wakes the first few of the models; without a name of all.
func (hs *holders) freed(models ...string) {
	if hs.n.Load() == 0 {
		return
	}
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if len(models) == 0 {
		for _, l := range hs.byModel {
			wakeFirst(l, wokenAtOnce)
		}
		return
	}
	for _, m := range models {
		if l := hs.byModel[m]; l != nil {
			wakeFirst(l, wokenAtOnce)
		}
	}
}

// wakeFirst wakes the first n of l, and puts them behind the others, whose turn it is next.
func wakeFirst(l *list.List, n int) {
	for range min(n, l.Len()) {
		e := l.Front()
		l.MoveToBack(e)
		e.Value.(*holding).nudge()
	}
}

// nudge has the holding look again. It may be called by any goroutine.
func (h *holding) nudge() {
	select {
	case h.wake <- struct{}{}:
	default: // it has yet to look
	}
}

// hold waits for a host that can go on with the answer, for which there was none as err says, until it is worth while to ask again, or the given
// time has come; false when it has waited long enough, or a host has refused and there is nobody else who could.
func (x *exchange) hold(err error, now, until time.Time) bool {
	t := x.tale
	end := earlier(t.holdBy, x.totalBy)
	ue, _ := errors.AsType[*router.UnavailableError](err)
	if x.watch.Aborted() || !now.Before(end) || t.declined && (ue == nil || ue.Others == 0) {
		x.unhold(false)
		return false
	}
	t.want.Back = true
	if t.held == nil { // once more: of what came until now nobody has told
		t.held = x.s.held.join(x.model)
		x.watch.held.Store(t.held)
		return true
	}
	look := heldLook
	if ue != nil && ue.Soon > 0 {
		look = min(max(ue.Soon, leastHold), heldLook)
	}
	timer := time.NewTimer(earlier(earlier(end, until), now.Add(look)).Sub(now))
	defer timer.Stop()
	select {
	case <-t.held.wake:
	case <-timer.C:
	}
	return true
}

// unhold ends the exchange's being held, if it was. found says that it has found a place.
func (x *exchange) unhold(found bool) {
	if t := x.tale; t != nil && t.held != nil {
		x.watch.held.Store(nil)
		x.s.held.leave(t.held, found)
		t.held = nil
	}
}
