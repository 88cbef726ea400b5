package health

import (
	"math"
	"time"
)

// Preempt tells that the control plane says it was taken away: until Returned nothing is sent there.
func (b *Breaker) Preempt() Change {
	b.lock()
	defer b.unlock()
	s := b.status.Load()
	if s == taken {
		return Unchanged
	}
	if s < gone {
		b.opens.Add(1)
	}
	if b.downAt.IsZero() {
		b.downAt = b.now()
	}
	b.shut(taken, time.Unix(0, math.MaxInt64))
	if s == preempted {
		return Unchanged // known before it was told
	}
	return Preempted
}

// Returned tells that the control plane has it running again: it may be tested at once, if it was open, and what was sent to it
// before says nothing of it as it is now.
func (b *Breaker) Returned() {
	b.lock()
	defer b.unlock()
	b.again.Store(0)
	b.late, b.lateAt = 0, time.Time{}
	b.testFrom = time.Time{}
	b.backAt = b.now()
	b.cool.Store(0)
	b.epoch.Add(1) // what it was sent before was sent to another engine
	if b.status.Load() != closed {
		b.pause = 0
		b.shut(gone, b.now())
	}
}

// Suspect opens a closed one because others of its failure domain are down: it may be tested at once, and nothing is held
// against it.
func (b *Breaker) Suspect() bool {
	b.lock()
	defer b.unlock()
	if b.status.Load() != closed {
		return false
	}
	b.pause = 0
	b.shut(suspected, b.now())
	return true
}

// Heard takes in what another replica has found. What a control plane told that one holds here as well, for as long as this one's may
// take to say so. What its own attempts showed may be a fault of its own, or of its network: a closed breaker opens as a suspected one, which is tested
// at once, and which an answer that comes here closes. Word that the host is well
// has one that is open tested at once. at is when the other has found it, the zero time for now: what is older than what was found here
// says nothing. changed is false when that is nothing new.
func (b *Breaker) Heard(what Change, told bool, at time.Time) (changed bool) {
	b.lock()
	defer b.unlock()
	now, s := b.now(), b.status.Load()
	if at.IsZero() || at.After(now) {
		at = now
	}
	down := what == Opened || what == Lost || what == Preempted
	if told && now.Sub(at) >= takenWord { // its own control plane has had the time to say so
		told = false
	}
	switch {
	case down && at.Before(b.backAt):
		return false
	case what == Preempted && told && b.kind.Told:
		if s >= preempted {
			return false
		}
		if s < gone {
			b.opens.Add(1)
		}
		if b.downAt.IsZero() {
			b.downAt = now
		}
		b.shut(preempted, at.Add(takenWord))
		return true
	case down:
		if s != closed {
			return false
		}
		b.pause = 0
		b.shut(suspected, now)
		return true
	case what == Recovered || what == Revived || what == Cleared:
		if s == closed || s == taken || b.until.Load() <= now.UnixNano() {
			return false
		}
		b.until.Store(now.UnixNano())
		return true
	}
	return false
}

// Down tells whether it went down since a time and has not come back.
func (b *Breaker) Down(since time.Time) bool {
	if b.status.Load() < gone {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.downAt.IsZero() && !b.downAt.Before(since)
}

// ShutAt is when it was last found that it is not to be used. The control plane's word counts from when it came first.
func (b *Breaker) ShutAt() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.shutAt
}

// Missing tells whether nobody is thought to be there, and whether the control plane says so.
func (b *Breaker) Missing() (missing, told bool) {
	s := b.status.Load()
	return s >= gone, s == taken
}
