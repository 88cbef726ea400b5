package health

import (
	"time"

	"headrace/router/outcome"
)

// Probe takes the right to send the endpoint one synthetic request, when one is due: it is open and its time has come, and
// nobody else's is under way. Report by Probed.
func (b *Breaker) Probe(now time.Time) bool {
	if b.status.Load() == closed || now.UnixNano() < b.until.Load() || b.cool.Load() > now.UnixNano() {
		return false
	}
	b.lock()
	defer b.unlock()
	if s := b.status.Load(); s == closed || s == taken || now.UnixNano() < b.until.Load() || b.asked(now) || b.trial.Load() != 0 {
		return false
	}
	b.probeAt, b.probedIn, b.testing, b.voided = now, b.epoch.Load(), false, false
	return true
}

// Test takes the right to a self-test of a closed one likewise.
func (b *Breaker) Test(now time.Time) bool {
	b.lock()
	defer b.unlock()
	if b.status.Load() != closed || b.cool.Load() > now.UnixNano() || now.Before(b.testFrom) || b.asked(now) {
		return false
	}
	b.probeAt, b.probedIn, b.testing, b.voided = now, b.epoch.Load(), true, false
	return true
}

// void keeps the synthetic request that is under way from closing it: what it was to decide has been decided. Until it is reported
// of, or lapses, there is no other. The caller holds mu.
func (b *Breaker) void() { b.voided = true }

// asked tells whether a synthetic request is under way. The caller holds mu.
func (b *Breaker) asked(now time.Time) bool {
	return !b.probeAt.IsZero() && now.Sub(b.probeAt) < probeLapse
}

// Probed tells how the synthetic request ended. One that nobody waits for any more changes nothing.
func (b *Breaker) Probed(c outcome.Class) Change {
	b.lock()
	defer b.unlock()
	if b.probeAt.IsZero() {
		return Unchanged
	}
	now := b.now()
	b.probeAt = time.Time{}
	if b.testing {
		b.testing = false
		switch {
		case b.probedIn != b.epoch.Load(): // of another engine than the one that is there now
		case c == outcome.Unserved: // it was not made: the host had no room, say
			b.testFrom = now.Add(declinedPause)
		default:
			b.testFrom = now.Add(testPause)
		}
		b.voided = true
	}
	if b.voided {
		if e := Of(c, false); (e == Gone || e == Cut) && b.probedIn == b.epoch.Load() && b.status.Load() < gone {
			return b.judge(e, false, false)
		}
		return Unchanged
	}
	switch find(c) {
	case fine:
		return b.close()
	case unsaid:
		wait := unsaidPause
		if c == outcome.NotReady {
			wait = notReadyWait
		}
		b.until.Store(now.Add(wait).UnixNano())
	case failing:
		if s := b.status.Load(); s < gone && (Of(c, false) == Gone || Of(c, false) == Cut) {
			b.status.Store(gone)
			b.downAt = now
			b.reopen(now)
			return Lost
		}
		b.reopen(now)
	}
	return Unchanged
}
