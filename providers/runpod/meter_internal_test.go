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

// life is a worker of which everything is known.
type life struct {
	name              string
	begun, came, gone time.Time // billed from begun
	jobs              []jobTime
}

// billed is in whole seconds.
func (l *life) billed() float64 { return math.Ceil(l.gone.Sub(l.begun).Seconds()) }

const (
	testIdle = 5 * time.Second
	testCold = 45 * time.Second
)

// sleeper draws lives of an endpoint with one worker at most: it is woken by a job, does some, and goes when it has been idle.
func sleeper(rng *rand.Rand, from time.Time, n int, pull time.Duration) (lives []life) {
	at := from
	for i := range n {
		at = at.Add(time.Duration(20+rng.IntN(200))*time.Second + time.Duration(rng.IntN(1e9)))
		l := life{name: fmt.Sprint("w", i), begun: at.Add(pull)}
		cold := testCold/2 + time.Duration(rng.Int64N(int64(testCold)))
		l.came = l.begun.Add(cold)
		begin, sent := l.came, at
		for range 1 + rng.IntN(4) {
			j := jobTime{worker: l.name, sent: sent, handing: 20 * time.Millisecond, began: begin, ended: begin.Add(time.Duration(rng.IntN(int(20 * time.Second))))}
			l.jobs = append(l.jobs, j)
			sent = j.ended.Add(time.Duration(rng.IntN(int(testIdle) - 1)))
			begin = sent.Add(2 * time.Millisecond)
			l.gone = j.ended.Add(testIdle)
		}
		lives = append(lives, l)
		at = l.gone
	}
	return lives
}

// TestMeter compares what a meter adds up with what there was: by looks alone, with what jobs tell, and with the list of workers. What it calls
// in doubt bounds its error; with jobs and no image to pull it is right to half a percent, and with the list to one.
func TestMeter(t *testing.T) {
	for name, tc := range map[string]struct {
		jobs, list bool
		poll       time.Duration
		pull       time.Duration
		percent    float64
	}{
		"looks alone":            {false, false, 5 * time.Second, 0, 15},
		"jobs":                   {true, false, 5 * time.Second, 0, 0.5},
		"jobs, looks that sleep": {true, false, 30 * time.Second, 0, 1.5},
		"the list":               {false, true, 5 * time.Second, 0, 2},
		"jobs, an image to pull": {true, true, 5 * time.Second, 80 * time.Second, 1},
		"jobs and the list":      {true, true, 5 * time.Second, 0, 0.5},
	} {
		t.Run(name, func(t *testing.T) {
			seed := rand.Uint64()
			rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test's
			from := time.Date(2026, 11, 28, 9, 0, 0, 0, time.UTC)
			lives := sleeper(rng, from, 100, tc.pull)
			w := newWorkTime()
			w.idle, w.unit, w.assumed = testIdle, time.Second, testCold
			end := lives[len(lives)-1].gone.Add(time.Hour)
			var truth float64
			var ends []jobTime
			for i := range lives {
				truth += lives[i].billed()
				ends = append(ends, lives[i].jobs...)
			}
			listed := map[string]bool{}
			for at := from; at.Before(end); at = at.Add(tc.poll - 50*time.Millisecond + time.Duration(rng.IntN(int(100*time.Millisecond)))) {
				for tc.jobs && len(ends) > 0 && ends[0].ended.Before(at) {
					w.job(ends[0])
					ends = ends[1:]
				}
				s := sighting{call: span{at.Add(-10 * time.Millisecond), at.Add(10 * time.Millisecond)}}
				for i := range lives {
					l := &lives[i]
					switch {
					case at.Before(l.begun.Add(-tc.pull)) || !at.Before(l.gone):
					case at.Before(l.came):
						s.starting++
					default:
						s.up++
						s.busy = s.busy || slices.ContainsFunc(l.jobs, func(j jobTime) bool { return !at.Before(j.began) && at.Before(j.ended) })
					}
					for _, j := range l.jobs {
						if j.ended.Before(at) {
							s.done++
						}
					}
				}
				w.look(s)
				for i := range lives {
					if l := &lives[i]; tc.list && !listed[l.name] && at.After(l.came) && at.Before(l.gone) {
						listed[l.name] = true
						up := at.Sub(l.begun).Truncate(time.Second)
						w.list([]told{{l.name, span{at.Add(-up - time.Second), at.Add(-up)}}})
					}
				}
			}
			r := w.meter.Read(end)
			off := 100 * (r.Seconds - truth) / truth
			t.Logf("seed %d: %.1f of %.1f s (%+.2f %%), %.1f s in doubt, %d starts, %.1f s of them", seed, r.Seconds, truth, off, r.Doubt, r.Starts, r.Cold)
			if math.Abs(r.Seconds-truth) > r.Doubt || math.Abs(off) > tc.percent {
				t.Errorf("off by %.2f %%", off)
			}
			if r.Starts != int64(len(lives)) || r.Up != 0 || r.Cold <= 0 || r.Cold >= r.Seconds {
				t.Errorf("%+v of %d lives", r, len(lives))
			}
		})
	}
}

// TestMeterOfMany counts workers that are always up to the second, and those that come beside them.
func TestMeterOfMany(t *testing.T) {
	from := time.Date(2026, 11, 28, 9, 0, 0, 0, time.UTC)
	w := newWorkTime()
	w.idle, w.unit, w.assumed = testIdle, time.Second, 15*time.Second
	up := []int{2, 2, 2, 4, 4, 3, 2, 2}
	for i, n := range up {
		at := from.Add(time.Duration(i) * 10 * time.Second)
		w.look(sighting{call: span{at, at}, up: n, starting: max(0, up[min(i+1, len(up)-1)]-n)})
	}
	// Two came after 25 s on the average, with a start of 15 s each, and one went after 45 s, one after 55 s.
	want := 2*70.0 + 2*15 + 20 + 30 + 1
	if r := w.meter.Read(from.Add(70 * time.Second)); math.Abs(r.Seconds-want) > 1e-6 || r.Up != 2 || r.Starts != 2 || math.Abs(r.Cold-30) > 1e-6 || r.Doubt <= 0 {
		t.Errorf("%+v, want %v s", r, want)
	}
	if r := w.meter.Read(from.Add(80 * time.Second)); math.Abs(r.Seconds-want-20) > 1e-6 {
		t.Errorf("ten seconds later %+v", r)
	}
}

// TestMeterOfABalancer counts containers, be they ready or not.
func TestMeterOfABalancer(t *testing.T) {
	from := time.Date(2026, 11, 28, 9, 0, 0, 0, time.UTC)
	w := newWorkTime()
	w.balancer, w.idle, w.unit, w.assumed = true, testIdle, time.Second, testCold
	for i, n := range []sighting{{}, {up: 1, starting: 1}, {up: 1, starting: 1}, {up: 1}, {up: 1}, {}} {
		n.call.from = from.Add(time.Duration(i) * 10 * time.Second)
		n.call.to = n.call.from
		w.look(n)
		if i == 3 {
			w.done(from.Add(38 * time.Second)) // and so it goes after 43
		}
	}
	if r := w.meter.Read(from.Add(time.Hour)); math.Abs(r.Seconds-(38+0.5)) > 1e-6 || r.Starts != 1 || r.Cold != 20 {
		t.Errorf("%+v", r)
	}
	if (endpoint.Reading{}) != (&endpoint.Meter{}).Read(from) {
		t.Error("a meter that was never written shows something")
	}
}
