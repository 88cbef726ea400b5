package runpod

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"headrace/router/endpoint"
)

// crowd draws lives of an endpoint with several workers: a job that finds none free wakes one more, up to most of them, and each goes when it has
// been idle.
func crowd(rng *rand.Rand, from time.Time, jobs, most int, gap time.Duration) (lives []*life) {
	at := from
	for i := range jobs {
		at = at.Add(time.Duration(rng.ExpFloat64() * float64(gap)))
		run := time.Duration(1+rng.IntN(20)) * time.Second
		var first *life
		var free time.Time
		up := 0
		for _, l := range lives {
			if !l.gone.After(at) {
				continue
			}
			up++
			if f := l.jobs[len(l.jobs)-1].ended; first == nil || f.Before(free) {
				first, free = l, f
			}
		}
		if first != nil && (!free.After(at) || up >= most) {
			begin := at.Add(2 * time.Millisecond)
			if free.After(at) {
				begin = free
			}
			first.jobs = append(first.jobs, jobTime{worker: first.name, sent: at, handing: 20 * time.Millisecond, began: begin, ended: begin.Add(run)})
			first.gone = begin.Add(run + testIdle)
			continue
		}
		l := &life{name: fmt.Sprint("w", i), begun: at, came: at.Add(testCold/2 + time.Duration(rng.Int64N(int64(testCold))))}
		l.jobs = []jobTime{{worker: l.name, sent: at, handing: 20 * time.Millisecond, began: l.came, ended: l.came.Add(run)}}
		l.gone = l.came.Add(run + testIdle)
		lives = append(lives, l)
	}
	return lives
}

// TestMeterOfWorkersThatCome compares what a meter adds up with what there was, of endpoints whose workers come and go beside each other, between
// two looks too: with the jobs of this gateway alone, beside another caller who gives half of them, and with looks alone.
func TestMeterOfWorkersThatCome(t *testing.T) {
	for name, tc := range map[string]struct {
		most    int
		gap     time.Duration // between two jobs, on the average
		list    bool
		told    float64 // of the jobs
		assumed time.Duration
		percent float64
	}{
		"two":                      {2, 20 * time.Second, false, 1, 20 * time.Second, 0.5},
		"four":                     {4, 8 * time.Second, false, 1, 20 * time.Second, 0.7},
		"four, mostly asleep":      {4, 30 * time.Second, false, 1, 20 * time.Second, 0.5},
		"ten":                      {10, 3 * time.Second, false, 1, 20 * time.Second, 1.2},
		"ten and the list":         {10, 3 * time.Second, true, 1, 20 * time.Second, 1.2},
		"four, another caller":     {4, 8 * time.Second, false, 0.5, testCold, 2.5},
		"ten, another, and a list": {10, 3 * time.Second, true, 0.5, testCold, 4},
		"four, looks alone":        {4, 8 * time.Second, false, 0, testCold, 2.5},
		"four, looks and the list": {4, 8 * time.Second, true, 0, 20 * time.Second, 3},
		"two, looks alone":         {2, 20 * time.Second, false, 0, testCold, 2.5},
	} {
		t.Run(name, func(t *testing.T) {
			seed := rand.Uint64()
			rng := rand.New(rand.NewPCG(seed, 7)) //nolint:gosec // a test's
			from := time.Date(2026, 11, 28, 9, 0, 0, 0, time.UTC)
			lives := crowd(rng, from, 500, tc.most, tc.gap)
			w := newWorkTime()
			w.idle, w.unit, w.assumed = testIdle, time.Second, tc.assumed
			var truth float64
			var ends []jobTime
			end := from
			for _, l := range lives {
				truth += l.billed()
				ends = append(ends, l.jobs...)
				if l.gone.After(end) {
					end = l.gone
				}
			}
			slices.SortFunc(ends, func(a, b jobTime) int { return a.ended.Compare(b.ended) })
			listed := map[string]bool{}
			end = end.Add(time.Minute)
			done := 0
			for at := from; at.Before(end); at = at.Add(5 * time.Second) {
				for ; done < len(ends) && ends[done].ended.Before(at); done++ {
					if rng.Float64() < tc.told {
						w.job(ends[done])
					}
				}
				s := sighting{call: span{at.Add(-10 * time.Millisecond), at.Add(10 * time.Millisecond)}, done: done}
				for _, l := range lives {
					switch {
					case at.Before(l.begun) || !at.Before(l.gone):
					case at.Before(l.came):
						s.starting++
					default:
						s.up++
						s.busy = s.busy || slices.ContainsFunc(l.jobs, func(j jobTime) bool { return !at.Before(j.began) && at.Before(j.ended) })
					}
				}
				w.look(s)
				for _, l := range lives {
					if tc.list && !listed[l.name] && at.After(l.came) && at.Before(l.gone) {
						listed[l.name] = true
						up := at.Sub(l.begun).Truncate(time.Second)
						w.list([]told{{l.name, span{at.Add(-up - time.Second), at.Add(-up)}}})
					}
				}
			}
			r := w.meter.Read(end)
			off := 100 * (r.Seconds - truth) / truth
			t.Logf("seed %d: %.0f of %.0f s (%+.2f %%), %.0f s in doubt, %d starts of %d, %.0f s of them", seed, r.Seconds, truth, off, r.Doubt, r.Starts, len(lives), r.Cold)
			if math.Abs(r.Seconds-truth) > r.Doubt || math.Abs(off) > tc.percent {
				t.Errorf("off by %.2f %%", off)
			}
			if r.Up != 0 || tc.told == 1 && math.Abs(float64(r.Starts)-float64(len(lives))) > 1+0.01*float64(len(lives)) {
				t.Errorf("%+v of %d lives", r, len(lives))
			}
		})
	}
}

// TestJobsThatWait keeps when the newest work ended, however many jobs have told since the last look.
func TestJobsThatWait(t *testing.T) {
	from := time.Date(2026, 11, 28, 9, 0, 0, 0, time.UTC)
	p := &Provider{work: map[endpoint.ID]*work{}}
	for i := range mostWaiting + 10 {
		p.jobDone("runpod:a", &endpoint.WorkerReport{Submitted: from.Add(time.Duration(i) * time.Second), Delayed: time.Second, Executed: time.Second, Worker: "w"})
	}
	if w, want := p.work["runpod:a"], from.Add((mostWaiting+9+2)*time.Second); len(w.jobs) != mostWaiting || !w.ended.Equal(want) {
		t.Errorf("%d jobs are kept, the last ended at %v, want %d and %v", len(w.jobs), w.ended, mostWaiting, want)
	}
}
