package health

import "headrace/router/outcome"

// Evidence is what the end of an attempt says of its host's health. Load is none: a 429, a full queue, a slow answer.
type Evidence uint8

// Evidence, from what says nothing to what says most.
const (
	Neutral Evidence = iota
	Well             // it answered
	Buggy            // it answers with errors or nonsense
	Stuck            // it does not begin its answers, though no worker had to start for them
	Gone             // nobody is there: refused, or reset before any byte of an answer
	Cut              // nobody is there any more: a stream broke off or fell silent
)

// Of reads an outcome; cold says that the attempt had to wait for a worker to start.
func Of(c outcome.Class, cold bool) Evidence {
	switch c {
	case outcome.Success:
		return Well
	case outcome.DialFailed, outcome.Severed:
		return Gone
	case outcome.Truncated, outcome.Stalled:
		return Cut
	case outcome.UpstreamFault, outcome.UpstreamDenied:
		return Buggy
	case outcome.FirstByteTimeout:
		if cold {
			return Neutral
		}
		return Stuck
	case outcome.Throttled, outcome.NotReady, outcome.Opaque, outcome.CallerFault, outcome.ClientGone, outcome.Unserved, outcome.Moved, outcome.Outrun:
	}
	return Neutral
}

// Change is what a piece of evidence, or word from a control plane, has made of a breaker.
type Change uint8

// Changes.
const (
	Unchanged Change = iota
	Opened           // for faults: it answers, but badly
	Lost             // nobody is there
	Preempted        // taken away, as its control plane says, or several of its streams breaking at once
	Recovered        // closed after it had been open
	Revived          // likewise, and nobody had been there: who answers now may be another engine
	Cleared          // closed after it had only been suspected
)

// finding is what the answer to a synthetic request says.
type finding uint8

const (
	failing finding = iota
	fine
	unsaid // nothing: ask again soon
)

func find(c outcome.Class) finding {
	switch c {
	case outcome.Success, outcome.Throttled, outcome.CallerFault: // it is there and reads what it is sent
		return fine
	case outcome.NotReady, outcome.ClientGone, outcome.Unserved, outcome.Moved, outcome.Outrun:
		return unsaid
	case outcome.DialFailed, outcome.UpstreamFault, outcome.FirstByteTimeout, outcome.UpstreamDenied, outcome.Truncated,
		outcome.Opaque, outcome.Stalled, outcome.Severed:
	}
	return failing
}
