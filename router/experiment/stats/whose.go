package stats

// ArmsOf tells in which arms something was recorded of a sticky unit, here or at a replica that was merged: bit k is that of arm k. sampled is
// false of a unit that is among those that were left out to have room for the others, of which nothing is known.
func (e *Experiment) ArmsOf(unit uint64) (arms uint32, sampled bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.own.units.sampled(unit) {
		return 0, false
	}
	for k := range e.own.arms {
		if e.own.units.find(unit, k) != nil {
			arms |= 1 << k
		}
		for _, p := range e.peers {
			if p.units.find(unit, k) != nil {
				arms |= 1 << k
			}
		}
	}
	return arms, true
}
