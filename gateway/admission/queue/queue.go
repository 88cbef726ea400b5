// Package queue is the gateway's waiting room: a request for which no host has room, or the gateway itself has none, stands here
// for a while, in an order that is fair between keys.
//
// Requests wait in pools: one for each model, and one for the door. Whoever gives something back stirs the pools that may use it.
// Then one of those who wait is called, tries, and says how it went, before another one is called: one is woken for a slot, never
// all of them. A pool's order is weighted fair queueing between keys, and between what is waited for by people and by machines:
// each key gets the share of its weight of the tokens that are served, whoever sends more requests. See order.go.
//
// Who cannot be served in time is told so when he comes, with the time after which he could be: both follow from how fast the
// pool was seen to empty. See drain.go.
package queue

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Priority is whose work waits. The higher number waits longer.
type Priority uint8

// Priorities.
const (
	Interactive   Priority = iota // somebody watches
	Batch                         // nobody does
	NumPriorities                 // how many there are
)

var priorityWords = [NumPriorities]string{"interactive", "batch"}

// String returns the word used in config, headers and metrics.
func (p Priority) String() string {
	if p < NumPriorities {
		return priorityWords[p]
	}
	return fmt.Sprintf("invalid(%d)", uint8(p))
}

// ParsePriority reads a priority's word, whatever its case.
func ParsePriority(word string) (p Priority, ok bool) {
	for p = range NumPriorities {
		if strings.EqualFold(word, priorityWords[p]) {
			return p, true
		}
	}
	return Interactive, false
}

// Lines is how many kinds of request that wait in a pool are told apart, as long as they do; those above share the last line.
const Lines = 32

// Door is the pool of those who wait to be let into the gateway at all.
const Door = ""

// Ask is what a request says of itself.
type Ask struct {
	Pool     string // what it waits for: a model's name, or Door
	Kind     uint64 // requests of one kind can be served by the same hosts, as far as can be told; any number
	Priority Priority
	Key      string     // whose request it is, "" where callers have none
	From     netip.Addr // or net whose it is then: it tells apart only who is told when to come again
	Weight   float64    // of the key; 0 is 1
	Tokens   float64    // that it takes, about, prompt and answer together; 0 is 1
	Bytes    int64      // of memory that it holds meanwhile
	By       time.Time  // it leaves then
	// Soon is when room is expected for one that stands first, as far as hosts tell; 0 where nobody knows.
	Soon time.Duration
}

// Why says why a request does not wait, or does not any more.
type Why uint8

// Reasons.
const (
	Waits   Why = iota // it does
	Off                // nobody waits: the room's size is 0
	Full               // the room is, by number or by bytes, and it is not this request's turn to take another's place
	Late               // it could not be served in time
	Expired            // it was not served in time
	Gone               // its caller has left
	Drained            // the gateway shuts down
	numWhys
)

var whyWords = [numWhys]string{"waits", "off", "full", "late", "expired", "gone", "draining"}

// String returns the word used in metrics and logs.
func (w Why) String() string { return whyWords[w] }

// Call is what Room.Wait comes back with.
type Call uint8

// Calls.
const (
	Turn    Call = iota // try now, and say Served, Stay or Leave
	Pause               // the time that was given to Wait has come: call it again
	Refused             // it waits no more: see Waiter.Refusal
)

// Options set up a Room.
type Options struct {
	Now func() time.Time // the clock; required, of time.Now's kind: timers run by it
	// Look is how often the first of a pool is called though nothing is known to have changed: what is expected of hosts changes
	// with time alone. 0 is never.
	Look time.Duration
}

// Limits may change while requests wait.
type Limits struct {
	Size       int     // that wait at once, in all pools; 0 lets nobody wait
	Bytes      int64   // that those who wait hold; 0 is no such limit
	BatchShare float64 // of the tokens that are served while both wait, for Batch; in (0,1)
}

// Length is how many wait in a pool with a priority.
type Length struct {
	Pool     string
	Priority Priority
	Waiting  int
	Oldest   time.Duration // that the first of them has waited
}
