package vast

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// identity is all that may not change without asking again who answers. Which port is asked first is no part of it.
func (h *host) identity() string {
	if !h.says.candidate {
		return "out"
	}
	var places []string
	for _, a := range h.addrs {
		places = append(places, a.key().String())
	}
	slices.Sort(places)
	return fmt.Sprint(places, h.row.Start.v, h.rivals) // keys are tried anew at each check
}

// check asks an instance who it is.
func (f *fleet) check(ctx context.Context, h *host, now time.Time) {
	q := &question{addrs: h.addrs[:min(len(h.addrs), maxAddresses)], keys: h.keys, models: f.p.opt.Models, pin: h.pin, mustAsk: h.keyed}
	if len(h.rivals) > 0 {
		q.contested = string(endpointID(h.rivals[0]))
		q.keys = f.alone(h)
	}
	h.checking, h.lastAt = true, now
	f.checking++
	round := h.round
	f.beside(ctx, func() func() {
		found := f.p.check.check(ctx, q)
		return func() {
			f.checking--
			if f.hosts[h.id] == h && h.round == round {
				f.judge(h, found, f.p.now())
			}
		}
	})
}

// alone are the keys that no rival of h has.
func (f *fleet) alone(h *host) []bearer {
	return slices.DeleteFunc(slices.Clone(h.keys), func(b bearer) bool {
		return !b.own || slices.ContainsFunc(h.rivals, func(id int64) bool {
			rival := f.hosts[id]
			return rival != nil && slices.ContainsFunc(rival.keys, func(o bearer) bool { return o.key == b.key })
		})
	})
}

// judge takes in what a check found. One failure to answer does not take a host out that serves, since its breaker sees that as
// well and sooner; an answer that is not the instance's does.
func (f *fleet) judge(h *host, found finding, now time.Time) {
	h.checking, h.asked = false, true
	if found.ok {
		h.known, h.found, h.why, h.fails, h.backoff = true, found, "", 0, 0
		h.port, h.base, h.served, h.keyed = found.addr.inner, found.base, found.served, h.keyed || found.keyed
		h.pin = found.tls.Pin
		h.checkAt = now.Add(spread(recheck * f.p.opt.Poll))
	} else {
		h.fails++
		h.why = found.reason
		if found.certain || h.fails > 1 {
			h.known = false
		}
		h.backoff = min(max(2*h.backoff, f.quick()), f.p.opt.Poll)
		h.checkAt = now.Add(spread(h.backoff))
	}
	f.changes(h, now)
}

// spread adds up to an eighth, so that a thousand hosts are not asked at once for ever.
func spread(d time.Duration) time.Duration {
	return d + time.Duration(rand.Int64N(int64(d/8)+1)) //nolint:gosec // guards nothing
}
