package api

import "time"

// Status is how an adapter fares, for operators. It holds no secret.
type Status struct {
	Provider string `json:"provider"`
	// LastGood is when the fleet was last read whole: its age is how old the fleet in use may be.
	LastGood time.Time `json:"last_good"`
	// LastError is why the last poll failed, "" when it did not, and Failing how many in a row have.
	LastError string `json:"last_error,omitempty"`
	Failing   int    `json:"failing_polls"`
	Polls     int64  `json:"polls"`
	Endpoints int    `json:"endpoints"`
	// Skipped are things of the account that are no endpoints, each with the reason.
	Skipped []Skipped `json:"skipped,omitempty"`
	// Oddities count what was met and not understood, by a word each: unknown states, changed shapes.
	Oddities  map[string]int64 `json:"oddities,omitempty"`
	ClockSkew time.Duration    `json:"clock_skew_ns"` // the provider's clock less ours, as far as its Date header tells
	Calls     []CallStats      `json:"calls"`
	// Bill compares what was billed with what the prices come to; nil until the first bill was read.
	Bill *Bill `json:"bill,omitempty"`
}

// Skipped is one thing that is no endpoint.
type Skipped struct {
	ID   string `json:"id"`
	Name string `json:"name,omitempty"`
	Why  string `json:"why"`
}
