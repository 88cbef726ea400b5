package runpod

import (
	"strings"
	"testing"
	"time"

	"headrace/router/endpoint"
)

// reading is what /health said so long after the first look, and what that must mean.
type reading struct {
	at    time.Duration
	g     gauges
	state endpoint.State
	why   string // part of the reason
}

func TestState(t *testing.T) {
	const s = time.Second
	queue, balancer := description{maxWorkers: 3}, description{maxWorkers: 3, balancer: true}
	for name, tc := range map[string]struct {
		d    description
		seen []reading
	}{
		"asleep": {queue, []reading{{0, gauges{}, endpoint.Cold, "no worker is up"}}},
		"the gauges of one idle worker are not added up": {queue, []reading{{0, gauges{idle: 2, ready: 2}, endpoint.Ready, ""}}},
		"a cold start": {queue, []reading{
			{0, gauges{}, endpoint.Cold, ""},
			{5 * s, gauges{queued: 1}, endpoint.Starting, "jobs wait for a worker"},
			{10 * s, gauges{queued: 1, initializing: 1}, endpoint.Starting, "a worker starts"},
			{50 * s, gauges{ready: 1, running: 1, inProgress: 1}, endpoint.Ready, ""},
		}},
		"runpod_9.19_over_7_minutes_initializing": {queue, []reading{
			{0, gauges{}, endpoint.Cold, ""},
			{5 * s, gauges{initializing: 1}, endpoint.Starting, "a worker starts"},
			{1200 * s, gauges{initializing: 1}, endpoint.Starting, "over 7 minutes"},
		}},
		"ready is believed at the first look": {queue, []reading{{0, gauges{ready: 1}, endpoint.Ready, ""}}},
		"ready comes before the model is loaded": {queue, []reading{
			{0, gauges{initializing: 1}, endpoint.Starting, ""},
			{5 * s, gauges{ready: 1, idle: 1}, endpoint.Starting, "just come up"},
			{20 * s, gauges{ready: 1, idle: 1}, endpoint.Starting, "just come up"},
			{36 * s, gauges{ready: 1, idle: 1}, endpoint.Ready, ""},
		}},
		"a job done shows that a fresh worker works": {queue, []reading{
			{0, gauges{initializing: 1, completed: 7}, endpoint.Starting, ""},
			{5 * s, gauges{ready: 1, completed: 7}, endpoint.Starting, ""},
			{10 * s, gauges{ready: 1, completed: 8}, endpoint.Ready, ""},
			{15 * s, gauges{ready: 1, completed: 8}, endpoint.Ready, ""},
		}},
		"saturated when jobs wait twice and nobody is idle": {queue, []reading{
			{0, gauges{ready: 1, running: 1, inProgress: 30, queued: 4}, endpoint.Ready, ""},
			{5 * s, gauges{ready: 1, running: 1, inProgress: 30, queued: 9}, endpoint.Saturated, "all its workers are busy"},
			{10 * s, gauges{ready: 1, running: 1, inProgress: 30}, endpoint.Ready, ""},
		}},
		"throttled while jobs wait": {queue, []reading{
			{0, gauges{throttled: 1, queued: 1}, endpoint.NoCapacity, "no free GPU"},
			{300 * s, gauges{throttled: 1, queued: 2}, endpoint.NoCapacity, "no free GPU"},
		}},
		"a throttled worker left over": {queue, []reading{
			{0, gauges{throttled: 1}, endpoint.NoCapacity, "throttled"},
			{59 * s, gauges{throttled: 1}, endpoint.NoCapacity, ""},
			{61 * s, gauges{throttled: 1}, endpoint.Cold, "left from before"},
		}},
		"throttled beside one that runs": {queue, []reading{{0, gauges{throttled: 2, running: 1, inProgress: 1}, endpoint.Ready, ""}}},
		"runpod_9.5_crash_loop": {queue, []reading{
			{0, gauges{initializing: 1, queued: 1}, endpoint.Starting, ""},
			{5 * s, gauges{initializing: 1, unhealthy: 1, queued: 2}, endpoint.NoCapacity, "crash"},
			{10 * s, gauges{initializing: 2, unhealthy: 1, queued: 2}, endpoint.NoCapacity, "crash"},
			{15 * s, gauges{initializing: 1, queued: 2}, endpoint.Starting, ""},
		}},
		"runpod_9.10_queued_for_ever_with_crashed_workers": {queue, []reading{
			{0, gauges{unhealthy: 2, queued: 5}, endpoint.NoCapacity, "crash"},
			{3600 * s, gauges{unhealthy: 2, queued: 5}, endpoint.NoCapacity, "crash"},
			{3605 * s, gauges{ready: 1, running: 1, inProgress: 5}, endpoint.Ready, ""},
		}},
		"runpod_9.10_queued_for_ever_with_ready_workers": {queue, []reading{
			{0, gauges{ready: 2, idle: 2, completed: 4}, endpoint.Ready, ""},
			{5 * s, gauges{ready: 2, idle: 2, queued: 1, completed: 4}, endpoint.Ready, ""},
			{10 * s, gauges{ready: 2, idle: 2, queued: 2, completed: 4}, endpoint.Starting, "may still load"},
			{200 * s, gauges{ready: 2, idle: 2, queued: 3, completed: 4}, endpoint.NoCapacity, "stay in the queue"},
			{205 * s, gauges{ready: 2, idle: 1, running: 1, inProgress: 1, queued: 2, completed: 4}, endpoint.Ready, ""},
		}},
		"nobody even starts": {queue, []reading{
			{0, gauges{queued: 1}, endpoint.Starting, ""},
			{60 * s, gauges{queued: 1}, endpoint.Starting, ""},
			{95 * s, gauges{queued: 1}, endpoint.NoCapacity, "starts no worker"},
			{100 * s, gauges{queued: 1, initializing: 1}, endpoint.Starting, "a worker starts"},
		}},
		"unhealthy without a queue": {queue, []reading{{0, gauges{unhealthy: 1}, endpoint.Cold, "unhealthy"}}},
		"runpod_8_idle_decay_to_no_workers": {description{maxWorkers: 0}, []reading{
			{0, gauges{queued: 3}, endpoint.NoCapacity, "7 days without requests"},
			{5 * s, gauges{ready: 1, running: 1}, endpoint.Draining, "max is 0"},
		}},
		"how many workers there may be is unknown":      {description{maxWorkers: -1}, []reading{{0, gauges{}, endpoint.Cold, ""}}},
		"runpod_9.14_balancer_runs_without_being_ready": {balancer, []reading{{0, gauges{running: 1}, endpoint.Starting, "health check"}}},
		"a balancer's ready worker took 31 s for the request": {balancer, []reading{
			{0, gauges{running: 1}, endpoint.Starting, ""},
			{5 * s, gauges{running: 1, ready: 1}, endpoint.Starting, "just come up"},
			{40 * s, gauges{running: 1, ready: 1}, endpoint.Ready, ""},
		}},
		"a balancer without anybody": {balancer, []reading{{0, gauges{}, endpoint.Cold, ""}}},
	} {
		t.Run(name, func(t *testing.T) {
			var v sight
			t0 := time.Date(2026, 9, 1, 0, 0, 0, 0, time.UTC)
			for _, r := range tc.seen {
				state, why := v.look(r.g, t0.Add(r.at), &tc.d, 30*s)
				if state != r.state || !strings.Contains(why, r.why) {
					t.Errorf("after %v %+v: %v, %q; want %v, %q", r.at, r.g, state, why, r.state, r.why)
				}
			}
		})
	}
}

func TestColdStartIsLearned(t *testing.T) {
	d := description{maxWorkers: 3}
	t0 := time.Date(2026, 9, 1, 0, 0, 0, 0, time.UTC)
	at := func(v *sight, after time.Duration, g gauges) { v.look(g, t0.Add(after), &d, 30*time.Second) }

	var whole sight
	if got := whole.coldStart(); got != assumedCold {
		t.Errorf("cold start of which nothing is known: %v, want %v", got, assumedCold)
	}
	at(&whole, 0, gauges{})
	at(&whole, 10*time.Second, gauges{queued: 1})
	at(&whole, 100*time.Second, gauges{running: 1})
	if got := whole.coldStart(); got < 81*time.Second || got > 99*time.Second {
		t.Errorf("cold start after one of 90 s: %v", got)
	}

	var halfway sight // under way when it was first seen: nobody knows since when
	at(&halfway, 0, gauges{initializing: 1})
	at(&halfway, 5*time.Second, gauges{running: 1})
	if halfway.cold != 0 {
		t.Errorf("a start that was not seen to begin taught %v", halfway.cold)
	}

	var again sight // the worker went to sleep and came back
	at(&again, 0, gauges{running: 1})
	at(&again, 10*time.Second, gauges{initializing: 1, queued: 1})
	at(&again, 50*time.Second, gauges{running: 1})
	if again.cold != 40*time.Second {
		t.Errorf("a start right after another worker: %v, want 40s", again.cold)
	}

	var stuck sight // hours in the queue are no cold start
	at(&stuck, 0, gauges{})
	at(&stuck, time.Second, gauges{queued: 1})
	at(&stuck, 3*time.Hour, gauges{running: 1})
	if stuck.cold != 0 {
		t.Errorf("three hours in the queue taught %v", stuck.cold)
	}
}

// TestPace shows that a fake which runs fifty times faster is believed to start its workers as much faster.
func TestPace(t *testing.T) {
	v := sight{pace: 0.02}
	if got := v.coldStart(); got != assumedCold/50 {
		t.Errorf("cold start of which nothing is known: %v, want %v", got, assumedCold/50)
	}
	v.learn(512 * time.Millisecond)
	if got := v.coldStart(); got < 500*time.Millisecond || got > 540*time.Millisecond {
		t.Errorf("cold start after one of 512 ms: %v", got)
	}
}

// TestRoomOfOneWorker shows that an endpoint's room is one worker's, however many are up: the router counts them itself.
func TestRoomOfOneWorker(t *testing.T) {
	p := New(Options{})
	s := &service{desc: description{id: "e", engine: engine{seqs: 30}}, state: endpoint.Ready, time: newWorkTime()}
	for _, workers := range []int{0, 1, 3} {
		s.seen.up, s.seen.last = workers > 0, gauges{ready: workers}
		p.build(s)
		if s.ep.MaxNumSeqs != 30 || s.ep.Workers != workers {
			t.Errorf("%d workers of 30: room for %d, %d workers", workers, s.ep.MaxNumSeqs, s.ep.Workers)
		}
	}
}
