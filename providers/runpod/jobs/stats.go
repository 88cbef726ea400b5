package jobs

import "sync/atomic"

// Stats counts what a Translator has met since it was made.
type Stats struct {
	Jobs      int64 `json:"jobs"`      // that RunPod took
	Completed int64 `json:"completed"` // of them, with a whole answer
	Failed    int64 `json:"failed"`    // of them, with an error or without an answer; the caller got a status
	Truncated int64 `json:"truncated"` // of them, broken off after the first event

	CancelsSent    int64 `json:"cancels_sent"`    // jobs that RunPod confirmed to have cancelled
	CancelsFailed  int64 `json:"cancels_failed"`  // jobs that may run on until their TTL
	CancelsWaiting int64 `json:"cancels_waiting"` // now, for RunPod's rate limit or its answer
	RunsLost       int64 `json:"runs_lost"`       // calls of /run without an answer: a job may run whose id nobody knows

	Redispatched   int64 `json:"redispatched"`  // times that RunPod gave a job to another worker
	Destroyed      int64 `json:"destroyed"`     // characters that workers had replaced by U+FFFD
	PythonErrors   int64 `json:"python_errors"` // errors that were text of Python objects
	PollsLost      int64 `json:"polls_lost"`    // polls that failed after they were sent
	PollsThrottled int64 `json:"polls_throttled"`
	EarlyNotFound  int64 `json:"early_not_found"` // polls of a job that RunPod did not know yet
	UnknownStatus  int64 `json:"unknown_status"`  // answers with a status that is in no list

	// Yields counts what workers yield, by kind: text, chunk, answer, tokens, event, error, other.
	Yields map[string]int64 `json:"yields"`
}

// kind is what one yield, or one member of a list that was yielded, is.
type kind uint8

const (
	kindText   kind = iota // text of an event stream, or of a JSON answer
	kindChunk              // an object of a stream
	kindAnswer             // an object with the whole answer
	kindTokens             // worker-vllm's own form, up to 2.23
	kindEvent              // a typed object, as in streams of Responses and Messages
	kindError
	kindOther
	numKinds
)

var kindNames = [numKinds]string{"text", "chunk", "answer", "tokens", "event", "error", "other"}

type counters struct {
	jobs, completed, failed, truncated, cancelsSent, cancelsFailed, cancelsWaiting, runsLost, redispatched, destroyed, pythonErrors, pollsLost,
	pollsThrottled, earlyNotFound, unknownStatus atomic.Int64
	yields [numKinds]atomic.Int64
}

// Stats returns the counts.
func (t *Translator) Stats() Stats {
	c := &t.count
	s := Stats{
		Jobs: c.jobs.Load(), Completed: c.completed.Load(), Failed: c.failed.Load(), Truncated: c.truncated.Load(),
		CancelsSent: c.cancelsSent.Load(), CancelsFailed: c.cancelsFailed.Load(), CancelsWaiting: c.cancelsWaiting.Load(), RunsLost: c.runsLost.Load(),
		Redispatched: c.redispatched.Load(), Destroyed: c.destroyed.Load(), PythonErrors: c.pythonErrors.Load(), PollsLost: c.pollsLost.Load(),
		PollsThrottled: c.pollsThrottled.Load(), EarlyNotFound: c.earlyNotFound.Load(), UnknownStatus: c.unknownStatus.Load(),
		Yields: map[string]int64{},
	}
	for k, name := range kindNames {
		if n := c.yields[k].Load(); n > 0 {
			s.Yields[name] = n
		}
	}
	return s
}
