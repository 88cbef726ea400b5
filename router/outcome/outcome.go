// Package outcome names how an attempt at an endpoint can end and what follows from it. Retry,
// breaker and the answer to the caller read the class and never the text. It is a leaf.
package outcome

import (
	"fmt"
	"time"

	"headrace/router/endpoint"
)

// Class is how an attempt ended.
type Class uint8

// Classes. A new one fails to compile policies until Of knows it.
const (
	Success          Class = iota
	DialFailed             // no request byte left us: refused, unreachable, connect timeout, TLS handshake failed
	Throttled              // 429 or a full provider queue
	UpstreamFault          // 5xx, an answer that is not what was asked for
	FirstByteTimeout       // no first event within its deadline
	UpstreamDenied         // it refused our credentials: 401, 403
	CallerFault            // 4xx about the request itself
	Truncated              // broke off after the first content byte: reset, or ended without its end
	ClientGone             // the caller left
	Unserved               // no attempt was made: no host to send to, or the gateway takes no more
	NotReady               // it said that nobody is up to do the work yet: no worker, a model still loading
	Opaque                 // a bare failure that the request may have caused as well as the host: RunPod's 500 hides vLLM's 400
	Stalled                // fell silent after the first content byte, for longer than its host's own gaps allow
	Severed                // the connection broke before the first content byte, and a fresh one at that: nobody is there any more
	Moved                  // taken away by us after its first content byte, because its host leaves or was preempted
	Outrun                 // cut by us: another host that was asked beside it began its answer sooner
	numClasses
)

var names = [numClasses]string{
	"success", "dial_failed", "throttled", "upstream_fault", "first_byte_timeout",
	"upstream_denied", "caller_fault", "truncated", "client_gone", "unserved", "not_ready", "opaque",
	"stalled", "severed", "moved", "outrun",
}

// String returns the word used in logs, headers and metrics.
func (c Class) String() string {
	if c < numClasses {
		return names[c]
	}
	return fmt.Sprintf("invalid(%d)", uint8(c))
}

// Named returns the class of that word; ok is false for any other word.
func Named(word string) (c Class, ok bool) {
	for c := range numClasses {
		if names[c] == word {
			return c, true
		}
	}
	return Unserved, false
}

// MarshalText lets JSON show the word.
func (c Class) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Verdict is what an outcome says of the endpoint's health.
type Verdict uint8

// Verdicts.
const (
	Healthy   Verdict = iota // counts as a success
	Faulty                   // counts against the endpoint
	Unrelated                // says nothing of it
	Doubtful                 // counts against it only when many different requests in a row end so
)

// Policy is what follows from a class.
type Policy struct {
	// Elsewhere says that another endpoint may do better, while no content byte has reached the caller.
	Elsewhere bool
	Verdict   Verdict
	// Status is what the caller gets when this was the last attempt; 0 hands the upstream's own answer on.
	Status int
}

var policies = [numClasses]Policy{
	Success:          {false, Healthy, 0},
	DialFailed:       {true, Faulty, 503},
	Throttled:        {true, Unrelated, 429},
	UpstreamFault:    {true, Faulty, 502},
	FirstByteTimeout: {true, Faulty, 504},
	UpstreamDenied:   {true, Faulty, 502},
	CallerFault:      {false, Healthy, 0},
	Truncated:        {false, Faulty, 502},
	ClientGone:       {false, Unrelated, 499},
	Unserved:         {false, Unrelated, 503},
	NotReady:         {true, Unrelated, 503},
	Opaque:           {true, Doubtful, 502},
	Stalled:          {false, Faulty, 502},
	Severed:          {true, Faulty, 502},
	Moved:            {true, Unrelated, 503}, // by continuation, as Truncated: see gateway/resume
	Outrun:           {false, Unrelated, 503},
}

// Policy returns what follows from c.
func (c Class) Policy() Policy {
	if c >= numClasses {
		panic(fmt.Sprintf("BUG: outcome class %d has no policy", c))
	}
	return policies[c]
}

// OfStatus is the class of a plain HTTP answer by its status alone; providers refine it by the body.
func OfStatus(status int) Class {
	switch {
	case status >= 200 && status < 300:
		return Success
	case status == 401 || status == 403:
		return UpstreamDenied
	case status == 408, status == 425:
		return UpstreamFault // the upstream's own impatience, not the caller's doing
	case status == 429:
		return Throttled
	case status >= 400 && status < 500:
		return CallerFault
	default:
		return UpstreamFault
	}
}

// Refusal is what an engine said against the request itself, freed of what its provider wrapped around it. It is for the caller.
type Refusal struct {
	Status  int // of class CallerFault: 400, 413, 422 and the like
	Message string
	Param   string // the request's member at fault, "" for none
	Code    string // "" for none
}

// Error is a failed attempt. Its message may hold upstream text: log it, never send it to a caller.
type Error struct {
	Class      Class
	Endpoint   endpoint.ID
	Status     int           // upstream HTTP status, 0 when no status line arrived
	RetryAfter time.Duration // 0 when the upstream named none
	Err        error
}

// Error says which endpoint failed how.
func (e *Error) Error() string {
	if e.Status != 0 {
		return fmt.Sprintf("endpoint %s: %s (status %d): %v", e.Endpoint, e.Class, e.Status, e.Err)
	}
	return fmt.Sprintf("endpoint %s: %s: %v", e.Endpoint, e.Class, e.Err)
}

// Unwrap lets errors.Is reach context.Canceled and io.ErrUnexpectedEOF.
func (e *Error) Unwrap() error { return e.Err }
