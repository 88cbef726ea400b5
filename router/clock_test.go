package router

import (
	"testing"
	"time"
	"unsafe"

	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// setBack returns t as a wall clock that was set back by d shows it: time passes as before, which time.Now measures beside it. Nothing public
// makes such a time.
func setBack(t *testing.T, at time.Time, d time.Duration) time.Time {
	t.Helper()
	set := at
	words := (*struct{ wall, ext uint64 })(unsafe.Pointer(&set)) //nolint:gosec // time.Time: flag, 33 bits of seconds, 30 of nanoseconds
	words.wall -= uint64(d/time.Second) << 30
	if set.Sub(at) != 0 || at.Unix()-set.Unix() != int64(d/time.Second) {
		t.Fatalf("%v set back by %v is %v: time.Time is not what this test takes it for", at, d, set)
	}
	return set
}

// TestWallClockIsSet: whatever keeps a host from use for seconds does so for seconds, though the machine's clock is set back by a day meanwhile, as it is
// when a machine that started with a wrong time hears of the right one.
func TestWallClockIsSet(t *testing.T) {
	const day = 24 * time.Hour
	for name, tc := range map[string]struct {
		limits endpoint.Limits
		res    Result
		pause  time.Duration
	}{
		"an open breaker":        {res: Result{Class: outcome.DialFailed}, pause: 3 * time.Second},
		"a pause that was asked": {res: Result{Class: outcome.Throttled, RetryAfter: 5 * time.Second}, pause: 6 * time.Second},
		"a limit of requests":    {limits: endpoint.Limits{Requests: 1, Per: time.Minute}, res: Result{Class: outcome.Success}, pause: 65 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			now := start
			r := New(Options{Now: func() time.Time { return now }, Prior: tell})
			ep := hourly("a", 1, 32, "m")
			ep.Limits = tc.limits
			r.Update([]endpoint.Endpoint{ep}, nil)
			l := mustPick(t, r)
			l.Done(tc.res)
			if err := r.Pick(&Request{Model: "m"}, new(Lease)); err == nil {
				t.Fatal("it is used at once")
			}
			now = setBack(t, start.Add(tc.pause), day)
			came := start.Add(tc.pause - time.Second) // by the clock of before
			if err := r.Pick(&Request{Model: "m", Now: now, Came: came}, l); err != nil {
				t.Fatalf("%v later, the clock set back by %v: %v", tc.pause, day, err)
			}
			if d := r.Decisions(1, "")[0]; !d.At.Round(0).Equal(now.Round(0)) || l.late != 1 {
				t.Errorf("decided at %v after %g s, want %v as the clock has it now, and 1 s", d.At, l.late, now)
			}
			l.Done(Result{Class: outcome.Success, At: now})
		})
	}
}
