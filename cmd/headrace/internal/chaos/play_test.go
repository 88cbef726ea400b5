package chaos

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
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
		r := New(Options{Fleet: &Fleet{}})
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
		return &Report{TrustWithin: 10, Groups: []Group{{Name: FreeStreams, Answers: 2000, Complete: 1999, Failed: 1}, {Name: FreePlain, Answers: 10, Complete: 10}, {Name: BoundAll, Answers: 9, Failed: 9}}}
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
		"settled twice":          {func(r *Report) { r.Resettled = 1 }, 1},
		"not settled":            {func(r *Report) { r.Unsettled = 1 }, 1},
		"forbidden continuation": {func(r *Report) { r.Groups[2].Continued = 1 }, 1},
		"a corpse was asked":     {func(r *Report) { r.Corpse = 1 }, 1},
		"trusted late":           {func(r *Report) { r.Trusted.P99 = 10.1 }, 1},
		"trusted in time":        {func(r *Report) { r.Trusted.P99 = 10 }, 0},
		"never asked again":      {func(r *Report) { r.Unasked = 1 }, 1},
		"nobody can tell":        {func(r *Report) { r.Untold = 1 }, 0},
		"a slot is kept":         {func(r *Report) { r.Held = map[string]int64{"a": 1} }, 1},
		"given back twice":       {func(r *Report) { r.Held = map[string]int64{"a": 1, "b": -1} }, 1},
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

// TestSettled holds the ledger to one record of each answer.
func TestSettled(t *testing.T) {
	got := func(id string, v Verdict) answer {
		a := answer{ask: ask()}
		a.id, a.Verdict = id, v
		return a
	}
	whole, broken := Verdict{End: Complete, Status: 200}, Verdict{End: Cut}
	for name, tc := range map[string]struct {
		heard        []answer
		records      []string
		again, never int
		problem      string // of the first answer
	}{
		"one each":                    {[]answer{got("1", whole), got("2", whole)}, []string{"2", "1"}, 0, 0, ""},
		"twice":                       {[]answer{got("1", whole)}, []string{"1", "1"}, 1, 0, "it was settled 2 times"},
		"thrice, and nobody heard it": {nil, []string{"1", "1", "1"}, 2, 0, ""},
		"never":                       {[]answer{got("1", whole)}, nil, 0, 1, "no record"},
		"an answer without an id":     {[]answer{got("", whole)}, []string{"1"}, 0, 1, "no record"},
		"no answer at all":            {[]answer{got("", broken)}, nil, 0, 0, ""},
		"refused, and not settled":    {[]answer{got("1", Verdict{End: Refused, Status: 429})}, nil, 0, 1, "no record"},
	} {
		t.Run(name, func(t *testing.T) {
			r := New(Options{Scenario: &Scenario{}, Fleet: &Fleet{}})
			r.heard = tc.heard
			for _, id := range tc.records {
				r.Settled(&ledger.Record{ID: id})
			}
			rep := r.report()
			if rep.Resettled != tc.again || rep.Unsettled != tc.never || rep.Wrong > 0 {
				t.Errorf("%d settled again, %d never, %d wrong; want %d, %d, 0", rep.Resettled, rep.Unsettled, rep.Wrong, tc.again, tc.never)
			}
			var what []string
			if len(rep.Problems) > 0 {
				what = rep.Problems[0].What
			}
			if all := strings.Join(what, "; "); tc.problem == "" && all != "" || !strings.Contains(all, tc.problem) {
				t.Errorf("problems %q, want %q", all, tc.problem)
			}
		})
	}
}

// TestSettle waits for the records of answers that have come to their end, and for their hosts.
func TestSettle(t *testing.T) {
	never := time.Hour
	for name, tc := range map[string]struct {
		settled, freed time.Duration // after the end
		want           time.Duration // that is waited, or somewhat more
	}{
		"all is there":          {0, 0, 0},
		"a record comes late":   {3 * time.Second, time.Second, 3 * time.Second},
		"a record never comes":  {never, 0, settling},
		"a host is freed late":  {time.Second, 4 * time.Second, 4 * time.Second},
		"a host is never freed": {0, never, settling},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				r := New(Options{Held: func() map[string]int64 {
					m := map[string]int64{"a": 0, "b": 0}
					if time.Since(began) < tc.freed {
						m["b"] = 1
					}
					return m
				}})
				a := answer{}
				a.id = "1"
				r.heard = []answer{a}
				r.Settled(&ledger.Record{ID: "2"}) // another one
				late := time.AfterFunc(tc.settled, func() { r.Settled(&ledger.Record{ID: "1"}) })
				defer late.Stop()
				limit, cancel := context.WithTimeout(t.Context(), settling)
				defer cancel()
				r.settle(limit)
				if d := time.Since(began); d < tc.want || d > tc.want+20*time.Millisecond {
					t.Errorf("waited %v, want %v", d, tc.want)
				}
			})
		})
	}
}

// TestTrusted tells a host that is not asked after its return from one that nobody had anything to ask.
func TestTrusted(t *testing.T) {
	began := time.Now().Add(-time.Minute)
	at := func(seconds float64) time.Time { return began.Add(time.Duration(seconds * float64(time.Second))) }
	type asked struct {
		after  float64 // seconds after its return
		class  outcome.Class
		tokens bool // some came
	}
	for name, tc := range map[string]struct {
		asked           []asked
		next, quiet     float64 // seconds after its return: another fault, and the end; 0 for none
		others          int     // requests to others within 10 s of it
		trusted         int64
		unasked, untold int
		p99             float64
	}{
		"soon":                              {asked: []asked{{after: 2}}, others: 40, trusted: 1, p99: 2},
		"soon, in a quiet time":             {asked: []asked{{after: 2}}, trusted: 1, p99: 2},
		"soon, but it broke off later":      {asked: []asked{{after: 2, class: outcome.Truncated, tokens: true}}, others: 40, trusted: 1, p99: 2},
		"soon, to no avail, and later":      {asked: []asked{{after: 2, class: outcome.UpstreamFault}, {after: 4}}, others: 40, trusted: 1, p99: 4},
		"late":                              {asked: []asked{{after: 24}}, others: 40, trusted: 1, p99: 24},
		"late, for nobody asked anything":   {asked: []asked{{after: 24}}, others: 19, untold: 1},
		"never":                             {others: 40, unasked: 1},
		"never, for nobody asked anything":  {others: 19, untold: 1},
		"never, for it was away again soon": {next: 9, others: 40, untold: 1},
		"never, though not away that soon":  {next: 11, others: 40, unasked: 1},
		"never, for the end came soon":      {quiet: 9, others: 40, untold: 1},
		"never, though the end was later":   {quiet: 11, others: 40, unasked: 1},
		"not until it had been away again":  {asked: []asked{{after: 12}}, next: 11, others: 40, unasked: 1},
		"by a continuation after the end":   {asked: []asked{{after: 4}}, quiet: 3, others: 40, trusted: 1, p99: 4},
	} {
		t.Run(name, func(t *testing.T) {
			r := New(Options{Fleet: &Fleet{members: make([]*member, 2)}})
			o := &outage{id: "static:a", from: at(10), back: at(20)}
			if tc.next > 0 {
				o.next = at(20 + tc.next)
			}
			if tc.quiet > 0 {
				r.quiet = at(20 + tc.quiet)
			}
			r.outages = []*outage{o}
			settle := func(a ledger.Attempt, seconds float64) {
				r.Settled(&ledger.Record{ID: fmt.Sprint(len(r.records)), At: at(20 + seconds), Tries: 1, Attempts: []ledger.Attempt{a}})
			}
			for i := range tc.others {
				settle(ledger.Attempt{Endpoint: "static:b", Class: outcome.Success, Duration: time.Second}, 8*float64(i)/float64(tc.others))
			}
			for _, x := range tc.asked {
				a := ledger.Attempt{Endpoint: "static:a", Class: x.class, Duration: time.Second}
				if x.tokens {
					a.First = 100 * time.Millisecond
				}
				settle(a, x.after)
			}
			rep := &Report{Attempts: map[string]int{}}
			r.follow(rep)
			if rep.Trusted.N != tc.trusted || rep.Unasked != tc.unasked || rep.Untold != tc.untold || rep.Trusted.P99 != tc.p99 {
				t.Errorf("%d trusted again, p99 %v s, %d not asked, %d untold; want %d, %v s, %d, %d",
					rep.Trusted.N, rep.Trusted.P99, rep.Unasked, rep.Untold, tc.trusted, tc.p99, tc.unasked, tc.untold)
			}
		})
	}
}
