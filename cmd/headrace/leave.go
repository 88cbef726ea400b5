package main

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"headrace/gateway/forward"
	"headrace/router/endpoint"
)

// askAgain is when what could not go elsewhere is called again: others may have room by then.
const askAgain = 2 * time.Second

// leaver calls running requests away from hosts that are about to end, and from those that their operator wants empty. Those that
// nobody else can go on with stay: see gateway.
type leaver struct {
	interrupt func(endpoint.ID) (called int) // forward.Client's
	log       *slog.Logger
	wake      chan struct{} // of one: something has changed

	mu     sync.Mutex // guards all below
	before time.Duration
	ends   map[endpoint.ID]*leaving // by contract
	wanted map[endpoint.ID]*leaving // by their operator
}

// leaving is one host that leaves.
type leaving struct {
	until time.Time // zero when nobody says
	next  time.Time // when it is to be called then, or again
	told  bool      // that there were some
}

func newLeaver(interrupt func(endpoint.ID) int, before time.Duration, log *slog.Logger) *leaver {
	return &leaver{
		interrupt: interrupt, log: log, wake: make(chan struct{}, 1), before: before,
		ends: map[endpoint.ID]*leaving{}, wanted: map[endpoint.ID]*leaving{},
	}
}

// Configure sets how long before its end a host is left; 0 is for never.
func (l *leaver) Configure(before time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.before = before
	l.changed()
}

// Update takes in what discovery says.
func (l *leaver) Update(eps []endpoint.Endpoint) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ends, known := make(map[endpoint.ID]*leaving), make(map[endpoint.ID]bool, len(eps))
	for i := range eps {
		ep := &eps[i]
		known[ep.ID] = true
		if ep.State != endpoint.Draining || ep.Until.IsZero() {
			continue
		}
		h := l.ends[ep.ID]
		if h == nil {
			h = &leaving{}
		}
		h.until, ends[ep.ID] = ep.Until, h
	}
	l.ends = ends
	maps.DeleteFunc(l.wanted, func(id endpoint.ID, _ *leaving) bool { return !known[id] })
	l.changed()
}

// Want has the host left now; false ends that.
func (l *leaver) Want(id endpoint.ID, want bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.wanted, id)
	if want {
		l.wanted[id] = &leaving{}
	}
	l.changed()
}

// changed wakes Run. The caller holds mu.
func (l *leaver) changed() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Run calls until ctx is done.
func (l *leaver) Run(ctx context.Context) error {
	const idle = time.Hour
	t := time.NewTimer(idle)
	defer t.Stop()
	for {
		wait := idle
		if next := l.call(time.Now()); !next.IsZero() {
			wait = max(0, time.Until(next))
		}
		t.Reset(wait)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.wake:
		case <-t.C:
		}
	}
}

// call calls from whom it is time, and returns when it is time for the next; zero for never.
func (l *leaver) call(now time.Time) (next time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	sooner := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	for id, h := range l.wanted {
		sooner(l.callOne(id, h, now, "drained by its operator"))
	}
	if l.before <= 0 {
		return next
	}
	for id, h := range l.ends {
		if due := h.until.Add(-l.before); now.Before(due) {
			h.next = time.Time{} // its end was put off
			sooner(due)
			continue
		}
		sooner(l.callOne(id, h, now, "about to end"))
	}
	return next
}

// callOne calls if it is time, and returns when it will be. The caller holds mu.
func (l *leaver) callOne(id endpoint.ID, h *leaving, now time.Time, why string) time.Time {
	if now.Before(h.next) {
		return h.next
	}
	h.next = now.Add(askAgain)
	if n := l.interrupt(id); n > 0 && !h.told {
		h.told = true
		l.log.Info("host leaves: its requests go on elsewhere, where they can", "endpoint", id, "why", why, "requests", n)
	}
	return h.next
}

// lost is a host that its provider has taken away.
type lost struct {
	id    endpoint.ID
	state string
	host  *forward.Host // with what runs there
}

// takenAway finds, by the news in eps, the hosts that their provider has taken away. Those of the config that fell out of it are
// the operator's doing, and finish what they have. The caller holds mu.
func (a *app) takenAway(eps []endpoint.Endpoint) (out []lost) {
	now := make(map[endpoint.ID]endpoint.State, len(eps))
	for i := range eps {
		now[eps[i].ID] = eps[i].State
	}
	for i := range a.fleet {
		was := &a.fleet[i]
		s, listed := now[was.ID]
		l := lost{was.ID, s.String(), a.forward.Host(was.ID)}
		if !listed {
			l.state = "no longer listed"
		}
		switch {
		case l.host == nil:
		case !listed && was.Provider != "static", listed && s != was.State && (s == endpoint.Preempted || s == endpoint.Gone):
			out = append(out, l)
		}
	}
	return out
}

// callAway calls requests away from hosts that are lost: those that can go on elsewhere need not wait until their connection breaks.
func (a *app) callAway(hosts []lost) {
	for _, l := range hosts {
		if n := l.host.Interrupt(); n > 0 {
			a.log.Info("host taken away: its requests go on elsewhere, where they can", "endpoint", l.id, "state", l.state, "requests", n)
		}
	}
}

// drain keeps new requests from a host, and with move calls away those that run there; false when there is no such host.
func (a *app) drain(id endpoint.ID, move bool) bool {
	if !a.router.Drain(id, true) {
		return false
	}
	a.log.Info("host drained by its operator", "endpoint", id, "move", move)
	a.leaver.Want(id, move)
	return true
}

// undrain lets requests in again; false when there is no such host.
func (a *app) undrain(id endpoint.ID) bool {
	a.leaver.Want(id, false)
	if !a.router.Drain(id, false) {
		return false
	}
	a.log.Info("host let in again by its operator", "endpoint", id)
	return true
}
