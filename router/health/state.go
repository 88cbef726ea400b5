package health

import "time"

// State is what a breaker shows of itself.
type State uint8

// States. Two ways lead back: a test that went well, or a good answer of a request that was let in all the same.
const (
	StateClosed    State = iota // in use
	StateOpen                   // left alone
	StateProbing                // half open: a test is due or under way, which decides
	StateSuspected              // others of its failure domain went down; it is tested at once
	StatePreempted              // taken away, as its control plane says, or several of its streams breaking at once
	StateCooling                // it asked for a pause; a breaker that is open besides goes on with its own states beneath

	numOwn = StateCooling // those that a breaker goes through
)

var stateWords = [...]string{
	StateClosed: "closed", StateOpen: "open", StateProbing: "probing", StateSuspected: "suspected", StatePreempted: "preempted", StateCooling: "cooling",
}

// String returns the word used in metrics, by the admin API and in docs.
func (s State) String() string { return stateWords[s] }

// Transition is how often a breaker went from one state to another. "cooling" is none of them: a pause begins and ends without the breaker.
type Transition struct {
	From string `json:"from"`
	To   string `json:"to"`
	N    int64  `json:"count"`
}

// everyday are the transitions of hosts that fail or are taken away and come back. They are told of before they happen, so that the first shows as an
// increase.
var everyday = [numOwn][numOwn]bool{
	StateClosed:    {StateOpen: true, StatePreempted: true},
	StateOpen:      {StateProbing: true},
	StateProbing:   {StateOpen: true, StateClosed: true},
	StatePreempted: {StateProbing: true},
}

// State is what the breaker shows at a time. It takes no lock.
func (b *Breaker) State(now time.Time) State {
	s := b.status.Load()
	if s != taken && b.cool.Load() > now.UnixNano() {
		return StateCooling
	}
	return b.own(s, now)
}

// own is what the status s stands for.
func (b *Breaker) own(s status, now time.Time) State {
	switch {
	case s == closed:
		return StateClosed
	case s == taken:
		return StatePreempted
	case s == suspected:
		return StateSuspected
	case now.UnixNano() >= b.until.Load():
		return StateProbing
	case s == preempted:
		return StatePreempted
	}
	return StateOpen
}

// lock takes mu, and counts what time alone has done to the state: that a test is due.
func (b *Breaker) lock() {
	b.mu.Lock()
	b.note()
}

// unlock counts what was done to the state since, and gives mu back.
func (b *Breaker) unlock() {
	b.note()
	b.mu.Unlock()
}

// note counts that the state is another than it was. The caller holds mu.
func (b *Breaker) note() {
	if s := b.own(b.status.Load(), b.now()); s != b.was {
		b.moves[b.was][s]++
		b.was = s
	}
}

// Transitions adds to dst how often it went from each state to each other one, and returns it: those of every day, and others once they have
// happened. They lead from StateClosed to the state that it is in.
func (b *Breaker) Transitions(dst []Transition) []Transition {
	b.lock()
	defer b.unlock()
	for from := range numOwn {
		for to := range numOwn {
			if n := b.moves[from][to]; n > 0 || everyday[from][to] {
				dst = append(dst, Transition{from.String(), to.String(), n})
			}
		}
	}
	return dst
}
