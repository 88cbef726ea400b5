package chaos

import (
	"fmt"
	"testing"
	"time"

	"headrace/gateway/ledger"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// TestFollow finds what is sent to a host that is away, and what it is sent again after its return.
func TestFollow(t *testing.T) {
	at := func(seconds float64) time.Time {
		return time.Unix(1000, 0).Add(time.Duration(seconds * float64(time.Second)))
	}
	const a, b = endpoint.ID("static:a"), endpoint.ID("static:b")
	n := 0
	settle := func(r *Run, began float64, tries ...ledger.Attempt) {
		n++
		rec := ledger.Record{ID: fmt.Sprint(n), At: at(began), Tries: len(tries), Attempts: tries}
		for i := range tries {
			if tries[i].After == 0 { // at once after the one before
				tries[i].After = rec.Duration
			}
			rec.Duration = max(rec.Duration, tries[i].After+tries[i].Duration)
		}
		r.Settled(&rec)
	}
	later := func(a ledger.Attempt, seconds float64) ledger.Attempt {
		a.After = time.Duration(seconds * float64(time.Second))
		return a
	}
	try := func(id endpoint.ID, c outcome.Class, seconds float64) ledger.Attempt {
		return ledger.Attempt{Endpoint: id, Class: c, Duration: time.Duration(seconds * float64(time.Second))}
	}
	play := func() *Run {
		r := New(Options{})
		r.outages = []*outage{{id: string(a), from: at(10), back: at(20)}}
		settle(r, 8, try(a, outcome.Truncated, 2.1)) // the first failure, at 10.1
		settle(r, 9, try(a, outcome.Truncated, 1.2)) // a later one, of a request from before
		settle(r, 20.5, try(a, outcome.Success, 3))  // served again
		settle(r, 10.05, try(b, outcome.Success, 1))
		return r
	}
	for name, tc := range map[string]struct {
		more    func(*Run)
		corpse  int
		trusted int64
	}{
		"as it should be": {func(*Run) {}, 0, 1},
		"chosen before the failure was reported": {func(r *Run) {
			settle(r, 10.05, try(a, outcome.DialFailed, 0.5), try(b, outcome.Success, 1))
		}, 0, 1},
		"chosen after it": {func(r *Run) {
			settle(r, 12, try(a, outcome.DialFailed, 0.1), try(b, outcome.Success, 1))
		}, 1, 1},
		"a retry after it": {func(r *Run) {
			settle(r, 11, try(b, outcome.UpstreamFault, 1), try(a, outcome.DialFailed, 0.1), try(b, outcome.Success, 1))
		}, 1, 1},
		"a failure long before the end of its request": { // which waited for somebody to go on, so that the first one is this
			func(r *Run) {
				settle(r, 5, try(a, outcome.Truncated, 5.05), later(try(b, outcome.Success, 2), 9))
				settle(r, 10.08, try(a, outcome.DialFailed, 0.1), try(b, outcome.Success, 1))
			}, 1, 1,
		},
		"before it, beside another one that took longer": {func(r *Run) {
			settle(r, 9, try(b, outcome.Success, 4), later(try(a, outcome.DialFailed, 0.2), 0.9))
		}, 0, 1},
		"after too many to name them all": {func(r *Run) {
			settle(r, 12, try(a, outcome.DialFailed, 0.1), try(b, outcome.UpstreamFault, 1), try(b, outcome.UpstreamFault, 1), try(b, outcome.UpstreamFault, 1), try(b, outcome.UpstreamFault, 1))
			r.records[fmt.Sprint(n)].Tries++
		}, 1, 1},
		"after its return": {func(r *Run) { settle(r, 20.1, try(a, outcome.DialFailed, 0.1)) }, 0, 1},
		"not back": {func(r *Run) {
			r.outages[0].back = time.Time{}
		}, 1, 0}, // what served must have been a mistake
	} {
		t.Run(name, func(t *testing.T) {
			r := play()
			tc.more(r)
			rep := &Report{Attempts: map[string]int{}}
			r.follow(rep)
			if rep.Corpse != tc.corpse || rep.Trusted.N != tc.trusted {
				t.Errorf("%d sent to a corpse, %d trusted again; want %d, %d", rep.Corpse, rep.Trusted.N, tc.corpse, tc.trusted)
			}
		})
	}
}

func TestJudge(t *testing.T) {
	good := func() *Report {
		return &Report{Groups: []Group{{Name: FreeStreams, Answers: 2000, Complete: 1999, Failed: 1}, {Name: FreePlain, Answers: 10, Complete: 10}, {Name: BoundAll, Answers: 9, Failed: 9}}}
	}
	for name, tc := range map[string]struct {
		change func(*Report)
		missed int
	}{
		"good":                   {func(*Report) {}, 0},
		"too many errors":        {func(r *Report) { r.Groups[0].Complete = 1990 }, 1},
		"plain answers fail":     {func(r *Report) { r.Groups[1].Complete = 7 }, 1},
		"a cut":                  {func(r *Report) { r.Groups[2].Cut = 1 }, 1},
		"a token lost":           {func(r *Report) { r.Lost = 1 }, 1},
		"a token doubled":        {func(r *Report) { r.Doubled = 1 }, 1},
		"a token altered":        {func(r *Report) { r.Altered = 1 }, 1},
		"two ids":                {func(r *Report) { r.Wrong = 1 }, 1},
		"forbidden continuation": {func(r *Report) { r.Groups[2].Continued = 1 }, 1},
		"a corpse was asked":     {func(r *Report) { r.Corpse = 1 }, 1},
		"nothing was asked":      {func(r *Report) { r.Groups = nil }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := good()
			tc.change(r)
			if r.judge(0.999); len(r.Missed()) != tc.missed {
				t.Errorf("missed %q, want %d", r.Missed(), tc.missed)
			}
		})
	}
}
