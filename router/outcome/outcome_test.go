package outcome_test

import (
	"errors"
	"io"
	"testing"

	"headrace/router/outcome"
)

func TestOfStatus(t *testing.T) {
	for status, want := range map[int]outcome.Class{
		200: outcome.Success, 204: outcome.Success, 301: outcome.UpstreamFault, 400: outcome.CallerFault, 401: outcome.UpstreamDenied,
		403: outcome.UpstreamDenied, 404: outcome.CallerFault, 408: outcome.UpstreamFault, 413: outcome.CallerFault, 422: outcome.CallerFault,
		425: outcome.UpstreamFault, 429: outcome.Throttled, 500: outcome.UpstreamFault, 503: outcome.UpstreamFault, 0: outcome.UpstreamFault,
	} {
		if got := outcome.OfStatus(status); got != want {
			t.Errorf("status %d: %s, want %s", status, got, want)
		}
	}
}

// TestPolicies holds what must never change by accident: who pays for a retry, and who is blamed.
func TestPolicies(t *testing.T) {
	for c := outcome.Success; c <= outcome.Outrun; c++ {
		p := c.Policy()
		if c == outcome.CallerFault || c == outcome.ClientGone {
			if p.Elsewhere || p.Verdict == outcome.Faulty {
				t.Errorf("%s: %+v: a caller's doing is neither tried elsewhere nor held against the host", c, p)
			}
		}
		if c == outcome.Throttled && p.Verdict != outcome.Unrelated {
			t.Errorf("%s counts as %v: load is no sickness", c, p.Verdict)
		}
		if (c == outcome.Truncated || c == outcome.Stalled) && p.Elsewhere {
			t.Errorf("%s may be tried elsewhere: content has been delivered", c)
		}
		if c == outcome.Moved && p.Verdict != outcome.Unrelated {
			t.Errorf("%s counts as %v: the host did nothing wrong", c, p.Verdict)
		}
		if c == outcome.Outrun && (p.Verdict != outcome.Unrelated || p.Elsewhere) {
			t.Errorf("%s: %+v: to be slower is no failure, and its request is answered", c, p)
		}
		if c.String() == "" {
			t.Errorf("class %d has no name", c)
		}
	}
}

func TestErrorUnwraps(t *testing.T) {
	err := error(&outcome.Error{Class: outcome.UpstreamFault, Endpoint: "static:a", Status: 502, Err: io.ErrUnexpectedEOF})
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error("errors.Is does not reach the cause")
	}
}
